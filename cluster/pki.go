package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

const (
	caValidity   = 20 * 365 * 24 * time.Hour
	nodeValidity = 5 * 365 * 24 * time.Hour
	expiryNotice = 30 * 24 * time.Hour

	caFile, certFile, keyFile, secretFile = "ca.crt", "node.crt", "node.key", "cluster.key"
	secretLen                             = 32
)

// Identity is what a node's cluster directory holds: who it is, and the secrets of its cluster.
type Identity struct {
	Node   NodeID
	Name   string
	Serial string
	Group  string
	// Witness: it votes in the members' log, and has no cluster key.
	Witness bool
	// NotAfter is the end of the certificate's validity.
	NotAfter time.Time

	cert   tls.Certificate
	roots  *x509.CertPool
	secret ipsec.Key
}

// InitCluster makes a cluster CA in dir/ca and, for each node, dir/NODE with
// ca.crt, node.crt, node.key and cluster.key. Node IDs follow the order of the
// names, from 1. It refuses to overwrite anything.
func InitCluster(dir, group string, nodes []string, now time.Time) error {
	if group == "" || len(group) > 64 || strings.ContainsFunc(group, func(r rune) bool { return r < ' ' || r == '/' || r > '~' }) {
		return fmt.Errorf("group %q: 1 to 64 printable ASCII characters without slashes", group)
	}
	if len(nodes) == 0 || len(nodes) > 16 {
		return fmt.Errorf("a cluster has 1 to 16 nodes, not %d", len(nodes))
	}
	seen := map[string]bool{}
	for _, n := range nodes {
		if n == "" || n == "ca" || n[0] == '.' || len(n) > maxString || seen[n] || strings.ContainsAny(n, "/ \t\n") {
			return fmt.Errorf("node name %q: must be unique, 1 to 64 characters, not \"ca\", without blanks and slashes, and not begin with a dot", n)
		}
		seen[n] = true
	}
	for _, sub := range append([]string{"ca"}, nodes...) {
		if _, err := os.Stat(filepath.Join(dir, sub)); err == nil {
			return fmt.Errorf("%s exists already: it is never overwritten", filepath.Join(dir, sub))
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: pki.Serial(), Subject: pkix.Name{CommonName: "Tandem cluster " + group, Organization: []string{group}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caValidity), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, MaxPathLenZero: true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	secret := make([]byte, secretLen)
	rand.Read(secret)
	if err := pki.WriteNew(filepath.Join(dir, "ca"), map[string][]byte{
		caFile: pki.EncodeCertificate(caDER), "ca.key": pki.EncodeKey(caKey), secretFile: []byte(hex.EncodeToString(secret) + "\n"),
	}); err != nil {
		return err
	}
	for i, name := range nodes {
		if err := AddNode(dir, group, name, NodeID(i+1), now); err != nil {
			return err
		}
	}
	return nil
}

// AddNode makes dir/NAME with the CA that InitCluster left in dir/ca.
func AddNode(dir, group, name string, id NodeID, now time.Time) error {
	return addNode(dir, group, name, id, memberHost, now)
}

// AddWitness is AddNode for a witness: without cluster.key, and with a certificate that
// only the members' log accepts.
func AddWitness(dir, group, name string, id NodeID, now time.Time) error {
	if name == "" || name == "ca" || name[0] == '.' || len(name) > maxString || strings.ContainsAny(name, "/ \t\n") {
		return fmt.Errorf("witness name %q: must be 1 to 64 characters, not \"ca\", without blanks and slashes, and not begin with a dot", name)
	}
	return addNode(dir, group, name, id, witnessHost, now)
}

func addNode(dir, group, name string, id NodeID, host string, now time.Time) error {
	if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
		return fmt.Errorf("%s exists already: it is never overwritten", filepath.Join(dir, name))
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, "ca", caFile))
	if err != nil {
		return err
	}
	caKeyPEM, err := os.ReadFile(filepath.Join(dir, "ca", "ca.key"))
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(caPEM, caKeyPEM)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, "ca"), err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	var tail [5]byte
	rand.Read(tail[:])
	serial := fmt.Sprintf("TDM%s%03d", strings.ToUpper(hex.EncodeToString(tail[:])), id)
	cert := &x509.Certificate{
		SerialNumber: pki.Serial(),
		Subject:      pkix.Name{CommonName: name, Organization: []string{group}, SerialNumber: serial},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(nodeValidity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{serverName}, URIs: []*url.URL{nodeURI(host, group, id)},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, pair.Leaf, key.Public(), pair.PrivateKey)
	if err != nil {
		return err
	}
	files := map[string][]byte{caFile: caPEM, certFile: pki.EncodeCertificate(der), keyFile: pki.EncodeKey(key)}
	if host != witnessHost {
		if files[secretFile], err = os.ReadFile(filepath.Join(dir, "ca", secretFile)); err != nil {
			return err
		}
	}
	return pki.WriteNew(filepath.Join(dir, name), files)
}

// serverName is the name that every node's certificate carries; who a node is stands in its URI.
const serverName = "node.tandem.invalid"

// What a certificate allows stands in its URI: to be a member, or to vote only.
const memberHost, witnessHost = "cluster", "witness"

func nodeURI(host, group string, id NodeID) *url.URL {
	return &url.URL{Scheme: "tandem", Host: host, Path: "/" + group + "/" + strconv.Itoa(int(id))}
}

