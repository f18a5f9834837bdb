package message

import (
	"bytes"
	"errors"
	"testing"

	"tandem/internal/ipsec"
)

// initRequest is an IKE_SA_INIT request, written down from RFC 7296 §3.1 and §1.2.
const initRequest = `
	1122334455667788 0000000000000000 21 20 22 08 00000000 0000006c
	22 00 0028  00 00 0024 01 01 00 03
	  03 00 000c 01 00 0014 800e 0080
	  03 00 0008 02 00 0005
	  00 00 0008 04 00 001f
	28 00 000c  001f 0000 deadbeef
	29 00 0014  000102030405060708090a0b0c0d0e0f
	00 00 0008  00 00 402e`

func initMessage() *Message {
	return &Message{
		Header: Header{
			SPIs: ipsec.IKESPIs{I: 0x1122334455667788}, MajorVersion: 2, Exchange: IKESAInit,
			Initiator: true, NextPayload: TypeSA, Length: 108,
		},
		Payloads: []Payload{
			&SA{Proposals: []ipsec.Proposal{{Number: 1, Protocol: ipsec.ProtocolIKE, Transforms: []ipsec.Transform{
				{Type: ipsec.TransformENCR, ID: ipsec.ENCRAESGCM16, KeyBits: 128},
				{Type: ipsec.TransformPRF, ID: ipsec.PRFHMACSHA256},
				{Type: ipsec.TransformKE, ID: ipsec.KEX25519},
			}}}},
			&KE{Group: ipsec.KEX25519, Data: []byte{0xde, 0xad, 0xbe, 0xef}},
			&Nonce{Data: []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
			&Notify{NotifyType: FragmentationSupported},
		},
	}
}

func TestGoldenMessage(t *testing.T) {
	want := unhex(t, initRequest)
	m := initMessage()
	m.NextPayload, m.Length, m.MajorVersion = 0, 0, 0 // the encoder fills them
	got := m.Encode()
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n got %x\nwant %x", got, want)
	}
	parsed, err := Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if d := same(initMessage(), parsed); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestHeaderFlags(t *testing.T) {
	base := unhex(t, initRequest)
	for _, c := range []struct {
		flags                        byte
		initiator, response, version bool
	}{
		{0x00, false, false, false},
		{0x08, true, false, false},
		{0x10, false, false, true},
		{0x20, false, true, false},
		{0x28, true, true, false},
		{0xc7, false, false, false}, // bits that must be ignored
		{0xff, true, true, true},
	} {
		b := bytes.Clone(base)
		b[19] = c.flags
		b[17] = 0x2f // minor version 15
		m, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if m.Initiator != c.initiator || m.Response != c.response || m.Version != c.version || m.MinorVersion != 15 {
			t.Errorf("flags %02x: %+v", c.flags, m.Header)
		}
		out := m.Encode()
		if out[17] != 0x20 || out[19] != c.flags&0x28 {
			t.Errorf("flags %02x: sent as version %02x, flags %02x", c.flags, out[17], out[19])
		}
	}
}

func TestMalformedMessages(t *testing.T) {
	change := func(f func(b []byte) []byte) []byte { return f(unhex(t, initRequest)) }
	for _, c := range []struct {
		name   string
		in     []byte
		notify NotifyType
	}{
		{"empty", nil, 0},
		{"27 bytes", make([]byte, 27), 0},
		{"length too large", change(func(b []byte) []byte { b[27]++; return b }), 0},
		{"length too small", change(func(b []byte) []byte { b[27]--; return b }), 0},
		{"huge length", change(func(b []byte) []byte { b[24] = 0xff; return b }), 0},
		{"cut off", change(func(b []byte) []byte { return b[:50] }), 0},
		{"longer than 64 KiB", change(func(b []byte) []byte {
			b = append(b, make([]byte, 65536)...)
			b[25], b[26], b[27] = 1, 0, 0x6c
			return b
		}), 0},
		{"version 1", change(func(b []byte) []byte { b[17] = 0x10; return b }), 0},
		{"version 0", change(func(b []byte) []byte { b[17] = 0x02; return b }), 0},
		{"version 3", change(func(b []byte) []byte { b[17] = 0x30; return b }), InvalidMajorVersion},
		{"first payload is none", change(func(b []byte) []byte { b[16] = 0; return b }), InvalidSyntax},
		{"first payload has another type", change(func(b []byte) []byte { b[16] = byte(TypeDelete); return b }), InvalidSyntax},
		{"SK is not the last", change(func(b []byte) []byte { b[16] = byte(TypeSK); return b }), InvalidSyntax},
		{"SKF is not the last", change(func(b []byte) []byte { b[16] = byte(TypeSKF); return b }), InvalidSyntax},
	} {
		m, err := Parse(c.in)
		if m != nil {
			t.Errorf("%s: decoded", c.name)
		}
		wantError(t, c.name, err, c.notify)
	}
	// The header alone does not judge the version: the engine answers from it.
	h, err := ParseHeader(change(func(b []byte) []byte { b[17] = 0x31; return b }))
	if err != nil || h.MajorVersion != 3 || h.MinorVersion != 1 {
		t.Errorf("header of version 3.1: %+v, %v", h, err)
	}
}

func TestLookups(t *testing.T) {
	m := initMessage()
	if ke, ok := Get[*KE](m); !ok || ke.Group != ipsec.KEX25519 {
		t.Error("KE not found")
	}
	if _, ok := Get[*EAP](m); ok {
		t.Error("found an EAP payload that is not there")
	}
	m.Payloads = append(m.Payloads,
		&Notify{NotifyType: Cookie, Data: []byte{1}}, &Notify{NotifyType: Cookie, Data: []byte{2}},
		&ID{Responder: true, Data: []byte("r")}, &ID{Data: []byte("i")},
		&TS{Responder: true}, &TS{})
	if n, ok := m.Notify(Cookie); !ok || n.Data[0] != 1 {
		t.Error("first cookie not found")
	}
	if _, ok := m.Notify(RekeySA); ok {
		t.Error("found REKEY_SA that is not there")
	}
	if len(m.Notifies()) != 3 {
		t.Errorf("%d notifies", len(m.Notifies()))
	}
	for _, responder := range []bool{false, true} {
		if id, ok := m.ID(responder); !ok || id.Responder != responder {
			t.Errorf("ID(%v): %v", responder, id)
		}
		if ts, ok := m.TS(responder); !ok || ts.Responder != responder {
			t.Errorf("TS(%v): %v", responder, ts)
		}
	}
	empty := &Message{}
	if _, ok := empty.ID(false); ok {
		t.Error("found an ID in an empty message")
	}
	if _, ok := empty.TS(true); ok {
		t.Error("found a TS in an empty message")
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		CreateChildSA.String():     "CREATE_CHILD_SA",
		ExchangeType(99).String():  "99",
		TypeIDi.String():           "IDi",
		TypeSKF.String():           "SKF",
		PayloadType(200).String():  "200",
		InvalidKEPayload.String():  "INVALID_KE_PAYLOAD",
		MessageIDSync.String():     "IKEV2_MESSAGE_ID_SYNC",
		NotifyType(40960).String(): "40960",
		IDFQDN.String():            "ID_FQDN",
		IDType(0).String():         "0",
		AuthPSK.String():           "Shared Key Message Integrity Code",
		AuthMethod(255).String():   "255",
		NotifyType(10).String():    "10",
		(&Error{Notify: InvalidSyntax, Err: errors.New("x")}).Error(): "INVALID_SYNTAX: x",
		(&Error{Err: errors.New("x")}).Error():                        "x",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if !ChildSANotFound.IsError() || InitialContact.IsError() {
		t.Error("errors are the types below 16384")
	}
}
