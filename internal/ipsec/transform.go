package ipsec

import "fmt"

// TransformType as in RFC 7296 §3.3.2.
type TransformType uint8

const (
	TransformENCR  TransformType = 1
	TransformPRF   TransformType = 2
	TransformINTEG TransformType = 3
	TransformKE    TransformType = 4
	TransformESN   TransformType = 5

	// TransformADDKE1 to TransformADDKE7 are additional key exchanges (RFC 9370 §2.2.1),
	// with the IDs of TransformKE.
	TransformADDKE1 TransformType = 6
	TransformADDKE7 TransformType = 12
)

// MaxAddKE is how many additional key exchanges one negotiation has at most.
const MaxAddKE = 7

// AddKE are additional key exchange methods in the order of their transform types; KENone
// where there is none.
type AddKE [MaxAddKE]TransformID

// Methods are those that there are, in the order in which they are carried out.
func (a AddKE) Methods() []TransformID {
	var out []TransformID
	for _, id := range a {
		if id != KENone {
			out = append(out, id)
		}
	}
	return out
}

// TransformID is a value of the registry that its TransformType names.
type TransformID uint16

const (
	ENCR3DES             TransformID = 3
	ENCRNULL             TransformID = 11
	ENCRAESCBC           TransformID = 12
	ENCRAESCTR           TransformID = 13
	ENCRAESGCM8          TransformID = 18
	ENCRAESGCM12         TransformID = 19
	ENCRAESGCM16         TransformID = 20
	ENCRChaCha20Poly1305 TransformID = 28

	PRFHMACSHA1   TransformID = 2
	PRFHMACSHA256 TransformID = 5
	PRFHMACSHA384 TransformID = 6
	PRFHMACSHA512 TransformID = 7

	INTEGNone           TransformID = 0
	INTEGHMACSHA1_96    TransformID = 2
	INTEGHMACSHA256_128 TransformID = 12
	INTEGHMACSHA384_192 TransformID = 13
	INTEGHMACSHA512_256 TransformID = 14

	KENone     TransformID = 0
	KEMODP1024 TransformID = 2
	KEMODP1536 TransformID = 5
	KEMODP2048 TransformID = 14
	KEMODP3072 TransformID = 15
	KEMODP4096 TransformID = 16
	KEECP256   TransformID = 19
	KEECP384   TransformID = 20
	KEECP521   TransformID = 21
	KEX25519   TransformID = 31

	KEMLKEM768  TransformID = 36
	KEMLKEM1024 TransformID = 37

	ESNNo  TransformID = 0
	ESNYes TransformID = 1
)

// AEAD says whether the encryption transform authenticates by itself, so that
// no integrity transform may stand beside it (RFC 7296 §3.3).
func (id TransformID) AEAD() bool {
	switch id {
	case ENCRAESGCM8, ENCRAESGCM12, ENCRAESGCM16, ENCRChaCha20Poly1305:
		return true
	}
	return false
}

// Transform is one offered algorithm. KeyBits is 0 where the transform has no
// Key Length attribute (RFC 7296 §3.3.5).
type Transform struct {
	Type    TransformType
	ID      TransformID
	KeyBits uint16
}

// Proposal is one numbered offer of an SA payload; SPI is empty, 4 (ESP) or 8 bytes (IKE rekey).
type Proposal struct {
	Number     uint8
	Protocol   uint8
	SPI        []byte
	Transforms []Transform
}

// Suite is what a negotiation settled: one transform of each type. Integ is
// INTEGNone with an AEAD; KE is KENone where there is no key exchange of its own
// (the first Child SA), and AddKE what follows it (RFC 9370); PRF is 0 for ESP.
type Suite struct {
	Encr    TransformID
	KeyBits uint16
	PRF     TransformID
	Integ   TransformID
	KE      TransformID
	ESN     bool
	AddKE   AddKE
}

// EncrKeyLen is the length in bytes of the encryption key without its salt.
func (s Suite) EncrKeyLen() int {
	switch s.Encr {
	case ENCR3DES:
		return 24
	case ENCRNULL:
		return 0
	case ENCRChaCha20Poly1305:
		return 32
	}
	return int(s.KeyBits) / 8
}

// SaltLen is the length in bytes of the salt that follows the key in keying
// material: 4 with GCM and ChaCha20-Poly1305 (RFC 4106 §8.1, RFC 7634 §2), else 0.
func (s Suite) SaltLen() int {
	if s.Encr.AEAD() {
		return 4
	}
	return 0
}

// IntegKeyLen is the length in bytes of the integrity key, 0 with an AEAD.
func (s Suite) IntegKeyLen() int {
	switch s.Integ {
	case INTEGHMACSHA1_96:
		return 20
	case INTEGHMACSHA256_128:
		return 32
	case INTEGHMACSHA384_192:
		return 48
	case INTEGHMACSHA512_256:
		return 64
	}
	return 0
}

// String prints the suite in FortiOS's spelling, e.g. "aes128-sha256", "aes128gcm-prfsha256".
func (s Suite) String() string {
	encr := map[TransformID]string{
		ENCR3DES: "3des", ENCRNULL: "null", ENCRAESCBC: fmt.Sprintf("aes%d", s.KeyBits),
		ENCRAESGCM16: fmt.Sprintf("aes%dgcm", s.KeyBits), ENCRChaCha20Poly1305: "chacha20poly1305",
	}[s.Encr]
	if encr == "" {
		encr = fmt.Sprintf("encr%d-%d", s.Encr, s.KeyBits)
	}
	if !s.Encr.AEAD() {
		return encr + "-" + hashName(map[TransformID]TransformID{
			INTEGHMACSHA1_96: PRFHMACSHA1, INTEGHMACSHA256_128: PRFHMACSHA256,
			INTEGHMACSHA384_192: PRFHMACSHA384, INTEGHMACSHA512_256: PRFHMACSHA512,
		}[s.Integ])
	}
	if s.PRF == 0 {
		return encr
	}
	return encr + "-prf" + hashName(s.PRF)
}

func hashName(prf TransformID) string {
	switch prf {
	case PRFHMACSHA1:
		return "sha1"
	case PRFHMACSHA256:
		return "sha256"
	case PRFHMACSHA384:
		return "sha384"
	case PRFHMACSHA512:
		return "sha512"
	}
	return "null"
}
