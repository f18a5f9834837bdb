package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// certCase is one kind of key and signature, as both sides have it.
type certCase struct {
	name, key string
	phase1    []string
	settings  []string // charon's
	remote    string   // what charon demands of our signature beside pubkey
	said      string   // how charon names it
	signature string   // how we name charon's
	classic   bool     // without RFC 7427
}

var certCases = []certCase{
	{name: "RSA with SHA-2", key: "rsa2048", said: "RSA_EMSA_PKCS1_SHA2_512", signature: "RSA with SHA-256"},
	{name: "RSASSA-PSS", key: "rsa2048", phase1: []string{"rsa-signature-format pss"}, settings: []string{"rsa_pss = yes"}, remote: "ike:rsa/pss-sha512",
		said: "RSA_EMSA_PSS_SHA2_512_SALT_64", signature: "RSASSA-PSS with SHA-256"},
	{name: "RSASSA-PSS with SHA-384", key: "rsa2048", phase1: []string{"rsa-signature-format pss", "signature-hash-alg sha2-384"}, settings: []string{"rsa_pss = yes"}, remote: "ike:rsa/pss-sha384",
		said: "RSA_EMSA_PSS_SHA2_384_SALT_48", signature: "RSASSA-PSS with SHA-384"},
	{name: "ECDSA P-256", key: "ecdsa256", said: "ECDSA_WITH_SHA256_DER", signature: "ECDSA with SHA-256"},
	{name: "ECDSA P-384", key: "ecdsa384", said: "ECDSA_WITH_SHA384_DER", signature: "ECDSA with SHA-384"},
	{name: "ECDSA P-521", key: "ecdsa521", said: "ECDSA_WITH_SHA512_DER", signature: "ECDSA with SHA-512"},
	{name: "Ed25519", key: "ed25519", said: "ED25519", signature: "Ed25519"},
	{name: "ECDSA P-256 without RFC 7427", key: "ecdsa256", settings: []string{"signature_authentication = no"}, classic: true,
		said: "ECDSA-256 signature", signature: "ECDSA with SHA-256"},
	{name: "ECDSA P-384 without RFC 7427", key: "ecdsa384", settings: []string{"signature_authentication = no"}, classic: true,
		said: "ECDSA-384 signature", signature: "ECDSA with SHA-384"},
	{name: "ECDSA P-521 without RFC 7427", key: "ecdsa521", settings: []string{"signature_authentication = no"}, classic: true,
		said: "ECDSA-521 signature", signature: "ECDSA with SHA-512"},
	{name: "RSA without RFC 7427, SHA-1 by policy", key: "rsa2048", settings: []string{"signature_authentication = no"}, classic: true,
		phase1: []string{"signature-hash-alg sha2-256 sha1"}, said: "RSA signature", signature: "RSA with SHA-1"},
}

// TestCertificates: every kind of key and signature, charon and the gateway beginning in turn. Both
// sides tell their hashes where RFC 7427 is spoken, and the signature is what the case says.
func TestCertificates(t *testing.T) {
	for _, c := range certCases {
		for _, direction := range []string{"responder", "initiator"} {
			t.Run(c.name+"/"+direction, func(t *testing.T) {
				t.Parallel()
				s := build(t, sitesPlan())
				a := newAuthority(t, c.key)
				a.issue("gw.test")
				cn := a.client(conn{}, a.issue("peer.test"))
				if c.remote != "" {
					cn.remote2 = "auth = " + c.remote
				}
				ch := s.charon("peer", cn, c.settings...)
				more := c.phase1
				if direction == "initiator" {
					more = append([]string{"auto-negotiate enable"}, more...)
				}
				g := s.gateway("gw", gwConf{phase1: []entry{signing(more...)}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}, more: a.blocks("gw.test")})
				if direction == "responder" {
					ch.up()
				}
				st := g.wantUp("vpn1", direction)
				if st.PeerID != "CN=peer.test" || st.Certificate == nil || st.Certificate.Subject != "CN=peer.test" || st.Certificate.Signature != c.signature {
					t.Errorf("status: %+v %+v", st, st.Certificate)
				}
				if text := g.must("diagnose vpn ike gateway list"); !strings.Contains(text, "peer-signature: "+c.signature) || !strings.Contains(text, "peer-certificate-expires: 20") {
					t.Errorf("diagnose: %s", text)
				}
				ch.says(`authentication of 'CN=gw.test' with ` + c.said + ` successful`)
				hashes := ch.said(`(parsed|generating) IKE_SA_INIT (request|response) 0 \[[^\]]*N\(HASH_ALG\)`)
				if want := map[bool]int{true: 0, false: 2}[c.classic]; hashes != want && !(c.classic && hashes == 1 && direction == "initiator") {
					t.Errorf("SIGNATURE_HASH_ALGORITHMS in %d messages, want %d", hashes, want)
				}
				if ch.said(`IKE_SA_INIT response 0 \[[^\]]*CERTREQ`) != 1 || ch.said(`IKE_AUTH request 1 \[[^\]]*CERTREQ`) != 1 || ch.said(`IKE_AUTH (request|response) 1 \[[^\]]*CERT `) != 2 {
					t.Error("CERT and CERTREQ are not where they belong")
				}
				s.wantPing("host", "10.1.0.10", "10.2.0.10")
			})
		}
	}
}

