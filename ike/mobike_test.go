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

const (
	addrC = "198.51.100.7" // where the client goes
	addrD = "203.0.113.77"
)

// roaming are a client A that may change its address and a gateway B, the tunnel standing.
func roaming(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side) {
	t.Helper()
	w := newWorld(t)
	on := func(p *config.Phase1) { p.Mobike, p.DPD = true, "disable" }
	ca := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, on)}, Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}
	cb := &config.Config{Phase1: []config.Phase1{phase1To("vpn", "", on)}, Phase2: []config.Phase2{phase2For("vpn", "vpn", "0.0.0.0/0", "0.0.0.0/0")}}
	if change != nil {
		change(ca, cb)
	}
	a, b := w.side("A", addrA, 1, ca, nil), w.side("B", addrB, 2, cb, nil)
	b.resume()
	a.resume()
	a.up("net")
	w.settle()
	agree(t, a, b, 1, 1)
	w.seen = nil
	return w, a, b
}

// goes gives a side another address; the interface has no other.
func (s *side) goes(addr string) {
	s.addr = netip.MustParseAddr(addr)
	s.e.HandleAddresses(s.w.now, func(_ string, a netip.Addr) bool { return a == s.addr })
	s.drain()
}

// wantAt checks where both ends of the tunnel are, and that nothing was negotiated for it.
func wantAt(t *testing.T, a, b *side, client string, encap bool) {
	t.Helper()
	agree(t, a, b, 1, 1)
	at := netip.AddrPortFrom(netip.MustParseAddr(client), 4500)
	for _, s := range []*side{a, b} {
		sa, c := s.ike()[0], s.installed[s.order[0]].SA
		own, peer := sa.local, sa.remote
		ownESP, peerESP := c.Local, c.Remote
		if s == b {
			own, peer, ownESP, peerESP = peer, own, peerESP, ownESP
		}
		if own != at || ownESP != at || peer.Addr().String() != addrB || peerESP != peer || c.UDPEncap != encap || sa.udpEncap != encap {
			t.Errorf("%s: IKE %v–%v, ESP %v–%v in UDP: %v; want the client at %v, in UDP: %v", s.name, own, peer, ownESP, peerESP, c.UDPEncap, at, encap)
		}
		if sa.mob != nil && (sa.mob.update || sa.mob.check || sa.mob.path != nil) {
			t.Errorf("%s: not at rest: %+v", s.name, sa.mob)
		}
	}
	if n := a.w.seenOf(message.IKESAInit) + a.w.seenOf(message.CreateChildSA); n != 0 {
		t.Errorf("%d exchanges negotiated something", n)
	}
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
}

// says opens what left the side: the notifications in it, by name.
func (s *side) says(d Datagram) []string {
	s.t.Helper()
	var out []string
	for _, sa := range s.ike() {
		ps, err := s.e.ownPayloads(sa, d.Data)
		if err != nil {
			continue
		}
		for _, p := range ps {
			if n, ok := p.(*message.Notify); ok {
				out = append(out, n.NotifyType.String())
			}
		}
	}
	return out
}

// saidIn counts the messages of a side that had a notification.
func (s *side) saidIn(notify string, response bool) (n int) {
	seen := map[string]bool{}
	for _, d := range s.w.seen {
		h, err := message.ParseHeader(d.Data)
		if err != nil || h.Response != response || seen[string(d.Data)] {
			continue
		}
		seen[string(d.Data)] = true
		if slices.Contains(s.says(d), notify) {
			n++
		}
	}
	return n
}

// request is one of the side's next messages, sealed, not sent.
func (s *side) request(ps ...message.Payload) Datagram {
	s.t.Helper()
	sa := s.ike()[0]
	end := s.e.begin(s.w.now)
	b, err := s.e.seal(sa, message.Informational, false, sa.nextSend, ps)
	end()
	s.drain()
	if err != nil {
		s.t.Fatal(err)
	}
	return sa.datagram(b)
}

