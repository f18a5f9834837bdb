package stream

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tandem/cluster"
	"tandem/internal/testkit"
	statesync "tandem/sync"
)

const quick, slow = 3 * time.Millisecond, 20 * time.Millisecond

func newBubbleHost(t testing.TB, a *authority, f *fabric, node cluster.NodeID, process cluster.ProcessID) *host {
	t.Helper()
	h := newDeafHost(t, a, f.dial, node, process)
	l, port := f.listen()
	h.port = port
	if err := h.Serve(l); err != nil {
		t.Fatal(err)
	}
	return h
}

// newSuccessor makes a new process of a host's node, at the same port.
func newSuccessor(t testing.TB, a *authority, f *fabric, of *host, process cluster.ProcessID) *host {
	t.Helper()
	h := newDeafHost(t, a, f.dial, of.node, process)
	h.port, h.ack = of.port, true
	if err := h.Serve(f.listenAt(h.port)); err != nil {
		t.Fatal(err)
	}
	return h
}

// bubble runs two nodes with two links in a synctest bubble; node 1 sends, node 2
// acknowledges. That every goroutine ends is synctest's to check.
func bubble(t *testing.T, test func(t *testing.T, f *fabric, a *authority, one, two *host)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(map[string]time.Duration{"hb1": quick, "hb2": slow})
		a := newAuthority(t)
		one, two := newBubbleHost(t, a, f, 1, 0xa1), newBubbleHost(t, a, f, 2, 0xb1)
		two.ack = true
		one.knows(two, "hb1", "hb2")
		bothOpen(t, one, two)
		test(t, f, a, one, two)
	})
}

// state is what a host was told, for comparison.
func (h *host) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprintf("%d frames up to %d, acknowledged up to %d, events %q %s", h.all, h.high, h.ackedTo, h.events, h.disgust)
}

func (h *host) wantState(all, high, acked uint64, events ...string) {
	h.t.Helper()
	want := fmt.Sprintf("%d frames up to %d, acknowledged up to %d, events %q ", all, high, acked, events)
	if got := h.state(); got != want {
		h.t.Errorf("node %d: %s; want %s", h.node, got, want)
	}
}

// pass lets fake time pass and everything settle.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestBubbleFramesTravelAndAreAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(time.Second)
		one.sends(two, 1, 100, 100)
		pass(quick - 1)
		two.wantState(0, 0, 0)
		pass(1)
		two.wantState(100, 100, 0)
		pass(quick - 1)
		one.wantState(0, 0, 0, "up 2 b1")
		pass(1) // one round trip of the quick link
		one.wantState(0, 0, 100, "up 2 b1")
		pass(time.Second)
		if n := two.second(1); n != 100 {
			t.Errorf("%d frames came by the slow link, too; want 100", n)
		}
		two.wantState(100, 100, 0)
	})
}

// since gives the dials of a line after a moment, as distances from it.
func since(f *fabric, device string, t0 time.Time) (d []time.Duration) {
	for _, t := range f.dials(device) {
		if t.After(t0) {
			d = append(d, t.Sub(t0))
		}
	}
	return d
}

func ms(n ...int) (d []time.Duration) {
	for _, n := range n {
		d = append(d, time.Duration(n)*time.Millisecond)
	}
	return d
}

func wantDials(t *testing.T, f *fabric, device string, t0 time.Time, want []time.Duration) {
	t.Helper()
	if got := since(f, device, t0); !slices.Equal(got, want) {
		t.Errorf("%s is dialled after %v, want %v", device, got, want)
	}
}

