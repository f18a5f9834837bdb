package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that the lab started in a namespace.
type Process struct {
	Node, Name, LogPath string
	PID                 int
	done                chan struct{}
	err                 error // of Wait, once done is closed
}

// Start runs argv in a node's namespace, its output appended to NAME.log in
// the lab's folder. It gets a session of its own: an interrupt at the terminal is
// for the lab, which then cleans up.
func (t *Topology) Start(node, name string, argv, env []string) (*Process, error) {
	p := &Process{Node: node, Name: name, LogPath: filepath.Join(t.Dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = t.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := t.In(node, cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", node, argv[0], err)
	}
	p.PID = cmd.Process.Pid
	// A simulated host does not share its processor with the load of this machine:
	// its session goes ahead where the machine allows, as the prober does.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", p.PID), []byte("-10"), 0)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Running says whether the process lives.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error {
	if p.Running() {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	<-p.done
	return nil
}

// children lists the child processes of pid, oldest first as the kernel has them.
func children(pid int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var all []int
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that ended
		}
		for _, f := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, n)
			}
		}
	}
	return all, nil
}

// Daemon returns the daemon's pid: the guardian's only living child, or the
// process itself where a program has no guardian (single is true).
func (p *Process) Daemon(single bool) (int, error) {
	if !p.Running() {
		return 0, fmt.Errorf("%s: %s has ended: see %s", p.Node, p.Name, p.LogPath)
	}
	if single {
		return p.PID, nil
	}
	kids, err := children(p.PID)
	if err != nil {
		return 0, err
	}
	var living []int
	for _, k := range kids {
		if f, err := procStat(k); err == nil && f[0] != "Z" && f[0] != "X" {
			living = append(living, k)
		}
	}
	if len(living) != 1 {
		return 0, fmt.Errorf("%s: guardian %d has %d children, expected the daemon alone", p.Node, p.PID, len(living))
	}
	return living[0], nil
}

// runDelays says for each thread of some processes how long it has been ready to run
// and had no processor (the kernel's scheduler statistics). Empty where the kernel
// keeps none.
func runDelays(pids []int) map[string]time.Duration {
	all := map[string]time.Duration{}
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is well formed
		for _, path := range threads {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // a thread that ended
			}
			if f := strings.Fields(string(text)); len(f) == 3 {
				ns, _ := strconv.ParseInt(f[1], 10, 64)
				all[path] = time.Duration(ns)
			}
		}
	}
	return all
}

// waited is the most that a thread had to wait between two runDelays.
func waited(before, after map[string]time.Duration) (most time.Duration) {
	for path, d := range after {
		most = max(most, d-before[path])
	}
	return most
}

// permanentError ends a poll at once.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func permanent(err error) error { return permanentError{err} }

// poll calls f until it returns nil. The last error is returned when the time
// is over.
func poll(ctx context.Context, within, every time.Duration, f func() error) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		var p permanentError
		if errors.As(err, &p) {
			return p.error
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("not within %v: %w", within, err)
		case <-time.After(every):
		}
	}
}

// Wait waits for the process to end by itself and returns how it ended: nil for
// exit status 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s: %s (pid %d) still runs: %w", p.Node, p.Name, p.PID, ctx.Err())
	}
}
