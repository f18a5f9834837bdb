package cluster

import "time"

// Why the note does not hold up a takeover for longer than 20 ms. The note says
// "this node may have gone on beside another owner", and is read only if this
// process loses its memory later, while the other node survives. Without it the
// other node would then believe its copies to be current. That takes a cut, a
// crash of this node within the time that its disk is stuck, and a peer that saw
// both; even then no nonce repeats, since nonce ranges belong to processes. An
// owner that waits for a stuck disk on the other hand is an outage for everybody.
// So the write starts first, and the takeover follows its completion or the end
// of takeoverNote, with an alarm in the second case; the write itself goes on.
// A takeover after an announced death writes nothing first: nobody else goes on.

// takeover is a decision to own that waits for something.
type takeover struct {
	own     Own
	note    bool // waits for the note
	patient bool // for up to patientNote instead of takeoverNote
	claim   bool // waits for the guardian to turn our entitlement into ownership
	silent  bool // undone if the owner is heard again before we own
	epoch   Epoch
	by      time.Time
	done    bool
}

// take begins ownership after what has to come first.
func (p *Pair) take(now time.Time, t takeover) {
	p.phase = taking
	if t.epoch == (Epoch{}) {
		t.epoch = p.next()
	}
	p.pending = &t
	if t.note {
		t.by = now.Add(takeoverNote)
		if t.patient {
			t.by = now.Add(patientNote)
		}
		p.writeNote(true, t.epoch, func(time.Time) { t.done = true })
	}
	if t.claim {
		t.by = now.Add(handoverWait)
		p.emit(Claim{Epoch: t.epoch})
	}
}

// takeOver succeeds the owner that was just lost, as its entitled member.
func (p *Pair) takeOver(now time.Time, kind Loss, detected time.Duration) {
	t := takeover{own: Own{Covered: true, Trusted: true, Detected: detected, From: p.name()}}
	switch kind {
	case LossDeath:
		t.own.Reason = p.name() + " announced the end of its daemon"
	case LossUnresponsive:
		t.own.Reason = p.name() + " cannot end its daemon, which may go on"
		t.own.Covered, t.note = false, true
	default:
		t.own.Reason = p.name() + " is silent on every heartbeat device"
		t.note, t.silent = true, true
	}
	if t.own.Covered {
		p.tookFrom, p.tookProc = p.peer.Node, p.peer.Process
	}
	if !t.note {
		p.own(now, t.own)
		return
	}
	p.take(now, t)
}

// considerTaking: the decision stands until its condition is met or it is void.
func (p *Pair) considerTaking(now time.Time) {
	t, m := p.pending, &p.peer
	if !t.claim && m.live() && m.Role == RoleOwner {
		// It is back before we acted. If it still counts us, nothing has happened;
		// its epoch says so, because one without us is a new one.
		held := p.entitled
		p.phase, p.pending = standing, nil
		p.tookFrom = 0
		if t.silent && held != (Epoch{}) && held == m.Epoch {
			p.entitled = Epoch{}
			p.entitle(held)
		} else {
			p.unentitle()
		}
		return
	}
	switch {
	case t.claim:
		if p.due(now, t.by) { // the guardian does not answer: it is gone, and we shall be
			p.phase, p.pending = standing, nil
		}
	case t.done:
		p.pending = nil
		p.own(now, t.own)
	case p.sharp(now, t.by):
		p.pending = nil
		p.alarm("note", "the disk did not take the note in time; took over without it", true)
		p.own(now, t.own)
	}
}

// next is the epoch that this node would make now.
func (p *Pair) next() Epoch { return p.nextFor(p.opt.Self) }

func (p *Pair) nextFor(n NodeID) Epoch {
	return Epoch{max(p.highest.Counter, p.floor) + 1, n}
}

