package cluster

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tandem/cluster/fsm"
	"tandem/internal/config"
)

const rankMargin = 300 * time.Second

// TestRankEveryKey: of three, each key puts the one that is better in it first and the one
// that is worse last, whoever of them that is, with every later key against it, and with
// override priority before age.
func TestRankEveryKey(t *testing.T) {
	for _, override := range []bool{false, true} {
		order := electionOrder(override)
		for k, name := range order {
			for _, nodes := range [][]NodeID{{1, 2, 3}, {1, 3, 2}, {2, 1, 3}, {2, 3, 1}, {3, 1, 2}, {3, 2, 1}} {
				all := make([]Candidate, 3)
				for i, n := range nodes {
					e := Election{Override: override}
					for _, key := range electionKeys {
						v := 0
						switch at := slices.Index(order, key.name); {
						case at == k:
							v = 1 - i
						case at > k:
							v = i - 1 // the other way round
						}
						key.set(&e, v)
					}
					all[i] = Candidate{n, e}
				}
				want := slices.Clone(nodes)
				if name == byFailover { // there is only with and without
					want = nil
				}
				got, why := Rank(all, rankMargin)
				if want != nil && !slices.Equal(got, want) || got[2] != nodes[2] || want != nil && why != name {
					t.Errorf("override %v, %s: %v by %s, want %v", override, name, got, why, nodes)
				}
			}
		}
	}
}

// TestRankOfTwo: of two, the order and what decided are those of a pair's election.
func TestRankOfTwo(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		a, b := someElection(r), someElection(r)
		first, why := rank(a, b, a.Override || b.Override, rankMargin)
		got, key := Rank([]Candidate{{2, b}, {1, a}}, rankMargin)
		want := []NodeID{1, 2} // the node number decides where nothing else does
		if first < 0 {
			want = []NodeID{2, 1}
		}
		if !slices.Equal(got, want) || first != 0 && key != why {
			t.Fatalf("%+v\n%+v: %v by %s, as a pair %d by %s", a, b, got, key, first, why)
		}
	}
}

// someElection draws from few values, so that keys are often equal.
func someElection(r *rand.Rand) Election {
	return Election{
		MonitorsUp: r.IntN(3), Penalty: 5 * r.IntN(2), Age: time.Duration(r.IntN(5)) * 200 * time.Second, Priority: 100 + 50*r.IntN(3),
		Override: r.IntN(4) == 0, Serial: string(rune('a' + r.IntN(3))), Failover: r.IntN(8) == 0,
	}
}

// TestRankOfMany: the order does not depend on who lists the candidates how; nobody stands
// before one that beats it in a key before which both are alike; and without the last one
// the others keep their order.
func TestRankOfMany(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		all := make([]Candidate, 3+r.IntN(2))
		override := r.IntN(2) == 0
		for i := range all {
			all[i] = Candidate{NodeID(i + 1), someElection(r)}
			all[i].Election.Override = override
		}
		order, _ := Rank(all, rankMargin)
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if again, _ := Rank(all, rankMargin); !slices.Equal(order, again) {
			t.Fatalf("%+v: %v and %v", all, order, again)
		}
		at := func(n NodeID) Candidate {
			return all[slices.IndexFunc(all, func(c Candidate) bool { return c.Node == n })]
		}
		for i, n := range order {
			for _, m := range order[i+1:] {
				a, b := at(n).Election, at(m).Election
				for _, key := range []string{byFailover, byMonitors, byPingservers} { // these are one after the other for any number
					if better(key, &b, &a, rankMargin) {
						t.Fatalf("%d before %d in spite of %s: %+v %+v", n, m, key, a, b)
					}
					if better(key, &a, &b, rankMargin) {
						break
					}
				}
			}
		}
		last := order[len(order)-1]
		fewer, _ := Rank(slices.DeleteFunc(slices.Clone(all), func(c Candidate) bool { return c.Node == last }), rankMargin)
		if oldest := slices.MaxFunc(all, func(a, b Candidate) int { return cmp.Compare(a.Election.Age, b.Election.Age) }); oldest.Node != last && !slices.Equal(fewer, order[:len(order)-1]) {
			t.Fatalf("%+v: %v, without the last %v", all, order, fewer)
		}
	}
}

