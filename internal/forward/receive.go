package forward

import (
	"bytes"
	"net/netip"
	"syscall"
	"time"

	"tandem/internal/mmsg"
	"tandem/xfrm"
)

// receiver is owned by the receiving goroutine.
type receiver struct {
	vec    mmsg.Vector
	bufs   [][]byte
	names  names
	nonce  [nonceLen]byte
	got    []xfrm.Stray // of this batch
	m      message
	warned map[complaint]time.Time
}

// complaint is what a log line is about.
type complaint struct {
	what string
	from netip.Addr
}

const (
	warnGap  = time.Minute // between two log lines of the same complaint
	warnings = 64          // complaints that are told apart; addresses can be forged
)

func (r *receiver) init() {
	r.names, r.warned = names{}, map[complaint]time.Time{}
	r.got = make([]xfrm.Stray, 0, mmsg.Batch)
	room := make([]byte, mmsg.Batch*maxDatagram)
	for i := range mmsg.Batch {
		r.bufs = append(r.bufs, room[i*maxDatagram:][:maxDatagram:maxDatagram])
		r.vec.PrepareReceive(i, r.bufs[i])
	}
}

func (l *Link) receiveLoop() {
	r := &l.recv
	n := 0
	read := func(fd uintptr) bool {
		for {
			k, errno := mmsg.Receive(int(fd), &r.vec, mmsg.Batch)
			switch errno {
			case 0:
				n = k
				return true
			case syscall.EINTR:
			case syscall.EAGAIN: // the poller is edge-triggered: only now may we wait
				return false
			default:
				n = 0 // a pending ICMP error, reported once
				return true
			}
		}
	}
	for {
		if err := l.rc.Read(read); err != nil {
			return // closed
		}
		if l.stopped() {
			return
		}
		now := l.o.Clock()
		for i := range n {
			if size := r.vec.Len(i); size <= maxDatagram {
				l.datagram(r.bufs[i][:size], r.vec.Source(i), now)
			} else {
				l.malformed.Add(1)
			}
		}
		l.deliver()
		r.vec.Rearm(n)
	}
}

// deliver ends the loans of what it has handed out.
func (l *Link) deliver() {
	r := &l.recv
	if len(r.got) > 0 {
		l.o.Deliver(r.got)
		clear(r.got)
		r.got = r.got[:0]
	}
	for _, p := range l.peers.Load() {
		if p != nil {
			p.parts.returned()
		}
	}
}

// datagram takes one datagram; b is overwritten and, until deliver, lent.
func (l *Link) datagram(b []byte, from netip.AddrPort, now time.Time) {
	h, ok := parseHeader(b)
	var p *peer
	if ok {
		p = l.peer(h.from)
	}
	switch {
	case ok && (p == nil || p.addr != from), !ok && !l.known(from):
		l.strangers.Add(1)
		l.warn(now, "datagram of no member", from)
		return
	case !ok || h.to != l.o.Self:
		l.malformed.Add(1)
		l.warn(now, "malformed datagram", from)
		return
	}
	p.stats.datagramsIn.Add(1)
	switch h.kind {
	case typeData, typeFragment:
		l.sealed(p, &h, b, now)
	default:
		l.greeting(p, &h, b, now)
	}
}

// known says whether some member has the address.
func (l *Link) known(a netip.AddrPort) bool {
	for _, p := range l.peers.Load() {
		if p != nil && p.addr == a {
			return true
		}
	}
	return false
}

// warn writes one line a minute at most for each reason and address: whoever floods us
// shall not fill the log, and garbage shall not hide a replay.
func (l *Link) warn(now time.Time, what string, from netip.AddrPort) {
	r := &l.recv
	c := complaint{what, from.Addr()}
	if _, ok := r.warned[c]; !ok && len(r.warned) >= warnings {
		c = complaint{} // of all others
	}
	if last, ok := r.warned[c]; !ok || now.Sub(last) >= warnGap {
		if ok && len(r.warned) >= warnings {
			clear(r.warned) // a minute has passed since then: begin anew
		}
		r.warned[c] = now
		l.log.Warn("forwarding: "+what+"; the rest is only counted", "from", from)
	}
}

