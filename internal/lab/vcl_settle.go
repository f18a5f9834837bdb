package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// VClusterFigures are the figures of a run with virtual clusters that a pair's has not.
type VClusterFigures struct {
	Tunnels      int `json:"tunnels"`
	PlannedMoves int `json:"planned_moves"` // handovers of a virtual cluster, asked for or by override after a gateway's return
	AskedMoves   int `json:"asked_moves"`   // of them, by priority

	LostPerMove     int     `json:"lost_per_move"`     // the most pings lost at a planned move, by a tunnel of its virtual cluster in one direction
	KillOutageMS    float64 `json:"kill_outage_ms"`    // the longest silence of a tunnel whose virtual cluster a killed gateway owned
	LostElsewhere   int     `json:"lost_elsewhere"`    // pings of tunnels whose virtual cluster nothing was done to
	Disturbed       int     `json:"disturbed"`         // of them, while another virtual cluster changed hands
	LostByPeers     int     `json:"lost_by_peers"`     // pings that reached strongSwan's port, as the last packet of a Child SA that it had just replaced
	MovesUncovered  int     `json:"moves_uncovered"`   // changes of owner that were not covered
	SyncsPerChange  int     `json:"syncs_per_change"`  // the most message ID syncs that one tunnel began between two changes of owner
	MessageIDSyncs  int     `json:"message_id_syncs"`  // all of them
	ChildByGateway  int     `json:"child_by_gateway"`  // rekeys that the gateways began and completed
	ChildByPeer     int     `json:"child_by_peer"`     // those that the peers did
	IKEByGateway    int     `json:"ike_by_gateway"`    // of IKE SAs
	IKEByPeer       int     `json:"ike_by_peer"`       // of IKE SAs
	IKESAs          int     `json:"ike_sas"`           // that the captures show
	IKESAsExplained bool    `json:"ike_sas_explained"` // one for each tunnel and one for each rekey of an IKE SA

	Moved []VChange `json:"vcluster_changes"`
}

// VChange is one change of a virtual cluster's owner, as its new owner says.
type VChange struct {
	VCluster int     `json:"vcluster"`
	To       string  `json:"to"`
	Planned  bool    `json:"planned"`
	Covered  bool    `json:"covered"`
	Reason   string  `json:"reason"`
	DetectMS float64 `json:"detect_ms"`
	OutageMS float64 `json:"outage_ms"` // the worst of its tunnels
	Lost     int     `json:"lost_pings"`

	at time.Time
}

// moveWindow is how long before and after a change of owner a lost ping is its own.
const moveWindow = 500 * time.Millisecond

// settle ends the traffic, reads captures and logs, and judges.
func (r *vrun) settle(ctx context.Context) error {
	r.say("reading captures")
	var streams [][2]Stream
	for _, p := range r.probes {
		streams = append(streams, p.Stop(500*time.Millisecond/time.Duration(len(r.probes))))
	}
	// A rekey that began just before the end has a second for its answer.
	if err := pass(ctx, time.Second); err != nil {
		return err
	}
	after, end := r.charon.Events(), timeNow()
	changes, err := r.changes()
	if err != nil {
		return err
	}
	if err := r.fromWire(end, after); err != nil {
		return err
	}
	if err := r.countRekeys(after); err != nil {
		return err
	}
	r.judgeStreams(streams, changes)
	r.res.Kills, r.res.AskedMoves = len(r.faults), r.asked
	if r.asked > r.res.PlannedMoves {
		r.res.Violations = append(r.res.Violations, fmt.Sprintf("%d moves were asked for, %d came about", r.asked, r.res.PlannedMoves))
	}
	r.res.Seconds = math.Round(r.ended.Sub(r.up).Seconds()*10) / 10
	r.res.ClockStepMS = clockStep(r.began, end)
	r.res.TCPOK = true // there is no transfer
	r.res.Captures = r.o.Keep
	r.res.judge(r.s.Bounds)
	return nil
}

