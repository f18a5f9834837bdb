package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestStartTogether(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed)
		w.node[1].boot()
		w.pass(time.Duration(seed) * 7 * time.Millisecond)
		w.node[2].boot()
		w.until(2*time.Second, "synchronised", w.synchronised)
		// Equal but for the serial number: the higher one goes first.
		if o, _ := w.roles(); o.id != 2 {
			t.Errorf("seed %d: node %d owns", seed, o.id)
		}
		if len(w.runs) != 1 {
			t.Errorf("seed %d: owned %d times", seed, len(w.runs))
		}
	}
}

func TestStartByPriority(t *testing.T) {
	w := newWorld(t, 1)
	w.node[1].ha.Priority = 200
	if o, _ := w.pairUp(); o.id != 1 {
		t.Errorf("node %d owns", o.id)
	}
}

func TestStartAlone(t *testing.T) {
	w := newWorld(t, 1)
	n := w.node[1]
	n.boot()
	w.pass(900 * time.Millisecond)
	if n.owner {
		t.Fatal("owns before it has listened")
	}
	w.until(300*time.Millisecond, "owner", func() bool { return n.owner })
	if !n.diskNote {
		t.Error("alone without the note")
	}
	if st := n.pair.Status(w.now); !st.Alone || len(st.Alarms) == 0 {
		t.Errorf("not alarmed: %+v", st)
	}
	if o := n.lastOwn(); o.Epoch.Counter < 1e9 {
		t.Errorf("a node without a disk made epoch %v, which may have been made before", o.Epoch)
	}
	// The second one joins, and the note goes.
	w.node[2].boot()
	w.until(2*time.Second, "synchronised", w.synchronised)
	w.pass(100 * time.Millisecond)
	if n.diskNote || !n.owner {
		t.Error("the note stays, or the owner changed")
	}
}

func TestCrashOfTheDaemon(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(time.Second)
	at := w.now
	o.kill()
	w.until(10*time.Millisecond, "taken over", func() bool { return s.owner })
	if x := s.lastOwn(); !x.Covered || !x.Trusted || x.Renewal || !strings.Contains(x.Reason, "announced") {
		t.Errorf("%+v", x)
	}
	t.Log("after", w.now.Sub(at))
	if s.diskNote {
		t.Error("a note, though nobody else can go on")
	}
	w.until(3*time.Second, "synchronised", w.synchronised)
	if s.rekeys != 0 || !s.owner {
		t.Error("rekeyed early, or changed back")
	}
}

func TestLossOfTheHost(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(time.Second)
	at := w.now
	o.crash()
	w.until(60*time.Millisecond, "taken over", func() bool { return s.owner })
	if x := s.lastOwn(); !x.Covered || x.Detected < 20*time.Millisecond || x.Detected > 40*time.Millisecond {
		t.Errorf("%+v", x)
	}
	if d := w.now.Sub(at); d > 40*time.Millisecond {
		t.Errorf("taken over after %v", d)
	}
	w.pass(100 * time.Millisecond)
	if !s.diskNote {
		t.Error("silence, but no note")
	}
	o.boot()
	w.until(3*time.Second, "synchronised", w.synchronised)
	if s.rekeys != 0 {
		t.Error("coverage was proven, yet rekeyed early")
	}
	w.pass(100 * time.Millisecond)
	if s.diskNote {
		t.Error("the note stays")
	}
}

func TestLossOfTheHostWithAStuckDisk(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	s.diskDelay = time.Minute
	at := w.now
	o.crash()
	w.until(100*time.Millisecond, "taken over", func() bool { return s.owner })
	if d := w.now.Sub(at); d < 45*time.Millisecond || d > 65*time.Millisecond {
		t.Errorf("taken over after %v", d)
	}
	if s.pair.alarms["note"].On == false {
		t.Error("no alarm")
	}
}

