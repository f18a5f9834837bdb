package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"tandem/cluster"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
)

func (h *host) sendsIn(o *host, scope cluster.ScopeID, from, to uint64, size int) {
	for seq := from; seq <= to; seq++ {
		h.Send(statesync.SendFrame{Scope: scope, Node: o.node, Process: o.process, Seq: seq, Frame: frameOf(seq, size)})
	}
}

// scoped replaces what a host does with frames: a scope whose frames are not dealt with
// holds up its own acknowledgements and nothing else.
type scoped struct {
	h       *host
	slow    map[cluster.ScopeID]bool
	high    map[cluster.ScopeID]uint64
	all     map[cluster.ScopeID]int
	ackedTo map[cluster.ScopeID]uint64
	order   []cluster.ScopeID // of the frames
	held    []Received
}

func byScope(h *host) *scoped {
	s := &scoped{h: h, slow: map[cluster.ScopeID]bool{}, high: map[cluster.ScopeID]uint64{}, all: map[cluster.ScopeID]int{}, ackedTo: map[cluster.ScopeID]uint64{}}
	h.opt.Handler.Ack = func(_ cluster.NodeID, _ cluster.ProcessID, scope cluster.ScopeID, seq uint64) {
		h.mu.Lock()
		defer h.mu.Unlock()
		s.ackedTo[scope] = max(s.ackedTo[scope], seq)
	}
	h.opt.Handler.Frame = func(r Received) {
		seq, ok := number(r.Frame)
		h.mu.Lock()
		s.all[r.Scope]++
		s.order = append(s.order, r.Scope)
		if !ok || seq > s.high[r.Scope]+1 {
			h.disgust = fmt.Sprintf("frame %d of %v after %d", seq, r.Scope, s.high[r.Scope])
		}
		s.high[r.Scope] = max(s.high[r.Scope], seq)
		slow := s.slow[r.Scope]
		if slow {
			s.held = append(s.held, r)
		}
		h.mu.Unlock()
		if !slow {
			h.Ack(statesync.SendAck{Scope: r.Scope, Node: r.Node, Process: r.Process, Seq: seq})
			r.Done()
		}
	}
	return s
}

func number(b []byte) (n uint64, ok bool) {
	if len(b) < 8 {
		return 0, false
	}
	for _, x := range b[:8] {
		n = n<<8 | uint64(x)
	}
	return n, true
}

// A scope whose handler is not done keeps its own frames; the others are acknowledged
// as if it were not there, as long as the bytes with the handler leave room.
func TestBubbleSlowScope(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		sender, receiver := byScope(one), byScope(two)
		receiver.slow[300] = true
		one.sendsIn(two, 300, 1, 14, 64<<10) // 0.9 MB
		pass(time.Second)
		for i := range uint64(50) {
			for _, scope := range []cluster.ScopeID{0, 256} {
				t0 := time.Now()
				one.sendsIn(two, scope, i+1, i+1, 1000)
				one.until("acknowledged", func() bool { return sender.ackedTo[scope] == i+1 })
				if took := time.Since(t0); took > 3*quick {
					t.Fatalf("frame %d of %v is acknowledged after %v", i+1, scope, took)
				}
			}
		}
		if sender.ackedTo[300] != 0 || receiver.high[300] != 14 {
			t.Errorf("the slow scope has %d and acknowledged %d", receiver.high[300], sender.ackedTo[300])
		}
		// Beyond the bound all wait, until room is given back.
		one.sendsIn(two, 300, 15, 40, 64<<10)
		pass(time.Second)
		one.sendsIn(two, 256, 51, 51, 1000)
		pass(100 * time.Millisecond)
		if receiver.high[300] != maxInflight>>16 || receiver.high[256] != 50 {
			t.Errorf("frame %d of the slow scope and %d of another are handed up; want %d, 50", receiver.high[300], receiver.high[256], maxInflight>>16)
		}
		two.mu.Lock()
		held := receiver.held
		receiver.held, receiver.slow[300] = nil, false
		two.mu.Unlock()
		for _, r := range held {
			r.Done()
		}
		two.Ack(statesync.SendAck{Scope: 300, Node: 1, Process: one.process, Seq: uint64(len(held))})
		pass(10 * time.Second)
		if sender.ackedTo[300] != 40 || sender.ackedTo[256] != 51 || receiver.all[300] != 40 || two.disgust != "" {
			t.Errorf("at the end %v are acknowledged, %v arrived; %s", sender.ackedTo, receiver.all, two.disgust)
		}
		if frames, bytes := one.kept(2); frames != 0 || bytes != 0 {
			t.Errorf("%d frames, %d bytes are kept although acknowledged", frames, bytes)
		}
		one.wantState(0, 0, 0, "up 2 b1")
	})
}

