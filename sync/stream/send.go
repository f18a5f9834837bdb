package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

const maxRetired = 8 // former processes of a node that are remembered

// sender is our side of the streams towards one node.
type sender struct {
	e    *Endpoint
	node cluster.NodeID

	report sync.Mutex // held around a change of state and its Up or Down; taken before mu

	mu      sync.Mutex
	told    cluster.ProcessID   // last named by heartbeats
	process cluster.ProcessID   // that answered last, and that the logs are for
	retired []cluster.ProcessID // that it was before
	life    int                 // rises with process
	live    int                 // open streams to process
	scoped  bool                // process knows of scopes
	version uint32              // spoken with process
	logs    map[cluster.ScopeID]*outlog
	bytes   int // of all logs
	links   map[place]*link

	complained bool // that process does not take a scope
}

// place is where a link leads.
type place struct {
	link cluster.Link
	port uint16
}

// link keeps a stream open on one heartbeat device.
type link struct {
	s      *sender
	at     place
	ctx    context.Context // ends the link
	cancel context.CancelFunc
	again  chan struct{} // dial now
	// The last attempt ended because nothing answered the SYN.
	unanswered atomic.Bool
	wake       chan struct{} // ready has grown

	// Under s.mu.
	end     context.CancelFunc // of the stream, nil when there is none
	cursors map[cluster.ScopeID]*cursor
	ready   []cluster.ScopeID // with something to send, each once
}

