package sim

import (
	"time"

	"tandem/cluster"
)

// act does what the schedule wants now.
func (w *world) act(a Action) {
	h, about := w.node(a), w.named(a)
	p := about.pair
	if !w.begins(a, h != nil) {
		return
	}
	if a.Verb.Fault() {
		w.busy(5*time.Second + min(a.For, time.Minute))
		w.disturbed(p, about, a)
	}
	if h == nil {
		h = p.gw[0]
	}
	switch a.Verb {
	case Kill:
		if d := h.d; d != nil {
			h.die(d, "SIGKILL")
		}
	case CrashAt:
		w.armed = append(w.armed, a)
		w.provoke(a)
	case KillGuardian:
		w.killGuardian(h, a.For)
	case LoseHost, LoseDisk:
		w.loseHost(h, a)
	case StopDaemon:
		w.stopDaemon(h, a.For)
	case FreezeHost:
		h.freeze(a.For, false)
	case PauseHost:
		h.freeze(a.For, true)
	case PauseBoth:
		d := min(a.For, 2*time.Second)
		about.rule.excuse(0)
		p.gw[0].freeze(d, false)
		p.gw[1].freeze(d+between(w.chance, 0, 3*time.Millisecond), false)
	case CutHB, LossHB:
		w.cutHeartbeats(h, a)
	case CutWAN:
		w.cutWAN(h, a)
	case CutClient:
		i := h.index
		w.net.cutClient(i, 1)
		w.after(a.For, func() {
			if !w.healing {
				w.net.cutClient(i, -1)
			}
		})
	case Lossy:
		w.net.lossy = max(w.net.lossy, a.Rate)
		for _, t := range w.tunnels {
			t.excuse(a.For + 60*time.Second)
		}
		w.after(a.For, func() { w.net.lossy = 0 })
	case StallStream:
		for _, h := range p.gw {
			p.pipe(h).stall(w.now + min(a.For, 5*time.Second))
		}
	case BreakStream:
		p.streams.reset(p.pipe(p.gw[0]))
		p.streams.reset(p.pipe(p.gw[1]))
	case Handover:
		w.handover(about, a.For)
	case Restart:
		w.restart(h, a.For)
	case Rolling:
		g, o := p.gw[0], p.gw[1]
		w.restart(g, 2*time.Second)
		w.after(15*time.Second, func() {
			if !w.healing {
				w.restart(o, 2*time.Second)
			}
		})
	case SlowDisk:
		h.disk.slow, h.disk.until = a.For/4, w.now+min(a.For*10, time.Minute)
	case FullDisk:
		h.disk.full = w.now + a.For
	case StepClock:
		h.clock.wall += a.For
	case Monitor:
		w.monitor(h, about, 0)
		w.after(a.For, func() { w.monitor(h, about, 1) })
	case Stubborn:
		if h.id != 0 && h.d != nil {
			d := h.d
			d.hung = true
			h.stubborn = w.now + a.For
			for _, r := range p.realms {
				r.rule.disturbedAt = w.now + a.For
			}
			w.after(a.For, func() {
				if d.hung {
					d.hung = false
					d.goOn()
				}
			})
		}
	case FlapARP:
		for i := range 6 {
			w.after(time.Duration(i)*between(w.chance, 5*time.Millisecond, 400*time.Millisecond), func() {
				if o := p.gw[w.chance.IntN(2)]; o.of(about).holds {
					about.announce(o)
				}
			})
		}
	case Echo:
		w.echo = w.now + min(a.For, 5*time.Second)
	default:
		if !w.actOnScopes(h, about, a) {
			w.everyday(h, a)
		}
	}
}

