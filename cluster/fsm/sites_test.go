package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"tandem/proto/clusterpb"
)

// joinsSite is joins of a node of a site.
func joinsSite(n NodeID, process uint64, s Site) *clusterpb.Command {
	c := joins(n, process)
	c.GetAddMember().Features = s.Features()
	return c
}

// carryOut does what the plan and the handovers ask for, until nothing is left to do.
func (f *farm) carryOut() {
	f.t.Helper()
	for range 64 {
		plan := f.Plan(2)
		done := len(plan) == 0
		for _, c := range plan {
			f.apply(NodeID(f.anybody()), c)
		}
		for _, s := range f.Scopes() {
			if s.Owner != 0 && !slices.Equal(s.Sync, s.Standbys) {
				f.want(Done, s.Owner, syncs(s.ID, s.Epoch, s.Standbys...))
				done = false
			}
		}
		for _, p := range f.Members() {
			if ids := f.HandOvers(p.Node); len(ids) > 0 {
				s, _ := f.Scope(ids[0]) // one at a time
				f.want(Done, s.Successor, takes(s.ID, s.Next, s.Epoch))
				done = false
			}
		}
		if done {
			return
		}
	}
	f.t.Fatalf("the plan never ends: %v", f.Plan(2))
}

func (f *farm) anybody() NodeID {
	for _, p := range f.Members() {
		if p.State != Left && !p.Lost {
			return p.Node
		}
	}
	return 0
}

// wantOwner: one node owns all slots of a site, and they have one successor.
func (f *farm) wantOwner(site int, owner, successor NodeID) {
	f.t.Helper()
	for _, s := range f.Scopes() {
		if f.siteOf(s.ID.Home()) == site && (s.Owner != owner || s.Successor != successor) {
			f.t.Fatalf("%v of site %d: owner %d, successor %d, want %d and %d", s.ID, site, s.Owner, s.Successor, owner, successor)
		}
	}
}

// Two sites of two: a member dies, a whole site dies, and they come back.
func TestTwoSites(t *testing.T) {
	f := newFarm(t)
	site := func(n NodeID, s Site) Site {
		s.Number = 1 + int(n-1)/2
		return s
	}
	for _, n := range []NodeID{2, 1, 3, 4} { // node 2 is first
		f.want(Done, n, joinsSite(n, uint64(n)*100, site(n, Site{Priority: int(200 - 10*n)})))
		f.carryOut()
	}
	f.wantOwner(1, 2, 1)
	f.wantOwner(2, 3, 4)
	if a := f.AddressScope(1); a != Slot(1, 0) || f.AddressScope(2) != Slot(3, 0) || f.AddressScope(3) != 0 {
		t.Fatalf("the addresses of site 1 are with %v", a)
	}
	s, _ := f.Scope(Slot(2, 5))
	if want := []NodeID{1, 3, 4}; !slices.Equal(s.Standbys, want) {
		t.Fatalf("standbys %v, want the partner and the other site %v", s.Standbys, want)
	}

	// A member dies: its partner has everything, and keeps it when the other comes back.
	f.want(Done, 3, loses(2, 200))
	f.wantOwner(1, 1, 3)
	f.carryOut()
	f.want(Done, 2, joinsSite(2, 201, site(2, Site{Priority: 255})))
	f.carryOut()
	f.wantOwner(1, 1, 2)

	// A whole site dies, its second node first: the other one's active node has it all.
	f.want(Done, 3, loses(2, 201))
	f.wantOwner(1, 1, 3)
	f.want(Done, 3, loses(1, 100))
	f.wantOwner(1, 3, 4)
	f.wantOwner(2, 3, 4)
	f.carryOut()
	f.wantOwner(1, 3, 4)

	// The first node that is back gets it all, the addresses first.
	f.want(Done, 2, joinsSite(2, 202, site(2, Site{Priority: 100})))
	for _, c := range f.Plan(2) {
		f.apply(3, c)
	}
	for i, s := range f.Scopes() {
		if f.siteOf(s.ID.Home()) == 1 {
			f.want(Done, 3, syncs(s.ID, s.Epoch, s.Standbys...))
		}
		if i == 12 { // not even the first slots are ready before the others
			break
		}
	}
	for _, c := range f.Plan(2) {
		f.apply(3, c)
	}
	if ids := f.HandOvers(3); len(ids) != 1 || ids[0] != Slot(1, 0) {
		t.Fatalf("handed home first: %v", ids)
	}
	f.carryOut()
	f.wantOwner(1, 2, 3)

	// With override the node of higher priority gets it back.
	f.want(Done, 1, joinsSite(1, 101, site(1, Site{Priority: 200})))
	f.carryOut()
	f.wantOwner(1, 2, 1)
	f.want(Done, 1, joinsSite(1, 102, site(1, Site{Priority: 200, Override: true})))
	f.carryOut()
	f.wantOwner(1, 1, 2)

	// A site is drained by draining the active node, then the other.
	f.want(Done, 3, drains(1, true))
	f.carryOut()
	f.wantOwner(1, 2, 3)
	f.want(Done, 3, drains(2, true))
	f.carryOut()
	f.wantOwner(1, 3, 4)
}

