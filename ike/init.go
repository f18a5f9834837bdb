package ike

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// initKey finds a half-open IKE SA by the request that made it.
type initKey [sha256.Size]byte

func keyOfInit(d Datagram) initKey {
	h := sha256.New()
	h.Write([]byte(d.Remote.String()))
	h.Write([]byte{0})
	h.Write(d.Data)
	return initKey(h.Sum(nil))
}

// nonceLen is the length in bytes of our nonces: at least half the key size of
// every PRF we know (RFC 7296 §2.10).
const nonceLen = 32

// maxCookies and maxKERetries bound how often a request begins anew.
const (
	maxCookies   = 3
	maxKERetries = 1
)

// initRequest answers an IKE_SA_INIT request (RFC 7296 §1.2).
func (e *Engine) initRequest(d Datagram) {
	if len(d.Data) > longestInitLen {
		e.counters.HalfOpenDenied++
		return
	}
	key := keyOfInit(d)
	if sa := e.inits[key]; sa != nil {
		// The same request again gets the same response, without another key exchange.
		if sa.ticket <= e.done && !sa.dirty {
			e.counters.Duplicates++
			e.free(Send{reply(d, sa.initResponse)})
		}
		return
	}
	m, err := message.Parse(d.Data)
	if err != nil {
		e.counters.Malformed++
		if h, herr := message.ParseHeader(d.Data); herr == nil {
			e.complain(d, h, codecRefusal(err).(*NotifyError).payload())
		}
		return
	}
	offer, ok1 := message.Get[*message.SA](m)
	ke, ok2 := message.Get[*message.KE](m)
	nonce, ok3 := message.Get[*message.Nonce](m)
	if !ok1 || !ok2 || !ok3 {
		e.counters.Malformed++
		e.complain(d, m.Header, notify(message.InvalidSyntax, nil))
		return
	}
	e.log(slog.LevelDebug, "responder received SA_INIT msg", slog.String("remote", d.Remote.String()),
		slog.String("local", d.Local.String()), slog.String("spi", m.SPIs.String()))
	if !e.admit(d, m, nonce.Data) {
		return
	}
	p1, c, found := e.matchInit(d, m, offer, ke.Group)
	if !found {
		e.complain(d, m.Header, notify(message.NoProposalChosen, nil))
		return
	}
	if c.suite.KE != ke.Group {
		e.seldom(slog.LevelInfo, p1.Name, "SA_INIT with another DH group, asking for ours",
			slog.String("remote", d.Remote.String()), slog.Int("group", int(c.suite.KE)), slog.Int("received", int(ke.Group)))
		e.limited(&e.groups, d, m.Header, notify(message.InvalidKEPayload, binary.BigEndian.AppendUint16(nil, uint16(c.suite.KE))))
		return
	}
	if err := keymat.CheckPublic(ke.Group, ke.Data); err != nil {
		e.counters.Malformed++
		e.complain(d, m.Header, notify(message.InvalidSyntax, nil))
		return
	}
	if e.redirectInit(d, m, p1, nonce.Data) {
		return
	}
	e.answerInit(d, m, p1, c, ke, nonce.Data, key)
}

// matchInit finds the phase 1 entry and suite for an offer.
func (e *Engine) matchInit(d Datagram, m *message.Message, offer *message.SA, group ipsec.TransformID) (*config.Phase1, choice, bool) {
	cands := e.candidates(d.Local.Addr(), d.Remote.Addr(), d.TCP)
	if len(cands) == 0 {
		e.seldom(slog.LevelWarn, "", "no gateway is configured for SA_INIT", slog.String("remote", d.Remote.String()),
			slog.String("local", d.Local.String()))
		return nil, choice{}, false
	}
	for _, p1 := range cands {
		add, ok := addKEsWith(p1, m)
		if !ok {
			continue
		}
		if c, ok := selectIKE(offer.Proposals, ikeSuites(p1), p1.DHGroups, group, add); ok {
			e.log(slog.LevelDebug, "SA proposal chosen, matched gateway "+p1.Name, slog.String("remote", d.Remote.String()),
				slog.String("proposal", c.suite.String()))
			return p1, c, true
		}
	}
	e.seldom(slog.LevelWarn, cands[0].Name, "negotiation failure: no SA proposal chosen",
		slog.String("remote", d.Remote.String()))
	e.failName(cands[0].Name, "no SA proposal chosen")
	return nil, choice{}, false
}

