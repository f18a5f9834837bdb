package keymat

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha1"   // of peers whose configuration allows it
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512" // for crypto.Hash
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"tandem/ike/message"
)

// HashID is a hash algorithm of SIGNATURE_HASH_ALGORITHMS (RFC 7427 §7, RFC 8420 §2).
type HashID uint16

const (
	HashSHA1     HashID = 1
	HashSHA256   HashID = 2
	HashSHA384   HashID = 3
	HashSHA512   HashID = 4
	HashIdentity HashID = 5 // Ed25519 signs the octets themselves
)

var hashes = map[HashID]crypto.Hash{HashSHA1: crypto.SHA1, HashSHA256: crypto.SHA256, HashSHA384: crypto.SHA384, HashSHA512: crypto.SHA512}

func (h HashID) String() string {
	switch h {
	case HashSHA1:
		return "SHA-1"
	case HashSHA256:
		return "SHA-256"
	case HashSHA384:
		return "SHA-384"
	case HashSHA512:
		return "SHA-512"
	case HashIdentity:
		return "identity"
	}
	return fmt.Sprintf("hash %d", uint16(h))
}

// maxHashIDs bounds a SIGNATURE_HASH_ALGORITHMS notification.
const maxHashIDs = 64

// EncodeHashIDs is the data of SIGNATURE_HASH_ALGORITHMS (RFC 7427 §4).
func EncodeHashIDs(ids []HashID) []byte {
	var b []byte
	for _, h := range ids {
		b = binary.BigEndian.AppendUint16(b, uint16(h))
	}
	return b
}

// DecodeHashIDs reads the known ones of it, each once; none of data that is malformed.
func DecodeHashIDs(data []byte) (ids []HashID) {
	if len(data)%2 != 0 || len(data) > 2*maxHashIDs {
		return nil
	}
	for ; len(data) > 0; data = data[2:] {
		h := HashID(binary.BigEndian.Uint16(data))
		if h >= HashSHA1 && h <= HashIdentity && !slices.Contains(ids, h) {
			ids = append(ids, h)
		}
	}
	return ids
}

// KeyKind is the kind of a key that signs.
type KeyKind uint8

const (
	KeyRSA     KeyKind = 1
	KeyECDSA   KeyKind = 2
	KeyEd25519 KeyKind = 3
)

// KindOf is the kind of a public key, 0 for one that cannot be used.
func KindOf(pub crypto.PublicKey) KeyKind {
	switch pub.(type) {
	case *rsa.PublicKey:
		return KeyRSA
	case *ecdsa.PublicKey:
		return KeyECDSA
	case ed25519.PublicKey:
		return KeyEd25519
	}
	return 0
}

// Scheme is how a signature was made.
type Scheme struct {
	Key  KeyKind
	Hash HashID
	PSS  bool // RSASSA-PSS; else PKCS #1 v1.5
}

func (s Scheme) String() string {
	switch {
	case s.Key == KeyEd25519:
		return "Ed25519"
	case s.Key == KeyECDSA:
		return "ECDSA with " + s.Hash.String()
	case s.PSS:
		return "RSASSA-PSS with " + s.Hash.String()
	}
	return "RSA with " + s.Hash.String()
}

var (
	oidMGF1   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidPSS    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	derNull   = asn1.RawValue{FullBytes: []byte{5, 0}}
	hashOIDs  = map[HashID]asn1.ObjectIdentifier{HashSHA1: {1, 3, 14, 3, 2, 26}, HashSHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, HashSHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, HashSHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3}}
	plainOIDs = []struct {
		oid asn1.ObjectIdentifier
		s   Scheme
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, Scheme{Key: KeyRSA, Hash: HashSHA1}},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Scheme{Key: KeyRSA, Hash: HashSHA256}},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, Scheme{Key: KeyRSA, Hash: HashSHA384}},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, Scheme{Key: KeyRSA, Hash: HashSHA512}},
		{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}, Scheme{Key: KeyECDSA, Hash: HashSHA1}},
		{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, Scheme{Key: KeyECDSA, Hash: HashSHA256}},
		{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, Scheme{Key: KeyECDSA, Hash: HashSHA384}},
		{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, Scheme{Key: KeyECDSA, Hash: HashSHA512}},
		{asn1.ObjectIdentifier{1, 3, 101, 112}, Scheme{Key: KeyEd25519, Hash: HashIdentity}},
	}
)

// pssParameters are RSASSA-PSS-params (RFC 4055 §3.1).
type pssParameters struct {
	Hash       pkix.AlgorithmIdentifier `asn1:"explicit,tag:0"`
	MGF        pkix.AlgorithmIdentifier `asn1:"explicit,tag:1"`
	SaltLength int                      `asn1:"explicit,tag:2"`
	Trailer    int                      `asn1:"optional,explicit,tag:3,default:1"`
}

