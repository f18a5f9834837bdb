package ike

import (
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

// The other side of a split is lost with what it did: what it had agreed with the peer is
// known to the peer alone.

// wantTraffic: packets pass in both directions, on one pair of the same keys.
func wantTraffic(w *world, a, b *side) {
	w.t.Helper()
	if !b.esp(a) || !a.esp(b) {
		w.t.Fatal("traffic does not pass")
	}
	out := a.outbound()
	x := a.installed[out[len(out)-1]].SA
	if y := b.installed[x.SPIOut].SA; y.SPIOut != x.SPIIn || string(x.EncrOut.Bytes()) != string(y.EncrIn.Bytes()) || string(x.EncrIn.Bytes()) != string(y.EncrOut.Bytes()) {
		w.t.Fatal("both ends have different keys")
	}
}

// The lost side rekeyed the Child SA. A request of this side with the same message ID would
// get the answer that the other one got, and make an SA that the peer has not.
func TestEarlyRekeySynchronisesMessageIDsFirst(t *testing.T) {
	w, a, a2, b := split(t, standing)
	w.drop = informational(a, a2, b)
	a.rekeyChild()
	w.settle()
	a.dead, w.drop = true, nil
	a2.resume()
	a2.e.RekeyAll(w.now, "the other side is lost")
	w.run(time.Minute)
	if w.syncs(a2) == 0 {
		t.Error("message IDs were not synchronised")
	}
	wantTraffic(w, a2, b)
}

// The peer rekeyed the Child SA with the lost side, and its DELETE of the one before comes to
// this side: this is all that is heard of it.
func TestWhatThePeerReplacedIsMadeAfresh(t *testing.T) {
	w, a, a2, b := split(t, standing)
	w.drop = informational(b)
	b.rekeyChild()
	w.settle()
	if len(b.installed) != 2 || b.established()[0].req == nil {
		t.Fatal("setup: the DELETE was answered")
	}
	w.drop = nil
	w.succeeded(a, a2, false)
	w.run(time.Minute)
	wantTraffic(w, a2, b)
}

// The other side is not lost after all, and comes with what the peer had made with it.
func TestUniteEndsWhatWasMadeAfreshMeanwhile(t *testing.T) {
	w, a, a2, b := split(t, standing)
	w.drop = informational(b)
	b.rekeyChild()
	w.settle()
	w.drop = nil
	w.succeeded(a, a2, false)
	w.run(time.Minute)
	if len(b.installed) != 2 {
		t.Fatal("setup: nothing was made afresh")
	}
	a2.e.Unite(w.now, a.e.Snapshot(w.now))
	a2.drain()
	if !b.esp(a2) {
		t.Fatal("the peer does not use what was made last")
	}
	w.run(10 * time.Second)
	agree(t, a2, b, 1, 1)
	wantTraffic(w, a2, b)
}

// What the peer deletes otherwise stays deleted, also where it was to be rekeyed.
func TestWhatThePeerDeletesStaysDeleted(t *testing.T) {
	w, a, b := up(t, nil)
	a.e.cfg.Phase1[0].AutoNegotiate = false
	w.drop = func(d Datagram) bool { return d.Local.Addr() == a.addr }
	a.rekeyChild() // is lost for now
	w.settle()
	b.down("net")
	w.drop = nil
	w.run(time.Minute)
	agree(t, a, b, 1, 0)
}

// An IKE SA that came at healing and whose peer has ended it meanwhile is asked for.
func TestUniteAsksForASilentPeer(t *testing.T) {
	w, a, a2, b := split(t, func(t *testing.T) (*world, *side, *side) {
		return up(t, func(a, b *config.Config) { a.Phase1[0].DPD, a.Phase1[0].DPDRetryInterval = "on-idle", 5*time.Second })
	})
	a.dead = true
	mute(w, a2)
	theirs := a2.e.Snapshot(w.now)
	b.dead = true
	a3 := w.side("A3", a.addr.String(), 78, &config.Config{Phase1: a.e.cfg.Phase1, Phase2: a.e.cfg.Phase2}, nil)
	a3.e.cfg.Phase1[0].PassiveMode = true // whoever begins anew does not matter here
	a2.dead, a3.ledger.adopted = true, true
	a3.resume()
	a3.e.Unite(w.now, theirs)
	a3.drain()
	if len(a3.installed) != 1 {
		t.Fatal("setup: the SA was not taken over")
	}
	w.run(2 * time.Minute)
	if len(a3.installed) != 0 || len(a3.ike()) != 0 {
		t.Errorf("it stays for ever: %v", describe(a3.ike()))
	}
}

// A tunnel that is no longer configured here came from an owner that had not heard of that.
func TestUnconfiguredTunnelEndsWithTheTakeover(t *testing.T) {
	for name, take := range map[string]func(w *world, a, a2 *side){
		"takeover": func(_ *world, _, a2 *side) { a2.resume() },
		"healing": func(w *world, a, a2 *side) {
			theirs := a2.e.Snapshot(w.now)
			a3 := w.side("A3", a.addr.String(), 78, &config.Config{}, nil)
			a2.dead, a3.ledger.adopted = true, true
			a3.resume()
			a3.e.Unite(w.now, theirs)
			a3.drain()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, a2, b := split(t, standing)
			b.e.cfg.Phase1[0].PassiveMode = true
			a2.e.Reconfigure(w.now, &config.Config{})
			a2.drain()
			if len(a2.installed) != 1 {
				t.Fatal("setup: a standby ended it")
			}
			a.dead = true
			take(w, a, a2)
			w.run(2 * time.Minute)
			if n := w.sides[len(w.sides)-1]; len(n.installed) != 0 || len(n.ike()) != 0 || len(b.installed) != 0 {
				t.Errorf("it goes on: %v, %v", describe(n.ike()), describe(b.ike()))
			}
		})
	}
}

// informational tells the INFORMATIONAL messages of these sides.
func informational(of ...*side) func(Datagram) bool {
	return func(d Datagram) bool {
		h, _ := message.ParseHeader(d.Data)
		return h.Exchange == message.Informational && slices.ContainsFunc(of, func(s *side) bool { return d.Local.Addr() == s.addr })
	}
}
