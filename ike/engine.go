package ike

import (
	"cmp"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// Engine is the IKEv2 engine. It is owned by one goroutine; every input takes the
// time, and Poll is drained before the next input.
type Engine struct {
	o   Options
	cfg *config.Config
	now time.Time // of the event at hand

	vendorID []byte // what we say; tests speak as others

	active bool // owner of its IKE SAs; else it only applies records
	behind bool // see Behind
	died   bool // see OwnerDied
	away   bool // peers are sent elsewhere; see redirect.go
	tx     tx
	out    []Effect // ready for Poll
	outAt  int
	held   []heldBatch // in the order of their tickets
	last   Ticket      // latest ticket given out
	done   Ticket      // latest ticket committed

	sas           map[ipsec.IKESPI]*ikeSA // by our SPI
	inits         map[initKey]*ikeSA      // half-open responders by their IKE_SA_INIT request
	children      map[ipsec.ESPSPI]*childSA
	tunnels       map[string]*tunnel
	shelf         map[ipsec.IKESPI]*ikeSA // to another engine, by our SPI
	shelfChildren map[ipsec.ESPSPI]*ikeSA
	timers        timerHeap
	keyRefs       map[ipsec.KeyID]int
	peers         map[uint64]*ikeSA         // those of a peer, by its identity's hash: see peers.go
	asking        map[ipsec.IKESPI]struct{} // those that may have a request outstanding
	lowest        map[string]int            // index below which no instance of a dialup phase 1 is free
	seq           uint64                    // numbers IKE SAs and tunnels in the order of their making

	halfOpen int
	// halfOpenParts are the bytes of fragments that half-open IKE SAs keep.
	halfOpenParts int
	perSource     map[netip.Addr]int
	unauth        limiter // errors for what nobody authenticated
	groups        limiter // INVALID_KE_PAYLOAD, which peers in good faith need
	lines         map[string]*lineLimit
	copying       map[ipsec.IKESPI]bool
	counters      Counters
	noPolicyAt    map[string]time.Time

	credentials *credentials // see creds
	slow        slowed       // see eap_slow.go
	refusals    limiter      // log lines of EAP that failed
	leases      leases
}

// Counters count what leaves no other trace.
type Counters struct {
	Malformed      uint64 // not a message of ours to answer
	UnknownSPI     uint64 // for an IKE SA that does not exist here
	AuthFailed     uint64 // SK payloads that did not open
	OutsideWindow  uint64 // message IDs that were neither expected nor the last
	Duplicates     uint64 // answered from the cache, to the bit
	CookiesSent    uint64
	HalfOpenDenied uint64 // beyond the limits of half-open IKE SAs
	AuthRefused    uint64 // peers that failed authentication
	RateLimited    uint64 // unauthenticated replies suppressed
	Retransmitted  uint64
	// RefusalsUnsaid are those of AuthRefused whose log line was one too many.
	RefusalsUnsaid uint64
	// FragmentsDropped are fragments of messages beyond the limits of reassembly.
	FragmentsDropped uint64
	// Tokens of quick crash detection (RFC 6290): given to peers, believed, and wrong.
	TokensSent, TokensTaken, TokensWrong uint64
}

// Add sums the counters of several engines.
func (c *Counters) Add(o Counters) {
	c.Malformed += o.Malformed
	c.UnknownSPI += o.UnknownSPI
	c.AuthFailed += o.AuthFailed
	c.OutsideWindow += o.OutsideWindow
	c.Duplicates += o.Duplicates
	c.CookiesSent += o.CookiesSent
	c.HalfOpenDenied += o.HalfOpenDenied
	c.AuthRefused += o.AuthRefused
	c.RateLimited += o.RateLimited
	c.Retransmitted += o.Retransmitted
	c.FragmentsDropped += o.FragmentsDropped
	c.RefusalsUnsaid += o.RefusalsUnsaid
	c.TokensSent += o.TokensSent
	c.TokensTaken += o.TokensTaken
	c.TokensWrong += o.TokensWrong
}

// New makes a suspended engine without any state.
func New(o Options) *Engine {
	if o.RetransmitFirst <= 0 {
		o.RetransmitFirst = time.Second
	}
	if o.HalfOpenLimit <= 0 {
		o.HalfOpenLimit = 1000
	}
	e := &Engine{
		o: o, cfg: o.Config, vendorID: ownVendorID,
		sas:           map[ipsec.IKESPI]*ikeSA{},
		inits:         map[initKey]*ikeSA{},
		children:      map[ipsec.ESPSPI]*childSA{},
		shelf:         map[ipsec.IKESPI]*ikeSA{},
		shelfChildren: map[ipsec.ESPSPI]*ikeSA{},
		tunnels:       map[string]*tunnel{},
		keyRefs:       map[ipsec.KeyID]int{},
		peers:         map[uint64]*ikeSA{},
		asking:        map[ipsec.IKESPI]struct{}{},
		lowest:        map[string]int{},
		perSource:     map[netip.Addr]int{},
		noPolicyAt:    map[string]time.Time{},
		lines:         map[string]*lineLimit{},
		leases:        newLeases(),
		unauth:        limiter{rate: 20, burst: 40},
		groups:        limiter{rate: 500, burst: 1000},
		refusals:      limiter{rate: 2, burst: 20},
	}
	if e.cfg == nil {
		e.cfg = &config.Config{}
	}
	return e
}

// tx is one event: what it changed and what it wants done.
type tx struct {
	open  bool
	dirty []*ikeSA // in the order of their first change
	gone  []Entry  // keys that no IKE SA has any more
	held  []Effect // rest on the record
	free  []Effect // rest on nothing

	unused []ipsec.KeyID // whose last reference went
}

// heldBatch waits for its ticket.
type heldBatch struct {
	ticket  Ticket
	effects []heldEffect
	sas     []*ikeSA
}

// heldEffect belongs to the IKE SA that it may not outlive, if any.
type heldEffect struct {
	Effect
	sa *ikeSA
}

// begin opens the transaction of one event; its result ends it.
func (e *Engine) begin(now time.Time) func() {
	if e.tx.open {
		return func() {} // a command that runs inside another event
	}
	e.now = now
	e.tx = tx{open: true}
	return e.commit
}

// commit ends the event: one record with all that changed, and everything that
// rests on it held until the record is committed.
func (e *Engine) commit() {
	e.forgetUnused()
	t := e.tx
	e.tx = tx{}
	if len(t.dirty) == 0 && len(t.gone) == 0 {
		for _, x := range t.held {
			e.push(unwrap(x))
		}
		for _, x := range t.free {
			e.push(x)
		}
		return
	}
	e.last++
	b := heldBatch{ticket: e.last, sas: t.dirty}
	entries := t.gone
	for _, sa := range t.dirty {
		sa.dirty = false
		sa.ticket = e.last
		if sa.answered {
			sa.answered, sa.answerTicket = false, e.last
		}
		if sa.state == stateGone {
			if sa.goneAt == 0 {
				sa.goneAt = e.last
			}
			entries = append(entries, Entry{SPIs: sa.spis, PeerDeleted: sa.peerDeleted})
			continue
		}
		if sa.req != nil && sa.req.ticket == 0 {
			sa.req.ticket = e.last
		}
		entries = append(entries, e.entry(sa))
		sa.rest()
	}
	e.push(Persist{Ticket: e.last, Record: Record{Entries: entries}})
	for _, x := range t.free {
		e.push(x)
	}
	for _, x := range t.held {
		h, ok := x.(heldEffect)
		if !ok {
			h = heldEffect{Effect: x}
		}
		b.effects = append(b.effects, h)
	}
	e.held = append(e.held, b)
}

func unwrap(x Effect) Effect {
	if h, ok := x.(heldEffect); ok {
		return h.Effect
	}
	return x
}

// Committed says that the records of all tickets up to t are with the whole sync
// set: what rests on them happens now.
func (e *Engine) Committed(now time.Time, t Ticket) {
	e.now = now
	if t > e.last {
		t = e.last
	}
	if t > e.done {
		e.done = t
	}
	e.leases.committed(e.done)
	n := 0
	for n < len(e.held) && e.held[n].ticket <= t {
		n++
	}
	ready := e.held[:n:n]
	e.held = e.held[n:]
	for _, b := range ready {
		for _, h := range b.effects {
			// An IKE SA that a later event ended needs nothing more of this one.
			if h.sa != nil && h.sa.goneAt > b.ticket {
				continue
			}
			e.push(h.Effect)
		}
		for _, sa := range b.sas {
			if sa.req != nil && sa.req.ticket <= e.done && !sa.req.sent {
				sa.req.started(now)
			}
			e.arm(sa)
		}
	}
	if len(e.held) == 0 {
		e.held = nil
	}
}

func (e *Engine) push(x Effect) { e.out = append(e.out, x) }

// Poll returns the next effect, in order.
func (e *Engine) Poll() (Effect, bool) {
	if e.outAt == len(e.out) {
		e.out, e.outAt = e.out[:0], 0
		return nil, false
	}
	x := e.out[e.outAt]
	e.out[e.outAt] = nil
	e.outAt++
	return x, true
}

// touch says that the IKE SA's persistent state changes in this event.
func (e *Engine) touch(sa *ikeSA) {
	if !sa.dirty {
		sa.dirty = true
		e.tx.dirty = append(e.tx.dirty, sa)
	}
}

// hold emits an effect that rests on the IKE SA's record.
func (e *Engine) hold(sa *ikeSA, x Effect) { e.tx.held = append(e.tx.held, heldEffect{x, sa}) }

// free emits an effect that rests on nothing.
func (e *Engine) free(x Effect) { e.tx.free = append(e.tx.free, x) }

// Counters returns a copy of the counters.
func (e *Engine) Counters() Counters { return e.counters }

// random returns n bytes. Without randomness nothing here is safe, so a failing
// reader ends the process.
func (e *Engine) random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(e.o.Rand, b); err != nil {
		panic("ike: no randomness: " + err.Error())
	}
	return b
}

