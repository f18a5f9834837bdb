package ike

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

const (
	mlkem768  = ipsec.KEMLKEM768
	mlkem1024 = ipsec.KEMLKEM1024
	none      = ipsec.KENone
)

// addKE gives both gateways additional key exchanges, in phase 1 and phase 2.
func addKE(lists ...[]ipsec.TransformID) func(a, b *config.Config) {
	return func(a, b *config.Config) {
		setAddKE(a, lists...)
		setAddKE(b, lists...)
	}
}

func setAddKE(c *config.Config, lists ...[]ipsec.TransformID) {
	c.Phase1[0].Fragmentation, c.Phase1[0].FragmentationMTU = true, 1200
	copy(c.Phase1[0].AddKE[:], lists)
	for i := range c.Phase2 {
		copy(c.Phase2[i].AddKE[:], lists)
	}
}

var (
	oneAddKE  = addKE([]ipsec.TransformID{mlkem768})
	twoAddKEs = addKE([]ipsec.TransformID{mlkem1024}, nil, []ipsec.TransformID{mlkem768})
)

func TestAdditionalKeyExchanges(t *testing.T) {
	ids := func(x ...ipsec.TransformID) []ipsec.TransformID { return x }
	type lists = [][]ipsec.TransformID
	for _, c := range []struct {
		name string
		a, b lists
		used []ipsec.TransformID
		fail bool
	}{
		{"one", lists{ids(mlkem768)}, lists{ids(mlkem768)}, ids(mlkem768), false},
		{"two, with a gap", lists{ids(mlkem1024), nil, ids(mlkem768)}, lists{ids(mlkem1024), nil, ids(mlkem768)}, ids(mlkem1024, mlkem768), false},
		{"the responder's first choice counts", lists{ids(mlkem768, mlkem1024)}, lists{ids(mlkem1024, mlkem768)}, ids(mlkem1024), false},
		{"optional here, required there", lists{ids(mlkem768, none)}, lists{ids(mlkem768)}, ids(mlkem768), false},
		{"required here, optional there", lists{ids(mlkem768)}, lists{ids(mlkem768, none)}, ids(mlkem768), false},
		{"optional, and the responder has none", lists{ids(mlkem768, none)}, nil, nil, false},
		{"optional, and the initiator has none", nil, lists{ids(mlkem768, none)}, nil, false},
		{"nothing in common but none", lists{ids(mlkem768, none)}, lists{ids(mlkem1024, none)}, nil, false},
		{"one method for two of them: the second does without", lists{ids(mlkem768), ids(mlkem768, none)}, lists{ids(mlkem768), ids(mlkem768, none)}, ids(mlkem768), false},
		{"the first one makes room for the second", lists{ids(mlkem768, mlkem1024), ids(mlkem768)}, lists{ids(mlkem768, mlkem1024), ids(mlkem768)}, ids(mlkem1024, mlkem768), false},
		{"required, and the responder has none", lists{ids(mlkem768)}, nil, nil, true},
		{"required, and the initiator has none", nil, lists{ids(mlkem768)}, nil, true},
		{"another one is required", lists{ids(mlkem768)}, lists{ids(mlkem1024)}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, b := pair(t, func(x, y *config.Config) {
				x.Phase1[0].AutoNegotiate = false
				setAddKE(x, c.a...)
				setAddKE(y, c.b...)
			})
			bringUp(a, b)
			if c.fail {
				w.run(time.Minute)
				agree(t, a, b, 0, 0)
				return
			}
			agree(t, a, b, 1, 1)
			for _, s := range []*side{a, b} {
				if got := fmt.Sprint(s.established()[0].suite.AddKE.Methods()); got != fmt.Sprint(c.used) {
					t.Errorf("%s: IKE SA with %v, want %v", s.name, got, c.used)
				}
			}
			if n := w.seenWhole(message.Intermediate); n != len(c.used) {
				t.Errorf("%d IKE_INTERMEDIATE exchanges, want %d", n, len(c.used))
			}
			for _, rekey := range []func(){a.rekeyChild, b.rekeyChild, a.rekeyIKE, b.rekeyIKE} {
				before := w.seenWhole(message.FollowupKE)
				rekey()
				w.settle()
				agree(t, a, b, 1, 1)
				if n := w.seenWhole(message.FollowupKE) - before; n != len(c.used) {
					t.Errorf("%d IKE_FOLLOWUP_KE exchanges, want %d", n, len(c.used))
				}
				for _, s := range []*side{a, b} {
					sa := s.established()[0]
					if n := len(sa.suite.AddKE.Methods()); n != len(c.used) {
						t.Errorf("%s: IKE SA with %v", s.name, sa.suite.AddKE)
					}
					if n := len(sa.children[0].Suite.AddKE.Methods()); n != len(c.used) {
						t.Errorf("%s: Child SA with %v", s.name, sa.children[0].Suite.AddKE)
					}
				}
				if !a.esp(b) || !b.esp(a) {
					t.Error("traffic does not pass")
				}
			}
			sameBits(t, w)
			nothingPending(t, a, b)
		})
	}
}

