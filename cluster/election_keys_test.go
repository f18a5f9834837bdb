package cluster

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	"tandem/internal/config"
)

// electionKeys are all that an election compares, in FGCP's order without override; set
// makes a node better, equal or worse in one of them.
var electionKeys = []struct {
	name string
	set  func(e *Election, v int) // v: -1 worse, 0, 1 better
}{
	{byFailover, func(e *Election, v int) { e.Failover = v < 0 }},
	{byMonitors, func(e *Election, v int) { e.MonitorsUp = 2 + v }},
	{byPingservers, func(e *Election, v int) { e.Penalty = 5 - 5*v }},
	{byAge, func(e *Election, v int) { e.Age = time.Hour + time.Duration(v)*301*time.Second }},
	{byPriority, func(e *Election, v int) { e.Priority = 128 + v }},
	{bySerial, func(e *Election, v int) { e.Serial = fmt.Sprint("TDM", 5+v) }},
}

// TestElectionEveryKey: each key decides in both directions, in every combination with
// every other one, as the order says: failover set, monitored interfaces, pingservers,
// age, priority, serial number; with override priority before age.
func TestElectionEveryKey(t *testing.T) {
	plain := []int{0, 1, 2, 3, 4, 5}
	override := []int{0, 1, 2, 4, 3, 5}
	n, combos := len(electionKeys), 1
	for range n {
		combos *= 3
	}
	decided := map[string]int{}
	for c := range combos {
		values := make([]int, n)
		for i, rest := 0, c; i < n; i, rest = i+1, rest/3 {
			values[i] = rest%3 - 1
		}
		var a, b Election
		for i, k := range electionKeys {
			k.set(&a, values[i])
			k.set(&b, 0)
		}
		if values[0] > 0 { // nobody is better than without the flag: the other one has it
			b.Failover = true
		}
		for _, on := range []bool{false, true} {
			order := plain
			if on {
				order = override
			}
			want, why := 0, bySerial
			for _, i := range order {
				if values[i] != 0 {
					want, why = values[i], electionKeys[i].name
					break
				}
			}
			r, key := rank(a, b, on, 300*time.Second)
			if r != want || key != why {
				t.Fatalf("%v, override %v: %d by %s, want %d by %s", values, on, r, key, want, why)
			}
			if back, key := rank(b, a, on, 300*time.Second); back != -want || key != why {
				t.Fatalf("%v, override %v: the other way round %d by %s", values, on, back, key)
			}
			decided[fmt.Sprint(why, r, on)]++
		}
	}
	if len(decided) != 2*(2*n+1) { // each key both ways, and nothing at all
		t.Errorf("not every key decided both ways: %v", decided)
	}
}

// pairWith is a Pair that knows of another node.
func pairWith(ha config.HA, mine, its Election) (*Pair, time.Time) {
	now := time.Unix(1e9, 0)
	p := NewPair(PairOptions{Self: 1, Name: "gw1", Serial: mine.Serial, HA: ha})
	p.ageFrom, p.monitors, p.failover = now.Add(-mine.Age), mine.MonitorsUp, mine.Failover
	p.health.penalty = mine.Penalty
	p.peer = member{Peer: Peer{Node: 2, Name: "gw2", Election: its}, seen: now, synced: now}
	return p, now
}

// TestElectionConfiguration: the configuration of both nodes decides who goes first, key
// by key, both ways and together.
func TestElectionConfiguration(t *testing.T) {
	type side struct {
		priority          int
		override          bool
		age               time.Duration
		monitors, penalty int
		serial            string
		failover          bool
	}
	base := side{priority: 128, age: time.Hour, monitors: 2, serial: "B"}
	with := func(f func(*side)) side { s := base; f(&s); return s }
	for _, c := range []struct {
		name      string
		better    side
		worse     side
		margin    time.Duration
		threshold int
		why       string
	}{
		{"serial", with(func(s *side) { s.serial = "C" }), base, 300 * time.Second, 0, bySerial},
		{"priority", with(func(s *side) { s.priority = 129 }), with(func(s *side) { s.serial = "C" }), 300 * time.Second, 0, byPriority},
		{"age beyond the margin", with(func(s *side) { s.age += 301 * time.Second }), with(func(s *side) { s.priority = 255 }), 300 * time.Second, 0, byAge},
		{"age at the margin", with(func(s *side) { s.priority = 129 }), with(func(s *side) { s.age += 300 * time.Second }), 300 * time.Second, 0, byPriority},
		{"a narrow margin", with(func(s *side) { s.age += 2 * time.Second }), with(func(s *side) { s.priority = 255 }), time.Second, 0, byAge},
		{"a wide margin", with(func(s *side) { s.priority = 255 }), with(func(s *side) { s.age += 10 * time.Hour }), 65535 * time.Second, 0, byPriority},
		{"override of the better one", with(func(s *side) { s.priority, s.override = 129, true }), with(func(s *side) { s.age += time.Hour }), 300 * time.Second, 0, byPriority},
		{"override of the worse one", with(func(s *side) { s.priority = 129 }), with(func(s *side) { s.age, s.override = 2*time.Hour, true }), 300 * time.Second, 0, byPriority},
		{"override with equal priorities", with(func(s *side) { s.age += time.Hour }), with(func(s *side) { s.override, s.serial = true, "Z" }), 300 * time.Second, 0, byAge},
		{"pingservers", with(func(s *side) { s.penalty = 5 }), with(func(s *side) { s.penalty, s.age, s.priority, s.override = 6, 10*time.Hour, 255, true }), 300 * time.Second, 0, byPingservers},
		{"pingservers beneath the threshold", with(func(s *side) { s.penalty, s.age = 9, 2*time.Hour }), base, 300 * time.Second, 10, byAge},
		{"pingservers at the threshold", base, with(func(s *side) { s.penalty, s.age = 10, 2*time.Hour }), 300 * time.Second, 10, byPingservers},
		{"monitored interfaces", with(func(s *side) { s.penalty = 50 }), with(func(s *side) { s.monitors, s.age, s.priority = 1, 10*time.Hour, 255 }), 300 * time.Second, 0, byMonitors},
		{"failover set", with(func(s *side) { s.monitors, s.penalty = 0, 50 }), with(func(s *side) { s.failover, s.age, s.priority = true, 10*time.Hour, 255 }), 300 * time.Second, 0, byFailover},
	} {
		// Each node lets itself be compared by its own configuration.
		view := func(s, o side) (bool, string) {
			ha := func(x side) config.HA {
				return config.HA{Priority: x.priority, Override: x.override, UptimeDiffMargin: c.margin, Pingserver: config.Pingserver{Threshold: c.threshold}}
			}
			el := func(x side) Election {
				return Election{Age: x.age, MonitorsUp: x.monitors, Penalty: x.penalty, Serial: x.serial, Failover: x.failover}
			}
			other, now := pairWith(ha(o), el(o), Election{})
			p, _ := pairWith(ha(s), el(s), other.election(now))
			return p.weGoFirst(now, Epoch{}, Epoch{})
		}
		if first, why := view(c.better, c.worse); !first || why != c.why {
			t.Errorf("%s: the better node goes first %v by %s, want by %s", c.name, first, why, c.why)
		}
		if first, why := view(c.worse, c.better); first || why != c.why {
			t.Errorf("%s: the worse node goes first %v by %s, want by %s", c.name, first, why, c.why)
		}
	}
}