func TestFailingDisk(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	s.diskErr = errors.New("read-only file system")
	o.crash()
	w.until(100*time.Millisecond, "taken over", func() bool { return s.owner })
	if a := s.pair.alarms["disk"]; !a.On || !strings.Contains(a.Text, "read-only") {
		t.Errorf("%+v", a)
	}
}

func TestLossOfTheStandby(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(*wnode)
		note  bool
	}{{"daemon dies", (*wnode).kill, false}, {"host lost", (*wnode).crash, true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1)
			o, s := w.pairUp()
			s.restart = 0
			c.fault(s)
			w.until(100*time.Millisecond, "alone", func() bool { return !o.gates })
			if o.diskNote != c.note || !o.owner {
				t.Errorf("note %v", o.diskNote)
			}
			if s.guard == nil {
				s.boot()
			} else {
				s.startDaemon()
			}
			w.until(3*time.Second, "synchronised", w.synchronised)
			w.pass(50 * time.Millisecond)
			if o.diskNote || len(w.runs) != 1 {
				t.Error("note stays, or ownership moved")
			}
		})
	}
}

func TestRestartTellsWhetherToRekey(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(*wnode)
		want   int
	}{
		{"without note", func(*wnode) {}, 0},
		{"with note", func(n *wnode) { n.diskNote = true }, 1},
		{"lost disk", func(n *wnode) { n.diskLost = true }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1)
			o, s := w.pairUp()
			o.crash()
			w.until(100*time.Millisecond, "taken over", func() bool { return s.owner })
			c.before(o)
			o.boot()
			w.until(3*time.Second, "synchronised", w.synchronised)
			if s.rekeys != c.want {
				t.Errorf("rekeyed early %d times, want %d", s.rekeys, c.want)
			}
			w.pass(50 * time.Millisecond)
			if o.diskNote || o.diskLost {
				t.Error("the standby is covered now, yet keeps its note")
			}
			// The next takeover's epoch is none that the lost disk knew of.
			s.kill()
			w.until(100*time.Millisecond, "taken over", func() bool { return o.owner })
		})
	}
}

func TestSplitAndHeal(t *testing.T) {
	for _, priority := range []int{100, 200} {
		w := newWorld(t, 1)
		o, s := w.pairUp()
		o.pair.opt.HA.Priority = priority
		w.pass(time.Second)
		w.cutAll(true)
		w.until(100*time.Millisecond, "both own", func() bool { return o.owner && s.owner })
		w.pass(10 * time.Second)
		if !o.diskNote || !s.diskNote || o.gates || s.gates {
			t.Error("each should go on alone, with a note")
		}
		w.cutAll(false)
		w.until(300*time.Millisecond, "one owner", func() bool { return o.owner != s.owner })
		want, lost := o, s
		if priority < 128 {
			want, lost = s, o
		}
		if !want.owner {
			t.Errorf("priority %d: the wrong node was chosen", priority)
		}
		if lost.unites != 1 || lost.disowned != 1 || want.unites != 0 {
			t.Errorf("unites %d %d", lost.unites, want.unites)
		}
		x := want.lastOwn()
		if x.Covered || !x.Renewal || !x.Trusted {
			t.Errorf("%+v", x)
		}
		w.until(time.Second, "synchronised", w.synchronised)
		if s.rekeys+o.rekeys != 0 {
			t.Error("memory is there on both sides: nothing to rekey")
		}
	}
}

func TestSplitThenOneSideLosesItsMemory(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.cutAll(true)
	w.until(100*time.Millisecond, "both own", func() bool { return o.owner && s.owner })
	w.pass(time.Second)
	o.crash()
	w.cutAll(false)
	o.boot()
	w.until(3*time.Second, "synchronised", w.synchronised)
	if s.rekeys != 1 || !s.owner {
		t.Errorf("rekeyed early %d times", s.rekeys)
	}
}

