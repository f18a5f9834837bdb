package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/internal/sim/trace"
	"tandem/xfrm"
)

// caller is a VPN client of a farm: our own engine in the client's role.
type caller struct {
	w     *farm
	index int
	name  string
	conf  *config.Config
	r     *rand.Rand
	d     *callerDaemon
	route *member // to whom the router sends what comes from it
	lan   int     // which of those that have its SA gets what goes to it

	scope   cluster.ScopeID // of its tunnel, as last seen
	up      bool            // it was
	excused time.Duration   // until when it may have to begin anew
	noPath  time.Duration   // since when it has no owner that it reaches; 0: it has
	arrived [2]time.Duration
}

// callerDaemon is a client's process.
type callerDaemon struct {
	shell
	c *caller
	n *node.Node
	p *farmPlane
}

func newCaller(w *farm, i int) *caller {
	return &caller{w: w, index: i, name: fmt.Sprintf("client%d", i+1), conf: load("client.conf", w.s.Setup.clientConfig(i, clusterAddr)), r: stream(w.s.Seed, fmt.Sprintf("farm client %d", i))}
}

func (c *caller) excuse(d time.Duration) { c.excused = max(c.excused, c.w.now+d) }

func (c *caller) boot() {
	w := c.w
	rnd := secrets(w.s.Seed, "farm "+c.name)
	d := &callerDaemon{c: c}
	d.shell = shell{scene: &w.scene, clock: &w.clock, process: cluster.ProcessID(rnd.Uint64() | 1), turn: d.drain, still: func() bool { return false }}
	d.p = newFarmPlane(w, c.name, d.process, func() bool { return true }, func(es []xfrm.Event) {
		if len(es) > 0 {
			w.after(w.hop()/4, func() { d.run(func(now time.Time) { d.n.HandlePlane(now, es) }) })
		}
	})
	d.n = node.New(node.Options{Config: c.conf, Process: d.process, Rand: rnd, Traffic: d.p.traffic,
		LocalAddr:    func(string, bool) (netip.Addr, bool) { return clientAddr(c.index), true },
		CookieSecret: ipsec.NewKey(make([]byte, 32))})
	d.core = d.n
	c.d, c.route = d, w.members[1+c.r.IntN(len(w.members)-1)]
	c.lan = c.r.IntN(16)
	w.reroute(0)
	d.run(d.n.Start)
	w.after(between(c.r, time.Second, 2*time.Second), c.background)
}

func (d *callerDaemon) drain() {
	for {
		e, ok := d.n.Poll()
		if !ok {
			return
		}
		d.carry(e)
	}
}

func (d *callerDaemon) carry(e node.Effect) {
	w, c := d.c.w, d.c
	switch e := e.(type) {
	case ike.Send:
		w.rule.begins(c, e.Datagram.Data)
		w.ledger.ike(w, d.process, c.name, e.Datagram.Data)
		w.toFarm(c, e.Datagram)
	case ike.KeyLog:
		w.ledger.keys(e)
	case node.Install:
		w.note(c.name, "plane", "install SPI %s (out %s)", e.SA.SPIIn, e.SA.SPIOut)
		d.p.install(e.SA)
	case node.Log:
		w.note(c.name, "log", "%s %v", e.Message, e.Attrs)
	default:
		d.p.carry(e)
	}
}

// instance is what the farm calls the client's tunnel; empty: it has none.
func (c *caller) instance() string {
	if c.d == nil {
		return ""
	}
	for _, s := range c.d.p.list {
		for _, m := range c.w.members[1:] {
			if m.d != nil && m.d.p.sas[s.SPIOut] != nil {
				return m.d.p.sas[s.SPIOut].Tunnel
			}
		}
	}
	return ""
}

// background is a packet each way now and then.
func (c *caller) background() {
	if c.w.done {
		return
	}
	c.send(false)
	c.send(true)
	c.w.after(between(c.r, 30*time.Millisecond, 900*time.Millisecond), c.background)
}

// send puts one inner packet on its way.
func (c *caller) send(toSite bool) {
	w := c.w
	w.serial++
	pkt := &farmPacket{serial: w.serial, client: c, toSite: toSite, at: w.now}
	w.Result.Packets++
	if !toSite {
		if c.d != nil {
			c.d.p.send(pkt, nil)
		}
		return
	}
	// The LAN's router knows who has a route to the client: the members that hold its SA.
	var have []*farmDaemon
	for _, m := range w.members[1:] {
		if m.d != nil && m.powered && m.d.p.lookup(pkt) != nil {
			have = append(have, m.d)
		}
	}
	if len(have) > 0 {
		d := have[c.lan%len(have)]
		d.p.run(func() { d.p.send(pkt, nil) })
	}
}

