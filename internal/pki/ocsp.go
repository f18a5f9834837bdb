package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Status is what an OCSP responder says of a certificate (RFC 6960 §2.2).
type Status uint8

const (
	Unasked     Status = iota // nobody has asked lately
	Good                      // not revoked
	Revoked                   // revoked for ever, or held
	Unavailable               // there is no answer that counts
)

// MaxOCSP is how many bytes of an answer are read.
const MaxOCSP = 64 << 10

// How long an answer that does not say it counts, and by how much clocks may differ.
const (
	ocspDefault = time.Hour
	ocspSkew    = 5 * time.Minute
)

// OCSPServer is the first responder that a certificate names by http, "" for none.
func OCSPServer(c *x509.Certificate) string {
	for _, s := range c.OCSPServer {
		if u, err := url.Parse(s); err == nil && u.Scheme == "http" && u.Host != "" {
			return s
		}
	}
	return ""
}

// OCSPRequest asks for a certificate (DER).
func OCSPRequest(c, issuer *x509.Certificate) ([]byte, error) {
	return ocsp.CreateRequest(c, issuer, &ocsp.RequestOptions{Hash: crypto.SHA1}) // RFC 5019 §2.1.1: nothing rests on its strength
}

// ParseOCSP reads the answer (DER) for a certificate, signed by its issuer or by whom that has
// named for it, and says until when it counts.
func ParseOCSP(der []byte, c, issuer *x509.Certificate, now time.Time) (Status, time.Time, error) {
	if len(der) > MaxOCSP {
		return Unavailable, time.Time{}, fmt.Errorf("answer of more than %d bytes", MaxOCSP)
	}
	r, err := ocsp.ParseResponseForCert(der, c, issuer)
	if err != nil {
		return Unavailable, time.Time{}, err
	}
	if d := r.Certificate; d != nil && !bytes.Equal(d.Raw, issuer.Raw) {
		// The parser checked that the issuer made it: not for what.
		if !slices.Contains(d.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return Unavailable, time.Time{}, fmt.Errorf("signed by %s, which the CA has not named for it (RFC 6960 §4.2.2.2)", Name(d))
		}
		if err := Valid(d, now); err != nil {
			return Unavailable, time.Time{}, err
		}
	}
	until := r.NextUpdate
	if until.IsZero() {
		until = r.ThisUpdate.Add(ocspDefault)
	}
	if r.ThisUpdate.After(now.Add(ocspSkew)) || now.After(until.Add(ocspSkew)) {
		return Unavailable, time.Time{}, errors.New("answer is not of now")
	}
	switch r.Status {
	case ocsp.Good:
		return Good, until, nil
	case ocsp.Revoked:
		return Revoked, until, nil
	}
	return Unavailable, until, errors.New("the responder does not know the certificate")
}
