package sim

import (
	"time"

	"tandem/internal/node"
	"tandem/xfrm"
)

// skip uses sequence numbers up.
func (p *lanes[P]) skip(bs []xfrm.Bound) {
	for _, b := range bs {
		s := p.sas[b.SPIIn]
		switch {
		case s == nil:
		case !s.scope.active && b.Dir == xfrm.Outbound:
			if b.N > s.out.Bound() {
				s.out.Record(b.N)
			}
		case !s.scope.active:
			if b.N > s.in.Bound() {
				s.in.Record(b.N)
			}
		case b.Dir == xfrm.Outbound:
			s.activateOut()
			s.out.Skip(b.N)
			id := saID{s.SPIOut, s.keyOut}
			p.scene.skips[id] = max(p.scene.skips[id], b.N)
		default:
			s.activateIn()
			s.in.Skip(b.N)
			s.skipped, s.skippedAt = max(s.skipped, b.N), p.scene.now
			p.scene.Result.States["replay counters synchronised"]++
		}
	}
}

// left says that a packet was refused because its number was left out when the replay
// counters were synchronised. Its peer must have sent it before it answered: what it sends
// afterwards is not lost.
func (p *lanes[P]) left(s *lane[P], seq uint64, afterwards bool) bool {
	added := p.scene.skips[saID{s.SPIIn, s.keyIn}]
	if seq > s.skipped {
		return seq <= added // it came after a packet with a number that was added to
	}
	if afterwards {
		p.scene.violate(RulePrice, "%s rejects #%d of SPI %s, which was sent after its peer had skipped to #%d at its request; everything up to #%d is rejected",
			p.who, seq, s.SPIIn, added, s.skipped)
	}
	return true
}

// answersCounters notes that h says to have added what the other end asked for to all that
// it sends. A Child SA that it has no more is not among it, and nothing is sent on that; nor
// is what the other side of a split sends.
func (t *tunnel) answersCounters(h *host) {
	end := t.endOf(h)
	t.answers[end] = append(t.answers[end], t.near.w.now)
}

// countersAnswered is when the end that h faces answered last, as far as h could know at a
// moment.
func (t *tunnel) countersAnswered(h *host, moment time.Duration) (at time.Duration, ok bool) {
	for _, x := range t.answers[1-t.endOf(h)] {
		if x <= moment {
			at, ok = x, true
		}
	}
	return at, ok
}

// endOf is 0 for the gateways of the first pair, 1 for who is on the other side.
func (t *tunnel) endOf(h *host) int {
	if h.pair == t.near.pair {
		return 0
	}
	return 1
}

// carry notes, beside what lanes do, that a gateway has used up what it skips: on a side of a
// split that dies with it, nobody else knows.
func (p *plane) carry(e node.Effect) bool {
	if x, ok := e.(node.Skip); ok && p.d.h.id != 0 {
		for _, b := range x.Bounds {
			if s := p.sas[b.SPIIn]; s != nil && b.Dir == xfrm.Outbound && s.scope.active {
				r := p.d.h.realmOf(s.scope.id)
				r.rule.sends(p.d, r.ledger.record(s.SPIOut, s.keyOut))
			}
		}
	}
	return p.lanes.carry(e)
}
