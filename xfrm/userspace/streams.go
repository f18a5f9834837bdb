package userspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandem/xfrm"
)

// Bounds of TCP connections. A stranger is a connection that peers opened and of which no
// SA is known yet; it becomes an SA's when the engine says that the SA's peer is there, after
// the first authenticated message.
const (
	maxStreams         = 16384
	maxStrangers       = 512
	strangersPerSource = 16 // of one address, or of one IPv6 network
	strangerBytes      = 64 << 10
	strangerTime       = 30 * time.Second

	streamIdle  = 15 * time.Minute // without a byte in either direction; who needs it opens another
	streamQueue = 1 << 20          // bytes of ESP that wait for a slow reader; what exceeds them is dropped
	ikeReserve  = 256 << 10        // beyond them, for IKE
	writeTime   = 20 * time.Second // without progress of a reader
	dialTime    = 15 * time.Second // for all attempts, during which little waits
	dialQueue   = 64 << 10
	dialAgain   = 200 * time.Millisecond
)

var (
	errNoStream   = errors.New("userspace: no TCP connection with the peer")
	errStreamFull = errors.New("userspace: the peer's TCP connection takes no more")
)

// streamPath names a connection. The local port is 0 for one that we open.
type streamPath struct{ local, remote netip.AddrPort }

func pathOf(local, remote netip.AddrPort) streamPath {
	return streamPath{netip.AddrPortFrom(local.Addr().Unmap(), local.Port()), netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())}
}

func (k streamPath) ours() bool { return k.local.Port() == 0 }

func (p *peer) path() streamPath { return streamPath{p.local, p.remote} }

// ours says that its connections are ours to open.
func (p *peer) ours() bool { return p.tcp && p.local.Port() == 0 }

// streams are the TCP connections of IKE and ESP (RFC 9329): one goroutine reads each, and
// another writes it, so that nobody who sends a packet waits for a reader.
type streams struct {
	p *Plane

	mu        sync.Mutex
	closed    bool
	port      uint16
	listener  net.Listener
	all       map[streamPath]*stream
	strangers map[netip.Addr]int
	nStranger int
	workers   sync.WaitGroup
}

func newStreams(p *Plane) *streams {
	return &streams{p: p, all: map[streamPath]*stream{}, strangers: map[netip.Addr]int{}}
}

// stream is one connection, or one that is being opened.
type stream struct {
	ss       *streams
	path     streamPath
	known    atomic.Bool // an SA's; never for one that is being opened
	stranger bool        // counted among them; guarded by streams.mu
	used     atomic.Int64

	mu     sync.Mutex
	conn   net.Conn // nil while it is being opened
	out    []byte
	closed bool
	wake   chan struct{} // out has something, or closed
	ended  context.CancelFunc
}

// ListenTCP takes connections on another port; 0: on none.
func (p *Plane) ListenTCP(port uint16) error {
	ss := p.socks.streams
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.closed {
		return errClosed
	}
	if port == ss.port {
		return nil
	}
	if ss.listener != nil {
		ss.listener.Close()
		ss.listener, ss.port = nil, 0
	}
	if port == 0 {
		return nil
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) // both families
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
	}
	if err != nil {
		return fmt.Errorf("userspace: TCP port %d: %w", port, err)
	}
	ss.listener, ss.port = l, port
	ss.workers.Add(1)
	go func() { defer ss.workers.Done(); ss.accept(l) }()
	return nil
}

func (ss *streams) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		ss.take(c)
	}
}

// addrPortOf is a TCP address without the mapping of IPv4 into IPv6.
func addrPortOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	x := t.AddrPort()
	return netip.AddrPortFrom(x.Addr().Unmap().WithZone(""), x.Port())
}

func sourceOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// take makes a stream of a connection that somebody opened, if there is room for it.
func (ss *streams) take(c net.Conn) {
	path := streamPath{addrPortOf(c.LocalAddr()), addrPortOf(c.RemoteAddr())}
	source := sourceOf(path.remote.Addr())
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.closed || ss.all[path] != nil || len(ss.all) >= maxStreams || ss.nStranger >= maxStrangers || ss.strangers[source] >= strangersPerSource {
		ss.p.malformed.Add(1)
		c.Close()
		return
	}
	s := &stream{ss: ss, path: path, stranger: true, conn: c, wake: make(chan struct{}, 1)}
	ss.nStranger++
	ss.strangers[source]++
	ss.all[path] = s
	ss.begin(s)
}