// identifier is the AlgorithmIdentifier of a scheme (RFC 7427 appendix A, RFC 8420 appendix A).
func (s Scheme) identifier() ([]byte, error) {
	a := pkix.AlgorithmIdentifier{}
	if s.PSS {
		h := pkix.AlgorithmIdentifier{Algorithm: hashOIDs[s.Hash], Parameters: derNull}
		hash, err := asn1.Marshal(h)
		if err != nil {
			return nil, err
		}
		ps, err := asn1.Marshal(pssParameters{Hash: h, MGF: pkix.AlgorithmIdentifier{Algorithm: oidMGF1, Parameters: asn1.RawValue{FullBytes: hash}},
			SaltLength: hashes[s.Hash].Size(), Trailer: 1})
		if err != nil {
			return nil, err
		}
		return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: oidPSS, Parameters: asn1.RawValue{FullBytes: ps}})
	}
	for _, p := range plainOIDs {
		if p.s == s {
			a.Algorithm = p.oid
		}
	}
	if a.Algorithm == nil {
		return nil, fmt.Errorf("no AlgorithmIdentifier for %s", s)
	}
	if s.Key == KeyRSA {
		a.Parameters = derNull
	}
	return asn1.Marshal(a)
}

var errIdentifier = errors.New("AUTH data: the AlgorithmIdentifier is malformed")

// ParseSignature splits the AUTH data of method 14 (RFC 7427 §3): how it was signed, and
// the signature.
func ParseSignature(data []byte) (s Scheme, signature []byte, err error) {
	if len(data) < 2 || len(data) < 1+int(data[0]) {
		return s, nil, errors.New("AUTH data is cut off")
	}
	der, signature := data[1:1+int(data[0])], data[1+int(data[0]):]
	var a pkix.AlgorithmIdentifier
	if rest, err := asn1.Unmarshal(der, &a); err != nil || len(rest) > 0 {
		return s, nil, errIdentifier
	}
	if a.Algorithm.Equal(oidPSS) {
		s, err = parsePSS(a.Parameters.FullBytes)
		return s, signature, err
	}
	for _, p := range plainOIDs {
		if !a.Algorithm.Equal(p.oid) {
			continue
		}
		null := bytes.Equal(a.Parameters.FullBytes, derNull.FullBytes)
		if len(a.Parameters.FullBytes) > 0 && !null {
			return s, nil, errIdentifier
		}
		return p.s, signature, nil
	}
	return s, nil, fmt.Errorf("signature algorithm %s is not accepted", a.Algorithm)
}

// parsePSS takes the parameters that everybody produces: MGF1 with the same hash, and a
// salt of the hash's length (RFC 8017 §9.1).
func parsePSS(der []byte) (s Scheme, err error) {
	var p pssParameters
	if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) > 0 {
		return s, errors.New("AUTH data: RSASSA-PSS without hash, mask generation function or salt length")
	}
	for id, oid := range hashOIDs {
		if p.Hash.Algorithm.Equal(oid) {
			s = Scheme{Key: KeyRSA, Hash: id, PSS: true}
		}
	}
	if s.Key == 0 {
		return s, fmt.Errorf("RSASSA-PSS with the hash %s is not accepted", p.Hash.Algorithm)
	}
	var mgf pkix.AlgorithmIdentifier
	if rest, err := asn1.Unmarshal(p.MGF.Parameters.FullBytes, &mgf); err != nil || len(rest) > 0 || !p.MGF.Algorithm.Equal(oidMGF1) || !mgf.Algorithm.Equal(p.Hash.Algorithm) {
		return s, errors.New("RSASSA-PSS is accepted with MGF1 of the same hash only")
	}
	if p.SaltLength != hashes[s.Hash].Size() || p.Trailer != 1 {
		return s, fmt.Errorf("RSASSA-PSS is accepted with a salt of the hash's length only, not of %d bytes", p.SaltLength)
	}
	return s, nil
}

// MethodOf is the method of a key for peers without RFC 7427 (RFC 7296 §3.8, RFC 4754 §2):
// 0 for a key that has none.
func MethodOf(pub crypto.PublicKey) message.AuthMethod {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return message.AuthRSA
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return message.AuthECDSA256
		case elliptic.P384():
			return message.AuthECDSA384
		case elliptic.P521():
			return message.AuthECDSA521
		}
	}
	return 0
}

// curveHash is the hash that belongs to the curve of methods 9 to 11.
func curveHash(k *ecdsa.PublicKey) HashID {
	switch k.Curve {
	case elliptic.P384():
		return HashSHA384
	case elliptic.P521():
		return HashSHA512
	}
	return HashSHA256
}

// NaturalHash is the hash that goes with a key, if one does.
func NaturalHash(pub crypto.PublicKey) HashID {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return curveHash(k)
	case ed25519.PublicKey:
		return HashIdentity
	}
	return 0
}