// set brings the links to what was told. The endpoint's lock is held.
func (s *sender) set(process cluster.ProcessID, links []cluster.Link, port uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	restarted := process != 0 && process != s.told && process != s.process
	if process != 0 {
		s.told = process
	}
	wanted := make(map[place]bool, len(links))
	for _, l := range links {
		wanted[place{l, port}] = true
	}
	for at, l := range s.links {
		switch {
		case !wanted[at]:
			l.cancel()
			delete(s.links, at)
		case restarted:
			if l.end != nil {
				l.end()
			}
			signal(l.again)
		}
	}
	for at := range wanted {
		if s.links[at] != nil {
			continue
		}
		l := &link{s: s, at: at, again: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
		l.ctx, l.cancel = context.WithCancel(s.e.ctx)
		s.links[at] = l
		s.e.wg.Go(l.run)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// retire remembers the latest former processes.
func retire(former []cluster.ProcessID, p cluster.ProcessID) []cluster.ProcessID {
	if former = append(former, p); len(former) > maxRetired {
		former = former[1:]
	}
	return former
}

// attach counts a stream whose hellos were exchanged. have is what the process
// acknowledged before.
func (s *sender) attach(l *link, process cluster.ProcessID, h *syncpb.Hello, have map[cluster.ScopeID]uint64, end context.CancelFunc) (life int, err error) {
	s.report.Lock()
	defer s.report.Unlock()
	s.mu.Lock()
	if l.ctx.Err() != nil || slices.Contains(s.retired, process) {
		s.mu.Unlock()
		return 0, fmt.Errorf("process %x is a former one", uint64(process))
	}
	old, gone := s.process, false
	if process != old {
		gone = s.live > 0
		if old != 0 {
			s.retired = retire(s.retired, old)
		}
		s.process, s.logs, s.bytes, s.live = process, make(map[cluster.ScopeID]*outlog), 0, 0
		s.scoped, s.version, s.complained = h.Scoped, common(h), false
		s.life++
		for _, o := range s.links {
			if o.end != nil {
				o.end()
			}
		}
	}
	s.live++
	came := s.live == 1
	l.end = end
	l.begin(have)
	life = s.life
	s.mu.Unlock()
	if gone {
		s.e.tell(s.e.opt.Handler.Down, s.node, old)
	}
	if came {
		s.e.tell(s.e.opt.Handler.Up, s.node, process)
	}
	return life, nil
}

func (s *sender) detach(l *link, process cluster.ProcessID, life int) {
	s.report.Lock()
	defer s.report.Unlock()
	s.mu.Lock()
	l.end = nil
	gone := false
	if life == s.life {
		s.live--
		gone = s.live == 0
	}
	s.mu.Unlock()
	if gone {
		s.e.tell(s.e.opt.Handler.Down, s.node, process)
	}
}

// tell calls Up or Down unless the endpoint is closing.
func (e *Endpoint) tell(f func(cluster.NodeID, cluster.ProcessID), node cluster.NodeID, process cluster.ProcessID) {
	if e.ctx.Err() == nil {
		f(node, process)
	}
}

// run dials until the link is given up.
func (l *link) run() {
	defer l.cancel()
	backoff := minBackoff
	quiet := false
	for l.ctx.Err() == nil {
		began := time.Now()
		opened, err := l.session()
		if l.ctx.Err() != nil {
			return
		}
		if opened || !quiet {
			l.s.e.log.Info("replication stream: closed", "node", l.s.node, "device", l.at.link.Device, "error", err)
		}
		quiet = !opened // a peer that is not there is told once
		if opened && time.Since(began) > maxBackoff {
			backoff = minBackoff
		}
		if l.unanswered.Swap(false) {
			backoff = minBackoff // waiting for the connection was pause enough
		}
		t := time.NewTimer(backoff)
		select {
		case <-t.C:
			backoff = min(2*backoff, maxBackoff)
		case <-l.again:
			backoff = minBackoff
		case <-l.ctx.Done():
		}
		t.Stop()
	}
}

// session opens one stream and keeps it until it fails. opened: the hellos were exchanged.
func (l *link) session() (opened bool, err error) {
	s := l.s
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	opening := time.AfterFunc(openTimeout, func() { cancel(errors.New("no answer in time")) })
	defer opening.Stop()

	var conns closer
	cc, err := grpc.NewClient("passthrough:///"+l.at.link.Device,
		grpc.WithTransportCredentials(credentials.NewTLS(s.e.client)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			c, err := s.e.opt.Dial(ctx, l.at.link, l.at.port)
			if err != nil {
				l.unanswered.Store(os.IsTimeout(err))
				return nil, err
			}
			conns.add(c)
			return opaque{c}, nil
		}),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithMaxHeaderListSize(8<<10), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return false, err
	}
	defer cc.Close()
	defer conns.close() // or gRPC would wait for a stalled connection to take its farewell
	stream, err := syncpb.NewStateSyncClient(cc).Replicate(ctx)
	if err != nil {
		return false, cause(ctx, err)
	}
	if err := stream.Send(&syncpb.StreamUp{Hello: &syncpb.Hello{Process: uint64(s.e.opt.Process), Scoped: true, Version: Version}}); err != nil {
		return false, cause(ctx, err)
	}
	m, err := stream.Recv()
	if err != nil {
		return false, cause(ctx, err)
	}
	p, ok := peer.FromContext(stream.Context())
	if !ok {
		return false, errors.New("no peer")
	}
	if node, err := s.e.nodeOf(p); err != nil || node != s.node {
		return false, fmt.Errorf("node %d answered: %w", node, err)
	}
	process := cluster.ProcessID(m.GetHello().GetProcess())
	if process == 0 || process == s.e.opt.Process {
		return false, errors.New("no hello")
	}
	have, err := held(m.Hello)
	if err != nil {
		return false, err
	}
	opening.Stop()

	life, err := s.attach(l, process, m.Hello, have, func() { cancel(errors.New("another process answers")) })
	if err != nil {
		return false, err
	}
	defer s.detach(l, process, life)
	s.e.log.Info("replication stream: open", "node", s.node, "device", l.at.link.Device, "process", fmt.Sprintf("%x", uint64(process)), "version", common(m.Hello))
	var writer sync.WaitGroup
	defer writer.Wait() // before detach: the writer uses the link
	defer cancel(nil)
	version := common(m.Hello)
	writer.Go(func() { cancel(l.write(ctx, cancel, stream, version)) })
	for _, scope := range slices.Sorted(maps.Keys(have)) {
		if err := l.acked(ctx, process, scope, have[scope]); err != nil {
			return true, err
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return true, cause(ctx, err)
		}
		scope, err := scopeOf(m.Scope)
		switch {
		case err != nil:
			return true, err
		case m.Ack == 0 && !m.Resync:
			return true, errors.New("an answer that is none")
		}
		if m.Ack > 0 {
			if err := l.acked(ctx, process, scope, m.Ack); err != nil {
				return true, err
			}
		}
		if m.Resync {
			s.rewind(l, scope, m.Ack)
		}
	}
}

// acked passes an acknowledgement on.
func (l *link) acked(ctx context.Context, process cluster.ProcessID, scope cluster.ScopeID, seq uint64) error {
	if !l.s.acked(process, scope, seq) {
		return fmt.Errorf("frame %d of %v, which was never sent, is acknowledged", seq, scope)
	}
	if ctx.Err() == nil {
		l.s.e.opt.Handler.Ack(l.s.node, process, scope, seq)
	}
	return nil
}

// write sends what the logs have. A frame that the stream does not take in time ends it.
func (l *link) write(ctx context.Context, cancel context.CancelCauseFunc, stream syncpb.StateSync_ReplicateClient, version uint32) error {
	patience := l.s.e.opt.Stall
	stall := time.AfterFunc(patience, func() { cancel(errors.New("the link takes no frames")) })
	stall.Stop()
	defer stall.Stop()
	if err := next(stream, version); err != nil {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		f, first, ok := l.s.next(l)
		if !ok {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		stall.Reset(patience)
		err := stream.Send(&syncpb.StreamUp{Frame: f.Frame, Seq: f.Seq, Scope: uint32(f.Scope), First: first})
		stall.Stop()
		if err != nil {
			// io.EOF: Recv has the reason, and ends the stream.
			<-ctx.Done()
			return ctx.Err()
		}
	}
}

// closer closes the connections of one session.
type closer struct {
	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

func (c *closer) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
	}
	c.conns = append(c.conns, conn)
}

func (c *closer) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.conns {
		conn.Close()
	}
}

// cause prefers our own reason for ending a stream to what gRPC makes of it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}
