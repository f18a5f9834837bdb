package node

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// world runs a pair of nodes and one client in fake time over a model of the
// wire, the streams and the guardians. Everything in it follows from its seed.
type world struct {
	t      testing.TB
	rand   *rand.Rand
	now    time.Time
	queue  events
	order  int
	gw     [2]*member
	client *member
	wire   []string // exchanges seen on the outer wire, as "IKE_AUTH request"

	// crash ends the owner once it has carried out this many more effects; -1: never.
	crash    int
	crashed  bool
	effects  []string // carried out by the owner since count was armed
	counting bool
	look     func(m *member, carried []string) // after each input

	childBase map[ipsec.ESPSPI]bool
	ikeBase   map[ipsec.IKESPIs]bool
}

type event struct {
	at    time.Time
	order int
	do    func()
}
type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any     { o := *e; x := o[len(o)-1]; *e = o[:len(o)-1]; return x }

// member is one process in the world, with the parts around it that outlive or die with it.
type member struct {
	w        *world
	id       cluster.NodeID // 0: the client
	name     string
	addr     netip.Addr
	node     *Node
	process  cluster.ProcessID
	alive    bool
	claimed  bool
	active   bool
	entitled bool
	note     bool
	epoch    cluster.Epoch
	said     cluster.Announce
	sas      map[ipsec.ESPSPI]xfrm.SA
	outbound map[ipsec.ESPSPI]bool
	skipped  []xfrm.Bound
	removed  []Remove
	lastIn   map[ipsec.ESPSPI]time.Time
	lastOut  map[ipsec.ESPSPI]time.Time
	logs     []string
}

var (
	clusterAddr = netip.MustParseAddr("192.0.2.1")
	clientAddr  = netip.MustParseAddr("198.51.100.7")
)

const (
	wireDelay   = 500 * time.Microsecond
	streamDelay = 100 * time.Microsecond
	noteDelay   = time.Millisecond
	detectDelay = 30 * time.Millisecond
)

func load(t testing.TB, text string) *config.Config {
	t.Helper()
	c, faults := config.Load("test.conf", []byte(text))
	for _, f := range faults {
		if !f.Warning {
			t.Fatal(f.Error())
		}
	}
	return c
}

// haOf is a pair's, with a priority.
const haOf = `
config system ha
    set mode a-p
    set group-id 1
    set group-name "test"
    set hbdev "hb0" 50
    set hb-interval 1
    set hb-interval-in-milliseconds 10ms
    set hb-lost-threshold 3
    set priority %d
end
`

// newWorld starts a pair and a client; gateway and client are the VPN parts of their configurations.
func newWorld(t testing.TB, seed int64, gateway, client string) *world {
	w := &world{t: t, rand: rand.New(rand.NewSource(seed)), now: time.Unix(1_000_000, 0), crash: -1}
	for i := range w.gw {
		w.gw[i] = &member{w: w, id: cluster.NodeID(i + 1), name: fmt.Sprintf("gw%d", i+1), addr: clusterAddr}
		w.gw[i].boot(load(t, fmt.Sprintf(haOf, 200-i)+gateway))
	}
	w.client = &member{w: w, name: "client", addr: clientAddr}
	w.client.boot(load(t, client))
	return w
}

func (w *world) after(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, event{w.now.Add(d), w.order, do})
}

func (m *member) boot(c *config.Config) {
	w := m.w
	m.process = cluster.ProcessID(w.rand.Uint64())
	m.alive, m.claimed, m.active, m.entitled = true, false, m.id == 0, false
	m.said, m.skipped = cluster.Announce{}, nil
	m.sas, m.outbound = map[ipsec.ESPSPI]xfrm.SA{}, map[ipsec.ESPSPI]bool{}
	m.lastIn, m.lastOut = map[ipsec.ESPSPI]time.Time{}, map[ipsec.ESPSPI]time.Time{}
	o := Options{
		Config: c, Process: m.process, Rand: rand.New(rand.NewSource(w.rand.Int63())),
		Traffic:      func(s ipsec.ESPSPI) (in, out time.Time) { return m.lastIn[s], m.lastOut[s] },
		LocalAddr:    func(string, bool) (netip.Addr, bool) { return m.addr, true },
		CookieSecret: ipsec.NewKey(make([]byte, 32)),
	}
	if m.id != 0 {
		cov := cluster.CoverageProven
		if m.note {
			cov = cluster.CoverageNote
		}
		o.Pair = &cluster.PairOptions{Self: m.id, Name: m.name, Serial: "TDM" + m.name, HA: c.HA, Coverage: cov, Epoch: m.epoch}
	}
	m.node = New(o)
	m.do(func(n *Node) { n.Start(w.now) })
	if m.id == 0 {
		return
	}
	other := m.other()
	if other != nil && other.alive {
		w.connect(m, other)
		w.connect(other, m)
		m.tell(other)
		other.tell(m)
	}
}

