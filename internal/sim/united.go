package sim

import (
	"fmt"
	"slices"
	"time"

	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/internal/node"
)

// united: a split is over, and nobody lost their memory in it. What a client still
// uses, one side or the other has; so the owner has it. Unless nobody had it even
// before: then its dead peer detection has to find out.
func (r *rules) united() {
	w := r.w
	for _, t := range r.realm.tunnels() {
		for _, twice := range t.splitIKE {
			if twice {
				// Both sides have begun an exchange with the same message ID, and the peer's one
				// answer may have gone to either: it has to begin anew.
				return
			}
		}
	}
	for _, t := range r.realm.tunnels() {
		k, ok := r.inUse(t)
		if !ok || r.ownerHolds(k) || r.wiped > 0 && w.now-r.wiped < 2*time.Minute {
			continue
		}
		if at, ok := r.unanswered[k]; ok && at >= r.splitAt {
			continue
		}
		w.after(3*time.Second, func() {
			if again, ok := r.inUse(t); ok && again == k && !r.ownerHolds(k) && !t.split() {
				w.violate(RuleLost, "%s uses IKE SA %s, but since the split healed the owner does not have it", t.end(r.realm).name, k)
			}
		})
	}
}

// gaveUp: a gateway ends an IKE SA whose peer has not answered (RFC 7296 §2.4). If no other
// one has owned since it asked, no other one got an answer that it missed; if the network
// lost most attempts, it was right. The peer's dead peer detection has to find that out,
// split or not.
func (w *world) gaveUp(d *daemon, e node.Log) {
	var k ipsec.IKESPIs
	var id uint32
	for _, a := range e.Attrs {
		switch a.Key {
		case "spi":
			if _, err := fmt.Sscanf(a.Value.String(), "%x/%x", &k.I, &k.R); err != nil {
				return
			}
		case "message_id":
			id = uint32(a.Value.Uint64())
		}
	}
	for _, x := range d.h.pair.realms {
		r := &x.rule
		l := r.life(d.h)
		if len(r.active) != 1 || r.active[0] != l {
			continue
		}
		for _, m := range l.messages {
			if m.side != nil && m.spis == k && m.id == id && m.at >= r.alone && m.side.mostlyLost(id) {
				r.unanswered[k] = w.now
			}
		}
	}
}

// inUse is the only IKE SA that a tunnel's peer has, if that is established and a gateway
// lately delivered a packet of one of its Child SAs.
func (r *rules) inUse(t *tunnel) (k ipsec.IKESPIs, ok bool) {
	c := t.end(r.realm)
	if c == nil || c.d == nil || c.frozen || c.d.stopped {
		return k, false
	}
	n, carried := 0, false
	for _, g := range c.gateways(t) {
		for _, x := range g.IKE {
			n++
			k, ok = x.SPIs, x.State == "established"
		}
		for _, x := range g.Children {
			carried = carried || r.carries(x.SA.SPIOut)
		}
	}
	return k, ok && carried && n == 1
}

// carries says whether a gateway lately delivered a packet with an inbound SPI of its own.
func (r *rules) carries(spi ipsec.ESPSPI) bool {
	for _, x := range r.realm.ledger.list {
		if x.id.spi == spi && x.price.last > 0 && r.w.now-x.price.last < 15*time.Second {
			return true
		}
	}
	return false
}

// ownerHolds says whether the owner has an IKE SA; true if there is no owner.
func (r *rules) ownerHolds(k ipsec.IKESPIs) bool {
	o := r.realm.owner()
	if o == nil {
		return true
	}
	for _, g := range o.d.n.Status(o.local()).Gateways {
		for _, x := range g.IKE {
			if x.SPIs == k {
				return true
			}
		}
	}
	return false
}

// gateways is what a daemon says of a tunnel; of a dialup one, what it says of all.
func (h *host) gateways(t *tunnel) []ike.GatewayStatus {
	all := h.d.n.Status(h.local()).Gateways
	if h.pair == nil {
		return all
	}
	return slices.DeleteFunc(all, func(g ike.GatewayStatus) bool { return g.Name != t.name(h) })
}
