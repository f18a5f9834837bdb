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

// Between two collections the heap may grow by a percentage of what lives, or by a room if
// that is more. What lives lies scattered over what was allocated meanwhile and keeps its
// pages, so this decides what a tunnel takes in the end, too.
//
// Where somebody fills a member with tens of thousands of tunnels, a collection looks at
// millions of objects; at Go's 100 it took a quarter of what that member computes. Where
// tunnels are set up it holds up those under way for ten milliseconds or more, so there
// shall not be one every second.
var (
	fillPace  = pace{percent: 200, room: 192 << 20}
	setUpPace = pace{percent: 50, room: 32 << 20}
	calmPace  = pace{percent: 50}
)

type pace struct {
	percent int
	room    int64 // bytes
}

const (
	roomShare = 64              // a room is at most this part of the memory here
	busy      = 1 << 20         // bytes allocated in a second, from which on tunnels are being set up
	filling   = 96 << 20        // and from which on they come by the thousand
	settled   = 5 * time.Second // after the last such second the pace falls
)

// wants is the percentage of a pace for a heap of which live bytes live, with so much of a
// room at most.
func (p pace) wants(live, most int64) int {
	if live <= 0 {
		return p.percent
	}
	return max(p.percent, int(100*min(p.room, most)/live))
}

// paces chooses the pace by what is allocated in a second. It begins as if it were being
// filled: a member that comes back is.
type paces struct {
	filled, setUp time.Time // when it was last so
}

func (s *paces) at(now time.Time, allocated uint64) pace {
	if s.filled.IsZero() || allocated >= filling {
		s.filled = now
	}
	if allocated >= busy {
		s.setUp = now
	}
	switch {
	case now.Sub(s.filled) < settled:
		return fillPace
	case now.Sub(s.setUp) < settled:
		return setUpPace
	}
	return calmPace
}

// keepRoom sets the percentage as what is allocated asks for.
func keepRoom(most int64) {
	figures := []heap.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	var s paces
	var allocated uint64
	at := fillPace.percent
	for now := range time.Tick(time.Second) {
		heap.Read(figures)
		n := figures[0].Value.Uint64()
		p := s.at(now, n-allocated)
		allocated = n
		want := p.wants(int64(figures[1].Value.Uint64()), most)
		if want*10 < at*9 || want*9 > at*10 { // a change stops everything for a moment
			debug.SetGCPercent(want)
			if p == calmPace {
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
		debug.SetGCPercent(fillPace.percent)
		go keepRoom(memoryHere() / roomShare)
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
