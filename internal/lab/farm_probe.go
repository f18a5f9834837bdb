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
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	flowMagic   = 0x74616e64656d666c
	flowSize    = 28 // magic, number of the flow, sequence number, time of sending
	flowBatch   = 64
	flowTick    = 5 * time.Millisecond // the shortest time between two batches of one sender
	flowRest    = 5 * time.Millisecond // between two looks at a socket: the kernel stamps what came
	flowPortOff = 2                    // port, above probePort
)

// Flow is one tunnel's probe flow in both directions.
type Flow struct {
	Client, Server netip.Addr
	Node           string // of the client
	Up, Down       Stream // client → server, server → client; filled in by Stop
}

// Flows probes many tunnels at once, each in both directions by itself. Each node
// has one socket and one paced sender, which spreads its flows over the interval.
type Flows struct {
	Interval time.Duration
	Sparse   int // each Sparse-th flow is probed every Interval, the others so many times less often; 0: all alike
	flows    []Flow
	ends     []*flowEnd
	stop     chan struct{}
	senders  sync.WaitGroup
	readers  sync.WaitGroup
}

// flowEnd is one node's socket.
type flowEnd struct {
	node string
	conn *net.UDPConn
	out  []flowOut

	maxStall time.Duration

	mu       sync.Mutex
	arrivals map[uint32][]Arrival
}

// flowOut is what an end sends for one flow.
type flowOut struct {
	flow   uint32
	peer   *net.UDPAddr
	source []byte // control message
	sent   uint64
}

// sampled says whether a flow is among those that are probed every Interval: its
// outages can be told that exactly.
func (p *Flows) sampled(flow int) bool { return p.Sparse < 2 || flow%p.Sparse == 0 }

// every is the interval of one flow's probes.
func (p *Flows) every(flow int) time.Duration {
	if p.sampled(flow) {
		return p.Interval
	}
	return p.Interval * time.Duration(p.Sparse)
}

// StartFlows begins to probe each tunnel's host and server every interval; with sparse
// above 1 only each sparse-th of them, and the others so many times less often.
func (t *Topology) StartFlows(tunnels []Tunnel, server string, interval time.Duration, sparse int) (*Flows, error) {
	p := &Flows{Interval: interval, Sparse: sparse, stop: make(chan struct{})}
	ends := map[string]*flowEnd{}
	end := func(node string, flow int, from, to netip.Addr) {
		if ends[node] == nil {
			ends[node] = &flowEnd{node: node, arrivals: map[uint32][]Arrival{}}
			p.ends = append(p.ends, ends[node])
		}
		cm := ipv4.ControlMessage{Src: from.AsSlice()}
		ends[node].out = append(ends[node].out, flowOut{
			flow: uint32(flow), peer: net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, probePort+flowPortOff)), source: cm.Marshal(),
		})
	}
	for i, x := range tunnels {
		p.flows = append(p.flows, Flow{Client: x.Host, Server: x.Server, Node: x.Node})
		end(x.Node, i, x.Host, x.Server)
		end(server, i, x.Server, x.Host)
	}
	for _, e := range p.ends {
		err := t.In(e.node, func() (err error) {
			e.conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: probePort + flowPortOff})
			return err
		})
		if err == nil {
			err = stampReceives(e.conn)
		}
		if err != nil {
			p.closeAll()
			return nil, fmt.Errorf("probe socket at %s: %w", e.node, err)
		}
	}
	for _, e := range p.ends {
		p.senders.Add(1)
		p.readers.Add(1)
		go p.send(e)
		go p.receive(e)
	}
	return p, nil
}

// batches deals an end's flows out over the interval.
func (e *flowEnd) batches(interval time.Duration) (n int, tick time.Duration) {
	n = max(1, min(len(e.out), int(interval/flowTick)))
	return n, interval / time.Duration(n)
}

