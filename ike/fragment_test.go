package ike

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// fragmentOf is the number of the fragment that a datagram is, 0 if it is none.
func fragmentOf(b []byte) uint16 {
	m, err := message.Parse(b)
	if err != nil || len(m.Payloads) == 0 {
		return 0
	}
	if f, ok := m.Payloads[len(m.Payloads)-1].(*message.EncryptedFragment); ok {
		return f.Number
	}
	return 0
}

// inFragments makes both sides cut their messages, a's and b's differently.
func inFragments(a, b *config.Config) {
	a.Phase1[0].Fragmentation, a.Phase1[0].FragmentationMTU = true, 200
	b.Phase1[0].Fragmentation, b.Phase1[0].FragmentationMTU = true, 170
}

func (w *world) fragments(x message.ExchangeType, response bool) int {
	n := 0
	for _, d := range w.seen {
		h, err := message.ParseHeader(d.Data)
		if err == nil && h.Exchange == x && h.Response == response && fragmentOf(d.Data) > 0 {
			n++
		}
	}
	return n
}

func TestExchangesInFragments(t *testing.T) {
	suites := map[string]ipsec.Suite{"AEAD": gcm128, "CBC and HMAC": cbc128sha256}
	for name, suite := range suites {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%v", name, v6), func(t *testing.T) {
				w := newWorld(t)
				addr, want := []string{addrA, addrB}, 28
				if v6 {
					addr, want = []string{"2001:db8::1", "2001:db8::2"}, 48
				}
				change := func(p *config.Phase1) { p.Proposals = []ipsec.Suite{suite} }
				ca := &config.Config{Phase1: []config.Phase1{phase1To("toB", addr[1], change)}, Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}
				cb := &config.Config{Phase1: []config.Phase1{phase1To("toA", addr[0], change)}, Phase2: []config.Phase2{phase2For("toA", "net", netB, netA)}}
				inFragments(ca, cb)
				twoPhase2(ca, cb)
				a, b := w.side("A", addr[0], 1, ca, nil), w.side("B", addr[1], 2, cb, nil)
				b.resume()
				a.resume()
				a.up("net")
				a.up("net2")
				w.settle()
				agree(t, a, b, 1, 2)
				a.rekeyChild()
				w.settle()
				b.rekeyIKE()
				w.settle()
				agree(t, a, b, 1, 2)
				for _, x := range []message.ExchangeType{message.IKEAuth, message.CreateChildSA} {
					for _, response := range []bool{false, true} {
						if w.fragments(x, response) < 2 {
							t.Errorf("%s, response %v: not in fragments", x, response)
						}
					}
				}
				for _, d := range w.seen {
					limit := ca.Phase1[0].FragmentationMTU
					if d.Local.Addr() == b.addr {
						limit = cb.Phase1[0].FragmentationMTU
					}
					h, _ := message.ParseHeader(d.Data)
					if h.Exchange != message.IKESAInit && len(d.Data)+want > limit {
						t.Errorf("%s of %d bytes, limit %d", h.Exchange, len(d.Data)+want, limit)
					}
				}
				sameBits(t, w)
				uniqueIVs(t, w, suite)
			})
		}
	}
}