func (e *Engine) answerInit(d Datagram, m *message.Message, p1 *config.Phase1, c choice, ke *message.KE, ni []byte, key initKey) {
	public, shared, err := keymat.Answer(c.suite.KE, e.o.Rand, ke.Data)
	switch {
	case errors.Is(err, keymat.ErrKEData):
		e.counters.Malformed++
		e.complain(d, m.Header, notify(message.InvalidSyntax, nil))
		return
	case err != nil:
		e.complain(d, m.Header, notify(message.NoProposalChosen, nil))
		return
	}
	sa := &ikeSA{
		state: stateHalfOpen, p1: p1, phase1: p1.Name, suite: c.suite,
		spis:  ipsec.IKESPIs{I: m.SPIs.I, R: e.newIKESPI()},
		local: d.Local, remote: d.Remote, nonESP: d.NonESP, tcp: d.TCP,
		nonceI: ni, nonceR: e.random(nonceLen), initRequest: d.Data, // of which nonceI is a part
		created: e.now, lastIn: e.now, nextRecv: 1, initKey: key, keyID: e.newKeyID(),
	}
	sa.lowestNonce = lower(sa.nonceI, sa.nonceR)
	sa.keys, err = keymat.DeriveIKE(sa.suite, sa.nonceI, sa.nonceR, shared, sa.spis)
	shared.Wipe()
	if err != nil {
		e.complain(d, m.Header, notify(message.NoProposalChosen, nil))
		return
	}
	sa.noteNAT(detectNAT(p1, m, d))
	sa.noteVendorIDs(m)
	sa.noteRedirectSupport(m)
	ps := []message.Payload{
		&message.SA{Proposals: []ipsec.Proposal{c.accepted}},
		&message.KE{Group: c.suite.KE, Data: public},
		&message.Nonce{Data: sa.nonceR},
	}
	if _, ok := m.Notify(message.NATDetectionSourceIP); ok {
		ps = append(ps, e.natPayloads(p1, sa.spis, d.Local, d.Remote)...)
	}
	ps = append(ps, e.answerCapabilities(sa, m)...)
	sa.beginIntermediate()
	ps = append(ps, e.initPayloads(d, m)...)
	ps = append(ps, &message.VendorID{Data: e.vendorID})
	r := &message.Message{Header: sa.header(message.IKESAInit, true, 0), Payloads: ps}
	sa.initResponse = r.Encode()
	e.insert(sa)
	e.debug(sa, "responder preparing SA_INIT msg")
	e.inits[key] = sa
	e.touch(sa)
	e.logVendorIDs(sa)
	e.keyLog(sa)
	e.logSent(sa, "SA_INIT_RESPONSE", 0, len(sa.initResponse))
	e.hold(sa, Send{reply(d, sa.initResponse)})
	e.arm(sa)
}

// initiate begins an IKE SA for a tunnel; the Child SA of its IKE_AUTH is for p2. old is
// the one whose place it takes, if any (see reauth.go).
func (e *Engine) initiate(t *tunnel, p2 string, old *ikeSA) bool {
	return e.initiateTo(t, t.p1.RemoteGW, p2, old, netip.Addr{})
}

// initiateTo is initiate to a gateway to which another one has sent us, if from is valid.
func (e *Engine) initiateTo(t *tunnel, to netip.Addr, p2 string, old *ikeSA, from netip.Addr) bool {
	p1 := t.p1
	if !to.IsValid() || to.IsUnspecified() || len(p1.Proposals) == 0 || len(p1.DHGroups) == 0 {
		return false
	}
	local, ok := e.localAddr(p1, to.Is6())
	if !ok {
		e.logTunnel(t, slog.LevelWarn, "negotiation failure", slog.String("reason", "no local address on "+p1.Interface))
		t.failure = "no local address on " + p1.Interface
		return false
	}
	sa := &ikeSA{
		initiator: true, state: stateInitSent, p1: p1, phase1: p1.Name, tunnel: t,
		spis:    ipsec.IKESPIs{I: e.newIKESPI()},
		local:   netip.AddrPortFrom(local, ikePort),
		remote:  netip.AddrPortFrom(to, ikePort),
		created: e.now, lastIn: e.now,
	}
	sa.setRedirection(redirection{from: from})
	if old != nil {
		sa.replaces = old.spis
	}
	if p1.Transport == "tcp" {
		e.useTCP(sa)
	}
	t.ikeCreated++
	e.insert(sa)
	e.info(sa, "created connection: "+sa.local.String()+"->"+sa.remote.String())
	e.debug(sa, p2+": chosen to populate IKE_SA traffic-selectors")
	e.debug(sa, "no suitable IKE_SA, queuing CHILD_SA request and initiating IKE_SA negotiation")
	x := &exchange{kind: kindInit, phase2: p2, nonce: e.random(nonceLen),
		offered: ikeSuites(p1), groups: p1.DHGroups, add: p1.AddKE, keyID: e.newKeyID()}
	if !e.sendInit(sa, x, p1.DHGroups[0]) {
		e.remove(sa, false, "cannot begin")
		return false
	}
	e.arm(sa)
	return true
}

