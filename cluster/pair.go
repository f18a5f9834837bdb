package cluster

import (
	"errors"
	"fmt"
	"time"
)

// Pair is the ownership engine of exactly two nodes.
type Pair struct {
	o        PairOptions
	role     Role
	epoch    Epoch // highest seen
	owned    Epoch // of our ownership
	peer     Peer
	heard    bool // its guardian is heard
	stream   ProcessID
	monitors int
	startAt  time.Time
	decideAt time.Time
	member   uint8 // as owner: 0 none, 1 joining, 2 entered
	removing bool
	entitled Epoch // as standby: confirmed
	noteOn   bool
	notes    []func(now time.Time)
	noteBy   time.Time
	handing  time.Time
	stopping bool
	coveredFrom ProcessID
	last     Own
	lastAt   time.Time
	takeovers int
	alarms   map[string]Alarm
	out      []Effect
}

const listenMin = time.Second
const noteWait = 20 * time.Millisecond
const handoverWait = 500 * time.Millisecond

func NewPair(o PairOptions) *Pair {
	return &Pair{o: o, epoch: o.Epoch, alarms: map[string]Alarm{}, monitors: len(o.HA.Monitor)}
}

func (p *Pair) emit(e Effect) { p.out = append(p.out, e) }
func (p *Pair) Poll() (Effect, bool) {
	if len(p.out) == 0 {
		return nil, false
	}
	e := p.out[0]
	p.out = p.out[1:]
	return e, true
}

func (p *Pair) lost() time.Duration { return p.o.HA.HBInterval * time.Duration(p.o.HA.HBLostThreshold) }

func (p *Pair) Start(now time.Time) {
	p.startAt = now
	p.decideAt = now.Add(max(listenMin, 2*p.lost()))
	p.announce(now)
}

func (p *Pair) election(now time.Time) Election {
	return Election{MonitorsUp: p.monitors, Age: now.Sub(p.startAt), Priority: p.o.HA.Priority, Override: p.o.HA.Override, Serial: p.o.Serial}
}

func (p *Pair) announce(now time.Time) {
	p.emit(Announce{Role: p.role, Epoch: p.epoch, Election: p.election(now), Coverage: p.o.Coverage})
}

func (p *Pair) better(now time.Time) bool {
	a, b := p.election(now), p.peer.Election
	if a.MonitorsUp != b.MonitorsUp {
		return a.MonitorsUp > b.MonitorsUp
	}
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	if a.Serial != b.Serial {
		return a.Serial > b.Serial
	}
	return p.o.Self < p.peer.Node
}

func (p *Pair) HandlePeer(now time.Time, x Peer) {
	was := p.peer
	p.peer, p.heard = x, x.Running
	if p.epoch.Less(x.Epoch) {
		p.epoch = x.Epoch
	}
	if !x.Running {
		return
	}
	switch p.role {
	case RoleNone:
		if x.Role == RoleOwner {
			p.standby(now)
		} else if x.Role == RoleNone && was.Process != x.Process {
			if p.better(now) {
				p.decideAt = now.Add(50 * time.Millisecond)
			}
		}
	case RoleOwner:
		if x.Process != was.Process && was.Process != 0 && p.coveredFrom == was.Process && x.Coverage != CoverageProven {
			p.emit(RekeyEarly{"the node we took over from went on alone"})
		}
		if x.Role == RoleOwner && x.Epoch != p.owned {
			p.heal(now)
			return
		}
		p.join(now)
	}
}

func (p *Pair) heal(now time.Time) {
	if p.better(now) {
		p.own(now, Own{Covered: false, Trusted: true, Reason: "healed: this node was elected"})
		return
	}
	p.role = RoleStandby
	p.emit(Disown{To: p.epoch, Reason: "healed: the other node was elected"})
	p.emit(Unite{Owner: p.peer.Node})
	p.reset()
	p.announce(now)
}

func (p *Pair) reset() {
	p.member, p.removing, p.handing = 0, false, time.Time{}
	p.entitled = Epoch{}
}

func (p *Pair) standby(now time.Time) {
	p.role = RoleStandby
	p.reset()
	p.announce(now)
}

func (p *Pair) join(now time.Time) {
	if p.role == RoleOwner && p.member == 0 && p.heard && p.stream != 0 && p.stream == p.peer.Process && p.peer.Role != RoleOwner && p.handing.IsZero() {
		p.member = 1
		p.emit(Join{Node: p.peer.Node, Process: p.stream})
	}
}

func (p *Pair) note(now time.Time, on bool, then func(now time.Time)) {
	p.noteOn = on
	p.emit(WriteNote{On: on, Epoch: p.epoch})
	p.notes = append(p.notes, then)
	p.noteBy = now.Add(noteWait)
}

func (p *Pair) HandleNote(now time.Time, err error) {
	if err != nil {
		p.emit(Alarm{Name: "note", Text: err.Error(), On: true})
	}
	p.runNotes(now)
}

func (p *Pair) runNotes(now time.Time) {
	n := p.notes
	p.notes, p.noteBy = nil, time.Time{}
	for _, f := range n {
		if f != nil {
			f(now)
		}
	}
}

func (p *Pair) own(now time.Time, o Own) {
	p.reset()
	p.epoch = p.epoch.Next(p.o.Self)
	o.Epoch, p.owned = p.epoch, p.epoch
	p.role = RoleOwner
	p.last, p.lastAt = o, now
	p.takeovers++
	p.emit(o)
	p.announce(now)
	p.join(now)
}

