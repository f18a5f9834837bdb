package stream

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

// service receives frames and acknowledges them.
type service struct {
	syncpb.UnimplementedStateSyncServer
	t *Transport
}

// inbound is one stream on which a process of a node sends to us.
type inbound struct {
	process cluster.ProcessID
	ack     *latest
	end     context.CancelFunc
}

// maxInbound bounds the streams of one node: two links, with some of them breaking.
const maxInbound = 16

func (v *service) Replicate(s grpc.BidiStreamingServer[syncpb.StreamUp, syncpb.StreamDown]) error {
	t := v.t
	from, err := t.node(s.Context())
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	m, err := s.Recv()
	if err != nil {
		return err
	}
	if m.Hello == nil {
		return status.Error(codes.InvalidArgument, "no hello")
	}
	if to := m.Hello.ToProcess; to != 0 && to != uint64(t.o.Process) {
		return status.Error(codes.FailedPrecondition, "that process has ended")
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	in := &inbound{process: cluster.ProcessID(m.Hello.Process), ack: newLatest(), end: cancel}
	have, ok := t.enter(from, in)
	if !ok {
		return status.Error(codes.ResourceExhausted, "too many streams")
	}
	defer t.leave(from, in)
	if err := s.Send(&syncpb.StreamDown{Hello: &syncpb.Hello{Process: uint64(t.o.Process), Have: have}}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- v.receive(s, from, in) }()
	for {
		select {
		case <-in.ack.wake:
			if err := s.Send(&syncpb.StreamDown{Ack: in.ack.get()}); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-ctx.Done():
			return status.Error(codes.Aborted, "begin again")
		case <-t.done:
			return status.Error(codes.Unavailable, "closing")
		}
	}
}

func (v *service) receive(s grpc.BidiStreamingServer[syncpb.StreamUp, syncpb.StreamDown], from cluster.NodeID, in *inbound) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		v.t.o.Handler.Frame(from, in.process, m.Frame)
	}
}

func (t *Transport) enter(from cluster.NodeID, in *inbound) (have uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.member(from)
	if p == nil || len(p.from) >= maxInbound || t.closed() {
		return 0, false
	}
	p.from[in] = true
	return p.held[in.process], true
}

func (t *Transport) leave(from cluster.NodeID, in *inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers[from].from, in)
}
