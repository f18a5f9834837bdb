package ike

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// leasing is a hub whose pool has the addresses from 10.9.0.1 to 10.9.0.n, and IPv6 ones.
func leasing(t *testing.T, n int) (*world, *side, func(id, addr string, seed uint64) *side) {
	w := newWorld(t)
	hub := &config.Config{
		Phase1: []config.Phase1{phase1To("dial", "", func(p *config.Phase1) {
			p.ModeCfg = true
			p.Pool = config.Pool{AssignIP: true, Start4: netip.MustParseAddr("10.9.0.1"), End4: netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", n)),
				DNS4: [3]netip.Addr{netip.MustParseAddr("10.0.0.53")}, Netmask4: netip.MustParseAddr("255.255.255.0"),
				Start6: netip.MustParseAddr("fd00:9::1"), End6: netip.MustParseAddr("fd00:9::ff"), Prefix6: 64,
				DNS6: [3]netip.Addr{netip.MustParseAddr("fd00::53")}, Domain: "example.org", SplitInclude4Subnets: []ipsec.TrafficSelector{subnet("10.1.0.0/16")},
				SplitInclude6Subnets: []ipsec.TrafficSelector{subnet("fd00:1::/32")}}
		})},
		Phase2: []config.Phase2{phase2For("dial", "v4", "10.1.0.0/16", "0.0.0.0/0"), phase2For("dial", "v6", "fd00:1::/32", "::/0")},
	}
	b := w.side("hub", addrB, 2, hub, nil)
	b.resume()
	return w, b, func(id, addr string, seed uint64) *side {
		c := &config.Config{
			Phase1: []config.Phase1{phase1To("hub", addrB, func(p *config.Phase1) {
				p.LocalID, p.LocalIDType, p.ModeCfg = id, "fqdn", true
			})},
			Phase2: []config.Phase2{phase2For("hub", "v4", "0.0.0.0/0", "10.1.0.0/16"), phase2For("hub", "v6", "::/0", "fd00:1::/32")},
		}
		return w.side(id, addr, seed, c, nil)
	}
}

func (s *side) assigned() []string {
	s.t.Helper()
	sas := s.established()
	if len(sas) == 0 {
		return nil
	}
	var out []string
	if x := sas[len(sas)-1].assigned; x != nil {
		for _, a := range x.addrs {
			out = append(out, a.String())
		}
	}
	return out
}

func (s *side) wantAssigned(want ...string) {
	s.t.Helper()
	if got := s.assigned(); !slices.Equal(got, want) {
		s.t.Fatalf("%s has %v, want %v", s.name, got, want)
	}
}

func (s *side) dial() *side {
	s.resume()
	s.up("v4")
	s.w.settle()
	return s
}

func TestConfigurationPayload(t *testing.T) {
	w, hub, client := leasing(t, 20)
	standby := w.standby(hub, 9)
	c := client("one.example", "198.51.100.1", 11).dial()
	c.up("v6")
	w.settle()
	c.wantAssigned("10.9.0.1", "fd00:9::1")
	agree(t, c, hub, 1, 2)
	x := c.established()[0].assigned
	if fmt.Sprint(x.dns, x.subnets, x.domains) != "[10.0.0.53 fd00::53] [10.1.0.0/16 fd00:1::/32] [example.org]" {
		t.Errorf("told %v %v %v", x.dns, x.subnets, x.domains)
	}
	for _, sa := range hub.installed {
		if len(sa.SA.TSRemote) != 1 || sa.SA.TSRemote[0].Start != sa.SA.TSRemote[0].End {
			t.Errorf("selectors %v are not those of one address", sa.SA.TSRemote)
		}
	}
	if g := hub.e.Status(w.now)[0]; fmt.Sprint(g.Assigned.Addrs) != "[10.9.0.1 fd00:9::1]" || g.Assigned.Client {
		t.Errorf("status says %+v", g.Assigned)
	}
	if n := len(standby.e.leases.held); n != 2 {
		t.Errorf("the standby knows of %d leases", n)
	}
	if c.ours[netip.MustParseAddr("10.9.0.1")] != 1 || c.ours[netip.MustParseAddr("fd00:9::1")] != 1 {
		t.Errorf("addresses on the client's interface: %v", c.ours)
	}

	// A rekey of the IKE SA passes them on, counted once.
	c.rekeyIKE()
	w.run(time.Second)
	hub.rekeyIKE()
	w.run(time.Second)
	c.wantAssigned("10.9.0.1", "fd00:9::1")
	agree(t, c, hub, 1, 2)
	if n := hub.e.leases.held[netip.MustParseAddr("10.9.0.1")].n; n != 1 || c.ours[netip.MustParseAddr("10.9.0.1")] != 1 {
		t.Errorf("held by %d IKE SAs; %v", n, c.ours)
	}

	// Another one gets others; what ends is free again, everywhere, and waits for who had it.
	d := client("two.example", "198.51.100.2", 12).dial()
	d.wantAssigned("10.9.0.2", "fd00:9::2")
	clearAll(c)
	w.settle()
	for _, s := range []*side{hub, standby} {
		if n := len(s.e.leases.held); n != 2 {
			t.Errorf("%s knows of %d leases after the end of one client", s.name, n)
		}
	}
	if len(c.ours) != 0 {
		t.Errorf("addresses left on the client's interface: %v", c.ours)
	}
	e := client("three.example", "198.51.100.3", 13).dial()
	e.wantAssigned("10.9.0.3", "fd00:9::3")
	c.up("v4")
	w.settle()
	c.wantAssigned("10.9.0.1", "fd00:9::1")

	// The survivor goes on with all of them.
	hub.dead = true
	standby.resume()
	w.run(time.Minute)
	f := client("four.example", "198.51.100.4", 14).dial()
	f.wantAssigned("10.9.0.4", "fd00:9::4")
	if n := len(standby.e.leases.held); n != 8 {
		t.Errorf("%d leases after a takeover", n)
	}
}

