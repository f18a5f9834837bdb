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

// pipes are the replication streams between machines H with daemons D.
type pipes[H streamEnd[D], D streamDaemon[D]] struct {
	scene  *scene
	all    [][]*pipe[H, D] // from, to, by number
	delay  func() time.Duration
	opens  func(p *pipe[H, D]) bool                        // a connection can be opened now
	whole  func(p *pipe[H, D]) bool                        // nothing lies between the two
	leaves func(p *pipe[H, D], d D, e statesync.SendFrame) // a frame is sent, or sent again; may be nil
}

// streamEnd is a machine from or to which a stream leads.
type streamEnd[D any] interface {
	machineOf() *machine
	daemonOf() D // zero: none runs
}

type streamDaemon[D any] interface {
	comparable
	shellOf() *shell
	takesFrame(now time.Time, from D, e statesync.SendFrame) error
	takesAck(now time.Time, from D, e statesync.SendAck)
}

// pipe is a replication stream, all links together: frames in order, once, and
// acknowledgements back. What is unacknowledged is sent again when it is opened again.
type pipe[H streamEnd[D], D streamDaemon[D]] struct {
	from, to H
	toward   cluster.ProcessID // the other's process, as heartbeats name it
	heard    bool
	up       bool
	gen      uint64 // of the connection
	tries    uint64 // generation of dialling
	unacked  []statesync.SendFrame
	size     int                        // bytes
	have     map[cluster.ScopeID]uint64 // what the receiver has acknowledged; its hello says so
	last     time.Duration
	lastAck  time.Duration
	stalled  time.Duration // until when nothing arrives
	cutAt    time.Duration // what was sent after this was lost with its process
	cutOf    cluster.ProcessID
}

// init is for as many machines, which have the numbers from 1 on.
func (s *pipes[H, D]) init(w *scene, machines int) {
	s.scene = w
	for range machines + 1 {
		s.all = append(s.all, make([]*pipe[H, D], machines+1))
	}
}

func (s *pipes[H, D]) pipe(from, to H) *pipe[H, D] {
	at := &s.all[from.machineOf().id][to.machineOf().id]
	if *at == nil {
		*at = &pipe[H, D]{from: from, to: to}
	}
	return *at
}

// each calls f for every stream that was ever used.
func (s *pipes[H, D]) each(f func(p *pipe[H, D])) {
	for _, from := range s.all {
		for _, p := range from {
			if p != nil {
				f(p)
			}
		}
	}
}

// stall keeps everything up until then.
func (p *pipe[H, D]) stall(until time.Duration) { p.stalled = max(p.stalled, until) }

// heal ends stalls.
func (s *pipes[H, D]) heal() {
	s.each(func(p *pipe[H, D]) { p.stalled = min(p.stalled, s.scene.now) })
}

// drop forgets frames.
func (p *pipe[H, D]) drop(which func(statesync.SendFrame) bool) {
	p.unacked = slices.DeleteFunc(p.unacked, func(x statesync.SendFrame) bool {
		gone := which(x)
		if gone {
			p.size -= len(x.Frame)
		}
		return gone
	})
}

// hears is what heartbeats say about the other end.
func (s *pipes[H, D]) hears(p *pipe[H, D], process cluster.ProcessID, heard bool) {
	if process != 0 && process != p.toward {
		s.down(p)
		p.toward, p.unacked, p.size, p.have = process, nil, 0, nil
	}
	if p.heard == heard && (p.up || !heard) {
		return
	}
	p.heard = heard
	p.tries++
	if !heard {
		s.down(p)
		return
	}
	s.dial(p, p.tries, 50*time.Millisecond)
}

func (s *pipes[H, D]) dial(p *pipe[H, D], try uint64, backoff time.Duration) {
	w, d := s.scene, p.from.daemonOf()
	var none D
	w.after(between(w.chance, 500*time.Microsecond, 6*time.Millisecond), func() {
		if p.tries != try || p.up || !p.heard || p.from.daemonOf() != d || d == none || d.shellOf().dead {
			return
		}
		o := p.to.daemonOf()
		if s.opens(p) && o != none && o.shellOf().process == p.toward && !o.shellOf().stopped && w.now >= p.stalled {
			p.up = true
			p.gen++
			d.shellOf().stream(p.to.machineOf().id, p.toward, true)
			s.greeted(p, d, o)
			for _, f := range slices.Clone(p.unacked) {
				s.transmit(p, d, f)
			}
			return
		}
		w.after(backoff, func() {
			if p.tries == try {
				s.dial(p, try, min(time.Second, 2*backoff))
			}
		})
	})
}

// greeted: the receiver's hello says what it acknowledged while nothing could carry that.
func (s *pipes[H, D]) greeted(p *pipe[H, D], d, o D) {
	var lost []statesync.SendAck
	for _, f := range p.unacked {
		if seq := p.have[f.Scope]; f.Seq <= seq && !slices.ContainsFunc(lost, func(a statesync.SendAck) bool { return a.Scope == f.Scope }) {
			lost = append(lost, statesync.SendAck{Scope: f.Scope, Node: cluster.NodeID(p.from.machineOf().id), Process: d.shellOf().process, Seq: seq})
		}
	}
	for _, a := range lost {
		s.ack(p, o, a)
	}
}

