package sim

import (
	"fmt"
	"runtime"
	"strings"

	"tandem/internal/sim/trace"
)

// RealEvery is how many seeds share one run with real cryptography, unless somebody
// wants another share.
const RealEvery = 8

// ForSeed is the schedule of a seed: every realEvery-th uses real cryptography, none
// with 0. Whoever says the same realEvery gets the same schedule.
func ForSeed(seed, realEvery uint64) *Schedule {
	return Generate(seed, realEvery > 0 && seed%realEvery == 0)
}

// RulePanic is broken by production code that panics.
const RulePanic Rule = "nothing panics"

// Run carries out a schedule.
func Run(s *Schedule) *Result { return RunTraced(s, nil) }

// RunTraced does the same and tells what happens, if log is not nil.
func RunTraced(s *Schedule, log *trace.Log) *Result {
	if s.Farm != nil {
		return newFarm(s, log).run()
	}
	return newWorld(s, log).run()
}

// panicked names the functions that were under way, without addresses: the same
// panic gives the same text.
func panicked() string {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	var out []string
	inside := false
	for {
		f, more := frames.Next()
		if name := strings.TrimPrefix(f.Function, "tandem/"); inside && name != f.Function && len(out) < 8 {
			out = append(out, fmt.Sprintf("%s (%s:%d)", name, f.File[strings.LastIndexByte(f.File, '/')+1:], f.Line))
		}
		inside = inside || f.Function == "runtime.gopanic"
		if !more {
			return strings.Join(out, " < ")
		}
	}
}
