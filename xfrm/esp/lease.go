package esp

import (
	"math"
	"time"
)

// Unbounded as a bound means that nobody has to be asked.
const Unbounded = math.MaxUint64

const (
	// MinCeilingLead is the ceiling's least lead, in packets.
	MinCeilingLead = 32
	// CeilingLead is the ceiling's lead in time at the SA's own rate.
	CeilingLead = time.Second
	// FenceLead is the same for the fence, as long as answers come in time.
	FenceLead = 10 * time.Millisecond
	// FenceMinRate is the rate in packets/s below which the fence has no lead.
	FenceMinRate = 100

	fenceSample      = 50 * time.Millisecond // over which the fence's rate is measured,
	fenceSampleShort = 5 * time.Millisecond  // or over this when it saw fenceSampleMany packets
	fenceSampleMany  = 50
	fenceIdle        = 20 * time.Millisecond  // without progress, after which the lead is withdrawn
	fenceMaxWiden    = 16                     // times FenceLead, under extreme load
	ceilingSample    = 500 * time.Millisecond // as above, for the ceiling
	leaseGrowth      = 4                      // of the ceiling's lead from one question to the next
	widenFor         = time.Second            // after the last late answer the fence's factor halves
	reaskAfter       = 2 * time.Second        // an unanswered question is put again
)

// Lease decides when a bound (xfrm.Bound) is asked for. Each packet is offered;
// each question that comes back must be carried to whoever answers with Grant, in
// order. Tick must be called about every 10 ms until Settled. It is not safe for
// concurrent use.
type Lease struct {
	fence       bool
	withdrawing bool // a withdrawal to the present bound is unanswered
	late        bool // a packet found the present question unanswered too long

	max   uint64 // highest number that exists
	bound uint64 // nothing above it passes
	used  uint64 // highest that has passed
	asked uint64 // unanswered question for a higher bound; 0: none

	askedAt time.Time
	lead    uint64 // ceiling: packets, as of the last question
	widen   uint64 // fence: factor on the lead while answers are late

	lateAt time.Time

	sampleAt time.Time
	sample   uint64  // packets offered since
	rate     float64 // packets/s in the last whole sample
	movedAt  time.Time
}

// NewCeiling is the lease of an outbound SA. used is the last number sent, max
// the last that may ever be.
func NewCeiling(bound, used, max uint64) Lease {
	return Lease{bound: bound, used: used, max: max, lead: MinCeilingLead}
}

// NewFence is the lease of an inbound SA. used is the highest number delivered.
func NewFence(bound, used, max uint64) Lease {
	return Lease{fence: true, bound: bound, used: used, max: max, widen: 1}
}

// Bound is the ceiling or fence in force.
func (l *Lease) Bound() uint64 { return l.bound }

// Allowed says whether number n may pass.
func (l *Lease) Allowed(n uint64) bool { return n <= l.bound }

// Highest is the highest number that has passed.
func (l *Lease) Highest() uint64 { return l.used }

// Widened is the factor by which the fence's lead exceeds FenceLead because
// answers come late; 1 is normal.
func (l *Lease) Widened() uint64 { return max(l.widen, 1) }

// Offer asks leave for the packet with number n. pass: it may go, now. Otherwise
// it has to wait for a Grant. ask: question is to be put to whoever grants.
func (l *Lease) Offer(now time.Time, n uint64) (pass bool, question uint64, ask bool) {
	l.Count(now)
	return l.Retry(now, n)
}

// Count notes a packet that is not offered yet, because others wait before it.
// Such a packet is offered with Retry later.
func (l *Lease) Count(now time.Time) { l.measure(now, 1) }

// Retry is Offer for a packet that has been offered before.
func (l *Lease) Retry(now time.Time, n uint64) (pass bool, question uint64, ask bool) {
	if n <= l.bound {
		if n > l.used {
			l.used = n
			l.movedAt = now
		}
		question, ask = l.ahead(now)
		return true, question, ask
	}
	if n > l.max {
		return false, 0, false
	}
	if l.asked != 0 {
		// A burst waits for its answer like anything else; only answers that take
		// longer than the lead is worth make it grow.
		if l.fence && !l.late && l.rate >= FenceMinRate && now.Sub(l.askedAt) >= FenceLead {
			l.late, l.lateAt = true, now
			l.widen = min(l.widen*2, fenceMaxWiden)
		}
		return false, 0, false
	}
	if !l.fence {
		n-- // the ceiling's lead is never 0, and includes the packet that waits
	}
	return false, l.ask(now, n), true
}

