package xfrmtest

import (
	"testing"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// A scope that is retired takes nothing more, but what waits for a bound goes its way.
func testRetire(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.a.activate()
	p.b.activate()
	p.install(p.a)
	p.install(p.b, bounds(0, 0))
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	ha.send(hb, 1, 64)
	waitEvent(p.b, "question for a fence", wanted(xfrm.Inbound, 1))
	hb.send(ha, 2, 64)
	var up uint64
	waitEvent(p.b, "question for a ceiling", func(e xfrm.BoundWanted) bool { up = e.N; return e.Dir == xfrm.Outbound })
	p.b.do(func() { p.b.plane.Retire(scope) })
	ha.send(hb, 3, 64)
	if x := p.b.stray(0); !x.Outer || x.Scope != scope {
		t.Fatalf("%+v", x)
	}
	hb.send(ha, 4, 64)
	if x := p.b.stray(1); x.Outer || x.Scope != scope {
		t.Fatalf("%+v", x)
	}
	p.b.do(func() {
		p.b.plane.SetBounds([]xfrm.Bound{{SPIIn: spiB, Dir: xfrm.Inbound, N: 1}, {SPIIn: spiB, Dir: xfrm.Outbound, N: up}})
	})
	hb.want(1)
	ha.want(2)
	p.b.deactivate()
	var ws []xfrm.Window
	p.b.do(func() { ws = p.b.plane.Windows(scope) })
	if len(ws) != 1 || ws[0].InSeq != 1 || ws[0].OutSeq != 1 {
		t.Fatalf("%+v", ws)
	}
	p.b.activate()
	p.b.do(func() { p.b.plane.Retire(scope); p.b.plane.Activate(scope) })
	p.b.inject(7, p.b.stray(0))
	waitEvent(p.b, "question for a fence", wanted(xfrm.Inbound, 2)) // taken back: it takes packets
}

// A pair that is detached is gone, and its exact window lets it go on elsewhere.
func testDetach(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.b.flip(always, true)
	p.a.activate()
	p.b.activate()
	p.install(p.a)
	p.install(p.b)
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	for i := range uint32(3) {
		ha.send(hb, i, 64)
	}
	hb.want(0, 1, 2)
	hb.send(ha, 9, 64)
	ha.want(9)
	var ws []xfrm.Window
	ok := false
	p.b.do(func() { ws, ok = p.b.plane.Detach([]ipsec.ESPSPI{spiB, spiB + 77}) })
	if !ok || len(ws) != 1 || ws[0].SPIIn != spiB || ws[0].InSeq != 3 || ws[0].OutSeq != 1 {
		t.Fatalf("%+v", ws)
	}
	there := true
	p.b.do(func() { _, there = p.b.plane.Counters(spiB) })
	if there {
		t.Fatal("the pair is still there")
	}
	hb.send(ha, 10, 64)
	waitEvent(p.b, "acquire", func(e xfrm.Acquire) bool { return e.Tunnel == "vpn1" })
	x := p.sa(p.b, bounds(32, 3))
	x.Known = true
	p.b.must("Install", func() error { return p.b.plane.Install(x) })
	p.b.do(func() { p.b.plane.SetWindows(ws); p.b.plane.SetOutbound(spiB, true) })
	ha.want(10)
	ha.send(hb, 11, 64)
	waitEvent(p.b, "question for a fence", wanted(xfrm.Inbound, 4))
	p.b.do(func() { p.b.plane.SetBounds([]xfrm.Bound{{SPIIn: spiB, Dir: xfrm.Inbound, N: 4}}) })
	hb.want(11)
	if c := p.b.counters(spiB); c.InReplayed != 0 || c.InPackets != 1 || c.OutSeq != 2 {
		t.Fatalf("%+v", c)
	}
}

// A pair of which a packet waits for a bound is not taken out: the packet goes its way first.
func testDetachWaits(t *testing.T, make Factory) {
	p := newPairOf(t, make, single, true)
	p.tunnel(xfrm.Tunnel{Scope: always})
	p.a.activate()
	p.b.activate()
	p.install(p.a)
	p.install(p.b, bounds(0, 0))
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	detach := func() (ws []xfrm.Window, ok bool) {
		p.b.do(func() { ws, ok = p.b.plane.Detach([]ipsec.ESPSPI{spiB}) })
		return ws, ok
	}
	ha.send(hb, 1, 64)
	waitEvent(p.b, "question for a fence", wanted(xfrm.Inbound, 1))
	if ws, ok := detach(); ok || ws != nil {
		t.Fatal("taken out while a packet waits to be delivered")
	}
	p.b.do(func() { p.b.plane.SetBounds([]xfrm.Bound{{SPIIn: spiB, Dir: xfrm.Inbound, N: 1}}) })
	hb.want(1)
	hb.send(ha, 2, 64)
	var up uint64
	waitEvent(p.b, "question for a ceiling", func(e xfrm.BoundWanted) bool { up = e.N; return e.Dir == xfrm.Outbound })
	if _, ok := detach(); ok {
		t.Fatal("taken out while a packet waits to be sent")
	}
	p.b.do(func() { p.b.plane.SetBounds([]xfrm.Bound{{SPIIn: spiB, Dir: xfrm.Outbound, N: up}}) })
	ha.want(2)
	if ws, ok := detach(); !ok || len(ws) != 1 || ws[0].InSeq != 1 || ws[0].OutSeq != 1 {
		t.Fatalf("%+v, %v once nothing waits", ws, ok)
	}
}
