package userspace

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const (
	batchLen    = mmsg.Batch
	datagramLen = 1 << 16
	movedGap    = time.Second // between two PeerMoved of an SA
)

// receive reads one socket until it is closed.
func (p *Plane) receive(s *sock, e *epoch) {
	bufs := make([]byte, batchLen*datagramLen) // pages are touched only as far as datagrams reach
	v, m := new(mmsg.Vector), new(merger)
	for i := range batchLen {
		v.PrepareReceive(i, bufs[i*datagramLen:(i+1)*datagramLen])
	}
	read := func(fd uintptr) bool {
		for {
			n, errno := mmsg.Receive(int(fd), v, batchLen)
			switch {
			case errno == 0:
			case errno == unix.EINTR:
				continue
			case errno == unix.EAGAIN:
				return false // the poller is edge-triggered: only after this may we wait
			default:
				return true // a pending ICMP error, reported once; or it is closed
			}
			e.enter()
			now := p.clock()
			for i := range n {
				p.datagrams(s, v, i, bufs[i*datagramLen:][:min(v.Len(i), datagramLen)], m, now)
			}
			m.flush()
			e.leave()
			v.Rearm(n)
			p.evs.flush()
		}
	}
	for {
		if err := s.rc.Read(read); err != nil {
			return // closed
		}
	}
}

// datagrams processes one message: a datagram, or several of one sender that the kernel
// has joined (UDP_GRO), whatever each of them is.
func (p *Plane) datagrams(s *sock, v *mmsg.Vector, i int, b []byte, m *merger, now time.Time) {
	from := v.Source(i)
	if s.kind == sockESP && !s.v6 {
		// A raw IPv4 socket delivers the header, too; the kernel has reassembled.
		h, ok := outerHeader(b)
		if !ok {
			p.malformed.Add(1)
			return
		}
		a := arrival{local: netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0), remote: netip.AddrPortFrom(from.Addr(), 0), tos: b[1]}
		p.espIn(b[h:], &a, m, now)
		return
	}
	local, tos, size := v.Control(i)
	switch s.kind {
	case sockESP:
		p.espIn(b, &arrival{local: netip.AddrPortFrom(local, 0), remote: netip.AddrPortFrom(from.Addr(), 0), tos: tos}, m, now)
	case sockIKE:
		p.ike(xfrm.IKEDatagram{Local: netip.AddrPortFrom(local, p.o.PortIKE), Remote: from}, b)
	case sockNATT:
		p.natt(b, size, &arrival{local: netip.AddrPortFrom(local, p.o.PortNATT), remote: from, tos: tos, udp: true}, m, now)
	}
}

// natt processes datagrams on port 4500 that came in one piece: each has size bytes, the
// last one what is left. With 0 it is one datagram.
func (p *Plane) natt(b []byte, size int, a *arrival, m *merger, now time.Time) {
	if size == 0 || len(b) == 0 {
		size = max(len(b), 1)
	}
	for first := true; first || len(b) > 0; first = false {
		d := b[:min(size, len(b))]
		b = b[len(d):]
		switch class, body := classify(d); class {
		case isESP:
			p.espIn(body, a, m, now)
		case isIKE:
			p.ike(xfrm.IKEDatagram{Local: a.local, Remote: a.remote, NonESP: true}, body)
		case isMalformed:
			p.malformed.Add(1)
		}
	}
}

func (p *Plane) ike(d xfrm.IKEDatagram, b []byte) {
	if len(b) < 28 { // shorter than an IKE header (RFC 7296 §3.1)
		p.malformed.Add(1)
		return
	}
	d.Data = bytes.Clone(b)
	p.o.Handler.IKE(d)
}

type class uint8

const (
	isMalformed class = iota
	isKeepalive
	isIKE
	isESP
)

// classify tells what a datagram on port 4500 is (RFC 3948 §2).
func classify(b []byte) (class, []byte) {
	switch {
	case len(b) == 1 && b[0] == 0xff:
		return isKeepalive, nil
	case len(b) < 8:
		return isMalformed, nil
	case [4]byte(b) == nonESPMarker:
		return isIKE, b[4:]
	}
	return isESP, b
}

// outerHeader is the length of the IPv4 header in front of ESP.
func outerHeader(b []byte) (int, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return 0, false
	}
	h := int(b[0]&15) * 4
	return h, h >= 20 && h <= len(b)
}

// arrival says how an ESP packet came.
type arrival struct {
	local, remote netip.AddrPort // ports 0 without UDP
	tos           uint8
	udp, tcp      bool // tcp: with udp
	hop
}

