package message

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tandem/internal/ipsec"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// same compares payloads; netip addresses compare by value.
func same(a, b any) string {
	return cmp.Diff(a, b, cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreUnexported(Message{}))
}

func selector(proto uint8, from, to uint16, start, end string) ipsec.TrafficSelector {
	return ipsec.TrafficSelector{
		Protocol: proto, StartPort: from, EndPort: to,
		Start: netip.MustParseAddr(start), End: netip.MustParseAddr(end),
	}
}

// golden are the bodies of one payload each, written down from RFC 7296 §3.3–3.16.
var golden = []struct {
	name    string
	payload Payload
	body    string
}{
	{
		"SA with two IKE proposals",
		&SA{Proposals: []ipsec.Proposal{
			{Number: 1, Protocol: ipsec.ProtocolIKE, Transforms: []ipsec.Transform{
				{Type: ipsec.TransformENCR, ID: ipsec.ENCRAESCBC, KeyBits: 256},
				{Type: ipsec.TransformPRF, ID: ipsec.PRFHMACSHA256},
				{Type: ipsec.TransformINTEG, ID: ipsec.INTEGHMACSHA256_128},
				{Type: ipsec.TransformKE, ID: ipsec.KEMODP2048},
			}},
			{Number: 2, Protocol: ipsec.ProtocolIKE, SPI: []byte{1, 2, 3, 4, 5, 6, 7, 8}, Transforms: []ipsec.Transform{
				{Type: ipsec.TransformENCR, ID: ipsec.ENCRAESGCM16, KeyBits: 128},
				{Type: 99, ID: 4711},
			}},
		}},
		`02 00 002c  01 01 00 04
		   03 00 000c 01 00 000c 800e 0100
		   03 00 0008 02 00 0005
		   03 00 0008 03 00 000c
		   00 00 0008 04 00 000e
		 00 00 0024  02 01 08 02 0102030405060708
		   03 00 000c 01 00 0014 800e 0080
		   00 00 0008 63 00 1267`,
	},
	{
		"SA for ESP",
		&SA{Proposals: []ipsec.Proposal{
			{Number: 1, Protocol: ipsec.ProtocolESP, SPI: []byte{0xc0, 0xff, 0xee, 1}, Transforms: []ipsec.Transform{
				{Type: ipsec.TransformENCR, ID: ipsec.ENCRChaCha20Poly1305},
				{Type: ipsec.TransformESN, ID: ipsec.ESNYes},
				{Type: ipsec.TransformESN, ID: ipsec.ESNNo},
			}},
		}},
		`00 00 0024  01 03 04 03 c0ffee01
		   03 00 0008 01 00 001c
		   03 00 0008 05 00 0001
		   00 00 0008 05 00 0000`,
	},
	{"KE", &KE{Group: ipsec.KEECP256, Data: []byte{1, 2, 3}}, "0013 0000 010203"},
	{"IDi", &ID{IDType: IDFQDN, Data: []byte("gw")}, "02 000000 6777"},
	{"IDr", &ID{Responder: true, IDType: IDIPv4, Data: []byte{192, 0, 2, 1}}, "01 000000 c0000201"},
	{"CERT", &Cert{Encoding: CertX509Signature, Data: []byte{0x30, 0}}, "04 3000"},
	{"CERTREQ", &CertReq{Encoding: CertX509Signature, Data: []byte{9, 9}}, "04 0909"},
	{"CERTREQ without CA", &CertReq{Encoding: CertX509Signature}, "04"},
	{"AUTH", &Auth{Method: AuthPSK, Data: []byte{0xaa, 0xbb}}, "02 000000 aabb"},
	{"Nonce", &Nonce{Data: bytes.Repeat([]byte{7}, 16)}, "07070707070707070707070707070707"},
	{"N", &Notify{NotifyType: InitialContact}, "00 00 4000"},
	{"N with data", &Notify{NotifyType: InvalidKEPayload, Data: []byte{0, 14}}, "00 00 0011 000e"},
	{
		"N with SPI and data",
		&Notify{Protocol: ipsec.ProtocolESP, SPI: []byte{1, 2, 3, 4}, NotifyType: RekeySA, Data: []byte{5}},
		"03 04 4009 01020304 05",
	},
	{
		"N with the SPI of an IKE SA",
		&Notify{Protocol: ipsec.ProtocolIKE, SPI: []byte{1, 2, 3, 4, 5, 6, 7, 8}, NotifyType: RekeySA},
		"01 08 4009 0102030405060708",
	},
	{"D for the IKE SA", &Delete{Protocol: ipsec.ProtocolIKE}, "01 00 0000"},
	{"D for ESP", &Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{0x01020304, 0xfffffffe}}, "03 04 0002 01020304 fffffffe"},
	{"V", &VendorID{Data: []byte("Tandem")}, "54616e64656d"},
	{"V, empty", &VendorID{}, ""},
	{
		"TSi",
		&TS{Selectors: []ipsec.TrafficSelector{
			selector(0, 0, 65535, "10.1.0.0", "10.1.255.255"),
			selector(17, 53, 53, "2001:db8::", "2001:db8::ffff"),
		}},
		`02 000000
		 07 00 0010 0000 ffff 0a010000 0a01ffff
		 08 11 0028 0035 0035 20010db8000000000000000000000000 20010db800000000000000000000ffff`,
	},
	{
		"TSr with OPAQUE ports",
		&TS{Responder: true, Selectors: []ipsec.TrafficSelector{selector(6, 65535, 0, "192.0.2.1", "192.0.2.1")}},
		"01 000000  07 06 0010 ffff 0000 c0000201 c0000201",
	},
	{
		"CP",
		&CP{CFGType: CFGRequest, Attributes: []CPAttribute{{Type: 1}, {Type: 8, Value: bytes.Repeat([]byte{1}, 17)}}},
		"01 000000  0001 0000  0008 0011 0101010101010101010101010101010101",
	},
	{"EAP", &EAP{Data: []byte{1, 0, 0, 5, 1}}, "01 00 0005 01"},
	{"unknown", &Unknown{PayloadType: 200, Body: []byte{1, 2}}, "0102"},
}

