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

// The quorum is lost while a renewal is under way: some members may be entitled under the
// epoch that it goes to. When the quorum is back, the owner goes on above that, and until
// then those who are entitled under the epoch before stay so.
func TestAnOwnerThatStoppedInARenewalGoesOnAboveIt(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, d := owningSlot(t, now)
	for _, id := range []NodeID{2, 3} {
		m := p.peer(id)
		m.Running, m.Process, m.stream, m.heard, m.Entitled, m.Epoch, m.join, m.synced = true, ProcessID(20+id), ProcessID(20+id), true, true, p.epoch, in, now
	}
	before := p.epoch
	p.peer(3).leaving = true
	p.renew(now, "vm3 fell silent")
	renewed := p.renewal.epoch
	effectsOf(p)
	p.HandleQuorum(now, true, true)
	for _, e := range effectsOf(p) {
		switch e := e.(type) {
		case Announce:
			if e.Epoch != (Epoch{}) {
				t.Errorf("says that it owns under %v", e.Epoch)
			}
		case Own:
			t.Errorf("owns under %v without a quorum", e.Epoch)
		}
	}
	now = now.Add(time.Second)
	p.HandleQuorum(now, false, true)
	p.HandleDecided(now, d, true)
	if p.phase != owning || !renewed.Less(p.epoch) || !before.SameTenure(p.epoch) {
		t.Errorf("phase %v in epoch %v, after the renewal to %v", p.phase, p.epoch, renewed)
	}
}

// Without a quorum nothing moves that could stay: nobody would decide on standbys for who
// gets it.
func TestNoPlannedHandoverWithoutQuorum(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, d := owningSlot(t, now)
	d.Successor, d.Next, d.Sync = 2, Epoch{Counter: 2 << fsm.LocalBits, Node: 2}, []NodeID{2}
	m := p.peer(2)
	m.Running, m.Process, m.stream, m.heard, m.Entitled, m.Epoch, m.join, m.synced = true, 22, 22, true, true, p.epoch, in, now
	now = now.Add(time.Minute)
	p.HandleDecided(now, d, true)
	p.HandleQuorum(now, true, false)
	p.HandleWanted(now, true)
	p.HandleTimeout(now.Add(time.Second))
	if p.phase != owning {
		t.Fatalf("phase %v: hands over without a quorum", p.phase)
	}
	p.HandleQuorum(now.Add(2*time.Second), false, false)
	if p.phase != handing {
		t.Errorf("phase %v when the quorum is back", p.phase)
	}
}
