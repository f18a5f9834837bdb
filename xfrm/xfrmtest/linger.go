package xfrmtest

import (
	"testing"
	"time"

	"tandem/xfrm"
)

const forLong = time.Hour

// A pair that lingers takes what its peer sends, without a fence and each packet once; what
// waited is delivered. It sends nothing, and is not there for anything else. It goes with
// the activation of its scope.
func testLinger(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("B", bounds(xfrm.Unbounded, 1)))
	tp, out := p.b.tap(), p.a.tap()
	for i := uint32(1); i <= 2; i++ {
		ha.send(hb, i, 64)
	}
	hb.want(1)
	eventually(t, "the second waits for the fence", func() bool { return p.b.counters(spiB).InFenced == 1 })
	hb.wantNothing()
	p.b.do(func() { p.b.plane.Linger(spiB, forLong) })
	hb.want(2)
	// The answer to a question of before, and the rest of what names an SA.
	var known bool
	p.b.do(func() {
		p.b.plane.SetBounds([]xfrm.Bound{{SPIIn: spiB, Dir: xfrm.Inbound, N: 2}})
		p.b.plane.Skip([]xfrm.Bound{{SPIIn: spiB, Dir: xfrm.Inbound, N: 100}})
		p.b.plane.SetOutbound(spiB, true)
		_, known = p.b.plane.Counters(spiB)
	})
	if known {
		t.Error("it has counters")
	}
	for i := uint32(3); i <= 5; i++ {
		ha.send(hb, i, 64)
		hb.want(i)
	}
	hb.send(ha, 9, 64)
	waitEvent(p.b, "acquire", func(e xfrm.Acquire) bool { return e.Tunnel == "vpn1" })
	for _, f := range tp.frames() {
		if f.spi == uint32(spiB) {
			out.inject(f.raw)
		}
	}
	ha.send(hb, 6, 64)
	hb.want(6)
	hb.wantNothing()

	p.b.deactivate()
	p.b.activate()
	unknown(p, ha, hb)
}

// It ends when its time is over, and at once for one of the same SPI.
func testLingerEnds(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{})
	p.b.do(func() { p.b.plane.Linger(spiB, time.Millisecond) })
	unknown(p, ha, hb)

	p.install(p.b)
	p.b.do(func() { p.b.plane.Linger(spiB, forLong) })
	ha.send(hb, 1, 64)
	hb.want(1)
	p.install(p.b)
	ha.send(hb, 2, 64)
	hb.want(2)
	if c := p.b.counters(spiB); c.InPackets != 1 {
		t.Errorf("%+v", c)
	}
	p.b.do(func() { p.b.plane.Linger(spiB, forLong) })
	p.b.must("RemoveTunnel", func() error { return p.b.plane.RemoveTunnel("vpn1") })
}

// unknown sends until the receiver does not know the SPI; what is sent before may arrive.
func unknown(p *pair, ha, hb *host) {
	p.t.Helper()
	eventually(p.t, "SPI unknown", func() bool {
		var c xfrm.PlaneCounters
		ha.send(hb, 99, 64)
		p.b.do(func() { c = p.b.plane.PlaneCounters() })
		return c.UnknownSPI > 0
	})
	for err := error(nil); err == nil; {
		_ = hb.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, _, err = hb.conn.ReadFromUDPAddrPort(hb.buf[:])
	}
}
