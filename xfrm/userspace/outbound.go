package userspace

import (
	"errors"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const mtuLife = time.Minute // of what is known about a path, RFC 1191 §6.3 asks for less than 10

// outbound seals what the cutter yields, read from a tunnel's interface or handed over
// for it by another member, into the batch's outbox. The caller holds t.sealing until he
// has sent that: what is sealed first must leave first.
func (p *Plane) outbound(t *tunnel, b *batch, c *cutter, in *inner, now time.Time) {
	fam := 0
	if in.v6 {
		fam = 1
	}
	clampMSS(c.packet(), in, t.MaxMSS[fam])
	s := t.routes.lookup(in)
	if s == nil {
		p.unmatched(t, b, c, in, now)
		return
	}
	if _, ok := s.scope.active(); !ok {
		p.strayAll(s, c, in, b.hop)
		return
	}
	if limit := p.limitOf(t, s, now); limit != 0 && c.largest() > limit && !(in.v6 && c.largest() <= 1280) {
		for off, n, ok := c.next(); ok; off, n, ok = c.next() {
			p.fit(t, s, b, c.buf, off, n, in, limit, now)
		}
		return
	}
	p.sealFor(s, c, in, &b.outbox, now)
}

// unmatched deals with what no SA here would carry.
func (p *Plane) unmatched(t *tunnel, b *batch, c *cutter, in *inner, now time.Time) {
	_, active := t.scope.active()
	for off, n, ok := c.next(); ok; off, n, ok = c.next() {
		pkt := c.buf[off : off+n]
		switch {
		case in.linkLocal():
		case active && p.strayNew(t, pkt, in, b.hop):
		case active:
			p.noRoute(t, in, pkt, b.hop, now)
		default:
			t.inactive.Add(1)
		}
	}
}

func (p *Plane) strayAll(s *sa, c *cutter, in *inner, h hop) {
	for off, n, ok := c.next(); ok; off, n, ok = c.next() {
		p.strayInner(s, c.buf[off:off+n], in, h)
	}
}

// limitOf is the largest inner packet of a tunnel whose outer packets must not be
// fragmented; 0: there is no limit.
func (p *Plane) limitOf(t *tunnel, s *sa, now time.Time) int {
	if !t.DontFragment {
		return 0
	}
	pr := s.peer.Load()
	if pr.tcp {
		return 0 // a stream cuts as it likes
	}
	mtu := p.socks.mtu(pr, now)
	if mtu == 0 {
		return 0
	}
	return s.layout.MaxPayload(mtu - outerLen(pr))
}

// fit sends a packet in fragments that do not exceed the limit, or says that it is too big.
func (p *Plane) fit(t *tunnel, s *sa, b *batch, buf []byte, off, n int, in *inner, limit int, now time.Time) {
	pkt := buf[off : off+n]
	var c cutter
	if n <= limit || in.v6 && n <= 1280 {
		c.whole(buf, off, n)
		p.sealFor(s, &c, in, &b.outbox, now)
		return
	}
	if in.df {
		t.tooBig.Add(1)
		if e := tooBig(b.extra[:], pkt, in, limit); e != nil {
			t.write(e)
		}
		return
	}
	ok := fragment4(b.extra[slotRoom:], pkt, in.l4, limit, func(n int) {
		f := *in
		c.whole(b.extra[:], slotRoom, n)
		p.sealFor(s, &c, &f, &b.outbox, now)
	})
	if !ok {
		t.tooBig.Add(1)
	}
}

func outerLen(pr *peer) int {
	n := 20
	if pr.v6() {
		n = 40
	}
	if pr.udp {
		n += 8
	}
	return n
}

// sealFor seals what the cutter yields into the outbox, or makes copies wait for a higher
// ceiling.
//
// Two goroutines seal for one SA: that of the tunnel, and that of the event loop
// when a bound lets waiting packets go. So that sequence numbers leave in order, the
// first sends what it has sealed before anything waits, and the second sends before
// it lets go of the lane.
func (p *Plane) sealFor(s *sa, c *cutter, in *inner, o *outbox, now time.Time) {
	switch {
	case p.sealIfActive(s, c, in, o, now):
	case s.detached.Load():
		for off, n, ok := c.next(); ok; off, n, ok = c.next() {
			p.noRoute(s.tun, in, c.buf[off:off+n], o.hop, now)
		}
	default:
		p.strayAll(s, c, in, o.hop)
	}
}

// sealIfActive returns false when the packets are not dealt with, because the SA is
// silent or gone.
func (p *Plane) sealIfActive(s *sa, c *cutter, in *inner, o *outbox, now time.Time) bool {
	l := &s.out
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := s.scope.active()
	if !active || l.gone {
		return false
	}
	l.resume(gen)
	for off, n, ok := c.next(); ok; off, n, ok = c.next() {
		if len(l.queue) > 0 {
			l.send.Count(now)
		} else if seq, pass := l.offer(p, now, false); pass {
			l.sealOne(p, seq, c.buf, off, n, in, o, now)
			continue
		}
		p.socks.flush(o)
		if len(l.queue) >= maxWaiting || l.send.Exhausted() {
			l.errors++
			continue
		}
		w := hold(c.buf[off : off+n])
		w.hop = o.hop
		l.queue = append(l.queue, w)
	}
	if o.prompt {
		p.socks.flush(o)
	}
	return true
}

// offer asks for leave for the next sequence number.
func (l *outLane) offer(p *Plane, now time.Time, again bool) (seq uint64, pass bool) {
	if l.send.Exhausted() || l.sa.hard > 0 && l.bytes >= l.sa.hard {
		reason := "bytes"
		if l.send.Exhausted() {
			reason = "sequence numbers"
		}
		l.expiring(p, reason, true)
		return 0, false
	}
	var n uint64
	var ask bool
	if again {
		seq, pass, n, ask = l.send.Retry(now)
	} else {
		seq, pass, n, ask = l.send.Offer(now)
	}
	if ask {
		p.evs.add(xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: l.sa.SPIIn, Dir: xfrm.Outbound, N: n}})
	}
	l.look(p)
	return seq, pass
}

