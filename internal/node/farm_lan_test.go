package node

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/xfrm"
)

// prefixes are those by which a client is reached: its network, and its interface.
func (c *caller) prefixes() []AddRoute {
	return []AddRoute{
		{"vpn1", netip.MustParsePrefix(fmt.Sprintf("10.10.%d.0/24", c.i))},
		{"vpn1", netip.MustParsePrefix(fmt.Sprintf("172.16.1.%d/32", c.i+1))},
	}
}

// carryLAN carries out what is about prefixes.
func (m *farmer) carryLAN(e Effect) {
	w := m.w
	switch e := e.(type) {
	case SendLAN:
		if w.lanLost != nil && w.lanLost() {
			return
		}
		w.after(200*time.Microsecond, func() {
			if o := w.members[e.To]; w.reach(m.id, e.To) {
				o.do(func(f *Farm) { f.HandleLAN(w.now, m.id, e.Message) })
			}
		})
	case Lead:
		r := AddRoute{e.Tunnel, e.Prefix}
		if m.leads[r] = e.To; e.To == 0 {
			delete(m.leads, r)
		}
	case AddRoute:
		m.routes[e] = true
	case RemoveRoute:
		delete(m.routes, AddRoute(e))
	}
}

// here finds the SA by which a member sends to a client, or would if its scope were active.
func (m *farmer) here(c *caller) (xfrm.SA, bool) {
	for _, sa := range c.sas {
		if x, ok := m.sas[sa.SPIOut]; ok {
			return x, true
		}
	}
	return xfrm.SA{}, false
}

// led says whether what the LAN sends to a client through a member reaches an owner:
// it has a route, and an SA there or somewhere to lead to.
func (w *farmWorld) led(m *farmer, c *caller) error {
	for _, r := range c.prefixes() {
		x, copied := m.here(c)
		scope, lead := m.leads[r]
		switch {
		case !m.routes[r]:
			return fmt.Errorf("member %d has no route to %v", m.id, r.Prefix)
		case copied:
			scope = x.Scope
		case !lead:
			return fmt.Errorf("member %d has a route to %v, and does not know where that leads to", m.id, r.Prefix)
		}
		if !m.active[scope] && m.farm.Owners()[scope] == 0 {
			return fmt.Errorf("member %d leads %v to %v, whose owner it does not know", m.id, r.Prefix, cluster.ScopeID(scope))
		}
		for _, o := range w.members[1:] {
			if _, ok := o.here(c); o.alive && o.active[scope] && !ok {
				return fmt.Errorf("member %d leads %v to %v, whose owner does not have it", m.id, r.Prefix, cluster.ScopeID(scope))
			}
		}
	}
	return nil
}

