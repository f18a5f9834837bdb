package ike

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// lowest are the four nonces of two simultaneous exchanges, by their first bytes: those of
// the exchange that A began, then those of B's. One of them is the lowest.
var lowest = []struct {
	name     string
	niA, nrB byte // A's request, B's response
	niB, nrA byte
	aLoses   bool
	why      string
}{
	{"a-request", 0x10, 0x40, 0x30, 0x20, true, "the nonce of A's request is the lowest"},
	{"b-response", 0x40, 0x10, 0x20, 0x30, true, "the nonce of B's response to A is the lowest"},
	{"b-request", 0x20, 0x30, 0x10, 0x40, false, "the nonce of B's request is the lowest"},
	{"a-response", 0x30, 0x20, 0x40, 0x10, false, "the nonce of A's response to B is the lowest"},
}

// collide has both sides rekey at once: 1 is A's request, 2 B's, 3 A's response, 4 B's.
func (c *conversation) collide(aLoses bool, begin func(*side)) {
	if aLoses {
		c.draw(c.a, 0x10, 0x40)
		c.draw(c.b, 0x30, 0x20)
	} else {
		c.draw(c.a, 0x30, 0x20)
		c.draw(c.b, 0x10, 0x40)
	}
	begin(c.a)
	begin(c.b)
}

// childOf is the Child SA that a side made in the n-th place.
func (s *side) child(n int) *childSA { return s.e.children[s.order[n]] }

// delete ends one Child SA as an operator would who names it.
func (s *side) delete(c *childSA) {
	s.event(func(e *Engine) {
		e.endChild(c)
		e.proceed(c.ike)
		e.arm(c.ike)
	})
}

func wanted(a, b *config.Config) { // stands by itself
	a.Phase1[0].AutoNegotiate, a.Phase2[0].AutoNegotiate = true, true
}

func oneGroupEach(a, b *config.Config) { // the first guess of each is the other's second
	a.Phase2[0].DHGroups = groups(ipsec.KEECP384, ipsec.KEECP521)
	b.Phase2[0].DHGroups = groups(ipsec.KEECP521, ipsec.KEECP384)
}

