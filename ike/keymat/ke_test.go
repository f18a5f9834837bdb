package keymat

import (
	"bytes"
	"crypto/mlkem"
	"crypto/rand"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"testing"

	"tandem/internal/ipsec"
)

var allGroups = []ipsec.TransformID{
	ipsec.KEMODP1024, ipsec.KEMODP1536, ipsec.KEMODP2048, ipsec.KEMODP3072, ipsec.KEMODP4096,
	ipsec.KEECP256, ipsec.KEECP384, ipsec.KEECP521, ipsec.KEX25519,
}

// seeded is reproducible "randomness".
func seeded(n byte) io.Reader { return mathrand.NewChaCha8([32]byte{n}) }

// RFC 5903 §8.1–8.3, RFC 8031 appendix A, RFC 7748 §6.1.
func TestECVectors(t *testing.T) {
	for _, v := range []struct {
		name           string
		group          ipsec.TransformID
		i, r           string
		gi, gr, shared string
	}{
		{
			"RFC 5903 §8.1", ipsec.KEECP256,
			"C88F01F5 10D9AC3F 70A292DA A2316DE5 44E9AAB8 AFE84049 C62A9C57 862D1433",
			"C6EF9C5D 78AE012A 011164AC B397CE20 88685D8F 06BF9BE0 B283AB46 476BEE53",
			`DAD0B653 94221CF9 B051E1FE CA5787D0 98DFE637 FC90B9EF 945D0C37 72581180
			5271A046 1CDB8252 D61F1C45 6FA3E59A B1F45B33 ACCF5F58 389E0577 B8990BB3`,
			`D12DFB52 89C8D4F8 1208B702 70398C34 2296970A 0BCCB74C 736FC755 4494BF63
			56FBF3CA 366CC23E 8157854C 13C58D6A AC23F046 ADA30F83 53E74F33 039872AB`,
			"D6840F6B 42F6EDAF D13116E0 E1256520 2FEF8E9E CE7DCE03 812464D0 4B9442DE",
		},
		{
			"RFC 5903 §8.2", ipsec.KEECP384,
			`099F3C70 34D4A2C6 99884D73 A375A67F 7624EF7C 6B3C0F16 0647B674 14DCE655 E35B5380
			41E649EE 3FAEF896 783AB194`,
			`41CB0779 B4BDB85D 47846725 FBEC3C94 30FAB46C C8DC5060 855CC9BD A0AA2942 E0308312
			916B8ED2 960E4BD5 5A7448FC`,
			`667842D7 D180AC2C DE6F74F3 7551F557 55C7645C 20EF73E3 1634FE72
			B4C55EE6 DE3AC808 ACB4BDB4 C88732AE E95F41AA
			9482ED1F C0EEB9CA FC498462 5CCFC23F 65032149 E0E144AD A0241815
			35A0F38E EB9FCFF3 C2C947DA E69B4C63 4573A81C`,
			`E558DBEF 53EECDE3 D3FCCFC1 AEA08A89 A987475D 12FD950D 83CFA417
			32BC509D 0D1AC43A 0336DEF9 6FDA41D0 774A3571
			DCFBEC7A ACF31964 72169E83 8430367F 66EEBE3C 6E70C416 DD5F0C68
			759DD1FF F83FA401 42209DFF 5EAAD96D B9E6386C`,
			`11187331 C279962D 93D60424 3FD592CB 9D0A926F 422E4718 7521287E 7156C5C4 D6031355
			69B9E9D0 9CF5D4A2 70F59746`,
		},
		{
			"RFC 5903 §8.3", ipsec.KEECP521,
			`0037ADE9 319A89F4 DABDB3EF 411AACCC A5123C61 ACAB57B5 393DCE47 608172A0
			95AA85A3 0FE1C295 2C6771D9 37BA9777 F5957B26 39BAB072 462F68C2 7A57382D 4A52`,
			`0145BA99 A847AF43 793FDD0E 872E7CDF A16BE30F DC780F97 BCCC3F07 8380201E
			9C677D60 0B343757 A3BDBF2A 3163E4C2 F869CCA7 458AA4A4 EFFC311F 5CB15168 5EB9`,
			`0015417E 84DBF28C 0AD3C278 713349DC 7DF153C8 97A1891B D98BAB43 57C9ECBE
			E1E3BF42 E00B8E38 0AEAE57C 2D107564 94188594 2AF5A7F4 601723C4 195D176C ED3E
			017CAE20 B6641D2E EB695786 D8C94614 6239D099 E18E1D5A 514C739D 7CB4A10A
			D8A78801 5AC405D7 799DC75E 7B7D5B6C F2261A6A 7F150743 8BF01BEB 6CA3926F 9582`,
			`00D0B397 5AC4B799 F5BEA16D 5E13E9AF 971D5E9B 984C9F39 728B5E57 39735A21
			9B97C356 436ADC6E 95BB0352 F6BE64A6 C2912D4E F2D0433C ED2B6171 640012D9 460F
			015C6822 6383956E 3BD066E7 97B623C2 7CE0EAC2 F551A10C 2C724D98 52077B87
			220B6536 C5C408A1 D2AEBB8E 86D678AE 49CB5709 1F473229 6579AB44 FCD17F0F C56A`,
			`01144C7D 79AE6956 BC8EDB8E 7C787C45 21CB086F A64407F9 7894E5E6 B2D79B04
			D1427E73 CA4BAA24 0A347868 59810C06 B3C715A3 A8CC3151 F2BEE417 996D19F3 DDEA`,
		},
		{
			"RFC 8031 A", ipsec.KEX25519,
			"751fb4308655b476b6789b7325f9ea8cddd16a58533ff6d9e60009464a5f9d94",
			"0a54645253290d60ddadd0e030bacd9e5501efdc220755a1e978f1b839a05688",
			"48d5ddd4061257ba166fa3f9bbdb74f1a4e81c089384fa77f790709f0dfbc766",
			"0be7c1f5aad87d7e448662673298a443478b859745179eaf564c79c0ef6eee25",
			"c74950607a12327f3204d94b6825bfb068b7f8319a9e3708ed3d43ce8130c950",
		},
		{
			"RFC 7748 §6.1", ipsec.KEX25519,
			"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
			"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
			"8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
			"de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
			"4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			i, err := RestoreKeyExchange(v.group, ipsec.NewKey(unhex(t, v.i)))
			if err != nil {
				t.Fatal(err)
			}
			// The responder is drawn instead: its scalar comes out of the reader as it is.
			r, err := NewKeyExchange(v.group, bytes.NewReader(unhex(t, v.r)))
			if err != nil {
				t.Fatal(err)
			}
			wantHex(t, "g^i", i.Public(), v.gi)
			wantHex(t, "g^r", r.Public(), v.gr)
			for who, pair := range map[string][2]KeyExchange{"initiator": {i, r}, "responder": {r, i}} {
				s, err := pair[0].Shared(pair[1].Public())
				if err != nil {
					t.Fatal(who, err)
				}
				wantHex(t, who+"'s g^ir", s.Bytes(), v.shared)
			}
		})
	}
}

