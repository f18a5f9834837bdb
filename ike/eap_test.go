package ike

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func sendRequest(g *config.Config) { g.Phase1[0].EAPIdentity = "send-request" }

// A client proves itself by its password; who it is then is its user, whatever its ID payload says.
func TestEAPMSCHAPv2(t *testing.T) {
	for name, gateway := range map[string]func(*config.Config){"its IKE identity": nil, "its EAP identity": sendRequest} {
		t.Run(name, func(t *testing.T) {
			w, a, b := eapUp(t, eapPair(func(c *config.Config) { c.Phase1[0].LocalID = map[bool]string{true: "laptop.test"}[gateway != nil] }, gateway, true))
			agree(t, a, b, 1, 1)
			if !a.esp(b) || !b.esp(a) {
				t.Error("traffic does not pass")
			}
			if n := w.seenOf(message.IKEAuth); n != map[bool]int{false: 4, true: 5}[gateway != nil] {
				t.Errorf("%d IKE_AUTH requests", n)
			}
			sa := b.established()[0]
			if sa.peerID != (identity{idUser, "carol"}) || sa.eap != nil || sa.name() != "toA_0" {
				t.Errorf("%s is %+v, EAP %v", sa.name(), sa.peerID, sa.eap)
			}
			if g := b.e.Status(w.now); len(g) != 1 || g[0].PeerID != "carol" {
				t.Errorf("%+v", g)
			}
		})
	}
}

// Whoever does not prove itself gets no further, and learns nothing of who is known.
func TestEAPRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		client, gateway func(*config.Config)
		reason          string
	}{
		"wrong password": {client: func(c *config.Config) { c.Phase1[0].AuthPassword = ipsec.NewKey([]byte("wonderland")) }, reason: "wrong user name or password"},
		"unknown user":   {client: func(c *config.Config) { c.Phase1[0].AuthUser = "mallory" }, reason: "wrong user name or password"},
		"of no group": {client: func(c *config.Config) {
			c.Phase1[0].AuthUser, c.Phase1[0].AuthPassword = "eve", ipsec.NewKey([]byte("out"))
		}, reason: "wrong user name or password"},
		"disabled": {gateway: func(g *config.Config) { g.Users[0].Status = false }, reason: "wrong user name or password"},
		"without EAP": {client: func(c *config.Config) {
			c.Phase1[0].EAP, c.Phase1[0].Certificate = false, []string{"own"}
		}, reason: "no gateway accepts the peer identifier"},
		"no certificate": {client: func(c *config.Config) {}, gateway: func(g *config.Config) {
			g.UserPeers = []config.UserPeer{{Name: "p", CN: "carol", CNType: "string"}}
			g.UserGroups[0].Members = []string{"p"}
		}, reason: "the initiator takes no EAP TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, eapPair(tc.client, tc.gateway, true))
			reasons := ""
			b.onLog = func(l Log) {
				reasons += fmt.Sprint(l.Attrs)
				if s := fmt.Sprint(l.Message, l.Attrs); strings.Contains(s, "onderland") {
					t.Error(s)
				}
			}
			b.resume()
			a.resume()
			w.settle()
			if len(a.established())+len(b.established())+len(a.ike())+len(b.ike()) != 0 {
				t.Errorf("%v, %v", describe(a.ike()), describe(b.ike()))
			}
			if !strings.Contains(reasons, tc.reason) || b.e.Counters().AuthRefused != 1 {
				t.Errorf("refused %d times for %s", b.e.Counters().AuthRefused, reasons)
			}
		})
	}
}

// A gateway that cannot prove itself is told nothing: neither by its certificate, nor afterwards that it
// knows the password.
func TestEAPGatewayProvesItself(t *testing.T) {
	other := newAuthority("other", nil, 3)
	w, a, b := eapUp(t, eapPair(nil, func(g *config.Config) {
		g.Certificates.Local = []config.LocalCertificate{other.gateway("b.test", "ecdsa256", nil)}
	}, true))
	if len(a.ike())+len(b.established()) != 0 || w.seenOf(message.IKEAuth) != 1 {
		t.Errorf("%v after %d requests", describe(a.ike()), w.seenOf(message.IKEAuth))
	}
}

