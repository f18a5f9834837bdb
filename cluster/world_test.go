package cluster

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// world is two nodes in fake time: Pair and Guard are the real ones, heartbeats
// are encoded, and a model of the journal and the replica moves numbered writes.
// It checks what the pair promises: see own and commit.
type world struct {
	t      *testing.T
	now    time.Time
	rng    *rand.Rand
	queue  events
	order  int
	node   [3]*wnode // 1 and 2
	scope  ScopeID   // 0, or that of a virtual cluster
	cut    [2][3]bool
	loss   float64
	writes int
	owned  map[Epoch]ProcessID
	runs   []*ownership
	log    []string
}

// ownership is one run of a node as owner.
type ownership struct {
	node      *wnode
	process   ProcessID
	committed int
	succeeded bool // somebody took over from it as covered
	limit     int  // what that one had
}

type event struct {
	at    time.Time
	order int
	do    func()
}
type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].order < q[j].order
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	o := *q
	x := o[len(o)-1]
	*q = o[:len(o)-1]
	return x
}

// wnode is a host: guardian, daemon and disk.
type wnode struct {
	w           *world
	id          NodeID
	ha          config.HA
	guard       *Guard // nil: host down
	pair        *Pair  // nil: daemon down
	incarnation uint64
	process     ProcessID
	frozen      bool // host stands still
	stopped     bool // SIGSTOP of the daemon
	stubborn    bool // does not die of SIGKILL
	restart     time.Duration
	hostInbox   []func()
	inbox       []func()
	progress    uint64
	monitors    int

	diskEpoch Epoch
	diskNote  bool
	diskLost  bool
	diskDelay time.Duration
	diskErr   error

	// Journal and replica.
	state    int
	owner    bool
	handing  bool
	epoch    Epoch
	run      *ownership
	gates    bool
	member   ProcessID
	unacked  time.Time
	sent     int
	acked    int
	fence    Epoch
	entry    bool // received, not yet confirmed
	lastAck  int
	out      []frame
	busy     bool
	up       bool // our stream towards the other one
	slow     bool // our stream stands still
	upTo     ProcessID
	effects  []Effect // all that the pair emitted
	rekeys   int
	unites   int
	disowned int
}

type frame struct {
	to    ProcessID
	epoch Epoch
	kind  string
	n     int
}

var testKey = ipsec.NewKey([]byte("heartbeat key of the tests"))

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, now: time.Unix(1e9, 0), rng: rand.New(rand.NewPCG(seed, 1)), owned: map[Epoch]ProcessID{}}
	for i := NodeID(1); i <= 2; i++ {
		w.node[i] = &wnode{
			w: w, id: i, diskDelay: 2 * time.Millisecond, restart: 200 * time.Millisecond, monitors: 2,
			ha: config.HA{
				HBInterval: 10 * time.Millisecond, HBLostThreshold: 3, Priority: 128, UptimeDiffMargin: 300 * time.Second,
				Monitor: []string{"wan", "lan"},
			},
		}
	}
	return w
}

// pairUp starts both and waits until node 1 or 2 owns and the other is entitled.
func (w *world) pairUp() (owner, standby *wnode) {
	w.t.Helper()
	w.node[1].boot()
	w.node[2].boot()
	w.until(5*time.Second, "synchronised", w.synchronised)
	w.pass(50 * time.Millisecond) // what was written is on disk
	return w.roles()
}

func (w *world) roles() (owner, standby *wnode) {
	w.t.Helper()
	for i := 1; i <= 2; i++ {
		if w.node[i].owner {
			return w.node[i], w.node[3-i]
		}
	}
	w.t.Fatalf("nobody owns")
	return nil, nil
}

func (w *world) synchronised() bool {
	for i := 1; i <= 2; i++ {
		o, s := w.node[i], w.node[3-i]
		if o.pair == nil || s.pair == nil || !o.owner || s.owner {
			continue
		}
		if st := o.pair.Status(w.now); !st.Synchronised || st.Alone {
			continue
		}
		if st := s.pair.Status(w.now); st.Role == RoleStandby && st.Synchronised && st.Owner == o.id && s.state >= o.run.committed {
			return true
		}
	}
	return false
}

func (w *world) after(d time.Duration, f func()) {
	w.order++
	heap.Push(&w.queue, event{w.now.Add(d), w.order, f})
}

