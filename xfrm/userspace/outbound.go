package userspace

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/internal/mmsg"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const mtuLife = time.Minute // of what is known about a path, RFC 1191 §6.3 asks for less than 10

// outbound seals and sends one batch from a tunnel's interface, or of what other
// members handed over for it: one after the other, since what is sealed first must
// leave first.
func (p *Plane) outbound(t *tunnel, b *batch, now time.Time) {
	t.sealing.Lock()
	defer t.sealing.Unlock()
	_, active := t.scope.active()
	for i := range b.n {
		slot := b.slots[i][:]
		in, pkt, ok := parseInner(slot[slotRoom : slotRoom+b.lens[i]])
		if !ok {
			p.malformed.Add(1)
			continue
		}
		fam := 0
		if in.v6 {
			fam = 1
		}
		clampMSS(pkt, &in, t.MaxMSS[fam])
		s := t.routes.lookup(&in)
		if s == nil {
			switch {
			case in.linkLocal():
			case active && p.strayNew(t, pkt, &in, b.hop):
			case active:
				p.noRoute(t, &in, pkt, b.hop, now)
			default:
				t.inactive.Add(1)
			}
			continue
		}
		if _, ok := s.scope.active(); !ok {
			p.strayInner(s, pkt, &in, b.hop)
			continue
		}
		if t.DontFragment && !p.fits(t, s, b, pkt, &in, now) {
			continue
		}
		if b.full() {
			p.socks.flush(&b.outbox)
		}
		p.sealFor(s, slot, slotRoom, len(pkt), &in, &b.outbox, now)
	}
	p.socks.flush(&b.outbox)
}

// fits deals with packets that would be too big once sealed, on a tunnel whose
// outer packets must not be fragmented. It returns false when it has done so.
func (p *Plane) fits(t *tunnel, s *sa, b *batch, pkt []byte, in *inner, now time.Time) bool {
	limit := p.maxInner(s, now)
	if limit == 0 || len(pkt) <= limit || in.v6 && len(pkt) <= 1280 {
		return true
	}
	if in.df {
		t.tooBig.Add(1)
		if e := tooBig(b.extra[:], pkt, in, limit); e != nil {
			t.write(e)
		}
		return false
	}
	p.socks.flush(&b.outbox)
	ok := fragment4(b.extra[slotRoom:], pkt, in.l4, limit, func(n int) {
		f := *in
		p.sealFor(s, b.extra[:], slotRoom, n, &f, &b.outbox, now)
		p.socks.flush(&b.outbox)
	})
	if !ok {
		t.tooBig.Add(1)
	}
	return false
}

