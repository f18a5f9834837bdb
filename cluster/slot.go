package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"tandem/cluster/fsm"
	"tandem/internal/config"
	"tandem/proto/clusterpb"
)

// SlotOptions configure a Slot.
type SlotOptions struct {
	Self     NodeID
	Name     string
	Scope    ScopeID
	Coverage Coverage
	// Interval and Threshold of heartbeats: silence of their product loses a peer.
	Interval  time.Duration
	Threshold int
	// HA is of an FGCP group, whose members its election ranks; nil: of a farm.
	HA     *config.HA
	Serial string
}

const (
	proposeAgain = 500 * time.Millisecond // a proposal of which nothing came
	slotHoldDown = time.Second            // between a change of owner and a handover
	goHome       = 2 * time.Second        // a member that is back must have stood by for so long to get its slots
	// promiseSettles is how long who is promised the scope in another's place does not act
	// on it while that one lives: it may hear of it later, and act on what it was promised
	// if the owner is lost meanwhile.
	promiseSettles = 250 * time.Millisecond
	// patience is how long a node to which the scope was given waits for an owner
	// that it still hears.
	patience = 2 * time.Second
	// copyPatience is how long a copy that has begun ties a node that the log does not name.
	copyPatience = 30 * time.Second
)

// Propose wants a command decided. It is proposed again while the decision is missing.
type Propose struct{ Command *clusterpb.Command }

func (Propose) effect() {}

// Slot is the ownership engine of one scope in a group whose members decide by a
// log: a slot of a farm, or a virtual cluster of three nodes and more. The log says
// who owns, and whom it promised the next epoch. That successor acts at once when
// the owner is lost and our guardian held the entitlement; the log hears of it after.
//
// An epoch's upper bits are the term, which the log
// gives; the owner counts the lower ones when a member leaves its sync set alive.
type Slot struct {
	engine
	opt      SlotOptions
	rank     *candidate // nil: of a farm, see slot_ranked.go
	decided  fsm.Scope
	granted  bool // the log counts this process as a member
	since    time.Time
	settles  time.Time // when those who were promised it before us have heard that they are no more
	before   []NodeID  // who these are
	epoch    Epoch     // owned, or of the owner known
	from     Epoch     // owned: what we were entitled for; zero: we own by a decision
	highest  Epoch     // ever seen
	peers    []*member
	said     Epoch // announced as owned
	coverage Coverage

	entitled, asked Epoch
	removed         Epoch // asked for when our guardian gave something up: that, or what it held before
	claim           *claimed
	pending         *takeover
	uniting         bool       // what this node did must reach the owner
	united          unitedWith // whom it was sent to last
	held            Epoch      // owned when quorum-loss stopped us; zero: it did not
	lost            bool       // the log has no leader that we know
	stale           bool       // it had none, and has told nothing since
	noQuorum        bool       // lost, and the policy is to stop
	shutdown        bool

	away     map[NodeID]ProcessID // fell silent while entitled: may have gone on with what we own
	apart    map[NodeID]ProcessID // the same, until its state has come here or is lost
	leaveBy  time.Time            // members are leaving: the note is not waited for longer
	renewal  *renewal             // under way
	lapsed   bool                 // what is held here is of no use any more
	copying  Epoch                // of the latest copy that began
	copyAt   time.Time            // when it did
	hold     time.Time
	handTo   Epoch
	handNode NodeID
	handBy   time.Time
	handAsk  bool
	handWhy  string
	handFor  string // evidence
	wanted   bool   // the plan wants a handover to the successor
	home     NodeID // that the plan brings the scope to when it is there
	proposed map[string]time.Time
	notes    []func(time.Time)

	lastChange time.Time
	last       Own
	lastKind   Loss // of the owner before
	takeovers  int
}

// claimed is an owner's loss that turned our entitlement into a claim.
type claimed struct {
	node     NodeID
	epoch    Epoch
	process  ProcessID
	kind     Loss
	detected time.Duration
}

// unitedWith is an owner as it was when our state was sent to it. Who gives way meanwhile
// does not take it, and another epoch says so.
type unitedWith struct {
	node    NodeID
	process ProcessID
	epoch   Epoch
}

