package userspace

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"tandem/internal/ipsec"
)

// ipPacket builds a packet with a transport header in front of n more bytes.
func ipPacket(src, dst string, proto uint8, transport []byte, n int) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	body := append(bytes.Clone(transport), make([]byte, n)...)
	var b []byte
	if s.Is4() {
		b = make([]byte, 20, 20+len(body))
		b[0], b[8], b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
		copy(b[12:], s.AsSlice())
		copy(b[16:], d.AsSlice())
		binary.BigEndian.PutUint16(b[10:], checksum(b, 0))
	} else {
		b = make([]byte, 40, 40+len(body))
		b[0], b[6], b[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
		copy(b[8:], s.AsSlice())
		copy(b[24:], d.AsSlice())
	}
	return append(b, body...)
}

var udpHeader = []byte{0x1b, 0x58, 0x1b, 0x59, 0, 8, 0, 0}

func TestParseInner(t *testing.T) {
	first4 := ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, 10)
	tail4 := bytes.Clone(first4)
	tail4[7] = 5
	hop := append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udpHeader...)
	tail6 := append([]byte{protoUDP, 0, 0, 0x10, 0, 0, 0, 1}, udpHeader...)
	for _, c := range []struct {
		name              string
		b                 []byte
		ok, ports, tail   bool
		proto             uint8
		sport, dport, len int
	}{
		{"UDP", first4, true, true, false, protoUDP, 7000, 7001, 38},
		{"with TFC padding", append(bytes.Clone(first4), 1, 2, 3), true, true, false, protoUDP, 7000, 7001, 38},
		{"later fragment", tail4, true, false, true, protoUDP, 0, 0, 38},
		{"IPv6", ipPacket("fd00::1", "fd00::2", protoUDP, udpHeader, 0), true, true, false, protoUDP, 7000, 7001, 48},
		{"hop-by-hop options", ipPacket("fd00::1", "fd00::2", 0, hop, 0), true, true, false, protoUDP, 7000, 7001, 56},
		{"later IPv6 fragment", ipPacket("fd00::1", "fd00::2", protoFragment, tail6, 0), true, false, true, protoUDP, 0, 0, 56},
		{"cut short", first4[:37], false, false, false, 0, 0, 0, 0},
		{"header cut short", first4[:19], false, false, false, 0, 0, 0, 0},
		{"no IP", bytes.Repeat([]byte{0x10}, 60), false, false, false, 0, 0, 0, 0},
		{"extension beyond the end", ipPacket("fd00::1", "fd00::2", 0, []byte{0, 9, 0, 0, 0, 0, 0, 0}, 0), false, false, false, 0, 0, 0, 0},
	} {
		in, pkt, ok := parseInner(c.b)
		if ok != c.ok || ok && (in.ports != c.ports || in.tail != c.tail || in.proto != c.proto || int(in.sport) != c.sport || int(in.dport) != c.dport || len(pkt) != c.len) {
			t.Errorf("%s: %+v, %d bytes, %v", c.name, in, len(pkt), ok)
		}
	}
}

func TestMatchSelectors(t *testing.T) {
	ts := ipsec.SelectorFromPrefix(netip.MustParsePrefix("10.0.0.0/24"))
	ts.Protocol, ts.StartPort, ts.EndPort = protoUDP, 53, 53
	a := netip.MustParseAddr("10.0.0.9")
	for _, c := range []struct {
		in   inner
		port uint16
		want bool
	}{
		{inner{proto: protoUDP, ports: true}, 53, true}, {inner{proto: protoUDP, ports: true}, 54, false},
		{inner{proto: protoTCP, ports: true}, 53, false}, {inner{proto: protoUDP, tail: true}, 0, false},
	} {
		if got := c.in.match(&ts, a, c.port); got != c.want {
			t.Errorf("%+v port %d: %v", c.in, c.port, got)
		}
	}
	ts.StartPort, ts.EndPort = 0, 65535
	if !(&inner{proto: protoUDP, tail: true}).match(&ts, a, 0) {
		t.Error("a fragment does not match open ports")
	}
}

