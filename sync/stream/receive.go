package stream

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

var (
	errResync   = errors.New("begin again")
	errTooMany  = errors.New("too many streams")
	errReplaced = errors.New("another process speaks for the node")
	errClosing  = errors.New("closing")
)

// Received is a frame from another node.
type Received struct {
	Node    cluster.NodeID
	Process cluster.ProcessID
	Frame   []byte // the handler's to keep
	from    *receiver
}

// Done says that the frame has been dealt with.
func (r Received) Done() { r.from.give(len(r.Frame)) }

// receiver is our side of the streams from one node.
type receiver struct {
	// Held around the handler's Frame, so that first arrivals keep their order. No
	// mutex, because the handler may wait for long, and streams end meanwhile.
	order chan struct{}

	mu       sync.Mutex
	process  cluster.ProcessID
	retired  []cluster.ProcessID // that it was before
	acked    uint64              // highest acknowledged frame of process
	handed   uint64              // highest that the handler was given
	second   uint64              // how many arrived again
	arrivals uint64              // of frames and streams
	inflight int                 // bytes with the handler, whichever streams brought them
	streams  []*incoming
	room     chan struct{} // inflight has shrunk
}

// incoming is one stream.
type incoming struct {
	r      *receiver
	wake   chan struct{} // acked has risen
	ended  chan struct{} // closed by stop
	once   sync.Once
	reason error  // set before ended is closed
	heard  uint64 // the receiver's arrivals when it brought something last; under r.mu
}

// stop ends the stream.
func (s *incoming) stop(reason error) {
	s.once.Do(func() {
		s.reason = reason
		close(s.ended)
	})
}

func (r *receiver) give(n int) {
	r.mu.Lock()
	r.inflight -= n
	r.mu.Unlock()
	signal(r.room)
}

func (r *receiver) ack(process cluster.ProcessID, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if process != r.process || seq <= r.acked {
		return
	}
	r.acked, r.handed = seq, max(r.handed, seq)
	for _, s := range r.streams {
		signal(s.wake)
	}
}

func (r *receiver) held() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked
}

// verdict on a frame.
type verdict int

const (
	stale verdict = iota // arrived before, or its stream has ended
	early                // new, but the handler has enough
	fresh                // new, and the handler is given it now
)

// judge counts a frame. A stream that has ended brings nothing any more; that it is
// asked under the lock keeps what an older process or an interrupted run left behind
// from counting.
func (r *receiver) judge(s *incoming, seq uint64, size int) verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-s.ended:
		return stale
	default:
	}
	r.arrivals++
	s.heard = r.arrivals
	switch {
	case seq <= r.handed:
		r.second++
		return stale
	case r.inflight > 0 && r.inflight+size > maxInflight:
		return early
	}
	r.handed = seq
	r.inflight += size
	return fresh
}

// resync ends the streams; what was not acknowledged will be new again.
func (r *receiver) resync() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handed = r.acked
	for _, s := range r.streams {
		s.stop(errResync)
	}
}

// add counts a stream of a process. The newest one is right: a former one's end may
// not have been noticed yet, and its hello may still have been on its way. But what
// heartbeats tell, if they do, is right in any case.
func (r *receiver) add(process, told cluster.ProcessID) (*incoming, error) {
	s := &incoming{r: r, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if process != r.process {
		if told != 0 && process != told && slices.Contains(r.retired, process) {
			return nil, fmt.Errorf("process %x is a former one", uint64(process))
		}
		for _, o := range r.streams {
			o.stop(errReplaced)
		}
		if r.process != 0 {
			r.retired = retire(r.retired, r.process)
		}
		r.process, r.acked, r.handed = process, 0, 0
	}
	if len(r.streams) >= maxStreams {
		// Not the oldest: that may be the one that works, and the others half-open.
		i, quiet := 0, r.streams[0]
		for j, o := range r.streams {
			if o.heard < quiet.heard {
				i, quiet = j, o
			}
		}
		quiet.stop(errTooMany)
		r.streams = slices.Delete(slices.Clone(r.streams), i, i+1)
	}
	r.arrivals++
	s.heard = r.arrivals
	r.streams = append(r.streams, s)
	return s, nil
}

func (r *receiver) remove(s *incoming) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, o := range r.streams {
		if o == s {
			r.streams = append(r.streams[:i:i], r.streams[i+1:]...)
			return
		}
	}
}

