package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"tandem/internal/sim"
)

// stuck is after how much real time a run is given up: an ordinary one takes a tenth
// of a second.
const stuck = 3 * time.Minute

// fleet runs schedules on some workers and adds them up.
type fleet struct {
	out   io.Writer
	o     options
	begin time.Time

	mu    sync.Mutex
	next  uint64 // index of the next job
	sum   *sim.Summary
	under map[uint64]time.Time // what runs, since when
	found int                  // violations so far
}

// sweep runs o.seeds seeds and reports.
func sweep(out io.Writer, o options) (bool, error) {
	f := &fleet{out: out, o: o, begin: time.Now(), sum: sim.NewSummary(), under: map[uint64]time.Time{}}
	fmt.Fprintf(out, "seeds %d to %d, %d at a time\n", o.from, o.from+o.seeds-1, o.workers)
	f.each(o.seeds, "seeds", func(i uint64) *sim.Schedule { return sim.ForSeed(o.from+i, o.every) })
	fmt.Fprintln(out)
	f.sum.Write(out)
	fmt.Fprintln(out)
	f.sum.Coverage.Write(out)
	took := time.Since(f.begin)
	fmt.Fprintf(out, "\n%d schedules in %v\n", f.sum.Schedules, took.Round(time.Second))
	if o.json != "" {
		b, err := json.MarshalIndent(f.sum.Figures(took), "", "  ")
		if err == nil {
			err = os.WriteFile(o.json, append(b, '\n'), 0o666)
		}
		if err != nil {
			return false, err
		}
	}
	found := f.sum.SortedViolations()
	if len(found) == 0 {
		fmt.Fprintln(out, "0 violations")
		return true, nil
	}
	fmt.Fprintf(out, "%d VIOLATIONS\n", len(found))
	for _, v := range found {
		fmt.Fprintf(out, "  seed %d: %s\n", v.Seed, v.Violation)
	}
	return false, f.explain(found)
}

// explain shrinks some violations, one of each rule first.
func (f *fleet) explain(found []sim.Found) error {
	var first, others []sim.Found
	told := map[sim.Rule]bool{}
	for _, v := range found {
		if told[v.Violation.Rule] {
			others = append(others, v)
		} else {
			first = append(first, v)
		}
		told[v.Violation.Rule] = true
	}
	for i, v := range append(first, others...) {
		if i >= f.o.shrink {
			break
		}
		fmt.Fprintf(f.out, "\nseed %d: %s\n", v.Seed, v.Violation)
		dir := fmt.Sprintf("out/sim/seed-%d", v.Seed)
		if f.o.out != "" {
			dir = fmt.Sprintf("%s/seed-%d", f.o.out, v.Seed)
		}
		if err := shrink(f.out, sim.ForSeed(v.Seed, f.o.every), v.Violation.Rule, dir+"/minimal", f.o); err != nil {
			return err
		}
		again := ""
		if f.o.every != sim.RealEvery {
			again = fmt.Sprintf(" REAL=1/%d", f.o.every)
		}
		fmt.Fprintf(f.out, "replay the whole seed with: make sim SEED=%d%s\n", v.Seed, again)
	}
	return nil
}

// each runs count schedules and shows how far it is.
func (f *fleet) each(count uint64, what string, schedule func(i uint64) *sim.Schedule) {
	f.next = 0
	begin := time.Now()
	done := make(chan struct{})
	var shown sync.WaitGroup
	shown.Add(1)
	go func() {
		defer shown.Done()
		t := time.NewTicker(5 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				f.progress(begin, count, what)
			}
		}
	}()
	var workers sync.WaitGroup
	for range max(1, f.o.workers) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			sum := sim.NewSummary()
			for {
				i, ok := f.take(count)
				if !ok {
					break
				}
				s := schedule(i)
				r := sim.Run(s)
				sum.Add(s, r)
				f.finish(i, s, r)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.sum.Merge(sum)
		}()
	}
	workers.Wait()
	close(done)
	shown.Wait()
}

func (f *fleet) take(count uint64) (uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next >= count {
		return 0, false
	}
	i := f.next
	f.next++
	f.under[i] = time.Now()
	return i, true
}

func (f *fleet) finish(i uint64, s *sim.Schedule, r *sim.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.under, i)
	for _, v := range r.Violations {
		fmt.Fprintf(f.out, "VIOLATION seed %d: %s\n", s.Seed, v)
		f.found++
	}
}

// progress prints one line, and gives up when a run does not come to an end.
func (f *fleet) progress(begin time.Time, count uint64, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.next - uint64(len(f.under))
	took := time.Since(begin)
	rate := float64(n) / took.Seconds()
	left := "?"
	if n > 0 {
		left = time.Duration(float64(count-n) / rate * float64(time.Second)).Round(time.Second).String()
	}
	fmt.Fprintf(f.out, "%d of %d %s, %.1f a second, %d violations, %s to go\n", n, count, what, rate, f.found, left)
	for i, since := range f.under {
		if time.Since(since) > stuck {
			fmt.Fprintf(f.out, "VIOLATION: run %d of these %s (seed %d) has not come to an end in %v\n", i, what, f.o.from+i, stuck)
			os.Exit(1)
		}
	}
}
