package sim

import (
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// TestWhatIsLeftOut: below the floor of a synchronisation of replay counters lies only what
// the peer sent before it answered, or the other side of its split did.
func TestWhatIsLeftOut(t *testing.T) {
	const answered, skipped = time.Minute, time.Minute + 20*time.Millisecond
	for name, c := range map[string]struct {
		answers []time.Duration
		at      time.Duration
		apart   bool
		lost    bool // rightly
	}{
		"sent before the answer":                         {[]time.Duration{answered}, answered - time.Millisecond, false, true},
		"sent after the answer":                          {[]time.Duration{answered}, answered + time.Millisecond, false, false},
		"sent after the answer, in a split of the peers": {[]time.Duration{answered}, answered + time.Millisecond, true, true},
		"between two answers":                            {[]time.Duration{answered - time.Second, answered}, answered - time.Millisecond, false, true},
		"before an answer that is not in the floor yet":  {[]time.Duration{answered, skipped + time.Second}, skipped, false, false},
	} {
		w := newWorld(ForFacingSeed(1, 0), nil)
		x := w.pairs[0].realms[0]
		d := &daemon{h: x.pair.gw[0]}
		d.p = newPlane(d, 1)
		s := &sa{scope: d.p.scope(onlyScope), skipped: 1000, skippedAt: skipped}
		tunnel := w.tunnels[0]
		tunnel.answers[1] = c.answers
		tunnel.answers[0] = []time.Duration{answered - time.Hour} // our own are no matter
		x.ledger.refused(w, d, s, &sealed{seq: 500, inner: &packet{flow: &flow{tunnel: tunnel}}, at: c.at, apart: c.apart})
		if n := len(w.Result.Violations); n == 0 != c.lost {
			t.Errorf("%s: %d violations", name, n)
		}
	}
}

// TestRaisedInASplit: numbers that one side of a split has raised at its peer's request are
// used ones, and lost with its memory.
func TestRaisedInASplit(t *testing.T) {
	for _, split := range []bool{true, false} {
		w := newWorld(ForFacingSeed(1, 0), nil)
		x := w.pairs[0].realms[0]
		d := &daemon{h: x.pair.gw[0]}
		d.p = newPlane(d, 1)
		w.now = time.Minute
		l := &lifetime{host: d.h, epochAt: time.Minute, active: true}
		d.h.of(x).life, x.rule.split, x.rule.splitAt = l, split, time.Minute
		d.p.activate(onlyScope)
		scope := d.p.scope(onlyScope)
		s := &sa{scope: scope, out: esp.NewSender(scope.gen, 32, 1<<32), in: esp.NewReceiver(scope.gen, 0, 64, 1<<32)}
		s.SPIIn, s.SPIOut = 1, 2
		d.p.sas[s.SPIIn] = s
		d.p.carry(node.Skip{Bounds: []xfrm.Bound{{SPIIn: ipsec.ESPSPI(1), Dir: xfrm.Outbound, N: 1 << 27}}})
		x.rule.died(d.h, d)
		if r := x.ledger.record(s.SPIOut, s.keyOut); r.tainted > 0 != split {
			t.Errorf("in a split %v: the numbers of the SA are judged: %v", split, r.tainted == 0)
		}
	}
}
