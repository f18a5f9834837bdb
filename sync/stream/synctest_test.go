package stream

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tandem/cluster"
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

// pass lets time pass and everything settle.
func pass(d time.Duration) {
	time.Sleep(d)
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

var _ = slices.Equal[[]int]
