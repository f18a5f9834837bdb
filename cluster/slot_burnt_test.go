package cluster

import (
	"testing"
	"time"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// changed is the scope of entitledSlot when node to was promised it in the other's place,
// of nodes 1 and 3.
func changed(d fsm.Scope, to NodeID) fsm.Scope {
	d.Successor, d.Standbys, d.Sync = to, []NodeID{1, 3}, []NodeID{1, 3}
	d.Burnt += 1 << fsm.LocalBits
	d.Next = Epoch{Counter: d.Burnt, Node: to}
	return d
}

// vm3 is node 3, which stands by for the scope, or owns it.
func vm3(owns Epoch) Peer {
	x := Peer{Node: 3, Name: "vm3", Process: 33, Running: true, Entitled: true, Epoch: e(1, 0, 2), Links: []Link{{Addr: "172.31.1.3"}}}
	if owns != (Epoch{}) {
		x.Role, x.Epoch, x.Entitled = RoleOwner, owns, false
	}
	return x
}

func declinesTo(es []Effect) (d *clusterpb.Decline) {
	for _, x := range es {
		if y, ok := x.(Propose); ok && y.Command.GetDecline() != nil {
			d = y.Command.GetDecline()
		}
	}
	return d
}

// promisedAfter is node 1's slot: node 3 was promised the scope, then node 1; then the
// owner ended.
func promisedAfter(t *testing.T, now time.Time, other *Peer, wait time.Duration) *Slot {
	t.Helper()
	p := entitledSlot(t, now)
	before := changed(p.decided, 3)
	p.HandleDecided(now, before, true)
	if other != nil {
		p.HandlePeer(now, *other)
	}
	p.HandleDecided(now, changed(before, 1), true)
	effectsOf(p)
	p.HandleLoss(now.Add(wait), 2, LossDeath, true, time.Millisecond)
	return p
}

// Two members must not act at once because one of them has not heard yet that the other
// was promised the scope in its place.
func TestAChangedPromiseSettlesFirst(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	x := vm3(Epoch{})
	p := promisedAfter(t, now, &x, time.Millisecond)
	if p.phase == taking {
		t.Fatal("acts at once; node 3 may not have heard yet that it is promised the scope no more")
	}
	at, ok := p.NextTimeout()
	if !ok || at.After(now.Add(promiseSettles)) {
		t.Fatalf("looks again at %v, %v", at, ok)
	}
	p.HandleTimeout(now.Add(promiseSettles))
	p.HandleClaimed(now.Add(promiseSettles), p.decided.Next, true)
	if o := owns(effectsOf(p)); o == nil || !o.Covered || !o.Trusted || o.Epoch != p.decided.Next {
		t.Errorf("owns as %+v when nobody else does", o)
	}
	if p := promisedAfter(t, now, &x, promiseSettles); p.phase != taking {
		t.Errorf("phase %v; node 3 has heard of the change long ago", p.phase)
	}
	if p := promisedAfter(t, now, nil, time.Millisecond); p.phase != taking {
		t.Errorf("phase %v; nobody else lives", p.phase)
	}
	p = promisedAfter(t, now, &x, time.Millisecond)
	if p.HandleLoss(now.Add(2*time.Millisecond), 3, LossDeath, false, time.Millisecond); p.phase != taking {
		t.Errorf("phase %v after node 3 ended, too", p.phase)
	}
}

// Who acted on a promise that had just been changed goes on, and the one promised after
// leaves the scope to it: peers notice nothing.
func TestWhoWasPromisedAfterLeavesItToWhoActed(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	x := vm3(Epoch{})
	p := promisedAfter(t, now, &x, time.Millisecond)
	now = now.Add(2 * time.Millisecond)
	used := changed(p.decided, 3).Next
	used.Counter = p.decided.Next.Counter - 1<<fsm.LocalBits
	p.HandlePeer(now, vm3(used))
	es := effectsOf(p)
	if d := declinesTo(es); p.phase != standing || d.GetNode() != 3 || d.GetEpoch().GetCounter() != p.decided.Epoch.Counter {
		t.Errorf("phase %v, declines %v", p.phase, d)
	}
	for _, x := range es {
		if y, ok := x.(Propose); ok && y.Command.GetRenewTerm() != nil {
			t.Error("asks for a later term for an owner that was lost")
		}
	}
	p.HandleTimeout(now.Add(time.Second))
	if o := owns(effectsOf(p)); o != nil {
		t.Errorf("owns beside node 3: %+v", o)
	}
}

func TestWhoActedOnAChangedPromiseGoesOn(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	acted := func() *Slot {
		p := entitledSlot(t, now)
		p.HandlePeer(now, vm3(Epoch{}))
		next := p.decided.Next
		p.HandleLoss(now, 2, LossDeath, true, time.Millisecond)
		p.HandleClaimed(now, next, true)
		if p.phase != owning {
			t.Fatalf("phase %v after the owner ended", p.phase)
		}
		p.HandleDecided(now, changed(p.decided, 3), true)
		return p
	}
	p := acted()
	if p.phase != owning {
		t.Fatal("gives way to an owner that ended")
	}
	d := p.decided
	d.Owner, d.Successor, d.Next, d.Reason = 1, 0, Epoch{}, fsm.ReasonDeclined
	d.Burnt += 1 << fsm.LocalBits
	d.Epoch = Epoch{Counter: d.Burnt, Node: 1}
	effectsOf(p)
	p.HandleDecided(now, d, true)
	if o := owns(effectsOf(p)); o == nil || !o.Renewal || o.Epoch != d.Epoch {
		t.Errorf("node 3 declined, and this node owns as %+v", o)
	}

	p = acted()
	p.HandlePeer(now, vm3(p.decided.Next))
	if p.phase == owning || !p.Uniting() {
		t.Errorf("phase %v, uniting %v beside the one promised after, which acted, too", p.phase, p.Uniting())
	}
	p = acted()
	p.HandlePeer(now, rival(p.decided.Epoch))
	if p.phase == owning || !p.Uniting() {
		t.Errorf("phase %v, uniting %v beside the owner, which was only silent", p.phase, p.Uniting())
	}
}

// The plan moves the promise while its slot is handed over. Who got it goes on, and who
// handed it over leaves it to that one instead of having it "given back" without its SAs.
func TestAHandoverOutlivesAMovedPromise(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := entitledSlot(t, now)
	owned, next := p.decided.Epoch, p.decided.Next
	p.HandleHandover(now, next)
	p.HandleClaimed(now, next, true)
	if p.phase != owning {
		t.Fatalf("phase %v after the handover", p.phase)
	}
	old := rival(next) // follows us by now
	old.Role = RoleStandby
	p.HandlePeer(now, old)
	p.HandleDecided(now, changed(p.decided, 3), true)
	if p.phase != owning {
		t.Error("gives way to the owner that has handed over")
	}

	// Node 1 is the one that hands over, to node 2.
	p, d := owningSlot(t, now)
	d.Successor, d.Next, d.Sync = 2, Epoch{Counter: 2 << fsm.LocalBits, Node: 2}, []NodeID{2, 3}
	for _, id := range []NodeID{2, 3} {
		m := p.peer(id)
		m.Running, m.Process, m.stream, m.heard, m.Entitled, m.Epoch, m.join, m.synced = true, ProcessID(20+id), ProcessID(20+id), true, true, p.epoch, in, now
	}
	now = now.Add(time.Minute)
	p.HandleDecided(now, d, true)
	p.HandleWanted(now, true)
	if p.phase != handing {
		t.Fatalf("phase %v when the plan wants it at node 2", p.phase)
	}
	p.HandlePeer(now, rival(d.Next))
	if p.phase != standing {
		t.Fatalf("phase %v when node 2 owns", p.phase)
	}
	effectsOf(p)
	d.Successor, d.Burnt = 3, d.Burnt+1<<fsm.LocalBits
	d.Next = Epoch{Counter: d.Burnt, Node: 3}
	p.HandleDecided(now, d, true)
	es := effectsOf(p)
	if x := declinesTo(es); x.GetNode() != 2 || x.GetEpoch().GetCounter() != owned.Counter {
		t.Errorf("declines %v", x)
	}
	for _, x := range es {
		if y, ok := x.(Propose); ok && y.Command.GetRenewTerm() != nil {
			t.Error("asks for a later term for itself")
		}
	}
	p.HandleTimeout(now.Add(3 * time.Second))
	if o := owns(effectsOf(p)); o != nil {
		t.Errorf("owns beside node 2: %+v", o)
	}
}
