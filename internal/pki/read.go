package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Bounds on what is read.
const (
	MaxCertificate = 16 << 10 // bytes of one certificate, DER
	MaxChain       = 8        // certificates of one chain, the CA's own included
	MaxFile        = 16 << 20 // bytes of a file with certificates, a key or a CRL
	minRSABits     = 2048
	maxRSABits     = 8192 // checking a signature costs the square of it
)

// ParseCertificate reads one certificate (DER) of at most MaxCertificate bytes with a
// key of a kind that IKE can use.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificate {
		return nil, fmt.Errorf("certificate of %d bytes: at most %d are read", len(der), MaxCertificate)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return c, usable(c.PublicKey)
}

// usable says what keeps a public key from signing in IKE, if anything.
func usable(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("RSA key of %d bits: %d to %d are accepted", n, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return fmt.Errorf("ECDSA key on the curve %s: P-256, P-384 and P-521 are accepted", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return errors.New("key of a kind that is not known: RSA, ECDSA and Ed25519 are accepted")
	}
	return nil
}

// ParseCertificates reads the certificates of a PEM text: 1 to most of them. What
// stands between the blocks is skipped, as other programs do.
func ParseCertificates(text []byte, most int) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			if strings.HasSuffix(b.Type, "PRIVATE KEY") {
				return nil, errors.New("holds a private key, which does not belong here")
			}
			return nil, fmt.Errorf("holds a %q where a certificate is expected", clip(b.Type))
		}
		if len(out) == most {
			return nil, fmt.Errorf("holds more than %d certificates", most)
		}
		c, err := ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("holds no certificate (PEM: -----BEGIN CERTIFICATE-----)")
	}
	return out, nil
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// ParseKey reads a private key in PEM: PKCS #8, or the older forms of RSA and EC keys.
// Its errors repeat nothing of the text.
func ParseKey(text []byte) (crypto.Signer, error) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return nil, errors.New("holds no private key (PEM: -----BEGIN PRIVATE KEY-----)")
		}
		var key any
		var err error
		switch {
		case b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "":
			return nil, errors.New("is encrypted: write it in plain form (openssl pkcs8 -topk8 -nocrypt), in a file of mode 0600")
		case b.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case b.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case b.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		default: // EC PARAMETERS, a certificate beside its key
			continue
		}
		clear(b.Bytes)
		if err != nil {
			return nil, errors.New("holds a private key that cannot be read")
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("holds a private key that cannot sign")
		}
		return signer, usable(signer.Public())
	}
}

// MarshalKey is a private key in the form that ParsePKCS8 reads.
func MarshalKey(k crypto.Signer) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(k) }

// UnmarshalKey reads what MarshalKey wrote.
func UnmarshalKey(der []byte) (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("private key cannot be read")
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key cannot sign")
	}
	return s, nil
}

// Fits says whether a private key is that of a certificate.
func Fits(c *x509.Certificate, k crypto.Signer) bool {
	pub, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(c.PublicKey)
}

// Order checks that each certificate of a chain was issued by the next one.
func Order(chain []*x509.Certificate) error {
	for i := 1; i < len(chain); i++ {
		if err := chain[i-1].CheckSignatureFrom(chain[i]); err != nil {
			return fmt.Errorf("certificate %d (%s) was not issued by certificate %d (%s)", i, Name(chain[i-1]), i+1, Name(chain[i]))
		}
	}
	return nil
}

// Name is a certificate's subject, or what else names it, for people.
func Name(c *x509.Certificate) string {
	if s := DNString(c.RawSubject); s != "" {
		return s
	}
	for _, n := range [][]string{c.DNSNames, c.EmailAddresses} {
		if len(n) > 0 {
			return n[0]
		}
	}
	return "serial " + hex.EncodeToString(c.SerialNumber.Bytes())
}

// Fingerprint is the SHA-256 hash of a certificate.
func Fingerprint(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.Raw) }

// KeyHash is the SHA-1 hash of a certificate's SubjectPublicKeyInfo, which names a CA in
// CERTREQ (RFC 7296 §3.7). Nothing rests on its strength.
func KeyHash(c *x509.Certificate) [sha1.Size]byte { return sha1.Sum(c.RawSubjectPublicKeyInfo) }

// CRL is a revocation list whose signature has been checked.
type CRL struct {
	List    *x509.RevocationList
	Issuer  *x509.Certificate
	revoked map[string]bool // by serial number
}

// Equal says that both are the same list.
func (l *CRL) Equal(o *CRL) bool {
	if l == nil || o == nil {
		return l == o
	}
	return bytes.Equal(l.List.Raw, o.List.Raw)
}

// Revoked says whether the list names a certificate.
func (l *CRL) Revoked(c *x509.Certificate) bool { return l.revoked[string(c.SerialNumber.Bytes())] }

// Extensions of CRLs that may be critical and are understood: authority key identifier, CRL number.
var knownCRLExtensions = []asn1.ObjectIdentifier{{2, 5, 29, 35}, {2, 5, 29, 20}}

// ParseCRL reads a revocation list, PEM or DER, and checks that one of the CAs issued it.
func ParseCRL(text []byte, cas []*x509.Certificate) (*CRL, error) {
	der := text
	if b, _ := pem.Decode(text); b != nil {
		if b.Type != "X509 CRL" {
			return nil, fmt.Errorf("holds a %q where a revocation list is expected", clip(b.Type))
		}
		der = b.Bytes
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, errors.New("holds no revocation list that can be read (PEM: -----BEGIN X509 CRL-----, or DER)")
	}
	for _, x := range l.Extensions {
		known := false
		for _, k := range knownCRLExtensions {
			known = known || x.Id.Equal(k)
		}
		if x.Critical && !known {
			return nil, fmt.Errorf("has a critical extension that is not understood (%s): only complete lists of one CA are", x.Id)
		}
	}
	out := &CRL{List: l, revoked: make(map[string]bool, len(l.RevokedCertificateEntries))}
	for _, ca := range cas {
		if bytes.Equal(ca.RawSubject, l.RawIssuer) && l.CheckSignatureFrom(ca) == nil {
			out.Issuer = ca
		}
	}
	if out.Issuer == nil {
		return nil, fmt.Errorf("was issued by %s, which is none of the CA certificates: write that with `config vpn certificate ca`", DNString(l.RawIssuer))
	}
	for _, r := range l.RevokedCertificateEntries {
		out.revoked[string(r.SerialNumber.Bytes())] = true
	}
	return out, nil
}
