package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

var certNow = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// testPKI is a CA with a gateway's certificate, and another CA beside it.
type testPKI struct{ dir, other string }

func newTestPKI(t *testing.T) testPKI {
	t.Helper()
	p := testPKI{t.TempDir(), t.TempDir()}
	for _, dir := range []string{p.dir, p.other} {
		if _, err := pki.CreateCA(dir, "Test CA "+filepath.Base(dir), "", "ecdsa256", 3650*24*time.Hour, certNow); err != nil {
			t.Fatal(err)
		}
		for name, days := range map[string]int{"gw": 365, "short": 10} {
			if _, err := pki.Issue(dir, pki.Request{Name: name, DNS: []string{name}, Key: "ecdsa256", Validity: time.Duration(days) * 24 * time.Hour}, certNow); err != nil {
				t.Fatal(err)
			}
		}
	}
	return p
}

func (p testPKI) read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// conf has a CA, an own certificate, and a phase 1 that uses both; a PEM text is one line of the count
// of lines that faults name.
func certConf(ca, cert, key, more string) string {
	return "config vpn certificate ca\nedit ca\nset ca \"" + ca + "\"\nnext\nend\nconfig vpn certificate local\nedit gw\nset certificate \"" + cert +
		"\"\nset private-key \"" + key + "\"\nnext\nend\n" + more +
		"config vpn ipsec phase1-interface\nedit vpn1\nset interface wan\nset remote-gw 203.0.113.1\nset authmethod signature\nset certificate gw\nnext\nend\n"
}

