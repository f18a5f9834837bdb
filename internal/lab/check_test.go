package lab

import (
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	wireClient  = netip.MustParseAddr("192.0.2.10")
	wireGateway = netip.MustParseAddr("192.0.2.1")
	wireStart   = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
)

// udpFrame is an Ethernet frame with an IPv4 or IPv6 UDP packet.
func udpFrame(src, dst netip.Addr, port uint16, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, port)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	return ipFrame(src, dst, protoUDP, udp)
}

func ipFrame(src, dst netip.Addr, proto byte, body []byte) []byte {
	f := make([]byte, 12)
	if src.Is4() {
		f = binary.BigEndian.AppendUint16(f, etherIPv4)
		f = append(f, 0x45, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(20+len(body)))
		f = append(f, 0, 0, 0x40, 0, 64, proto, 0, 0)
	} else {
		f = binary.BigEndian.AppendUint16(f, etherIPv6)
		f = append(f, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(len(body)))
		f = append(f, proto, 64)
	}
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	return append(f, body...)
}

func espBytes(spi, seq uint32, iv uint64, text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, spi)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint64(b, iv)
	return append(b, text+"0123456789abcdef"...)
}

func ikeBytes(exchange, flags byte, id uint32, text string) []byte {
	b := append([]byte(nil), "SPIIIIIISPIRRRRR"...)
	b = append(b, 46, 0x20, exchange, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(28+len(text)))
	return append(b, text...)
}

// wire builds captures: each packet passes the sender's port and the receiver's.
type wire struct {
	frames []Frame
	now    time.Time
}

func newWire() *wire { return &wire{now: wireStart} }

func (w *wire) pass(data []byte, from, to string) {
	w.now = w.now.Add(time.Millisecond)
	w.frames = append(w.frames, Frame{w.now, from, true, data})
	if to != "" {
		w.frames = append(w.frames, Frame{w.now.Add(20 * time.Microsecond), to, false, data})
	}
}

func (w *wire) down(gw string, spi, seq uint32, iv uint64, text string) {
	w.pass(udpFrame(wireGateway, wireClient, portNATT, espBytes(spi, seq, iv, text)), gw, NodeClient)
}

func (w *wire) up(gw string, spi, seq uint32, iv uint64, text string) {
	w.pass(udpFrame(wireClient, wireGateway, portNATT, espBytes(spi, seq, iv, text)), NodeClient, gw)
}

func (w *wire) ike(from, to string, exchange, flags byte, id uint32, text string) {
	src, dst := wireGateway, wireClient
	if from == NodeClient {
		src, dst = dst, src
	}
	w.pass(udpFrame(src, dst, portNATT, append(make([]byte, 4), ikeBytes(exchange, flags, id, text)...)), from, to)
}

// clean is a tunnel that is set up at gw1, carries traffic, moves to gw2 with a
// jump of 101, and is rekeyed there.
func clean() *wire {
	w := newWire()
	w.ike(NodeClient, NodeGW1, exchangeSAInit, 0x08, 0, "i")
	w.ike(NodeGW1, NodeClient, exchangeSAInit, 0x20, 0, "r")
	w.ike(NodeClient, NodeGW1, exchangeAuth, 0x08, 1, "i")
	w.ike(NodeGW1, NodeClient, exchangeAuth, 0x20, 1, "r")
	for i := uint32(1); i <= 100; i++ {
		w.down(NodeGW1, 0xaa, i, uint64(i), "down")
		w.up(NodeGW1, 0xbb, i, uint64(i), "up")
	}
	for i := uint32(1); i <= 50; i++ {
		w.down(NodeGW2, 0xaa, 200+i, 1<<40|uint64(i), "down")
		w.up(NodeGW2, 0xbb, 100+i, uint64(100+i), "up")
	}
	w.ike(NodeClient, NodeGW2, exchangeCreateChildSA, 0x08, 2, "i")
	w.ike(NodeGW2, NodeClient, exchangeCreateChildSA, 0x20, 2, "r")
	return w
}

var tunnelUp = wireStart.Add(5 * time.Millisecond)