// espIn opens one ESP packet and delivers it, or makes it wait for the fence.
func (p *Plane) espIn(pkt []byte, a *arrival, m *merger, now time.Time) {
	spi, ok := esp.SPI(pkt)
	if !ok {
		p.malformed.Add(1)
		return
	}
	s := p.sas.get(spi)
	if s == nil {
		p.strayUnknown(spi, pkt, a)
		return
	}
	if a.from != 0 {
		s.tun.injected.Add(1)
	}
	if !p.openIfActive(s, pkt, a, m, now) {
		p.strayOuter(s, pkt, a)
	}
}

// openIfActive returns false, and has not touched the packet, when the SA is silent
// or gone.
func (p *Plane) openIfActive(s *sa, pkt []byte, a *arrival, m *merger, now time.Time) bool {
	l := &s.in
	l.mu.Lock()
	defer l.mu.Unlock()
	gen, active := s.scope.active()
	if !active || l.gone {
		return false
	}
	l.resume(gen)
	l.receive(p, pkt, a, m, now)
	return true
}

func (l *inLane) receive(p *Plane, pkt []byte, a *arrival, m *merger, now time.Time) {
	s := l.sa
	if l.open == nil {
		var err error
		if l.open, err = esp.NewInbound(&s.ChildSA); err != nil {
			l.errors++
			l.expiring(p, err.Error(), true)
			return
		}
		p.warm.add(p, s)
	}
	if s.hard > 0 && l.bytes >= s.hard {
		l.errors++
		l.expiring(p, "bytes", true)
		return
	}
	payload, next, seq, err := l.open.Open(l.recv.Window(), pkt)
	switch {
	case errors.Is(err, esp.ErrReplayed):
		l.replayed++
		return
	case err != nil:
		l.authFailed++
		return
	}
	l.last = now
	if !l.seen {
		l.seen = true
		p.evs.add(xfrm.FirstInbound{SPIIn: s.SPIIn})
	}
	if pr := s.peer.Load(); pr.movedTo(a) && now.Sub(l.moved) >= movedGap {
		l.moved = now
		p.evs.add(xfrm.PeerMoved{SPIIn: s.SPIIn, From: a.remote, TCP: a.tcp})
	}
	if next == protoNone {
		return
	}
	in, payload, ok := parseInner(payload)
	if !ok || (next == protoIPv6) != in.v6 || !in.v6 && next != protoIPv4 || !combineECN(payload, &in, a.tos) {
		l.errors++
		return
	}
	if !in.matchAny(s.TSRemote, in.src, in.sport) || !in.matchAny(s.TSLocal, in.dst, in.dport) {
		l.selector++
		return
	}
	fam := 0
	if in.v6 {
		fam = 1
	}
	clampMSS(payload, &in, s.tun.MaxMSS[fam])
	pass, n, ask := l.recv.Offer(now, seq)
	if ask {
		p.evs.add(xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: s.SPIIn, Dir: xfrm.Inbound, N: n}})
	}
	if !a.last && (l.fwd != nil || a.from != 0) {
		l.cameBy(p, a.from, now) // after the question, which whoever acts on the report must know
	}
	l.look(p)
	switch {
	case pass:
		m.deliver(l, payload, &in)
	case len(l.queue) < maxWaiting:
		m.flush() // whoever raises the fence delivers what waits
		l.fenced++
		w := hold(payload)
		w.seq = seq
		at := len(l.queue)
		for at > 0 && l.queue[at-1].seq > seq {
			at--
		}
		l.queue = slices.Insert(l.queue, at, w)
	default:
		l.fenced++
		l.errors++
	}
	if s.soft > 0 && l.bytes >= s.soft {
		l.expiring(p, "bytes", false)
	}
}

// movedTo says whether an authenticated packet came from elsewhere. Whether it
// came in UDP is no sign by itself: RFC 7296 §2.23 has us accept both. An SA changes
// between TCP connections that the peer opens, and neither to TCP nor away from it.
func (p *peer) movedTo(a *arrival) bool {
	switch {
	case p.tcp != a.tcp:
		return false
	case p.tcp:
		return !p.ours() && p.remote != a.remote
	}
	return p.remote.Addr() != a.remote.Addr() || a.udp && p.udp && p.remote.Port() != a.remote.Port()
}

// deliver writes one inner packet that has waited.
func (l *inLane) deliver(pkt []byte) {
	l.packets++
	l.bytes += uint64(len(pkt))
	l.write(pkt)
}

func (l *inLane) expiring(p *Plane, reason string, hard bool) {
	i := 0
	if hard {
		i = 1
	}
	if !l.warned[i] {
		l.warned[i] = true
		p.evs.add(xfrm.Expiring{SPIIn: l.sa.SPIIn, Reason: reason, Hard: hard})
	}
}
