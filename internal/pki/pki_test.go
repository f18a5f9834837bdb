package pki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/needs"
)

var testNow = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func dn(t testing.TB, text string) []byte {
	t.Helper()
	var seq pkix.RDNSequence
	oids := map[string]asn1.ObjectIdentifier{"C": {2, 5, 4, 6}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "CN": {2, 5, 4, 3}, "DC": {0, 9, 2342, 19200300, 100, 1, 25}, "9.9": {2, 9, 9}}
	for _, a := range parseDN(text) {
		seq = append(seq, pkix.RelativeDistinguishedNameSET{{Type: oids[a.name], Value: a.value}})
	}
	b, err := asn1.Marshal(seq)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDistinguishedNames(t *testing.T) {
	der := dn(t, "C=CH, O=strongSwan Project, OU=Sales, CN=moon.strongswan.org")
	if s := DNString(der); s != "C=CH, O=strongSwan Project, OU=Sales, CN=moon.strongswan.org" {
		t.Error(s)
	}
	for text, want := range map[string]bool{
		"C=CH, O=strongSwan Project, OU=Sales, CN=moon.strongswan.org": true,
		"cn=MOON.strongswan.org,ou=sales,o=strongSwan  project,c=ch":   true,
		"/C=CH/O=strongSwan Project/OU=Sales/CN=moon.strongswan.org":   true,
		"CN=moon.strongswan.org": false,
		"C=CH, OU=Sales, O=strongSwan Project, CN=moon.strongswan.org":      false,
		"C=CH, O=strongSwan Project, OU=Sales, CN=moon.strongswan.org, O=x": false,
		"": false, "moon": false,
	} {
		if MatchDN(der, text) != want {
			t.Errorf("MatchDN %q is %v", text, !want)
		}
	}
	for text, want := range map[string]bool{"O=strongSwan Project": true, "OU=Sales, C=CH": true, "": true, "OU=Research": false, "OU=Sales, CN=sun": false} {
		if ContainsDN(der, text) != want {
			t.Errorf("ContainsDN %q is %v", text, !want)
		}
	}
	if !EqualDN(der, dn(t, "C=ch, O=strongswan project, OU=SALES, CN=moon.strongswan.org")) || EqualDN(der, dn(t, "CN=moon.strongswan.org, OU=Sales, O=strongSwan Project, C=CH")) || EqualDN(der, nil) || EqualDN([]byte{1}, []byte{2}) {
		t.Error("EqualDN")
	}
	// What a comma or a control character in a name is taken for.
	odd := dn(t, `O=Example\, Inc., CN=a`)
	if s := DNString(odd); s != `O=Example\, Inc., CN=a` || !MatchDN(odd, s) || MatchDN(odd, "O=Example, Inc., CN=a") {
		t.Error(s)
	}
	if s := DNString(dn(t, "CN=a\nb")); s != "CN=a?b" {
		t.Errorf("%q", s)
	}
	if s := DNString(dn(t, "9.9=x")); s != "2.9.9=x" {
		t.Error(s)
	}
	if s := DNString([]byte{0xff}); s != "ff" {
		t.Error(s)
	}
}

// made is a folder with a CA, a gateway's certificate of each kind of key, and a revoked one.
func made(t *testing.T, key string) (dir string, ca, leaf *x509.Certificate) {
	t.Helper()
	dir = t.TempDir()
	a, err := CreateCA(dir, "Test CA", "Example", key, 24*time.Hour*365, testNow)
	if err != nil {
		t.Fatal(err)
	}
	i, err := Issue(dir, Request{Name: "gw.test", DNS: []string{"gw.test"}, Emails: []string{"a@b.c"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Key: key, Validity: 24 * time.Hour * 3650}, testNow)
	if err != nil {
		t.Fatal(err)
	}
	return dir, a.Certificate, i.Certificate
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is issued is what openssl reads, vouched for by its CA and no longer valid than that.
func TestIssue(t *testing.T) {
	needs.Program(t, "openssl")
	for _, kind := range []string{"ecdsa256", "ecdsa384", "ecdsa521", "rsa2048", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dir, ca, leaf := made(t, kind)
			trust := &Trust{CAs: []*x509.Certificate{ca}}
			if chain, _, err := trust.Verify(leaf, nil, nil, testNow); err != nil || len(chain) != 2 {
				t.Errorf("%d, %v", len(chain), err)
			}
			if !leaf.NotAfter.Equal(ca.NotAfter) || DNString(leaf.RawSubject) != "O=Example, CN=gw.test" || len(leaf.IPAddresses) != 2 || leaf.IsCA {
				t.Errorf("%+v", leaf.Subject)
			}
			k, err := ParseKey(read(t, dir, "gw.test.key"))
			if err != nil || !Fits(leaf, k) || Fits(ca, k) {
				t.Error(err)
			}
			for _, f := range []string{"ca.key", "gw.test.key"} {
				if i, err := os.Stat(filepath.Join(dir, f)); err != nil || i.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v %v", f, i.Mode(), err)
				}
			}
			at := "1772409600" // 2026-03-02
			out, err := exec.Command("openssl", "verify", "-attime", at, "-crl_check", "-CRLfile", filepath.Join(dir, "ca.crl"), "-CAfile", filepath.Join(dir, "ca.crt"), filepath.Join(dir, "gw.test.crt")).CombinedOutput()
			if err != nil {
				t.Errorf("openssl: %s", out)
			}
			if _, serials, err := Revoke(dir, []string{"gw.test", "gw.test"}, testNow); err != nil || len(serials) != 1 {
				t.Fatal(serials, err)
			}
			if out, err := exec.Command("openssl", "verify", "-attime", at, "-crl_check", "-CRLfile", filepath.Join(dir, "ca.crl"), "-CAfile", filepath.Join(dir, "ca.crt"), filepath.Join(dir, "gw.test.crt")).CombinedOutput(); err == nil || !strings.Contains(string(out), "certificate revoked") {
				t.Errorf("openssl takes a revoked one: %s", out)
			}
			if _, err := Issue(dir, Request{Name: "gw.test", Key: kind, Validity: time.Hour}, testNow); err == nil || !strings.Contains(err.Error(), "never overwritten") {
				t.Error(err)
			}
			if _, err := CreateCA(dir, "x", "", kind, time.Hour, testNow); err == nil {
				t.Error("a CA is overwritten")
			}
			for _, bad := range []string{"", "ca", "../x", ".x", "a b", strings.Repeat("x", 65)} {
				if _, err := Issue(dir, Request{Name: bad, Key: kind, Validity: time.Hour}, testNow); err == nil {
					t.Errorf("name %q", bad)
				}
			}
			if _, err := Issue(dir, Request{Name: "x", Key: "rsa512", Validity: time.Hour}, testNow); err == nil {
				t.Error("key type rsa512")
			}
		})
	}
	if _, err := Issue(t.TempDir(), Request{Name: "x", Key: "ecdsa256"}, testNow); err == nil || !strings.Contains(err.Error(), "tandem pki ca") {
		t.Error(err)
	}
}