// NewSlot makes an engine that does nothing before Start.
func NewSlot(o SlotOptions) *Slot {
	p := &Slot{opt: o, home: o.Scope.Home(), coverage: o.Coverage, away: map[NodeID]ProcessID{}, apart: map[NodeID]ProcessID{}, proposed: map[string]time.Time{}, engine: engine{alarms: map[string]Alarm{}}}
	if o.HA != nil {
		ha := *o.HA
		c := newCandidate(&p.engine, &ha, o.Serial)
		p.rank = &c
	}
	return p
}

// Start begins.
func (p *Slot) Start(now time.Time) {
	p.started, p.lastChange = true, now
	if p.ranked() {
		p.rank.ageFrom = now
		p.changed(now, Own{Reason: "listening for the other members"}, 0)
	}
	p.consider(now)
}

// HandleDecided takes the scope as the log has it now. granted: the log counts this
// very process as a member; before, nothing in it speaks to us.
func (p *Slot) HandleDecided(now time.Time, s fsm.Scope, granted bool) {
	p.enter(now)
	if p.decided.Owner != s.Owner || p.decided.Epoch != s.Epoch || granted != p.granted {
		p.since = now
	}
	same := p.decided.Epoch.SameTenure(s.Epoch)
	if !same || !now.Before(p.settles) {
		p.before = nil
	}
	if was := p.decided.Successor; same && was != 0 && was != s.Successor {
		p.before, p.settles = append(p.before, was), now.Add(promiseSettles)
	}
	if !sameScope(p.decided, s) { // what was proposed has been answered, or is void
		clear(p.proposed)
	}
	p.decided, p.granted = s, granted
	p.stale = p.lost
	if p.phase != stopped {
		p.consider(now)
	}
}

func sameScope(a, b fsm.Scope) bool {
	return a.Owner == b.Owner && a.Epoch == b.Epoch && a.Successor == b.Successor && a.Next == b.Next &&
		slices.Equal(a.Standbys, b.Standbys) && slices.Equal(a.Sync, b.Sync)
}

// HandleWanted says whether the plan wants the scope with its successor.
func (p *Slot) HandleWanted(now time.Time, on bool) {
	if p.wanted != on {
		p.enter(now)
		p.wanted = on
		p.consider(now)
	}
}

// HandleQuorum says whether the log has a leader; without one, and with the policy to
// stop, nothing is owned.
func (p *Slot) HandleQuorum(now time.Time, lost, stop bool) {
	p.enter(now)
	p.lost, p.noQuorum = lost, lost && stop
	p.stale = p.stale || lost
	if p.noQuorum && (p.phase == owning || p.phase == handing) {
		p.held = p.epoch
		if p.renewal != nil { // who heard of it may be entitled under it
			p.held = p.renewal.epoch
		}
		p.disown(now, Epoch{}, "no quorum: stopped as configured")
		p.owe(true) // whoever owns beside us, or after, gets what we did
	}
	p.consider(now)
}

// HandleHome says which node the scope goes home to, if it is not the one that it was
// made for.
func (p *Slot) HandleHome(n NodeID) { p.home = n }

func (p *Slot) tenure() bool {
	return p.decided.Owner == p.opt.Self && p.decided.Epoch.SameTenure(p.epoch)
}

// promised: we act under the epoch that the log promised us.
func (p *Slot) promised() bool {
	return p.decided.Successor == p.opt.Self && p.decided.Next.SameTenure(p.epoch)
}

func (p *Slot) consider(now time.Time) {
	if !p.started {
		return
	}
	for {
		p.wake = time.Time{}
		if p.ranked() {
			p.rank.considerHealth(now)
		}
		was := p.phase
		switch p.phase {
		case listening, standing:
			p.considerStanding(now)
		case taking:
			p.considerTaking(now)
		case owning:
			p.considerOwning(now)
		case handing:
			p.considerHanding(now)
		}
		if p.phase == was {
			break
		}
	}
	if p.phase != stopped {
		p.announce(now)
	}
}

// peer finds or makes what is known of a node.
func (p *Slot) peer(n NodeID) *member {
	i, ok := slices.BinarySearchFunc(p.peers, n, func(m *member, n NodeID) int { return cmp.Compare(m.Node, n) })
	if !ok {
		p.peers = slices.Insert(p.peers, i, &member{Peer: Peer{Node: n}})
	}
	return p.peers[i]
}