func digest(h HashID, octets []byte) []byte {
	d := hashes[h].New()
	d.Write(octets)
	return d.Sum(nil)
}

// Sign makes the AUTH data of a method over what SignedOctets returned. For methods 1 and
// 14 scheme says how; methods 9 to 11 imply it.
func Sign(method message.AuthMethod, scheme Scheme, key crypto.Signer, rand io.Reader, octets []byte) ([]byte, error) {
	if KindOf(key.Public()) != scheme.Key {
		return nil, fmt.Errorf("the key cannot make a signature by %s", scheme)
	}
	sig, err := sign(scheme, key, rand, octets)
	if err != nil {
		return nil, err
	}
	switch method {
	case message.AuthRSA:
		if scheme.Key != KeyRSA || scheme.PSS {
			return nil, fmt.Errorf("method %d takes no %s", method, scheme)
		}
		return sig, nil
	case message.AuthSignature:
		id, err := scheme.identifier()
		if err != nil {
			return nil, err
		}
		return append(append([]byte{byte(len(id))}, id...), sig...), nil
	}
	k, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || MethodOf(k) != method || curveHash(k) != scheme.Hash {
		return nil, fmt.Errorf("method %d takes no such key", method)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &rs); err != nil {
		return nil, err
	}
	n := (k.Params().BitSize + 7) / 8
	out := make([]byte, 2*n)
	rs.R.FillBytes(out[:n])
	rs.S.FillBytes(out[n:])
	return out, nil
}

func sign(s Scheme, key crypto.Signer, rand io.Reader, octets []byte) ([]byte, error) {
	switch {
	case s.Key == KeyEd25519:
		return key.Sign(nil, octets, crypto.Hash(0))
	case hashes[s.Hash] == 0:
		return nil, fmt.Errorf("no signature by %s", s)
	case s.Key == KeyECDSA:
		return key.Sign(nil, digest(s.Hash, octets), hashes[s.Hash]) // deterministic (RFC 6979)
	case s.PSS:
		return key.Sign(rand, digest(s.Hash, octets), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hashes[s.Hash]})
	}
	return key.Sign(nil, digest(s.Hash, octets), hashes[s.Hash])
}

// ErrSignature says that a signature is not the key's over these octets.
var ErrSignature = errors.New("the signature is wrong")

// Verify checks the AUTH data of a method and returns how it was signed. allowed is asked
// before the key is used where AUTH names the scheme (method 14), else after it (the hash
// of method 1 shows only then).
func Verify(method message.AuthMethod, data []byte, pub crypto.PublicKey, octets []byte, allowed func(Scheme) error) (Scheme, error) {
	switch method {
	case message.AuthSignature:
		s, sig, err := ParseSignature(data)
		if err == nil {
			err = allowed(s)
		}
		if err == nil {
			err = verify(s, pub, octets, sig)
		}
		return s, err
	case message.AuthRSA:
		for _, h := range []HashID{HashSHA256, HashSHA384, HashSHA512, HashSHA1} {
			s := Scheme{Key: KeyRSA, Hash: h}
			if verify(s, pub, octets, data) == nil {
				return s, allowed(s)
			}
		}
		return Scheme{Key: KeyRSA}, ErrSignature
	case message.AuthECDSA256, message.AuthECDSA384, message.AuthECDSA521:
		k, ok := pub.(*ecdsa.PublicKey)
		if !ok || MethodOf(k) != method {
			return Scheme{}, fmt.Errorf("method %d does not fit the certificate's key", method)
		}
		s := Scheme{Key: KeyECDSA, Hash: curveHash(k)}
		if err := allowed(s); err != nil {
			return s, err
		}
		n := (k.Params().BitSize + 7) / 8
		if len(data) != 2*n {
			return s, ErrSignature
		}
		der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(data[:n]), new(big.Int).SetBytes(data[n:])})
		if err != nil {
			return s, ErrSignature
		}
		return s, verify(s, pub, octets, der)
	}
	return Scheme{}, fmt.Errorf("authentication method %d is no signature", method)
}

func verify(s Scheme, pub crypto.PublicKey, octets, sig []byte) error {
	if KindOf(pub) != s.Key {
		return fmt.Errorf("a signature by %s does not fit the certificate's key", s)
	}
	ok := false
	switch k := pub.(type) {
	case *rsa.PublicKey:
		h := hashes[s.Hash]
		if s.PSS {
			ok = rsa.VerifyPSS(k, h, digest(s.Hash, octets), sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		} else {
			ok = rsa.VerifyPKCS1v15(k, h, digest(s.Hash, octets), sig) == nil
		}
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest(s.Hash, octets), sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, octets, sig)
	}
	if !ok {
		return ErrSignature
	}
	return nil
}
