package guardian

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/cluster"
)

// forker starts processes from a thread of its own: see doc.go.
type forker struct {
	tid  int
	work chan func()
}

func newForker() (*forker, error) {
	f := &forker{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread must outlive the daemon
		f.tid = unix.Gettid()
		ready <- setDaemon()
		for w := range f.work {
			w()
		}
	}()
	return f, <-ready
}

func (f *forker) do(w func() error) error {
	done := make(chan error)
	f.work <- func() { done <- w() }
	return <-done
}

// process is one run of the daemon.
type process struct {
	id       cluster.ProcessID
	cmd      *exec.Cmd
	pidfd    int
	sock     int
	counter  *atomic.Uint64
	page     []byte
	backlog  [][]byte // messages that its socket did not take yet
	overflow bool
	gone     bool // its end of the socket is closed: it will do nothing more
}

// backlogLimit is how many messages wait for a daemon that does not read.
const backlogLimit = 4096

func (f *forker) start(command, env []string) (p *process, err error) {
	p = &process{pidfd: -1, sock: -1}
	defer func() {
		if err != nil {
			p.close()
			p = nil
		}
	}()
	var id [8]byte
	rand.Read(id[:])
	p.id = cluster.ProcessID(binary.BigEndian.Uint64(id[:]) | 1) // never 0
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return p, fmt.Errorf("socketpair: %w", err)
	}
	p.sock = pair[0]
	theirs := os.NewFile(uintptr(pair[1]), "guardian")
	defer theirs.Close()
	if err := unix.SetNonblock(p.sock, true); err != nil {
		return p, err
	}
	for _, fd := range pair {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20) // capped by the system; the backlog does the rest
	}
	m, err := unix.MemfdCreate("progress", unix.MFD_CLOEXEC)
	if err != nil {
		return p, fmt.Errorf("memfd: %w", err)
	}
	mem := os.NewFile(uintptr(m), "progress")
	defer mem.Close()
	size := os.Getpagesize()
	if err := unix.Ftruncate(m, int64(size)); err != nil {
		return p, err
	}
	if p.page, err = unix.Mmap(m, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return p, fmt.Errorf("progress counter: %w", err)
	}
	p.counter = (*atomic.Uint64)(unsafe.Pointer(&p.page[0]))

	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = os.Stdout, os.Stderr
	p.cmd.Env = append(append(os.Environ(), env...), processEnv+"="+strconv.FormatUint(uint64(p.id), 16))
	p.cmd.ExtraFiles = []*os.File{theirs, mem} // descriptors 3 and 4
	p.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, PidFD: &p.pidfd}
	if err := f.do(p.cmd.Start); err != nil {
		return p, err
	}
	if p.pidfd < 0 {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		return p, errors.New("this kernel has no pidfd")
	}
	return p, nil
}

// send queues one message for the daemon.
func (p *process) send(b []byte) {
	if len(p.backlog) >= backlogLimit {
		p.overflow = true
		return
	}
	p.backlog = append(p.backlog, b)
	p.flush()
}

// flush writes what the socket takes.
func (p *process) flush() {
	for len(p.backlog) > 0 {
		err := unix.Send(p.sock, p.backlog[0], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
			return
		}
		p.backlog = p.backlog[1:] // sent, or the daemon is gone
	}
	p.backlog = nil
}

func (p *process) signal(s unix.Signal) {
	_ = unix.PidfdSendSignal(p.pidfd, s, nil, 0)
}

// reap collects a daemon that has ended.
func (p *process) reap() (status string, code int) {
	err := p.cmd.Wait()
	p.close()
	if err != nil {
		status = err.Error()
	}
	return status, p.cmd.ProcessState.ExitCode()
}

func (p *process) close() {
	for _, fd := range []*int{&p.pidfd, &p.sock} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	if p.page != nil {
		_ = unix.Munmap(p.page)
		p.page, p.counter = nil, nil
	}
}
