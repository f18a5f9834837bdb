package userspace

import (
	"encoding/binary"
	"errors"
)

// streamPrefix is what whoever opens a connection sends first (RFC 9329 §4).
const streamPrefix = "IKETCP"

const (
	frameHead     = 2         // bytes of the length in front of each message, which counts itself (§3)
	longestFrame  = 1<<16 - 1 // with its head
	firstRoom     = 2 << 10   // bytes of buffer of a connection that nothing came on
	ordinaryRoom  = 64 << 10  // of one that belongs to an SA
	strangerFrame = 16 << 10  // the longest message while nobody is authenticated
)

var (
	errPrefix = errors.New("the stream does not begin with IKETCP")
	errFrame  = errors.New("a message of no or of too great length")
)

// frames cuts a stream into messages (RFC 9329 §3). Messages are parts of its buffer, and
// good until room is called again.
type frames struct {
	buf      []byte
	from, to int  // what of buf is not cut yet
	prefix   bool // it is still to come
	longest  int  // bytes that a message may have with its head
}

// room is where to read the next bytes of the stream to; it is never empty.
func (f *frames) room() []byte {
	need := firstRoom
	if n, ok := f.head(); ok {
		need = max(need, n)
	}
	if f.longest == longestFrame {
		need = max(need, ordinaryRoom)
	}
	switch {
	case len(f.buf) < need:
		b := make([]byte, need)
		f.to = copy(b, f.buf[f.from:f.to])
		f.buf, f.from = b, 0
	case f.from > 0:
		f.to = copy(f.buf, f.buf[f.from:f.to])
		f.from = 0
	}
	return f.buf[f.to:]
}

// wrote says how much of room was filled.
func (f *frames) wrote(n int) { f.to += n }

// head is the length of the next message with its head, if that has come.
func (f *frames) head() (int, bool) {
	if f.prefix || f.to-f.from < frameHead {
		return 0, false
	}
	return int(binary.BigEndian.Uint16(f.buf[f.from:])), true
}

// next is the next message without its head, nil while more has to come. After an error
// the stream is of no use any more.
func (f *frames) next() ([]byte, error) {
	if f.prefix {
		have := f.buf[f.from:f.to]
		if n := min(len(have), len(streamPrefix)); string(have[:n]) != streamPrefix[:n] {
			return nil, errPrefix
		}
		if len(have) < len(streamPrefix) {
			return nil, nil
		}
		f.from += len(streamPrefix)
		f.prefix = false
	}
	n, ok := f.head()
	if !ok {
		return nil, nil
	}
	if n <= frameHead || n > f.longest {
		return nil, errFrame
	}
	if f.to-f.from < n {
		return nil, nil
	}
	m := f.buf[f.from+frameHead : f.from+n]
	f.from += n
	return m, nil
}

// appendFrame puts a message of two parts behind b; false: it is too long.
func appendFrame(b, first, second []byte) ([]byte, bool) {
	n := frameHead + len(first) + len(second)
	if n > longestFrame {
		return b, false
	}
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	return append(append(b, first...), second...), true
}
