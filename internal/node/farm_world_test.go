package node

import (
	"bytes"
	"container/heap"
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/proto/clusterpb"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// farmWorld runs the members of a farm and some clients in fake time: Farm, Guard and
// the state that the log leads to are the real ones; the log is its model, and the
// wire, the streams and the router are short. Everything in it follows from its seed.
type farmWorld struct {
	t        testing.TB
	rand     *rand.Rand
	now      time.Time
	queue    events
	order    int
	log      *fsm.LogModel
	members  []*farmer // by number from 1
	clients  []*caller
	route    map[int]cluster.NodeID           // of a client, as the router has it
	cut      map[cluster.NodeID]int           // side of a partition
	inits    int                              // of clients
	sites    map[cluster.NodeID]fsm.Site      // of members
	gateway  string                           // configuration beside the dialup phase 1
	passive  bool                             // clients wait for the farm
	pool     string                           // clients get addresses: first and last
	roaming  bool                             // clients may change their address
	hears    map[cluster.NodeID]time.Duration // how long after its log a member hears what was decided
	fromFarm int                              // IKE_SA_INIT requests
	sent     uint64                           // sequence numbers of moved SAs
	detached int                              // questions for windows
	lanLost  func() bool                      // whether a message about prefixes is lost
	made     map[string]cluster.NodeID        // epochs by who used them
	views    map[uint64]*fsm.Machine          // the state after an entry
}

// farmer is a host of the farm.
type farmer struct {
	w           *farmWorld
	id          cluster.NodeID
	guard       *cluster.Guard
	farm        *Farm
	process     cluster.ProcessID
	incarnation uint64
	alive       bool // host and daemon
	state       *fsm.Machine
	applied     uint64
	life, seq   uint64
	joinedAt    time.Time
	inFlight    []*clusterpb.Command // the first is with the log
	note        bool
	progress    uint64
	active      map[xfrm.Scope]bool
	addresses   bool // of its site
	sas         map[ipsec.ESPSPI]xfrm.SA
	outbound    map[ipsec.ESPSPI]bool
	up          map[cluster.NodeID]cluster.ProcessID
	routes      map[AddRoute]bool
	leads       map[AddRoute]xfrm.Scope
	logs        []string
}

const farmGateway = `
config vpn ipsec phase1-interface
    edit "vpn1"
        set type dynamic
        set interface "port2"
        set ike-version 2
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set dpd on-idle
        set dpd-retryinterval 60
        set fgsp-sync enable
        set exchange-interface-ip enable
        set psksecret "a secret of gateway and client"
    next
end
config vpn ipsec phase2-interface
    edit "vpn1"
        set phase1name "vpn1"
        set proposal aes128gcm
        set dhgrp 31
    next
end
`

func newFarmWorld(t testing.TB, seed int64, members, clients int) *farmWorld {
	w := &farmWorld{t: t, rand: rand.New(rand.NewSource(seed)), now: time.Unix(1_000_000, 0), route: map[int]cluster.NodeID{},
		hears: map[cluster.NodeID]time.Duration{}, cut: map[cluster.NodeID]int{}, made: map[string]cluster.NodeID{}, views: map[uint64]*fsm.Machine{}}
	voters := make([]fsm.NodeID, min(3, members))
	for i := range voters {
		voters[i] = fsm.NodeID(i + 1)
	}
	w.log = fsm.NewLogModel(w.now, fsm.LogOptions{Voters: voters, Rand: w.rand.Intn, Reach: w.reach,
		MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Election: 200 * time.Millisecond})
	w.members = append(w.members, nil)
	for i := 1; i <= members; i++ {
		m := &farmer{w: w, id: cluster.NodeID(i), incarnation: 10}
		w.members = append(w.members, m)
		m.boot()
	}
	w.addCallers(clients)
	return w
}

func (w *farmWorld) reach(a, b cluster.NodeID) bool {
	if int(a) < len(w.members) && int(b) < len(w.members) && (!w.members[a].alive || !w.members[b].alive) {
		return false
	}
	return w.cut[a] == w.cut[b]
}

func (w *farmWorld) after(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, event{w.now.Add(d), w.order, do})
}

