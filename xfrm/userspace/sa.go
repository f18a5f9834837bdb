package userspace

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// sa is a Child SA. Its two directions have a lock each, which in the ordinary
// case only one goroutine takes.
type sa struct {
	ipsec.ChildSA
	tun        *tunnel
	scope      *scope
	iv         *ipsec.IVCounter
	layout     esp.Layout
	soft, hard uint64
	peer       atomic.Pointer[peer]
	sendErrors atomic.Uint64
	// Inner packets that were counted as received, and that the interface did not take.
	lost, lostBytes atomic.Uint64

	order    uint64      // of SetOutbound; 0: not in use. Guarded by the plane's mutex.
	detached atomic.Bool // both lanes are gone, to another member
	late     atomic.Bool // see Linger
	warm     atomic.Bool // it has ciphers, and the plane's list knows

	out outLane
	in  inLane
}

// peer is the outer end of an SA; it is replaced as a whole.
type peer struct {
	local, remote netip.AddrPort
	udp           bool
	tcp           bool         // with udp: in a TCP connection instead
	mtu           atomic.Int32 // of the path, bytes; 0: unknown
	mtuAt         atomic.Int64 // when it was asked for, Unix nanoseconds
	gso           atomic.Int32 // whether buffers are cut on the way to it: gsoWorks, …
}

func (p *peer) v6() bool { return p.remote.Addr().Is6() }

type outLane struct {
	mu     sync.Mutex
	sa     *sa
	gone   bool
	listed bool // the ticker knows this lane
	send   esp.Sender
	seal   *esp.Outbound // nil until the first packet
	queue  []waitingPacket
	warned [2]bool // Expiring soft and hard were reported

	packets, bytes, errors, selector uint64
	last                             time.Time
}

type inLane struct {
	mu     sync.Mutex
	sa     *sa
	gone   bool
	listed bool
	seen   bool // FirstInbound was reported
	recv   esp.Receiver
	open   *esp.Inbound
	queue  []waitingPacket
	warned [2]bool
	moved  time.Time // last PeerMoved
	fwd    *forwarded

	packets, bytes, errors, replayed, fenced, authFailed, selector uint64
	last                                                           time.Time
}

// Install adds a Child SA. Into an active scope it comes as new: its numbers
// begin at 1. Into an inactive scope it comes as known from elsewhere: on
// activation it goes on above the ceiling and rejects up to the fence.
func (p *Plane) Install(x xfrm.SA) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	tn := p.tunnels[x.Phase1]
	if tn == nil {
		return fmt.Errorf("userspace: SA %v: no tunnel %s", x.SPIIn, x.Phase1)
	}
	if p.find(x.SPIIn) != nil {
		return fmt.Errorf("userspace: SA %v is installed already", x.SPIIn)
	}
	l, err := esp.LayoutOf(x.Suite)
	if err != nil {
		return err
	}
	if x.Suite.Encr.AEAD() && x.IV == nil {
		return fmt.Errorf("userspace: SA %v has no IV counter", x.SPIIn)
	}
	s := &sa{ChildSA: x.ChildSA, tun: tn, scope: p.scope(x.Scope), iv: x.IV, layout: l, soft: x.SoftBytes, hard: x.HardBytes}
	if err := s.setPeer(x.Local, x.Remote, x.UDPEncap, x.TCP); err != nil {
		return err
	}
	p.socks.streams.bind(s.peer.Load())
	gen, _ := s.scope.active()
	if x.Known {
		gen-- // of another activation than the present one
	}
	if late := p.sas.get(x.SPIIn); late != nil {
		p.remove(late)
	}
	last := esp.MaxSequence(x.Suite.ESN)
	s.out = outLane{sa: s, send: esp.NewSender(gen, x.Ceiling, last)}
	s.in = inLane{sa: s, recv: esp.NewReceiver(gen, x.Fence, x.ReplayWindow, last)}
	p.sas.put(s)
	return nil
}

func (s *sa) setPeer(local, remote netip.AddrPort, udp, tcp bool) error {
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	if !remote.IsValid() || local.Addr().IsValid() && local.Addr().Is4() != remote.Addr().Is4() {
		return fmt.Errorf("userspace: SA %v: outer addresses %v and %v", s.SPIIn, local, remote)
	}
	if !local.Addr().IsValid() {
		any := netip.IPv6Unspecified()
		if remote.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		local = netip.AddrPortFrom(any, local.Port())
	}
	s.peer.Store(&peer{local: local, remote: remote, udp: udp || tcp, tcp: tcp})
	return nil
}