// piBits is pi as a fixed-point number with n fractional bits, by Machin's formula.
func piBits(n uint) *big.Int {
	guard := n + 64
	atan := func(x int64) *big.Int {
		term := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(1), guard), big.NewInt(x))
		sum, square := new(big.Int).Set(term), big.NewInt(x*x)
		for k, sign := int64(3), -1; term.Sign() != 0; k, sign = k+2, -sign {
			term.Div(term, square)
			part := new(big.Int).Div(term, big.NewInt(k))
			if sign < 0 {
				part.Neg(part)
			}
			sum.Add(sum, part)
		}
		return sum
	}
	pi := new(big.Int).Mul(atan(5), big.NewInt(4))
	pi.Sub(pi, atan(239)).Mul(pi, big.NewInt(4))
	return pi.Rsh(pi, 64)
}

// The primes are what RFC 2409 §6.2 and RFC 3526 §2–5 define, and safe.
func TestMODPPrimes(t *testing.T) {
	for id, k := range map[ipsec.TransformID]int64{
		ipsec.KEMODP1024: 129093, ipsec.KEMODP1536: 741804, ipsec.KEMODP2048: 124476,
		ipsec.KEMODP3072: 1690314, ipsec.KEMODP4096: 240904,
	} {
		n := uint(modpGroups[id].load().size * 8)
		one := big.NewInt(1)
		want := new(big.Int).Lsh(one, n)
		want.Sub(want, new(big.Int).Lsh(one, n-64)).Sub(want, one)
		tail := piBits(n - 130)
		tail.Add(tail, big.NewInt(k)).Lsh(tail, 64)
		want.Add(want, tail)
		if got := prime(id); got.Cmp(want) != 0 {
			t.Errorf("group %d: prime is\n%x, want\n%x", id, got, want)
		}
		if !want.ProbablyPrime(0) || !new(big.Int).Rsh(want, 1).ProbablyPrime(0) {
			t.Errorf("group %d: not a safe prime", id)
		}
	}
}