// HandlePeer takes what another member's heartbeats say of this scope: Role is
// RoleOwner if it owns it, Epoch the one it owns or is entitled for.
func (p *Slot) HandlePeer(now time.Time, x Peer) {
	p.enter(now)
	if x.Node == p.opt.Self || x.Node == 0 || p.phase == stopped {
		return
	}
	m := p.peer(x.Node)
	ended := m.Process != 0 && m.Process != x.Process
	if ended || !m.heard || !m.Running {
		m.since = now
	}
	// Heartbeats are slower than streams: an entitlement for the epoch before may have
	// been followed by one for ours already. considerMember does not wait for ever.
	passed := p.phase == owning && x.Entitled && x.Epoch != p.epoch && (p.renewal == nil || x.Epoch != p.renewal.epoch)
	if passed {
		x.Entitled = false
	}
	// What it held of the owner before us has ended with that one's epoch, and its word on
	// that may come after its entry into our sync set.
	wasEntitled := m.Entitled && m.Process == x.Process && !passed && m.Epoch.SameTenure(p.epoch)
	if p.ranked() {
		p.rank.heardHanded(now, &m.Election, &x)
	}
	m.Peer, m.heard, m.seen = x, true, now
	if p.highest.Less(x.Epoch) {
		p.highest = x.Epoch
	}
	p.earlyRekey(m)
	if ended {
		m.backoff, m.notOld = 0, time.Time{}
		p.dropDead(now, m)
	}
	if p.phase == owning && m.join == in && wasEntitled && !x.Entitled {
		if x.Role == RoleOwner && p.epoch.Less(x.Epoch) && !m.asking {
			p.disown(now, x.Epoch, nameOf(m)+" took over while this node stood still")
		} else if x.Epoch != p.epoch || x.Role != RoleOwner {
			p.askRemoval(m)
		}
	}
	p.consider(now)
}

// HandleLoss says that a member was lost; entitled is whether that turned our
// entitlement for this scope into a claim.
func (p *Slot) HandleLoss(now time.Time, id NodeID, kind Loss, entitled bool, detected time.Duration) {
	p.enter(now)
	if p.phase == stopped {
		return
	}
	m := p.peer(id)
	role, epoch := m.Role, m.Epoch
	m.heard = kind != LossSilence
	m.Running, m.asking, m.Entitled, m.Role = false, false, false, RoleNone
	switch p.phase {
	case standing, listening:
		if entitled && p.entitled.Node == id {
			p.claim = &claimed{node: id, epoch: p.entitled, process: m.Process, kind: kind, detected: detected}
			p.since = now
		}
	case taking:
		if p.pending.handover && kind != LossDeath && entitled && p.entitled.Node == id {
			// It handed over long ago, while this node stood still, and has gone on since.
			p.phase, p.pending = standing, nil
			p.claim = &claimed{node: id, epoch: p.entitled, process: m.Process, kind: kind, detected: detected}
			p.since = now
		}
	case owning:
		if role == RoleOwner && epoch != p.epoch {
			// It owned beside us, and its state has not come: peers may be further than we are.
			p.emit(RekeyEarly{nameOf(m) + " owned beside this node and ended"})
		}
		p.memberLost(now, m, kind)
	case handing:
		if id == p.handNode {
			p.successorLost(now, m, kind)
		} else {
			p.memberLost(now, m, kind)
		}
	}
	p.consider(now)
}

// HandleTimeout runs what is due.
func (p *Slot) HandleTimeout(now time.Time) {
	p.enter(now)
	if p.phase != stopped {
		p.consider(now)
	}
}

// announce tells the guardian what we own, when that changes.
func (p *Slot) announce(now time.Time) {
	var e Epoch
	if p.phase == owning || p.phase == handing {
		e = p.epoch
	}
	if p.ranked() {
		p.announceRanked(now, e)
		return
	}
	if e == p.said {
		return
	}
	p.said = e
	a := Announce{Role: p.role(), Epoch: e, Coverage: p.coverage}
	if e != (Epoch{}) {
		a.Owned = []Tenure{{p.opt.Scope, e}}
	}
	p.emit(a)
}

func (p *Slot) role() Role {
	switch p.phase {
	case owning, handing:
		return RoleOwner
	case standing, taking:
		return RoleStandby
	}
	return RoleNone
}

