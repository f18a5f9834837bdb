package node

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/config"
	"tandem/xfrm"
)

// What the LAN sends to a dialup client may arrive with any member of the farm. So each
// owner tells all others by which inner prefixes the clients of its scopes are reached:
// prefix → scope, not prefix → owner, so that nothing changes when a scope has another
// owner. Members route the prefixes into the tunnel interface, where a packet that no SA
// takes is led to the scope's owner, as any other packet at the wrong member.
//
// Members with a copy are told as well. They have SA and route from there, but a copy
// comes and goes: what is told stays.
//
// Nothing waits for the telling. It goes over the link on which packets are forwarded,
// one message at a time to each member, repeated until it is answered. Both sides keep a
// digest of the set; where they differ it is sent whole.

// SendLAN goes to a member on the link for forwarded packets, which may lose it.
type SendLAN struct {
	To      cluster.NodeID
	Message []byte
}

// Lead says that packets for Prefix in a tunnel interface that no SA takes belong to a
// scope; 0: to none that is known.
type Lead struct {
	Tunnel string
	Prefix netip.Prefix
	To     xfrm.Scope
}

const (
	// lanHold is how long a prefix is kept that is gone, or whose scope is owned here: it
	// may come again with another scope, whose owner is another member, or with another owner.
	lanHold = 3 * time.Second
	// maxReach bounds the prefixes that are kept of a scope; more are not led.
	maxReach = 1 << 16
	// lanCopies is how long what is told waits for copies that are under way to this member:
	// from a copy its set follows, without being sent.
	lanCopies = 30 * time.Second
	// lanSweep is how many prefixes are let go at a time.
	lanSweep = 512
)

// lan is what is known of the others' prefixes, and who has been told of ours.
type lan struct {
	pages   map[cluster.ScopeID]*page
	sources map[cluster.NodeID]*lanSource
	leaving []leaving // in the order of time
	serial  uint32    // of the last that left
	names   map[string]bool
	refused uint64
	taken   bool // a set from a copy, by the message at hand: no more than one

	readers map[cluster.NodeID]*lanReader
	due     bool // somebody may have to be told something
}

func newLAN(c *config.Config) lan {
	return lan{pages: map[cluster.ScopeID]*page{}, sources: map[cluster.NodeID]*lanSource{}, readers: map[cluster.NodeID]*lanReader{}, names: syncedNames(c)}
}

// syncedNames are the phase 1 entries that a farm forwards for.
func syncedNames(c *config.Config) map[string]bool {
	m := map[string]bool{}
	for i := range c.Phase1 {
		if c.Phase1[i].FGSPSync {
			m[c.Phase1[i].Name] = true
		}
	}
	return m
}

// page is what the owner of a scope has told of it.
type page struct {
	scope   cluster.ScopeID
	epoch   cluster.Epoch
	set     map[reach]mark
	is      setSum // of those that have not left
	whole   bool   // as the owner of epoch has it
	pass    uint32 // of the set sent whole that is under way, or was last
	limited bool
	let     time.Time // when all of it is let go; zero: not at all
	waits   time.Time // since when it waits for the copy; zero: it does not
}

// mark of an entry.
type mark struct {
	pass uint32 // in which it came last
	left uint32 // serial of its leaving; 0: it is there
}

type leaving struct {
	scope  cluster.ScopeID
	reach  reach
	serial uint32
	until  time.Time
}

// lanSource is a process that tells us.
type lanSource struct {
	process cluster.ProcessID
	number  uint32 // of its last message
	answer  []byte // to that
}

// LANStatus is what is known of inner prefixes at other members.
type LANStatus struct {
	Prefixes int    // led to other members' scopes
	Refused  uint64 // messages, or parts of them: malformed, of an older epoch, of no owner
	Limited  int    // scopes of which there are more than are kept
}

func (f *Farm) lanStatus() (s LANStatus) {
	s.Refused = f.lan.refused
	for id, p := range f.lan.pages {
		if _, ours := f.owned[id]; !ours {
			s.Prefixes += int(p.is.n)
		}
		if p.limited {
			s.Limited++
		}
	}
	return s
}

// reached counts which scopes have a route, and has the others told.
func (f *Farm) reached(id cluster.ScopeID, e reached) {
	f.route(e.reach, e.gone)
	if _, ours := f.owned[id]; ours && e.tellable() {
		f.lanChanged(id, lanEntry(e))
	}
}

// route counts what needs a route: scopes that are held here, and what was told of scopes.
func (f *Farm) route(r reach, gone bool) {
	switch {
	case r.bare:
	case gone:
		if f.routes[r.AddRoute]--; f.routes[r.AddRoute] == 0 {
			delete(f.routes, r.AddRoute)
			f.emit(RemoveRoute(r.AddRoute))
		}
	default:
		if f.routes[r.AddRoute]++; f.routes[r.AddRoute] == 1 {
			f.emit(r.AddRoute)
		}
	}
}