// sealWaiting sends the first packet of the queue; false: it has to wait on.
func (p *Plane) sealWaiting(l *outLane, now time.Time) bool {
	seq, pass := l.offer(p, now, true)
	if !pass {
		return false
	}
	w := l.queue[0]
	l.queue[0] = waitingPacket{}
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	}
	in, _, _ := parseInner(w.packet())
	l.sealOne(p, seq, w.buf, slotRoom, w.n, &in, &p.out.outbox, now)
	freeWaiting([]waitingPacket{w})
	return true
}

// sealOne sends the packet with the number that has passed for it.
func (l *outLane) sealOne(p *Plane, seq uint64, buf []byte, off, n int, in *inner, o *outbox, now time.Time) {
	s := l.sa
	if l.seal == nil {
		var err error
		if l.seal, err = esp.NewOutbound(&s.ChildSA, s.iv, p.ivs); err != nil {
			l.errors++
			l.expiring(p, err.Error(), true)
			return
		}
		p.warm.add(p, s)
	}
	next := uint8(protoIPv4)
	if in.v6 {
		next = protoIPv6
	}
	dst := p.socks.room(o, s.layout.SealedLen(n))
	sealed, err := l.seal.SealTo(dst, buf, off, n, seq, next)
	if err != nil {
		l.errors++
		if errors.Is(err, ipsec.ErrNonceSpace) {
			l.expiring(p, "explicit IVs", true)
		}
		return
	}
	l.send.Sent()
	l.packets++
	l.bytes += uint64(n)
	l.last = now
	switch {
	case s.soft > 0 && l.bytes >= s.soft:
		l.expiring(p, "bytes", false)
	case !s.Suite.ESN && seq >= 3<<30:
		l.expiring(p, "sequence numbers", false)
	case seq&0xffff == 0 && s.iv != nil && s.iv.Used() >= 3<<38:
		l.expiring(p, "explicit IVs", false)
	}
	pr := s.peer.Load()
	df := s.tun.DontFragment && !(in.v6 && n <= 1280)
	p.socks.put(o, sealed, s, pr, in.tos, df, now)
}

// expiring reports once; a hard report is due even after a soft one.
func (l *outLane) expiring(p *Plane, reason string, hard bool) {
	i := 0
	if hard {
		i = 1
	}
	if !l.warned[i] {
		l.warned[i] = true
		p.evs.add(xfrm.Expiring{SPIIn: l.sa.SPIIn, Reason: reason, Hard: hard})
	}
}

// sendFailed counts packets that were sealed and not sent. The lane's lock may be
// held by the caller's caller, so this is an atomic.
func (s *sa) sendFailed(n int) { s.sendErrors.Add(uint64(n)) }
