package ike

import (
	"cmp"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// authStart sends the IKE_AUTH request with the first Child SA (RFC 7296 §1.2); m is the
// IKE_SA_INIT response.
func (e *Engine) authStart(sa *ikeSA, m *message.Message, phase2 string) {
	e.debug(sa, "initiator preparing AUTH msg")
	req := e.certReq(sa.p1)
	if e.firstToPeer(sa) {
		e.debug(sa, "sending INITIAL-CONTACT")
		req = append(req, notify(message.InitialContact, nil))
	}
	ps, err := sa.withPPK(func() ([]message.Payload, error) {
		if sa.p1.EAP {
			return e.eapStart(sa, req), nil
		}
		return e.credentialPayloads(sa, m, sa.p1.PSK, req)
	})
	if err != nil {
		e.warn(sa, "cannot authenticate ourselves", slog.String("reason", err.Error()))
		e.fail(sa, err.Error())
		e.remove(sa, false, "cannot begin IKE_AUTH")
		return
	}
	ps = append(ps, e.configAsk(sa)...)
	x := &exchange{kind: kindAuth, phase2: phase2}
	if p2 := e.firstChild(sa, phase2); p2 != nil {
		x.spiIn = e.newESPSPI()
		x.offered, x.tsL, x.tsR = p2.Proposals, p2.Src, p2.Dst
		ps = append(ps, childOffer(x, nil)...)
	}
	ps = append(ps, capabilityPayloads(capMessageIDSync|capCounterSync|sa.mobikeOffer())...)
	ps = append(ps, sa.mobikePayloads()...)
	ps = append(ps, e.tokenPayloads(sa)...)
	ps = append(ps, e.overlayPayloads(sa, nil)...)
	if !e.start(sa, x, ps) {
		e.remove(sa, false, "cannot begin IKE_AUTH")
	}
}

// firstToPeer says that we hold no other established IKE SA with the peer.
func (e *Engine) firstToPeer(sa *ikeSA) bool {
	return sa.tunnel != nil && !slices.ContainsFunc(sa.tunnel.sas, func(x *ikeSA) bool {
		return x != sa && (x.state == stateEstablished || x.state == stateRekeyed)
	})
}

// authRequest authenticates the initiator and makes the first Child SA.
func (e *Engine) authRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received AUTH msg")
	if left := sa.methodsLeft(); len(left) > 0 {
		return nil, refuse(message.InvalidSyntax, "IKE_AUTH before the additional key exchanges %v", left)
	}
	idi, ok := ev.m.ID(false)
	auth, ok2 := message.Get[*message.Auth](ev.m)
	if !ok || !ok2 {
		return nil, refuse(message.InvalidSyntax, "IKE_AUTH without IDi or AUTH")
	}
	peer := identity{idi.IDType, string(idi.Data)}
	e.debug(sa, "peer identifier "+peer.String(), slog.String("type", idi.IDType.String()))
	p1, proof, err := e.authenticate(sa, ev.m, idi, peer, auth)
	if errors.As(err, new(*awaiting)) {
		return nil, err
	}
	if err != nil {
		e.counters.AuthRefused++
		e.warn(sa, "authentication failed", slog.String("peer_id", peer.String()), slog.String("reason", err.Error()))
		return nil, &NotifyError{Type: message.AuthenticationFailed, Err: err}
	}
	sa.p1, sa.phase1, sa.peerAuth = p1, p1.Name, proof
	e.debug(sa, "responder preparing AUTH msg")
	ps, err := e.credentialPayloads(sa, ev.m, e.sharedKey(p1, peer), nil)
	if err != nil {
		e.warn(sa, "cannot authenticate ourselves", slog.String("reason", err.Error()))
		return nil, &NotifyError{Type: message.AuthenticationFailed, Err: err}
	}
	return e.admitted(sa, ev, peer, proof.attrs(), ps)
}