// acquainted takes a stream off the strangers; ss.mu is held.
func (ss *streams) acquainted(s *stream) {
	if !s.stranger {
		return
	}
	s.stranger = false
	source := sourceOf(s.path.remote.Addr())
	ss.nStranger--
	if ss.strangers[source]--; ss.strangers[source] <= 0 {
		delete(ss.strangers, source)
	}
}

// begin starts the goroutines of a stream whose connection stands; ss.mu is held.
func (ss *streams) begin(s *stream) {
	if t, ok := s.conn.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	s.used.Store(time.Now().UnixNano())
	ss.workers.Add(2)
	go func() { defer ss.workers.Done(); s.read() }()
	go func() { defer ss.workers.Done(); s.write() }()
}

// bind says that a connection is an SA's. There may be none: a successor has none yet.
func (ss *streams) bind(p *peer) {
	if !p.tcp {
		return
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.all[p.path()]; s != nil && !s.known.Load() {
		s.known.Store(true)
		ss.acquainted(s)
	}
}

func (ss *streams) find(path streamPath) *stream {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.all[path]
}

// sendIKE sends one message, and opens a connection for it where that is ours to do.
func (ss *streams) sendIKE(path streamPath, msg []byte) error {
	s := ss.find(path)
	if s == nil && path.ours() {
		s = ss.dial(path)
	}
	if s == nil {
		return errNoStream
	}
	if !s.send(nonESPMarker[:], msg, streamQueue+ikeReserve) {
		return errStreamFull
	}
	return nil
}

// sendESP sends one packet, or says that it cannot.
func (ss *streams) sendESP(path streamPath, pkt []byte) bool {
	s := ss.find(path)
	if s == nil && path.ours() {
		s = ss.dial(path)
	}
	return s != nil && s.send(pkt, nil, streamQueue)
}

// send queues a message and never waits.
func (s *stream) send(first, second []byte, most int) bool {
	s.mu.Lock()
	if s.conn == nil {
		most = dialQueue
	}
	ok := !s.closed && len(s.out)+frameHead+len(first)+len(second) <= most
	if ok {
		s.out, ok = appendFrame(s.out, first, second)
	}
	s.mu.Unlock()
	if ok {
		s.poke()
	}
	return ok
}

func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// dial begins to open a connection; nil: there are too many.
func (ss *streams) dial(path streamPath) *stream {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.all[path]; s != nil {
		return s
	}
	if ss.closed || len(ss.all) >= maxStreams {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	s := &stream{ss: ss, path: path, wake: make(chan struct{}, 1), out: []byte(streamPrefix), ended: cancel}
	ss.all[path] = s
	ss.workers.Add(1)
	go func() { defer ss.workers.Done(); s.open(ctx) }()
	return s
}

// open tries until a connection stands or the time is over: after a takeover the address
// may take a moment to be somewhere.
func (s *stream) open(ctx context.Context) {
	d := net.Dialer{Timeout: 3 * time.Second}
	if a := s.path.local.Addr(); a.IsValid() && !a.IsUnspecified() {
		d.LocalAddr = &net.TCPAddr{IP: a.AsSlice()}
	}
	for {
		c, err := d.DialContext(ctx, "tcp", s.path.remote.String())
		if err == nil {
			s.ss.opened(s, c)
			return
		}
		again := time.NewTimer(dialAgain)
		select {
		case <-ctx.Done():
			again.Stop()
			s.ss.p.log.Debug("no TCP connection", "remote", s.path.remote.String(), "error", err.Error())
			s.end()
			return
		case <-again.C:
		}
	}
}

func (ss *streams) opened(s *stream, c net.Conn) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.mu.Lock()
	ended := s.closed
	if !ended {
		s.conn = c
	}
	s.mu.Unlock()
	if ended {
		c.Close()
		return
	}
	s.known.Store(true) // nobody forced it on us
	ss.begin(s)
	s.poke()
}

// end closes a stream and forgets it; it may be called more than once.
func (s *stream) end() (first bool) {
	s.ss.mu.Lock()
	s.ss.acquainted(s)
	if s.ss.all[s.path] == s {
		delete(s.ss.all, s.path)
	}
	s.ss.mu.Unlock()
	s.mu.Lock()
	first = !s.closed
	s.closed, s.out = true, nil
	c := s.conn
	s.mu.Unlock()
	if s.ended != nil {
		s.ended()
	}
	if c != nil {
		c.Close()
	}
	s.poke()
	return first
}

// write sends what is queued, all of it at a time.
func (s *stream) write() {
	var spare []byte
	for range s.wake {
		s.mu.Lock()
		b, over := s.out, s.closed
		s.out = spare[:0]
		s.mu.Unlock()
		if over {
			return
		}
		if len(b) == 0 {
			spare = b
			continue
		}
		for rest := b; len(rest) > 0; {
			_ = s.conn.SetWriteDeadline(time.Now().Add(writeTime))
			n, err := s.conn.Write(rest[:min(len(rest), 256<<10)])
			if err != nil {
				s.lost()
				return
			}
			rest = rest[n:]
		}
		s.used.Store(time.Now().UnixNano())
		if spare = b; cap(spare) > streamQueue/4 {
			spare = nil // of a burst
		}
		s.mu.Lock()
		if more := len(s.out) > 0; more {
			s.poke()
		}
		s.mu.Unlock()
	}
}

// lost ends a stream that was not closed on purpose, and has the SAs of one that is ours
// to open ask for another.
func (s *stream) lost() {
	if !s.end() || !s.path.ours() {
		return
	}
	p := s.ss.p
	p.mu.Lock()
	for _, x := range p.sas.list() {
		if pr := x.peer.Load(); pr.tcp && pr.path() == s.path {
			p.evs.add(xfrm.StreamLost{SPIIn: x.SPIIn})
		}
	}
	p.mu.Unlock()
	p.evs.flush()
}

// read takes messages until the stream ends.
func (s *stream) read() {
	p := s.ss.p
	p.mu.Lock()
	e := p.newEpoch()
	p.mu.Unlock()
	defer func() {
		s.lost()
		p.mu.Lock()
		p.dropEpoch(e)
		p.mu.Unlock()
	}()
	f := frames{prefix: !s.path.ours(), longest: strangerFrame}
	begun, total := time.Now(), 0
	for {
		known := s.known.Load()
		if known {
			_ = s.conn.SetReadDeadline(time.Now().Add(streamIdle))
		} else {
			_ = s.conn.SetReadDeadline(begun.Add(strangerTime))
		}
		n, err := s.conn.Read(f.room())
		if err != nil {
			if s.patience(err, known) {
				continue
			}
			return
		}
		if total += n; s.known.Load() {
			f.longest = longestFrame // perhaps since this read began
		} else if total > strangerBytes {
			p.malformed.Add(1)
			return
		}
		f.wrote(n)
		s.used.Store(time.Now().UnixNano())
		e.enter()
		ok := s.messages(&f)
		e.leave()
		p.evs.flush()
		if !ok {
			return
		}
	}
}

// patience says whether to go on reading after an error: what is sent keeps a stream, too,
// and a stranger may have become acquainted while nothing came.
func (s *stream) patience(err error, known bool) bool {
	if !errors.Is(err, unix.ETIMEDOUT) && errors.As(err, new(*net.OpError)) && isDeadline(err) {
		if !known {
			return s.known.Load()
		}
		return time.Since(time.Unix(0, s.used.Load())) < streamIdle
	}
	return false
}

func isDeadline(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// messages handles all that have come whole; false: the stream is of no use.
func (s *stream) messages(f *frames) bool {
	p, now := s.ss.p, s.ss.p.clock()
	m := mergers.Get().(*merger)
	defer func() {
		m.flush()
		mergers.Put(m)
	}()
	for {
		b, err := f.next()
		if err != nil {
			p.malformed.Add(1)
			return false
		}
		if b == nil {
			return true
		}
		switch class, body := classify(b); class {
		case isESP:
			p.espIn(body, &arrival{local: s.path.local, remote: s.path.remote, udp: true, tcp: true}, m, now)
		case isIKE:
			p.ike(xfrm.IKEDatagram{Local: s.path.local, Remote: s.path.remote, NonESP: true, TCP: true}, body)
		case isMalformed:
			p.malformed.Add(1)
			if !s.known.Load() {
				return false
			}
		}
	}
}

// endStreams closes the connections of a scope that is not active here any more: the peer
// shall open others, to whom it is now; p.mu is held.
func (p *Plane) endStreams(sc *scope) {
	for _, x := range p.sas.list() {
		if pr := x.peer.Load(); x.scope == sc && pr.tcp {
			if s := p.socks.streams.find(pr.path()); s != nil {
				s.end()
			}
		}
	}
}

// close ends everything and waits.
func (ss *streams) close() {
	ss.mu.Lock()
	ss.closed = true
	if ss.listener != nil {
		ss.listener.Close()
	}
	var all []*stream
	for _, s := range ss.all {
		all = append(all, s)
	}
	ss.mu.Unlock()
	for _, s := range all {
		s.end()
	}
	ss.workers.Wait()
}
