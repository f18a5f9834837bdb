package esp

import (
	"slices"
	"testing"
	"time"
)

// arrive opens and offers a packet as a data plane does. opened: the window takes
// it; pass: it may be delivered.
func arrive(r *Receiver, seq uint64, now time.Time) (opened, pass bool, question uint64, ask bool) {
	if !r.Window().Check(seq) {
		return false, false, 0, false
	}
	r.Window().Accept(seq)
	pass, question, ask = r.Offer(now, seq)
	return true, pass, question, ask
}

func wantFirst(t *testing.T, r *Receiver, first uint64) {
	t.Helper()
	for _, seq := range []uint64{1, first / 2, first - 1} {
		if seq != 0 && seq < first && r.Window().Check(seq) {
			t.Errorf("%d is accepted, below %d", seq, first)
		}
	}
	if !r.Window().Check(first) {
		t.Errorf("%d is a replay", first)
	}
}

func TestReceiverFence(t *testing.T) {
	r := NewReceiver(1, 5, 64, MaxSequence(false))
	if r.Activate(1) {
		t.Error("the activation it was made in is fresh")
	}
	if opened, pass, _, _ := arrive(&r, 5, numbersAt); !opened || !pass {
		t.Fatal("the fence's own number does not pass")
	}
	opened, pass, question, ask := arrive(&r, 8, numbersAt)
	if !opened || pass || !ask || question != 8 {
		t.Fatalf("opened %v, pass %v, question %d %v", opened, pass, question, ask)
	}
	if _, pass, _, ask := arrive(&r, 9, numbersAt); pass || ask {
		t.Fatalf("pass %v, asks again %v", pass, ask)
	}
	r.Grant(8)
	if pass, _, _ := r.Retry(numbersAt, 8); !pass {
		t.Error("8 does not pass after its grant")
	}
	if pass, question, ask := r.Retry(numbersAt, 9); pass || !ask || question != 9 {
		t.Errorf("9: pass %v, question %d %v", pass, question, ask)
	}
	if opened, _, _, _ := arrive(&r, 8, numbersAt); opened {
		t.Error("8 is accepted twice")
	}
	if r.Bound() != 8 || r.Widened() != 1 || r.Generation() != 1 {
		t.Errorf("bound %d, widened %d, generation %d", r.Bound(), r.Widened(), r.Generation())
	}
}

func TestReceiverActivate(t *testing.T) {
	exact := func(r *Receiver) { r.Import(50, []uint64{1<<0 | 1<<2}, 2) } // 50 and 48
	for _, c := range []struct {
		name  string
		fence uint64
		act   func(*Receiver)
		first uint64 // lowest that is accepted after the activation
		top   uint64
		bound uint64
	}{
		{"known from elsewhere", 70, func(*Receiver) {}, 71, 70, 70},
		{"raised while inactive", 70, func(r *Receiver) { r.Record(90) }, 91, 90, 90},
		{"lowered while inactive", 70, func(r *Receiver) { r.Record(40) }, 41, 40, 40},
		{"exact window", 70, exact, 0, 50, 70},
		{"exact window and the same fence", 70, func(r *Receiver) { exact(r); r.Record(70) }, 0, 50, 70},
		{"exact window and a withdrawal", 70, func(r *Receiver) { exact(r); r.Record(60) }, 0, 50, 60},
		{"exact window, then somebody went on", 70, func(r *Receiver) { exact(r); r.Record(71) }, 72, 71, 71},
		{"recorded, then the exact window", 70, func(r *Receiver) { r.Record(90); exact(r) }, 0, 50, 90},
		{"nobody is asked", Unbounded, func(*Receiver) {}, 1, 0, Unbounded},
		{"nobody is asked, exact window", Unbounded, exact, 0, 50, Unbounded},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReceiver(1, c.fence, 64, MaxSequence(false))
			c.act(&r)
			if !r.Activate(2) {
				t.Error("a new activation is not fresh")
			}
			if r.Activate(2) {
				t.Error("the same activation is fresh twice")
			}
			if r.Window().Top() != c.top || r.Bound() != c.bound || r.Generation() != 2 {
				t.Errorf("top %d, bound %d, generation %d", r.Window().Top(), r.Bound(), r.Generation())
			}
			if c.first != 0 {
				wantFirst(t, &r, c.first)
				return
			}
			for seq, want := range map[uint64]bool{47: true, 48: false, 49: true, 50: false, 51: true} {
				if r.Window().Check(seq) != want {
					t.Errorf("%d accepted: %v", seq, !want)
				}
			}
		})
	}
}

