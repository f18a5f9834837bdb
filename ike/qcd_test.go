package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// crashes gives a side quick crash detection with a secret; sole says that nobody else can
// have what it does not know.
func (s *side) crashes(secret string, sole func() bool) *side {
	s.e.cfg.QuickCrashDetect = true
	s.e.o.TokenSecret, s.e.o.Sole = ipsec.NewKey([]byte(secret)), sole
	return s
}

const secretA, secretB = "the secret of A's cluster, 32 byt", "the secret of B's cluster, 32 byt"

// detecting is a standing tunnel of two gateways that detect crashes.
func detecting(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side) {
	w, a, b := pair(t, func(ca, cb *config.Config) {
		dpd("on-idle")(ca, cb)
		if change != nil {
			change(ca, cb)
		}
	})
	a.crashes(secretA, nil)
	b.crashes(secretB, nil)
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 1)
	return w, a, b
}

// again is B that comes back without its state.
func (w *world) again(b *side, seed uint64) *side {
	b.dead = true
	n := w.side("B again", addrB, seed, b.e.cfg, nil)
	n.crashes(secretB, nil)
	n.resume()
	return n
}

// A peer that has lost its state says so with its token: with the answer to the first probe
// the tunnel is negotiated anew, long before a silent peer would be dead.
func TestCrashIsDetectedQuickly(t *testing.T) {
	for _, rekeyed := range []string{"", "by A", "by B"} {
		w, a, b := detecting(t, nil)
		switch rekeyed {
		case "by A":
			a.rekeyIKE()
		case "by B":
			b.rekeyIKE()
		}
		w.run(time.Second)
		agree(t, a, b, 1, 1)
		old := a.established()[0]
		n := w.again(b, 3)
		w.run(21 * time.Second) // one probe
		if old.state != stateGone {
			t.Fatalf("rekeyed %q: the peer's crash is not known after its answer to a probe", rekeyed)
		}
		agree(t, a, n, 1, 1)
		if !a.esp(n) || !n.esp(a) {
			t.Error("traffic does not pass")
		}
		if n.e.counters.TokensSent != 1 || a.e.counters.TokensTaken != 1 || a.e.counters.TokensWrong != 0 {
			t.Errorf("rekeyed %q: %+v, %+v", rekeyed, n.e.counters, a.e.counters)
		}
	}
}

// What the survivor of an owner knows of tokens it knows by the record: it believes the
// right one, and any member makes the same.
func TestTokensAreReplicated(t *testing.T) {
	w, a, b := detecting(t, nil)
	a2, b2 := w.standby(a, 77), w.standby(b, 78)
	a2.crashes(secretA, nil)
	b2.crashes(secretB, nil)
	w.copied(a, a2)
	w.copied(b, b2)
	a.rekeyIKE()
	w.run(time.Second)
	a.dead = true
	a2.resume()
	n := w.again(b, 3)
	w.run(21 * time.Second)
	if a2.e.counters.TokensTaken != 1 {
		t.Fatalf("%+v", a2.e.counters)
	}
	agree(t, a2, n, 1, 1)
}

