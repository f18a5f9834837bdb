package ike

import (
	"log/slog"
	"time"
)

// timer, deadline and fire make an IKE SA an element of the timer heap.
func (sa *ikeSA) timer() *timer { return &sa.t }

func (sa *ikeSA) deadline() (time.Time, bool) {
	var x earliest
	if sa.state == stateGone || sa.movedTo != 0 {
		return time.Time{}, false
	}
	if sa.sync.wanted {
		x.add(sa.sync.next)
	} else if sa.req != nil && sa.req.sent {
		x.add(sa.req.next)
	}
	x.add(sa.probe.due())
	x.add(sa.recordAt)
	x.add(sa.fragmentsUntil())
	for _, h := range sa.half {
		x.add(h.since.Add(halfMadeSpan))
	}
	switch sa.state {
	case stateHalfOpen, stateInitSent, stateAuthSent:
		x.add(sa.created.Add(sa.negotiateTimeout()))
		return x.t, x.ok
	}
	if end := sa.end(); !end.IsZero() {
		if sa.closing {
			end = end.Add(closeTimeout)
		}
		x.add(end)
	}
	if !sa.closing {
		x.add(sa.deleteBy)
	}
	x.add(sa.keepaliveAt)
	for _, c := range sa.children {
		if c.hard > 0 {
			x.add(c.installed.Add(c.hard))
		}
		x.add(c.floorAt)
		x.add(c.useAt)
	}
	if sa.sync.wanted || sa.req != nil || sa.quiet && !sa.probe.due().IsZero() {
		return x.t, x.ok // nothing new can begin
	}
	var begin earliest
	if sa.lives() && !sa.awaitsDelete {
		begin.add(sa.dpdAt)
		if !sa.quiet {
			begin.add(sa.countersAt)
		}
		begin.add(later(sa.rekeyDue(), sa.rekeyAt))
		begin.add(later(sa.reauthDue(), sa.rekeyAt))
		for _, c := range sa.children {
			if c.state == childInstalled && c.p2 != nil {
				begin.add(later(c.rekeyDue(), c.rekeyAt))
			}
		}
		if len(sa.wants) > 0 {
			begin.add(sa.wantsAt)
		}
	}
	if len(sa.owed) > 0 || sa.closing || sa.mobileDue() || (sa.tokenDue || sa.redirection().to.IsValid()) && sa.lives() && !sa.awaitsDelete {
		begin.add(sa.stalled)
	}
	x.add(later(begin.t, sa.stalled))
	return x.t, x.ok
}

// rekeyDue is the earliest moment at which the IKE SA may want a rekey; zero if never.
func (sa *ikeSA) rekeyDue() time.Time {
	switch {
	case sa.p1 == nil || sa.awaitsDelete:
	case sa.rekeyNow:
		return sa.rekeyAt
	case sa.p1.Rekey && !sa.p1.Reauth && sa.soft > 0:
		return sa.established.Add(sa.soft)
	}
	return time.Time{}
}

func (c *childSA) rekeyDue() time.Time {
	if c.rekeyNow {
		return c.rekeyAt
	}
	if c.soft > 0 {
		return c.installed.Add(c.soft)
	}
	return time.Time{}
}

// later is b if it is later than a; zero when a is.
func later(a, b time.Time) time.Time {
	if !a.IsZero() && b.After(a) {
		return b
	}
	return a
}

func (sa *ikeSA) fire(e *Engine) {
	e.expire(sa)
	if sa.state == stateGone {
		return
	}
	if !sa.recordAt.IsZero() {
		sa.recordAt = time.Time{}
		e.touch(sa)
	}
	e.expireFragments(sa)
	e.expireHalves(sa)
	e.raiseFloors(sa)
	e.takeOver(sa)
	e.retransmit(sa)
	if sa.state == stateGone {
		return
	}
	e.keepalive(sa)
	e.proceed(sa)
}

// proceed begins the next exchange of an IKE SA whose window is free. What is to
// be done follows from its state, so a successor does the same.
func (e *Engine) proceed(sa *ikeSA) {
	if !e.active || sa.state != stateEstablished && sa.state != stateRekeyed || sa.req != nil && !sa.sync.wanted {
		return
	}
	e.arm(sa)
	defer e.arm(sa)
	if sa.sync.wanted {
		e.driveSync(sa)
		return
	}
	e.replacing(sa)
	work := e.nextWork(sa)
	if sa.keepaliveAt.IsZero() {
		e.keepalive(sa)
	}
	if work == nil {
		return
	}
	if sa.quiet {
		// After a takeover only the last request may be sent, once more: its
		// answer shows that the peer is there (architecture, "IKE in detail").
		// Where this side never sent one, an empty one asks.
		if sa.lastRequest == nil {
			e.sendDPD(sa)
		} else if sa.probe.due().IsZero() {
			e.startProbe(sa)
		}
		return
	}
	work()
}

