package userspace

import (
	"sync"
	"time"
)

const (
	sweepEvery = 15 * time.Second
	warmFor    = 30 * time.Second // after the last packet an SA keeps its ciphers
)

// warm lists the SAs that have built ciphers, which idle ones give back: they are most of
// what a pair weighs, and are made again in a microsecond. What must not be forgotten is
// not theirs: sequence numbers, the window, the counter of explicit IVs.
type warm struct {
	mu    sync.Mutex
	list  []*sa
	timer *time.Timer
	ended bool
}

// add is called with a lane's lock held, after it has built its ciphers.
func (w *warm) add(p *Plane, s *sa) {
	if !s.warm.CompareAndSwap(false, true) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, s)
	if w.timer == nil && !w.ended {
		w.timer = time.AfterFunc(sweepEvery, func() { w.sweep(p) })
	}
}

func (w *warm) sweep(p *Plane) {
	w.mu.Lock()
	work := w.list
	w.list = nil
	w.mu.Unlock()
	now := p.clock()
	kept := work[:0]
	for _, s := range work {
		s.warm.Store(false) // whoever builds again from now on enlists again
		if s.cool(now) && s.warm.CompareAndSwap(false, true) {
			kept = append(kept, s)
		}
	}
	clear(work[len(kept):])
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(kept, w.list...)
	switch {
	case w.timer == nil || w.ended:
	case len(w.list) > 0:
		w.timer.Reset(sweepEvery)
	default:
		w.timer = nil
	}
}

// cool gives up the ciphers of idle directions; warm: one of them keeps some.
func (s *sa) cool(now time.Time) (warm bool) {
	s.out.mu.Lock()
	if now.Sub(s.out.last) >= warmFor {
		s.out.seal = nil
	}
	warm = s.out.seal != nil
	s.out.mu.Unlock()
	s.in.mu.Lock()
	if now.Sub(s.in.last) >= warmFor {
		s.in.open = nil
	}
	warm = warm || s.in.open != nil
	s.in.mu.Unlock()
	return warm
}

func (w *warm) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.timer != nil {
		w.timer.Stop()
	}
}
