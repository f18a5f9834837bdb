package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func TestReauthenticationTranscripts(t *testing.T) { transcribe(t, reauthentications()) }

// reauth turns repeated authentication on, on both sides.
func reauth(a, b *config.Config) { a.Phase1[0].Reauth, b.Phase1[0].Reauth = true, true }

func reauthTwo(a, b *config.Config) {
	reauth(a, b)
	twoPhase2(a, b)
	kes := groups(ipsec.KEECP384, ipsec.KEECP521) // as converse has them
	a.Phase2[1].DHGroups, b.Phase2[1].DHGroups = kes, kes
}

// authenticateAnew is what an operator's `diagnose vpn ike rekey ike` does then.
func (s *side) authenticateAnew() { s.e.Rekey(s.w.now, "", true); s.drain() }

func (c *conversation) upTwo() {
	c.b.resume()
	c.a.resume()
	first := c.a
	if c.swapped {
		first = c.b
	}
	first.up("")
	c.all()
	c.wait(time.Second)
	c.last = c.w.now
	c.begin()
}

func reauthentications() []golden {
	return []golden{
		{name: "reauth-by-the-initiator", why: "The initiator authenticates anew: another IKE SA beside the old one makes both Child SAs, then the old one ends.",
			change: reauthTwo, talk: func(c *conversation) {
				c.upTwo()
				c.a.authenticateAnew()
				c.end(1, 2)
			}},
		{name: "reauth-by-the-responder", why: "The original responder authenticates anew, and is the initiator of the new IKE SA.",
			change: reauth, talk: func(c *conversation) {
				c.upTwo()
				c.b.authenticateAnew()
				c.end(1, 1)
			}},
		{name: "reauth-of-both-sides", why: "Both sides begin at once: of the two new IKE SAs one stays, and the old one ends.",
			change: reauth, talk: func(c *conversation) {
				c.upTwo()
				c.a.authenticateAnew()
				c.b.authenticateAnew()
				c.wait(time.Minute)
				c.end(1, 1)
			}},
		{name: "reauth-meets-child-rekey", why: "The peer rekeys the Child SA on the old IKE SA meanwhile.",
			change: reauth, talk: func(c *conversation) {
				c.upTwo()
				c.a.authenticateAnew()
				c.b.rekeyChild()
				c.wait(time.Minute)
				c.end(1, 1)
			}},
		{name: "reauth-meets-ike-rekey", why: "The peer rekeys the old IKE SA meanwhile: its successor ends.",
			change: reauth, talk: func(c *conversation) {
				c.upTwo()
				c.a.authenticateAnew()
				c.b.rekeyIKE()
				c.wait(time.Minute)
				c.end(1, 1)
			}},
		{name: "reauth-of-what-is-refused", why: "A phase 2 entry is refused on the new IKE SA: the rest goes on, and the old one ends.",
			change: reauthTwo, talk: func(c *conversation) {
				c.upTwo()
				c.b.e.cfg.Phase2 = c.b.e.cfg.Phase2[:1]
				c.ending = true // of that traffic
				c.a.authenticateAnew()
				c.wait(time.Minute)
				c.end(1, 1)
			}},
		{name: "reauth-takeover", why: "A dies when the new IKE SA stands and has one of its two Child SAs; its successor finishes.",
			change: reauthTwo, standby: true, talk: func(c *conversation) {
				c.upTwo()
				c.a.authenticateAnew()
				for _, ok := c.flights[4]; !ok; _, ok = c.flights[4] {
					c.pass(c.sent)
				}
				c.pass(4)
				c.lose(5)
				c.takeover()
				c.wait(time.Minute)
				c.end(1, 2)
			}},
	}
}

// Long before its keylife is over an IKE SA has another one in its place, again and again,
// and is never rekeyed.
func TestReauthenticationByTime(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		reauth(a, b)
		a.Phase1[0].KeyLife, b.Phase1[0].KeyLife = 10*time.Minute, 10*time.Minute
	})
	for i := 1; i <= 3; i++ {
		was := a.established()[0].spis
		w.run(9*time.Minute + 55*time.Second)
		agree(t, a, b, 1, 1)
		if a.established()[0].spis == was {
			t.Fatal("not authenticated anew")
		}
		if n := w.seenOf(message.IKESAInit); n != i+1 {
			t.Fatalf("%d IKE_SA_INIT requests after %d keylives", n, i)
		}
		if !a.esp(b) || !b.esp(a) {
			t.Error("traffic does not pass")
		}
	}
	if a.logged("initiating rekey of IKE SA") || b.logged("initiating rekey of IKE SA") {
		t.Error("an IKE SA was rekeyed")
	}
}

// dialReauth is a gateway that wants its client's authentication repeated.
func dialReauth(t *testing.T, change func(client, hub *config.Config)) (*world, *side, *side) {
	w, a, b := pair(t, func(a, b *config.Config) {
		b.Phase1[0] = phase1To("dial", "", func(p *config.Phase1) { p.Reauth, p.KeyLife = true, 10*time.Minute })
		b.Phase2[0] = phase2For("dial", "net", netB, "0.0.0.0/0")
		a.Phase1[0].KeyLife = 2 * time.Minute // it is rekeyed several times
		if change != nil {
			change(a, b)
		}
	})
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 1)
	return w, a, b
}

