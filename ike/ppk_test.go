package ike

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func withPPK(p *config.Phase1, mode, id, secret string) {
	p.PPK, p.PPKIdentity, p.PPKSecret = mode, id, ipsec.NewKey([]byte(secret))
}

func TestPPK(t *testing.T) {
	type end struct{ mode, id, secret string }
	const secret = "thirty-two bytes and a few more of it"
	off, allow, require := end{}, end{"allow", "k1", secret}, end{"require", "k1", secret}
	for _, c := range []struct {
		name string
		a, b end // initiator, responder
		used bool
		fail string // the initiator's reason, if it comes to nothing
		why  string // the responder's
	}{
		{name: "both allow", a: allow, b: allow, used: true},
		{name: "both require", a: require, b: require, used: true},
		{name: "initiator requires", a: require, b: allow, used: true},
		{name: "responder requires", a: allow, b: require, used: true},
		{name: "initiator has none", a: off, b: allow},
		{name: "responder has none", a: allow, b: off},
		{name: "responder has another", a: allow, b: end{"allow", "k2", "another secret"}},
		{name: "initiator has none, required", a: off, b: require, fail: "AUTHENTICATION_FAILED", why: "does not use a PPK"},
		{name: "responder has none, required", a: require, b: off, fail: "a PPK is required"},
		{name: "responder has another, required by it", a: allow, b: end{"require", "k2", "another secret"}, fail: "AUTHENTICATION_FAILED", why: "PPK of the peer is unknown"},
		{name: "responder has another, required by the initiator", a: require, b: end{"allow", "k2", "another secret"}, fail: "AUTHENTICATION_FAILED", why: "it requires it"},
		{name: "another secret of the same name", a: allow, b: end{"allow", "k1", "another secret"}, fail: "AUTHENTICATION_FAILED", why: "mismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, b := pair(t, func(x, y *config.Config) {
				x.Phase1[0].AutoNegotiate = false
				withPPK(&x.Phase1[0], c.a.mode, c.a.id, c.a.secret)
				withPPK(&y.Phase1[0], c.b.mode, c.b.id, c.b.secret)
			})
			why := ""
			b.onLog = func(l Log) {
				if l.Message == "authentication failed" {
					for _, x := range l.Attrs {
						if x.Key == "reason" {
							why = x.Value.String()
						}
					}
				}
			}
			bringUp(a, b)
			if c.fail != "" {
				if got := a.e.Status(w.now)[0].Failure; !strings.Contains(got, c.fail) {
					t.Errorf("the initiator says %q, want %q", got, c.fail)
				}
				w.run(time.Minute)
				agree(t, a, b, 0, 0)
				if !strings.Contains(why, c.why) {
					t.Errorf("the responder says %q, want %q", why, c.why)
				}
				return
			}
			agree(t, a, b, 1, 1)
			for _, s := range []*side{a, b} {
				if got := s.e.Status(w.now)[0].IKE[0].PPK; got != c.used {
					t.Errorf("%s: PPK used: %v, want %v", s.name, got, c.used)
				}
			}
			// What is derived from SK_d agrees, too, and the word of it is passed on.
			a.rekeyChild()
			w.settle()
			b.rekeyIKE()
			w.settle()
			agree(t, a, b, 1, 1)
			if got := a.e.Status(w.now)[0].IKE[0].PPK; got != c.used {
				t.Errorf("after the rekey: PPK used: %v", got)
			}
		})
	}
}

// TestPPKChangesTheKeys: Child SAs are under other keys than without it.
func TestPPKChangesTheKeys(t *testing.T) {
	key := func(mode string) string {
		w, a, b := pair(t, func(x, y *config.Config) {
			withPPK(&x.Phase1[0], mode, "k1", "secret")
			withPPK(&y.Phase1[0], mode, "k1", "secret")
		})
		b.resume()
		a.resume()
		w.settle()
		agree(t, a, b, 1, 1)
		sa := a.established()[0]
		return string(sa.keys.D.Bytes())
	}
	// The same randomness, so the same key exchange and nonces.
	without := key("disable")
	if without != key("disable") {
		t.Fatal("two runs differ by more than the PPK")
	}
	if without == key("allow") {
		t.Error("SK_d is the same with and without a PPK")
	}
}

// TestCrashAtEveryEffectWithPPK: whoever finishes IKE_AUTH mixes the PPK in.
func TestCrashAtEveryEffectWithPPK(t *testing.T) {
	for _, unknown := range []bool{false, true} {
		t.Run(fmt.Sprintf("unknown=%v", unknown), func(t *testing.T) {
			crashAtEveryEffect(t, scenarios[0], func(a, b *config.Config) {
				withPPK(&a.Phase1[0], "allow", "k1", "secret")
				withPPK(&b.Phase1[0], "allow", "k1", "secret")
				if unknown {
					b.Phase1[0].PPKIdentity = "k2"
				}
			})
		})
	}
	crashAtEveryEffect(t, scenarios[3], func(a, b *config.Config) {
		withPPK(&a.Phase1[0], "require", "k1", "secret")
		withPPK(&b.Phase1[0], "require", "k1", "secret")
	})
}

// FuzzPPK gives a responder what an initiator may say at worst of its PPK: nothing but the
// right proof is taken, and a PPK that is required is not talked away.
func FuzzPPK(f *testing.F) {
	f.Add([]byte{2, 'k', '1'}, []byte{}, true, byte(1))
	f.Add([]byte{2, 'k', '2'}, make([]byte, 32), true, byte(0))
	f.Add([]byte{1, 'k', '1'}, make([]byte, 300), false, byte(2))
	f.Add([]byte{}, []byte{}, false, byte(3))
	f.Fuzz(func(t *testing.T, id, without []byte, negotiated bool, how byte) {
		_, a, _ := up(t, nil)
		sa := a.established()[0]
		p1 := *sa.p1
		if how&1 != 0 {
			withPPK(&p1, []string{"allow", "require"}[how>>1&1], "k1", "secret")
		}
		if negotiated {
			sa.caps |= capPPK
		}
		plain := string(sa.keys.D.Bytes())
		m := &message.Message{Payloads: []message.Payload{notify(message.PPKIdentity, id)}}
		if how&4 != 0 {
			m.Payloads = append(m.Payloads, notify(message.NoPPKAuth, without))
		}
		right := how&8 != 0
		mixed := false
		err := sa.underPPK(m, &p1, &message.Auth{Method: message.AuthPSK, Data: []byte("auth")}, func(auth *message.Auth) error {
			mixed = string(sa.keys.D.Bytes()) != plain
			if string(auth.Data) != "auth" && string(auth.Data) != string(without) {
				t.Error("something else is checked")
			}
			if right {
				return nil
			}
			return refuse(message.AuthenticationFailed, "wrong")
		})
		if err == nil && (!right || p1.PPK == "require" && !mixed) {
			t.Error("taken without the proof")
		}
		if used := sa.caps&capPPKUsed != 0; used != (err == nil && mixed) || used != (string(sa.keys.D.Bytes()) != plain) {
			t.Errorf("PPK used: %v, mixed: %v, %v", used, mixed, err)
		}
	})
}
