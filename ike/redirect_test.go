package ike

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

// redirecting are a peer and two gateways, B and C, each of which names both.
func redirecting(t *testing.T, follow bool) (w *world, a, b, c *side) {
	gateways := []netip.Addr{netip.MustParseAddr(addrB), netip.MustParseAddr(addrC)}
	id := func(p *config.Phase1) { p.LocalID, p.LocalIDType = "gw.test", "fqdn" }
	w, a, b = pair(t, func(ca, cb *config.Config) {
		dpd("disable")(ca, cb)
		ca.Phase1[0].Redirect, ca.Phase1[0].AutoNegotiate = follow, false
		cb.Phase1[0].RedirectGateways = gateways
		id(&cb.Phase1[0])
	})
	c = w.side("C", addrC, 3, b.e.cfg, nil)
	a.resume()
	b.resume()
	c.resume()
	return w, a, b, c
}

func (s *side) away(on bool) int { n := s.e.Redirect(s.w.now, on); s.drain(); return n }

// A peer with an IKE SA is told, makes what it has with the other gateway, and ends the old
// one then.
func TestRedirectOfAStandingTunnel(t *testing.T) {
	w, a, b, c := redirecting(t, true)
	a.up("net")
	w.run(time.Second)
	agree(t, a, b, 1, 1)
	if n := b.away(true); n != 1 {
		t.Fatalf("%d peers told", n)
	}
	w.run(time.Second)
	agree(t, a, c, 1, 1)
	if len(b.ike()) != 0 || !a.esp(c) || !c.esp(a) {
		t.Errorf("left behind: %v", describe(b.ike()))
	}
	if n := b.e.Redirectable(); n != 0 {
		t.Errorf("%d peers to be told", n)
	}
}

// Who begins while the gateway is drained is sent away before it costs state; who has begun
// already in IKE_AUTH, after both have proved who they are.
func TestRedirectOfWhoBegins(t *testing.T) {
	for _, within := range []string{"IKE_SA_INIT", "IKE_AUTH"} {
		w, a, b, c := redirecting(t, true)
		if within == "IKE_SA_INIT" {
			b.away(true)
		}
		w.drop = func(d Datagram) bool {
			h, err := message.ParseHeader(d.Data)
			if err == nil && h.Exchange == message.IKEAuth && d.Remote.Addr() == b.addr && !h.Response {
				b.away(true)
			}
			return false
		}
		a.up("net")
		w.run(time.Second)
		agree(t, a, c, 1, 1)
		if len(b.ike()) != 0 || within == "IKE_SA_INIT" && len(b.records) != 0 {
			t.Errorf("%s: the drained gateway has %v, %d records", within, describe(b.ike()), len(b.records))
		}
		said := false
		for _, d := range w.seen {
			if m, err := message.Parse(d.Data); err == nil && d.Remote.Addr() == c.addr {
				if n, ok := m.Notify(message.RedirectedFrom); ok {
					said = bytes.Equal(n.Data, gatewayIdentity(b.addr))
				}
			}
		}
		if !said {
			t.Errorf("%s: the new gateway does not learn who sent the peer", within)
		}
	}
}

// Two gateways that send a peer to and fro are followed five times in 300 s.
func TestRedirectsInACircle(t *testing.T) {
	w, a, b, c := redirecting(t, true)
	b.away(true)
	c.away(true)
	a.up("net")
	w.run(20 * time.Second)
	inits := map[string]bool{}
	for _, d := range w.seen {
		if h, err := message.ParseHeader(d.Data); err == nil && h.Exchange == message.IKESAInit && !h.Response {
			inits[string(d.Data)] = true
		}
	}
	if len(inits) != maxRedirects+1 {
		t.Errorf("%d IKE_SA_INIT, want %d", len(inits), maxRedirects+1)
	}
	a.wantLog("redirected too often")
	b.away(false)
	w.run(redirectWindow)
	a.up("net")
	w.run(time.Second)
	agree(t, a, b, 1, 1)
}

