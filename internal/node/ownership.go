package node

import (
	"log/slog"
	"time"

	"tandem/cluster"
)

// own begins ownership. Standby SAs, routes and interfaces are there already, so
// the way to the first packet is one flip and the addresses; IKE goes on after.
func (n *Node) own(now time.Time, o cluster.Own) {
	if o.Renewal && o.Stay != nil {
		n.epoch = o.Epoch
		n.replica.Fence(o.Epoch)
		n.log(slog.LevelInfo, "HA epoch renewed", slog.String("epoch", o.Epoch.String()), slog.String("reason", o.Reason))
		return
	}
	if o.Renewal {
		// What the old epoch's sync set has committed comes before the new journal.
		n.drainJournal(now)
		n.unasked()
		n.epoch = o.Epoch
		n.replica.Fence(o.Epoch)
		n.stopCopies()
		n.poolUnfollowed()
		n.journal.Start(now, o.Epoch)
		if o.Covered {
			n.emit(Reassert{n.scope})
		} else {
			n.emit(Claim{n.scope}) // healed: the neighbours may know the other owner
		}
		n.log(slog.LevelInfo, "HA epoch renewed", slog.String("epoch", o.Epoch.String()), slog.String("reason", o.Reason))
		return
	}
	if !o.Trusted {
		n.keepBounds()
		n.ike.Distrust()
		n.ike.BeginCopy()
		n.ike.EndCopy()
		n.drainIKE(now)
	}
	n.resume(now) // of a tenure that ends here
	n.owner, n.epoch, n.handing, n.ownedAt = true, o.Epoch, nil, now
	n.unasked()
	n.replica.Fence(o.Epoch)
	n.stopCopies()
	n.poolUnfollowed()
	n.warnPool()
	n.journal.Start(now, o.Epoch)
	if o.Handover && n.windows != nil {
		n.emit(SetWindows{n.windows})
	}
	n.windows = nil
	n.emit(Activate{n.scope})
	n.emit(Claim{n.scope})
	level := slog.LevelInfo
	if !o.Covered {
		level = slog.LevelWarn
	}
	n.log(slog.LevelInfo, "HA state change detected -> primary", slog.String("epoch", o.Epoch.String()))
	n.log(level, "takeover", slog.String("epoch", o.Epoch.String()), slog.Bool("covered", o.Covered),
		slog.Bool("trusted", o.Trusted), slog.Bool("handover", o.Handover), slog.String("from", o.From), slog.String("reason", o.Reason),
		slog.Float64("detect_ms", float64(o.Detected.Microseconds())/1000), slog.Int("sas", len(n.sas)))
	if o.Handover {
		n.moved += n.tunnels()
	}
	n.resuming = &o
	switch {
	case n.authority == nil:
		n.resume(now)
	case n.slot != nil:
		n.resumeAt = now.Add(resumeAfter)
	default:
		n.resumeAt = now
	}
}

// resumeAfter is how long IKE waits after a slot was taken over, unless something asks for
// it: its work grows with the tunnels, and the data plane of the other slots, which were
// taken over at the same moment, comes first.
const resumeAfter = 10 * time.Millisecond

// resume has IKE go on after a takeover, if it does not yet. Whatever relies on that it
// does calls it first.
func (n *Node) resume(now time.Time) {
	o := n.resuming
	if o == nil {
		return
	}
	n.resuming = nil
	if !o.Covered && o.Trusted {
		n.ike.Behind()
	}
	if !o.Handover {
		n.ike.OwnerDied()
	}
	n.ike.Resume(now)
	for _, s := range n.ike.Shelf() {
		if !s.Adopted {
			n.emit(movedAway{s.SPIs, cluster.ScopeID(s.To), now})
		}
	}
	if !o.Covered && o.Trusted {
		n.ike.RekeyAll(now, "takeover was not covered")
	}
}

// disown ends ownership at once; the state stays as a standby's until a copy replaces it.
func (n *Node) disown(now time.Time, d cluster.Disown) {
	wasOwner := n.owner
	n.emit(Deactivate{n.scope})
	n.emit(Release{n.scope})
	n.ike.Suspend(now)
	n.drainIKE(now)
	n.owner, n.handing, n.resuming = false, nil, nil
	n.unasked()
	n.stopCopies()
	if wasOwner && n.slot != nil && !n.journal.Done(n.told) {
		n.slot.Owe(now) // who told us does not tell it again
	}
	n.journal.Stop()
	if wasOwner {
		n.log(slog.LevelInfo, "HA state change detected -> secondary",
			slog.String("epoch", d.To.String()), slog.String("reason", d.Reason))
	}
}

// A handover waits for packets that wait for a bound: after the last answer for so long that
// the next question would have come up from the data plane, and altogether at most so long.
const (
	finishLeast = time.Millisecond
	finishMost  = 100 * time.Millisecond
)

// handOver stops this node. Packets that wait for a bound go their way first; then the
// exact windows are asked for and the frames follow, and only then the addresses go: the
// kernel takes milliseconds for them, in which the successor can begin. What still arrives
// here meanwhile is a stray, or dropped in a pair.
func (n *Node) handOver(now time.Time, h cluster.HandOver) {
	n.handing = &h
	n.resume(now)
	// What ends without everybody's word delivers nothing any more.
	n.emit(Retire{n.scope})
	n.ike.Suspend(now)
	n.drainIKE(now)
	n.finishing, n.quietFrom = now, now.Add(finishLeast)
}

// considerFinish ends what a handover has begun, when nothing waits or for too long.
func (n *Node) considerFinish(now time.Time) {
	if at, ok := n.finishAt(); !ok || now.Before(at) {
		return
	}
	n.finishing = time.Time{}
	n.emit(Deactivate{n.scope})
	n.emit(TakeWindows{n.scope})
}

func (n *Node) finishAt() (time.Time, bool) {
	at := n.finishing.Add(finishMost)
	if n.asked == 0 && n.quietFrom.Before(at) {
		at = n.quietFrom
	}
	return at, !n.finishing.IsZero()
}

// unasked forgets the questions for bounds of an ownership that has ended, or begins.
func (n *Node) unasked() {
	n.asked, n.finishing = 0, time.Time{}
	for _, c := range n.sas {
		c.asked = 0
	}
	clear(n.departing)
}

// drainJournal carries out what the journal has ready.
func (n *Node) drainJournal(now time.Time) {
	for {
		e, ok := n.journal.Poll()
		if !ok {
			return
		}
		n.journalEffect(now, e)
	}
}

// drain carries out what engine and journal have ready, and what each then has for the
// other, so that it stands before what is emitted next. A sync set that is empty
// commits at once.
func (n *Node) drain(now time.Time) {
	for {
		if e, ok := n.ike.Poll(); ok {
			n.ikeEffect(now, e)
		} else if e, ok := n.journal.Poll(); ok {
			n.journalEffect(now, e)
		} else {
			return
		}
	}
}

// drainIKE carries out what the engine has ready, so that it stands before what is emitted next.
func (n *Node) drainIKE(now time.Time) {
	for {
		e, ok := n.ike.Poll()
		if !ok {
			return
		}
		n.ikeEffect(now, e)
	}
}

// tunnels counts those with a Child SA.
func (n *Node) tunnels() uint64 {
	names := map[string]bool{}
	for _, c := range n.sas {
		names[c.sa.Tunnel] = true
	}
	return uint64(len(names))
}
