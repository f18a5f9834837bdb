package statesync

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
)

// Reservation is how long a forgotten key's range and counter are kept. A key may
// come back from another node as long as anybody there can still hold it: an IKE SA
// lives at most 172,800 s, and a Child SA made at its very end from its keys (whose
// KeyID it inherits) as long again.
const Reservation = 2 * 172_800 * time.Second

// settle is how long a forgotten key that nobody sealed with is kept: the data plane
// may still be finishing a packet under it when the engine forgets it.
const settle = time.Minute

// Ledger is what this process may use of each key: its range of sender IDs, its one
// counter, and what it gave away (architecture, invariant 1). Its methods are called
// from one goroutine; the counters themselves are shared with the data plane.
type Ledger struct {
	rand io.Reader
	keys map[ipsec.KeyID]*holding

	// Forgotten keys in the order of forgetting: first those whose time is not
	// yet known, then those that settle, then those that wait for the end of
	// their reservation. Revived keys are skipped when their turn comes.
	fresh, settling, reserved fifo[grave]
}

type holding struct {
	rng       ipsec.SenderRange // ours, without what was given away
	iv        *ipsec.IVCounter
	granted   []grant
	adopted   bool // the key came from another process
	forgotten bool
	deaths    uint32 // how often it was forgotten; tells a grave of an earlier life
}

type grant struct {
	to  cluster.ProcessID
	rng ipsec.SenderRange
}

type grave struct {
	key   ipsec.KeyID
	death uint32
	at    time.Time
}

// NewLedger makes the ledger of a process that holds no key yet; rand makes KeyIDs
// and must never fail.
func NewLedger(rand io.Reader) *Ledger {
	return &Ledger{rand: rand, keys: make(map[ipsec.KeyID]*holding)}
}

// New registers a secret that this process just made, with the full range.
func (l *Ledger) New() ipsec.KeyID {
	for {
		var b [8]byte
		if _, err := io.ReadFull(l.rand, b[:]); err != nil {
			panic(fmt.Sprintf("statesync: no randomness for a KeyID: %v", err))
		}
		k := ipsec.KeyID(binary.BigEndian.Uint64(b[:]))
		if _, taken := l.keys[k]; k == 0 || taken {
			continue
		}
		l.keys[k] = newHolding(ipsec.FullSenderRange, false)
		return k
	}
}

func newHolding(r ipsec.SenderRange, adopted bool) *holding {
	return &holding{rng: r, iv: ipsec.NewIVCounter(r.Lo), adopted: adopted}
}

// IV is this process's counter under the key; nil when no range is held. A
// forgotten key that is still reserved comes back with the counter it had.
func (l *Ledger) IV(k ipsec.KeyID) *ipsec.IVCounter {
	h := l.keys[k]
	if h == nil {
		return nil
	}
	h.forgotten = false
	return h.iv
}

// Small says that the key's range here has become small, or that none is held:
// rekey early.
func (l *Ledger) Small(k ipsec.KeyID) bool {
	h := l.keys[k]
	return h == nil || h.rng.Size() < ipsec.SmallSenderRange
}

// Forget says that the key is gone here. Its range and its counter stay reserved,
// because the key may come back from another node; a key that no other process
// ever had cannot.
func (l *Ledger) Forget(k ipsec.KeyID) {
	h := l.keys[k]
	if h == nil || h.forgotten {
		return
	}
	if !h.adopted && len(h.granted) == 0 {
		delete(l.keys, k)
		return
	}
	h.forgotten = true
	h.deaths++
	l.fresh.push(grave{key: k, death: h.deaths})
}

// Grant gives half of our range to a process that shall receive the key: taken out
// of ours now, and the same for the same process ever after. ok is false when we
// hold no range or have nothing left to give.
func (l *Ledger) Grant(k ipsec.KeyID, to cluster.ProcessID) (r ipsec.SenderRange, ok bool) {
	h := l.keys[k]
	if h == nil {
		return r, false
	}
	for _, g := range h.granted {
		if g.to == to {
			return g.rng, true
		}
	}
	keep, give, ok := h.rng.Split()
	if !ok {
		return r, false
	}
	h.rng = keep
	h.granted = append(h.granted, grant{to, give})
	return give, true
}

// Adopt takes over a range that another process gave us. Only the first one for a
// key counts: whatever comes later stays unused.
func (l *Ledger) Adopt(k ipsec.KeyID, r ipsec.SenderRange) {
	if r.Lo >= r.Hi || r.Hi > ipsec.FullSenderRange.Hi {
		return
	}
	if h := l.keys[k]; h != nil {
		h.forgotten = false
		return
	}
	l.keys[k] = newHolding(r, true)
}

// Expire drops what needs no reservation any more. The Journal and the Replica call
// it; it costs nothing when nothing is due.
func (l *Ledger) Expire(now time.Time) {
	for l.fresh.len() > 0 {
		g := l.fresh.pop()
		g.at = now
		l.settling.push(g)
	}
	for l.settling.len() > 0 && now.Sub(l.settling.first().at) >= settle {
		g := l.settling.pop()
		switch h := l.dead(g); {
		case h == nil:
		case h.iv.Used() == 0 && len(h.granted) == 0:
			delete(l.keys, g.key)
		default:
			l.reserved.push(g)
		}
	}
	for l.reserved.len() > 0 && now.Sub(l.reserved.first().at) >= Reservation {
		g := l.reserved.pop()
		if l.dead(g) != nil {
			delete(l.keys, g.key)
		}
	}
}

// dead is what lies in the grave, nil when it was revived since.
func (l *Ledger) dead(g grave) *holding {
	if h := l.keys[g.key]; h != nil && h.forgotten && h.deaths == g.death {
		return h
	}
	return nil
}

// Held counts the keys with a range here: those in use and those only reserved.
func (l *Ledger) Held() (live, reserved int) {
	for _, h := range l.keys {
		if h.forgotten {
			reserved++
		}
	}
	return len(l.keys) - reserved, reserved
}
