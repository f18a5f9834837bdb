package eap

import (
	"bytes"
	"testing"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte{1, 1, 0, 5, 1})
	f.Add([]byte{3, 1, 0, 4})
	f.Add(Packet{Code: Response, ID: 3, Type: NAK, Data: []byte{13, 26}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err == nil && !bytes.Equal(p.Encode(), b) {
			t.Errorf("%x comes back as %x", b, p.Encode())
		}
	})
}

func FuzzMSCHAPv2(f *testing.F) {
	c := bytes.Repeat([]byte{9}, ChallengeLen)
	a, _ := AnswerMS(1, c, c, "carol", []byte("secret"))
	f.Add(a.Encode())
	f.Add(EncodeMSChallenge(1, c, "gw"))
	f.Add(EncodeMSSuccess(1, "S=407A5589115FD0D6209F510FE9C04566932CDA56"))
	f.Add(EncodeMSFailure(1, MSAuthFailed, c))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseMSAnswer(b); err == nil {
			if len(a.NT) != ntResponseLen || len(a.Challenge) != ChallengeLen || len(a.Name) > MaxIdentity {
				t.Errorf("%+v", a)
			}
			a.Right(c, []byte("secret"))
		}
		if _, c, _, err := ParseMSChallenge(b); err == nil && len(c) != ChallengeLen {
			t.Errorf("challenge %x", c)
		}
		ProvesMS(b, "S=407A5589115FD0D6209F510FE9C04566932CDA56")
		ParseMSFailure(b)
	})
}

// FuzzFragments feeds packets, each led by its length.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{1, 0, 3, 0x40, 1, 2, 2, 0, 3})
	f.Add([]byte{6, 0xc0, 0, 0, 0, 4, 1, 4, 0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		var x Fragments
		for len(b) > 0 {
			n := min(int(b[0]), len(b)-1)
			flight, _, err := x.Receive(b[1 : 1+n])
			if err != nil {
				return
			}
			if len(flight) > maxTLSMessage || len(x.in) > maxTLSMessage {
				t.Fatalf("%d bytes are kept", len(x.in))
			}
			b = b[1+n:]
		}
	})
}
