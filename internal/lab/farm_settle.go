package lab

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"
)

// settle ends the traffic, reads the captures, and judges.
func (r *farmRun) settle(ctx context.Context) error {
	r.say("reading captures")
	flows := r.flows.Stop(500 * time.Millisecond)
	if r.tcp != nil {
		var err error
		r.res.TransferBytes, err = r.tcp.Finish(r.o.patience)
		r.res.TCPOK = err == nil
		if err != nil {
			r.res.Violations = append(r.res.Violations, err.Error())
		}
	}
	for _, m := range r.started() {
		if !r.members[m].lost {
			_, _ = r.ask(ctx, m)
		}
	}
	// A rekey that began just before the end has a second for its answer.
	if err := pass(ctx, time.Second); err != nil {
		return err
	}
	end := timeNow()
	paths := [2][]string{}
	for i, list := range [][]*Capture{r.outer, r.inner} {
		for _, c := range list {
			drops, err := c.Stop()
			r.res.CaptureDrops += drops
			if err != nil {
				return err
			}
			paths[i] = append(paths[i], c.Path)
		}
	}
	check := NewChecker(CheckOptions{Merged: true, Up: r.up, End: end, Tolerated: r.tolerated})
	wire, err := r.readWire(check, paths)
	if err != nil {
		return err
	}
	rep := check.Report()
	r.fromWire(&rep, wire)
	r.judgeFlows(flows, wire)
	for _, m := range r.counters {
		for _, s := range m {
			r.res.Forwarded += int(s.Forwarded)
			r.res.OwnerMovesTold += int(s.OwnerMoves)
		}
	}
	r.res.Seconds = math.Round(r.ended.Sub(r.up).Seconds()*10) / 10
	r.res.Violations = append(r.res.Violations, r.unexpected...)
	r.res.Expectations = len(r.unexpected)
	r.res.Violations = append(r.res.Violations, rep.Violations...)
	r.res.ClockStepMS = clockStep(r.began, end)
	r.res.Captures = r.o.Keep
	r.res.judge(r.s.Bounds)
	return nil
}

// readWire shows the outer captures to the checker, and all of them to a farmWire.
func (r *farmRun) readWire(check *Checker, paths [2][]string) (*farmWire, error) {
	var marks []mark
	for _, f := range r.faults {
		marks = append(marks, mark{f.at, f.victim})
	}
	w := newFarmWire(r.tunnels, marks, r.silences)
	warm := true
	for i, list := range paths {
		w.begin()
		for f, err := range inOrder(list) {
			if err != nil {
				return nil, err
			}
			f = r.named(f)
			if i == 0 {
				check.Add(f)
				w.addOuter(f)
				continue
			}
			if warm && f.Time.After(r.up) {
				warm = false
				w.forget()
			}
			w.addInner(f)
		}
		w.end()
	}
	return w, nil
}

func (r *farmRun) fromWire(rep *CheckReport, w *farmWire) {
	r.res.SAInitAfterUp, r.res.IKEAuthAfterUp = rep.SAInitAfterUp, rep.AuthAfterUp
	r.res.RekeysUnanswered = rep.CreateChildUnanswered
	r.res.IVRepeats = rep.IVRepeats
	r.res.SeqRegressions, r.res.SeqRegressionsSplit = rep.SeqRegressions, rep.SeqRegressionsTolerated
	r.res.SeqRegressionsOwner = rep.SeqRegressionsOwner
	r.res.IKEMessages = rep.IKE
	r.res.OversizeFrames = rep.Oversize
	fresh := 0
	for _, f := range rep.SPIs {
		if f.First.After(r.up) {
			fresh++
		}
	}
	r.res.IKERekeys = max(0, rep.IKESAs-len(r.tunnels))
	r.res.ChildRekeys = fresh / 2
	r.res.SPIChanged = r.res.ChildRekeys+r.res.IKERekeys > rep.CreateChildAnswered
	r.res.ReplaysAccepted = w.replays
	for m, n := range w.protocol {
		if i := slices.Index(r.f.members(), m); i >= r.f.Sync {
			r.res.UninvolvedPackets += n
		}
	}
	for i := range w.silences {
		if s := &w.silences[i]; s.broken > 0 {
			r.expected("%s sent %d ESP packets while it should be silent", s.member, s.broken)
		}
	}
	for i := range w.tunnels {
		sent, double := w.tunnels[i].sent.settled()
		w.tunnels[i].sent = sent
		w.tunnels[i].reached, _ = w.tunnels[i].reached.settled()
		for k := 1; k < len(sent); k++ {
			if sent[k].from.After(r.up) {
				r.res.OwnerMoves++
			}
		}
		for _, d := range double {
			split := false
			for _, t := range r.tolerated {
				split = split || t.holds(d.From)
			}
			if split {
				r.res.DoubleOwnerSplitMS += milliseconds(d.To.Sub(d.From))
			} else {
				r.res.DoubleOwnerMS += milliseconds(d.To.Sub(d.From))
				if len(r.res.Violations) < maxViolations {
					r.res.Violations = append(r.res.Violations, fmt.Sprintf("%s: two members sent %s's ESP for %.1f ms",
						d.From.UTC().Format(stampLayout), r.tunnels[i].Name, milliseconds(d.To.Sub(d.From))))
				}
			}
		}
	}
}

