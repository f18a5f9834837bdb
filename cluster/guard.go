package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem/internal/outbox"
)

// Guard is the logic of the guardian: heartbeats, entitlement, fencing. It is pure
// and not safe for concurrent use. Silence and hangs are counted in its own ticks:
// whoever was stopped has missed nothing, provided that what arrived meanwhile is
// handed in before the tick (HandleHeartbeat, then HandleProgress, then Tick).
// Entitlement is held for each scope by itself (guard_scopes.go).
type Guard struct {
	opt     GuardOptions
	tick    time.Duration
	perBeat int // ticks between heartbeats
	beat    int // ticks until the next
	step    int // ticks that the next Tick stands for
	seq     uint64
	nonce   uint64
	last    time.Time // of Tick
	peers   []*guardPeer
	effects outbox.Box[GuardEffect]
	due     int // copies of a heartbeat that is to be sent now
	dueAt   time.Time
	news    bool // it says more than that we live
	asked   int  // rotates what is asked and answered when that is much
	granted int

	// The daemon.
	process      ProcessID
	attached     bool // it lives
	announced    bool
	unresponsive bool
	said         Announce
	saidAt       time.Time
	port         uint16
	progress     uint64
	watched      bool // it has made progress once
	idle         int  // ticks without
	killing      int  // ticks that it has left to die; 0: not killed

	held    []holding // by scope
	removed []Tenure  // by scope: no entitlement up to this epoch is held any more
}

// GuardOptions configure a Guard.
type GuardOptions struct {
	Self        NodeID
	Name        string
	Incarnation uint64 // higher than that of every earlier start; not 0
	Interval    time.Duration
	Threshold   int
	// Slow: without real-time scheduling the watchdog waits four times as long, and
	// silence must last half as long again.
	Slow bool
}

const (
	maxTick      = 10 * time.Millisecond
	ticksPerBeat = 2 // at least; more only make an idle node busier
	calmStep     = 2 // ticks at once while nobody is late
	watchdogTime = 500 * time.Millisecond
	watchdogMin  = 10 // ticks
	killTime     = 100 * time.Millisecond
	stallBearing = 10 // watchdogs, until a daemon whose successors are stalled, too, is ended
	lastWords    = 3  // datagrams on each device for what must not be lost
	replayWindow = 16
)

// guardPeer is another node's guardian.
type guardPeer struct {
	hb       Heartbeat // newest
	heard    bool
	lastTime time.Time
	links    []guardLink
	told     *Peer     // what our daemon knows
	lost     bool      // loss of hb.Process told
	requests []Removal // that we ask of it, by scope
	answered []Removal // that we granted it and it still asks, by scope
}

type guardLink struct {
	Link
	seq    uint64
	misses int       // ticks since the last heartbeat
	at     time.Time // of the last heartbeat
}

// GuardEffect is what the guardian's shell has to do.
type GuardEffect interface{ guardEffect() }

// SendHeartbeat goes out on every device and to every peer, Copies times. News:
// something in it may have changed, so that it is worth waking up for.
type SendHeartbeat struct {
	Heartbeat Heartbeat
	Copies    int
	News      bool
}

// TellPeer, TellLoss, TellRemoved, TellEntitled and TellClaimed are for the daemon.
type TellPeer struct{ Peer Peer }
type TellLoss struct {
	Node     NodeID
	Kind     Loss
	Entitled bool // for a pair's one scope
	// Claimed are the scopes of a farm's member whose entitlement this loss turned
	// into a claim, with the lost owner's epochs.
	Claimed  []Tenure
	Detected time.Duration
}
type TellRemoved struct {
	Scope ScopeID
	Node  NodeID // our own: our entitlement was given up, or not granted
}
type TellEntitled struct {
	Scope ScopeID
	Epoch Epoch
}
type TellClaimed struct {
	Scope ScopeID
	Epoch Epoch
	OK    bool
}

// KillDaemon: remove the shared addresses and SIGKILL; DaemonEnded follows if it dies.
type KillDaemon struct{ Reason string }

// GuardLog is one line, in words for people.
type GuardLog struct{ Text string }