// LoadIdentity reads a member's cluster directory.
func LoadIdentity(dir string) (*Identity, error) {
	i, err := loadCert(dir)
	if err != nil {
		return nil, err
	}
	if i.Witness {
		return nil, fmt.Errorf("cluster-dir: %s is a witness's certificate: it cannot be a gateway", filepath.Join(dir, certFile))
	}
	if err := private(filepath.Join(dir, secretFile)); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, secretFile))
	if err != nil {
		return nil, fmt.Errorf("cluster-dir: %w", err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != secretLen {
		return nil, fmt.Errorf("cluster-dir: %s must hold %d hexadecimal digits", filepath.Join(dir, secretFile), 2*secretLen)
	}
	i.secret = ipsec.NewKey(secret)
	return i, nil
}

// LoadWitness reads a witness's cluster directory. A member's is refused: what it
// holds has no business on the witness's machine.
func LoadWitness(dir string) (*Identity, error) {
	i, err := loadCert(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, secretFile)); !i.Witness || err == nil {
		return nil, fmt.Errorf("cluster-dir: %s is a member's folder, with the cluster's key or a certificate that opens more than the log: make one for the witness with `tandem cluster init --witness NAME` or `tandem cluster add --witness`", dir)
	}
	return i, nil
}

// private refuses a file that others can read.
func private(path string) error {
	if i, err := os.Stat(path); err == nil && i.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("cluster-dir: %s can be read by others (mode %#o): it must have mode 0600", path, i.Mode().Perm())
	}
	return nil
}

func loadCert(dir string) (*Identity, error) {
	if err := private(filepath.Join(dir, keyFile)); err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("cluster-dir: %w (make it with `tandem cluster init`)", err)
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return nil, fmt.Errorf("cluster-dir: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("cluster-dir: %s holds no certificate", filepath.Join(dir, caFile))
	}
	leaf := cert.Leaf
	group, id, witness, err := nodeOf(leaf)
	if err != nil {
		return nil, fmt.Errorf("cluster-dir: %s: %w", filepath.Join(dir, certFile), err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("cluster-dir: %s: %w", filepath.Join(dir, certFile), err)
	}
	return &Identity{Node: id, Name: leaf.Subject.CommonName, Serial: leaf.Subject.SerialNumber, Group: group, Witness: witness,
		NotAfter: leaf.NotAfter, cert: cert, roots: roots}, nil
}

func nodeOf(c *x509.Certificate) (group string, id NodeID, witness bool, err error) {
	for _, u := range c.URIs {
		parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
		if u.Scheme != "tandem" || u.Host != memberHost && u.Host != witnessHost || len(parts) != 2 {
			continue
		}
		n, err := strconv.Atoi(parts[1])
		if err == nil && n >= 1 && n <= 16 {
			return parts[0], NodeID(n), u.Host == witnessHost, nil
		}
	}
	return "", 0, false, errors.New("names no node of a Tandem cluster")
}

// ExpiresSoon says whether the certificate ends within 30 days.
func (i *Identity) ExpiresSoon(now time.Time) bool { return now.Add(expiryNotice).After(i.NotAfter) }

// TLS is the configuration of both ends of a stream between members: TLS 1.3, both
// sides verified against the cluster's CA and its group. A witness is refused: streams
// carry keys.
func (i *Identity) TLS() *tls.Config { return i.tls(i.PeerNode) }

// VoterTLS is the same for the members' log, which a witness shares.
func (i *Identity) VoterTLS() *tls.Config { return i.tls(i.PeerVoter) }

func (i *Identity) tls(peer func(tls.ConnectionState) (NodeID, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.roots, RootCAs: i.roots, ServerName: serverName,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := peer(s)
			return err
		},
	}
}

// PeerNode is the member at the other end of a verified connection.
func (i *Identity) PeerNode(s tls.ConnectionState) (NodeID, error) {
	id, witness, err := i.peer(s)
	if err == nil && witness {
		return 0, fmt.Errorf("is witness %d: it has no part in this", id)
	}
	return id, err
}

// PeerVoter is the member or the witness at the other end.
func (i *Identity) PeerVoter(s tls.ConnectionState) (NodeID, error) {
	id, _, err := i.peer(s)
	return id, err
}

func (i *Identity) peer(s tls.ConnectionState) (id NodeID, witness bool, err error) {
	if len(s.PeerCertificates) == 0 {
		return 0, false, errors.New("no certificate")
	}
	group, id, witness, err := nodeOf(s.PeerCertificates[0])
	switch {
	case err != nil:
		return 0, false, err
	case group != i.Group:
		return 0, false, fmt.Errorf("node of cluster %q, not of %q", group, i.Group)
	case id == i.Node:
		return 0, false, fmt.Errorf("has our own node ID %d", id)
	}
	return id, witness, nil
}

// HeartbeatKey authenticates heartbeats; CookieSecret makes IKE cookies that every
// node of the cluster accepts, and TokenSecret the tokens of quick crash detection; from
// ForwardKey follow the keys of the packets that members forward to one another; GossipKey (32 bytes) encrypts gossip; ConfigKey is that
// of the configuration's digests. All follow from cluster.key, which a witness does not have.
func (i *Identity) HeartbeatKey() ipsec.Key { return i.derive("tandem heartbeat") }
func (i *Identity) ForwardKey() ipsec.Key   { return i.derive("tandem forward") }
func (i *Identity) GossipKey() ipsec.Key    { return i.derive("tandem gossip") }
func (i *Identity) ConfigKey() ipsec.Key    { return i.derive("tandem configuration") }
func (i *Identity) CookieSecret() ipsec.Key { return i.derive("tandem IKE cookie") }
func (i *Identity) TokenSecret() ipsec.Key  { return i.derive("tandem IKE crash token") }

func (i *Identity) derive(label string) ipsec.Key {
	if i.secret.Len() == 0 {
		panic("a witness has no key that follows from the cluster's") // it would be one that everybody knows
	}
	b, err := hkdf.Key(sha256.New, i.secret.Bytes(), nil, label, 32)
	if err != nil {
		panic(err) // only for absurd lengths
	}
	return ipsec.NewKey(b)
}
