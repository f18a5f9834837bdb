// Package bfdnet gives sessions of package bfd their sockets and timers: single-hop
// BFD over UDP port 3784 in IPv4 and IPv6 (RFC 5881), sent and taken with a TTL or hop
// limit of 255 only, so that nobody beyond the link can take part (RFC 5082).
package bfdnet

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"tandem/internal/bfd"
)

const (
	port      = 3784                  // RFC 5881 §4
	ttl       = 255                   // RFC 5881 §5
	firstPort = 49152                 // of those to send from (RFC 5881 §4)
	ports     = 1<<16 - firstPort     //
	maxPacket = 512                   // longer ones are cut, and still decode if their length field fits
	backlog   = 256                   // packets read and not handled; more are dropped, as UDP may
	portTries = 32                    // before there is taken to be no port left
	farewells = 3                     // packets that say AdminDown
	oversleep = 20 * time.Millisecond // behind what was due: this process was not let run
	breather  = 5 * time.Millisecond
)

// Session is one neighbour.
type Session struct {
	Peer          netip.Addr
	DesiredMinTx  time.Duration
	RequiredMinRx time.Duration
	DetectMult    uint8
}

// Counters of packets that were dropped.
type Counters struct {
	TTL     uint64 // not 255: from beyond the link
	Faulty  uint64 // by RFC 5880 §6.8.6
	Unknown uint64 // of no session
	Dropped uint64 // faster than they could be handled
}

// Changed is called on a change of a session's state, from one goroutine; it must not block.
type Changed func(peer netip.Addr, c bfd.Changed)

// Server runs the sessions.
type Server struct {
	changed Changed
	socks   []net.PacketConn
	in      chan packet
	done    chan struct{}
	closing chan struct{}
	ask     chan chan []Status
	wanted  chan wanted
	readers sync.WaitGroup

	ttl, faulty, unknown, dropped atomic.Uint64

	// Owned by run.
	byDiscr map[uint32]*session
	byPeer  map[netip.Addr]*session
}

type wanted struct {
	peer netip.Addr
	on   bool
}

type packet struct {
	from netip.Addr
	p    bfd.Packet
}

type session struct {
	Session
	core *bfd.Session // nil: not begun
	out  net.PacketConn
	dst  *net.UDPAddr
}

// New opens the sockets; Want begins the sessions. It fails if somebody else answers
// BFD on this machine (in this network namespace).
func New(sessions []Session, changed Changed) (*Server, error) {
	s := &Server{
		changed: changed, in: make(chan packet, backlog), done: make(chan struct{}), closing: make(chan struct{}), ask: make(chan chan []Status), wanted: make(chan wanted),
		byDiscr: map[uint32]*session{}, byPeer: map[netip.Addr]*session{},
	}
	v4, v6 := false, false
	for _, x := range sessions {
		x.Peer = x.Peer.Unmap()
		if s.byPeer[x.Peer] != nil {
			s.closeSockets()
			return nil, fmt.Errorf("bfd: %s twice", x.Peer)
		}
		n := &session{Session: x, dst: net.UDPAddrFromAddrPort(netip.AddrPortFrom(x.Peer, port))}
		s.byPeer[x.Peer] = n
		var err error
		if n.out, err = sender(x.Peer.Is4()); err != nil {
			s.closeSockets()
			return nil, fmt.Errorf("bfd: %w", err)
		}
		s.socks = append(s.socks, n.out)
		v4, v6 = v4 || x.Peer.Is4(), v6 || x.Peer.Is6()
	}
	for _, f := range []struct {
		want bool
		open func() (net.PacketConn, reader, error)
	}{{v4, listen4}, {v6, listen6}} {
		if !f.want {
			continue
		}
		c, read, err := f.open()
		if err != nil {
			s.closeSockets()
			return nil, fmt.Errorf("bfd: %w", err)
		}
		s.socks = append(s.socks, c)
		s.readers.Go(func() { s.read(read) })
	}
	go s.run()
	return s, nil
}

