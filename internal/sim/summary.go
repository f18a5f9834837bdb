package sim

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"time"
)

// Summary adds up runs. The order in which they are added does not matter.
type Summary struct {
	Schedules  int
	Real       int // of these, with real cryptography
	Aimed      int // beside these: seeds with a crash of their own
	Violations []Found

	Virtual                                  time.Duration
	Starts, Takeovers, Uncovered, Handovers  int
	ChildRekeys, IKERekeys                   int
	Packets, Delivered, Rejected             int
	Frames, Gaps                             int
	Steps                                    int
	Faults                                   map[Verb]int
	States, Alarms                           map[string]int
	Coverage                                 *Coverage
	minutes, faults, takeovers, rekeys       []int // of each schedule; minutes in seconds
	WithTakeover, WithRekey, WithThreeFaults int   // schedules
}

// Found is a seed that violates a rule.
type Found struct {
	Seed      uint64
	Kind      Kind `json:",omitempty"`
	Real      bool
	Crash     string // the crash point that was added to the seed's schedule; empty: none
	Violation Violation
}

// NewSummary is empty.
func NewSummary() *Summary {
	return &Summary{Faults: map[Verb]int{}, States: map[string]int{}, Alarms: map[string]int{}, Coverage: newCoverage()}
}

// Add adds a run.
func (t *Summary) Add(s *Schedule, r *Result) {
	t.Schedules++
	if s.Real {
		t.Real++
	}
	crash := ""
	if s.Crash.Nth > 0 {
		crash = s.Crash.Cell.String()
	}
	for _, v := range r.Violations {
		t.Violations = append(t.Violations, Found{s.Seed, s.Kind(), s.Real, crash, v})
	}
	t.Virtual += r.Virtual
	t.Starts += r.Starts
	t.Takeovers += r.Takeovers
	t.Uncovered += r.Uncovered
	t.Handovers += r.Handovers
	t.ChildRekeys += r.ChildRekeys
	t.IKERekeys += r.IKERekeys
	t.Packets += r.Packets
	t.Delivered += r.Delivered
	t.Rejected += r.Rejected
	t.Frames += r.Frames
	t.Gaps += r.Gaps
	t.Steps += r.Steps
	addTo(t.Faults, r.Faults)
	addTo(t.States, r.States)
	addTo(t.Alarms, r.Alarms)
	t.Coverage.add(s, r)
	rekeys := r.ChildRekeys + r.IKERekeys
	t.minutes = append(t.minutes, int(r.Virtual/time.Second))
	t.faults = append(t.faults, r.FaultCount())
	t.takeovers = append(t.takeovers, r.Takeovers)
	t.rekeys = append(t.rekeys, rekeys)
	t.WithTakeover += count(r.Takeovers > 0)
	t.WithRekey += count(rekeys > 0)
	t.WithThreeFaults += count(r.FaultCount() >= 3)
}

// MergeAimed adds what runs with a crash of their own found: violations and coverage.
// The other figures remain those of the seeds.
func (t *Summary) MergeAimed(o *Summary) {
	t.Aimed += o.Schedules
	t.Violations = append(t.Violations, o.Violations...)
	t.Coverage.merge(o.Coverage)
}

