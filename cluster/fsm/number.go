package fsm

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// Space is a kind of numbers that are delegated in ranges.
type Space uint8

const (
	SpaceSPI  Space = 1 + iota // ESP SPIs from 256 on (RFC 4303 §2.1)
	SpaceIPv4                  // addresses for clients
	SpaceIPv6
)

const firstSPI = 256

// Number is an SPI or an address.
type Number struct{ Hi, Lo uint64 }

// SPINumber is an SPI as a Number.
func SPINumber(spi uint32) Number { return Number{Lo: uint64(spi)} }

// AddrNumber is an address as a Number, and its space. An IPv4-mapped address is an IPv4 one.
func AddrNumber(a netip.Addr) (Space, Number) {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return SpaceIPv4, Number{Lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return SpaceIPv6, Number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// Addr is the address that a number of an address space stands for.
func (s Space) Addr(n Number) netip.Addr {
	if s == SpaceIPv4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(n.Lo))))
	}
	b := binary.BigEndian.AppendUint64(nil, n.Hi)
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(b, n.Lo)))
}

// Add is n+k; beyond the end it begins anew.
func (n Number) Add(k uint64) Number {
	lo, carry := bits.Add64(n.Lo, k, 0)
	return Number{n.Hi + carry, lo}
}

func (n Number) prev() Number {
	lo, borrow := bits.Sub64(n.Lo, 1, 0)
	return Number{n.Hi - borrow, lo}
}

// Less orders numbers.
func (n Number) Less(o Number) bool { return n.Hi < o.Hi || n.Hi == o.Hi && n.Lo < o.Lo }

// span is how many numbers lie from n to last, both included; at most MaxRangeCount
// is ever asked for, so that more is as good as that.
func (n Number) span(last Number) uint64 {
	if last.Less(n) {
		return 0
	}
	lo, borrow := bits.Sub64(last.Lo, n.Lo, 0)
	if hi, _ := bits.Sub64(last.Hi, n.Hi, borrow); hi != 0 || lo >= MaxRangeCount {
		return MaxRangeCount
	}
	return lo + 1
}

// Span is how many numbers lie from n to last, both included, at most MaxRangeCount.
func (n Number) Span(last Number) uint64 { return n.span(last) }

// Bytes is the number as in a command: big endian, 4 bytes or 16.
func (s Space) Bytes(n Number) []byte {
	if s == SpaceIPv6 {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, n.Hi), n.Lo)
	}
	return binary.BigEndian.AppendUint32(nil, uint32(n.Lo))
}

func (s Space) parse(b []byte) (Number, error) {
	switch {
	case s == SpaceIPv6 && len(b) == 16:
		return Number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, nil
	case s == SpaceIPv4 && len(b) == 4:
		return Number{Lo: uint64(binary.BigEndian.Uint32(b))}, nil
	case s == SpaceSPI && len(b) == 4:
		if n := binary.BigEndian.Uint32(b); n >= firstSPI {
			return SPINumber(n), nil
		}
		return Number{}, fmt.Errorf("SPIs below %d are reserved", firstSPI)
	}
	return Number{}, fmt.Errorf("space %d has no number of %d bytes", s, len(b))
}
