package integration

import (
	"fmt"
	"testing"
	"time"
)

// TestAdditionalKeyExchanges: charon, which does not know additional key exchanges (RFC 9370),
// takes the proposals without them where they may be left out, whoever begins and at every
// rekey; where they are required it says NO_PROPOSAL_CHOSEN and nothing comes of it.
func TestAdditionalKeyExchanges(t *testing.T) {
	for _, tandem := range []bool{true, false} {
		t.Run(fmt.Sprintf("optional, tandem begins: %v", tandem), func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			ch := s.charon("peer", conn{})
			auto := map[bool]string{true: "auto-negotiate enable", false: "auto-negotiate disable"}[tandem]
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer("addke1 36 0", "addke2 37 0", auto)},
				phase2: []entry{netPhase2("addke1 37 0")}, routes: []entry{routeTo(peerNet, "vpn1")}})
			if !tandem {
				ch.up()
			}
			g.wantUp("vpn1", map[bool]string{true: "initiator", false: "responder"}[tandem])
			ch.one()
			before := ch.Events()
			g.must("diagnose vpn ike rekey ike name vpn1")
			eventually(t, 20*time.Second, "the IKE SA is rekeyed", func() bool { return ch.Events().IKERekeys > before.IKERekeys })
			g.must("diagnose vpn ike rekey child name vpn1")
			eventually(t, 20*time.Second, "the Child SA is rekeyed", func() bool { return ch.Events().ChildRekeys > before.ChildRekeys })
			if err := ch.Rekey(ch.ctx, "net", ""); err != nil {
				t.Fatal(err)
			}
			eventually(t, 20*time.Second, "charon has rekeyed the Child SA", func() bool { return ch.Events().ChildRekeys > before.ChildRekeys+1 })
			s.wantPing("peer", peerIn, gwIn)
			ch.down(g)
		})
	}
	t.Run("required", func(t *testing.T) {
		t.Parallel()
		s := wire(t)
		ch := s.charon("peer", conn{})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer("addke1 36", "auto-negotiate enable")}, phase2: []entry{netPhase2()}})
		eventually(t, 10*time.Second, "charon refuses", func() bool { return ch.said(`N\(NO_PROP\)`) > 0 })
		if err := ch.Initiate(ch.ctx, "net", 5*time.Second); err == nil {
			t.Error("charon set up an IKE SA without the key exchange that is required")
		}
		if st := g.status("vpn1"); st.Established != 0 {
			t.Errorf("%d IKE SAs were established", st.Established)
		}
	})
}
