package ike

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// replayWindow is the size in packets of the replay windows of our Child SAs.
const replayWindow = 2048

// maxChildren is how many Child SAs a peer may have on one IKE SA.
const maxChildren = 512

// childParams say how a Child SA comes about.
type childParams struct {
	first    bool   // of IKE_AUTH: no key exchange of its own
	ni, nr   []byte // of the exchange
	keyID    ipsec.KeyID
	replaces *childSA
}

// childOffer are the payloads of a request that makes a Child SA, but for nonce and KE.
func childOffer(x *exchange, groups []ipsec.TransformID) []message.Payload {
	return []message.Payload{
		&message.SA{Proposals: x.add.offer(espProposals(x.offered, groups, spiBytes(x.spiIn)))},
		&message.TS{Selectors: x.tsL},
		&message.TS{Responder: true, Selectors: x.tsR},
	}
}

func spiBytes(s ipsec.ESPSPI) []byte { return binary.BigEndian.AppendUint32(nil, uint32(s)) }

func espSPI(b []byte) ipsec.ESPSPI { return ipsec.ESPSPI(binary.BigEndian.Uint32(b)) }

// createChild requests a Child SA for a phase 2 entry, in place of rekeyed if that
// is set (RFC 7296 §1.3.1, §1.3.3).
func (e *Engine) createChild(sa *ikeSA, p2 *config.Phase2, rekeyed *childSA) bool {
	x := &exchange{kind: kindCreateChild, phase2: p2.Name, nonce: e.random(nonceLen), keyID: e.newKeyID(),
		spiIn: e.newESPSPI(), offered: p2.Proposals}
	x.tsL, x.tsR = sa.selectors(p2)
	if p2.PFS {
		x.groups, x.add = p2.DHGroups, p2.AddKE
	}
	var first ipsec.TransformID
	if len(x.groups) > 0 {
		first = x.groups[0]
	}
	if rekeyed != nil {
		x.kind, x.rekeyed = kindRekeyChild, rekeyed.SPIIn
		// The successor should not have other selectors (RFC 7296 §2.8), unless
		// the configuration changed.
		if allCovered(p2.Src, rekeyed.TSLocal) && allCovered(p2.Dst, rekeyed.TSRemote) {
			x.tsL, x.tsR = rekeyed.TSLocal, rekeyed.TSRemote
		}
		if slices.Contains(x.groups, rekeyed.Suite.KE) {
			first = rekeyed.Suite.KE
		}
		e.infoChild(rekeyed, "IPsec SA rekey")
	}
	return e.sendCreateChild(sa, x, first)
}

// sendCreateChild sends x with a key exchange of a group, 0 for none.
func (e *Engine) sendCreateChild(sa *ikeSA, x *exchange, group ipsec.TransformID) bool {
	var ps []message.Payload
	if x.kind == kindRekeyChild {
		// The SPI is the one at which we receive (RFC 7296 §1.3.3).
		ps = append(ps, &message.Notify{Protocol: ipsec.ProtocolESP, SPI: spiBytes(x.rekeyed), NotifyType: message.RekeySA})
		e.debug(sa, "rekey in progress for SPI "+x.rekeyed.String())
	}
	x.ke = nil
	offer := childOffer(x, x.groups)
	ps = append(ps, offer[0], &message.Nonce{Data: x.nonce})
	if group != ipsec.KENone {
		kx, err := keymat.NewKeyExchange(group, e.o.Rand)
		if err != nil {
			e.warn(sa, "cannot offer DH group", slog.Int("group", int(group)), slog.String("error", err.Error()))
			return false
		}
		x.ke = kx
		ps = append(ps, &message.KE{Group: group, Data: kx.Public()})
		e.debug(sa, "PFS enabled", slog.Int("group", int(group)))
	}
	ps = append(ps, offer[1:]...)
	e.debug(sa, "initiating CREATE_CHILD exchange", slog.String("phase2", x.phase2))
	return e.start(sa, x, ps)
}

// createChildRequest makes a further Child SA at the peer's request.
func (e *Engine) createChildRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received CREATE_CHILD exchange")
	if err := e.childrenBlocked(sa); err != nil {
		return nil, err
	}
	ps, fresh, err := e.childExchange(sa, ev, nil)
	if err != nil {
		return nil, err
	}
	if x := sa.req; x != nil && x.kind == kindCreateChild && x.phase2 == fresh.phase2 {
		// Both sides create it at once: as with rekeys, the lowest nonce loses.
		x.collide(fresh)
	}
	return ps, nil
}

