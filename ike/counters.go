package ike

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// Synchronisation of replay counters (RFC 6311 §5.2, §6.4): whoever goes on after the
// death of an owner has the peer add a delta to the sequence numbers of all that it sends
// on the Child SAs of an IKE SA, and rejects what lies below. What was captured before is
// dead then, also what the dead owner never saw.
//
// The arithmetic: F is our fence when we ask, C the peer's counter when it adds. With the
// delta 2X everything sent before lies at or below C, everything after the answer above
// C+2X. So the floor F+X parts them while F and C lie within X of each other: C is ahead by
// what was sent and lost since, F by the fence's lead. F, and so the floor, is taken down
// with the request: what overtakes the answer does not move it.
//
// We send it alone, as an ordinary request under the next message ID, which is what
// protects it from replay and lets a successor send it again to the bit; a peer may also
// send it with its synchronisation of message IDs.

// See the capabilities in midsync.go. A Tandem's request carries a nonce, which a Tandem's
// answer repeats: so it cannot be taken for the answer to a request that the other side of a
// split sent under the same message ID.
const (
	capCounterSync   = capMessageIDSync << 1
	capCounterAnswer = capMessageIDSync << 2
)

const (
	// The deltas: two dozen fit into what an SA without ESN sends before its early rekey.
	// With ESN the high half of a number must still be inferred (RFC 4303 appendix A2).
	counterDelta, counterDeltaESN = 1 << 27, 1 << 30
	// counterSoft is up to where we ask; beyond, the SA is rekeyed instead.
	counterSoft, counterSoftESN = 3 << 30, 3 << 62
	// counterLast is up to where we follow a peer.
	counterLast, counterLastESN = 1<<32 - 1<<28, 3 << 62
	// counterPace is the distance between the requests of two IKE SAs.
	counterPace = 2 * time.Millisecond
	// counterRest is how long packets that left before the answer are still accepted: it
	// may overtake them on the way and in our own queues.
	counterRest = 10 * time.Millisecond
)

// floor is up to where a Child SA rejects when its peer has answered.
type floor struct {
	spiIn ipsec.ESPSPI
	n     uint64
}

// Skip says that sequence numbers of a Child SA are used up: it sends nothing up to Out,
// and takes everything up to In for replays; 0 says nothing. It rests on nothing, since
// numbers may always be skipped.
type Skip struct {
	SPIIn   ipsec.ESPSPI
	Out, In uint64
}

func (Skip) effect() {}

// OwnerDied says, before Resume, that a former owner of the IKE SAs ended without a
// handover: peers are asked for higher sequence numbers where they can.
func (e *Engine) OwnerDied() { e.died = true }

// paceCounters plans the request of an IKE SA, behind n others.
func (e *Engine) paceCounters(sa *ikeSA, n int) int {
	sa.countersAt = time.Time{}
	if !e.died || sa.caps&capCounterSync == 0 || !sa.lives() {
		return n
	}
	sa.countersAt = e.now.Add(time.Duration(n) * counterPace)
	return n + 1
}

// countersDue says whether to ask. An idle peer is not woken for it.
func (e *Engine) countersDue(sa *ikeSA) bool {
	return !sa.countersAt.IsZero() && !sa.quiet && !sa.countersAt.After(e.now)
}

func (e *Engine) numbers(c *childSA) (out, in uint64) {
	if e.o.Numbers == nil {
		return 0, 0
	}
	return e.o.Numbers(c.SPIIn)
}

// askCounters sends the request, or rekeys what cannot go so far. Of an SA on which
// nothing has come nobody knows whether the peer has it yet.
func (e *Engine) askCounters(sa *ikeSA) {
	x := &exchange{kind: kindCounters}
	var plain, esn bool
	far := false
	for _, c := range sa.children {
		out, in := e.numbers(c)
		if out == 0 && in == 0 {
			continue // not installed yet
		}
		delta, soft := uint64(counterDelta), uint64(counterSoft)
		if c.Suite.ESN {
			delta, soft, esn = counterDeltaESN, counterSoftESN, true
		} else {
			plain = true
		}
		far = far || in > soft-delta
		if in > 0 && c.ReplayWindow > 0 {
			x.floors = append(x.floors, floor{c.SPIIn, in + delta/2})
		}
	}
	if far || plain && esn { // one delta is for all, and its length says which they are
		e.info(sa, "rekeying Child SAs instead of a replay counter sync")
		sa.countersAt = time.Time{}
		e.rekeyChildren(sa)
		return
	}
	if len(x.floors) == 0 {
		sa.countersAt = time.Time{}
		e.proceed(sa) // with what else there is to do
		return
	}
	data := binary.BigEndian.AppendUint32(nil, counterDelta)
	if esn {
		data = binary.BigEndian.AppendUint64(nil, counterDeltaESN)
	}
	e.debug(sa, "sending IPSEC_REPLAY_COUNTER_SYNC NOTIFY msg", slog.Int("sas", len(x.floors)))
	ps := []message.Payload{notify(message.ReplayCounterSync, data)}
	if sa.caps&capCounterAnswer != 0 {
		x.nonce = e.random(message.MinNonceLen)
		ps = append(ps, &message.Nonce{Data: x.nonce})
	}
	if e.start(sa, x, ps) {
		sa.countersAt = time.Time{}
	}
}

