package xfrmtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host is a UDP socket on an inner address of a site.
type host struct {
	t    testing.TB
	s    *site
	conn *net.UDPConn
	buf  [2048]byte
}

// host opens a UDP socket with DF set on the site's inner address.
func (s *site) host(v6 bool, port uint16) *host {
	s.t.Helper()
	a := s.lan4
	if v6 {
		a = s.lan6
	}
	h := &host{t: s.t, s: s}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		e := c.Control(func(fd uintptr) {
			if v6 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}
		})
		if e != nil {
			return e
		}
		return err
	}}
	s.must("inner socket", func() error {
		c, err := lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			h.conn = c.(*net.UDPConn)
		}
		return err
	})
	s.t.Cleanup(func() { h.conn.Close() })
	return h
}

func (h *host) addr() netip.AddrPort { return h.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// send sends datagram number n, size bytes of payload long.
func (h *host) send(to *host, n uint32, size int) {
	h.t.Helper()
	b := payload(n, size)
	if _, err := h.conn.WriteToUDPAddrPort(b, to.addr()); err != nil {
		h.t.Fatalf("send %d bytes: %v", size, err)
	}
}

func payload(n uint32, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i*7) + byte(n)
	}
	binary.BigEndian.PutUint32(b, n)
	return b
}

// recv returns the number of the next datagram, whose content must be whole.
func (h *host) recv() (uint32, error) {
	_ = h.conn.SetReadDeadline(time.Now().Add(patience))
	n, _, err := h.conn.ReadFromUDPAddrPort(h.buf[:])
	if err != nil {
		return 0, err
	}
	k := binary.BigEndian.Uint32(h.buf[:])
	if string(payload(k, n)) != string(h.buf[:n]) {
		return k, fmt.Errorf("datagram %d is damaged", k)
	}
	return k, nil
}

// want receives exactly these numbers, in this order.
func (h *host) want(ns ...uint32) {
	h.t.Helper()
	for _, n := range ns {
		if got, err := h.recv(); err != nil || got != n {
			h.t.Fatalf("datagram %d, %v; want %d\n%s", got, err, n, h.s.pair.dump())
		}
	}
}

// wantNothing must follow a condition that proves that the packets in question
// have been dealt with: it only looks at what has arrived already.
func (h *host) wantNothing() {
	h.t.Helper()
	_ = h.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, _, err := h.conn.ReadFromUDPAddrPort(h.buf[:]); err == nil {
		h.t.Fatalf("a datagram of %d bytes got through: %d", n, binary.BigEndian.Uint32(h.buf[:]))
	}
}

// tap watches and feeds the wire at one site.
type tap struct {
	s     *site
	fd    int
	index int
}

// espFrame is one ESP packet seen on the wire.
type espFrame struct {
	spi, seq uint32
	raw      []byte // with the Ethernet header
	udp      bool
}

func (s *site) tap() *tap {
	s.t.Helper()
	tp := &tap{s: s}
	s.must("tap", func() error {
		i, err := net.InterfaceByName("wan")
		if err != nil {
			return err
		}
		tp.index = i.Index
		const all = uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		if tp.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(tp.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return unix.Bind(tp.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	s.t.Cleanup(func() { unix.Close(tp.fd) })
	return tp
}

// frames returns the unfragmented ESP packets that went in either direction since
// the last call. Every one that a peer has received is among them.
func (tp *tap) frames() (l []espFrame) {
	b := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(tp.fd, b, 0)
		if err != nil {
			return l
		}
		if f, ok := parseFrame(b[:n]); ok {
			l = append(l, f)
		}
	}
}

func parseFrame(b []byte) (f espFrame, ok bool) {
	if len(b) < 34 {
		return f, false
	}
	f.raw = append([]byte(nil), b...)
	var proto byte
	var d []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if binary.BigEndian.Uint16(b[20:])&0x3fff != 0 {
			return f, false
		}
		proto, d = b[23], b[14+int(b[14]&15)*4:]
	case unix.ETH_P_IPV6:
		if len(b) < 54 {
			return f, false
		}
		proto, d = b[20], b[54:]
	}
	if proto == unix.IPPROTO_UDP && len(d) >= 16 && binary.BigEndian.Uint16(d[2:]) == 4500 {
		f.udp, d = true, d[8:]
	} else if proto != unix.IPPROTO_ESP {
		return f, false
	}
	if len(d) < 8 {
		return f, false
	}
	f.spi, f.seq = binary.BigEndian.Uint32(d), binary.BigEndian.Uint32(d[4:])
	return f, f.spi != 0
}

// inject puts a frame on the wire as if this site had sent it.
func (tp *tap) inject(raw []byte) {
	tp.s.t.Helper()
	if err := unix.Sendto(tp.fd, raw, 0, &unix.SockaddrLinklayer{Ifindex: tp.index, Halen: 6}); err != nil {
		tp.s.t.Fatalf("inject: %v", err)
	}
}
