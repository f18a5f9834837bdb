package ike

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// firstRequest is an IKE_SA_INIT request of an initiator that has not been delivered.
func firstRequest(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side, Datagram) {
	t.Helper()
	w, a, b := pair(t, change)
	b.resume()
	a.resume()
	if len(w.wire) != 1 {
		t.Fatalf("%d messages under way", len(w.wire))
	}
	d := w.wire[0]
	w.wire = nil
	return w, a, b, d
}

func parse(t *testing.T, d Datagram) *message.Message {
	t.Helper()
	m, err := message.Parse(d.Data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRepeatedInitGetsTheSameResponse(t *testing.T) {
	w, _, b, d := firstRequest(t, nil)
	w.deliver(d)
	first := w.wire[0]
	for range 3 {
		w.deliver(d)
	}
	if len(w.wire) != 4 || len(b.ike()) != 1 {
		t.Fatalf("%d responses, %d half-open IKE SAs", len(w.wire), len(b.ike()))
	}
	for _, r := range w.wire {
		if !bytes.Equal(r.Data, first.Data) {
			t.Error("responses differ")
		}
	}
	n := len(w.seen)
	w.wire = nil
	w.drop = func(Datagram) bool { return true }
	for range 20 {
		w.now = w.now.Add(time.Second)
		b.e.HandleTimeout(w.now)
		b.drain()
	}
	if len(w.seen) != n {
		t.Error("the responder sent a response that nobody asked for")
	}
	w.now = w.now.Add(20 * time.Second)
	b.e.HandleTimeout(w.now)
	b.drain()
	if len(b.ike()) != 0 || b.e.halfOpen != 0 || len(b.e.perSource) != 0 || len(b.e.inits) != 0 {
		t.Error("half-open IKE SA does not end with the negotiate-timeout")
	}
}

func TestCookie(t *testing.T) {
	w, a, b := pair(t, nil)
	b.e.o.HalfOpenLimit = 5
	b.resume()
	// Others leave five half-open IKE SAs behind.
	for i := range 5 {
		c := w.side("flood", netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}).String(), uint64(10+i), a.e.cfg, nil)
		c.resume()
		d := w.wire[0]
		d.Local = netip.AddrPortFrom(netip.MustParseAddr(addrA), uint16(1000+i))
		w.wire = nil
		w.deliver(d)
		w.wire = nil
		c.dead = true
	}
	if b.e.halfOpen != 5 {
		t.Fatalf("setup: %d half-open", b.e.halfOpen)
	}
	a.resume()
	req := w.wire[0]
	w.wire = nil
	state := len(b.e.sas)
	w.deliver(req)
	if len(w.wire) != 1 || len(b.e.sas) != state || len(b.tickets) != 0 {
		t.Fatal("the cookie cost state")
	}
	reply := w.wire[0]
	n, ok := parse(t, reply).Notify(message.Cookie)
	if !ok || len(reply.Data) >= len(req.Data) || len(n.Data) == 0 {
		t.Fatalf("no cookie in a reply of %d bytes to %d bytes", len(reply.Data), len(req.Data))
	}
	// Another member of the cluster accepts it: the secret is shared.
	w.wire = nil
	w.deliver(reply)
	again := w.wire[0]
	w.wire = nil
	m := parse(t, again)
	if c, ok := m.Payloads[0].(*message.Notify); !ok || c.NotifyType != message.Cookie {
		t.Error("the cookie is not the first payload")
	}
	b.dead = true
	b2 := w.side("B2", addrB, 55, b.e.cfg, nil)
	b2.e.o.HalfOpenLimit = 1
	b2.resume()
	b2.e.halfOpen = 1
	w.deliver(again)
	w.settle()
	agree(t, a, b2, 1, 1)
	// A forged cookie is as good as none.
	forged := parse(t, again)
	forged.Payloads[0].(*message.Notify).Data = bytes.Repeat([]byte{1}, 16)
	b2.e.halfOpen = 1
	w.deliver(Datagram{Local: again.Local, Remote: again.Remote, Data: forged.Encode()})
	if _, ok := parse(t, w.wire[len(w.wire)-1]).Notify(message.Cookie); !ok || len(b2.ike()) != 1 {
		t.Error("a forged cookie was accepted")
	}
}

func TestHalfOpenLimits(t *testing.T) {
	w, a, b := pair(t, nil)
	b.e.o.HalfOpenLimit = 100
	b.resume()
	cfg := *a.e.cfg
	for i := range 150 {
		c := w.side("flood", netip.AddrFrom4([4]byte{192, 0, 3, byte(i)}).String(), uint64(100+i), &cfg, nil)
		c.resume()
		d := w.wire[0]
		d.Local = netip.AddrPortFrom(netip.MustParseAddr(addrA), 500)
		w.wire = nil
		c.dead = true
		w.deliver(d)
		w.wire = nil
	}
	if b.e.halfOpen > 100 {
		t.Errorf("%d half-open IKE SAs of one source", b.e.halfOpen)
	}
	if b.e.counters.CookiesSent == 0 {
		t.Error("no cookies")
	}
}

