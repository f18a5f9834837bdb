package keymat

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"testing"

	"tandem/internal/ipsec"
)

// refPRF is HMAC written out from RFC 2104, independent of crypto/hmac.
func refPRF(id ipsec.TransformID, key []byte, data []byte) []byte {
	h := map[ipsec.TransformID]func() hash.Hash{
		ipsec.PRFHMACSHA1: sha1.New, ipsec.PRFHMACSHA256: sha256.New,
		ipsec.PRFHMACSHA384: sha512.New384, ipsec.PRFHMACSHA512: sha512.New,
	}[id]
	sum := func(parts ...[]byte) []byte {
		x := h()
		for _, p := range parts {
			x.Write(p)
		}
		return x.Sum(nil)
	}
	block := make([]byte, h().BlockSize())
	if len(key) > len(block) {
		key = sum(key)
	}
	copy(block, key)
	pad := func(v byte) []byte {
		b := bytes.Clone(block)
		for i := range b {
			b[i] ^= v
		}
		return b
	}
	return sum(pad(0x5c), sum(pad(0x36), data))
}

// refPRFPlus is prf+ written out from RFC 7296 §2.13.
func refPRFPlus(id ipsec.TransformID, key, seed []byte, n int) []byte {
	var out, t []byte
	for i := 1; len(out) < n; i++ {
		t = refPRF(id, key, bytes.Join([][]byte{t, seed, {byte(i)}}, nil))
		out = append(out, t...)
	}
	return out[:n]
}

func refSeed(ni, nr []byte, spis ipsec.IKESPIs) []byte {
	var b bytes.Buffer
	b.Write(ni)
	b.Write(nr)
	_ = binary.Write(&b, binary.BigEndian, []uint64{uint64(spis.I), uint64(spis.R)})
	return b.Bytes()
}

func (k IKEKeys) join() []byte {
	return concat(k.D.Bytes(), k.Ai.Bytes(), k.Ar.Bytes(), k.Ei.Bytes(), k.Er.Bytes(), k.Pi.Bytes(), k.Pr.Bytes())
}

func (k ChildKeys) join() []byte {
	return concat(k.EncrI.Bytes(), k.SaltI.Bytes(), k.IntegI.Bytes(), k.EncrR.Bytes(), k.SaltR.Bytes(), k.IntegR.Bytes())
}

// wantPrefix compares as many bytes as both have.
func wantPrefix(t *testing.T, what string, got, want []byte) {
	t.Helper()
	n := min(len(got), len(want))
	if n == 0 || !bytes.Equal(got[:n], want[:n]) {
		t.Errorf("%s:\n got %x\nwant %x", what, got[:n], want[:n])
	}
}

func TestIKEv2KDFVectors(t *testing.T) {
	for _, v := range ikev2KDFVectors {
		t.Run(v.name, func(t *testing.T) {
			ni, nr, gir := unhex(t, v.ni), unhex(t, v.nr), unhex(t, v.gir)
			wantHex(t, "SKEYSEED", PRF(v.suite.PRF, concat(ni, nr), gir), v.skeyseed)
			dkm := unhex(t, v.dkm)
			wantHex(t, "prf+", PRFPlus(v.suite.PRF, unhex(t, v.skeyseed), refSeed(ni, nr, v.spis), len(dkm)), v.dkm)

			keys, err := DeriveIKE(v.suite, ni, nr, ipsec.NewKey(gir), v.spis)
			if err != nil {
				t.Fatal(err)
			}
			wantPrefix(t, "SK_d | SK_ai | …", keys.join(), dkm)
			if v.child == "" {
				return
			}
			if len(keys.join()) != len(dkm) {
				t.Errorf("%d bytes of keys, the vector has %d", len(keys.join()), len(dkm))
			}
			girNew := ipsec.NewKey(unhex(t, v.girNew))
			child, err := DeriveChild(v.suite.PRF, keys.D, v.suite, ni, nr, ipsec.Key{})
			if err != nil {
				t.Fatal(err)
			}
			wantPrefix(t, "KEYMAT", child.join(), unhex(t, v.child))
			child, err = DeriveChild(v.suite.PRF, keys.D, v.suite, ni, nr, girNew)
			if err != nil {
				t.Fatal(err)
			}
			wantPrefix(t, "KEYMAT with key exchange", child.join(), unhex(t, v.childDH))

			rekeyed, err := DeriveIKERekey(v.suite.PRF, keys.D, v.suite, ni, nr, girNew, v.spis)
			if err != nil {
				t.Fatal(err)
			}
			want := refPRFPlus(v.suite.PRF, unhex(t, v.rekeySKS), refSeed(ni, nr, v.spis), len(rekeyed.join()))
			wantPrefix(t, "keys after rekeying", rekeyed.join(), want)
		})
	}
}

