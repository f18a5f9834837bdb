package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"sort"
	"time"
)

const (
	// faultWindow is how long after a fault (or its end) a gap of the probes is
	// its outage.
	faultWindow = 3 * time.Second
	// wakeGrace is how long a frozen owner may still act as one after waking: nothing
	// within a host can stop what it does first.
	wakeGrace = 10 * time.Millisecond
)

// settle ends the traffic, reads the captures, and judges.
func (r *run) settle(ctx context.Context) error {
	r.say("reading captures")
	streams := r.probes.Stop(500 * time.Millisecond)
	var tcpErr error
	if r.tcp != nil {
		r.res.TransferBytes, tcpErr = r.tcp.Finish(r.o.patience)
		r.res.TCPOK = tcpErr == nil
		if tcpErr != nil {
			r.res.Violations = append(r.res.Violations, tcpErr.Error())
		}
	}
	var after CharonEvents
	if r.charon != nil {
		after = r.charon.Events()
	}
	// A rekey that began just before the end has a second for its answer.
	if err := pass(ctx, time.Second); err != nil {
		return err
	}
	end := timeNow()
	check := NewChecker(CheckOptions{Client: NodeClient, Up: r.up, End: end, Tolerated: append(r.tolerated, r.waking...), Shared: sharedAddrs})
	for _, c := range r.caps {
		drops, err := c.Stop()
		r.res.CaptureDrops += drops
		if err != nil {
			return err
		}
	}
	for _, c := range r.caps[:3] {
		if err := ReadCapture(c.Path, func(f Frame) error { check.Add(f); return nil }); err != nil {
			return err
		}
	}
	rep := check.Report()
	r.fromWire(&rep)
	if r.charon != nil {
		r.fromCharon(&rep, after)
	} else {
		r.fromSPIs(&rep)
	}
	r.fromProbes(streams)
	if err := r.explain(check, streams); err != nil {
		return err
	}
	r.res.Seconds = math.Round(r.ended.Sub(r.up).Seconds()*10) / 10
	r.res.Expectations = len(r.unexpected)
	r.res.Violations = append(r.res.Violations, r.unexpected...)
	r.res.Violations = append(r.res.Violations, rep.Violations...)
	r.res.ClockStepMS = clockStep(r.began, end)
	r.res.Captures = r.o.Keep
	r.res.judge(r.s.Bounds)
	return nil
}

// clockStep is how far the wall clock, which stamps captures and probes, moved
// against the monotonic clock between two readings.
func clockStep(a, b time.Time) float64 {
	wall := b.Round(0).Sub(a.Round(0))
	return math.Abs(milliseconds(wall - b.Sub(a)))
}

func (r *run) fromWire(rep *CheckReport) {
	r.res.SAInitAfterUp, r.res.IKEAuthAfterUp = rep.SAInitAfterUp, rep.AuthAfterUp
	r.res.RekeysUnanswered = rep.CreateChildUnanswered
	r.res.IVRepeats = rep.IVRepeats
	r.res.SeqRegressions, r.res.SeqRegressionsSplit = rep.SeqRegressions, rep.SeqRegressionsTolerated
	r.res.IKEMessages = rep.IKE
	r.res.OversizeFrames = rep.Oversize
}

// fromCharon counts rekeys as the client reports them, and finds SPIs that no
// rekey explains.
func (r *run) fromCharon(rep *CheckReport, after CharonEvents) {
	r.res.ChildRekeys = after.ChildRekeys - r.before.ChildRekeys
	r.res.IKERekeys = after.IKERekeys - r.before.IKERekeys
	for _, f := range rep.SPIs {
		spi := fmt.Sprintf("%08x", f.SPI)
		if f.Last.After(r.up) && !r.initial[spi] && !after.RekeyedSPIs[spi] {
			r.res.SPIChanged = true
			r.res.Violations = append(r.res.Violations, fmt.Sprintf("SPI %s to %v came without a rekey", spi, f.Dst))
		}
	}
}

