package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// considerOwning: keep to what was decided, keep the sync set, hand over if wanted.
func (p *Slot) considerOwning(now time.Time) {
	if p.considerDecided(now); p.phase != owning {
		return
	}
	if r := p.renewal; r != nil && p.due(now, r.by) {
		p.renewed(now)
	}
	if !p.leaveBy.IsZero() && p.due(now, p.leaveBy) {
		p.alarm("note", "the disk did not take the note in time; going on without the member", true)
		p.leaveAlive(now)
	}
	for _, m := range p.peers {
		if m.join != out {
			p.considerMember(now, m)
		} else {
			p.considerJoin(now, m)
		}
		if p.phase != owning {
			return
		}
	}
	p.considerSyncSet(now)
	p.considerHandover(now)
}

// considerDecided compares what we do with what was decided.
func (p *Slot) considerDecided(now time.Time) {
	d := &p.decided
	if r := p.owner(); r != nil && (p.stale || !p.granted) && p.epoch.Less(r.Epoch) {
		// We were cut off, and have not heard what was decided meanwhile, or have been taken for
		// lost. A later term comes from there; if it was burnt, the owner that was decided goes above it.
		p.yieldTo(now, r, r.Epoch, "was not cut off")
		return
	}
	switch {
	case d.Owner == 0 || !p.granted:
		// The log has lost sight of this process, and gave the scope to nobody: we go on.
	case p.tenure():
		if p.epoch.Less(d.Epoch) { // above a rival
			p.rejoinAll()
			p.own(now, Own{Epoch: d.Epoch, Covered: true, Trusted: true, Renewal: true, Reason: "a later epoch was decided"})
		}
	case p.promised():
		p.propose(now, &clusterpb.Command{What: &clusterpb.Command_TakeOver{TakeOver: &clusterpb.TakeOver{
			Scope: uint32(d.ID), Epoch: p.epoch.Proto(), From: d.Epoch.Proto(), Reason: uint32(p.reason())}}})
	case d.Owner == p.opt.Self && p.epoch.Less(d.Epoch):
		p.rejoinAll()
		p.own(now, Own{Epoch: d.Epoch, Covered: true, Trusted: true, Renewal: true, Reason: "a later epoch was decided"})
	case d.Owner == p.opt.Self:
		// An epoch of ours that was burnt; the one decided is older, and another may have used
		// what lies between: ask for a later one.
		p.renewTerm(now, p.epoch.Counter)
	case p.epoch.Counter > d.Burnt:
		// Promised by a decision that the old owner has heard of, and we not yet.
	case p.from != Epoch{} && p.from.SameTenure(d.Epoch) && p.owner() == nil:
		// Another was promised it before we acted, and we had not heard of that; or while it was
		// handed over to us. Nobody else owns: the other declines, or is given the scope and gets
		// what we did; who handed over declines, too.
	default:
		p.yieldTo(now, p.peer(d.Owner), d.Epoch, "was decided")
	}
	if p.phase != owning || !p.tenure() {
		return
	}
	rival := p.owner()
	p.alarm("rival", "another member owns, too", rival != nil)
	if p.usedAbove() {
		p.renewTerm(now, p.highest.Counter) // copies of ours would be refused by who used it
	}
}

// usedAbove says that somebody used an epoch above the owner's that was promised once,
// and then burnt: behind a cut.
func (p *Slot) usedAbove() bool {
	d := &p.decided
	return d.Owner != 0 && d.Epoch.Less(p.highest) && !d.Epoch.SameTenure(p.highest) && !d.Next.SameTenure(p.highest) &&
		p.highest.Counter <= d.Burnt|(1<<fsm.LocalBits-1)
}

// burnt says that an owner acted on what it was promised in another's place, or before
// another: it had not heard of that.
func (p *Slot) burnt(o *member) bool {
	d := &p.decided
	return d.Epoch.Less(o.Epoch) && !d.Epoch.SameTenure(o.Epoch) && !d.Next.SameTenure(o.Epoch) &&
		o.Epoch.Counter <= d.Burnt|(1<<fsm.LocalBits-1) && !p.decidedOwns()
}