// Nothing is followed that was not asked for, nothing with another nonce than ours, and
// nobody is told who cannot follow.
func TestRedirectIsNotFollowed(t *testing.T) {
	w, a, b, c := redirecting(t, false)
	b.away(true)
	a.up("net")
	w.run(time.Second)
	agree(t, a, b, 1, 1)
	if n := b.away(true); n != 0 {
		t.Errorf("%d peers told", n)
	}
	b.event(func(e *Engine) {
		sa := b.established()[0]
		sa.redirectTo(c.addr)
		e.proceed(sa)
	})
	w.run(time.Second)
	agree(t, a, b, 1, 1)

	w, a, b, c = redirecting(t, true)
	w.drop = func(d Datagram) bool { return d.Local.Addr() == b.addr } // its answers
	a.up("net")
	w.settle()
	sa := a.ike()[0]
	for _, data := range [][]byte{nil, {1}, {1, 4}, {1, 200, 1}, gatewayIdentity(c.addr), append(gatewayIdentity(c.addr), make([]byte, 32)...),
		append([]byte{3, 4, 'h', 'o', 's', 't'}, sa.nonceI...), append(gatewayIdentity(netip.MustParseAddr("0.0.0.0")), sa.nonceI...),
		append(gatewayIdentity(netip.MustParseAddr("fd00::1")), sa.nonceI...), append(gatewayIdentity(a.addr), sa.nonceI...), append(gatewayIdentity(b.addr), sa.nonceI...)} {
		m := &message.Message{Header: message.Header{SPIs: sa.spis, MajorVersion: 2, Exchange: message.IKESAInit, Response: true}, Payloads: []message.Payload{notify(message.Redirect, data)}}
		a.receive(Datagram{Local: sa.local, Remote: sa.remote, Data: m.Encode()})
		if len(a.ike()) != 1 || a.ike()[0] != sa || sa.state != stateInitSent {
			t.Fatalf("followed %x", data)
		}
	}
}

// The owner dies at every effect of a redirect, at the side that follows and at the one that
// sends away: the tunnel stands with the new gateway.
func TestCrashAtEveryEffectOfARedirect(t *testing.T) {
	for _, follower := range []bool{true, false} {
		for k := 1; ; k++ {
			w, a, b, c := redirecting(t, true)
			of := b
			if follower {
				of = a
			}
			spare := w.standby(of, 77)
			a.up("net")
			w.run(time.Second)
			of.cutAt = of.effects + k
			records := len(of.records)
			b.away(true)
			w.run(time.Second)
			if !of.dead {
				agree(t, a, c, 1, 1)
				if k < 4 {
					t.Errorf("only %d effects", k)
				}
				break
			}
			spare.resume()
			w.run(3 * time.Minute)
			x := a
			if follower {
				x = spare
			}
			if !follower && len(of.records) == records {
				agree(t, x, spare, 1, 1) // nobody but the dead knew of it
			} else {
				agree(t, x, c, 1, 1)
				if other := map[bool]*side{true: b, false: spare}[follower]; len(other.ike()) != 0 {
					t.Errorf("left behind: %v", describe(other.ike()))
				}
			}
			sameBits(t, w)
			if t.Failed() {
				t.Fatalf("follower %v, after effect %d", follower, k)
			}
		}
	}
}

func FuzzReadGateway(f *testing.F) {
	f.Add(gatewayIdentity(netip.MustParseAddr(addrC)))
	f.Add(append(gatewayIdentity(netip.MustParseAddr("2001:db8::1")), 1, 2, 3))
	f.Add([]byte{3, 4, 'h', 'o', 's', 't'})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, rest, ok := readGateway(b)
		if !ok {
			return
		}
		if !bytes.Equal(append(gatewayIdentity(a), rest...), b) {
			t.Errorf("%x is read as %s and %x", b, a, rest)
		}
	})
}