// A record waits behind one frame of each scope that is being copied, not behind copies.
func TestBubbleScopesTakeTurns(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		for _, d := range []string{"hb1", "hb2"} {
			f.change(d, func(l *line) { l.rate = 2 << 20 })
		}
		_, receiver := byScope(one), byScope(two)
		for scope := range cluster.ScopeID(3) {
			one.sendsIn(two, 256+scope, 1, 200, 32<<10)
		}
		one.sendsIn(two, 300, 1, 3, 100)
		pass(time.Minute)
		two.mu.Lock()
		defer two.mu.Unlock()
		last := 0
		for i, scope := range receiver.order {
			if scope == 300 {
				last = i
			}
		}
		// The first scope's frames may be on their way already, a window at most.
		if most := window>>15 + 4*3 + 8; last > most || len(receiver.order) != 603 {
			t.Errorf("the last of 3 small frames came after %d of %d frames; want %d at most", last, len(receiver.order), most)
		}
	})
}

// Resync begins one scope again: the streams stay, and the others see nothing twice,
// although their frames and its own are under way.
func TestBubbleResyncOfOneScope(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		sender, receiver := byScope(one), byScope(two)
		receiver.slow[256] = true
		one.sendsIn(two, 256, 1, 10, 1000)
		one.sendsIn(two, 300, 1, 10, 1000)
		pass(time.Second)
		two.Ack(statesync.SendAck{Scope: 256, Node: 1, Process: one.process, Seq: 4})
		pass(time.Second)
		dials := len(f.dials("hb1")) + len(f.dials("hb2"))
		one.sendsIn(two, 256, 11, 12, 1000) // under way when it begins again
		one.sendsIn(two, 300, 11, 12, 1000)
		two.mu.Lock()
		receiver.slow[256] = false
		for _, r := range receiver.held {
			r.Done()
		}
		receiver.high[256], receiver.all[256], receiver.held = 4, 0, nil // the replica lost the rest
		two.mu.Unlock()
		two.Resync(1, 256)
		two.Resync(1, 256)
		pass(2 * time.Second)
		if receiver.all[256] != 8 || receiver.high[256] != 12 || two.disgust != "" {
			t.Errorf("%d frames up to %d came again, want 5 to 12; %s", receiver.all[256], receiver.high[256], two.disgust)
		}
		if receiver.all[300] != 12 || sender.ackedTo[300] != 12 || sender.ackedTo[256] != 12 {
			t.Errorf("the other scope saw %d frames, want 12; acknowledged: %v", receiver.all[300], sender.ackedTo)
		}
		if n := len(f.dials("hb1")) + len(f.dials("hb2")); n != dials {
			t.Errorf("dialled %d times for it", n-dials)
		}
		// A scope of which nothing ever came has nothing to begin.
		two.Resync(1, 257)
		// Frames refused again and again are asked for at a measured pace, on both links.
		receiver.slow[256] = true
		one.sendsIn(two, 256, 13, 13, 100)
		pass(time.Second)
		before := receiver.all[256]
		for range 1000 {
			two.Resync(1, 256)
			pass(time.Millisecond)
		}
		if again := receiver.all[256] - before; again < 10 || again > 2*21 {
			t.Errorf("in a second of refusing a frame came %d times again", again)
		}
	})
}

