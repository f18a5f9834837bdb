package userspace

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// listener receives what a bench's plane sends and returns the sequence numbers
// of n packets.
func listener(t *testing.T, p *Plane, s *sa) func(n int) []uint32 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	p.out.prompt = true // as New makes it
	p.SetPeer(s.SPIIn, netip.MustParseAddrPort("127.0.0.1:4500"), netip.MustParseAddrPort(c.LocalAddr().String()), true, false)
	return func(n int) (seqs []uint32) {
		buf := make([]byte, 2048)
		for range n {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			k, err := c.Read(buf)
			if err != nil || k < 8 {
				t.Fatalf("after %d packets: %d bytes, %v", len(seqs), k, err)
			}
			seqs = append(seqs, binary.BigEndian.Uint32(buf[4:]))
		}
		return seqs
	}
}

func wantRising(t *testing.T, seqs []uint32) {
	t.Helper()
	for i, n := range seqs {
		if n != uint32(i+1) {
			t.Fatalf("packet %d on the wire has sequence number %d: %v", i+1, n, seqs)
		}
	}
}

// TestOrderWithinBatch: a bound that comes while the tunnel's goroutine is in the
// middle of a batch lets nothing overtake what was sealed and not yet sent.
func TestOrderWithinBatch(t *testing.T) {
	p, _, s := bench(t)
	receive := listener(t, p, s)
	s.out.send = esp.NewSender(s.out.send.Generation(), 10, esp.MaxSequence(s.Suite.ESN))
	b := newBatch()
	in, _, _ := parseInner(template(200))
	now := time.Now()
	for i := range 20 {
		if i == 15 {
			if len(s.out.queue) == 0 {
				t.Fatal("nothing waits: this test shows nothing")
			}
			p.SetBounds([]xfrm.Bound{{SPIIn: s.SPIIn, Dir: xfrm.Outbound, N: 1000}})
		}
		b.packets.whole(b.in[:], slotRoom, copy(b.in[slotRoom:], template(200)))
		p.sealFor(s, &b.packets, &in, &b.outbox, now)
	}
	p.socks.flush(&b.outbox)
	wantRising(t, receive(20))
}

// TestOrderAcrossGoroutines: what a bound lets go is on the wire before the tunnel's
// goroutine can seal the next packet.
func TestOrderAcrossGoroutines(t *testing.T) {
	p, tn, s := bench(t)
	receive := listener(t, p, s)
	s.out.send = esp.NewSender(s.out.send.Generation(), 1, esp.MaxSequence(s.Suite.ESN))
	b := newBatch()
	transmitted(p, tn, b, 2, template(200), time.Now()) // the second one waits
	socket := p.socks.s[sockNATT][0]
	socket.sendMu.Lock() // nothing can leave
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.SetBounds([]xfrm.Bound{{SPIIn: s.SPIIn, Dir: xfrm.Outbound, N: 1000}})
	}()
	for until := time.Now().Add(100 * time.Millisecond); time.Now().Before(until); {
		if s.out.mu.TryLock() {
			sealed := s.out.send.Seq()
			s.out.mu.Unlock()
			if sealed > 1 {
				t.Error("the lane is free while a sealed packet waits for the socket")
				break
			}
		}
	}
	socket.sendMu.Unlock()
	<-done
	transmitted(p, tn, b, 1, template(200), time.Now())
	wantRising(t, receive(3))
}

// TestOrderUnderLoad: the same from two goroutines, with bounds that are always late.
func TestOrderUnderLoad(t *testing.T) {
	p, tn, s := bench(t)
	receive := listener(t, p, s)
	const batches = 200
	wake := make(chan uint64, 1<<16)
	p.evs.deliver = func(es []xfrm.Event) {
		for _, e := range es {
			if w, ok := e.(xfrm.BoundWanted); ok && w.Dir == xfrm.Outbound {
				wake <- w.N
			}
		}
	}
	s.out.send = esp.NewSender(s.out.send.Generation(), 1, esp.MaxSequence(s.Suite.ESN))
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range wake {
			p.SetBounds([]xfrm.Bound{{SPIIn: s.SPIIn, Dir: xfrm.Outbound, N: n}})
		}
	})
	b := newBatch()
	var seqs []uint32
	const single = 6 * batchLen // fewer than may wait
	for range batches {
		for range single { // small batches meet more bounds
			transmitted(p, tn, b, 1, template(200), time.Now())
			p.evs.flush()
		}
		seqs = append(seqs, receive(single)...)
	}
	close(wake)
	wg.Wait()
	wantRising(t, seqs)
}
