package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
	// userTimeout ends a connection whose bytes nobody acknowledges.
	userTimeout = 2 * time.Second
)

// link is one stream towards one process over one heartbeat device, kept up until cancelled.
type link struct{ cancel context.CancelFunc }

// startLink is called with Transport.mu held.
func (t *Transport) startLink(p *member, l cluster.Link) *link {
	ctx, cancel := context.WithCancel(context.Background())
	process, port, out := p.process, p.port, p.out
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		wait := firstRetry
		for ctx.Err() == nil {
			began := time.Now()
			err := t.runLink(ctx, p, process, l, port, out)
			if ctx.Err() != nil {
				return
			}
			t.o.Log.Debug("HA stream ended", "node", p.node, "device", l.Device, "error", err)
			if time.Since(began) > lastRetry {
				wait = firstRetry
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, lastRetry)
		}
	}()
	return &link{cancel: cancel}
}

func dialer(l cluster.Link, port uint16) func(context.Context, string) (net.Conn, error) {
	host := l.Addr
	if ip := net.ParseIP(host); ip != nil && ip.IsLinkLocalUnicast() {
		host += "%" + l.Device
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(port)))
	d := net.Dialer{Timeout: time.Second, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	return func(ctx context.Context, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

// runLink brings the stream up and keeps it until it breaks.
func (t *Transport) runLink(ctx context.Context, p *member, process cluster.ProcessID, l cluster.Link, port uint16, out *outbox) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+l.Device,
		grpc.WithTransportCredentials(credentials.NewTLS(t.o.TLS)), grpc.WithContextDialer(dialer(l, port)),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}))
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := syncpb.NewStateSyncClient(conn).Replicate(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&syncpb.StreamUp{Hello: &syncpb.Hello{Process: uint64(t.o.Process), ToProcess: uint64(process)}}); err != nil {
		_, err = s.Recv() // says why
		return err
	}
	m, err := s.Recv()
	if err != nil {
		return err
	}
	if from, err := t.node(s.Context()); err != nil || from != p.node {
		return fmt.Errorf("node %d answered for node %d: %v", from, p.node, err)
	}
	if m.Hello == nil || m.Hello.Process != uint64(process) {
		return errors.New("another process answered than the one that is heard")
	}
	t.stood(p, process, true)
	defer t.stood(p, process, false)
	failed := make(chan error, 1)
	go func() { failed <- t.readAcks(p, process, s, out) }()
	defer func() { cancel(); <-failed }()
	cursor := m.Hello.Have
	for {
		frames, more := out.after(cursor)
		if len(frames) == 0 {
			select {
			case <-more:
				continue
			case err := <-failed:
				failed <- err
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for _, f := range frames {
			if err := s.Send(&syncpb.StreamUp{Frame: f.b, Seq: f.seq}); err != nil {
				return err
			}
			cursor = f.seq
		}
	}
}

func (t *Transport) readAcks(p *member, process cluster.ProcessID, s grpc.BidiStreamingClient[syncpb.StreamUp, syncpb.StreamDown], out *outbox) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		out.ack(m.Ack)
		t.o.Handler.Ack(p.node, process, m.Ack)
	}
}

// node is who stands at the other end, by its certificate.
func (t *Transport) node(ctx context.Context) (cluster.NodeID, error) {
	pr, ok := peer.FromContext(ctx)
	if !ok {
		return 0, errors.New("no peer")
	}
	info, ok := pr.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return 0, errors.New("not authenticated")
	}
	return t.o.PeerNode(info.State)
}
