package ike

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
)

// Synchronisation of message IDs (RFC 6311). A cluster whose new owner may be behind what
// the peer has seen asks for it with message ID 0; the peer takes the higher IDs of both
// and says which. Who asks sends no other request until it is done.
//
// Both roles keep to the cluster-wide maxima: M1 lies above every ID that any member could
// have used, and above every M1 that any member proposed, since the record of the IKE SA
// has both. A peer that was heard once never goes back, so a captured exchange, replayed,
// changes nothing.

// Capabilities of the peer. The bits are in records: append only.
const (
	capMessageIDSync uint32 = 1 << iota
	_                       // these two: see counters.go
	_
	// capSyncSilent: it answered none of our attempts, so it is asked no more. What it asks
	// is answered all the same, since that was negotiated.
	capSyncSilent
)

// midSync is what an IKE SA knows of it. What is marked so is in its record.
type midSync struct {
	wanted   bool   // in the record: to be done before any other request
	proposed uint32 // in the record: the highest M1 that this cluster proposed
	seen     uint32 // in the record: the highest M1 that the peer proposed

	out      midValues // of the request that is out; the nonce of the last attempt only is good
	attempts int
	next     time.Time
}

// midValues are the data of IKEV2_MESSAGE_ID_SYNC, as its sender sees them (§5.1).
type midValues struct {
	nonce      uint32
	send, recv uint32 // EXPECTED_SEND_REQ_MESSAGE_ID, EXPECTED_RECV_REQ_MESSAGE_ID
}

const (
	midSyncLen = 12
	// midMargin is by how much the first M1 exceeds the next ID of the record; each
	// further attempt doubles it: a peer that has seen more says nothing.
	midMargin = 8
	midTries  = 5
	// midBound bounds IDs in synchronisation. An IKE SA must end before its IDs do
	// (RFC 7296 §2.2), and nobody comes near it otherwise.
	midBound = 1 << 30
)

func (v midValues) String() string {
	return fmt.Sprintf("nonce=%08x expected send/recv msg IDs=%d/%d", v.nonce, v.send, v.recv)
}

func (v midValues) payload() *message.Notify {
	b := binary.BigEndian.AppendUint32(nil, v.nonce)
	b = binary.BigEndian.AppendUint32(b, v.send)
	return notify(message.MessageIDSync, binary.BigEndian.AppendUint32(b, v.recv))
}

func midValuesOf(m *message.Message) (v midValues, ok bool) {
	n, ok := m.Notify(message.MessageIDSync)
	if !ok || len(n.Data) != midSyncLen {
		return v, false
	}
	v.nonce = binary.BigEndian.Uint32(n.Data)
	v.send = binary.BigEndian.Uint32(n.Data[4:])
	v.recv = binary.BigEndian.Uint32(n.Data[8:])
	return v, v.send < midBound && v.recv < midBound
}

// capabilityPayloads say what we can in IKE_AUTH: as its responder, of that only what the
// peer offered (§4).
func capabilityPayloads(caps uint32) (ps []message.Payload) {
	if caps&capMessageIDSync != 0 {
		ps = append(ps, notify(message.MessageIDSyncSupported, nil))
	}
	if caps&capCounterSync != 0 {
		ps = append(ps, notify(message.ReplayCounterSyncSupported, nil))
	}
	if caps&capMobike != 0 {
		ps = append(ps, notify(message.MobikeSupported, nil))
	}
	return ps
}

// noteCapabilities takes what the peer says in IKE_AUTH.
func (e *Engine) noteCapabilities(sa *ikeSA, m *message.Message) {
	if _, ok := m.Notify(message.MessageIDSyncSupported); ok {
		e.debug(sa, "processing notify type "+message.MessageIDSyncSupported.String())
		sa.caps |= capMessageIDSync
	}
	if _, ok := m.Notify(message.ReplayCounterSyncSupported); ok {
		e.debug(sa, "processing notify type "+message.ReplayCounterSyncSupported.String())
		sa.caps |= capCounterSync
		if sa.isTandem() {
			sa.caps |= capCounterAnswer
		}
	}
	e.noteMobike(sa, m)
}

