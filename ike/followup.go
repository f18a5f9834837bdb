package ike

import (
	"errors"
	"log/slog"

	"tandem/ike/keymat"
	"tandem/ike/message"
)

// IKE_FOLLOWUP_KE (RFC 9370 §2.2.4): the additional key exchanges after CREATE_CHILD_SA. The
// new SA is made with the last of them. Rekeys of both sides at once are told apart by the
// nonces of CREATE_CHILD_SA; whoever loses goes no further, as there is nothing to delete.

// followUp goes on with our own half-made SA: m is the response so far, was its exchange.
func (e *Engine) followUp(sa *ikeSA, was *exchange, h *halfMade, m *message.Message) error {
	link, ok := m.Notify(message.AdditionalKeyExchange)
	if !ok || len(link.Data) > maxLinkLen {
		return errors.New("the peer does not say how to go on with the key exchanges")
	}
	group := h.next()
	kx, err := keymat.NewKeyExchange(group, e.o.Rand)
	if err != nil {
		return err
	}
	h.link = link.Data
	x := *was
	x.followUp, x.half, x.ke = len(h.secrets), h, kx
	x.data, x.attempts, x.ticket, x.sent = nil, 0, 0, false
	e.debug(sa, "initiating FOLLOWUP_KE exchange", slog.Int("group", int(group)))
	if !e.start(sa, &x, []message.Payload{&message.KE{Group: group, Data: kx.Public()}, notify(message.AdditionalKeyExchange, h.link)}) {
		return errors.New("cannot begin IKE_FOLLOWUP_KE")
	}
	return nil
}

// followUpResponse takes the responder's part of an additional key exchange.
func (e *Engine) followUpResponse(sa *ikeSA, ev *event) {
	e.debug(sa, "initiator received FOLLOWUP_KE msg")
	x := e.finish(sa)
	defer e.drop(x)
	h := x.half
	err := followedUp(x, ev.m)
	switch {
	case err == nil && !h.complete() && !sa.lives():
		err = errors.New("the IKE SA is being closed")
	case err == nil && !h.complete():
		if err = e.followUp(sa, x, h, ev.m); err == nil {
			return
		}
	}
	defer h.wipe()
	if h.kind == kindRekeyIKE {
		var n *ikeSA
		if err == nil {
			n, err = e.succeedOwn(sa, x, h, ev.m)
		}
		e.rekeyedIKE(sa, x, n, err)
		return
	}
	old := e.children[h.replaces]
	if h.replaces == 0 {
		old = nil
	}
	var child *childSA
	if err == nil {
		child, err = e.childOfOwn(sa, x, h, childParams{ni: h.ni, nr: h.nr, keyID: x.keyID, replaces: old})
	}
	e.createdChild(sa, x, old, child, err)
}

// followedUp adds the secret that a response of IKE_FOLLOWUP_KE has completed.
func followedUp(x *exchange, m *message.Message) error {
	for _, n := range m.Notifies() {
		if n.NotifyType.IsError() {
			return &peerRefusal{n.NotifyType, n.Data}
		}
	}
	ke, ok := message.Get[*message.KE](m)
	if !ok || ke.Group != x.ke.Group() {
		return errors.New("FOLLOWUP_KE response without KE of the method that was agreed on")
	}
	shared, err := x.ke.Shared(ke.Data)
	if err != nil {
		return err
	}
	x.half.secrets = append(x.half.secrets, shared)
	return nil
}

