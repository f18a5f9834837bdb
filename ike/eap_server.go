package ike

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"tandem/ike/eap"
	"tandem/ike/message"
	"tandem/internal/config"
)

// opensEAP says that an initiator wants EAP: it leaves AUTH out (RFC 7296 §2.16).
func opensEAP(sa *ikeSA, m *message.Message) bool {
	_, ok := message.Get[*message.Auth](m)
	return !ok && sa.eap == nil
}

// inEAP says that IKE_AUTH is under way.
func inEAP(sa *ikeSA, _ *message.Message) bool { return sa.eap != nil }

// eapFault says why EAP ends without success; it goes to the log, the peer gets EAP-Failure.
type eapFault struct{ error }

func eapFail(format string, args ...any) error { return eapFault{fmt.Errorf(format, args...)} }

// eapPhase1 finds the phase 1 entry for an initiator that wants EAP, as authenticate does.
func (e *Engine) eapPhase1(sa *ikeSA, m *message.Message, peer identity) *config.Phase1 {
	net := sa.peerNetwork(m)
	for _, named := range []bool{true, false} {
		for _, p1 := range e.candidates(sa.local.Addr(), sa.remote.Addr(), sa.tcp) {
			if p1.EAP && p1.Dialup() && isNamed(p1) == named && idMatches(p1, peer) && suits(p1, sa.suite) && networkOf(p1) == net {
				return p1
			}
		}
	}
	return nil
}

// eapBegin answers the first request of an IKE_AUTH with EAP: who we are, and the first EAP request.
func (e *Engine) eapBegin(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received AUTH msg")
	idi, _ := ev.m.ID(false)
	peer := identity{idi.IDType, string(idi.Data)}
	e.debug(sa, "peer identifier "+peer.String(), slog.String("type", idi.IDType.String()))
	p1 := e.eapPhase1(sa, ev.m, peer)
	if p1 == nil {
		e.counters.AuthRefused++
		return nil, refuse(message.AuthenticationFailed, "no gateway accepts the peer identifier %s by EAP", peer)
	}
	s := &eapState{first: eapKeep(ev.m), id: e.random(1)[0]}
	if s.first == nil {
		return nil, refuse(message.InvalidSyntax, "an IKE_AUTH request of more than %d bytes", maxEAPFirst)
	}
	was := sa.p1
	sa.p1 = p1
	out, err := e.eapFirst(sa, ev, s, peer)
	if sa.p1 = was; err != nil {
		return nil, err
	}
	sa.p1, sa.phase1 = p1, p1.Name
	_, both := ev.m.Notify(message.EAPOnlyAuthentication)
	s.only = both && p1.EAPOnly && s.method == eap.TLS && out.Code == eap.Request
	var ps []message.Payload
	if s.only {
		if _, err := e.ownCredentials(sa, nil); err != nil {
			return nil, refuse(message.AuthenticationFailed, "%w", err)
		}
		ps = []message.Payload{sa.ownID.payload(true)}
	} else if ps, err = e.credentialPayloads(sa, ev.m, p1.PSK, nil); err != nil {
		e.warn(sa, "cannot authenticate ourselves", slog.String("reason", err.Error()))
		return nil, &NotifyError{Type: message.AuthenticationFailed, Err: err}
	}
	return append(ps, e.eapTell(sa, ev, s, out)), nil
}

// eapFirst is the first EAP packet to an initiator.
func (e *Engine) eapFirst(sa *ikeSA, ev *event, s *eapState, peer identity) (eap.Packet, error) {
	if sa.p1.EAPIdentity == "send-request" {
		s.step = eapIdentity
		return s.request(eap.Identity, nil), nil
	}
	s.identity = peer.String()
	return e.eapChecked(sa, s, func() (eap.Packet, error) { return e.eapChoose(sa, ev, s) })
}

// eapRequest answers one of the requests that follow.
func (e *Engine) eapRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	if sa.p1 == nil || !sa.p1.EAP || !sa.p1.Dialup() {
		return nil, refuse(message.AuthenticationFailed, "%s has no EAP any more", sa.phase1)
	}
	if sa.eap.step == eapDone {
		return e.eapEnd(sa, ev)
	}
	p, ok := message.Get[*message.EAP](ev.m)
	if !ok {
		return nil, refuse(message.InvalidSyntax, "IKE_AUTH request without EAP")
	}
	in, err := eap.Parse(p.Data)
	if err != nil || in.Code != eap.Response || in.ID != sa.eap.id {
		return nil, refuse(message.InvalidSyntax, "IKE_AUTH request without the answer to our EAP request")
	}
	s := sa.eap.clone()
	out, err := e.eapChecked(sa, s, func() (eap.Packet, error) {
		if !s.count(p) {
			return eap.Packet{}, eapFail("EAP without end: %d packets of %d bytes", s.rounds, s.bytes)
		}
		return e.eapAnswer(sa, ev, s, in, p.Data)
	})
	if err != nil {
		return nil, err
	}
	return []message.Payload{e.eapTell(sa, ev, s, out)}, nil
}

// eapChecked makes EAP-Failure of a fault; other errors are for the caller.
func (e *Engine) eapChecked(sa *ikeSA, s *eapState, do func() (eap.Packet, error)) (eap.Packet, error) {
	out, err := do()
	var fault eapFault
	if errors.As(err, &fault) {
		e.eapRefused(sa, s, fault.Error())
		return eap.Packet{Code: eap.Failure, ID: s.id}, nil
	}
	return out, err
}

