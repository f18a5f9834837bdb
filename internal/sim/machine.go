package sim

import (
	"time"

	"tandem/cluster"
)

// machine is what hosts of a pair and members of a farm have in common: power and a
// guardian.
type machine struct {
	scene *scene
	parts machineParts
	id    cluster.NodeID // 0: a client
	name  string
	boots int

	powered, frozen bool
	waiting         []func() // what the guardian finds when the machine goes on
	overdue         bool     // its tick

	guard     *cluster.Guard
	guardBoot uint64 // tells ticks of an earlier guardian
	restart   uint64 // generation of the planned start of the daemon
	backoff   time.Duration
	toGuard   time.Duration // FIFO of the daemon's messages
	toDaemon  time.Duration // and of the guardian's
}

// machineParts is what a machine needs from the one that it is part of.
type machineParts interface {
	running() *shell // its process; nil: none
	guardTime() time.Time
	tick() // plans the guardian's next tick
	carryGuard()
	startDaemon()
}

func (m *machine) machineOf() *machine { return m }

// newGuard starts a guardian.
func (m *machine) newGuard() {
	m.guardBoot++
	m.guard = cluster.NewGuard(cluster.GuardOptions{
		Self: m.id, Name: m.name, Incarnation: m.guardBoot,
		Interval: m.scene.s.Setup.HBInterval, Threshold: m.scene.s.Setup.Threshold,
	})
	m.backoff = 0
}

// tickIn plans the guardian's next tick.
func (m *machine) tickIn(d time.Duration) {
	boot := m.guardBoot
	m.scene.after(d, func() {
		switch {
		case m.guardBoot != boot || m.guard == nil:
		case m.frozen:
			m.overdue = true
		default:
			m.beat()
		}
	})
}

// beat is one tick, after everything that came before it was read.
func (m *machine) beat() {
	boot := m.guardBoot
	if d := m.parts.running(); d != nil {
		if !d.still() {
			d.progress++
		}
		m.guard.HandleProgress(d.progress)
	}
	m.guard.Tick(m.parts.guardTime())
	m.parts.carryGuard()
	if m.guard != nil && m.guardBoot == boot {
		m.parts.tick()
	}
}

// onGuard runs f on the guardian, or when its machine goes on.
func (m *machine) onGuard(f func()) {
	switch {
	case m.guard == nil:
	case m.frozen:
		m.waiting = append(m.waiting, f)
	default:
		f()
	}
}

// tellGuard hands a message of the daemon to the guardian.
func (m *machine) tellGuard(d *shell, f func(now time.Time)) {
	boot := m.guardBoot
	m.toGuard = m.scene.fifo(m.toGuard, m.scene.hop(), func() {
		m.onGuard(func() {
			if o := m.parts.running(); m.guard != nil && m.guardBoot == boot && (o == d || o == nil) {
				f(m.parts.guardTime())
				m.parts.carryGuard()
			}
		})
	})
}

// tellDeath has the guardian notice that its daemon is dead: it says so, after what the
// daemon said before, and starts another one later if it may. The guardian does first
// what is its first duty.
func (m *machine) tellDeath(first func(), mayStart func() bool) {
	w, boot := m.scene, m.guardBoot
	m.toGuard = w.fifo(m.toGuard, between(w.chance, 50*time.Microsecond, 2*time.Millisecond), func() {
		m.onGuard(func() {
			if m.guard == nil || m.guardBoot != boot || m.parts.running() != nil {
				return
			}
			first()
			m.guard.DaemonEnded(m.parts.guardTime())
			m.parts.carryGuard()
			if !mayStart() {
				return
			}
			m.backoff = min(5*time.Second, max(200*time.Millisecond, 2*m.backoff))
			m.restart++
			gen := m.restart
			w.after(m.backoff, func() {
				if m.restart == gen {
					m.onGuard(m.parts.startDaemon)
				}
			})
		})
	})
}

// dropGuard ends the guardian without a word.
func (m *machine) dropGuard() {
	m.guard = nil
	m.guardBoot++
	m.restart++
	m.waiting, m.overdue = nil, false
}

// wakeAll lets guardian, daemon and data plane go on in any order.
func (m *machine) wakeAll(others ...func()) {
	wake := func(f func()) { m.scene.after(between(m.scene.chance, 0, 2*time.Millisecond), f) }
	wake(func() {
		in := m.waiting
		m.waiting = nil
		for _, f := range in {
			m.onGuard(f)
		}
		if m.overdue && m.guard != nil && !m.frozen {
			m.overdue = false
			m.beat()
		}
	})
	for _, f := range others {
		wake(f)
	}
}
