package sim

import (
	"time"

	"tandem/cluster"
	"tandem/internal/config"
)

// host is a machine: power, clock, disk, guardian, daemon. A client has no guardian.
type host struct {
	machine
	w      *world
	pair   *pair  // nil: a client
	near   *realm // of a client: where its tunnel leads
	index  int    // of a client; of a gateway, that of its pair
	clock  clock
	conf   *config.Config
	disk   disk
	scopes []*hosted // of its pair's realms, in their order; a client has one

	asleep    bool // the guardian's ticks are skipped: nothing can happen
	sleptAt   time.Duration
	sleeps    uint64
	skipped   time.Duration // by all sleeps
	stubborn  time.Duration // until when the daemon does not die
	dontStart bool          // the schedule starts it again
	wanCut    [2]int        // from it, towards it: how many faults cut it
	d         *daemon
}

// hosted is what a host has of a realm.
type hosted struct {
	said     cluster.VCluster // its role and epoch
	holds    bool             // the shared addresses are on its interfaces
	claims   uint64
	monitors int       // monitored interfaces that work
	life     *lifetime // of the daemon that lives or lived last
}

// disk keeps a node's epoch and note.
type disk struct {
	epoch cluster.Epoch
	note  bool
	lost  bool // never written
	slow  time.Duration
	until time.Duration // slow
	full  time.Duration // until when writes fail
	busy  time.Duration // FIFO of writes
}

// newHost makes a machine that is off.
func newHost(h host, id cluster.NodeID, name string, realms int) *host {
	for range realms {
		h.scopes = append(h.scopes, &hosted{monitors: 1})
	}
	h.machine = machine{scene: &h.w.scene, id: id, name: name, parts: &h}
	return &h
}

func (h *host) daemonOf() *daemon { return h.d }

func (h *host) running() *shell {
	if h.d == nil {
		return nil
	}
	return &h.d.shell
}

func (h *host) other() *host { return h.pair.gw[2-int(h.id)] }

// of is what the host has of a realm.
func (h *host) of(r *realm) *hosted {
	if h.pair == nil {
		return h.scopes[0]
	}
	return h.scopes[r.index]
}

func (h *host) local() time.Time { return h.clock.at(h.w.now) }

// boot powers a host up and starts what runs on it.
func (h *host) boot() {
	if h.powered {
		return
	}
	h.powered, h.frozen, h.waiting, h.overdue = true, false, nil, false
	h.clock.wall = 0 // a host that boots asks for the time: see cluster/DESIGN.md, invariant 1
	h.boots++
	h.w.mix("boot", uint64(h.id), uint64(h.boots))
	if h.id != 0 {
		h.startGuardian()
	}
	h.startDaemon()
}

// startGuardian begins the heartbeats. Addresses that an earlier one left stay
// where they are.
func (h *host) startGuardian() {
	h.newGuard()
	h.asleep = false
	h.tick()
}

// guardTime is the guardian's clock. It leaves out the time in which its ticks are
// skipped.
func (h *host) guardTime() time.Time { return h.clock.at(h.w.now).Add(-h.skipped) }

// tick plans the guardian's next tick.
func (h *host) tick() {
	w := h.w
	d := h.guard.TickInterval()
	if until := w.nothingBefore(h.pair); until > w.now+20*d {
		h.sleep(until)
		return
	}
	h.tickIn(d)
}

// sleep skips ticks: until then heartbeats come and go and say nothing new.
func (h *host) sleep(until time.Duration) {
	h.asleep, h.sleptAt = true, h.w.now
	h.sleeps++
	n := h.sleeps
	h.w.queue.push(until, func() {
		if h.sleeps == n {
			h.wake()
		}
	})
}

func (h *host) wake() {
	if h.asleep {
		h.asleep = false
		h.skipped += h.w.now - h.sleptAt
		h.tick()
	}
}