// fromSPIs counts rekeys of a client that reports nothing, from the wire: every
// pair of new ESP SPIs, every new pair of IKE SPIs.
func (r *run) fromSPIs(rep *CheckReport) {
	fresh := 0
	for _, f := range rep.SPIs {
		if f.First.After(r.up) {
			fresh++
		}
	}
	r.res.ChildRekeys = fresh / 2
	r.res.IKERekeys = max(0, rep.IKESAs-1)
	r.res.SPIChanged = r.res.ChildRekeys+r.res.IKERekeys > rep.CreateChildAnswered
}

func (r *run) fromProbes(streams [2]Stream) {
	for i, s := range streams {
		lost, doubled := lostAndDoubled(s.Sent, s.Arrivals)
		r.res.LostPings += lost
		r.res.PingsSent += int(s.Sent)
		if i == 0 {
			r.res.ReplaysAccepted = doubled // delivered to the server twice
		} else {
			r.res.DoubledAtClient = doubled
		}
		r.res.SenderStallMS = math.Max(r.res.SenderStallMS, milliseconds(s.MaxStall-r.s.Probe))
	}
}

// explain works out each fault's outage, jump and reason.
func (r *run) explain(check *Checker, streams [2]Stream) error {
	var outages, detects, jumps []float64
	inner, err := r.delivered(check)
	if err != nil {
		return err
	}
	rest := []Interval{} // around faults
	for i, f := range r.faults {
		next := r.ended
		if i+1 < len(r.faults) {
			next = r.faults[i+1].at
		}
		until := f.at.Add(f.lasted + faultWindow)
		if until.After(next) {
			until = next
		}
		rest = append(rest, Interval{f.at, until})
		out := 0.0
		for _, s := range streams {
			s.Arrivals = before(s.Arrivals, next) // the gap at the next fault is that one's
			out = math.Max(out, milliseconds(r.outage(s, f.at, until)))
		}
		if f.kind.kill {
			r.res.Kills++
		}
		if !f.kind.takeover {
			r.res.DisturbanceMS = math.Max(r.res.DisturbanceMS, out)
			continue
		}
		outages = append(outages, out)
		t := Takeover{Fault: f.kind.name, Victim: f.victim, OutageMS: out}
		for _, s := range streams {
			t.Lost = max(t.Lost, lostAround(s, f.at.Add(-50*time.Millisecond), until))
		}
		r.res.LostPerTakeover = max(r.res.LostPerTakeover, t.Lost)
		if f.toldOK {
			t.Survivor, t.Reason, t.Covered, t.DetectMS = f.survivor, f.told.Reason, f.told.Covered, f.told.DetectMS
			t.Epoch = fmt.Sprint(f.told.Epoch)
			t.Explained = f.told.Reason != ""
		}
		if e, ok := firstTakeover(r.gws[f.survivor].proc.LogPath, f.logFrom); ok {
			t.Survivor, t.Explained = f.survivor, true
			t.Reason, t.Covered, t.Epoch, t.DetectMS, t.Ceiling = e.Reason, e.Covered, e.Epoch, e.DetectMS, e.Ceiling
		}
		if t.Explained {
			detects = append(detects, t.DetectMS)
		}
		s := check.Succession(f.at, next, f.survivor)
		if s.Seen {
			t.FirstMS = milliseconds(s.After)
		}
		if s.JumpSeen {
			t.Jump, t.First = s.Jump, s.First
			jumps = append(jumps, float64(s.Jump))
		}
		t.Reached, t.Rejected, t.Lead = r.judgeRejected(check, inner[f.survivor], f, until)
		t.Widened = max(1, f.widened)
		if n := len(r.res.Takeovers); n == 0 || t.Reached < r.res.SurvivorReached {
			r.res.SurvivorReached = t.Reached
		}
		r.res.SurvivorRejected = max(r.res.SurvivorRejected, t.Rejected)
		r.res.RejectedOverLead = max(r.res.RejectedOverLead, t.Rejected-t.Lead)
		if f.kind == faultFreeze || f.kind == faultFreezeHost {
			woke := f.at.Add(f.lasted)
			r.res.StaleOwnerPackets += check.SentBy(f.victim, woke.Add(wakeGrace), next) + within(inner[f.victim], woke.Add(wakeGrace), next)
			r.res.WakingPackets = max(r.res.WakingPackets, check.SentBy(f.victim, woke, woke.Add(wakeGrace)))
		}
		r.res.Takeovers = append(r.res.Takeovers, t)
	}
	r.res.OutageMS = Spread{quantile(outages, 0.5), quantile(outages, 0.99), quantile(outages, 1)}
	r.res.DetectMS = Middle{quantile(detects, 0.5), quantile(detects, 1)}
	r.res.SeqJump = Middle{quantile(jumps, 0.5), quantile(jumps, 1)}
	r.res.OtherGapMS = restGap(streams, append(rest, r.quiet...), r.s.Probe)
	return nil
}

