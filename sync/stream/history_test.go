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
	lazy   bool
	mute   bool                           // acknowledges nothing
	up     cluster.ProcessID              // of the other, as Up and Down tell it; 0: down
	sent   map[cluster.ProcessID][][]byte // to the other's processes, in order
	told   map[cluster.ProcessID]uint64   // that they acknowledged, as we were told
	have   map[cluster.ProcessID]uint64   // frames in order from the other's processes
	acked  map[cluster.ProcessID]uint64   // what we acknowledged
	again  map[cluster.ProcessID]bool     // frames may come twice, because we asked
	from   cluster.ProcessID              // of the last frame
	second int
}

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
		sent: map[cluster.ProcessID][][]byte{}, told: map[cluster.ProcessID]uint64{}, have: map[cluster.ProcessID]uint64{},
		acked: map[cluster.ProcessID]uint64{}, again: map[cluster.ProcessID]bool{},
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
	lazy := p.lazy
	p.mu.Unlock()
	if !lazy {
		p.work()
	}
}

// work deals with the queue: the checks of what a replica relies on.
func (p *party) work() {
	p.mu.Lock()
	var acks []statesync.SendAck
	queue := p.queue
	p.queue = nil
	for _, r := range queue {
		owner := p.w.party(r.Process)
		seq := binary.BigEndian.Uint64(r.Frame)
		switch have := p.have[r.Process]; {
		case owner == nil || owner.node != r.Node || r.Node == p.node:
			p.w.fault("node %d: a frame of node %d, process %x", p.node, r.Node, r.Process)
		case seq == have+1:
			p.have[r.Process] = seq
			if !bytes.Equal(r.Frame, owner.sentTo(p.process, seq)) {
				p.w.fault("node %d process %x: frame %d of %x is not what was sent", p.node, p.process, seq, r.Process)
			}
		case seq > have+1:
			p.w.fault("node %d process %x: frame %d of %x after %d", p.node, p.process, seq, r.Process, have)
		case !p.again[r.Process] && !p.w.contested(r.Process):
			p.w.fault("node %d process %x: frame %d of %x is there twice", p.node, p.process, seq, r.Process)
		default:
			p.second++
		}
		p.from = r.Process
		if !p.mute {
			p.acked[r.Process] = p.have[r.Process]
			acks = append(acks, statesync.SendAck{Node: r.Node, Process: r.Process, Seq: p.have[r.Process]})
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

func (p *party) sentTo(process cluster.ProcessID, seq uint64) []byte {
	p.w.mu.Lock() // not p.mu: both sides may ask each other
	defer p.w.mu.Unlock()
	if frames := p.sent[process]; seq <= uint64(len(frames)) {
		return frames[seq-1]
	}
	return nil
}

func (p *party) ack(_ cluster.NodeID, process cluster.ProcessID, seq uint64) {
	p.w.mu.Lock()
	sent := uint64(len(p.sent[process]))
	p.w.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || seq > sent {
		p.w.fault("node %d process %x: %x acknowledged %d of %d", p.node, p.process, process, seq, sent)
	}
	p.told[process] = max(p.told[process], seq)
}

// send sends to the process that is up, numbered for it from 1.
func (p *party) send(n, size int) {
	p.mu.Lock()
	to := p.up
	p.mu.Unlock()
	if to == 0 {
		return
	}
	for range n {
		p.w.mu.Lock()
		seq := uint64(len(p.sent[to])) + 1
		b := frameOf(seq, 8+p.w.r.IntN(size))
		for i := 8; i < len(b); i += 61 {
			b[i] = byte(p.w.r.Uint32())
		}
		p.sent[to] = append(p.sent[to], b)
		p.w.mu.Unlock()
		p.e.Send(statesync.SendFrame{Node: 3 - p.node, Process: to, Seq: seq, Frame: b})
	}
}

// free lets the party go on if it was held up.
func (p *party) free() {
	p.mu.Lock()
	gate := p.gate
	p.gate, p.lazy, p.mute = nil, false, false
	p.mu.Unlock()
	if gate != nil {
		close(gate)
	}
	p.work()
}

// catchUp acknowledges what there is.
func (p *party) catchUp() {
	p.mu.Lock()
	from := p.from
	a := statesync.SendAck{Node: 3 - p.node, Process: from, Seq: p.have[from]}
	p.acked[from] = a.Seq
	p.mu.Unlock()
	if from != 0 {
		p.e.Ack(a)
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
		for process, told := range p.told {
			o := w.all[process]
			if acked, have := o.acked[p.process], o.have[p.process]; told > acked || acked > have {
				w.fault("%x was told that %x acknowledged %d; that has %d and acknowledged %d", p.process, process, told, have, acked)
			}
		}
	}
}

func (w *historyWorld) step(next *cluster.ProcessID) {
	i, d := w.r.IntN(2), devices[w.r.IntN(2)]
	p := w.now[i]
	switch n := w.r.IntN(100); {
	case n < 30:
		k, size := 1+w.r.IntN(30), 1+w.r.IntN(2000)
		if w.r.IntN(6) == 0 {
			size = 1 + w.r.IntN(200<<10)
		}
		w.tell("node %d sends %d of up to %d bytes", p.node, k, size)
		p.send(k, size)
		for _, z := range w.undead {
			z.send(1, size)
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
		w.tell("node %d asks again", p.node)
		p.mu.Lock()
		for process := range w.all {
			p.again[process] = true
		}
		p.mu.Unlock()
		p.e.Resync(3 - p.node)
	case n < 88:
		w.tell("node %d's handler waits", p.node)
		p.mu.Lock()
		if p.gate == nil {
			p.gate = make(chan struct{})
		}
		p.mu.Unlock()
	case n < 91:
		w.tell("node %d is lazy", p.node)
		p.mu.Lock()
		p.lazy = true
		p.mu.Unlock()
	case n < 94:
		w.tell("node %d acknowledges nothing", p.node)
		p.mu.Lock()
		p.mute = true
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
		p.send(5, 100)
		p.catchUp()
	}
	pass(time.Second)
	for _, p := range w.now {
		o := w.now[2-p.node]
		if sent, have, told := uint64(len(p.sent[o.process])), o.have[p.process], p.told[o.process]; have != sent || told != sent {
			w.fault("after healing %x has %d and acknowledged %d of %d from %x", o.process, have, told, sent, p.process)
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
// all of it; Up and Down alternate; no goroutine is left (synctest).
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
	var frames, conns, processes, twice int
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
	t.Logf("%d histories: %d processes, %d dials, %d frames, %d of them again when asked", n, processes, conns, frames, twice)
}
