package keymat

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"testing"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// fixedIV seals with one given IV, as the vectors need it.
type fixedIV struct {
	*aead
	iv []byte
}

func (s fixedIV) IVLen() int                             { return aeadIVLen }
func (s fixedIV) ICVLen() int                            { return s.c.Overhead() }
func (s fixedIV) BlockLen() int                          { return 1 }
func (s fixedIV) Seal(aad, plain []byte) ([]byte, error) { return s.seal(s.iv, aad, plain), nil }

// skHeader is the AAD of RFC 7634 appendix B: IKE header and SK payload header.
const skHeader = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029"

// AEAD vectors whose 12-byte nonces are salt ‖ IV: the AES-GCM specification's
// test cases 4, 10 and 16, RFC 8439 §2.8.2, RFC 7634 appendix B.
func TestAEADVectors(t *testing.T) {
	const (
		gcmSalt  = "cafebabe"
		gcmIV    = "facedbaddecaf888"
		gcmAAD   = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
		gcmPlain = `d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
			1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39`
	)
	for _, v := range []struct {
		name                            string
		suite                           ipsec.Suite
		key, salt, iv, aad, plain, text string
	}{
		{
			"AES-128-GCM", ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128},
			"feffe9928665731c6d6a8f9467308308", gcmSalt, gcmIV, gcmAAD, gcmPlain,
			`42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
			21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091
			5bc94fbc3221a5db94fae95ae7121a47`,
		},
		{
			"AES-128-GCM, 12-byte ICV", ipsec.Suite{Encr: ipsec.ENCRAESGCM12, KeyBits: 128},
			"feffe9928665731c6d6a8f9467308308", gcmSalt, gcmIV, gcmAAD, gcmPlain,
			`42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
			21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091
			5bc94fbc3221a5db94fae95a`,
		},
		{
			"AES-128-GCM, 8-byte ICV", ipsec.Suite{Encr: ipsec.ENCRAESGCM8, KeyBits: 128},
			"feffe9928665731c6d6a8f9467308308", gcmSalt, gcmIV, gcmAAD, gcmPlain,
			`42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
			21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091
			5bc94fbc3221a5db`,
		},
		{
			"AES-192-GCM", ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 192},
			"feffe9928665731c6d6a8f9467308308feffe9928665731c", gcmSalt, gcmIV, gcmAAD, gcmPlain,
			`3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c
			7d773d00c144c525ac619d18c84a3f4718e2448b2fe324d9ccda2710
			2519498e80f1478f37ba55bd6d27618c`,
		},
		{
			"AES-256-GCM", ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 256},
			"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", gcmSalt, gcmIV, gcmAAD, gcmPlain,
			`522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
			8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662
			76fc6ece0f4e1768cddf8853bb2d551b`,
		},
		{
			"RFC 8439 §2.8.2", ipsec.Suite{Encr: ipsec.ENCRChaCha20Poly1305},
			"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
			"07000000", "4041424344454647", "50515253c0c1c2c3c4c5c6c7",
			`4c616469657320616e642047656e746c656d656e206f662074686520636c6173
			73206f66202739393a204966204920636f756c64206f6666657220796f75206f
			6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73
			637265656e20776f756c642062652069742e`,
			`d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6
			3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36
			92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
			3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd060
			0691`,
		},
		{
			"RFC 7634 B", ipsec.Suite{Encr: ipsec.ENCRChaCha20Poly1305},
			"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
			"a0a1a2a3", "1011121314151617", skHeader, "0000000c000040010000000a00",
			"610394701f8d017f7c129248896b71bf e25236efd7cdc67066906315b2",
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			key := ipsec.NewKey(unhex(t, v.key+v.salt))
			a, err := newAEAD(v.suite, key)
			if err != nil {
				t.Fatal(err)
			}
			body := unhex(t, v.iv+v.text)
			wantHex(t, "sealed", a.seal(unhex(t, v.iv), unhex(t, v.aad), unhex(t, v.plain)), v.aad+v.iv+v.text)
			o, err := NewOpener(v.suite, key, ipsec.Key{})
			if err != nil {
				t.Fatal(err)
			}
			plain, err := o.Open(unhex(t, v.aad), body)
			if err != nil {
				t.Fatal(err)
			}
			wantHex(t, "opened", plain, v.plain)
		})
	}
}

