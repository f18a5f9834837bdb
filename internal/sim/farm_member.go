package sim

import (
	"fmt"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

// member is a machine of a farm: power, disk, guardian, daemon.
type member struct {
	machine
	w         *farm
	late      bool // comes with a Join
	side      int  // of a partition of the sync network
	disk      farmDisk
	drainedAt time.Duration // since when it is asked to be drained; 0: it is not
	d         *farmDaemon
}

// farmDisk keeps a member's note, its part of the log and its marks of ranges.
type farmDisk struct {
	note     bool
	lost     bool
	store    uint64
	index    uint64
	snapshot []byte
	opened   []fsm.RangeID
}

func newMember(w *farm, id cluster.NodeID, late bool) *member {
	m := &member{w: w, late: late}
	m.machine = machine{scene: &w.scene, id: id, name: fmt.Sprintf("vm%d", id), parts: m}
	return m
}

func (m *member) daemonOf() *farmDaemon { return m.d }

func (m *member) running() *shell {
	if m.d == nil {
		return nil
	}
	return &m.d.shell
}

func (m *member) guardTime() time.Time { return m.w.at() }

func (m *member) boot() {
	if m.powered {
		return
	}
	m.powered, m.frozen, m.waiting, m.overdue = true, false, nil, false
	m.boots++
	m.w.mix("boot", uint64(m.id), uint64(m.boots))
	m.startGuardian()
	m.startDaemon()
}

func (m *member) startGuardian() {
	m.newGuard()
	m.tick()
}

func (m *member) tick() {
	m.tickIn(m.guard.TickInterval() + between(m.w.chance, 0, 50*time.Microsecond))
}

func (m *member) carryGuard() {
	w := m.w
	for m.guard != nil {
		e, ok := m.guard.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case cluster.SendHeartbeat:
			m.sendHeartbeat(e)
		case cluster.KillDaemon:
			w.fault(m.name, "the guardian kills the daemon: %s", e.Reason)
			if d := m.d; d != nil {
				w.after(between(w.chance, 200*time.Microsecond, 3*time.Millisecond), func() { m.die(d, "SIGKILL by its guardian") })
			}
		case cluster.GuardLog:
			w.note(m.name, "guardian", "%s", e.Text)
		default:
			m.tellDaemon(e)
		}
	}
}

func (m *member) sendHeartbeat(e cluster.SendHeartbeat) {
	w := m.w
	for _, o := range w.members[1:] {
		if o == m || m.side != o.side || !o.powered {
			continue
		}
		from, side := netip.AddrFrom4([4]byte{172, 31, 1, byte(m.id)}).String(), m.side
		w.after(between(w.chance, 50*time.Microsecond, 400*time.Microsecond), func() {
			if o.side != side {
				return
			}
			o.onGuard(func() {
				h := e.Heartbeat
				_ = o.guard.HandleHeartbeat(w.at(), cluster.Link{Addr: from}, &h)
				o.carryGuard()
			})
		})
	}
}

// tellDaemon hands a guardian's event to the daemon.
func (m *member) tellDaemon(e cluster.GuardEffect) {
	d := m.d
	if d == nil {
		return
	}
	w := m.w
	if l, ok := e.(cluster.TellLoss); ok {
		w.note(m.name, "guardian", "lost vm%d (%d), claims %v", l.Node, l.Kind, l.Claimed)
	}
	m.toDaemon = w.fifo(m.toDaemon, w.hop(), func() {
		d.run(func(now time.Time) {
			switch e := e.(type) {
			case cluster.TellPeer:
				w.streams.hears(w.streams.pipe(m, w.members[e.Peer.Node]), e.Peer.Process, len(e.Peer.Links) > 0 && e.Peer.Running)
				d.f.HandlePeer(now, e.Peer)
			case cluster.TellLoss:
				w.streams.hears(w.streams.pipe(m, w.members[e.Node]), 0, false)
				d.f.HandleLoss(now, e)
			case cluster.TellRemoved:
				d.f.HandleRemoved(now, e.Scope, e.Node)
			case cluster.TellEntitled:
				d.f.HandleEntitled(now, e.Scope, e.Epoch)
			case cluster.TellClaimed:
				d.f.HandleClaimed(now, e.Scope, e.Epoch, e.OK)
			}
		})
	})
}

