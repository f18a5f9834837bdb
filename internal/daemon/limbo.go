package daemon

import (
	"bytes"
	"sync"
	"time"

	"tandem/xfrm"
)

const (
	limboTime = 500 * time.Millisecond // as long as a handover may take; older packets are of no use to anybody
	limboSize = 4096                   // packets
)

// limbo keeps packets of scopes that nobody is known to own for the moment: one is being
// handed over, or its owner has just been lost. It is bounded in time and number.
type limbo struct {
	mu sync.Mutex
	q  []held
}

type held struct {
	at time.Time
	x  xfrm.Stray
}

// add keeps a copy of the packet; a full limbo drops it.
func (l *limbo) add(now time.Time, x xfrm.Stray) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	if len(l.q) >= limboSize {
		return
	}
	x.Packet = bytes.Clone(x.Packet)
	l.q = append(l.q, held{now, x})
}

func (l *limbo) expire(now time.Time) {
	i := 0
	for i < len(l.q) && now.Sub(l.q[i].at) > limboTime {
		i++
	}
	l.q = l.q[i:]
}

// take gives back, in order, the packets that can go on now.
func (l *limbo) take(now time.Time, can func(*xfrm.Stray) bool) (xs []xfrm.Stray) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	rest := l.q[:0]
	for _, h := range l.q {
		if can(&h.x) {
			xs = append(xs, h.x)
		} else {
			rest = append(rest, h)
		}
	}
	clear(l.q[len(rest):])
	if l.q = rest; len(rest) == 0 {
		l.q = nil
	}
	return xs
}