func TestBubbleLinkBreaksInTheMiddleOfAFrame(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second) // a session of more than a second begins the back-off anew
		one.sends(two, 1, 1, 64<<10)
		pass(quick)
		two.wantState(1, 1, 0)
		t0 := time.Now()
		f.severAfter("hb1", 100<<10)
		one.sends(two, 2, 3, 64<<10)
		pass(slow)
		two.wantState(3, 3, 0) // by the slow link, as far as the quick one did not bring them
		if n := two.second(1); n != 1 {
			t.Errorf("%d frames were carried by both links, want the one before the break", n)
		}
		pass(slow)
		one.wantState(0, 0, 3, "up 2 b1")
		pass(time.Until(t0.Add(5 * time.Second)))
		wantDials(t, f, "hb1", t0, ms(50, 150, 350, 750, 1550, 2550, 3550, 4550))

		f.mend("hb1")
		pass(550*time.Millisecond + 4*2*quick) // TCP, TLS, settings, hellos
		bothOpen(t, one, two)
		pass(maxBackoff)
		t0 = time.Now()
		f.sever("hb1")
		pass(200 * time.Millisecond)
		wantDials(t, f, "hb1", t0, ms(50, 150))
		f.mend("hb1")
		pass(time.Second)
		bothOpen(t, one, two)
		one.sends(two, 4, 5, 8)
		pass(quick)
		two.wantState(5, 5, 0)
		pass(time.Second)
		one.wantState(0, 0, 5, "up 2 b1")
	})
}

// A link that dies young each time is not dialled every 50 ms.
func TestBubbleLinkThatFlapsIsDialledLessAndLess(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second)
		t0 := time.Now()
		for range 6 {
			before := len(f.dials("hb1"))
			f.sever("hb1")
			f.mend("hb1")
			testkit.Until(t, "it is dialled", func() bool { return len(f.dials("hb1")) > before })
			bothOpen(t, one, two)
		}
		d := since(f, "hb1", t0)
		for i, want := range ms(50, 100, 200, 400, 800, 1000) {
			at := d[i]
			if i > 0 {
				at -= d[i-1]
			}
			if at < want || at > want+10*quick { // a session's opening and until's millisecond lie between
				t.Errorf("dialled again after %v, want %v", at, want)
			}
		}
		one.wantState(0, 0, 0, "up 2 b1")
	})
}

func TestBubbleBothLinksBreak(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		one.sends(two, 1, 10, 1000)
		pass(time.Second)
		one.wantState(0, 0, 10, "up 2 b1")
		// 11 to 15 arrive and the acknowledgement is lost; 16 to 20 are lost.
		one.sends(two, 11, 15, 1000)
		pass(quick)
		two.wantState(15, 15, 0)
		one.sends(two, 16, 20, 1000)
		f.sever("hb1")
		f.sever("hb2")
		pass(0)
		one.wantState(0, 0, 10, "up 2 b1", "down 2 b1")
		one.sends(two, 21, 25, 1000)
		pass(time.Minute)
		two.wantState(15, 15, 0)
		f.mend("hb1")
		pass(maxBackoff + 10*quick)
		two.wantState(25, 25, 0) // each once, in order
		one.wantState(0, 0, 25, "up 2 b1", "down 2 b1", "up 2 b1")
		if frames, bytes := one.kept(2); frames != 0 || bytes != 0 {
			t.Errorf("%d frames, %d bytes are kept although acknowledged", frames, bytes)
		}
	})
}

// What arrived and was not acknowledged comes again only when it is asked for.
func TestBubbleUnacknowledgedComesAgainAfterResync(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		two.ack = false
		one.sends(two, 1, 10, 1000)
		pass(time.Second)
		two.wantState(10, 10, 0)
		two.Endpoint.Ack(ackOf(one, 4))
		pass(time.Second)
		f.sever("hb1")
		f.sever("hb2")
		pass(time.Second)
		f.mend("hb1")
		f.mend("hb2")
		pass(2 * time.Second)
		bothOpen(t, one, two)
		two.wantState(10, 10, 0)
		one.wantState(0, 0, 4, "up 2 b1", "down 2 b1", "up 2 b1")
		two.mu.Lock()
		two.high, two.got = 4, nil // the replica lost the rest
		two.mu.Unlock()
		two.Resync(1, 0)
		pass(2 * time.Second)
		two.wantState(16, 10, 0)
		if want := []uint64{5, 6, 7, 8, 9, 10}; !slices.Equal(two.got, want) {
			t.Errorf("%v came again, want %v", two.got, want)
		}
	})
}