// SetPeer changes the outer addresses.
func (p *Plane) SetPeer(spi ipsec.ESPSPI, local, remote netip.AddrPort, udp, tcp bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.find(spi); s != nil {
		if err := s.setPeer(local, remote, udp, tcp); err != nil {
			p.log.Warn("outer addresses not changed", "spi", spi, "err", err)
			return
		}
		p.socks.streams.bind(s.peer.Load())
	}
}

// SetOutbound makes a pair the newest one for its selectors, or stops it.
func (p *Plane) SetOutbound(spi ipsec.ESPSPI, use bool) {
	p.mu.Lock()
	s := p.find(spi)
	if s == nil {
		p.mu.Unlock()
		return
	}
	if s.order != 0 {
		s.tun.routes.remove(s)
		s.order = 0
	}
	if use {
		p.order++
		s.order = p.order
		s.tun.routes.add(s)
		p.releaseAcquires(s.tun, p.clock())
	}
	p.mu.Unlock()
	p.evs.flush()
}

// Remove deletes a pair. What waits for its bounds is not lost with it: whoever
// removes an SA has the whole sync set's word that it is gone, so nobody can
// accept a replay of what is delivered now; and what was to be sent goes through
// the SA that matches it next, as after a rekey.
func (p *Plane) Remove(spi ipsec.ESPSPI) {
	p.mu.Lock()
	if s := p.find(spi); s != nil {
		p.end(s)
	}
	p.mu.Unlock()
	p.evs.flush()
}

// end is Remove under the lock.
func (p *Plane) end(s *sa) {
	now := p.clock()
	undelivered, unsent := p.remove(s)
	s.in.mu.Lock()
	for i := range undelivered {
		s.in.deliver(undelivered[i].packet())
	}
	s.in.mu.Unlock()
	freeWaiting(undelivered)
	p.sendAgain(s, unsent, now)
}

// sendAgain sends what waited at an SA that sends no more through the one that matches next.
func (p *Plane) sendAgain(s *sa, unsent []waitingPacket, now time.Time) {
	for i := range unsent {
		w := &unsent[i]
		in, pkt, ok := parseInner(w.packet())
		if next := s.tun.routes.lookup(&in); ok && next != nil {
			p.out.hop = w.hop
			p.out.packets.whole(w.buf, slotRoom, len(pkt))
			p.sealFor(next, &p.out.packets, &in, &p.out.outbox, now)
		}
	}
	freeWaiting(unsent)
	p.out.hop = hop{}
	p.socks.flush(&p.out.outbox)
}

// remove takes a pair out and returns what waited for its bounds in this activation.
func (p *Plane) remove(s *sa) (in, out []waitingPacket) {
	p.sas.remove(s.SPIIn)
	delete(p.late, s)
	out = p.removeOut(s)
	gen, active := s.scope.works()
	s.in.mu.Lock()
	if active && gen == s.in.recv.Generation() {
		in = s.in.queue
	}
	s.in.gone, s.in.queue, s.in.open = true, nil, nil
	s.in.mu.Unlock()
	return in, out
}

// removeOut takes the outbound direction out and returns what waited there.
func (p *Plane) removeOut(s *sa) (out []waitingPacket) {
	if s.order != 0 {
		s.tun.routes.remove(s)
		s.order = 0
	}
	gen, active := s.scope.works()
	s.out.mu.Lock()
	if active && gen == s.out.send.Generation() {
		out = s.out.queue
	}
	s.out.gone, s.out.queue, s.out.seal = true, nil, nil
	s.out.mu.Unlock()
	return out
}

// resume brings the lane to a new activation; the lock is held.
func (l *outLane) resume(gen uint64) {
	if l.send.Activate(gen) {
		freeWaiting(l.queue)
		l.queue = nil
		l.warned = [2]bool{}
	}
}

func (l *inLane) resume(gen uint64) {
	if l.recv.Activate(gen) {
		l.seen, l.fwd = false, nil
		freeWaiting(l.queue)
		l.queue = nil
		l.warned = [2]bool{}
	}
}

// export is the exact state; it resumes first, since an SA without a packet in
// this activation has not yet taken notice of it.
func (s *sa) export() xfrm.Window {
	gen, _ := s.scope.works()
	w := xfrm.Window{SPIIn: s.SPIIn}
	s.out.mu.Lock()
	s.out.resume(gen)
	w.OutSeq = s.out.send.Seq()
	s.out.mu.Unlock()
	s.in.mu.Lock()
	s.in.resume(gen)
	for _, q := range s.in.queue {
		s.in.recv.Forget(q.seq)
	}
	freeWaiting(s.in.queue)
	s.in.queue = nil
	w.InSeq, w.InAccepted = s.in.recv.Export()
	s.in.mu.Unlock()
	return w
}

