package ike

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// used is a pair of sides with a tunnel whose packets have been numbered: A received up to
// in, B sent up to out. A has a standby that it may leave everything to.
func used(t *testing.T, in, out uint64, esn bool) (w *world, a, a2, b *side) {
	t.Helper()
	w, a, b = pair(t, func(ca, cb *config.Config) {
		for _, c := range []*config.Config{ca, cb} {
			for i := range c.Phase2[0].Proposals {
				c.Phase2[0].Proposals[i].ESN = esn
			}
		}
	})
	a2 = w.standby(a, 77)
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 1)
	for _, s := range []*side{a, a2} {
		s.numbers[a.order[0]] = [2]uint64{32, in}
	}
	b.numbers[b.order[0]] = [2]uint64{out, 7}
	return w, a, a2, b
}

// copied gives a standby what the owner has.
func (w *world) copied(of, to *side) {
	to.e.BeginCopy()
	to.e.Apply(w.now, Record{Entries: of.e.Snapshot(w.now)})
	to.e.EndCopy()
	to.drain()
	maps.Copy(to.numbers, of.numbers)
}

// died ends a side; its standby goes on and hears the peer.
func (w *world) died(a, a2 *side) {
	w.t.Helper()
	a.dead = true
	a2.ledger.adopted = true
	a2.e.OwnerDied()
	a2.resume()
	w.settle()
	if len(a2.skips) > 0 || a2.asked() > 0 {
		w.t.Fatal("the peer is asked before it was heard")
	}
	a2.e.HandleFirstInbound(w.now, a2.order[0])
	a2.drain()
}

// asked counts the requests, retransmissions included, that carry more than nothing.
func (s *side) asked() (n int) {
	for _, d := range s.w.seen {
		h, err := message.ParseHeader(d.Data)
		if err != nil || h.Exchange != message.Informational || h.Response || d.Local.Addr() != s.addr {
			continue
		}
		for _, sa := range s.e.sorted() {
			if ps, err := s.e.ownPayloads(sa, d.Data); err == nil && hasCounterSync(ps) {
				n++
			}
		}
	}
	return n
}

func (s *side) wantSkips(what string, want ...Skip) {
	s.t.Helper()
	if !slices.Equal(s.skips, want) {
		s.t.Fatalf("%s: %s skips %v, want %v", what, s.name, s.skips, want)
	}
}

func TestCounterSync(t *testing.T) {
	for _, c := range []struct {
		name  string
		esn   bool
		delta uint64
	}{{"32 bits", false, 1 << 27}, {"ESN", true, 1 << 30}} {
		t.Run(c.name, func(t *testing.T) {
			w, a, a2, b := used(t, 1000, 5000, c.esn)
			b2 := w.standby(b, 78)
			w.copied(b, b2)
			b.manual = true
			w.died(a, a2)
			w.settle()
			added, raised := Skip{SPIIn: b.order[0], Out: 5000 + c.delta}, Skip{SPIIn: a2.order[0], In: 1000 + c.delta/2}
			b.wantSkips("asked", added)
			b2.wantSkips("the record", added)
			a2.wantSkips("before the answer")
			b.manual = false
			b.drain()
			w.settle()
			b.wantSkips("answered", added)
			a2.wantSkips("what the answer has overtaken")
			a2.wantLog("synced replay counters")
			if sa := a2.established()[0]; sa.req != nil || sa.children[0].inSeq != raised.In {
				t.Errorf("the record says %d", sa.children[0].inSeq)
			}
			w.run(counterRest)
			a2.wantSkips("the answer", raised)
			w.run(10 * time.Second)
			if n := a2.asked(); n != 1 {
				t.Errorf("%d requests", n)
			}
			agree(t, a2, b, 1, 1)
		})
	}
}

