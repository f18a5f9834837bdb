package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
)

func TestChildRekeyedBeforeThePeerKnowsIt(t *testing.T) {
	// The answer that makes a Child SA is lost, and the side that sent it rekeys that
	// Child SA before the question comes again.
	w, a, b := up(t, nil)
	lost := false
	w.drop = func(d Datagram) bool {
		h, err := message.ParseHeader(d.Data)
		if err == nil && h.Exchange == message.CreateChildSA && h.Response && d.Local.Addr() == b.addr && !lost {
			lost = true
			return true
		}
		return false
	}
	a.rekeyChild()
	w.settle()
	if !lost {
		t.Fatal("setup: no answer was lost")
	}
	b.e.Rekey(w.now, "", false)
	b.rekeyChild()
	w.settle()
	w.run(time.Minute)
	agree(t, a, b, 1, 1)
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
}

func TestClearWhileTheIKESAIsRekeyed(t *testing.T) {
	// The IKE SA is to end while the answer to its rekey is under way.
	w, a, b := up(t, nil)
	w.drop = func(Datagram) bool { return true }
	a.rekeyIKE()
	w.settle()
	clearAll(a)
	w.drop = nil
	w.run(time.Minute)
	if n := len(a.ike()); n > 1 {
		t.Errorf("A has %d IKE SAs: %v", n, describe(a.ike()))
	}
	agree(t, a, b, 1, 1)
}

func TestRetransmissionIsAnsweredWhileAnotherRecordIsUnderWay(t *testing.T) {
	// Our own request waits for its record when the peer asks again for an answer that
	// was committed long ago.
	w, a, b := up(t, nil)
	w.drop = func(d Datagram) bool { return d.Local.Addr() == b.addr }
	a.rekeyChild()
	w.settle()
	w.drop = nil
	var request Datagram
	for _, d := range w.seen {
		if d.Local.Addr() == a.addr {
			request = d
		}
	}
	b.manual = true
	b.e.Rekey(w.now, "", true)
	b.drain()
	n := len(w.seen)
	b.receive(flip(request))
	if len(w.seen) != n+1 {
		t.Errorf("%d messages instead of the answer once more", len(w.seen)-n)
	}
}
