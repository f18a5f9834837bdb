package cluster

import (
	"testing"
	"time"

	"tandem/internal/config"
)

// TestRandom: faults of all kinds at random; the world checks its invariants at
// every step, and afterwards everything must come together. Half of the worlds are
// a virtual cluster's.
func TestRandom(t *testing.T) {
	seeds := uint64(480)
	if testing.Short() {
		seeds = 96
	}
	for seed := range seeds {
		w := newWorld(t, seed)
		w.scope = ScopeID(seed / 4 % 2 * 7)
		for _, n := range w.node[1:] {
			switch seed % 4 {
			case 1:
				n.ha.Override, n.ha.OverrideWaitTime, n.ha.Priority = true, time.Second, 100*int(n.id)
			case 2:
				n.ha.HBInterval, n.ha.HBLostThreshold = 100*time.Millisecond, 5
			case 3:
				n.ha.FailoverHoldTime = time.Second
				n.ha.Pingserver = config.Pingserver{Threshold: 5, FlipTimeout: 2 * time.Second, ForceReset: seed%8 == 3}
			}
		}
		w.node[1].boot()
		w.node[2].boot()
		w.pass(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
		for range 12 {
			w.fault()
			w.pass(time.Duration(w.rng.IntN(1+w.rng.IntN(1500))) * time.Millisecond)
		}
		w.cutAll(false)
		w.loss = 0
		for _, n := range w.node[1:] {
			n.slow, n.stubborn, n.diskDelay, n.diskErr, n.restart, n.monitors = false, false, 2*time.Millisecond, nil, 200*time.Millisecond, 2
			switch {
			case n.guard == nil:
				n.boot()
			default:
				n.thaw()
				if n.pair == nil {
					n.startDaemon()
				}
			}
			n.daemon(n.process, func() { n.pair.HandleMonitors(w.now, 2); n.pair.HandlePingservers(w.now, 0, 0) })
		}
		w.until(60*time.Second, "synchronised after everything healed", w.synchronised)
		w.pass(3 * time.Second)
		if !w.synchronised() {
			w.until(10*time.Second, "synchronised again", w.synchronised)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func (w *world) fault() {
	n := w.node[1+w.rng.IntN(2)]
	switch k := w.rng.IntN(17); k {
	case 0, 1:
		n.kill()
	case 2:
		if n.guard != nil {
			n.crash()
		}
	case 3, 4:
		if n.guard == nil {
			n.boot()
		}
	case 5:
		w.cutAll(true)
	case 6, 7:
		w.cutAll(false)
	case 8:
		l := w.rng.IntN(2)
		w.cut[l][1+w.rng.IntN(2)] = w.rng.IntN(2) == 0
	case 9:
		w.cut[0][n.id], w.cut[1][n.id] = true, true
	case 10:
		n.slow = !n.slow
	case 11:
		if n.pair != nil && n.guard != nil {
			n.stopped = true
		}
	case 12:
		if n.guard != nil && !n.frozen {
			n.frozen = true
			w.after(time.Duration(w.rng.IntN(800))*time.Millisecond, func() {
				if n.guard != nil && n.frozen {
					n.thaw()
				}
			})
		}
	case 13:
		if n.pair != nil {
			n.daemon(n.process, func() { _ = n.pair.Failover(w.now, w.rng.IntN(4) > 0) })
		}
	case 14:
		if n.pair != nil {
			n.monitors = w.rng.IntN(3)
			n.daemon(n.process, func() { n.pair.HandleMonitors(w.now, n.monitors) })
		}
	case 16:
		if n.pair != nil {
			n.pings(w.rng.IntN(10))
		}
	case 15:
		n.diskDelay = []time.Duration{time.Millisecond, 15 * time.Millisecond, 100 * time.Millisecond}[w.rng.IntN(3)]
		if w.rng.IntN(4) == 0 && n.guard == nil {
			n.diskLost = true
		}
	}
}