func groups(g ...ipsec.TransformID) []ipsec.TransformID { return g }

func TestInvalidKE(t *testing.T) {
	w, a, b, d := firstRequest(t, func(a, b *config.Config) {
		a.Phase1[0].DHGroups = groups(ipsec.KEX25519, ipsec.KEECP256)
		b.Phase1[0].DHGroups = groups(ipsec.KEECP256)
		a.Phase2[0].DHGroups = groups(ipsec.KEX25519, ipsec.KEECP384)
		b.Phase2[0].DHGroups = groups(ipsec.KEECP384)
	})
	w.deliver(d)
	n, ok := parse(t, w.wire[0]).Notify(message.InvalidKEPayload)
	if !ok || !bytes.Equal(n.Data, []byte{0, 19}) || len(b.ike()) != 0 {
		t.Fatalf("INVALID_KE_PAYLOAD with %x", n.Data)
	}
	w.settle()
	agree(t, a, b, 1, 1)
	if a.ike()[0].suite.KE != ipsec.KEECP256 {
		t.Error("the other group was used")
	}
	// The same for Child SAs, both ways, and for the IKE SA.
	for _, p := range []*side{a, b, a} {
		p.rekeyChild()
		w.settle()
		agree(t, a, b, 1, 1)
		if a.ike()[0].children[0].Suite.KE != ipsec.KEECP384 {
			t.Error("rekeyed with the other group")
		}
		p.rekeyIKE()
		w.settle()
		agree(t, a, b, 1, 1)
	}
}

func TestSecondRefusalOfTheGroupEndsIt(t *testing.T) {
	w, a, b, d := firstRequest(t, func(a, b *config.Config) {
		a.Phase1[0].DHGroups = groups(ipsec.KEX25519, ipsec.KEECP256, ipsec.KEECP384)
		a.Phase1[0].AutoNegotiate = true
	})
	b.dead = true
	demand := func(d Datagram, g uint16) Datagram {
		m := parse(t, d)
		r := &message.Message{Header: m.Header, Payloads: []message.Payload{
			&message.Notify{NotifyType: message.InvalidKEPayload, Data: binary.BigEndian.AppendUint16(nil, g)}}}
		r.Initiator, r.Response = false, true
		return Datagram{Local: d.Remote, Remote: d.Local, Data: r.Encode()}
	}
	w.deliver(demand(d, 5)) // not offered
	if len(w.wire) != 0 {
		t.Error("a group that was not offered was taken")
	}
	w.deliver(demand(d, 19))
	if len(w.wire) != 1 {
		t.Fatal("no second attempt")
	}
	second := w.wire[0]
	w.wire = nil
	if ke, _ := message.Get[*message.KE](parse(t, second)); ke.Group != 19 {
		t.Errorf("group %d", ke.Group)
	}
	w.deliver(demand(second, 20))
	if len(w.wire) != 0 || len(a.ike()) != 0 {
		t.Error("went on after the second refusal")
	}
}

func TestInitRefusals(t *testing.T) {
	// No proposal.
	w, a, b, d := firstRequest(t, func(a, b *config.Config) { b.Phase1[0].Proposals = []ipsec.Suite{cbc128sha256} })
	w.deliver(d)
	if _, ok := parse(t, w.wire[0]).Notify(message.NoProposalChosen); !ok || len(b.ike()) != 0 {
		t.Error("no NO_PROPOSAL_CHOSEN")
	}
	w.settle()
	if len(a.ike()) != 1 || len(a.established()) != 0 {
		t.Error("an unauthenticated error ended the attempt")
	}
	if g := a.e.Status(w.now)[0]; g.Failure == "" {
		t.Error("the failure has no reason")
	}
	// Versions.
	w, _, b, d = firstRequest(t, nil)
	minor := bytes.Clone(d.Data)
	minor[17] = 0x25
	w.deliver(Datagram{Local: d.Local, Remote: d.Remote, Data: minor})
	if len(w.wire) != 1 || parse(t, w.wire[0]).MinorVersion != 0 || len(b.ike()) != 1 {
		t.Error("a higher minor version is not ignored")
	}
	w.wire = nil
	major := bytes.Clone(d.Data)
	major[17] = 0x30
	for range 200 {
		w.deliver(Datagram{Local: d.Local, Remote: d.Remote, Data: major})
	}
	if len(w.wire) == 0 || len(w.wire) > 50 {
		t.Errorf("%d replies to 200 messages of major version 3", len(w.wire))
	}
	h, err := message.ParseHeader(w.wire[0].Data)
	if err != nil || h.MajorVersion != 2 || !h.Response {
		t.Errorf("reply %+v", h)
	}
	if _, ok := parse(t, w.wire[0]).Notify(message.InvalidMajorVersion); !ok {
		t.Error("no INVALID_MAJOR_VERSION")
	}
}

