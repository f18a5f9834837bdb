package ike

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

var otherKinds = []struct {
	name  string
	add   []uint16
	lists [][]ipsec.TransformID
	limit int
}{
	{"ML-KEM-768", []uint16{36}, [][]ipsec.TransformID{{mlkem768}}, 0},
	{"ML-KEM-768 in fragments", []uint16{36}, [][]ipsec.TransformID{{mlkem768}}, 500},
	{"ML-KEM-1024, then ML-KEM-768", []uint16{37, 36}, [][]ipsec.TransformID{{mlkem1024}, {mlkem768}}, 1100},
}

// TestAnotherInitiator: what this engine derives and authenticates as the responder is what
// somebody else derives.
func TestAnotherInitiator(t *testing.T) {
	for _, k := range otherKinds {
		t.Run(k.name, func(t *testing.T) {
			_, _, b := pair(t, func(x, y *config.Config) { setAddKE(y, k.lists...) })
			b.resume()
			o := newOther(t, b, true, k.add, k.limit)
			o.connect()
			if len(b.established()) != 1 {
				t.Fatal("no IKE SA")
			}
			o.rekeyChild([]byte{9, 9, 9, 1})
			o.rekeyIKE()
			if sa := b.established()[0]; !bytes.Equal(sa.keys.D.Bytes(), o.d) {
				t.Error("SK_d of the new IKE SA is another one")
			}
			nothingPending(t, b)
		})
	}
}

// TestAnotherResponder is the same with this engine as the initiator.
func TestAnotherResponder(t *testing.T) {
	for _, k := range otherKinds {
		t.Run(k.name, func(t *testing.T) {
			_, a, _ := pair(t, func(x, y *config.Config) {
				setAddKE(x, k.lists...)
				x.Phase1[0].Fragmentation = k.limit > 0
			})
			o := newOther(t, a, false, k.add, k.limit)
			o.await()
			if len(a.established()) != 1 {
				t.Fatal("no IKE SA")
			}
			a.sent = nil
			a.rekeyChild()
			o.awaitRekeys()
			a.sent = nil
			a.rekeyIKE()
			o.awaitRekeys()
			if sa := a.established()[0]; !bytes.Equal(sa.keys.D.Bytes(), o.d) {
				t.Error("SK_d of the new IKE SA is another one")
			}
			nothingPending(t, a)
		})
	}
}

// respond answers what the engine has sent, and takes what it sends then.
func (o *other) respond(exchange byte, id uint32, ps ...part) {
	o.deliver(o.seal(exchange, true, id, ps...)...)
	o.recv = id + 1
}

func (o *other) sent() (out [][]byte) {
	for _, d := range o.s.sent {
		out = append(out, d.Data)
	}
	o.s.sent = nil
	return out
}

// await is the responder up to the first Child SA.
func (o *other) await() {
	o.s.resume()
	o.initReq = o.sent()[0]
	o.i, o.r = binary.BigEndian.Uint64(o.initReq), 0x99aabbccddeeff00
	ps := unchain(o.initReq[16], o.initReq[28:])
	o.ni = o.body(ps, oNonce)
	public, shared := o.answer(31, o.body(ps, oKE)[4:])
	notes := []part{o.offer(1, nil, true, true), ke(31, public), {oNonce, o.nr}, told(noteIntermediate, nil)}
	if _, ok := findNotify(ps, noteFragments); ok {
		notes = append(notes, told(noteFragments, nil))
	}
	first, body := chain(notes)
	o.initRes = setLen(join(o.header(first, oInit, true, 0), body))
	o.keys(hmacOf(join(o.ni, o.nr), shared))
	o.deliver(o.initRes)
	for _, method := range o.add {
		exchange, id, ps := o.open(o.sent())
		if exchange != oIntermediate {
			o.t.Fatalf("exchange %d instead of IKE_INTERMEDIATE", exchange)
		}
		public, shared := o.answer(method, o.body(ps, oKE)[4:])
		answer := o.seal(oIntermediate, true, id, ke(method, public))
		o.keys(hmacOf(o.d, shared, o.ni, o.nr))
		o.deliver(answer...)
	}
	_, id, ps := o.open(o.sent())
	if !bytes.Equal(o.body(ps, oAUTH)[4:], o.auth(true, o.body(ps, oIDi), id)) {
		o.t.Fatal("AUTH of the initiator is another one")
	}
	me := join([]byte{2, 0, 0, 0}, []byte("other"))
	spi := chosenSPI(o.body(ps, oSA))
	o.respond(oAuth, id, part{oIDr, me}, part{oAUTH, join([]byte{2, 0, 0, 0}, o.auth(false, me, id))},
		o.offer(3, []byte{9, 9, 9, 1}, false, false), part{oTSi, o.body(ps, oTSi)}, part{oTSr, o.body(ps, oTSr)})
	o.wantChild(spi, false, expand(o.d, join(o.ni, o.nr), 40))
}

// awaitRekeys answers one rekey of the engine, with its additional key exchanges and DELETE.
func (o *other) awaitRekeys() {
	o.t.Helper()
	_, id, ps := o.open(o.sent())
	sa := o.body(ps, oSA)
	spi := bytes.Clone(chosenSPI(sa))
	ni, nr := bytes.Clone(o.body(ps, oNonce)), nonce()
	public, shared := o.answer(31, o.body(ps, oKE)[4:])
	mine := []byte{9, 9, 9, byte(2 + id)}
	if sa[5] == 1 {
		mine = []byte{6, 6, 6, 6, 6, 6, 6, byte(id)}
	}
	out := []part{o.offer(sa[5], mine, true, true), {oNonce, nr}, ke(31, public)}
	if sa[5] == 3 {
		out = append(out, part{oTSi, o.body(ps, oTSi)}, part{oTSr, o.body(ps, oTSr)})
	}
	var more []byte
	exchange := byte(oCreate)
	for i, method := range o.add {
		link := []byte{byte(i), 1, 2, 3}
		o.respond(exchange, id, append(out, told(noteAddKE, link))...)
		exchange, id, ps = o.open(o.sent())
		if back, ok := findNotify(ps, noteAddKE); exchange != oFollowup || !ok || !bytes.Equal(back, link) {
			o.t.Fatalf("exchange %d with %v follows", exchange, kindsOf(ps))
		}
		public, secret := o.answer(method, o.body(ps, oKE)[4:])
		more = append(more, secret...)
		out = []part{ke(method, public)}
	}
	o.respond(exchange, id, out...)
	if sa[5] == 3 {
		o.wantChild(spi, false, expand(o.d, join(shared, ni, nr, more), 40))
	}
	exchange, id, _ = o.open(o.sent())
	if exchange != oInfo {
		o.t.Fatalf("exchange %d instead of the DELETE of the old SA", exchange)
	}
	if sa[5] == 3 {
		o.respond(oInfo, id)
		return
	}
	o.respond(oInfo, id)
	o.ni, o.nr, o.i, o.r = ni, nr, binary.BigEndian.Uint64(spi), binary.BigEndian.Uint64(mine)
	o.keys(hmacOf(o.d, shared, ni, nr, more))
	o.s.event(func(e *Engine) { e.sendDPD(o.s.established()[0]) })
	_, id, _ = o.open(o.sent())
	o.respond(oInfo, id)
	o.s.w.run(time.Millisecond)
}