// What the hello says is said of each scope.
func TestBubbleHelloOfScopes(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		sender, receiver := byScope(one), byScope(two)
		for scope := range cluster.ScopeID(maxScopes) {
			receiver.slow[scope] = true
			one.sendsIn(two, scope, 1, 3, 100)
		}
		pass(time.Second)
		f.sever("hb1")
		f.sever("hb2")
		pass(time.Second)
		for scope := range cluster.ScopeID(maxScopes) {
			two.Ack(statesync.SendAck{Scope: scope, Node: 1, Process: one.process, Seq: 1 + uint64(scope)%3})
		}
		f.mend("hb1")
		f.mend("hb2")
		pass(5 * time.Second)
		for scope := range cluster.ScopeID(maxScopes) {
			if got, want := sender.ackedTo[scope], 1+uint64(scope)%3; got != want || receiver.all[scope] != 3 {
				t.Errorf("%v: %d acknowledged, want %d; %d frames arrived, want 3", scope, got, want, receiver.all[scope])
			}
		}
		// One scope more is neither sent nor harms the others.
		one.sendsIn(two, maxScopes, 1, 3, 100)
		one.sendsIn(two, 0, 4, 4, 100)
		pass(time.Second)
		if receiver.all[maxScopes] != 0 || receiver.high[0] != 4 {
			t.Errorf("%d frames of one scope too many, and %d of scope 0", receiver.all[maxScopes], receiver.high[0])
		}
		one.wantState(0, 0, 0, "up 2 b1", "down 2 b1", "up 2 b1")
	})
}

// A log that others have filled still has each scope's share, and what could not be
// kept ends its own scope only.
func TestBacklogOfScopes(t *testing.T) {
	_, m, one, two := pair(t)
	bothOpen(t, one, two)
	m.sever("hb1")
	m.sever("hb2")
	one.told("up 2 b1", "down 2 b1")
	one.opt.Backlog = maxScopes * 1000
	one.sendsIn(two, 256, 1, 200, 1000)
	one.sendsIn(two, 300, 1, 8, 200)
	one.sendsIn(two, 256, 201, 201, 8) // a gap
	if frames, bytes := one.kept(2); frames != 128+5 || bytes != 129_000 {
		t.Errorf("%d frames of %d bytes are kept", frames, bytes)
	}
	one.Send(statesync.SendFrame{Scope: 256, Node: 2, Process: 0xb1, Seq: 202, Restart: true, Frame: frameOf(202, 8)})
	if frames, bytes := one.kept(2); frames != 1+5 || bytes != 1008 {
		t.Errorf("after a new copy %d frames of %d bytes are kept", frames, bytes)
	}
}

// An earlier build's client knows of no scope: what it sends is scope 0's, it is
// answered in words that it knows, and Resync ends its streams.
func TestEarlierBuildSends(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	two := newHost(t, a, m, 2, 0xb1)
	receiver := byScope(two)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	open := func() (syncpb.StateSync_ReplicateClient, *syncpb.StreamDown) {
		s, err := client(t, a, 1, two).Replicate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&syncpb.StreamUp{Hello: &syncpb.Hello{Process: 0xa1}}); err != nil {
			t.Fatal(err)
		}
		h, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return s, h
	}
	s, _ := open()
	for _, seq := range []uint64{1, 2, 3} {
		if err := s.Send(&syncpb.StreamUp{Frame: frameOf(seq, 8), Seq: seq}); err != nil {
			t.Fatal(err)
		}
	}
	for acked := uint64(0); acked < 3; {
		d, err := s.Recv()
		if err != nil || d.Scope != 0 || d.Resync {
			t.Fatalf("%v %v", d, err)
		}
		acked = d.Ack
	}
	two.Resync(1, 0)
	if d, err := s.Recv(); err == nil {
		t.Errorf("the stream is answered with %v, want its end", d)
	}
	// Its frames may skip numbers, as ever: the Replica judges them.
	two.Ack(statesync.SendAck{Scope: 256, Node: 1, Process: 0xa1, Seq: 7})
	s, h := open()
	if h.Hello.GetHave() != 3 || len(h.Hello.GetScopes()) != 0 {
		t.Errorf("hello %v", h)
	}
	two.mu.Lock()
	receiver.high[0] = 8
	two.mu.Unlock()
	if err := s.Send(&syncpb.StreamUp{Frame: frameOf(9, 8), Seq: 9}); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Recv(); err != nil || d.Ack != 9 {
		t.Errorf("%v %v", d, err)
	}
	// It cannot name a scope without having said that it knows of them.
	if err := s.Send(&syncpb.StreamUp{Frame: frameOf(1, 8), Seq: 1, Scope: 256, First: true}); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Recv(); err == nil {
		t.Errorf("answered with %v, want its end", d)
	}
	if receiver.all[256] != 0 {
		t.Error("the handler was given the frame")
	}
}

