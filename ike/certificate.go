package ike

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/pki"
)

// Certificates in IKE_AUTH (RFC 7296 §3.6, §3.7): which ones a peer sent, which CAs it asks
// for, whose name a certificate bears.

// Bounds on what a message may bring. A message holds at most 64 payloads as it is.
const (
	maxPeerCerts = pki.MaxChain
	maxCAHashes  = 32 // told in CERTREQ: 640 bytes
	maxAsked     = 64 // looked at of a peer's
)

// peerAuth is how a peer proved itself by a certificate. It never changes once it is made, so
// the IKE SAs that follow by rekeying share it.
type peerAuth struct {
	method      message.AuthMethod
	scheme      keymat.Scheme
	subject     string
	fingerprint [sha256.Size]byte
	notAfter    time.Time // of the certificate, to the second
}

// ownCert is an own certificate with its key.
type ownCert struct {
	name  string
	chain []*x509.Certificate
	key   crypto.Signer
}

// credentials are what certificates of the configuration come to.
type credentials struct {
	of    *config.Config
	own   map[string]*ownCert
	trust pki.Trust
	// remote are certificates of peers that may not send theirs.
	remote  []*x509.Certificate
	anybody bool // any phase 1 signs
	// By their names: a hub has thousands.
	cas   map[string]*x509.Certificate
	peers map[string]*config.UserPeer
}

// anySigns says whether any phase 1 of the configuration in force signs: most have none, and an
// IKE_SA_INIT is not looked at any further for it.
func (e *Engine) anySigns() bool { return e.creds().anybody }

// creds are the credentials of the configuration in force, made when they are first needed.
func (e *Engine) creds() *credentials {
	if e.credentials != nil && e.credentials.of == e.cfg {
		return e.credentials
	}
	c := &credentials{of: e.cfg, own: map[string]*ownCert{}, cas: map[string]*x509.Certificate{}, peers: map[string]*config.UserPeer{}}
	x := &e.cfg.Certificates
	for i := range x.Local {
		l := &x.Local[i]
		if len(l.Chain) == 0 || l.Key.Len() == 0 {
			continue
		}
		key, err := pki.UnmarshalKey(l.Key.Bytes())
		if err == nil {
			c.own[l.Name] = &ownCert{l.Name, l.Chain, key}
		}
	}
	for i := range x.CA {
		if x.CA[i].Read != nil {
			c.trust.CAs = append(c.trust.CAs, x.CA[i].Read)
			c.cas[x.CA[i].Name] = x.CA[i].Read
		}
	}
	for i := range x.CRL {
		if x.CRL[i].Read != nil {
			c.trust.CRLs = append(c.trust.CRLs, x.CRL[i].Read)
		}
	}
	for i := range x.Remote {
		if x.Remote[i].Read != nil {
			c.remote = append(c.remote, x.Remote[i].Read)
		}
	}
	for i := range e.cfg.UserPeers {
		c.peers[e.cfg.UserPeers[i].Name] = &e.cfg.UserPeers[i]
	}
	c.trust.Policy = x.Setting.Revocation()
	for i := range e.cfg.Phase1 {
		c.anybody = c.anybody || signs(&e.cfg.Phase1[i])
	}
	e.credentials = c
	return c
}

// userPeers are what a phase 1 asks of a certificate, any of them; nil where it names none.
func (e *Engine) userPeers(p1 *config.Phase1) []*config.UserPeer {
	if p1.PeerType != "peer" {
		return e.cfg.PeersOf(p1)
	}
	if p := e.creds().peers[p1.Peer]; p != nil {
		return []*config.UserPeer{p}
	}
	return nil
}

func signs(p1 *config.Phase1) bool { return p1.AuthMethod == "signature" }

// authorities are the CAs that may vouch for the peers of a phase 1.
func (e *Engine) authorities(p1 *config.Phase1) []*x509.Certificate {
	peers := e.userPeers(p1)
	if len(peers) == 0 || slices.ContainsFunc(peers, func(p *config.UserPeer) bool { return p.CA == "" }) {
		return e.creds().trust.CAs
	}
	var out []*x509.Certificate
	for _, p := range peers {
		if ca := e.creds().cas[p.CA]; ca != nil && !slices.Contains(out, ca) {
			out = append(out, ca)
		}
	}
	return out
}

