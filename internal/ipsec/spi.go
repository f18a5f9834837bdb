package ipsec

import "fmt"

// IKESPI identifies one end of an IKE SA (RFC 7296 §2.6). Zero means "not yet chosen".
type IKESPI uint64

// String prints the SPI as 16 hexadecimal digits.
func (s IKESPI) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// IKESPIs names an IKE SA: the initiator's and the responder's SPI.
type IKESPIs struct{ I, R IKESPI }

// String prints "SPIi/SPIr" as the diagnose output does.
func (s IKESPIs) String() string { return s.I.String() + "/" + s.R.String() }

// ESPSPI identifies one direction of a Child SA (RFC 4303 §2.1). Values up to 255 are reserved.
type ESPSPI uint32

// String prints the SPI as eight hexadecimal digits.
func (s ESPSPI) String() string { return fmt.Sprintf("%08x", uint32(s)) }

// Protocol identifiers (RFC 7296 §3.3.1).
const (
	ProtocolNone uint8 = 0
	ProtocolIKE  uint8 = 1
	ProtocolAH   uint8 = 2
	ProtocolESP  uint8 = 3
)