func TestMobikeRoams(t *testing.T) {
	w, a, b := roaming(t, nil)
	wantAt(t, a, b, addrA, false) // port 4500 although there is no NAT (RFC 4555 §3.3)
	var checks []Datagram
	w.drop = func(d Datagram) bool { // the gateway's question is on its way
		if slices.Contains(b.says(d), "COOKIE2") && len(checks) == 0 {
			checks = append(checks, d)
			return true
		}
		return false
	}
	a.goes(addrC)
	w.settle()
	if len(checks) != 1 || checks[0].Remote.String() != addrC+":4500" {
		t.Fatalf("checks %v", checks)
	}
	if got := b.ike()[0].remote.String(); got != addrC+":4500" {
		t.Errorf("IKE goes to %s", got)
	}
	if got := b.installed[b.order[0]].SA.Remote.String(); got != addrA+":4500" {
		t.Errorf("ESP goes to %s before anybody has shown to receive there", got)
	}
	// The client's own packets from there prove nothing.
	b.e.HandlePeerMoved(w.now, b.order[0], netip.MustParseAddrPort(addrC+":4500"))
	b.drain()
	if got := b.installed[b.order[0]].SA.Remote.String(); got != addrA+":4500" {
		t.Errorf("ESP goes to %s", got)
	}
	w.deliver(checks[0])
	w.settle()
	wantAt(t, a, b, addrC, false)
	if n := a.saidIn("UPDATE_SA_ADDRESSES", false); n != 1 {
		t.Errorf("%d updates", n)
	}
}

// TestMobikeAddressGoneAndBack: what is under way is sent again, the latest address counts.
func TestMobikeAddressGoneAndBack(t *testing.T) {
	for _, lost := range []string{"nothing", "updates", "answers", "checks"} {
		for _, path := range [][]string{{addrC, addrA}, {addrC, addrD}, {addrC, addrD, addrA}, {addrC, addrD, addrC}} {
			t.Run(fmt.Sprintf("%s lost, %v", lost, path), func(t *testing.T) {
				w, a, b := roaming(t, nil)
				w.drop = func(d Datagram) bool {
					h, _ := message.ParseHeader(d.Data)
					fromA := h.Initiator
					return lost == "updates" && fromA && !h.Response || lost == "answers" && !fromA && h.Response || lost == "checks" && !fromA && !h.Response
				}
				for i, to := range path {
					a.goes(to)
					if i < len(path)-1 {
						w.run(300 * time.Millisecond)
					}
				}
				w.run(time.Second)
				w.drop = nil
				w.run(20 * time.Second)
				wantAt(t, a, b, path[len(path)-1], false)
			})
		}
	}
}

func TestMobikeThroughNATAndBack(t *testing.T) {
	w, a, b := roaming(t, nil)
	pub := netip.MustParseAddr("203.0.113.9")
	base := uint16(20000)
	w.nat = func(d *Datagram) bool {
		if d.Local.Addr().String() == "10.0.0.5" {
			d.Local = netip.AddrPortFrom(pub, base+d.Local.Port())
		} else if d.Remote.Addr() == pub {
			if d.Remote.Port()-base != 4500 {
				return false
			}
			d.Remote = netip.AddrPortFrom(netip.MustParseAddr("10.0.0.5"), 4500)
		}
		return true
	}
	a.goes("10.0.0.5")
	w.settle()
	x, y := a.installed[a.order[0]].SA, b.installed[b.order[0]].SA
	if !x.UDPEncap || !y.UDPEncap || y.Remote.String() != "203.0.113.9:24500" {
		t.Errorf("%v in UDP %v, %v in UDP %v", x.Local, x.UDPEncap, y.Remote, y.UDPEncap)
	}
	w.run(21 * time.Second)
	if a.keepalive < 2 || b.keepalive != 0 {
		t.Errorf("%d keepalives from behind the NAT, %d from the other side", a.keepalive, b.keepalive)
	}
	// The NAT forgets its mapping. An IKE message from elsewhere moves nothing, ESP does.
	base = 30000
	d := a.request()
	w.deliver(d)
	w.settle()
	if got := b.ike()[0].remote.Port(); got != 24500 {
		t.Errorf("an INFORMATIONAL without UPDATE_SA_ADDRESSES moved the peer to port %d", got)
	}
	b.e.HandlePeerMoved(w.now, b.order[0], netip.MustParseAddrPort("203.0.113.9:34500"))
	b.drain()
	if got := b.installed[b.order[0]].SA.Remote.Port(); got != 34500 {
		t.Errorf("ESP goes to port %d", got)
	}
	// A packet that was under way for long does not take it back to where the client was.
	b.e.HandlePeerMoved(w.now, b.order[0], netip.MustParseAddrPort(addrA+":4500"))
	b.drain()
	if got := b.installed[b.order[0]].SA.Remote.String(); got != "203.0.113.9:34500" {
		t.Errorf("ESP goes to %s", got)
	}
	a.goes(addrC)
	w.settle()
	wantAt(t, a, b, addrC, false)
}

