package ike

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// routed counts who needs a route, as a node does.
func (s *side) routed(x PeerAddress) {
	if s.routes == nil {
		s.routes = map[PeerAddress]int{}
	}
	gone := x.Gone
	x.Gone = false
	if !gone {
		s.routes[x]++
		return
	}
	if s.routes[x]--; s.routes[x] == 0 {
		delete(s.routes, x)
	} else if s.routes[x] < 0 {
		s.t.Errorf("%s: a route to %s is let go of that nobody asked for", s.name, x.Addr)
	}
}

// wantPeer checks what a side knows of the peer's interface, and whether it routes it.
func (s *side) wantPeer(addr string, routed bool) {
	s.t.Helper()
	want := netip.Addr{}
	if addr != "" {
		want = netip.MustParseAddr(addr)
	}
	g := s.e.Status(s.w.now)
	if len(g) != 1 || g[0].PeerAddr != want {
		s.t.Fatalf("%s: the peer's address is %v, want %v", s.name, g, want)
	}
	routes := slices.Collect(maps.Keys(s.routes))
	if routed && (len(routes) != 1 || routes[0] != PeerAddress{Phase1: s.e.cfg.Phase1[0].Name, Addr: want}) || !routed && len(routes) != 0 {
		s.t.Fatalf("%s: routes %v", s.name, routes)
	}
}

// withAddrs gives both sides tunnel addresses and selectors for everything.
func withAddrs(a, b *config.Config) {
	for _, x := range []struct {
		c  *config.Config
		ip string
	}{{a, "10.99.0.1/32"}, {b, "10.99.0.2/32"}} {
		x.c.Interfaces = []config.Interface{{Name: x.c.Phase1[0].Name, IP: []netip.Prefix{netip.MustParsePrefix(x.ip)}}}
		x.c.Phase2[0].Src, x.c.Phase2[0].Dst = selectors(), selectors()
	}
}

func exchange1(c *config.Config) { c.Phase1[0].ExchangeInterfaceIP = true }

func exchanging(a, b *config.Config) {
	withAddrs(a, b)
	exchange1(a)
	exchange1(b)
}