// Gap is the longest time for which an arrival was overdue, from its due time (the
// interval after the one before) or from `from`, whichever is later. Times that begin
// before until count, however late they end; silence to the end of the run counts up to
// there. A stream that loses nothing has no gap but for its delays.
func Gap(arrivals []Arrival, from, until, end time.Time, interval time.Duration) time.Duration {
	worst, due := time.Duration(0), from
	look := func(t time.Time) {
		if due.Before(from) {
			due = from
		}
		worst = max(worst, t.Sub(due))
	}
	i := sort.Search(len(arrivals), func(i int) bool { return !arrivals[i].At.Before(from) })
	if i > 0 {
		due = arrivals[i-1].At.Add(interval)
	}
	for ; i < len(arrivals) && due.Before(until); i++ {
		look(arrivals[i].At)
		due = arrivals[i].At.Add(interval)
	}
	if i == len(arrivals) && due.Before(until) {
		look(end)
	}
	return worst
}

// losses lists when each probe that never came should have come, by the last one that
// did, in order, and counts those that came twice.
func losses(s *Stream, interval time.Duration) (lost []time.Time, doubled int) {
	came := make([]time.Time, s.Sent)
	for _, a := range s.Arrivals {
		switch {
		case a.Seq >= s.Sent:
		case came[a.Seq].IsZero():
			came[a.Seq] = a.At
		default:
			doubled++
		}
	}
	var last time.Time
	since := time.Duration(0)
	for _, at := range came {
		since += interval
		if !at.IsZero() {
			last, since = at, 0
		} else {
			lost = append(lost, last.Add(since))
		}
	}
	sort.Slice(lost, func(i, j int) bool { return lost[i].Before(lost[j]) })
	return lost, doubled
}

// until is when the window of a fault ends: after faultWindow, or before anything
// else is done to the farm.
func (r *farmRun) until(i int) time.Time {
	f := r.faults[i]
	until := f.at.Add(faultWindow)
	earlier := func(t time.Time) {
		if t.After(f.at) && t.Before(until) && !t.Equal(f.moved) {
			until = t
		}
	}
	earlier(r.ended)
	if i+1 < len(r.faults) {
		earlier(r.faults[i+1].at)
	}
	for _, c := range r.routes.changes() {
		if c.why != "fault" || c.member != f.victim {
			earlier(c.at)
		}
	}
	return until
}