func prime(id ipsec.TransformID) *big.Int {
	m1 := new(big.Int).SetBytes(modpGroups[id].load().pMinus1)
	return m1.Add(m1, big.NewInt(1))
}

// Modular exponentiation agrees with math/big, leading zeros included.
func TestMODPAgainstBig(t *testing.T) {
	for id, g := range modpGroups {
		p, size := prime(id), g.load().size
		k, err := NewKeyExchange(id, seeded(byte(id)))
		if err != nil {
			t.Fatal(err)
		}
		x := new(big.Int).SetBytes(k.Private().Bytes())
		if x.BitLen() != 8*g.exponent {
			t.Errorf("group %d: exponent of %d bits", id, x.BitLen())
		}
		padded := func(v *big.Int) []byte { return v.FillBytes(make([]byte, size)) }
		if want := padded(new(big.Int).Exp(big.NewInt(2), x, p)); !bytes.Equal(k.Public(), want) {
			t.Errorf("group %d: public value\n%x, want\n%x", id, k.Public(), want)
		}
		for _, peer := range []*big.Int{
			big.NewInt(2), big.NewInt(3), new(big.Int).Sub(p, big.NewInt(2)),
			new(big.Int).Rsh(p, 1), new(big.Int).Rsh(p, 100),
		} {
			s, err := k.Shared(padded(peer))
			if err != nil {
				t.Fatalf("group %d, peer %x: %v", id, peer, err)
			}
			if want := padded(new(big.Int).Exp(peer, x, p)); !bytes.Equal(s.Bytes(), want) {
				t.Errorf("group %d, peer %x:\n got %x\nwant %x", id, peer, s.Bytes(), want)
			}
		}
	}
}

// A peer whose power has leading zeros: the shared secret keeps the modulus's length.
func TestMODPSharedKeepsLeadingZeros(t *testing.T) {
	id := ipsec.KEMODP1024
	p := prime(id)
	k, err := NewKeyExchange(id, seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	// Take the shared secret we want, a small one, and search the peer that gives it:
	// peer = s^(x^-1 mod q), q = (p-1)/2, which exists when x is odd against q.
	q := new(big.Int).Rsh(p, 1)
	inverse := new(big.Int).ModInverse(new(big.Int).SetBytes(k.Private().Bytes()), q)
	want := big.NewInt(4) // a square, so in the subgroup of order q
	peer := new(big.Int).Exp(want, inverse, p).FillBytes(make([]byte, 128))
	s, err := k.Shared(peer)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Bytes(), want.FillBytes(make([]byte, 128))) {
		t.Errorf("shared secret %x", s.Bytes())
	}
}

func TestAgreementAndRestore(t *testing.T) {
	for _, id := range allGroups {
		a, err := NewKeyExchange(id, seeded(10))
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewKeyExchange(id, seeded(11))
		if err != nil {
			t.Fatal(err)
		}
		again, err := NewKeyExchange(id, seeded(10))
		if err != nil {
			t.Fatal(err)
		}
		if a.Group() != id || !bytes.Equal(a.Public(), again.Public()) || bytes.Equal(a.Public(), b.Public()) {
			t.Errorf("group %d: the key pair does not follow from the injected bytes alone", id)
		}
		restored, err := RestoreKeyExchange(id, a.Private())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(restored.Public(), a.Public()) {
			t.Errorf("group %d: restored public value differs", id)
		}
		s1, err1 := restored.Shared(b.Public())
		s2, err2 := b.Shared(a.Public())
		if err1 != nil || err2 != nil || s1.Len() == 0 || !bytes.Equal(s1.Bytes(), s2.Bytes()) {
			t.Errorf("group %d: no agreement (%v, %v)", id, err1, err2)
		}
		if err := CheckPublic(id, a.Public()); err != nil {
			t.Errorf("group %d: CheckPublic: %v", id, err)
		}
		pub := a.Public()
		pub[0] ^= 0xff
		if bytes.Equal(pub, a.Public()) {
			t.Errorf("group %d: Public gives away its own memory", id)
		}
	}
}