// own begins ownership, or its next epoch if we own already. An epoch given is one
// that the owner before made for us.
func (p *Pair) own(now time.Time, o Own) {
	if o.Epoch == (Epoch{}) {
		o.Epoch = p.next()
	}
	p.floor = 0
	p.epoch = o.Epoch
	if p.highest.Less(o.Epoch) {
		p.highest = o.Epoch
	}
	if !o.Renewal {
		p.phase, p.failover, p.uniting = owning, false, false
		p.entitled, p.asked, p.pending = Epoch{}, Epoch{}, nil
		p.peer.join, p.peer.asking, p.peer.leaving = out, false, false
		p.split, p.ownerless = time.Time{}, time.Time{}
		p.hold = now.Add(holdDown)
		p.unsynced = now
		p.takeovers++
		p.last, p.lastChange = o, now
		p.alarm("unsynchronised", "", false)
		p.alarm("handover", "", false)
		if !o.Handover {
			p.alarm("alone", "no standby could succeed this node", true)
		}
	}
	if o.Epoch.Counter > p.disk+epochReserve {
		p.alarm("disk", "the epoch could not be written to disk for too long", true)
	}
	// The guardian first: the entitlement that we used up must not be granted away.
	p.announce(now)
	p.emit(o)
	p.persist()
}

// disown ends ownership in favour of the other node.
func (p *Pair) disown(now time.Time, to Epoch, why string) {
	p.phase = standing
	p.peer.join, p.peer.asking, p.peer.leaving = out, false, false
	p.chosen, p.tookFrom = 0, 0
	p.split, p.ownerless = time.Time{}, time.Time{}
	p.last, p.lastChange = Own{Reason: why}, now
	p.alarm("alone", "", false)
	p.alarm("split", "", false)
	p.emit(Disown{To: to, Reason: why})
}

// HandleCopied says, as standby, that the copy is complete and the owner counts
// us; the guardian must hold the entitlement before that is acknowledged.
func (p *Pair) HandleCopied(now time.Time, e Epoch) {
	p.enter(now)
	if p.phase != standing || p.uniting || e.Less(p.epoch) || e.Node == 0 {
		return
	}
	p.epoch = e // the stream may be faster than the heartbeat
	if p.highest.Less(e) {
		p.highest = e
	}
	p.entitle(e)
	p.consider(now)
}

func (p *Pair) entitle(e Epoch) {
	p.asked = e
	p.emit(Entitle{Epoch: e, On: true})
}

// HandleEntitled says that our guardian holds our entitlement for the epoch.
func (p *Pair) HandleEntitled(now time.Time, e Epoch) {
	p.enter(now)
	if p.asked != e || p.phase != standing {
		return
	}
	p.entitled, p.asked = e, Epoch{}
	// The owner knows our coverage: it asked for the copy after our heartbeats said it.
	p.coverage = CoverageProven
	p.clearNote()
	p.consider(now)
}

// HandleClaimed answers Claim.
func (p *Pair) HandleClaimed(now time.Time, e Epoch, ok bool) {
	p.enter(now)
	t := p.pending
	if p.phase != taking || t == nil || !t.claim || t.epoch != e {
		return
	}
	p.pending = nil
	// Whoever has gone beyond that epoch has not waited for us.
	if !ok || e.Less(p.highest) {
		p.phase = standing
		p.unentitle()
	} else {
		t.own.Epoch = e
		p.own(now, t.own)
	}
	p.consider(now)
}

// earlyRekey: the node is back that may have gone on with what we own, and it has
// no memory. If it did go on alone, peers may be further with their SAs than we are.
func (p *Pair) earlyRekey() {
	m := &p.peer
	if p.phase != owning || p.tookFrom != m.Node || !m.Running || m.Process == p.tookProc || m.Role == RoleOwner {
		return
	}
	p.tookFrom = 0
	switch m.Coverage {
	case CoverageNote:
		p.emit(RekeyEarly{p.name() + " went on alone before it ended"})
	case CoverageLost:
		p.emit(RekeyEarly{p.name() + " lost its disk and cannot prove that it did not go on alone"})
	}
}
