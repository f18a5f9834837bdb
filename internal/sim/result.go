package sim

import (
	"fmt"
	"time"
)

// Rule names what a checker guards.
type Rule string

// The rules; the first seven are the architecture's invariants.
const (
	RuleNonce     Rule = "no nonce twice"
	RuleSequence  Rule = "sequence numbers only rise"
	RuleReplay    Rule = "no packet is delivered twice"
	RulePrice     Rule = "a takeover rejects at most the fence's lead"
	RuleSurvivor  Rule = "a survivor goes on where the other one stood"
	RuleLost      Rule = "nothing acknowledged is lost"
	RuleGate      Rule = "nothing leaves before it is acknowledged"
	RuleEpoch     Rule = "epochs are made once, older ones refused"
	RuleEcho      Rule = "echoes are inert"
	RuleKeys      Rule = "keys stay in memory"
	RuleWindow    Rule = "RFC 7296 windows"
	RuleCoverage  Rule = "a covered takeover is told as one"
	RuleOwners    Rule = "one owner"
	RuleLiveness  Rule = "every tunnel carries traffic after healing"
	RuleLeft      Rule = "no SA is left behind"
	RulePlaintext Rule = "no plaintext outside"
	RuleForgery   Rule = "nothing forged is believed"
	RuleBounded   Rule = "memory and queues are bounded"
	RuleEffects   Rule = "effects can be carried out"
	RuleScopes    Rule = "a virtual cluster moves alone"
	RuleSync      Rule = "message IDs are synchronised once"
)

// Violation is a broken rule.
type Violation struct {
	Rule Rule
	At   time.Duration
	Text string
}

func (v Violation) String() string { return fmt.Sprintf("%v: %s: %s", v.At, v.Rule, v.Text) }

// Result is what a run showed.
type Result struct {
	Violations []Violation
	Virtual    time.Duration
	Digest     uint64
	Steps      int

	Faults  map[Verb]int
	Moments map[Cell]int // crash points that were passed
	Crashes map[Cell]int // and those at which a daemon was killed
	States  map[string]int
	Alarms  map[string]int

	Starts, Takeovers, Uncovered, Handovers int
	ChildRekeys, IKERekeys                  int
	Packets, Delivered, Rejected            int
	Frames, Gaps                            int
}

func newResult() *Result {
	return &Result{Faults: map[Verb]int{}, Moments: map[Cell]int{}, Crashes: map[Cell]int{}, States: map[string]int{}, Alarms: map[string]int{}}
}

// FaultCount is how many faults happened.
func (r *Result) FaultCount() (n int) {
	for v, k := range r.Faults {
		if v.Fault() {
			n += k
		}
	}
	return n
}
