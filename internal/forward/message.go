package forward

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"tandem/xfrm"
)

type kind uint8

const (
	kindInner kind = 1 + iota
	kindESP
	kindIKE
	kindLAN // what members tell each other about inner prefixes
)

const (
	flagUDP = 1 << iota // ESP in UDP, or IKE behind the non-ESP marker
	flagIPv6
	flagLast // two members have handed it on
	flagTCP  // with flagUDP: it came in a TCP connection

	flagsKnown = flagUDP | flagIPv6 | flagLast | flagTCP
)

const (
	maxMessage = 1<<16 - 1
	maxName    = 63 // of a tunnel
	prefixLen  = 6  // kind, flags, traffic class, length of the name, scope
	maxHead    = prefixLen + 2*18 + maxName
)

var errMalformed = errors.New("forward: malformed message")

// message is what one datagram, or its fragments, carry.
type message struct {
	kind kind
	x    xfrm.Stray // of IKE: UDPEncap is NonESP, Packet is Data
}

// addressed says whether it has outer addresses.
func (m *message) addressed() bool { return m.kind == kindESP || m.kind == kindIKE }

// head encodes what stands before the packet. It returns nil when the message
// cannot be carried.
func (m *message) head(dst []byte) []byte {
	x := &m.x
	if len(x.Tunnel) > maxName || len(x.Packet) == 0 {
		return nil
	}
	var flags byte
	if x.UDPEncap {
		flags |= flagUDP
	}
	if x.TCP {
		flags |= flagTCP
	}
	if x.Last {
		flags |= flagLast
	}
	local, remote := x.Local.Addr().Unmap(), x.Remote.Addr().Unmap()
	if m.addressed() {
		if !local.IsValid() || !remote.IsValid() || local.Is4() != remote.Is4() {
			return nil
		}
		if local.Is6() {
			flags |= flagIPv6
		}
	}
	b := append(dst, byte(m.kind), flags, x.TOS, byte(len(x.Tunnel)), byte(x.Scope>>8), byte(x.Scope))
	if m.addressed() {
		b = appendAddr(b, local, x.Local.Port())
		b = appendAddr(b, remote, x.Remote.Port())
	}
	return append(b, x.Tunnel...)
}

func appendAddr(b []byte, a netip.Addr, port uint16) []byte {
	if a.Is4() {
		ip := a.As4()
		b = append(b, ip[:]...)
	} else {
		ip := a.As16()
		b = append(b, ip[:]...)
	}
	return binary.BigEndian.AppendUint16(b, port)
}

// names keeps one copy of each tunnel name, so that decoding allocates none.
type names map[string]string

const namesMax = 4096

func (n names) get(b []byte) string {
	if s, ok := n[string(b)]; ok {
		return s
	}
	if len(n) >= namesMax {
		clear(n)
	}
	s := string(b)
	n[s] = s
	return s
}

// decode reads a message. Its packet is a part of b.
func (m *message) decode(b []byte, n names) error {
	if len(b) < prefixLen {
		return errMalformed
	}
	m.kind = kind(b[0])
	flags, nameLen := b[1], int(b[3])
	if m.kind < kindInner || m.kind > kindLAN || flags&^flagsKnown != 0 || m.kind == kindInner && flags&^flagLast != 0 || nameLen > maxName ||
		m.kind == kindLAN && [5]byte(b[1:prefixLen]) != [5]byte{} {
		return errMalformed
	}
	x := &m.x
	*x = xfrm.Stray{
		Scope: xfrm.Scope(binary.BigEndian.Uint16(b[4:])), Outer: m.kind == kindESP, UDPEncap: flags&flagUDP != 0, TCP: flags&flagTCP != 0, Last: flags&flagLast != 0, TOS: b[2],
	}
	b = b[prefixLen:]
	if m.addressed() {
		size := 4
		if flags&flagIPv6 != 0 {
			size = 16
		}
		if len(b) < 2*(size+2) {
			return errMalformed
		}
		x.Local, x.Remote = addrOf(b, size), addrOf(b[size+2:], size)
		if x.Local.Addr().Is4In6() || x.Remote.Addr().Is4In6() {
			return errMalformed
		}
		b = b[2*(size+2):]
	}
	if len(b) <= nameLen {
		return errMalformed
	}
	x.Tunnel, x.Packet = n.get(b[:nameLen]), b[nameLen:]
	return nil
}

func addrOf(b []byte, size int) netip.AddrPort {
	a := netip.AddrFrom4([4]byte(b))
	if size == 16 {
		a = netip.AddrFrom16([16]byte(b))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[size:]))
}
