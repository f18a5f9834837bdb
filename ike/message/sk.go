package message

import (
	"encoding/binary"
	"slices"
)

// Encrypted is an SK payload that has not been opened (RFC 7296 §3.14).
// Offset is where its body (IV) begins in the raw message.
type Encrypted struct {
	First  PayloadType // of the inner payloads
	Offset int
}

// EncryptedFragment is an SKF payload (RFC 7383 §2.5). 1 ≤ Number ≤ Total.
type EncryptedFragment struct {
	First         PayloadType // non-zero in fragment 1 only
	Number, Total uint16
	Offset        int
}

// Sealer protects the SK payload (RFC 7296 §3.14, RFC 5282). keymat provides it.
type Sealer interface {
	// IVLen, ICVLen and BlockLen are in bytes; BlockLen is 1 for AEADs.
	IVLen() int
	ICVLen() int
	BlockLen() int
	// Seal appends IV ‖ ciphertext ‖ ICV to aad and returns the whole. aad is the
	// message from the IKE header up to and including the SK payload header, with
	// its lengths already final; plaintext is padded to BlockLen already.
	Seal(aad, plaintext []byte) ([]byte, error)
}

// Opener is the other direction: body is IV ‖ ciphertext ‖ ICV; it returns the
// padded plaintext in memory of its own. Every failure is the same ErrAuthentication.
type Opener interface {
	Open(aad, body []byte) ([]byte, error)
}

const fragmentHeaderLen = 4 // fragment number and total, after the generic header

func (p *Encrypted) Type() PayloadType         { return TypeSK }
func (p *Encrypted) encode(w *writer)          { w.fail(errEncrypted) }
func (p *EncryptedFragment) Type() PayloadType { return TypeSKF }
func (p *EncryptedFragment) encode(w *writer)  { w.fail(errEncrypted) }

var errEncrypted = errorf("an encrypted payload cannot be encoded again")

// decodeEncrypted decodes what is clear of SK or SKF; at is the offset of b in the message.
func decodeEncrypted(t, first PayloadType, b []byte, at int) (Payload, error) {
	if t == TypeSK {
		return &Encrypted{First: first, Offset: at}, nil
	}
	r := &reader{b: b}
	f := &EncryptedFragment{First: first, Number: r.u16(), Total: r.u16(), Offset: at + fragmentHeaderLen}
	if r.err != nil || f.Number == 0 || f.Number > f.Total {
		return nil, errorf("fragment %d of %d", f.Number, f.Total)
	}
	if f.Number != 1 {
		f.First = NoNextPayload
	}
	return f, nil
}

// Seal returns the message with all its payloads inside one SK payload and fills
// Length and NextPayload. Its errors are the sealer's (no IV left) or say what
// cannot be encoded, as Encode.
func (m *Message) Seal(s Sealer) ([]byte, error) {
	first, inner, err := encodeInner(m.Payloads)
	if err != nil {
		return nil, err
	}
	m.keepSealed(first, inner)
	return m.sealOne(s, TypeSK, first, nil, inner)
}

// SealFragments returns the message in SKF payloads (RFC 7383), each datagram of
// at most limit bytes (IKE header included), numbered from 1. A message that fits
// comes back as one SK message.
func (m *Message) SealFragments(s Sealer, limit int) ([][]byte, error) {
	first, inner, err := encodeInner(m.Payloads)
	if err != nil {
		return nil, err
	}
	m.keepSealed(first, inner)
	if HeaderLen+payloadHeaderLen+sealedLen(s, len(inner)) <= limit {
		b, err := m.sealOne(s, TypeSK, first, nil, inner)
		return [][]byte{b}, err
	}
	room := limit - HeaderLen - payloadHeaderLen - fragmentHeaderLen - s.IVLen() - s.ICVLen()
	room -= room%s.BlockLen() + 1 // whole blocks, and the pad length
	if room < 1 {
		return nil, errorf("fragments of %d bytes are too short", limit)
	}
	total := (len(inner) + room - 1) / room
	if total > 65535 {
		return nil, errTooLarge
	}
	var out [][]byte
	for n := 1; n <= total; n++ {
		part := inner[:min(room, len(inner))]
		inner = inner[len(part):]
		w := writer{}
		w.u16(uint16(n))
		w.u16(uint16(total))
		b, err := m.sealOne(s, TypeSKF, first, w.b, part)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
		first = NoNextPayload
	}
	return out, nil
}

func encodeInner(ps []Payload) (first PayloadType, inner []byte, err error) {
	w := writer{b: make([]byte, 0, 512)}
	first = w.chain(ps)
	return first, w.b, w.err
}

// sealedLen is the length in bytes of IV ‖ ciphertext ‖ ICV for n bytes of inner payloads.
func sealedLen(s Sealer, n int) int {
	n++ // pad length
	return s.IVLen() + n + padLen(s, n) + s.ICVLen()
}

