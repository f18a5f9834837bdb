package sim

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/internal/sim/trace"
	"tandem/proto/clusterpb"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// farmDaemon is one process of a member: the production node.Farm over a model of its
// shell.
type farmDaemon struct {
	shell
	m        *member
	f        *node.Farm
	p        *farmPlane
	lifetime *farmLife
	noted    time.Duration // FIFO of its disk
	trail    []cluster.NodeID
	limbo    []heldStray
	pointers map[ipsec.ESPSPI]xfrm.Scope
	prefixes map[netip.Prefix]xfrm.Scope

	// Its part of the log.
	state  *fsm.Machine
	index  uint64
	kick   bool // it is about to hear what was decided
	life   uint64
	number uint64
	queue  []*clusterpb.Command // the first is with the log
	since  time.Duration        // of the first one
	asked  map[string]bool      // what the queue asks for
	led    time.Duration        // when a leader was heard last
	quorum bool                 // the node was told that there is one
	leads  bool
	member time.Duration // when it last asked to be a member
	held   fsm.Holdings
	synced bool // it knows what of its ranges is in use
}

// end is SIGKILL.
func (d *farmDaemon) end() {
	m, w := d.m, d.m.w
	d.dead = true
	d.inbox = nil
	d.timer.stop()
	m.d = nil
	w.log.SetUp(fsm.NodeID(m.id), false)
	w.logTurn()
	w.state(m.name, "dead")
	w.rule.died(d)
	w.pipesDied(d)
	w.reroute(60 * time.Millisecond)
}

// followUp carries out what follows from an input.
func (d *farmDaemon) followUp() {
	d.drain()
	d.publish()
}

func (d *farmDaemon) goOn() {
	d.stopped = false
	if !d.dead && !d.still() {
		d.catchUp()
		d.p.goOn()
		d.arm()
	}
}

// drain carries out effects, with a crash point before and after each.
func (d *farmDaemon) drain() {
	w := d.m.w
	for !d.dead {
		e, ok := d.f.Poll()
		if !ok {
			return
		}
		if w.farmCrash(d, e, false) {
			return
		}
		d.carry(e)
		if w.farmCrash(d, e, true) {
			return
		}
	}
}

// farmCrash ends the daemon if the schedule wants it at this effect.
func (w *farm) farmCrash(d *farmDaemon, e node.Effect, after bool) bool {
	if d.dead || w.healing || len(w.armed) == 0 {
		return d.dead
	}
	name := effectName(e)
	for i, a := range w.armed {
		if a.Cell.Effect != name || a.Cell.After != after || a.Node != "" && w.node(a.Node) != d.m && w.now < a.At+a.For {
			continue
		}
		w.armed = append(w.armed[:i:i], w.armed[i+1:]...)
		w.Result.Faults[CrashAt]++
		d.m.die(d, a.Cell.String())
		return true
	}
	return false
}

// later runs f on the node after a while, if the process still lives.
func (d *farmDaemon) later(after time.Duration, f func(now time.Time)) {
	d.m.w.after(after, func() { d.run(f) })
}

