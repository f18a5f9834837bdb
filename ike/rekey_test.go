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

// TestSimultaneousRekeyWithTwoLosses loses any two messages, so that requests and
// responses arrive long after the other side has gone on.
func TestSimultaneousRekeyWithTwoLosses(t *testing.T) {
	for name, begin := range map[string]func(*side){"child": (*side).rekeyChild, "ike": (*side).rekeyIKE} {
		for i := range 8 {
			for j := i + 1; j < 12; j++ {
				w, a, b := up(t, nil)
				n := 0
				w.drop = func(Datagram) bool { n++; return n-1 == i || n-1 == j }
				begin(a)
				begin(b)
				w.run(4 * time.Minute)
				agree(t, a, b, 1, 1)
				if !a.esp(b) || !b.esp(a) {
					t.Error("traffic does not pass")
				}
				if t.Failed() {
					t.Fatalf("%s: messages %d and %d lost", name, i, j)
				}
			}
		}
	}
}

// answer opens the protected response that p received from the engine under test.
func answer(t *testing.T, p *side, sa *ikeSA, d Datagram) *message.Message {
	t.Helper()
	m, ok, err := p.e.open(sa, flip(d))
	if !ok || err != nil {
		t.Fatalf("the answer does not open: %v", err)
	}
	return m
}

// ask sends a request of the peer's own making on its IKE SA and returns the answer.
func ask(t *testing.T, w *world, p *side, sa *ikeSA, exch message.ExchangeType, ps ...message.Payload) *message.Message {
	t.Helper()
	end := p.e.begin(w.now)
	raw, err := p.e.seal(sa, exch, false, sa.nextSend, ps)
	sa.nextSend++
	end()
	if err != nil {
		t.Fatal(err)
	}
	w.wire = nil
	w.deliver(sa.datagram(raw))
	for _, d := range w.wire {
		if h, _ := message.ParseHeader(d.Data); h.Response {
			return answer(t, p, sa, d)
		}
	}
	t.Fatal("no answer")
	return nil
}

func rekeyPayloads(spi ipsec.ESPSPI) []message.Payload {
	return []message.Payload{
		&message.Notify{Protocol: ipsec.ProtocolESP, SPI: spiBytes(spi), NotifyType: message.RekeySA},
		&message.SA{Proposals: espProposals([]ipsec.Suite{esp(gcm128)}, groups(ipsec.KEX25519), spiBytes(0x1234567))},
		&message.Nonce{Data: make([]byte, 32)},
		&message.KE{Group: ipsec.KEX25519, Data: append([]byte{9}, make([]byte, 31)...)},
		&message.TS{Selectors: []ipsec.TrafficSelector{subnet(netA)}},
		&message.TS{Responder: true, Selectors: []ipsec.TrafficSelector{subnet(netB)}},
	}
}

func wantNotify(t *testing.T, m *message.Message, want message.NotifyType) *message.Notify {
	t.Helper()
	n, ok := m.Notify(want)
	if !ok || len(m.Payloads) != 1 {
		t.Fatalf("answer %v, want %s alone", m.Payloads, want)
	}
	return n
}

