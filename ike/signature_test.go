package ike

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/pki"
)

// Every kind of key authenticates both sides, as RFC 7427 has it and, where one of them does not
// know that, as RFC 7296 and RFC 4754 do.
func TestSignatures(t *testing.T) {
	ecdsa := func(h keymat.HashID) keymat.Scheme { return keymat.Scheme{Key: keymat.KeyECDSA, Hash: h} }
	set := func(f func(*config.Phase1)) func(a, b *config.Config) {
		return func(a, b *config.Config) { f(&a.Phase1[0]); f(&b.Phase1[0]) }
	}
	old := func(a, b *config.Config) { b.Phase1[0].DigitalSignatureAuth = false }
	for _, tc := range []struct {
		name, kind string
		change     func(a, b *config.Config)
		method     message.AuthMethod
		scheme     keymat.Scheme
	}{
		{"RSA", "rsa2048", nil, message.AuthSignature, rsaScheme(keymat.HashSHA512, false)},
		{"RSA, the best hash that both have", "rsa2048", func(a, b *config.Config) { a.Phase1[0].SignatureHash = []string{"sha2-256"} }, message.AuthSignature, rsaScheme(keymat.HashSHA256, false)},
		{"RSASSA-PSS", "rsa2048", set(func(p *config.Phase1) { p.RSASignatureFormat = "pss" }), message.AuthSignature, rsaScheme(keymat.HashSHA512, true)},
		{"RSASSA-PSS with SHA-256", "rsa2048", set(func(p *config.Phase1) { p.RSASignatureFormat, p.SignatureHash = "pss", []string{"sha2-256"} }), message.AuthSignature, rsaScheme(keymat.HashSHA256, true)},
		{"P-256", "ecdsa256", nil, message.AuthSignature, ecdsa(keymat.HashSHA256)},
		{"P-384", "ecdsa384", nil, message.AuthSignature, ecdsa(keymat.HashSHA384)},
		{"P-521", "ecdsa521", nil, message.AuthSignature, ecdsa(keymat.HashSHA512)},
		{"P-521 where SHA-512 is not allowed", "ecdsa521", set(func(p *config.Phase1) { p.SignatureHash = []string{"sha2-384"} }), message.AuthSignature, ecdsa(keymat.HashSHA384)},
		{"Ed25519", "ed25519", nil, message.AuthSignature, keymat.Scheme{Key: keymat.KeyEd25519, Hash: keymat.HashIdentity}},
		{"RSA without RFC 7427", "rsa2048", old, message.AuthRSA, rsaScheme(keymat.HashSHA512, false)},
		{"RSA without RFC 7427, SHA-1 allowed", "rsa2048", func(a, b *config.Config) {
			old(a, b)
			set(func(p *config.Phase1) { p.SignatureHash = []string{"sha2-256", "sha1"} })(a, b)
		}, message.AuthRSA, rsaScheme(keymat.HashSHA1, false)},
		{"RSA without RFC 7427, SHA-1 allowed and overridden", "rsa2048", func(a, b *config.Config) {
			old(a, b)
			set(func(p *config.Phase1) { p.SignatureHash, p.RSAHashOverride = []string{"sha2-256", "sha1"}, true })(a, b)
		}, message.AuthRSA, rsaScheme(keymat.HashSHA256, false)},
		{"P-256 without RFC 7427", "ecdsa256", old, message.AuthECDSA256, ecdsa(keymat.HashSHA256)},
		{"P-384 without RFC 7427", "ecdsa384", old, message.AuthECDSA384, ecdsa(keymat.HashSHA384)},
		{"P-521 without RFC 7427", "ecdsa521", old, message.AuthECDSA521, ecdsa(keymat.HashSHA512)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, a, b := up(t, func(ca, cb *config.Config) {
				signed(tc.kind)(ca, cb)
				if tc.change != nil {
					tc.change(ca, cb)
				}
			})
			for _, s := range []*side{a, b} {
				if p := s.proof(t); p.method != tc.method || p.scheme != tc.scheme {
					t.Errorf("%s saw method %d by %s, want %d by %s", s.name, p.method, p.scheme, tc.method, tc.scheme)
				}
			}
			if !a.esp(b) || !b.esp(a) {
				t.Error("traffic does not pass")
			}
			if g := a.e.Status(a.w.now)[0]; g.PeerID != "O=Test, OU=Gateways, CN=b.test" || g.Certificate == nil || g.Certificate.Subject != g.PeerID ||
				g.Certificate.NotAfter.Year() != 2027 || g.Certificate.Signature != tc.scheme.String() ||
				g.Certificate.Fingerprint != pki.Fingerprint(b.e.cfg.Certificates.Local[0].Chain[0]) {
				t.Errorf("status: %+v %+v", g, g.Certificate)
			}
		})
	}
}

