package node

import (
	"fmt"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/xfrm"
)

func upFarm(t testing.TB, seed int64, members, clients int) *farmWorld {
	w := newFarmWorld(t, seed, members, clients)
	w.run(20*time.Second, "settled", w.settled)
	w.dial()
	w.run(20*time.Second, "all tunnels up", w.carried)
	w.pass(time.Second)
	return w
}

// A farm comes up; its clients' tunnels are owned by those that the router sent them
// to, and copied to two standbys each.
func TestFarmComesUp(t *testing.T) {
	w := upFarm(t, 1, 4, 12)
	for _, c := range w.clients {
		for _, sa := range c.sas {
			copies := 0
			for _, m := range w.members[1:] {
				if _, ok := m.sas[sa.SPIOut]; ok {
					copies++
				}
			}
			if copies != 3 {
				t.Errorf("client %d: %d copies", c.i, copies)
			}
			home := w.members[w.route[c.i]]
			if x := home.sas[sa.SPIOut]; !home.active[x.Scope] {
				t.Errorf("client %d is not owned by the member that answered", c.i)
			}
		}
	}
	names := map[string]cluster.NodeID{}
	for _, m := range w.members[1:] {
		for _, x := range m.sas {
			if m.active[x.Scope] {
				if by, ok := names[x.Tunnel]; ok {
					t.Errorf("instance %s at members %d and %d", x.Tunnel, by, m.id)
				}
				names[x.Tunnel] = m.id
			}
		}
	}
}

// A member dies, by its daemon or with its host; its successors go on with its
// tunnels at once, and it gets its slots back when it is there again.
func TestFarmLosesAMember(t *testing.T) {
	for name, lose := range map[string]func(*farmWorld, *farmer){"SIGKILL": (*farmWorld).kill, "loss of the host": (*farmWorld).lose} {
		for victim := 1; victim <= 4; victim++ {
			t.Run(fmt.Sprintf("%s of %d", name, victim), func(t *testing.T) {
				w := upFarm(t, int64(victim), 4, 12)
				inits := w.inits
				m := w.members[victim]
				lose(w, m)
				w.run(100*time.Millisecond, "carried by the successors", w.carried)
				w.run(10*time.Second, "settled without it", w.settled)
				w.pass(2 * time.Second)
				m.boot()
				w.run(20*time.Second, "settled with it", func() bool { return w.settled() && len(m.active) == 8 })
				w.pass(time.Second)
				if !w.carried() || w.inits != inits {
					w.dump()
					t.Errorf("carried: %v; %d IKE_SA_INITs since", w.carried(), w.inits-inits)
				}
			})
		}
	}
}

// Two halves that cannot hear each other both go on; when they can again, every scope
// has one owner within a second, and nobody has to begin anew.
func TestFarmHealsAPartition(t *testing.T) {
	for name, apart := range map[string][]cluster.NodeID{"a voter alone": {1}, "two of five": {2, 5}, "one that does not vote": {4}} {
		t.Run(name, func(t *testing.T) {
			w := upFarm(t, 7, 5, 10)
			inits := w.inits
			for _, n := range apart {
				w.cut[n] = 1
			}
			w.pass(3 * time.Second)
			clear(w.cut)
			w.pass(time.Second)
			for s, o := range w.owners() {
				if len(o) != 1 {
					t.Errorf("%v has owners %v one second after healing", cluster.ScopeID(s), o)
				}
			}
			w.run(10*time.Second, "settled", w.settled)
			w.run(5*time.Second, "carried", w.carried)
			if w.inits != inits {
				t.Errorf("%d IKE_SA_INITs", w.inits-inits)
			}
			if t.Failed() {
				w.dump()
			}
		})
	}
}

// Whatever fails, epochs are not shared and the farm comes to rest with every client
// served.
func TestFarmUnderRandomFaults(t *testing.T) {
	seeds := 100
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			members := 3 + seed%3
			w := upFarm(t, int64(100+seed), members, 6)
			for range 6 {
				m := w.members[1+w.rand.Intn(members)]
				switch k := w.rand.Intn(10); {
				case !m.alive:
					m.boot()
				case k < 3:
					w.kill(m)
				case k < 6:
					w.lose(m)
				case k < 8:
					w.cut[m.id] = 1 - w.cut[m.id]
				default:
					clear(w.cut)
				}
				w.pass(time.Duration(w.rand.Intn(3000)) * time.Millisecond)
			}
			clear(w.cut)
			for _, m := range w.members[1:] {
				if !m.alive {
					m.boot()
				}
			}
			w.run(time.Minute, "settled", w.settled)
			w.run(10*time.Minute, "all clients served", w.carried)
		})
	}
}