// seenWhole counts requests of an exchange, however many fragments each had.
func (w *world) seenWhole(x message.ExchangeType) int {
	n := 0
	for _, d := range w.seen {
		if h, err := message.ParseHeader(d.Data); err == nil && h.Exchange == x && !h.Response && fragmentOf(d.Data) <= 1 {
			n++
		}
	}
	return n
}

// nothingPending checks that no secret of what is done is left.
func nothingPending(t *testing.T, sides ...*side) {
	t.Helper()
	for _, s := range sides {
		ids := map[ipsec.KeyID]bool{}
		for _, sa := range s.ike() {
			if len(sa.half) > 0 || sa.inter != nil && sa.state == stateEstablished {
				t.Errorf("%s: something is half made on %s", s.name, sa.spis)
			}
			ids[sa.keyID] = true
			for _, c := range sa.children {
				ids[c.KeyID] = true
			}
		}
		for id := range s.e.keyRefs {
			if !ids[id] {
				t.Errorf("%s: a key of nothing is kept", s.name)
			}
		}
		if len(s.e.keyRefs) != len(ids) {
			t.Errorf("%s: %d keys, want %d", s.name, len(s.e.keyRefs), len(ids))
		}
	}
}

// TestCrashAtEveryEffectWithAdditionalKeyExchanges: whoever takes over between two key
// exchanges goes on with the next one, in both roles.
func TestCrashAtEveryEffectWithAdditionalKeyExchanges(t *testing.T) {
	for _, sc := range scenarios {
		switch sc.name {
		case "IKE_SA_INIT and IKE_AUTH", "IKE_AUTH by certificates", "CREATE_CHILD_SA", "Child rekey", "IKE rekey":
		default:
			continue
		}
		change := sc.change
		for _, v := range []struct {
			name string
			set  func(a, b *config.Config)
		}{{"one", oneAddKE}, {"two", twoAddKEs}} {
			x := sc
			x.name, x.change = sc.name+"/"+v.name, func(a, b *config.Config) {
				if change != nil {
					change(a, b)
				}
				v.set(a, b)
			}
			crashAtEveryEffect(t, x, func(a, b *config.Config) {})
		}
	}
}

// TestAdditionalKeyExchangesAfterARetry: a cookie, or another group, before them.
func TestAdditionalKeyExchangesAfterARetry(t *testing.T) {
	t.Run("cookie", func(t *testing.T) {
		w, a, b := pair(t, oneAddKE)
		b.e.o.HalfOpenLimit, b.e.halfOpen = 1, 1
		b.resume()
		a.resume()
		req := w.wire[0]
		w.wire = nil
		w.deliver(req)
		if len(b.e.sas) != 0 || len(b.records) != 0 || b.e.counters.CookiesSent != 1 {
			t.Fatal("the cookie cost state")
		}
		w.settle()
		agree(t, a, b, 1, 1)
		if n := w.seenWhole(message.Intermediate); n != 1 {
			t.Errorf("%d IKE_INTERMEDIATE exchanges", n)
		}
	})
	t.Run("group", func(t *testing.T) {
		w, a, b := pair(t, func(x, y *config.Config) {
			oneAddKE(x, y)
			x.Phase1[0].DHGroups = groups(ipsec.KEECP384, ipsec.KEX25519)
		})
		b.resume()
		a.resume()
		w.settle()
		agree(t, a, b, 1, 1)
		if n := w.seenWhole(message.Intermediate); n != 1 || distinctInits(w) != 2 {
			t.Errorf("%d IKE_INTERMEDIATE exchanges after %d requests", n, distinctInits(w))
		}
	})
	t.Run("a PPK beside them, and no Child SA", func(t *testing.T) {
		w, a, b := pair(t, func(x, y *config.Config) {
			twoAddKEs(x, y)
			childless(x, y)
			withPPK(&x.Phase1[0], "require", "k1", "secret")
			withPPK(&y.Phase1[0], "require", "k1", "secret")
		})
		b.resume()
		a.resume()
		w.settle()
		agree(t, a, b, 1, 1)
		if n := w.seenWhole(message.FollowupKE); n != 2 {
			t.Errorf("%d IKE_FOLLOWUP_KE exchanges", n)
		}
		nothingPending(t, a, b)
	})
}

