package cluster

import "time"

// What decides an election, in this order; with override, priority before age.
const (
	byFailover    = "failover set"
	byMonitors    = "monitored interfaces"
	byPingservers = "pingservers"
	byAge         = "age"
	byPriority    = "priority"
	bySerial      = "serial number"
)

// rank compares two nodes as FGCP does: 1 if a goes first, -1 if b, 0 if nothing
// tells them apart. With override, priority stands before age. Ages that differ
// by no more than margin are equal. why names what decided.
func rank(a, b Election, override bool, margin time.Duration) (r int, why string) {
	for _, key := range electionOrder(override) {
		switch {
		case better(key, &a, &b, margin):
			return 1, key
		case better(key, &b, &a, margin):
			return -1, key
		}
	}
	return 0, bySerial
}

// peerElection is the other node's, its age carried forward to now.
func (p *Pair) peerElection(now time.Time) Election {
	e := p.peer.Election
	e.Age += now.Sub(p.peer.seen)
	return e
}

// weGoFirst decides by FGCP's order, then by the higher epoch, then by the node
// number. Override counts if either node has it, so that both rank alike.
func (p *Pair) weGoFirst(now time.Time, mine, its Epoch) (bool, string) {
	a, b := p.election(now), p.peerElection(now)
	if r, why := rank(a, b, a.Override || b.Override, p.opt.HA.UptimeDiffMargin); r != 0 {
		return r > 0, why
	}
	if mine != its {
		return its.Less(mine), "epoch"
	}
	return p.opt.Self < p.peer.Node, "node number"
}

// weDecide says which of the two nodes carries out an election or a healing. It
// rests on facts both have exchanged, while ages near the margin may look
// different from each side: so one node decides and announces whom it chose.
func (p *Pair) weDecide() bool {
	mine := p.highest
	if p.phase == owning {
		mine = p.epoch
	}
	if mine != p.peer.Epoch {
		return p.peer.Epoch.Less(mine)
	}
	return p.opt.Self < p.peer.Node
}

// considerStanding: we do not own. Follow an owner, or find one.
func (p *Pair) considerStanding(now time.Time) {
	m := &p.peer
	if m.live() && m.Role == RoleOwner {
		p.follow(now)
		return
	}
	if p.ownerless.IsZero() {
		p.ownerless = now
	}
	if p.shutdown {
		return
	}
	if !m.live() {
		p.choose(0)
		if p.due(now, p.ownerless.Add(p.quiet())) {
			p.ownAlone(now)
		}
		return
	}
	// Two without an owner. Whoever is entitled is about to take over.
	if !p.due(now, later(m.since, p.ownerless).Add(p.settle()+p.lost())) {
		return
	}
	patience := p.due(now, later(m.since, p.ownerless).Add(3*p.quiet()))
	if (m.Deaf || m.Entitled) && !patience {
		return
	}
	p.unentitle()
	if !p.weDecide() {
		if m.Chosen == p.opt.Self || patience {
			p.elected(now, Own{Reason: "elected chosen by " + p.name(), Evidence: "its choice", By: m.Node})
		}
		return
	}
	if first, why := p.weGoFirst(now, p.highest, m.Epoch); first || patience {
		p.choose(p.opt.Self)
		p.elected(now, Own{Reason: "elected by " + why, Evidence: compared(why, p.election(now), p.peerElection(now))})
	} else {
		p.choose(m.Node)
	}
}

func (p *Pair) choose(n NodeID) { p.chosen = n }

// elected: both nodes are there and none owned. Whatever copies we hold may be
// old, so they are not used.
func (p *Pair) elected(now time.Time, o Own) { p.own(now, o) }

// ownAlone begins ownership though nobody was heard, with the note first: the
// other node may own behind a cut.
func (p *Pair) ownAlone(now time.Time) {
	text := "nobody was heard"
	if p.peer.Node != 0 {
		text = p.name() + " is gone and this node was not entitled to succeed"
	}
	p.take(now, takeover{own: Own{Reason: text, Evidence: "no heartbeat for " + p.quiet().String()}, note: true, patient: true})
}

// follow is standing by a known owner.
func (p *Pair) follow(now time.Time) {
	m := &p.peer
	if p.phase != standing {
		p.phase = standing
		p.changed(now, Own{Epoch: m.Epoch, Reason: p.name() + " owns", Evidence: "its heartbeats", By: m.Node})
	}
	p.ownerless, p.split = time.Time{}, time.Time{}
	if m.Chosen == p.opt.Self && !m.Epoch.Less(p.highest) && p.entitled == (Epoch{}) && !p.shutdown &&
		p.due(now, p.gaveWay.Add(p.quiet())) { // or it chose us when it believed that we owned, too
		// The owner cannot serve, and no handover is possible for lack of a copy.
		p.choose(p.opt.Self)
		p.own(now, Own{Reason: p.name() + " gave up: monitored interfaces", From: p.name(), By: m.Node,
			Evidence: compared(byMonitors, p.election(now), p.peerElection(now))})
		return
	}
	p.choose(0)
	if m.Epoch != p.epoch && (p.epoch.Less(m.Epoch) || p.entitled == Epoch{}) {
		p.epoch = m.Epoch
	}
	if p.entitled != (Epoch{}) && p.entitled.Less(m.Epoch) || p.asked != (Epoch{}) && p.asked.Less(m.Epoch) {
		p.unentitle() // that epoch has gone on without us
	}
	p.persist()
	if p.uniting && m.stream == m.Process && m.Process != 0 {
		p.uniting = false
		p.emit(Unite{Owner: m.Node})
	}
	p.alarm("unsynchronised", "this standby is not entitled to succeed "+p.name(), p.entitled == Epoch{})
}

// unentitle gives up our entitlement.
func (p *Pair) unentitle() {
	if p.entitled != (Epoch{}) || p.asked != (Epoch{}) {
		p.emit(Entitle{Scope: p.opt.Scope, Epoch: later2(p.entitled, p.asked)})
		p.entitled, p.asked = Epoch{}, Epoch{}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func later2(a, b Epoch) Epoch {
	if a.Less(b) {
		return b
	}
	return a
}
