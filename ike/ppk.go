package ike

import (
	"bytes"
	"log/slog"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
)

// Post-quantum pre-shared keys (RFC 8784). IKE_SA_INIT says that both can (USE_PPK),
// IKE_AUTH which key it is (PPK_IDENTITY). Until the responder has said that it has it,
// the record carries the keys without it: so whoever finishes IKE_AUTH mixes it in.

const (
	ppkAllow   = "allow"
	ppkRequire = "require"
)

// ppkFixed is the type of an identity that both sides have configured (RFC 8784 §5.1).
const ppkFixed = 2

func usesPPK(p *config.Phase1) bool {
	return (p.PPK == ppkAllow || p.PPK == ppkRequire) && p.PPKSecret.Len() > 0
}

func ppkIdentity(p *config.Phase1) []byte { return append([]byte{ppkFixed}, p.PPKIdentity...) }

func (sa *ikeSA) mixed(p1 *config.Phase1) keymat.IKEKeys {
	return keymat.MixPPK(sa.suite.PRF, sa.keys, p1.PPKSecret.Bytes())
}

// wipeMixed wipes the keys that a PPK changes; the others are shared.
func wipeMixed(k keymat.IKEKeys) {
	k.D.Wipe()
	k.Pi.Wipe()
	k.Pr.Wipe()
}

// takePPK makes the mixed keys the IKE SA's own.
func (sa *ikeSA) takePPK(mixed keymat.IKEKeys) {
	wipeMixed(sa.keys)
	sa.keys = mixed
	sa.caps |= capPPKUsed
}

// withPPK makes the credentials of our IKE_AUTH request, with a PPK if both can; credentials
// makes them, AUTH among them, under sa.keys. Without the responder having it too,
// NO_PPK_AUTH counts, which says the same as AUTH under the keys without it (§4).
func (sa *ikeSA) withPPK(credentials func() ([]message.Payload, error)) ([]message.Payload, error) {
	if sa.caps&capPPK == 0 {
		return credentials()
	}
	var ps []message.Payload
	var err error
	sa.under(sa.mixed(sa.p1), func() { ps, err = credentials() })
	if err != nil {
		return nil, err
	}
	ps = append(ps, notify(message.PPKIdentity, ppkIdentity(sa.p1)))
	if sa.p1.PPK == ppkRequire {
		return ps, nil
	}
	without, err := credentials()
	if err != nil {
		return nil, err
	}
	auth, _ := message.Get[*message.Auth](&message.Message{Payloads: without})
	return append(ps, notify(message.NoPPKAuth, auth.Data)), nil
}

// under does something with the mixed keys in the place of the IKE SA's.
func (sa *ikeSA) under(mixed keymat.IKEKeys, do func()) {
	plain := sa.keys
	sa.keys = mixed
	do()
	wipeMixed(sa.keys)
	sa.keys = plain
}

// asAnswered does something with the keys that the responder's IKE_AUTH was made with.
func (sa *ikeSA) asAnswered(m *message.Message, do func()) {
	if _, used := m.Notify(message.PPKIdentity); sa.caps&capPPK != 0 && used && usesPPK(sa.p1) {
		sa.under(sa.mixed(sa.p1), do)
		return
	}
	do()
}

// ppkMissing says that an IKE_SA_INIT response is of no use to us: the responder cannot
// use the PPK that we demand.
func (e *Engine) ppkMissing(sa *ikeSA, m *message.Message) bool {
	if sa.p1.PPK != ppkRequire || acceptedCapabilities(sa.p1, m)&capPPK != 0 {
		return false
	}
	e.warn(sa, "negotiation failure", slog.String("reason", "a PPK is required and the peer does not use one"))
	e.fail(sa, "a PPK is required and the peer does not use one")
	return true
}

// ppkAnswered follows the responder's choice in IKE_AUTH, before its AUTH is checked.
func (e *Engine) ppkAnswered(sa *ikeSA, m *message.Message) error {
	_, used := m.Notify(message.PPKIdentity)
	switch {
	case sa.caps&capPPK != 0 && used && usesPPK(sa.p1):
		sa.takePPK(sa.mixed(sa.p1))
		e.debug(sa, "PPK is used", slog.String("ppk_id", sa.p1.PPKIdentity))
	case sa.p1.PPK == ppkRequire:
		return refuse(message.AuthenticationFailed, "a PPK is required and the peer did not use it")
	case sa.caps&capPPK != 0:
		e.info(sa, "the peer does not have our PPK: going on without", slog.String("ppk_id", sa.p1.PPKIdentity))
	}
	return nil
}

// underPPK checks an initiator's proof for a phase 1 entry: AUTH under the keys with the
// PPK that it names, if that is the entry's; else, where a PPK is not required, what
// proves the same without. check judges one AUTH payload under sa.keys. When it is right,
// the keys with the PPK are the IKE SA's.
func (sa *ikeSA) underPPK(m *message.Message, p1 *config.Phase1, auth *message.Auth, check func(*message.Auth) error) error {
	id, named := m.Notify(message.PPKIdentity)
	named = named && sa.caps&capPPK != 0
	if named && usesPPK(p1) && bytes.Equal(id.Data, ppkIdentity(p1)) {
		plain := sa.keys
		mixed := sa.mixed(p1)
		sa.keys = mixed
		err := check(auth)
		sa.keys = plain
		if err != nil {
			wipeMixed(mixed)
			return err
		}
		sa.takePPK(mixed)
		return nil
	}
	if p1.PPK == ppkRequire {
		if named {
			return refuse(message.AuthenticationFailed, "PPK of the peer is unknown, and one is required")
		}
		return refuse(message.AuthenticationFailed, "the peer does not use a PPK, and one is required")
	}
	if !named {
		return check(auth)
	}
	without, ok := m.Notify(message.NoPPKAuth)
	if !ok {
		return refuse(message.AuthenticationFailed, "PPK of the peer is unknown, and it requires it")
	}
	return check(&message.Auth{Method: auth.Method, Data: without.Data})
}

// ppkPayloads tell the initiator that its PPK is in the keys.
func (sa *ikeSA) ppkPayloads() []message.Payload {
	if sa.caps&capPPKUsed == 0 {
		return nil
	}
	return []message.Payload{notify(message.PPKIdentity, nil)}
}
