package fsm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tandem/proto/clusterpb"
)

// world is a farm of five members and a witness in fake time: each has a disk (its
// store, its marks, a snapshot of the state), a memory (a process, what it gave
// out), and the log as far as it has reached it.
type world struct {
	t     *testing.T
	r     *rand.Rand
	now   time.Time
	log   *LogModel
	truth *Machine // all that is committed
	nodes []*host
	cut   [MaxNodes + 1]int // which part of a partition a node is in

	live    map[Space]map[Number]*lease
	leases  []*lease
	ranges  map[string]uint64          // DelegateRange by its ID: the range it gave
	epochs  map[ScopeID]map[uint64]use // who ever had a counter
	hashes  map[uint64][]byte          // state after some entries
	counted map[string]int
	sites   bool // nodes 1 and 2 are a site, 3 and 4 another
}

type use struct {
	node NodeID
	why  string
}

type lease struct {
	space Space
	n     Number
	in    RangeID
}

type host struct {
	id       NodeID
	witness  bool
	disk     Holdings
	snapshot []byte // on disk
	at       uint64 // the entry it was taken after

	up         bool
	process    uint64
	life, seq  uint64
	joinedAt   time.Time
	state      *Machine
	applied    uint64
	synced     bool
	used       map[RangeID]map[Number]bool // what it knows to be in use
	acting     map[ScopeID]Epoch           // under which it owns, by its own knowledge
	unanswered [][]byte
	closed     []RangeID // ranges of scopes that it gives away
}

var pools = []struct {
	space       Space
	first, last Number
	count       uint64
}{
	{SpaceSPI, SPINumber(256), SPINumber(256 + 4095), 64},
	{SpaceIPv4, SPINumber(10 << 24), SPINumber(10<<24 + 511), 16},
	{SpaceIPv6, Number{1, ^uint64(0) - 100}, Number{2, 100}, 8},
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, r: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0), truth: New(),
		live: map[Space]map[Number]*lease{}, ranges: map[string]uint64{}, epochs: map[ScopeID]map[uint64]use{},
		hashes: map[uint64][]byte{}, counted: map[string]int{}, sites: seed%2 == 1,
	}
	for _, p := range pools {
		w.live[p.space] = map[Number]*lease{}
	}
	w.log = NewLogModel(w.now, LogOptions{
		Voters: []NodeID{1, 2, 6}, Rand: w.r.IntN, Loss: 100, Repeat: 150,
		Reach:    func(a, b NodeID) bool { return w.cut[a] == w.cut[b] },
		MinDelay: 500 * time.Microsecond, MaxDelay: 5 * time.Millisecond, Election: 200 * time.Millisecond,
	})
	for n := NodeID(1); n <= 6; n++ {
		h := &host{id: n, witness: n == 6, disk: Holdings{Node: n, Store: w.r.Uint64() | 1}}
		w.nodes = append(w.nodes, h)
		w.start(h)
	}
	return w
}

// start gives a host a new process with what is on its disk.
func (w *world) start(h *host) {
	*h = host{id: h.id, witness: h.witness, disk: Holdings{Node: h.id, Store: h.disk.Store, Opened: h.disk.Opened},
		snapshot: h.snapshot, at: h.at, up: true, life: h.life + 1, process: w.r.Uint64() | 1, state: New(), applied: h.at,
		used: map[RangeID]map[Number]bool{}, acting: map[ScopeID]Epoch{}}
	if h.snapshot != nil {
		if err := h.state.Restore(h.snapshot); err != nil {
			w.t.Fatal(err)
		}
	}
	w.log.Rewind(h.id, h.at)
	w.log.SetUp(h.id, true)
	w.counted["starts"]++
}

func (w *world) stop(h *host) {
	h.up, h.synced = false, false
	w.log.SetUp(h.id, false)
}

func (w *world) propose(h *host, c *clusterpb.Command) {
	h.seq++
	c.Id, c.Version = &clusterpb.CommandID{Node: uint32(h.id), Life: h.life, Seq: h.seq}, 1
	e := Encode(c)
	if h.unanswered = append(h.unanswered, e); len(h.unanswered) > 8 {
		h.unanswered = h.unanswered[1:]
	}
	w.log.Propose(w.now, h.id, e)
}

// joined: the log as the host knows it says that its present process is a member.
func (h *host) joined() bool {
	p, ok := h.state.Member(h.id)
	return ok && p.Process == h.process && p.State != Left
}

func (w *world) random(ok func(*host) bool) *host {
	for range 20 {
		if h := w.nodes[w.r.IntN(len(w.nodes))]; ok(h) {
			return h
		}
	}
	return nil
}

