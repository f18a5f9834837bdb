package xfrmtest

import (
	"io"
	"net"
	"net/netip"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tandem/xfrm"
)

// Wire is what the two sites of a benchmark are joined by: a veth pair.
type Wire string

const (
	// single cuts everything: what is on the wire is what a tap sees.
	single Wire = "single"
	// NICLike cuts large UDP buffers before the wire and merges datagrams behind it, as a
	// network card and its driver do.
	NICLike Wire = "nic"
	// Unmerged cuts them and merges nothing.
	Unmerged Wire = "unmerged"
	// Uncut lets a buffer of UDP segments cross as one.
	Uncut Wire = "uso"
)

func (w Wire) setUp() error {
	switch w {
	case NICLike:
		// A veth merges only for a peer that cuts TCP itself.
		return exec.Command("ethtool", "-K", "wan", "tx-udp-segmentation", "off", "tso", "off", "gro", "on").Run()
	case Unmerged:
		return exec.Command("ethtool", "-K", "wan", "tx-udp-segmentation", "off").Run()
	case single:
		l, err := netlink.LinkByName("wan")
		if err != nil {
			return err
		}
		return netlink.LinkSetGSOMaxSegs(l, 1)
	}
	return nil
}

// benchPair has a tunnel with an MTU of 1420 and an SA over UDP.
func benchPair(b *testing.B, make Factory, w Wire) *pair {
	RequireRoot(b)
	p := newPairOf(b, make, w, false)
	p.tunnel(xfrm.Tunnel{Scope: scope, MTU: 1420})
	for _, s := range []*site{p.a, p.b} {
		s.activate()
		p.install(s, overUDP)
	}
	return p
}

// BenchmarkTCP sends b.N times 64 KiB through one TCP connection within the tunnel, from
// one process in two namespaces, and reports the processor time of all of it.
func BenchmarkTCP(b *testing.B, make Factory, w Wire) {
	p := benchPair(b, make, w)
	const chunk = 1 << 16
	var l *net.TCPListener
	p.b.must("listen", func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.b.lan4, 7100)))
		return err
	})
	defer l.Close()
	var c *net.TCPConn
	p.a.must("dial", func() (err error) {
		c, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
		return err
	})
	defer c.Close()
	peer, err := l.AcceptTCP()
	if err != nil {
		b.Fatal(err)
	}
	defer peer.Close()
	b.SetBytes(chunk)
	b.ResetTimer()
	was := cpuTime()
	sent := begin(func() error {
		out := [chunk]byte{}
		for range b.N {
			if _, err := c.Write(out[:]); err != nil {
				return err
			}
		}
		return c.CloseWrite()
	})
	in := [chunk * 4]byte{}
	n := 0
	for {
		k, err := peer.Read(in[:])
		if n += k; err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := <-sent; err != nil || n != b.N*chunk {
		b.Fatalf("%d bytes of %d: %v", n, b.N*chunk, err)
	}
	b.ReportMetric(float64(cpuTime()-was)/float64(n), "cpu-s/GB")
}

func begin(f func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// BenchmarkUDP offers b.N datagrams of 36 bytes, which are inner packets of 64, as fast as
// one socket can, and reports how many a second arrive.
func BenchmarkUDP(b *testing.B, make Factory, w Wire) {
	p := benchPair(b, make, w)
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	_ = hb.conn.SetReadBuffer(1 << 20)
	got := countArrivals(hb)
	pkt := payload(1, 36)
	to := hb.addr()
	b.ResetTimer()
	start := time.Now()
	for range b.N {
		_, _ = ha.conn.WriteToUDPAddrPort(pkt, to)
	}
	end := time.Since(start)
	_ = hb.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	n := <-got
	b.ReportMetric(float64(n)/end.Seconds(), "delivered/s")
	b.ReportMetric(100*float64(n)/float64(b.N), "%delivered")
}

// countArrivals counts what arrives until the socket's deadline.
func countArrivals(h *host) chan int {
	c := make(chan int, 1)
	go func() {
		n := 0
		var buf [2048]byte
		for {
			if _, _, err := h.conn.ReadFromUDPAddrPort(buf[:]); err != nil {
				c <- n
				return
			}
			n++
		}
	}()
	return c
}

// cpuTime is what this process has used, in nanoseconds.
func cpuTime() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
