package userspace

import (
	"time"

	"tandem/internal/ipsec"
)

// maxLate bounds the pairs that linger: whoever has peers that rekey without an end loses
// their last packets, not its memory.
const maxLate = 4096

// Linger ends a pair as Remove does, but for what its peer sent before it heard of that:
// the inbound direction, with its replay window, goes on for d. Nobody else has the SA, so
// there is no fence to keep; and it goes with its scope's activation, as nothing of it is in
// the windows that a handover carries.
func (p *Plane) Linger(spi ipsec.ESPSPI, d time.Duration) {
	p.mu.Lock()
	if s := p.find(spi); s != nil {
		if gen, active := s.scope.active(); active && d > 0 && len(p.late) < maxLate {
			p.linger(s, gen)
			time.AfterFunc(d, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				if _, still := p.late[s]; still {
					p.remove(s)
				}
			})
		} else {
			p.end(s)
		}
	}
	p.mu.Unlock()
	p.evs.flush()
}

func (p *Plane) linger(s *sa, gen uint64) {
	s.late.Store(true)
	p.late[s] = struct{}{}
	l := &s.in
	l.mu.Lock()
	l.resume(gen)
	l.recv.Unbind()
	for i := range l.queue {
		l.deliver(l.queue[i].packet())
	}
	freeWaiting(l.queue)
	l.queue = nil
	l.mu.Unlock()
	p.sendAgain(s, p.removeOut(s), p.clock())
}

// endLate removes the lingering pairs of a scope; p.mu is held.
func (p *Plane) endLate(sc *scope) {
	for s := range p.late {
		if s.scope == sc {
			p.remove(s)
		}
	}
}

// find finds a pair, but for those that linger.
func (p *Plane) find(spi ipsec.ESPSPI) *sa {
	if s := p.sas.get(spi); s != nil && !s.late.Load() {
		return s
	}
	return nil
}
