package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/sim/trace"
	statesync "tandem/sync"
)

var errDisk = errors.New("no space left on device")

// hbLink is one heartbeat link. Index 0 is the direction from gw1 to gw2.
type hbLink struct {
	cut  [2]int // how many faults cut it
	loss [2]float64
}

var heartbeatKey = ipsec.NewKey([]byte("example: heartbeat key of the simulation"))

func (w *world) linksWhole() bool {
	for _, l := range w.links {
		if l.cut != [2]int{} || l.loss != [2]float64{} {
			return false
		}
	}
	return true
}

// connected: TCP works, which needs both directions of a link.
func (w *world) connected() bool {
	for _, l := range w.links {
		if l.cut == [2]int{} {
			return w.gw[0].powered && w.gw[1].powered
		}
	}
	return false
}

func (w *world) sendHeartbeat(h *host, e cluster.SendHeartbeat) {
	to, dir := h.other(), int(h.id)-1
	hb := &e.Heartbeat
	if w.s.Real {
		b, err := hb.Marshal(heartbeatKey)
		if err == nil {
			hb, err = cluster.DecodeHeartbeat(heartbeatKey, b)
		}
		if err != nil {
			w.violate(RuleEffects, "%s: heartbeat: %v", h.name, err)
			return
		}
	}
	for i := range w.links {
		l := &w.links[i]
		for range e.Copies {
			if l.cut[dir] > 0 || chance(w.chance, l.loss[dir]) || !to.powered {
				continue
			}
			w.after(between(w.chance, 50*time.Microsecond, 600*time.Microsecond), func() {
				to.onGuard(func() {
					if to.asleep {
						to.wake()
					}
					x := *hb
					w.rule.hears(to, &x)
					_ = to.guard.HandleHeartbeat(to.guardTime(), cluster.Link{Device: fmt.Sprintf("hb%d", i), Addr: fmt.Sprintf("fe80::%d", h.id)}, &x)
					to.carryGuard()
				})
			})
		}
	}
}

// pipe is the replication stream from one gateway to the other, all links together:
// frames in order, once, and acknowledgements back. What is unacknowledged is sent
// again when it is opened again.
type pipe struct {
	from, to *host
	toward   cluster.ProcessID // the other's process, as heartbeats name it
	heard    bool
	up       bool
	gen      uint64 // of the connection
	tries    uint64 // generation of dialling
	unacked  []statesync.SendFrame
	size     int // bytes
	last     time.Duration
	lastAck  time.Duration
	stalled  time.Duration // until when nothing arrives
	cutAt    time.Duration // what was sent after this was lost with its process
	cutOf    cluster.ProcessID
}

func (w *world) pipe(from *host) *pipe {
	a := int(from.id) - 1
	p := w.streams[a][1-a]
	if p == nil {
		p = &pipe{from: from, to: from.other()}
		w.streams[a][1-a] = p
	}
	return p
}

