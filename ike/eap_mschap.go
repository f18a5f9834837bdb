package ike

import (
	"cmp"
	"slices"

	"tandem/ike/eap"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func (e *Engine) mschapBegin(s *eapState) eap.Packet {
	s.challenge = e.random(eap.ChallengeLen)
	p := s.begin(eap.MSCHAPv2, nil)
	p.Data = eap.EncodeMSChallenge(s.id, s.challenge, cmp.Or(e.cfg.Hostname, "gateway"))
	return p
}

// mschapAnswer takes a Response, and later the acknowledgement of its result.
func (e *Engine) mschapAnswer(sa *ikeSA, s *eapState, data []byte) (eap.Packet, error) {
	switch {
	case s.failed:
		return eap.Packet{Code: eap.Failure, ID: s.id}, nil
	case s.step == eapProved && eap.MSCode(data) == eap.MSSuccess:
		return eap.Packet{Code: eap.Success, ID: s.id}, nil
	case s.step == eapProved:
		return eap.Packet{}, eapFail("the initiator does not take our proof")
	}
	a, err := eap.ParseMSAnswer(data)
	if err != nil || a.ID != s.id {
		return eap.Packet{}, eapFail("malformed MSCHAPv2 response")
	}
	s.identity = cmp.Or(s.identity, a.Name)
	users := e.cfg.EAPUsers(sa.p1).Local
	i := slices.IndexFunc(users, func(u *config.User) bool { return u.Name == a.User() || u.Name == a.Name })
	secret := e.random(eap.ChallengeLen) // of a user whom nobody knows: as costly, and never right
	if i >= 0 {
		secret = users[i].Secret.Bytes()
	}
	from := attempt{a.User(), sa.remote.Addr()}
	if e.slow.waits(e.now, from) || !a.Right(s.challenge, secret) || i < 0 {
		e.slow.failed(e.now, from)
		s.failed, s.identity = true, a.User()
		e.eapRefused(sa, s, "wrong user name or password")
		p := s.request(eap.MSCHAPv2, nil)
		p.Data = eap.EncodeMSFailure(a.ID, eap.MSAuthFailed, e.random(eap.ChallengeLen))
		return p, nil
	}
	e.slow.succeeded(from)
	proof, err := a.Authenticator(s.challenge, secret)
	if err != nil {
		return eap.Packet{}, eapFail("%w", err)
	}
	key, err := a.Key(secret)
	if err != nil {
		return eap.Packet{}, eapFail("%w", err)
	}
	s.step, s.user, s.msk = eapProved, users[i].Name, ipsec.NewKey(key)
	p := s.request(eap.MSCHAPv2, nil)
	p.Data = eap.EncodeMSSuccess(a.ID, proof)
	return p, nil
}
