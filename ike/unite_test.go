package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
)

// split makes a standby of a follow it and then go on beside it, unheard by the
// peer: what follows happens on both sides of a split.
func split(t *testing.T, phase2 func(*testing.T) (*world, *side, *side)) (w *world, a, a2, b *side) {
	t.Helper()
	w, a, b = phase2(t)
	a2 = w.standby(a, 77)
	for _, x := range a.e.Snapshot(w.now) {
		a2.e.Apply(w.now, Record{Entries: []Entry{x}})
	}
	a2.drain()
	a.onRecord = nil
	return w, a, a2, b
}

// standing is a pair whose tunnel stands.
func standing(t *testing.T) (*world, *side, *side) { return up(t, nil) }

// wantUnited gives a side what the other one held: one IKE SA with one Child SA carries
// the peer's traffic.
func wantUnited(w *world, a, peer *side, theirs []Entry) {
	w.t.Helper()
	a.e.Unite(w.now, theirs)
	a.drain()
	w.run(10 * time.Second)
	agree(w.t, a, peer, 1, 1)
	if !peer.esp(a) || !a.esp(peer) {
		w.t.Error("traffic does not pass")
	}
}

// mute takes over on a2 without anything of it reaching the peer.
func mute(w *world, a2 *side) {
	a2.onRecord = nil
	w.drop = func(Datagram) bool { return true }
	a2.resume()
	w.settle()
	w.drop = nil
}

func TestUniteLeavesAcknowledgedDeletesAlone(t *testing.T) {
	w, a, a2, b := split(t, func(t *testing.T) (*world, *side, *side) { return up(t, twoPhase2) })
	children := len(b.installed)
	a.down("net2")
	w.settle()
	if len(b.installed) != children-1 {
		t.Fatal("setup: the peer did not acknowledge the DELETE")
	}
	mute(w, a2)
	theirs := a2.e.Snapshot(w.now)
	a2.dead = true
	a.e.Unite(w.now, theirs) // the other side still has the Child SA
	a.drain()
	w.settle()
	agree(t, a, b, 1, children-1)
}

func TestUniteFinishesARequestWhoseAnswerWentAstray(t *testing.T) {
	w, a, a2, b := split(t, standing)
	// The other side hears the peer and rekeys; its request arrives, the answer comes
	// to this side.
	mute(w, a2)
	if !b.esp(a2) {
		t.Fatal("setup: no traffic")
	}
	w.drop = func(d Datagram) bool { return d.Local.Addr() == b.addr }
	seen := len(w.seen)
	a2.rekeyChild()
	w.run(3 * time.Second)
	w.drop = nil
	var answer *Datagram
	for _, d := range w.seen[seen:] {
		if d.Local.Addr() == b.addr {
			answer = &d
		}
	}
	if answer == nil {
		t.Fatal("setup: no answer")
	}
	next := a.ike()[0].nextSend
	a.e.HandleDatagram(w.now, Datagram{Local: answer.Remote, Remote: answer.Local, NonESP: answer.NonESP, Data: answer.Data})
	a.drain()
	if got := a.ike()[0].nextSend; got != next+1 {
		t.Fatalf("a message ID that the other side used is next: %d after %d", got, next)
	}
	theirs := a2.e.Snapshot(w.now)
	a2.dead = true
	a.e.Unite(w.now, theirs)
	a.drain()
	w.settle()
	agree(t, a, b, 1, 1)
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
}

func TestForgedAnswersUseUpNothing(t *testing.T) {
	w, a, b := up(t, nil)
	b.rekeyChild()
	w.settle()
	var answer Datagram
	for _, d := range w.seen {
		if d.Local.Addr() == b.addr && len(d.Data) > 40 {
			answer = d
		}
	}
	d := Datagram{Local: answer.Remote, Remote: answer.Local, NonESP: answer.NonESP, Data: append([]byte(nil), answer.Data...)}
	d.Data[19] |= 0x20 // a response
	d.Data[23] = 40    // far ahead
	next := a.ike()[0].nextSend
	a.e.HandleDatagram(w.now, d)
	a.drain()
	if a.ike()[0].nextSend != next {
		t.Error("an unauthenticated response used up message IDs")
	}
}

