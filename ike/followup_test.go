package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func TestFollowUpTranscripts(t *testing.T) { transcribe(t, followUps()) }

// inOnePiece is oneAddKE and twoAddKEs without fragments.
func inOnePiece(set func(a, b *config.Config)) func(a, b *config.Config) {
	return func(a, b *config.Config) {
		set(a, b)
		a.Phase1[0].Fragmentation, b.Phase1[0].Fragmentation = false, false
	}
}

// onlyB has A's tunnel rekey without, and B's with additional key exchanges.
func onlyB(a, b *config.Config) {
	inOnePiece(oneAddKE)(a, b)
	a.Phase2[0].AddKE = [7][]ipsec.TransformID{{none, mlkem768}}
	b.Phase2[0].AddKE = [7][]ipsec.TransformID{{mlkem768, none}}
}

func followUps() []golden {
	one, two := inOnePiece(oneAddKE), inOnePiece(twoAddKEs)
	out := []golden{
		{name: "addke-set-up", why: "Two additional key exchanges in IKE_INTERMEDIATE (RFC 9370 §2.2.2); the first Child SA needs none.", change: two,
			talk: func(c *conversation) {
				c.b.resume()
				c.a.resume()
				c.ending = true
				c.begin()
				c.a.up("")
				c.end(1, 1)
			}},
		{name: "addke-set-up-losses", why: "Every message of IKE_INTERMEDIATE is lost once, and a repeated request comes when its keys have been replaced.", change: one,
			talk: func(c *conversation) {
				c.b.resume()
				c.a.resume()
				c.ending = true
				c.begin()
				c.a.up("")
				c.pass(1, 2)
				c.lose(3)
				c.waitBut(1500*time.Millisecond, func(Datagram) bool { return c.sent == 4 })
				c.pass(4)
				c.lose(5)
				c.end(1, 1)
			}},
		{name: "addke-set-up-takeover", why: "A dies between IKE_SA_INIT and its additional key exchange; its successor carries it out.", change: one, standby: true,
			talk: func(c *conversation) {
				c.b.resume()
				c.a.resume()
				c.ending = true
				c.begin()
				c.a.up("")
				c.pass(1, 2)
				c.lose(3)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "addke-child-rekey", why: "Two additional key exchanges after CREATE_CHILD_SA (RFC 9370 §2.2.4); the Child SA is made with the last one.", change: two,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.end(1, 1)
			}},
		{name: "addke-ike-rekey", why: "The IKE SA is rekeyed with an additional key exchange, then the Child SA on the new one by the other side.", change: one,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyIKE()
				c.all()
				c.b.rekeyChild()
				c.end(1, 1)
			}},
		{name: "addke-child-rekey-losses", why: "Request and response of IKE_FOLLOWUP_KE are lost: both come again to the bit.", change: one,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.lose(3)
				c.waitBut(1500*time.Millisecond, func(Datagram) bool { return c.sent == 4 })
				c.pass(4)
				c.lose(5)
				c.end(1, 1)
			}},
		{name: "addke-child-rekey-state-lost", why: "A goes on so late that B has forgotten what it is about: STATE_NOT_FOUND, and A begins anew.", change: one,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.waitBut(halfMadeSpan+time.Second, func(Datagram) bool { return true })
				for n := 3; n < c.sent; n++ {
					c.lose(n)
				}
				c.wait(5 * time.Second)
				c.end(1, 1)
			}},
		{name: "addke-child-rekey-meets-follow-up", why: "B's request comes when A is at its additional key exchange: TEMPORARY_FAILURE (RFC 9370 §2.2.4).", change: one,
			talk: func(c *conversation) {
				c.up()
				c.b.rekeyChild()
				c.a.rekeyChild()
				c.pass(2) // B answers A's and notices
				c.pass(3)
				c.pass(1) // A is at its follow-up
				c.end(1, 1)
			}},
		{name: "addke-ike-rekey-meets-follow-up", why: "B's request comes when A is at the additional key exchange of the IKE SA: TEMPORARY_FAILURE.", change: one,
			talk: func(c *conversation) {
				c.up()
				c.b.rekeyIKE()
				c.a.rekeyIKE()
				c.pass(2, 3)
				c.pass(1)
				c.end(1, 1)
			}},
		{name: "addke-child-create-meets-half-made-ike-rekey", why: "While B rekeys the IKE SA, A makes no Child SA on the old one; the new one has it.",
			change: func(a, b *config.Config) { twoPhase2(a, b); one(a, b) },
			talk: func(c *conversation) {
				c.upOf("net")
				c.b.rekeyIKE()
				c.pass(1, 2)
				c.ending = true // the responder of a new Child SA sends at once
				c.a.up("net2")
				c.end(1, 2)
			}},
		{name: "addke-child-rekey-collision-one-side", why: "Both rekey at once; what B begins has an additional key exchange, what A begins has none, and A's nonce is the lowest.", change: onlyB,
			talk: func(c *conversation) { c.collide1(true, (*side).rekeyChild) }},
		{name: "addke-child-rekey-collision-other-side", why: "As before, but the lowest nonce is of B's exchange, which goes no further.", change: onlyB,
			talk: func(c *conversation) { c.collide1(false, (*side).rekeyChild) }},
		{name: "addke-child-rekey-takeover-of-the-initiator", why: "A dies at its additional key exchange; its successor repeats the request and makes the Child SA.", change: one, standby: true,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.pass(1, 2)
				c.lose(3)
				c.takeover()
				c.end(1, 1)
			}},
		{name: "addke-ike-rekey-takeover-of-the-responder", why: "A dies when it has answered CREATE_CHILD_SA; its successor answers the additional key exchange.", change: one, standby: true,
			talk: func(c *conversation) {
				c.up()
				c.b.rekeyIKE()
				c.pass(1)
				c.takeover()
				c.pass(2)
				c.end(1, 1)
			}},
	}
	for _, x := range lowest {
		collision := func(begin func(*side)) func(c *conversation) {
			return func(c *conversation) {
				c.up()
				c.draw(c.a, x.niA, x.nrA)
				c.draw(c.b, x.niB, x.nrB)
				begin(c.a)
				begin(c.b)
				c.pass(2, 1, 4, 3)
				c.end(1, 1)
			}
		}
		out = append(out,
			golden{name: "addke-child-rekey-collision-lowest-nonce-in-" + x.name, change: one, talk: collision((*side).rekeyChild),
				why: "Both rekey at once with additional key exchanges; " + x.why + ": that side goes no further (RFC 9370 §2.2.4)."},
			golden{name: "addke-ike-rekey-collision-lowest-nonce-in-" + x.name, change: one, talk: collision((*side).rekeyIKE),
				why: "Both rekey the IKE SA at once with additional key exchanges; " + x.why + ": that side goes no further."})
	}
	return out
}

