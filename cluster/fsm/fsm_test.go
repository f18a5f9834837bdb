package fsm

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"tandem/proto/clusterpb"
)

// farm is a machine under test and the counters of its proposers.
type farm struct {
	*Machine
	t   *testing.T
	seq map[NodeID]uint64
}

func newFarm(t *testing.T, members ...NodeID) *farm {
	f := &farm{New(), t, map[NodeID]uint64{}}
	for _, n := range members {
		f.want(Done, n, joins(n, uint64(n)*100))
	}
	return f
}

func joins(n NodeID, process uint64) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_AddMember{AddMember: &clusterpb.AddMember{
		Node: uint32(n), Name: string(rune('a'+n)) + "-gw", MinVersion: 1, MaxVersion: 1, Process: process, Store: uint64(n) * 7}}}
}

func (f *farm) apply(by NodeID, c *clusterpb.Command) Result {
	f.seq[by]++
	c.Id = &clusterpb.CommandID{Node: uint32(by), Life: 1, Seq: f.seq[by]}
	if c.Version == 0 {
		c.Version = 1
	}
	r := f.Apply(Encode(c))
	again := New()
	if err := again.Restore(f.Snapshot()); err != nil {
		f.t.Fatalf("after %v: %v", c, err)
	}
	if !bytes.Equal(again.Snapshot(), f.Snapshot()) {
		f.t.Fatalf("after %v: a restored snapshot differs", c)
	}
	return r
}

func (f *farm) want(code Code, by NodeID, c *clusterpb.Command) Result {
	f.t.Helper()
	r := f.apply(by, c)
	if r.Code != code {
		f.t.Fatalf("%v: %v (%s), want %v", c, r.Code, r.Why, code)
	}
	return r
}

func (f *farm) wantScope(id ScopeID, owner, successor NodeID, term uint64) Scope {
	f.t.Helper()
	s, _ := f.Scope(id)
	if s.Owner != owner || s.Successor != successor || s.Epoch.Term() != term {
		f.t.Fatalf("%+v, want owner %d, successor %d, term %d", s, owner, successor, term)
	}
	return s
}

func assign(id ScopeID, owner NodeID, standbys ...NodeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_AssignSlots{AssignSlots: &clusterpb.AssignSlots{Assignments: []*clusterpb.Assignment{
		{Scope: uint32(id), Owner: uint32(owner), Standbys: numbers(standbys)}}}}}
}

func syncs(id ScopeID, e Epoch, nodes ...NodeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_SetSyncSet{SetSyncSet: &clusterpb.SetSyncSet{
		Scope: uint32(id), Epoch: e.Proto(), Members: numbers(nodes)}}}
}

func succeeds(id ScopeID, e Epoch, n NodeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_SetSuccessor{SetSuccessor: &clusterpb.SetSuccessor{
		Scope: uint32(id), Epoch: e.Proto(), Node: uint32(n)}}}
}

func takes(id ScopeID, e, from Epoch) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_TakeOver{TakeOver: &clusterpb.TakeOver{
		Scope: uint32(id), Epoch: e.Proto(), From: from.Proto(), Reason: uint32(ReasonSilence)}}}
}

func renews(id ScopeID, e Epoch, above uint64) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_RenewTerm{RenewTerm: &clusterpb.RenewTerm{
		Scope: uint32(id), Epoch: e.Proto(), Above: above}}}
}

func declines(id ScopeID, e Epoch, n NodeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_Decline{Decline: &clusterpb.Decline{
		Scope: uint32(id), Epoch: e.Proto(), Node: uint32(n)}}}
}

func together(cs ...*clusterpb.Command) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_Batch{Batch: &clusterpb.Batch{Commands: cs}}}
}

func loses(n NodeID, process uint64) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_ReportLoss{ReportLoss: &clusterpb.ReportLoss{Node: uint32(n), Process: process}}}
}

func delegates(n NodeID, space Space, first, last Number, count uint64) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
		Node: uint32(n), Store: uint64(n) * 7, Space: uint32(space), First: space.Bytes(first), Last: space.Bytes(last), Count: count}}}
}

