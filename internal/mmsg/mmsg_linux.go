// Package mmsg reads and writes batches of datagrams: recvmmsg(2) and sendmmsg(2)
// with the addresses and the traffic class of each, without allocation.
package mmsg

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Batch is how many messages one call carries at most.
const Batch = 32

const (
	sockaddrLen = unix.SizeofSockaddrInet6
	controlLen  = 128
)

// Vector is the memory of one recvmmsg or sendmmsg call. It is allocated once;
// the kernel gets pointers into it, so it must not move or be copied.
type Vector struct {
	hdrs  [Batch]mmsghdr
	iovs  [Batch][2]unix.Iovec
	names [Batch][sockaddrLen + 4]byte
	ctls  [Batch][controlLen]byte
}

// This fails to compile where struct mmsghdr looks different.
var _ [unix.SizeofMsghdr + 8]struct{} = [unsafe.Sizeof(mmsghdr{})]struct{}{}

// PrepareReceive points the i-th message at buf.
func (v *Vector) PrepareReceive(i int, buf []byte) {
	v.iovs[i][0].Base = &buf[0]
	v.iovs[i][0].SetLen(len(buf))
	h := &v.hdrs[i].hdr
	h.Name, h.Namelen = &v.names[i][0], sockaddrLen
	h.Iov, h.Control = &v.iovs[i][0], &v.ctls[i][0]
	h.SetIovlen(1)
	h.SetControllen(controlLen)
	h.Flags = 0
}

// Rearm resets what the kernel wrote into the first n headers.
func (v *Vector) Rearm(n int) {
	for i := range n {
		h := &v.hdrs[i].hdr
		h.Namelen, h.Flags = sockaddrLen, 0
		h.SetControllen(controlLen)
	}
}

// Len is the length of the i-th datagram received, which may exceed its buffer.
func (v *Vector) Len(i int) int { return int(v.hdrs[i].n) }

// Source decodes the address that the i-th message came from.
func (v *Vector) Source(i int) netip.AddrPort {
	return parseSockaddr(v.names[i][:v.hdrs[i].hdr.Namelen])
}

func parseSockaddr(b []byte) netip.AddrPort {
	if len(b) < 2 {
		return netip.AddrPort{}
	}
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		if len(b) >= unix.SizeofSockaddrInet4 {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
		}
	case unix.AF_INET6:
		if len(b) >= unix.SizeofSockaddrInet6 {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:]))
		}
	}
	return netip.AddrPort{}
}

func putSockaddr(b []byte, a netip.AddrPort, raw bool) uint32 {
	port := a.Port()
	if raw {
		port = 0
	}
	clear(b)
	binary.BigEndian.PutUint16(b[2:], port)
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		ip := a.Addr().As4()
		copy(b[4:], ip[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	ip := a.Addr().As16()
	copy(b[8:], ip[:])
	return unix.SizeofSockaddrInet6
}

// Control finds the local address and the traffic class among ancillary data, and the
// length of all segments but the last where the kernel has joined several datagrams
// (UDP_GRO); 0: it is one.
func (v *Vector) Control(i int) (local netip.Addr, tos uint8, segment int) {
	return parseControl(v.ctls[i][:min(uint64(v.hdrs[i].hdr.Controllen), controlLen)])
}

func parseControl(b []byte) (local netip.Addr, tos uint8, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		n := binary.NativeEndian.Uint64(b)
		level, typ := binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[12:])
		if n < unix.SizeofCmsghdr || n > uint64(len(b)) {
			return local, tos, segment
		}
		d := b[unix.SizeofCmsghdr:n]
		switch {
		case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(d) >= unix.SizeofInet4Pktinfo:
			local = netip.AddrFrom4([4]byte(d[8:12])) // the header's destination
		case level == unix.IPPROTO_IP && typ == unix.IP_TOS && len(d) >= 1:
			tos = d[0]
		case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(d) >= unix.SizeofInet6Pktinfo:
			local = netip.AddrFrom16([16]byte(d[:16]))
		case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_TCLASS && len(d) >= 4:
			tos = uint8(binary.NativeEndian.Uint32(d))
		case level == unix.SOL_UDP && typ == unix.UDP_GRO && len(d) >= 4:
			segment = int(binary.NativeEndian.Uint32(d) & 0xffff)
		}
		b = b[min(uint64(len(b)), (n+7)&^7):]
	}
	return local, tos, segment
}