// propose has a command decided, at most once in a while.
func (p *Slot) propose(now time.Time, c *clusterpb.Command) {
	key := fmt.Sprintf("%T", c.GetWhat())
	if at, ok := p.proposed[key]; ok && !p.due(now, at.Add(proposeAgain)) {
		return
	}
	p.proposed[key] = now
	p.sharp(now, now.Add(proposeAgain))
	p.emit(Propose{c})
}

func (p *Slot) alarm(name, text string, on bool) {
	known := name
	if !p.ranked() {
		known = fmt.Sprintf("%s, %v", name, p.opt.Scope)
	}
	p.raise(name, known, text, on)
}

// SyncSet lists the members that are copied to or counted.
func (p *Slot) SyncSet() (set []NodeID) {
	if p.phase == owning || p.phase == handing {
		for _, m := range p.peers {
			if m.join != out {
				set = append(set, m.Node)
			}
		}
	}
	return set
}

// Contested says that another member may have gone on with what we own, and that its
// state has not come yet.
func (p *Slot) Contested() bool {
	for id, process := range p.apart {
		if m := p.peer(id); m.Process != process || m.join == in {
			delete(p.apart, id)
		}
	}
	return len(p.apart) > 0 || p.owner() != nil
}

// Owe says that this node has given way with what another member told it, and that whoever
// owns now has not heard all of that.
func (p *Slot) Owe(now time.Time) {
	p.enter(now)
	if p.phase == standing {
		p.owe(true)
		p.consider(now)
	}
}

func (p *Slot) owe(on bool) { p.uniting, p.united = on, unitedWith{} }

// HandleUnited says that an owner has taken what this node did.
func (p *Slot) HandleUnited(now time.Time, id NodeID) {
	p.enter(now)
	if p.uniting && p.united.node == id {
		p.owe(false)
		p.consider(now)
	}
}

// Uniting says that what this node holds must reach the owner first.
func (p *Slot) Uniting() bool { return p.uniting }

// Covered says that what this node owns is held by others, and that what others own it
// is entitled to.
func (p *Slot) Covered() bool {
	switch p.phase {
	case owning:
		return slices.ContainsFunc(p.peers, func(m *member) bool { return m.join == in && !m.leaving })
	case standing:
		return p.entitled != Epoch{}
	}
	return false
}

// HandleCopying says that an owner has begun to copy to us, under an epoch.
func (p *Slot) HandleCopying(now time.Time, e Epoch) {
	p.lapsed, p.copying, p.copyAt = false, e, now
	p.sharp(now, now.Add(copyPatience))
}

// Idle says that nothing ties this node to the scope: it may forget what it holds. A
// copy that has begun ties it for a while, also if the log, as far as it is known here,
// does not name this node yet.
func (p *Slot) Idle() bool {
	return p.lapsed && (p.phase == listening || p.phase == standing) && !p.uniting && p.entitled == Epoch{} && p.asked == Epoch{} && p.claim == nil && p.held == Epoch{}
}

// Status is what the commands show.
func (p *Slot) Status(now time.Time) HAStatus {
	s := HAStatus{
		Self: p.opt.Self, Name: p.opt.Name, Role: p.role(), Epoch: p.epoch, LastChange: p.lastChange,
		LastReason: p.last.Reason, LastCovered: p.last.Covered, LastDetected: p.last.Detected, Takeovers: p.takeovers, Coverage: p.coverage,
	}
	if s.Role == RoleOwner {
		s.Owner = p.opt.Self
		s.Synchronised = slices.ContainsFunc(p.peers, func(m *member) bool { return m.join == in && !m.leaving })
		s.Alone = !s.Synchronised
	} else {
		s.Owner = p.decided.Owner
		if m := p.owner(); m != nil {
			s.Owner = m.Node
		}
		s.Synchronised = p.entitled != Epoch{}
	}
	for _, m := range p.peers {
		x := m.Peer
		x.Running = m.live()
		s.Peers = append(s.Peers, x)
	}
	s.Alarms = p.raised()
	if p.ranked() {
		p.showRanked(now, &s)
	}
	return s
}

func nameOf(m *member) string {
	if m.Name != "" {
		return m.Name
	}
	return fmt.Sprintf("node %d", m.Node)
}
