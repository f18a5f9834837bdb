package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc, the same on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// CPUTime is what a process and all its descendants that live have computed, in user
// and kernel mode.
func CPUTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	sum, err := processTime(string(text))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, l := range lists {
		kids, _ := os.ReadFile(l) // a thread may have ended
		for _, k := range strings.Fields(string(kids)) {
			if n, err := strconv.Atoi(k); err == nil {
				d, _ := CPUTime(n)
				sum += d
			}
		}
	}
	return sum, nil
}

// processTime reads user and system time out of a line of /proc/PID/stat. The command's
// name, the second field, may itself hold blanks and brackets.
func processTime(line string) (time.Duration, error) {
	i := strings.LastIndexByte(line, ')')
	f := strings.Fields(line[i+1:])
	if i < 0 || len(f) < 13 {
		return 0, fmt.Errorf("stat has an unknown layout")
	}
	return ticks(f[11:13])
}

// MachineTime is what all processors of the machine have computed, interrupts included.
func MachineTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return machineTime(string(text))
}

// machineTime sums the first line of /proc/stat without idle, iowait and what the
// machine's own host took.
func machineTime(text string) (time.Duration, error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat has an unknown layout")
	}
	return ticks([]string{f[1], f[2], f[3], f[6], f[7]})
}

func ticks(fields []string) (sum time.Duration, err error) {
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