func returns(n NodeID, id RangeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_ReturnRange{ReturnRange: &clusterpb.ReturnRange{Range: uint64(id), Node: uint32(n)}}}
}

func drains(n NodeID, on bool) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_Drain{Drain: &clusterpb.Drain{Node: uint32(n), On: on}}}
}

func removes(n NodeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Node: uint32(n)}}}
}

func TestASlotPassesToItsSuccessor(t *testing.T) {
	slot := Slot(1, 3)
	start := func(t *testing.T) (*farm, Scope) {
		f := newFarm(t, 1, 2, 3)
		f.want(Done, 1, assign(slot, 1, 2, 3))
		s := f.wantScope(slot, 1, 0, 1)
		f.want(NotYours, 2, syncs(slot, s.Epoch, 2, 3))
		f.want(Done, 1, syncs(slot, s.Epoch, 2, 3))
		return f, f.wantScope(slot, 1, 2, 1)
	}
	t.Run("its own word first", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 2, takes(slot, s.Next, s.Epoch))
		after := f.wantScope(slot, 2, 3, 2)
		f.want(Done, 3, loses(1, 100))
		if again := f.wantScope(slot, 2, 3, 2); again.Next != after.Next {
			t.Error("the report changed the promise")
		}
	})
	t.Run("the leader's report first", func(t *testing.T) {
		f, s := start(t)
		if r := f.want(Done, 3, loses(1, 100)); !slices.Equal(r.Scopes, []ScopeID{slot}) {
			t.Errorf("changed: %v", r.Scopes)
		}
		f.wantScope(slot, 2, 3, 2)
		f.want(Unchanged, 2, takes(slot, s.Next, s.Epoch))
		f.want(Unchanged, 3, loses(1, 100))
	})
	t.Run("a burnt promise is void", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 1, succeeds(slot, s.Epoch, 3))
		now := f.wantScope(slot, 1, 3, 1)
		if now.Next.Term() != 3 {
			t.Errorf("promised %v", now.Next)
		}
		f.want(OldEpoch, 2, takes(slot, s.Next, s.Epoch))
		f.want(NotYours, 2, takes(slot, now.Next, s.Epoch))
		f.want(Done, 3, takes(slot, now.Next, s.Epoch))
		f.want(OldEpoch, 1, syncs(slot, s.Epoch, 2))
	})
	t.Run("the successor leaves it to whom it was promised before, who has acted", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 1, succeeds(slot, s.Epoch, 3))
		f.want(OldEpoch, 2, takes(slot, s.Next, s.Epoch))
		f.want(NotYours, 2, declines(slot, s.Epoch, 2))
		f.want(Refused, 3, declines(slot, s.Epoch, 1)) // it is the owner
		f.want(Done, 3, declines(slot, s.Epoch, 2))
		if now := f.wantScope(slot, 2, 3, 4); !s.Next.Less(now.Epoch) || now.Reason != ReasonDeclined {
			t.Errorf("%+v", now)
		}
	})
	t.Run("the owner renews its epoch by itself", func(t *testing.T) {
		f, s := start(t)
		renewed := Epoch{s.Epoch.Counter + 5, 1}
		f.want(Done, 1, syncs(slot, renewed, 2))
		f.want(Done, 2, takes(slot, Epoch{s.Next.Counter + 1, 2}, renewed))
	})
	t.Run("who is not in the sync set does not succeed", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 1, syncs(slot, s.Epoch, 3))
		f.wantScope(slot, 1, 3, 1)
		f.want(Refused, 1, succeeds(slot, s.Epoch, 2))
	})
	t.Run("without a successor nobody owns it, until it is assigned", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 1, syncs(slot, s.Epoch))
		f.want(Done, 2, loses(1, 100))
		f.wantScope(slot, 0, 0, 1)
		f.want(Refused, 2, assign(slot, 1, 2))
		f.want(Done, 1, joins(1, 101))
		f.want(Done, 2, assign(slot, 1, 2))
		if s := f.wantScope(slot, 1, 0, 3); s.Epoch.Node != 1 {
			t.Error(s)
		}
	})
	t.Run("a restarted owner's memory is gone", func(t *testing.T) {
		f, _ := start(t)
		f.want(Done, 1, joins(1, 101))
		s := f.wantScope(slot, 2, 3, 2)
		if s.Reason != ReasonRestart {
			t.Error(s.Reason)
		}
		f.want(Refused, 3, loses(1, 100))
	})
	t.Run("who was given it leaves it to another that holds the records", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 1, syncs(slot, s.Epoch, 2))
		f.want(Done, 3, loses(1, 100))
		s = f.wantScope(slot, 2, 0, 2)
		f.want(NotYours, 3, declines(slot, s.Epoch, 3))
		f.want(OldEpoch, 2, declines(slot, Epoch{1 << LocalBits, 1}, 3))
		f.want(Refused, 2, declines(slot, s.Epoch, 2))
		f.want(Refused, 2, declines(slot, s.Epoch, 1)) // lost
		f.want(Unknown, 2, declines(slot, s.Epoch, 9))
		f.want(Done, 2, declines(slot, s.Epoch, 3))
		if now := f.wantScope(slot, 3, 0, 3); now.Reason != ReasonDeclined || now.Epoch.Node != 3 {
			t.Errorf("%+v", now)
		}
		f.want(OldEpoch, 2, declines(slot, s.Epoch, 3))
	})
	t.Run("a lost standby is replaced at once", func(t *testing.T) {
		f, _ := start(t)
		f.want(Done, 1, loses(2, 200))
		s := f.wantScope(slot, 1, 3, 1)
		f.want(Refused, 1, syncs(slot, s.Epoch, 2, 3))
		f.want(Done, 2, joins(2, 200))
		f.want(Done, 1, syncs(slot, s.Epoch, 2, 3))
		f.wantScope(slot, 1, 3, 1)
	})
	t.Run("drain", func(t *testing.T) {
		f, s := start(t)
		f.want(Done, 3, drains(2, true))
		f.wantScope(slot, 1, 3, 1)
		f.want(Done, 1, drains(3, true))
		s = f.wantScope(slot, 1, 3, 1) // better than none
		f.want(Done, 1, drains(2, false))
		f.wantScope(slot, 1, 2, 1)
		f.want(Done, 1, drains(1, true))
		if got := f.HandOvers(1); !slices.Equal(got, []ScopeID{slot}) {
			t.Errorf("to hand over: %v", got)
		}
		f.want(Refused, 2, removes(1))
		s, _ = f.Scope(slot)
		f.want(Done, 2, takes(slot, s.Next, s.Epoch))
		f.want(Done, 2, removes(1))
		f.want(NotYours, 1, drains(1, false))
		f.want(Done, 1, joins(1, 101))
	})
}

