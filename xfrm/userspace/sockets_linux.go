package userspace

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
)

type sockKind uint8

const (
	sockIKE  sockKind = iota // UDP 500
	sockNATT                 // UDP 4500: IKE and ESP
	sockESP                  // protocol 50
)

// sock is one wildcard socket. All are bound to no address, so that shared
// addresses can come and go; the source is chosen per packet.
type sock struct {
	kind sockKind
	v6   bool
	file *os.File // owns fd, and waits for it through the runtime's poller
	rc   syscall.RawConn
	fd   int

	// The DF bit of IPv4 is a property of the socket, not of a message.
	sendMu sync.Mutex
	df     bool
	told   atomic.Bool // that a device does not cut buffers
}

type sockets struct {
	s     [3][2]*sock // by kind and family; IPv6 may be missing
	probe [2]*mmsg.Prober
	log   *slog.Logger

	streams *streams
}

func openSockets(ike, natt uint16, log *slog.Logger) (*sockets, error) {
	ss := &sockets{log: log}
	ports := [3]uint16{ike, natt, 0}
	for fam := range 2 {
		for kind := range ss.s {
			s, err := openSock(sockKind(kind), fam == 1, ports[kind])
			if fam == 1 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				break // a host without IPv6
			}
			if err != nil {
				ss.close()
				return nil, err
			}
			ss.s[kind][fam] = s
		}
		if ss.s[0][fam] != nil {
			var err error
			if ss.probe[fam], err = mmsg.OpenProber(fam == 1); err != nil {
				ss.close()
				return nil, err
			}
		}
	}
	return ss, nil
}

func (ss *sockets) all() (l []*sock) {
	for _, k := range ss.s {
		for _, s := range k {
			if s != nil {
				l = append(l, s)
			}
		}
	}
	return l
}

func (ss *sockets) close() {
	for _, s := range ss.all() {
		s.file.Close()
	}
	for _, p := range ss.probe {
		if p != nil {
			p.Close()
		}
	}
}

func (ss *sockets) of(kind sockKind, v6 bool) *sock {
	if v6 {
		return ss.s[kind][1]
	}
	return ss.s[kind][0]
}

type sockopt struct{ level, name, value int }

func openSock(kind sockKind, v6 bool, port uint16) (*sock, error) {
	domain, opts := unix.AF_INET, []sockopt{
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
		{unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if v6 {
		domain, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
		opts = []sockopt{
			{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
		}
	}
	typ, proto := unix.SOCK_DGRAM, 0
	if kind == sockESP {
		typ, proto = unix.SOCK_RAW, unix.IPPROTO_ESP
	} else if v6 {
		opts = append(opts, sockopt{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("userspace: socket: %w", err)
	}
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("userspace: socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, sockBuffer) != nil { // needs CAP_NET_ADMIN of the machine
			plain := unix.SO_RCVBUF
			if o == unix.SO_SNDBUFFORCE {
				plain = unix.SO_SNDBUF
			}
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, sockBuffer)
		}
	}
	if kind != sockESP {
		if err := unix.Bind(fd, addr); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("userspace: UDP port %d: %w", port, err)
		}
	}
	if kind == sockNATT {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // without it they come one by one
	}
	s := &sock{kind: kind, v6: v6, fd: fd, file: os.NewFile(uintptr(fd), "ipsec")}
	if s.rc, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

const sockBuffer = 4 << 20

// setDF is called with sendMu held.
func (s *sock) setDF(df bool) error {
	if s.df == df {
		return nil
	}
	var err error
	if s.v6 {
		v := unix.IPV6_PMTUDISC_DONT
		if df {
			v = unix.IPV6_PMTUDISC_DO
		}
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, v)
	} else {
		v := unix.IP_PMTUDISC_DONT
		if df {
			v = unix.IP_PMTUDISC_DO
		}
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, v)
	}
	if err == nil {
		s.df = df
	}
	return err
}
