package userspace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// cutAll reads a stream in pieces, whose lengths are those of sizes by turns.
func cutAll(f *frames, stream, sizes []byte) (msgs [][]byte, err error) {
	for i := 0; len(stream) > 0; i++ {
		n := len(stream)
		if len(sizes) > 0 {
			n = min(n, 1+int(sizes[i%len(sizes)]))
		}
		room := f.room()
		n = copy(room, stream[:min(n, len(room))])
		f.wrote(n)
		stream = stream[n:]
		for {
			m, err := f.next()
			if err != nil {
				return msgs, err
			}
			if m == nil {
				break
			}
			msgs = append(msgs, bytes.Clone(m))
		}
	}
	return msgs, nil
}

func TestFrames(t *testing.T) {
	var stream []byte
	want := [][]byte{{1}, bytes.Repeat([]byte{2}, 1000), bytes.Repeat([]byte{3}, 16000), {4, 5, 6}}
	stream = append(stream, streamPrefix...)
	for _, m := range want {
		var ok bool
		if stream, ok = appendFrame(stream, m[:1], m[1:]); !ok {
			t.Fatal("too long")
		}
	}
	for _, sizes := range [][]byte{nil, {0}, {0, 1, 6, 250}} {
		got, err := cutAll(&frames{prefix: true, longest: strangerFrame}, stream, sizes)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d messages, %v", len(got), err)
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("message %d has %d bytes", i, len(got[i]))
			}
		}
	}
	if b, ok := appendFrame(nil, nil, make([]byte, longestFrame-frameHead)); !ok {
		t.Error("the longest message does not go")
	} else if got, err := cutAll(&frames{longest: longestFrame}, b, nil); err != nil || len(got) != 1 {
		t.Error("the longest message does not come", err)
	}
	if _, ok := appendFrame(nil, nil, make([]byte, longestFrame)); ok {
		t.Error("a longer one goes")
	}
}

func TestFramesRefused(t *testing.T) {
	for name, c := range map[string]struct {
		stream string
		want   error
	}{
		"no prefix":         {"GET / HTTP/1.1", errPrefix},
		"half a prefix":     {"IKEUDP", errPrefix},
		"length 0":          {"IKETCP\x00\x00", errFrame},
		"length of nothing": {"IKETCP\x00\x02", errFrame},
		"too long":          {"IKETCP\xff\xff", errFrame},
	} {
		f := &frames{prefix: true, longest: strangerFrame}
		if _, err := cutAll(f, []byte(c.stream), []byte{0}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if len(f.buf) > firstRoom {
			t.Errorf("%s: %d bytes are kept", name, len(f.buf))
		}
	}
}

// FuzzFrames: however a stream comes, the same messages are cut out of it, of the lengths
// that it says, in bounded memory.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("IKETCP\x00\x07\x00\x00\x00\x00\x01\x00\x03\xff"), []byte{0, 3}, true)
	f.Add([]byte("\x00\x0aabcdefgh\x00\x02"), []byte{1}, false)
	f.Add([]byte("\x40\x00"), []byte{}, false)
	f.Add(bytes.Repeat([]byte("\x00\x05abc"), 1000), []byte{255, 7}, false)
	f.Fuzz(func(t *testing.T, stream, sizes []byte, prefix bool) {
		whole := &frames{prefix: prefix, longest: strangerFrame}
		got, err := cutAll(whole, stream, nil)
		parts := &frames{prefix: prefix, longest: strangerFrame}
		again, err2 := cutAll(parts, stream, sizes)
		if (err == nil) != (err2 == nil) || len(got) != len(again) {
			t.Fatalf("%d messages and %v, or %d and %v", len(got), err, len(again), err2)
		}
		rest := stream
		if prefix {
			rest = rest[min(len(rest), len(streamPrefix)):]
		}
		for i, m := range got {
			if n := int(binary.BigEndian.Uint16(rest)); n != len(m)+frameHead || !bytes.Equal(m, rest[frameHead:n]) || !bytes.Equal(m, again[i]) {
				t.Fatalf("message %d of %d bytes", i, len(m))
			}
			rest = rest[len(m)+frameHead:]
		}
		if len(whole.buf) > strangerFrame || len(parts.buf) > strangerFrame {
			t.Fatalf("%d bytes are kept", len(whole.buf))
		}
	})
}