// uniqueIVs checks that no IV comes twice in one direction of an IKE SA, but in copies.
func uniqueIVs(t *testing.T, w *world, s ipsec.Suite) {
	t.Helper()
	n := 16
	if s.Encr.AEAD() {
		n = 8
	}
	type key struct {
		spis      ipsec.IKESPIs
		initiator bool
		iv        string
	}
	known := map[key][]byte{}
	for _, d := range w.seen {
		m, err := message.Parse(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		switch p := m.Payloads[len(m.Payloads)-1].(type) {
		case *message.Encrypted:
			at = p.Offset
		case *message.EncryptedFragment:
			at = p.Offset
		default:
			continue
		}
		k := key{m.SPIs, m.Initiator, string(d.Data[at : at+n])}
		if was := known[k]; was != nil && !bytes.Equal(was, d.Data) {
			t.Errorf("IV %x twice", k.iv)
		}
		known[k] = d.Data
	}
	if len(known) < 8 {
		t.Errorf("only %d protected datagrams", len(known))
	}
}

func TestFragmentationIsOffUnlessBothCan(t *testing.T) {
	for _, on := range [][2]bool{{true, false}, {false, true}, {false, false}} {
		w, a, b := up(t, func(a, b *config.Config) {
			inFragments(a, b)
			a.Phase1[0].Fragmentation, b.Phase1[0].Fragmentation = on[0], on[1]
		})
		if n := w.fragments(message.IKEAuth, false) + w.fragments(message.IKEAuth, true); n != 0 {
			t.Errorf("%v: %d fragments", on, n)
		}
		// Nor are any taken.
		sa := a.established()[0]
		before := b.e.Counters().Malformed
		for _, d := range partsOf(t, a, sa, message.Informational, nil, 100) {
			b.receive(flip(sa.datagram(d)))
		}
		if got := b.established()[0]; got.nextRecv != sa.nextSend || b.e.Counters().Malformed == before {
			t.Errorf("%v: a fragment was taken", on)
		}
	}
}

// partsOf seals the next request of an IKE SA in fragments of a length.
func partsOf(t *testing.T, s *side, sa *ikeSA, x message.ExchangeType, ps []message.Payload, limit int) [][]byte {
	t.Helper()
	if len(ps) == 0 {
		ps = []message.Payload{&message.VendorID{Data: make([]byte, 200)}}
	}
	if err := s.e.ciphers(sa); err != nil {
		t.Fatal(err)
	}
	m := &message.Message{Header: sa.header(x, false, sa.nextSend), Payloads: ps}
	out, err := m.SealFragments(sa.sealer, limit)
	if err != nil || len(out) < 2 {
		t.Fatal(len(out), err)
	}
	return out
}

// fragmented is a tunnel that stands, whose a speaks by hand from then on.
func fragmented(t *testing.T) (w *world, a, b *side, sa, of *ikeSA) {
	t.Helper()
	w, a, b = up(t, inFragments)
	return w, a, b, a.established()[0], b.established()[0]
}

func TestFragmentsInAnyOrderAndTwice(t *testing.T) {
	w, a, b, sa, of := fragmented(t)
	parts := partsOf(t, a, sa, message.Informational, nil, 150)
	slices.Reverse(parts)
	b.quietSend = true
	for _, d := range slices.Concat(parts[:2], parts[:1], parts[2:]) {
		if len(b.sent) > 0 {
			t.Fatal("answered before the last fragment")
		}
		b.receive(flip(sa.datagram(d)))
	}
	if len(b.sent) != 1 || of.nextRecv != sa.nextSend+1 || of.parts[0] != nil {
		t.Fatalf("%d answers, expected request %d", len(b.sent), of.nextRecv)
	}
	answer := b.sent[0]
	// The request once more: fragment 1 alone asks for the response (RFC 7383 §2.6.1).
	for _, d := range parts {
		was := len(b.sent)
		b.receive(flip(sa.datagram(d)))
		want := 0
		if fragmentOf(d) == 1 {
			want = 1
		}
		if len(b.sent)-was != want {
			t.Errorf("fragment %d: %d answers", fragmentOf(d), len(b.sent)-was)
		}
	}
	if last := b.sent[len(b.sent)-1]; !bytes.Equal(last.Data, answer.Data) {
		t.Error("the response is another one")
	}
	w.settle()
}

func TestFragmentsCutAgain(t *testing.T) {
	_, a, b, sa, of := fragmented(t)
	coarse := partsOf(t, a, sa, message.Informational, nil, 200)
	fine := partsOf(t, a, sa, message.Informational, nil, 120)
	if len(fine) <= len(coarse) {
		t.Fatal("not finer")
	}
	take := func(d []byte) { b.receive(flip(sa.datagram(d))) }
	take(coarse[0])
	take(fine[0])
	if r := of.parts[0]; len(r.parts) != len(fine) || r.missing != len(fine)-1 {
		t.Fatalf("%d of %d missing, want the finer ones", r.missing, len(r.parts))
	}
	for _, d := range coarse {
		take(d)
	}
	if of.nextRecv != sa.nextSend {
		t.Fatal("the coarser fragments were taken after all")
	}
	for _, d := range fine[1:] {
		take(d)
	}
	if of.nextRecv != sa.nextSend+1 {
		t.Error("the finer ones do not make up the message")
	}
}

func TestForgedFragmentsAreNotKept(t *testing.T) {
	_, a, b, sa, of := fragmented(t)
	parts := partsOf(t, a, sa, message.Informational, nil, 150)
	forged := slices.Clone(parts[1])
	forged[len(forged)-1] ^= 1
	more := slices.Clone(parts[1])
	more[message.HeaderLen+7] += 3 // Total Fragments
	failed := b.e.Counters().AuthFailed
	b.receive(flip(sa.datagram(parts[0])))
	b.receive(flip(sa.datagram(forged)))
	b.receive(flip(sa.datagram(more)))
	if r := of.parts[0]; r == nil || r.missing != len(parts)-1 || len(r.parts) != len(parts) {
		t.Fatal("a forged fragment was kept, or replaced what had arrived")
	}
	if n := b.e.Counters().AuthFailed - failed; n != 2 {
		t.Errorf("%d counted as forged", n)
	}
	for _, d := range parts[1:] {
		b.receive(flip(sa.datagram(d)))
	}
	if of.nextRecv != sa.nextSend+1 {
		t.Error("the true ones do not make up the message")
	}
}

// TestFragmentsOfAMessageThatWaits: what could not be answered yet comes once more with any
// one of its fragments, so long as somebody authentic sends it.
func TestFragmentsOfAMessageThatWaits(t *testing.T) {
	_, a, b, sa, of := fragmented(t)
	parts := partsOf(t, a, sa, message.Informational, nil, 150)
	open := func(b2 []byte) (whole bool) {
		b.event(func(e *Engine) {
			m, ok, err := e.open(of, flip(sa.datagram(b2)))
			whole = ok && err == nil && len(m.Payloads) == 1
		})
		return whole
	}
	for i, d := range parts {
		if open(d) != (i == len(parts)-1) {
			t.Fatalf("fragment %d", i+1)
		}
	}
	forged := slices.Clone(parts[0])
	forged[len(forged)-1] ^= 1
	if open(forged) {
		t.Error("a forged fragment brings the message")
	}
	if !open(parts[0]) {
		t.Error("a fragment that comes again does not bring the message")
	}
	b.quietSend = true
	b.receive(flip(sa.datagram(parts[1])))
	if len(b.sent) != 1 || of.parts[0] != nil {
		t.Errorf("%d answers, fragments kept: %v", len(b.sent), of.parts[0] != nil)
	}
}

func TestFragmentsWithinBounds(t *testing.T) {
	w, a, b, sa, of := fragmented(t)
	take := func(d []byte) { b.receive(flip(sa.datagram(d))) }
	dropped := func() uint64 { return b.e.Counters().FragmentsDropped }
	big := []message.Payload{&message.VendorID{Data: make([]byte, maxReassembled+1000)}}

	was := dropped()
	take(partsOf(t, a, sa, message.Informational, big, 200)[0])
	if of.parts[0] != nil || dropped() == was {
		t.Error("a message of too many fragments is begun")
	}
	was = dropped()
	for _, d := range partsOf(t, a, sa, message.Informational, big, 2000) {
		take(d)
		if r := of.parts[0]; r != nil && r.size > maxReassembled {
			t.Fatal("too much is kept")
		}
	}
	if dropped() == was || of.nextRecv != sa.nextSend {
		t.Error("a message that is too long is taken")
	}

	// Time: what never becomes complete is forgotten.
	parts := partsOf(t, a, sa, message.Informational, nil, 150)
	b.e.dropFragments(of)
	take(parts[0])
	w.run(reassemblySpan - time.Second)
	if of.parts[0] == nil {
		t.Error("forgotten too early")
	}
	w.run(2 * time.Second)
	if of.parts[0] != nil {
		t.Error("kept without end")
	}

	// A request in one datagram in the place of its fragments.
	parts = partsOf(t, a, sa, message.Informational, nil, 150)
	take(parts[0])
	a.event(func(e *Engine) { e.sendDPD(sa) })
	w.settle()
	if of.parts[0] != nil || of.nextRecv != sa.nextSend {
		t.Error("fragments are kept of a message that arrived whole")
	}
}

func TestHalfOpenFragmentsAreBoundedInAll(t *testing.T) {
	w, a, b := pair(t, inFragments)
	b.resume()
	a.resume()
	w.drop = func(d Datagram) bool { return fragmentOf(d.Data) > 1 }
	w.settle()
	half := b.ike()[0]
	r := half.parts[0]
	if half.state != stateHalfOpen || r == nil || b.e.halfOpenParts != r.size || r.size == 0 {
		t.Fatalf("half-open %v: %d bytes counted", half.state, b.e.halfOpenParts)
	}
	b.e.halfOpenParts += maxHalfOpenParts - r.size - 10 // others' fragments
	w.drop = func(d Datagram) bool { return fragmentOf(d.Data) == 1 }
	w.run(2 * time.Second)
	if half.parts[0] != nil || b.e.Counters().FragmentsDropped == 0 {
		t.Error("beyond the bound of all half-open IKE SAs")
	}
	b.e.halfOpenParts -= maxHalfOpenParts - r.size - 10
	if b.e.halfOpenParts != 0 {
		t.Errorf("%d bytes counted of nothing", b.e.halfOpenParts)
	}
	w.drop = nil
	w.run(30 * time.Second)
	agree(t, a, b, 1, 1)
	if b.e.halfOpenParts != 0 {
		t.Errorf("%d bytes counted of nothing at the end", b.e.halfOpenParts)
	}
}

// TestTakeoverAmidFragments: half of the request has come when the owner dies; the peer
// sends all of it again, and the successor goes on.
func TestTakeoverAmidFragments(t *testing.T) {
	for _, response := range []bool{false, true} {
		t.Run(fmt.Sprintf("response=%v", response), func(t *testing.T) {
			w, a, b := pair(t, func(a, b *config.Config) {
				inFragments(a, b)
				twoPhase2(a, b)
				a.Phase1[0].AutoNegotiate = false
			})
			bringUp(a, b)
			owner, heir := b, w.standby(b, 77)
			if response {
				owner, heir = a, w.standby(a, 77)
			}
			for _, x := range w.sides[:2] { // the standby has what came before
				if x == owner {
					for _, r := range x.records {
						heir.e.Apply(w.now, r)
						heir.drain()
					}
				}
			}
			n := 0
			w.drop = func(d Datagram) bool {
				h, _ := message.ParseHeader(d.Data)
				if h.Exchange != message.CreateChildSA || h.Response != response || owner.dead {
					return false
				}
				if n++; n == 2 {
					owner.dead = true
				}
				return n >= 2
			}
			a.up("net2")
			w.settle()
			if !owner.dead {
				t.Fatal("no second fragment")
			}
			heir.resume()
			w.run(time.Minute)
			if response {
				a = heir
			} else {
				b = heir
			}
			agree(t, a, b, 1, 2)
			sameBits(t, w)
			uniqueIVs(t, w, gcm128)
		})
	}
}

// TestCrashAtEveryEffectOfFragments is TestCrashAtEveryEffect where every larger message
// leaves in fragments: the owner dies between any two of them.
func TestCrashAtEveryEffectOfFragments(t *testing.T) {
	for _, sc := range scenarios[:4] {
		crashAtEveryEffect(t, sc, inFragments)
	}
}

// crashAtEveryEffect is TestCrashAtEveryEffect for one scenario under a further change of
// the configuration.
func crashAtEveryEffect(t *testing.T, sc scenario, further func(a, b *config.Config)) {
	change := sc.change
	sc.change = func(a, b *config.Config) {
		further(a, b)
		if change != nil {
			change(a, b)
		}
	}
	for _, initiator := range []bool{true, false} {
		for _, loss := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/initiator=%v/loss=%v", sc.name, initiator, loss), func(t *testing.T) {
				for k := 1; k < 100; k++ {
					if !crashOnce(t, sc, initiator, loss, k) {
						if k < 5 {
							t.Errorf("only %d effects", k)
						}
						return
					}
					if t.Failed() {
						t.Fatalf("after effect %d", k-1)
					}
				}
				t.Error("effects without end")
			})
		}
	}
}

