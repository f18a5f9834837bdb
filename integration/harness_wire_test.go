package integration

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tandem/internal/lab"
)

// Kinds of what is seen on the wire.
const (
	kindIKE       = "IKE"
	kindESP       = "ESP"
	kindUDPESP    = "ESP in UDP"
	kindKeepalive = "NAT keepalive"
	kindFragment  = "fragment"
	kindOther     = "other"
)

// packet is one outer packet, decoded apart from the daemon's own code.
type packet struct {
	at       time.Time
	kind     string
	src, dst netip.AddrPort // ports 0 without UDP
	spi      uint32         // ESP
	ike      []byte         // IKE message without marker
	text     string
	length   int // of the frame
}

func (p packet) exchange() byte {
	if len(p.ike) < 28 {
		return 0
	}
	return p.ike[18]
}

func (p packet) response() bool { return len(p.ike) >= 28 && p.ike[19]&0x20 != 0 }

// tap records one end of a cable.
type tap struct {
	t *testing.T
	c *lab.Capture
}

func (s *site) tap(node, dev string) *tap {
	s.t.Helper()
	c, err := s.topo.StartCapture(node, dev)
	if err != nil {
		s.t.Fatal(err)
	}
	tp := &tap{s.t, c}
	s.t.Cleanup(func() {
		drops, err := c.Stop()
		if err != nil || drops > 0 {
			s.t.Errorf("capture at %s/%s: %d frames dropped, %v", node, dev, drops, err)
		}
	})
	return tp
}

// packets are the IP packets recorded so far, without neighbour discovery.
func (tp *tap) packets() []packet {
	tp.t.Helper()
	if err := tp.c.Flush(); err != nil {
		tp.t.Fatal(err)
	}
	var all []packet
	// The writer may have begun the next packet: what is whole is enough.
	_ = lab.ReadCapture(tp.c.Path, func(f lab.Frame) error {
		if p, ok := decodePacket(f.Data); ok {
			p.at = f.Time
			all = append(all, p)
		}
		return nil
	})
	return all
}

// count is how many recorded packets satisfy a condition.
func (tp *tap) count(ok func(packet) bool) int {
	tp.t.Helper()
	n := 0
	for _, p := range tp.packets() {
		if ok(p) {
			n++
		}
	}
	return n
}

// wantAtLeast waits until so many recorded packets satisfy a condition: what has
// left the wire may not have reached the recording yet.
func (tp *tap) wantAtLeast(n int, what string, ok func(packet) bool) {
	tp.t.Helper()
	got := 0
	if !holds(3*time.Second, func() bool { got = tp.count(ok); return got >= n }) {
		tp.t.Errorf("%d %s on the wire, at least %d expected", got, what, n)
	}
}

// onlyKinds wants nothing else on the wire.
func (tp *tap) onlyKinds(kinds ...string) {
	tp.t.Helper()
	for _, p := range tp.packets() {
		found := false
		for _, k := range kinds {
			found = found || p.kind == k
		}
		if !found {
			tp.t.Errorf("on the wire: %s %v → %v: %s", p.kind, p.src, p.dst, p.text)
		}
	}
}

func from(addr string) func(packet) bool {
	a := netip.MustParseAddr(addr)
	return func(p packet) bool { return p.src.Addr() == a }
}

func decodePacket(frame []byte) (p packet, ok bool) {
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	p.kind, p.text, p.length = kindOther, g.String(), len(frame)
	var src, dst netip.Addr
	var proto layers.IPProtocol
	switch ip := g.NetworkLayer().(type) {
	case *layers.IPv4:
		src, _ = netip.AddrFromSlice(ip.SrcIP.To4())
		dst, _ = netip.AddrFromSlice(ip.DstIP.To4())
		proto = ip.Protocol
		if ip.FragOffset != 0 || ip.Flags&layers.IPv4MoreFragments != 0 {
			p.kind = kindFragment
		}
	case *layers.IPv6:
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		proto = ip.NextHeader
		if proto == layers.IPProtocolIPv6Fragment {
			p.kind = kindFragment
		}
		if proto == layers.IPProtocolICMPv6 || proto == layers.IPProtocolIPv6HopByHop {
			if icmp, is := g.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); !is || icmp.TypeCode.Type() >= layers.ICMPv6TypeRouterSolicitation {
				return p, false
			}
		}
	default:
		return p, false
	}
	p.src, p.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	if p.kind == kindFragment {
		return p, true
	}
	if proto == layers.IPProtocolESP {
		p.kind = kindESP
		p.spi = be32(g.NetworkLayer().LayerPayload())
		return p, true
	}
	udp, is := g.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !is {
		return p, true
	}
	p.src, p.dst = netip.AddrPortFrom(src, uint16(udp.SrcPort)), netip.AddrPortFrom(dst, uint16(udp.DstPort))
	body := udp.Payload
	switch {
	case udp.SrcPort == 4500 || udp.DstPort == 4500:
		switch {
		case len(body) == 1 && body[0] == 0xff:
			p.kind = kindKeepalive
		case len(body) < 8:
		case be32(body) == 0:
			p.kind, p.ike = kindIKE, body[4:]
		default:
			p.kind, p.spi = kindUDPESP, be32(body)
		}
	case udp.SrcPort == 500 || udp.DstPort == 500:
		p.kind, p.ike = kindIKE, body
	}
	return p, true
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
