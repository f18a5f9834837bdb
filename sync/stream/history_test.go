package stream

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tandem/cluster"
	statesync "tandem/sync"
)

var (
	histories = flag.Int("histories", 0, "how many random histories to run; 0: 300, or 60 with -short")
	history   = flag.Uint64("history", 0, "the only random history to run, told in full")
)

// party is a node of a random history: it sends to the other and acknowledges what
// arrives, as owner and standby do.
type party struct {
	w       *historyWorld
	e       *Endpoint
	node    cluster.NodeID
	process cluster.ProcessID
	port    uint16

	mu     sync.Mutex
	closed bool
	gate   chan struct{} // Frame waits for it
	queue  []Received    // that the node has not dealt with, if lazy
	lazy   map[cluster.ScopeID]bool
	mute   map[cluster.ScopeID]bool              // acknowledges nothing
	up     cluster.ProcessID                     // of the other, as Up and Down tell it; 0: down
	sent   map[course][][]byte                   // to the other's processes, in order
	told   map[course]uint64                     // that they acknowledged, as we were told
	have   map[course]uint64                     // frames in order from the other's processes
	acked  map[course]uint64                     // what we acknowledged
	again  map[course]bool                       // frames may come twice, because we asked
	from   map[cluster.ScopeID]cluster.ProcessID // of the last frame
	second int
	leaps  int
}

// course is a scope with the process at the other end: what is numbered by itself.
type course struct {
	scope   cluster.ScopeID
	process cluster.ProcessID
}

// scopes of a random history; the first is that of a pair.
var scopes = []cluster.ScopeID{0, 256, 300, 383}

const leap = 0xff // marks a frame that begins a copy: what was before it need not arrive

// historyWorld is two parties, with all processes that they ever were.
type historyWorld struct {
	t      *testing.T
	r      *rand.Rand
	f      *fabric
	a      *authority
	now    [2]*party
	undead []*party // former processes that have not ended
	mu     sync.Mutex
	// Processes that spoke for a node while another did. What heartbeats name changes
	// between them, so frames may come twice.
	contest map[cluster.ProcessID]bool
	all     map[cluster.ProcessID]*party
	faults  []string
	story   []string
}

func (w *historyWorld) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

