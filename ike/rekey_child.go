package ike

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// rekeyChildRequest makes the successor of a Child SA at the peer's request
// (RFC 7296 §1.3.3, collisions §2.8.1 and §2.25.1).
func (e *Engine) rekeyChildRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received CREATE_CHILD exchange")
	n, _ := ev.m.Notify(message.RekeySA)
	e.debug(sa, "processing notify type REKEY_SA")
	if n.Protocol == ipsec.ProtocolAH && len(n.SPI) == 4 {
		return nil, &NotifyError{Type: message.ChildSANotFound, Protocol: n.Protocol, SPI: n.SPI, Err: errors.New("no Child SA of AH")}
	}
	if n.Protocol != ipsec.ProtocolESP || len(n.SPI) != 4 {
		return nil, refuse(message.InvalidSyntax, "REKEY_SA with protocol %d and SPI of %d bytes", n.Protocol, len(n.SPI))
	}
	if err := e.childrenBlocked(sa); err != nil {
		return nil, err
	}
	old := sa.childOut(espSPI(n.SPI))
	if old == nil && len(sa.owed) > 0 {
		// It may be one of those whose DELETE is under way: told that it is not found, the
		// peer would make it afresh (RFC 7296 §2.25.1).
		return nil, refuse(message.TemporaryFailure, "Child SAs are being deleted")
	}
	if old == nil {
		return nil, &NotifyError{Type: message.ChildSANotFound, Protocol: ipsec.ProtocolESP, SPI: n.SPI,
			Err: errors.New("no Child SA with SPI " + espSPI(n.SPI).String())}
	}
	if old.state == childOwed {
		return nil, refuse(message.TemporaryFailure, "Child SA %s is being deleted", old.SPIIn)
	}
	x := sa.req
	both := x != nil && x.kind == kindRekeyChild && x.rekeyed == old.SPIIn
	if both && x.followUp > 0 {
		return nil, refuse(message.TemporaryFailure, "Child SA %s is being rekeyed", old.SPIIn) // RFC 9370 §2.2.4
	}
	e.debugChild(old, "rekeying child SA SPI "+old.SPIOut.String())
	ps, fresh, err := e.childExchange(sa, ev, old)
	if err != nil {
		return nil, err
	}
	if e.children[fresh.spiIn] != nil {
		old.state = childReplaced
	}
	if both {
		// Both sides rekey it at once: which successor stays is known when our
		// own response is here.
		x.collide(fresh)
		e.debugChild(old, "simultaneous rekey")
	}
	return ps, nil
}

// rekeyedChild follows a successful CREATE_CHILD_SA exchange of ours.
func (e *Engine) rekeyedChild(sa *ikeSA, x *exchange, old, child *childSA) {
	if child.state == childOwed {
		return // lost a collision: the peer deletes the old SA
	}
	if old == nil {
		return
	}
	// We initiated the surviving rekey, so we delete the replaced SA (RFC 7296 §2.8).
	e.touch(old.ike)
	old.state = childOwed
	sa.owe(old.SPIIn)
	e.debugChild(old, "scheduling rekeyed SPI "+old.SPIIn.String()+" for deletion")
	e.halvesLost(sa, x)
	if o := e.children[x.collidedChild]; x.collided && o != nil {
		o.state = childReplaced // the peer, who lost, deletes it
		if o.outbound {
			o.outbound = false
			e.hold(sa, SetOutbound{SPIIn: o.SPIIn, Use: false})
		}
	}
}