func (p *Pair) HandleLoss(now time.Time, id NodeID, l Loss, entitled bool, detected time.Duration) {
	p.heard = false
	p.stream = 0
	why := map[Loss]string{LossSilence: "fell silent", LossDeath: "announced the death of its daemon", LossUnresponsive: "could not end its daemon"}[l]
	switch p.role {
	case RoleOwner:
		p.handing = time.Time{}
		if l == LossSilence && p.member != 0 {
			p.note(now, true, func(now time.Time) { p.leave(now) })
		} else {
			p.leave(now)
		}
	case RoleStandby:
		o := Own{Covered: l != LossUnresponsive, Trusted: true, Detected: detected, Reason: fmt.Sprintf("%s %s", p.peer.Name, why)}
		if !entitled {
			p.role = RoleNone
			p.decideAt = now.Add(max(listenMin, 2*p.lost()))
			p.announce(now)
			return
		}
		p.coveredFrom = p.peer.Process
		if l == LossSilence {
			p.note(now, true, func(now time.Time) { p.own(now, o) })
		} else {
			p.own(now, o)
		}
	}
}

func (p *Pair) leave(now time.Time) {
	if p.member != 0 {
		p.member, p.removing = 0, false
		p.emit(Leave{p.peer.Node})
	}
}

func (p *Pair) HandleRemoved(now time.Time, id NodeID) {
	if p.role == RoleOwner && p.removing {
		p.leave(now)
		p.join(now)
	}
}

func (p *Pair) HandleEntitled(now time.Time, e Epoch) { p.entitled = e; p.announce(now) }

func (p *Pair) HandleStream(now time.Time, id NodeID, pr ProcessID, up bool) {
	if up {
		p.stream = pr
		p.join(now)
	} else if p.stream == pr {
		p.stream = 0
	}
}

func (p *Pair) HandleLag(now time.Time, id NodeID, oldest time.Duration) {
	if p.role == RoleOwner && p.member != 0 && oldest > 250*time.Millisecond && !p.removing {
		p.removing = true
		p.emit(AskRemoval{id})
	}
}

func (p *Pair) HandleCopied(now time.Time, e Epoch) {
	if p.role == RoleStandby {
		p.emit(Entitle{Epoch: e, On: true})
	}
}

func (p *Pair) HandleEntered(now time.Time, id NodeID) {
	if p.role == RoleOwner && p.member == 1 {
		p.member = 2
		if p.noteOn {
			p.note(now, false, nil)
		}
	}
}

func (p *Pair) HandleHandover(now time.Time, e Epoch) {
	if p.role == RoleStandby {
		p.own(now, Own{Covered: true, Trusted: true, Handover: true, Reason: p.peer.Name + " handed over"})
	}
}

func (p *Pair) HandleHandedOver(now time.Time, id NodeID, ok bool) {
	if p.handing.IsZero() {
		return
	}
	p.role = RoleStandby
	p.reset()
	p.emit(Disown{To: p.epoch.Next(id), Reason: "handed over"})
	p.announce(now)
	if p.stopping {
		p.emit(Stopped{})
	}
}

func (p *Pair) HandleMonitors(now time.Time, up int) { p.monitors = up; p.announce(now) }

func (p *Pair) Failover(now time.Time, set bool) error {
	if p.role != RoleOwner || p.member != 2 {
		return errors.New("no synchronised node to hand over to")
	}
	p.handing = now.Add(handoverWait)
	p.emit(HandOver{Node: p.peer.Node, Epoch: p.epoch.Next(p.peer.Node)})
	return nil
}

func (p *Pair) Shutdown(now time.Time) {
	p.stopping = true
	if p.Failover(now, true) != nil {
		p.emit(Disown{Reason: "shutdown"})
		p.emit(Stopped{})
	}
}

func (p *Pair) HandleTimeout(now time.Time) {
	if !p.noteBy.IsZero() && !now.Before(p.noteBy) {
		p.runNotes(now)
	}
	if p.role == RoleNone && !p.decideAt.IsZero() && !now.Before(p.decideAt) {
		p.decideAt = time.Time{}
		if p.heard && !p.better(now) {
			p.decideAt = now.Add(listenMin)
			return
		}
		p.own(now, Own{Covered: true, Trusted: true, Reason: "elected"})
	}
	if !p.handing.IsZero() && !now.Before(p.handing) {
		p.own(now, Own{Covered: false, Trusted: true, Reason: "handover failed"})
	}
}

func (p *Pair) NextTimeout() (t time.Time, ok bool) {
	for _, x := range []time.Time{p.noteBy, p.handing} {
		if !x.IsZero() && (!ok || x.Before(t)) {
			t, ok = x, true
		}
	}
	if p.role == RoleNone && !p.decideAt.IsZero() && (!ok || p.decideAt.Before(t)) {
		t, ok = p.decideAt, true
	}
	return t, ok
}

func (p *Pair) Role() Role   { return p.role }
func (p *Pair) Epoch() Epoch { return p.epoch }
func (p *Pair) SyncSet() []NodeID {
	if p.role == RoleOwner && p.member != 0 {
		return []NodeID{p.peer.Node}
	}
	return nil
}

func (p *Pair) Status(now time.Time) HAStatus {
	return HAStatus{Self: p.o.Self, Name: p.o.Name, Serial: p.o.Serial, Role: p.role, Epoch: p.epoch,
		Synchronised: p.member == 2 || p.entitled != Epoch{}, Peers: []Peer{p.peer}, Election: p.election(now)}
}
