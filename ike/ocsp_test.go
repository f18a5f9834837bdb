package ike

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/internal/config"
	"tandem/internal/pki"
)

// asked is a pair whose side checks asks OCSP responders by a policy; both certificates name one unless told.
func asked(t *testing.T, mode string, named, initiatorChecks bool, status *pki.Status) (w *world, checks, other *side) {
	ca := newAuthority("CA", nil, 0)
	names := func(c *x509.Certificate) {
		if named {
			c.OCSPServer = []string{"ldap://192.0.2.99/", "http://192.0.2.99/ocsp"}
		}
	}
	w = newWorld(t)
	x := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}
	y := &config.Config{Phase1: []config.Phase1{phase1To("toA", addrA)}, Phase2: []config.Phase2{phase2For("toA", "net", netB, netA)}}
	signing(x, ca.gateway("a.test", "ecdsa256", names), ca)
	signing(y, ca.gateway("b.test", "ecdsa256", names), ca)
	with := func(o *Options) { o.Revocation = func(*x509.Certificate) pki.Status { return *status } }
	if initiatorChecks {
		x.Certificates.Setting.OCSP = mode
	} else {
		y.Certificates.Setting.OCSP = mode
	}
	a, b := w.side("A", addrA, 1, x, with), w.side("B", addrB, 2, y, with)
	if initiatorChecks {
		return w, a, b
	}
	return w, b, a
}

// What an OCSP responder says of the peer's certificate decides as the policy has it, on either side; a
// message that waits for it changes nothing until it comes again.
func TestOCSP(t *testing.T) {
	for _, tc := range []struct {
		mode   string
		status pki.Status
		named  bool
		up     bool
		reason string
	}{
		{"disable", pki.Revoked, true, true, ""},
		{"enable", pki.Good, true, true, ""},
		{"enable", pki.Revoked, true, false, "is revoked, its OCSP responder says"},
		{"enable", pki.Unavailable, true, true, ""},
		{"enable", pki.Unasked, false, true, ""},
		{"mandatory", pki.Good, true, true, ""},
		{"mandatory", pki.Revoked, true, false, "is revoked, its OCSP responder says"},
		{"mandatory", pki.Unavailable, true, false, "no OCSP responder vouches"},
		{"mandatory", pki.Unasked, false, false, "no OCSP responder vouches"},
	} {
		for _, initiator := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, status %d, named %v, checked by the initiator %v", tc.mode, tc.status, tc.named, initiator), func(t *testing.T) {
				status := pki.Unasked
				w, checks, other := asked(t, tc.mode, tc.named, initiator, &status)
				reasons := ""
				checks.onLog = func(l Log) {
					if l.Message == "authentication failed" {
						reasons += fmt.Sprint(l.Attrs)
					}
				}
				for _, s := range []*side{checks, other} {
					if s.name == "B" {
						s.resume()
					}
				}
				for _, s := range []*side{checks, other} {
					if s.name == "A" {
						s.resume()
					}
				}
				w.settle()
				if tc.mode != "disable" && tc.named {
					if len(checks.checks) != 1 || len(checks.established()) != 0 || reasons != "" || checks.e.Counters().AuthRefused != 0 {
						t.Fatalf("%d questions, %v, refused for %q", len(checks.checks), describe(checks.ike()), reasons)
					}
					c := checks.checks[0]
					if !strings.HasSuffix(c.Cert.Subject.CommonName, ".test") || c.Issuer.Subject.CommonName != "CA" || pki.OCSPServer(c.Cert) != "http://192.0.2.99/ocsp" {
						t.Errorf("asks for %s by %s", c.Cert.Subject, c.Issuer.Subject)
					}
					status = tc.status
					checks.e.HandleDatagram(w.now, c.Datagram)
					checks.drain()
					w.settle()
				}
				if up := len(checks.established()) == 1 && len(other.established()) == 1; up != tc.up {
					t.Fatalf("up: %v: %v, %v", up, describe(checks.ike()), describe(other.ike()))
				}
				if !strings.Contains(reasons, tc.reason) {
					t.Errorf("reason %q", reasons)
				}
				if tc.up {
					agree(t, checks, other, 1, 1)
				}
			})
		}
	}
}

// The owner dies while it waits for the answer: its successor asks for itself when the message comes again.
func TestOCSPOwnerDies(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		status := pki.Unasked
		w, checks, other := asked(t, "mandatory", true, initiator, &status)
		heir := w.standby(checks, 79)
		heir.e.o.Revocation = checks.e.o.Revocation
		for _, name := range []string{"B", "A"} {
			for _, s := range []*side{checks, other} {
				if s.name == name {
					s.resume()
				}
			}
		}
		w.settle()
		if len(checks.checks) != 1 {
			t.Fatalf("%d questions", len(checks.checks))
		}
		checks.dead = true
		heir.resume()
		w.run(5 * time.Second)
		if len(heir.checks) == 0 || len(heir.established()) != 0 {
			t.Fatalf("the successor asked %d times: %v", len(heir.checks), describe(heir.ike()))
		}
		status = pki.Good
		heir.e.HandleDatagram(w.now, heir.checks[0].Datagram)
		heir.drain()
		w.settle()
		agree(t, heir, other, 1, 1)
	}
}
