package fsm

import (
	"cmp"
	"slices"

	"tandem/proto/clusterpb"
)

// RangeID numbers delegations: the same numbers delegated again have another one.
type RangeID uint64

// Range is a range of numbers that one member alone gives out.
//
// A range for a scope (Process is not 0) is given out by one process alone, while that one
// owns the scope: what is in use in it stands in the scope's records, and nothing of it on
// any disk. It comes to another owner of the scope only when its process says so, or has
// ended (MoveRange); then it has another ID.
type Range struct {
	ID      RangeID
	Node    NodeID
	Store   uint64 // the disk that the member had; see Holdings
	Space   Space
	First   Number
	Count   uint64
	Process uint64 // 0: of no scope
	Scope   ScopeID
}

func validHolder(process uint64, scope uint32, space Space) bool {
	if process == 0 {
		return scope == 0
	}
	return scope < 1<<16 && ScopeID(scope).valid() && space != SpaceSPI
}

// Last is the range's last number.
func (r Range) Last() Number { return r.First.Add(r.Count - 1) }

// Contains says whether the number lies in the range.
func (r Range) Contains(s Space, n Number) bool {
	return s == r.Space && !n.Less(r.First) && !r.Last().Less(n)
}

func compareRanges(a, b Range) int {
	return cmp.Or(cmp.Compare(a.Space, b.Space), cmp.Compare(a.First.Hi, b.First.Hi), cmp.Compare(a.First.Lo, b.First.Lo))
}

func (m *Machine) delegateRange(by NodeID, w *clusterpb.DelegateRange) Result {
	p := m.member(by)
	switch {
	case w.GetNode() != uint32(by):
		return refuse(NotYours, "node %d speaks for node %d", by, w.GetNode())
	case w.GetStore() != p.Store:
		return refuse(Refused, "node %d has another disk by now", by)
	case p.Witness || p.State != Active:
		return refuse(Refused, "node %d is drained or a witness: it gives out no numbers", by)
	case w.GetSpace() < uint32(SpaceSPI) || w.GetSpace() > uint32(SpaceIPv6):
		return refuse(Malformed, "there is no space %d", w.GetSpace())
	case !validHolder(w.GetProcess(), w.GetScope(), Space(w.GetSpace())):
		return refuse(Malformed, "scope %d has no ranges of space %d", w.GetScope(), w.GetSpace())
	case w.GetProcess() != 0 && (w.GetProcess() != p.Process || m.scope(w.GetScope()) == nil):
		return refuse(Refused, "node %d has another process by now, or there is no scope %d", by, w.GetScope())
	case w.GetCount() == 0 || w.GetCount() > MaxRangeCount:
		return refuse(Malformed, "a range has 1 to %d numbers", MaxRangeCount)
	case len(m.ranges) >= MaxRanges:
		return refuse(Exhausted, "%d ranges are delegated already", len(m.ranges))
	}
	space := Space(w.GetSpace())
	first, err := space.parse(w.GetFirst())
	if err != nil {
		return refuse(Malformed, "%v", err)
	}
	last, err := space.parse(w.GetLast())
	if err != nil {
		return refuse(Malformed, "%v", err)
	}
	if last.Less(first) {
		return refuse(Malformed, "the last number lies before the first")
	}
	r := Range{ID: m.nextRange, Node: by, Store: w.GetStore(), Space: space, Process: w.GetProcess(), Scope: ScopeID(w.GetScope())}
	if c := SPINumber(m.spiCursor); space == SpaceSPI && first.Less(c) && !last.Less(c) {
		r.First, r.Count = m.gap(space, c, last, w.GetCount())
	}
	if r.Count < w.GetCount() {
		if at, n := m.gap(space, first, last, w.GetCount()); n > r.Count {
			r.First, r.Count = at, n
		}
	}
	if r.Count == 0 {
		return refuse(Exhausted, "all of it is delegated")
	}
	if space == SpaceSPI {
		m.spiCursor = max(uint32(r.First.Lo+r.Count), firstSPI) // beyond the end: from the beginning
	}
	m.nextRange++
	i, _ := slices.BinarySearchFunc(m.ranges, r, compareRanges)
	m.ranges = slices.Insert(m.ranges, i, r)
	return Result{Code: Done, Value: uint64(r.ID)}
}

// gap finds the first gap of count numbers in [first, last], or the largest smaller one.
func (m *Machine) gap(space Space, first, last Number, count uint64) (at Number, n uint64) {
	try := func(from, to Number) bool {
		if got := min(from.span(to), count); got > n {
			at, n = from, got
		}
		return n == count
	}
	for i := range m.ranges {
		r := &m.ranges[i]
		if r.Space != space || r.Last().Less(first) {
			continue
		}
		if last.Less(r.First) {
			break
		}
		if first.Less(r.First) && try(first, r.First.prev()) {
			return at, n
		}
		end := r.Last()
		if !end.Less(last) {
			return at, n
		}
		first = end.Add(1)
	}
	try(first, last)
	return at, n
}

