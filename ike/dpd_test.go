package ike

import (
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

func dpd(mode string) func(a, b *config.Config) {
	return func(a, b *config.Config) {
		a.Phase1[0].DPD, b.Phase1[0].DPD = mode, "disable"
		a.Phase1[0].AutoNegotiate = true
	}
}

// cut drops everything and returns when the last message was sent before that.
func cut(w *world) { w.drop = func(Datagram) bool { return true } }

func TestDPDOnIdle(t *testing.T) {
	w, a, _ := up(t, dpd("on-idle"))
	w.run(70 * time.Second)
	if n := w.seenOf(message.Informational); n != 3 {
		t.Errorf("%d probes in 70 idle seconds at 20 s", n)
	}
	// Inbound traffic suppresses probes.
	before := w.seenOf(message.Informational)
	for range 60 {
		w.run(time.Second)
		a.lastIn[a.order[0]] = w.now
	}
	if n := w.seenOf(message.Informational) - before; n != 0 {
		t.Errorf("%d probes in spite of traffic", n)
	}
	cut(w)
	start := w.now
	w.run(79 * time.Second)
	if n := w.seenOf(message.Informational) - before; n != 3 || len(a.established()) != 1 {
		t.Errorf("%d probes 79 s after the last traffic, %d IKE SAs", n, len(a.established()))
	}
	w.run(2 * time.Second)
	if len(a.established()) != 0 || len(a.installed) != 0 {
		t.Errorf("the peer is not dead after 20 s and three probes of 20 s (since %s)", w.now.Sub(start))
	}
	a.wantLog("set oper down")
	w.drop = nil
	w.run(6 * time.Second)
	if len(a.established()) != 1 {
		t.Error("not negotiated again")
	}
}

func TestDPDOnDemand(t *testing.T) {
	w, a, _ := up(t, dpd("on-demand"))
	w.run(5 * time.Minute)
	if n := w.seenOf(message.Informational); n != 0 {
		t.Errorf("%d probes without traffic", n)
	}
	a.lastOut[a.order[0]] = w.now // we send, nothing comes back
	w.run(25 * time.Second)
	if n := w.seenOf(message.Informational); n != 1 {
		t.Errorf("%d probes after outbound traffic alone", n)
	}
	cut(w)
	a.lastOut[a.order[0]] = w.now
	w.run(3 * time.Minute)
	if len(a.established()) != 0 {
		t.Error("the peer is not dead")
	}
}

func TestDPDDisabled(t *testing.T) {
	w, a, _ := up(t, dpd("disable"))
	a.lastOut[a.order[0]] = w.now
	cut(w)
	w.run(time.Hour)
	if len(w.seen) != 4 || len(a.established()) != 1 {
		t.Error("probes although dpd is disabled")
	}
}

func TestRetransmissionBacksOff(t *testing.T) {
	w, a, _ := up(t, dpd("disable"))
	cut(w)
	start := w.now
	n := len(w.seen)
	var at []time.Duration
	a.rekeyChild()
	for len(a.established()) > 0 && w.now.Sub(start) < 10*time.Minute {
		w.run(500 * time.Millisecond)
		for ; n < len(w.seen); n++ {
			at = append(at, w.now.Sub(start).Round(time.Second))
		}
	}
	want := []time.Duration{0, 1, 3, 7, 15, 31}
	for i, s := range want {
		if i >= len(at) || at[i]-s*time.Second > time.Second {
			t.Fatalf("sent at %v, want about %v", at, want)
		}
	}
	if end := w.now.Sub(start); end < 59*time.Second || end > 62*time.Second {
		t.Errorf("gave up after %s", end)
	}
	sameBits(t, w)
}

// natted is A behind a NAT at 203.0.113.9.
func natted(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side, *uint16) {
	w := newWorld(t)
	pub := netip.MustParseAddr("203.0.113.9")
	ca := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}
	cb := &config.Config{Phase1: []config.Phase1{phase1To("vpn", "")}, Phase2: []config.Phase2{phase2For("vpn", "vpn", "0.0.0.0/0", "0.0.0.0/0")}}
	if change != nil {
		change(ca, cb)
	}
	a := w.side("A", "10.0.0.5", 1, ca, nil)
	b := w.side("B", addrB, 2, cb, nil)
	base := uint16(20000)
	w.nat = func(d *Datagram) bool {
		if d.Local.Addr() == a.addr {
			d.Local = netip.AddrPortFrom(pub, base+d.Local.Port())
		} else if d.Remote.Addr() == pub {
			if d.Remote.Port()-base != 500 && d.Remote.Port()-base != 4500 {
				return false // an old mapping
			}
			d.Remote = netip.AddrPortFrom(a.addr, d.Remote.Port()-base)
		}
		return true
	}
	b.resume()
	a.resume()
	w.settle()
	if len(a.installed) != 1 || len(b.installed) != 1 {
		t.Fatal("not up through the NAT")
	}
	return w, a, b, &base
}

