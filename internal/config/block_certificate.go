package config

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

func certificateName(what string) func(string, int) string {
	return func(name string, _ int) string { return nameFault(what, name, 35) }
}

const certificateIgnored = `comments range source last-updated uuid obsolete`

var localCertSpec = &spec[LocalCertificate]{
	path:  "vpn certificate local",
	help:  "An own certificate with its private key. Behind the certificate may stand those of the CAs above it; all of them are sent to peers. A path means a file that each member of a cluster has for itself; text is shared like the rest of the configuration.",
	label: "certificate",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, line int) (LocalCertificate, string) {
		return LocalCertificate{Name: name}, certificateName("a certificate")(name, line)
	},
	rows: []row[LocalCertificate]{
		{key: "certificate", value: pemText{}, at: func(c *LocalCertificate) any { return &c.Certificate }, help: "the certificate and those above it; required"},
		{key: "private-key", value: pemText{key: true}, at: func(c *LocalCertificate) any { return &c.PrivateKey }, help: "its key, not encrypted; required; never shown"},
	},
	ignored: append(plain(certificateIgnored+` auto-regenerate-* name-encoding ike-localid ike-localid-type enroll-protocol est-* acme-* scep-* cmp-* ca-identifier
		private-key-retain state csr cert-* details`),
		ignored{key: "password", only: []string{""}, why: "encrypted keys are not read: write the key in plain form, or name its file"}),
}

var caCertSpec = &spec[CACertificate]{
	path:  "vpn certificate ca",
	help:  "A CA that is trusted to name peers. An intermediate CA that stands here is trusted by itself, without the one above it.",
	label: "CA certificate",
	entry: "NAME (up to 79 bytes)",
	make: func(name string, line int) (CACertificate, string) {
		return CACertificate{Name: name}, nameFault("a CA certificate", name, 79)
	},
	rows: []row[CACertificate]{
		{key: "ca", value: pemText{}, at: func(c *CACertificate) any { return &c.Text }, help: "the CA's certificate; required"},
	},
	ignored: plain(certificateIgnored + ` auto-update-days auto-update-days-warning scep-url est-url source-ip ca-identifier ssl-inspection-trusted fabric-ca non-fabric-name details`),
}

var crlSpec = &spec[CRL]{
	path:  "vpn certificate crl",
	help:  "A list of certificates that its CA has revoked: a complete one, issued by a CA of `config vpn certificate ca` itself. A file is read again when the configuration is loaded again (`execute reload`); lists are not fetched from anywhere.",
	label: "CRL",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, line int) (CRL, string) {
		return CRL{Name: name}, certificateName("a CRL")(name, line)
	},
	rows: []row[CRL]{
		{key: "crl", value: pemText{}, at: func(c *CRL) any { return &c.Text }, help: "the list; required"},
	},
	ignored: append(plain(certificateIgnored+` update-vdom scep-cert update-interval source-ip details`),
		ignored{key: "http-url", only: []string{""}, why: "lists are not fetched: write the list, or name its file"},
		ignored{key: "ldap-*", only: []string{""}, why: "lists are not fetched: write the list, or name its file"},
		ignored{key: "scep-url", only: []string{""}, why: "lists are not fetched: write the list, or name its file"}),
}

var remoteCertSpec = &spec[RemoteCertificate]{
	path:  "vpn certificate remote",
	help:  "The certificate of a peer that does not send it in IKE_AUTH. A CA has to vouch for it like for any other.",
	label: "remote certificate",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, line int) (RemoteCertificate, string) {
		return RemoteCertificate{Name: name}, certificateName("a remote certificate")(name, line)
	},
	rows: []row[RemoteCertificate]{
		{key: "remote", value: pemText{}, at: func(c *RemoteCertificate) any { return &c.Text }, help: "the peer's certificate; required"},
	},
	ignored: plain(certificateIgnored + " details"),
}

