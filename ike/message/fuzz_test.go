package message

import (
	"bytes"
	"errors"
	"testing"

	"tandem/internal/ipsec"
)

func seedMessages(t testing.TB) [][]byte {
	var seeds [][]byte
	add := func(b []byte, err error) {
		if err != nil || b == nil {
			t.Fatal("seed not encoded", err)
		}
		seeds = append(seeds, b)
	}
	add(initMessage().Encode(), nil)
	for _, g := range golden {
		add((&Message{Header: Header{Exchange: CreateChildSA, Response: true}, Payloads: []Payload{g.payload}}).Encode(), nil)
		add(skMessage(g.payload).Seal(fakeCipher{8}))
	}
	out, err := skMessage(&VendorID{Data: make([]byte, 100)}).SealFragments(fakeCipher{}, 80)
	for _, b := range out {
		add(b, err)
	}
	return seeds
}

// checkError fails for an error that does not say who is told.
func checkError(t *testing.T, err error) {
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is not *Error: %v", err, err)
	}
	switch e.Notify {
	case 0, InvalidSyntax, InvalidMajorVersion:
		if e.Data != nil {
			t.Fatalf("%v with data %x", e, e.Data)
		}
	case UnsupportedCriticalPayload:
		if len(e.Data) != 1 {
			t.Fatalf("%v with data %x", e, e.Data)
		}
	default:
		t.Fatalf("the codec tells the peer %s", e.Notify)
	}
}

// checkRoundTrip encodes payloads and decodes them to the same.
func checkRoundTrip(t *testing.T, ps []Payload) {
	first, b := EncodePayloads(ps)
	if b == nil {
		t.Fatalf("decoded, but not encoded: %v", ps)
	}
	again, err := ParsePayloads(first, b)
	if err != nil {
		t.Fatalf("not decoded again: %v", err)
	}
	if len(ps) == 0 && len(again) == 0 {
		return // nil or empty: no payload either way
	}
	if d := same(ps, again); d != "" {
		t.Fatalf("changed (-first +again):\n%s", d)
	}
}

// decode → encode → decode gives the same message.
func FuzzParse(f *testing.F) {
	for _, b := range seedMessages(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		m, err := Parse(b)
		if !bytes.Equal(b, before) {
			t.Fatal("Parse changed its input")
		}
		if err != nil {
			checkError(t, err)
			return
		}
		switch p := m.last().(type) {
		case *Encrypted:
			if p.Offset > len(b) || p.Offset < HeaderLen+payloadHeaderLen {
				t.Fatalf("offset %d of %d", p.Offset, len(b))
			}
			m.Payloads = m.Payloads[:len(m.Payloads)-1]
		case *EncryptedFragment:
			if p.Offset > len(b) || p.Number == 0 || p.Number > p.Total {
				t.Fatalf("%+v of %d", p, len(b))
			}
			m.Payloads = m.Payloads[:len(m.Payloads)-1]
		}
		out := m.Encode()
		if out == nil {
			t.Fatalf("decoded, but not encoded: %v", m.Payloads)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("not decoded again: %v", err)
		}
		m.MinorVersion, m.Version = 0, false // always sent so
		if len(m.Payloads) == 0 {
			m.Payloads = nil
		}
		if d := same(m, again); d != "" {
			t.Fatalf("changed (-first +again):\n%s", d)
		}
	})
}

func FuzzParsePayloads(f *testing.F) {
	for _, g := range golden {
		first, b := EncodePayloads([]Payload{g.payload, &VendorID{Data: []byte{1}}})
		f.Add(uint8(first), b)
		f.Add(uint8(first), b[:len(b)-1])
	}
	f.Add(uint8(TypeSA), []byte{0, 0, 0, 20, 0, 0, 0, 16, 1, 9, 2, 0, 0xab, 0xcd, 0, 0, 0, 8, 2, 0})
	f.Fuzz(func(t *testing.T, first uint8, b []byte) {
		ps, err := ParsePayloads(PayloadType(first), b)
		if err != nil {
			checkError(t, err)
			return
		}
		checkRoundTrip(t, ps)
		for _, p := range ps { // what the engine may rely on without looking
			switch p := p.(type) {
			case *SA:
				for _, prop := range p.Proposals {
					if n := len(prop.SPI); prop.Protocol == ipsec.ProtocolESP && n != 4 || prop.Protocol == ipsec.ProtocolIKE && n != 0 && n != 8 {
						t.Fatalf("SPI of %d bytes for protocol %d", n, prop.Protocol)
					}
				}
			case *Nonce:
				if len(p.Data) < MinNonceLen || len(p.Data) > MaxNonceLen {
					t.Fatalf("nonce of %d bytes", len(p.Data))
				}
			case *Notify:
				if n := len(p.SPI); n != 0 && n != 4 && n != 8 {
					t.Fatalf("notify with an SPI of %d bytes", n)
				}
			case *TS:
				for _, s := range p.Selectors {
					if s.Start.BitLen() != s.End.BitLen() || s.End.Less(s.Start) {
						t.Fatalf("selector %s", s)
					}
				}
			}
		}
	})
}

