package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routeBatch gives the kernel many routes in one message: asked one by one, each with an
// answer of its own, they cost more than the tunnels that they belong to. Not safe for
// concurrent use.
type routeBatch struct {
	socket *nl.NetlinkSocket
	asked  []routeChange
	wire   []*nl.NetlinkRequest // of those asked, in their order
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
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	err = errors.Join(unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), s.SetReceiveTimeout(&unix.Timeval{Sec: 60}))
	if err != nil {
		s.Close()
		return nil, err
	}
	return &routeBatch{socket: s}, nil
}

func (b *routeBatch) close() { b.socket.Close() }

// put adds a change, and carries all out when there are enough; failed is told of those
// that the kernel refuses.
func (b *routeBatch) put(c routeChange, failed func(routeChange, error)) error {
	b.asked = append(b.asked, c)
	b.wire = append(b.wire, c.request())
	if len(b.asked) < batchLen {
		return nil
	}
	return b.flush(failed)
}

// request is the change as rtnetlink(7) has it.
func (c *routeChange) request() *nl.NetlinkRequest {
	p := c.prefix.Masked()
	r, m := nl.NewNetlinkRequest(unix.RTM_DELROUTE, 0), nl.NewRtDelMsg()
	if c.add {
		r, m = nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE), nl.NewRtMsg()
	}
	m.Family, m.Dst_len, m.Protocol, m.Scope = unix.AF_INET6, uint8(p.Bits()), routeProtocol, unix.RT_SCOPE_LINK
	if p.Addr().Is4() {
		m.Family = unix.AF_INET
	}
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.RTA_DST, p.Addr().AsSlice()))
	r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(c.index))))
	return r
}

// flush carries out what was put. The kernel answers what it refuses and, because it is
// asked to, the last one.
func (b *routeBatch) flush(failed func(routeChange, error)) error {
	asked, wire := b.asked, b.wire
	if len(asked) == 0 {
		return nil
	}
	b.asked, b.wire = b.asked[:0], b.wire[:0]
	last := wire[len(wire)-1]
	last.Flags |= unix.NLM_F_ACK
	var all []byte
	for _, r := range wire {
		all = append(all, r.Serialize()...)
	}
	if err := unix.Sendto(b.socket.GetFd(), all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for {
		answers, _, err := b.socket.Receive()
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		for _, m := range answers {
			i := slices.IndexFunc(wire, func(r *nl.NetlinkRequest) bool { return r.Seq == m.Header.Seq })
			if m.Header.Type != unix.NLMSG_ERROR || i < 0 || len(m.Data) < 4 {
				continue
			}
			if code := int32(nl.NativeEndian().Uint32(m.Data)); code != 0 {
				failed(asked[i], unix.Errno(-code))
			}
			if wire[i] == last {
				return nil
			}
		}
	}
}
