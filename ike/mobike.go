package ike

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"log/slog"
	"net/netip"

	"tandem/ike/message"
	"tandem/proto/syncpb"
)

// MOBIKE (RFC 4555): the original initiator of an IKE SA says by UPDATE_SA_ADDRESSES that
// its addresses are others now, and IKE SA and Child SAs go on there without a rekey. Here
// is what both sides have in common and the responder's part; see roaming.go for the
// initiator's.
//
// The responder answers where the request came from, and sends IKE there from then on. The
// Child SAs stay on their path until an INFORMATIONAL exchange with COOKIE2 has shown that
// the peer receives there (§3.7). All of it is in the record, so a successor goes on.

// Bits of ikeSA.caps, beside those of midsync.go. They are in records: append only.
const (
	capMobike          uint32 = 1 << (16 + iota) // both sides can
	capMobikeInitiator                           // we are the original initiator, whoever began the rekeys since
)

// mobility is what an IKE SA knows of its addresses beyond them; nil where MOBIKE never
// had anything to do. All of it is in the record.
type mobility struct {
	update bool           // initiator: UPDATE_SA_ADDRESSES is to be sent ("pending_update")
	check  bool           // responder: whether the peer receives at its new address is to be asked
	path   *path          // where the Child SAs are until that is known; nil: where the IKE SA is
	former netip.AddrPort // responder: where the peer was before its latest update
	seen   []byte         // initiator: NAT_DETECTION_DESTINATION_IP of the latest answer
}

// path is between which addresses ESP runs.
type path struct {
	local, remote netip.AddrPort
	udpEncap, tcp bool
}

// cookie2Len is the length in bytes of our COOKIE2; what a peer may choose is bounded (§4.2.5).
const (
	cookie2Len                   = 16
	cookie2Shortest, cookie2Most = 8, 64
)

func (sa *ikeSA) mobike() bool { return sa.caps&capMobike != 0 }

// roams says that MOBIKE is in use and the addresses are ours to choose.
func (sa *ikeSA) roams() bool { return sa.mobike() && sa.caps&capMobikeInitiator != 0 }

// mobility is for writing: it is there afterwards.
func (sa *ikeSA) mobility() *mobility {
	if sa.mob == nil {
		sa.mob = &mobility{}
	}
	return sa.mob
}

// espPath is where the Child SAs are.
func (sa *ikeSA) espPath() path {
	if sa.mob != nil && sa.mob.path != nil {
		return *sa.mob.path
	}
	return path{sa.local, sa.remote, sa.udpEncap, sa.tcp}
}

// movesAddress says that an exchange about addresses is due or under way.
func (sa *ikeSA) movesAddress() bool {
	return sa.mob != nil && (sa.mob.update || sa.mob.check || sa.mob.path != nil)
}

// mobileDue says that one is to be begun.
func (sa *ikeSA) mobileDue() bool {
	return sa.mob != nil && (sa.mob.update || sa.mob.check) && sa.lives() && !sa.awaitsDelete
}

// latest is the IKE SA that has an IKE SA's Child SAs now: a message on one that was rekeyed
// meanwhile is about its successor.
func (e *Engine) latest(sa *ikeSA) *ikeSA {
	for i := 0; i < 8 && sa.state == stateRekeyed; i++ {
		n := e.bySPIs(sa.successor)
		if n == nil {
			break
		}
		sa = n
	}
	return sa
}

// inheritMobility gives the successor of an IKE SA its addresses and what is open about
// them. What is under way on the old one is done anew.
func (e *Engine) inheritMobility(old, n *ikeSA) {
	if !old.mobike() {
		return
	}
	n.local, n.remote, n.nonESP = old.local, old.remote, old.nonESP
	n.natHere, n.natThere, n.udpEncap = old.natHere, old.natThere, old.udpEncap
	n.mob = nil
	if old.mob != nil {
		n.mob, old.mob = old.mob, nil
		n.mob.seen = nil // it is of the old SPIs
	}
	if x := old.req; x != nil {
		switch x.kind {
		case kindUpdate:
			n.mobility().update = true
		case kindCheck:
			n.mobility().check = true
		}
	}
}

// mobikeOffer is what IKE_AUTH says of MOBIKE. In TCP there is no need for it.
func (sa *ikeSA) mobikeOffer() uint32 {
	if sa.p1 != nil && sa.p1.Mobike && !sa.tcp {
		return capMobike
	}
	return 0
}

// mobikePayloads say in our IKE_AUTH request that no NAT is allowed on the way, where that
// is so (§3.9).
func (sa *ikeSA) mobikePayloads() []message.Payload {
	if sa.p1 == nil || !sa.p1.Mobike || sa.tcp || sa.natTraversal() {
		return nil
	}
	return []message.Payload{noNATs(sa.local, sa.remote)}
}