func (l *Link) greeting(p *peer, h *header, b []byte, now time.Time) {
	token, ok := l.keys.greeted(b)
	if !ok {
		p.stats.forged.Add(1)
		l.warn(now, "forged greeting", p.addr)
		return
	}
	switch h.kind {
	case typeHello:
		t, fresh := p.hear(&l.keys, l.o.Self, h.session)
		l.greetPeer(p, typeToken, h.session, h.counter, t)
		if fresh {
			l.sayHello(p) // it has restarted: our token is void
		}
	case typeToken:
		p.mu.Lock()
		answered := h.session == p.session && p.greet.answered(h.counter)
		p.mu.Unlock()
		if !answered {
			p.stats.staleGreeting.Add(1)
			return
		}
		if was := p.tx.Load(); was == nil || was.token != token {
			p.tx.Store(&sending{token: token, aead: l.keys.data(l.o.Self, p.id, p.session, token)})
			l.log.Info("packets can be forwarded to member", "member", p.id, "address", p.addr)
		}
	case typeReset:
		if h.session != p.session {
			p.stats.staleGreeting.Add(1)
			return
		}
		l.sayHello(p)
	}
}

func (l *Link) sayHello(p *peer) {
	p.mu.Lock()
	p.greet.want()
	p.mu.Unlock()
	l.wakeGreetings()
}

// askHello tells the peer that it has no token that is good here.
func (l *Link) askHello(p *peer, session uint64, now time.Time) {
	if now.Sub(p.resetAt) >= resetGap {
		p.resetAt = now
		l.greetPeer(p, typeReset, session, 0, 0)
	}
}

// sealed opens a datagram and takes what it carries.
func (l *Link) sealed(p *peer, h *header, b []byte, now time.Time) {
	r := &l.recv
	s := p.of(h.session)
	if s == nil {
		p.stats.unknownSession.Add(1)
		l.warn(now, "datagram of no session in use, as after a restart", p.addr)
		l.askHello(p, h.session, now)
		return
	}
	if !s.window.Check(h.counter) {
		p.stats.replayed.Add(1)
		l.warn(now, "datagram seen before", p.addr)
		return
	}
	n := headerLen
	if h.kind == typeFragment {
		n += fragmentLen
	}
	copy(r.nonce[nonceLen-8:], b[12:headerLen])
	plain, err := s.aead.Open(b[n:n], r.nonce[:], b[n:], b[:n])
	if err != nil {
		p.stats.forged.Add(1)
		l.warn(now, "forged datagram", p.addr)
		if s == p.candidate { // a replayed hello made it; its owner may not know our token
			l.askHello(p, h.session, now)
		}
		return
	}
	s.window.Accept(h.counter)
	if s == p.candidate {
		l.deliver()
		p.parts.reset()
		p.current, p.candidate = s, nil
	}
	if h.kind == typeData {
		l.take(p, plain)
		return
	}
	f := parseFragment(b[headerLen:])
	if p.parts.lent(f.id) {
		l.deliver()
	}
	was := p.parts.abandoned
	msg, ok := p.parts.add(f, plain)
	p.stats.incomplete.Add(p.parts.abandoned - was)
	switch {
	case !ok:
		p.stats.malformed.Add(1)
	case msg != nil:
		l.take(p, msg)
	}
}

// take keeps a message for deliver.
func (l *Link) take(p *peer, b []byte) {
	r := &l.recv
	if r.m.decode(b, r.names) != nil {
		p.stats.malformed.Add(1)
		return
	}
	x := &r.m.x
	x.From = uint8(p.id)
	if r.m.kind == kindLAN {
		if l.o.LAN != nil {
			l.o.LAN(p.id, bytes.Clone(x.Packet))
		}
		return
	}
	p.stats.received.Add(1)
	p.stats.receivedBytes.Add(uint64(len(x.Packet)))
	if r.m.kind == kindIKE {
		p.stats.receivedIKE.Add(1)
		if l.o.IKE != nil {
			l.o.IKE(p.id, xfrm.IKEDatagram{Local: x.Local, Remote: x.Remote, NonESP: x.UDPEncap, TCP: x.TCP, Data: bytes.Clone(x.Packet)}, x.Last)
		}
		return
	}
	r.got = append(r.got, *x)
}