// fromWire reads the captures, each tunnel's by itself.
func (r *vrun) fromWire(end time.Time, after CharonEvents) error {
	for _, c := range r.caps {
		drops, err := c.Stop()
		r.res.CaptureDrops += drops
		if err != nil {
			return err
		}
	}
	r.res.IKEMessages = map[string]int{}
	for k, f := range vflows {
		r.lastAt[k] = map[uint32]time.Time{}
		check := NewChecker(CheckOptions{Client: f.peer, Up: r.up, End: end, Shared: vshared[f.vcluster]})
		peer := f.outer()
		for _, c := range r.caps[4*(f.vcluster-1) : 4*f.vcluster] {
			err := ReadCapture(c.Path, func(x Frame) error {
				if o, _, ok := decodeIP(x.Data); ok && (o.src == peer || o.dst == peer) {
					check.Add(x)
					if e := decodeOuter(x.Data); e.kind == outerESP && x.Port == f.peer && !x.FromNode {
						r.lastAt[k][e.spi] = x.Time
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		rep := check.Report()
		r.res.SAInitAfterUp += rep.SAInitAfterUp
		r.res.IKEAuthAfterUp += rep.AuthAfterUp
		r.res.RekeysUnanswered += rep.CreateChildUnanswered
		r.res.IVRepeats += rep.IVRepeats
		r.res.SeqRegressions += rep.SeqRegressions
		r.res.OversizeFrames += rep.Oversize
		r.res.IKESAs += rep.IKESAs
		for k, n := range rep.IKE {
			r.res.IKEMessages[k] += n
		}
		for _, v := range rep.Violations {
			r.res.Violations = append(r.res.Violations, f.tunnel+": "+v)
		}
		if f.peer == NodeCharon {
			for _, x := range rep.SPIs {
				if spi := fmt.Sprintf("%08x", x.SPI); x.Last.After(r.up) && !r.initial[spi] && !after.RekeyedSPIs[spi] {
					r.res.SPIChanged = true
					r.res.Violations = append(r.res.Violations, fmt.Sprintf("%s: SPI %s came without a rekey", f.tunnel, spi))
				}
			}
		}
	}
	return nil
}

// outer is the peer's address at its virtual cluster's network.
func (f *vflow) outer() netip.Addr {
	at := map[string][2]string{NodeCharon: {"192.0.2.10", "198.51.100.10"}, NodeBranch: {"192.0.2.20", "198.51.100.20"}}
	return netip.MustParseAddr(at[f.peer][f.vcluster-1])
}

// countRekeys takes what the peers, which live all the time, say was completed: what they
// did not begin, the gateways did.
func (r *vrun) countRekeys(after CharonEvents) error {
	child, ike := after.ChildRekeys-r.before.ChildRekeys, after.IKERekeys-r.before.IKERekeys
	err := eachLine(r.branch.LogPath, r.branchLog, func(l logLine) {
		switch {
		case strings.HasPrefix(l.Msg, "established IKE SA ") && l.Rekeyed != "":
			ike++
		case strings.HasPrefix(l.Msg, "added IPsec SA: "):
			child++
		}
	})
	r.res.ChildRekeys, r.res.IKERekeys = child, ike
	r.res.ChildByPeer, r.res.IKEByPeer = int(r.rekeys.peerChild.Load()), int(r.rekeys.peerIKE.Load())
	r.res.ChildByGateway, r.res.IKEByGateway = child-r.res.ChildByPeer, ike-r.res.IKEByPeer
	r.res.IKESAsExplained = r.res.IKESAs == len(vflows)+ike
	return err
}

// logLine is what the lab reads of a line of a daemon's log.
type logLine struct {
	Time     time.Time
	Msg      string
	Tunnel   string
	Rekeyed  string
	VCluster int
	Handover bool
	Covered  bool
	Reason   string
	Node     string
	Detect   float64 `json:"detect_ms"`
}

// eachLine reads a JSON log from an offset on. What is no JSON was not a daemon's.
func eachLine(path string, from int64, do func(logLine)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var l logLine
		if json.Unmarshal(sc.Bytes(), &l) == nil {
			do(l)
		}
	}
	return sc.Err()
}

// changes are the changes of owner since the tunnels stood, in order, and how often
// tunnels synchronised message IDs between them.
func (r *vrun) changes() (all []VChange, err error) {
	var syncs []logLine
	for _, n := range Gateways {
		err = errors.Join(err, eachLine(r.gws[n].proc.LogPath, 0, func(l logLine) {
			switch {
			case !l.Time.After(r.up):
			case l.Msg == TakeoverMessage && l.VCluster > 0:
				all = append(all, VChange{VCluster: l.VCluster, To: n, Planned: l.Handover, Covered: l.Covered, Reason: l.Reason, DetectMS: l.Detect, at: l.Time})
			case strings.HasSuffix(l.Msg, "attempting message ID sync"):
				syncs = append(syncs, l)
			}
		}))
	}
	slices.SortFunc(all, func(a, b VChange) int { return a.at.Compare(b.at) })
	// A sync belongs to the last change of any virtual cluster before it.
	per := map[string]int{}
	for _, s := range syncs {
		i, _ := slices.BinarySearchFunc(all, s.Time, func(c VChange, t time.Time) int { return c.at.Compare(t) })
		k := fmt.Sprintf("%d %s", i, s.Tunnel)
		per[k]++
		r.res.SyncsPerChange = max(r.res.SyncsPerChange, per[k])
	}
	r.res.MessageIDSyncs = len(syncs)
	return all, err
}

// judgeStreams finds what each change of owner cost the tunnels of its virtual cluster,
// and what happened to tunnels that nothing was done to.
func (r *vrun) judgeStreams(streams [][2]Stream, changes []VChange) {
	faulted := func(c *VChange) time.Time {
		for _, f := range r.faults {
			if d := c.at.Sub(f.at); !c.Planned && d > 0 && d < settleTime && slices.Contains(f.owned, c.VCluster) {
				return f.at
			}
		}
		return c.at
	}
	var detects []float64
	for i := range changes {
		c := &changes[i]
		from, until := faulted(c).Add(-moveWindow), c.at.Add(moveWindow)
		for k, f := range vflows {
			for _, s := range streams[k] {
				if f.vcluster != c.VCluster {
					continue
				}
				lost, _ := losses(&s, r.s.Probe)
				c.Lost = max(c.Lost, within(lost, from, until))
				c.OutageMS = math.Max(c.OutageMS, milliseconds(Outage(s.Arrivals, faulted(c), until, r.s.Probe)))
			}
		}
		if !c.Covered {
			r.res.MovesUncovered++
		}
		if c.Planned {
			r.res.PlannedMoves++
			r.res.LostPerMove = max(r.res.LostPerMove, c.Lost)
		} else {
			detects = append(detects, c.DetectMS)
			r.res.KillOutageMS = math.Max(r.res.KillOutageMS, c.OutageMS)
		}
	}
	r.res.Moved = changes
	r.res.DetectMS = Middle{quantile(detects, 0.5), quantile(detects, 1)}
	for k, f := range vflows {
		for i, s := range streams[k] {
			lost, doubled := losses(&s, r.s.Probe)
			r.res.LostPings += len(lost)
			r.res.PingsSent += int(s.Sent)
			if i == 0 {
				r.res.ReplaysAccepted += doubled
			} else {
				r.res.DoubledAtClient += doubled
			}
			r.res.SenderStallMS = math.Max(r.res.SenderStallMS, milliseconds(s.MaxStall-r.s.Probe))
			for _, t := range lost {
				own, others := false, false
				for j := range changes {
					c := &changes[j]
					if near := !t.Before(faulted(c).Add(-moveWindow)) && t.Before(c.at.Add(moveWindow)); near && c.VCluster == f.vcluster {
						own = true
					} else if near {
						others = true
					}
				}
				if own {
					continue
				}
				if i == 1 && f.peer == NodeCharon && r.lostByPeer(k, t) {
					r.res.LostByPeers++
					continue
				}
				r.res.LostElsewhere++
				if others {
					r.res.Disturbed++
				}
				if r.res.LostElsewhere <= maxViolations {
					r.res.Violations = append(r.res.Violations, fmt.Sprintf("%s: a ping to %s lost at %s", f.tunnel, s.To, t.UTC().Format(stampLayout)))
				}
			}
		}
	}
}

// lostByPeer says whether a ping towards the client, lost at about t, was the last packet of
// a Child SA as it came to the peer's port: the gateway sent it before it heard of the
// SA's end, and the peer, which had replaced the SA, was rid of it a moment before it
// looked at the packet. No gateway can help that; a Tandem as the peer does, and must.
func (r *vrun) lostByPeer(flow int, t time.Time) bool {
	for _, last := range r.lastAt[flow] {
		if last.Before(r.ended.Add(-time.Second)) && last.Sub(t).Abs() <= 10*time.Millisecond {
			return true
		}
	}
	return false
}

// report writes the part of virtual clusters for people.
func (v *VClusterFigures) report(w io.Writer, r *Result) {
	fmt.Fprintf(w, "\n%s, %d tunnels: %d moves, %d faults in %.0f s\n", r.Scenario, v.Tunnels, v.PlannedMoves, r.Kills, r.Seconds)
	for i, c := range v.Moved {
		kind := "took over"
		if c.Planned {
			kind = "was handed over"
		}
		covered := "covered"
		if !c.Covered {
			covered = "NOT covered"
		}
		fmt.Fprintf(w, "%3d. virtual cluster %d %s to %s: %s, %s; %d pings lost, outage %.1f ms\n", i+1, c.VCluster, kind, c.To, c.Reason, covered, c.Lost, c.OutageMS)
	}
	fmt.Fprintf(w, "  %-22s the most at a move %d, outage after a SIGKILL %.1f ms, by peers in a rekey %d, elsewhere %d\n", "pings lost", v.LostPerMove, v.KillOutageMS, v.LostByPeers, v.LostElsewhere)
	fmt.Fprintf(w, "  %-22s Child SA %d by gateways, %d by peers; IKE SA %d by gateways, %d by peers\n", "rekeys", v.ChildByGateway, v.ChildByPeer, v.IKEByGateway, v.IKEByPeer)
	fmt.Fprintf(w, "  %-22s %d, at most %d of a tunnel at a change\n", "message ID syncs", v.MessageIDSyncs, v.SyncsPerChange)
	fmt.Fprintf(w, "  %-22s %d%s\n", "IKE SAs", v.IKESAs, map[bool]string{true: ": one a tunnel, one a rekey", false: ", NOT one a tunnel and one a rekey"}[v.IKESAsExplained])
}
