package node

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
)

// FarmOptions are what a Farm needs beyond the Options of each of its scopes, whose
// Pair, Slot and Share it sets itself.
type FarmOptions struct {
	Options
	Self      cluster.NodeID
	Name      string
	Coverage  cluster.Coverage
	Interval  time.Duration // of heartbeats
	Threshold int
}

const (
	// shares is into how many parts SPIs and instance indexes are split: one for each
	// slot that a farm can have.
	shares = fsm.MaxNodes * fsm.SlotsPerMember
)

var errNoScope = errors.New("a farm has no such scope")

// Farm is a member of a farm: a Node for each scope that it owns or stands by for,
// and what the members have decided about them. It is not safe for concurrent use.
type Farm struct {
	scopeSet
	decisions
	opt       FarmOptions
	cfg       *config.Config
	static    map[string]cluster.ScopeID // of the static phase 1 entries that synchronise; see place
	placeAt   time.Time                  // when they are placed anew; zero: they are in place
	spis      map[ipsec.ESPSPI]place
	owned     map[cluster.ScopeID]cluster.Epoch // as announced
	routes    map[AddRoute]int
	lookAgain time.Time // when to compare with what was decided again; zero: when it changes
	claimed   bool      // this member has its site's addresses
	noted     bool      // the disk says that we went on alone, or cannot say that we did not
	lan       lan       // inner prefixes and their scopes; see farm_lan.go
	pools     []poolRange

	// Tunnels that move from scope to scope; see farm_moves.go.
	drifts     map[ipsec.ESPSPI]*drift
	arrived    map[ipsec.ESPSPI]time.Time
	offers     []*offer
	pointers   map[ipsec.ESPSPI]pointer
	superseded []superseded
	asked      time.Time

	started, stopping bool
	counters          FarmCounters
}

// FarmCounters count since this process began.
type FarmCounters struct {
	Forwarded, ForwardedHere uint64 // IKE messages
	Strays                   uint64 // of an IKE SA whose owner is not known
	OwnerMoves               uint64 // tunnels that came here by a planned handover
}

// NewFarm makes a member that does nothing before Start.
func NewFarm(o FarmOptions) *Farm {
	f := &Farm{
		scopeSet: newScopeSet(), decisions: newDecisions(), opt: o, cfg: o.Config,
		spis: map[ipsec.ESPSPI]place{}, drifts: map[ipsec.ESPSPI]*drift{}, arrived: map[ipsec.ESPSPI]time.Time{}, pointers: map[ipsec.ESPSPI]pointer{},
		owned: map[cluster.ScopeID]cluster.Epoch{}, routes: map[AddRoute]int{}, lan: newLAN(o.Config), pools: farmPools(o.Config), noted: o.Coverage != cluster.CoverageProven,
	}
	f.collect = f.carry
	f.opt.ofFarm, f.opt.ranged = true, true
	f.opt.ledger = statesync.NewLedger(o.Rand)
	f.opt.turns = &copyTurns{}
	return f
}

// Start begins: the guardian is told that this member runs.
func (f *Farm) Start(time.Time) {
	f.started = true
	f.announce()
}

// HandleDecided takes the state that the members' log has led to. The machine must
// not change afterwards.
func (f *Farm) HandleDecided(now time.Time, m *fsm.Machine) {
	scopes := m.Scopes()
	// Which scope a static phase 1 falls to follows from all that there are.
	moved := !slices.EqualFunc(f.decided.Scopes(), scopes, func(a, b fsm.Scope) bool { return a.ID == b.ID })
	f.decided = m
	granted := f.grants(f.opt.Self, f.opt.Process)
	wanted := m.HandOvers(f.opt.Self)
	fresh := false
	for _, s := range scopes {
		if f.scopes[s.ID] == nil && f.concerns(s) {
			f.add(now, s.ID)
			fresh = true
		}
	}
	if moved {
		if f.placeAt = now.Add(placeWait); f.whole() {
			f.place()
		}
	}
	if fresh || moved || !f.started {
		f.configure(now)
	}
	wanted = f.afterCopies(now, wanted)
	// One handover at a time: the next when the owner of this one has changed.
	if len(wanted) > 1 {
		wanted = wanted[:1]
	}
	for _, s := range scopes {
		f.with(s.ID, func(n *Node) {
			n.slot.HandleHome(m.Home(s.ID))
			n.slot.HandleDecided(now, s, granted)
			n.slot.HandleWanted(now, slices.Contains(wanted, s.ID))
			n.pump(now)
		})
		if n := f.scopes[s.ID]; n != nil {
			f.considerSpare(now, n, s)
		}
	}
	f.siteAddresses()
	f.lanDecided(now)
	f.leases(now, true)
}

