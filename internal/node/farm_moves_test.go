package node

import (
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// detach is the data plane's part: every SA that leaves has sent and received a little more.
// Every third time a packet has just begun to wait.
func (m *farmer) detach(e Detach) (ws []xfrm.Window, ok bool) {
	if m.w.detached++; m.w.detached%3 == 0 {
		return nil, false
	}
	for _, spi := range e.SPIs {
		x, ok := m.sas[spi]
		if !ok || x.Scope != e.Scope || !m.active[e.Scope] {
			m.w.t.Errorf("member %d is asked for %s of scope %v, which it does not carry", m.id, spi, cluster.ScopeID(e.Scope))
			continue
		}
		delete(m.sas, spi)
		delete(m.outbound, spi)
		m.w.sent += 1000
		ws = append(ws, xfrm.Window{SPIIn: spi, OutSeq: m.w.sent, InSeq: m.w.sent + 1, InAccepted: []uint64{m.w.sent}})
	}
	return ws, true
}

// imported: exact windows come for what is installed already.
func (m *farmer) imported(ws []xfrm.Window) {
	for _, w := range ws {
		x, ok := m.sas[w.SPIIn]
		if !ok || w.InSeq != w.OutSeq+1 || len(w.InAccepted) != 1 || w.InAccepted[0] != w.OutSeq || x.Ceiling < w.OutSeq || x.Fence != w.InSeq {
			m.w.t.Errorf("member %d imports %+v for %+v", m.id, w, x)
		}
	}
}

// drift has the data plane of whoever owns the client's tunnel report that its packets
// come through another member, until the tunnel is there.
func (w *farmWorld) drift(c *caller, to cluster.NodeID) {
	w.route[c.i] = to
	var tick func()
	tick = func() {
		if w.route[c.i] != to {
			return
		}
		for spi, o := range w.holder(c) {
			if o.id != to {
				o.do(func(f *Farm) {
					f.HandlePlane(w.now, []xfrm.Event{xfrm.ForwardedTraffic{SPIIn: spi, From: uint8(to), Packets: 5}})
				})
			}
		}
		w.after(100*time.Millisecond, tick)
	}
	tick()
}

// holder is the member that carries a client's Child SA.
func (w *farmWorld) holder(c *caller) map[ipsec.ESPSPI]*farmer {
	out := map[ipsec.ESPSPI]*farmer{}
	for _, sa := range c.sas {
		for _, m := range w.members[1:] {
			if x, ok := m.sas[sa.SPIOut]; ok && m.alive && m.active[x.Scope] {
				out[sa.SPIOut] = m
			}
		}
	}
	return out
}

func (w *farmWorld) at(c *caller, id cluster.NodeID) bool {
	h := w.holder(c)
	for _, m := range h {
		if m.id != id {
			return false
		}
	}
	return len(h) == 1
}

// shelves counts what members keep of tunnels that were moved, and how many of them nobody has taken.
func (w *farmWorld) shelves() (kept, open int) {
	for _, m := range w.members[1:] {
		for _, id := range m.farm.order {
			for _, s := range m.farm.scopes[id].ike.Shelf() {
				if kept++; !s.Adopted {
					open++
				}
			}
		}
	}
	return kept, open
}

// A tunnel follows its traffic, with its SPIs, its name and its exact windows; back
// again; and lives on when the member dies to which it went. What is kept of it where it
// was is forgotten when it ends.
func TestFarmTunnelFollowsTraffic(t *testing.T) {
	w := upFarm(t, 40, 4, 12)
	inits := w.inits
	names := map[string]bool{}
	tunnels := func() (out []string) {
		for _, m := range w.members[1:] {
			for _, x := range m.sas {
				if m.active[x.Scope] {
					out = append(out, x.Tunnel+" "+x.SPIIn.String())
				}
			}
		}
		slices.Sort(out)
		return out
	}
	before := tunnels()
	for round := range 3 {
		from := map[*caller]cluster.NodeID{}
		for _, c := range w.clients {
			from[c] = w.route[c.i]
			w.drift(c, 1+w.route[c.i]%4)
		}
		w.run(time.Second, "all tunnels where their traffic is", func() bool {
			for _, c := range w.clients {
				if !w.at(c, w.route[c.i]) {
					return false
				}
			}
			return true
		})
		w.run(time.Second, "carried and taken", func() bool { _, open := w.shelves(); return w.carried() && open == 0 })
		if got := tunnels(); !slices.Equal(got, before) {
			t.Fatalf("round %d: %v, was %v", round, got, before)
		}
		// The LAN's packets still arrive where the tunnel was, and find their way there.
		for c, id := range from {
			for _, sa := range c.sas {
				if _, ok := w.members[id].sas[sa.SPIOut]; !ok {
					t.Errorf("round %d: member %d keeps no copy of the tunnel that left it", round, id)
				}
			}
		}
		w.pass(settleTime)
		w.wantPeerRoutes()
	}
	for _, m := range w.members[1:] {
		if n := m.status().Counters.OwnerMoves; n < 6 {
			t.Errorf("member %d counts %d moves", m.id, n)
		}
		for _, x := range m.sas {
			names[x.Tunnel] = true
		}
	}
	if len(names) != len(w.clients) {
		t.Errorf("%d names", len(names))
	}
	victim := w.members[2]
	w.kill(victim)
	w.run(5*time.Second, "carried without member 2", w.carried)
	w.pass(3 * time.Minute) // dead peer detection of both sides
	victim.boot()
	w.run(60*time.Second, "settled", w.settled)
	w.pass(time.Minute)
	w.wantPeerRoutes()
	for _, s := range victim.state.Scopes() {
		want := w.members[s.Owner].farm.scopes[s.ID].ike.Shelf()
		for _, id := range s.Sync {
			if got := w.members[id].farm.scopes[s.ID].ike.Shelf(); len(got) != len(want) {
				t.Errorf("%v: member %d knows of %d tunnels that were moved, the owner of %d", s.ID, id, len(got), len(want))
			}
		}
	}
	if !w.carried() || w.inits != inits {
		t.Errorf("carried %v, %d IKE_SA_INITs", w.carried(), w.inits-inits)
	}
	for _, c := range w.clients {
		c.do(func(n *Node) { n.Shutdown(w.now) })
	}
	w.run(5*askEvery, "all ended and forgotten", func() bool {
		kept, _ := w.shelves()
		return kept == 0 && len(tunnels()) == 0
	})
	for _, m := range w.members[1:] {
		if m.alive && (len(m.farm.pointers) > 0 || len(m.farm.routes) > 0 || len(m.farm.spis) > 0 || len(m.sas) > 0) {
			t.Errorf("member %d keeps %d pointers, %d routes, %d SPIs, %d SAs", m.id, len(m.farm.pointers), len(m.farm.routes), len(m.farm.spis), len(m.sas))
		}
	}
	if t.Failed() {
		w.dump()
	}
}

// wantPeerRoutes wants that whoever carries a client's tunnel has a route to the address
// that the client told of its interface, counted once for each scope that has the tunnel, or of which that is told.
func (w *farmWorld) wantPeerRoutes() {
	w.t.Helper()
	for _, m := range w.members[1:] {
		for r, n := range m.farm.routes {
			if n < 1 || n > len(m.farm.order)+len(m.farm.lan.pages) {
				w.t.Errorf("member %d counts %d times the route to %v", m.id, n, r.Prefix)
			}
		}
	}
	for _, c := range w.clients {
		for _, m := range w.holder(c) {
			if m.farm.routes[AddRoute{"vpn1", netip.MustParsePrefix(fmt.Sprintf("172.16.1.%d/32", c.i+1))}] == 0 {
				w.t.Errorf("member %d carries client %d without a route to its interface", m.id, c.i)
			}
		}
	}
}

// With strict-anti-replay, and where the packets come here as well, a tunnel stays.
func TestFarmTunnelStays(t *testing.T) {
	w := upFarm(t, 41, 3, 3)
	report := func(e xfrm.ForwardedTraffic) {
		for range 20 {
			for spi, o := range w.holder(w.clients[0]) {
				e.SPIIn = spi
				o.do(func(f *Farm) { f.HandlePlane(w.now, []xfrm.Event{e}) })
			}
			w.pass(100 * time.Millisecond)
		}
	}
	home := w.route[0]
	other := 1 + uint8(home)%3
	stays := func(what string) {
		if !w.at(w.clients[0], home) {
			t.Fatalf("%s: the tunnel has moved", what)
		}
	}
	report(xfrm.ForwardedTraffic{From: other, Packets: 5, Direct: 5})
	stays("half of the packets come to the owner")
	for range 10 {
		report(xfrm.ForwardedTraffic{From: other, Packets: 0})
	}
	stays("none comes")
	for _, m := range w.members[1:] {
		m.farm.cfg.Standalone.AsymmetricTrafficControl = strictAntiReplay
	}
	report(xfrm.ForwardedTraffic{From: other, Packets: 50})
	stays("strict-anti-replay")
	for _, m := range w.members[1:] {
		m.farm.cfg.Standalone.AsymmetricTrafficControl = ""
	}
	report(xfrm.ForwardedTraffic{From: other, Packets: 50})
	if !w.at(w.clients[0], cluster.NodeID(other)) {
		t.Error("the tunnel has not moved where nothing forbids it")
	}
}

// Whatever member dies at whatever moment of a move, the tunnel is carried by one
// member afterwards, and no peer has to begin anew.
func TestFarmMemberDiesWithinAMove(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 12
	}
	for i := range rounds {
		w := upFarm(t, int64(100+i), 3, 3)
		r := rand.New(rand.NewSource(int64(i)))
		inits := w.inits
		c := w.clients[0]
		from, to := w.members[w.route[0]], w.members[1+w.route[0]%3]
		third := w.members[6-from.id-to.id]
		w.drift(c, to.id)
		w.run(time.Second, "the tunnel leaves", func() bool { kept, _ := w.shelves(); return kept > 0 })
		w.pass(time.Duration(r.Intn(4000)) * time.Microsecond)
		victim := []*farmer{from, to, third}[i%3]
		if r.Intn(2) == 0 {
			w.kill(victim)
		} else {
			w.lose(victim)
		}
		w.run(5*time.Second, "carried", w.carried)
		victim.boot()
		w.run(60*time.Second, "settled", func() bool { _, open := w.shelves(); return w.settled() && w.carried() && open == 0 })
		w.pass(2 * time.Minute)
		if !w.carried() || w.inits != inits {
			t.Errorf("round %d: carried %v, %d IKE_SA_INITs", i, w.carried(), w.inits-inits)
			w.dump()
		}
		if t.Failed() {
			return
		}
	}
}

// TestFarmInitialContact: a client that comes back without its state, by way of whichever
// member, is known once: what others own of it ends when they have the record.
func TestFarmInitialContact(t *testing.T) {
	w := upFarm(t, 7, 3, 9)
	for round := range 3 {
		for _, c := range w.clients {
			w.route[c.i] = 1 + w.route[c.i]%3
			before := slices.Collect(maps.Keys(w.holder(c)))
			c.start()
			w.run(5*time.Second, fmt.Sprintf("round %d: client %d is up again, and known once", round, c.i), func() bool {
				at := w.holder(c)
				if len(at) != 1 || slices.ContainsFunc(before, func(spi ipsec.ESPSPI) bool { return at[spi] != nil }) {
					return false
				}
				n := 0
				for _, m := range w.members[1:] {
					for _, x := range m.sas {
						if m.active[x.Scope] && x.Remote.Addr() == c.addr {
							n++
						}
					}
				}
				return n == 1
			})
		}
		w.pass(settleTime)
	}
	w.run(time.Second, "all carried", w.carried)
}
