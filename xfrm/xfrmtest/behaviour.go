package xfrmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

func testSelectors(t *testing.T, make Factory) {
	// A may send UDP to anything; B accepts only what goes to port 7000.
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("B", func(_ *site, x *xfrm.SA) {
		for i := range x.TSLocal {
			x.TSLocal[i].Protocol, x.TSLocal[i].StartPort, x.TSLocal[i].EndPort = unix.IPPROTO_UDP, 7000, 7000
		}
	}))
	other := p.b.host(false, 7005)
	ha.send(hb, 1, 64)
	hb.want(1)
	ha.send(other, 2, 64)
	eventually(t, "dropped by selector", func() bool { return p.b.counters(spiB).InSelector == 1 })
	other.wantNothing()
	// Outbound the same selector leads nowhere from the other port.
	other.send(ha, 3, 64)
	eventually(t, "no SA", func() bool { return p.b.tunnelCounters().NoSA == 1 })
	hb.send(ha, 4, 64)
	ha.want(4)
}

func testSwitchOutbound(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{})
	tp := p.b.tap()
	n := uint32(0)
	send := func(k int) {
		for range k {
			ha.send(hb, n, 64)
			n++
		}
	}
	got := uint32(0)
	recv := func() {
		for ; got < n; got++ {
			hb.want(got)
		}
	}
	for g := uint32(1); g <= 5; g++ {
		// The rekeyed pair: inbound at both ends first, then outbound here.
		send(20)
		for _, s := range []*site{p.a, p.b} {
			x := p.sa(s, generation(g))
			s.must("Install", func() error { return s.plane.Install(x) })
		}
		send(20)
		p.a.do(func() { p.a.plane.SetOutbound(spiA+ipsec.ESPSPI(g), true) })
		send(20)
		recv()
		old := spiA + ipsec.ESPSPI(g) - 1
		p.a.do(func() { p.a.plane.SetOutbound(old, false) })
		p.a.do(func() { p.a.plane.Remove(old) })
		p.b.do(func() { p.b.plane.Remove(spiB + ipsec.ESPSPI(g) - 1) })
		send(20)
		recv()
		fs := tp.frames()
		if len(fs) == 0 || fs[len(fs)-1].spi != uint32(spiB)+g {
			t.Fatalf("generation %d is not in use", g)
		}
	}
}

// testRemoveReleases: what waits for a bound when its SA is removed is not lost. It
// is delivered here, and sent through the SA that took over the selectors.
func testRemoveReleases(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("A", bounds(2, xfrm.Unbounded)), only("B", bounds(xfrm.Unbounded, 1)))
	for i := uint32(1); i <= 4; i++ {
		ha.send(hb, i, 64)
	}
	hb.want(1)
	eventually(t, "the second waits for the fence", func() bool { return p.b.counters(spiB).InFenced == 1 })
	hb.wantNothing()
	p.b.do(func() { p.b.plane.Remove(spiB) })
	hb.want(2)

	p.install(p.b, generation(2))
	p.install(p.a, generation(2))
	waitEvent(p.a, "question for a ceiling", wanted(xfrm.Outbound, 3))
	p.a.do(func() { p.a.plane.Remove(spiA) })
	hb.want(3, 4)
}

func testRemove(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{})
	ha.send(hb, 1, 64)
	hb.want(1)
	p.b.do(func() { p.b.plane.Remove(spiB) })
	ha.send(hb, 2, 64)
	eventually(t, "SPI unknown", func() bool {
		var c xfrm.PlaneCounters
		ok := true
		p.b.do(func() { c = p.b.plane.PlaneCounters(); _, ok = p.b.plane.Counters(spiB) })
		return c.UnknownSPI == 1 && !ok
	})
	hb.wantNothing()
	// All of these name what is not there.
	p.b.do(func() {
		p.b.plane.Remove(spiB)
		p.b.plane.SetOutbound(spiB, true)
		p.b.plane.SetBounds([]xfrm.Bound{{SPIIn: spiB, N: 5}})
		p.b.plane.SetPeer(spiB, netip.AddrPort{}, netip.AddrPort{}, false, false)
		p.b.plane.SetWindows([]xfrm.Window{{SPIIn: spiB}})
	})
	p.install(p.b, generation(1))
	p.install(p.a, generation(1))
	ha.send(hb, 3, 64)
	hb.want(3)
	for _, s := range []*site{p.a, p.b} {
		s.must("RemoveTunnel", func() error { return s.plane.RemoveTunnel("vpn1") })
		s.do(func() {
			if _, err := netlink.LinkByName("vpn1"); err == nil {
				t.Errorf("site %s: the interface is still there", s.name)
			}
		})
	}
	p.tunnel(xfrm.Tunnel{Scope: scope})
}

