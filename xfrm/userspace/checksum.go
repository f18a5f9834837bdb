package userspace

import (
	"encoding/binary"
	"math/bits"
)

// checksum is the Internet checksum of b (RFC 1071), begun with sum.
func checksum(b []byte, sum uint32) uint16 { return ^fold(sumOf(b), sum) }

// sumOf adds b up in native words of 64 bits, which differs from a sum of 16-bit words
// in network order by the order of the two bytes that are left in the end.
func sumOf(b []byte) uint64 {
	var s, c uint64
	le := binary.LittleEndian
	for len(b) >= 64 {
		s, c = bits.Add64(s, le.Uint64(b), c)
		s, c = bits.Add64(s, le.Uint64(b[8:]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:]), c)
		s, c = bits.Add64(s, le.Uint64(b[32:]), c)
		s, c = bits.Add64(s, le.Uint64(b[40:]), c)
		s, c = bits.Add64(s, le.Uint64(b[48:]), c)
		s, c = bits.Add64(s, le.Uint64(b[56:]), c)
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, le.Uint64(b), c)
		b = b[8:]
	}
	var rest uint64
	for i := len(b) - 1; i >= 0; i-- {
		rest = rest<<8 | uint64(b[i])
	}
	s, c = bits.Add64(s, rest, c)
	s, c = bits.Add64(s, 0, c)
	return s + c
}

// fold brings what sumOf returned, and a sum of 16-bit words in network order, together.
func fold(s uint64, sum uint32) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	t := uint64(bits.ReverseBytes16(uint16(s))) + uint64(sum)
	t = t>>16 + t&0xffff
	t = t>>16 + t&0xffff
	return uint16(t>>16 + t&0xffff)
}

// pseudoSum is the sum of an IP packet's pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1)
// without the length.
func pseudoSum(pkt []byte, v6 bool, proto uint8) uint32 {
	addrs := pkt[12:20]
	if v6 {
		addrs = pkt[8:40]
	}
	return uint32(fold(sumOf(addrs), uint32(proto)))
}