// Behind says, before Resume, that what this engine holds may be older than what peers
// have seen: message IDs are synchronised wherever the peer can.
func (e *Engine) Behind() { e.behind = true }

func (sa *ikeSA) canSync() bool {
	return sa.caps&capMessageIDSync != 0 && (sa.state == stateEstablished || sa.state == stateRekeyed)
}

func (sa *ikeSA) canAskSync() bool { return sa.canSync() && sa.caps&capSyncSilent == 0 }

// wantSync begins a synchronisation if the peer can.
func (e *Engine) wantSync(sa *ikeSA) {
	if !sa.canAskSync() || sa.sync.wanted {
		return
	}
	e.touch(sa)
	sa.sync.wanted = true
	e.info(sa, "have HA IKE SA, attempting message ID sync")
}

// driveSync sends the request, or another one with a higher M1 when no answer came.
func (e *Engine) driveSync(sa *ikeSA) {
	s := &sa.sync
	if s.next.After(e.now) {
		return
	}
	if s.attempts >= midTries {
		// It may be gone, which the next request shows, or have promised too much:
		// strongSwan cannot protect a second message with ID 0 by AES-GCM.
		e.warn(sa, "peer does not answer the message ID sync: going on with the IDs of the record")
		e.touch(sa)
		sa.caps |= capSyncSilent
		*s = midSync{proposed: s.proposed, seen: s.seen}
		e.proceed(sa)
		return
	}
	v := midValues{
		nonce: binary.BigEndian.Uint32(e.random(4)),
		send:  max(sa.nextSend, s.proposed) + midMargin<<s.attempts, recv: sa.nextRecv,
	}
	b, err := e.seal(sa, message.Informational, false, 0, []message.Payload{v.payload()})
	if err != nil || v.send >= midBound {
		e.warn(sa, "cannot synchronise message IDs", slog.Any("error", err))
		s.next = e.now.Add(stallWait)
		return
	}
	e.touch(sa)
	s.proposed, s.out = v.send, v
	s.next = e.now.Add(e.o.RetransmitFirst << s.attempts)
	s.attempts++
	e.debug(sa, "sending IKEV2_MESSAGE_ID_SYNC NOTIFY msg")
	e.debug(sa, "IKEV2_MESSAGE_ID_SYNC "+v.String())
	e.logSent(sa, "INFORMATIONAL", 0, len(b))
	e.holdMessage(sa, sa.datagram(b))
}

// syncMessage takes a message with ID 0 if it is one of a synchronisation. Others may
// have this ID, too: the first of an IKE SA.
func (e *Engine) syncMessage(sa *ikeSA, d Datagram, h message.Header) bool {
	if h.MessageID != 0 || h.NextPayload == message.TypeSKF || h.Exchange != message.Informational || !sa.canSync() || h.Response && !sa.sync.wanted {
		return false
	}
	m, ok, err := e.open(sa, d)
	if !ok || err != nil {
		return false
	}
	if _, ok := m.Notify(message.MessageIDSync); !ok {
		return false
	}
	v, ok := midValuesOf(m)
	switch {
	case !ok:
		e.counters.Malformed++
	case h.Response:
		e.synced(sa, d, v)
	default:
		e.answerSync(sa, d, v, m)
	}
	return true
}

// answerSync is the peer's part (§5.1): what is not above everything seen before is a
// replay, or of a member that has given up, and nobody is told.
func (e *Engine) answerSync(sa *ikeSA, d Datagram, v midValues, m *message.Message) {
	s := &sa.sync
	if v.send < sa.nextRecv || v.send <= s.seen {
		e.counters.OutsideWindow++
		e.debug(sa, "message ID sync request ignored: "+v.String())
		return
	}
	e.moved(sa, d)
	e.heard(sa)
	e.debug(sa, "message ID sync request received "+v.String())
	send, recv := max(sa.nextSend, v.recv), max(sa.nextRecv, v.send)
	if s.wanted { // both sides are new: what we proposed counts, too
		send, recv = max(send, s.out.send), max(recv, s.out.recv)
	}
	e.info(sa, fmt.Sprintf("current send/recv msg IDs=%d/%d updated to new send/recv msg IDs=%d/%d", sa.nextSend, sa.nextRecv, send, recv))
	e.touch(sa)
	s.seen = v.send
	sa.caps &^= capSyncSilent
	answer := midValues{nonce: v.nonce, send: send, recv: recv}
	ps := append([]message.Payload{answer.payload()}, e.counterSync(sa, m)...)
	b, err := e.seal(sa, message.Informational, true, 0, ps)
	if err != nil {
		e.warn(sa, "cannot protect IKE message", slog.String("error", err.Error()))
		return
	}
	e.logSent(sa, "INFORMATIONAL_RESPONSE", 0, len(b))
	e.holdMessage(sa, reply(d, b))
	e.renumber(sa, send, recv)
	e.proceed(sa)
}

