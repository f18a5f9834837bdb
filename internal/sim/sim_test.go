package sim

import (
	"os"
	"strconv"
	"testing"
	"time"

	"tandem/internal/sim/trace"
)

func TestSeeds(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("N"))
	if n == 0 {
		n = 20
	}
	from, _ := strconv.Atoi(os.Getenv("FROM"))
	begin := time.Now()
	steps := 0
	for seed := from; seed < from+n; seed++ {
		s := Generate(uint64(seed), os.Getenv("REAL") != "")
		r := Run(s)
		steps += r.Steps
		if len(r.Violations) > 0 {
			t.Errorf("seed %d: %v", seed, r.Violations[0])
		}
		if testing.Verbose() && n < 5 {
			t.Logf("%s%+v", s, *r)
		}
	}
	t.Logf("%d seeds in %v, %d steps", n, time.Since(begin), steps)
}

func TestOne(t *testing.T) {
	seed, _ := strconv.Atoi(os.Getenv("SEED"))
	s := Generate(uint64(seed), os.Getenv("REAL") != "")
	l := trace.NewLog(1 << 17)
	r := RunTraced(s, l)
	f, _ := os.Create("/tmp/trace.txt")
	defer f.Close()
	f.WriteString(s.String())
	l.WriteText(f)
	t.Log(r.Violations)
}
