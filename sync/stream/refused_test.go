package stream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"tandem/internal/quiet"
	"tandem/internal/testkit"
	"tandem/proto/syncpb"
)

func refusals(log *testkit.Log) []string { return log.With("replication stream refused") }

// expired is a configuration with a certificate that has ended.
func (a *authority) expired(t testing.TB, node string) *tls.Config {
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(99), Subject: pkix.Name{CommonName: node},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: a.pool}
}

// TestRefusedStreams: whoever has no right to a stream is turned away, and the log says
// so in one line with address and reason, however often it is tried; the streams of the
// members go on.
func TestRefusedStreams(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	log := &testkit.Log{}
	two := newDeafHost(t, a, m.dial, 2, 0xb1)
	two.refuse = quiet.NewRefusals(slog.New(slog.NewTextHandler(log, nil)), "replication stream refused")
	addr, err := two.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	two.port = uint16(addr.(*net.TCPAddr).Port)
	one := newHost(t, a, m, 1, 0xa1)
	one.ack, two.ack = true, true
	two.SetPeers(1, one.process, nil, 0) // as heartbeats tell
	one.knows(two, "hb1")
	one.told("up 2 b1")
	one.sends(two, 1, 3, 100)
	two.until("frames", func() bool { return two.high == 3 })

	try := func(c *tls.Config, hello uint64, after ...*syncpb.StreamUp) error {
		cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(credentials.NewTLS(c)), grpc.WithContextDialer(opaqueDial(two)))
		if err != nil {
			return err
		}
		defer cc.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		s, err := syncpb.NewStateSyncClient(cc).Replicate(ctx)
		if err != nil {
			return err
		}
		_ = s.Send(&syncpb.StreamUp{Hello: &syncpb.Hello{Process: hello, Scoped: true}})
		for _, m := range after {
			_ = s.Send(m)
		}
		for {
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
	}
	foreign := newAuthority(t)
	for _, c := range []struct {
		what, reason string
		tls          *tls.Config
		hello        uint64
		after        []*syncpb.StreamUp
		code         codes.Code
	}{
		{"no certificate", "didn't provide a certificate", &tls.Config{InsecureSkipVerify: true}, 7, nil, codes.Unavailable},
		{"another cluster's certificate", "unknown authority", testkit.Shows(foreign.tls(t, 1).Certificates[0]), 7, nil, codes.Unavailable},
		{"an expired certificate", "expired", testkit.Shows(a.expired(t, "1").Certificates[0]), 7, nil, codes.Unavailable},
		{"the receiver's own number", "our own certificate", testkit.Shows(a.tls(t, 2).Certificates[0]), 7, nil, codes.Unauthenticated},
		{"the number of a member that is connected", "heartbeats name process a1", testkit.Shows(a.tls(t, 1).Certificates[0]), 7, nil, codes.FailedPrecondition},
		{"no process", "no hello", testkit.Shows(a.tls(t, 1).Certificates[0]), 0, nil, codes.InvalidArgument},
		{"a message without a frame", "without a frame", testkit.Shows(a.tls(t, 3).Certificates[0]), 9, []*syncpb.StreamUp{{Seq: 1}}, codes.Aborted},
	} {
		before := len(refusals(log))
		for range 3 {
			if err := try(c.tls, c.hello, c.after...); status.Code(err) != c.code {
				t.Errorf("%s: %v, want %v", c.what, err, c.code)
			}
		}
		testkit.Until(t, c.what+": a line", func() bool { return len(refusals(log)) > before })
		lines := refusals(log)[before:]
		if len(lines) != 1 || !strings.Contains(lines[0], c.reason) || !strings.Contains(lines[0], "from=127.0.0.1:") {
			t.Errorf("%s: %q", c.what, lines)
		}
	}
	one.sends(two, 4, 6, 100)
	two.until("frames of the true member", func() bool { return two.high == 6 })
	if n := two.streams(1); n != 1 {
		t.Errorf("%d streams of the member", n)
	}

	// A restart; then what the former process said is played back.
	one.Close()
	testkit.Until(t, "its stream has ended", func() bool { return two.streams(1) == 0 })
	again := newHost(t, a, m, 1, 0xa2)
	again.ack = true
	two.SetPeers(1, again.process, nil, 0)
	again.knows(two, "hb1")
	testkit.Until(t, "the new process has a stream", func() bool { return two.streams(1) == 1 })
	before := len(refusals(log))
	for range 3 {
		if err := try(testkit.Shows(a.tls(t, 1).Certificates[0]), 0xa1, &syncpb.StreamUp{Frame: frameOf(7, 100), Seq: 7}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a replayed stream: %v", err)
		}
	}
	if lines := refusals(log)[before:]; len(lines) != 1 || !strings.Contains(lines[0], "is a former one") {
		t.Errorf("a replayed stream: %q", lines)
	}
	two.until("nothing of it", func() bool { return two.high == 6 })
}