// sendInit sends an IKE_SA_INIT request with a fresh key exchange of a group, or
// with the one that x has already when group is 0 (a cookie came).
func (e *Engine) sendInit(sa *ikeSA, x *exchange, group ipsec.TransformID) bool {
	if group != 0 {
		kx, err := keymat.NewKeyExchange(group, e.o.Rand)
		if err != nil {
			e.warn(sa, "cannot offer DH group", slog.Int("group", int(group)), slog.String("error", err.Error()))
			return false
		}
		x.ke = kx
	}
	var ps []message.Payload
	if x.cookie != nil {
		ps = append(ps, notify(message.Cookie, x.cookie))
	}
	ps = append(ps,
		&message.SA{Proposals: x.add.offer(ikeProposals(x.offered, x.groups, nil))},
		&message.KE{Group: x.ke.Group(), Data: x.ke.Public()},
		&message.Nonce{Data: x.nonce})
	ps = append(ps, e.natPayloads(sa.p1, sa.spis, sa.local, sa.remote)...)
	ps = append(ps, offeredCapabilities(sa.p1)...)
	ps = append(ps, hashPayloads(sa.p1)...)
	ps = append(ps, sa.redirectPayloads()...)
	ps = append(ps, &message.VendorID{Data: e.vendorID})
	m := &message.Message{Header: sa.header(message.IKESAInit, false, 0), Payloads: ps}
	b := m.Encode()
	if b == nil {
		return false
	}
	sa.initRequest, sa.nonceI = b, x.nonce
	sa.nextSend = 0
	e.launch(sa, x, b)
	return true
}

// initResponse takes the answer to our IKE_SA_INIT. Nothing of it is
// authenticated yet, so an error changes nothing but a log line, except where
// RFC 7296 §2.21.1 names what to do.
func (e *Engine) initResponse(sa *ikeSA, d Datagram) {
	if sa.state != stateInitSent || sa.req == nil || sa.p1 == nil {
		e.counters.OutsideWindow++
		return
	}
	m, err := message.Parse(d.Data)
	if err != nil || m.MessageID != 0 {
		e.counters.Malformed++
		return
	}
	e.debug(sa, "initiator received SA_INIT response")
	if c, ok := m.Notify(message.Cookie); ok {
		e.cookieDemanded(sa, c.Data)
		return
	}
	if n, ok := m.Notify(message.InvalidKEPayload); ok {
		e.groupDemanded(sa, n.Data)
		return
	}
	if e.redirectedInit(sa, m) {
		return
	}
	for _, n := range m.Notifies() {
		if n.NotifyType.IsError() {
			e.warn(sa, "negotiation failure", slog.String("notify", n.NotifyType.String()))
			e.fail(sa, n.NotifyType.String()+" in SA_INIT response")
			return
		}
	}
	offer, ok1 := message.Get[*message.SA](m)
	ke, ok2 := message.Get[*message.KE](m)
	nonce, ok3 := message.Get[*message.Nonce](m)
	if !ok1 || !ok2 || !ok3 || m.SPIs.R == 0 {
		e.counters.Malformed++
		return
	}
	if e.ppkMissing(sa, m) {
		return
	}
	c, ok := acceptedIKE(offer, sa.req.offered, sa.req.ke.Group(), sa.req.add)
	if !ok || ke.Group != sa.req.ke.Group() {
		e.warn(sa, "negotiation failure", slog.String("reason", "the peer chose what was not offered"))
		e.fail(sa, "the peer chose an SA proposal that was not offered")
		return
	}
	caps := acceptedCapabilities(sa.p1, m)
	if c.suite.AddKE != (ipsec.AddKE{}) && caps&capIntermediate == 0 {
		e.warn(sa, "negotiation failure", slog.String("reason", "the peer chose additional key exchanges without INTERMEDIATE_EXCHANGE_SUPPORTED"))
		e.fail(sa, "the peer does not know IKE_INTERMEDIATE")
		return
	}
	shared, err := sa.req.ke.Shared(ke.Data)
	if err != nil {
		e.counters.Malformed++
		e.fail(sa, err.Error())
		return
	}
	spis := ipsec.IKESPIs{I: sa.spis.I, R: m.SPIs.R}
	keys, err := keymat.DeriveIKE(c.suite, sa.nonceI, nonce.Data, shared, spis)
	shared.Wipe()
	if err != nil {
		e.fail(sa, err.Error())
		return
	}
	e.debug(sa, "matched proposal id "+itoa(int(c.accepted.Number)), slog.String("proposal", c.suite.String()))
	x := e.finish(sa)
	e.tx.gone = append(e.tx.gone, Entry{SPIs: sa.spis}) // the key in the records changes
	sa.spis, sa.keys, sa.suite = spis, keys, c.suite
	sa.keyID = x.keyID
	e.refKey(sa.keyID)
	e.drop(x)
	sa.nonceR, sa.initResponse = nonce.Data, slices.Clone(d.Data)
	sa.lowestNonce = lower(sa.nonceI, sa.nonceR)
	sa.noteNAT(detectNAT(sa.p1, m, d))
	sa.noteVendorIDs(m)
	sa.caps = caps
	sa.beginIntermediate()
	e.logVendorIDs(sa)
	sa.float(m)
	e.keyLog(sa)
	sa.nextSend = 1
	e.afterInit(sa, x.phase2)
}

