package keymat

import (
	"crypto/ecdh"
	"errors"
	"io"

	"tandem/internal/ipsec"
)

// ecpGroup is a group of RFC 5903: a public value is x ‖ y, each of the field's
// length, without the point format byte; the shared secret is x.
type ecpGroup struct {
	id    ipsec.TransformID
	curve ecdh.Curve
	size  int  // bytes of a coordinate and of a scalar
	mask  byte // of the scalar's first byte: the bits that the order has
}

var ecpGroups = map[ipsec.TransformID]*ecpGroup{
	ipsec.KEECP256: {ipsec.KEECP256, ecdh.P256(), 32, 0xff},
	ipsec.KEECP384: {ipsec.KEECP384, ecdh.P384(), 48, 0xff},
	ipsec.KEECP521: {ipsec.KEECP521, ecdh.P521(), 66, 0x01},
}

const pointUncompressed = 4

func (g *ecpGroup) check(data []byte) error {
	if len(data) != 2*g.size {
		return refuse("%d bytes for group %d", len(data), g.id)
	}
	if !nonZero(data) {
		return refuse("zero for group %d", g.id)
	}
	return nil
}

// generate draws scalars itself because ecdh.GenerateKey ignores its reader.
func (g *ecpGroup) generate(r io.Reader) (KeyExchange, error) {
	b := make([]byte, g.size)
	defer clear(b)
	for range 100 { // a scalar is out of range with a chance of less than 1 in 2^31
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		b[0] &= g.mask
		if k, err := g.restore(b); err == nil {
			return k, nil
		}
	}
	return nil, errors.New("no valid scalar in 100 draws: the randomness is broken")
}

func (g *ecpGroup) restore(private []byte) (KeyExchange, error) {
	k, err := g.curve.NewPrivateKey(private)
	if err != nil {
		return nil, errors.New("not a private scalar of this group")
	}
	return &ecdhExchange{group: g.id, key: k, decode: g.decode, public: k.PublicKey().Bytes()[1:]}, nil
}

// decode does the full validation of RFC 6989 §2.3: coordinates in range, point on the curve.
func (g *ecpGroup) decode(data []byte) (*ecdh.PublicKey, error) {
	if err := g.check(data); err != nil {
		return nil, err
	}
	p, err := g.curve.NewPublicKey(append([]byte{pointUncompressed}, data...))
	if err != nil {
		return nil, refuse("not a point of group %d", g.id)
	}
	return p, nil
}

// x25519 is group 31 (RFC 8031).
type x25519 struct{}

const x25519Size = 32

func (x25519) check(data []byte) error {
	if len(data) != x25519Size {
		return refuse("%d bytes for group %d", len(data), ipsec.KEX25519)
	}
	if !nonZero(data) {
		return refuse("zero for group %d", ipsec.KEX25519)
	}
	return nil
}

func (g x25519) generate(r io.Reader) (KeyExchange, error) {
	b := make([]byte, x25519Size)
	defer clear(b)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return g.restore(b)
}

func (g x25519) restore(private []byte) (KeyExchange, error) {
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return nil, errors.New("not a private scalar of this group")
	}
	return &ecdhExchange{group: ipsec.KEX25519, key: k, decode: g.decode, public: k.PublicKey().Bytes()}, nil
}

func (g x25519) decode(data []byte) (*ecdh.PublicKey, error) {
	if err := g.check(data); err != nil {
		return nil, err
	}
	return ecdh.X25519().NewPublicKey(data)
}

// ecdhExchange is a key pair of any curve.
type ecdhExchange struct {
	group  ipsec.TransformID
	key    *ecdh.PrivateKey
	decode func([]byte) (*ecdh.PublicKey, error)
	public []byte
}

func (k *ecdhExchange) Group() ipsec.TransformID { return k.group }
func (k *ecdhExchange) Public() []byte           { return append([]byte(nil), k.public...) }

func (k *ecdhExchange) Private() ipsec.Key {
	b := k.key.Bytes()
	defer clear(b)
	return ipsec.NewKey(b)
}

// Shared also refuses an all-zero result (RFC 8031 §3): crypto/ecdh reports it as an error.
func (k *ecdhExchange) Shared(peer []byte) (ipsec.Key, error) {
	p, err := k.decode(peer)
	if err != nil {
		return ipsec.Key{}, err
	}
	b, err := k.key.ECDH(p)
	if err != nil {
		return ipsec.Key{}, refuse("%v", err)
	}
	defer clear(b)
	return ipsec.NewKey(b), nil
}
