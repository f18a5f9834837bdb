package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

// ConfigHandler answers another member's calls about the configuration that members
// share. Several may run at once; from is who the certificate belongs to.
type ConfigHandler interface {
	State(ctx context.Context, from cluster.NodeID, m *syncpb.ConfigState) (*syncpb.ConfigState, error)
	Text(from cluster.NodeID, digest []byte) ([]byte, error)
	Check(ctx context.Context, from cluster.NodeID, m *syncpb.ConfigProposal) *syncpb.ConfigVerdict
	Propose(ctx context.Context, from cluster.NodeID, m *syncpb.ConfigProposal) *syncpb.ConfigVerdict
}

// ErrOld says that the member's build does not know of what it is asked.
var ErrOld = errors.New("its build does not know of shared configuration")

// configServer is the service on the port of the streams.
type configServer struct {
	syncpb.UnimplementedConfigurationServer
	e *Endpoint
}

func (s *configServer) from(ctx context.Context) (cluster.NodeID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return 0, status.Error(codes.Unauthenticated, "no peer")
	}
	node, err := s.e.nodeOf(p)
	if err != nil {
		s.e.refused(p.Addr, err)
		return 0, status.Error(codes.Unauthenticated, err.Error())
	}
	return node, nil
}

func (s *configServer) State(ctx context.Context, m *syncpb.ConfigState) (*syncpb.ConfigState, error) {
	from, err := s.from(ctx)
	if err != nil {
		return nil, err
	}
	a, err := s.e.opt.Config.State(ctx, from, m)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return a, nil
}

func (s *configServer) Text(m *syncpb.ConfigRequest, stream syncpb.Configuration_TextServer) error {
	from, err := s.from(stream.Context())
	if err != nil {
		return err
	}
	text, err := s.e.opt.Config.Text(from, m.GetDigest())
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	for part := range slices.Chunk(text, textPart) {
		if err := stream.Send(&syncpb.ConfigText{Part: part}); err != nil {
			return err
		}
	}
	return nil
}

func (s *configServer) Check(ctx context.Context, m *syncpb.ConfigProposal) (*syncpb.ConfigVerdict, error) {
	from, err := s.from(ctx)
	if err != nil {
		return nil, err
	}
	return s.e.opt.Config.Check(ctx, from, m), nil
}

func (s *configServer) Propose(ctx context.Context, m *syncpb.ConfigProposal) (*syncpb.ConfigVerdict, error) {
	from, err := s.from(ctx)
	if err != nil {
		return nil, err
	}
	return s.e.opt.Config.Propose(ctx, from, m), nil
}

// ConfigState tells a member what this one has, and returns what the member has. This
// and the calls below wait for the member until ctx ends; the error is ErrOld if its
// build does not know them.
func (e *Endpoint) ConfigState(ctx context.Context, node cluster.NodeID, m *syncpb.ConfigState) (*syncpb.ConfigState, error) {
	cc, err := e.called(node)
	if err != nil {
		return nil, err
	}
	a, err := syncpb.NewConfigurationClient(cc).State(ctx, m, grpc.WaitForReady(true))
	return a, plain(ctx, err)
}

