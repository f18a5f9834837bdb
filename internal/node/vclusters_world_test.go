package node

import (
	"container/heap"
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// vworld runs two nodes with two virtual clusters, and a peer for each tunnel, in fake
// time over a model of the wire, the streams and the guardians.
type vworld struct {
	t     testing.TB
	rand  *rand.Rand
	now   time.Time
	queue events
	order int
	gw    [2]*vmember
	peers []*vpeer
	lost  func(from netip.Addr, h message.Header) bool // whether the wire loses a message

	requests map[vexchange]*vrequest
	ikeSAs   map[ipsec.IKESPIs]bool
	inits    int // IKE_SA_INIT requests
	syncs    int // message ID syncs begun
	logs     []string
	alarms   []string // that were raised
}

// vexchange names an exchange: message IDs count for each IKE SA and requester.
type vexchange struct {
	spis        ipsec.IKESPIs
	id          uint32
	byInitiator bool
}

type vrequest struct {
	kind      message.ExchangeType
	times     int
	answers   int
	differing bool // answers were not the same to the bit
	answer    string
}

// vmember is one process of a gateway, and what of the gateway outlives it.
type vmember struct {
	w        *vworld
	id       cluster.NodeID
	text     string
	node     *VClusters
	process  cluster.ProcessID
	alive    bool
	note     bool
	epoch    cluster.Epoch
	said     cluster.Announce
	claimed  map[xfrm.Scope]bool
	active   map[xfrm.Scope]bool
	entitled map[cluster.ScopeID]cluster.Epoch
	sas      map[ipsec.ESPSPI]xfrm.SA
	frames   []vframe // that came, the last of each scope
}

type vframe struct {
	scope   cluster.ScopeID
	from    cluster.NodeID
	process cluster.ProcessID
	frame   []byte
}

// vpeer is a gateway that stands alone, with one tunnel.
type vpeer struct {
	w        *vworld
	tunnel   string // of the gateways
	addr     netip.Addr
	node     *Node
	sas      map[ipsec.ESPSPI]xfrm.SA
	outbound map[ipsec.ESPSPI]bool
	rekeyed  struct{ child, ike int }
}

// vtunnels are the tunnels: who of the two sides rekeys follows from the key lives.
var vtunnels = []struct {
	name, wan, gateway, peer     string
	gwIKE, gwChild, pIKE, pChild int // key lives in seconds
}{
	{"a-begins", "wan1", "192.0.2.1", "192.0.2.10", 600, 240, 86400, 43200},
	{"a-answers", "wan1", "192.0.2.1", "192.0.2.20", 86400, 43200, 600, 240},
	{"b-begins", "wan2", "198.51.100.1", "198.51.100.10", 600, 240, 86400, 43200},
	{"b-answers", "wan2", "198.51.100.1", "198.51.100.20", 86400, 43200, 600, 240},
}

const vgatewayConf = `
config system ha
    set mode a-p
    set group-id 1
    set group-name "test"
    set hbdev "hb0" 50
    set hb-interval 1
    set hb-interval-in-milliseconds 10ms
    set hb-lost-threshold 3
    set vcluster-status enable
    config vcluster
        edit 1
            set override enable
            set priority %d
            set vdom "a"
        next
        edit 2
            set override enable
            set priority %d
            set vdom "b"
        next
    end
end
config system interface
    edit "wan1"
        set vdom "a"
        set ip 192.0.2.1/24
    next
    edit "wan2"
        set vdom "b"
        set ip 198.51.100.1/24
    next
end
`

const vphase = `
config vpn ipsec phase1-interface
    edit "%[1]s"
        set interface "%[2]s"
        set ike-version 2
        set remote-gw %[3]s
        set peertype any
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set keylife %[4]d
        %[6]s
        set dpd disable
        set psksecret "example-only"
    next
end
config vpn ipsec phase2-interface
    edit "%[1]s"
        set phase1name "%[1]s"
        set proposal aes128gcm
        set dhgrp 31
        set keylifeseconds %[5]d
        set keepalive enable
        set src-subnet 0.0.0.0/0
        set dst-subnet 0.0.0.0/0
    next
end
`

func vgatewayText(priority1, priority2 int) string {
	var b strings.Builder
	fmt.Fprintf(&b, vgatewayConf, priority1, priority2)
	for _, t := range vtunnels {
		fmt.Fprintf(&b, vphase, t.name, t.wan, t.peer, t.gwIKE, t.gwChild, none)
	}
	return b.String()
}

// newVWorld starts two gateways, the first virtual cluster preferred on gw1 and the second
// on gw2, and the peers, which dial.
func newVWorld(t testing.TB, seed int64) *vworld {
	w := &vworld{t: t, rand: rand.New(rand.NewSource(seed)), now: time.Unix(1_000_000, 0), requests: map[vexchange]*vrequest{}, ikeSAs: map[ipsec.IKESPIs]bool{}}
	for i := range w.gw {
		w.gw[i] = &vmember{w: w, id: cluster.NodeID(i + 1), text: vgatewayText(200-100*i, 100+100*i)}
	}
	for _, g := range w.gw {
		g.boot()
	}
	w.run(10*time.Second, "synchronised", w.synchronised)
	for _, x := range vtunnels {
		p := &vpeer{w: w, tunnel: x.name, addr: netip.MustParseAddr(x.peer), sas: map[ipsec.ESPSPI]xfrm.SA{}, outbound: map[ipsec.ESPSPI]bool{}}
		p.node = New(Options{
			Config:  load(t, fmt.Sprintf(vphase, "gw", "wan", x.gateway, x.pIKE, x.pChild, "")),
			Process: cluster.ProcessID(w.rand.Uint64()), Rand: rand.New(rand.NewSource(w.rand.Int63())),
			LocalAddr:    func(string, bool) (netip.Addr, bool) { return p.addr, true },
			Traffic:      func(ipsec.ESPSPI) (in, out time.Time) { return w.now, w.now },
			CookieSecret: ipsec.NewKey(make([]byte, 32)),
		})
		w.peers = append(w.peers, p)
		p.do(func(n *Node) { n.Start(w.now); _ = n.Up(w.now, "gw", "gw") })
	}
	w.run(10*time.Second, "all tunnels up", w.agree)
	w.requests, w.inits = map[vexchange]*vrequest{}, 0
	return w
}

func (w *vworld) after(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, event{w.now.Add(d), w.order, do})
}

