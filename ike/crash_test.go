package ike

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

// scenario is one exchange: how it begins, and what both sides agree on after it.
type scenario struct {
	name   string
	change func(a, b *config.Config)
	before func(a, b *side) // establishes what the exchange starts from
	begin  func(s *side)    // s is who begins the exchange
	// IKE SAs and Child SAs before and after.
	ikes0, children0, ikes, children int
}

func bringUp(a, b *side) {
	b.resume()
	a.resume()
	a.up("net")
	a.w.settle()
}

var twoPhase2 = func(a, b *config.Config) {
	a.Phase2 = append(a.Phase2, phase2For("toB", "net2", "10.3.0.0/16", "10.4.0.0/16"))
	b.Phase2 = append(b.Phase2, phase2For("toA", "net2", "10.4.0.0/16", "10.3.0.0/16"))
}

func clearAll(s *side) { s.e.Clear(s.w.now, ""); s.drain() }

var scenarios = []scenario{
	{name: "IKE_SA_INIT and IKE_AUTH", before: func(a, b *side) { a.resume(); b.resume() },
		begin: func(s *side) { s.up("net") }, ikes: 1, children: 1},
	{name: "IKE_AUTH by certificates", change: signed("ecdsa256"), before: func(a, b *side) { a.resume(); b.resume() },
		begin: func(s *side) { s.up("net") }, ikes: 1, children: 1},
	{name: "IKE_AUTH by RSASSA-PSS", change: func(a, b *config.Config) {
		signed("rsa2048")(a, b)
		a.Phase1[0].RSASignatureFormat, b.Phase1[0].RSASignatureFormat = "pss", "pss"
	}, before: func(a, b *side) { a.resume(); b.resume() }, begin: func(s *side) { s.up("net") }, ikes: 1, children: 1},
	{name: "CREATE_CHILD_SA", change: twoPhase2, before: bringUp, begin: func(s *side) { s.up("net2") },
		ikes0: 1, children0: 1, ikes: 1, children: 2},
	{name: "Child rekey", before: bringUp, begin: func(s *side) { s.rekeyChild() },
		ikes0: 1, children0: 1, ikes: 1, children: 1},
	{name: "IKE rekey", before: bringUp, begin: func(s *side) { s.rekeyIKE() },
		ikes0: 1, children0: 1, ikes: 1, children: 1},
	{name: "DPD", before: bringUp, begin: func(s *side) { s.event(func(e *Engine) { e.sendDPD(s.established()[0]) }) },
		ikes0: 1, children0: 1, ikes: 1, children: 1},
	{name: "DELETE of the Child SA", before: bringUp, begin: func(s *side) { s.down("net") },
		ikes0: 1, children0: 1, ikes: 1, children: 0},
	{name: "DELETE of the IKE SA", before: bringUp, begin: clearAll, ikes0: 1, children0: 1},
}

// TestCrashAtEveryEffect kills the owner after every single effect of every
// exchange in both roles; its standby finishes, and nothing is negotiated anew.
func TestCrashAtEveryEffect(t *testing.T) {
	for _, sc := range scenarios {
		for _, initiator := range []bool{true, false} {
			role := map[bool]string{true: "initiator", false: "responder"}[initiator]
			for _, loss := range []bool{false, true} {
				name := fmt.Sprintf("%s/%s/loss=%v", sc.name, role, loss)
				t.Run(name, func(t *testing.T) {
					for k := 1; k < 100; k++ {
						if !crashOnce(t, sc, initiator, loss, k) {
							if k < 3 {
								t.Errorf("only %d effects", k)
							}
							return
						}
						if t.Failed() {
							t.Fatalf("after effect %d", k-1)
						}
					}
					t.Error("effects without end")
				})
			}
		}
	}
}

// crashOnce lets the owner die before its k-th effect; it returns false when the
// exchange ended before that.
func crashOnce(t *testing.T, sc scenario, initiator, loss bool, k int) bool {
	w, a, b := pair(t, func(ca, cb *config.Config) {
		ca.Phase1[0].AutoNegotiate = false
		ca.Phase1[0].DPD, cb.Phase1[0].DPD = "disable", "disable"
		if sc.change != nil {
			sc.change(ca, cb)
		}
	})
	a2 := w.standby(a, 77)
	sc.before(a, b)
	agree(t, a, b, sc.ikes0, sc.children0)
	if loss {
		// What the owner sent last before it died is lost.
		w.drop = func(d Datagram) bool { return a.dead && !a2.e.active }
	}
	inits := w.seenOf(message.IKESAInit)
	records := len(a.records)
	a.cutAt = a.effects + k - 1
	if k == 1 {
		a.dead = true // before anything of it
	}
	if initiator && !a.dead {
		sc.begin(a)
	} else if !initiator {
		sc.begin(b)
	}
	w.settle()
	if !a.dead {
		agree(t, a, b, sc.ikes, sc.children)
		return false
	}
	a2.resume()
	w.run(3 * time.Minute)
	ikes, children := sc.ikes, sc.children
	if initiator && len(a.records) == records {
		ikes, children = sc.ikes0, sc.children0 // nobody but the dead knew of it
	}
	agree(t, a2, b, ikes, children)
	if children > 0 && (!a2.esp(b) || !b.esp(a2)) {
		t.Error("traffic does not pass")
	}
	want := inits
	if sc.ikes0 == 0 {
		want = distinctInits(w)
		if want > 1 {
			t.Errorf("%d different IKE_SA_INIT requests", want)
		}
	} else if n := w.seenOf(message.IKESAInit); n != want {
		t.Errorf("%d IKE_SA_INIT requests, want %d", n, want)
	}
	sameBits(t, w)
	return true
}

func distinctInits(w *world) int {
	set := map[string]bool{}
	for _, d := range w.seen {
		if h, err := message.ParseHeader(d.Data); err == nil && h.Exchange == message.IKESAInit && !h.Response {
			set[string(d.Data)] = true
		}
	}
	return len(set)
}

// sameBits checks that messages with one ID, direction and IKE SA are equal to the
// bit, whoever sent them.
func sameBits(t *testing.T, w *world) {
	t.Helper()
	type key struct {
		spis    any
		id      uint32
		resp, i bool
		remote  any
	}
	known := map[key][]byte{}
	for _, d := range w.seen {
		h, err := message.ParseHeader(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		if h.Exchange == message.IKESAInit || h.NextPayload != message.TypeSK {
			continue // cookies and groups change it; complaints are not protected
		}
		k := key{h.SPIs, h.MessageID, h.Response, h.Initiator, d.Remote}
		if was, ok := known[k]; ok && !bytes.Equal(was, d.Data) {
			t.Errorf("two different messages %s %d of IKE SA %s", h.Exchange, h.MessageID, h.SPIs)
		}
		known[k] = d.Data
	}
}
