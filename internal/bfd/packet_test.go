package bfd

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"
)

// A packet laid out by hand after RFC 5880 §4.1.
var upPacket = Packet{
	Diag: DiagNeighbourDown, State: Up, Poll: true, Independent: true, DetectMult: 3, MyDiscr: 0x01020304, YourDiscr: 0x05060708,
	DesiredMinTx: 50 * time.Millisecond, RequiredMinRx: 100 * time.Millisecond, RequiredMinEchoRx: time.Microsecond,
}

const upBytes = "23e8031801020304050607080000c350000186a000000001"

func TestPacketLayout(t *testing.T) {
	if got := hex.EncodeToString(upPacket.Append(nil)); got != upBytes {
		t.Errorf("written as\n%s, want\n%s", got, upBytes)
	}
	b, _ := hex.DecodeString(upBytes)
	if p, err := Decode(b); err != nil || p != upPacket {
		t.Errorf("read as %+v, %v", p, err)
	}
}

// RFC 5880 §6.8.6: what must be dropped before a session is looked for.
func TestDecodeRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(b []byte) []byte
		want error
	}{
		{"short", func(b []byte) []byte { return b[:23] }, ErrShort},
		{"version 0", func(b []byte) []byte { b[0] &= 0x1f; return b }, ErrVersion},
		{"length too small", func(b []byte) []byte { b[3] = 23; return b }, ErrLength},
		{"length beyond the packet", func(b []byte) []byte { b[3] = 25; return b }, ErrLength},
		{"authenticated and 24 long", func(b []byte) []byte { b[1] |= 4; return b }, ErrLength},
		{"authenticated", func(b []byte) []byte { b[1] |= 4; b[3] = 26; return append(b, 1, 2) }, ErrAuth},
		{"multiplier 0", func(b []byte) []byte { b[2] = 0; return b }, ErrDetectMult},
		{"multipoint", func(b []byte) []byte { b[1] |= 1; return b }, ErrMultipoint},
		{"my discriminator 0", func(b []byte) []byte { clear(b[4:8]); return b }, ErrDiscriminator},
		{"your discriminator 0 and up", func(b []byte) []byte { clear(b[8:12]); return b }, ErrDiscriminator},
	} {
		if _, err := Decode(tc.edit(upPacket.Append(nil))); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	b := upPacket.Append(nil)
	b[1] = byte(Down) << 6
	clear(b[8:12])
	if _, err := Decode(b); err != nil {
		t.Errorf("the first packet of a session: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := hex.DecodeString(upBytes)
	f.Add(b)
	f.Add(b[:20])
	f.Add(append(bytes.Clone(b), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode(b)
		if err != nil {
			return
		}
		if q, err := Decode(p.Append(nil)); err != nil || q != p {
			t.Errorf("%+v became %+v, %v", p, q, err)
		}
		now := time.Unix(0, 0)
		s := New(now, Config{Discr: p.YourDiscr | 1, DesiredMinTx: time.Millisecond, RequiredMinRx: time.Millisecond, DetectMult: 3, Rand: func(n uint32) uint32 { return n - 1 }})
		for range 3 {
			s.HandlePacket(now, p)
			now = now.Add(time.Millisecond)
			s.HandleTimeout(now)
		}
		n := 0
		for _, ok := s.Poll(); ok; _, ok = s.Poll() {
			n++
		}
		if n > 20 {
			t.Errorf("three packets had %d effects", n)
		}
	})
}