func TestRepeatedAndLateCommands(t *testing.T) {
	f := newFarm(t, 1, 2)
	c := delegates(1, SpaceSPI, SPINumber(1<<16), SPINumber(1<<32-1), 1<<16)
	first := f.want(Done, 1, c)
	entry := Encode(c)
	for range 3 {
		if r := f.Apply(entry); !r.Repeated || r.Code != Done || r.Value != first.Value {
			t.Fatalf("repeated: %+v", r)
		}
	}
	if n := len(f.Ranges(1)); n != 1 {
		t.Fatalf("%d ranges", n)
	}
	// One that was refused stays refused, though it would succeed now.
	d := removes(2)
	f.want(Done, 1, assign(Slot(2, 0), 2, 1))
	f.want(Refused, 1, d)
	refused := Encode(d)
	f.want(Done, 1, loses(2, 200))
	if r := f.Apply(refused); r.Code != Refused || !r.Repeated {
		t.Fatalf("%+v", r)
	}
	// After a later one of the proposer, an earlier one is refused.
	late := drains(2, true)
	late.Id, late.Version = &clusterpb.CommandID{Node: 1, Life: 1, Seq: f.seq[1] + 1}, 1
	f.seq[1]++
	f.want(Done, 1, drains(2, true))
	f.want(Done, 1, drains(2, false))
	if r := f.Apply(Encode(late)); r.Code != Superseded {
		t.Fatalf("%+v", r)
	}
	// A new life forgets the old one for good.
	young := drains(2, true)
	young.Id, young.Version = &clusterpb.CommandID{Node: 1, Life: 5, Seq: 1}, 1
	if r := f.Apply(Encode(young)); r.Code != Done {
		t.Fatalf("%+v", r)
	}
	if r := f.apply(1, drains(2, false)); r.Code != Superseded || r.Value != 5 || f.Life(1) != 5 {
		t.Fatalf("%+v", r)
	}
}

