package integration

import (
	"slices"
	"testing"
	"time"

	"tandem/cluster/fsm"
)

// TestPoolRanges: three members agree on ranges of SPIs and addresses, over TLS and with
// disks, and give out numbers of them without asking anybody. They are killed without
// warning, with and without their disk, the leader among them, start alone, are cut off,
// come back: no number is in use twice, each member goes on where it was, and what a lost
// one had comes back only when it was removed, and its ranges were returned.
func TestPoolRanges(t *testing.T) {
	t.Parallel()
	g := newPoolGroup(t)
	all := []fsm.NodeID{1, 2, 3}
	for _, n := range all {
		g.start(n)
	}
	g.goesOn("in the beginning", all...)
	leader := func() fsm.NodeID {
		t.Helper()
		var l fsm.NodeID
		eventually(t, 10*time.Second, "one leader", func() bool {
			l = g.view(1).Leader
			return l != 0 && g.view(2).Leader == l && g.view(3).Leader == l
		})
		return l
	}
	rest := func(n fsm.NodeID) []fsm.NodeID {
		return slices.DeleteFunc(slices.Clone(all), func(x fsm.NodeID) bool { return x == n })
	}
	// begun are the ranges that a member has begun to give numbers out of; open is those
	// with some left.
	begun := func(n fsm.NodeID, open bool) map[fsm.RangeID]bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		m := map[fsm.RangeID]bool{}
		for _, list := range g.leases {
			for _, l := range list {
				if l.node == n && (!open || g.left[l.in] > 0) {
					m[l.in] = true
				}
			}
		}
		return m
	}
	// kill kills a member in the middle of a range, which it says.
	kill := func(n fsm.NodeID) map[fsm.RangeID]bool {
		t.Helper()
		for {
			g.kill(n)
			g.heard()
			if had := begun(n, true); len(had) > 0 {
				return had
			}
			g.start(n) // all that it had begun was used up to the last number
			g.goesOn("killed and started", n)
		}
	}
	// back waits until a member that was started again gives out numbers of a range that
	// an earlier process of it had begun.
	back := func(what string, n fsm.NodeID, had map[fsm.RangeID]bool) {
		t.Helper()
		eventually(t, 20*time.Second, what+": it goes on where it was", g.holds(func() bool {
			for r := range g.from[n] {
				if had[r] {
					return true
				}
			}
			return false
		}))
		g.goesOn(what, all...)
	}

	// Killed, a follower and the leader; each starts again with its disk.
	for _, what := range []string{"a follower was killed", "the leader was killed"} {
		n := leader()
		if what == "a follower was killed" {
			n = rest(n)[0]
		}
		had := kill(n)
		g.goesOn(what, rest(n)...)
		g.start(n)
		back(what, n, had)
	}

	// The leader is cut off: it and the others give out what they have, others decide.
	// Killed and started alone it knows only what is fresh.
	n := leader()
	g.cut(n, true)
	g.goesOn("the leader is cut off", rest(n)...)
	g.kill(n)
	g.heard()
	had := begun(n, false)
	g.start(n)
	eventually(t, 20*time.Second, "alone it gives out of fresh ranges", g.holds(func() bool { return g.alone[n] >= 16 }))
	g.mu.Lock()
	for r := range g.from[n] {
		if had[r] {
			t.Errorf("alone it gives out of range %d, which an earlier process had begun", r)
		}
	}
	g.mu.Unlock()
	g.goesOn("one started alone", rest(n)...)
	g.cut(n, false)
	g.goesOn("it is back", all...)

	// One loses its disk. Alone it knows of no range; with the others it goes on.
	n = rest(leader())[1]
	had = kill(n)
	g.loseDisk(n)
	g.cut(n, true)
	g.start(n)
	g.goesOn("one lost its disk", rest(n)...)
	g.mu.Lock()
	if g.gave[n] != 0 {
		t.Errorf("without its disk it gives out %d numbers alone", g.gave[n])
	}
	g.mu.Unlock()
	g.cut(n, false)
	back("it lost its disk", n, had)

	// All at once.
	for _, n := range all {
		g.kill(n)
	}
	for _, n := range all {
		g.start(n)
	}
	g.goesOn("all were killed", all...)

	// One is lost for good. What it had stays its own until it is removed.
	n = leader()
	g.mu.Lock()
	process := g.process[n]
	g.mu.Unlock()
	g.kill(n)
	g.loseDisk(n)
	by := rest(n)[0]
	g.goesOn("one is lost", rest(n)...)
	held := slices.DeleteFunc(g.view(by).Ranges, func(r fsm.Range) bool { return r.Node != n })
	if len(held) < 2 {
		t.Fatalf("the lost member has %v", held)
	}
	if code, _ := g.ask(by, poolOrder{What: "lose", Node: n, Process: process}); code != fsm.Done {
		t.Fatalf("the loss is not reported: %v", code)
	}
	for _, r := range held {
		if code, _ := g.ask(by, poolOrder{What: "return", Range: r.ID}); code != fsm.NotYours {
			t.Fatalf("range %d of a member that may be alive is returned: %v", r.ID, code)
		}
	}
	g.goesOn("it counts as lost", rest(n)...)
	if code, _ := g.ask(by, poolOrder{What: "remove", Node: n}); code != fsm.Done {
		t.Fatalf("it cannot be removed: %v", code)
	}
	after := slices.DeleteFunc(g.view(by).Ranges, func(r fsm.Range) bool { return r.Node != n })
	if !slices.Equal(held, after) {
		t.Fatalf("without its being returned %v is what is left of %v", after, held)
	}
	for _, r := range held {
		g.mu.Lock()
		g.free(r.ID) // its tunnels have ended: whoever returns the range vouches for that
		g.mu.Unlock()
		if code, _ := g.ask(by, poolOrder{What: "return", Range: r.ID}); code != fsm.Done {
			t.Fatalf("range %d of a removed member: %v", r.ID, code)
		}
	}
	again := func(e poolLease, space fsm.Space, number uint64) bool {
		return e.node != n && slices.ContainsFunc(held, func(r fsm.Range) bool { return r.ID != e.in && r.Contains(space, fsm.Number{Lo: number}) })
	}
	eventually(t, 20*time.Second, "others give out what the removed member had", g.holds(func() bool {
		for space, list := range g.leases {
			for number, l := range list {
				if again(l, space, number) {
					return true
				}
			}
		}
		return false
	}))
	g.start(n)
	g.goesOn("it joins anew", all...)

	// In the end each number in use lies in a range of whoever gave it out, on which all agree.
	for _, n := range all {
		g.tell(n, poolOrder{What: "quiet"})
	}
	var ranges []fsm.Range
	eventually(t, 20*time.Second, "all have one state", func() bool {
		ranges = g.view(1).Ranges
		return slices.Equal(ranges, g.view(2).Ranges) && slices.Equal(ranges, g.view(3).Ranges)
	})
	g.sound("in the end")
	g.mu.Lock()
	defer g.mu.Unlock()
	for space, list := range g.leases {
		for number, l := range list {
			if !slices.ContainsFunc(ranges, func(r fsm.Range) bool {
				return r.ID == l.in && r.Node == l.node && r.Contains(space, fsm.Number{Lo: number})
			}) {
				t.Errorf("number %d of space %d, given out by gw%d of range %d, lies in no range of it", number, space, l.node, l.in)
			}
		}
	}
	t.Logf("%d numbers given out, %d ranges returned with theirs, %d in use in the end", g.given, g.freed, len(g.leases[fsm.SpaceSPI])+len(g.leases[fsm.SpaceIPv4]))
}
