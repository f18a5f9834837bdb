package userspace

import (
	"bytes"
	"encoding/binary"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	mergeFlows = 8  // that one goroutine merges at a time
	mergeParts = 64 // packets in one superpacket
)

// merger joins successive packets of a flow, which lie where they were opened, and writes
// them to the interface as one superpacket. Only what its segments would give back exactly
// is joined: the payload in sequence, all headers alike, and every checksum right, since
// nobody verifies a superpacket's. Identifications of IPv4 packets with DF, which mean
// nothing (RFC 6864 §4.1), are numbered anew.
//
// A flow keeps its order; packets whose flow is not known, fragments above all, keep theirs
// to everything. What was taken must be written, with flush, before the buffers are used again, and
// before anybody else may deliver what came later through the same SA.
type merger struct {
	flows [mergeFlows]joined
	n     int
}

// mergers are for those who come seldom.
var mergers = sync.Pool{New: func() any { return new(merger) }}

// piece is an inner packet that may become part of a superpacket.
type piece struct {
	l       *inLane
	pkt     []byte
	udp, v6 bool
	psh     bool
	l4, hl  int // offset of the transport header, length of all headers
	size    int // bytes of payload
	seq     uint32
}

// joined is a superpacket that grows. parts[0] is for the vnetHdr, parts[1] the first packet,
// the others are payloads whose headers lie before them.
type joined struct {
	piece           // the first, but for psh, which is the last one's
	next     uint32 // TCP sequence number
	n        int    // packets
	total    int    // bytes
	verified bool   // the first one's checksums are right
	head     [vnetLen]byte
	parts    [1 + mergeParts]unix.Iovec
}

// deliver takes an inner packet that may be written to the interface, with the lane's lock held.
func (m *merger) deliver(l *inLane, pkt []byte, in *inner) {
	l.packets++
	l.bytes += uint64(len(pkt))
	var x piece
	fits := x.begin(l, pkt, in)
	if !in.ports || in.fragment { // its order to others is not known
		m.flush()
		l.write(pkt)
		return
	}
	for i := range m.n {
		f := &m.flows[i]
		if !f.sameFlow(l, pkt, in) {
			continue
		}
		switch joins, open := f.join(&x, fits); {
		case joins && open:
		case joins:
			m.end(i)
		default:
			f.write()
			if fits && x.open() {
				f.start(&x)
			} else {
				m.drop(i)
				l.write(pkt)
			}
		}
		return
	}
	if !fits || !x.open() {
		l.write(pkt)
		return
	}
	if m.n == mergeFlows {
		m.end(0)
	}
	m.flows[m.n].start(&x)
	m.n++
}

// flush writes everything.
func (m *merger) flush() {
	for i := range m.n {
		m.flows[i].write()
		m.flows[i].l = nil
	}
	m.n = 0
}

func (m *merger) end(i int) {
	m.flows[i].write()
	m.drop(i)
}

func (m *merger) drop(i int) {
	m.n--
	if i != m.n {
		m.flows[i] = m.flows[m.n]
	}
	m.flows[m.n].l = nil
}

// begin says whether a packet is of a kind that can be joined.
func (f *piece) begin(l *inLane, pkt []byte, in *inner) bool {
	f.l, f.pkt, f.v6, f.l4, f.udp = l, pkt, in.v6, in.l4, in.proto == protoUDP
	if in.fragment || in.v6 && in.l4 != 40 || !in.v6 && in.l4 != 20 || l.sa.tun.noMerge.Load() {
		return false
	}
	if f.udp {
		f.hl = f.l4 + 8
		f.size = len(pkt) - f.hl
		return l.sa.tun.uso && f.size > 0 && int(binary.BigEndian.Uint16(pkt[f.l4+4:])) == f.size+8 && [2]byte(pkt[f.l4+6:]) != [2]byte{}
	}
	if in.proto != protoTCP || len(pkt) < f.l4+20 {
		return false
	}
	f.hl = f.l4 + int(pkt[f.l4+12]>>4)*4
	f.size = len(pkt) - f.hl
	flags := pkt[f.l4+13]
	f.psh = flags&tcpPSH != 0
	f.seq = binary.BigEndian.Uint32(pkt[f.l4+4:])
	return f.hl >= f.l4+20 && f.size > 0 && flags&^(tcpPSH|tcpECE) == tcpACK
}

// open says whether another packet may follow.
func (f *piece) open() bool { return !f.psh }

func (f *joined) start(x *piece) {
	f.piece, f.next, f.n, f.total, f.verified = *x, x.seq+uint32(x.size), 1, len(x.pkt), false
	f.parts[1].Base = &x.pkt[0]
	f.parts[1].SetLen(len(x.pkt))
}

