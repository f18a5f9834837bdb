package esp

// Window is the replay window of one inbound SA (RFC 4303 §3.4.3). The bitmap is
// a ring of words, so that advancing clears whole words (RFC 6479), and is made
// when the first packet is accepted.
type Window struct {
	size  uint64 // packets; 0: no replay detection
	top   uint64 // highest accepted
	floor uint64 // everything up to here counts as accepted
	bits  []uint64
}

// NewWindow has room for size packets, rounded up to a multiple of 64. With 0
// every packet passes.
func NewWindow(size uint32) Window {
	return Window{size: (uint64(size) + 63) &^ 63}
}

// Top is the highest sequence number accepted, or skipped by Reject.
func (w *Window) Top() uint64 { return w.top }

// Size is the number of packets that the window covers.
func (w *Window) Size() uint64 { return w.size }

// Infer finds the high half of an extended sequence number from its low half
// (RFC 4303 appendix A2.2). ok is false for a number before the first.
func (w *Window) Infer(low uint32) (seq uint64, ok bool) {
	size := w.size
	if size == 0 {
		size = 1 << 31 // nothing is known: nearest to the top
	}
	high, bottom := w.top>>32, uint32(w.top)-uint32(size)+1
	if uint64(uint32(w.top)) >= size-1 { // the window lies in one subspace
		if low < bottom {
			high++
		}
	} else if low >= bottom { // it spans two, and this is in the lower
		if high == 0 {
			return 0, false
		}
		high--
	}
	if high > 1<<32-1 {
		return 0, false
	}
	return high<<32 | uint64(low), true
}

func (w *Window) word(seq uint64) *uint64 { return &w.bits[seq>>6%uint64(len(w.bits))] }

// Check says whether seq is new. It changes nothing.
func (w *Window) Check(seq uint64) bool {
	switch {
	case w.size == 0:
		return true
	case seq <= w.floor: // also 0, which nobody sends
		return false
	case seq > w.top:
		return true
	case w.top-seq >= w.size:
		return false
	}
	return w.bits == nil || *w.word(seq)>>(seq&63)&1 == 0
}

// Accept marks a sequence number for which Check was true.
func (w *Window) Accept(seq uint64) {
	if w.size == 0 {
		w.top = max(w.top, seq)
		return
	}
	if w.bits == nil {
		w.bits = make([]uint64, w.size/64+1)
	}
	if seq > w.top {
		first, last := w.top>>6+1, seq>>6
		if last-first+1 > uint64(len(w.bits)) && last >= first {
			clear(w.bits)
		} else {
			for i := first; i <= last; i++ {
				w.bits[i%uint64(len(w.bits))] = 0
			}
		}
		w.top = seq
	}
	*w.word(seq) |= 1 << (seq & 63)
}

// Forget takes back the acceptance of a packet that was never delivered.
func (w *Window) Forget(seq uint64) {
	if w.bits != nil && seq > w.floor && seq <= w.top && w.top-seq < w.size {
		*w.word(seq) &^= 1 << (seq & 63)
	}
}

// Reject makes everything up to seq a replay.
func (w *Window) Reject(seq uint64) {
	w.floor = max(w.floor, seq)
	if w.size != 0 && seq > w.top {
		w.top = seq
		w.bits = nil
	}
}

// Export returns the accepted packets: bit i of word j stands for top-(64*j+i).
// What lies below the window counts as accepted.
func (w *Window) Export() (top uint64, accepted []uint64) {
	accepted = make([]uint64, w.size/64)
	for i := range w.size {
		if i >= w.top || !w.Check(w.top-i) {
			accepted[i/64] |= 1 << (i % 64)
		}
	}
	return w.top, accepted
}

// Import replaces the content by an exported one. What it does not cover counts
// as accepted.
func (w *Window) Import(top uint64, accepted []uint64) {
	w.top, w.floor, w.bits = top, 0, nil
	if w.size == 0 {
		return
	}
	w.bits = make([]uint64, w.size/64+1)
	n := min(uint64(len(accepted))*64, w.size)
	if top > n {
		w.floor = top - n
	}
	for i := range min(n, top) {
		if accepted[i/64]>>(i%64)&1 == 1 {
			*w.word(top - i) |= 1 << ((top - i) & 63)
		}
	}
}