// refusals are what keeps a certificate from proving its peer; change sees the side that presents the
// certificate first.
var refusals = []struct {
	name   string
	kind   string
	change func(ca *testAuthority, own, checks *config.Config)
	reason string
}{
	{"unknown CA", "", func(_ *testAuthority, own, _ *config.Config) {
		own.Certificates.Local[0] = newAuthority("CA", nil, 9).gateway(own.Certificates.Local[0].Chain[0].Subject.CommonName, "ecdsa256", nil)
	}, "no configured CA vouches"},
	{"expired", "", func(ca *testAuthority, own, _ *config.Config) {
		again(ca, own, func(c *x509.Certificate) { c.NotAfter = time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC) })
	}, "expired on 2025-12-31T00:00:00Z"},
	{"not valid yet", "", func(ca *testAuthority, own, _ *config.Config) {
		again(ca, own, func(c *x509.Certificate) { c.NotBefore = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC) })
	}, "is not valid before 2026-01-02T00:00:00Z"},
	{"no signatures by its usage", "", func(ca *testAuthority, own, _ *config.Config) {
		again(ca, own, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	}, "key usage"},
	{"another's identity", "", func(_ *testAuthority, own, _ *config.Config) {
		own.Phase1[0].LocalID, own.Phase1[0].LocalIDType = "c.test", "fqdn"
	}, "does not bear the identity c.test"},
	{"a key ID", "", func(_ *testAuthority, own, _ *config.Config) {
		own.Phase1[0].LocalID, own.Phase1[0].LocalIDType = "b.test", "keyid"
	}, "does not bear the identity"},
	{"revoked", "", func(ca *testAuthority, own, checks *config.Config) {
		checks.Certificates.CRL = []config.CRL{{Read: ca.crl(own.Certificates.Local[0].Chain[0])}}
	}, "is revoked"},
	{"no list where one is demanded", "", func(_ *testAuthority, _, checks *config.Config) {
		checks.Certificates.Setting.StrictCRLCheck = true
	}, "there is no revocation list of O=Test, CN=CA"},
	{"peertype one, another", "", func(_ *testAuthority, _, checks *config.Config) {
		checks.Phase1[0].PeerType, checks.Phase1[0].PeerID = "one", "CN=c.test, OU=Gateways, O=Test"
	}, "peer identifier"},
	{"user peer, another CN", "", func(_ *testAuthority, _, checks *config.Config) {
		userPeer(checks, config.UserPeer{CN: "c.test", CNType: "FQDN"})
	}, "is none of peer branch"},
	{"user peer, another subject", "", func(_ *testAuthority, _, checks *config.Config) {
		userPeer(checks, config.UserPeer{Subject: "OU=Clients"})
	}, "is none of peer branch"},
	{"user peer, another CA", "", func(_ *testAuthority, _, checks *config.Config) {
		other := newAuthority("Other CA", nil, 8)
		checks.Certificates.CA = append(checks.Certificates.CA, config.CACertificate{Name: "Other CA", Read: other.c})
		userPeer(checks, config.UserPeer{CA: "Other CA", Subject: "OU=Gateways"})
	}, "no configured CA vouches"},
	{"a hash that is not allowed", "rsa2048", func(_ *testAuthority, own, checks *config.Config) {
		own.Phase1[0].DigitalSignatureAuth, own.Phase1[0].SignatureHash = false, []string{"sha2-512", "sha1"}
	}, "a signature by RSA with SHA-1 is not allowed"},
	{"somebody else's key", "", func(_ *testAuthority, own, _ *config.Config) {
		own.Certificates.Local[0].Key = (&testAuthority{testRoot.c, testRoot.k}).gateway("x", "ecdsa256", nil).Key
		if own.Phase1[0].Name == "toA" { // b has key 1 itself
			own.Certificates.Local[0].Key = testRoot.gateway("a.test", "ecdsa256", nil).Key
		}
	}, "the signature is wrong"},
}

