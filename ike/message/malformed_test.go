package message

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"tandem/internal/ipsec"
)

// wantError checks what the peer would be told.
func wantError(t *testing.T, what string, err error, notify NotifyType, data ...byte) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%s: got %v, want *Error", what, err)
		return
	}
	if e.Notify != notify || !bytes.Equal(e.Data, data) {
		t.Errorf("%s: tells the peer %s %x, want %s %x (%v)", what, e.Notify, e.Data, notify, data, err)
	}
}

func TestMalformedPayloads(t *testing.T) {
	repeat := func(n int, s string) string { return strings.Repeat(s, n) }
	// transform, proposal and so on that are right by themselves
	const tr = "00 00 0008 02 00 0005"
	for _, c := range []struct {
		name string
		t    PayloadType
		body string // of the payload; its header is added
	}{
		{"SA without proposals", TypeSA, ""},
		{"SA, proposal header cut off", TypeSA, "00 00 00"},
		{"SA, proposal length 0", TypeSA, "00 00 0000 01 01 00 01" + tr},
		{"SA, proposal shorter than its header", TypeSA, "00 00 0007 01 01 00"},
		{"SA, proposal longer than the payload", TypeSA, "00 00 0011 01 01 00 01" + tr},
		{"SA, bytes after the last proposal", TypeSA, "00 00 0010 01 01 00 01" + tr + "00"},
		{"SA, more proposals announced", TypeSA, "02 00 0010 01 01 00 01" + tr},
		{"SA, wrong mark of the last proposal", TypeSA, "03 00 0010 01 01 00 01" + tr},
		{"SA, two last proposals", TypeSA, "00 00 0010 01 01 00 01" + tr + "00 00 0010 02 01 00 01" + tr},
		{"SA, SPI beyond the proposal", TypeSA, "00 00 000c 01 03 04 00"},
		{"SA, short SPI for ESP", TypeSA, "00 00 0013 01 03 03 01 010203" + tr},
		{"SA, no SPI for ESP", TypeSA, "00 00 0010 01 03 00 01" + tr},
		{"SA, no SPI for AH", TypeSA, "00 00 0010 01 02 00 01" + tr},
		{"SA, SPI of 4 bytes for IKE", TypeSA, "00 00 0014 01 01 04 01 01020304" + tr},
		{"SA, fewer transforms than announced", TypeSA, "00 00 0010 01 01 00 02" + tr},
		{"SA, more transforms than announced", TypeSA, "00 00 0018 01 01 00 01 03 00 0008 02 00 0005" + tr},
		{"SA, transform cut off", TypeSA, "00 00 000e 01 01 00 01 00 00 0008 02 00"},
		{"SA, transform length 4", TypeSA, "00 00 000c 01 01 00 01 00 00 0004"},
		{"SA, transform length 3", TypeSA, "00 00 000c 01 01 00 01 00 00 0003"},
		{"SA, wrong mark of the last transform", TypeSA, "00 00 0010 01 01 00 01 02 00 0008 02 00 0005"},
		{"SA, attribute cut off", TypeSA, "00 00 0012 01 01 00 01 00 00 000a 01 00 000c 800e"},
		{"SA, long attribute beyond the transform", TypeSA, "00 00 0014 01 01 00 01 00 00 000c 01 00 000c 000e 0001"},
		{"SA, 33 proposals", TypeSA, repeat(32, "02 00 0010 01 01 00 01"+tr) + "00 00 0010 01 01 00 01" + tr},
		{"SA, 65 transforms", TypeSA, "00 00 0210 01 01 00 41" + repeat(64, "03 00 0008 02 00 0005") + tr},

		{"KE, empty", TypeKE, ""},
		{"KE, cut off", TypeKE, "000e 00"},
		{"IDi, cut off", TypeIDi, "02 0000"},
		{"IDr, empty", TypeIDr, ""},
		{"CERT, empty", TypeCERT, ""},
		{"CERTREQ, empty", TypeCERTREQ, ""},
		{"AUTH, cut off", TypeAUTH, "02 0000"},
		{"nonce of 15 bytes", TypeNonce, repeat(15, "00")},
		{"nonce of 257 bytes", TypeNonce, repeat(257, "00")},
		{"empty nonce", TypeNonce, ""},
		{"N, cut off", TypeNotify, "00 00 40"},
		{"N, SPI cut off", TypeNotify, "03 04 4009 010203"},
		{"N, SPI of 3 bytes", TypeNotify, "03 03 4009 010203"},
		{"N, SPI of 16 bytes", TypeNotify, "03 10 4009" + repeat(16, "01")},
		{"D, cut off", TypeDelete, "03 04 00"},
		{"D for IKE with an SPI", TypeDelete, "01 08 0001 0102030405060708"},
		{"D for IKE with a number of SPIs", TypeDelete, "01 00 0001"},
		{"D for ESP with SPI size 0", TypeDelete, "03 00 0000"},
		{"D for ESP with SPI size 8", TypeDelete, "03 08 0001 0102030405060708"},
		{"D for no protocol", TypeDelete, "00 04 0001 01020304"},
		{"D, fewer SPIs than announced", TypeDelete, "03 04 0002 01020304"},
		{"D, more SPIs than announced", TypeDelete, "03 04 0000 01020304"},
		{"D, 1025 SPIs", TypeDelete, "03 04 0401" + repeat(1025, "01020304")},
		{"D, 65535 SPIs announced", TypeDelete, "03 04 ffff"},
		{"TS, empty", TypeTSi, ""},
		{"TS, selector missing", TypeTSi, "01 000000"},
		{"TS, selector cut off", TypeTSr, "01 000000 07 00 0010 0000 ffff 0a000000 0a0000"},
		{"TS, selector length 0", TypeTSi, "01 000000 07 00 0000 0000 ffff 0a000000 0a000001"},
		{"TS, selector of an unknown type with length 3", TypeTSi, "01 000000 09 00 0003"},
		{"TS, v4 selector of the size of v6", TypeTSi, "01 000000 07 00 0028" + repeat(36, "00")},
		{"TS, v6 selector of the size of v4", TypeTSi, "01 000000 08 00 0010" + repeat(12, "00")},
		{"TS, end before start", TypeTSi, "01 000000 07 00 0010 0000 ffff 0a000001 0a000000"},
		{"TS, bytes after the selectors", TypeTSi, "01 000000 07 00 0010 0000 ffff 0a000000 0a000001 00"},
		{"CP, cut off", TypeCP, "01 0000"},
		{"CP, attribute header cut off", TypeCP, "01 000000 0001"},
		{"CP, attribute cut off", TypeCP, "01 000000 0001 0004 010203"},
		{"CP, 256 attributes", TypeCP, "01 000000" + repeat(256, "0001 0000")},
		{"EAP, empty", TypeEAP, ""},
		{"EAP, length too large", TypeEAP, "01 00 0006 01"},
		{"EAP, bytes after the packet", TypeEAP, "01 00 0005 01 00"},
	} {
		_, err := ParsePayloads(c.t, goldenChain{c.body}.bytes(t))
		wantError(t, c.name, err, InvalidSyntax)
	}
}

