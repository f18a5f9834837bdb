package stream

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"tandem/cluster"
	"tandem/internal/testkit"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
)

func TestFramesTravelAndAreAcknowledged(t *testing.T) {
	_, _, one, two := pair(t)
	two.knows(one, "hb1", "hb2") // both ways at once
	one.told("up 2 b1")
	two.told("up 1 a1")
	bothOpen(t, one, two)
	one.sends(two, 1, 2000, 100)
	two.until("all arrive", func() bool { return two.high == 2000 })
	one.until("all are acknowledged", func() bool { return one.ackedTo == 2000 })
	if frames, bytes := one.kept(2); frames != 0 || bytes != 0 {
		t.Errorf("%d frames, %d bytes are kept although acknowledged", frames, bytes)
	}
}

func TestEveryFrameTravelsOnEveryLink(t *testing.T) {
	_, _, one, two := pair(t)
	two.ack = false // what is acknowledged need not travel again
	bothOpen(t, one, two)
	one.sends(two, 1, 50, 100)
	testkit.Until(t, "each frame comes twice", func() bool { return two.second(1) == 50 })
	two.mu.Lock()
	defer two.mu.Unlock()
	if two.all != 50 {
		t.Errorf("%d frames were handed up, want the first arrivals", two.all)
	}
}

func TestOneLinkCut(t *testing.T) {
	_, m, one, two := pair(t)
	bothOpen(t, one, two)
	one.sends(two, 1, 10, 100)
	m.sever("hb1")
	one.sends(two, 11, 20, 100)
	two.until("the other link carries all", func() bool { return two.high == 20 })
	before := m.dials("hb1")
	testkit.Until(t, "it dials again", func() bool { return m.dials("hb1") > before+1 })
	m.mend("hb1")
	bothOpen(t, one, two)
	m.sever("hb2")
	one.sends(two, 21, 30, 100)
	two.until("the mended link carries all", func() bool { return two.high == 30 })
	one.told("up 2 b1") // and never down
}

func TestBothLinksCut(t *testing.T) {
	_, m, one, two := pair(t)
	bothOpen(t, one, two)
	one.sends(two, 1, 10, 100)
	one.until("acknowledged", func() bool { return one.ackedTo == 10 })
	m.sever("hb1")
	m.sever("hb2")
	one.told("up 2 b1", "down 2 b1")
	one.sends(two, 11, 40, 100)
	m.mend("hb2")
	one.told("up 2 b1", "down 2 b1", "up 2 b1")
	two.until("what was sent meanwhile", func() bool { return two.high == 40 })
	one.until("acknowledged", func() bool { return one.ackedTo == 40 })
}

// An acknowledgement that was lost with its link is in the hello of the next.
func TestHelloAcknowledges(t *testing.T) {
	_, m, one, two := pair(t)
	two.ack = false
	bothOpen(t, one, two)
	one.sends(two, 1, 10, 100)
	two.until("arrived", func() bool { return two.high == 10 })
	m.sever("hb1")
	m.sever("hb2")
	testkit.Until(t, "no stream", func() bool { return two.streams(1) == 0 })
	two.Ack(statesync.SendAck{Node: 1, Process: 0xa1, Seq: 10})
	m.mend("hb1")
	one.until("acknowledged", func() bool { return one.ackedTo == 10 })
}

func TestStalledLinkHoldsUpNobody(t *testing.T) {
	_, m, one, two := pair(t)
	bothOpen(t, one, two)
	m.stall("hb1")
	before := m.dials("hb1")
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		one.sends(two, 1, 200, 64<<10) // 12 MB: more than any buffer on the way
	}()
	select {
	case <-sent:
	case <-time.After(10 * time.Second):
		t.Fatal("the caller is held up")
	}
	two.until("the other link carries all", func() bool { return two.high == 200 })
	one.until("acknowledged", func() bool { return one.ackedTo == 200 })
	two.mu.Lock()
	two.ack = false
	two.mu.Unlock()
	one.sends(two, 201, 240, 64<<10) // for hb1 to choke on
	testkit.Until(t, "the stalled link is torn down and dialled again", func() bool { return m.dials("hb1") > before })
	one.told("up 2 b1")
	m.mend("hb1")
	bothOpen(t, one, two)
}

func TestSlowReader(t *testing.T) {
	_, _, one, two := pair(t)
	two.mu.Lock()
	two.hold, two.ack = true, false
	two.mu.Unlock()
	bothOpen(t, one, two)
	const n, size = 400, 32 << 10
	one.sends(two, 1, n, size)
	two.until("as much as a link may read ahead", func() bool { return two.all >= maxInflight/size })
	two.mu.Lock()
	held := two.held
	two.held, two.hold, two.ack = nil, false, true
	two.mu.Unlock()
	for _, r := range held {
		r.Done()
	}
	two.until("the rest follows", func() bool { return two.high == n })
	if len(held) > 2*maxInflight/size {
		t.Errorf("the handler was given %d frames ahead by two links", len(held))
	}
}