// decidedOwns says that the owner that was decided is heard to own, or is this node.
func (p *Slot) decidedOwns() bool {
	if p.decided.Owner == p.opt.Self {
		return p.phase == owning
	}
	m := p.peer(p.decided.Owner)
	return m.live() && m.Role == RoleOwner
}

// rejoinAll forgets who had to be taken out under an epoch that has passed.
func (p *Slot) rejoinAll() {
	for _, m := range p.peers {
		m.notOld, m.backoff = time.Time{}, 0
	}
}

func (p *Slot) renewTerm(now time.Time, above uint64) {
	p.propose(now, &clusterpb.Command{What: &clusterpb.Command_RenewTerm{RenewTerm: &clusterpb.RenewTerm{
		Scope: uint32(p.opt.Scope), Epoch: p.decided.Epoch.Proto(), Above: above}}})
}

// yieldTo gives way to another owner. If it was not counted on, we went on beside it,
// and it gets what we hold.
func (p *Slot) yieldTo(now time.Time, m *member, e Epoch, why string) {
	counted := m.join == in && !m.asking && !m.leaving
	p.disown(now, e, nameOf(m)+" owns, and "+why)
	p.owe(!counted)
}

// considerJoin takes in a running standby whose stream is up.
func (p *Slot) considerJoin(now time.Time, m *member) {
	if !slices.Contains(p.decided.Standbys, m.Node) || !m.live() || m.Deaf || m.Role == RoleOwner || m.Process == 0 ||
		m.stream != m.Process || !p.tenure() || !p.due(now, m.notOld) {
		return
	}
	m.join, m.joinedAt, m.copiedAt, m.asking, m.lagging = joining, now, now, false, time.Time{}
	if p.away[m.Node] == m.Process {
		delete(p.away, m.Node)
	}
	p.emit(Join{Node: m.Node, Process: m.Process})
}

// considerMember asks for the removal of a member that does not keep up, or that
// stands by no longer.
func (p *Slot) considerMember(now time.Time, m *member) {
	if m.asking || m.leaving {
		return
	}
	late := m.stream != m.Process && p.due(now, m.streamEnd.Add(removalAfter)) ||
		m.join == joining && p.due(now, m.copiedAt.Add(copyTimeout)) ||
		m.join == in && !m.Entitled && p.due(now, m.synced.Add(removalAfter)) ||
		m.join == in && m.Deaf && p.due(now, m.seen.Add(removalAfter)) ||
		p.dispensable(m)
	if late {
		p.askRemoval(m)
	}
}

// dispensable: others were chosen in its place, and they hold everything.
func (p *Slot) dispensable(m *member) bool {
	d := &p.decided
	if !p.tenure() || slices.Contains(d.Standbys, m.Node) || d.Successor == m.Node || len(d.Standbys) == 0 {
		return false
	}
	for _, n := range d.Standbys {
		if x := p.peer(n); x.join != in || x.leaving || x.asking {
			return false
		}
	}
	return true
}

func (p *Slot) askRemoval(m *member) {
	if !m.asking && m.join != out {
		m.asking = true
		p.emit(AskRemoval{Scope: p.opt.Scope, Node: m.Node})
	}
}

// considerSyncSet tells the log who holds the records.
func (p *Slot) considerSyncSet(now time.Time) {
	var set []NodeID
	for _, m := range p.peers {
		if m.join == in && !m.leaving && !m.asking {
			set = append(set, m.Node)
		}
	}
	p.alarm("alone", "no standby could succeed this node", len(set) == 0)
	if !p.tenure() || slices.Equal(set, p.decided.Sync) || sameNodes(set, p.decided.Sync) {
		return
	}
	nodes := make([]uint32, len(set))
	for i, n := range set {
		nodes[i] = uint32(n)
	}
	p.propose(now, &clusterpb.Command{What: &clusterpb.Command_SetSyncSet{SetSyncSet: &clusterpb.SetSyncSet{
		Scope: uint32(p.opt.Scope), Epoch: p.epoch.Proto(), Members: nodes}}})
}