// childRefused follows a CREATE_CHILD_SA exchange of ours that made nothing.
func (e *Engine) childRefused(sa *ikeSA, x *exchange, old *childSA, err error) {
	var peer *peerRefusal
	errors.As(err, &peer)
	switch {
	case peer != nil && peer.notify == message.InvalidKEPayload && x.followUp == 0:
		e.childGroupDemanded(sa, x, old, peer.data)
		return
	case peer != nil && peer.notify == message.ChildSANotFound && old != nil && !old.initiator && e.now.Sub(old.installed) < responseMayCome:
		// The answer that made it may still be on its way to the peer, again and again.
		old.rekeyAt = old.installed.Add(responseMayCome)
		return
	case peer != nil && peer.notify == message.ChildSANotFound && old != nil && !x.collided && old.state == childInstalled:
		// RFC 7296 §2.25: the peer lost it; drop it silently and begin afresh.
		phase2 := old.Phase2
		e.removeChild(old)
		sa.want(phase2)
		sa.wantsAt = time.Time{}
		return
	case peer != nil && (peer.notify == message.TemporaryFailure || peer.notify == message.StateNotFound):
		if e.failedTooOften(sa, peer.notify) {
			return
		}
		if x.kind == kindCreateChild {
			sa.want(x.phase2)
			sa.wantsAt = e.now.Add(temporaryWait + e.randomSpan(temporaryWait/2))
			return
		}
	case peer != nil && peer.notify == message.SinglePairRequired && x.kind == kindCreateChild && e.singlePair(sa, x):
		return
	case peer != nil && peer.notify == message.NoAdditionalSAs && old != nil && e.afresh(sa, x.phase2):
		old.rekeyAt = e.now.Add(sa.negotiateTimeout())
		return
	}
	if old != nil {
		// The peer's own rekey may have replaced it; then there is nothing to repeat.
		old.rekeyAt = e.now.Add(temporaryWait + e.randomSpan(temporaryWait/2))
		return
	}
	if x.kind == kindCreateChild {
		e.createFailed(sa, x.phase2)
	}
}

// failedTooOften counts a failure that may pass, and closes the IKE SA when it does not.
func (e *Engine) failedTooOften(sa *ikeSA, n message.NotifyType) bool {
	most := maxTemporaryFailures
	if n == message.StateNotFound {
		most = maxStateNotFound
	}
	sa.temporaryFailures++
	if sa.temporaryFailures < most {
		return false
	}
	e.close(sa, n.String()+" again and again")
	return true
}

// afresh negotiates a new IKE SA beside one whose peer makes nothing new on it (RFC 7296
// §4): as soon as the new one has its Child SAs, the old one ends.
func (e *Engine) afresh(sa *ikeSA, phase2 string) bool {
	t := sa.tunnel
	if t == nil || !t.mayInitiate() {
		return false
	}
	if phase2 == "" {
		if len(sa.children) == 0 {
			return false
		}
		phase2 = sa.children[0].Phase2
	}
	if t.connecting() {
		return true
	}
	e.info(sa, "peer makes nothing new on this IKE SA, negotiating another one")
	return e.initiate(t, phase2, sa)
}

// singlePair requests a Child SA for the two addresses of the packet that asked for it:
// the peer takes no more in one SA (RFC 7296 §2.9).
func (e *Engine) singlePair(sa *ikeSA, x *exchange) bool {
	p2 := e.phase2(sa.phase1, x.phase2)
	if sa.tunnel == nil || p2 == nil || !sa.lives() {
		return false
	}
	a, ok := sa.tunnel.acquired[x.phase2]
	delete(sa.tunnel.acquired, x.phase2)
	if !ok || !inAny(p2.Src, a.Src, a.Protocol) || !inAny(p2.Dst, a.Dst, a.Protocol) {
		return false
	}
	one := func(in netip.Addr) []ipsec.TrafficSelector {
		return []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(in.Unmap(), in.Unmap().BitLen()))}
	}
	again := &exchange{kind: x.kind, phase2: x.phase2, nonce: e.random(nonceLen), keyID: e.newKeyID(), spiIn: x.spiIn,
		offered: x.offered, groups: x.groups, add: x.add, tsL: narrow(one(a.Src.Addr()), p2.Src), tsR: narrow(one(a.Dst.Addr()), p2.Dst)}
	var group ipsec.TransformID
	if x.ke != nil {
		group = x.ke.Group()
	}
	e.info(sa, "peer takes one pair of addresses, requesting "+a.Src.Addr().String()+" and "+a.Dst.Addr().String())
	return e.sendCreateChild(sa, again, group)
}

// createFailed tries a Child SA again later if it must stand by itself; whatever
// else asked for it will ask again.
func (e *Engine) createFailed(sa *ikeSA, phase2 string) {
	t := sa.tunnel
	if t == nil {
		return
	}
	t.wants = slices.DeleteFunc(t.wants, func(n string) bool { return n == phase2 })
	if sa.replaces != (ipsec.IKESPIs{}) {
		sa.refused = append(sa.refused, phase2)
	}
	if slices.Contains(e.autoWants(t), phase2) {
		sa.wantsAt = e.now.Add(negotiateInterval)
		sa.want(phase2)
	}
}

const (
	// temporaryWait is how long after TEMPORARY_FAILURE a rekey is tried again.
	temporaryWait = 2 * time.Second
	// maxTemporaryFailures in a row mean that both sides disagree on the state
	// (RFC 7296 §2.25).
	maxTemporaryFailures = 60
	// maxStateNotFound is the same for IKE_FOLLOWUP_KE (RFC 9370 §2.2.4).
	maxStateNotFound = 5
)

