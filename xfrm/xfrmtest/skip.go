package xfrmtest

import (
	"testing"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// Numbers that are left out are neither sent nor accepted, in an active scope as after a
// takeover, whatever bounds were asked for before.
func testSkip(t *testing.T, make Factory) {
	p := newPair(t, make)
	p.tunnel(xfrm.Tunnel{Scope: scope})
	p.a.activate()
	p.install(p.a, bounds(5, xfrm.Unbounded))
	p.install(p.b, bounds(0, 0))
	p.b.agree()
	p.b.activate()
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	tp, out := p.b.tap(), p.a.tap()
	for i := range uint32(5) {
		ha.send(hb, i, 64)
	}
	hb.want(0, 1, 2, 3, 4)
	// One waits for the question that was put before; it leaves above what is skipped, and
	// waits for another answer.
	ha.send(hb, 5, 64)
	w := waitEvent(p.a, "question for a ceiling", wanted(xfrm.Outbound, 6))
	skip := func(s *site, spi ipsec.ESPSPI, dir xfrm.Direction, n uint64) {
		s.do(func() { s.plane.Skip([]xfrm.Bound{{SPIIn: spi, Dir: dir, N: n}}) })
	}
	skip(p.a, spiA, xfrm.Outbound, 10000)
	skip(p.a, spiA, xfrm.Outbound, 9000) // nobody goes back
	p.a.forget()
	p.a.grant(w.Bound)
	w = waitEvent(p.a, "question above what was skipped", wanted(xfrm.Outbound, 10001))
	hb.wantNothing()
	p.a.agree()
	p.a.grant(w.Bound)
	hb.want(5)
	captured := tp.frames()
	if seq, n := highest(captured, spiB); seq != 10001 || n != 6 {
		t.Fatalf("%d packets up to %d, want 10001", n, seq)
	}

	// Inbound: what never arrived is dead, too; what comes after is not.
	skip(p.b, spiB, xfrm.Inbound, 15000)
	skip(p.b, spiB, xfrm.Inbound, 3)
	rejected := func() uint64 { // with ESN an old number is taken for one of the next 2^32
		c := p.b.counters(spiB)
		return c.InReplayed + c.InAuthFailed
	}
	for _, f := range captured {
		if f.spi == uint32(spiB) {
			out.inject(f.raw)
		}
	}
	for i := uint32(6); i < 10; i++ { // 10002 and on
		ha.send(hb, i, 64)
	}
	eventually(t, "all rejected", func() bool { return rejected() == 10 })
	hb.wantNothing()
	skip(p.a, spiA, xfrm.Outbound, 15000)
	for i := uint32(10); i < 300; i++ {
		ha.send(hb, i, 64)
		hb.want(i)
	}
	c := p.b.counters(spiB)
	if rejected() != 10 || c.InSeq != 15290 || c.Fence < 15290 {
		t.Fatalf("%+v", c)
	}
	// Idle, it withdraws to what was delivered, not to what was before.
	eventually(t, "fence withdrawn", func() bool { return p.b.counters(spiB).Fence == 15290 })
	skip(p.b, spiB, xfrm.Inbound, 20000)
	skip(p.a, spiA, xfrm.Outbound, 20000)
	ha.send(hb, 300, 64)
	hb.want(300)
	eventually(t, "fence withdrawn again", func() bool { return p.b.counters(spiB).Fence == 20001 })

	// On a standby it is what a successor goes on above, and does not lower a bound.
	p.b.deactivate()
	for _, n := range []uint64{30000, 25000} {
		skip(p.b, spiB, xfrm.Outbound, n)
		skip(p.b, spiB, xfrm.Inbound, n)
	}
	p.b.activate()
	ha.send(hb, 301, 64)
	eventually(t, "rejected", func() bool { return rejected() == 11 })
	skip(p.a, spiA, xfrm.Outbound, 30000)
	ha.send(hb, 302, 64)
	hb.want(302)
	hb.send(ha, 400, 64)
	ha.want(400)
	if c := p.b.counters(spiB); c.OutSeq != 30001 {
		t.Fatalf("sequence number %d, want 30001", c.OutSeq)
	}
}