// nothingBefore is up to when no guardian can have anything to notice: both hear each
// other and no fault is on or due. It is the present when something is going on.
func (w *world) nothingBefore(p *pair) time.Duration {
	if w.now < w.quiet {
		return w.now
	}
	for _, h := range p.gw {
		if h.guard == nil || h.frozen || h.d == nil || h.d.stopped || h.d.hung || h.stubborn > w.now {
			return w.now
		}
	}
	for i := range p.realms {
		a, b := p.gw[0].scopes[i].said.Role, p.gw[1].scopes[i].said.Role
		if a == cluster.RoleNone || b == cluster.RoleNone || a == b {
			return w.now
		}
	}
	if !p.linksWhole() || w.healing {
		return w.now
	}
	for i, a := range w.s.Actions {
		if a.At >= w.now {
			return w.s.Actions[i].At - 100*time.Millisecond
		}
	}
	return w.s.Length - 100*time.Millisecond
}

// busy keeps the guardians awake for a while.
func (w *world) busy(d time.Duration) {
	w.quiet = max(w.quiet, w.now+d)
	for _, h := range w.gateways() {
		h.wake()
	}
}

// carryGuard does what the guardian wants done.
func (h *host) carryGuard() {
	w := h.w
	for h.guard != nil {
		e, ok := h.guard.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case cluster.SendHeartbeat:
			w.sendHeartbeat(h, e)
		case cluster.KillDaemon:
			w.fault(h.name, "the guardian kills the daemon: %s", e.Reason)
			h.releaseAll()
			if d := h.d; d != nil {
				w.after(max(between(w.chance, 200*time.Microsecond, 3*time.Millisecond), h.stubborn-w.now), func() { h.die(d, "SIGKILL by its guardian") })
			}
		case cluster.GuardLog:
			w.busy(2 * time.Second)
			w.note(h.name, "guardian", "%s", e.Text)
		default:
			h.tellDaemon(e)
		}
	}
}

// tellDaemon hands a guardian's event to the daemon.
func (h *host) tellDaemon(e cluster.GuardEffect) {
	d := h.d
	if d == nil {
		return
	}
	w := h.w
	switch e := e.(type) {
	case cluster.TellPeer:
		w.note(h.name, "guardian", "hears %s: process %x, running %v, role %d, epoch %s, entitled %v", e.Peer.Name, uint64(e.Peer.Process)&0xffff, e.Peer.Running, e.Peer.Role, e.Peer.Epoch, e.Peer.Entitled)
	case cluster.TellLoss:
		w.note(h.name, "guardian", "lost %s (%d), entitled %v, claims %v", h.other().name, e.Kind, e.Entitled, e.Claimed)
		w.busy(5 * time.Second)
		for _, x := range h.pair.realms {
			x.rule.loses(h)
		}
	}
	h.toDaemon = w.fifo(h.toDaemon, w.hop(), func() {
		d.run(func(now time.Time) {
			switch e := e.(type) {
			case cluster.TellPeer:
				h.pair.streams.hears(h.pair.pipe(h), e.Peer.Process, len(e.Peer.Links) > 0 && e.Peer.Running)
				d.n.HandlePeer(now, e.Peer)
			case cluster.TellLoss:
				h.pair.streams.hears(h.pair.pipe(h), 0, false)
				d.n.HandleLoss(now, e)
			case cluster.TellRemoved:
				d.n.HandleRemoved(now, e.Scope, e.Node)
			case cluster.TellEntitled:
				d.n.HandleEntitled(now, e.Scope, e.Epoch)
			case cluster.TellClaimed:
				d.n.HandleClaimed(now, e.Scope, e.Epoch, e.OK)
			}
		})
	})
}

// tellGuard hands a message of the daemon to the guardian.
func (h *host) tellGuard(d *daemon, f func(now time.Time)) {
	h.w.busy(2 * time.Second)
	h.machine.tellGuard(&d.shell, f)
}

