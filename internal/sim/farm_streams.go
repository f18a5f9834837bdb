package sim

import (
	"time"

	statesync "tandem/sync"
)

type farmPipe = pipe[*member, *farmDaemon]

// initStreams makes the replication streams between the members.
func (w *farm) initStreams() {
	w.streams.init(&w.scene, len(w.members)-1)
	w.streams.delay = func() time.Duration {
		d := between(w.chance, 30*time.Microsecond, 800*time.Microsecond)
		if w.s.Setup.TightLoop {
			d = between(w.chance, 30*time.Microsecond, 80*time.Microsecond)
		}
		return d
	}
	w.streams.opens = func(p *farmPipe) bool { return w.reach(p.from, p.to) }
	w.streams.whole = func(p *farmPipe) bool { return p.from.side == p.to.side }
}

func (w *farm) pipesDied(d *farmDaemon) {
	for _, o := range w.members[1:] {
		if o != d.m {
			w.streams.died(d.m, o, d.process)
		}
	}
}

func (d *farmDaemon) takesFrame(now time.Time, from *farmDaemon, e statesync.SendFrame) error {
	d.m.w.rule.handed(d, from, e)
	return d.f.HandleFrame(now, from.m.id, from.process, e.Scope, e.Frame)
}

func (d *farmDaemon) takesAck(now time.Time, from *farmDaemon, e statesync.SendAck) {
	d.f.HandleAck(now, from.m.id, from.process, e.Scope, e.Seq)
}
