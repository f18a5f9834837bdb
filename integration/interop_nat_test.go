package integration

import (
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/lab"
)

// natPlan hides the clients of routedPlan and a third one behind the router.
func natPlan() lab.Plan {
	p := routedPlan()
	p.Nodes = append(p.Nodes, lab.PlanNode{Name: "c3", Addrs: []string{"10.1.3.1/32"}})
	p.Cables = append(p.Cables, lab.PlanCable{A: "c3", AIf: "wan0", B: "net", BIf: "c3",
		AAddrs: []string{"198.18.0.10/24"}, BAddrs: []string{"198.18.0.1/24"}})
	p.Routes = append(p.Routes[:2], lab.PlanRoute{Node: "c3", Dst: "192.0.2.0/24", Via: "198.18.0.1/24"})
	return p
}

// TestClientsBehindOneNAT: two strongSwans and one Tandem share one outer address.
func TestClientsBehindOneNAT(t *testing.T) {
	t.Parallel()
	s := build(t, natPlan())
	s.nft("net", `table ip nat {
	chain post {
		type nat hook postrouting priority srcnat
		oifname "wan" masquerade
	}
}
`)
	wan := s.tap("gw", "wan0")
	conf := twoDialups("nattraversal enable")
	conf.phase1 = append(conf.phase1, dialup("three", "three.test", "secret of three", "nattraversal enable"))
	conf.phase2 = append(conf.phase2, dialupPhase2("three-net", "three"))
	g := s.gateway("gw", conf)
	keepalives := "keep_alive = 1s"
	c1 := s.charon("c1", conn{local: "198.51.100.10", id: "one.test", secret: "secret of one", localTS: "10.1.1.0/24", noEncap: true}, keepalives)
	c2 := s.charon("c2", conn{local: "203.0.113.10", id: "two.test", secret: "secret of two", localTS: "10.1.2.0/24", noEncap: true}, keepalives)
	c1.up()
	c2.up()
	c3 := s.gateway("c3", gwConf{
		phase1: []entry{{"up", []string{"interface wan0", "remote-gw " + gwWAN, "psksecret \"secret of three\"", "localid three.test", "localid-type fqdn",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "dpd disable", "keepalive 5"}}},
		phase2: []entry{{"net", []string{"phase1name up", "proposal aes128gcm", "dhgrp 31", "src-subnet 10.1.3.0/24", "dst-subnet " + gwNet}}},
		routes: []entry{routeTo(gwNet, "up")},
	})
	c3.wantUp("up", "initiator")
	nat := netip.MustParseAddr("192.0.2.254")
	remotes := map[string]bool{}
	for _, name := range []string{"one_0", "two_0", "three_0"} {
		st := g.wantUp(name, "responder")
		remote := netip.MustParseAddrPort(st.Remote)
		if !st.NAT || remote.Addr() != nat || remotes[st.Remote] {
			t.Errorf("%s: %+v", name, st)
		}
		remotes[st.Remote] = true
	}
	s.wantPing("c1", "10.1.1.1", gwIn)
	s.wantPing("c2", "10.1.2.1", gwIn)
	s.wantPing("c3", "10.1.3.1", gwIn)
	s.wantPing("gw", gwIn, "10.1.1.1")
	s.wantPing("gw", gwIn, "10.1.2.1")
	s.wantPing("gw", gwIn, "10.1.3.1")

	// Each goes to port 4500 with IKE_AUTH, and not before.
	for _, p := range wan.packets() {
		port := p.dst.Port()
		if p.src.Addr() == netip.MustParseAddr(gwWAN) {
			port = p.src.Port()
		}
		switch {
		case p.kind == kindUDPESP && port == 4500, p.kind == kindKeepalive && port == 4500:
		case p.kind == kindIKE && (port == 500) == (p.exchange() == byte(message.IKESAInit)):
		default:
			t.Errorf("%s %v → %v, exchange %d", p.kind, p.src, p.dst, p.exchange())
		}
	}
	// Keepalives come from the clients, who alone can hold the mapping open:
	// charon's when a second was idle, ours every five seconds.
	ours := func() (at []time.Time) {
		want, ok := "", false
		if st := g.status("three_0"); st.Name != "" {
			want, ok = st.Remote, true
		}
		for _, p := range wan.packets() {
			if ok && p.kind == kindKeepalive && p.src.String() == want {
				at = append(at, p.at)
			}
		}
		return at
	}
	eventually(t, 20*time.Second, "three keepalives of ours", func() bool { return len(ours()) >= 3 })
	at := ours()
	for i := 1; i < 3; i++ {
		if d := at[i].Sub(at[i-1]); d < 4800*time.Millisecond || d > 5500*time.Millisecond {
			t.Errorf("keepalive %d came after %v, 5 s are configured", i, d)
		}
	}
	for _, name := range []string{"one_0", "two_0"} {
		remote := g.status(name).Remote
		if n := wan.count(func(p packet) bool { return p.kind == kindKeepalive && p.src.String() == remote }); n == 0 {
			t.Errorf("no keepalive of charon's from %s", remote)
		}
	}
	c3.stop()
	c2.Terminate(c2.ctx, "gw")
	c1.down(g)
}

// TestForcedEncapsulation: without any NAT, the gateway's false hash makes both
// sides take to UDP; charon is not told to.
func TestForcedEncapsulation(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	ch := s.charon("peer", conn{noEncap: true})
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("nattraversal forced", "keepalive 5")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
	ch.up()
	g.wantUp("vpn1", "responder")
	ch.says("remote host is behind NAT")
	if _, child := ch.one(); !child.Encap {
		t.Error("charon does not put ESP into UDP")
	}
	s.pingBoth()
	wan.onlyKinds(kindIKE, kindUDPESP, kindKeepalive)
	wan.wantAtLeast(8, kindUDPESP, func(p packet) bool { return p.kind == kindUDPESP && p.dst.Port() == 4500 && p.src.Port() == 4500 })
	eventually(t, 10*time.Second, "a keepalive of ours", func() bool {
		return wan.count(func(p packet) bool { return p.kind == kindKeepalive && from(gwWAN)(p) }) > 0
	})
	ch.down(g)
}
