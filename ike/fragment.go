package ike

import (
	"errors"
	"log/slog"
	"time"

	"tandem/ike/message"
)

// IKE fragmentation (RFC 7383). A message that was sent in fragments is kept and
// replicated as one: its datagrams one after the other, each of which says in its header
// how long it is. So whoever repeats it does so to the bit, and compares it as any other.
//
// Fragments that have arrived are this process's own. After a takeover the peer sends
// all of them again, as after any loss (§2.6).

// Bounds of one message under reassembly; there is at most one for each direction of an
// IKE SA, since windows are 1.
const (
	maxFragments     = 64
	maxReassembled   = 32 << 10 // bytes
	reassemblySpan   = 30 * time.Second
	maxHalfOpenParts = 16 << 20 // bytes, of all half-open IKE SAs: nobody has authenticated these
)

// defaultMTU is FortiOS's fragmentation-mtu, where phase 1 is not configured any more.
const defaultMTU = 1200

const (
	ipv4HeaderLen   = 20
	ipv6HeaderLen   = 40
	udpHeaderLen    = 8
	nonESPMarkerLen = 4
)

// messageLimit is the length in bytes up to which an IKE message travels in one datagram.
func (sa *ikeSA) messageLimit() int {
	n := defaultMTU
	if sa.p1 != nil && sa.p1.FragmentationMTU > 0 {
		n = sa.p1.FragmentationMTU
	}
	if sa.nonESP {
		n -= nonESPMarkerLen
	}
	if sa.local.Addr().Unmap().Is4() {
		return n - udpHeaderLen - ipv4HeaderLen
	}
	return n - udpHeaderLen - ipv6HeaderLen
}

// sealParts protects a message, in fragments if it is too long for one datagram. Each
// fragment takes an IV of its own from the same counter as every other message.
func (sa *ikeSA) sealParts(m *message.Message) ([]byte, error) {
	if sa.caps&capFragmentation == 0 || sa.tcp {
		return m.Seal(sa.sealer)
	}
	parts, err := m.SealFragments(sa.sealer, sa.messageLimit())
	if err != nil {
		return nil, err
	}
	whole := parts[0]
	for _, p := range parts[1:] {
		whole = append(whole, p...)
	}
	return whole, nil
}

// holdMessage emits a message that rests on the IKE SA's record, datagram by datagram.
func (e *Engine) holdMessage(sa *ikeSA, d Datagram) {
	for _, d.Data = range message.Split(d.Data) {
		e.hold(sa, Send{d})
	}
}

// freeMessage emits a message that rests on nothing.
func (e *Engine) freeMessage(d Datagram) {
	for _, d.Data = range message.Split(d.Data) {
		e.free(Send{d})
	}
}

// reassembly is a message of which fragments have arrived, all of them authenticated.
type reassembly struct {
	id      uint32
	exch    message.ExchangeType
	first   *message.Message // fragment 1 but for its content; nil until it came
	parts   [][]byte         // by number; nil where missing
	missing int              // 0: complete, but not taken yet
	size    int              // bytes of parts
	counted int              // of these, in Engine.halfOpenParts
	since   time.Time
}

func (r *reassembly) of(h message.Header) bool {
	return r != nil && r.id == h.MessageID && r.exch == h.Exchange
}

// slot is where fragments of requests or responses are gathered.
func (sa *ikeSA) slot(response bool) **reassembly {
	if response {
		return &sa.parts[1]
	}
	return &sa.parts[0]
}

// openFragment authenticates a fragment and keeps it. ok is true when it completes its
// message; the rest is as of open. A complete message is kept until it is answered, or
// taken as the answer: should that have to wait for something, any of its fragments, come
// again, brings it once more.
func (e *Engine) openFragment(sa *ikeSA, d Datagram, m *message.Message, f *message.EncryptedFragment) (whole *message.Message, ok bool, err error) {
	slot := sa.slot(m.Response)
	r := *slot
	if r != nil && (!r.of(m.Header) || !e.now.Before(r.since.Add(reassemblySpan))) {
		r = nil // the peer has gone on, or begins once more
	}
	switch total := int(f.Total); {
	case sa.caps&capFragmentation == 0:
		e.counters.Malformed++
		return nil, false, nil
	case total > maxFragments:
		e.counters.FragmentsDropped++
		return nil, false, nil
	case r == nil:
	case total > len(r.parts):
		r = nil // §2.6: of two ways to cut a message, the finer one counts
	case total < len(r.parts) || r.missing > 0 && r.parts[f.Number-1] != nil:
		return nil, false, nil
	}
	part, err := e.openPart(sa, d, m)
	if err != nil {
		return nil, false, nil
	}
	if r == nil {
		e.dropParts(slot)
		r = &reassembly{id: m.MessageID, exch: m.Exchange, parts: make([][]byte, f.Total), missing: int(f.Total), since: e.now}
		*slot = r
	}
	if r.parts[f.Number-1] == nil {
		if !e.admitPart(sa, r, len(part)) {
			e.counters.FragmentsDropped++
			e.dropParts(slot)
			return nil, false, nil
		}
		r.parts[f.Number-1] = part
		r.missing--
		if f.Number == 1 {
			r.first = m
		}
	}
	if r.missing > 0 {
		return nil, false, nil
	}
	e.debug(sa, "reassembled IKE message", slog.Uint64("message_id", uint64(r.id)), slog.Int("fragments", len(r.parts)), slog.Int("len", r.size))
	whole = &message.Message{Header: r.first.Header}
	err = whole.Join(r.first, r.parts)
	return whole, true, err
}