// TestSplitThenOneSideGoesOnAnew: behind the cut one side ends, starts again and owns once
// more, without memory.
func TestSplitThenOneSideGoesOnAnew(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	o.pair.opt.HA.Priority, s.pair.opt.HA.Priority = 100, 200
	w.cutAll(true)
	w.until(100*time.Millisecond, "both own", func() bool { return o.owner && s.owner })
	w.pass(time.Second)
	o.crash()
	o.boot()
	o.pair.opt.HA.Priority = 100
	w.until(5*time.Second, "both own again", func() bool { return o.owner && s.owner })
	w.cutAll(false)
	w.until(3*time.Second, "synchronised", w.synchronised)
	if !s.owner || s.rekeys != 1 {
		t.Errorf("owner %v, rekeyed early %d times", s.owner, s.rekeys)
	}
}

func TestOneWayCut(t *testing.T) {
	for _, deaf := range []string{"owner", "standby"} {
		w := newWorld(t, 1)
		o, s := w.pairUp()
		from := s
		if deaf == "standby" {
			from = o
		}
		for l := range w.cut {
			w.cut[l][from.id] = true
		}
		w.pass(2 * time.Second)
		if o.owner == s.owner {
			w.fail("deaf %s: owners %v %v", deaf, o.owner, s.owner)
		}
		w.cutAll(false)
		w.until(3*time.Second, "synchronised", w.synchronised)
	}
}

func TestFlapOfOneLinkChangesNothing(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	n, m := len(o.effects), len(s.effects)
	for range 10 {
		w.cut[0] = [3]bool{false, true, true}
		w.pass(200 * time.Millisecond)
		w.cut[0] = [3]bool{}
		w.pass(100 * time.Millisecond)
	}
	for _, e := range append(o.effects[n:], s.effects[m:]...) {
		t.Errorf("%T%+v", e, e)
	}
}

func TestShortSilenceIsUndone(t *testing.T) {
	// Only the standby stops hearing, for as long as its note takes.
	w := newWorld(t, 1)
	o, s := w.pairUp()
	s.diskDelay = 15 * time.Millisecond
	for l := range w.cut {
		w.cut[l][o.id] = true
	}
	w.until(100*time.Millisecond, "taking over", func() bool { return s.pair.phase == taking })
	w.cutAll(false)
	w.pass(500 * time.Millisecond)
	if s.owner || !o.owner || !w.synchronised() {
		w.fail("the owner was back before the standby acted")
	}
	if count[Leave](o) != 0 {
		t.Error("the owner let it go")
	}
	w.pass(100 * time.Millisecond)
	if s.diskNote {
		t.Error("the note stays")
	}
}

func TestMonitoredInterfaces(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(5 * time.Second)
	fail := func(n *wnode, up int) {
		n.monitors = up
		n.daemon(n.process, func() { n.pair.HandleMonitors(w.now, up) })
	}
	fail(o, 1)
	w.until(50*time.Millisecond, "handed over", func() bool { return s.owner && !o.owner })
	if x := s.lastOwn(); !x.Handover {
		t.Errorf("%+v", x)
	}
	// Both the same again: no way back without override.
	fail(o, 2)
	w.pass(5 * time.Second)
	if !s.owner {
		t.Error("moved back")
	}
	// Without a stream there is no handover; the node with interfaces owns anyway.
	s.slow = true
	w.pass(2 * time.Second)
	fail(s, 0)
	w.until(5*time.Second, "moved", func() bool { return o.owner && !s.owner })
	s.slow = false
	w.until(5*time.Second, "synchronised", w.synchronised)
}

func TestOverridePreempts(t *testing.T) {
	w := newWorld(t, 1)
	for _, n := range w.node[1:] {
		n.ha.Override, n.ha.OverrideWaitTime = true, 10*time.Second
	}
	w.node[1].ha.Priority = 200
	w.node[2].boot()
	w.until(3*time.Second, "alone", func() bool { return w.node[2].owner })
	w.pass(400 * time.Second)
	w.node[1].boot()
	w.until(3*time.Second, "synchronised", w.synchronised)
	if !w.node[2].owner {
		t.Fatal("preempted at once")
	}
	w.pass(9 * time.Second)
	if !w.node[2].owner {
		t.Fatal("preempted before override-wait-time")
	}
	w.until(2*time.Second, "preempted", func() bool { return w.node[1].owner && !w.node[2].owner })
	if x := w.node[1].lastOwn(); !x.Handover {
		t.Errorf("%+v", x)
	}
	w.pass(30 * time.Second)
	if !w.node[1].owner || len(w.runs) != 2 {
		t.Errorf("%d changes", len(w.runs))
	}
}

