package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

func TestIKERekeyTranscripts(t *testing.T) { transcribe(t, ikeRekeys()) }

func ikeRekeys() []golden {
	out := []golden{
		{name: "ike-rekey-by-the-initiator", why: "The initiator rekeys the IKE SA: Child SAs are inherited, message IDs begin at 0, it deletes the old one within itself.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.end(1, 1)
			}},
		{name: "ike-rekey-by-the-responder", why: "The responder rekeys the IKE SA, and is the initiator of the new one.",
			talk: func(c *conversation) {
				c.up()
				c.b.rekeyIKE()
				c.end(1, 1)
				c.say("and the Child SA on it")
				c.a.rekeyChild()
				c.end(1, 1)
			}},
		{name: "ike-rekey-in-another-group", why: "The responder wants another group than the initiator guessed.",
			talk: func(c *conversation) {
				c.up()
				c.b.e.cfg.Phase1[0].DHGroups = groups(ipsec.KEECP521)
				c.a.rekeyIKE()
				c.end(1, 1)
			}},
		{name: "ike-rekey-response-lost", why: "The response is lost; the new IKE SA is used only once the initiator has it.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.pass(1)
				c.lose(2)
				c.end(1, 1)
			}},
		{name: "ike-rekey-response-lost-and-responder-goes-on", why: "The response is lost, and the responder begins to rekey the Child SA on the new IKE SA, which the initiator does not know yet.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.pass(1)
				c.lose(2)
				c.b.rekeyChild()
				c.pass(3)
				c.wait(30 * time.Second)
				c.end(1, 1)
			}},
		{name: "ike-rekey-delete-lost", why: "The DELETE of the old IKE SA is lost.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.pass(1, 2)
				c.lose(3)
				c.end(1, 1)
			}},
		{name: "ike-rekey-old-one-is-not-deleted", why: "The peer never deletes the old IKE SA; the responder does after a while.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.pass(1, 2)
				c.lose(3)
				c.a.event(func(e *Engine) { // and the peer forgets it
					for _, sa := range e.sorted() {
						if sa.closing {
							e.remove(sa, false, "forgotten")
						}
					}
				})
				c.wait(time.Minute)
				c.waitBut(2*time.Minute, nil)
				c.end(1, 1)
			}},
		{name: "ike-rekey-temporary-failure", why: "TEMPORARY_FAILURE: the request is repeated after a while, not at once.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.answer(1, notify(message.TemporaryFailure, nil))
				c.wait(5 * time.Second)
				c.end(1, 1)
			}},
		{name: "ike-rekey-no-additional-sas", why: "A peer that cannot rekey the IKE SA: a new one before the old one ends (RFC 7296 §4).", change: wanted,
			talk: func(c *conversation) {
				c.up()
				c.wait(time.Minute)
				c.ending = true // the responder of an IKE_AUTH sends at once
				c.a.rekeyIKE()
				c.answer(1, notify(message.NoAdditionalSAs, nil))
				c.end(1, 1)
			}},
		{name: "ike-rekey-collision-early-delete-b-won", why: "B has won and deletes the old IKE SA before its response reaches A: to A it looks as if B had not noticed.",
			talk: func(c *conversation) { c.ikeEarlyDelete(true) }},
		{name: "ike-rekey-collision-early-delete-b-lost", why: "B has lost and deletes its redundant IKE SA before its response reaches A.",
			talk: func(c *conversation) { c.ikeEarlyDelete(false) }},
		{name: "ike-rekey-collision-groups", why: "Both rekey at once, and both have to try another group.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.a.e.cfg.Phase1[0].DHGroups = groups(ipsec.KEECP521)
				c.b.e.cfg.Phase1[0].DHGroups = groups(ipsec.KEECP521)
				c.pass(1, 2, 3, 4)
				c.wait(20 * time.Second)
				c.end(1, 1)
			}},
		{name: "ike-rekey-collision-groups-delayed", why: "As before, but A's second request is late: B does not notice.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.a.e.cfg.Phase1[0].DHGroups = groups(ipsec.KEECP521)
				c.b.e.cfg.Phase1[0].DHGroups = groups(ipsec.KEECP521)
				c.pass(1, 2, 3, 4)
				c.pass(6, 7)
				c.pass(5)
				c.wait(20 * time.Second)
				c.end(1, 1)
			}},
		{name: "ike-rekey-unnoticed-request-lost", why: "A's request is lost, B finishes its own rekey: A forgets its attempt (RFC 7296 §2.8.2).",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.lose(1)
				c.pass(2, 3)
				c.end(1, 1)
			}},
		{name: "ike-rekey-unnoticed-request-late", why: "A's request comes when B has finished its own rekey: TEMPORARY_FAILURE, and the DELETE before it.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.pass(2, 3) // B deletes the old one: 4
				c.pass(1)    // refused: 5
				c.pass(4, 6, 5)
				c.end(1, 1)
			}},
		{name: "ike-rekey-unnoticed-delete-late", why: "A's request comes when B has finished its own rekey: TEMPORARY_FAILURE before the DELETE.",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.pass(2, 3)
				c.pass(1, 5, 4)
				c.end(1, 1)
			}},
		{name: "ike-rekey-collision-takeover", why: "A dies when both requests have crossed; its successor finishes the collision.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.collide(true, (*side).rekeyIKE)
				c.pass(2, 1)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "ike-rekey-collision-takeover-after-the-responses", why: "A dies when it has both new IKE SAs and owes a DELETE.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.collide(false, (*side).rekeyIKE)
				c.pass(2, 1, 4)
				c.lose(5)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "ike-rekey-unnoticed-takeover", why: "A dies with its own request lost on the way; B finishes its rekey with the successor.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.lose(1)
				c.pass(2)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "ike-rekey-meets-child-delete-takeover", why: "A owes the DELETE of a Child SA when it dies; B rekeys the IKE SA meanwhile.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.lose(3)
				c.takeover()
				c.b.rekeyIKE()
				c.wait(20 * time.Second)
				c.end(1, 1)
			}},
	}
	for _, x := range lowest {
		out = append(out, golden{name: "ike-rekey-collision-lowest-nonce-in-" + x.name,
			why: "Both rekey the IKE SA at once; " + x.why + " (RFC 7296 §2.8.2).",
			talk: func(c *conversation) {
				c.up()
				c.draw(c.a, x.niA, x.nrA)
				c.draw(c.b, x.niB, x.nrB)
				c.a.rekeyIKE()
				c.b.rekeyIKE()
				c.pass(2, 1, 4, 3)
				c.end(1, 1)
				if byA := c.a.ike()[0].initiator; byA == x.aLoses {
					c.t.Error("the wrong one survived")
				}
			}})
	}
	return out
}

