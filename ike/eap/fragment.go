package eap

import (
	"encoding/binary"
	"errors"
)

// Flags of EAP-TLS (RFC 5216 §3.1).
const (
	flagLength = 0x80
	flagMore   = 0x40
	flagStart  = 0x20
)

// Bounds on what travels in fragments.
const (
	// FragmentLen is how much of a TLS message one packet of ours carries, in bytes.
	FragmentLen = 1000
	// maxTLSMessage bounds one side's flight, in bytes: a chain of certificates fits, RADIUS servers take
	// no more either.
	maxTLSMessage = 64 << 10
)

var errFragment = errors.New("eap: malformed EAP-TLS fragment")

// TLSStart is the data of the server's first request.
var TLSStart = []byte{flagStart}

// IsTLSStart says whether a request's data begins EAP-TLS.
func IsTLSStart(data []byte) bool { return len(data) > 0 && data[0]&flagStart != 0 }

// Fragments carries flights of TLS in type 13 packets (RFC 5216 §2.1.5). The zero value is ready.
type Fragments struct {
	in    []byte
	whole int // as the peer told; 0: it did not
	out   []byte
	first bool // the first fragment of out is still to be sent
	total int  // bytes of out
}

// Receive takes the data of a packet. whole says that a flight is complete: flight is it (empty for
// one that only acknowledges). Otherwise the packet is to be acknowledged with Next.
func (f *Fragments) Receive(data []byte) (flight []byte, whole bool, err error) {
	if len(data) == 0 {
		return nil, false, errFragment
	}
	flags, rest := data[0], data[1:]
	if flags&flagLength != 0 {
		if len(rest) < 4 {
			return nil, false, errFragment
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if n > maxTLSMessage || f.whole != 0 && int(n) != f.whole {
			return nil, false, errFragment
		}
		f.whole = int(n)
	}
	if flags&flagMore != 0 && len(rest) == 0 || len(f.in)+len(rest) > maxTLSMessage || f.whole != 0 && len(f.in)+len(rest) > f.whole {
		return nil, false, errFragment
	}
	f.in = append(f.in, rest...)
	if flags&flagMore != 0 {
		return nil, false, nil
	}
	if f.whole != 0 && len(f.in) != f.whole {
		return nil, false, errFragment
	}
	flight = f.in
	f.in, f.whole = nil, 0
	return flight, true, nil
}

// Send sets the flight that Next returns the fragments of.
func (f *Fragments) Send(flight []byte) {
	f.out, f.first, f.total = flight, true, len(flight)
}

// Pending says that fragments of our flight are left.
func (f *Fragments) Pending() bool { return len(f.out) > 0 }

// Next is the data of the next packet of ours: a fragment, or an empty one, which acknowledges.
func (f *Fragments) Next() []byte {
	n := min(len(f.out), FragmentLen)
	b := []byte{0}
	if f.first && n < f.total {
		b = binary.BigEndian.AppendUint32([]byte{flagLength}, uint32(f.total))
	}
	if n < len(f.out) {
		b[0] |= flagMore
	}
	b = append(b, f.out[:n]...)
	f.out, f.first = f.out[n:], false
	return b
}
