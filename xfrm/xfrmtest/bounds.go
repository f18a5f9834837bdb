package xfrmtest

import (
	"slices"
	"testing"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// wanted finds a question about one direction with at least n.
func wanted(dir xfrm.Direction, n uint64) func(xfrm.BoundWanted) bool {
	return func(w xfrm.BoundWanted) bool { return w.Dir == dir && w.N >= n }
}

// highest is the highest sequence number of an SPI on the wire.
func highest(fs []espFrame, spi ipsec.ESPSPI) (seq uint32, n int) {
	for _, f := range fs {
		if f.spi == uint32(spi) {
			n++
			seq = max(seq, f.seq)
		}
	}
	return seq, n
}

func testCeiling(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("A", bounds(5, xfrm.Unbounded)))
	tp := p.b.tap()
	for i := range uint32(20) {
		ha.send(hb, i, 64)
	}
	hb.want(0, 1, 2, 3, 4)
	w := waitEvent(p.a, "question for a ceiling", wanted(xfrm.Outbound, 6))
	if w.SPIIn != spiA {
		t.Fatalf("question about %v", w.SPIIn)
	}
	if seq, n := highest(tp.frames(), spiB); seq != 5 || n != 5 {
		t.Fatalf("%d packets up to %d before the answer; the ceiling is 5", n, seq)
	}
	p.a.grant(xfrm.Bound{SPIIn: spiA, Dir: xfrm.Outbound, N: 12})
	hb.want(5, 6, 7, 8, 9, 10, 11)
	if seq, _ := highest(tp.frames(), spiB); seq != 12 {
		t.Fatalf("sequence number %d on the wire, the ceiling is 12", seq)
	}
	p.a.agree()
	p.a.grant(xfrm.Bound{SPIIn: spiA, Dir: xfrm.Outbound, N: 100})
	hb.want(12, 13, 14, 15, 16, 17, 18, 19)
	// What waits and what comes later keep their order.
	for i := uint32(20); i < 400; i++ {
		ha.send(hb, i, 64)
		hb.want(i)
	}
	if c := p.a.counters(spiA); c.OutSeq != 400 || c.OutErrors != 0 || c.Ceiling < 400 || c.Ceiling > 100000 {
		t.Fatalf("%+v", c)
	}
}

// Once its rate is known an SA never waits for its ceiling, and idle ones ask nothing.
func testCeilingPaces(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("A", bounds(0, xfrm.Unbounded)))
	p.a.agree()
	for i := range uint32(3000) {
		ha.send(hb, i, 64)
		hb.want(i)
	}
	c := p.a.counters(spiA)
	n := 0
	p.a.mu.Lock()
	for _, e := range p.a.events {
		if w, ok := e.(xfrm.BoundWanted); ok && w.Dir == xfrm.Outbound {
			n++
		}
	}
	p.a.mu.Unlock()
	if c.OutSeq != 3000 || n > 30 {
		t.Fatalf("%d questions for %d packets", n, c.OutSeq)
	}
	// The lead shrinks to that of an idle SA.
	eventually(t, "ceiling withdrawn", func() bool { c := p.a.counters(spiA); return c.Ceiling-c.OutSeq <= 64 })
}

func testFence(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("B", bounds(xfrm.Unbounded, 3)))
	for i := uint32(1); i <= 8; i++ {
		ha.send(hb, i, 64)
	}
	hb.want(1, 2, 3)
	waitEvent(p.b, "question for a fence", wanted(xfrm.Inbound, 4))
	eventually(t, "packets wait", func() bool { return p.b.counters(spiB).InFenced == 5 })
	hb.wantNothing()
	p.b.grant(xfrm.Bound{SPIIn: spiB, Dir: xfrm.Inbound, N: 6})
	hb.want(4, 5, 6)
	hb.wantNothing()
	if c := p.b.counters(spiB); c.InPackets != 6 || c.Fence != 6 {
		t.Fatalf("%+v", c)
	}
	p.b.grant(xfrm.Bound{SPIIn: spiB, Dir: xfrm.Inbound, N: 8})
	hb.want(7, 8)
	// An idle SA asks for exactly the packet that waits.
	p.b.forget()
	ha.send(hb, 9, 64)
	if w := waitEvent(p.b, "question for one packet", wanted(xfrm.Inbound, 9)); w.N != 9 {
		t.Fatalf("asked for %d, want 9", w.N)
	}
	p.b.agree()
	p.b.grant(xfrm.Bound{SPIIn: spiB, Dir: xfrm.Inbound, N: 9})
	hb.want(9)
	for i := uint32(10); i < 600; i++ {
		ha.send(hb, i, 64)
		hb.want(i)
	}
	if c := p.b.counters(spiB); c.InErrors != 0 || c.InReplayed != 0 || c.Fence < 599 {
		t.Fatalf("%+v", c)
	}
}

