package cluster

import (
	"slices"
	"time"
)

// DaemonStarted: a new daemon lives. It is told of every peer that is heard.
func (g *Guard) DaemonStarted(now time.Time, process ProcessID) {
	g.process, g.attached, g.announced, g.unresponsive = process, true, false, false
	g.said, g.saidAt, g.port = Announce{}, now, 0
	g.progress, g.watched, g.idle, g.killing = 0, false, 0, 0
	g.held = entitlement{}
	for _, p := range g.peers {
		p.told = nil
		g.tell(p)
	}
	g.send(now, 1)
}

// DaemonEnded: the daemon is dead, and the shared addresses are gone. This goes out at once.
func (g *Guard) DaemonEnded(now time.Time) {
	g.attached, g.unresponsive, g.watched, g.killing = false, false, false, 0
	g.held = entitlement{}
	for _, p := range g.peers {
		p.request, p.told = Removal{}, nil
	}
	g.send(now, lastWords)
}

// HandleAnnounce takes what to say from now on.
func (g *Guard) HandleAnnounce(now time.Time, a Announce) {
	if !g.attached {
		return
	}
	g.said, g.saidAt, g.announced = a, now, true
	if a.Role == RoleOwner {
		g.held = entitlement{}
	}
	g.send(now, 1)
}

// HandleStreamPort takes the port on which the daemon listens for streams.
func (g *Guard) HandleStreamPort(now time.Time, port uint16) {
	g.port = port
	g.send(now, 1)
}

// HandleEntitle holds or drops our entitlement. It is not granted when the owner
// is not heard, went on under a later epoch, or had us removed from this one.
func (g *Guard) HandleEntitle(now time.Time, e Entitle) {
	if !g.attached {
		return
	}
	if !e.On {
		g.held = entitlement{}
		g.send(now, 1)
		return
	}
	p := g.find(e.Epoch.Node)
	switch {
	case p == nil || !p.heard || !p.hb.Running || p.lost:
		g.refuse("the owner is not heard")
	case !g.removed.Less(e.Epoch):
		g.refuse("this node was removed from epoch " + g.removed.String())
	case e.Epoch.Less(p.hb.Announce.Epoch):
		g.refuse("the owner is at epoch " + p.hb.Announce.Epoch.String())
	default:
		g.held = entitlement{isEntitled, e.Epoch}
		g.emit(TellEntitled{Epoch: e.Epoch})
		g.send(now, 1)
	}
}

func (g *Guard) refuse(why string) {
	g.held = entitlement{}
	g.logf("not entitled: %s", why)
	g.toDaemon(TellRemoved{Node: g.opt.Self})
}

// drop gives our entitlement up.
func (g *Guard) drop(why string) {
	if g.held.state == isEntitled {
		g.held = entitlement{}
		g.logf("entitlement given up: %s", why)
		g.toDaemon(TellRemoved{Node: g.opt.Self})
	}
}

// HandleClaim turns the entitlement into ownership of an epoch handed over to us.
func (g *Guard) HandleClaim(_ time.Time, e Epoch) {
	ok := g.attached && g.held.state != notEntitled
	if ok {
		g.held.state = hasClaimed
	}
	g.toDaemon(TellClaimed{Epoch: e, OK: ok})
}

// HandleAskRemoval asks a member's guardian to give up its entitlement, until it
// answers or is lost.
func (g *Guard) HandleAskRemoval(now time.Time, n NodeID) {
	p := g.find(n)
	if p == nil || !p.heard || !g.attached {
		return // its loss has been told, or is about to be
	}
	g.nonce++
	p.request = Removal{Node: n, Nonce: g.nonce, Epoch: g.said.Epoch}
	g.send(now, 1)
}

func (g *Guard) find(n NodeID) *guardPeer {
	i := slices.IndexFunc(g.peers, func(p *guardPeer) bool { return p.hb.Node == n })
	if i < 0 {
		return nil
	}
	return g.peers[i]
}

// grant answers a request of the peer to give up our entitlement.
func (g *Guard) grant(now time.Time, p *guardPeer) {
	i := slices.IndexFunc(p.hb.Requests, func(r Removal) bool { return r.Node == g.opt.Self && r.Nonce != 0 })
	if i < 0 {
		p.answered = 0
		return
	}
	r := p.hb.Requests[i]
	if r.Nonce == p.answered {
		return
	}
	if g.held.state == hasClaimed || g.attached && g.said.Role == RoleOwner {
		return // too late: our daemon owns, or is about to
	}
	if g.removed.Less(r.Epoch) {
		g.removed = r.Epoch
	}
	if !r.Epoch.Less(g.held.epoch) {
		g.drop(p.hb.Name + " asked for it")
	}
	p.answered = r.Nonce
	g.send(now, 1)
}

// HandleProgress takes the daemon's progress counter; call it before each Tick.
func (g *Guard) HandleProgress(n uint64) {
	if n != g.progress {
		g.progress, g.watched, g.idle = n, true, 0
	}
}

// watch ends a daemon that makes no progress, if somebody can take its place.
func (g *Guard) watch(now time.Time) {
	if !g.attached {
		return
	}
	if g.killing > 0 {
		if g.killing--; g.killing == 0 {
			g.unresponsive = true
			g.killing = -1
			g.logf("the daemon was killed and does not end")
			g.send(now, lastWords)
		}
		return
	}
	if g.killing < 0 || !g.watched {
		return
	}
	if g.idle == 0 {
		g.idle = 1 // how long ago it was, within this step, is not known
	} else {
		g.idle += g.step
	}
	if g.idle < g.watchdog() || g.said.Role != RoleOwner {
		return
	}
	if !slices.ContainsFunc(g.peers, func(p *guardPeer) bool {
		return p.heard && p.hb.Running && p.hb.Entitled == g.said.Epoch
	}) {
		return
	}
	g.killing = max(1, int(killTime/g.tick))
	g.emit(KillDaemon{"the daemon made no progress"})
}

// Entitled says whether our entitlement is held, and for which epoch.
func (g *Guard) Entitled() (Epoch, bool) {
	return g.held.epoch, g.held.state == isEntitled
}
