package cluster

import (
	"slices"
	"testing"

	"tandem/cluster/fsm"
)

// Slots of nodes 1 and 2, and epochs of these: e(term, count, node).
var (
	slotA = fsm.Slot(1, 0)
	slotB = fsm.Slot(1, 3)
	slotC = fsm.Slot(2, 1)
)

func e(term, count uint64, n NodeID) Epoch {
	return Epoch{Counter: term<<fsm.LocalBits | count, Node: n}
}

// newFarmBench: node 1 owns slots A and B, we are node 2.
func newFarmBench(t *testing.T) *bench {
	b := newBench(t)
	b.g.HandleAnnounce(b.now, Announce{})
	b.peer.Announce = Announce{Owned: []Tenure{{slotA, e(5, 1, 1)}, {slotB, e(7, 0, 1)}}}
	b.beat("")
	b.take()
	return b
}

func (b *bench) entitleTo(s ScopeID, e Epoch) bool {
	b.g.HandleEntitle(b.now, Entitle{Scope: s, Epoch: e, On: true})
	got := b.take()
	y, granted := find[TellEntitled](got)
	r, refused := find[TellRemoved](got)
	if granted == refused || granted && (y.Scope != s || y.Epoch != e) || refused && (r.Scope != s || r.Node != 2) {
		b.t.Errorf("answer to the entitlement for %v at %v: %+v", s, e, got)
	}
	return granted
}

func (b *bench) wantHeld(want ...Tenure) {
	b.t.Helper()
	_, got := b.g.holdings()
	if !slices.Equal(got, want) {
		b.t.Errorf("held %v, want %v", got, want)
	}
}

// third plays a heartbeat of node 3.
func (b *bench) third(seq uint64, change func(*Heartbeat)) []GuardEffect {
	b.t.Helper()
	h := Heartbeat{Node: 3, Name: "gw3", Incarnation: 9, Seq: seq, Process: 300, Running: true, Heard: []Heard{{2, 50}}}
	change(&h)
	if err := b.g.HandleHeartbeat(b.now, Link{Addr: "192.0.2.3"}, &h); err != nil {
		b.t.Errorf("heartbeat refused: %v", err)
	}
	return b.take()
}