func TestExhaustedPoolKeepsTheIKESA(t *testing.T) {
	w, hub, client := leasing(t, 1)
	hub.e.cfg.Phase1[0].Pool.Start6, hub.e.cfg.Phase1[0].Pool.End6 = netip.Addr{}, netip.Addr{}
	client("one.example", "198.51.100.1", 11).dial().wantAssigned("10.9.0.1")
	d := client("two.example", "198.51.100.2", 12)
	w.drop = func(x Datagram) bool { // its DELETE
		h, _ := message.ParseHeader(x.Data)
		return x.Local == d.endpoint() && h.Exchange == message.Informational
	}
	d.dial()
	if n := len(hub.established()); n != 2 {
		t.Fatalf("%d IKE SAs stand at the hub, want 2", n)
	}
	if len(hub.installed) != 1 {
		t.Errorf("%d Child SAs, want that of the first client", len(hub.installed))
	}
	d.wantLog("mode-cfg: no address")
	if g := d.e.Status(w.now)[0]; g.Failure != "peer sent INTERNAL_ADDRESS_FAILURE" {
		t.Errorf("the client says %q", g.Failure)
	}
}

func (s *side) endpoint() netip.AddrPort { return netip.AddrPortFrom(s.addr, ikePort) }

// TestWhoDoesNotAskGetsNoChildSA: FAILED_CP_REQUIRED (RFC 7296 §3.15.4).
func TestWhoDoesNotAskGetsNoChildSA(t *testing.T) {
	w, hub, client := leasing(t, 9)
	c := client("one.example", "198.51.100.1", 11)
	c.e.cfg.Phase1[0].ModeCfg = false
	c.dial()
	if len(hub.established()) != 1 || len(hub.installed) != 0 || len(hub.e.leases.held) != 0 {
		t.Errorf("%v, %d Child SAs, %d leases", describe(hub.ike()), len(hub.installed), len(hub.e.leases.held))
	}
	if g := hub.e.Status(w.now)[0]; g.Failure != "FAILED_CP_REQUIRED: the client does not ask for an address" {
		t.Errorf("the hub says %q", g.Failure)
	}
}

// TestForeignLeaseNeedsAcknowledgement: an owner that loses its standby before that one knows
// of a lease from its homes gives nobody the address.
func TestForeignLeaseNeedsAcknowledgement(t *testing.T) {
	w, hub, client := leasing(t, 20)
	hub.e.SetHomes(Homes{All: true, Own: true, Part: 0})
	hub.manual = true
	c := client("one.example", "198.51.100.1", 11)
	c.resume()
	c.up("v4")
	for len(w.wire) > 0 || len(hub.tickets) > 0 {
		w.settle()
		if len(hub.tickets) > 0 && len(hub.e.leases.held) == 0 {
			hub.e.Committed(w.now, hub.tickets[0])
			hub.tickets = hub.tickets[1:]
			hub.drain()
			continue
		}
		if len(hub.tickets) > 0 {
			break
		}
	}
	if len(hub.e.leases.held) == 0 {
		t.Fatal("nothing was leased")
	}
	hub.e.SetHomes(Homes{Own: true, Part: 0})
	hub.drain()
	hub.manual = false
	hub.drain()
	w.settle()
	if got := c.assigned(); got != nil { // 10.9.0.1 is an odd one
		t.Fatalf("the client got %v", got)
	}
	w.run(3 * time.Minute)
	c.up("v4")
	w.settle()
	if got := c.assigned(); len(got) == 0 || homeOf(netip.MustParseAddr(got[0])) != 0 {
		t.Errorf("the client got %v of its second try", got)
	}
}

