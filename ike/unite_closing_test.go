package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
)

// TestUniteEndsWhatTheOtherSideWasEnding: an IKE SA that comes from the other side of a
// split, which was ending it, ends here, whether message IDs were being synchronised or not.
func TestUniteEndsWhatTheOtherSideWasEnding(t *testing.T) {
	for name, behind := range map[string]bool{"closing": false, "closing, in a synchronisation": true} {
		t.Run(name, func(t *testing.T) {
			w, a, a2, _ := split(t, standing)
			a.dead = true
			if behind {
				a2.ledger.adopted = true
				a2.e.Behind()
			}
			mute(w, a2)
			spis := a2.established()[0].spis
			w.drop = func(Datagram) bool { return true }
			a2.event(func(e *Engine) { e.close(a2.established()[0], "for the test") })
			w.settle()
			theirs := a2.e.Snapshot(w.now)
			a2.dead = true
			w.drop = nil

			c := w.side("A''", a.addr.String(), 78, a.e.cfg, nil)
			c.ledger.adopted = true
			w.drop = func(d Datagram) bool { // nobody begins anew, which would end it, too
				h, err := message.ParseHeader(d.Data)
				return err == nil && h.Exchange == message.IKESAInit
			}
			c.resume()
			c.e.Unite(w.now, theirs)
			c.drain()
			if _, ok := c.e.sas[spis.I]; !ok && c.e.sas[spis.R] == nil {
				t.Fatal("setup: it did not come")
			}
			w.run(2 * time.Minute)
			for _, sa := range c.ike() {
				if sa.spis == spis {
					t.Errorf("it is still here, closing %v, synchronising %v", sa.closing, sa.sync.wanted)
				}
			}
		})
	}
}