// RFC 7634 appendix B as a whole message, made and read.
func TestChaChaMessage(t *testing.T) {
	s := ipsec.Suite{Encr: ipsec.ENCRChaCha20Poly1305}
	key := ipsec.NewKey(unhex(t, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3"))
	a, err := newAEAD(s, key)
	if err != nil {
		t.Fatal(err)
	}
	m := &message.Message{
		Header: message.Header{
			SPIs:      ipsec.IKESPIs{I: 0xc0c1c2c3c4c5c6c7, R: 0xd0d1d2d3d4d5d6d7},
			Exchange:  message.Informational,
			MessageID: 9,
		},
		Payloads: []message.Payload{&message.Notify{NotifyType: message.SetWindowSize, Data: []byte{0, 0, 0, 10}}},
	}
	const want = skHeader + "1011121314151617" + "610394701f8d017f7c129248896b71bfe25236efd7cdc67066906315b2"
	raw, err := m.Seal(fixedIV{a, unhex(t, "1011121314151617")})
	if err != nil {
		t.Fatal(err)
	}
	wantHex(t, "message", raw, want)

	got, err := message.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(s, key, ipsec.Key{})
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Open(raw, o); err != nil {
		t.Fatal(err)
	}
	n, ok := got.Notify(message.SetWindowSize)
	if !ok || len(got.Payloads) != 1 || !bytes.Equal(n.Data, []byte{0, 0, 0, 10}) {
		t.Errorf("opened to %v", got.Payloads)
	}
}

// CBC with HMAC against OpenSSL and Python's hmac: plaintext 00…2f, AAD as in RFC
// 7634 appendix B, encryption key 40…, integrity key 80…, IV f0…; and RFC 3602 §4 case 3.
func TestCBCVectors(t *testing.T) {
	count := func(from byte, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = from + byte(i)
		}
		return b
	}
	aad := unhex(t, skHeader)
	for _, v := range []struct {
		suite ipsec.Suite
		body  string
	}{
		{
			ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, Integ: ipsec.INTEGHMACSHA1_96},
			`f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff03f6dc39875cc6f416ae0d9b0c03dd0d54dea461da536c8f992d7d3ae7879801
			1c5763f0b8e60b0db63d55d658ce5d3af7d3c936e4745525b873e585`,
		},
		{
			ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, Integ: ipsec.INTEGHMACSHA256_128},
			`f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff03f6dc39875cc6f416ae0d9b0c03dd0d54dea461da536c8f992d7d3ae7879801
			1c5763f0b8e60b0db63d55d658ce5d3a784a2df561919f9b3110588fb1bb5693`,
		},
		{
			ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 192, Integ: ipsec.INTEGHMACSHA384_192},
			`f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff2514ecddd61848e27dba98c22342a1d3a14393a3947f3abc8b55d8b97ceb7252
			9775be7e2387a6406d7b576891c343eaaebb2963b298affbb3a4e39637d6a1d3114ff886af7db394`,
		},
		{
			ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 256, Integ: ipsec.INTEGHMACSHA512_256},
			`f0f1f2f3f4f5f6f7f8f9fafbfcfdfeffabf15d1e2741fc19213419f8af399485ace5c07d571c4022e5a2057e9009e90d
			7f0055e46b9b6755ab2ae9f6bc104de77a4647209d4428a164c477acd239e801a2e994f63bd504defb340b117ab8e622`,
		},
		{
			ipsec.Suite{Encr: ipsec.ENCR3DES, Integ: ipsec.INTEGHMACSHA1_96},
			`f0f1f2f3f4f5f6f709e313729d7fe02eb9d5601a483b590835791d4ea435740e05072d2a453666b0
			29afeb883cdf0460f78e828adc8062233f3a09b66ece274599383182`,
		},
	} {
		t.Run(v.suite.String(), func(t *testing.T) {
			encr, integ := ipsec.NewKey(count(0x40, v.suite.EncrKeyLen())), ipsec.NewKey(count(0x80, v.suite.IntegKeyLen()))
			s, err := NewSealer(v.suite, encr, integ, nil, bytes.NewReader(count(0xf0, 16)))
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := s.Seal(aad, count(0, 48))
			if err != nil {
				t.Fatal(err)
			}
			wantHex(t, "sealed", sealed, skHeader+v.body)
			o, err := NewOpener(v.suite, encr, integ)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := o.Open(aad, unhex(t, v.body))
			if err != nil || !bytes.Equal(plain, count(0, 48)) {
				t.Errorf("opened to %x, %v", plain, err)
			}
		})
	}

	t.Run("RFC 3602 §4 case 3", func(t *testing.T) {
		suite := ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, Integ: ipsec.INTEGHMACSHA256_128}
		integ := bytes.Repeat([]byte{5}, 32)
		s, err := NewSealer(suite, ipsec.NewKey(unhex(t, "6c3ea0477630ce21a2ce334aa746c2cd")), ipsec.NewKey(integ),
			nil, bytes.NewReader(unhex(t, "c782dc4c098c66cbd9cd27d825682c81")))
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := s.Seal(nil, []byte("This is a 48-byte message (exactly 3 AES blocks)"))
		if err != nil {
			t.Fatal(err)
		}
		body := unhex(t, `c782dc4c098c66cbd9cd27d825682c81 d0a02b3836451753d493665d33f0e886
			2dea54cdb293abc7506939276772f8d5 021c19216bad525c8579695d83ba2684`)
		mac := hmac.New(sha256.New, integ)
		mac.Write(body)
		if want := append(body, mac.Sum(nil)[:16]...); !bytes.Equal(sealed, want) {
			t.Errorf("sealed\n got %x\nwant %x", sealed, want)
		}
	})
}

