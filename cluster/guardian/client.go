package guardian

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/cluster"
)

// ErrNoGuardian says that this process was not started by a guardian.
var ErrNoGuardian = errors.New("this process has no guardian")

// exitOrphan is the exit status of a daemon that lost its guardian.
const exitOrphan = 3

// Client is the daemon's end. Its methods are safe for concurrent use and do not
// wait for answers; those come as events.
type Client struct {
	process  cluster.ProcessID
	conn     *os.File
	progress *atomic.Uint64
	events   chan Event
}

// Attach takes up what the guardian passed to this process; ErrNoGuardian if it
// passed nothing. From then on the loss of the guardian ends this process at once
// by calling lost, which must not return (nil: os.Exit): nobody would announce
// or fence it any more.
func Attach(lost func()) (*Client, error) {
	text, ok := os.LookupEnv(processEnv)
	if !ok {
		return nil, ErrNoGuardian
	}
	if lost == nil {
		lost = func() { os.Exit(exitOrphan) }
	}
	os.Unsetenv(processEnv) // not for the daemon's own children
	id, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", processEnv, err)
	}
	unix.CloseOnExec(socketFD)
	unix.CloseOnExec(progressFD)
	m, err := unix.Mmap(progressFD, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("progress counter: %w", err)
	}
	conn, err := moveUp(socketFD)
	if err != nil {
		return nil, fmt.Errorf("guardian's socket: %w", err)
	}
	k := &Client{
		process: cluster.ProcessID(id), conn: conn, events: make(chan Event, 256),
		progress: (*atomic.Uint64)(unsafe.Pointer(&m[0])),
	}
	go k.read(lost)
	return k, nil
}

// moveUp gives the socket a number above all others. When this process dies, the
// kernel releases its files beginning with the highest number (task work runs last
// in, first out), and the guardian announces the death at the end of this socket:
// tunnel interfaces and packet sockets, which take tens of milliseconds, come after.
func moveUp(fd int) (*os.File, error) {
	for _, least := range []int{1 << 16, 1 << 12, 1000, 0} {
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, least)
		if err != nil && least > 0 {
			continue // beyond RLIMIT_NOFILE
		}
		if err == nil {
			err = unix.SetNonblock(high, true)
		}
		if err != nil {
			return nil, err
		}
		_ = unix.Close(fd)
		return os.NewFile(uintptr(high), "guardian"), nil
	}
	return nil, unix.EMFILE
}

// Process is the number of this daemon process, given by the guardian.
func (c *Client) Process() cluster.ProcessID { return c.process }

// GuardianPID is the guardian's process ID.
func (c *Client) GuardianPID() int { return os.Getppid() }

// Events are what the guardian tells, in order. Nobody else reads them; they
// must be read.
func (c *Client) Events() <-chan Event { return c.events }

func (c *Client) read(lost func()) {
	b := make([]byte, maxMessage)
	for {
		n, err := c.conn.Read(b)
		if err != nil || n == 0 {
			lost()
			return
		}
		e, err := decodeEvent(b[:n])
		if err != nil {
			lost() // a guardian of another version cannot be worked with
			return
		}
		c.events <- e
	}
}

// Progress says that every part of the daemon is alive. It costs an atomic add.
func (c *Client) Progress() { c.progress.Add(1) }

func (c *Client) send(what any) error {
	b, err := encodeRequest(what)
	if err != nil {
		return err
	}
	_, err = c.conn.Write(b)
	return err
}

// Announce, Entitle, Claim and AskRemoval are the effects of a Pair. An error
// means that the guardian is gone, and this process about to be.
func (c *Client) Announce(a cluster.Announce) error     { return c.send(a) }
func (c *Client) Entitle(e cluster.Entitle) error       { return c.send(e) }
func (c *Client) Claim(e cluster.Claim) error           { return c.send(e) }
func (c *Client) AskRemoval(e cluster.AskRemoval) error { return c.send(e) }

// Addresses tells which shared addresses are on this node from now on: say it
// before putting them on, and after taking them off. macs are the own MAC addresses of
// devices that have a virtual one meanwhile.
func (c *Client) Addresses(a []Address, macs []MAC) error { return c.send(addresses{a, macs}) }

// StreamPort tells where this daemon accepts streams; it travels in heartbeats.
func (c *Client) StreamPort(port uint16) error { return c.send(streamPort(port)) }
