package stream

import (
	"errors"
	"fmt"
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
	errNoHello  = errors.New("no hello")
)

// Received is a frame from another node.
type Received struct {
	Scope   cluster.ScopeID
	Node    cluster.NodeID
	Process cluster.ProcessID
	Frame   []byte // the handler's to keep
	from    *receiver
}

// Done says that the frame has been dealt with.
func (r Received) Done() { r.from.give(len(r.Frame)) }

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
	s := e.toward(node)
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
	refuse := func(code codes.Code, err error) error {
		e.refused(p.Addr, err)
		return status.Error(code, err.Error())
	}
	node, err := e.nodeOf(p)
	if err != nil {
		return refuse(codes.Unauthenticated, err)
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
		return refuse(codes.DeadlineExceeded, errNoHello)
	case <-e.ctx.Done():
		return status.Error(codes.Unavailable, errClosing.Error())
	}
	if h.err != nil {
		return h.err
	}
	process := cluster.ProcessID(h.m.GetHello().GetProcess())
	if process == 0 || process == e.opt.Process {
		return refuse(codes.InvalidArgument, errNoHello)
	}
	r := e.receiver(node)
	if r == nil {
		return status.Error(codes.Unavailable, errClosing.Error())
	}
	s, err := r.add(process, e.told(node), h.m.Hello)
	if err != nil {
		return refuse(codes.FailedPrecondition, fmt.Errorf("node %d: %w", node, err))
	}
	defer r.remove(s)
	e.wg.Go(func() { s.stop(e.answer(s, stream)) })
	e.wg.Go(func() {
		err := e.read(s, stream, node, process)
		if errors.Is(err, errMessage) {
			e.refused(p.Addr, fmt.Errorf("node %d: %w", node, err))
		}
		s.stop(err)
	})
	select {
	case <-s.ended:
	case <-e.ctx.Done():
		s.stop(errClosing)
	case <-stream.Context().Done():
		s.stop(stream.Context().Err())
	}
	return status.Error(codes.Aborted, fmt.Sprint(s.reason))
}

// answer sends the hello and then what is acknowledged, of each scope the latest only.
func (e *Endpoint) answer(s *incoming, stream syncpb.StateSync_ReplicateServer) error {
	if err := stream.Send(&syncpb.StreamDown{Hello: s.hello(e.opt.Process)}); err != nil {
		return err
	}
	for {
		if m, ok := s.answer(); ok {
			if err := stream.Send(m); err != nil {
				return err
			}
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
		if len(m.Frame) == 0 && e.nextCame(s, m, node) {
			continue
		}
		scope, err := messageScope(m, s.scoped)
		if err != nil {
			return err
		}
		if !e.hand(s, m.Seq, m.First, Received{Scope: scope, Node: node, Process: process, Frame: m.Frame, from: s.r}) {
			return errScopes
		}
	}
}

// errMessage is what a member never sends.
var errMessage = errors.New("a message out of order")

// messageScope checks a message that should carry a frame.
func messageScope(m *syncpb.StreamUp, scoped bool) (cluster.ScopeID, error) {
	if len(m.Frame) == 0 {
		return 0, fmt.Errorf("%w: without a frame", errMessage)
	}
	scope, err := scopeOf(m.Scope)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errMessage, err)
	}
	if scope != 0 && !scoped {
		return 0, fmt.Errorf("%w: a scope of one who knows of none", errMessage)
	}
	return scope, nil
}

// hand gives the handler a frame, if it is the first to arrive. It waits for the
// handler to have room, unless the stream ends. ok is false if the frame is of one scope
// too many.
func (e *Endpoint) hand(s *incoming, seq uint64, first bool, f Received) (ok bool) {
	r := s.r
	select {
	case r.order <- struct{}{}:
		defer func() { <-r.order }()
	case <-s.ended:
		return true
	}
	for {
		switch r.judge(s, f.Scope, seq, first, len(f.Frame)) {
		case stale:
			return true
		case refused:
			return false
		case fresh:
			e.opt.Handler.Frame(f)
			return true
		}
		select {
		case <-r.room:
		case <-s.ended:
			return true
		}
	}
}
