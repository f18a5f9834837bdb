package sim

import "time"

// price is what takeovers cost one inbound direction of a Child SA: packets that its
// peer sent after the takeover, above everything delivered before, and that the
// survivor took for replays. The fence's lead bounds them; an SA that was idle has
// none.
type price struct {
	since time.Duration // of the takeover
	base  uint64        // highest delivered before
	limit int           // -1: there is no telling
	lost  int
	fresh bool // something was delivered since

	last    time.Duration // delivery
	peak    int           // packets of the busiest slot, lately
	slot    int           // packets of this slot
	slotEnd time.Duration
	peakAt  time.Duration
}

const (
	// priceIdle is after how long without a packet the fence must have been withdrawn
	// to what was delivered: 20 ms, a tick, and an acknowledgement; and the time that a
	// loss may take to be noticed.
	priceIdle = 2 * time.Second
	priceSlot = 5 * time.Millisecond // a rate is measured over this at least
	// priceWidest: the widest lead is 16 times 10 ms of the rate, which a sample across
	// two slots may see doubled.
	priceWidest = 16 * 2 * int(10*time.Millisecond/priceSlot)
)

// count notes a delivery.
func (p *price) count(now time.Duration) {
	p.fresh, p.last = true, now
	if now >= p.slotEnd {
		p.slot, p.slotEnd = 0, now+priceSlot
	}
	p.slot++
	if p.slot > p.peak || now-p.peakAt > priceIdle {
		p.peak, p.peakAt = p.slot, now
	}
}

// prices begins to count: a gateway's data plane was activated.
func (r *rules) prices() {
	w := r.w
	telling := w.now-r.disturbedAt > 10*time.Second && r.pair.linksWhole() && w.now >= r.pair.quietFaults()
	for _, x := range r.realm.ledger.list {
		p := &x.price
		if p.since > 0 && !p.fresh && p.limit >= 0 && telling && !r.excused(x) {
			continue // what the takeover before may cost is not paid yet
		}
		p.since, p.base, p.lost, p.fresh, p.limit = w.now, x.maxGot, 0, false, -1
		switch {
		case !telling || r.excused(x):
		case w.now-p.last >= priceIdle:
			p.limit = 0
		default:
			p.limit = priceWidest * p.peak
		}
	}
}

// pays: a gateway refuses an authentic packet that was not delivered before.
func (r *rules) pays(d *daemon, s *sa, x *record, pkt *sealed) {
	p := &x.price
	if p.since == 0 || p.limit < 0 || r.excused(x) || pkt.seq <= p.base || pkt.inner.at < p.since {
		return
	}
	if s.waits(pkt.seq) {
		return // the same packet
	}
	if p.lost++; p.lost > p.limit {
		r.w.violate(RulePrice, "%s rejects #%d of SPI %s, %d packets by now, after the takeover at %v; #%d was the highest delivered before, and the fence can have been at most %d above",
			d.h.name, pkt.seq, s.SPIIn, p.lost, p.since, p.base, p.limit)
	}
}
