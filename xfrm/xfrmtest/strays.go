package xfrmtest

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

const (
	always = xfrm.Scope(1) // of a shared tunnel: active at every member
	second = xfrm.Scope(4)
)

func inScope(n xfrm.Scope) option { return func(_ *site, x *xfrm.SA) { x.Scope = n } }

// forPort narrows both ends' selectors to one UDP port.
func forPort(n uint16) option {
	return func(_ *site, x *xfrm.SA) {
		for _, l := range [][]ipsec.TrafficSelector{x.TSLocal, x.TSRemote} {
			for i := range l {
				l[i].Protocol, l[i].StartPort, l[i].EndPort = unix.IPPROTO_UDP, n, n
			}
		}
	}
}

func (s *site) flip(n xfrm.Scope, active bool) {
	s.do(func() {
		if active {
			s.plane.Activate(n)
		} else {
			s.plane.Deactivate(n)
		}
	})
}

// stray returns the n-th packet handed up, from 0.
func (s *site) stray(n int) xfrm.Stray {
	s.t.Helper()
	s.wait("stray", func() bool { return len(s.strays) > n })
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.strays[n]
	x.Packet = bytes.Clone(x.Packet)
	return x
}

func (s *site) strayCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.strays)
}

// inject hands over a copy, from another goroutine than the controlling one.
func (s *site) inject(from uint8, xs ...xfrm.Stray) {
	var l []xfrm.Stray
	for _, x := range xs {
		x.From, x.Packet = from, bytes.Clone(x.Packet)
		l = append(l, x)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.plane.Inject(l) }()
	<-done
}

// One dialup phase 1 of a farm: its interface holds SAs of many owners.
func testSharedTunnel(t *testing.T, make Factory) {
	p := newPair(t, make)
	p.tunnel(xfrm.Tunnel{Scope: always})
	for _, s := range []*site{p.a, p.b} {
		s.flip(always, true)
		s.flip(scope, true)
		p.install(s, forPort(7000))
		p.install(s, forPort(7001), generation(1), inScope(second))
	}
	p.a.flip(second, true)
	a0, b0, a1, b1 := p.a.host(false, 7000), p.b.host(false, 7000), p.a.host(false, 7001), p.b.host(false, 7001)

	a0.send(b0, 1, 64)
	b0.want(1)
	b0.send(a0, 2, 64)
	a0.want(2)
	a1.send(b1, 3, 64)
	eventually(t, "inbound of the silent SA", func() bool { return p.b.tunnelCounters().Inactive == 1 })
	b1.send(a1, 4, 64)
	eventually(t, "outbound of the silent SA", func() bool { return p.b.tunnelCounters().Inactive == 2 })
	b1.wantNothing()
	if c := p.b.counters(spiB + 1); c.InPackets+c.OutPackets != 0 {
		t.Fatalf("the silent SA: %+v", c)
	}
	// What no SA matches is the tunnel's: its scope is active.
	p.b.host(false, 7002).send(a0, 5, 64)
	waitEvent(p.b, "acquire", func(e xfrm.Acquire) bool { return e.Src.Port() == 7002 })

	p.b.flip(second, true)
	p.b.flip(scope, false)
	a1.send(b1, 6, 64)
	b1.want(6)
	b1.send(a1, 7, 64)
	a1.want(7)
	was := p.b.tunnelCounters().Inactive
	a0.send(b0, 8, 64)
	b0.send(a0, 9, 64)
	eventually(t, "the first is silent now", func() bool { return p.b.tunnelCounters().Inactive == was+2 })
	b0.wantNothing()
	var ws []xfrm.Window
	p.b.do(func() { ws = p.b.plane.Windows(scope) })
	if len(ws) != 1 || ws[0].SPIIn != spiB || ws[0].InSeq != 1 || ws[0].OutSeq != 1 {
		t.Fatalf("windows of one scope: %+v", ws)
	}

	// The tunnel's own scope matters to no SA.
	p.b.flip(always, false)
	b1.send(a1, 10, 64)
	a1.want(10)
}

