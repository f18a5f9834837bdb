package ike

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"tandem/ike/eap"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/pki"
)

// tlsSession is a session with the certificate that the peer showed in it.
type tlsSession struct {
	*eap.Session
	shown *presented
}

// errTLSGone ends an EAP-TLS that another process has begun.
const errTLSGone = "EAP-TLS does not outlive the owner that began it: the client has to begin anew"

// tlsAnswer takes a fragment of the initiator's flight, and sends ours.
func (e *Engine) tlsAnswer(sa *ikeSA, s *eapState, data []byte) (eap.Packet, error) {
	if s.step == eapMethod && s.tls == nil {
		if s.begun {
			return eap.Packet{}, eapFail(errTLSGone)
		}
		t := &tlsSession{}
		c, err := e.tlsServer(sa, t)
		if err != nil {
			return eap.Packet{}, eapFail("%w", err)
		}
		t.Session = eap.NewServer(c)
		s.tls, s.begun = t, true
	}
	flight, whole, err := s.parts.Receive(data)
	switch {
	case err != nil:
		return eap.Packet{}, eapFail("%w", err)
	case !whole || s.parts.Pending():
		return s.request(eap.TLS, s.parts.Next()), nil
	case s.failed:
		return eap.Packet{Code: eap.Failure, ID: s.id}, nil
	case s.step == eapProved:
		return e.tlsProved(sa, s)
	}
	out, done, err := s.tls.Step(flight)
	if err != nil {
		if len(out) == 0 {
			return eap.Packet{}, eapFail("%w", err)
		}
		e.eapRefused(sa, s, err.Error())
		s.failed = true
	}
	if done {
		key, err := s.tls.Key()
		if err != nil {
			return eap.Packet{}, eapFail("%w", err)
		}
		s.step, s.msk, s.user = eapProved, ipsec.NewKey(key), pki.Name(s.tls.shown.leaf)
		if len(out) == 0 {
			return e.tlsProved(sa, s)
		}
	}
	s.parts.Send(out)
	return s.request(eap.TLS, s.parts.Next()), nil
}

// tlsProved ends EAP-TLS, once an OCSP responder has vouched where that is asked for.
func (e *Engine) tlsProved(sa *ikeSA, s *eapState) (eap.Packet, error) {
	if mode := e.cfg.Certificates.Setting.OCSP; s.tls == nil && mode != "" && mode != "disable" {
		return eap.Packet{}, eapFail(errTLSGone)
	}
	if s.tls != nil {
		note, err := e.online(s.tls.shown)
		if note != "" {
			e.warn(sa, note)
		}
		if errors.As(err, new(*awaiting)) {
			return eap.Packet{}, err
		}
		if err != nil {
			return eap.Packet{}, eapFail("%w", err)
		}
	}
	return eap.Packet{Code: eap.Success, ID: s.id}, nil
}

// tlsServer is our side of EAP-TLS as responder: the phase 1's certificate, and the user peers of the group.
func (e *Engine) tlsServer(sa *ikeSA, t *tlsSession) (*tls.Config, error) {
	c, err := e.tlsConfig(sa.p1)
	if err != nil {
		return nil, err
	}
	p1 := sa.p1
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(state tls.ConnectionState) error {
		p, err := e.shownByTLS(state)
		if err != nil {
			return err
		}
		notes, err := e.vouchedBy(e.cfg.EAPUsers(p1).Peers, p, fmt.Errorf("the certificate of %s is no user peer's of %s", pki.Name(p.leaf), p1.AuthUserGroup))
		for _, n := range notes {
			e.warn(sa, n)
		}
		if err == nil {
			t.shown = p
		}
		return err
	}
	return c, nil
}

// tlsConfig is what both sides have. The engine's clock is that of the event at hand.
func (e *Engine) tlsConfig(p1 *config.Phase1) (*tls.Config, error) {
	c := &tls.Config{Rand: e.o.Rand, Time: func() time.Time { return e.now }}
	for _, n := range p1.Certificate {
		own := e.creds().own[n]
		if own == nil {
			continue
		}
		x := tls.Certificate{PrivateKey: own.key, Leaf: own.chain[0]}
		for _, y := range own.chain {
			x.Certificate = append(x.Certificate, y.Raw)
		}
		c.Certificates = append(c.Certificates, x)
	}
	if len(c.Certificates) == 0 {
		return nil, fmt.Errorf("EAP-TLS: none of our certificates (%v) can be used", p1.Certificate)
	}
	return c, nil
}

// shownByTLS reads the certificates of TLS with the bounds of those in IKE_AUTH.
func (e *Engine) shownByTLS(state tls.ConnectionState) (*presented, error) {
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates) > maxPeerCerts {
		return nil, fmt.Errorf("%d certificates by EAP-TLS", len(state.PeerCertificates))
	}
	var all []*x509.Certificate
	for _, c := range state.PeerCertificates {
		x, err := pki.ParseCertificate(c.Raw)
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	return &presented{leaf: all[0], others: all[1:]}, nil
}
