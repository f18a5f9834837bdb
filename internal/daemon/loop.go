package daemon

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/node"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// gateway is the node as the loop sees it: a single one, a *node.VClusters or a *node.Farm.
type gateway interface {
	Start(time.Time)
	HandleIKE(time.Time, ike.Datagram)
	HandlePlane(time.Time, []xfrm.Event)
	HandleWindows(time.Time, xfrm.Scope, []xfrm.Window)
	HandleFrame(time.Time, cluster.NodeID, cluster.ProcessID, cluster.ScopeID, []byte) error
	HandleAck(time.Time, cluster.NodeID, cluster.ProcessID, cluster.ScopeID, uint64)
	HandleStream(time.Time, cluster.NodeID, cluster.ProcessID, bool)
	HandlePeer(time.Time, cluster.Peer)
	HandleLoss(time.Time, cluster.TellLoss)
	HandleRemoved(time.Time, cluster.ScopeID, cluster.NodeID)
	HandleEntitled(time.Time, cluster.ScopeID, cluster.Epoch)
	HandleClaimed(time.Time, cluster.ScopeID, cluster.Epoch, bool)
	HandleNote(time.Time, error)
	HandleMonitors(time.Time, int)
	HandlePingservers(now time.Time, penalty, stale int)
	HandleAddresses(now time.Time, has func(string, netip.Addr) bool)
	HandleTimeout(time.Time)
	NextTimeout() (time.Time, bool)
	Reload(time.Time, *config.Config)
	Up(time.Time, string, string) error
	Down(time.Time, string, string) error
	Clear(time.Time, string) int
	Rekey(time.Time, string, bool) int
	Redirect(time.Time, bool) int
	Redirectable() int
	Failover(time.Time, cluster.ScopeID, bool) error
	Shutdown(time.Time)
	Status(time.Time) node.Status
	Summary(time.Time) node.Status
	More(time.Time, *node.Status, *node.Place) bool
	Poll() (node.Effect, bool)
}

// Bounds of the queues.
const (
	ikeQueue    = 4096 // datagrams; what exceeds it is dropped and counted, as UDP may
	initQueue   = 512  // of them IKE_SA_INIT requests, which anybody can forge
	ikeBytes    = 16 << 20
	callQueue   = 1024 // calls; who is beyond waits
	acquireKeep = 1024 // acquires that a merged event queue keeps
	eventsKeep  = 8192 // events from which on the queue is merged
	remoteTurn  = 128  // frames and acknowledgements handled before others get their turn
	// idleTick is how often the loop turns when nothing happens: the guardian
	// must see it live (ten times within its patience).
	idleTick = 50 * time.Millisecond
)

// errStopped answers calls after the loop has ended.
var errStopped = errors.New("the daemon is stopping")

// loop is the event loop. Everything below the queues is owned by its goroutine.
type loop struct {
	calls chan func(now time.Time)
	ikeIn chan ike.Datagram
	// inits has IKE_SA_INIT requests: a flood of them leaves their turn to the messages of
	// IKE SAs that stand.
	inits chan ike.Datagram
	wake  chan struct{} // events wait
	done  chan struct{} // closed when run has ended

	mu     sync.Mutex
	events []xfrm.Event
	remote []func(now time.Time) // bounded by the streams, which read ahead so far only

	ikeReceived, ikeDropped atomic.Uint64
	ikeWaiting              atomic.Int64 // bytes in ikeIn and inits

	node  gateway
	carry func(now time.Time, e node.Effect) // carries out one effect
	after func(now time.Time)                // after each input's effects
	tick  func()                             // the guardian's progress counter
	stats loopStats
	over  bool // set by the effect that ends the loop
}