// RFC 6040 §4.2, figure 4.
func TestCombineECN(t *testing.T) {
	const drop = 9
	want := [4][4]uint8{ // inner, outer: Not-ECT, ECT(1), ECT(0), CE
		ecnNotECT: {ecnNotECT, ecnNotECT, ecnNotECT, drop},
		ecnECT1:   {ecnECT1, ecnECT1, ecnECT1, ecnCE},
		ecnECT0:   {ecnECT0, ecnECT1, ecnECT0, ecnCE},
		ecnCE:     {ecnCE, ecnCE, ecnCE, ecnCE},
	}
	for i := range uint8(4) {
		for o := range uint8(4) {
			for _, src := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
				b := ipPacket(src[0], src[1], protoUDP, udpHeader, 0)
				setTOS(b, 0xb8|i)
				in, b, _ := parseInner(b)
				ok := combineECN(b, &in, 0x28|o)
				if ok != (want[i][o] != drop) {
					t.Fatalf("inner %d outer %d: kept %v", i, o, ok)
				}
				again, _, _ := parseInner(b)
				if ok && again.tos != 0xb8|want[i][o] {
					t.Errorf("inner %d outer %d: %#x", i, o, again.tos)
				}
				if !again.v6 && checksum(b[:20], 0) != 0 {
					t.Errorf("inner %d outer %d: checksum", i, o)
				}
			}
		}
	}
}

func setTOS(b []byte, tos uint8) {
	if b[0]>>4 == 6 {
		b[0], b[1] = 0x60|tos>>4, tos<<4
		return
	}
	b[1], b[10], b[11] = tos, 0, 0
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20], 0))
}

func TestClampMSS(t *testing.T) {
	for name, options := range map[string][]byte{
		"alone": {2, 4, 5, 0xb4}, "at an odd place": {1, 2, 4, 5, 0xb4, 0, 0, 0}, "behind others": {4, 2, 1, 1, 2, 4, 5, 0xb4},
		"broken": {1, 1, 2, 4}, "endless": {7, 0, 2, 4, 5, 0xb4, 0, 0}, "none": {},
	} {
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		tcp := make([]byte, 20, 64)
		tcp[12], tcp[13] = byte(20+len(options))<<2, 2
		tcp = append(tcp, options...)
		binary.BigEndian.PutUint16(tcp[16:], checksum(tcp, 77)) // any pseudo header
		b := ipPacket("10.0.0.1", "10.0.0.2", protoTCP, tcp, 0)
		in, b, _ := parseInner(b)
		clampMSS(b, &in, 1200)
		if checksum(b[20:], 77) != 0 {
			t.Errorf("%s: checksum", name)
		}
		if changed := bytes.Contains(b[40:], []byte{2, 4, 4, 0xb0}); changed != (name == "alone" || name[0] == 'a' || name == "behind others") {
			t.Errorf("%s: %x", name, b[40:])
		}
		clampMSS(b, &in, 9000)
		if bytes.Contains(b[40:], []byte{0x23, 0x28}) {
			t.Errorf("%s: raised", name)
		}
	}
}

func TestFragment4(t *testing.T) {
	pkt := ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, 3000)
	for i := range pkt[28:] {
		pkt[28+i] = byte(i)
	}
	var data []byte
	dst := make([]byte, 1400)
	if !fragment4(dst, pkt, 20, 1400, func(n int) {
		in, b, ok := parseInner(dst[:n])
		if !ok || len(b) != n || checksum(b[:20], 0) != 0 || in.df {
			t.Fatalf("fragment %x", dst[:20])
		}
		frag := binary.BigEndian.Uint16(b[6:])
		if int(frag&0x1fff)*8 != len(data) || (frag&0x2000 != 0) != (len(data)+n-20 < len(pkt)-20) {
			t.Fatalf("fragment at %d: %#x", len(data), frag)
		}
		data = append(data, b[20:]...)
	}) || !bytes.Equal(data, pkt[20:]) {
		t.Fatal("the fragments do not make up the packet")
	}
	if fragment4(dst, pkt, 20, 27, func(int) {}) {
		t.Fatal("no room for data")
	}
}

