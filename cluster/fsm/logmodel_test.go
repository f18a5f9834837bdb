package fsm

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestLogModel: members get one and the same log in order, though leaders change;
// without a majority nothing is committed, and afterwards it goes on.
func TestLogModel(t *testing.T) {
	run := func(seed uint64) (log [][]byte, leaders int) {
		r := rand.New(rand.NewPCG(seed, 0))
		now, cut := time.Unix(0, 0), false
		l := NewLogModel(now, LogOptions{
			Voters: []NodeID{1, 2, 3}, Rand: r.IntN, Loss: 100, Repeat: 100,
			Reach:    func(a, b NodeID) bool { return !cut },
			MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Election: 200 * time.Millisecond,
		})
		l.SetUp(4, true)
		got := map[NodeID][][]byte{}
		advance := func(d time.Duration) {
			end := now.Add(d)
			for {
				for _, x := range l.Step(now) {
					if x.Index != uint64(len(got[x.To])+1) {
						t.Fatalf("node %d got entry %d after %d", x.To, x.Index, len(got[x.To]))
					}
					got[x.To] = append(got[x.To], x.Entry)
				}
				at, ok := l.NextTimeout()
				if !ok || at.After(end) {
					break
				}
				if at.Before(now) {
					at = now
				}
				now = at
			}
			now = end
		}
		last := NodeID(0)
		for i := range 400 {
			if l.Leader() != last && l.Leader() != 0 {
				last = l.Leader()
				leaders++
			}
			l.Propose(now, NodeID(1+i%4), binary.BigEndian.AppendUint32(nil, uint32(i)))
			advance(time.Duration(r.IntN(5)) * time.Millisecond)
			switch i % 100 {
			case 30:
				l.SetUp(l.Leader(), false)
			case 60:
				for n := NodeID(1); n <= 4; n++ {
					l.SetUp(n, true)
				}
			case 80:
				cut = true
				advance(time.Second)
				before := l.Len()
				l.Propose(now, 1, []byte("cut"))
				advance(time.Second)
				if l.Leader() != 0 || l.Len() != before {
					t.Fatal("committed without a majority")
				}
				cut = false
			}
			advance(time.Millisecond)
		}
		advance(5 * time.Second)
		for n := NodeID(2); n <= 4; n++ {
			if !slices.EqualFunc(got[n], got[1], slices.Equal) {
				t.Fatalf("node %d has another log than node 1", n)
			}
		}
		if uint64(len(got[1])) != l.Len() || len(got[1]) < 100 {
			t.Fatalf("%d of %d entries delivered", len(got[1]), l.Len())
		}
		return got[1], leaders
	}
	a, leaders := run(1)
	b, _ := run(1)
	if !slices.EqualFunc(a, b, slices.Equal) {
		t.Error("one seed, two logs")
	}
	if leaders < 3 {
		t.Errorf("only %d leaders", leaders)
	}
	seen, repeated, late := map[uint32]bool{}, 0, 0
	var highest uint32
	for _, e := range a {
		n := binary.BigEndian.Uint32(append(slices.Clone(e), 0, 0, 0)[:4])
		if seen[n] {
			repeated++
		} else if n < highest {
			late++
		}
		seen[n], highest = true, max(n, highest)
	}
	if repeated == 0 || late == 0 || len(seen) >= 400 {
		t.Errorf("the log is too well behaved: %d repeated, %d late, %d of 400 arrived", repeated, late, len(seen))
	}
}
