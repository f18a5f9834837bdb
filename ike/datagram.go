package ike

import (
	"errors"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// Knows says whether a message belongs to an IKE SA of this engine, live or copied.
func (e *Engine) Knows(d []byte) bool {
	h, err := message.ParseHeader(d)
	return err == nil && e.find(h) != nil
}

// Begins says whether a message may be an IKE_SA_INIT request, which anybody can send.
func Begins(d []byte) bool {
	h, err := message.ParseHeader(d)
	return err == nil && h.Exchange == message.IKESAInit && !h.Response
}

// HandleDatagram takes one IKE message of whatever origin.
func (e *Engine) HandleDatagram(now time.Time, d Datagram) {
	defer e.begin(now)()
	if !e.active {
		return
	}
	h, err := message.ParseHeader(d.Data)
	if err != nil {
		e.counters.Malformed++
		return
	}
	if h.MajorVersion != 2 {
		e.counters.Malformed++
		if h.MajorVersion > 2 {
			e.complain(d, h, notify(message.InvalidMajorVersion, nil))
		}
		return
	}
	if h.Exchange == message.IKESAInit && !h.Response {
		if !h.Initiator || h.SPIs.I == 0 || h.SPIs.R != 0 || h.MessageID != 0 {
			e.counters.Malformed++
			return
		}
		e.initRequest(d)
		return
	}
	sa := e.find(h)
	if sa == nil {
		e.counters.UnknownSPI++
		e.log(slog.LevelDebug, "invalid IKE request SPI "+h.SPIs.String(), slog.String("remote", d.Remote.String()))
		if h.Exchange != message.IKESAInit {
			e.complain(d, h, append([]message.Payload{notify(message.InvalidIKESPI, nil)}, e.tokenFor(h)...)...)
		}
		return
	}
	switch {
	case e.crashed(sa, d, h):
	case h.Exchange == message.IKESAInit:
		e.initResponse(sa, d)
	case sa.state == stateInitSent:
		e.counters.Malformed++
	case h.Response && e.syncMessage(sa, d, h):
	case h.Response:
		e.response(sa, d, h)
	case e.syncMessage(sa, d, h):
	default:
		e.request(sa, d, h)
	}
	e.arm(sa)
}

// find looks an IKE SA up by both SPIs of a header.
func (e *Engine) find(h message.Header) *ikeSA {
	own, peer := h.SPIs.I, h.SPIs.R
	if h.Initiator {
		own, peer = peer, own
	}
	sa := e.sas[own]
	if sa == nil || sa.initiator == h.Initiator {
		return nil
	}
	known := sa.spis.R
	if !sa.initiator {
		known = sa.spis.I
	}
	if known != peer && sa.state != stateInitSent {
		return nil
	}
	return sa
}

// event is one protected message under way through its row.
type event struct {
	d     Datagram
	m     *message.Message
	after []func() // once the response is sealed
}

// row is one exchange that we answer: where it is allowed, what it must carry, who does it.
type row struct {
	exch message.ExchangeType
	from []state
	when func(*ikeSA, *message.Message) bool
	need []message.PayloadType
	do   func(*Engine, *ikeSA, *event) ([]message.Payload, error)
}

var requestRows = []row{
	{exch: message.Intermediate, from: []state{stateHalfOpen},
		do: (*Engine).intermediateRequest},
	{exch: message.IKEAuth, from: []state{stateHalfOpen}, when: inEAP, do: (*Engine).eapRequest},
	{exch: message.IKEAuth, from: []state{stateHalfOpen}, when: opensEAP,
		need: []message.PayloadType{message.TypeIDi},
		do:   (*Engine).eapBegin},
	{exch: message.IKEAuth, from: []state{stateHalfOpen},
		need: []message.PayloadType{message.TypeIDi, message.TypeAUTH},
		do:   (*Engine).authRequest},
	{exch: message.CreateChildSA, from: []state{stateEstablished, stateRekeyed}, when: rekeysIKE,
		need: []message.PayloadType{message.TypeSA, message.TypeNonce, message.TypeKE},
		do:   (*Engine).rekeyIKERequest},
	{exch: message.CreateChildSA, from: []state{stateEstablished, stateRekeyed}, when: rekeysChild,
		need: []message.PayloadType{message.TypeSA, message.TypeNonce, message.TypeTSi, message.TypeTSr},
		do:   (*Engine).rekeyChildRequest},
	{exch: message.CreateChildSA, from: []state{stateEstablished, stateRekeyed},
		need: []message.PayloadType{message.TypeSA, message.TypeNonce, message.TypeTSi, message.TypeTSr},
		do:   (*Engine).createChildRequest},
	{exch: message.FollowupKE, from: []state{stateEstablished, stateRekeyed},
		need: []message.PayloadType{message.TypeKE},
		do:   (*Engine).followUpRequest},
	{exch: message.Informational, from: []state{stateHalfOpen}, do: (*Engine).eapAbandoned},
	{exch: message.Informational, from: []state{stateEstablished, stateRekeyed},
		do: (*Engine).informationalRequest},
}

func rekeysIKE(_ *ikeSA, m *message.Message) bool {
	sa, ok := message.Get[*message.SA](m)
	return ok && len(sa.Proposals) > 0 && sa.Proposals[0].Protocol == ipsec.ProtocolIKE
}

func rekeysChild(_ *ikeSA, m *message.Message) bool {
	_, ok := m.Notify(message.RekeySA)
	return ok
}

func deletesIKE(m *message.Message) bool {
	d, ok := message.Get[*message.Delete](m)
	return ok && d.Protocol == ipsec.ProtocolIKE
}

// responseRows say what the answer to each of our exchanges means.
var responseRows = map[kind]func(*Engine, *ikeSA, *event){
	kindAuth:         (*Engine).authResponse,
	kindIntermediate: (*Engine).intermediateResponse,
	kindCreateChild:  (*Engine).createChildResponse,
	kindRekeyChild:   (*Engine).createChildResponse,
	kindRekeyIKE:     (*Engine).rekeyIKEResponse,
	kindDeleteChild:  (*Engine).deleteChildResponse,
	kindDeleteIKE:    (*Engine).deleteIKEResponse,
	kindDPD:          (*Engine).dpdResponse,
	kindCounters:     (*Engine).countersResponse,
	kindUpdate:       (*Engine).updateResponse,
	kindCheck:        (*Engine).checkResponse,
}

// open decrypts a message; ok is false when nobody authenticated it, or when it is a
// fragment (RFC 7383) and others of the same message are missing. A broken
// inside of an authenticated message is reported in err.
func (e *Engine) open(sa *ikeSA, d Datagram) (m *message.Message, ok bool, err error) {
	m, err = message.Parse(d.Data)
	if err != nil || len(m.Payloads) == 0 {
		e.counters.Malformed++
		return nil, false, nil
	}
	switch last := m.Payloads[len(m.Payloads)-1].(type) {
	case *message.Encrypted:
	case *message.EncryptedFragment:
		return e.openFragment(sa, d, m, last)
	default:
		// Nothing unprotected may change or answer for an IKE SA (RFC 7296 §2.21.4).
		e.counters.Malformed++
		return nil, false, nil
	}
	if err := e.ciphers(sa); err != nil {
		e.warn(sa, "cannot use IKE SA", slog.String("error", err.Error()))
		return nil, false, nil
	}
	if err = m.Open(d.Data, sa.opener); errors.Is(err, message.ErrAuthentication) {
		e.counters.AuthFailed++
		return nil, false, nil
	}
	e.wholeArrived(sa, m.Header)
	return m, true, err
}

// heard says that the peer's authenticated traffic arrived.
func (e *Engine) heard(sa *ikeSA) {
	sa.lastIn = e.now
	sa.dpdAt = time.Time{}
	if sa.quiet {
		sa.quiet, sa.probe = false, nil
		e.debug(sa, "peer is there, exchanges may begin")
	}
	e.rivals(sa)
}

// expects says which exchanges of the peer belong to an IKE SA that is not authenticated yet.
func (sa *ikeSA) expects(x message.ExchangeType) bool {
	switch x {
	case message.IKEAuth:
		return true
	case message.Intermediate:
		return sa.inter != nil
	case message.Informational:
		return sa.eap != nil
	}
	return false
}

func (e *Engine) request(sa *ikeSA, d Datagram, h message.Header) {
	if sa.nextRecv > 0 && h.MessageID == sa.nextRecv-1 {
		e.repeat(sa, d, h)
		return
	}
	if h.MessageID != sa.nextRecv {
		e.counters.OutsideWindow++
		e.debug(sa, "request outside the window", slog.Uint64("message_id", uint64(h.MessageID)),
			slog.Uint64("expected", uint64(sa.nextRecv)))
		e.missed(sa, d, h)
		return
	}
	if sa.state == stateHalfOpen && !sa.expects(h.Exchange) {
		e.counters.Malformed++
		return
	}
	if sa.state == stateAuthSent {
		// It overtook the IKE_AUTH response; without that nobody is authenticated. It
		// will come again.
		e.counters.OutsideWindow++
		return
	}
	m, ok, err := e.open(sa, d)
	if !ok {
		return
	}
	half := sa.state == stateHalfOpen
	e.moved(sa, d)
	e.heard(sa)
	ev := &event{d: d, m: m}
	var ps []message.Payload
	if err != nil {
		err = codecRefusal(err)
	} else if ps = e.again(sa, m); ps != nil {
		e.debug(sa, "request was answered before under another message ID")
	} else {
		ps, err = e.serve(sa, ev)
	}
	if e.postponed(sa, d, err) {
		return
	}
	var refusal *NotifyError
	if errors.As(err, &refusal) {
		why := []slog.Attr{slog.String("notify", refusal.Type.String()), slog.String("reason", refusal.Err.Error())}
		if half {
			e.seldom(slog.LevelWarn, sa.phase1, "refusing "+h.Exchange.String()+" request", append(sa.attrs()[1:], why...)...)
		} else {
			e.warn(sa, "refusing "+h.Exchange.String()+" request", why...)
		}
		ps = []message.Payload{refusal.payload()}
		fatal := refusal.Type == message.InvalidSyntax || refusal.Type == message.AuthenticationFailed
		if fatal || half {
			// RFC 7296 §2.21.2, §2.21.3: both sides drop the IKE SA without a DELETE.
			ev.after = append(ev.after, func() {
				e.fail(sa, refusal.Error())
				e.remove(sa, true, refusal.Error())
			})
		}
	}
	e.respond(sa, d, h, ps)
	for _, f := range ev.after {
		f()
	}
	e.proceed(sa)
}

// serve finds the row of a request and runs it.
func (e *Engine) serve(sa *ikeSA, ev *event) ([]message.Payload, error) {
	for _, r := range requestRows {
		if r.exch != ev.m.Exchange || !slices.Contains(r.from, sa.state) || r.when != nil && !r.when(sa, ev.m) {
			continue
		}
		for _, t := range r.need {
			if !slices.ContainsFunc(ev.m.Payloads, func(p message.Payload) bool { return p.Type() == t }) {
				return nil, refuse(message.InvalidSyntax, "%s request without %s", ev.m.Exchange, t)
			}
		}
		if sa.awaitsDelete && sa.state == stateEstablished && !deletesIKE(ev.m) {
			e.chosen(sa)
		}
		return r.do(e, sa, ev)
	}
	return nil, refuse(message.InvalidSyntax, "%s request is not expected", ev.m.Exchange)
}

// codecRefusal is what the peer is told of a message that does not decode.
func codecRefusal(err error) error {
	var x *message.Error
	if errors.As(err, &x) && x.Notify != 0 {
		return &NotifyError{Type: x.Notify, Data: x.Data, Err: err}
	}
	return &NotifyError{Type: message.InvalidSyntax, Err: err}
}

// respond seals and keeps the response of the expected request.
func (e *Engine) respond(sa *ikeSA, d Datagram, h message.Header, ps []message.Payload) {
	e.touch(sa)
	b, err := e.seal(sa, h.Exchange, true, h.MessageID, ps)
	if err != nil {
		e.warn(sa, "cannot protect IKE message", slog.String("error", err.Error()))
		return
	}
	sa.nextRecv = h.MessageID + 1
	e.dropParts(sa.slot(false))
	sa.lastResponse, sa.answered = b, true
	e.logSent(sa, h.Exchange.String()+"_RESPONSE", h.MessageID, len(b))
	e.holdMessage(sa, reply(d, b))
}

// repeat answers a retransmitted request from the cache, to the bit (RFC 7296 §2.1).
func (e *Engine) repeat(sa *ikeSA, d Datagram, h message.Header) {
	// Of a request in fragments only the first one asks for the response (RFC 7383 §2.6.1).
	var part uint16
	var ok bool
	sa.underFormer(func() { part, ok = e.authentic(sa, d) })
	if !ok || part != 1 {
		return
	}
	e.heard(sa)
	if sa.answered || sa.answerTicket > e.done || !sa.repeatable(h.MessageID) {
		return // the response is still waiting for its record
	}
	e.counters.Duplicates++
	e.freeMessage(reply(d, sa.lastResponse))
	e.proceed(sa)
}

// maxUnasked is by how much an answer to a request that we never sent may be ahead.
const maxUnasked = 64

// unasked takes notice of an authenticated response to a request that this cluster's
// other side sent in a split: its message ID is used up (RFC 7296 §2.2), and the peer
// would answer ours from its cache.
func (e *Engine) unasked(sa *ikeSA, d Datagram, h message.Header) {
	if sa.req != nil || sa.state == stateHalfOpen || h.MessageID < sa.nextSend || h.MessageID-sa.nextSend >= maxUnasked {
		return
	}
	if _, ok := e.authentic(sa, d); !ok {
		return
	}
	e.heard(sa)
	e.warn(sa, "response to a request of another owner: its message ID is used up", slog.Uint64("message_id", uint64(h.MessageID)))
	e.touch(sa)
	sa.nextSend, sa.lastRequest = h.MessageID+1, nil
	e.proceed(sa)
}

func (e *Engine) response(sa *ikeSA, d Datagram, h message.Header) {
	if sa.req == nil && sa.nextSend > 0 && h.MessageID == sa.nextSend-1 {
		// The answer to a probe after a takeover: our last request once more.
		if _, ok := e.authentic(sa, d); ok {
			e.heard(sa)
			e.proceed(sa)
		}
		return
	}
	if sa.req == nil || h.MessageID != sa.req.id || h.Exchange != sa.req.exchangeType() {
		e.counters.OutsideWindow++
		e.unasked(sa, d, h)
		return
	}
	if sa.state == stateHalfOpen {
		e.counters.Malformed++
		return
	}
	m, ok, err := e.open(sa, d)
	if !ok {
		return
	}
	e.heard(sa)
	if err != nil {
		// RFC 7296 §2.21: no error goes back for a response; the state is cleaned up.
		e.warn(sa, "response does not decode", slog.String("error", err.Error()))
		e.drop(e.finish(sa))
		if sa.state == stateAuthSent {
			e.fail(sa, err.Error())
			e.remove(sa, false, err.Error())
			return
		}
		e.close(sa, "response does not decode")
		e.proceed(sa)
		return
	}
	if ev := (&event{d: d, m: m}); sa.req.followUp > 0 {
		e.followUpResponse(sa, ev)
	} else {
		responseRows[sa.req.kind](e, sa, ev)
	}
	e.proceed(sa)
}