// FuzzFragments gives an engine what an authenticated peer may send at worst in fragments:
// each step names one by number and total, with bytes of its own or forged.
func FuzzFragments(f *testing.F) {
	_, inner := message.EncodePayloads([]message.Payload{&message.Delete{Protocol: ipsec.ProtocolIKE}})
	f.Add([]byte{1, 1, 0}, byte(42), inner, byte(37))
	f.Add([]byte{2, 2, 0, 1, 2, 0}, byte(42), inner, byte(37))
	f.Add([]byte{1, 3, 0, 1, 2, 0, 2, 3, 1, 2, 3, 0, 3, 3, 0, 1, 3, 2}, byte(41), []byte{0, 0, 0, 8, 0, 0, 0, 24}, byte(36))
	f.Add([]byte{1, 64, 0, 64, 64, 0, 1, 65, 0, 255, 255, 0}, byte(0), make([]byte, 600), byte(35))
	f.Add([]byte{1, 2, 4, 2, 2, 4, 1, 2, 8, 2, 2, 0}, byte(33), []byte{}, byte(36))
	f.Fuzz(func(t *testing.T, steps []byte, first byte, data []byte, exch byte) {
		w, a, b, sa, of := fragmented(t)
		w.drop = func(Datagram) bool { return true }
		for ; len(steps) >= 3; steps = steps[3:] {
			number, total, how := uint16(steps[0]), uint16(steps[1]), steps[2]
			part := data
			if total > 1 && number >= 1 && number <= total {
				size := len(data)/int(total) + 1
				part = data[min(len(data), int(number-1)*size):min(len(data), int(number)*size)]
			}
			d := sealPart(t, a, sa, message.ExchangeType(exch), how&4 != 0, sa.nextSend+uint32(how>>3&1), first, number, total, part)
			if how&1 != 0 {
				d[len(d)-1] ^= 1
			}
			b.receive(flip(sa.datagram(d)))
			for _, r := range of.parts {
				if r == nil {
					continue
				}
				n := 0
				for _, p := range r.parts {
					n += len(p)
				}
				if n != r.size || n > maxReassembled || len(r.parts) > maxFragments || r.missing < 0 {
					t.Fatalf("%d bytes in %d fragments, %d counted, %d missing", n, len(r.parts), r.size, r.missing)
				}
			}
			if how&2 != 0 {
				w.now = w.now.Add(7 * time.Second)
				b.e.HandleTimeout(w.now)
				b.drain()
			}
		}
		w.now = w.now.Add(reassemblySpan)
		b.e.HandleTimeout(w.now)
		b.drain()
		if of.state != stateGone && (of.parts[0] != nil || of.parts[1] != nil) {
			t.Fatal("fragments are kept without end")
		}
		if b.e.halfOpenParts != 0 {
			t.Fatalf("%d bytes of half-open IKE SAs", b.e.halfOpenParts)
		}
	})
}

// sealPart protects the content of one fragment with any number and total.
func sealPart(t *testing.T, s *side, sa *ikeSA, exch message.ExchangeType, response bool, id uint32, first byte, number, total uint16, part []byte) []byte {
	t.Helper()
	if err := s.e.ciphers(sa); err != nil {
		t.Fatal(err)
	}
	plain := append(slices.Clone(part), 0)
	skf := 8 + sa.sealer.IVLen() + len(plain) + sa.sealer.ICVLen()
	m := &message.Message{Header: sa.header(exch, response, id)}
	aad := append(m.Encode(), first, 0, byte(skf>>8), byte(skf), byte(number>>8), byte(number), byte(total>>8), byte(total))
	aad[16] = byte(message.TypeSKF)
	binary.BigEndian.PutUint32(aad[24:], uint32(message.HeaderLen+skf))
	b, err := sa.sealer.Seal(aad, plain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