func (c *caller) burst(count int, rate float64, direction int) {
	c.w.burst(c.r, count, rate, direction, c.send)
}

// travel loses, doubles and delays what goes between clients and members.
func (w *farm) travel(deliver func()) (until time.Duration) {
	if chance(w.net, w.s.Setup.Loss) {
		return -1
	}
	d := w.s.Setup.Delay + between(w.net, 0, w.s.Setup.Delay/4+50*time.Microsecond)
	w.after(d, deliver)
	if chance(w.net, w.s.Setup.Duplicate) {
		w.after(d+between(w.net, 0, 5*time.Millisecond), deliver)
	}
	return w.now + d
}

// toFarm carries an IKE message to the member that the router chose for the client.
func (w *farm) toFarm(c *caller, x ike.Datagram) {
	m := c.route
	until := w.travel(func() {
		if d := m.d; d != nil && m.powered {
			d.run(func(now time.Time) {
				d.f.HandleIKE(now, ike.Datagram{Local: x.Remote, Remote: x.Local, NonESP: x.NonESP, Data: x.Data})
			})
		}
	})
	w.message(c.name, m.name, trace.ClassIKE, until, func() string { return describeIKE(x.Data) })
}

func (w *farm) toClient(m *member, x ike.Datagram) {
	i := slices.IndexFunc(w.clients, func(c *caller) bool { return clientAddr(c.index) == x.Remote.Addr() })
	if i < 0 {
		return
	}
	c := w.clients[i]
	until := w.travel(func() {
		if c.d != nil {
			c.d.run(func(now time.Time) {
				c.d.n.HandleIKE(now, ike.Datagram{Local: x.Remote, Remote: x.Local, NonESP: x.NonESP, Data: x.Data})
			})
		}
	})
	w.message(m.name, c.name, trace.ClassIKE, until, func() string { return describeIKE(x.Data) })
}

// sendESP carries an ESP packet out of a data plane.
func (w *farm) sendESP(p *farmPlane, x *farmESP) {
	if p.ofCluster {
		c := x.inner.client
		until := w.travel(func() {
			if c.d != nil {
				c.d.p.receive(x, nil)
			}
		})
		w.message(p.who, c.name, trace.ClassESP, until, func() string { return fmt.Sprintf("ESP %s #%d", x.spi, x.seq) })
		return
	}
	if len(w.seen) >= capturedMax {
		w.seen = append(w.seen[:0], w.seen[capturedMax/2:]...)
	}
	w.seen = append(w.seen, seenESP{x})
	m := x.inner.client.route
	until := w.travel(func() { m.takes(x) })
	w.message(p.who, m.name, trace.ClassESP, until, func() string { return fmt.Sprintf("ESP %s #%d", x.spi, x.seq) })
}

// takes is an ESP packet at a member's socket.
func (m *member) takes(x *farmESP) {
	if d := m.d; d != nil && m.powered {
		d.p.run(func() { d.p.receive(x, nil) })
	}
}

// replay sends captured packets again, to any member.
func (w *farm) replay(count int) {
	for i := range count {
		w.after(time.Duration(i)*between(w.net, 20*time.Microsecond, 2*time.Millisecond), func() {
			if len(w.seen) > 0 {
				w.members[1+w.net.IntN(len(w.members)-1)].takes(w.seen[w.net.IntN(len(w.seen))].x)
			}
		})
	}
}

// rehash is the router choosing other members for some clients; all of them with 0.
func (w *farm) rehash(count int) {
	live := w.live()
	if len(live) == 0 {
		return
	}
	for i, c := range w.clients {
		if count == 0 || i%3 < count {
			c.route, c.lan = live[w.chance.IntN(len(live))], w.chance.IntN(16)
		}
	}
}

// live are the members that the router sends to.
func (w *farm) live() (out []*member) {
	for _, m := range w.members[1:] {
		if m.powered && m.d != nil {
			out = append(out, m)
		}
	}
	return out
}

// reroute has the router notice after a while who is there.
func (w *farm) reroute(d time.Duration) {
	w.after(d, func() {
		live := w.live()
		for _, c := range w.clients {
			if c.route != nil && len(live) > 0 && (!c.route.powered || c.route.d == nil) {
				c.route = live[w.chance.IntN(len(live))]
			}
		}
	})
}
