package sim

import (
	"net/netip"

	"tandem/ike"
	"tandem/ike/message"
)

// A survivor goes on where the other one stood: until it hears a peer itself, it
// begins nothing new with it and sends to the address that was known. A planned
// handover costs no packet at all, since the windows travel exactly.

// takesOver: d's data plane was activated after another process's.
func (l *lifetime) takesOver() { l.heardFrom = map[*tunnel]bool{} }

// hearsFrom: something authentic of a peer, or what was once, arrived at d.
func (l *lifetime) hearsFrom(t *tunnel) {
	if l.heardFrom != nil {
		l.heardFrom[t] = true
	}
}

// deafTo says that d took over and has heard nothing of a peer yet.
func (l *lifetime) deafTo(t *tunnel) bool {
	return l.heardFrom != nil && t != nil && !l.heardFrom[t]
}

// begins: an IKE message leaves for the first time.
func (r *rules) begins(d *daemon, m *message.Message, text string, hash uint64, x ike.Datagram) {
	side := r.w.wire.side(m.SPIs, m.Initiator)
	if m.Response || m.MessageID == 0 || side.synced && m.MessageID == side.first || !r.life(d.h).deafTo(r.w.tunnelAt(d.h, x)) || r.life(d.h).acked.messages[hash] {
		return // where there is no last request that could be repeated, an empty one asks for the peer
	}
	if r.split || r.w.now < r.tolerate {
		return // healing brings what the other side has begun
	}
	r.w.violate(RuleSurvivor, "%s sends %s before it has heard the peer", d.h.name, text)
}

// sendsTo: a packet leaves on a Child SA. The other one may have learnt of another
// address without sending there, but it forgot the one before.
func (r *rules) sendsTo(d *daemon, x *record, to netip.AddrPort, t *tunnel) {
	if to == x.to {
		return
	}
	if to == x.was && r.life(d.h).deafTo(t) && !r.excused(x) {
		r.w.violate(RuleSurvivor, "%s sends on SPI %s to %s before it has heard the peer, whom the other one knew at %s", d.h.name, x.id.spi, to, x.to)
	}
	x.was, x.to = x.to, to
}

// handedOver: d took over by a planned handover.
func (r *rules) handedOver() {
	for _, x := range r.realm.ledger.list {
		if p := &x.price; p.since == r.w.now && p.limit > 0 {
			p.limit = 0
		}
	}
}
