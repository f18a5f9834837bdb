package bench

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// RateText writes packets a second, or bits a second, for people.
func RateText(packets bool, rate float64) string {
	if packets {
		return short(rate/1e3) + " kpps"
	}
	return short(rate/1e9) + " Gbit/s"
}

func isPackets(measure string) bool { return strings.Contains(measure, "UDP") }

// spreadText is a median with what lies around it.
func spreadText(s Spread) string {
	if s.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s–%s)", short(s.Median), short(s.Min), short(s.Max))
}

// rateSpread is the same of rates, in Gbit/s or kpps.
func rateSpread(packets bool, s Spread) string {
	unit := 1e9
	if packets {
		unit = 1e3
	}
	s.Median, s.Min, s.Max = s.Median/unit, s.Min/unit, s.Max/unit
	return spreadText(s)
}

func (v *Verdict) word() string {
	switch {
	case v.Skipped:
		return "not measured"
	case v.Told && !v.Pass:
		return "below (told only)"
	case v.AtGoal:
		return "goal"
	case v.Pass:
		return "pass"
	}
	return "MISS"
}

func (v *Verdict) bound() string {
	if v.Metric == CPU {
		return fmt.Sprintf("≤ %v (%v)", v.Floor.Floor, v.Goal)
	}
	return fmt.Sprintf("≥ %v (%v)", v.Floor.Floor, v.Goal)
}

// rows are the tables' contents: figures, latency, verdicts.
func (r *Result) rows() (figures, latency, verdicts [][]string) {
	for _, l := range r.Layouts() {
		for _, m := range r.MeasuresOf(l) {
			for _, p := range r.Programs {
				of := func(f func(Sample) float64) Spread { return r.Figures(p.Name, l, m, f) }
				rate := of(func(s Sample) float64 { return s.Rate })
				if rate.N == 0 {
					continue
				}
				pk := isPackets(m)
				figures = append(figures, []string{l, m, p.Name, rateSpread(pk, rate),
					rateSpread(pk, of(func(s Sample) float64 { return s.Out })), rateSpread(pk, of(func(s Sample) float64 { return s.In })),
					spreadText(of(func(s Sample) float64 { return s.CPU })), spreadText(of(func(s Sample) float64 { return s.Total }))})
			}
		}
	}
	for _, l := range r.Latency {
		latency = append(latency, []string{l.Layout, l.Program, RateText(false, l.Load), short(l.P50), short(l.P99), short(l.BareP50), short(l.BareP99), fmt.Sprintf("%d of %d", l.Lost, l.Probes)})
	}
	for i := range r.Verdicts {
		v := &r.Verdicts[i]
		verdicts = append(verdicts, []string{v.Name, v.Layout, v.Measure, spreadText(v.Ratio), v.bound(), v.word()})
	}
	return figures, latency, verdicts
}

var (
	figureHead  = []string{"layout", "measure", "program", "Gbit/s or kpps", "out of the pair", "into it", "gateways' CPU-s per GB or Mpackets", "the machine's"}
	latencyHead = []string{"layout", "program", "load", "p50 ms", "p99 ms", "bare p50", "bare p99", "lost"}
	verdictHead = []string{"ratio", "layout", "measure", "median (least–most)", "floor (goal)", "verdict"}
)

// Report prints everything for a terminal.
func (r *Result) Report(w io.Writer) error {
	var b bytes.Buffer
	figures, latency, verdicts := r.rows()
	fmt.Fprintf(&b, "\n%s, commit %s, %s\n", r.Date, r.Commit, r.Machine)
	for _, p := range r.Programs {
		fmt.Fprintf(&b, "  %s: %s\n", p.Name, p.About)
	}
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "  on: %s\n", c)
	}
	for _, t := range []struct {
		head []string
		rows [][]string
	}{{figureHead, figures}, {latencyHead, latency}, {verdictHead, verdicts}} {
		if len(t.rows) == 0 {
			continue
		}
		b.WriteByte('\n')
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, row := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(tw, strings.Join(row, "\t"))
		}
		tw.Flush()
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nnote: %s\n", n)
	}
	verdict := "every floor that was measured is reached"
	if !r.Pass {
		verdict = "a floor is missed"
	}
	fmt.Fprintf(&b, "\n%s: medians of %d rounds, programs in turn\n", verdict, r.Rounds)
	_, err := w.Write(b.Bytes())
	return err
}

// DocsFile and ChartFile are what WriteDocs writes.
const (
	DocsFile  = "benchmarks.md"
	ChartFile = "benchmarks-plane.svg"
	docsBegin = "<!-- what follows is written by `make bench` -->"
	docsEnd   = "<!-- what `make bench` writes ends here -->"
)

// WriteDocs replaces what stands between two marks in DIR/benchmarks.md, and writes the
// chart beside it. A file without the marks is an error.
func (r *Result) WriteDocs(dir string) error {
	path := filepath.Join(dir, DocsFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	replaced, err := replaceBetween(string(text), r.Markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ChartFile), []byte(r.Chart()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(replaced), 0o644)
}

func replaceBetween(text, with string) (string, error) {
	head, rest, ok := strings.Cut(text, docsBegin)
	_, tail, ok2 := strings.Cut(rest, docsEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("the lines %q and %q are not there", docsBegin, docsEnd)
	}
	return head + docsBegin + "\n\n" + with + "\n" + docsEnd + tail, nil
}

// Markdown is the section of the documentation.
func (r *Result) Markdown() string {
	var b strings.Builder
	figures, latency, verdicts := r.rows()
	fmt.Fprintf(&b, "%s, commit %s, %s. Medians of %d rounds, in brackets the least and the most; %d s of TCP in each direction.\n\n", r.Date, r.Commit, r.Machine, r.Rounds, r.Seconds)
	for _, p := range r.Programs {
		fmt.Fprintf(&b, "- %s: %s\n", p.Name, p.About)
	}
	fmt.Fprintf(&b, "\n![ratios and floors](%s)\n", ChartFile)
	for _, t := range []struct {
		head []string
		rows [][]string
	}{{verdictHead, verdicts}, {figureHead, figures}, {latencyHead, latency}} {
		if len(t.rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
		for _, row := range t.rows {
			if last := len(row) - 1; row[last] == "MISS" {
				row[last] = "**miss**"
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	if len(r.Checks) > 0 {
		b.WriteString("\nSeen to be on when it ended:\n\n")
		for _, c := range r.Checks {
			fmt.Fprintf(&b, "- %s\n", c)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n%s.\n", n)
	}
	return b.String()
}