// putControl writes the source address and the traffic class of one message.
func putControl(b []byte, local netip.Addr, tos uint8) int {
	n := 0
	put := func(level, typ uint32, size int) []byte {
		binary.NativeEndian.PutUint64(b[n:], uint64(unix.SizeofCmsghdr+size))
		binary.NativeEndian.PutUint32(b[n+8:], level)
		binary.NativeEndian.PutUint32(b[n+12:], typ)
		d := b[n+unix.SizeofCmsghdr:][:size]
		clear(d)
		n += (unix.SizeofCmsghdr + size + 7) &^ 7
		return d
	}
	if local.Is4() {
		if !local.IsUnspecified() {
			ip := local.As4()
			copy(put(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], ip[:]) // ipi_spec_dst
		}
		if tos != 0 {
			binary.NativeEndian.PutUint32(put(unix.IPPROTO_IP, unix.IP_TOS, 4), uint32(tos))
		}
		return n
	}
	if local.IsValid() && !local.IsUnspecified() {
		ip := local.As16()
		copy(put(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), ip[:])
	}
	if tos != 0 {
		binary.NativeEndian.PutUint32(put(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4), uint32(tos))
	}
	return n
}

// PrepareSend fills the i-th message; second may be empty. An unspecified or
// invalid local address and a zero traffic class are left to the socket; raw says
// that it has no ports.
func (v *Vector) PrepareSend(i int, raw bool, local netip.Addr, to netip.AddrPort, tos uint8, first, second []byte) {
	h := &v.hdrs[i].hdr
	v.iovs[i][0].Base = &first[0]
	v.iovs[i][0].SetLen(len(first))
	h.SetIovlen(1)
	if len(second) > 0 {
		v.iovs[i][1].Base = &second[0]
		v.iovs[i][1].SetLen(len(second))
		h.SetIovlen(2)
	}
	h.Iov = &v.iovs[i][0]
	h.Name, h.Namelen = &v.names[i][0], putSockaddr(v.names[i][:], to, raw)
	h.Control = &v.ctls[i][0]
	n := putControl(v.ctls[i][:], local, tos)
	h.SetControllen(n)
	if n == 0 {
		h.Control = nil
	}
	h.Flags = 0
}

// Segment has the kernel, or the device, cut the i-th message into datagrams of size bytes
// and a last one that may be shorter (UDP_SEGMENT). It follows PrepareSend.
func (v *Vector) Segment(i, size int) {
	h := &v.hdrs[i].hdr
	n := int(h.Controllen)
	d := v.ctls[i][n:]
	binary.NativeEndian.PutUint64(d, unix.SizeofCmsghdr+2)
	binary.NativeEndian.PutUint32(d[8:], unix.SOL_UDP)
	binary.NativeEndian.PutUint32(d[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint64(d[unix.SizeofCmsghdr:], 0)
	binary.NativeEndian.PutUint16(d[unix.SizeofCmsghdr:], uint16(size))
	h.Control = &v.ctls[i][0]
	h.SetControllen(n + unix.SizeofCmsghdr + 8)
}

// Receive is recvmmsg(2) without waiting.
func Receive(fd int, v *Vector, n int) (int, syscall.Errno) {
	r, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&v.hdrs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), e
}

// Send is sendmmsg(2) without waiting, for n messages beginning with from.
func Send(fd int, v *Vector, from, n int) (int, syscall.Errno) {
	r, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&v.hdrs[from])), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(r), e
}

// WaitWritable waits for room in the socket's buffer, briefly.
func WaitWritable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 2)
	return err == nil && n == 1
}