// TestMobikeMappingFoundByDPD: nothing but the client's own probes shows that its NAT has
// another mapping (RFC 4555 §3.8).
func TestMobikeMappingFoundByDPD(t *testing.T) {
	on := func(a, b *config.Config) {
		a.Phase1[0].Mobike, b.Phase1[0].Mobike = true, true
		a.Phase1[0].DPD, b.Phase1[0].DPD = "on-idle", "disable"
	}
	w, a, b, base := natted(t, on)
	w.run(25 * time.Second) // a first probe, which tells what the mapping is on port 4500
	updates := a.saidIn("UPDATE_SA_ADDRESSES", false)
	w.run(60 * time.Second)
	if n := a.saidIn("UPDATE_SA_ADDRESSES", false); n != updates || updates > 1 {
		t.Errorf("%d updates at first, %d later, without a change", updates, n)
	}
	*base = 30000
	w.run(25 * time.Second)
	if n := a.saidIn("UPDATE_SA_ADDRESSES", false); n != updates+1 {
		t.Errorf("%d updates, want %d", n, updates+1)
	}
	if got := b.installed[b.order[0]].SA.Remote.Port(); got != 34500 || b.ike()[0].remote.Port() != 34500 {
		t.Errorf("ESP goes to port %d", got)
	}
	if !a.logged("the peer sees us at another address") {
		t.Error("the client did not notice")
	}
}

// TestMobikeRoleSurvives: who may say what addresses are used stays, whoever rekeys and
// whoever goes on.
func TestMobikeRoleSurvives(t *testing.T) {
	w, a, b := roaming(t, nil)
	a2, b2 := w.standby(a, 77), w.standby(b, 78)
	for _, s := range []*side{a, b} { // what stands already
		other := map[*side]*side{a: a2, b: b2}[s]
		other.e.Apply(w.now, Record{Entries: s.e.Snapshot(w.now)})
		other.drain()
	}
	b.rekeyIKE()
	w.settle()
	w.seen = nil
	a.goes(addrC)
	w.settle()
	wantAt(t, a, b, addrC, false)
	if a.ike()[0].initiator {
		t.Fatal("the gateway's rekey made no other initiator")
	}
	if b.ike()[0].roams() || !a.ike()[0].roams() {
		t.Error("roles changed with the rekey")
	}
	a.dead, b.dead = true, true
	a2.addr = a.addr
	b2.resume()
	a2.resume()
	w.settle()
	if !b.esp(a) { // the gateway's packets show each that the other is there
		t.Fatal("traffic does not pass")
	}
	for _, s := range []*side{a2, b2} {
		s.e.HandleFirstInbound(w.now, s.order[0])
		s.drain()
	}
	a2.goes(addrD)
	w.run(5 * time.Second)
	wantAt(t, a2, b2, addrD, false)
}

// TestMobikeAcrossARekey: the update and the check are done anew on the IKE SA that takes
// the place of the one on which they were under way.
func TestMobikeAcrossARekey(t *testing.T) {
	for _, lost := range []string{"update", "check"} {
		for _, gateway := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s lost, rekeyed by the gateway %v", lost, gateway), func(t *testing.T) {
				w, a, b := roaming(t, nil)
				w.drop = func(d Datagram) bool {
					return lost == "update" && slices.Contains(a.says(d), "UPDATE_SA_ADDRESSES") ||
						lost == "check" && slices.Contains(b.says(d), "COOKIE2") && !slices.Contains(b.says(d), "NAT_DETECTION_SOURCE_IP")
				}
				a.goes(addrC)
				w.settle()
				s := a
				if gateway {
					s = b
				}
				s.rekeyIKE()
				w.settle()
				w.drop = nil
				w.run(20 * time.Second)
				w.seen = nil
				wantAt(t, a, b, addrC, false)
			})
		}
	}
}

