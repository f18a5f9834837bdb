package message

import (
	"encoding/binary"

	"tandem/internal/ipsec"
)

// HeaderLen is the length in bytes of the IKE header.
const HeaderLen = 28

const (
	majorVersion = 2

	flagInitiator = 0x08
	flagVersion   = 0x10
	flagResponse  = 0x20
)

// Header is the IKE header (RFC 7296 §3.1). Initiator says that the sender is
// the original initiator of the IKE SA; Response that this answers a request.
// The encoder always sends version 2.0 with the version flag clear.
type Header struct {
	SPIs         ipsec.IKESPIs
	NextPayload  PayloadType // filled by the encoder
	MajorVersion uint8       // 2
	MinorVersion uint8       // 0 when we send; ignored on receipt
	Exchange     ExchangeType
	Initiator    bool
	Response     bool
	Version      bool // the "higher version" flag
	MessageID    uint32
	Length       uint32 // bytes of the whole message; filled by the encoder
}

// ParseHeader decodes the IKE header of one whole datagram (without non-ESP
// marker). The length field must equal len(b) and be at most MaxMessageLen; the
// version and the SPIs are not judged. Its error says to stay silent.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, silent("datagram of %d bytes is shorter than an IKE header", len(b))
	}
	be := binary.BigEndian
	h := Header{
		SPIs:         ipsec.IKESPIs{I: ipsec.IKESPI(be.Uint64(b)), R: ipsec.IKESPI(be.Uint64(b[8:]))},
		NextPayload:  PayloadType(b[16]),
		MajorVersion: b[17] >> 4,
		MinorVersion: b[17] & 0x0f,
		Exchange:     ExchangeType(b[18]),
		Initiator:    b[19]&flagInitiator != 0,
		Version:      b[19]&flagVersion != 0,
		Response:     b[19]&flagResponse != 0,
		MessageID:    be.Uint32(b[20:]),
		Length:       be.Uint32(b[24:]),
	}
	if uint64(h.Length) != uint64(len(b)) {
		return Header{}, silent("header says %d bytes, datagram has %d", h.Length, len(b))
	}
	if len(b) > MaxMessageLen {
		return Header{}, silent("message of %d bytes is too long", len(b))
	}
	return h, nil
}

// put writes the header over the first HeaderLen bytes of b.
func (h *Header) put(b []byte) {
	be := binary.BigEndian
	be.PutUint64(b, uint64(h.SPIs.I))
	be.PutUint64(b[8:], uint64(h.SPIs.R))
	b[16] = uint8(h.NextPayload)
	b[17] = majorVersion << 4
	b[18] = uint8(h.Exchange)
	b[19] = 0
	if h.Initiator {
		b[19] |= flagInitiator
	}
	if h.Response {
		b[19] |= flagResponse
	}
	be.PutUint32(b[20:], h.MessageID)
	be.PutUint32(b[24:], h.Length)
}
