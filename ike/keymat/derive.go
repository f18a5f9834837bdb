package keymat

import (
	"encoding/binary"
	"errors"
	"fmt"

	"tandem/internal/ipsec"
)

// ErrUnsupportedSuite means a transform, key length or combination that we do not implement.
var ErrUnsupportedSuite = errors.New("unsupported suite")

// IKEKeys are the seven keys of an IKE SA (RFC 7296 §2.14): SK_d, SK_ai … SK_pr.
// i and r are the roles in the exchange that made the IKE SA. Ei and Er end with
// their salts where the cipher has one; Ai and Ar are empty with an AEAD.
type IKEKeys struct{ D, Ai, Ar, Ei, Er, Pi, Pr ipsec.Key }

// Wipe overwrites all keys with zeros.
func (k IKEKeys) Wipe() {
	for _, key := range []ipsec.Key{k.D, k.Ai, k.Ar, k.Ei, k.Er, k.Pi, k.Pr} {
		key.Wipe()
	}
}

// DeriveIKE derives the keys of a first IKE SA (RFC 7296 §2.14); shared is g^ir.
// It fails with ErrUnsupportedSuite.
func DeriveIKE(s ipsec.Suite, ni, nr []byte, shared ipsec.Key, spis ipsec.IKESPIs) (IKEKeys, error) {
	if err := checkIKESuite(s); err != nil {
		return IKEKeys{}, err
	}
	skeyseed := PRF(s.PRF, concat(ni, nr), shared.Bytes())
	defer clear(skeyseed)
	return expandIKE(s, skeyseed, ni, nr, spis), nil
}

// DeriveIKERekey derives the keys of an IKE SA that replaces another (RFC 7296
// §2.18): SKEYSEED comes from the old SA's PRF and SK_d, the keys from the new
// SA's PRF, nonces and SPIs. more are the secrets of additional key exchanges in their
// order (RFC 9370 §2.2.4). It fails with ErrUnsupportedSuite.
func DeriveIKERekey(oldPRF ipsec.TransformID, oldSKd ipsec.Key, s ipsec.Suite, ni, nr []byte, shared ipsec.Key, spis ipsec.IKESPIs, more ...ipsec.Key) (IKEKeys, error) {
	if err := checkIKESuite(s); err != nil {
		return IKEKeys{}, err
	}
	if PRFKeyLen(oldPRF) == 0 {
		return IKEKeys{}, fmt.Errorf("%w: PRF %d", ErrUnsupportedSuite, oldPRF)
	}
	seed := keySeed(shared, ni, nr, more)
	defer clear(seed)
	skeyseed := PRF(oldPRF, oldSKd.Bytes(), seed)
	defer clear(skeyseed)
	return expandIKE(s, skeyseed, ni, nr, spis), nil
}

// DeriveIKENext derives the keys of an IKE SA anew after an additional key exchange of
// IKE_INTERMEDIATE (RFC 9370 §2.2.2) from SK_d so far; shared is SK(n). It fails with
// ErrUnsupportedSuite.
func DeriveIKENext(s ipsec.Suite, skd ipsec.Key, ni, nr []byte, shared ipsec.Key, spis ipsec.IKESPIs) (IKEKeys, error) {
	if err := checkIKESuite(s); err != nil {
		return IKEKeys{}, err
	}
	skeyseed := PRF(s.PRF, skd.Bytes(), shared.Bytes(), ni, nr)
	defer clear(skeyseed)
	return expandIKE(s, skeyseed, ni, nr, spis), nil
}

func expandIKE(s ipsec.Suite, skeyseed, ni, nr []byte, spis ipsec.IKESPIs) IKEKeys {
	seed := concat(ni, nr)
	seed = binary.BigEndian.AppendUint64(seed, uint64(spis.I))
	seed = binary.BigEndian.AppendUint64(seed, uint64(spis.R))
	prf, integ, encr := PRFKeyLen(s.PRF), s.IntegKeyLen(), s.EncrKeyLen()+s.SaltLen()
	c := cutter(PRFPlus(s.PRF, skeyseed, seed, 3*prf+2*integ+2*encr))
	defer clear(c)
	rest := c
	return IKEKeys{
		D:  rest.take(prf),
		Ai: rest.take(integ),
		Ar: rest.take(integ),
		Ei: rest.take(encr),
		Er: rest.take(encr),
		Pi: rest.take(prf),
		Pr: rest.take(prf),
	}
}

