package daemon

import (
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"tandem/ike"
	"tandem/internal/pki"
)

// A responder is asked once for a certificate, however often it is wanted; what it says is kept, and what
// waited comes again. One that says nothing is asked again later.
func TestOCSPAsker(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	made, err := pki.CreateCA(dir, "CA", "", "ecdsa256", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	ca := made.Certificate
	text, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	status := atomic.Int32{}
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-release
		b, _ := io.ReadAll(r.Body)
		req, err := ocsp.ParseRequest(b)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/ocsp-request" {
			t.Errorf("asked by %s: %v", r.Method, err)
			return
		}
		if status.Load() < 0 {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		der, err := ocsp.CreateResponse(ca, ca, ocsp.Response{Status: int(status.Load()), SerialNumber: req.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour), RevokedAt: now}, key)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(der)
	}))
	defer srv.Close()
	var certs []*x509.Certificate
	for i := range 3 {
		c, err := pki.Issue(dir, pki.Request{Name: fmt.Sprintf("peer%d", i), Key: "ecdsa256", Validity: time.Hour, OCSP: []string{srv.URL}}, now)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c.Certificate)
	}
	again := make(chan ike.Datagram, 10)
	o := newOCSP(slog.New(slog.NewTextHandler(io.Discard, nil)), func(d ike.Datagram) { again <- d })
	defer o.close()
	check := func(i int, s int32, want pki.Status) {
		t.Helper()
		before := asked.Load()
		status.Store(s)
		if o.status(certs[i]) != pki.Unasked {
			t.Fatal("known before it was asked")
		}
		for range 3 {
			o.check(ike.CheckRevocation{Cert: certs[i], Issuer: ca, Datagram: ike.Datagram{Data: []byte{byte(i)}}})
		}
		release <- struct{}{}
		if d := <-again; d.Data[0] != byte(i) {
			t.Error("another message comes again")
		}
		if got := o.status(certs[i]); got != want || asked.Load() != before+1 {
			t.Errorf("status %d, want %d; asked %d times", got, want, asked.Load()-before)
		}
	}
	check(0, ocsp.Good, pki.Good)
	check(1, ocsp.Revoked, pki.Revoked)
	check(2, -1, pki.Unavailable)
	o.now = func() time.Time { return now.Add(ocspFailed + time.Minute) }
	check(2, ocsp.Good, pki.Good)
	if o.status(certs[0]) != pki.Good {
		t.Error("forgotten too early")
	}
	o.now = func() time.Time { return now.Add(ocspLongest + time.Minute) }
	if o.status(certs[0]) != pki.Unasked {
		t.Error("never asked again")
	}
	for i := range 2 * ocspKept {
		o.keep([32]byte{byte(i), byte(i >> 8), 1}, ocspAnswer{pki.Good, now.Add(10 * time.Hour)})
	}
	if len(o.known) > ocspKept {
		t.Errorf("%d answers are kept", len(o.known))
	}
}
