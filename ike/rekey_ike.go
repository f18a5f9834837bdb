package ike

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// rekeyIKE requests the successor of an IKE SA (RFC 7296 §1.3.2).
func (e *Engine) rekeyIKE(sa *ikeSA) bool {
	x := &exchange{kind: kindRekeyIKE, nonce: e.random(nonceLen), keyID: e.newKeyID(), newSPI: e.newIKESPI(),
		offered: ikeSuites(sa.p1), groups: sa.p1.DHGroups, add: sa.p1.AddKE}
	if len(x.groups) == 0 {
		return false
	}
	group := x.groups[0]
	if slices.Contains(x.groups, sa.suite.KE) {
		group = sa.suite.KE
	}
	e.info(sa, "initiating rekey of IKE SA "+sa.spis.String())
	return e.sendRekeyIKE(sa, x, group)
}

func (e *Engine) sendRekeyIKE(sa *ikeSA, x *exchange, group ipsec.TransformID) bool {
	kx, err := keymat.NewKeyExchange(group, e.o.Rand)
	if err != nil {
		e.warn(sa, "cannot offer DH group", slog.Int("group", int(group)), slog.String("error", err.Error()))
		return false
	}
	x.ke = kx
	return e.start(sa, x, []message.Payload{
		&message.SA{Proposals: x.add.offer(ikeProposals(x.offered, x.groups, ikeSPIBytes(x.newSPI)))},
		&message.Nonce{Data: x.nonce},
		&message.KE{Group: group, Data: kx.Public()},
	})
}

func ikeSPIBytes(s ipsec.IKESPI) []byte { return binary.BigEndian.AppendUint64(nil, uint64(s)) }

// rekeyIKERequest makes the successor at the peer's request (RFC 7296 §1.3.2,
// collisions §2.8.2 and §2.25.2).
func (e *Engine) rekeyIKERequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received rekey of IKE SA")
	switch x := sa.req; {
	case !sa.lives() || sa.awaitsDelete:
		return nil, refuse(message.TemporaryFailure, "the IKE SA is being closed")
	case x != nil && (x.kind == kindCreateChild || x.kind == kindRekeyChild || x.kind == kindDeleteChild):
		return nil, refuse(message.TemporaryFailure, "a Child SA is being created, rekeyed or closed")
	case x != nil && x.kind == kindRekeyIKE && x.followUp > 0:
		return nil, refuse(message.TemporaryFailure, "the IKE SA is being rekeyed") // RFC 9370 §2.2.4
	case x != nil && x.kind == kindRekeyIKE && x.collided:
		return nil, refuse(message.TemporaryFailure, "the IKE SA has been rekeyed already")
	case sa.p1 == nil:
		return nil, refuse(message.NoProposalChosen, "phase 1 is not configured any more")
	case sa.tunnel != nil && len(sa.tunnel.sas) > maxHeirs:
		return nil, refuse(message.TemporaryFailure, "%d IKE SAs before this one wait for their DELETE", len(sa.tunnel.sas)-1)
	}
	offer, _ := message.Get[*message.SA](ev.m)
	ke, _ := message.Get[*message.KE](ev.m)
	ni, _ := message.Get[*message.Nonce](ev.m)
	c, ok := selectIKE(offer.Proposals, ikeSuites(sa.p1), sa.p1.DHGroups, ke.Group, sa.p1.AddKE)
	if !ok {
		return nil, refuse(message.NoProposalChosen, "no IKE proposal is offered that phase 1 allows")
	}
	if len(c.peerSPI) != 8 || binary.BigEndian.Uint64(c.peerSPI) == 0 {
		return nil, refuse(message.InvalidSyntax, "rekey of the IKE SA without a new SPI")
	}
	if ke.Group != c.suite.KE {
		n := refuse(message.InvalidKEPayload, "DH group %d instead of %d", ke.Group, c.suite.KE)
		n.Data = binary.BigEndian.AppendUint16(nil, uint16(c.suite.KE))
		return nil, n
	}
	public, shared, err := answerKE(e.o.Rand, ke)
	if err != nil {
		return nil, err
	}
	spis := ipsec.IKESPIs{I: ipsec.IKESPI(binary.BigEndian.Uint64(c.peerSPI)), R: e.newIKESPI()}
	nr := e.random(nonceLen)
	c.accepted.SPI = ikeSPIBytes(spis.R)
	ps := []message.Payload{
		&message.SA{Proposals: []ipsec.Proposal{c.accepted}},
		&message.Nonce{Data: nr},
		&message.KE{Group: ke.Group, Data: public},
	}
	secrets := []ipsec.Key{shared}
	if c.suite.AddKE != (ipsec.AddKE{}) {
		h := &halfMade{kind: kindRekeyIKE, suite: c.suite, ni: ni.Data, nr: nr, secrets: secrets, spis: spis, keyID: e.newKeyID()}
		ps = append(ps, e.keepHalf(sa, h))
		if x := sa.req; x != nil && x.kind == kindRekeyIKE {
			e.debug(sa, "simultaneous rekey of the IKE SA")
			x.collided, x.collidedIKE, x.collidedNonce = true, spis, lower(ni.Data, nr)
		}
		return ps, nil
	}
	n, err := e.succeed(sa, c.suite, spis, false, ni.Data, nr, secrets, e.newKeyID())
	shared.Wipe()
	if err != nil {
		return nil, refuse(message.NoProposalChosen, "%w", err)
	}
	e.succeeded(sa, n)
	return append(ps, e.tokenPayloads(n)...), nil
}

