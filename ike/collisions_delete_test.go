package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
)

func TestChildRekeyTranscripts(t *testing.T)  { transcribe(t, childRekeys()) }
func TestChildDeleteTranscripts(t *testing.T) { transcribe(t, childDeletes()) }

func childDeletes() []golden {
	return []golden{
		{name: "child-delete-by-the-initiator", why: "The initiator of the IKE SA deletes the Child SA.",
			talk: func(c *conversation) { c.deleting(1, 0, func() { c.a.down("net") }) }},
		{name: "child-delete-by-the-responder", why: "The responder of the IKE SA deletes the Child SA.",
			talk: func(c *conversation) { c.deleting(1, 0, func() { c.b.down("net") }) }},
		{name: "child-delete-collision", why: "Both delete the Child SA at once: no Delete payload in the answers (RFC 7296 §2.25.1).",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.down("net")
					c.b.down("net")
					c.pass(2, 1)
				})
			}},
		{name: "child-delete-collision-lost", why: "Both delete the Child SA at once, and one request is lost.",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.down("net")
					c.b.down("net")
					c.lose(1)
				})
			}},
		{name: "child-delete-meets-rekey", why: "A rekeys the Child SA that B deletes: TEMPORARY_FAILURE, and nothing to repeat.",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.rekeyChild()
					c.b.down("net")
					c.pass(1, 2)
				})
			}},
		{name: "child-delete-meets-rekey-delete-late", why: "A rekeys the Child SA that B deletes; the DELETE comes after the refusal.",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.rekeyChild()
					c.b.down("net")
					c.pass(1, 3, 2)
				})
			}},
		{name: "child-delete-meets-rekey-request-late", why: "A rekeys the Child SA that B deletes; the request comes when it is gone. What B has ended stays ended.",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.rekeyChild()
					c.b.down("net")
					c.pass(2, 3, 1)
				})
			}},
		{name: "child-delete-of-the-new-one-by-the-responder", why: "The responder of a rekey deletes the new one, and its DELETE overtakes its response: A installs nothing that B has not, and the old one stays.",
			talk: func(c *conversation) {
				c.deleting(1, 1, func() {
					c.a.rekeyChild()
					c.pass(1)
					c.b.delete(c.b.child(1))
					c.pass(3, 4, 2)
				})
			}},
		{name: "child-delete-of-the-new-one-before-the-old", why: "The responder deletes the new one while it waits for the DELETE of the old.",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.rekeyChild()
					c.pass(1, 2)
					c.b.delete(c.b.child(1))
					c.pass(4, 3)
				})
			}},
		{name: "child-delete-of-the-new-one-by-its-initiator", why: "The initiator of a rekey deletes the new one right after the old.",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.rekeyChild()
					c.pass(1, 2)
					c.a.delete(c.a.child(1))
				})
			}},
		{name: "child-delete-meets-ike-rekey", why: "A deletes the Child SA while B rekeys the IKE SA: the DELETE is answered as usual, the rekey repeated later (RFC 7296 §2.25.2).",
			talk: func(c *conversation) {
				c.deleting(1, 0, func() {
					c.a.down("net")
					c.b.rekeyIKE()
					c.pass(1, 2)
				})
			}},
		{name: "child-delete-meets-ike-delete", why: "A deletes the Child SA while B deletes the IKE SA.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					c.a.down("net")
					clearAll(c.b)
					c.pass(1, 2)
				})
			}},
		{name: "child-rekey-meets-ike-rekey", why: "A rekeys the Child SA while B rekeys the IKE SA: both are refused, and both repeat it later (RFC 7296 §2.25).",
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.b.rekeyIKE()
				c.pass(1, 2)
				c.wait(20 * time.Second)
				c.end(1, 1)
			}},
		{name: "child-rekey-meets-ike-delete", why: "A rekeys the Child SA while B deletes the IKE SA.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					c.a.rekeyChild()
					clearAll(c.b)
					c.pass(1, 2)
				})
			}},
		{name: "child-create-meets-ike-rekey", why: "A makes a second Child SA while B rekeys the IKE SA: both are refused, and both repeat it later.", change: twoPhase2,
			talk: func(c *conversation) {
				c.up2()
				c.ending = true // a responder that has replaced nothing sends at once
				c.a.up("net2")
				c.b.rekeyIKE()
				c.pass(1, 2)
				c.wait(20 * time.Second)
				c.end(1, 2)
			}},
		{name: "child-create-collision", why: "Both make the same second Child SA at once; one of the two is closed as after a rekey.", change: twoPhase2,
			talk: func(c *conversation) {
				c.up2()
				c.ending = true // a responder that has replaced nothing sends at once
				c.a.up("net2")
				c.b.up("net2")
				c.pass(1, 2)
				c.end(1, 2)
			}},
		{name: "child-create-that-stands-already", why: "A Child SA that stands is not made again.",
			talk: func(c *conversation) {
				c.up()
				c.a.up("net")
				c.b.up("net")
				c.end(1, 1)
			}},
		{name: "child-create-no-additional-sas", why: "NO_ADDITIONAL_SAS for a second Child SA: the first is not touched.", change: twoPhase2,
			talk: func(c *conversation) {
				c.up2()
				c.a.up("net2")
				c.answer(1, notify(message.NoAdditionalSAs, nil))
				c.end(1, 1)
			}},
	}
}