func (w *world) step() {
	w.now = w.now.Add(time.Duration(w.r.IntN(3000)) * time.Microsecond)
	w.deliver()
	h := w.random(func(h *host) bool { return h.up })
	if h == nil {
		h = w.nodes[w.r.IntN(len(w.nodes))]
		w.start(h)
	}
	switch k := w.r.IntN(1000); {
	case k < 150:
		w.giveOut(h)
	case k < 300 && len(w.leases) > 0:
		w.release(w.r.IntN(len(w.leases)))
	case k < 640:
		w.act(h)
	case k < 700:
		w.useRanges(h)
	case k < 760 && len(h.unanswered) > 0: // the answer was lost
		w.log.Propose(w.now, h.id, h.unanswered[w.r.IntN(len(h.unanswered))])
	case k < 790:
		w.synchronise(h)
	case k < 800: // state on disk
		h.snapshot, h.at = h.state.Snapshot(), h.applied
		onDisk := New()
		if err := onDisk.Restore(h.snapshot); err != nil {
			w.t.Fatal(err)
		}
		h.disk.Forget(onDisk)
	case k < 802:
		w.stop(h)
		w.counted["crashes"]++
	case k < 812:
		for _, h := range w.nodes {
			if !h.up && w.r.IntN(3) == 0 {
				w.start(h)
			}
		}
	case k < 814: // restart at once, perhaps alone
		w.stop(h)
		if w.r.IntN(4) == 0 { // its disk is lost
			h.disk, h.snapshot, h.at = Holdings{Node: h.id, Store: w.r.Uint64() | 1}, nil, 0
			w.counted["lost disks"]++
		}
		if w.r.IntN(2) == 0 {
			w.cut[h.id] = int(h.id)
			w.counted["lone restarts"]++
		}
		w.start(h)
	case k < 816:
		for n := range w.cut {
			w.cut[n] = w.r.IntN(2)
		}
		w.counted["partitions"]++
	case k < 824:
		w.cut = [MaxNodes + 1]int{}
	case k < 826:
		w.log.Depose(w.now)
		w.counted["deposed leaders"]++
	case k < 828:
		w.restoreAndCompare()
	case k < 829:
		w.administer(h)
	case k < 833:
		for _, s := range h.state.Scopes() {
			if s.Owner == h.id {
				w.propose(h, renews(s.ID, s.Epoch, s.Burnt+uint64(w.r.IntN(3))<<LocalBits))
				w.counted["rivals"]++
				break
			}
		}
	case k < 900:
		w.useScoped(h)
		w.exclusive()
	}
}

func (w *world) deliver() {
	for _, d := range w.log.Step(w.now) {
		for w.truth.Applied() < d.Index {
			w.commit(w.log.Entry(w.truth.Applied() + 1))
		}
		h := w.nodes[d.To-1]
		h.state.Apply(d.Entry)
		h.applied = d.Index
		if want, ok := w.hashes[d.Index]; ok && !bytes.Equal(want, h.state.Snapshot()) {
			w.t.Fatalf("node %d has another state after entry %d", d.To, d.Index)
		}
		// What it did under an epoch that has passed, it does no longer.
		for id, e := range h.acting {
			if s, _ := h.state.Scope(id); !s.Epoch.SameTenure(e) && s.Epoch.Counter > e.Counter {
				delete(h.acting, id)
			}
		}
	}
}

