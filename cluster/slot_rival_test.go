package cluster

import (
	"slices"
	"testing"
	"time"

	"tandem/cluster/fsm"
)

// owningSlot is a slot that node 1 owns, in term 1.
func owningSlot(t *testing.T, now time.Time) (*Slot, fsm.Scope) {
	t.Helper()
	id := fsm.Slot(1, 0)
	p := NewSlot(SlotOptions{Self: 1, Name: "vm1", Scope: id, Interval: 10 * time.Millisecond, Threshold: 3})
	p.Start(now)
	d := fsm.Scope{ID: id, Owner: 1, Epoch: Epoch{Counter: 1 << fsm.LocalBits, Node: 1}, Burnt: 2 << fsm.LocalBits, Standbys: []NodeID{2, 3}}
	p.HandleDecided(now, d, true)
	if p.phase != owning {
		t.Fatalf("phase %v after the scope was given to this node", p.phase)
	}
	return p, d
}

func rival(e Epoch) Peer {
	return Peer{Node: 2, Name: "vm2", Process: 22, Running: true, Role: RoleOwner, Epoch: e, Links: []Link{{Addr: "172.31.1.2"}}}
}

// Behind a cut the others took an owner for lost and chose another. When it hears that
// one, it gives way at once, though what it hears of the log first is older.
func TestAnOwnerTakenForLostGivesWay(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, d := owningSlot(t, now)
	p.HandleQuorum(now.Add(time.Second), true, false)
	now = now.Add(3 * time.Second)
	p.HandleQuorum(now, false, false)
	p.HandleDecided(now, d, false)
	if p.phase != owning {
		t.Fatal("gave way to nobody")
	}
	p.HandlePeer(now, rival(Epoch{Counter: 2 << fsm.LocalBits, Node: 2}))
	if p.phase == owning || !p.Uniting() {
		t.Errorf("phase %v, uniting %v, beside an owner in a later term", p.phase, p.Uniting())
	}
}

// Who stopped because the quorum was lost may have gone on beside others before: what it
// did reaches the one that owns now.
func TestAnOwnerThatStoppedOwesWhatItDid(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, _ := owningSlot(t, now)
	now = now.Add(time.Second)
	p.HandleQuorum(now, true, true)
	if p.phase == owning || !p.Uniting() {
		t.Fatalf("phase %v, uniting %v after the quorum was lost", p.phase, p.Uniting())
	}
	for {
		if _, ok := p.Poll(); !ok {
			break
		}
	}
	now = now.Add(time.Second)
	p.HandleQuorum(now, false, false)
	p.HandleStream(now, 2, 22, true)
	p.HandlePeer(now, rival(Epoch{Counter: 2 << fsm.LocalBits, Node: 2}))
	if to := unites(p); !slices.Equal(to, []NodeID{2}) || !p.Uniting() {
		t.Errorf("united with %v, still uniting %v before that one has said so", to, p.Uniting())
	}
	if p.HandleUnited(now, 2); p.Uniting() {
		t.Error("still uniting when the owner has what this node did")
	}
}

// unites are the owners to which an engine's state is to be sent.
func unites(p *Slot) (to []NodeID) {
	for {
		e, ok := p.Poll()
		if !ok {
			return to
		}
		if u, is := e.(Unite); is {
			to = append(to, u.Owner)
		}
	}
}

// What an owner did behind a cut was sent to another, which handed over a moment before it
// came, or gave way and owns again: it goes to the owner after as well, once.
func TestWhatWasSentToAnOwnerThatGaveWayIsSentAgain(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, _ := owningSlot(t, now)
	now = now.Add(time.Second)
	p.HandleQuorum(now, true, true)
	p.HandleQuorum(now.Add(time.Second), false, false)
	p.HandleStream(now, 2, 22, true)
	p.HandleStream(now, 3, 33, true)
	x := rival(Epoch{Counter: 2 << fsm.LocalBits, Node: 2})
	p.HandlePeer(now, x)
	p.HandlePeer(now, x)
	if to := unites(p); !slices.Equal(to, []NodeID{2}) {
		t.Fatalf("united with %v", to)
	}
	x.Epoch.Counter++
	p.HandlePeer(now, x)
	if to := unites(p); !slices.Equal(to, []NodeID{2}) {
		t.Errorf("united with %v, when the owner had given way and owned again", to)
	}
	y := x
	y.Node, y.Name, y.Process, y.Epoch = 3, "vm3", 33, Epoch{Counter: 3 << fsm.LocalBits, Node: 3}
	x.Role = RoleStandby
	p.HandlePeer(now, x)
	p.HandlePeer(now, y)
	if to := unites(p); !slices.Equal(to, []NodeID{3}) {
		t.Errorf("united with %v, when the owner had handed over", to)
	}
	if p.HandleUnited(now, 2); !p.Uniting() {
		t.Error("the former owner's word counts for the one after it")
	}
	p.HandleUnited(now, 3)
	y.Epoch.Counter++
	if p.HandlePeer(now, y); p.Uniting() || unites(p) != nil {
		t.Error("united again with an owner that has everything")
	}
}