func (m *vmember) name() string { return fmt.Sprintf("gw%d", m.id) }

func (m *vmember) other() *vmember { return m.w.gw[2-m.id] }

func (m *vmember) boot() {
	w := m.w
	m.process = cluster.ProcessID(w.rand.Uint64())
	m.alive, m.said = true, cluster.Announce{}
	m.claimed, m.active, m.entitled = map[xfrm.Scope]bool{}, map[xfrm.Scope]bool{}, map[cluster.ScopeID]cluster.Epoch{}
	m.sas, m.frames = map[ipsec.ESPSPI]xfrm.SA{}, nil
	c := load(w.t, m.text)
	cov := cluster.CoverageProven
	if m.note {
		cov = cluster.CoverageNote
	}
	m.node = NewVClusters(Options{
		Config: c, Process: m.process, Rand: rand.New(rand.NewSource(w.rand.Int63())),
		Traffic:      func(ipsec.ESPSPI) (in, out time.Time) { return w.now, w.now },
		LocalAddr:    func(string, bool) (netip.Addr, bool) { return netip.Addr{}, false },
		CookieSecret: ipsec.NewKey(make([]byte, 32)),
		Pair:         &cluster.PairOptions{Self: m.id, Name: m.name(), Serial: "TDM" + m.name(), HA: c.HA, Coverage: cov, Epoch: m.epoch},
	})
	m.do(func(n *VClusters) { n.Start(w.now) })
	if o := m.other(); o != nil && o.alive {
		for _, x := range []*vmember{m, o} {
			p, to, q := x.process, x.other(), x.other().process
			w.after(streamDelay, func() {
				if x.process == p && to.process == q {
					x.do(func(n *VClusters) { n.HandleStream(w.now, to.id, q, true) })
				}
			})
			x.tell()
		}
	}
}

// tell hands m's heartbeat to the other node.
func (m *vmember) tell() {
	o, p := m.other(), m.process
	m.w.after(streamDelay, func() {
		if o == nil || !m.alive || m.process != p || !o.alive {
			return
		}
		x := cluster.Peer{Node: m.id, Name: m.name(), Process: p, Running: true, Coverage: m.said.Coverage, Election: m.said.Election,
			Owned: m.said.Owned, VClusters: m.said.VClusters, Links: []cluster.Link{{Device: "hb0", Addr: "fe80::1"}}}
		for s := cluster.ScopeID(1); s < 31; s++ {
			if e, ok := m.entitled[s]; ok {
				x.EntitledTo = append(x.EntitledTo, cluster.Tenure{Scope: s, Epoch: e})
			}
		}
		o.do(func(n *VClusters) { n.HandlePeer(m.w.now, x) })
	})
}

