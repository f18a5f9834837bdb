// Command hunt runs seeds of internal/sim in order until one violates a rule, and
// says which. scripts/planted.sh builds it twice: with a planted bug, and without.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"tandem/internal/sim"
)

// stuck is after how many seconds of this process a run counts as one that never ends.
const stuck = 180

var kind sim.Kind // of the schedules

func main() {
	from := flag.Uint64("from", 0, "the first seed")
	to := flag.Uint64("to", 0, "the last seed")
	all := flag.Bool("all", false, "go on after a violation")
	flag.StringVar((*string)(&kind), "kind", "", "seeds of this kind instead of pairs: farm, vcluster or facing")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "how many runs at a time")
	flag.Parse()
	found := false
	for next := *from; next <= *to; next += uint64(*workers) {
		n := min(uint64(*workers), *to-next+1)
		for i, v := range together(next, n) {
			if v != "" {
				// A line for scripts: seed, rule, text.
				fmt.Printf("%d\t%s\n", next+uint64(i), v)
				found = true
				if !*all {
					os.Exit(1)
				}
			}
		}
	}
	if found {
		os.Exit(1)
	}
}

// together runs n seeds at a time; the answers are rule and text, empty for none.
func together(from, n uint64) []string {
	out := make([]string, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { out[i] = one(from + i) })
	}
	all.Wait()
	return out
}

func one(seed uint64) string {
	done := make(chan string, 1)
	go func() {
		r := sim.Run(kind.Schedule(seed, sim.RealEvery))
		if len(r.Violations) == 0 {
			done <- ""
			return
		}
		v := r.Violations[0]
		done <- fmt.Sprintf("%s\t%v: %s", v.Rule, v.At, strings.ReplaceAll(v.Text, "\n", " "))
	}()
	// Counted one by one: while the process is stopped, time goes on and the run does not.
	for range stuck {
		select {
		case v := <-done:
			return v
		case <-time.After(time.Second):
		}
	}
	return fmt.Sprintf("%s\tthe run did not end within %d s", sim.RuleBounded, stuck)
}
