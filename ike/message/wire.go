package message

import (
	"encoding/binary"
	"errors"
)

var (
	errCutOff   = errors.New("cut off")
	errTooLarge = errors.New("too large to encode")
)

// reader takes big-endian fields off the front of b. After the first read beyond
// the end it returns zeros and keeps err.
type reader struct {
	b   []byte
	err error
}

func (r *reader) len() int { return len(r.b) }

// bytes returns the next n bytes, nil for none; its capacity ends with it.
func (r *reader) bytes(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.err, r.b = errCutOff, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) rest() []byte { return r.bytes(len(r.b)) }

func (r *reader) skip(n int) { r.bytes(n) }

func (r *reader) u8() uint8 {
	if v := r.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if v := r.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if v := r.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// writer appends big-endian fields to b and keeps the first error.
type writer struct {
	b   []byte
	err error
}

func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) u8(v uint8)     { w.b = append(w.b, v) }
func (w *writer) u16(v uint16)   { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32)   { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) bytes(v []byte) { w.b = append(w.b, v...) }
func (w *writer) zeros(n int)    { w.b = append(w.b, make([]byte, n)...) }

// count8 writes a one-byte count or size that must be at most limit.
func (w *writer) count8(n, limit int) {
	if n > limit || n > 255 {
		w.fail(errTooLarge)
	}
	w.u8(uint8(n))
}

// setLen16 writes the length of what follows start into the two bytes at start+2:
// the place that payloads, proposals, transforms and selectors have in common.
func (w *writer) setLen16(start int) {
	n := len(w.b) - start
	if n > 65535 {
		w.fail(errTooLarge)
		return
	}
	binary.BigEndian.PutUint16(w.b[start+2:], uint16(n))
}

// chain appends payloads with their generic headers and returns the first one's type.
func (w *writer) chain(ps []Payload) PayloadType {
	if len(ps) > MaxPayloads {
		w.fail(errTooLarge)
		return NoNextPayload
	}
	for i, p := range ps {
		start := len(w.b)
		next := NoNextPayload
		if i+1 < len(ps) {
			next = ps[i+1].Type()
		}
		w.u8(uint8(next))
		w.zeros(3)
		p.encode(w)
		w.setLen16(start)
	}
	if len(ps) == 0 {
		return NoNextPayload
	}
	return ps[0].Type()
}