// carry does what the node wants done.
func (d *farmDaemon) carry(e node.Effect) {
	m, w := d.m, d.m.w
	w.mix(fmt.Sprintf("%T", e), uint64(m.id), 0)
	switch e := e.(type) {
	case ike.Send:
		w.ledger.ike(w, d.process, m.name, e.Datagram.Data)
		w.toClient(m, e.Datagram)
	case ike.SendKeepalive:
	case ike.KeyLog:
		w.ledger.keys(e)
	case node.Forward:
		w.forwardIKE(d, e)
	case node.Install:
		w.note(m.name, "plane", "install SPI %s (out %s), ceiling %d, fence %d, %v", e.SA.SPIIn, e.SA.SPIOut, e.SA.Ceiling, e.SA.Fence, cluster.ScopeID(e.SA.Scope))
		d.p.install(e.SA)
	case node.Remove:
		w.note(m.name, "plane", "remove SPI %s", e.SPIIn)
		d.p.carry(e)
	case node.Activate:
		w.note(m.name, "plane", "activate %v", cluster.ScopeID(e.Scope))
		w.rule.activates(d, cluster.ScopeID(e.Scope))
		d.p.carry(e)
	case node.Detach:
		w.note(m.name, "plane", "detach %v of %v", e.SPIs, cluster.ScopeID(e.Scope))
		ws, ok := d.p.detach(e.SPIs)
		d.f.HandleDetached(w.at(), e.Scope, ws, ok)
	case node.Pointer:
		if d.pointers[e.SPIIn] = e.To; e.To == 0 {
			delete(d.pointers, e.SPIIn)
		}
	case node.SendLAN:
		w.sendLAN(d, e)
	case node.Lead:
		if d.prefixes[e.Prefix] = e.To; e.To == 0 {
			delete(d.prefixes, e.Prefix)
		}
	case node.Deactivate:
		if d.p.active(e.Scope) {
			w.note(m.name, "plane", "deactivate %v", cluster.ScopeID(e.Scope))
		}
		d.p.carry(e)
		w.rule.deactivates(d, cluster.ScopeID(e.Scope))
	case node.TakeWindows:
		d.f.HandleWindows(w.at(), e.Scope, d.p.windows(e.Scope))
	case node.AddRoute, node.RemoveRoute:
	case node.Log:
		d.logged(e)
	case statesync.SendFrame:
		w.streams.frame(w.streams.pipe(m, w.members[e.Node]), d, e)
	case statesync.SendAck:
		w.rule.acks(d, e)
		w.streams.ack(w.streams.pipe(w.members[e.Node], m), d, e)
	case cluster.Announce:
		w.rule.announced(d, e)
		m.tellGuard(&d.shell, func(now time.Time) { m.guard.HandleAnnounce(now, e) })
	case cluster.Entitle:
		m.tellGuard(&d.shell, func(now time.Time) { m.guard.HandleEntitle(now, e) })
	case cluster.Claim:
		m.tellGuard(&d.shell, func(now time.Time) { m.guard.HandleClaim(now, e) })
	case cluster.AskRemoval:
		m.tellGuard(&d.shell, func(now time.Time) { m.guard.HandleAskRemoval(now, e) })
	case cluster.WriteNote:
		d.noted = w.fifo(d.noted, between(w.chance, 300*time.Microsecond, 4*time.Millisecond), func() {
			if !d.dead && m.powered {
				m.disk.note, m.disk.lost = e.On, false
				d.run(func(now time.Time) { d.f.HandleNote(now, nil) })
			}
		})
	case cluster.Propose:
		d.propose(e.Command)
	case cluster.Alarm:
		w.note(m.name, "log", "alarm %s %v %s", e.Name, e.On, e.Text)
		if e.On {
			w.Result.Alarms[strings.SplitN(e.Name, ",", 2)[0]]++
		}
	case cluster.Stopped:
		m.die(d, "stopped")
	default:
		if !d.p.carry(e) {
			panic(fmt.Sprintf("sim: nobody carries out %T", e))
		}
	}
}

// logged looks at a line as a reader of the log would.
func (d *farmDaemon) logged(e node.Log) {
	w := d.m.w
	if e.Message == "takeover" {
		t := takeover{}
		for _, a := range e.Attrs {
			switch a.Key {
			case "covered":
				t.covered = a.Value.Bool()
			case "trusted":
				t.trusted = a.Value.Bool()
			case "handover":
				t.handover = a.Value.Bool()
			case "scope":
				t.scope = a.Value.String()
			case "reason":
				t.reason = a.Value.String()
			}
		}
		w.rule.takesOver(d, t)
	}
	if w.tracing != nil {
		w.note(d.m.name, "log", "%s", logLine(e))
	}
}

// The longest way that a packet may take between members: to the owner, and on to who has
// just succeeded it.
const forwardHops = 2

