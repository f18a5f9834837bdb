package ike

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func TestOddityTranscripts(t *testing.T) { transcribe(t, oddities()) }

// request has A say what the script wants, as its next request.
func (c *conversation) request(exch message.ExchangeType, ps ...message.Payload) {
	c.t.Helper()
	sa := c.a.established()[0]
	var b []byte
	var err error
	c.a.event(func(e *Engine) {
		b, err = e.seal(sa, exch, false, sa.nextSend, ps)
		sa.nextSend++
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.inject(c.a, sa.datagram(b))
}

// inject sends bytes that no engine made.
func (c *conversation) inject(s *side, d Datagram) {
	c.send(s, d)
	c.w.seen = append(c.w.seen, d)
	c.all()
}

// raw is request for inner bytes and a header that no encoder of ours makes.
func (c *conversation) raw(exch message.ExchangeType, first byte, inner []byte, patch func(header []byte)) {
	c.t.Helper()
	sa := c.a.established()[0]
	b := sealPatched(c.t, c.a, sa, exch, false, sa.nextSend, first, inner, patch)
	sa.nextSend++
	c.inject(c.a, sa.datagram(b))
}

// bare sends a message without protection.
func (c *conversation) bare(h message.Header, ps ...message.Payload) {
	m := &message.Message{Header: h, Payloads: ps}
	sa := c.a.ike()[0]
	d := sa.datagram(m.Encode())
	c.send(c.a, d)
	c.all()
}

func (c *conversation) ts(local, remote []ipsec.TrafficSelector) []message.Payload {
	return []message.Payload{&message.TS{Selectors: local}, &message.TS{Responder: true, Selectors: remote}}
}

// creates are the payloads of a request of A for a Child SA at an SPI, without key exchange.
func creates(spi ipsec.ESPSPI, local, remote []ipsec.TrafficSelector) []message.Payload {
	return []message.Payload{
		&message.SA{Proposals: espProposals([]ipsec.Suite{esp(gcm128)}, nil, spiBytes(spi))},
		&message.Nonce{Data: make([]byte, 32)},
		&message.TS{Selectors: local},
		&message.TS{Responder: true, Selectors: remote},
	}
}

func withoutPFS(a, b *config.Config) { a.Phase2[0].PFS, b.Phase2[0].PFS = false, false }

func ports(s string, proto uint8, from, to uint16) ipsec.TrafficSelector {
	ts := subnet(s)
	ts.Protocol, ts.StartPort, ts.EndPort = proto, from, to
	return ts
}

func list(s ...string) (out []ipsec.TrafficSelector) {
	for _, x := range s {
		out = append(out, subnet(x))
	}
	return out
}

const peerSPI = ipsec.ESPSPI(0x11223344)

func oddities() []golden {
	net := func(c *conversation) (local, remote []ipsec.TrafficSelector) { return list(netA), list(netB) }
	return []golden{
		{name: "odd-unknown-payload", why: "Payloads of an unknown type are ignored; a critical one is refused by its type, and the request changes nothing (RFC 7296 §2.5).",
			change: withoutPFS,
			talk: func(c *conversation) {
				c.up()
				c.ending = true // the script has no data plane
				c.say("not critical")
				c.request(message.Informational, &message.Unknown{PayloadType: 200, Body: []byte("what is this")})
				local, remote := net(c)
				c.request(message.CreateChildSA, append([]message.Payload{&message.Unknown{PayloadType: 201}}, creates(peerSPI, local, remote)...)...)
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{peerSPI}})
				c.say("critical")
				c.raw(message.Informational, 200, []byte{0, 0x80, 0, 8, 1, 2, 3, 4}, nil)
				c.raw(message.CreateChildSA, 201, []byte{0, 0x80, 0, 4}, nil)
				c.end(1, 1)
			}},
		{name: "odd-known-critical-payload", why: "The critical bit of a payload that we know says nothing.",
			talk: func(c *conversation) {
				c.up()
				c.raw(message.Informational, byte(message.TypeVendorID), []byte{0, 0x80, 0, 8, 1, 2, 3, 4}, nil)
				c.end(1, 1)
			}},
		{name: "odd-critical-payload-in-a-response", why: "A response with a critical payload of unknown type: the exchange has failed, and nobody is answered; the IKE SA is closed in good order.",
			talk: func(c *conversation) {
				c.up()
				c.ending = true
				c.b.rekeyChild()
				delete(c.flights, 1)
				c.say("the script answers in A's place")
				sa := c.a.established()[0]
				raw := sealPatched(c.t, c.a, sa, message.CreateChildSA, true, sa.nextRecv, 200, []byte{0, 0x80, 0, 4}, nil)
				sa.nextRecv++
				c.inject(c.a, sa.datagram(raw))
				c.wait(time.Second)
				c.end(0, 0)
			}},
		{name: "odd-reserved-bits", why: "Reserved flags, the flag of a higher version, a higher minor version and reserved bits of payload headers are ignored (RFC 7296 §2.5, §3.1, §3.2).",
			talk: func(c *conversation) {
				c.up()
				c.say("minor version 15")
				c.raw(message.Informational, 0, nil, func(h []byte) { h[17] |= 0x0f })
				c.say("flags 0xc7 and the version flag")
				c.raw(message.Informational, 0, nil, func(h []byte) { h[19] |= 0xd7 })
				c.say("reserved bits of the SK payload and of one inside")
				c.raw(message.Informational, byte(message.TypeVendorID), []byte{0, 0x7f, 0, 4}, func(h []byte) { h[29] |= 0x7f })
				c.end(1, 1)
			}},
		{name: "odd-major-version", why: "A higher major version is refused without protection; the IKE SA of that name does not notice.",
			talk: func(c *conversation) {
				c.up()
				sa := c.a.established()[0]
				m := &message.Message{Header: sa.header(message.Informational, false, sa.nextSend)}
				b := m.Encode()
				b[17] = 0x30
				c.inject(c.a, sa.datagram(b))
				c.end(1, 1)
			}},
		{name: "odd-unknown-ike-spi", why: "Messages for an IKE SA that does not exist: a request is told INVALID_IKE_SPI without protection, a response nothing (RFC 7296 §2.21.4).",
			talk: func(c *conversation) {
				c.up()
				h := c.a.established()[0].header(message.Informational, false, 7)
				h.SPIs.R++
				c.bare(h)
				h.SPIs.I++
				h.Response = true
				c.bare(h, notify(message.InvalidIKESPI, nil))
				c.end(1, 1)
			}},
		{name: "odd-forged-errors", why: "Unprotected errors for an IKE SA that stands, in answers to its request and as requests: nothing changes (RFC 7296 §2.21.4).",
			talk: func(c *conversation) {
				c.up()
				c.b.rekeyChild()
				delete(c.flights, 1)
				c.say("B's request is lost, a stranger answers")
				sa := c.a.established()[0]
				for _, n := range []message.NotifyType{message.InvalidIKESPI, message.InvalidMajorVersion, message.InvalidSyntax, message.AuthenticationFailed} {
					c.bare(sa.header(message.CreateChildSA, true, sa.nextRecv), notify(n, nil))
				}
				c.bare(sa.header(message.Informational, false, sa.nextSend), notify(message.AuthenticationFailed, nil))
				c.bare(sa.header(message.Informational, false, sa.nextSend), &message.Delete{Protocol: ipsec.ProtocolIKE})
				c.end(1, 1)
			}},
		{name: "odd-message-ids", why: "Request IDs outside the window are not answered; INVALID_MESSAGE_ID from the peer changes nothing (RFC 7296 §2.3).",
			talk: func(c *conversation) {
				c.up()
				c.loose = true
				sa := c.a.established()[0]
				id := sa.nextSend
				for _, skew := range []uint32{1, 2, 1 << 31} {
					sa.nextSend = id + skew
					c.request(message.Informational)
				}
				sa.nextSend = id
				c.request(message.Informational, notify(message.InvalidMessageID, []byte{0, 0, 0, 99}))
				c.end(1, 1)
			}},
		{name: "odd-notifies", why: "Notifications that ask for nothing: INVALID_SPI, SET_WINDOW_SIZE, status and error types of the registry's far end. Each is answered, none changes anything.",
			talk: func(c *conversation) {
				c.up()
				c.request(message.Informational, &message.Notify{NotifyType: message.InvalidSPI, Data: []byte{1, 2, 3, 4}})
				c.request(message.Informational, notify(message.SetWindowSize, []byte{0, 0, 0, 8}))
				c.request(message.Informational, notify(8191, nil), notify(16383, nil), notify(40959, []byte("x")), notify(65535, nil))
				c.end(1, 1)
			}},
		{name: "odd-deletes", why: "DELETE of SPIs that do not exist, of AH, of the same SPI twice, in two payloads: the answer names what was there.",
			talk: func(c *conversation) {
				c.up()
				c.ending = true
				mine := c.a.order[0]
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{peerSPI, peerSPI + 1}})
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolAH, SPIs: []ipsec.ESPSPI{mine}})
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{mine, peerSPI, mine}}, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{mine}})
				c.a.event(func(e *Engine) { e.removeChild(c.a.child(0)) })
				c.end(1, 0)
			}},
		{name: "odd-rekeys", why: "REKEY_SA for AH, for an SPI that is unknown, and for one of ours: CHILD_SA_NOT_FOUND, and nothing is made.",
			talk: func(c *conversation) {
				c.up()
				local, remote := net(c)
				for _, n := range []*message.Notify{
					{Protocol: ipsec.ProtocolAH, SPI: spiBytes(c.a.order[0]), NotifyType: message.RekeySA},
					{Protocol: ipsec.ProtocolESP, SPI: spiBytes(peerSPI), NotifyType: message.RekeySA},
					{Protocol: ipsec.ProtocolESP, SPI: spiBytes(c.b.order[0]), NotifyType: message.RekeySA},
				} {
					c.request(message.CreateChildSA, append([]message.Payload{n}, creates(peerSPI+1, local, remote)...)...)
				}
				c.end(1, 1)
			}},
		{name: "odd-esp-spis", why: "An offer with ESP SPI 0, or one of the reserved ones up to 255, is no offer (RFC 4303 §2.1).", change: withoutPFS,
			talk: func(c *conversation) {
				c.up()
				local, remote := net(c)
				c.request(message.CreateChildSA, creates(0, local, remote)...)
				c.request(message.CreateChildSA, creates(255, local, remote)...)
				c.end(1, 1)
			}},
		{name: "odd-tfc-padding", why: "A peer that takes no TFC padding: we never send any, so it gets its Child SA.", change: withoutPFS,
			talk: func(c *conversation) {
				c.up()
				c.ending = true // the script has no data plane
				local, remote := net(c)
				c.request(message.CreateChildSA, append(creates(peerSPI, local, remote), notify(message.ESPTFCPaddingNotSupported, nil), notify(message.NonFirstFragmentsAlso, nil))...)
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{peerSPI}})
				c.end(1, 1)
			}},
		{name: "odd-transport-mode-asked-for", why: "USE_TRANSPORT_MODE in a request is declined by not repeating it: the Child SA is in tunnel mode, and a peer that cannot live with that deletes it (RFC 7296 §1.3.1).", change: withoutPFS,
			talk: func(c *conversation) {
				c.up()
				c.ending = true // the script has no data plane
				local, remote := net(c)
				c.request(message.CreateChildSA, append([]message.Payload{notify(message.UseTransportMode, nil)}, creates(peerSPI, local, remote)...)...)
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{peerSPI}})
				c.end(1, 1)
			}},
		{name: "odd-transport-mode-unasked", why: "A response with USE_TRANSPORT_MODE that nobody asked for: the ends would speak of different packets, so it is not taken, and the peer is told.", change: withoutPFS,
			talk: func(c *conversation) {
				c.up()
				c.a.rekeyChild()
				c.answer(1, append([]message.Payload{notify(message.UseTransportMode, nil),
					&message.SA{Proposals: espProposals([]ipsec.Suite{esp(gcm128)}, nil, spiBytes(peerSPI))}, &message.Nonce{Data: make([]byte, 32)}},
					c.ts(list(netA), list(netB))...)...)
				c.end(1, 1)
			}},
		{name: "odd-selector-lists", why: "Lists of selectors, IPv6 among them, protocols and ports: narrowed to what both allow, in the order offered (RFC 7296 §2.9).",
			change: func(a, b *config.Config) {
				withoutPFS(a, b)
				b.Phase2 = append(b.Phase2, phase2For("toA", "mixed", "10.9.0.0/16", "10.8.0.0/16", func(p *config.Phase2) {
					p.PFS = false
					p.Src = []ipsec.TrafficSelector{ports("10.9.0.0/16", 6, 443, 443), subnet("fd00:9::/64")}
					p.Dst = list("10.8.0.0/16", "fd00:8::/64")
				}))
			},
			talk: func(c *conversation) {
				c.showTS = true
				c.up2()
				c.ending = true // the script has no data plane
				c.say("any port of two networks, and IPv6")
				c.request(message.CreateChildSA, creates(peerSPI, list("10.8.1.0/24", "192.168.0.0/16", "fd00:8::/48"), list("fd00:9::/64", "10.9.0.0/24"))...)
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{peerSPI}})
				c.say("UDP, where only TCP is allowed")
				c.request(message.CreateChildSA, creates(peerSPI, list("10.8.1.0/24"), []ipsec.TrafficSelector{ports("10.9.0.0/24", 17, 0, 65535)})...)
				c.say("a range of ports around the one that is allowed")
				c.request(message.CreateChildSA, creates(peerSPI, []ipsec.TrafficSelector{ports("10.8.1.0/24", 6, 1024, 65535)}, []ipsec.TrafficSelector{ports("10.9.0.0/24", 6, 400, 500)})...)
				c.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: []ipsec.ESPSPI{peerSPI}})
				c.end(1, 1)
			}},
		{name: "odd-selectors-of-a-response", why: "A response whose selectors go beyond the request is not taken: what the peer has installed is deleted.", change: withoutPFS,
			talk: func(c *conversation) {
				c.showTS = true
				c.up()
				c.a.rekeyChild()
				c.answer(1, append([]message.Payload{
					&message.SA{Proposals: espProposals([]ipsec.Suite{esp(gcm128)}, nil, spiBytes(peerSPI))}, &message.Nonce{Data: make([]byte, 32)}},
					c.ts(list("10.0.0.0/8"), list(netB))...)...)
				c.end(1, 1)
			}},
		{name: "odd-single-pair-required", why: "SINGLE_PAIR_REQUIRED: the pair of the packet that asked is requested once (RFC 7296 §2.9).", change: twoPhase2,
			talk: func(c *conversation) {
				c.showTS = true
				c.up2()
				c.ending = true // a responder that has replaced nothing sends at once
				c.a.e.HandleAcquire(c.w.now, "toB", Acquire{Protocol: 17, Src: netip.MustParseAddrPort("10.3.0.7:5000"), Dst: netip.MustParseAddrPort("10.4.0.9:53")})
				c.a.drain()
				c.answer(1, notify(message.SinglePairRequired, nil))
				c.end(1, 2)
			}},
		{name: "odd-single-pair-required-again", why: "SINGLE_PAIR_REQUIRED without a packet, and after the pair was requested: not repeated.", change: twoPhase2,
			talk: func(c *conversation) {
				c.up2()
				c.a.up("net2")
				c.answer(1, notify(message.SinglePairRequired, nil))
				c.wait(20 * time.Second)
				c.a.e.HandleAcquire(c.w.now, "toB", Acquire{Protocol: 17, Src: netip.MustParseAddrPort("10.3.0.7:5000"), Dst: netip.MustParseAddrPort("10.4.0.9:53")})
				c.a.drain()
				c.answer(3, notify(message.SinglePairRequired, nil))
				c.answer(5, notify(message.SinglePairRequired, nil))
				c.wait(20 * time.Second)
				c.end(1, 1)
			}},
		{name: "odd-lifetime-in-bytes", why: "The soft limit in bytes rekeys; the hard one ends the Child SA, and since it was in use another one is made.",
			change: func(a, b *config.Config) { a.Phase2[0].KeyLifeType, a.Phase2[0].KeyLifeKB = "kbs", 5120 },
			talk: func(c *conversation) {
				c.up()
				c.say("the soft limit")
				c.a.e.HandleExpiring(c.w.now, c.a.order[0], false)
				c.a.drain()
				c.all()
				c.ending = true // no SA until the next one is made
				c.say("the hard limit, before a rekey")
				c.a.e.HandleExpiring(c.w.now, c.a.order[0], true)
				c.a.drain()
				c.end(1, 1)
			}},
		{name: "odd-lifetime-in-packets", why: "Sequence numbers that run out at either side rekey the Child SA, as any limit does.",
			talk: func(c *conversation) {
				c.up()
				c.b.e.HandleExpiring(c.w.now, c.b.order[0], false)
				c.b.drain()
				c.a.e.HandleExpiring(c.w.now, c.a.order[0], false)
				c.a.drain()
				c.end(1, 1)
			}},
		{name: "odd-unexpected-exchanges", why: "IKE_AUTH on an IKE SA that stands is INVALID_SYNTAX, which ends it on both sides without a DELETE (RFC 7296 §2.21.3).",
			talk: func(c *conversation) {
				c.up()
				c.ending = true
				c.request(message.IKEAuth, notify(message.InitialContact, nil))
				c.a.event(func(e *Engine) { e.remove(e.sorted()[0], false, "told so by the peer") })
				c.end(0, 0)
			}},
		{name: "odd-fatal-error-from-the-peer", why: "AUTHENTICATION_FAILED in INFORMATIONAL: the peer has no IKE SA any more (RFC 7296 §2.21.2).",
			talk: func(c *conversation) {
				c.up()
				c.ending = true
				c.request(message.Informational, notify(message.AuthenticationFailed, nil))
				c.a.event(func(e *Engine) { e.remove(e.sorted()[0], false, "as it said") })
				c.end(0, 0)
			}},
	}
}

