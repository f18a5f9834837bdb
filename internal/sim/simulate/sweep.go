package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
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
	found []sim.Found // in runs of other kinds than pairs
	under map[uint64]underWay
	count int // violations so far
}

// underWay is a run that has not ended.
type underWay struct {
	since time.Time
	what  sim.Found // its name
}

// sweep runs o.seeds seeds and reports.
func sweep(out io.Writer, o options) (bool, error) {
	f := &fleet{out: out, o: o, begin: time.Now(), sum: sim.NewSummary(), under: map[uint64]underWay{}}
	last := f.sum
	for _, k := range sim.Kinds {
		if n := o.kinds[k].seeds; n > 0 {
			last = sim.NewSummary()
			fmt.Fprintf(out, "seeds %d to %d of %s, %d at a time\n", o.from, o.from+n-1, k.Plural(), o.workers)
			f.each(n, k.Plural(), last, func(i uint64) *sim.Schedule { return k.Schedule(o.from+i, o.every) })
			fmt.Fprintln(out)
			last.WriteKind(out, k)
			if o.seeds > 0 || k != o.lastKind() {
				f.found = append(f.found, last.SortedViolations()...)
				f.begin = time.Now()
			}
		}
	}
	if o.seeds == 0 && last != f.sum {
		return f.end(last)
	}
	fmt.Fprintf(out, "seeds %d to %d, %d at a time\n", o.from, o.from+o.seeds-1, o.workers)
	f.each(o.seeds, "seeds", f.sum, func(i uint64) *sim.Schedule { return sim.ForSeed(o.from+i, o.every) })
	if missing := f.sum.Coverage.Missing(); o.coverage && len(missing) > 0 {
		fmt.Fprintf(out, "%d crash points that no crash reached: a run aimed at each\n", len(missing))
		aimed := sim.NewSummary()
		f.each(uint64(len(missing)), "crash points", aimed, func(i uint64) *sim.Schedule {
			seed, _ := f.sum.Coverage.Seed(missing[i])
			s := sim.ForSeed(seed, o.every)
			s.Crash = sim.Crash{Cell: missing[i], Nth: 1}
			return s
		})
		f.sum.MergeAimed(aimed)
	}
	fmt.Fprintln(out)
	f.sum.Write(out)
	fmt.Fprintln(out)
	f.sum.Coverage.Write(out)
	return f.end(f.sum)
}

// end tells how long it took, writes the figures, and explains what was found.
func (f *fleet) end(sum *sim.Summary) (bool, error) {
	out, o := f.out, f.o
	took := time.Since(f.begin)
	fmt.Fprintf(out, "\n%d schedules and %d aimed runs in %v\n", sum.Schedules, sum.Aimed, took.Round(time.Second))
	if o.json != "" {
		b, err := json.MarshalIndent(sum.Figures(took), "", "  ")
		if err == nil {
			err = os.WriteFile(o.json, append(b, '\n'), 0o666)
		}
		if err != nil {
			return false, err
		}
	}
	found := append(f.found, sum.SortedViolations()...)
	if len(found) == 0 {
		fmt.Fprintln(out, "0 violations")
		return true, nil
	}
	fmt.Fprintf(out, "%d VIOLATIONS\n", len(found))
	for _, v := range found {
		fmt.Fprintf(out, "  %s: %s\n", name(v), v.Violation)
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
		fmt.Fprintf(f.out, "\n%s: %s\n", name(v), v.Violation)
		dir := fmt.Sprintf("out/sim/seed-%d", v.Seed)
		if f.o.out != "" {
			dir = fmt.Sprintf("%s/seed-%d", f.o.out, v.Seed)
		}
		if v.Kind != sim.KindPair {
			dir = fmt.Sprintf("%s/%s-%d", strings.TrimSuffix(dir, fmt.Sprintf("/seed-%d", v.Seed)), v.Kind, v.Seed)
		}
		s := v.Kind.Schedule(v.Seed, f.o.every)
		if v.Crash != "" {
			var err error
			if s, err = seeded(v.Seed, v.Crash, f.o.every); err != nil {
				return err
			}
		}
		if v.Crash != "" {
			dir += "-" + slug(v.Crash)
		}
		if err := shrink(f.out, s, v.Violation.Rule, dir+"/minimal", f.o); err != nil {
			return err
		}
		fmt.Fprintf(f.out, "replay the whole schedule with: %s\n", command(v, f.o.every))
	}
	return nil
}

// slug is a text as part of a file's name.
func slug(text string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, text), "-")
}

// name is how a run is called.
func name(v sim.Found) string {
	if v.Kind != sim.KindPair {
		return fmt.Sprintf("%s seed %d", v.Kind, v.Seed)
	}
	if v.Crash == "" {
		return fmt.Sprintf("seed %d", v.Seed)
	}
	return fmt.Sprintf("seed %d with a crash %s", v.Seed, v.Crash)
}

// command replays a run.
func command(v sim.Found, every uint64) string {
	if v.Kind == sim.KindFarm {
		return fmt.Sprintf("make sim FARM_SEED=%d", v.Seed)
	}
	c := fmt.Sprintf("make sim %sSEED=%d", v.Kind.Variable(), v.Seed)
	if v.Crash != "" {
		c += fmt.Sprintf(" CRASH=%q", v.Crash)
	}
	switch every {
	case sim.RealEvery:
		return c
	case 0, 1:
		return fmt.Sprintf("%s REAL=%d", c, every)
	}
	return fmt.Sprintf("%s REAL=1/%d", c, every)
}

// seeded is the schedule of a seed, with a crash at a crash point if one is named.
func seeded(seed uint64, crash string, every uint64) (*sim.Schedule, error) {
	s := sim.ForSeed(seed, every)
	if crash != "" {
		c, err := sim.ParseCell(crash)
		if err != nil {
			return nil, err
		}
		s.Crash = sim.Crash{Cell: c, Nth: 1}
	}
	return s, nil
}

// each runs count schedules, adds them to all, and shows how far it is.
func (f *fleet) each(count uint64, what string, all *sim.Summary, schedule func(i uint64) *sim.Schedule) {
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
				f.started(i, s)
				r := sim.Run(s)
				sum.Add(s, r)
				f.finish(i, s, r)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			all.Merge(sum)
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
	f.under[i] = underWay{since: time.Now()}
	return i, true
}

func (f *fleet) started(i uint64, s *sim.Schedule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.under[i] = underWay{time.Now(), found(s)}
}

// found names a run.
func found(s *sim.Schedule) sim.Found {
	x := sim.Found{Seed: s.Seed, Kind: s.Kind(), Real: s.Real}
	if s.Crash.Nth > 0 {
		x.Crash = s.Crash.Cell.String()
	}
	return x
}

func (f *fleet) finish(i uint64, s *sim.Schedule, r *sim.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.under, i)
	for _, v := range r.Violations {
		fmt.Fprintf(f.out, "VIOLATION %s: %s\n", name(found(s)), v)
		f.count++
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
	fmt.Fprintf(f.out, "%d of %d %s, %.1f a second, %d violations, %s to go\n", n, count, what, rate, f.count, left)
	for _, x := range f.under {
		if time.Since(x.since) > stuck {
			fmt.Fprintf(f.out, "VIOLATION %s: the run has not come to an end in %v; replay it with: %s\n", name(x.what), stuck, command(x.what, f.o.every))
			os.Exit(1)
		}
	}
}