// earlierServer is a server that knows of no scope.
type earlierServer struct {
	syncpb.UnimplementedStateSyncServer
	frames chan *syncpb.StreamUp
}

func (e *earlierServer) Replicate(s syncpb.StateSync_ReplicateServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	if err := s.Send(&syncpb.StreamDown{Hello: &syncpb.Hello{Process: 0xb1}}); err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		e.frames <- m
		if err := s.Send(&syncpb.StreamDown{Ack: m.Seq}); err != nil {
			return err
		}
	}
}

// An earlier build's server would take every frame for one of scope 0: it is sent
// those alone.
func TestEarlierBuildReceives(t *testing.T) {
	a, m := newAuthority(t), newMedium()
	one := newHost(t, a, m, 1, 0xa1)
	sender := byScope(one)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, e := grpc.NewServer(grpc.Creds(credentials.NewTLS(serverTLS(a.tls(t, 2))))), &earlierServer{frames: make(chan *syncpb.StreamUp, 100)}
	syncpb.RegisterStateSyncServer(server, e)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	two := &host{t: t, node: 2, process: 0xb1, port: uint16(l.Addr().(*net.TCPAddr).Port)}
	one.knows(two, "hb1")
	one.told("up 2 b1")
	one.sendsIn(two, 256, 1, 5, 100)
	one.sendsIn(two, 0, 1, 5, 100)
	one.until("scope 0 is acknowledged", func() bool { return sender.ackedTo[0] == 5 })
	close(e.frames)
	for f := range e.frames {
		if f.Scope != 0 {
			t.Errorf("frame %d of scope %d was sent", f.Seq, f.Scope)
		}
	}
	if frames, _ := one.kept(2); frames != 0 || len(sender.ackedTo) != 1 {
		t.Errorf("%d frames are kept, acknowledged: %v", frames, sender.ackedTo)
	}
}

// A server's first words are bounded and make sense, or its stream is not used.
func TestHelloIsChecked(t *testing.T) {
	many := func(n int) (scopes []uint32, haves []uint64) {
		for i := range n {
			scopes, haves = append(scopes, uint32(i+1)), append(haves, 1)
		}
		return scopes, haves
	}
	full := &syncpb.Hello{Have: 5}
	full.Scopes, full.Haves = many(maxScopes)
	if have, err := held(full); err != nil || len(have) != maxScopes+1 || have[0] != 5 || have[7] != 1 {
		t.Errorf("%v %v", have, err)
	}
	over := &syncpb.Hello{}
	over.Scopes, over.Haves = many(maxScopes + 1)
	for _, h := range []*syncpb.Hello{
		over, {Scopes: []uint32{1}}, {Haves: []uint64{1}}, {Scopes: []uint32{0}, Haves: []uint64{1}},
		{Scopes: []uint32{1, 1}, Haves: []uint64{1, 2}}, {Scopes: []uint32{1}, Haves: []uint64{0}},
		{Scopes: []uint32{1 << 16}, Haves: []uint64{1}},
	} {
		if have, err := held(h); err == nil {
			t.Errorf("%v is taken for %v", h, have)
		}
	}
}
