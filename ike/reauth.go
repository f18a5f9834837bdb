package ike

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// Repeated authentication (RFC 7296 §2.8.3, RFC 4478). With `set reauth enable` an IKE SA is
// not rekeyed when its time comes: another one is negotiated beside it, by IKE_SA_INIT and
// IKE_AUTH, makes a Child SA for each phase 2 entry that the old one has some of, and then
// the old one ends: make before break. Which one takes whose place is in the records.
//
// A responder says by AUTH_LIFETIME until when the initiator must have repeated it, and ends
// the IKE SA then, however often it was rekeyed.

// authSpan is how long an authentication holds: spans since it took place, 0 for none.
type authSpan struct {
	since time.Time
	soft  time.Duration // when we repeat it, if we may begin; the jitter is drawn
	hard  time.Duration
}

// leastAuthLifetime bounds how often a peer may have us authenticate (RFC 4478 §5).
const leastAuthLifetime = 2 * time.Second

// authenticated begins the span of an IKE SA that IKE_AUTH has just established.
func (e *Engine) authenticated(sa *ikeSA) {
	sa.auth = authSpan{since: e.now}
	if sa.p1 != nil && sa.p1.Reauth && sa.hard > 0 {
		sa.auth.soft, sa.auth.hard = sa.soft, sa.hard
	}
}

// authLifetime says in our IKE_AUTH response how long the authentication holds.
func (sa *ikeSA) authLifetime() []message.Payload {
	if sa.auth.hard == 0 {
		return nil
	}
	s := binary.BigEndian.AppendUint32(nil, uint32(sa.auth.hard/time.Second))
	return []message.Payload{notify(message.AuthLifetime, s)}
}

// noteAuthLifetime takes the peer's AUTH_LIFETIME; who cannot begin has no use for it.
func (e *Engine) noteAuthLifetime(sa *ikeSA, n *message.Notify) {
	if len(n.Data) != 4 {
		e.counters.Malformed++
		return
	}
	if sa.tunnel == nil || !sa.tunnel.mayInitiate() {
		return
	}
	told := max(time.Duration(binary.BigEndian.Uint32(n.Data))*time.Second, leastAuthLifetime)
	e.touch(sa)
	// Of two spans the shorter one counts; the same one, told again, draws no new jitter.
	if at := e.now.Sub(sa.auth.since); sa.auth.soft == 0 || at+told < sa.auth.soft {
		sa.auth.soft = at + e.softLifetime(told, ikeMargin, sa.initiator, sa.passive())
	}
	e.info(sa, "peer wants the authentication repeated", slog.Duration("within", told))
	e.arm(sa)
}

// end is the moment at which an IKE SA ends; zero if never.
func (sa *ikeSA) end() time.Time {
	var x earliest
	if sa.hard > 0 {
		x.add(sa.established.Add(sa.hard))
	}
	if sa.auth.hard > 0 {
		x.add(sa.auth.since.Add(sa.auth.hard))
	}
	return x.t
}

// reauthenticates says that this IKE SA's authentication is repeated by us.
func (sa *ikeSA) reauthenticates() bool {
	return sa.p1 != nil && sa.p1.Reauth && sa.tunnel != nil && sa.tunnel.mayInitiate()
}

// reauthDue is when we repeat the authentication; zero if never.
func (sa *ikeSA) reauthDue() time.Time {
	if sa.auth.soft == 0 || !sa.lives() || sa.tunnel == nil || !sa.tunnel.mayInitiate() || sa.tunnel.live() != sa {
		return time.Time{}
	}
	return sa.auth.since.Add(sa.auth.soft)
}

func (e *Engine) wantsReauth(sa *ikeSA) bool {
	if sa.rekeyAt.After(e.now) || sa.tunnel == nil || sa.tunnel.live() != sa {
		return false
	}
	due := sa.reauthDue()
	return sa.reauthNow || !due.IsZero() && !e.now.Before(due)
}

// reauthenticate begins the IKE SA that takes another one's place. Should it come to
// nothing, it is tried again.
func (e *Engine) reauthenticate(sa *ikeSA) {
	sa.reauthNow = false
	sa.rekeyAt = e.now.Add(sa.negotiateTimeout() + temporaryWait)
	if sa.tunnel.connecting() {
		return
	}
	e.info(sa, "reauthenticating: another IKE SA takes the place of "+sa.spis.String())
	e.initiate(sa.tunnel, e.reauthPhase2(sa), sa)
}

// reauthPhase2 is the phase 2 entry for which IKE_AUTH of an IKE SA's replacement asks.
func (e *Engine) reauthPhase2(sa *ikeSA) string {
	for _, c := range sa.children {
		if c.state == childInstalled && c.p2 != nil {
			return c.Phase2
		}
	}
	if all := e.phase2sOf(sa.phase1); len(all) > 0 {
		return all[0].Name
	}
	return ""
}

