package message

import "tandem/internal/ipsec"

// SA offers or accepts proposals (RFC 7296 §3.3).
type SA struct{ Proposals []ipsec.Proposal }

// UnusableTransform stands as ID of a decoded transform whose attributes we do
// not understand: RFC 7296 §3.3.6 says to reject that transform, not its
// proposal. It is a private-use value that no selection may accept.
const UnusableTransform ipsec.TransformID = 0xffff

const (
	moreProposals  = 2
	moreTransforms = 3

	attributeKeyLength = 14
	attributeTV        = 0x8000
)

func (p *SA) Type() PayloadType { return TypeSA }

func (p *SA) encode(w *writer) {
	if len(p.Proposals) > MaxProposals {
		w.fail(errTooLarge)
		return
	}
	for i, prop := range p.Proposals {
		start := len(w.b)
		w.more(i+1 < len(p.Proposals), moreProposals)
		w.zeros(3)
		w.u8(prop.Number)
		w.u8(prop.Protocol)
		w.count8(len(prop.SPI), 255)
		w.count8(len(prop.Transforms), MaxTransforms)
		w.bytes(prop.SPI)
		for j, t := range prop.Transforms {
			start := len(w.b)
			w.more(j+1 < len(prop.Transforms), moreTransforms)
			w.zeros(3)
			w.u8(uint8(t.Type))
			w.u8(0)
			w.u16(uint16(t.ID))
			if t.KeyBits != 0 {
				w.u16(attributeTV | attributeKeyLength)
				w.u16(t.KeyBits)
			}
			w.setLen16(start)
		}
		w.setLen16(start)
	}
}

// more writes the "last substructure" byte.
func (w *writer) more(more bool, value uint8) {
	if !more {
		value = 0
	}
	w.u8(value)
}

func decodeSA(r *reader) (*SA, error) {
	p := &SA{}
	for more := true; more; {
		if len(p.Proposals) == MaxProposals {
			return nil, errorf("more than %d proposals", MaxProposals)
		}
		sub, err := r.substructure(moreProposals)
		if err != nil {
			return nil, errorf("proposal: %w", err)
		}
		more = r.len() > 0
		prop, err := decodeProposal(sub)
		if err != nil {
			return nil, errorf("proposal %d: %w", prop.Number, err)
		}
		p.Proposals = append(p.Proposals, prop)
	}
	return p, nil
}

// substructure takes one proposal or transform with its 4-byte header off r; its
// first byte must say truly whether another follows.
func (r *reader) substructure(more uint8) (*reader, error) {
	last := r.u8()
	r.skip(1)
	n := int(r.u16())
	if r.err != nil {
		return nil, r.err
	}
	if n < 4 || n-4 > r.len() {
		return nil, errorf("length %d", n)
	}
	sub := &reader{b: r.bytes(n - 4)}
	switch {
	case last != 0 && last != more:
		return nil, errorf("last substructure is %d", last)
	case (last == 0) != (r.len() == 0):
		return nil, errorf("last substructure is %d, but %d bytes follow", last, r.len())
	}
	return sub, nil
}

func decodeProposal(r *reader) (prop ipsec.Proposal, err error) {
	prop.Number, prop.Protocol = r.u8(), r.u8()
	spiSize, transforms := int(r.u8()), int(r.u8())
	prop.SPI = r.bytes(spiSize)
	if r.err != nil {
		return prop, r.err
	}
	switch prop.Protocol { // others are for selection to skip
	case ipsec.ProtocolIKE:
		if spiSize != 0 && spiSize != 8 {
			return prop, errorf("SPI size %d for IKE", spiSize)
		}
	case ipsec.ProtocolESP, ipsec.ProtocolAH:
		if spiSize != 4 {
			return prop, errorf("SPI size %d for protocol %d", spiSize, prop.Protocol)
		}
	}
	if transforms > MaxTransforms {
		return prop, errorf("more than %d transforms", MaxTransforms)
	}
	for r.len() > 0 {
		if len(prop.Transforms) == transforms {
			return prop, errorf("more than the announced %d transforms", transforms)
		}
		sub, err := r.substructure(moreTransforms)
		if err != nil {
			return prop, errorf("transform: %w", err)
		}
		t, err := decodeTransform(sub)
		if err != nil {
			return prop, errorf("transform: %w", err)
		}
		prop.Transforms = append(prop.Transforms, t)
	}
	if len(prop.Transforms) != transforms {
		return prop, errorf("%d transforms, %d announced", len(prop.Transforms), transforms)
	}
	return prop, nil
}

func decodeTransform(r *reader) (t ipsec.Transform, err error) {
	t.Type = ipsec.TransformType(r.u8())
	r.skip(1)
	t.ID = ipsec.TransformID(r.u16())
	usable := true
	for r.err == nil && r.len() > 0 {
		kind, value := r.u16(), r.u16()
		switch {
		case kind&attributeTV == 0: // TLV: no attribute that we know has this form
			r.skip(int(value))
			usable = false
		case kind == attributeTV|attributeKeyLength && value != 0 && t.KeyBits == 0:
			t.KeyBits = value
		default:
			usable = false
		}
	}
	if !usable {
		t.ID, t.KeyBits = UnusableTransform, 0
	}
	return t, r.err
}
