package node

import (
	"slices"
	"time"

	"tandem/cluster"
)

const (
	// copiesAtOnce is how many scopes are copied to one member at a time. Who is copied
	// to takes in as much as it can; if all scopes shared that, each one's entry, which
	// commits wait for, would come behind the copies of all others, and the member would
	// seem to lag. One is written down while the other is under way.
	copiesAtOnce = 2
	// copyPatience is after which time a copy that does not move holds up no other.
	copyPatience = 250 * time.Millisecond
	// handOverLook is when a handover is considered again that copies held up.
	handOverLook = 200 * time.Millisecond
)

// copyTurns lets the scopes of one process copy to a member in turn, in the order in
// which it joined them.
type copyTurns struct{ line []*copyTurn }

// copyTurn is one scope's copy for a member, from its joining to its entry.
type copyTurn struct {
	n     *Node
	id    cluster.NodeID
	begun bool
	moved time.Time // begun: when it got further
}

// enter queues a scope's copy anew.
func (t *copyTurns) enter(n *Node, id cluster.NodeID) {
	t.line = slices.DeleteFunc(t.line, func(x *copyTurn) bool { return x.n == n && x.id == id || x.over() })
	t.line = append(t.line, &copyTurn{n: n, id: id})
}

// over says that the entry was sent, or the copy given up.
func (x *copyTurn) over() bool {
	return !slices.ContainsFunc(x.n.copies, func(c *copying) bool { return c.node == x.id }) && !x.n.journal.Copying(x.id)
}

// under says that copies for a member are under way, or wait for their turn.
func (t *copyTurns) under(id cluster.NodeID) bool {
	return slices.ContainsFunc(t.line, func(x *copyTurn) bool { return x.id == id && !x.over() })
}

// next is when a scope's copy may go on: the zero time is at once. ok is false if others
// come first, or it is not there.
func (t *copyTurns) next(n *Node, id cluster.NodeID) (at time.Time, ok bool) {
	var busy []time.Time // until when others hold it up
	first := true
	for _, x := range t.line {
		switch {
		case x.id != id:
		case x.n == n && x.begun:
			return time.Time{}, true
		case x.n == n:
			ok = first
		case x.over():
		case x.begun:
			busy = append(busy, x.moved.Add(copyPatience))
		default:
			first = false
		}
	}
	if !ok || len(busy) < copiesAtOnce {
		return time.Time{}, ok
	}
	slices.SortFunc(busy, time.Time.Compare)
	return busy[len(busy)-copiesAtOnce], true
}

// moved says that a scope's copy got further. Those that wait for it are not to be taken
// for stalled.
func (t *copyTurns) moved(now time.Time, n *Node, id cluster.NodeID) {
	for _, x := range t.line {
		if x.id != id {
			continue
		}
		if x.n == n {
			x.begun, x.moved = true, now
		}
		if x.n == n || !x.begun {
			x.n.authority.HandleCopyMoved(now, id)
		}
	}
}

// afterCopies leaves of the wanted handovers those to members that are not copied to: who
// is gets the rest first, for what it then owns has to be copied back.
func (f *Farm) afterCopies(now time.Time, wanted []cluster.ScopeID) []cluster.ScopeID {
	f.lookAgain = time.Time{}
	return slices.DeleteFunc(wanted, func(id cluster.ScopeID) bool {
		s, _ := f.decided.Scope(id)
		held := f.opt.turns.under(s.Successor)
		if held {
			f.lookAgain = now.Add(handOverLook)
		}
		return held
	})
}
