package sim

import (
	"fmt"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// daemon is one process: the production node over a model of its shell.
type daemon struct {
	shell
	h    *host
	n    gateway
	p    *plane
	hung bool // its loop does not turn

	pending []due

	doing   label
	doingAt time.Duration
}

// doingFor is how long after an IKE message a daemon's effects count to its exchange.
const doingFor = 20 * time.Millisecond

func (h *host) startDaemon() {
	if !h.powered || h.d != nil || h.id != 0 && h.guard == nil {
		return
	}
	w := h.w
	h.boots++
	rnd := secrets(w.s.Seed, fmt.Sprintf("%s %d", h.name, h.boots))
	d := &daemon{h: h}
	d.shell = shell{scene: &w.scene, clock: &h.clock, process: cluster.ProcessID(rnd.Uint64() | 1), turn: d.drain,
		still: func() bool { return d.stopped || d.hung || h.frozen }}
	d.p = newPlane(d, rnd.Uint64())
	o := node.Options{
		Config: h.conf, Process: d.process, Rand: rnd, Traffic: d.p.traffic,
		LocalAddr:     h.localAddr,
		CookieSecret:  ipsec.NewKey(make([]byte, 32)),
		HalfOpenLimit: halfOpenLimit,
	}
	if h.id != 0 {
		o.Pair = &cluster.PairOptions{
			Self: h.id, Name: h.name, Serial: "TDM" + h.name, HA: h.conf.HA, Coverage: coverage(h.disk.lost, h.disk.note), Epoch: h.disk.epoch,
			Floor: uint64(max(0, h.clock.unix(w.now))),
		}
	}
	for _, x := range h.scopes {
		x.said = cluster.VCluster{}
		x.release() // what an earlier process left behind
		x.life = &lifetime{host: h, process: d.process, began: w.now}
	}
	d.n = newGateway(o)
	d.core = d.n
	h.d = d
	w.Result.Starts++
	w.state(h.name, "starts")
	w.busy(5 * time.Second)
	if h.guard != nil {
		h.guard.DaemonStarted(h.guardTime(), d.process)
		h.carryGuard()
	}
	d.run(func(now time.Time) {
		d.n.HandleMonitored(now, h.monitored)
		d.n.Start(now)
	})
}

// coverage is what a process finds on its disk.
func coverage(lost, note bool) cluster.Coverage {
	switch {
	case lost:
		return cluster.CoverageLost
	case note:
		return cluster.CoverageNote
	}
	return cluster.CoverageProven
}

// halfOpenLimit is low, so that floods reach it.
const halfOpenLimit = 20

// end is SIGKILL.
func (d *daemon) end() {
	d.dead = true
	d.inbox, d.pending = nil, nil
	d.timer.stop()
	d.h.w.state(d.h.name, "dead")
}

// goOn handles what came while the process stood still.
func (d *daemon) goOn() {
	if !d.dead && !d.still() {
		d.catchUp()
		d.arm()
	}
}

// drain carries out effects, with a crash point before and after each.
func (d *daemon) drain() {
	w := d.h.w
	for !d.dead {
		for {
			e, ok := d.n.Poll()
			if !ok {
				break
			}
			x := due{effect: e}
			switch e := e.(type) {
			case ike.KeyLog: // the observer reads what follows, whether it leaves or not
				w.wire.keys(e)
			case ike.Send:
				x.label = w.wire.label(e.Datagram)
			}
			d.pending = append(d.pending, x)
		}
		if len(d.pending) == 0 {
			d.pending = nil
			return
		}
		e := d.pending[0].effect
		d.nowDoing()
		d.pending = d.pending[1:]
		name := effectName(e)
		if w.crashPoint(d, name, false) {
			return
		}
		d.carry(e)
		if w.crashPoint(d, name, true) {
			return
		}
	}
}

// due is an effect that is not carried out yet.
type due struct {
	effect node.Effect
	label  label // of an IKE message
}

// nowDoing finds the exchange to which the next effect counts: that of the message
// it sends, else the one that the daemon is in, else the one it is about to begin.
func (d *daemon) nowDoing() {
	if l := d.pending[0].label; l.exchange != "" {
		d.takesPart(l)
		return
	}
	if d.h.w.now-d.doingAt <= doingFor && d.doing != (label{}) {
		return
	}
	d.doing = label{}
	for _, x := range d.pending {
		if x.label.exchange != "" {
			d.takesPart(x.label)
			return
		}
	}
}

// takesPart notes what exchange the daemon is in.
func (d *daemon) takesPart(l label) {
	if l.exchange != "" {
		d.doing, d.doingAt = l, d.h.w.now
	}
}

func effectName(e node.Effect) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", e), "*")
}

// crashPoint counts the moment, and ends the daemon if the schedule wants it here.
// Healing has no crash points: from then on everything works.
func (w *world) crashPoint(d *daemon, effect string, after bool) bool {
	if d.h.id == 0 || d.dead || w.healing {
		return d.dead
	}
	c := d.doing.cell(effect, after)
	w.Result.Moments[c]++
	if w.s.Crash.Cell == c && w.s.Crash.Nth == w.Result.Moments[c] {
		w.crash(d, c)
		return true
	}
	for i, a := range w.armed {
		if a.Cell.Effect != effect || a.Cell.After != after {
			continue
		}
		if a.Cell != c && w.now < a.At+a.For {
			continue
		}
		if a.Node != "" && w.node(a) != d.h && w.now < a.At+2*a.For {
			continue
		}
		w.armed = append(w.armed[:i:i], w.armed[i+1:]...)
		w.crash(d, c)
		return true
	}
	return false
}

