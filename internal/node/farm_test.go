package node

import (
	"fmt"
	"testing"
	"time"

	"tandem/cluster"
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