// collide says that the peer has begun the same.
func (x *exchange) collide(fresh answeredChild) {
	x.collided, x.collidedChild, x.collidedNonce = true, fresh.spiIn, fresh.nonce
}

// childrenBlocked says why no Child SA is made or rekeyed now (RFC 7296 §2.25.2).
func (e *Engine) childrenBlocked(sa *ikeSA) error {
	switch {
	case !sa.lives():
		return refuse(message.TemporaryFailure, "the IKE SA is being closed")
	case sa.req != nil && sa.req.kind == kindRekeyIKE:
		return refuse(message.TemporaryFailure, "the IKE SA is being rekeyed")
	case sa.halfRekey() != nil:
		return refuse(message.TemporaryFailure, "the IKE SA is being rekeyed by the peer")
	case sa.awaitsDelete:
		return refuse(message.TemporaryFailure, "the IKE SA is redundant")
	case sa.p1 == nil:
		return refuse(message.NoAdditionalSAs, "phase 1 is not configured any more")
	}
	return nil
}

// childExchange answers CREATE_CHILD_SA for a Child SA.
func (e *Engine) childExchange(sa *ikeSA, ev *event, replaces *childSA) ([]message.Payload, answeredChild, error) {
	ni, ok := message.Get[*message.Nonce](ev.m)
	if !ok {
		return nil, answeredChild{}, refuse(message.InvalidSyntax, "CREATE_CHILD_SA without nonce")
	}
	p := childParams{ni: ni.Data, nr: e.random(nonceLen), replaces: replaces}
	return e.childAnswer(sa, ev.m, p)
}

// answeredChild is a Child SA that a response of ours promises, installed or half made.
type answeredChild struct {
	phase2 string
	spiIn  ipsec.ESPSPI
	nonce  []byte // the lower one
}