func TestRestartedCopyForgetsWhatWasBefore(t *testing.T) {
	_, m, one, two := pair(t)
	bothOpen(t, one, two)
	m.sever("hb1")
	m.sever("hb2")
	one.told("up 2 b1", "down 2 b1")
	one.sends(two, 1, 10, 100)
	two.mu.Lock()
	two.high = 10 // as the replica would, which takes the beginning of a copy after any number
	two.mu.Unlock()
	one.Send(statesync.SendFrame{Node: 2, Process: 0xb1, Seq: 11, Restart: true, Frame: frameOf(11, 8)})
	m.mend("hb1")
	one.until("acknowledged", func() bool { return one.ackedTo == 11 })
	two.mu.Lock()
	defer two.mu.Unlock()
	if !slices.Equal(two.got, []uint64{11}) || two.all != 1 {
		t.Errorf("%v arrived, %d in all; want 11 alone", two.got, two.all)
	}
}

func TestProcessRestarts(t *testing.T) {
	a, m, one, two := pair(t)
	bothOpen(t, one, two)
	one.sends(two, 1, 3, 100)
	one.until("acknowledged", func() bool { return one.ackedTo == 3 })
	two.Close()
	one.told("up 2 b1", "down 2 b1")
	one.sends(two, 4, 5, 100) // never to arrive
	again := newHost(t, a, m, 2, 0xb2)
	again.ack = true
	one.knows(again, "hb1", "hb2")
	one.told("up 2 b1", "down 2 b1", "up 2 b2")
	one.sends(two, 6, 6, 100)
	one.sends(again, 1, 1, 100)
	bothOpen(t, one, again)
	again.until("its own frames", func() bool { return again.high == 1 })
	again.mu.Lock()
	defer again.mu.Unlock()
	if again.all > 2 {
		t.Errorf("%d frames arrived, those for the former process among them", again.all)
	}
}

// The process may change behind an address before heartbeats tell of it.
func TestProcessChangesUnderTheLink(t *testing.T) {
	a, m, one, two := pair(t)
	bothOpen(t, one, two)
	again := newHost(t, a, m, 2, 0xb2)
	// hb2 moves to the new process while hb1 still leads to the old one.
	one.SetPeers(2, 0xb1, []cluster.Link{{Device: "hb2", Addr: "127.0.0.1"}}, again.port)
	one.until("the new process", func() bool { return slices.Contains(one.events, "up 2 b2") })
	one.told("up 2 b1", "down 2 b1", "up 2 b2")
	// The old one is not believed any more.
	before := m.dials("hb3")
	one.SetPeers(2, 0xb1, []cluster.Link{{Device: "hb3", Addr: "127.0.0.1"}}, two.port)
	testkit.Until(t, "it is dialled", func() bool { return m.dials("hb3") > before+2 })
	one.told("up 2 b1", "down 2 b1", "up 2 b2", "down 2 b2")
}

func TestResync(t *testing.T) {
	_, _, one, two := pair(t)
	two.ack = false
	bothOpen(t, one, two)
	one.sends(two, 1, 5, 100)
	testkit.Until(t, "arrived twice", func() bool { return two.second(1) == 5 })
	two.Ack(statesync.SendAck{Node: 1, Process: 0xa1, Seq: 3})
	one.until("acknowledged", func() bool { return one.ackedTo == 3 })
	two.Resync(1, 0)
	two.until("what is not acknowledged comes again", func() bool { return two.all == 7 })
}

func TestLinksComeAndGo(t *testing.T) {
	_, _, one, two := pair(t)
	bothOpen(t, one, two)
	one.knows(two, "hb2")
	testkit.Until(t, "one stream", func() bool { return two.streams(1) == 1 })
	one.SetPeers(2, 0, nil, 0)
	one.told("up 2 b1", "down 2 b1")
	one.knows(two, "hb1")
	one.told("up 2 b1", "down 2 b1", "up 2 b1")
}

func TestStrangersAreRefused(t *testing.T) {
	a, m, one, two := pair(t)
	bothOpen(t, one, two)
	three := newHost(t, a, m, 3, 0xc1)
	stranger := newHost(t, newAuthority(t), m, 2, 0xd1)

	// Node 3 answers where node 4 is expected; a stranger where node 5 is.
	one.SetPeers(4, 0, []cluster.Link{{Device: "hb4", Addr: "127.0.0.1"}}, three.port)
	one.SetPeers(5, 0, []cluster.Link{{Device: "hb5", Addr: "127.0.0.1"}}, stranger.port)
	// A stranger calls; so does somebody with our own certificate.
	stranger.SetPeers(1, 0, []cluster.Link{{Device: "hb6", Addr: "127.0.0.1"}}, one.port)
	twin := newHost(t, a, m, 1, 0xe1)
	twin.SetPeers(7, 0, []cluster.Link{{Device: "hb7", Addr: "127.0.0.1"}}, one.port)
	for _, d := range []string{"hb4", "hb5", "hb6", "hb7"} {
		testkit.Until(t, d+" was tried", func() bool { return m.dials(d) > 2 })
	}
	one.told("up 2 b1")
	for _, h := range []*host{stranger, twin} {
		h.told()
	}
	one.Endpoint.mu.Lock()
	defer one.Endpoint.mu.Unlock()
	for n, r := range one.in {
		if n != 3 && len(r.streams) > 0 {
			t.Errorf("node %d has a stream to us", n)
		}
	}
}

