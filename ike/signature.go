package ike

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/pki"
	"tandem/proto/syncpb"
)

// Authentication by signatures (RFC 7296 §2.15, RFC 7427). Which method a peer understands follows
// from its IKE_SA_INIT message alone, which every node has until IKE_AUTH is done: so nothing
// more is remembered of it.

var hashNames = map[string]keymat.HashID{"sha1": keymat.HashSHA1, "sha2-256": keymat.HashSHA256, "sha2-384": keymat.HashSHA384, "sha2-512": keymat.HashSHA512}

// hashesOf are the hashes that a phase 1 signs with and takes, best first.
func hashesOf(p1 *config.Phase1) (out []keymat.HashID) {
	for _, n := range p1.SignatureHash {
		out = append(out, hashNames[n])
	}
	return out
}

// hashPayloads is SIGNATURE_HASH_ALGORITHMS for some phase 1 entries (RFC 7427 §4), if any of them
// signs. RFC 8420's "identity" stands for Ed25519.
func hashPayloads(of ...*config.Phase1) []message.Payload {
	var ids []keymat.HashID
	for _, p1 := range of {
		if !signs(p1) || !p1.DigitalSignatureAuth {
			continue
		}
		for _, h := range append(hashesOf(p1), keymat.HashIdentity) {
			if !slices.Contains(ids, h) {
				ids = append(ids, h)
			}
		}
	}
	if ids == nil {
		return nil
	}
	return []message.Payload{notify(message.SignatureHashAlgorithms, keymat.EncodeHashIDs(ids))}
}

// announcedHashes reads the notification in an IKE_SA_INIT message; nil: there is none.
func announcedHashes(octets []byte) []keymat.HashID {
	m, err := message.Parse(octets)
	if err != nil {
		return nil
	}
	n, ok := m.Notify(message.SignatureHashAlgorithms)
	if !ok {
		return nil
	}
	return keymat.DecodeHashIDs(n.Data)
}

// initOctets are the IKE_SA_INIT messages of the peer and of ours, as they travelled.
func (sa *ikeSA) initOctets() (theirs, ours []byte) {
	if sa.initiator {
		return sa.initResponse, sa.initRequest
	}
	return sa.initRequest, sa.initResponse
}

// initPayloads are what a responder adds to IKE_SA_INIT for those of its phase 1 entries that the
// initiator may mean: the hashes of signatures where it told its own, and the CAs.
func (e *Engine) initPayloads(d Datagram, m *message.Message) (ps []message.Payload) {
	if !e.anySigns() {
		return nil
	}
	cands := e.candidates(d.Local.Addr(), d.Remote.Addr(), d.TCP)
	if _, ok := m.Notify(message.SignatureHashAlgorithms); ok {
		ps = hashPayloads(cands...)
	}
	return append(ps, e.certReq(cands...)...)
}

// ownID is who we say that we are, with the certificate that we prove it by: nil for a
// pre-shared key. row are the hashes of the CAs that the peer asked for.
func (e *Engine) ownCredentials(sa *ikeSA, row []byte) (*ownCert, error) {
	sa.ownID = ownIdentity(sa.p1, sa.local.Addr())
	if !signs(sa.p1) {
		return nil, nil
	}
	theirs, _ := sa.initOctets()
	modern := sa.p1.DigitalSignatureAuth && announcedHashes(theirs) != nil
	var best *ownCert
	for _, n := range sa.p1.Certificate {
		c := e.creds().own[n]
		if c == nil || !modern && keymat.MethodOf(c.key.Public()) == 0 {
			continue
		}
		if best == nil {
			best = c
		}
		if c.wanted(row, e.creds().trust.CAs) {
			best = c
			break
		}
	}
	if best == nil {
		return nil, fmt.Errorf("none of our certificates (%v) can be used with this peer", sa.p1.Certificate)
	}
	if sa.p1.LocalID == "" {
		sa.ownID = identity{message.IDDERASN1, string(best.chain[0].RawSubject)}
	}
	return best, nil
}

var errNoHash = errors.New("the peer takes none of our signature-hash-alg")

