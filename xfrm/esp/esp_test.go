package esp

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"testing"

	"tandem/internal/ipsec"
)

// every suite that the package supports.
var every = []ipsec.Suite{
	{Encr: ipsec.ENCRAESGCM16, KeyBits: 128}, {Encr: ipsec.ENCRAESGCM16, KeyBits: 192, ESN: true}, {Encr: ipsec.ENCRAESGCM16, KeyBits: 256, ESN: true},
	{Encr: ipsec.ENCRAESGCM12, KeyBits: 128}, {Encr: ipsec.ENCRChaCha20Poly1305, ESN: true}, {Encr: ipsec.ENCRChaCha20Poly1305},
	{Encr: ipsec.ENCRAESCBC, KeyBits: 128, Integ: ipsec.INTEGHMACSHA1_96}, {Encr: ipsec.ENCRAESCBC, KeyBits: 256, Integ: ipsec.INTEGHMACSHA256_128, ESN: true},
	{Encr: ipsec.ENCRAESCBC, KeyBits: 192, Integ: ipsec.INTEGHMACSHA384_192, ESN: true}, {Encr: ipsec.ENCRAESCBC, KeyBits: 256, Integ: ipsec.INTEGHMACSHA512_256},
	{Encr: ipsec.ENCR3DES, Integ: ipsec.INTEGHMACSHA1_96}, {Encr: ipsec.ENCRNULL, Integ: ipsec.INTEGHMACSHA256_128, ESN: true},
}

func child(s ipsec.Suite) *ipsec.ChildSA {
	k := func(b byte, n int) ipsec.Key { return ipsec.NewKey(bytes.Repeat([]byte{b}, n)) }
	c := &ipsec.ChildSA{SPIIn: 0x1000, SPIOut: 0x1000, Suite: s, ReplayWindow: 2048}
	c.EncrIn, c.SaltIn, c.IntegIn = k(1, s.EncrKeyLen()), k(2, s.SaltLen()), k(3, s.IntegKeyLen())
	c.EncrOut, c.SaltOut, c.IntegOut = c.EncrIn, c.SaltIn, c.IntegIn
	if s.Encr == ipsec.ENCR3DES {
		b := make([]byte, 24)
		for i := range b {
			b[i] = byte(i * 11)
		}
		c.EncrIn, c.EncrOut = ipsec.NewKey(b), ipsec.NewKey(b)
	}
	return c
}

func ends(t testing.TB, s ipsec.Suite) (*Outbound, *Inbound) {
	t.Helper()
	c := child(s)
	o, err := NewOutbound(c, ipsec.NewIVCounter(0xabcdef), NewIVSource(rand.Reader))
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewInbound(c)
	if err != nil {
		t.Fatal(err)
	}
	return o, i
}

func name(s ipsec.Suite) string { return fmt.Sprintf("%v esn=%v", s, s.ESN) }

func seal(t testing.TB, o *Outbound, seq uint64, payload []byte) []byte {
	t.Helper()
	buf := make([]byte, HeaderRoom+len(payload)+TrailerRoom)
	copy(buf[HeaderRoom:], payload)
	pkt, err := o.Seal(buf, HeaderRoom, len(payload), seq, 4)
	if err != nil {
		t.Fatal(err)
	}
	return pkt
}

func TestRoundTrip(t *testing.T) {
	for _, s := range every {
		t.Run(name(s), func(t *testing.T) {
			o, in := ends(t, s)
			w := NewWindow(64)
			for n := range 70 {
				payload := bytes.Repeat([]byte{byte(n)}, n)
				pkt := seal(t, o, uint64(n+1), payload)
				if l, _ := LayoutOf(s); len(pkt) != l.SealedLen(n) || l.MaxPayload(len(pkt)) < n || l.SealedLen(l.MaxPayload(len(pkt))) != len(pkt) {
					t.Fatalf("%d bytes for a payload of %d; layout says %d, %d", len(pkt), n, l.SealedLen(n), l.MaxPayload(len(pkt)))
				}
				got, nh, seq, err := in.Open(&w, pkt)
				if err != nil || !bytes.Equal(got, payload) || nh != 4 || seq != uint64(n+1) {
					t.Fatalf("payload of %d: %x, %d, %d, %v", n, got, nh, seq, err)
				}
			}
		})
	}
}

