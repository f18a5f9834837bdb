package ike

import (
	"maps"
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// same checks that a standby holds in its data plane what the owner holds.
func same(t *testing.T, owner, standby *side) {
	t.Helper()
	if len(owner.installed) != len(standby.installed) {
		t.Fatalf("%s has %d Child SAs, %s %d", owner.name, len(owner.installed), standby.name, len(standby.installed))
	}
	for spi, x := range owner.installed {
		y := standby.installed[spi]
		if y == nil {
			t.Fatalf("%s lacks %s", standby.name, spi)
		}
		if x.outbound != y.outbound || x.SA.SPIOut != y.SA.SPIOut || x.SA.Remote != y.SA.Remote || x.SA.Local != y.SA.Local ||
			x.SA.Tunnel != y.SA.Tunnel || x.SA.Phase1 != y.SA.Phase1 || x.SA.Phase2 != y.SA.Phase2 || x.SA.KeyID != y.SA.KeyID ||
			x.SA.Suite != y.SA.Suite || x.SA.ReplayWindow != y.SA.ReplayWindow || x.SoftBytes != y.SoftBytes ||
			string(x.SA.EncrIn.Bytes()) != string(y.SA.EncrIn.Bytes()) || string(x.SA.EncrOut.Bytes()) != string(y.SA.EncrOut.Bytes()) ||
			!slices.Equal(x.SA.TSRemote, y.SA.TSRemote) {
			t.Errorf("Child SA differs: %+v, %+v", x, y)
		}
	}
}

func TestStandbyFollows(t *testing.T) {
	w, a, b := pair(t, twoPhase2)
	a2 := w.standby(a, 77)
	b2 := w.standby(b, 78)
	b.resume()
	a.resume()
	w.settle()
	check := func() {
		t.Helper()
		w.settle()
		same(t, a, a2)
		same(t, b, b2)
		if len(a2.e.sas) != len(a.e.sas) || len(b2.e.sas) != len(b.e.sas) {
			t.Errorf("standbys know %d and %d IKE SAs", len(a2.e.sas), len(b2.e.sas))
		}
		for id, n := range a.e.keyRefs {
			if a2.e.keyRefs[id] != n {
				t.Errorf("key %x is used %d times by the owner, %d by the standby", id, n, a2.e.keyRefs[id])
			}
		}
		if !maps.Equal(a.e.keyRefs, a2.e.keyRefs) {
			t.Error("the standby holds other keys than the owner")
		}
		for _, n := range []*side{a, b, a2, b2} {
			for id := range n.e.keyRefs {
				if n.ledger.forgot[id] {
					t.Errorf("%s has let go of key %x, which it uses", n.name, id)
				}
			}
		}
	}
	check()
	for _, f := range []func(){a.rekeyChild, b.rekeyChild, a.rekeyIKE, b.rekeyIKE, func() { a.down("net") }, func() { b.up("net") }} {
		f()
		check()
	}
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
	check()
	if len(a2.records)+len(b2.records) != 0 {
		t.Error("a standby persists")
	}
	// Nothing that is gone keeps a key.
	clearAll(a)
	w.settle()
	if len(a.e.keyRefs)+len(b.e.keyRefs)+len(a2.e.keyRefs)+len(b2.e.keyRefs) != 0 {
		t.Errorf("keys are left: %v %v %v %v", a.e.keyRefs, b.e.keyRefs, a2.e.keyRefs, b2.e.keyRefs)
	}
	if len(a.ledger.forgot) == 0 {
		t.Error("no key was forgotten")
	}
}

func TestFullCopy(t *testing.T) {
	w, a, b := up(t, twoPhase2)
	a2 := w.standby(a, 77)
	a.onRecord = nil
	copyTo := func() {
		a2.e.BeginCopy()
		for _, x := range a.e.Snapshot(w.now) {
			a2.e.Apply(w.now, Record{Entries: []Entry{x}})
		}
		a2.e.EndCopy()
		a2.drain()
	}
	copyTo()
	same(t, a, a2)
	n := len(a2.order)
	copyTo()
	if len(a2.order) != n {
		t.Error("a second copy installed again")
	}
	a.rekeyChild()
	a.rekeyIKE()
	w.settle()
	copyTo()
	same(t, a, a2)
	a2.e.BeginCopy()
	a2.e.EndCopy()
	a2.drain()
	if len(a2.installed) != 0 || len(a2.e.sas) != 0 || len(a2.e.keyRefs) != 0 {
		t.Error("an empty copy leaves something")
	}
	_ = b
}

func TestBackAndForth(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) { a.Phase1[0].AutoNegotiate = true })
	a2 := w.standby(a, 77)
	a2.e.BeginCopy()
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.e.EndCopy()
	a2.drain()
	a.ledger.adopted = true
	owner, other := a, a2
	for i := range 20 {
		owner.e.Suspend(w.now)
		owner.drain()
		owner.onRecord = nil
		owner, other = other, owner
		owner.onRecord = func(r Record) { other.e.Apply(w.now, r); other.drain() }
		owner.resume()
		w.settle()
		if !owner.esp(b) || !b.esp(owner) {
			t.Fatal("traffic does not pass")
		}
		owner.e.HandleFirstInbound(w.now, owner.order[0])
		owner.drain()
		switch i % 3 {
		case 0:
			owner.rekeyChild()
		case 1:
			owner.rekeyIKE()
		case 2:
			b.rekeyChild()
		}
		w.settle()
		agree(t, owner, b, 1, 1)
		same(t, owner, other)
	}
	if w.seenOf(message.IKESAInit) != 1 {
		t.Error("negotiated anew")
	}
	sameBits(t, w)
}