func TestEntitlementOfEachScope(t *testing.T) {
	t.Run("several at once, for the owner's epochs or later", func(t *testing.T) {
		b := newFarmBench(t)
		if !b.entitleTo(slotB, e(7, 0, 1)) || !b.entitleTo(slotA, e(5, 2, 1)) || !b.entitle(e(1, 0, 1)) {
			t.Error("refused")
		}
		b.wantHeld(Tenure{slotA, e(5, 2, 1)}, Tenure{slotB, e(7, 0, 1)})
		if got := b.beat(""); len(got) != 0 {
			t.Errorf("a heartbeat that lags behind the stream changes something: %v", got)
		}
		b.ticks(2)
		if len(b.sent.EntitledTo) != 2 || b.sent.Entitled != e(1, 0, 1) {
			t.Errorf("%+v", b.sent)
		}
		b.g.HandleEntitle(b.now, Entitle{Scope: slotA})
		b.drain()
		b.wantHeld(Tenure{slotB, e(7, 0, 1)})
		if len(b.sent.EntitledTo) != 1 || b.sent.Entitled != e(1, 0, 1) {
			t.Error("the end of it is not said, or more than it ended")
		}
	})
	t.Run("a renewed epoch takes the old one's place", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.entitleTo(slotA, e(5, 2, 1))
		b.wantHeld(Tenure{slotA, e(5, 2, 1)})
		if b.entitleTo(slotA, e(5, 1, 1)) {
			t.Error("back to an earlier epoch")
		}
	})
	for name, c := range map[string]struct {
		change func(*bench)
		scope  ScopeID
		epoch  Epoch
	}{
		"an epoch that has passed":          {nil, slotA, e(5, 0, 1)},
		"a scope that the owner lacks":      {nil, slotC, e(5, 0, 1)},
		"an owner never heard":              {nil, slotC, e(5, 0, 4)},
		"no scope":                          {nil, 255, e(5, 0, 1)},
		"an owner whose daemon ended":       {func(b *bench) { b.peer.Running = false; b.beat("") }, slotA, e(5, 1, 1)},
		"an owner that is silent":           {func(b *bench) { b.ticks(20) }, slotA, e(5, 1, 1)},
		"a new process, which owns nothing": {func(b *bench) { b.peer.Process, b.peer.Announce = 101, Announce{}; b.beat("") }, slotA, e(5, 1, 1)},
		"a scope of our own": {func(b *bench) {
			b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{slotA, e(6, 0, 2)}}})
		}, slotA, e(7, 0, 1)},
		"somebody else's by now": {func(b *bench) {
			b.third(1, func(h *Heartbeat) { h.Announce.Owned = []Tenure{{slotA, e(6, 0, 3)}} })
		}, slotA, e(5, 1, 1)},
	} {
		t.Run("not for "+name, func(t *testing.T) {
			b := newFarmBench(t)
			if c.change != nil {
				c.change(b)
				b.take()
			}
			if b.entitleTo(c.scope, c.epoch) {
				t.Error("granted")
			}
			b.wantHeld()
		})
	}
	t.Run("void for the one scope in which the owner goes on", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.entitleTo(slotB, e(7, 0, 1))
		b.peer.Announce.Owned = []Tenure{{slotA, e(5, 2, 1)}, {slotB, e(7, 0, 1)}}
		if r, ok := find[TellRemoved](b.beat("")); !ok || r != (TellRemoved{slotA, 2}) {
			t.Errorf("%+v", r)
		}
		b.wantHeld(Tenure{slotB, e(7, 0, 1)})
	})
	t.Run("void by the owner's last words", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.entitleTo(slotB, e(7, 0, 1))
		b.peer.Running, b.peer.Announce.Owned = false, []Tenure{{slotA, e(5, 2, 1)}, {slotB, e(7, 0, 1)}}
		if l, _ := find[TellLoss](b.beat("")); !slices.Equal(l.Claimed, []Tenure{{slotB, e(7, 0, 1)}}) {
			t.Errorf("%+v", l)
		}
	})
	t.Run("void when another owns", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		got := b.third(1, func(h *Heartbeat) { h.Announce.Owned = []Tenure{{slotA, e(6, 0, 3)}} })
		if r, ok := find[TellRemoved](got); !ok || r != (TellRemoved{slotA, 2}) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("kept while the owner only says nothing of it", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.peer.Announce.Owned = []Tenure{{slotB, e(7, 0, 1)}} // handing it over
		b.beat("")
		b.wantHeld(Tenure{slotA, e(5, 1, 1)})
	})
	t.Run("our own from now on", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.entitleTo(slotB, e(7, 0, 1))
		b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{slotB, e(8, 0, 2)}}})
		b.drain()
		b.wantHeld(Tenure{slotA, e(5, 1, 1)})
		if len(b.sent.EntitledTo) != 1 {
			t.Error("entitled to what it owns")
		}
	})
	t.Run("all of it ends with the daemon", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.g.DaemonEnded(b.now)
		b.g.DaemonStarted(b.now, 201)
		b.drain()
		if len(b.sent.EntitledTo) != 0 || len(b.sent.Announce.Owned) != 0 {
			t.Errorf("%+v", b.sent)
		}
		b.wantHeld()
	})
}

