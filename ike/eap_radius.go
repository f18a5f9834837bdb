package ike

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"tandem/ike/eap"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// EAP by a RADIUS server (RFC 3579) needs the network, which is the shell's, as OCSP does: AskRADIUS asks
// it, and the IKE_AUTH request is as if it had not come until Options.RADIUS knows the answer. What the
// record has is the server's State, and which of its two hosts gave it. So whoever takes over while a
// question is out asks again when the request comes again: where the server has not dealt with the first
// question it goes on, else it rejects the old State, and the client begins anew.

// AskRADIUS asks a RADIUS server for its next word on a user. Within a bounded time Options.RADIUS must
// know something under Key; then Datagram is to be handed in again.
type AskRADIUS struct {
	Key    [sha256.Size]byte
	Server config.RADIUSServer
	// Which of the server's hosts has begun: 1 or 2; 0: none yet.
	Which           int
	User            string
	State           []byte // empty: the conversation begins
	EAP             []byte // the packet of the peer
	Client, Gateway netip.Addr
	Datagram        Datagram
}

func (AskRADIUS) effect() {}

// RADIUSCode is a kind of answer.
type RADIUSCode uint8

const (
	RADIUSSilence RADIUSCode = iota // no host gave an answer that is authentic
	RADIUSAccept
	RADIUSChallenge
	RADIUSReject
)

// RADIUSAnswer is what a server said.
type RADIUSAnswer struct {
	Code  RADIUSCode
	Which int
	State []byte
	EAP   []byte
	User  string    // how the server calls the user; may be empty
	Key   ipsec.Key // MSK of an Accept: what the gateway receives with, what it sends with
}

// askingRADIUS says that a message has to wait for a server.
type askingRADIUS struct{ q AskRADIUS }

func (w *askingRADIUS) Error() string {
	return "the RADIUS server " + w.q.Server.Name + " has to be asked"
}

// minRADIUSKey is how much key a method must give, in bytes, for AUTH to prove anything.
const minRADIUSKey = 32

// beginRADIUS gives the conversation to a server, with the identity as its first packet (RFC 3579 §2.1).
func (e *Engine) beginRADIUS(sa *ikeSA, ev *event, s *eapState, r *config.RADIUSServer) (eap.Packet, error) {
	if len(s.identity) > eap.MaxIdentity {
		return eap.Packet{}, eapFail("an identity of %d bytes", len(s.identity))
	}
	s.step, s.method, s.server = eapMethod, 0, r.Name
	return e.askRADIUS(sa, ev, s, eap.Packet{Code: eap.Response, ID: s.id, Type: eap.Identity, Data: []byte(s.identity)}.Encode())
}

func (e *Engine) askRADIUS(sa *ikeSA, ev *event, s *eapState, raw []byte) (eap.Packet, error) {
	q := AskRADIUS{Which: s.which, User: s.identity, State: s.radius, EAP: raw, Client: sa.remote.Addr(), Gateway: sa.local.Addr(), Datagram: ev.d}
	q.Key = sa.questionKey(ev.m, s, raw)
	if e.o.RADIUS == nil {
		return eap.Packet{}, eapFail("no RADIUS server can be asked")
	}
	for _, r := range e.cfg.EAPUsers(sa.p1).By {
		if r.Name == s.server {
			q.Server = *r
		}
	}
	if q.Server.Name == "" {
		return eap.Packet{}, eapFail("the RADIUS server %s is not configured any more", s.server)
	}
	from := attempt{s.identity, sa.remote.Addr()}
	if e.slow.waits(e.now, from) {
		return eap.Packet{}, eapFail("again too soon after a failure")
	}
	a, known := e.o.RADIUS(q.Key)
	if !known {
		return eap.Packet{}, &askingRADIUS{q}
	}
	switch a.Code {
	case RADIUSAccept:
		return e.radiusAccepts(s, a)
	case RADIUSChallenge:
		out, err := eap.Parse(a.EAP)
		if err != nil || out.Code != eap.Request {
			return eap.Packet{}, eapFail("the RADIUS server %s challenges without an EAP request", s.server)
		}
		s.id, s.radius, s.which = out.ID, a.State, a.Which
		if out.Type > eap.NAK {
			s.method = out.Type
		}
		return out, nil
	case RADIUSReject:
		e.slow.failed(e.now, from)
		return eap.Packet{}, eapFail("the RADIUS server %s rejects the user", s.server)
	}
	return eap.Packet{}, eapFail("the RADIUS server %s does not answer", s.server)
}

// radiusAccepts takes an Accept. Without a key AUTH would prove nothing, so such methods are refused.
func (e *Engine) radiusAccepts(s *eapState, a RADIUSAnswer) (eap.Packet, error) {
	if a.Key.Len() < minRADIUSKey {
		return eap.Packet{}, eapFail("the RADIUS server %s accepts by a method that gives no key", s.server)
	}
	s.msk, s.user = ipsec.NewKey(a.Key.Bytes()), s.identity
	if a.User != "" {
		s.user = a.User
	}
	if out, err := eap.Parse(a.EAP); err == nil && out.Code == eap.Success {
		s.id = out.ID
	}
	return eap.Packet{Code: eap.Success, ID: s.id}, nil
}

// questionKey names a question: the same message of the same IKE SA asks the same.
func (sa *ikeSA) questionKey(m *message.Message, s *eapState, raw []byte) [sha256.Size]byte {
	h := sha256.New()
	var b [20]byte
	binary.BigEndian.PutUint64(b[:], uint64(sa.spis.I))
	binary.BigEndian.PutUint64(b[8:], uint64(sa.spis.R))
	binary.BigEndian.PutUint32(b[16:], m.MessageID)
	h.Write(b[:])
	h.Write(s.radius)
	h.Write(raw[4:])
	return [sha256.Size]byte(h.Sum(nil))
}