func TestRefusalsOfRFC7296Section225(t *testing.T) {
	w, a, b := up(t, nil)
	sa := a.ike()[0]
	n := wantNotify(t, ask(t, w, a, sa, message.CreateChildSA, rekeyPayloads(0xdeadbeef)...), message.ChildSANotFound)
	if n.Protocol != ipsec.ProtocolESP || len(n.SPI) != 4 || espSPI(n.SPI) != 0xdeadbeef {
		t.Errorf("CHILD_SA_NOT_FOUND names %d/%x", n.Protocol, n.SPI)
	}
	// A DELETE of what does not exist is answered without Delete.
	if m := ask(t, w, a, sa, message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{1, 2}}); len(m.Payloads) != 0 {
		t.Errorf("answer to a DELETE of nothing: %v", m.Payloads)
	}
	// While b rekeys the IKE SA no Child SA is made, but one may be deleted.
	b.rekeyIKE()
	wantNotify(t, ask(t, w, a, sa, message.CreateChildSA, rekeyPayloads(a.order[0])...), message.TemporaryFailure)
	m := ask(t, w, a, sa, message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: a.order})
	if d, ok := message.Get[*message.Delete](m); !ok || len(d.SPIs) != 1 {
		t.Errorf("DELETE while the IKE SA is rekeyed: %v", m.Payloads)
	}
	// While b rekeys a Child SA the IKE SA is not rekeyed.
	w, a, b = up(t, nil)
	sa = a.ike()[0]
	b.rekeyChild()
	rekey := []message.Payload{
		&message.SA{Proposals: ikeProposals([]ipsec.Suite{gcm128}, groups(ipsec.KEX25519), ikeSPIBytes(77))},
		&message.Nonce{Data: make([]byte, 32)}, &message.KE{Group: ipsec.KEX25519, Data: append([]byte{9}, make([]byte, 31)...)}}
	wantNotify(t, ask(t, w, a, sa, message.CreateChildSA, rekey...), message.TemporaryFailure)
	// What b is closing is not rekeyed.
	w, a, b = up(t, nil)
	sa = a.ike()[0]
	clearAll(b)
	wantNotify(t, ask(t, w, a, sa, message.CreateChildSA, rekey...), message.TemporaryFailure)
	wantNotify(t, ask(t, w, a, sa, message.CreateChildSA, rekeyPayloads(1)...), message.TemporaryFailure)
}

func TestChildSANotFoundCreatesAfresh(t *testing.T) {
	w, a, b := up(t, nil)
	// b lost the Child SA without a word.
	b.event(func(e *Engine) { e.removeChild(b.ike()[0].children[0]) })
	a.rekeyChild()
	w.settle()
	agree(t, a, b, 1, 1)
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
}

func TestUnexpectedMessageIDs(t *testing.T) {
	w, a, b := up(t, nil)
	sa := a.ike()[0]
	send := func(id uint32) int {
		n := len(w.seen)
		end := a.e.begin(w.now)
		raw, err := a.e.seal(sa, message.Informational, false, id, nil)
		end()
		if err != nil {
			t.Fatal(err)
		}
		w.deliver(sa.datagram(raw))
		return len(w.seen) - n
	}
	if send(sa.nextSend+1) != 0 || send(0) != 0 || send(1<<31) != 0 {
		t.Error("a request outside the window was answered")
	}
	if b.e.counters.OutsideWindow != 3 {
		t.Errorf("%d counted", b.e.counters.OutsideWindow)
	}
	if first, again := send(sa.nextSend), send(sa.nextSend); first != 1 || again != 1 {
		t.Errorf("the expected request was answered %d times, its repetition %d times", first, again)
	}
	k := len(w.seen)
	if string(w.seen[k-1].Data) != string(w.seen[k-2].Data) || b.e.counters.Duplicates != 1 {
		t.Error("a repetition does not get the same answer to the bit")
	}
}

func TestKilobytes(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		a.Phase2[0].KeyLifeType, a.Phase2[0].KeyLifeKB = "kbs", 5120
		b.Phase2[0].KeyLifeType, b.Phase2[0].KeyLifeKB = "both", 5120
	})
	x, y := a.installed[a.order[0]], b.installed[b.order[0]]
	if x.HardBytes != 5120*1024 || x.SoftBytes == 0 || x.SoftBytes >= x.HardBytes || y.HardBytes != x.HardBytes {
		t.Errorf("limits %d and %d", x.SoftBytes, x.HardBytes)
	}
	if a.e.Status(w.now)[0].Children[0].Lifetime != 0 || b.e.Status(w.now)[0].Children[0].Lifetime != 12*time.Hour {
		t.Error("keylife-type does not decide about seconds")
	}
	a.rekeyChild()
	w.settle()
	agree(t, a, b, 1, 1)
	// The hard limit ends it and asks for another.
	a.e.HandleExpiring(w.now, a.order[0], true)
	a.drain()
	w.settle()
	agree(t, a, b, 1, 1)
}

func TestSmallRangesRekeyEarly(t *testing.T) {
	w, a, b := up(t, nil)
	sa := a.ike()[0]
	a.ledger.small[sa.keyID] = true // of the IKE SA and of its first Child SA
	old := a.order[0]
	b.event(func(e *Engine) { e.sendDPD(b.ike()[0]) })
	w.run(time.Second)
	agree(t, a, b, 1, 1)
	if a.order[0] == old || a.ike()[0] == sa {
		t.Error("not rekeyed although the range of sender IDs is small")
	}
}