// disturbed tells the checkers of a fault.
func (w *world) disturbed(p *pair, about *realm, a Action) {
	switch a.Verb {
	case Handover, Monitor, Prefer: // nothing of the other ones
		about.rule.disturbed(a.Verb, a.For)
		about.rule.moved(a.For)
		return
	}
	for _, r := range p.realms {
		r.rule.disturbed(a.Verb, a.For)
	}
	switch a.Verb {
	case CutClient, Lossy, FlapARP, CutWAN, LoseSync, ReplaySync:
	default:
		p.unsettles(a.For)
	}
}

// everyday is what administrators, clients and attackers do.
func (w *world) everyday(h *host, a Action) {
	d := h.d
	name, phase2 := "", ""
	if len(w.flows) > 0 {
		f := w.flows[a.Flow%len(w.flows)]
		if h.id == 0 && f.tunnel.index != h.index {
			f = w.flowOf(h.index)
		}
		if o := f.tunnel.near.owner(); o != nil && a.Node == "owner" && len(h.pair.realms) > 1 {
			h, d = o, o.d // of that virtual cluster
		}
		name, phase2 = f.tunnel.name(h), f.tunnel.network(h, f.network)
		switch a.Verb {
		case Clear, Down, Passive:
			for _, t := range w.tunnels {
				t.excuse(a.For + 60*time.Second)
			}
		}
		if a.Verb == Burst {
			f.burst(a.Count, a.Rate, a.Direction)
			return
		}
	}
	switch a.Verb {
	case Replay:
		w.people.replay(a.Count)
		return
	case Garbage:
		w.people.garbage(a.Count)
		return
	case Flood:
		w.people.flood(a.Count)
		return
	case Passive:
		w.passive(w.named(a).pair, true)
		w.after(a.For, func() { w.passive(w.named(a).pair, false) })
		return
	}
	if d == nil {
		return
	}
	d.run(func(now time.Time) {
		switch a.Verb {
		case RekeyChild:
			d.n.Rekey(now, name, false)
		case RekeyIKE:
			d.n.Rekey(now, name, true)
		case Clear:
			d.n.Clear(now, name)
		case Down:
			_ = d.n.Down(now, name, phase2)
		case Up:
			_ = d.n.Up(now, name, phase2)
		case Move:
			if h.id == 0 && w.s.Setup.Clients[h.index].NAT {
				w.net.outside[h.index].port += 2
			}
		}
	})
}

func digit(n int) string { return string(rune('0' + n)) }

func (w *world) flowOf(client int) *flow {
	for _, f := range w.flows {
		if f.tunnel.index == client {
			return f
		}
	}
	return w.flows[0]
}

// provoke starts the exchange in which a crash point lies.
func (w *world) provoke(a Action) {
	t := w.tunnels[int(a.At/time.Millisecond)%len(w.tunnels)]
	o, who := t.near.owner(), t.end(t.near)
	if a.Cell.Initiator {
		who = o
	}
	if who == nil || who.d == nil {
		return
	}
	b := Action{Node: who.name, At: a.At, Flow: int(a.At / time.Millisecond)}
	switch a.Cell.Exchange {
	case Init, Auth:
		b.Verb = Clear
	case CreateChild:
		b.Verb = Down
		w.after(3*time.Second, func() {
			if !w.healing {
				b.Verb = Up
				w.everyday(who, b)
			}
		})
	case RekeyChildX:
		b.Verb = RekeyChild
	case RekeyIKEX:
		b.Verb = RekeyIKE
	case Delete:
		b.Verb = pick(w.chance, Down, RekeyChild, RekeyIKE)
	default:
		return
	}
	w.everyday(who, b)
}

func (w *world) killGuardian(h *host, d time.Duration) {
	if h.id == 0 || h.guard == nil {
		return
	}
	w.fault(h.name, "the guardian is killed, and the daemon with it")
	h.endGuardian()
	w.after(d, func() {
		if h.powered && h.guard == nil {
			h.startGuardian()
			h.startDaemon()
		}
	})
}

func (w *world) loseHost(h *host, a Action) {
	if !h.powered {
		return
	}
	h.powerOff()
	w.after(a.For, func() {
		if a.Verb == LoseDisk && h.id != 0 && !h.powered {
			h.disk = disk{lost: true}
		}
		h.boot()
	})
}