// The handler waits. What comes from that member waits with it, in bounds on both
// sides; what goes to it, and acknowledgements, do not.
func TestBubbleHandlerThatWaits(t *testing.T) {
	for _, inside := range []bool{true, false} {
		t.Run(map[bool]string{true: "inside Frame", false: "before Done"}[inside], func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
				one.ack = true
				two.knows(one, "hb1", "hb2")
				bothOpen(t, two, one)
				one.opt.Backlog = 40 << 20
				two.mu.Lock()
				two.ack = false
				gate := make(chan struct{})
				if inside {
					two.gate = gate
				} else {
					two.hold = true
				}
				two.mu.Unlock()
				const n, size = 1000, 64 << 10
				one.sends(two, 1, n, size) // 64 MB, of which the log takes 40
				const kept = 40 << 20 / size
				before := goroutines()
				for i := range uint64(60) {
					two.sends(one, i+1, i+1, 100)
					pass(time.Second)
					one.mu.Lock()
					got := one.high
					one.mu.Unlock()
					two.mu.Lock()
					acked := two.ackedTo
					held := len(two.held)
					two.mu.Unlock()
					// Both links may be between two sessions for a second.
					if got+2 < i+1 || acked+2 < i+1 {
						t.Fatalf("after %d frames the other way %d are there and %d acknowledged", i+1, got, acked)
					}
					if most := maxInflight / size; held > most {
						t.Fatalf("after %d s the handler holds %d frames, want %d at most", i+1, held, most)
					}
					if _, bytes := one.kept(2); bytes > one.opt.Backlog {
						t.Errorf("the sender keeps %d bytes", bytes)
					}
					if b := f.buffered("hb1") + f.buffered("hb2"); b > 8*sendBuffer {
						t.Errorf("%d bytes are on their way", b)
					}
					if g := goroutines(); g > before+20 {
						t.Fatalf("%d goroutines after %d s of waiting, %d before", g, i+1, before)
					}
				}
				two.Endpoint.Ack(ackOf(one, 0)) // changes nothing
				two.mu.Lock()
				held := two.held
				two.held, two.hold, two.gate, two.ack = nil, false, nil, true
				two.mu.Unlock()
				close(gate)
				for _, r := range held {
					r.Done()
				}
				pass(20 * time.Second)
				two.mu.Lock()
				defer two.mu.Unlock()
				if two.high != kept || two.all != kept || two.disgust != "" {
					t.Errorf("%d frames up to %d arrived, %s; want %d", two.all, two.high, two.disgust, kept)
				}
				one.until("all that was kept is acknowledged", func() bool { return one.ackedTo == kept })
			})
		})
	}
}

func ackOf(from *host, seq uint64) statesync.SendAck {
	return statesync.SendAck{Node: from.node, Process: from.process, Seq: seq}
}

// goroutines counts those of the bubble and outside it.
func goroutines() int { return runtime.NumGoroutine() }

