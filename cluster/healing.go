package cluster

import "time"

// considerSplit: the other node owns too. The node with the higher epoch decides
// and announces whom it chose; the chosen one goes on above both epochs, and the
// other one ends when it sees that. Sync sets stay as they are meanwhile.
func (p *Pair) considerSplit(now time.Time) {
	m := &p.peer
	if p.split.IsZero() {
		p.split = now
	}
	if !p.due(now, p.split.Add(p.settle())) {
		return
	}
	if m.Deaf {
		// It will never learn that we own: only we can end this.
		if p.due(now, p.split.Add(p.settle()+2*p.lost())) {
			p.yield(now, p.name()+" owns and does not hear us")
		}
		return
	}
	p.alarm("split", "both nodes own; healing", true)
	if m.Epoch.Less(p.epoch) {
		if p.chosen == p.opt.Self {
			return // it will see that
		}
		first, why := p.weGoFirst(now, p.epoch, m.Epoch)
		if first {
			p.heal(now, "this node goes first by "+why)
			p.change.Evidence = compared(why, p.election(now), p.peerElection(now))
		} else {
			p.choose(m.Node)
		}
		return
	}
	switch m.Chosen {
	case p.opt.Self:
		p.heal(now, p.name()+" chose this node")
		p.change.By, p.change.Evidence = m.Node, "its choice"
	case m.Node:
		p.yield(now, "healed: "+p.name()+" was chosen")
		p.change.By, p.change.Evidence = m.Node, "its choice"
	}
}

// heal goes on as the chosen owner, above both epochs.
func (p *Pair) heal(now time.Time, why string) {
	if p.peer.join != out {
		p.excluded(now)
		p.emit(Leave{p.peer.Node})
	}
	p.choose(p.opt.Self)
	// Who yields brings its state; but it may have started only after the one ended from
	// whom we took over, and have gone on alone without what that one knew.
	forgot := p.tookFrom == p.peer.Node && p.peer.Process != p.tookProc
	p.tookFrom = 0
	o := Own{Trusted: true, Renewal: true, Reason: "healed: " + why, From: p.name()}
	p.changed(now, o)
	p.takeovers++
	p.own(now, o)
	if forgot {
		p.memoryLost()
	}
}

// rivalLost: before a split was healed, the other owner was lost. It may have been the
// last to announce the shared addresses.
func (p *Pair) rivalLost(kind Loss) {
	p.emit(Reassert{})
	if kind == LossDeath {
		p.tookFrom = 0
		p.emit(RekeyEarly{p.name() + " owned beside this node and ended"})
		return
	}
	p.tookFrom, p.tookProc = p.peer.Node, p.peer.Process
}

// yield ends ownership beside another owner, who gets our state as soon as the stream stands.
func (p *Pair) yield(now time.Time, why string) {
	p.disown(now, p.peer.Epoch, why)
	p.uniting = true
}