func TestMembers(t *testing.T) {
	f := newFarm(t, 1, 2, 3, 4, 5, 6)
	for n := range uint32(5) {
		f.want(Done, 1, &clusterpb.Command{What: &clusterpb.Command_PromoteVoter{PromoteVoter: &clusterpb.PromoteVoter{Node: n + 1}}})
	}
	f.want(Refused, 1, &clusterpb.Command{What: &clusterpb.Command_PromoteVoter{PromoteVoter: &clusterpb.PromoteVoter{Node: 6}}})
	f.want(NotYours, 1, joins(2, 201))
	f.want(Unchanged, 1, joins(1, 100))
	f.want(NotYours, 9, drains(1, true))
	f.want(Unknown, 1, drains(9, true))
	w := joins(7, 700)
	w.GetAddMember().Witness, w.GetAddMember().Name = true, "witness"
	f.want(Done, 7, w)
	f.want(Refused, 1, assign(0, 7))
	f.want(Refused, 1, assign(0, 1, 7))
	f.want(Refused, 7, delegates(7, SpaceSPI, SPINumber(256), SPINumber(1<<20), 10))
	same := joins(8, 800)
	same.GetAddMember().Name = "witness"
	f.want(Refused, 8, same)
	same.GetAddMember().Name = "key\nmaterial"
	f.want(Malformed, 8, same)
	if v := f.Voters(); !slices.Equal(v, []NodeID{1, 2, 3, 4, 5}) {
		t.Error(v)
	}
}

func TestRanges(t *testing.T) {
	f := newFarm(t, 1, 2, 3)
	space, lo := AddrNumber(netip.MustParseAddr("10.0.0.10"))
	_, hi := AddrNumber(netip.MustParseAddr("10.0.0.59"))
	id := func(r Result) RangeID { return RangeID(r.Value) }
	a := id(f.want(Done, 1, delegates(1, space, lo, hi, 20)))
	b := id(f.want(Done, 2, delegates(2, space, lo, hi, 20)))
	c := id(f.want(Done, 3, delegates(3, space, lo, hi, 20)))
	f.want(Exhausted, 1, delegates(1, space, lo, hi, 1))
	if rs := f.Ranges(3); len(rs) != 1 || rs[0].Count != 10 || space.Addr(rs[0].First).String() != "10.0.0.50" {
		t.Fatalf("%+v", rs)
	}
	f.want(NotYours, 1, returns(1, b))
	f.want(Done, 2, returns(2, b))
	f.want(Unknown, 2, returns(2, b))
	d := id(f.want(Done, 3, delegates(3, space, lo.Add(25), hi, 20)))
	if r, ok := f.RangeOf(space, lo.Add(25)); !ok || r.ID != d || r.Count != 15 {
		t.Fatalf("%+v", r)
	}
	if _, ok := f.RangeOf(space, lo.Add(24)); ok {
		t.Error("a number that nobody has")
	}
	f.want(Refused, 3, func() *clusterpb.Command {
		x := delegates(3, space, lo, hi, 1)
		x.GetDelegateRange().Store++
		return x
	}())
	f.want(Done, 1, removes(3))
	f.want(Done, 1, returns(1, c))

	// To the very ends of each space.
	f.want(Done, 1, delegates(1, SpaceSPI, SPINumber(1<<32-10), SPINumber(1<<32-1), 20))
	f.want(Done, 1, delegates(1, SpaceSPI, SPINumber(256), SPINumber(1<<32-1), 20))
	f.want(Malformed, 1, delegates(1, SpaceSPI, SPINumber(255), SPINumber(300), 20))
	end := Number{^uint64(0), ^uint64(0)}
	f.want(Done, 1, delegates(1, SpaceIPv6, Number{end.Hi, end.Lo - 10}, end, 20))
	f.want(Exhausted, 1, delegates(1, SpaceIPv6, end, end, 1))
	if v6 := f.Ranges(1)[len(f.Ranges(1))-1]; v6.Count != 11 || v6.Last() != end {
		t.Errorf("%+v", v6)
	}
	_ = a
}