func testAcquire(t *testing.T, make Factory) {
	p := newPair(t, make)
	p.tunnel(xfrm.Tunnel{Scope: scope})
	p.a.activate()
	p.b.activate()
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	for i := range uint32(5) {
		ha.send(hb, i, 64)
	}
	e := waitEvent[xfrm.Acquire](p.a, "acquire", nil)
	if want := (xfrm.Acquire{Tunnel: "vpn1", Protocol: unix.IPPROTO_UDP, Src: ha.addr(), Dst: hb.addr()}); e != want {
		t.Fatalf("%+v, want %+v", e, want)
	}
	eventually(t, "all counted", func() bool { return p.a.tunnelCounters().NoSA == 5 })
	p.a.mu.Lock()
	n := 0
	for _, e := range p.a.events {
		if _, ok := e.(xfrm.Acquire); ok {
			n++
		}
	}
	p.a.mu.Unlock()
	if n != 1 {
		t.Fatalf("%d acquires for one flow", n)
	}
	p.install(p.b)
	p.install(p.a)
	hb.want(0, 1, 2, 3, 4)
}

func testPeerMoved(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, overUDP)
	// A gets another address and uses it.
	moved := netip.MustParseAddr("10.99.0.77")
	p.a.must("second address", func() error { return up("wan", netip.PrefixFrom(moved, 24)) })
	p.a.do(func() {
		p.a.plane.SetPeer(spiA, netip.AddrPortFrom(moved, 4500), netip.AddrPortFrom(p.b.wan4, 4500), true, false)
	})
	ha.send(hb, 1, 64)
	hb.want(1)
	e := waitEvent[xfrm.PeerMoved](p.b, "peer moved", nil)
	if e.SPIIn != spiB || e.From != netip.AddrPortFrom(moved, 4500) {
		t.Fatalf("%+v", e)
	}
	p.b.do(func() { p.b.plane.SetPeer(spiB, netip.AddrPortFrom(p.b.wan4, 4500), e.From, true, false) })
	hb.send(ha, 2, 64)
	ha.want(2)
	// Without encapsulation, and back to the first address.
	for _, s := range []*site{p.a, p.b} {
		spi, far := spiA, p.other(s).wan4
		if s == p.b {
			spi = spiB
		}
		s.do(func() {
			s.plane.SetPeer(spi, netip.AddrPortFrom(s.wan4, 500), netip.AddrPortFrom(far, 500), false, false)
		})
	}
	ha.send(hb, 3, 64)
	hb.want(3)
	hb.send(ha, 4, 64)
	ha.want(4)
}

func testIKE(t *testing.T, make Factory) {
	p := newPair(t, make)
	msg := bytes.Repeat([]byte{7}, 3000) // longer than the wire's MTU
	for i, c := range []struct {
		local, remote netip.AddrPort
		nonESP        bool
	}{
		{netip.AddrPortFrom(p.a.wan4, 500), netip.AddrPortFrom(p.b.wan4, 500), false},
		{netip.AddrPortFrom(p.a.wan4, 4500), netip.AddrPortFrom(p.b.wan4, 4500), true},
		{netip.AddrPortFrom(p.a.wan6, 500), netip.AddrPortFrom(p.b.wan6, 500), false},
		{netip.AddrPortFrom(p.a.wan6, 4500), netip.AddrPortFrom(p.b.wan6, 4500), true},
	} {
		msg[0] = byte(i + 1)
		p.a.must("Keepalive", func() error {
			return p.a.plane.Keepalive(netip.AddrPortFrom(c.local.Addr(), 4500), netip.AddrPortFrom(c.remote.Addr(), 4500))
		})
		p.a.must("SendIKE", func() error {
			return p.a.plane.SendIKE(xfrm.IKEDatagram{Local: c.local, Remote: c.remote, NonESP: c.nonESP, Data: bytes.Clone(msg)})
		})
		p.b.wait("IKE message", func() bool { return len(p.b.ike) > i })
		p.b.mu.Lock()
		got := p.b.ike[i]
		p.b.mu.Unlock()
		if got.Local != c.remote || got.Remote != c.local || got.NonESP != c.nonESP || !bytes.Equal(got.Data, msg) {
			t.Fatalf("got %v from %v at %v, %d bytes", got.NonESP, got.Remote, got.Local, len(got.Data))
		}
	}
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if len(p.b.ike) != 4 {
		t.Fatalf("%d messages; a keepalive is none", len(p.b.ike))
	}
}

