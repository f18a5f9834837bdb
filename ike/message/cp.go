package message

// CP is a configuration payload (RFC 7296 §3.15).
type CP struct {
	CFGType    uint8
	Attributes []CPAttribute
}

// CPAttribute is one attribute; Type has 15 bits.
type CPAttribute struct {
	Type  uint16
	Value []byte
}

// Values of CFGType.
const (
	CFGRequest uint8 = 1
	CFGReply   uint8 = 2
	CFGSet     uint8 = 3
	CFGAck     uint8 = 4
)

// Attribute types (RFC 7296 §3.15.1, RFC 8598 §4.1).
const (
	InternalIP4Address uint16 = 1
	InternalIP4Netmask uint16 = 2
	InternalIP4DNS     uint16 = 3
	InternalIP6Address uint16 = 8
	InternalIP6DNS     uint16 = 10
	InternalIP4Subnet  uint16 = 13
	InternalIP6Subnet  uint16 = 15
	InternalDNSDomain  uint16 = 25
)

func (p *CP) Type() PayloadType { return TypeCP }

func (p *CP) encode(w *writer) {
	if len(p.Attributes) > MaxCPAttributes {
		w.fail(errTooLarge)
		return
	}
	w.u8(p.CFGType)
	w.zeros(3)
	for _, a := range p.Attributes {
		if a.Type > 0x7fff || len(a.Value) > 65535 {
			w.fail(errTooLarge)
			return
		}
		w.u16(a.Type)
		w.u16(uint16(len(a.Value)))
		w.bytes(a.Value)
	}
}

func decodeCP(r *reader) (*CP, error) {
	p := &CP{CFGType: r.u8()}
	r.skip(3)
	for r.err == nil && r.len() > 0 {
		if len(p.Attributes) == MaxCPAttributes {
			return nil, errorf("more than %d attributes", MaxCPAttributes)
		}
		a := CPAttribute{Type: r.u16() & 0x7fff}
		a.Value = r.bytes(int(r.u16()))
		p.Attributes = append(p.Attributes, a)
	}
	return p, r.err
}