func (p goldenChain) bytes(t testing.TB) []byte {
	b := unhex(t, p.body)
	return append([]byte{0, 0, byte((len(b) + 4) >> 8), byte(len(b) + 4)}, b...)
}

type goldenChain struct{ body string }

func TestGoldenPayloads(t *testing.T) {
	seen := map[PayloadType]bool{}
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			seen[g.payload.Type()] = true
			want := goldenChain{g.body}.bytes(t)
			first, got := EncodePayloads([]Payload{g.payload})
			if first != g.payload.Type() || !bytes.Equal(got, want) {
				t.Errorf("encoded as %s\n got %x\nwant %x", first, got, want)
			}
			ps, err := ParsePayloads(g.payload.Type(), want)
			if err != nil {
				t.Fatal(err)
			}
			if d := same([]Payload{g.payload}, ps); d != "" {
				t.Errorf("decoded (-want +got):\n%s", d)
			}
			// What was decoded does not change with the datagram's buffer.
			clear(want)
			if d := same([]Payload{g.payload}, ps); d != "" {
				t.Errorf("shares memory with its input:\n%s", d)
			}
		})
	}
	for p := TypeSA; p <= TypeEAP; p++ {
		if p != TypeSK && !seen[p] {
			t.Errorf("no golden encoding of payload type %s", p)
		}
	}
}

