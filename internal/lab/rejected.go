package lab

import (
	"context"
	"encoding/json"
	"math"
	"sort"
	"time"
)

const (
	// leadTime and leadLeast repeat what the architecture promises of the fence, its
	// third invariant: a lead of 10 ms of an SA's rate, none below 100 packets a
	// second.
	leadTime  = 10 * time.Millisecond
	leadLeast = 100

	rateWindow = time.Second            // before the fault, over which rates are taken
	rateLeast  = 50 * time.Millisecond  // of a rate's own time: an SA may be younger than the window
	fenceRest  = 50 * time.Millisecond  // without a packet, after which a fence surely is withdrawn
	restTail   = 200 * time.Millisecond // before the end of a window, in which nothing is under way for a moment
)

// inbound lists the ESP packets, each once, that came to a gateway's port within
// [from, to) and were addressed to one of the gateway's own hardware addresses. What
// only passed the port because the switch did not know where its neighbour had
// gone is not the gateway's to deliver, and is left out. In order of time.
func (c *Checker) inbound(port string, from, to time.Time) []espPoint {
	type number struct {
		sa  saKey
		seq uint32
	}
	seen := map[number]bool{}
	var all []espPoint
	for _, p := range c.reached {
		n := number{p.sa, p.seq}
		if p.port != port || p.at.Before(from) || !p.at.Before(to) || seen[n] {
			continue
		}
		if own := c.macs[port]; len(own) == 0 || own[p.mac] {
			seen[n] = true
			all = append(all, p)
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].at.Before(all[j].at) })
	return all
}

// Lead is how many packets the fence of an owner may stand above the highest number
// that it delivered when the fault came: for each SA 10 ms of the rate at which
// packets reached the owner in the last second (or since the SA's first packet in
// it), rounded up, and none for an SA below 100 packets a second, or one that has been
// silent for 50 ms, as after a rekey; the sum over all SAs. It rests on the capture at the owner's port alone: what the owner says of its
// fences would excuse any fence.
func (c *Checker) Lead(port string, fault time.Time) int {
	count := map[saKey]int{}
	first, last := map[saKey]time.Time{}, map[saKey]time.Time{}
	for _, p := range c.inbound(port, fault.Add(-rateWindow), fault) {
		if count[p.sa]++; count[p.sa] == 1 {
			first[p.sa] = p.at
		}
		last[p.sa] = p.at
	}
	lead := 0
	for sa, n := range count {
		rate := float64(n) / max(fault.Sub(first[sa]), rateLeast).Seconds()
		if rate >= leadLeast && fault.Sub(last[sa]) < fenceRest {
			lead += int(math.Ceil(rate * leadTime.Seconds()))
		}
	}
	return lead
}

// undelivered is how many of the packets that reached a gateway did not come out on
// its other side: reached and delivered are in order of time, and both end at until.
// A packet that is under way at some moment must not count, one that never comes out
// must. So the difference is taken at the moment late in the window where it is
// least: then, for an instant, nothing is under way. Packets rejected after that
// moment are not seen, all before are.
func undelivered(reached, delivered []time.Time, until time.Time) (missing int) {
	begin := until.Add(-restTail)
	if len(reached) > 0 { // a window that is short, or whose traffic came late
		if half := until.Add(-until.Sub(reached[0]) / 2); half.After(begin) {
			begin = half
		}
	}
	missing = -1
	look := func(t time.Time) { // just before t
		if t.Before(begin) || t.After(until) {
			return
		}
		r := sort.Search(len(reached), func(i int) bool { return !reached[i].Before(t) })
		d := sort.Search(len(delivered), func(i int) bool { return !delivered[i].Before(t) })
		if missing < 0 || r-d < missing {
			missing = max(0, r-d)
		}
	}
	for _, t := range reached {
		look(t)
	}
	look(until)
	return missing
}

// judgeRejected compares what reached a survivor with what it delivered, and both
// with the lead of the fence that it inherited.
func (r *run) judgeRejected(check *Checker, delivered []time.Time, f *fault, until time.Time) (reached, rejected, lead int) {
	for _, t := range r.replays {
		if t.After(f.at) && t.Before(until) {
			until = t
		}
	}
	reached, rejected = rejectedBy(check, delivered, f.survivor, f.at, until)
	if f.kind != faultHandover { // which carries the exact windows
		lead = check.Lead(f.victim, f.at) * max(1, f.widened)
	}
	return reached, rejected, lead
}

// rejectedBy is how many packets reached a gateway within [from, until), and how many of
// them it did not deliver.
func rejectedBy(check *Checker, delivered []time.Time, gw string, from, until time.Time) (reached, rejected int) {
	var arrived, passed []time.Time
	for _, p := range check.inbound(gw, from, until) {
		arrived = append(arrived, p.at)
	}
	for _, at := range delivered {
		if !at.Before(from) && at.Before(until) {
			passed = append(passed, at)
		}
	}
	return len(arrived), undelivered(arrived, passed, until)
}

// fenceWidened asks a gateway by how much the lead of its fences is widened, because
// its standby answers late: the largest factor of all SAs, 1 when none is, or when
// it does not say.
func (r *run) fenceWidened(ctx context.Context, gw string) int {
	return fenceWidenedAt(ctx, r.o.Binary, r.gws[gw].Socket)
}

func fenceWidenedAt(ctx context.Context, bin, socket string) int {
	if bin == "" {
		return 1
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out, err := commandOutput(ctx, bin, []string{"diagnose", "vpn", "tunnel", "list", "--json", "--socket", socket})
	var all any
	if err != nil || json.Unmarshal([]byte(out), &all) != nil {
		return 1
	}
	return max(1, largest(all, "fence_widened"))
}

// largest is the largest whole number with a name anywhere in a JSON value.
func largest(v any, name string) int {
	n := 0
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			n = max(n, largest(x, name))
		}
	case map[string]any:
		for k, x := range v {
			if f, ok := x.(float64); ok && k == name && f < 1e6 {
				n = max(n, int(f))
			}
			n = max(n, largest(x, name))
		}
	}
	return n
}
