package cluster

import "time"

// The sync set as its owner keeps it. An epoch's sync set never takes back a
// member that left it alive: the owner goes on under a new epoch, so that an
// entitlement for the old one, wherever it may still be held, is void. Only
// a member whose process has ended leaves without that.

// considerOwning: as owner, keep the sync set, heal a split, hand over if another should own.
func (p *Pair) considerOwning(now time.Time) {
	m := &p.peer
	p.considerNoteForLeave(now)
	if m.live() && m.Role == RoleOwner {
		p.considerSplit(now)
		return
	}
	p.split = time.Time{}
	p.alarm("split", "", false)
	if p.chosen == p.opt.Self || !m.live() || m.join != out {
		p.choose(0)
	}
	if !m.live() {
		return
	}
	if p.rival != 0 && m.Process == p.rival {
		p.rival = 0
		p.emit(Reassert{})
	}
	if m.join != out {
		p.considerMember(now)
		if m.join == in {
			p.considerHandover(now)
		}
		return
	}
	p.considerJoin(now)
	p.considerGivingUp(now)
}

// considerJoin takes in a running standby whose stream is up.
func (p *Pair) considerJoin(now time.Time) {
	m := &p.peer
	if m.Role != RoleStandby || m.Deaf || m.Process == 0 || m.stream != m.Process || !p.due(now, m.notOld) {
		return
	}
	if p.epoch.Less(m.Epoch) {
		// It knows of a later epoch than ours, and would refuse what we send.
		p.own(now, Own{Covered: true, Trusted: true, Renewal: true, Reason: p.name() + " knows a later epoch"})
	}
	m.join, m.joinedAt, m.copiedAt, m.asking, m.lagging = joining, now, now, false, time.Time{}
	if p.tookFrom == m.Node {
		p.tookFrom = 0 // the same process, which stood by all the time, or one that was asked already
	}
	p.emit(Join{Node: m.Node, Process: m.Process})
}

// considerMember asks for the removal of a member that does not keep up.
func (p *Pair) considerMember(now time.Time) {
	m := &p.peer
	if m.asking || m.leaving {
		return
	}
	late := m.stream != m.Process && p.due(now, m.streamEnd.Add(removalAfter)) ||
		m.join == joining && p.due(now, m.copiedAt.Add(copyTimeout)) ||
		m.join == in && !m.Entitled && p.due(now, m.synced.Add(removalAfter)) ||
		m.join == in && m.Deaf && p.due(now, m.seen.Add(removalAfter))
	if late {
		p.askRemoval()
	}
}

func (p *Pair) askRemoval() {
	if m := &p.peer; !m.asking && m.join != out {
		m.asking = true
		p.emit(AskRemoval{Scope: p.opt.Scope, Node: m.Node})
	}
}

// HandleStream says whether the stream towards the member's process stands.
func (p *Pair) HandleStream(now time.Time, id NodeID, process ProcessID, up bool) {
	p.enter(now)
	m := &p.peer
	if p.phase == stopped || m.Node != 0 && m.Node != id {
		return
	}
	m.Node = id
	switch {
	case up:
		m.stream = process
	case m.stream == process:
		m.stream, m.streamEnd = 0, now
	}
	p.consider(now)
}

// HandleLag tells the age of the oldest frame that the member has not
// acknowledged; 0: there is none. Once is no proof of slowness when this process
// itself was stopped: a second look must say the same.
func (p *Pair) HandleLag(now time.Time, id NodeID, oldest time.Duration) {
	p.enter(now)
	m := &p.peer
	if p.phase != owning || m.Node != id || m.join == out {
		return
	}
	switch {
	case oldest >= lagHopeless:
		p.askRemoval()
	case oldest <= removalAfter:
		m.lagging = time.Time{}
	case m.lagging.IsZero():
		m.lagging = now
	case now.Sub(m.lagging) >= lagAgain:
		p.askRemoval()
	}
	p.consider(now)
}

const (
	lagAgain    = 20 * time.Millisecond
	lagHopeless = time.Minute // the journal's word for a queue that overflowed
)