// ConfigText fetches the text that has a digest, of at most most bytes.
func (e *Endpoint) ConfigText(ctx context.Context, node cluster.NodeID, digest []byte, most int) ([]byte, error) {
	cc, err := e.called(node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := syncpb.NewConfigurationClient(cc).Text(ctx, &syncpb.ConfigRequest{Digest: digest}, grpc.WaitForReady(true))
	if err != nil {
		return nil, plain(ctx, err)
	}
	var text []byte
	for {
		m, err := stream.Recv()
		switch {
		case err == io.EOF:
			return text, nil
		case err != nil:
			return nil, plain(ctx, err)
		case len(text)+len(m.GetPart()) > most:
			return nil, fmt.Errorf("node %d sends more than %d bytes of configuration", node, most)
		}
		text = append(text, m.GetPart()...)
	}
}

// ConfigCheck asks a member whether it could run what this one has. It and ConfigPropose
// have connections of their own: what the member asks meanwhile must not wait for them.
func (e *Endpoint) ConfigCheck(ctx context.Context, node cluster.NodeID, m *syncpb.ConfigProposal) (*syncpb.ConfigVerdict, error) {
	cc, err := e.connect(node)
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	a, err := syncpb.NewConfigurationClient(cc).Check(ctx, m, grpc.WaitForReady(true))
	return a, plain(ctx, err)
}

// ConfigPropose proposes a change to the owner of a pair.
func (e *Endpoint) ConfigPropose(ctx context.Context, node cluster.NodeID, m *syncpb.ConfigProposal) (*syncpb.ConfigVerdict, error) {
	cc, err := e.connect(node)
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	a, err := syncpb.NewConfigurationClient(cc).Propose(ctx, m, grpc.WaitForReady(true))
	return a, plain(ctx, err)
}

// plain is an error without gRPC's words.
func plain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	switch s := status.Convert(err); s.Code() {
	case codes.Unimplemented:
		return ErrOld
	case codes.DeadlineExceeded:
		return errors.New("no answer in time")
	case codes.Canceled:
		return context.Cause(ctx)
	default:
		return errors.New(s.Message())
	}
}

// called is the connection for short calls to a node.
func (e *Endpoint) called(node cluster.NodeID) (*grpc.ClientConn, error) {
	e.mu.Lock()
	cc, closed := e.calls[node], e.closed
	e.mu.Unlock()
	switch {
	case closed:
		return nil, net.ErrClosed
	case cc != nil:
		return cc, nil
	}
	cc, err := e.connect(node)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch had := e.calls[node]; {
	case e.closed:
		cc.Close()
		return nil, net.ErrClosed
	case had != nil:
		cc.Close()
		return had, nil
	}
	e.calls[node] = cc
	return cc, nil
}

// connect makes a connection to a node over whichever link answers.
func (e *Endpoint) connect(node cluster.NodeID) (*grpc.ClientConn, error) {
	wait := backoff.Config{BaseDelay: minBackoff, Multiplier: 2, MaxDelay: maxBackoff}
	return grpc.NewClient(fmt.Sprintf("passthrough:///node-%d", node),
		grpc.WithTransportCredentials(&memberCreds{credentials.NewTLS(e.client), e, node}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return e.dialNode(ctx, node) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: wait, MinConnectTimeout: openTimeout}),
		grpc.WithMaxHeaderListSize(8<<10), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(textPart+1<<10), grpc.MaxCallSendMsgSize(maxAnswer)),
	)
}

func (e *Endpoint) dialNode(ctx context.Context, node cluster.NodeID) (net.Conn, error) {
	s := e.toward(node)
	if s == nil {
		return nil, fmt.Errorf("node %d is not known", node)
	}
	s.mu.Lock()
	var places []place
	for at := range s.links {
		places = append(places, at)
	}
	s.mu.Unlock()
	slices.SortFunc(places, func(a, b place) int {
		return strings.Compare(a.link.Device+" "+a.link.Addr, b.link.Device+" "+b.link.Addr)
	})
	errs := fmt.Errorf("node %d is heard on no link", node)
	for i, at := range places {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		c, err := e.opt.Dial(ctx, at.link, at.port)
		cancel()
		if err == nil {
			return opaque{c}, nil
		}
		if i == 0 {
			errs = nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

// memberCreds accept one member at the other end and nobody else.
type memberCreds struct {
	credentials.TransportCredentials
	e    *Endpoint
	node cluster.NodeID
}

func (m *memberCreds) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := m.TransportCredentials.ClientHandshake(ctx, authority, c)
	if err != nil {
		return nil, nil, err
	}
	if node, err := m.e.nodeOf(&peer.Peer{AuthInfo: info}); err != nil || node != m.node {
		conn.Close()
		return nil, nil, fmt.Errorf("node %d answers for node %d: %w", node, m.node, err)
	}
	return conn, info, nil
}

func (m *memberCreds) Clone() credentials.TransportCredentials {
	return &memberCreds{m.TransportCredentials.Clone(), m.e, m.node}
}
