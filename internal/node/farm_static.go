package node

import (
	"fmt"
	"hash/fnv"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/xfrm"
)

// placeWait is how long the scopes must have been the same before static phase 1 entries
// are placed among those of some members only.
const placeWait = time.Second

// whole says that every configured member has joined, and has its slots. Before that, while
// a farm comes together, each newcomer would draw static tunnels to itself that another
// member has just begun.
func (f *Farm) whole() bool {
	want, slots := len(f.cfg.Standalone.Peers)+1, 0
	if f.cfg.Tandem.Witness.Node != 0 {
		want++
	}
	for _, p := range f.decided.Members() {
		if want--; !p.Witness {
			slots += fsm.SlotsPerMember
		}
	}
	return want <= 0 && len(f.decided.Scopes()) >= slots
}

// place says to which scope each static phase 1 falls.
func (f *Farm) place() {
	f.placeAt = time.Time{}
	f.static = map[string]cluster.ScopeID{}
	for i := range f.cfg.Phase1 {
		if p := &f.cfg.Phase1[i]; p.FGSPSync && !p.Dialup() {
			f.static[p.Name] = f.scopeOf(p.Name)
		}
	}
}

// scopeOf is the scope of a static phase 1: the same on every member, and another
// only where scopes came or went (rendezvous hashing).
func (f *Farm) scopeOf(phase1 string) (best cluster.ScopeID) {
	var top uint64
	for _, s := range f.decided.Scopes() {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s/%d", phase1, s.ID)
		if v := h.Sum64(); v >= top {
			top, best = v, s.ID
		}
	}
	return best
}

// BegunElsewhere are the static tunnels that other members begin, with their scopes.
func (f *Farm) BegunElsewhere(owners map[xfrm.Scope]cluster.NodeID) map[string]xfrm.Scope {
	m := map[string]xfrm.Scope{}
	for name, id := range f.static {
		if s := xfrm.Scope(id); owners[s] != 0 {
			m[name] = s
		}
	}
	return m
}
