package fsm

import (
	"bytes"
	"testing"

	"tandem/proto/clusterpb"
)

// seeds are a farm with some history, and entries for it.
func seeds() (snapshot []byte, entries [][]byte) {
	m := New()
	seq := map[NodeID]uint64{}
	add := func(by NodeID, c *clusterpb.Command) {
		seq[by]++
		c.Id, c.Version = &clusterpb.CommandID{Node: uint32(by), Life: 1, Seq: seq[by]}, 1
		entries = append(entries, Encode(c))
		m.Apply(entries[len(entries)-1])
	}
	for n := NodeID(1); n <= 4; n++ {
		add(n, joins(n, uint64(n)*100))
		add(n, delegates(n, SpaceSPI, SPINumber(256), SPINumber(1<<32-1), 1<<16))
		add(n, delegates(n, SpaceIPv6, Number{1, 0}, Number{1, 1 << 20}, 1<<10))
	}
	for _, c := range m.Plan(2) {
		add(1, c)
	}
	for _, s := range m.Scopes() {
		add(s.Owner, syncs(s.ID, s.Epoch, s.Standbys...))
	}
	s, _ := m.Scope(Slot(1, 0))
	add(1, succeeds(s.ID, s.Epoch, s.Sync[1]))
	s, _ = m.Scope(s.ID)
	add(s.Successor, takes(s.ID, s.Next, s.Epoch))
	add(1, loses(3, 300))
	add(1, drains(2, true))
	add(2, returns(2, 3))
	add(1, removes(3))
	return m.Snapshot(), entries
}

// FuzzApply: whatever an entry is, the state keeps within its bounds, two
// machines agree, and what was refused changed nothing but the memory of its ID.
func FuzzApply(f *testing.F) {
	snapshot, entries := seeds()
	for _, e := range entries {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		a, b := New(), New()
		for _, m := range []*Machine{a, b} {
			if err := m.Restore(snapshot); err != nil {
				t.Fatal(err)
			}
		}
		before := forgetful(a)
		ra, rb := a.Apply(entry), b.Apply(entry)
		if ra.Code != rb.Code || ra.Value != rb.Value || !bytes.Equal(a.Snapshot(), b.Snapshot()) {
			t.Fatal("two machines disagree")
		}
		if ra.Code != Done && !bytes.Equal(before, forgetful(a)) {
			t.Fatalf("%v changed the state", ra.Code)
		}
		if err := b.Restore(a.Snapshot()); err != nil {
			t.Fatalf("after %v: %v", ra.Code, err)
		}
	})
}

// owned is a scope with an owner and a successor.
func owned(m *Machine) *Scope {
	for i := range m.scopes {
		if m.scopes[i].Owner != 0 && m.scopes[i].Successor != 0 {
			return &m.scopes[i]
		}
	}
	panic("there is none")
}

// forgetful is the state without what is remembered of proposers.
func forgetful(m *Machine) []byte {
	c := *m
	c.sessions, c.applied = nil, 0
	return c.Snapshot()
}

// FuzzRestore: what is accepted is a state that gives the same snapshot again, and
// that goes on.
func FuzzRestore(f *testing.F) {
	snapshot, entries := seeds()
	f.Add(snapshot)
	f.Add(New().Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		m := New()
		if m.Restore(b) != nil {
			return
		}
		again := New()
		if err := again.Restore(m.Snapshot()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Snapshot(), m.Snapshot()) {
			t.Fatal("not the same")
		}
		for _, e := range entries {
			m.Apply(e)
		}
		if err := again.Restore(m.Snapshot()); err != nil {
			t.Fatalf("after entries: %v", err)
		}
	})
}

func TestRestoreRefusesWhatIsBroken(t *testing.T) {
	snapshot, _ := seeds()
	m := New()
	if err := m.Restore(snapshot); err != nil {
		t.Fatal(err)
	}
	for name, breakIt := range map[string]func(*Machine){
		"ranges overlap":         func(m *Machine) { m.ranges[1].First = m.ranges[0].First },
		"a range's ID twice":     func(m *Machine) { m.ranges[1].ID = m.ranges[0].ID },
		"a range not yet given":  func(m *Machine) { m.nextRange = 2 },
		"a range too large":      func(m *Machine) { m.ranges[0].Count = MaxRangeCount + 1 },
		"a range beyond the end": func(m *Machine) { m.ranges[0].First = SPINumber(1<<32 - 5); m.ranges = m.ranges[:1] },
		"members out of order":   func(m *Machine) { m.members[0], m.members[1] = m.members[1], m.members[0] },
		"a name twice":           func(m *Machine) { m.members[1].Name = m.members[0].Name },
		"successor not in sync":  func(m *Machine) { owned(m).Sync = nil },
		"an epoch not promised":  func(m *Machine) { s := owned(m); s.Burnt = s.Epoch.Counter },
		"owner is lost":          func(m *Machine) { m.member(owned(m).Owner).Lost = true },
		"owner stands by":        func(m *Machine) { s := owned(m); s.Standbys = []NodeID{s.Owner} },
		"a scope twice":          func(m *Machine) { m.scopes[1].ID = m.scopes[0].ID },
		"a session out of order": func(m *Machine) { m.sessions[0].outcomes[0].seq = 1 << 40 },
		"another version":        func(m *Machine) { m.version = MaxVersion + 1 },
	} {
		broken := New()
		if err := broken.Restore(snapshot); err != nil {
			t.Fatal(err)
		}
		breakIt(broken)
		before := m.Snapshot()
		if err := m.Restore(broken.Snapshot()); err == nil {
			t.Errorf("%s: accepted", name)
		} else if !bytes.Equal(before, m.Snapshot()) {
			t.Errorf("%s: refused, yet changed something", name)
		}
		m.Restore(snapshot)
	}
	if New().Restore(make([]byte, MaxSnapshot+1)) == nil {
		t.Error("a snapshot beyond all bounds is accepted")
	}
	if New().Apply(make([]byte, MaxEntry+1)).Code != Malformed {
		t.Error("an entry beyond all bounds is accepted")
	}
}