func (SendHeartbeat) guardEffect() {}
func (TellPeer) guardEffect()      {}
func (TellLoss) guardEffect()      {}
func (TellRemoved) guardEffect()   {}
func (TellEntitled) guardEffect()  {}
func (TellClaimed) guardEffect()   {}
func (KillDaemon) guardEffect()    {}
func (GuardLog) guardEffect()      {}

// NewGuard makes a Guard without a daemon.
func NewGuard(o GuardOptions) *Guard {
	o.Name = strings.ToValidUTF8(o.Name[:min(len(o.Name), maxString)], "") // what heartbeats can carry
	g := &Guard{opt: o, nonce: o.Incarnation}
	g.SetInterval(o.Interval, o.Threshold)
	return g
}

// SetInterval takes new figures; silence is counted anew.
func (g *Guard) SetInterval(interval time.Duration, threshold int) {
	g.opt.Interval, g.opt.Threshold = interval, threshold
	g.perBeat = max(ticksPerBeat, int(interval/maxTick))
	g.tick = interval / time.Duration(g.perBeat)
	g.step = 1
	g.forgive(g.last)
}

// TickInterval is how long after the last Tick the next must be called. It is
// longer while everybody is heard in time: most of what heartbeats cost is waking up.
func (g *Guard) TickInterval() time.Duration { return time.Duration(g.step) * g.tick }

// Calm says that everybody is heard in time.
func (g *Guard) Calm() bool { return g.step > 1 }

// Poll returns the next effect; drain it after each input, or after several that
// came together: one heartbeat then tells what became of all of them.
func (g *Guard) Poll() (GuardEffect, bool) {
	if g.effects.Empty() && g.due > 0 {
		return g.heartbeat(), true
	}
	return g.effects.Poll()
}

func (g *Guard) emit(e GuardEffect) { g.effects.Emit(e) }

func (g *Guard) logf(format string, args ...any) { g.emit(GuardLog{fmt.Sprintf(format, args...)}) }

// silence is after how many own ticks without a heartbeat a link is dead.
func (g *Guard) silence() int {
	n := g.opt.Threshold * g.perBeat
	if g.opt.Slow {
		n += n / 2
	}
	return n
}

// watchdog is after how many own ticks without progress the daemon hangs.
func (g *Guard) watchdog() int {
	n := max(watchdogMin, int(watchdogTime/g.tick))
	if g.opt.Slow {
		n *= 4
	}
	return n
}

// stalled says whether the daemon has made no progress for half of that.
func (g *Guard) stalled() bool { return g.attached && g.watched && g.idle >= g.watchdog()/2 }

// forgive begins every count of silence anew.
func (g *Guard) forgive(now time.Time) {
	for _, p := range g.peers {
		for i := range p.links {
			if p.links[i].misses <= g.silence() {
				p.links[i].misses, p.links[i].at = 0, now
			}
		}
	}
}

// Tick is one beat of our own clock.
func (g *Guard) Tick(now time.Time) {
	slept := now.Sub(g.last)
	if !g.last.IsZero() && slept > time.Duration(g.silence())*g.tick {
		// We were stopped for so long that others may have been, too.
		g.logf("this process was stopped for %v", slept.Round(time.Millisecond))
		g.forgive(now)
	}
	g.last = now
	late := false
	for _, p := range g.peers {
		late = g.countSilence(now, p) || late
	}
	g.watch(now)
	if g.beat -= g.step; g.beat <= 0 {
		g.send(now, 1, false)
	}
	g.step = 1
	if !late && g.killing <= 0 {
		g.step = min(calmStep, g.beat)
	}
}

// countSilence returns whether a link that is not dead yet has missed a heartbeat.
func (g *Guard) countSilence(now time.Time, p *guardPeer) (late bool) {
	if !p.heard {
		return false
	}
	alive := false
	for i := range p.links {
		l := &p.links[i]
		if l.misses <= g.silence() {
			l.misses += min(g.step, 1+int(now.Sub(l.at)/g.tick))
		}
		if l.misses <= g.silence() {
			alive, late = true, late || l.misses > g.perBeat
		}
	}
	if alive {
		g.tell(p)
		return late
	}
	p.heard, p.told = false, nil
	p.requests, p.answered = nil, nil
	g.lose(now, p, LossSilence)
	return false
}

