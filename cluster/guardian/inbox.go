package guardian

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/cluster"
)

// inbox takes datagrams from heartbeat sockets, several with one system call. The
// runtime is not told of the calls, none of which waits: see sleep.
type inbox struct {
	headers [inboxSize]mmsghdr
	iovecs  [inboxSize]unix.Iovec
	from    [inboxSize]unix.RawSockaddrInet6
	control [inboxSize][64]byte
	data    [inboxSize][cluster.MaxHeartbeat + 1]byte // one byte more shows what is too long
}

const inboxSize = 8

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// receive takes what is pending on a socket, at most inboxSize datagrams. more
// tells whether there may be others.
func (in *inbox) receive(fd int) (n int, more bool) {
	for range 2 {
		for i := range in.headers {
			in.iovecs[i].Base = &in.data[i][0]
			in.iovecs[i].SetLen(len(in.data[i]))
			h := &in.headers[i].Msghdr
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&in.from[i])), unix.SizeofSockaddrInet6
			h.Iov = &in.iovecs[i]
			h.SetIovlen(1)
			h.Control = &in.control[i][0]
			h.SetControllen(len(in.control[i]))
		}
		r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.headers[0])), inboxSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(r), int(r) == inboxSize
		case unix.EAGAIN, unix.EBADF:
			return 0, false
		}
		// A pending error (interface down) is taken away by reading it once.
	}
	return 0, false
}

// datagram is the i-th of those received last. local: it comes from a link-local
// address and has crossed no router (its hop limit is 255 still).
func (in *inbox) datagram(i int) (b []byte, from netip.Addr, local bool) {
	h := &in.headers[i]
	from = netip.AddrFrom16(in.from[i].Addr).Unmap()
	return in.data[i][:h.n], from, from.IsLinkLocalUnicast() && hopLimit(in.control[i][:h.Controllen]) == 255
}

// hopLimit reads the one control message that is asked for.
func hopLimit(b []byte) int32 {
	if len(b) < unix.CmsgLen(4) {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	if h.Level != unix.IPPROTO_IPV6 || h.Type != unix.IPV6_HOPLIMIT || h.Len < uint64(unix.CmsgLen(4)) {
		return 0
	}
	return *(*int32)(unsafe.Pointer(&b[unix.CmsgLen(0)]))
}

// sendNow sends one datagram on a connected socket without waiting.
func sendNow(fd int, b []byte) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