func (m *farmer) boot() {
	w := m.w
	m.process = cluster.ProcessID(w.rand.Uint64() | 1)
	m.incarnation++
	m.life++
	m.seq, m.joinedAt, m.inFlight = 0, time.Time{}, nil
	m.alive = true
	m.state, m.applied = fsm.New(), 0
	m.log().Rewind(m.id, 0)
	m.log().SetUp(m.id, true)
	m.addresses = false
	m.active, m.sas, m.outbound = map[xfrm.Scope]bool{}, map[ipsec.ESPSPI]xfrm.SA{}, map[ipsec.ESPSPI]bool{}
	m.up = map[cluster.NodeID]cluster.ProcessID{}
	m.routes, m.leads = map[AddRoute]bool{}, map[AddRoute]xfrm.Scope{}
	m.guard = cluster.NewGuard(cluster.GuardOptions{Self: m.id, Name: fmt.Sprintf("vm%d", m.id), Incarnation: m.incarnation,
		Interval: 10 * time.Millisecond, Threshold: 3})
	coverage := cluster.CoverageProven
	if m.note {
		coverage = cluster.CoverageNote
	}
	m.farm = NewFarm(FarmOptions{
		Options: Options{Config: load(w.t, w.withPool(farmGateway)+w.gateway), Process: m.process, Rand: rand.New(rand.NewSource(w.rand.Int63())),
			Traffic:      func(ipsec.ESPSPI) (in, out time.Time) { return w.now, w.now },
			LocalAddr:    func(string, bool) (netip.Addr, bool) { return clusterAddr, true },
			CookieSecret: ipsec.NewKey(make([]byte, 32))},
		Self: m.id, Name: fmt.Sprintf("vm%d", m.id), Coverage: coverage, Interval: 10 * time.Millisecond, Threshold: 3,
	})
	m.guard.DaemonStarted(w.now, m.process)
	m.do(func(f *Farm) { f.Start(w.now) })
	p := m.process
	var tick func()
	tick = func() {
		if !m.alive || m.process != p {
			return
		}
		m.progress++
		m.guard.HandleProgress(m.progress)
		m.guard.Tick(w.now)
		m.guarded()
		m.join()
		w.after(m.guard.TickInterval(), tick)
	}
	w.after(time.Duration(w.rand.Intn(10000))*time.Microsecond, tick)
}

func (m *farmer) log() *fsm.LogModel { return m.w.log }

// join proposes this process as a member until it is one, and leads if the log says so.
func (m *farmer) join() {
	w := m.w
	leads := w.log.Leader() == m.id
	if leads != m.farm.leads {
		m.do(func(f *Farm) { f.HandleLeader(w.now, leads) })
	}
	if quorum := w.log.Leader() != 0 && w.reach(m.id, w.log.Leader()); quorum == m.farm.quorum.Lost {
		m.do(func(f *Farm) { f.HandleQuorum(w.now, Quorum{Lost: !quorum}) })
	}
	if w.now.Sub(m.joinedAt) < 50*time.Millisecond {
		return
	}
	m.joinedAt = w.now
	if p, ok := m.state.Member(m.id); !ok || p.Process != uint64(m.process) || p.Lost {
		if len(m.inFlight) > 0 {
			return
		}
		m.life = max(m.life, m.state.Life(m.id)+1)
		m.propose(&clusterpb.Command{What: &clusterpb.Command_AddMember{AddMember: &clusterpb.AddMember{
			Node: uint32(m.id), Name: m.farm.opt.Name, MinVersion: 1, MaxVersion: 1, Process: uint64(m.process), Store: uint64(m.id), Features: w.sites[m.id].Features()}}})
	} else if leads && len(m.inFlight) == 0 {
		for _, c := range m.state.Plan(2) {
			m.propose(c)
		}
	}
}

// propose has one command at a time decided, as the real log does.
func (m *farmer) propose(c *clusterpb.Command) {
	if m.inFlight = append(m.inFlight, c); len(m.inFlight) == 1 {
		m.proposeNext()
	}
}

