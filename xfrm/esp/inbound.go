package esp

import (
	"encoding/binary"

	"tandem/internal/ipsec"
)

// Inbound opens packets of one SA. It is not safe for concurrent use.
type Inbound struct {
	t   *transform
	spi ipsec.ESPSPI
}

// NewInbound builds the opening end of a Child SA.
func NewInbound(c *ipsec.ChildSA) (*Inbound, error) {
	l, err := LayoutOf(c.Suite)
	if err != nil {
		return nil, err
	}
	t, err := newTransform(c.Suite, l, c.EncrIn.Bytes(), c.SaltIn.Bytes(), c.IntegIn.Bytes(), true)
	if err != nil {
		return nil, err
	}
	return &Inbound{t: t, spi: c.SPIIn}, nil
}

// SPI reads the SPI of an ESP packet; ok is false when there is no whole header.
func SPI(pkt []byte) (spi ipsec.ESPSPI, ok bool) {
	if len(pkt) < espHeaderLen {
		return 0, false
	}
	return ipsec.ESPSPI(binary.BigEndian.Uint32(pkt)), true
}

// Open verifies and decrypts pkt in place. It returns the payload (a part of
// pkt), its protocol and the whole sequence number. w is consulted before the
// packet is opened and marked after its ICV and padding have proved right; pkt is
// garbage after an error. The errors are ErrReplayed and ErrInvalid.
func (in *Inbound) Open(w *Window, pkt []byte) (payload []byte, nextHeader uint8, seq uint64, err error) {
	if spi, ok := SPI(pkt); !ok || spi != in.spi {
		return nil, 0, 0, ErrInvalid
	}
	low := binary.BigEndian.Uint32(pkt[4:])
	seq = uint64(low)
	if in.t.esn {
		var ok bool
		if seq, ok = w.Infer(low); !ok {
			return nil, 0, 0, ErrReplayed
		}
	}
	if !w.Check(seq) {
		return nil, 0, seq, ErrReplayed
	}
	pt, ok := in.t.open(pkt, seq)
	if !ok {
		return nil, 0, seq, ErrInvalid
	}
	n := len(pt) - 2
	pad := int(pt[n])
	if pad > n {
		return nil, 0, seq, ErrInvalid
	}
	var wrong byte
	for i := range pad {
		wrong |= pt[n-pad+i] ^ byte(i+1)
	}
	if wrong != 0 {
		return nil, 0, seq, ErrInvalid
	}
	w.Accept(seq)
	return pt[:n-pad], pt[n+1], seq, nil
}
