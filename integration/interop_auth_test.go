package integration

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/internal/lab"
)

// TestWrongPSK: the two sides hold different keys; whoever begins, nothing comes
// to stand, the refusal is told inside SK, and it is counted.
func TestWrongPSK(t *testing.T) {
	t.Run("charon initiates", func(t *testing.T) {
		t.Parallel()
		s := wire(t)
		wan := s.tap("gw", "wan0")
		ch := s.charon("peer", conn{secret: "not the same"})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer()}, phase2: []entry{netPhase2()}})
		if err := ch.Initiate(ch.ctx, "net", 5*time.Second); err == nil {
			t.Fatal("established with different keys")
		}
		ch.says(`parsed IKE_AUTH response 1 \[ N\(AUTH_FAILED\) \]`)
		wantSKOnly(wan, gwWAN)
		wantRefused(g, "ike_authentication_refused")
		ch.wantNone()
	})
	t.Run("tandem initiates", func(t *testing.T) {
		t.Parallel()
		s := wire(t)
		wan := s.tap("gw", "wan0")
		ch := s.charon("peer", conn{secret: "not the same"})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer("auto-negotiate enable")}, phase2: []entry{netPhase2()}})
		ch.says(`generating IKE_AUTH response 1 \[ N\(AUTH_FAILED\) \]`)
		wantSKOnly(wan, peerWAN)
		wantRefused(g, "ike_authentication_refused")
		eventually(t, 5*time.Second, "the reason in diagnose", func() bool { return g.status("vpn1").Failure != "" })
		ch.wantNone()
	})
}

// wantSKOnly wants an IKE_AUTH response that carries nothing outside SK.
func wantSKOnly(wan *tap, src string) {
	wan.t.Helper()
	eventually(wan.t, 5*time.Second, "an IKE_AUTH response on the wire", func() bool {
		return wan.count(func(p packet) bool {
			return from(src)(p) && p.exchange() == byte(message.IKEAuth) && p.response() && p.ike[16] == byte(message.TypeSK)
		}) > 0
	})
	wan.onlyKinds(kindIKE)
}

func wantRefused(g *gateway, counter string) {
	g.t.Helper()
	eventually(g.t, 5*time.Second, "a counted failure", func() bool { return g.stat(counter) > 0 })
	if st := g.status("vpn1"); st.Established != 0 || len(g.children("vpn1")) != 0 {
		g.t.Errorf("established in spite of it: %+v", st)
	}
	eventually(g.t, 5*time.Second, "no IKE SA established", func() bool {
		for _, sa := range g.status("vpn1").SAs {
			if sa.Status == "established" {
				return false
			}
		}
		return true
	})
}

// routedPlan has two clients on wires of their own and a router before the gateway.
//
//	c1 198.51.100.10 ── .1 net 192.0.2.254 ── 192.0.2.1 gw ─ 10.2.0.1
//	c2 203.0.113.10 ─── .1 ┘
func routedPlan() lab.Plan {
	return lab.Plan{
		Nodes: []lab.PlanNode{
			{Name: "c1", Addrs: []string{"10.1.1.1/32"}}, {Name: "c2", Addrs: []string{"10.1.2.1/32"}},
			{Name: "net", Forward: true}, {Name: "gw", Forward: true, Addrs: []string{gwIn + "/32"}},
		},
		Cables: []lab.PlanCable{
			{A: "c1", AIf: "wan0", B: "net", BIf: "c1", AAddrs: []string{"198.51.100.10/24"}, BAddrs: []string{"198.51.100.1/24"}},
			{A: "c2", AIf: "wan0", B: "net", BIf: "c2", AAddrs: []string{"203.0.113.10/24"}, BAddrs: []string{"203.0.113.1/24"}},
			{A: "gw", AIf: "wan0", B: "net", BIf: "wan", AAddrs: []string{gwWAN + "/24"}, BAddrs: []string{"192.0.2.254/24"}},
		},
		Routes: []lab.PlanRoute{
			{Node: "c1", Dst: "192.0.2.0/24", Via: "198.51.100.1/24"}, {Node: "c2", Dst: "192.0.2.0/24", Via: "203.0.113.1/24"},
			{Node: "gw", Dst: "198.51.100.0/24", Via: "192.0.2.254/24"}, {Node: "gw", Dst: "203.0.113.0/24", Via: "192.0.2.254/24"},
		},
	}
}

// dialup is a dialup profile for one identity.
func dialup(name, peerID, secret string, more ...string) entry {
	return entry{name, append([]string{"type dynamic", "interface wan0", "peertype one", "peerid " + peerID, "psksecret \"" + secret + "\"",
		"proposal aes128gcm-prfsha256", "dhgrp 31", "nattraversal forced", "dpd disable"}, more...)}
}

func dialupPhase2(name, phase1 string, more ...string) entry {
	return entry{name, append([]string{"phase1name " + phase1, "proposal aes128gcm", "dhgrp 31", "src-subnet " + gwNet}, more...)}
}

func twoDialups(more ...string) gwConf {
	return gwConf{
		phase1: []entry{dialup("one", "one.test", "secret of one", more...), dialup("two", "two.test", "secret of two", more...)},
		phase2: []entry{dialupPhase2("one-net", "one"), dialupPhase2("two-net", "two")},
	}
}

