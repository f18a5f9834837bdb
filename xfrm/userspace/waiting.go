package userspace

import (
	"net/netip"
	"sync"
	"time"

	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const (
	maxWaiting  = 256             // packets of one direction of an SA that wait for a bound
	acquireMax  = 256             // packets of one interface, all clients of a dialup together, that wait for an SA
	acquireLife = 2 * time.Second // and how long they do
	acquireKeys = 64              // flows of one tunnel whose Acquire is remembered
	acquireGap  = time.Second     // between two Acquires for one flow

	pooledLen = slotRoom + 1600 + esp.TrailerRoom
)

// waitingPacket is a copy of an inner packet. It lies at slotRoom of its buffer,
// so that it can be sealed in place.
type waitingPacket struct {
	seq uint64 // inbound
	// Outbound: it was another member's stray, and must not become one again.
	hop hop
	buf []byte
	n   int
	at  time.Time // with acquires
}

func (w *waitingPacket) packet() []byte { return w.buf[slotRoom : slotRoom+w.n] }

var buffers = sync.Pool{New: func() any { return new([pooledLen]byte) }}

func hold(pkt []byte) waitingPacket {
	size := slotRoom + len(pkt) + esp.TrailerRoom
	w := waitingPacket{n: len(pkt)}
	if size <= pooledLen {
		w.buf = buffers.Get().(*[pooledLen]byte)[:]
	} else {
		w.buf = make([]byte, size)
	}
	copy(w.buf[slotRoom:], pkt)
	return w
}

// freeWaiting gives the buffers back and forgets them.
func freeWaiting(ws []waitingPacket) {
	for i := range ws {
		if len(ws[i].buf) == pooledLen {
			buffers.Put((*[pooledLen]byte)(ws[i].buf))
		}
		ws[i] = waitingPacket{}
	}
}

// acquires holds packets that no SA matched, and what was asked on their account.
type acquires struct {
	mu      sync.Mutex
	waiting []waitingPacket
	asked   map[acquireKey]time.Time
}

type acquireKey struct {
	proto    uint8
	src, dst netip.Addr
}

// noRoute keeps a packet for the SA that its Acquire may bring.
func (p *Plane) noRoute(t *tunnel, in *inner, pkt []byte, h hop, now time.Time) {
	t.noSA.Add(1)
	a := &t.acquires
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire(now)
	if len(a.waiting) < acquireMax {
		w := hold(pkt)
		w.at, w.hop = now, h
		a.waiting = append(a.waiting, w)
	}
	k := acquireKey{in.proto, in.src, in.dst}
	if last, ok := a.asked[k]; ok && now.Sub(last) < acquireGap {
		return
	}
	if len(a.asked) >= acquireKeys {
		for k, last := range a.asked {
			if now.Sub(last) >= acquireGap {
				delete(a.asked, k)
			}
		}
		if len(a.asked) >= acquireKeys {
			return
		}
	}
	if a.asked == nil {
		a.asked = map[acquireKey]time.Time{}
	}
	a.asked[k] = now
	p.evs.add(xfrm.Acquire{
		Tunnel: t.Name, Protocol: in.proto,
		Src: netip.AddrPortFrom(in.src, in.sport), Dst: netip.AddrPortFrom(in.dst, in.dport),
	})
}

func (a *acquires) expire(now time.Time) {
	n := 0
	for n < len(a.waiting) && now.Sub(a.waiting[n].at) >= acquireLife {
		n++
	}
	freeWaiting(a.waiting[:n])
	a.waiting = append(a.waiting[:0], a.waiting[n:]...)
}

// releaseAcquires sends what an SA now matches; p.mu is held.
func (p *Plane) releaseAcquires(t *tunnel, now time.Time) {
	a := &t.acquires
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire(now)
	if _, ok := t.scope.active(); !ok {
		return
	}
	kept := a.waiting[:0]
	for i := range a.waiting {
		w := a.waiting[i]
		in, pkt, ok := parseInner(w.packet())
		s := t.routes.lookup(&in)
		if ok && s == nil {
			kept = append(kept, w)
			continue
		}
		if ok {
			p.out.hop = w.hop
			p.out.packets.whole(w.buf, slotRoom, len(pkt))
			p.sealFor(s, &p.out.packets, &in, &p.out.outbox, now)
		}
		freeWaiting(a.waiting[i : i+1])
	}
	clear(a.waiting[len(kept):])
	a.waiting = kept
	p.out.hop = hop{}
	p.socks.flush(&p.out.outbox)
}
