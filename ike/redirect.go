package ike

import (
	"crypto/subtle"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

// Redirect (RFC 5685). A gateway that is being drained sends peers elsewhere that say they
// can follow: who begins, in IKE_SA_INIT and before it costs state; who was about to, in
// IKE_AUTH; who has an IKE SA, by INFORMATIONAL. Where to, `set redirect-gateway` says.
//
// As initiator we follow with `set redirect enable`, to addresses only, and whoever is there
// has to prove the identity that the phase 1 entry wants. Where an IKE SA stands the one with
// the new gateway takes its place as in a repeated authentication: make before break.

const (
	// maxRedirects in redirectWindow are followed (§8.1), then no more until it is over.
	maxRedirects   = 5
	redirectWindow = 300 * time.Second

	gatewayIPv4, gatewayIPv6 = 1, 2 // GW Ident Type (§7.2)
)

// gatewayIdentity is a gateway as REDIRECT and REDIRECTED_FROM name it.
func gatewayIdentity(a netip.Addr) []byte {
	b := a.Unmap().AsSlice()
	kind := byte(gatewayIPv4)
	if len(b) == 16 {
		kind = gatewayIPv6
	}
	return append([]byte{kind, byte(len(b))}, b...)
}

// readGateway reads one, and what follows it. Host names are not resolved here.
func readGateway(b []byte) (a netip.Addr, rest []byte, ok bool) {
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return a, nil, false
	}
	id, rest := b[2:2+int(b[1])], b[2+int(b[1]):]
	a, ok = netip.AddrFromSlice(id)
	ok = ok && (b[0] == gatewayIPv4 && len(id) == 4 || b[0] == gatewayIPv6 && len(id) == 16)
	return a, rest, ok && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6()
}

// Redirect sends peers elsewhere from now on, or no longer; of those that have an IKE SA it
// tells all that can follow, and says how many these are.
func (e *Engine) Redirect(now time.Time, away bool) int {
	defer e.begin(now)()
	e.away = away
	if !e.active || !away {
		return 0
	}
	n := 0
	for _, sa := range e.sorted() {
		if !sa.redirectable() {
			continue
		}
		if to := elsewhere(sa.p1, sa.local.Addr(), uint64(sa.spis.I)); to.IsValid() {
			e.touch(sa)
			sa.redirectTo(to)
			n++
			e.proceed(sa)
			e.arm(sa)
		}
	}
	return n
}

// Redirectable is how many IKE SAs could be sent elsewhere, and are still here.
func (e *Engine) Redirectable() (n int) {
	for _, sa := range e.sas {
		if sa.redirectable() && elsewhere(sa.p1, sa.local.Addr(), 0).IsValid() {
			n++
		}
	}
	return n
}

func (sa *ikeSA) redirectable() bool {
	return sa.caps&capRedirect != 0 && sa.p1 != nil && sa.lives() && !sa.awaitsDelete
}

// elsewhere is one of a phase 1 entry's other gateways; peers are spread over them.
func elsewhere(p1 *config.Phase1, here netip.Addr, spread uint64) netip.Addr {
	others := slices.DeleteFunc(slices.Clone(p1.RedirectGateways), func(a netip.Addr) bool { return a == here })
	if len(others) == 0 {
		return netip.Addr{}
	}
	return others[spread%uint64(len(others))]
}

// supportsRedirect says that an IKE_SA_INIT request's sender follows (§3).
func supportsRedirect(m *message.Message) bool {
	_, ok1 := m.Notify(message.RedirectSupported)
	_, ok2 := m.Notify(message.RedirectedFrom)
	return ok1 || ok2
}

func (sa *ikeSA) noteRedirectSupport(m *message.Message) {
	if supportsRedirect(m) {
		sa.caps |= capRedirect
	}
}

// redirectInit answers IKE_SA_INIT with REDIRECT and the initiator's nonce (§3).
func (e *Engine) redirectInit(d Datagram, m *message.Message, p1 *config.Phase1, nonce []byte) bool {
	if !e.away || !supportsRedirect(m) {
		return false
	}
	to := elsewhere(p1, d.Local.Addr(), uint64(m.SPIs.I))
	if !to.IsValid() {
		return false
	}
	e.log(slog.LevelDebug, "redirecting a peer that begins", slog.String("tunnel", p1.Name),
		slog.String("remote", d.Remote.String()), slog.String("to", to.String()))
	e.unprotected(d, m.Header, notify(message.Redirect, append(gatewayIdentity(to), nonce...)))
	return true
}

// redirectAuth is what an IKE_AUTH response says in place of a Child SA (§6); nil: nothing.
func (e *Engine) redirectAuth(sa *ikeSA) []message.Payload {
	if !e.away || !sa.redirectable() {
		return nil
	}
	to := elsewhere(sa.p1, sa.local.Addr(), uint64(sa.spis.I))
	if !to.IsValid() {
		return nil
	}
	e.info(sa, "redirecting peer", slog.String("to", to.String()))
	e.leaveToPeer(sa)
	return []message.Payload{notify(message.Redirect, gatewayIdentity(to))}
}

