package eap

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func TestPacket(t *testing.T) {
	for _, p := range []Packet{{Code: Success, ID: 7}, {Code: Failure, ID: 1}, {Code: Request, ID: 255, Type: Identity},
		{Code: Response, ID: 3, Type: Identity, Data: []byte("carol")}} {
		q, err := Parse(p.Encode())
		if err != nil || q.Code != p.Code || q.ID != p.ID || q.Type != p.Type || !bytes.Equal(q.Data, p.Data) {
			t.Errorf("%+v comes back as %+v, %v", p, q, err)
		}
	}
	for _, b := range []string{"", "01", "0101", "01010004", "0101000500", "05010004", "0301000501", "0101000601", "010100050100"} {
		raw, _ := hex.DecodeString(b)
		if p, err := Parse(raw); err == nil {
			t.Errorf("%s is taken as %+v", b, p)
		}
	}
}

// The example of RFC 2759 §9.2, and its keys as RFC 3079 §3.5.3 has them.
func TestMSCHAPv2Vectors(t *testing.T) {
	raw := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	challenge, own := raw("5B5D7C7D7B3F2F3E3C2C602132262628"), raw("21402324255E262A28295F2B3A337C7E")
	a, err := AnswerMS(9, challenge, own, "BIG\\User", []byte("clientPass"))
	if err != nil {
		t.Fatal(err)
	}
	if want := raw("82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF"); !bytes.Equal(a.NT, want) {
		t.Errorf("NT-Response %x", a.NT)
	}
	back, err := ParseMSAnswer(a.Encode())
	if err != nil || back.Name != "BIG\\User" || back.User() != "User" || !back.Right(challenge, []byte("clientPass")) || back.Right(challenge, []byte("clientpass")) {
		t.Errorf("%+v, %v", back, err)
	}
	s, err := back.Authenticator(challenge, []byte("clientPass"))
	if err != nil || s != "S=407A5589115FD0D6209F510FE9C04566932CDA56" {
		t.Errorf("authenticator response %s, %v", s, err)
	}
	if !ProvesMS(EncodeMSSuccess(9, s), s) || ProvesMS(EncodeMSSuccess(9, "S=507A5589115FD0D6209F510FE9C04566932CDA56"), s) || ProvesMS(nil, s) {
		t.Error("the server's proof is not told from another")
	}
	key, err := back.Key([]byte("clientPass"))
	if err != nil || len(key) != 64 || !bytes.Equal(key[16:32], raw("8B7CDC149B993A1BA118CB153F56DCCB")) {
		t.Errorf("MSK %x, %v", key, err)
	}
	id, c, name, err := ParseMSChallenge(EncodeMSChallenge(4, challenge, "gw"))
	if err != nil || id != 4 || !bytes.Equal(c, challenge) || name != "gw" {
		t.Errorf("challenge: %d %x %q %v", id, c, name, err)
	}
	if s := ParseMSFailure(EncodeMSFailure(4, MSAuthFailed, challenge)); s != "E=691 R=0 C=5B5D7C7D7B3F2F3E3C2C602132262628 V=3 M=failed" {
		t.Error(s)
	}
}

func TestFragments(t *testing.T) {
	for _, n := range []int{0, 1, FragmentLen, FragmentLen + 1, 5 * FragmentLen, maxTLSMessage} {
		var a, b Fragments
		flight := bytes.Repeat([]byte{7}, n)
		a.Send(flight)
		for {
			got, whole, err := b.Receive(a.Next())
			if err != nil {
				t.Fatal(n, err)
			}
			if whole {
				if !bytes.Equal(got, flight) || a.Pending() {
					t.Errorf("%d bytes come as %d", n, len(got))
				}
				break
			}
			if _, whole, err := a.Receive(b.Next()); err != nil || !whole {
				t.Fatal("an acknowledgement is none", err)
			}
		}
	}
	for _, s := range []string{"", "80000000", "8000100001", "c000000002010203", "40", "80000000050102"} {
		var f Fragments
		raw, _ := hex.DecodeString(s)
		if _, whole, err := f.Receive(raw); err == nil {
			t.Errorf("%s is taken, whole %v", s, whole)
		}
	}
}