// RFC 6989 §2, RFC 5903 §9, RFC 8031 §3: what must be refused is refused, the
// cheap part of it already by CheckPublic.
func TestRefusedPublicValues(t *testing.T) {
	type bad struct {
		name  string
		data  []byte
		cheap bool
	}
	for _, id := range allGroups {
		k, err := NewKeyExchange(id, seeded(3))
		if err != nil {
			t.Fatal(err)
		}
		good, err := NewKeyExchange(id, seeded(4))
		if err != nil {
			t.Fatal(err)
		}
		size := len(k.Public())
		cases := []bad{
			{"empty", nil, true},
			{"one byte short", good.Public()[1:], true},
			{"one byte long", append([]byte{0}, good.Public()...), true},
			{"zero", make([]byte, size), true},
		}
		num := func(v *big.Int) []byte { return v.FillBytes(make([]byte, size)) }
		switch {
		case modpGroups[id] != nil:
			p := prime(id)
			cases = append(cases,
				bad{"one", num(big.NewInt(1)), true},
				bad{"p-1", num(new(big.Int).Sub(p, big.NewInt(1))), true},
				bad{"p", num(p), true},
				bad{"p+1", num(new(big.Int).Add(p, big.NewInt(1))), true},
				bad{"all ones", bytes.Repeat([]byte{0xff}, size), true})
		case ecpGroups[id] != nil:
			off := good.Public()
			off[size-1] ^= 1
			prefixed := append([]byte{4}, good.Public()...)
			compressed := append([]byte{2}, good.Public()[:size/2]...)
			cases = append(cases,
				bad{"off the curve", off, false},
				bad{"with point format byte", prefixed, true},
				bad{"compressed", compressed, true},
				bad{"x alone", good.Public()[:size/2], true},
				bad{"coordinates beyond the field", bytes.Repeat([]byte{0xff}, size), false})
		default: // the points of small order, RFC 7748 §6.1 and §7
			for _, s := range []string{
				"0100000000000000000000000000000000000000000000000000000000000000",
				"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
				"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
				"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
				"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
				"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
			} {
				cases = append(cases, bad{"small order " + s, unhex(t, s), false})
			}
		}
		for _, c := range cases {
			if s, err := k.Shared(c.data); !errors.Is(err, ErrKEData) || s.Len() != 0 {
				t.Errorf("group %d, %s: Shared says %v", id, c.name, err)
			}
			if err := CheckPublic(id, c.data); c.cheap != errors.Is(err, ErrKEData) {
				t.Errorf("group %d, %s: CheckPublic says %v", id, c.name, err)
			}
		}
	}
}

