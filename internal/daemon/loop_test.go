package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

// scriptedNode is a gateway that records its inputs and answers each of them
// with the effects laid out for it.
type scriptedNode struct {
	inputs  []string
	effects map[string][]node.Effect
	out     []node.Effect
	next    time.Time
	block   chan struct{}
}

func (n *scriptedNode) in(format string, args ...any) {
	name := fmt.Sprintf(format, args...)
	n.inputs = append(n.inputs, name)
	n.out = append(n.out, n.effects[name]...)
}

func (n *scriptedNode) Start(time.Time) { n.in("start") }
func (n *scriptedNode) HandleIKE(_ time.Time, d ike.Datagram) {
	if n.block != nil {
		<-n.block
	}
	n.in("ike %s", d.Data)
}
func (n *scriptedNode) HandlePlane(_ time.Time, e []xfrm.Event) { n.in("plane %d", len(e)) }
func (n *scriptedNode) HandleWindows(_ time.Time, _ xfrm.Scope, w []xfrm.Window) {
	n.in("windows %d", len(w))
}
func (n *scriptedNode) HandleStream(time.Time, cluster.NodeID, cluster.ProcessID, bool) {}
func (n *scriptedNode) HandleFrame(_ time.Time, _ cluster.NodeID, _ cluster.ProcessID, _ cluster.ScopeID, f []byte) error {
	n.in("frame %s", f)
	return nil
}
func (n *scriptedNode) HandleAck(_ time.Time, _ cluster.NodeID, _ cluster.ProcessID, _ cluster.ScopeID, seq uint64) {
	n.in("ack %d", seq)
}
func (n *scriptedNode) HandlePeer(time.Time, cluster.Peer)                            {}
func (n *scriptedNode) HandleLoss(time.Time, cluster.TellLoss)                        {}
func (n *scriptedNode) HandleRemoved(time.Time, cluster.ScopeID, cluster.NodeID)      {}
func (n *scriptedNode) HandleEntitled(time.Time, cluster.ScopeID, cluster.Epoch)      {}
func (n *scriptedNode) HandleClaimed(time.Time, cluster.ScopeID, cluster.Epoch, bool) {}
func (n *scriptedNode) HandleNote(time.Time, error)                                   { n.in("note") }
func (n *scriptedNode) HandlePingservers(_ time.Time, penalty, stale int) {
	n.in("pingservers %d %d", penalty, stale)
}
func (n *scriptedNode) HandleAddresses(time.Time, func(string, netip.Addr) bool) {
	n.in("addresses")
}
func (n *scriptedNode) HandleMonitors(_ time.Time, up int) { n.in("monitors %d", up) }
func (n *scriptedNode) HandleTimeout(now time.Time) {
	n.next = time.Time{}
	n.in("timeout")
}
func (n *scriptedNode) NextTimeout() (time.Time, bool)      { return n.next, !n.next.IsZero() }
func (n *scriptedNode) Reload(time.Time, *config.Config)    { n.in("reload") }
func (n *scriptedNode) Up(_ time.Time, a, b string) error   { n.in("up %s %s", a, b); return nil }
func (n *scriptedNode) Down(_ time.Time, a, b string) error { n.in("down %s %s", a, b); return nil }
func (n *scriptedNode) Clear(_ time.Time, name string) int  { n.in("clear %s", name); return 1 }
func (n *scriptedNode) Rekey(_ time.Time, name string, ike bool) int {
	n.in("rekey %s %v", name, ike)
	return 1
}
func (n *scriptedNode) Failover(_ time.Time, _ cluster.ScopeID, set bool) error {
	n.in("failover %v", set)
	return nil
}
func (n *scriptedNode) Redirect(time.Time, bool) int { return 0 }
func (n *scriptedNode) Redirectable() int            { return 0 }

func (n *scriptedNode) Shutdown(time.Time) {
	n.in("shutdown")
	n.out = append(n.out, cluster.Stopped{})
}
func (n *scriptedNode) Status(time.Time) node.Status                   { return node.Status{} }
func (n *scriptedNode) Summary(time.Time) node.Status                  { return node.Status{} }
func (n *scriptedNode) More(time.Time, *node.Status, *node.Place) bool { return false }
func (n *scriptedNode) Poll() (node.Effect, bool) {
	if len(n.out) == 0 {
		return nil, false
	}
	e := n.out[0]
	n.out = n.out[1:]
	return e, true
}

type named string

// newTestLoop is a loop whose effects are recorded; Stopped ends it.
func newTestLoop(n *scriptedNode, carried *[]string) *loop {
	var l *loop
	l = newLoop(func(_ time.Time, e node.Effect) {
		switch e := e.(type) {
		case named:
			*carried = append(*carried, string(e))
		case cluster.Stopped:
			l.over = true
		}
	}, func(time.Time) {}, func() {})
	l.node = n
	return l
}

func TestEffectsFollowTheirInputInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &scriptedNode{effects: map[string][]node.Effect{
			"start": {named("a"), named("b")}, "up p1 p2": {named("c")}, "clear x": {named("d"), named("e")},
		}}
		var carried []string
		l := newTestLoop(n, &carried)
		go l.run()
		ctx := context.Background()
		for _, f := range []func(time.Time){n.Start, func(now time.Time) { _ = n.Up(now, "p1", "p2") }, func(now time.Time) { n.Clear(now, "x") }} {
			if err := l.call(ctx, f); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(carried, []string{"a", "b", "c", "d", "e"}) {
			t.Errorf("carried out %v", carried)
		}
		_ = l.post(n.Shutdown)
		<-l.done
		if err := l.call(ctx, func(time.Time) {}); err != errStopped {
			t.Errorf("a call after the end: %v", err)
		}
	})
}

func TestTimeoutIsServedWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		n := &scriptedNode{next: start.Add(3 * time.Second)}
		var at time.Time
		n.effects = map[string][]node.Effect{"timeout": {named("fired"), cluster.Stopped{}}}
		var l *loop
		ticks := 0
		l = newLoop(func(now time.Time, e node.Effect) {
			if e == node.Effect(named("fired")) {
				at = now
			}
			if _, ok := e.(cluster.Stopped); ok {
				l.over = true
			}
		}, func(time.Time) {}, func() { ticks++ })
		l.node = n
		go l.run()
		<-l.done
		if got := at.Sub(start); got != 3*time.Second {
			t.Errorf("the timeout was served after %v", got)
		}
		if ticks < 58 || ticks > 62 {
			t.Errorf("%d turns in three seconds: an idle loop must show that it lives, and no more", ticks)
		}
	})
}

func TestFloodOfDatagramsIsDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &scriptedNode{block: make(chan struct{})}
		var carried []string
		l := newTestLoop(n, &carried)
		go l.run()
		for i := range ikeQueue + 500 {
			l.offerIKE(xfrm.IKEDatagram{Data: []byte(fmt.Sprint(i))}) // must not block
			if i == 0 {
				synctest.Wait() // the first one is held inside the node
			}
		}
		s := l.snapshot()
		if s.IKEReceived != ikeQueue+500 || s.IKEDropped != 499 {
			t.Errorf("received %d dropped %d", s.IKEReceived, s.IKEDropped)
		}
		close(n.block)
		synctest.Wait()
		_ = l.post(n.Shutdown)
		<-l.done
		if len(n.inputs) != ikeQueue+2 {
			t.Errorf("%d inputs arrived", len(n.inputs))
		}
	})
}

// What other members sent comes before IKE messages that wait, but not before each of them.
func TestOthersAreServedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &scriptedNode{}
		var carried []string
		l := newTestLoop(n, &carried)
		for i := range 4 {
			l.offerIKE(xfrm.IKEDatagram{Data: []byte(fmt.Sprint(i))})
		}
		for i := range 3 * remoteTurn {
			l.offerRemote(func(now time.Time) { l.node.HandleAck(now, 1, 1, 0, uint64(i)) })
		}
		go l.run()
		synctest.Wait()
		_ = l.post(n.Shutdown)
		<-l.done
		first := slices.Index(n.inputs, "ike 0")
		if first < remoteTurn || len(n.inputs) != 4+3*remoteTurn+1 {
			t.Errorf("the first IKE message was input %d of %d", first, len(n.inputs))
		}
	})
}

// Events are merged, never lost: the last wish about each bound arrives.
func TestEventsAreMerged(t *testing.T) {
	bound := func(spi ipsec.ESPSPI, n uint64) xfrm.Event {
		return xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: spi, N: n}}
	}
	var in []xfrm.Event
	for i := range 100 {
		in = append(in, bound(1, uint64(i)), bound(2, uint64(i)), xfrm.FirstInbound{SPIIn: 1},
			xfrm.Expiring{SPIIn: 1}, xfrm.Expiring{SPIIn: 1, Hard: true}, xfrm.PeerMoved{SPIIn: 2})
	}
	got := mergeEvents(in)
	want := []xfrm.Event{bound(1, 99), bound(2, 99), xfrm.FirstInbound{SPIIn: 1}, xfrm.Expiring{SPIIn: 1}, xfrm.Expiring{SPIIn: 1, Hard: true}, xfrm.PeerMoved{SPIIn: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("merged to %v", got)
	}
	in = nil
	for i := range 5000 {
		in = append(in, xfrm.Acquire{Tunnel: "t", Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 0)})
	}
	if got := mergeEvents(append(in, bound(3, 7))); len(got) != acquireKeep+1 || got[len(got)-1] != bound(3, 7) {
		t.Errorf("%d events kept of a flood of acquires", len(got))
	}
}

func TestCallGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &scriptedNode{block: make(chan struct{})}
		var carried []string
		l := newTestLoop(n, &carried)
		go l.run()
		l.offerIKE(xfrm.IKEDatagram{})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.call(ctx, func(time.Time) {}); err != context.DeadlineExceeded {
			t.Errorf("a call to a busy loop: %v", err)
		}
		close(n.block)
		_ = l.post(n.Shutdown)
		<-l.done
	})
}