// TestAgesThatAreClose: closeness is not transitive. What counts is who is close to the
// oldest of those that are left.
func TestAgesThatAreClose(t *testing.T) {
	node := func(n NodeID, age time.Duration, priority int) Candidate {
		return Candidate{n, Election{Age: age * time.Second, Priority: priority}}
	}
	for _, c := range []struct {
		all  []Candidate
		want []NodeID
		why  string
	}{
		{[]Candidate{node(1, 0, 200), node(2, 200, 150), node(3, 400, 100)}, []NodeID{2, 3, 1}, byPriority}, // 1 is too young beside 3, also when 2 is out
		{[]Candidate{node(1, 0, 100), node(2, 200, 150), node(3, 600, 50)}, []NodeID{3, 2, 1}, byAge},
		{[]Candidate{node(1, 0, 200), node(2, 200, 150), node(3, 300, 100)}, []NodeID{1, 2, 3}, byPriority},
	} {
		if got, why := Rank(c.all, rankMargin); !slices.Equal(got, c.want) || why != c.why {
			t.Errorf("%+v: %v by %s, want %v by %s", c.all, got, why, c.want, c.why)
		}
	}
}

// rankedSlot is a Slot of virtual cluster 1 on node 1, which owns by decision with nodes 2
// and 3 in its sync set, and node 2 promised.
func rankedSlot(t *testing.T, ha config.HA, its func(n NodeID) Election) (*Slot, time.Time) {
	t.Helper()
	now := time.Unix(1e9, 0)
	ha.UptimeDiffMargin = rankMargin
	p := NewSlot(SlotOptions{Self: 1, Name: "gw1", Serial: "s1", Scope: 1, HA: &ha, Interval: 10 * time.Millisecond, Threshold: 3})
	p.Start(now)
	s := fsm.Scope{ID: 1, Owner: 1, Epoch: Epoch{Counter: 1 << fsm.LocalBits, Node: 1}, Standbys: []NodeID{2, 3}}
	p.HandleMonitors(now, len(ha.Monitor))
	for _, n := range s.Standbys {
		p.HandlePeer(now, Peer{Node: n, Name: []string{"", "gw1", "gw2", "gw3"}[n], Process: ProcessID(n), Running: true, Role: RoleStandby, Election: its(n)})
		p.HandleStream(now, n, ProcessID(n), true)
	}
	p.HandleDecided(now, s, true)
	for _, n := range s.Standbys {
		p.HandleEntered(now, n)
		x := p.peer(n).Peer
		x.Entitled, x.Epoch = true, s.Epoch
		p.HandlePeer(now, x)
	}
	s.Sync, s.Successor, s.Next = []NodeID{2, 3}, 2, Epoch{Counter: 2 << fsm.LocalBits, Node: 2}
	p.HandleDecided(now, s, true)
	if p.phase != owning || len(p.SyncSet()) != 2 {
		t.Fatalf("phase %v with %v", p.phase, p.SyncSet())
	}
	return p, now
}

// runSlot lets time pass until a moment.
func runSlot(p *Slot, until time.Time) {
	for at, ok := p.NextTimeout(); ok && !at.After(until); at, ok = p.NextTimeout() {
		p.HandleTimeout(at)
	}
	p.HandleTimeout(until)
}

// handedTo is to whom the Slot hands over, by the effects that wait; 0: to nobody.
func handedTo(p *Slot) (to NodeID) {
	for e, ok := p.Poll(); ok; e, ok = p.Poll() {
		if h, ok := e.(HandOver); ok {
			to = h.Node
		}
	}
	return to
}