// TestQuietAfterTakeover: no new exchange before the peer's authenticated traffic.
func TestQuietAfterTakeover(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		a.Phase1[0].DPD, b.Phase1[0].DPD = "disable", "disable"
	})
	b2 := w.standby(b, 77)
	for _, x := range b.e.Snapshot(w.now) {
		b2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	b2.drain()
	b.dead = true
	cut(w)
	b2.resume()
	w.run(10 * time.Second)
	if n := len(w.seen); n != 4 {
		t.Fatalf("%d messages without any reason", n-4)
	}
	b2.rekeyChild() // is wanted, but must wait: only an empty request may ask
	b2.rekeyIKE()
	w.run(10 * time.Second)
	if w.seenOf(message.CreateChildSA) != 0 || w.seenOf(message.Informational) != 1 {
		t.Fatal("the successor began an exchange before the peer was heard")
	}
	if !a.esp(b2) { // its first packet arrives
		t.Fatal("no traffic")
	}
	w.drop = nil
	w.run(30 * time.Second)
	if w.seenOf(message.CreateChildSA) < 2 {
		t.Errorf("%d rekeys after the peer was heard", w.seenOf(message.CreateChildSA))
	}
	agree(t, a, b2, 1, 1)

	// On the side that has sent requests the last one invites the answer.
	a2 := w.standby(a, 79)
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	b2.rekeyChild()
	w.settle()
	a.rekeyChild() // so that a has sent a request on this IKE SA
	w.settle()
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	a.dead = true
	last := a.ike()[0].lastRequest
	n := len(w.seen)
	a2.resume()
	a2.rekeyChild()
	w.run(3 * time.Second)
	if len(w.seen) <= n || string(w.seen[n].Data) != string(last) {
		t.Fatal("the first message of the successor is not its predecessor's last request")
	}
	agree(t, a2, b2, 1, 1)
	sameBits(t, w)
}

// TestEarlyRekeyOutlivesItsOwner: what one owner was to rekey early, and could not because
// the peer was not heard, the next one rekeys.
func TestEarlyRekeyOutlivesItsOwner(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		a.Phase1[0].DPD, b.Phase1[0].DPD = "disable", "disable"
	})
	cut(w)
	owner := b
	for i := range 2 {
		next := w.standby(owner, uint64(77+i))
		for _, x := range owner.e.Snapshot(w.now) {
			next.e.Apply(w.now, Record{Entries: []Entry{x}})
		}
		next.drain()
		if i == 1 {
			owner.e.RekeyAll(w.now, "test")
			owner.drain()
			w.run(time.Second)
		}
		owner.dead = true
		next.resume()
		owner = next
	}
	was := a.order[0]
	if !a.esp(owner) {
		t.Fatal("no traffic")
	}
	w.drop = nil
	w.run(10 * time.Second)
	agree(t, a, owner, 1, 1)
	if w.seenOf(message.CreateChildSA) != 2 || a.installed[was] != nil {
		t.Errorf("%d rekeys after the peer was heard by the second successor, want one of each SA", w.seenOf(message.CreateChildSA))
	}
}

func TestTakeoverFromADeadPeerEnds(t *testing.T) {
	w, a, _ := up(t, func(a, b *config.Config) { a.Phase1[0].DPD = "on-idle" })
	a2 := w.standby(a, 77)
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	a.dead = true
	cut(w)
	a2.resume()
	w.run(3 * time.Minute)
	if len(a2.established()) != 0 {
		t.Error("a peer that never answers is kept")
	}
}

func TestLifetimesTravelAsAge(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		a.Phase1[0].DPD, b.Phase1[0].DPD = "disable", "disable"
		a.Phase2[0].KeyLife = 120 * time.Second
	})
	w.run(50 * time.Second)
	a2 := w.standby(a, 77)
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	w.now = w.now.Add(20 * time.Second)
	b.e.HandleTimeout(w.now)
	a.dead = true
	a2.resume()
	// The record was 50 s old inside and has stood here for 20 s since.
	g := a2.e.Status(w.now)[0].Children[0]
	if g.Left != 50*time.Second {
		t.Errorf("%s left, want 50 s", g.Left)
	}
	w.run(51 * time.Second)
	if len(a2.installed) != 0 {
		t.Error("the hard lifetime did not end it")
	}
}

