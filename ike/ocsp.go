package ike

import (
	"crypto/x509"
	"errors"
	"fmt"

	"tandem/ike/message"
	"tandem/internal/pki"
)

// OCSP (RFC 6960) needs the network, which is the shell's. What it knows of a certificate is asked
// of Options.Revocation; where that is nothing yet, CheckRevocation asks the shell to find out, and
// the message is as if it had not come: nothing was changed, so there is nothing to replicate. It comes
// again with the answer (or from the peer, which sends it again), to whoever owns the IKE SA then.

// Revocation is what is known of a certificate from its OCSP responder. It is asked for a
// certificate that a CA vouches for and whose key has signed AUTH.
type Revocation func(cert *x509.Certificate) pki.Status

// CheckRevocation asks what the OCSP responder that Cert names says of it. Within a bounded
// time Revocation must not answer pki.Unasked for it any more; then Datagram is to be handed in again.
type CheckRevocation struct {
	Cert, Issuer *x509.Certificate
	Datagram     Datagram
}

func (CheckRevocation) effect() {}

// awaiting says that a certificate's OCSP responder has to be asked first.
type awaiting struct{ cert, issuer *x509.Certificate }

func (w *awaiting) Error() string {
	return "the OCSP responder of " + pki.Name(w.cert) + " has to be asked"
}

// online checks by OCSP a certificate that nothing else speaks against. Only the peer's own is
// asked for; for those above it there are lists.
func (e *Engine) online(p *presented) (note string, err error) {
	mode := e.cfg.Certificates.Setting.OCSP
	if mode == "" || mode == "disable" || p.issuer == nil {
		return "", nil
	}
	status := pki.Unavailable
	if e.o.Revocation != nil && pki.OCSPServer(p.leaf) != "" {
		status = e.o.Revocation(p.leaf)
	}
	switch status {
	case pki.Good:
		return "", nil
	case pki.Revoked:
		return "", fmt.Errorf("the certificate of %s is revoked, its OCSP responder says", pki.Name(p.leaf))
	case pki.Unasked:
		return "", &awaiting{p.leaf, p.issuer}
	}
	note = fmt.Sprintf("no OCSP responder vouches for the certificate of %s", pki.Name(p.leaf))
	if mode == "mandatory" {
		return "", errors.New(note)
	}
	return note, nil
}

// postpones is postponed for an IKE_AUTH response, before it ends our exchange.
func (e *Engine) postpones(sa *ikeSA, ev *event) bool {
	if sa.p1 == nil || !signs(sa.p1) || e.cfg.Certificates.Setting.OCSP == "" || e.cfg.Certificates.Setting.OCSP == "disable" {
		return false
	}
	id, ok1 := ev.m.ID(true)
	auth, ok2 := message.Get[*message.Auth](ev.m)
	if !ok1 || !ok2 {
		return false
	}
	var err error
	sa.asAnswered(ev.m, func() {
		_, err = e.checkSignature(sa, sa.p1, e.present(ev.m, identity{id.IDType, string(id.Data)}), id, auth)
	})
	return e.postponed(sa, ev.d, err)
}

// postponed says that a message has to wait for an OCSP responder or a RADIUS server, and has it asked.
func (e *Engine) postponed(sa *ikeSA, d Datagram, err error) bool {
	var q *askingRADIUS
	if errors.As(err, &q) {
		e.debug(sa, q.Error())
		e.free(q.q)
		return true
	}
	var w *awaiting
	if !errors.As(err, &w) {
		return false
	}
	e.debug(sa, w.Error())
	e.free(CheckRevocation{Cert: w.cert, Issuer: w.issuer, Datagram: d})
	return true
}