func TestLossClaimsTheLostOwnersScopes(t *testing.T) {
	b := newFarmBench(t)
	b.third(1, func(h *Heartbeat) { h.Announce.Owned = []Tenure{{slotC, e(2, 0, 3)}} })
	for _, x := range []Tenure{{slotA, e(5, 1, 1)}, {slotB, e(7, 0, 1)}, {slotC, e(2, 0, 3)}} {
		if !b.entitleTo(x.Scope, x.Epoch) {
			t.Fatal("refused")
		}
	}
	b.peer.Running = false
	l, ok := find[TellLoss](b.beat(""))
	if !ok || l.Node != 1 || l.Kind != LossDeath || l.Entitled || !slices.Equal(l.Claimed, []Tenure{{slotA, e(5, 1, 1)}, {slotB, e(7, 0, 1)}}) {
		t.Fatalf("%+v", l)
	}
	if _, open := b.g.EntitledTo(slotA); open {
		t.Error("what is claimed can be granted away")
	}
	if _, open := b.g.EntitledTo(slotC); !open {
		t.Error("the scope of another owner was claimed")
	}
	b.ticks(2)
	if len(b.sent.EntitledTo) != 3 {
		t.Error("a claim is an entitlement still, for those who ask whether somebody can succeed")
	}
	t.Run("carried out", func(t *testing.T) {
		b.g.HandleClaim(b.now, Claim{slotA, e(6, 0, 2)})
		if c, _ := find[TellClaimed](b.take()); c != (TellClaimed{slotA, e(6, 0, 2), true}) {
			t.Errorf("%+v", c)
		}
	})
	t.Run("not for an epoch that is no later", func(t *testing.T) {
		b.g.HandleClaim(b.now, Claim{slotB, e(7, 0, 1)})
		if c, ok := find[TellClaimed](b.take()); !ok || c.OK {
			t.Errorf("%+v", c)
		}
	})
	t.Run("not for a scope for which nothing is held", func(t *testing.T) {
		b.g.HandleClaim(b.now, Claim{fsm.Slot(1, 7), e(9, 0, 2)})
		if c, ok := find[TellClaimed](b.take()); !ok || c.OK {
			t.Errorf("%+v", c)
		}
	})
	t.Run("overtaken in one scope", func(t *testing.T) {
		got := b.third(2, func(h *Heartbeat) { h.Announce.Owned = []Tenure{{slotB, e(8, 0, 3)}, {slotC, e(2, 0, 3)}} })
		if r, ok := find[TellRemoved](got); !ok || r != (TellRemoved{slotB, 2}) {
			t.Errorf("%+v", got)
		}
		b.wantHeld(Tenure{slotA, e(5, 1, 1)}, Tenure{slotC, e(2, 0, 3)})
		b.g.HandleClaim(b.now, Claim{slotB, e(9, 0, 2)})
		if c, ok := find[TellClaimed](b.take()); !ok || c.OK {
			t.Error("claim granted")
		}
	})
	t.Run("given up", func(t *testing.T) {
		b.g.HandleEntitle(b.now, Entitle{Scope: slotA})
		b.wantHeld(Tenure{slotC, e(2, 0, 3)})
	})
}

