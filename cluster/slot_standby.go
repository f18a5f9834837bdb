package cluster

import (
	"fmt"
	"slices"
	"time"

	"tandem/proto/clusterpb"
)

// owner is the member that is heard to own, under the highest epoch.
func (p *Slot) owner() (best *member) {
	for _, m := range p.peers {
		if m.live() && m.Role == RoleOwner && (best == nil || best.Epoch.Less(m.Epoch)) {
			best = m
		}
	}
	return best
}

// considerStanding: we do not own. Follow the owner, or own if that was decided, or
// promised for this moment.
func (p *Slot) considerStanding(now time.Time) {
	if p.copying != (Epoch{}) && p.entitled == (Epoch{}) && p.asked == (Epoch{}) && p.due(now, p.copyAt.Add(copyPatience)) {
		p.copying, p.lapsed = Epoch{}, true // an owner that gives up a copy does not say so
	}
	if o := p.owner(); o != nil {
		p.follow(now, o)
		if p.claim != nil && !o.Epoch.Less(p.claim.epoch) {
			p.heardAgain(o) // or succeeded by another
		}
		if (p.decided.Successor == p.opt.Self || p.decided.Owner == p.opt.Self) && p.granted && p.phase == standing && p.burnt(o) {
			p.decline(now, o)
		}
	}
	if p.shutdown || p.noQuorum {
		return
	}
	if o := p.owner(); p.granted && p.usedAbove() && (p.decided.Owner == p.opt.Self || p.peer(p.decided.Owner).live()) && (o == nil || !p.burnt(o)) {
		p.renewTerm(now, p.highest.Counter) // for the owner, whose copies we would refuse
	}
	p.succeed(now)
	if p.phase != taking && p.granted && (p.decided.Owner == p.opt.Self || p.heldPromise()) {
		p.given(now)
	}
}

// succeed acts on a claim: as the successor promised, or because it was decided since.
func (p *Slot) succeed(now time.Time) {
	c := p.claim
	if c == nil {
		return
	}
	d := &p.decided
	switch {
	case !p.granted:
		// What was given or promised was so to the process before this one, or to one that the
		// log takes for lost: somebody else may have it by now.
	case d.Owner == p.opt.Self && c.epoch.Less(d.Epoch):
		p.take(now, d.Epoch, c)
	case d.Successor == p.opt.Self && d.Epoch.SameTenure(c.epoch):
		if slices.ContainsFunc(p.before, func(n NodeID) bool { return n != p.opt.Self && p.peer(n).live() }) && !p.due(now, p.settles) {
			return // it is heard to own meanwhile if it was promised the scope before, and acts
		}
		p.take(now, d.Next, c)
	case c.epoch.Less(d.Epoch) && d.Owner != c.node && d.Owner != p.opt.Self && d.Owner != 0 && !p.peer(d.Owner).heard:
		// It may own where we do not hear it. One that is heard is heard to own: until then, and
		// if it ends before, we hold what was acknowledged last.
		p.claim = nil
		p.unentitle()
	}
}

// heldPromise says that we owned as the successor promised when the quorum was lost, and
// that nothing was decided about that.
func (p *Slot) heldPromise() bool {
	return p.held != Epoch{} && p.decided.Successor == p.opt.Self && p.decided.Next.SameTenure(p.held) && p.owner() == nil
}