// randomSpan is uniform in [0, max).
func (e *Engine) randomSpan(max time.Duration) time.Duration {
	if max <= 0 {
		return 0
	}
	b := e.random(8)
	var v uint64
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return time.Duration(v % uint64(max))
}

func (e *Engine) log(level slog.Level, message string, attrs ...slog.Attr) {
	if e.logs(level) {
		e.free(Log{Level: level, Message: message, Attrs: attrs})
	}
}

func (e *Engine) logs(level slog.Level) bool { return e.o.Logs == nil || e.o.Logs(level) }

// sorted lists the IKE SAs in the order of their making.
func (e *Engine) sorted() []*ikeSA { return inOrder(e.sas) }

func inOrder(sas map[ipsec.IKESPI]*ikeSA) []*ikeSA {
	out := make([]*ikeSA, 0, len(sas))
	for _, sa := range sas {
		out = append(out, sa)
	}
	slices.SortFunc(out, func(a, b *ikeSA) int { return cmp.Compare(a.seq, b.seq) })
	return out
}

// sortedTunnels lists the tunnels in the order of their making.
func (e *Engine) sortedTunnels() []*tunnel {
	out := make([]*tunnel, 0, len(e.tunnels))
	for _, t := range e.tunnels {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *tunnel) int { return cmp.Compare(a.seq, b.seq) })
	return out
}