// TestConfigurationPayloadCrashAtEveryEffect ends hub or client after every single effect of
// a set-up with addresses; its standby finishes, and both agree on the address.
func TestConfigurationPayloadCrashAtEveryEffect(t *testing.T) {
	for _, role := range []string{"hub", "client"} {
		t.Run(role, func(t *testing.T) {
			for k := 1; k < 100; k++ {
				w, hub, client := leasing(t, 20)
				c := client("one.example", "198.51.100.1", 11)
				c.e.cfg.Phase1[0].DPD, hub.e.cfg.Phase1[0].DPD = "disable", "disable"
				s := map[string]*side{"hub": hub, "client": c}[role]
				s2 := w.standby(s, 77)
				c.resume()
				s.cutAt = s.effects + k
				c.up("v4")
				w.settle()
				if !s.dead {
					if k < 5 {
						t.Errorf("only %d effects", k)
					}
					return
				}
				records := len(s.records)
				s2.resume()
				w.run(3 * time.Minute)
				if role == "hub" {
					hub = s2
				} else {
					c = s2
				}
				if records == 0 {
					continue // nobody but the dead knew of it
				}
				a, b := c.assigned(), hub.assigned()
				if len(a) != 2 || !slices.Equal(a, b) {
					t.Fatalf("after effect %d: the client has %v, the hub says %v", k, a, b)
				}
				agree(t, c, hub, 1, 1)
				if len(hub.e.leases.held) != 2 || role == "client" && len(c.ours) != 2 {
					t.Errorf("after effect %d: %d leases, on the interface %v", k, len(hub.e.leases.held), c.ours)
				}
			}
			t.Error("effects without end")
		})
	}
}

func FuzzConfigurationReply(f *testing.F) {
	f.Add(uint16(1), []byte{10, 0, 0, 1})
	f.Add(uint16(8), append(netip.MustParseAddr("fd00::1").AsSlice(), 64))
	f.Add(uint16(13), []byte{10, 0, 0, 0, 255, 0, 0, 0})
	f.Add(uint16(15), append(netip.MustParseAddr("fd00::").AsSlice(), 200))
	f.Add(uint16(25), []byte("example.org"))
	f.Fuzz(func(t *testing.T, kind uint16, value []byte) {
		x := &assigned{client: true}
		for range 40 {
			x.take(message.CPAttribute{Type: kind, Value: value})
		}
		y := decodeAssigned(encodeAssigned(x))
		if fmt.Sprint(x) != fmt.Sprint(y) || len(x.addrs) > 2*maxAddresses || len(x.dns)+len(x.subnets)+len(x.domains) > maxAssigned {
			t.Errorf("%+v comes back as %+v", x, y)
		}
	})
}

func (s *side) placed(x OwnAddress) {
	if s.ours == nil {
		s.ours = map[netip.Addr]int{}
	}
	if !x.Gone {
		s.ours[x.Addr]++
		return
	}
	if s.ours[x.Addr]--; s.ours[x.Addr] == 0 {
		delete(s.ours, x.Addr)
	}
	if s.ours[x.Addr] < 0 {
		s.t.Errorf("%s: %s is taken off more often than it was put on", s.name, x.Addr)
	}
}

// TestSplitLeasesStayDistinct: both sides of a split go on and lease, each from its own half;
// united, every client keeps its own.
func TestSplitLeasesStayDistinct(t *testing.T) {
	w, hub, client := leasing(t, 40)
	hub2 := w.standby(hub, 77)
	clients := []*side{client("before.example", "198.51.100.1", 11).dial()}
	hub.onRecord = nil
	hub.e.SetHomes(Homes{Own: true, Part: 0})
	hub2.e.SetHomes(Homes{Own: true, Part: 1})
	for i := range 6 {
		if i == 3 { // from here on the packets go to the other one
			hub2.resume()
			hub.dead = true
		}
		c := client(fmt.Sprintf("%d.example", i), fmt.Sprintf("198.51.100.%d", 10+i), uint64(20+i)).dial()
		clients = append(clients, c)
		for _, a := range c.assigned() {
			if want := byte(0); i >= 3 && homeOf(netip.MustParseAddr(a)) != 1 || i < 3 && homeOf(netip.MustParseAddr(a)) != want {
				t.Errorf("client %d has %s", i, a)
			}
		}
	}
	hub.dead = false
	theirs := hub2.e.Snapshot(w.now)
	hub2.dead = true
	hub.e.Unite(w.now, theirs)
	hub.drain()
	w.run(2 * time.Minute)
	seen := map[string]string{}
	for _, c := range clients {
		if n := len(c.assigned()); n != 2 {
			t.Errorf("%s has %d addresses", c.name, n)
		}
		for _, a := range c.assigned() {
			if other, twice := seen[a]; twice {
				t.Errorf("%s has %s, and so has %s", c.name, a, other)
			}
			seen[a] = c.name
			if x := hub.e.leases.held[netip.MustParseAddr(a)]; x == nil || x.n != 1 {
				t.Errorf("%s of %s: held %+v", a, c.name, x)
			}
		}
	}
	if len(hub.e.leases.held) != 14 {
		t.Errorf("%d leases, want 14", len(hub.e.leases.held))
	}
}