func TestExchangeInterfaceIP(t *testing.T) {
	for _, c := range []struct {
		name           string
		change         func(a, b *config.Config)
		atA, atB       string // what each knows of the other
		routeA, routeB bool
	}{
		{"off", withAddrs, "", "", false, false},
		{"on at the initiator", func(a, b *config.Config) { withAddrs(a, b); exchange1(a) }, "", "", false, false},
		{"on at the responder", func(a, b *config.Config) { withAddrs(a, b); exchange1(b) }, "", "", false, false},
		{"on at both", exchanging, "10.99.0.2", "10.99.0.1", true, true},
		{"an address of its own", func(a, b *config.Config) {
			exchanging(a, b)
			b.Phase1[0].ExchangeIPAddr4 = netip.MustParseAddr("172.16.0.1")
		}, "172.16.0.1", "10.99.0.1", true, true},
		{"one side has none", func(a, b *config.Config) { exchanging(a, b); a.Interfaces = nil }, "10.99.0.2", "", true, false},
		{"IPv6", func(a, b *config.Config) {
			exchanging(a, b)
			b.Interfaces[0].IP = []netip.Prefix{netip.MustParsePrefix("2001:db8:99::2/128")}
			a.Phase2[0].Dst = append(selectors(), subnet("::/0"))
		}, "2001:db8:99::2", "10.99.0.1", true, true},
		{"no selector allows it", func(a, b *config.Config) {
			exchanging(a, b)
			a.Phase2[0].Dst, b.Phase2[0].Src = []ipsec.TrafficSelector{subnet(netB)}, []ipsec.TrafficSelector{subnet(netB)}
		}, "10.99.0.2", "10.99.0.1", false, true},
		{"the kernel routes it already", func(a, b *config.Config) {
			exchanging(a, b)
			a.Interfaces[0].RemoteIP = netip.MustParsePrefix("10.99.0.2/32")
		}, "10.99.0.2", "10.99.0.1", false, true},
		{"it is an address of our own", func(a, b *config.Config) {
			exchanging(a, b)
			b.Interfaces[0].IP = a.Interfaces[0].IP
		}, "", "", false, false},
		{"dialup", func(a, b *config.Config) {
			exchanging(a, b)
			b.Phase1[0].Type, b.Phase1[0].RemoteGW = "dynamic", netip.Addr{}
		}, "10.99.0.2", "10.99.0.1", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, b := pair(t, c.change)
			a2, b2 := w.standby(a, 77), w.standby(b, 78)
			b.resume()
			a.resume()
			w.settle()
			agree(t, a, b, 1, 1)
			check := func() {
				t.Helper()
				w.settle()
				for _, s := range []*side{a, a2} {
					s.wantPeer(c.atA, c.routeA)
				}
				for _, s := range []*side{b, b2} {
					s.wantPeer(c.atB, c.routeB)
				}
			}
			check()
			// Rekeys inherit it; it lives as long as phase 1, also without phase 2.
			for _, f := range []func(){a.rekeyIKE, b.rekeyIKE, a.rekeyChild, func() { b.ask(2) }, func() { a.down("net") }} {
				f()
				check()
			}
			if len(a.installed) != 0 {
				t.Fatal("phase 2 stands")
			}
			a.up("net")
			check()
			// The survivors of both sides know it, and end it.
			w.succeeded(a, a2, false)
			w.succeeded(b, b2, false)
			w.run(5e9)
			check()
			a2.rekeyIKE()
			w.settle()
			a2.wantPeer(c.atA, c.routeA)
			b2.wantPeer(c.atB, c.routeB)
			a2.e.cfg.Phase1[0].AutoNegotiate = false
			clearAll(a2)
			w.settle()
			for _, s := range []*side{a2, b2} {
				if len(s.routes) != 0 {
					t.Errorf("%s: routes %v are left", s.name, s.routes)
				}
			}
			if n := w.seenOf(message.IKESAInit); n != 1 {
				t.Errorf("%d IKE_SA_INIT requests", n)
			}
		})
	}
}

// A member that copies everything anew, and one that loses the ownership, keep count.
func TestExchangeInterfaceIPCopied(t *testing.T) {
	w, a, b := up(t, exchanging)
	a2 := w.standby(a, 77)
	a.onRecord = nil
	for range 2 {
		a2.e.BeginCopy()
		for _, x := range a.e.Snapshot(w.now) {
			a2.e.Apply(w.now, Record{Entries: []Entry{x}})
		}
		a2.e.EndCopy()
		a2.drain()
		a2.wantPeer("10.99.0.2", true)
	}
	a.e.Suspend(w.now)
	a.drain()
	a.wantPeer("10.99.0.2", true)
	a.e.BeginCopy()
	a.e.EndCopy()
	a.drain()
	if len(a.routes) != 0 {
		t.Errorf("routes %v are left", a.routes)
	}
	b.wantPeer("10.99.0.1", true)
	// Both sides of a split have it; united, it is there once.
	a2.resume()
	a2.e.Unite(w.now, b.e.Snapshot(w.now)[:0])
	a2.drain()
	other := a2.e.Snapshot(w.now)
	a2.ask(3)
	a2.e.Unite(w.now, other)
	a2.drain()
	a2.wantPeer("10.99.0.2", true)
	for _, n := range a2.routes {
		if n != 1 {
			t.Errorf("counted %d times", n)
		}
	}
}

// Switching it on renews a tunnel that stands, since IKE_AUTH tells it; so does another address.
func TestExchangeInterfaceIPSwitchedOn(t *testing.T) {
	w, a, b := up(t, withAddrs)
	for _, addr := range []string{"", "172.16.0.1"} {
		for _, s := range []*side{b, a} {
			next := *s.e.cfg
			next.Phase1 = slices.Clone(next.Phase1)
			exchange1(&next)
			if addr != "" && s == b {
				next.Phase1[0].ExchangeIPAddr4 = netip.MustParseAddr(addr)
			}
			s.e.Reconfigure(w.now, &next)
			s.drain()
			w.settle()
		}
		w.run(10e9)
		if addr == "" {
			addr = "10.99.0.2"
		}
		a.wantPeer(addr, true)
		b.wantPeer("10.99.0.1", true)
		agree(t, a, b, 1, 1)
	}
}