func (s *sa) importWindow(w xfrm.Window) {
	gen, active := s.scope.works()
	if !active {
		gen++
	}
	s.out.mu.Lock()
	s.out.send.Import(w.OutSeq, gen)
	s.out.mu.Unlock()
	s.in.mu.Lock()
	s.in.recv.Import(w.InSeq, w.InAccepted, gen)
	s.in.mu.Unlock()
}

func (s *sa) counters() (c xfrm.Counters) {
	s.out.mu.Lock()
	o := &s.out
	c.OutPackets, c.OutBytes, c.OutErrors, c.OutSelector = o.packets, o.bytes, o.errors+s.sendErrors.Load(), o.selector
	c.LastOut, c.OutSeq, c.Ceiling = o.last, o.send.Seq(), o.send.Bound()
	s.out.mu.Unlock()
	s.in.mu.Lock()
	i := &s.in
	lost := s.lost.Load()
	c.InPackets, c.InBytes, c.InErrors = i.packets-lost, i.bytes-s.lostBytes.Load(), i.errors+lost
	c.InReplayed, c.InFenced, c.InAuthFailed, c.InSelector = i.replayed, i.fenced, i.authFailed, i.selector
	c.LastIn, c.InSeq, c.Fence = i.last, i.recv.Window().Top(), i.recv.Bound()
	c.FenceWidened = i.recv.Widened()
	s.in.mu.Unlock()
	if s.iv != nil {
		c.IVUsed = s.iv.Used()
	}
	return c
}

// SetBounds answers questions, or on a standby records what the owner may use.
func (p *Plane) SetBounds(bs []xfrm.Bound) {
	p.mu.Lock()
	now := p.clock()
	for _, b := range bs {
		s := p.find(b.SPIIn)
		if s == nil {
			continue
		}
		if b.Dir == xfrm.Outbound {
			p.setCeiling(s, b.N, now)
		} else {
			p.setFence(s, b.N, now)
		}
	}
	p.mu.Unlock()
	p.evs.flush()
}

func (p *Plane) setCeiling(s *sa, n uint64, now time.Time) {
	l := &s.out
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := s.scope.works()
	if !active {
		l.send.Record(n)
		return
	}
	l.resume(gen)
	l.send.Grant(n)
	for len(l.queue) > 0 && p.sealWaiting(l, now) {
	}
	p.socks.flush(&p.out.outbox)
	l.look(p)
}

func (p *Plane) setFence(s *sa, n uint64, now time.Time) {
	l := &s.in
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := s.scope.works()
	if !active {
		l.recv.Record(n)
		return
	}
	l.resume(gen)
	l.recv.Grant(n)
	kept := l.queue[:0]
	for i, q := range l.queue {
		pass, question, ask := l.recv.Retry(now, q.seq)
		if ask {
			p.evs.add(xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: s.SPIIn, Dir: xfrm.Inbound, N: question}})
		}
		if pass {
			l.deliver(q.packet())
			freeWaiting(l.queue[i : i+1])
		} else {
			kept = append(kept, q)
		}
	}
	l.queue = kept
	l.look(p)
}

// look enlists the lane with the ticker while its lease may have to shrink.
func (l *outLane) look(p *Plane) {
	if !l.listed && !l.send.Settled() {
		l.listed = true
		p.ticks.add(l)
	}
}

func (l *inLane) look(p *Plane) {
	if !l.listed && !l.recv.Settled() {
		l.listed = true
		p.ticks.add(l)
	}
}

func (l *outLane) tick(p *Plane, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if gen, ok := l.sa.scope.works(); ok && gen == l.send.Generation() && !l.gone {
		if n, ask := l.send.Tick(now); ask {
			p.evs.add(xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: l.sa.SPIIn, Dir: xfrm.Outbound, N: n}})
		}
		l.listed = !l.send.Settled()
	} else {
		l.listed = false
	}
	return !l.listed
}

func (l *inLane) tick(p *Plane, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if gen, ok := l.sa.scope.works(); ok && gen == l.recv.Generation() && !l.gone {
		if n, ask := l.recv.Tick(now); ask {
			p.evs.add(xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: l.sa.SPIIn, Dir: xfrm.Inbound, N: n}})
		}
		l.listed = !l.recv.Settled()
	} else {
		l.listed = false
	}
	return !l.listed
}
