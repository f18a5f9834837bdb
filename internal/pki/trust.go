package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Revocation says what a list that is missing or out of date means.
type Revocation struct {
	LeafAbsent  bool // no list of the issuer of the peer's own certificate: refused
	ChainAbsent bool // no list for a CA between: refused
	Expired     bool // the list is out of date: refused; else it still counts
}

// Trust is what certificates are checked against.
type Trust struct {
	CAs    []*x509.Certificate // each of them is trusted
	CRLs   []*CRL
	Policy Revocation
}

// Verify finds the way from a peer's certificate to a CA, with the certificates
// that it sent beside it, and looks for its revocation. via, if not nil, is a CA that the way
// must lead to. notes are for the log. The chain that it returns begins with leaf.
func (t *Trust) Verify(leaf *x509.Certificate, others []*x509.Certificate, via *x509.Certificate, now time.Time) (chain []*x509.Certificate, notes []string, err error) {
	if len(others) >= MaxChain {
		return nil, nil, fmt.Errorf("more than %d certificates", MaxChain)
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return nil, nil, errors.New("the certificate's key usage does not allow signatures (RFC 4945 §5.1.3.2)")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range t.CAs {
		if via == nil || ca.Equal(via) {
			roots.AddCert(ca)
		} else {
			between.AddCert(ca)
		}
	}
	for _, c := range others {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, nil, explain(err, now)
	}
	for _, c := range chains {
		if notes, err = t.revoked(c, now); err == nil {
			return c, notes, nil
		}
	}
	return nil, notes, err
}

// explain says in our words what crypto/x509 found.
func explain(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		return Valid(invalid.Cert, now)
	case errors.As(err, &unknown):
		if unknown.Cert != nil {
			return fmt.Errorf("the certificate of %s was issued by %s, which no configured CA vouches for", Name(unknown.Cert), DNString(unknown.Cert.RawIssuer))
		}
		return errors.New("no configured CA vouches for the certificate")
	}
	return err
}

// Valid says whether a certificate is valid at a time.
func Valid(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) {
		return fmt.Errorf("the certificate of %s is not valid before %s", Name(c), c.NotBefore.UTC().Format(time.RFC3339))
	}
	if now.After(c.NotAfter) {
		return fmt.Errorf("the certificate of %s expired on %s", Name(c), c.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// revoked looks for each certificate of a chain in the list of its issuer.
func (t *Trust) revoked(chain []*x509.Certificate, now time.Time) (notes []string, err error) {
	for i := 0; i+1 < len(chain); i++ {
		c, issuer := chain[i], chain[i+1]
		list := t.listOf(issuer)
		if list == nil {
			if i == 0 && t.Policy.LeafAbsent || i > 0 && t.Policy.ChainAbsent {
				return notes, fmt.Errorf("there is no revocation list of %s, and the configuration demands one", Name(issuer))
			}
			continue
		}
		if list.Revoked(c) {
			return notes, fmt.Errorf("the certificate of %s is revoked", Name(c))
		}
		if next := list.List.NextUpdate; !next.IsZero() && now.After(next) {
			text := fmt.Sprintf("the revocation list of %s is out of date since %s", Name(issuer), next.UTC().Format(time.RFC3339))
			if t.Policy.Expired {
				return notes, errors.New(text)
			}
			notes = append(notes, text)
		}
	}
	return notes, nil
}

// listOf is the latest list of an issuer.
func (t *Trust) listOf(issuer *x509.Certificate) (latest *CRL) {
	for _, l := range t.CRLs {
		if bytes.Equal(l.Issuer.RawSubject, issuer.RawSubject) && bytes.Equal(l.Issuer.RawSubjectPublicKeyInfo, issuer.RawSubjectPublicKeyInfo) &&
			(latest == nil || l.List.ThisUpdate.After(latest.List.ThisUpdate)) {
			latest = l
		}
	}
	return latest
}