func (w *farmWorld) allLed() error {
	for _, m := range w.members[1:] {
		for _, c := range w.clients {
			if err := w.led(m, c); m.alive && err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *farmWorld) runLed(d time.Duration, what string) {
	w.t.Helper()
	w.run(d, what, func() bool { return w.allLed() == nil })
}

// Every member has a route to every client, and where it has no copy it knows the scope;
// while owners die and come back, no route goes. When a client has ended, they all do.
func TestFarmLeadsTheLAN(t *testing.T) {
	w := upFarm(t, 60, 5, 8)
	if err := w.allLed(); err != nil {
		t.Fatal(err)
	}
	without := 0
	for _, m := range w.members[1:] {
		for _, c := range w.clients {
			if _, copied := m.here(c); !copied {
				without++
			}
		}
	}
	if without != 2*len(w.clients) {
		t.Fatalf("%d times a member has no copy", without)
	}
	for victim := 1; victim <= 5; victim++ {
		m := w.members[victim]
		gone := map[AddRoute]bool{}
		for _, c := range w.clients {
			for _, r := range c.prefixes() {
				gone[r] = true
			}
		}
		w.kill(m)
		w.run(100*time.Millisecond, "carried by the successors", w.carried)
		if err := w.allLed(); err != nil {
			t.Fatalf("without member %d: %v", victim, err)
		}
		w.pass(2 * time.Second)
		m.boot()
		w.run(20*time.Second, "settled again", func() bool {
			for _, o := range w.members[1:] {
				for r := range gone {
					if o != m && !o.routes[r] {
						t.Fatalf("member %d let go of %v", o.id, r.Prefix)
					}
				}
			}
			return w.settled() && len(m.active) == 8
		})
		w.runLed(time.Second, "all led, also by the member that came back")
	}
	last := w.clients[7]
	last.do(func(n *Node) { n.Shutdown(w.now) })
	w.run(20*time.Second, "its routes and leads gone everywhere", func() bool {
		for _, m := range w.members[1:] {
			for _, r := range last.prefixes() {
				if _, led := m.leads[r]; led || m.routes[r] || m.farm.routes[r] != 0 {
					return false
				}
			}
		}
		return true
	})
	w.clients = w.clients[:7]
	if err := w.allLed(); err != nil {
		t.Error(err)
	}
}

// A member that is drained gives its copies away and gets others: at no moment does it
// not know where to with the LAN's packets, nor does any other member.
func TestFarmLeadsWhileDraining(t *testing.T) {
	for _, members := range []int{3, 5} {
		w := upFarm(t, int64(61+members), members, 9)
		m := w.members[2]
		always := func(cond func() bool) func() bool {
			return func() bool {
				for _, c := range w.clients {
					for _, r := range c.prefixes() {
						for _, o := range w.members[1:] {
							_, copied := o.here(c)
							if _, led := o.leads[r]; !o.routes[r] || !led && !copied {
								t.Fatalf("%d members: member %d does not know the way to %v: route %v, SA %v, lead %v", members, o.id, r.Prefix, o.routes[r], copied, led)
							}
						}
					}
				}
				return cond()
			}
		}
		m.drain(true)
		w.run(30*time.Second, "drained", always(func() bool { return m.status().Draining() && m.status().ScopesOwned() == 0 }))
		w.run(5*time.Second, "led", always(func() bool { return w.allLed() == nil }))
		end := w.now.Add(10 * time.Second)
		w.run(11*time.Second, "a while later", always(func() bool { return w.now.After(end) }))
		m.drain(false)
		w.run(30*time.Second, "back", always(func() bool { return !m.status().Draining() && m.status().ScopesOwned() == 8 }))
		w.run(5*time.Second, "led", always(func() bool { return w.allLed() == nil }))
	}
}

// Messages are lost, tunnels move, members die and are cut off: in the end everybody
// knows the way, and has nothing left over.
func TestFarmLeadsUnderRandomFaults(t *testing.T) {
	seeds := 20
	if testing.Short() {
		seeds = 4
	}
	for seed := range int64(seeds) {
		w := newFarmWorld(t, 500+seed, 4+int(seed%3), 6)
		lossy := rand.New(rand.NewSource(seed))
		loss := 3
		w.lanLost = func() bool { return lossy.Intn(10) < loss }
		w.run(20*time.Second, "settled", w.settled)
		w.dial()
		w.run(20*time.Second, "all tunnels up", w.carried)
		for range 6 {
			m := w.members[1+lossy.Intn(len(w.members)-1)]
			switch k := lossy.Intn(8); {
			case !m.alive:
				m.boot()
			case k < 2:
				w.kill(m)
			case k < 3:
				w.cut[m.id] = 1 - w.cut[m.id]
			case k < 4:
				clear(w.cut)
			default:
				w.route[lossy.Intn(len(w.clients))] = m.id
			}
			w.pass(time.Duration(lossy.Intn(3000)) * time.Millisecond)
		}
		clear(w.cut)
		for _, m := range w.members[1:] {
			if !m.alive {
				m.boot()
			}
		}
		w.run(time.Minute, "settled", w.settled)
		w.run(10*time.Minute, "all clients served", w.carried)
		w.runLed(20*time.Second, "all led")
		loss = 0
		w.pass(10 * time.Second)
		if err := w.allLed(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		all := map[AddRoute]bool{}
		for _, c := range w.clients {
			for _, r := range c.prefixes() {
				all[r] = true
			}
		}
		for _, m := range w.members[1:] {
			for r := range m.leads {
				if !all[r] {
					t.Errorf("seed %d: member %d leads %v still", seed, m.id, r.Prefix)
				}
			}
			if len(m.routes) != len(all) {
				t.Errorf("seed %d: member %d has %d routes for %d prefixes", seed, m.id, len(m.routes), len(all))
			}
			for id, n := range m.farm.scopes {
				var want setSum
				for r := range n.reach {
					want.add(r)
				}
				if want != n.reachIs {
					t.Errorf("seed %d: member %d, %v: the digest is not that of the set", seed, m.id, id)
				}
			}
		}
	}
}

// lanStory is a member that is told by hand.
type lanStory struct {
	*farmWorld
	m      *farmer
	number uint32
	got    []Effect
}

func (s *lanStory) tell(epoch cluster.Epoch, parts ...lanPartOf) (answer []lanKind) {
	s.t.Helper()
	s.number++
	from := cluster.NodeID(3)
	m := lanMessage{from: s.m.farm.peers[from].Process, to: s.m.process, number: s.number}
	for _, p := range parts {
		p.scope, p.epoch = lanScope, epoch
		m.parts = append(m.parts, p)
	}
	return s.hand(from, m.write(s.t))
}

func (s *lanStory) hand(from cluster.NodeID, b []byte) (answer []lanKind) {
	s.t.Helper()
	s.got = nil
	s.m.farm.HandleLAN(s.now, from, b)
	for {
		e, ok := s.m.farm.Poll()
		if !ok {
			return answer
		}
		if x, ok := e.(SendLAN); ok {
			a, err := readLAN(x.Message)
			if err != nil || !a.answer {
				s.t.Fatalf("%+v, %v", a, err)
			}
			for _, p := range a.parts {
				answer = append(answer, p.kind)
			}
			continue
		}
		s.got = append(s.got, e)
		s.m.carryOut(e)
	}
}

func (s *lanStory) want(what string, got []lanKind, want ...lanKind) {
	s.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Fatalf("%s: answered %v, want %v", what, got, want)
	}
}

// setOf is the digest of a set.
func setOf(all ...reach) (s setSum) {
	for _, r := range all {
		s.add(r)
	}
	return s
}

func entriesOf(all ...reach) (out []lanEntry) {
	for _, r := range all {
		out = append(out, lanEntry{reach: r})
	}
	return out
}

// What a member takes, and what it refuses.
func TestFarmLANIsTold(t *testing.T) {
	w := upFarm(t, 70, 5, 0)
	s := &lanStory{farmWorld: w, m: w.members[1]}
	// A scope that nobody has, of an owner that goes on to higher epochs.
	for id := range s.m.farm.scopes {
		if id == lanScope {
			t.Fatal("the member has to do with the scope: take another seed")
		}
	}
	f := s.m.farm
	s.number = 100
	e := func(n uint64) cluster.Epoch { return cluster.Epoch{Counter: 1<<40 + n, Node: 3} }
	a, b, c := reachOf("vpn1", "10.77.1.0/24"), reachOf("vpn1", "10.77.2.0/24"), reachOf("vpn1", "2001:db8::/56")
	bare := reach{AddRoute: AddRoute{"vpn1", netip.MustParsePrefix("10.78.0.0/16")}, bare: true}
	other := reachOf("nobody", "10.79.0.0/16")

	s.want("a set that is not known", s.tell(e(1), lanPartOf{kind: lanState, is: setOf(a)}), lanWant)
	s.want("a change of it", s.tell(e(1), lanPartOf{kind: lanChange, is: setOf(a, b), entries: entriesOf(b)}), lanWant)
	s.want("the whole", s.tell(e(1), lanPartOf{kind: lanFirst, is: setOf(a, bare, other), entries: entriesOf(a)},
		lanPartOf{kind: lanLast, is: setOf(a, bare, other), entries: entriesOf(bare, other)}), lanHave, lanHave)
	if s.m.leads[a.AddRoute] != xfrm.Scope(lanScope) || !s.m.routes[a.AddRoute] {
		t.Error("what was told is not led")
	}
	if s.m.leads[bare.AddRoute] != xfrm.Scope(lanScope) || s.m.routes[bare.AddRoute] {
		t.Error("without add-route there is a route, or no lead")
	}
	if _, led := s.m.leads[other.AddRoute]; led || s.m.routes[other.AddRoute] {
		t.Error("a tunnel that does not synchronise here is led")
	}
	s.want("a change", s.tell(e(1), lanPartOf{kind: lanChange, is: setOf(b, c, bare, other),
		entries: append(entriesOf(b, c), lanEntry{reach: a, gone: true})}), lanHave)
	if !s.m.routes[a.AddRoute] || !s.m.routes[b.AddRoute] || !s.m.routes[c.AddRoute] {
		t.Error("what has gone is not held for a while, or what has come is not there")
	}
	again := lanMessage{from: f.peers[3].Process, to: s.m.process, number: s.number}
	s.want("the same number", s.hand(3, again.write(t)), lanHave)
	again.number--
	s.want("a number before", s.hand(3, again.write(t)))
	s.want("the next epoch", s.tell(e(2), lanPartOf{kind: lanState, is: setOf(b, c, bare, other)}), lanHave)
	refused := f.lan.refused
	s.want("the epoch before", s.tell(e(1), lanPartOf{kind: lanWhole}), lanOld)
	s.want("another's epoch", s.tell(cluster.Epoch{Counter: 1 << 41, Node: 4}, lanPartOf{kind: lanWhole}), lanOld)
	if f.lan.refused != refused+2 || !s.m.routes[b.AddRoute] {
		t.Errorf("%d refused, route %v", f.lan.refused-refused, s.m.routes[b.AddRoute])
	}
	s.want("a change that does not lead to what is said", s.tell(e(2), lanPartOf{kind: lanChange, is: setOf(a), entries: entriesOf(a)}), lanWant)
	s.want("a whole that is not what is said", s.tell(e(2), lanPartOf{kind: lanWhole, is: setOf(a, b), entries: entriesOf(a)}), lanWant)
	s.want("the whole", s.tell(e(2), lanPartOf{kind: lanWhole, is: setOf(a), entries: entriesOf(a)}), lanHave)
	for what, m := range map[string]lanMessage{
		"of a former life":     {from: 1, to: s.m.process, number: 10_000, parts: []lanPartOf{{scope: lanScope, epoch: e(9), kind: lanWhole}}},
		"for a former life":    {from: f.peers[3].Process, to: 1, number: 10_000, parts: []lanPartOf{{scope: lanScope, epoch: e(9), kind: lanWhole}}},
		"an answer to nothing": {answer: true, from: f.peers[3].Process, to: s.m.process, number: 10_000, parts: []lanPartOf{{scope: lanScope, epoch: e(9), kind: lanWant}}},
	} {
		s.want(what, s.hand(3, m.write(t)))
	}
	s.want("nonsense", s.hand(3, []byte("nonsense")))
	s.want("its own scope", func() []lanKind {
		s.number++
		var own cluster.ScopeID
		for id := range f.owned {
			own = id
		}
		m := lanMessage{from: f.peers[3].Process, to: s.m.process, number: s.number, parts: []lanPartOf{
			{scope: own, epoch: cluster.Epoch{Counter: 1, Node: 3}, kind: lanWhole}, {scope: own, epoch: e(3), kind: lanWhole},
		}}
		return s.hand(3, m.write(t))
	}(), lanOld, lanLater)

	// A scope with more prefixes than are kept.
	s.tell(e(5), lanPartOf{kind: lanFirst})
	for i := range maxReach/500 + 2 {
		p := lanPartOf{kind: lanMore}
		for k := range 500 {
			n := i*500 + k
			p.entries = append(p.entries, lanEntry{reach: reach{AddRoute: AddRoute{"vpn1", netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(n >> 16), byte(n >> 8), byte(n)}), 32)}}})
		}
		s.tell(e(5), p)
	}
	s.want("more than are kept", s.tell(e(5), lanPartOf{kind: lanLast, is: setSum{1 << 20, 1}}), lanLimited)
	if p := f.lan.pages[lanScope]; len(p.set) > maxReach || f.lanStatus().Limited != 1 {
		t.Errorf("%d are kept; %+v", len(p.set), f.lanStatus())
	}
	s.want("a change beyond", s.tell(e(5), lanPartOf{kind: lanChange, entries: entriesOf(c)}), lanLimited)
	s.want("fewer again", s.tell(e(5), lanPartOf{kind: lanWhole, is: setOf(a), entries: entriesOf(a)}), lanHave)
	w.pass(lanHold + 2*time.Second)
	if len(f.lan.pages[lanScope].set) != 1 || !s.m.routes[a.AddRoute] || len(s.m.routes) != 1 {
		t.Errorf("%d kept, %d routes", len(f.lan.pages[lanScope].set), len(s.m.routes))
	}
}