// up2 is up without the second phase 2 entry.
func (c *conversation) up2() { c.upOf("net") }

// deleting is a case at the end of which SAs are gone for good.
func (c *conversation) deleting(ikes, children int, f func()) {
	c.t.Helper()
	c.up()
	c.ending = true
	f()
	c.all()
	c.wait(time.Minute)
	c.end(ikes, children)
}

func ikeDeletes() []golden {
	return []golden{
		{name: "ike-delete-by-the-initiator", why: "The initiator deletes the IKE SA: its Child SAs first, since the peer may still send.",
			talk: func(c *conversation) { c.deleting(0, 0, func() { clearAll(c.a) }) }},
		{name: "ike-delete-by-the-responder", why: "The responder deletes the IKE SA.",
			talk: func(c *conversation) { c.deleting(0, 0, func() { clearAll(c.b) }) }},
		{name: "ike-delete-collision", why: "Both delete the IKE SA at once.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					clearAll(c.a)
					clearAll(c.b)
					c.pass(1, 2)
				})
			}},
		{name: "ike-delete-collision-in-the-last-step", why: "Both DELETEs of the IKE SA itself cross.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					clearAll(c.a)
					clearAll(c.b)
					c.pass(1, 2, 3, 4)
					c.pass(5, 6)
				})
			}},
		{name: "ike-delete-lost", why: "The answer to the DELETE is lost; the repeated DELETE finds nobody.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					clearAll(c.a)
					c.pass(1, 2, 3)
					c.lose(4)
				})
			}},
		{name: "ike-delete-meets-rekey", why: "A rekeys the IKE SA that B deletes: TEMPORARY_FAILURE, and A forgets its rekey (RFC 7296 §2.25.2).",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					c.a.rekeyIKE()
					clearAll(c.b)
					c.pass(1, 2)
				})
			}},
		{name: "ike-delete-meets-rekey-delete-late", why: "A rekeys the IKE SA that B deletes; the DELETE comes after the refusal.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					c.a.rekeyIKE()
					clearAll(c.b)
					c.pass(1, 3, 2)
				})
			}},
		{name: "ike-delete-meets-rekey-request-late", why: "A rekeys the IKE SA that B deletes; the request comes when it is gone.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					c.a.rekeyIKE()
					clearAll(c.b)
					c.pass(2, 3, 4, 1)
				})
			}},
		{name: "ike-delete-of-the-new-one", why: "B, which answered a rekey, deletes the new IKE SA before A knows of it.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					c.a.rekeyIKE()
					c.pass(1)
					clearAll(c.b)
					c.pass(3)
				})
			}},
		{name: "ike-delete-meets-child-rekey", why: "A deletes the IKE SA on which B rekeys the Child SA.",
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					clearAll(c.a)
					c.b.rekeyChild()
					c.pass(1, 2)
				})
			}},
		{name: "ike-delete-takeover", why: "A dies between its DELETEs of the Child SA and the IKE SA; its successor goes on.", standby: true,
			talk: func(c *conversation) {
				c.deleting(0, 0, func() {
					clearAll(c.a)
					c.pass(1)
					c.lose(2)
					c.takeover()
				})
			}},
	}
}

func TestIKEDeleteTranscripts(t *testing.T) { transcribe(t, ikeDeletes()) }
