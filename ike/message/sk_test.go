package message

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// fakeCipher is a cipher one can read: IV "iv", the plaintext as it is, and as
// ICV the length of the AAD in two bytes.
type fakeCipher struct{ block int }

func (c fakeCipher) IVLen() int    { return 2 }
func (c fakeCipher) ICVLen() int   { return 2 }
func (c fakeCipher) BlockLen() int { return max(c.block, 1) }

func (c fakeCipher) Seal(aad, plain []byte) ([]byte, error) {
	if len(plain)%c.BlockLen() != 0 {
		return nil, errors.New("not padded")
	}
	n := len(aad)
	out := append(append(aad, "iv"...), plain...)
	return append(out, byte(n>>8), byte(n)), nil
}

func (c fakeCipher) Open(aad, body []byte) ([]byte, error) {
	if len(body) < 4 || string(body[:2]) != "iv" ||
		!bytes.Equal(body[len(body)-2:], []byte{byte(len(aad) >> 8), byte(len(aad))}) {
		return nil, ErrAuthentication
	}
	return bytes.Clone(body[2 : len(body)-2]), nil
}

func skMessage(ps ...Payload) *Message {
	m := initMessage()
	m.Exchange, m.Payloads = IKEAuth, ps
	return m
}

func TestGoldenSK(t *testing.T) {
	for _, c := range []struct {
		name  string
		block int
		ps    []Payload
		want  string
	}{
		{
			"AEAD: the pad length alone", 1, []Payload{&VendorID{Data: []byte{0xaa}}},
			"1122334455667788 0000000000000000 2e 20 23 08 00000000 0000002a 2b 00 000e 6976 00 00 0005 aa 00 0020",
		},
		{
			"AEAD: empty", 1, nil,
			"1122334455667788 0000000000000000 2e 20 23 08 00000000 00000025 00 00 0009 6976 00 0020",
		},
		{
			"CBC: padded to the block", 8, []Payload{&VendorID{Data: []byte{0xaa}}},
			"1122334455667788 0000000000000000 2e 20 23 08 00000000 0000002c 2b 00 0010 6976 00 00 0005 aa 0000 02 0020",
		},
		{
			"CBC: just fits", 8, []Payload{&VendorID{Data: []byte{1, 2, 3}}},
			"1122334455667788 0000000000000000 2e 20 23 08 00000000 0000002c 2b 00 0010 6976 00 00 0007 010203 00 0020",
		},
		{
			"CBC: one byte too many", 8, []Payload{&VendorID{Data: []byte{1, 2, 3, 4}}},
			"1122334455667788 0000000000000000 2e 20 23 08 00000000 00000034 2b 00 0018 6976 00 00 0008 01020304 00000000000000 07 0020",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := skMessage(c.ps...)
			got, err := m.Seal(fakeCipher{c.block})
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, c.want); !bytes.Equal(got, want) {
				t.Errorf("sealed\n got %x\nwant %x", got, want)
			}
			parsed, err := Parse(got)
			if err != nil {
				t.Fatal(err)
			}
			first := NoNextPayload
			if len(c.ps) > 0 {
				first = c.ps[0].Type()
			}
			if d := same([]Payload{&Encrypted{First: first, Offset: 32}}, parsed.Payloads); d != "" {
				t.Errorf("before opening (-want +got):\n%s", d)
			}
			if err := parsed.Open(got, fakeCipher{c.block}); err != nil {
				t.Fatal(err)
			}
			if len(c.ps) == 0 && len(parsed.Payloads) == 0 {
				return
			}
			if d := same(c.ps, parsed.Payloads); d != "" {
				t.Errorf("after opening (-want +got):\n%s", d)
			}
		})
	}
}

