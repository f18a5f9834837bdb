package sim

import (
	"fmt"
	"time"

	"tandem/internal/ipsec"
)

// heal ends the schedule: everything works again, and the world has to settle.
func (w *world) heal() {
	w.healing = true
	w.armed = nil
	w.net.lossy = 0
	clear(w.net.cut)
	for i := range w.links {
		w.links[i] = hbLink{}
	}
	w.streams.heal()
	for _, h := range w.hosts() {
		h.wanCut, h.dontStart, h.monitors = [2]int{}, false, 1
		h.disk.until, h.disk.full, h.stubborn = 0, 0, 0
		if h.d != nil {
			h.d.hung, h.d.stopped = false, false
			h.d.leaving = false
			h.d.run(func(now time.Time) { h.d.n.HandleMonitors(now, 1) })
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
	for _, h := range w.gw {
		if d := h.d; d != nil && d.n.Status(h.local()).HA != nil {
			d.run(func(now time.Time) { _ = d.n.Failover(now, false) })
		}
	}
	w.fault("", "everything works again")
	w.rule.heals, w.rule.parted = w.now, max(w.rule.parted, w.now)
	w.rule.excuse(healLimit)
	w.busy(healLimit)
	w.after(5*time.Second, w.settled)
}

// settled looks whether everything is well again.
func (w *world) settled() {
	if !w.done && !w.ends(w.unsettled(), w.rule.heals) {
		w.after(2*time.Second, w.settled)
	}
}

// unsettled says what is not well yet.
func (w *world) unsettled() string {
	if len(w.rule.active) != 1 || w.rule.split {
		return "there is no one owner"
	}
	o := w.owner()
	if o == nil {
		return "nobody owns"
	}
	if o.wanCut != [2]int{} || w.net.gateway() != o {
		return o.name + " owns without the shared addresses"
	}
	s := o.other()
	if s.guard == nil || s.d == nil {
		return "the standby is not there"
	}
	if _, ok := s.guard.Entitled(); !ok {
		return "the standby is not entitled"
	}
	for _, f := range w.flows {
		for dir, at := range f.arrived {
			if w.now-at > 3*time.Second {
				return describeFlow(f, dir) + " carries nothing"
			}
		}
	}
	return w.disagreement(o)
}

func describeFlow(f *flow, dir int) string {
	if dir == 0 {
		return f.w.clients[f.client].name + " to server, network " + string(rune('0'+f.network))
	}
	return "server to " + f.w.clients[f.client].name + ", network " + string(rune('0'+f.network))
}

// disagreement says what owner, standby and clients do not hold in common.
func (w *world) disagreement(o *host) string {
	at := map[ipsec.ESPSPI]bool{} // inbound SPIs of the owner
	for _, s := range o.d.p.list {
		at[s.SPIIn] = true
	}
	for _, s := range o.other().d.p.list {
		if !at[s.SPIIn] {
			return "left behind: the standby holds SPI " + s.SPIIn.String() + ", the owner does not"
		}
	}
	if len(o.other().d.p.list) != len(at) {
		return "left behind: the standby does not hold all SAs of the owner"
	}
	n := 0
	for _, c := range w.clients {
		if c.d == nil {
			return c.name + " is not there"
		}
		for _, s := range c.d.p.list {
			if !at[s.SPIOut] && w.rule.strays[s.SPIIn] {
				// The answer that made it went to the gateway that had not asked, and the
				// one that had gave up: nobody knows its SPI but the client, until its
				// lifetime ends.
				w.Result.States["SA of a split left at a client"]++
				continue
			}
			n++
			if !at[s.SPIOut] {
				return "left behind: " + c.name + " holds SPI " + s.SPIOut.String() + ", the owner does not"
			}
		}
		for _, g := range c.d.n.Status(c.local()).Gateways {
			var sas []string
			for _, k := range g.IKE {
				sas = append(sas, k.SPIs.String()+" "+k.State)
			}
			if len(sas) != 1 || g.IKE[0].State != "established" {
				return fmt.Sprintf("left behind: %s has not one IKE SA but %q", c.name, sas)
			}
		}
	}
	if n != len(at) {
		return "left behind: the owner holds SAs that no client has"
	}
	for _, x := range w.ledger.list {
		if x.tainted > 0 {
			for _, s := range o.d.p.list {
				if s.SPIOut == x.id.spi && s.keyOut == x.id.key || s.SPIIn == x.id.spi && s.keyIn == x.id.key {
					return "left behind: SPI " + x.id.spi.String() + " was used by both sides of a split, one of which lost its memory, and was not rekeyed"
				}
			}
		}
	}
	return ""
}
