package guardian

import (
	"errors"
	"fmt"
	"os"
	"strconv"

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

// setNormal gives the calling thread normal scheduling.
func setNormal() error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
}

// threads counts the threads of this process; 0 if that cannot be told.
func threads() int {
	var st unix.Stat_t
	if unix.Stat("/proc/self/task", &st) != nil {
		return 0
	}
	return int(st.Nlink) - 2
}

// lockMemory keeps every page that is ever touched.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}
