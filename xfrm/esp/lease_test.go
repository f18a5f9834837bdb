package esp

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// plant drives a lease in fake time with an answer that comes after a delay, and
// keeps what whoever grants believes.
type plant struct {
	t        *testing.T
	l        Lease
	now      time.Time
	delay    time.Duration
	open     []answer
	granted  uint64 // the last committed bound
	passed   uint64
	queue    []uint64
	waits    int // packets that had to wait
	asks     int
	ticked   time.Time
	withdraw int
}

type answer struct {
	at time.Time
	n  uint64
}

func newPlant(t *testing.T, l Lease, delay time.Duration) *plant {
	now := time.Unix(1000, 0)
	return &plant{t: t, l: l, now: now, ticked: now, delay: delay, granted: l.Bound()}
}

func (p *plant) ask(n uint64, ok bool) {
	if !ok {
		return
	}
	p.asks++
	if n < p.granted {
		p.withdraw++
	}
	if n < p.passed {
		p.t.Fatalf("asks for %d below %d, which has passed", n, p.passed)
	}
	p.open = append(p.open, answer{p.now.Add(p.delay), n})
}

// until lets time pass, with answers and ticks.
func (p *plant) until(end time.Time) {
	for {
		next := p.ticked.Add(10 * time.Millisecond)
		if len(p.open) > 0 && p.open[0].at.Before(next) {
			next = p.open[0].at
		}
		if next.After(end) {
			p.now = end
			return
		}
		p.now = next
		if len(p.open) > 0 && !p.open[0].at.After(next) {
			a := p.open[0]
			p.open = p.open[1:]
			p.granted = a.n
			p.l.Grant(a.n)
			p.drain()
			continue
		}
		p.ticked = next
		p.ask(p.l.Tick(p.now))
	}
}

func (p *plant) pass(n uint64) {
	// The invariant: whatever passes is covered by the committed bound.
	if n > p.granted {
		p.t.Fatalf("%d passes, only %d is committed", n, p.granted)
	}
	p.passed = max(p.passed, n)
}

func (p *plant) drain() {
	kept := p.queue[:0]
	for _, n := range p.queue {
		ok, q, ask := p.l.Retry(p.now, n)
		p.ask(q, ask)
		if ok {
			p.pass(n)
		} else {
			kept = append(kept, n)
		}
	}
	p.queue = kept
}

func (p *plant) packet(n uint64) {
	ok, q, ask := p.l.Offer(p.now, n)
	p.ask(q, ask)
	if ok {
		p.pass(n)
	} else {
		p.waits++
		p.queue = append(p.queue, n)
	}
}

// stream offers packets at a rate for a while.
func (p *plant) stream(from uint64, rate int, d time.Duration) (next uint64) {
	gap := time.Second / time.Duration(rate)
	for end := p.now.Add(d); p.now.Before(end); from++ {
		p.packet(from)
		p.until(p.now.Add(gap))
	}
	return from
}

func TestCeilingLease(t *testing.T) {
	for _, rate := range []int{1, 10, 100, 1000, 20000} {
		p := newPlant(t, NewCeiling(0, 0, math.MaxUint64), 400*time.Millisecond)
		n := p.stream(1, rate, 12*time.Second)
		p.waits, p.asks = 0, 0
		p.stream(n, rate, 10*time.Second)
		if p.waits > 0 {
			t.Errorf("%d/s: %d packets wait although answers take less than half a second", rate, p.waits)
		}
		lead := p.l.Bound() - p.l.Highest()
		if lead > uint64(max(2*MinCeilingLead, rate*2)) {
			t.Errorf("%d/s: lead %d", rate, lead)
		}
		if most := 10*rate/MinCeilingLead*2 + 25; p.asks > min(most, 60) {
			t.Errorf("%d/s: %d questions in 10 s", rate, p.asks)
		}
		p.until(p.now.Add(5 * time.Second))
		if lead := p.l.Bound() - p.l.Highest(); lead > 2*MinCeilingLead || !p.l.Settled() {
			t.Errorf("%d/s, then idle: lead %d, settled %v", rate, lead, p.l.Settled())
		}
	}
}

func TestFenceLease(t *testing.T) {
	for _, rate := range []int{1, 50, 200, 5000, 50000} {
		p := newPlant(t, NewFence(0, 0, math.MaxUint64), 100*time.Microsecond)
		n := p.stream(1, rate, 2*time.Second)
		p.waits = 0
		p.stream(n, rate, 2*time.Second)
		lead := p.l.Bound() - p.l.Highest()
		switch {
		case rate < FenceMinRate && (lead != 0 || p.waits == 0):
			t.Errorf("%d/s: lead %d, %d waited; slow SAs have no lead", rate, lead, p.waits)
		case rate > FenceMinRate && p.waits > 0:
			t.Errorf("%d/s: %d packets waited", rate, p.waits)
		case rate > FenceMinRate && (lead == 0 || lead > uint64(rate/100)*2+2):
			t.Errorf("%d/s: lead %d, want about %d", rate, lead, rate/100)
		}
		p.until(p.now.Add(100 * time.Millisecond))
		if p.l.Bound() != p.l.Highest() || p.granted != p.passed || !p.l.Settled() {
			t.Errorf("%d/s, then idle: fence %d, delivered %d, committed %d", rate, p.l.Bound(), p.passed, p.granted)
		}
		// An idle SA asks for exactly the packet that waits.
		p.packet(p.passed + 3)
		if len(p.open) != 1 || p.open[0].n != p.passed+3 {
			t.Errorf("questions %+v for %d", p.open, p.passed+3)
		}
	}
}