func childRekeys() []golden {
	out := []golden{
		{name: "child-rekey-by-the-initiator", why: "The initiator of the IKE SA rekeys the Child SA; it also deletes the old one.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.end(1, 1)
			}},
		{name: "child-rekey-by-the-responder", why: "The responder of the IKE SA rekeys the Child SA.",
			talk: func(c *conversation) {
				c.up()
				c.b.rekeyChild()
				c.end(1, 1)
			}},
		{name: "child-rekey-in-another-group", why: "The responder wants another group than the initiator guessed.", change: oneGroupEach,
			talk: func(c *conversation) {
				c.up()
				c.b.e.cfg.Phase2[0].DHGroups = groups(ipsec.KEECP521)
				c.a.rekeyChild()
				c.end(1, 1)
			}},
		{name: "child-rekey-request-lost", why: "The request is lost and sent again, to the bit.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.lose(1)
				c.end(1, 1)
			}},
		{name: "child-rekey-response-lost", why: "The response is lost: the same request gets the same response.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1)
				c.lose(2)
				c.end(1, 1)
			}},
		{name: "child-rekey-delete-lost", why: "The DELETE of the old Child SA is lost, and after it the answer.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.lose(3)
				c.waitBut(1500*time.Millisecond, func(Datagram) bool { return c.sent == 5 })
				c.lose(5)
				c.end(1, 1)
			}},
		{name: "child-rekey-duplicates", why: "Every message arrives twice.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				for n := 1; len(c.flights) > 0; n++ {
					if _, ok := c.flights[n]; ok {
						c.again(n)
						c.pass(n)
					}
				}
				c.end(1, 1)
			}},
		{name: "child-rekey-of-a-lost-sa", why: "B has lost the Child SA without a word: A begins afresh (RFC 7296 §2.25).",
			talk: func(c *conversation) {
				c.up()
				c.ending = true
				c.wait(time.Minute)
				c.say("B loses the Child SA")
				c.b.event(func(e *Engine) { e.removeChild(c.b.child(0)) })
				c.a.rekeyChild()
				c.end(1, 1)
			}},
		{name: "child-rekey-soft-expire-at-the-responder", why: "The responder's soft limit is reached while it waits for the DELETE of the old one.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.b.e.HandleExpiring(c.w.now, c.b.order[0], false)
				c.b.drain()
				c.end(1, 1)
			}},
		{name: "child-rekey-hard-expire-at-the-responder", why: "The old one ends by its hard limit at the responder, which waits for the DELETE.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.say("the hard limit of the old Child SA is reached at B")
				c.b.e.HandleExpiring(c.w.now, c.b.order[0], true)
				c.b.drain()
				c.end(1, 1)
			}},
		{name: "child-rekey-hard-expire-before-the-response", why: "The old one ends by its hard limit at the responder while its response is under way.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1)
				c.ending = true
				c.say("the hard limit of the old Child SA is reached at B")
				c.b.e.HandleExpiring(c.w.now, c.b.order[0], true)
				c.b.drain()
				c.pass(3)
				c.end(1, 1)
			}},
		{name: "child-rekey-wrong-delete-by-the-responder", why: "A responder that deletes the old one as well, and whose DELETE overtakes its response.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1)
				c.ending = true // A cannot help it
				c.say("B deletes the old Child SA, which is not its to delete")
				c.b.delete(c.b.child(0))
				c.pass(3, 2)
				c.end(1, 1)
			}},
		{name: "child-rekey-temporary-failure", why: "TEMPORARY_FAILURE: the request is repeated after a while, not at once.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.answer(1, notify(message.TemporaryFailure, nil))
				c.end(1, 1)
			}},
		{name: "child-rekey-temporary-failure-for-minutes", why: "TEMPORARY_FAILURE for minutes: both sides disagree, so the IKE SA is closed (RFC 7296 §2.25).", change: wanted,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.ending = true
				c.quiet = true
				for n := 1; n < maxTemporaryFailures; n++ {
					c.answer(c.sent, notify(message.TemporaryFailure, nil))
					c.untilSent()
				}
				c.quiet, c.last = false, c.w.now
				c.say("after %d refusals", maxTemporaryFailures-1)
				c.answer(c.sent, notify(message.TemporaryFailure, nil))
				c.wait(10 * time.Second)
				c.end(1, 1)
			}},
		{name: "child-rekey-no-additional-sas", why: "A peer that makes no further Child SAs: a new IKE SA before the old one ends (RFC 7296 §4).", change: wanted,
			talk: func(c *conversation) {
				c.up()
				c.wait(time.Minute)
				c.ending = true // the responder of an IKE_AUTH sends at once
				c.a.rekeyChild()
				c.answer(1, notify(message.NoAdditionalSAs, nil))
				c.end(1, 1)
			}},
		{name: "child-rekey-collision-early-delete-b-won", why: "B has won and deletes the old one before its response reaches A.",
			talk: func(c *conversation) { c.childEarlyDelete(true) }},
		{name: "child-rekey-collision-early-delete-b-lost", why: "B has the lowest nonce and deletes its redundant one before its response reaches A.",
			talk: func(c *conversation) { c.childEarlyDelete(false) }},
		{name: "child-rekey-collision-both-deleted-early", why: "B has won, deletes the old one and then its new one before its response reaches A.",
			talk: func(c *conversation) {
				c.up()
				c.collide(true, (*side).rekeyChild)
				c.pass(2, 1, 3) // B has both answers now, A none
				c.pass(5, 6)    // DELETE of the old one
				c.ending = true
				c.say("B deletes its new Child SA")
				c.b.delete(c.b.own())
				c.pass(7, 8, 4)
				c.end(1, 0)
			}},
		{name: "child-rekey-unnoticed-refused-before-the-delete", why: "B does not know of A's rekey until its own is done; its refusal comes before its DELETE.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(2, 3) // B is done and deletes the old one: 4
				c.pass(1, 5) // A's request now, refused
				c.end(1, 1)
			}},
		{name: "child-rekey-unnoticed-refused-after-the-delete", why: "B does not know of A's rekey until its own is done; its DELETE comes before its refusal.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(2, 3)
				c.pass(1, 4, 5)
				c.end(1, 1)
			}},
		{name: "child-rekey-unnoticed-not-found", why: "A's request comes when B has finished its own rekey: CHILD_SA_NOT_FOUND, which A knows the reason of (RFC 7296 §2.8.1).",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(2, 3, 4, 5)
				c.pass(1)
				c.end(1, 1)
			}},
		{name: "child-rekey-unnoticed-both-deleted", why: "A's request comes when B has rekeyed the Child SA and deleted both.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(2, 3, 4, 5)
				c.ending = true
				c.say("B deletes the new Child SA")
				c.b.delete(c.b.own())
				c.pass(6, 7, 1)
				c.end(1, 0)
			}},
		{name: "child-rekey-collision-groups", why: "Both rekey at once, and both guessed the group that the other does not want.", change: oneGroupEach,
			talk: func(c *conversation) {
				c.up()
				c.split521()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(1, 2, 3, 4)
				c.end(1, 1)
			}},
		{name: "child-rekey-collision-groups-delayed", why: "As before, but A's second request is late: B does not notice.", change: oneGroupEach,
			talk: func(c *conversation) {
				c.up()
				c.split521()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(1, 2, 3, 4) // 5 is A's second request, 6 B's
				c.pass(6, 7)
				c.pass(5)
				c.end(1, 1)
			}},
		{name: "child-rekey-collision-wrong-delete-by-the-loser", why: "A loser of the collision that deletes the old one as well, before its response arrives.",
			talk: func(c *conversation) {
				c.up()
				c.collide(false, (*side).rekeyChild)
				c.pass(2, 1, 3)
				c.pass(5, 6)
				c.ending = true // A cannot help it
				c.say("B deletes the old Child SA, which is not its to delete")
				c.b.delete(c.b.child(0))
				c.pass(7, 8, 4)
				c.end(1, 1)
			}},
		{name: "child-rekey-collision-takeover", why: "A dies when both requests have crossed; its successor finishes the collision.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.collide(true, (*side).rekeyChild)
				c.pass(2, 1)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "child-rekey-collision-takeover-after-the-responses", why: "A dies when it has both new Child SAs and owes a DELETE.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.collide(false, (*side).rekeyChild)
				c.pass(2, 1, 4)
				c.lose(5)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "child-rekey-unnoticed-takeover", why: "A dies with its own request on the way; B, which does not know of it, finishes its rekey with the successor.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.lose(1)
				c.pass(2)
				c.takeover()
				c.end(1, 1)
			}},
	}
	for _, x := range lowest {
		out = append(out, golden{name: "child-rekey-collision-lowest-nonce-in-" + x.name,
			why: "Both rekey at once; " + x.why + " (RFC 7296 §2.8.1).",
			talk: func(c *conversation) {
				c.up()
				c.draw(c.a, x.niA, x.nrA)
				c.draw(c.b, x.niB, x.nrB)
				c.a.rekeyChild()
				c.b.rekeyChild()
				c.pass(2, 1, 4, 3)
				survivor := c.a.own()
				if x.aLoses {
					survivor = c.b.own()
				}
				c.end(1, 1)
				if s := c.a.order[0]; s != survivor.SPIIn && s != survivor.SPIOut {
					c.t.Error("the wrong one survived")
				}
			}})
	}
	return out
}

