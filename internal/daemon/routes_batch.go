package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routeBatch gives the kernel many routes in one message: asked one by one, each with an
// answer of its own, they cost more than the tunnels that they belong to. Not safe for
// concurrent use.
type routeBatch struct {
	fd    int
	seq   uint32
	buf   []byte
	asked []routeChange // those in buf
	last  int           // where the last one begins in buf
	rcv   []byte
}

// routeChange is one of our routes, without a gateway, to be put into the main table or
// taken out of it.
type routeChange struct {
	add    bool
	index  int // of the interface
	prefix netip.Prefix
}

// batchLen is how many routes are given to the kernel at a time, which nothing else
// interrupts there.
const batchLen = 64

// newRouteBatch speaks with the kernel about the network namespace of the caller's thread.
func newRouteBatch() (*routeBatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	err = errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &routeBatch{fd: fd, rcv: make([]byte, 64<<10)}, nil
}

func (b *routeBatch) close() { unix.Close(b.fd) }

// put adds a change, and carries all out when there are enough; failed is told of those
// that the kernel refuses.
func (b *routeBatch) put(c routeChange, failed func(routeChange, error)) error {
	b.encode(c)
	if len(b.asked) < batchLen {
		return nil
	}
	return b.flush(failed)
}

// encode appends an rtnetlink message (rtnetlink(7)).
func (b *routeBatch) encode(c routeChange) {
	p := c.prefix.Masked()
	family, typ, flags, kind := byte(unix.AF_INET6), uint16(unix.RTM_DELROUTE), uint16(unix.NLM_F_REQUEST), byte(0)
	if p.Addr().Is4() {
		family = unix.AF_INET
	}
	if c.add {
		typ, flags, kind = unix.RTM_NEWROUTE, flags|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, unix.RTN_UNICAST
	}
	le := binary.NativeEndian
	b.seq++
	b.last = len(b.buf)
	b.asked = append(b.asked, c)
	dst := p.Addr().AsSlice()
	o := le.AppendUint32(b.buf, uint32(unix.SizeofNlMsghdr+unix.SizeofRtMsg+4+len(dst)+8))
	o = le.AppendUint16(o, typ)
	o = le.AppendUint16(o, flags)
	o = le.AppendUint32(o, b.seq)
	o = le.AppendUint32(o, 0)
	o = append(o, family, byte(p.Bits()), 0, 0, unix.RT_TABLE_MAIN, routeProtocol, unix.RT_SCOPE_LINK, kind)
	o = le.AppendUint32(o, 0)
	o = le.AppendUint16(o, uint16(4+len(dst)))
	o = le.AppendUint16(o, unix.RTA_DST)
	o = append(o, dst...)
	o = le.AppendUint16(o, 8)
	o = le.AppendUint16(o, unix.RTA_OIF)
	b.buf = le.AppendUint32(o, uint32(c.index))
}

// flush carries out what was put. The kernel answers what it refuses and, because it is
// asked to, the last one.
func (b *routeBatch) flush(failed func(routeChange, error)) error {
	n := len(b.asked)
	if n == 0 {
		return nil
	}
	le := binary.NativeEndian
	flags := b.buf[b.last+6:]
	le.PutUint16(flags, le.Uint16(flags)|unix.NLM_F_ACK)
	asked, buf := b.asked, b.buf
	b.asked, b.buf, b.last = b.asked[:0], b.buf[:0], 0
	if err := unix.Sendto(b.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	first := b.seq - uint32(n) + 1
	for {
		k, _, err := unix.Recvfrom(b.fd, b.rcv, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		for m := b.rcv[:k]; len(m) >= unix.SizeofNlMsghdr+4; {
			size, seq := int(le.Uint32(m)), le.Uint32(m[8:])
			if size < unix.SizeofNlMsghdr+4 || size > len(m) {
				break
			}
			i := int(seq - first)
			if le.Uint16(m[4:]) == unix.NLMSG_ERROR && i >= 0 && i < n {
				if code := int32(le.Uint32(m[unix.SizeofNlMsghdr:])); code != 0 {
					failed(asked[i], unix.Errno(-code))
				}
				if i == n-1 {
					return nil
				}
			}
			m = m[min(len(m), (size+3)&^3):]
		}
	}
}
