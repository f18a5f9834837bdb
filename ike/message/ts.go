package message

import (
	"net/netip"

	"tandem/internal/ipsec"
)

// TS is TSi or TSr (RFC 7296 §3.13). Responder selects TSr. Selectors of a type
// other than TS_IPV4_ADDR_RANGE and TS_IPV6_ADDR_RANGE are left out by the
// decoder, so the list may be empty: nothing of it can be accepted.
type TS struct {
	Responder bool
	Selectors []ipsec.TrafficSelector
}

const (
	tsIPv4AddrRange = 7
	tsIPv6AddrRange = 8
)

func (p *TS) Type() PayloadType {
	if p.Responder {
		return TypeTSr
	}
	return TypeTSi
}

func (p *TS) encode(w *writer) {
	w.count8(len(p.Selectors), MaxSelectors)
	w.zeros(3)
	for _, s := range p.Selectors {
		if !s.Start.IsValid() || s.Start.BitLen() != s.End.BitLen() {
			w.fail(errorf("traffic selector from %s to %s", s.Start, s.End))
			return
		}
		start := len(w.b)
		if s.Start.Is4() {
			w.u8(tsIPv4AddrRange)
		} else {
			w.u8(tsIPv6AddrRange)
		}
		w.u8(s.Protocol)
		w.zeros(2)
		w.u16(s.StartPort)
		w.u16(s.EndPort)
		w.bytes(s.Start.AsSlice())
		w.bytes(s.End.AsSlice())
		w.setLen16(start)
	}
}

func decodeTS(r *reader, responder bool) (*TS, error) {
	p := &TS{Responder: responder}
	n := int(r.u8())
	r.skip(3)
	for range n {
		kind := r.u8()
		s := ipsec.TrafficSelector{Protocol: r.u8()}
		length := int(r.u16())
		if r.err != nil || length < 4 {
			return nil, errorf("selector is cut off")
		}
		sub := &reader{b: r.bytes(length - 4)}
		if r.err != nil {
			return nil, r.err
		}
		size := 4
		switch kind {
		case tsIPv4AddrRange:
		case tsIPv6AddrRange:
			size = 16
		default:
			continue
		}
		if sub.len() != 4+2*size {
			return nil, errorf("selector of type %d has %d bytes", kind, length)
		}
		s.StartPort, s.EndPort = sub.u16(), sub.u16()
		s.Start, _ = netip.AddrFromSlice(sub.bytes(size))
		s.End, _ = netip.AddrFromSlice(sub.bytes(size))
		// Ports may be reversed: 65535 to 0 means OPAQUE.
		if s.Start.Compare(s.End) > 0 {
			return nil, errorf("selector from %s to %s", s.Start, s.End)
		}
		p.Selectors = append(p.Selectors, s)
	}
	if r.len() != 0 {
		return nil, errorf("%d bytes after %d selectors", r.len(), n)
	}
	return p, r.err
}
