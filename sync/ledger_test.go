package statesync

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// chance is a reader of reproducible bytes.
func chance(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return rand.NewChaCha8(s)
}

func iv(t *testing.T, c *ipsec.IVCounter) [8]byte {
	t.Helper()
	var b [8]byte
	if c == nil {
		t.Fatal("no counter is held")
	}
	if err := c.Next(b[:]); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLedgerGivesHalf(t *testing.T) {
	a, b := NewLedger(chance(1)), NewLedger(chance(2))
	k := a.New()
	r1, ok := a.Grant(k, 20)
	if want := (ipsec.SenderRange{Lo: 1 << 23, Hi: 1 << 24}); !ok || r1 != want {
		t.Fatalf("first grant %v %v, want the upper half %v", r1, ok, want)
	}
	if r, ok := a.Grant(k, 20); !ok || r != r1 {
		t.Errorf("the same process asking again got %v, want %v", r, r1)
	}
	r2, ok := a.Grant(k, 30)
	if want := (ipsec.SenderRange{Lo: 1 << 22, Hi: 1 << 23}); !ok || r2 != want {
		t.Errorf("second process got %v %v, want %v", r2, ok, want)
	}
	if c := a.IV(k); c.SenderID() != 0 {
		t.Errorf("the creator uses sender %d, want 0", c.SenderID())
	}
	if b.IV(k) != nil || !b.Small(k) {
		t.Error("a process without a range must hold no counter and ask for a rekey")
	}
	b.Adopt(k, r1)
	if c := b.IV(k); c.SenderID() != r1.Lo {
		t.Errorf("sender %d, want the lowest of %v", c.SenderID(), r1)
	}
	b.Adopt(k, r2)
	if c := b.IV(k); c.SenderID() != r1.Lo {
		t.Error("a second range was taken: the first one counts")
	}
	if _, ok := b.Grant(99, 20); ok {
		t.Error("granted a key that is not held")
	}
}

func TestLedgerRunsSmallThenOut(t *testing.T) {
	l := NewLedger(chance(1))
	k := l.New()
	small, grants := 0, 0
	for p := cluster.ProcessID(1); p < 100; p++ {
		if l.Small(k) && small == 0 {
			small = grants
		}
		if _, ok := l.Grant(k, p); !ok {
			break
		}
		grants++
	}
	if grants != 24 || small != 17 {
		t.Errorf("%d grants, small after %d; want 24 and 17 (2^24 halved below 256)", grants, small)
	}
	if r, ok := l.Grant(k, 1); !ok || r.Size() != 1<<23 {
		t.Errorf("a process that was served got %v %v after the range ran out", r, ok)
	}
	iv(t, l.IV(k))
}

func TestLedgerForgottenKeyComesBack(t *testing.T) {
	owner, l := NewLedger(chance(1)), NewLedger(chance(2))
	k := owner.New()
	r, _ := owner.Grant(k, 20)
	l.Adopt(k, r)
	c := l.IV(k)
	first := iv(t, c)
	l.Forget(k)
	l.Expire(t0)
	late := iv(t, c) // the data plane finished a packet
	l.Expire(t0.Add(Reservation - time.Second))
	l.Adopt(k, r)
	again := iv(t, l.IV(k))
	if again == first || again == late {
		t.Fatalf("IV %x was used before", again)
	}
	if l.IV(k) != c {
		t.Error("the counter is another one than before")
	}

	l.Forget(k)
	l.Expire(t0.Add(Reservation))
	l.Expire(t0.Add(2*Reservation - time.Second))
	if _, reserved := l.Held(); reserved != 1 {
		t.Fatal("the reservation ended early, counted from a former forgetting")
	}
	l.Expire(t0.Add(2 * Reservation))
	if live, reserved := l.Held(); live+reserved != 0 {
		t.Errorf("%d live and %d reserved after the reservation, want none", live, reserved)
	}
}

func TestLedgerDropsWhatCannotReturn(t *testing.T) {
	l := NewLedger(chance(1))
	never := l.New()
	iv(t, l.IV(never))
	l.Forget(never) // no other process has it
	if live, reserved := l.Held(); live+reserved != 0 {
		t.Errorf("a key that never left is kept: %d live, %d reserved", live, reserved)
	}

	l.Adopt(7, ipsec.SenderRange{Lo: 8, Hi: 16}) // never sealed with
	l.Adopt(8, ipsec.SenderRange{Lo: 8, Hi: 16}) // granted on
	l.Grant(8, 5)
	l.Adopt(9, ipsec.SenderRange{Lo: 8, Hi: 16}) // sealed with by a straggler
	straggler := l.IV(9)
	for k := ipsec.KeyID(7); k <= 9; k++ {
		l.Forget(k)
	}
	l.Expire(t0)
	iv(t, straggler)
	l.Expire(t0.Add(settle))
	if _, reserved := l.Held(); reserved != 2 {
		t.Errorf("%d reserved, want 2: the granted one and the used one", reserved)
	}
	if l.Grant(7, 5); l.IV(7) != nil {
		t.Error("the unused key is still held")
	}
}

func TestLedgerRefusesNonsense(t *testing.T) {
	l := NewLedger(chance(1))
	for _, r := range []ipsec.SenderRange{{}, {Lo: 5, Hi: 5}, {Lo: 6, Hi: 5}, {Lo: 0, Hi: 1<<24 + 1}} {
		l.Adopt(1, r)
		if l.IV(1) != nil {
			t.Errorf("adopted %v", r)
		}
	}
	l.Forget(1)
	l.Expire(t0)
}

// holder is a process in a random history.
type holder struct {
	id  cluster.ProcessID
	led *Ledger
}

// TestLedgerHistories: whatever processes do to each other, restarts, re-sends and
// late arrivals included, no two of them hold the same sender ID under a key, and no
// explicit IV is made twice.
func TestLedgerHistories(t *testing.T) {
	histories := 4000
	if testing.Short() {
		histories = 800
	}
	for seed := range uint64(histories) {
		if err := history(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func history(seed uint64) error {
	src := chance(seed)
	rnd := rand.New(src)
	now := t0
	next := cluster.ProcessID(1)
	start := func() *holder {
		h := &holder{next, NewLedger(src)}
		next++
		return h
	}
	nodes := make([]*holder, 2+rnd.IntN(4))
	for i := range nodes {
		nodes[i] = start()
	}
	all := append([]*holder(nil), nodes...)
	type message struct {
		key ipsec.KeyID
		to  cluster.ProcessID
		rng ipsec.SenderRange
	}
	var keys []ipsec.KeyID
	born := map[ipsec.KeyID]time.Time{}
	var flying []message
	granted := map[string]ipsec.SenderRange{}
	used := map[string]bool{}
	seal := func(h *holder, k ipsec.KeyID) error {
		c := h.led.IV(k)
		if c == nil {
			return nil
		}
		var b [8]byte
		if err := c.Next(b[:]); err != nil {
			return err
		}
		id := fmt.Sprintf("%x %x", uint64(k), b)
		if used[id] {
			return fmt.Errorf("IV %s was made twice", id)
		}
		used[id] = true
		return nil
	}
	disjoint := func(k ipsec.KeyID) error {
		var held []ipsec.SenderRange
		for _, h := range all {
			if x := h.led.keys[k]; x != nil {
				for _, r := range held {
					if x.rng.Lo < r.Hi && r.Lo < x.rng.Hi {
						return fmt.Errorf("key %x: %v and %v overlap", uint64(k), x.rng, r)
					}
				}
				held = append(held, x.rng)
			}
		}
		return nil
	}
	for range 60 + rnd.IntN(100) {
		i := rnd.IntN(len(nodes))
		h := nodes[i]
		var k ipsec.KeyID
		if len(keys) > 0 {
			k = keys[rnd.IntN(len(keys))]
		}
		// A key that nobody can hold any more does not travel.
		alive := k != 0 && now.Sub(born[k]) < Reservation
		switch op := rnd.IntN(20); {
		case op == 0 || len(keys) == 0:
			k = h.led.New()
			keys = append(keys, k)
			born[k] = now
		case op < 7 && alive: // transfer
			to := nodes[rnd.IntN(len(nodes))]
			if to == h || h.led.keys[k] == nil {
				continue
			}
			r, ok := h.led.Grant(k, to.id)
			if !ok {
				continue
			}
			who := fmt.Sprintf("%x %d %d", uint64(k), h.id, to.id)
			if old, again := granted[who]; again && old != r && h.led.keys[k] != nil {
				return fmt.Errorf("%s: granted %v, then %v", who, old, r)
			}
			granted[who] = r
			flying = append(flying, message{k, to.id, r})
		case op < 12 && len(flying) > 0: // arrives, perhaps again, perhaps never
			n := rnd.IntN(len(flying))
			m := flying[n]
			if rnd.IntN(3) > 0 {
				flying = append(flying[:n], flying[n+1:]...)
			}
			if now.Sub(born[m.key]) >= Reservation {
				continue
			}
			for _, to := range nodes {
				if to.id == m.to {
					to.led.Adopt(m.key, m.rng)
				}
			}
			k = m.key
		case op < 16 && alive:
			if err := seal(h, k); err != nil {
				return err
			}
		case op == 16:
			h.led.Forget(k)
		case op == 17:
			now = now.Add(time.Duration(rnd.Int64N(int64(Reservation / 4))))
			for _, n := range nodes {
				n.led.Expire(now)
			}
		case op == 18 && rnd.IntN(2) == 0:
			nodes[i] = start() // what the old process held dies with it
			all = append(all, nodes[i])
		}
		if k != 0 {
			if err := disjoint(k); err != nil {
				return err
			}
		}
	}
	return nil
}
