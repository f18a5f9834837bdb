package forward

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"tandem/internal/mmsg"
	"tandem/xfrm"
)

const patience = 10 * time.Second

// live is a link with its loops.
type live struct {
	*Link
	t    testing.TB
	mu   sync.Mutex
	got  []xfrm.Stray
	ike  int
	lan  []string
	news chan struct{}
}

func newLive(t testing.TB, self NodeID, at netip.AddrPort) *live {
	t.Helper()
	l := &live{t: t, news: make(chan struct{}, 1)}
	tell := func() {
		select {
		case l.news <- struct{}{}:
		default:
		}
	}
	var err error
	l.Link, err = New(Options{
		Self: self, Key: clusterKey, Listen: at, MaxDatagram: 1472,
		Deliver: func(xs []xfrm.Stray) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, x := range xs {
				x.Packet = bytes.Clone(x.Packet)
				l.got = append(l.got, x)
			}
			tell()
		},
		IKE: func(NodeID, xfrm.IKEDatagram, bool) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.ike++
			tell()
		},
		LAN: func(from NodeID, b []byte) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.lan = append(l.lan, fmt.Sprint(from, len(b)))
			tell()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

// wait returns when the link has received what ok asks for.
func (l *live) wait(what string, ok func(got []xfrm.Stray, ike int) bool) {
	l.t.Helper()
	end := time.After(patience)
	for {
		l.mu.Lock()
		done := ok(l.got, l.ike)
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-l.news:
		case <-end:
			l.t.Fatalf("never: %s; %+v", what, l.Stats())
		}
	}
}

func (l *live) peers(others ...*live) {
	m := map[NodeID]netip.AddrPort{l.o.Self: l.LocalAddr()}
	for _, o := range others {
		m[o.o.Self] = o.LocalAddr()
	}
	l.SetPeers(m)
}

// Three members send to one another, in both families.
func TestMembers(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			var ls []*live
			for id := range NodeID(3) {
				ls = append(ls, newLive(t, id+1, netip.MustParseAddrPort(at)))
			}
			for _, l := range ls {
				l.peers(ls...)
			}
			for _, l := range ls {
				eventually(t, "all members up", func() bool { return len(l.Members()) == 2 })
				if slices.Contains(l.Members(), l.o.Self) {
					t.Error("a member is its own peer")
				}
			}
			const n = 50
			for i := range n {
				for _, from := range ls {
					for _, to := range ls {
						if from != to {
							x := stray(100 + 40*i)
							x.Scope = xfrm.Scope(from.o.Self)
							from.Send(to.o.Self, x)
						}
					}
				}
			}
			for _, l := range ls {
				l.SendIKE(l.o.Self%3+1, xfrm.IKEDatagram{Local: stray(1).Local, Remote: stray(1).Remote, Data: make([]byte, 40)}, false)
				l.SendLAN(l.o.Self%3+1, make([]byte, 8<<10))
				l.SendLAN(l.o.Self, make([]byte, 1))
				l.SendLAN(9, make([]byte, 1))
			}
			for _, l := range ls {
				l.wait("all packets", func(got []xfrm.Stray, ike int) bool { return len(got) == 2*n && ike == 1 && len(l.lan) == 1 })
				if want := fmt.Sprint((l.o.Self+1)%3+1, 8<<10); l.lan[0] != want {
					t.Errorf("told by and of length %s, want %s", l.lan[0], want)
				}
				next := map[uint8]int{}
				for _, x := range l.got {
					if want := stray(100 + 40*next[x.From]); xfrm.Scope(x.From) != x.Scope || !bytes.Equal(x.Packet, want.Packet) {
						t.Fatalf("packet %d of member %d", next[x.From], x.From)
					}
					next[x.From]++
				}
			}
			for _, l := range ls {
				for id, s := range l.Stats().Members {
					if !s.Up || s.Sent < n || s.Sent > n+1 || s.Received < n || s.Received > n+1 || s.Forged+s.Replayed+s.UnknownSession+s.Malformed+s.Incomplete != 0 {
						t.Errorf("member %d: %+v", id, s)
					}
				}
			}
		})
	}
}

// Either end may restart; the other one needs no hand.
func TestRestart(t *testing.T) {
	a, b := newLive(t, 1, loopback), newLive(t, 2, loopback)
	a.peers(b)
	b.peers(a)
	// until sends until something of this size has arrived.
	until := func(from, to *live, size int) {
		t.Helper()
		eventually(t, fmt.Sprintf("packet of %d bytes", size), func() bool {
			from.Send(to.o.Self, stray(size))
			to.mu.Lock()
			defer to.mu.Unlock()
			return slices.ContainsFunc(to.got, func(x xfrm.Stray) bool { return len(x.Packet) == size })
		})
	}
	for i := range 3 {
		until(a, b, 100+i)
		until(b, a, 200+i)
		at := b.LocalAddr()
		b.Close()
		b = newLive(t, 2, at)
		b.peers(a)
		until(a, b, 300+i)
		until(b, a, 400+i)
	}
	if s := a.Stats().Members[2]; s.Received == 0 || s.Sent == 0 {
		t.Errorf("%+v", s)
	}
}