// A scalar out of range is drawn again; broken randomness ends in an error.
func TestScalarRetry(t *testing.T) {
	order := unhex(t, "FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551") // of P-256
	scalar := unhex(t, "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433")
	r := bytes.NewReader(concat(make([]byte, 32), order, bytes.Repeat([]byte{0xff}, 32), scalar))
	k, err := NewKeyExchange(ipsec.KEECP256, r)
	if err != nil || !bytes.Equal(k.Private().Bytes(), scalar) || r.Len() != 0 {
		t.Errorf("the fourth draw is the first good one: %v", err)
	}
	zeros := readerFunc(func(b []byte) (int, error) { clear(b); return len(b), nil })
	if _, err := NewKeyExchange(ipsec.KEECP384, zeros); err == nil {
		t.Error("a reader of zeros gave a key pair")
	}
	for _, id := range allGroups {
		if _, err := NewKeyExchange(id, bytes.NewReader(make([]byte, 5))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("group %d: short randomness: %v", id, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestUnsupportedGroups(t *testing.T) {
	for _, id := range []ipsec.TransformID{0, 1, 17, 18, 22, 23, 24, 25, 26, 32, 999} {
		if _, err := NewKeyExchange(id, seeded(1)); !errors.Is(err, ErrUnsupportedGroup) {
			t.Errorf("NewKeyExchange(%d): %v", id, err)
		}
		if _, err := RestoreKeyExchange(id, ipsec.Key{}); !errors.Is(err, ErrUnsupportedGroup) {
			t.Errorf("RestoreKeyExchange(%d): %v", id, err)
		}
		if err := CheckPublic(id, make([]byte, 32)); !errors.Is(err, ErrUnsupportedGroup) {
			t.Errorf("CheckPublic(%d): %v", id, err)
		}
	}
	for _, id := range allGroups {
		for _, n := range []int{0, 1, 31, 33, 100} {
			if _, err := RestoreKeyExchange(id, ipsec.NewKey(make([]byte, n))); err == nil {
				t.Errorf("group %d restored from %d zeros", id, n)
			}
		}
	}
}

// The two sides of ML-KEM agree, in the lengths of FIPS 203 §8; the secret is that of the
// standard library. What has a wrong length is refused before any use; a ciphertext with one
// flipped bit gives another secret and no error.
func TestMLKEM(t *testing.T) {
	for id, size := range map[ipsec.TransformID][2]int{ipsec.KEMLKEM768: {1184, 1088}, ipsec.KEMLKEM1024: {1568, 1568}} {
		i, err := NewKeyExchange(id, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckPublic(id, i.Public()); err != nil || len(i.Public()) != size[0] || i.Group() != id {
			t.Fatalf("group %d: %d bytes, %v", i.Group(), len(i.Public()), err)
		}
		public, ours, err := Answer(id, rand.Reader, i.Public())
		if err != nil || len(public) != size[1] {
			t.Fatal(len(public), err)
		}
		again, err := RestoreKeyExchange(id, i.Private())
		if err != nil || !bytes.Equal(again.Public(), i.Public()) {
			t.Fatal("another key pair from the same seed", err)
		}
		for _, x := range []KeyExchange{i, again} {
			theirs, err := x.Shared(public)
			if err != nil || theirs.Len() != 32 || !bytes.Equal(theirs.Bytes(), ours.Bytes()) {
				t.Fatalf("the sides differ: %v", err)
			}
		}
		var byLibrary []byte
		if id == ipsec.KEMLKEM768 {
			k, _ := mlkem.NewDecapsulationKey768(i.Private().Bytes())
			byLibrary, err = k.Decapsulate(public)
		} else {
			k, _ := mlkem.NewDecapsulationKey1024(i.Private().Bytes())
			byLibrary, err = k.Decapsulate(public)
		}
		if err != nil || !bytes.Equal(byLibrary, ours.Bytes()) {
			t.Fatal("not the shared key of FIPS 203", err)
		}
		flipped := bytes.Clone(public)
		flipped[100] ^= 1
		if other, err := i.Shared(flipped); err != nil || bytes.Equal(other.Bytes(), ours.Bytes()) {
			t.Errorf("a flipped bit: %v", err)
		}
		for _, n := range []int{0, 1, -1, 1000} {
			if _, err := i.Shared(resized(public, n)); !errors.Is(err, ErrKEData) {
				t.Errorf("a ciphertext of %d bytes: %v", len(public)+n, err)
			}
			if n == 0 {
				continue
			}
			if err := CheckPublic(id, resized(i.Public(), n)); !errors.Is(err, ErrKEData) {
				t.Errorf("a key of %d bytes: %v", size[0]+n, err)
			}
			if _, _, err := Answer(id, rand.Reader, resized(i.Public(), n)); !errors.Is(err, ErrKEData) {
				t.Errorf("answered a key of %d bytes: %v", size[0]+n, err)
			}
		}
		// A coefficient that is not reduced (FIPS 203 §7.2).
		bad := bytes.Clone(i.Public())
		bad[0], bad[1] = 0xff, 0xff
		if _, _, err := Answer(id, rand.Reader, bad); !errors.Is(err, ErrKEData) {
			t.Errorf("a key out of range: %v", err)
		}
		if _, _, err := Answer(id, bytes.NewReader(make([]byte, 31)), i.Public()); err == nil {
			t.Error("answered without randomness")
		}
	}
}

// resized is b with n bytes more, or fewer; 0: without any.
func resized(b []byte, n int) []byte {
	if n == 0 {
		return nil
	}
	return append(bytes.Clone(b), make([]byte, max(n, 0))...)[:len(b)+n]
}