var testRoot = newAuthority("Root", nil, 7)

// again gives a side another certificate of its CA.
func again(ca *testAuthority, own *config.Config, change func(*x509.Certificate)) {
	own.Certificates.Local[0] = ca.gateway(own.Certificates.Local[0].Chain[0].Subject.CommonName, "ecdsa256", change)
}

func userPeer(c *config.Config, p config.UserPeer) {
	p.Name = "branch"
	c.UserPeers = append(c.UserPeers, p)
	c.Phase1[0].PeerType, c.Phase1[0].Peer = "peer", "branch"
}

// A certificate that proves nothing is refused by either side, which says why, tells the peer no
// more than AUTHENTICATION_FAILED, and signs nothing for an initiator that has proved nothing.
func TestSignatureRefused(t *testing.T) {
	for _, tc := range refusals {
		for _, initiator := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/of the initiator %v", tc.name, initiator), func(t *testing.T) {
				ca := newAuthority("CA", nil, 0)
				kind := tc.kind
				if kind == "" {
					kind = "ecdsa256"
				}
				w, a, b := pair(t, func(x, y *config.Config) {
					signing(x, ca.gateway("a.test", kind, nil), ca)
					signing(y, ca.gateway("b.test", kind, nil), ca)
					if initiator {
						tc.change(ca, x, y)
					} else {
						tc.change(ca, y, x)
					}
				})
				checks := a
				if initiator {
					checks = b
				}
				reasons := ""
				checks.onLog = func(l Log) {
					if l.Message == "authentication failed" {
						for _, at := range l.Attrs {
							reasons += at.String() + "\n"
						}
					}
				}
				signed := b.countSignatures()
				b.resume()
				a.resume()
				w.settle()
				if len(a.established())+len(b.established()) != 0 || len(a.installed)+len(b.installed) != 0 {
					t.Fatal("established")
				}
				if !strings.Contains(reasons, tc.reason) {
					t.Errorf("reason %q, want %q", reasons, tc.reason)
				}
				if initiator && *signed != 0 {
					t.Errorf("the responder signed %d times", *signed)
				}
				if n := checks.e.Counters().AuthRefused; n != 1 {
					t.Errorf("%d refusals counted", n)
				}
			})
		}
	}
}

