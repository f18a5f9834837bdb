package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	runmetrics "runtime/metrics"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// gcPercent is by how much of what lives the heap may grow between collections. With tens
// of thousands of tunnels a collection looks at millions of objects; at Go's 100 it took
// a quarter of what a member computes that takes them in.
const gcPercent = 200

// room is what may be allocated between two collections at least: with a small heap there
// would be one every few seconds while tunnels are set up, each of which holds up those
// under way for ten milliseconds.
const room = 96 << 20

// keepRoom raises the percentage after each collection for as long as the heap is small.
func keepRoom(least int64) {
	live := []runmetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	at := gcPercent
	type sentinel struct{ self *sentinel } // each collection finds one that nobody knows
	var again func(*sentinel)
	watch := func() { runtime.SetFinalizer(new(sentinel), again) }
	again = func(*sentinel) {
		runmetrics.Read(live)
		want := gcPercent
		if n := int64(live[0].Value.Uint64()); n > 0 {
			want = max(want, int(min(100*least/n, 10*gcPercent)))
		}
		if want*10 < at*9 || want*9 > at*10 {
			debug.SetGCPercent(want)
			at = want
		}
		watch()
	}
	watch()
}

// paceCollector has the heap collected less often as long as there is memory enough.
// GOGC and GOMEMLIMIT in the environment say otherwise.
func paceCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
		keepRoom(min(room, memoryHere()/64))
	}
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if n := memoryHere(); n > 0 {
		debug.SetMemoryLimit(n / 2)
	}
}

// memoryHere is the machine's memory in bytes, or what our control group may have of it;
// 0: not known.
func memoryHere() (n int64) {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		n = int64(s.Totalram) * int64(s.Unit)
	}
	text, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	if err != nil {
		return n
	}
	if most, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && most > 0 && (n == 0 || most < n) {
		n = most
	}
	return n
}
