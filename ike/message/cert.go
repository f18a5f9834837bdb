package message

// Cert is a CERT payload (RFC 7296 §3.6).
type Cert struct {
	Encoding uint8
	Data     []byte
}

// CertReq is a CERTREQ payload (RFC 7296 §3.7).
type CertReq struct {
	Encoding uint8
	Data     []byte
}

// CertX509Signature is the encoding "X.509 Certificate - Signature": one DER
// certificate in CERT, SHA-1 hashes of the CAs' public keys in CERTREQ.
const CertX509Signature uint8 = 4

func (p *Cert) Type() PayloadType { return TypeCERT }

func (p *Cert) encode(w *writer) {
	w.u8(p.Encoding)
	w.bytes(p.Data)
}

func decodeCert(r *reader) (*Cert, error) {
	p := &Cert{Encoding: r.u8()}
	p.Data = r.rest()
	return p, r.err
}

func (p *CertReq) Type() PayloadType { return TypeCERTREQ }

func (p *CertReq) encode(w *writer) {
	w.u8(p.Encoding)
	w.bytes(p.Data)
}

func decodeCertReq(r *reader) (*CertReq, error) {
	p := &CertReq{Encoding: r.u8()}
	p.Data = r.rest()
	return p, r.err
}
