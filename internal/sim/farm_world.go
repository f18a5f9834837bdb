package sim

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/config"
	"tandem/internal/sim/trace"
)

// farm is one run of a farm: members behind a router, a sync network between them, the
// log that they share, and clients.
type farm struct {
	scene

	conf    *config.Config
	members []*member // by number from 1; 0 is nil
	clients []*caller
	log     *fsm.LogModel
	logGen  uint64 // of the planned step of the log
	slowLog time.Duration
	views   []decidedView
	streams pipes[*member, *farmDaemon]
	clock   clock // of all: it is right
	ranges  rangeLedger
	ledger  farmLedger
	rule    farmRules

	net  *rand.Rand
	seen []seenESP
}

// decidedView is the state after an entry, which members share: nobody changes it.
type decidedView struct {
	index uint64
	state *fsm.Machine
}

func newFarm(s *Schedule, log *trace.Log) *farm {
	w := &farm{scene: newScene(s, log, "farm chance"), net: stream(s.Seed, "farm network"),
		conf: load("farm.conf", s.Setup.farmConfig()), ranges: rangeLedger{}}
	w.ledger.init()
	w.rule.init(w)
	f := s.Farm
	var voters []fsm.NodeID
	for i := range f.Voters {
		voters = append(voters, fsm.NodeID(i+1))
	}
	random := stream(s.Seed, "farm log")
	w.log = fsm.NewLogModel(epoch, fsm.LogOptions{Voters: voters, Rand: random.IntN, Reach: w.reachNodes, Loss: f.LogLoss, Repeat: f.LogLoss,
		MinDelay: time.Millisecond, MaxDelay: f.LogDelay, Election: 250 * time.Millisecond})
	w.members = append(w.members, nil)
	for i := 1; i <= f.Members; i++ {
		w.members = append(w.members, newMember(w, cluster.NodeID(i), i > f.Members-f.Late))
		w.log.SetUp(fsm.NodeID(i), false)
	}
	w.initStreams()
	for i := range s.Setup.Clients {
		w.clients = append(w.clients, newCaller(w, i))
	}
	return w
}

// at is virtual time as clocks show it: a farm's clocks are right.
func (w *farm) at() time.Time { return w.clock.at(w.now) }

func (w *farm) run() *Result {
	return w.play(func() {
		for _, m := range w.members[1:] {
			if !m.late {
				w.after(between(w.chance, 0, 300*time.Millisecond), m.boot)
			}
		}
		for _, c := range w.clients {
			w.after(between(w.chance, 3*time.Second, 4*time.Second), c.boot)
		}
		w.planActions(w.act)
		w.logTurn()
		w.after(time.Second, w.rule.poll)
		w.queue.push(w.s.Length, w.heal)
	})
}

// reach: the sync network carries something from a to b, who are both awake.
func (w *farm) reach(a, b *member) bool {
	return a.powered && b.powered && !a.frozen && !b.frozen && a.side == b.side
}

func (w *farm) reachNodes(a, b fsm.NodeID) bool { return w.reach(w.members[a], w.members[b]) }

// whole: nothing keeps members apart, and nobody stands still.
func (w *farm) whole() bool {
	for _, m := range w.members[1:] {
		if m.side != 0 || m.frozen || m.d != nil && m.d.stopped {
			return false
		}
	}
	return true
}

// node finds a member by name; "owner" is that of a client's tunnel.
func (w *farm) node(name string) *member {
	if name == "owner" {
		for i := range w.clients {
			c := w.clients[(i+w.steps)%len(w.clients)]
			if o := w.ownerOf(c.scope); o != nil {
				return o
			}
		}
		return w.members[1]
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(name, "vm")); err == nil && n >= 1 && n < len(w.members) {
		return w.members[n]
	}
	return nil
}

func (w *farm) client(name string) *caller {
	if n, err := strconv.Atoi(strings.TrimPrefix(name, "client")); err == nil && n >= 1 && n <= len(w.clients) {
		return w.clients[n-1]
	}
	return nil
}

// ownerOf is who is active for a scope, and lives; nil: nobody.
func (w *farm) ownerOf(s cluster.ScopeID) *member {
	if t := w.rule.scopes[s]; t != nil && len(t.active) > 0 {
		return t.active[len(t.active)-1].m
	}
	return nil
}