// Who gave way and could tell nobody what it did goes on with that when the scope is given
// back to it: the one between was lost, and unites when it is back.
func TestAnOwnerThatOwesWhatItDidKeepsIt(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, d := owningSlot(t, now)
	now = now.Add(time.Second)
	d.Owner, d.Epoch, d.Burnt = 2, Epoch{Counter: 3 << fsm.LocalBits, Node: 2}, 4<<fsm.LocalBits
	p.HandleDecided(now, d, true)
	if p.phase == owning || !p.Uniting() {
		t.Fatalf("phase %v, uniting %v when another was chosen", p.phase, p.Uniting())
	}
	for {
		if _, ok := p.Poll(); !ok {
			break
		}
	}
	now = now.Add(time.Second)
	d.Owner, d.Epoch, d.Burnt = 1, Epoch{Counter: 5 << fsm.LocalBits, Node: 1}, 6<<fsm.LocalBits
	p.HandleDecided(now, d, true)
	var own *Own
	for {
		e, ok := p.Poll()
		if !ok {
			break
		}
		if o, is := e.(Own); is {
			own = &o
		}
	}
	if own == nil || !own.Trusted || own.Covered || own.Epoch != d.Epoch {
		t.Errorf("%+v; want it to own %v with what it holds, not covered", own, d.Epoch)
	}
}

// A copy that its owner could not finish is of no use when another owns: nobody ends it.
func TestACopyOfAnOwnerThatHasGoneIsForgotten(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	id := fsm.Slot(1, 0)
	p := NewSlot(SlotOptions{Self: 3, Name: "vm3", Scope: id, Interval: 10 * time.Millisecond, Threshold: 3})
	p.Start(now)
	begun := Epoch{Counter: 2 << fsm.LocalBits, Node: 2}
	p.HandlePeer(now, rival(begun))
	p.HandleCopying(now, begun)
	renewed := begun
	renewed.Counter++
	if p.HandlePeer(now, rival(renewed)); p.Idle() {
		t.Fatal("forgotten while its owner, which has taken out another member, goes on with it")
	}
	p.HandlePeer(now, Peer{Node: 2, Name: "vm2", Process: 22, Running: true, Role: RoleStandby})
	p.HandlePeer(now, Peer{Node: 1, Name: "vm1", Process: 11, Running: true, Role: RoleOwner, Epoch: Epoch{Counter: 3 << fsm.LocalBits, Node: 1}})
	if !p.Idle() {
		t.Error("kept, though nobody will finish it")
	}
}

// An owner that gives up a copy in the middle, because the member stood still or is not
// wanted any more, goes on under the same epoch or one of the same tenure, and nobody says so.
func TestACopyThatIsGivenUpIsForgotten(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := NewSlot(SlotOptions{Self: 3, Name: "vm3", Scope: fsm.Slot(1, 0), Interval: 10 * time.Millisecond, Threshold: 3})
	p.Start(now)
	begun := Epoch{Counter: 2 << fsm.LocalBits, Node: 2}
	p.HandlePeer(now, rival(begun))
	p.HandleCopying(now, begun)
	for range 10 {
		at, ok := p.NextTimeout()
		if !ok {
			break
		}
		if now = at; p.Idle() {
			t.Fatal("forgotten at once")
		}
		p.HandleTimeout(now)
		if p.Idle() {
			return
		}
	}
	t.Error("kept, though nobody will finish it")
}

// The successor promised had taken over when the quorum was lost, and stopped as
// configured. With the quorum back nothing was decided about that, the old owner has given
// way to it, and only it can go on.
func TestASuccessorThatStoppedGoesOnAsPromised(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	id := fsm.Slot(1, 0)
	p := NewSlot(SlotOptions{Self: 2, Name: "vm2", Scope: id, Interval: 10 * time.Millisecond, Threshold: 3})
	p.Start(now)
	next := Epoch{Counter: 2 << fsm.LocalBits, Node: 2}
	d := fsm.Scope{ID: id, Owner: 1, Epoch: Epoch{Counter: 1 << fsm.LocalBits, Node: 1}, Successor: 2, Next: next, Burnt: 2 << fsm.LocalBits, Standbys: []NodeID{2}, Sync: []NodeID{2}}
	p.HandleDecided(now, d, true)
	p.own(now, Own{Epoch: next, Covered: true, Trusted: true}) // as if vm1 had been lost
	now = now.Add(time.Second)
	p.HandleQuorum(now, true, true)
	if p.phase == owning {
		t.Fatal("owns without a quorum")
	}
	now = now.Add(time.Second)
	p.HandleQuorum(now, false, true)
	p.HandleDecided(now, d, true)
	if p.phase != owning || !next.Less(p.epoch) || !next.SameTenure(p.epoch) {
		t.Errorf("phase %v in epoch %v: the slot stays without an owner", p.phase, p.epoch)
	}
}
