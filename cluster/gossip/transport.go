package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"tandem/cluster"
	"tandem/internal/quiet"
)

const (
	maxPacket        = 65536
	maxStreams       = 32 // that shake hands
	handshakeTimeout = 2 * time.Second
)

// transport carries memberlist over one UDP and one TCP port of the synchronisation
// link. memberlist knows no zones: those of link-local addresses are added here.
type transport struct {
	bind    netip.AddrPort
	id      *cluster.Identity
	lines   *quiet.Lines
	udp     *net.UDPConn
	tcp     net.Listener
	packets chan *memberlist.Packet
	streams chan net.Conn
	slots   chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	once    sync.Once
}

func newTransport(bind netip.AddrPort, id *cluster.Identity, lines *quiet.Lines) (*transport, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(bind))
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(bind.Addr(), port)))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), l.Close())
	}
	t := &transport{bind: netip.AddrPortFrom(bind.Addr(), port), id: id, lines: lines, udp: u, tcp: l,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), slots: make(chan struct{}, maxStreams)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.wg.Go(t.receive)
	t.wg.Go(t.accept)
	return t, nil
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.bind.Addr().WithZone("").AsSlice(), int(t.bind.Port()), nil
}

// zoned is an address as the kernel wants it.
func (t *transport) zoned(addr string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(addr)
	if err == nil && a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
		a = netip.AddrPortFrom(a.Addr().WithZone(t.bind.Addr().Zone()), a.Port())
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), err
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	a, err := t.zoned(addr)
	if err == nil {
		_, err = t.udp.WriteToUDPAddrPort(b, a)
	}
	return time.Now(), err
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	a, err := t.zoned(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: t.id.TLS()}
	return d.DialContext(ctx, "tcp", a.String())
}

func (t *transport) receive() {
	for {
		b := make([]byte, maxPacket)
		n, from, err := t.udp.ReadFromUDPAddrPort(b)
		now := time.Now()
		if err != nil {
			if t.ctx.Err() != nil {
				return
			}
			continue // an ICMP error of what we sent
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), b[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: now}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) accept() {
	for {
		c, err := t.tcp.Accept()
		if err != nil {
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond): // out of descriptors, most likely
			}
			continue
		}
		select {
		case t.slots <- struct{}{}:
			t.wg.Go(func() { t.greet(c) })
		default:
			_ = c.Close()
		}
	}
}

// greet lets a member in: nothing is said to whoever shows no certificate.
func (t *transport) greet(raw net.Conn) {
	defer func() { <-t.slots }()
	c := tls.Server(raw, t.id.TLS())
	ctx, cancel := context.WithTimeout(t.ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		if t.ctx.Err() == nil {
			_, _ = t.lines.Write([]byte("[WARN] refused: " + err.Error() + " from=" + raw.RemoteAddr().String()))
		}
		_ = raw.Close()
		return
	}
	select {
	case t.streams <- c:
	case <-t.ctx.Done():
		_ = c.Close()
	}
}

func (t *transport) Shutdown() error {
	var err error
	t.once.Do(func() {
		t.cancel()
		err = errors.Join(t.udp.Close(), t.tcp.Close())
		t.wg.Wait()
	})
	return err
}