// Two scopes may have the same prefix while a client passes from one to the other: the
// last that told it is meant, and where that lets go the other is.
func TestFarmLANOfTwoScopes(t *testing.T) {
	w := upFarm(t, 70, 5, 0)
	s := &lanStory{farmWorld: w, m: w.members[1], number: 100}
	r := reachOf("vpn1", "10.77.1.0/24")
	epoch := cluster.Epoch{Counter: 1 << 40, Node: 3}
	say := func(scope cluster.ScopeID, all ...reach) {
		t.Helper()
		s.number++
		m := lanMessage{from: s.m.farm.peers[3].Process, to: s.m.process, number: s.number,
			parts: []lanPartOf{{scope: scope, epoch: epoch, kind: lanWhole, is: setOf(all...), entries: entriesOf(all...)}}}
		s.want("the whole", s.hand(3, m.write(t)), lanHave)
	}
	led := func(want cluster.ScopeID) {
		t.Helper()
		if got := cluster.ScopeID(s.m.leads[r.AddRoute]); got != want || s.m.routes[r.AddRoute] != (want != 0) {
			t.Fatalf("led to %v, want %v; route %v", got, want, s.m.routes[r.AddRoute])
		}
	}
	one, two := lanScope, lanScope+1
	say(one, r)
	led(one)
	say(two, r)
	led(two)
	say(one)
	led(two)
	w.pass(lanHold + time.Second)
	led(two)
	say(one, r)
	led(one)
	say(one)
	led(two)
	say(two)
	led(two) // for a while
	w.pass(lanHold / 2)
	say(two, r)
	w.pass(lanHold)
	led(two)
	say(two)
	w.pass(lanHold + time.Second)
	led(0)
}

