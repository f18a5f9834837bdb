package ike

import (
	"log/slog"
	"time"

	"tandem/internal/ipsec"
)

// Margins between soft and hard lifetime. The initiator takes the longer one, so
// that both sides seldom rekey at once; a jitter is drawn on top.
const (
	childMargin = 30 * time.Second
	ikeMargin   = 300 * time.Second
)

// softLifetime draws when to rekey before a hard lifetime. A passive gateway
// leaves rekeying to its peer and steps in only late.
func (e *Engine) softLifetime(hard, margin time.Duration, initiator, passive bool) time.Duration {
	if hard <= 0 {
		return 0
	}
	m := min(margin, hard/5)
	switch {
	case passive:
		m /= 4
	case !initiator:
		m = m * 2 / 3
	}
	return hard - m - e.randomSpan(m/8)
}

func (sa *ikeSA) passive() bool { return sa.p1 != nil && sa.p1.PassiveMode }

func (e *Engine) ikeLifetimes(sa *ikeSA) (soft, hard time.Duration) {
	if sa.p1 == nil || sa.p1.KeyLife <= 0 {
		return 0, 0
	}
	hard = sa.p1.KeyLife
	return e.softLifetime(hard, ikeMargin, sa.initiator, sa.passive()), hard
}

// childLifetimes sets what keylifeseconds and keylifekbs say.
func (e *Engine) childLifetimes(c *childSA) {
	p2 := c.p2
	if p2 == nil {
		return
	}
	if p2.KeyLifeType != "kbs" && p2.KeyLife > 0 {
		c.hard = p2.KeyLife
		c.soft = e.softLifetime(c.hard, childMargin, c.initiator, c.ike.passive())
	}
	if p2.KeyLifeType == "kbs" || p2.KeyLifeType == "both" {
		c.hardBytes = p2.KeyLifeKB * 1024
		c.softBytes = c.hardBytes / 10 * 9
	}
}

// used says whether a Child SA carried any packet since it was installed.
func (e *Engine) used(c *childSA) bool {
	if e.o.Traffic == nil {
		return false
	}
	in, out := e.o.Traffic(c.SPIIn)
	return !in.Before(c.installed) && !in.IsZero() || !out.Before(c.installed) && !out.IsZero()
}

// wantsRekey says whether a Child SA is to be rekeyed now: past its soft
// lifetime, and in use or told to stay (keepalive, which auto-negotiate implies).
func (e *Engine) wantsRekey(c *childSA) bool {
	if c.state != childInstalled || c.p2 == nil || c.rekeyAt.After(e.now) {
		return false
	}
	for _, h := range []*halfMade{c.ike.halfRekey(), c.ike.halfOf(c.SPIIn)} {
		if h != nil {
			c.rekeyAt = h.since.Add(halfMadeSpan) // the peer is about it
			return false
		}
	}
	if c.rekeyNow || e.small(c.KeyID) {
		return true
	}
	if c.soft == 0 || e.now.Before(c.installed.Add(c.soft)) {
		return false
	}
	if n := e.newerTwin(c); n != nil {
		c.rekeyAt = c.installed.Add(c.hard)
		return false // the peer uses the other one; this one just expires
	}
	if c.p2.Keepalive || c.p2.AutoNegotiate || e.used(c) {
		return true
	}
	// Without traffic it just expires; should some come yet, it is seen in time.
	c.rekeyAt = e.now.Add(max((c.hard-c.soft)/8, 100*time.Millisecond))
	return false
}

// newerTwin finds a newer Child SA with the same selectors that carries our traffic.
func (e *Engine) newerTwin(c *childSA) *childSA {
	for _, n := range c.ike.children {
		if n != c && n.outbound && !c.outbound && n.state == childInstalled && sameSelectors(n, c) {
			return n
		}
	}
	return nil
}

func (e *Engine) small(id ipsec.KeyID) bool {
	return id != 0 && e.o.Nonces != nil && e.o.Nonces.Small(id)
}

// wantsIKERekey says whether the IKE SA itself is to be rekeyed now.
func (e *Engine) wantsIKERekey(sa *ikeSA) bool {
	if !sa.lives() || sa.p1 == nil || sa.rekeyAt.After(e.now) || sa.awaitsDelete {
		return false
	}
	if n := len(sa.half); n > 0 {
		sa.rekeyAt = sa.half[n-1].since.Add(halfMadeSpan) // the peer makes something new on it
		return false
	}
	if sa.rekeyNow || sa.suite.Encr.AEAD() && e.small(sa.keyID) {
		return true
	}
	return sa.p1.Rekey && !sa.p1.Reauth && sa.soft > 0 && !e.now.Before(sa.established.Add(sa.soft))
}