// pipeHears is what heartbeats say about the other end of h's stream.
func (w *world) pipeHears(h *host, process cluster.ProcessID, heard bool) {
	p := w.pipe(h)
	if process != 0 && process != p.toward {
		w.pipeDown(p)
		p.toward, p.unacked, p.size = process, nil, 0
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

func (w *world) dial(p *pipe, try uint64, backoff time.Duration) {
	d := p.from.d
	w.after(between(w.chance, 500*time.Microsecond, 6*time.Millisecond), func() {
		if p.tries != try || p.up || !p.heard || p.from.d != d || d == nil || d.dead {
			return
		}
		o := p.to.d
		if w.connected() && o != nil && o.process == p.toward && !p.to.frozen && !o.stopped && w.now >= p.stalled {
			p.up = true
			p.gen++
			process := p.toward
			d.run(func(now time.Time) { d.n.HandleStream(now, p.to.id, process, true) })
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

func (w *world) pipeDown(p *pipe) {
	p.gen++
	if !p.up {
		return
	}
	p.up = false
	if d := p.from.d; d != nil {
		process := p.toward
		d.run(func(now time.Time) { d.n.HandleStream(now, p.to.id, process, false) })
	}
}

// breakPipe is a reset connection; it is dialled again at once.
func (w *world) breakPipe(p *pipe) {
	w.pipeDown(p)
	p.tries++
	if p.heard {
		w.dial(p, p.tries, 50*time.Millisecond)
	}
}

// pipesDied: a process is gone. What it had handed to its streams may have left or
// not, up to some moment.
func (w *world) pipesDied(h *host, process cluster.ProcessID) {
	p := w.pipe(h)
	p.cutAt, p.cutOf = w.now, process
	if chance(w.chance, 0.5) {
		p.cutAt -= between(w.chance, 0, 300*time.Microsecond)
	}
	p.up, p.heard, p.toward, p.unacked, p.size = false, false, 0, nil, 0
	p.tries++
	q := w.pipe(h.other())
	if q.toward == process && h.powered {
		w.after(between(w.chance, 100*time.Microsecond, time.Millisecond), func() {
			if q.toward == process {
				w.breakPipe(q)
			}
		})
	}
}

// sendFrame hands a frame to the stream.
func (w *world) sendFrame(d *daemon, e statesync.SendFrame) {
	p := w.pipe(d.h)
	w.Result.Frames++
	if e.Process != p.toward {
		return
	}
	if e.Restart {
		p.unacked, p.size = nil, 0
	}
	p.unacked = append(p.unacked, e)
	if p.size += len(e.Frame); p.size > 256<<20 {
		w.violate(RuleBounded, "%s keeps %d bytes of frames for a member", d.h.name, p.size)
	}
	if p.up {
		w.transmit(p, d, e)
	}
}

func (w *world) streamDelay() time.Duration {
	if w.s.Setup.TightLoop {
		return between(w.chance, 30*time.Microsecond, 80*time.Microsecond)
	}
	return between(w.chance, 30*time.Microsecond, 800*time.Microsecond)
}

// flight is when something sent now arrives: after what was sent before, and
// after a stall.
func (w *world) flight(p *pipe, last time.Duration) time.Duration {
	return max(last, w.now+w.streamDelay(), p.stalled)
}

func (w *world) transmit(p *pipe, d *daemon, e statesync.SendFrame) {
	if w.now < w.echo {
		w.after(w.streamDelay(), func() {
			d.run(func(now time.Time) { _ = d.n.HandleFrame(now, p.from.id, d.process, e.Frame) })
		})
	}
	gen, sent := p.gen, w.now
	p.last = w.flight(p, p.last)
	w.message(p.from.name, p.to.name, trace.ClassFrame, p.last, func() string { return fmt.Sprintf("frame %d", e.Seq) })
	w.queue.push(p.last, func() {
		o := p.to.d
		lost := p.cutOf == d.process && sent > p.cutAt
		// The bytes are in the receiver's kernel or not: the sender's death does not
		// take them back.
		if lost || o == nil || o.process != e.Process || !w.connected() || gen != p.gen && !d.dead {
			return
		}
		o.run(func(now time.Time) {
			w.rule.frame(o, d, e)
			if err := o.n.HandleFrame(now, p.from.id, d.process, e.Frame); errors.Is(err, statesync.ErrGap) && p.from.d == d {
				w.Result.Gaps++
				w.breakPipe(p)
			}
		})
	})
}

// sendAck carries an acknowledgement back.
func (w *world) sendAck(d *daemon, e statesync.SendAck) {
	p := w.pipe(d.h.other())
	owner := p.from.d
	if !p.up || owner == nil || owner.process != e.Process {
		return
	}
	gen := p.gen
	p.lastAck = w.flight(p, p.lastAck)
	w.message(p.to.name, p.from.name, trace.ClassAck, p.lastAck, func() string { return fmt.Sprintf("ack %d", e.Seq) })
	w.queue.push(p.lastAck, func() {
		if gen != p.gen || p.from.d != owner || !w.connected() {
			return
		}
		for len(p.unacked) > 0 && p.unacked[0].Seq <= e.Seq {
			p.size -= len(p.unacked[0].Frame)
			p.unacked = p.unacked[1:]
		}
		owner.run(func(now time.Time) { owner.n.HandleAck(now, d.h.id, d.process, e.Seq) })
	})
}