// freshDiscr is a discriminator that another process is unlikely to have had.
func (s *Server) freshDiscr() uint32 {
	for {
		var b [4]byte
		_, _ = crand.Read(b[:]) // never fails since Go 1.24
		if d := binary.BigEndian.Uint32(b[:]); d != 0 && s.byDiscr[d] == nil {
			return d
		}
	}
}

// Counters are those since New.
func (s *Server) Counters() Counters {
	return Counters{TTL: s.ttl.Load(), Faulty: s.faulty.Load(), Unknown: s.unknown.Load(), Dropped: s.dropped.Load()}
}

// Status is one session.
type Status struct {
	Peer      netip.Addr
	Says      bfd.Packet    // what we send: the state, the discriminators, our intervals
	Detection time.Duration // how long the neighbour may be silent; 0 before its first packet
}

// Sessions are the present ones, in no order; none after Close.
func (s *Server) Sessions() []Status {
	answer := make(chan []Status, 1)
	select {
	case s.ask <- answer:
		return <-answer
	case <-s.done:
		return nil
	}
}

// Want begins a neighbour's session, or ends it: the neighbour hears that this is a
// decision.
func (s *Server) Want(peer netip.Addr, on bool) {
	select {
	case s.wanted <- wanted{peer.Unmap(), on}:
	case <-s.done:
	}
}

// want is Want on the goroutine that owns the sessions.
func (s *Server) want(now time.Time, w wanted) {
	n := s.byPeer[w.peer]
	switch {
	case n == nil || (n.core != nil) == w.on:
	case w.on:
		n.core = bfd.New(now, bfd.Config{
			Discr: s.freshDiscr(), DesiredMinTx: n.DesiredMinTx, RequiredMinRx: n.RequiredMinRx, DetectMult: n.DetectMult, Rand: rand.Uint32N,
		})
		s.byDiscr[n.core.Discr()] = n
		s.carry(n)
	default:
		n.core.Close(now)
		s.carry(n)
		for range farewells - 1 {
			n.send(n.core.Packet())
		}
		delete(s.byDiscr, n.core.Discr())
		n.core = nil
	}
}

// Close tells the neighbours that the sessions end by decision, and ends.
func (s *Server) Close() {
	close(s.closing)
	<-s.done
	s.closeSockets()
	s.readers.Wait()
}

func (s *Server) closeSockets() {
	for _, c := range s.socks {
		_ = c.Close()
	}
}

// reader reads one packet: its length, sender, and TTL (-1: not known).
type reader func(b []byte) (n int, from net.Addr, ttl int, err error)

// listen opens a socket for the packets of one version of IP.
func listen(network string, reads func(net.PacketConn) (reader, error)) (net.PacketConn, reader, error) {
	c, err := net.ListenPacket(network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, nil, err
	}
	r, err := reads(c)
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return c, r, nil
}

func listen4() (net.PacketConn, reader, error) {
	return listen("udp4", func(c net.PacketConn) (reader, error) {
		p := ipv4.NewPacketConn(c)
		return withTTL(p.ReadFrom, func(m *ipv4.ControlMessage) int { return m.TTL }), p.SetControlMessage(ipv4.FlagTTL, true)
	})
}

func listen6() (net.PacketConn, reader, error) {
	return listen("udp6", func(c net.PacketConn) (reader, error) {
		p := ipv6.NewPacketConn(c)
		return withTTL(p.ReadFrom, func(m *ipv6.ControlMessage) int { return m.HopLimit }), p.SetControlMessage(ipv6.FlagHopLimit, true)
	})
}

// withTTL takes the TTL, or the hop limit, from what the kernel says beside a packet.
func withTTL[M any](read func([]byte) (int, *M, net.Addr, error), ttl func(*M) int) reader {
	return func(b []byte) (int, net.Addr, int, error) {
		n, beside, from, err := read(b)
		if beside == nil {
			return n, from, -1, err
		}
		return n, from, ttl(beside), err
	}
}

