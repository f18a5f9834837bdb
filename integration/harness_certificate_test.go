package integration

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"tandem/internal/pki"
)

// authority is a CA of one test, made and used by `tandem pki`.
type authority struct {
	t   *testing.T
	dir string
	key string // key type of what it issues
}

func newAuthority(t *testing.T, key string) *authority {
	t.Helper()
	a := &authority{t, t.TempDir(), key}
	a.pki("ca", "--key-type", key)
	return a
}

// pki runs one command of `tandem pki` and returns what its JSON says.
func (a *authority) pki(command string, more ...string) map[string]any {
	a.t.Helper()
	args := append([]string{"pki", command, "--dir", a.dir, "--json"}, more...)
	out, err := exec.Command(program(a.t), args...).Output()
	if err != nil {
		a.t.Fatalf("tandem %s: %v: %s", strings.Join(args, " "), err, out)
	}
	var m map[string]any
	if err := json.Unmarshal(out, &m); err != nil {
		a.t.Fatalf("tandem %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return m
}

// issue makes a certificate with that name as CN and subjectAltName, and returns the name.
func (a *authority) issue(name string, more ...string) string {
	a.t.Helper()
	a.pki("node", append([]string{"--key-type", a.key, name}, more...)...)
	return name
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) read(name string) []byte {
	a.t.Helper()
	b, err := os.ReadFile(a.path(name))
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// blocks are the configuration of a gateway with one certificate and the CA; more CAs may be trusted.
func (a *authority) blocks(name string) string {
	return fmt.Sprintf(`config vpn certificate ca
    edit "ca"
        set ca "%s"
    next
end
config vpn certificate local
    edit "gw"
        set certificate "%s"
        set private-key "%s"
    next
end
`, a.path("ca.crt"), a.path(name+".crt"), a.path(name+".key"))
}

// client has charon prove itself by a certificate of the authority, whose subject is its identity, and
// ask for one of the gateway's.
func (a *authority) client(c conn, name string) conn {
	a.t.Helper()
	c.files = map[string][]byte{"x509ca/ca.pem": a.read("ca.crt"), "x509/own.pem": a.read(name + ".crt"), "private/own.pem": a.read(name + ".key")}
	c.local2, c.remote2 = "auth = pubkey\n certs = own.pem", "auth = pubkey"
	c.id, c.remoteID = "\"CN="+name+"\"", "-"
	return c
}

// signing is the phase 1 towards the peer of a wire that signs.
func signing(more ...string) entry {
	return toPeer(append([]string{"authmethod signature", "certificate gw"}, more...)...)
}

// issueExpired makes a certificate that was valid until yesterday.
func issueExpired(a *authority, name string) {
	a.t.Helper()
	if _, err := pki.Issue(a.dir, pki.Request{Name: name, DNS: []string{name}, Key: a.key, Validity: 24 * time.Hour}, time.Now().Add(-48*time.Hour)); err != nil {
		a.t.Fatal(err)
	}
}

// newChain makes a root (PEM) and a CA below it.
func newChain(t *testing.T) (root []byte, between *authority) {
	t.Helper()
	between = newAuthority(t, "ecdsa256")
	key, err := pki.GenerateKey("ecdsa256")
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	// The CA that `tandem pki` made, with its own key, issued by the root.
	cs, err := pki.ParseCertificates(between.read("ca.crt"), 1)
	if err != nil {
		t.Fatal(err)
	}
	below, err := x509.CreateCertificate(rand.Reader, cs[0], c, cs[0].PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(between.path("ca.crt"), pki.EncodeCertificate(below), 0o600); err != nil {
		t.Fatal(err)
	}
	return pki.EncodeCertificate(der), between
}

// responder is an OCSP responder on a node that gives one answer for all certificates of an authority, signed by its
// CA; a negative status: there is none. What it returns counts the questions.
func (s *site) responder(node, addr string, a *authority, status int) func() int {
	s.t.Helper()
	var asked atomic.Int64
	count := func() int { return int(asked.Load()) }
	if status < 0 {
		return count
	}
	cas, err := pki.ParseCertificates(a.read("ca.crt"), 1)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := pki.ParseKey(a.read("ca.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	var l net.Listener
	if err := s.topo.In(node, func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		b, _ := io.ReadAll(r.Body)
		q, err := ocsp.ParseRequest(b)
		if err != nil {
			s.t.Errorf("the gateway asks: %v", err)
			return
		}
		now := time.Now()
		der, err := ocsp.CreateResponse(cas[0], cas[0], ocsp.Response{Status: status, SerialNumber: q.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour), RevokedAt: now}, key)
		if err != nil {
			s.t.Error(err)
		}
		_, _ = w.Write(der)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	s.t.Cleanup(func() { _ = srv.Close(); <-done })
	return count
}