func (e *Engine) cookieDemanded(sa *ikeSA, cookie []byte) {
	x := sa.req
	if x.cookies >= maxCookies || len(cookie) == 0 || len(cookie) > 64 || bytes.Equal(cookie, x.cookie) {
		e.counters.Malformed++
		return
	}
	e.debug(sa, "received COOKIE, sending SA_INIT again")
	e.restart(sa, func(n *exchange) { n.cookies++; n.cookie = slices.Clone(cookie) }, 0)
}

func (e *Engine) groupDemanded(sa *ikeSA, data []byte) {
	x := sa.req
	g, ok := demandedGroup(data, x.groups, x.ke.Group())
	if !ok || x.retries >= maxKERetries {
		e.warn(sa, "negotiation failure", slog.String("reason", "INVALID_KE_PAYLOAD cannot be met"))
		e.fail(sa, "INVALID_KE_PAYLOAD cannot be met")
		if ok {
			e.remove(sa, false, "INVALID_KE_PAYLOAD again")
		}
		return
	}
	e.info(sa, "peer wants another DH group, sending SA_INIT again", slog.Int("group", int(g)))
	e.restart(sa, func(n *exchange) { n.retries++ }, g)
}

// demandedGroup reads INVALID_KE_PAYLOAD: a group that we offered and did not use.
func demandedGroup(data []byte, offered []ipsec.TransformID, used ipsec.TransformID) (ipsec.TransformID, bool) {
	if len(data) != 2 {
		return 0, false
	}
	g := ipsec.TransformID(binary.BigEndian.Uint16(data))
	return g, g != used && slices.Contains(offered, g)
}

// restart sends IKE_SA_INIT again under the same SPI.
func (e *Engine) restart(sa *ikeSA, change func(*exchange), group ipsec.TransformID) {
	old := e.finish(sa)
	x := &exchange{kind: kindInit, phase2: old.phase2, nonce: old.nonce, offered: old.offered, groups: old.groups, add: old.add,
		retries: old.retries, cookies: old.cookies, cookie: old.cookie, ke: old.ke, keyID: old.keyID}
	change(x)
	if group != 0 {
		x.keyID = e.newKeyID() // a new secret
	}
	if !e.sendInit(sa, x, group) {
		e.remove(sa, false, "cannot begin again")
		return
	}
	e.unrefKey(old.keyID)
}

// lower is the lower of two nonces, octet by octet (RFC 7296 §2.8.1).
func lower(a, b []byte) []byte {
	if bytes.Compare(a, b) <= 0 {
		return a
	}
	return b
}
