package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"tandem/ike"
	"tandem/internal/sim/trace"
)

// network is the outer network between clients and gateways.
type network struct {
	w        *world
	r        *rand.Rand
	lossy    float64       // while a fault lasts
	cut      []int         // of each client's link
	syncless time.Duration // until when messages that synchronise message IDs get lost
	outside  []natState
	seen     []captured // what went to the cluster last, for attackers
}

// natState is how a client looks from outside.
type natState struct {
	addr netip.Addr
	port uint16 // its port 4500; port 500 is one less
}

// captured is a packet that an attacker has seen.
type captured struct {
	ike  *ike.Datagram // as it arrives
	esp  *sealed
	from netip.AddrPort
	to   *realm
}

const capturedMax = 200

// seenFrom is a client's address as the cluster sees it.
func (n *network) seenFrom(i int, a netip.AddrPort) netip.AddrPort {
	if !n.w.s.Setup.Clients[i].NAT {
		return a
	}
	o := n.outside[i]
	if a.Port() == 500 {
		return netip.AddrPortFrom(o.addr, o.port-1)
	}
	return netip.AddrPortFrom(o.addr, o.port)
}

// inside is whom an address outside leads to.
func (n *network) inside(a netip.AddrPort) (client int, local netip.AddrPort) {
	i := n.w.clientOf(a.Addr())
	if i < 0 {
		return -1, a
	}
	if !n.w.s.Setup.Clients[i].NAT {
		if a.Addr() != clientAddr(i) {
			return -1, a
		}
		return i, a
	}
	o := n.outside[i]
	switch {
	case a.Addr() == o.addr && (a.Port() == o.port || a.Port() == 0):
		return i, netip.AddrPortFrom(clientAddr(i), 4500)
	case a.Addr() == o.addr && a.Port() == o.port-1:
		return i, netip.AddrPortFrom(clientAddr(i), 500)
	}
	return -1, a
}

// carry loses, doubles and delays; deliver is called for each copy that arrives.
func (n *network) carry(size int, deliver func()) (arrives time.Duration) {
	w := n.w
	loss := 1 - (1-w.s.Setup.Loss)*(1-n.lossy)
	if w.healing {
		loss = w.s.Setup.Loss
	}
	for left := size; left > w.s.Setup.MTU; left -= w.s.Setup.MTU { // fragments of it
		loss = 1 - (1-loss)*(1-w.s.Setup.Loss)
	}
	if chance(n.r, loss) {
		return -1
	}
	d := w.s.Setup.Delay + between(n.r, 0, w.s.Setup.Delay/4+50*time.Microsecond)
	if chance(n.r, w.s.Setup.Reorder) {
		d += between(n.r, 0, 30*time.Millisecond)
	}
	w.after(d, deliver)
	if chance(n.r, w.s.Setup.Duplicate) {
		w.after(d+between(n.r, 0, 5*time.Millisecond), deliver)
	}
	return w.now + d
}

func (n *network) clientCut(i int) bool { return i < len(n.cut) && n.cut[i] > 0 }

func (n *network) cutClient(i, by int) {
	for len(n.cut) <= i {
		n.cut = append(n.cut, 0)
	}
	n.cut[i] += by
}

// sendIKE carries an IKE datagram.
func (n *network) sendIKE(h *host, d ike.Datagram) {
	w := n.w
	until := time.Duration(-1)
	to := ""
	t := w.tunnelAt(h, d)
	switch {
	case h.id != 0 && t != nil && t.far != nil:
		r := w.realmAt(d.Remote.Addr())
		if r == nil {
			break // an attacker's address
		}
		to = r.called()
		if h.wanCut[0] == 0 && h.of(w.realmAt(d.Local.Addr())).holds && !n.loses(d.Data) {
			x := ike.Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data}
			n.capture(captured{ike: &x, from: d.Local, to: r})
			until = n.carry(len(d.Data)+28, func() { n.toGateway(x) })
		}
		w.wire.onWire(d.Data, t, until < 0)
	case h.id != 0:
		if i, local := n.inside(d.Remote); i >= 0 {
			to = w.clients[i].name
			if h.wanCut[0] == 0 && h.of(w.tunnels[i].near).holds && !n.loses(d.Data) {
				until = n.carry(len(d.Data)+28, func() {
					if !n.clientCut(i) {
						n.toClient(i, ike.Datagram{Local: local, Remote: d.Local, NonESP: d.NonESP, Data: d.Data})
					}
				})
			}
			w.wire.onWire(d.Data, w.tunnels[i], until < 0)
		}
	default:
		r := t.near
		to = r.called()
		if !n.clientCut(h.index) && d.Remote.Addr() == r.addr {
			from := n.seenFrom(h.index, d.Local)
			x := ike.Datagram{Local: d.Remote, Remote: from, NonESP: d.NonESP, Data: d.Data}
			n.capture(captured{ike: &x, from: from, to: r})
			if !n.loses(d.Data) {
				until = n.carry(len(d.Data)+28, func() { n.toGateway(x) })
			}
		}
		w.wire.onWire(d.Data, t, until < 0)
	}
	w.message(h.name, to, trace.ClassIKE, until, func() string { return w.wire.describe(d.Data) })
}