// checkFile runs the frames through a capture file each, as the lab does.
func checkFile(t *testing.T, w *wire, opts CheckOptions) CheckReport {
	t.Helper()
	opts.Client = NodeClient
	c := NewChecker(opts)
	for _, port := range []string{NodeGW1, NodeClient, NodeGW2} {
		path := filepath.Join(t.TempDir(), "c.pcapng")
		p, err := newPcapWriter(path, port)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range w.frames {
			if f.Port == port {
				if err := p.write(f); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := p.close(); err != nil {
			t.Fatal(err)
		}
		if err := ReadCapture(path, func(f Frame) error { c.Add(f); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return c.Report()
}

func TestCheckerPassesCleanCapture(t *testing.T) {
	r := checkFile(t, clean(), CheckOptions{Up: tunnelUp})
	if r.IVRepeats != 0 || r.SeqRegressions != 0 || r.SAInitAfterUp != 0 || r.AuthAfterUp != 0 || r.CreateChildUnanswered != 0 || len(r.Violations) != 0 {
		t.Errorf("clean capture: %+v", r)
	}
	if r.ESP != 600 || r.IKE["IKE_SA_INIT"] != 2 || r.IKE["CREATE_CHILD_SA"] != 2 || r.CreateChildAnswered != 1 || len(r.SPIs) != 2 {
		t.Errorf("clean capture was not read whole: %+v", r)
	}
}

func TestCheckerFindsPlantedFaults(t *testing.T) {
	for name, test := range map[string]struct {
		plant func(w *wire)
		want  func(r CheckReport) bool
	}{
		"IV repeat by the successor": {
			func(w *wire) { w.down(NodeGW2, 0xaa, 300, 7, "other words") },
			func(r CheckReport) bool { return r.IVRepeats == 1 && r.SeqRegressions == 0 },
		},
		"IV repeat that the peer never saw": {
			func(w *wire) {
				w.pass(udpFrame(wireGateway, wireClient, portNATT, espBytes(0xaa, 300, 7, "lost")), NodeGW2, "")
			},
			func(r CheckReport) bool { return r.IVRepeats == 1 },
		},
		"IV repeat in plain ESP": {
			func(w *wire) {
				w.pass(ipFrame(wireGateway, wireClient, protoESP, espBytes(0xcc, 1, 7, "a")), NodeGW2, NodeClient)
				w.pass(ipFrame(wireGateway, wireClient, protoESP, espBytes(0xcc, 2, 7, "b")), NodeGW2, NodeClient)
			},
			func(r CheckReport) bool { return r.IVRepeats == 1 },
		},
		"IV repeat over IPv6": {
			func(w *wire) {
				a, b := netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::10")
				w.pass(udpFrame(a, b, portNATT, espBytes(0xcc, 1, 7, "a")), NodeGW2, NodeClient)
				w.pass(udpFrame(a, b, portNATT, espBytes(0xcc, 2, 7, "b")), NodeGW2, NodeClient)
			},
			func(r CheckReport) bool { return r.IVRepeats == 1 },
		},
		"same IV under another SPI": {
			func(w *wire) { w.down(NodeGW2, 0xac, 1, 7, "new key") },
			func(r CheckReport) bool { return r.IVRepeats == 0 && r.SeqRegressions == 0 },
		},
		"packet sent twice to the bit": {
			func(w *wire) { w.down(NodeGW2, 0xaa, 250, 1<<40|50, "down") },
			func(r CheckReport) bool { return r.IVRepeats == 0 && r.SeqRegressions == 0 },
		},
		"sequence goes back": {
			func(w *wire) { w.down(NodeGW2, 0xaa, 150, 1<<40|900, "down") },
			func(r CheckReport) bool { return r.SeqRegressions == 1 && r.IVRepeats == 0 },
		},
		"sequence stands still": {
			func(w *wire) { w.down(NodeGW2, 0xaa, 250, 1<<40|900, "down") },
			func(r CheckReport) bool { return r.SeqRegressions == 1 },
		},
		"late packet of the old owner": {
			func(w *wire) { w.down(NodeGW1, 0xaa, 101, 101, "down") },
			func(r CheckReport) bool { return r.SeqRegressions == 1 },
		},
		"client's own reordering is not ours": {
			func(w *wire) { w.up(NodeGW2, 0xbb, 3, 9000, "up") },
			func(r CheckReport) bool { return r.SeqRegressions == 0 },
		},
		"new IKE_SA_INIT": {
			func(w *wire) { w.ike(NodeClient, NodeGW2, exchangeSAInit, 0x08, 0, "again") },
			func(r CheckReport) bool { return r.SAInitAfterUp == 1 && r.AuthAfterUp == 0 },
		},
		"new IKE_AUTH": {
			func(w *wire) { w.ike(NodeGW2, NodeClient, exchangeAuth, 0x00, 9, "again") },
			func(r CheckReport) bool { return r.AuthAfterUp == 1 },
		},
		"rekey without an answer": {
			func(w *wire) {
				w.ike(NodeClient, NodeGW2, exchangeCreateChildSA, 0x08, 3, "i")
				w.ike(NodeClient, NodeGW2, exchangeCreateChildSA, 0x08, 3, "i")
			},
			func(r CheckReport) bool { return r.CreateChildUnanswered == 1 && r.CreateChildAnswered == 1 },
		},
		"request of the other side with the same number is another exchange": {
			func(w *wire) {
				w.ike(NodeGW2, NodeClient, exchangeCreateChildSA, 0x00, 2, "i")
			},
			func(r CheckReport) bool { return r.CreateChildUnanswered == 1 && r.CreateChildAnswered == 1 },
		},
		"answer lost before the client": {
			func(w *wire) {
				w.ike(NodeClient, NodeGW2, exchangeCreateChildSA, 0x08, 3, "i")
				w.ike(NodeGW2, "", exchangeCreateChildSA, 0x20, 3, "r")
			},
			func(r CheckReport) bool { return r.CreateChildUnanswered == 1 },
		},
		"several packets in one frame": {
			func(w *wire) { w.down(NodeGW2, 0xaa, 300, 1<<41, strings.Repeat("x", 3000)) },
			func(r CheckReport) bool { return r.Oversize == 2 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := clean()
			test.plant(w)
			if r := checkFile(t, w, CheckOptions{Up: tunnelUp}); !test.want(r) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestCheckerOptions(t *testing.T) {
	w := clean()
	w.down(NodeGW1, 0xaa, 101, 101, "split")
	in := w.frames[len(w.frames)-1].Time
	r := checkFile(t, w, CheckOptions{Up: tunnelUp, Tolerated: []Interval{{in, in.Add(1)}}})
	if r.SeqRegressions != 0 || r.SeqRegressionsTolerated != 1 {
		t.Errorf("regression within a tolerated time: %+v", r)
	}

	w = clean()
	w.ike(NodeClient, NodeGW2, exchangeCreateChildSA, 0x08, 3, "i")
	if r := checkFile(t, w, CheckOptions{Up: tunnelUp, End: w.now.Add(500 * time.Millisecond)}); r.CreateChildUnanswered != 0 {
		t.Errorf("request in the last second: %+v", r)
	}

	w = newWire()
	w.down(NodeGW1, 0xdd, 0xfffffff0, 1, "a")
	w.down(NodeGW1, 0xdd, 5, 2, "b")
	if r := checkFile(t, w, CheckOptions{ESN: true}); r.SeqRegressions != 0 {
		t.Errorf("wrap of the low half under ESN: %+v", r)
	}
	if r := checkFile(t, w, CheckOptions{}); r.SeqRegressions != 1 {
		t.Errorf("wrap without ESN: %+v", r)
	}

	// With CBC the first eight bytes of two IVs may be equal.
	w = newWire()
	w.down(NodeGW1, 0xee, 1, 1, "AAAAAAAA")
	w.down(NodeGW1, 0xee, 2, 1, "BBBBBBBB")
	if r := checkFile(t, w, CheckOptions{IVLen: 16}); r.IVRepeats != 0 {
		t.Errorf("16-byte IVs: %+v", r)
	}
	if r := checkFile(t, w, CheckOptions{}); r.IVRepeats != 1 {
		t.Errorf("8-byte IVs: %+v", r)
	}
}

func TestSuccession(t *testing.T) {
	w := clean()
	c := NewChecker(CheckOptions{Client: NodeClient, Up: tunnelUp})
	var fault time.Time
	for _, f := range w.frames {
		c.Add(f)
		if o := decodeOuter(f.Data); f.Port == NodeGW1 && f.FromNode && o.seq == 100 {
			fault = f.Time.Add(time.Microsecond)
		}
	}
	c.Report()
	s := c.Succession(fault, w.now.Add(time.Hour), NodeGW2)
	if !s.Seen || !s.JumpSeen || s.Jump != 101 || s.First != 201 || s.After <= 0 || s.After > 3*time.Millisecond {
		t.Errorf("succession: %+v", s)
	}
	if s := c.Succession(w.now, w.now.Add(time.Hour), NodeGW1); s.Seen {
		t.Errorf("gw1 sent nothing more: %+v", s)
	}
	if n := c.SentBy(NodeGW2, fault, w.now); n != 50 {
		t.Errorf("gw2 sent %d, want 50", n)
	}
}

// TestSentBy: what an owner sends is ESP, IKE and anything else in the name of a
// shared address; what a standby sends as itself is not.
func TestSentBy(t *testing.T) {
	shared6 := netip.MustParseAddr("2001:db8:1::1")
	arp := func(sender netip.Addr) []byte {
		f := append(make([]byte, 12), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
		f = append(append(f, make([]byte, 6)...), sender.AsSlice()...)
		return append(f, make([]byte, 10)...)
	}
	own, own6 := netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("fe80::77")
	advertise := func(target netip.Addr) []byte {
		return ipFrame(own6, netip.MustParseAddr("ff02::1"), protoICMP, append([]byte{136, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...))
	}
	for name, test := range map[string]struct {
		frame []byte
		want  int
	}{
		"ESP":                          {udpFrame(wireGateway, wireClient, portNATT, espBytes(1, 1, 1, "x")), 1},
		"ESP from another address":     {ipFrame(own, wireClient, protoESP, espBytes(1, 1, 1, "x")), 1},
		"IKE":                          {udpFrame(wireGateway, wireClient, portIKE, ikeBytes(exchangeInformational, 0, 1, "x")), 1},
		"anything else":                {udpFrame(wireGateway, wireClient, 53, []byte("x")), 1},
		"IPv6":                         {udpFrame(shared6, netip.MustParseAddr("2001:db8:1::10"), 53, []byte("x")), 1},
		"gratuitous ARP":               {arp(wireGateway), 1},
		"neighbour advertisement":      {advertise(shared6), 1},
		"its own ARP":                  {arp(own), 0},
		"ARP that looks for a double":  {arp(netip.IPv4Unspecified()), 0},
		"its own advertisement":        {advertise(own6), 0},
		"as itself":                    {udpFrame(own, wireClient, 53, []byte("x")), 0},
		"cut short":                    {arp(wireGateway)[:30], 0},
		"nothing":                      {nil, 0},
		"an answer that it advertised": {advertise(shared6)[:60], 0},
	} {
		c := NewChecker(CheckOptions{Client: NodeClient, Shared: []netip.Addr{wireGateway, shared6}})
		for _, f := range []Frame{
			{at(1), NodeGW1, true, test.frame}, {at(1), NodeGW1, false, test.frame}, {at(1), NodeClient, true, test.frame},
			{at(3), NodeGW1, true, test.frame},
		} {
			c.Add(f)
		}
		if n := c.SentBy(NodeGW1, at(0), at(2)); n != test.want {
			t.Errorf("%s: %d", name, n)
		}
	}
}

func FuzzDecodeOuter(f *testing.F) {
	for _, fr := range clean().frames[:8] {
		f.Add(fr.Data)
	}
	f.Add(ipFrame(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), 44, make([]byte, 24)))
	f.Add(ipFrame(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("ff02::1"), protoICMP, append([]byte{136}, make([]byte, 31)...)))
	f.Add(append(append(make([]byte, 12), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1), make([]byte, 32)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewChecker(CheckOptions{Client: NodeClient, Shared: []netip.Addr{wireGateway}})
		c.Add(Frame{wireStart, NodeClient, false, b})
		c.Add(Frame{wireStart, NodeGW1, true, b})
		c.Add(Frame{wireStart, NodeGW2, false, b})
		c.Report()
		if n := c.SentBy(NodeGW1, wireStart, wireStart.Add(1)); n > 1 {
			t.Errorf("one frame counts %d times", n)
		}
		if o := decodeOuter(b); len(o.payload) > len(b) {
			t.Error("payload lies outside the frame")
		}
	})
}

// TestReadFlushed: a capture that is still being written ends anywhere within a
// packet; all before it is read.
func TestReadFlushed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.pcapng")
	p, err := newPcapWriter(path, NodeClient)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := p.write(Frame{Time: at(float64(i)), Port: NodeClient, Data: make([]byte, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 1; cut < 130; cut++ { // within the last packet
		if err := os.WriteFile(path, whole[:len(whole)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := readFlushed(path, func(Frame) error { n++; return nil }); err != nil || n != 2 {
			t.Fatalf("cut by %d bytes: %d packets, %v", cut, n, err)
		}
	}
}