func TestRangePrefixes(t *testing.T) {
	for r, want := range map[[2]string]int{
		{"0.0.0.0", "255.255.255.255"}: 1, {"10.0.0.0", "10.0.0.255"}: 1, {"10.0.0.1", "10.0.0.6"}: 4,
		{"10.0.0.7", "10.0.0.7"}: 1, {"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}: 1, {"fd00::1", "fd00::2"}: 2,
		{"0.0.0.1", "255.255.255.254"}: 62, {"10.0.0.2", "10.0.0.1"}: 0,
	} {
		l := rangePrefixes(netip.MustParseAddr(r[0]), netip.MustParseAddr(r[1]))
		if len(l) != want {
			t.Errorf("%v: %v", r, l)
		}
		if want > 0 && (l[0].Addr().String() != r[0] || lastOf(l[len(l)-1]).String() != r[1]) {
			t.Errorf("%v: %v", r, l)
		}
		for i := 1; i < len(l); i++ {
			if lastOf(l[i-1]).Next() != l[i].Addr() {
				t.Errorf("%v: gap in %v", r, l)
			}
		}
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		b    []byte
		want class
	}{
		{[]byte{0xff}, isKeepalive}, {[]byte{0xfe}, isMalformed}, {nil, isMalformed}, {[]byte{0, 0, 0, 0}, isMalformed},
		{make([]byte, 32), isIKE}, {[]byte{0, 0, 1, 0, 0, 0, 0, 1, 9}, isESP},
	} {
		if got, _ := classify(c.b); got != c.want {
			t.Errorf("%x: %d", c.b, got)
		}
	}
}

func FuzzInnerHeaders(f *testing.F) {
	f.Add(ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, 10))
	f.Add(ipPacket("fd00::1", "fd00::2", 0, append([]byte{protoFragment, 0, 1, 4, 0, 0, 0, 0}, udpHeader...), 20))
	tcp := append(make([]byte, 20), 2, 4, 5, 0xb4)
	tcp[12], tcp[13] = 24<<2, 2
	f.Add(ipPacket("fd00::1", "fd00::2", protoTCP, tcp, 0))
	f.Add(ipPacket("10.0.0.1", "10.0.0.2", protoTCP, tcp, 900))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, pkt, ok := parseInner(b)
		if !ok {
			return
		}
		if len(pkt) > len(b) || in.l4 > len(pkt) || in.src.Is6() != in.v6 {
			t.Fatalf("%+v", in)
		}
		clampMSS(pkt, &in, 1000)
		combineECN(pkt, &in, ecnCE)
		dst := make([]byte, 1280)
		if e := tooBig(dst, pkt, &in, 1300); e != nil {
			if back, whole, ok := parseInner(e); !ok || len(whole) != len(e) || back.dst != in.src {
				t.Fatalf("ICMP error %x", e)
			}
		}
		if !in.v6 {
			frag := make([]byte, 100)
			fragment4(frag, pkt, in.l4, 100, func(n int) {
				if n > 100 {
					t.Fatal("fragment too long")
				}
			})
		}
	})
}

// FuzzDatagram feeds what a socket may deliver.
func FuzzDatagram(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Add([]byte{0xff})
	f.Add(ipPacket("10.0.0.1", "10.0.0.2", 50, []byte{0, 0, 1, 0, 0, 0, 0, 1}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, body := classify(b); c == isESP && len(body) < 8 || c == isIKE && len(body) != len(b)-4 {
			t.Fatalf("class %d of %x", c, b)
		}
		if h, ok := outerHeader(b); ok && (h < 20 || h > len(b)) {
			t.Fatal("header beyond the packet")
		}
	})
}