// What is wrong with a certificate is said with file and line, and never repeats a key.
func TestCertificateFaults(t *testing.T) {
	p := newTestPKI(t)
	files := func(name string) string { return filepath.Join(p.dir, name) }
	ca, cert, key := files("ca.crt"), files("gw.crt"), files("gw.key")
	asked := map[string]bool{}
	open := func(path string, private bool) ([]byte, error) {
		asked[path] = private
		return os.ReadFile(path)
	}
	crl := "config vpn certificate crl\nedit crl\nset crl \"" + files("ca.crl") + "\"\nnext\nend\n"
	otherCRL := strings.Replace(crl, p.dir, p.other, 1)
	inline := certConf(p.read(t, ca), p.read(t, cert), p.read(t, key), "")
	for _, tc := range []struct {
		name, text string
		now        time.Time
		want       string // empty: it loads
		warning    string
	}{
		{"files", certConf(ca, cert, key, crl), certNow, "", ""},
		{"texts", inline, certNow, "", ""},
		{"chain", certConf(ca, cert, key, "config vpn certificate remote\nedit r\nset remote "+cert+"\nnext\nend\n"), certNow, "", ""},
		{"no file", certConf(ca, files("none.crt"), key, ""), certNow, "f:8: certificate gw: certificate (" + files("none.crt") + ") cannot be read: ", ""},
		{"another's key", certConf(ca, cert, files("short.key"), ""), certNow, "f:9: certificate gw: private-key is not the key of the certificate (CN=gw)", ""},
		{"a key as certificate", certConf(ca, key, key, ""), certNow, "f:8: certificate gw: certificate holds a private key, which does not belong here", ""},
		{"a certificate as key", certConf(ca, cert, strings.Replace(key, "gw.key", "gw.crt", 1), ""), certNow, "f:9: certificate gw: private-key holds no private key", ""},
		{"no CA", certConf(cert, cert, key, ""), certNow, "f:3: CA certificate ca: ca holds the certificate of CN=gw, which is no CA", ""},
		{"expired", certConf(ca, files("short.crt"), files("short.key"), ""), certNow.Add(11 * 24 * time.Hour), "f:8: certificate gw: certificate is not valid now: the certificate of CN=short expired on 2026-03-11T00:00:00Z", ""},
		{"not yet", certConf(ca, cert, key, ""), certNow.Add(-48 * time.Hour), "f:8: certificate gw: certificate is not valid now: the certificate of CN=gw is not valid before ", ""},
		{"expires soon", certConf(ca, files("short.crt"), files("short.key"), ""), certNow, "", "f:8: warning: certificate gw: certificate: the certificate of CN=short expires on 2026-03-11T00:00:00Z"},
		{"unknown CA", certConf(filepath.Join(p.other, "ca.crt"), cert, key, ""), certNow, "", "f:8: warning: certificate gw: certificate: the certificate of CN=gw was issued by CN=Test CA " + filepath.Base(p.dir) + ", which no configured CA vouches for; peers that know no other CA refuse it"},
		{"list of another CA", certConf(ca, cert, key, otherCRL), certNow, "f:14: CRL crl: crl was issued by CN=Test CA " + filepath.Base(p.other) + ", which is none of the CA certificates", ""},
		{"list out of date", certConf(ca, cert, key, crl), certNow.Add(60 * 24 * time.Hour), "", "f:14: warning: CRL crl: crl is out of date since 2026-03-31T00:00:00Z"},
		{"no PEM", strings.Replace(inline, "-----BEGIN PRIVATE KEY-----", "MIG", 1), certNow, "certificate gw: private-key must be a private key in PEM, or the absolute path of its file (mode 0600)", ""},
		{"a broken key", strings.Replace(inline, "-----BEGIN PRIVATE KEY-----\nM", "-----BEGIN PRIVATE KEY-----\nA", 1), certNow, "certificate gw: private-key holds a private key that cannot be read", ""},
		{"encrypted", certConf(ca, cert, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----", ""), certNow, "f:9: certificate gw: private-key is encrypted: write it in plain form", ""},
		{"shown to somebody", certConf(ca, cert, key, "config vpn certificate local\nedit x\nset certificate "+cert+"\nset private-key ENC redacted\nnext\nend\n"), certNow, "f:15: certificate x: private-key was left out when this text was shown", ""},
		{"unknown certificate", strings.Replace(certConf(ca, cert, key, ""), "set certificate gw", "set certificate gx", 1), certNow, "f:17: vpn1: certificate (gx) names no own certificate; did you mean gw?", ""},
		{"no user peer", strings.Replace(certConf(ca, cert, key, ""), "set certificate gw", "set certificate gw\nset peertype peer\nset peer x", 1), certNow, "f:19: vpn1: peer (x) names no user peer", ""},
		{"peer for nothing", strings.Replace(certConf(ca, cert, key, ""), "set certificate gw", "set certificate gw\nset peer x", 1), certNow, "f:18: vpn1: peer is only checked with `set peertype peer` (peertype is any)", ""},
		{"any user peer", certConf(ca, cert, key, "config user peer\nedit p\nset cn-type email\nnext\nend\n"), certNow, "f:13: user peer p: asks for nothing, so any certificate would be this peer's: write ca, subject or cn", ""},
		{"user peer's CA", certConf(ca, cert, key, "config user peer\nedit p\nset ca cb\nnext\nend\n"), certNow, "f:14: user peer p: ca (cb) names no CA certificate", ""},
		{"user peer's subject", certConf(ca, cert, key, "config user peer\nedit p\nset subject nobody\nnext\nend\n"), certNow, "f:14: user peer p: subject (nobody) must be parts of a name, e.g. \"O=Example, OU=VPN\"", ""},
		{"user peer's address", certConf(ca, cert, key, "config user peer\nedit p\nset cn x\nset cn-type ipv4\nnext\nend\n"), certNow, "f:14: user peer p: cn (x) must be an address with cn-type ipv4", ""},
		{"empty group", certConf(ca, cert, key, "config user peergrp\nedit g\nnext\nend\n"), certNow, "f:13: user peergrp g: member is missing: a group needs user peers", ""},
		{"OCSP", certConf(ca, cert, key, "config vpn certificate setting\nset ocsp-option server\nend\n"), certNow, "f:13: vpn certificate setting: ocsp-option (server) is not supported here: the responder is the one that the certificate names", ""},
		{"fetched lists", certConf(ca, cert, key, "config vpn certificate crl\nedit x\nset http-url \"http://x/\"\nset crl "+files("ca.crl")+"\nnext\nend\n"), certNow, "f:14: CRL x: http-url (http://x/) is not supported here: lists are not fetched", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, faults := Load("f", []byte(tc.text))
			if c != nil {
				faults = append(faults, c.ReadCertificates("f", tc.now, true, open)...)
			}
			var wrong, warned []string
			for _, f := range faults {
				if f.Warning {
					warned = append(warned, f.Error())
				} else {
					wrong = append(wrong, f.Error())
				}
				if strings.Contains(f.Error(), "MIG") || strings.Contains(f.Error(), "BEGIN PRIVATE") && !strings.Contains(f.Error(), "(PEM: ") {
					t.Errorf("repeats a key: %s", f.Error())
				}
			}
			switch {
			case tc.want == "" && len(wrong) > 0:
				t.Errorf("does not load: %q", wrong)
			case tc.want != "" && (len(wrong) != 1 || !strings.Contains(wrong[0], tc.want)):
				t.Errorf("faults %q, want %q", wrong, tc.want)
			case tc.warning != "" && (len(warned) != 1 || warned[0] != tc.warning):
				t.Errorf("warnings %q, want %q", warned, tc.warning)
			case tc.want == "" && tc.warning == "" && len(warned) > 0:
				t.Errorf("warnings %q", warned)
			}
			if tc.name == "files" && (!asked[key] || asked[cert] || asked[ca]) {
				t.Errorf("read as private: %v", asked)
			}
			if tc.want == "" && len(wrong) == 0 {
				l := c.LocalByName("gw")
				if len(l.Chain) != 1 || l.Key.Len() == 0 || c.CAByName("ca") == nil {
					t.Errorf("not read: %d certificates, %d bytes of a key", len(l.Chain), l.Key.Len())
				}
			}
		})
	}
}

// A gateway that runs is only warned of an own certificate that has expired.
func TestExpiredCertificateRuns(t *testing.T) {
	p := newTestPKI(t)
	c := loadAll(t, certConf(filepath.Join(p.dir, "ca.crt"), filepath.Join(p.dir, "gw.crt"), filepath.Join(p.dir, "gw.key"), ""))
	open := func(path string, _ bool) ([]byte, error) { return os.ReadFile(path) }
	for _, strict := range []bool{true, false} {
		faults := c.ReadCertificates("f", certNow.Add(400*24*time.Hour), strict, open)
		if len(faults) != 1 || faults[0].Warning == strict {
			t.Errorf("strict %v: %v", strict, faults)
		}
	}
	if faults := c.ReadCertificates("f", certNow, false, func(string, bool) ([]byte, error) { return nil, errors.New("gone") }); len(faults) != 3 || c.LocalByName("gw").Chain != nil {
		t.Errorf("without files: %v", faults)
	}
}

// A private key shows to nobody; the path of its file does.
func TestPrivateKeyStaysInside(t *testing.T) {
	c := loadAll(t, readFile(t, "testdata/everything.conf"))
	secret := strings.Split(string(c.LocalByName("mine").PrivateKey.Bytes()), "\n")[1]
	plain := shown(t, c, "vpn certificate", false)
	if strings.Contains(plain, secret) || !strings.Contains(plain, "set private-key ENC redacted\n") || !strings.Contains(plain, "set private-key \"/etc/tandem/pki/gw2.key\"\n") {
		t.Error(plain)
	}
	if !strings.Contains(string(c.Shared()), secret) {
		t.Error("the members of a cluster do not share the key")
	}
	other := loadAll(t, readFile(t, "testdata/everything.conf"))
	other.LocalByName("mine").PrivateKey = ipsec.NewKey([]byte("/elsewhere"))
	for _, line := range append(Differences(c, other), Differences(other, c)...) {
		if strings.Contains(line, secret) {
			t.Error(line)
		}
	}
	if d := Diff(c, other); len(d.Certificates) != 1 || d.Certificates[0].Name != "mine" || d.Certificates[0].Keys[0] != "private-key" {
		t.Errorf("%+v", d)
	}
}
