package guardian

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fifoPriority is low among real-time priorities: above everything normal, below
// the kernel's own threads.
const fifoPriority = 10

// fifoMost is for how long, in microseconds, a thread may compute under SCHED_FIFO without
// ever sleeping: the kernel ends a process with one that does, which whoever
// started it starts again. Otherwise nothing else would run on that processor for good.
const fifoMost = 2_000_000

// wakefulness keeps the loop from fifoMost, and leaves others something of the processor,
// when there is always something to read, as in a flood.
type wakefulness struct{ slept time.Time }

const (
	awakeMost = 100 * time.Millisecond
	rest      = 100 * time.Microsecond
)

// tooLong says, after every wait, whether to sleep whatever comes; a wait without events was
// a sleep.
func (w *wakefulness) tooLong(now time.Time, events bool) bool {
	long := events && now.Sub(w.slept) >= awakeMost
	if long || !events {
		w.slept = now
	}
	return long
}

// setFIFO puts every thread of this process except one under SCHED_FIFO. Threads
// started by such a thread inherit it.
func setFIFO(except int) error {
	if err := unix.Setrlimit(unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: fifoMost, Max: fifoMost}); err != nil {
		return fmt.Errorf("SCHED_FIFO: %w", err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil || tid == except {
			continue
		}
		a := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: fifoPriority}
		if err := unix.SchedSetAttr(tid, a, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("SCHED_FIFO: %w", err)
		}
	}
	return nil
}

// daemonNice puts the daemon ahead of what else the host does: it carries
// everybody's packets, and what waits for the processor looks like an outage.
const daemonNice = -10

// setDaemon gives the calling thread, and with it the daemons that it starts,
// normal scheduling, ahead of others where that is permitted.
func setDaemon() error {
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: daemonNice}
	if unix.SchedSetAttr(0, &a, 0) == nil {
		return nil
	}
	a.Nice = 0
	return unix.SchedSetAttr(0, &a, 0)
}

// favourSession does the same between sessions, for a kernel that shares the
// processor out among these first (sched_autogroup). A session that is not this
// process's own, such as that of a shell, is left alone.
func favourSession() {
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(daemonNice)), 0)
	}
}

// sleep waits for events or until d has passed, at most one tick: some 10 ms. It
// returns whether there may be events.
//
// The runtime is not told. A thread that says it blocks gives its processor (the
// runtime's P) back, and the runtime's monitor then looks every 20 µs for a while
// after each such call: at 400 ticks a second that cost more than all heartbeats.
// The monitor's signal that asks for preemption is held back meanwhile.
func sleep(fds []unix.PollFd, d time.Duration) bool {
	ts := unix.NsecToTimespec(int64(d))
	mask := uint64(1) << (unix.SIGURG - 1)
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&ts)), uintptr(unsafe.Pointer(&mask)), unsafe.Sizeof(mask), 0)
	return n != 0 // events, or an error
}

// threads counts the threads of this process; 0 if that cannot be told.
func threads() int {
	var st unix.Stat_t
	if unix.Stat("/proc/self/task", &st) != nil {
		return 0
	}
	return int(st.Nlink) - 2
}

// collector collects garbage between two sleeps of the guardian's loop, with one thread.
//
// With more, threads of the runtime that collect spin until others have done their part, and
// under SCHED_FIFO one that spins is never put off its processor for another of the same
// priority. Two guardians on two processors (one will do where there is one) can stand still
// for good, each at work, whether the runtime begins the collection or the loop asks for it.
// One that begins while the loop sleeps waits for it until the next tick besides,
// since the runtime does not know of the sleep.
type collector struct {
	allocated []metrics.Sample
	at        uint64 // bytes allocated, ever, when it ran last
}

const (
	garbage = 16 << 20 // bytes, until they are collected
	// garbageMost is when the runtime begins by itself: more than can come together in
	// a checkInterval.
	garbageMost = 8 * garbage
)

// newCollector gives back what the start has left (a configuration may be large), and
// keeps the runtime from collecting by itself.
func newCollector() *collector {
	debug.SetGCPercent(-1)
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + garbageMost)
	return &collector{allocated: []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}, at: m.TotalAlloc}
}

// due says whether there is enough garbage.
func (c *collector) due() bool {
	metrics.Read(c.allocated)
	return c.allocated[0].Value.Uint64()-c.at >= garbage
}

// run collects, which takes some 3 ms.
func (c *collector) run() {
	c.at = c.allocated[0].Value.Uint64()
	n := runtime.GOMAXPROCS(1)
	runtime.GC()
	runtime.GOMAXPROCS(n)
}

// lockMemory keeps every page that is ever touched.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}