// Attempts after a failed one fail for a while, the right password too; others' do not.
func TestEAPSlowsFailures(t *testing.T) {
	w, a, b := pair(t, eapPair(func(c *config.Config) { c.Phase1[0].AuthPassword = ipsec.NewKey([]byte("guess")) }, nil, true))
	a.e.cfg.Phase1[0].AutoNegotiate = false
	b.resume()
	a.resume()
	try := func(user, password string) bool {
		a.e.cfg.Phase1[0].AuthUser, a.e.cfg.Phase1[0].AuthPassword = user, ipsec.NewKey([]byte(password))
		a.up("net")
		w.settle()
		return len(a.established()) == 1
	}
	for range 3 {
		if try("carol", "guess") {
			t.Fatal("a guess is right")
		}
	}
	if try("carol", "Wonderland") {
		t.Error("an attempt right after others is heard")
	}
	if !try("dave", "other") {
		t.Error("somebody else suffers for it")
	}
	a.e.Clear(w.now, "")
	a.drain()
	w.settle()
	w.now = w.now.Add(slowMost)
	if !try("carol", "Wonderland") {
		t.Error("it is never forgotten")
	}
	if n := b.e.Counters(); n.AuthRefused != 4 {
		t.Errorf("%d refusals", n.AuthRefused)
	}
}

// Anybody can fail: lines of the log do not grow with it, nor what is remembered.
func TestEAPFailuresAreBounded(t *testing.T) {
	w, a, b := pair(t, eapPair(nil, nil, true))
	a.e.cfg.Phase1[0].AutoNegotiate = false
	lines := 0
	b.onLog = func(l Log) {
		if l.Message == "authentication failed" {
			lines++
		}
	}
	b.resume()
	a.resume()
	for i := range 100 {
		a.e.cfg.Phase1[0].AuthUser = fmt.Sprintf("guess%d", i)
		a.up("net")
		w.settle()
	}
	if n := b.e.Counters(); lines > 25 || n.AuthRefused != 100 || int(n.RefusalsUnsaid) != 100-lines {
		t.Errorf("%d lines, %+v", lines, n)
	}
	var s slowed
	for i := range 2 * slowKept {
		s.failed(w.now, attempt{fmt.Sprint(i), a.addr})
	}
	if len(s.of) > slowKept {
		t.Errorf("%d are remembered", len(s.of))
	}
}

// Users of a gateway who change lose their IKE SA, the others keep theirs.
func TestEAPUserChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*config.Config)
		ends   bool
	}{
		"nothing":          {func(*config.Config) {}, false},
		"another password": {func(g *config.Config) { g.Users[0].Secret = ipsec.NewKey([]byte("new")) }, true},
		"disabled":         {func(g *config.Config) { g.Users[0].Status = false }, true},
		"left the group":   {func(g *config.Config) { g.UserGroups[0].Members = []string{"dave"} }, true},
		"somebody else":    {func(g *config.Config) { g.Users[1].Secret = ipsec.NewKey([]byte("new")) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := eapUp(t, eapPair(nil, nil, true))
			agree(t, a, b, 1, 1)
			a.e.cfg.Phase1[0].AutoNegotiate = false
			g := *b.e.cfg
			g.Users, g.UserGroups = append([]config.User{}, g.Users...), append([]config.UserPeerGroup{}, g.UserGroups...)
			tc.change(&g)
			b.e.Reconfigure(w.now, &g)
			b.drain()
			w.settle()
			if ended := len(b.established()) == 0; ended != tc.ends {
				t.Errorf("%v", describe(b.ike()))
			}
		})
	}
}

// An IKE_AUTH that never ends is ended; one with too much in it is refused.
func TestEAPWithoutEnd(t *testing.T) {
	w, a, b := pair(t, eapPair(nil, sendRequest, true))
	w.drop = func(d Datagram) bool {
		h, _ := message.ParseHeader(d.Data)
		return h.Exchange == message.IKEAuth && !h.Response && h.MessageID > 2
	}
	b.resume()
	a.resume()
	a.e.cfg.Phase1[0].AutoNegotiate = false
	w.run(b.e.cfg.Phase1[0].NegotiateTimeout + time.Second)
	if len(b.ike()) != 0 {
		t.Errorf("%v", describe(b.ike()))
	}
}

// TestEAPCrashAtEveryEffect is TestCrashAtEveryEffect for IKE_AUTH by EAP, of the client and of the gateway.
func TestEAPCrashAtEveryEffect(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		for _, loss := range []bool{false, true} {
			t.Run(fmt.Sprintf("initiator=%v/loss=%v", initiator, loss), func(t *testing.T) {
				sc := scenario{change: eapPair(nil, sendRequest, initiator), ikes: 1, children: 1,
					before: func(a, b *side) { a.resume(); b.resume() }, begin: func(s *side) { s.up("net") }}
				for k := 1; crashOnce(t, sc, initiator, loss, k); k++ {
					if t.Failed() || k > 100 {
						t.Fatalf("after effect %d", k-1)
					}
				}
			})
		}
	}
}