// commit carries out an entry on the truth and checks what must always hold.
func (w *world) commit(e []byte) {
	before := map[ScopeID]Scope{}
	for _, s := range w.truth.scopes {
		before[s.ID] = s.clone()
	}
	var plain []byte
	if w.r.IntN(50) == 0 {
		plain = forgetful(w.truth)
	}
	r := w.truth.Apply(e)
	w.counted[r.Code.String()]++
	if plain != nil && r.Code != Done && !bytes.Equal(plain, forgetful(w.truth)) {
		w.t.Fatalf("%v changed the state", r.Code)
	}
	c, err := decode(e)
	if err != nil {
		w.t.Fatal(err)
	}
	if c.GetDelegateRange() != nil && r.Code == Done {
		if old, ok := w.ranges[c.GetId().String()]; ok && (!r.Repeated || old != r.Value) {
			w.t.Fatalf("%v gave range %d, then %d", c, old, r.Value)
		}
		w.ranges[c.GetId().String()] = r.Value
	}
	if x := c.GetTakeOver(); x != nil && r.OK() && !r.Repeated {
		if s, _ := w.truth.Scope(ScopeID(x.GetScope())); s.Owner != NodeID(c.GetId().GetNode()) || !s.Epoch.SameTenure(epochOf(x.GetEpoch())) {
			w.t.Fatalf("%v was accepted: %+v", c, s)
		}
	}
	for i := range w.truth.scopes {
		s, old := &w.truth.scopes[i], before[w.truth.scopes[i].ID]
		if s.Epoch.Counter < old.Epoch.Counter || s.Burnt < old.Burnt {
			w.t.Fatalf("an epoch fell: %+v after %+v", s, old)
		}
		if s.Owner != 0 && s.Owner != old.Owner {
			declined := c.GetDecline() != nil && r.Code == Done && slices.Contains([]NodeID{old.Owner, old.Successor}, NodeID(c.GetId().GetNode())) && s.Reason == ReasonDeclined
			if old.Owner != 0 && !slices.Contains(old.Sync, s.Owner) && !declined {
				w.t.Fatalf("node %d was not in the sync set: %+v after %+v", s.Owner, s, old)
			}
			if s.Epoch.Counter == old.Epoch.Counter {
				w.t.Fatalf("an owner without an epoch of its own: %+v after %+v", s, old)
			}
			w.counted["owners "+s.Reason.String()]++
		}
		if s.Owner != 0 {
			w.uses(s.ID, s.Epoch, "owner")
		}
		if s.Successor != 0 {
			w.uses(s.ID, s.Next, "promise")
		}
	}
	for i := 1; i < len(w.truth.ranges); i++ {
		if a, b := w.truth.ranges[i-1], w.truth.ranges[i]; a.Space == b.Space && !a.Last().Less(b.First) {
			w.t.Fatalf("two ranges overlap: %+v, %+v", a, b)
		}
	}
	if w.truth.Applied()%97 == 0 {
		w.hashes[w.truth.Applied()] = w.truth.Snapshot()
		delete(w.hashes, w.truth.Applied()-97*200)
	}
}

// uses: a counter belongs to one node for ever.
func (w *world) uses(id ScopeID, e Epoch, why string) {
	m := w.epochs[id]
	if m == nil {
		m = map[uint64]use{}
		w.epochs[id] = m
	}
	if u, ok := m[e.Counter]; ok && u.node != e.Node {
		w.t.Fatalf("%v: epoch %v of node %d (%s) is node %d's, too (%s)", id, e, u.node, u.why, e.Node, why)
	}
	m[e.Counter] = use{e.Node, why}
}

// giveOut: a tunnel is set up, without asking anybody.
func (w *world) giveOut(h *host) {
	p := pools[w.r.IntN(len(pools))]
	usable := h.disk.Usable(h.state, p.space, h.process, h.synced)
	if h.witness || len(usable) == 0 {
		w.counted["nothing to give"]++
		return
	}
	r := usable[w.r.IntN(len(usable))]
	if i := slices.IndexFunc(w.truth.ranges, func(q Range) bool { return q.ID == r.ID }); i < 0 || w.truth.ranges[i] != r {
		w.t.Fatalf("node %d gives numbers out of range %d, which is no longer its own (synchronised: %v)", h.id, r.ID, h.synced)
	}
	if _, opened := slices.BinarySearch(h.disk.Opened, r.ID); !opened {
		h.disk.Open(r.ID)
		for _, l := range w.leases {
			if r.Contains(l.space, l.n) {
				w.t.Fatalf("node %d takes range %d for fresh, in which %v is in use", h.id, r.ID, l.n)
			}
		}
	}
	for _, l := range w.leases {
		if l.in == r.ID && !h.used[r.ID][l.n] {
			w.t.Fatalf("node %d gives numbers out of range %d, and does not know that %v is in use", h.id, r.ID, l.n)
		}
	}
	if h.used[r.ID] == nil {
		h.used[r.ID] = map[Number]bool{}
	}
	n := r.First.Add(w.r.Uint64N(r.Count))
	if h.used[r.ID][n] {
		return
	}
	h.used[r.ID][n] = true
	if other := w.live[p.space][n]; other != nil {
		w.t.Fatalf("node %d gives out %v of range %d, which is in use already (of range %d)", h.id, n, r.ID, other.in)
	}
	l := &lease{p.space, n, r.ID}
	w.live[p.space][n] = l
	w.leases = append(w.leases, l)
	w.counted["given out"]++
	if !h.synced {
		w.counted["given out alone"]++
	}
}

// release: a tunnel ends, wherever it is by now. Its range's member hears of it if
// it can be reached.
func (w *world) release(i int) {
	l := w.leases[i]
	w.leases[i] = w.leases[len(w.leases)-1]
	w.leases = w.leases[:len(w.leases)-1]
	delete(w.live[l.space], l.n)
	for _, h := range w.nodes {
		if h.up && w.cut[h.id] == 0 {
			delete(h.used[l.in], l.n)
		}
	}
}

