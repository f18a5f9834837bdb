package ike

import (
	"container/heap"
	"time"
)

// timed is what has one earliest deadline: an IKE SA or a tunnel.
type timed interface {
	timer() *timer
	// deadline is the earliest moment at which fire has something to do.
	deadline() (time.Time, bool)
	fire(e *Engine)
}

// timer is an element of the heap; at is -1 outside of it.
type timer struct {
	when time.Time
	at   int
	in   bool
	of   timed
}

type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }
func (h *timerHeap) Push(x any)        { t := x.(*timer); t.at = len(*h); *h = append(*h, t) }
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}

// arm puts the deadline of x into the heap, moves it or takes it out.
func (e *Engine) arm(x timed) {
	t := x.timer()
	t.of = x
	when, ok := x.deadline()
	if !e.active {
		ok = false
	}
	switch {
	case !ok && t.in:
		heap.Remove(&e.timers, t.at)
		t.in = false
	case ok && t.in:
		if !t.when.Equal(when) {
			t.when = when
			heap.Fix(&e.timers, t.at)
		}
	case ok:
		t.when, t.in = when, true
		heap.Push(&e.timers, t)
	}
}

// NextTimeout is the earliest moment at which HandleTimeout has something to do.
func (e *Engine) NextTimeout() (time.Time, bool) {
	if len(e.timers) == 0 {
		return time.Time{}, false
	}
	return e.timers[0].when, true
}

// maxTimeouts bounds one HandleTimeout, so that datagrams are not kept waiting.
const maxTimeouts = 256

// HandleTimeout does what is due. Each IKE SA's and each tunnel's work is an event of its own.
func (e *Engine) HandleTimeout(now time.Time) {
	for range maxTimeouts {
		if len(e.timers) == 0 || e.timers[0].when.After(now) {
			return
		}
		t := e.timers[0]
		end := e.begin(now)
		t.of.fire(e)
		e.arm(t.of)
		if t.in && !t.when.After(now) {
			// Nothing may spin: whoever is still due is asked again a moment later.
			t.when = now.Add(10 * time.Millisecond)
			heap.Fix(&e.timers, t.at)
		}
		end()
	}
}

// earliest collects deadlines.
type earliest struct {
	t  time.Time
	ok bool
}

func (x *earliest) add(t time.Time) {
	if !t.IsZero() && (!x.ok || t.Before(x.t)) {
		x.t, x.ok = t, true
	}
}
