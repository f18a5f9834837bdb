package pki

import (
	"crypto"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Only an answer of now, about this certificate, by its issuer or by whom that named for it, counts.
func TestOCSP(t *testing.T) {
	dir, ca, leaf := made(t, "ecdsa256")
	a, err := openCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, otherCA, _ := made(t, "ecdsa256")
	issue := func(name string, change func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
		k, err := GenerateKey("ecdsa256")
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: Serial(), NotBefore: testNow.Add(-time.Hour), NotAfter: testNow.Add(time.Hour)}
		c.Subject.CommonName = name
		change(c)
		der, err := x509.CreateCertificate(nil, c, a.c, k.Public(), a.k)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c, k
	}
	named, namedKey := issue("responder", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} })
	peer, peerKey := issue("peer", func(*x509.Certificate) {})
	old, oldKey := issue("old responder", func(c *x509.Certificate) {
		c.ExtKeyUsage, c.NotAfter = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, testNow.Add(-time.Minute)
	})
	answer := func(status int, by *x509.Certificate, k crypto.Signer, change func(*ocsp.Response)) []byte {
		r := ocsp.Response{Status: status, SerialNumber: leaf.SerialNumber, ThisUpdate: testNow.Add(-time.Minute), NextUpdate: testNow.Add(time.Hour), RevokedAt: testNow}
		if by != ca {
			r.Certificate = by
		}
		if change != nil {
			change(&r)
		}
		der, err := ocsp.CreateResponse(ca, by, r, k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for _, tc := range []struct {
		name string
		der  []byte
		want Status
		err  string
	}{
		{"good", answer(ocsp.Good, ca, a.k, nil), Good, ""},
		{"revoked", answer(ocsp.Revoked, ca, a.k, nil), Revoked, ""},
		{"unknown", answer(ocsp.Unknown, ca, a.k, nil), Unavailable, "does not know"},
		{"by whom the CA named", answer(ocsp.Good, named, namedKey, nil), Good, ""},
		{"by another certificate of the CA", answer(ocsp.Good, peer, peerKey, nil), Unavailable, "has not named for it"},
		{"by one whose time is over", answer(ocsp.Good, old, oldKey, nil), Unavailable, "expired"},
		{"by nobody", answer(ocsp.Good, ca, peerKey, nil), Unavailable, ""},
		{"of another certificate", answer(ocsp.Good, ca, a.k, func(r *ocsp.Response) { r.SerialNumber = peer.SerialNumber }), Unavailable, ""},
		{"of yesterday", answer(ocsp.Good, ca, a.k, func(r *ocsp.Response) { r.NextUpdate = testNow.Add(-time.Hour) }), Unavailable, "not of now"},
		{"of tomorrow", answer(ocsp.Good, ca, a.k, func(r *ocsp.Response) { r.ThisUpdate = testNow.Add(24 * time.Hour) }), Unavailable, "not of now"},
		{"error", ocsp.TryLaterErrorResponse, Unavailable, ""},
		{"nothing", nil, Unavailable, ""},
		{"too long", make([]byte, MaxOCSP+1), Unavailable, "more than"},
	} {
		got, _, err := ParseOCSP(tc.der, leaf, ca, testNow)
		if got != tc.want || (err == nil) != (tc.want != Unavailable) || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %d, %v", tc.name, got, err)
		}
	}
	if got, _, err := ParseOCSP(answer(ocsp.Good, ca, a.k, nil), leaf, otherCA, testNow); got != Unavailable || err == nil {
		t.Error("another CA's word counts")
	}
	if _, until, err := ParseOCSP(answer(ocsp.Good, ca, a.k, func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), leaf, ca, testNow); err != nil || !until.Equal(testNow.Add(59*time.Minute)) {
		t.Errorf("without an end: %v, %v", until, err)
	}
	if der, err := OCSPRequest(leaf, ca); err != nil {
		t.Error(err)
	} else if r, err := ocsp.ParseRequest(der); err != nil || r.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzOCSP(f *testing.F) {
	dir := f.TempDir()
	i, err := CreateCA(dir, "CA", "", "ecdsa256", time.Hour, testNow)
	if err != nil {
		f.Fatal(err)
	}
	a, err := openCA(dir)
	if err != nil {
		f.Fatal(err)
	}
	der, err := ocsp.CreateResponse(a.c, a.c, ocsp.Response{Status: ocsp.Good, SerialNumber: i.Certificate.SerialNumber, ThisUpdate: testNow, NextUpdate: testNow.Add(time.Hour)}, a.k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der[:len(der)-1])
	f.Add(ocsp.UnauthorizedErrorResponse)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, _, err := ParseOCSP(b, a.c, a.c, testNow); err == nil && string(b) != string(der) {
			t.Errorf("status %d", s)
		}
	})
}
