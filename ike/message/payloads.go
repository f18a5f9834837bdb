package message

import "tandem/internal/ipsec"

// SA offers or accepts proposals (RFC 7296 §3.3).
type SA struct{ Proposals []ipsec.Proposal }

// KE carries a public key-exchange value (RFC 7296 §3.4).
type KE struct {
	Group ipsec.TransformID
	Data  []byte
}

// ID is an IDi or IDr payload (RFC 7296 §3.5). Responder selects IDr.
type ID struct {
	Responder bool
	IDType    IDType
	Data      []byte
}

// Cert is a CERT payload (RFC 7296 §3.6); CertReq a CERTREQ (§3.7).
type Cert struct {
	Encoding uint8
	Data     []byte
}
type CertReq struct {
	Encoding uint8
	Data     []byte
}

// Auth is an AUTH payload (RFC 7296 §3.8).
type Auth struct {
	Method AuthMethod
	Data   []byte
}

// Nonce is Ni or Nr (RFC 7296 §3.9): 16 to 256 bytes.
type Nonce struct{ Data []byte }

// Notify is a notification (RFC 7296 §3.10). SPI is empty, 4 or 8 bytes.
type Notify struct {
	Protocol   uint8
	SPI        []byte
	NotifyType NotifyType
	Data       []byte
}

// Delete names deleted SAs (RFC 7296 §3.11): for ESP the SPIs at which the
// sender receives; empty for the IKE SA itself.
type Delete struct {
	Protocol uint8
	SPIs     []ipsec.ESPSPI
}

// VendorID is opaque (RFC 7296 §3.12).
type VendorID struct{ Data []byte }

// TS is TSi or TSr (RFC 7296 §3.13). Responder selects TSr.
type TS struct {
	Responder bool
	Selectors []ipsec.TrafficSelector
}

// CP is a configuration payload (RFC 7296 §3.15).
type CP struct {
	CFGType    uint8
	Attributes []CPAttribute
}
type CPAttribute struct {
	Type  uint16
	Value []byte
}

// EAP carries one EAP packet (RFC 7296 §3.16).
type EAP struct{ Data []byte }

// Encrypted is an SK payload that has not been opened (RFC 7296 §3.14).
// Offset is where its body (IV) begins in the raw message.
type Encrypted struct {
	First  PayloadType // of the inner payloads
	Offset int
}

// EncryptedFragment is an SKF payload (RFC 7383 §2.5).
type EncryptedFragment struct {
	First         PayloadType // non-zero in fragment 1 only
	Number, Total uint16
	Offset        int
}

// Unknown is a payload of a type we do not know; when Critical, decoding has failed already.
type Unknown struct {
	PayloadType PayloadType
	Body        []byte
}
