package daemon

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// gcPercent is by how much of what lives the heap may grow between collections. With tens
// of thousands of tunnels a collection looks at millions of objects; at Go's 100 it took
// a quarter of what a member computes that takes them in.
const gcPercent = 200

// paceCollector has the heap collected less often as long as there is memory enough.
// GOGC and GOMEMLIMIT in the environment say otherwise.
func paceCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
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