func (m *farmer) proposeNext() {
	if len(m.inFlight) == 0 {
		return
	}
	c := m.inFlight[0]
	m.seq++
	c.Id = &clusterpb.CommandID{Node: uint32(m.id), Life: m.life, Seq: m.seq}
	c.Version = 1
	m.repeat(c)
}

// repeat sends the command until it is answered.
func (m *farmer) repeat(c *clusterpb.Command) {
	if m.alive && len(m.inFlight) > 0 && m.inFlight[0] == c {
		m.log().Propose(m.w.now, m.id, fsm.Encode(c))
		m.w.after(100*time.Millisecond, func() { m.repeat(c) })
	}
}

// answered goes on with the next command when the log has taken one of ours.
func (m *farmer) answered(entry []byte) {
	if fsm.Proposer(entry) == m.id && len(m.inFlight) > 0 && bytes.Equal(entry, fsm.Encode(m.inFlight[0])) {
		m.inFlight = m.inFlight[1:]
		m.proposeNext()
	}
}

// deliver applies what the log has for the members.
func (w *farmWorld) deliver() {
	for _, d := range w.log.Step(w.now) {
		if int(d.To) >= len(w.members) || !w.members[d.To].alive { // or a witness
			continue
		}
		m := w.members[d.To]
		if r := m.state.Apply(d.Entry); !r.OK() && d.To == fsm.Proposer(d.Entry) {
			m.logf("refused: %v", r)
		}
		m.applied = d.Index
		view := w.views[d.Index]
		if view == nil {
			view = fsm.New()
			if err := view.Restore(m.state.Snapshot()); err != nil {
				w.t.Fatal(err)
			}
			w.views[d.Index] = view
		}
		m.answered(d.Entry)
		process := m.process
		w.after(w.hears[d.To], func() {
			if m.process == process {
				m.do(func(f *Farm) { f.HandleDecided(w.now, view) })
			}
		})
	}
}

// guarded carries out what the guardian wants.
func (m *farmer) guarded() {
	w := m.w
	for m.alive {
		e, ok := m.guard.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case cluster.SendHeartbeat:
			m.broadcast(e.Heartbeat)
		case cluster.TellPeer:
			m.connect(e.Peer)
			m.do(func(f *Farm) { f.HandlePeer(w.now, e.Peer) })
		case cluster.TellLoss:
			m.disconnect(e.Node)
			m.do(func(f *Farm) { f.HandleLoss(w.now, e) })
		case cluster.TellRemoved:
			m.do(func(f *Farm) { f.HandleRemoved(w.now, e.Scope, e.Node) })
		case cluster.TellEntitled:
			m.do(func(f *Farm) { f.HandleEntitled(w.now, e.Scope, e.Epoch) })
		case cluster.TellClaimed:
			m.do(func(f *Farm) { f.HandleClaimed(w.now, e.Scope, e.Epoch, e.OK) })
		case cluster.KillDaemon:
			w.t.Errorf("guardian %d kills: %s", m.id, e.Reason)
		case cluster.GuardLog:
			m.logf("guardian: %s", e.Text)
		}
	}
}

func (m *farmer) broadcast(h cluster.Heartbeat) {
	w := m.w
	for _, o := range w.members[1:] {
		if o == m || !w.reach(m.id, o.id) {
			continue
		}
		w.after(100*time.Microsecond, func() {
			if o.alive {
				x := h
				_ = o.guard.HandleHeartbeat(w.now, cluster.Link{Addr: fmt.Sprint("172.31.1.", m.id)}, &x)
				o.guarded()
			}
		})
	}
}

func (m *farmer) connect(p cluster.Peer) {
	w := m.w
	if p.Running && m.up[p.Node] != p.Process {
		m.disconnect(p.Node)
		m.up[p.Node] = p.Process
		w.after(time.Millisecond, func() {
			if m.alive && m.up[p.Node] == p.Process {
				m.do(func(f *Farm) { f.HandleStream(w.now, p.Node, p.Process, true) })
			}
		})
	}
}

