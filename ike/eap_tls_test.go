package ike

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/pki"
)

// A client proves itself by a certificate that is a user peer's, with the gateway's AUTH and without.
func TestEAPTLS(t *testing.T) {
	only := func(c *config.Config) { c.Phase1[0].EAPOnly = true }
	for name, tc := range map[string]struct {
		client, gateway func(*config.Config)
		proofs          bool // the gateway's AUTH comes first
	}{
		"after AUTH":           {nil, nil, true},
		"EAP-only":             {only, only, false},
		"EAP-only here alone":  {nil, only, true},
		"EAP-only there alone": {only, nil, true},
		"for its EAP identity": {nil, sendRequest, true},
		"instead of a password": {nil, func(g *config.Config) {
			g.UserGroups[0].Members = []string{"carol", "carols"}
			g.Users[0].Name = "CN=carol"
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, byTLS(tc.client, tc.gateway, true))
			b.resume()
			a.resume()
			w.settle()
			agree(t, a, b, 1, 1)
			if !a.esp(b) || !b.esp(a) {
				t.Error("traffic does not pass")
			}
			if sa := b.established()[0]; sa.peerID != (identity{idUser, "CN=carol"}) {
				t.Errorf("it is %+v", sa.peerID)
			}
			if signed := a.established()[0].peerAuth != nil; signed != tc.proofs {
				t.Errorf("the gateway has signed AUTH: %v", signed)
			}
		})
	}
}

func TestEAPTLSRefused(t *testing.T) {
	only := func(c *config.Config) { c.Phase1[0].EAPOnly = true }
	other := newAuthority("other", nil, 5)
	for name, tc := range map[string]struct {
		client, gateway func(*config.Config)
		reason          string
	}{
		"another subject": {nil, func(g *config.Config) { g.UserPeers[0].CN = "dave" }, "is no user peer's of staff"},
		"another CA": {func(c *config.Config) {
			c.Certificates.Local[0] = other.gateway("a.test", "ecdsa256", nil)
			c.Certificates.Local[0].Name = "own"
		}, func(g *config.Config) { g.UserPeers[0].CN = "a.test" }, "no configured CA vouches for"},
		"a gateway of another CA": {only, func(g *config.Config) {
			only(g)
			g.Certificates.Local[0] = other.gateway("b.test", "ecdsa256", nil)
		}, ""},
		"a gateway of another name": {func(c *config.Config) {
			only(c)
			c.Phase1[0].PeerType, c.Phase1[0].PeerID = "one", "c.test"
		}, only, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, byTLS(tc.client, tc.gateway, true))
			reasons := ""
			b.onLog = func(l Log) { reasons += fmt.Sprint(l.Attrs) }
			b.resume()
			a.resume()
			w.run(40 * time.Second)
			if len(a.established())+len(b.established()) != 0 || !strings.Contains(reasons, tc.reason) {
				t.Errorf("%v, %v: %s", describe(a.ike()), describe(b.ike()), reasons)
			}
		})
	}
}

// The certificate of a client is asked about before EAP succeeds.
func TestEAPTLSAsksOCSP(t *testing.T) {
	for _, status := range []pki.Status{pki.Good, pki.Revoked} {
		w, a, b := pair(t, byTLS(nil, func(g *config.Config) {
			g.Certificates.Setting.OCSP = "mandatory"
		}, true))
		now := pki.Unasked
		b.e.o.Revocation = func(*x509.Certificate) pki.Status { return now }
		ca := newAuthority("CA", nil, 0)
		a.e.cfg.Certificates.Local[0] = ca.gateway("a.test", "ecdsa256", func(x *x509.Certificate) {
			x.Subject.CommonName = "carol"
			x.OCSPServer = []string{"http://192.0.2.99/"}
		})
		b.resume()
		a.resume()
		w.settle()
		if len(b.checks) != 1 || len(b.established()) != 0 {
			t.Fatalf("%d questions, %v", len(b.checks), describe(b.ike()))
		}
		now = status
		b.e.HandleDatagram(w.now, b.checks[0].Datagram)
		b.drain()
		w.settle()
		if up := len(a.established()) == 1 && len(b.established()) == 1; up != (status == pki.Good) {
			t.Errorf("status %d: up %v", status, up)
		}
	}
}

// TestEAPTLSOwnerDies kills the owner after every effect of EAP-TLS: the successor goes on before and
// after TLS; amid it the exchange ends at the peer's next message, and the client begins anew.
func TestEAPTLSOwnerDies(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		anew, continued := 0, 0
		for k := 1; ; k++ {
			w, a, b := pair(t, func(x, y *config.Config) {
				byTLS(nil, nil, initiator)(x, y)
				x.Phase1[0].DPD, y.Phase1[0].DPD = "disable", "disable"
				x.Phase1[0].AutoNegotiate, y.Phase1[0].AutoNegotiate = initiator, !initiator
			})
			heir := w.standby(a, 77)
			a.cutAt = k
			if initiator {
				b.resume()
				a.resume()
			} else {
				a.resume()
				b.resume()
			}
			w.settle()
			if !a.dead {
				agree(t, a, b, 1, 1)
				break
			}
			began := w.now
			heir.resume()
			w.run(45 * time.Second)
			agree(t, heir, b, 1, 1)
			if !heir.esp(b) || !b.esp(heir) {
				t.Errorf("initiator %v, effect %d: traffic does not pass", initiator, k)
			}
			if distinctInits(w) > 1 {
				anew++
			} else {
				continued++
			}
			if took := heir.established()[0].established.Sub(began); took > 10*time.Second {
				t.Errorf("initiator %v, effect %d: took %s", initiator, k, took)
			}
			if t.Failed() {
				t.Fatalf("initiator %v, effect %d", initiator, k)
			}
		}
		if continued == 0 || anew == 0 {
			t.Errorf("initiator %v: %d continued, %d began anew", initiator, continued, anew)
		}
		t.Logf("initiator %v: %d continued, %d began anew", initiator, continued, anew)
	}
}

// A client that goes away amid TLS leaves nothing behind.
func TestEAPTLSIsClosed(t *testing.T) {
	w, a, b := pair(t, byTLS(nil, nil, true))
	w.drop = func(d Datagram) bool {
		h, _ := message.ParseHeader(d.Data)
		return h.Exchange == message.IKEAuth && h.Response && h.MessageID > 2
	}
	b.resume()
	a.resume()
	w.settle()
	sas := b.ike()
	if len(sas) != 1 || sas[0].eap == nil || sas[0].eap.tls == nil {
		t.Fatal(describe(sas))
	}
	session, s := sas[0].eap.tls, sas[0].eap
	w.run(time.Minute)
	if len(b.established()) != 0 || s.tls != nil {
		t.Errorf("%v", describe(b.ike()))
	}
	if _, done, err := session.Step([]byte{22}); done || err == nil {
		t.Error("it goes on after its end")
	}
}
