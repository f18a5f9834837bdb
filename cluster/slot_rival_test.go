package cluster

import (
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
	united := false
	for {
		e, ok := p.Poll()
		if !ok {
			break
		}
		u, is := e.(Unite)
		united = united || is && u.Owner == 2
	}
	if !united || p.Uniting() {
		t.Errorf("united %v, still uniting %v", united, p.Uniting())
	}
}