// forwardIKE carries an IKE message to the member that owns its IKE SA.
func (w *farm) forwardIKE(d *farmDaemon, e node.Forward) {
	from, to := d.m, w.members[e.To]
	trail := append(append([]cluster.NodeID{}, d.trail...), from.id)
	w.rule.forwards(from, to, trail)
	w.Result.States["IKE message forwarded"]++
	until := time.Duration(-1)
	if w.reach(from, to) {
		until = w.now + between(w.chance, 100*time.Microsecond, 500*time.Microsecond)
		w.queue.push(until, func() {
			if o := to.d; o != nil && w.reach(from, to) {
				o.run(func(now time.Time) {
					// Until the effects of this input have been carried out, whatever leaves
					// was forwarded here.
					o.trail = trail
					o.f.HandleForwarded(now, e.Datagram, e.Last)
					o.drain()
					o.trail = nil
				})
			}
		})
	}
	w.message(from.name, to.name, "forward", until, func() string { return "IKE forwarded" })
}

// heldStray is a packet whose owner is not known for the moment.
type heldStray struct {
	x  stray
	at time.Duration
}

// limboTime is how long such a packet is kept: that of internal/daemon.
const limboTime = 500 * time.Millisecond

// stray takes a packet of an SA whose scope is not active here.
func (d *farmDaemon) stray(x stray) {
	x.scope = d.pointed(x)
	if to := d.f.Owners()[x.scope]; to != 0 {
		d.m.w.forward(d, to, x)
		return
	}
	if len(d.limbo) < 256 {
		d.limbo = append(d.limbo, heldStray{x, d.m.w.now})
	}
}

// byPrefix is the scope that an inner packet belongs to for which there is no SA here, by the
// longest prefix, if another member owns it.
func (d *farmDaemon) byPrefix(dst netip.Addr) (scope xfrm.Scope, ok bool) {
	best := -1
	for p, to := range d.prefixes {
		if p.Contains(dst) && p.Bits() > best {
			best, scope = p.Bits(), to
		}
	}
	return scope, best >= 0 && !d.f.Followed()[scope]
}

// sendLAN carries what a member tells another about prefixes, over the link that carries
// forwarded packets, too. It takes no chance of its own: schedules stay what they were.
func (w *farm) sendLAN(d *farmDaemon, e node.SendLAN) {
	from, to := d.m, w.members[e.To]
	if !w.reach(from, to) {
		return
	}
	w.after(200*time.Microsecond, func() {
		if o := to.d; o != nil && w.reach(from, to) {
			o.run(func(now time.Time) { o.f.HandleLAN(now, from.id, e.Message) })
		}
	})
}

// pointed is the scope of a packet whose tunnel was moved, as far as is known here.
func (d *farmDaemon) pointed(x stray) xfrm.Scope {
	if x.outer != nil {
		if to, ok := d.pointers[x.outer.spi]; ok {
			return to
		}
	}
	return x.scope
}

// publish sends on what waited for an owner.
func (d *farmDaemon) publish() {
	if len(d.limbo) == 0 || d.dead {
		return
	}
	w := d.m.w
	owners := d.f.Owners()
	held := d.limbo
	d.limbo = nil
	for _, h := range held {
		h.x.scope = d.pointed(h.x)
		switch {
		case w.now-h.at > limboTime:
		case owners[h.x.scope] != 0:
			w.forward(d, owners[h.x.scope], h.x)
		case d.f.Owns(h.x.scope):
			d.p.inject(h.x)
		default:
			d.limbo = append(d.limbo, h)
		}
	}
}

// forward carries a packet to the member that owns its SA.
func (w *farm) forward(d *farmDaemon, to cluster.NodeID, x stray) {
	from, o := d.m, w.members[to]
	x.trail = append(append([]cluster.NodeID{}, x.trail...), from.id)
	w.rule.forwards(from, o, x.trail)
	w.Result.States["packet forwarded"]++
	until := time.Duration(-1)
	if w.reach(from, o) {
		until = w.now + between(w.chance, 100*time.Microsecond, 500*time.Microsecond)
		w.queue.push(until, func() {
			if o.d != nil && w.reach(from, o) {
				o.d.p.run(func() { o.d.p.inject(x) })
			}
		})
	}
	w.message(from.name, o.name, trace.ClassESP, until, func() string { return "forwarded" })
}
