package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probePort  = 7000
	probeSize  = 64
	probeMagic = 0x74616e64656d7072
)

// Stream is one direction of the probes: the sender's count and the receiver's
// arrivals.
type Stream struct {
	From, To  string
	Sent      uint64
	Arrivals  []Arrival // in order of time
	MaxStall  time.Duration
	stallFrom time.Time
}

// Probes sends numbered datagrams both ways through the tunnel, each way on
// its own: nothing is answered, so that each direction is measured alone.
type Probes struct {
	Interval time.Duration
	ends     [2]*probeEnd
	stop     chan struct{}
	paused   atomic.Bool
	senders  sync.WaitGroup
	readers  sync.WaitGroup
}

// probeEnd is one host's socket.
type probeEnd struct {
	node string
	conn *net.UDPConn
	peer netip.AddrPort

	sent     atomic.Uint64
	mu       sync.Mutex
	arrivals []Arrival
	maxStall time.Duration
	stallAt  time.Time
}

// StartProbes begins to probe between the hosts a and b, whose addresses are
// given, every interval.
func (t *Topology) StartProbes(a string, aAddr netip.Addr, b string, bAddr netip.Addr, interval time.Duration) (*Probes, error) {
	p := &Probes{Interval: interval, stop: make(chan struct{})}
	for i, e := range []struct {
		node        string
		local, peer netip.Addr
	}{{a, aAddr, bAddr}, {b, bAddr, aAddr}} {
		end := &probeEnd{node: e.node, peer: netip.AddrPortFrom(e.peer, probePort)}
		err := t.In(e.node, func() (err error) {
			end.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.local, probePort)))
			return err
		})
		if err == nil {
			err = stampReceives(end.conn)
		}
		if err != nil {
			p.closeAll()
			return nil, fmt.Errorf("probe socket at %s: %w", e.node, err)
		}
		p.ends[i] = end
	}
	for _, e := range p.ends {
		p.senders.Add(1)
		p.readers.Add(1)
		go p.send(e)
		go p.receive(e)
	}
	return p, nil
}

func stampReceives(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	})
	return errors.Join(err, cerr)
}

// send paces by the monotonic clock on a thread of its own, ahead of ordinary
// load if the machine allows: a late probe would look like an outage.
func (p *Probes) send(e *probeEnd) {
	defer p.senders.Done()
	runtime.LockOSThread() // never unlocked: the thread's priority ends with it
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	var next unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &next)
	var b [probeSize]byte
	binary.BigEndian.PutUint64(b[:], probeMagic)
	last := timeNow()
	for {
		select {
		case <-p.stop:
			return
		default:
		}
		if p.paused.Load() {
			last = timeNow()
		} else {
			seq := e.sent.Load()
			binary.BigEndian.PutUint64(b[8:], seq)
			now := timeNow()
			binary.BigEndian.PutUint64(b[16:], uint64(now.UnixNano()))
			if stall := now.Sub(last); stall > e.maxStall {
				e.maxStall, e.stallAt = stall, now
			}
			last = now
			// An error (no route, no neighbour) is a lost probe and nothing else.
			_, _ = e.conn.WriteToUDPAddrPort(b[:], e.peer)
			e.sent.Store(seq + 1)
		}
		next = unix.NsecToTimespec(next.Nano() + p.Interval.Nanoseconds())
		for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &next, nil) == unix.EINTR {
		}
	}
}

func (p *Probes) receive(e *probeEnd) {
	defer p.readers.Done()
	b, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, oobn, _, _, err := e.conn.ReadMsgUDPAddrPort(b, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != probeSize || binary.BigEndian.Uint64(b) != probeMagic {
			continue
		}
		a := Arrival{Seq: binary.BigEndian.Uint64(b[8:]), At: kernelStamp(oob[:oobn])}
		e.mu.Lock()
		e.arrivals = append(e.arrivals, a)
		e.mu.Unlock()
	}
}

// Pause stops sending, Resume goes on with the next number.
func (p *Probes) Pause()  { p.paused.Store(true) }
func (p *Probes) Resume() { p.paused.Store(false) }

// Received counts arrivals at both ends so far.
func (p *Probes) Received() (atA, atB int) {
	n := [2]int{}
	for i, e := range p.ends {
		e.mu.Lock()
		n[i] = len(e.arrivals)
		e.mu.Unlock()
	}
	return n[0], n[1]
}

// Stop ends sending, waits drain for what is under way, and returns both
// directions: a → b first.
func (p *Probes) Stop(drain time.Duration) [2]Stream {
	close(p.stop)
	p.senders.Wait()
	time.Sleep(drain)
	p.closeAll()
	p.readers.Wait()
	var s [2]Stream
	for i, e := range p.ends {
		to := p.ends[1-i]
		sort.SliceStable(to.arrivals, func(i, j int) bool { return to.arrivals[i].At.Before(to.arrivals[j].At) })
		s[i] = Stream{From: e.node, To: to.node, Sent: e.sent.Load(), Arrivals: to.arrivals, MaxStall: e.maxStall, stallFrom: e.stallAt}
	}
	return s
}

func (p *Probes) closeAll() {
	for _, e := range p.ends {
		if e != nil && e.conn != nil {
			_ = e.conn.Close()
		}
	}
}