// sealPatched is sealRaw with a header that is changed before it is authenticated.
func sealPatched(t *testing.T, s *side, sa *ikeSA, exch message.ExchangeType, response bool, id uint32, first byte, inner []byte, patch func(aad []byte)) []byte {
	t.Helper()
	if err := s.e.ciphers(sa); err != nil {
		t.Fatal(err)
	}
	plain := append(slices.Clone(inner), 0)
	for len(plain)%sa.sealer.BlockLen() != 0 {
		plain = append(plain[:len(plain)-1], 0, byte(len(plain)-len(inner)))
	}
	m := &message.Message{Header: sa.header(exch, response, id)}
	aad := append(m.Encode(), first, 0, 0, 0)
	sk := 4 + sa.sealer.IVLen() + len(plain) + sa.sealer.ICVLen()
	binary.BigEndian.PutUint16(aad[30:], uint16(sk))
	aad[16] = byte(message.TypeSK)
	binary.BigEndian.PutUint32(aad[24:], uint32(message.HeaderLen+sk))
	if patch != nil {
		patch(aad)
	}
	b, err := sa.sealer.Seal(aad, plain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mangle changes the payloads of a message that is under way, as another implementation
// might have sent it.
func (c *conversation) mangle(n int, f func([]message.Payload) []message.Payload) {
	c.t.Helper()
	d := c.flights[n]
	from := c.b
	if d.Local.Addr() == c.a.addr {
		from = c.a
	}
	m, err := message.Parse(d.Data)
	if err != nil {
		c.t.Fatal(err)
	}
	sa := from.e.sas[ownOf(m.SPIs, m.Initiator)]
	if sa == nil {
		return // the last words of an IKE SA
	}
	if _, sk := m.Payloads[len(m.Payloads)-1].(*message.Encrypted); !sk {
		m.Payloads = f(m.Payloads)
		d.Data = m.Encode()
		if m.Response { // AUTH covers it
			sa.initResponse = d.Data
		} else {
			sa.initRequest = d.Data
		}
	} else {
		ps, err := from.e.ownPayloads(sa, d.Data)
		if err != nil {
			c.t.Fatal(err)
		}
		from.event(func(e *Engine) { d.Data, err = e.seal(sa, m.Exchange, m.Response, m.MessageID, f(ps)) })
		if err != nil {
			c.t.Fatal(err)
		}
	}
	c.flights[n] = d
}

// TestPayloadsInAnyOrder brings up a tunnel and rekeys all of it with messages as others may
// send them: payloads in any order (RFC 7296 §2.5), with vendor IDs, notifications and
// payloads that nobody knows.
func TestPayloadsInAnyOrder(t *testing.T) {
	rotate := func(k int) func([]message.Payload) []message.Payload {
		return func(ps []message.Payload) []message.Payload {
			if len(ps) == 0 {
				return ps
			}
			k := k % len(ps)
			return slices.Concat(ps[k:], ps[:k])
		}
	}
	cases := map[string]func([]message.Payload) []message.Payload{
		"as we send them": func(ps []message.Payload) []message.Payload { return ps },
		"reversed": func(ps []message.Payload) []message.Payload {
			ps = slices.Clone(ps)
			slices.Reverse(ps)
			return ps
		},
		"with vendor IDs": func(ps []message.Payload) []message.Payload {
			for i := range 30 {
				ps = slices.Insert(slices.Clone(ps), i%(len(ps)+1), message.Payload(&message.VendorID{Data: make([]byte, 7*i)}))
			}
			return ps
		},
		"with unknown notifications": func(ps []message.Payload) []message.Payload {
			for i := range 20 {
				ps = slices.Insert(slices.Clone(ps), i%(len(ps)+1), message.Payload(notify(message.NotifyType(40000+i), make([]byte, i))))
			}
			return ps
		},
		"with unknown payloads": func(ps []message.Payload) []message.Payload {
			for i := range 20 {
				ps = slices.Insert(slices.Clone(ps), i%(len(ps)+1), message.Payload(&message.Unknown{PayloadType: message.PayloadType(100 + i), Body: make([]byte, i)}))
			}
			return ps
		},
	}
	for k := 1; k < 10; k++ {
		cases["rotated by "+itoa(k)] = rotate(k)
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			c := converse(t, nil, false)
			all := func() {
				for n := 1; n <= c.sent; n++ {
					if _, ok := c.flights[n]; ok {
						c.mangle(n, f)
						c.pass(n)
					}
				}
			}
			c.b.resume()
			c.a.resume()
			c.a.up("")
			all()
			agree(t, c.a, c.b, 1, 1)
			for _, s := range []*side{c.a, c.b} {
				s.rekeyChild()
				all()
				agree(t, c.a, c.b, 1, 1)
				s.rekeyIKE()
				all()
				agree(t, c.a, c.b, 1, 1)
			}
			for _, s := range []*side{c.a, c.b} {
				if s.logged("refus") || s.logged("fail") {
					t.Errorf("%s: %q", s.name, s.logs)
				}
			}
		})
	}
}