// succeeded follows a rekey of the peer's that made an IKE SA.
func (e *Engine) succeeded(sa, n *ikeSA) {
	if x := sa.req; x != nil && x.kind == kindRekeyIKE {
		// Both sides at once: which of the two inherits is known with our response.
		e.debug(sa, "simultaneous rekey of the IKE SA")
		x.collided, x.collidedIKE, x.collidedNonce = true, n.spis, n.lowestNonce
		n.awaitsDelete = true // until it is chosen
	} else {
		e.inherit(sa, n)
	}
}

// succeed makes the new IKE SA of a rekey, established at once, still without
// Child SAs. initiator is our role in the exchange and so in the new IKE SA.
func (e *Engine) succeed(sa *ikeSA, s ipsec.Suite, spis ipsec.IKESPIs, initiator bool, ni, nr []byte, secrets []ipsec.Key, id ipsec.KeyID) (*ikeSA, error) {
	keys, err := keymat.DeriveIKERekey(sa.suite.PRF, sa.keys.D, s, ni, nr, secrets[0], spis, secrets[1:]...)
	if err != nil {
		return nil, err
	}
	n := &ikeSA{
		spis: spis, initiator: initiator, state: stateEstablished, p1: sa.p1, phase1: sa.phase1, tunnel: sa.tunnel,
		suite: s, keys: keys, keyID: id, ownID: sa.ownID, peerID: sa.peerID, peerAuth: sa.peerAuth,
		local: sa.local, remote: sa.remote, nonESP: sa.nonESP, tcp: sa.tcp, natHere: sa.natHere, natThere: sa.natThere,
		udpEncap: sa.udpEncap, vendorIDs: sa.vendorIDs, caps: sa.caps, peerAddr: sa.peerAddr,
		created: e.now, established: e.now, lastIn: e.now, lowestNonce: lower(ni, nr),
	}
	n.assigned, n.leaseAt = sa.assigned, sa.leaseAt
	n.auth = sa.auth
	n.setRedirection(sa.redirection())
	n.soft, n.hard = e.ikeLifetimes(n)
	e.insert(n)
	e.touch(n)
	e.route(n)
	e.keyLog(n)
	if t := n.tunnel; t != nil {
		t.ikeCreated++
		t.ikeEstablished++
	}
	e.info(n, "established IKE SA "+spis.String(), slog.String("rekeyed", sa.spis.String()),
		slog.String("proposal", s.String()))
	return n, nil
}