// do gives the node one input and carries out its effects.
func (m *vmember) do(f func(*VClusters)) {
	if !m.alive {
		return
	}
	f(m.node)
	for {
		e, ok := m.node.Poll()
		if !ok {
			return
		}
		m.carryOut(e)
	}
}

// kill is SIGKILL: the guardian announces the death, and what this node owned and the
// other one was entitled to turns into claims.
func (m *vmember) kill() { m.end(cluster.LossDeath, streamDelay) }

// end ends the process; the other node hears of it, or of nothing, after a while.
func (m *vmember) end(kind cluster.Loss, after time.Duration) {
	m.alive, m.claimed = false, map[xfrm.Scope]bool{}
	w, o, p := m.w, m.other(), m.process
	w.after(after, func() {
		if !o.alive {
			return
		}
		l := cluster.TellLoss{Node: m.id, Kind: kind, Detected: after}
		for s := cluster.ScopeID(1); s < 31; s++ {
			if e, ok := o.entitled[s]; ok && e.Node == m.id {
				l.Claimed = append(l.Claimed, cluster.Tenure{Scope: s, Epoch: e})
			}
		}
		o.do(func(n *VClusters) { n.HandleStream(w.now, m.id, p, false) })
		o.do(func(n *VClusters) { n.HandleLoss(w.now, l) })
	})
}

// reload changes the priorities in the configuration.
func (m *vmember) reload(priority1, priority2 int) {
	m.text = vgatewayText(priority1, priority2)
	m.do(func(n *VClusters) { n.Reload(m.w.now, load(m.w.t, m.text)) })
}

func (m *vmember) carryOut(e Effect) {
	w, process := m.w, m.process
	later := func(d time.Duration, f func(*VClusters)) {
		w.after(d, func() {
			if m.process == process {
				m.do(f)
			}
		})
	}
	switch e := e.(type) {
	case ike.Send:
		w.send(e.Datagram)
	case Install:
		if int(e.SA.Scope) != w.vclusterOf(e.SA.Tunnel) {
			w.t.Errorf("%s: SA of %s installed in scope %d", m.name(), e.SA.Tunnel, e.SA.Scope)
		}
		m.sas[e.SA.SPIIn] = e.SA
	case Remove:
		delete(m.sas, e.SPIIn)
	case Activate:
		if m.other().active[e.Scope] && m.other().alive {
			w.t.Errorf("virtual cluster %d is active on both", e.Scope)
		}
		m.active[e.Scope] = true
		later(5*time.Millisecond, func(n *VClusters) { // the peers' traffic goes on
			var es []xfrm.Event
			for _, p := range w.peers {
				for _, spi := range sortedKeys(p.outbound) {
					if sa, ok := p.sas[spi]; ok && m.sas[sa.SPIOut].Scope == e.Scope {
						es = append(es, xfrm.FirstInbound{SPIIn: sa.SPIOut})
					}
				}
			}
			n.HandlePlane(w.now, es)
		})
	case Deactivate:
		m.active[e.Scope] = false
	case Retire:
		m.active[e.Scope] = false
	case TakeWindows:
		later(0, func(n *VClusters) { n.HandleWindows(w.now, e.Scope, nil) })
	case Claim:
		m.claimed[e.Scope] = true
	case Release:
		m.claimed[e.Scope] = false
	case cluster.Announce:
		m.said = e
		for _, t := range e.Owned {
			delete(m.entitled, t.Scope)
		}
		m.tell()
	case cluster.Entitle:
		if e.On {
			m.entitled[e.Scope] = e.Epoch
			later(0, func(n *VClusters) { n.HandleEntitled(w.now, e.Scope, e.Epoch) })
		} else {
			delete(m.entitled, e.Scope)
		}
		m.tell()
	case cluster.Claim:
		_, ok := m.entitled[e.Scope]
		later(0, func(n *VClusters) { n.HandleClaimed(w.now, e.Scope, e.Epoch, ok) })
	case cluster.AskRemoval:
		if o := m.other(); o.alive {
			delete(o.entitled, e.Scope)
			later(2*streamDelay, func(n *VClusters) { n.HandleRemoved(w.now, e.Scope, o.id) })
		}
	case cluster.Stopped:
		m.kill()
	case cluster.WriteNote:
		m.note = e.On
		if m.epoch.Less(e.Epoch) {
			m.epoch = e.Epoch
		}
		later(noteDelay, func(n *VClusters) { n.HandleNote(w.now, nil) })
	case statesync.SendFrame:
		o := m.other()
		w.after(streamDelay, func() {
			if o.alive && o.process == e.Process {
				o.frames = append(slices.DeleteFunc(o.frames, func(f vframe) bool { return f.scope == e.Scope }), vframe{e.Scope, m.id, process, e.Frame})
				o.do(func(n *VClusters) {
					if err := n.HandleFrame(w.now, m.id, process, e.Scope, e.Frame); err != nil {
						w.t.Errorf("%s: frame: %v", o.name(), err)
					}
				})
			}
		})
	case statesync.SendAck:
		o := m.other()
		w.after(streamDelay, func() {
			if o.alive && o.process == e.Process {
				o.do(func(n *VClusters) { n.HandleAck(w.now, m.id, process, e.Scope, e.Seq) })
			}
		})
	case cluster.Alarm:
		if e.On {
			w.alarms = append(w.alarms, e.Name+": "+e.Text)
		}
	case Log:
		w.log(m.name(), e)
		if strings.HasSuffix(e.Message, "attempting message ID sync") {
			w.syncs++
		}
	}
}

