package fsm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"tandem/proto/clusterpb"
)

// Snapshot is the whole state. The same state gives the same bytes.
func (m *Machine) Snapshot() []byte {
	f := &clusterpb.Farm{
		Version: m.version, Applied: m.applied, Floor: m.floor, NextRange: uint64(m.nextRange),
		SpiCursor: m.spiCursor, StopOnQuorumLoss: m.stop,
	}
	if m.config.Number != 0 {
		f.Config = &clusterpb.ConfigRevision{Number: m.config.Number, Digest: slices.Clone(m.config.Digest[:])}
	}
	for _, p := range m.members {
		f.Members = append(f.Members, &clusterpb.Member{
			Node: uint32(p.Node), Name: p.Name, State: uint32(p.State), Voter: p.Voter, Witness: p.Witness, Lost: p.Lost,
			MinVersion: p.MinVersion, MaxVersion: p.MaxVersion, Features: p.Features, Process: p.Process, Store: p.Store,
		})
	}
	for _, s := range m.scopes {
		f.Scopes = append(f.Scopes, &clusterpb.ScopeState{
			Scope: uint32(s.ID), Owner: uint32(s.Owner), Epoch: s.Epoch.Proto(), Successor: uint32(s.Successor),
			Next: s.Next.Proto(), Burnt: s.Burnt, Standbys: numbers(s.Standbys), Sync: numbers(s.Sync), Reason: uint32(s.Reason),
		})
	}
	for _, r := range m.ranges {
		f.Ranges = append(f.Ranges, &clusterpb.Range{
			Id: uint64(r.ID), Node: uint32(r.Node), Store: r.Store, Space: uint32(r.Space), First: r.Space.Bytes(r.First), Count: r.Count,
			Process: r.Process, Scope: uint32(r.Scope),
		})
	}
	for _, s := range m.sessions {
		t := &clusterpb.Session{Node: uint32(s.node), Life: s.life, Highest: s.highest}
		for _, o := range s.outcomes {
			t.Outcomes = append(t.Outcomes, &clusterpb.Outcome{Seq: o.seq, Code: uint32(o.code), Value: o.value})
		}
		f.Sessions = append(f.Sessions, t)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(f)
	if err != nil {
		panic(err) // names are checked when they come in
	}
	return b
}

// Fingerprint is a hash of the snapshot.
func (m *Machine) Fingerprint() [sha256.Size]byte { return sha256.Sum256(m.Snapshot()) }

// Proto is the epoch as in a message; nil for none.
func (e Epoch) Proto() *clusterpb.Epoch {
	if e == (Epoch{}) {
		return nil
	}
	return &clusterpb.Epoch{Counter: e.Counter, Node: uint32(e.Node)}
}

func numbers(nodes []NodeID) []uint32 {
	var out []uint32
	for _, n := range nodes {
		out = append(out, uint32(n))
	}
	return out
}

// Restore puts a snapshot in the place of the state. With an error the state is as before.
func (m *Machine) Restore(snapshot []byte) error {
	if len(snapshot) > MaxSnapshot {
		return fmt.Errorf("a snapshot of %d bytes is longer than %d", len(snapshot), MaxSnapshot)
	}
	f := &clusterpb.Farm{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(snapshot, f); err != nil {
		return err
	}
	n := NewBuild(m.min, m.max)
	n.version, n.applied, n.floor, n.nextRange = f.GetVersion(), f.GetApplied(), f.GetFloor(), RangeID(f.GetNextRange())
	n.spiCursor, n.stop = f.GetSpiCursor(), f.GetStopOnQuorumLoss()
	if n.checkFit(); n.unfit != nil {
		return n.unfit
	}
	if n.spiCursor < firstSPI || n.nextRange == 0 || n.floor > maxCounter {
		return errors.New("snapshot: a counter is out of bounds")
	}
	if c := f.GetConfig(); c != nil {
		if len(c.GetDigest()) != DigestLen || c.GetNumber() == 0 {
			return errors.New("snapshot: the configuration's revision is broken")
		}
		n.config = ConfigRevision{c.GetNumber(), [DigestLen]byte(c.GetDigest())}
	}
	for _, restore := range []func(*clusterpb.Farm) error{n.restoreMembers, n.restoreScopes, n.restoreRanges, n.restoreSessions} {
		if err := restore(f); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	*m = *n
	return nil
}

func (m *Machine) restoreMembers(f *clusterpb.Farm) error {
	voters := 0
	for _, w := range f.GetMembers() {
		p := Member{
			Node: NodeID(w.GetNode()), Name: w.GetName(), State: MemberState(w.GetState()), Voter: w.GetVoter(), Witness: w.GetWitness(), Lost: w.GetLost(),
			MinVersion: w.GetMinVersion(), MaxVersion: w.GetMaxVersion(), Features: w.GetFeatures(), Process: w.GetProcess(), Store: w.GetStore(),
		}
		switch {
		case !validNode(w.GetNode()) || len(m.members) > 0 && m.members[len(m.members)-1].Node >= p.Node:
			return fmt.Errorf("member %d does not exist or stands in the wrong place", w.GetNode())
		case !validName(p.Name) || w.GetState() > uint32(Left) || p.Process == 0 || p.Store == 0 || p.MinVersion == 0 || p.MinVersion > p.MaxVersion:
			return fmt.Errorf("member %d is broken", p.Node)
		case p.State == Left && p.Voter:
			return fmt.Errorf("member %d has left and votes", p.Node)
		}
		for _, o := range m.members {
			if o.Name == p.Name && o.State != Left && p.State != Left {
				return fmt.Errorf("members %d and %d have one name", o.Node, p.Node)
			}
		}
		if p.Voter {
			voters++
		}
		m.members = append(m.members, p)
	}
	if voters > MaxVoters {
		return fmt.Errorf("%d voters", voters)
	}
	return nil
}

func (m *Machine) restoreScopes(f *clusterpb.Farm) error {
	for _, w := range f.GetScopes() {
		if w.GetScope() > 1<<16-1 || !ScopeID(w.GetScope()).valid() || len(m.scopes) > 0 && m.scopes[len(m.scopes)-1].ID >= ScopeID(w.GetScope()) {
			return fmt.Errorf("scope %d does not exist or stands in the wrong place", w.GetScope())
		}
		s := Scope{
			ID: ScopeID(w.GetScope()), Owner: NodeID(w.GetOwner()), Epoch: epochOf(w.GetEpoch()), Successor: NodeID(w.GetSuccessor()),
			Next: epochOf(w.GetNext()), Burnt: w.GetBurnt(), Reason: Reason(w.GetReason()),
		}
		for _, list := range [][]uint32{w.GetStandbys(), w.GetSync()} {
			if r := m.checkList(list, s.Owner); !r.OK() {
				return fmt.Errorf("%v: %s", s.ID, r.Why)
			}
		}
		if len(w.GetStandbys()) > 0 {
			s.Standbys = nodeIDs(w.GetStandbys())
		}
		if len(w.GetSync()) > 0 {
			s.Sync = nodeIDs(w.GetSync())
		}
		if err := m.checkScope(&s, w.GetReason()); err != nil {
			return err
		}
		m.scopes = append(m.scopes, s)
	}
	return nil
}

// checkScope says what is wrong with a scope, apart from its lists.
func (m *Machine) checkScope(s *Scope, reason uint32) error {
	term := func(c uint64) bool { return c == c>>LocalBits<<LocalBits }
	switch p := m.member(s.Owner); {
	case reason >= uint32(lastReason) || s.Burnt > 1<<63:
		return fmt.Errorf("%v: a number is out of bounds", s.ID)
	case !term(s.Epoch.Counter) || !term(s.Next.Counter) || !term(s.Burnt) || s.Epoch.Counter == 0 || !validNode(uint32(s.Epoch.Node)):
		return fmt.Errorf("%v: an epoch is broken", s.ID)
	case s.Epoch.Counter > s.Burnt || s.Next.Counter > s.Burnt:
		return fmt.Errorf("%v: an epoch is higher than any that was promised", s.ID)
	case s.Owner != 0 && (p == nil || p.State == Left || p.Lost || p.Witness || s.Epoch.Node != s.Owner):
		return fmt.Errorf("%v: its owner cannot own it", s.ID)
	case s.Owner == 0 && (s.Successor != 0 || len(s.Sync) != 0):
		return fmt.Errorf("%v: it has no owner, yet a successor", s.ID)
	case (s.Successor == 0) != (s.Next == Epoch{}) || s.Next.Node != s.Successor:
		return fmt.Errorf("%v: its successor and the promised epoch differ", s.ID)
	case s.Successor != 0 && (!m.mayFollow(s, s.Successor, true) || s.Next.Counter <= s.Epoch.Counter):
		return fmt.Errorf("%v: its successor cannot succeed", s.ID)
	}
	for _, n := range s.Sync {
		if m.member(n).Lost {
			return fmt.Errorf("%v: member %d of its sync set is lost", s.ID, n)
		}
	}
	return nil
}

func (m *Machine) restoreRanges(f *clusterpb.Farm) error {
	if len(f.GetRanges()) > MaxRanges {
		return fmt.Errorf("%d ranges", len(f.GetRanges()))
	}
	ids := map[RangeID]bool{}
	for _, w := range f.GetRanges() {
		r := Range{ID: RangeID(w.GetId()), Node: NodeID(w.GetNode()), Store: w.GetStore(), Space: Space(w.GetSpace()), Count: w.GetCount(),
			Process: w.GetProcess(), Scope: ScopeID(w.GetScope())}
		if w.GetSpace() < uint32(SpaceSPI) || w.GetSpace() > uint32(SpaceIPv6) || r.Count == 0 || r.Count > MaxRangeCount ||
			r.ID == 0 || r.ID >= m.nextRange || ids[r.ID] || r.Store == 0 || m.member(r.Node) == nil || !validHolder(w.GetProcess(), w.GetScope(), r.Space) {
			return fmt.Errorf("range %d is broken", w.GetId())
		}
		ids[r.ID] = true
		var err error
		if r.First, err = r.Space.parse(w.GetFirst()); err != nil {
			return fmt.Errorf("range %d: %w", r.ID, err)
		}
		if r.Last().Less(r.First) || r.Space != SpaceIPv6 && r.Last().Lo > 1<<32-1 {
			return fmt.Errorf("range %d goes beyond the end", r.ID)
		}
		if k := len(m.ranges); k > 0 && m.ranges[k-1].Space == r.Space && !m.ranges[k-1].Last().Less(r.First) ||
			k > 0 && m.ranges[k-1].Space > r.Space {
			return fmt.Errorf("range %d overlaps another, or stands in the wrong place", r.ID)
		}
		m.ranges = append(m.ranges, r)
	}
	return nil
}

func (m *Machine) restoreSessions(f *clusterpb.Farm) error {
	for _, w := range f.GetSessions() {
		s := session{node: NodeID(w.GetNode()), life: w.GetLife(), highest: w.GetHighest()}
		if k := len(m.sessions); !validNode(w.GetNode()) || k > 0 && m.sessions[k-1].node >= s.node || s.life == 0 || len(w.GetOutcomes()) > remembered {
			return fmt.Errorf("the session of node %d is broken", w.GetNode())
		}
		var last uint64
		for _, o := range w.GetOutcomes() {
			if o.GetSeq() <= last || o.GetSeq() > s.highest || o.GetCode() == 0 || o.GetCode() >= uint32(lastCode) {
				return fmt.Errorf("the session of node %d is broken", w.GetNode())
			}
			last = o.GetSeq()
			s.outcomes = append(s.outcomes, outcome{o.GetSeq(), Code(o.GetCode()), o.GetValue()})
		}
		m.sessions = append(m.sessions, s)
	}
	return nil
}