// admitted ends IKE_AUTH for an initiator that has proved itself, by what the attributes tell; ps are
// the payloads that answer its proof.
func (e *Engine) admitted(sa *ikeSA, ev *event, peer identity, proof []slog.Attr, ps []message.Payload) ([]message.Payload, error) {
	p1 := sa.p1
	_, initial := ev.m.Notify(message.InitialContact)
	e.identify(sa, peer)
	if p1.Dialup() {
		sa.tunnel = e.dialupTunnel(sa, peer, initial)
	} else {
		sa.tunnel = e.staticTunnel(p1)
	}
	sa.tunnel.sas = append(sa.tunnel.sas, sa)
	sa.tunnel.ikeCreated++
	e.debug(sa, "auth verify done")
	e.info(sa, "authentication succeeded", append(proof, slog.String("peer_id", peer.String()))...)
	e.noteCapabilities(sa, ev.m)
	e.noteToken(sa, ev.m)
	e.notePeerAddress(sa, ev.m)
	if err := e.authThroughNAT(sa, ev); err != nil {
		return nil, err
	}
	ni, nr := sa.nonceI, sa.nonceR
	e.establish(sa)
	if initial {
		sa.initialContact = true
		e.initialContact(sa)
	}
	_, withChild := message.Get[*message.SA](ev.m)
	if withChild {
		sa.caps &^= capChildless
	}
	cfg, refused := e.configAnswer(sa, ev.m)
	ps = append(ps, cfg...)
	if to := e.redirectAuth(sa); to != nil {
		ps = append(ps, to...) // and nothing is made here
	} else if refused != nil {
		ps = append(ps, e.noAddress(sa, refused))
	} else if withChild {
		reply, _, err := e.childAnswer(sa, ev.m, childParams{first: true, ni: ni, nr: nr, keyID: sa.keyID})
		if err != nil {
			// The IKE SA stands without it (RFC 7296 §2.21.2).
			n := err.(*NotifyError)
			e.warn(sa, "negotiation failure", slog.String("notify", n.Type.String()), slog.String("reason", n.Err.Error()))
			sa.tunnel.failure = n.Error()
			reply = []message.Payload{n.payload()}
		}
		ps = append(ps, reply...)
	}
	ps = append(ps, sa.ppkPayloads()...)
	ps = append(ps, capabilityPayloads(sa.caps)...)
	ps = append(ps, e.overlayPayloads(sa, ev.m)...)
	ps = append(ps, sa.authLifetime()...)
	ps = append(ps, e.tokenPayloads(sa)...)
	ev.after = append(ev.after, func() { e.duplicates(sa) })
	return ps, nil
}

// authenticate finds the phase 1 entry whose identity and key the peer proves
// (RFC 7296 §2.15). Entries that name the identity come before those that take any; none
// of another overlay network is considered. The proof is nil for a pre-shared key.
func (e *Engine) authenticate(sa *ikeSA, m *message.Message, idi *message.ID, peer identity, auth *message.Auth) (*config.Phase1, *peerAuth, error) {
	bySignature := signatureMethod(auth.Method)
	if auth.Method != message.AuthPSK && !bySignature {
		return nil, nil, refuse(message.AuthenticationFailed, "authentication method %s is not accepted", auth.Method)
	}
	net := sa.peerNetwork(m)
	known, elsewhere, failed, tried, shown := false, (*config.Phase1)(nil), error(nil), 0, (*presented)(nil)
	for _, named := range []bool{true, false} {
		for _, p1 := range e.candidates(sa.local.Addr(), sa.remote.Addr(), sa.tcp) {
			if p1.EAP || isNamed(p1) != named || !idMatches(p1, peer) || !e.accepted(p1, peer) || signs(p1) != bySignature || !suits(p1, sa.suite) {
				continue
			}
			if networkOf(p1) != net {
				elsewhere = p1
				continue
			}
			known = true
			if bySignature && shown == nil {
				shown = e.present(m, peer)
			}
			if bySignature && tried >= maxSignatureTries {
				continue
			}
			var proof *peerAuth
			err := sa.underPPK(m, p1, auth, func(auth *message.Auth) (err error) {
				if bySignature {
					proof, err = e.checkSignature(sa, p1, shown, idi, auth)
					return err
				}
				if !hmac.Equal(sa.sharedKeyAuth(true, e.sharedKey(p1, peer), idi), auth.Data) {
					return refuse(message.AuthenticationFailed, "pre-shared key mismatch")
				}
				return nil
			})
			if err == nil {
				return p1, proof, nil
			}
			if errors.As(err, new(*awaiting)) {
				return nil, nil, err
			}
			if bySignature && !errors.As(err, new(misfit)) {
				tried++
				failed = err
			}
			failed = cmp.Or(failed, err)
		}
	}
	if !known && elsewhere != nil {
		return nil, nil, refuse(message.AuthenticationFailed, "network-id %s of the peer: %s has %s", net, elsewhere.Name, networkOf(elsewhere))
	}
	if !known {
		return nil, nil, refuse(message.AuthenticationFailed, "no gateway accepts the peer identifier %s by %s", peer, auth.Method)
	}
	return nil, nil, failed
}

