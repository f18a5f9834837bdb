package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"

	"tandem/internal/ipsec"
)

const (
	espHeaderLen = 8 // SPI and sequence number

	// HeaderRoom is what Seal needs before the payload, in bytes, at most.
	HeaderRoom = espHeaderLen + 16
	// TrailerRoom is what Seal needs after it: padding, trailer and ICV.
	TrailerRoom = PadRoom + 32
	// PadRoom is the padding and the trailer of that.
	PadRoom = 15 + 2
)

// ErrInvalid covers every packet that is not authentic or not well formed. The
// cause is not told apart, so that nobody can learn from our behaviour whether
// the ICV or the padding was wrong.
var ErrInvalid = errors.New("esp: invalid packet")

// ErrReplayed means that the sequence number was accepted before, or lies below
// the window or below what an earlier owner may have delivered.
var ErrReplayed = errors.New("esp: replayed packet")

// Layout is the shape that a suite gives to packets. All lengths are in bytes.
type Layout struct {
	IVLen, ICVLen int
	Align         int // of payload plus padding plus the two trailer bytes
}

// LayoutOf returns the layout of a suite; an error names what is not supported.
func LayoutOf(s ipsec.Suite) (Layout, error) {
	var l Layout
	switch s.Encr {
	case ipsec.ENCRAESGCM16, ipsec.ENCRChaCha20Poly1305:
		l = Layout{8, 16, 4}
	case ipsec.ENCRAESGCM12:
		l = Layout{8, 12, 4}
	case ipsec.ENCRAESCBC:
		l = Layout{16, 0, 16}
	case ipsec.ENCR3DES:
		l = Layout{8, 0, 8}
	case ipsec.ENCRNULL:
		l = Layout{0, 0, 4}
	default:
		return l, fmt.Errorf("esp: encryption transform %d is not supported", s.Encr)
	}
	if s.Encr.AEAD() {
		if s.Integ != ipsec.INTEGNone {
			return l, fmt.Errorf("esp: integrity transform %d beside an AEAD", s.Integ)
		}
		return l, nil
	}
	switch s.Integ {
	case ipsec.INTEGHMACSHA1_96:
		l.ICVLen = 12
	case ipsec.INTEGHMACSHA256_128:
		l.ICVLen = 16
	case ipsec.INTEGHMACSHA384_192:
		l.ICVLen = 24
	case ipsec.INTEGHMACSHA512_256:
		l.ICVLen = 32
	default:
		return l, fmt.Errorf("esp: integrity transform %d is not supported", s.Integ)
	}
	return l, nil
}

// SealedLen is the length of the ESP packet around a payload of n bytes.
func (l Layout) SealedLen(n int) int {
	return espHeaderLen + l.IVLen + (n+2+l.Align-1)/l.Align*l.Align + l.ICVLen
}

// MaxPayload is the largest payload whose ESP packet is at most n bytes long;
// 0 when there is none.
func (l Layout) MaxPayload(n int) int {
	n -= espHeaderLen + l.IVLen + l.ICVLen
	return max(0, n/l.Align*l.Align-2)
}

// cbc is what crypto/cipher's CBC modes offer beside BlockMode: it spares a new
// mode, and so an allocation, for each packet.
type cbc interface {
	cipher.BlockMode
	SetIV([]byte)
}

// transform is the cryptography of one direction. Its scratch memory makes it
// unfit for concurrent use.
type transform struct {
	Layout
	esn   bool
	aead  cipher.AEAD
	cbc   cbc
	mac   hash.Hash
	nonce [12]byte // salt ‖ IV
	aad   [12]byte // SPI ‖ [high half] ‖ low half
	sum   [64]byte
}