// A token is shown only where nobody can have the IKE SA, and to whoever asks for exactly
// this one; otherwise INVALID_IKE_SPI goes alone.
func TestTokenIsShownToNobodyElse(t *testing.T) {
	w, a, b := detecting(t, nil)
	sa := b.established()[0]
	sealed, err := a.e.seal(a.established()[0], message.Informational, false, 7, nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(s *side, change func(b []byte)) (shown, answered bool) {
		d := append([]byte(nil), sealed...)
		change(d)
		s.quietSend, s.sent = true, nil
		s.receive(Datagram{Local: sa.local, Remote: sa.remote, Data: d})
		for _, x := range s.sent {
			m, err := message.Parse(x.Data)
			if err != nil {
				t.Fatal(err)
			}
			_, tok := m.Notify(message.QCDToken)
			_, inv := m.Notify(message.InvalidIKESPI)
			shown, answered = shown || tok, answered || inv
		}
		return shown, answered
	}
	asIs := func([]byte) {}
	// The peer's SPI is another one, but ours is in use.
	if shown, _ := ask(b, func(d []byte) { d[0] ^= 1 }); shown {
		t.Error("a token for an SPI of ours that is in use")
	}
	sole := false
	n := w.again(b, 3)
	n.crashes(secretB, func() bool { return sole })
	if shown, answered := ask(n, asIs); shown || !answered {
		t.Errorf("another member may have it: shown %v, answered %v", shown, answered)
	}
	sole = true
	if shown, _ := ask(n, asIs); !shown {
		t.Error("not shown though nobody can have it")
	}
	if shown, _ := ask(n, func(d []byte) { d[19] |= 0x20 }); shown {
		t.Error("shown to a response")
	}
	if shown, _ := ask(n, func(d []byte) { d[16] = byte(message.TypeNotify) }); shown {
		t.Error("shown to an unprotected message")
	}
	for range 1000 {
		ask(n, asIs)
	}
	if c := n.e.counters; c.RateLimited < 900 {
		t.Errorf("%d of 1000 answers suppressed", c.RateLimited)
	}
	n.e.cfg.QuickCrashDetect = false
	w.run(10 * time.Second)
	if shown, answered := ask(n, asIs); shown || !answered {
		t.Errorf("turned off: shown %v, answered %v", shown, answered)
	}
}

// Wrong tokens, half ones, those of another IKE SA, large messages: nothing happens, nothing
// is logged. The right one ends the IKE SA whatever the message ID is.
func TestWrongTokensChangeNothing(t *testing.T) {
	w, a, b := detecting(t, nil)
	sa := a.established()[0]
	right := b.e.token(sa.spis, false)
	show := func(response bool, id uint32, ps ...message.Payload) {
		m := &message.Message{Header: sa.header(message.Informational, response, id), Payloads: ps}
		m.Initiator = !sa.initiator
		a.receive(Datagram{Local: sa.local, Remote: sa.remote, NonESP: sa.nonESP, Data: m.Encode()})
	}
	invalid := notify(message.InvalidIKESPI, nil)
	logs, records := len(a.logs), len(a.records)
	other := b.e.token(ipsec.IKESPIs{I: sa.spis.I, R: sa.spis.R + 1}, false)
	for _, response := range []bool{false, true} {
		for _, tok := range [][]byte{nil, right[:16], other, append([]byte{0}, right...), b.e.token(sa.spis, true), make([]byte, 128), make([]byte, 600)} {
			show(response, 0, invalid, notify(message.QCDToken, tok))
		}
		show(response, 0, notify(message.QCDToken, right))
		show(response, 0, invalid)
		show(response, 0, notify(message.InvalidSPI, nil), notify(message.QCDToken, right))
	}
	if sa.state != stateEstablished || len(a.logs) != logs || len(a.records) != records || a.e.counters.TokensWrong != 12 {
		t.Fatalf("state %s, %d lines, %d records, %d wrong", sa.state, len(a.logs)-logs, len(a.records)-records, a.e.counters.TokensWrong)
	}
	show(true, 4711, invalid, notify(message.QCDToken, right))
	if sa.state != stateGone || !a.records[len(a.records)-1].Entries[0].PeerDeleted && len(a.installed) != 0 {
		t.Errorf("the right token: %s, %d Child SAs", sa.state, len(a.installed))
	}
	_ = w
}

// Who is turned off gives no tokens and believes none.
func TestCrashDetectionIsOffByDefault(t *testing.T) {
	w, a, b := up(t, nil)
	a.e.o.TokenSecret, b.e.o.TokenSecret = ipsec.NewKey([]byte(secretA)), ipsec.NewKey([]byte(secretB))
	a.rekeyIKE()
	w.run(time.Second)
	if len(a.established()[0].peerToken)+len(b.established()[0].peerToken) > 0 {
		t.Error("tokens were exchanged")
	}
}

// The owner dies at every effect of a new negotiation after its peer's crash.
func TestCrashAtEveryEffectOfCrashDetection(t *testing.T) {
	for k := 1; ; k++ {
		w, a, b := detecting(t, func(a, _ *config.Config) { a.Phase2[0].AutoNegotiate = true })
		a2 := w.standby(a, 77)
		a2.crashes(secretA, nil)
		w.copied(a, a2)
		n := w.again(b, 3)
		a.cutAt = a.effects + k
		w.run(25 * time.Second)
		if !a.dead {
			if k < 6 {
				t.Errorf("only %d effects", k)
			}
			return
		}
		a2.resume()
		w.run(3 * time.Minute)
		agree(t, a2, n, 1, 1)
		sameBits(t, w)
		if t.Failed() {
			t.Fatalf("after effect %d", k)
		}
	}
}
