package sim

import "tandem/xfrm"

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
			s.skipped = max(s.skipped, b.N)
			p.scene.Result.States["replay counters synchronised"]++
		}
	}
}

// left says that a packet was refused because its number was left out when the replay
// counters were synchronised. Its peer must have sent it before it added to them: what it
// sends after its answer is not lost.
func (p *lanes[P]) left(s *lane[P], seq uint64) bool {
	added := p.scene.skips[saID{s.SPIIn, s.keyIn}]
	if seq > s.skipped {
		return seq <= added // it came after a packet with a number that was added to
	}
	if seq > added {
		p.scene.violate(RulePrice, "%s rejects #%d of SPI %s, which was sent after its peer had skipped to #%d at its request; everything up to #%d is rejected",
			p.who, seq, s.SPIIn, added, s.skipped)
	}
	return true
}
