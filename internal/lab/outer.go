package lab

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Frame is one Ethernet frame as seen at a switch port.
type Frame struct {
	Time     time.Time // the kernel's stamp
	Port     string    // the node behind the port
	FromNode bool      // the node sent it; otherwise it went to the node
	Data     []byte
}

// outerKind says what an outer packet carries.
type outerKind uint8

const (
	outerOther outerKind = iota
	outerIKE
	outerESP
	outerKeepalive // RFC 3948 §2.3
)

// Exchange types (RFC 7296 §3.1) that the checker counts by name.
const (
	exchangeSAInit        = 34
	exchangeAuth          = 35
	exchangeCreateChildSA = 36
	exchangeInformational = 37
)

// outer is a decoded outer packet. Its slices lie within the frame.
type outer struct {
	kind     outerKind
	src, dst netip.Addr
	proto    uint8
	partial  bool   // a first fragment: the payload goes on elsewhere
	payload  []byte // ESP from its SPI on, IKE from its header on

	spi, seq uint32 // ESP

	spiI, spiR uint64 // IKE
	exchange   uint8
	response   bool
	initiator  bool // the sender is the IKE SA's original initiator
	messageID  uint32
}

const (
	etherARP  = 0x0806
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	protoUDP  = 17
	protoESP  = 50
	protoICMP = 58 // for IPv6
	portIKE   = 500
	portNATT  = 4500
)

// decodeOuter reads Ethernet → IPv4 or IPv6 → ESP or UDP 500/4500. Anything else,
// later fragments, and whatever is cut short is outerOther.
func decodeOuter(frame []byte) outer {
	o, body, ok := decodeIP(frame)
	if !ok {
		return outer{}
	}
	switch o.proto {
	case protoESP:
		return decodeESP(o, body)
	case protoUDP:
		return decodeUDP(o, body)
	}
	return o
}

// speaksFor is the address in whose name a frame speaks: an IP packet's source, the
// sender of an ARP message (RFC 826), the target of a neighbour advertisement (RFC
// 4861 §4.4). Invalid when there is none.
func speaksFor(frame []byte) netip.Addr {
	if len(frame) >= 42 && binary.BigEndian.Uint16(frame[12:]) == etherARP {
		return netip.AddrFrom4([4]byte(frame[28:32]))
	}
	o, body, ok := decodeIP(frame)
	if ok && o.proto == protoICMP && len(body) >= 24 && body[0] == 136 {
		return netip.AddrFrom16([16]byte(body[8:24]))
	}
	return o.src
}

// decodeIP returns the addresses, the protocol and what follows the headers.
func decodeIP(frame []byte) (o outer, body []byte, ok bool) {
	if len(frame) < 14 {
		return o, nil, false
	}
	kind, b := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	switch kind {
	case etherIPv4:
		return decodeIPv4(b)
	case etherIPv6:
		return decodeIPv6(b)
	}
	return o, nil, false
}

func decodeIPv4(b []byte) (o outer, body []byte, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return o, nil, false
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	frag := binary.BigEndian.Uint16(b[6:])
	if head < 20 || total < head || total > len(b) || frag&0x1fff != 0 {
		return o, nil, false
	}
	o.src, o.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	o.proto, o.partial = b[9], frag&0x2000 != 0
	return o, b[head:total], true
}

func decodeIPv6(b []byte) (o outer, body []byte, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return o, nil, false
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return o, nil, false
	}
	o.src, o.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:total]
	for {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 || len(rest) < 8+int(rest[1])*8 {
				return o, nil, false
			}
			next, rest = rest[0], rest[8+int(rest[1])*8:]
		case 44:
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				return o, nil, false
			}
			o.partial = rest[3]&1 != 0
			next, rest = rest[0], rest[8:]
		default:
			o.proto = next
			return o, rest, true
		}
	}
}

func decodeESP(o outer, b []byte) outer {
	if len(b) < 8 {
		return o
	}
	o.kind, o.payload = outerESP, b
	o.spi, o.seq = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	return o
}

func decodeUDP(o outer, b []byte) outer {
	if len(b) < 8 {
		return o
	}
	from, to := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < 8 || length > len(b) && !o.partial {
		return o
	}
	body := b[8:min(length, len(b))]
	switch {
	case from == portNATT || to == portNATT:
		if len(body) == 1 && body[0] == 0xff {
			o.kind = outerKeepalive
			return o
		}
		if len(body) < 4 {
			return o
		}
		if binary.BigEndian.Uint32(body) != 0 {
			return decodeESP(o, body)
		}
		return decodeIKE(o, body[4:])
	case from == portIKE || to == portIKE:
		return decodeIKE(o, body)
	}
	return o
}

func decodeIKE(o outer, b []byte) outer {
	if len(b) < 28 || b[17]>>4 != 2 {
		return o
	}
	o.kind, o.payload = outerIKE, b
	o.spiI, o.spiR = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	o.exchange, o.messageID = b[18], binary.BigEndian.Uint32(b[20:])
	o.initiator, o.response = b[19]&0x08 != 0, b[19]&0x20 != 0
	return o
}
