package keymat

import (
	"errors"
	"fmt"
	"io"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

var errNotPadded = errors.New("plaintext is not padded to whole blocks")

// NewSealer protects SK payloads under one direction's keys: encr with its salt
// at the end, integ empty with an AEAD. AEADs take their IVs from iv, which must
// be shared by everything in the process that seals under encr; CBC draws
// unpredictable ones from r. A sealer may be used concurrently if r may.
// It fails with ErrUnsupportedSuite, or where key lengths do not fit the suite.
func NewSealer(s ipsec.Suite, encr, integ ipsec.Key, iv *ipsec.IVCounter, r io.Reader) (message.Sealer, error) {
	if err := checkKeys(s, encr, integ); err != nil {
		return nil, err
	}
	if s.Encr.AEAD() {
		if iv == nil {
			return nil, fmt.Errorf("sealing with encryption %d needs an IV counter", s.Encr)
		}
		a, err := newAEAD(s, encr)
		if err != nil {
			return nil, err
		}
		return &aeadSealer{aead: a, iv: iv}, nil
	}
	if r == nil {
		return nil, fmt.Errorf("sealing with encryption %d needs randomness", s.Encr)
	}
	c, err := newCBC(s, encr, integ)
	if err != nil {
		return nil, err
	}
	return &cbcSealer{cbc: c, r: r}, nil
}

// NewOpener undoes what NewSealer's result did under the same keys. It may be
// used concurrently. Errors as NewSealer's.
func NewOpener(s ipsec.Suite, encr, integ ipsec.Key) (message.Opener, error) {
	if err := checkKeys(s, encr, integ); err != nil {
		return nil, err
	}
	if s.Encr.AEAD() {
		return newAEAD(s, encr)
	}
	return newCBC(s, encr, integ)
}

func checkKeys(s ipsec.Suite, encr, integ ipsec.Key) error {
	if err := checkCipher(s, false); err != nil {
		return err
	}
	if encr.Len() != s.EncrKeyLen()+s.SaltLen() || integ.Len() != s.IntegKeyLen() {
		return fmt.Errorf("key lengths %d and %d do not fit %s", encr.Len(), integ.Len(), s)
	}
	return nil
}

// grow returns b followed by n writable bytes, in place if b has the room.
func grow(b []byte, n int) (all, tail []byte) {
	all = append(b, make([]byte, n)...)
	return all, all[len(b):]
}