// inherit gives the Child SAs of an IKE SA to its successor. The old one waits
// for the DELETE of whoever initiated the rekey.
func (e *Engine) inherit(old, n *ikeSA) {
	e.touch(old)
	e.touch(n)
	n.awaitsDelete, n.deleteBy = false, time.Time{}
	if !old.awaitsDelete {
		n.deleteBy = old.deleteBy // left to the peer, see leaveToPeer
	}
	e.inheritMobility(old, n)
	e.adopt(old, n)
	old.state, old.successor = stateRekeyed, n.spis
	e.dropHalves(old, func(h *halfMade) bool { return h.spis != n.spis })
	old.rekeyNow = false
	n.replaces, old.replaces, n.reauthNow = old.replaces, ipsec.IKESPIs{}, old.reauthNow
	e.replacesHeir(old, n)
	if !old.countersAt.IsZero() {
		n.countersAt, old.countersAt = old.countersAt, time.Time{}
	}
	if !n.initiator {
		old.awaitsDelete, old.deleteBy = true, e.now.Add(deleteWait)
	}
	e.debug(old, "children inherited by "+n.spis.String(), slog.Int("children", len(n.children)))
	e.proceed(n)
	e.arm(n)
}

// chosen follows a request of the peer on an IKE SA whose rivalry is not decided
// here yet: the peer uses it, so it is the one that inherits.
func (e *Engine) chosen(n *ikeSA) {
	for _, old := range e.sorted() {
		if x := old.req; x != nil && x.kind == kindRekeyIKE && x.collided && x.collidedIKE == n.spis && old.lives() {
			x.collided = false
			e.inherit(old, n)
			return
		}
	}
}

// deleteWait is how long the peer may take to delete what is its to delete.
const deleteWait = 30 * time.Second

// rekeyIKEResponse takes the answer to our request to rekey the IKE SA.
func (e *Engine) rekeyIKEResponse(sa *ikeSA, ev *event) {
	x := e.finish(sa)
	defer e.drop(x)
	h, err := acceptRekeyIKE(ev, x)
	if err == nil && h.suite.AddKE != (ipsec.AddKE{}) && e.stopRekeyIKE(sa, x, h) {
		h.wipe()
		return
	}
	var n *ikeSA
	switch {
	case err != nil:
	case h.suite.AddKE == (ipsec.AddKE{}):
		n, err = e.succeedOwn(sa, x, h, ev.m)
		h.wipe()
	default:
		e.halvesLost(sa, x)
		if err = e.followUp(sa, x, h, ev.m); err == nil {
			return
		}
		h.wipe()
	}
	e.rekeyedIKE(sa, x, n, err)
}

// succeedOwn makes the new IKE SA of a rekey of ours, whose last response is m.
func (e *Engine) succeedOwn(sa *ikeSA, x *exchange, h *halfMade, m *message.Message) (*ikeSA, error) {
	n, err := e.succeed(sa, h.suite, h.spis, true, h.ni, h.nr, h.secrets, x.keyID)
	if err != nil {
		return nil, err
	}
	e.noteToken(n, m)
	n.tokenDue = e.makesTokens()
	return n, nil
}

// stopRekeyIKE says whether a rekey of ours goes no further than CREATE_CHILD_SA: the peer's
// counts, or the IKE SA is to end. Nothing has been made that would have to be deleted.
func (e *Engine) stopRekeyIKE(sa *ikeSA, x *exchange, h *halfMade) bool {
	switch {
	case sa.state == stateRekeyed || sa.closing:
	case !x.lost(h.ni, h.nr):
		return false
	default:
		e.debug(sa, "lost the simultaneous rekey")
		if n := e.rivalOf(x); n != nil {
			e.inherit(sa, n)
		}
	}
	return true
}

// rivalOf is the IKE SA that a rekey of the peer's has made while ours was under way; nil: none.
func (e *Engine) rivalOf(x *exchange) *ikeSA {
	if !x.collided {
		return nil
	}
	if n := e.sas[ownOf(x.collidedIKE, false)]; n != nil && n.state == stateEstablished {
		return n
	}
	return nil
}