// carry does what the node wants done.
func (d *daemon) carry(e node.Effect) {
	h, w := d.h, d.h.w
	w.mix(fmt.Sprintf("%T", e), uint64(h.id), uint64(h.index))
	switch e := e.(type) {
	case ike.Send:
		w.wire.sent(d, e.Datagram)
		w.sentIKE(d, e.Datagram)
		w.net.sendIKE(h, e.Datagram)
	case ike.SendKeepalive:
		w.net.keepalive(h, e)
	case ike.KeyLog:
		// The observer has it already.
	case node.Install:
		w.note(h.name, "plane", "install SPI %s (out %s), ceiling %d, fence %d", e.SA.SPIIn, e.SA.SPIOut, e.SA.Ceiling, e.SA.Fence)
		d.p.install(e.SA)
	case node.Remove:
		w.note(h.name, "plane", "remove SPI %s", e.SPIIn)
		d.p.carry(e)
	case node.SetBounds:
		for _, b := range e.Bounds {
			w.note(h.name, "plane", "SPI %s: %s is now %d", b.SPIIn, boundName(b.Dir), b.N)
		}
		d.p.carry(e)
	case node.Activate:
		w.note(h.name, "plane", "activate%s", h.realmOf(e.Scope).suffixAt(h))
		if h.id != 0 {
			h.realmOf(e.Scope).rule.activates(d)
		}
		d.p.carry(e)
	case node.Retire:
		w.note(h.name, "plane", "retire%s", h.realmOf(e.Scope).suffixAt(h))
		d.p.carry(e)
	case node.Deactivate:
		w.note(h.name, "plane", "deactivate%s", h.realmOf(e.Scope).suffixAt(h))
		d.p.carry(e)
		if r := h.realmOf(e.Scope); h.id != 0 {
			r.rule.inactive(h.of(r).life)
		}
	case node.TakeWindows:
		d.n.HandleWindows(h.local(), e.Scope, d.p.windows(e.Scope))
	case node.Claim:
		if h.id != 0 {
			h.claim(h.realmOf(e.Scope))
		}
	case node.Reassert:
		if r := h.realmOf(e.Scope); h.of(r).holds {
			h.announce(r, 100*time.Millisecond)
		}
	case node.Release:
		h.of(h.realmOf(e.Scope)).release()
	case node.AddRoute, node.RemoveRoute:
		// The model's routes follow from the networks.
	case node.Log:
		d.logged(e)
	case statesync.SendFrame:
		h.pair.streams.frame(h.pair.pipe(h), d, e)
	case statesync.SendAck:
		h.pair.realm(xfrm.Scope(e.Scope)).rule.acks(d, e)
		h.pair.streams.ack(h.pair.pipe(h.other()), d, e)
	case cluster.Announce:
		role := cluster.RoleNone
		for _, r := range h.pair.realms {
			said := announcedOf(e, r.scope)
			role = max(role, said.Role)
			h.of(r).said = said
			r.rule.announced(d, said)
		}
		w.state(h.name, roleName(role))
		h.tellGuard(d, func(now time.Time) { h.guard.HandleAnnounce(now, e) })
	case cluster.Entitle:
		h.tellGuard(d, func(now time.Time) {
			h.guard.HandleEntitle(now, e)
			for _, r := range h.pair.realms {
				r.rule.pollSplit()
			}
		})
	case cluster.Claim:
		h.tellGuard(d, func(now time.Time) { h.guard.HandleClaim(now, e) })
	case cluster.AskRemoval:
		h.tellGuard(d, func(now time.Time) { h.guard.HandleAskRemoval(now, e) })
	case cluster.WriteNote:
		d.writeNote(e)
	case cluster.Alarm:
		if e.On {
			w.Result.Alarms[e.Name]++
		}
	case cluster.Stopped:
		h.die(d, "stopped")
	default:
		if !d.p.carry(e) {
			panic(fmt.Sprintf("sim: nobody carries out %T", e))
		}
	}
}

func boundName(d xfrm.Direction) string {
	if d == xfrm.Outbound {
		return "ceiling"
	}
	return "fence"
}

func roleName(r cluster.Role) string {
	switch r {
	case cluster.RoleOwner:
		return "owner"
	case cluster.RoleStandby:
		return "standby"
	}
	return "starts"
}

// writeNote brings the note to the disk, one after the other. A crash in the middle
// leaves the old slot or the new one.
func (d *daemon) writeNote(e cluster.WriteNote) {
	h, w := d.h, d.h.w
	k := &h.disk
	took := between(w.chance, 300*time.Microsecond, 4*time.Millisecond)
	if w.now < k.until {
		took = k.slow
	}
	fails := w.now < k.full
	write := func() {
		k.lost, k.note = false, e.On
		if k.epoch.Less(e.Epoch) {
			k.epoch = e.Epoch
		}
	}
	begin := max(k.busy, w.now)
	k.busy = begin + took
	boots := h.boots
	// The bytes are on the platter at some moment before the answer.
	w.queue.push(begin+between(w.chance, 0, took), func() {
		if h.boots == boots && h.powered && !fails && (h.d == d || chance(w.chance, 0.5)) {
			write()
		}
	})
	w.queue.push(k.busy, func() {
		if h.d != d {
			return
		}
		d.run(func(now time.Time) {
			if fails {
				d.n.HandleNote(now, errDisk)
			} else {
				d.n.HandleNote(now, nil)
			}
		})
	})
}

// logged looks at a line as a reader of the log would.
func (d *daemon) logged(e node.Log) {
	w := d.h.w
	w.logged(d, e)
	if w.tracing != nil {
		w.note(d.h.name, "log", "%s", logLine(e))
	}
}