func TestUniteRivalOfAnIKESAThatIsInUse(t *testing.T) {
	// The peer has come back to this side under a new IKE SA, and uses it; the other
	// side brings the old one.
	w, a, b := up(t, nil)
	theirs := a.e.Snapshot(w.now)
	clearAll(a)
	w.run(time.Minute)
	agree(t, a, b, 1, 1)
	b.rekeyChild()
	w.settle()
	a.e.Unite(w.now, theirs)
	a.drain()
	if len(a.established()) != 2 {
		t.Fatalf("setup: %v", describe(a.ike()))
	}
	b.rekeyChild() // the peer's next authenticated message
	w.run(time.Second)
	agree(t, a, b, 1, 1)
}

func TestUniteTwoAnswersToOneRequest(t *testing.T) {
	// In a split the same request of the peer reaches both sides, and each makes a
	// Child SA; the peer takes the first answer.
	w, a, a2, b := split(t, standing)
	b.rekeyChild()
	request := w.wire[0]
	w.settle() // this side answers, and the peer takes it
	a.dead = true
	w.drop = func(d Datagram) bool { return d.Local.Addr() == a.addr }
	a2.onRecord = nil
	a2.resume()
	a2.receive(flip(request))
	w.settle()
	w.drop = nil
	theirs := a2.e.Snapshot(w.now)
	a2.dead, a.dead = true, false
	a.e.Unite(w.now, theirs)
	a.drain()
	if !b.esp(a) {
		t.Fatal("what the peer sends is not understood")
	}
	w.settle()
	agree(t, a, b, 1, 1)
	if !a.esp(b) {
		t.Error("what the peer is sent it does not understand")
	}
}

func TestUniteOfTwoRequestsWithOneMessageID(t *testing.T) {
	// Both sides rekey the Child SA at once, with the same message ID. The peer answers the
	// other side's request, and the answer comes to this one, which takes it for its own.
	w, a, a2, b := split(t, standing)
	mute(w, a2)
	if !b.esp(a2) {
		t.Fatal("setup: no traffic")
	}
	w.drop = func(d Datagram) bool { return d.Local.Addr() == b.addr }
	seen := len(w.seen)
	a2.rekeyChild()
	w.run(time.Second)
	var answer *Datagram
	for _, d := range w.seen[seen:] {
		if d.Local.Addr() == b.addr {
			answer = &d
		}
	}
	if answer == nil {
		t.Fatal("setup: no answer")
	}
	w.drop = func(Datagram) bool { return true }
	a.rekeyChild()
	w.settle()
	a.e.HandleDatagram(w.now, Datagram{Local: answer.Remote, Remote: answer.Local, NonESP: answer.NonESP, Data: answer.Data})
	a.drain()
	w.settle()
	w.drop = nil
	if wrong := a.order[len(a.order)-1]; b.ike()[0].childOut(wrong) != nil || len(a.order) != 2 {
		t.Fatalf("setup: the peer knows %v", a.order)
	}
	theirs := a2.e.Snapshot(w.now)
	a2.dead = true
	a.e.Unite(w.now, theirs)
	a.drain()
	b.event(func(e *Engine) { e.sendDPD(b.ike()[0]) }) // the peer's authenticated message
	w.run(10 * time.Second)
	if len(a.installed) != 1 || !a.esp(b) || !b.esp(a) {
		t.Errorf("traffic does not pass over %v, the peer has %v", describe(a.ike()), describe(b.ike()))
	}
}

