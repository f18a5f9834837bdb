package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// ikeSAs counts a gateway's IKE SAs and Child SAs, as it says.
func ikeSAs(ctx context.Context, bin, socket string) (n [2]int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := commandOutput(ctx, bin, []string{"diagnose", "vpn", "ike", "gateway", "list", "--json", "--socket", socket})
	if err != nil {
		return n, err
	}
	var all []struct {
		SAs []json.RawMessage `json:"ike_sas"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return n, err
	}
	for _, g := range all {
		n[0] += len(g.SAs)
	}
	if out, err = commandOutput(ctx, bin, []string{"diagnose", "vpn", "tunnel", "list", "--json", "--socket", socket}); err != nil {
		return n, err
	}
	var tunnels []struct {
		Selectors []struct {
			SAs []json.RawMessage `json:"sas"`
		} `json:"proxyids"`
	}
	if err := json.Unmarshal([]byte(out), &tunnels); err != nil {
		return n, err
	}
	for _, t := range tunnels {
		for _, s := range t.Selectors {
			n[1] += len(s.SAs)
		}
	}
	return n, nil
}

// settle ends the traffic, reads the captures, and judges. Each pair is judged as the pair
// of examples/pair is, by a checker of its own to which the other pair is the client.
func (r *facing) settle(ctx context.Context) error {
	r.say("reading captures")
	streams := r.probes.Stop(500 * time.Millisecond)
	if r.tcp != nil {
		var err error
		r.res.TransferBytes, err = r.tcp.Finish(r.o.patience)
		if r.res.TCPOK = err == nil; err != nil {
			r.res.Violations = append(r.res.Violations, err.Error())
		}
	}
	// A rekey that began just before the end has a second for its answer.
	if err := pass(ctx, time.Second); err != nil {
		return err
	}
	end := timeNow()
	for i, s := range streams {
		lost, doubled := lostAndDoubled(s.Sent, s.Arrivals)
		r.res.LostPings += lost
		r.res.PingsSent += int(s.Sent)
		r.res.ReplaysAccepted += doubled // delivered twice, to either host
		r.res.SenderStallMS = math.Max(r.res.SenderStallMS, milliseconds(streams[i].MaxStall-r.s.Probe))
	}
	outages, until := r.outages(streams)
	var detects, jumps []float64
	for i, p := range r.pairs {
		check, inner, err := r.read(p, r.pairs[1-i].lan(), end)
		if err != nil {
			return err
		}
		for n, f := range r.faults {
			t := r.explain(f, f.of[i], check, inner, outages[n], until[n])
			for _, s := range streams {
				t.Lost = max(t.Lost, lostAround(s, f.at.Add(-50*time.Millisecond), until[n]))
			}
			r.res.LostPerTakeover = max(r.res.LostPerTakeover, t.Lost)
			if t.Explained {
				detects = append(detects, t.DetectMS)
			}
			if t.First > 0 {
				jumps = append(jumps, float64(t.Jump))
			}
			r.res.Takeovers = append(r.res.Takeovers, t)
		}
	}
	r.res.OutageMS = Spread{quantile(outages, 0.5), quantile(outages, 0.99), quantile(outages, 1)}
	r.res.DetectMS = Middle{quantile(detects, 0.5), quantile(detects, 1)}
	r.res.SeqJump = Middle{quantile(jumps, 0.5), quantile(jumps, 1)}
	r.res.Seconds = math.Round(r.ended.Sub(r.up).Seconds()*10) / 10
	r.res.Expectations = len(r.unexpected)
	r.res.Violations = append(r.res.Violations, r.unexpected...)
	r.res.ClockStepMS = clockStep(r.began, end)
	r.res.Captures = r.o.Keep
	r.res.judge(r.s.Bounds)
	return nil
}

// outages are the largest gaps around each fault, and the ends of their windows.
func (r *facing) outages(streams [2]Stream) (ms []float64, until []time.Time) {
	var around []Interval
	for i, f := range r.faults {
		next := r.ended
		if i+1 < len(r.faults) {
			next = r.faults[i+1].at
		}
		end := f.at.Add(faultWindow)
		if end.After(next) {
			end = next
		}
		worst := 0.0
		for _, s := range streams {
			worst = math.Max(worst, milliseconds(Outage(before(s.Arrivals, next), f.at, end, r.s.Probe)))
		}
		ms, until = append(ms, worst), append(until, end)
		around = append(around, Interval{f.at, end})
	}
	r.res.OtherGapMS = restGap(streams, around, r.s.Probe)
	return ms, until
}

// read has a pair's captures read by a checker, and adds what it says to the result.
func (r *facing) read(p *facingSide, beyond netip.Prefix, end time.Time) (*Checker, map[string][]time.Time, error) {
	check := NewChecker(CheckOptions{Client: farPort, Up: r.up, End: end, Shared: p.shared()})
	for _, c := range append(append([]*Capture(nil), p.outer...), p.inner...) {
		drops, err := c.Stop()
		r.res.CaptureDrops += drops
		if err != nil {
			return nil, nil, err
		}
	}
	for _, c := range p.outer {
		if err := ReadCapture(c.Path, func(f Frame) error { check.Add(f); return nil }); err != nil {
			return nil, nil, err
		}
	}
	rep := check.Report()
	// Both checkers see all of IKE, each only its own pair's sequence numbers.
	r.res.SAInitAfterUp = max(r.res.SAInitAfterUp, rep.SAInitAfterUp)
	r.res.IKEAuthAfterUp = max(r.res.IKEAuthAfterUp, rep.AuthAfterUp)
	r.res.RekeysUnanswered = max(r.res.RekeysUnanswered, rep.CreateChildUnanswered)
	r.res.IVRepeats = max(r.res.IVRepeats, rep.IVRepeats)
	r.res.SeqRegressions += rep.SeqRegressions
	r.res.OversizeFrames += rep.Oversize
	r.res.IKEMessages = rep.IKE
	fresh := 0
	for _, f := range rep.SPIs {
		if f.First.After(r.up) {
			fresh++
		}
	}
	r.res.ChildRekeys = max(r.res.ChildRekeys, fresh/2)
	r.res.SPIChanged = r.res.SPIChanged || fresh/2 > rep.CreateChildAnswered
	for _, v := range rep.Violations {
		r.res.Violations = append(r.res.Violations, p.Name+": "+v)
	}
	inner, err := deliveredOn(check, p.inner, beyond)
	return check, inner, err
}

// explain says what came of a fault on one side.
func (r *facing) explain(both *facingFault, f *fault, check *Checker, inner map[string][]time.Time, outage float64, until time.Time) Takeover {
	if f.kind.kill {
		r.res.Kills++
	}
	t := Takeover{Fault: f.kind.name, Victim: f.victim, OutageMS: outage}
	if f.toldOK {
		t.Survivor, t.Reason, t.Covered, t.DetectMS = f.survivor, f.told.Reason, f.told.Covered, f.told.DetectMS
		t.Epoch, t.Explained = fmt.Sprint(f.told.Epoch), f.told.Reason != ""
	}
	for _, p := range r.pairs {
		g := p.gws[f.survivor]
		if g == nil {
			continue
		}
		if e, ok := firstTakeover(g.proc.LogPath, f.logFrom); ok {
			t.Survivor, t.Explained = f.survivor, true
			t.Reason, t.Covered, t.Epoch, t.DetectMS, t.Ceiling = e.Reason, e.Covered, e.Epoch, e.DetectMS, e.Ceiling
		}
	}
	if s := check.Succession(f.at, until, f.survivor); s.Seen {
		t.FirstMS = milliseconds(s.After)
		if s.JumpSeen {
			t.Jump, t.First = s.Jump, s.First
		}
	}
	t.Widened = max(1, f.widened)
	t.Reached, t.Rejected = rejectedBy(check, inner[f.survivor], f.survivor, f.at, until)
	t.Lead = check.Lead(f.victim, both.at) * t.Widened
	if n := len(r.res.Takeovers); n == 0 || t.Reached < r.res.SurvivorReached {
		r.res.SurvivorReached = t.Reached
	}
	r.res.SurvivorRejected = max(r.res.SurvivorRejected, t.Rejected)
	r.res.RejectedOverLead = max(r.res.RejectedOverLead, t.Rejected-t.Lead)
	return t
}