// certReq asks for certificates under the CAs of some phase 1 entries; nil where there is
// nothing to ask for.
func (e *Engine) certReq(of ...*config.Phase1) []message.Payload {
	var data []byte
	for _, p1 := range of {
		if !signs(p1) {
			continue
		}
		for _, ca := range e.authorities(p1) {
			h := pki.KeyHash(ca)
			if len(data) < maxCAHashes*sha1.Size && !hashIn(data, h[:]) {
				data = append(data, h[:]...)
			}
		}
	}
	if data == nil {
		return nil
	}
	return []message.Payload{&message.CertReq{Encoding: message.CertX509Signature, Data: data}}
}

// hashIn says that a row of SHA-1 hashes has one of them.
func hashIn(row, hash []byte) bool {
	for ; len(row) >= sha1.Size; row = row[sha1.Size:] {
		if bytes.Equal(row[:sha1.Size], hash) {
			return true
		}
	}
	return false
}

// askedCAs are the hashes in a peer's CERTREQ payloads for X.509 certificates. Other
// encodings, hash and URL among them, are not ours (RFC 7296 §3.7).
func askedCAs(m *message.Message) (row []byte) {
	for _, p := range m.Payloads {
		r, ok := p.(*message.CertReq)
		if !ok || r.Encoding != message.CertX509Signature || len(r.Data)%sha1.Size != 0 {
			continue
		}
		row = append(row, r.Data[:min(len(r.Data), maxAsked*sha1.Size-len(row))]...)
	}
	return row
}

// wanted says that a peer that asked for CAs by their hashes knows one above the certificate.
func (c *ownCert) wanted(row []byte, cas []*x509.Certificate) bool {
	for _, x := range slices.Concat(c.chain[1:], cas) {
		h := pki.KeyHash(x)
		if hashIn(row, h[:]) && slices.ContainsFunc(c.chain, func(y *x509.Certificate) bool { return bytes.Equal(y.RawIssuer, x.RawSubject) }) {
			return true
		}
	}
	return false
}

// payloads are the certificates as they are sent: our own first, then those above it, but for a
// CA's own, which the peer has or does not trust.
func (c *ownCert) payloads() (ps []message.Payload) {
	for i, x := range c.chain {
		if i > 0 && bytes.Equal(x.RawSubject, x.RawIssuer) {
			continue
		}
		ps = append(ps, &message.Cert{Encoding: message.CertX509Signature, Data: x.Raw})
	}
	return ps
}

// peerCerts reads a peer's CERT payloads: its own certificate, which comes first, and others
// (RFC 7296 §3.6). Encodings that we do not ask for are passed over. leaf is nil if there is none.
func peerCerts(m *message.Message) (leaf *x509.Certificate, others []*x509.Certificate, err error) {
	n := 0
	for _, p := range m.Payloads {
		c, ok := p.(*message.Cert)
		if !ok || c.Encoding != message.CertX509Signature {
			continue
		}
		if n++; n > maxPeerCerts {
			return nil, nil, fmt.Errorf("more than %d certificates", maxPeerCerts)
		}
		x, err := pki.ParseCertificate(c.Data)
		switch {
		case err != nil && leaf == nil:
			return nil, nil, fmt.Errorf("the peer's certificate: %w", err)
		case err != nil: // one that we do not need, perhaps
		case leaf == nil:
			leaf = x
		default:
			others = append(others, x)
		}
	}
	return leaf, others, nil
}

// bears says that an identity is a certificate's subject, or one of its subjectAltNames
// (RFC 4945 §3.1).
func bears(c *x509.Certificate, id identity) bool {
	switch id.kind {
	case message.IDFQDN:
		return slices.ContainsFunc(c.DNSNames, func(n string) bool { return strings.EqualFold(n, id.data) })
	case message.IDRFC822:
		return slices.ContainsFunc(c.EmailAddresses, func(n string) bool { return strings.EqualFold(n, id.data) })
	case message.IDIPv4, message.IDIPv6:
		return hasAddress(c, id.data)
	case message.IDDERASN1:
		return pki.EqualDN(c.RawSubject, []byte(id.data))
	}
	return false
}

func hasAddress(c *x509.Certificate, raw string) bool {
	want, ok := netip.AddrFromSlice([]byte(raw))
	for _, ip := range c.IPAddresses {
		if a, valid := netip.AddrFromSlice(ip); ok && valid && a.Unmap() == want.Unmap() {
			return true
		}
	}
	return false
}

