package ike

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"tandem/ike/keymat"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

// testKey is one key of a kind and number, made once for all tests: RSA keys take their time.
var testKey = func() func(kind string, n int) crypto.Signer {
	var mu sync.Mutex
	type id struct {
		kind string
		n    int
	}
	made := map[id]crypto.Signer{}
	return func(kind string, n int) crypto.Signer {
		mu.Lock()
		defer mu.Unlock()
		k := made[id{kind, n}]
		if k == nil {
			var err error
			if k, err = pki.GenerateKey(kind); err != nil {
				panic(err)
			}
			made[id{kind, n}] = k
		}
		return k
	}
}()

// testAuthority is a CA of the tests.
type testAuthority struct {
	c *x509.Certificate
	k crypto.Signer
}

var testSerial int64

// issue makes a certificate; by nil it is its own issuer. The tests' time is the beginning of 2026.
func issue(by *testAuthority, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	testSerial++
	c := &x509.Certificate{SerialNumber: big.NewInt(testSerial), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	change(c)
	issuer, signer := c, key
	if by != nil {
		issuer, signer = by.c, by.k
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, key.Public(), signer)
	if err != nil {
		panic(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return out
}

func newAuthority(name string, by *testAuthority, n int) *testAuthority {
	k := testKey("ecdsa256", 100+n)
	return &testAuthority{issue(by, k, func(c *x509.Certificate) {
		c.Subject, c.IsCA, c.KeyUsage = pkix.Name{CommonName: name, Organization: []string{"Test"}}, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}), k}
}

// gateway makes an own certificate with names for gateway A or B.
func (a *testAuthority) gateway(name, kind string, change func(*x509.Certificate), above ...*x509.Certificate) config.LocalCertificate {
	n := 0
	if name != "a.test" {
		n = 1
	}
	k := testKey(kind, n)
	c := issue(a, k, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: name, Organization: []string{"Test"}, OrganizationalUnit: []string{"Gateways"}}
		c.DNSNames, c.EmailAddresses = []string{name}, []string{"admin@" + name}
		c.IPAddresses = []net.IP{net.ParseIP(map[int]string{0: addrA, 1: addrB}[n])}
		if change != nil {
			change(c)
		}
	})
	der, err := pki.MarshalKey(k)
	if err != nil {
		panic(err)
	}
	return config.LocalCertificate{Name: "own", Chain: append([]*x509.Certificate{c}, above...), Key: ipsec.NewKey(der)}
}

func (a *testAuthority) crl(revoked ...*x509.Certificate) *pki.CRL {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC), NextUpdate: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: l.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, a.c, a.k)
	if err != nil {
		panic(err)
	}
	out, err := pki.ParseCRL(der, []*x509.Certificate{a.c})
	if err != nil {
		panic(err)
	}
	return out
}

// signing has a configuration's first phase 1 prove itself by certificates, and trust some CAs.
func signing(c *config.Config, own config.LocalCertificate, cas ...*testAuthority) {
	p := &c.Phase1[0]
	p.AuthMethod, p.Certificate, p.PSK = "signature", []string{own.Name}, ipsec.Key{}
	p.CertIDValidation, p.DigitalSignatureAuth, p.RSASignatureFormat = true, true, "pkcs1"
	p.SignatureHash = []string{"sha2-512", "sha2-384", "sha2-256"}
	c.Certificates.Local = append(c.Certificates.Local, own)
	for _, a := range cas {
		c.Certificates.CA = append(c.Certificates.CA, config.CACertificate{Name: a.c.Subject.CommonName, Read: a.c})
	}
}

// signed is a change for pair: both sides have a certificate of one CA, of a kind of key.
func signed(kind string) func(a, b *config.Config) {
	ca := newAuthority("CA", nil, 0)
	return func(a, b *config.Config) {
		signing(a, ca.gateway("a.test", kind, nil), ca)
		signing(b, ca.gateway("b.test", kind, nil), ca)
	}
}

// countingSigner counts how often a key was used.
type countingSigner struct {
	crypto.Signer
	n *int
}

func (s countingSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	*s.n++
	return s.Signer.Sign(r, digest, opts)
}

// countSignatures counts what a side signs from now on.
func (s *side) countSignatures() *int {
	n := new(int)
	for _, c := range s.e.creds().own {
		c.key = countingSigner{c.key, n}
	}
	return n
}

func (s *side) proof(t *testing.T) *peerAuth {
	t.Helper()
	sas := s.established()
	if len(sas) != 1 {
		t.Fatalf("%s: %v", s.name, describe(s.ike()))
	}
	if sas[0].peerAuth == nil {
		t.Fatalf("%s knows no certificate of its peer", s.name)
	}
	return sas[0].peerAuth
}

func rsaScheme(h keymat.HashID, pss bool) keymat.Scheme {
	return keymat.Scheme{Key: keymat.KeyRSA, Hash: h, PSS: pss}
}