// read takes packets in until the socket is closed.
func (s *Server) read(next reader) {
	b := make([]byte, maxPacket)
	for {
		n, from, hops, err := next(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error that the kernel hands on
		}
		if hops != ttl {
			s.ttl.Add(1)
			continue
		}
		p, err := bfd.Decode(b[:n])
		u, ok := from.(*net.UDPAddr)
		if err != nil || !ok {
			s.faulty.Add(1)
			continue
		}
		select {
		case s.in <- packet{u.AddrPort().Addr().Unmap().WithZone(""), p}:
		default:
			s.dropped.Add(1)
		}
	}
}

// run owns the sessions.
func (s *Server) run() {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	late := false
	for {
		due := s.arm(timer, late)
		select {
		case <-s.closing:
			for peer := range s.byPeer {
				s.want(time.Now(), wanted{peer, false})
			}
			return
		case w := <-s.wanted:
			s.want(time.Now(), w)
		case p := <-s.in:
			s.handle(time.Now(), p)
		case answer := <-s.ask:
			var all []Status
			for _, n := range s.byPeer {
				x := Status{Peer: n.Peer, Says: bfd.Packet{State: bfd.Down}}
				if n.core != nil {
					x.Says, x.Detection = n.core.Packet(), n.core.DetectionTime()
				}
				all = append(all, x)
			}
			answer <- all
		case <-timer.C:
			// What waits arrived before this moment. If this process did not run when it
			// should have, it also lies in the sockets: they get their turn first.
			s.drain()
			now := time.Now()
			if late = !late && now.Sub(due) > oversleep; late {
				continue
			}
			for _, n := range s.byDiscr {
				n.core.HandleTimeout(now)
				s.carry(n)
			}
		}
	}
}

// arm sets the timer to what is due first, and returns when that is.
func (s *Server) arm(timer *time.Timer, late bool) time.Time {
	now := time.Now()
	due := now.Add(time.Hour)
	for _, n := range s.byDiscr {
		if at, ok := n.core.NextTimeout(); ok && at.Before(due) {
			due = at
		}
	}
	wait := max(due.Sub(now), 0)
	if late {
		wait = max(wait, breather)
	}
	timer.Reset(wait)
	return due
}

// drain handles what has been read, as much as fits into the queue once.
func (s *Server) drain() {
	for range backlog {
		select {
		case p := <-s.in:
			s.handle(time.Now(), p)
		default:
			return
		}
	}
}

func (s *Server) handle(now time.Time, p packet) {
	n := s.byPeer[p.from]
	if p.p.YourDiscr != 0 {
		n = s.byDiscr[p.p.YourDiscr]
	}
	if n == nil || n.core == nil || n.Peer != p.from {
		s.unknown.Add(1)
		return
	}
	n.core.HandlePacket(now, p.p)
	s.carry(n)
}

func (s *Server) carry(n *session) {
	for e, ok := n.core.Poll(); ok; e, ok = n.core.Poll() {
		switch e := e.(type) {
		case bfd.Send:
			n.send(e.Packet)
		case bfd.Changed:
			s.changed(n.Peer, e)
		}
	}
}

// send says something to the neighbour. One that cannot be reached now is what BFD is
// there to find out: errors count as loss.
func (n *session) send(p bfd.Packet) { _, _ = n.out.WriteTo(p.Append(nil), n.dst) }

// sender opens a socket on a free port of RFC 5881 §4, with the TTL of §5.
func sender(v4 bool) (c net.PacketConn, err error) {
	network := "udp6"
	if v4 {
		network = "udp4"
	}
	for range portTries {
		if c, err = net.ListenPacket(network, fmt.Sprintf(":%d", firstPort+rand.IntN(ports))); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	_ = c.(*net.UDPConn).SetReadBuffer(0) // nothing is read from it
	if v4 {
		err = ipv4.NewPacketConn(c).SetTTL(ttl)
	} else {
		err = ipv6.NewPacketConn(c).SetHopLimit(ttl)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
