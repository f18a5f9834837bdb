package esp

import (
	"testing"
	"time"
)

// Whatever is asked, granted or withdrawn before and after: no number up to what was
// skipped is used, and a packet above it needs an answer of its own.
func TestSenderSkip(t *testing.T) {
	now := time.Unix(1000, 0)
	s := NewSender(1, 100, 1<<32-1)
	use := func(want uint64) {
		t.Helper()
		if seq, pass, _, _ := s.Offer(now); !pass || seq != want {
			t.Fatalf("number %d passes: %v, want %d", seq, pass, want)
		}
		s.Sent()
	}
	for n := range uint64(90) {
		use(n + 1)
	}
	s.Skip(5000)
	s.Skip(50)
	seq, pass, first, ask := s.Offer(now)
	for !pass && !ask { // the question that the lead had put before comes first
		s.Grant(200)
		seq, pass, first, ask = s.Retry(now)
	}
	if pass || seq != 5001 || first < 5001 {
		t.Fatalf("number %d passes: %v, asks for %d: %v", seq, pass, first, ask)
	}
	s.Grant(150) // the answer to a withdrawal of before
	if _, pass, _, _ := s.Retry(now); pass {
		t.Fatal("a number passes that nobody has granted")
	}
	s.Grant(first)
	use(5001)
	for range 100 { // nor is anything withdrawn to what was used before
		now = now.Add(100 * time.Millisecond)
		if n, ask := s.Tick(now); ask && n < 5001 {
			t.Fatalf("the ceiling is withdrawn to %d", n)
		}
	}
	s.Record(first)
	s.Activate(2)
	if s.Seq() < 5001 {
		t.Fatalf("a new activation goes on at %d", s.Seq())
	}
	s.Skip(1 << 40)
	if !s.Exhausted() {
		t.Fatal("numbers beyond the last")
	}
}

// What is rejected stays so; what waits may go its way; the fence falls to what was
// skipped, not below.
func TestReceiverSkip(t *testing.T) {
	now := time.Unix(1000, 0)
	r := NewReceiver(1, 10, 64, 1<<32-1)
	take := func(seq uint64) (pass bool, n uint64, ask bool) {
		t.Helper()
		if !r.Window().Check(seq) {
			t.Fatalf("%d is a replay", seq)
		}
		r.Window().Accept(seq)
		return r.Offer(now, seq)
	}
	if pass, _, _ := take(5); !pass {
		t.Fatal("5 waits")
	}
	pass, n, ask := take(12)
	if pass || !ask || n != 12 {
		t.Fatalf("12 passes: %v, asks for %d", pass, n)
	}
	r.Skip(1000)
	r.Skip(20)
	for _, seq := range []uint64{1, 6, 11, 12, 13, 1000} {
		if r.Window().Check(seq) {
			t.Errorf("%d is accepted", seq)
		}
	}
	r.Grant(12)
	if pass, _, _ := r.Retry(now, 12); !pass {
		t.Error("what was accepted before is lost")
	}
	pass, n, ask = take(1001)
	if pass || !ask || n != 1001 {
		t.Fatalf("1001 passes: %v, asks for %d", pass, n)
	}
	r.Grant(1001)
	if pass, _, _ := r.Retry(now, 1001); !pass {
		t.Error("1001 waits")
	}
	r.Skip(2000)
	for range 10 {
		now = now.Add(100 * time.Millisecond)
		if n, ask := r.Tick(now); ask && n < 2000 {
			t.Fatalf("the fence is withdrawn to %d", n)
		}
	}
	r.Record(2000)
	r.Activate(2)
	if r.Window().Check(2000) || !r.Window().Check(2001) {
		t.Error("another activation")
	}
}