// keysFor makes some keys of the right lengths.
func keysFor(s ipsec.Suite, salt byte) (encr, integ ipsec.Key) {
	e := bytes.Repeat([]byte{0x11, salt}, (s.EncrKeyLen()+s.SaltLen())/2)
	return ipsec.NewKey(e), ipsec.NewKey(bytes.Repeat([]byte{0x22, salt}, s.IntegKeyLen()/2))
}

// Every way to damage a sealed payload, or to hold the wrong key, gives the same error.
func TestOpenFailsAlike(t *testing.T) {
	aad := unhex(t, skHeader)
	for _, s := range ikeSuites {
		t.Run(suiteName(s), func(t *testing.T) {
			encr, integ := keysFor(s, 1)
			sealer, err := NewSealer(s, encr, integ, ipsec.NewIVCounter(7), seeded(1))
			if err != nil {
				t.Fatal(err)
			}
			opener, err := NewOpener(s, encr, integ)
			if err != nil {
				t.Fatal(err)
			}
			plain := bytes.Repeat([]byte{0xab}, 48)
			sealed, err := sealer.Seal(bytes.Clone(aad), plain)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(sealed[:len(aad)], aad) || len(sealed) != len(aad)+sealer.IVLen()+len(plain)+sealer.ICVLen() {
				t.Fatalf("sealed to %d bytes", len(sealed))
			}
			body := sealed[len(aad):]
			before := bytes.Clone(sealed)
			if got, err := opener.Open(aad, body); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("opened to %x, %v", got, err)
			}
			if !bytes.Equal(sealed, before) {
				t.Error("Open changed its input")
			}

			wantFailure := func(what string, o message.Opener, aad, body []byte) {
				t.Helper()
				if got, err := o.Open(aad, body); err != message.ErrAuthentication || got != nil { //nolint:errorlint // the very same error
					t.Errorf("%s: %x, %v", what, got, err)
				}
			}
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1 << (i % 8)
				wantFailure("flipped bit", opener, bad[:len(aad)], bad[len(aad):])
			}
			for n := range body {
				wantFailure("truncated", opener, aad, body[:n])
			}
			wantFailure("extended", opener, aad, append(bytes.Clone(body), 0))
			wantFailure("extended by a block", opener, aad, append(bytes.Clone(body), make([]byte, 16)...))
			wantFailure("shorter aad", opener, aad[1:], body)

			e2, i2 := keysFor(s, 2)
			other, err := NewOpener(s, e2, i2)
			if err != nil {
				t.Fatal(err)
			}
			wantFailure("wrong keys", other, aad, body)
			if !s.Encr.AEAD() {
				other, err = NewOpener(s, encr, i2)
				if err != nil {
					t.Fatal(err)
				}
				wantFailure("wrong integrity key", other, aad, body)
			}
		})
	}
}

func TestIVs(t *testing.T) {
	gcm := ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128}
	encr, _ := keysFor(gcm, 1)
	counter := ipsec.NewIVCounter(0xabcdef)
	a, err := NewSealer(gcm, encr, ipsec.Key{}, counter, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewSealer(gcm, encr, ipsec.Key{}, counter, nil) // shares the key, so the counter
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range []message.Sealer{a, b, a} {
		out, err := s.Seal(nil, []byte{0})
		if err != nil {
			t.Fatal(err)
		}
		wantHex(t, "IV", out[:8], "abcdef000000000"+string(rune('0'+i)))
	}
	if counter.Used() != 3 {
		t.Errorf("%d IVs used", counter.Used())
	}

	cbc := ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, Integ: ipsec.INTEGHMACSHA256_128}
	encr, integ := keysFor(cbc, 1)
	iv := concat(bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 16))
	s, err := NewSealer(cbc, encr, integ, nil, bytes.NewReader(iv))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		out, err := s.Seal(nil, make([]byte, 16))
		if err != nil || !bytes.Equal(out[:16], iv[16*i:16*i+16]) {
			t.Errorf("IV %x, %v", out[:16], err)
		}
	}
	if _, err := s.Seal(nil, make([]byte, 16)); err == nil {
		t.Error("sealed without randomness")
	}
	if _, err := s.Seal(nil, make([]byte, 15)); !errors.Is(err, errNotPadded) {
		t.Errorf("sealed half a block: %v", err)
	}
}