// concerns says whether this member has to do with a scope.
func (f *Farm) concerns(s fsm.Scope) bool {
	return s.Owner == f.opt.Self || s.Successor == f.opt.Self || slices.Contains(s.Standbys, f.opt.Self) || slices.Contains(s.Sync, f.opt.Self)
}

func (f *Farm) add(now time.Time, id cluster.ScopeID) {
	o := f.opt.Options
	o.Slot = &cluster.SlotOptions{Self: f.opt.Self, Name: f.opt.Name, Scope: id, Coverage: f.opt.Coverage, Interval: f.opt.Interval, Threshold: f.opt.Threshold}
	o.Share = ike.Share{Part: int(id) % shares, Of: shares}
	o.Config = f.configOf(id)
	o.nonces = sharedKeys{f.opt.ledger, f, id}
	n := New(o)
	f.put(id, n)
	n.Start(now)
	for _, k := range slices.Sorted(maps.Keys(f.peers)) {
		n.HandlePeer(now, peerOf(f.peers[k], id))
	}
	f.tellStreams(now, n)
	if f.quorum.Lost {
		n.slot.HandleQuorum(now, true, f.quorum.Stop)
		n.pump(now)
	}
	f.collect(id)
}

// spareTime is how long what a scope holds is kept when this member has nothing to do
// with it: in a handover it is often a standby again a moment later, and without the
// routes meanwhile the LAN's packets would find no way.
const spareTime = 3 * time.Second

// spare says, and notes, that this member has nothing to do with a scope.
func (f *Farm) spare(n *Node, s fsm.Scope) bool {
	n.spare = !f.concerns(s) && n.slot.Idle()
	if !n.spare {
		n.dropAt = time.Time{}
	}
	return n.spare
}

// considerSpare has what a scope holds dropped in a while, if it has become spare.
func (f *Farm) considerSpare(now time.Time, n *Node, s fsm.Scope) {
	if was := n.spare; f.spare(n, s) && !was {
		n.dropAt = now.Add(spareTime)
	}
}

// dropSpare drops what has been spare for long enough.
func (f *Farm) dropSpare(now time.Time) {
	for _, id := range f.order {
		n := f.scopes[id]
		if !n.spare && n.slot.Idle() { // since the log was looked at
			if s, ok := f.decided.Scope(id); ok {
				f.considerSpare(now, n, s)
			}
		}
		if n.dropAt.IsZero() || now.Before(n.dropAt) {
			continue
		}
		n.dropAt = time.Time{}
		if s, ok := f.decided.Scope(id); ok && f.spare(n, s) {
			f.drop(now, id)
		}
	}
}

// drop forgets what a scope holds that this member has nothing to do with any more. The
// rest stays: the numbers of its frames go on if it is needed again.
func (f *Farm) drop(now time.Time, id cluster.ScopeID) {
	n := f.scopes[id]
	n.replica.Abandon()
	n.keepBounds()
	n.ike.BeginCopy()
	n.ike.EndCopy()
	n.pump(now)
	f.collect(id)
}

// configure gives every scope its part of the configuration.
func (f *Farm) configure(now time.Time) {
	f.each(func(n *Node) { n.Reload(now, f.configOf(cluster.ScopeID(n.scope))) })
}

// configOf is what a scope has of the configuration: every dialup phase 1 that
// synchronises, and the static ones that fall to it.
func (f *Farm) configOf(id cluster.ScopeID) *config.Config {
	c := *f.cfg
	c.Phase1 = nil
	for i := range f.cfg.Phase1 {
		p := f.cfg.Phase1[i]
		if p.FGSPSync && (p.Dialup() || f.static[p.Name] == id) {
			c.Phase1 = append(c.Phase1, p)
		}
	}
	return &c
}

