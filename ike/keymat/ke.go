package keymat

import (
	"errors"
	"fmt"
	"io"

	"tandem/internal/ipsec"
)

var (
	// ErrUnsupportedGroup means a key exchange method that we do not implement.
	ErrUnsupportedGroup = errors.New("unsupported key exchange group")
	// ErrKEData means a public value that RFC 6989 §2 or the group's own RFC tells
	// us to refuse.
	ErrKEData = errors.New("refused key exchange value")
)

// KeyExchange is the initiator's side of a key exchange: an ephemeral key pair.
type KeyExchange interface {
	Group() ipsec.TransformID
	// Public is the data of our KE payload.
	Public() []byte
	// Shared returns g^ir as RFC 7296 §2.14 feeds it to the prf: padded to the
	// length of the modulus; for ECP the x coordinate alone (RFC 5903 §7). Errors
	// wrap ErrKEData.
	Shared(peer []byte) (ipsec.Key, error)
	// Private is the secret, for records: RestoreKeyExchange rebuilds the pair from it.
	Private() ipsec.Key
}

// group is one key exchange method.
type group interface {
	// check judges length and range of a public value without real work.
	check(data []byte) error
	generate(r io.Reader) (KeyExchange, error)
	restore(private []byte) (KeyExchange, error)
}

func groupByID(id ipsec.TransformID) (group, error) {
	if g, ok := modpGroups[id]; ok {
		return g, nil
	}
	if g, ok := ecpGroups[id]; ok {
		return g, nil
	}
	if g, ok := mlkemGroups[id]; ok {
		return g, nil
	}
	if id == ipsec.KEX25519 {
		return x25519{}, nil
	}
	return nil, fmt.Errorf("%w: %d", ErrUnsupportedGroup, id)
}

// NewKeyExchange makes a key pair from the bytes of r. It fails with
// ErrUnsupportedGroup or r's error.
func NewKeyExchange(group ipsec.TransformID, r io.Reader) (KeyExchange, error) {
	g, err := groupByID(group)
	if err != nil {
		return nil, err
	}
	return g.generate(r)
}

// Answer is the responder's side at once: its public value, and the secret shared with
// the initiator whose public value is peer. It fails with ErrUnsupportedGroup, ErrKEData or
// r's error.
func Answer(group ipsec.TransformID, r io.Reader, peer []byte) (public []byte, shared ipsec.Key, err error) {
	g, err := groupByID(group)
	if err != nil {
		return nil, ipsec.Key{}, err
	}
	if kem, ok := g.(*mlkemGroup); ok {
		return kem.answer(r, peer)
	}
	x, err := g.generate(r)
	if err != nil {
		return nil, ipsec.Key{}, err
	}
	shared, err = x.Shared(peer)
	x.Private().Wipe()
	if err != nil {
		return nil, ipsec.Key{}, err
	}
	return x.Public(), shared, nil
}

// RestoreKeyExchange rebuilds a key pair from its Private.
func RestoreKeyExchange(group ipsec.TransformID, private ipsec.Key) (KeyExchange, error) {
	g, err := groupByID(group)
	if err != nil {
		return nil, err
	}
	return g.restore(private.Bytes())
}

// CheckPublic judges an initiator's public value by its length and range, before any
// costly work. Shared repeats the checks and adds the costly ones (the point lies
// on the curve). It fails with ErrUnsupportedGroup or ErrKEData.
func CheckPublic(group ipsec.TransformID, data []byte) error {
	g, err := groupByID(group)
	if err != nil {
		return err
	}
	return g.check(data)
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrKEData}, args...)...)
}

// nonZero is for public values only: it is not constant-time.
func nonZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return true
		}
	}
	return false
}
