package node

import (
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/config"
)

// The pools of a farm: which slots ask for ranges (pool_ranges.go), and how much. New clients
// fall to slots that have addresses ready. The members together have a sixteenth of a pool
// ready, each at least leastReady addresses, or of a pool that is small for that its share of
// half of it; in so many slots that each has at least leastReady.

// leastReady is how many addresses a member has ready, where the pool has so many.
const leastReady = 4

// farmPools are the pools of a configuration's phase 1 entries that synchronise.
func farmPools(c *config.Config) []poolRange {
	x := *c
	x.Phase1 = slices.DeleteFunc(slices.Clone(c.Phase1), func(p config.Phase1) bool { return !p.FGSPSync })
	return poolRanges(&x)
}

// poolsOf are the pools with what a slot has of each ready.
func (f *Farm) poolsOf(id cluster.ScopeID) []poolRange {
	members := 0
	for _, p := range f.decided.Members() {
		if !p.Witness && p.State != fsm.Left {
			members++
		}
	}
	out := slices.Clone(f.pools)
	for i := range out {
		size, members := out[i].size(), max(members, 1)
		part := max(size/(poolShares*members), min(leastReady, size/(2*members)), 1)
		slots := min(max(part/leastReady, 1), fsm.SlotsPerMember)
		if f.decided.Home(id) == f.opt.Self && int(id-fsm.Slot(1, 0))%fsm.SlotsPerMember < slots {
			out[i].chunk = min(part/slots, maxPoolChunk)
		}
	}
	return out
}

// leases does what is due about the ranges of the scopes; all: of every one.
func (f *Farm) leases(now time.Time, all bool) {
	for _, id := range f.order {
		n := f.scopes[id]
		if len(f.pools) == 0 && len(n.ranges.mine) == 0 || !all && now.Before(n.rangesDue()) {
			continue
		}
		f.with(id, func(n *Node) {
			n.considerRanges(now, f.decided, f.poolsOf(id), f.quorum.Lost, false)
			n.pump(now)
		})
	}
}

func (f *Farm) nextLeases() (t time.Time, ok bool) {
	for _, id := range f.order {
		if n := f.scopes[id]; len(f.pools) > 0 || len(n.ranges.mine) > 0 {
			t, ok = earlier(t, ok, func() (time.Time, bool) { return n.rangesDue(), true })
		}
	}
	return t, ok
}

// leasing are those of our scopes to which new clients fall: of this member's own slots, if
// it has some, those that can lease an address, if there are such.
func (f *Farm) leasing(mine []cluster.ScopeID) []cluster.ScopeID {
	for _, good := range []func(cluster.ScopeID) bool{
		func(id cluster.ScopeID) bool { return f.decided.Home(id) == f.opt.Self },
		func(id cluster.ScopeID) bool { return f.scopes[id].canLease(f.pools) },
	} {
		if some := slices.DeleteFunc(slices.Clone(mine), func(id cluster.ScopeID) bool { return !good(id) }); len(some) > 0 {
			mine = some
		}
	}
	return mine
}

// poolStatus is what status says of the pools.
func (f *Farm) poolStatus() []PoolStatus { return poolStatus(f.pools, &f.scopeSet, f.decided) }

func poolStatus(pools []poolRange, set *scopeSet, m *fsm.Machine) (out []PoolStatus) {
	for _, x := range pools {
		s := PoolStatus{Start: x.Start, End: x.End, Size: x.size()}
		for _, id := range set.order {
			n := set.scopes[id]
			if !n.owner {
				continue
			}
			s.Leased += n.ike.LeasesWithin(x.AddressRange)
			s.Free += n.freeIn(x.AddressRange)
			if !n.ranges.settled {
				s.Unsettled++
			}
		}
		for _, r := range m.Ranges(0) {
			if r.Process != 0 && x.Contains(r.Space.Addr(r.First)) {
				s.Delegated += int(r.Count)
			}
		}
		out = append(out, s)
	}
	return out
}