// refKey and unrefKey count who uses a KeyID: an IKE SA and the Child SA of its
// IKE_AUTH share one.
func (e *Engine) refKey(id ipsec.KeyID) {
	if id != 0 {
		e.keyRefs[id]++
	}
}

func (e *Engine) unrefKey(id ipsec.KeyID) {
	if id == 0 {
		return
	}
	if e.keyRefs[id]--; e.keyRefs[id] <= 0 {
		delete(e.keyRefs, id)
		e.tx.unused = append(e.tx.unused, id)
		if !e.tx.open {
			e.forgetUnused()
		}
	}
}

// forgetUnused lets go of the keys that nobody uses at the end of an event: within
// it a key may pass from one IKE SA to the next.
func (e *Engine) forgetUnused() {
	ids := e.tx.unused
	e.tx.unused = nil
	for _, id := range ids {
		if e.keyRefs[id] == 0 && e.o.Nonces != nil {
			e.o.Nonces.Forget(id)
		}
	}
}

func (e *Engine) newKeyID() ipsec.KeyID {
	if e.o.Nonces == nil {
		return 0
	}
	return e.o.Nonces.New()
}

// limiter is a token bucket.
type limiter struct {
	rate, burst float64 // a second
	tokens      float64
	at          time.Time
}

func (l *limiter) allow(now time.Time) bool {
	if l.at.IsZero() {
		l.tokens = l.burst
	} else if d := now.Sub(l.at); d > 0 {
		l.tokens = min(l.burst, l.tokens+l.rate*d.Seconds())
	}
	l.at = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