func TestMalformedChains(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  PayloadType
		in     string
		notify NotifyType
		data   []byte
	}{
		{"header cut off", TypeVendorID, "00 00 00", InvalidSyntax, nil},
		{"payload announced, nothing there", TypeVendorID, "", InvalidSyntax, nil},
		{"second payload missing", TypeVendorID, "2b 00 0004", InvalidSyntax, nil},
		{"length 3", TypeVendorID, "00 00 0003", InvalidSyntax, nil},
		{"length 0", TypeVendorID, "2b 00 0000", InvalidSyntax, nil},
		{"length beyond the end", TypeVendorID, "00 00 0006 aa", InvalidSyntax, nil},
		{"bytes after the last payload", TypeVendorID, "00 00 0004 00", InvalidSyntax, nil},
		{"bytes without a payload", NoNextPayload, "00", InvalidSyntax, nil},
		{"65 payloads", TypeVendorID, strings.Repeat("2b 00 0004", 64) + "00 00 0004", InvalidSyntax, nil},
		{"SK inside", TypeSK, "00 00 0004", InvalidSyntax, nil},
		{"SKF inside", TypeVendorID, "35 00 0004 00 00 0008 00010001", InvalidSyntax, nil},
		{"unknown critical payload", 200, "00 80 0004", UnsupportedCriticalPayload, []byte{200}},
		{"unknown critical payload behind another", TypeVendorID, "01 00 0004 00 80 0004", UnsupportedCriticalPayload, []byte{1}},
	} {
		_, err := ParsePayloads(c.first, unhex(t, c.in))
		wantError(t, c.name, err, c.notify, c.data...)
	}
	_, err := ParsePayloads(TypeVendorID, make([]byte, MaxMessageLen+1))
	wantError(t, "64 KiB", err, InvalidSyntax)
}

