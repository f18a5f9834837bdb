package message

import (
	"encoding/binary"
	"slices"
)

// whole is a message of IKE_INTERMEDIATE as its authentication covers it (RFC 9242 §3.3.2):
// neither encrypted nor cut into fragments.
type whole struct {
	clear []byte // from the IKE header to the header of the Encrypted payload, as SK; nil in other exchanges
	inner []byte // the payloads inside
}

// keepClear keeps what stands before the encrypted part of a datagram that has been parsed.
// Of fragments only the first one is of use.
func (m *Message) keepClear(raw []byte) {
	var end int // of the generic header
	switch p := m.last().(type) {
	case *Encrypted:
		end = p.Offset
	case *EncryptedFragment:
		end = p.Offset - fragmentHeaderLen
	default:
		return
	}
	m.whole.clear = slices.Clone(raw[:end])
	if len(m.Payloads) == 1 {
		m.whole.clear[16] = uint8(TypeSK)
		return
	}
	at := HeaderLen
	for range len(m.Payloads) - 2 {
		at += int(binary.BigEndian.Uint16(raw[at+2:]))
	}
	m.whole.clear[at] = uint8(TypeSK)
}

// keepSealed is the same for a message that is about to be sealed.
func (m *Message) keepSealed(first PayloadType, inner []byte) {
	if m.Exchange != Intermediate {
		return
	}
	m.NextPayload = TypeSK
	m.whole = whole{clear: make([]byte, HeaderLen, HeaderLen+payloadHeaderLen), inner: inner}
	m.Header.put(m.whole.clear)
	m.whole.clear = append(m.whole.clear, uint8(first), 0, 0, 0)
}

// IntAuthOctets are IntAuth_*A | IntAuth_*P of a message of IKE_INTERMEDIATE that was opened
// or sealed (RFC 9242 §3.3.2): its lengths count neither IV nor padding nor ICV. nil for any
// other message.
func (m *Message) IntAuthOctets() []byte {
	n := len(m.whole.clear)
	if n == 0 {
		return nil
	}
	out := slices.Concat(m.whole.clear, m.whole.inner)
	binary.BigEndian.PutUint32(out[24:], uint32(len(out)))
	binary.BigEndian.PutUint16(out[n-2:], uint16(payloadHeaderLen+len(m.whole.inner)))
	return out
}
