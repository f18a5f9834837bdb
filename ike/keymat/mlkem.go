package keymat

import (
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"errors"
	"io"

	"tandem/internal/ipsec"
)

// mlkemGroup is ML-KEM (FIPS 203) as a key exchange method: the initiator's public value is
// an encapsulation key, the responder's a ciphertext, and the shared secret is the shared
// key of 32 bytes, as it is. A ciphertext that was tampered with gives another shared key
// (implicit rejection), so that authentication fails and nothing else.
type mlkemGroup struct {
	id         ipsec.TransformID
	key        int // bytes of an encapsulation key
	ciphertext int // bytes
	parameters
}

// parameters is what the two parameter sets do alike.
type parameters struct {
	open  func(seed []byte) (public []byte, open func(ciphertext []byte) ([]byte, error), err error)
	close func(key, random []byte) (shared, ciphertext []byte, err error)
}

var mlkemGroups = map[ipsec.TransformID]*mlkemGroup{
	ipsec.KEMLKEM768: {ipsec.KEMLKEM768, mlkem.EncapsulationKeySize768, mlkem.CiphertextSize768, parameters{
		func(seed []byte) ([]byte, func([]byte) ([]byte, error), error) {
			k, err := mlkem.NewDecapsulationKey768(seed)
			if err != nil {
				return nil, nil, err
			}
			return k.EncapsulationKey().Bytes(), k.Decapsulate, nil
		},
		func(key, random []byte) ([]byte, []byte, error) {
			k, err := mlkem.NewEncapsulationKey768(key)
			if err != nil {
				return nil, nil, refuse("not an encapsulation key of group %d", ipsec.KEMLKEM768)
			}
			return mlkemtest.Encapsulate768(k, random)
		}}},
	ipsec.KEMLKEM1024: {ipsec.KEMLKEM1024, mlkem.EncapsulationKeySize1024, mlkem.CiphertextSize1024, parameters{
		func(seed []byte) ([]byte, func([]byte) ([]byte, error), error) {
			k, err := mlkem.NewDecapsulationKey1024(seed)
			if err != nil {
				return nil, nil, err
			}
			return k.EncapsulationKey().Bytes(), k.Decapsulate, nil
		},
		func(key, random []byte) ([]byte, []byte, error) {
			k, err := mlkem.NewEncapsulationKey1024(key)
			if err != nil {
				return nil, nil, refuse("not an encapsulation key of group %d", ipsec.KEMLKEM1024)
			}
			return mlkemtest.Encapsulate1024(k, random)
		}}},
}

func (g *mlkemGroup) check(data []byte) error {
	if len(data) != g.key {
		return refuse("%d bytes for group %d", len(data), g.id)
	}
	return nil
}

func (g *mlkemGroup) generate(r io.Reader) (KeyExchange, error) {
	seed := make([]byte, mlkem.SeedSize)
	defer clear(seed)
	if _, err := io.ReadFull(r, seed); err != nil {
		return nil, err
	}
	return g.restore(seed)
}

func (g *mlkemGroup) restore(private []byte) (KeyExchange, error) {
	public, open, err := g.open(private)
	if err != nil {
		return nil, errors.New("not a seed of this group")
	}
	return &mlkemExchange{group: g, seed: ipsec.NewKey(private), public: public, open: open}, nil
}

// answer takes its 32 random bytes from r, as everything does, and not from the system: that
// is why it calls the function which the standard library keeps for known answers.
func (g *mlkemGroup) answer(r io.Reader, peer []byte) (public []byte, shared ipsec.Key, err error) {
	if err := g.check(peer); err != nil {
		return nil, ipsec.Key{}, err
	}
	var random [32]byte
	defer clear(random[:])
	if _, err := io.ReadFull(r, random[:]); err != nil {
		return nil, ipsec.Key{}, err
	}
	secret, ciphertext, err := g.close(peer, random[:])
	if err != nil {
		return nil, ipsec.Key{}, err
	}
	defer clear(secret)
	return ciphertext, ipsec.NewKey(secret), nil
}

type mlkemExchange struct {
	group  *mlkemGroup
	seed   ipsec.Key
	public []byte
	open   func(ciphertext []byte) ([]byte, error)
}

func (x *mlkemExchange) Group() ipsec.TransformID { return x.group.id }
func (x *mlkemExchange) Public() []byte           { return x.public }
func (x *mlkemExchange) Private() ipsec.Key       { return x.seed }

func (x *mlkemExchange) Shared(peer []byte) (ipsec.Key, error) {
	if len(peer) != x.group.ciphertext {
		return ipsec.Key{}, refuse("%d bytes for the answer of group %d", len(peer), x.group.id)
	}
	secret, err := x.open(peer)
	if err != nil {
		return ipsec.Key{}, refuse("not a ciphertext of group %d", x.group.id)
	}
	defer clear(secret)
	return ipsec.NewKey(secret), nil
}
