package userspace

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"tandem/internal/needs"
	"tandem/xfrm"
)

// streamPlane is a plane on free ports that tells what IKE messages come.
func streamPlane(t *testing.T) (p *Plane, ike chan xfrm.IKEDatagram, at string) {
	t.Helper()
	needs.Root(t) // for the raw socket
	ike = make(chan xfrm.IKEDatagram, 1024)
	free := func() uint16 {
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return uint16(c.LocalAddr().(*net.UDPAddr).Port)
	}
	var err error
	p, err = New(Options{PortIKE: free(), PortNATT: free(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Handler: xfrm.Handler{IKE: func(d xfrm.IKEDatagram) { ike <- d }, Events: func([]xfrm.Event) {}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	at = net.JoinHostPort("127.0.0.1", port)
	if err := p.ListenTCP(netip.MustParseAddrPort(at).Port()); err != nil {
		t.Fatal(err)
	}
	return p, ike, at
}

// come waits for the next message.
func come(t *testing.T, c chan xfrm.IKEDatagram) xfrm.IKEDatagram {
	t.Helper()
	select {
	case d := <-c:
		return d
	case <-time.After(10 * time.Second):
		t.Fatal("no message comes")
		return xfrm.IKEDatagram{}
	}
}

func callTCP(t *testing.T, at string, first ...[]byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write(bytes.Join(first, nil)); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantClosed wants the other side to close a connection.
func wantClosed(t *testing.T, c net.Conn, what string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isDeadline(err) {
		t.Errorf("%s: the connection stays (%v)", what, err)
	}
}

// frame is an IKE message as it stands in a stream.
func frame(msg []byte) []byte {
	b, _ := appendFrame(nil, nonESPMarker[:], msg)
	return b
}

func (ss *streams) count() (all, strangers int) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.all), ss.nStranger
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within ten seconds: " + what)
		}
	}
}

// TestStreams: IKE messages go both ways, in a connection that either plane opened.
func TestStreams(t *testing.T) {
	a, fromB, _ := streamPlane(t)
	b, fromA, at := streamPlane(t)
	to := xfrm.IKEDatagram{Local: netip.MustParseAddrPort("127.0.0.1:0"), Remote: netip.MustParseAddrPort(at), NonESP: true, TCP: true}
	for i := range 3 {
		to.Data = bytes.Repeat([]byte{byte(i)}, 28+i*5000)
		if err := a.SendIKE(to); err != nil {
			t.Fatal(err)
		}
		got := come(t, fromA)
		if !got.TCP || !got.NonESP || got.Local != to.Remote || !bytes.Equal(got.Data, to.Data) {
			t.Fatalf("%v to %v, %d bytes", got.Remote, got.Local, len(got.Data))
		}
		if err := b.SendIKE(got); err != nil {
			t.Fatal(err)
		}
		if back := come(t, fromB); back.Local != to.Local || back.Remote != to.Remote || !bytes.Equal(back.Data, to.Data) {
			t.Fatalf("back: %v to %v", back.Remote, back.Local)
		}
	}
	// Nobody opens a connection to where none was opened from.
	gone := xfrm.IKEDatagram{Local: to.Remote, Remote: netip.MustParseAddrPort("127.0.0.1:1"), TCP: true, Data: make([]byte, 28)}
	if err := b.SendIKE(gone); err == nil {
		t.Error("sent without a connection")
	}
	if err := b.ListenTCP(0); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", at); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

// TestStreamStrangers: what nobody has authenticated is bounded, and closed when it is
// wrong.
func TestStreamStrangers(t *testing.T) {
	p, ike, at := streamPlane(t)
	msg := make([]byte, 28)
	wantClosed(t, callTCP(t, at, []byte("GET / HTTP/1.1\r\n\r\n")), "another protocol")
	wantClosed(t, callTCP(t, at, []byte(streamPrefix), []byte{0xff, 0xff}), "a message without end")
	wantClosed(t, callTCP(t, at, []byte(streamPrefix), []byte{0, 0}), "a message without length")
	wantClosed(t, callTCP(t, at, []byte(streamPrefix), []byte{0, 5, 1, 2, 3}), "a message that is none")
	c := callTCP(t, at, []byte(streamPrefix))
	long := frame(make([]byte, 12000))
	for range strangerBytes/len(long) + 1 {
		_, _ = c.Write(long)
	}
	wantClosed(t, c, "too much of a stranger")
	for len(ike) > 0 {
		<-ike
	}
	until(t, "they are forgotten", func() bool { all, n := p.socks.streams.count(); return all == 0 && n == 0 })

	var held []net.Conn
	for range strangersPerSource {
		c := callTCP(t, at, []byte(streamPrefix), frame(msg))
		come(t, ike)
		held = append(held, c)
	}
	wantClosed(t, callTCP(t, at, []byte(streamPrefix)), "one more of a source")
	// One of them turns out to be an SA's: it counts no more.
	known := netip.MustParseAddrPort(held[0].LocalAddr().String())
	p.socks.streams.bind(&peer{local: netip.MustParseAddrPort(at), remote: known, udp: true, tcp: true})
	if _, n := p.socks.streams.count(); n != strangersPerSource-1 {
		t.Errorf("%d strangers", n)
	}
	c = callTCP(t, at, []byte(streamPrefix), frame(msg))
	come(t, ike)
	_, _ = held[0].Write(frame(make([]byte, 60000)))
	if d := come(t, ike); len(d.Data) != 60000 {
		t.Errorf("%d bytes", len(d.Data))
	}
	for _, c := range append(held, c) {
		c.Close()
	}
	until(t, "they are forgotten", func() bool { all, n := p.socks.streams.count(); return all == 0 && n == 0 })
}

// TestSlowReader: whoever does not read makes nobody wait; what exceeds the queue is
// dropped, IKE has some room of its own.
func TestSlowReader(t *testing.T) {
	p, ike, at := streamPlane(t)
	c := callTCP(t, at, []byte(streamPrefix), frame(make([]byte, 28)))
	d := come(t, ike)
	path := pathOf(d.Local, d.Remote)
	pkt := make([]byte, 1400)
	begin, dropped := time.Now(), false
	for range 100_000 {
		binary.BigEndian.PutUint32(pkt, 7)
		if !p.socks.streams.sendESP(path, pkt) {
			dropped = true
			break
		}
	}
	if !dropped || time.Since(begin) > 5*time.Second {
		t.Errorf("dropped %v, after %v", dropped, time.Since(begin))
	}
	d.Data = make([]byte, 28)
	if err := p.SendIKE(d); err != nil {
		t.Errorf("no room for IKE: %v", err)
	}
	// What was taken arrives whole when he reads again.
	f, got := &frames{longest: longestFrame}, 0
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for last := false; !last; {
		n, err := c.Read(f.room())
		if err != nil {
			t.Fatal(err)
		}
		f.wrote(n)
		for m, err := f.next(); m != nil || err != nil; m, err = f.next() {
			if err != nil {
				t.Fatal(err)
			}
			got++
			last = len(m) == 32
		}
	}
	if got < streamQueue/1500 {
		t.Errorf("%d messages", got)
	}
}