// TestPeerCannotGrow: what an authenticated peer may have at once is bounded.
func TestPeerCannotGrow(t *testing.T) {
	w, a, b := up(t, withoutPFS)
	sa := a.ike()[0]
	for n := 1; n < maxChildren; n++ {
		if m := ask(t, w, a, sa, message.CreateChildSA, creates(ipsec.ESPSPI(1000+n), list(netA), list(netB))...); len(m.Notifies()) != 0 {
			t.Fatalf("Child SA %d is refused", n)
		}
	}
	wantNotify(t, ask(t, w, a, sa, message.CreateChildSA, creates(999, list(netA), list(netB))...), message.NoAdditionalSAs)
	if n := len(b.installed); n != maxChildren {
		t.Errorf("%d Child SAs", n)
	}
	// IKE SAs that are rekeyed again and again, and never deleted.
	w, a, b = up(t, nil)
	for n := 0; ; n++ {
		if n > maxHeirs {
			t.Fatalf("%d IKE SAs wait for their DELETE", n)
		}
		if len(b.ike()) > maxHeirs {
			break
		}
		a.rekeyIKE()
		w.deliver(w.wire[0])
		w.deliver(w.wire[1])
		w.wire = nil // with the DELETE
	}
	a.rekeyIKE()
	w.settle()
	if !b.logged("refusing CREATE_CHILD_SA request") || len(b.ike()) > maxHeirs+1 {
		t.Errorf("it goes on: %v", describe(b.ike()))
	}
	w.run(2 * time.Minute)
	if len(b.ike()) != len(a.established()) {
		t.Errorf("left: %v", describe(b.ike()))
	}
}