// What a policy asks for and gets.
func TestSignatureAccepted(t *testing.T) {
	ca := newAuthority("CA", nil, 0)
	sub := newAuthority("Sub CA", ca, 1)
	for _, tc := range []struct {
		name   string
		change func(own, checks *config.Config)
		id     string
	}{
		{"FQDN", func(own, _ *config.Config) { own.Phase1[0].LocalID = "B.test" }, "B.test"},
		{"mail address", func(own, _ *config.Config) { own.Phase1[0].LocalID = "admin@b.test" }, "admin@b.test"},
		{"address", func(own, _ *config.Config) { own.Phase1[0].LocalID = addrB }, addrB},
		{"any identity where none is validated", func(own, checks *config.Config) {
			own.Phase1[0].LocalID, checks.Phase1[0].CertIDValidation = "c.test", false
		}, "c.test"},
		{"peertype one by a name in the other order", func(_, checks *config.Config) {
			checks.Phase1[0].PeerType, checks.Phase1[0].PeerID = "one", "cn=B.TEST,ou=gateways,o=test"
		}, ""},
		{"user peer by CA, subject and FQDN", func(_, checks *config.Config) {
			userPeer(checks, config.UserPeer{CA: "CA", Subject: "O=Test, OU=Gateways", CN: "b.test", CNType: "FQDN"})
		}, ""},
		{"user peer by mail address", func(_, checks *config.Config) {
			userPeer(checks, config.UserPeer{CN: "admin@b.test", CNType: "email"})
		}, ""},
		{"user peer by address", func(_, checks *config.Config) {
			userPeer(checks, config.UserPeer{CN: addrB, CNType: "ipv4"})
		}, ""},
		{"group of user peers", func(_, checks *config.Config) {
			checks.UserPeers = []config.UserPeer{{Name: "x", CN: "x", CNType: "string"}, {Name: "b", CN: "b.test", CNType: "string"}}
			checks.UserPeerGroups = []config.UserPeerGroup{{Name: "g", Members: []string{"x", "b"}}}
			checks.Phase1[0].PeerType, checks.Phase1[0].PeerGroup = "peergrp", "g"
		}, ""},
		{"a CA between", func(own, _ *config.Config) {
			own.Certificates.Local[0] = sub.gateway("b.test", "ecdsa256", nil, sub.c, ca.c)
		}, ""},
		{"a CA between, which the CA's own lists do not name", func(own, checks *config.Config) {
			own.Certificates.Local[0] = sub.gateway("b.test", "ecdsa256", nil, sub.c)
			checks.Certificates.CRL = []config.CRL{{Read: ca.crl()}, {Read: sub.crl()}}
			checks.Certificates.Setting.StrictCRLCheck = true
		}, ""},
		{"a list that names others", func(own, checks *config.Config) {
			checks.Certificates.CRL = []config.CRL{{Read: ca.crl(sub.c)}}
		}, ""},
		{"the second of two certificates, whose CA the peer asks for", func(own, checks *config.Config) {
			stranger := newAuthority("Strange CA", nil, 6).gateway("b.test", "ecdsa256", nil)
			stranger.Name = "strange"
			own.Certificates.Local = append(own.Certificates.Local, stranger)
			own.Phase1[0].Certificate = []string{"strange", "own"}
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, a, b := up(t, func(x, y *config.Config) {
				signing(x, ca.gateway("a.test", "ecdsa256", nil), ca)
				signing(y, ca.gateway("b.test", "ecdsa256", nil), ca)
				tc.change(y, x)
			})
			if tc.id == "" {
				tc.id = "O=Test, OU=Gateways, CN=b.test"
			}
			if got := a.established()[0].peerID.String(); got != tc.id {
				t.Errorf("the peer is %s", got)
			}
			b.proof(t)
		})
	}
}

// A revoked CA between takes all of its certificates with it.
func TestRevokedBetween(t *testing.T) {
	ca := newAuthority("CA", nil, 0)
	sub := newAuthority("Sub CA", ca, 1)
	w, a, b := pair(t, func(x, y *config.Config) {
		signing(x, ca.gateway("a.test", "ecdsa256", nil), ca)
		signing(y, sub.gateway("b.test", "ecdsa256", nil, sub.c), ca)
		x.Certificates.CRL = []config.CRL{{Read: ca.crl(sub.c)}}
	})
	b.resume()
	a.resume()
	w.settle()
	if len(a.established()) != 0 {
		t.Error("established")
	}
}