// act does what the schedule wants now.
func (w *farm) act(a Action) {
	m := w.node(a.Node)
	if !w.begins(a, m != nil) {
		return
	}
	if a.Verb.Fault() {
		w.rule.disturbed(a.Verb, a.For)
	}
	switch a.Verb {
	case Kill:
		if d := m.d; d != nil {
			m.die(d, "SIGKILL")
		}
	case CrashAt:
		w.armed = append(w.armed, a)
	case KillGuardian:
		m.endGuardian()
		boots := m.boots
		w.after(a.For, func() {
			if m.boots == boots && m.powered && m.guard == nil {
				m.startGuardian()
				m.startDaemon()
			}
		})
	case LoseHost, LoseDisk:
		w.loseHost(m, a.For, a.Verb == LoseDisk)
	case LoseMany:
		for _, x := range w.members[1:] {
			if a.Links&(1<<(x.id-1)) != 0 {
				w.loseHost(x, a.For+between(w.chance, 0, time.Second), false)
			}
		}
	case StopDaemon:
		if d := m.d; d != nil {
			d.stopped = true
			w.after(a.For, func() { d.goOn() })
		}
	case FreezeHost:
		m.freeze(a.For)
	case Partition:
		w.partition(a)
	case Depose:
		w.log.Depose(w.at())
		w.logTurn()
	case SlowLog:
		w.slowLog = max(w.slowLog, w.now+a.For)
	case StallStream:
		for _, x := range w.members[1:] {
			w.streams.pipe(m, x).stall(w.now + min(a.For, 2*time.Second))
		}
	case BreakStream:
		for _, x := range w.members[1:] {
			w.streams.reset(w.streams.pipe(m, x))
		}
	default:
		w.everyday(m, a)
	}
}

func (w *farm) loseHost(m *member, d time.Duration, disk bool) {
	if !m.powered {
		return
	}
	m.powerOff()
	if disk {
		m.disk = farmDisk{lost: true}
	}
	boots := m.boots
	w.after(d, func() {
		if m.boots == boots {
			m.boot()
		}
	})
}

// partition cuts members off from the others. Who was cut off before joins this side.
func (w *farm) partition(a Action) {
	for _, m := range w.members[1:] {
		m.side = 0
		if a.Links&(1<<(m.id-1)) != 0 {
			m.side = 1
		}
	}
	w.rule.cuts++
	n := w.rule.cuts
	w.after(a.For, func() {
		if w.rule.cuts == n {
			w.unite()
		}
	})
}

// unite makes the sync network whole. Connections that lost something begin anew.
func (w *farm) unite() {
	apart := false
	for _, m := range w.members[1:] {
		apart = apart || m.side != 0
		m.side = 0
	}
	if !apart {
		return
	}
	w.rule.united = w.now
	w.fault("", "the sync network is whole again")
	w.streams.each(func(p *farmPipe) {
		if p.up {
			w.after(between(w.chance, 0, 200*time.Millisecond), func() { w.streams.reset(p) })
		}
	})
}

// everyday is what administrators, clients, routers and attackers do.
func (w *farm) everyday(m *member, a Action) {
	c := w.clients[a.Flow%len(w.clients)]
	if x := w.client(a.Node); x != nil {
		c = x
	}
	switch a.Verb {
	case Burst:
		c.burst(a.Count, a.Rate, a.Direction)
	case Replay:
		w.replay(a.Count)
	case Rehash:
		w.rehash(a.Count)
	case Drain:
		w.drain(m, a.For)
	case Join:
		if m != nil && !m.powered {
			m.boot()
		}
	case RekeyChild, RekeyIKE, Clear:
		if a.Verb == Clear {
			c.excuse(60 * time.Second)
		}
		if m == nil {
			if c.d != nil {
				c.d.run(func(now time.Time) {
					if a.Verb == Clear {
						c.d.n.Clear(now, "")
					} else {
						c.d.n.Rekey(now, "gw", a.Verb == RekeyIKE)
					}
				})
			}
			return
		}
		o := w.ownerOf(c.scope)
		name := c.instance()
		if o == nil || o.d == nil || name == "" {
			return
		}
		o.d.run(func(now time.Time) {
			if a.Verb == Clear {
				o.d.f.Clear(now, name)
			} else {
				o.d.f.Rekey(now, name, a.Verb == RekeyIKE)
			}
		})
	}
}

// drain has a member drained for a while, and the drain ended.
func (w *farm) drain(m *member, d time.Duration) {
	if m == nil || m.d == nil {
		return
	}
	c, err := m.d.f.Drain(true)
	if err != nil {
		return
	}
	m.drainedAt = w.now
	m.d.propose(c)
	w.after(d, func() { w.undrain(m) })
}

func (w *farm) undrain(m *member) {
	m.drainedAt = 0
	if d := m.d; d != nil {
		if c, err := d.f.Drain(false); err == nil {
			d.propose(c)
		}
	}
}

// sortedScopes are the keys of a map by number.
func sortedScopes[T any](m map[cluster.ScopeID]T) []cluster.ScopeID {
	out := make([]cluster.ScopeID, 0, len(m))
	for s := range m {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
