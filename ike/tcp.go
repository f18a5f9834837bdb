package ike

import (
	"log/slog"
	"net/netip"
	"time"

	"tandem/internal/ipsec"
)

// IKE and ESP in TCP (RFC 9329). An IKE SA is in TCP from its IKE_SA_INIT on, or never.
// Whoever began it opens the connections, and opens another one when one is lost; the other
// side sends where the peer's latest authenticated message or packet that was no repetition
// came from (§6.1). So an owner that takes over knows nothing of connections: it has none,
// and the peer opens one to it.
//
// Where connections are ours to open, the local port is 0: the data plane chooses one, and
// opens the connection when something is to be sent.

// dials says that connections are ours to open.
func (sa *ikeSA) dials() bool { return sa.tcp && sa.local.Port() == 0 }

// useTCP takes an IKE SA that is being made to TCP.
func (e *Engine) useTCP(sa *ikeSA) {
	port := e.cfg.TCPPort
	if port == 0 {
		port = natPort
	}
	sa.tcp, sa.nonESP = true, true
	sa.local = netip.AddrPortFrom(sa.local.Addr(), 0)
	sa.remote = netip.AddrPortFrom(sa.remote.Addr(), port)
	sa.noteNAT(false, false)
}

// fallsBack is when an IKE SA of transport auto goes on in TCP; zero: never.
func (sa *ikeSA) fallsBack() time.Time {
	if sa.state != stateInitSent || sa.tcp || sa.p1 == nil || sa.p1.Transport != "auto" {
		return time.Time{}
	}
	return sa.created.Add(sa.p1.FallbackTCP)
}

// fallBack does so when nothing has answered in UDP for so long.
func (e *Engine) fallBack(sa *ikeSA) {
	at := sa.fallsBack()
	if at.IsZero() || e.now.Before(at) {
		return
	}
	e.touch(sa)
	e.useTCP(sa)
	e.info(sa, "no answer in UDP, going on in TCP", slog.Duration("after", e.now.Sub(sa.created)))
}

// untilFallback is a moment, or the one at which the fallback is due if that is earlier.
func (e *Engine) untilFallback(sa *ikeSA, t time.Time) time.Time {
	if at := sa.fallsBack(); !at.IsZero() && at.Before(t) && at.After(e.now) {
		return at
	}
	return t
}

// movedStream follows the peer into another connection. The message was authenticated and
// is none that was repeated: a captured one says nothing of where the peer is.
func (e *Engine) movedStream(sa *ikeSA, d Datagram) {
	if !sa.tcp || !d.TCP || sa.dials() || d.Local == sa.local && d.Remote == sa.remote {
		return
	}
	e.touch(sa)
	sa.local, sa.remote = d.Local, d.Remote
	e.setPeer(sa)
}

// HandleStreamMoved follows an authenticated ESP packet that came in another connection.
func (e *Engine) HandleStreamMoved(now time.Time, spiIn ipsec.ESPSPI, from netip.AddrPort) {
	defer e.begin(now)()
	c := e.children[spiIn]
	if !e.active || c == nil || !c.ike.tcp || c.ike.dials() || c.ike.remote == from {
		return
	}
	sa := c.ike
	e.heard(sa)
	e.touch(sa)
	sa.remote = from
	e.setPeer(sa)
	e.proceed(sa)
	e.arm(sa)
}

// HandleStreamLost has another connection opened in place of a lost one, by a request that
// the peer can learn from which one it is.
func (e *Engine) HandleStreamLost(now time.Time, spiIn ipsec.ESPSPI) {
	defer e.begin(now)()
	c := e.children[spiIn]
	if !e.active || c == nil || !c.ike.dials() || c.ike.reach {
		return
	}
	sa := c.ike
	e.info(sa, "TCP connection is lost, opening another")
	sa.reach = true
	if x := sa.req; x != nil && x.sent {
		// The window is taken: this one first. If the peer has answered it already, that
		// is a repetition to it.
		e.counters.Retransmitted++
		e.freeMessage(sa.datagram(x.data))
	}
	e.proceed(sa)
	e.arm(sa)
}
