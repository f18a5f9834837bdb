package keymat

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // HMAC-SHA-1 stays sound; it is offered only where configured
	"crypto/sha256"
	"crypto/sha512"
	"hash"

	"tandem/internal/ipsec"
)

// prfHash returns the hash below an HMAC PRF, nil if we do not know the PRF.
func prfHash(id ipsec.TransformID) func() hash.Hash {
	switch id {
	case ipsec.PRFHMACSHA1:
		return sha1.New
	case ipsec.PRFHMACSHA256:
		return sha256.New
	case ipsec.PRFHMACSHA384:
		return sha512.New384
	case ipsec.PRFHMACSHA512:
		return sha512.New
	}
	return nil
}

// PRF returns prf(key, data[0] | data[1] | …) of RFC 7296 §2.13. It returns nil
// for a PRF that we do not know.
func PRF(id ipsec.TransformID, key []byte, data ...[]byte) []byte {
	h := prfHash(id)
	if h == nil {
		return nil
	}
	mac := hmac.New(h, key)
	for _, d := range data {
		mac.Write(d)
	}
	return mac.Sum(nil)
}

// PRFPlus returns n bytes of prf+(key, seed) of RFC 7296 §2.13. It returns nil
// for a PRF that we do not know and beyond the 255 blocks that prf+ has.
func PRFPlus(id ipsec.TransformID, key, seed []byte, n int) []byte {
	size := PRFKeyLen(id)
	if size == 0 || n < 0 || n > 255*size {
		return nil
	}
	mac := hmac.New(prfHash(id), key)
	out := make([]byte, 0, n+size)
	var t []byte
	for i := byte(1); len(out) < n; i++ {
		mac.Reset()
		mac.Write(t)
		mac.Write(seed)
		mac.Write([]byte{i})
		out = mac.Sum(out)
		t = out[len(out)-size:]
	}
	clear(out[n:])
	return out[:n:n]
}

// PRFKeyLen is the preferred key length in bytes, which is also the output
// length of the HMAC PRFs (RFC 4868 §2.1.2); 0 for a PRF that we do not know.
func PRFKeyLen(id ipsec.TransformID) int {
	switch id {
	case ipsec.PRFHMACSHA1:
		return sha1.Size
	case ipsec.PRFHMACSHA256:
		return sha256.Size
	case ipsec.PRFHMACSHA384:
		return sha512.Size384
	case ipsec.PRFHMACSHA512:
		return sha512.Size
	}
	return 0
}
