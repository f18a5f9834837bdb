package fsm

import (
	"cmp"
	"slices"

	"tandem/proto/clusterpb"
)

func (m *Machine) scope(id uint32) *Scope {
	if id > 1<<16-1 {
		return nil
	}
	i, ok := slices.BinarySearchFunc(m.scopes, ScopeID(id), func(s Scope, id ScopeID) int { return cmp.Compare(s.ID, id) })
	if !ok {
		return nil
	}
	return &m.scopes[i]
}

func epochOf(e *clusterpb.Epoch) Epoch { return Epoch{e.GetCounter(), NodeID(e.GetNode())} }

// promise takes the next term for a node. It is burnt from now on, used or not.
func (m *Machine) promise(s *Scope, n NodeID) Epoch {
	s.Burnt = termAbove(max(s.Burnt, m.floor))
	return Epoch{s.Burnt, n}
}

// mayFollow says whether a member may be the scope's successor. One that is being
// drained is better than none.
func (m *Machine) mayFollow(s *Scope, n NodeID, draining bool) bool {
	p := m.member(n)
	return p != nil && n != s.Owner && slices.Contains(s.Sync, n) && !p.Lost && !p.Witness &&
		(p.State == Active || draining && p.State == Draining)
}

// first is the best successor: the first of the standbys, else of the sync set.
func (m *Machine) first(s *Scope) NodeID {
	for _, draining := range []bool{false, true} {
		for _, list := range [][]NodeID{s.Standbys, s.Sync} {
			for _, n := range list {
				if m.mayFollow(s, n, draining) {
					return n
				}
			}
		}
	}
	return 0
}

// settle sees to it that the scope has an able successor if it can have one. It
// keeps the one it has.
func (m *Machine) settle(s *Scope) bool {
	if s.Owner == 0 || s.Successor != 0 && m.mayFollow(s, s.Successor, false) {
		return false
	}
	n := m.first(s)
	if n == s.Successor || n != 0 && !m.mayFollow(s, n, false) && m.mayFollow(s, s.Successor, true) {
		return false
	}
	s.Successor, s.Next = n, Epoch{}
	if n != 0 {
		s.Next = m.promise(s, n)
	}
	return true
}

func (m *Machine) settleAll() (changed []ScopeID) {
	for i := range m.scopes {
		if m.settle(&m.scopes[i]) {
			changed = append(changed, m.scopes[i].ID)
		}
	}
	return changed
}

// pass gives the scope to its successor, who may have acted already, and promises
// the next. The rest of the sync set holds what the old owner acknowledged.
func (m *Machine) pass(s *Scope, why Reason) {
	s.Owner, s.Epoch, s.Reason = s.Successor, s.Next, why
	s.Successor, s.Next = 0, Epoch{}
	drop(&s.Sync, s.Owner)
	drop(&s.Standbys, s.Owner)
	m.settle(s)
}

// vacate leaves the scope to nobody: its state is lost.
func (s *Scope) vacate(why Reason) {
	s.Owner, s.Successor, s.Next, s.Sync, s.Reason = 0, 0, Epoch{}, nil, why
}

func (m *Machine) assignSlots(w *clusterpb.AssignSlots) Result {
	as := w.GetAssignments()
	if len(as) == 0 || len(as) > MaxVClusters+MaxNodes*SlotsPerMember {
		return refuse(Malformed, "%d assignments", len(as))
	}
	// All are checked before the first is done.
	seen := map[uint32]bool{}
	for _, a := range as {
		if a.GetScope() > 1<<16-1 || !ScopeID(a.GetScope()).valid() || seen[a.GetScope()] {
			return refuse(Malformed, "scope %d does not exist or is named twice", a.GetScope())
		}
		seen[a.GetScope()] = true
		if r := m.checkAssignment(a); !r.OK() {
			return r
		}
	}
	var changed []ScopeID
	for _, a := range as {
		if m.assign(a) {
			changed = append(changed, ScopeID(a.GetScope()))
		}
	}
	if len(changed) == 0 {
		return Result{Code: Unchanged}
	}
	return Result{Code: Done, Scopes: changed}
}

