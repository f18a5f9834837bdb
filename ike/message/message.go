// Package message encodes and decodes IKEv2 messages (RFC 7296 §3): one file per
// payload, bounded decoders, no state and no cryptography of its own.
package message

import "tandem/internal/ipsec"

// ExchangeType as in RFC 7296 §3.1.
type ExchangeType uint8

const (
	IKESAInit     ExchangeType = 34
	IKEAuth       ExchangeType = 35
	CreateChildSA ExchangeType = 36
	Informational ExchangeType = 37
)

// HeaderLen is the length in bytes of the IKE header.
const HeaderLen = 28

// Header is the IKE header (RFC 7296 §3.1). Initiator says that the sender is
// the original initiator of the IKE SA; Response that this answers a request.
type Header struct {
	SPIs         ipsec.IKESPIs
	NextPayload  PayloadType
	MajorVersion uint8 // 2
	MinorVersion uint8 // 0 when we send; ignored on receipt
	Exchange     ExchangeType
	Initiator    bool
	Response     bool
	Version      bool // the "higher version" flag
	MessageID    uint32
	Length       uint32 // filled by the encoder
}

// Payload is one payload of a message; its concrete types are the structs of this package.
type Payload interface{ Type() PayloadType }

// Message is a header and its payloads in order. A message that carries SK or
// SKF has *Encrypted or *EncryptedFragment as its last payload until opened.
type Message struct {
	Header
	Payloads []Payload
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
// padded plaintext. Every failure is the same ErrAuthentication.
type Opener interface {
	Open(aad, body []byte) ([]byte, error)
}

// The functions of this package, with their contracts:
//
//	ParseHeader(b []byte) (Header, error)                 // length checked against len(b), version not judged
//	Parse(b []byte) (*Message, error)                     // header and clear payloads; stops at SK/SKF
//	(*Message).Encode() []byte                            // unprotected message, lengths and next-payload chain filled
//	(*Message).Seal(s Sealer) ([]byte, error)             // all payloads inside one SK payload
//	(*Message).Open(raw []byte, o Opener) error           // replaces the trailing *Encrypted by its inner payloads
//	EncodePayloads(ps []Payload) (first PayloadType, body []byte)
//	ParsePayloads(first PayloadType, body []byte) ([]Payload, error)
//	Get[T Payload](m *Message) (T, bool)                  // first payload of a type
//	(*Message).Notify(t NotifyType) (*Notify, bool)       // first notify of a type
//	(*Message).Notifies() []*Notify
//
// Errors: *Error{Notify NotifyType, Data []byte, Err error}: Notify is what the
// peer may be told (INVALID_SYNTAX, UNSUPPORTED_CRITICAL_PAYLOAD with the type
// byte, INVALID_MAJOR_VERSION), 0 to stay silent.
