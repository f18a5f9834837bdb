package linkhealth

import (
	"testing"
	"time"
)

// bench drives a Monitor in fake time against servers that answer or do not.
type bench struct {
	now     time.Time
	m       *Monitor
	answers []bool
	rtt     time.Duration
	sent    int
	queue   []answer // by time: the round trip is the same for all
}

type answer struct {
	at time.Time
	p  Probe
}

func newBench(o Options, n int) *bench {
	b := &bench{now: time.Unix(1e9, 0), m: NewMonitor(o, n), answers: make([]bool, n), rtt: 5 * time.Millisecond}
	for i := range b.answers {
		b.answers[i] = true
	}
	return b
}

// pass lets time go by.
func (b *bench) pass(d time.Duration) {
	end := b.now.Add(d)
	for {
		at, ok := b.m.NextTimeout()
		if len(b.queue) > 0 && (!ok || !b.queue[0].at.After(at)) && !b.queue[0].at.After(end) {
			x := b.queue[0]
			b.queue, b.now = b.queue[1:], x.at
			b.m.HandleAnswer(b.now, x.p.Server, x.p.Seq)
			continue
		}
		if !ok || at.After(end) {
			b.now = end
			return
		}
		b.now = at
		for _, p := range b.m.HandleTimeout(b.now) {
			b.sent++
			if b.answers[p.Server] {
				b.queue = append(b.queue, answer{b.now.Add(b.rtt), p})
			}
		}
	}
}

var quick = Options{Interval: 100 * time.Millisecond, Timeout: 50 * time.Millisecond, Fail: 3, Recover: 5}

func TestMonitorFailsAndRecovers(t *testing.T) {
	b := newBench(quick, 1)
	b.pass(time.Second)
	if b.sent != 0 || b.m.Failed() {
		t.Fatal("probed before it was started")
	}
	b.m.Start(b.now)
	b.pass(950 * time.Millisecond)
	if b.sent != 10 || b.m.Failed() {
		t.Fatalf("%d probes in a second, failed %v", b.sent, b.m.Failed())
	}
	b.answers[0] = false
	b.pass(299 * time.Millisecond) // probes at 1000, 1100, 1200, the third is given up at 1250
	if b.m.Failed() {
		t.Error("failed before the third answer was overdue")
	}
	b.pass(2 * time.Millisecond)
	if dead, since := b.m.Server(0); !dead || !b.m.Failed() || b.now.Sub(since) != time.Millisecond {
		t.Errorf("dead %v since %v", dead, b.now.Sub(since))
	}
	b.answers[0] = true
	b.pass(449 * time.Millisecond) // 1300 … 1700
	if !b.m.Failed() {
		t.Error("recovered before the fifth answer")
	}
	b.pass(10 * time.Millisecond)
	if b.m.Failed() {
		t.Error("not recovered after five answers")
	}
}

// Two lost, one answered, and again: never three in a row. While it is dead, four
// answered and one lost never makes five in a row.
func TestMonitorCountsInARow(t *testing.T) {
	b := newBench(quick, 1)
	b.m.Start(b.now)
	b.pass(50 * time.Millisecond)
	for range 20 {
		b.answers[0] = false
		b.pass(200 * time.Millisecond)
		b.answers[0] = true
		b.pass(100 * time.Millisecond)
	}
	if b.m.Failed() {
		t.Fatal("failed without three in a row")
	}
	b.answers[0] = false
	b.pass(time.Second)
	for range 20 {
		b.answers[0] = true
		b.pass(400 * time.Millisecond)
		b.answers[0] = false
		b.pass(100 * time.Millisecond)
	}
	if !b.m.Failed() {
		t.Error("recovered without five in a row")
	}
}

func TestMonitorFailsWhenAllServersAreDead(t *testing.T) {
	b := newBench(quick, 3)
	b.m.Start(b.now)
	b.answers[0], b.answers[2] = false, false
	b.pass(time.Second)
	if b.m.Failed() {
		t.Fatal("failed while one server answers")
	}
	b.answers[1] = false
	b.pass(time.Second)
	if !b.m.Failed() {
		t.Fatal("not failed without any server")
	}
	b.answers[2] = true
	b.pass(time.Second)
	if b.m.Failed() {
		t.Error("one server is enough")
	}
	if (NewMonitor(quick, 0)).Failed() {
		t.Error("a monitor without servers failed")
	}
}

