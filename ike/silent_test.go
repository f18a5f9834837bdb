package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
)

// Who was not answered asks no more, and answers all the same: the other one may have been
// out of reach. On an IKE SA that is new, the request has the ID that comes next as well.
func TestMessageIDSyncIsAnsweredByWhoWasNot(t *testing.T) {
	for _, rekeyed := range []bool{false, true} {
		w, a, a2, b := lag(t, 0, 0)
		b2 := w.standby(b, 78)
		w.copied(b, b2)
		toB := func(d Datagram) bool {
			h, _ := message.ParseHeader(d.Data)
			return h.Exchange == message.Informational && h.MessageID == 0 && d.Local.Addr() == b.addr
		}
		w.drop = toB
		w.succeeded(b, b2, true)
		w.run(40 * time.Second)
		b2.wantLog("peer does not answer the message ID sync")
		w.drop = nil
		if rekeyed {
			b2.rekeyIKE()
			w.run(5 * time.Second)
		}
		w.copied(a, a2)
		a.onRecord = nil
		before := w.syncs(a2)
		w.succeeded(a, a2, true)
		w.run(5 * time.Second)
		a2.wantLog("synced message IDs: send/recv=")
		w.wantInStep(a2, b2)
		if n := w.syncs(a2) - before; n != 1 {
			t.Errorf("rekeyed %v: %d requests, want 1", rekeyed, n)
		}
		if b2.established()[0].caps&capSyncSilent != 0 {
			t.Errorf("rekeyed %v: a peer that asks is taken for one that cannot", rekeyed)
		}
	}
}
