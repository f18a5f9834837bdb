package cluster

import (
	"time"

	"tandem/internal/config"
)

// health is what a node makes of its own interfaces and servers, beside the number of
// working monitored interfaces that it lets be compared.
type health struct {
	looked  bool      // somebody has looked at the interfaces
	seen    int       // how many work at this moment
	changed time.Time // when that number changed last

	penalty int // of servers that are probed
	stale   int // of those that cannot be probed any more
	// No change of owner for pingservers' sake comes before.
	flipUntil time.Time
	handed    Handed
}

// candidate is how a node stands in the election of one scope, and why the scope's
// ownership is where it is: what a Pair, and a Slot of an FGCP group, have in common.
type candidate struct {
	g        *engine    // that decides with it
	ha       *config.HA // of the scope
	serial   string
	ageFrom  time.Time
	monitors int
	health   health
	failover bool // execute ha failover set
	change   Change
	said     Announce
	saidAt   time.Time
}

func newCandidate(g *engine, ha *config.HA, serial string) candidate {
	return candidate{g: g, ha: ha, serial: serial, monitors: len(ha.Monitor)}
}

// election is what we let be compared.
func (c *candidate) election(now time.Time) Election {
	return Election{
		MonitorsUp: c.monitors, Age: now.Sub(c.ageFrom), Priority: c.ha.Priority,
		Override: c.ha.Override, Serial: c.serial, Failover: c.failover,
		Penalty: c.weight(now), Handed: c.health.handed, OverrideWait: c.ha.OverrideWaitTime,
	}
}

// monitored takes how many monitored interfaces work.
func (c *candidate) monitored(now time.Time, up int) {
	h := &c.health
	if up != h.seen || !h.looked {
		h.seen, h.changed = up, now
	}
	if !h.looked || c.ha.FailoverHoldTime == 0 {
		c.countMonitors(now)
	}
	h.looked = true
}

// countMonitors lets the interfaces count as they are.
func (c *candidate) countMonitors(now time.Time) {
	if c.health.seen < c.monitors {
		c.ageFrom = now
	}
	c.monitors = c.health.seen
}

// considerHealth does what failover-hold-time waits for.
func (c *candidate) considerHealth(now time.Time) {
	h := &c.health
	if h.looked && h.seen != c.monitors && c.g.due(now, h.changed.Add(c.ha.FailoverHoldTime)) {
		c.countMonitors(now)
	}
}

// weight is what counts of the servers that do not answer: nothing beneath the
// threshold. What a standby knew when it could still probe is forgotten when the flip
// timeout is over, so that it may have its turn again.
func (c *candidate) weight(now time.Time) int {
	h, ping := &c.health, &c.ha.Pingserver
	sum := h.penalty + h.stale
	if h.stale > 0 && ping.ForceReset && c.g.phase != owning && c.g.phase != handing && c.g.due(now, h.flipUntil) {
		sum = h.penalty
	}
	if sum < ping.Threshold {
		return 0
	}
	return sum
}

// heardHanded: another node says why it handed over to us. If it was for its
// pingservers' sake, ours are to change nothing for the flip timeout.
func (c *candidate) heardHanded(now time.Time, was *Election, x *Peer) {
	h := x.Election.Handed
	if h == HandedPingservers && was.Handed != h {
		c.health.flipUntil = later(c.health.flipUntil, now.Add(c.ha.Pingserver.FlipTimeout))
	}
	c.explain(x)
}

// explain completes what is known of a handover to us by the reason, which comes with
// the heartbeats: it may be there before the handover, or come after.
func (c *candidate) explain(x *Peer) {
	h, ch := x.Election.Handed, &c.change
	if h == HandedNot || c.g.phase != owning || !ch.handover || ch.Peer != x.Node || ch.Why != HandedNot {
		return
	}
	ch.Why, ch.Its = h, x.Election
	ch.Reason += ": " + h.String()
	ch.Evidence = h.evidence(ch.Its, ch.Mine)
}

// handsOver notes why we hand over.
func (c *candidate) handsOver(now time.Time, why Handed) {
	c.health.handed = why
	if why == HandedPingservers {
		c.health.flipUntil = now.Add(c.ha.Pingserver.FlipTimeout)
	}
}

// tookBack: the handover did not come about, so that nothing has flipped.
func (c *candidate) tookBack() {
	if c.health.handed == HandedPingservers {
		c.health.flipUntil = time.Time{}
	}
}

// tells says whether a is news to those who listen; then it is told.
func (c *candidate) tells(now time.Time, a Announce) bool {
	old := c.said
	old.Election.Age = a.Election.Age
	drift := a.Election.Age - c.said.Election.Age - now.Sub(c.saidAt)
	if old.equal(a) && !c.saidAt.IsZero() && drift.Abs() < time.Second {
		return false
	}
	c.said, c.saidAt = a, now
	return true
}

// show completes a status.
func (c *candidate) show(now time.Time, s *HAStatus) {
	s.Serial, s.Change, s.Election, s.Seen = c.serial, c.change, c.election(now), c.health.seen
	if h := &c.health; h.seen != c.monitors && h.looked {
		s.Held = h.changed.Add(c.ha.FailoverHoldTime)
	}
	if c.health.flipUntil.After(now) {
		s.Flip = c.health.flipUntil
	}
}

// HandleMonitors says how many monitored interfaces work.
func (p *Pair) HandleMonitors(now time.Time, up int) {
	p.enter(now)
	p.monitored(now, up)
	p.consider(now)
}

// HandlePingservers says what the servers weigh that do not answer: the sum of
// ha-priority of the link monitors that have failed. stale is the part of those that this
// node cannot probe at present, as it was when it could.
func (p *Pair) HandlePingservers(now time.Time, penalty, stale int) {
	p.enter(now)
	p.health.penalty, p.health.stale = penalty-stale, stale
	p.consider(now)
}

// Change is why the ownership is where it is.
type Change struct {
	At       time.Time
	Epoch    Epoch
	Reason   string // one line: who, why
	Evidence string // what the decision rests on
	Why      Handed // of a handover
	By       NodeID // who decided; 0: the members' log
	Covered  bool
	Detected time.Duration // from the last sign of life to the decision
	// What both nodes let be compared at that moment. Peer 0: no other node was known.
	Mine Election
	Peer NodeID
	Its  Election

	handover bool // to us
}

// changed remembers why the ownership is where it is. x is who is compared with us; by
// decided; Node 0: nobody else is known.
func (c *candidate) changed(now time.Time, o Own, by NodeID, x Peer) {
	c.change = Change{At: now, Epoch: o.Epoch, Reason: o.Reason, Evidence: o.Evidence, By: by, Covered: o.Covered, Detected: o.Detected,
		Mine: c.election(now), Peer: x.Node, handover: o.Handover}
	if x.Node != 0 {
		c.change.Its = x.Election
	}
	c.explain(&x)
}

// changed remembers why the ownership is where it is.
func (p *Pair) changed(now time.Time, o Own) {
	p.last, p.lastChange = o, now
	by, x := o.By, p.peer.Peer
	if by == 0 {
		by = p.opt.Self
	}
	x.Election = p.peerElection(now)
	p.candidate.changed(now, o, by, x)
}
