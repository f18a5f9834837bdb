package forward

// reassembly puts one member's messages together again. Its memory is bounded: 16
// messages of at most 64 KiB, the newest. All parts are authentic, and none comes
// twice, when they get here.
type reassembly struct {
	slots [reassemblySlots]partial
	// Incomplete messages that newer ones have displaced.
	abandoned uint64
}

const reassemblySlots = 16

// partial is one message; its number decides its slot.
type partial struct {
	id    uint32
	count uint8 // 0: the slot was never used
	total uint16
	left  int // parts that are missing
	have  [4]uint64
	buf   []byte
	lent  bool // the complete message is being looked at
}

// lent says that the slot of a message still holds one that is being looked at.
func (r *reassembly) lent(id uint32) bool { return r.slots[id%reassemblySlots].lent }

// returned ends all loans.
func (r *reassembly) returned() {
	for i := range r.slots {
		r.slots[i].lent = false
	}
}

// reset forgets everything, as a new session begins; nothing may be lent.
func (r *reassembly) reset() {
	for i := range r.slots {
		r.slots[i].count = 0
	}
}

// add takes one part. It returns the message when it was the last one that was
// missing, on loan until returned. The slot must not be lent. ok is false for a part
// that fits nothing; one that comes too late is no error.
func (r *reassembly) add(f fragment, part []byte) (msg []byte, ok bool) {
	from, to, ok := f.span()
	if !ok || to-from != len(part) {
		return nil, false
	}
	p := &r.slots[f.id%reassemblySlots]
	if p.count == 0 || p.id != f.id {
		if p.count != 0 {
			if int32(f.id-p.id) < 0 {
				return nil, true // displaced already
			}
			if p.left > 0 {
				r.abandoned++
			}
		}
		p.id, p.count, p.total, p.left, p.have = f.id, f.count, f.total, int(f.count), [4]uint64{}
		if cap(p.buf) < int(f.total) {
			p.buf = make([]byte, (int(f.total)+2047)&^2047)
		}
	}
	bit := uint64(1) << (f.index % 64)
	word := &p.have[f.index/64]
	if p.count != f.count || p.total != f.total || *word&bit != 0 {
		return nil, false
	}
	*word |= bit
	copy(p.buf[from:to], part)
	if p.left--; p.left > 0 {
		return nil, true
	}
	p.lent = true
	return p.buf[:p.total], true
}
