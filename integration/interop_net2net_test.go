package integration

import (
	"testing"

	"tandem/internal/lab"
)

// sitesPlan has a host behind each end, so that both ends forward.
//
//	host 10.1.0.10 ─ 10.1.0.1 peer 192.0.2.10 ── 192.0.2.1 gw 10.2.0.1 ─ 10.2.0.10 server
func sitesPlan() lab.Plan {
	return lab.Plan{
		Nodes: []lab.PlanNode{{Name: "host"}, {Name: "peer", Forward: true}, {Name: "gw", Forward: true}, {Name: "server"}},
		Cables: []lab.PlanCable{
			{A: "host", AIf: "lan0", B: "peer", BIf: "lan0", AAddrs: []string{"10.1.0.10/24"}, BAddrs: []string{peerIn + "/24"}},
			{A: "peer", AIf: "wan0", B: "gw", BIf: "wan0", AAddrs: []string{peerWAN + "/24"}, BAddrs: []string{gwWAN + "/24"}},
			{A: "server", AIf: "lan0", B: "gw", BIf: "lan0", AAddrs: []string{"10.2.0.10/24"}, BAddrs: []string{gwIn + "/24"}},
		},
		Routes: []lab.PlanRoute{{Node: "host", Dst: "0.0.0.0/0", Via: peerIn + "/24"}, {Node: "server", Dst: "0.0.0.0/0", Via: gwIn + "/24"}},
	}
}

// TestNetToNetPSK joins two networks with a pre-shared key, begun by either side.
func TestNetToNetPSK(t *testing.T) {
	for _, c := range []struct {
		name, direction string
		phase1          []string
	}{
		{"charon initiates", "responder", nil},
		{"tandem initiates", "initiator", []string{"auto-negotiate enable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := build(t, sitesPlan())
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{})
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer(c.phase1...)}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
			if c.direction == "responder" {
				ch.up()
			}
			st := g.wantUp("vpn1", c.direction)
			if st.Failure != "" || st.PeerID != peerWAN {
				t.Errorf("status: %+v", st)
			}
			sa, child := ch.one()
			if sa.SPIi != st.SAs[0].SPIi || sa.SPIr != st.SAs[0].SPIr {
				t.Errorf("IKE SPIs: charon %s/%s, tandem %s/%s", sa.SPIi, sa.SPIr, st.SAs[0].SPIi, st.SAs[0].SPIr)
			}
			if own := g.children("vpn1")[0]; own.SPIIn != child.SPIOut || own.SPIOut != child.SPIIn {
				t.Errorf("ESP SPIs: charon %+v, tandem %+v", child, own)
			}
			s.wantPing("host", "10.1.0.10", "10.2.0.10")
			s.wantPing("server", "10.2.0.10", "10.1.0.10")
			if n := g.children("vpn1")[0]; n.InPackets < 6 || n.OutPackets < 6 {
				t.Errorf("counters after pings: %+v", n)
			}
			wan.onlyKinds(kindIKE, kindUDPESP, kindKeepalive)
			wan.wantAtLeast(12, kindUDPESP, func(p packet) bool { return p.kind == kindUDPESP })
			if c.direction == "responder" {
				ch.down(g)
			} else {
				g.stop() // says goodbye: charon must not be left with an SA
				ch.wantNone()
			}
			wan.onlyKinds(kindIKE, kindUDPESP, kindKeepalive)
		})
	}
}
