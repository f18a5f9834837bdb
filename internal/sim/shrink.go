package sim

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Shrunk is a schedule without what the violation does not need.
type Shrunk struct {
	Schedule *Schedule
	Result   *Result
	Runs     int // that it took
}

// Shrink looks for a smaller schedule that violates the same rule, with at most
// limit runs. It cuts what comes after the violation, drops actions in halves and
// one by one, drops clients, makes the surroundings plain, and draws together the
// times, over and over until nothing helps. The text of the violation may become
// another; the rule does not.
func Shrink(s *Schedule, rule Rule, limit int) Shrunk { return shrink(s, rule, limit, Run) }

func shrink(s *Schedule, rule Rule, limit int, run func(s *Schedule) *Result) Shrunk {
	k := &shrinker{rule: rule, limit: limit, run: run}
	k.best = clone(s)
	k.result = run(k.best)
	if !violates(k.result, rule) {
		return Shrunk{k.best, k.result, 1}
	}
	for k.changed = true; k.changed && k.runs < limit; {
		k.changed = false
		k.cut()
		k.actions()
		k.clients()
		k.members()
		k.plain()
		k.times()
	}
	k.cut()
	return Shrunk{k.best, k.result, k.runs + 1}
}

func violates(r *Result, rule Rule) bool {
	return len(r.Violations) > 0 && r.Violations[0].Rule == rule
}

type shrinker struct {
	rule    Rule
	limit   int
	run     func(s *Schedule) *Result
	runs    int
	best    *Schedule
	result  *Result
	changed bool // since the last round began
}

func clone(s *Schedule) *Schedule {
	c := *s
	c.Actions = slices.Clone(s.Actions)
	c.Setup.Clients = slices.Clone(s.Setup.Clients)
	c.Setup.Drift = slices.Clone(s.Setup.Drift)
	if s.Farm != nil {
		f := *s.Farm
		c.Farm = &f
	}
	return &c
}

// try keeps a change if the rule is still violated.
func (k *shrinker) try(change func(s *Schedule)) bool {
	if k.runs >= k.limit {
		return false
	}
	c := clone(k.best)
	change(c)
	if equal(c, k.best) {
		return false
	}
	k.runs++
	r := k.run(c)
	if !violates(r, k.rule) {
		return false
	}
	k.best, k.result, k.changed = c, r, true
	return true
}

func equal(a, b *Schedule) bool {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err == nil && err2 == nil && string(x) == string(y)
}

// cut drops what comes after the violation.
func (k *shrinker) cut() {
	at := k.result.Violations[0].At
	k.try(func(s *Schedule) {
		s.Actions = slices.DeleteFunc(s.Actions, func(a Action) bool { return a.At > at })
		if at < s.Length {
			s.Length = at + time.Second
		}
	})
	// What shows only after healing needs no time before it.
	k.try(func(s *Schedule) {
		if n := len(s.Actions); n > 0 && at > s.Length {
			s.Length = s.Actions[n-1].At + 10*time.Second
		}
	})
}

// actions drops stretches of actions, ever shorter ones.
func (k *shrinker) actions() {
	for size := max(1, len(k.best.Actions)/2); ; size /= 2 {
		for i := 0; i < len(k.best.Actions); {
			if !k.try(func(s *Schedule) { s.Actions = slices.Delete(s.Actions, i, min(i+size, len(s.Actions))) }) {
				i += size
			}
		}
		if size <= 1 {
			return
		}
	}
}

// clients drops clients, and what is special about those that stay.
func (k *shrinker) clients() {
	for i := len(k.best.Setup.Clients) - 1; i >= 0; i-- {
		if len(k.best.Setup.Clients) > 1 && k.try(func(s *Schedule) { s.dropClient(i) }) {
			continue
		}
		for _, change := range []func(c *Client){
			func(c *Client) { c.Networks = 1 },
			func(c *Client) { c.NAT = false },
			func(c *Client) { c.Dialup, c.NAT = false, false },
			func(c *Client) { c.Encap = false },
			func(c *Client) { c.PFS = false },
			func(c *Client) { c.ESN = false },
			func(c *Client) { c.Window = true },
			func(c *Client) { c.Begins = "client" },
			func(c *Client) { c.DPD = "on-idle" },
			func(c *Client) { c.ChildLife = 2 * time.Hour },
			func(c *Client) { c.GatewayToo = 2 * time.Hour },
			func(c *Client) { c.IKELife = 2 * time.Hour },
			func(c *Client) { c.Suite = "aes128gcm" },
			func(c *Client) { c.IKESuite = "aes128gcm-prfsha256" },
		} {
			k.try(func(s *Schedule) { change(&s.Setup.Clients[i]) })
		}
	}
}