// rekeyedIKE follows the exchanges of ours that made the successor of an IKE SA, or failed to.
func (e *Engine) rekeyedIKE(sa *ikeSA, x *exchange, n *ikeSA, err error) {
	closing := sa.closing
	rival := e.rivalOf(x)
	if err != nil {
		e.warn(sa, "rekey of the IKE SA failed", slog.String("reason", err.Error()))
		e.rekeyIKERefused(sa, x, rival, err)
		return
	}
	sa.temporaryFailures = 0
	if sa.state == stateRekeyed {
		// The peer went on with its own rekey before this response reached us.
		n.state, n.successor = stateRekeyed, sa.successor
		e.close(n, "redundant")
		e.proceed(n)
		e.arm(n)
		return
	}
	if rival == nil && sa.halfRekey() != nil && x.lost(n.lowestNonce, n.lowestNonce) {
		// The peer's has key exchanges left: what it makes inherits.
		n.state, n.successor = stateRekeyed, x.collidedIKE
		e.close(n, "redundant")
		e.proceed(n)
		e.arm(n)
		return
	}
	e.halvesLost(sa, x)
	if rival != nil && string(n.lowestNonce) < string(rival.lowestNonce) {
		// Ours has the lowest nonce: the rival inherits, the peer deletes the old
		// IKE SA, and we our redundant one (RFC 7296 §2.8.2).
		e.debug(sa, "lost the simultaneous rekey")
		e.inherit(sa, rival)
		n.state = stateRekeyed
		n.successor = rival.spis
		e.close(n, "redundant")
		e.proceed(n)
		e.arm(n)
		e.endSuccessor(closing, rival)
		return
	}
	if rival != nil {
		rival.awaitsDelete, rival.deleteBy = true, e.now.Add(deleteWait)
		rival.state, rival.successor = stateRekeyed, n.spis
		e.touch(rival)
		e.arm(rival)
	}
	e.inherit(sa, n)
	e.close(sa, "rekeyed")
	e.endSuccessor(closing, n)
}

// endSuccessor ends the successor of an IKE SA that was to end while its rekey was
// under way.
func (e *Engine) endSuccessor(closing bool, n *ikeSA) {
	if closing {
		e.close(n, "its predecessor was to end")
		e.proceed(n)
		e.arm(n)
	}
}

func acceptRekeyIKE(ev *event, x *exchange) (*halfMade, error) {
	for _, n := range ev.m.Notifies() {
		if n.NotifyType.IsError() {
			return nil, &peerRefusal{n.NotifyType, n.Data}
		}
	}
	offer, ok1 := message.Get[*message.SA](ev.m)
	ke, ok2 := message.Get[*message.KE](ev.m)
	nr, ok3 := message.Get[*message.Nonce](ev.m)
	if !ok1 || !ok2 || !ok3 {
		return nil, errors.New("response without SA, KE or nonce")
	}
	c, ok := acceptedIKE(offer, x.offered, x.ke.Group(), x.add)
	if !ok || ke.Group != x.ke.Group() || len(c.peerSPI) != 8 || binary.BigEndian.Uint64(c.peerSPI) == 0 {
		return nil, errors.New("the peer chose what was not offered")
	}
	shared, err := x.ke.Shared(ke.Data)
	if err != nil {
		return nil, err
	}
	spis := ipsec.IKESPIs{I: x.newSPI, R: ipsec.IKESPI(binary.BigEndian.Uint64(c.peerSPI))}
	return &halfMade{kind: x.kind, suite: c.suite, ni: x.nonce, nr: nr.Data, secrets: []ipsec.Key{shared}, spis: spis}, nil
}

// rekeyIKERefused follows a rekey of ours that made no IKE SA.
func (e *Engine) rekeyIKERefused(sa *ikeSA, x *exchange, rival *ikeSA, err error) {
	if sa.state == stateRekeyed {
		return
	}
	if rival != nil {
		// The peer had finished its own rekey: that one counts.
		e.inherit(sa, rival)
		return
	}
	var peer *peerRefusal
	if errors.As(err, &peer) {
		switch peer.notify {
		case message.InvalidKEPayload:
			if x.followUp > 0 {
				break
			}
			if g, ok := demandedGroup(peer.data, x.groups, x.ke.Group()); ok && x.retries < maxKERetries && sa.lives() {
				again := &exchange{kind: kindRekeyIKE, nonce: e.random(nonceLen), keyID: e.newKeyID(), newSPI: x.newSPI,
					offered: x.offered, groups: x.groups, add: x.add, retries: x.retries + 1}
				if e.sendRekeyIKE(sa, again, g) {
					return
				}
			}
		case message.TemporaryFailure, message.StateNotFound:
			if e.failedTooOften(sa, peer.notify) {
				return
			}
		case message.NoAdditionalSAs:
			if e.afresh(sa, "") {
				sa.rekeyAt = e.now.Add(sa.negotiateTimeout())
				return
			}
		}
	}
	sa.rekeyAt = e.now.Add(temporaryWait + e.randomSpan(temporaryWait/2))
}