// lose tells the daemon of the loss of a peer's process, with what our
// entitlement is worth at this moment.
func (g *Guard) lose(now time.Time, p *guardPeer, kind Loss) {
	if p.lost && kind != LossSilence {
		return
	}
	p.lost = true
	p.requests = nil
	entitled, claimed := g.claimAll(p.hb.Node)
	if g.attached {
		g.emit(TellLoss{Node: p.hb.Node, Kind: kind, Entitled: entitled, Claimed: claimed, Detected: now.Sub(p.lastTime)})
	}
}

// send has a heartbeat made as soon as all that is known now has been taken in.
func (g *Guard) send(now time.Time, copies int, news bool) {
	g.beat = g.perBeat
	g.due, g.dueAt, g.news = max(g.due, copies), now, g.news || news
}

// heartbeat makes one of what is known.
func (g *Guard) heartbeat() SendHeartbeat {
	g.seq++
	h := Heartbeat{
		Node: g.opt.Self, Name: g.opt.Name, Incarnation: g.opt.Incarnation, Seq: g.seq,
		Process: g.process, Running: g.attached && g.announced && !g.unresponsive, Unresponsive: g.unresponsive, Stalled: g.stalled(),
		Announce: g.said, StreamPort: g.port,
	}
	if g.announced {
		h.Announce.Election.Age += g.dueAt.Sub(g.saidAt)
		h.Announce.VClusters = aged(g.said.VClusters, g.dueAt.Sub(g.saidAt))
	}
	h.Entitled, h.EntitledTo = g.holdings()
	var requests, answers []Removal
	for _, p := range g.peers {
		if !p.heard {
			continue
		}
		h.Heard = append(h.Heard, Heard{p.hb.Node, p.hb.Incarnation})
		requests = append(requests, p.requests...)
		for _, r := range p.answered {
			answers = append(answers, Removal{Scope: r.Scope, Node: p.hb.Node, Nonce: r.Nonce})
		}
	}
	h.Requests, h.Answers = someOf(requests, &g.asked), someOf(answers, &g.granted)
	e := SendHeartbeat{h, g.due, g.news}
	g.due, g.news = 0, false
	return e
}

// ErrSeenBefore is the fate of copies: a guardian's last words are sent three times.
// Whatever else HandleHeartbeat refuses comes from somebody who should not be there.
var ErrSeenBefore = errors.New("seen before")

// HandleHeartbeat takes an authenticated heartbeat that came in on a device. The
// error says why it was not taken: replayed, of our own number, of an old guardian, of
// a second node with a number that is heard from elsewhere.
func (g *Guard) HandleHeartbeat(now time.Time, link Link, h *Heartbeat) error {
	if h.Node == g.opt.Self {
		if h.Incarnation == g.opt.Incarnation {
			return nil // our own, looped back
		}
		return fmt.Errorf("another node has our number %d: %s", h.Node, h.Name)
	}
	p := g.peer(h.Node)
	switch {
	case h.Incarnation < p.hb.Incarnation:
		return fmt.Errorf("heartbeat of an earlier start of %s, or of another node with its number %d", h.Name, h.Node)
	case h.Incarnation > p.hb.Incarnation && g.elsewhere(p, link):
		return fmt.Errorf("another node has number %d: %s, which is heard from elsewhere", h.Node, h.Name)
	case h.Incarnation > p.hb.Incarnation:
		g.restarted(now, p, h)
	case h.Seq+replayWindow <= p.hb.Seq:
		return fmt.Errorf("heartbeat of %s is too old", h.Name)
	}
	l := p.link(link)
	if h.Seq <= l.seq && p.hb.Seq != 0 {
		return fmt.Errorf("heartbeat of %s %w", h.Name, ErrSeenBefore)
	}
	l.seq, l.misses, l.at, l.Addr = h.Seq, 0, now, link.Addr
	if h.Seq > p.hb.Seq {
		g.apply(now, p, h)
	}
	return nil
}

func (g *Guard) peer(n NodeID) *guardPeer {
	i, ok := slices.BinarySearchFunc(g.peers, n, func(p *guardPeer, n NodeID) int { return int(p.hb.Node) - int(n) })
	if !ok {
		g.peers = slices.Insert(g.peers, i, &guardPeer{hb: Heartbeat{Node: n}, lost: true})
	}
	return g.peers[i]
}

