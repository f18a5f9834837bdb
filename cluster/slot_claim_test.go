package cluster

import (
	"testing"
	"time"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// lostOwner is a slot of node 2, which was lost; node 1 was entitled to succeed it, and
// node 3 is promised to.
func lostOwner(t *testing.T, now time.Time) (*Slot, fsm.Scope) {
	t.Helper()
	p := entitledSlot(t, now)
	d := p.decided
	d.Successor, d.Next, d.Burnt, d.Standbys, d.Sync = 3, e(3, 0, 3), 3<<fsm.LocalBits, []NodeID{1, 3}, []NodeID{1, 3}
	p.HandleDecided(now, d, true)
	p.HandlePeer(now, Peer{Node: 3, Name: "vm3", Process: 33, Running: true, Entitled: true, Epoch: d.Epoch, Links: []Link{{Addr: "172.31.1.3"}}})
	p.HandleLoss(now, 2, LossDeath, true, 30*time.Millisecond)
	if o := owns(effectsOf(p)); o != nil {
		t.Fatalf("owns what another was promised: %+v", o)
	}
	return p, d
}

// passed is the scope when node 3 had it, and was lost, too.
func passed(d fsm.Scope, to NodeID) fsm.Scope {
	d.Owner, d.Epoch, d.Successor, d.Next, d.Standbys, d.Sync = to, e(d.Next.Term()+uint64(2*to), 0, to), 0, Epoch{}, nil, nil
	d.Burnt = d.Epoch.Counter
	return d
}

// Whoever was entitled when the owner was lost holds what was acknowledged last until
// another is heard to own.
func TestAClaimLastsUntilAnotherOwns(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	tests := map[string]struct {
		between func(p *Slot, d fsm.Scope)
		covered bool
	}{
		"the successor ended without having acted": {func(p *Slot, d fsm.Scope) {
			p.HandleDecided(now, passed(d, 3), true)
			p.HandleLoss(now, 3, LossDeath, false, time.Millisecond)
		}, true},
		"a decision of long ago is heard": {func(p *Slot, d fsm.Scope) {
			old := passed(d, 3)
			old.Epoch = e(0, 1, 3)
			p.HandleLoss(now, 3, LossSilence, false, time.Millisecond)
			p.HandleDecided(now, old, true)
		}, true},
		"the successor fell silent: it may have acted": {func(p *Slot, d fsm.Scope) {
			p.HandleLoss(now, 3, LossSilence, false, time.Millisecond)
			p.HandleDecided(now, passed(d, 3), true)
		}, false},
		"the successor owned": {func(p *Slot, d fsm.Scope) {
			p.HandlePeer(now, Peer{Node: 3, Name: "vm3", Process: 33, Running: true, Role: RoleOwner, Epoch: d.Next, Links: []Link{{Addr: "172.31.1.3"}}})
			p.HandleLoss(now, 3, LossDeath, false, time.Millisecond)
		}, false},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			p, d := lostOwner(t, now)
			c.between(p, d)
			mine := passed(d, 1)
			mine.Epoch.Counter += 8 << fsm.LocalBits
			p.HandleDecided(now, mine, true)
			p.HandleClaimed(now, mine.Epoch, true)
			o := owns(effectsOf(p))
			if o == nil || o.Covered != c.covered || o.Trusted != c.covered {
				t.Errorf("owns as %+v; want it covered and trusted: %v", o, c.covered)
			}
		})
	}
}

// The end of a copy that comes after its owner was lost changes nothing about the claim.
func TestACopyThatComesTooLateKeepsTheClaim(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p, d := lostOwner(t, now)
	p.HandleCopied(now, e(1, 1, 2))
	if es := effectsOf(p); len(es) != 0 {
		t.Errorf("a lost owner's copy led to %v", es)
	}
	mine := passed(d, 1)
	p.HandleDecided(now, mine, true)
	p.HandleClaimed(now, mine.Epoch, true)
	if o := owns(effectsOf(p)); o == nil || !o.Covered {
		t.Errorf("owns as %+v", o)
	}
}