// rekeyChildren ends the sequence numbers of an IKE SA's Child SAs with the SAs.
func (e *Engine) rekeyChildren(sa *ikeSA) {
	for _, c := range sa.children {
		if c.state == childInstalled {
			c.rekeyNow, c.rekeyAt = true, time.Time{}
			e.touch(sa)
		}
	}
	e.proceed(sa)
}

// countersResponse takes the peer's answer: it has added, unless it says otherwise.
func (e *Engine) countersResponse(sa *ikeSA, ev *event) {
	x := e.finish(sa)
	e.drop(x)
	for _, p := range ev.m.Payloads {
		if n, ok := p.(*message.Notify); ok && n.NotifyType.IsError() {
			e.warn(sa, "peer refuses the replay counter sync, rekeying", slog.String("notify", n.NotifyType.String()))
			for _, f := range x.floors {
				if c := e.children[f.spiIn]; c != nil {
					e.rekeyChildren(c.ike)
				}
			}
			return
		}
	}
	if n, ok := message.Get[*message.Nonce](ev.m); sa.caps&capCounterAnswer != 0 && (!ok || !bytes.Equal(n.Data, x.nonce)) {
		e.info(sa, "peer answers another request with this message ID than the replay counter sync")
		if !sa.canAskSync() {
			e.rekeyChildren(sa)
			return
		}
		sa.countersAt = e.now
		e.wantSync(sa)
		e.proceed(sa)
		return
	}
	for _, f := range x.floors {
		if c := e.children[f.spiIn]; c != nil {
			c.inSeq, c.floorAt = max(c.inSeq, f.n), e.now.Add(counterRest)
			e.touch(c.ike)
			e.arm(c.ike)
		}
	}
	e.info(sa, "synced replay counters", slog.Int("sas", len(x.floors)))
}

// raiseFloors rejects what the peer sent before its answer, once it has arrived or is lost.
// A successor, who has the floors from the record, does so at once.
func (e *Engine) raiseFloors(sa *ikeSA) {
	for _, c := range sa.children {
		if !c.floorAt.IsZero() && !c.floorAt.After(e.now) {
			c.floorAt = time.Time{}
			e.free(Skip{SPIIn: c.SPIIn, In: c.inSeq})
		}
	}
}

// skip leaves out sequence numbers, here and wherever the record goes.
func (e *Engine) skip(c *childSA, out, in uint64) {
	e.touch(c.ike)
	c.outSeq, c.inSeq = max(c.outSeq, out), max(c.inSeq, in)
	e.free(Skip{SPIIn: c.SPIIn, Out: out, In: in})
}

// raiseCounters adds what the peer asks for to the numbers of all that we send on the
// IKE SA, before the answer, which waits until every standby would go on above them. It
// returns a refusal if they do not reach: then nothing changes, and what is too far is
// rekeyed.
func (e *Engine) raiseCounters(sa *ikeSA, data []byte) *NotifyError {
	var delta uint64
	switch {
	case sa.caps&capCounterSync == 0:
		e.debug(sa, "IPSEC_REPLAY_COUNTER_SYNC ignored: it was not negotiated")
		return nil
	case len(data) == 4:
		delta = uint64(binary.BigEndian.Uint32(data))
	case len(data) == 8:
		delta = binary.BigEndian.Uint64(data)
	default:
		e.counters.Malformed++
		return refuse(message.TemporaryFailure, "IPSEC_REPLAY_COUNTER_SYNC with %d octets", len(data))
	}
	e.debug(sa, "IPSEC_REPLAY_COUNTER_SYNC request received", slog.Uint64("delta", delta))
	type raise struct {
		c        *childSA
		from, to uint64
	}
	var all []raise
	var far []*childSA
	for _, c := range sa.children {
		last := uint64(counterLast)
		if c.Suite.ESN {
			last = counterLastESN
		}
		switch out, _ := e.numbers(c); {
		case out == 0 && c.brought:
			return refuse(message.TemporaryFailure, "the sequence numbers of Child SA %s are not known yet", c.SPIIn)
		case out == 0: // not installed yet: the peer has received nothing on it
		case out <= last && delta <= last-out:
			all = append(all, raise{c, out, out + delta})
		case c.state == childInstalled:
			far = append(far, c)
		}
	}
	if len(sa.children) == 0 { // they have been passed on to an IKE SA that whoever asks has not heard of
		return refuse(message.TemporaryFailure, "no Child SA of this IKE SA")
	}
	for _, c := range far {
		c.rekeyNow, c.rekeyAt = true, time.Time{}
		e.touch(sa)
	}
	if len(far) > 0 {
		return refuse(message.TemporaryFailure, "sequence numbers do not reach for a delta of %d", delta)
	}
	for _, r := range all {
		e.infoChild(r.c, fmt.Sprintf("IPSEC_REPLAY_COUNTER_SYNC: ESP seqno %x, updating to %x", r.from, r.to))
		e.skip(r.c, r.to, 0)
	}
	return nil
}

// counterSync looks for the peer's request in a message, and returns what else than
// success is to be said.
func (e *Engine) counterSync(sa *ikeSA, m *message.Message) (ps []message.Payload) {
	n, ok := m.Notify(message.ReplayCounterSync)
	if !ok {
		return nil
	}
	if no := e.raiseCounters(sa, n.Data); no != nil {
		e.warn(sa, "refusing the replay counter sync", slog.String("notify", no.Type.String()), slog.String("reason", no.Err.Error()))
		return append(ps, no.payload())
	}
	if nonce, ok := message.Get[*message.Nonce](m); ok {
		ps = append(ps, &message.Nonce{Data: nonce.Data})
	}
	return ps
}