func (s *pipes[H, D]) down(p *pipe[H, D]) {
	p.gen++
	if !p.up {
		return
	}
	p.up = false
	var none D
	if d := p.from.daemonOf(); d != none {
		d.shellOf().stream(p.to.machineOf().id, p.toward, false)
	}
}

// reset is a connection that breaks; it is dialled again at once.
func (s *pipes[H, D]) reset(p *pipe[H, D]) {
	s.down(p)
	p.tries++
	if p.heard {
		s.dial(p, p.tries, 50*time.Millisecond)
	}
}

// died: a process on one machine is gone. What it had handed to its stream to another
// may have left or not, up to some moment.
func (s *pipes[H, D]) died(on, other H, process cluster.ProcessID) {
	w, p := s.scene, s.pipe(on, other)
	p.cutAt, p.cutOf = w.now, process
	if chance(w.chance, 0.5) {
		p.cutAt -= between(w.chance, 0, 300*time.Microsecond)
	}
	p.up, p.heard, p.toward, p.unacked, p.size, p.have = false, false, 0, nil, 0, nil
	p.tries++
	q := s.pipe(other, on)
	if q.toward == process && on.machineOf().powered {
		w.after(between(w.chance, 100*time.Microsecond, time.Millisecond), func() {
			if q.toward == process {
				s.reset(q)
			}
		})
	}
}

// frame hands a frame to the stream.
func (s *pipes[H, D]) frame(p *pipe[H, D], d D, e statesync.SendFrame) {
	s.scene.Result.Frames++
	if e.Process != p.toward {
		return
	}
	if e.Restart {
		p.drop(func(x statesync.SendFrame) bool { return x.Scope == e.Scope })
	}
	p.unacked = append(p.unacked, e)
	if p.size += len(e.Frame); p.size > 256<<20 {
		s.scene.violate(RuleBounded, "%s keeps %d bytes of frames for a member", p.from.machineOf().name, p.size)
	}
	if p.up {
		s.transmit(p, d, e)
	}
}

// flight is when something sent now arrives: after what was sent before, and after a
// stall.
func (s *pipes[H, D]) flight(p *pipe[H, D], last time.Duration) time.Duration {
	return max(last, s.scene.now+s.delay(), p.stalled)
}

// numbered names a frame or an acknowledgement; a pair has but one scope.
func numbered(what string, seq uint64, scope cluster.ScopeID) string {
	if scope == 0 {
		return fmt.Sprintf("%s %d", what, seq)
	}
	return fmt.Sprintf("%s %d, %v", what, seq, scope)
}

func (s *pipes[H, D]) transmit(p *pipe[H, D], d D, e statesync.SendFrame) {
	w, sender := s.scene, d.shellOf()
	if s.leaves != nil {
		s.leaves(p, d, e)
	}
	gen, sent := p.gen, w.now
	p.last = s.flight(p, p.last)
	w.message(p.from.machineOf().name, p.to.machineOf().name, trace.ClassFrame, p.last, func() string { return numbered("frame", e.Seq, e.Scope) })
	w.queue.push(p.last, func() {
		var none D
		o := p.to.daemonOf()
		lost := p.cutOf == sender.process && sent > p.cutAt
		// The bytes are in the receiver's kernel or not: the sender's death does not
		// take them back.
		if lost || o == none || o.shellOf().process != e.Process || !s.whole(p) || gen != p.gen && !sender.dead {
			return
		}
		o.shellOf().run(func(now time.Time) {
			if err := o.takesFrame(now, d, e); errors.Is(err, statesync.ErrGap) && p.from.daemonOf() == d {
				w.Result.Gaps++
				s.reset(p) // what is unacknowledged comes again, once
			}
		})
	})
}

// ack carries an acknowledgement back that d gives.
func (s *pipes[H, D]) ack(p *pipe[H, D], d D, e statesync.SendAck) {
	w, owner := s.scene, p.from.daemonOf()
	var none D
	if owner == none || owner.shellOf().process != e.Process {
		return
	}
	if p.toward == d.shellOf().process {
		if p.have == nil {
			p.have = map[cluster.ScopeID]uint64{}
		}
		p.have[e.Scope] = max(p.have[e.Scope], e.Seq)
	}
	if !p.up {
		return
	}
	gen := p.gen
	p.lastAck = s.flight(p, p.lastAck)
	w.message(p.to.machineOf().name, p.from.machineOf().name, trace.ClassAck, p.lastAck, func() string { return numbered("ack", e.Seq, e.Scope) })
	w.queue.push(p.lastAck, func() {
		if gen != p.gen || p.from.daemonOf() != owner || !s.whole(p) {
			return
		}
		p.drop(func(x statesync.SendFrame) bool { return x.Scope == e.Scope && x.Seq <= e.Seq })
		owner.shellOf().run(func(now time.Time) { owner.takesAck(now, d, e) })
	})
}
