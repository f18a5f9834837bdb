package stream

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"tandem/cluster"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
)

func TestBubbleReceiverIsReplaced(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(map[bool]string{true: "heartbeats tell", false: "heartbeats do not tell"}[told], func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
				pass(2 * time.Second)
				one.sends(two, 1, 10, 1000)
				pass(time.Second)
				one.sends(two, 11, 20, 1000) // die with the process
				t0 := time.Now()
				two.Close()
				pass(300 * time.Millisecond)
				one.wantState(0, 0, 10, "up 2 b1", "down 2 b1")
				wantDials(t, f, "hb1", t0, ms(53, 153))

				again := newSuccessor(t, a, f, two, 0xb2)
				t1 := time.Now()
				if told {
					one.knows(again, "hb1", "hb2")
					pass(0)
				}
				pass(2 * time.Second)
				if got := since(f, "hb1", t1.Add(-1)); told && (len(got) != 1 || got[0] != 1) {
					t.Errorf("told of the new process, %v pass until it is dialled", got)
				} else if !told && (len(got) != 1 || t1.Add(got[0]-1).Sub(t0) != 353*time.Millisecond) {
					t.Errorf("not told, it is dialled after %v", got)
				}
				bothOpen(t, one, again)
				one.wantState(0, 0, 10, "up 2 b1", "down 2 b1", "up 2 b2")
				again.wantState(0, 0, 0)
				one.sends(two, 21, 22, 100) // for the old one
				one.sends(again, 1, 5, 100)
				pass(time.Second)
				again.wantState(5, 5, 0)
				one.wantState(0, 0, 10, "up 2 b1", "down 2 b1", "up 2 b2") // 5 is less than the old one's 10
			})
		})
	}
}

// The host was lost with its kernel, so its streams never end. Heartbeats name the new
// process before anything has noticed: its streams are there at once.
func TestBubbleReceiverIsReplacedUnnoticed(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second)
		for _, d := range []string{"hb1", "hb2"} {
			f.hush(d)
			f.abandon(d)
		}
		two.Close()
		one.sends(two, 1, 3, 100) // to nobody
		pass(time.Second)
		for _, d := range []string{"hb1", "hb2"} {
			f.mend(d)
		}
		again := newSuccessor(t, a, f, two, 0xb2)
		one.wantState(0, 0, 0, "up 2 b1")
		t0 := time.Now()
		one.knows(again, "hb1", "hb2")
		pass(4 * 2 * quick) // TCP, TLS, settings, hellos
		wantDials(t, f, "hb1", t0.Add(-1), []time.Duration{1})
		wantDials(t, f, "hb2", t0.Add(-1), []time.Duration{1})
		one.wantState(0, 0, 0, "up 2 b1", "down 2 b1", "up 2 b2")
		one.sends(again, 1, 5, 100)
		// What a stream of the former process still had to say counts for nothing.
		one.out[2].acked(two.process, 0, 3)
		if frames, _ := one.kept(2); frames != 5 {
			t.Error("the former process acknowledges frames of the new one")
		}
		pass(time.Second)
		bothOpen(t, one, again)
		again.wantState(5, 5, 0)
		one.wantState(0, 0, 5, "up 2 b1", "down 2 b1", "up 2 b2")
	})
}

// attempt opens a raw stream with a configuration and returns how it ended.
func attempt(f *fabric, to *host, c *tls.Config, ask func(syncpb.StateSync_ReplicateClient) error) error {
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return f.dial(ctx, cluster.Link{Device: "hb1"}, to.port)
		}))
	if err != nil {
		return err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := syncpb.NewStateSyncClient(cc).Replicate(ctx)
	if err != nil {
		return err
	}
	return ask(s)
}