// judgeFlows works out the outages of all tunnels at all faults, and what the changes
// of routes cost.
func (r *farmRun) judgeFlows(flows []Flow, w *farmWire) {
	lost := make([][2][]time.Time, len(flows))
	sent := 0
	for i := range flows {
		for k, s := range []*Stream{&flows[i].Up, &flows[i].Down} {
			var doubled int
			lost[i][k], doubled = losses(s, r.flows.every(i))
			r.res.LostPings += len(lost[i][k])
			sent += int(s.Sent)
			if k == 1 {
				r.res.DoubledAtClient += doubled
			}
			r.res.SenderStallMS = math.Max(r.res.SenderStallMS, milliseconds(s.MaxStall))
		}
	}
	r.res.PingsSent = sent
	var fromMove, fromKill, moved, detects []float64
	var around []Interval
	for k, f := range r.faults {
		until := r.until(k)
		around = append(around, Interval{f.at, until})
		out := FarmFault{Fault: f.kind.name, Victim: f.victim}
		if f.kind.kill {
			r.res.Kills++
		}
		var move, kill []float64
		worst := time.Duration(0)
		for i := range flows {
			if !r.flows.sampled(i) {
				for _, l := range lost[i] {
					out.Lost += within(l, f.at, until)
				}
				continue
			}
			gap := func(from time.Time) (up, down time.Duration) {
				return Gap(flows[i].Up.Arrivals, from, until, r.ended, r.flows.Interval), Gap(flows[i].Down.Arrivals, from, until, r.ended, r.flows.Interval)
			}
			up, down := gap(f.at)
			if both := max(up, down); both > worst {
				worst = both
				out.Worst = r.story(w, i, f, up >= down, both)
			}
			if !w.hit[k][i] {
				r.res.BystanderMS = math.Max(r.res.BystanderMS, milliseconds(max(up, down)))
				continue
			}
			kill = append(kill, milliseconds(max(up, down)))
			if !f.moved.IsZero() {
				move = append(move, milliseconds(max(gap(f.moved))))
			}
			for _, l := range lost[i] {
				out.Lost += within(l, f.at, until)
			}
		}
		out.Tunnels, out.OutageMS, out.OutageFromKillMS = len(kill), spread3(move), spread3(kill)
		if !f.moved.IsZero() {
			out.MovedAfterMS = milliseconds(f.moved.Sub(f.at))
			moved = append(moved, out.MovedAfterMS)
		}
		if d, ok := r.detected(f); ok {
			out.DetectMS = d
			detects = append(detects, d)
		}
		fromMove, fromKill = append(fromMove, move...), append(fromKill, kill...)
		r.res.TunnelsHit += len(kill)
		r.res.Faults = append(r.res.Faults, out)
	}
	r.res.OutageMS, r.res.OutageFromKillMS = spread3(fromMove), spread3(fromKill)
	r.res.MovedAfterMS = Middle{quantile(moved, 0.5), quantile(moved, 1)}
	r.res.DetectMS = Middle{quantile(detects, 0.5), quantile(detects, 1)}
	r.tellLost(lost, w)
	r.judgeChanges(flows, lost, w)
	r.judgeCarries(flows)
	r.res.OtherGapMS = otherGap(flows, around, r.flows)
}

// lostTold bounds how many losses are told one by one.
const lostTold = 20

// tellLost puts into words which probes were lost that no kill excuses, with the time of
// day for whoever reads logs and captures.
func (r *farmRun) tellLost(lost [][2][]time.Time, w *farmWire) {
	excused := func(t time.Time) bool {
		for k, f := range r.faults {
			if f.kind.kill && !t.Before(f.at) && t.Before(r.until(k)) {
				return true
			}
		}
		return false
	}
	for i := range lost {
		for k, way := range []string{"from the client", "to the client"} {
			l := slices.DeleteFunc(slices.Clone(lost[i][k]), excused)
			if len(l) == 0 || len(r.res.LostProbes) == lostTold {
				continue
			}
			x, t := &r.tunnels[i], &w.tunnels[i]
			r.res.LostProbes = append(r.res.LostProbes, fmt.Sprintf("%s (%v) %d %s, due from %s on; sent by %s, then %s; its client's packets reached %s", x.Name, x.Outer,
				len(l), way, l[0].UTC().Format("15:04:05.000"), t.sent.at(l[0]), t.sent.at(l[0].Add(time.Second)), t.reached.at(l[0])))
		}
	}
}

// story says of one tunnel at a fault what a reader needs to look further.
func (r *farmRun) story(w *farmWire, i int, f *farmFault, up bool, gap time.Duration) string {
	x, t := &r.tunnels[i], &w.tunnels[i]
	way := "to the client"
	if up {
		way = "from the client"
	}
	return fmt.Sprintf("%s (%v) probes %s overdue for %.1f ms; sent by %s, then %s; its client's packets reached %s, then %s", x.Name, x.Outer, way,
		milliseconds(gap), t.sent.at(f.at), t.sent.at(f.at.Add(gap+time.Second)), t.reached.at(f.at), t.reached.at(f.at.Add(gap+time.Second)))
}