// Who has not heard the answer asks again, to the bit, and is answered so: nothing is added twice.
func TestCounterSyncOnceARequest(t *testing.T) {
	w, a, a2, b := used(t, 1000, 5000, false)
	lost := 0
	w.drop = func(d Datagram) bool {
		h, _ := message.ParseHeader(d.Data)
		if h.Exchange == message.Informational && h.Response && lost < 3 {
			lost++
			return true
		}
		return false
	}
	w.died(a, a2)
	w.run(20 * time.Second)
	if n := a2.asked(); n != 4 {
		t.Errorf("%d requests", n)
	}
	b.wantSkips("once", Skip{SPIIn: b.order[0], Out: 5000 + 1<<27})
	a2.wantSkips("once", Skip{SPIIn: a2.order[0], In: 1000 + 1<<26})
}

// A successor of who has asked takes the answer, and the floor from before the question:
// what the peer has sent meanwhile lies above, and stays so.
func TestCounterSyncIsContinued(t *testing.T) {
	w, a, a2, b := used(t, 1000, 5000, false)
	a3 := w.standby(a2, 79)
	w.copied(a, a3)
	w.drop = func(d Datagram) bool { h, _ := message.ParseHeader(d.Data); return h.Response }
	w.died(a, a2)
	w.settle()
	b.wantSkips("asked", Skip{SPIIn: b.order[0], Out: 5000 + 1<<27})
	w.drop = nil
	a2.dead = true
	a3.ledger.adopted = true
	high := uint64(5000 + 1<<27 + 99) // delivered by the one that died
	a3.numbers[a.order[0]] = [2]uint64{32, high}
	a3.resume()
	w.run(counterRest)
	a3.wantSkips("the answer", Skip{SPIIn: a.order[0], In: 1000 + 1<<26})
	b.wantSkips("once", Skip{SPIIn: b.order[0], Out: 5000 + 1<<27})
}

// Only what both negotiated is asked for, and followed; nothing without a death.
func TestCounterSyncNegotiated(t *testing.T) {
	if ps := capabilityPayloads(0); len(ps) != 0 {
		t.Fatal("a responder says what nobody offered")
	}
	w, a, a2, b := used(t, 1000, 5000, false)
	for _, s := range []*side{a, a2, b} {
		if caps := s.established()[0].caps; caps != capMessageIDSync|capCounterSync|capCounterAnswer {
			t.Errorf("%s: capabilities %b", s.name, caps)
		}
	}
	for _, s := range []*side{a2, b} {
		s.established()[0].caps = capMessageIDSync
	}
	w.died(a, a2)
	w.run(5 * time.Second)
	if n := a2.asked(); n != 0 {
		t.Errorf("%d requests", n)
	}
	sa := a2.established()[0]
	a2.event(func(e *Engine) {
		e.start(sa, &exchange{kind: kindDPD}, []message.Payload{notify(message.ReplayCounterSync, []byte{0, 1, 0, 0})})
	})
	w.settle()
	b.wantSkips("not negotiated")

	w, a, a2, b = used(t, 1000, 5000, false)
	a.dead, a2.ledger.adopted = true, true
	a2.resume() // a planned handover
	a2.e.HandleFirstInbound(w.now, a2.order[0])
	a2.drain()
	w.run(5 * time.Second)
	a2.wantSkips("a handover")
	b.wantSkips("a handover")
}

// Where the numbers do not reach, the SA is rekeyed: by the peer, which refuses, or
// instead of asking.
func TestCounterSyncAtTheEndOfNumbers(t *testing.T) {
	for _, c := range []struct {
		name    string
		in, out uint64
		asked   int
	}{
		{"the peer refuses", 1000, counterLast - 1<<27 + 1, 1},
		{"nobody asks", counterSoft - 1<<27 + 1, counterSoft - 1<<27 + 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, a2, b := used(t, c.in, c.out, false)
			old := a2.order[0]
			w.died(a, a2)
			w.run(10 * time.Second)
			a2.wantSkips("refused")
			b.wantSkips("refused")
			if n := a2.asked(); n != c.asked {
				t.Errorf("%d requests, want %d", n, c.asked)
			}
			if len(a2.order) != 1 || a2.order[0] == old || len(b.order) != 1 {
				t.Errorf("SAs %v and %v", a2.order, b.order)
			}
			agree(t, a2, b, 1, 1)
		})
	}
}