var certSettingSpec = &spec[CertificateSetting]{
	path: "vpn certificate setting",
	help: "What a list of revoked certificates that is missing or out of date means. A certificate that a list names is always refused; without any `config vpn certificate crl` and with the defaults nothing is checked.",
	rows: []row[CertificateSetting]{
		{key: "strict-crl-check", value: toggle{}, def: "disable", at: func(s *CertificateSetting) any { return &s.StrictCRLCheck }, help: "every issuer in a peer's chain needs a list that is up to date: as if all three of crl-verification said revoke"},
		{key: "ocsp-status", value: oneOf("disable", "enable", "mandatory"), def: "disable", at: func(s *CertificateSetting) any { return &s.OCSP }, help: "asks the OCSP responder that a peer's certificate names: enable refuses what it calls revoked, mandatory also what it does not call good"},
	},
	ignored: append(plain(`certname-* ssl-* interface interface-select-method source-ip proxy* check-ca-cert check-ca-chain subject-match subject-set cn-match cn-allow-multi
		cmp-* cert-expire-warning vrf-select ocsp-default-server`),
		ignored{key: "ocsp-option", only: []string{"certificate"}, why: "the responder is the one that the certificate names"},
		ignored{key: "strict-ocsp-check", only: []string{"disable"}, why: "write `set ocsp-status mandatory`"}),
	children: []child[CertificateSetting]{{
		path: "crl-verification",
		open: func(s *CertificateSetting, _ *source) scope {
			return &object[CertificateSetting]{def: crlVerificationSpec, val: s, src: newSource(crlVerificationSpec.path, "", 0)}
		},
		show: func(s *CertificateSetting, p *printer) {
			p.optional(&object[CertificateSetting]{def: crlVerificationSpec, val: s, src: newSource(crlVerificationSpec.path, "", 0)})
		},
	}},
}

var crlVerificationSpec = &spec[CertificateSetting]{
	path: "crl-verification",
	help: "Within `config vpn certificate setting`: what is missing, one by one.",
	rows: []row[CertificateSetting]{
		{key: "expiry", value: oneOf("ignore", "revoke"), def: "ignore", at: func(s *CertificateSetting) any { return &s.Expiry }, help: "a list that is out of date: still counts, with a line in the log, or refuses"},
		{key: "leaf-crl-absence", value: oneOf("ignore", "revoke"), def: "ignore", at: func(s *CertificateSetting) any { return &s.LeafAbsence }, help: "no list of the issuer of the peer's own certificate"},
		{key: "chain-crl-absence", value: oneOf("ignore", "revoke"), def: "ignore", at: func(s *CertificateSetting) any { return &s.ChainAbsence }, help: "no list for a CA between the peer and ours"},
	},
}

var userPeerSpec = &spec[UserPeer]{
	path:  "user peer",
	help:  "What the certificate of a peer must have. All that is written has to hold.",
	label: "user peer",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, line int) (UserPeer, string) {
		return UserPeer{Name: name, Line: line}, nameFault("a user peer", name, 35)
	},
	rows: []row[UserPeer]{
		{key: "ca", value: text{max: 127, what: "the name of a CA certificate"}, at: func(p *UserPeer) any { return &p.CA }, help: "the CA that must vouch for it; empty: any of `config vpn certificate ca`"},
		{key: "subject", value: text{max: 255, what: "parts of a name: \"O=Example, OU=VPN\""}, at: func(p *UserPeer) any { return &p.Subject }, help: "parts that its subject must have"},
		{key: "cn", value: text{max: 255}, at: func(p *UserPeer) any { return &p.CN }, help: "its common name, or its subjectAltName of cn-type"},
		{key: "cn-type", value: oneOf("string", "email", "FQDN", "ipv4", "ipv6"), def: "string", at: func(p *UserPeer) any { return &p.CNType }, help: "what cn is: string is the common name alone"},
		{key: "mandatory-ca-verify", value: only("enable", "a certificate that no CA vouches for proves nothing"), at: nowhere[UserPeer], help: "always"},
	},
	ignored: append(plain("ocsp-override-server mode passwd"),
		ignored{key: "ldap-*", only: []string{""}, why: "directories are not asked"},
		ignored{key: "two-factor", only: []string{"disable"}, why: "there is no second factor here"},
		ignored{key: "mfa-*", only: []string{"", "none"}, why: "there is no second factor here"}),
}

var userPeerGroupSpec = &spec[UserPeerGroup]{
	path:  "user peergrp",
	help:  "Several user peers under one name.",
	label: "user peergrp",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, _ int) (UserPeerGroup, string) {
		return UserPeerGroup{Name: name}, nameFault("a user peergrp", name, 35)
	},
	rows: []row[UserPeerGroup]{
		{key: "member", value: names{max: 35, what: "names of user peers"}, at: func(g *UserPeerGroup) any { return &g.Members }, help: "any of them is accepted; required"},
	},
}