// synchronise: the host learns from the owners of the tunnels what is in use.
func (w *world) synchronise(h *host) {
	if h.witness || w.cut[h.id] != 0 {
		return
	}
	h.synced = true
	for _, l := range w.leases {
		if h.used[l.in] == nil {
			h.used[l.in] = map[Number]bool{}
		}
		h.used[l.in][l.n] = true
	}
}

// useRanges asks for a range, or gives an empty one back.
func (w *world) useRanges(h *host) {
	if h.witness {
		return
	}
	p := pools[w.r.IntN(len(pools))]
	if w.r.IntN(4) == 0 {
		for _, r := range w.truth.ranges { // what a removed member left behind
			if q, _ := w.truth.Member(r.Node); q.State == Left && !slices.ContainsFunc(w.leases, func(l *lease) bool { return r.Contains(l.space, l.n) }) {
				w.propose(h, returns(h.id, r.ID))
				return
			}
		}
	}
	if fresh := h.disk.Fresh(h.state, p.space); len(fresh) < 2 && w.r.IntN(2) == 0 {
		w.propose(h, &clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
			Node: uint32(h.id), Store: h.disk.Store, Space: uint32(p.space), First: p.space.Bytes(p.first), Last: p.space.Bytes(p.last), Count: p.count}}})
		return
	}
	for _, r := range h.disk.Usable(h.state, p.space, h.process, h.synced) {
		if h.synced && len(h.used[r.ID]) == 0 {
			h.disk.Close(r.ID)
			w.propose(h, returns(h.id, r.ID))
			w.counted["returned"]++
			return
		}
	}
}

// act: a node does its part as owner, successor, leader or newcomer.
func (w *world) act(h *host) {
	if !h.joined() {
		if w.now.Sub(h.joinedAt) > 20*time.Millisecond {
			h.joinedAt = w.now
			h.life = max(h.life, h.state.Life(h.id)+1)
			w.propose(h, w.joining(h))
		}
		return
	}
	if w.log.Leader() == h.id {
		for _, o := range w.nodes {
			if p, ok := h.state.Member(o.id); ok && !p.Lost && p.State != Left && (!o.up || w.cut[o.id] != w.cut[h.id] || w.r.IntN(500) == 0) && w.r.IntN(4) == 0 {
				w.propose(h, loses(o.id, p.Process))
			}
		}
		if plan := h.state.Plan(2); len(plan) > 0 {
			w.propose(h, plan[w.r.IntN(len(plan))])
		}
	}
	if p, _ := h.state.Member(h.id); p.Lost {
		w.propose(h, w.joining(h))
	}
	if len(h.state.scopes) == 0 {
		return
	}
	s := h.state.scopes[w.r.IntN(len(h.state.scopes))].clone()
	for range 8 {
		if _, acting := h.acting[s.ID]; acting || s.Owner == h.id || s.Successor == h.id {
			break
		}
		s = h.state.scopes[w.r.IntN(len(h.state.scopes))].clone()
	}
	mine, acting := h.acting[s.ID]
	switch {
	case s.Owner == h.id && !acting && w.r.IntN(8) == 0: // another holds what was acknowledged
		w.propose(h, declines(s.ID, s.Epoch, NodeID(1+w.r.IntN(len(w.nodes)))))
		w.counted["declined"]++
	case s.Owner == h.id && (!acting || mine.Counter < s.Epoch.Counter):
		h.acting[s.ID] = s.Epoch
	case acting && mine.SameTenure(s.Epoch) || acting && s.Successor == h.id && mine.SameTenure(s.Next):
		if w.r.IntN(3) == 0 && mine.Counter&0xffff < 0xfff0 { // it renews its epoch by itself
			mine.Counter++
			h.acting[s.ID] = mine
			w.uses(s.ID, mine, "renewed")
			w.counted["renewals"]++
		}
		if !mine.SameTenure(s.Epoch) { // the commit follows what it did
			w.propose(h, takes(s.ID, mine, s.Epoch))
			return
		}
		var in []NodeID
		for _, n := range s.Standbys {
			if o := w.nodes[n-1]; o.up && o.joined() && w.cut[n] == w.cut[h.id] && w.r.IntN(8) > 0 {
				in = append(in, n)
			}
		}
		w.propose(h, syncs(s.ID, mine, in...))
	case s.Successor == h.id:
		o := w.nodes[max(s.Owner, 1)-1]
		if !o.up || w.cut[o.id] != w.cut[h.id] || w.r.IntN(20) == 0 { // lost, or a handover
			h.acting[s.ID] = s.Next
			w.uses(s.ID, s.Next, "acted")
			w.propose(h, takes(s.ID, s.Next, s.Epoch))
			w.counted["acted first"]++
		}
	}
}