// HandleLAN takes what another member tells about prefixes, or answers.
func (f *Farm) HandleLAN(now time.Time, from cluster.NodeID, b []byte) {
	m, err := readLAN(b)
	p, known := f.peers[from]
	switch {
	case err != nil:
		f.lan.refused++
	case m.to != f.opt.Process || !known || m.from != p.Process: // of a former life, or heard too early
	case m.answer:
		f.lanAnswered(now, from, m)
	default:
		f.lanTold(now, from, m)
	}
}

// lanTold takes a message once; whoever repeats it has missed the answer.
func (f *Farm) lanTold(now time.Time, from cluster.NodeID, m *lanMessage) {
	s := f.lan.sources[from]
	if s == nil || s.process != m.from {
		s = &lanSource{process: m.from}
		f.lan.sources[from] = s
	}
	if m.number < s.number {
		return
	}
	if m.number > s.number {
		f.lan.taken = false
		w := newLANWriter(true, f.opt.Process, m.from, m.number)
		for i := range m.parts {
			x := &m.parts[i]
			w.put(&lanPartOf{scope: x.scope, epoch: x.epoch, kind: f.lanTake(now, from, x)})
		}
		s.number, s.answer = m.number, w.b
	}
	f.emit(SendLAN{from, s.answer})
}

// lanTake takes one part, and says what to answer.
func (f *Farm) lanTake(now time.Time, from cluster.NodeID, x *lanPartOf) lanKind {
	if x.epoch.Node != from {
		f.lan.refused++
		return lanOld
	}
	if e, ours := f.owned[x.scope]; ours {
		if x.epoch.Less(e) {
			f.lan.refused++
			return lanOld
		}
		return lanLater
	}
	p := f.lan.pages[x.scope]
	if p == nil {
		p = &page{scope: x.scope, set: map[reach]mark{}}
		f.lan.pages[x.scope] = p
	}
	switch {
	case x.epoch.Less(p.epoch):
		f.lan.refused++
		return lanOld
	case p.epoch.Less(x.epoch):
		p.epoch, p.whole = x.epoch, false
	}
	p.let = time.Time{}
	if x.kind != lanState {
		p.waits = time.Time{}
	}
	switch x.kind {
	case lanState:
		if p.is != x.is && !f.fromCopy(now, p, x.is) && f.copyComes(now, p) {
			return lanLater
		}
		if p.whole = p.is == x.is; p.whole {
			p.waits = time.Time{}
		}
	case lanChange:
		if !p.whole && !p.limited {
			return lanWant
		}
		f.enter(now, p, x.entries)
		p.whole = p.is == x.is
	case lanFirst, lanWhole:
		p.pass++
		p.limited, p.whole = false, false
		f.enter(now, p, x.entries)
	default:
		f.enter(now, p, x.entries)
	}
	switch {
	case x.kind == lanFirst || x.kind == lanMore:
		return lanHave
	case x.kind == lanLast || x.kind == lanWhole:
		f.leave(now, p, func(r reach) bool { return p.set[r].pass != p.pass })
		p.whole = p.is == x.is
	}
	switch {
	case p.whole:
		return lanHave
	case p.limited:
		return lanLimited
	}
	return lanWant
}

// copyComes says whether to wait for a copy of the scope, or for others: until all are
// here there is enough to do.
func (f *Farm) copyComes(now time.Time, p *page) bool {
	s, _ := f.decided.Scope(p.scope)
	if !slices.Contains(s.Standbys, f.opt.Self) {
		return false
	}
	if p.waits.IsZero() {
		p.waits = now
	}
	return now.Sub(p.waits) < lanCopies && (f.lan.taken || f.copied())
}

// copied says whether copies are under way to this member.
func (f *Farm) copied() bool {
	return slices.ContainsFunc(f.decided.Scopes(), func(s fsm.Scope) bool {
		return slices.Contains(s.Standbys, f.opt.Self) && !slices.Contains(s.Sync, f.opt.Self)
	})
}

// fromCopy takes the set from the copy that this member has of the scope, if it is the
// one that the owner speaks of.
func (f *Farm) fromCopy(now time.Time, p *page, is setSum) bool {
	n := f.scopes[p.scope]
	if n == nil || n.reachIs != is || len(n.reach) > maxReach || f.lan.taken || f.copied() {
		return false
	}
	f.lan.taken = len(n.reach) > 0
	f.leave(now, p, func(r reach) bool { return n.reach[r] == 0 })
	for _, r := range slices.SortedFunc(maps.Keys(n.reach), compareReach) {
		if r.tellable() {
			f.keep(p, r)
		}
	}
	return true
}

func (f *Farm) enter(now time.Time, p *page, entries []lanEntry) {
	for i := range entries {
		if x := &entries[i]; x.gone {
			f.take(now, p, x.reach)
		} else {
			f.keep(p, x.reach)
		}
	}
}

// keep enters a prefix; of scopes that have the same, the last that told it is meant.
func (f *Farm) keep(p *page, r reach) {
	m, known := p.set[r]
	if !known && len(p.set) >= maxReach {
		if !p.limited {
			f.emit(Log{Level: slog.LevelWarn, Message: "a scope of another member has more prefixes than are kept; what the LAN sends to the rest finds no way through this member",
				Attrs: []slog.Attr{slog.String("scope", p.scope.String()), slog.Int("kept", maxReach)}})
		}
		p.limited = true
		return
	}
	p.set[r] = mark{pass: p.pass}
	if known && m.left == 0 {
		return
	}
	p.is.add(r)
	if !f.lan.names[r.Tunnel] {
		return
	}
	if !known {
		f.route(r, false)
	}
	f.emit(Lead{r.Tunnel, r.Prefix, xfrm.Scope(p.scope)})
}