func (w *world) step(end time.Time) bool {
	next, timer := end, (*wnode)(nil)
	for _, n := range w.node[1:] {
		if n.pair == nil || n.frozen || n.stopped {
			continue
		}
		if t, ok := n.pair.NextTimeout(); ok && t.Before(next) {
			next, timer = t, n
		}
	}
	if len(w.queue) > 0 && !w.queue[0].at.After(next) {
		e := heap.Pop(&w.queue).(event)
		if e.at.After(w.now) {
			w.now = e.at
		}
		e.do()
		return true
	}
	if next.After(w.now) {
		w.now = next
	}
	if timer == nil {
		return false
	}
	timer.daemon(timer.process, func() { timer.pair.HandleTimeout(w.now) })
	return true
}

func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.step(end); {
	}
}

func (w *world) until(d time.Duration, what string, cond func() bool) {
	w.t.Helper()
	for end := w.now.Add(d); !cond(); {
		if !w.step(end) {
			w.fail("after %v: not %s", d, what)
		}
	}
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, l := range w.log[max(0, len(w.log)-120):] {
		w.t.Log(l)
	}
	for _, n := range w.node[1:] {
		if n.pair != nil {
			w.t.Logf("%d: %+v", n.id, n.pair.Status(w.now))
		}
	}
	w.t.Fatalf(format, args...)
}

func (w *world) logf(format string, args ...any) {
	w.log = append(w.log, w.now.Format("15:04:05.000000 ")+fmt.Sprintf(format, args...))
}

// boot starts the host: guardian and daemon.
func (n *wnode) boot() {
	n.incarnation++
	n.frozen, n.hostInbox = false, nil
	n.guard = NewGuard(GuardOptions{
		Self: n.id, Name: fmt.Sprintf("gw%d", n.id), Incarnation: n.incarnation,
		Interval: n.ha.HBInterval, Threshold: n.ha.HBLostThreshold,
	})
	n.w.logf("%d: host up", n.id)
	n.tick(n.incarnation)
	n.startDaemon()
}

func (n *wnode) tick(inc uint64) {
	n.w.after(n.guard.TickInterval(), func() {
		if n.guard == nil || n.incarnation != inc {
			return
		}
		n.host(func() {
			if n.pair != nil && !n.stopped {
				n.progress++
			}
			n.guard.HandleProgress(n.progress)
			n.guard.Tick(n.w.now)
			n.drainGuard()
			n.tick(inc)
		})
	})
}

// host runs f on the host, or once it thaws.
func (n *wnode) host(f func()) {
	if n.guard == nil {
		return
	}
	if n.frozen {
		n.hostInbox = append(n.hostInbox, f)
		return
	}
	f()
}

// daemon runs f in a process of the daemon, or once it goes on.
func (n *wnode) daemon(p ProcessID, f func()) {
	if n.pair == nil || n.process != p {
		return
	}
	if n.stopped || n.frozen {
		n.inbox = append(n.inbox, f)
		return
	}
	f()
	n.drainPair()
}

func (n *wnode) thaw() {
	n.frozen = false
	in := n.hostInbox
	n.hostInbox = nil
	for _, f := range in {
		n.host(f)
	}
	n.cont()
}

func (n *wnode) cont() {
	n.stopped = false
	in := n.inbox
	n.inbox = nil
	p := n.process
	for _, f := range in {
		n.daemon(p, f)
	}
}

func (n *wnode) startDaemon() {
	if n.guard == nil || n.pair != nil {
		return
	}
	n.process = ProcessID(n.w.rng.Uint64() | 1)
	n.stopped, n.inbox = false, nil
	c := CoverageProven
	if n.diskLost || n.diskEpoch == (Epoch{}) {
		c = CoverageLost
		n.diskEpoch, n.diskNote = Epoch{}, false
	} else if n.diskNote {
		c = CoverageNote
	}
	n.state, n.owner, n.handing, n.gates, n.member, n.run = 0, false, false, false, 0, nil
	n.out, n.busy, n.entry, n.fence, n.up, n.upTo = nil, false, false, Epoch{}, false, 0
	n.pair = NewPair(PairOptions{
		Self: n.id, Name: fmt.Sprintf("gw%d", n.id), Serial: fmt.Sprintf("TDM%d", n.id), HA: n.ha, Scope: n.w.scope,
		Coverage: c, Epoch: n.diskEpoch, Floor: uint64(n.w.now.Unix()),
	})
	n.w.logf("%d: daemon %x started, coverage %d, epoch %v", n.id, n.process&0xffff, c, n.diskEpoch)
	n.guard.DaemonStarted(n.w.now, n.process)
	n.drainGuard()
	p := n.process
	n.daemon(p, func() { n.pair.HandleMonitors(n.w.now, n.monitors); n.pair.Start(n.w.now) })
	n.connect(p)
	n.work(p)
}

