package cluster

import (
	"strings"
	"testing"
	"time"

	"tandem/internal/config"
)

func (n *wnode) interfaces(up int) {
	n.monitors = up
	n.daemon(n.process, func() { n.pair.HandleMonitors(n.w.now, up) })
}

// pings says what a node's servers weigh; one that does not own cannot probe them.
func (n *wnode) pings(penalty int) {
	stale := penalty
	if n.owner {
		stale = 0
	}
	n.daemon(n.process, func() { n.pair.HandlePingservers(n.w.now, penalty, stale) })
}

// TestFailoverHoldTime: a monitored interface that fails, or comes back, counts when it
// has stayed so for failover-hold-time; what was shorter has not been.
func TestFailoverHoldTime(t *testing.T) {
	w := newWorld(t, 1)
	for _, n := range w.node[1:] {
		n.ha.FailoverHoldTime = 5 * time.Second
	}
	o, s := w.pairUp()
	w.pass(10 * time.Second)
	age := o.pair.election(w.now).Age
	for range 5 { // each change begins the time anew
		o.interfaces(1)
		w.pass(4900 * time.Millisecond)
		if st := o.pair.Status(w.now); st.Election.MonitorsUp != 2 || st.Seen != 1 || st.Held.Sub(w.now) != 100*time.Millisecond {
			t.Fatalf("%d count, %d seen, held %v", st.Election.MonitorsUp, st.Seen, st.Held.Sub(w.now))
		}
		o.interfaces(2)
		w.pass(time.Second)
	}
	if !o.owner || o.pair.election(w.now).Age <= age || !o.pair.Status(w.now).Held.IsZero() {
		t.Fatal("a failure that did not last counted")
	}
	at := w.now
	o.interfaces(0)
	w.pass(2 * time.Second)
	o.interfaces(1) // one of two is back: the time begins anew
	w.until(6*time.Second, "handed over", func() bool { return s.owner && !o.owner })
	if d := w.now.Sub(at); d < 7*time.Second || d > 7100*time.Millisecond {
		t.Errorf("handed over after %v", d)
	}
	w.until(3*time.Second, "synchronised", w.synchronised)
	if c := s.pair.Status(w.now).Change; c.Why != HandedMonitors || c.Evidence != "monitored interfaces: 2 work against 1" ||
		!strings.HasSuffix(c.Reason, "handed over: monitored interfaces failed") || c.Epoch != s.epoch {
		t.Errorf("%+v", c)
	}
	if c := o.pair.Status(w.now).Change; c.By != o.id || c.Evidence != "monitored interfaces: 2 work against 1" || c.Its.MonitorsUp != 2 {
		t.Errorf("%+v", c)
	}
	if a := o.pair.election(w.now).Age; a > 5*time.Second {
		t.Errorf("the age goes on: %v", a)
	}
	// A member that dies is not waited for.
	s.kill()
	w.until(100*time.Millisecond, "taken over", func() bool { return o.owner })
	// Nor is what a starting member finds first.
	w.until(5*time.Second, "synchronised", w.synchronised)
	if up := o.pair.Status(w.now).Election.MonitorsUp; up != 1 {
		t.Errorf("%d", up)
	}
}

func TestFirstLookCounts(t *testing.T) {
	p := NewPair(PairOptions{Self: 1, HA: config.HA{Monitor: []string{"a", "b"}, FailoverHoldTime: time.Minute}})
	now := time.Unix(1e9, 0)
	p.Start(now)
	p.HandleMonitors(now, 1)
	if p.election(now).MonitorsUp != 1 {
		t.Error("an interface that never worked counts")
	}
}

// pingPair is a pair with pingservers, threshold 5 and a flip timeout of a minute.
func pingPair(t *testing.T, change func(*config.HA)) (w *world, o, s *wnode) {
	w = newWorld(t, 1)
	for _, n := range w.node[1:] {
		n.ha.Pingserver = config.Pingserver{Threshold: 5, FlipTimeout: time.Minute, ForceReset: true}
		if change != nil {
			change(&n.ha)
		}
	}
	o, s = w.pairUp()
	w.pass(5 * time.Second)
	return w, o, s
}