// FuzzOpen opens datagrams with a cipher that hides nothing, so that padding and
// inner payloads are the fuzzer's own.
func FuzzOpen(f *testing.F) {
	for _, b := range seedMessages(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		if _, ok := m.last().(*EncryptedFragment); ok {
			if _, err := m.OpenFragment(b, fakeCipher{}); err != nil {
				checkError(t, err)
			}
			return
		}
		n := len(m.Payloads)
		if err := m.Open(b, fakeCipher{}); err != nil {
			checkError(t, err)
			if len(m.Payloads) != n {
				t.Fatal("a failure changed the message")
			}
			return
		}
		checkRoundTrip(t, m.Payloads)
		sealed, err := m.Seal(fakeCipher{16})
		if err != nil {
			return // 15 bytes of padding may be too much
		}
		again, err := Parse(sealed)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Open(sealed, fakeCipher{16}); err != nil {
			t.Fatal(err)
		}
		if d := same(m.Payloads, again.Payloads); d != "" && len(m.Payloads)+len(again.Payloads) > 0 {
			t.Fatalf("changed (-first +again):\n%s", d)
		}
	})
}

// FuzzJoin puts a message together from fragments whose contents are the fuzzer's own.
func FuzzJoin(f *testing.F) {
	first, inner := EncodePayloads([]Payload{&VendorID{Data: []byte("vendor")}, &Nonce{Data: make([]byte, 32)}})
	f.Add(byte(first), inner, byte(3))
	f.Add(byte(0), []byte{}, byte(1))
	f.Add(byte(0), []byte{1}, byte(1))
	f.Add(byte(TypeSKF), []byte{0, 0, 0, 8, 0, 1, 0, 1}, byte(2))
	f.Add(byte(60), []byte{0, 0x80, 0, 4}, byte(2))
	f.Fuzz(func(t *testing.T, first byte, inner []byte, n byte) {
		var parts [][]byte
		for left, size := inner, len(inner)/(int(n)+1)+1; len(left) > 0; left = left[len(parts[len(parts)-1]):] {
			parts = append(parts, left[:min(size, len(left))])
		}
		skf := &Message{Payloads: []Payload{&EncryptedFragment{First: PayloadType(first), Number: 1, Total: uint16(len(parts))}}}
		var m Message
		err := m.Join(skf, parts)
		if whole, werr := ParsePayloads(PayloadType(first), inner); (err == nil) != (werr == nil) || same(whole, m.Payloads) != "" && len(whole) > 0 {
			t.Fatalf("joined %v, %v; whole %v, %v", m.Payloads, err, whole, werr)
		}
		if err != nil {
			checkError(t, err)
			return
		}
		checkRoundTrip(t, m.Payloads)
	})
}

// FuzzSplit cuts bytes into datagrams: nothing is lost, and what is one stays one.
func FuzzSplit(f *testing.F) {
	seeds := seedMessages(f)
	for _, b := range seeds {
		f.Add(b, []byte{})
		f.Add(b, seeds[0])
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		parts := Split(bytes.Join([][]byte{a, b}, nil))
		if !bytes.Equal(bytes.Join(parts, nil), bytes.Join([][]byte{a, b}, nil)) {
			t.Fatal("bytes are lost")
		}
		if _, err := ParseHeader(a); err == nil && (len(parts) == 0 || !bytes.Equal(parts[0], a)) {
			t.Fatal("the first datagram is another one")
		}
		for _, p := range parts {
			if len(p) == 0 {
				t.Fatal("an empty datagram")
			}
		}
	})
}
