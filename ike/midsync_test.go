package ike

import (
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
)

// ask has a side send n empty requests, each answered before the next.
func (s *side) ask(n int) {
	s.t.Helper()
	for range n {
		sa := s.established()[0]
		s.event(func(e *Engine) { e.sendDPD(sa) })
		s.w.settle()
		if sa.req != nil {
			s.t.Fatalf("%s: a request is not answered", s.name)
		}
	}
}

// succeeded ends a side and lets its standby go on, behind or not.
func (w *world) succeeded(a, a2 *side, behind bool) {
	a.dead = true
	a2.ledger.adopted = true
	if behind {
		a2.e.Behind()
	}
	a2.resume()
}

// lag is a pair of sides whose first has a standby that missed some exchanges.
func lag(t *testing.T, sent, received int) (w *world, a, a2, b *side) {
	w, a, b = pair(t, nil)
	a2 = w.standby(a, 77)
	b.resume()
	a.resume()
	w.settle()
	a.ask(1)
	b.ask(1)
	a.onRecord = nil
	a.ask(sent)
	b.ask(received)
	return w, a, a2, b
}

func (w *world) wantInStep(a, b *side) {
	w.t.Helper()
	x, y := a.established()[0], b.established()[0]
	if x.spis != y.spis || x.nextSend != y.nextRecv || x.nextRecv != y.nextSend || x.req != nil || y.req != nil || x.sync.wanted || y.sync.wanted {
		w.t.Fatalf("%s %d/%d, %s %d/%d; outstanding %v, %v; sync %v, %v", a.name, x.nextSend, x.nextRecv, b.name, y.nextSend, y.nextRecv,
			x.req != nil, y.req != nil, x.sync.wanted, y.sync.wanted)
	}
	for _, s := range []*side{a, b, a} {
		s.rekeyChild()
		w.settle()
	}
	a.ask(2)
	b.ask(2)
	if n := w.seenOf(message.IKESAInit); n != 1 {
		w.t.Errorf("%d IKE_SA_INIT requests", n)
	}
}

// syncs counts requests with message ID 0 that a side sent on an established IKE SA.
func (w *world) syncs(s *side) (n int) {
	for _, d := range w.seen {
		h, err := message.ParseHeader(d.Data)
		if err == nil && d.Local.Addr() == s.addr && h.Exchange == message.Informational && !h.Response && h.MessageID == 0 {
			n++
		}
	}
	return n
}

func TestMessageIDSync(t *testing.T) {
	for _, c := range []struct {
		name           string
		sent, received int
		syncs          int
	}{
		{"nothing missed", 0, 0, 1},
		{"requests of ours", 3, 0, 1},
		{"requests of the peer", 0, 5, 1},
		{"both", 3, 5, 1},
		{"more than the first attempt covers", 60, 2, 4}, // 8, 24, 56, 120
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, a2, b := lag(t, c.sent, c.received)
			w.succeeded(a, a2, true)
			w.run(30 * time.Second)
			w.wantInStep(a2, b)
			if n := w.syncs(a2); n != c.syncs {
				t.Errorf("%d synchronisations, want %d", n, c.syncs)
			}
			a2.wantLog("have HA IKE SA, attempting message ID sync")
			a2.wantLog("synced message IDs: send/recv=")
			b.wantLog("message ID sync request received nonce=")
		})
	}
}

func TestMessageIDSyncNotWithoutEvidence(t *testing.T) {
	w, a, b := pair(t, nil)
	a2 := w.standby(a, 77)
	b.resume()
	a.resume()
	w.settle()
	w.succeeded(a, a2, false)
	w.run(5 * time.Second)
	w.wantInStep(a2, b)
	if n := w.syncs(a2); n != 0 {
		t.Errorf("%d synchronisations after a covered takeover", n)
	}
}

func TestMessageIDSyncWithPeerWithoutSupport(t *testing.T) {
	w, a, a2, b := lag(t, 0, 0)
	for _, s := range []*side{a2, b} {
		s.established()[0].caps = 0
	}
	w.succeeded(a, a2, true)
	w.run(5 * time.Second)
	w.wantInStep(a2, b)
	if n := w.syncs(a2); n != 0 {
		t.Errorf("%d synchronisations with a peer that does not know them", n)
	}
}

// A request that is ahead of the window shows that a covered takeover was none.
func TestMessageIDSyncByARequestAheadOfTheWindow(t *testing.T) {
	w, a, a2, b := lag(t, 0, 4)
	w.succeeded(a, a2, false)
	w.run(2 * time.Second)
	if n := w.syncs(a2); n != 0 {
		t.Fatalf("%d synchronisations before anything is known", n)
	}
	sa := b.established()[0]
	b.event(func(e *Engine) { e.sendDPD(sa) })
	w.run(5 * time.Second)
	w.wantInStep(a2, b)
	if n := w.syncs(a2); n != 1 {
		t.Errorf("%d synchronisations, want 1", n)
	}
}