func TestMobikeNotUnlessBothWant(t *testing.T) {
	for _, off := range []string{"client", "gateway"} {
		w, a, b := roaming(t, func(ca, cb *config.Config) {
			map[string]*config.Config{"client": ca, "gateway": cb}[off].Phase1[0].Mobike = false
		})
		if a.ike()[0].mobike() || b.ike()[0].mobike() {
			t.Errorf("off at the %s: MOBIKE is in use", off)
		}
		if port := a.ike()[0].remote.Port(); off == "client" && port != 500 || off == "gateway" && port != 4500 {
			t.Errorf("off at the %s: port %d", off, port)
		}
		before := b.installed[b.order[0]].SA.Remote
		d := a.request(notify(message.UpdateSAAddresses, nil), notify(message.Cookie2, make([]byte, 8)))
		d.Local = netip.AddrPortFrom(netip.MustParseAddr(addrC), d.Local.Port())
		w.deliver(d)
		if len(w.wire) != 1 || len(b.says(w.wire[0])) != 0 || b.ike()[0].remote != before {
			t.Errorf("off at the %s: the update was answered with %v", off, b.says(w.wire[0]))
		}
		a.goes(addrC)
		if a.ike()[0].local.Addr().String() != addrA {
			t.Errorf("off at the %s: the client moves", off)
		}
	}
}

// TestMobikeWithoutNATTraversal: updates name their addresses, and so does IKE_AUTH.
func TestMobikeWithoutNATTraversal(t *testing.T) {
	off := func(a, b *config.Config) { a.Phase1[0].NATTraversal, b.Phase1[0].NATTraversal = "disable", "disable" }
	w, a, b := roaming(t, off)
	if p := a.ike()[0].remote.Port(); p != 500 {
		t.Errorf("port %d", p)
	}
	// A NAT on the way: nothing moves, however often it is tried; then the client gives up.
	updates := 0
	w.nat = func(d *Datagram) bool {
		if slices.Contains(a.says(*d), "UPDATE_SA_ADDRESSES") {
			updates++
		}
		if d.Local.Addr().String() == addrC {
			d.Local = netip.MustParseAddrPort("203.0.113.9:1024")
		} else if d.Remote.Addr().String() == "203.0.113.9" {
			d.Remote = netip.MustParseAddrPort(addrC + ":500")
		}
		return true
	}
	a.goes(addrC)
	w.settle()
	if updates != 1+maxNATRetries {
		t.Errorf("%d updates", updates)
	}
	if got := b.ike(); len(got) > 0 && got[0].remote.Addr().String() == "203.0.113.9" {
		t.Error("the gateway follows through the NAT")
	}
	a.wantLog("peer refuses our new address")
	// Without one it goes on.
	w, a, b = roaming(t, off)
	a.goes(addrC)
	w.settle()
	if got := b.installed[b.order[0]].SA.Remote.String(); got != addrC+":500" || b.installed[b.order[0]].SA.UDPEncap {
		t.Errorf("ESP goes to %s", got)
	}
}

// TestMobikeAuthThroughNAT: IKE_AUTH says that no NAT is allowed, and has come through one.
func TestMobikeAuthThroughNAT(t *testing.T) {
	w := newWorld(t)
	on := func(p *config.Phase1) { p.Mobike, p.NATTraversal, p.AutoNegotiate = true, "disable", false }
	a := w.side("A", addrA, 1, &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, on)}, Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}, nil)
	b := w.side("B", addrB, 2, &config.Config{Phase1: []config.Phase1{phase1To("vpn", "", on)}, Phase2: []config.Phase2{phase2For("vpn", "vpn", "0.0.0.0/0", "0.0.0.0/0")}}, nil)
	w.nat = func(d *Datagram) bool {
		if d.Local.Addr() == a.addr {
			d.Local = netip.AddrPortFrom(netip.MustParseAddr(addrD), d.Local.Port())
		} else if d.Remote.Addr().String() == addrD {
			d.Remote = netip.AddrPortFrom(a.addr, d.Remote.Port())
		}
		return true
	}
	b.resume()
	a.resume()
	a.up("net")
	w.settle()
	b.wantLog("refusing IKE_AUTH request")
	if len(a.ike()) != 0 || len(b.ike()) != 0 || len(b.e.tunnels) != 0 {
		t.Errorf("IKE SAs %v and %v, tunnels %v", describe(a.ike()), describe(b.ike()), b.e.tunnels)
	}
	w.nat = nil
	a.up("net")
	w.settle()
	agree(t, a, b, 1, 1)
}