// Clear payloads may stand before SK (RFC 7296 §3.14): they are covered and stay.
func TestSKBehindClearPayloads(t *testing.T) {
	raw := unhex(t, `1122334455667788 0000000000000000 2b 20 25 08 00000001 0000002f
		2e 00 0005 aa   28 00 000e  6976 00000005 bb 00 0025`)
	raw[33] = byte(TypeVendorID)
	m, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Open(raw, fakeCipher{}); err != nil {
		t.Fatal(err)
	}
	want := []Payload{&VendorID{Data: []byte{0xaa}}, &VendorID{Data: []byte{0xbb}}}
	if d := same(want, m.Payloads); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestOpenFailures(t *testing.T) {
	inner := func(first PayloadType, plain string) []byte {
		p := unhex(t, plain)
		m := skMessage()
		m.NextPayload, m.Length = TypeSK, uint32(HeaderLen+4+2+len(p)+2)
		w := writer{b: make([]byte, HeaderLen)}
		m.Header.put(w.b)
		w.u8(uint8(first))
		w.u8(0)
		w.u16(uint16(4 + 2 + len(p) + 2))
		raw, err := fakeCipher{}.Seal(w.b, p)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, c := range []struct {
		name   string
		raw    []byte
		notify NotifyType
		data   []byte
		auth   bool
	}{
		{"no pad length", inner(0, ""), InvalidSyntax, nil, false},
		{"padding longer than the content", inner(TypeVendorID, "00 00 0004 05"), InvalidSyntax, nil, false},
		{"padding eats the payload", inner(TypeVendorID, "00 00 0005 01 01"), InvalidSyntax, nil, false},
		{"padding 255 of 256", inner(0, fmt.Sprintf("%0510x ff", 0)), 0, nil, false},
		{"unknown critical payload", inner(77, "00 80 0004 00"), UnsupportedCriticalPayload, []byte{77}, false},
		{"SK inside SK", inner(TypeSK, "00 00 0004 00"), InvalidSyntax, nil, false},
		{"wrong ICV", func() []byte { b := inner(0, "00"); b[len(b)-1]++; return b }(), 0, nil, true},
	} {
		m, err := Parse(c.raw)
		if err != nil {
			t.Fatal(c.name, err)
		}
		err = m.Open(c.raw, fakeCipher{})
		if c.name == "padding 255 of 256" {
			if err != nil || len(m.Payloads) != 0 {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		wantError(t, c.name, err, c.notify, c.data...)
		if errors.Is(err, ErrAuthentication) != c.auth {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, ok := Get[*Encrypted](m); !ok || len(m.Payloads) != 1 {
			t.Errorf("%s: the message changed to %v", c.name, m.Payloads)
		}
	}

	wantError(t, "no SK", initMessage().Open(unhex(t, initRequest), fakeCipher{}), 0)
	wantError(t, "empty message", (&Message{}).Open(nil, fakeCipher{}), 0)
	wantError(t, "another datagram", skMessage(&Encrypted{Offset: 100}).Open(make([]byte, 28), fakeCipher{}), 0)
	_, err := initMessage().OpenFragment(nil, fakeCipher{})
	wantError(t, "no SKF", err, 0)
}

// Clear and inner payloads together keep to the bound.
func TestOpenBound(t *testing.T) {
	var ps []Payload
	for range MaxPayloads {
		ps = append(ps, &VendorID{})
	}
	raw, err := skMessage(ps...).Seal(fakeCipher{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	m.Payloads = append([]Payload{&VendorID{}}, m.Payloads...)
	wantError(t, "65 payloads", m.Open(raw, fakeCipher{}), InvalidSyntax)
}

func TestSealErrors(t *testing.T) {
	failed := errors.New("no IV left")
	if _, err := skMessage().Seal(brokenSealer{err: failed}); !errors.Is(err, failed) {
		t.Errorf("the sealer's error got lost: %v", err)
	}
	if _, err := skMessage().Seal(brokenSealer{}); err == nil {
		t.Error("a message whose length lies was sent")
	}
	if _, err := skMessage(&VendorID{Data: make([]byte, 200)}).SealFragments(brokenSealer{err: failed}, 100); !errors.Is(err, failed) {
		t.Errorf("the sealer's error got lost: %v", err)
	}
}

type brokenSealer struct {
	fakeCipher
	err error
}

func (s brokenSealer) Seal(aad, _ []byte) ([]byte, error) { return aad, s.err }

func TestFragments(t *testing.T) {
	ps := []Payload{&ID{IDType: IDFQDN, Data: []byte("gw")}, &Cert{Encoding: 4, Data: bytes.Repeat([]byte{0xcc}, 3000)}, &VendorID{}}
	for _, block := range []int{1, 8, 16} {
		for _, limit := range []int{64, 100, 576, 1280, 1281, 1282, 1288} {
			c := fakeCipher{block}
			out, err := skMessage(ps...).SealFragments(c, limit)
			if err != nil {
				t.Fatalf("block %d, limit %d: %v", block, limit, err)
			}
			var joined []byte
			var first PayloadType
			for i, raw := range out {
				if len(raw) > limit {
					t.Errorf("block %d, limit %d: fragment of %d bytes", block, limit, len(raw))
				}
				if i+1 < len(out) && len(raw) <= limit-block {
					t.Errorf("block %d, limit %d: fragment of %d bytes wastes a block", block, limit, len(raw))
				}
				m, err := Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				f, ok := Get[*EncryptedFragment](m)
				if !ok || int(f.Number) != i+1 || int(f.Total) != len(out) || (f.First != 0) != (i == 0) || f.Offset != 36 {
					t.Fatalf("fragment %d: %+v", i, f)
				}
				if i == 0 {
					first = f.First
				}
				part, err := m.OpenFragment(raw, c)
				if err != nil {
					t.Fatal(err)
				}
				joined = append(joined, part...)
				wantError(t, "fragment opened as a message", m.Open(raw, c), 0)
			}
			got, err := ParsePayloads(first, joined)
			if err != nil {
				t.Fatal(err)
			}
			if d := same(ps, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		}
	}
	// What fits is not fragmented.
	whole, err := skMessage(ps...).Seal(fakeCipher{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := skMessage(ps...).SealFragments(fakeCipher{}, len(whole))
	if err != nil || len(out) != 1 || !bytes.Equal(out[0], whole) {
		t.Errorf("%d fragments, %v", len(out), err)
	}
	out, err = skMessage(ps...).SealFragments(fakeCipher{}, len(whole)-1)
	if err != nil || len(out) != 2 {
		t.Errorf("%d fragments, %v", len(out), err)
	}
	if _, err := skMessage(ps...).SealFragments(fakeCipher{16}, 50); err == nil {
		t.Error("fragments without room for a block")
	}
}

func TestMalformedFragments(t *testing.T) {
	for name, body := range map[string]string{
		"number 0":        "0000 0001",
		"total 0":         "0001 0000",
		"number beyond":   "0003 0002",
		"header cut off":  "0001 00",
		"header not here": "",
	} {
		b := append(unhex(t, "1122334455667788 0000000000000000 35 20 23 08 00000000 00000000"), goldenChain{body}.bytes(t)...)
		b[27] = byte(len(b))
		_, err := Parse(b)
		wantError(t, name, err, InvalidSyntax)
	}
	b := append(unhex(t, "1122334455667788 0000000000000000 35 20 23 08 00000000 00000000"), goldenChain{"0002 0002 aa"}.bytes(t)...)
	b[27], b[28] = byte(len(b)), byte(TypeSA)
	m, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := same([]Payload{&EncryptedFragment{Number: 2, Total: 2, Offset: 36}}, m.Payloads); d != "" {
		t.Errorf("a later fragment names no first payload (-want +got):\n%s", d)
	}
}
