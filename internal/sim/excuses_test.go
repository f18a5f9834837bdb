package sim

import (
	"log/slog"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/node"
)

// TestBegunAloneBeforeASplit: a request belongs to a split if its sender went on alone a
// moment before, and who owns beside it does not know of it.
func TestBegunAloneBeforeASplit(t *testing.T) {
	const now = time.Minute
	for name, c := range map[string]struct {
		epochAt, at time.Duration
		known, want bool
	}{
		"alone for milliseconds":          {now - 3*time.Millisecond, now - 2*time.Millisecond, false, true},
		"before it went on alone":         {now - 3*time.Millisecond, now - 4*time.Millisecond, false, false},
		"alone for long":                  {now - 2*time.Second, now - 2*time.Millisecond, false, false},
		"acknowledged by who owns beside": {now - 3*time.Millisecond, now - 2*time.Millisecond, true, false},
	} {
		s := &side{apart: map[uint32]bool{}}
		l := &lifetime{epochAt: c.epochAt}
		l.sent(sentMessage{hash: 7, at: c.at, id: 1, side: s})
		l.sent(sentMessage{hash: 8, at: c.at}) // a response
		l.wentAlone(now, &lifetime{acked: acknowledged{messages: map[uint64]bool{7: c.known}}})
		if s.apart[1] != c.want {
			t.Errorf("%s: belongs to the split: %v", name, s.apart[1])
		}
	}
}

// TestGivenUpForLosses: an owner is right to end an IKE SA only if nobody has owned beside
// it since it asked, and the network lost most of what it asked.
func TestGivenUpForLosses(t *testing.T) {
	k := ipsec.IKESPIs{I: 0x5d81c8bd7fd7501b, R: 0x9e72baa200648607}
	for name, c := range map[string]struct {
		lost   int
		stops  time.Duration // the other owner
		beside bool
		want   bool
	}{
		"alone, all lost":                   {4, 30 * time.Second, false, true},
		"one of four was lost":              {1, 30 * time.Second, false, false},
		"another one owned when it asked":   {4, 50 * time.Second, false, false},
		"another one owns when it gives up": {4, 0, true, false},
	} {
		w := newWorld(ForVClusterSeed(1, 0), nil)
		x := w.pairs[0].realms[0]
		d, o := &daemon{h: x.pair.gw[0]}, x.pair.gw[1]
		l, other := &lifetime{host: d.h}, &lifetime{host: o}
		d.h.of(x).life, o.of(x).life = l, other
		for _, y := range w.pairs[0].realms[1:] {
			d.h.of(y).life = &lifetime{host: d.h}
		}
		r := &x.rule
		l.active, other.active = true, true
		r.active = []*lifetime{l, other}
		w.now = c.stops
		if !c.beside {
			r.inactive(other)
		}
		s := w.wire.side(k, true)
		s.attempts[4], s.lost[4] = 4, c.lost
		l.sent(sentMessage{spis: k, at: 45 * time.Second, id: 4, side: s})
		w.now = time.Minute
		w.gaveUp(d, node.Log{Attrs: []slog.Attr{slog.String("spi", k.String()), slog.Uint64("message_id", 4)}})
		if at, ok := r.unanswered[k]; ok != c.want || ok && at != w.now {
			t.Errorf("%s: excused: %v (%v)", name, ok, at)
		}
	}
}

// TestBegunAloneBeforeADeath: what an owner began alone before it died belongs to a split
// only if something had come between the two.
func TestBegunAloneBeforeADeath(t *testing.T) {
	for _, cut := range []bool{true, false} {
		w := newWorld(ForFacingSeed(1, 0), nil)
		x := w.pairs[0].realms[0]
		r, d := &x.rule, &daemon{h: x.pair.gw[1]}
		l, s := &lifetime{host: x.pair.gw[0], epochAt: time.Minute, dead: true}, &side{apart: map[uint32]bool{}}
		l.sent(sentMessage{hash: 7, at: time.Minute, id: 1, side: s})
		d.h.of(x).life = &lifetime{host: d.h}
		r.last, w.now = l, time.Minute+time.Millisecond
		r.parted = -time.Minute
		if cut {
			x.pair.links[0].cut = [2]int{1, 0}
		}
		if r.activates(d); s.apart[1] != cut {
			t.Errorf("heartbeats cut: %v, belongs to a split: %v", cut, s.apart[1])
		}
	}
}