// childAnswer chooses suite and selectors, installs the pair and returns the payloads of the
// response. With additional key exchanges the pair is installed after them. Its errors are
// *NotifyError.
func (e *Engine) childAnswer(sa *ikeSA, m *message.Message, p childParams) ([]message.Payload, answeredChild, error) {
	no := answeredChild{}
	e.debug(sa, "responder creating new child")
	offer, ok1 := message.Get[*message.SA](m)
	tsi, ok2 := m.TS(false)
	tsr, ok3 := m.TS(true)
	if !ok1 || !ok2 || !ok3 {
		return nil, no, refuse(message.InvalidSyntax, "Child SA request without SA, TSi or TSr")
	}
	if sa.p1 == nil {
		return nil, no, refuse(message.NoAdditionalSAs, "phase 1 is not configured any more")
	}
	if len(sa.children) >= maxChildren {
		return nil, no, refuse(message.NoAdditionalSAs, "%d Child SAs on one IKE SA", len(sa.children))
	}
	e.debug(sa, "comparing selectors")
	var ts tsMatch
	var ok bool
	if !sa.isClient() {
		tsi = &message.TS{Selectors: sa.within(tsi.Selectors)}
	}
	if r := p.replaces; r != nil && r.p2 != nil {
		ts, ok = matchSelectors([]*config.Phase2{r.p2}, tsi.Selectors, tsr.Selectors)
	}
	if !ok {
		ts, ok = matchSelectors(e.phase2sOf(sa.phase1), tsi.Selectors, tsr.Selectors)
	}
	if !ok {
		return nil, no, refuse(message.TSUnacceptable, "no phase 2 shares traffic with %v === %v", tsr.Selectors, tsi.Selectors)
	}
	e.debug(sa, "matched by rfc-rule-2", slog.String("phase2", ts.p2.Name))
	e.debug(sa, "phase2 matched by "+ts.rule, slog.String("phase2", ts.p2.Name))

	ke, hasKE := message.Get[*message.KE](m)
	var groups []ipsec.TransformID
	var offered ipsec.TransformID
	if hasKE {
		offered = ke.Group
	}
	var add addKEs
	if ts.p2.PFS && !p.first {
		groups, add = ts.p2.DHGroups, ts.p2.AddKE
	}
	c, ok := selectESP(offer.Proposals, ts.p2.Proposals, groups, offered, add, p.first)
	if !ok {
		return nil, no, refuse(message.NoProposalChosen, "no proposal of phase 2 %s is offered", ts.p2.Name)
	}
	var shared ipsec.Key
	var ps []message.Payload
	var public []byte
	if c.suite.KE != ipsec.KENone {
		if !hasKE || ke.Group != c.suite.KE {
			n := refuse(message.InvalidKEPayload, "DH group %d instead of %d", offered, c.suite.KE)
			n.Data = binary.BigEndian.AppendUint16(nil, uint16(c.suite.KE))
			return nil, no, n
		}
		var err error
		if public, shared, err = answerKE(e.o.Rand, ke); err != nil {
			return nil, no, err
		}
	}
	if p.keyID == 0 {
		p.keyID = e.newKeyID()
	}
	spiIn := e.newESPSPI()
	var link message.Payload
	if c.suite.AddKE == (ipsec.AddKE{}) {
		_, err := e.installAnswered(sa, ts.p2.Name, c, spiIn, ts.local, ts.remote, []ipsec.Key{shared}, p)
		shared.Wipe()
		if err != nil {
			return nil, no, err
		}
	} else {
		h := &halfMade{kind: kindCreateChild, suite: c.suite, ni: p.ni, nr: p.nr, secrets: []ipsec.Key{shared}, phase2: ts.p2.Name,
			spiIn: spiIn, spiOut: espSPI(c.peerSPI), tsLocal: ts.local, tsPeer: ts.remote, keyID: p.keyID}
		if p.replaces != nil {
			h.kind, h.replaces = kindRekeyChild, p.replaces.SPIIn
		}
		link = e.keepHalf(sa, h)
	}
	c.accepted.SPI = spiBytes(spiIn)
	ps = append(ps, &message.SA{Proposals: []ipsec.Proposal{c.accepted}})
	if !p.first {
		ps = append(ps, &message.Nonce{Data: p.nr})
	}
	if public != nil {
		ps = append(ps, &message.KE{Group: ke.Group, Data: public})
	}
	ps = append(ps, &message.TS{Selectors: ts.remote}, &message.TS{Responder: true, Selectors: ts.local})
	if link != nil {
		ps = append(ps, link)
	}
	return ps, answeredChild{ts.p2.Name, spiIn, lower(p.ni, p.nr)}, nil
}

// installAnswered installs the pair of an exchange that the peer began. Its errors are
// *NotifyError.
func (e *Engine) installAnswered(sa *ikeSA, phase2 string, c choice, spiIn ipsec.ESPSPI, local, remote []ipsec.TrafficSelector,
	secrets []ipsec.Key, p childParams) (*childSA, error) {
	child, err := e.buildChild(sa, phase2, c, spiIn, local, remote, secrets, p, false)
	if err != nil {
		return nil, refuse(message.NoProposalChosen, "%w", err)
	}
	if old := sa.beside(child); p.replaces == nil && old != nil {
		child.replaces, child.useAt = old.SPIIn, e.now.Add(takesOver)
	}
	// Where there is an old SA our outbound traffic stays on it until the peer is known
	// to receive on the new one (RFC 7296 §2.8).
	child.outbound = child.replaces == 0
	e.addChild(sa, child)
	return child, nil
}

// childAccept takes the response to a request of ours and installs the pair.
func (e *Engine) childAccept(sa *ikeSA, m *message.Message, x *exchange, p childParams) (*childSA, error) {
	h, err := e.childChosen(sa, m, x, p)
	if err != nil {
		return nil, err
	}
	defer h.wipe()
	return e.childOfOwn(sa, x, h, p)
}