// A member that is silent at first is greeted until it answers.
func TestLatePeer(t *testing.T) {
	a, b := newLive(t, 1, loopback), newLive(t, 2, loopback)
	a.peers(b)
	eventually(t, "the stranger's hellos are counted", func() bool { return b.Stats().Strangers >= 2 })
	if len(a.Members()) != 0 {
		t.Fatal("up without an answer")
	}
	b.peers(a)
	eventually(t, "both up", func() bool { return len(a.Members()) == 1 && len(b.Members()) == 1 })
	a.SetPeers(nil)
	if a.Send(2, stray(1)); a.Stats().NoMember != 1 || len(a.Members()) != 0 {
		t.Errorf("%+v", a.Stats())
	}
}

func TestNoAllocation(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	b.o.Deliver = func([]xfrm.Stray) {}
	x, big := stray(1000), stray(3000)
	inner := xfrm.Stray{Tunnel: "dialup", Packet: x.Packet}
	if n := testing.AllocsPerRun(100, func() {
		for range 5 {
			a.Send(2, x)
			a.Send(2, inner)
			a.Send(2, big)
		}
		a.sendQueued()
	}); n != 0 {
		t.Errorf("%v allocations for 15 packets sent", n)
	}
	ds := b.heard()
	from, i := a.LocalAddr(), 0
	for ; i < len(ds)/2; i++ { // buffers for reassembly, the window and names are made once
		b.datagram(ds[i], from, b.now)
		b.deliver()
	}
	if n := testing.AllocsPerRun(len(ds)/2-5, func() {
		b.datagram(ds[i], from, b.now)
		b.deliver()
		i++
	}); n != 0 {
		t.Errorf("%v allocations per datagram received", n)
	}
	if s := b.stats(1); s.Received < 100*10 || s.Forged+s.Replayed+s.Malformed != 0 {
		t.Errorf("%+v", s)
	}
}

// BenchmarkLink sends packets over the loopback interface, at most half a queue
// ahead of the receiver.
func BenchmarkLink(b *testing.B) {
	for _, size := range []int{64, 1400, 1500} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			arrived := make(chan int, 1<<16)
			make := func(self NodeID, deliver func([]xfrm.Stray)) *Link {
				l, err := New(Options{Self: self, Key: clusterKey, Listen: loopback, MaxDatagram: 1472, Deliver: deliver})
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { l.Close() })
				return l
			}
			from, to := make(1, func([]xfrm.Stray) {}), make(2, func(xs []xfrm.Stray) { arrived <- len(xs) })
			from.SetPeers(map[NodeID]netip.AddrPort{2: to.LocalAddr()})
			to.SetPeers(map[NodeID]netip.AddrPort{1: from.LocalAddr()})
			eventually(b, "up", func() bool { return len(from.Members()) == 1 })
			x := stray(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			sent, got := 0, 0
			for b.Loop() {
				for sent-got >= queueLen/2 {
					got += <-arrived
				}
				from.Send(2, x)
				sent++
			}
			for got < sent {
				got += <-arrived
			}
			b.StopTimer()
			if s := from.Stats().Members[2]; s.QueueFull+s.SendFailed != 0 {
				b.Errorf("%+v", s)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(sent), "ns/packet")
		})
	}
}

// BenchmarkSeal and BenchmarkOpen are the two ends without the sockets.
func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			a, z := pair(b)
			meet(a, z)
			x := stray(size)
			p := a.peer(2)
			tx, msg := p.tx.Load(), encode(b, &message{kindESP, x})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if a.send.n == mmsg.Batch {
					a.send.n = 0
				}
				a.seal(p, tx, typeData, nil, msg)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			a, z := pair(b)
			meet(a, z)
			z.o.Deliver = func([]xfrm.Stray) {}
			d := a.sends(z, stray(size))[0]
			z.take(a.local, d)
			s, work := z.peer(1).current, make([]byte, len(d))
			empty := s.window
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				copy(work, d)
				s.window = empty
				s.window.Forget(1)
				z.datagram(work, a.local, z.now)
				z.deliver()
			}
			if got := z.stats(1); got.Replayed+got.Forged != 0 || got.Received < uint64(b.N) {
				b.Errorf("%+v", got)
			}
		})
	}
}
