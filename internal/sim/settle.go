package sim

import (
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
)

// heal ends the schedule: everything works again, and the world has to settle.
func (w *world) heal() {
	w.healing = true
	w.armed = nil
	w.net.lossy = 0
	clear(w.net.cut)
	w.net.syncless = 0
	for _, p := range w.pairs {
		p.links = [2]hbLink{}
		p.streams.heal()
	}
	for _, h := range w.hosts() {
		h.wanCut, h.dontStart = [2]int{}, false
		h.disk.until, h.disk.full, h.stubborn = 0, 0, 0
		for _, x := range h.scopes {
			x.monitors = 1
		}
		if h.d != nil {
			h.d.hung, h.d.stopped = false, false
			h.d.run(func(now time.Time) { h.d.n.HandleMonitored(now, h.monitored) })
		}
		switch {
		case !h.powered:
			h.boot()
		case h.frozen:
			h.thaw()
		case h.id != 0 && h.guard == nil:
			h.startGuardian()
			h.startDaemon()
		case h.d == nil:
			h.startDaemon()
		default:
			h.d.goOn()
			h.d.p.goOn()
		}
	}
	for _, h := range w.gateways() {
		if d := h.d; d != nil && d.n.Status(h.local()).HA != nil {
			d.run(func(now time.Time) {
				for _, r := range h.pair.realms {
					_ = d.n.Failover(now, cluster.ScopeID(r.scope), false)
				}
			})
		}
	}
	w.fault("", "everything works again")
	w.healed = w.now
	for _, r := range w.realms() {
		r.rule.parted = max(r.rule.parted, w.now)
		r.rule.excuse(healLimit)
	}
	for _, p := range w.pairs {
		p.unsettles(healLimit)
	}
	w.busy(healLimit)
	w.after(5*time.Second, w.settled)
}

// settled looks whether everything is well again.
func (w *world) settled() {
	if !w.done && !w.ends(w.unsettled(), w.healed) {
		w.after(2*time.Second, w.settled)
	}
}

// unsettled says what is not well yet.
func (w *world) unsettled() string {
	for _, r := range w.realms() {
		if text := r.unsettled(); text != "" {
			return text + r.suffix()
		}
	}
	for _, f := range w.flows {
		for dir, at := range f.arrived {
			if w.now-at > 3*time.Second {
				return describeFlow(f, dir) + " carries nothing"
			}
		}
	}
	for _, r := range w.realms() {
		if text := r.disagreement(r.owner()); text != "" {
			return text + r.suffix()
		}
	}
	return ""
}

// unsettled says what is not well yet with who owns.
func (r *realm) unsettled() string {
	if len(r.rule.active) != 1 || r.rule.split {
		return "there is no one owner"
	}
	o := r.owner()
	if o == nil {
		return "nobody owns"
	}
	if o.wanCut != [2]int{} || r.gateway() != o {
		return o.name + " owns without the shared addresses"
	}
	s := o.other()
	if s.guard == nil || s.d == nil {
		return "the standby is not there"
	}
	if _, ok := s.guard.EntitledTo(cluster.ScopeID(r.scope)); !ok {
		return "the standby is not entitled"
	}
	return ""
}

func describeFlow(f *flow, dir int) string {
	who := "the other pair, tunnel " + f.tunnel.name(f.tunnel.near.pair.gw[0])
	if f.tunnel.client != nil {
		who = f.tunnel.client.name
	}
	if dir == 0 {
		return who + " to server, network " + string(rune('0'+f.network))
	}
	return "server to " + who + ", network " + string(rune('0'+f.network))
}

// lanes are a host's Child SAs of a realm.
func (r *realm) lanes(h *host) (out []*sa) {
	for _, s := range h.d.p.list {
		if s.scope.id == r.scope {
			out = append(out, s)
		}
	}
	return out
}

// lanesOf are those of a tunnel at the host at its other end.
func (r *realm) lanesOf(t *tunnel, h *host) (out []*sa) {
	for _, s := range h.d.p.list {
		if h.pair == nil || s.Tunnel == t.name(h) {
			out = append(out, s)
		}
	}
	return out
}

// disagreement says what owner, standby and peers do not hold in common.
func (r *realm) disagreement(o *host) string {
	w := r.w
	at := map[ipsec.ESPSPI]bool{} // inbound SPIs of the owner
	for _, s := range r.lanes(o) {
		at[s.SPIIn] = true
	}
	for _, s := range r.lanes(o.other()) {
		if !at[s.SPIIn] {
			return "left behind: the standby holds SPI " + s.SPIIn.String() + ", the owner does not"
		}
	}
	if len(r.lanes(o.other())) != len(at) {
		return "left behind: the standby does not hold all SAs of the owner"
	}
	theirs := map[ipsec.ESPSPI]bool{} // inbound SPIs of the owner, as its peers have them
	for _, t := range r.tunnels() {
		c := t.end(r)
		if c == nil || c.d == nil {
			return "the peer of " + t.name(o) + " is not there"
		}
		for _, s := range r.lanesOf(t, c) {
			if !at[s.SPIOut] && r.rule.strays[s.SPIIn] {
				// The answer that made it went to the gateway that had not asked, and the
				// one that had gave up: nobody knows its SPI but the client, until its
				// lifetime ends.
				w.Result.States["SA of a split left at a client"]++
				continue
			}
			theirs[s.SPIOut] = true
			if !at[s.SPIOut] {
				return "left behind: " + c.name + " holds SPI " + s.SPIOut.String() + ", the owner does not"
			}
		}
		if text := r.differ(t, o, c); text != "" {
			return "left behind: " + text
		}
	}
	for _, s := range r.lanes(o) {
		if !theirs[s.SPIIn] && !r.strayed(s) {
			return "left behind: the owner holds SPI " + s.SPIIn.String() + ", and no peer does"
		}
	}
	for _, x := range r.ledger.list {
		if x.tainted > 0 {
			for _, s := range r.lanes(o) {
				if s.SPIOut == x.id.spi && s.keyOut == x.id.key || s.SPIIn == x.id.spi && s.keyIn == x.id.key {
					return "left behind: SPI " + x.id.spi.String() + " was used by both sides of a split, one of which lost its memory, and was not rekeyed"
				}
			}
		}
	}
	return ""
}
