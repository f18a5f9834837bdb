package integration

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// hostile is a wire with a gateway that takes two identities by dialup.
func hostile(t *testing.T) (*site, *gateway) {
	t.Helper()
	s := wire(t)
	g := s.gateway("gw", twoDialups())
	return s, g
}

func one(t *testing.T, s *site) *scripted {
	t.Helper()
	return s.dial("peer", peerWAN, "one.test", "secret of one")
}

// TestMinorVersionIgnored: a higher minor version changes nothing.
func TestMinorVersionIgnored(t *testing.T) {
	t.Parallel()
	s, g := hostile(t)
	p := one(t, s)
	p.initReq = p.initMessage(nil, nil).Encode()
	p.initReq[17] = 0x2f
	res := p.ask(p.initReq)
	if res[17] != 0x20 {
		t.Errorf("we answer as version %02x", res[17])
	}
	p.accept(res)
	p.auth("10.1.1.0/24", gwNet)
	g.wantUp("one_0", "responder")
	p.bye()
	g.wantNone("")
}

// TestMajorVersionRefused: version 3 gets INVALID_MAJOR_VERSION without
// protection, and not as often as it asks.
func TestMajorVersionRefused(t *testing.T) {
	t.Parallel()
	s, g := hostile(t)
	p := one(t, s)
	b := p.initMessage(nil, nil).Encode()
	b[17] = 0x30
	m := p.parse(p.ask(b))
	n, ok := m.Notify(message.InvalidMajorVersion)
	if !ok || len(m.Payloads) != 1 || !m.Response || m.MajorVersion != 2 || m.SPIs.I != p.spis.I || len(n.Data) != 0 && n.Data[0] != 2 {
		t.Fatalf("answer: %+v %v", m, notifyNames(m))
	}
	const burst = 300
	for range burst {
		p.send(b)
	}
	answers := 0
	for p.receive(500*time.Millisecond) != nil {
		answers++
	}
	// 20 a second and a burst of 40: what all unauthenticated replies share.
	if answers < 10 || answers > 90 {
		t.Errorf("%d of %d answered", answers, burst)
	}
	if n := g.stat("ike_errors_suppressed"); n < burst-100 {
		t.Errorf("%d replies counted as suppressed", n)
	}
	g.wantNone("")
}

// TestUnknownPayloads: of a type nobody knows. Not critical, it is ignored
// wherever it stands; critical, the exchange fails with UNSUPPORTED_CRITICAL_PAYLOAD
// and the type, and the IKE SA lives on.
func TestUnknownPayloads(t *testing.T) {
	t.Parallel()
	s, g := hostile(t)
	p := one(t, s)
	unknown := &message.Unknown{PayloadType: 200, Body: []byte("what is this?")}

	critical := p.initMessage(nil, []message.Payload{unknown}).Encode()
	critical[len(critical)-len(unknown.Body)-3] |= 0x80
	m := p.parse(p.ask(critical))
	if n, ok := m.Notify(message.UnsupportedCriticalPayload); !ok || !bytes.Equal(n.Data, []byte{200}) || len(m.Payloads) != 1 {
		t.Fatalf("critical payload in IKE_SA_INIT: %v", notifyNames(m))
	}

	p.init(unknown)
	e := p.auth("10.1.1.0/24", gwNet, unknown)
	g.wantUp("one_0", "responder")
	if m := p.request(message.Informational, unknown); len(m.Payloads) != 0 {
		t.Errorf("INFORMATIONAL with an unknown payload: %v", notifyNames(m))
	}

	// The same, critical, inside SK.
	first, inner := message.EncodePayloads([]message.Payload{unknown})
	inner[1] |= 0x80
	m = p.open(p.ask(p.sealInner(message.Informational, first, inner)))
	p.sendID++
	if n, ok := m.Notify(message.UnsupportedCriticalPayload); !ok || !bytes.Equal(n.Data, []byte{200}) || len(m.Payloads) != 1 {
		t.Fatalf("critical payload in INFORMATIONAL: %+v", m.Payloads)
	}
	if m := p.request(message.Informational); len(m.Payloads) != 0 {
		t.Errorf("INFORMATIONAL afterwards: %v", notifyNames(m))
	}
	e.sendPacket(udpPacket("10.1.1.5", gwIn, 1, 9, []byte("still there")))
	eventually(t, 5*time.Second, "the Child SA still delivers", func() bool {
		c := g.children("one_0")
		return len(c) == 1 && c[0].InPackets == 1
	})
	p.bye()
	g.wantNone("")
}