// TestSlotHandsOver: an owner hands over to who was promised for the reasons of a pair, and
// after its waiting times; the others' merits count for nothing.
func TestSlotHandsOver(t *testing.T) {
	base := config.HA{Priority: 128, Monitor: []string{"a", "b"}}
	change := func(do func(*config.HA)) config.HA { ha := base; do(&ha); return ha }
	alike := func(NodeID) Election { return Election{MonitorsUp: 2, Priority: 128, Serial: "s1"} }
	with := func(who NodeID, do func(*Election)) func(NodeID) Election {
		return func(n NodeID) Election {
			e := alike(n)
			if n == who {
				do(&e)
			}
			return e
		}
	}
	higher := func(e *Election) { e.Priority = 200 }
	for _, c := range []struct {
		name  string
		ha    config.HA
		its   func(NodeID) Election
		do    func(*Slot, time.Time)
		after time.Duration // 0: it does not
		why   Handed
	}{
		{"alike", base, alike, nil, 0, 0},
		{"a higher priority without override", base, with(2, higher), nil, 0, 0},
		{"a higher priority with override", change(func(h *config.HA) { h.Override = true }), with(2, higher), nil, slotHoldDown, HandedPriority},
		{"override of the other one", base, with(2, func(e *Election) { higher(e); e.Override = true }), nil, slotHoldDown, HandedPriority},
		{"override-wait-time", change(func(h *config.HA) { h.Override, h.OverrideWaitTime = true, 20*time.Second }), with(2, higher), nil, 20 * time.Second, HandedPriority},
		{"somebody else's priority", change(func(h *config.HA) { h.Override = true }), with(3, higher), nil, 0, 0},
		{"an age", change(func(h *config.HA) { h.Override = true }), with(2, func(e *Election) { e.Age = time.Hour }), nil, slotHoldDown, HandedAge},
		{"a serial number", change(func(h *config.HA) { h.Override = true }), with(2, func(e *Election) { e.Serial = "s2" }), nil, slotHoldDown, HandedSerial},
		{"monitored interfaces", base, alike, func(p *Slot, now time.Time) { p.HandleMonitors(now, 1) }, slotHoldDown, HandedMonitors},
		{"monitored interfaces of both", base, with(2, func(e *Election) { e.MonitorsUp = 1 }), func(p *Slot, now time.Time) { p.HandleMonitors(now, 1) }, 0, 0},
		{"failover-hold-time", change(func(h *config.HA) { h.FailoverHoldTime = 5 * time.Second }), alike, func(p *Slot, now time.Time) { p.HandleMonitors(now, 1) }, 5 * time.Second, HandedMonitors},
		{"flapping within failover-hold-time", change(func(h *config.HA) { h.FailoverHoldTime = 5 * time.Second }), alike, func(p *Slot, now time.Time) {
			p.HandleMonitors(now, 1)
			runSlot(p, now.Add(4*time.Second))
			p.HandleMonitors(now.Add(4*time.Second), 2)
		}, 0, 0},
		{"pingservers", base, alike, func(p *Slot, now time.Time) { p.HandlePingservers(now, 10, 0) }, slotHoldDown, HandedPingservers},
		{"pingservers beneath the threshold", change(func(h *config.HA) { h.Pingserver.Threshold = 20 }), alike, func(p *Slot, now time.Time) { p.HandlePingservers(now, 10, 0) }, 0, 0},
		{"execute ha failover set", base, alike, func(p *Slot, now time.Time) {
			if err := p.Failover(now, true); err != nil {
				panic(err)
			}
		}, slotHoldDown, HandedFailover},
		{"without quorum", change(func(h *config.HA) { h.Override = true }), with(2, higher), func(p *Slot, now time.Time) { p.HandleQuorum(now, true, false) }, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, now := rankedSlot(t, c.ha, c.its)
			handedTo(p)
			if c.do != nil {
				c.do(p, now)
			}
			if c.after == 0 {
				if runSlot(p, now.Add(time.Minute)); handedTo(p) != 0 || p.phase != owning {
					t.Fatal("hands over")
				}
				return
			}
			if runSlot(p, now.Add(c.after-time.Millisecond)); handedTo(p) != 0 {
				t.Fatal("hands over too early")
			}
			if runSlot(p, now.Add(c.after)); handedTo(p) != 2 || p.rank.health.handed != c.why {
				t.Fatalf("does not hand over: %v, phase %v", p.rank.health.handed, p.phase)
			}
		})
	}
}

// TestFailoverNeedsASuccessor: `execute ha failover set` is refused where tunnels would be
// lost, where nothing can be decided, and on a standby.
func TestFailoverNeedsASuccessor(t *testing.T) {
	alike := func(NodeID) Election { return Election{MonitorsUp: 0, Priority: 128} }
	p, now := rankedSlot(t, config.HA{Priority: 128}, alike)
	p.HandleQuorum(now, true, false)
	if err := p.Failover(now, true); err == nil {
		t.Error("without quorum")
	}
	p.HandleQuorum(now, false, false)
	s := p.decided
	s.Successor, s.Next = 0, Epoch{}
	p.HandleDecided(now, s, true)
	if err := p.Failover(now, true); err == nil {
		t.Error("with nobody promised")
	}
	if err := p.Failover(now, false); err != nil {
		t.Error(err)
	}
	q := NewSlot(SlotOptions{Self: 2, Scope: 1, HA: &config.HA{}})
	q.Start(now)
	if err := q.Failover(now, true); err == nil {
		t.Error("on a standby")
	}
}
