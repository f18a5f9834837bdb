package bench

import (
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	if s := SpreadOf([]float64{5, 1, 3, 2}); s != (Spread{2.5, 1, 5, 4}) {
		t.Error(s)
	}
	if s := SpreadOf(nil); !math.IsNaN(s.Median) || s.N != 0 {
		t.Error(s)
	}
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(100 - i)
	}
	if p := Percentile(values, 0.99); p != 99 {
		t.Error("p99 of 1 to 100 is", p)
	}
	if p := Percentile([]float64{7}, 0.99); p != 7 {
		t.Error(p)
	}
}

func TestProcessorTime(t *testing.T) {
	d, err := processTime("12 (a) b (c)) S 1 12 12 0 -1 4194304 1 0 0 0 150 50 7 8 20 0 1 0 1 1")
	if err != nil || d != 2*time.Second {
		t.Error(d, err)
	}
	if _, err := processTime("12 nothing"); err == nil {
		t.Error("a line without a name was read")
	}
	if d, err := machineTime("cpu  100 10 50 9999 999 1 39 500 0 0\ncpu0 1\n"); err != nil || d != 2*time.Second {
		t.Error(d, err)
	}
	if _, err := CPUTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := MachineTime(); err != nil {
		t.Error(err)
	}
}

// five rounds in which the machine is twice as slow in the last two.
func fiveRounds() *Result {
	r := &Result{Subject: "own", Rounds: 5, Programs: []Program{{"own", "the <subject>"}, {"other", "another"}}}
	for i := 1; i <= 5; i++ {
		pace := 1e9
		if i > 3 {
			pace /= 2
		}
		r.Samples = append(r.Samples,
			Sample{Program: "own", Layout: "wire", Measure: "TCP", Round: i, Rate: 3 * pace, CPU: 2, Out: 1, In: 1},
			Sample{Program: "other", Layout: "wire", Measure: "TCP", Round: i, Rate: pace, CPU: 8, Out: 1, In: 1})
	}
	return r
}

func TestJudge(t *testing.T) {
	r := fiveRounds()
	fast := Floor{Name: "rate", Over: "other", Layout: "wire", Measure: "TCP", Metric: Rate, Floor: 3, Goal: 4}
	cheap := Floor{Name: "cpu", Over: "other", Layout: "wire", Measure: "TCP", Metric: CPU, Floor: 0.35, Goal: 0.25}
	elsewhere := fast
	elsewhere.Layout = "elsewhere"
	r.Judge([]Floor{fast, cheap, elsewhere})
	if !r.Pass || !r.Verdicts[0].Pass || r.Verdicts[0].AtGoal || !r.Verdicts[1].AtGoal || !r.Verdicts[2].Skipped {
		t.Errorf("%+v", r.Verdicts)
	}
	if q := r.Verdicts[0].Ratio; q != (Spread{3, 3, 3, 5}) {
		t.Error("a ratio is not of one round:", q)
	}
	fast.Floor = 3.1
	if r.Judge([]Floor{fast, cheap}); r.Pass {
		t.Error("a floor is missed, and it passes")
	}
	fast.Told = true
	if r.Judge([]Floor{fast, cheap}); !r.Pass {
		t.Error("what is only told decided")
	}
	if r.Judge([]Floor{elsewhere}); r.Pass {
		t.Error("it passes with nothing measured")
	}
}

func TestAdd(t *testing.T) {
	r, o := fiveRounds(), fiveRounds()
	text, err := o.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Add(text); err == nil {
		t.Error("the same layout was added twice")
	}
	for i := range r.Samples {
		r.Samples[i].Layout = "another wire"
	}
	if err := r.Add(text); err != nil || len(r.Layouts()) != 2 || len(r.Programs) != 2 {
		t.Error(err, r.Layouts(), r.Programs)
	}
	r.Commit = "other"
	if err := r.Add(text); err == nil {
		t.Error("another commit's was added")
	}
}

func TestReports(t *testing.T) {
	r := fiveRounds()
	r.Judge([]Floor{{Name: "rate", Over: "other", Layout: "wire", Measure: "TCP", Metric: Rate, Floor: 4, Goal: 5}})
	var b strings.Builder
	if err := r.Report(&b); err != nil || !strings.Contains(b.String(), "MISS") || !strings.Contains(b.String(), "a floor is missed") {
		t.Error(err, b.String())
	}
	dir := t.TempDir()
	path := filepath.Join(dir, DocsFile)
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteDocs(dir); err == nil {
		t.Error("a file without marks was overwritten")
	}
	if err := os.WriteFile(path, []byte("before\n"+docsBegin+"\nold\n"+docsEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.WriteDocs(dir); err != nil {
			t.Fatal(err)
		}
	}
	text, _ := os.ReadFile(path)
	if s := string(text); !strings.HasPrefix(s, "before\n") || !strings.HasSuffix(s, "\nafter\n") || strings.Contains(s, "old") ||
		strings.Count(s, "| rate | wire | TCP | 3.00 (3.00–3.00) | ≥ 4 (5) | **miss** |") != 1 {
		t.Error(s)
	}
	chart, _ := os.ReadFile(filepath.Join(dir, ChartFile))
	d := xml.NewDecoder(strings.NewReader(string(chart)))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal("the chart is no XML:", err)
		}
	}
	if !strings.Contains(string(chart), "own × 3.00") {
		t.Error("the chart does not tell the ratio")
	}
}

// The documentation has the place that is written to.
func TestDocsHaveMarks(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", DocsFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaceBetween(string(text), ""); err != nil {
		t.Error(err)
	}
}