// refusedCase is a certificate of charon's that proves nothing to the gateway.
type refusedCase struct {
	name, key string
	phase1    []string
	settings  []string
	change    func(a *authority, c *conn) (more string)
	reason    string
	only      string // one direction
}

var refusedCases = []refusedCase{
	{name: "untrusted CA", change: func(a *authority, c *conn) string {
		other := newAuthority(a.t, a.key)
		*c = other.client(conn{}, other.issue("peer.test"))
		c.files["x509ca/ours.pem"] = a.read("ca.crt")
		return ""
	}, reason: "no configured CA vouches for"},
	{name: "expired", change: func(a *authority, c *conn) string {
		issueExpired(a, "old.test")
		*c = a.client(conn{}, "old.test")
		return ""
	}, reason: "expired on"},
	{name: "revoked", change: func(a *authority, c *conn) string {
		a.pki("revoke", "peer.test")
		return "config vpn certificate crl\n    edit ca\n        set crl \"" + a.path("ca.crl") + "\"\n    next\nend\n"
	}, reason: "is revoked"},
	{name: "no list where one is demanded", change: func(a *authority, c *conn) string {
		return "config vpn certificate setting\n    set strict-crl-check enable\nend\n"
	}, reason: "there is no revocation list"},
	{name: "another identity", phase1: []string{"peertype one", "peerid \"CN=other.test\""}, reason: "no gateway accepts the peer identifier|is not accepted"},
	{name: "an identity that the certificate does not bear", change: func(_ *authority, c *conn) string {
		c.id = "elsewhere.test"
		return ""
	}, reason: "does not bear the identity elsewhere.test"},
	{name: "user peer", phase1: []string{"peertype peer", "peer branch"}, change: func(*authority, *conn) string {
		return "config user peer\n    edit branch\n        set cn branch.test\n    next\nend\n"
	}, reason: "is none of peer branch"},
	{name: "SHA-1 that is not allowed", key: "rsa2048", settings: []string{"signature_authentication = no"}, reason: "signature by RSA with SHA-1 is not allowed",
		only: "responder"}, // as responder charon refuses our SHA-2 before it signs anything
}

// TestCertificatesRefused: whoever begins, the gateway refuses and says why; the peer hears only that
// it failed, and nothing stands.
func TestCertificatesRefused(t *testing.T) {
	for _, c := range refusedCases {
		for _, direction := range []string{"responder", "initiator"} {
			if c.only != "" && c.only != direction {
				continue
			}
			t.Run(c.name+"/"+direction, func(t *testing.T) {
				t.Parallel()
				s := wire(t)
				wan := s.tap("gw", "wan0")
				a := newAuthority(t, or(c.key, "ecdsa256"))
				a.issue("gw.test")
				cn, more := a.client(conn{}, a.issue("peer.test")), ""
				if c.change != nil {
					more = c.change(a, &cn)
				}
				ch := s.charon("peer", cn, c.settings...)
				lines := c.phase1
				if direction == "initiator" {
					lines = append([]string{"auto-negotiate enable"}, lines...)
				}
				g := s.gateway("gw", gwConf{phase1: []entry{signing(lines...)}, phase2: []entry{netPhase2()}, more: a.blocks("gw.test") + more})
				if direction == "responder" {
					if err := ch.Initiate(ch.ctx, "net", 5*time.Second); err == nil {
						t.Fatal("established")
					}
				}
				wantRefused(g, "ike_authentication_refused")
				wan.onlyKinds(kindIKE)
				ch.wantNone()
				text, err := os.ReadFile(g.proc.LogPath)
				if err != nil {
					t.Fatal(err)
				}
				ok := false
				for _, r := range strings.Split(c.reason, "|") {
					ok = ok || strings.Contains(string(text), r)
				}
				if !ok {
					t.Errorf("the log does not say %q", c.reason)
				}
			})
		}
	}
}

