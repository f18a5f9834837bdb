// Package timerslack lets the kernel wake the process's threads for their timers a
// little late (PR_SET_TIMERSLACK of prctl(2), proc_pid_timerslack_ns(5)).
//
// The Go runtime has a thread that sleeps for 20 µs at a time while there is work for
// others. With the kernel's usual slack of 50 µs it wakes some 14,000 times a second in a
// process that sends and receives some thousand packets: an eighth of all that a gateway
// with 200 clients spends.
package timerslack

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// Daemon is for processes whose timers are milliseconds apart.
const Daemon = 500 * time.Microsecond

// Widen sets the slack of every thread of the process; those that they make later
// inherit it. It fails without CAP_SYS_NICE.
func Widen(d time.Duration) error {
	want := strconv.FormatInt(d.Nanoseconds(), 10)
	set := map[string]bool{}
	for { // a thread that was being made meanwhile may have the old slack yet
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("widening the timers' slack: %w", err)
		}
		fresh := false
		for _, t := range threads {
			if set[t.Name()] {
				continue
			}
			fresh, set[t.Name()] = true, true
			err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(want), 0)
			if err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("widening the timers' slack: %w", err)
			}
		}
		if !fresh {
			return nil
		}
	}
}