func TestMobikeRefusedAddress(t *testing.T) {
	w, a, b := roaming(t, nil)
	w.drop = func(d Datagram) bool { // the gateway has no such phase 1 any more
		for _, sa := range b.ike() {
			sa.p1 = nil
		}
		return false
	}
	a.goes(addrC)
	w.settle()
	a.wantLog("peer refuses our new address")
	if len(a.established()) != 0 {
		t.Errorf("goes on: %v", describe(a.ike()))
	}
}

// TestMobikeKeepsAnAddressThatStands: further addresses change nothing.
func TestMobikeKeepsAnAddressThatStands(t *testing.T) {
	w, a, b := roaming(t, nil)
	a.addr = netip.MustParseAddr(addrC)
	a.e.HandleAddresses(w.now, func(string, netip.Addr) bool { return true })
	a.drain()
	a.addr = netip.MustParseAddr(addrA)
	w.settle()
	wantAt(t, a, b, addrA, false)
	if n := a.saidIn("UPDATE_SA_ADDRESSES", false); n != 0 {
		t.Errorf("%d updates", n)
	}
}

// TestMobikeNotMovable: a tunnel does not move to another member between an update and the
// end of its check.
func TestMobikeNotMovable(t *testing.T) {
	w, a, b := roaming(t, nil)
	w.drop = func(d Datagram) bool { return slices.Contains(b.says(d), "COOKIE2") }
	a.goes(addrC)
	w.settle()
	if _, _, ok := b.e.Movable(b.order[0]); ok {
		t.Error("movable while the check is under way")
	}
	w.drop = nil
	w.run(5 * time.Second)
	spis, _, ok := b.e.Movable(b.order[0])
	if !ok {
		t.Fatal("not movable at rest")
	}
	if x := b.e.SnapshotOf(w.now, []ipsec.IKESPIs{spis}); len(x) != 1 {
		t.Error("no record")
	}
}

// TestMobikeCrashAtEveryEffect kills either side's owner after every effect of an update:
// its standby goes on, and the tunnel is where the client is.
func TestMobikeCrashAtEveryEffect(t *testing.T) {
	for _, client := range []bool{true, false} {
		for _, loss := range []bool{false, true} {
			for k := 1; ; k++ {
				if k > 60 {
					t.Fatal("effects without end")
				}
				died := false
				t.Run(fmt.Sprintf("client %v loss %v after %d", client, loss, k-1), func(t *testing.T) {
					w, a, b := roaming(t, nil)
					s, peer := b, a
					if client {
						s, peer = a, b
					}
					s2 := w.standby(s, 77)
					s2.e.Apply(w.now, Record{Entries: s.e.Snapshot(w.now)})
					s2.drain()
					if loss {
						w.drop = func(d Datagram) bool { return s.dead && !s2.e.active }
					}
					s.cutAt = s.effects + k - 1
					if s.dead = k == 1; !s.dead || s != a {
						a.goes(addrC)
					}
					w.settle()
					if died = s.dead; !died {
						wantAt(t, a, b, addrC, false)
						return
					}
					if client {
						s2.addr = netip.MustParseAddr(addrC)
					}
					s2.resume()
					if client { // the kernel tells the new owner, too
						s2.goes(addrC)
					}
					w.run(3 * time.Minute)
					if client {
						wantAt(t, s2, peer, addrC, false)
					} else {
						wantAt(t, peer, s2, addrC, false)
					}
					sameBits(t, w)
				})
				if t.Failed() || !died {
					if !t.Failed() && k < 4 {
						t.Errorf("only %d effects", k)
					}
					break
				}
			}
		}
	}
}
