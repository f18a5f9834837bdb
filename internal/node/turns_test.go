package node

import (
	"testing"
	"time"

	"tandem/cluster"
)

// Two scopes are copied to a member at a time, in the order of joining; the third comes
// when the entry of one was sent, or when one does not move. Those that wait are not
// taken for stalled, and copies to another member do not matter.
func TestCopiesTakeTurns(t *testing.T) {
	turns := &copyTurns{}
	now := time.Unix(1000, 0)
	var all []*Node
	for i := range 4 {
		o := Options{Slot: &cluster.SlotOptions{Self: 1, Name: "a", Scope: cluster.ScopeID(8 + i)}, Process: 1, turns: turns}
		n := New(o)
		n.copies = []*copying{{node: 2, process: 9}}
		turns.enter(n, 2)
		all = append(all, n)
	}
	due := func(n *Node, at time.Time) bool {
		x, ok := turns.next(n, 2)
		return ok && !at.Before(x)
	}
	check := func(what string, at time.Time, want ...bool) {
		t.Helper()
		for i, n := range all {
			if due(n, at) != want[i] {
				t.Errorf("%s: scope %d may go on: %v", what, i, !want[i])
			}
		}
	}
	check("at first", now, true, false, false, false)
	turns.moved(now, all[0], 2)
	check("one has begun", now, true, true, false, false)
	turns.moved(now, all[1], 2)
	check("two have begun", now, true, true, false, false)
	check("and stand still", now.Add(copyPatience), true, true, true, false)
	turns.moved(now.Add(copyPatience), all[0], 2)
	check("one moves again", now.Add(copyPatience), true, true, true, false)
	turns.moved(now.Add(copyPatience), all[1], 2)
	check("both move again", now.Add(copyPatience), true, true, false, false)
	all[0].copies = nil // its entry was sent
	check("one is done", now.Add(copyPatience), true, true, true, false)
	if !turns.under(2) || turns.under(3) {
		t.Error("copies are under way to member 2 alone")
	}
	for _, n := range all {
		n.copies = nil
	}
	if turns.under(2) {
		t.Error("all copies are done, and yet under way")
	}
}