// nodeOf is who the certificate of a connection belongs to.
func (e *Endpoint) nodeOf(p *peer.Peer) (cluster.NodeID, error) {
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return 0, errors.New("no TLS")
	}
	node, err := e.opt.PeerNode(info.State)
	if err == nil && node == e.opt.Self {
		err = errors.New("our own certificate")
	}
	return node, err
}

func (e *Endpoint) receiver(node cluster.NodeID) *receiver {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	r := e.in[node]
	if r == nil {
		r = &receiver{order: make(chan struct{}, 1), room: make(chan struct{}, 1)}
		e.in[node] = r
	}
	return r
}

// told is the process that heartbeats name for a node, or 0.
func (e *Endpoint) told(node cluster.NodeID) cluster.ProcessID {
	e.mu.Lock()
	s := e.out[node]
	e.mu.Unlock()
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// Replicate serves one stream: frames in, acknowledgements out. gRPC calls it.
func (e *Endpoint) Replicate(stream syncpb.StateSync_ReplicateServer) error {
	p, ok := peer.FromContext(stream.Context())
	if !ok {
		return status.Error(codes.Unauthenticated, "no peer")
	}
	node, err := e.nodeOf(p)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	type hello struct {
		m   *syncpb.StreamUp
		err error
	}
	// Ending the handler is what ends Recv and Send; so neither is called here.
	hellos := make(chan hello, 1)
	e.wg.Go(func() {
		m, err := stream.Recv()
		hellos <- hello{m, err}
	})
	patience := time.NewTimer(openTimeout)
	defer patience.Stop()
	var h hello
	select {
	case h = <-hellos:
	case <-patience.C:
		return status.Error(codes.DeadlineExceeded, "no hello")
	case <-e.ctx.Done():
		return status.Error(codes.Unavailable, errClosing.Error())
	}
	if h.err != nil {
		return h.err
	}
	process := cluster.ProcessID(h.m.GetHello().GetProcess())
	if process == 0 || process == e.opt.Process {
		return status.Error(codes.InvalidArgument, "no hello")
	}
	r := e.receiver(node)
	if r == nil {
		return status.Error(codes.Unavailable, errClosing.Error())
	}
	s, err := r.add(process, e.told(node))
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	defer r.remove(s)
	e.wg.Go(func() { s.stop(e.answer(s, stream)) })
	e.wg.Go(func() { s.stop(e.read(s, stream, node, process)) })
	select {
	case <-s.ended:
	case <-e.ctx.Done():
		s.stop(errClosing)
	case <-stream.Context().Done():
		s.stop(stream.Context().Err())
	}
	return status.Error(codes.Aborted, fmt.Sprint(s.reason))
}

// answer sends the hello and then whatever is acknowledged, the latest only.
func (e *Endpoint) answer(s *incoming, stream syncpb.StateSync_ReplicateServer) error {
	sent := s.r.held()
	if err := stream.Send(&syncpb.StreamDown{Hello: &syncpb.Hello{Process: uint64(e.opt.Process), Have: sent}}); err != nil {
		return err
	}
	for {
		if seq := s.r.held(); seq > sent {
			if err := stream.Send(&syncpb.StreamDown{Ack: seq}); err != nil {
				return err
			}
			sent = seq
			continue
		}
		select {
		case <-s.wake:
		case <-s.ended:
			return nil
		}
	}
}

func (e *Endpoint) read(s *incoming, stream syncpb.StateSync_ReplicateServer, node cluster.NodeID, process cluster.ProcessID) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(m.Frame) == 0 {
			return errors.New("a message without a frame")
		}
		e.hand(s, m.Seq, Received{Node: node, Process: process, Frame: m.Frame, from: s.r})
	}
}

// hand gives the handler a frame, if it is the first to arrive. It waits for the
// handler to have room, unless the stream ends.
func (e *Endpoint) hand(s *incoming, seq uint64, f Received) {
	r := s.r
	select {
	case r.order <- struct{}{}:
		defer func() { <-r.order }()
	case <-s.ended:
		return
	}
	for {
		switch r.judge(s, seq, len(f.Frame)) {
		case stale:
			return
		case fresh:
			e.opt.Handler.Frame(f)
			return
		}
		select {
		case <-r.room:
		case <-s.ended:
			return
		}
	}
}