// All golden payloads in one chain.
func TestChain(t *testing.T) {
	var ps []Payload
	for _, g := range golden {
		ps = append(ps, g.payload)
	}
	first, b := EncodePayloads(ps)
	got, err := ParsePayloads(first, b)
	if err != nil {
		t.Fatal(err)
	}
	if d := same(ps, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if first, b := EncodePayloads(nil); first != NoNextPayload || len(b) != 0 {
		t.Errorf("no payloads encode to %s %x", first, b)
	}
}

// What RFC 7296 tells a receiver to ignore is ignored.
func TestLenientDecoding(t *testing.T) {
	for _, c := range []struct {
		name string
		t    PayloadType
		in   string
		want Payload
	}{
		{"reserved bits of the payload header", TypeVendorID, "00 7f 0005 aa", &VendorID{Data: []byte{0xaa}}},
		{"critical bit of a known payload", TypeVendorID, "00 80 0005 aa", &VendorID{Data: []byte{0xaa}}},
		{"reserved field of KE", TypeKE, "00 00 0009 0013 ffff 01", &KE{Group: 19, Data: []byte{1}}},
		{"reserved field of AUTH", TypeAUTH, "00 00 0009 02 ffffff 01", &Auth{Method: AuthPSK, Data: []byte{1}}},
		{
			"reserved field of ID, which AUTH covers", TypeIDi, "00 00 0009 0b 010203 41",
			&ID{IDType: IDKeyID, Data: []byte("A"), Reserved: [3]byte{1, 2, 3}},
		},
		{"reserved field of TS", TypeTSi, "00 00 0008 00 ffffff", &TS{}},
		{"reserved fields of CP", TypeCP, "00 00 000c 01 ffffff 8001 0000", &CP{CFGType: 1, Attributes: []CPAttribute{{Type: 1}}}},
		{
			"traffic selectors of unknown type", TypeTSr, "00 00 0020 02 000000 09 00 0008 00000000  07 00 0010 0000 ffff 0a000000 0a000001",
			&TS{Responder: true, Selectors: []ipsec.TrafficSelector{selector(0, 0, 65535, "10.0.0.0", "10.0.0.1")}},
		},
		{
			"reserved fields of SA", TypeSA, "00 00 0014 00 ff 0010 01 01 00 01 00 ff 0008 02 ff 0005",
			&SA{Proposals: []ipsec.Proposal{{Number: 1, Protocol: 1, Transforms: []ipsec.Transform{{Type: 2, ID: 5}}}}},
		},
		{
			"proposal for an unknown protocol", TypeSA, "00 00 0016 00 00 0012 01 09 02 01 abcd 00 00 0008 02 00 0005",
			&SA{Proposals: []ipsec.Proposal{{Number: 1, Protocol: 9, SPI: []byte{0xab, 0xcd}, Transforms: []ipsec.Transform{{Type: 2, ID: 5}}}}},
		},
		{"unknown payload", 200, "00 7f 0005 aa", &Unknown{PayloadType: 200, Body: []byte{0xaa}}},
		{"payload type of IKEv1", 1, "00 00 0005 aa", &Unknown{PayloadType: 1, Body: []byte{0xaa}}},
	} {
		ps, err := ParsePayloads(c.t, unhex(t, c.in))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if d := same([]Payload{c.want}, ps); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// A transform whose attributes we do not understand stays in its proposal, but
// cannot be chosen (RFC 7296 §3.3.6).
func TestUnusableTransforms(t *testing.T) {
	aes := ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.ENCRAESCBC}
	bad := ipsec.Transform{Type: ipsec.TransformENCR, ID: UnusableTransform}
	with := func(tr ipsec.Transform, bits uint16) ipsec.Transform { tr.KeyBits = bits; return tr }
	for _, c := range []struct {
		name, attributes string
		want             ipsec.Transform
	}{
		{"none", "", aes},
		{"key length", "800e 0080", with(aes, 128)},
		{"key length in the long form", "000e 0002 0080", bad},
		{"key length of zero", "800e 0000", bad},
		{"key length twice", "800e 0080 800e 0080", bad},
		{"unknown short attribute", "800f 0001", bad},
		{"unknown long attribute beside the key length", "800e 0080 0011 0003 010203", bad},
	} {
		attributes := unhex(t, c.attributes)
		tr := append([]byte{0, 0, 0, byte(8 + len(attributes)), 1, 0, 0, 12}, attributes...)
		prop := append([]byte{0, 0, 0, byte(8 + 8 + len(tr)), 1, 1, 0, 2, 3, 0, 0, 8, 2, 0, 0, 5}, tr...)
		sa, err := decodeSA(&reader{b: prop})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := []ipsec.Transform{{Type: ipsec.TransformPRF, ID: ipsec.PRFHMACSHA256}, c.want}
		if d := same(want, sa.Proposals[0].Transforms); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestIDBody(t *testing.T) {
	id := &ID{IDType: IDKeyID, Data: []byte("A"), Reserved: [3]byte{1, 2, 3}}
	if want := unhex(t, "0b010203 41"); !bytes.Equal(id.Body(), want) {
		t.Errorf("body %x, want %x", id.Body(), want)
	}
}
