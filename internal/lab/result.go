package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Verdicts.
const (
	VerdictPass = "pass"
	VerdictFail = "fail"
)

// Spread sums up the outages of the faults, in milliseconds.
type Spread struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

// Middle is a spread without its p99.
type Middle struct {
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// Result is the outcome of a run. The fields down to Verdict are a stable
// interface; those after it may grow.
type Result struct {
	Scenario         string `json:"scenario"`
	Client           string `json:"client"`
	Kills            int    `json:"kills"` // daemons killed and hosts lost
	OutageMS         Spread `json:"outage_ms"`
	DetectMS         Middle `json:"detect_ms"` // as the survivors say
	LostPings        int    `json:"lost_pings"`
	SAInitAfterUp    int    `json:"sa_init_after_up"`
	IKEAuthAfterUp   int    `json:"ike_auth_after_up"`
	ChildRekeys      int    `json:"child_rekeys"`
	IKERekeys        int    `json:"ike_rekeys"`
	RekeysUnanswered int    `json:"rekeys_unanswered"`
	IVRepeats        int    `json:"iv_repeats"`
	SeqRegressions   int    `json:"seq_regressions"`
	ReplaysAccepted  int    `json:"replays_accepted"`
	SeqJump          Middle `json:"seq_jump"`
	SPIChanged       bool   `json:"spi_changed"`
	TCPOK            bool   `json:"tcp_ok"`
	Verdict          string `json:"verdict"`

	Takeovers           []Takeover     `json:"takeovers"`
	OtherGapMS          float64        `json:"other_gap_ms"`          // the largest gap of the probes away from any fault
	DisturbanceMS       float64        `json:"disturbance_ms"`        // the largest gap around what is not a takeover: pauses, cut heartbeats
	PingsSent           int            `json:"pings_sent"`            // both directions
	LostPerTakeover     int            `json:"lost_per_takeover"`     // the most probes lost at one takeover, worse direction
	DoubledAtClient     int            `json:"doubled_at_client"`     // probes that reached the client's host twice
	Replayed            int            `json:"replayed"`              // packets that the lab sent again
	SurvivorReached     int            `json:"survivor_reached"`      // the fewest packets of the client that reached a survivor: what the next two figures rest on
	SurvivorRejected    int            `json:"survivor_rejected"`     // the most of them that a survivor did not deliver
	RejectedOverLead    int            `json:"rejected_over_lead"`    // the most by which they exceed the fence's lead, 10 ms of each SA's rate before the fault; 0 when they nowhere do
	StaleOwnerPackets   int            `json:"stale_owner_packets"`   // of a frozen owner later than 10 ms after waking: ESP, packets delivered, and all in the name of a shared address
	WakingPackets       int            `json:"waking_packets"`        // the most of them that left within those 10 ms
	WakeDelayMS         float64        `json:"wake_delay_ms"`         // the longest that a thread woken by SIGCONT had to wait for a processor within 20 ms: the machine's own delay
	SeqRegressionsSplit int            `json:"seq_regressions_split"` // while both owned the tunnel, or within 10 ms of a frozen host's waking
	TransferBytes       int64          `json:"transfer_bytes"`        // through the one TCP connection
	IKEMessages         map[string]int `json:"ike_messages"`          // distinct, by exchange
	CaptureDrops        int            `json:"capture_drops"`         // frames the kernel did not give to the captures
	OversizeFrames      int            `json:"oversize_frames"`       // frames larger than a wire's
	ClockStepMS         float64        `json:"clock_step_ms"`         // wall clock against monotonic clock
	SenderStallMS       float64        `json:"sender_stall_ms"`       // the prober's own worst delay: an outage holds it
	FaultSpreadMS       float64        `json:"fault_spread_ms"`       // the longest between the faults of two pairs that were meant for one moment
	Expectations        int            `json:"failed_expectations"`   // steps whose expectation did not hold
	Violations          []string       `json:"violations"`            // in words
	Seconds             float64        `json:"seconds"`               // how long the steps took
	Captures            string         `json:"captures,omitempty"`    // where they were kept

	*FarmFigures     // nil but for a farm
	*VClusterFigures // nil but for virtual clusters
}

// Takeover is one fault and what came of it.
type Takeover struct {
	Fault     string  `json:"fault"` // what the lab did
	Victim    string  `json:"victim"`
	Survivor  string  `json:"survivor"`
	Reason    string  `json:"reason"` // as the survivor says
	Covered   bool    `json:"covered"`
	Epoch     string  `json:"epoch"`
	Ceiling   uint64  `json:"ceiling"` // outbound bound that the survivor starts above; 0: not told
	First     uint32  `json:"first_seq"`
	Jump      uint32  `json:"seq_jump"`
	DetectMS  float64 `json:"detect_ms"`
	FirstMS   float64 `json:"first_esp_ms"` // from the fault to the survivor's first ESP packet
	OutageMS  float64 `json:"outage_ms"`
	Lost      int     `json:"lost_pings"`    // around it, worse direction
	Reached   int     `json:"reached"`       // ESP packets of the client that came to the survivor
	Rejected  int     `json:"rejected"`      // of those, not delivered
	Lead      int     `json:"fence_lead"`    // of the owner before, widened: so many may be rejected
	Widened   int     `json:"fence_widened"` // factor in it, as the owner's status said before the fault; 1: none
	Explained bool    `json:"explained"`     // reason, covered and epoch are known
}

// judge fills in Violations and Verdict from the bounds and from what the
// caller has put into Violations already.
func (r *Result) judge(bounds []Bound) {
	for _, b := range append(append([]Bound(nil), always...), bounds...) {
		if bad := b.check(r); bad != "" {
			r.Violations = append(r.Violations, bad)
		}
	}
	r.Verdict = VerdictPass
	if len(r.Violations) > 0 {
		r.Verdict = VerdictFail
	}
}

// JSON is the stable form, indented.
func (r *Result) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	return append(b, '\n'), err
}

