package message

import "encoding/binary"

// EAP carries one EAP packet (RFC 7296 §3.16), header included.
type EAP struct{ Data []byte }

func (p *EAP) Type() PayloadType { return TypeEAP }
func (p *EAP) encode(w *writer)  { w.bytes(p.Data) }

func decodeEAP(r *reader) (*EAP, error) {
	p := &EAP{Data: r.rest()}
	if len(p.Data) < 4 || int(binary.BigEndian.Uint16(p.Data[2:])) != len(p.Data) {
		return nil, errorf("%d bytes are not one EAP packet", len(p.Data))
	}
	return p, nil
}