// client opens raw streams, as a member that went bad could.
func client(t *testing.T, a *authority, node cluster.NodeID, to *host) syncpb.StateSyncClient {
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(a.tls(t, node)))),
		grpc.WithContextDialer(opaqueDial(to)), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return syncpb.NewStateSyncClient(cc)
}

func TestBadMemberIsBounded(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	two := newHost(t, a, m, 2, 0xb1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	open := func(c syncpb.StateSyncClient, hello *syncpb.StreamUp) syncpb.StateSync_ReplicateClient {
		s, err := c.Replicate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(hello); err != nil {
			t.Fatal(err)
		}
		return s
	}
	hello := &syncpb.StreamUp{Hello: &syncpb.Hello{Process: 0xa1}}
	refused := func(why string, s syncpb.StateSync_ReplicateClient, want codes.Code) {
		t.Helper()
		for {
			m, err := s.Recv()
			if err != nil {
				if status.Code(err) != want {
					t.Errorf("%s: %v, want %v", why, err, want)
				}
				return
			}
			if m.Hello == nil {
				t.Errorf("%s: answered with %v", why, m)
				return
			}
		}
	}
	refused("no hello", open(client(t, a, 1, two), &syncpb.StreamUp{Frame: frameOf(1, 8), Seq: 1}), codes.InvalidArgument)
	refused("our own process", open(client(t, a, 1, two), &syncpb.StreamUp{Hello: &syncpb.Hello{Process: 0xb1}}), codes.InvalidArgument)
	s := open(client(t, a, 1, two), hello)
	if err := s.Send(&syncpb.StreamUp{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	refused("an empty frame", s, codes.Aborted)
	s = open(client(t, a, 1, two), hello)
	_ = s.Send(&syncpb.StreamUp{Seq: 1, Frame: make([]byte, maxMessage+1)}) // Recv tells
	refused("a message beyond the bounds", s, codes.ResourceExhausted)
	two.mu.Lock()
	if two.all != 0 {
		t.Errorf("%d frames of this reached the handler", two.all)
	}
	two.mu.Unlock()

	oldest := open(client(t, a, 1, two), hello)
	testkit.Until(t, "the first stream", func() bool { return two.streams(1) == 1 })
	for range maxStreams {
		open(client(t, a, 1, two), hello)
	}
	refused("the oldest of too many streams", oldest, codes.Aborted)
	testkit.Until(t, "bounded", func() bool { return two.streams(1) == maxStreams })
	open(client(t, a, 1, two), &syncpb.StreamUp{Hello: &syncpb.Hello{Process: 0xa2}})
	testkit.Until(t, "another process replaces them", func() bool { return two.streams(1) == 1 })
}

func TestBacklogIsBounded(t *testing.T) {
	_, m, one, two := pair(t)
	bothOpen(t, one, two)
	m.sever("hb1")
	m.sever("hb2")
	one.told("up 2 b1", "down 2 b1")
	one.opt.Backlog = 10_000
	one.sends(two, 1, 1000, 1000)
	if frames, bytes := one.kept(2); bytes != 10_000 || frames != 10 {
		t.Errorf("%d frames of %d bytes are kept", frames, bytes)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	_, m, one, two := pair(t)
	m.sever("nowhere")
	two.knows(one, "hb1", "hb2", "nowhere")
	bothOpen(t, one, two)
	bothOpen(t, two, one)
	m.stall("hb1")
	one.sends(two, 1, 100, 64<<10)
	two.mu.Lock()
	two.hold = true
	two.mu.Unlock()
	one.Close()
	one.Close() // again does nothing
	two.Close()
	one.knows(two, "hb1")
	one.sends(two, 101, 102, 8)
	if _, err := one.Listen("127.0.0.1:0"); err == nil {
		t.Error("listens after Close")
	}
	one.mu.Lock()
	events := len(one.events)
	one.mu.Unlock()
	testkit.Until(t, "no goroutine is left", func() bool {
		buf := make([]byte, 1<<20)
		n := 0
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "sync/stream.(*") || strings.Contains(g, "google.golang.org/grpc") {
				n++
			}
		}
		return n == 0
	})
	one.mu.Lock()
	defer one.mu.Unlock()
	if len(one.events) != events {
		t.Errorf("told %q after Close", one.events[events:])
	}
}
