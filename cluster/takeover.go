package cluster

import (
	"fmt"
	"time"
)

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

// takeover is a decision to own that waits for something: the note, or the word of
// our guardian that the entitlement it rests on has not been overtaken while this
// process stood still. The guardian answers within a fraction of a millisecond.
type takeover struct {
	own      Own
	handover bool
	note     bool // waits for the note
	patient  bool // for up to patientNote instead of takeoverNote
	noteBy   time.Time
	claim    bool // waits for the guardian's word
	claimBy  time.Time
	epoch    Epoch
	process  ProcessID // of the owner that we succeed
}

// take begins ownership after what has to come first.
func (p *Pair) take(now time.Time, t takeover) {
	p.phase = taking
	if t.epoch == (Epoch{}) {
		t.epoch = p.next()
	}
	p.pending = &t
	if t.claim {
		t.claimBy = now.Add(handoverWait)
		p.emit(Claim{Scope: p.opt.Scope, Epoch: t.epoch})
	}
	if t.note {
		t.noteBy = now.Add(takeoverNote)
		if t.patient {
			t.noteBy = now.Add(patientNote)
		}
		p.writeNote(true, t.epoch, func(time.Time) { t.note = false })
	}
}

// takeOver succeeds the owner that was just lost, as its entitled member.
func (p *Pair) takeOver(now time.Time, kind Loss, detected time.Duration) {
	t := takeover{own: Own{Covered: true, Trusted: true, Detected: detected, From: p.name()}, claim: true, process: p.peer.Process}
	switch kind {
	case LossDeath:
		t.own.Reason = p.name() + " announced the end of its daemon"
		t.own.Evidence = "the word of its guardian"
	case LossUnresponsive:
		t.own.Reason = p.name() + " cannot end its daemon, which may go on"
		t.own.Evidence = "the word of its guardian"
		t.own.Covered, t.note = false, true
	default:
		t.own.Reason = p.name() + " is silent on every heartbeat device"
		t.own.Evidence = fmt.Sprintf("no heartbeat for %.1f ms", float64(detected.Microseconds())/1000)
		t.note = true
	}
	p.take(now, t)
}

// considerTaking: the decision stands until its conditions are met or it is void.
func (p *Pair) considerTaking(now time.Time) {
	t, m := p.pending, &p.peer
	if !t.handover && m.live() && m.Role == RoleOwner {
		// An owner is heard before we acted. If it still counts us, nothing has
		// happened; its epoch says so, because one without us is a new one.
		held := p.entitled
		p.phase, p.pending = standing, nil
		if held != (Epoch{}) && held == m.Epoch {
			p.entitled = Epoch{}
			p.entitle(held)
		} else {
			p.unentitle()
		}
		return
	}
	if t.claim {
		if p.due(now, t.claimBy) { // the guardian does not answer: it is gone, and we shall be
			p.phase, p.pending = standing, nil
			p.unentitle()
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
	if t.own.Covered && !t.handover {
		p.tookFrom, p.tookProc = m.Node, t.process
	}
	p.own(now, t.own)
	if !t.handover {
		p.rival = t.process
	}
	p.earlyRekey() // it may be back already
}

// next is the epoch that this node would make now.
func (p *Pair) next() Epoch { return p.nextFor(p.opt.Self) }

func (p *Pair) nextFor(n NodeID) Epoch {
	return Epoch{Counter: max(p.highest.Counter, p.floor) + 1, Node: n}
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
		p.phase, p.failover, p.uniting, p.health.handed = owning, false, false, HandedNot
		p.entitled, p.asked, p.pending = Epoch{}, Epoch{}, nil
		p.peer.join, p.peer.asking, p.peer.leaving = out, false, false
		p.split, p.ownerless = time.Time{}, time.Time{}
		p.hold = now.Add(holdDown)
		p.unsynced = now
		p.takeovers++
		p.changed(now, o)
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
	p.chosen, p.tookFrom, p.rival, p.gaveWay = 0, 0, 0, now
	p.split, p.ownerless = time.Time{}, time.Time{}
	p.changed(now, Own{Epoch: to, Reason: why})
	p.alarm("alone", "", false)
	p.alarm("split", "", false)
	p.emit(Disown{To: to, Reason: why})
}

// succeeded: the member that we counted on owns at a later epoch. We must have stood
// still for so long that it took us for lost, which it may. What we committed it has,
// and without it we committed nothing: there is nothing to heal, and every packet
// that we would still send is one too many.
func (p *Pair) succeeded(now time.Time) {
	p.disown(now, p.peer.Epoch, p.name()+" took over while this node stood still")
	p.change.By, p.change.Evidence = p.peer.Node, "its heartbeats"
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
	if m := &p.peer; m.Node == e.Node && m.Epoch.Less(e) {
		m.Role, m.Epoch = RoleOwner, e
	}
	p.entitle(e)
	p.consider(now)
}

func (p *Pair) entitle(e Epoch) {
	p.asked = e
	p.emit(Entitle{Scope: p.opt.Scope, Epoch: e, On: true})
}

// HandleEntitled says that our guardian holds our entitlement for the epoch. Only
// if it returns true may the entry be acknowledged to the owner: we may have given
// the entitlement up meanwhile.
func (p *Pair) HandleEntitled(now time.Time, e Epoch) bool {
	p.enter(now)
	if p.asked != e || p.phase != standing {
		return false
	}
	p.entitled, p.asked = e, Epoch{}
	// The owner knows our coverage: it asked for the copy after our heartbeats said it.
	p.coverage = CoverageProven
	p.clearNote()
	p.consider(now)
	return p.entitled == e
}

// HandleClaimed answers Claim.
func (p *Pair) HandleClaimed(now time.Time, e Epoch, ok bool) {
	p.enter(now)
	t := p.pending
	if p.phase != taking || t == nil || !t.claim || t.epoch != e {
		return
	}
	// Whoever has gone beyond the epoch handed over to us has not waited for us.
	if !ok || t.handover && e.Less(p.highest) {
		p.phase, p.pending = standing, nil
		p.unentitle()
	} else {
		t.claim = false
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
	p.memoryLost()
}

// memoryLost: the process that may have gone on with what we own is another one by now.
func (p *Pair) memoryLost() {
	p.tookFrom = 0
	switch p.peer.Coverage {
	case CoverageNote:
		p.emit(RekeyEarly{p.name() + " went on alone before it ended"})
	case CoverageLost:
		p.emit(RekeyEarly{p.name() + " lost its disk and cannot prove that it did not go on alone"})
	}
}