// A Child SA on which nothing has come may be unknown to the peer, and has nothing to replay.
func TestCounterSyncLeavesUnusedAlone(t *testing.T) {
	w, a, a2, b := used(t, 0, 32, false)
	w.died(a, a2)
	w.run(5 * time.Second)
	a2.wantSkips("unused")
	b.wantSkips("unused")
}

// Nobody without the keys, and nobody who only repeats, changes anything.
func TestCounterSyncHostile(t *testing.T) {
	w, a, a2, b := used(t, 1000, 5000, false)
	from := len(w.seen)
	w.died(a, a2)
	w.run(3 * time.Second)
	captured := slices.Clone(w.seen[from:])
	want := [2][]Skip{slices.Clone(a2.skips), slices.Clone(b.skips)}
	if len(want[0]) != 1 || len(want[1]) != 1 || len(captured) < 2 {
		t.Fatalf("skips %v", want)
	}
	unchanged := func(what string) {
		t.Helper()
		a2.wantSkips(what, want[0]...)
		b.wantSkips(what, want[1]...)
	}
	for _, d := range captured {
		for _, s := range []*side{a2, b} {
			s.receive(flip(d))
			s.receive(Datagram{Local: d.Local, Remote: d.Remote, NonESP: d.NonESP, Data: d.Data})
			for i := range d.Data { // and each byte of it changed
				forged := slices.Clone(d.Data)
				forged[i] ^= 0x55
				s.receive(Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: forged})
			}
		}
	}
	w.wire = nil
	unchanged("replayed and forged")

	// With the keys, but without its turn: message ID 0, alone or with a synchronisation of
	// message IDs that is not above the last; an ID ahead; data of another length.
	ours, peer := a2.established()[0], b.established()[0]
	delta := notify(message.ReplayCounterSync, binary.BigEndian.AppendUint32(nil, 1<<27))
	stale := midValues{1, peer.nextRecv - 1, ours.nextRecv}.payload()
	for _, c := range []struct {
		id uint32
		ps []message.Payload
	}{
		{0, []message.Payload{delta}}, {0, []message.Payload{stale, delta}}, {peer.nextRecv + 1, []message.Payload{delta}},
		{peer.nextRecv, []message.Payload{notify(message.ReplayCounterSync, []byte{1, 2, 3})}},
	} {
		data, err := a2.e.seal(ours, message.Informational, false, c.id, c.ps)
		if err != nil {
			t.Fatal(err)
		}
		b.receive(Datagram{Local: peer.local, Remote: peer.remote, Data: data})
		unchanged("out of turn")
	}
	w.wire = nil
	// An answer to nothing.
	data, err := b.e.seal(peer, message.Informational, true, ours.nextSend, nil)
	if err != nil {
		t.Fatal(err)
	}
	a2.receive(Datagram{Local: ours.local, Remote: ours.remote, Data: data})
	unchanged("unasked")
}

// Somebody else's cluster sends both synchronisations in one message with ID 0 (§5.2): once
// each M1 that is above all others.
func TestCounterSyncWithMessageIDSync(t *testing.T) {
	w, _, _, b := used(t, 1000, 5000, false)
	a := w.sides[0]
	ours, peer := a.established()[0], b.established()[0]
	v := midValues{nonce: 1, send: peer.nextRecv + 8, recv: peer.nextSend}
	data, err := a.e.seal(ours, message.Informational, false, 0, []message.Payload{
		v.payload(), notify(message.ReplayCounterSync, binary.BigEndian.AppendUint32(nil, 1<<20))})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.receive(Datagram{Local: peer.local, Remote: peer.remote, Data: data})
	}
	b.wantSkips("once", Skip{SPIIn: b.order[0], Out: 5000 + 1<<20})
	if n := len(w.wire); n != 1 {
		t.Errorf("%d answers", n)
	}
}