// connect brings our stream up when the other daemon can be reached, and again
// whenever its process changes.
func (n *wnode) connect(p ProcessID) {
	n.w.after(10*time.Millisecond, func() {
		if n.pair == nil || n.process != p {
			return
		}
		o := n.other()
		if n.up && (o.pair == nil || o.process != n.upTo) && n.reach() {
			n.up = false
			n.w.logf("%d: stream down", n.id)
			was := n.upTo
			n.daemon(p, func() { n.pair.HandleStream(n.w.now, o.id, was, false) })
		}
		if !n.up && o.pair != nil && n.reach() && !o.frozen && !o.stopped {
			n.up, n.upTo, n.out, n.busy = true, o.process, nil, false
			q := o.process
			n.daemon(p, func() { n.pair.HandleStream(n.w.now, o.id, q, true) })
		}
		n.connect(p)
	})
}

// reach says whether some link works in both directions.
func (n *wnode) reach() bool {
	for l := range n.w.cut {
		if !n.w.cut[l][1] && !n.w.cut[l][2] {
			return true
		}
	}
	return false
}

func (n *wnode) other() *wnode { return n.w.node[3-n.id] }

func (n *wnode) drainGuard() {
	for {
		e, ok := n.guard.Poll()
		if !ok {
			return
		}
		p := n.process
		tell := func(f func()) { n.w.after(30*time.Microsecond, func() { n.daemon(p, f) }) }
		switch e := e.(type) {
		case SendHeartbeat:
			n.sendHeartbeat(e)
		case TellPeer:
			if n.w.scope != 0 {
				e.Peer, _ = e.Peer.Of(n.w.scope)
			}
			tell(func() { n.pair.HandlePeer(n.w.now, e.Peer) })
		case TellLoss:
			e.Entitled = e.Entitled || epochIn(e.Claimed, n.w.scope) != Epoch{}
			n.w.logf("%d: guardian: loss %d entitled=%v", n.id, e.Kind, e.Entitled)
			tell(func() { n.pair.HandleLoss(n.w.now, e.Node, e.Kind, e.Entitled, e.Detected) })
		case TellRemoved:
			n.w.logf("%d: guardian: removed %d", n.id, e.Node)
			tell(func() { n.pair.HandleRemoved(n.w.now, e.Node) })
		case TellEntitled:
			tell(func() {
				if n.pair.HandleEntitled(n.w.now, e.Epoch) {
					n.confirm(e.Epoch)
				}
			})
		case TellClaimed:
			tell(func() { n.pair.HandleClaimed(n.w.now, e.Epoch, e.OK) })
		case KillDaemon:
			n.w.logf("%d: guardian kills: %s", n.id, e.Reason)
			if !n.stubborn {
				n.w.after(time.Millisecond, func() { n.kill() })
			}
		case GuardLog:
			n.w.logf("%d: guardian: %s", n.id, e.Text)
		}
	}
}

// confirm acknowledges the entry of the copy.
func (n *wnode) confirm(e Epoch) {
	if !n.entry || n.fence != e {
		return
	}
	n.entry = false
	o, me, to := n.other(), n.process, n.other().process
	n.w.after(150*time.Microsecond, func() {
		o.daemon(to, func() {
			if o.member == me && o.gates && o.epoch == e {
				o.pair.HandleEntered(n.w.now, n.id)
			}
		})
	})
	n.ack(to, n.lastAck)
}