func newLoop(carry func(time.Time, node.Effect), after func(time.Time), tick func()) *loop {
	return &loop{
		calls: make(chan func(time.Time), callQueue), ikeIn: make(chan ike.Datagram, ikeQueue),
		inits: make(chan ike.Datagram, initQueue),
		wake:  make(chan struct{}, 1), done: make(chan struct{}),
		carry: carry, after: after, tick: tick,
	}
}

// offerIKE queues a datagram and never blocks; it is the data plane's callback.
func (l *loop) offerIKE(d xfrm.IKEDatagram) {
	l.ikeReceived.Add(1)
	l.offerAgain(ike.Datagram{Local: d.Local, Remote: d.Remote, NonESP: d.NonESP, TCP: d.TCP, Data: d.Data})
}

// offerAgain queues a datagram that came before and never blocks.
func (l *loop) offerAgain(d ike.Datagram) {
	queue, n := l.ikeIn, int64(len(d.Data))
	if ike.Begins(d.Data) {
		queue = l.inits
	}
	if l.ikeWaiting.Add(n) <= ikeBytes {
		select {
		case queue <- d:
			return
		default:
		}
	}
	l.ikeWaiting.Add(-n)
	l.ikeDropped.Add(1)
}

func (l *loop) datagram(d ike.Datagram) {
	l.ikeWaiting.Add(-int64(len(d.Data)))
	now := time.Now()
	l.node.HandleIKE(now, d)
	l.drain(now)
}

// offerEvents queues events and never blocks; it is the data plane's callback.
func (l *loop) offerEvents(events []xfrm.Event) {
	l.mu.Lock()
	l.events = append(l.events, events...)
	if len(l.events) > eventsKeep {
		l.events = mergeEvents(l.events)
	}
	l.mu.Unlock()
	l.poke()
}

// offerRemote queues what came from the other member and never blocks.
func (l *loop) offerRemote(f func(now time.Time)) {
	l.mu.Lock()
	l.remote = append(l.remote, f)
	l.mu.Unlock()
	l.poke()
}

func (l *loop) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// woken serves the queues that wake announces.
func (l *loop) woken() {
	l.mu.Lock()
	n := min(len(l.remote), remoteTurn)
	remote := l.remote[:n]
	l.remote = l.remote[n:]
	if len(l.remote) == 0 {
		l.remote = nil // the array goes with what it held
	} else {
		l.poke() // the rest after the others' turn
	}
	l.mu.Unlock()
	for _, f := range remote {
		now := time.Now()
		f(now)
		l.drain(now)
	}
	now := time.Now()
	if l.planeEvents(now) {
		l.drain(now)
	}
}

// planeEvents hands the data plane's events to the node.
func (l *loop) planeEvents(now time.Time) bool {
	l.mu.Lock()
	events := l.events
	l.events = nil
	l.mu.Unlock()
	if len(events) > 0 {
		l.stats.Events += uint64(len(events))
		l.node.HandlePlane(now, events)
	}
	return len(events) > 0
}

// mergeEvents keeps of each kind and SA the last event, in order, so that the
// queue is bounded by the number of SAs and nothing that matters is lost.
func mergeEvents(in []xfrm.Event) []xfrm.Event {
	type flow struct {
		tunnel   string
		proto    uint8
		src, dst netip.AddrPort
	}
	type key struct {
		kind int
		spi  uint32
		dir  xfrm.Direction
		hard bool
		flow flow
	}
	keyOf := func(e xfrm.Event) (k key) {
		switch e := e.(type) {
		case xfrm.BoundWanted:
			k = key{kind: 1, spi: uint32(e.SPIIn), dir: e.Dir}
		case xfrm.Acquire:
			k = key{kind: 2, flow: flow{e.Tunnel, e.Protocol, e.Src, e.Dst}}
		case xfrm.PeerMoved:
			k = key{kind: 3, spi: uint32(e.SPIIn)}
		case xfrm.FirstInbound:
			k = key{kind: 4, spi: uint32(e.SPIIn)}
		case xfrm.Expiring:
			k = key{kind: 5, spi: uint32(e.SPIIn), hard: e.Hard}
		case xfrm.StreamLost:
			k = key{kind: 7, spi: uint32(e.SPIIn)}
		case xfrm.ForwardedTraffic:
			k = key{kind: 6, spi: uint32(e.SPIIn)}
		}
		return k
	}
	last := make(map[key]int, len(in))
	for i, e := range in {
		last[keyOf(e)] = i
	}
	var out []xfrm.Event
	acquires := 0
	for i, e := range in {
		k := keyOf(e)
		if last[k] != i {
			continue
		}
		if k.kind == 2 {
			if acquires++; acquires > acquireKeep {
				continue // whoever still wants to send will ask again
			}
		}
		out = append(out, e)
	}
	return out
}

