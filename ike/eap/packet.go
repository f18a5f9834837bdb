package eap

import (
	"encoding/binary"
	"fmt"
)

// Code of a packet (RFC 3748 §4).
type Code uint8

const (
	Request  Code = 1
	Response Code = 2
	Success  Code = 3
	Failure  Code = 4
)

// Type of a request or response (RFC 3748 §5).
type Type uint8

const (
	Identity     Type = 1
	Notification Type = 2
	NAK          Type = 3
	TLS          Type = 13
	MSCHAPv2     Type = 26
)

func (t Type) String() string {
	switch t {
	case 0:
		return "none"
	case Identity:
		return "Identity"
	case Notification:
		return "Notification"
	case NAK:
		return "Nak"
	case TLS:
		return "TLS"
	case MSCHAPv2:
		return "MSCHAPv2"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// MaxPacket bounds a packet, in bytes. A method's fragments are 1020 bytes at least (RFC 3748
// §3.1); RADIUS carries less than 4096 in all.
const MaxPacket = 4096

// MaxIdentity bounds an identity, in bytes (RFC 7542 §2.2).
const MaxIdentity = 253

// Packet is one EAP packet. Type and Data are of requests and responses only.
type Packet struct {
	Code Code
	ID   uint8
	Type Type
	Data []byte
}

// Parse decodes a packet of at most MaxPacket bytes. Nothing may follow it.
func Parse(b []byte) (Packet, error) {
	if len(b) < 4 || len(b) > MaxPacket || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return Packet{}, fmt.Errorf("eap: %d bytes are not one packet", len(b))
	}
	p := Packet{Code: Code(b[0]), ID: b[1]}
	switch p.Code {
	case Request, Response:
		if len(b) < 5 || b[4] == 0 {
			return Packet{}, fmt.Errorf("eap: code %d without a type", b[0])
		}
		p.Type, p.Data = Type(b[4]), b[5:]
	case Success, Failure:
		if len(b) != 4 {
			return Packet{}, fmt.Errorf("eap: code %d with data", b[0])
		}
	default:
		return Packet{}, fmt.Errorf("eap: code %d", b[0])
	}
	return p, nil
}

// Encode is the packet's wire form.
func (p Packet) Encode() []byte {
	b := []byte{byte(p.Code), p.ID, 0, 0}
	if p.Code == Request || p.Code == Response {
		b = append(append(b, byte(p.Type)), p.Data...)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}