// ESP at the wrong member is handed up as it came, and taken in by the owner.
func testStrayESP(t *testing.T, make Factory) {
	for _, c := range []struct {
		name string
		opts []option
		udp  bool
		six  bool
	}{
		{"ESP over IPv4", nil, false, false},
		{"UDP over IPv4", []option{overUDP}, true, false},
		{"ESP over IPv6", []option{overIPv6}, false, true},
		{"UDP over IPv6", []option{overUDP, overIPv6}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPairOf(t, make, single, true)
			p.tunnel(xfrm.Tunnel{Scope: always})
			p.a.activate()
			p.install(p.a, c.opts...)
			p.install(p.b, c.opts...)
			ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
			for i := range uint32(3) {
				ha.send(hb, i, 1472)
			}
			x := p.b.stray(2)
			local, remote, port := p.b.wan4, p.a.wan4, uint16(0)
			if c.six {
				local, remote = p.b.wan6, p.a.wan6
			}
			if c.udp {
				port = 4500
			}
			if x.Scope != scope || x.Tunnel != "vpn1" || x.From != 0 || !x.Outer || x.UDPEncap != c.udp ||
				x.Local != netip.AddrPortFrom(local, port) || x.Remote != netip.AddrPortFrom(remote, port) {
				t.Fatalf("stray of scope %d, %s: outer %v, UDP %v, %v to %v", x.Scope, x.Tunnel, x.Outer, x.UDPEncap, x.Remote, x.Local)
			}
			if c := p.b.tunnelCounters(); c.Inactive != 0 || c.Strays != 3 {
				t.Fatalf("%+v", c)
			}
			hb.wantNothing()

			// A member that does not own it either hands it on, once.
			p.b.inject(7, x)
			if y := p.b.stray(3); y.From != 7 || y.Last {
				t.Fatalf("a stray again, from member %d, last %v", y.From, y.Last)
			}
			last := x
			last.Last = true
			p.b.inject(7, last)
			if c := p.b.tunnelCounters(); c.Inactive != 1 || c.Strays != 4 || c.Injected != 2 || p.b.strayCount() != 4 {
				t.Fatalf("%+v, %d strays", c, p.b.strayCount())
			}
			p.b.activate()
			p.b.inject(7, p.b.stray(0), p.b.stray(1), x)
			hb.want(0, 1, 2)
			p.b.inject(7, p.b.stray(1), x)
			if c := p.b.counters(spiB); c.InPackets != 3 || c.InReplayed != 2 || c.InErrors != 0 {
				t.Fatalf("%+v", c)
			}
			ha.send(hb, 3, 64) // and here by itself
			hb.want(3)
			if n := p.b.strayCount(); n != 4 {
				t.Fatalf("%d strays", n)
			}
		})
	}
}

// An inner packet at the wrong member leaves sealed by the owner.
func testStrayInner(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.a.activate()
	p.install(p.a)
	p.install(p.b)
	for i, v6 := range []bool{false, true} {
		ha, hb := p.a.host(v6, 7000), p.b.host(v6, 7000)
		tp := p.b.tap()
		hb.send(ha, 1, 1400)
		n := i
		x := p.b.stray(n)
		if x.Scope != scope || x.Tunnel != "vpn1" || x.From != 0 || x.Outer {
			t.Fatalf("%+v", x)
		}
		if n := len(x.Packet); n != 1428 && n != 1448 {
			t.Fatalf("inner packet of %d bytes", n)
		}
		was := p.b.tunnelCounters()
		last := x
		last.Last = true
		p.b.inject(7, last)
		if c := p.b.tunnelCounters(); c.Inactive != was.Inactive+1 || c.Injected != was.Injected+1 || p.b.strayCount() != n+1 {
			t.Fatalf("%+v, %d strays", c, p.b.strayCount())
		}
		for _, f := range tp.frames() {
			if f.spi == uint32(spiA) {
				t.Fatal("sealed where it is not owned")
			}
		}
		p.b.activate()
		p.b.inject(7, x)
		ha.want(1)
		p.b.deactivate()
	}
	if c := p.b.counters(spiB); c.OutPackets != 2 {
		t.Fatalf("%+v", c)
	}
	x := p.b.stray(0)
	x.Tunnel = "elsewhere"
	p.b.inject(7, x)
	var c xfrm.PlaneCounters
	p.b.do(func() { c = p.b.plane.PlaneCounters() })
	if c.NoTunnel != 1 {
		t.Fatalf("%+v", c)
	}
}