func testFenceWithdrawn(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("B", bounds(xfrm.Unbounded, 0)))
	p.b.agree()
	// A burst earns a lead; when it ends the lead goes.
	n := uint32(0)
	for lead := uint64(0); lead == 0; {
		for range 50 {
			n++
			ha.send(hb, n, 64)
			hb.want(n)
		}
		c := p.b.counters(spiB)
		lead = c.Fence - c.InSeq
	}
	eventually(t, "fence withdrawn", func() bool { c := p.b.counters(spiB); return c.Fence == c.InSeq })
	p.b.mu.Lock()
	var down uint64
	for _, e := range p.b.events {
		if w, ok := e.(xfrm.BoundWanted); ok && w.Dir == xfrm.Inbound {
			down = w.N
		}
	}
	p.b.mu.Unlock()
	if down != uint64(n) {
		t.Fatalf("the last question is %d, the highest delivered %d", down, n)
	}
	// And nothing above it passes unasked.
	p.b.stopAnswering()
	p.b.forget()
	ha.send(hb, n+1, 64)
	waitEvent(p.b, "question", wanted(xfrm.Inbound, uint64(n)+1))
	hb.wantNothing()
}

func testTakeover(t *testing.T, make Factory) {
	p := newPair(t, make)
	p.tunnel(xfrm.Tunnel{Scope: scope})
	p.a.activate()
	p.install(p.a)
	p.install(p.b, bounds(0, 0)) // installed on a standby
	p.b.grant(xfrm.Bound{SPIIn: spiB, Dir: xfrm.Outbound, N: 1000}, xfrm.Bound{SPIIn: spiB, Dir: xfrm.Inbound, N: 3})
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	tp := p.b.tap()
	old := tp
	ha.send(hb, 1, 64) // sequence number 1 goes to the owner before
	eventually(t, "ignored", func() bool { return p.b.tunnelCounters().Inactive == 1 })
	captured := old.frames()

	p.b.agree()
	p.b.activate()
	for i := uint32(2); i <= 5; i++ {
		ha.send(hb, i, 64)
	}
	hb.want(4, 5) // 2 and 3 lie at or below the fence
	if c := p.b.counters(spiB); c.InReplayed != 2 || c.InPackets != 2 {
		t.Fatalf("%+v", c)
	}
	waitEvent[xfrm.FirstInbound](p.b, "first inbound", nil)
	hb.send(ha, 10, 64)
	ha.want(10)
	i := slices.IndexFunc(tp.frames(), func(f espFrame) bool { return f.spi == uint32(spiA) })
	if c := p.b.counters(spiB); c.OutSeq != 1001 || i < 0 {
		t.Fatalf("the first packet has sequence number %d, want 1001", c.OutSeq)
	}
	// What the owner before had received is rejected here.
	f := captured[slices.IndexFunc(captured, func(f espFrame) bool { return f.spi == uint32(spiB) })]
	p.a.tap().inject(f.raw)
	eventually(t, "replay rejected", func() bool { return p.b.counters(spiB).InReplayed == 3 })
	hb.wantNothing()

	// Back and forth: each activation begins above everything recorded.
	p.b.deactivate()
	p.b.grant(xfrm.Bound{SPIIn: spiB, Dir: xfrm.Outbound, N: 5000}, xfrm.Bound{SPIIn: spiB, Dir: xfrm.Inbound, N: 5})
	p.b.activate()
	hb.send(ha, 11, 64)
	ha.want(11)
	if c := p.b.counters(spiB); c.OutSeq != 5001 {
		t.Fatalf("sequence number %d, want 5001", c.OutSeq)
	}
	ha.send(hb, 6, 64)
	hb.want(6)
}

