package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestPPK: a post-quantum pre-shared key beside the authentication (RFC 8784), with
// strongSwan as the peer in both directions: known to both; unknown and not required, so
// that NO_PPK_AUTH counts; unknown and required.
func TestPPK(t *testing.T) {
	const secret = "thirty-two bytes of it and some more for good measure"
	for _, c := range []struct {
		name                    string
		tandem                  bool // begins
		ppk, id                 string
		peerRequires, peerHasIt bool
		used                    bool
		fails                   string // how the gateway puts it
	}{
		{"known, charon initiates", false, "allow", "k1", false, true, true, ""},
		{"known, tandem initiates", true, "allow", "k1", false, true, true, ""},
		{"known and required by both, charon initiates", false, "require", "k1", true, true, true, ""},
		{"known and required by both, tandem initiates", true, "require", "k1", true, true, true, ""},
		{"unknown here, charon initiates", false, "allow", "another", false, true, false, ""},
		{"unknown there, tandem initiates", true, "allow", "another", false, true, false, ""},
		{"unknown here and required there, charon initiates", false, "allow", "another", true, true, false, "PPK of the peer is unknown, and it requires it"},
		{"unknown there and required here, tandem initiates", true, "require", "another", false, true, false, "AUTHENTICATION_FAILED in AUTH response"},
		{"not used there and required here, charon initiates", false, "require", "k1", false, false, false, "the peer does not use a PPK, and one is required"},
		{"not used there and required here, tandem initiates", true, "require", "k1", false, false, false, "a PPK is required and the peer does not use one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			peer := conn{}
			if c.peerHasIt {
				if !c.tandem || c.id == "k1" { // as responder, charon refuses all others where one is named
					peer.conn = "ppk_id = k1"
				}
				peer.secrets = fmt.Sprintf("ppk { secret = %q\n id = k1 }", secret)
				if c.peerRequires {
					peer.conn += "\nppk_required = yes"
				}
			}
			ch := s.charon("peer", peer)
			auto := "auto-negotiate disable"
			if c.tandem {
				auto = "auto-negotiate enable"
			}
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer("ppk "+c.ppk, "ppk-identity "+c.id, fmt.Sprintf("ppk-secret %q", secret), auto)},
				phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
			var begun error
			if !c.tandem {
				begun = ch.Initiate(ch.ctx, "net", 10*time.Second)
			}
			if c.fails != "" {
				if !c.tandem && begun == nil {
					t.Error("charon succeeded")
				}
				eventually(t, 10*time.Second, "the gateway says "+c.fails, func() bool { return strings.Contains(g.log(), c.fails) })
				if st := g.status("vpn1"); st.Established != 0 {
					t.Errorf("%d IKE SAs were established", st.Established)
				}
				if sas := ch.sas(); len(sas) > 0 && sas[0].State == "ESTABLISHED" {
					t.Errorf("charon has an IKE SA: %+v", sas)
				}
				return
			}
			if begun != nil {
				t.Fatal(begun)
			}
			direction := map[bool]string{true: "initiator", false: "responder"}[c.tandem]
			if st := g.wantUp("vpn1", direction); st.SAs[0].PPK != c.used {
				t.Errorf("PPK used: %v, want %v", st.SAs[0].PPK, c.used)
			}
			ch.one()
			// Child SAs come from SK_d, which the PPK is mixed into on both sides.
			s.wantPing("peer", peerIn, gwIn)
			before := ch.Events()
			g.must("diagnose vpn ike rekey ike name vpn1")
			eventually(t, 20*time.Second, "the IKE SA is rekeyed", func() bool { return ch.Events().IKERekeys > before.IKERekeys })
			g.must("diagnose vpn ike rekey child name vpn1")
			eventually(t, 20*time.Second, "the Child SA is rekeyed", func() bool { return ch.Events().ChildRekeys > before.ChildRekeys })
			s.wantPing("peer", peerIn, gwIn)
			ch.down(g)
		})
	}
}