// maxSignatureTries bounds for how many phase 1 entries signatures are checked in one IKE_AUTH. Entries
// that ask for other names cost none and do not count.
const maxSignatureTries = 8

func isNamed(p1 *config.Phase1) bool { return p1.PeerType != "" && p1.PeerType != "any" }

// suits says whether a phase 1 entry would have chosen the suite.
func suits(p1 *config.Phase1, s ipsec.Suite) bool {
	if !slices.Contains(p1.DHGroups, s.KE) {
		return false
	}
	if !addKEs(p1.AddKE).allow(s.AddKE) {
		return false
	}
	s.KE, s.AddKE = ipsec.KENone, ipsec.AddKE{}
	return slices.ContainsFunc(ikeSuites(p1), func(x ipsec.Suite) bool {
		x.KE, x.ESN = ipsec.KENone, s.ESN
		return x == s
	})
}

// authResponse authenticates the responder and takes the first Child SA.
func (e *Engine) authResponse(sa *ikeSA, ev *event) {
	e.debug(sa, "initiator received AUTH msg")
	if e.postpones(sa, ev) {
		return
	}
	if sa.p1 != nil && sa.p1.EAP {
		e.eapResponse(sa, ev)
		return
	}
	x := e.finish(sa)
	if sa.p1 == nil {
		e.remove(sa, false, "phase 1 is not configured any more")
		return
	}
	idr, ok1 := ev.m.ID(true)
	auth, ok2 := message.Get[*message.Auth](ev.m)
	if !ok1 || !ok2 {
		e.authGaveUp(sa, x, refusalIn(ev.m, "AUTH response without IDr or AUTH"), false)
		return
	}
	peer := identity{idr.IDType, string(idr.Data)}
	e.debug(sa, "peer identifier "+peer.String(), slog.String("type", idr.IDType.String()))
	if err := e.ppkAnswered(sa, ev.m); err != nil {
		e.authGaveUp(sa, x, err.Error(), true)
		return
	}
	if err := e.responderProved(sa, ev.m, peer, idr, auth); err != nil {
		e.authGaveUp(sa, x, err.Error(), true)
		return
	}
	e.initiated(sa, ev, x, peer, sa.peerAuth.attrs())
}

// responderProved says whether the responder is one whom the phase 1 accepts and has proved it.
func (e *Engine) responderProved(sa *ikeSA, m *message.Message, peer identity, idr *message.ID, auth *message.Auth) error {
	switch {
	case signs(sa.p1) != signatureMethod(auth.Method) || !signs(sa.p1) && auth.Method != message.AuthPSK:
		return errors.New("authentication method " + auth.Method.String() + " is not accepted")
	case !signs(sa.p1) && !hmac.Equal(sa.sharedKeyAuth(false, sa.p1.PSK, idr), auth.Data):
		return errors.New("pre-shared key mismatch")
	case !idMatches(sa.p1, peer):
		return errors.New("peer identifier " + peer.String() + " is not accepted")
	}
	if signs(sa.p1) {
		proof, err := e.checkSignature(sa, sa.p1, e.present(m, peer), idr, auth)
		if err != nil {
			return err
		}
		sa.peerAuth = proof
	}
	return nil
}

// refusalIn is the error that a response names, else another reason.
func refusalIn(m *message.Message, reason string) string {
	for _, n := range m.Notifies() {
		if n.NotifyType.IsError() {
			reason = n.NotifyType.String() + " in AUTH response"
		}
	}
	return reason
}

