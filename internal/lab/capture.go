package lab

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// captureBuffer is the socket's queue in bytes: some seconds of a lab's traffic.
const captureBuffer = 256 << 20

// captureRest is how long an empty queue is left alone.
const captureRest = 10 * time.Millisecond

// Capture records one switch port into a file.
type Capture struct {
	Port, Path string
	fd         int
	w          *pcapWriter
	done       chan error
	stop       chan struct{}
	flushReq   chan chan error
	once       sync.Once
	drops      int
	err        error
}

// StartCapture opens a capture on a switch's port towards a node, writing
// SWITCH-PORT.pcapng in the lab's folder.
func (t *Topology) StartCapture(switchNode, port string) (*Capture, error) {
	c := &Capture{
		Port: port, Path: filepath.Join(t.Dir, switchNode+"-"+port+".pcapng"),
		done: make(chan error, 1), stop: make(chan struct{}), flushReq: make(chan chan error),
	}
	err := t.In(switchNode, func() error {
		intf, err := net.InterfaceByName(port)
		if err != nil {
			return err
		}
		// Protocol 0 until the socket is bound: nothing of other ports gets in.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.fd = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: intf.Index})
	})
	if err == nil {
		c.w, err = newPcapWriter(c.Path, port)
	}
	if err != nil {
		if c.fd > 0 {
			unix.Close(c.fd)
		}
		return nil, fmt.Errorf("capture on %s/%s: %w", switchNode, port, err)
	}
	go func() { c.done <- c.run() }()
	return c, nil
}

func (c *Capture) run() error {
	buf := make([]byte, 1<<16)
	oob := make([]byte, 256)
	stopping := false
	var stopAt, flushAt time.Time
	var flush chan error // who waits until what was on the wire before flushAt is written
	for {
		n, oobn, _, from, err := unix.Recvmsg(c.fd, buf, oob, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if stopping {
				return nil // the queue is empty
			}
			if flush != nil {
				flush <- c.w.flush()
				flush = nil
			}
			select {
			case <-c.stop:
				stopping, stopAt = true, timeNow()
			case r := <-c.flushReq:
				flush, flushAt = r, timeNow()
			default:
				// The queue is deep and the kernel stamps: being woken for every frame
				// would cost the machine more than the frames do.
				time.Sleep(captureRest)
			}
			continue
		case errors.Is(err, unix.ENETDOWN):
			continue // the port was cut; what was queued is still read
		case err != nil:
			return fmt.Errorf("capture on %s: %w", c.Port, err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			return fmt.Errorf("capture on %s: sender of unknown kind", c.Port)
		}
		f := Frame{Port: c.Port, FromNode: ll.Pkttype != unix.PACKET_OUTGOING, Data: buf[:n], Time: kernelStamp(oob[:oobn])}
		if stopping && f.Time.After(stopAt) {
			return nil
		}
		if err := c.w.write(f); err != nil {
			return fmt.Errorf("capture on %s: %w", c.Port, err)
		}
		if flush != nil && f.Time.After(flushAt) {
			flush <- c.w.flush()
			flush = nil
		}
		if stopping || flush != nil {
			continue
		}
		select {
		case <-c.stop:
			stopping, stopAt = true, timeNow()
		case flush = <-c.flushReq:
			flushAt = timeNow()
		default:
		}
	}
}

// Flush makes all that was on the wire until now readable in the file.
func (c *Capture) Flush() error {
	r := make(chan error, 1)
	select {
	case c.flushReq <- r:
		return <-r
	case <-time.After(5 * time.Second):
		return fmt.Errorf("capture on %s does not answer", c.Port)
	}
}

// Stop reads what is queued, closes the file and returns how many frames the
// kernel dropped: more than none means that the capture proves nothing.
func (c *Capture) Stop() (drops int, err error) {
	c.once.Do(func() {
		close(c.stop)
		err := <-c.done
		st, serr := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if serr == nil {
			c.drops = int(st.Drops)
		}
		c.err = errors.Join(err, serr, unix.Close(c.fd), c.w.close())
	})
	return c.drops, c.err
}

// kernelStamp finds the receive time in control messages; now if there is none.
func kernelStamp(oob []byte) time.Time {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
				ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
				return time.Unix(ts.Sec, ts.Nsec)
			}
		}
	}
	return timeNow()
}
