package message

// Payload is one payload of a message; its concrete types are the structs of this package.
type Payload interface {
	Type() PayloadType
	encode(w *writer)
}

// Unknown is a payload of a type we do not know; when Critical, decoding has failed already.
type Unknown struct {
	PayloadType PayloadType
	Body        []byte
}

func (p *Unknown) Type() PayloadType { return p.PayloadType }
func (p *Unknown) encode(w *writer)  { w.bytes(p.Body) }

// EncodePayloads returns a chain of payloads and the type of the first. It
// returns nothing where Encode returns nil.
func EncodePayloads(ps []Payload) (first PayloadType, body []byte) {
	w := writer{b: make([]byte, 0, 512)}
	first = w.chain(ps)
	if w.err != nil || len(w.b) > MaxMessageLen {
		return NoNextPayload, nil
	}
	return first, w.b
}

// ParsePayloads decodes a chain whose first payload has the given type and which
// fills body exactly. SK and SKF are refused: they do not nest. Its errors are
// *Error with INVALID_SYNTAX, or UNSUPPORTED_CRITICAL_PAYLOAD and the type byte.
func ParsePayloads(first PayloadType, body []byte) ([]Payload, error) {
	if len(body) > MaxMessageLen {
		return nil, invalid("payloads of %d bytes are too long", len(body))
	}
	return parseInner(first, append([]byte(nil), body...))
}

// parseInner is ParsePayloads on memory that the payloads may keep.
func parseInner(first PayloadType, body []byte) ([]Payload, error) {
	return parseChain(first, body, -1)
}

// parseChain decodes a chain; offset is the place of body in the raw message, or
// negative where no encrypted payload may stand. The payloads keep body.
func parseChain(next PayloadType, body []byte, offset int) ([]Payload, error) {
	var ps []Payload
	for at := 0; next != NoNextPayload; {
		if len(ps) == MaxPayloads {
			return nil, invalid("more than %d payloads", MaxPayloads)
		}
		rest := body[at:]
		if len(rest) < payloadHeaderLen {
			return nil, invalid("%s payload: header is cut off", next)
		}
		length := int(rest[2])<<8 | int(rest[3])
		if length < payloadHeaderLen || length > len(rest) {
			return nil, invalid("%s payload: length %d of %d remaining bytes", next, length, len(rest))
		}
		following, critical := PayloadType(rest[0]), rest[1]&0x80 != 0
		content := rest[payloadHeaderLen:length:length]

		if next == TypeSK || next == TypeSKF {
			if offset < 0 {
				return nil, invalid("%s payload inside an encrypted payload", next)
			}
			if length != len(rest) {
				return nil, invalid("%s payload is not the last", next)
			}
			p, err := decodeEncrypted(next, following, content, offset+at+payloadHeaderLen)
			if err != nil {
				return nil, invalid("%s payload: %w", next, err)
			}
			return append(ps, p), nil
		}

		p, known, err := decodePayload(next, content)
		switch {
		case !known && critical:
			return nil, &Error{
				Notify: UnsupportedCriticalPayload,
				Data:   []byte{uint8(next)},
				Err:    errorf("payload type %d", uint8(next)),
			}
		case err != nil:
			return nil, invalid("%s payload: %w", next, err)
		}
		ps = append(ps, p)
		next = following
		at += length
		if next == NoNextPayload && at != len(body) {
			return nil, invalid("%d bytes after the last payload", len(body)-at)
		}
	}
	if len(ps) == 0 && len(body) != 0 {
		return nil, invalid("%d bytes but no payload", len(body))
	}
	return ps, nil
}

// decodePayload decodes the body of one clear payload.
func decodePayload(t PayloadType, b []byte) (p Payload, known bool, err error) {
	r := &reader{b: b}
	switch t {
	case TypeSA:
		p, err = decodeSA(r)
	case TypeKE:
		p, err = decodeKE(r)
	case TypeIDi, TypeIDr:
		p, err = decodeID(r, t == TypeIDr)
	case TypeCERT:
		p, err = decodeCert(r)
	case TypeCERTREQ:
		p, err = decodeCertReq(r)
	case TypeAUTH:
		p, err = decodeAuth(r)
	case TypeNonce:
		p, err = decodeNonce(r)
	case TypeNotify:
		p, err = decodeNotify(r)
	case TypeDelete:
		p, err = decodeDelete(r)
	case TypeVendorID:
		p = &VendorID{Data: r.rest()}
	case TypeTSi, TypeTSr:
		p, err = decodeTS(r, t == TypeTSr)
	case TypeCP:
		p, err = decodeCP(r)
	case TypeEAP:
		p, err = decodeEAP(r)
	default:
		return &Unknown{PayloadType: t, Body: r.rest()}, false, nil
	}
	if err == nil {
		err = r.err
	}
	return p, true, err
}