// scheme chooses how we sign towards a peer.
func (e *Engine) scheme(sa *ikeSA, pub crypto.PublicKey) (message.AuthMethod, keymat.Scheme, error) {
	p1 := sa.p1
	theirs, _ := sa.initOctets()
	own, peer := hashesOf(p1), announcedHashes(theirs)
	s := keymat.Scheme{Key: keymat.KindOf(pub)}
	natural := keymat.NaturalHash(pub)
	if !p1.DigitalSignatureAuth || peer == nil {
		method := keymat.MethodOf(pub)
		switch {
		case method == 0:
			return 0, s, fmt.Errorf("the peer does not know %s: it told no SIGNATURE_HASH_ALGORITHMS", s)
		case natural != 0:
			s.Hash = natural
		case !p1.RSAHashOverride && slices.Contains(own, keymat.HashSHA1):
			s.Hash = keymat.HashSHA1 // the only one that all such peers know
		default:
			s.Hash = own[0]
		}
		return method, s, nil
	}
	if s.Key == keymat.KeyEd25519 {
		if !slices.Contains(peer, keymat.HashIdentity) {
			return 0, s, errors.New("the peer does not take Ed25519")
		}
		s.Hash = keymat.HashIdentity
		return message.AuthSignature, s, nil
	}
	s.PSS = s.Key == keymat.KeyRSA && p1.RSASignatureFormat == "pss"
	if natural != 0 && slices.Contains(own, natural) {
		own = append([]keymat.HashID{natural}, own...)
	}
	for _, h := range own {
		if slices.Contains(peer, h) {
			s.Hash = h
			return message.AuthSignature, s, nil
		}
	}
	return 0, s, errNoHash
}

// signedOctets are what the initiator's or the responder's AUTH covers.
func (sa *ikeSA) signedOctets(initiator bool, id *message.ID) []byte {
	if initiator {
		return keymat.SignedOctets(sa.suite.PRF, sa.initRequest, sa.nonceR, sa.keys.Pi.Bytes(), id.Body(), sa.intAuth()...)
	}
	return keymat.SignedOctets(sa.suite.PRF, sa.initResponse, sa.nonceI, sa.keys.Pr.Bytes(), id.Body(), sa.intAuth()...)
}

// sign makes our AUTH payload with a certificate's key. It is the costly part of IKE_AUTH: a responder
// comes here after the peer has proved itself.
func (e *Engine) sign(sa *ikeSA, c *ownCert, id *message.ID) (*message.Auth, error) {
	method, s, err := e.scheme(sa, c.key.Public())
	if err != nil {
		return nil, err
	}
	data, err := keymat.Sign(method, s, c.key, e.o.Rand, sa.signedOctets(sa.initiator, id))
	if err != nil {
		return nil, err
	}
	e.debug(sa, "signed with certificate "+c.name, slog.String("signature", s.String()), slog.String("method", method.String()))
	return &message.Auth{Method: method, Data: data}, nil
}

// credentialPayloads are ID, certificates and AUTH of ours; sa.p1 is known. req are the payloads that
// stand between: a CERTREQ and what the initiator has to tell; psk is the key where nobody signs.
func (e *Engine) credentialPayloads(sa *ikeSA, m *message.Message, psk ipsec.Key, req []message.Payload) ([]message.Payload, error) {
	c, err := e.ownCredentials(sa, askedCAs(m))
	if err != nil {
		return nil, err
	}
	id := sa.ownID.payload(!sa.initiator)
	ps := []message.Payload{id}
	if c == nil {
		return append(append(ps, req...), &message.Auth{Method: message.AuthPSK, Data: sa.sharedKeyAuth(sa.initiator, psk, id)}), nil
	}
	ps = append(append(ps, c.payloads()...), req...)
	auth, err := e.sign(sa, c, id)
	if err != nil {
		return nil, err
	}
	return append(ps, auth), nil
}

