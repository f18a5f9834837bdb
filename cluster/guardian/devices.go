package guardian

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// group is where heartbeats go: a transient multicast group of link scope.
var group = netip.MustParseAddr("ff12::7464:6d01").As16()

// DefaultPort is the UDP port of heartbeats.
const DefaultPort = 708

// device is one heartbeat interface; its socket is open while the interface is there.
type device struct {
	name  string
	index int
	fd    int // receives; -1: absent
	out   int // sends
	quiet bool
	sendE string // last error of sending, logged once
}

// ifindex asks the kernel for the index of an interface; 0: there is none.
func ifindex(fd int, name string) int {
	r, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r) != nil {
		return 0
	}
	return int(r.Uint32())
}

// check opens, closes or reopens the device as its interface comes and goes. ctl
// is any socket.
func (d *device) check(ctl, port int, nl *netlink.Handle, log *slog.Logger) {
	i := ifindex(ctl, d.name)
	if d.fd >= 0 && i == d.index {
		return
	}
	if d.fd >= 0 {
		log.Warn("heartbeat device went away", "device", d.name)
		d.close()
	}
	if i == 0 {
		d.complain(log, "no such interface")
		return
	}
	fd, err := openDevice(d.name, i, port)
	if err != nil {
		d.complain(log, err.Error())
		return
	}
	out, err := openSender(d.name, i, port)
	if err != nil {
		unix.Close(fd)
		d.complain(log, err.Error())
		return
	}
	d.fd, d.out, d.index, d.quiet, d.sendE = fd, out, i, false, ""
	d.route(nl, log)
	log.Info("heartbeat device in use", "device", d.name)
}

// route gives the group a route of its own. The kernel makes one for all of
// multicast with every interface, and looks through all of them for each heartbeat
// that comes in: with a thousand tunnel interfaces that costs more than all else.
func (d *device) route(nl *netlink.Handle, log *slog.Logger) {
	err := nl.RouteReplace(&netlink.Route{
		LinkIndex: d.index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_MULTICAST,
		Priority: d.index, // of each device another, or one would replace the other
		Dst:      &net.IPNet{IP: group[:], Mask: net.CIDRMask(128, 128)},
	})
	if err != nil {
		log.Debug("no route of their own for heartbeats", "device", d.name, "error", err)
	}
}

func (d *device) complain(log *slog.Logger, why string) {
	if !d.quiet {
		log.Warn("heartbeat device not in use, trying on", "device", d.name, "error", why)
		d.quiet = true
	}
}

func (d *device) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		unix.Close(d.out)
		d.fd = -1
	}
}

func openDevice(name string, index, port int) (fd int, err error) {
	return openSocket(name, port, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1),
			unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group, Interface: uint32(index)}))
	}, nil)
}

// openSender makes a socket of its own for sending: connected, so that the kernel
// keeps the route. Every interface has a route for all of multicast, and among a
// thousand tunnel interfaces the search costs more than all else. Being connected
// it receives nothing.
func openSender(name string, index, port int) (fd int, err error) {
	return openSocket(name, port, func(fd int) (err error) {
		set := func(level, opt, value int) {
			err = errors.Join(err, unix.SetsockoptInt(fd, level, opt, value))
		}
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index)
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0)
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
		set(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xc0) // CS6, as for routing protocols
		set(unix.SOL_SOCKET, unix.SO_PRIORITY, 6)
		return err
	}, &unix.SockaddrInet6{Port: port, Addr: group, ZoneId: uint32(index)})
}

// openSocket makes a heartbeat socket on an interface; to may be nil.
func openSocket(name string, port int, set func(fd int) error, to unix.Sockaddr) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.BindToDevice(fd, name), set(fd), unix.Bind(fd, &unix.SockaddrInet6{Port: port}))
	if err == nil && to != nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// send sends one datagram to the group.
func (d *device) send(b []byte, nl *netlink.Handle, log *slog.Logger) {
	if d.fd < 0 {
		return
	}
	err := sendNow(d.out, b)
	switch {
	case err == nil && d.sendE != "":
		log.Info("heartbeats leave again", "device", d.name)
		d.sendE = ""
		d.route(nl, log) // it went with the link
	case err != nil && d.sendE != err.Error():
		d.sendE = err.Error()
		log.Warn("heartbeats do not leave", "device", d.name, "error", err)
	}
}
