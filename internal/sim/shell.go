package sim

import (
	"time"

	"tandem/cluster"
	"tandem/xfrm"
)

// shell is the model of what runs a production node in a process: its inbox and its one
// timer.
type shell struct {
	scene    *scene
	clock    *clock // its machine's
	process  cluster.ProcessID
	core     core
	still    func() bool // it stands still for now
	turn     func()      // carries out what follows from an input
	dead     bool
	stopped  bool // SIGSTOP
	inbox    []func(now time.Time)
	progress uint64
	timer    timer
	reported time.Duration // FIFO of what the data plane reports
}

// core is a production node, of a farm or not.
type core interface {
	NextTimeout() (time.Time, bool)
	HandleTimeout(now time.Time)
	HandlePlane(now time.Time, es []xfrm.Event)
	HandleStream(now time.Time, member cluster.NodeID, process cluster.ProcessID, up bool)
}

// inboxLimit bounds what waits for a process that stands still; UDP loses the rest.
const inboxLimit = 4096

func (d *shell) shellOf() *shell { return d }

// run gives the node one input and carries out what follows from it.
func (d *shell) run(f func(now time.Time)) {
	switch {
	case d.dead:
	case d.still():
		if len(d.inbox) < inboxLimit {
			d.inbox = append(d.inbox, f)
		}
	default:
		f(d.clock.at(d.scene.now))
		d.turn()
		d.arm()
	}
}

// catchUp handles what came while the process stood still.
func (d *shell) catchUp() {
	in := d.inbox
	d.inbox = nil
	for _, f := range in {
		d.run(f)
	}
}

// arm plans the node's next timeout.
func (d *shell) arm() {
	if d.dead {
		return
	}
	t, ok := d.core.NextTimeout()
	if !ok {
		d.timer.stop()
		return
	}
	d.timer.set(d.scene, d.clock.when(t), func() {
		if d.dead || d.still() {
			return
		}
		d.run(func(now time.Time) {
			if t, ok := d.core.NextTimeout(); ok && !now.Before(t) {
				d.core.HandleTimeout(now)
			}
		})
	})
}

// events hands up what the data plane reports.
func (d *shell) events(es []xfrm.Event) {
	if len(es) > 0 {
		d.reported = d.scene.fifo(d.reported, d.scene.hop()/4, func() {
			d.run(func(now time.Time) { d.core.HandlePlane(now, es) })
		})
	}
}

// stream tells the node that a stream is up or down.
func (d *shell) stream(to cluster.NodeID, process cluster.ProcessID, up bool) {
	d.run(func(now time.Time) { d.core.HandleStream(now, to, process, up) })
}

// timer is one planned moment.
type timer struct {
	gen     uint64
	at      time.Duration
	planned bool
}

func (t *timer) stop() {
	t.gen++
	t.planned = false
}

// set has f happen at a moment, now at the earliest, instead of what was planned.
func (t *timer) set(w *scene, at time.Duration, f func()) {
	at = max(at, w.now)
	if t.planned && at == t.at {
		return
	}
	t.gen++
	gen := t.gen
	t.planned, t.at = true, at
	w.queue.push(at, func() {
		if t.gen == gen {
			t.planned = false
			f()
		}
	})
}
