package sim

import (
	"time"
)

// act does what the schedule wants now.
func (w *world) act(a Action) {
	h := w.node(a.Node)
	if !w.begins(a, h != nil) {
		return
	}
	if a.Verb.Fault() {
		w.busy(5*time.Second + min(a.For, time.Minute))
		if h != nil {
			w.rule.disturbed(h, a.Verb, a.For)
		} else {
			w.rule.disturbed(w.gw[0], a.Verb, a.For)
		}
	}
	if h == nil {
		h = w.gw[0]
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
		w.rule.excuse(0)
		w.gw[0].freeze(d, false)
		w.gw[1].freeze(d+between(w.chance, 0, 3*time.Millisecond), false)
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
		w.rule.excuse(a.For + 60*time.Second)
		w.after(a.For, func() { w.net.lossy = 0 })
	case StallStream:
		for _, h := range w.gw {
			w.pipe(h).stall(w.now + min(a.For, 5*time.Second))
		}
	case BreakStream:
		w.streams.reset(w.pipe(w.gw[0]))
		w.streams.reset(w.pipe(w.gw[1]))
	case Handover:
		w.handover(a.For)
	case Restart:
		w.restart(h, a.For)
	case Rolling:
		g, o := w.gw[0], w.gw[1]
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
		w.monitor(h, 0)
		w.after(a.For, func() { w.monitor(h, 1) })
	case Stubborn:
		if h.id != 0 && h.d != nil {
			d := h.d
			d.hung = true
			h.stubborn = w.now + a.For
			w.rule.disturbedAt = w.now + a.For
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
				if o := w.gw[w.chance.IntN(2)]; o.holds {
					w.net.announce(o)
				}
			})
		}
	case Echo:
		w.echo = w.now + min(a.For, 5*time.Second)
	default:
		w.everyday(h, a)
	}
}

// everyday is what administrators, clients and attackers do.
func (w *world) everyday(h *host, a Action) {
	d := h.d
	name, phase2 := "", ""
	if len(w.flows) > 0 {
		f := w.flows[a.Flow%len(w.flows)]
		name, phase2 = "gw", "net-"+digit(f.network)
		if h.id != 0 {
			name, phase2 = tunnelName(f.client), tunnelName(f.client)+"-"+digit(f.network)
		} else if f.client != h.index {
			f = w.flowOf(h.index)
			phase2 = "net-" + digit(f.network)
		}
		switch a.Verb {
		case Clear, Down, Passive:
			w.rule.excuse(a.For + 60*time.Second)
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
		w.passive(true)
		w.after(a.For, func() { w.passive(false) })
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
		if f.client == client {
			return f
		}
	}
	return w.flows[0]
}

// provoke starts the exchange in which a crash point lies.
func (w *world) provoke(a Action) {
	o, c := w.owner(), w.clients[int(a.At/time.Millisecond)%len(w.clients)]
	who := c
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
	for i := range w.links {
		if a.Links&(1<<i) == 0 {
			continue
		}
		for _, dir := range dirs {
			l := &w.links[i]
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
		w.rule.disturbedAt = w.now
		w.busy(10 * time.Second)
		for i := range w.links {
			if a.Links&(1<<i) == 0 {
				continue
			}
			for _, dir := range dirs {
				if a.Verb == CutHB {
					w.links[i].cut[dir]--
				} else {
					w.links[i].loss[dir] = 0
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
func (w *world) handover(d time.Duration) {
	o := w.owner()
	if o == nil || o.d == nil {
		return
	}
	x := o.d
	x.run(func(now time.Time) { _ = x.n.Failover(now, true) })
	w.after(min(d, 5*time.Second), func() {
		if !x.dead {
			x.run(func(now time.Time) { _ = x.n.Failover(now, false) })
		}
	})
}

// restart is SIGTERM: the daemon hands over and ends; it is started again later.
func (w *world) restart(h *host, d time.Duration) {
	x := h.d
	if x == nil || h.id == 0 {
		return
	}
	h.dontStart, x.leaving = true, true
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

func (w *world) monitor(h *host, up int) {
	if h.id == 0 || h.monitors == up {
		return
	}
	h.monitors = up
	w.busy(5 * time.Second)
	if d := h.d; d != nil {
		d.run(func(now time.Time) { d.n.HandleMonitors(now, up) })
	}
}

// passive reloads both gateways with or without passive-mode.
func (w *world) passive(on bool) {
	for g, h := range w.gw {
		h.conf = load("gw.conf", w.s.Setup.gatewayConfig(g, on))
		if d := h.d; d != nil {
			d.run(func(now time.Time) { d.n.Reload(now, h.conf) })
		}
	}
}