// When answers are slower than 10 ms the lead widens until nothing waits.
func TestFenceWidens(t *testing.T) {
	p := newPlant(t, NewFence(0, 0, math.MaxUint64), 40*time.Millisecond)
	n := p.stream(1, 5000, 3*time.Second)
	p.waits = 0
	p.stream(n, 5000, time.Second)
	if p.l.Widened() == 1 || p.waits > 5000/10 {
		t.Errorf("widened %d times, %d of 5000 waited", p.l.Widened(), p.waits)
	}
	p.delay = 100 * time.Microsecond
	p.until(p.now.Add(time.Second))
	if p.l.Widened() != 1 || p.l.Bound() != p.l.Highest() {
		t.Errorf("widened %d, lead %d", p.l.Widened(), p.l.Bound()-p.l.Highest())
	}
}

// Whatever the traffic and however late the answers, nothing passes that is not
// committed, and nothing waits for ever.
func TestLeaseRandom(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		l := NewCeiling(10, 10, math.MaxUint64)
		if seed%2 == 1 {
			l = NewFence(10, 10, math.MaxUint64)
		}
		p := newPlant(t, l, 0)
		p.passed = 10
		n := uint64(11)
		for range 40 {
			p.delay = time.Duration(r.IntN(60000)) * time.Microsecond
			if len(p.open) > 0 {
				p.until(p.open[len(p.open)-1].at) // answers keep their order
			}
			switch r.IntN(3) {
			case 0:
				for range r.IntN(100) {
					p.packet(n)
					n++
				}
			case 1:
				n = p.stream(n, 1+r.IntN(3000), time.Duration(r.IntN(300))*time.Millisecond)
			default:
				p.until(p.now.Add(time.Duration(r.IntN(3000)) * time.Millisecond))
			}
		}
		p.until(p.now.Add(10 * time.Second))
		if len(p.queue) > 0 || p.passed != n-1 {
			t.Fatalf("seed %d: %d packets wait for ever", seed, len(p.queue))
		}
	}
}

func TestLeaseEnds(t *testing.T) {
	l := NewCeiling(math.MaxUint32-40, math.MaxUint32-40, math.MaxUint32)
	now := time.Unix(1, 0)
	_, q, ask := l.Offer(now, math.MaxUint32-39)
	if !ask || q != math.MaxUint32-8 {
		t.Fatalf("asks for %d, %v", q, ask)
	}
	l.Grant(q)
	for n := uint64(math.MaxUint32 - 39); n <= math.MaxUint32; n++ {
		pass, q, ask := l.Offer(now, n)
		if ask {
			if q > math.MaxUint32 {
				t.Fatalf("asks for %d", q)
			}
			l.Grant(q)
		}
		if !pass {
			t.Fatalf("%d waits", n)
		}
	}
	if pass, _, ask := l.Offer(now, math.MaxUint32+1); pass || ask {
		t.Fatal("beyond the last number")
	}
	free := NewFence(Unbounded, 0, math.MaxUint64)
	for n := uint64(1); n < 1000; n++ {
		if pass, _, ask := free.Offer(now, n); !pass || ask {
			t.Fatal("an unbounded lease asks")
		}
		now = now.Add(time.Millisecond)
		if _, ask := free.Tick(now); ask || !free.Settled() {
			t.Fatal("an unbounded lease withdraws")
		}
	}
}

// The answer to a question that a withdrawal overtook must not raise the bound.
func TestLateAnswer(t *testing.T) {
	now := time.Unix(1, 0)
	l := NewFence(0, 0, math.MaxUint64)
	_, first, _ := l.Offer(now, 1)
	now = now.Add(3 * time.Second)
	again, ask := l.Tick(now)
	if !ask || again == first {
		t.Fatalf("asked %d again as %d", first, again)
	}
	l.Grant(first)
	l.Grant(again)
	if pass, _, _ := l.Retry(now, 1); !pass {
		t.Fatal("1 waits")
	}
	now = now.Add(time.Second)
	down, ask := l.Tick(now)
	if !ask || down != 1 {
		t.Fatalf("withdraws to %d, %v", down, ask)
	}
	l.Grant(again)
	if l.Allowed(2) {
		t.Fatal("a late answer raised the bound")
	}
	l.Grant(down)
	_, q, ask := l.Offer(now, 2)
	if !ask {
		t.Fatal("no question")
	}
	l.Grant(q)
	if !l.Allowed(2) {
		t.Fatal("2 is not allowed")
	}
}

func TestLeaseNoAllocation(t *testing.T) {
	l := NewCeiling(0, 0, math.MaxUint64)
	now, n := time.Unix(1, 0), uint64(0)
	if a := testing.AllocsPerRun(1000, func() {
		n++
		now = now.Add(time.Microsecond)
		if _, q, ask := l.Offer(now, n); ask {
			l.Grant(q)
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}