// elsewhere says whether the peer is heard, but not from this address. Who begins anew
// does so where it was, or after a silence: another's start is not its own. Only who
// names our own start is surely heard now; what was recorded keeps nobody out.
func (g *Guard) elsewhere(p *guardPeer, l Link) bool {
	return p.heard && slices.Contains(p.hb.Heard, Heard{g.opt.Self, g.opt.Incarnation}) &&
		!slices.ContainsFunc(p.links, func(x guardLink) bool { return x.Addr == l.Addr })
}

func (p *guardPeer) link(l Link) *guardLink {
	i, ok := slices.BinarySearchFunc(p.links, l, func(x guardLink, l Link) int {
		if x.Device == "" && l.Device == "" {
			return strings.Compare(x.Addr, l.Addr) // a peer's own addresses are paths of their own
		}
		return strings.Compare(x.Device, l.Device)
	})
	if !ok {
		p.links = slices.Insert(p.links, i, guardLink{Link: l})
	}
	return &p.links[i]
}

// restarted: a guardian that begins anew has ended its daemon with it.
func (g *Guard) restarted(now time.Time, p *guardPeer, h *Heartbeat) {
	if p.hb.Running {
		g.lose(now, p, LossDeath)
	}
	p.hb = Heartbeat{Node: h.Node, Name: h.Name, Incarnation: h.Incarnation}
	p.requests, p.answered, p.links = nil, nil, nil
}

// apply takes the contents of a heartbeat that is newer than all before.
func (g *Guard) apply(now time.Time, p *guardPeer, h *Heartbeat) {
	old := p.hb
	p.hb = *h
	back := !p.heard
	p.heard = true
	// What an owner says of its epoch comes before what becomes of it: an epoch
	// beyond ours means that it went on without us.
	g.overtake(h)
	if old.Running && !(h.Running && h.Process == old.Process) {
		kind := LossDeath
		if h.Unresponsive && h.Process == old.Process {
			kind = LossUnresponsive
		}
		g.lose(now, p, kind)
	}
	p.lastTime = now
	if h.Running && (back || !old.Running || h.Process != old.Process) {
		p.lost = false
	}
	g.grant(now, p)
	g.tell(p)
	g.takeAnswers(p)
}

func (g *Guard) toDaemon(e GuardEffect) {
	if g.attached {
		g.emit(e)
	}
}

// tell hands the peer up if what the daemon knows of it has changed.
func (g *Guard) tell(p *guardPeer) {
	if !g.attached || !p.heard {
		return
	}
	v := g.view(p)
	if p.told != nil {
		old := *p.told
		old.Election.Age = v.Election.Age
		if slices.Equal(old.Links, v.Links) {
			old.Links, v.Links = nil, nil
			if samePeer(&old, &v) {
				return
			}
			v = g.view(p)
		}
	}
	p.told = &v
	g.emit(TellPeer{v})
}

// samePeer compares all but the links.
func samePeer(a, b *Peer) bool {
	return a.Node == b.Node && a.Name == b.Name && a.Process == b.Process && a.Running == b.Running && a.Role == b.Role &&
		a.Epoch == b.Epoch && a.Entitled == b.Entitled && a.Coverage == b.Coverage && a.Election == b.Election &&
		a.StreamPort == b.StreamPort && a.Chosen == b.Chosen && a.Deaf == b.Deaf &&
		slices.Equal(a.Owned, b.Owned) && slices.Equal(a.EntitledTo, b.EntitledTo) && sameVClusters(a.VClusters, b.VClusters)
}

func (g *Guard) view(p *guardPeer) Peer {
	h := &p.hb
	v := Peer{
		Node: h.Node, Name: h.Name, Process: h.Process, Running: h.Running, Role: h.Announce.Role, Epoch: h.Announce.Epoch,
		Entitled: h.Entitled != Epoch{}, Coverage: h.Announce.Coverage, Election: h.Announce.Election,
		StreamPort: h.StreamPort, Chosen: h.Announce.Chosen,
		Deaf: !slices.Contains(h.Heard, Heard{g.opt.Self, g.opt.Incarnation}), Owned: h.Announce.Owned, EntitledTo: h.EntitledTo,
		VClusters: h.Announce.VClusters,
	}
	for i := range p.links {
		if p.links[i].misses <= g.silence() {
			v.Links = append(v.Links, p.links[i].Link)
		}
	}
	return v
}