// Inbound traffic counts against the limits too, also where no fence looks at it.
func testInboundLimits(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("B", func(_ *site, x *xfrm.SA) { x.SoftBytes, x.ReplayWindow = 200, 0 }))
	for i := range 3 {
		ha.send(hb, uint32(i+1), 72)
	}
	hb.want(1, 2, 3)
	if e := waitEvent[xfrm.Expiring](p.b, "soft limit of what came in", nil); e.Hard {
		t.Fatalf("%+v", e)
	}
}

func testLimits(t *testing.T, make Factory) {
	p, ha, hb := standard(t, make, xfrm.Tunnel{}, only("A", func(_ *site, x *xfrm.SA) { x.SoftBytes, x.HardBytes = 200, 400 }))
	ha.send(hb, 1, 72) // 100 bytes
	hb.want(1)
	ha.send(hb, 2, 72)
	hb.want(2)
	if e := waitEvent[xfrm.Expiring](p.a, "soft limit", nil); e.Hard || e.SPIIn != spiA {
		t.Fatalf("%+v", e)
	}
	ha.send(hb, 3, 72)
	ha.send(hb, 4, 72)
	hb.want(3, 4)
	ha.send(hb, 5, 72)
	waitEvent(p.a, "hard limit", func(e xfrm.Expiring) bool { return e.Hard })
	if c := p.a.counters(spiA); c.OutPackets != 4 {
		t.Fatalf("%+v", c)
	}
	// Without ESN the numbers end at 2^32-1 and never wrap.
	last := uint64(1<<32 - 1)
	p.a.deactivate()
	noESN := ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128}
	p.install(p.a, generation(1), withSuite(noESN), bounds(last-2, 0))
	p.install(p.b, generation(1), withSuite(noESN))
	p.a.forget()
	p.a.agree()
	p.b.agree()
	p.a.activate()
	ha.send(hb, 6, 64)
	ha.send(hb, 7, 64)
	hb.want(6, 7)
	waitEvent(p.a, "few numbers left", func(e xfrm.Expiring) bool { return !e.Hard && e.SPIIn == spiA+1 })
	ha.send(hb, 8, 64)
	waitEvent(p.a, "no number left", func(e xfrm.Expiring) bool { return e.Hard && e.SPIIn == spiA+1 })
	if c := p.a.counters(spiA + 1); c.OutSeq != last || c.OutErrors == 0 || c.Ceiling != last {
		t.Fatalf("%+v", c)
	}
}

// Where outer packets must not be fragmented, senders learn the size that fits.
func testDontFragment(t *testing.T, make Factory) {
	p, _, _ := standard(t, make, xfrm.Tunnel{DontFragment: true})
	tp := p.b.tap()
	for _, v6 := range []bool{false, true} {
		ha, hb := p.a.host(v6, 7010), p.b.host(v6, 7010)
		b := payload(1, 1440)
		if _, err := ha.conn.WriteToUDPAddrPort(b, hb.addr()); err != nil {
			t.Fatal(err)
		}
		want := p.a.tunnelCounters().TooBig
		eventually(t, "too big", func() bool { return p.a.tunnelCounters().TooBig > 0 && p.a.tunnelCounters().TooBig >= want })
		// The ICMP error has taught the kernel of the sender.
		eventually(t, "path MTU learnt", func() bool {
			_, err := ha.conn.WriteToUDPAddrPort(b, hb.addr())
			return err == unix.EMSGSIZE || err != nil && bytes.Contains([]byte(err.Error()), []byte("message too long"))
		})
		// 1500 - 20 - 8 - 8 - 16 leaves 1446 for the inner packet; 1422 with its headers
		// is the largest multiple of four less two.
		fits := 1446 - 28
		if v6 {
			fits = 1446 - 48
		}
		ha.send(hb, 2, fits)
		hb.want(2)
	}
	for _, f := range tp.frames() {
		if f.spi == uint32(spiB) && f.raw[14+6]&0x40 == 0 {
			t.Fatal("outer packet without DF")
		}
	}
	// An inner packet without DF is cut before it is sealed.
	small, err := p.a.udp(false, false, 7020)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	hb := p.b.host(false, 7021)
	if _, err := small.WriteToUDPAddrPort(payload(9, 1472), hb.addr()); err != nil {
		t.Fatal(err)
	}
	hb.want(9)
}