func (c *conversation) ikeEarlyDelete(aLoses bool) {
	c.up()
	c.collide(aLoses, (*side).rekeyIKE)
	c.pass(2, 1, 3) // B has A's response; 4, B's own, is late
	c.pass(5)       // B's DELETE
	c.pass(4)
	c.wait(3 * time.Minute)
	c.end(1, 1)
}

func TestSetUpTranscripts(t *testing.T) { transcribe(t, setUps()) }

// cross has both sides begin at once, with nothing between them yet.
func (c *conversation) cross() {
	c.b.resume()
	c.a.resume()
	c.ending = true // nothing stands, and a responder of IKE_AUTH sends at once
	c.begin()
	c.a.up("")
	c.b.up("")
}

func setUps() []golden {
	return []golden{
		{name: "ike-set-up-collision", why: "Both begin at once: of the two IKE SAs the one with the lowest nonce goes, ended by its initiator (RFC 7296 §2.8.2 by analogy).",
			talk: func(c *conversation) {
				c.draw(c.a, 0x10, 0x40)
				c.draw(c.b, 0x30, 0x20)
				c.cross()
				c.pass(1, 2, 3, 4, 5, 6, 7, 8)
				c.wait(time.Minute)
				c.end(1, 1)
			}},
		{name: "ike-set-up-collision-late", why: "Both begin at once, and one side's IKE_AUTH comes when the other IKE SA stands.",
			talk: func(c *conversation) {
				c.cross()
				c.pass(1, 2, 3, 4)
				c.pass(5, 7)
				c.wait(time.Second)
				c.end(1, 1)
			}},
		{name: "ike-set-up-response-lost", why: "The IKE_AUTH response is lost, and the responder, which sees the IKE SA stand, rekeys it: the request waits for the response.",
			talk: func(c *conversation) {
				c.b.resume()
				c.a.resume()
				c.ending = true
				c.begin()
				c.a.up("")
				c.pass(1, 2, 3)
				c.lose(4)
				c.b.rekeyIKE()
				c.wait(time.Minute)
				c.end(1, 1)
			}},
		{name: "ike-set-up-after-a-crash", why: "The peer has lost everything and begins anew with INITIAL_CONTACT: what it had before ends at once.", standby: true,
			talk: func(c *conversation) {
				c.up()
				c.wait(time.Minute)
				c.ending = true
				c.say("A dies, and so does what its standby knows")
				c.a.dead = true
				c.s.e.BeginCopy()
				c.s.e.EndCopy()
				c.s.drain()
				c.s.resume()
				c.s.up("")
				c.end(1, 1)
			}},
	}
}
