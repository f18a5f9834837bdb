package sim

import (
	"errors"
	"fmt"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

var errDisk = errors.New("no space left on device")

// hbLink is one heartbeat link. Index 0 is the direction from gw1 to gw2.
type hbLink struct {
	cut  [2]int // how many faults cut it
	loss [2]float64
}

var heartbeatKey = ipsec.NewKey([]byte("example: heartbeat key of the simulation"))

func (w *world) sendHeartbeat(h *host, e cluster.SendHeartbeat) {
	to, dir := h.other(), int(h.id)-1
	hb := &e.Heartbeat
	if w.s.Real {
		b, err := hb.Marshal(heartbeatKey)
		if err == nil {
			hb, err = cluster.DecodeHeartbeat(heartbeatKey, b)
		}
		if err != nil {
			w.violate(RuleEffects, "%s: heartbeat: %v", h.name, err)
			return
		}
	}
	for i := range h.pair.links {
		l := &h.pair.links[i]
		for range e.Copies {
			if l.cut[dir] > 0 || chance(w.chance, l.loss[dir]) || !to.powered {
				continue
			}
			w.after(between(w.chance, 50*time.Microsecond, 600*time.Microsecond), func() {
				to.onGuard(func() {
					if to.asleep {
						to.wake()
					}
					x := *hb
					for _, r := range to.pair.realms {
						r.rule.hears(to, &x)
					}
					_ = to.guard.HandleHeartbeat(to.guardTime(), cluster.Link{Device: fmt.Sprintf("hb%d", i), Addr: fmt.Sprintf("fe80::%d", h.id)}, &x)
					to.carryGuard()
				})
			})
		}
	}
}

// initStreams makes the replication streams between the gateways.
func (p *pair) initStreams() {
	w := p.w
	p.streams.init(&w.scene, len(p.gw))
	p.streams.delay = w.streamDelay
	p.streams.opens = func(x *pipe[*host, *daemon]) bool { return p.connected() && !x.to.frozen }
	p.streams.whole = func(*pipe[*host, *daemon]) bool { return p.connected() }
	p.streams.leaves = func(x *pipe[*host, *daemon], d *daemon, e statesync.SendFrame) {
		if w.now < w.echo {
			w.after(w.streamDelay(), func() {
				d.run(func(now time.Time) { _ = d.n.HandleFrame(now, x.from.id, d.process, e.Scope, e.Frame) })
			})
		}
	}
}

func (w *world) streamDelay() time.Duration {
	if w.s.Setup.TightLoop {
		return between(w.chance, 30*time.Microsecond, 80*time.Microsecond)
	}
	return between(w.chance, 30*time.Microsecond, 800*time.Microsecond)
}

func (d *daemon) takesFrame(now time.Time, from *daemon, e statesync.SendFrame) error {
	d.h.pair.realm(xfrm.Scope(e.Scope)).rule.frame(d, from, e)
	return d.n.HandleFrame(now, from.h.id, from.process, e.Scope, e.Frame)
}

func (d *daemon) takesAck(now time.Time, from *daemon, e statesync.SendAck) {
	d.n.HandleAck(now, from.h.id, from.process, e.Scope, e.Seq)
}