// peerOf is what a member's heartbeats say of one scope.
func peerOf(p cluster.Peer, id cluster.ScopeID) cluster.Peer {
	p.Role, p.Epoch, p.Entitled = cluster.RoleStandby, cluster.Epoch{}, false
	for _, t := range p.EntitledTo {
		if t.Scope == id {
			p.Epoch, p.Entitled = t.Epoch, true
		}
	}
	for _, t := range p.Owned {
		if t.Scope == id {
			p.Role, p.Epoch = cluster.RoleOwner, t.Epoch
		}
	}
	p.Owned, p.EntitledTo = nil, nil
	return p
}

// HandlePeer takes what another member's heartbeats say.
func (f *Farm) HandlePeer(now time.Time, p cluster.Peer) {
	was := f.peers[p.Node]
	f.lan.due = f.lan.due || was.Process != p.Process || was.Running != p.Running
	f.peers[p.Node] = p
	if p.Running {
		delete(f.losses, p.Node)
	}
	f.each(func(n *Node) { n.HandlePeer(now, peerOf(p, cluster.ScopeID(n.scope))) })
}

// HandleLoss says that a member was lost, and for which scopes that turned our
// guardian's entitlement into a claim.
func (f *Farm) HandleLoss(now time.Time, l cluster.TellLoss) {
	id, kind := l.Node, l.Kind
	p := f.peers[id]
	p.Running, p.Owned, p.EntitledTo = false, nil, nil
	f.peers[id] = p
	f.lose(now, id, p.Process, kind)
	f.each(func(n *Node) {
		ours := slices.ContainsFunc(l.Claimed, func(t cluster.Tenure) bool { return t.Scope == cluster.ScopeID(n.scope) })
		n.HandleLoss(now, id, kind, ours, l.Detected)
	})
	f.reports(now, f.emit)
}

// HandleEntitled says that our guardian holds our entitlement.
func (f *Farm) HandleEntitled(now time.Time, s cluster.ScopeID, e cluster.Epoch) {
	f.scopeSet.HandleEntitled(now, s, e)
	f.considerNote()
}

// HandleAck takes a member's acknowledgement for a scope.
func (f *Farm) HandleAck(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, seq uint64) {
	f.scopeSet.HandleAck(now, from, process, s, seq)
	f.considerNote()
}

// HandleQuorum says whether the log has a leader.
func (f *Farm) HandleQuorum(now time.Time, q Quorum) {
	f.quorum = q
	f.emit(q.alarm())
	f.each(func(n *Node) { n.slot.HandleQuorum(now, q.Lost, q.Stop); n.pump(now) })
}

// HandleLeader says whether this member leads the log.
func (f *Farm) HandleLeader(now time.Time, leads bool) {
	f.leads = leads
	f.reports(now, f.emit)
}

// HandleMonitors is for pairs: a member without its interfaces gets no traffic from the router.
func (f *Farm) HandleMonitors(time.Time, int) {}

// HandleTimeout runs what is due.
func (f *Farm) HandleTimeout(now time.Time) {
	f.dueScopes(now)
	if !f.lookAgain.IsZero() && !now.Before(f.lookAgain) {
		f.HandleDecided(now, f.decided)
	}
	if !f.placeAt.IsZero() && !now.Before(f.placeAt) {
		f.place()
		f.configure(now)
		f.announce() // so that it is asked anew who begins what
	}
	f.reports(now, f.emit)
	f.moves(now)
	f.dropSpare(now)
	f.lanDue(now)
	f.leases(now, false)
}

// NextTimeout is when HandleTimeout is due.
func (f *Farm) NextTimeout() (t time.Time, ok bool) {
	for _, id := range f.order {
		n := f.scopes[id]
		t, ok = earlier(t, ok, n.NextTimeout)
		t, ok = earlier(t, ok, func() (time.Time, bool) { return n.dropAt, !n.dropAt.IsZero() })
	}
	t, ok = earlier(t, ok, f.nextMove)
	t, ok = earlier(t, ok, f.nextLAN)
	t, ok = earlier(t, ok, f.nextLeases)
	t, ok = earlier(t, ok, func() (time.Time, bool) { return f.lookAgain, !f.lookAgain.IsZero() })
	t, ok = earlier(t, ok, func() (time.Time, bool) { return f.placeAt, !f.placeAt.IsZero() })
	return earlier(t, ok, f.nextReport)
}

