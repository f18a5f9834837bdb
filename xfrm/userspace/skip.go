package userspace

import "tandem/xfrm"

// Skip uses sequence numbers up, and waits for the packets that were sealed before, that
// is for the end of at most one batch per goroutine: what is sent from then on lies above.
func (p *Plane) Skip(bs []xfrm.Bound) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := false
	for _, b := range bs {
		s := p.find(b.SPIIn)
		switch {
		case s == nil:
		case b.Dir == xfrm.Outbound:
			s.out.skip(b.N)
			wait = true
		default:
			s.in.skip(b.N)
		}
	}
	if wait {
		p.quiesce()
	}
}

func (l *outLane) skip(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := l.sa.scope.works()
	if !active {
		if n > l.send.Bound() {
			l.send.Record(n)
		}
		return
	}
	l.resume(gen)
	l.send.Skip(n)
}

func (l *inLane) skip(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := l.sa.scope.works()
	if !active {
		if n > l.recv.Bound() {
			l.recv.Record(n)
		}
		return
	}
	l.resume(gen)
	l.recv.Skip(n)
}