// Whatever is lost, drained and comes back: each site's slots are together, at home if
// there is a node for them, and the other sites hold what is in them.
func TestSitesUnderRandomFaults(t *testing.T) {
	runs := 20
	if testing.Short() {
		runs = 3
	}
	for seed := range runs {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		f := newFarm(t)
		nodes, process := NodeID(4+r.IntN(4)), uint64(1000)
		lost := map[NodeID]bool{}
		join := func(n NodeID) {
			process++
			s := Site{Number: 1 + int(n-1)/2, Priority: r.IntN(256), Override: r.IntN(4) == 0}
			if n > 6 {
				s = Site{} // a member that acts alone
			}
			f.want(Done, n, joinsSite(n, process, s))
			delete(lost, n)
		}
		for _, n := range r.Perm(int(nodes)) {
			join(NodeID(n + 1))
			if r.IntN(2) == 0 {
				f.carryOut()
			}
		}
		f.carryOut()
		for range 30 {
			n := NodeID(1 + r.IntN(int(nodes)))
			p, _ := f.Member(n)
			what := ""
			switch k := r.IntN(10); {
			case lost[n]:
				join(n)
				what = "is back"
			case k < 7 && len(lost) < int(nodes)-1:
				lost[n] = true
				by := NodeID(1)
				for lost[by] {
					by++
				}
				f.want(Done, by, loses(n, p.Process))
				what = "is lost"
			default:
				f.apply(f.anybody(), drains(n, p.State != Draining))
				what = "is drained, or no longer"
			}
			before := map[int]NodeID{}
			for site := 1; site <= 3; site++ {
				before[site] = f.Active(site)
			}
			f.carryOut()
			f.checkSites(before, fmt.Sprintf("seed %d: node %d %s", seed, n, what))
		}
	}
}

// checkSites checks a state in which nothing is left to do.
func (f *farm) checkSites(before map[int]NodeID, when string) {
	f.t.Helper()
	owners, nexts := map[int]NodeID{}, map[int]NodeID{}
	for _, s := range f.Scopes() {
		site := f.siteOf(s.ID.Home())
		if site == 0 || s.Owner == 0 {
			continue
		}
		if o, ok := owners[site]; ok && (o != s.Owner || nexts[site] != s.Successor) {
			f.t.Fatalf("%s: the slots of site %d are apart: node %d, then node %d: %+v", when, site, o, nexts[site], s)
		}
		owners[site], nexts[site] = s.Owner, s.Successor
		able := f.mates(site)
		if at := f.siteOf(s.Owner) == site; at != (len(able) > 0) {
			o, _ := f.Member(s.Owner)
			next, _ := f.Member(s.Successor)
			if !at || o.State != Draining || s.Successor != 0 && next.Able() {
				f.t.Fatalf("%s: site %d has %v able, yet %+v; %+v", when, site, able, s, f.Members())
			}
		}
		if was := f.member(before[site]); was != nil && was.Able() && was.Node != s.Owner {
			if now := f.member(s.Owner).Site(); !now.Override || now.Priority <= was.Site().Priority {
				f.t.Fatalf("%s: site %d moved from node %d to node %d", when, site, was.Node, s.Owner)
			}
		}
		here := f.siteOf(s.Owner)
		elsewhere := slices.ContainsFunc(f.Members(), func(p Member) bool { return p.Able() && p.Node != s.Owner && (here == 0 || p.Site().Number != here) })
		holds := slices.ContainsFunc(s.Sync, func(n NodeID) bool { return here == 0 || f.siteOf(n) != here })
		if elsewhere && len(f.mates(here)) < 3 && !holds {
			f.t.Fatalf("%s: nobody in another site holds %+v", when, s)
		}
	}
}

// A site's number, priority and override survive the log and a snapshot; nonsense is no site.
func TestSiteFeatures(t *testing.T) {
	for _, s := range []Site{{}, {Number: 1}, {Number: 16, Priority: 255, Override: true}, {Number: 7, Priority: 128}} {
		if got := (Member{Features: s.Features()}).Site(); got != s {
			t.Errorf("%+v became %+v", s, got)
		}
	}
	for _, f := range []uint64{17, 31, 1 << 8, 1 << 16, 1 << 40} {
		if s := (Member{Features: f}).Site(); s != (Site{}) {
			t.Errorf("features %#x: %+v", f, s)
		}
	}
}