func TestUnknownPayloads(t *testing.T) {
	add := func(d Datagram, critical bool) Datagram {
		m := parse(t, d)
		m.Payloads = append(m.Payloads, &message.Unknown{PayloadType: 200, Body: []byte("what")})
		b := m.Encode()
		if critical {
			b[len(b)-8+1] |= 0x80
		}
		return Datagram{Local: d.Local, Remote: d.Remote, Data: b}
	}
	w, _, b, d := firstRequest(t, nil)
	w.deliver(add(d, true))
	n, ok := parse(t, w.wire[0]).Notify(message.UnsupportedCriticalPayload)
	if !ok || !bytes.Equal(n.Data, []byte{200}) || len(b.ike()) != 0 {
		t.Fatal("no UNSUPPORTED_CRITICAL_PAYLOAD with the type")
	}
	w.wire = nil
	w.deliver(add(d, false))
	if len(b.ike()) != 1 {
		t.Error("an unknown payload is not ignored")
	}
	// Inside an established IKE SA.
	w, a, b := up(t, nil)
	sa := a.ike()[0]
	for _, critical := range []bool{false, true} {
		end := a.e.begin(w.now)
		ps := []message.Payload{&message.Unknown{PayloadType: 200, Body: []byte("what")}}
		raw := sealUnknown(t, a, sa, ps, critical)
		end()
		a.drain()
		w.wire = nil
		w.deliver(sa.datagram(raw))
		if len(w.wire) != 1 {
			t.Fatal("no answer")
		}
		m, ok, err := a.e.open(sa, flip(w.wire[0]))
		if !ok || err != nil {
			t.Fatal("answer does not open")
		}
		n, has := m.Notify(message.UnsupportedCriticalPayload)
		if has != critical || has && !bytes.Equal(n.Data, []byte{200}) {
			t.Errorf("critical=%v: %v", critical, m.Payloads)
		}
		sa.nextSend++
	}
	if len(b.ike()) != 1 {
		t.Error("a critical payload ended the IKE SA")
	}
}

// sealUnknown builds a protected request, with the critical bit set if wanted:
// encryption happens after the bit is set in the plaintext.
func sealUnknown(t *testing.T, s *side, sa *ikeSA, ps []message.Payload, critical bool) []byte {
	t.Helper()
	if err := s.e.ciphers(sa); err != nil {
		t.Fatal(err)
	}
	m := &message.Message{Header: sa.header(message.Informational, false, sa.nextSend), Payloads: ps}
	sealer := sa.sealer
	if critical {
		sealer = criticalSealer{sealer}
	}
	b, err := m.Seal(sealer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type criticalSealer struct{ message.Sealer }

func (c criticalSealer) Seal(aad, plain []byte) ([]byte, error) {
	plain[1] |= 0x80
	return c.Sealer.Seal(aad, plain)
}

func TestGarbageForAnEstablishedSA(t *testing.T) {
	w, a, b := up(t, nil)
	sa := a.ike()[0]
	before := len(w.seen)
	records := len(b.records)
	for _, m := range []*message.Message{
		{Header: sa.header(message.Informational, false, sa.nextSend)},
		{Header: sa.header(message.Informational, false, sa.nextSend), Payloads: []message.Payload{&message.Delete{Protocol: 1}}},
		{Header: sa.header(message.CreateChildSA, true, 0), Payloads: []message.Payload{&message.Notify{NotifyType: message.InvalidSyntax}}},
		{Header: sa.header(message.Informational, true, 0), Payloads: []message.Payload{&message.Notify{NotifyType: message.InvalidIKESPI}}},
	} {
		w.deliver(sa.datagram(m.Encode()))
	}
	w.deliver(sa.datagram(bytes.Repeat([]byte{7}, 100)))
	w.deliver(sa.datagram(nil))
	if len(w.seen) != before || len(b.records) != records || len(b.ike()) != 1 {
		t.Error("unprotected garbage had an effect")
	}
	if b.e.counters.Malformed == 0 {
		t.Error("it was not counted")
	}
	// A flipped bit.
	end := a.e.begin(w.now)
	raw, err := a.e.seal(sa, message.Informational, false, sa.nextSend, nil)
	end()
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	w.deliver(sa.datagram(raw))
	if b.e.counters.AuthFailed != 1 || len(w.seen) != before {
		t.Error("a forged message had an effect")
	}
	// An unknown IKE SA: told within a rate, never for a response.
	m := &message.Message{Header: sa.header(message.Informational, false, 9)}
	m.SPIs.R ^= 1
	for range 200 {
		w.deliver(sa.datagram(m.Encode()))
	}
	if n := len(w.seen) - before; n == 0 || n > 50 {
		t.Errorf("%d replies to 200 messages for an unknown SPI", n)
	}
	r := parse(t, w.seen[len(w.seen)-1])
	if _, ok := r.Notify(message.InvalidIKESPI); !ok || r.MessageID != 9 || r.SPIs != m.SPIs || !r.Response {
		t.Errorf("reply %+v", r)
	}
	n := len(w.seen)
	m.Response = true
	w.deliver(sa.datagram(m.Encode()))
	if len(w.seen) != n {
		t.Error("a response was answered")
	}
}