// sealInner protects inner payloads as they are given.
func (p *scripted) sealInner(exch message.ExchangeType, first message.PayloadType, inner []byte) []byte {
	p.t.Helper()
	// The only payload of a sealed message of the same length has its place taken.
	m := &message.Message{Header: message.Header{SPIs: p.spis, MajorVersion: 2, Exchange: exch, Initiator: true, MessageID: p.sendID}}
	b, err := m.Seal(fixedInner{p.sealer(), inner, first})
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// fixedInner seals its own inner payloads in place of the (empty) message's.
type fixedInner struct {
	message.Sealer
	inner []byte
	first message.PayloadType
}

// ICVLen makes the announced lengths right: an empty message has a pad length only.
func (f fixedInner) ICVLen() int { return f.Sealer.ICVLen() + len(f.inner) }

func (f fixedInner) Seal(aad, _ []byte) ([]byte, error) {
	aad[len(aad)-4] = byte(f.first)
	return f.Sealer.Seal(aad, append(append([]byte{}, f.inner...), 0))
}

// TestRepeatedInit: the same IKE_SA_INIT again gets the same bytes again and makes
// no second half-open IKE SA; nothing comes unasked.
func TestRepeatedInit(t *testing.T) {
	t.Parallel()
	s, g := hostile(t)
	p := one(t, s)
	p.init()
	first := p.initRes
	for i := range 5 {
		if again := p.ask(p.initReq); !bytes.Equal(again, first) {
			t.Fatalf("answer %d differs:\n%x\n%x", i+2, again, first)
		}
	}
	if n := g.stat("ike_duplicates"); n != 5 {
		t.Errorf("%d answers from the cache, 5 expected", n)
	}
	if n := strings.Count(g.log(), "responder preparing SA_INIT msg"); n != 1 {
		t.Errorf("%d half-open IKE SAs were made", n)
	}
	p.wantSilence("nobody asked")
	p.auth("10.1.1.0/24", gwNet)
	g.wantUp("one_0", "responder")
	// A repeated request within the IKE SA: the same bytes, too.
	b := p.seal(message.Informational)
	x, y := p.ask(b), p.ask(b)
	if !bytes.Equal(x, y) {
		t.Errorf("answers to a repeated request differ:\n%x\n%x", x, y)
	}
	p.sendID++
	p.bye()
	g.wantNone("")
}

// TestInitialContact: the older SAs of the identity go, those of another stay.
func TestInitialContact(t *testing.T) {
	t.Parallel()
	s, g := hostile(t)
	old := one(t, s)
	old.init()
	old.auth("10.1.1.0/24", gwNet)
	other := s.dial("peer", peerWAN, "two.test", "secret of two")
	other.init()
	otherChild := other.auth("10.1.2.0/24", gwNet)
	g.wantUp("one_0", "responder")
	g.wantUp("two_0", "responder")

	again := one(t, s)
	again.init()
	again.auth("10.1.1.0/24", gwNet, &message.Notify{NotifyType: message.InitialContact})
	var st gwStatus
	eventually(t, 5*time.Second, "only the new IKE SA of the identity is left", func() bool {
		var all []gwStatus
		for _, x := range g.gateways() {
			if x.Parent == "one" {
				all = append(all, x)
			}
		}
		if len(all) != 1 || len(all[0].SAs) != 1 {
			return false
		}
		st = all[0]
		return true
	})
	if st.SAs[0].SPIi != again.spis.I.String() || len(g.children(st.Name)) != 1 {
		t.Errorf("left: %+v", st)
	}
	// The old one is unknown now, and nothing in it was deleted with a message.
	old.send(old.seal(message.Informational))
	if b := old.receive(2 * time.Second); b != nil {
		m := old.parse(b)
		if _, ok := m.Notify(message.InvalidIKESPI); !ok {
			t.Errorf("answer in the old IKE SA: %+v", m.Payloads)
		}
	}
	if m := other.request(message.Informational); len(m.Payloads) != 0 {
		t.Errorf("the other identity: %v", notifyNames(m))
	}
	otherChild.sendPacket(udpPacket("10.1.2.5", gwIn, 1, 9, []byte("hello")))
	eventually(t, 5*time.Second, "the other identity's Child SA delivers", func() bool {
		c := g.children("two_0")
		return len(c) == 1 && c[0].InPackets == 1
	})
	again.bye()
	other.bye()
	g.wantNone("")
}

// TestSelectors: a wider offer is narrowed, a disjoint one refused with
// TS_UNACCEPTABLE while the IKE SA stands, and a packet outside of the selectors is
// dropped and counted, either way.
func TestSelectors(t *testing.T) {
	t.Parallel()
	s := wire(t)
	conf := twoDialups()
	conf.phase2 = []entry{dialupPhase2("one-net", "one", "dst-subnet 10.1.0.0/25")}
	conf.routes = []entry{routeTo(peerNet, "one")}
	g := s.gateway("gw", conf)
	p := one(t, s)
	p.init()
	m := p.request(message.IKEAuth, append(p.authPayloads(), childPayloads(childSuite, 0x1111,
		[]ipsec.TrafficSelector{selector("10.77.0.0/24")}, []ipsec.TrafficSelector{selector(gwNet)})...)...)
	if _, ok := m.Notify(message.TSUnacceptable); !ok {
		t.Fatalf("disjoint selectors in IKE_AUTH: %v", notifyNames(m))
	}
	if _, ok := message.Get[*message.Auth](m); !ok {
		t.Fatal("the IKE SA must stand all the same")
	}
	eventually(t, 5*time.Second, "diagnose names the reason", func() bool {
		st := g.status("one_0")
		return strings.Contains(st.Failure, "TS_UNACCEPTABLE") && len(st.SAs) == 1 && len(g.children("one_0")) == 0
	})

	// A wider offer in CREATE_CHILD_SA, with a key exchange as PFS wants it.
	e := p.createChild("10.0.0.0/8", "10.0.0.0/8")
	wantTS := func(what string, got []ipsec.TrafficSelector, cidr string) {
		if len(got) != 1 || got[0] != selector(cidr) {
			t.Errorf("%s narrowed to %v, %s expected", what, got, cidr)
		}
	}
	wantTS("TSi", e.local, "10.1.0.0/25")
	wantTS("TSr", e.remote, gwNet)
	if c := g.children("one_0"); len(c) != 1 || len(c[0].Src) != 1 || len(c[0].Dst) != 1 || !strings.Contains(c[0].Dst[0], "10.1.0.0-10.1.0.127") {
		t.Errorf("diagnose: %+v", c)
	}
	disjoint := p.request(message.CreateChildSA, append([]message.Payload{&message.Nonce{Data: random(32)}}, childPayloads(childSuite, 0x2222,
		[]ipsec.TrafficSelector{selector("10.1.0.128/25")}, []ipsec.TrafficSelector{selector(gwNet)})...)...)
	if len(disjoint.Payloads) != 1 || !(notifyNames(disjoint)[0] == "TS_UNACCEPTABLE" || notifyNames(disjoint)[0] == "NO_PROPOSAL_CHOSEN") {
		t.Errorf("disjoint selectors in CREATE_CHILD_SA: %v", notifyNames(disjoint))
	}

	inside := s.socket("gw", gwIn, 7777)
	e.sendPacket(udpPacket("10.9.9.9", gwIn, 5, 7777, []byte("from outside")))
	e.sendPacket(udpPacket("10.1.0.200", gwIn, 5, 7777, []byte("from outside")))
	e.sendPacket(udpPacket("10.1.0.5", "10.3.0.1", 5, 7777, []byte("to outside")))
	e.sendPacket(udpPacket("10.1.0.5", gwIn, 5, 7777, []byte("inside")))
	_ = inside.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 100)
	n, err := inside.Read(buf)
	if err != nil || string(buf[:n]) != "inside" {
		t.Errorf("delivered first: %q, %v", buf[:n], err)
	}
	if c := g.children("one_0")[0]; c.InSelector != 3 {
		t.Errorf("%d packets counted as outside of the selectors, 3 expected: %+v", c.InSelector, c)
	}
	// Outbound: the route leads into the tunnel, the selectors do not.
	before := g.unsent("one")
	s.pings("gw", gwIn, "10.1.0.200", 1)
	if b := p.receiveESP(700 * time.Millisecond); b != nil {
		t.Errorf("a packet outside of the selectors was sent: %x", b)
	}
	eventually(t, 5*time.Second, "the unsendable packet is counted", func() bool { return g.unsent("one") > before })
	s.pings("gw", gwIn, "10.1.0.5", 1)
	if b := p.receiveESP(5 * time.Second); b == nil || be32(b) != uint32(e.in) {
		t.Errorf("a packet inside of the selectors: %x", b)
	}
	p.bye()
	g.wantNone("")
}
