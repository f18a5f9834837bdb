package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"tandem/cluster"
)

// fabric is a network in memory for a synctest bubble: everything that waits in it
// waits on channels and timers of the bubble. It plays the kernel's part too: a send
// buffer that holds what was not yet read, and the end of connections on a line that
// has been silent for longer than the kernel's patience.
type fabric struct {
	mu     sync.Mutex // held for moments only, never while something waits
	lines  map[string]*line
	ports  map[uint16]*memListener
	last   uint16
	kernel time.Duration // silence after which connections fail; 0: never
}

// line is a heartbeat device: all connections over it share its fate.
type line struct {
	f       *fabric
	delay   time.Duration // one way
	rate    int           // bytes per second; 0: any
	cut     bool          // connections are reset, new ones refused
	silent  bool          // nothing arrives; what was written does once the line speaks again
	silence int           // how many silences there were
	after   int           // bytes that dialling sides may still write before the line is cut; <0: any
	changed chan struct{} // closed, and made anew, at every change
	flows   map[*flow]bool
	dialled []time.Time
	open    int // connections
}

func newFabric(delays map[string]time.Duration) *fabric {
	f := &fabric{lines: map[string]*line{}, ports: map[uint16]*memListener{}}
	for d, delay := range delays {
		f.lines[d] = &line{f: f, delay: delay, after: -1, changed: make(chan struct{}), flows: map[*flow]bool{}}
	}
	return f
}

// stir wakes whoever waits for the line. The lock is held.
func (l *line) stir() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// reset ends every connection. The lock is held.
func (l *line) reset(err error) {
	for w := range l.flows {
		w.fail(err)
	}
}

func (f *fabric) change(device string, do func(*line)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f.lines[device])
	f.lines[device].stir()
}

func (f *fabric) sever(device string) {
	f.change(device, func(l *line) {
		l.cut = true
		l.reset(syscall.ECONNRESET)
	})
}

// severAfter cuts the line in the middle of what is written to it.
func (f *fabric) severAfter(device string, n int) { f.change(device, func(l *line) { l.after = n }) }

func (f *fabric) hush(device string) {
	f.change(device, func(l *line) {
		if l.silent {
			return
		}
		l.silent = true
		l.silence++
		if n := l.silence; f.kernel > 0 {
			time.AfterFunc(f.kernel, func() {
				f.change(device, func(l *line) {
					if l.silent && l.silence == n {
						l.reset(syscall.ETIMEDOUT)
					}
				})
			})
		}
	})
}

// abandon leaves what is silent now silent for ever: those who dialled may end, and
// those who were dialled never hear of it.
func (f *fabric) abandon(device string) {
	f.change(device, func(l *line) {
		for w := range l.flows {
			w.lost = true
		}
	})
}

func (f *fabric) mend(device string) {
	f.change(device, func(l *line) { l.cut, l.silent, l.after = false, false, -1 })
}

func (f *fabric) dials(device string) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.lines[device].dialled...)
}

// open counts the connections on a line of which an end is open.
func (f *fabric) open(device string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lines[device].open
}

// buffered is what has been written on a line and not been read.
func (f *fabric) buffered(device string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.lines[device].flows {
		n += w.size
	}
	return n
}

func (f *fabric) listen() (*memListener, uint16) {
	f.mu.Lock()
	f.last++
	port := f.last
	f.mu.Unlock()
	return f.listenAt(port), port
}

// listenAt takes over a port.
func (f *fabric) listenAt(port uint16) *memListener {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &memListener{f: f, port: port, accepted: make(chan net.Conn, 16), closed: make(chan struct{})}
	f.ports[port] = l
	return l
}