// HandleCopyMoved says that the member's copy got further, or waits while others to it do.
func (p *Pair) HandleCopyMoved(now time.Time, id NodeID) {
	if p.peer.Node == id {
		p.peer.copiedAt = now
	}
}

// HandleEntered says that the member acknowledged its entry.
func (p *Pair) HandleEntered(now time.Time, id NodeID) {
	p.enter(now)
	m := &p.peer
	if p.phase != owning || m.Node != id || m.join != joining || m.leaving {
		return
	}
	m.join, m.synced = in, now
	p.unsynced = time.Time{}
	if !m.asking {
		p.alarm("alone", "", false)
		p.clearNote()
	}
	p.consider(now)
}

// HandleRemoved says that the member's guardian gave up its entitlement; with our
// own node, that our guardian gave up ours.
func (p *Pair) HandleRemoved(now time.Time, id NodeID) {
	p.enter(now)
	m := &p.peer
	switch {
	case id == p.opt.Self:
		if p.phase == taking && p.entitled != (Epoch{}) {
			p.phase, p.pending = standing, nil
		}
		p.entitled, p.asked = Epoch{}, Epoch{}
	case id != m.Node || !m.asking && p.phase != handing:
	case p.phase == owning && m.join != out:
		if m.backoff == 0 || now.Sub(m.joinedAt) > 2*rejoinMax {
			m.backoff = rejoinMin
		} else {
			m.backoff = min(2*m.backoff, rejoinMax)
		}
		m.notOld = now.Add(m.backoff)
		p.leaveAlive(now, p.name()+" did not keep up and was taken out of the sync set")
	case p.phase == handing && p.handAsked:
		p.takeBack(now, true, "")
	}
	if p.phase != stopped {
		p.consider(now)
	}
}

// memberLost: without the member we go on, at once if it has surely ended, after
// the note if it only fell silent.
func (p *Pair) memberLost(now time.Time, kind Loss) {
	m := &p.peer
	m.lagging = time.Time{}
	if m.join == out {
		return
	}
	if kind != LossSilence {
		p.dropDead(now)
		return
	}
	if m.leaving {
		return
	}
	m.leaving, m.leaveBy = true, now.Add(patientNote)
	// It may take over behind a cut; if it then ends, its note will say so.
	p.tookFrom, p.tookProc = m.Node, m.Process
	if p.noteOn && len(p.notes) == 0 {
		p.leaveAlive(now, p.name()+" fell silent")
		return
	}
	p.writeNote(true, p.highest, func(now time.Time) {
		if p.phase == owning && m.leaving {
			p.leaveAlive(now, p.name()+" fell silent")
		}
	})
}

// considerNoteForLeave bounds the wait for the note: a member that is silent has
// most likely failed, and a disk that hangs must not stop the gateway for good.
func (p *Pair) considerNoteForLeave(now time.Time) {
	if m := &p.peer; m.leaving && p.due(now, m.leaveBy) {
		p.alarm("note", "the disk did not take the note in time; going on alone without it", true)
		p.leaveAlive(now, p.name()+" fell silent")
	}
}

// leaveAlive takes out a member that may still live, and goes on under a new epoch.
// The guardian hears of that before anything is released.
func (p *Pair) leaveAlive(now time.Time, why string) {
	p.excluded(now)
	e := p.next()
	p.floor = 0
	p.epoch, p.highest = e, e
	p.announce(now)
	p.emit(Leave{p.peer.Node})
	p.own(now, Own{Epoch: e, Covered: true, Trusted: true, Renewal: true, Reason: why})
}

// dropDead takes out a member whose process has ended.
func (p *Pair) dropDead(now time.Time) {
	if (p.phase == owning || p.phase == handing) && p.peer.join != out {
		p.excluded(now)
		p.emit(Leave{p.peer.Node})
	}
}

func (p *Pair) excluded(now time.Time) {
	m := &p.peer
	m.join, m.asking, m.leaving, m.lagging = out, false, false, time.Time{}
	p.unsynced = now
	p.alarm("alone", "no standby could succeed this node", true)
}