// Keys and certificates that openssl made are read, whatever their form; what IKE cannot use is not.
func TestOpenSSL(t *testing.T) {
	needs.Program(t, "openssl")
	dir := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		c := exec.Command("openssl", args...)
		c.Dir = dir
		out, err := c.Output()
		if err != nil {
			t.Fatalf("openssl %v: %v", args, err)
		}
		return out
	}
	run("ecparam", "-name", "prime256v1", "-genkey", "-out", "ec.key") // EC PARAMETERS before the key
	run("genrsa", "-traditional", "-out", "rsa.key", "2048")
	run("genrsa", "-out", "short.key", "1024")
	run("ecparam", "-name", "secp256k1", "-genkey", "-out", "odd.key")
	run("pkcs8", "-topk8", "-v2", "aes256", "-passout", "pass:x", "-in", "rsa.key", "-out", "enc.key")
	for _, n := range []string{"ec", "rsa"} {
		text := read(t, dir, n+".key")
		k, err := ParseKey(text)
		if err != nil {
			t.Errorf("%s: %v", n, err)
			continue
		}
		der, err := MarshalKey(k)
		if err != nil {
			t.Error(err)
		}
		if again, err := UnmarshalKey(der); err != nil || !again.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(k.Public()) {
			t.Errorf("%s: read back: %v", n, err)
		}
		run("req", "-x509", "-key", n+".key", "-days", "10", "-subj", "/O=Example/CN="+n, "-out", n+".crt")
		cs, err := ParseCertificates(append(run("x509", "-in", n+".crt", "-text"), read(t, dir, n+".crt")...), 2)
		if err != nil || len(cs) != 2 || !Fits(cs[0], k) || Name(cs[0]) != "O=Example, CN="+n {
			t.Errorf("%s: %v", n, err)
		}
		if _, err := ParseCertificates(append(read(t, dir, n+".crt"), read(t, dir, n+".crt")...), 1); err == nil {
			t.Error("two are one")
		}
	}
	for n, want := range map[string]string{"short": "1024 bits", "odd": "cannot be read", "enc": "is encrypted"} {
		if _, err := ParseKey(read(t, dir, n+".key")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", n, err)
		}
	}
	if _, err := ParseKey(nil); err == nil {
		t.Error("nothing is a key")
	}
}