// given: it was decided that this node owns, and no loss told us so.
func (p *Slot) given(now time.Time) {
	d := p.decided
	if !p.epoch.Less(d.Epoch) && p.held == (Epoch{}) {
		return // the log does not know yet of the owner that we know
	}
	if p.held != (Epoch{}) {
		if !p.held.SameTenure(d.Epoch) && !p.heldPromise() {
			p.held = Epoch{}
		} else { // quorum is back, and nobody else was chosen
			p.own(now, Own{Epoch: p.held.Next(p.opt.Self), Covered: true, Trusted: true, Reason: "quorum is back"})
			return
		}
	}
	if o := p.owner(); o != nil && o.Epoch.Less(d.Epoch) && !p.due(now, p.since.Add(patience)) {
		return // it hears of the decision, too
	}
	if p.entitled != (Epoch{}) {
		e := p.entitled
		p.take(now, d.Epoch, &claimed{node: e.Node, epoch: e, process: p.peer(e.Node).Process, kind: LossSilence})
		return
	}
	if p.asked != (Epoch{}) && !p.due(now, p.since.Add(patience)) {
		return
	}
	if m := p.holder(); m != nil && !p.due(now, p.since.Add(patience)) {
		p.decline(now, m)
		return
	}
	if p.uniting {
		// What we did when we owned has come to nobody. Whoever followed us is lost, may have
		// gone further, and unites with us when it is back.
		p.own(now, Own{Epoch: d.Epoch, Trusted: true, Logged: true, Reason: fmt.Sprintf("%v was given back to this node (%v)", d.ID, d.Reason)})
		return
	}
	// Nobody holds what was acknowledged: peers begin anew.
	o := Own{Epoch: d.Epoch, Logged: true, Reason: fmt.Sprintf("%v was given to this node (%v)", d.ID, d.Reason)}
	if p.ranked() {
		o.Evidence = p.elected(now)
	}
	p.own(now, o)
}

// decline leaves the scope, which this node was given or promised, to another member.
func (p *Slot) decline(now time.Time, m *member) {
	p.propose(now, &clusterpb.Command{What: &clusterpb.Command_Decline{Decline: &clusterpb.Decline{
		Scope: uint32(p.opt.Scope), Epoch: p.decided.Epoch.Proto(), Node: uint32(m.Node)}}})
}

// holder is a member that says it may succeed an owner before the epoch that this node was
// given, the latest that is known here: it holds what was acknowledged last.
func (p *Slot) holder() (best *member) {
	for _, m := range p.peers {
		if m.live() && m.Entitled && m.Epoch.Less(p.decided.Epoch) && !m.Epoch.Less(p.highest) && (best == nil || best.Epoch.Less(m.Epoch)) {
			best = m
		}
	}
	return best
}

// take asks our guardian, and writes the note where the old owner may go on.
func (p *Slot) take(now time.Time, e Epoch, c *claimed) {
	m := p.peer(c.node)
	p.lastKind = c.kind
	t := takeover{epoch: e, process: c.process, claim: true, claimBy: now.Add(handoverWait),
		own: Own{Epoch: e, Covered: true, Trusted: true, From: nameOf(m), Detected: c.detected, Evidence: p.promise(e)}}
	switch c.kind {
	case LossDeath:
		t.own.Reason = nameOf(m) + " announced the end of its daemon"
	case LossUnresponsive:
		t.own.Reason = nameOf(m) + " cannot end its daemon, which may go on"
		t.own.Covered, t.note = false, true
	default:
		t.own.Reason = nameOf(m) + " is silent on every heartbeat device"
		t.note = true
	}
	p.phase, p.pending = taking, &t
	p.emit(Claim{Scope: p.opt.Scope, Epoch: e})
	if t.note {
		t.noteBy = now.Add(takeoverNote)
		p.note(e, func(time.Time) { t.note = false })
	}
}

// considerTaking: the decision stands until its conditions are met or it is void.
func (p *Slot) considerTaking(now time.Time) {
	t := p.pending
	if p.noQuorum { // a claim keeps until the quorum is back; who hands over waits for us
		if t.handover {
			p.giveUp()
		}
		p.phase, p.pending = standing, nil
		return
	}
	if o := p.owner(); o != nil && !t.handover && !o.Epoch.Less(p.entitled) {
		p.phase, p.pending = standing, nil
		p.heardAgain(o)
		return
	}
	if t.claim {
		if p.due(now, t.claimBy) {
			p.giveUp()
		}
		return
	}
	if t.note {
		if !p.sharp(now, t.noteBy) {
			return
		}
		p.alarm("note", "the disk did not take the note in time; took over without it", true)
	}
	p.pending = nil
	from := p.entitled.Node
	if t.own.Covered && !t.handover && from != 0 {
		p.away[from] = t.process
		if p.lastKind != LossDeath {
			p.apart[from] = t.process
		}
	}
	p.own(now, t.own)
	for _, m := range p.peers {
		p.earlyRekey(m) // it may be back already
	}
}