// certificateBlocks are the blocks of this file, as blocks lists them.
func certificateBlocks() []block {
	return []block{
		{path: caCertSpec.path, init: func(ld *loader) { ld.ca = newTable(caCertSpec, "") }, open: func(ld *loader) scope { return ld.ca },
			view: func(c *Config) printable {
				return tableOf(caCertSpec, c.Certificates.CA, same[CACertificate], func(x *CACertificate) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(caCertSpec) }},
		{path: localCertSpec.path, init: func(ld *loader) { ld.local = newTable(localCertSpec, "") }, open: func(ld *loader) scope { return ld.local },
			view: func(c *Config) printable {
				return tableOf(localCertSpec, c.Certificates.Local, same[LocalCertificate], func(x *LocalCertificate) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(localCertSpec) }},
		{path: crlSpec.path, init: func(ld *loader) { ld.crl = newTable(crlSpec, "") }, open: func(ld *loader) scope { return ld.crl },
			view: func(c *Config) printable {
				return tableOf(crlSpec, c.Certificates.CRL, same[CRL], func(x *CRL) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(crlSpec) }},
		{path: remoteCertSpec.path, init: func(ld *loader) { ld.remote = newTable(remoteCertSpec, "") }, open: func(ld *loader) scope { return ld.remote },
			view: func(c *Config) printable {
				return tableOf(remoteCertSpec, c.Certificates.Remote, same[RemoteCertificate], func(x *RemoteCertificate) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(remoteCertSpec) }},
		{path: certSettingSpec.path, init: func(ld *loader) {
			ld.certSetting = newSingle(certSettingSpec)
			for i := range crlVerificationSpec.rows {
				crlVerificationSpec.rows[i].reset(ld.certSetting.val)
			}
		}, open: func(ld *loader) scope { return ld.certSetting },
			view: func(c *Config) printable { return viewOf(certSettingSpec, c.Certificates.Setting) },
			ref:  func() []refBlock { return append(refsOf(certSettingSpec), refsOf(crlVerificationSpec)...) }},
		{path: userPeerSpec.path, init: func(ld *loader) { ld.userPeer = newTable(userPeerSpec, "") }, open: func(ld *loader) scope { return ld.userPeer },
			view: func(c *Config) printable {
				return tableOf(userPeerSpec, c.UserPeers, same[UserPeer], func(x *UserPeer) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(userPeerSpec) }},
		{path: userPeerGroupSpec.path, init: func(ld *loader) { ld.userPeerGroup = newTable(userPeerGroupSpec, "") }, open: func(ld *loader) scope { return ld.userPeerGroup },
			view: func(c *Config) printable {
				return tableOf(userPeerGroupSpec, c.UserPeerGroups, same[UserPeerGroup], func(x *UserPeerGroup) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(userPeerGroupSpec) }},
		{path: userSpec.path, init: func(ld *loader) { ld.users = newTable(userSpec, "") }, open: func(ld *loader) scope { return ld.users },
			view: func(c *Config) printable {
				return tableOf(userSpec, c.Users, same[User], func(x *User) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(userSpec) }},
		{path: radiusSpec.path, init: func(ld *loader) { ld.radius = newTable(radiusSpec, "") }, open: func(ld *loader) scope { return ld.radius },
			view: func(c *Config) printable {
				return tableOf(radiusSpec, c.RADIUS, same[RADIUSServer], func(x *RADIUSServer) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(radiusSpec) }},
		{path: userGroupSpec.path, init: func(ld *loader) { ld.userGroups = newTable(userGroupSpec, "") }, open: func(ld *loader) scope { return ld.userGroups },
			view: func(c *Config) printable {
				return tableOf(userGroupSpec, c.UserGroups, same[UserPeerGroup], func(x *UserPeerGroup) string { return x.Name })
			},
			ref: func() []refBlock { return refsOf(userGroupSpec) }},
	}
}

// buildCertificates takes the blocks over and reads what stands in them as text.
func (ld *loader) buildCertificates(c *Config) {
	missing := func(s *source, key, what string) {
		if !s.bad[key] {
			ld.fault(s.at(key), s.object, key, key+" is missing: "+what)
		}
	}
	for _, o := range ld.ca.entries {
		if o.val.Line = o.src.at("ca"); o.val.Text == "" {
			missing(o.src, "ca", "it needs the CA's certificate")
		}
		c.Certificates.CA = append(c.Certificates.CA, *o.val)
	}
	for _, o := range ld.local.entries {
		o.val.CertificateLine, o.val.KeyLine = o.src.at("certificate"), o.src.at("private-key")
		if o.val.Certificate == "" {
			missing(o.src, "certificate", "it needs a certificate")
		}
		if o.val.PrivateKey.Len() == 0 {
			missing(o.src, "private-key", "it needs the certificate's private key")
		}
		c.Certificates.Local = append(c.Certificates.Local, *o.val)
	}
	for _, o := range ld.crl.entries {
		if o.val.Line = o.src.at("crl"); o.val.Text == "" {
			missing(o.src, "crl", "it needs the list")
		}
		c.Certificates.CRL = append(c.Certificates.CRL, *o.val)
	}
	for _, o := range ld.remote.entries {
		if o.val.Line = o.src.at("remote"); o.val.Text == "" {
			missing(o.src, "remote", "it needs the peer's certificate")
		}
		c.Certificates.Remote = append(c.Certificates.Remote, *o.val)
	}
	c.Certificates.Setting = *ld.certSetting.val
	c.UserPeers, c.UserPeerGroups = ld.userPeer.values(), ld.userPeerGroup.values()
	c.Users, c.UserGroups, c.RADIUS = ld.users.values(), ld.userGroups.values(), ld.radius.values()
	for _, f := range c.readCertificates(nil, time.Time{}, false) {
		ld.add(f)
	}
	ld.checkUserPeers(c)
	ld.checkSignatures(c)
	ld.checkUsers(c)
	ld.checkEAP(c)
}

// checkUserPeers settles what user peers and their groups name.
func (ld *loader) checkUserPeers(c *Config) {
	var cas, peers []string
	for _, x := range c.Certificates.CA {
		cas = append(cas, x.Name)
	}
	for _, o := range ld.userPeer.entries {
		p, s := o.val, o.src
		peers = append(peers, p.Name)
		switch {
		case p.CA != "" && !slices.Contains(cas, p.CA):
			ld.fault(s.at("ca"), s.object, "ca", fmt.Sprintf("ca (%s) names no CA certificate%s", echo(p.CA), ld.hint(p.CA, cas)))
		case p.Subject != "" && !pki.IsDN(p.Subject):
			ld.fault(s.at("subject"), s.object, "subject", fmt.Sprintf("subject (%s) must be parts of a name, e.g. \"O=Example, OU=VPN\"", echo(p.Subject)))
		case p.CA == "" && p.Subject == "" && p.CN == "":
			ld.fault(s.line, s.object, "", "asks for nothing, so any certificate would be this peer's: write ca, subject or cn")
		case (p.CNType == "ipv4" || p.CNType == "ipv6") && p.CN != "":
			if a, err := parseAddr(p.CN); err != nil || a.Is4() != (p.CNType == "ipv4") {
				ld.fault(s.at("cn"), s.object, "cn", fmt.Sprintf("cn (%s) must be an address with cn-type %s", echo(p.CN), p.CNType))
			}
		}
	}
	for _, o := range ld.userPeerGroup.entries {
		g, s := o.val, o.src
		if len(g.Members) == 0 {
			ld.fault(s.at("member"), s.object, "member", "member is missing: a group needs user peers")
		}
		for _, m := range g.Members {
			if !slices.Contains(peers, m) {
				ld.fault(s.at("member"), s.object, "member", fmt.Sprintf("member (%s) names no user peer%s", echo(m), ld.hint(m, peers)))
			}
		}
	}
}

// checkSignatures settles what phase 1 entries say of certificates and of their peers.
func (ld *loader) checkSignatures(c *Config) {
	var locals, peers, groups []string
	for _, x := range c.Certificates.Local {
		locals = append(locals, x.Name)
	}
	for _, x := range c.UserPeers {
		peers = append(peers, x.Name)
	}
	for _, x := range c.UserPeerGroups {
		groups = append(groups, x.Name)
	}
	for _, o := range ld.phase1.entries {
		p, s := o.val, o.src
		fault := func(key, format string, args ...any) {
			if !s.bad[key] {
				ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
			}
		}
		for _, want := range []struct {
			key, name, word string
			known           []string
		}{{"peer", p.Peer, "user peer", peers}, {"peergrp", p.PeerGroup, "user peergrp", groups}} {
			switch {
			case p.PeerType == want.key && p.AuthMethod != "signature":
				fault("peertype", "peertype (%s) looks at certificates: it needs `set authmethod signature`", p.PeerType)
			case p.PeerType == want.key && want.name == "":
				fault(want.key, "%s is missing: peertype %s needs the name of a %s", want.key, want.key, want.word)
			case p.PeerType != want.key && want.name != "":
				fault(want.key, "%s is only checked with `set peertype %s` (peertype is %s)", want.key, want.key, p.PeerType)
			case want.name != "" && !slices.Contains(want.known, want.name):
				fault(want.key, "%s (%s) names no %s%s", want.key, echo(want.name), want.word, ld.hint(want.name, want.known))
			}
		}
		if p.AuthMethod != "signature" {
			continue
		}
		if len(c.Certificates.CA) == 0 && !(p.EAP && p.Type == "dynamic") {
			fault("authmethod", "authmethod (signature) needs a CA that vouches for the peer: write `config vpn certificate ca`")
		}
		for _, n := range p.Certificate {
			if !slices.Contains(locals, n) {
				fault("certificate", "certificate (%s) names no own certificate%s", echo(n), ld.hint(n, locals))
			}
		}
		if p.LocalIDType == "keyid" && p.CertIDValidation {
			ld.warn(s.at("localid-type"), s.object, "localid-type", "localid-type (keyid) is no name that a certificate can have: peers that validate it refuse it")
		}
	}
}

// ReadCertificates reads the files that certificates, keys and lists are written in, by read, and
// says what is wrong with them, and which certificates are not valid now. file is the
// configuration's, for faults. The configuration must not be used where a fault is no warning.
// strict: an own certificate that is not valid now is more than a warning. Who runs the configuration
// does not want that: the other tunnels have nothing to do with it.
func (c *Config) ReadCertificates(file string, now time.Time, strict bool, read func(path string, private bool) ([]byte, error)) []Fault {
	out := c.readCertificates(read, now, strict)
	for i := range out {
		out[i].File = file
	}
	return out
}

// certReader gathers faults.
type certReader struct {
	read   func(string, bool) ([]byte, error)
	now    time.Time
	strict bool
	faults []Fault
}

func (r *certReader) fault(line int, object, key string, err error) {
	r.faults = append(r.faults, Fault{Line: line, Object: object, Key: key, Message: key + " " + err.Error()})
}

func (r *certReader) warn(line int, object, key, message string) {
	r.faults = append(r.faults, Fault{Line: line, Object: object, Key: key, Message: message, Warning: true})
}

// text is what a keyword holds, or the file that it names; ok is false when there is nothing to read.
func (r *certReader) text(line int, object, key, written string, private bool) (text []byte, ok bool) {
	if written == "" || isPath(written) && r.read == nil {
		return nil, false
	}
	if !isPath(written) {
		return []byte(written), true
	}
	b, err := r.read(written, private)
	if err != nil {
		r.fault(line, object, key, fmt.Errorf("(%s) cannot be read: %w", written, err))
		return nil, false
	}
	if len(b) > pki.MaxFile {
		r.fault(line, object, key, fmt.Errorf("(%s) must not be larger than %d MiB", written, pki.MaxFile>>20))
		return nil, false
	}
	return b, true
}

// expiryNotice is how long before its end a certificate is warned of.
const expiryNotice = 30 * 24 * time.Hour

// valid says what the time has to say about a certificate of ours. Without a time nothing.
func (r *certReader) valid(line int, object, key string, c *x509.Certificate) {
	if r.now.IsZero() {
		return
	}
	if err := pki.Valid(c, r.now); err != nil {
		r.fault(line, object, key, fmt.Errorf("is not valid now: %w", err))
		r.faults[len(r.faults)-1].Warning = !r.strict
	} else if r.now.Add(expiryNotice).After(c.NotAfter) {
		r.warn(line, object, key, fmt.Sprintf("%s: the certificate of %s expires on %s", key, pki.Name(c), c.NotAfter.UTC().Format(time.RFC3339)))
	}
}

func (c *Config) readCertificates(read func(string, bool) ([]byte, error), now time.Time, strict bool) []Fault {
	r := &certReader{read: read, now: now, strict: strict}
	x := &c.Certificates
	var cas []*x509.Certificate
	for i := range x.CA {
		e := &x.CA[i]
		object := caCertSpec.label + " " + echo(e.Name)
		e.Read = r.one(e.Line, object, "ca", e.Text)
		if e.Read == nil {
			continue
		}
		if !e.Read.IsCA || !e.Read.BasicConstraintsValid {
			r.fault(e.Line, object, "ca", fmt.Errorf("holds the certificate of %s, which is no CA", pki.Name(e.Read)))
		}
		if !now.IsZero() {
			if err := pki.Valid(e.Read, now); err != nil { // others may still be good
				r.warn(e.Line, object, "ca", "ca is not valid now: "+err.Error())
			}
		}
		cas = append(cas, e.Read)
	}
	for i := range x.Local {
		r.local(&x.Local[i], cas)
	}
	for i := range x.Remote {
		e := &x.Remote[i]
		e.Read = r.one(e.Line, remoteCertSpec.label+" "+echo(e.Name), "remote", e.Text)
	}
	for i := range x.CRL {
		e := &x.CRL[i]
		e.Read = nil
		object := crlSpec.label + " " + echo(e.Name)
		text, ok := r.text(e.Line, object, "crl", e.Text, false)
		if !ok {
			continue
		}
		if read == nil && slices.ContainsFunc(x.CA, func(ca CACertificate) bool { return ca.Read == nil }) {
			continue // its issuer may stand in a file
		}
		l, err := pki.ParseCRL(text, cas)
		if err != nil {
			r.fault(e.Line, object, "crl", err)
			continue
		}
		e.Read = l
		if next := l.List.NextUpdate; !now.IsZero() && !next.IsZero() && now.After(next) {
			r.warn(e.Line, object, "crl", "crl is out of date since "+next.UTC().Format(time.RFC3339))
		}
	}
	return r.faults
}

// one reads a single certificate.
func (r *certReader) one(line int, object, key, written string) *x509.Certificate {
	text, ok := r.text(line, object, key, written, false)
	if !ok {
		return nil
	}
	cs, err := pki.ParseCertificates(text, 1)
	if err != nil {
		r.fault(line, object, key, err)
		return nil
	}
	return cs[0]
}

// local reads an own certificate with those above it, and its key.
func (r *certReader) local(e *LocalCertificate, cas []*x509.Certificate) {
	object := localCertSpec.label + " " + echo(e.Name)
	e.Chain, e.Key = nil, ipsec.Key{}
	if text, ok := r.text(e.CertificateLine, object, "certificate", e.Certificate, false); ok {
		chain, err := pki.ParseCertificates(text, pki.MaxChain)
		if err == nil {
			err = pki.Order(chain)
		}
		if err != nil {
			r.fault(e.CertificateLine, object, "certificate", err)
		} else {
			e.Chain = chain
			for _, c := range chain {
				r.valid(e.CertificateLine, object, "certificate", c)
			}
		}
	}
	text, ok := r.text(e.KeyLine, object, "private-key", string(e.PrivateKey.Bytes()), true)
	if !ok {
		return
	}
	key, err := pki.ParseKey(text)
	if isPath(string(e.PrivateKey.Bytes())) {
		clear(text)
	}
	if err != nil {
		r.fault(e.KeyLine, object, "private-key", err)
		return
	}
	if e.Chain == nil {
		return
	}
	if !pki.Fits(e.Chain[0], key) {
		r.fault(e.KeyLine, object, "private-key", fmt.Errorf("is not the key of the certificate (%s)", pki.Name(e.Chain[0])))
		return
	}
	der, err := pki.MarshalKey(key)
	if err != nil {
		r.fault(e.KeyLine, object, "private-key", err)
		return
	}
	e.Key = ipsec.NewKey(der)
	clear(der)
	r.known(e, object, cas)
}

// known warns of an own certificate that none of our CAs issued: peers may know another.
func (r *certReader) known(e *LocalCertificate, object string, cas []*x509.Certificate) {
	if r.now.IsZero() || len(cas) == 0 || pki.Valid(e.Chain[0], r.now) != nil {
		return
	}
	t := pki.Trust{CAs: cas}
	if _, _, err := t.Verify(e.Chain[0], e.Chain[1:], nil, r.now); err != nil {
		r.warn(e.CertificateLine, object, "certificate", "certificate: "+strings.TrimSpace(err.Error())+"; peers that know no other CA refuse it")
	}
}