// Report writes the result for people: one line for each takeover.
func (r *Result) Report(w io.Writer) {
	pair := r.FarmFigures == nil && r.VClusterFigures == nil
	switch {
	case r.FarmFigures != nil:
		r.FarmFigures.report(w, r)
	case r.VClusterFigures != nil:
		r.VClusterFigures.report(w, r)
	default:
		fmt.Fprintf(w, "\n%s, client %s: %d faults in %.0f s\n", r.Scenario, r.Client, len(r.Takeovers), r.Seconds)
		for i, t := range r.Takeovers {
			fmt.Fprintf(w, "%3d. %s\n", i+1, t.line())
		}
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-22s "+format+"\n", append([]any{name}, args...)...)
	}
	if pair {
		row("outage", "median %.1f ms, p99 %.1f ms, max %.1f ms (quiet times: %.1f ms)", r.OutageMS.Median, r.OutageMS.P99, r.OutageMS.Max, r.OtherGapMS)
	}
	row("detection", "median %.1f ms, max %.1f ms", r.DetectMS.Median, r.DetectMS.Max)
	row("pings lost", "%d of %d", r.LostPings, r.PingsSent)
	row("new IKE_SA_INIT, AUTH", "%d, %d", r.SAInitAfterUp, r.IKEAuthAfterUp)
	row("rekeys", "%d Child SA, %d IKE SA, %d unanswered", r.ChildRekeys, r.IKERekeys, r.RekeysUnanswered)
	row("IV repeats", "%d", r.IVRepeats)
	if pair {
		row("sequence", "%d regressions, jump median %.0f, max %.0f", r.SeqRegressions, r.SeqJump.Median, r.SeqJump.Max)
	}
	row("replays", "%d sent, %d accepted", r.Replayed, r.ReplaysAccepted)
	row("SPIs", "%s", map[bool]string{true: "CHANGED without a rekey", false: "unchanged but for rekeys"}[r.SPIChanged])
	if r.VClusterFigures == nil {
		row("TCP", "%s, %.1f MB in one connection", map[bool]string{true: "checksum right", false: "BROKEN"}[r.TCPOK], float64(r.TransferBytes)/1e6)
	}
	if r.Captures != "" {
		row("captures, logs", "%s", r.Captures)
	}
	for _, v := range r.Violations {
		fmt.Fprintf(w, "  VIOLATED: %s\n", v)
	}
	fmt.Fprintf(w, "verdict: %s\n", r.Verdict)
}

func (t *Takeover) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s; ", t.Fault, t.Victim)
	if t.Survivor == "" {
		fmt.Fprintf(&b, "nobody took over")
	} else if !t.Explained {
		fmt.Fprintf(&b, "%s went on (it did not say why)", t.Survivor)
	} else {
		covered := "NOT covered"
		if t.Covered {
			covered = "covered"
		}
		fmt.Fprintf(&b, "%s took over: %s, %s, epoch %s, detected in %.1f ms", t.Survivor, t.Reason, covered, t.Epoch, t.DetectMS)
	}
	if t.Ceiling > 0 {
		fmt.Fprintf(&b, ", ceiling %d", t.Ceiling)
	}
	if t.First > 0 {
		fmt.Fprintf(&b, ", first sequence %d, jump %d", t.First, t.Jump)
	}
	if t.Reached > 0 {
		fmt.Fprintf(&b, ", %d of %d rejected (lead %d)", t.Rejected, t.Reached, t.Lead)
	}
	fmt.Fprintf(&b, "; outage %.1f ms", t.OutageMS)
	return b.String()
}

// ExitStatus is that of `tandem lab run`: 0 passed, 1 a violated bound or a
// failed run, 2 no charon, or nothing that could run.
func ExitStatus(r Result, err error) int {
	switch {
	case errors.Is(err, ErrNoCharon), errors.Is(err, ErrUsage):
		return 2
	case err != nil || r.Verdict != VerdictPass:
		return 1
	}
	return 0
}