func TestSlowStreamIsRemovedAndComesBack(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(100 * time.Millisecond)
	epoch := o.epoch
	o.slow = true
	at := w.now
	w.until(time.Second, "removed", func() bool { return !o.gates })
	if d := w.now.Sub(at); d < 240*time.Millisecond || d > 400*time.Millisecond {
		t.Errorf("after %v", d)
	}
	if o.diskNote {
		t.Error("a note, though the standby agreed")
	}
	if !epoch.Less(o.epoch) {
		t.Error("the epoch goes on without a member that lives")
	}
	if _, held := s.guard.Entitled(); held {
		t.Error("still entitled")
	}
	// Not entitled: its turn comes only after it has listened, and without the SAs.
	o.slow = false
	w.until(3*time.Second, "synchronised", w.synchronised)
}

func TestNotEntitledTakesOverLast(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	o.slow = true
	w.until(time.Second, "removed", func() bool { return !o.gates })
	at := w.now
	o.crash()
	w.until(3*time.Second, "taken over", func() bool { return s.owner })
	if x := s.lastOwn(); x.Trusted || x.Covered || w.now.Sub(at) < time.Second {
		t.Errorf("after %v: %+v", w.now.Sub(at), x)
	}
}

func TestStoppedOwner(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(time.Second)
	at := w.now
	o.stopped = true
	w.until(time.Second, "taken over", func() bool { return s.owner })
	if x := s.lastOwn(); !x.Covered || w.now.Sub(at) > 600*time.Millisecond {
		t.Errorf("after %v: %+v", w.now.Sub(at), x)
	}
	w.until(3*time.Second, "synchronised", w.synchronised)
}

func TestUnresponsiveOwner(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(time.Second)
	o.stopped, o.stubborn = true, true
	w.until(time.Second, "taken over", func() bool { return s.owner })
	if x := s.lastOwn(); x.Covered || !x.Trusted {
		t.Errorf("%+v", x)
	}
	if !s.diskNote {
		t.Error("the old owner may go on: that wants a note")
	}
}

func TestBothPausedKillsNobody(t *testing.T) {
	for seed := range uint64(10) {
		w := newWorld(t, seed)
		o, s := w.pairUp()
		w.pass(time.Second + time.Duration(seed)*time.Millisecond)
		n, m := len(o.effects), len(s.effects)
		o.frozen, s.frozen = true, true
		w.pass(600 * time.Millisecond)
		o.thaw()
		w.pass(time.Duration(w.rng.IntN(10)) * time.Millisecond)
		s.thaw()
		w.pass(2 * time.Second)
		for _, e := range append(o.effects[n:], s.effects[m:]...) {
			if _, ok := e.(Announce); !ok {
				t.Errorf("seed %d: %T%+v", seed, e, e)
			}
		}
	}
}

