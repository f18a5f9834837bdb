package keymat

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" //nolint:gosec // 3DES is offered only where configured
	"crypto/hmac"
	"hash"
	"io"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// cbc is encryption in CBC mode and a truncated HMAC over all before it (RFC 7296 §3.14).
type cbc struct {
	block cipher.Block
	hash  func() hash.Hash
	integ ipsec.Key
	icv   int // bytes
}

// newCBC expects that checkKeys has passed.
func newCBC(s ipsec.Suite, encr, integ ipsec.Key) (*cbc, error) {
	c := &cbc{integ: integ}
	switch s.Integ {
	case ipsec.INTEGHMACSHA1_96:
		c.hash, c.icv = prfHash(ipsec.PRFHMACSHA1), 12
	case ipsec.INTEGHMACSHA256_128:
		c.hash, c.icv = prfHash(ipsec.PRFHMACSHA256), 16
	case ipsec.INTEGHMACSHA384_192:
		c.hash, c.icv = prfHash(ipsec.PRFHMACSHA384), 24
	case ipsec.INTEGHMACSHA512_256:
		c.hash, c.icv = prfHash(ipsec.PRFHMACSHA512), 32
	}
	var err error
	if s.Encr == ipsec.ENCR3DES {
		c.block, err = des.NewTripleDESCipher(encr.Bytes())
	} else {
		c.block, err = aes.NewCipher(encr.Bytes())
	}
	return c, err
}

func (c *cbc) mac(parts ...[]byte) []byte {
	m := hmac.New(c.hash, c.integ.Bytes())
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)[:c.icv]
}

// Open implements message.Opener; the ICV is compared before anything is decrypted.
func (c *cbc) Open(aad, body []byte) ([]byte, error) {
	size := c.block.BlockSize()
	n := len(body) - size - c.icv
	if n < size || n%size != 0 {
		return nil, message.ErrAuthentication
	}
	covered, icv := body[:size+n], body[size+n:]
	if !hmac.Equal(c.mac(aad, covered), icv) {
		return nil, message.ErrAuthentication
	}
	plain := make([]byte, n)
	cipher.NewCBCDecrypter(c.block, covered[:size]).CryptBlocks(plain, covered[size:])
	return plain, nil
}

type cbcSealer struct {
	*cbc
	r io.Reader
}

func (s *cbcSealer) IVLen() int    { return s.block.BlockSize() }
func (s *cbcSealer) ICVLen() int   { return s.icv }
func (s *cbcSealer) BlockLen() int { return s.block.BlockSize() }

// Seal implements message.Sealer. It fails with the error of the injected randomness.
func (s *cbcSealer) Seal(aad, plaintext []byte) ([]byte, error) {
	size := s.block.BlockSize()
	if len(plaintext)%size != 0 {
		return nil, errNotPadded
	}
	out, tail := grow(aad, size+len(plaintext)+s.icv)
	iv, text := tail[:size], tail[size:size+len(plaintext)]
	if _, err := io.ReadFull(s.r, iv); err != nil {
		return nil, err
	}
	cipher.NewCBCEncrypter(s.block, iv).CryptBlocks(text, plaintext)
	copy(tail[size+len(plaintext):], s.mac(out[:len(out)-s.icv]))
	return out, nil
}
