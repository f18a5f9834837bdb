// Command simulate runs seeds of internal/sim, or one of them, and tells what it
// found. `make sim` is its usual way in; --help teaches.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem/internal/sim"
)

const help = `simulate runs whole clusters in virtual time, each from one seed, and checks the
invariants of DESIGN.md while they run (docs/simulation.md says what is real and
what is a model).

  make sim SEEDS=1000              seeds 0 to 999; exit status 1 if one violates a rule
  make sim SEEDS=1000 FROM=5000    seeds 5000 to 5999
  make sim SEEDS=1000 REAL=1       all with real cryptography (1/8 is usual, 0: none)
  make sim SEEDS=0 FARM_SEEDS=1000 farms instead of pairs; both with SEEDS=1000
  make sim FARM_SEED=42            replays a farm's seed
  make sim SEEDS=0 VCLUSTER_SEEDS=1000
                                   pairs with virtual clusters; VCLUSTER_SEED=42 replays
  make sim SEEDS=0 FACING_SEEDS=1000
                                   two pairs that face each other; FACING_SEED=42 replays
  make sim SEED=42                 replays seed 42 and writes its trace and diagrams
  make sim SEED=42 CRASH="before node.Claim"
                                   the same with a crash at the first such moment
  make sim SCHEDULE=out/sim/seed-42/minimal/schedule.json
                                   replays a schedule, for example a shrunk one

A seed decides everything: cluster, clients, network, traffic, faults. Replaying it
gives the same run, byte for byte. Whether it uses real cryptography is decided by
the seed too (every 8th does), so that a replay needs no more than the number; with
another REAL, say it again when replaying.

On a violation the schedule is shrunk: what the violation does not need is dropped.
A shrunk schedule has no seed of its own; it is written as schedule.json. In the
folder of a replayed seed (out/sim/seed-N, or --out) you find

  schedule.txt   what the seed makes: configuration, faults, traffic, by time
  trace.txt      what happened, line by line
  diagram.txt    the sequence diagram of what led to the violation; diagram.svg too
  schedule.json  the schedule for --schedule; edit it and see what changes
  minimal/       the same for the shrunk schedule: read this first

Flags:
`

type options struct {
	seeds, from, every uint64
	kinds              map[sim.Kind]*kindOptions
	seed, schedule     string
	crash, census      string
	out, json          string
	workers, shrink    int
	runs               int
	at                 time.Duration
	coverage           bool
}

// kindOptions are of a kind of schedules other than pairs.
type kindOptions struct {
	seeds uint64
	seed  string // to replay
}

// lastKind is the one that is run last.
func (o *options) lastKind() (last sim.Kind) {
	for _, k := range sim.Kinds {
		if o.kinds[k].seeds > 0 {
			last = k
		}
	}
	return last
}

func main() {
	debug.SetGCPercent(400) // worlds are small and short-lived
	os.Exit(run(os.Args[1:], os.Stdout))
}

func run(args []string, out io.Writer) int {
	var o options
	var share string
	f := flag.NewFlagSet("simulate", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprint(out, help)
		f.PrintDefaults()
	}
	f.Uint64Var(&o.seeds, "seeds", 200, "how many seeds to run")
	o.kinds = map[sim.Kind]*kindOptions{}
	for _, k := range sim.Kinds {
		x := &kindOptions{}
		o.kinds[k] = x
		f.Uint64Var(&x.seeds, string(k)+"-seeds", 0, "how many seeds of "+k.Plural()+" to run before")
		f.StringVar(&x.seed, string(k)+"-seed", "", "replay this seed of "+k.Plural())
	}
	f.Uint64Var(&o.from, "from", 0, "the first of them")
	f.StringVar(&share, "real", "1/8", "share of seeds with real cryptography: 1/n, 1 or 0")
	f.StringVar(&o.seed, "seed", "", "replay this seed")
	f.StringVar(&o.crash, "crash", "", "with --seed: kill the daemon at this crash point as well, as the coverage report names it")
	f.StringVar(&o.schedule, "schedule", "", "replay the schedule in this file")
	f.StringVar(&o.out, "out", "", "folder for traces and diagrams (out/sim/…)")
	f.StringVar(&o.json, "json", "", "write the figures to this file")
	f.IntVar(&o.workers, "workers", runtime.GOMAXPROCS(0), "how many runs at a time")
	f.IntVar(&o.shrink, "shrink", 3, "how many violations to shrink, one of each rule first; 0: none")
	f.IntVar(&o.runs, "shrink-runs", 600, "how many runs to shrink one violation with")
	f.DurationVar(&o.at, "at", 0, "with --seed or --schedule, and no violation: draw what led to this moment")
	f.StringVar(&o.census, "census", "", "write census_gen.go to this file (go generate does)")
	f.BoolVar(&o.coverage, "coverage", true, "when all seeds have run, crash once more at every crash point that they passed and at which none crashed")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	var err error
	if o.every, err = parseShare(share); err == nil && f.NArg() > 0 {
		err = fmt.Errorf("what is %q? Try --help", f.Arg(0))
	}
	if err == nil {
		var ok bool
		kind := sim.KindPair
		for _, k := range sim.Kinds {
			if o.kinds[k].seed != "" {
				kind = k
			}
		}
		switch {
		case kind != sim.KindPair:
			ok, err = replayKind(out, kind, o)
		case o.seed != "":
			ok, err = replaySeed(out, o)
		case o.schedule != "":
			ok, err = replayFile(out, o)
		case o.census != "":
			ok, err = true, census(o)
		default:
			ok, err = sweep(out, o)
		}
		if err == nil && !ok {
			return 1
		}
	}
	if err != nil {
		fmt.Fprintln(out, "simulate:", err)
		return 2
	}
	return 0
}

