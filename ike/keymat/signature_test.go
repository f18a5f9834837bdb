package keymat

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"tandem/ike/message"
)

var testKeys = sync.OnceValue(func() map[string]crypto.Signer {
	out := map[string]crypto.Signer{}
	for name, c := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		out[name], _ = ecdsa.GenerateKey(c, rand.Reader)
	}
	out["RSA"], _ = rsa.GenerateKey(rand.Reader, 2048)
	_, out["Ed25519"], _ = ed25519.GenerateKey(rand.Reader)
	return out
})

func anything(Scheme) error { return nil }

// RFC 7427 appendix A and RFC 8420 appendix A, octet by octet.
var identifiers = map[Scheme]string{
	{Key: KeyRSA, Hash: HashSHA1}:              "300d06092a864886f70d0101050500",
	{Key: KeyRSA, Hash: HashSHA256}:            "300d06092a864886f70d01010b0500",
	{Key: KeyRSA, Hash: HashSHA384}:            "300d06092a864886f70d01010c0500",
	{Key: KeyRSA, Hash: HashSHA512}:            "300d06092a864886f70d01010d0500",
	{Key: KeyECDSA, Hash: HashSHA1}:            "300906072a8648ce3d0401",
	{Key: KeyECDSA, Hash: HashSHA256}:          "300a06082a8648ce3d040302",
	{Key: KeyECDSA, Hash: HashSHA384}:          "300a06082a8648ce3d040303",
	{Key: KeyECDSA, Hash: HashSHA512}:          "300a06082a8648ce3d040304",
	{Key: KeyEd25519, Hash: HashIdentity}:      "300506032b6570",
	{Key: KeyRSA, Hash: HashSHA256, PSS: true}: "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120",
	{Key: KeyRSA, Hash: HashSHA512, PSS: true}: "304106092a864886f70d01010a3034a00f300d06096086480165030402030500a11c301a06092a864886f70d010108300d06096086480165030402030500a203020140",
}

func TestAlgorithmIdentifiers(t *testing.T) {
	for s, want := range identifiers {
		id, err := s.identifier()
		if err != nil || hex.EncodeToString(id) != want {
			t.Errorf("%s: %x (%v), want %s", s, id, err, want)
		}
		got, sig, err := ParseSignature(append(append([]byte{byte(len(id))}, id...), "signature"...))
		if err != nil || got != s || string(sig) != "signature" {
			t.Errorf("%s: reads as %s, %q (%v)", s, got, sig, err)
		}
	}
	// What others leave out and we do not: NULL parameters of hashes and of RSA.
	for _, der := range []string{"300b06092a864886f70d01010b",
		"303d06092a864886f70d01010a3030a00d300b0609608648016503040201a11a301806092a864886f70d010108300b0609608648016503040201a203020120"} {
		if s, _, err := ParseSignature(append([]byte{byte(len(der) / 2)}, unhex(t, der)...)); err != nil || s.Hash != HashSHA256 {
			t.Errorf("%s: %s (%v)", der, s, err)
		}
	}
}

func TestSignatureRefused(t *testing.T) {
	pss := identifiers[Scheme{Key: KeyRSA, Hash: HashSHA256, PSS: true}]
	for _, tc := range []struct{ name, data, want string }{
		{"nothing", "", "cut off"},
		{"only a length", "0d", "cut off"},
		{"identifier cut off", "0f300d06092a864886f70d01010b05", "cut off"},
		{"no identifier", "00aa", "malformed"},
		{"octets behind it", "10300d06092a864886f70d01010b050000", "malformed"},
		{"parameters of RSA", "10300e06092a864886f70d01010b04020000", "malformed"},
		{"unknown algorithm", "0b300906072a8648ce380403", "is not accepted"},
		{"DSA", "09300706052b0e03020c00", "is not accepted"},
		{"MGF1 with another hash", fmt.Sprintf("43%s", strings.Replace(pss, "0108300d0609608648016503040201", "0108300d0609608648016503040203", 1)), "same hash"},
		{"salt of 20 bytes", "43" + strings.TrimSuffix(pss, "20") + "14", "salt"},
		{"defaults, which are SHA-1", "0f300d06092a864886f70d01010a3000", "RSASSA-PSS"},
		{"without salt length", "3e303c06092a864886f70d01010a302fa00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500", "RSASSA-PSS"},
	} {
		if s, _, err := ParseSignature(unhex(t, tc.data)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %s, %v, want %q", tc.name, s, err, tc.want)
		}
	}
}