// SPIs are used up before any is given out again.
func TestSPIRangesComeAgainLate(t *testing.T) {
	f := newFarm(t, 1)
	var seen []Number
	for range 6 {
		r := f.want(Done, 1, delegates(1, SpaceSPI, SPINumber(1000), SPINumber(1399), 100))
		seen = append(seen, f.Ranges(1)[0].First)
		f.want(Done, 1, returns(1, RangeID(r.Value)))
	}
	want := []Number{SPINumber(1000), SPINumber(1100), SPINumber(1200), SPINumber(1300), SPINumber(1000), SPINumber(1100)}
	if !slices.Equal(seen, want) {
		t.Errorf("%v", seen)
	}
}

func TestConfigAndPolicy(t *testing.T) {
	f := newFarm(t, 1, 2)
	revision := func(n uint64, digest ...byte) *clusterpb.Command {
		return &clusterpb.Command{What: &clusterpb.Command_SetConfigRevision{SetConfigRevision: &clusterpb.SetConfigRevision{Number: n, Digest: digest}}}
	}
	d, e := bytes.Repeat([]byte{1}, DigestLen), bytes.Repeat([]byte{2}, DigestLen)
	f.want(Malformed, 1, revision(1, 1, 2, 3))
	f.want(Done, 1, revision(1, d...))
	f.want(Unchanged, 2, revision(1, d...))
	f.want(Refused, 2, revision(1, e...)) // two administrators at once: one is told
	f.want(Refused, 2, revision(3, e...))
	f.want(Done, 2, revision(2, e...))
	stop := &clusterpb.Command{What: &clusterpb.Command_SetQuorumLoss{SetQuorumLoss: &clusterpb.SetQuorumLoss{Stop: true}}}
	f.want(Done, 1, stop)
	f.want(Unchanged, 1, stop)
	if !f.StopOnQuorumLoss() || f.Config().Number != 2 {
		t.Error("not kept")
	}
}

func TestVersions(t *testing.T) {
	old, young := NewBuild(1, 1), NewBuild(1, 2)
	seq := map[NodeID]uint64{}
	both := func(code Code, by NodeID, c *clusterpb.Command) {
		t.Helper()
		seq[by]++
		c.Id, c.Version = &clusterpb.CommandID{Node: uint32(by), Life: 1, Seq: seq[by]}, max(c.Version, 1)
		a, b := old.Apply(Encode(c)), young.Apply(Encode(c))
		if a.Code != code || b.Code != code || !bytes.Equal(old.Snapshot(), young.Snapshot()) {
			t.Fatalf("%v: %+v and %+v, want %v", c, a, b, code)
		}
	}
	raise := func(v uint32) *clusterpb.Command {
		return &clusterpb.Command{What: &clusterpb.Command_SetVersion{SetVersion: &clusterpb.SetVersion{Version: v}}}
	}
	upgraded := func(n NodeID) *clusterpb.Command {
		c := joins(n, uint64(n)*100+1)
		c.GetAddMember().MaxVersion = 2
		return c
	}
	both(Done, 1, joins(1, 100))
	both(Done, 2, joins(2, 200))
	both(Done, 1, upgraded(1))
	both(Refused, 1, raise(2))
	later := raise(1)
	later.Version = 2
	both(TooNew, 1, later)
	both(Done, 2, upgraded(2))
	both(Refused, 2, raise(3))
	both(Done, 2, raise(2))
	if young.Unfit() != nil || young.Version() != 2 {
		t.Error("the new build cannot follow")
	}
	if old.Unfit() == nil {
		t.Error("the old build does not see that it cannot follow")
	}
	if err := NewBuild(1, 1).Restore(young.Snapshot()); err == nil {
		t.Error("the old build takes a snapshot that it does not understand")
	}
	if r := young.Apply(Encode(&clusterpb.Command{Id: &clusterpb.CommandID{Node: 3, Life: 1, Seq: 1}, Version: 1, What: joins(3, 300).What})); r.Code != TooNew {
		t.Errorf("an old member joins: %+v", r)
	}
}