// Both sides are clusters and fail over at once.
func TestCounterSyncOfBothSides(t *testing.T) {
	w, a, a2, b := used(t, 1000, 5000, false)
	b2 := w.standby(b, 78)
	w.copied(b, b2)
	b.dead = true
	b2.ledger.adopted = true
	b2.e.OwnerDied()
	b2.resume()
	w.died(a, a2)
	b2.e.HandleFirstInbound(w.now, b2.order[0])
	b2.drain()
	w.run(10 * time.Second)
	for _, c := range []struct {
		s       *side
		out, in uint64
	}{{a2, 32 + 1<<27, 1000 + 1<<26}, {b2, 5000 + 1<<27, 7 + 1<<26}} {
		if n := c.s.numbers[c.s.order[0]]; n != [2]uint64{c.out, c.in} {
			t.Errorf("%s: %v", c.s.name, n)
		}
	}
	agree(t, a2, b2, 1, 1)
}

// The requests of many tunnels do not leave together.
func TestCounterSyncIsPaced(t *testing.T) {
	w := newWorld(t)
	hub := w.side("hub", addrB, 2, &config.Config{Phase1: []config.Phase1{phase1To("c1", addrA), phase1To("c2", "10.0.0.3"), phase1To("c3", "10.0.0.4")},
		Phase2: []config.Phase2{phase2For("c1", "n", netB, netA), phase2For("c2", "n", netB, "10.72.0.0/16"), phase2For("c3", "n", netB, "10.73.0.0/16")}}, nil)
	next := w.standby(hub, 77)
	hub.resume()
	for i, c := range [][2]string{{addrA, netA}, {"10.0.0.3", "10.72.0.0/16"}, {"10.0.0.4", "10.73.0.0/16"}} {
		s := w.side("client", c[0], uint64(10+i), &config.Config{
			Phase1: []config.Phase1{phase1To("hub", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
			Phase2: []config.Phase2{phase2For("hub", "n", c[1], netB)}}, nil)
		s.resume()
	}
	w.settle()
	if len(next.order) != 3 {
		t.Fatalf("%d SAs", len(next.order))
	}
	for _, spi := range next.order {
		next.numbers[spi] = [2]uint64{32, 100}
	}
	hub.dead, next.ledger.adopted = true, true
	next.e.OwnerDied()
	next.resume()
	heard := func(spi ipsec.ESPSPI) { next.e.HandleFirstInbound(w.now, spi); next.drain() }
	for _, spi := range next.order {
		heard(spi)
	}
	for n := 1; n <= 3; n++ {
		if got := next.asked(); got != n {
			t.Fatalf("%d requests, want %d", got, n)
		}
		w.run(counterPace)
	}
	w.run(time.Second)
	if len(next.skips) != 3 {
		t.Errorf("%d answers", len(next.skips))
	}
}

func hasCounterSync(ps []message.Payload) bool {
	_, ok := (&message.Message{Payloads: ps}).Notify(message.ReplayCounterSync)
	return ok
}

// The other side of a split asked under the same message ID: what the peer repeats is the
// answer to that one. Message IDs are synchronised, and it is asked again.
func TestCounterSyncTakesNoOtherAnswer(t *testing.T) {
	w, a, a2, b := used(t, 1000, 5000, false)
	a.onRecord = nil
	a.event(func(e *Engine) { e.start(a.established()[0], &exchange{kind: kindDPD}, nil) })
	w.settle() // the peer has answered it
	w.died(a, a2)
	w.run(10 * time.Second)
	a2.wantLog("peer answers another request with this message ID than the replay counter sync")
	a2.wantLog("synced replay counters")
	if n := a2.asked(); n != 2 {
		t.Errorf("%d requests", n)
	}
	b.wantSkips("once", Skip{SPIIn: b.order[0], Out: 5000 + 1<<27})
	a2.wantSkips("once", Skip{SPIIn: a2.order[0], In: 1000 + 1<<26})
	agree(t, a2, b, 1, 1)
}

// The one side of a split has what the other one had, but its data plane knows no numbers
// until that is acknowledged: nothing could be added to them, so the SA is rekeyed.
func TestCounterSyncDoesNotCountOnWhatIsStillToBeInstalled(t *testing.T) {
	for i, known := range []bool{false, false, true} {
		w, a, a2, b := used(t, 1000, 5000, false)
		b2 := w.standby(b, 78)
		b2.ledger.adopted = true
		b2.resume()
		b2.manual = true
		b2.e.Unite(w.now, b.e.Snapshot(w.now))
		b2.drain()
		if i == 1 { // and once more, with what the peer has asked meanwhile
			b.onRecord = nil
			b2.dead = true
			b.e.active = true
			a.ask(1)
			b2.dead = false
			b2.e.Unite(w.now, b.e.Snapshot(w.now))
			b2.drain()
		}
		b.dead = true
		if len(b2.order) != 0 {
			t.Fatal("setup: installed before the record is acknowledged")
		}
		if known {
			b2.manual = false
			b2.drain()
			b2.numbers[b2.order[0]] = b.numbers[b.order[0]]
		}
		old := a2.order[0]
		w.died(a, a2)
		w.settle()
		if !known {
			b2.manual = false
			b2.drain()
			b2.numbers[b2.order[0]] = b.numbers[b.order[0]]
		}
		w.run(10 * time.Second)
		if n := a2.asked(); n != 1 {
			t.Errorf("known %v: %d requests", known, n)
		}
		if rekeyed := a2.order[0] != old; rekeyed == known {
			t.Errorf("known %v: rekeyed %v", known, rekeyed)
		}
		for _, x := range a2.skips {
			if x.In > b2.numbers[b2.order[0]][0] {
				t.Errorf("known %v: the asker rejects up to %d, its peer goes on from %d", known, x.In, b2.numbers[b2.order[0]][0])
			}
		}
		if len(a2.skips) > 0 != known {
			t.Errorf("known %v: the asker skips %v", known, a2.skips)
		}
		agree(t, a2, b2, 1, 1)
	}
}

// A Child SA that only the other side of a split has was not there when this side raised
// its sequence numbers at the peer's request, and the peer took its floor for it as well.
func TestUniteRekeysWhatWasLeftLow(t *testing.T) {
	for _, c := range []struct {
		name            string
		raises, newer   int // 0: ours, 1: theirs, -1: neither
		rekeyed, theirs bool
	}{
		{"nothing raised", -1, 1, false, true},
		{"raised here, made there", 0, 1, true, true},
		{"raised here, made there, where the peer talked last", 0, 0, true, true},
		{"raised there, made here", 1, 0, true, false},
		{"raised there, made here, where the peer talked last", 1, 1, true, false},
		{"raised where it was made", 1, 1, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, a2, b := split(t, standing)
			a.numbers[a.order[0]] = [2]uint64{5000, 7}
			a2.numbers[a.order[0]] = [2]uint64{5000, 7}
			mute(w, a2)
			sides := []*side{a, a2}
			if c.raises >= 0 {
				sides[c.raises].event(func(e *Engine) {
					if no := e.raiseCounters(e.sorted()[0], []byte{0, 1, 0, 0}); no != nil {
						t.Fatal(no.Err)
					}
				})
			}
			// What one side made with the peer meanwhile.
			on := a
			if c.theirs {
				on = a2
			}
			on.event(func(e *Engine) {
				sa := on.established()[0]
				made := *sa.children[0]
				made.SPIIn, made.SPIOut, made.Phase2, made.outSeq = 0x77777777, 0x66666666, "net2", 0
				sa.children = append(sa.children, &made)
				e.children[made.SPIIn] = &made
				e.refKey(made.KeyID)
			})
			sides[c.newer].established()[0].nextRecv++
			entries := a2.e.Snapshot(w.now)
			a2.dead, b.dead = true, true
			a.e.Unite(w.now, entries)
			a.drain()
			got := map[ipsec.ESPSPI]bool{}
			for _, k := range a.established()[0].children {
				got[k.SPIIn] = k.rekeyNow
			}
			if rekey, ok := got[0x77777777]; !ok || rekey != c.rekeyed || len(got) != 2 || got[a.order[0]] {
				t.Errorf("Child SAs, and whether they are rekeyed early: %v", got)
			}
		})
	}
}