func TestUniteDoesNotFinishAnExchangeTwice(t *testing.T) {
	// The other side was told of an IKE_AUTH under way, which this side finished; since then
	// the peer has replaced the Child SA that it made.
	w, a, b := pair(t, nil)
	var theirs []Entry
	a.onRecord = func(Record) {
		if len(a.ike()) == 1 && a.ike()[0].state == stateAuthSent {
			theirs = a.e.Snapshot(w.now)
		}
	}
	b.resume()
	a.resume()
	w.settle()
	a.onRecord = nil
	agree(t, a, b, 1, 1)
	if len(theirs) != 1 {
		t.Fatal("setup: no record of IKE_AUTH under way")
	}
	first := a.order[0]
	// So does a side that still awaits the answer when it hears of the other.
	a2 := w.standby(a, 77)
	a.onRecord = nil
	a2.e.Apply(w.now, Record{Entries: theirs})
	a2.drain()
	mute(w, a2)
	a2.e.Unite(w.now, a.e.Snapshot(w.now))
	a2.drain()
	if sa := a2.ike(); len(sa) != 1 || sa[0].req != nil || len(a2.installed) != 1 || !b.esp(a2) {
		t.Errorf("the other side has %v, SAs %v", describe(sa), a2.order)
	}
	a2.dead = true
	b.rekeyChild()
	w.settle()
	agree(t, a, b, 1, 1)
	a.e.Unite(w.now, theirs)
	a.drain()
	w.settle()
	agree(t, a, b, 1, 1)
	if _, again := a.installed[first]; again {
		t.Error("an SA that had ended is installed anew")
	}
}

// The peer has rekeyed the IKE SA here, and its DELETE of the old one is still missing when
// the other side of a split brings that back with the Child SA: it has passed on, and stays
// when the old one ends.
func TestUniteLeavesWhatWasInheritedWithTheHeir(t *testing.T) {
	for name, there := range map[string]bool{"rekeyed here": false, "rekeyed there": true} {
		t.Run(name, func(t *testing.T) {
			w, a, a2, b := split(t, standing)
			if there {
				a.dead = true
				a2.onRecord = nil
				a2.resume()
				w.settle()
			} else {
				mute(w, a2)
			}
			sent := 0
			w.drop = func(d Datagram) bool { // the DELETE
				if d.Local.Addr() != b.addr || message.ExchangeType(d.Data[18]) != message.Informational {
					return false
				}
				sent++
				return true
			}
			b.rekeyIKE()
			w.run(100 * time.Millisecond)
			w.drop = nil
			if sent == 0 {
				t.Fatal("setup: the peer did not delete the old IKE SA")
			}
			theirs := a2.e.Snapshot(w.now)
			a2.dead, a.dead = true, false
			wantUnited(w, a, b, theirs)
		})
	}
}

// A Child SA that one side made while the other rekeyed the IKE SA belongs to the new one:
// the peer has passed it on.
func TestUniteInheritsWhatOneSideMade(t *testing.T) {
	w, a, a2, b := split(t, standing)
	mute(w, a2)
	if !b.esp(a2) {
		t.Fatal("setup: no traffic")
	}
	a.dead = true
	a2.rekeyChild()
	w.run(time.Second)
	if len(a2.installed) != 1 {
		t.Fatal("setup: not rekeyed")
	}
	theirs := a2.e.Snapshot(w.now)
	a2.dead, a.dead = true, false
	w.drop = func(d Datagram) bool {
		return d.Local.Addr() == b.addr && message.ExchangeType(d.Data[18]) == message.Informational
	}
	b.rekeyIKE()
	w.run(100 * time.Millisecond)
	w.drop = nil
	wantUnited(w, a, b, theirs)
}

// The same when the old one has gone here meanwhile, which the other side does not know.
func TestUniteLeavesWhatTheHeirOfOneThatHasGoneHas(t *testing.T) {
	w, a, a2, b := split(t, standing)
	w.run(40 * time.Second)
	b.rekeyIKE()
	w.settle()
	agree(t, a, b, 1, 1)
	a.e.Unite(w.now, a2.e.Snapshot(w.now))
	a.drain()
	b.rekeyChild()
	w.run(10 * time.Second)
	agree(t, a, b, 1, 1)
	if !b.esp(a) || !a.esp(b) {
		t.Error("traffic does not pass")
	}
}