func TestNAT(t *testing.T) {
	w, a, b, base := natted(t, nil)
	x, y := a.installed[a.order[0]].SA, b.installed[b.order[0]].SA
	if !x.UDPEncap || !y.UDPEncap || x.Local.Port() != 4500 || x.Remote.Port() != 4500 || y.Local.Port() != 4500 ||
		y.Remote != netip.MustParseAddrPort("203.0.113.9:24500") {
		t.Errorf("outer addresses %v→%v, %v→%v", x.Local, x.Remote, y.Local, y.Remote)
	}
	for _, d := range w.seen {
		h, _ := message.ParseHeader(d.Data)
		if d.NonESP != (h.Exchange != message.IKESAInit) {
			t.Errorf("%s with non-ESP marker %v", h.Exchange, d.NonESP)
		}
	}
	w.run(61 * time.Second)
	if a.keepalive != 6 || b.keepalive != 0 {
		t.Errorf("%d keepalives in a minute from behind the NAT, %d from the other side", a.keepalive, b.keepalive)
	}
	// The NAT forgets its mapping; authenticated ESP shows the new one.
	*base = 30000
	b.e.HandlePeerMoved(w.now, b.order[0], netip.MustParseAddrPort("203.0.113.9:34500"))
	b.drain()
	if got := b.installed[b.order[0]].SA.Remote.Port(); got != 34500 {
		t.Errorf("ESP goes to port %d", got)
	}
	b.rekeyChild()
	w.settle()
	if len(b.installed) != 1 || b.installed[b.order[0]].SA.Remote.Port() != 34500 {
		t.Error("IKE does not follow")
	}
	// So does an authenticated IKE request, but not a forged or repeated one.
	*base = 40000
	forged := &message.Message{Header: a.ike()[0].header(message.Informational, false, a.ike()[0].nextSend)}
	w.deliver(a.ike()[0].datagram(forged.Encode()))
	var last Datagram
	for _, d := range w.seen {
		if d.Local.Addr() == a.addr {
			last = d
		}
	}
	w.deliver(last)
	if got := b.installed[b.order[0]].SA.Remote.Port(); got != 34500 {
		t.Fatalf("moved to port %d by a message that proves nothing", got)
	}
	a.rekeyChild()
	w.settle()
	if got := b.installed[b.order[0]].SA.Remote.Port(); got != 44500 {
		t.Errorf("after an authenticated request ESP goes to port %d", got)
	}
}

func TestNATTraversalModes(t *testing.T) {
	set := func(ma, mb string) func(a, b *config.Config) {
		return func(a, b *config.Config) { a.Phase1[0].NATTraversal, b.Phase1[0].NATTraversal = ma, mb }
	}
	for _, x := range []struct {
		a, b  string
		encap bool
	}{{"enable", "enable", false}, {"forced", "enable", true}, {"enable", "forced", true}, {"disable", "enable", false},
		{"enable", "disable", false}, {"disable", "disable", false}, {"forced", "forced", true}} {
		w, a, b := up(t, set(x.a, x.b))
		for _, s := range []*side{a, b} {
			if sa := s.installed[s.order[0]].SA; sa.UDPEncap != x.encap || (sa.Local.Port() == 4500) != x.encap {
				t.Errorf("%s/%s: %s: encapsulation %v from port %d", x.a, x.b, s.name, sa.UDPEncap, sa.Local.Port())
			}
		}
		_, has := parse(t, w.seen[0]).Notify(message.NATDetectionSourceIP)
		if has == (x.a == "disable") {
			t.Errorf("%s: NAT_DETECTION payload: %v", x.a, has)
		}
		a.rekeyIKE()
		w.settle()
		b.rekeyChild()
		w.settle()
		agree(t, a, b, 1, 1)
		if sa := b.installed[b.order[0]].SA; sa.UDPEncap != x.encap {
			t.Errorf("%s/%s: encapsulation changes with a rekey", x.a, x.b)
		}
	}
}

func TestLossyNetwork(t *testing.T) {
	for seed := range uint64(30) {
		w, a, b := pair(t, func(a, b *config.Config) {
			auto(a, b)
			for _, c := range []*config.Config{a, b} {
				c.Phase1[0].KeyLife, c.Phase2[0].KeyLife = 90*time.Second, 40*time.Second
				c.Phase2[0].AutoNegotiate = true
				c.Phase1[0].DPD = "on-idle"
			}
		})
		r := testRand(1000 + seed)
		chance := func() byte { var x [1]byte; _, _ = r.Read(x[:]); return x[0] }
		lossy := true
		var late []Datagram
		w.drop = func(d Datagram) bool {
			if !lossy {
				return false
			}
			switch c := chance(); {
			case c < 40: // lost
				return true
			case c < 70: // twice
				w.wire = append(w.wire, d)
			case c < 100: // late
				late = append(late, d)
				return true
			}
			return false
		}
		b.resume()
		a.resume()
		for range 300 {
			w.run(time.Second)
			w.wire = append(w.wire, late...)
			late = nil
		}
		lossy = false
		w.run(3 * time.Minute)
		agree(t, a, b, 1, 1)
		if len(a.outbound()) != 1 || len(b.outbound()) != 1 || !a.esp(b) || !b.esp(a) {
			t.Fatalf("seed %d: traffic does not pass: %v %v", seed, a.outbound(), b.outbound())
		}
		sameBits(t, w)
	}
}

func TestWithoutNATThePeerDoesNotMove(t *testing.T) {
	w, a, b := up(t, nil)
	sa := a.ike()[0]
	end := a.e.begin(w.now)
	raw, err := a.e.seal(sa, message.Informational, false, sa.nextSend, nil)
	end()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := netip.MustParseAddrPort("198.51.100.77:500")
	w.deliver(Datagram{Local: elsewhere, Remote: sa.remote, Data: raw})
	if len(w.wire) != 1 || w.wire[0].Remote != elsewhere {
		t.Error("the answer does not go to where the request came from")
	}
	if b.ike()[0].remote != sa.local || b.installed[b.order[0]].SA.Remote != sa.local {
		t.Error("the peer moved although there is no NAT")
	}
	b.e.HandlePeerMoved(w.now, b.order[0], elsewhere)
	b.drain()
	if b.installed[b.order[0]].SA.Remote != sa.local {
		t.Error("plain ESP moved the peer")
	}
}