// followUpRequest answers an additional key exchange of a half-made SA of the peer's.
func (e *Engine) followUpRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received FOLLOWUP_KE msg")
	link, ok := ev.m.Notify(message.AdditionalKeyExchange)
	if !ok {
		return nil, refuse(message.InvalidSyntax, "IKE_FOLLOWUP_KE without ADDITIONAL_KEY_EXCHANGE")
	}
	h := sa.halfLinked(link.Data)
	if h == nil {
		return nil, refuse(message.StateNotFound, "IKE_FOLLOWUP_KE for what is not under way here")
	}
	ke, _ := message.Get[*message.KE](ev.m)
	if ke.Group != h.next() {
		e.dropHalf(sa, h)
		return nil, refuse(message.InvalidSyntax, "IKE_FOLLOWUP_KE with group %d instead of %d", ke.Group, h.next())
	}
	public, shared, err := answerKE(e.o.Rand, ke)
	if err != nil {
		e.dropHalf(sa, h)
		return nil, err
	}
	e.touch(sa)
	h.secrets = append(h.secrets, shared)
	h.since = e.now
	sa.followed = link.Data
	ps := []message.Payload{&message.KE{Group: ke.Group, Data: public}}
	if !h.complete() {
		h.link = e.random(linkLen)
		return append(ps, notify(message.AdditionalKeyExchange, h.link)), nil
	}
	var more []message.Payload
	if h.kind == kindRekeyIKE {
		more, err = e.finishRekeyIKE(sa, h)
	} else {
		err = e.finishChild(sa, h)
	}
	e.dropHalf(sa, h)
	if err != nil {
		return nil, err
	}
	return append(ps, more...), nil
}

// finishChild makes a Child SA of the peer's whose key exchanges are done.
func (e *Engine) finishChild(sa *ikeSA, h *halfMade) error {
	if err := e.childrenBlocked(sa); err != nil {
		return err
	}
	p := childParams{ni: h.ni, nr: h.nr, keyID: h.keyID}
	if h.kind == kindRekeyChild {
		p.replaces = e.children[h.replaces]
		switch {
		case p.replaces == nil || p.replaces.ike != sa:
			return refuse(message.ChildSANotFound, "Child SA %s has ended", h.replaces)
		case p.replaces.state == childOwed:
			return refuse(message.TemporaryFailure, "Child SA %s is being deleted", h.replaces)
		}
	}
	if len(sa.children) >= maxChildren {
		return refuse(message.NoAdditionalSAs, "%d Child SAs on one IKE SA", len(sa.children))
	}
	c := choice{suite: h.suite, peerSPI: spiBytes(h.spiOut)}
	if _, err := e.installAnswered(sa, h.phase2, c, h.spiIn, h.tsLocal, h.tsPeer, h.secrets, p); err != nil {
		return err
	}
	if p.replaces != nil {
		p.replaces.state = childReplaced
	}
	return nil
}

// finishRekeyIKE makes the successor of an IKE SA whose key exchanges are done, and
// returns what else the response says.
func (e *Engine) finishRekeyIKE(sa *ikeSA, h *halfMade) ([]message.Payload, error) {
	if !sa.lives() || sa.awaitsDelete || e.sas[h.spis.R] != nil {
		return nil, refuse(message.TemporaryFailure, "the IKE SA is being closed")
	}
	n, err := e.succeed(sa, h.suite, h.spis, false, h.ni, h.nr, h.secrets, h.keyID)
	if err != nil {
		return nil, refuse(message.NoProposalChosen, "%w", err)
	}
	e.succeeded(sa, n)
	return e.tokenPayloads(n), nil
}

// lost says that a rekey of ours collided with one of the peer's and used the lowest nonce,
// so that the peer's is the one that counts (RFC 7296 §2.8.1).
func (x *exchange) lost(ni, nr []byte) bool {
	return x.collided && string(lower(ni, nr)) < string(x.collidedNonce)
}

// halvesLost forgets what the peer has begun that lost against an exchange of ours: the peer
// goes no further with it.
func (e *Engine) halvesLost(sa *ikeSA, x *exchange) {
	if !x.collided {
		return
	}
	e.dropHalves(sa, func(h *halfMade) bool {
		return h.kind == kindRekeyIKE && x.kind == kindRekeyIKE || h.kind != kindRekeyIKE && h.spiIn == x.collidedChild
	})
}