// satisfies says whether a certificate has what a user peer asks for, but for its CA.
func satisfies(c *x509.Certificate, p *config.UserPeer) bool {
	if !pki.ContainsDN(c.RawSubject, p.Subject) {
		return false
	}
	if p.CN == "" {
		return true
	}
	same := func(n string) bool { return strings.EqualFold(n, p.CN) }
	if same(c.Subject.CommonName) {
		return true
	}
	switch p.CNType {
	case "email":
		return slices.ContainsFunc(c.EmailAddresses, same)
	case "FQDN":
		return slices.ContainsFunc(c.DNSNames, same)
	case "ipv4", "ipv6":
		a, err := netip.ParseAddr(p.CN)
		return err == nil && hasAddress(c, string(a.AsSlice()))
	}
	return false
}

// misfit says that a certificate cannot be meant by a phase 1: names tell, no signature was checked.
type misfit struct{ error }

func (m misfit) Unwrap() error { return m.error }

var errNoCertificate = errors.New("the peer sent no certificate, and no remote certificate bears its identity")

// presented is what a peer shows of itself: its certificate, those beside it, its identity. It is read
// once, however many phase 1 entries it is held against.
type presented struct {
	id     identity
	leaf   *x509.Certificate
	others []*x509.Certificate
	err    error
	issuer *x509.Certificate // once it is vouched for; nil: it is itself trusted
}

func (e *Engine) present(m *message.Message, id identity) *presented {
	p := &presented{id: id}
	p.leaf, p.others, p.err = peerCerts(m)
	if p.err != nil || p.leaf != nil {
		return p
	}
	for _, r := range e.creds().remote {
		if bears(r, id) {
			p.leaf = r
		}
	}
	if p.leaf == nil {
		p.err = errNoCertificate
	}
	return p
}

// vouched checks a peer's certificate for a phase 1: its identity, what a user peer asks for, the way
// to a CA, revocation. Nothing costly comes before the names fit.
func (e *Engine) vouched(p1 *config.Phase1, p *presented) (notes []string, err error) {
	switch {
	case p.err != nil:
		return nil, misfit{p.err}
	case p1.CertIDValidation && !bears(p.leaf, p.id):
		return nil, misfit{fmt.Errorf("the certificate of %s does not bear the identity %s", pki.Name(p.leaf), p.id)}
	}
	trust := &e.creds().trust
	if p1.PeerType != "peer" && p1.PeerType != "peergrp" {
		chain, notes, err := trust.Verify(p.leaf, p.others, nil, e.now)
		p.issuer = issuerIn(chain)
		return notes, err
	}
	return e.vouchedBy(e.userPeers(p1), p, fmt.Errorf("the certificate of %s is none of %s %s%s", pki.Name(p.leaf), p1.PeerType, p1.Peer, p1.PeerGroup))
}

// vouchedBy checks a certificate for what some user peers ask for; unknown says that it is none of them.
func (e *Engine) vouchedBy(peers []*config.UserPeer, p *presented, unknown error) (notes []string, err error) {
	trust := &e.creds().trust
	err = misfit{unknown}
	var tried []*x509.Certificate
	for _, u := range peers {
		if !satisfies(p.leaf, u) {
			continue
		}
		via := e.creds().cas[u.CA]
		if u.CA != "" && via == nil || slices.Contains(tried, via) {
			continue // the same CA again would cost the same again
		}
		tried = append(tried, via)
		var chain []*x509.Certificate
		if chain, notes, err = trust.Verify(p.leaf, p.others, via, e.now); err == nil {
			p.issuer = issuerIn(chain)
			return notes, nil
		}
	}
	return notes, err
}

func issuerIn(chain []*x509.Certificate) *x509.Certificate {
	if len(chain) < 2 {
		return nil
	}
	return chain[1]
}

// asksAnew says whether a change asks something else of the peer's certificate, or has us prove
// ourselves by another one. A certificate that only was renewed, or a list of revoked ones, counts
// from the next IKE_AUTH on: nothing is torn down for it.
func asksAnew(was *config.Config, a *config.Phase1, is *config.Config, b *config.Phase1) bool {
	if !signs(a) && !signs(b) {
		return false // renews says that one became the other
	}
	asked := func(c *config.Config, p *config.Phase1) (out []config.UserPeer) {
		for _, u := range c.PeersOf(p) {
			x := *u
			x.Line = 0
			out = append(out, x)
		}
		return out
	}
	return !slices.Equal(a.Certificate, b.Certificate) || a.Peer != b.Peer || a.PeerGroup != b.PeerGroup ||
		a.CertIDValidation != b.CertIDValidation || !slices.Equal(asked(was, a), asked(is, b))
}