// die ends a daemon at once. What it said before reaches the guardian, which then
// takes the addresses away, tells the world, and starts another one later.
func (h *host) die(d *daemon, why string) {
	if h.d != d || d.dead {
		return
	}
	w := h.w
	w.fault(h.name, "the daemon dies: %s", why)
	w.mix("die", uint64(h.id), uint64(h.boots))
	d.end()
	h.d = nil
	h.died(d)
	w.busy(5 * time.Second)
	if h.id == 0 {
		w.after(between(w.chance, 100*time.Millisecond, 2*time.Second), h.startDaemon)
		return
	}
	h.pair.streams.died(h, h.other(), d.process)
	h.tellDeath(h.releaseAll, func() bool { return !h.dontStart })
}

// died tells the checkers that a process is gone.
func (h *host) died(d *daemon) {
	if h.id == 0 {
		h.w.tunnels[h.index].excuse(60 * time.Second)
		return
	}
	for _, x := range h.pair.realms {
		x.rule.died(h, d)
	}
}

// endGuardian ends guardian and daemon (PDEATHSIG) without a word; the shared
// addresses stay on the interfaces.
func (h *host) endGuardian() {
	if h.guard == nil {
		return
	}
	h.dropGuard()
	h.asleep = false
	for _, x := range h.scopes {
		x.said = cluster.VCluster{}
	}
	if d := h.d; d != nil {
		d.end()
		h.d = nil
		h.died(d)
		h.pair.streams.died(h, h.other(), d.process)
	}
	h.w.busy(5 * time.Second)
}

// powerOff is the loss of the host.
func (h *host) powerOff() {
	if !h.powered {
		return
	}
	h.w.fault(h.name, "the host is lost")
	h.powered = false
	for _, x := range h.scopes {
		x.holds = false
	}
	if h.id != 0 {
		h.endGuardian()
		return
	}
	if d := h.d; d != nil {
		d.end()
		h.d = nil
		h.died(d)
	}
}

// claim puts a realm's shared addresses on the host, and announces them a moment later.
func (h *host) claim(r *realm) {
	h.of(r).holds = true
	h.announce(r, between(h.w.chance, 100*time.Microsecond, 5*time.Millisecond))
}

// The arps and arps-interval of the configurations.
const (
	arps         = 5
	arpsInterval = 8 * time.Second
)

// announce tells the neighbours after a while, and a few times more.
func (h *host) announce(r *realm, after time.Duration) {
	x := h.of(r)
	x.claims++
	n, d, left := x.claims, h.d, arps
	var again func()
	again = func() {
		if x.claims != n || h.d != d || d == nil {
			return
		}
		if !h.frozen && !d.stopped {
			r.announce(h)
		}
		if left--; left > 0 {
			h.w.after(arpsInterval, again)
		}
	}
	h.w.after(after, again)
}

func (h *host) releaseAll() {
	for _, x := range h.scopes {
		x.release()
	}
}

func (x *hosted) release() {
	x.holds = false
	x.claims++
}

// freeze stops everything on a host; with its clock too if the hypervisor does it.
func (h *host) freeze(d time.Duration, clockToo bool) {
	if !h.powered || h.frozen {
		return
	}
	w := h.w
	w.fault(h.name, "stands still for %v", d)
	h.frozen = true
	w.busy(d + 5*time.Second)
	boots := h.boots
	w.after(d, func() {
		if !h.frozen || h.boots != boots {
			return
		}
		if clockToo {
			h.clock.late += d
		}
		h.thaw()
	})
}

// thaw lets a host go on. Guardian, daemon and data plane wake in any order.
func (h *host) thaw() {
	w := h.w
	w.fault(h.name, "goes on")
	h.frozen = false
	if d := h.d; d != nil {
		h.wakeAll(d.goOn, d.p.goOn)
		d.arm()
	} else {
		h.wakeAll()
	}
}
