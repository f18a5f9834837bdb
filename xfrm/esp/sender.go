package esp

import "time"

// Sender numbers the packets of one outbound SA, across the activations of the
// scope that the SA moves with. It is not safe for concurrent use.
//
// A packet's way: Activate with the scope's activation number; Offer, or Count
// when others wait before it; and once its number has passed and the packet is
// sealed, Sent. What does not pass waits, in order, for a Grant and is then
// offered with Retry. Each question is carried to whoever grants, in order.
//
// Invariants: a number that may have been used by an earlier owner is used again
// by nobody, since each activation goes on above the recorded ceiling, or from the
// exact number of a planned handover when nobody was granted more since; no number
// passes above the ceiling in force.
type Sender struct {
	gen   uint64 // activation that seq and lease belong to
	seq   uint64 // last used
	last  uint64 // highest that exists
	exact uint64 // activation for which seq was imported; 0: none
	lease Lease
}

// NewSender is an SA that has sent nothing in activation gen. ceiling is the bound
// that holds; if it was granted to somebody else, Activate with another number
// comes before the first packet. last is the highest sequence number that the SA
// may ever send (MaxSequence).
func NewSender(gen, ceiling, last uint64) Sender {
	return Sender{gen: gen, last: last, lease: NewCeiling(ceiling, 0, last)}
}

// Activate brings the SA to the scope's activation gen. fresh: this one is new, and
// packets that waited in another must be dropped. A new activation goes on above
// the recorded ceiling, so its first packet waits for a Grant; or, when an exact
// number was imported for it and no higher ceiling recorded since, right after that
// number. An unbounded ceiling says nothing about what was used: the SA goes on
// where it stood.
func (s *Sender) Activate(gen uint64) (fresh bool) {
	if s.gen == gen {
		return false
	}
	s.resume(gen)
	return true
}

func (s *Sender) resume(gen uint64) {
	bound := s.lease.Bound()
	if s.exact != gen && bound != Unbounded {
		s.seq = max(s.seq, bound)
	}
	s.gen, s.exact = gen, 0
	s.lease = NewCeiling(bound, s.seq, s.last)
}

// Offer asks leave to use the next number, seq, for a packet. pass: it may be used,
// now. Otherwise the packet has to wait for a Grant; after the last number (see
// Exhausted) none will help. ask: question is to be put to whoever grants.
func (s *Sender) Offer(now time.Time) (seq uint64, pass bool, question uint64, ask bool) {
	if s.seq >= s.last {
		return 0, false, 0, false
	}
	seq = s.seq + 1
	pass, question, ask = s.lease.Offer(now, seq)
	return seq, pass, question, ask
}

// Retry is Offer for a packet that was offered or counted before.
func (s *Sender) Retry(now time.Time) (seq uint64, pass bool, question uint64, ask bool) {
	if s.seq >= s.last {
		return 0, false, 0, false
	}
	seq = s.seq + 1
	pass, question, ask = s.lease.Retry(now, seq)
	return seq, pass, question, ask
}

// Count notes a packet that is not offered yet, because others wait before it.
func (s *Sender) Count(now time.Time) { s.lease.Count(now) }

// Sent says that the number that passed was used. A packet that could not be
// sealed leaves its number to the next one.
func (s *Sender) Sent() { s.seq++ }

// Record notes, while the scope is not active here, what its owner may use. An
// imported number does not outlive a higher ceiling: somebody has gone on since.
func (s *Sender) Record(ceiling uint64) {
	if ceiling > s.lease.Bound() {
		s.exact = 0
	}
	s.lease = NewCeiling(ceiling, s.seq, s.last)
}

// Skip uses up the numbers to n, in the activation that is under way: the next packet lies
// above them, and above whatever bound was asked for up to then.
func (s *Sender) Skip(n uint64) {
	s.seq = max(s.seq, min(n, s.last))
	s.lease.Skip(s.seq)
}

// Grant is the answer to a question, in the activation that it was asked in.
// Afterwards packets that wait may be retried.
func (s *Sender) Grant(ceiling uint64) { s.lease.Grant(ceiling) }

// Tick is due about every 10 ms until Settled. It withdraws a lead that the rate no
// longer justifies and repeats a question that was never answered.
func (s *Sender) Tick(now time.Time) (question uint64, ask bool) { return s.lease.Tick(now) }

// Settled says that Tick has nothing to do until the next packet or Grant.
func (s *Sender) Settled() bool { return s.lease.Settled() }

// Import takes over the exact number that another owner sent last, before the
// activation gen that it holds for, and for no later one: the SA may not have noticed
// gen, without a packet in it, and others may have gone on since.
func (s *Sender) Import(seq, gen uint64) { s.seq, s.exact = seq, gen }

// Seq is the last number used, or skipped by an activation. It is exact, to be
// imported elsewhere, after Activate with the scope's last activation and once
// nothing more is sent.
func (s *Sender) Seq() uint64 { return s.seq }

// Bound is the ceiling in force.
func (s *Sender) Bound() uint64 { return s.lease.Bound() }

// Generation is the activation that the SA was last brought to.
func (s *Sender) Generation() uint64 { return s.gen }

// Exhausted says that the last sequence number was used (RFC 4303 §3.3.3).
func (s *Sender) Exhausted() bool { return s.seq >= s.last }