// FuzzFarmLAN feeds a member what another one could send if it had a fault.
func FuzzFarmLAN(f *testing.F) {
	f.Add(lanTold.write(f), uint8(3))
	f.Add(lanAnswer.write(f), uint8(3))
	w := upFarm(f, 71, 4, 2)
	m := w.members[1]
	f.Fuzz(func(t *testing.T, b []byte, from uint8) {
		id := cluster.NodeID(from % 5)
		if len(b) >= lanHead { // of the right processes
			copy(b[2:], newLANWriter(false, m.farm.peers[id].Process, m.process, 0).b[2:18])
		}
		m.farm.HandleLAN(w.now, id, b)
		for {
			e, ok := m.farm.Poll()
			if !ok {
				break
			}
			if x, ok := e.(SendLAN); ok && len(x.Message) > maxLAN {
				t.Fatal("too long an answer")
			}
		}
		for id, p := range m.farm.lan.pages {
			if int(p.is.n) > len(p.set) || len(p.set) > maxReach {
				t.Fatalf("%v: %d of %d", id, p.is.n, len(p.set))
			}
		}
		if len(m.farm.lan.pages) > shares {
			t.Fatal("more scopes than there can be")
		}
	})
}

// TestFarmFollowed: where a member has a scope's SAs itself, a packet for one that is missing
// waits for it and is not led: the tunnel is under way between scopes.
func TestFarmFollowed(t *testing.T) {
	for members, all := range map[int]bool{3: true, 5: false} {
		w := upFarm(t, 11, members, 10)
		short := 0
		for _, m := range w.members[1:] {
			followed := m.farm.Followed()
			for _, s := range m.farm.decided.Scopes() {
				has := s.Owner == m.id || slices.Contains(s.Sync, m.id)
				if followed[xfrm.Scope(s.ID)] != has {
					t.Errorf("%d members: member %d follows %v: %v", members, m.id, s.ID, !has)
				}
				if s.Owner != 0 && !has {
					short++
				}
			}
		}
		if (short == 0) != all {
			t.Errorf("%d members: %d times a member has no copy of a scope", members, short)
		}
	}
}
