//go:build breakpoints

package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"time"

	"tandem/cluster"
	"tandem/internal/node"
)

// What follows are a test build's commands for measurements with many tunnels:
//
//	diagnose debug clone N     N tunnels more, out of the records of those that stand
//	diagnose debug held        what is held, without a look at each tunnel
//	diagnose debug memory      after a full collection
//	diagnose debug profile cpu|heap FILE [SECONDS]

// activation is when a scope became active in the data plane.
type activation struct {
	Scope string `json:"scope"`
	At    int64  `json:"at"` // Unix time in nanoseconds
}

func (b *breakpoint) note(e node.Effect) {
	if a, ok := e.(node.Activate); ok {
		b.activated = append(b.activated, activation{cluster.ScopeID(a.Scope).String(), time.Now().UnixNano()})
	}
}

// cloneTurn is how many clones of each scope the loop makes at a time.
const cloneTurn = 16

func cloneTunnels(s *session, args []string) error {
	d, ok := s.d.(*Daemon)
	if !ok || len(args) != 1 {
		return usagef("expected: N")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return usagef("expected a number")
	}
	if d.cluster == nil || d.cluster.farm == nil || d.cluster.farm.node == nil {
		return errNoFarm
	}
	made := 0
	for made < want {
		n := 0
		if cerr := d.loop.call(s.ctx, func(now time.Time) {
			n, err = d.cluster.farm.node.Clone(now, min(cloneTurn, max(1, (want-made)/8)))
		}); cerr != nil {
			return cerr
		}
		if err != nil {
			return err
		}
		if made += n; n == 0 { // the standbys lag behind
			select {
			case <-s.ctx.Done():
				return s.ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	s.printf("%d\n", made)
	return nil
}

// heldJSON is `diagnose debug held --json`.
type heldJSON struct {
	Owned     int          `json:"owned"`
	Standby   int          `json:"standby"`
	Whole     bool         `json:"whole"`
	Activated []activation `json:"activated"` // since the last call
	Started   int64        `json:"started"`   // Unix time in nanoseconds
}

func heldHere(s *session, _ []string) error {
	d, ok := s.d.(*Daemon)
	if !ok || d.cluster == nil || d.cluster.farm == nil || d.cluster.farm.node == nil {
		return errNoFarm
	}
	j := heldJSON{Started: d.started.UnixNano()}
	if err := d.loop.call(s.ctx, func(now time.Time) {
		j.Owned, j.Standby, j.Whole = d.cluster.farm.node.Held(now)
		j.Activated, d.breaks.activated = d.breaks.activated, nil
	}); err != nil {
		return err
	}
	return s.printJSON(j)
}

// memoryJSON is `diagnose debug memory --json`, in bytes.
type memoryJSON struct {
	Heap    uint64 `json:"heap"` // of live objects
	Objects uint64 `json:"objects"`
	System  uint64 `json:"system"` // taken from the system and not given back
}

func memory(s *session, _ []string) error {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return s.printJSON(memoryJSON{Heap: m.HeapAlloc, Objects: m.HeapObjects, System: m.Sys - m.HeapReleased})
}

func profile(s *session, args []string) error {
	if len(args) < 2 || args[0] != "cpu" && args[0] != "heap" {
		return usagef("expected: cpu|heap FILE [SECONDS]")
	}
	f, err := os.Create(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	if args[0] == "heap" {
		runtime.GC()
		return pprof.WriteHeapProfile(f)
	}
	seconds := 5
	if len(args) > 2 {
		if seconds, err = strconv.Atoi(args[2]); err != nil {
			return usagef("expected a number of seconds")
		}
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	select {
	case <-time.After(time.Duration(seconds) * time.Second):
	case <-s.ctx.Done():
	}
	return nil
}

func init() {
	extraCommands = append(extraCommands,
		command{"diagnose debug clone", "N", "test build: make tunnels out of those that stand", cloneTunnels},
		command{"diagnose debug held", "", "test build: what is held", heldHere},
		command{"diagnose debug memory", "", "test build: memory after a collection", memory},
		command{"diagnose debug profile", "cpu|heap FILE [SECONDS]", "test build: write a profile", profile})
}