func testHandover(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{})
	// Packets 1 to 5 reach B, but 3 only later.
	in, out := p.b.tap(), p.a.tap()
	for i := uint32(1); i <= 2; i++ {
		ha.send(hb, i, 64)
	}
	hb.want(1, 2)
	p.b.deactivate()
	ha.send(hb, 3, 64)
	eventually(t, "3 missed", func() bool { return p.b.tunnelCounters().Inactive == 1 })
	w := windows(p.b)
	p.b.do(func() { p.b.plane.SetWindows(w) })
	p.b.activate()
	for i := uint32(4); i <= 5; i++ {
		ha.send(hb, i, 64)
	}
	hb.want(4, 5)
	hb.send(ha, 20, 64)
	ha.want(20)
	if c := p.b.counters(spiB); c.OutSeq != 1 {
		t.Fatalf("sequence number %d after an exact handover, want 1", c.OutSeq)
	}

	p.b.deactivate()
	w = windows(p.b)
	if len(w) != 1 || w[0].SPIIn != spiB || w[0].OutSeq != 1 || w[0].InSeq != 5 || w[0].InAccepted[0]&0x1f != 0b11011 {
		t.Fatalf("windows %+v", w)
	}
	p.b.do(func() { p.b.plane.SetWindows(w) })
	p.b.activate()
	for _, f := range in.frames() { // again everything that A has sent
		if f.spi == uint32(spiB) {
			out.inject(f.raw)
		}
	}
	hb.want(3)
	eventually(t, "the others rejected", func() bool { return p.b.counters(spiB).InReplayed == 4 })
	hb.wantNothing()
}

func windows(s *site) (w []xfrm.Window) {
	s.do(func() { w = s.plane.Windows(scope) })
	return w
}

// A window whose owner went on after all must not be believed.
func testStaleHandover(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, bounds(100, xfrm.Unbounded))
	hb.send(ha, 1, 64)
	ha.want(1)
	p.b.deactivate()
	w := windows(p.b)
	p.b.do(func() { p.b.plane.SetWindows(w) })
	p.b.grant(xfrm.Bound{SPIIn: spiB, Dir: xfrm.Outbound, N: 200}) // the old owner raises
	p.b.agree()
	p.b.activate()
	hb.send(ha, 2, 64)
	ha.want(2)
	if c := p.b.counters(spiB); c.OutSeq != 201 {
		t.Fatalf("sequence number %d, want 201", c.OutSeq)
	}

	// One that no packet has used: another has gone on since, up to the same ceiling.
	p.b.deactivate()
	w = windows(p.b)
	p.b.do(func() { p.b.plane.SetWindows(w) })
	p.b.activate()
	p.b.deactivate()
	ceiling := p.b.counters(spiB).Ceiling
	p.b.activate()
	hb.send(ha, 3, 64)
	ha.want(3)
	if c := p.b.counters(spiB); c.OutSeq != ceiling+1 {
		t.Fatalf("sequence number %d, want %d", c.OutSeq, ceiling+1)
	}
}

func testReplay(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{})
	tp, out := p.b.tap(), p.a.tap()
	for i := uint32(1); i <= 10; i++ {
		ha.send(hb, i, 64)
		hb.want(i)
	}
	fs := tp.frames()
	for _, f := range fs {
		if f.spi == uint32(spiB) {
			out.inject(f.raw)
		}
	}
	eventually(t, "replays rejected", func() bool { return p.b.counters(spiB).InReplayed == 10 })
	hb.wantNothing()
	i := slices.IndexFunc(fs, func(f espFrame) bool { return f.spi == uint32(spiB) })
	bad := slices.Clone(fs[i].raw)
	bad[14+20+7] += 100 // a new sequence number under the old ICV
	out.inject(bad)
	eventually(t, "forgery rejected", func() bool { return p.b.counters(spiB).InAuthFailed == 1 })
	unknown := slices.Clone(fs[i].raw)
	unknown[14+20] ^= 0xff
	out.inject(unknown)
	eventually(t, "unknown SPI counted", func() bool {
		var c xfrm.PlaneCounters
		p.b.do(func() { c = p.b.plane.PlaneCounters() })
		return c.UnknownSPI == 1
	})
	ha.send(hb, 11, 64)
	hb.want(11)
}
