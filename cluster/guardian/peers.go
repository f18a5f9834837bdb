package guardian

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/cluster"
)

// peers are the addresses of a farm's other members, to which heartbeats go by
// unicast; they may be routed. What comes from elsewhere does not reach the sockets.
//
// Two sockets share the port. The kernel hands those heartbeats that say something
// new (cluster.HeartbeatNews) to one, which wakes the guardian, and the others to
// the other, which is read when it is awake: fifteen peers' beats would wake it
// 1,500 times a second.
type peers struct {
	addrs []netip.Addr // sorted
	out   outbox
	beats int // -1: not open; sends, too
	news  int
	quiet bool
}

// set takes another list. Nothing comes from, or goes to, who is not in it any more.
func (p *peers) set(addrs []netip.Addr, port int, log *slog.Logger) {
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if slices.Equal(addrs, p.addrs) {
		return
	}
	p.close()
	p.addrs, p.quiet = addrs, false
	p.out.aim(addrs, port)
	p.check(port, log)
}

func (p *peers) has(a netip.Addr) bool {
	_, ok := slices.BinarySearchFunc(p.addrs, a, netip.Addr.Compare)
	return ok
}

// check opens the sockets if they should be.
func (p *peers) check(port int, log *slog.Logger) {
	if p.beats >= 0 || len(p.addrs) == 0 {
		return
	}
	if err := p.open(port); err != nil {
		if !p.quiet {
			log.Warn("no heartbeats to and from peers, trying on", "error", err)
			p.quiet = true
		}
		return
	}
	p.quiet = false
	log.Info("heartbeats to and from these addresses", "peers", p.addrs)
}

func (p *peers) open(port int) (err error) {
	filter := fromOnly(p.addrs)
	if p.beats, err = openUnicast(port, filter); err != nil {
		return err
	}
	if p.news, err = openUnicast(port, filter); err == nil {
		// The sockets of a port are numbered in the order of their bind.
		err = attach(p.beats, unix.SO_ATTACH_REUSEPORT_CBPF, newsSecond)
	}
	if err != nil {
		p.close()
	}
	return err
}

func (p *peers) close() {
	for _, fd := range []*int{&p.beats, &p.news} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// send sends one datagram to every peer.
func (p *peers) send(b []byte, log *slog.Logger) {
	if p.beats >= 0 {
		p.out.send(p.beats, b, log)
	}
}

// unicastBuffer holds a second of fifteen peers' heartbeats, in bytes.
const unicastBuffer = 4 << 20

// openUnicast makes a socket for both IP versions, at every local address: which
// one leads to the peers may change.
func openUnicast(port int, filter []unix.SockFilter) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	set := func(level, opt, value int) {
		err = errors.Join(err, unix.SetsockoptInt(fd, level, opt, value))
	}
	set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // heartbeat devices have the port, too
	set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	set(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xc0) // CS6, as for routing protocols
	set(unix.IPPROTO_IP, unix.IP_TOS, 0xc0)
	set(unix.SOL_SOCKET, unix.SO_PRIORITY, 6)
	// A narrow path gets fragments rather than nothing.
	set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, unicastBuffer) != nil {
		set(unix.SOL_SOCKET, unix.SO_RCVBUF, unicastBuffer)
	}
	err = errors.Join(err, attach(fd, unix.SO_ATTACH_FILTER, filter))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: port})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func attach(fd, opt int, program []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, opt, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// Classic BPF, as of linux/filter.h.
const (
	loadByte = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	loadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	and      = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	ifEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ret      = unix.BPF_RET | unix.BPF_K

	network  = 1<<32 - 0x100000 // SKF_NET_OFF: offsets from the IP header
	sourceV4 = network + 12
	sourceV6 = network + 8
	whole    = 1 << 18 // bytes to keep
)

// newsSecond chooses the second socket for what has the hint: the program sees
// UDP's payload and returns the socket's number.
var newsSecond = []unix.SockFilter{
	{Code: loadByte, K: 0},
	{Code: and, K: cluster.HeartbeatNews},
	{Code: ifEqual, K: 0, Jt: 1},
	{Code: ret, K: 1},
	{Code: ret, K: 0},
}

// fromOnly takes what comes from these addresses.
func fromOnly(addrs []netip.Addr) (f []unix.SockFilter) {
	for _, version := range []uint32{4, 6} {
		var of []unix.SockFilter
		for _, a := range addrs {
			if a.Is4() != (version == 4) {
				continue
			}
			words, at := a.AsSlice(), uint32(sourceV6)
			if version == 4 {
				at = sourceV4
			}
			for left := len(words) / 4; left > 0; left-- {
				of = append(of,
					unix.SockFilter{Code: loadWord, K: at},
					unix.SockFilter{Code: ifEqual, K: binary.BigEndian.Uint32(words), Jf: uint8(2*left - 1)})
				words, at = words[4:], at+4
			}
			of = append(of, unix.SockFilter{Code: ret, K: whole})
		}
		f = append(f,
			unix.SockFilter{Code: loadByte, K: network},
			unix.SockFilter{Code: and, K: 0xf0},
			unix.SockFilter{Code: ifEqual, K: version << 4, Jt: 1},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(of))})
		f = append(f, of...)
	}
	return append(f, unix.SockFilter{Code: ret, K: 0})
}

// outbox sends one datagram to several addresses with one system call.
type outbox struct {
	addrs   []netip.Addr
	errs    []error // of sending to each, logged once
	names   []unix.RawSockaddrInet6
	headers []mmsghdr
	iovec   *unix.Iovec
}

func (o *outbox) aim(addrs []netip.Addr, port int) {
	n := len(addrs)
	*o = outbox{addrs, make([]error, n), make([]unix.RawSockaddrInet6, n), make([]mmsghdr, n), new(unix.Iovec)}
	for i, a := range addrs {
		o.names[i] = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.As16()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&o.names[i].Port))[:], uint16(port))
		h := &o.headers[i].Msghdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&o.names[i])), unix.SizeofSockaddrInet6
		h.Iov = o.iovec
		h.SetIovlen(1)
	}
}

func (o *outbox) send(fd int, b []byte, log *slog.Logger) {
	o.iovec.Base = &b[0]
	o.iovec.SetLen(len(b))
	for at := 0; at < len(o.headers); {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.headers[at])), uintptr(len(o.headers)-at), unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 { // of the first of them; none was sent
			o.tell(at, errno, log)
			at++
			continue
		}
		for range n {
			o.tell(at, nil, log)
			at++
		}
	}
	o.iovec.Base = nil
}

// tell logs how sending to one of them has changed.
func (o *outbox) tell(i int, err error, log *slog.Logger) {
	switch was := o.errs[i]; {
	case err == was:
		return
	case err == nil:
		log.Info("heartbeats leave again", "peer", o.addrs[i])
	default:
		log.Warn("heartbeats do not leave", "peer", o.addrs[i], "error", err)
	}
	o.errs[i] = err
}