// ahead asks for the next bound before this one is reached.
func (l *Lease) ahead(now time.Time) (uint64, bool) {
	if l.asked != 0 || l.bound >= l.max {
		return 0, false
	}
	if lead := l.leadNow(); lead == 0 || l.bound-min(l.used, l.bound) > lead/2 {
		return 0, false
	}
	return l.ask(now, l.used), true
}

// ask asks for the lead beyond base.
func (l *Lease) ask(now time.Time, base uint64) uint64 {
	l.lead = l.leadNow()
	l.asked = l.max
	if base < l.max-min(l.lead, l.max) {
		l.asked = base + l.lead
	}
	l.askedAt, l.late = now, false
	return l.asked
}

// leadNow is the lead that the present rate deserves, in packets.
func (l *Lease) leadNow() uint64 {
	if l.fence {
		if l.rate < FenceMinRate {
			return 0
		}
		return uint64(math.Ceil(l.rate*FenceLead.Seconds())) * l.widen
	}
	return max(MinCeilingLead, min(l.lead*leaseGrowth, uint64(l.rate*CeilingLead.Seconds())))
}

// Grant is the answer: from now on bound holds. Afterwards packets that wait may
// be retried.
func (l *Lease) Grant(bound uint64) {
	if l.withdrawing && bound > l.bound && bound != l.asked {
		return // the answer to a question that the withdrawal overtook
	}
	l.withdrawing = false
	l.bound = bound
	if bound >= l.asked {
		l.asked = 0
	}
}

// Skip counts everything up to n as passed.
func (l *Lease) Skip(n uint64) { l.used = max(l.used, n) }

// Tick withdraws a lead that the rate no longer justifies, and repeats a question
// that was never answered. When it returns a question below the former bound,
// nothing above it passes from that moment.
func (l *Lease) Tick(now time.Time) (question uint64, ask bool) {
	l.measure(now, 0)
	if l.asked != 0 {
		if now.Sub(l.askedAt) < reaskAfter {
			return 0, false
		}
		l.askedAt = now
		l.asked = min(l.asked+1, l.max) // not to be confused with the first
		return l.asked, true
	}
	if l.fence && now.Sub(l.movedAt) >= fenceIdle {
		l.widen = 1
	}
	if l.bound == Unbounded || l.bound <= l.used {
		return 0, false
	}
	keep, ok := l.ceilingKeep(now)
	if l.fence {
		keep, ok = l.fenceKeep(now)
	}
	if !ok {
		return 0, false
	}
	l.bound = l.used + keep
	l.withdrawing = true
	return l.bound, true
}

// ceilingKeep says what lead is left to an SA that became slower.
func (l *Lease) ceilingKeep(now time.Time) (uint64, bool) {
	left := l.bound - l.used
	if left <= 2*MinCeilingLead || now.Sub(l.askedAt) < CeilingLead {
		return 0, false
	}
	lead := l.leadNow()
	if left <= 2*lead {
		return 0, false
	}
	l.lead, l.askedAt = lead, now
	return lead, true
}

func (l *Lease) fenceKeep(now time.Time) (uint64, bool) {
	if now.Sub(l.movedAt) >= fenceIdle {
		return 0, true
	}
	lead := l.leadNow()
	return lead, l.bound-l.used > 2*lead
}

// Settled says that Tick has nothing to do until the next packet.
func (l *Lease) Settled() bool {
	if l.bound == Unbounded {
		return true
	}
	left := l.bound - min(l.used, l.bound)
	if l.fence {
		return l.asked == 0 && left == 0
	}
	return l.asked == 0 && left <= 2*MinCeilingLead
}

// measure counts packets and closes a sample: after its full time, or sooner when
// it saw many.
func (l *Lease) measure(now time.Time, packets uint64) {
	if l.sampleAt.IsZero() {
		l.sampleAt = now
	}
	l.sample += packets
	full, many := fenceSample, uint64(fenceSampleMany)
	if !l.fence {
		full, many = ceilingSample, max(many, l.lead/2)
	}
	passed := now.Sub(l.sampleAt)
	if passed < full && (l.sample < many || passed < fenceSampleShort) {
		return
	}
	l.rate = min(float64(l.sample)/passed.Seconds(), 1e9)
	l.sampleAt, l.sample = now, 0
	if l.widen > 1 && now.Sub(l.lateAt) >= widenFor {
		l.widen, l.lateAt = l.widen/2, now
	}
}
