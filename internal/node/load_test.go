package node

import (
	"testing"

	"tandem/cluster"
)

// TestLoad: all members that hold a scope have the same digest of its Child SAs,
// another one when a tunnel is gone, and only owners count scopes and Child SAs as
// theirs.
func TestLoad(t *testing.T) {
	w := upFarm(t, 3, 4, 12)
	digests := func() map[cluster.ScopeID]uint64 {
		t.Helper()
		all, holders := map[cluster.ScopeID]uint64{}, map[cluster.ScopeID]int{}
		owned, tunnels := 0, 0
		for _, m := range w.members[1:] {
			l := m.farm.Load()
			owned, tunnels = owned+l.Owned, tunnels+l.Tunnels
			for s, d := range l.Digests {
				if had, ok := all[s]; ok && had != d {
					t.Errorf("%v: member %d has digest %x, another %x", s, m.id, d, had)
				}
				all[s] = d
				holders[s]++
			}
		}
		children := 0
		for _, c := range w.clients {
			children += len(c.sas)
		}
		if owned != 32 || tunnels == 0 || tunnels != children {
			t.Errorf("members own %d scopes and %d Child SAs; clients have %d", owned, tunnels, children)
		}
		for s, n := range holders {
			if n != 3 {
				t.Errorf("%v: %d members hold it, not its owner and two standbys", s, n)
			}
		}
		return all
	}
	before := digests()
	gone := cluster.ScopeID(0)
	for _, m := range w.members[1:] {
		for _, x := range m.sas {
			if m.active[x.Scope] && gone == 0 {
				gone = cluster.ScopeID(x.Scope)
				m.do(func(f *Farm) { f.Clear(w.now, x.Tunnel) })
			}
		}
	}
	w.pass(2e9)
	changed := 0
	for s, d := range digests() {
		if d != before[s] {
			changed++
			if s != gone {
				t.Errorf("%v has another digest, the tunnel was in %v", s, gone)
			}
		}
	}
	if changed != 1 {
		t.Errorf("%d digests changed with one tunnel", changed)
	}
}