// called is the host that the neighbours believe in, for people.
func (r *realm) called() string {
	if r.target != nil {
		return r.target.name
	}
	return "cluster"
}

// loses: while a fault lasts, every other message that synchronises message IDs is lost.
func (n *network) loses(raw []byte) bool {
	return n.w.now < n.syncless && isSync(raw) && chance(n.r, 0.5)
}

func (n *network) toClient(i int, d ike.Datagram) {
	if c := n.w.clients[i].d; c != nil {
		n.w.wire.received(c, d)
		c.run(func(now time.Time) { c.n.HandleIKE(now, d) })
	}
}

func (n *network) toGateway(d ike.Datagram) {
	r := n.w.realmAt(d.Local.Addr())
	if r == nil {
		return
	}
	if h := r.gateway(); h != nil && h.d != nil {
		g := h.d
		n.w.wire.received(g, d)
		g.run(func(now time.Time) { g.n.HandleIKE(now, d) })
	}
}

func (n *network) keepalive(h *host, k ike.SendKeepalive) {}

// sendESP carries an ESP packet.
func (n *network) sendESP(h *host, s *sa, x *sealed) {
	w := n.w
	until, to := time.Duration(-1), ""
	t := x.inner.flow.tunnel
	switch {
	case t.far != nil:
		r := w.realmAt(s.Remote.Addr())
		if r == nil || r.pair == h.pair {
			break
		}
		to = r.called()
		if h.wanCut[0] == 0 && h.of(h.realmOf(s.scope.id)).holds {
			n.capture(captured{esp: x, from: s.Local, to: r})
			until = n.carry(100, func() { n.espToGateway(x, s.Local, r) })
		}
	case h.id != 0:
		at := s.Remote
		if !s.UDPEncap {
			at = netip.AddrPortFrom(s.Remote.Addr(), 0)
			if i := w.clientOf(s.Remote.Addr()); i >= 0 && !w.s.Setup.Clients[i].NAT {
				at = s.Remote
			}
		}
		if i, _ := n.inside(at); i >= 0 {
			to = w.clients[i].name
			if h.wanCut[0] == 0 && h.of(h.realmOf(s.scope.id)).holds {
				until = n.carry(100, func() {
					if c := w.clients[i].d; c != nil && !n.clientCut(i) {
						c.p.run(func() { c.p.receive(x, s.Local) })
					}
				})
			}
		}
	default:
		to = t.near.called()
		if !n.clientCut(h.index) {
			from := n.seenFrom(h.index, s.Local)
			n.capture(captured{esp: x, from: from, to: t.near})
			until = n.carry(100, func() { n.espToGateway(x, from, t.near) })
		}
	}
	w.message(h.name, to, trace.ClassESP, until, func() string { return fmt.Sprintf("ESP %s #%d", x.spi, x.seq) })
}

func (n *network) espToGateway(x *sealed, from netip.AddrPort, to *realm) {
	if h := to.gateway(); h != nil && h.d != nil {
		g := h.d
		g.p.run(func() { g.p.receive(x, from) })
	}
}

func (n *network) capture(c captured) {
	if len(n.seen) >= capturedMax {
		n.seen = append(n.seen[:0], n.seen[capturedMax/2:]...)
	}
	n.seen = append(n.seen, c)
}
