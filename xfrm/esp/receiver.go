package esp

import "time"

// Receiver keeps the replay window and the fence of one inbound SA, across the
// activations of the scope that the SA moves with. It is not safe for concurrent
// use.
//
// A packet's way: Activate with the scope's activation number; Inbound.Open with
// Window; then Offer. What does not pass is authentic and waits for a Grant, to be
// offered again with Retry. Each question is carried to whoever grants, in order.
//
// Invariants: a packet that an earlier owner may have delivered is delivered by
// nobody again, since each activation rejects everything up to the recorded fence,
// or goes on with the exact window of a planned handover when nobody was granted
// more since; nothing is delivered above the fence in force. Without replay
// detection sequence numbers prove nothing, and no fence holds.
type Receiver struct {
	gen   uint64 // activation that win and lease belong to
	last  uint64 // highest number that exists
	exact uint64 // activation for which win was imported; 0: none
	win   Window
	lease Lease
}

// NewReceiver is an SA that has received nothing in activation gen. fence is the
// bound that holds; if it was granted to somebody else, Activate with another
// number comes before the first packet. window is the replay window's size in
// packets, 0 for no replay detection; last is the highest sequence number that the
// peer may ever send (MaxSequence).
func NewReceiver(gen, fence uint64, window uint32, last uint64) Receiver {
	return Receiver{gen: gen, last: last, win: NewWindow(window), lease: NewFence(fence, 0, last)}
}

// Activate brings the SA to the scope's activation gen. fresh: this one is new, and
// packets that waited in another must be dropped. A new activation takes everything
// up to the recorded fence for replays; unless an exact window was imported for it
// and no higher fence recorded since. An unbounded fence says nothing about what was
// delivered: the window stays as it is.
func (r *Receiver) Activate(gen uint64) (fresh bool) {
	if r.gen == gen {
		return false
	}
	r.resume(gen)
	return true
}

func (r *Receiver) resume(gen uint64) {
	bound := r.lease.Bound()
	if r.exact != gen && bound != Unbounded {
		r.win.Reject(bound)
	}
	r.gen, r.exact = gen, 0
	r.lease = NewFence(bound, r.win.Top(), r.last)
}

// Window is the replay window, for Inbound.Open.
func (r *Receiver) Window() *Window { return &r.win }

// Offer asks leave to deliver the packet with number seq, which Inbound.Open has
// accepted. pass: it may be delivered, now. Otherwise it has to wait for a Grant.
// ask: question is to be put to whoever grants.
func (r *Receiver) Offer(now time.Time, seq uint64) (pass bool, question uint64, ask bool) {
	if r.win.size == 0 {
		return true, 0, false
	}
	return r.lease.Offer(now, seq)
}

// Retry is Offer for a packet that was offered before.
func (r *Receiver) Retry(now time.Time, seq uint64) (pass bool, question uint64, ask bool) {
	if r.win.size == 0 {
		return true, 0, false
	}
	return r.lease.Retry(now, seq)
}

// Record notes, while the scope is not active here, what its owner may deliver. An
// imported window does not outlive a higher fence: somebody has gone on since.
func (r *Receiver) Record(fence uint64) {
	if fence > r.lease.Bound() {
		r.exact = 0
	}
	r.lease = NewFence(fence, r.win.Top(), r.last)
}

// Skip rejects everything up to n from now on, in the activation that is under way. What
// waits was accepted before.
func (r *Receiver) Skip(n uint64) {
	r.win.Reject(n)
	r.lease.Skip(n)
}

// Grant is the answer to a question, in the activation that it was asked in.
// Afterwards packets that wait may be retried.
func (r *Receiver) Grant(fence uint64) { r.lease.Grant(fence) }

// Unbind delivers without a fence from now on, what waits with the next Retry: nobody else
// has the SA any more, or will. The window goes on.
func (r *Receiver) Unbind() { r.lease = NewFence(Unbounded, r.win.Top(), r.last) }

// Tick is due about every 10 ms until Settled. It withdraws a lead that the rate no
// longer justifies and repeats a question that was never answered. When it returns
// a question below the former bound, nothing above it passes from that moment.
func (r *Receiver) Tick(now time.Time) (question uint64, ask bool) {
	if r.win.size == 0 {
		return 0, false
	}
	return r.lease.Tick(now)
}

// Settled says that Tick has nothing to do until the next packet or Grant.
func (r *Receiver) Settled() bool { return r.win.size == 0 || r.lease.Settled() }

// Forget takes back the acceptance of a packet that is authentic but was never
// delivered, before Export: the next owner shall deliver it.
func (r *Receiver) Forget(seq uint64) { r.win.Forget(seq) }

// Export returns the exact window, as Window.Export does. It is what another owner
// may import after Activate with the scope's last activation, after Forget of all
// that waits, and once nothing more is delivered.
func (r *Receiver) Export() (top uint64, accepted []uint64) { return r.win.Export() }

// Import takes over another owner's exact window, before the activation gen that it
// holds for, and for no later one: the SA may not have noticed gen, without a packet in
// it, and others may have gone on since.
func (r *Receiver) Import(top uint64, accepted []uint64, gen uint64) {
	r.win.Import(top, accepted)
	r.exact = gen
}

// Bound is the fence in force.
func (r *Receiver) Bound() uint64 { return r.lease.Bound() }

// Widened is the factor by which the fence's lead exceeds FenceLead because answers
// come late; 1 is normal.
func (r *Receiver) Widened() uint64 { return r.lease.Widened() }

// Generation is the activation that the SA was last brought to.
func (r *Receiver) Generation() uint64 { return r.gen }
