package userspace

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzCut: whatever an interface says about what it hands over, packets lie within it, and
// are such as the outbound path understands.
func FuzzCut(f *testing.F) {
	add := func(h vnetHdr, pkt []byte) {
		b := make([]byte, vnetLen)
		h.encode(b)
		f.Add(append(b, pkt...))
	}
	tcp := make([]byte, 20)
	tcp[12] = 5 << 4
	add(vnetHdr{}, ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, 100))
	add(vnetHdr{flags: vnetNeedsCsum, csumStart: 20, csumOffset: 6}, ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, 100))
	add(vnetHdr{flags: vnetNeedsCsum, gsoType: gsoUDP, gsoSize: 30, hdrLen: 28, csumStart: 20, csumOffset: 6}, ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, 100))
	add(vnetHdr{flags: vnetNeedsCsum, gsoType: gsoTCPv4, gsoSize: 30, hdrLen: 40, csumStart: 20, csumOffset: 16}, ipPacket("10.0.0.1", "10.0.0.2", protoTCP, tcp, 100))
	add(vnetHdr{flags: vnetNeedsCsum, gsoType: gsoTCPv6 | gsoECN, gsoSize: 30, hdrLen: 60, csumStart: 40, csumOffset: 16}, ipPacket("fd00::1", "fd00::2", protoTCP, tcp, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < vnetLen || len(b) > superLen {
			return
		}
		buf := make([]byte, len(b)+100)
		copy(buf, b)
		var c cutter
		var in inner
		if !c.begin(buf, vnetLen, len(b)-vnetLen, &in) {
			return
		}
		most := c.largest()
		for {
			off, n, ok := c.next()
			if !ok {
				return
			}
			if off < vnetLen || n > most || off+n > len(b) {
				t.Fatalf("buf[%d:%d] of %d, at most %d long", off, off+n, len(b), most)
			}
			if _, p, ok := parseInner(buf[off : off+n]); !ok || len(p) != n {
				t.Fatalf("a packet of %d bytes, %v: %x", len(p), ok, buf[off:off+n])
			}
		}
	})
}

// FuzzMerge: whatever a peer has sealed, merging reads nothing beyond it, and packet by
// packet the interface is handed what came.
func FuzzMerge(f *testing.F) {
	tcp := make([]byte, 20)
	tcp[12], tcp[13] = 5<<4, tcpACK
	f.Add(ipPacket("10.10.0.1", "10.10.0.2", protoUDP, udpHeader, 100), ipPacket("10.10.0.1", "10.10.0.2", protoUDP, udpHeader, 100))
	f.Add(ipPacket("10.10.0.1", "10.10.0.2", protoTCP, tcp, 100), ipPacket("10.10.0.1", "10.10.0.2", protoTCP, tcp, 10))
	f.Add(ipPacket("fd10::1", "fd10::2", protoTCP, tcp, 100), ipPacket("fd10::1", "fd10::2", protoTCP, tcp, 10))
	w := newWorld(f, netip.MustParseAddrPort("127.0.0.1:9"))
	l := &w.sas.get(w.spis[0]).in
	f.Fuzz(func(t *testing.T, a, b []byte) {
		m, n := new(merger), 0
		for _, p := range [][]byte{a, b, a} {
			p = append([]byte(nil), p...)
			if in, pkt, ok := parseInner(p); ok && len(p) <= superLen-vnetLen {
				m.deliver(l, pkt, &in)
				n += len(pkt)
			}
		}
		m.flush()
		buf := make([]byte, 1<<17)
		for n > 0 {
			k, err := unix.Read(w.far, buf)
			if err != nil {
				t.Fatalf("%v; %d bytes are missing", err, n)
			}
			var r read
			r.h.decode(buf)
			r.pkt = buf[vnetLen:k]
			for _, p := range r.plainPackets() {
				n -= len(p)
			}
		}
		if n != 0 {
			t.Fatalf("%d bytes too many", -n)
		}
	})
}