// FuzzStreamUp: whatever a member sends, what is taken of it is a frame of a scope.
func FuzzStreamUp(f *testing.F) {
	for _, m := range []*syncpb.StreamUp{
		{Hello: &syncpb.Hello{Process: 1, Scoped: true}}, {Frame: []byte{1}, Seq: 1}, {Frame: []byte{1}, Seq: 1 << 63, Scope: 256, First: true},
		{Frame: []byte{1}, Scope: 1 << 31}, {Seq: 3},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, scoped bool) {
		m := &syncpb.StreamUp{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		scope, err := messageScope(m, scoped)
		if err != nil {
			if !errors.Is(err, errMessage) || scope != 0 {
				t.Fatalf("%v: %v", scope, err)
			}
			return
		}
		if uint32(scope) != m.Scope || len(m.Frame) == 0 || scope != 0 && !scoped {
			t.Fatalf("%v is taken", m)
		}
		// Frames in any order, of as many scopes as it likes.
		r := &receiver{order: make(chan struct{}, 1), room: make(chan struct{}, 1)}
		s, err := r.add(1, 1, &syncpb.Hello{Scoped: scoped})
		if err != nil {
			t.Fatal(err)
		}
		handed := uint64(0)
		for i := range uint64(3) {
			if r.judge(s, scope, m.Seq-i, m.First, len(m.Frame)) == fresh {
				if m.Seq-i <= handed {
					t.Fatalf("%d after %d", m.Seq-i, handed)
				}
				handed = m.Seq - i
				r.give(len(m.Frame))
			}
		}
	})
}

// FuzzStreamDown: a server's hello and answers name scopes that there are, each once, and
// are bounded.
func FuzzStreamDown(f *testing.F) {
	for _, m := range []*syncpb.StreamDown{
		{Hello: &syncpb.Hello{Process: 1, Have: 5, Scoped: true, Scopes: []uint32{256, 257}, Haves: []uint64{1, 2}}},
		{Hello: &syncpb.Hello{Process: 1, Scopes: []uint32{256, 256}, Haves: []uint64{1, 2}}},
		{Hello: &syncpb.Hello{Process: 1, Scopes: make([]uint32, maxScopes+1), Haves: make([]uint64, maxScopes+1)}},
		{Ack: 7, Scope: 256, Resync: true}, {},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &syncpb.StreamDown{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		if h := m.GetHello(); h != nil {
			have, err := held(h)
			if err != nil {
				return
			}
			if len(have) > maxScopes+1 || len(have) < len(h.Scopes) {
				t.Fatalf("%d of %d scopes", len(have), len(h.Scopes))
			}
			for scope, n := range have {
				if again, err := scopeOf(uint32(scope)); err != nil || again != scope || n == 0 {
					t.Fatal(fmt.Sprint(scope, n, err))
				}
			}
			return
		}
		if scope, err := scopeOf(m.Scope); err == nil && uint32(scope) != m.Scope {
			t.Fatalf("%v of %d", scope, m.Scope)
		}
	})
}