// TestDialupByPeerID: two clients are told apart by their identities alone.
func TestDialupByPeerID(t *testing.T) {
	t.Parallel()
	s := build(t, routedPlan())
	g := s.gateway("gw", twoDialups("localid gw.test", "localid-type fqdn"))
	c1 := s.charon("c1", conn{local: "198.51.100.10", id: "one.test", remoteID: "gw.test", secret: "secret of one", localTS: "10.1.1.0/24"})
	c2 := s.charon("c2", conn{local: "203.0.113.10", id: "two.test", remoteID: "-", secret: "secret of two", localTS: "10.1.2.0/24"})
	c1.up()
	c2.up()
	if c1.said(`generating IKE_AUTH request 1 \[ IDi [^\]]*IDr `) != 1 || c2.said(`generating IKE_AUTH request 1 \[ IDi [^\]]*IDr `) != 0 {
		t.Error("the first client must send IDr and the second must not")
	}
	for name, id := range map[string]string{"one_0": "one.test", "two_0": "two.test"} {
		if st := g.wantUp(name, "responder"); st.PeerID != id || st.Parent != name[:3] {
			t.Errorf("%s: %+v", name, st)
		}
	}
	for _, c := range []*charon{c1, c2} {
		if sa, _ := c.one(); sa.RemoteID != "gw.test" {
			t.Errorf("our identity is %q", sa.RemoteID)
		}
	}
	s.wantPing("c1", "10.1.1.1", gwIn)
	s.wantPing("c2", "10.1.2.1", gwIn)
	s.wantPing("gw", gwIn, "10.1.1.1") // by the routes of add-route
	s.wantPing("gw", gwIn, "10.1.2.1")

	for _, c := range []struct{ id, secret string }{
		{"three.test", "secret of one"}, // unknown
		{"two.test", "secret of one"},   // known, with another's key
	} {
		refused := g.stat("ike_authentication_refused")
		p := s.dial("c1", "198.51.100.10", c.id, c.secret)
		p.init()
		m := p.request(message.IKEAuth, append(p.authPayloads(), childPayloads(childSuite, 0x1234,
			[]ipsec.TrafficSelector{selector("10.1.3.0/24")}, []ipsec.TrafficSelector{selector(gwNet)})...)...)
		if len(m.Payloads) != 1 || notifyNames(m)[0] != "AUTHENTICATION_FAILED" {
			t.Errorf("%s: answer %v", c.id, notifyNames(m))
		}
		if n := g.stat("ike_authentication_refused"); n != refused+1 {
			t.Errorf("%s: refusals counted %d → %d", c.id, refused, n)
		}
	}
	if all := g.gateways(); len(all) != 2 {
		t.Errorf("gateways after the refusals: %+v", all)
	}
	c2.Terminate(c2.ctx, "gw")
	eventually(t, 10*time.Second, "the instance of the second client is gone", func() bool { return g.status("two_0").Name == "" })
	s.wantPing("c1", "10.1.1.1", gwIn)
	c1.down(g)
}

// TestDialupUsers: two clients of one profile, each with a key of its own; the key of another is no good.
func TestDialupUsers(t *testing.T) {
	t.Parallel()
	s := build(t, routedPlan())
	p1 := entry{"users", []string{"type dynamic", "interface wan0", "peertype dialup", "usrgrp clients", "localid gw.test",
		"proposal aes128gcm-prfsha256", "dhgrp 31", "nattraversal forced", "dpd disable"}}
	g := s.gateway("gw", gwConf{phase1: []entry{p1}, phase2: []entry{dialupPhase2("net", "users")}, more: `config user local
    edit "one@example.test"
        set passwd "key of one"
    next
    edit "two.test"
        set passwd 0x6b6579206f662074776f
    next
end
config user group
    edit "clients"
        set member "one@example.test" "two.test"
    next
end
`})
	s.charon("c1", conn{local: "198.51.100.10", id: "one@example.test", remoteID: "gw.test", secret: "key of one", localTS: "10.1.1.0/24"}).up()
	wrong := s.dial("c2", "203.0.113.10", "two.test", "key of one")
	wrong.init()
	m := wrong.request(message.IKEAuth, append(wrong.authPayloads(), childPayloads(childSuite, 0x1234,
		[]ipsec.TrafficSelector{selector("10.1.2.0/24")}, []ipsec.TrafficSelector{selector(gwNet)})...)...)
	if len(m.Payloads) != 1 || notifyNames(m)[0] != "AUTHENTICATION_FAILED" {
		t.Errorf("the key of another user: answer %v", notifyNames(m))
	}
	s.charon("c2", conn{local: "203.0.113.10", id: "two.test", remoteID: "gw.test", secret: "key of two", localTS: "10.1.2.0/24"}).up()
	for name, id := range map[string]string{"users_0": "one@example.test", "users_1": "two.test"} {
		if st := g.wantUp(name, "responder"); st.PeerID != id || st.Parent != "users" {
			t.Errorf("%s: %+v", name, st)
		}
	}
	s.wantPing("c1", "10.1.1.1", gwIn)
	s.wantPing("c2", "10.1.2.1", gwIn)
}