// outage is a stream's outage at a fault. Where the probes were paused at that
// moment it begins when they went on, and it ends before they pause again.
func (r *run) outage(s Stream, fault, until time.Time) time.Duration {
	arrivals := s.Arrivals
	for _, q := range r.quiet {
		if q.From.After(fault) && q.From.Before(until) {
			until = q.From
			arrivals = before(arrivals, until)
		}
		if q.holds(fault) {
			fault = q.To
			arrivals = arrivals[len(before(arrivals, fault)):]
		}
	}
	return Outage(arrivals, fault, until, r.s.Probe)
}

// before cuts arrivals off at a time.
func before(arrivals []Arrival, t time.Time) []Arrival {
	return arrivals[:sort.Search(len(arrivals), func(i int) bool { return !arrivals[i].At.Before(t) })]
}

// restGap is the largest gap of the probes that lies outside the excused intervals: those
// around faults, and the times in which the probes were paused.
func restGap(streams [2]Stream, excused []Interval, every time.Duration) float64 {
	worst := time.Duration(0)
	for _, s := range streams {
		for i := 1; i < len(s.Arrivals); i++ {
			from, to := s.Arrivals[i-1].At, s.Arrivals[i].At
			if !slices.ContainsFunc(excused, func(x Interval) bool { return to.After(x.From) && from.Before(x.To) }) {
				worst = max(worst, to.Sub(from)-every)
			}
		}
	}
	return milliseconds(max(0, worst))
}

// within counts the times in [from, to).
func within(times []time.Time, from, to time.Time) (n int) {
	for _, t := range times {
		if !t.Before(from) && t.Before(to) {
			n++
		}
	}
	return n
}

// delivered lists when each gateway handed inner packets to the LAN, and shows the
// checker what it said there in its own name.
func (r *run) delivered(check *Checker) (map[string][]time.Time, error) {
	return deliveredOn(check, r.caps[3:], netip.MustParsePrefix("10.1.0.0/24"))
}

// deliveredOn does so for captures of the LAN side; site is where the packets come from.
func deliveredOn(check *Checker, caps []*Capture, site netip.Prefix) (map[string][]time.Time, error) {
	all := map[string][]time.Time{}
	for _, c := range caps {
		err := ReadCapture(c.Path, func(f Frame) error {
			check.AddSpoken(f)
			if f.FromNode && len(f.Data) >= 34 && binary.BigEndian.Uint16(f.Data[12:]) == etherIPv4 &&
				site.Contains(netip.AddrFrom4([4]byte(f.Data[26:30]))) {
				all[f.Port] = append(all[f.Port], f.Time)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// firstTakeover finds the first takeover line in a log from an offset on.
func firstTakeover(path string, from int64) (TakeoverEvent, bool) {
	f, err := os.Open(path)
	if err != nil {
		return TakeoverEvent{}, false
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return TakeoverEvent{}, false
	}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if e, ok := parseTakeover(sc.Text()); ok {
			return e, true
		}
	}
	return TakeoverEvent{}, false
}