// own is the newest Child SA that the side made by an exchange of its own.
func (s *side) own() *childSA {
	for i := len(s.order) - 1; i >= 0; i-- {
		if c := s.child(i); c.initiator {
			return c
		}
	}
	s.t.Fatal("no Child SA of its own")
	return nil
}

// split521 lets each side allow the group only that the other tries second.
func (c *conversation) split521() {
	c.a.e.cfg.Phase2[0].DHGroups = groups(ipsec.KEECP384, ipsec.KEECP521)
	c.b.e.cfg.Phase2[0].DHGroups = groups(ipsec.KEECP521, ipsec.KEECP384)
}

func (c *conversation) childEarlyDelete(aLoses bool) {
	c.up()
	c.collide(aLoses, (*side).rekeyChild)
	c.pass(2, 1, 3) // B has A's response; 4, B's own, is late
	c.pass(5, 6)    // B's DELETE
	c.pass(4)
	c.end(1, 1)
}

// untilSent lets time pass until somebody sends.
func (c *conversation) untilSent() {
	c.t.Helper()
	before := c.sent
	for range 1000 {
		if c.sent > before {
			return
		}
		c.waitBut(100*time.Millisecond, func(Datagram) bool { return true })
	}
	c.t.Fatal("nobody sends")
}

// answer has the peer answer a request with what the script says, in the place of what its
// engine would say.
func (c *conversation) answer(n int, ps ...message.Payload) {
	c.t.Helper()
	d, ok := c.flights[n]
	if !ok {
		c.t.Fatalf("message %d is not under way:\n%s", n, c.text())
	}
	delete(c.flights, n)
	h, err := message.ParseHeader(d.Data)
	if err != nil {
		c.t.Fatal(err)
	}
	peer := c.b
	if d.Remote.Addr() == c.a.addr {
		peer = c.live()
	}
	c.write(line{n: n, came: true, text: peer.name})
	peer.event(func(e *Engine) {
		sa := e.find(h)
		if sa == nil {
			c.t.Fatal("no such IKE SA")
		}
		e.respond(sa, flip(d), h, ps)
	})
	c.pass(c.sent)
}