// eapTell has a step count and returns what it says to the initiator.
func (e *Engine) eapTell(sa *ikeSA, ev *event, s *eapState, out eap.Packet) message.Payload {
	e.touch(sa)
	sa.eap = s
	switch out.Code {
	case eap.Success:
		s.step = eapDone
		e.debug(sa, "EAP has succeeded", s.attrs()...)
	case eap.Failure:
		ev.after = append(ev.after, func() {
			e.fail(sa, "EAP has failed")
			e.remove(sa, true, "EAP has failed")
		})
	}
	return &message.EAP{Data: out.Encode()}
}

// eapAnswer is the next EAP packet after one of the initiator, which is raw as it came.
func (e *Engine) eapAnswer(sa *ikeSA, ev *event, s *eapState, in eap.Packet, raw []byte) (eap.Packet, error) {
	switch {
	case s.server != "":
		return e.askRADIUS(sa, ev, s, raw)
	case s.step == eapIdentity:
		if in.Type != eap.Identity || len(in.Data) > eap.MaxIdentity {
			return eap.Packet{}, eapFail("no EAP identity")
		}
		s.identity = string(in.Data)
		return e.eapChoose(sa, ev, s)
	case in.Type == eap.NAK && s.step == eapMethod && s.tls == nil:
		return e.eapAnother(sa, ev, s, in.Data)
	case in.Type != s.method:
		return eap.Packet{}, eapFail("EAP %s where %s is under way", in.Type, s.method)
	case s.method == eap.MSCHAPv2:
		return e.mschapAnswer(sa, s, in.Data)
	}
	return e.tlsAnswer(sa, s, in.Data)
}

// eapChoose begins the method for an identity: a user's of the group who has a password here; else by
// certificate, where the group has such; else the RADIUS server decides. Whom nobody knows is asked for
// a password as others are.
func (e *Engine) eapChoose(sa *ikeSA, ev *event, s *eapState) (eap.Packet, error) {
	users := e.cfg.EAPUsers(sa.p1)
	named := slices.ContainsFunc(users.Local, func(u *config.User) bool { return u.Name == s.identity })
	switch {
	case named:
	case len(users.Peers) > 0:
		return s.begin(eap.TLS, eap.TLSStart), nil
	case len(users.By) > 0:
		return e.beginRADIUS(sa, ev, s, users.By[0])
	}
	return e.mschapBegin(s), nil
}

// eapAnother begins a method that the initiator names instead of ours (RFC 3748 §5.3.1).
func (e *Engine) eapAnother(sa *ikeSA, ev *event, s *eapState, wanted []byte) (eap.Packet, error) {
	users := e.cfg.EAPUsers(sa.p1)
	switch ours := s.method; {
	case s.only:
		return eap.Packet{}, eapFail("the initiator takes no EAP-TLS, and alone no other method does")
	case ours == eap.TLS && len(users.By) > 0:
		return e.beginRADIUS(sa, ev, s, users.By[0])
	case ours == eap.TLS && len(users.Local) > 0 && slices.Contains(wanted, byte(eap.MSCHAPv2)):
		return e.mschapBegin(s), nil
	case ours == eap.MSCHAPv2 && len(users.Peers) > 0 && slices.Contains(wanted, byte(eap.TLS)):
		return s.begin(eap.TLS, eap.TLSStart), nil
	}
	return eap.Packet{}, eapFail("the initiator takes no EAP %s", s.method)
}

func (s *eapState) begin(t eap.Type, data []byte) eap.Packet {
	s.step, s.method = eapMethod, t
	return s.request(t, data)
}

// eapEnd takes AUTH, which the method's key has made, and ends IKE_AUTH.
func (e *Engine) eapEnd(sa *ikeSA, ev *event) ([]message.Payload, error) {
	auth, ok := message.Get[*message.Auth](ev.m)
	if !ok {
		return nil, refuse(message.InvalidSyntax, "IKE_AUTH without AUTH after EAP")
	}
	m, err := sa.eap.whole(ev.m)
	if err != nil {
		return nil, refuse(message.InvalidSyntax, "%w", err)
	}
	idi, _ := m.ID(false)
	if idi == nil || auth.Method != message.AuthPSK || !hmac.Equal(sa.eapAuth(true, idi).Data, auth.Data) {
		e.counters.AuthRefused++
		return nil, refuse(message.AuthenticationFailed, "AUTH was not made with the key of EAP")
	}
	ev.m = m
	s := sa.eap
	ps := []message.Payload{sa.eapAuth(false, sa.ownID.payload(true))}
	ps, err = e.admitted(sa, ev, s.peer(), s.attrs(), ps)
	sa.eap = nil
	s.close()
	return ps, err
}

// eapAbandoned takes the initiator's word that it gives up amid EAP (RFC 7296 §2.21.2).
func (e *Engine) eapAbandoned(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "initiator gives up amid EAP", slog.String("reason", refusalIn(ev.m, "none given")))
	ev.after = append(ev.after, func() { e.remove(sa, true, "the initiator gives up") })
	return nil, nil
}
