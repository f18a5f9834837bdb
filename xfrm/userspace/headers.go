package userspace

import (
	"encoding/binary"
	"net/netip"

	"tandem/internal/ipsec"
)

const (
	protoICMP     = 1
	protoIPv4     = 4
	protoTCP      = 6
	protoUDP      = 17
	protoIPv6     = 41
	protoFragment = 44
	protoICMPv6   = 58
	protoNone     = 59 // a dummy packet (RFC 4303 §2.6)

	maxExtensions = 8 // IPv6 extension headers that are followed
)

// inner is what selectors and the header rewriting need of an inner packet.
type inner struct {
	src, dst     netip.Addr
	proto        uint8
	ports        bool // sport and dport are known
	sport, dport uint16
	v6           bool
	df           bool // IPv6 always
	tail         bool // a fragment that is not the first
	fragment     bool
	tos          uint8
	l4           int // offset of the transport header
}

// parseInner decodes an inner packet. It returns the packet without what follows
// it (padding for traffic flow confidentiality); ok is false for anything that is
// no whole IPv4 or IPv6 packet.
func parseInner(b []byte) (in inner, pkt []byte, ok bool) {
	if len(b) < 20 {
		return in, nil, false
	}
	switch b[0] >> 4 {
	case 4:
		hl, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if hl < 20 || total < hl || total > len(b) {
			return in, nil, false
		}
		b = b[:total]
		frag := binary.BigEndian.Uint16(b[6:])
		in = inner{
			src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])),
			proto: b[9], tos: b[1], df: frag&0x4000 != 0, l4: hl,
			fragment: frag&0x3fff != 0, tail: frag&0x1fff != 0,
		}
	case 6:
		if len(b) < 40 {
			return in, nil, false
		}
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return in, nil, false
		}
		b = b[:total]
		in = inner{
			src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])),
			proto: b[6], v6: true, df: true, l4: 40,
			tos: b[0]<<4 | b[1]>>4,
		}
		if !in.skipExtensions(b) {
			return in, nil, false
		}
	default:
		return in, nil, false
	}
	if !in.tail && in.l4+4 <= len(b) {
		switch in.proto {
		case protoTCP, protoUDP, 132, 136: // SCTP, UDP-Lite
			in.ports = true
			in.sport, in.dport = binary.BigEndian.Uint16(b[in.l4:]), binary.BigEndian.Uint16(b[in.l4+2:])
		}
	}
	return in, b, true
}

func (in *inner) skipExtensions(b []byte) bool {
	for range maxExtensions {
		switch in.proto {
		case 0, 43, 60, protoFragment: // hop-by-hop, routing, destination options
		default:
			return true
		}
		if in.l4+8 > len(b) {
			return false
		}
		n := (int(b[in.l4+1]) + 1) * 8
		next := b[in.l4]
		if in.proto == protoFragment {
			n = 8
			in.fragment = true
			if binary.BigEndian.Uint16(b[in.l4+2:])&^7 != 0 {
				in.tail = true
				in.proto, in.l4 = next, in.l4+8
				return true // the rest belongs to the fragment's data
			}
		}
		in.proto = next
		if in.l4 += n; in.l4 > len(b) {
			return false
		}
	}
	return false
}

// match says whether a selector admits an address and port. A packet whose ports
// are unknown matches only selectors that leave them open; type and code of ICMP
// are not looked at.
func (in *inner) match(ts *ipsec.TrafficSelector, a netip.Addr, port uint16) bool {
	if in.ports {
		return ts.Contains(a, in.proto, port)
	}
	icmp := in.proto == protoICMP || in.proto == protoICMPv6
	if !icmp && (ts.StartPort != 0 || ts.EndPort != 65535) {
		return false
	}
	return ts.Contains(a, in.proto, ts.StartPort)
}

func (in *inner) matchAny(tss []ipsec.TrafficSelector, a netip.Addr, port uint16) bool {
	for i := range tss {
		if in.match(&tss[i], a, port) {
			return true
		}
	}
	return false
}

// linkLocal says that a packet concerns the link itself, as a kernel sends them on
// every interface without being asked: such ones call for no negotiation.
func (in *inner) linkLocal() bool {
	return in.src.IsUnspecified() || in.src.IsLinkLocalUnicast() || in.dst.IsLinkLocalMulticast() || in.dst.IsInterfaceLocalMulticast()
}

const (
	ecnMask   = 3
	ecnNotECT = 0
	ecnECT1   = 1
	ecnECT0   = 2
	ecnCE     = 3
)

// combineECN applies the outer congestion mark to an inner packet (RFC 6040 §4.2).
// false: the packet must be dropped. Only ECN is changed; the DSCP stays the inner one.
func combineECN(pkt []byte, in *inner, outer uint8) bool {
	have, mark := in.tos&ecnMask, outer&ecnMask
	want := have
	switch {
	case have == ecnNotECT:
		return mark != ecnCE
	case mark == ecnCE:
		want = ecnCE
	case have == ecnECT0 && mark == ecnECT1:
		want = ecnECT1
	}
	if want == have {
		return true
	}
	in.tos = in.tos&^ecnMask | want
	if in.v6 {
		pkt[1] = pkt[1]&0x0f | in.tos<<4
		return true
	}
	old := binary.BigEndian.Uint16(pkt)
	pkt[1] = in.tos
	fixChecksum(pkt[10:], old, binary.BigEndian.Uint16(pkt))
	return true
}