// take lets a prefix go in a while.
func (f *Farm) take(now time.Time, p *page, r reach) {
	m, known := p.set[r]
	if !known || m.left != 0 {
		return
	}
	f.lan.serial = max(f.lan.serial+1, 1)
	m.left = f.lan.serial
	p.set[r] = m
	p.is.take(r)
	f.lan.leaving = append(f.lan.leaving, leaving{p.scope, r, m.left, now.Add(lanHold)})
	if to := f.otherPage(p, r); to != 0 && f.lan.names[r.Tunnel] {
		f.emit(Lead{r.Tunnel, r.Prefix, to})
	}
}

// leave takes all of a page that go.
func (f *Farm) leave(now time.Time, p *page, goes func(reach) bool) {
	var all []reach
	for r, m := range p.set {
		if m.left == 0 && goes(r) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, compareReach)
	for _, r := range all {
		f.take(now, p, r)
	}
}

// otherPage is another scope than a page's that has the prefix.
func (f *Farm) otherPage(p *page, r reach) xfrm.Scope {
	for _, id := range slices.Sorted(maps.Keys(f.lan.pages)) {
		if o := f.lan.pages[id]; o != p {
			if m, ok := o.set[r]; ok && m.left == 0 {
				return xfrm.Scope(id)
			}
		}
	}
	return 0
}

// erase forgets a prefix of a page.
func (f *Farm) erase(p *page, r reach) {
	m := p.set[r]
	delete(p.set, r)
	if m.left == 0 {
		p.is.take(r)
	}
	if !f.lan.names[r.Tunnel] {
		return
	}
	f.route(r, true)
	f.emit(Lead{r.Tunnel, r.Prefix, f.otherPage(p, r)})
}

// lanDecided lets go of scopes that are no more, and of what is owned here: of that this
// member knows better.
func (f *Farm) lanDecided(now time.Time) {
	f.lan.due = true
	for id, p := range f.lan.pages {
		e, ours := f.owned[id]
		_, is := f.decided.Scope(id)
		if ours && p.epoch.Less(e) {
			p.epoch = e
		}
		if (ours || !is) && p.let.IsZero() && len(p.set) > 0 {
			p.let = now.Add(lanHold)
		}
	}
}

// lanDue lets go of what is to go, and tells what is to be told.
func (f *Farm) lanDue(now time.Time) {
	l := &f.lan
	for n := 0; n < lanSweep && len(l.leaving) > 0 && !now.Before(l.leaving[0].until); n++ {
		x := l.leaving[0]
		l.leaving = l.leaving[1:]
		if p := l.pages[x.scope]; p != nil && x.serial == p.set[x.reach].left {
			f.erase(p, x.reach)
		}
	}
	if len(l.leaving) == 0 {
		l.leaving = nil
	}
	for _, id := range slices.Sorted(maps.Keys(l.pages)) {
		p := l.pages[id]
		if p.let.IsZero() || now.Before(p.let) {
			continue
		}
		all := slices.SortedFunc(maps.Keys(p.set), compareReach)
		for _, r := range all[:min(lanSweep, len(all))] {
			f.erase(p, r)
		}
		if p.whole, p.limited = false, false; len(p.set) == 0 {
			p.set, p.let = map[reach]mark{}, time.Time{} // its epoch is remembered
		}
		break // the rest in the next turn
	}
	f.tell(now)
}

// nextLAN is when lanDue has something to do.
func (f *Farm) nextLAN() (t time.Time, ok bool) {
	l := &f.lan
	if l.due {
		return time.Time{}, true
	}
	if len(l.leaving) > 0 {
		t, ok = l.leaving[0].until, true
	}
	for _, p := range l.pages {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return p.let, !p.let.IsZero() })
	}
	for _, r := range l.readers {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return r.again, r.open != nil })
		t, ok = earlier(t, ok, func() (time.Time, bool) { return r.later, r.open == nil && !r.later.IsZero() })
	}
	return t, ok
}

// lanReload takes a configuration in which other phase 1 entries synchronise.
func (f *Farm) lanReload(c *config.Config) {
	was, is := f.lan.names, syncedNames(c)
	if maps.Equal(was, is) {
		return
	}
	f.lan.names = is
	for _, id := range slices.Sorted(maps.Keys(f.lan.pages)) {
		p := f.lan.pages[id]
		for _, r := range slices.SortedFunc(maps.Keys(p.set), compareReach) {
			if was[r.Tunnel] == is[r.Tunnel] {
				continue
			}
			f.route(r, was[r.Tunnel])
			to := xfrm.Scope(0)
			if is[r.Tunnel] {
				to = xfrm.Scope(id)
			}
			f.emit(Lead{r.Tunnel, r.Prefix, to})
		}
	}
}
