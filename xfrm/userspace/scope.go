package userspace

import (
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// scope is read once per packet: bit 0 says that it works, bit 1 that it is retired and
// takes nothing more, the rest counts activations. An SA whose own generation differs
// resumes with its first packet.
type scope struct {
	id    xfrm.Scope
	state atomic.Uint64
}

const (
	scopeWorks   = 1
	scopeRetired = 2
	generation   = 4 // one of it
)

// active says whether the scope takes packets.
func (s *scope) active() (gen uint64, ok bool) {
	v := s.state.Load()
	return v / generation, v&(scopeWorks|scopeRetired) == scopeWorks
}

// works says whether it finishes what it took.
func (s *scope) works() (gen uint64, ok bool) {
	v := s.state.Load()
	return v / generation, v&scopeWorks != 0
}

// epoch is odd while its goroutine works on a batch, and so may still act on what
// it read before. One writer; padded so that writers share no cache line.
type epoch struct {
	n atomic.Uint64
	_ [56]byte
}

func (e *epoch) enter() { e.n.Add(1) }
func (e *epoch) leave() { e.n.Add(1) }

func (p *Plane) newEpoch() *epoch {
	e := &epoch{}
	p.epochs = append(p.epochs, e)
	return e
}

// dropEpoch forgets the epoch of a goroutine that ends; p.mu is held.
func (p *Plane) dropEpoch(e *epoch) {
	p.epochs = slices.DeleteFunc(p.epochs, func(x *epoch) bool { return x == e })
}

// quiesce returns when every batch that was under way has ended.
func (p *Plane) quiesce() {
	for _, e := range p.epochs {
		was := e.n.Load()
		for i := 0; was&1 == 1 && e.n.Load() == was; i++ {
			if i < 1000 {
				runtime.Gosched()
			} else {
				time.Sleep(20 * time.Microsecond)
			}
		}
	}
}

// scope finds or makes a scope; p.mu is held.
func (p *Plane) scope(id xfrm.Scope) *scope {
	s := p.scopes[id]
	if s == nil {
		s = &scope{id: id}
		p.scopes[id] = s
	}
	return s
}

// Activate flips all SAs of a scope with one store. Activating an active scope
// changes nothing.
func (p *Plane) Activate(id xfrm.Scope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.scope(id)
	switch v := s.state.Load(); {
	case v&scopeWorks == 0:
		s.state.Store((v/generation+1)*generation | scopeWorks)
	case v&scopeRetired != 0:
		s.state.Store(v &^ scopeRetired)
	}
}

// Retire lets a scope take nothing more. The questions of what it took have been put
// when it returns.
func (p *Plane) Retire(id xfrm.Scope) {
	p.mu.Lock()
	s := p.scope(id)
	if v := s.state.Load(); v&scopeWorks != 0 {
		s.state.Store(v | scopeRetired)
	}
	p.quiesce()
	p.mu.Unlock()
	p.evs.flush()
}

// Deactivate silences a scope and waits for the packets under way, that is for
// the end of at most one batch per goroutine. Packets that waited for a bound are
// dropped when the SA resumes.
func (p *Plane) Deactivate(id xfrm.Scope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.scope(id)
	s.state.Store(s.state.Load() &^ (scopeWorks | scopeRetired))
	p.quiesce()
	p.endLate(s)
	p.endStreams(s)
}

// Windows exports the SAs of a scope.
func (p *Plane) Windows(id xfrm.Scope) []xfrm.Window {
	p.mu.Lock()
	defer p.mu.Unlock()
	sc := p.scope(id)
	var ws []xfrm.Window
	for _, s := range p.sas.list() {
		if s.scope == sc {
			ws = append(ws, s.export())
		}
	}
	return ws
}

// Detach takes pairs out and exports them, unless packets of theirs wait for a bound.
func (p *Plane) Detach(spis []ipsec.ESPSPI) (ws []xfrm.Window, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var gone []*sa
	for _, spi := range spis {
		if s := p.find(spi); s != nil {
			gone = append(gone, s)
		}
	}
	if !leave(gone) {
		return nil, false
	}
	for _, s := range gone {
		p.sas.remove(s.SPIIn)
		if s.order != 0 {
			s.tun.routes.remove(s)
			s.order = 0
		}
	}
	p.quiesce()
	for _, s := range gone {
		ws = append(ws, s.export())
		s.in.open, s.out.seal = nil, nil
	}
	return ws, true
}

// leave closes all lanes of the pairs, or none if a packet waits in one of them. Nobody
// else holds two lanes at a time.
func leave(pairs []*sa) (ok bool) {
	for _, s := range pairs {
		s.in.mu.Lock()
		s.out.mu.Lock()
		defer s.in.mu.Unlock()
		defer s.out.mu.Unlock()
	}
	for _, s := range pairs {
		gen, works := s.scope.works()
		if works && (gen == s.in.recv.Generation() && len(s.in.queue) > 0 || gen == s.out.send.Generation() && len(s.out.queue) > 0) {
			return false
		}
	}
	for _, s := range pairs {
		s.in.gone, s.out.gone = true, true
		s.detached.Store(true)
	}
	return true
}

// SetWindows imports exact windows. One holds for the next activation, unless a
// higher bound is recorded before that: then somebody has gone on meanwhile.
func (p *Plane) SetWindows(ws []xfrm.Window) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range ws {
		if s := p.find(w.SPIIn); s != nil {
			s.importWindow(w)
		}
	}
}
