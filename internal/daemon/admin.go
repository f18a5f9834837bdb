package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tandem/proto/adminpb"
)

// outputChunk bounds one message of command output, in bytes.
const outputChunk = 32 << 10

// adminServer answers commands on the unix socket.
type adminServer struct {
	adminpb.UnimplementedAdminServer
	d    backend
	done context.Context // ends live commands when the daemon stops
}

// Execute runs one command. Its failure travels as text and exit code; a gRPC
// error means that the call itself broke.
func (a *adminServer) Execute(r *adminpb.ExecuteRequest, stream adminpb.Admin_ExecuteServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(a.done, cancel)()
	out := &chunkWriter{stream: stream}
	s := &session{ctx: ctx, d: a.d, out: out, json: r.GetJson(), showKeys: r.GetShowKeys()}
	err := s.execute(r.GetWords())
	if ferr := out.flush(); ferr != nil {
		return ferr
	}
	last := &adminpb.ExecuteOutput{Done: true, ExitCode: int32(exitCode(err))}
	if err != nil {
		last.Stderr = []byte(err.Error() + "\n")
	}
	return stream.Send(last)
}

// chunkWriter gathers output into messages. Live output is flushed line by line.
type chunkWriter struct {
	stream adminpb.Admin_ExecuteServer
	buf    []byte
	err    error
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	if len(w.buf) >= outputChunk {
		return len(p), w.flush()
	}
	return len(p), w.err
}

func (w *chunkWriter) flush() error {
	for w.err == nil && len(w.buf) > 0 {
		n := min(len(w.buf), outputChunk)
		w.err = w.stream.Send(&adminpb.ExecuteOutput{Stdout: w.buf[:n]})
		w.buf = append([]byte(nil), w.buf[n:]...)
	}
	return w.err
}

// flush hands live output on at once where the writer gathers it.
func (s *session) flush() error {
	if f, ok := s.out.(interface{ flush() error }); ok {
		return f.flush()
	}
	return nil
}

// serveAdmin listens on the socket and serves until stop is called. A socket left
// by an earlier life is replaced; one that somebody answers on is not.
func serveAdmin(path string, d backend) (stop func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("admin socket %s: another tandem answers on it", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	// The socket must never be open to others, not even between bind and chmod:
	// it is made under a name nobody knows, and renamed when it is right.
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64<<10), grpc.MaxConcurrentStreams(64))
	adminpb.RegisterAdminServer(g, &adminServer{d: d, done: ctx})
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	return func() {
		cancel()
		g.GracefulStop()
		wg.Wait()
		_ = os.Remove(path)
	}, nil
}

// Execute is the client's side: it runs words at the daemon behind the socket and
// copies what comes back. The error is about the call, not about the command.
func Execute(ctx context.Context, conn grpc.ClientConnInterface, r *adminpb.ExecuteRequest, stdout, stderr io.Writer) (int, error) {
	stream, err := adminpb.NewAdminClient(conn).Execute(ctx, r)
	if err != nil {
		return exitFailed, err
	}
	for {
		m, err := stream.Recv()
		switch {
		case err == io.EOF:
			return exitFailed, errors.New("the daemon ended the answer early")
		case status.Code(err) == codes.Canceled && ctx.Err() != nil:
			return exitOK, nil // a live command, interrupted
		case err != nil:
			return exitFailed, err
		}
		if _, err := stdout.Write(m.GetStdout()); err != nil {
			return exitFailed, err
		}
		if _, err := stderr.Write(m.GetStderr()); err != nil {
			return exitFailed, err
		}
		if m.GetDone() {
			return int(m.GetExitCode()), nil
		}
	}
}
