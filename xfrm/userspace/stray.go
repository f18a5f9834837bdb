package userspace

import (
	"sync"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// hop says by whom a packet came: from is the member that handed it over, 0 for none;
// last that it goes no further.
type hop struct {
	from uint8
	last bool
}

// strayOuter hands an ESP packet of a silent SA to whoever knows its owner.
func (p *Plane) strayOuter(s *sa, pkt []byte, a *arrival) {
	if s.detached.Load() {
		p.strayUnknown(s.SPIIn, pkt, a)
		return
	}
	if p.o.Handler.Stray == nil || a.last || s.removed() {
		s.tun.inactive.Add(1)
		return
	}
	s.tun.strays.Add(1)
	p.o.Handler.Stray(xfrm.Stray{
		Scope: s.scope.id, Tunnel: s.tun.Name, From: a.from, Outer: true, UDPEncap: a.udp, TCP: a.tcp, TOS: a.tos,
		Local: a.local, Remote: a.remote, Packet: pkt,
	})
}

// strayUnknown does the same for an SPI that no SA here has.
func (p *Plane) strayUnknown(spi ipsec.ESPSPI, pkt []byte, a *arrival) {
	if h := &p.o.Handler; h.Stray != nil && h.ScopeOf != nil && !a.last {
		if scope, ok := h.ScopeOf(spi); ok {
			p.strays.Add(1)
			h.Stray(xfrm.Stray{Scope: scope, From: a.from, Outer: true, UDPEncap: a.udp, TCP: a.tcp, TOS: a.tos, Local: a.local, Remote: a.remote, Packet: pkt})
			return
		}
	}
	p.unknownSPI.Add(1)
}

// strayInner does the same for an inner packet that a silent SA would carry.
func (p *Plane) strayInner(s *sa, pkt []byte, in *inner, h hop) {
	switch {
	case in.linkLocal(): // of this host's own link
	case p.o.Handler.Stray == nil || h.last || s.removed():
		s.tun.inactive.Add(1)
	default:
		s.tun.strays.Add(1)
		p.o.Handler.Stray(xfrm.Stray{Scope: s.scope.id, Tunnel: s.tun.Name, From: h.from, Packet: pkt})
	}
}

// strayNew hands an inner packet that no SA takes to the member that has one or would make
// it, and says whether there is such a member.
func (p *Plane) strayNew(t *tunnel, pkt []byte, in *inner, h hop) bool {
	o := &p.o.Handler
	if o.Stray == nil || h.last {
		return false
	}
	var scope xfrm.Scope
	ok := false
	if o.Begins != nil {
		scope, ok = o.Begins(t.Name)
	}
	if !ok && o.Leads != nil {
		scope, ok = o.Leads(t.Name, in.dst)
	}
	if ok {
		t.strays.Add(1)
		p.o.Handler.Stray(xfrm.Stray{Scope: scope, Tunnel: t.Name, From: h.from, Packet: pkt})
	}
	return ok
}

// removed says that an SA is silent for another reason than its scope.
func (s *sa) removed() bool {
	_, active := s.scope.active()
	return active
}

// forwarded counts what of an SA's inbound traffic came through which member. It is
// made by the first such packet: the ordinary SA never needs it.
type forwarded struct {
	from            uint8
	packets, direct uint64
	reported        time.Time
}

const forwardedGap = 100 * time.Millisecond // between two ForwardedTraffic of an SA

// cameBy counts an authenticated packet; from is 0 for one that arrived here. Of one that
// two members have handed on it is not known where it arrived.
func (l *inLane) cameBy(p *Plane, from uint8, now time.Time) {
	f := l.fwd
	if f == nil {
		f = &forwarded{}
		l.fwd = f
	}
	if from == 0 {
		f.direct++
		return
	}
	if f.from != from {
		f.from, f.packets, f.direct = from, 0, 0
	}
	f.packets++
	if now.Sub(f.reported) < forwardedGap {
		return
	}
	p.evs.add(xfrm.ForwardedTraffic{SPIIn: l.sa.SPIIn, From: from, Packets: f.packets, Direct: f.direct})
	f.packets, f.direct, f.reported = 0, 0, now
}

// injector is what Inject works with. Its callers take turns, so that one epoch
// tells quiesce about all of them.
type injector struct {
	mu     sync.Mutex
	epoch  *epoch
	batch  *batch // nil until an inner packet comes
	merger merger
	closed bool
}

func (j *injector) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
}

// Inject processes other members' strays, in order.
func (p *Plane) Inject(xs []xfrm.Stray) {
	p.injectAll(xs)
	p.evs.flush()
}

func (p *Plane) injectAll(xs []xfrm.Stray) {
	j := &p.inject
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	j.epoch.enter()
	defer j.epoch.leave()
	now := p.clock()
	var to *tunnel // of what is in the batch; its sealing is locked
	send := func() {
		if to != nil {
			p.socks.flush(&j.batch.outbox)
			to.sealing.Unlock()
		}
		to = nil
	}
	defer func() {
		send()
		j.merger.flush()
	}()
	for i := range xs {
		x := &xs[i]
		if x.Outer {
			p.espIn(x.Packet, &arrival{local: x.Local, remote: x.Remote, tos: x.TOS, udp: x.UDPEncap, tcp: x.TCP, hop: hop{x.From, x.Last}}, &j.merger, now)
			continue
		}
		t := p.tunnelByName(x.Tunnel)
		if t == nil {
			p.noTunnel.Add(1)
			continue
		}
		t.injected.Add(1)
		if len(x.Packet) > maxMTU {
			t.tooBig.Add(1)
			continue
		}
		if j.batch == nil {
			j.batch = newBatch()
		}
		b := j.batch
		h := hop{x.From, x.Last}
		if to != t {
			send()
			t.sealing.Lock()
			to = t
		}
		b.hop = h
		p.outboundPacket(t, b, copy(b.in[slotRoom:], x.Packet), now)
	}
}

// setTunnel enters or, with nil, removes a tunnel; p.mu is held.
func (p *Plane) setTunnel(name string, t *tunnel) {
	p.tunnelsMu.Lock()
	defer p.tunnelsMu.Unlock()
	if t == nil {
		delete(p.tunnels, name)
	} else {
		p.tunnels[name] = t
	}
}

// tunnelByName is for Inject. What it finds stays usable until the caller's epoch
// ends: removeTunnel waits for that.
func (p *Plane) tunnelByName(name string) *tunnel {
	p.tunnelsMu.RLock()
	defer p.tunnelsMu.RUnlock()
	return p.tunnels[name]
}