func sameNodes(a, b []NodeID) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// HandleStream says whether the stream towards a member's process stands.
func (p *Slot) HandleStream(now time.Time, id NodeID, process ProcessID, up bool) {
	p.enter(now)
	if p.phase == stopped {
		return
	}
	m := p.peer(id)
	switch {
	case up:
		m.stream = process
	case m.stream == process:
		m.stream, m.streamEnd = 0, now
	}
	p.consider(now)
}

// HandleLag tells the age of the oldest frame that a member has not acknowledged.
func (p *Slot) HandleLag(now time.Time, id NodeID, oldest time.Duration) {
	p.enter(now)
	m := p.peer(id)
	if p.phase != owning || m.join == out || m.leaving {
		return
	}
	switch {
	case oldest >= lagHopeless:
		p.askRemoval(m)
	case oldest <= removalAfter:
		m.lagging = time.Time{}
	case m.lagging.IsZero():
		m.lagging = now
	case now.Sub(m.lagging) >= lagAgain:
		p.askRemoval(m)
	}
	p.consider(now)
}

// HandleCopyMoved says that a member's copy got further, or waits while others to it do.
func (p *Slot) HandleCopyMoved(now time.Time, id NodeID) { p.peer(id).copiedAt = now }

// HandleEntered says that a member acknowledged its entry.
func (p *Slot) HandleEntered(now time.Time, id NodeID) {
	p.enter(now)
	m := p.peer(id)
	if p.phase != owning || m.join != joining || m.leaving {
		return
	}
	m.join, m.synced = in, now
	p.coverage = CoverageProven
	p.consider(now)
}

// HandleRemoved says that a member's guardian gave up its entitlement; with our own
// node, that our guardian gave up ours.
func (p *Slot) HandleRemoved(now time.Time, id NodeID) {
	p.enter(now)
	if id == p.opt.Self {
		if p.phase == taking {
			p.phase, p.pending = standing, nil
		}
		p.entitled, p.asked, p.removed, p.claim, p.lapsed = Epoch{}, Epoch{}, p.asked, nil, true
		p.consider(now)
		return
	}
	m := p.peer(id)
	switch {
	case !m.asking:
	case p.phase == owning && m.join != out:
		if slices.Contains(p.decided.Standbys, id) {
			if m.backoff == 0 || now.Sub(m.joinedAt) > 2*rejoinMax {
				m.backoff = rejoinMin
			} else {
				m.backoff = min(2*m.backoff, rejoinMax)
			}
			m.notOld = now.Add(m.backoff)
		}
		m.leaving = true
		p.renew(now, nameOf(m)+" was taken out of the sync set")
	case p.phase == handing && id == p.handNode && p.handAsk:
		p.takeBack(now, true, "")
	}
	if p.phase != stopped {
		p.consider(now)
	}
}

// memberLost: a member that has ended leaves at once, one that fell silent after the note.
func (p *Slot) memberLost(now time.Time, m *member, kind Loss) {
	m.lagging = time.Time{}
	if m.join == out {
		return
	}
	if kind != LossSilence {
		p.dropDead(now, m)
		return
	}
	if m.leaving {
		return
	}
	p.away[m.Node], p.apart[m.Node] = m.Process, m.Process
	m.leaving = true
	if p.leaveBy.IsZero() {
		p.leaveBy = now.Add(patientNote)
		p.note(p.epoch, func(now time.Time) {
			if p.phase == owning && !p.leaveBy.IsZero() {
				p.leaveAlive(now)
			}
		})
	}
}

// leaveAlive takes out those that fell silent.
func (p *Slot) leaveAlive(now time.Time) {
	p.leaveBy = time.Time{}
	var names []string
	for _, m := range p.peers {
		if m.leaving {
			names = append(names, nameOf(m))
		}
	}
	if len(names) > 0 {
		p.renew(now, strings.Join(names, ", ")+" fell silent")
	}
}

// renewal is the way to a later epoch that those who stay have to be told of before
// those who leave are let go.
type renewal struct {
	epoch Epoch
	wait  []NodeID // who has not confirmed
	by    time.Time
	why   string
}

