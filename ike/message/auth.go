package message

// Auth is an AUTH payload (RFC 7296 §3.8).
type Auth struct {
	Method AuthMethod
	Data   []byte
}

func (p *Auth) Type() PayloadType { return TypeAUTH }

func (p *Auth) encode(w *writer) {
	w.u8(uint8(p.Method))
	w.zeros(3)
	w.bytes(p.Data)
}

func decodeAuth(r *reader) (*Auth, error) {
	p := &Auth{Method: AuthMethod(r.u8())}
	r.skip(3)
	p.Data = r.rest()
	return p, r.err
}