func (w *world) stopDaemon(h *host, d time.Duration) {
	x := h.d
	if x == nil || x.stopped {
		return
	}
	w.fault(h.name, "SIGSTOP for %v", d)
	x.stopped = true
	w.after(d, func() {
		if x.dead || !x.stopped {
			return
		}
		x.stopped = false
		w.fault(h.name, "SIGCONT")
		if !h.frozen {
			w.after(between(w.chance, 0, time.Millisecond), x.goOn)
			w.after(between(w.chance, 0, time.Millisecond), x.p.goOn)
		}
	})
}

func (w *world) cutHeartbeats(h *host, a Action) {
	if h.id == 0 {
		return
	}
	dirs := []int{0, 1}
	switch a.Direction {
	case 1:
		dirs = []int{int(h.id) - 1}
	case 2:
		dirs = []int{2 - int(h.id)}
	}
	for i := range h.pair.links {
		if a.Links&(1<<i) == 0 {
			continue
		}
		for _, dir := range dirs {
			l := &h.pair.links[i]
			if a.Verb == CutHB {
				l.cut[dir]++
			} else {
				l.loss[dir] = a.Rate
			}
		}
	}
	w.after(a.For, func() {
		if w.healing {
			return
		}
		for _, r := range h.pair.realms {
			r.rule.disturbedAt = w.now
		}
		w.busy(10 * time.Second)
		for i := range h.pair.links {
			if a.Links&(1<<i) == 0 {
				continue
			}
			for _, dir := range dirs {
				if a.Verb == CutHB {
					h.pair.links[i].cut[dir]--
				} else {
					h.pair.links[i].loss[dir] = 0
				}
			}
		}
	})
}

func (w *world) cutWAN(h *host, a Action) {
	if h.id == 0 {
		return
	}
	dirs := []int{0, 1}
	if a.Direction > 0 {
		dirs = dirs[a.Direction-1 : a.Direction]
	}
	for _, d := range dirs {
		h.wanCut[d]++
	}
	w.after(a.For, func() {
		if !w.healing {
			for _, d := range dirs {
				h.wanCut[d]--
			}
		}
	})
}

// handover is `execute ha failover set` on the owner, and unset a little later.
func (w *world) handover(r *realm, d time.Duration) {
	o := r.owner()
	if o == nil || o.d == nil {
		return
	}
	x := o.d
	x.run(func(now time.Time) { _ = x.n.Failover(now, cluster.ScopeID(r.scope), true) })
	w.after(min(d, 5*time.Second), func() {
		if !x.dead {
			x.run(func(now time.Time) { _ = x.n.Failover(now, cluster.ScopeID(r.scope), false) })
		}
	})
}

// restart is SIGTERM: the daemon hands over and ends; it is started again later.
func (w *world) restart(h *host, d time.Duration) {
	x := h.d
	if x == nil || h.id == 0 {
		return
	}
	h.dontStart = true
	x.run(func(now time.Time) { x.n.Shutdown(now) })
	w.after(5*time.Second, func() {
		if h.d == x {
			h.die(x, "SIGKILL: it did not end in time")
		}
	})
	w.after(5*time.Second+min(d, 10*time.Second), func() {
		h.dontStart = false
		if h.d == nil && h.powered {
			h.onGuard(h.startDaemon)
		}
	})
}

func (w *world) monitor(h *host, r *realm, up int) {
	if h.id == 0 || h.of(r).monitors == up {
		return
	}
	h.of(r).monitors = up
	w.busy(5 * time.Second)
	if d := h.d; d != nil {
		d.run(func(now time.Time) { d.n.HandleMonitored(now, h.monitored) })
	}
}

// passive reloads both gateways with or without passive-mode.
func (w *world) passive(p *pair, on bool) {
	p.passive = on
	p.reload()
}
