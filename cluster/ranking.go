package cluster

import (
	"cmp"
	"slices"
	"time"
)

// Candidate is a node that may own a scope, as an election sees it.
type Candidate struct {
	Node     NodeID
	Election Election
}

// Rank orders the candidates of a group as FGCP does, the one that goes first at the
// beginning, and names what decided about that one. Of two it is what rank says; of more,
// every key in turn leaves those that are best in it. So ages that differ by no more than
// margin from the highest are equal, and the order is one, though closeness of ages is
// not transitive. Override counts if any of them has it. Where no key tells them apart, the
// lower node number goes first.
func Rank(all []Candidate, margin time.Duration) (order []NodeID, why string) {
	left := slices.Clone(all)
	slices.SortFunc(left, func(a, b Candidate) int { return cmp.Compare(a.Node, b.Node) })
	override := slices.ContainsFunc(left, func(c Candidate) bool { return c.Election.Override })
	for len(left) > 0 {
		i, key := first(left, override, margin)
		if len(order) == 0 {
			why = key
		}
		order = append(order, left[i].Node)
		left = slices.Delete(left, i, i+1)
	}
	return order, why
}

// first is the index of the one that goes first, and the last key that left some behind.
func first(all []Candidate, override bool, margin time.Duration) (best int, why string) {
	in := make([]int, len(all))
	for i := range in {
		in[i] = i
	}
	why = bySerial
	for _, key := range electionOrder(override) {
		var kept []int
		for _, i := range in {
			if !slices.ContainsFunc(in, func(j int) bool { return better(key, &all[j].Election, &all[i].Election, margin) }) {
				kept = append(kept, i)
			}
		}
		if len(kept) < len(in) {
			in, why = kept, key
		}
	}
	return in[0], why
}

func electionOrder(override bool) []string {
	if override {
		return []string{byFailover, byMonitors, byPingservers, byPriority, byAge, bySerial}
	}
	return []string{byFailover, byMonitors, byPingservers, byAge, byPriority, bySerial}
}

// better says whether one key puts a before b.
func better(key string, a, b *Election, margin time.Duration) bool {
	switch key {
	case byFailover:
		return !a.Failover && b.Failover
	case byMonitors:
		return a.MonitorsUp > b.MonitorsUp
	case byPingservers:
		return a.Penalty < b.Penalty
	case byAge:
		return a.Age-b.Age > margin
	case byPriority:
		return a.Priority > b.Priority
	}
	return a.Serial > b.Serial
}