// Every key signs by every method that it can, and a signature is good for its octets and key only.
func TestSignVerify(t *testing.T) {
	octets := []byte("IKE_SA_INIT, nonce and prf(SK_p, ID)")
	for _, tc := range []struct {
		key    string
		method message.AuthMethod
		scheme Scheme
	}{
		{"RSA", message.AuthRSA, Scheme{Key: KeyRSA, Hash: HashSHA1}},
		{"RSA", message.AuthRSA, Scheme{Key: KeyRSA, Hash: HashSHA256}},
		{"RSA", message.AuthRSA, Scheme{Key: KeyRSA, Hash: HashSHA384}},
		{"RSA", message.AuthRSA, Scheme{Key: KeyRSA, Hash: HashSHA512}},
		{"RSA", message.AuthSignature, Scheme{Key: KeyRSA, Hash: HashSHA256}},
		{"RSA", message.AuthSignature, Scheme{Key: KeyRSA, Hash: HashSHA1}},
		{"RSA", message.AuthSignature, Scheme{Key: KeyRSA, Hash: HashSHA256, PSS: true}},
		{"RSA", message.AuthSignature, Scheme{Key: KeyRSA, Hash: HashSHA384, PSS: true}},
		{"RSA", message.AuthSignature, Scheme{Key: KeyRSA, Hash: HashSHA512, PSS: true}},
		{"P-256", message.AuthECDSA256, Scheme{Key: KeyECDSA, Hash: HashSHA256}},
		{"P-384", message.AuthECDSA384, Scheme{Key: KeyECDSA, Hash: HashSHA384}},
		{"P-521", message.AuthECDSA521, Scheme{Key: KeyECDSA, Hash: HashSHA512}},
		{"P-256", message.AuthSignature, Scheme{Key: KeyECDSA, Hash: HashSHA256}},
		{"P-384", message.AuthSignature, Scheme{Key: KeyECDSA, Hash: HashSHA256}},
		{"P-521", message.AuthSignature, Scheme{Key: KeyECDSA, Hash: HashSHA512}},
		{"Ed25519", message.AuthSignature, Scheme{Key: KeyEd25519, Hash: HashIdentity}},
	} {
		name := fmt.Sprintf("%s method %d by %s", tc.key, tc.method, tc.scheme)
		key := testKeys()[tc.key]
		data, err := Sign(tc.method, tc.scheme, key, rand.Reader, octets)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s, err := Verify(tc.method, data, key.Public(), octets, anything); err != nil || s != tc.scheme {
			t.Errorf("%s: verifies as %s: %v", name, s, err)
		}
		if _, err := Verify(tc.method, data, key.Public(), append(octets[:len(octets):len(octets)], 0), anything); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: other octets: %v", name, err)
		}
		no := errors.New("not this one")
		if _, err := Verify(tc.method, data, key.Public(), octets, func(Scheme) error { return no }); !errors.Is(err, no) {
			t.Errorf("%s: not allowed: %v", name, err)
		}
		for other, k := range testKeys() {
			if _, err := Verify(tc.method, data, k.Public(), octets, anything); other != tc.key && err == nil {
				t.Errorf("%s: verifies under the key %s", name, other)
			}
		}
		bad := slices.Clone(data)
		bad[len(bad)-1] ^= 1
		if _, err := Verify(tc.method, bad, key.Public(), octets, anything); err == nil {
			t.Errorf("%s: verifies when changed", name)
		}
		if _, err := Verify(tc.method, data[:len(data)-1], key.Public(), octets, anything); err == nil {
			t.Errorf("%s: verifies when cut off", name)
		}
		if tc.key != "RSA" { // RFC 6979, RFC 8032: a successor would sign the same
			if again, err := Sign(tc.method, tc.scheme, key, rand.Reader, octets); err != nil || !bytes.Equal(again, data) {
				t.Errorf("%s: signs differently the second time (%v)", name, err)
			}
		}
	}
	for _, tc := range []struct {
		key    string
		method message.AuthMethod
		scheme Scheme
	}{
		{"P-256", message.AuthRSA, Scheme{Key: KeyECDSA, Hash: HashSHA256}},
		{"RSA", message.AuthRSA, Scheme{Key: KeyRSA, Hash: HashSHA256, PSS: true}},
		{"P-256", message.AuthECDSA384, Scheme{Key: KeyECDSA, Hash: HashSHA384}},
		{"P-256", message.AuthECDSA256, Scheme{Key: KeyECDSA, Hash: HashSHA512}},
		{"Ed25519", message.AuthECDSA256, Scheme{Key: KeyEd25519, Hash: HashIdentity}},
		{"RSA", message.AuthSignature, Scheme{Key: KeyRSA, Hash: HashIdentity}},
		{"RSA", message.AuthPSK, Scheme{Key: KeyRSA, Hash: HashSHA256}},
	} {
		if _, err := Sign(tc.method, tc.scheme, testKeys()[tc.key], rand.Reader, octets); err == nil {
			t.Errorf("%s signs by method %d as %s", tc.key, tc.method, tc.scheme)
		}
	}
}

func TestHashIDs(t *testing.T) {
	all := []HashID{HashSHA512, HashSHA1, HashIdentity}
	if b := EncodeHashIDs(all); hex.EncodeToString(b) != "000400010005" || !slices.Equal(DecodeHashIDs(b), all) {
		t.Errorf("%x", b)
	}
	if got := DecodeHashIDs(unhex(t, "0002 0002 0007 ffff 0000 0003")); !slices.Equal(got, []HashID{HashSHA256, HashSHA384}) {
		t.Errorf("twice and unknown: %v", got)
	}
	if DecodeHashIDs([]byte{0, 2, 0}) != nil || DecodeHashIDs(make([]byte, 4096)) != nil {
		t.Error("malformed data is read")
	}
}

// AUTH data of any kind neither panics nor verifies, and what parses is what we would write.
func FuzzSignature(f *testing.F) {
	octets := []byte("octets")
	for s, id := range identifiers {
		f.Add(uint8(message.AuthSignature), append(append([]byte{byte(len(id) / 2)}, unhex(f, id)...), byte(s.Hash), 2, 3))
	}
	for name, k := range testKeys() {
		if m := MethodOf(k.Public()); m != 0 && name != "RSA" {
			b, err := Sign(m, Scheme{Key: KeyECDSA, Hash: NaturalHash(k.Public())}, k, rand.Reader, octets)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(m), b)
		}
	}
	f.Add(uint8(message.AuthRSA), make([]byte, 256))
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		for name, k := range testKeys() {
			if _, err := Verify(message.AuthMethod(method), data, k.Public(), []byte("other octets"), anything); err == nil {
				t.Errorf("verifies under %s", name)
			}
		}
		s, sig, err := ParseSignature(data)
		if err != nil {
			return
		}
		if id, err := s.identifier(); err != nil || len(sig) > len(data)-2 {
			t.Errorf("%s: %x (%v)", s, id, err)
		}
		DecodeHashIDs(data)
	})
}