// Merge adds what another summary holds.
func (t *Summary) Merge(o *Summary) {
	t.Schedules += o.Schedules
	t.Real += o.Real
	t.Aimed += o.Aimed
	t.Violations = append(t.Violations, o.Violations...)
	t.Virtual += o.Virtual
	t.Starts += o.Starts
	t.Takeovers += o.Takeovers
	t.Uncovered += o.Uncovered
	t.Handovers += o.Handovers
	t.ChildRekeys += o.ChildRekeys
	t.IKERekeys += o.IKERekeys
	t.Packets += o.Packets
	t.Delivered += o.Delivered
	t.Rejected += o.Rejected
	t.Frames += o.Frames
	t.Gaps += o.Gaps
	t.Steps += o.Steps
	addTo(t.Faults, o.Faults)
	addTo(t.States, o.States)
	addTo(t.Alarms, o.Alarms)
	t.Coverage.merge(o.Coverage)
	t.minutes = append(t.minutes, o.minutes...)
	t.faults = append(t.faults, o.faults...)
	t.takeovers = append(t.takeovers, o.takeovers...)
	t.rekeys = append(t.rekeys, o.rekeys...)
	t.WithTakeover += o.WithTakeover
	t.WithRekey += o.WithRekey
	t.WithThreeFaults += o.WithThreeFaults
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func addTo[K comparable](to, from map[K]int) {
	for k, n := range from {
		to[k] += n
	}
}

// Median is the middle one of the schedules, each figure for itself.
type Median struct {
	Minutes                   float64 // of virtual time
	Faults, Takeovers, Rekeys int
}

// Median of the schedules so far.
func (t *Summary) Median() Median {
	return Median{float64(middle(t.minutes)) / 60, middle(t.faults), middle(t.takeovers), middle(t.rekeys)}
}

func middle(v []int) int {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[(len(s)-1)/2]
}

// FaultCount is how many faults happened.
func (t *Summary) FaultCount() (n int) {
	for v, k := range t.Faults {
		if v.Fault() {
			n += k
		}
	}
	return n
}

// Line is the summary in one line.
func (t *Summary) Line() string {
	m := t.Median()
	return fmt.Sprintf("%d schedules (%d with real cryptography), %.0f virtual hours, %d faults, %d takeovers, %d rekeys, %d packets, %d violations; median %.1f min, %d faults, %d takeovers, %d rekeys; %s",
		t.Schedules, t.Real, t.Virtual.Hours(), t.FaultCount(), t.Takeovers, t.ChildRekeys+t.IKERekeys, t.Packets, len(t.Violations),
		m.Minutes, m.Faults, m.Takeovers, m.Rekeys, t.Coverage.Line())
}

// SortedViolations are the violations by seed.
func (t *Summary) SortedViolations() []Found {
	slices.SortStableFunc(t.Violations, func(a, b Found) int {
		switch {
		case a.Seed != b.Seed && a.Seed < b.Seed:
			return -1
		case a.Seed != b.Seed:
			return 1
		}
		return strings.Compare(a.Crash, b.Crash)
	})
	return t.Violations
}

// Write tells everything to people, except the violations.
func (t *Summary) Write(w io.Writer) {
	m := t.Median()
	fmt.Fprintf(w, "schedules         %d, of these %d with real cryptography\n", t.Schedules, t.Real)
	fmt.Fprintf(w, "virtual time      %.1f h, median schedule %.1f min\n", t.Virtual.Hours(), m.Minutes)
	fmt.Fprintf(w, "median schedule   %d faults, %d takeovers, %d rekeys; %s have at least 3 faults, %s a takeover, %s a rekey\n",
		m.Faults, m.Takeovers, m.Rekeys, t.share(t.WithThreeFaults), t.share(t.WithTakeover), t.share(t.WithRekey))
	fmt.Fprintf(w, "takeovers         %d from another owner, %d planned handovers among them; %d beginnings of ownership were told as uncovered\n", t.Takeovers, t.Handovers, t.Uncovered)
	fmt.Fprintf(w, "rekeys            %d of Child SAs, %d of IKE SAs\n", t.ChildRekeys, t.IKERekeys)
	t.writeActions(w)
	fmt.Fprintf(w, "states            %s\n", reached(t.States, stateNames))
	table(w, t.States)
	fmt.Fprintf(w, "alarms            %s\n", reached(t.Alarms, alarmNames))
	table(w, t.Alarms)
}

// WriteKind tells of runs of another kind than pairs to people, except the violations.
func (t *Summary) WriteKind(w io.Writer, k Kind) {
	m := t.Median()
	fmt.Fprintf(w, "%-17s %d, %.1f h of virtual time; the median has %.1f min, %d faults, %d takeovers, %d rekeys\n", k.Plural(), t.Schedules, t.Virtual.Hours(), m.Minutes, m.Faults, m.Takeovers, m.Rekeys)
	fmt.Fprintf(w, "takeovers         %d, %d planned handovers among them; %d beginnings of ownership were told as uncovered\n", t.Takeovers, t.Handovers, t.Uncovered)
	t.writeActions(w)
	fmt.Fprintf(w, "states and alarms\n")
	table(w, t.States)
	table(w, t.Alarms)
}

// writeActions tells what was carried, and what was done to the runs.
func (t *Summary) writeActions(w io.Writer) {
	fmt.Fprintf(w, "packets           %d sent, %d delivered, %d valid ones refused by a replay window\n", t.Packets, t.Delivered, t.Rejected)
	fmt.Fprintf(w, "replication       %d frames, %d gaps; %d daemons started\n", t.Frames, t.Gaps, t.Starts)
	fmt.Fprintf(w, "faults            %d\n", t.FaultCount())
	table(w, verbs(t.Faults, true))
	fmt.Fprintf(w, "other actions\n")
	table(w, verbs(t.Faults, false))
}

// reached says how many of all names were counted.
func reached(m map[string]int, all []string) string {
	var never []string
	for _, n := range all {
		if m[n] == 0 {
			never = append(never, n)
		}
	}
	text := fmt.Sprintf("%d of %d reached", len(all)-len(never), len(all))
	if len(never) > 0 {
		text += "; never: " + strings.Join(never, ", ")
	}
	return text
}

func (t *Summary) share(n int) string {
	if t.Schedules == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(n)/float64(t.Schedules))
}

