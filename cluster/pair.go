package cluster

import (
	"fmt"
	"time"

	"tandem/internal/config"
)

// phase is where the Pair stands; Role is what others see of it.
type phase uint8

const (
	listening phase = iota // no owner known: listen, then elect
	standing               // standby of a known owner
	taking                 // decided to own; waits for the note or for the guardian's claim
	owning
	handing // stopped for a planned handover; waits for the successor
	stopped
)

const (
	listenMin      = time.Second
	takeoverNote   = 20 * time.Millisecond  // see takeover.go
	patientNote    = time.Second            // a note that nothing urgent waits for
	removalAfter   = 250 * time.Millisecond // architecture, sync-set rule
	handoverWait   = 500 * time.Millisecond
	handoverGiveUp = 1500 * time.Millisecond // more, until a successor that answers nothing is given up
	copyTimeout    = 5 * time.Second         // as statesync.CopyTimeout, which this package cannot import
	rejoinMin      = time.Second             // after a removal, doubling
	rejoinMax      = 30 * time.Second
	holdDown       = 2 * time.Second // between changes of owner that nobody asked for
	failedHoldDown = 10 * time.Second
	// epochReserve is how many epochs a process may make beyond the one on its
	// disk. A start skips as many, and writes that down at once.
	epochReserve = 64
	// stallGrace is how long timers wait for pending input after this process
	// was stopped: what it did not hear then proves nothing.
	stallGrace = 100 * time.Millisecond
)

// joinState is where the member stands in our sync set.
type joinState uint8

const (
	out     joinState = iota
	joining           // Join emitted; the journal gates from the entry on
	in                // entry acknowledged
)

// member is what this node knows of the other one.
type member struct {
	Peer
	heard     bool      // its guardian's heartbeats arrive
	since     time.Time // since when this process is heard
	seen      time.Time // when Peer came
	stream    ProcessID // process towards which the stream stands; 0: none
	streamEnd time.Time // since when it does not stand

	join     joinState
	joinedAt time.Time
	copiedAt time.Time // when its copy got further, or was begun
	synced   time.Time // entry acknowledged
	asking   bool      // removal asked
	leaving  bool      // silent; the note is being written
	leaveBy  time.Time // the note is not waited for longer
	notOld   time.Time // no Join before
	backoff  time.Duration
	lagging  time.Time // since when frames are too old; zero: they are not
}

// live says that its daemon runs and is heard.
func (m *member) live() bool { return m.heard && m.Running }

// Pair is the ownership engine of exactly two nodes. It is pure and not safe for
// concurrent use: inputs take now, and Poll is drained after each.
type Pair struct {
	engine
	candidate
	opt      PairOptions
	epoch    Epoch  // owned, or of the owner known
	highest  Epoch  // highest ever seen or made by this process
	floor    uint64 // no epoch is made with a counter up to it
	disk     uint64 // highest counter known to be on disk
	peer     member
	coverage Coverage

	shutdown bool
	chosen   NodeID
	uniting  bool  // our state has not yet been sent to the owner that healing chose
	entitled Epoch // held by our guardian; zero: not entitled
	asked    Epoch // asked of the guardian, not yet answered
	// The process that may have gone on, or may go on, with what we own: the owner
	// that we succeeded, or a member that fell silent while entitled.
	tookFrom NodeID
	tookProc ProcessID
	rival    ProcessID // owner that we succeeded, until it is heard to know that; 0: none
	gaveWay  time.Time // when we last ceased to own

	ownerless time.Time // since when no owner is known
	split     time.Time // since when both own
	hold      time.Time // no change of owner that nobody asked for before
	pending   *takeover
	handTo    Epoch // epoch of the successor during a handover
	handBy    time.Time
	handAsked bool
	handWhy   string
	handFor   string    // evidence
	unsynced  time.Time // owner: since when no member is synchronised

	notes  []noteWrite
	noteOn bool // what the disk says, or will say when all writes are through

	lastChange time.Time
	last       Own
	takeovers  int
}

