package keymat

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"testing"

	"tandem/internal/ipsec"
)

// TestMixPPK follows RFC 8784 §3 with the standard library alone: SK_d = prf+ (PPK, SK_d'),
// of which one block of the PRF is enough.
func TestMixPPK(t *testing.T) {
	for prf, h := range map[ipsec.TransformID]func() hash.Hash{
		ipsec.PRFHMACSHA256: sha256.New, ipsec.PRFHMACSHA384: sha512.New384, ipsec.PRFHMACSHA512: sha512.New,
	} {
		n := PRFKeyLen(prf)
		key := func(b byte, n int) ipsec.Key { return ipsec.NewKey(bytes.Repeat([]byte{b}, n)) }
		plain := IKEKeys{D: key(1, n), Pi: key(2, n), Pr: key(3, n), Ai: key(4, 16), Ar: key(5, 16), Ei: key(6, 20), Er: key(7, 20)}
		ppk := []byte("a post-quantum pre-shared key of enough bytes")
		mixed := MixPPK(prf, plain, ppk)
		for _, k := range []struct {
			name       string
			was, mixed ipsec.Key
		}{{"SK_d", plain.D, mixed.D}, {"SK_pi", plain.Pi, mixed.Pi}, {"SK_pr", plain.Pr, mixed.Pr}} {
			m := hmac.New(h, ppk)
			m.Write(k.was.Bytes())
			m.Write([]byte{1})
			if !bytes.Equal(k.mixed.Bytes(), m.Sum(nil)) {
				t.Errorf("PRF %d: %s is wrong", prf, k.name)
			}
		}
		if plain.D.Bytes()[0] != 1 || plain.Pr.Bytes()[0] != 3 {
			t.Error("the keys without the PPK are gone")
		}
		for _, k := range [][2]ipsec.Key{{plain.Ai, mixed.Ai}, {plain.Ar, mixed.Ar}, {plain.Ei, mixed.Ei}, {plain.Er, mixed.Er}} {
			if !bytes.Equal(k[0].Bytes(), k[1].Bytes()) {
				t.Error("a key that protects messages was changed")
			}
		}
	}
}