func (m *farmer) disconnect(n cluster.NodeID) {
	if p := m.up[n]; p != 0 {
		delete(m.up, n)
		m.do(func(f *Farm) { f.HandleStream(m.w.now, n, p, false) })
	}
}

// do gives the farm one input and carries out its effects.
func (m *farmer) do(f func(*Farm)) {
	if !m.alive {
		return
	}
	f(m.farm)
	for m.alive {
		e, ok := m.farm.Poll()
		if !ok {
			return
		}
		m.carryOut(e)
	}
}

func (m *farmer) carryOut(e Effect) {
	w, process := m.w, m.process
	later := func(d time.Duration, f func(*Farm)) {
		w.after(d, func() {
			if m.process == process {
				m.do(f)
			}
		})
	}
	switch e := e.(type) {
	case ike.Send:
		if d := e.Datagram.Data; len(d) > 19 && d[18] == 34 && d[19]&0x20 == 0 {
			w.fromFarm++
		}
		w.toClient(e.Datagram)
	case Forward:
		w.after(200*time.Microsecond, func() {
			if o := w.members[e.To]; w.reach(m.id, e.To) {
				o.do(func(f *Farm) { f.HandleForwarded(w.now, e.Datagram, e.Last) })
			}
		})
	case SendLAN, Lead, AddRoute, RemoveRoute:
		m.carryLAN(e)
	case Install:
		if other, ok := m.sas[e.SA.SPIIn]; ok {
			w.t.Errorf("member %d installs %s twice: scopes %d and %d", m.id, e.SA.SPIIn, other.Scope, e.SA.Scope)
		}
		m.sas[e.SA.SPIIn] = e.SA
	case SetPeer:
		m.setPeer(e)
	case SetOutbound:
		m.outbound[e.SPIIn] = e.Use
	case Detach:
		ws, ok := m.detach(e)
		m.farm.HandleDetached(w.now, e.Scope, ws, ok)
	case SetWindows:
		m.imported(e.Windows)
	case Remove:
		delete(m.sas, e.SPIIn)
		delete(m.outbound, e.SPIIn)
	case Activate:
		m.active[e.Scope] = true
		m.logf("active: %v", cluster.ScopeID(e.Scope))
	case Deactivate:
		if m.active[e.Scope] {
			m.logf("silent: %v", cluster.ScopeID(e.Scope))
		}
		delete(m.active, e.Scope)
	case Claim:
		m.addresses = true
	case Release:
		m.addresses = false
	case TakeWindows:
		later(0, func(f *Farm) { f.HandleWindows(w.now, e.Scope, nil) })
	case cluster.Announce:
		for _, t := range e.Owned {
			key := fmt.Sprint(t.Scope, t.Epoch)
			if by, ok := w.made[key]; ok && by != m.id {
				w.t.Errorf("epoch %v of %v is used by %d and %d", t.Epoch, t.Scope, by, m.id)
			}
			w.made[key] = m.id
		}
		m.guard.HandleAnnounce(w.now, e)
		m.guarded()
	case cluster.Entitle:
		m.guard.HandleEntitle(w.now, e)
		w.after(0, m.guarded)
	case cluster.Claim:
		m.guard.HandleClaim(w.now, e)
		w.after(0, m.guarded)
	case cluster.AskRemoval:
		m.guard.HandleAskRemoval(w.now, e)
		w.after(0, m.guarded)
	case cluster.WriteNote:
		m.note = e.On
		later(noteDelay, func(f *Farm) { f.HandleNote(w.now, nil) })
	case cluster.Propose:
		m.propose(e.Command)
	case statesync.SendFrame:
		w.after(streamDelay, func() {
			o := w.members[e.Node]
			if w.reach(m.id, e.Node) && o.process == e.Process {
				o.do(func(f *Farm) {
					if err := f.HandleFrame(w.now, m.id, process, e.Scope, e.Frame); err != nil {
						m.logf("frame to %d for %v: %v", e.Node, e.Scope, err)
					}
				})
			}
		})
	case statesync.SendAck:
		w.after(streamDelay, func() {
			o := w.members[e.Node]
			if w.reach(m.id, e.Node) && o.process == e.Process {
				o.do(func(f *Farm) { f.HandleAck(w.now, m.id, process, e.Scope, e.Seq) })
			}
		})
	case cluster.Alarm:
		m.logf("alarm %s %v %s", e.Name, e.On, e.Text)
	case Log:
		line := e.Message
		for _, a := range e.Attrs {
			line += " " + a.String()
		}
		m.logf("%s", line)
	}
}