// renew takes out the members that leave alive: an epoch's sync set never takes one
// back. Those who stay are entitled for the next epoch first, so that at no moment
// nobody could succeed; then guardians hear of it; then what waited for those who
// leave is committed.
func (p *Slot) renew(now time.Time, why string) {
	r := &renewal{epoch: p.epoch.Next(p.opt.Self), by: now.Add(removalAfter), why: why}
	if p.renewal != nil {
		r.epoch = p.renewal.epoch.Next(p.opt.Self)
	}
	for _, m := range p.peers {
		switch {
		case m.join == in && !m.leaving && !m.asking:
			r.wait = append(r.wait, m.Node)
		case m.join == joining:
			m.leaving = true // it is taken in anew
		}
	}
	p.renewal = r
	p.emit(Renew{Epoch: r.epoch, Stay: slices.Clone(r.wait)})
	if len(r.wait) == 0 {
		p.renewed(now)
	}
}

// HandleRenewed says that a member follows us to the epoch.
func (p *Slot) HandleRenewed(now time.Time, id NodeID) {
	p.enter(now)
	if r := p.renewal; r != nil && p.phase == owning {
		if r.wait = slices.DeleteFunc(r.wait, func(n NodeID) bool { return n == id }); len(r.wait) == 0 {
			p.renewed(now)
		}
	}
	p.consider(now)
}

// renewed completes a renewal. Who has not confirmed is asked to leave, too: until its
// guardian says so it may succeed us, and holds up what it has not acknowledged.
func (p *Slot) renewed(now time.Time) {
	r := p.renewal
	p.renewal = nil
	var stay []NodeID
	for _, m := range p.peers {
		if m.join != out && !m.leaving && slices.Contains(r.wait, m.Node) {
			p.askRemoval(m)
		}
	}
	p.epoch = r.epoch
	if p.highest.Less(p.epoch) {
		p.highest = p.epoch
	}
	p.announce(now)
	for _, m := range p.peers {
		switch {
		case m.join == out:
		case m.leaving:
			p.dropDead(now, m)
		default:
			stay = append(stay, m.Node)
			m.synced = now
		}
	}
	p.emit(Own{Epoch: p.epoch, Covered: true, Trusted: true, Renewal: true, Stay: stay, Reason: r.why})
}

// dropDead takes out a member whose process has ended.
func (p *Slot) dropDead(now time.Time, m *member) {
	if (p.phase == owning || p.phase == handing) && m.join != out {
		m.join, m.asking, m.leaving, m.lagging = out, false, false, time.Time{}
		p.emit(Leave{m.Node})
		if r := p.renewal; r != nil && slices.Contains(r.wait, m.Node) {
			if r.wait = slices.DeleteFunc(r.wait, func(n NodeID) bool { return n == m.Node }); len(r.wait) == 0 {
				p.renewed(now)
			}
		}
	}
}

func (p *Slot) dropAll() {
	for _, m := range p.peers {
		p.dropDead(time.Time{}, m)
	}
}

// considerHandover: the successor shall own, because the plan wants it or we end.
func (p *Slot) considerHandover(now time.Time) {
	if p.renewal != nil || !p.wanted && !p.shutdown && !p.ranked() || !p.tenure() || p.decided.Successor == 0 {
		return
	}
	if p.lost && !p.shutdown {
		return // the successor could have no standby until something is decided
	}
	m := p.peer(p.decided.Successor)
	if m.join != in || m.asking || m.leaving || !m.live() || m.Deaf || m.stream != m.Process || !p.shutdown && !p.due(now, p.hold) {
		return
	}
	if !p.shutdown && p.home == m.Node && !p.due(now, m.synced.Add(goHome)) {
		return
	}
	why, kind := "the plan wants it there", HandedNot
	switch {
	case p.shutdown:
		why, kind = "shutdown", HandedShutdown
	case !p.wanted:
		if kind, why = p.handoverDue(now, m); kind == HandedNot {
			return
		}
	}
	if p.ranked() {
		p.rank.handsOver(now, kind)
		p.handFor = kind.evidence(p.rank.election(now), m.electionOf(now))
	}
	p.phase, p.handTo, p.handNode, p.handWhy = handing, p.decided.Next, m.Node, why
	p.handBy, p.handAsk = now.Add(handoverWait), false
	p.emit(HandOver{Node: m.Node, Epoch: p.handTo})
}

