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
	g.held = nil
	for _, p := range g.peers {
		p.told = nil
		g.tell(p)
	}
	g.send(now, 1, true)
}

// DaemonEnded: the daemon is dead, and the shared addresses are gone. This goes out at once.
func (g *Guard) DaemonEnded(now time.Time) {
	g.attached, g.unresponsive, g.watched, g.killing = false, false, false, 0
	g.held = nil
	for _, p := range g.peers {
		p.requests, p.told = nil, nil
	}
	g.send(now, lastWords, true)
}

// HandleAnnounce takes what to say from now on. Who owns a scope holds no
// entitlement for it; who owns it no more has no removal to ask for.
func (g *Guard) HandleAnnounce(now time.Time, a Announce) {
	if !g.attached {
		return
	}
	n := len(a.Owned)
	if a.Owned = g.ownTenures(a.Owned); len(a.Owned) != n {
		g.logf("%d scopes that the daemon says it owns make no sense", n-len(a.Owned))
	}
	g.said, g.saidAt, g.announced = a, now, true
	g.held = slices.DeleteFunc(g.held, func(h holding) bool { return g.owns(h.scope) })
	for _, p := range g.peers {
		p.requests = slices.DeleteFunc(p.requests, func(r Removal) bool { return r.Scope != 0 && !g.owns(r.Scope) })
	}
	g.send(now, 1, true)
}

// HandleStreamPort takes the port on which the daemon listens for streams.
func (g *Guard) HandleStreamPort(now time.Time, port uint16) {
	g.port = port
	g.send(now, 1, true)
}

func (g *Guard) find(n NodeID) *guardPeer {
	i := slices.IndexFunc(g.peers, func(p *guardPeer) bool { return p.hb.Node == n })
	if i < 0 {
		return nil
	}
	return g.peers[i]
}

// HandleProgress takes the daemon's progress counter; call it before each Tick.
func (g *Guard) HandleProgress(n uint64) {
	if n != g.progress {
		g.progress, g.watched, g.idle = n, true, 0
	}
}

// watch ends a daemon that makes no progress, if somebody can take its place. Where those
// who could make none either, something else holds all of them up (a host that all are guests
// of, a processor that others have): to end them would lose every copy of what they own, and
// help nobody. That is borne for ten times as long.
func (g *Guard) watch(now time.Time) {
	if !g.attached {
		return
	}
	if g.killing > 0 {
		if g.killing--; g.killing == 0 {
			g.unresponsive = true
			g.killing = -1
			g.held = nil // the owners are told that it is out, and no longer wait for it
			g.logf("the daemon was killed and does not end")
			g.send(now, lastWords, true)
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
	if g.idle < g.watchdog() || !g.succeedable(g.idle >= stallBearing*g.watchdog()) {
		return
	}
	g.killing = max(1, int(killTime/g.tick))
	g.emit(KillDaemon{"the daemon made no progress"})
}