// childChosen checks the response to a request of ours.
func (e *Engine) childChosen(sa *ikeSA, m *message.Message, x *exchange, p childParams) (*halfMade, error) {
	for _, n := range m.Notifies() {
		if n.NotifyType.IsError() {
			return nil, &peerRefusal{n.NotifyType, n.Data}
		}
	}
	offer, ok1 := message.Get[*message.SA](m)
	tsi, ok2 := m.TS(false)
	tsr, ok3 := m.TS(true)
	if !ok1 || !ok2 || !ok3 {
		return nil, refuse(message.InvalidSyntax, "response without SA, TSi or TSr")
	}
	var group ipsec.TransformID
	if x.ke != nil {
		group = x.ke.Group()
	}
	c, ok := acceptedESP(offer, x.offered, group, x.add)
	if !ok {
		return nil, e.disown(sa, x, "the peer chose a proposal that was not offered")
	}
	if _, transport := m.Notify(message.UseTransportMode); transport {
		return nil, e.disown(sa, x, "the peer chose transport mode, which was not asked for")
	}
	if len(tsi.Selectors) == 0 || len(tsr.Selectors) == 0 ||
		!allCovered(x.tsL, tsi.Selectors) || !allCovered(x.tsR, tsr.Selectors) {
		return nil, e.disown(sa, x, "the peer's traffic selectors go beyond ours")
	}
	var shared ipsec.Key
	if x.ke != nil {
		ke, ok := message.Get[*message.KE](m)
		if !ok || ke.Group != group {
			return nil, e.disown(sa, x, "response without KE of our group")
		}
		var err error
		if shared, err = x.ke.Shared(ke.Data); err != nil {
			return nil, e.disown(sa, x, err.Error())
		}
	}
	if len(tsi.Selectors) != len(x.tsL) || len(tsr.Selectors) != len(x.tsR) || !allCovered(tsi.Selectors, x.tsL) || !allCovered(tsr.Selectors, x.tsR) {
		e.debug(sa, "traffic selectors were narrowed by the peer", slog.String("phase2", x.phase2))
	}
	h := &halfMade{kind: x.kind, suite: c.suite, ni: p.ni, nr: p.nr, secrets: []ipsec.Key{shared}, phase2: x.phase2,
		spiIn: x.spiIn, spiOut: espSPI(c.peerSPI), replaces: x.rekeyed, tsLocal: tsi.Selectors, tsPeer: tsr.Selectors}
	return h, nil
}

// childOfOwn installs the pair that an exchange of ours has made, its key exchanges done.
func (e *Engine) childOfOwn(sa *ikeSA, x *exchange, h *halfMade, p childParams) (*childSA, error) {
	c := choice{suite: h.suite, peerSPI: spiBytes(h.spiOut)}
	child, err := e.buildChild(sa, h.phase2, c, h.spiIn, h.tsLocal, h.tsPeer, h.secrets, p, true)
	if err != nil {
		return nil, e.disown(sa, x, err.Error())
	}
	if slices.Contains(x.deletedOutward, child.SPIOut) {
		// The peer ended it before its own response reached us.
		return nil, refuse(message.ChildSANotFound, "the peer has deleted the new SA already")
	}
	child.outbound = true
	child.rekeyNow = x.contested // the peer knows it only if it answered this request
	return child, e.installOwn(sa, child, x)
}

// installOwn adds a Child SA of our own exchange, without outbound traffic when a
// collision has made it redundant.
func (e *Engine) installOwn(sa *ikeSA, child *childSA, x *exchange) error {
	if x.collided && string(child.lowestNonce) < string(x.collidedNonce) {
		e.infoChild(child, "redundant IPsec SA of a simultaneous rekey")
		child.outbound = false
		child.state = childOwed
		e.addChild(sa, child)
		sa.owe(child.SPIIn)
		return nil
	}
	e.addChild(sa, child)
	return nil
}

// disown gives up a Child SA that the peer has installed by now: it is told so.
func (e *Engine) disown(sa *ikeSA, x *exchange, reason string) error {
	e.touch(sa)
	sa.owe(x.spiIn)
	return refuse(message.NoProposalChosen, "%s", reason)
}

// peerRefusal is an error that the peer sent.
type peerRefusal struct {
	notify message.NotifyType
	data   []byte
}

func (x *peerRefusal) Error() string { return "peer sent " + x.notify.String() }