func (w *historyWorld) tell(format string, args ...any) {
	w.story = append(w.story, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *historyWorld) start(i int, process cluster.ProcessID) *party {
	p := &party{
		w: w, node: cluster.NodeID(i + 1), process: process,
		lazy: map[cluster.ScopeID]bool{}, mute: map[cluster.ScopeID]bool{},
		sent: map[course][][]byte{}, told: map[course]uint64{}, have: map[course]uint64{},
		acked: map[course]uint64{}, again: map[course]bool{}, from: map[cluster.ScopeID]cluster.ProcessID{},
	}
	other := cluster.NodeID(2 - i)
	e, err := New(Options{
		Self: p.node, Process: process, TLS: w.a.tls(w.t, p.node), PeerNode: nodeOfCert, Log: slog.New(slog.DiscardHandler),
		Dial: w.f.dial,
		Handler: Handler{
			Up: func(n cluster.NodeID, process cluster.ProcessID) {
				p.mu.Lock()
				defer p.mu.Unlock()
				if p.up != 0 || n != other || p.closed {
					w.fault("node %d process %x: up %x of node %d after %x", p.node, p.process, process, n, p.up)
				}
				p.up = process
			},
			Down: func(_ cluster.NodeID, process cluster.ProcessID) {
				p.mu.Lock()
				defer p.mu.Unlock()
				if p.up != process || p.closed {
					w.fault("node %d process %x: down %x after up %x", p.node, p.process, process, p.up)
				}
				p.up = 0
			},
			Frame: p.frame,
			Ack:   p.ack,
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	p.e = e
	l, port := w.f.listen()
	p.port = port
	if err := e.Serve(l); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.all[process] = p
	for _, z := range w.undead {
		if z.node == p.node {
			w.contest[z.process], w.contest[process] = true, true
		}
	}
	w.mu.Unlock()
	w.now[i] = p
	return p
}

func (p *party) frame(r Received) {
	p.mu.Lock()
	if p.closed {
		p.w.fault("node %d process %x is given a frame after Close", p.node, p.process)
	}
	gate := p.gate
	p.mu.Unlock()
	if gate != nil {
		<-gate
	}
	p.mu.Lock()
	p.queue = append(p.queue, r)
	p.mu.Unlock()
	p.work()
}

// work deals with the queue, lazy scopes apart: the checks of what a replica relies on.
func (p *party) work() {
	p.mu.Lock()
	var acks []statesync.SendAck
	var queue, rest []Received
	for _, r := range p.queue {
		if p.lazy[r.Scope] {
			rest = append(rest, r)
		} else {
			queue = append(queue, r)
		}
	}
	p.queue = rest
	for _, r := range queue {
		owner := p.w.party(r.Process)
		seq, c := binary.BigEndian.Uint64(r.Frame), course{r.Scope, r.Process}
		have := p.have[c]
		switch {
		case owner == nil || owner.node != r.Node || r.Node == p.node:
			p.w.fault("node %d: a frame of node %d, process %x", p.node, r.Node, r.Process)
		case seq == have+1 || seq > have && r.Frame[8] == leap:
			if seq > have+1 {
				p.leaps++
			}
			p.have[c] = seq
			if !bytes.Equal(r.Frame, owner.sentTo(course{r.Scope, p.process}, seq)) {
				p.w.fault("node %d process %x: frame %d of %x in %v is not what was sent", p.node, p.process, seq, r.Process, r.Scope)
			}
		case seq > have+1:
			p.w.fault("node %d process %x: frame %d of %x in %v after %d", p.node, p.process, seq, r.Process, r.Scope, have)
		case !p.again[c] && !p.w.contested(r.Process):
			p.w.fault("node %d process %x: frame %d of %x in %v is there twice", p.node, p.process, seq, r.Process, r.Scope)
		default:
			p.second++
		}
		p.from[r.Scope] = r.Process
		if !p.mute[r.Scope] {
			p.acked[c] = p.have[c]
			acks = append(acks, statesync.SendAck{Scope: r.Scope, Node: r.Node, Process: r.Process, Seq: p.have[c]})
		}
	}
	p.mu.Unlock()
	for _, a := range acks {
		p.e.Ack(a)
	}
	for _, r := range queue {
		r.Done()
	}
}

func (w *historyWorld) contested(process cluster.ProcessID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.contest[process]
}

func (w *historyWorld) party(process cluster.ProcessID) *party {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[process]
}

func (p *party) sentTo(c course, seq uint64) []byte {
	p.w.mu.Lock() // not p.mu: both sides may ask each other
	defer p.w.mu.Unlock()
	if frames := p.sent[c]; seq <= uint64(len(frames)) {
		return frames[seq-1]
	}
	return nil
}

func (p *party) ack(_ cluster.NodeID, process cluster.ProcessID, scope cluster.ScopeID, seq uint64) {
	c := course{scope, process}
	p.w.mu.Lock()
	sent := uint64(len(p.sent[c]))
	p.w.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || seq > sent {
		p.w.fault("node %d process %x: %x acknowledged %d of %d in %v", p.node, p.process, process, seq, sent, scope)
	}
	p.told[c] = max(p.told[c], seq)
}

// send sends to the process that is up, numbered for it and the scope from 1. The first
// frame may begin a copy.
func (p *party) send(scope cluster.ScopeID, n, size int, copies bool) {
	p.mu.Lock()
	to := course{scope, p.up}
	p.mu.Unlock()
	if to.process == 0 {
		return
	}
	for i := range n {
		p.w.mu.Lock()
		seq := uint64(len(p.sent[to])) + 1
		b := frameOf(seq, 11+p.w.r.IntN(size))
		for i := 11; i < len(b); i += 61 {
			b[i] = byte(p.w.r.Uint32())
		}
		restart := copies && i == 0
		if restart {
			b[8] = leap
		}
		binary.BigEndian.PutUint16(b[9:], uint16(scope))
		p.sent[to] = append(p.sent[to], b)
		p.w.mu.Unlock()
		p.e.Send(statesync.SendFrame{Scope: scope, Node: 3 - p.node, Process: to.process, Seq: seq, Restart: restart, Frame: b})
	}
}

// free lets the party go on if it was held up.
func (p *party) free() {
	p.mu.Lock()
	gate := p.gate
	p.gate = nil
	clear(p.lazy)
	clear(p.mute)
	p.mu.Unlock()
	if gate != nil {
		close(gate)
	}
	p.work()
}

// catchUp acknowledges what there is.
func (p *party) catchUp() {
	for _, scope := range scopes {
		p.mu.Lock()
		c := course{scope, p.from[scope]}
		a := statesync.SendAck{Scope: scope, Node: 3 - p.node, Process: c.process, Seq: p.have[c]}
		p.acked[c] = a.Seq
		p.mu.Unlock()
		if c.process != 0 {
			p.e.Ack(a)
		}
	}
}

var devices = []string{"hb1", "hb2"}

func (w *historyWorld) meet(i int) {
	p, o := w.now[i], w.now[1-i]
	links := []cluster.Link{{Device: "hb1"}, {Device: "hb2"}}
	p.e.SetPeers(o.node, o.process, links, o.port)
}

func (w *historyWorld) end(p *party) {
	p.free()
	p.e.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
}

// check compares what senders were told with what receivers have.
func (w *historyWorld) check() {
	for _, p := range w.all {
		for c, told := range p.told {
			o, back := w.all[c.process], course{c.scope, p.process}
			if acked, have := o.acked[back], o.have[back]; told > acked || acked > have {
				w.fault("%x was told that %x acknowledged %d in %v; that has %d and acknowledged %d", p.process, c.process, told, c.scope, have, acked)
			}
		}
	}
}

func (w *historyWorld) step(next *cluster.ProcessID) {
	i, d, scope := w.r.IntN(2), devices[w.r.IntN(2)], scopes[w.r.IntN(len(scopes))]
	p := w.now[i]
	switch n := w.r.IntN(100); {
	case n < 3:
		w.tell("node %d begins a copy in %v while all is cut", p.node, scope)
		for _, d := range devices {
			w.f.sever(d)
		}
		p.send(scope, 1+w.r.IntN(5), 100, false)
		p.send(scope, 1+w.r.IntN(5), 100, true)
		for _, d := range devices {
			w.f.mend(d)
		}
	case n < 30:
		k, size := 1+w.r.IntN(30), 1+w.r.IntN(2000)
		if w.r.IntN(6) == 0 {
			size = 1 + w.r.IntN(200<<10)
		}
		copies := w.r.IntN(5) == 0
		w.tell("node %d sends %d of up to %d bytes in %v, a copy: %v", p.node, k, size, scope, copies)
		p.send(scope, k, size, copies)
		for _, z := range w.undead {
			z.send(scope, 1, size, false)
		}
	case n < 38:
		w.tell("%s is cut", d)
		w.f.sever(d)
	case n < 46:
		after := w.r.IntN(60 << 10)
		w.tell("%s will be cut after %d bytes", d, after)
		w.f.severAfter(d, after)
	case n < 54:
		w.tell("%s falls silent", d)
		w.f.hush(d)
	case n < 68:
		w.tell("%s mends", d)
		w.f.mend(d)
	case n < 72:
		delay, rate := time.Duration(w.r.IntN(60))*time.Millisecond, 0
		if w.r.IntN(2) == 0 {
			rate = 200_000 + w.r.IntN(10_000_000)
		}
		w.tell("%s takes %v, %d bytes/s", d, delay, rate)
		w.f.change(d, func(l *line) { l.delay, l.rate = delay, rate })
	case n < 76:
		w.tell("node %d begins again as %x", p.node, *next)
		if w.r.IntN(3) == 0 && len(w.undead) < 3 {
			w.tell("and %x lives on", p.process)
			w.undead = append(w.undead, p)
		} else {
			w.end(p)
		}
		w.start(i, *next)
		*next++
		w.meet(i)
		if w.r.IntN(3) > 0 {
			w.meet(1 - i)
		} else {
			w.tell("and nobody is told")
		}
	case n < 78 && len(w.undead) > 0:
		z := w.undead[0]
		w.undead = w.undead[1:]
		w.tell("%x ends", z.process)
		w.end(z)
	case n < 80:
		w.tell("node %d is told", p.node)
		w.meet(i)
	case n < 84:
		w.tell("node %d asks again in %v", p.node, scope)
		p.mu.Lock()
		for process := range w.all {
			p.again[course{scope, process}] = true
		}
		p.mu.Unlock()
		p.e.Resync(3-p.node, scope)
	case n < 88:
		w.tell("node %d's handler waits", p.node)
		p.mu.Lock()
		if p.gate == nil {
			p.gate = make(chan struct{})
		}
		p.mu.Unlock()
	case n < 91:
		w.tell("node %d is lazy in %v", p.node, scope)
		p.mu.Lock()
		p.lazy[scope] = true
		p.mu.Unlock()
	case n < 94:
		w.tell("node %d acknowledges nothing in %v", p.node, scope)
		p.mu.Lock()
		p.mute[scope] = true
		p.mu.Unlock()
	case n < 97:
		w.tell("node %d goes on", p.node)
		p.free()
	default:
		w.tell("node %d acknowledges", p.node)
		p.catchUp()
	}
	wait := time.Duration(w.r.IntN(100)) * time.Millisecond
	if w.r.IntN(5) == 0 {
		wait = time.Duration(w.r.IntN(4000)) * time.Millisecond
	}
	pass(wait)
}

// heal mends everything and waits for what must come: all that was sent to the
// living processes, acknowledged.
func (w *historyWorld) heal() {
	w.tell("all heals")
	for i, d := range devices {
		w.f.change(d, func(l *line) { l.rate, l.delay = 0, time.Millisecond })
		w.f.mend(d)
		w.meet(i)
	}
	for _, p := range w.now {
		p.free()
	}
	for _, z := range w.undead {
		w.end(z)
	}
	// The links are back after a back-off and perhaps an attempt that was under way.
	pass(2*maxBackoff + openTimeout)
	for _, p := range w.now {
		if o := w.now[2-p.node]; p.up != o.process {
			w.fault("after healing %x is up for node %d, not %x", p.up, p.node, o.process)
		}
		for _, scope := range scopes {
			p.send(scope, 5, 100, false)
		}
		p.catchUp()
	}
	pass(time.Second)
	for _, p := range w.now {
		o := w.now[2-p.node]
		for _, scope := range scopes {
			there, back := course{scope, o.process}, course{scope, p.process}
			if sent, have, told := uint64(len(p.sent[there])), o.have[back], p.told[there]; have != sent || told != sent {
				w.fault("after healing %x has %d and acknowledged %d of %d from %x in %v", o.process, have, told, sent, p.process, scope)
			}
		}
		if frames, bytes := p.e.kept(o.node); frames != 0 || bytes != 0 {
			w.fault("after healing %d frames of %d bytes are kept", frames, bytes)
		}
		for _, d := range devices {
			if n := w.f.open(d); n != 2 {
				w.fault("after healing %s has %d connections", d, n)
			}
		}
	}
}

// Random histories over the real gRPC and TLS in fake time. The seed decides what
// happens when; goroutines that run in the same instant may still interleave
// differently from run to run, so a fault's story is told with its seed. Acknowledged
// frames are there, what is there is a prefix of what was sent, and after healing it is
// all of it, in every scope; Up and Down alternate; no goroutine is left (synctest).
func TestBubbleHistories(t *testing.T) {
	n := *histories
	switch {
	case n == 0 && testing.Short():
		n = 60
	case n == 0:
		n = 300
	}
	first := uint64(1)
	if *history != 0 {
		first, n = *history, 1
	}
	var frames, conns, processes, twice, leaps int
	for seed := first; seed < first+uint64(n); seed++ {
		synctest.Test(t, func(t *testing.T) {
			w := &historyWorld{
				t: t, r: rand.New(rand.NewPCG(seed, 1)), a: newAuthority(t), all: map[cluster.ProcessID]*party{}, contest: map[cluster.ProcessID]bool{},
				f: newFabric(map[string]time.Duration{"hb1": quick, "hb2": slow}),
			}
			if w.r.IntN(3) > 0 {
				w.f.kernel = 2 * time.Second
			}
			next := cluster.ProcessID(0xa3)
			w.start(0, 0xa1)
			w.start(1, 0xa2)
			w.meet(0)
			w.meet(1)
			pass(time.Second)
			for range 20 + w.r.IntN(40) {
				w.step(&next)
			}
			w.heal()
			for _, p := range w.now {
				w.end(p)
			}
			pass(2 * time.Second)
			w.check()
			if len(w.faults) > 0 {
				t.Errorf("history %d:\n%s\n%s", seed, strings.Join(w.faults, "\n"), strings.Join(w.story, "\n"))
			} else if *history != 0 {
				t.Log(strings.Join(w.story, "\n"))
			}
			for _, p := range w.all {
				twice += p.second
				leaps += p.leaps
				for _, have := range p.have {
					frames += int(have)
				}
			}
			conns += len(w.f.dials("hb1")) + len(w.f.dials("hb2"))
			processes += len(w.all)
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%d histories: %d processes, %d dials, %d frames, %d of them again when asked, %d copies that took the place of others", n, processes, conns, frames, twice, leaps)
}