// An answer later than the timeout, to a probe long given up, of another server, of a
// number never sent, or twice: none counts.
func TestMonitorRefusesStrangeAnswers(t *testing.T) {
	b := newBench(quick, 2)
	b.rtt = 60 * time.Millisecond
	b.m.Start(b.now)
	b.pass(time.Second)
	if !b.m.Failed() {
		t.Fatal("answers after the timeout count")
	}
	for _, p := range []Probe{{0, 9999}, {1, 0}, {7, 1}, {-1, 1}} {
		b.m.HandleAnswer(b.now, p.Server, p.Seq)
	}
	seq := b.m.HandleTimeout(b.now.Add(100 * time.Millisecond))[0].Seq
	b.now = b.now.Add(100 * time.Millisecond)
	for range 10 {
		b.m.HandleAnswer(b.now, 0, seq)
	}
	if dead, _ := b.m.Server(0); !dead {
		t.Error("one answer counted ten times")
	}
}

// A process that stood still has lost nothing; a monitor that stopped keeps what it knew
// and begins anew.
func TestMonitorStallsAndStops(t *testing.T) {
	b := newBench(Options{Interval: 20 * time.Millisecond, Timeout: 20 * time.Millisecond, Fail: 1, Recover: 1}, 1)
	b.m.Start(b.now)
	b.pass(50 * time.Millisecond)
	b.queue = nil
	b.now = b.now.Add(5 * time.Second)
	b.m.HandleTimeout(b.now)
	if b.m.Failed() {
		t.Error("what was not read counts as not answered")
	}
	b.answers[0], b.queue = false, nil
	b.pass(time.Second)
	b.m.Stop()
	sent := b.sent
	b.pass(time.Second)
	if !b.m.Failed() || b.m.Running() || b.sent != sent {
		t.Error("a stopped monitor forgets, or probes")
	}
	b.m.Start(b.now)
	if b.m.Failed() {
		t.Error("a started monitor does not begin anew")
	}
}

// With a timeout of many intervals the open probes are bounded.
func TestMonitorOpenProbesAreBounded(t *testing.T) {
	b := newBench(Options{Interval: 20 * time.Millisecond, Timeout: time.Hour, Fail: 10, Recover: 1}, 1)
	b.answers[0] = false
	b.m.Start(b.now)
	b.pass((maxOpen + 8) * 20 * time.Millisecond)
	if b.m.Failed() || len(b.m.servers[0].open) != maxOpen {
		t.Errorf("failed %v, %d open", b.m.Failed(), len(b.m.servers[0].open))
	}
	b.pass(20 * time.Millisecond)
	if !b.m.Failed() {
		t.Error("what is beyond the bound is not counted")
	}
}

func TestDamper(t *testing.T) {
	var d Damper
	now := time.Unix(1e9, 0)
	const wan = "wan"
	works := func(want bool, what string) {
		t.Helper()
		if d.Works(now, wan) != want {
			t.Errorf("%s: works %v", what, !want)
		}
	}
	// fail pulls the cable for a moment.
	fail := func() {
		d.Set(now, wan, false)
		works(false, "pulled")
		now = now.Add(100 * time.Millisecond)
		d.Set(now, wan, true)
	}
	works(false, "unknown")
	d.Set(now, wan, false)
	works(false, "down from the beginning")
	d.Set(now, wan, true)
	works(true, "came up for the first time")
	fail()
	works(true, "first failure")
	for i, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		wait *= time.Second
		fail()
		if left, n := d.Held(now, wan); left != wait || n != i+2 {
			t.Errorf("failure %d: %d counted, wait %v, want %v", i+2, n, left, wait)
		}
		if at, ok := d.Next(now, []string{"lan", wan}); !ok || at.Sub(now) != wait {
			t.Errorf("failure %d: next at %v", i+2, at.Sub(now))
		}
		now = now.Add(wait - time.Millisecond)
		works(false, "just before its time")
		d.Set(now, wan, true) // said again: nothing begins anew
		now = now.Add(time.Millisecond)
		works(true, "when its time has come")
	}
	// A failure while it waits lengthens the wait.
	fail()
	now = now.Add(30 * time.Second)
	fail()
	now = now.Add(59 * time.Second)
	works(false, "failed while it waited")
	now = now.Add(time.Second)
	works(true, "after all")
	// Five quiet minutes.
	now = now.Add(5 * time.Minute)
	fail()
	works(true, "five minutes without a failure")
	fail()
	works(false, "again")
	d.Damp(false)
	works(true, "not damped")
	if _, ok := d.Next(now, []string{wan}); ok {
		t.Error("something is waited for though nothing is damped")
	}
}