// dropClient takes the i-th away; those after it move up.
func (s *Schedule) dropClient(i int) {
	s.Setup.Clients = slices.Delete(s.Setup.Clients, i, i+1)
	if 2+i < len(s.Setup.Drift) {
		s.Setup.Drift = slices.Delete(s.Setup.Drift, 2+i, 3+i)
	}
	for j := range s.Actions {
		a := &s.Actions[j]
		for c := i + 1; c <= len(s.Setup.Clients); c++ {
			if a.Node == fmt.Sprintf("client%d", c+1) {
				a.Node = fmt.Sprintf("client%d", c)
			}
		}
	}
}

// plain makes the surroundings plain.
func (k *shrinker) plain() {
	for _, change := range []func(s *Schedule){
		func(s *Schedule) { s.Crash = Crash{} },
		func(s *Schedule) { s.Real = false },
		func(s *Schedule) { s.Setup.Loss, s.Setup.Duplicate, s.Setup.Reorder = 0, 0, 0 },
		func(s *Schedule) { s.Setup.Loss = 0 },
		func(s *Schedule) { s.Setup.Duplicate = 0 },
		func(s *Schedule) { s.Setup.Reorder = 0 },
		func(s *Schedule) { s.Setup.Drift = make([]int64, len(s.Setup.Drift)) },
		func(s *Schedule) { s.Setup.TightLoop = false },
		func(s *Schedule) { s.Setup.Override = false },
		func(s *Schedule) { s.Setup.Priority = [2]int{200, 100} },
		func(s *Schedule) { s.Setup.MTU = 1500 },
		func(s *Schedule) { s.Setup.HBInterval, s.Setup.Threshold = 10*time.Millisecond, 3 },
		func(s *Schedule) { s.Setup.IKELife = 2 * time.Hour },
		func(s *Schedule) { s.Setup.Delay = 10 * time.Millisecond },
	} {
		k.try(change)
	}
}

// times shortens pauses and makes numbers round.
func (k *shrinker) times() {
	for i := range k.best.Actions {
		before := time.Duration(0)
		if i > 0 {
			before = k.best.Actions[i-1].At
		}
		pause := k.best.Actions[i].At - before
		least := 10 * time.Second
		if i == 0 {
			least = 25 * time.Second // the tunnels come up first
		}
		if pause > least && !k.try(func(s *Schedule) { s.earlier(i, pause-least) }) {
			k.try(func(s *Schedule) { s.earlier(i, (pause-least)/2) })
		}
	}
	for i := range k.best.Actions {
		a := k.best.Actions[i]
		if a.Count > 1 && !k.try(func(s *Schedule) { s.Actions[i].Count = 1 }) {
			k.try(func(s *Schedule) { s.Actions[i].Count = (a.Count + 1) / 2 })
		}
		for _, unit := range []time.Duration{time.Second, 100 * time.Millisecond, time.Millisecond} {
			if k.try(func(s *Schedule) { s.Actions[i].round(unit); s.order() }) {
				break
			}
		}
	}
	k.try(func(s *Schedule) { s.Length = s.Length.Round(time.Second) })
}

// earlier moves action i and all after it.
func (s *Schedule) earlier(i int, by time.Duration) {
	for j := i; j < len(s.Actions); j++ {
		s.Actions[j].At -= by
	}
	s.Length -= by
}

func (a *Action) round(unit time.Duration) {
	a.At = a.At.Round(unit)
	if a.For.Round(unit) != 0 {
		a.For = a.For.Round(unit)
	}
}

func (s *Schedule) order() {
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return int(a.At - b.At) })
}

// members makes a farm smaller and its log plain.
func (k *shrinker) members() {
	if k.best.Farm == nil {
		return
	}
	for k.best.Farm.Members > 3 && k.try(func(s *Schedule) {
		f := s.Farm
		f.Members--
		f.Voters = min(f.Voters, f.Members)
		f.Late = min(f.Late, f.Members-3)
	}) {
	}
	for _, change := range []func(f *FarmSetup){
		func(f *FarmSetup) { f.Voters = 3 },
		func(f *FarmSetup) { f.Late = 0 },
		func(f *FarmSetup) { f.Stop = false },
		func(f *FarmSetup) { f.Standbys = 2 },
		func(f *FarmSetup) { f.LogLoss, f.LogDelay = 0, 5*time.Millisecond },
	} {
		k.try(func(s *Schedule) { change(s.Farm) })
	}
}