func TestRemovalOfEachScope(t *testing.T) {
	ask := func(s ScopeID, nonce uint64, at Epoch) Removal { return Removal{s, 2, nonce, at} }
	t.Run("granted in one scope", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.entitleTo(slotB, e(7, 0, 1))
		b.entitle(e(1, 0, 1))
		b.peer.Requests = []Removal{ask(slotB, 30, e(7, 0, 1)), {slotA, 3, 31, e(5, 1, 1)}}
		if r, ok := find[TellRemoved](b.beat("")); !ok || r != (TellRemoved{slotB, 2}) {
			t.Errorf("%+v", r)
		}
		b.wantHeld(Tenure{slotA, e(5, 1, 1)})
		if b.sent.Entitled != e(1, 0, 1) || !slices.Equal(b.sent.Answers, []Removal{{Scope: slotB, Node: 1, Nonce: 30}}) {
			t.Errorf("%+v", b.sent)
		}
		if b.entitleTo(slotB, e(7, 0, 1)) || !b.entitleTo(slotB, e(7, 1, 1)) {
			t.Error("granted for that epoch again, or refused for the next")
		}
		if !b.entitleTo(slotA, e(5, 1, 1)) {
			t.Error("refused in the other scope")
		}
		b.beat("") // the question again, without an end
		b.wantHeld(Tenure{slotA, e(5, 1, 1)}, Tenure{slotB, e(7, 1, 1)})
		b.peer.Requests = []Removal{ask(slotB, 32, e(7, 0, 1))}
		b.beat("") // another question about the epoch that has passed
		b.wantHeld(Tenure{slotA, e(5, 1, 1)}, Tenure{slotB, e(7, 1, 1)})
		if !slices.Equal(b.sent.Answers, []Removal{{Scope: slotB, Node: 1, Nonce: 32}}) {
			t.Errorf("%+v", b.sent.Answers)
		}
		b.peer.Requests = nil
		b.beat("")
		b.ticks(2)
		if len(b.sent.Answers) != 0 {
			t.Error("the answer goes on after the question")
		}
	})
	t.Run("neither what is claimed nor what we own", func(t *testing.T) {
		b := newFarmBench(t)
		b.entitleTo(slotA, e(5, 1, 1))
		b.entitleTo(slotB, e(7, 0, 1))
		b.g.HandleClaim(b.now, Claim{slotA, e(6, 0, 2)})
		b.g.HandleClaim(b.now, Claim{slotB, e(8, 0, 2)})
		b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{slotB, e(8, 0, 2)}}})
		b.peer.Requests = []Removal{ask(slotA, 30, e(5, 1, 1)), ask(slotB, 31, e(7, 0, 1)), ask(slotC, 32, e(1, 0, 1))}
		b.beat("")
		if !slices.Equal(b.sent.Answers, []Removal{{Scope: slotC, Node: 1, Nonce: 32}}) {
			t.Errorf("%+v", b.sent.Answers)
		}
		b.g.HandleEntitle(b.now, Entitle{Scope: slotA}) // the takeover is given up
		b.beat("")
		if len(b.sent.Answers) != 2 {
			t.Errorf("%+v", b.sent.Answers)
		}
	})
	t.Run("asked in several scopes", func(t *testing.T) {
		b := newFarmBench(t)
		b.third(1, func(*Heartbeat) {})
		b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{slotA, e(9, 4, 2)}, {slotC, e(8, 0, 2)}}})
		for _, a := range []AskRemoval{{slotA, 1}, {slotC, 1}, {slotC, 3}, {slotB, 1}, {slotC, 4}} {
			b.g.HandleAskRemoval(b.now, a)
		}
		b.drain()
		rs := b.sent.Requests
		if len(rs) != 3 || rs[0].Scope != slotA || rs[0].Node != 1 || rs[0].Epoch != e(9, 4, 2) ||
			rs[1].Scope != slotC || rs[1].Epoch != e(8, 0, 2) || rs[2].Node != 3 {
			t.Fatalf("%+v", rs)
		}
		b.peer.Answers = []Removal{{Scope: slotC, Node: 2, Nonce: rs[0].Nonce}, {Scope: slotC, Node: 2, Nonce: rs[2].Nonce}}
		if r, ok := find[TellRemoved](b.beat("")); ok {
			t.Fatalf("the answer to another question was taken: %+v", r)
		}
		b.peer.Answers = []Removal{{Scope: slotC, Node: 2, Nonce: rs[1].Nonce}}
		if r, ok := find[TellRemoved](b.beat("")); !ok || r != (TellRemoved{slotC, 1}) {
			t.Errorf("%+v", r)
		}
		b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{slotC, e(8, 0, 2)}}})
		b.drain()
		if len(b.sent.Requests) != 1 || b.sent.Requests[0].Node != 3 {
			t.Errorf("asks on for what it does not own: %+v", b.sent.Requests)
		}
	})
	t.Run("many take turns", func(t *testing.T) {
		b := newFarmBench(t)
		b.g.HandleAnnounce(b.now, Announce{Owned: allSlots(2)})
		for _, x := range allSlots(2) {
			b.g.HandleAskRemoval(b.now, AskRemoval{x.Scope, 1})
		}
		asked := map[ScopeID]bool{}
		for range 8 {
			b.ticks(2)
			if len(b.sent.Requests) != maxRemovals {
				t.Fatalf("%d requests in a heartbeat", len(b.sent.Requests))
			}
			for _, r := range b.sent.Requests[:sureRemovals] {
				asked[r.Scope] = true
			}
			b.beat("")
		}
		if len(asked) != 128 {
			t.Errorf("%d of 128 asked", len(asked))
		}
	})
}

// allSlots are owned by one node.
func allSlots(n NodeID) (out []Tenure) {
	for home := range NodeID(fsm.MaxNodes) {
		for k := range fsm.SlotsPerMember {
			i := uint64(len(out))
			out = append(out, Tenure{fsm.Slot(home+1, k), e(1+i*37%700, i*13%128, n)})
		}
	}
	return out
}

func TestNonsenseIsNotAnnounced(t *testing.T) {
	b := newFarmBench(t)
	b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{
		{slotC, e(8, 0, 2)}, {slotA, e(9, 0, 2)}, {slotA, e(10, 0, 2)}, {slotB, e(9, 0, 1)}, {0, e(9, 0, 2)}, {31, e(9, 0, 2)}, {384, e(9, 0, 2)}, {1, Epoch{Node: 2}},
	}})
	b.drain()
	if !slices.Equal(b.sent.Announce.Owned, []Tenure{{slotA, e(9, 0, 2)}, {slotC, e(8, 0, 2)}}) {
		t.Errorf("%v", b.sent.Announce.Owned)
	}
}