// The plan of a farm, carried out, leaves nothing to plan; a dead member's slots
// go to different members.
func TestPlan(t *testing.T) {
	f := newFarm(t, 1, 2, 3, 4)
	settle := func() {
		t.Helper()
		for range 4 {
			for _, c := range f.Plan(2) {
				f.want(Done, 1, c)
			}
			// The owners have copied.
			for _, s := range f.Scopes() {
				if s.Owner != 0 && !slices.Equal(s.Sync, s.Standbys) {
					f.want(Done, s.Owner, syncs(s.ID, s.Epoch, s.Standbys...))
				}
			}
			// Slots go home.
			for n := NodeID(1); n <= 4; n++ {
				for _, id := range f.HandOvers(n) {
					s, _ := f.Scope(id)
					f.want(Done, s.Successor, takes(id, s.Next, s.Epoch))
				}
			}
		}
		if p := f.Plan(2); len(p) != 0 {
			t.Fatalf("the plan never ends: %v", p)
		}
	}
	settle()
	if n := len(f.Scopes()); n != 32 {
		t.Fatalf("%d slots", n)
	}
	before := f.Scopes()
	f.want(Done, 1, loses(4, 400))
	load := map[NodeID]int{}
	for _, s := range f.Scopes() {
		if s.Owner == 4 || s.Owner == 0 || s.Successor == 0 || s.Successor == 4 {
			t.Fatalf("%+v", s)
		}
		load[s.Owner]++
	}
	for n := NodeID(1); n <= 3; n++ {
		if load[n] < 10 || load[n] > 11 {
			t.Errorf("node %d owns %d slots of 32", n, load[n])
		}
	}
	settle()
	f.want(Done, 4, joins(4, 401))
	settle()
	for i, s := range f.Scopes() {
		if s.Owner != before[i].Owner || !slices.Equal(s.Standbys, before[i].Standbys) {
			t.Errorf("%+v, before the loss %+v", s, before[i])
		}
	}
	// A member that is drained owns nothing and follows nobody, but keeps what it holds:
	// routers may send to it still.
	f.want(Done, 1, drains(2, true))
	settle()
	for i, s := range f.Scopes() {
		held := before[i].Owner == 2 || slices.Contains(before[i].Standbys, 2)
		if s.Owner == 2 || s.Successor == 2 || slices.Contains(s.Sync, 2) != held || len(s.Standbys) < 2 {
			t.Errorf("drained: %+v, before %+v", s, before[i])
		}
	}
	f.want(Done, 1, drains(2, false))
	settle()
	for i, s := range f.Scopes() {
		if s.Owner != before[i].Owner || !slices.Equal(s.Standbys, before[i].Standbys) {
			t.Errorf("%+v, before the drain %+v", s, before[i])
		}
	}
}