// sameFlow: of one interface, with the same addresses, protocol and ports.
func (f *piece) sameFlow(l *inLane, pkt []byte, in *inner) bool {
	if f.l.sa.tun != l.sa.tun || f.v6 != in.v6 || f.udp != (in.proto == protoUDP) ||
		[4]byte(f.pkt[f.l4:]) != [4]byte(pkt[in.l4:]) {
		return false
	}
	if f.v6 {
		return [32]byte(f.pkt[8:]) == [32]byte(pkt[8:])
	}
	return [8]byte(f.pkt[12:]) == [8]byte(pkt[12:])
}

// join appends a packet of the same flow. open: another one may follow.
func (f *joined) join(x *piece, fits bool) (joins, open bool) {
	if !fits || f.l != x.l || f.hl != x.hl || x.size > f.size || f.total+x.size > 0xffff || f.n == mergeParts {
		return false, false
	}
	a, b := f.pkt[:f.hl], x.pkt[:f.hl]
	if f.v6 {
		if [4]byte(a) != [4]byte(b) || [2]byte(a[6:]) != [2]byte(b[6:]) { // class and flow label, hop limit
			return false, false
		}
	} else {
		if [2]byte(a) != [2]byte(b) || [4]byte(a[6:]) != [4]byte(b[6:]) { // TOS; DF, TTL
			return false, false
		}
		id := binary.BigEndian.Uint16(a[4:]) + uint16(f.n)
		if a[6]&0x40 == 0 && binary.BigEndian.Uint16(b[4:]) != id {
			return false, false
		}
	}
	if !f.udp {
		a, b := a[f.l4:], b[f.l4:]
		if x.seq != f.next || [5]byte(a[8:]) != [5]byte(b[8:]) || (a[13]^b[13])&^tcpPSH != 0 ||
			[2]byte(a[14:]) != [2]byte(b[14:]) || !bytes.Equal(a[18:], b[18:]) {
			return false, false
		}
	}
	if !f.verified && !f.genuine() || !x.genuine() {
		return false, false
	}
	f.verified = true
	f.n++
	f.parts[f.n].Base = &x.pkt[f.hl]
	f.parts[f.n].SetLen(x.size)
	f.next += uint32(x.size)
	f.total += x.size
	f.psh = x.psh
	return true, x.size == f.size && !x.psh && f.n < mergeParts
}

// genuine verifies the checksums of the packet's headers and payload.
func (f *piece) genuine() bool {
	l4 := f.pkt[f.l4:]
	return (f.v6 || checksum(f.pkt[:20], 0) == 0) &&
		checksum(l4, pseudoSum(f.pkt, f.v6, protoOf(f.udp))+uint32(len(l4))) == 0
}

// write hands what was joined to the interface.
func (f *joined) write() {
	if f.n == 1 {
		f.l.write(f.pkt)
		return
	}
	var was [40 + 60]byte
	copy(was[:f.hl], f.pkt)
	h := vnetHdr{flags: vnetNeedsCsum, gsoType: gsoTCPv4, hdrLen: uint16(f.hl), gsoSize: uint16(f.size), csumStart: uint16(f.l4), csumOffset: 16}
	n := f.total - f.l4
	if f.v6 {
		h.gsoType = gsoTCPv6
		binary.BigEndian.PutUint16(f.pkt[4:], uint16(n))
	} else {
		binary.BigEndian.PutUint16(f.pkt[2:], uint16(f.total))
		f.pkt[10], f.pkt[11] = 0, 0
		binary.BigEndian.PutUint16(f.pkt[10:], checksum(f.pkt[:20], 0))
	}
	l4 := f.pkt[f.l4:]
	if f.udp {
		h.gsoType, h.csumOffset = gsoUDP, 6
		binary.BigEndian.PutUint16(l4[4:], uint16(n))
	} else if f.psh {
		l4[13] |= tcpPSH
	}
	binary.BigEndian.PutUint16(l4[h.csumOffset:], fold(0, pseudoSum(f.pkt, f.v6, protoOf(f.udp))+uint32(n)))
	h.encode(f.head[:])
	f.parts[0].Base = &f.head[0]
	f.parts[0].SetLen(vnetLen)
	t := f.l.sa.tun
	ok := writev(t.fd, f.parts[:f.n+1])
	if ok {
		return
	}
	copy(f.pkt, was[:f.hl])
	some := f.l.write(f.pkt)
	for i := 2; i <= f.n; i++ {
		p := &f.parts[i]
		whole := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(p.Base), -f.hl)), f.hl+int(p.Len))
		some = f.l.write(whole) || some
	}
	if some {
		t.noMerge.Store(true) // it is superpackets that this kernel refuses
	}
}

// write hands one inner packet to the interface, which was counted before.
func (l *inLane) write(pkt []byte) bool {
	if l.sa.tun.write(pkt) {
		return true
	}
	l.sa.lost.Add(1)
	l.sa.lostBytes.Add(uint64(len(pkt)))
	return false
}
