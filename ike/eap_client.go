package ike

import (
	"cmp"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"

	"tandem/ike/eap"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

// errEAPFailure is what the responder says.
var errEAPFailure = errors.New("EAP has failed")

// clientIdentity is the IKE identity of a client whose phase 1 has no localid.
func (e *Engine) clientIdentity(sa *ikeSA) identity {
	p := *sa.p1
	if p.LocalID = cmp.Or(p.LocalID, p.AuthUser); p.LocalIDType != "asn1dn" && p.LocalID != "" {
		return ownIdentity(&p, sa.local.Addr())
	}
	for _, n := range p.Certificate {
		if c := e.creds().own[n]; c != nil {
			return identity{message.IDDERASN1, string(c.chain[0].RawSubject)}
		}
	}
	return ownIdentity(&p, sa.local.Addr())
}

// eapStart are the payloads of the first IKE_AUTH request of a client: no AUTH says that it wants EAP.
func (e *Engine) eapStart(sa *ikeSA, req []message.Payload) []message.Payload {
	sa.ownID = e.clientIdentity(sa)
	ps := append([]message.Payload{sa.ownID.payload(false)}, req...)
	if sa.p1.EAPOnly {
		ps = append(ps, notify(message.EAPOnlyAuthentication, nil))
	}
	return ps
}

// eapResponse takes an IKE_AUTH response of a negotiation by EAP.
func (e *Engine) eapResponse(sa *ikeSA, ev *event) {
	x, s := e.finish(sa), &eapState{}
	if sa.eap != nil {
		s = sa.eap.clone()
	}
	if s.step == eapDone {
		e.eapConfirmed(sa, ev, x, s)
		return
	}
	ps, err := e.eapNext(sa, ev, s)
	if err != nil {
		if s.first != nil {
			sa.eap = s
		}
		// Where the responder has not said itself that it is over, it still waits.
		e.authGaveUp(sa, x, err.Error(), s.first != nil && !errors.Is(err, errEAPFailure))
		return
	}
	sa.eap = s
	next := &exchange{kind: kindAuth, phase2: x.phase2, spiIn: x.spiIn, offered: x.offered, tsL: x.tsL, tsR: x.tsR}
	e.drop(x)
	if !e.start(sa, next, ps) {
		e.remove(sa, false, "cannot go on with IKE_AUTH")
	}
}

// eapNext are the payloads of the request that follows a response amid EAP.
func (e *Engine) eapNext(sa *ikeSA, ev *event, s *eapState) ([]message.Payload, error) {
	if s.first == nil {
		if err := e.eapResponder(sa, ev, s); err != nil {
			return nil, err
		}
	}
	p, ok := message.Get[*message.EAP](ev.m)
	if !ok {
		return nil, errors.New(refusalIn(ev.m, "AUTH response without EAP"))
	}
	in, err := eap.Parse(p.Data)
	if err != nil {
		return nil, err
	}
	if !s.count(p) {
		return nil, errors.New("EAP without end")
	}
	return e.eapReact(sa, s, in)
}

// eapResponder authenticates the responder, before anything of ours is told. Where EAP alone is allowed
// it may leave that to EAP-TLS (RFC 5998).
func (e *Engine) eapResponder(sa *ikeSA, ev *event, s *eapState) error {
	idr, ok := ev.m.ID(true)
	if !ok {
		return errors.New(refusalIn(ev.m, "AUTH response without IDr"))
	}
	peer := identity{idr.IDType, string(idr.Data)}
	e.debug(sa, "peer identifier "+peer.String(), slog.String("type", idr.IDType.String()))
	auth, ok := message.Get[*message.Auth](ev.m)
	if !ok && !sa.p1.EAPOnly {
		return errors.New("AUTH response without AUTH")
	}
	if s.only = !ok; !s.only {
		if err := e.responderProved(sa, ev.m, peer, idr, auth); err != nil {
			return err
		}
	} else if !idMatches(sa.p1, peer) {
		return errors.New("peer identifier " + peer.String() + " is not accepted")
	}
	if s.first = eapKeep(ev.m); s.first == nil {
		return errors.New("AUTH response is too long")
	}
	return nil
}

// eapReact is our answer to an EAP packet of the responder.
func (e *Engine) eapReact(sa *ikeSA, s *eapState, in eap.Packet) ([]message.Payload, error) {
	p1 := sa.p1
	answer := func(t eap.Type, data []byte) ([]message.Payload, error) {
		s.id = in.ID
		return []message.Payload{&message.EAP{Data: eap.Packet{Code: eap.Response, ID: in.ID, Type: t, Data: data}.Encode()}}, nil
	}
	switch {
	case in.Code == eap.Failure:
		return nil, fmt.Errorf("%w: %s", errEAPFailure, cmp.Or(s.expectedFailure(), "the responder says no more"))
	case in.Code == eap.Success:
		if s.step != eapProved || s.only && s.method != eap.TLS {
			return nil, errors.New("EAP-Success before the responder has proved itself")
		}
		s.step = eapDone
		sa.eap = s // whose key eapAuth takes
		return []message.Payload{sa.eapAuth(true, sa.ownID.payload(false))}, nil
	case in.Code != eap.Request:
		return nil, errors.New("no EAP request")
	case in.Type == eap.Identity:
		s.identity = cmp.Or(p1.AuthUser, sa.ownID.String())
		return answer(eap.Identity, []byte(s.identity))
	case in.Type == eap.Notification:
		return answer(eap.Notification, nil)
	case in.Type == eap.MSCHAPv2 && p1.AuthPassword.Len() > 0 && !s.only:
		data, err := e.mschapReact(sa, s, in.Data)
		if err != nil {
			return nil, err
		}
		return answer(eap.MSCHAPv2, data)
	case in.Type == eap.TLS && len(p1.Certificate) > 0:
		data, err := e.tlsReact(sa, s, in.Data)
		if err != nil {
			return nil, err
		}
		return answer(eap.TLS, data)
	case s.step != 0:
		return nil, errors.New("EAP " + in.Type.String() + " amid " + s.method.String())
	}
	var can []byte
	if len(p1.Certificate) > 0 {
		can = append(can, byte(eap.TLS))
	}
	if p1.AuthPassword.Len() > 0 && !s.only {
		can = append(can, byte(eap.MSCHAPv2))
	}
	return answer(eap.NAK, can)
}

func (s *eapState) expectedFailure() string {
	if s.failed {
		return s.expected
	}
	return ""
}

// mschapReact answers the Challenge, and the Success or Failure after it.
func (e *Engine) mschapReact(sa *ikeSA, s *eapState, data []byte) ([]byte, error) {
	code := eap.MSCode(data)
	switch {
	case code == eap.MSChallenge && s.step == 0:
		id, challenge, _, err := eap.ParseMSChallenge(data)
		if err != nil {
			return nil, err
		}
		secret := sa.p1.AuthPassword.Bytes()
		a, err := eap.AnswerMS(id, challenge, e.random(eap.ChallengeLen), sa.p1.AuthUser, secret)
		if err != nil {
			return nil, err
		}
		if s.expected, err = a.Authenticator(challenge, secret); err != nil {
			return nil, err
		}
		key, err := a.Key(secret)
		if err != nil {
			return nil, err
		}
		s.step, s.method, s.msk, s.user = eapMethod, eap.MSCHAPv2, ipsec.NewKey(key), sa.p1.AuthUser
		return a.Encode(), nil
	case code == eap.MSSuccess && s.step == eapMethod && s.method == eap.MSCHAPv2:
		if !eap.ProvesMS(data, s.expected) {
			return nil, errors.New("the responder does not know our password")
		}
		s.step = eapProved
		return []byte{eap.MSSuccess}, nil
	case code == eap.MSFailure && s.step == eapMethod && s.method == eap.MSCHAPv2:
		s.failed, s.expected = true, eap.ParseMSFailure(data)
		return []byte{eap.MSFailure}, nil
	}
	return nil, errors.New("MSCHAPv2 out of order")
}

// tlsReact takes a fragment of the responder's flight, and sends ours.
func (e *Engine) tlsReact(sa *ikeSA, s *eapState, data []byte) ([]byte, error) {
	if s.step == 0 {
		if !eap.IsTLSStart(data) {
			return nil, errors.New("EAP-TLS without a beginning")
		}
		c, err := e.tlsConfig(sa.p1)
		if err != nil {
			return nil, err
		}
		s.step, s.method = eapMethod, eap.TLS
		s.user = cmp.Or(sa.p1.AuthUser, sa.ownID.String())
		s.tls = &tlsSession{}
		c.InsecureSkipVerify = true // VerifyConnection looks at more than a host's name
		c.VerifyConnection = e.tlsResponder(sa, s.tls, s.first, s.only)
		s.tls.Session = eap.NewClient(c)
		out, _, err := s.tls.Step(nil)
		if err != nil {
			return nil, err
		}
		s.parts.Send(out)
		return s.parts.Next(), nil
	}
	if s.method != eap.TLS || s.tls == nil {
		return nil, errors.New(errTLSGone)
	}
	flight, whole, err := s.parts.Receive(data)
	if err != nil {
		return nil, err
	}
	if !whole || s.parts.Pending() {
		return s.parts.Next(), nil
	}
	out, done, err := s.tls.Step(flight)
	if err != nil { // told by an alert, or told of it: EAP-Failure comes next
		s.failed, s.expected = true, err.Error()
	}
	if done && s.step == eapMethod {
		key, err := s.tls.Key()
		if err != nil {
			return nil, err
		}
		s.step, s.msk = eapProved, ipsec.NewKey(key)
	}
	s.parts.Send(out)
	return s.parts.Next(), nil
}

// tlsResponder checks who is at the other end of TLS: a CA of ours vouches for it. If EAP alone proves the
// responder, its certificate must be as that in IKE_AUTH would have to be.
func (e *Engine) tlsResponder(sa *ikeSA, t *tlsSession, first []byte, only bool) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		p, err := e.shownByTLS(state)
		if err != nil {
			return err
		}
		var notes []string
		if only {
			m, err := message.Parse(first)
			if err != nil {
				return err
			}
			idr, _ := m.ID(true)
			p.id = identity{idr.IDType, string(idr.Data)}
			notes, err = e.vouched(sa.p1, p)
			if err != nil {
				return err
			}
		} else if _, notes, err = e.creds().trust.Verify(p.leaf, p.others, nil, e.now); err != nil {
			return err
		}
		for _, n := range notes {
			e.warn(sa, n)
		}
		t.shown = p
		e.debug(sa, "EAP-TLS with "+pki.Name(p.leaf))
		return nil
	}
}

// eapConfirmed takes the responder's AUTH under the method's key, which covers who it said that it is.
func (e *Engine) eapConfirmed(sa *ikeSA, ev *event, x *exchange, s *eapState) {
	auth, ok := message.Get[*message.Auth](ev.m)
	if !ok {
		e.authGaveUp(sa, x, refusalIn(ev.m, "AUTH response without AUTH"), false)
		return
	}
	m, err := s.whole(ev.m)
	if err != nil {
		e.authGaveUp(sa, x, err.Error(), true)
		return
	}
	idr, ok := m.ID(true)
	if !ok || auth.Method != message.AuthPSK || !hmac.Equal(sa.eapAuth(false, idr).Data, auth.Data) {
		e.authGaveUp(sa, x, "the responder's AUTH was not made with the key of EAP", true)
		return
	}
	ev.m = m
	e.initiated(sa, ev, x, identity{idr.IDType, string(idr.Data)}, append(sa.peerAuth.attrs(), s.attrs()...))
	sa.eap = nil
	s.close()
}