func (n *wnode) sendHeartbeat(e SendHeartbeat) {
	b, err := e.Heartbeat.Marshal(testKey)
	if err != nil {
		n.w.t.Fatal(err)
	}
	o := n.other()
	for l := range n.w.cut {
		for range e.Copies {
			if n.w.cut[l][n.id] || n.w.rng.Float64() < n.w.loss {
				continue
			}
			l := l
			n.w.after(time.Duration(100+n.w.rng.IntN(200))*time.Microsecond, func() {
				o.host(func() {
					h, err := DecodeHeartbeat(testKey, b)
					if err != nil {
						n.w.t.Fatal(err)
					}
					_ = o.guard.HandleHeartbeat(n.w.now, Link{Device: fmt.Sprintf("hb%d", l), Addr: "fe80::1"}, h)
					o.drainGuard()
				})
			})
		}
	}
}

// kill ends the daemon; its guardian notices, announces and starts it again.
func (n *wnode) kill() {
	if n.pair == nil {
		return
	}
	n.w.logf("%d: daemon %x dies", n.id, n.process&0xffff)
	p := n.process
	n.pair, n.owner, n.stopped = nil, false, false
	n.w.after(200*time.Microsecond, func() {
		n.host(func() {
			if n.process != p {
				return
			}
			n.guard.DaemonEnded(n.w.now)
			n.drainGuard()
		})
	})
	inc := n.incarnation
	if n.restart > 0 {
		n.w.after(n.restart, func() {
			if n.guard != nil && n.incarnation == inc {
				n.startDaemon()
			}
		})
	}
}

// crash is the loss of the host.
func (n *wnode) crash() {
	n.w.logf("%d: host lost", n.id)
	n.guard, n.pair, n.owner, n.frozen = nil, nil, false, false
}

func (w *world) cutAll(on bool) {
	w.logf("all links cut: %v", on)
	for l := range w.cut {
		w.cut[l][1], w.cut[l][2] = on, on
	}
}

func (n *wnode) drainPair() {
	for n.pair != nil {
		e, ok := n.pair.Poll()
		if !ok {
			return
		}
		n.effects = append(n.effects, e)
		n.carry(e)
	}
}

func (n *wnode) carry(e Effect) {
	w, p := n.w, n.process
	guard := func(f func()) {
		w.after(20*time.Microsecond, func() {
			n.host(func() {
				if n.process == p {
					f()
					n.drainGuard()
				}
			})
		})
	}
	if _, ok := e.(Announce); !ok {
		w.logf("%d: %T%+v", n.id, e, e)
	}
	switch e := e.(type) {
	case Own:
		n.own(e)
	case Disown:
		n.owner, n.handing, n.gates, n.member = false, false, false, 0
		n.disowned++
	case Announce:
		guard(func() { n.guard.HandleAnnounce(w.now, e) })
	case Entitle:
		guard(func() { n.guard.HandleEntitle(w.now, e) })
	case Claim:
		guard(func() { n.guard.HandleClaim(w.now, e) })
	case AskRemoval:
		guard(func() { n.guard.HandleAskRemoval(w.now, e) })
	case Join:
		if !n.owner {
			w.fail("node %d joins a member without owning", n.id)
		}
		n.gates, n.member, n.sent, n.acked = true, e.Process, 0, 0
		n.frame("copy", n.state)
	case Leave:
		if o := n.other(); o.owner && n.pair.chosen == n.id {
			n.run.succeeded = false // healing: the state is being united
		}
		n.gates, n.member = false, 0
		if n.owner && !n.handing {
			n.commit(n.state)
		}
	case HandOver:
		n.handing = true
		n.epoch, e.Epoch = e.Epoch, n.epoch
		n.frame("handover", n.state)
		n.epoch = e.Epoch
	case WriteNote:
		w.after(n.diskDelay, func() {
			if n.process != p || n.pair == nil {
				return
			}
			if n.diskErr == nil {
				n.diskNote, n.diskLost = e.On, false
				if n.diskEpoch.Less(e.Epoch) {
					n.diskEpoch = e.Epoch
				}
			}
			err := n.diskErr
			n.daemon(p, func() { n.pair.HandleNote(w.now, err) })
		})
	case Unite:
		n.unites++
		if o := n.other(); o.run != nil {
			o.run.succeeded = false
		}
	case RekeyEarly:
		n.rekeys++
		n.run.succeeded = false // what the other one did with its copy is dealt with
	case Stopped:
		w.after(time.Millisecond, func() {
			if n.process == p {
				n.kill()
			}
		})
	}
}
