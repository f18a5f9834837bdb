package forward

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
	"tandem/xfrm"
)

const (
	queueLen    = 256 // messages that wait for the sending goroutine
	queueBytes  = 512 << 10
	minDatagram = 548 // every IPv4 host accepts 576 bytes (RFC 1122 §3.3.2)
	maxDatagram = 9216
)

// queue holds what was sent since the sending goroutine looked last: two halves that
// change places.
type queue struct {
	mu   sync.Mutex
	in   *half
	wake chan struct{}
}

type half struct {
	n, used int
	items   [queueLen]queued
	data    []byte
}

type queued struct {
	to         *peer
	begin, end int // in data
	payload    int // bytes of the packet itself
}

func (q *queue) init() {
	q.in = &half{data: make([]byte, queueBytes)}
	q.wake = make(chan struct{}, 1)
}

// Send copies a packet into the queue to another member. It neither waits nor
// reports: what is dropped is counted.
func (l *Link) Send(to NodeID, x xfrm.Stray) {
	m := message{kind: kindInner, x: x}
	if x.Outer {
		m.kind = kindESP
	}
	l.enqueue(to, &m)
}

// SendIKE does the same for an IKE message; last: it was handed on before.
func (l *Link) SendIKE(to NodeID, d xfrm.IKEDatagram, last bool) {
	l.enqueue(to, &message{kind: kindIKE, x: xfrm.Stray{Last: last, UDPEncap: d.NonESP, TCP: d.TCP, Local: d.Local, Remote: d.Remote, Packet: d.Data}})
}

// SendLAN sends what a member tells another about inner prefixes, up to a few kilobytes. It
// is no packet: it is not counted as one, and where it is lost its sender repeats it.
func (l *Link) SendLAN(to NodeID, b []byte) {
	if p := l.peer(to); p != nil && p.tx.Load() != nil {
		l.enqueue(to, &message{kind: kindLAN, x: xfrm.Stray{Packet: b}})
	}
}