// sharedKeyAuth is the AUTH data of a pre-shared key.
func (sa *ikeSA) sharedKeyAuth(initiator bool, psk ipsec.Key, id *message.ID) []byte {
	if initiator {
		return keymat.AuthPSK(sa.suite.PRF, psk.Bytes(), sa.initRequest, sa.nonceR, sa.keys.Pi.Bytes(), id.Body(), sa.intAuth()...)
	}
	return keymat.AuthPSK(sa.suite.PRF, psk.Bytes(), sa.initResponse, sa.nonceI, sa.keys.Pr.Bytes(), id.Body(), sa.intAuth()...)
}

func signatureMethod(m message.AuthMethod) bool {
	switch m {
	case message.AuthRSA, message.AuthECDSA256, message.AuthECDSA384, message.AuthECDSA521, message.AuthSignature:
		return true
	}
	return false
}

// checkSignature says whether a peer proved by a signature that it is one whom the phase 1 accepts.
// RFC 7427's method is taken only where we announced our hashes.
func (e *Engine) checkSignature(sa *ikeSA, p1 *config.Phase1, shown *presented, idp *message.ID, auth *message.Auth) (*peerAuth, error) {
	_, ours := sa.initOctets()
	if auth.Method == message.AuthSignature && (!p1.DigitalSignatureAuth || announcedHashes(ours) == nil) {
		return nil, misfit{errors.New("a digital signature (RFC 7427) without SIGNATURE_HASH_ALGORITHMS of ours")}
	}
	notes, err := e.vouched(p1, shown)
	for _, n := range notes {
		e.warn(sa, n)
	}
	if err != nil {
		return nil, err
	}
	cert, own := shown.leaf, hashesOf(p1)
	s, err := keymat.Verify(auth.Method, auth.Data, cert.PublicKey, sa.signedOctets(!sa.initiator, idp), func(s keymat.Scheme) error {
		if s.Hash == keymat.HashIdentity || slices.Contains(own, s.Hash) {
			return nil
		}
		return fmt.Errorf("a signature by %s is not allowed for %s: signature-hash-alg does not name it", s, p1.Name)
	})
	if err != nil {
		return nil, err
	}
	note, err := e.online(shown)
	if note != "" {
		e.warn(sa, note)
	}
	if err != nil {
		return nil, err
	}
	return &peerAuth{method: auth.Method, scheme: s, subject: pki.Name(cert), fingerprint: pki.Fingerprint(cert), notAfter: cert.NotAfter.Truncate(time.Second)}, nil
}

// attrs name the certificate in a log line.
func (a *peerAuth) attrs() []slog.Attr {
	if a == nil {
		return nil
	}
	return []slog.Attr{slog.String("certificate", a.subject), slog.String("sha256", hex.EncodeToString(a.fingerprint[:])),
		slog.String("signature", a.scheme.String()), slog.Time("expires", a.notAfter.UTC())}
}

func (a *peerAuth) encode() *syncpb.PeerAuth {
	if a == nil {
		return nil
	}
	return &syncpb.PeerAuth{Method: uint32(a.method), Key: uint32(a.scheme.Key), Hash: uint32(a.scheme.Hash), Pss: a.scheme.PSS,
		Subject: []byte(a.subject), Fingerprint: a.fingerprint[:], NotAfter: a.notAfter.Unix()}
}

func decodePeerAuth(p *syncpb.PeerAuth) *peerAuth {
	if p == nil {
		return nil
	}
	a := &peerAuth{method: message.AuthMethod(p.Method), subject: string(p.Subject), notAfter: time.Unix(p.NotAfter, 0).UTC(),
		scheme: keymat.Scheme{Key: keymat.KeyKind(p.Key), Hash: keymat.HashID(p.Hash), PSS: p.Pss}}
	copy(a.fingerprint[:], p.Fingerprint)
	return a
}

// status is what diagnose shows of it.
func (a *peerAuth) status() *PeerCertificate {
	if a == nil {
		return nil
	}
	return &PeerCertificate{Subject: a.subject, Fingerprint: a.fingerprint, NotAfter: a.notAfter, Signature: a.scheme.String(), Method: a.method.String()}
}