// heardAgain: an owner is heard before we acted. If it still counts us, nothing has
// happened; its epoch says so, because one without us is a new one.
func (p *Slot) heardAgain(o *member) {
	held := p.entitled
	p.claim = nil
	if held == (Epoch{}) || o.Epoch != held {
		p.unentitle()
		return
	}
	p.entitled, p.asked = Epoch{}, held
	p.emit(Entitle{Scope: p.opt.Scope, Epoch: held, On: true})
}

func (p *Slot) giveUp() {
	p.phase, p.pending, p.claim = standing, nil, nil
	p.unentitle()
}

// own begins ownership, or goes on under another epoch of ours.
func (p *Slot) own(now time.Time, o Own) {
	p.epoch = o.Epoch
	if p.highest.Less(o.Epoch) {
		p.highest = o.Epoch
	}
	for _, m := range p.peers {
		m.join, m.asking, m.leaving, m.lagging = out, false, false, time.Time{}
	}
	p.leaveBy, p.renewal = time.Time{}, nil
	if !o.Renewal {
		p.owe(false)
		p.phase, p.claim, p.pending, p.held, p.from = owning, nil, nil, Epoch{}, p.entitled
		p.entitled, p.asked, p.removed = Epoch{}, Epoch{}, Epoch{}
		p.hold = now.Add(slotHoldDown)
		p.takeovers++
		if p.ranked() {
			p.rank.failover, p.rank.health.handed = false, HandedNot
		}
		p.changed(now, o, p.other(now, p.from.Node))
		p.alarm("unsynchronised", "", false)
		p.alarm("handover", "", false)
	}
	p.alarm("alone", "no standby could succeed this node", true)
	p.announce(now) // the guardian first: the entitlement that we used up must not be granted away
	p.emit(o)
}

// disown ends ownership at once.
func (p *Slot) disown(now time.Time, to Epoch, why string) {
	p.phase = standing
	for _, m := range p.peers {
		m.join, m.asking, m.leaving = out, false, false
	}
	clear(p.away)
	clear(p.apart)
	p.leaveBy, p.renewal, p.lapsed = time.Time{}, nil, true
	p.changed(now, Own{Epoch: to, Reason: why, By: to.Node}, to.Node)
	p.alarm("alone", "", false)
	p.alarm("rival", "", false)
	p.emit(Disown{To: to, Reason: why})
}

// follow is standing by an owner that is heard.
func (p *Slot) follow(now time.Time, o *member) {
	if p.phase == listening {
		p.phase = standing
	}
	p.followed(now, o)
	if p.epoch.Less(o.Epoch) || p.entitled == (Epoch{}) {
		p.epoch = o.Epoch
	}
	if p.entitled != (Epoch{}) && p.entitled.Less(o.Epoch) || p.asked != (Epoch{}) && p.asked.Less(o.Epoch) {
		p.unentitle() // that epoch has gone on without us
	}
	if c := p.copying; c != (Epoch{}) && p.entitled == (Epoch{}) && p.asked == (Epoch{}) && c.Less(o.Epoch) && !c.SameTenure(o.Epoch) {
		p.copying, p.lapsed = Epoch{}, true // the copy will never be whole
	}
	if to := (unitedWith{o.Node, o.Process, o.Epoch}); p.uniting && p.united != to && o.stream == o.Process && o.Process != 0 {
		p.united = to
		p.emit(Unite{Owner: o.Node})
	}
}