// One flipped bit anywhere, one byte more or less, another high half: all the same error.
func TestForgeries(t *testing.T) {
	for _, s := range every {
		t.Run(name(s), func(t *testing.T) {
			o, in := ends(t, s)
			pkt := seal(t, o, 7, bytes.Repeat([]byte{9}, 29))
			for i := range len(pkt) * 8 {
				bad := bytes.Clone(pkt)
				bad[i/8] ^= 1 << (i % 8)
				w := NewWindow(64)
				if _, _, _, err := in.Open(&w, bad); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrReplayed) {
					t.Fatalf("bit %d: %v", i, err)
				} else if errors.Is(err, ErrReplayed) && i/8 != 4+0 && i/8/4 != 1 {
					t.Fatalf("bit %d outside of the sequence number: %v", i, err)
				}
				if w.Top() != 0 {
					t.Fatalf("bit %d moved the window", i)
				}
			}
			for n := range len(pkt) {
				w := NewWindow(64)
				if _, _, _, err := in.Open(&w, bytes.Clone(pkt[:n])); !errors.Is(err, ErrInvalid) {
					t.Fatalf("%d of %d bytes: %v", n, len(pkt), err)
				}
			}
			w := NewWindow(64)
			if _, _, _, err := in.Open(&w, append(bytes.Clone(pkt), 0)); !errors.Is(err, ErrInvalid) {
				t.Fatalf("a byte more: %v", err)
			}
			if s.ESN {
				w.Import(1<<32+1, nil)
				if _, _, _, err := in.Open(&w, bytes.Clone(pkt)); !errors.Is(err, ErrInvalid) {
					t.Fatalf("another high half: %v", err)
				}
			}
		})
	}
}

// SealTo makes what Seal would, and leaves what lies behind the payload as it was.
func TestSealTo(t *testing.T) {
	for _, s := range every {
		o, in := ends(t, s)
		for n := range 70 {
			buf := make([]byte, 8+n+PadRoom)
			for i := range buf {
				buf[i] = byte(7*i + n)
			}
			was, dst := bytes.Clone(buf), make([]byte, o.t.SealedLen(n))
			k, err := o.SealTo(dst, buf, 8, n, uint64(n+1), 4)
			if err != nil || k != len(dst) || !bytes.Equal(buf, was) {
				t.Fatalf("%s, %d bytes: %d, %v; buffer changed: %v", name(s), n, k, err, !bytes.Equal(buf, was))
			}
			w := NewWindow(64)
			if p, next, seq, err := in.Open(&w, dst); err != nil || next != 4 || seq != uint64(n+1) || !bytes.Equal(p, was[8:8+n]) {
				t.Fatalf("%s, %d bytes: %x, %d, %d, %v", name(s), n, p, next, seq, err)
			}
			if _, err := o.SealTo(dst[:len(dst)-1], buf, 8, n, 1, 4); err == nil {
				t.Fatal("a short buffer was accepted")
			}
			if _, err := o.SealTo(dst, buf[:len(buf)-1], 8, n, 1, 4); err == nil {
				t.Fatal("a payload without room behind it was accepted")
			}
		}
	}
}

// Authentic packets with wrong padding are as invalid as forged ones, and leave
// the window alone.
func TestPadding(t *testing.T) {
	for _, s := range every {
		o, in := ends(t, s)
		for what, tail := range map[string][]byte{
			"padding not 1, 2, 3": {1, 2, 4, 3, 4}, "longer than the payload": {255, 4}, "first byte wrong": {0, 1, 4},
		} {
			body := espHeaderLen + o.t.IVLen
			n := o.t.Align * 2
			pkt := make([]byte, body+n+64)
			pkt[2], pkt[7] = 0x10, 1 // SPI 0x1000, sequence number 1
			copy(pkt[body+n-len(tail):], tail)
			pkt = pkt[:o.t.seal(pkt, pkt[body:body+n], 1)]
			w := NewWindow(64)
			if _, _, _, err := in.Open(&w, pkt); !errors.Is(err, ErrInvalid) || w.Top() != 0 {
				t.Errorf("%s, %s: %v", name(s), what, err)
			}
		}
	}
}

