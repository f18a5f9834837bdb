package node

import (
	"slices"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
)

// copyPart is how many IKE SAs are written down for a copy at a time. With tens of
// thousands the whole would take longer than whoever watches this process allows.
const copyPart = 256

// copying is a copy for a member that joins, under way. What changes meanwhile takes
// the place of what was written down before.
type copying struct {
	node    cluster.NodeID
	process cluster.ProcessID
	left    []ipsec.IKESPIs
	entries []statesync.Entry
	at      map[ipsec.IKESPIs]int // in entries
}

// join begins a copy; a small one is whole at once.
func (n *Node) join(now time.Time, e cluster.Join) {
	n.stopCopy(e.Node)
	left := n.ike.SPIs()
	n.copies = append(n.copies, &copying{node: e.Node, process: e.Process, left: left, at: make(map[ipsec.IKESPIs]int, len(left))})
	n.opt.turns.enter(n, e.Node)
	n.copyOn(now)
}

// copyOn goes on with the oldest copy whose turn it is.
func (n *Node) copyOn(now time.Time) {
	i := slices.IndexFunc(n.copies, func(c *copying) bool {
		at, ok := n.opt.turns.next(n, c.node)
		return ok && !now.Before(at)
	})
	if i < 0 {
		return
	}
	c := n.copies[i]
	n.copyMoved(now, c.node)
	k := min(copyPart, len(c.left))
	for _, x := range n.ike.SnapshotOf(now, c.left[:k]) {
		if _, newer := c.at[x.SPIs]; !newer {
			c.put(statesync.Entry(x))
		}
	}
	if c.left = c.left[k:]; len(c.left) > 0 {
		return
	}
	n.copies = slices.Delete(n.copies, i, i+1)
	entries := slices.DeleteFunc(c.entries, func(x statesync.Entry) bool { return len(x.Value) == 0 })
	if n.slot != nil { // in a pair nobody else could bring back what has ended
		for _, s := range n.journal.Tombstones() {
			entries = append(entries, statesync.Entry{SPIs: s, PeerDeleted: true})
		}
	}
	n.journal.Join(now, c.node, c.process, entries, n.bounds())
}

func (c *copying) put(x statesync.Entry) {
	if i, ok := c.at[x.SPIs]; ok {
		c.entries[i] = x
		return
	}
	c.at[x.SPIs] = len(c.entries)
	c.entries = append(c.entries, x)
}

// changed tells the copies of a record that goes into the journal before them.
func (n *Node) changed(entries []statesync.Entry) {
	for _, c := range n.copies {
		for _, x := range entries {
			c.put(x)
		}
	}
}

// nextCopy is when copyOn has something to do.
func (n *Node) nextCopy() (t time.Time, ok bool) {
	for _, c := range n.copies {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return n.opt.turns.next(n, c.node) })
	}
	return t, ok
}

// copyMoved says that a copy for a member got further, for which other scopes' copies wait.
func (n *Node) copyMoved(now time.Time, id cluster.NodeID) {
	n.opt.turns.moved(now, n, id)
}

// stopCopy gives up the copy for a member; stopCopies those for all.
func (n *Node) stopCopy(id cluster.NodeID) {
	n.copies = slices.DeleteFunc(n.copies, func(c *copying) bool { return c.node == id })
}

func (n *Node) stopCopies() { n.copies = nil }

// toSync converts what the engine wrote down.
func toSync(in []ike.Entry) []statesync.Entry {
	out := make([]statesync.Entry, len(in))
	for i, x := range in {
		out[i] = statesync.Entry(x)
	}
	return out
}
