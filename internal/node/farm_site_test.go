package node

import (
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/xfrm"
)

// upSites is a farm of two sites of two, whose log these vote on: 5 is a witness.
func upSites(t *testing.T, seed int64, voters ...fsm.NodeID) *farmWorld {
	w := newFarmWorld(t, seed, 4, 12)
	w.sites = map[cluster.NodeID]fsm.Site{}
	w.log = fsm.NewLogModel(w.now, fsm.LogOptions{Voters: voters, Rand: w.rand.Intn, Reach: w.reach,
		MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Election: 200 * time.Millisecond})
	for _, m := range w.members[1:] {
		w.sites[m.id] = fsm.Site{Number: 1 + int(m.id-1)/2, Priority: 128}
		w.log.SetUp(m.id, true)
	}
	var handOver func() // as a witness does that leads
	handOver = func() {
		if w.log.Leader() == 5 {
			w.log.Depose(w.now)
		}
		w.after(10*time.Millisecond, handOver)
	}
	handOver()
	w.run(20*time.Second, "at rest", func() bool { return w.atHome() })
	w.reachSites()
	w.dial()
	w.run(20*time.Second, "all tunnels up", w.carried)
	w.pass(time.Second)
	return w
}

// active is the member that owns a site's slots, all of them; nil: they are apart.
func (w *farmWorld) active(site int) *farmer {
	var by cluster.NodeID
	for id, owners := range w.owners() {
		if (int(cluster.ScopeID(id).Home())-1)/2+1 != site {
			continue
		}
		if len(owners) != 1 || by != 0 && owners[0] != by {
			return nil
		}
		by = owners[0]
	}
	if by == 0 {
		return nil
	}
	return w.members[by]
}

// atHome: each site's slots are together with one of its nodes, which has the addresses,
// or with a node of the other site if it is dead.
func (w *farmWorld) atHome() bool {
	for site := 1; site <= 2; site++ {
		a, alive := w.active(site), false
		for _, m := range w.members[1:] {
			if w.sites[m.id].Number != site || !m.alive {
				continue
			}
			alive = true
			if m.addresses != (m == a) {
				return false
			}
		}
		if a == nil || alive && w.sites[a.id].Number != site {
			return false
		}
	}
	return w.sitesAtRest()
}

// sitesAtRest is atRest as the living know it.
func (w *farmWorld) sitesAtRest() bool {
	owners, live := w.owners(), 0
	var state *fsm.Machine
	for _, m := range w.members[1:] {
		if m.alive {
			state = m.state
			live++
		}
	}
	for _, s := range state.Scopes() {
		if o := owners[xfrm.Scope(s.ID)]; len(o) != 1 || o[0] != s.Owner || s.Successor == 0 || len(s.Sync) != live-1 || len(s.Standbys) != live-1 {
			return false
		}
	}
	return len(state.Scopes()) == 32 && len(state.Plan(2)) == 0
}

// reachSites lets the router send each client to the active node of its site.
func (w *farmWorld) reachSites() {
	for i := range w.clients {
		if a := w.active(1 + i%2); a != nil {
			w.route[i] = a.id
		}
	}
}

func (w *farmWorld) node(site int, active bool) *farmer {
	for _, m := range w.members[1:] {
		if w.sites[m.id].Number == site && (m == w.active(site)) == active {
			return m
		}
	}
	return nil
}

// soon lets a short time pass in which the survivors have to act.
func (w *farmWorld) soon(within time.Duration, what string, owner *farmer) {
	w.t.Helper()
	w.run(within, what, func() bool { return w.active(1) == owner && w.carried() })
	w.reachSites()
}

// Nodes of two sites die, one by one and together, and come back: the partner has all
// tunnels and the addresses at once, else the other site has the tunnels; what comes
// back gets nothing from a partner that lives, and everything from the other site.
func TestSites(t *testing.T) {
	seeds := 4
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		w := upSites(t, int64(100+seed), 1, 2, 3, 4, 5)
		inits := w.inits
		first, second, other := w.node(1, true), w.node(1, false), w.node(2, true)
		if seed%2 == 0 {
			w.kill(first)
			w.soon(10*time.Millisecond, "with the partner of who died", second)
		} else {
			w.lose(first)
			w.soon(60*time.Millisecond, "with the partner of who fell silent", second)
		}
		if !second.addresses {
			t.Fatal("the partner has no addresses")
		}
		w.run(5*time.Second, "at rest with one node", w.atHome)
		first.boot()
		w.run(30*time.Second, "the first is back", func() bool { return first.status().Joined && w.atHome() })
		w.pass(5 * time.Second)
		if w.active(1) != second {
			t.Fatal("the site moved back without need")
		}
		// The whole site: there is nobody left who was promised it.
		w.lose(first)
		w.lose(second)
		w.soon(600*time.Millisecond, "with the other site", other)
		w.run(10*time.Second, "at rest without the site", w.atHome)
		first.boot()
		second.boot()
		w.run(60*time.Second, "home", func() bool { return first.status().Joined && second.status().Joined && w.atHome() })
		w.reachSites()
		w.pass(2 * time.Second)
		if !w.carried() || w.inits != inits {
			t.Errorf("carried %v, %d IKE_SA_INITs", w.carried(), w.inits-inits)
		}
		for _, m := range w.members[1:] {
			for _, line := range m.logs {
				if strings.Contains(line, "takeover") && strings.Contains(line, "trusted=false") && !strings.Contains(line, "(assigned)") {
					t.Error(line)
				}
			}
		}
		if t.Failed() {
			w.dump()
			return
		}
	}
}

// Two sites without a third place: the nodes that are left of a majority that is gone
// go on with what they own and were promised, across sites.
func TestSitesWithoutQuorum(t *testing.T) {
	w := upSites(t, 200, 1, 2, 3)
	inits := w.inits
	first, second, other := w.node(1, true), w.node(1, false), w.node(2, true)
	w.lose(second)
	w.run(5*time.Second, "the other site promised", func() bool {
		s, _ := other.state.Scope(fsm.Slot(2, 7))
		return s.Successor == other.id
	})
	w.lose(first)
	w.soon(60*time.Millisecond, "with the other site", other)
	w.pass(3 * time.Second)
	if !w.carried() || len(other.active) != 32 || !other.farm.quorum.Lost || w.inits != inits {
		t.Errorf("carried %v, %d slots active, quorum lost %v, %d IKE_SA_INITs", w.carried(), len(other.active), other.farm.quorum.Lost, w.inits-inits)
	}
	first.boot()
	second.boot()
	w.run(60*time.Second, "home", func() bool { return first.status().Joined && second.status().Joined && w.atHome() })
	w.pass(2 * time.Second)
	if !w.carried() || w.inits != inits {
		t.Errorf("carried %v, %d IKE_SA_INITs", w.carried(), w.inits-inits)
	}
}
