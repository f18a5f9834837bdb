package sim

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/ike/message"
)

// actOnScopes does what happens to virtual clusters and between pairs that face each
// other; false: it is something else.
func (w *world) actOnScopes(h *host, about *realm, a Action) bool {
	switch a.Verb {
	case Prefer:
		w.prefer(about, a)
	case KillBoth:
		for i, p := range w.pairs {
			if o := p.realms[0].owner(); o != nil {
				d := o.d
				w.after(time.Duration(i)*between(w.chance, 0, a.For), func() { o.die(d, "SIGKILL") })
			}
			w.disturbed(p, p.realms[0], Action{Verb: Kill})
		}
	case LoseSync:
		w.net.syncless = max(w.net.syncless, w.now+a.For)
		for _, t := range w.tunnels {
			t.excuse(a.For + 60*time.Second)
		}
	case ReplaySync:
		w.people.replaySync()
	default:
		return false
	}
	return true
}

// prefer changes a virtual cluster's priorities by a reload.
func (w *world) prefer(r *realm, a Action) {
	p := r.pair
	if len(p.setup.VClusters) == 0 {
		return
	}
	v := &p.setup.VClusters[r.index]
	v.Priority = [2]int{100, 100}
	if a.Links > 0 {
		v.Priority[a.Links-1] = 200
	}
	v.Override = a.Count > 0
	p.reload()
}

// moveTime is how long after a fault a change of owner may still follow from it: who was
// excluded joins again after 30 s at most, and takes over if it is preferred.
const moveTime = 60 * time.Second

// unsettles: anything may move for a while.
func (p *pair) unsettles(d time.Duration) { p.unrest = max(p.unrest, p.w.now+d+moveTime) }

// moved: something moves this scope, and may move it back.
func (r *rules) moved(d time.Duration) { r.movable = max(r.movable, r.w.now+d+moveTime) }

// moves: an ownership of this scope begins. Moving one scope changes nobody else's owner
// or epoch.
func (r *rules) moves(d *daemon, e cluster.Epoch) {
	w := r.w
	if len(r.pair.realms) < 2 || w.now < 30*time.Second {
		return
	}
	w.Result.States["virtual cluster moved"]++
	if w.now > r.pair.unrest && w.now > r.movable {
		w.violate(RuleScopes, "%s begins to own virtual cluster %d in epoch %s, although nothing has happened to that", d.h.name, r.realm.scope, e)
	}
}

// isSync says that a message may be one that synchronises message IDs (RFC 6311 §5.1): it
// is INFORMATIONAL with message ID 0.
func isSync(raw []byte) bool {
	return len(raw) >= 28 && message.ExchangeType(raw[18]) == message.Informational && binary.BigEndian.Uint32(raw[20:]) == 0
}

// synchronises looks at a message that synchronises message IDs: a request is answered
// once, a retransmission of it with the same bytes; and nobody asks for ever.
func (o *observer) synchronises(d *daemon, m *message.Message, t *told, h uint64, path *tunnel) {
	w := o.w
	s := o.side(m.SPIs, m.Initiator)
	if m.Response {
		w.Result.States["message ID sync answered"]++
		if old, ok := s.syncs[t.nonce]; ok && old != h {
			w.violate(RuleSync, "%s answers the message ID sync with nonce %08x once more, with other bytes", d.h.name, t.nonce)
		}
		if s.syncs == nil {
			s.syncs = map[uint32]uint64{}
		}
		if path == nil || !path.split() { // who answers in a split may die alone
			s.syncs[t.nonce] = h
		}
		return
	}
	w.Result.States["message ID sync asked"]++
	if by := d.process; s.asks.of != by {
		s.asks.of, s.asks.times = by, 0
	}
	if s.asks.times++; s.asks.times > maxAsks {
		w.violate(RuleSync, "%s asks for a message ID sync for the %dth time on one IKE SA", d.h.name, s.asks.times)
	}
}

// maxAsks: five attempts are made for one reason (RFC 6311 says nothing of how many); there
// may be another reason, a few times in the life of a process.
const maxAsks = 20

// replaySync sends what was seen of synchronisations of message IDs again: to where it
// went, and back to who sent it. Nobody may act on that.
func (a *attacker) replaySync() {
	n := &a.w.net
	for _, c := range n.seen {
		if c.ike == nil || !isSync(c.ike.Data) {
			continue
		}
		x := *c.ike
		a.w.after(between(a.r, 0, 200*time.Millisecond), func() {
			a.tell("a captured message ID sync again")
			n.toGateway(x)
		})
		back := x
		back.Local, back.Remote = x.Remote, x.Local
		a.w.after(between(a.r, 0, 200*time.Millisecond), func() { a.reflect(back) })
	}
}

// reflect brings a message to a gateway, which has sent it itself or has seen it before:
// nothing follows from it.
func (a *attacker) reflect(x ike.Datagram) {
	r := a.w.realmAt(x.Local.Addr())
	if r == nil || r.gateway() == nil || r.gateway().d == nil {
		return
	}
	h := r.gateway()
	h.d.run(func(now time.Time) {
		before := h.windows()
		h.d.n.HandleIKE(now, x)
		if after := h.windows(); after != before {
			a.w.violate(RuleSync, "%s got a message ID sync of its own back, and its message IDs changed from %s to %s", h.name, before, after)
		}
	})
}

// windows are the message IDs of a daemon's IKE SAs.
func (h *host) windows() string {
	var b strings.Builder
	for _, g := range h.d.n.Status(h.local()).Gateways {
		for _, k := range g.IKE {
			fmt.Fprintf(&b, "%s %d/%d, ", k.SPIs, k.SendID, k.RecvID)
		}
	}
	return b.String()
}
