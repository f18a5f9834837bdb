package ike

import (
	"fmt"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
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