func TestRekeyAllIsPaced(t *testing.T) {
	w, a, b := pair(t, twoPhase2)
	b.resume()
	a.resume()
	w.settle()
	a.e.RekeyAll(w.now, "takeover was not covered")
	a.drain()
	if len(w.wire) != 0 {
		t.Log("the first begins at once")
	}
	start := w.now
	w.run(time.Second)
	agree(t, a, b, 1, 2)
	if n := w.seenOf(message.CreateChildSA); n != 1+3 {
		t.Errorf("%d CREATE_CHILD_SA, want three rekeys after one creation (since %s)", n, start)
	}
	if w.seenOf(message.IKESAInit) != 1 {
		t.Error("negotiated anew")
	}
}

func TestIPv6Outside(t *testing.T) {
	w := newWorld(t)
	a := w.side("A", "2001:db8::1", 1, &config.Config{Phase1: []config.Phase1{phase1To("toB", "2001:db8::2", func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: []config.Phase2{phase2For("toB", "net", "fd00:1::/64", "fd00:2::/64")}}, nil)
	b := w.side("B", "2001:db8::2", 2, &config.Config{Phase1: []config.Phase1{phase1To("toA", "2001:db8::1")},
		Phase2: []config.Phase2{phase2For("toA", "net", "fd00:2::/64", "fd00:1::/64")}}, nil)
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 1)
	if sa := a.installed[a.order[0]].SA; sa.UDPEncap {
		t.Error("a NAT is seen where none is")
	}
	if id := a.ike()[0].peerID; id.kind != message.IDIPv6 || id.String() != "2001:db8::2" {
		t.Errorf("peer identifier %s", id)
	}
}

// TestLowestNonceLoses: of two simultaneous rekeys the one with the lowest of the
// four nonces is closed, by the side that created it (RFC 7296 §2.8.1, §2.8.2).
func TestLowestNonceLoses(t *testing.T) {
	for seed := range 6 { // another order of nonces each time
		w, a, b := up(t, nil)
		a.e.random(seed)
		a.rekeyChild()
		b.rekeyChild()
		two := []Datagram{w.wire[0], w.wire[1]}
		w.wire = nil
		w.deliver(two[0])
		w.deliver(two[1])
		responses := w.wire
		w.wire = nil
		w.deliver(responses[0])
		w.deliver(responses[1])
		var mine, theirs *childSA // of the exchanges that a and b began
		for _, c := range a.ike()[0].children {
			switch {
			case c.replaces == 0:
			case c.initiator:
				mine = c
			default:
				theirs = c
			}
		}
		if mine == nil || theirs == nil {
			t.Fatal("three Child SAs should stand now")
		}
		winner, loserCreator := mine, b
		if string(mine.lowestNonce) < string(theirs.lowestNonce) {
			winner, loserCreator = theirs, a
		}
		for _, d := range w.wire { // both DELETEs: the loser's creator names the loser, the other the old one
			from, to := a, b
			if d.Local.Addr() == b.addr {
				from, to = b, a
			}
			m, _, err := to.e.open(to.ike()[0], flip(d))
			if err != nil {
				t.Fatal(err)
			}
			del, ok := message.Get[*message.Delete](m)
			if !ok || len(del.SPIs) != 1 {
				t.Fatalf("%s sent %v", from.name, m.Payloads)
			}
			c := from.e.children[del.SPIs[0]]
			if from == loserCreator && (c.replaces == 0 || c.SPIIn == winner.SPIIn || c.SPIOut == winner.SPIIn) ||
				from != loserCreator && c.replaces != 0 {
				t.Errorf("%s deletes %s", from.name, c.SPIIn)
			}
		}
		if len(w.wire) != 2 {
			t.Errorf("%d DELETEs", len(w.wire))
		}
		w.settle()
		agree(t, a, b, 1, 1)
		if a.order[0] != winner.SPIIn {
			t.Error("the wrong one survived")
		}

		w, a, b = up(t, nil)
		a.e.random(seed)
		a.rekeyIKE()
		b.rekeyIKE()
		w.settle()
		agree(t, a, b, 1, 1)
	}
}