func (w *world) joining(h *host) *clusterpb.Command {
	var s Site
	if w.sites && h.id < 5 {
		s = Site{Number: 1 + int(h.id-1)/2, Priority: int(h.process % 256), Override: h.id == 3}
	}
	c := joinsSite(h.id, h.process, s)
	c.GetAddMember().Store, c.GetAddMember().Witness = h.disk.Store, h.witness
	return c
}

// administer: drains, and now and then the removal of a node that has stopped.
func (w *world) administer(h *host) {
	n := NodeID(1 + w.r.IntN(5))
	if w.r.IntN(3) > 0 || n < 3 {
		w.propose(h, drains(n, w.r.IntN(2) == 0))
		return
	}
	// Who removes a node vouches that it has stopped for good.
	gone := w.nodes[n-1]
	w.stop(gone)
	gone.disk, gone.snapshot, gone.at = Holdings{Node: n, Store: w.r.Uint64() | 1}, nil, 0
	w.propose(h, removes(n))
}

// restoreAndCompare: a machine restored from a snapshot goes on as the first one does.
func (w *world) restoreAndCompare() {
	a, b := New(), New()
	snapshot := w.truth.Snapshot()
	for _, m := range []*Machine{a, b} {
		if err := m.Restore(snapshot); err != nil {
			w.t.Fatal(err)
		}
	}
	c := *a // and one that was copied on the way
	for i := range min(20, w.log.Len()) {
		e := w.log.Entry(1 + w.r.Uint64N(w.log.Len()))
		if x, y := a.Apply(e), b.Apply(e); x.Code != y.Code || x.Value != y.Value {
			w.t.Fatalf("%+v and %+v", x, y)
		}
		if i == 10 {
			s := a.Snapshot()
			if err := c.Restore(s); err != nil {
				w.t.Fatal(err)
			}
			*a = c
		}
	}
	if !bytes.Equal(a.Snapshot(), b.Snapshot()) {
		w.t.Fatal("a restored machine went another way")
	}
	w.counted["restores"]++
}

// TestFarmUnderRandomFaults: no SPI and no address is ever in use twice, no epoch
// is ever shared, whatever crashes, starts alone, is cut off, lost or repeated.
func TestFarmUnderRandomFaults(t *testing.T) {
	worlds, steps := 10, 100_000
	if testing.Short() {
		steps = 10_000
	}
	total := map[string]int{}
	for seed := range worlds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			w := newWorld(t, uint64(seed))
			for range steps {
				w.step()
			}
			w.heal()
			for k, n := range w.counted {
				total[k] += n
			}
		})
	}
	t.Logf("%v", total)
	happens := []string{"given out", "given out alone", "returned", "acted first", "renewals", "lone restarts", "lost disks", "partitions",
		"deposed leaders", "owners silence", "owners reported lost", "owners restarted", "done", "unchanged", "superseded", "old epoch", "refused", "restores", "rivals",
		"taken", "given to the owner", "scope's range returned", "ranges of scopes in use"}
	if !testing.Short() {
		happens = append(happens, "exhausted") // takes more steps
	}
	for _, k := range happens {
		if total[k] == 0 {
			t.Errorf("never happened: %s", k)
		}
	}
}

// heal ends all faults; in the end everybody has one state, which the whole log gives, too.
func (w *world) heal() {
	w.cut = [MaxNodes + 1]int{}
	for _, h := range w.nodes {
		if !h.up {
			w.start(h)
		}
	}
	late := func(h *host) bool { return h.applied < w.log.Len() }
	for i := 0; i < 100 || i < 100_000 && slices.ContainsFunc(w.nodes, late); i++ {
		w.now = w.now.Add(5 * time.Millisecond)
		w.deliver()
	}
	again := New()
	for i := range w.log.Len() {
		again.Apply(w.log.Entry(i + 1))
	}
	want := w.truth.Snapshot()
	if !bytes.Equal(again.Snapshot(), want) {
		w.t.Fatal("the log replayed gives another state")
	}
	for _, h := range w.nodes {
		if h.applied != w.log.Len() || !bytes.Equal(h.state.Snapshot(), want) {
			w.t.Fatalf("node %d: entry %d of %d, or another state", h.id, h.applied, w.log.Len())
		}
	}
}
