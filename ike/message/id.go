package message

// ID is an IDi or IDr payload (RFC 7296 §3.5). Responder selects IDr.
type ID struct {
	Responder bool
	IDType    IDType
	Data      []byte
	// Reserved is zero in what we send. It is kept because AUTH covers the field
	// as the peer sent it (RFC 7296 §2.15, RestOfIDPayload).
	Reserved [3]byte
}

func (p *ID) Type() PayloadType {
	if p.Responder {
		return TypeIDr
	}
	return TypeIDi
}

// Body is the payload without its generic header: what AUTH covers.
func (p *ID) Body() []byte {
	w := writer{}
	p.encode(&w)
	return w.b
}

func (p *ID) encode(w *writer) {
	w.u8(uint8(p.IDType))
	w.bytes(p.Reserved[:])
	w.bytes(p.Data)
}

func decodeID(r *reader, responder bool) (*ID, error) {
	p := &ID{Responder: responder, IDType: IDType(r.u8())}
	copy(p.Reserved[:], r.bytes(3))
	p.Data = r.rest()
	return p, r.err
}
