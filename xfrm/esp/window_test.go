package esp

import (
	"math/rand/v2"
	"testing"
)

// The ring behaves as a plain set does.
func TestWindowAgainstModel(t *testing.T) {
	for _, size := range []uint32{64, 128, 1024, 4096} {
		r := rand.New(rand.NewPCG(1, uint64(size)))
		w := NewWindow(size)
		seen := map[uint64]bool{}
		top := uint64(0)
		for range 50000 {
			var seq uint64
			switch r.IntN(10) {
			case 0:
				seq = top + r.Uint64N(uint64(size)*3)
			case 1:
				seq = r.Uint64N(top + 1)
			default:
				seq = top + 40 - min(r.Uint64N(uint64(size)+80), top+40)
			}
			want := seq != 0 && !seen[seq] && (seq > top || top-seq < uint64(size))
			if got := w.Check(seq); got != want {
				t.Fatalf("window %d, top %d, seq %d: %v", size, top, seq, got)
			}
			if want {
				w.Accept(seq)
				seen[seq] = true
				top = max(top, seq)
			}
			if r.IntN(500) == 0 {
				n, bits := w.Export()
				v := NewWindow(size)
				v.Import(n, bits)
				w = v
			}
		}
	}
}

func TestWindowRejectForget(t *testing.T) {
	w := NewWindow(64)
	w.Accept(5)
	w.Reject(10)
	for seq := range uint64(11) {
		if w.Check(seq) {
			t.Errorf("%d passes", seq)
		}
	}
	w.Accept(12)
	if !w.Check(11) || w.Check(12) || w.Check(10) {
		t.Error("around the floor")
	}
	w.Forget(12)
	if !w.Check(12) {
		t.Error("12 not forgotten")
	}
	w.Forget(10)
	if w.Check(10) {
		t.Error("10 lies at the floor")
	}
	w.Reject(3)
	if w.Check(9) {
		t.Error("the floor fell")
	}
	off := NewWindow(0)
	off.Accept(9)
	if !off.Check(9) || off.Top() != 9 {
		t.Error("without replay detection")
	}
}

// RFC 4303 appendix A2.2, cases A and B.
func TestInferHighHalf(t *testing.T) {
	const e = 1 << 32
	for _, c := range []struct {
		top  uint64
		low  uint32
		want uint64
		ok   bool
	}{
		{0, 1, 1, true}, {0, 0xffffffff, 0, false}, {100, 50, 50, true}, {100, 37, 37, true},
		{1000, 2000, 2000, true}, {1000, 937, 937, true}, {1000, 936, e + 936, true}, // below the window: the next subspace
		{e - 1, 0, e, true}, {e - 1, 5, e + 5, true}, {e - 1, 0xffffffc0, e - 64, true}, {e - 1, 0xffffffbf, 2*e - 65, true},
		{e + 5, 0xffffffff, e - 1, true}, {e + 5, 6, e + 6, true}, {e + 5, 3, e + 3, true}, {e + 62, 0xffffffff, e - 1, true},
		{e + 63, 0xffffffff, 2*e - 1, true}, {3*e + 7, 0xfffffff0, 3*e - 16, true},
		{1<<64 - 1, 5, 0, false}, {1<<64 - 1, 0xfffffff0, 1<<64 - 16, true},
	} {
		w := NewWindow(64)
		w.Import(c.top, nil)
		if got, ok := w.Infer(c.low); got != c.want || ok != c.ok {
			t.Errorf("top %#x, low %#x: %#x, %v; want %#x, %v", c.top, c.low, got, ok, c.want, c.ok)
		}
	}
}

func BenchmarkWindow(b *testing.B) {
	w := NewWindow(4096)
	b.ReportAllocs()
	for seq := uint64(1); b.Loop(); seq++ {
		if w.Check(seq) {
			w.Accept(seq)
		}
	}
}