// childGroupDemanded repeats a request with the group of INVALID_KE_PAYLOAD, once.
func (e *Engine) childGroupDemanded(sa *ikeSA, x *exchange, old *childSA, data []byte) {
	var used ipsec.TransformID
	if x.ke != nil {
		used = x.ke.Group()
	}
	g, ok := demandedGroup(data, x.groups, used)
	if ok && x.retries < maxKERetries && (x.rekeyed == 0 || old != nil && old.state == childInstalled) && sa.lives() {
		e.info(sa, "peer wants another DH group", slog.Int("group", int(g)))
		again := &exchange{kind: x.kind, phase2: x.phase2, nonce: e.random(nonceLen), keyID: e.newKeyID(),
			spiIn: x.spiIn, rekeyed: x.rekeyed, offered: x.offered, groups: x.groups, add: x.add, tsL: x.tsL, tsR: x.tsR,
			retries: x.retries + 1}
		if e.sendCreateChild(sa, again, g) {
			return
		}
	}
	if old != nil {
		old.rekeyAt = e.now.Add(temporaryWait)
	} else if x.kind == kindCreateChild {
		e.createFailed(sa, x.phase2)
	}
}

// HandleFirstInbound says that the peer uses a Child SA: its first authenticated
// packet since installation, or since this node became the owner.
func (e *Engine) HandleFirstInbound(now time.Time, spiIn ipsec.ESPSPI) {
	defer e.begin(now)()
	c := e.children[spiIn]
	if !e.active || c == nil {
		return
	}
	sa := c.ike
	e.heard(sa)
	e.childRivals(c)
	// The peer sends on the successor: it can receive there, too (RFC 7296 §2.8).
	if !c.outbound && c.state == childInstalled && c.replaces != 0 && c.successorOf() == nil {
		e.useOutbound(c)
	}
	e.proceed(sa)
	e.arm(sa)
}

// responseMayCome is how long a peer may go on asking for the answer that makes a
// Child SA.
const responseMayCome = 30 * time.Second

// lingerFor is how long a Child SA that was replaced, or lost a collision of rekeys, still
// takes what is under way: its last packets may be overtaken by the DELETE, in the network
// or in a queue on either side. A record of its end is with the whole sync set by then, so
// no successor has it.
const lingerFor = 2 * time.Second

// linger is how long a Child SA that ends now takes what is under way.
func (c *childSA) linger() time.Duration {
	if t := c.ike.tunnel; t != nil {
		if twin := t.twin(c); twin != nil && twin.ike != c.ike { // of the IKE SA beside this one
			return lingerFor
		}
	}
	return 0
}

// childDeleted follows a DELETE by the peer, or its answer to ours.
func (e *Engine) childDeleted(sa *ikeSA, c *childSA) {
	linger := c.linger()
	if c.state != childInstalled || c.successorOf() != nil {
		linger = lingerFor
	}
	if n := c.successorOf(); n != nil && n.state == childInstalled && c.outbound {
		// RFC 7296 §2.8: the peer is ready for the new one. If c no longer sends and the
		// new one does not either, a later SA does.
		e.useOutbound(n)
	}
	if c.replaces != 0 && c.state == childInstalled {
		// The peer withdrew the successor: the replaced one lives on.
		if old := e.children[c.replaces]; old != nil && old.state == childReplaced && c.successorOf() == nil {
			e.touch(old.ike)
			old.state = childInstalled
			if !old.outbound && c.outbound {
				old.outbound = true
				e.hold(sa, SetOutbound{SPIIn: old.SPIIn, Use: true})
			}
		}
	}
	sa.noteDeleted(c.SPIIn)
	e.removeChildAfter(c, linger)
	if c.doubtful && c.state == childInstalled {
		sa.want(c.Phase2) // what has taken its place is known to the peer alone
	}
}

// noteDeleted remembers a Child SA that ended with the peer's authenticated word.
func (sa *ikeSA) noteDeleted(spi ipsec.ESPSPI) {
	sa.deletedChildren = append(sa.deletedChildren, spi)
	if n := len(sa.deletedChildren); n > maxDeletedChildren {
		sa.deletedChildren = slices.Clone(sa.deletedChildren[n-maxDeletedChildren:])
	}
}

// maxDeletedChildren is how many ended Child SAs a record remembers, for healing.
const maxDeletedChildren = 32
