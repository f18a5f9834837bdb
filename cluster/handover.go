package cluster

import (
	"errors"
	"fmt"
	"time"
)

// considerHandover: the member is synchronised; should it own instead?
func (p *Pair) considerHandover(now time.Time) {
	m := &p.peer
	if m.asking || m.leaving || m.Role != RoleStandby || m.Deaf || m.stream != m.Process {
		return
	}
	if p.shutdown {
		p.handOver(now, HandedShutdown, "shutdown")
		return
	}
	if why, text, from := p.succession(p.election(now), p.peerElection(now)); why != HandedNot && p.due(now, from) {
		p.handOver(now, why, text)
	}
}

// considerGivingUp: our monitored interfaces failed, the other node's work, and no
// copy comes about. A gateway without interfaces serves nobody: let it own without
// the SAs.
func (p *Pair) considerGivingUp(now time.Time) {
	m := &p.peer
	worse := m.Role == RoleStandby && !m.Deaf && m.Election.MonitorsUp > p.monitors
	if !worse || p.unsynced.IsZero() || !p.due(now, later(p.unsynced, p.hold).Add(p.quiet())) {
		if p.chosen == m.Node {
			p.choose(0)
		}
		return
	}
	p.choose(m.Node)
}

func (p *Pair) handOver(now time.Time, kind Handed, why string) {
	m := &p.peer
	p.handsOver(now, kind)
	p.handFor = kind.evidence(p.election(now), p.peerElection(now))
	e := p.nextFor(m.Node)
	p.floor, p.highest = 0, e
	p.phase, p.handTo, p.handWhy = handing, e, why
	p.handBy, p.handAsked = now.Add(handoverWait), false
	p.emit(HandOver{Node: m.Node, Epoch: e})
}

// considerHanding waits for the successor. Until it is seen to own, or surely
// will not, neither owns: at most handoverWait, then a round trip between guardians.
func (p *Pair) considerHanding(now time.Time) {
	m := &p.peer
	switch {
	case m.live() && m.Role == RoleOwner && !m.Epoch.Less(p.handTo):
		p.disown(now, m.Epoch, "handed over to "+p.name()+": "+p.handWhy)
		p.change.Why, p.change.Evidence = p.health.handed, p.handFor
		p.epoch = m.Epoch
		if p.shutdown {
			p.stop()
		}
	case !p.due(now, p.handBy):
	case p.shutdown:
		// We stopped and end now; the member is still entitled, and our guardian's
		// word that we ended lets it succeed.
		p.disown(now, p.handTo, "shutdown")
		p.stop()
	case !p.handAsked:
		p.handFailed(now)
	default:
		// Its guardian lives but answers neither: it may have given the epoch away.
		p.takeBack(now, false, p.name()+" does not answer")
	}
}

// handFailed: the successor did not confirm. Its guardian decides: it either
// grants the removal, or has let its daemon own.
func (p *Pair) handFailed(now time.Time) {
	p.handAsked, p.handBy = true, now.Add(handoverGiveUp)
	p.peer.asking = true
	p.emit(AskRemoval{Scope: p.opt.Scope, Node: p.peer.Node})
}

// takeBack owns again after a handover that did not come about.
func (p *Pair) takeBack(now time.Time, covered bool, why string) {
	if why == "" {
		why = p.name() + " did not confirm"
	}
	if p.peer.join != out {
		p.excluded(now)
		p.emit(Leave{p.peer.Node})
	}
	p.tookBack()
	p.own(now, Own{Covered: covered, Trusted: true, Reason: "handover failed: " + why, From: p.opt.Name})
	p.hold = now.Add(failedHoldDown)
	p.peer.notOld = now.Add(rejoinMin)
	p.alarm("handover", fmt.Sprintf("handover to %s failed: %s", p.name(), why), true)
}

// successorLost: the successor was lost while we wait for it.
func (p *Pair) successorLost(now time.Time, kind Loss) {
	switch {
	case p.shutdown:
		p.disown(now, p.handTo, "shutdown")
		p.stop()
	case kind == LossDeath:
		// It may have begun to own, and have gone on alone, without having been able to
		// say so: its loss is told before its last words.
		p.takeBack(now, false, p.name()+" ended")
	default:
		// It may have begun to own: that wants the note first.
		p.handAsked, p.handBy = true, now.Add(takeoverNote)
		p.writeNote(true, p.highest, func(now time.Time) {
			if p.phase == handing {
				p.takeBack(now, false, p.name()+" was lost")
			}
		})
	}
}

// HandleHandedOver says whether the member acknowledged the last frame of the handover.
func (p *Pair) HandleHandedOver(now time.Time, id NodeID, ok bool) {
	p.enter(now)
	if p.phase == handing && id == p.peer.Node && !ok && !p.handAsked && !p.shutdown {
		p.handFailed(now)
	}
	if p.phase != stopped {
		p.consider(now)
	}
}

// HandleHandover says, as standby, that the owner stopped and hands over to us at
// the epoch; our guardian must let us.
func (p *Pair) HandleHandover(now time.Time, e Epoch) {
	p.enter(now)
	if p.phase != standing || p.entitled == (Epoch{}) || e.Node != p.opt.Self || e.Less(p.highest) || p.shutdown {
		return
	}
	p.highest = e
	p.take(now, takeover{
		own: Own{Epoch: e, Covered: true, Trusted: true, Handover: true, Reason: p.name() + " handed over", From: p.name(),
			By: p.peer.Node, Evidence: "its word"},
		handover: true, claim: true, epoch: e,
	})
	p.consider(now)
}

// Failover is `execute ha failover set` and `unset`. Set makes this node rank last
// until it is unset or must own again.
func (p *Pair) Failover(now time.Time, set bool) error {
	p.enter(now)
	if set && p.phase == handing {
		return errors.New("a handover is under way")
	}
	if set && p.phase != owning {
		if p.peer.Node == 0 {
			return errors.New("this node is not the primary")
		}
		return fmt.Errorf("this node is not the primary: give the command on %s", p.name())
	}
	if set && (p.peer.join != in || p.peer.asking || p.peer.leaving || p.peer.stream != p.peer.Process) {
		return errors.New("no standby is synchronised: a failover would lose the tunnels")
	}
	p.failover = set
	if set {
		p.handOver(now, HandedFailover, "execute ha failover set")
	}
	p.consider(now)
	return nil
}

// Shutdown hands over if a synchronised member is there, and ends with Stopped
// after at most half a second.
func (p *Pair) Shutdown(now time.Time) {
	p.enter(now)
	p.shutdown = true
	switch p.phase {
	case stopped:
		return
	case handing:
		p.handBy = now.Add(handoverWait)
	case owning:
		p.consider(now)
		if p.phase == owning {
			p.disown(now, Epoch{}, "shutdown")
			p.stop()
		}
		return
	default:
		p.unentitle()
		p.stop()
	}
	if p.phase != stopped {
		p.consider(now)
	}
}

func (p *Pair) stop() {
	p.phase, p.wake = stopped, time.Time{}
	p.emit(Stopped{})
}
