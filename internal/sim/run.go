package sim

import "tandem/internal/sim/trace"

// Run carries out a schedule.
func Run(s *Schedule) *Result { return newWorld(s, nil).run() }

// RunTraced does the same and tells what happens.
func RunTraced(s *Schedule, log *trace.Log) *Result { return newWorld(s, log).run() }