// considerNote takes the note off the disk when everything that this member has to do
// with is held by others, too: whoever was interested has heard what it said.
func (f *Farm) considerNote() {
	if !f.noted || len(f.order) == 0 || f.quorum.Lost {
		return
	}
	for _, id := range f.order {
		if s, ok := f.decided.Scope(id); (!ok || f.concerns(s)) && !f.scopes[id].slot.Covered() {
			return
		}
	}
	f.noted, f.opt.Coverage = false, cluster.CoverageProven
	for _, n := range f.scopes {
		n.opt.Slot.Coverage = cluster.CoverageProven
	}
	f.notes = append(f.notes, 0) // a slot has another number
	var top cluster.Epoch
	for _, e := range f.owned {
		if top.Less(e) {
			top = e
		}
	}
	f.emit(cluster.WriteNote{On: false, Epoch: top})
	f.announce()
}

// Reload takes a new configuration; what did not change is not touched.
func (f *Farm) Reload(now time.Time, c *config.Config) {
	f.cfg = c
	f.lanReload(c)
	f.pools = farmPools(c)
	if f.placeAt.IsZero() {
		f.place()
	}
	f.configure(now)
}

// Shutdown hands over what it can, and ends with cluster.Stopped.
func (f *Farm) Shutdown(now time.Time) {
	f.stopping = true
	f.each(func(n *Node) { n.Shutdown(now) })
	f.stopped()
}

func (f *Farm) stopped() {
	if f.stopping && !slices.ContainsFunc(f.order, func(id cluster.ScopeID) bool { return !f.scopes[id].stopped }) {
		f.stopping = false
		f.emit(cluster.Stopped{})
	}
}

// announce tells the guardian what this member owns.
func (f *Farm) announce() {
	a := cluster.Announce{Role: cluster.RoleStandby, Coverage: f.opt.Coverage}
	for _, id := range f.order {
		if e := f.owned[id]; e != (cluster.Epoch{}) {
			a.Owned = append(a.Owned, cluster.Tenure{Scope: id, Epoch: e})
		}
	}
	f.emit(a)
}

// initialContact tells the other scopes that are owned here; members that own others are told
// by the record, if they follow this scope.
func (f *Farm) initialContact(id cluster.ScopeID, e initialContact) {
	for _, other := range f.order {
		if other != id {
			f.with(other, func(n *Node) {
				n.ike.InitialContact(e.now, e.InitialContact)
				n.pump(e.now)
			})
		}
	}
}

// carry takes over what a scope wants done.
func (f *Farm) carry(id cluster.ScopeID) {
	n := f.scopes[id]
	owned := false // newly: it is told when the data plane is ready for what others send here then
	for {
		e, ok := n.Poll()
		if !ok {
			break
		}
		switch e := e.(type) {
		case cluster.Announce:
			_, before := f.owned[id]
			f.lan.due = true
			delete(f.owned, id)
			for _, t := range e.Owned {
				f.owned[id] = t.Epoch
				owned = !before
			}
			if !owned {
				f.announce()
			}
		case Activate:
			f.emit(e)
			if owned {
				owned = false
				f.announce()
			}
		case cluster.WriteNote:
			f.notes = append(f.notes, id)
			f.noted = true
			f.emit(e)
		case cluster.Stopped:
			n.stopped = true
			f.stopped()
		case Claim, Release, Reassert:
			f.address(id, e)
		case Install:
			f.install(id, e)
		case Remove:
			f.remove(id, e)
		case reached:
			f.reached(id, e)
		case pointed:
			f.pointed(id, e)
		case movedAway:
			f.movedAway(id, e)
		case movedHere:
			f.movedHere(id, e)
		case initialContact:
			f.initialContact(id, e)
		case proposed:
			f.emit(cluster.Propose{Command: e.Command})
		case letterHere:
			f.letter(e.now, id, e.From, e.Letter)
		case Log:
			e.Attrs = append(slices.Clip(e.Attrs), slog.String("scope", id.String()))
			f.emit(e)
		default:
			f.emit(e)
		}
	}
	if owned {
		f.announce()
	}
}