// Entries for certificates and for pre-shared keys stand side by side for dialup clients: the method
// says which is meant.
func TestBothMethods(t *testing.T) {
	for _, bySignature := range []bool{true, false} {
		_, a, b := up(t, func(x, y *config.Config) {
			ca := newAuthority("CA", nil, 0)
			y.Phase1[0] = phase1To("certs", "")
			signing(y, ca.gateway("b.test", "ecdsa256", nil), ca)
			y.Phase1 = append(y.Phase1, phase1To("keys", ""))
			y.Phase2[0].Phase1 = "certs"
			y.Phase2 = append(y.Phase2, phase2For("keys", "net", netB, netA))
			x.Phase2 = append(x.Phase2, phase2For("toB", "net2", netA, netB))
			if bySignature {
				signing(x, ca.gateway("a.test", "ecdsa256", nil), ca)
			}
			x.Phase2, y.Phase2 = x.Phase2[:1], y.Phase2[:2]
		})
		want := map[bool]string{true: "certs", false: "keys"}[bySignature]
		if got := b.established()[0].phase1; got != want || (a.established()[0].peerAuth != nil) != bySignature {
			t.Errorf("signature %v: matched %s", bySignature, got)
		}
	}
}

// The costly part comes last: an initiator that does not return its cookie costs no signature, nor
// does one that proves nothing.
func TestNoSignatureBeforeCookie(t *testing.T) {
	w := newWorld(t)
	ca, cb := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}},
		&config.Config{Phase1: []config.Phase1{phase1To("toA", "")}, Phase2: []config.Phase2{phase2For("toA", "net", netB, netA)}}
	signed("ecdsa256")(ca, cb)
	a := w.side("A", addrA, 1, ca, nil)
	b := w.side("B", addrB, 2, cb, func(o *Options) { o.HalfOpenLimit = 1 })
	other := w.side("C", "192.0.2.3", 3, &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}, nil)
	n := b.countSignatures()
	b.resume()
	// A half-open IKE SA of somebody who never sends IKE_AUTH.
	w.drop = func(d Datagram) bool {
		h, err := message.ParseHeader(d.Data)
		return err == nil && h.Exchange == message.IKEAuth && d.Local.Addr() == other.addr
	}
	other.resume()
	w.settle()
	if b.e.halfOpen != 1 || *n != 0 {
		t.Fatalf("%d half open, %d signatures", b.e.halfOpen, *n)
	}
	cookies := 0
	w.drop = func(d Datagram) bool {
		m, err := message.Parse(d.Data)
		if err != nil || d.Local.Addr() != b.addr {
			return false
		}
		if _, ok := m.Notify(message.Cookie); ok {
			cookies++
			return cookies == 1 // the first one does not arrive
		}
		return false
	}
	a.resume()
	w.settle()
	if cookies != 1 || *n != 0 || len(a.established()) != 0 {
		t.Fatalf("%d cookies, %d signatures before one came back", cookies, *n)
	}
	w.run(3 * time.Second)
	if len(a.established()) != 1 || cookies != 2 || *n != 1 {
		t.Errorf("%d established, %d cookies, %d signatures", len(a.established()), cookies, *n)
	}
}

// RFC 7427's method is taken only where we told our hashes.
func TestDigitalSignatureNotAnnounced(t *testing.T) {
	w, a, b := pair(t, signed("rsa2048"))
	b.resume()
	a.resume()
	for len(w.wire) > 0 {
		d := w.wire[0]
		w.wire = w.wire[1:]
		if h, err := message.ParseHeader(d.Data); err == nil && h.Exchange == message.IKEAuth {
			b.e.cfg.Phase1[0].DigitalSignatureAuth = false // as if it never had been
		}
		w.deliver(d)
	}
	if len(b.established()) != 0 {
		t.Error("established")
	}
	// A peer whose Ed25519 key fits no older method says so instead of sending what nobody understands.
	w, a, b = pair(t, func(x, y *config.Config) {
		signed("ed25519")(x, y)
		y.Phase1[0].DigitalSignatureAuth = false
	})
	b.resume()
	a.resume()
	w.settle()
	if n := w.seenOf(message.IKEAuth); n != 0 {
		t.Errorf("%d IKE_AUTH requests", n)
	}
	a.wantLog("cannot authenticate ourselves")
}