// NewPair makes a pair engine that does nothing before Start.
func NewPair(o PairOptions) *Pair {
	p := &Pair{
		opt: o, disk: o.Epoch.Counter,
		coverage: o.Coverage, noteOn: o.Coverage != CoverageProven, // a lost disk counts as a note until covered
		engine: engine{alarms: map[string]Alarm{}},
	}
	p.candidate = newCandidate(&p.engine, &p.opt.HA, o.Serial)
	// What this node made last may not have reached its disk; epochReserve says
	// how far behind that can be. Without a disk only the clock is above it.
	if o.Coverage == CoverageLost {
		p.floor = o.Floor
	} else {
		p.floor = o.Epoch.Counter + epochReserve
	}
	return p
}

// Start begins to listen for the peer.
func (p *Pair) Start(now time.Time) {
	p.started = true
	p.ageFrom, p.ownerless = now, now
	p.changed(now, Own{Reason: "listening for the other node"})
	p.writeNote(p.noteOn, Epoch{Counter: p.floor, Node: p.opt.Self}, nil)
	p.consider(now)
}

// lost is how long a peer must be silent to be lost.
func (p *Pair) lost() time.Duration {
	return p.opt.HA.HBInterval * time.Duration(p.opt.HA.HBLostThreshold)
}

// quiet is how long nobody must be heard before this node owns without being entitled.
func (p *Pair) quiet() time.Duration { return max(listenMin, 2*p.lost()) }

// settle is how long a new constellation must stand before a decision rests on it:
// both nodes' heartbeats have then told of it.
func (p *Pair) settle() time.Duration { return max(50*time.Millisecond, 3*p.opt.HA.HBInterval) }

