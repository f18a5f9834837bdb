package message

import "tandem/internal/ipsec"

// Delete names deleted SAs (RFC 7296 §3.11): for ESP the SPIs at which the
// sender receives; empty for the IKE SA itself.
type Delete struct {
	Protocol uint8
	SPIs     []ipsec.ESPSPI
}

func (p *Delete) Type() PayloadType { return TypeDelete }

func (p *Delete) encode(w *writer) {
	if len(p.SPIs) > MaxDeleteSPIs || p.Protocol == ipsec.ProtocolIKE && len(p.SPIs) > 0 {
		w.fail(errorf("%d SPIs for protocol %d", len(p.SPIs), p.Protocol))
		return
	}
	w.u8(p.Protocol)
	if p.Protocol == ipsec.ProtocolIKE {
		w.u8(0)
	} else {
		w.u8(4)
	}
	w.u16(uint16(len(p.SPIs)))
	for _, spi := range p.SPIs {
		w.u32(uint32(spi))
	}
}

func decodeDelete(r *reader) (*Delete, error) {
	p := &Delete{Protocol: r.u8()}
	size, n := int(r.u8()), int(r.u16())
	if r.err != nil {
		return nil, r.err
	}
	switch p.Protocol {
	case ipsec.ProtocolIKE:
		if size != 0 || n != 0 {
			return nil, errorf("%d SPIs of %d bytes for IKE", n, size)
		}
	case ipsec.ProtocolESP, ipsec.ProtocolAH:
		if size != 4 {
			return nil, errorf("SPI size %d", size)
		}
	default:
		return nil, errorf("protocol %d", p.Protocol)
	}
	if n > MaxDeleteSPIs {
		return nil, errorf("%d SPIs", n)
	}
	if r.len() != n*size {
		return nil, errorf("%d bytes for %d SPIs", r.len(), n)
	}
	for range n {
		p.SPIs = append(p.SPIs, ipsec.ESPSPI(r.u32()))
	}
	return p, r.err
}
