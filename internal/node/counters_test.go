package node

import (
	"slices"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// After the death of an owner the peer's numbers and our floor move apart from all that
// was captured before (RFC 6311), and nothing that follows goes back below: not a bound
// that was asked for before, not what a later standby is told.
func TestCounterSyncAfterATakeover(t *testing.T) {
	gw, cl := plain(day, day)
	w := newWorld(t, 1, gw, cl)
	w.run(30*time.Second, "synchronised", w.synchronised)
	w.up(w.client, "gw", "net1")
	w.run(30*time.Second, "up", func() bool { return w.agree(1) && len(w.standby().sas) == 1 })
	dead := w.owner()
	var spi, far ipsec.ESPSPI
	for _, sa := range dead.sas {
		spi, far = sa.SPIIn, sa.SPIOut
	}
	wants := func(m *member, b ...xfrm.Bound) {
		m.do(func(n *Node) {
			var es []xfrm.Event
			for _, x := range b {
				es = append(es, xfrm.BoundWanted{Bound: x})
			}
			n.HandlePlane(w.now, es)
		})
		w.pass(time.Second)
	}
	wants(dead, xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: 1000})
	wants(w.client, xfrm.Bound{SPIIn: far, Dir: xfrm.Outbound, N: 1200})
	w.kill(dead)
	w.run(5*time.Second, "a survivor", func() bool { return w.owner() != nil })
	alive := w.owner()
	w.run(5*time.Second, "counters synchronised", func() bool { return len(alive.skipped) > 0 })
	floor, added := uint64(1000+1<<26), uint64(1200+1<<27)
	if want := []xfrm.Bound{{SPIIn: spi, Dir: xfrm.Inbound, N: floor}}; !slices.Equal(alive.skipped, want) {
		t.Errorf("the survivor skips %v, want %v", alive.skipped, want)
	}
	if want := []xfrm.Bound{{SPIIn: far, Dir: xfrm.Outbound, N: added}}; !slices.Equal(w.client.skipped, want) {
		t.Errorf("the client skips %v, want %v", w.client.skipped, want)
	}
	fence := func(m *member) uint64 { return m.node.sas[spi].fence }
	wants(alive, xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: 1100}) // asked for before
	if n := fence(alive); n != floor {
		t.Errorf("the fence is %d", n)
	}

	dead.boot(dead.node.cfg)
	w.run(30*time.Second, "synchronised again", w.synchronised)
	if n := fence(dead); n != floor {
		t.Errorf("a new standby holds a fence of %d", n)
	}
	wants(alive, xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: 1000})
	wants(alive, xfrm.Bound{SPIIn: spi, Dir: xfrm.Outbound, N: 3000})
	if a, b := dead.node.bounds(), alive.node.bounds(); !slices.Equal(a, b) || fence(dead) != floor {
		t.Errorf("the standby holds %v, the owner %v", a, b)
	}
	// A standby learns of it from the record: here that of the next takeover.
	wants(alive, xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: added + 10})
	w.kill(alive)
	w.run(5*time.Second, "the other survivor", func() bool { return w.owner() == dead })
	alive.boot(alive.node.cfg)
	w.run(30*time.Second, "counters synchronised again", func() bool { return len(dead.skipped) > 0 && w.synchronised() })
	w.pass(time.Second)
	if n := fence(alive); n != added+10+1<<26 || fence(dead) != n {
		t.Errorf("fences of %d and %d", n, fence(dead))
	}
}

// A planned handover carries exact windows: nobody skips anything.
func TestNoCounterSyncAfterAHandover(t *testing.T) {
	gw, cl := plain(day, day)
	w := newWorld(t, 1, gw, cl)
	w.run(30*time.Second, "synchronised", w.synchronised)
	w.up(w.client, "gw", "net1")
	w.run(30*time.Second, "up", func() bool { return w.agree(1) && len(w.standby().sas) == 1 })
	from := w.owner()
	for spi := range from.sas {
		from.do(func(n *Node) {
			n.HandlePlane(w.now, []xfrm.Event{xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: 1000}}})
		})
	}
	from.do(func(n *Node) {
		if err := n.Failover(w.now, true); err != nil {
			t.Error(err)
		}
	})
	w.run(10*time.Second, "handed over", func() bool { return w.owner() == from.other() })
	w.pass(10 * time.Second)
	for _, m := range []*member{w.gw[0], w.gw[1], w.client} {
		if len(m.skipped) > 0 {
			t.Errorf("%s skips %v", m.name, m.skipped)
		}
	}
}
