package keymat

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/chacha20poly1305"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// aeadIVLen is the explicit IV of RFC 5282 §3.1 and RFC 7634 §2.
const aeadIVLen = 8

// aead opens and seals with nonce = salt ‖ IV (RFC 5282 §4, RFC 7634 §2).
type aead struct {
	c    cipher.AEAD
	salt ipsec.Key
}

// newAEAD splits the salt off the end of key. checkKeys has passed.
func newAEAD(s ipsec.Suite, key ipsec.Key) (*aead, error) {
	split := key.Len() - s.SaltLen()
	k, salt := key.Bytes()[:split], ipsec.NewKey(key.Bytes()[split:])
	if s.Encr == ipsec.ENCRChaCha20Poly1305 {
		c, err := chacha20poly1305.New(k)
		return &aead{c: c, salt: salt}, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	c, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	switch s.Encr {
	case ipsec.ENCRAESGCM8:
		c = &truncatedGCM{AEAD: c, block: block, tag: 8}
	case ipsec.ENCRAESGCM12:
		c = &truncatedGCM{AEAD: c, block: block, tag: 12}
	}
	return &aead{c: c, salt: salt}, nil
}

func (a *aead) nonce(iv []byte) []byte { return concat(a.salt.Bytes(), iv) }

// Open implements message.Opener.
func (a *aead) Open(aad, body []byte) ([]byte, error) {
	if len(body) < aeadIVLen+a.c.Overhead() {
		return nil, message.ErrAuthentication
	}
	plain, err := a.c.Open(nil, a.nonce(body[:aeadIVLen]), body[aeadIVLen:], aad)
	if err != nil {
		return nil, message.ErrAuthentication
	}
	return plain, nil
}

// seal returns aad ‖ IV ‖ ciphertext ‖ ICV. An IV must never come twice.
func (a *aead) seal(iv, aad, plaintext []byte) []byte {
	out, tail := grow(aad, aeadIVLen+len(plaintext)+a.c.Overhead())
	copy(tail, iv)
	a.c.Seal(tail[aeadIVLen:aeadIVLen], a.nonce(iv), plaintext, out[:len(aad)])
	return out
}

type aeadSealer struct {
	*aead
	iv *ipsec.IVCounter
}

func (s *aeadSealer) IVLen() int    { return aeadIVLen }
func (s *aeadSealer) ICVLen() int   { return s.c.Overhead() }
func (s *aeadSealer) BlockLen() int { return 1 }

// Seal implements message.Sealer. It fails with ipsec.ErrNonceSpace when the
// counter is exhausted: the key must then not be used any more.
func (s *aeadSealer) Seal(aad, plaintext []byte) ([]byte, error) {
	var iv [aeadIVLen]byte
	if err := s.iv.Next(iv[:]); err != nil {
		return nil, err
	}
	return s.seal(iv[:], aad, plaintext), nil
}

// truncatedGCM is AES-GCM with a tag of 8 or 12 bytes (RFC 5282 §3.2), which are
// the first bytes of the full one. crypto/cipher goes down to 12 only.
type truncatedGCM struct {
	cipher.AEAD
	block cipher.Block
	tag   int
}

var errOpen = errors.New("open failed")

func (g *truncatedGCM) Overhead() int { return g.tag }

func (g *truncatedGCM) Seal(dst, nonce, plaintext, aad []byte) []byte {
	full := g.AEAD.Seal(nil, nonce, plaintext, aad)
	return append(dst, full[:len(plaintext)+g.tag]...)
}

// Open decrypts in private memory to be able to compute the tag anew; nothing of
// it is given away unless the tag is right.
func (g *truncatedGCM) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if len(ciphertext) < g.tag {
		return nil, errOpen
	}
	n := len(ciphertext) - g.tag
	// GCM encrypts in counter mode from nonce ‖ 2 on: block 1 is the tag's mask.
	counter := binary.BigEndian.AppendUint32(concat(nonce), 2)
	plain := make([]byte, n)
	cipher.NewCTR(g.block, counter).XORKeyStream(plain, ciphertext[:n])
	full := g.AEAD.Seal(nil, nonce, plain, aad)
	if subtle.ConstantTimeCompare(full[n:n+g.tag], ciphertext[n:]) != 1 {
		clear(plain)
		return nil, errOpen
	}
	return append(dst, plain...), nil
}
