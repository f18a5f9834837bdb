package config

import (
	"crypto/x509"
	"strings"

	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

// Certificates are the blocks `config vpn certificate …`. What was read from the texts and
// files stands beside them once ReadCertificates has run; of what was written inline,
// once Load has.
type Certificates struct {
	Local   []LocalCertificate
	CA      []CACertificate
	CRL     []CRL
	Remote  []RemoteCertificate
	Setting CertificateSetting
}

// LocalCertificate is one `config vpn certificate local` entry.
type LocalCertificate struct {
	Name        string
	Certificate string    // as written: PEM or a path; our own certificate, then those above it
	PrivateKey  ipsec.Key // as written: PEM or a path

	Chain []*x509.Certificate // nil: not read
	Key   ipsec.Key           // PKCS #8; see pki.UnmarshalKey

	CertificateLine, KeyLine int
}

// CACertificate is one `config vpn certificate ca` entry; RemoteCertificate one of `remote`: the
// certificate of a peer that may not send it.
type CACertificate struct {
	Name, Text string
	Line       int
	Read       *x509.Certificate
}
type RemoteCertificate struct {
	Name, Text string
	Line       int
	Read       *x509.Certificate
}

// CRL is one `config vpn certificate crl` entry.
type CRL struct {
	Name, Text string
	Line       int
	Read       *pki.CRL
}

// CertificateSetting is `config vpn certificate setting`.
type CertificateSetting struct {
	StrictCRLCheck bool
	OCSP           string // disable, enable, mandatory
	Expiry         string // ignore, revoke
	LeafAbsence    string
	ChainAbsence   string
}

// Revocation is what the setting comes to.
func (s *CertificateSetting) Revocation() pki.Revocation {
	return pki.Revocation{LeafAbsent: s.StrictCRLCheck || s.LeafAbsence == "revoke",
		ChainAbsent: s.StrictCRLCheck || s.ChainAbsence == "revoke", Expired: s.StrictCRLCheck || s.Expiry == "revoke"}
}

// UserPeer is one `config user peer` entry: what the certificate of a peer must have.
type UserPeer struct {
	Name    string
	Line    int
	CA      string // name of a CA certificate; empty: any
	Subject string // parts of the subject; empty: any
	CN      string
	CNType  string // string, email, FQDN, ipv4, ipv6
}

// PeersOf are the entries of `config user peer` that a phase 1 accepts; nil where its
// peertype names none.
func (c *Config) PeersOf(p *Phase1) (out []*UserPeer) {
	names := []string{p.Peer}
	switch p.PeerType {
	case "peergrp":
		names = nil
		for _, g := range c.UserPeerGroups {
			if g.Name == p.PeerGroup {
				names = g.Members
			}
		}
	case "peer":
	default:
		return nil
	}
	for _, n := range names {
		for i := range c.UserPeers {
			if c.UserPeers[i].Name == n {
				out = append(out, &c.UserPeers[i])
			}
		}
	}
	return out
}

// CAByName returns a CA certificate, nil for one that does not exist or was not read.
func (c *Config) CAByName(name string) *x509.Certificate {
	for i := range c.Certificates.CA {
		if c.Certificates.CA[i].Name == name {
			return c.Certificates.CA[i].Read
		}
	}
	return nil
}

// LocalByName returns an own certificate, or nil.
func (c *Config) LocalByName(name string) *LocalCertificate {
	for i := range c.Certificates.Local {
		if c.Certificates.Local[i].Name == name {
			return &c.Certificates.Local[i]
		}
	}
	return nil
}

func isPath(text string) bool { return strings.HasPrefix(text, "/") }