// startDaemon starts the production node of a farm.
func (m *member) startDaemon() {
	if !m.powered || m.d != nil || m.guard == nil {
		return
	}
	w := m.w
	m.boots++
	rnd := secrets(w.s.Seed, fmt.Sprintf("farm %s %d", m.name, m.boots))
	d := &farmDaemon{m: m, life: uint64(w.at().UnixMilli()), pointers: map[ipsec.ESPSPI]xfrm.Scope{}, prefixes: map[netip.Prefix]xfrm.Scope{}}
	d.shell = shell{scene: &w.scene, clock: &w.clock, process: cluster.ProcessID(rnd.Uint64() | 1), turn: d.followUp,
		still: func() bool { return d.stopped || m.frozen }}
	d.p = newFarmPlane(w, m.name, d.process, func() bool { return !d.dead && !d.stopped && !m.frozen }, d.events)
	d.p.stray, d.p.leads, d.p.ofCluster = d.stray, d.byPrefix, true
	d.f = node.NewFarm(node.FarmOptions{
		Options: node.Options{Config: w.conf, Process: d.process, Rand: rnd, Traffic: d.p.traffic,
			LocalAddr:     func(string, bool) (netip.Addr, bool) { return clusterAddr, true },
			CookieSecret:  ipsec.NewKey(make([]byte, 32)),
			HalfOpenLimit: 1000},
		Self: m.id, Name: m.name, Coverage: coverage(m.disk.lost, m.disk.note), Interval: w.s.Setup.HBInterval, Threshold: w.s.Setup.Threshold,
	})
	d.core = d.f
	if m.disk.store == 0 {
		m.disk.store = rnd.Uint64() | 1
		m.disk.lost = false
	}
	d.openLog()
	m.d = d
	d.lifetime = &farmLife{m: m, process: d.process, used: map[*farmRecord]bool{}}
	w.Result.Starts++
	w.state(m.name, "standby starts")
	m.guard.DaemonStarted(w.at(), d.process)
	m.carryGuard()
	d.run(func(now time.Time) { d.f.Start(now) })
	w.after(between(w.chance, 10*time.Millisecond, 50*time.Millisecond), d.logTick)
	w.after(between(w.chance, time.Second, 2*time.Second), d.useRanges)
}

// die ends a daemon at once. Its guardian tells the world, and starts another one later.
func (m *member) die(d *farmDaemon, why string) {
	if m.d != d || d.dead {
		return
	}
	w := m.w
	w.fault(m.name, "the daemon dies: %s", why)
	d.end()
	m.tellDeath(func() {}, func() bool { return true })
}

// endGuardian ends guardian and daemon without a word.
func (m *member) endGuardian() {
	if m.guard == nil {
		return
	}
	m.dropGuard()
	if d := m.d; d != nil {
		d.end()
	}
}

func (m *member) powerOff() {
	m.w.fault(m.name, "the host is lost")
	m.powered, m.frozen = false, false
	m.boots++
	m.endGuardian()
}

// freeze stops everything on a host for a while.
func (m *member) freeze(d time.Duration) {
	if !m.powered || m.frozen {
		return
	}
	m.frozen = true
	m.w.state(m.name, "frozen")
	boots := m.boots
	m.w.after(d, func() {
		if m.frozen && m.boots == boots {
			m.thaw()
		}
	})
}

// thaw lets a host go on. Guardian, daemon and data plane wake in any order.
func (m *member) thaw() {
	m.frozen = false
	m.w.fault(m.name, "goes on")
	if d := m.d; d != nil {
		d.stopped = true // until the scheduler comes to it; what came meanwhile is first
		m.wakeAll(d.goOn, d.p.goOn)
	} else {
		m.wakeAll()
	}
}
