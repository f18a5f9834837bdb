package guardian

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fifoPriority is low among real-time priorities: above everything normal, below
// the kernel's own threads.
const fifoPriority = 10

// setFIFO puts every thread of this process except one under SCHED_FIFO. Threads
// started by such a thread inherit it.
func setFIFO(except int) error {
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

// collectRarely lets the collector run when so much garbage has come together, and
// gives back what the start has left (a configuration may be large).
func collectRarely() {
	debug.SetGCPercent(-1)
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + garbage)
}

// lockMemory keeps every page that is ever touched.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}
