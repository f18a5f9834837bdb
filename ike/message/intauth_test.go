package message

import (
	"bytes"
	"testing"

	"tandem/internal/ipsec"
)

// clearSealer protects nothing: IV and ICV are zeros, blocks have 8 bytes.
type clearSealer struct{}

func (clearSealer) IVLen() int    { return 8 }
func (clearSealer) ICVLen() int   { return 16 }
func (clearSealer) BlockLen() int { return 8 }
func (clearSealer) Seal(aad, plain []byte) ([]byte, error) {
	return bytes.Join([][]byte{aad, make([]byte, 8), plain, make([]byte, 16)}, nil), nil
}
func (clearSealer) Open(_, body []byte) ([]byte, error) {
	return bytes.Clone(body[8 : len(body)-16]), nil
}

// TestIntAuthOctets: what IKE_INTERMEDIATE authenticates is the same for sender and receiver,
// in one piece and in fragments (RFC 9242 §3.3.2).
func TestIntAuthOctets(t *testing.T) {
	header := Header{SPIs: ipsec.IKESPIs{I: 0x0102030405060708, R: 0x1112131415161718}, MajorVersion: 2, Exchange: Intermediate, Initiator: true, MessageID: 5}
	ke := &KE{Group: 36, Data: bytes.Repeat([]byte{0xab}, 100)}
	want := unhex(t, "0102030405060708 1112131415161718 2e 20 2b 08 00000005 0000008c  22 00 0070  00 00 006c 0024 0000")
	want = append(want, ke.Data...)
	for _, limit := range []int{1000, 120} {
		m := &Message{Header: header, Payloads: []Payload{ke}}
		parts, err := m.SealFragments(clearSealer{}, limit)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.IntAuthOctets(); !bytes.Equal(got, want) {
			t.Errorf("limit %d, sent: %x, want %x", limit, got, want)
		}
		var first *Message
		var inner [][]byte
		for _, b := range parts {
			b[30-1] = 0x7f // the RESERVED byte counts as it came, of fragments that of the first
			x, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = x
			}
			if len(parts) == 1 {
				if err := x.Open(b, clearSealer{}); err != nil {
					t.Fatal(err)
				}
				break
			}
			p, err := x.OpenFragment(b, clearSealer{})
			if err != nil {
				t.Fatal(err)
			}
			inner = append(inner, p)
		}
		got := first
		if len(parts) > 1 {
			got = &Message{Header: first.Header}
			if err := got.Join(first, inner); err != nil {
				t.Fatal(err)
			}
		}
		reserved := bytes.Clone(want)
		reserved[29] = 0x7f
		if got := got.IntAuthOctets(); !bytes.Equal(got, reserved) {
			t.Errorf("limit %d, received: %x, want %x", limit, got, reserved)
		}
	}
	if other := (&Message{Header: Header{Exchange: IKEAuth}, Payloads: []Payload{ke}}); true {
		if _, err := other.Seal(clearSealer{}); err != nil || other.IntAuthOctets() != nil {
			t.Errorf("another exchange: %x, %v", other.IntAuthOctets(), err)
		}
	}
}

// TestIntAuthOctetsWithClearPayloads: what stands before the encrypted payload is covered.
func TestIntAuthOctetsWithClearPayloads(t *testing.T) {
	raw := unhex(t, "0102030405060708 1112131415161718 2b 20 2b 28 00000005 00000045  2b 00 0006 c1c2  2e 00 0005 c3"+
		"  00 00 001e 0000000000000000 00 01 00000000000000000000000000000000")
	m, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Open(raw, clearSealer{}); err != nil {
		t.Fatal(err)
	}
	want := unhex(t, "0102030405060708 1112131415161718 2b 20 2b 28 00000005 0000002b  2b 00 0006 c1c2  2e 00 0005 c3  00 00 0004")
	if got := m.IntAuthOctets(); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}