// Bytes vanish on one link without an error, and the kernel does not help. Under load
// the link is torn down once it has refused a frame for the documented 2 s; nobody
// waits for it meanwhile. An idle one is the kernel's to find: no bubble can host
// that, see TestKernelFindsSilentPath.
func TestBubbleSilentLink(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second)
		f.hush("hb1")
		one.sends(two, 1, 10, 1000)
		pass(2 * slow)
		one.wantState(0, 0, 10, "up 2 b1") // by the other
		pass(time.Hour)
		if n := one.live(2); n != 2 {
			t.Errorf("%d streams: an idle link is not ours to judge", n)
		}
		two.mu.Lock()
		two.ack = false // or the log forgets what the other link brought
		two.mu.Unlock()
		t0 := time.Now()
		one.sends(two, 11, 1010, 2000)
		pass(defaultStall - 1)
		if n := one.live(2); n != 2 {
			t.Errorf("%d streams before the link's time is up", n)
		}
		two.wantState(1010, 1010, 0)
		pass(1)
		if n := one.live(2); n != 1 {
			t.Errorf("%d streams after the link's time is up", n)
		}
		// From here on each attempt gets connectTimeout, then the shortest pause: whoever
		// mends the line has the stream again within a third of a second.
		pass(2 * time.Second)
		wantDials(t, f, "hb1", t0, ms(2050, 2350, 2650, 2950, 3250, 3550, 3850))
		pass(8 * time.Second)
		one.wantState(0, 0, 10, "up 2 b1")
		// The receiver's half is still there, as its kernel does not help either;
		// it goes when the line speaks again.
		if n := two.streams(1); n != 2 {
			t.Errorf("%d streams arrive, want the living and the half-open one", n)
		}
		f.mend("hb1")
		pass(5 * time.Second)
		bothOpen(t, one, two)
		if n := f.open("hb1"); n != 1 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// With a kernel that gives up after its 2 s the same link is back at once.
func TestBubbleSilentLinkEndedByTheKernel(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second)
		f.kernel = 2 * time.Second
		t0 := time.Now()
		f.hush("hb1")
		pass(2 * time.Second)
		if to, from := one.live(2), two.streams(1); to != 1 || from != 1 {
			t.Errorf("%d streams leave, %d arrive; want the living one", to, from)
		}
		f.mend("hb1")
		pass(time.Second)
		wantDials(t, f, "hb1", t0, ms(2050))
		bothOpen(t, one, two)
		one.wantState(0, 0, 0, "up 2 b1")
	})
}

// Half-open streams, left again and again by a sender whose end is never heard, are
// bounded at the receiver.
func TestBubbleHalfOpenStreamsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second)
		for i := range uint64(40) {
			f.hush("hb1")
			f.abandon("hb1")
			one.knows(two, "hb2")
			one.sends(two, i+1, i+1, 100) // the other link works, and is the oldest stream
			pass(time.Second)
			f.mend("hb1")
			one.knows(two, "hb1", "hb2")
			testkit.Until(t, "it is there again", func() bool { return one.live(2) == 2 })
		}
		if n := two.streams(1); n != maxStreams {
			t.Errorf("%d streams, want %d", n, maxStreams)
		}
		one.wantState(0, 0, 40, "up 2 b1")
		two.wantState(40, 40, 0)
	})
}

// A handler that is done before the links lose patience lets everything go on at once.
// One that is never done does not hold up Close.
func TestBubbleHandlerThatIsDoneInTime(t *testing.T) {
	bubble(t, func(t *testing.T, f *fabric, a *authority, one, two *host) {
		pass(2 * time.Second)
		two.mu.Lock()
		two.hold, two.ack = true, false
		two.mu.Unlock()
		const n, size = 100, 64 << 10
		t0 := time.Now()
		one.sends(two, 1, n, size)
		pass(time.Second)
		two.wantState(maxInflight/size, maxInflight/size, 0)
		for range n {
			two.mu.Lock()
			held := two.held
			two.held = nil
			two.mu.Unlock()
			for _, r := range held {
				r.Done()
			}
			pass(time.Millisecond)
		}
		two.wantState(n, n, 0)
		wantDials(t, f, "hb1", t0, nil)
		wantDials(t, f, "hb2", t0, nil)

		one.sends(two, n+1, 2*n, size)
		pass(time.Second)
		two.wantState(n+maxInflight/size, n+maxInflight/size, 0)
		t0 = time.Now()
		two.Close()
		if d := time.Since(t0); d != 0 {
			t.Errorf("Close takes %v", d)
		}
	})
}