// TestIntermediateOfAStranger: what somebody who is not authenticated may say in
// IKE_INTERMEDIATE ends his half-open IKE SA at worst, and costs little.
func TestIntermediateOfAStranger(t *testing.T) {
	refused := func(o *other, ps []part, kind message.NotifyType) {
		o.t.Helper()
		if _, ok := findNotify(ps, uint16(kind)); !ok || len(o.s.ike()) != 0 {
			o.t.Errorf("answered by %v, %d IKE SAs are left", kindsOf(ps), len(o.s.ike()))
		}
	}
	for _, c := range []struct {
		name string
		say  func(o *other)
	}{
		{"another method", func(o *other) {
			refused(o, o.request(oIntermediate, ke(37, make([]byte, 1568))), message.InvalidSyntax)
		}},
		{"a key that is too short", func(o *other) {
			refused(o, o.request(oIntermediate, ke(36, make([]byte, 1183))), message.InvalidSyntax)
		}},
		{"a key beyond the modulus", func(o *other) {
			refused(o, o.request(oIntermediate, ke(36, bytes.Repeat([]byte{0xff}, 1184))), message.InvalidSyntax)
		}},
		{"IKE_AUTH before it", func(o *other) {
			id := []byte{2, 0, 0, 0, 'x'}
			refused(o, o.request(oAuth, part{oIDi, id}, part{oAUTH, make([]byte, 36)}), message.InvalidSyntax)
		}},
		{"CREATE_CHILD_SA", func(o *other) {
			if back := o.deliver(o.seal(oCreate, false, 1, part{oNonce, nonce()})...); len(back) != 0 {
				o.t.Error("it is answered")
			}
		}},
		{"empty ones without end", func(o *other) {
			for range maxIntermediate {
				if ps := o.request(oIntermediate); len(ps) != 0 {
					o.t.Fatalf("answered by %v", kindsOf(ps))
				}
			}
			refused(o, o.request(oIntermediate), message.InvalidSyntax)
		}},
		{"a second one for the same method", func(o *other) {
			public, complete := o.begin(36)
			ps := o.request(oIntermediate, ke(36, public))
			if n := len(o.s.records[len(o.s.records)-1].Entries[0].Value); n > 4<<10 {
				o.t.Errorf("the record of a half-open IKE SA has %d bytes", n)
			}
			o.keys(hmacOf(o.d, complete(o.body(ps, oKE)[4:]), o.ni, o.nr))
			refused(o, o.request(oIntermediate, ke(36, public)), message.InvalidSyntax)
		}},
		{"IKE_AUTH that leaves it out of AUTH", func(o *other) {
			public, complete := o.begin(36)
			ps := o.request(oIntermediate, ke(36, public))
			o.keys(hmacOf(o.d, complete(o.body(ps, oKE)[4:]), o.ni, o.nr))
			o.add = nil // so says this one's auth
			id := []byte{2, 0, 0, 0, 'x'}
			refused(o, o.request(oAuth, part{oIDi, id}, part{oAUTH, join([]byte{2, 0, 0, 0}, o.auth(true, id, o.send))}), message.AuthenticationFailed)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, b := pair(t, oneAddKE)
			b.resume()
			o := newOther(t, b, true, []uint16{36}, 0)
			o.start()
			c.say(o)
		})
	}
}

// TestIntermediateRecords: records of other software, or broken ones.
func TestIntermediateRecords(t *testing.T) {
	_, a, b := up(t, oneAddKE)
	value := func(change func(*syncpb.IKESA)) []byte {
		var p syncpb.IKESA
		if err := proto.Unmarshal(b.e.entry(b.established()[0]).Value, &p); err != nil {
			t.Fatal(err)
		}
		change(&p)
		out, err := proto.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	half := func(secrets int) *syncpb.HalfMade {
		return &syncpb.HalfMade{Kind: 4, Suite: encodeSuite(ipsec.Suite{AddKE: ipsec.AddKE{mlkem768}}), Secrets: make([][]byte, secrets)}
	}
	for _, c := range []struct {
		name   string
		ok     bool
		change func(*syncpb.IKESA)
	}{
		{"without any of it, as older software writes", true, func(p *syncpb.IKESA) { p.Suite.AddKe = nil }},
		{"one half-made SA", true, func(p *syncpb.IKESA) { p.HalfMade = []*syncpb.HalfMade{half(1)} }},
		{"no secret", false, func(p *syncpb.IKESA) { p.HalfMade = []*syncpb.HalfMade{half(0)} }},
		{"more secrets than methods", false, func(p *syncpb.IKESA) { p.HalfMade = []*syncpb.HalfMade{half(2)} }},
		{"too many", false, func(p *syncpb.IKESA) {
			for range maxHalfMade + 1 {
				p.HalfMade = append(p.HalfMade, half(1))
			}
		}},
		{"of another kind", false, func(p *syncpb.IKESA) { h := half(1); h.Kind = 7; p.HalfMade = []*syncpb.HalfMade{h} }},
		{"too many exchanges", false, func(p *syncpb.IKESA) { p.Intermediate = &syncpb.Intermediate{Exchanges: maxIntermediate + 1} }},
		{"more methods than exchanges", false, func(p *syncpb.IKESA) { p.Intermediate = &syncpb.Intermediate{Exchanges: 1, Methods: 2} }},
		{"a follow-up of nothing", false, func(p *syncpb.IKESA) { p.Outstanding = &syncpb.Exchange{Kind: 4, FollowUp: 1} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := a.e.decode(value(c.change)); (err == nil) != c.ok {
				t.Errorf("decoded: %v", err)
			}
		})
	}
}