// consider looks at everything known. Each step may make the next one possible;
// none undoes what an earlier one did, so a few rounds suffice.
func (p *Pair) consider(now time.Time) {
	if !p.started {
		return
	}
	for {
		p.wake = time.Time{}
		p.considerHealth(now)
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
	if p.phase != stopped { // its guardian says the last word
		p.announce(now)
	}
}

// HandlePeer takes what the other node's heartbeats say: their contents changed,
// or they came (back).
func (p *Pair) HandlePeer(now time.Time, x Peer) {
	p.enter(now)
	m := &p.peer
	if x.Node == p.opt.Self || x.Node == 0 || p.phase == stopped {
		return
	}
	if m.Node != 0 && m.Node != x.Node {
		if m.live() {
			p.alarm("third", fmt.Sprintf("node %d (%s) is heard, but a pair has two nodes: it is ignored", x.Node, x.Name), true)
			return
		}
		p.dropDead(now)
		*m = member{}
	}
	ended := m.Process != 0 && m.Process != x.Process
	if ended || !m.heard || !m.Running {
		m.since = now
	}
	wasEntitled := m.Entitled && m.Process == x.Process
	// The last words of one that owned beside us while this node stood still: its loss
	// has been told already, but not what it was.
	rival := p.phase == owning && m.Process == x.Process && m.Role != RoleOwner && x.Role == RoleOwner && !x.Running
	p.heardHanded(now, &m.Election, &x)
	m.Peer, m.heard, m.seen = x, true, now
	if rival {
		p.rivalLost(LossDeath)
	}
	if p.highest.Less(x.Epoch) {
		p.highest = x.Epoch
	}
	p.earlyRekey()
	if ended { // and with it the process that was in the sync set
		m.backoff, m.notOld = 0, time.Time{}
		p.dropDead(now)
	}
	if p.phase == owning && m.join == in && wasEntitled && !x.Entitled {
		if x.Role == RoleOwner && p.epoch.Less(x.Epoch) && !m.asking {
			p.succeeded(now)
		} else {
			// Its guardian dropped the entitlement; only the answer to our own request
			// proves which one.
			p.askRemoval()
		}
	}
	p.consider(now)
}

// HandleLoss says that the other node was lost; entitled is what our guardian
// held at that moment, detected the time since the last sign of life.
func (p *Pair) HandleLoss(now time.Time, id NodeID, kind Loss, entitled bool, detected time.Duration) {
	p.enter(now)
	m := &p.peer
	if m.Node != id || p.phase == stopped {
		return
	}
	role := m.Role
	m.heard = kind != LossSilence
	m.Running = false
	m.asking = false
	m.Entitled = false
	p.lose(now, kind, role, entitled, detected)
	p.consider(now)
}

// lose acts on a loss according to phase.
func (p *Pair) lose(now time.Time, kind Loss, role Role, entitled bool, detected time.Duration) {
	switch p.phase {
	case standing:
		if p.ownerless.IsZero() {
			p.ownerless = now
		}
		if entitled && (p.entitled != Epoch{} || p.asked != Epoch{}) {
			p.takeOver(now, kind, detected)
			return
		}
		p.unentitle()
	case taking:
		if p.pending.handover && kind != LossDeath && entitled {
			// It handed over long ago, while this node stood still, and has gone on since.
			p.takeOver(now, kind, detected)
		}
	case owning:
		if role == RoleOwner {
			p.rivalLost(kind)
		}
		p.memberLost(now, kind)
	case handing:
		p.successorLost(now, kind)
	}
}

// HandleTimeout runs what is due.
func (p *Pair) HandleTimeout(now time.Time) {
	p.enter(now)
	if p.phase != stopped {
		p.consider(now)
	}
}

// announce tells the guardian what to send, if it differs from what it sends.
func (p *Pair) announce(now time.Time) {
	a := Announce{Role: p.Role(), Epoch: p.highest, Election: p.election(now), Coverage: p.coverage, Chosen: p.chosen}
	if p.phase == owning || p.phase == handing {
		a.Epoch = p.epoch
	} else if p.floor > a.Epoch.Counter {
		// What an earlier life of this node may have made: an owner that hands over to us
		// makes our epoch, and must go above.
		a.Epoch = Epoch{Counter: p.floor, Node: p.opt.Self}
	}
	if p.tells(now, a) {
		p.emit(a.ofScope(p.opt.Scope))
	}
}

func (p *Pair) alarm(name, text string, on bool) { p.raise(name, name, text, on) }

// Reconfigure takes a new `config system ha`.
func (p *Pair) Reconfigure(now time.Time, ha config.HA) {
	p.enter(now)
	p.opt.HA = ha
	p.consider(now)
}

// Role is what others see: a standby that still owes its state to the owner is
// none, so that no copy overwrites that state.
func (p *Pair) Role() Role {
	switch p.phase {
	case owning, handing:
		return RoleOwner
	case standing, taking:
		if !p.uniting {
			return RoleStandby
		}
	}
	return RoleNone
}

// Epoch is the one owned, or that of the owner known.
func (p *Pair) Epoch() Epoch { return p.epoch }

// Uniting says that what this node holds must reach the owner first: its heartbeats
// say so by RoleNone, and no copy comes before.
func (p *Pair) Uniting() bool { return false }

// SyncSet lists the members that are copied to or counted.
func (p *Pair) SyncSet() []NodeID {
	if (p.phase == owning || p.phase == handing) && p.peer.join != out {
		return []NodeID{p.peer.Node}
	}
	return nil
}

// Status is what `get system ha status` shows.
func (p *Pair) Status(now time.Time) HAStatus {
	s := HAStatus{
		Self: p.opt.Self, Name: p.opt.Name, Role: p.Role(), Epoch: p.epoch,
		LastChange: p.lastChange, LastReason: p.last.Reason, LastCovered: p.last.Covered, LastDetected: p.last.Detected,
		Takeovers: p.takeovers, Coverage: p.coverage,
	}
	p.show(now, &s)
	if p.phase == owning && p.peer.join == in {
		_, s.Next, s.NextAt = p.succession(s.Election, p.peerElection(now))
	}
	m := &p.peer
	switch {
	case s.Role == RoleOwner:
		s.Owner = p.opt.Self
		s.Synchronised = m.join == in && !m.leaving
		s.Alone = !s.Synchronised
	case m.live() && m.Role == RoleOwner:
		s.Owner = m.Node
		s.Synchronised = p.entitled != Epoch{}
	}
	if m.Node != 0 {
		x := m.Peer
		x.Running = m.live()
		x.Election.Age += now.Sub(m.seen)
		if !m.heard {
			x.Links = nil
		}
		s.Peers = append(s.Peers, x)
	}
	s.Alarms = p.raised()
	return s
}

// name is the other node's, for people.
func (p *Pair) name() string { return nameOf(&p.peer) }
