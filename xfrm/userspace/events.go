package userspace

import (
	"sync"
	"time"

	"tandem/xfrm"
)

// events keeps questions in the order in which the SAs decided on them, although
// several goroutines decide: an SA adds under its own lock, and one goroutine at a
// time delivers. A withdrawal delivered after a later question would otherwise
// lower what has been used already.
type events struct {
	deliver func([]xfrm.Event)
	mu      sync.Mutex
	pending []xfrm.Event
	sending sync.Mutex
}

func (e *events) add(ev xfrm.Event) {
	e.mu.Lock()
	e.pending = append(e.pending, ev)
	e.mu.Unlock()
}

// flush delivers what is pending; called without locks at the end of a batch.
func (e *events) flush() {
	e.mu.Lock()
	idle := len(e.pending) == 0
	e.mu.Unlock()
	if idle {
		return
	}
	e.sending.Lock()
	defer e.sending.Unlock()
	e.mu.Lock()
	l := e.pending
	e.pending = nil
	e.mu.Unlock()
	if len(l) > 0 {
		e.deliver(l)
	}
}

const tickEvery = 10 * time.Millisecond

// ticker looks after the leases that time may end. It sleeps while there are none.
type ticker struct {
	wake, stop chan struct{}
	mu         sync.Mutex
	list       []lane
}

// lane is one direction of an SA, with its lease.
type lane interface {
	tick(p *Plane, now time.Time) (settled bool)
}

func (t *ticker) add(l lane) {
	t.mu.Lock()
	t.list = append(t.list, l)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *ticker) run(p *Plane) {
	tm := time.NewTicker(tickEvery)
	tm.Stop()
	var work []lane
	for ticking := false; ; {
		var due <-chan time.Time
		if ticking {
			due = tm.C
		}
		select {
		case <-t.stop:
			tm.Stop()
			return
		case <-t.wake:
			if !ticking {
				ticking = true
				tm.Reset(tickEvery)
			}
			continue
		case <-due:
		}
		t.mu.Lock()
		work, t.list = t.list, work[:0]
		t.mu.Unlock()
		now := p.clock()
		kept := work[:0]
		for _, l := range work {
			if !l.tick(p, now) {
				kept = append(kept, l)
			}
		}
		t.mu.Lock()
		t.list = append(t.list, kept...)
		ticking = len(t.list) > 0
		t.mu.Unlock()
		clear(work[:cap(work)])
		work = work[:0]
		if !ticking {
			tm.Stop()
		}
		p.evs.flush()
	}
}
