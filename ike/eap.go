package ike

import (
	"cmp"
	"log/slog"
	"slices"

	"tandem/ike/eap"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// EAP within IKE_AUTH (RFC 7296 §2.16): the initiator of a dialup phase 1 with eap proves itself by an
// EAP method, in as many requests as that takes, after the responder's AUTH (or without that, RFC 5998);
// AUTH of both at the end is made with the key of the method. Each of these requests is an event like
// others: what the next one needs is in the record, so a takeover between any two of them continues.
// Two things are not in it. TLS cannot leave its process (eap.Session): who takes over amid EAP-TLS ends
// the IKE SA at the peer's next message, and the client begins anew. And of what a RADIUS server was
// asked (eap_radius.go) only its State is: a successor asks again with it.

// eapStep is how far EAP has come. The numbers are in records: append only.
type eapStep uint8

const (
	eapIdentity eapStep = 1 // the initiator's EAP identity was asked for
	eapMethod   eapStep = 2 // the method is under way
	eapProved   eapStep = 3 // it has a result, which the other side still acknowledges
	eapDone     eapStep = 4 // EAP-Success has passed; AUTH follows
)

// Bounds on what somebody who is not authenticated makes us do, beside negotiate-timeout.
const (
	maxEAPRounds = 64        // packets of the initiator
	maxEAPBytes  = 128 << 10 // of these
	maxEAPFirst  = 16 << 10  // bytes of payloads of the first request that are kept
)

// eapState is of an IKE SA whose IKE_AUTH uses EAP. A step works on a copy, which counts once it is done.
type eapState struct {
	first     []byte // see eapKeep: the peer's payloads of the first message, for the end
	step      eapStep
	method    eap.Type
	id        uint8 // of the latest EAP request
	identity  string
	user      string // whom the method proved
	challenge []byte
	expected  string // initiator: the responder's proof that it knows the password
	msk       ipsec.Key
	radius    []byte // State of the server
	server    string // `config user radius` that decides; empty: we do
	which     int    // of its servers; see AskRADIUS
	rounds    int
	bytes     int
	only      bool // the responder sends no AUTH before the end
	failed    bool // EAP-Failure follows what is under way
	begun     bool // responder: TLS, by the process that has it

	// What follows is this process's own.
	tls   *tlsSession
	parts eap.Fragments
}

func (s *eapState) clone() *eapState {
	c := *s
	return &c
}

// close ends what no other process can go on with, and forgets the key.
func (s *eapState) close() {
	if s == nil {
		return
	}
	if s.tls != nil {
		s.tls.Close()
		s.tls = nil
	}
	s.msk.Wipe()
}

// request is our next EAP request.
func (s *eapState) request(t eap.Type, data []byte) eap.Packet {
	s.id++
	return eap.Packet{Code: eap.Request, ID: s.id, Type: t, Data: data}
}

// count says whether one more packet of the peer is within bounds.
func (s *eapState) count(p *message.EAP) bool {
	s.rounds++
	s.bytes += len(p.Data)
	return s.rounds <= maxEAPRounds && s.bytes <= maxEAPBytes
}

// eapKeep is what the end of IKE_AUTH needs of the peer's first message, encoded; nil: it is too much.
// Certificates and proofs have served by then.
func eapKeep(m *message.Message) []byte {
	kept := message.Message{Header: m.Header}
	for _, p := range m.Payloads {
		switch p.(type) {
		case *message.Cert, *message.CertReq, *message.Auth, *message.EAP:
		default:
			kept.Payloads = append(kept.Payloads, p)
		}
	}
	if b := kept.Encode(); len(b) <= maxEAPFirst {
		return b
	}
	return nil
}

// whole is the last message of IKE_AUTH as if it had come with what the first one said.
func (s *eapState) whole(last *message.Message) (*message.Message, error) {
	m, err := message.Parse(s.first)
	if err != nil {
		return nil, err
	}
	return &message.Message{Header: last.Header, Payloads: slices.Concat(m.Payloads, last.Payloads)}, nil
}

// eapAuth is AUTH of either side under the method's key.
func (sa *ikeSA) eapAuth(initiator bool, id *message.ID) *message.Auth {
	return &message.Auth{Method: message.AuthPSK, Data: sa.sharedKeyAuth(initiator, sa.eap.msk, id)}
}

// idUser is the kind of an identity that EAP proved: who somebody is then follows from it, not from the
// ID payload, which anybody may write (RFC 7296 §2.16). It never travels.
const idUser message.IDType = 201

func (s *eapState) peer() identity { return identity{idUser, s.user} }

// attrs name what was proved in a log line.
func (s *eapState) attrs() []slog.Attr {
	if s == nil {
		return nil
	}
	return []slog.Attr{slog.String("user", quoted(s.user)), slog.String("eap", cmp.Or(s.server, s.method.String()))}
}

func (s *eapState) encode() *syncpb.EAP {
	if s == nil {
		return nil
	}
	return &syncpb.EAP{First: s.first, Step: uint32(s.step), Method: uint32(s.method), Id: uint32(s.id), Identity: []byte(s.identity),
		User: []byte(s.user), Challenge: s.challenge, Expected: s.expected, Msk: s.msk.Bytes(), State: s.radius, Server: s.server,
		Which: uint32(s.which), Rounds: uint32(s.rounds), Bytes: uint32(s.bytes), EapOnly: s.only, Failed: s.failed, Begun: s.begun}
}

func decodeEAPState(p *syncpb.EAP) *eapState {
	if p == nil {
		return nil
	}
	return &eapState{first: p.First, step: eapStep(p.Step), method: eap.Type(p.Method), id: uint8(p.Id), identity: string(p.Identity),
		user: string(p.User), challenge: p.Challenge, expected: p.Expected, msk: ipsec.NewKey(p.Msk), radius: p.State, server: p.Server,
		which: int(p.Which), rounds: int(p.Rounds), bytes: int(p.Bytes), only: p.EapOnly, failed: p.Failed, begun: p.Begun}
}
