package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/internal/quiet"
	"tandem/internal/testkit"
	"tandem/proto/syncpb"
)

// shared answers with what a test gave it.
type shared struct {
	mu    sync.Mutex
	from  []cluster.NodeID
	text  []byte
	check func(context.Context) string
}

func (s *shared) said(n cluster.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = append(s.from, n)
}

func (s *shared) State(_ context.Context, from cluster.NodeID, m *syncpb.ConfigState) (*syncpb.ConfigState, error) {
	s.said(from)
	if m.GetProcess() == 0 {
		return nil, errors.New("no process")
	}
	return &syncpb.ConfigState{Process: 7}, nil
}

func (s *shared) Text(_ cluster.NodeID, digest []byte) ([]byte, error) {
	if !bytes.Equal(digest, []byte("digest")) {
		return nil, errors.New("not here")
	}
	return s.text, nil
}

func (s *shared) Check(ctx context.Context, _ cluster.NodeID, _ *syncpb.ConfigProposal) *syncpb.ConfigVerdict {
	return &syncpb.ConfigVerdict{Refused: s.check(ctx)}
}

func (s *shared) Propose(_ context.Context, from cluster.NodeID, _ *syncpb.ConfigProposal) *syncpb.ConfigVerdict {
	s.said(from)
	return &syncpb.ConfigVerdict{NotOwner: true}
}

// newSharer is a host that answers about configuration.
func newSharer(t *testing.T, a *authority, m *medium, node cluster.NodeID, process cluster.ProcessID, change ...func(*host)) (*host, *shared) {
	t.Helper()
	h, s := newDeafHost(t, a, m.dial, node, process), &shared{}
	h.opt.Config = s
	for _, c := range change {
		c(h)
	}
	syncpb.RegisterConfigurationServer(h.server, &configServer{e: h.Endpoint})
	addr, err := h.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.port = uint16(addr.(*net.TCPAddr).Port)
	return h, s
}

func TestConfigurationTravels(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	one := newHost(t, a, m, 1, 0xa1)
	two, s := newSharer(t, a, m, 2, 0xb1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	one.knows(two, "hb1", "hb2")
	m.sever("hb1") // the other link serves
	if st, err := one.ConfigState(ctx, 2, &syncpb.ConfigState{Process: 5}); err != nil || st.GetProcess() != 7 {
		t.Fatalf("%v %v", st, err)
	}
	if _, err := one.ConfigState(ctx, 2, &syncpb.ConfigState{}); err == nil || err.Error() != "no process" {
		t.Errorf("what the handler refuses: %v", err)
	}
	s.text = bytes.Repeat([]byte("0123456789"), 3*textPart/10)
	if text, err := one.ConfigText(ctx, 2, []byte("digest"), len(s.text)); err != nil || !bytes.Equal(text, s.text) {
		t.Errorf("%d bytes of %d: %v", len(text), len(s.text), err)
	}
	if _, err := one.ConfigText(ctx, 2, []byte("digest"), len(s.text)-1); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a text that is too long: %v", err)
	}
	if _, err := one.ConfigText(ctx, 2, []byte("another"), 10); err == nil || err.Error() != "not here" {
		t.Errorf("a text that nobody has: %v", err)
	}
	// What is asked meanwhile does not wait for a check.
	s.check = func(ctx context.Context) string {
		if _, err := one.ConfigState(ctx, 2, &syncpb.ConfigState{Process: 5}); err != nil {
			return err.Error()
		}
		return "keylife"
	}
	if v, err := one.ConfigCheck(ctx, 2, &syncpb.ConfigProposal{}); err != nil || v.GetRefused() != "keylife" {
		t.Errorf("%v %v", v, err)
	}
	if v, err := one.ConfigPropose(ctx, 2, &syncpb.ConfigProposal{}); err != nil || !v.GetNotOwner() {
		t.Errorf("%v %v", v, err)
	}
	if len(s.from) == 0 || s.from[0] != 1 {
		t.Errorf("it heard of %v", s.from)
	}

	// The member restarts at another port; calls find it when heartbeats do.
	one.SetPeers(2, 0, nil, 0)
	two.Close()
	again, _ := newSharer(t, a, m, 2, 0xb2)
	one.knows(again, "hb2")
	if st, err := one.ConfigState(ctx, 2, &syncpb.ConfigState{Process: 5}); err != nil || st.GetProcess() != 7 {
		t.Errorf("%v %v", st, err)
	}
}

// A build of before is told apart from one that does not answer.
func TestConfigurationOfAnEarlierBuild(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	one, two := newHost(t, a, m, 1, 0xa1), newHost(t, a, m, 2, 0xb1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	one.knows(two, "hb1")
	if _, err := one.ConfigState(ctx, 2, &syncpb.ConfigState{Process: 5}); !errors.Is(err, ErrOld) {
		t.Errorf("an earlier build: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := one.ConfigState(short, 3, &syncpb.ConfigState{Process: 5}); err == nil || errors.Is(err, ErrOld) {
		t.Errorf("a node that nobody knows: %v", err)
	}
}

// The text goes to members of the cluster only, and only to the one that is meant.
func TestConfigurationIsRefused(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	log := &testkit.Log{}
	two, s := newSharer(t, a, m, 2, 0xb1)
	s.text = []byte("psksecret")
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	stranger := newHost(t, newAuthority(t), m, 1, 0xa1)
	stranger.knows(two, "hb1")
	if text, err := stranger.ConfigText(short(), 2, []byte("digest"), 100); err == nil {
		t.Errorf("a stranger reads %q", text)
	}
	// Who is not let in, as a witness is not, hears nothing.
	one := newHost(t, a, m, 1, 0xa1)
	strict, hidden := newSharer(t, a, m, 2, 0xb2, func(h *host) {
		h.refuse = quiet.NewRefusals(slog.New(slog.NewTextHandler(log, nil)), "replication stream refused")
		h.opt.PeerNode = func(tls.ConnectionState) (cluster.NodeID, error) { return 0, errors.New("it has no part in this") }
	})
	hidden.text = s.text
	one.knows(strict, "hb1")
	if text, err := one.ConfigText(short(), 2, []byte("digest"), 100); err == nil || !strings.Contains(err.Error(), "has no part") {
		t.Errorf("a witness reads %q: %v", text, err)
	}
	testkit.Until(t, "a line about it", func() bool { return len(refusals(log)) > 0 })
	// Another member answers at the address: it is told nothing.
	three := newHost(t, a, m, 3, 0xc1)
	three.SetPeers(4, 0xd1, []cluster.Link{{Device: "hb1", Addr: "127.0.0.1"}}, two.port)
	if _, err := three.ConfigState(short(), 4, &syncpb.ConfigState{Process: 5}); err == nil || len(s.from) > 0 {
		t.Errorf("node 2 answered for node 4: %v, %v", err, s.from)
	}
}
