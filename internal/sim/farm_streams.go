package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/sim/trace"
	statesync "tandem/sync"
)

// farmPipe is the replication stream from one member to another: frames of all scopes
// in order, once, and acknowledgements back. What is unacknowledged is sent again when
// it is opened again.
type farmPipe struct {
	from, to *member
	toward   cluster.ProcessID // the other's process, as heartbeats name it
	heard    bool
	up       bool
	gen      uint64 // of the connection
	tries    uint64 // generation of dialling
	unacked  []statesync.SendFrame
	last     time.Duration
	lastAck  time.Duration
	stalled  time.Duration // until when nothing arrives
	cutAt    time.Duration // what was sent after this was lost with its process
	cutOf    cluster.ProcessID
}

func (w *farm) pipe(from, to *member) *farmPipe {
	p := w.pipes[from.id][to.id]
	if p == nil {
		p = &farmPipe{from: from, to: to}
		w.pipes[from.id][to.id] = p
	}
	return p
}

// pipeHears is what heartbeats say about the other end of a stream.
func (w *farm) pipeHears(from, to *member, process cluster.ProcessID, heard bool) {
	p := w.pipe(from, to)
	if process != 0 && process != p.toward {
		w.pipeDown(p)
		p.toward, p.unacked = process, nil
	}
	if p.heard == heard && (p.up || !heard) {
		return
	}
	p.heard = heard
	p.tries++
	if !heard {
		w.pipeDown(p)
		return
	}
	w.dial(p, p.tries, 50*time.Millisecond)
}

func (w *farm) dial(p *farmPipe, try uint64, backoff time.Duration) {
	d := p.from.d
	w.after(between(w.chance, 500*time.Microsecond, 6*time.Millisecond), func() {
		if p.tries != try || p.up || !p.heard || p.from.d != d || d == nil || d.dead {
			return
		}
		o := p.to.d
		if w.reach(p.from, p.to) && o != nil && o.process == p.toward && !o.stopped && w.now >= p.stalled {
			p.up = true
			p.gen++
			process := p.toward
			d.run(func(now time.Time) { d.f.HandleStream(now, p.to.id, process, true) })
			for _, f := range slices.Clone(p.unacked) {
				w.transmit(p, d, f)
			}
			return
		}
		w.after(backoff, func() {
			if p.tries == try {
				w.dial(p, try, min(time.Second, 2*backoff))
			}
		})
	})
}

func (w *farm) pipeDown(p *farmPipe) {
	p.gen++
	if !p.up {
		return
	}
	p.up = false
	if d := p.from.d; d != nil {
		process := p.toward
		d.run(func(now time.Time) { d.f.HandleStream(now, p.to.id, process, false) })
	}
}

// breakPipe is a reset connection; it is dialled again at once.
func (w *farm) breakPipe(p *farmPipe) {
	w.pipeDown(p)
	p.tries++
	if p.heard {
		w.dial(p, p.tries, 50*time.Millisecond)
	}
}

// pipesDied: a process is gone. What it had handed to its streams may have left or not,
// up to some moment.
func (w *farm) pipesDied(d *farmDaemon) {
	for _, o := range w.members[1:] {
		if o == d.m {
			continue
		}
		p := w.pipe(d.m, o)
		p.cutAt, p.cutOf = w.now, d.process
		if chance(w.chance, 0.5) {
			p.cutAt -= between(w.chance, 0, 300*time.Microsecond)
		}
		p.up, p.heard, p.toward, p.unacked = false, false, 0, nil
		p.tries++
		q := w.pipe(o, d.m)
		if q.toward == d.process && d.m.powered {
			w.after(between(w.chance, 100*time.Microsecond, time.Millisecond), func() {
				if q.toward == d.process {
					w.breakPipe(q)
				}
			})
		}
	}
}

// sendFrame hands a frame to the stream.
func (w *farm) sendFrame(d *farmDaemon, e statesync.SendFrame) {
	p := w.pipe(d.m, w.members[e.Node])
	w.Result.Frames++
	if e.Process != p.toward {
		return
	}
	if e.Restart {
		p.unacked = slices.DeleteFunc(p.unacked, func(x statesync.SendFrame) bool { return x.Scope == e.Scope })
	}
	p.unacked = append(p.unacked, e)
	if p.up {
		w.transmit(p, d, e)
	}
}

// flight is when something sent now arrives: after what was sent before, and after a stall.
func (w *farm) flight(p *farmPipe, last time.Duration) time.Duration {
	d := between(w.chance, 30*time.Microsecond, 800*time.Microsecond)
	if w.s.Setup.TightLoop {
		d = between(w.chance, 30*time.Microsecond, 80*time.Microsecond)
	}
	return max(last, w.now+d, p.stalled)
}

func (w *farm) transmit(p *farmPipe, d *farmDaemon, e statesync.SendFrame) {
	gen, sent := p.gen, w.now
	p.last = w.flight(p, p.last)
	w.message(p.from.name, p.to.name, trace.ClassFrame, p.last, func() string { return fmt.Sprintf("frame %d, %v", e.Seq, e.Scope) })
	w.queue.push(p.last, func() {
		o := p.to.d
		lost := p.cutOf == d.process && sent > p.cutAt
		if lost || o == nil || o.process != e.Process || p.from.side != p.to.side || gen != p.gen && !d.dead {
			return
		}
		o.run(func(now time.Time) {
			w.rule.handed(o, d, e)
			err := o.f.HandleFrame(now, p.from.id, d.process, e.Scope, e.Frame)
			if errors.Is(err, statesync.ErrGap) {
				w.Result.Gaps++
				if p.from.d == d {
					w.breakPipe(p) // what is unacknowledged comes again, once
				}
			}
		})
	})
}

// sendAck carries an acknowledgement back.
func (w *farm) sendAck(d *farmDaemon, e statesync.SendAck) {
	p := w.pipe(w.members[e.Node], d.m)
	owner := p.from.d
	if !p.up || owner == nil || owner.process != e.Process {
		return
	}
	gen := p.gen
	p.lastAck = w.flight(p, p.lastAck)
	w.message(p.to.name, p.from.name, trace.ClassAck, p.lastAck, func() string { return fmt.Sprintf("ack %d, %v", e.Seq, e.Scope) })
	w.queue.push(p.lastAck, func() {
		if gen != p.gen || p.from.d != owner || p.from.side != p.to.side {
			return
		}
		p.unacked = slices.DeleteFunc(p.unacked, func(x statesync.SendFrame) bool { return x.Scope == e.Scope && x.Seq <= e.Seq })
		owner.run(func(now time.Time) { owner.f.HandleAck(now, d.m.id, d.process, e.Scope, e.Seq) })
	})
}