func (m *member) other() *member { return m.w.gw[2-m.id] }

// connect brings the streams between two nodes up, in both directions.
func (w *world) connect(a, b *member) {
	pa, pb := a.process, b.process
	w.after(streamDelay, func() {
		if a.alive && a.process == pa && b.alive && b.process == pb {
			a.do(func(n *Node) { n.HandleStream(w.now, b.id, pb, true) })
		}
	})
}

// tell hands m's heartbeat to the other node's guardian.
func (m *member) tell(o *member) {
	p := m.process
	m.w.after(streamDelay, func() {
		if m.alive && m.process == p && o.alive {
			o.do(func(n *Node) {
				n.HandlePeer(m.w.now, cluster.Peer{Node: m.id, Name: m.name, Process: p, Running: true, Role: m.said.Role,
					Epoch: m.said.Epoch, Entitled: m.entitled, Coverage: m.said.Coverage, Election: m.said.Election,
					Links: []cluster.Link{{Device: "hb0", Addr: "fe80::1"}}})
			})
		}
	})
}

// do gives the node one input and carries out its effects.
func (m *member) do(f func(*Node)) {
	if !m.alive {
		return
	}
	f(m.node)
	var carried []string
	if m.w.look != nil {
		defer func() { m.w.look(m, carried) }()
	}
	for m.alive {
		e, ok := m.node.Poll()
		if !ok {
			return
		}
		carried = append(carried, fmt.Sprintf("%T", e))
		if m.id != 0 && m.w.counting && m.node.owner {
			if m.w.crash == 0 && !m.w.crashed {
				m.w.crashed = true
				m.w.kill(m)
				return
			}
			m.w.crash--
			m.w.effects = append(m.w.effects, fmt.Sprintf("%T", e))
		}
		m.carryOut(e)
	}
}

// kill is SIGKILL: the guardian announces the death to the other node.
func (w *world) kill(m *member) {
	m.alive, m.claimed, m.active, m.entitled = false, false, false, false
	o := m.other()
	w.after(streamDelay, func() {
		if o.alive {
			ent := o.entitled
			o.do(func(n *Node) { n.HandleStream(w.now, m.id, m.process, false) })
			o.do(func(n *Node) { n.HandleLoss(w.now, m.id, cluster.LossDeath, ent, time.Millisecond) })
		}
	})
}

func (m *member) carryOut(e Effect) {
	w, process := m.w, m.process
	later := func(d time.Duration, f func(*Node)) {
		w.after(d, func() {
			if m.process == process {
				m.do(f)
			}
		})
	}
	switch e := e.(type) {
	case ike.Send:
		w.send(m, e.Datagram)
	case Install:
		if e.SA.Suite.Encr.AEAD() && e.SA.IV == nil {
			w.t.Errorf("%s: SA %s installed without an IV counter", m.name, e.SA.SPIIn)
		}
		m.sas[e.SA.SPIIn] = e.SA
	case SetOutbound:
		m.outbound[e.SPIIn] = e.Use
	case Skip:
		m.skipped = append(m.skipped, e.Bounds...)
	case Remove:
		m.removed = append(m.removed, e)
		if e.Linger > 0 && m.id != 0 {
			if o := m.other(); o.alive && o.entitled && slices.Contains(slices.Collect(maps.Keys(o.sas)), e.SPIIn) {
				w.t.Errorf("%s goes on to deliver on %s without a fence; %s has it and may succeed", m.name, e.SPIIn, o.name)
			}
		}
		delete(m.sas, e.SPIIn)
		delete(m.outbound, e.SPIIn)
	case Activate:
		m.active = true
		// The client's traffic goes on, and is the first that the survivor hears of it.
		later(5*time.Millisecond, func(n *Node) {
			var es []xfrm.Event
			for _, spi := range sortedKeys(w.client.outbound) {
				if sa, ok := w.client.sas[spi]; ok {
					es = append(es, xfrm.FirstInbound{SPIIn: sa.SPIOut})
				}
			}
			n.HandlePlane(w.now, es)
		})
	case Deactivate, Retire:
		m.active = false
	case TakeWindows:
		later(0, func(n *Node) { n.HandleWindows(w.now, nil) })
	case Claim:
		m.claimed = true
	case Release:
		m.claimed = false
	case cluster.Announce:
		m.said = e
		if m.other() != nil {
			m.tell(m.other())
		}
	case cluster.Entitle:
		m.entitled = e.On
		if e.On {
			later(0, func(n *Node) { n.HandleEntitled(w.now, e.Epoch) })
		}
		m.tell(m.other())
	case cluster.Claim:
		ok := m.entitled
		later(0, func(n *Node) { n.HandleClaimed(w.now, e.Epoch, ok) })
	case cluster.AskRemoval:
		o := m.other()
		if o.alive {
			o.entitled = false
			later(2*streamDelay, func(n *Node) { n.HandleRemoved(w.now, o.id) })
		}
	case cluster.WriteNote:
		m.note, m.epoch = e.On, e.Epoch
		later(noteDelay, func(n *Node) { n.HandleNote(w.now, nil) })
	case statesync.SendFrame:
		o := m.other()
		w.after(streamDelay, func() {
			if o.alive && o.process == e.Process {
				o.do(func(n *Node) {
					if err := n.HandleFrame(w.now, m.id, process, e.Frame); err != nil {
						w.t.Errorf("%s: frame: %v", o.name, err)
					}
				})
			}
		})
	case statesync.SendAck:
		o := m.other()
		w.after(streamDelay, func() {
			if o.alive && o.process == e.Process {
				o.do(func(n *Node) { n.HandleAck(w.now, m.id, process, e.Seq) })
			}
		})
	case Log:
		line := e.Message
		for _, a := range e.Attrs {
			line += " " + a.String()
		}
		m.logs = append(m.logs, fmt.Sprintf("%s %s: %s", w.now.Format("05.000000"), m.name, line))
	}
}

