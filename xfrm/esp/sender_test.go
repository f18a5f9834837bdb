package esp

import (
	"math"
	"testing"
	"time"
)

var numbersAt = time.Unix(1000, 0)

// next offers one packet and uses its number when it passes; 0: it has to wait.
func next(s *Sender, now time.Time) uint64 {
	seq, pass, _, _ := s.Offer(now)
	if !pass {
		return 0
	}
	s.Sent()
	return seq
}

func wantNext(t *testing.T, s *Sender, want uint64) {
	t.Helper()
	if got := next(s, numbersAt); got != want {
		t.Fatalf("next packet gets number %d, not %d", got, want)
	}
}

func TestSenderNumbers(t *testing.T) {
	s := NewSender(1, 100, MaxSequence(false))
	if s.Activate(1) {
		t.Error("the activation it was made in is fresh")
	}
	wantNext(t, &s, 1)
	seq, pass, _, _ := s.Offer(numbersAt)
	again, pass2, _, _ := s.Offer(numbersAt) // the first could not be sealed
	if !pass || !pass2 || seq != 2 || again != 2 || s.Seq() != 1 {
		t.Errorf("number %d, then %d, last used %d", seq, again, s.Seq())
	}
	s.Sent()
	wantNext(t, &s, 3)
	if s.Seq() != 3 || s.Bound() != 100 || s.Generation() != 1 {
		t.Errorf("seq %d, bound %d, generation %d", s.Seq(), s.Bound(), s.Generation())
	}
}

// What is above the ceiling waits, and asks once.
func TestSenderWaitsForGrant(t *testing.T) {
	s := NewSender(1, 2, MaxSequence(false))
	wantNext(t, &s, 1) // asks ahead
	wantNext(t, &s, 2)
	if _, pass, _, ask := s.Offer(numbersAt); pass || ask {
		t.Fatalf("pass %v, asks again %v", pass, ask)
	}
	s.Count(numbersAt) // one more behind it
	s.Grant(4)
	for want := uint64(3); want <= 4; want++ {
		if seq, pass, _, _ := s.Retry(numbersAt); !pass || seq != want {
			t.Fatalf("number %d, pass %v", seq, pass)
		}
		s.Sent()
	}
	if _, pass, _, _ := s.Retry(numbersAt); pass {
		t.Error("passes above the grant")
	}
}

func TestSenderActivate(t *testing.T) {
	for _, c := range []struct {
		name    string
		ceiling uint64
		act     func(*Sender)
		last    uint64 // number that counts as used after the activation
		bound   uint64
	}{
		{"known from elsewhere", 70, func(*Sender) {}, 70, 70},
		{"raised while inactive", 70, func(s *Sender) { s.Record(90) }, 90, 90},
		{"lowered while inactive", 70, func(s *Sender) { s.Record(40) }, 40, 40},
		{"exact number", 70, func(s *Sender) { s.Import(50, 2) }, 50, 70},
		{"exact number and the same ceiling", 70, func(s *Sender) { s.Import(50, 2); s.Record(70) }, 50, 70},
		{"exact number and a withdrawal", 70, func(s *Sender) { s.Import(50, 2); s.Record(60) }, 50, 60},
		{"exact number, then somebody went on", 70, func(s *Sender) { s.Import(50, 2); s.Record(71) }, 71, 71},
		{"recorded, then the exact number", 70, func(s *Sender) { s.Record(90); s.Import(50, 2) }, 50, 90},
		{"nobody is asked", Unbounded, func(*Sender) {}, 0, Unbounded},
		{"nobody is asked, exact number", Unbounded, func(s *Sender) { s.Import(50, 2) }, 50, Unbounded},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewSender(1, c.ceiling, MaxSequence(false))
			c.act(&s)
			if !s.Activate(2) {
				t.Error("a new activation is not fresh")
			}
			if s.Activate(2) {
				t.Error("the same activation is fresh twice")
			}
			if s.Seq() != c.last || s.Bound() != c.bound || s.Generation() != 2 {
				t.Errorf("last %d, bound %d, generation %d", s.Seq(), s.Bound(), s.Generation())
			}
			if want := c.last + 1; want <= c.bound {
				wantNext(t, &s, want)
				return
			}
			_, pass, question, ask := s.Offer(numbersAt)
			if pass || !ask || question <= c.last {
				t.Fatalf("above the ceiling: pass %v, question %d %v", pass, question, ask)
			}
			s.Grant(question)
			wantNext(t, &s, c.last+1)
		})
	}
}

// An imported number holds for one activation; the next goes on above the ceiling.
func TestSenderImportHoldsOnce(t *testing.T) {
	s := NewSender(1, 70, MaxSequence(false))
	s.Import(50, 2)
	s.Activate(2)
	wantNext(t, &s, 51)
	s.Activate(3)
	if s.Seq() != 70 {
		t.Errorf("goes on behind %d, below the ceiling", s.Seq())
	}
}

// An SA without a packet in the activation that a number was imported for does not use
// it in a later one: the other side of a split may have gone on, up to the same ceiling.
func TestSenderImportHoldsForItsActivation(t *testing.T) {
	s := NewSender(1, 70, MaxSequence(false))
	s.Import(50, 2)
	s.Record(70)
	s.Activate(3)
	if s.Seq() != 70 {
		t.Errorf("goes on behind %d, below the ceiling", s.Seq())
	}
}

