package userspace

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// vnetHdr is struct virtio_net_hdr, which precedes every packet that is read from or
// written to an interface with IFF_VNET_HDR. Numbers are in the byte order of the machine.
type vnetHdr struct {
	flags, gsoType        uint8
	hdrLen, gsoSize       uint16
	csumStart, csumOffset uint16 // where NEEDS_CSUM wants a checksum, from the packet's start
}

const vnetLen = 10

const (
	vnetNeedsCsum = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM

	gsoNone  = unix.VIRTIO_NET_HDR_GSO_NONE
	gsoTCPv4 = unix.VIRTIO_NET_HDR_GSO_TCPV4
	gsoTCPv6 = unix.VIRTIO_NET_HDR_GSO_TCPV6
	gsoUDP   = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	gsoECN   = unix.VIRTIO_NET_HDR_GSO_ECN // beside a TCP type: the first segment has CWR
)

func (h *vnetHdr) decode(b []byte) {
	e := binary.NativeEndian
	h.flags, h.gsoType = b[0], b[1]
	h.hdrLen, h.gsoSize = e.Uint16(b[2:]), e.Uint16(b[4:])
	h.csumStart, h.csumOffset = e.Uint16(b[6:]), e.Uint16(b[8:])
}

func (h *vnetHdr) encode(b []byte) {
	e := binary.NativeEndian
	b[0], b[1] = h.flags, h.gsoType
	e.PutUint16(b[2:], h.hdrLen)
	e.PutUint16(b[4:], h.gsoSize)
	e.PutUint16(b[6:], h.csumStart)
	e.PutUint16(b[8:], h.csumOffset)
}

// cutter yields what was read from an interface packet by packet: the one that it is, or
// the segments of a superpacket. Each segment's headers are written before its payload,
// over the end of the one before, which is no longer needed then.
type cutter struct {
	buf      []byte
	off, end int // what is left; of a superpacket, from the next payload on
	size     int // bytes of payload in a segment; 0: one whole packet

	v6, udp  bool
	first    bool
	l4, hl   int // offset of the transport header, length of all headers
	seq      uint32
	id       uint16
	pseudo   uint32
	template [maxHeaders]byte
}

const maxHeaders = 256 // of a superpacket, IP and transport together, bytes

// whole makes buf[off:off+n] the only packet.
func (c *cutter) whole(buf []byte, off, n int) {
	c.buf, c.off, c.end, c.size = buf, off, off+n, 0
}

// begin takes buf[off:off+n], a packet with its vnetHdr before it, and parses it. What the
// kernel left to us of a single packet's checksum is done. ok is false for what cannot be
// understood.
func (c *cutter) begin(buf []byte, off, n int, in *inner) (ok bool) {
	var h vnetHdr
	h.decode(buf[off-vnetLen:])
	var pkt []byte
	if *in, pkt, ok = parseInner(buf[off : off+n]); !ok {
		return false
	}
	if h.gsoType == gsoNone || h.gsoSize == 0 || len(pkt) <= int(h.csumStart)+int(h.gsoSize) {
		c.whole(buf, off, len(pkt))
		return h.flags&vnetNeedsCsum == 0 || complete(pkt, int(h.csumStart), int(h.csumOffset))
	}
	switch t := h.gsoType &^ gsoECN; {
	case t == gsoTCPv4 && !in.v6 && in.proto == protoTCP, t == gsoTCPv6 && in.v6 && in.proto == protoTCP:
		if in.l4+20 > len(pkt) {
			return false
		}
		c.udp, c.hl = false, in.l4+int(pkt[in.l4+12]>>4)*4
		if c.hl < in.l4+20 {
			return false
		}
	case h.gsoType == gsoUDP && in.proto == protoUDP:
		c.udp, c.hl = true, in.l4+8
	default:
		return false
	}
	if in.fragment || c.hl >= len(pkt) || c.hl > maxHeaders {
		return false
	}
	c.buf, c.off, c.end, c.size = buf, off+c.hl, off+len(pkt), int(h.gsoSize)
	c.v6, c.l4, c.first = in.v6, in.l4, true
	return true
}