func (m *Machine) checkAssignment(a *clusterpb.Assignment) Result {
	id, owner := ScopeID(a.GetScope()), NodeID(a.GetOwner())
	p := m.member(owner)
	s := m.scope(a.GetScope())
	switch {
	case p == nil || p.State == Left:
		return refuse(Unknown, "node %d is no member", owner)
	case s != nil && s.Owner != 0 && s.Owner != owner:
		return refuse(Refused, "%v is owned by node %d: it is handed over, not assigned", id, s.Owner)
	case (s == nil || s.Owner == 0) && !p.Able():
		return refuse(Refused, "node %d is lost, drained or a witness: it cannot own %v", owner, id)
	}
	return m.checkList(a.GetStandbys(), owner)
}

// checkList checks standbys or a sync set: distinct members, not the owner.
func (m *Machine) checkList(nodes []uint32, owner NodeID) Result {
	var seen [MaxNodes + 1]bool
	for _, n := range nodes {
		if !validNode(n) || seen[n] || NodeID(n) == owner {
			return refuse(Malformed, "node %d stands twice in the list, owns the scope, or cannot exist", n)
		}
		seen[n] = true
		if p := m.member(NodeID(n)); p == nil || p.State == Left {
			return refuse(Unknown, "node %d is no member", n)
		} else if p.Witness {
			return refuse(Refused, "node %d is a witness: it holds no records", n)
		}
	}
	return Result{Code: Done}
}

func nodeIDs(nodes []uint32) []NodeID {
	out := make([]NodeID, len(nodes))
	for i, n := range nodes {
		out[i] = NodeID(n)
	}
	return out
}

func (m *Machine) assign(a *clusterpb.Assignment) (changed bool) {
	id := ScopeID(a.GetScope())
	i, ok := slices.BinarySearchFunc(m.scopes, id, func(s Scope, id ScopeID) int { return cmp.Compare(s.ID, id) })
	if !ok {
		m.scopes = slices.Insert(m.scopes, i, Scope{ID: id})
	}
	s := &m.scopes[i]
	if s.Owner == 0 {
		s.Owner, s.Reason, changed = NodeID(a.GetOwner()), ReasonAssigned, true
		s.Epoch = m.promise(s, s.Owner)
	}
	if want := nodeIDs(a.GetStandbys()); !slices.Equal(want, s.Standbys) {
		s.Standbys, changed = want, true
	}
	return m.settle(s) || changed
}

// tenure finds the scope that a command speaks of, if its epoch is the present owner's.
func (m *Machine) tenure(id uint32, e Epoch) (*Scope, Result) {
	s := m.scope(id)
	switch {
	case s == nil:
		return nil, refuse(Unknown, "there is no scope %d", id)
	case s.Owner == 0:
		return nil, refuse(Refused, "%v has no owner", s.ID)
	case !s.Epoch.SameTenure(e):
		return nil, refuse(OldEpoch, "%v is at %v, not %v", s.ID, s.Epoch, e)
	}
	return s, Result{Code: Done}
}

func (m *Machine) setSyncSet(by NodeID, w *clusterpb.SetSyncSet) Result {
	s, r := m.tenure(w.GetScope(), epochOf(w.GetEpoch()))
	if s == nil {
		return r
	}
	if by != s.Owner {
		return refuse(NotYours, "only node %d says who holds the records of %v", s.Owner, s.ID)
	}
	if r := m.checkList(w.GetMembers(), s.Owner); !r.OK() {
		return r
	}
	for _, n := range w.GetMembers() {
		if m.member(NodeID(n)).Lost {
			return refuse(Refused, "node %d is lost", n)
		}
	}
	want := nodeIDs(w.GetMembers())
	if slices.Equal(want, s.Sync) {
		return Result{Code: Unchanged}
	}
	s.Sync = want
	m.settle(s)
	return Result{Code: Done, Scopes: []ScopeID{s.ID}}
}

