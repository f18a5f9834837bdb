package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
)

// withPool has a gateway's dialup phase 1 hand out addresses.
func (w *farmWorld) withPool(text string) string {
	if first, last, ok := strings.Cut(w.pool, "-"); ok {
		return strings.Replace(text, "set psksecret", fmt.Sprintf("set mode-cfg enable\n        set ipv4-start-ip %s\n        set ipv4-end-ip %s\n        set psksecret", first, last), 1)
	}
	return text
}

// leasingFarm is a farm of three with a pool, and clients that have not dialled.
func leasingFarm(t *testing.T, seed int64, pool string, clients int) *farmWorld {
	w := newFarmWorld(t, seed, 0, 0)
	w.pool = pool
	for i := 1; i <= 3; i++ {
		m := &farmer{w: w, id: cluster.NodeID(i), incarnation: 10}
		w.members = append(w.members, m)
	}
	w.log = fsm.NewLogModel(w.now, fsm.LogOptions{Voters: []fsm.NodeID{1, 2, 3}, Rand: w.rand.Intn, Reach: w.reach,
		MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Election: 200 * time.Millisecond})
	for _, m := range w.members[1:] {
		m.boot()
	}
	w.addCallers(clients)
	w.run(20*time.Second, "settled", w.settled)
	w.run(20*time.Second, "addresses are ready", w.ready)
	return w
}

// ready says that every living member could lease an address.
func (w *farmWorld) ready() bool {
	for _, m := range w.members[1:] {
		if m.alive && m.farm.poolStatus()[0].Free == 0 {
			return false
		}
	}
	return true
}

// address is what a client has been assigned; invalid: nothing, or its tunnel is gone.
func (c *caller) address() (a netip.Addr) {
	if c.node != nil && len(c.sas) > 0 {
		for _, g := range c.node.Status(c.w.now).Gateways {
			for _, x := range g.Assigned.Addrs {
				a = x
			}
		}
	}
	return a
}

// held says that an active member has the client's Child SA.
func (c *caller) held() bool {
	for _, sa := range c.sas {
		for _, m := range c.w.members[1:] {
			if x, ok := m.sas[sa.SPIOut]; ok && m.alive && m.active[x.Scope] {
				return true
			}
		}
	}
	return false
}

// distinct: no address is that of two clients whose tunnels stand.
func (w *farmWorld) distinct() {
	w.t.Helper()
	by := map[netip.Addr]int{}
	for _, c := range w.clients {
		a := c.address()
		if !a.IsValid() || !c.held() {
			continue
		}
		if other, ok := by[a]; ok {
			w.dump()
			w.t.Fatalf("%v: clients %d and %d have %v", w.now, other, c.i, a)
		}
		by[a] = c.i
	}
}

func (w *farmWorld) addressed() (n int) {
	for _, c := range w.clients {
		if c.address().IsValid() && c.held() {
			n++
		}
	}
	return n
}

// hangUp ends a client's tunnel, and the client when its DELETE is answered.
func (c *caller) hangUp() {
	if c.node != nil {
		c.do(func(n *Node) { n.Clear(c.w.now, "hub"); n.Shutdown(c.w.now) })
	}
}

// TestFarmLeasesAddresses: three members lease from one pool. What a client has survives its
// member; it gets the same address again; and a member that takes over leases on.
func TestFarmLeasesAddresses(t *testing.T) {
	w := leasingFarm(t, 1, "10.9.0.1-10.9.0.100", 9)
	w.dial()
	w.run(20*time.Second, "all clients have addresses", func() bool { return w.addressed() == 9 })
	w.distinct()
	w.pass(2 * time.Second)
	before := make([]netip.Addr, 9)
	for i, c := range w.clients {
		before[i] = c.address()
	}
	c := w.clients[4]
	c.hangUp()
	w.run(time.Minute, "it has hung up", func() bool { return !c.address().IsValid() })
	c.start()
	w.run(time.Minute, "it is back", func() bool { return c.address().IsValid() })
	if got := c.address(); got != before[4] {
		t.Errorf("the client had %v, now %v", before[4], got)
	}
	w.kill(w.members[1])
	w.run(time.Second, "carried by the successors", w.carried)
	w.pass(5 * time.Second)
	for i, c := range w.clients {
		if c.address() != before[i] {
			t.Errorf("client %d had %v, after the takeover %v", i, before[i], c.address())
		}
	}
	for _, c := range w.clients {
		c.hangUp()
	}
	w.run(time.Minute, "they have hung up", func() bool { return w.addressed() == 0 })
	w.dial()
	w.run(time.Minute, "all have addresses again", func() bool { return w.addressed() == 9 })
	w.distinct()
	// The dead member's ranges are its successors'.
	w.run(time.Minute, "no range is a dead process's", func() bool {
		for _, r := range w.members[2].state.Ranges(0) {
			if r.Node == 1 {
				return false
			}
		}
		return true
	})
}

