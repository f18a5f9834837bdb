package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"tandem/internal/sim/trace"
)

func env(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%s is not a number", name, text)
	}
	return n
}

// simulate runs seeds, a chunk at a time, and judges each chunk.
func simulate(t *testing.T, seeds, from, chunk uint64, schedule func(seed uint64) *Schedule, judge func(t *testing.T, part *Summary, begin, end uint64)) *Summary {
	t.Helper()
	var mu sync.Mutex
	sum := NewSummary()
	t.Run("seeds", func(t *testing.T) {
		for begin := from; begin < from+seeds; begin += chunk {
			end := min(begin+chunk, from+seeds)
			t.Run(fmt.Sprintf("%d-%d", begin, end-1), func(t *testing.T) {
				t.Parallel()
				part := NewSummary()
				for seed := begin; seed < end; seed++ {
					s := schedule(seed)
					part.Add(s, Run(s))
				}
				judge(t, part, begin, end)
				mu.Lock()
				defer mu.Unlock()
				sum.Merge(part)
			})
		}
	})
	t.Log(sum.Line())
	return sum
}

// TestSimulation runs seeds and fails on any violation. SIM_SEEDS and SIM_FROM ask
// for others than usual.
func TestSimulation(t *testing.T) {
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 500
	}
	seeds = env(t, "SIM_SEEDS", seeds)
	sum := simulate(t, seeds, env(t, "SIM_FROM", 0), 25, func(seed uint64) *Schedule { return ForSeed(seed, RealEvery) },
		func(t *testing.T, part *Summary, begin, end uint64) {
			for _, v := range part.SortedViolations() {
				t.Errorf("seed %d: %s\nreplay it with: make sim SEED=%d", v.Seed, v.Violation, v.Seed)
			}
		})
	for c := range sum.Coverage.Moments {
		if !slices.Contains(effectTypes, c.Effect) {
			t.Errorf("a gateway carried out %s, which is not among the generated effect types", c.Effect)
		}
	}
	if seeds < 500 {
		return
	}
	if u := sum.Coverage.Unseen(); len(u) > 0 {
		t.Errorf("no gateway carried out %v", u)
	}
	if m := sum.Median(); m.Minutes < 10 || m.Faults < 3 || m.Takeovers < 1 || m.Rekeys < 1 {
		t.Errorf("the median schedule is too calm: %+v", m)
	}
	if sum.Real < int(seeds/RealEvery) {
		t.Errorf("only %d runs with real cryptography", sum.Real)
	}
	for _, v := range allVerbs(t) {
		if sum.Faults[v] == 0 {
			t.Errorf("%s never happened", v)
		}
	}
}

// allVerbs reads the verbs from the source, so that none is forgotten.
func allVerbs(t *testing.T) (out []Verb) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "schedule.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Verb" {
				name, _ := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				out = append(out, Verb(name))
			}
		}
		return true
	})
	if len(out) < 30 {
		t.Fatalf("only %d verbs were found: %v", len(out), out)
	}
	return out
}

// traced is the trace of a run as text, after its digest.
func traced(s *Schedule) []byte {
	log := trace.NewLog(traceLimit)
	r := RunTraced(s, log)
	var b bytes.Buffer
	fmt.Fprintf(&b, "digest %016x, %d steps, %v\n", r.Digest, r.Steps, r.Violations)
	if err := log.WriteText(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// firstDifference shows where two traces part.
func firstDifference(a, b []byte) string {
	x, y := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d:\n%s\n%s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}

// determined are the seeds whose traces are compared: with counting and real
// cryptography.
func determined() []*Schedule {
	var out []*Schedule
	for _, seed := range []uint64{0, 8, 16} {
		out = append(out, Generate(seed, true))
	}
	for _, seed := range []uint64{1, 2, 3, 5, 10} {
		out = append(out, Generate(seed, false))
	}
	for _, seed := range []uint64{0, 1, 4} {
		out = append(out, ForFarmSeed(seed))
	}
	for _, seed := range []uint64{1, 8} {
		out = append(out, ForVClusterSeed(seed, RealEvery), ForFacingSeed(seed, RealEvery))
	}
	return out
}

func TestSameSeedSameTrace(t *testing.T) {
	for _, s := range determined() {
		again := Generate(s.Seed, s.Real)
		if k := s.Kind(); k != KindPair {
			again = k.Schedule(s.Seed, RealEvery)
		}
		a, b := traced(s), traced(again)
		if !bytes.Equal(a, b) {
			t.Errorf("seed %d, real cryptography %v: %s", s.Seed, s.Real, firstDifference(a, b))
		}
		if len(a) < 10_000 {
			t.Errorf("seed %d: a trace of %d bytes", s.Seed, len(a))
		}
		// Whoever does not look sees the same run.
		if r := Run(s); !strings.HasPrefix(string(a), fmt.Sprintf("digest %016x, %d steps", r.Digest, r.Steps)) {
			t.Errorf("seed %d: with a trace it is another run than without", s.Seed)
		}
	}
}

// TestSameTraceInAnyProcess compares processes with GOMAXPROCS 1 and 2: other
// hash seeds, other addresses, another order of goroutines if there were any.
func TestSameTraceInAnyProcess(t *testing.T) {
	if os.Getenv("SIM_PRINT_TRACES") != "" {
		for _, s := range determined() {
			fmt.Printf("trace of seed %d, kind %q: %x\n", s.Seed, s.Kind(), sha256.Sum256(traced(s)))
		}
		return
	}
	sums := map[int]string{}
	for _, procs := range []int{1, 2} {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestSameTraceInAnyProcess$")
		cmd.Env = append(os.Environ(), "SIM_PRINT_TRACES=1", fmt.Sprintf("GOMAXPROCS=%d", procs))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("GOMAXPROCS=%d: %v\n%s", procs, err, out)
		}
		for _, l := range strings.Split(string(out), "\n") {
			if strings.HasPrefix(l, "trace of seed") {
				sums[procs] += l + "\n"
			}
		}
		if n := strings.Count(sums[procs], "\n"); n != len(determined()) {
			t.Fatalf("GOMAXPROCS=%d printed %d traces:\n%s", procs, n, out)
		}
	}
	if sums[1] != sums[2] {
		t.Errorf("with GOMAXPROCS=1\n%swith 2\n%s", sums[1], sums[2])
	}
	here := ""
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, s := range determined() {
		here += fmt.Sprintf("trace of seed %d, kind %q: %x\n", s.Seed, s.Kind(), sha256.Sum256(traced(s)))
	}
	if here != sums[1] {
		t.Errorf("in this process\n%sin another\n%s", here, sums[1])
	}
}
