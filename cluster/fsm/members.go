package fsm

import (
	"cmp"
	"slices"
	"strings"
	"unicode"

	"tandem/proto/clusterpb"
)

func (m *Machine) member(n NodeID) *Member {
	i, ok := slices.BinarySearchFunc(m.members, n, func(p Member, n NodeID) int { return cmp.Compare(p.Node, n) })
	if !ok {
		return nil
	}
	return &m.members[i]
}

func validName(s string) bool {
	return s != "" && len(s) <= MaxName && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// addMember: a node says of itself that it is there.
func (m *Machine) addMember(by NodeID, w *clusterpb.AddMember) Result {
	p := Member{
		Node: NodeID(w.GetNode()), Name: w.GetName(), Witness: w.GetWitness(),
		MinVersion: w.GetMinVersion(), MaxVersion: w.GetMaxVersion(), Features: w.GetFeatures(),
		Process: w.GetProcess(), Store: w.GetStore(),
	}
	switch {
	case !validNode(w.GetNode()):
		return refuse(Malformed, "%d is no node ID", w.GetNode())
	case p.Node != by:
		return refuse(NotYours, "node %d speaks for node %d", by, p.Node)
	case !validName(p.Name):
		return refuse(Malformed, "a name has 1 to %d bytes, all printable", MaxName)
	case p.Process == 0 || p.Store == 0 || p.MinVersion == 0 || p.MinVersion > p.MaxVersion || w.GetFloor() > maxCounter:
		return refuse(Malformed, "process, store, versions or floor out of bounds")
	case p.MinVersion > m.version || p.MaxVersion < m.version:
		return refuse(TooNew, "node %d understands log versions %d to %d, the members use %d", p.Node, p.MinVersion, p.MaxVersion, m.version)
	}
	for i := range m.members {
		if o := &m.members[i]; o.Node != p.Node && o.State != Left && o.Name == p.Name {
			return refuse(Refused, "node %d has the name %q already", o.Node, p.Name)
		}
	}
	old := m.member(p.Node)
	var r Result
	if old != nil {
		p.State, p.Voter = old.State, old.Voter
		switch {
		case old.State == Left:
			p.State = Active
		case old.Witness != p.Witness:
			return refuse(Refused, "node %d must leave before it changes its kind", p.Node)
		}
		if p == *old && w.GetFloor() <= m.floor {
			return Result{Code: Unchanged}
		}
		if old.Process != p.Process {
			// Lost while its scopes pass on, so that none comes back to it.
			old.Lost = true
			r.Scopes = m.forget(p.Node, ReasonRestart)
		}
		*old = p
	} else {
		i, _ := slices.BinarySearchFunc(m.members, p.Node, func(o Member, n NodeID) int { return cmp.Compare(o.Node, n) })
		m.members = slices.Insert(m.members, i, p)
	}
	m.floor = max(m.floor, w.GetFloor())
	r.Scopes = append(r.Scopes, m.settleAll()...)
	r.Code = Done
	return r
}

func (m *Machine) promoteVoter(w *clusterpb.PromoteVoter) Result {
	p := m.member(NodeID(w.GetNode()))
	switch {
	case p == nil || p.State == Left:
		return refuse(Unknown, "node %d is no member", w.GetNode())
	case p.Voter:
		return Result{Code: Unchanged}
	case len(m.Voters()) >= MaxVoters:
		return refuse(Refused, "there are %d voters already", MaxVoters)
	}
	p.Voter = true
	return Result{Code: Done}
}

func (m *Machine) drain(w *clusterpb.Drain) Result {
	p, state := m.member(NodeID(w.GetNode())), Active
	if w.GetOn() {
		state = Draining
	}
	switch {
	case p == nil || p.State == Left:
		return refuse(Unknown, "node %d is no member", w.GetNode())
	case p.State == state:
		return Result{Code: Unchanged}
	}
	p.State = state
	return Result{Code: Done, Scopes: m.settleAll()}
}

// removeMember is for good, until the node joins anew. Whoever says it vouches
// that the node has stopped: its ranges may then be returned by others.
func (m *Machine) removeMember(w *clusterpb.RemoveMember) Result {
	p := m.member(NodeID(w.GetNode()))
	switch {
	case p == nil:
		return refuse(Unknown, "node %d is no member", w.GetNode())
	case p.State == Left:
		return Result{Code: Unchanged}
	}
	for i := range m.scopes {
		if s := &m.scopes[i]; s.Owner == p.Node {
			return refuse(Refused, "node %d still owns %v: drain it first, or report its loss", p.Node, s.ID)
		}
	}
	voters := m.Voters()
	if p.Voter && len(voters) == 1 {
		return refuse(Refused, "node %d is the last voter", p.Node)
	}
	p.State, p.Voter = Left, false
	for i := range m.scopes {
		drop(&m.scopes[i].Standbys, p.Node)
	}
	return Result{Code: Done, Scopes: m.forget(p.Node, ReasonNone)}
}

// reportLoss passes on all that a process owned, in one decision.
func (m *Machine) reportLoss(w *clusterpb.ReportLoss) Result {
	p := m.member(NodeID(w.GetNode()))
	switch {
	case p == nil:
		return refuse(Unknown, "node %d is no member", w.GetNode())
	case p.Process != w.GetProcess():
		return refuse(Refused, "node %d has another process by now", p.Node)
	case p.Lost || p.State == Left:
		return Result{Code: Unchanged}
	}
	p.Lost = true
	return Result{Code: Done, Scopes: m.forget(p.Node, ReasonReported)}
}

// forget takes a member out of everything that rests on its memory.
func (m *Machine) forget(n NodeID, why Reason) (changed []ScopeID) {
	for i := range m.scopes {
		s := &m.scopes[i]
		if drop(&s.Sync, n) {
			changed = append(changed, s.ID)
		}
	}
	for i := range m.scopes {
		s := &m.scopes[i]
		if s.Owner != n {
			continue
		}
		if s.Successor == n || s.Successor == 0 {
			s.vacate(why)
		} else {
			m.pass(s, why)
		}
		changed = append(changed, s.ID)
	}
	return append(changed, m.settleAll()...)
}

func drop(list *[]NodeID, n NodeID) bool {
	i := slices.Index(*list, n)
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
	return true
}