// The router sends a client's messages to a member that holds no copy: they reach the
// owner all the same, and the client notices nothing.
func TestFarmWrongMember(t *testing.T) {
	w := upFarm(t, 3, 5, 8)
	inits := w.inits
	before := map[int]xfrm.SA{}
	for _, c := range w.clients {
		for _, sa := range c.sas {
			before[c.i] = sa
			for _, m := range w.members[1:] {
				if _, ok := m.sas[sa.SPIOut]; !ok {
					w.route[c.i] = m.id
				}
			}
			if x := w.members[w.route[c.i]].sas[sa.SPIOut]; x.SPIIn != 0 {
				t.Fatalf("every member has a copy of client %d's SA", c.i)
			}
		}
		c.do(func(n *Node) { n.Rekey(w.now, "hub", false) })
	}
	w.run(5*time.Second, "rekeyed", func() bool {
		for _, c := range w.clients {
			if _, old := c.sas[before[c.i].SPIIn]; old || len(c.sas) != 1 {
				return false
			}
		}
		return w.carried()
	})
	forwarded := uint64(0)
	for _, m := range w.members[1:] {
		forwarded += m.farm.Status(w.now).Farm.Counters.Forwarded
	}
	if w.inits != inits || forwarded == 0 {
		t.Errorf("%d IKE_SA_INITs, %d messages forwarded", w.inits-inits, forwarded)
	}
}

// initiates gives every client a static tunnel that the farm begins, and starts everybody.
func (w *farmWorld) initiates() {
	for i := range w.clients {
		w.gateway += farmSite(i)
	}
	for _, m := range w.members[1:] {
		m.boot()
	}
	w.passive = true
	w.dial()
}

// A tunnel that the cluster initiates has one initiator at any time: the owner of the
// scope that it falls to.
func TestFarmInitiates(t *testing.T) {
	w := newFarmWorld(t, 5, 4, 3)
	w.initiates()
	w.run(20*time.Second, "settled", w.settled)
	w.run(20*time.Second, "all tunnels up", w.carried)
	w.pass(5 * time.Second)
	if w.fromFarm != len(w.clients) {
		t.Errorf("%d IKE_SA_INITs for %d tunnels", w.fromFarm, len(w.clients))
	}
	for _, m := range w.members[1:] {
		if len(m.active) == 8 && len(m.sas) > 0 {
			w.kill(m)
			w.run(200*time.Millisecond, "carried on", w.carried)
			w.pass(2 * time.Second)
			m.boot()
			w.run(20*time.Second, "settled again", w.settled)
		}
	}
	if w.pass(5 * time.Second); w.fromFarm != len(w.clients) || !w.carried() {
		t.Errorf("%d IKE_SA_INITs for %d tunnels after every member died once", w.fromFarm, len(w.clients))
	}
}

// While a farm comes together no newcomer draws a static tunnel to itself that another
// member has just begun.
func TestFarmInitiatesOnceWhole(t *testing.T) {
	w := newFarmWorld(t, 6, 4, 8)
	peers := "config system standalone-cluster\nconfig cluster-peer\n"
	for i := range 3 { // of each member
		peers += fmt.Sprintf("edit %d\nset peerip 172.31.1.%d\nnext\n", i+1, i+1)
	}
	w.gateway = peers + "end\nend\n"
	for i := range w.clients {
		w.gateway += farmSite(i)
	}
	late := w.members[4]
	w.kill(late)
	for _, m := range w.members[1:4] {
		m.boot()
	}
	w.passive = true
	w.dial()
	w.pass(600 * time.Millisecond)
	if len(w.members[1].state.Scopes()) != 24 {
		t.Fatalf("%d slots before the last member joins", len(w.members[1].state.Scopes()))
	}
	late.boot()
	w.run(20*time.Second, "settled", w.settled)
	w.run(20*time.Second, "all tunnels up", w.carried)
	if w.pass(5 * time.Second); w.fromFarm != len(w.clients) {
		t.Errorf("%d IKE_SA_INITs for %d tunnels", w.fromFarm, len(w.clients))
	}

	// One that never comes is waited for in vain, and not for long.
	w = newFarmWorld(t, 7, 3, 3)
	w.gateway = peers + "end\nend\n"
	w.initiates()
	w.run(20*time.Second, "all tunnels up without the fourth", w.carried)
	if w.fromFarm != len(w.clients) {
		t.Errorf("%d IKE_SA_INITs for %d tunnels", w.fromFarm, len(w.clients))
	}
}

// A copy that has begun is kept, though the log, as far as it is heard here, says that
// this member has nothing to do with the scope; once removed, it is forgotten.
func TestFarmKeepsACopyUnderWay(t *testing.T) {
	w := upFarm(t, 20, 5, 8)
	var m *farmer
	var n *Node
	var id cluster.ScopeID
	for _, x := range w.members[1:] {
		for _, s := range x.farm.order {
			if y := x.farm.scopes[s]; !y.owner && len(y.sas) > 0 {
				m, n, id = x, y, s
			}
		}
	}
	without := fsm.New() // as replayed from the beginning
	if n.slot.HandleCopying(w.now, cluster.Epoch{Counter: 1, Node: 1}); n.slot.Idle() {
		t.Fatal("forgotten while it is copied to")
	}
	m.do(func(f *Farm) { f.HandleDecided(w.now, without) })
	if n.spare || len(n.sas) == 0 {
		t.Fatal("what was copied is gone")
	}
	m.do(func(f *Farm) { f.HandleRemoved(w.now, id, m.id) })
	s, _ := w.members[1].state.Scope(id)
	s.Standbys, s.Sync, s.Successor = nil, nil, 0
	if m.farm.concerns(s) || !n.slot.Idle() {
		t.Fatal("a member that was removed goes on")
	}
}