func verbs(m map[Verb]int, fault bool) map[string]int {
	out := map[string]int{}
	for v, n := range m {
		if v.Fault() == fault {
			out[string(v)] = n
		}
	}
	return out
}

// table writes counts in three columns, by name.
func table(w io.Writer, m map[string]int) {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	rows := (len(names) + 2) / 3
	for i := range rows {
		fmt.Fprint(w, "   ")
		for c := range 3 {
			if j := c*rows + i; j < len(names) {
				fmt.Fprintf(w, "%8d %-28s", m[names[j]], names[j])
			}
		}
		fmt.Fprintln(w)
	}
}

// Figures is the summary as JSON has it.
type Figures struct {
	Schedules, Real       int
	Aimed                 int
	Seconds               float64 // of real time
	VirtualHours          float64
	Median                Median
	Faults                map[Verb]int
	States, Alarms        map[string]int
	Starts, Takeovers     int
	Uncovered, Handovers  int
	ChildRekeys           int
	IKERekeys             int
	Packets, Delivered    int
	Rejected              int
	Frames, Gaps          int
	CrashPoints           int
	CrashPointsReached    int
	CrashPointsMissed     []string
	EffectsUnseen         []string
	Violations            []Found
	WithTakeover          int
	WithRekey, ThreeFault int
}

// Figures are for programs.
func (t *Summary) Figures(took time.Duration) Figures {
	f := Figures{
		Schedules: t.Schedules, Real: t.Real, Aimed: t.Aimed, Seconds: took.Seconds(), VirtualHours: t.Virtual.Hours(), Median: t.Median(),
		Faults: t.Faults, States: t.States, Alarms: t.Alarms, Starts: t.Starts, Takeovers: t.Takeovers, Uncovered: t.Uncovered,
		Handovers: t.Handovers, ChildRekeys: t.ChildRekeys, IKERekeys: t.IKERekeys, Packets: t.Packets, Delivered: t.Delivered,
		Rejected: t.Rejected, Frames: t.Frames, Gaps: t.Gaps, CrashPoints: len(t.Coverage.Moments), EffectsUnseen: t.Coverage.Unseen(),
		Violations: t.SortedViolations(), WithTakeover: t.WithTakeover, WithRekey: t.WithRekey, ThreeFault: t.WithThreeFaults,
	}
	missing := t.Coverage.Missing()
	f.CrashPointsReached = f.CrashPoints - len(missing)
	for _, c := range missing {
		f.CrashPointsMissed = append(f.CrashPointsMissed, c.String())
	}
	return f
}
