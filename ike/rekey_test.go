package ike

import (
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func spiSet(s *side) map[ipsec.ESPSPI]bool {
	m := map[ipsec.ESPSPI]bool{}
	for _, x := range s.order {
		m[x] = true
	}
	return m
}

func TestChildRekeyWithoutLoss(t *testing.T) {
	for _, byInitiator := range []bool{true, false} {
		w, a, b := up(t, nil)
		p := a
		if !byInitiator {
			p = b
		}
		before := spiSet(a)
		// Every message is a moment at which packets cross.
		p.e.HandleExpiring(w.now, p.order[0], false)
		p.drain()
		for len(w.wire) > 0 {
			d := w.wire[0]
			w.wire = w.wire[1:]
			for range 2 {
				if !a.esp(b) || !b.esp(a) {
					t.Fatal("a packet was lost")
				}
			}
			w.deliver(d)
			if !a.esp(b) || !b.esp(a) {
				t.Fatal("a packet was lost")
			}
		}
		agree(t, a, b, 1, 1)
		for spi := range before {
			if a.installed[spi] != nil {
				t.Error("the old SA is still there")
			}
		}
		if c := a.ike()[0].children[0]; c.Suite.KE != ipsec.KEX25519 {
			t.Error("rekeyed without a key exchange in spite of PFS")
		}
		if w.seenOf(message.Informational) != 1 {
			t.Errorf("%d DELETEs, want 1 by the initiator of the rekey", w.seenOf(message.Informational))
		}
	}
}

func TestResponderWaitsWithTheNewSA(t *testing.T) {
	w, a, b := up(t, nil)
	old := b.outbound()[0]
	a.rekeyChild()
	w.deliver(w.wire[0]) // the request
	w.wire = w.wire[1:]
	if got := b.outbound(); len(b.installed) != 2 || len(got) != 1 || got[0] != old {
		t.Fatalf("responder sends on %v after its response, want the old SA %v", got, old)
	}
	// The first packet on the new SA switches it.
	b.e.HandleFirstInbound(w.now, b.order[1])
	b.drain()
	if got := b.outbound(); len(got) != 1 || got[0] == old {
		t.Errorf("responder sends on %v after the peer's first packet, want the new SA", got)
	}
	w.settle()
	agree(t, a, b, 1, 1)
}

func TestIKERekey(t *testing.T) {
	for _, byInitiator := range []bool{true, false} {
		w, a, b := up(t, nil)
		p := a
		if !byInitiator {
			p = b
		}
		old := a.ike()[0].spis
		spis := spiSet(a)
		p.rekeyIKE()
		w.settle()
		agree(t, a, b, 1, 1)
		n := a.ike()[0]
		if n.spis == old || n.spis.I == old.I || n.spis.R == old.R {
			t.Error("the SPIs are not new")
		}
		if n.nextSend != 0 || n.nextRecv != 0 {
			t.Errorf("message IDs %d/%d, want to begin at 0", n.nextSend, n.nextRecv)
		}
		if n.initiator != (p == a) {
			t.Error("the initiator of the rekey is not the initiator of the new IKE SA")
		}
		for _, spi := range a.order {
			if !spis[spi] {
				t.Error("the Child SA was not inherited")
			}
		}
		last := w.seen[len(w.seen)-2] // request of the last exchange
		h, _ := message.ParseHeader(last.Data)
		if h.SPIs != old || h.Exchange != message.Informational {
			t.Error("the old IKE SA was not deleted in the old IKE SA")
		}
		// It goes on.
		a.rekeyChild()
		w.settle()
		b.rekeyChild()
		w.settle()
		agree(t, a, b, 1, 1)
	}
}

// interleavings delivers the messages under way in every order that keeps those of
// one direction in order, and calls check at the end of each.
func interleavings(t *testing.T, setup func() (*world, *side, *side), check func(w *world, a, b *side)) {
	t.Helper()
	var choices []bool
	for n := 0; ; n++ {
		if n == 2000 {
			t.Fatal("too many interleavings")
		}
		w, a, b := setup()
		at := 0
		for len(w.wire) > 0 {
			first, second := -1, -1
			for i, d := range w.wire {
				if d.Local.Addr() == a.addr && first < 0 {
					first = i
				} else if d.Local.Addr() != a.addr && second < 0 {
					second = i
				}
			}
			pick := max(first, second)
			if first >= 0 && second >= 0 {
				if at == len(choices) {
					choices = append(choices, false)
				}
				if pick = first; choices[at] {
					pick = second
				}
				at++
			}
			d := w.wire[pick]
			w.wire = slices.Delete(slices.Clone(w.wire), pick, pick+1)
			w.deliver(d)
		}
		check(w, a, b)
		if t.Failed() {
			t.Fatalf("with the choices %v", choices)
		}
		choices = choices[:at]
		for len(choices) > 0 && choices[len(choices)-1] {
			choices = choices[:len(choices)-1]
		}
		if len(choices) == 0 {
			t.Logf("%d interleavings", n+1)
			if n < 3 {
				t.Fatalf("only %d interleavings", n+1)
			}
			return
		}
		choices[len(choices)-1] = true
	}
}

func TestSimultaneousChildRekey(t *testing.T) {
	interleavings(t, func() (*world, *side, *side) {
		w, a, b := up(t, nil)
		a.rekeyChild()
		b.rekeyChild()
		return w, a, b
	}, func(w *world, a, b *side) {
		w.run(10 * time.Second)
		agree(t, a, b, 1, 1)
		if !a.esp(b) || !b.esp(a) {
			t.Error("traffic does not pass")
		}
	})
}

func TestSimultaneousIKERekey(t *testing.T) {
	interleavings(t, func() (*world, *side, *side) {
		w, a, b := up(t, nil)
		a.rekeyIKE()
		b.rekeyIKE()
		return w, a, b
	}, func(w *world, a, b *side) {
		w.run(3 * time.Minute)
		agree(t, a, b, 1, 1)
		if !a.esp(b) || !b.esp(a) {
			t.Error("traffic does not pass")
		}
	})
}

func TestIKERekeyMeetsChildRekey(t *testing.T) {
	interleavings(t, func() (*world, *side, *side) {
		w, a, b := up(t, nil)
		a.rekeyIKE()
		b.rekeyChild()
		return w, a, b
	}, func(w *world, a, b *side) {
		w.run(30 * time.Second)
		agree(t, a, b, 1, 1)
		if !a.esp(b) || !b.esp(a) {
			t.Error("traffic does not pass")
		}
	})
}

func TestSimultaneousDeletes(t *testing.T) {
	for _, kinds := range [][2]func(*side){
		{func(s *side) { s.down("net") }, func(s *side) { s.down("net") }},
		{clearAll, clearAll},
		{clearAll, func(s *side) { s.down("net") }},
		{func(s *side) { s.rekeyChild() }, func(s *side) { s.down("net") }},
		{func(s *side) { s.rekeyChild() }, clearAll},
		{func(s *side) { s.rekeyIKE() }, func(s *side) { s.down("net") }},
		{func(s *side) { s.rekeyIKE() }, clearAll},
	} {
		interleavings(t, func() (*world, *side, *side) {
			w, a, b := up(t, nil)
			a.e.cfg.Phase1[0].AutoNegotiate = false // what is gone stays gone
			kinds[0](a)
			kinds[1](b)
			return w, a, b
		}, func(w *world, a, b *side) {
			w.run(3 * time.Minute)
			agree(t, a, b, len(a.ike()), 0)
		})
	}
}

// TestSimultaneousRekeyWithLoss loses any one message of a simultaneous rekey.
func TestSimultaneousRekeyWithLoss(t *testing.T) {
	for _, begin := range []func(*side){func(s *side) { s.rekeyChild() }, func(s *side) { s.rekeyIKE() }} {
		for _, both := range []bool{true, false} {
			for lost := range 12 {
				w, a, b := up(t, nil)
				n := 0
				w.drop = func(Datagram) bool { n++; return n-1 == lost }
				begin(a)
				if both {
					begin(b)
				}
				w.run(3 * time.Minute)
				agree(t, a, b, 1, 1)
				if !a.esp(b) || !b.esp(a) {
					t.Error("traffic does not pass")
				}
				sameBits(t, w)
				if t.Failed() {
					t.Fatalf("message %d lost, both=%v", lost, both)
				}
			}
		}
	}
}

func TestSimultaneousRekeyUnderCrash(t *testing.T) {
	for _, ike := range []bool{true, false} {
		begin := func(s *side) { s.rekeyChild() }
		if ike {
			begin = func(s *side) { s.rekeyIKE() }
		}
		for k := 1; k < 100; k++ {
			w, a, b := pair(t, func(ca, cb *config.Config) { ca.Phase1[0].AutoNegotiate = false })
			a2 := w.standby(a, 77)
			bringUp(a, b)
			inits := w.seenOf(message.IKESAInit)
			a.cutAt = a.effects + k
			begin(a)
			begin(b)
			w.settle()
			if !a.dead {
				break
			}
			a2.resume()
			w.run(4 * time.Minute)
			agree(t, a2, b, 1, 1)
			if !a2.esp(b) || !b.esp(a2) {
				t.Error("traffic does not pass")
			}
			if w.seenOf(message.IKESAInit) != inits {
				t.Error("negotiated anew")
			}
			if t.Failed() {
				t.Fatalf("ike=%v, effect %d", ike, k)
			}
		}
	}
}
