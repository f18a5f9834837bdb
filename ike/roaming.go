package ike

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

// The initiator's part of MOBIKE (RFC 4555 §3.5): our address changes, or what the NAT in
// front of us makes of it.

// maxNATRetries is how often an update is sent anew that met a NAT where none is allowed:
// one packet that somebody altered shall not end the tunnel (§3.9).
const maxNATRetries = 5

// HandleAddresses says that addresses of interfaces have changed. has says whether an
// interface still has an address; nil: it has none but what Options.LocalAddr says. IKE SAs
// whose own address is gone go to the one that the interface of their phase 1 has now.
func (e *Engine) HandleAddresses(now time.Time, has func(iface string, a netip.Addr) bool) {
	defer e.begin(now)()
	if !e.active || !slices.ContainsFunc(e.cfg.Phase1, func(p config.Phase1) bool { return p.Mobike && !p.Dialup() }) {
		return
	}
	for _, sa := range e.sorted() {
		if sa.roams() && (sa.state == stateEstablished || sa.state == stateRekeyed) {
			e.followAddress(sa, has)
		}
	}
}

// followAddress takes an IKE SA to our new address. Without any it stays and waits for one.
func (e *Engine) followAddress(sa *ikeSA, has func(string, netip.Addr) bool) {
	if sa.p1 == nil {
		return
	}
	was := sa.local
	if has != nil && has(sa.p1.Interface, was.Addr()) {
		return
	}
	a, ok := e.localAddr(sa.p1, sa.remote.Addr().Is6())
	if !ok || a == was.Addr() || a.IsLinkLocalUnicast() && !sa.remote.Addr().IsLinkLocalUnicast() {
		return
	}
	e.touch(sa)
	sa.local = netip.AddrPortFrom(a, was.Port())
	sa.keepaliveAt = e.now
	if sa.lives() {
		sa.mobility().update = true
		e.info(sa, "own address has changed", slog.String("from", was.Addr().String()))
		e.setPeer(sa)
	}
	e.resend(sa)
	e.proceed(sa)
	e.arm(sa)
}

// sendUpdate sends UPDATE_SA_ADDRESSES. What it asks for comes with its answer from the
// address where the IKE SA is then.
func (e *Engine) sendUpdate(sa *ikeSA, retries int) bool {
	ps := []message.Payload{notify(message.UpdateSAAddresses, nil)}
	if sa.natTraversal() {
		ps = append(ps, e.natPayloads(sa.p1, sa.spis, sa.local, sa.remote)...)
	} else {
		ps = append(ps, noNATs(sa.local, sa.remote))
	}
	if !e.start(sa, &exchange{kind: kindUpdate, retries: retries}, ps) {
		return false
	}
	sa.mobility().update = false
	e.debug(sa, "sending UPDATE_SA_ADDRESSES")
	return true
}

// updateResponse takes the peer's answer to sendUpdate.
func (e *Engine) updateResponse(sa *ikeSA, ev *event) {
	x := e.finish(sa)
	e.drop(x)
	t := e.latest(sa)
	if t.mob != nil && t.mob.update {
		return // addresses have changed again, and the next update says so
	}
	for _, n := range ev.m.Notifies() {
		switch {
		case n.NotifyType == message.UnexpectedNATDetected && x.retries < maxNATRetries && t == sa && sa.lives():
			e.debug(sa, "UPDATE_SA_ADDRESSES met a NAT, trying again")
			e.sendUpdate(sa, x.retries+1)
			return
		case n.NotifyType.IsError():
			// The address before is gone: the peer is asked anew from this one.
			e.warn(t, "peer refuses our new address: closing", slog.String("notify", n.NotifyType.String()))
			e.close(t, "peer sent "+n.NotifyType.String())
			e.proceed(t)
			return
		}
	}
	e.info(t, "peer has our new address", slog.String("local", t.local.String()))
	e.noteAnsweredNAT(t, ev, true)
}

// noteAnsweredNAT reads the NAT_DETECTION payloads of an answer. update: it is one to
// UPDATE_SA_ADDRESSES, so plain ESP and ESP in UDP follow; else a difference to what the peer
// saw last is a reason to send one (§3.8).
func (e *Engine) noteAnsweredNAT(sa *ikeSA, ev *event, update bool) {
	if sa.p1 == nil || sa.p1.NATTraversal == "disable" || !detectsNAT(ev.m) || !sa.roams() {
		return
	}
	n, _ := ev.m.Notify(message.NATDetectionDestinationIP)
	m := sa.mobility()
	changed := !bytes.Equal(m.seen, n.Data)
	if changed {
		e.touch(sa)
		m.seen = bytes.Clone(n.Data)
	}
	if !update {
		if changed && sa.lives() {
			e.info(sa, "the peer sees us at another address than before")
			m.update = true
		}
		return
	}
	here, there := detectNAT(sa.p1, ev.m, ev.d)
	if here == sa.natHere && there == sa.natThere {
		return
	}
	e.touch(sa)
	encap := sa.udpEncap
	sa.noteNAT(here, there)
	if encap != sa.udpEncap {
		e.setPeer(sa)
	}
	sa.keepaliveAt = time.Time{}
	e.keepalive(sa)
}

// dpdPayloads are those of an otherwise empty request: from behind a NAT it asks whether
// the mapping is still the same (§3.8).
func (e *Engine) dpdPayloads(sa *ikeSA) []message.Payload {
	if !sa.roams() || !sa.natHere || !sa.natTraversal() {
		return nil
	}
	return e.natPayloads(sa.p1, sa.spis, sa.local, sa.remote)
}