// TestCertificateReload: a new certificate and a new list are read without a tunnel falling; the revoked
// peer does not come back.
func TestCertificateReload(t *testing.T) {
	t.Parallel()
	s := build(t, sitesPlan())
	a := newAuthority(t, "ecdsa256")
	a.issue("gw.test")
	ch := s.charon("peer", a.client(conn{}, a.issue("peer.test")))
	conf := gwConf{phase1: []entry{signing()}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")},
		more: a.blocks("gw.test") + fmt.Sprintf("config vpn certificate crl\n    edit ca\n        set crl %q\n    next\nend\n", a.path("ca.crl"))}
	g := s.gateway("gw", conf)
	ch.up()
	before := g.wantUp("vpn1", "responder")
	for _, n := range []string{"gw.test.crt", "gw.test.key"} {
		if err := os.Remove(a.path(n)); err != nil {
			t.Fatal(err)
		}
	}
	a.issue("gw.test")
	a.pki("revoke", "peer.test")
	g.must("execute reload")
	if st := g.wantUp("vpn1", "responder"); st.SAs[0].SPIr != before.SAs[0].SPIr || st.Created != before.Created {
		t.Errorf("the tunnel fell: %+v, before %+v", st, before)
	}
	s.wantPing("host", "10.1.0.10", "10.2.0.10")
	if err := os.Chmod(a.path("gw.test.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := g.cli("execute reload"); err == nil {
		t.Errorf("a key that others can read is taken: %s", out)
	}
	ch.down(g)
	if err := ch.Initiate(ch.ctx, "net", 5*time.Second); err == nil {
		t.Error("a revoked peer came back")
	}
}

// TestCertificateChain: both sides have a certificate of a CA that the other does not know, below one that
// it does, and send both.
func TestCertificateChain(t *testing.T) {
	for _, direction := range []string{"responder", "initiator"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			s := build(t, sitesPlan())
			root, between := newChain(t)
			between.issue("gw.test")
			cn := between.client(conn{}, between.issue("peer.test"))
			cn.files["x509ca/ca.pem"] = root
			cn.files["x509/between.pem"] = between.read("ca.crt")
			cn.files["x509/own.pem"] = between.read("peer.test.crt")
			cn.local2 = "auth = pubkey\n certs = own.pem"
			ch := s.charon("peer", cn)
			if err := errors.Join(os.WriteFile(between.path("chain.crt"), append(between.read("gw.test.crt"), between.read("ca.crt")...), 0o600),
				os.WriteFile(between.path("root.crt"), root, 0o600)); err != nil {
				t.Fatal(err)
			}
			blocks := strings.NewReplacer(between.path("ca.crt"), between.path("root.crt"), between.path("gw.test.crt"), between.path("chain.crt")).Replace(between.blocks("gw.test"))
			var more []string
			if direction == "initiator" {
				more = []string{"auto-negotiate enable"}
			}
			g := s.gateway("gw", gwConf{phase1: []entry{signing(more...)}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}, more: blocks})
			if direction == "responder" {
				ch.up()
			}
			if st := g.wantUp("vpn1", direction); st.Certificate == nil || st.Certificate.Subject != "CN=peer.test" {
				t.Errorf("status: %+v", st)
			}
			ch.says(`received issuer cert`)
			if ch.said(`IKE_AUTH (request|response) 1 \[[^\]]*CERT CERT`) != 2 {
				t.Error("not both sides send two certificates")
			}
			s.wantPing("host", "10.1.0.10", "10.2.0.10")
		})
	}
}

// TestOCSP: the gateway asks the responder that the peer's certificate names. Good: up. Revoked: refused. No
// answer: as the policy has it.
func TestOCSP(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		status     int // of the responder; -1: there is none
		up         bool
	}{
		{"good", "mandatory", ocsp.Good, true},
		{"revoked", "enable", ocsp.Revoked, false},
		{"no answer where one is demanded", "mandatory", -1, false},
		{"no answer where none is", "enable", -1, true},
	} {
		for _, direction := range []string{"responder", "initiator"} {
			t.Run(c.name+"/"+direction, func(t *testing.T) {
				t.Parallel()
				s := build(t, sitesPlan())
				a := newAuthority(t, "ecdsa256")
				a.issue("gw.test")
				cn := a.client(conn{}, a.issue("peer.test", "--ocsp", "http://"+peerWAN+":8080/"))
				asked := s.responder("peer", peerWAN+":8080", a, c.status)
				// charon is not to ask on its own about us, whose certificate names nobody.
				ch := s.charon("peer", cn)
				var more []string
				if direction == "initiator" {
					more = []string{"auto-negotiate enable"}
				}
				g := s.gateway("gw", gwConf{phase1: []entry{signing(more...)}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")},
					more: a.blocks("gw.test") + "config vpn certificate setting\n    set ocsp-status " + c.mode + "\nend\n"})
				if direction == "responder" {
					if err := ch.Initiate(ch.ctx, "net", 20*time.Second); (err == nil) != c.up {
						t.Fatalf("up %v: %v", c.up, err)
					}
				}
				if c.up {
					g.wantUp("vpn1", direction)
					s.wantPing("host", "10.1.0.10", "10.2.0.10")
				} else {
					wantRefused(g, "ike_authentication_refused")
					ch.wantNone()
				}
				if n := asked(); c.status >= 0 && n != 1 {
					t.Errorf("the responder was asked %d times", n)
				}
			})
		}
	}
}