// What the peer has outstanding leaves again under its new ID, and is answered once; its
// retransmission under the old one does not begin another synchronisation.
func TestMessageIDSyncCarriesAnOutstandingRequest(t *testing.T) {
	w, a, a2, b := lag(t, 2, 3)
	w.drop = func(d Datagram) bool { return d.Local.Addr() == b.addr }
	b.rekeyChild()
	w.settle()
	old := b.established()[0].req
	if old == nil {
		t.Fatal("the rekey was answered")
	}
	captured := flip(w.seen[len(w.seen)-1])
	id := old.id
	w.drop = nil
	w.succeeded(a, a2, true)
	w.run(3 * time.Second)
	w.wantInStep(a2, b)
	if x := b.established()[0]; x.nextSend <= id+1 {
		t.Errorf("the request was not numbered anew: the next is %d", x.nextSend)
	}
	before := w.syncs(a2)
	a2.receive(captured)
	w.run(3 * time.Second)
	if n := w.syncs(a2); n != before {
		t.Error("a retransmission began another synchronisation")
	}
	w.wantInStep(a2, b)
}

// The numbers are those of a log of a vendor's cluster: request 6/1 is answered with 1/6,
// then 14/1 with 1/14, by a peer that has sent nothing.
func TestMessageIDSyncAnswersAsThePeer(t *testing.T) {
	w, a, b := up(t, nil)
	peer, ours := b.established()[0], a.established()[0]
	send := func(v midValues) (answer midValues, ok bool) {
		t.Helper()
		data, err := a.e.seal(ours, message.Informational, false, 0, []message.Payload{v.payload()})
		if err != nil {
			t.Fatal(err)
		}
		n := len(w.seen)
		a.e.active = false // its own engine did not ask
		b.receive(Datagram{Local: peer.local, Remote: peer.remote, Data: data})
		w.settle()
		a.e.active = true
		if len(w.seen) == n {
			return answer, false
		}
		d := w.seen[n]
		m, opened, err := a.e.open(ours, flip(d))
		if !opened || err != nil || !m.Response || m.MessageID != 0 {
			t.Fatalf("answer: %v, %v", m, err)
		}
		return midValuesOf(m)
	}
	for _, c := range []struct {
		in, out midValues
		ok      bool
	}{
		{midValues{0xb645f272, 6, 1}, midValues{0xb645f272, 1, 6}, true},
		{midValues{0xb645f272, 6, 1}, midValues{}, false}, // once more: a replay
		{midValues{7, 5, 1}, midValues{}, false},
		{midValues{0x1a2b0a55, 14, 1}, midValues{0x1a2b0a55, 1, 14}, true},
		{midValues{8, 14, 9}, midValues{}, false},
		{midValues{9, midBound, 1}, midValues{}, false},
		{midValues{10, 15, midBound}, midValues{}, false},
		{midValues{11, 15, 0}, midValues{11, 1, 15}, true}, // its idea of ours is lower: ours counts
	} {
		got, ok := send(c.in)
		if ok != c.ok || got != c.out {
			t.Errorf("%v: answered %v, %v, want %v, %v", c.in, ok, got, c.ok, c.out)
		}
	}
	if peer.nextSend != 1 || peer.nextRecv != 15 {
		t.Errorf("the peer goes on with %d/%d", peer.nextSend, peer.nextRecv)
	}
	b.wantLog("current send/recv msg IDs=0/2 updated to new send/recv msg IDs=1/6")
	b.wantLog("current send/recv msg IDs=1/6 updated to new send/recv msg IDs=1/14")
}

// Nobody without the keys, and nobody who only repeats, changes anything.
func TestMessageIDSyncHostile(t *testing.T) {
	w, a, a2, b := lag(t, 2, 2)
	from := len(w.seen)
	w.succeeded(a, a2, true)
	w.run(3 * time.Second)
	w.wantInStep(a2, b)
	captured := append([]Datagram(nil), w.seen[from:]...)
	type ids struct{ send, recv, proposed, seen uint32 }
	state := func() (out [2]ids) {
		for i, s := range []*side{a2, b} {
			sa := s.established()[0]
			out[i] = ids{sa.nextSend, sa.nextRecv, sa.sync.proposed, sa.sync.seen}
		}
		return out
	}
	want := state()
	sent := len(w.seen)
	for _, d := range captured {
		h, err := message.ParseHeader(d.Data)
		if err != nil || h.MessageID != 0 {
			continue
		}
		for _, s := range []*side{a2, b} {
			s.receive(Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data})
			for i := range d.Data { // and each byte of it changed
				forged := append([]byte(nil), d.Data...)
				forged[i] ^= 0x55
				s.receive(Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: forged})
			}
		}
	}
	w.wire = nil // answers to broken headers
	if got := state(); got != want {
		t.Errorf("%v became %v", want, got)
	}
	for _, d := range w.seen[sent:] {
		if h, err := message.ParseHeader(d.Data); err == nil && h.MessageID == 0 && d.Data[16] == byte(message.TypeSK) {
			t.Error("a replayed synchronisation was answered")
		}
	}
	w.wantInStep(a2, b)
}