// A peer that is no Tandem means something else by these numbers, and is told nothing.
func TestPrivateNotifiesAmongTandemsOnly(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		w, a, b := pair(t, exchanging)
		other := a
		if !initiator {
			other = b
		}
		other.e.vendorID = vendors[1].prefix // it would understand, but must not be asked
		b.resume()
		a.resume()
		w.settle()
		agree(t, a, b, 1, 1)
		a.wantPeer("", false)
		b.wantPeer("", false)
		if initiator {
			continue
		}
		a.wantLog("the peer is no Tandem")
	}
	_, a, _ := up(t, func(a, b *config.Config) {
		exchanging(a, b)
		overlay(3)(&a.Phase1[0])
		overlay(3)(&b.Phase1[0])
	})
	sa := a.established()[0]
	m := &message.Message{Payloads: []message.Payload{notify(message.TandemNetworkID, []byte{3}),
		notify(message.TandemInterfaceAddress, netip.MustParseAddr("10.99.0.7").AsSlice())}}
	told := func() bool {
		sa.peerAddr = netip.Addr{}
		var n int
		a.event(func(e *Engine) {
			n = len(e.overlayPayloads(sa, nil))
			e.notePeerAddress(sa, m)
		})
		return n > 0 || sa.peerAddr.IsValid() || sa.peerNetwork(m) != -1
	}
	if !told() {
		t.Error("a Tandem is told nothing")
	}
	if sa.vendorIDs = [][]byte{vendors[1].prefix}; told() {
		t.Error("another make is told, or believed")
	}
}

func TestPeerAddressHostile(t *testing.T) {
	w, a, b := up(t, exchanging)
	sa := a.established()[0]
	a.e.cfg.Phase1[0].LocalGW = netip.MustParseAddr("192.0.2.77")
	a.e.cfg.Phase1[0].ExchangeIPAddr4 = netip.MustParseAddr("172.16.0.9")
	a.e.cfg.Interfaces = append(a.e.cfg.Interfaces, config.Interface{Name: "lan", IP: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")},
		ManagementIP: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")}})
	for _, x := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "::", "::1", "ff02::1", "fe80::1", "::ffff:10.1.0.9",
		addrA, addrB, "192.0.2.77", "172.16.0.9", "10.1.0.1", "10.1.0.2", "10.99.0.1"} {
		sa.peerAddr = netip.Addr{}
		m := &message.Message{Payloads: []message.Payload{notify(message.TandemInterfaceAddress, netip.MustParseAddr(x).AsSlice())}}
		a.event(func(e *Engine) { e.notePeerAddress(sa, m) })
		if sa.peerAddr.IsValid() {
			t.Errorf("%s is taken", x)
		}
	}
	for _, n := range []int{1, 3, 5, 15, 17, 300} {
		m := &message.Message{Payloads: []message.Payload{notify(message.TandemInterfaceAddress, make([]byte, n))}}
		a.event(func(e *Engine) { e.notePeerAddress(sa, m) })
		if sa.peerAddr.IsValid() {
			t.Errorf("an address of %d octets is taken", n)
		}
	}
	_, _ = w, b
}

func overlay(id int) func(*config.Phase1) {
	return func(p *config.Phase1) { p.NetworkOverlay, p.NetworkID = true, id }
}

// Two tunnels between the same addresses with the same identities and keys.
func TestNetworkID(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) {
		*a = config.Config{
			Phase1: []config.Phase1{phase1To("red", addrB, overlay(3), func(p *config.Phase1) { p.AutoNegotiate = true }),
				phase1To("blue", addrB, overlay(0), func(p *config.Phase1) { p.AutoNegotiate = true })},
			Phase2: []config.Phase2{phase2For("red", "r", netA, netB), phase2For("blue", "b", netA, netB)}}
		*b = config.Config{
			Phase1: []config.Phase1{phase1To("BLUE", addrA, overlay(0)), phase1To("RED", addrA, overlay(3)), phase1To("none", addrA)},
			Phase2: []config.Phase2{phase2For("BLUE", "b", netB, netA), phase2For("RED", "r", netB, netA), phase2For("none", "n", netB, netA)}}
	})
	b2 := w.standby(b, 78)
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 2, 2)
	check := func(b *side) {
		t.Helper()
		for _, x := range a.established() {
			y := b.e.bySPIs(x.spis)
			if y == nil || !strings.EqualFold(x.name(), y.name()) {
				t.Errorf("%s: %s has no counterpart of its network", b.name, x.name())
			}
		}
	}
	check(b)
	w.succeeded(b, b2, false)
	w.run(5e9)
	check(b2)
	a.rekeyIKE()
	w.settle()
	check(b2)
}

func TestNetworkIDRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(a, b *config.Phase1)
		fortis bool
		atA    string
		atB    string
	}{
		{"another", func(a, b *config.Phase1) { overlay(3)(a); overlay(4)(b) }, false, "", "network-id 3 of the peer: toA has 4"},
		{"none there", func(a, b *config.Phase1) { overlay(3)(a) }, false, "", "network-id 3 of the peer: toA has none"},
		{"none here", func(a, b *config.Phase1) { overlay(0)(b) }, false, "", "network-id none of the peer: toA has 0"},
		{"0 is not none", func(a, b *config.Phase1) { overlay(0)(a) }, false, "", "network-id 0 of the peer: toA has none"},
		{"initiator of another make", func(a, b *config.Phase1) { overlay(3)(b) }, true, "", "network-id none of the peer: toA has 3"},
		{"responder of another make", func(a, b *config.Phase1) { overlay(3)(a) }, true, "network-id none of the peer (FortiGate): toB has 3", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, b := pair(t, func(a, b *config.Config) { c.change(&a.Phase1[0], &b.Phase1[0]) })
			if c.fortis && c.atB != "" {
				a.e.vendorID = vendors[1].prefix
			} else if c.fortis {
				b.e.vendorID = vendors[1].prefix
			}
			var reasons []string
			for _, s := range []*side{a, b} {
				s.onLog = func(l Log) {
					for _, x := range l.Attrs {
						if x.Key == "reason" && l.Message == "authentication failed" {
							reasons = append(reasons, s.name+": "+x.Value.String())
						}
					}
				}
			}
			b.resume()
			a.resume()
			w.settle()
			if n := len(a.established()) + len(b.established()) + len(a.installed) + len(b.installed); n != 0 {
				t.Errorf("%d SAs stand", n)
			}
			for s, want := range map[string]string{"A": c.atA, "B": c.atB} {
				if want != "" && !slices.ContainsFunc(reasons, func(r string) bool { return strings.HasPrefix(r, s+": ") && strings.Contains(r, want) }) {
					t.Errorf("%s does not say %q: %q", s, want, reasons)
				}
			}
		})
	}
}

func TestVendorNames(t *testing.T) {
	for _, c := range []struct {
		id   []byte
		want string
	}{
		{ownVendorID, "Tandem"},
		{append(slices.Clone(vendors[1].prefix), 0, 0, 6, 0xbe), "FortiGate"},
		{vendors[2].prefix, "FortiGate"},
		{[]byte("somebody"), "unknown"},
		{ownVendorID[:8], "unknown"},
		{nil, "unknown"},
	} {
		if got := vendorName(c.id); got != c.want {
			t.Errorf("%x is %s, want %s", c.id, got, c.want)
		}
	}
	sa := &ikeSA{vendorIDs: [][]byte{append(slices.Clone(ownVendorID), 1)}}
	if sa.isTandem() {
		t.Error("a vendor ID that begins as ours is taken for it")
	}
}
