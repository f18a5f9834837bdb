package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"tandem/proto/adminpb"
)

// memberCommand runs one of the daemon's commands through its admin API, with JSON as
// its output. A farm is asked ten times a second while it recovers, and a process for
// each question would take the processor that the farm needs.
func memberCommand(ctx context.Context, socket string, words ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // a drain waits for its end
	defer cancel()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := adminpb.NewAdminClient(conn).Execute(ctx, &adminpb.ExecuteRequest{Words: words, Json: true})
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil, fmt.Errorf("%s: the answer ended early", strings.Join(words, " "))
		}
		if err != nil {
			return nil, err
		}
		out.Write(m.GetStdout())
		errs.Write(m.GetStderr())
		if !m.GetDone() {
			continue
		}
		if code := m.GetExitCode(); code != 0 {
			return nil, fmt.Errorf("%s: exit status %d: %s", strings.Join(words, " "), code, strings.TrimSpace(errs.String()))
		}
		return out.Bytes(), nil
	}
}
