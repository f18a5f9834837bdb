package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// hint is an unprotected notification with the SPIs of an IKE SA, or with none, as a peer
// sends it that has lost its state, or anybody else (RFC 7296 §1.5, §2.21.4).
func hint(sa *ikeSA, t message.NotifyType, spis ipsec.IKESPIs, response bool, id uint32) Datagram {
	m := &message.Message{Header: sa.header(message.Informational, response, id), Payloads: []message.Payload{notify(t, []byte{1, 2, 3, 4})}}
	m.SPIs = spis
	m.Initiator = !sa.initiator
	return Datagram{Local: sa.remote, Remote: sa.local, NonESP: sa.nonESP, Data: m.Encode()}
}

// Nobody authenticates a hint that the peer has lost its state: it ends nothing, and makes
// nothing end earlier, also while a probe is unanswered.
func TestHintsShortenNothing(t *testing.T) {
	for _, probing := range []bool{false, true} {
		w, a, _ := up(t, dpd("on-idle"))
		sa := a.established()[0]
		cut(w)
		if probing {
			w.run(25 * time.Second)
			if sa.req == nil || sa.req.kind != kindDPD {
				t.Fatal("no probe is out")
			}
		}
		at, armed := a.e.NextTimeout()
		records, before := len(a.records), describe(a.ike())[0]
		for _, n := range []message.NotifyType{message.InvalidIKESPI, message.InvalidSPI, message.InvalidSyntax, message.AuthenticationFailed, message.ChildSANotFound} {
			for _, spis := range []ipsec.IKESPIs{sa.spis, {}} {
				for _, id := range []uint32{0, sa.nextSend - 1, sa.nextSend, sa.nextRecv} {
					for _, response := range []bool{false, true} {
						a.receive(flip(hint(sa, n, spis, response, id)))
					}
				}
			}
		}
		if x, y := a.e.NextTimeout(); x != at || y != armed || len(a.records) != records || describe(a.ike())[0] != before {
			t.Errorf("probing %v: a hint had an effect: %s, then %s", probing, before, describe(a.ike())[0])
		}
	}
}

// The peer dies and comes back without its state: that is found as soon as a silent peer's
// death is, no sooner and no later, and the tunnel is negotiated anew.
func TestPeerComesBackWithoutItsState(t *testing.T) {
	found := map[string]time.Duration{}
	for _, how := range []string{"silent", "without state"} {
		w, a, b := up(t, func(a, b *config.Config) {
			dpd("on-idle")(a, b)
			a.Phase2[0].AutoNegotiate, a.Phase2[0].Keepalive = true, true
		})
		old := a.established()[0]
		b.dead = true
		again := w.side("B again", addrB, 3, b.e.cfg, nil)
		if how != "silent" {
			again.resume()
		}
		hints := 0
		w.drop = func(d Datagram) bool {
			if m, err := message.Parse(d.Data); err == nil && d.Local.Addr() == again.addr {
				if _, ok := m.Notify(message.InvalidIKESPI); ok {
					hints++
				}
			}
			return false
		}
		start := w.now
		for old.state == stateEstablished && w.now.Sub(start) < 3*time.Minute {
			w.run(100 * time.Millisecond)
		}
		found[how] = w.now.Sub(start)
		if how == "silent" {
			if hints != 0 {
				t.Errorf("%d hints of nobody", hints)
			}
			continue
		}
		if hints == 0 {
			t.Error("the peer did not say that it lost its state")
		}
		w.run(6 * time.Second) // auto-negotiate's interval
		agree(t, a, again, 1, 1)
		if !a.esp(again) || !again.esp(a) {
			t.Error("traffic does not pass")
		}
	}
	if a, b := found["silent"], found["without state"]; a != b || a < 79*time.Second || a > 82*time.Second {
		t.Errorf("found after %v with hints, %v without", b, a)
	}
}

// A peer that dials anew proves who it is: INITIAL_CONTACT ends at once what it lost.
func TestPeerDialsAnewAfterLosingItsState(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		dpd("on-idle")(a, b)
		b.Phase1[0].AutoNegotiate = true
	})
	old := a.established()[0].spis
	w.run(time.Second)
	b.dead = true
	again := w.side("B again", addrB, 3, b.e.cfg, nil)
	again.resume()
	w.run(time.Second)
	agree(t, a, again, 1, 1)
	if a.established()[0].spis == old || !a.logged("processing INITIAL-CONTACT") {
		t.Error("the old IKE SA is believed in")
	}
}