// TestFrozenOwnerWakes: a host that stood still learns of its successor from the
// heartbeats that wait for it, and gives way at once, however the election would
// rank the two; its successor goes on as it was and announces itself again.
func TestFrozenOwnerWakes(t *testing.T) {
	for name, test := range map[string]struct {
		priority int           // of the frozen node; the other one's is 128
		frozen   time.Duration // 0: until just after the takeover
		daemon   time.Duration // that the daemon needs longer than its guardian to wake
	}{
		"lower priority":           {100, 5 * time.Second, 0},
		"higher priority":          {200, 5 * time.Second, 0},
		"for a moment":             {200, 0, 0},
		"its daemon wakes late":    {200, 5 * time.Second, 150 * time.Millisecond},
		"and is ranked lower":      {100, 5 * time.Second, 150 * time.Millisecond},
		"later than the successor": {200, 5 * time.Second, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			o, s := w.pairUp()
			o.pair.opt.HA.Priority = test.priority
			w.pass(time.Second) // and say so
			o.frozen = true
			w.until(100*time.Millisecond, "taken over", func() bool { return s.owner })
			w.pass(test.frozen)
			n, m := len(o.effects), len(s.effects)
			o.stopped = test.daemon > 0
			if o.stopped {
				o.frozen = false
				in := o.hostInbox
				o.hostInbox = nil
				for _, f := range in {
					o.host(f)
				}
				w.pass(test.daemon)
				if !o.stopped {
					w.fail("the daemon woke by itself")
				}
				o.cont()
			} else {
				o.thaw()
			}
			at := w.now
			w.until(time.Second, "one owner", func() bool { return !o.owner })
			if took := w.now.Sub(at); took > time.Millisecond {
				t.Errorf("it went on for %v after it woke", took)
			}
			w.until(2*time.Second, "synchronised", w.synchronised)
			w.pass(2 * time.Second)
			if !s.owner || o.owner {
				w.fail("the woken owner took the tunnels back")
			}
			if o.unites != 0 || o.rekeys+s.rekeys != 0 {
				t.Errorf("unites %d, early rekeys %d: nothing was committed without the successor", o.unites, o.rekeys+s.rekeys)
			}
			for _, e := range o.effects[n:] {
				if x, ok := e.(Own); ok {
					t.Errorf("the woken owner: %+v", x)
				}
			}
			announced := false
			for _, e := range s.effects[m:] {
				switch x := e.(type) {
				case Own:
					// Beside an owner that does not learn of it, the successor heals.
					if test.daemon == 0 || !x.Renewal {
						t.Errorf("the successor: %+v", x)
					}
				case Disown:
					t.Errorf("the successor: %+v", x)
				case Reassert:
					announced = true
				}
			}
			if !announced {
				t.Error("the successor did not announce itself again")
			}
		})
	}
}

// TestSucceededWhileTheRemovalWasAsked: an owner that had asked its member to leave
// cannot tell whether that one succeeded it with all of the state, or alone without
// any: both are united.
func TestSucceededWhileTheRemovalWasAsked(t *testing.T) {
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.pass(time.Second)
	o.frozen = true
	o.pair.peer.asking = true
	w.until(100*time.Millisecond, "taken over", func() bool { return s.owner })
	w.pass(time.Second)
	o.thaw()
	w.until(2*time.Second, "one owner", func() bool { return o.owner != s.owner })
	w.until(2*time.Second, "synchronised", w.synchronised)
	if o.unites+s.unites != 1 {
		t.Errorf("unites %d %d", o.unites, s.unites)
	}
}

func TestLossyHeartbeats(t *testing.T) {
	w := newWorld(t, 1)
	w.pairUp()
	w.loss = 0.05
	w.pass(60 * time.Second)
	if len(w.runs) != 1 {
		t.Errorf("%d owners under 5 %% loss on both links", len(w.runs))
	}
}

func TestRivalOwnerLostBeforeHealing(t *testing.T) {
	// The neighbours may have heard of the rival last: whoever is left announces itself.
	w := newWorld(t, 1)
	o, s := w.pairUp()
	w.cutAll(true)
	w.until(100*time.Millisecond, "both own", func() bool { return o.owner && s.owner })
	w.pass(time.Second)
	n := len(s.effects)
	w.cutAll(false)
	w.pass(15 * time.Millisecond) // heard, not yet healed
	if !o.owner || !s.owner {
		w.fail("healed already")
	}
	o.crash()
	w.pass(200 * time.Millisecond)
	for _, e := range s.effects[n:] {
		if _, ok := e.(Reassert); ok {
			return
		}
	}
	t.Errorf("node %d did not announce itself again", s.id)
}
