package cluster

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tandem/internal/config"
)

// A Slot of an FGCP group. What its log decides, and how a successor acts, is as in a farm;
// but who should own is ranked by FGCP's election: the log's leader has the standby that
// goes first promised the next epoch, and the owner hands over to it when it should.

// ranked says that FGCP's election ranks the members: this is no farm.
func (p *Slot) ranked() bool { return p.rank != nil }

// HandleMonitors says how many monitored interfaces work.
func (p *Slot) HandleMonitors(now time.Time, up int) {
	p.enter(now)
	p.rank.monitored(now, up)
	p.consider(now)
}

// HandlePingservers is as a Pair's.
func (p *Slot) HandlePingservers(now time.Time, penalty, stale int) {
	p.enter(now)
	p.rank.health.penalty, p.rank.health.stale = penalty-stale, stale
	p.consider(now)
}

// Reconfigure takes a new `config system ha`.
func (p *Slot) Reconfigure(now time.Time, ha config.HA) {
	p.enter(now)
	*p.rank.ha = ha
	p.consider(now)
}

// electionOf is another member's, its age carried forward to now.
func (m *member) electionOf(now time.Time) Election {
	e := m.Election
	e.Age += now.Sub(m.seen)
	return e
}

// Ranking are the members that are there and able, the one that goes first at the
// beginning, and what decided that.
func (p *Slot) Ranking(now time.Time, able func(NodeID) bool) (order []NodeID, why string) {
	var all []Candidate
	if able(p.opt.Self) && !p.shutdown {
		all = append(all, Candidate{p.opt.Self, p.rank.election(now)})
	}
	for _, m := range p.peers {
		if m.live() && able(m.Node) {
			all = append(all, Candidate{m.Node, m.electionOf(now)})
		}
	}
	return Rank(all, p.rank.ha.UptimeDiffMargin)
}

// Failover is `execute ha failover set` and `unset`. Set makes this node rank last
// until it is unset or must own again.
func (p *Slot) Failover(now time.Time, set bool) error {
	p.enter(now)
	m := p.next()
	switch {
	case !set:
	case p.phase == handing:
		return errors.New("a handover is under way")
	case p.phase != owning:
		return errors.New("this node is not the primary")
	case p.lost:
		return errors.New("no quorum: nothing new is decided")
	case m == nil || m.join != in || m.asking || m.leaving || m.stream != m.Process:
		return errors.New("no standby is synchronised: a failover would lose the tunnels")
	}
	p.rank.failover = set
	p.consider(now)
	return nil
}

// next is the member that was promised the scope in our place; nil: none.
func (p *Slot) next() *member {
	if n := p.decided.Successor; n == 0 || n == p.opt.Self {
		return nil
	}
	return p.peer(p.decided.Successor)
}

// handoverDue says why the successor should own instead of this node, if it should by now.
func (p *Slot) handoverDue(now time.Time, m *member) (Handed, string) {
	why, text, from := p.rank.succession(p.rank.election(now), m.electionOf(now), nameOf(m), p.hold, m.synced)
	if why == HandedNot || !p.due(now, from) {
		return HandedNot, ""
	}
	return why, text
}

// elected is what a decision that this node owns rested on, as it looks from here.
func (p *Slot) elected(now time.Time) (evidence string) {
	order, why := p.Ranking(now, func(NodeID) bool { return true })
	if len(order) < 2 || order[0] != p.opt.Self {
		return ""
	}
	return compared(why, p.rank.election(now), p.peer(order[1]).electionOf(now))
}

// changed remembers why the ownership is where it is; other is who is compared with us.
func (p *Slot) changed(now time.Time, o Own, other NodeID) {
	p.last, p.lastChange = o, now
	if !p.ranked() {
		return
	}
	by := o.By
	if by == 0 && !o.Logged {
		by = p.opt.Self
	}
	var x Peer
	if i := slices.IndexFunc(p.peers, func(m *member) bool { return m.Node == other }); i >= 0 {
		x = p.peers[i].Peer
		x.Election = p.peers[i].electionOf(now)
	}
	p.rank.changed(now, o, by, x)
}

// other is who is compared with us when we begin to own: the owner before, or else
// who goes first of the others.
func (p *Slot) other(now time.Time, before NodeID) NodeID {
	if before != 0 || !p.ranked() {
		return before
	}
	if others, _ := p.Ranking(now, func(n NodeID) bool { return n != p.opt.Self }); len(others) > 0 {
		return others[0]
	}
	return 0
}

// followed notes an owner that is new to this standby.
func (p *Slot) followed(now time.Time, o *member) {
	if p.ranked() && !p.rank.change.Epoch.SameTenure(o.Epoch) {
		p.changed(now, Own{Epoch: o.Epoch, Reason: nameOf(o) + " owns", Evidence: "its heartbeats", By: o.Node}, o.Node)
	}
}

// announceRanked tells what is compared, too.
func (p *Slot) announceRanked(now time.Time, owned Epoch) {
	a := Announce{Role: p.role(), Epoch: p.epoch, Election: p.rank.election(now), Coverage: p.coverage}
	if owned == (Epoch{}) && a.Epoch.Node == p.opt.Self {
		a.Epoch = Epoch{} // of an ownership that has ended
	}
	if p.rank.tells(now, a) {
		p.emit(a.ofScope(p.opt.Scope))
	}
}

// showRanked completes a status.
func (p *Slot) showRanked(now time.Time, s *HAStatus) {
	p.rank.show(now, s)
	s.Successor = p.decided.Successor
	for i := range s.Peers {
		m := p.peer(s.Peers[i].Node)
		s.Peers[i].Election = m.electionOf(now)
		if !m.heard {
			s.Peers[i].Links = nil
		}
	}
	if m := p.next(); p.phase == owning && m != nil && m.join == in {
		_, s.Next, s.NextAt = p.rank.succession(s.Election, m.electionOf(now), nameOf(m), p.hold, m.synced)
	}
}

func (p *Slot) promise(e Epoch) string {
	return fmt.Sprintf("the members' log promised it epoch %v", e)
}
