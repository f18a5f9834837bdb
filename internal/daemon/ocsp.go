package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"tandem/ike"
	"tandem/internal/pki"
)

// Bounds on OCSP. A peer whose answer does not come in time is told of by its absence: policy
// decides.
const (
	ocspPatience = 3 * time.Second  // for one answer
	ocspAtOnce   = 16               // questions under way; beyond it peers try again
	ocspKept     = 4096             // answers
	ocspLongest  = time.Hour        // that an answer is kept, however long it says that it counts
	ocspFailed   = 30 * time.Second // before a responder without an answer is asked again
)

// ocspAsker asks OCSP responders, outside of the loop, and keeps what they said.
type ocspAsker struct {
	log    *slog.Logger
	again  func(ike.Datagram) // hands in what waited
	client *http.Client
	now    func() time.Time
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	known  map[[sha256.Size]byte]ocspAnswer // by the certificate's fingerprint
	asking map[[sha256.Size]byte]bool
}

type ocspAnswer struct {
	status pki.Status
	until  time.Time
}

func newOCSP(log *slog.Logger, again func(ike.Datagram)) *ocspAsker {
	ctx, stop := context.WithCancel(context.Background())
	return &ocspAsker{log: log, again: again, now: time.Now, ctx: ctx, stop: stop,
		client: &http.Client{Timeout: ocspPatience, Transport: &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		known: map[[sha256.Size]byte]ocspAnswer{}, asking: map[[sha256.Size]byte]bool{}}
}

// close ends what is under way.
func (o *ocspAsker) close() {
	o.stop()
	o.wg.Wait()
}

// status is ike.Revocation.
func (o *ocspAsker) status(c *x509.Certificate) pki.Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	if a := o.known[pki.Fingerprint(c)]; o.now().Before(a.until) {
		return a.status
	}
	return pki.Unasked
}

// check begins to ask and returns at once. What is asked already, or too much at once, waits
// for the peer to send its message again.
func (o *ocspAsker) check(e ike.CheckRevocation) {
	id := pki.Fingerprint(e.Cert)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.asking[id] || len(o.asking) >= ocspAtOnce || o.ctx.Err() != nil {
		return
	}
	o.asking[id] = true
	o.wg.Go(func() {
		status, until, err := o.ask(e.Cert, e.Issuer)
		if err != nil {
			o.log.Warn("no answer of an OCSP responder", "certificate", pki.Name(e.Cert), "responder", pki.OCSPServer(e.Cert), "error", err.Error())
		}
		o.keep(id, ocspAnswer{status, until})
		o.again(e.Datagram)
	})
}

// keep notes an answer for as long as it counts.
func (o *ocspAsker) keep(id [sha256.Size]byte, a ocspAnswer) {
	now := o.now()
	if a.status == pki.Unavailable {
		a.until = now.Add(ocspFailed)
	} else if latest := now.Add(ocspLongest); a.until.After(latest) {
		a.until = latest
	} else if first := now.Add(ocspFailed); a.until.Before(first) {
		a.until = first // clocks differ, and the message that waits has to find it
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.asking, id)
	if len(o.known) >= ocspKept {
		for k, x := range o.known {
			if now.After(x.until) || len(o.known) >= ocspKept {
				delete(o.known, k)
			}
		}
	}
	o.known[id] = a
}

func (o *ocspAsker) ask(c, issuer *x509.Certificate) (pki.Status, time.Time, error) {
	fail := func(err error) (pki.Status, time.Time, error) { return pki.Unavailable, time.Time{}, err }
	der, err := pki.OCSPRequest(c, issuer)
	if err != nil {
		return fail(err)
	}
	r, err := http.NewRequestWithContext(o.ctx, http.MethodPost, pki.OCSPServer(c), bytes.NewReader(der))
	if err != nil {
		return fail(err)
	}
	r.Header.Set("Content-Type", "application/ocsp-request")
	answer, err := o.client.Do(r)
	if err != nil {
		return fail(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("the responder answers %s", answer.Status))
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, pki.MaxOCSP+1))
	if err != nil {
		return fail(err)
	}
	return pki.ParseOCSP(body, c, issuer, o.now())
}