// Lists that say less than everything about one CA are not taken for it.
func TestCRL(t *testing.T) {
	dir, ca, leaf := made(t, "ecdsa256")
	_, other, _ := made(t, "ecdsa256")
	text := read(t, dir, "ca.crl")
	l, err := ParseCRL(text, []*x509.Certificate{other, ca})
	if err != nil || l.Issuer != ca || l.Revoked(leaf) || !l.Equal(l) || l.Equal(nil) {
		t.Fatal(err)
	}
	b, _ := pem.Decode(text)
	if _, err := ParseCRL(b.Bytes, []*x509.Certificate{ca}); err != nil {
		t.Errorf("DER: %v", err)
	}
	if _, err := ParseCRL(text, []*x509.Certificate{other}); err == nil {
		t.Error("of the same name and another key")
	}
	if _, err := ParseCRL(read(t, dir, "ca.crt"), []*x509.Certificate{ca}); err == nil {
		t.Error("a certificate is a list")
	}
	a, err := openCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, oid := range []asn1.ObjectIdentifier{{2, 5, 29, 27}, {2, 5, 29, 28}} { // delta; of some certificates only
		der, err := x509.CreateRevocationList(strings.NewReader(strings.Repeat("r", 1000)), &x509.RevocationList{Number: big.NewInt(9), ThisUpdate: testNow, NextUpdate: testNow.Add(time.Hour),
			ExtraExtensions: []pkix.Extension{{Id: oid, Critical: true, Value: []byte{2, 1, 1}}}}, a.c, a.k)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCRL(der, []*x509.Certificate{ca}); err == nil || !strings.Contains(err.Error(), "critical extension") {
			t.Errorf("%v: %v", oid, err)
		}
	}
	trust := &Trust{CAs: []*x509.Certificate{ca}, CRLs: []*CRL{l}}
	late := testNow.Add(40 * 24 * time.Hour)
	if _, notes, err := trust.Verify(leaf, nil, nil, late); err != nil || len(notes) != 1 {
		t.Errorf("out of date: %v, %v", notes, err)
	}
	trust.Policy.Expired = true
	if _, _, err := trust.Verify(leaf, nil, nil, late); err == nil || !strings.Contains(err.Error(), "out of date") {
		t.Errorf("out of date by policy: %v", err)
	}
	// The later list counts.
	if _, _, err := Revoke(dir, []string{"gw.test"}, testNow.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	newer, err := ParseCRL(read(t, dir, "ca.crl"), []*x509.Certificate{ca})
	if err != nil || newer.Equal(l) {
		t.Fatal(err)
	}
	for _, lists := range [][]*CRL{{l, newer}, {newer, l}} {
		trust.CRLs = lists
		if _, _, err := trust.Verify(leaf, nil, nil, testNow.Add(2*time.Hour)); err == nil || !strings.Contains(err.Error(), "is revoked") {
			t.Errorf("revoked: %v", err)
		}
	}
}

func FuzzPEM(f *testing.F) {
	dir := f.TempDir()
	if _, err := CreateCA(dir, "CA", "", "ed25519", time.Hour, testNow); err != nil {
		f.Fatal(err)
	}
	for _, n := range []string{CAFile, CAKeyFile, CRLFile} {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cs, err := ParseCertificates(text, 3)
		if err == nil && (len(cs) == 0 || len(cs) > 3) {
			t.Errorf("%d certificates", len(cs))
		}
		for _, c := range cs {
			_ = Name(c)
			trust := &Trust{CAs: []*x509.Certificate{c}}
			_, _, _ = trust.Verify(c, cs, c, testNow)
		}
		_ = Order(cs)
		if k, err := ParseKey(text); err == nil && k == nil {
			t.Error("no key")
		}
		_, _ = ParseCRL(text, cs)
	})
}

func FuzzDN(f *testing.F) {
	f.Add(dn(f, "C=CH, O=x, CN=y"), "C=CH, O=x, CN=y")
	f.Add([]byte{0x30, 0}, "/C=CH/CN=\\")
	f.Fuzz(func(t *testing.T, der []byte, text string) {
		s := DNString(der)
		if strings.ContainsAny(s, "\n\r\x00") {
			t.Errorf("%q", s)
		}
		if MatchDN(der, text) && !ContainsDN(der, text) {
			t.Errorf("%q matches %q and is not contained", text, s)
		}
		if !EqualDN(der, der) {
			t.Error("differs from itself")
		}
	})
}