func padLen(s Sealer, n int) int {
	if over := n % s.BlockLen(); over != 0 {
		return s.BlockLen() - over
	}
	return 0
}

// sealOne builds header ‖ SK or SKF header ‖ extra ‖ sealed inner.
func (m *Message) sealOne(s Sealer, t, first PayloadType, extra, inner []byte) ([]byte, error) {
	payload := payloadHeaderLen + len(extra) + sealedLen(s, len(inner))
	total := HeaderLen + payload
	if total > MaxMessageLen {
		return nil, errTooLarge
	}
	m.NextPayload, m.Length = t, uint32(total)
	w := writer{b: make([]byte, HeaderLen, total)}
	m.Header.put(w.b)
	w.u8(uint8(first))
	w.u8(0)
	w.u16(uint16(payload))
	w.bytes(extra)

	pad := padLen(s, len(inner)+1)
	plain := make([]byte, len(inner)+pad+1)
	copy(plain, inner)
	plain[len(plain)-1] = uint8(pad)
	sealed, err := s.Seal(w.b, plain)
	if err != nil {
		return nil, err
	}
	if len(sealed) != total { // the lengths that were authenticated would lie
		return nil, errorf("sealed message of %d bytes, %d announced", len(sealed), total)
	}
	return sealed, nil
}

// Open replaces the trailing *Encrypted by its inner payloads. raw is the datagram
// that m was parsed from. On an error m is unchanged; the error is *Error, silent
// around ErrAuthentication where the peer did not make the message, else as ParsePayloads.
func (m *Message) Open(raw []byte, o Opener) error {
	sk, ok := m.last().(*Encrypted)
	if !ok {
		return silent("message has no SK payload")
	}
	inner, err := openBody(raw, sk.Offset, o)
	if err != nil {
		return err
	}
	ps, err := parseInner(sk.First, inner)
	if err != nil {
		return err
	}
	clear := m.Payloads[:len(m.Payloads)-1]
	if len(clear)+len(ps) > MaxPayloads {
		return invalid("more than %d payloads", MaxPayloads)
	}
	m.Payloads = append(clear[:len(clear):len(clear)], ps...)
	m.whole.inner = inner
	return nil
}

// OpenFragment returns the authenticated content of the trailing
// *EncryptedFragment. The contents of all fragments, joined in order of their
// numbers, are for ParsePayloads with the First of fragment 1. Errors as Open's.
func (m *Message) OpenFragment(raw []byte, o Opener) ([]byte, error) {
	skf, ok := m.last().(*EncryptedFragment)
	if !ok {
		return nil, silent("message has no SKF payload")
	}
	return openBody(raw, skf.Offset, o)
}

// Join gives m the payloads of a message that came in fragments: the clear ones of
// fragment 1, first, and those inside the contents of all of them in order of their
// numbers. Errors as Open's.
func (m *Message) Join(first *Message, parts [][]byte) error {
	skf, ok := first.last().(*EncryptedFragment)
	if !ok {
		return silent("message has no SKF payload")
	}
	inner := slices.Concat(parts...)
	ps, err := ParsePayloads(skf.First, inner)
	if err != nil {
		return err
	}
	clear := first.Payloads[:len(first.Payloads)-1]
	if len(clear)+len(ps) > MaxPayloads {
		return invalid("more than %d payloads", MaxPayloads)
	}
	m.Payloads = append(clear[:len(clear):len(clear)], ps...)
	m.whole = first.whole
	m.whole.inner = inner
	return nil
}

// Split cuts datagrams that stand one after the other where the length in the header of
// each says. What does not look like one stays in one piece with all that follows.
func Split(b []byte) [][]byte {
	var out [][]byte
	for len(b) > 0 {
		n := len(b)
		if n >= HeaderLen {
			if l := binary.BigEndian.Uint32(b[24:]); l >= HeaderLen && uint64(l) < uint64(n) {
				n = int(l)
			}
		}
		out = append(out, b[:n:n])
		b = b[n:]
	}
	return out
}

func (m *Message) last() Payload {
	if len(m.Payloads) == 0 {
		return nil
	}
	return m.Payloads[len(m.Payloads)-1]
}

func openBody(raw []byte, offset int, o Opener) ([]byte, error) {
	if offset > len(raw) {
		return nil, silent("not the message that was parsed")
	}
	plain, err := o.Open(raw[:offset:offset], raw[offset:])
	if err != nil {
		return nil, &Error{Err: err}
	}
	if len(plain) == 0 {
		return nil, invalid("encrypted payload without pad length")
	}
	n := len(plain) - 1 - int(plain[len(plain)-1])
	if n < 0 {
		return nil, invalid("padding is longer than the encrypted payload")
	}
	return plain[:n:n], nil
}
