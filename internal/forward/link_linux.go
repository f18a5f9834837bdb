package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/internal/mmsg"
	"tandem/xfrm"
)

// DefaultPort is the UDP port that members agree on unless configured otherwise.
const DefaultPort = 710

// Options of a Link. Self, Key, Listen and Deliver are required.
type Options struct {
	Self   NodeID
	Key    ipsec.Key      // every member's, of at least 32 bytes
	Listen netip.AddrPort // the sync address; port 0 takes any
	Log    *slog.Logger   // default slog.Default
	Clock  func() time.Time
	// MaxDatagram limits what is sent below the path MTU, bytes of UDP payload; 0: no limit.
	MaxDatagram int

	// Deliver takes packets for Inject; their From is set. The slice and the packets are
	// the link's again when it returns. It is called from one goroutine.
	Deliver func([]xfrm.Stray)
	// IKE takes IKE messages; Data is the callee's to keep. last: it was handed on before.
	// nil: they are dropped.
	IKE func(from NodeID, d xfrm.IKEDatagram, last bool)
	// LAN takes what members tell about inner prefixes; the message is the callee's to keep.
	// nil: it is dropped.
	LAN func(from NodeID, message []byte)
}

// Link is one member's end. Its socket belongs to the network namespace of the
// thread that calls New.
type Link struct {
	o    Options
	log  *slog.Logger
	keys keys

	file  *os.File
	rc    syscall.RawConn
	fd    int
	local netip.AddrPort
	probe *mmsg.Prober

	peers atomic.Pointer[[maxNode + 1]*peer]
	setMu sync.Mutex // one SetPeers at a time
	stop  chan struct{}
	// Those that write, and then the one that reads, end before the socket is closed.
	writers, reader sync.WaitGroup
	once            sync.Once

	greetings chan struct{} // a hello may be due
	queue     queue
	send      sender
	recv      receiver

	strangers, malformed, noMember atomic.Uint64
}

// New opens the socket and begins to receive.
func New(o Options) (*Link, error) {
	l, err := newLink(o)
	if err != nil {
		return nil, err
	}
	l.writers.Go(l.sendLoop)
	l.writers.Go(l.greetLoop)
	l.reader.Go(l.receiveLoop)
	return l, nil
}

// newLink makes a link that does nothing by itself.
func newLink(o Options) (*Link, error) {
	switch {
	case o.Self < 1 || o.Self > maxNode:
		return nil, fmt.Errorf("forward: member %d is not 1 to %d", o.Self, maxNode)
	case o.Key.Len() < 32:
		return nil, errors.New("forward: the key has less than 32 bytes")
	case o.Deliver == nil:
		return nil, errors.New("forward: nobody to deliver to")
	case !o.Listen.Addr().IsValid():
		return nil, errors.New("forward: no sync address")
	case o.MaxDatagram != 0 && o.MaxDatagram < minDatagram:
		return nil, fmt.Errorf("forward: datagrams of %d bytes: at least %d", o.MaxDatagram, minDatagram)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	l := &Link{o: o, log: o.Log, keys: newKeys(o.Key), stop: make(chan struct{}), greetings: make(chan struct{}, 1)}
	l.peers.Store(new([maxNode + 1]*peer))
	l.queue.init()
	l.send.init()
	l.recv.init()
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Link) open() error {
	a := l.o.Listen.Addr().Unmap()
	domain, level, name, do := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if a.Is6() {
		domain, level, name, do = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("forward: socket: %w", err)
	}
	fail := func(err error) error { unix.Close(fd); return err }
	if err := unix.SetsockoptInt(fd, level, name, do); err != nil {
		return fail(fmt.Errorf("forward: path MTU discovery: %w", err))
	}
	for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil { // needs CAP_NET_ADMIN of the machine
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, socketBuffer)
		}
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, l.o.Listen.Port()))); err != nil {
		return fail(fmt.Errorf("forward: %v: %w", l.o.Listen, err))
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fail(err)
	}
	port := l.o.Listen.Port()
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		port = uint16(sa.Port)
	case *unix.SockaddrInet6:
		port = uint16(sa.Port)
	}
	l.local = netip.AddrPortFrom(a, port)
	if l.probe, err = mmsg.OpenProber(a.Is6()); err != nil {
		return fail(err)
	}
	l.fd, l.file = fd, os.NewFile(uintptr(fd), "forward")
	if l.rc, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		l.probe.Close()
		return err
	}
	return nil
}