var ikeSuites = []ipsec.Suite{
	{Encr: ipsec.ENCRAESCBC, KeyBits: 128, PRF: ipsec.PRFHMACSHA1, Integ: ipsec.INTEGHMACSHA1_96},
	{Encr: ipsec.ENCRAESCBC, KeyBits: 128, PRF: ipsec.PRFHMACSHA256, Integ: ipsec.INTEGHMACSHA256_128},
	{Encr: ipsec.ENCRAESCBC, KeyBits: 192, PRF: ipsec.PRFHMACSHA384, Integ: ipsec.INTEGHMACSHA384_192},
	{Encr: ipsec.ENCRAESCBC, KeyBits: 256, PRF: ipsec.PRFHMACSHA512, Integ: ipsec.INTEGHMACSHA512_256},
	{Encr: ipsec.ENCR3DES, PRF: ipsec.PRFHMACSHA1, Integ: ipsec.INTEGHMACSHA1_96},
	{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, PRF: ipsec.PRFHMACSHA256},
	{Encr: ipsec.ENCRAESGCM16, KeyBits: 192, PRF: ipsec.PRFHMACSHA256},
	{Encr: ipsec.ENCRAESGCM16, KeyBits: 256, PRF: ipsec.PRFHMACSHA384},
	{Encr: ipsec.ENCRAESGCM12, KeyBits: 256, PRF: ipsec.PRFHMACSHA512},
	{Encr: ipsec.ENCRAESGCM8, KeyBits: 128, PRF: ipsec.PRFHMACSHA512},
	{Encr: ipsec.ENCRChaCha20Poly1305, PRF: ipsec.PRFHMACSHA256},
	{Encr: ipsec.ENCRChaCha20Poly1305, KeyBits: 256, PRF: ipsec.PRFHMACSHA256},
}

// suiteName tells suites apart that FortiOS spells alike.
func suiteName(s ipsec.Suite) string { return fmt.Sprintf("%s/%d/%d", s, s.Encr, s.KeyBits) }

// Every suite's keys are cut from prf+ in the order and with the lengths that RFC
// 7296 §2.14 and §2.17 say, with a PRF of the old IKE SA that differs from the new.
func TestKeyOrder(t *testing.T) {
	ni, nr := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 24)
	spis := ipsec.IKESPIs{I: 0x0102030405060708, R: 0x1112131415161718}
	shared := ipsec.NewKey(bytes.Repeat([]byte{3}, 66))
	for _, s := range ikeSuites {
		t.Run(suiteName(s), func(t *testing.T) {
			prf, integ, encr := len(refPRF(s.PRF, nil, nil)), s.IntegKeyLen(), s.EncrKeyLen()+s.SaltLen()
			check := func(what string, k IKEKeys, skeyseed []byte) {
				t.Helper()
				want := refPRFPlus(s.PRF, skeyseed, refSeed(ni, nr, spis), 3*prf+2*integ+2*encr)
				for _, f := range []struct {
					name string
					key  ipsec.Key
					n    int
				}{
					{"SK_d", k.D, prf},
					{"SK_ai", k.Ai, integ},
					{"SK_ar", k.Ar, integ},
					{"SK_ei", k.Ei, encr},
					{"SK_er", k.Er, encr},
					{"SK_pi", k.Pi, prf},
					{"SK_pr", k.Pr, prf},
				} {
					if !bytes.Equal(f.key.Bytes(), want[:f.n]) {
						t.Errorf("%s %s:\n got %x\nwant %x", what, f.name, f.key.Bytes(), want[:f.n])
					}
					want = want[f.n:]
				}
			}
			k, err := DeriveIKE(s, ni, nr, shared, spis)
			if err != nil {
				t.Fatal(err)
			}
			check("first", k, refPRF(s.PRF, concat(ni, nr), shared.Bytes()))

			for _, old := range []ipsec.TransformID{ipsec.PRFHMACSHA1, ipsec.PRFHMACSHA256, ipsec.PRFHMACSHA512} {
				oldSKd := ipsec.NewKey(bytes.Repeat([]byte{9}, PRFKeyLen(old)))
				k, err = DeriveIKERekey(old, oldSKd, s, ni, nr, shared, spis)
				if err != nil {
					t.Fatal(err)
				}
				check("rekeyed", k, refPRF(old, oldSKd.Bytes(), concat(shared.Bytes(), ni, nr)))
			}

			for _, g := range []ipsec.Key{{}, shared} {
				c, err := DeriveChild(s.PRF, k.D, s, ni, nr, g)
				if err != nil {
					t.Fatal(err)
				}
				want := refPRFPlus(s.PRF, k.D.Bytes(), concat(g.Bytes(), ni, nr), 2*(encr+integ))
				for _, f := range []struct {
					name string
					key  ipsec.Key
					n    int
				}{
					{"EncrI", c.EncrI, s.EncrKeyLen()},
					{"SaltI", c.SaltI, s.SaltLen()},
					{"IntegI", c.IntegI, integ},
					{"EncrR", c.EncrR, s.EncrKeyLen()},
					{"SaltR", c.SaltR, s.SaltLen()},
					{"IntegR", c.IntegR, integ},
				} {
					if !bytes.Equal(f.key.Bytes(), want[:f.n]) {
						t.Errorf("%s:\n got %x\nwant %x", f.name, f.key.Bytes(), want[:f.n])
					}
					want = want[f.n:]
				}
			}
		})
	}
}