func (m *farmer) logf(format string, args ...any) {
	m.logs = append(m.logs, fmt.Sprintf("%s vm%d: %s", m.w.now.Format("05.000000"), m.id, fmt.Sprintf(format, args...)))
}

// lose is the loss of a host. The router sees it a while later.
func (w *farmWorld) lose(m *farmer) {
	m.alive = false
	m.log().SetUp(m.id, false)
	w.reroute(60 * time.Millisecond)
}

// kill is SIGKILL of a daemon: its guardian says so, and starts another one later.
func (w *farmWorld) kill(m *farmer) {
	m.guard.DaemonEnded(w.now)
	for {
		e, ok := m.guard.Poll()
		if !ok {
			break
		}
		if h, ok := e.(cluster.SendHeartbeat); ok {
			m.broadcast(h.Heartbeat)
		}
	}
	m.alive = false
	m.log().SetUp(m.id, false)
	w.reroute(60 * time.Millisecond)
}

// reroute lets the router spread the clients over those who live.
func (w *farmWorld) reroute(d time.Duration) {
	w.after(d, func() {
		var live []cluster.NodeID
		for _, m := range w.members[1:] {
			if m.alive {
				live = append(live, m.id)
			}
		}
		for i := range w.clients {
			if !w.members[w.route[i]].alive && len(live) > 0 {
				w.route[i] = live[i%len(live)]
			}
		}
	})
}

// run lets time pass until cond holds.
func (w *farmWorld) run(d time.Duration, what string, cond func() bool) {
	w.t.Helper()
	end := w.now.Add(d)
	for !cond() {
		if !w.step(end) {
			w.dump()
			w.t.Fatalf("after %v: not %s", d, what)
		}
	}
}

func (w *farmWorld) pass(d time.Duration) {
	for end := w.now.Add(d); w.step(end); {
	}
}

func (w *farmWorld) step(end time.Time) bool {
	next := end
	var due func()
	if t, ok := w.log.NextTimeout(); ok && t.Before(next) {
		next, due = t, w.deliver
	}
	for _, m := range w.members[1:] {
		if t, ok := m.farm.NextTimeout(); m.alive && ok && t.Before(next) {
			next, due = t, func() { m.do(func(f *Farm) { f.HandleTimeout(w.now) }) }
		}
	}
	for _, c := range w.clients {
		if c.node == nil {
			continue
		}
		if t, ok := c.node.NextTimeout(); ok && t.Before(next) {
			next, due = t, func() { c.do(func(n *Node) { n.HandleTimeout(w.now) }) }
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
	if due == nil {
		return false
	}
	due()
	return true
}

// owners are who is active for each scope.
func (w *farmWorld) owners() map[xfrm.Scope][]cluster.NodeID {
	out := map[xfrm.Scope][]cluster.NodeID{}
	for _, m := range w.members[1:] {
		for _, s := range slices.Sorted(maps.Keys(m.active)) {
			if m.alive {
				out[s] = append(out[s], m.id)
			}
		}
	}
	return out
}

// settled: every scope has exactly one owner, whom the log names, and the standbys
// that the plan wants are in the sync set.
func (w *farmWorld) settled() bool {
	w.t.Helper()
	live := 0
	var any *farmer
	for _, m := range w.members[1:] {
		if m.alive {
			live++
			any = m
		}
	}
	owners := w.owners()
	scopes := any.state.Scopes()
	if len(scopes) == 0 || len(any.state.Plan(2)) > 0 {
		return false
	}
	for _, s := range scopes {
		o := owners[xfrm.Scope(s.ID)]
		if len(o) != 1 || o[0] != s.Owner || len(s.Sync) != min(2, live-1) || s.Successor == 0 && live > 1 {
			return false
		}
	}
	return true
}