// noteMobike takes what the peer says in IKE_AUTH. In TCP there is no need for it: whoever
// has another address opens another connection.
func (e *Engine) noteMobike(sa *ikeSA, m *message.Message) {
	if _, ok := m.Notify(message.MobikeSupported); !ok || sa.mobikeOffer() == 0 {
		return
	}
	e.debug(sa, "processing notify type "+message.MobikeSupported.String())
	sa.caps |= capMobike
	if sa.initiator {
		sa.caps |= capMobikeInitiator
	}
}

// natTraversal says that both sides can: with MOBIKE they are on port 4500 then (§3.3).
func (sa *ikeSA) natTraversal() bool {
	return sa.nonESP && sa.p1 != nil && sa.p1.NATTraversal != "disable"
}

// noNATs is NO_NATS_ALLOWED of a message between two addresses (§4.2.6).
func noNATs(src, dst netip.AddrPort) *message.Notify {
	b := append(src.Addr().Unmap().AsSlice(), dst.Addr().Unmap().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return notify(message.NoNATsAllowed, binary.BigEndian.AppendUint16(b, dst.Port()))
}

// natProhibited says whether a message forbids NATs and has come through one.
func natProhibited(m *message.Message, d Datagram) bool {
	n, ok := m.Notify(message.NoNATsAllowed)
	return ok && !bytes.Equal(n.Data, noNATs(d.Remote, d.Local).Data)
}

// authThroughNAT refuses an IKE_AUTH request that forbids NATs and has come through one (§3.9).
func (e *Engine) authThroughNAT(sa *ikeSA, ev *event) error {
	if sa.mobike() && natProhibited(ev.m, ev.d) {
		return refuse(message.UnexpectedNATDetected, "the peer allows no NAT, and its message comes from %s to %s", ev.d.Remote, ev.d.Local)
	}
	return nil
}

func detectsNAT(m *message.Message) bool {
	_, src := m.Notify(message.NATDetectionSourceIP)
	_, dst := m.Notify(message.NATDetectionDestinationIP)
	return src && dst
}

// mobikeRequest takes what a request of the peer says of addresses, and returns what
// belongs into the answer.
func (e *Engine) mobikeRequest(sa *ikeSA, ev *event) (ps []message.Payload) {
	if !sa.mobike() {
		return nil
	}
	if c, ok := ev.m.Notify(message.Cookie2); ok {
		if len(c.Data) < cookie2Shortest || len(c.Data) > cookie2Most {
			e.counters.Malformed++
		} else {
			ps = append(ps, notify(message.Cookie2, c.Data))
		}
	}
	_, update := ev.m.Notify(message.UpdateSAAddresses)
	if update && natProhibited(ev.m, ev.d) {
		e.warn(sa, "address update through a NAT, which the peer does not allow", slog.String("from", ev.d.Remote.String()))
		return append(ps, notify(message.UnexpectedNATDetected, nil))
	}
	if update && !sa.roams() {
		if err := e.updateAddresses(sa, ev); err != nil {
			e.warn(sa, "refusing new addresses of the peer", slog.String("reason", err.Err.Error()), slog.String("from", ev.d.Remote.String()))
			return append(ps, err.payload())
		}
	}
	if detectsNAT(ev.m) && sa.p1 != nil { // §3.8: in any request
		ps = append(ps, e.natPayloads(sa.p1, sa.spis, ev.d.Local, ev.d.Remote)...)
	}
	return ps
}

// updateAddresses is the responder's part of UPDATE_SA_ADDRESSES (§3.5).
func (e *Engine) updateAddresses(sa *ikeSA, ev *event) *NotifyError {
	if err := e.acceptablePeer(sa, ev.d); err != nil {
		return err
	}
	t := e.latest(sa)
	here, there := t.natHere, t.natThere
	if detectsNAT(ev.m) {
		here, there = detectNAT(sa.p1, ev.m, ev.d)
	}
	for _, x := range []*ikeSA{sa, t} {
		if x.local == ev.d.Local && x.remote == ev.d.Remote && x.nonESP == ev.d.NonESP && x.natHere == here && x.natThere == there {
			continue
		}
		e.touch(x)
		if x.remote != ev.d.Remote {
			x.mobility().former = x.remote
		}
		was, from := x.espPath(), x.remote
		x.local, x.remote, x.nonESP = ev.d.Local, ev.d.Remote, ev.d.NonESP
		x.noteNAT(here, there)
		x.keepaliveAt = e.now // a new mapping wants to be held
		if len(x.children) > 0 {
			e.info(x, "peer updates its addresses", slog.String("from", from.String()))
			e.relocate(x, was)
		}
		e.resend(x)
		e.arm(x)
	}
	if t != sa {
		ev.after = append(ev.after, func() { e.proceed(t) })
	}
	return nil
}

// relocate takes the Child SAs after their IKE SA: at once where nobody new receives what
// they send, else when the peer has shown that it does.
func (e *Engine) relocate(sa *ikeSA, was path) {
	m := sa.mobility()
	if sa.remote == was.remote {
		m.path, m.check = nil, false
		e.setPeer(sa)
		return
	}
	m.path, m.check = &was, true
}

// acceptablePeer says whether a peer may be where a request came from.
func (e *Engine) acceptablePeer(sa *ikeSA, d Datagram) *NotifyError {
	no := func(format string, args ...any) *NotifyError {
		return refuse(message.UnacceptableAddresses, format, args...)
	}
	a := d.Remote.Addr()
	switch {
	case sa.p1 == nil:
		return no("phase 1 is not configured any more")
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || d.Remote.Port() == 0:
		return no("%s cannot be a peer", d.Remote)
	case a == d.Local.Addr():
		return no("%s is our own address", a)
	case a.IsLoopback() != d.Local.Addr().IsLoopback():
		return no("%s is of a loopback interface", a)
	}
	if own, ok := e.localAddr(sa.p1, d.Local.Addr().Is6()); ok && own != d.Local.Addr() {
		return no("%s is not the address of phase 1 %s", d.Local.Addr(), sa.phase1)
	}
	return nil
}

// mobileWork is the exchange about addresses that an IKE SA wants, nil for none.
func (e *Engine) mobileWork(sa *ikeSA) func() {
	switch {
	case !sa.mobileDue():
		return nil
	case sa.mob.update:
		return func() { e.sendUpdate(sa, 0) }
	}
	return func() { e.sendCheck(sa) }
}

// sendCheck asks whether the peer receives at its new address (§3.7).
func (e *Engine) sendCheck(sa *ikeSA) {
	x := &exchange{kind: kindCheck, nonce: e.random(cookie2Len)}
	if e.start(sa, x, []message.Payload{notify(message.Cookie2, x.nonce)}) {
		sa.mob.check = false
		e.debug(sa, "asking whether the peer receives at its new address")
	}
}

// checkResponse takes the answer to sendCheck.
func (e *Engine) checkResponse(sa *ikeSA, ev *event) {
	x := e.finish(sa)
	e.drop(x)
	t := e.latest(sa)
	c, ok := ev.m.Notify(message.Cookie2)
	if !ok || subtle.ConstantTimeCompare(c.Data, x.nonce) != 1 {
		e.warn(sa, "COOKIE2 of the answer is not ours: closing")
		e.close(t, "return routability check failed")
		e.proceed(t)
		return
	}
	if t.mob == nil || t.mob.check || t.mob.path == nil {
		return // it has moved on meanwhile, and is asked again there
	}
	e.touch(t)
	t.mob.path = nil
	e.setPeer(t)
	e.arm(t)
}

// resend sends an outstanding request where the peer is now: its next retransmission may be
// far away, and nothing else can be asked before its answer.
func (e *Engine) resend(sa *ikeSA) {
	switch x := sa.req; {
	case sa.sync.wanted:
		sa.sync.next = e.now
	case x != nil:
		e.counters.Retransmitted++
		e.logSent(sa, "RETRANSMIT_"+x.kind.String(), x.id, len(x.data))
		e.holdMessage(sa, sa.datagram(x.data))
	case sa.quiet && !sa.probe.due().IsZero():
		sa.probe.next = e.now
	}
}

// espMayMove says whether authenticated ESP from another source than the peer's is
// followed. With MOBIKE (§3.8) only a change of the mapping at the peer's NAT is, of which
// the peer need not know; never back to where it said it is no more, and nothing while a
// check is under way: only that shows who receives there.
func (sa *ikeSA) espMayMove(from netip.AddrPort) bool {
	if !sa.mobike() {
		return true
	}
	if sa.roams() || !sa.natThere || sa.req != nil && sa.req.kind == kindCheck {
		return false
	}
	return sa.mob == nil || sa.mob.path == nil && from != sa.mob.former
}

func encodeMobility(m *mobility) *syncpb.Mobility {
	if m == nil {
		return nil
	}
	p := &syncpb.Mobility{Update: m.update, Check: m.check, Seen: m.seen}
	if m.former.IsValid() {
		p.Former = encodeEndpoint(m.former)
	}
	if m.path != nil {
		p.EspLocal, p.EspRemote, p.EspUdp = encodeEndpoint(m.path.local), encodeEndpoint(m.path.remote), m.path.udpEncap
	}
	return p
}

func decodeMobility(p *syncpb.Mobility) *mobility {
	if p == nil {
		return nil
	}
	m := &mobility{update: p.Update, check: p.Check, seen: p.Seen, former: decodeEndpoint(p.Former)}
	if at := (path{decodeEndpoint(p.EspLocal), decodeEndpoint(p.EspRemote), p.EspUdp, false}); at.local.IsValid() && at.remote.IsValid() {
		m.path = &at
	}
	return m
}