func TestUnsupportedSuites(t *testing.T) {
	good := ikeSuites[0]
	for name, change := range map[string]func(*ipsec.Suite){
		"no PRF":              func(s *ipsec.Suite) { s.PRF = 0 },
		"PRF_HMAC_MD5":        func(s *ipsec.Suite) { s.PRF = 1 },
		"DES":                 func(s *ipsec.Suite) { s.Encr = 2 },
		"NULL for IKE":        func(s *ipsec.Suite) { s.Encr, s.KeyBits = ipsec.ENCRNULL, 0 },
		"AES-CTR":             func(s *ipsec.Suite) { s.Encr = ipsec.ENCRAESCTR },
		"AES without length":  func(s *ipsec.Suite) { s.KeyBits = 0 },
		"AES-64":              func(s *ipsec.Suite) { s.KeyBits = 64 },
		"AES-65535":           func(s *ipsec.Suite) { s.KeyBits = 65535 },
		"CBC without HMAC":    func(s *ipsec.Suite) { s.Integ = ipsec.INTEGNone },
		"CBC with HMAC-MD5":   func(s *ipsec.Suite) { s.Integ = 1 },
		"GCM with HMAC":       func(s *ipsec.Suite) { s.Encr = ipsec.ENCRAESGCM16 },
		"ChaCha with 128":     func(s *ipsec.Suite) { s.Encr, s.Integ = ipsec.ENCRChaCha20Poly1305, 0 },
		"3DES with 128":       func(s *ipsec.Suite) { s.Encr = ipsec.ENCR3DES },
		"unregistered cipher": func(s *ipsec.Suite) { s.Encr = 999 },
	} {
		s := good
		change(&s)
		if _, err := DeriveIKE(s, nil, nil, ipsec.Key{}, ipsec.IKESPIs{}); !errors.Is(err, ErrUnsupportedSuite) {
			t.Errorf("%s: DeriveIKE says %v", name, err)
		}
		if _, err := DeriveIKERekey(ipsec.PRFHMACSHA256, ipsec.Key{}, s, nil, nil, ipsec.Key{}, ipsec.IKESPIs{}); !errors.Is(err, ErrUnsupportedSuite) {
			t.Errorf("%s: DeriveIKERekey says %v", name, err)
		}
	}
	if _, err := DeriveIKERekey(1, ipsec.Key{}, good, nil, nil, ipsec.Key{}, ipsec.IKESPIs{}); !errors.Is(err, ErrUnsupportedSuite) {
		t.Errorf("unknown old PRF: %v", err)
	}
	if _, err := DeriveChild(1, ipsec.Key{}, good, nil, nil, ipsec.Key{}); !errors.Is(err, ErrUnsupportedSuite) {
		t.Errorf("unknown PRF for a Child SA: %v", err)
	}
	null := ipsec.Suite{Encr: ipsec.ENCRNULL, Integ: ipsec.INTEGHMACSHA256_128}
	k, err := DeriveChild(ipsec.PRFHMACSHA256, ipsec.Key{}, null, nil, nil, ipsec.Key{})
	if err != nil || k.EncrI.Len() != 0 || k.IntegI.Len() != 32 {
		t.Errorf("ESP with NULL encryption: %v", err)
	}
}

func TestAuthPSK(t *testing.T) {
	msg, nonce := []byte("IKE_SA_INIT as sent"), bytes.Repeat([]byte{7}, 32)
	skp, id := bytes.Repeat([]byte{8}, 48), []byte{2, 0, 0, 0, 'g', 'w'}
	for _, prf := range []ipsec.TransformID{ipsec.PRFHMACSHA1, ipsec.PRFHMACSHA256, ipsec.PRFHMACSHA384, ipsec.PRFHMACSHA512} {
		octets := concat(msg, nonce, refPRF(prf, skp, id))
		if got := SignedOctets(prf, msg, nonce, skp, id); !bytes.Equal(got, octets) {
			t.Errorf("PRF %d: signed octets %x, want %x", prf, got, octets)
		}
		want := refPRF(prf, refPRF(prf, []byte("secret"), []byte("Key Pad for IKEv2")), octets)
		if got := AuthPSK(prf, []byte("secret"), msg, nonce, skp, id); !bytes.Equal(got, want) {
			t.Errorf("PRF %d: AUTH %x, want %x", prf, got, want)
		}
	}
}

func TestWipe(t *testing.T) {
	k, err := DeriveIKE(ikeSuites[0], nil, nil, ipsec.Key{}, ipsec.IKESPIs{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := DeriveChild(ipsec.PRFHMACSHA1, k.D, ikeSuites[0], nil, nil, ipsec.Key{})
	if err != nil {
		t.Fatal(err)
	}
	if !nonZero(k.join()) || !nonZero(c.join()) {
		t.Fatal("keys are zero before they are wiped")
	}
	k.Wipe()
	c.Wipe()
	if nonZero(k.join()) || nonZero(c.join()) {
		t.Error("a key survived Wipe")
	}
}