// openPart decrypts one fragment. An error means that nobody authenticated it, or that
// it is nothing that could be part of a message; both are counted.
func (e *Engine) openPart(sa *ikeSA, d Datagram, m *message.Message) ([]byte, error) {
	if err := e.ciphers(sa); err != nil {
		e.warn(sa, "cannot use IKE SA", slog.String("error", err.Error()))
		return nil, err
	}
	part, err := m.OpenFragment(d.Data, sa.opener)
	switch {
	case errors.Is(err, message.ErrAuthentication):
		e.counters.AuthFailed++
	case err != nil:
		e.counters.Malformed++
	}
	return part, err
}

// admitPart says whether n bytes more may be kept, and counts them.
func (e *Engine) admitPart(sa *ikeSA, r *reassembly, n int) bool {
	if r.size+n > maxReassembled {
		return false
	}
	if sa.state == stateHalfOpen {
		if e.halfOpenParts+n > maxHalfOpenParts {
			return false
		}
		e.halfOpenParts += n
		r.counted += n
	}
	r.size += n
	return true
}

func (e *Engine) dropParts(slot **reassembly) {
	if r := *slot; r != nil {
		e.halfOpenParts -= r.counted
	}
	*slot = nil
}

// wholeArrived forgets the fragments of a message that came in one datagram, too.
func (e *Engine) wholeArrived(sa *ikeSA, h message.Header) {
	if slot := sa.slot(h.Response); (*slot).of(h) {
		e.dropParts(slot)
	}
}

// dropFragments forgets all that has arrived in part.
func (e *Engine) dropFragments(sa *ikeSA) {
	for i := range sa.parts {
		e.dropParts(&sa.parts[i])
	}
}

// fragmentsUntil is when the older of the messages under reassembly is given up; zero
// when there is none.
func (sa *ikeSA) fragmentsUntil() time.Time {
	var x earliest
	for _, r := range sa.parts {
		if r != nil {
			x.add(r.since.Add(reassemblySpan))
		}
	}
	return x.t
}

// expireFragments gives up messages of which nothing more seems to come.
func (e *Engine) expireFragments(sa *ikeSA) {
	for i, r := range sa.parts {
		if r != nil && !e.now.Before(r.since.Add(reassemblySpan)) {
			e.debug(sa, "message was not complete in time", slog.Uint64("message_id", uint64(r.id)), slog.Int("missing", r.missing))
			e.dropParts(&sa.parts[i])
		}
	}
}

// authentic says whether the peer made a datagram, without keeping any of it. part is
// the number of the fragment, 1 for a whole message.
func (e *Engine) authentic(sa *ikeSA, d Datagram) (part uint16, ok bool) {
	m, err := message.Parse(d.Data)
	if err == nil && len(m.Payloads) > 0 && sa.caps&capFragmentation != 0 {
		if f, is := m.Payloads[len(m.Payloads)-1].(*message.EncryptedFragment); is {
			_, err := e.openPart(sa, d, m)
			return f.Number, err == nil
		}
	}
	_, ok, _ = e.open(sa, d)
	return 1, ok
}

// openAll reads all datagrams of one message that was sealed here.
func openAll(b []byte, o message.Opener) ([]message.Payload, error) {
	var whole message.Message
	var first *message.Message
	var parts [][]byte
	for _, d := range message.Split(b) {
		m, err := message.Parse(d)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = m
		}
		if len(m.Payloads) == 0 || m.Payloads[len(m.Payloads)-1].Type() != message.TypeSKF {
			err := m.Open(d, o)
			return m.Payloads, err
		}
		part, err := m.OpenFragment(d, o)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if first == nil {
		return nil, errors.New("message without a datagram")
	}
	err := whole.Join(first, parts)
	return whole.Payloads, err
}
