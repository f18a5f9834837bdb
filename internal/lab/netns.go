package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks, so that `ip netns exec` works on a lab.
const netnsDir = "/run/netns"

// inNetns runs f on a thread inside ns. f must not start goroutines that count
// on the namespace; sockets and processes that it makes stay there.
func inNetns(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if err := netns.Set(ns); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		err = f()
		// A thread that cannot go home stays locked and ends with its goroutine.
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// newNetns makes the named namespace with its loopback down and leaves the
// caller where it was.
func newNetns(name string) (netns.NsHandle, error) {
	here, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer here.Close()
	made := netns.None()
	err = inNetns(here, func() error {
		h, err := netns.NewNamed(name)
		made = h
		return err
	})
	if err != nil {
		return netns.None(), fmt.Errorf("namespace %s: %w", name, err)
	}
	return made, nil
}

// dropNetns removes the name; the namespace itself goes with its last user.
func dropNetns(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// netnsProcesses lists the processes whose main thread lives in the named
// namespace, without this one.
func netnsProcesses(name string) []int {
	var want, st syscall.Stat_t
	if syscall.Stat(filepath.Join(netnsDir, name), &want) != nil {
		return nil
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if syscall.Stat(filepath.Join("/proc", d.Name(), "ns", "net"), &st) == nil && st.Ino == want.Ino && st.Dev == want.Dev {
			pids = append(pids, pid)
		}
	}
	return pids
}

// emptyNetns ends every process in the named namespace and waits until they
// are gone. Nothing lives in a lab's namespace that the lab did not start, or a
// person in `tandem lab shell`.
func emptyNetns(name string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids := netnsProcesses(name)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("namespace %s: processes %v do not end", name, pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			var ws syscall.WaitStatus
			_, _ = syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// sysctl writes one value in the namespace of the calling thread.
func sysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0o644)
}

// openNetns opens a named namespace.
func openNetns(name string) (netns.NsHandle, error) {
	h, err := netns.GetFromPath(filepath.Join(netnsDir, name))
	if err != nil {
		return netns.None(), fmt.Errorf("namespace %s: %w", name, err)
	}
	return h, nil
}