// maxInner is the largest inner packet that fits the path in one piece; 0: not known.
func (p *Plane) maxInner(s *sa, now time.Time) int {
	pr := s.peer.Load()
	if pr.tcp {
		return 0 // a stream cuts as it likes
	}
	if at := pr.mtuAt.Load(); now.UnixNano()-at > int64(mtuLife) || at == 0 {
		pr.mtuAt.Store(now.UnixNano())
		pr.mtu.Store(int32(p.socks.pathMTU(pr)))
	}
	mtu := int(pr.mtu.Load())
	if mtu == 0 {
		return 0
	}
	return s.layout.MaxPayload(mtu - outerLen(pr))
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

// sealFor seals buf[off:off+n] in place and puts it into the outbox, or makes a
// copy wait for a higher ceiling.
//
// Two goroutines seal for one SA: that of the tunnel, and that of the event loop
// when a bound lets waiting packets go. So that sequence numbers leave in order, the
// first sends what it has sealed before anything waits, and the second sends before
// it lets go of the lane.
func (p *Plane) sealFor(s *sa, buf []byte, off, n int, in *inner, o *outbox, now time.Time) {
	switch {
	case p.sealIfActive(s, buf, off, n, in, o, now):
	case s.detached.Load():
		p.noRoute(s.tun, in, buf[off:off+n], o.hop, now)
	default:
		p.strayInner(s, buf[off:off+n], in, o.hop)
	}
}

// sealIfActive returns false when the packet is not dealt with, because the SA is
// silent or gone.
func (p *Plane) sealIfActive(s *sa, buf []byte, off, n int, in *inner, o *outbox, now time.Time) bool {
	l := &s.out
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := s.scope.active()
	if !active || l.gone {
		return false
	}
	l.resume(gen)
	waiting := len(l.queue) > 0
	if waiting {
		l.send.Count(now)
	}
	var seq uint64
	pass := false
	if !waiting {
		seq, pass = l.offer(p, now, false)
	}
	if !pass {
		p.socks.flush(o)
		if len(l.queue) >= maxWaiting || l.send.Exhausted() {
			l.errors++
		} else {
			w := hold(buf[off : off+n])
			w.hop = o.hop
			l.queue = append(l.queue, w)
		}
		return true
	}
	l.sealOne(p, seq, buf, off, n, in, o, now)
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
	if p.out.full() {
		p.socks.flush(&p.out.outbox)
	}
	l.sealOne(p, seq, w.buf, slotRoom, w.n, &in, &p.out.outbox, now)
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
	}
	next := uint8(protoIPv4)
	if in.v6 {
		next = protoIPv6
	}
	pkt, err := l.seal.Seal(buf, off, n, seq, next)
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
	o.put(outMsg{pkt: pkt, s: s, to: pr, tos: in.tos, df: df})
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

// outMsg is one datagram to be sent.
type outMsg struct {
	pkt []byte
	s   *sa
	to  *peer
	tos uint8
	df  bool
}

// outbox collects sealed packets up to the next flush.
type outbox struct {
	msgs   [batchLen]outMsg
	n      int
	vec    mmsg.Vector
	prompt bool // flushed before the lane's lock is released
	hop    hop  // of what is sealed into it
}

func (o *outbox) full() bool   { return o.n == batchLen }
func (o *outbox) put(m outMsg) { o.msgs[o.n] = m; o.n++ }

// flush sends what the outbox holds, in order, one call for each run of packets
// that leave through the same socket.
func (ss *sockets) flush(o *outbox) {
	for i := 0; i < o.n; {
		m := &o.msgs[i]
		k := i + 1
		if m.to.tcp {
			if !ss.streams.sendESP(m.to.path(), m.pkt) {
				m.s.sendFailed()
			}
			i = k
			continue
		}
		for k < o.n && !o.msgs[k].to.tcp && o.msgs[k].to.udp == m.to.udp && o.msgs[k].to.v6() == m.to.v6() && o.msgs[k].df == m.df {
			k++
		}
		ss.send(o, i, k)
		i = k
	}
	clear(o.msgs[:o.n])
	o.n = 0
}

func (ss *sockets) send(o *outbox, from, to int) {
	m := &o.msgs[from]
	kind := sockESP
	if m.to.udp {
		kind = sockNATT
	}
	s := ss.of(kind, m.to.v6())
	if s == nil {
		for i := from; i < to; i++ {
			o.msgs[i].s.sendFailed()
		}
		return
	}
	for i := from; i < to; i++ {
		m := &o.msgs[i]
		o.vec.PrepareSend(i, kind == sockESP, m.to.local.Addr(), m.to.remote, m.tos, m.pkt, nil)
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	_ = s.setDF(m.df) // without it packets are sent all the same
	waited := false
	for from < to {
		n, e := mmsg.Send(s.fd, &o.vec, from, to-from)
		switch {
		case e == 0:
			from += n
			waited = false
		case e == unix.EINTR:
		case e == unix.EAGAIN && !waited && mmsg.WaitWritable(s.fd):
			waited = true
		default:
			if e == unix.EMSGSIZE {
				o.msgs[from].to.mtuAt.Store(0) // the path shrank: ask again
			}
			o.msgs[from].s.sendFailed()
			from++
		}
	}
}

// sendFailed counts a packet that was sealed and not sent. The lane's lock may be
// held by the caller's caller, so this is an atomic.
func (s *sa) sendFailed() { s.sendErrors.Add(1) }

func (ss *sockets) pathMTU(pr *peer) int {
	i := 0
	if pr.v6() {
		i = 1
	}
	if ss.probe[i] == nil {
		return 0
	}
	return ss.probe[i].MTU(pr.remote.Addr())
}

// SendIKE sends one IKE message from the socket of its local port, or in its connection.
func (p *Plane) SendIKE(d xfrm.IKEDatagram) error {
	if len(d.Data) == 0 {
		return errors.New("userspace: empty IKE message")
	}
	if d.TCP {
		return p.socks.streams.sendIKE(pathOf(d.Local, d.Remote), d.Data)
	}
	if d.NonESP {
		return p.sendUDP(d.Local, d.Remote, nonESPMarker[:], d.Data)
	}
	return p.sendUDP(d.Local, d.Remote, d.Data, nil)
}

// Keepalive sends a NAT keepalive.
func (p *Plane) Keepalive(local, remote netip.AddrPort) error {
	return p.sendUDP(local, remote, keepalive[:], nil)
}

var (
	nonESPMarker [4]byte
	keepalive    = [1]byte{0xff}
)

func (p *Plane) sendUDP(local, remote netip.AddrPort, first, second []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	kind := sockNATT
	if local.Port() == p.o.PortIKE {
		kind = sockIKE
	}
	to := netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	s := p.socks.of(kind, to.Addr().Is6())
	if s == nil || !to.IsValid() {
		return unix.EAFNOSUPPORT
	}
	from := local.Addr().Unmap()
	if from.IsValid() && from.Is4() != to.Addr().Is4() {
		return unix.EAFNOSUPPORT
	}
	v := &p.out.vec
	v.PrepareSend(0, false, from, to, 0, first, second)
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	_ = s.setDF(false)
	for waited := false; ; {
		_, e := mmsg.Send(s.fd, v, 0, 1)
		switch {
		case e == 0:
			return nil
		case e == unix.EINTR:
		case e == unix.EAGAIN && !waited && mmsg.WaitWritable(s.fd):
			waited = true
		default:
			return e
		}
	}
}