func (l *Link) enqueue(to NodeID, m *message) {
	p := l.peer(to)
	if p == nil {
		l.noMember.Add(1)
		return
	}
	if m.kind == kindInner || m.kind == kindESP {
		if m.x.Last {
			p.stats.tooFar.Add(1)
			return
		}
		m.x.Last = m.x.From != 0 && NodeID(m.x.From) != l.o.Self
	}
	if p.tx.Load() == nil {
		p.stats.noSession.Add(1)
		return
	}
	var room [maxHead]byte
	head := m.head(room[:0])
	size := len(head) + len(m.x.Packet)
	if head == nil || size > maxMessage {
		p.stats.tooLong.Add(1)
		return
	}
	q := &l.queue
	q.mu.Lock()
	h := q.in
	if h.n == queueLen || h.used+size > len(h.data) {
		q.mu.Unlock()
		p.stats.queueFull.Add(1)
		return
	}
	copy(h.data[h.used:], head)
	copy(h.data[h.used+len(head):], m.x.Packet)
	h.items[h.n] = queued{to: p, begin: h.used, end: h.used + size, payload: len(m.x.Packet)}
	h.n++
	h.used += size
	first := h.n == 1
	q.mu.Unlock()
	if first {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// sender is owned by the sending goroutine.
type sender struct {
	spare *half // the other half of the queue
	vec   mmsg.Vector
	bufs  [][]byte
	to    [mmsg.Batch]*peer
	n     int
	nonce [nonceLen]byte
}

func (s *sender) init() {
	s.spare = &half{data: make([]byte, queueBytes)}
	room := make([]byte, mmsg.Batch*maxDatagram)
	for i := range mmsg.Batch {
		s.bufs = append(s.bufs, room[i*maxDatagram:][:maxDatagram:maxDatagram])
	}
}

func (l *Link) sendLoop() {
	for {
		select {
		case <-l.stop:
			return
		case <-l.queue.wake:
			for l.sendQueued() && !l.stopped() {
			}
		}
	}
}

func (l *Link) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// sendQueued seals and sends what the queue holds. It returns false when that was
// nothing.
func (l *Link) sendQueued() bool {
	q, s := &l.queue, &l.send
	q.mu.Lock()
	h := q.in
	if h.n == 0 {
		q.mu.Unlock()
		return false
	}
	q.in = s.spare
	q.mu.Unlock()
	s.spare = h
	now := l.o.Clock()
	for i := range h.n {
		it := &h.items[i]
		l.sealMessage(it.to, h.data[it.begin:it.end], it.payload, now)
	}
	l.flush()
	clear(h.items[:h.n])
	h.n, h.used = 0, 0
	return true
}

// sealMessage puts a message into the batch, as one datagram or as several.
func (l *Link) sealMessage(p *peer, msg []byte, payload int, now time.Time) {
	tx := p.tx.Load()
	room := l.datagramLen(p, now) - headerLen - tagLen
	if room < minDatagram-headerLen-tagLen {
		p.stats.sendFailed.Add(1) // there is no route
		return
	}
	if kind(msg[0]) != kindLAN {
		p.stats.sent.Add(1)
		p.stats.sentBytes.Add(uint64(payload))
	}
	if kind(msg[0]) == kindIKE {
		p.stats.sentIKE.Add(1)
	}
	if len(msg) <= room {
		l.seal(p, tx, typeData, nil, msg)
		return
	}
	room -= fragmentLen
	count := (len(msg) + room - 1) / room
	f := fragment{id: p.message, count: uint8(count), total: uint16(len(msg))}
	p.message++
	for i := range count {
		f.index = uint8(i)
		from, to, _ := f.span()
		l.seal(p, tx, typeFragment, &f, msg[from:to])
	}
}

func (l *Link) seal(p *peer, tx *sending, t packetType, f *fragment, part []byte) {
	s := &l.send
	if s.n == mmsg.Batch {
		l.flush()
	}
	b := s.bufs[s.n]
	p.counter++
	h := header{kind: t, from: l.o.Self, to: p.id, session: p.session, counter: p.counter}
	h.put(b)
	n := headerLen
	if f != nil {
		f.put(b[n:])
		n += fragmentLen
	}
	copy(s.nonce[nonceLen-8:], b[12:headerLen])
	sealed := tx.aead.Seal(b[n:n], s.nonce[:], part, b[:n])
	s.vec.PrepareSend(s.n, false, netip.Addr{}, p.addr, 0, b[:n+len(sealed)], nil)
	s.to[s.n] = p
	s.n++
}

// flush sends the batch.
func (l *Link) flush() {
	s := &l.send
	waited := false
	for i := 0; i < s.n; {
		sent, e := mmsg.Send(l.fd, &s.vec, i, s.n-i)
		switch {
		case e == 0:
			for ; sent > 0; sent-- {
				s.to[i].stats.datagramsOut.Add(1)
				i++
			}
			waited = false
		case e == unix.EINTR:
		case e == unix.EAGAIN && !waited && mmsg.WaitWritable(l.fd):
			waited = true
		default:
			if e == unix.EMSGSIZE {
				s.to[i].mtuUntil = time.Time{} // the path shrank: ask again
			}
			s.to[i].stats.sendFailed.Add(1)
			i++
			waited = false
		}
	}
	clear(s.to[:s.n])
	s.n = 0
}

// datagramLen is the longest UDP payload that reaches a peer in one piece; 0: no route.
func (l *Link) datagramLen(p *peer, now time.Time) int {
	if !now.Before(p.mtuUntil) {
		p.mtu, p.mtuUntil = 0, now.Add(noRouteLife)
		if n := l.probe.MTU(p.addr.Addr()); n > 0 {
			p.mtu, p.mtuUntil = n-20-8, now.Add(mtuLife)
			if p.addr.Addr().Is6() {
				p.mtu = n - 40 - 8
			}
		}
	}
	n := min(p.mtu, maxDatagram)
	if l.o.MaxDatagram > 0 {
		n = min(n, l.o.MaxDatagram)
	}
	return n
}