// post queues a call without waiting for it to run.
func (l *loop) post(f func(now time.Time)) error {
	select {
	case <-l.done:
		return errStopped
	case l.calls <- f:
		return nil
	}
}

// call runs f on the loop and waits until its effects are carried out.
func (l *loop) call(ctx context.Context, f func(now time.Time)) error {
	ran := make(chan struct{})
	select {
	case <-l.done:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	case l.calls <- func(now time.Time) { f(now); l.drain(now); close(ran) }:
	}
	select {
	case <-ran:
		return nil
	case <-l.done:
		select {
		case <-ran:
			return nil
		default:
			return errStopped
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run is the loop; it ends when an effect has set over.
func (l *loop) run() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; !l.over; first = !first {
		if first && l.others() {
			l.tick()
			continue
		}
		l.arm(timer)
		select {
		case f := <-l.calls:
			now := time.Now()
			f(now)
			l.drain(now)
		case d := <-l.ikeIn:
			l.datagram(d)
		case d := <-l.inits:
			l.datagram(d)
		case <-l.wake:
			l.woken()
		case now := <-timer.C:
			l.due(now)
		}
		l.tick()
	}
}

// others serves what other members sent, if anything has come: they wait for frames and
// acknowledgements, each of which takes a tenth of what an IKE message takes. Every
// second turn is for all queues alike.
func (l *loop) others() bool {
	select {
	case <-l.wake:
		l.woken()
		return true
	default:
		return false
	}
}

// arm sets the one timer: to what the node waits for, at most idleTick away.
func (l *loop) arm(timer *time.Timer) {
	wait := idleTick
	if at, ok := l.node.NextTimeout(); ok {
		wait = max(0, min(wait, time.Until(at)))
	}
	timer.Reset(wait)
}

func (l *loop) due(now time.Time) {
	if at, ok := l.node.NextTimeout(); ok && !now.Before(at) {
		l.stats.Timeouts++
		l.planeEvents(now) // first: what is due may depend on what packets asked for
		l.node.HandleTimeout(now)
		l.drain(now)
	}
}

// drain carries out what the node wants, in order.
func (l *loop) drain(now time.Time) {
	any, framed := false, false
	for {
		e, ok := l.node.Poll()
		_, frame := e.(statesync.SendFrame)
		if framed && !frame {
			letOut()
		}
		if framed = frame; !ok {
			break
		}
		any = true
		l.stats.Effects++
		l.carry(now, e)
		if _, ack := e.(statesync.SendAck); ack {
			letOut() // before Poll, which does what the frame asks for
		}
	}
	if any {
		l.after(now)
	}
}

// letOut lets the goroutines of streams write what was handed to them: frames and
// acknowledgements, for which others wait, go before what this goroutine does next. A
// message passes through two of them, the second of which steps aside once itself.
func letOut() {
	for range 3 {
		runtime.Gosched()
	}
}

// snapshot is the loop's own figures, with those of the queues.
func (l *loop) snapshot() loopStats {
	s := l.stats
	s.IKEReceived, s.IKEDropped = l.ikeReceived.Load(), l.ikeDropped.Load()
	return s
}