// A response with another nonce, or with lower numbers than were asked for, is not ours.
func TestMessageIDSyncDropsWrongAnswers(t *testing.T) {
	w, a, a2, b := lag(t, 1, 1)
	w.drop = func(d Datagram) bool { return true }
	w.succeeded(a, a2, true)
	w.settle()
	ours, peer := a2.established()[0], b.established()[0]
	out := ours.sync.out
	for _, v := range []midValues{
		{out.nonce + 1, peer.nextSend, out.send},
		{out.nonce, peer.nextSend, out.send - 1},
		{out.nonce, out.recv - 1, out.send},
	} {
		data, err := b.e.seal(peer, message.Informational, true, 0, []message.Payload{v.payload()})
		if err != nil {
			t.Fatal(err)
		}
		a2.receive(Datagram{Local: ours.local, Remote: ours.remote, Data: data})
		if !ours.sync.wanted {
			t.Fatalf("%v was taken for an answer to %v", v, out)
		}
	}
	w.drop = nil
	w.run(5 * time.Second)
	w.wantInStep(a2, b)
}

// Both sides fail over at once, and both are behind.
func TestMessageIDSyncOfBothSides(t *testing.T) {
	for _, missed := range [][4]int{{0, 0, 0, 0}, {2, 3, 1, 4}, {9, 1, 2, 12}} {
		w, a, a2, b := lag(t, 0, 0)
		b2 := w.standby(b, 78)
		for _, x := range b.e.Snapshot(w.now) {
			b2.e.Apply(w.now, Record{Entries: []Entry{x}})
		}
		b2.drain()
		b.onRecord = nil
		a.ask(missed[0])
		b.ask(missed[1])
		a.ask(missed[2])
		b.ask(missed[3])
		w.succeeded(a, a2, true)
		w.succeeded(b, b2, true)
		// Each answers with at least what it proposed itself.
		for _, s := range []*side{a2, b2} {
			sa := s.established()[0]
			out := sa.sync.out
			d := w.wire[slices.IndexFunc(w.wire, func(d Datagram) bool { return d.Remote.Addr() == s.addr })]
			s.receive(flip(d))
			if sa.nextSend < out.send || sa.nextRecv < out.recv {
				t.Errorf("%s goes on with %d/%d, proposed %v", s.name, sa.nextSend, sa.nextRecv, out)
			}
		}
		w.run(30 * time.Second)
		w.wantInStep(a2, b2)
	}
}

// A member that dies in the middle leaves the synchronisation to its successor, whose
// proposal lies above the one that the peer may have seen.
func TestMessageIDSyncIsContinued(t *testing.T) {
	for _, lost := range []string{"request", "answer"} {
		w, a, a2, b := lag(t, 2, 2)
		a3 := w.standby(a2, 79)
		for _, x := range a2.e.Snapshot(w.now) {
			a3.e.Apply(w.now, Record{Entries: []Entry{x}})
		}
		a3.drain()
		w.drop = func(d Datagram) bool { return lost == "request" || d.Local.Addr() == b.addr }
		w.succeeded(a, a2, true)
		w.run(5 * time.Second) // several attempts
		w.drop = nil
		if !a3.established()[0].sync.wanted {
			t.Fatal("the successor does not know")
		}
		first := a2.established()[0].sync.out.send
		w.succeeded(a2, a3, false)
		w.run(5 * time.Second)
		w.wantInStep(a3, b)
		if got := b.established()[0].sync.seen; got <= first {
			t.Errorf("%s lost: the successor proposed %d after %d", lost, got, first)
		}
	}
}

// A peer that does not answer this may answer all else.
func TestMessageIDSyncUnanswered(t *testing.T) {
	w, a, a2, b := lag(t, 0, 0)
	w.drop = func(d Datagram) bool {
		return d.Remote.Addr() == b.addr && d.Data[19]&0x20 == 0 && d.Data[20]|d.Data[21]|d.Data[22]|d.Data[23] == 0
	}
	w.succeeded(a, a2, true)
	w.run(20 * time.Second)
	if n := w.syncs(a2); n != midTries {
		t.Errorf("%d attempts, want %d", n, midTries)
	}
	w.run(20 * time.Second)
	a2.wantLog("peer does not answer the message ID sync")
	w.wantInStep(a2, b)
}