// nextWork is the exchange that an IKE SA wants most, nil for none.
func (e *Engine) nextWork(sa *ikeSA) func() {
	if sa.stalled.After(e.now) {
		return nil
	}
	if work := e.mobileWork(sa); work != nil {
		return work
	}
	if sa.reach && sa.lives() {
		return func() { sa.reach = !e.sendDPD(sa) }
	}
	if len(sa.owed) > 0 {
		return func() { e.sendDeletes(sa) }
	}
	if sa.closing {
		return func() { e.sendDeleteIKE(sa) }
	}
	if !sa.lives() || sa.awaitsDelete {
		return nil
	}
	if sa.tokenDue {
		return func() { e.sendToken(sa) }
	}
	if sa.redirection().to.IsValid() {
		return func() { e.sendRedirect(sa) }
	}
	if e.countersDue(sa) {
		return func() { e.askCounters(sa) }
	}
	for _, c := range sa.children {
		if e.wantsRekey(c) {
			return func() {
				if !e.createChild(sa, c.p2, c) {
					c.rekeyAt = e.now.Add(temporaryWait)
				}
			}
		}
	}
	if e.wantsIKERekey(sa) {
		return func() {
			if !e.rekeyIKE(sa) {
				sa.rekeyAt = e.now.Add(temporaryWait)
			}
		}
	}
	if e.wantsReauth(sa) {
		return func() { e.reauthenticate(sa) }
	}
	if h := sa.halfRekey(); h != nil && len(sa.wants) > 0 {
		sa.wantsAt = later(e.now, h.since.Add(halfMadeSpan)) // the successor makes them
	}
	if len(sa.wants) > 0 && !sa.wantsAt.After(e.now) {
		if p2 := e.nextWanted(sa); p2 != nil {
			return func() { e.createChild(sa, p2, nil) }
		}
	}
	if e.dpdDue(sa) {
		return func() { e.sendDPD(sa) }
	}
	return nil
}

// firstWait is the first interval of a request's schedule.
func (e *Engine) firstWait(sa *ikeSA, x *exchange) time.Duration {
	if x.kind == kindDPD {
		d, _ := e.dpdRetry(sa)
		return d
	}
	return e.o.RetransmitFirst
}

// exhausted says that a request has been sent often enough (RFC 7296 §2.4). DPD
// follows dpd-retrycount; others back off within the span of its probes.
func (e *Engine) exhausted(sa *ikeSA, x *exchange) bool {
	interval, count := e.dpdRetry(sa)
	switch {
	case x.kind == kindDPD:
		return x.attempts >= count
	case e.o.RetransmitTries > 0:
		return x.attempts >= e.o.RetransmitTries
	}
	return e.now.Sub(x.first) >= time.Duration(count)*interval
}

// retransmit sends the outstanding request again, to the bit, or gives up.
func (e *Engine) retransmit(sa *ikeSA) {
	e.probeAgain(sa)
	x := sa.req
	if x == nil || !x.sent || x.next.After(e.now) || sa.sync.wanted {
		return
	}
	if e.exhausted(sa, x) {
		e.warn(sa, "negotiation of IKE SA failed due to retry timeout", slog.String("request", x.String()),
			slog.Uint64("message_id", uint64(x.id)))
		e.dead(sa, "retry timeout")
		return
	}
	e.fallBack(sa)
	x.attempts++
	if x.kind != kindDPD {
		x.wait *= 2
		if left := e.spanLeft(sa, x); left > 0 {
			x.wait = min(x.wait, left)
		}
	}
	x.next = e.untilFallback(sa, e.now.Add(x.wait))
	e.counters.Retransmitted++
	e.logSent(sa, "RETRANSMIT_"+x.String(), x.id, len(x.data))
	e.freeMessage(sa.datagram(x.data))
}

// spanLeft is what is left of the whole schedule, so that giving up is not late.
func (e *Engine) spanLeft(sa *ikeSA, x *exchange) time.Duration {
	if e.o.RetransmitTries > 0 {
		return 0
	}
	interval, count := e.dpdRetry(sa)
	return max(x.first.Add(time.Duration(count)*interval).Sub(e.now), e.o.RetransmitFirst)
}

// dead ends an IKE SA whose peer answers no more.
func (e *Engine) dead(sa *ikeSA, reason string) {
	if sa.state != stateRekeyed && !sa.closing {
		e.fail(sa, reason)
	}
	if x := sa.req; x != nil && x.kind == kindRekeyIKE && x.collided {
		// The peer answers no more on the old one; its new IKE SA may yet live.
		if n := e.sas[ownOf(x.collidedIKE, false)]; n != nil && n.state == stateEstablished {
			e.inherit(sa, n)
		}
	}
	e.remove(sa, false, reason)
}

// probe is the retransmission of the last request after a takeover.
type probe struct {
	attempts int
	wait     time.Duration
	next     time.Time
	first    time.Time
}

// due is when the next attempt is made; zero: never.
func (p *probe) due() time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.next
}

func (e *Engine) startProbe(sa *ikeSA) {
	sa.probe = &probe{wait: e.o.RetransmitFirst, first: e.now}
	sa.probe.next = e.now
	e.probeAgain(sa)
}

func (e *Engine) probeAgain(sa *ikeSA) {
	p := sa.probe
	if p.due().IsZero() || p.next.After(e.now) || !sa.quiet || sa.lastRequest == nil {
		return
	}
	interval, count := e.dpdRetry(sa)
	if e.o.RetransmitTries > 0 && p.attempts >= e.o.RetransmitTries ||
		e.o.RetransmitTries == 0 && e.now.Sub(p.first) >= time.Duration(count)*interval {
		e.warn(sa, "peer does not answer after the takeover")
		e.remove(sa, false, "peer does not answer")
		return
	}
	p.attempts++
	e.counters.Retransmitted++
	e.debug(sa, "sending the last request again to see whether the peer is there")
	e.freeMessage(sa.datagram(sa.lastRequest))
	p.next = e.now.Add(p.wait)
	p.wait = min(2*p.wait, 10*time.Second)
}