// replacing lets an IKE SA make what the one has whose place it takes, and ends that when
// nothing is missing any more. What the peer refuses is not waited for.
func (e *Engine) replacing(n *ikeSA) {
	if n.replaces == (ipsec.IKESPIs{}) || !n.lives() || n.awaitsDelete || n.quiet {
		return
	}
	old := e.bySPIs(n.replaces)
	if old == nil || old == n || !old.lives() {
		e.touch(n)
		n.replaces, n.refused = ipsec.IKESPIs{}, nil
		return
	}
	missing := false
	for _, c := range old.children {
		if c.state == childInstalled && c.p2 != nil && !n.carries(c.Phase2) && !slices.Contains(n.refused, c.Phase2) {
			missing = true
			n.want(c.Phase2)
		}
	}
	if len(n.children) == 0 && len(old.children) > 0 && !missing {
		return // the old one still carries the traffic
	}
	if missing {
		if old.deleteBy.IsZero() {
			old.deleteBy = e.now.Add(deleteWait)
			e.arm(old)
		}
		return
	}
	e.touch(n)
	n.replaces, n.refused = ipsec.IKESPIs{}, nil
	e.close(old, "replaced by "+n.spis.String())
	e.proceed(old)
	e.arm(old)
}

// replacesHeir has whoever takes the place of an IKE SA take that of its successor.
func (e *Engine) replacesHeir(old, n *ikeSA) {
	if old.tunnel == nil {
		return
	}
	for _, x := range old.tunnel.sas {
		if x.replaces == old.spis {
			e.touch(x)
			x.replaces = n.spis
		}
	}
}

// carries says that an IKE SA has a Child SA of a phase 2 entry.
func (sa *ikeSA) carries(phase2 string) bool {
	return slices.ContainsFunc(sa.children, func(c *childSA) bool { return c.Phase2 == phase2 && c.state != childOwed })
}

// has says that none of a phase 2 entry is to be made on this IKE SA.
func (sa *ikeSA) has(phase2 string) bool {
	if sa.tunnel == nil || sa.replaces != (ipsec.IKESPIs{}) {
		return sa.carries(phase2)
	}
	return sa.tunnel.stands(phase2)
}

// olderThan says that an IKE SA was authenticated before another one began, however often it
// was rekeyed since.
func (sa *ikeSA) olderThan(n *ikeSA) bool {
	at := sa.auth.since
	if at.IsZero() {
		at = sa.established
	}
	return at.Before(n.created)
}

// leaveToPeer gives the peer time to end an IKE SA that has another beside it.
func (e *Engine) leaveToPeer(sa *ikeSA) {
	sa.deleteBy = e.now.Add(deleteWait)
	e.arm(sa)
}

// leaveOlder does so, after a takeover, where a newer one was authenticated.
func (e *Engine) leaveOlder(sa *ikeSA) {
	if t := sa.tunnel; t != nil && sa.lives() && slices.ContainsFunc(t.sas, func(n *ikeSA) bool {
		return n != sa && n.lives() && n.peerID == sa.peerID && sa.auth.since.Before(n.auth.since) && len(n.children) > 0
	}) {
		e.leaveToPeer(sa)
	}
}

// leasedBefore is an address of a family that the client has by an IKE SA whose place this
// one takes: the one that it wishes, else any.
func (sa *ikeSA) leasedBefore(v4 bool, wish netip.Addr) (found netip.Addr, ok bool) {
	for _, old := range sa.tunnel.sas {
		if old == sa || !old.lives() || old.peerID != sa.peerID {
			continue
		}
		for _, a := range old.leased() {
			if a.Is4() == v4 && !slices.Contains(sa.assigned.addrs, a) && (!ok || a == wish) {
				found, ok = a, true
			}
		}
	}
	return found, ok
}

// beside is the Child SA of an older IKE SA with the same peer that sends what a new one, made
// at the peer's request, is to send.
func (sa *ikeSA) beside(c *childSA) *childSA {
	if sa.tunnel == nil {
		return nil
	}
	for _, old := range sa.tunnel.sas {
		if old == sa || !old.lives() || old.peerID != sa.peerID || !old.olderThan(sa) {
			continue
		}
		for _, o := range old.children {
			if o.outbound && o.state == childInstalled && sameSelectors(o, c) {
				return o
			}
		}
	}
	return nil
}

// takesOver is when a Child SA sends that was made beside another, if the peer has neither
// used it nor ended the other by then: that one may be nobody's any more.
const takesOver = 2 * time.Second

// takeOver lets Child SAs send for which it is time.
func (e *Engine) takeOver(sa *ikeSA) {
	for _, c := range sa.children {
		if c.useAt.IsZero() || c.useAt.After(e.now) {
			continue
		}
		c.useAt = time.Time{}
		if c.state == childInstalled && c.successorOf() == nil {
			e.useOutbound(c)
		}
	}
}

// paceTakeOver sets that time after a takeover.
func (e *Engine) paceTakeOver(sa *ikeSA) {
	for _, c := range sa.children {
		if o := e.children[c.replaces]; o != nil && o.ike != sa && o.outbound && !c.outbound && c.state == childInstalled {
			c.useAt = e.now.Add(takesOver)
		}
	}
}