// TestSuccession: what makes an owner hand over to a synchronised standby, for every
// combination of keys: what an election would decide by the first three of them, and the
// rest only with override, which either node may have. No two nodes ever want each other.
func TestSuccession(t *testing.T) {
	handed := map[string]Handed{byFailover: HandedFailover, byMonitors: HandedMonitors, byPingservers: HandedPingservers,
		byAge: HandedAge, byPriority: HandedPriority, bySerial: HandedSerial}
	seen := map[Handed]int{}
	combos := 1
	for range electionKeys {
		combos *= 3
	}
	for c := range combos {
		var a, b Election
		for i, k := range electionKeys {
			k.set(&a, c/pow3(i)%3-1)
			k.set(&b, 0)
		}
		for o := range 4 {
			a.Override, b.Override = o&1 != 0, o&2 != 0
			p, _ := pairWith(config.HA{UptimeDiffMargin: 300 * time.Second}, a, b)
			p.opt.HA.Pingserver.Threshold = 0
			got, text, _ := p.succession(a, b)
			override := a.Override || b.Override
			want := HandedNot
			if r, key := rank(a, b, override, 300*time.Second); r < 0 && (override || key == byFailover || key == byMonitors || key == byPingservers) {
				want = handed[key]
			}
			if got != want || (text == "") != (got == HandedNot) {
				t.Fatalf("%+v against %+v: %d %q, want %d", a, b, got, text, want)
			}
			if back, _, _ := p.succession(b, a); got != HandedNot && back != HandedNot {
				t.Fatalf("%+v and %+v want each other", a, b)
			}
			seen[got]++
		}
	}
	for _, h := range handed {
		if seen[h] == 0 {
			t.Errorf("never: %s", h)
		}
	}
}

func pow3(n int) int {
	r := 1
	for range n {
		r *= 3
	}
	return r
}

// TestSuccessionWaits: from when on a better standby takes over.
func TestSuccessionWaits(t *testing.T) {
	for _, c := range []struct {
		name               string
		hold, flip, synced time.Duration // from now
		mine, its          Election
		want               time.Duration
	}{
		{"failover set: at once", time.Hour, time.Hour, time.Hour, Election{Failover: true}, Election{}, 0},
		{"monitors: hold-down", time.Second, time.Hour, time.Hour, Election{MonitorsUp: 1}, Election{MonitorsUp: 2}, time.Second},
		{"pingservers: flip timeout", time.Second, time.Hour, 2 * time.Hour, Election{Penalty: 1}, Election{}, time.Hour},
		{"pingservers: hold-down", time.Minute, time.Second, 0, Election{Penalty: 1}, Election{}, time.Minute},
		{"override: our wait", time.Second, time.Hour, 5 * time.Second, Election{Override: true, OverrideWait: 10 * time.Second}, Election{Priority: 1}, 15 * time.Second},
		{"override: its wait", time.Second, time.Hour, 0, Election{OverrideWait: 10 * time.Second}, Election{Priority: 1, Override: true, OverrideWait: 20 * time.Second}, 20 * time.Second},
		{"override: no wait", time.Second, time.Hour, 0, Election{Override: true}, Election{Priority: 1}, time.Second},
	} {
		p, now := pairWith(config.HA{UptimeDiffMargin: 300 * time.Second}, c.mine, c.its)
		p.hold, p.health.flipUntil, p.peer.synced = now.Add(c.hold), now.Add(c.flip), now.Add(c.synced)
		_, _, from := p.succession(c.mine, c.its)
		if from.IsZero() {
			from = now
		}
		if d := from.Sub(now); cmp.Compare(d, c.want) != 0 {
			t.Errorf("%s: %v, want %v", c.name, d, c.want)
		}
	}
}
