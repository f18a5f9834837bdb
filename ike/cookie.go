package ike

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"net/netip"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// Limits of half-open IKE SAs beyond Options.HalfOpenLimit.
const (
	// halfOpenPerSource is from how many of one source on it has to bring cookies.
	halfOpenPerSource = 64
	// halfOpenCeiling is how many there are in all, as a multiple of the limit.
	halfOpenCeiling = 8
	// Bytes of an IKE_SA_INIT request that may cost state without a cookie (the record
	// keeps it whole), and with one. What ordinary peers send has 200 to 600.
	plainInitLen   = 1280
	longestInitLen = 8 << 10
)

// sourceOf is what counts as one source: an address, or the network of a host with IPv6.
func sourceOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// cookieLen is the length in bytes of our cookies.
const cookieLen = 16

// cookie is what an initiator must bring back before it costs us state (RFC 7296
// §2.6). Its secret is the cluster's, so any member can check it.
func (e *Engine) cookie(nonce []byte, d Datagram, spi ipsec.IKESPI) []byte {
	h := hmac.New(sha256.New, e.o.CookieSecret.Bytes())
	h.Write(nonce)
	addr := d.Remote.Addr().As16()
	h.Write(addr[:])
	h.Write(binary.BigEndian.AppendUint16(nil, d.Remote.Port()))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(spi)))
	return h.Sum(nil)[:cookieLen]
}

// admit decides whether an IKE_SA_INIT request may cost us state: below the
// thresholds, or with a valid cookie. Else it answers with a cookie or not at all.
func (e *Engine) admit(d Datagram, m *message.Message, nonce []byte) bool {
	source := sourceOf(d.Remote.Addr())
	if e.halfOpen >= e.o.HalfOpenLimit || e.perSource[source] >= halfOpenPerSource || len(d.Data) > plainInitLen {
		want := e.cookie(nonce, d, m.SPIs.I)
		got, ok := m.Notify(message.Cookie)
		// The cookie must be the first payload; RFC 7296 §2.6 says so, and a
		// cookie anywhere costs no more to check.
		if !ok || !hmac.Equal(got.Data, want) {
			e.counters.CookiesSent++
			e.log(slog.LevelDebug, "half-open threshold reached, sending cookie",
				slog.String("remote", d.Remote.String()), slog.String("spi", m.SPIs.String()))
			e.unprotected(d, m.Header, notify(message.Cookie, want))
			return false
		}
	}
	if e.halfOpen >= e.o.HalfOpenLimit*halfOpenCeiling || e.perSource[source] >= max(halfOpenPerSource, e.o.HalfOpenLimit) {
		e.counters.HalfOpenDenied++
		return false
	}
	return true
}

// unprotected answers a request outside of any IKE SA. It rests on no record.
func (e *Engine) unprotected(d Datagram, h message.Header, ps ...message.Payload) {
	m := &message.Message{Header: message.Header{SPIs: h.SPIs, MajorVersion: 2, Exchange: h.Exchange,
		Initiator: !h.Initiator, Response: true, MessageID: h.MessageID}, Payloads: ps}
	if b := m.Encode(); b != nil {
		e.free(Send{reply(d, b)})
	}
}

// complain is unprotected for errors, within a rate (RFC 7296 §2.21.4).
func (e *Engine) complain(d Datagram, h message.Header, ps ...message.Payload) {
	e.limited(&e.unauth, d, h, ps...)
}

func (e *Engine) limited(l *limiter, d Datagram, h message.Header, ps ...message.Payload) {
	if h.Response {
		return
	}
	if !l.allow(e.now) {
		e.counters.RateLimited++
		return
	}
	e.unprotected(d, h, ps...)
}