func TestPingserverThreshold(t *testing.T) {
	w, o, s := pingPair(t, nil)
	o.pings(4)
	w.pass(10 * time.Second)
	if !o.owner || o.pair.Status(w.now).Election.Penalty != 0 {
		t.Fatal("beneath the threshold")
	}
	o.pings(5)
	w.until(50*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
	if x := s.lastOwn(); !x.Handover || !x.Covered {
		t.Errorf("%+v", x)
	}
	w.pass(time.Second)
	if c := s.pair.Status(w.now).Change; c.Why != HandedPingservers || c.Its.Penalty != 5 || c.Evidence != "pingservers: penalty 0 against 5" || c.By != o.id {
		t.Errorf("%+v", c)
	}
	// Threshold 0: any failure. The reload lets what is known count.
	w, o, s = pingPair(t, nil)
	o.pings(1)
	w.pass(time.Second)
	ha := o.ha
	ha.Pingserver.Threshold = 0
	o.daemon(o.process, func() { o.pair.Reconfigure(w.now, ha) })
	w.until(50*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
}

// TestPingserverFlipTimeout: where both nodes' servers are dead, the ownership moves once
// in a flip timeout and not more often; an interface, or a death, does not wait for it.
func TestPingserverFlipTimeout(t *testing.T) {
	w, o, s := pingPair(t, nil)
	o.pings(5)
	w.until(50*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
	flipped := w.now
	o.pings(5) // what it knows is old from now on
	w.until(3*time.Second, "synchronised", w.synchronised)
	s.pings(7)
	w.pass(50 * time.Second)
	st := s.pair.Status(w.now)
	if !s.owner || st.Election.Penalty != 7 || st.Flip.Sub(flipped).Round(time.Second) != time.Minute {
		t.Fatalf("flipped again within the timeout: penalty %d, until %v", st.Election.Penalty, st.Flip.Sub(flipped))
	}
	if o.pair.Status(w.now).Election.Penalty != 5 {
		t.Error("the standby's penalty is forgotten within the timeout")
	}
	w.until(15*time.Second, "flipped back", func() bool { return o.owner && !s.owner })
	if d := w.now.Sub(flipped); d < time.Minute || d > time.Minute+time.Second {
		t.Errorf("after %v", d)
	}
	s.pings(7)
	w.until(3*time.Second, "synchronised", w.synchronised)
	o.pings(5)
	w.pass(40 * time.Second)
	if !o.owner {
		t.Error("flipped within the second timeout")
	}
	o.interfaces(1)
	w.until(50*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
	w.until(3*time.Second, "synchronised", w.synchronised)
	s.kill()
	w.until(100*time.Millisecond, "taken over", func() bool { return o.owner })
}

// Without a flip timeout pingservers move the ownership as soon as the hold-down lets them.
func TestPingserverWithoutFlipTimeout(t *testing.T) {
	w, o, s := pingPair(t, func(ha *config.HA) { ha.Pingserver.FlipTimeout = 0 })
	for range 3 {
		o.pings(5)
		w.until(3*time.Second, "handed over", func() bool { return s.owner && !o.owner })
		o.pings(5)
		w.until(3*time.Second, "synchronised", w.synchronised)
		o, s = s, o
	}
}

// TestPingserverForceReset: with override the better member has its turn again when the
// flip timeout is over and it may have recovered; without the reset it has it only when
// its servers are known to answer.
func TestPingserverForceReset(t *testing.T) {
	for _, reset := range []bool{true, false} {
		w, o, s := pingPair(t, func(ha *config.HA) { ha.Pingserver.ForceReset, ha.Override = reset, true })
		o.ha.Priority = 200
		o.daemon(o.process, func() { o.pair.Reconfigure(w.now, o.ha) })
		o.pings(5)
		w.until(50*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
		at := w.now
		o.pings(5)
		w.until(3*time.Second, "synchronised", w.synchronised)
		w.pass(50 * time.Second)
		if !s.owner {
			t.Fatalf("reset %v: preempted within the flip timeout", reset)
		}
		if reset {
			w.until(15*time.Second, "preempted", func() bool { return o.owner && !s.owner })
			if d := w.now.Sub(at); d < time.Minute || d > time.Minute+time.Second {
				t.Errorf("after %v", d)
			}
			continue
		}
		w.pass(2 * time.Minute)
		if !s.owner {
			t.Fatal("without the reset it had its turn")
		}
		// Now it can probe, and its servers answer: that is no reset.
		o.daemon(o.process, func() { o.pair.HandlePingservers(w.now, 0, 0) })
		w.until(100*time.Millisecond, "preempted", func() bool { return o.owner && !s.owner })
	}
}

// A standby that knows from its own probes that its servers are as dead is no better.
func TestPingserverStandbyThatProbes(t *testing.T) {
	w, o, s := pingPair(t, nil)
	s.daemon(s.process, func() { s.pair.HandlePingservers(w.now, 5, 0) })
	w.pass(time.Second)
	o.pings(5)
	w.pass(2 * time.Minute)
	if !o.owner {
		t.Fatal("handed over to a node that is no better")
	}
	s.daemon(s.process, func() { s.pair.HandlePingservers(w.now, 0, 0) })
	w.until(100*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
}

// A handover for pingservers' sake that fails has flipped nothing.
func TestPingserverFlipThatFails(t *testing.T) {
	w, o, s := pingPair(t, nil)
	o.slow = true
	o.pings(5)
	w.until(time.Second, "handing", func() bool { return o.handing })
	w.until(time.Second, "taken back", func() bool { return o.owner && !o.handing })
	if !o.pair.Status(w.now).Flip.IsZero() {
		t.Error("the flip timeout runs")
	}
	o.slow = false
	w.until(30*time.Second, "handed over", func() bool { return s.owner && !o.owner })
}

// TestFailoverSetAndUnset: the flag stands above everything; set on the other node it goes
// back, unset the configuration decides again.
func TestFailoverSetAndUnset(t *testing.T) {
	w := newWorld(t, 1)
	for _, n := range w.node[1:] {
		n.ha.Override = true
	}
	w.node[1].ha.Priority = 200
	o, s := w.pairUp()
	if o.id != 1 {
		w.until(10*time.Second, "preempted", func() bool { return w.node[1].owner && !w.node[2].owner })
		w.until(3*time.Second, "synchronised", w.synchronised)
		o, s = w.roles()
	}
	set := func(n *wnode, on bool) {
		n.daemon(n.process, func() {
			if err := n.pair.Failover(w.now, on); err != nil {
				t.Error(err)
			}
		})
	}
	set(o, true)
	w.until(20*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
	w.until(3*time.Second, "synchronised", w.synchronised)
	s.interfaces(0)
	s.pings(50)
	w.pass(2 * time.Minute)
	if !s.owner || !o.pair.Status(w.now).Election.Failover {
		t.Fatal("priority or interfaces stand above the flag")
	}
	if c := s.pair.Status(w.now).Change; c.Why != HandedFailover || c.By != o.id || c.Evidence != byFailover {
		t.Errorf("%+v", c)
	}
	s.interfaces(2)
	s.pings(0)
	set(o, false)
	w.until(100*time.Millisecond, "back by override", func() bool { return o.owner && !s.owner })
	w.pass(time.Second)
	if c := s.pair.Status(w.now).Change; c.By != s.id || c.Evidence != "priority: 200 against 128" {
		t.Errorf("%+v", c)
	}
	w.until(3*time.Second, "synchronised", w.synchronised)
	set(o, true)
	w.until(20*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
	w.until(3*time.Second, "synchronised", w.synchronised)
	set(s, true) // set there, it is unset here
	w.until(20*time.Millisecond, "handed over", func() bool { return o.owner && !s.owner })
	if o.pair.Status(w.now).Election.Failover || !s.pair.Status(w.now).Election.Failover {
		t.Error("the flag is not where it was set last")
	}
}

// TestOverrideOfTheStandby: override and its wait count where only the better member has them.
func TestOverrideOfTheStandby(t *testing.T) {
	w := newWorld(t, 1)
	w.node[1].ha.Override, w.node[1].ha.OverrideWaitTime, w.node[1].ha.Priority = true, 20*time.Second, 200
	w.node[2].boot()
	w.until(3*time.Second, "alone", func() bool { return w.node[2].owner })
	w.pass(400 * time.Second)
	w.node[1].boot()
	w.until(3*time.Second, "synchronised", w.synchronised)
	at := w.now
	if st := w.node[2].pair.Status(at); st.Next != "override: gw1 goes first by priority" || st.NextAt.Sub(at).Round(time.Second) != 20*time.Second {
		t.Errorf("waits for %q in %v", st.Next, st.NextAt.Sub(at))
	}
	w.until(30*time.Second, "preempted", func() bool { return w.node[1].owner && !w.node[2].owner })
	if d := w.now.Sub(at); d < 19*time.Second || d > 21*time.Second {
		t.Errorf("after %v", d)
	}
}