// initiated ends IKE_AUTH with a responder that has proved itself, by what the attributes tell.
func (e *Engine) initiated(sa *ikeSA, ev *event, x *exchange, peer identity, proof []slog.Attr) {
	if networkOf(sa.p1) != sa.peerNetwork(ev.m) {
		e.authGaveUp(sa, x, fmt.Sprintf("network-id %s of the peer (%s): %s has %s", sa.peerNetwork(ev.m), sa.vendor(), sa.phase1, networkOf(sa.p1)), true)
		return
	}
	e.identify(sa, peer)
	e.debug(sa, "auth verify done")
	e.info(sa, "authentication succeeded", append(proof, slog.String("peer_id", peer.String()))...)
	e.noteCapabilities(sa, ev.m)
	e.noteToken(sa, ev.m)
	e.notePeerAddress(sa, ev.m)
	ni, nr := sa.nonceI, sa.nonceR
	e.establish(sa)
	if n, ok := ev.m.Notify(message.AuthLifetime); ok {
		e.noteAuthLifetime(sa, n)
	}
	if _, ok := ev.m.Notify(message.InitialContact); ok {
		e.initialContact(sa)
	}
	if e.redirectedAuth(sa, ev.m, x) {
		return
	}
	if !e.configTaken(sa, ev.m) {
		e.close(sa, "mode-cfg: no address") // only IKE_AUTH can ask again
		e.drop(x)
		e.proceed(sa)
		return
	}
	if x.spiIn != 0 {
		p := childParams{first: true, ni: ni, nr: nr, keyID: sa.keyID}
		if _, err := e.childAccept(sa, ev.m, x, p); err != nil {
			e.warn(sa, "negotiation failure", slog.String("phase2", x.phase2), slog.String("reason", err.Error()))
			sa.tunnel.failure = err.Error()
			e.createFailed(sa, x.phase2)
		}
	}
	sa.childLater(x)
	e.drop(x)
	e.duplicates(sa)
}

// authGaveUp ends a negotiation that failed in IKE_AUTH. tell: the responder
// believes that it succeeded, so it learns of it once, without a retry
// (RFC 7296 §2.21.2).
func (e *Engine) authGaveUp(sa *ikeSA, x *exchange, reason string, tell bool) {
	e.counters.AuthRefused++
	e.warn(sa, "authentication failed", slog.String("reason", reason))
	e.fail(sa, reason)
	if tell {
		b, err := e.seal(sa, message.Informational, false, sa.nextSend,
			[]message.Payload{notify(message.AuthenticationFailed, nil)})
		if err == nil {
			e.holdMessage(sa, sa.datagram(b))
		}
	}
	e.drop(x)
	e.remove(sa, false, reason)
}

// establish makes an authenticated IKE SA live.
func (e *Engine) establish(sa *ikeSA) {
	e.touch(sa)
	e.closeHalfOpen(sa)
	sa.state = stateEstablished
	sa.established = e.now
	sa.took = e.now.Sub(sa.created)
	sa.soft, sa.hard = e.ikeLifetimes(sa)
	e.authenticated(sa)
	sa.initRequest, sa.initResponse, sa.nonceI, sa.nonceR = nil, nil, nil, nil
	sa.inter.wipe()
	sa.inter = nil
	sa.lowestNonce = slices.Clone(sa.lowestNonce) // a part of what is let go
	t := sa.tunnel
	t.ikeEstablished++
	t.statsIKE.add(sa.took)
	t.failure = ""
	e.info(sa, "established IKE SA "+sa.spis.String(), slog.String("proposal", sa.suite.String()),
		slog.String("peer_id", sa.peerID.String()))
	e.route(sa)
	e.tunnelChanged(t, "established")
}

// duplicates resolves two IKE SAs with the same peer for one tunnel. An older one goes: the
// peer that began anew beside it, without INITIAL_CONTACT, ends it when the new one has its
// Child SAs (RFC 7296 §2.8.3), and has time for that; if both were negotiated at the same time,
// the one with the lowest nonce goes, ended by its initiator, as among rekeyed SAs
// (RFC 7296 §2.8.2 by analogy).
func (e *Engine) duplicates(sa *ikeSA) {
	if sa.tunnel == nil || !sa.lives() {
		return
	}
	for _, old := range slices.Clone(sa.tunnel.sas) {
		if old == sa || !old.lives() || old.peerID != sa.peerID {
			continue
		}
		if sa.replaces == old.spis {
			continue // it ends when this one has its Child SAs
		}
		loser, keeper := old, sa
		if !old.olderThan(sa) {
			if string(sa.lowestNonce) < string(old.lowestNonce) {
				loser, keeper = sa, old
			}
			if !loser.initiator {
				// The peer ends it; a peer that does not know our rule gets time.
				e.leaveToPeer(loser)
				e.childrenOf(loser, keeper)
				continue
			}
		} else if !sa.initiator {
			e.leaveToPeer(old)
			continue
		}
		if len(keeper.children) == 0 && len(loser.children) > 0 && !keeper.childless() {
			continue // it still carries the traffic
		}
		e.info(loser, "IKE SA is a duplicate of "+keeper.spis.String())
		e.info(loser, "schedule delete of IKE SA "+loser.spis.String())
		e.close(loser, "duplicate")
		e.childrenOf(loser, keeper)
		e.proceed(loser)
		if loser == sa {
			break
		}
	}
	e.negotiate(sa.tunnel)
}