// Neither side asks for, nor offers, what has no place where nobody signs.
func TestNothingOfCertificatesWithKeys(t *testing.T) {
	w, _, _ := up(t, nil)
	for _, d := range w.seen {
		m, err := message.Parse(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		_, hashes := m.Notify(message.SignatureHashAlgorithms)
		if _, ok := message.Get[*message.CertReq](m); ok || hashes {
			t.Error("IKE_SA_INIT asks for certificates")
		}
	}
}

// A standby knows how the peer proved itself, also after a rekey.
func TestCertificateReplicated(t *testing.T) {
	w, a, b := pair(t, signed("rsa2048"))
	b2 := w.standby(b, 78)
	b.resume()
	a.resume()
	w.settle()
	want := *b.proof(t)
	b.rekeyIKE()
	w.settle()
	if *b.proof(t) != want {
		t.Errorf("after the rekey: %+v, want %+v", *b.proof(t), want)
	}
	b.dead = true
	b2.resume()
	w.run(time.Minute)
	agree(t, a, b2, 1, 1)
	if got := *b2.proof(t); got != want {
		t.Errorf("the successor knows %+v, want %+v", got, want)
	}
	g := b2.e.Status(w.now)[0]
	if g.Certificate == nil || g.Certificate.Subject != "O=Test, OU=Gateways, CN=a.test" || g.Certificate.Method != "Digital Signature" {
		t.Errorf("the successor shows %+v", g.Certificate)
	}
}

// A new certificate for the same gateway, and a new list, drop nothing; another demand on the peer does.
func TestCertificateReload(t *testing.T) {
	ca := newAuthority("CA", nil, 0)
	w, a, b := up(t, func(x, y *config.Config) {
		signing(x, ca.gateway("a.test", "ecdsa256", nil), ca)
		signing(y, ca.gateway("b.test", "ecdsa256", nil), ca)
		userPeer(y, config.UserPeer{Subject: "OU=Gateways"})
	})
	spis := b.established()[0].spis
	reload := func(change func(c *config.Config)) {
		c := *b.e.cfg
		c.Phase1 = append([]config.Phase1(nil), c.Phase1...)
		c.UserPeers = append([]config.UserPeer(nil), c.UserPeers...)
		c.Certificates.Local = append([]config.LocalCertificate(nil), c.Certificates.Local...)
		change(&c)
		b.e.Reconfigure(w.now, &c)
		b.drain()
		w.settle()
	}
	reload(func(c *config.Config) {
		c.Certificates.Local[0] = ca.gateway("b.test", "ecdsa384", func(x *x509.Certificate) { x.NotAfter = x.NotAfter.AddDate(1, 0, 0) })
		c.Certificates.CRL = []config.CRL{{Read: ca.crl()}}
		c.UserPeers[0].Line = 77
	})
	if got := b.established(); len(got) != 1 || got[0].spis != spis {
		t.Fatalf("a renewed certificate dropped the tunnel: %v", describe(b.ike()))
	}
	reload(func(c *config.Config) { c.UserPeers[0].Subject = "OU=Clients" })
	w.run(10 * time.Second)
	if got := b.established(); len(got) != 0 {
		t.Errorf("the peer is not what it has to be any more: %v", describe(got))
	}
	reload(func(c *config.Config) { c.UserPeers[0].Subject = "O=Test" })
	w.run(2 * time.Minute)
	if len(a.established()) != 1 || a.proof(t).scheme.Hash != keymat.HashSHA384 {
		t.Errorf("not the new certificate: %v", describe(a.ike()))
	}
}

// CERT payloads are bounded, hash and URL is passed over, and only the first certificate is the peer's.
func TestPeerCerts(t *testing.T) {
	ca := newAuthority("CA", nil, 0)
	leaf := ca.gateway("b.test", "ecdsa256", nil).Chain[0]
	cert := func(enc uint8, data []byte) message.Payload { return &message.Cert{Encoding: enc, Data: data} }
	msg := func(ps ...message.Payload) *message.Message { return &message.Message{Payloads: ps} }
	url := append(make([]byte, 20), "http://192.0.2.1/cert"...)
	got, others, err := peerCerts(msg(cert(12, url), cert(13, url), cert(message.CertX509Signature, leaf.Raw), cert(message.CertX509Signature, ca.c.Raw), cert(message.CertX509Signature, []byte("junk"))))
	if err != nil || !got.Equal(leaf) || len(others) != 1 || !others[0].Equal(ca.c) {
		t.Errorf("%v, %d others, %v", got, len(others), err)
	}
	if got, _, err := peerCerts(msg(cert(12, url))); got != nil || err != nil {
		t.Errorf("hash and URL alone: %v, %v", got, err)
	}
	if _, _, err := peerCerts(msg(cert(message.CertX509Signature, []byte("junk")))); err == nil {
		t.Error("junk is a certificate")
	}
	if _, _, err := peerCerts(msg(cert(message.CertX509Signature, make([]byte, pki.MaxCertificate+1)))); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a huge one: %v", err)
	}
	many := []message.Payload{}
	for range maxPeerCerts + 1 {
		many = append(many, cert(message.CertX509Signature, leaf.Raw))
	}
	if _, _, err := peerCerts(msg(many...)); err == nil {
		t.Error("too many are taken")
	}
	h := pki.KeyHash(ca.c)
	row := askedCAs(msg(&message.CertReq{Encoding: 12, Data: h[:]}, &message.CertReq{Encoding: 4, Data: h[:19]}, &message.CertReq{Encoding: 4, Data: make([]byte, 20*1000)}, &message.CertReq{Encoding: 4, Data: h[:]}))
	if len(row) != 20*maxAsked || hashIn(row, h[:]) {
		t.Errorf("%d bytes of CERTREQ are looked at", len(row))
	}
}