func TestPeersAreToldOfScopes(t *testing.T) {
	b := newFarmBench(t)
	b.peer.Announce.Owned = []Tenure{{slotA, e(5, 1, 1)}}
	b.peer.EntitledTo = []Tenure{{slotC, e(3, 0, 2)}}
	p, ok := find[TellPeer](b.beat(""))
	if !ok || !slices.Equal(p.Peer.Owned, b.peer.Announce.Owned) || !slices.Equal(p.Peer.EntitledTo, b.peer.EntitledTo) {
		t.Fatalf("%+v", p)
	}
	if got := b.beat(""); len(got) != 0 {
		t.Errorf("told again: %v", got)
	}
	b.peer.EntitledTo = nil
	if p, ok := find[TellPeer](b.beat("")); !ok || len(p.Peer.EntitledTo) != 0 {
		t.Error("not told of the end")
	}
}

func TestTwoAddressesOfAPeerAreTwoPaths(t *testing.T) {
	b := newFarmBench(t)
	for i, addr := range []string{"192.0.2.1", "192.0.2.2"} {
		h := b.peer
		h.Seq += 1
		if err := b.g.HandleHeartbeat(b.now, Link{Addr: addr}, &h); err != nil {
			t.Errorf("path %d: %v", i, err)
		}
	}
	b.ticks(1)
	if v := b.g.view(b.g.peers[0]); len(v.Links) != 3 { // and the bench's own
		t.Errorf("%v", v.Links)
	}
}

func TestWatchdogOfAMember(t *testing.T) {
	for name, c := range map[string]struct {
		entitled []Tenure
		running  bool
		killed   bool
	}{
		"somebody could succeed in one scope": {[]Tenure{{slotA, e(1, 0, 3)}, {slotC, e(8, 0, 2)}}, true, true},
		"not at that epoch":                   {[]Tenure{{slotC, e(7, 0, 2)}}, true, false},
		"for a scope of others only":          {[]Tenure{{slotA, e(8, 0, 2)}}, true, false},
		"whose daemon is dead":                {[]Tenure{{slotC, e(8, 0, 2)}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newFarmBench(t)
			b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{slotC, e(8, 0, 2)}}})
			b.peer.EntitledTo, b.peer.Running = c.entitled, c.running
			b.g.HandleProgress(1)
			killed := false
			for range 300 {
				b.beat("")
				_, ok := find[KillDaemon](b.ticks(2))
				killed = killed || ok
			}
			if killed != c.killed {
				t.Errorf("killed: %v", killed)
			}
		})
	}
}

func TestWhatComesTogetherIsOneHeartbeat(t *testing.T) {
	b := newFarmBench(t)
	for i := range 100 {
		b.g.HandleEntitle(b.now, Entitle{Scope: slotA, Epoch: e(5, uint64(1+i), 1), On: true})
	}
	b.g.DaemonEnded(b.now)
	var sent []SendHeartbeat
	for {
		x, ok := b.g.Poll()
		if !ok {
			break
		}
		if s, ok := x.(SendHeartbeat); ok {
			sent = append(sent, s)
		}
	}
	if len(sent) != 1 || sent[0].Copies != lastWords || !sent[0].News || sent[0].Heartbeat.Running {
		t.Errorf("%d heartbeats: %+v", len(sent), sent)
	}
	b.now = b.now.Add(b.g.TickInterval() * 4)
	for b.g.Tick(b.now); ; b.g.Tick(b.now) {
		x, ok := b.g.Poll()
		if s, is := x.(SendHeartbeat); ok && is {
			if s.News || s.Copies != 1 {
				t.Error("a beat is no news")
			}
			return
		}
	}
}

// An entitlement for the owner's next epoch that is asked for when the owner was lost is
// not granted; the claim that the loss made of the present one stays.
func TestAClaimOutlivesALateEntitlement(t *testing.T) {
	b := newFarmBench(t)
	b.entitleTo(slotA, e(5, 1, 1))
	b.peer.Running = false
	if l, ok := find[TellLoss](b.beat("")); !ok || len(l.Claimed) != 1 {
		t.Fatalf("loss %+v", l)
	}
	b.g.HandleEntitle(b.now, Entitle{Scope: slotA, Epoch: e(5, 2, 1), On: true})
	if got := b.take(); len(got) != 0 {
		t.Errorf("the late entitlement led to %+v", got)
	}
	b.wantHeld(Tenure{slotA, e(5, 1, 1)})
	b.g.HandleClaim(b.now, Claim{Scope: slotA, Epoch: e(6, 0, 2)})
	if x, ok := find[TellClaimed](b.take()); !ok || !x.OK {
		t.Errorf("claim: %+v", x)
	}
}