func spread3(v []float64) Spread { return Spread{quantile(v, 0.5), quantile(v, 0.99), quantile(v, 1)} }

// detected is how long the survivors say that they took to notice a fault: the
// quickest of them.
func (r *farmRun) detected(f *farmFault) (ms float64, ok bool) {
	for m, from := range f.logFrom {
		if e, found := firstTakeover(r.members[m].proc.LogPath, from); found && (!ok || e.DetectMS < ms) {
			ms, ok = e.DetectMS, true
		}
	}
	return ms, ok
}

// changeWindow is how long the effects of a change of routes are looked for.
const changeWindow = 2 * time.Second

// judgeChanges looks at every change of routes while everybody lived: probes lost, how
// soon and how often tunnels moved, and which owner did not follow the traffic.
func (r *farmRun) judgeChanges(flows []Flow, lost [][2][]time.Time, w *farmWire) {
	all := r.routes.changes()
	for n, c := range all {
		if c.why == "fault" {
			continue
		}
		until := c.at.Add(changeWindow)
		for _, x := range all[n+1:] {
			until = earliest(until, x.at)
		}
		for _, f := range r.faults {
			if f.at.After(c.at) {
				until = earliest(until, f.at)
			}
		}
		until = earliest(until, r.ended)
		out := FarmChange{Why: c.why, Member: c.member}
		sent, gone := 0.0, 0
		for i := range flows {
			for k := range lost[i] {
				gone += within(lost[i][k], c.at, until)
				sent += until.Sub(c.at).Seconds() / r.flows.every(i).Seconds()
			}
			t := &w.tunnels[i]
			moves, last := 0, time.Time{}
			for _, s := range t.sent {
				if s.from.After(c.at) && s.from.Before(until) && t.sent.at(s.from) != "" {
					moves++
					last = s.from
				}
			}
			out.Moves = max(out.Moves, moves)
			if moves > 0 {
				out.Moved++
				out.SettledMS = math.Max(out.SettledMS, milliseconds(last.Sub(c.at)))
			}
			if t.reached.at(until) != t.sent.at(until) {
				out.Astray++
			}
		}
		if sent > 0 {
			out.LostPercent = math.Round(1e4*float64(gone)/sent) / 100
		}
		r.res.Changes = append(r.res.Changes, out)
		if c.why == "rehash" {
			r.res.Rehashes++
			r.res.RehashLostPercent = math.Max(r.res.RehashLostPercent, out.LostPercent)
			r.res.RehashMoves = max(r.res.RehashMoves, out.Moves)
			r.res.RehashSettledMS = math.Max(r.res.RehashSettledMS, out.SettledMS)
			r.res.RehashAstray = max(r.res.RehashAstray, out.Astray)
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// judgeCarries wants so many tunnels to carry both ways in each interval that a step
// named.
func (r *farmRun) judgeCarries(flows []Flow) {
	came := func(s *Stream, c Interval) bool {
		i := sort.Search(len(s.Arrivals), func(i int) bool { return !s.Arrivals[i].At.Before(c.From) })
		return i < len(s.Arrivals) && s.Arrivals[i].At.Before(c.To)
	}
	for _, c := range r.carries {
		n := 0
		for i := range flows {
			if came(&flows[i].Up, c.Interval) && came(&flows[i].Down, c.Interval) {
				n++
			}
		}
		if n < c.least {
			r.expected("%d of %d tunnels carried traffic, expected %d", n, len(flows), c.least)
		}
	}
}

// otherGap is the largest gap of any flow outside the intervals, less the interval of
// its probes.
func otherGap(flows []Flow, around []Interval, p *Flows) float64 {
	worst := time.Duration(0)
	for i := range flows {
		interval := p.every(i)
		for _, a := range [][]Arrival{flows[i].Up.Arrivals, flows[i].Down.Arrivals} {
			for k := 1; k < len(a); k++ {
				gap := a[k].At.Sub(a[k-1].At) - interval
				if gap <= worst {
					continue
				}
				excused := false
				for _, x := range around {
					excused = excused || a[k].At.After(x.From) && a[k-1].At.Before(x.To)
				}
				if !excused {
					worst = gap
				}
			}
		}
	}
	return milliseconds(worst)
}
