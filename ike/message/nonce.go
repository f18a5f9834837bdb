package message

// Nonce is Ni or Nr (RFC 7296 §3.9): 16 to 256 bytes.
type Nonce struct{ Data []byte }

func (p *Nonce) Type() PayloadType { return TypeNonce }

func (p *Nonce) encode(w *writer) {
	if len(p.Data) < MinNonceLen || len(p.Data) > MaxNonceLen {
		w.fail(errorf("nonce of %d bytes", len(p.Data)))
	}
	w.bytes(p.Data)
}

func decodeNonce(r *reader) (*Nonce, error) {
	if r.len() < MinNonceLen || r.len() > MaxNonceLen {
		return nil, errorf("%d bytes", r.len())
	}
	return &Nonce{Data: r.rest()}, nil
}
