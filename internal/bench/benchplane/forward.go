package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

// Forwarding without crypto: what the kernel hands over at a TUN interface crosses the
// wire in UDP and is handed to the other kernel as it was, uncut, unread and unprotected.
// It is the limit of whatever goes through TUN and UDP on this machine, no tunnel.
//
// A train is what one read of the TUN interface gave: virtio-net header and up to 64 KB
// of a packet yet to be segmented. It leaves in chunks, each with a header of 8 bytes:
// number of the train (4), which chunk (2), how many (2). A train that lost a chunk, or
// whose chunks came out of order, is dropped whole.
const (
	chunkHead = 8
	chunkRoom = 1472 - chunkHead // IPv4 and UDP in an MTU of 1500
	trainRoom = 10 + 65535       // virtio-net header and packet
	// The kernel cuts a buffer in no more than 64 (UDP_MAX_SEGMENTS of older kernels).
	batchMost   = 64
	batchBytes  = 65000
	forwardPort = 5555
)

// startForward runs the forwarder on both nodes.
func startForward(ctx context.Context, t *lab.Topology) (*program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &program{Program: bench.Program{Name: forwardName, About: "TUN to UDP and back in batches, without crypto, without cutting or reading packets: the limit here"},
		a: "fwa", b: "fwb", number: 1}
	for _, e := range []struct{ node, local, remote, inner, net string }{{p.a, wanA, wanB, p.innerA(), "10.1.0.0/16"}, {p.b, wanB, wanA, p.innerB(), "10.2.0.0/16"}} {
		pr, err := t.Start(e.node, "forward-"+e.node, []string{self, "forward", e.local, e.remote}, nil)
		if err != nil {
			return nil, err
		}
		p.procs = append(p.procs, pr)
		if err := poll(ctx, pollShort, func() error { return setMTU(ctx, t, e.node, forwardDev) }); err != nil {
			return nil, err
		}
		if _, err := command(ctx, t, e.node, "ip", "route", "add", e.net, "dev", forwardDev, "src", e.inner); err != nil {
			return nil, err
		}
	}
	return p, reachable(ctx, t, p)
}

const forwardDev = "fwd0"

// forward is the program: one goroutine for each direction.
func forward(local, remote netip.Addr) error {
	runtime.GOMAXPROCS(2)
	tun, err := openTUN(forwardDev)
	if err != nil {
		return err
	}
	sock, err := openUDP(netip.AddrPortFrom(local, forwardPort), netip.AddrPortFrom(remote, forwardPort))
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- forwardOut(tun, sock) }()
	go func() { failed <- forwardIn(sock, tun) }()
	return <-failed
}

func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, fmt.Errorf("TUN interface: %w", err)
	}
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		return nil, fmt.Errorf("TUN offloads: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

func openUDP(local, remote netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	const room = 7 << 20
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room),
		unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()}))
	return os.NewFile(uintptr(fd), "udp"), err
}

// flight is datagrams of one size, but for the last, that leave in one call.
type flight struct {
	heads [batchMost][chunkHead]byte
	iovs  [2 * batchMost]unix.Iovec
	n     int
	bytes int
	size  int  // of the first
	ended bool // a shorter one is the last
	ctl   []byte
}

// add takes one datagram unless it does not fit in.
func (f *flight) add(train uint32, chunk, of int, data []byte) bool {
	n := chunkHead + len(data)
	if f.n == batchMost || f.ended || f.bytes+n > batchBytes || f.n > 0 && n > f.size {
		return false
	}
	if f.n == 0 {
		f.size = n
	}
	f.ended = n < f.size
	h := &f.heads[f.n]
	binary.BigEndian.PutUint32(h[:], train)
	binary.BigEndian.PutUint16(h[4:], uint16(chunk))
	binary.BigEndian.PutUint16(h[6:], uint16(of))
	f.iovs[2*f.n].Base = &h[0]
	f.iovs[2*f.n].SetLen(chunkHead)
	f.iovs[2*f.n+1].Base = &data[0]
	f.iovs[2*f.n+1].SetLen(len(data))
	f.n++
	f.bytes += n
	return true
}