func (w *vworld) log(who string, e Log) {
	line := fmt.Sprintf("%s %s: %s", w.now.Format("15:04:05.000000"), who, e.Message)
	for _, a := range e.Attrs {
		line += " " + a.String()
	}
	if w.logs = append(w.logs, line); len(w.logs) > 4000 {
		w.logs = w.logs[2000:]
	}
}

// vclusterOf is the virtual cluster that a tunnel belongs to.
func (w *vworld) vclusterOf(tunnel string) int { return map[byte]int{'a': 1, 'b': 2}[tunnel[0]] }

// run lets time pass until cond holds; it fails the test when that takes longer than d.
func (w *vworld) run(d time.Duration, what string, cond func() bool) {
	w.t.Helper()
	for end := w.now.Add(d); !cond(); {
		if !w.step(end) {
			for _, l := range w.logs[max(0, len(w.logs)-80):] {
				w.t.Log(l)
			}
			w.t.Fatalf("after %v: not %s", d, what)
		}
	}
}

func (w *vworld) pass(d time.Duration) {
	for end := w.now.Add(d); w.step(end); {
	}
}

// step carries out the earliest thing due up to end, timers included.
func (w *vworld) step(end time.Time) bool {
	next, due := end, func() {}
	timer := false
	for _, g := range w.gw {
		if t, ok := g.node.NextTimeout(); g.alive && ok && t.Before(next) {
			next, timer = t, true
			due = func() { g.do(func(n *VClusters) { n.HandleTimeout(w.now) }) }
		}
	}
	for _, p := range w.peers {
		if t, ok := p.node.NextTimeout(); ok && t.Before(next) {
			next, timer = t, true
			due = func() { p.do(func(n *Node) { n.HandleTimeout(w.now) }) }
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
	due()
	return timer
}

// owner is the gateway that owns a virtual cluster alone, or nil.
func (w *vworld) owner(id int) (o *vmember) {
	for _, g := range w.gw {
		if s := xfrm.Scope(id); g.alive && g.claimed[s] && g.active[s] {
			if o != nil {
				return nil
			}
			o = g
		}
	}
	return o
}

// synchronised: each virtual cluster has one owner and an entitled standby.
func (w *vworld) synchronised() bool {
	for id := 1; id <= 2; id++ {
		o := w.owner(id)
		if o == nil || !o.other().alive || o.other().entitled[cluster.ScopeID(id)] == (cluster.Epoch{}) {
			return false
		}
	}
	return true
}

// agree: each peer and the owner of its tunnel hold the same one Child SA.
func (w *vworld) agree() bool {
	for _, p := range w.peers {
		o := w.owner(w.vclusterOf(p.tunnel))
		if o == nil || len(p.sas) != 1 {
			return false
		}
		n := 0
		for _, sa := range o.sas {
			if sa.Tunnel == p.tunnel {
				n++
			}
		}
		for spi, sa := range p.sas {
			if o.sas[sa.SPIOut].SPIOut != spi || !p.outbound[spi] || n != 1 {
				return false
			}
		}
	}
	return true
}