// complete adds up a checksum whose field holds the pseudo-header's.
func complete(pkt []byte, start, offset int) bool {
	if start+offset+2 > len(pkt) {
		return false
	}
	sum := checksum(pkt[start:], 0)
	if sum == 0 && offset == 6 { // UDP's zero says that there is none (RFC 768)
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(pkt[start+offset:], sum)
	return true
}

// packet is what is there before next: changes of its headers hold for every segment.
func (c *cutter) packet() []byte {
	if c.size == 0 {
		return c.buf[c.off:c.end]
	}
	return c.buf[c.off-c.hl : c.end]
}

// largest is the length of the longest packet that next yields.
func (c *cutter) largest() int {
	if c.size == 0 {
		return c.end - c.off
	}
	return c.hl + min(c.size, c.end-c.off)
}

// next yields a packet as buf[off:off+n].
func (c *cutter) next() (off, n int, ok bool) {
	if c.off >= c.end {
		return 0, 0, false
	}
	if c.size == 0 {
		off, n = c.off, c.end-c.off
		c.off = c.end
		return off, n, true
	}
	off = c.off - c.hl
	size := min(c.size, c.end-c.off)
	n = c.hl + size
	last := c.off+size == c.end
	if c.first {
		copy(c.template[:c.hl], c.buf[off:])
		c.pseudo = c.pseudoSum()
		if !c.v6 {
			c.id = binary.BigEndian.Uint16(c.template[4:])
		}
		if !c.udp {
			c.seq = binary.BigEndian.Uint32(c.template[c.l4+4:])
		}
	}
	pkt := c.buf[off : off+n]
	copy(pkt, c.template[:c.hl])
	if c.v6 {
		binary.BigEndian.PutUint16(pkt[4:], uint16(n-40))
	} else {
		binary.BigEndian.PutUint16(pkt[2:], uint16(n))
		binary.BigEndian.PutUint16(pkt[4:], c.id)
		c.id++
		pkt[10], pkt[11] = 0, 0
		binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:int(pkt[0]&15)*4], 0))
	}
	l4 := pkt[c.l4:]
	if c.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		l4[6], l4[7] = 0, 0
		sum := checksum(l4, c.pseudo+uint32(len(l4)))
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(l4[6:], sum)
	} else {
		binary.BigEndian.PutUint32(l4[4:], c.seq)
		c.seq += uint32(size)
		if !last {
			l4[13] &^= tcpFIN | tcpPSH
		}
		if !c.first {
			l4[13] &^= tcpCWR
		}
		l4[16], l4[17] = 0, 0
		binary.BigEndian.PutUint16(l4[16:], checksum(l4, c.pseudo+uint32(len(l4))))
	}
	c.first = false
	c.off += size
	return off, n, true
}

// pseudoSum is as the function of that name. Behind extension headers the kernel's own
// sum, which it left in the checksum's field, is taken: a routing header would change the
// destination that counts.
func (c *cutter) pseudoSum() uint32 {
	if !c.v6 || c.l4 == 40 {
		return pseudoSum(c.template[:], c.v6, protoOf(c.udp))
	}
	at := c.l4 + 16
	if c.udp {
		at = c.l4 + 6
	}
	total := uint32(c.hl - c.l4 + c.end - c.off)
	less := uint32(^fold(0, total))
	return uint32(fold(0, less+uint32(binary.BigEndian.Uint16(c.template[at:]))))
}

const (
	tcpFIN = 1
	tcpSYN = 2
	tcpRST = 4
	tcpPSH = 8
	tcpACK = 16
	tcpURG = 32
	tcpECE = 64
	tcpCWR = 128
)

func protoOf(udp bool) uint8 {
	if udp {
		return protoUDP
	}
	return protoTCP
}