// returnRange: whoever says so vouches that no number in it is in use, and has
// made sure on its disk that it gives out none any more.
func (m *Machine) returnRange(by NodeID, w *clusterpb.ReturnRange) Result {
	i := slices.IndexFunc(m.ranges, func(r Range) bool { return r.ID == RangeID(w.GetRange()) })
	if w.GetNode() != uint32(by) {
		return refuse(NotYours, "node %d speaks for node %d", by, w.GetNode())
	}
	if i < 0 {
		return refuse(Unknown, "range %d is not delegated", w.GetRange())
	}
	if r := m.ranges[i]; r.Process != 0 {
		if s := m.scope(uint32(r.Scope)); r.Node != by || r.Process != w.GetProcess() || s == nil || s.Owner != by {
			return refuse(NotYours, "range %d is %v's, which process %d of node %d does not own", r.ID, r.Scope, w.GetProcess(), by)
		}
	} else if r.Node != by {
		if p := m.member(r.Node); p.State != Left {
			return refuse(NotYours, "range %d is node %d's", r.ID, r.Node)
		}
	}
	m.ranges = slices.Delete(m.ranges, i, i+1)
	return Result{Code: Done}
}

// moveRange brings a range for a scope to the scope's owner. Its process has made sure
// that it gives out none of it any more, or has ended; and the owner knows what is in use.
func (m *Machine) moveRange(by NodeID, w *clusterpb.MoveRange) Result {
	i := slices.IndexFunc(m.ranges, func(r Range) bool { return r.ID == RangeID(w.GetRange()) })
	if w.GetNode() != uint32(by) {
		return refuse(NotYours, "node %d speaks for node %d", by, w.GetNode())
	}
	if i < 0 || m.ranges[i].Process == 0 {
		return refuse(Unknown, "there is no range %d for a scope", w.GetRange())
	}
	r := &m.ranges[i]
	s := m.scope(uint32(r.Scope))
	if s == nil || s.Owner == 0 {
		return refuse(Refused, "%v has no owner", r.Scope)
	}
	owner := m.member(s.Owner)
	has := r.Node == by && r.Process == w.GetProcess()
	takes := s.Owner == by && owner.Process == w.GetProcess() && (m.Orphan(*r) || w.GetEnded())
	switch {
	case r.Node == owner.Node && r.Process == owner.Process:
		return Result{Code: Unchanged, Value: uint64(r.ID)}
	case !has && !takes:
		return refuse(NotYours, "range %d is process %d of node %d's", r.ID, r.Process, r.Node)
	}
	r.ID, r.Node, r.Process, r.Store = m.nextRange, owner.Node, owner.Process, owner.Store
	m.nextRange++
	return Result{Code: Done, Value: uint64(r.ID)}
}

// Holdings is what a member knows of its own ranges beside the log: which of them
// it ever began to give numbers from (on disk), and which it is returning. A
// range is marked before its first number is given out, and before it is returned.
// So a member that starts again with nobody to ask knows ranges that are its own
// and in which no number was ever given out, though what it knows of the log may
// be old; with a lost disk it has another store, and none of the old ranges counts.
// That is worth what the disk is worth: one that was set back to an older state (a
// snapshot of a virtual machine) must count as lost.
type Holdings struct {
	Node   NodeID
	Store  uint64
	Opened []RangeID // on disk; rising

	closed []RangeID // in memory
}

// Open marks a range; numbers may be given out once the mark is on disk.
func (h *Holdings) Open(id RangeID) {
	if i, ok := slices.BinarySearch(h.Opened, id); !ok {
		h.Opened = slices.Insert(h.Opened, i, id)
	}
}

// Close marks a range that is about to be returned: nothing is given out from it
// any more. ReturnRange may be proposed once the mark is on disk.
func (h *Holdings) Close(id RangeID) {
	h.Open(id)
	if !slices.Contains(h.closed, id) {
		h.closed = append(h.closed, id)
	}
}

// Fresh are the ranges from which no number was ever given out. They may be used
// (after Open) in every state, also after starting again alone.
func (h *Holdings) Fresh(m *Machine, s Space) (out []Range) {
	for _, r := range m.ranges {
		if _, opened := slices.BinarySearch(h.Opened, r.ID); r.Space == s && r.Process == 0 && r.Node == h.Node && r.Store == h.Store && !opened {
			out = append(out, r)
		}
	}
	return out
}

// Usable are the ranges that the member's present process may give out numbers
// from: the opened ones only if it is synchronised, so that it knows what in them
// is in use, and if the log as known here says that this process has joined: what
// an earlier one returned can no longer be hidden from it.
func (h *Holdings) Usable(m *Machine, s Space, process uint64, synchronised bool) []Range {
	p := m.member(h.Node)
	if !synchronised || p == nil || p.Process != process || p.State == Left {
		return h.Fresh(m, s)
	}
	var out []Range
	for _, r := range m.ranges {
		if r.Space == s && r.Process == 0 && r.Node == h.Node && !slices.Contains(h.closed, r.ID) {
			out = append(out, r)
		}
	}
	return out
}

// Forget drops the marks of ranges that are no longer delegated, so that the disk
// holds few. The state must be one that lies on the same disk: what a restarted
// member begins with must not be older than what was forgotten.
func (h *Holdings) Forget(onDisk *Machine) {
	gone := func(id RangeID) bool {
		return id < onDisk.nextRange && !slices.ContainsFunc(onDisk.ranges, func(r Range) bool { return r.ID == id })
	}
	h.Opened = slices.DeleteFunc(h.Opened, gone)
	h.closed = slices.DeleteFunc(h.closed, gone)
}