func (c *conversation) collide1(aLoses bool, begin func(*side)) {
	c.up()
	c.collide(aLoses, begin)
	c.pass(2, 1, 4, 3)
	c.end(1, 1)
}

// TestHalfMadeIsBounded: a peer that begins new SAs and goes on with none of them costs little,
// and what it has begun ends by itself.
func TestHalfMadeIsBounded(t *testing.T) {
	w, _, b := pair(t, func(x, y *config.Config) { setAddKE(y, []ipsec.TransformID{mlkem768}) })
	b.resume()
	o := newOther(t, b, true, []uint16{36}, 0)
	o.connect()
	sa := b.established()[0]
	keys := len(b.e.keyRefs)
	for n := range 20 {
		public, _ := o.begin(31)
		ps := o.request(oCreate, o.offer(3, []byte{9, 9, 8, byte(n)}, true, true), part{oNonce, nonce()}, ke(31, public), part{oTSi, ts(netA)}, part{oTSr, ts(netB)})
		if _, ok := findNotify(ps, noteAddKE); !ok {
			t.Fatalf("answered by %v", kindsOf(ps))
		}
		if len(sa.half) > maxHalfMade || len(b.e.keyRefs) > keys+maxHalfMade {
			t.Fatalf("%d half-made SAs, %d keys", len(sa.half), len(b.e.keyRefs))
		}
	}
	if len(sa.children) != 1 {
		t.Errorf("%d Child SAs", len(sa.children))
	}
	ps := o.request(oFollowup, ke(36, make([]byte, 1184)), told(noteAddKE, []byte("what is not there")))
	if _, ok := findNotify(ps, uint16(message.StateNotFound)); !ok {
		t.Errorf("an unknown link is answered by %v", kindsOf(ps))
	}
	w.run(halfMadeSpan + time.Second)
	if len(sa.half) != 0 || len(b.e.keyRefs) != keys {
		t.Errorf("after %v: %d half-made SAs, %d keys, want %d", halfMadeSpan, len(sa.half), len(b.e.keyRefs), keys)
	}
}