// sendRedirect tells a peer that has an IKE SA (§5).
func (e *Engine) sendRedirect(sa *ikeSA) {
	to := sa.redirection().to
	e.touch(sa)
	sa.redirectTo(netip.Addr{})
	e.info(sa, "redirecting peer", slog.String("to", to.String()))
	if !e.start(sa, &exchange{kind: kindDPD}, []message.Payload{notify(message.Redirect, gatewayIdentity(to))}) {
		sa.redirectTo(to)
	}
}

// redirection is where an IKE SA is to be led to, and was led from. Few have one.
type redirection struct{ to, from netip.Addr }

func (sa *ikeSA) redirection() redirection {
	if sa.redirect == nil {
		return redirection{}
	}
	return *sa.redirect
}

func (sa *ikeSA) setRedirection(r redirection) {
	if sa.redirect = &r; r == (redirection{}) {
		sa.redirect = nil
	}
}

func (sa *ikeSA) redirectTo(to netip.Addr) {
	sa.setRedirection(redirection{to, sa.redirection().from})
}

// redirectPayloads are those of our IKE_SA_INIT request.
func (sa *ikeSA) redirectPayloads() []message.Payload {
	switch {
	case sa.p1 == nil || !sa.p1.Redirect:
		return nil
	case sa.redirection().from.IsValid():
		return []message.Payload{notify(message.RedirectedFrom, gatewayIdentity(sa.redirection().from))}
	}
	return []message.Payload{notify(message.RedirectSupported, nil)}
}

// redirectedInit follows REDIRECT in an IKE_SA_INIT response. Nobody authenticated it, but
// whoever wrote it has seen our nonce (§3); a wrong one changes nothing.
func (e *Engine) redirectedInit(sa *ikeSA, m *message.Message) bool {
	n, ok := m.Notify(message.Redirect)
	if !ok || !sa.p1.Redirect {
		return false
	}
	to, nonce, ok := readGateway(n.Data)
	if !ok || subtle.ConstantTimeCompare(nonce, sa.nonceI) != 1 {
		e.counters.Malformed++
		return true
	}
	old := e.bySPIs(sa.replaces)
	if phase2, from := sa.req.phase2, sa.remote.Addr(); e.mayFollow(sa, to) {
		t := sa.tunnel
		e.drop(e.finish(sa))
		e.remove(sa, false, "redirected to "+to.String())
		e.initiateTo(t, to, phase2, old, from)
	}
	return true
}

// redirectedAuth follows REDIRECT in an IKE_AUTH response: the gateway has proved who it is,
// and has made no Child SA (§6).
func (e *Engine) redirectedAuth(sa *ikeSA, m *message.Message, x *exchange) bool {
	n, ok := m.Notify(message.Redirect)
	if !ok || !sa.p1.Redirect {
		return false
	}
	to, _, ok := readGateway(n.Data)
	if !ok || !e.mayFollow(sa, to) {
		return false
	}
	t, phase2, from, old := sa.tunnel, x.phase2, sa.remote.Addr(), e.bySPIs(sa.replaces)
	e.drop(x)
	e.initiateTo(t, to, phase2, old, from)
	e.close(sa, "redirected to "+to.String())
	e.proceed(sa)
	return true
}

// redirected follows REDIRECT in an INFORMATIONAL request: what this IKE SA has is made with
// the other gateway, and then it ends (§5).
func (e *Engine) redirected(sa *ikeSA, n *message.Notify) {
	to, _, ok := readGateway(n.Data)
	if !ok {
		e.counters.Malformed++
		return
	}
	t := sa.tunnel
	if t == nil || !t.mayInitiate() || sa.p1 == nil || !sa.p1.Redirect || !sa.lives() || t.connecting() || !e.mayFollow(sa, to) {
		return
	}
	phase2 := e.reauthPhase2(sa)
	sa.rekeyAt = e.now.Add(sa.negotiateTimeout() + temporaryWait)
	e.initiateTo(t, to, phase2, sa, sa.remote.Addr())
}

// mayFollow says whether to follow to a gateway, and counts that we do: peers that send us
// to and fro are followed maxRedirects times.
func (e *Engine) mayFollow(sa *ikeSA, to netip.Addr) bool {
	t := sa.tunnel
	if t == nil || to == sa.remote.Addr() || to.Is4() != sa.remote.Addr().Is4() || to == sa.local.Addr() {
		return false
	}
	t.redirects = slices.DeleteFunc(t.redirects, func(at time.Time) bool { return e.now.Sub(at) >= redirectWindow })
	if len(t.redirects) >= maxRedirects {
		if len(t.redirects) == maxRedirects { // said once
			t.redirects = append(t.redirects, e.now)
			e.warn(sa, "redirected too often: not followed", slog.String("to", to.String()))
			e.fail(sa, "redirected too often")
		}
		return false
	}
	t.redirects = append(t.redirects, e.now)
	e.info(sa, "peer redirects us", slog.String("to", to.String()))
	return true
}