// udp opens an inner socket with or without DF.
func (s *site) udp(v6, df bool, port uint16) (c *net.UDPConn, err error) {
	a, level, name, v := s.lan4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	if v6 {
		a, level, name, v = s.lan6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT
	}
	if df {
		v = unix.IP_PMTUDISC_PROBE
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), level, name, v) })
	}}
	s.do(func() {
		var pc net.PacketConn
		if pc, err = lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, port).String()); err == nil {
			c = pc.(*net.UDPConn)
		}
	})
	return c, err
}

func testMSS(t *testing.T, make Factory) {
	p, _, _ := standard(t, make, xfrm.Tunnel{MaxMSS: [2]int{1300, 1280}})
	for i, v6 := range []bool{false, true} {
		want := []int{1300, 1280}[i]
		la, lb := p.a.lan4, p.b.lan4
		if v6 {
			la, lb = p.a.lan6, p.b.lan6
		}
		var l net.Listener
		p.b.must("listen", func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(lb, 7030).String()); return err })
		defer l.Close()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(la, 0))}
		var c net.Conn
		p.a.must("dial", func() (err error) { c, err = d.Dial("tcp", l.Addr().String()); return err })
		defer c.Close()
		ac, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer ac.Close()
		for _, c := range []net.Conn{c, ac} {
			rc, _ := c.(*net.TCPConn).SyscallConn()
			_ = rc.Control(func(fd uintptr) {
				if n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG); err != nil || n > want {
					t.Errorf("MSS %d, %v; want at most %d", n, err, want)
				}
			})
		}
	}
}

// RFC 6040: the inner mark goes out, an outer mark comes in.
func testECN(t *testing.T, make Factory) {
	p, _, _ := standard(t, make, xfrm.Tunnel{})
	tp, out := p.b.tap(), p.a.tap()
	hb := p.b.host(false, 7040)
	rc, _ := hb.conn.SyscallConn()
	_ = rc.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1); err != nil {
			t.Error(err)
		}
	})
	c, err := p.a.udp(false, true, 7041)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rc, _ = c.SyscallConn()
	const ect0 = 0xb8 | 2
	_ = rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, ect0) })
	if _, err := c.WriteToUDPAddrPort(payload(1, 64), hb.addr()); err != nil {
		t.Fatal(err)
	}
	if tos, err := recvTOS(hb); err != nil || tos != ect0 {
		t.Fatalf("inner traffic class %#x, %v; want %#x", tos, err, ect0)
	}
	var frame []byte
	for _, f := range tp.frames() {
		if f.spi == uint32(spiB) {
			frame = f.raw
		}
	}
	if frame == nil || frame[15] != ect0 {
		t.Fatalf("outer traffic class: %x", frame[:34])
	}
	// The same for a packet that was marked on its way: held back at B, then marked.
	p.b.deactivate()
	if _, err := c.WriteToUDPAddrPort(payload(2, 64), hb.addr()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "held back", func() bool { return p.b.tunnelCounters().Inactive > 0 })
	w := windows(p.b)
	p.b.do(func() { p.b.plane.SetWindows(w) })
	p.b.activate()
	for _, f := range tp.frames() {
		if f.spi == uint32(spiB) {
			f.raw[15] |= 3
			f.raw[24], f.raw[25] = 0, 0
			binary.BigEndian.PutUint16(f.raw[24:], sum(f.raw[14:34]))
			out.inject(f.raw)
		}
	}
	if tos, err := recvTOS(hb); err != nil || tos != ect0|3 {
		t.Fatalf("traffic class %#x, %v; want congestion experienced", tos, err)
	}
}

func recvTOS(h *host) (int, error) {
	oob := make([]byte, 128)
	n, on, _, _, err := h.conn.ReadMsgUDPAddrPort(h.buf[:], oob)
	if err != nil {
		return 0, err
	}
	cs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(cs) == 0 || n == 0 {
		return 0, fmt.Errorf("%d control messages: %w", len(cs), err)
	}
	return int(cs[0].Data[0]), nil
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