// send paces as Probes.send does.
func (p *Flows) send(e *flowEnd) {
	defer p.senders.Done()
	runtime.LockOSThread() // never unlocked: the thread's priority ends with it
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	conn := ipv4.NewPacketConn(e.conn)
	n, tick := e.batches(p.Interval)
	var next unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &next)
	last := timeNow()
	var msgs []ipv4.Message
	buf := make([]byte, flowSize*len(e.out))
	for turn := 0; ; turn++ {
		select {
		case <-p.stop:
			return
		default:
		}
		now := timeNow()
		e.maxStall = max(e.maxStall, now.Sub(last)-tick)
		last = now
		msgs = msgs[:0]
		for i := turn % n; i < len(e.out); i += n {
			o, b := &e.out[i], buf[i*flowSize:(i+1)*flowSize]
			if !p.sampled(int(o.flow)) && (turn/n+int(o.flow))%p.Sparse != 0 {
				continue
			}
			binary.BigEndian.PutUint64(b, flowMagic)
			binary.BigEndian.PutUint32(b[8:], o.flow)
			binary.BigEndian.PutUint64(b[12:], o.sent)
			binary.BigEndian.PutUint64(b[20:], uint64(now.UnixNano()))
			o.sent++
			msgs = append(msgs, ipv4.Message{Buffers: [][]byte{b}, OOB: o.source, Addr: o.peer})
		}
		for left := msgs; len(left) > 0; {
			k, err := conn.WriteBatch(left, 0)
			if err != nil || k == 0 {
				k = max(k, 1) // no route, no neighbour: a lost probe and nothing else
			}
			left = left[k:]
		}
		next = unix.NsecToTimespec(next.Nano() + tick.Nanoseconds())
		for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &next, nil) == unix.EINTR {
		}
	}
}

// parseFlow reads a probe: which flow, which number.
func parseFlow(b []byte) (flow uint32, seq uint64, ok bool) {
	if len(b) != flowSize || binary.BigEndian.Uint64(b) != flowMagic {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint64(b[12:]), true
}

func (p *Flows) receive(e *flowEnd) {
	defer p.readers.Done()
	conn := ipv4.NewPacketConn(e.conn)
	msgs := make([]ipv4.Message, flowBatch)
	for i := range msgs {
		msgs[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 256)}, OOB: make([]byte, 256)}
	}
	for {
		n, err := conn.ReadBatch(msgs, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		e.mu.Lock()
		for i := range msgs[:n] {
			m := &msgs[i]
			flow, seq, ok := parseFlow(m.Buffers[0][:m.N])
			if ok && int(flow) < len(p.flows) {
				e.arrivals[flow] = append(e.arrivals[flow], Arrival{Seq: seq, At: kernelStamp(m.OOB[:m.NN])})
			}
		}
		e.mu.Unlock()
		if n < flowBatch {
			time.Sleep(flowRest)
		}
	}
}

// Silent counts the flows of which fewer than n probes came in either direction.
func (p *Flows) Silent(n int) int {
	count := make([]int, len(p.flows))
	for _, e := range p.ends {
		e.mu.Lock()
		for flow, a := range e.arrivals {
			if len(a) >= n {
				count[flow]++
			}
		}
		e.mu.Unlock()
	}
	silent := 0
	for _, c := range count {
		if c < 2 {
			silent++
		}
	}
	return silent
}

// Stop ends sending, waits drain for what is under way and returns all flows.
func (p *Flows) Stop(drain time.Duration) []Flow {
	close(p.stop)
	p.senders.Wait()
	time.Sleep(drain)
	p.closeAll()
	p.readers.Wait()
	for _, e := range p.ends {
		for i := range e.out {
			o := &e.out[i]
			f := &p.flows[o.flow]
			s := &f.Up
			if e.node != f.Node {
				s = &f.Down
			}
			s.From, s.Sent, s.MaxStall = e.node, o.sent, e.maxStall
		}
		for flow, a := range e.arrivals {
			f := &p.flows[flow]
			s := &f.Down
			if e.node != f.Node {
				s = &f.Up
			}
			sort.SliceStable(a, func(i, j int) bool { return a[i].At.Before(a[j].At) })
			s.To, s.Arrivals = e.node, a
		}
	}
	return p.flows
}

func (p *Flows) closeAll() {
	for _, e := range p.ends {
		if e.conn != nil {
			_ = e.conn.Close()
		}
	}
}
