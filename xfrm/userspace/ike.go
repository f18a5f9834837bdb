package userspace

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
	"tandem/xfrm"
)

// SendIKE sends one IKE message from the socket of its local port, or in its connection.
func (p *Plane) SendIKE(d xfrm.IKEDatagram) error {
	if len(d.Data) == 0 {
		return errors.New("userspace: empty IKE message")
	}
	if d.TCP {
		return p.socks.streams.sendIKE(pathOf(d.Local, d.Remote), d.Data)
	}
	if d.NonESP {
		return p.sendUDP(d.Local, d.Remote, nonESPMarker[:], d.Data)
	}
	return p.sendUDP(d.Local, d.Remote, d.Data, nil)
}

// Keepalive sends a NAT keepalive.
func (p *Plane) Keepalive(local, remote netip.AddrPort) error {
	return p.sendUDP(local, remote, keepalive[:], nil)
}

var (
	nonESPMarker [4]byte
	keepalive    = [1]byte{0xff}
)

func (p *Plane) sendUDP(local, remote netip.AddrPort, first, second []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	kind := sockNATT
	if local.Port() == p.o.PortIKE {
		kind = sockIKE
	}
	to := netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	s := p.socks.of(kind, to.Addr().Is6())
	if s == nil || !to.IsValid() {
		return unix.EAFNOSUPPORT
	}
	from := local.Addr().Unmap()
	if from.IsValid() && from.Is4() != to.Addr().Is4() {
		return unix.EAFNOSUPPORT
	}
	v := &p.out.vec
	v.PrepareSend(0, false, from, to, 0, first, second)
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	_ = s.setDF(false)
	for waited := false; ; {
		_, e := mmsg.Send(s.fd, v, 0, 1)
		switch {
		case e == 0:
			return nil
		case e == unix.EINTR:
		case e == unix.EAGAIN && !waited && mmsg.WaitWritable(s.fd):
			waited = true
		default:
			return e
		}
	}
}