func newTransform(s ipsec.Suite, l Layout, encr, salt, integ []byte, decrypt bool) (*transform, error) {
	t := &transform{Layout: l, esn: s.ESN}
	if len(encr) != s.EncrKeyLen() || len(salt) != s.SaltLen() || len(integ) != s.IntegKeyLen() {
		return nil, fmt.Errorf("esp: key lengths %d+%d+%d do not fit the suite %v", len(encr), len(salt), len(integ), s)
	}
	copy(t.nonce[:], salt)
	mode := cipher.NewCBCEncrypter
	if decrypt {
		mode = cipher.NewCBCDecrypter
	}
	switch s.Encr {
	case ipsec.ENCRAESGCM16, ipsec.ENCRAESGCM12:
		b, err := aes.NewCipher(encr)
		if err != nil {
			return nil, err
		}
		if t.aead, err = cipher.NewGCMWithTagSize(b, l.ICVLen); err != nil {
			return nil, err
		}
	case ipsec.ENCRChaCha20Poly1305:
		var err error
		if t.aead, err = chacha20poly1305.New(encr); err != nil {
			return nil, err
		}
	case ipsec.ENCRAESCBC, ipsec.ENCR3DES:
		b, err := newBlock(s.Encr, encr)
		if err != nil {
			return nil, err
		}
		var ok bool
		if t.cbc, ok = mode(b, make([]byte, b.BlockSize())).(cbc); !ok {
			return nil, errors.New("esp: this CBC mode cannot change its IV")
		}
	}
	switch s.Integ {
	case ipsec.INTEGHMACSHA1_96:
		t.mac = hmac.New(sha1.New, integ)
	case ipsec.INTEGHMACSHA256_128:
		t.mac = hmac.New(sha256.New, integ)
	case ipsec.INTEGHMACSHA384_192:
		t.mac = hmac.New(sha512.New384, integ)
	case ipsec.INTEGHMACSHA512_256:
		t.mac = hmac.New(sha512.New, integ)
	}
	return t, nil
}

func newBlock(id ipsec.TransformID, key []byte) (cipher.Block, error) {
	if id == ipsec.ENCR3DES {
		return des.NewTripleDESCipher(key)
	}
	return aes.NewCipher(key)
}

// additional returns what an AEAD authenticates beside the ciphertext: the ESP
// header, with all 64 bits of the sequence number under ESN (RFC 4106 §5, RFC 7634 §2.1).
func (t *transform) additional(hdr []byte, seq uint64) []byte {
	copy(t.aad[:4], hdr)
	if !t.esn {
		copy(t.aad[4:8], hdr[4:8])
		return t.aad[:8]
	}
	binary.BigEndian.PutUint64(t.aad[4:], seq)
	return t.aad[:12]
}

// icv computes the separate ICV over pkt, which ends before it. Under ESN the
// high half counts as if it followed (RFC 4303 §2.2.1).
func (t *transform) icv(pkt []byte, seq uint64) []byte {
	t.mac.Reset()
	t.mac.Write(pkt)
	if t.esn {
		binary.BigEndian.PutUint32(t.aad[:4], uint32(seq>>32))
		t.mac.Write(t.aad[:4])
	}
	return t.mac.Sum(t.sum[:0])[:t.ICVLen]
}

// seal encrypts and authenticates the padded plaintext behind the header and the IV at
// the beginning of dst, and returns the length of the packet. The plaintext lies at its
// place in dst, or elsewhere; dst has room for the ICV.
func (t *transform) seal(dst, plain []byte, seq uint64) int {
	body := espHeaderLen + t.IVLen
	if t.aead != nil {
		copy(t.nonce[4:], dst[espHeaderLen:body])
		return body + len(t.aead.Seal(dst[body:body], t.nonce[:], plain, t.additional(dst, seq)))
	}
	end := body + len(plain)
	if t.cbc != nil {
		t.cbc.SetIV(dst[espHeaderLen:body])
		t.cbc.CryptBlocks(dst[body:end], plain)
	} else {
		copy(dst[body:end], plain)
	}
	if t.mac != nil {
		end += copy(dst[end:], t.icv(dst[:end], seq))
	}
	return end
}

// open authenticates and decrypts pkt in place and returns the padded plaintext.
func (t *transform) open(pkt []byte, seq uint64) ([]byte, bool) {
	body := espHeaderLen + t.IVLen
	n := len(pkt) - body - t.ICVLen
	if n < t.Align || t.cbc != nil && n%t.Align != 0 {
		return nil, false
	}
	if t.aead != nil {
		copy(t.nonce[4:], pkt[espHeaderLen:body])
		pt, err := t.aead.Open(pkt[body:body], t.nonce[:], pkt[body:], t.additional(pkt, seq))
		return pt, err == nil
	}
	end := body + n
	if t.mac != nil && subtle.ConstantTimeCompare(t.icv(pkt[:end], seq), pkt[end:]) != 1 {
		return nil, false
	}
	if t.cbc != nil {
		t.cbc.SetIV(pkt[espHeaderLen:body])
		t.cbc.CryptBlocks(pkt[body:end], pkt[body:end])
	}
	return pkt[body:end], true
}