const socketBuffer = 4 << 20

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// LocalAddr is the address that the link is bound to.
func (l *Link) LocalAddr() netip.AddrPort { return l.local }

// SetPeers names the other members and their addresses. A member whose address stays
// the same keeps its session. Self is ignored.
func (l *Link) SetPeers(ps map[NodeID]netip.AddrPort) {
	l.setMu.Lock()
	defer l.setMu.Unlock()
	was, is := l.peers.Load(), new([maxNode + 1]*peer)
	for id, a := range ps {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if id < 1 || id > maxNode || id == l.o.Self || a.Addr().Is4() != l.local.Addr().Is4() || a.Port() == 0 {
			if id != l.o.Self {
				l.log.Warn("no forwarding to member", "member", id, "address", a)
			}
			continue
		}
		if p := was[id]; p != nil && p.addr == a {
			is[id] = p
		} else {
			is[id] = newPeer(id, a)
		}
	}
	l.peers.Store(is)
	l.wakeGreetings()
}

func (l *Link) peer(id NodeID) *peer {
	if id < 1 || id > maxNode {
		return nil
	}
	return l.peers.Load()[id]
}

// Stats is what was counted since New, for the members that are configured now.
func (l *Link) Stats() Stats {
	s := Stats{
		Members: map[NodeID]MemberStats{}, Strangers: l.strangers.Load(), Malformed: l.malformed.Load(), NoMember: l.noMember.Load(),
	}
	for _, p := range l.peers.Load() {
		if p != nil {
			s.Members[p.id] = p.snapshot()
		}
	}
	return s
}

// Members are those that packets can be sent to now, ascending.
func (l *Link) Members() []NodeID {
	up := map[NodeID]bool{}
	for _, p := range l.peers.Load() {
		if p != nil && p.tx.Load() != nil {
			up[p.id] = true
		}
	}
	return slices.Sorted(maps.Keys(up))
}

// Close ends the link. Nothing is delivered after it has returned.
func (l *Link) Close() error {
	l.once.Do(func() {
		close(l.stop)
		l.writers.Wait()
		l.file.Close()
		l.reader.Wait()
		l.probe.Close()
	})
	return nil
}

func (l *Link) wakeGreetings() {
	select {
	case l.greetings <- struct{}{}:
	default:
	}
}

// greetLoop says hello until every member has answered, and sleeps then.
func (l *Link) greetLoop() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-l.greetings:
		case <-t.C:
		}
		now := l.o.Clock()
		var next time.Time
		for _, p := range l.peers.Load() {
			if p == nil {
				continue
			}
			p.mu.Lock()
			echo, at := p.greet.due(now)
			p.mu.Unlock()
			if echo != 0 {
				l.greetPeer(p, typeHello, p.session, echo, 0)
			}
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		if next.IsZero() {
			t.Stop()
		} else {
			t.Reset(max(next.Sub(now), time.Millisecond))
		}
	}
}

// greetPeer sends one greeting; a lost one is repeated by whoever waits for it.
func (l *Link) greetPeer(p *peer, t packetType, session, echo, token uint64) {
	b := l.keys.greet(header{kind: t, from: l.o.Self, to: p.id, session: session, counter: echo}, token)
	_ = l.rc.Control(func(fd uintptr) {
		_ = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, sockaddr(p.addr))
	})
}