// A node that was given a scope leaves it to a member that says it is entitled: that one
// holds what was acknowledged last. It does not wait for ever.
func TestAScopeIsLeftToWhoHoldsIt(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	id := fsm.Slot(2, 0)
	given := func(heard ...Peer) (*Slot, *clusterpb.Decline) {
		p := NewSlot(SlotOptions{Self: 1, Name: "vm1", Scope: id, Interval: 10 * time.Millisecond, Threshold: 3})
		p.Start(now)
		for _, x := range heard {
			x.Running, x.Links = true, []Link{{Addr: "172.31.1.9"}}
			p.HandlePeer(now, x)
		}
		p.HandleDecided(now, fsm.Scope{ID: id, Owner: 1, Epoch: e(3, 0, 1), Burnt: 3 << fsm.LocalBits}, true)
		var d *clusterpb.Decline
		for _, x := range effectsOf(p) {
			if y, ok := x.(Propose); ok {
				d = y.Command.GetDecline()
			}
		}
		return p, d
	}
	p, d := given(Peer{Node: 3, Process: 33, Entitled: true, Epoch: e(1, 2, 2)}, Peer{Node: 4, Process: 44, Entitled: true, Epoch: e(1, 1, 2)})
	if p.phase == owning || d.GetNode() != 3 || d.GetScope() != uint32(id) || d.GetEpoch().GetCounter() != 3<<fsm.LocalBits {
		t.Errorf("phase %v, declines %v; node 3 was entitled last", p.phase, d)
	}
	for at := time.Duration(0); at <= patience; at += proposeAgain / 2 {
		p.HandleTimeout(now.Add(at))
	}
	if p.phase != owning {
		t.Error("waits for ever")
	}
	for name, x := range map[string]Peer{
		"the owner used an epoch after it": {Node: 2, Process: 22, Epoch: e(1, 3, 2)},
		"nobody is entitled":               {Node: 2, Process: 22},
	} {
		late := Peer{Node: 3, Process: 33, Entitled: x.Epoch != Epoch{}, Epoch: e(1, 2, 2)}
		if p, d := given(x, late); p.phase != owning || d != nil {
			t.Errorf("%s: phase %v, declines %v", name, p.phase, d)
		}
	}
}

// What the log promised was promised to the process before: until it counts this one as a
// member, another may be the successor.
func TestAPromiseIsToOneProcess(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := entitledSlot(t, now)
	d := p.decided
	p.HandleDecided(now, d, false)
	p.HandleLoss(now, 2, LossDeath, true, 30*time.Millisecond)
	p.HandleClaimed(now, d.Next, true)
	if o := owns(effectsOf(p)); o != nil || p.phase == taking {
		t.Fatalf("acts on what the process before was promised: phase %v, %+v", p.phase, o)
	}
	p.HandleDecided(now, d, true)
	p.HandleClaimed(now, d.Next, true)
	if o := owns(effectsOf(p)); o == nil || !o.Covered {
		t.Errorf("owns as %+v", o)
	}
}

// The guardian gives up what was held under the owner before when it hears of the next
// one; that word may come to the daemon when the next one's copy is whole already, and
// what was asked for then is granted right behind it.
func TestAnEntitlementGivenUpIsNotTheOneAskedForSince(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := entitledSlot(t, now)
	next := e(3, 0, 3)
	p.HandleCopied(now, next)
	p.HandleRemoved(now, 1)
	if !p.HandleEntitled(now, next) || p.entitled != next || p.Idle() {
		t.Errorf("entitled to %v: the entry is never acknowledged, though the guardian holds the entitlement", p.entitled)
	}
	p = entitledSlot(t, now)
	p.HandleCopied(now, next)
	p.HandleRemoved(now, 1)
	p.HandlePeer(now, Peer{Node: 3, Name: "vm3", Process: 33, Running: true, Role: RoleOwner, Epoch: next.Next(3), Links: []Link{{Addr: "172.31.1.3"}}})
	if p.HandleEntitled(now, next) || p.HandleEntitled(now, Epoch{}) || p.entitled != (Epoch{}) {
		t.Errorf("entitled to %v, which has passed", p.entitled)
	}
}

// A standby that was entitled to succeed the owner before us is taken in by us; then its
// heartbeat comes that says that it is entitled to nothing, sent in between.
func TestAnEntitlementBeforeUsDoesNotEndTheOneAfter(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := entitledSlot(t, now)
	third := Peer{Node: 3, Name: "vm3", Process: 33, Running: true, Entitled: true, Epoch: p.decided.Epoch, Links: []Link{{Addr: "172.31.1.3"}}}
	p.HandlePeer(now, third)
	p.HandleLoss(now, 2, LossDeath, true, 30*time.Millisecond)
	p.HandleClaimed(now, p.decided.Next, true)
	if p.phase != owning {
		t.Fatalf("phase %v after the owner's death", p.phase)
	}
	d := p.decided
	d.Owner, d.Epoch, d.Successor, d.Next, d.Standbys, d.Sync = 1, p.epoch, 0, Epoch{}, []NodeID{3}, nil
	p.HandleDecided(now, d, true)
	p.HandleStream(now, 3, 33, true)
	p.HandleEntered(now, 3)
	if len(p.SyncSet()) != 1 {
		t.Fatal("setup: not taken in")
	}
	effectsOf(p)
	third.Entitled, third.Epoch = false, Epoch{}
	p.HandlePeer(now, third)
	for _, e := range effectsOf(p) {
		if _, ok := e.(AskRemoval); ok {
			t.Error("it was asked to give up what it was just taken in for")
		}
	}
	// What it says once it has said that it follows us counts.
	third.Entitled, third.Epoch = true, p.epoch
	p.HandlePeer(now, third)
	third.Entitled = false
	p.HandlePeer(now, third)
	asked := false
	for _, e := range effectsOf(p) {
		_, ok := e.(AskRemoval)
		asked = asked || ok
	}
	if !asked {
		t.Error("a standby that is entitled no longer stays in the sync set")
	}
}
