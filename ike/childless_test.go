package ike

import (
	"fmt"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

func childless(a, b *config.Config) {
	a.Phase1[0].ChildlessIKE, b.Phase1[0].ChildlessIKE = true, true
}

// wantAuthPayloads checks what IKE_AUTH requests carry, as their responder reads them.
func watchAuth(s *side) *[]*message.Message {
	var seen []*message.Message
	s.w.nat = func(d *Datagram) bool {
		h, err := message.ParseHeader(d.Data)
		if err != nil || h.Exchange != message.IKEAuth {
			return true
		}
		sa := s.e.sas[h.SPIs.R]
		if h.Response {
			sa = s.e.sas[h.SPIs.I]
		}
		if sa == nil || d.Remote.Addr() != s.addr || s.e.ciphers(sa) != nil {
			return true
		}
		if m, err := message.Parse(d.Data); err == nil && m.Open(d.Data, sa.opener) == nil {
			seen = append(seen, m)
		}
		return true
	}
	return &seen
}

func TestChildless(t *testing.T) {
	for _, c := range []struct {
		a, b bool
		want bool // IKE_AUTH is childless
	}{{true, true, true}, {true, false, false}, {false, true, false}, {false, false, false}} {
		t.Run(fmt.Sprintf("%v-%v", c.a, c.b), func(t *testing.T) {
			w, a, b := pair(t, func(x, y *config.Config) {
				x.Phase1[0].AutoNegotiate = false
				x.Phase1[0].ChildlessIKE, y.Phase1[0].ChildlessIKE = c.a, c.b
			})
			seen := watchAuth(b)
			bringUp(a, b)
			agree(t, a, b, 1, 1)
			if len(*seen) != 1 {
				t.Fatalf("%d IKE_AUTH requests", len(*seen))
			}
			m := (*seen)[0]
			_, sa := message.Get[*message.SA](m)
			_, ts := message.Get[*message.TS](m)
			if sa == c.want || ts == c.want {
				t.Errorf("IKE_AUTH with SA %v, TS %v", sa, ts)
			}
			if n := w.seenOf(message.CreateChildSA); n != map[bool]int{true: 1, false: 0}[c.want] {
				t.Errorf("%d CREATE_CHILD_SA requests", n)
			}
			// The peer says it whether asked or not (RFC 6023 §3).
			for _, d := range w.seen {
				m, err := message.Parse(d.Data)
				if err != nil || m.Exchange != message.IKESAInit {
					continue
				}
				if _, says := m.Notify(message.ChildlessSupported); says != (m.Response && c.b) {
					t.Errorf("CHILDLESS_IKEV2_SUPPORTED %v in IKE_SA_INIT, response %v", says, m.Response)
				}
			}
			// Its keys come from a key exchange of its own; the group is that of phase 2.
			if ke := a.installed[a.order[0]].SA.Suite.KE; (ke != 0) != c.want {
				t.Errorf("key exchange group %d", ke)
			}
			if !a.esp(b) || !b.esp(a) {
				t.Error("traffic does not pass")
			}
			a.rekeyIKE()
			b.rekeyChild()
			w.settle()
			agree(t, a, b, 1, 1)
		})
	}
}

// TestCrashAtEveryEffectChildless: the Child SA that IKE_AUTH left out is the successor's to make.
func TestCrashAtEveryEffectChildless(t *testing.T) { crashAtEveryEffect(t, scenarios[0], childless) }

// TestChildlessOnBothSidesAtOnce: of two childless IKE SAs that cross one stays, and has the
// Child SA, although the other had one already.
func TestChildlessOnBothSidesAtOnce(t *testing.T) {
	kept := map[bool]int{}
	for seed := range uint64(8) {
		w := newWorld(t)
		ca := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB)}, Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}
		cb := &config.Config{Phase1: []config.Phase1{phase1To("toA", addrA)}, Phase2: []config.Phase2{phase2For("toA", "net", netB, netA)}}
		childless(ca, cb)
		a, b := w.side("A", addrA, 2*seed+1, ca, nil), w.side("B", addrB, 2*seed+2, cb, nil)
		var late []Datagram // the answer to B's IKE_SA_INIT
		w.drop = func(d Datagram) bool {
			h, _ := message.ParseHeader(d.Data)
			if late == nil && h.Response && h.Exchange == message.IKESAInit && d.Remote.Addr() == b.addr {
				late = append(late, d)
				return true
			}
			return false
		}
		a.resume()
		b.resume()
		b.up("net")
		a.up("net")
		w.settle()
		first := a.established()
		if len(late) != 1 || len(first) != 1 || len(first[0].children) != 1 {
			t.Fatalf("%d late, %v", len(late), describe(a.ike()))
		}
		w.wire = append(w.wire, late...)
		w.settle()
		w.run(time.Second)
		agree(t, a, b, 1, 1)
		if !a.esp(b) || !b.esp(a) {
			t.Error("traffic does not pass")
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		kept[a.established()[0] == first[0]]++
	}
	if kept[true] == 0 || kept[false] == 0 {
		t.Errorf("only one of the nonces' orders came: %v", kept)
	}
}
