package fsm

import "slices"

// What is asked of the state. Answers are copies.

// Clone is a copy that goes its own way.
func (m *Machine) Clone() *Machine {
	c := *m
	c.members, c.ranges, c.scopes, c.sessions = slices.Clone(m.members), slices.Clone(m.ranges), m.Scopes(), slices.Clone(m.sessions)
	for i := range c.sessions {
		c.sessions[i].outcomes = slices.Clone(c.sessions[i].outcomes)
	}
	return &c
}

// Version is the log version that all members have agreed on. A command that needs
// a later one is refused by every build alike: fields and commands are added under
// a new version only.
func (m *Machine) Version() uint32 { return m.version }

// Applied counts the entries.
func (m *Machine) Applied() uint64 { return m.applied }

// Config is the revision that the members should have.
func (m *Machine) Config() ConfigRevision { return m.config }

// StopOnQuorumLoss: a member that is cut off from the majority stops (`quorum-loss stop`).
func (m *Machine) StopOnQuorumLoss() bool { return m.stop }

// Life is the highest that a proposer of this number ever had; a new process takes a higher one.
func (m *Machine) Life(n NodeID) uint64 {
	for _, s := range m.sessions {
		if s.node == n {
			return s.life
		}
	}
	return 0
}

// Members are all that ever joined, by number.
func (m *Machine) Members() []Member { return slices.Clone(m.members) }

// Member finds one of them.
func (m *Machine) Member(n NodeID) (Member, bool) {
	if p := m.member(n); p != nil {
		return *p, true
	}
	return Member{}, false
}

// Voters are those who should vote.
func (m *Machine) Voters() (out []NodeID) {
	for _, p := range m.members {
		if p.Voter {
			out = append(out, p.Node)
		}
	}
	return out
}

// Scopes are all, by ID.
func (m *Machine) Scopes() []Scope {
	out := make([]Scope, len(m.scopes))
	for i, s := range m.scopes {
		out[i] = s.clone()
	}
	return out
}

// Scope finds one of them.
func (m *Machine) Scope(id ScopeID) (Scope, bool) {
	if s := m.scope(uint32(id)); s != nil {
		return s.clone(), true
	}
	return Scope{}, false
}

// Ranges are those of a member, by space and number; 0: all.
func (m *Machine) Ranges(n NodeID) (out []Range) {
	for _, r := range m.ranges {
		if n == 0 || r.Node == n {
			out = append(out, r)
		}
	}
	return out
}

// ScopeRanges are those for a scope, by space and number; process 0: whoever has them.
func (m *Machine) ScopeRanges(id ScopeID, n NodeID, process uint64) (out []Range) {
	for _, r := range m.ranges {
		if r.Process != 0 && r.Scope == id && (process == 0 || r.Node == n && r.Process == process) {
			out = append(out, r)
		}
	}
	return out
}

// Orphan says that the process which has a range for a scope has ended, as far as the
// members have decided it: another one of its node has joined, or the node was removed.
func (m *Machine) Orphan(r Range) bool {
	p := m.member(r.Node)
	return r.Process != 0 && (p == nil || p.Process != r.Process || p.State == Left)
}

// AnyFree says that a number from first to last is delegated to nobody.
func (m *Machine) AnyFree(s Space, first, last Number) bool {
	_, n := m.gap(s, first, last, 1)
	return n > 0 && len(m.ranges) < MaxRanges
}

// RangeOf is the range that a number lies in.
func (m *Machine) RangeOf(s Space, n Number) (Range, bool) {
	for _, r := range m.ranges {
		if r.Contains(s, n) {
			return r, true
		}
	}
	return Range{}, false
}

// Home is the member that a scope goes home to: the one that it was made for, or the node
// of its site that is or becomes active; 0: nobody.
func (m *Machine) Home(id ScopeID) NodeID { return m.home(id) }

// HandOvers are the scopes that their owner should hand to the successor now: it is
// being drained, or the successor is the member that the slot was made for, or the node
// of its site that is or becomes active.
func (m *Machine) HandOvers(owner NodeID) (out []ScopeID) {
	p := m.member(owner)
	for i := range m.scopes {
		s := &m.scopes[i]
		if p == nil || s.Owner != owner || s.Successor == 0 {
			continue
		}
		home := s.Successor == m.home(s.ID)
		if q := m.member(s.Successor); q.Able() && (home && m.turn(s) || !home && p.State == Draining) {
			out = append(out, s.ID)
		}
	}
	return out
}