func TestBubbleStrangers(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		speak := func(s syncpb.StateSync_ReplicateClient) error {
			_ = s.Send(&syncpb.StreamUp{Hello: &syncpb.Hello{Process: 0xe1}})
			_ = s.Send(&syncpb.StreamUp{Frame: frameOf(1, 8), Seq: 1})
			for {
				if _, err := s.Recv(); err != nil {
					return err
				}
			}
		}
		silent := func(s syncpb.StateSync_ReplicateClient) error {
			_, err := s.Recv()
			return err
		}
		without := clientTLS(a.tls(t, 1))
		without.Certificates = nil
		stranger := clientTLS(newAuthority(t).tls(t, 1))
		stranger.VerifyConnection = nil
		for _, c := range []struct {
			who  string
			tls  *tls.Config
			ask  func(syncpb.StateSync_ReplicateClient) error
			code codes.Code
			took time.Duration // dial, and TLS with the first flight, take two round trips
		}{
			{"no certificate", without, speak, codes.Unavailable, 0},
			{"another cluster's certificate", stranger, speak, codes.Unavailable, 0},
			{"the receiver's own certificate", clientTLS(a.tls(t, 2)), speak, codes.Unauthenticated, 0},
			{"a member that says nothing", clientTLS(a.tls(t, 1)), silent, codes.DeadlineExceeded, openTimeout},
		} {
			t0 := time.Now()
			err := attempt(f, two, c.tls, c.ask)
			if status.Code(err) != c.code {
				t.Errorf("%s: %v, want %v", c.who, err, c.code)
			}
			if took := time.Since(t0); took < c.took || took > c.took+10*quick {
				t.Errorf("%s: refused after %v, want %v", c.who, took, c.took)
			}
		}
		// Somebody who does not even begin TLS.
		t0 := time.Now()
		c, err := f.dial(t.Context(), cluster.Link{Device: "hb1"}, two.port)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("an answer to nothing")
		}
		if took := time.Since(t0); took != openTimeout+2*quick {
			t.Errorf("a connection that says nothing is ended after %v", took)
		}
		c.Close()

		// Another node answers where node 4 is expected, and is not believed.
		three := newBubbleHost(t, a, f, 3, 0xc1)
		three.ack = true
		t0 = time.Now()
		one.SetPeers(4, 0, []cluster.Link{{Device: "hb2"}}, three.port)
		pass(10 * time.Second)
		one.Send(statesync.SendFrame{Node: 4, Process: 0xc1, Seq: 1, Frame: frameOf(1, 8)})
		pass(10 * time.Second)
		if n := len(since(f, "hb2", t0.Add(-1))); n < 10 || n > 25 {
			t.Errorf("dialled %d times in 20 s", n)
		}
		one.wantState(0, 0, 0, "up 2 b1")
		two.wantState(0, 0, 0)
		three.wantState(0, 0, 0)
		if n := one.live(2); n != 2 {
			t.Errorf("%d streams are left", n)
		}
		one.SetPeers(4, 0, nil, 0)
		pass(time.Minute)
		if n := f.open("hb1") + f.open("hb2"); n != 2 {
			t.Errorf("%d connections are open, want the two streams'", n)
		}
	})
}

// A member that answers wrongly: it acknowledges what was never sent.
func TestBubbleAcknowledgementOfWhatWasNotSent(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		two.ack = false
		one.sends(two, 1, 3, 100)
		pass(time.Second)
		two.Endpoint.Ack(ackOf(one, 1<<40))
		pass(10 * time.Second)
		one.sends(two, 4, 4, 100)
		pass(time.Second)
		if n, _ := one.kept(2); n != 4 {
			t.Errorf("%d frames are kept, want all 4", n)
		}
		if one.mu.Lock(); one.ackedTo != 0 {
			t.Errorf("%d is believed", one.ackedTo)
		}
		one.mu.Unlock()
	})
}

// The hello of a process that has ended since was still on its way while its successor
// opened its streams by the other link. It ends nothing, and nothing comes twice.
func TestBubbleFormerProcessSpeaksLate(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		f.change("hb1", func(l *line) { l.delay = 200 * time.Millisecond })
		f.change("hb2", func(l *line) { l.delay = quick })
		two.ack = false
		one.SetPeers(2, 0, nil, 0)
		pass(time.Second)
		one.knows(two, "hb1")
		pass(1300 * time.Millisecond) // TCP, TLS and settings take 1.2 s; the hello is there after 1.4 s
		one.Close()
		next := newBubbleHost(t, a, f, 1, 0xa2)
		two.SetPeers(1, next.process, nil, 0) // as heartbeats do
		next.knows(two, "hb2")
		pass(50 * time.Millisecond)
		next.sends(two, 1, 5, 100)
		pass(quick)
		two.wantState(5, 5, 0)
		pass(5 * time.Second)
		two.wantState(5, 5, 0)
		next.wantState(0, 0, 0, "up 2 b1")
		if n := len(since(f, "hb2", time.Now().Add(-5*time.Second))); n != 0 {
			t.Errorf("the successor had to dial %d times more", n)
		}
	})
}