// expire ends what has reached its hard lifetime.
func (e *Engine) expire(sa *ikeSA) {
	switch {
	case sa.state == stateHalfOpen || sa.state == stateInitSent || sa.state == stateAuthSent:
		if !e.now.Before(sa.created.Add(sa.negotiateTimeout())) {
			if sa.state == stateHalfOpen {
				e.seldom(slog.LevelWarn, sa.phase1, "negotiation timeout, deleting", sa.attrs()[1:]...)
			} else {
				e.warn(sa, "negotiation timeout, deleting")
			}
			e.fail(sa, "negotiation timeout")
			e.remove(sa, false, "negotiation timeout")
			return
		}
	case !sa.end().IsZero() && !e.now.Before(sa.end()):
		if !sa.closing && !sa.quiet {
			e.info(sa, "expiring IKE SA "+sa.spis.String())
			e.close(sa, "hard expired")
			return
		}
		if sa.quiet || !e.now.Before(sa.end().Add(closeTimeout)) {
			e.remove(sa, false, "hard expired")
			return
		}
	}
	if !sa.deleteBy.IsZero() && !e.now.Before(sa.deleteBy) && !sa.closing {
		if sa.quiet {
			e.remove(sa, false, "peer did not delete it")
			return
		}
		e.close(sa, "peer did not delete it")
	}
	for i := 0; i < len(sa.children); i++ {
		c := sa.children[i]
		if c.hard > 0 && !e.now.Before(c.installed.Add(c.hard)) || c.expired {
			e.infoChild(c, "IPsec SA hard expired")
			again := c.expired && c.state == childInstalled
			phase2 := c.Phase2
			e.endChild(c)
			if again && sa.lives() {
				sa.want(phase2)
			}
			i--
		}
	}
}

// closeTimeout is how long a closing IKE SA may wait for its DELETE's answer
// beyond its hard lifetime.
const closeTimeout = 60 * time.Second

func (sa *ikeSA) negotiateTimeout() time.Duration {
	if sa.p1 != nil && sa.p1.NegotiateTimeout > 0 {
		return sa.p1.NegotiateTimeout
	}
	return 30 * time.Second
}

// HandleExpiring rekeys a Child SA for other reasons than time: traffic limits,
// sequence numbers or explicit IVs nearly used up. hard says that it has stopped.
func (e *Engine) HandleExpiring(now time.Time, spiIn ipsec.ESPSPI, hard bool) {
	defer e.begin(now)()
	c := e.children[spiIn]
	if !e.active || c == nil {
		return
	}
	e.infoChild(c, "IPsec SA expiring", slog.Bool("hard", hard))
	if hard {
		c.expired = true
		e.expire(c.ike)
	} else if !c.rekeyNow {
		c.rekeyNow, c.rekeyAt = true, time.Time{}
	}
	e.proceed(c.ike)
	e.arm(c.ike)
}

// RekeyAll rekeys every IKE SA and Child SA early, spread over time, because another process
// may have gone on with them and its memory is lost. Message IDs are synchronised first,
// where the peer can: what answers a request with an ID that the other one has used is the
// answer that the other one got. What has not been rekeyed when the owner changes falls to
// the next one.
func (e *Engine) RekeyAll(now time.Time, reason string) {
	defer e.begin(now)()
	n := 0
	for i, sa := range e.sorted() {
		if !sa.lives() {
			continue
		}
		for _, c := range sa.children {
			c.rekeyNow, c.doubtful = true, true
		}
		sa.rekeyNow, sa.recordAt = true, now
		n = sa.paceRekeys(now, n)
		if e.active && !sa.sync.wanted {
			e.wantSync(sa)
			sa.sync.next = now.Add(time.Duration(i) * syncPace)
			e.proceed(sa)
		}
		e.arm(sa)
	}
	if n > 0 {
		e.log(slog.LevelWarn, "rekeying all SAs early", slog.String("reason", reason), slog.Int("count", n))
	}
}

// paceRekeys spreads the early rekeys of an IKE SA over time, behind n others, and says
// how many there are then.
func (sa *ikeSA) paceRekeys(now time.Time, n int) int {
	for _, c := range sa.children {
		if c.rekeyNow {
			c.rekeyAt = now.Add(time.Duration(n) * rekeyPace)
			n++
		}
	}
	if sa.rekeyNow {
		sa.rekeyAt = now.Add(time.Duration(n)*rekeyPace + rekeyPace)
		n++
	}
	return n
}

const (
	// rekeyPace is the distance between two early rekeys.
	rekeyPace = 20 * time.Millisecond
	// syncPace is the distance between two synchronisations of message IDs before them.
	syncPace = time.Millisecond
)