// An owner that lost its scope and gets it back uses no number that the other one
// may have used, though it has sent more than its last record says.
func TestSenderComesBack(t *testing.T) {
	s := NewSender(1, 100, MaxSequence(false))
	for range 80 {
		next(&s, numbersAt)
	}
	s.Record(60)
	s.Activate(2)
	if s.Seq() != 80 {
		t.Errorf("goes on behind %d, having sent 80", s.Seq())
	}
	s.Record(130)
	s.Activate(3)
	if s.Seq() != 130 {
		t.Errorf("goes on behind %d, another may have sent 130", s.Seq())
	}
}

func TestSenderExhausted(t *testing.T) {
	for _, last := range []uint64{math.MaxUint32, math.MaxUint64 - 1, math.MaxUint64} {
		s := NewSender(1, Unbounded, last)
		s.Import(last-1, 2)
		s.Activate(2)
		if s.Exhausted() {
			t.Errorf("%d: one number is left", last)
		}
		wantNext(t, &s, last)
		if !s.Exhausted() {
			t.Errorf("%d: nothing is left", last)
		}
		if seq, pass, _, ask := s.Offer(numbersAt); pass || ask || seq != 0 {
			t.Errorf("%d: offers %d", last, seq)
		}
		if seq, pass, _, ask := s.Retry(numbersAt); pass || ask || seq != 0 {
			t.Errorf("%d: retries %d", last, seq)
		}
	}
}

// A lead far above the use is withdrawn, and nothing above passes from then on.
func TestSenderTick(t *testing.T) {
	s := NewSender(1, 100000, MaxSequence(false))
	now := numbersAt
	wantNext(t, &s, 1)
	if s.Settled() {
		t.Fatal("a lead of 99999 packets is settled")
	}
	question, ask := uint64(0), false
	for range 1000 {
		now = now.Add(10 * time.Millisecond)
		if question, ask = s.Tick(now); ask {
			break
		}
	}
	if !ask || question != s.Bound() || question != 1+MinCeilingLead {
		t.Errorf("question %d %v, bound %d", question, ask, s.Bound())
	}
	s.Grant(question)
	if !s.Settled() {
		t.Error("not settled after its answer")
	}
}

func TestNumbersNoAllocation(t *testing.T) {
	s := NewSender(1, Unbounded, MaxSequence(true))
	r := NewReceiver(1, Unbounded, 64, MaxSequence(true))
	r.Window().Accept(1)
	if n := testing.AllocsPerRun(1000, func() {
		s.Activate(1)
		seq := next(&s, numbersAt)
		r.Activate(1)
		if r.Window().Check(seq + 1) {
			r.Window().Accept(seq + 1)
		}
		r.Offer(numbersAt, seq+1)
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
	if s.Seq() < 1000 || r.Window().Top() < 1000 {
		t.Errorf("sent %d, received %d", s.Seq(), r.Window().Top())
	}
}

// A fresh activation has no lead to withdraw below what counts as used.
func TestActivationIsSettled(t *testing.T) {
	s := NewSender(1, 1000, MaxSequence(false))
	s.Import(950, 2)
	s.Activate(2)
	if _, ask := s.Tick(numbersAt.Add(time.Hour)); ask || !s.Settled() {
		t.Error("the sender withdraws from a ceiling with a lead of 50 packets")
	}
	r := NewReceiver(1, 1000, 64, MaxSequence(false))
	r.Activate(2)
	if _, ask := r.Tick(numbersAt.Add(time.Hour)); ask || !r.Settled() {
		t.Error("the receiver withdraws from a fence without a lead")
	}
}

// What an owner's record says holds, whatever was asked here and not answered
// before the scope went elsewhere.
func TestRecordAfterUnansweredWithdrawal(t *testing.T) {
	s := NewSender(1, 100000, MaxSequence(false))
	wantNext(t, &s, 1)
	for now := numbersAt; !s.Settled(); now = now.Add(time.Second) {
		s.Tick(now)
	}
	s.Record(90)
	if s.Bound() != 90 {
		t.Errorf("ceiling %d, recorded 90", s.Bound())
	}
	r := NewReceiver(1, 1000, 64, MaxSequence(false))
	arrive(&r, 10, numbersAt)
	if _, ask := r.Tick(numbersAt.Add(time.Second)); !ask {
		t.Fatal("nothing is withdrawn")
	}
	r.Record(90)
	if r.Bound() != 90 {
		t.Errorf("fence %d, recorded 90", r.Bound())
	}
}

// Packets that queue behind one that waits raise the rate, and so the next lead.
func TestSenderCountRaisesTheLead(t *testing.T) {
	lead := func(behind int) uint64 {
		s := NewSender(1, 1, MaxSequence(false))
		now := numbersAt
		wantNext(t, &s, 1) // asks ahead
		for range behind {
			now = now.Add(10 * time.Microsecond)
			s.Count(now)
		}
		s.Grant(2)
		if seq, pass, _, _ := s.Retry(now); !pass || seq != 2 {
			t.Fatalf("number %d, pass %v", seq, pass)
		}
		s.Sent()
		s.Grant(100) // both questions
		_, _, question, ask := s.Retry(now)
		for !ask {
			s.Sent()
			_, _, question, ask = s.Retry(now)
		}
		return question - s.Seq()
	}
	if slow, fast := lead(0), lead(1000); fast < 2*slow {
		t.Errorf("lead %d after a burst of 1000, %d without", fast, slow)
	}
}
