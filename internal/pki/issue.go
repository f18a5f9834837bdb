package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of the files in a CA's folder.
const CAFile, CAKeyFile, CRLFile = "ca.crt", "ca.key", "ca.crl"

// KeyTypes are the kinds of keys that can be made.
var KeyTypes = []string{"ecdsa256", "ecdsa384", "ecdsa521", "rsa2048", "rsa3072", "rsa4096", "ed25519"}

// oidIPsecIKE is the extended key usage of RFC 4945 §5.1.3.12, which some peers ask for.
var oidIPsecIKE = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}

// Request is what a certificate is to say.
type Request struct {
	Name         string // common name and file name
	Organization string // empty: the CA's
	DNS, Emails  []string
	IPs          []netip.Addr
	Key          string // one of KeyTypes
	Validity     time.Duration
	Client       bool
	OCSP         []string // URLs of OCSP responders that it names
}

// Issued is what was made.
type Issued struct {
	Certificate *x509.Certificate
	Key         string
	// Files that were written.
	CertificateFile, KeyFile string
}

// GenerateKey makes a key of one of KeyTypes.
func GenerateKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "ecdsa256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "rsa2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "rsa4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ed25519":
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return nil, fmt.Errorf("key type %q: must be one of %s", kind, strings.Join(KeyTypes, ", "))
}

// Serial is a random serial number of 120 bits.
func Serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return n
}

// EncodeCertificate is a certificate in PEM.
func EncodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// EncodeKey is a private key that was just made in PEM (PKCS #8).
func EncodeKey(k crypto.Signer) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		panic(err) // a key that was just made
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// WriteNew writes files of mode 0600 into a folder, which it makes. It never overwrites one.
func WriteNew(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, b := range files {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// fileName says what keeps a name from being that of a file and a common name.
func fileName(name string) error {
	if name == "" || len(name) > 64 || name == "ca" || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
		return fmt.Errorf("name %q: must be 1 to 64 printable ASCII characters without blanks and slashes, not \"ca\", and not begin with a dot", name)
	}
	return nil
}

func absent(dir string, names ...string) error {
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(dir, n)); err == nil {
			return fmt.Errorf("%s exists already: it is never overwritten", filepath.Join(dir, n))
		}
	}
	return nil
}

// CreateCA makes a CA in a folder: ca.crt, ca.key and an empty list of revoked certificates,
// ca.crl.
func CreateCA(dir, name, organization, key string, validity time.Duration, now time.Time) (*Issued, error) {
	if err := absent(dir, CAFile, CAKeyFile, CRLFile); err != nil {
		return nil, err
	}
	k, err := GenerateKey(key)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: Serial(), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if organization != "" {
		t.Subject.Organization = []string{organization}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := WriteNew(dir, map[string][]byte{CAFile: EncodeCertificate(der), CAKeyFile: EncodeKey(k)}); err != nil {
		return nil, err
	}
	a := authority{dir, c, k}
	if err := a.writeCRL(nil, 1, now); err != nil {
		return nil, err
	}
	return &Issued{c, key, filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile)}, nil
}

// authority is a CA with its key.
type authority struct {
	dir string
	c   *x509.Certificate
	k   crypto.Signer
}

func openCA(dir string) (*authority, error) {
	text, err := os.ReadFile(filepath.Join(dir, CAFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: there is no CA yet: make it with `tandem pki ca --dir %s`", filepath.Join(dir, CAFile), dir)
	}
	if err != nil {
		return nil, err
	}
	cs, err := ParseCertificates(text, 1)
	if err != nil {
		return nil, fmt.Errorf("%s %w", filepath.Join(dir, CAFile), err)
	}
	if text, err = os.ReadFile(filepath.Join(dir, CAKeyFile)); err != nil {
		return nil, err
	}
	k, err := ParseKey(text)
	if err == nil && !Fits(cs[0], k) {
		err = errors.New("is not the key of " + CAFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %w", filepath.Join(dir, CAKeyFile), err)
	}
	return &authority{dir, cs[0], k}, nil
}

// Issue makes NAME.crt and NAME.key in the folder of a CA that CreateCA made.
func Issue(dir string, r Request, now time.Time) (*Issued, error) {
	if err := fileName(r.Name); err != nil {
		return nil, err
	}
	a, err := openCA(dir)
	if err != nil {
		return nil, err
	}
	if err := absent(dir, r.Name+".crt", r.Name+".key"); err != nil {
		return nil, err
	}
	k, err := GenerateKey(r.Key)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: Serial(), Subject: pkix.Name{CommonName: r.Name, Organization: a.c.Subject.Organization},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(r.Validity), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidIPsecIKE},
		DNSNames: r.DNS, EmailAddresses: r.Emails, OCSPServer: r.OCSP,
	}
	if r.Organization != "" {
		t.Subject.Organization = []string{r.Organization}
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if !r.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, ip := range r.IPs {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	if t.NotAfter.After(a.c.NotAfter) {
		t.NotAfter = a.c.NotAfter // it would not be valid any longer than its CA
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.c, k.Public(), a.k)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := WriteNew(dir, map[string][]byte{r.Name + ".crt": EncodeCertificate(der), r.Name + ".key": EncodeKey(k)}); err != nil {
		return nil, err
	}
	return &Issued{c, r.Key, filepath.Join(dir, r.Name+".crt"), filepath.Join(dir, r.Name+".key")}, nil
}

// crlValidity is how long a list is up to date.
const crlValidity = 30 * 24 * time.Hour

// Revoke adds certificates, named as they were issued, to the CA's list, and returns the
// names of all files that the list now names. Without a name it only renews the list.
func Revoke(dir string, names []string, now time.Time) (file string, serials []string, err error) {
	a, err := openCA(dir)
	if err != nil {
		return "", nil, err
	}
	file = filepath.Join(dir, CRLFile)
	var entries []x509.RevocationListEntry
	number := int64(1)
	text, err := os.ReadFile(file)
	switch {
	case err == nil:
		l, err := ParseCRL(text, []*x509.Certificate{a.c})
		if err != nil {
			return "", nil, fmt.Errorf("%s %w", file, err)
		}
		entries = l.List.RevokedCertificateEntries
		if l.List.Number != nil {
			number = l.List.Number.Int64() + 1
		}
	case !errors.Is(err, fs.ErrNotExist):
		return "", nil, err
	}
	for _, n := range names {
		if err := fileName(n); err != nil {
			return "", nil, err
		}
		path := filepath.Join(dir, n+".crt")
		text, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		cs, err := ParseCertificates(text, 1)
		if err == nil {
			err = cs[0].CheckSignatureFrom(a.c)
		}
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", path, err)
		}
		if !slices.ContainsFunc(entries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(cs[0].SerialNumber) == 0 }) {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: cs[0].SerialNumber, RevocationTime: now})
		}
	}
	for _, e := range entries {
		serials = append(serials, hex.EncodeToString(e.SerialNumber.Bytes()))
	}
	return file, serials, a.writeCRL(entries, number, now)
}

// writeCRL puts a new list in the place of the old one in one step.
func (a *authority) writeCRL(entries []x509.RevocationListEntry, number int64, now time.Time) error {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute),
		NextUpdate: now.Add(crlValidity), RevokedCertificateEntries: entries}, a.c, a.k)
	if err != nil {
		return err
	}
	tmp := filepath.Join(a.dir, CRLFile+".new")
	_ = os.Remove(tmp) // left by a run that ended here
	if err := WriteNew(a.dir, map[string][]byte{CRLFile + ".new": pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})}); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(a.dir, CRLFile))
}