func (m *Machine) setSuccessor(w *clusterpb.SetSuccessor) Result {
	s, r := m.tenure(w.GetScope(), epochOf(w.GetEpoch()))
	if s == nil {
		return r
	}
	n := NodeID(w.GetNode())
	if n == 0 {
		n = m.first(s)
	}
	switch {
	case n == s.Successor:
		return Result{Code: Unchanged}
	case !m.mayFollow(s, n, false) && n != m.first(s):
		return refuse(Refused, "node %d is not in the sync set of %v, or not able", n, s.ID)
	}
	s.Successor, s.Next = n, Epoch{}
	if n != 0 {
		s.Next = m.promise(s, n)
	}
	return Result{Code: Done, Scopes: []ScopeID{s.ID}}
}

// takeOver is the successor's word that it has acted.
func (m *Machine) takeOver(by NodeID, w *clusterpb.TakeOver) Result {
	e, from := epochOf(w.GetEpoch()), epochOf(w.GetFrom())
	s := m.scope(w.GetScope())
	switch {
	case s == nil:
		return refuse(Unknown, "there is no scope %d", w.GetScope())
	case w.GetReason() == 0 || w.GetReason() >= uint32(lastReason):
		return refuse(Malformed, "%d is no reason", w.GetReason())
	case by != e.Node:
		return refuse(NotYours, "node %d speaks for node %d", by, e.Node)
	case s.Owner != 0 && s.Epoch.SameTenure(e):
		return Result{Code: Unchanged}
	case s.Successor == 0 || !s.Next.SameTenure(e):
		return refuse(OldEpoch, "%v is at %v and promises %v: %v was burnt or never promised", s.ID, s.Epoch, s.Next, e)
	case !s.Epoch.SameTenure(from):
		return refuse(OldEpoch, "%v is at %v, not %v", s.ID, s.Epoch, from)
	}
	m.pass(s, Reason(w.GetReason()))
	return Result{Code: Done, Scopes: []ScopeID{s.ID}}
}

// decline gives the scope to the member that its owner names, who has not acted, or the
// successor of an owner that was lost.
func (m *Machine) decline(by NodeID, w *clusterpb.Decline) Result {
	s, r := m.tenure(w.GetScope(), epochOf(w.GetEpoch()))
	if s == nil {
		return r
	}
	p := m.member(NodeID(w.GetNode()))
	switch {
	case by != s.Owner && by != s.Successor:
		return refuse(NotYours, "only node %d can decline %v, or node %d", s.Owner, s.ID, s.Successor)
	case p == nil || p.State == Left:
		return refuse(Unknown, "node %d is no member", w.GetNode())
	case p.Lost || p.Witness || p.Node == by || p.Node == s.Owner:
		return refuse(Refused, "node %d cannot own %v in the place of node %d", p.Node, s.ID, by)
	}
	s.Owner, s.Reason = p.Node, ReasonDeclined
	s.Epoch = m.promise(s, p.Node)
	drop(&s.Sync, p.Node)
	drop(&s.Standbys, p.Node)
	s.Successor, s.Next = 0, Epoch{} // promised beneath the new epoch
	m.settle(s)
	return Result{Code: Done, Scopes: []ScopeID{s.ID}}
}

// renewTerm makes the owner go above what a rival used behind a cut. Whoever knows of it
// may say so: the rival itself, too, which would refuse the owner's copies otherwise.
func (m *Machine) renewTerm(w *clusterpb.RenewTerm) Result {
	s, r := m.tenure(w.GetScope(), epochOf(w.GetEpoch()))
	switch {
	case s == nil:
		return r
	case w.GetAbove() >= maxCounter:
		return refuse(Malformed, "%d is no counter", w.GetAbove())
	case w.GetAbove() < s.Epoch.Counter:
		return Result{Code: Unchanged}
	}
	s.Burnt = max(s.Burnt, w.GetAbove())
	s.Epoch = m.promise(s, s.Owner)
	if s.Successor != 0 {
		s.Next = m.promise(s, s.Successor)
	}
	return Result{Code: Done, Scopes: []ScopeID{s.ID}}
}