// fixChecksum updates an Internet checksum for one changed word (RFC 1624).
func fixChecksum(sum []byte, from, to uint16) {
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^from) + uint32(to)
	s = s>>16 + s&0xffff
	s += s >> 16
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}

// clampMSS lowers the MSS option of a TCP SYN to limit; 0 leaves it.
func clampMSS(pkt []byte, in *inner, limit int) {
	if limit == 0 || in.proto != protoTCP || in.tail || in.l4+20 > len(pkt) {
		return
	}
	tcp := pkt[in.l4:]
	const syn = 2
	if tcp[13]&syn == 0 {
		return
	}
	hl := int(tcp[12]>>4) * 4
	if hl < 20 || hl > len(tcp) {
		return
	}
	for o := 20; o+1 < hl; {
		switch kind, n := tcp[o], int(tcp[o+1]); {
		case kind == 0:
			return
		case kind == 1:
			o++
		case n < 2 || o+n > hl:
			return
		case kind == 2 && n == 4:
			if mss := binary.BigEndian.Uint16(tcp[o+2:]); int(mss) > limit {
				binary.BigEndian.PutUint16(tcp[o+2:], uint16(limit))
				from, to := mss, uint16(limit)
				if o%2 == 1 { // the value lies across two checksum words
					from, to = from>>8|from<<8, to>>8|to<<8
				}
				fixChecksum(tcp[16:], from, to)
			}
			return
		default:
			o += n
		}
	}
}

// tooBig builds the ICMP error "fragmentation needed" (RFC 792, RFC 1191) or
// "packet too big" (RFC 4443 §3.2) about pkt in dst, which must hold 1280 bytes.
// It returns nil when no error may be sent about this packet.
func tooBig(dst, pkt []byte, in *inner, mtu int) []byte {
	if in.tail || in.src.IsMulticast() || in.dst.IsMulticast() || in.src.IsUnspecified() {
		return nil
	}
	if in.v6 {
		if in.proto == protoICMPv6 && in.l4 < len(pkt) && pkt[in.l4] < 128 {
			return nil // an error about an error
		}
		n := min(len(pkt), 1280-48)
		d := dst[:48+n]
		clear(d[:48])
		d[0], d[6], d[7] = 0x60, protoICMPv6, 64
		binary.BigEndian.PutUint16(d[4:], uint16(8+n))
		copy(d[8:24], pkt[24:40])
		copy(d[24:40], pkt[8:24])
		d[40] = 2
		binary.BigEndian.PutUint32(d[44:], uint32(max(mtu, 1280)))
		copy(d[48:], pkt)
		var pseudo uint32
		for i := 8; i < 40; i += 2 {
			pseudo += uint32(binary.BigEndian.Uint16(d[i:]))
		}
		pseudo += uint32(8+n) + protoICMPv6
		binary.BigEndian.PutUint16(d[42:], checksum(d[40:], pseudo))
		return d
	}
	if in.proto == protoICMP && in.l4 < len(pkt) {
		switch pkt[in.l4] {
		case 0, 8, 13, 14: // queries and their answers
		default:
			return nil
		}
	}
	n := min(len(pkt), 548) // RFC 1812 §4.3.2.3: 576 bytes in all
	d := dst[:28+n]
	clear(d[:28])
	d[0], d[1], d[8], d[9] = 0x45, 0xc0, 64, protoICMP
	binary.BigEndian.PutUint16(d[2:], uint16(28+n))
	copy(d[12:16], pkt[16:20])
	copy(d[16:20], pkt[12:16])
	binary.BigEndian.PutUint16(d[10:], checksum(d[:20], 0))
	d[20], d[21] = 3, 4
	binary.BigEndian.PutUint16(d[26:], uint16(mtu))
	copy(d[28:], pkt)
	binary.BigEndian.PutUint16(d[22:], checksum(d[20:], 0))
	return d
}

// fragment4 cuts an IPv4 packet without DF into fragments of at most mtu bytes,
// each built in dst and handed to emit before the next one overwrites it. Options
// stay in the first fragment only.
func fragment4(dst, pkt []byte, hl, mtu int, emit func(n int)) bool {
	frag := binary.BigEndian.Uint16(pkt[6:])
	more, at := frag&0x2000, int(frag&0x1fff)
	data := pkt[hl:]
	if mtu < hl+8 {
		return false
	}
	for first := true; len(data) > 0; first = false {
		h := 20
		if first {
			h = hl
		}
		n, flag := len(data), more
		if h+n > mtu {
			n, flag = (mtu-h)&^7, 0x2000
		}
		d := dst[:h+n]
		copy(d, pkt[:h])
		copy(d[h:], data[:n])
		d[0] = 0x40 | byte(h/4)
		binary.BigEndian.PutUint16(d[2:], uint16(h+n))
		binary.BigEndian.PutUint16(d[6:], flag|uint16(at))
		d[10], d[11] = 0, 0
		binary.BigEndian.PutUint16(d[10:], checksum(d[:h], 0))
		emit(h + n)
		data, at = data[n:], at+n/8
	}
	return true
}