func TestRefusedSuites(t *testing.T) {
	for _, s := range []ipsec.Suite{
		{Encr: ipsec.ENCRAESCBC, KeyBits: 128}, {Encr: ipsec.ENCRNULL}, {Encr: ipsec.ENCRAESCTR, KeyBits: 128},
		{Encr: ipsec.ENCRAESGCM8, KeyBits: 128}, {Encr: ipsec.ENCRAESGCM16, KeyBits: 128, Integ: ipsec.INTEGHMACSHA1_96},
	} {
		if _, err := NewInbound(child(s)); err == nil {
			t.Errorf("%v accepted", s)
		}
	}
	c := child(every[0])
	if _, err := NewOutbound(c, nil, nil); err == nil {
		t.Error("AEAD without IV counter accepted")
	}
	c.EncrOut = ipsec.NewKey(make([]byte, 15))
	if _, err := NewOutbound(c, ipsec.NewIVCounter(0), nil); err == nil {
		t.Error("short key accepted")
	}
}

func TestIVs(t *testing.T) {
	o, _ := ends(t, every[0])
	for n := range 3 {
		pkt := seal(t, o, uint64(n)+1, nil)
		if want := []byte{0xab, 0xcd, 0xef, 0, 0, 0, 0, byte(n)}; !bytes.Equal(pkt[8:16], want) {
			t.Fatalf("IV %x, want sender ID and counter %x", pkt[8:16], want)
		}
	}
	o, _ = ends(t, every[6])
	seen := map[string]bool{}
	for n := range 1000 {
		iv := string(seal(t, o, uint64(n)+1, nil)[8:24])
		if seen[iv] {
			t.Fatal("CBC IV repeated")
		}
		seen[iv] = true
	}
}

func TestSequenceEnds(t *testing.T) {
	o, _ := ends(t, every[0])
	buf := make([]byte, 200)
	for _, seq := range []uint64{0, 1 << 32, math.MaxUint64} {
		if _, err := o.Seal(buf, 64, 20, seq, 4); !errors.Is(err, ErrSequence) {
			t.Errorf("%d: %v", seq, err)
		}
	}
	if _, err := o.Seal(buf, 64, 20, math.MaxUint32, 4); err != nil {
		t.Error(err)
	}
	if _, err := o.Seal(buf, 10, 20, 1, 4); err == nil {
		t.Error("no room for the header")
	}
	if _, err := o.Seal(buf, 64, 120, 1, 4); err == nil {
		t.Error("no room for the trailer")
	}
}

func TestNoAllocation(t *testing.T) {
	for _, s := range every {
		o, in := ends(t, s)
		w := NewWindow(4096)
		buf := make([]byte, 1600)
		seq := uint64(0)
		if n := testing.AllocsPerRun(200, func() {
			seq++
			pkt, err := o.Seal(buf, 64, 1400, seq, 4)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := in.Open(&w, pkt); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations per packet", name(s), n)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for i, s := range every {
		o, _ := ends(f, s)
		f.Add(uint8(i), uint64(0), seal(f, o, 1, []byte("seed")))
		f.Add(uint8(i), uint64(1)<<33, seal(f, o, 1<<32-1, nil))
	}
	type end struct {
		in *Inbound
	}
	var es []end
	for _, s := range every {
		_, in := ends(f, s)
		es = append(es, end{in})
	}
	f.Fuzz(func(t *testing.T, which uint8, top uint64, pkt []byte) {
		w := NewWindow(128)
		w.Import(top, nil)
		payload, _, seq, err := es[int(which)%len(es)].in.Open(&w, bytes.Clone(pkt))
		if err != nil && w.Top() != top {
			t.Fatal("a rejected packet moved the window")
		}
		if err == nil && (len(payload) > len(pkt) || w.Check(seq)) {
			t.Fatal("accepted but not marked")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, s := range every {
		for _, n := range []int{64, 1400} {
			b.Run(fmt.Sprintf("%s/%d", name(s), n), func(b *testing.B) {
				o, _ := ends(b, s)
				buf := make([]byte, 1600)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for seq := uint64(1); b.Loop(); seq++ {
					if _, err := o.Seal(buf, 64, n, seq, 4); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, s := range every {
		for _, n := range []int{64, 1400} {
			b.Run(fmt.Sprintf("%s/%d", name(s), n), func(b *testing.B) {
				o, in := ends(b, s)
				pkt := seal(b, o, 1, make([]byte, n))
				work := make([]byte, len(pkt))
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					w := NewWindow(0)
					copy(work, pkt)
					if _, _, _, err := in.Open(&w, work); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