// What can stand in an entry or a snapshot: a field that could hold anything else
// must be thought of here first.
func TestNoFieldCanHoldASecret(t *testing.T) {
	allowed := map[string]string{
		"AddMember.name": "", "DelegateRange.first": "an SPI or an address", "DelegateRange.last": "the same",
		"SetConfigRevision.digest": "keyed", "ConfigRevision.digest": "keyed", "Member.name": "", "Range.first": "",
	}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(d protoreflect.MessageDescriptor) {
		for i := range d.Fields().Len() {
			switch f := d.Fields().Get(i); f.Kind() {
			case protoreflect.MessageKind:
				if f.Message().Name() != "Command" { // a Batch holds commands again
					walk(f.Message())
				}
			case protoreflect.StringKind, protoreflect.BytesKind:
				name := strings.TrimPrefix(string(f.FullName()), "tandem.cluster.")
				if _, ok := allowed[name]; !ok {
					t.Errorf("%s can hold anything", name)
				}
			}
		}
	}
	walk((&clusterpb.Command{}).ProtoReflect().Descriptor())
	walk((&clusterpb.Farm{}).ProtoReflect().Descriptor())
}

func TestAnOwnerGoesAboveWhatARivalUsed(t *testing.T) {
	f := newFarm(t, 1, 2, 3)
	f.want(Done, 1, assign(0, 1, 2, 3))
	s, _ := f.Scope(0)
	f.want(Done, 1, syncs(0, s.Epoch, 2, 3))
	s, _ = f.Scope(0)
	used := s.Next
	f.want(Done, 1, syncs(0, s.Epoch, 3)) // node 2 fell silent, and acted behind the cut
	s, _ = f.Scope(0)
	f.want(Done, 1, renews(0, s.Epoch, used.Counter))
	n, _ := f.Scope(0)
	if n.Owner != 1 || n.Epoch.Term() <= used.Term() || n.Next.Term() <= n.Epoch.Term() || n.Successor != 3 {
		t.Errorf("%+v after a rival at %v", n, used)
	}
	f.want(OldEpoch, 3, takes(0, s.Next, s.Epoch)) // promised under the term before
}

// Several commands in one entry: each for itself, as if they had come one after the other.
func TestCommandsGoTogether(t *testing.T) {
	f := newFarm(t, 1, 2, 3)
	a, b := Slot(1, 0), Slot(1, 1)
	f.want(Done, 1, assign(a, 1, 2))
	f.want(Done, 1, assign(b, 1, 2))
	sa, sb := f.wantScope(a, 1, 0, 1), f.wantScope(b, 1, 0, 1)
	r := f.want(Done, 1, together(syncs(a, sa.Epoch, 2), syncs(a, Epoch{5 << LocalBits, 1}, 2), syncs(b, sb.Epoch, 2)))
	if !slices.Equal(r.Scopes, []ScopeID{a, b}) || r.Why == "" {
		t.Errorf("%+v", r)
	}
	sa, sb = f.wantScope(a, 1, 2, 1), f.wantScope(b, 1, 2, 1)
	f.want(Unchanged, 1, together(syncs(a, sa.Epoch, 2), syncs(b, sb.Epoch, 2)))
	f.want(NotYours, 3, together(syncs(a, sa.Epoch, 2), syncs(b, sb.Epoch, 2)))
	f.want(Done, 2, together(takes(a, sa.Next, sa.Epoch), takes(b, sb.Next, sb.Epoch)))
	f.wantScope(a, 2, 0, 2)
	f.wantScope(b, 2, 0, 2)
	for name, c := range map[string]*clusterpb.Command{
		"nothing":         together(),
		"a value":         together(delegates(1, SpaceSPI, SPINumber(256), SPINumber(4095), 64)),
		"another batch":   together(together(loses(1, 100))),
		"an ID":           together(&clusterpb.Command{Id: &clusterpb.CommandID{Node: 1}, What: loses(1, 100).What}),
		"a later version": together(&clusterpb.Command{Version: 2, What: loses(1, 100).What}),
		"too many":        together(slices.Repeat([]*clusterpb.Command{loses(1, 100)}, MaxBatch+1)...),
	} {
		if r := f.want(Malformed, 2, c); len(r.Scopes) > 0 {
			t.Error(name)
		}
	}
}
