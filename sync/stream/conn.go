package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandem/cluster"
)

// userTimeout ends a connection whose data the other side's kernel does not confirm.
const userTimeout = time.Second

// keepAlive finds a path that died while nothing was sent; with the user timeout it
// takes about two seconds.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}

func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}

// dial opens TCP to a link's address. Go switches TCP_NODELAY on.
func dial(ctx context.Context, l cluster.Link, port uint16) (net.Conn, error) {
	a, err := netip.ParseAddr(l.Addr)
	if err != nil {
		return nil, err
	}
	if a.IsLinkLocalUnicast() && a.Is6() {
		a = a.WithZone(l.Device)
	}
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: setUserTimeout}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
}

// listen opens a listener; the sockets it accepts inherit its options.
func listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: setUserTimeout}
	return lc.Listen(ctx, "tcp", address)
}

// opaque hides the TCP connection from gRPC, which would set a timeout of its own.
type opaque struct{ net.Conn }

type opaqueListener struct{ net.Listener }

func (l opaqueListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return opaque{c}, nil
}

func serverTLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = c.RootCAs
	return c
}

// clientTLS verifies the chain itself where no name is expected: links have addresses.
func clientTLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	if c.ServerName != "" {
		return c
	}
	c.InsecureSkipVerify = true // without it Go would compare names; VerifyConnection checks the chain
	roots, also := c.RootCAs, c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		for _, i := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(i)
		}
		if _, err := s.PeerCertificates[0].Verify(o); err != nil {
			return err
		}
		if also != nil {
			return also(s)
		}
		return nil
	}
	return c
}