func TestSealerRefusals(t *testing.T) {
	for _, s := range ikeSuites {
		encr, integ := keysFor(s, 1)
		short := ipsec.NewKey(encr.Bytes()[1:])
		iv, r := ipsec.NewIVCounter(0), seeded(1)
		if _, err := NewSealer(s, short, integ, iv, r); err == nil {
			t.Errorf("%s: short key accepted", s)
		}
		if _, err := NewOpener(s, short, integ); err == nil {
			t.Errorf("%s: short key accepted by the opener", s)
		}
		if _, err := NewOpener(s, encr, ipsec.NewKey(append(bytes.Clone(integ.Bytes()), 0))); err == nil {
			t.Errorf("%s: long integrity key accepted", s)
		}
		if _, err := NewSealer(s, encr, integ, nil, nil); err == nil {
			t.Errorf("%s: no source of IVs accepted", s)
		}
	}
	null := ipsec.Suite{Encr: ipsec.ENCRNULL, Integ: ipsec.INTEGHMACSHA256_128}
	if _, err := NewOpener(null, ipsec.Key{}, ipsec.NewKey(make([]byte, 32))); !errors.Is(err, ErrUnsupportedSuite) {
		t.Errorf("SK with NULL encryption: %v", err)
	}
}

// Whole messages through every suite: the padding, lengths and chain fit.
func TestMessageRoundTrip(t *testing.T) {
	for _, s := range ikeSuites {
		encr, integ := keysFor(s, 1)
		sealer, err := NewSealer(s, encr, integ, ipsec.NewIVCounter(1), seeded(1))
		if err != nil {
			t.Fatal(err)
		}
		opener, err := NewOpener(s, encr, integ)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 40 {
			m := &message.Message{Header: message.Header{Exchange: message.IKEAuth, MessageID: uint32(n)}}
			if n > 0 { // n = 0 is the empty message of a liveness check
				m.Payloads = []message.Payload{&message.VendorID{Data: bytes.Repeat([]byte{1}, n)}}
			}
			raw, err := m.Seal(sealer)
			if err != nil {
				t.Fatal(err)
			}
			got, err := message.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Open(raw, opener); err != nil {
				t.Fatalf("%s, %d bytes: %v", suiteName(s), n, err)
			}
			if len(got.Payloads) != len(m.Payloads) ||
				n > 0 && !bytes.Equal(got.Payloads[0].(*message.VendorID).Data, m.Payloads[0].(*message.VendorID).Data) {
				t.Errorf("%s, %d bytes: got %v", suiteName(s), n, got.Payloads)
			}
		}
	}
}

// FuzzOpen feeds whole datagrams to Parse and Open under every cipher. Only what
// the sealer made opens.
func FuzzOpen(f *testing.F) {
	type end struct {
		opener message.Opener
		made   map[string]bool
	}
	var ends []end
	for i, s := range ikeSuites {
		encr, integ := keysFor(s, byte(i))
		sealer, err := NewSealer(s, encr, integ, ipsec.NewIVCounter(1), seeded(1))
		if err != nil {
			f.Fatal(err)
		}
		opener, err := NewOpener(s, encr, integ)
		if err != nil {
			f.Fatal(err)
		}
		e := end{opener, map[string]bool{}}
		for _, ps := range [][]message.Payload{
			nil,
			{&message.Notify{NotifyType: message.InitialContact}, &message.Delete{Protocol: ipsec.ProtocolIKE}},
		} {
			m := &message.Message{Header: message.Header{Exchange: message.Informational}, Payloads: ps}
			raw, err := m.Seal(sealer)
			if err != nil {
				f.Fatal(err)
			}
			e.made[string(raw)] = true
			f.Add(byte(i), raw)
			cut := bytes.Clone(raw[:len(raw)-1])
			cut[27]--
			cut[31]--
			f.Add(byte(i), cut)
		}
		ends = append(ends, e)
	}
	f.Fuzz(func(t *testing.T, which byte, raw []byte) {
		e := ends[int(which)%len(ends)]
		m, err := message.Parse(raw)
		if err != nil {
			return
		}
		err = m.Open(raw, e.opener)
		if (err == nil) != e.made[string(raw)] {
			t.Errorf("made by the sealer: %v, but Open says %v", e.made[string(raw)], err)
		}
	})
}