// TestEveryNonceOrder tries all orders of the four nonces, and all orders of delivery that
// keep those of one direction in order.
func TestEveryNonceOrder(t *testing.T) {
	for name, begin := range map[string]func(*side){"child": (*side).rekeyChild, "ike": (*side).rekeyIKE} {
		for _, o := range permutations([]byte{0x10, 0x20, 0x30, 0x40}) {
			aLoses := min(o[0], o[1]) < min(o[2], o[3])
			var a1, b1 bool // who has seen the other's request before its own was answered
			interleavings(t, func() (*world, *side, *side) {
				c := converse(t, nil, false)
				c.up()
				c.a.onEffect, c.b.onEffect, c.a.quietSend, c.b.quietSend = nil, nil, false, false
				c.draw(c.a, o[0], o[3])
				c.draw(c.b, o[2], o[1])
				begin(c.a)
				begin(c.b)
				a1, b1 = false, false
				c.a.onLog = func(x Log) { a1 = a1 || strings.HasPrefix(x.Message, "simultaneous rekey") }
				c.b.onLog = func(x Log) { b1 = b1 || strings.HasPrefix(x.Message, "simultaneous rekey") }
				return c.w, c.a, c.b
			}, func(w *world, a, b *side) {
				w.run(3 * time.Minute)
				agree(t, a, b, 1, 1)
				sameBits(t, w)
				byA := a.ike()[0].initiator
				if name == "child" {
					byA = a.child(0).initiator
				}
				if a1 && b1 && byA == aLoses && (name == "child" || a.logged("lost the") != b.logged("lost the")) {
					t.Errorf("%s, nonces %x: the wrong one survived", name, o)
				}
				if !a.esp(b) || !b.esp(a) {
					t.Error("traffic does not pass")
				}
			})
		}
	}
}

func permutations(in []byte) (out [][]byte) {
	if len(in) == 0 {
		return [][]byte{nil}
	}
	for i := range in {
		for _, p := range permutations(slices.Delete(slices.Clone(in), i, i+1)) {
			out = append(out, append([]byte{in[i]}, p...))
		}
	}
	return out
}
