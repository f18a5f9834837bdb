package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// Program is one of those compared.
type Program struct {
	Name  string `json:"name"`
	About string `json:"about"` // version, suite, and what it is
}

// Sample is one measurement of one program.
type Sample struct {
	Program string  `json:"program"`
	Layout  string  `json:"layout"`
	Measure string  `json:"measure"`
	Round   int     `json:"round"` // from 1; samples of one round were taken one right after another
	Rate    float64 `json:"rate"`  // bits, or packets, a second
	CPU     float64 `json:"cpu"`   // seconds that the gateways computed per GB, or per million packets
	Total   float64 `json:"total"` // the same of the whole machine
	Out     float64 `json:"out"`   // Rate in each direction alone
	In      float64 `json:"in"`
}

// Latency of probes through a program under load, and through the bare wire under the
// same, in milliseconds.
type Latency struct {
	Program string  `json:"program"`
	Layout  string  `json:"layout"`
	Load    float64 `json:"load_bps"`
	Probes  int     `json:"probes"`
	Lost    int     `json:"lost"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	BareP50 float64 `json:"bare_p50_ms"`
	BareP99 float64 `json:"bare_p99_ms"`
}

// Metric is which figure of a sample is judged.
type Metric string

// Metrics.
const (
	Rate Metric = "rate"
	CPU  Metric = "cpu"
)

// Floor is what a ratio of two programs has to reach.
type Floor struct {
	Name    string  `json:"name"`
	Over    string  `json:"over"` // the program that divides
	Layout  string  `json:"layout"`
	Measure string  `json:"measure"`
	Metric  Metric  `json:"metric"`
	Floor   float64 `json:"floor"` // for CPU at most, for Rate at least
	Goal    float64 `json:"goal"`
	Told    bool    `json:"told,omitempty"` // for comparison: to miss it is no failure
}

// Verdict is a floor with the ratio that was measured.
type Verdict struct {
	Floor
	Ratio   Spread `json:"ratio"`
	Pass    bool   `json:"pass"`
	AtGoal  bool   `json:"at_goal"`
	Skipped bool   `json:"skipped,omitempty"` // one of the two did not run
}

// Result of a benchmark.
type Result struct {
	Commit   string    `json:"commit"`
	Date     string    `json:"date"`
	Machine  string    `json:"machine"`
	Subject  string    `json:"subject"` // the program that is judged
	Rounds   int       `json:"rounds"`
	Seconds  int       `json:"seconds"` // of each direction of a TCP measurement
	Programs []Program `json:"programs"`
	Samples  []Sample  `json:"samples"`
	Latency  []Latency `json:"latency"`
	Checks   []string  `json:"checks"` // what was seen to be switched on
	Verdicts []Verdict `json:"verdicts"`
	Pass     bool      `json:"pass"`
	Notes    []string  `json:"notes,omitempty"`
}

// value of a sample.
func (s Sample) value(m Metric) float64 {
	if m == CPU {
		return s.CPU
	}
	return s.Rate
}

// Figures are one program's in all rounds.
func (r *Result) Figures(program, layout, measure string, of func(Sample) float64) Spread {
	var all []float64
	for _, s := range r.Samples {
		if s.Program == program && s.Layout == layout && s.Measure == measure {
			all = append(all, of(s))
		}
	}
	return SpreadOf(all)
}

// Ratios divides, round by round, what a program reached by what another reached in
// the same round: what slows the machine for minutes slows both.
func (r *Result) Ratios(program, over, layout, measure string, m Metric) Spread {
	per := map[int][2]float64{}
	for _, s := range r.Samples {
		if s.Layout != layout || s.Measure != measure {
			continue
		}
		v := per[s.Round]
		if s.Program == program {
			v[0] = s.value(m)
		}
		if s.Program == over {
			v[1] = s.value(m)
		}
		per[s.Round] = v
	}
	var all []float64
	for _, v := range per {
		if v[0] > 0 && v[1] > 0 {
			all = append(all, v[0]/v[1])
		}
	}
	return SpreadOf(all)
}

// Judge compares the subject's ratios with floors. A floor whose programs have no
// sample is skipped, and named so; with nothing judged the result does not pass.
func (r *Result) Judge(floors []Floor) {
	r.Verdicts, r.Pass = nil, true
	judged := 0
	for _, f := range floors {
		v := Verdict{Floor: f, Ratio: r.Ratios(r.Subject, f.Over, f.Layout, f.Measure, f.Metric)}
		switch {
		case v.Ratio.N == 0 && f.Told:
			continue
		case v.Ratio.N == 0:
			v.Skipped = true
			v.Ratio = Spread{}
		case f.Metric == CPU:
			v.Pass, v.AtGoal = v.Ratio.Median <= f.Floor, v.Ratio.Median <= f.Goal
		default:
			v.Pass, v.AtGoal = v.Ratio.Median >= f.Floor, v.Ratio.Median >= f.Goal
		}
		if !v.Skipped && !v.Told {
			judged++
			r.Pass = r.Pass && v.Pass
		}
		r.Verdicts = append(r.Verdicts, v)
	}
	r.Pass = r.Pass && judged > 0
}

// Add takes over what an earlier run on the same commit measured in other layouts, so
// that a long benchmark may be taken in parts.
func (r *Result) Add(text []byte) error {
	var o Result
	if err := json.Unmarshal(text, &o); err != nil {
		return err
	}
	if o.Commit != r.Commit || o.Machine != r.Machine {
		return fmt.Errorf("measured on commit %s (%s), this is %s (%s)", o.Commit, o.Machine, r.Commit, r.Machine)
	}
	for _, l := range o.Layouts() {
		if slices.Contains(r.Layouts(), l) {
			return fmt.Errorf("both have measured %s", l)
		}
	}
	for _, p := range o.Programs {
		if !slices.Contains(r.Programs, p) {
			r.Programs = append(r.Programs, p)
		}
	}
	r.Samples, r.Latency = append(o.Samples, r.Samples...), append(o.Latency, r.Latency...)
	r.Checks, r.Notes = append(o.Checks, r.Checks...), append(o.Notes, r.Notes...)
	r.Rounds = min(r.Rounds, o.Rounds)
	return nil
}

// JSON is the result as indented text.
func (r *Result) JSON() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	return append(text, '\n'), err
}

// Layouts are those that have samples, in the order in which they came.
func (r *Result) Layouts() []string { return r.distinct(func(s Sample) string { return s.Layout }) }

// MeasuresOf lists the measures that a layout has samples of.
func (r *Result) MeasuresOf(layout string) []string {
	return r.distinct(func(s Sample) string {
		if s.Layout != layout {
			return ""
		}
		return s.Measure
	})
}

func (r *Result) distinct(of func(Sample) string) (all []string) {
	for _, s := range r.Samples {
		if v := of(s); v != "" && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// short writes a figure with three significant digits.
func short(f float64) string {
	if math.IsNaN(f) {
		return "–"
	}
	switch a := math.Abs(f); {
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}