// TestFarmPoolRunsOut: a client that gets no address keeps its IKE SA; it gets one when
// another has gone. Without a quorum members lease what they hold, and no more.
func TestFarmPoolRunsOut(t *testing.T) {
	w := leasingFarm(t, 2, "10.9.0.1-10.9.0.12", 15)
	w.dial()
	w.pass(time.Minute)
	if n := w.addressed(); n < 8 || n > 12 {
		w.dump()
		t.Fatalf("%d clients have one of 12 addresses", n)
	}
	w.distinct()
	refused := false
	for _, m := range w.members[1:] {
		refused = refused || slices.ContainsFunc(m.logs, func(l string) bool { return strings.Contains(l, "INTERNAL_ADDRESS_FAILURE") })
	}
	if !refused {
		t.Error("nobody was told that no address is left")
	}
	for i, c := range w.clients {
		if i < 12 {
			c.hangUp()
		}
	}
	w.run(3*time.Minute, "others get what is free again", func() bool {
		return w.clients[12].address().IsValid() || w.clients[13].address().IsValid() || w.clients[14].address().IsValid()
	})
	w.distinct()
}

// TestFarmPoolWithoutQuorum: a member that is cut off leases what it holds.
func TestFarmPoolWithoutQuorum(t *testing.T) {
	w := leasingFarm(t, 3, "10.9.0.1-10.9.0.240", 40)
	for i := range w.clients {
		w.route[i] = 1
	}
	w.cut[1] = 1
	w.pass(3 * time.Second)
	free := w.members[1].farm.poolStatus()[0].Free
	w.dial()
	w.pass(10 * time.Second)
	if n := w.addressed(); n != min(free, 40) || free == 0 {
		t.Errorf("%d clients have addresses of a member that held %d", n, free)
	}
	w.distinct()
	for i := 20; i < 40; i++ {
		w.route[i] = 2
	}
	w.pass(20 * time.Second)
	w.distinct()
	w.cut[1] = 0
	w.run(time.Minute, "settled again", w.settled)
	w.pass(30 * time.Second)
	w.distinct()
}

// TestFarmPoolThroughAnything: members die, restart and part, clients come and go by other
// members: no address is ever that of two of them.
func TestFarmPoolThroughAnything(t *testing.T) {
	seeds := int64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := int64(1); seed <= seeds; seed++ {
		w := leasingFarm(t, seed, "10.9.0.1-10.9.0.30", 14)
		w.dial()
		w.pass(2 * time.Second)
		for range 40 {
			m := w.members[1+w.rand.Intn(3)]
			switch k := w.rand.Intn(12); {
			case k < 2 && m.alive:
				w.kill(m)
			case k < 3 && m.alive:
				w.lose(m)
			case k < 6 && !m.alive:
				m.boot()
			case k < 7:
				w.cut[m.id] = 1
			case k < 9:
				w.cut[1], w.cut[2], w.cut[3] = 0, 0, 0
			default:
				c := w.clients[w.rand.Intn(len(w.clients))]
				if w.rand.Intn(2) == 0 {
					c.hangUp()
				} else {
					w.route[c.i] = m.id
					c.start() // as another device, of which no DELETE comes
				}
			}
			for range 1 + w.rand.Intn(8) {
				w.pass(time.Duration(w.rand.Intn(500)) * time.Millisecond)
				w.distinct()
			}
		}
		for _, m := range w.members[1:] {
			if !m.alive {
				m.boot()
			}
		}
		w.cut[1], w.cut[2], w.cut[3] = 0, 0, 0
		w.run(time.Minute, "settled", w.settled)
		for _, c := range w.clients {
			c.hangUp()
		}
		w.pass(10 * time.Second)
		w.dial()
		w.run(3*time.Minute, "all have addresses", func() bool { w.distinct(); return w.addressed() == len(w.clients) })
	}
}

// TestLeasedAddressFollowsTheTunnel: a tunnel that moves to another member takes its address
// along, which the scope that leased it does not lease again before the tunnel has ended.
func TestLeasedAddressFollowsTheTunnel(t *testing.T) {
	w := leasingFarm(t, 7, "10.9.0.1-10.9.0.40", 6)
	w.dial()
	w.run(20*time.Second, "all clients have addresses", func() bool { return w.addressed() == 6 })
	w.pass(2 * time.Second)
	c := w.clients[0]
	had := c.address()
	w.drift(c, 2)
	w.run(10*time.Second, "the tunnel has moved", func() bool { return w.at(c, 2) })
	w.pass(2 * time.Second)
	taken := func() (holds []cluster.ScopeID) {
		for _, m := range w.members[1:] {
			for _, id := range m.farm.order {
				if n := m.farm.scopes[id]; m.alive && n.owner && n.ike.LeasesWithin(ike.AddressRange{Start: had, End: had}) > 0 {
					holds = append(holds, id)
				}
			}
		}
		return holds
	}
	if h := taken(); len(h) != 2 {
		t.Fatalf("%v hold %v, want who leased it and who has the tunnel", h, had)
	}
	w.kill(w.members[1]) // who leased it
	w.run(time.Second, "carried by the successors", w.carried)
	w.pass(2 * time.Second)
	if h := taken(); len(h) != 2 || c.address() != had {
		t.Fatalf("after the loss of who leased it %v hold %v, the client has %v", h, had, c.address())
	}
	w.route[0] = 2
	c.hangUp()
	w.run(time.Minute, "the address is free again", func() bool { return len(taken()) == 0 })
}