// buildChild derives the keys of a Child SA and draws its lifetimes. local and
// remote are the selectors as seen from here; secrets are those of its key exchanges, the
// first one empty where there was none; ours says that we began the exchange.
func (e *Engine) buildChild(sa *ikeSA, phase2 string, c choice, spiIn ipsec.ESPSPI, local, remote []ipsec.TrafficSelector,
	secrets []ipsec.Key, p childParams, ours bool) (*childSA, error) {
	k, err := keymat.DeriveChild(sa.suite.PRF, sa.keys.D, c.suite, p.ni, p.nr, secrets[0], secrets[1:]...)
	if err != nil {
		return nil, err
	}
	child := &childSA{state: childInstalled, initiator: ours, lowestNonce: lower(p.ni, p.nr), ike: sa,
		p2: e.phase2(sa.phase1, phase2)}
	at := sa.espPath()
	child.ChildSA = ipsec.ChildSA{
		Tunnel: sa.name(), Phase1: sa.phase1, Phase2: phase2,
		SPIIn: spiIn, SPIOut: espSPI(c.peerSPI), Suite: c.suite, KeyID: p.keyID,
		Local: at.local, Remote: at.remote, UDPEncap: at.udpEncap, TCP: at.tcp,
		TSLocal: local, TSRemote: remote,
	}
	if ours {
		child.EncrOut, child.SaltOut, child.IntegOut = k.EncrI, k.SaltI, k.IntegI
		child.EncrIn, child.SaltIn, child.IntegIn = k.EncrR, k.SaltR, k.IntegR
	} else {
		child.EncrOut, child.SaltOut, child.IntegOut = k.EncrR, k.SaltR, k.IntegR
		child.EncrIn, child.SaltIn, child.IntegIn = k.EncrI, k.SaltI, k.IntegI
	}
	if child.p2 == nil || child.p2.Replay {
		child.ReplayWindow = replayWindow
	}
	if p.replaces != nil {
		child.replaces = p.replaces.SPIIn
	}
	e.childLifetimes(child)
	e.debugChild(child, "set sa life", slog.Duration("soft", child.soft), slog.Duration("hard", child.hard))
	return child, nil
}

// createChildResponse takes the answer to CREATE_CHILD_SA for a new or rekeyed Child SA.
func (e *Engine) createChildResponse(sa *ikeSA, ev *event) {
	e.debug(sa, "initiator received CREATE_CHILD msg")
	x := e.finish(sa)
	defer e.drop(x)
	old := e.children[x.rekeyed]
	if x.rekeyed == 0 {
		old = nil
	}
	p := childParams{ni: x.nonce, keyID: x.keyID, replaces: old}
	if nr, ok := message.Get[*message.Nonce](ev.m); ok {
		p.nr = nr.Data
	}
	h, err := e.childChosen(sa, ev.m, x, p)
	var child *childSA
	switch more := err == nil && h.suite.AddKE != (ipsec.AddKE{}); {
	case more && x.lost(p.ni, p.nr):
		e.debug(sa, "lost the simultaneous rekey")
		h.wipe()
		return
	case more && !sa.lives():
		err = errors.New("the IKE SA is being closed")
		h.wipe()
	case more:
		e.halvesLost(sa, x)
		if err = e.followUp(sa, x, h, ev.m); err == nil {
			return
		}
		h.wipe()
	case err == nil:
		child, err = e.childOfOwn(sa, x, h, p)
		h.wipe()
	}
	e.createdChild(sa, x, old, child, err)
}

// createdChild follows the exchanges of ours that made a Child SA, or failed to.
func (e *Engine) createdChild(sa *ikeSA, x *exchange, old, child *childSA, err error) {
	if err == nil {
		sa.temporaryFailures = 0
		if t := sa.tunnel; t != nil {
			t.statsCh.add(e.now.Sub(x.first))
			t.failure = ""
		}
		e.rekeyedChild(sa, x, old, child)
		return
	}
	e.warn(sa, "negotiation failure", slog.String("phase2", x.phase2), slog.String("reason", err.Error()))
	if sa.tunnel != nil {
		sa.tunnel.failure = err.Error()
	}
	e.childRefused(sa, x, old, err)
}

func (sa *ikeSA) owe(spi ipsec.ESPSPI) {
	if !slices.Contains(sa.owed, spi) {
		sa.owed = append(sa.owed, spi)
	}
}

// want asks for a Child SA of a phase 2 entry.
func (sa *ikeSA) want(phase2 string) {
	if phase2 != "" && !slices.Contains(sa.wants, phase2) {
		sa.wants = append(sa.wants, phase2)
	}
}
