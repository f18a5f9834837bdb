package cluster

import "time"

// health is what a Pair makes of its own interfaces and servers, beside the number of
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

// HandleMonitors says how many monitored interfaces work.
func (p *Pair) HandleMonitors(now time.Time, up int) {
	p.enter(now)
	h := &p.health
	if up != h.seen || !h.looked {
		h.seen, h.changed = up, now
	}
	if !h.looked || p.opt.HA.FailoverHoldTime == 0 {
		p.countMonitors(now)
	}
	h.looked = true
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

// countMonitors lets the interfaces count as they are.
func (p *Pair) countMonitors(now time.Time) {
	if p.health.seen < p.monitors {
		p.ageFrom = now
	}
	p.monitors = p.health.seen
}

// considerHealth does what failover-hold-time waits for.
func (p *Pair) considerHealth(now time.Time) {
	h := &p.health
	if h.looked && h.seen != p.monitors && p.due(now, h.changed.Add(p.opt.HA.FailoverHoldTime)) {
		p.countMonitors(now)
	}
}

// weight is what counts of the servers that do not answer: nothing beneath the
// threshold. What a standby knew when it could still probe is forgotten when the flip
// timeout is over, so that it may have its turn again.
func (p *Pair) weight(now time.Time) int {
	h, c := &p.health, &p.opt.HA.Pingserver
	sum := h.penalty + h.stale
	if h.stale > 0 && c.ForceReset && p.phase != owning && p.phase != handing && p.due(now, h.flipUntil) {
		sum = h.penalty
	}
	if sum < c.Threshold {
		return 0
	}
	return sum
}

// heardHanded: the other node says why it handed over to us. If it was for its
// pingservers' sake, ours are to change nothing for the flip timeout.
func (p *Pair) heardHanded(now time.Time, was *Election, x *Peer) {
	h := x.Election.Handed
	if h == HandedPingservers && was.Handed != h {
		p.health.flipUntil = later(p.health.flipUntil, now.Add(p.opt.HA.Pingserver.FlipTimeout))
	}
	p.explain(x)
}

// explain completes what is known of a handover to us by the reason, which comes with
// the heartbeats: it may be there before the handover, or come after.
func (p *Pair) explain(x *Peer) {
	h, c := x.Election.Handed, &p.change
	if h == HandedNot || p.phase != owning || !p.last.Handover || c.Peer != x.Node || c.Why != HandedNot {
		return
	}
	c.Why, c.Its = h, x.Election
	c.Reason += ": " + h.String()
	c.Evidence = h.evidence(c.Its, c.Mine)
}

// Change is why the ownership is where it is.
type Change struct {
	At       time.Time
	Epoch    Epoch
	Reason   string // one line: who, why
	Evidence string // what the decision rests on
	Why      Handed // of a handover
	By       NodeID // who decided
	Covered  bool
	Detected time.Duration // from the last sign of life to the decision
	// What both nodes let be compared at that moment. Peer 0: no other node was known.
	Mine Election
	Peer NodeID
	Its  Election
}

// changed remembers why the ownership is where it is.
func (p *Pair) changed(now time.Time, o Own) {
	p.last, p.lastChange = o, now
	c := Change{At: now, Epoch: o.Epoch, Reason: o.Reason, Evidence: o.Evidence, By: o.By, Covered: o.Covered, Detected: o.Detected,
		Mine: p.election(now), Peer: p.peer.Node}
	if c.By == 0 {
		c.By = p.opt.Self
	}
	if c.Peer != 0 {
		c.Its = p.peerElection(now)
	}
	p.change = c
	p.explain(&p.peer.Peer)
}