// An imported window holds for one activation; the next rejects up to the fence.
func TestReceiverImportHoldsOnce(t *testing.T) {
	r := NewReceiver(1, 70, 64, MaxSequence(false))
	r.Import(50, []uint64{1}, 2)
	r.Activate(2)
	if opened, pass, _, _ := arrive(&r, 60, numbersAt); !opened || !pass {
		t.Fatal("60 is not delivered")
	}
	r.Activate(3)
	wantFirst(t, &r, 71)
}

// Nor does an SA without a packet in the activation that a window was imported for use
// it in a later one.
func TestReceiverImportHoldsForItsActivation(t *testing.T) {
	r := NewReceiver(1, 70, 64, MaxSequence(false))
	r.Import(50, []uint64{1}, 2)
	r.Record(70)
	r.Activate(3)
	wantFirst(t, &r, 71)
}

// A handover loses nothing that waited for the fence: the next owner accepts it,
// and refuses what the first one has delivered.
func TestReceiverHandover(t *testing.T) {
	from := NewReceiver(1, 20, 128, MaxSequence(false))
	var waiting []uint64
	for seq := uint64(1); seq <= 25; seq++ {
		if seq == 7 {
			continue // lost on its way
		}
		opened, pass, _, _ := arrive(&from, seq, numbersAt)
		if !opened {
			t.Fatalf("%d is refused", seq)
		}
		if !pass {
			waiting = append(waiting, seq)
		}
	}
	if !slices.Equal(waiting, []uint64{21, 22, 23, 24, 25}) {
		t.Fatalf("waiting: %v", waiting)
	}
	for _, seq := range waiting {
		from.Forget(seq)
	}
	to := NewReceiver(4, 20, 128, MaxSequence(false))
	top, accepted := from.Export()
	to.Import(top, accepted, 5)
	to.Activate(5)
	for seq := uint64(1); seq <= 26; seq++ {
		if want := seq == 7 || seq > 20; to.Window().Check(seq) != want {
			t.Errorf("%d accepted: %v", seq, !want)
		}
	}
}

// Without replay detection the fence holds nothing back, asks nothing, and an
// activation rejects nothing.
func TestReceiverWithoutReplayDetection(t *testing.T) {
	r := NewReceiver(1, 0, 0, MaxSequence(false))
	r.Record(70)
	r.Activate(2)
	for _, seq := range []uint64{3, 3, 71, 100000} {
		if opened, pass, _, ask := arrive(&r, seq, numbersAt); !opened || !pass || ask {
			t.Errorf("%d: opened %v, pass %v, asks %v", seq, opened, pass, ask)
		}
		if pass, _, ask := r.Retry(numbersAt, seq); !pass || ask {
			t.Errorf("%d again: pass %v, asks %v", seq, pass, ask)
		}
	}
	if r.Window().Top() != 100000 {
		t.Errorf("top %d", r.Window().Top())
	}
}

// An idle SA's fence falls to what was delivered.
func TestReceiverTick(t *testing.T) {
	r := NewReceiver(1, 1000, 64, MaxSequence(false))
	arrive(&r, 10, numbersAt)
	if r.Settled() {
		t.Fatal("settled with a lead of 990")
	}
	question, ask := r.Tick(numbersAt.Add(time.Second))
	if !ask || question != 10 || r.Bound() != 10 {
		t.Fatalf("question %d %v, bound %d", question, ask, r.Bound())
	}
	if _, pass, _, _ := arrive(&r, 11, numbersAt.Add(time.Second)); pass {
		t.Error("11 passes above the withdrawn fence")
	}
}

// Without its fence an SA delivers what waits and what comes, each once, and asks nobody,
// also while a withdrawal is unanswered.
func TestReceiverUnbind(t *testing.T) {
	r := NewReceiver(1, 5, 64, MaxSequence(false))
	for seq := uint64(1); seq <= 3; seq++ {
		arrive(&r, seq, numbersAt)
	}
	now := numbersAt.Add(fenceIdle)
	if q, ask := r.Tick(now); !ask || q != 3 {
		t.Fatalf("withdrawn to %d, %v", q, ask)
	}
	if opened, pass, _, _ := arrive(&r, 7, now); !opened || pass {
		t.Fatal("delivered above the fence")
	}
	r.Unbind()
	if pass, _, ask := r.Retry(now, 7); !pass || ask {
		t.Error("what waits does not pass, or is asked for")
	}
	for seq := uint64(4); seq <= 200; seq++ {
		if seq == 7 {
			continue
		}
		if opened, pass, _, ask := arrive(&r, seq, now); !opened || !pass || ask {
			t.Fatalf("%d: opened %v, passes %v, asks %v", seq, opened, pass, ask)
		}
	}
	for _, seq := range []uint64{1, 7, 100, 200} {
		if r.Window().Check(seq) {
			t.Errorf("%d is taken twice", seq)
		}
	}
	if !r.Settled() {
		t.Error("it waits for something")
	}
}
