package node

import (
	"errors"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/xfrm"
)

func (m *farmer) drain(on bool) {
	m.w.t.Helper()
	c, err := m.farm.Drain(on)
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.propose(c)
}

func (m *farmer) status() *FarmStatus { return m.farm.Status(m.w.now).Farm }

// Draining a member under clients moves all of its scopes, one after the other and
// without a peer that has to begin anew; nothing comes to it, also when its daemon
// starts again, until the drain is ended. Then its own slots come back.
func TestFarmDrainsAMember(t *testing.T) {
	for victim := 1; victim <= 4; victim++ {
		if testing.Short() && victim != 2 {
			continue
		}
		w := upFarm(t, int64(20+victim), 4, 12)
		inits, m := w.inits, w.members[victim]
		owned := 0
		for _, x := range m.sas {
			if m.active[x.Scope] {
				owned++
			}
		}
		if owned == 0 || m.status().Draining() {
			t.Fatalf("member %d owns %d Child SAs, draining %v", victim, owned, m.status().Draining())
		}
		moved := func() (n uint64) {
			for _, o := range w.members[1:] {
				n += o.status().Counters.OwnerMoves
			}
			return n
		}
		before := moved()
		m.drain(true)
		w.run(30*time.Second, "drained", func() bool {
			if n := len(m.farm.handing()); n > 1 {
				t.Fatalf("%d scopes are handed over at once", n)
			}
			return m.status().Draining() && m.status().ScopesOwned() == 0
		})
		if len(m.active) != 0 {
			t.Errorf("member %d is drained and active for %v", victim, m.active)
		}
		if n := moved() - before; n != uint64(owned) {
			t.Errorf("%d tunnels of %d are counted as moved", n, owned)
		}
		w.run(10*time.Second, "at rest with the drained member", func() bool { return w.carried() && w.atRest() })
		// The router goes on sending to it: it knows whose each tunnel is that was its own.
		for _, c := range w.clients {
			if w.route[c.i] != m.id {
				continue
			}
			for _, sa := range c.sas {
				if x, ok := m.sas[sa.SPIOut]; !ok || m.farm.ownerOf(cluster.ScopeID(x.Scope)) == 0 {
					t.Errorf("member %d cannot forward for client %d", victim, c.i)
				}
			}
		}
		if victim == 2 && !testing.Short() {
			w.pass(3 * time.Minute) // dead peer detection of both sides
		}
		w.kill(m)
		w.pass(2 * time.Second)
		m.boot()
		w.run(20*time.Second, "at rest with the drained member", func() bool { return m.status().Joined && w.atRest() })
		w.pass(5 * time.Second)
		if n := len(m.active); n != 0 || !m.status().Draining() {
			t.Errorf("after its restart member %d owns %d scopes, draining %v", victim, n, m.status().Draining())
		}
		m.drain(false)
		w.run(60*time.Second, "its slots back", func() bool { return w.settled() && len(m.active) == 8 })
		w.pass(time.Second)
		if !w.carried() || w.inits != inits {
			t.Errorf("member %d: carried %v, %d IKE_SA_INITs", victim, w.carried(), w.inits-inits)
		}
		if t.Failed() {
			w.dump()
			return
		}
	}
}

// atRest: every scope has one owner, whom the log names, and all members that shall
// hold its records do.
func (w *farmWorld) atRest() bool {
	owners := w.owners()
	state := w.members[1].state
	for _, s := range state.Scopes() {
		if o := owners[xfrm.Scope(s.ID)]; len(o) != 1 || o[0] != s.Owner || s.Successor == 0 || len(s.Standbys) < 2 || len(s.Sync) != len(s.Standbys) {
			return false
		}
	}
	return len(state.Plan(2)) == 0
}

// handing are the scopes that are being handed over.
func (f *Farm) handing() (ids []cluster.ScopeID) {
	for _, id := range f.order {
		if f.scopes[id].handing != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// The last member that could own anything is not drained.
func TestFarmDoesNotDrainTheLastMember(t *testing.T) {
	w := upFarm(t, 30, 3, 3)
	w.members[1].drain(true)
	w.members[2].drain(true)
	last := w.members[3]
	w.run(60*time.Second, "two members drained", func() bool { return len(last.active) == 24 })
	if _, err := last.farm.Drain(true); !errors.Is(err, ErrNobodyElse) {
		t.Errorf("the last one: %v", err)
	}
	if _, err := last.farm.Drain(false); err != nil {
		t.Error(err)
	}
}
