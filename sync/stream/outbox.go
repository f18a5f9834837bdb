package stream

import "sync"

// outbox holds the frames for one process that it has not acknowledged. Each link
// reads it with a cursor of its own.
type outbox struct {
	mu      sync.Mutex
	frames  []frame // numbers rise
	acked   uint64
	changed chan struct{} // closed and renewed at every addition
}

type frame struct {
	seq uint64
	b   []byte
}

func newOutbox() *outbox { return &outbox{changed: make(chan struct{})} }

func (o *outbox) add(seq uint64, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.frames = append(o.frames, frame{seq, b})
	close(o.changed)
	o.changed = make(chan struct{})
}

// after returns the frames above seq, or a channel that closes when there may be some.
func (o *outbox) after(seq uint64) ([]frame, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lo, hi := 0, len(o.frames)
	for lo < hi {
		if mid := (lo + hi) / 2; o.frames[mid].seq > seq {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == len(o.frames) {
		return nil, o.changed
	}
	return append([]frame(nil), o.frames[lo:]...), nil
}

// ack forgets what is acknowledged.
func (o *outbox) ack(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if seq <= o.acked {
		return
	}
	o.acked = seq
	n := 0
	for n < len(o.frames) && o.frames[n].seq <= seq {
		o.frames[n].b = nil
		n++
	}
	o.frames = o.frames[n:]
	if len(o.frames) == 0 {
		o.frames = nil
	}
}

// latest is a number of which only the newest value matters.
type latest struct {
	mu   sync.Mutex
	v    uint64
	wake chan struct{}
}

func newLatest() *latest { return &latest{wake: make(chan struct{}, 1)} }

func (l *latest) set(v uint64) {
	l.mu.Lock()
	l.v = v
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *latest) get() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.v
}