// HandleCopied says that the copy is complete and the owner counts us.
func (p *Slot) HandleCopied(now time.Time, e Epoch) {
	p.enter(now)
	if p.phase != standing && p.phase != listening || p.uniting || e.Less(p.epoch) || e.Node == 0 {
		return
	}
	if p.claim != nil && p.claim.epoch.Node == e.Node && !p.peer(e.Node).live() {
		return // under way when its owner was lost; what we were entitled to then is the claim
	}
	p.phase, p.epoch, p.claim = standing, e, nil
	if p.highest.Less(e) {
		p.highest = e
	}
	p.asked, p.removed = e, Epoch{}
	p.emit(Entitle{Scope: p.opt.Scope, Epoch: e, On: true})
	p.consider(now)
}

// HandleEntitled says that our guardian holds our entitlement: if true, the entry may
// be acknowledged.
func (p *Slot) HandleEntitled(now time.Time, e Epoch) bool {
	p.enter(now)
	if p.asked != e && p.removed != e || e == (Epoch{}) || p.phase != standing {
		return false
	}
	if p.asked != e { // what was given up then was another entitlement, for an epoch before
		p.lapsed = false
	}
	p.entitled, p.asked, p.removed = e, Epoch{}, Epoch{}
	p.coverage = CoverageProven
	p.consider(now)
	return p.entitled == e
}

// HandleClaimed answers Claim.
func (p *Slot) HandleClaimed(now time.Time, e Epoch, ok bool) {
	p.enter(now)
	t := p.pending
	if p.phase != taking || t == nil || !t.claim || t.epoch != e {
		return
	}
	if ok {
		t.claim = false
	} else {
		p.giveUp()
	}
	p.consider(now)
}

// HandleHandover says, as standby, that the owner stopped and hands over to us.
func (p *Slot) HandleHandover(now time.Time, e Epoch) {
	p.enter(now)
	if p.phase != standing || p.entitled == (Epoch{}) || e.Node != p.opt.Self || e.Less(p.epoch) || p.shutdown || p.noQuorum {
		return
	}
	from := nameOf(p.peer(p.entitled.Node))
	p.phase = taking
	p.pending = &takeover{epoch: e, handover: true, claim: true, claimBy: now.Add(handoverWait),
		own: Own{Epoch: e, Covered: true, Trusted: true, Handover: true, Reason: from + " handed over", From: from, By: p.entitled.Node, Evidence: "its word"}}
	p.emit(Claim{Scope: p.opt.Scope, Epoch: e})
	p.consider(now)
}

func (p *Slot) unentitle() {
	if p.entitled != (Epoch{}) || p.asked != (Epoch{}) {
		p.emit(Entitle{Scope: p.opt.Scope, Epoch: later2(p.entitled, p.asked)})
		p.entitled, p.asked, p.lapsed = Epoch{}, Epoch{}, true
	}
}

// earlyRekey: a member is back that may have gone on with what we own, and it has no
// memory of it.
func (p *Slot) earlyRekey(m *member) {
	process, away := p.away[m.Node]
	if p.phase != owning || !away || !m.Running || m.Process == process || m.Role == RoleOwner {
		return
	}
	delete(p.away, m.Node)
	switch m.Coverage {
	case CoverageNote:
		p.emit(RekeyEarly{nameOf(m) + " went on alone before it ended"})
	case CoverageLost:
		p.emit(RekeyEarly{nameOf(m) + " lost its disk and cannot prove that it did not go on alone"})
	}
}

// note puts the note "went on alone" on disk; then runs when the disk has answered.
func (p *Slot) note(e Epoch, then func(time.Time)) {
	p.notes = append(p.notes, then)
	p.emit(WriteNote{On: true, Epoch: e})
}

// HandleNote answers the oldest open WriteNote.
func (p *Slot) HandleNote(now time.Time, err error) {
	p.enter(now)
	if len(p.notes) == 0 {
		return
	}
	then := p.notes[0]
	p.notes = p.notes[1:]
	if err != nil {
		p.alarm("disk", "cannot write the note: "+err.Error(), true)
	} else {
		p.alarm("disk", "", false)
		p.alarm("note", "", false)
	}
	then(now)
	if p.phase != stopped {
		p.consider(now)
	}
}