// A packet that waited for an SA becomes a stray when the SA turns out to be another
// member's; but not when it goes no further.
func testStrayWaits(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.b.flip(always, true)
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	hb.send(ha, 1, 64)
	waitEvent[xfrm.Acquire](p.b, "acquire", nil)
	p.install(p.b)
	x := p.b.stray(0)
	if x.Outer || x.Scope != scope {
		t.Fatalf("%+v", x)
	}
	x.Last = true
	p.b.do(func() { p.b.plane.Remove(spiB) })
	p.b.inject(7, x)
	if c := p.b.tunnelCounters(); c.NoSA != 2 {
		t.Fatalf("%+v", c)
	}
	p.install(p.b, generation(1))
	if c := p.b.tunnelCounters(); c.Strays != 1 || c.Inactive != 1 || p.b.strayCount() != 1 {
		t.Fatalf("%+v", c)
	}

	// The same for packets that wait for a ceiling when their SA is removed, and the
	// next one that matches is another member's.
	p.b.flip(second, true)
	p.install(p.b, generation(2), inScope(second), bounds(0, xfrm.Unbounded))
	p.b.forget()
	hb.send(ha, 2, 64)
	waitEvent(p.b, "question for a ceiling", wanted(xfrm.Outbound, 1))
	p.b.inject(7, x)
	p.b.do(func() { p.b.plane.Remove(spiB + 2) })
	if c := p.b.tunnelCounters(); c.Strays != 2 || c.Inactive != 2 || p.b.strayCount() != 2 {
		t.Fatalf("%+v", c)
	}
}

// What names no SA, and IKE, is no stray.
func testNoStray(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.a.activate()
	p.install(p.a)
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	ha.send(hb, 1, 64)
	eventually(t, "SPI unknown", func() bool {
		var c xfrm.PlaneCounters
		p.b.do(func() { c = p.b.plane.PlaneCounters() })
		return c.UnknownSPI == 1
	})
	hb.send(ha, 2, 64)
	eventually(t, "nobody's packet", func() bool { return p.b.tunnelCounters().Inactive == 1 })
	p.a.must("SendIKE", func() error {
		return p.a.plane.SendIKE(xfrm.IKEDatagram{Local: netip.AddrPortFrom(p.a.wan4, 500), Remote: netip.AddrPortFrom(p.b.wan4, 500), Data: bytes.Repeat([]byte{7}, 40)})
	})
	p.b.wait("IKE message", func() bool { return len(p.b.ike) == 1 })
	if n := p.b.strayCount(); n != 0 {
		t.Fatalf("%d strays", n)
	}
}

// The owner learns through whom a tunnel's traffic comes, from authentic packets
// only, and where the peer really is.
func testForwardedTraffic(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.a.activate()
	p.install(p.a, overUDP)
	p.install(p.b, overUDP)
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	const n = 300
	for i := range uint32(n) {
		ha.send(hb, i, 64)
	}
	p.b.stray(n - 1)
	p.b.activate()
	forged := p.b.stray(0)
	forged.Packet[len(forged.Packet)-1] ^= 1
	moved := netip.MustParseAddrPort("192.0.2.7:4501")
	forged.Remote = moved
	p.b.inject(7, forged)
	if c := p.b.counters(spiB); c.InAuthFailed != 1 {
		t.Fatalf("%+v", c)
	}
	reports := func() (l []xfrm.ForwardedTraffic) {
		p.b.mu.Lock()
		defer p.b.mu.Unlock()
		for _, e := range p.b.events {
			switch e := e.(type) {
			case xfrm.ForwardedTraffic:
				l = append(l, e)
			case xfrm.PeerMoved:
				if e.From != moved {
					t.Errorf("%+v", e)
				}
			}
		}
		return l
	}
	if l := reports(); len(l) != 0 {
		t.Fatalf("a forged packet is reported: %+v", l)
	}
	p.b.inject(7, p.b.stray(0), p.b.stray(1), p.b.stray(2))
	hb.want(0, 1, 2)
	first := xfrm.ForwardedTraffic{SPIIn: spiB, From: 7, Packets: 1}
	if l := reports(); len(l) == 0 || l[0] != first || len(l) > 3 {
		t.Fatalf("%+v", l)
	}
	p.b.mu.Lock()
	_, ok := find[xfrm.PeerMoved](p.b.events, nil)
	p.b.mu.Unlock()
	if ok {
		t.Fatal("the peer is where it was")
	}
	ha.send(hb, 100, 64)
	hb.want(100)
	x := p.b.stray(3)
	x.Remote = moved
	p.b.inject(7, x)
	waitEvent[xfrm.PeerMoved](p.b, "peer moved", nil)
	hb.want(3)
	// Nothing is lost between reports: their counts add up to what came.
	sent, reported := uint64(4), len(reports())
	eventually(t, "another report", func() bool {
		if sent == n {
			t.Fatal("no packets left")
		}
		p.b.inject(7, p.b.stray(int(sent)))
		sent++
		return len(reports()) > reported
	})
	var sum xfrm.ForwardedTraffic
	for _, e := range reports() {
		sum.Packets += e.Packets
		sum.Direct += e.Direct
	}
	if sum.Packets != sent || sum.Direct != 1 {
		t.Fatalf("%d forwarded, 1 not; reported %+v", sent, sum)
	}
}