// A remote certificate stands in for the one that a peer does not send.
func TestRemoteCertificate(t *testing.T) {
	ca := newAuthority("CA", nil, 0)
	leaf := ca.gateway("b.test", "ecdsa256", nil).Chain[0]
	e := New(Options{Config: &config.Config{Certificates: config.Certificates{CA: []config.CACertificate{{Name: "CA", Read: ca.c}},
		Remote: []config.RemoteCertificate{{Name: "r", Read: leaf}}}}})
	e.now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p1 := &config.Phase1{AuthMethod: "signature", CertIDValidation: true, PeerType: "any"}
	shown := e.present(&message.Message{}, identity{message.IDFQDN, "b.test"})
	if _, err := e.vouched(p1, shown); err != nil || !shown.leaf.Equal(leaf) {
		t.Errorf("%v, %v", shown.leaf, err)
	}
	if _, err := e.vouched(p1, e.present(&message.Message{}, identity{message.IDFQDN, "c.test"})); !errors.Is(err, errNoCertificate) {
		t.Error(err)
	}
	p1.PeerType, p1.Peer = "peer", "gone"
	if _, err := e.vouched(p1, shown); err == nil {
		t.Error("a user peer that does not exist accepts everybody")
	}
}

func TestBears(t *testing.T) {
	c := newAuthority("CA", nil, 0).gateway("b.test", "ecdsa256", nil).Chain[0]
	other, err := asn1.Marshal(pkix.Name{CommonName: "B.Test", Organization: []string{"test"}, OrganizationalUnit: []string{"gateways"}}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	// The order of an RDNSequence counts: CreateCertificate's is O, OU, CN.
	for _, tc := range []struct {
		id   identity
		want bool
	}{
		{identity{message.IDFQDN, "B.TEST"}, true}, {identity{message.IDFQDN, "test"}, false}, {identity{message.IDFQDN, "*.test"}, false},
		{identity{message.IDRFC822, "admin@b.test"}, true}, {identity{message.IDRFC822, "b.test"}, false},
		{identity{message.IDIPv4, string(netip.MustParseAddr(addrB).AsSlice())}, true}, {identity{message.IDIPv4, "xxxx"}, false}, {identity{message.IDIPv4, ""}, false},
		{identity{message.IDDERASN1, string(c.RawSubject)}, true}, {identity{message.IDDERASN1, string(other)}, true}, {identity{message.IDDERASN1, string(c.RawIssuer)}, false},
		{identity{message.IDDERASN1, ""}, false}, {identity{message.IDKeyID, "b.test"}, false}, {identity{0, ""}, false},
	} {
		if got := bears(c, tc.id); got != tc.want {
			t.Errorf("%s %q: %v", tc.id.kind, tc.id.data, got)
		}
	}
}

// FuzzPeerCertificates feeds what a peer may send before it is anybody: certificates, requests, an identity.
func FuzzPeerCertificates(f *testing.F) {
	ca := newAuthority("CA", nil, 0)
	leaf := ca.gateway("b.test", "ecdsa256", nil).Chain[0]
	h := pki.KeyHash(ca.c)
	f.Add(leaf.Raw, ca.c.Raw, h[:], uint8(message.IDDERASN1), leaf.RawSubject)
	f.Add([]byte("junk"), []byte{}, h[:19], uint8(message.IDFQDN), []byte("b.test"))
	f.Add(leaf.Raw, leaf.Raw, []byte{}, uint8(message.IDIPv6), make([]byte, 16))
	e := New(Options{Config: &config.Config{Certificates: config.Certificates{CA: []config.CACertificate{{Name: "CA", Read: ca.c}}}}})
	e.now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p1 := &config.Phase1{AuthMethod: "signature", CertIDValidation: true, PeerType: "any"}
	f.Fuzz(func(t *testing.T, first, second, asked []byte, kind uint8, id []byte) {
		m := &message.Message{Payloads: []message.Payload{&message.Cert{Encoding: 4, Data: first}, &message.Cert{Encoding: 4, Data: second}, &message.CertReq{Encoding: 4, Data: asked}}}
		who := identity{message.IDType(kind), string(id)}
		_ = who.String()
		_ = askedCAs(m)
		idMatches(&config.Phase1{PeerType: "one", PeerID: "O=Test, CN=b.test"}, who)
		p := e.present(m, who)
		if _, err := e.vouched(p1, p); err == nil && (!p.leaf.Equal(leaf) || !bears(p.leaf, who)) {
			t.Errorf("%s is vouched for as %s", pki.Name(p.leaf), who)
		}
	})
}

// A hub with many entries finds the one whose user peer the certificate is, and checks signatures for that
// one only.
func TestManyUserPeers(t *testing.T) {
	const n = 200
	_, a, b := up(t, func(x, y *config.Config) {
		ca := newAuthority("CA", nil, 0)
		signing(x, ca.gateway("a.test", "ecdsa256", nil), ca)
		y.Phase1[0] = phase1To("branch", "")
		signing(y, ca.gateway("b.test", "ecdsa256", nil), ca)
		base := y.Phase1[0]
		y.Phase1, y.Phase2[0].Phase1 = nil, fmt.Sprintf("branch%d", n-1)
		for i := range n {
			p := base
			p.Name, p.PeerType, p.Peer = fmt.Sprintf("branch%d", i), "peer", fmt.Sprintf("peer%d", i)
			u := config.UserPeer{Name: p.Peer, CA: "CA", CN: fmt.Sprintf("branch%d.test", i), CNType: "string"}
			if i == n-1 {
				u.CN = "a.test"
			}
			y.Phase1, y.UserPeers = append(y.Phase1, p), append(y.UserPeers, u)
		}
	})
	if got := b.established()[0].phase1; got != fmt.Sprintf("branch%d", n-1) {
		t.Errorf("matched %s", got)
	}
	a.proof(t)
}