// At each bound itself decoding and encoding still work.
func TestBounds(t *testing.T) {
	fill := func(n int, p Payload) []Payload {
		ps := make([]Payload, n)
		for i := range ps {
			ps[i] = p
		}
		return ps
	}
	transforms := make([]ipsec.Transform, MaxTransforms)
	for i := range transforms {
		transforms[i] = ipsec.Transform{Type: ipsec.TransformKE, ID: ipsec.TransformID(i)}
	}
	proposals := make([]ipsec.Proposal, MaxProposals)
	for i := range proposals {
		proposals[i] = ipsec.Proposal{Number: uint8(i + 1), Protocol: ipsec.ProtocolIKE, Transforms: transforms}
	}
	selectors := make([]ipsec.TrafficSelector, MaxSelectors)
	for i := range selectors {
		selectors[i] = selector(0, 0, 65535, "::", "ffff::")
	}
	big := &Cert{Data: make([]byte, MaxMessageLen-payloadHeaderLen-1)}
	for name, ps := range map[string][]Payload{
		"payloads":   fill(MaxPayloads, &VendorID{}),
		"proposals":  {&SA{Proposals: proposals}},
		"selectors":  {&TS{Selectors: selectors}},
		"SPIs":       {&Delete{Protocol: ipsec.ProtocolESP, SPIs: make([]ipsec.ESPSPI, MaxDeleteSPIs)}},
		"attributes": {&CP{Attributes: make([]CPAttribute, MaxCPAttributes)}},
		"nonce":      {&Nonce{Data: make([]byte, MaxNonceLen)}},
		"length":     {big},
	} {
		first, b := EncodePayloads(ps)
		if b == nil {
			t.Errorf("%s: not encoded", name)
			continue
		}
		got, err := ParsePayloads(first, b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := same(ps, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}

	// One beyond, or nonsense, does not leave us.
	for name, p := range map[string]Payload{
		"proposals":         &SA{Proposals: append(proposals, proposals[0])},
		"transforms":        &SA{Proposals: []ipsec.Proposal{{Protocol: 1, Transforms: append(transforms, transforms[0])}}},
		"SPI":               &SA{Proposals: []ipsec.Proposal{{Protocol: 9, SPI: make([]byte, 256)}}},
		"selectors":         &TS{Selectors: append(selectors, selectors[0])},
		"mixed families":    &TS{Selectors: []ipsec.TrafficSelector{{Start: netip.MustParseAddr("::"), End: netip.MustParseAddr("1.2.3.4")}}},
		"no addresses":      &TS{Selectors: []ipsec.TrafficSelector{{}}},
		"SPIs":              &Delete{Protocol: ipsec.ProtocolESP, SPIs: make([]ipsec.ESPSPI, MaxDeleteSPIs+1)},
		"SPI of the IKE SA": &Delete{Protocol: ipsec.ProtocolIKE, SPIs: make([]ipsec.ESPSPI, 1)},
		"attributes":        &CP{Attributes: make([]CPAttribute, MaxCPAttributes+1)},
		"attribute type":    &CP{Attributes: []CPAttribute{{Type: 0x8000}}},
		"attribute value":   &CP{Attributes: []CPAttribute{{Value: make([]byte, 65536)}}},
		"short nonce":       &Nonce{Data: make([]byte, MinNonceLen-1)},
		"long nonce":        &Nonce{Data: make([]byte, MaxNonceLen+1)},
		"notify SPI":        &Notify{SPI: make([]byte, 9)},
		"long payload":      &VendorID{Data: make([]byte, 65532)},
		"SK":                &Encrypted{},
		"SKF":               &EncryptedFragment{},
	} {
		if _, b := EncodePayloads([]Payload{p}); b != nil {
			t.Errorf("%s: encoded", name)
		}
		if b := (&Message{Payloads: []Payload{p}}).Encode(); b != nil {
			t.Errorf("%s: encoded in a message", name)
		}
		if _, err := (&Message{Payloads: []Payload{p}}).Seal(fakeCipher{}); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	if _, b := EncodePayloads(fill(MaxPayloads+1, &VendorID{})); b != nil {
		t.Error("65 payloads encoded")
	}
	if b := (&Message{Payloads: fill(2, &VendorID{Data: make([]byte, 40000)})}).Encode(); b != nil {
		t.Error("a message beyond 64 KiB encoded")
	}
	if _, err := (&Message{Payloads: fill(2, &VendorID{Data: make([]byte, 40000)})}).Seal(fakeCipher{}); err == nil {
		t.Error("a message beyond 64 KiB sealed")
	}
}