func TestBadRecordsAreRefusedWhole(t *testing.T) {
	w, a, _ := up(t, nil)
	a2 := w.standby(a, 77)
	good := a.e.Snapshot(w.now)[0]
	bad := Entry{SPIs: ipsec.IKESPIs{I: 1, R: 2}, Value: []byte("no record")}
	other := good
	other.SPIs.I++
	for _, r := range []Record{{Entries: []Entry{good, bad}}, {Entries: []Entry{other}}, {Entries: []Entry{{SPIs: good.SPIs, Value: []byte{}}}}} {
		a2.e.Apply(w.now, r)
		a2.drain()
		if len(a2.installed) != 0 || len(a2.e.sas) != 0 {
			t.Fatal("half of a record was applied")
		}
	}
	a2.wantLog("record does not decode")
	a2.e.Apply(w.now, Record{Entries: []Entry{good}})
	a2.drain()
	same(t, a, a2)
}

func TestUnite(t *testing.T) {
	// Both members of a gateway go on alone: one hears the peer, the other does not.
	w, a, b := up(t, twoPhase2)
	a2 := w.standby(a, 77)
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	a.onRecord = nil // the split
	a.rekeyChild()
	b.down("net2")
	w.settle()
	agree(t, a, b, 1, 1)
	theirs := a.e.Snapshot(w.now)
	a.dead = true
	a2.onRecord = nil
	w.drop = func(Datagram) bool { return true }
	a2.resume()
	w.settle()
	w.drop = nil
	a2.e.Unite(w.now, theirs)
	a2.drain()
	w.settle()
	agree(t, a2, b, 1, 1)
	if !b.esp(a2) || !a2.esp(b) {
		t.Error("traffic does not pass")
	}
	a2.rekeyIKE()
	w.run(time.Minute)
	agree(t, a2, b, 1, 1)

	// A tombstone beats a live record.
	spis := a2.ike()[0].spis
	var deleted []ipsec.IKESPIs
	a2.onRecord = func(r Record) {
		for _, x := range r.Entries {
			if x.Value == nil && x.PeerDeleted {
				deleted = append(deleted, x.SPIs)
			}
		}
	}
	a2.e.Unite(w.now, []Entry{{SPIs: spis, PeerDeleted: true}})
	a2.drain()
	if len(a2.installed) != 0 || len(deleted) != 1 {
		t.Error("a tombstone does not end the IKE SA")
	}
}

func TestUniteRivals(t *testing.T) {
	// The peer came back to the other side under a new IKE SA while ours lived on.
	w, a, b := up(t, nil)
	a2 := w.standby(a, 77)
	a2.ledger.adopted = true
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	a.onRecord = nil
	b.dead = true
	b2 := w.side("B2", addrB, 44, &config.Config{Phase1: []config.Phase1{phase1To("toA", addrA, func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: b.e.cfg.Phase2}, nil)
	w.now = w.now.Add(time.Minute)
	b2.resume()
	w.settle()
	theirs := a.e.Snapshot(w.now)
	if len(theirs) != 1 || a.established()[0].initiator {
		t.Fatal("setup")
	}
	a.dead = true
	w.drop = func(Datagram) bool { return true }
	a2.resume()
	w.settle()
	w.drop = nil
	a2.e.Unite(w.now, theirs)
	a2.drain()
	if len(a2.established()) != 2 {
		t.Fatalf("%v", describe(a2.ike()))
	}
	b2.rekeyChild() // the peer's next authenticated message
	w.settle()
	agree(t, a2, b2, 1, 1)
}

func TestOutstandingRequestLeavesAtOnceAndOwedDeletesFollow(t *testing.T) {
	w, a, b := up(t, twoPhase2)
	a2 := w.standby(a, 77)
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	w.drop = func(Datagram) bool { return true }
	a.e.Rekey(w.now, "toB", false)
	a.drain()
	request := w.wire[0]
	a.down("net2") // behind the request under way
	w.settle()
	a.dead = true
	w.drop = nil
	if len(w.wire) != 0 {
		t.Fatal("setup")
	}
	a2.resume()
	if len(w.wire) != 1 || string(w.wire[0].Data) != string(request.Data) {
		t.Fatal("the outstanding request is not sent again at once, to the bit")
	}
	w.settle()
	agree(t, a2, b, 1, 1)
	if a2.ike()[0].children[0].Phase2 != "net" {
		t.Error("the wrong Child SA was deleted")
	}
}
