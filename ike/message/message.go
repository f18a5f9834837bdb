// Package message encodes and decodes IKEv2 messages (RFC 7296 §3): one file per
// payload, bounded decoders, no state and no cryptography of its own.
//
// What the decoders return never shares memory with their input. Reserved fields
// are ignored on receipt and sent as zero; the critical bit of a payload we know
// is ignored, and we never set it.
package message

// Bounds of the decoders; a message beyond one of them is INVALID_SYNTAX.
const (
	MaxMessageLen    = 65535 // bytes, header included
	MaxPayloads      = 64    // in one chain
	MaxProposals     = 32    // in one SA payload
	MaxTransforms    = 64    // in one proposal
	MaxSelectors     = 255   // in one TS payload
	MaxDeleteSPIs    = 1024  // in one Delete payload
	MaxCPAttributes  = 255   // in one CP payload
	MinNonceLen      = 16    // bytes (RFC 7296 §3.9)
	MaxNonceLen      = 256   // bytes
	payloadHeaderLen = 4
)

// Message is a header and its payloads in order. A message that carries SK or
// SKF has *Encrypted or *EncryptedFragment as its last payload until opened.
type Message struct {
	Header
	Payloads []Payload

	whole whole
}

// Parse decodes the header and the clear payloads of one whole datagram. It stops
// at SK or SKF, which must be the last payload. Its errors are *Error:
// INVALID_MAJOR_VERSION above version 2, silence below it or when the header is
// broken, else as ParsePayloads.
func Parse(b []byte) (*Message, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return nil, err
	}
	if h.MajorVersion != majorVersion {
		e := &Error{Err: errorf("major version %d", h.MajorVersion)}
		if h.MajorVersion > majorVersion {
			e.Notify = InvalidMajorVersion
		}
		return nil, e
	}
	body := append([]byte(nil), b[HeaderLen:]...)
	ps, err := parseChain(h.NextPayload, body, HeaderLen)
	if err != nil {
		return nil, err
	}
	m := &Message{Header: h, Payloads: ps}
	if h.Exchange == Intermediate {
		m.keepClear(b)
	}
	return m, nil
}

// Encode returns the unprotected message and fills Length and NextPayload. It
// returns nil for what cannot be encoded: a field beyond its range (a payload or
// message above 65,535 bytes, too many proposals) or a payload still encrypted.
func (m *Message) Encode() []byte {
	w := writer{b: make([]byte, HeaderLen, 512)}
	m.NextPayload = w.chain(m.Payloads)
	if w.err != nil || len(w.b) > MaxMessageLen {
		return nil
	}
	m.Length = uint32(len(w.b))
	m.Header.put(w.b)
	return w.b
}

// Get returns the first payload of a type, e.g. Get[*SA](m).
func Get[T Payload](m *Message) (T, bool) {
	for _, p := range m.Payloads {
		if t, ok := p.(T); ok {
			return t, true
		}
	}
	var none T
	return none, false
}

// ID returns the first IDi payload, or IDr if responder.
func (m *Message) ID(responder bool) (*ID, bool) {
	for _, p := range m.Payloads {
		if id, ok := p.(*ID); ok && id.Responder == responder {
			return id, true
		}
	}
	return nil, false
}

// TS returns the first TSi payload, or TSr if responder.
func (m *Message) TS(responder bool) (*TS, bool) {
	for _, p := range m.Payloads {
		if ts, ok := p.(*TS); ok && ts.Responder == responder {
			return ts, true
		}
	}
	return nil, false
}

// Notify returns the first notification of a type.
func (m *Message) Notify(t NotifyType) (*Notify, bool) {
	for _, p := range m.Payloads {
		if n, ok := p.(*Notify); ok && n.NotifyType == t {
			return n, true
		}
	}
	return nil, false
}

// Notifies returns all notifications in order.
func (m *Message) Notifies() []*Notify {
	var ns []*Notify
	for _, p := range m.Payloads {
		if n, ok := p.(*Notify); ok {
			ns = append(ns, n)
		}
	}
	return ns
}
