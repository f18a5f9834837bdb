package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	heap "runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// gcPercent is by how much of what lives the heap may grow between collections. With tens
// of thousands of tunnels a collection looks at millions of objects; at Go's 100 it took
// a quarter of what a member computes that takes them in.
const gcPercent = 200

// While much is allocated, as when many tunnels are set up, at least room comes together
// between two collections: with a small heap there would be one every few seconds, each of
// which holds up the set-ups under way for ten milliseconds or more.
const (
	room      = 192 << 20
	roomShare = 64              // room is at most this part of the memory here
	busy      = 1 << 20         // bytes a second from which on it is much
	calm      = 5 * time.Second // with less than that, before the room is given back
)

// keepRoom raises the percentage for as long as much is allocated and the heap is small.
func keepRoom(least int64) {
	figures := []heap.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	var allocated uint64
	var last time.Time // that it was much
	at := gcPercent
	for now := range time.Tick(time.Second) {
		heap.Read(figures)
		n := figures[0].Value.Uint64()
		if n-allocated >= busy {
			last = now
		}
		allocated = n
		want := gcPercent
		if live := int64(figures[1].Value.Uint64()); live > 0 && now.Sub(last) < calm {
			want = max(want, int(100*least/live))
		}
		if want*10 < at*9 || want*9 > at*10 { // a change stops everything for a moment
			debug.SetGCPercent(want)
			if want == gcPercent {
				runtime.GC() // now that nothing waits for it
			}
			at = want
		}
	}
}

// paceCollector has the heap collected less often as long as there is memory enough.
// GOGC and GOMEMLIMIT in the environment say otherwise.
func paceCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
		go keepRoom(min(room, memoryHere()/roomShare))
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