// synced takes the peer's answer to our request.
func (e *Engine) synced(sa *ikeSA, d Datagram, v midValues) {
	s := &sa.sync
	if s.attempts == 0 || v.nonce != s.out.nonce || v.recv < s.out.send || v.send < s.out.recv {
		e.counters.OutsideWindow++
		e.debug(sa, "message ID sync response ignored: "+v.String())
		return
	}
	e.moved(sa, d)
	e.heard(sa)
	e.debug(sa, "message ID sync response received "+v.String())
	e.touch(sa)
	*s = midSync{proposed: max(s.proposed, v.recv), seen: s.seen}
	e.renumber(sa, max(sa.nextSend, v.recv), max(sa.nextRecv, v.send))
	e.info(sa, fmt.Sprintf("synced message IDs: send/recv=%d/%d", sa.nextSend, sa.nextRecv))
	e.proceed(sa)
}

// renumber moves both windows. A request that is out leaves once more, with the ID that
// comes next: the peer took part in the synchronisation and forgot the old one (§5.1).
func (e *Engine) renumber(sa *ikeSA, send, recv uint32) {
	e.touch(sa)
	if recv != sa.nextRecv {
		sa.nextRecv = recv // the last response stays: see again
	}
	x := sa.req
	if x == nil {
		if send != sa.nextSend {
			sa.nextSend, sa.lastRequest = send, nil
		}
		return
	}
	ps, err := e.ownPayloads(sa, x.data)
	if err == nil {
		sa.nextSend = send
		var b []byte
		if b, err = e.seal(sa, x.exchangeType(), false, send, ps); err == nil {
			x.attempts = 0
			e.launch(sa, x, b)
			e.unrefKey(x.keyID) // counted by its first launch
			return
		}
	}
	e.warn(sa, "cannot send a request under its new message ID", slog.String("error", err.Error()))
	e.dead(sa, "message IDs are lost")
}

// ownPayloads reads a message that we sealed.
func (e *Engine) ownPayloads(sa *ikeSA, b []byte) ([]message.Payload, error) {
	key, auth := sa.keys.Ei, sa.keys.Ai
	if !sa.initiator {
		key, auth = sa.keys.Er, sa.keys.Ar
	}
	o, err := keymat.NewOpener(sa.suite, key, auth)
	if err != nil {
		return nil, err
	}
	return openAll(b, o)
}

// missed looks at a request ahead of the window: whoever sent it has had answers that
// this cluster does not know of. They may have been about Child SAs, so ours are rekeyed
// early: what the peer has no more is made afresh.
func (e *Engine) missed(sa *ikeSA, d Datagram, h message.Header) {
	if !sa.copied || !sa.canAskSync() || sa.sync.wanted || h.MessageID < sa.nextRecv || h.MessageID-sa.nextRecv >= maxUnasked {
		return
	}
	if _, ok := e.authentic(sa, d); !ok {
		return
	}
	e.heard(sa)
	e.warn(sa, "request of the peer is ahead of the window", slog.Uint64("message_id", uint64(h.MessageID)), slog.Uint64("expected", uint64(sa.nextRecv)))
	e.wantSync(sa)
	for _, c := range sa.children {
		if c.state == childInstalled {
			c.rekeyNow, c.doubtful, c.rekeyAt = true, true, time.Time{}
		}
	}
	e.proceed(sa)
}
