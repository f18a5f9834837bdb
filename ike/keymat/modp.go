package keymat

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"sync"

	"filippo.io/bigmod"

	"tandem/internal/ipsec"
)

// modpGroup is a MODP group with generator 2. Its prime is safe, so that 1 and
// p-1 are the only values of small order (RFC 6989 §2.1).
type modpGroup struct {
	id       ipsec.TransformID
	exponent int // bytes of a private exponent: the larger estimate of RFC 3526 §8, rounded up
	load     func() modpParams
}

type modpParams struct {
	p        *bigmod.Modulus
	pMinus1  []byte // big-endian, of the modulus's length
	size     int    // bytes
	generate *bigmod.Nat
}

var modpGroups = map[ipsec.TransformID]*modpGroup{
	ipsec.KEMODP1024: newMODP(ipsec.KEMODP1024, 32, prime1024),
	ipsec.KEMODP1536: newMODP(ipsec.KEMODP1536, 32, prime1536),
	ipsec.KEMODP2048: newMODP(ipsec.KEMODP2048, 40, prime2048),
	ipsec.KEMODP3072: newMODP(ipsec.KEMODP3072, 56, prime3072),
	ipsec.KEMODP4096: newMODP(ipsec.KEMODP4096, 64, prime4096),
}

func newMODP(id ipsec.TransformID, exponent int, prime string) *modpGroup {
	return &modpGroup{id: id, exponent: exponent, load: sync.OnceValue(func() modpParams {
		b, err := hex.DecodeString(prime)
		if err != nil {
			panic(err) // a constant of this package
		}
		p, err := bigmod.NewModulus(b)
		if err != nil {
			panic(err)
		}
		two := make([]byte, len(b))
		two[len(b)-1] = 2
		g, err := bigmod.NewNat().SetBytes(two, p)
		if err != nil {
			panic(err)
		}
		b[len(b)-1]-- // p is odd
		return modpParams{p: p, pMinus1: b, size: len(b), generate: g}
	})}
}

func (g *modpGroup) check(data []byte) error {
	m := g.load()
	if len(data) != m.size {
		return refuse("%d bytes for group %d", len(data), g.id)
	}
	last := len(data) - 1
	if !nonZero(data[:last]) && data[last] <= 1 || bytes.Compare(data, m.pMinus1) >= 0 {
		return refuse("value outside 2 … p-2 of group %d", g.id)
	}
	return nil
}

func (g *modpGroup) generate(r io.Reader) (KeyExchange, error) {
	x := make([]byte, g.exponent)
	if _, err := io.ReadFull(r, x); err != nil {
		return nil, err
	}
	x[0] |= 0x80 // never short, never zero
	return g.restore(x)
}

func (g *modpGroup) restore(private []byte) (KeyExchange, error) {
	if len(private) != g.exponent || private[0]&0x80 == 0 {
		return nil, errors.New("not a private exponent of this group")
	}
	m := g.load()
	x := ipsec.NewKey(private)
	public := bigmod.NewNat().Exp(m.generate, x.Bytes(), m.p).Bytes(m.p)
	return &modpExchange{g: g, x: x, public: public}, nil
}

type modpExchange struct {
	g      *modpGroup
	x      ipsec.Key
	public []byte
}

func (k *modpExchange) Group() ipsec.TransformID { return k.g.id }
func (k *modpExchange) Public() []byte           { return bytes.Clone(k.public) }
func (k *modpExchange) Private() ipsec.Key       { return k.x }

func (k *modpExchange) Shared(peer []byte) (ipsec.Key, error) {
	if err := k.g.check(peer); err != nil {
		return ipsec.Key{}, err
	}
	m := k.g.load()
	y, err := bigmod.NewNat().SetBytes(peer, m.p)
	if err != nil {
		return ipsec.Key{}, refuse("%v", err)
	}
	shared := bigmod.NewNat().Exp(y, k.x.Bytes(), m.p).Bytes(m.p)
	defer clear(shared)
	return ipsec.NewKey(shared), nil
}