// ChildKeys are the keys of a pair of ESP SAs (RFC 7296 §2.17). I is the direction
// from the initiator of the exchange that made the pair to its responder, R the other.
type ChildKeys struct{ EncrI, SaltI, IntegI, EncrR, SaltR, IntegR ipsec.Key }

// Wipe overwrites all keys with zeros.
func (k ChildKeys) Wipe() {
	for _, key := range []ipsec.Key{k.EncrI, k.SaltI, k.IntegI, k.EncrR, k.SaltR, k.IntegR} {
		key.Wipe()
	}
}

// DeriveChild derives the keys of a Child SA from the PRF and SK_d of its IKE SA
// (RFC 7296 §2.17). shared is empty when the exchange had no key exchange of its
// own; more are the secrets of additional key exchanges in their order (RFC 9370 §2.2.4).
// It fails with ErrUnsupportedSuite.
func DeriveChild(prf ipsec.TransformID, skd ipsec.Key, s ipsec.Suite, ni, nr []byte, shared ipsec.Key, more ...ipsec.Key) (ChildKeys, error) {
	if PRFKeyLen(prf) == 0 {
		return ChildKeys{}, fmt.Errorf("%w: PRF %d", ErrUnsupportedSuite, prf)
	}
	if err := checkCipher(s, true); err != nil {
		return ChildKeys{}, err
	}
	seed := keySeed(shared, ni, nr, more)
	defer clear(seed)
	encr, salt, integ := s.EncrKeyLen(), s.SaltLen(), s.IntegKeyLen()
	c := cutter(PRFPlus(prf, skd.Bytes(), seed, 2*(encr+salt+integ)))
	defer clear(c)
	rest := c
	return ChildKeys{
		EncrI:  rest.take(encr),
		SaltI:  rest.take(salt),
		IntegI: rest.take(integ),
		EncrR:  rest.take(encr),
		SaltR:  rest.take(salt),
		IntegR: rest.take(integ),
	}, nil
}

// keySeed is SK(0) | Ni | Nr | SK(1) | … | SK(n) (RFC 9370 §2.2.4).
func keySeed(shared ipsec.Key, ni, nr []byte, more []ipsec.Key) []byte {
	parts := [][]byte{shared.Bytes(), ni, nr}
	for _, k := range more {
		parts = append(parts, k.Bytes())
	}
	return concat(parts...)
}

// cutter hands out keying material from the front.
type cutter []byte

func (c *cutter) take(n int) ipsec.Key {
	k := ipsec.NewKey((*c)[:n])
	*c = (*c)[n:]
	return k
}

func concat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func checkIKESuite(s ipsec.Suite) error {
	if PRFKeyLen(s.PRF) == 0 {
		return fmt.Errorf("%w: PRF %d", ErrUnsupportedSuite, s.PRF)
	}
	return checkCipher(s, false)
}

// checkCipher accepts the ciphers of the SK payload, and NULL if esp.
func checkCipher(s ipsec.Suite, esp bool) error {
	ok := false
	switch s.Encr {
	case ipsec.ENCRAESCBC, ipsec.ENCRAESGCM8, ipsec.ENCRAESGCM12, ipsec.ENCRAESGCM16:
		ok = s.KeyBits == 128 || s.KeyBits == 192 || s.KeyBits == 256
	case ipsec.ENCR3DES:
		ok = s.KeyBits == 0 || s.KeyBits == 192
	case ipsec.ENCRChaCha20Poly1305:
		ok = s.KeyBits == 0 || s.KeyBits == 256
	case ipsec.ENCRNULL:
		ok = esp && s.KeyBits == 0
	}
	if !ok {
		return fmt.Errorf("%w: encryption %d with %d bits", ErrUnsupportedSuite, s.Encr, s.KeyBits)
	}
	if s.Encr.AEAD() != (s.Integ == ipsec.INTEGNone) || s.Integ != ipsec.INTEGNone && s.IntegKeyLen() == 0 {
		return fmt.Errorf("%w: encryption %d with integrity %d", ErrUnsupportedSuite, s.Encr, s.Integ)
	}
	return nil
}
