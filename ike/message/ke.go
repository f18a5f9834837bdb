package message

import "tandem/internal/ipsec"

// KE carries a public key-exchange value (RFC 7296 §3.4).
type KE struct {
	Group ipsec.TransformID
	Data  []byte
}

func (p *KE) Type() PayloadType { return TypeKE }

func (p *KE) encode(w *writer) {
	w.u16(uint16(p.Group))
	w.zeros(2)
	w.bytes(p.Data)
}

func decodeKE(r *reader) (*KE, error) {
	p := &KE{Group: ipsec.TransformID(r.u16())}
	r.skip(2)
	p.Data = r.rest()
	return p, r.err
}