// send puts an IKE datagram on the wire: the client's go to whoever holds the shared address.
func (w *world) send(from *member, d ike.Datagram) {
	h, err := message.ParseHeader(d.Data)
	if err != nil {
		w.t.Errorf("%s sent a message that does not parse: %v", from.name, err)
		return
	}
	kind := "request"
	if h.Response {
		kind = "response"
	}
	w.wire = append(w.wire, fmt.Sprintf("%s %s", h.Exchange, kind))
	w.after(wireDelay, func() {
		to := w.client
		if from == w.client {
			to = nil
			for _, g := range w.gw {
				if g.alive && g.claimed {
					to = g
				}
			}
		}
		if to != nil {
			to.do(func(n *Node) {
				n.HandleIKE(w.now, ike.Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data})
			})
		}
	})
}

// run lets time pass until cond holds; it fails the test when that takes longer than d.
func (w *world) run(d time.Duration, what string, cond func() bool) {
	w.t.Helper()
	end := w.now.Add(d)
	for !cond() {
		if !w.step(end) {
			w.dump()
			w.t.Fatalf("after %v: not %s", d, what)
		}
	}
}

// pass lets a span of time pass.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.step(end); {
	}
}

// step carries out the earliest thing due up to end, timers included.
func (w *world) step(end time.Time) bool {
	next, timer := end, (*member)(nil)
	for _, m := range []*member{w.gw[0], w.gw[1], w.client} {
		if t, ok := m.node.NextTimeout(); m.alive && ok && t.Before(next) {
			next, timer = t, m
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
	timer.do(func(n *Node) { n.HandleTimeout(w.now) })
	return true
}

func (w *world) dump() {
	for _, m := range []*member{w.gw[0], w.gw[1], w.client} {
		w.t.Logf("%s alive=%v owner=%v claimed=%v entitled=%v sas=%d", m.name, m.alive, m.node.owner, m.claimed, m.entitled, len(m.sas))
		logs := m.logs
		if len(logs) > 40 {
			logs = logs[len(logs)-40:]
		}
		for _, l := range logs {
			w.t.Log(l)
		}
	}
}

func (w *world) owner() *member {
	for _, g := range w.gw {
		if g.alive && g.claimed && g.active {
			return g
		}
	}
	return nil
}

func (w *world) standby() *member {
	if o := w.owner(); o != nil && o.other().alive {
		return o.other()
	}
	return nil
}

// synchronised: one owner, and the other node entitled.
func (w *world) synchronised() bool {
	s := w.standby()
	return s != nil && s.entitled && !s.claimed && s.said.Role == cluster.RoleStandby
}

// agree: the client and the owner hold the same Child SAs, each usable both ways.
func (w *world) agree(children int) bool {
	o := w.owner()
	if o == nil || len(w.client.sas) != children || len(o.sas) != children {
		return false
	}
	for spi, sa := range w.client.sas {
		if !w.client.outbound[spi] {
			return false
		}
		peer, ok := o.sas[sa.SPIOut]
		if !ok || peer.SPIOut != spi || !o.outbound[sa.SPIOut] ||
			string(peer.EncrIn.Bytes()) != string(sa.EncrOut.Bytes()) {
			return false
		}
	}
	return true
}

func sortedKeys(m map[ipsec.ESPSPI]bool) []ipsec.ESPSPI { return slices.Sorted(maps.Keys(m)) }

func (w *world) count(kind string) int {
	n := 0
	for _, k := range w.wire {
		if k == kind {
			n++
		}
	}
	return n
}
