package cluster

import (
	"testing"
	"time"

	"tandem/cluster/fsm"
)

// entitledSlot is a slot of node 2, which node 1 is entitled to succeed in and was
// promised.
func entitledSlot(t *testing.T, now time.Time) *Slot {
	t.Helper()
	id := fsm.Slot(2, 0)
	p := NewSlot(SlotOptions{Self: 1, Name: "vm1", Scope: id, Interval: 10 * time.Millisecond, Threshold: 3})
	p.Start(now)
	e := Epoch{Counter: 1 << fsm.LocalBits, Node: 2}
	p.HandleDecided(now, fsm.Scope{ID: id, Owner: 2, Epoch: e, Successor: 1, Next: Epoch{Counter: 2 << fsm.LocalBits, Node: 1},
		Burnt: 2 << fsm.LocalBits, Standbys: []NodeID{1}, Sync: []NodeID{1}}, true)
	p.HandlePeer(now, rival(e))
	p.HandleCopied(now, e)
	if !p.HandleEntitled(now, e) {
		t.Fatal("not entitled")
	}
	return p
}

// effectsOf takes out what a slot wants done.
func effectsOf(p *Slot) (out []Effect) {
	for {
		e, ok := p.Poll()
		if !ok {
			return out
		}
		out = append(out, e)
	}
}

func owns(es []Effect) *Own {
	for _, e := range es {
		if o, ok := e.(Own); ok {
			return &o
		}
	}
	return nil
}

// A takeover that is under way when the quorum is lost does not come about where that
// means to stop; when the quorum is back it does, and is covered.
func TestATakeoverStopsWithoutQuorum(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := entitledSlot(t, now)
	now = now.Add(time.Second)
	p.HandleLoss(now, 2, LossSilence, true, 30*time.Millisecond)
	if p.phase != taking {
		t.Fatalf("phase %v after the owner was lost", p.phase)
	}
	p.HandleQuorum(now, true, true)
	next := p.decided.Next
	p.HandleClaimed(now, next, true)
	p.HandleNote(now, nil)
	p.HandleTimeout(now.Add(time.Second))
	if o := owns(effectsOf(p)); o != nil || p.phase != standing {
		t.Fatalf("owns without a quorum: %+v, phase %v", o, p.phase)
	}
	now = now.Add(2 * time.Second)
	p.HandleQuorum(now, false, false)
	p.HandleClaimed(now, next, true)
	p.HandleNote(now, nil)
	if o := owns(effectsOf(p)); o == nil || !o.Covered || !o.Trusted || o.Epoch != next {
		t.Errorf("the quorum is back, and this node owns as %+v", o)
	}
}

// A handover that is under way then fails: who hands over may take back.
func TestAHandoverFailsWithoutQuorum(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := entitledSlot(t, now)
	next := p.decided.Next
	p.HandleHandover(now, next)
	if p.phase != taking {
		t.Fatalf("phase %v after the handover", p.phase)
	}
	effectsOf(p)
	p.HandleQuorum(now, true, true)
	p.HandleClaimed(now, next, true)
	given := false
	for _, e := range effectsOf(p) {
		if _, ok := e.(Own); ok {
			t.Fatal("owns without a quorum")
		}
		x, ok := e.(Entitle)
		given = given || ok && !x.On
	}
	if p.phase != standing || !given {
		t.Errorf("phase %v, entitlement given up: %v", p.phase, given)
	}
}
