package userspace

import (
	"bytes"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/xfrmtest"
)

func TestNoAllocationStray(t *testing.T) {
	p, tn, s := bench(t)
	var outer, inner int
	p.o.Handler.Stray = func(x xfrm.Stray) {
		if x.Outer {
			outer++
		} else {
			inner++
		}
	}
	p.inject.epoch = p.newEpoch()
	pkts := sealed(t, s, 1000, 1400)
	from := &arrival{remote: netip.MustParseAddrPort("127.0.0.1:9"), udp: true}
	now, b, pkt := time.Now(), newBatch(), template(1400)

	p.Deactivate(1)
	if n := testing.AllocsPerRun(100, func() {
		p.espIn(pkts[0], from, &p.inject.merger, now)
		transmitted(p, tn, b, batchLen, pkt, now)
	}); n != 0 || outer != 101 || inner != 101*batchLen {
		t.Errorf("%v allocations for %d packets; %d and %d handed up", n, batchLen+1, outer, inner)
	}

	p.Activate(1)
	p.evs.deliver = func([]xfrm.Event) {}
	p.clock = func() time.Time { return now } // one report of forwarded traffic
	var xs []xfrm.Stray
	for range batchLen {
		xs = append(xs, xfrm.Stray{Tunnel: "vpn1", From: 2, Packet: pkt})
	}
	xs = append(xs, xfrm.Stray{Outer: true, UDPEncap: true, From: 2, Remote: from.remote})
	i := 0
	put := func() {
		xs[batchLen].Packet = pkts[i]
		i++
		p.Inject(xs)
	}
	put() // the first packet makes the ciphers, the batch and the counts
	if n := testing.AllocsPerRun(100, put); n != 0 {
		t.Errorf("%v allocations for %d packets put in", n, batchLen+1)
	}
	if c := s.counters(); c.InPackets != uint64(i) || c.OutPackets != uint64(i*batchLen) {
		t.Errorf("%+v after %d rounds", c, i)
	}
}

// TestInjectBesideDeactivate: what another goroutine puts in is as silent after
// Deactivate as what arrives.
func TestInjectBesideDeactivate(t *testing.T) {
	p, _, s := bench(t)
	p.inject.epoch = p.newEpoch()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		xs := make([]xfrm.Stray, batchLen)
		for i := range xs {
			xs[i] = xfrm.Stray{Tunnel: "vpn1", From: 2, Packet: bytes.Clone(template(64))}
		}
		for !stop.Load() {
			p.Inject(xs)
		}
	})
	sent := uint64(0)
	for range 200 {
		p.Deactivate(1)
		n := s.counters().OutPackets
		for range 100 {
			if s.counters().OutPackets != n {
				t.Fatal("a packet left after Deactivate")
			}
		}
		p.Activate(1)
		for end := time.Now().Add(10 * time.Second); s.counters().OutPackets == n; {
			if time.Now().After(end) {
				t.Fatal("no packet leaves after Activate")
			}
		}
		sent = n
	}
	stop.Store(true)
	wg.Wait()
	if sent == 0 {
		t.Fatal("nothing was sent")
	}
}

// A link between members may outlive the plane by a moment.
func TestInjectAfterClose(t *testing.T) {
	xfrmtest.RequireRoot(t)
	in := xfrmtest.Namespace(t)
	var p *Plane
	in(func() (err error) {
		p, err = New(Options{Handler: xfrm.Handler{IKE: func(xfrm.IKEDatagram) {}, Events: func([]xfrm.Event) {}}})
		return err
	})
	in(func() error { return p.AddTunnel(xfrm.Tunnel{Name: "vpn1", MTU: 1400, Scope: 1}) })
	xs := []xfrm.Stray{{Tunnel: "vpn1", Packet: template(64)}, {Outer: true, Packet: make([]byte, 64)}}
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			p.Inject(xs)
		}
	})
	for p.PlaneCounters().UnknownSPI == 0 {
		runtime.Gosched()
	}
	in(func() error { return p.RemoveTunnel("vpn1") })
	for p.PlaneCounters().NoTunnel == 0 {
		runtime.Gosched()
	}
	in(p.Close)
	was := p.PlaneCounters()
	p.Inject(xs)
	if is := p.PlaneCounters(); is != was {
		t.Errorf("%+v after Close, %+v before", is, was)
	}
	stop.Store(true)
	wg.Wait()
}

// ESP with an SPI that no SA here has goes where its scope's owner is, once; what was
// handed over already, or has no scope, is counted.
func TestStrayUnknownSPI(t *testing.T) {
	var got []xfrm.Stray
	p := &Plane{o: Options{Handler: xfrm.Handler{
		Stray: func(x xfrm.Stray) { got = append(got, x) },
		ScopeOf: func(spi ipsec.ESPSPI) (xfrm.Scope, bool) {
			return xfrm.Scope(spi), spi != 5
		},
	}}}
	a := &arrival{local: netip.MustParseAddrPort("192.0.2.1:4500"), remote: netip.MustParseAddrPort("192.0.2.9:4501"), udp: true, tos: 3}
	p.strayUnknown(7, []byte("a packet"), a)
	p.strayUnknown(5, []byte("a packet"), a)
	forwarded := *a
	forwarded.hop = hop{from: 2, last: true}
	p.strayUnknown(7, []byte("a packet"), &forwarded)
	if len(got) != 1 || got[0].Scope != 7 || !got[0].Outer || !got[0].UDPEncap || got[0].TOS != 3 || got[0].Remote != a.remote || got[0].Local != a.local {
		t.Errorf("%+v", got)
	}
	if c := p.PlaneCounters(); c.Strays != 1 || c.UnknownSPI != 2 {
		t.Errorf("%+v", c)
	}
}

// An inner packet that no SA takes goes to the member that would make one, once; where that
// is this member, or it was handed over already, it asks for an SA here.
func TestStrayNew(t *testing.T) {
	p, tn, s := bench(t)
	var got []xfrm.Stray
	asked, elsewhere := 0, true
	p.o.Handler.Stray = func(x xfrm.Stray) { got = append(got, x) }
	p.o.Handler.Begins = func(tunnel string) (xfrm.Scope, bool) { return 9, elsewhere && tunnel == "vpn1" }
	p.evs.deliver = func(es []xfrm.Event) { asked += len(es) }
	p.Remove(s.SPIIn)
	send := func(h hop) {
		b := newBatch()
		b.hop = h
		p.clock = func() time.Time { return time.Unix(int64(1000*(asked+1)), 0) }
		transmitted(p, tn, b, 1, template(64), p.clock())
		p.evs.flush()
	}
	send(hop{})
	if len(got) != 1 || got[0].Scope != 9 || got[0].Tunnel != "vpn1" || got[0].Outer || asked != 0 {
		t.Fatalf("%+v, %d asked for", got, asked)
	}
	send(hop{from: 2, last: true})
	elsewhere = false
	send(hop{from: 2})
	if len(got) != 1 || asked != 2 {
		t.Fatalf("%+v, %d asked for", got, asked)
	}

	// A dialup client's goes to the scope that has it, by its address.
	led := netip.Addr{}
	p.o.Handler.Leads = func(tunnel string, dst netip.Addr) (xfrm.Scope, bool) { led = dst; return 12, tunnel == "vpn1" }
	send(hop{})
	send(hop{from: 2})
	send(hop{from: 2, last: true})
	if in, _, _ := parseInner(template(64)); led != in.dst || len(got) != 3 || got[1].Scope != 12 || got[1].From != 0 || got[2].From != 2 || asked != 3 {
		t.Fatalf("led for %v, %+v, %d asked for", led, got, asked)
	}
}
