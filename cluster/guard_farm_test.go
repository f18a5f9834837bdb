package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tandem/cluster/fsm"
)

// guards are four Guards whose heartbeats get lost, and the daemons that the test
// plays: what goes over their streams is known at once.
type guards struct {
	t        *testing.T
	r        *rand.Rand
	now      time.Time
	g        map[NodeID]*Guard
	owned    map[NodeID][]Tenure
	asked    map[removalOf]Epoch // by the owner, last
	excluded map[removalOf]Epoch // the owner was told that it is done
	process  uint64
	cut      map[NodeID]bool
	removed  int
	claimed  int
}

type removalOf struct {
	scope ScopeID
	node  NodeID
}

var members = []NodeID{1, 2, 3, 4}

func (w *guards) epochOf(s ScopeID) (n NodeID, e Epoch) {
	for _, m := range members {
		if x := epochIn(w.owned[m], s); e.Less(x) {
			n, e = m, x
		}
	}
	return n, e
}

func (w *guards) announce(n NodeID) { w.g[n].HandleAnnounce(w.now, Announce{Owned: w.owned[n]}) }

func (w *guards) own(n NodeID, s ScopeID, e Epoch) {
	for _, m := range members {
		w.owned[m] = slices.DeleteFunc(slices.Clone(w.owned[m]), func(t Tenure) bool { return t.Scope == s })
		if m == n {
			w.owned[m] = append(w.owned[m], Tenure{s, e})
			slices.SortFunc(w.owned[m], func(a, b Tenure) int { return int(a.Scope) - int(b.Scope) })
		}
		w.announce(m)
	}
}

func (w *guards) drain() {
	for again := true; again; {
		again = false
		for _, n := range members {
			for {
				x, ok := w.g[n].Poll()
				if !ok {
					break
				}
				again = true
				w.take(n, x)
			}
		}
	}
}

func (w *guards) take(n NodeID, x GuardEffect) {
	switch x := x.(type) {
	case SendHeartbeat:
		b, err := x.Heartbeat.Marshal(testKey)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, m := range members {
			if m == n || w.cut[n] || w.cut[m] || w.r.IntN(10) == 0 {
				continue
			}
			h, err := DecodeHeartbeat(testKey, b)
			if err != nil {
				w.t.Fatal(err)
			}
			_ = w.g[m].HandleHeartbeat(w.now, Link{Addr: fmt.Sprint(n)}, h)
		}
	case TellRemoved:
		if x.Node != n { // a member gave up what we asked it to
			w.removed++
			k := removalOf{x.Scope, x.Node}
			w.excluded[k] = w.asked[k]
		}
	case TellLoss:
		for _, c := range x.Claimed {
			w.succeeds(n, c.Scope, c.Epoch)
		}
	}
}

// succeeds: n may carry out the takeover from the owner of that epoch.
func (w *guards) succeeds(n NodeID, s ScopeID, from Epoch) {
	if out := w.excluded[removalOf{s, n}]; !out.Less(from) {
		w.t.Errorf("node %d claims %v of epoch %v, although it gave up all to %v", n, s, from, out)
	}
	w.claimed++
}

// TestWhoGaveUpNeverClaims: once an owner was told that a member gave its entitlement
// up, that member turns none for the scope, up to that epoch, into a claim.
func TestWhoGaveUpNeverClaims(t *testing.T) {
	removed, claimed := 0, 0
	for seed := range uint64(150) {
		w := &guards{t: t, r: rand.New(rand.NewPCG(seed, 4)), now: time.Unix(1e9, 0), g: map[NodeID]*Guard{}, owned: map[NodeID][]Tenure{},
			asked: map[removalOf]Epoch{}, excluded: map[removalOf]Epoch{}, cut: map[NodeID]bool{}, process: 100}
		for _, n := range members {
			w.g[n] = NewGuard(GuardOptions{Self: n, Name: fmt.Sprint("gw", n), Incarnation: 5, Interval: 10 * time.Millisecond, Threshold: 3})
			w.g[n].DaemonStarted(w.now, ProcessID(n))
			w.announce(n)
		}
		for i, s := range []ScopeID{fsm.Slot(1, 0), fsm.Slot(1, 1), fsm.Slot(2, 0), 1} {
			w.own(members[i%2], s, e(1, 0, members[i%2]))
		}
		for range 1500 {
			w.step()
			w.drain()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		removed, claimed = removed+w.removed, claimed+w.claimed
	}
	if removed < 1000 || claimed < 1000 {
		t.Errorf("only %d removals and %d claims", removed, claimed)
	}
	t.Logf("%d removals, %d claims", removed, claimed)
}

func (w *guards) step() {
	n := members[w.r.IntN(len(members))]
	s := []ScopeID{fsm.Slot(1, 0), fsm.Slot(1, 1), fsm.Slot(2, 0), 1}[w.r.IntN(4)]
	owner, at := w.epochOf(s)
	switch w.r.IntN(40) {
	case 0, 1, 2, 3, 4, 5: // its copy is complete, or was renewed
		if owner != 0 && n != owner {
			w.g[n].HandleEntitle(w.now, Entitle{Scope: s, Epoch: at, On: true})
		}
	case 6, 7, 8:
		if owner != 0 && n != owner {
			w.asked[removalOf{s, n}] = at
			w.g[owner].HandleAskRemoval(w.now, AskRemoval{s, n})
		}
	case 9: // goes on, telling the others over the stream first
		if owner != 0 {
			w.own(owner, s, at.Next(owner))
		}
	case 10: // takes over or is handed it
		w.g[n].HandleClaim(w.now, Claim{s, e(at.Term()+1, 0, n)})
		var held Epoch
		if h := w.g[n].entitlement(s); h != nil {
			held = h.epoch
		}
		for {
			x, ok := w.g[n].Poll()
			if !ok {
				break
			}
			if c, is := x.(TellClaimed); is && c.OK {
				w.succeeds(n, s, held)
				w.own(n, s, c.Epoch)
			}
			w.take(n, x)
		}
	case 11: // the daemon dies, and another starts, which owns nothing
		w.g[n].DaemonEnded(w.now)
		w.drain()
		w.process++
		w.g[n].DaemonStarted(w.now, ProcessID(w.process))
		w.owned[n] = nil
		w.announce(n)
	case 12:
		w.cut[n] = !w.cut[n]
	case 13:
		w.g[n].HandleEntitle(w.now, Entitle{Scope: s})
	default:
		w.now = w.now.Add(5 * time.Millisecond)
		for _, m := range members {
			w.g[m].Tick(w.now)
			w.drain()
		}
	}
	if owner == 0 && w.r.IntN(20) == 0 { // the log gives what nobody owns to somebody
		w.process++
		w.own(n, s, e(w.process, 0, n))
	}
}