// The responder says AUTH_LIFETIME, and its client repeats the authentication in time
// though nothing in its own configuration asks for that; both have the same tunnel then.
func TestAuthLifetime(t *testing.T) {
	w, a, b := dialReauth(t, nil)
	name := b.established()[0].name()
	w.run(7 * time.Minute)
	if n := w.seenOf(message.IKESAInit); n != 1 || !a.logged("initiating rekey of IKE SA") {
		t.Fatalf("%d IKE_SA_INIT requests in 7 minutes, rekeyed %v", n, a.logged("initiating rekey of IKE SA"))
	}
	w.run(3*time.Minute - time.Second)
	agree(t, a, b, 1, 1)
	if n := w.seenOf(message.IKESAInit); n != 2 {
		t.Errorf("%d IKE_SA_INIT requests, want 2", n)
	}
	if got := b.established()[0].name(); got != name {
		t.Errorf("the client's tunnel is %s now, it was %s", got, name)
	}
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
}

// Who does not repeat it is ended when its time is over, however often it rekeyed.
func TestAuthLifetimeIsEnforced(t *testing.T) {
	w, _, b := dialReauth(t, nil)
	old := b.established()[0]
	for b.established()[0] == old {
		w.run(10 * time.Second)
	}
	w.drop = func(d Datagram) bool {
		h, err := message.ParseHeader(d.Data)
		return err == nil && h.Exchange == message.IKESAInit // the client cannot begin
	}
	began := b.established()[0].auth.since
	for len(b.established()) > 0 && w.now.Sub(began) < 20*time.Minute {
		w.run(time.Second)
	}
	if d := w.now.Sub(began); d < 10*time.Minute-time.Second || d > 10*time.Minute+2*time.Second {
		t.Errorf("ended %v after the authentication, want 10 minutes", d)
	}
}

// AUTH_LIFETIME may come at any time; it shortens and never lengthens, and short ones are bounded.
func TestAuthLifetimeLater(t *testing.T) {
	w, a, b := up(t, nil)
	tell := func(seconds uint32) {
		sa := b.established()[0]
		b.event(func(e *Engine) {
			e.start(sa, &exchange{kind: kindDPD}, []message.Payload{notify(message.AuthLifetime, []byte{byte(seconds >> 24), byte(seconds >> 16), byte(seconds >> 8), byte(seconds)})})
		})
		w.settle()
	}
	w.run(time.Second)
	tell(600)
	first := a.established()[0].auth.soft
	tell(3600)
	if got := a.established()[0].auth.soft; first == 0 || got != first {
		t.Errorf("to be repeated after %v, then after %v", first, got)
	}
	if b.established()[0].auth.soft != 0 {
		t.Error("who told it has to repeat it himself")
	}
	tell(0)
	w.run(5 * time.Second)
	agree(t, a, b, 1, 1)
	if n := w.seenOf(message.IKESAInit); n != 2 {
		t.Errorf("%d IKE_SA_INIT requests, want 2", n)
	}
}

// A client of a pool keeps its address while it authenticates anew.
func TestReauthenticationKeepsTheAddress(t *testing.T) {
	w, b, client := leasing(t, 2)
	b.e.cfg.Phase1[0].Reauth = true
	a := client("a", "192.0.2.10", 10)
	a.resume()
	a.up("")
	w.run(time.Second)
	before := a.assigned()
	a.e.cfg.Phase1[0].Reauth = true
	a.authenticateAnew()
	w.run(time.Second)
	a.wantAssigned(before...)
	b.wantAssigned(before...)
	agree(t, a, b, 1, 2)
	if n := w.seenOf(message.IKESAInit); n != 2 {
		t.Errorf("%d IKE_SA_INIT requests, want 2", n)
	}
	for _, n := range a.ours {
		if n != 1 {
			t.Errorf("the address stands for %d IKE SAs", n)
		}
	}
}

// The owner dies before and after every effect of a repeated authentication, as the side that
// begins it and as the other: the survivor finishes, both Child SAs carry traffic, and no more
// than one new IKE SA was asked for.
func TestCrashAtEveryEffectOfReauthentication(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		for _, loss := range []bool{false, true} {
			for k := 1; k < 100; k++ {
				if !crashReauth(t, initiator, loss, k) {
					if k < 10 {
						t.Errorf("only %d effects", k)
					}
					break
				}
				if t.Failed() {
					t.Fatalf("initiator %v, loss %v, after effect %d", initiator, loss, k-1)
				}
			}
		}
	}
}

func crashReauth(t *testing.T, initiator, loss bool, k int) bool {
	w, a, b := pair(t, func(a, b *config.Config) {
		reauth(a, b)
		twoPhase2(a, b)
		a.Phase1[0].AutoNegotiate = false
		a.Phase1[0].DPD, b.Phase1[0].DPD = "disable", "disable"
	})
	a2 := w.standby(a, 77)
	b.resume()
	a.resume()
	a.up("")
	w.run(time.Second)
	agree(t, a, b, 1, 2)
	if loss {
		w.drop = func(d Datagram) bool { return a.dead && !a2.e.active }
	}
	records := len(a.records)
	inits := distinctInits(w)
	a.cutAt = a.effects + k - 1
	if k == 1 {
		a.dead = true
	}
	if !initiator {
		b.authenticateAnew()
	} else if !a.dead {
		a.authenticateAnew()
	}
	w.settle()
	if !a.dead {
		w.run(time.Second)
	}
	if !a.dead {
		agree(t, a, b, 1, 2)
		return false
	}
	a2.resume()
	w.run(3 * time.Minute)
	agree(t, a2, b, 1, 2)
	if !a2.esp(b) || !b.esp(a2) {
		t.Error("traffic does not pass")
	}
	want := inits + 1
	if initiator && len(a.records) == records {
		want = inits // nobody but the dead knew of it
	}
	if n := distinctInits(w); n != want {
		t.Errorf("%d different IKE_SA_INIT requests, want %d", n, want)
	}
	sameBits(t, w)
	return true
}
