package keymat

import "tandem/internal/ipsec"

// MixPPK returns the keys of an IKE SA after a post-quantum pre-shared key was mixed into
// them (RFC 8784 §3): SK_d, SK_pi and SK_pr are new, the others those of k. k stays as it is.
func MixPPK(prf ipsec.TransformID, k IKEKeys, ppk []byte) IKEKeys {
	mix := func(key ipsec.Key) ipsec.Key {
		b := PRFPlus(prf, ppk, key.Bytes(), key.Len())
		defer clear(b)
		return ipsec.NewKey(b)
	}
	k.D, k.Pi, k.Pr = mix(k.D), mix(k.Pi), mix(k.Pr)
	return k
}