func (f *fabric) dial(ctx context.Context, at cluster.Link, port uint16) (net.Conn, error) {
	f.mu.Lock()
	l := f.lines[at.Device]
	l.dialled = append(l.dialled, time.Now())
	for l.silent && !l.cut {
		wait := l.changed
		f.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		f.mu.Lock()
	}
	to := f.ports[port]
	if l.cut || to == nil {
		f.mu.Unlock()
		return nil, syscall.ECONNREFUSED
	}
	up := &flow{l: l, changed: make(chan struct{}), counted: true}
	down := &flow{l: l, changed: make(chan struct{})}
	l.flows[up], l.flows[down] = true, true
	l.open++
	ends := 2
	near, far := &memConn{in: down, out: up, ends: &ends}, &memConn{in: up, out: down, ends: &ends}
	f.mu.Unlock()

	round := time.NewTimer(2 * l.delay)
	defer round.Stop()
	select {
	case <-round.C:
	case <-ctx.Done():
		near.Close()
		far.Close()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	there := f.ports[port] == to
	if there {
		select {
		case to.accepted <- far:
		default:
			there = false
		}
	}
	f.mu.Unlock()
	if !there {
		near.Close()
		far.Close()
		return nil, syscall.ECONNREFUSED
	}
	return near, nil
}

type memListener struct {
	f        *fabric
	port     uint16
	accepted chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		l.f.mu.Lock()
		if l.f.ports[l.port] == l {
			delete(l.f.ports, l.port)
		}
		l.f.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.accepted:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr{} }

type memAddr struct{}

func (memAddr) Network() string { return "memory" }
func (memAddr) String() string  { return "memory" }

const sendBuffer = 256 << 10 // bytes that a flow holds unread

// flow is one direction of a connection.
type flow struct {
	l       *line
	counted bool // its bytes count for line.after
	chunks  []chunk
	size    int       // bytes of the chunks
	free    time.Time // when the line has sent what was written before
	err     error     // it was reset
	lost    bool      // silent for ever
	ended   bool      // the writing end is closed
	deaf    bool      // the reading end is closed
	changed chan struct{}
	readBy  time.Time
	writeBy time.Time
}

type chunk struct {
	b   []byte
	due time.Time
}

func (w *flow) stir() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *flow) fail(err error) {
	if w.err == nil {
		w.err = err
	}
	w.chunks, w.size = nil, 0
	w.stir()
}

// wait gives the lock back until something changes or the time has come. The zero
// time never comes.
func (w *flow) wait(until time.Time) {
	mine, lines := w.changed, w.l.changed
	w.l.f.mu.Unlock()
	defer w.l.f.mu.Lock()
	var come <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		come = t.C
	}
	select {
	case <-mine:
	case <-lines:
	case <-come:
	}
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// memConn is one end of a connection.
type memConn struct {
	in, out *flow
	ends    *int // that are open; under the fabric's lock
	gone    bool
}

func (c *memConn) Read(b []byte) (int, error) {
	w := c.in
	w.l.f.mu.Lock()
	defer w.l.f.mu.Unlock()
	for {
		switch {
		case c.gone:
			return 0, net.ErrClosed
		case w.err != nil:
			return 0, w.err
		case past(w.readBy):
			return 0, os.ErrDeadlineExceeded
		}
		until := w.readBy
		switch {
		case w.l.silent, w.lost:
		case len(w.chunks) > 0 && past(w.chunks[0].due):
			first := &w.chunks[0]
			n := copy(b, first.b)
			if first.b = first.b[n:]; len(first.b) == 0 {
				w.chunks = w.chunks[1:]
			}
			w.size -= n
			w.stir()
			return n, nil
		case len(w.chunks) > 0:
			until = earlier(until, w.chunks[0].due)
		case w.ended:
			return 0, io.EOF
		}
		w.wait(until)
	}
}

func (c *memConn) Write(b []byte) (done int, err error) {
	w := c.out
	w.l.f.mu.Lock()
	defer w.l.f.mu.Unlock()
	for len(b) > 0 {
		switch {
		case c.gone:
			return done, net.ErrClosed
		case w.err != nil:
			return done, w.err
		case w.deaf && !w.l.silent && !w.lost:
			return done, syscall.EPIPE
		case past(w.writeBy):
			return done, os.ErrDeadlineExceeded
		}
		n := min(len(b), sendBuffer-w.size, 16<<10)
		if n == 0 {
			w.wait(w.writeBy)
			continue
		}
		l := w.l
		if w.counted && l.after >= 0 {
			n = min(n, l.after)
			l.after -= n
		}
		now := time.Now()
		if w.free.Before(now) {
			w.free = now
		}
		if l.rate > 0 {
			w.free = w.free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
		}
		if n > 0 {
			w.chunks = append(w.chunks, chunk{append([]byte(nil), b[:n]...), w.free.Add(l.delay)})
			w.size += n
		}
		w.stir()
		b, done = b[n:], done+n
		if w.counted && l.after == 0 {
			l.after, l.cut = -1, true
			l.reset(syscall.ECONNRESET)
			l.stir()
			return done, syscall.ECONNRESET
		}
	}
	return done, nil
}

func (c *memConn) Close() error {
	l := c.in.l
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if c.gone {
		return net.ErrClosed
	}
	c.gone = true
	c.out.ended, c.in.deaf = true, true
	c.in.stir()
	c.out.stir()
	if *c.ends--; *c.ends == 0 {
		delete(l.flows, c.in)
		delete(l.flows, c.out)
		l.open--
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr{} }
func (c *memConn) RemoteAddr() net.Addr { return memAddr{} }

func (c *memConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.l.f.mu.Lock()
	defer c.in.l.f.mu.Unlock()
	c.in.readBy = t
	c.in.stir()
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.in.l.f.mu.Lock()
	defer c.in.l.f.mu.Unlock()
	c.out.writeBy = t
	c.out.stir()
	return nil
}
