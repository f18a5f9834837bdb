package ike

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"

	"tandem/ike/message"
)

// poolNode is a node of a modelled pair: the real table of leases beside the IKE SAs that it
// knows, and the records that the other one has yet to acknowledge.
type poolNode struct {
	part     byte
	l        leases
	met      bool
	owner    bool
	followed bool
	sas      map[int]poolSA
	ended    map[int]bool // by the peer's word, since the last full copy
	last     Ticket
	done     Ticket
	queue    []poolRecord
}

type poolSA struct {
	client int
	addr   netip.Addr
	at     Ticket // 0: from a record
}

type poolRecord struct {
	ticket Ticket
	id     int
	sa     *poolSA // nil: it ended
}

// poolWorld is a pair and its clients, each of which believes to have one address at most.
type poolWorld struct {
	t       *testing.T
	r       *rand.Rand
	n       [2]*poolNode
	split   bool
	clients []poolBelief
	next    int
	leased  int
	alone   int // of those, in a split
}

type poolBelief struct {
	id   int // of its IKE SA; 0: none
	addr netip.Addr
}

var modelPool = addressRange{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.24")}

func newPoolNode(part byte) *poolNode {
	n := &poolNode{part: part, l: newLeases(), sas: map[int]poolSA{}, ended: map[int]bool{}}
	n.l.homes = Homes{}
	return n
}

func (n *poolNode) rehome() {
	h := Homes{}
	if n.met {
		h = Homes{All: n.followed, Own: true, Part: n.part}
	}
	n.l.rehome(h)
	for _, id := range n.sorted() {
		if sa := n.sas[id]; n.owner && !h.All && sa.at > n.done && !h.allows(sa.addr) {
			n.remove(id, false) // as SetHomes
		}
	}
}

func (n *poolNode) sorted() (ids []int) {
	for id := range n.sas {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func who(client int) identity { return identity{message.IDFQDN, fmt.Sprint(client)} }

func (n *poolNode) record(id int, sa *poolSA) {
	n.last++
	n.queue = append(n.queue, poolRecord{n.last, id, sa})
}

func (n *poolNode) remove(id int, word bool) {
	sa := n.sas[id]
	delete(n.sas, id)
	n.ended[id] = n.ended[id] || word
	n.l.drop(sa.addr, word, n.last+1)
	n.record(id, nil)
}

// commit: whatever waits for the other node goes without it.
func (w *poolWorld) commit(n *poolNode) {
	for len(n.queue) > 0 {
		w.committed(n)
	}
}

// committed: the oldest record is with everybody that counts, so the client hears of it.
func (w *poolWorld) committed(n *poolNode) {
	x := n.queue[0]
	n.queue = n.queue[1:]
	n.done = x.ticket
	n.l.committed(n.done)
	if x.sa == nil || n.sas[x.id].client != x.sa.client {
		return
	}
	w.clients[x.sa.client] = poolBelief{x.id, x.sa.addr}
}

func (w *poolWorld) lease(n *poolNode, client int) {
	if !n.owner {
		return
	}
	w.clients[client] = poolBelief{} // it begins anew
	for _, id := range n.sorted() {
		if n.sas[id].client == client {
			n.remove(id, true) // INITIAL_CONTACT
		}
	}
	a, ok := n.l.pick(modelPool, who(client), netip.Addr{}, func(netip.Addr) bool { return false })
	if ok {
		w.next++
		w.leased++
		if w.split {
			w.alone++
		}
		n.l.add(who(client), a)
		sa := poolSA{client, a, n.last + 1}
		n.sas[w.next] = sa
		n.record(w.next, &sa)
	}
	w.flow(n)
}

// flow commits at once where nobody follows.
func (w *poolWorld) flow(n *poolNode) {
	if !n.followed {
		w.commit(n)
	}
}

// acknowledge has the standby take one record.
func (w *poolWorld) acknowledge(n, m *poolNode) {
	if !n.followed || len(n.queue) == 0 {
		return
	}
	m.apply(n.queue[0])
	w.committed(n)
}

func (n *poolNode) apply(x poolRecord) {
	if old, ok := n.sas[x.id]; ok {
		n.l.drop(old.addr, true, 0)
		delete(n.sas, x.id)
	}
	if x.sa != nil {
		sa := *x.sa
		sa.at = 0
		n.sas[x.id] = sa
		n.l.add(who(sa.client), sa.addr)
	}
}

// alone: the other node is gone, or cut off. What waits goes without it.
func (w *poolWorld) alonely(n *poolNode) {
	n.followed = false
	n.rehome()
	w.commit(n)
}

func (w *poolWorld) takeOver(n *poolNode) {
	n.owner, n.followed, n.queue, n.done = true, false, nil, n.last
	n.rehome()
}

// copyTo gives a standby everything, and counts it in.
func (w *poolWorld) copyTo(n, m *poolNode) {
	m.owner, m.followed, m.queue = false, false, nil
	for _, id := range m.sorted() {
		m.l.drop(m.sas[id].addr, true, 0)
	}
	m.sas, m.ended = map[int]poolSA{}, map[int]bool{}
	for _, id := range n.sorted() {
		sa := n.sas[id]
		m.apply(poolRecord{id: id, sa: &sa})
	}
	m.l.settle()
	w.commit(n)
	m.met, n.met, n.followed, n.ended = true, true, true, map[int]bool{}
	m.rehome()
	n.rehome()
}

// heal unites what both have: the owner with what the loser brings, but for what either
// knows that the peer has ended.
func (w *poolWorld) heal() {
	w.split = false
	n, m := w.n[0], w.n[1]
	if !n.owner || m.owner && w.r.Intn(2) == 0 {
		n, m = m, n
	}
	if !n.owner {
		w.takeOver(n)
	}
	if m.owner {
		for _, id := range n.sorted() {
			if m.ended[id] {
				n.remove(id, true)
			}
		}
		for _, id := range m.sorted() {
			if _, known := n.sas[id]; !known && !n.ended[id] {
				sa := m.sas[id]
				sa.at = 0
				n.sas[id] = sa
				n.l.add(who(sa.client), sa.addr)
				n.record(id, &sa)
			}
		}
	}
	w.copyTo(n, m)
}

// check looks for two clients with one address, each with an IKE SA that an owner carries.
func (w *poolWorld) check(step int, what string) {
	w.t.Helper()
	at := map[netip.Addr]int{}
	for c, b := range w.clients {
		if b.id == 0 {
			continue
		}
		carried := slices.ContainsFunc(w.n[:], func(n *poolNode) bool { _, ok := n.sas[b.id]; return n.owner && ok })
		if !carried {
			continue
		}
		if d, twice := at[b.addr]; twice {
			w.t.Fatalf("step %d (%s): %s is leased to clients %d and %d", step, what, b.addr, d, c)
		}
		at[b.addr] = c
	}
}

// TestNeverOneAddressTwice: a pair leases, ends, crashes, splits and heals at random; no
// address has two clients, and in the end none is lost.
func TestNeverOneAddressTwice(t *testing.T) {
	for seed := range int64(2) {
		w := &poolWorld{t: t, r: rand.New(rand.NewSource(seed)), clients: make([]poolBelief, 40)}
		w.n = [2]*poolNode{newPoolNode(0), newPoolNode(1)}
		w.takeOver(w.n[0])
		w.copyTo(w.n[0], w.n[1])
		for step := range 100_000 {
			what := w.step()
			w.check(step, what)
		}
		w.drain(t)
		if w.leased < 5_000 || w.alone < 1_000 {
			t.Errorf("only %d leases, %d of them in a split", w.leased, w.alone)
		}
	}
}

func (w *poolWorld) step() string {
	i := w.r.Intn(2)
	n, m := w.n[i], w.n[1-i]
	switch x := w.r.Intn(1000); {
	case x < 300:
		w.lease(n, w.r.Intn(len(w.clients)))
		return "lease"
	case x < 400: // a client ends its IKE SA with whoever carries it
		c := w.r.Intn(len(w.clients))
		if _, ok := n.sas[w.clients[c].id]; ok && n.owner {
			n.remove(w.clients[c].id, true)
			w.clients[c] = poolBelief{}
			w.flow(n)
		}
		return "DELETE"
	case x < 500: // an owner hears no more of one
		if ids := n.sorted(); n.owner && len(ids) > 0 {
			n.remove(ids[w.r.Intn(len(ids))], false)
			w.flow(n)
		}
		return "dead peer"
	case x < 900:
		w.acknowledge(n, m)
		return "acknowledgement"
	case x < 930 && !w.split: // both go on, the standby with what it has
		w.split = true
		if m.owner {
			n, m = m, n
		}
		w.takeOver(m)
		w.alonely(n)
		return "split"
	case x < 960 && !w.split: // the owner dies, and comes back
		if m.owner {
			n, m = m, n
		}
		w.takeOver(m)
		*n = *newPoolNode(n.part)
		if w.r.Intn(2) == 0 {
			w.copyTo(m, n)
			return "crash"
		}
		w.split = true // and hears nobody
		w.takeOver(n)
		return "crash into a split"
	case x < 990 && w.split:
		w.heal()
		return "heal"
	}
	return "nothing"
}

// drain ends everything in good order and looks for what was lost.
func (w *poolWorld) drain(t *testing.T) {
	w.heal()
	for i, n := range w.n {
		if !n.owner {
			continue
		}
		for _, id := range n.sorted() {
			n.remove(id, w.r.Intn(2) == 0)
		}
		for len(n.queue) > 0 {
			w.acknowledge(n, w.n[1-i])
		}
	}
	for i, n := range w.n {
		if len(n.l.held) != 0 || len(n.l.limbo) != 0 {
			t.Errorf("node %d still holds %d addresses", i, len(n.l.held))
		}
	}
}

func TestPickOfAPool(t *testing.T) {
	none := func(netip.Addr) bool { return false }
	a := netip.MustParseAddr
	l := newLeases()
	r := addressRange{a("10.0.0.1"), a("10.0.0.4")}
	take := func(peer int, wish string, want string) {
		t.Helper()
		var x netip.Addr
		if wish != "" {
			x = a(wish)
		}
		got, ok := l.pick(r, who(peer), x, func(x netip.Addr) bool { return x == a("10.0.0.2") })
		if !ok && want == "" {
			return
		}
		if !ok || got.String() != want {
			t.Fatalf("client %d with the wish %q gets %v %v, want %q", peer, wish, got, ok, want)
		}
		l.add(who(peer), got)
	}
	take(1, "", "10.0.0.1")
	take(2, "", "10.0.0.3") // 10.0.0.2 is the gateway's own
	take(3, "10.0.0.3", "10.0.0.4")
	take(4, "", "")
	l.drop(a("10.0.0.1"), true, 1)
	l.drop(a("10.0.0.3"), true, 2)
	take(2, "", "10.0.0.3") // what it had
	take(5, "192.0.2.1", "10.0.0.1")
	take(6, "", "")

	// Large ranges end, too.
	for _, r := range []addressRange{{a("fd00::"), a("fd00::ffff:ffff:ffff:ffff")}, {a("10.0.0.0"), a("10.255.255.255")}} {
		l := newLeases()
		l.homes = Homes{}
		if x, ok := l.pick(r, who(1), netip.Addr{}, none); ok {
			t.Errorf("%s leased without any home", x)
		}
		l.homes = Homes{Own: true, Part: 1}
		if x, ok := l.pick(r, who(1), netip.Addr{}, none); ok {
			t.Errorf("%s leased although nothing was freed", x)
		}
		l.rehome(Homes{Own: true, Part: 0})
		if x, ok := l.pick(r, who(1), netip.Addr{}, none); !ok || homeOf(x) != 0 {
			t.Errorf("leased %s %v", x, ok)
		}
	}
}

// TestPickOfGivenRanges: where more than two nodes share a pool, an owner leases from what it
// was given, and an address rests before it is leased again.
func TestPickOfGivenRanges(t *testing.T) {
	a := netip.MustParseAddr
	none := func(netip.Addr) bool { return false }
	l := newLeases()
	l.rehome(Homes{Given: true, All: true})
	r := addressRange{a("10.0.0.1"), a("10.0.0.30")}
	if x, ok := l.pick(r, who(1), netip.Addr{}, none); ok {
		t.Errorf("leased %v, and was given nothing", x)
	}
	l.give([]AddressRange{{a("10.0.0.20"), a("10.0.0.21")}, {a("10.0.0.29"), a("10.0.0.40")}, {a("fd00::1"), a("fd00::9")}})
	take := func(peer int, want string) {
		t.Helper()
		got, ok := l.pick(r, who(peer), netip.Addr{}, none)
		if ok != (want != "") || ok && got != a(want) {
			t.Fatalf("client %d gets %v %v, want %q", peer, got, ok, want)
		}
		if ok {
			l.add(who(peer), got)
		}
	}
	take(1, "10.0.0.20")
	take(2, "10.0.0.21")
	l.drop(a("10.0.0.20"), true, 1)
	take(3, "10.0.0.29")
	take(4, "10.0.0.30") // the rest of that range is not the pool's
	take(5, "10.0.0.20")
	take(6, "")
	if i, ok := l.givenAt(a("10.0.0.35")); !ok || l.given[i].used != 2 {
		t.Errorf("of the second range %+v", l.given)
	}

	// What ended without the client's word is taken until nobody can go on with it.
	l.rehome(Homes{Given: true})
	l.drop(a("10.0.0.21"), false, 2)
	l.committed(2)
	take(6, "")
	l.rehome(Homes{Given: true, All: true})
	take(6, "10.0.0.21")
	l.give(nil)
	take(7, "")
}