func (f *flight) send(sock *os.File) error {
	if f.n == 0 {
		return nil
	}
	var h unix.Msghdr
	h.Iov = &f.iovs[0]
	h.SetIovlen(2 * f.n)
	if f.n > 1 {
		binary.NativeEndian.PutUint64(f.ctl, unix.SizeofCmsghdr+2)
		binary.NativeEndian.PutUint32(f.ctl[8:], unix.IPPROTO_UDP)
		binary.NativeEndian.PutUint32(f.ctl[12:], unix.UDP_SEGMENT)
		binary.NativeEndian.PutUint16(f.ctl[unix.SizeofCmsghdr:], uint16(f.size))
		h.Control = &f.ctl[0]
		h.SetControllen(len(f.ctl))
	}
	f.n, f.bytes, f.ended = 0, 0, false
	rc, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Write(func(fd uintptr) bool {
		_, _, e := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return e != unix.EAGAIN // whatever else happens, the datagrams are lost, as on any wire
	})
}

// trainsMost is how many trains are read before they leave.
const trainsMost = 64

func forwardOut(tun, sock *os.File) error {
	rc, err := tun.SyscallConn()
	if err != nil {
		return err
	}
	trains := make([][]byte, trainsMost)
	for i := range trains {
		trains[i] = make([]byte, trainRoom)
	}
	f := &flight{ctl: make([]byte, unix.CmsgSpace(2))}
	var lens [trainsMost]int
	var n, bytes int
	var failed error
	var number uint32
	for {
		n, bytes = 0, 0
		err := rc.Read(func(fd uintptr) bool {
			for n < trainsMost && bytes < batchBytes {
				k, err := unix.Read(int(fd), trains[n])
				if err != nil {
					if err != unix.EAGAIN && err != unix.EINTR {
						failed = err
					}
					break
				}
				lens[n] = k
				bytes += k
				n++
			}
			return n > 0 || failed != nil
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		for i := range n {
			number++
			data := trains[i][:lens[i]]
			of := (len(data) + chunkRoom - 1) / chunkRoom
			for c := range of {
				chunk := data[c*chunkRoom : min(len(data), (c+1)*chunkRoom)]
				if !f.add(number, c, of, chunk) {
					if err := f.send(sock); err != nil {
						return err
					}
					f.add(number, c, of, chunk)
				}
			}
		}
		if err := f.send(sock); err != nil {
			return err
		}
	}
}

// siding puts chunks together again.
type siding struct {
	train    uint32
	next, of int
	data     []byte
}

// take takes one datagram and returns a train that it completes.
func (s *siding) take(d []byte) []byte {
	if len(d) <= chunkHead {
		return nil
	}
	train, chunk, of := binary.BigEndian.Uint32(d), int(binary.BigEndian.Uint16(d[4:])), int(binary.BigEndian.Uint16(d[6:]))
	if chunk == 0 {
		s.train, s.next, s.of, s.data = train, 0, of, s.data[:0]
	}
	if train != s.train || chunk != s.next || of != s.of || len(s.data)+len(d)-chunkHead > trainRoom {
		return nil
	}
	s.data = append(s.data, d[chunkHead:]...)
	s.next++
	if s.next < s.of {
		return nil
	}
	return s.data
}

func forwardIn(sock, tun *os.File) error {
	rc, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	out, err := tun.SyscallConn()
	if err != nil {
		return err
	}
	buf, ctl := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(4))
	s := &siding{data: make([]byte, 0, trainRoom)}
	for {
		n, size := 0, 0
		var failed error
		err := rc.Read(func(fd uintptr) bool {
			var h unix.Msghdr
			iov := unix.Iovec{Base: &buf[0]}
			iov.SetLen(len(buf))
			h.Iov, h.Control = &iov, &ctl[0]
			h.SetIovlen(1)
			h.SetControllen(len(ctl))
			r, _, e := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
			switch e {
			case 0:
				n, size = int(r), groSize(ctl[:h.Controllen])
				return true
			case unix.EAGAIN:
				return false
			case unix.ECONNREFUSED, unix.EINTR: // the other one has not begun
				return true
			}
			failed = e
			return true
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if size == 0 {
			size = n
		}
		for at := 0; at < n; at += size {
			train := s.take(buf[at:min(n, at+size)])
			if train == nil {
				continue
			}
			if err := out.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), train) }); err != nil {
				return err
			}
		}
	}
}

// groSize is the size of the segments that UDP_GRO tells, 0 for a single datagram.
func groSize(ctl []byte) int {
	if len(ctl) < unix.SizeofCmsghdr+4 || binary.NativeEndian.Uint32(ctl[8:]) != unix.IPPROTO_UDP || binary.NativeEndian.Uint32(ctl[12:]) != unix.UDP_GRO {
		return 0
	}
	return int(binary.NativeEndian.Uint32(ctl[unix.SizeofCmsghdr:]))
}