// parseShare reads 1/n, 1 or 0 as n, 1 and 0: every n-th seed, all, none.
func parseShare(s string) (uint64, error) {
	if s == "0" {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "1/"), 10, 32)
	if err != nil || n == 0 || s != "1" && !strings.HasPrefix(s, "1/") {
		return 0, fmt.Errorf("--real %q is neither 1/n, 1 nor 0", s)
	}
	return n, nil
}

func replaySeed(out io.Writer, o options) (bool, error) {
	seed, err := strconv.ParseUint(o.seed, 10, 64)
	if err != nil {
		return false, fmt.Errorf("--seed %q is not a number from 0 to 2^64-1", o.seed)
	}
	s, err := seeded(seed, o.crash, o.every)
	if err != nil {
		return false, err
	}
	dir := fmt.Sprintf("out/sim/seed-%d", seed)
	if o.crash != "" {
		dir += "-" + slug(o.crash)
	}
	if o.out != "" {
		dir = o.out
	}
	return replay(out, s, dir, o)
}

func replayKind(out io.Writer, k sim.Kind, o options) (bool, error) {
	seed, err := strconv.ParseUint(o.kinds[k].seed, 10, 64)
	if err != nil {
		return false, fmt.Errorf("--%s-seed %q is not a number from 0 to 2^64-1", k, o.kinds[k].seed)
	}
	dir := fmt.Sprintf("out/sim/%s-%d", k, seed)
	if o.out != "" {
		dir = o.out
	}
	return replay(out, k.Schedule(seed, o.every), dir, o)
}

func replayFile(out io.Writer, o options) (bool, error) {
	s, err := sim.ReadSchedule(o.schedule)
	if err != nil {
		return false, err
	}
	dir := "out/sim/schedule"
	if o.out != "" {
		dir = o.out
	}
	o.shrink = 0
	return replay(out, s, dir, o)
}

// replay runs one schedule and writes its story, and that of the shrunk one.
func replay(out io.Writer, s *sim.Schedule, dir string, o options) (bool, error) {
	st, err := sim.WriteStory(dir, s, o.at)
	if err != nil {
		return false, err
	}
	fmt.Fprint(out, s)
	tellStory(out, st)
	v := st.Result.Violations
	if len(v) == 0 {
		return true, nil
	}
	if o.shrink == 0 {
		return false, nil
	}
	return false, shrink(out, s, v[0].Rule, dir+"/minimal", o)
}

func tellStory(out io.Writer, st *sim.Story) {
	r := st.Result
	fmt.Fprintf(out, "\n%.1f virtual minutes, %d faults, %d takeovers, %d rekeys, %d packets delivered of %d, digest %016x\n",
		r.Virtual.Minutes(), r.FaultCount(), r.Takeovers, r.ChildRekeys+r.IKERekeys, r.Delivered, r.Packets, r.Digest)
	if len(r.Violations) == 0 {
		fmt.Fprintln(out, "no rule is violated")
	}
	for _, v := range r.Violations {
		fmt.Fprintf(out, "VIOLATION of %q at %v:\n  %s\n", v.Rule, v.At, v.Text)
	}
	fmt.Fprintf(out, "written to %s: %s\n", st.Dir, strings.Join(st.Files, ", "))
}

// shrink shrinks a schedule and tells its story.
func shrink(out io.Writer, s *sim.Schedule, rule sim.Rule, dir string, o options) error {
	k := sim.Shrink(s, rule, o.runs)
	st, err := sim.WriteStory(dir, k.Schedule, 0)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nshrunk in %d runs, from %d actions to %d:\n%s", k.Runs, len(s.Actions), len(k.Schedule.Actions), k.Schedule)
	tellStory(out, st)
	fmt.Fprintf(out, "replay it with: make sim SCHEDULE=%s/schedule.json\n", dir)
	return nil
}

func census(o options) error {
	text, err := sim.Census(func(count int, run func(i int)) {
		next := make(chan int)
		var workers sync.WaitGroup
		for range max(1, o.workers) {
			workers.Go(func() {
				for i := range next {
					run(i)
				}
			})
		}
		for i := range count {
			next <- i
		}
		close(next)
		workers.Wait()
	})
	if err != nil {
		return err
	}
	return os.WriteFile(o.census, text, 0o666)
}