// considerHanding waits for the successor.
func (p *Slot) considerHanding(now time.Time) {
	m := p.peer(p.handNode)
	switch {
	case m.live() && m.Role == RoleOwner && !m.Epoch.Less(p.handTo):
		p.disown(now, m.Epoch, "handed over to "+nameOf(m)+": "+p.handWhy)
		p.epoch = m.Epoch
		if p.ranked() {
			p.rank.change.Why, p.rank.change.Evidence = p.rank.health.handed, p.handFor
		}
		if p.shutdown {
			p.stop(now)
		}
	case !p.due(now, p.handBy):
	case p.shutdown:
		p.disown(now, p.handTo, "shutdown")
		p.stop(now)
	case !p.handAsk:
		p.handFailed(now)
	default:
		p.takeBack(now, false, nameOf(m)+" does not answer")
	}
}

func (p *Slot) handFailed(now time.Time) {
	p.handAsk, p.handBy = true, now.Add(handoverGiveUp)
	m := p.peer(p.handNode)
	m.asking = true
	p.emit(AskRemoval{Scope: p.opt.Scope, Node: m.Node})
}

// takeBack owns again after a handover that did not come about.
func (p *Slot) takeBack(now time.Time, covered bool, why string) {
	m := p.peer(p.handNode)
	if why == "" {
		why = nameOf(m) + " did not confirm"
	}
	p.dropAll()
	if p.ranked() {
		p.rank.tookBack()
	}
	p.own(now, Own{Epoch: p.epoch.Next(p.opt.Self), Covered: covered, Trusted: true, Reason: "handover failed: " + why, From: p.opt.Name})
	p.hold = now.Add(failedHoldDown)
	m.notOld = now.Add(rejoinMin)
	p.alarm("handover", fmt.Sprintf("handover to %s failed: %s", nameOf(m), why), true)
}

// successorLost: the successor was lost while we wait for it.
func (p *Slot) successorLost(now time.Time, m *member, kind Loss) {
	switch {
	case p.shutdown:
		p.disown(now, p.handTo, "shutdown")
		p.stop(now)
	case kind == LossDeath:
		p.takeBack(now, false, nameOf(m)+" ended")
	default:
		p.handAsk, p.handBy = true, now.Add(takeoverNote)
		p.note(p.epoch, func(now time.Time) {
			if p.phase == handing {
				p.takeBack(now, false, nameOf(m)+" was lost")
			}
		})
	}
}

// HandleHandedOver says whether the member acknowledged the last frame of the handover.
func (p *Slot) HandleHandedOver(now time.Time, id NodeID, ok bool) {
	p.enter(now)
	if p.phase == handing && id == p.handNode && !ok && !p.handAsk && !p.shutdown {
		p.handFailed(now)
	}
	if p.phase != stopped {
		p.consider(now)
	}
}

// Shutdown hands over if a synchronised member is there, and ends with Stopped.
func (p *Slot) Shutdown(now time.Time) {
	p.enter(now)
	p.shutdown = true
	switch p.phase {
	case stopped:
		return
	case handing:
		p.handBy = now.Add(handoverWait)
	case owning:
		if p.considerHandover(now); p.phase == owning {
			p.disown(now, Epoch{}, "shutdown")
			p.stop(now)
			return
		}
	default:
		p.unentitle()
		p.stop(now)
		return
	}
	p.consider(now)
}

func (p *Slot) stop(now time.Time) {
	p.announce(now)
	p.phase, p.wake = stopped, time.Time{}
	p.emit(Stopped{})
}

// reason is why we own, for the log.
func (p *Slot) reason() fsm.Reason {
	switch {
	case p.last.Handover:
		return fsm.ReasonHandover
	case p.lastKind == LossDeath:
		return fsm.ReasonDeath
	case p.lastKind == LossUnresponsive:
		return fsm.ReasonUnresponsive
	}
	return fsm.ReasonSilence
}
