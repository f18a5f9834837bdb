package sim

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"

	"tandem/internal/sim/trace"
)

// TestCrashIsAimed: a run with a crash is the run without it up to the crash.
func TestCrashIsAimed(t *testing.T) {
	s := ForSeed(2, 0)
	plain := Run(s)
	if len(plain.Crashes) > 0 || len(plain.Moments) < 20 {
		t.Fatalf("a seed without crashes of its own is needed; it has %v", plain.Crashes)
	}
	events := func(s *Schedule) []trace.Event {
		log := trace.NewLog(traceLimit)
		RunTraced(s, log)
		return log.Events()
	}
	whole := events(s)
	tried := 0
	for _, c := range Cells() {
		n := plain.Moments[c]
		if n == 0 {
			continue
		}
		if tried++; tried%15 != 0 {
			continue
		}
		x := *s
		x.Crash = Crash{c, (n + 1) / 2}
		if r := Run(&x); r.Crashes[c] != 1 {
			t.Errorf("%s: %d crashes", c, r.Crashes[c])
			continue
		}
		crashed := events(&x)
		i := slices.IndexFunc(crashed, func(e trace.Event) bool { return e.Text == "SIGKILL "+c.String() })
		if i < 0 {
			t.Errorf("%s: the trace does not tell", c)
			continue
		}
		if i > len(whole) || !slices.Equal(crashed[:i], whole[:i]) {
			t.Errorf("%s: another run before the crash", c)
		}
	}
	if tried < 20 {
		t.Errorf("only %d crash points", tried)
	}
}

func TestCellText(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Cells() {
		text := c.String()
		if p, err := ParseCell(text); err != nil || p != c || seen[text] {
			t.Errorf("%q reads as %+v, %v", text, p, err)
		}
		seen[text] = true
	}
	if _, err := ParseCell("before ike.Nothing"); err == nil {
		t.Error("a crash point that is none was read")
	}
}

// TestCoverageTells: what was never crashed at, and what was never seen.
func TestCoverageTells(t *testing.T) {
	a := Cell{"node.Install", Auth, true, false}
	b := Cell{"ike.Send", None, false, true}
	sum := NewSummary()
	for _, x := range []struct {
		seed  uint64
		crash Crash
		r     *Result
	}{
		{9, Crash{}, &Result{Moments: map[Cell]int{a: 3, b: 1}, Crashes: map[Cell]int{a: 1}}},
		{7, Crash{}, &Result{Moments: map[Cell]int{b: 2}}},
	} {
		sum.Add(&Schedule{Seed: x.seed, Crash: x.crash}, x.r)
	}
	c := sum.Coverage
	if m := c.Missing(); len(m) != 1 || m[0] != b {
		t.Errorf("missing %v", m)
	}
	if s, ok := c.Seed(b); !ok || s != 7 {
		t.Errorf("first seen in %d", s)
	}
	if n := len(c.Unseen()); n != len(effectTypes)-1 { // ike.Send was only seen after
		t.Errorf("%d effect types unseen", n)
	}
	aimed := NewSummary()
	aimed.Add(&Schedule{Seed: 7, Crash: Crash{b, 1}}, &Result{Moments: map[Cell]int{b: 1, {"node.Claim", None, false, false}: 1}, Crashes: map[Cell]int{b: 1}})
	sum.MergeAimed(aimed)
	if len(c.Missing()) != 0 || c.byAim() != 1 || sum.Schedules != 2 || sum.Aimed != 1 || len(c.Moments) != 2 {
		t.Errorf("%s; %d schedules, %d aimed", c.Line(), sum.Schedules, sum.Aimed)
	}
	var out bytes.Buffer
	c.Write(&out)
	if !strings.Contains(out.String(), "2 of 2 reached (1 by runs aimed at them)") {
		t.Error(out.String())
	}
}

// TestSummaryMerges: parts give the same as the whole.
func TestSummaryMerges(t *testing.T) {
	whole, left, right := NewSummary(), NewSummary(), NewSummary()
	for seed := range uint64(6) {
		s := ForSeed(seed, 3)
		r := Run(s)
		if seed == 4 {
			r.Violations = []Violation{{Rule: RuleLost, Text: "for the test"}}
		}
		whole.Add(s, r)
		if seed%2 == 0 {
			left.Add(s, r)
		} else {
			right.Add(s, r)
		}
	}
	right.Merge(left)
	var a, b bytes.Buffer
	whole.Write(&a)
	right.Write(&b)
	if a.String() != b.String() || whole.Line() != right.Line() || whole.Line() == NewSummary().Line() {
		t.Errorf("%s\n%s", a.String(), b.String())
	}
	if v := right.SortedViolations(); len(v) != 1 || v[0].Seed != 4 {
		t.Errorf("%v", v)
	}
	if f := whole.Figures(0); f.Schedules != 6 || f.Real != 2 || math.IsNaN(f.Median.Minutes) || f.Median.Minutes < 5 {
		t.Errorf("%+v", f)
	}
}
