package cluster

import (
	"testing"
	"time"
)

func TestHandover(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(time.Second)
	at := w.now
	if err := s.pair.Failover(w.now, true); err == nil {
		t.Error("failover set on a standby")
	}
	o.daemon(o.process, func() {
		if err := o.pair.Failover(w.now, true); err != nil {
			t.Error(err)
		}
	})
	w.until(5*time.Millisecond, "handed over", func() bool { return s.owner })
	if d := w.now.Sub(at); d > 2*time.Millisecond {
		t.Errorf("nobody owned for %v", d)
	}
	if x := s.lastOwn(); !x.Covered || !x.Handover {
		t.Errorf("%+v", x)
	}
	w.until(3*time.Second, "synchronised", w.synchronised)
	if o.owner || o.disowned != 1 || o.rekeys+s.rekeys != 0 || s.diskNote || o.diskNote {
		t.Error("not a clean handover")
	}
}

func TestBackAndForth(t *testing.T) {
	w := newWorld(t, 1)
	w.pairUp()
	for i := range 20 {
		o, s := w.roles()
		o.daemon(o.process, func() {
			if err := o.pair.Failover(w.now, true); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		})
		w.until(20*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
		w.until(3*time.Second, "synchronised", w.synchronised)
	}
	if len(w.runs) != 21 {
		t.Errorf("%d runs", len(w.runs))
	}
}

func TestHandoverFails(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	before := o.epoch
	o.slow = true // the frames do not arrive
	at := w.now
	o.daemon(o.process, func() { _ = o.pair.Failover(w.now, true) })
	w.until(600*time.Millisecond, "taken back", func() bool { return o.owner && !o.handing })
	if d := w.now.Sub(at); d < 500*time.Millisecond || d > 510*time.Millisecond {
		t.Errorf("after %v", d)
	}
	x := o.lastOwn()
	if !x.Covered || !before.Less(x.Epoch) || s.owner {
		t.Errorf("%+v", x)
	}
	o.slow = false
	w.until(5*time.Second, "synchronised", w.synchronised)
	if !o.owner || len(w.runs) != 2 {
		t.Error("the late frames changed something")
	}
}

func TestSuccessorDiesDuringHandover(t *testing.T) {
	for d := time.Duration(0); d < 1500*time.Microsecond; d += 50 * time.Microsecond {
		w := newWorld(t, 1)
		o, s := w.pairUp()
		o.daemon(o.process, func() { _ = o.pair.Failover(w.now, true) })
		w.pass(d)
		s.kill()
		w.until(5*time.Second, "synchronised", w.synchronised)
	}
}

func TestOwnerDiesDuringHandover(t *testing.T) {
	for d := time.Duration(0); d < 1500*time.Microsecond; d += 50 * time.Microsecond {
		w := newWorld(t, 1)
		o, s := w.pairUp()
		o.daemon(o.process, func() { _ = o.pair.Failover(w.now, true) })
		w.pass(d)
		o.kill()
		w.until(50*time.Millisecond, "taken over", func() bool { return s.owner })
		if x := s.lastOwn(); !x.Covered {
			t.Errorf("%v: %+v", d, x)
		}
		w.until(5*time.Second, "synchronised", w.synchronised)
	}
}

func TestCutDuringHandover(t *testing.T) {
	for d := time.Duration(0); d < 1500*time.Microsecond; d += 50 * time.Microsecond {
		w := newWorld(t, 1)
		o, _ := w.pairUp()
		o.daemon(o.process, func() { _ = o.pair.Failover(w.now, true) })
		w.pass(d)
		w.cutAll(true)
		w.pass(3 * time.Second)
		w.cutAll(false)
		w.until(5*time.Second, "synchronised", w.synchronised)
	}
}

func TestShutdownHandsOver(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	o.restart = 0
	o.daemon(o.process, func() { o.pair.Shutdown(w.now) })
	w.until(5*time.Millisecond, "handed over", func() bool { return s.owner })
	if x := s.lastOwn(); !x.Handover {
		t.Errorf("%+v", x)
	}
	w.until(50*time.Millisecond, "ended", func() bool { return o.pair == nil })
	w.pass(50 * time.Millisecond)
	if s.gates || s.diskNote {
		t.Error("the survivor should be alone, without a note")
	}
}

func TestShutdownWhenTheFramesDoNotArrive(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	o.restart, o.slow = 0, true
	o.daemon(o.process, func() { o.pair.Shutdown(w.now) })
	w.until(600*time.Millisecond, "taken over", func() bool { return s.owner })
	if x := s.lastOwn(); !x.Covered || x.Handover {
		t.Errorf("%+v", x)
	}
}

func TestShutdownAlone(t *testing.T) {
	w := newWorld(t, 1)
	n := w.node[1]
	n.boot()
	w.until(2*time.Second, "owner", func() bool { return n.owner })
	n.restart = 0
	n.daemon(n.process, func() { n.pair.Shutdown(w.now) })
	if n.owner || count[Stopped](n) != 1 {
		t.Error("not stopped at once")
	}
}
