package ike

import (
	"bytes"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// Unite takes the other side's state after a split into ours, on the side that
// owns the tunnels from now on (architecture, "Healing"). An entry without Value
// is a tombstone: what the peer ended there ends here. Of an IKE SA that both
// sides went on with, the side that the peer talked to more recently (by message
// IDs) is believed, and Child SAs that only one side knows are kept unless the
// peer ended them. IKE SAs that only the other side has are adopted; if that
// makes rivals for one tunnel, the peer's next authenticated message chooses.
func (e *Engine) Unite(now time.Time, entries []Entry) {
	defer e.begin(now)()
	for _, x := range entries {
		if x.Value == nil {
			e.bury(x)
			continue
		}
		theirs, err := e.decode(x.Value)
		if err != nil || theirs.spis != x.SPIs {
			e.log(slog.LevelError, "record does not decode", slog.String("spi", x.SPIs.String()), slog.Any("error", err))
			continue
		}
		ours := e.sas[theirs.ownSPI()]
		switch {
		case e.movedSince(theirs):
		case theirs.movedTo != 0:
			e.takeMoved(theirs)
		case ours == nil:
			e.leaveInherited(nil, theirs)
			e.take(theirs, nil)
		case ours.spis == theirs.spis:
			e.leaveInherited(ours, theirs)
			e.merge(ours, theirs)
		case ours.spis.R == 0:
			// Ours is still half open; theirs went on.
			e.take(theirs, ours)
		}
	}
	for _, sa := range e.sorted() {
		if n := e.heir(sa); n != nil {
			e.bequeath(sa, n)
			sa.owed = nil
		}
		e.closeUnconfigured(sa)
		e.arm(sa)
	}
	if e.active {
		e.rivalLeases()
	}
	for _, t := range e.sortedTunnels() {
		e.scheduleNegotiation(t)
	}
}

// leaveInherited leaves with its heir what an IKE SA has passed on here when it was
// rekeyed, and what has ended there since: the other side does not know of the rekey. What
// only the other side knows, or has ended, the peer has passed on as well. An IKE SA that is
// unknown here without the peer's word has waited for its DELETE before it went.
func (e *Engine) leaveInherited(ours, theirs *ikeSA) {
	rekeyed := ours != nil && ours.state == stateRekeyed
	theirs.children = slices.DeleteFunc(theirs.children, func(c *childSA) bool {
		k := e.children[c.SPIIn]
		return k != nil && k.ike != ours && (rekeyed || ours == nil && k.ike.established.Sub(theirs.established) >= deleteWait/2)
	})
	if !rekeyed || theirs.state == stateRekeyed {
		return
	}
	if n := e.heir(ours); n != nil {
		e.bequeath(theirs, n)
	}
	theirs.children, theirs.owed = nil, nil
}

// heir is the IKE SA that has what one had that was rekeyed; nil: it was not, or that has ended.
func (e *Engine) heir(sa *ikeSA) *ikeSA {
	for range maxHeirs {
		if sa == nil || sa.state != stateRekeyed {
			break
		}
		if sa = e.bySPIs(sa.successor); sa != nil && sa.lives() {
			return sa
		}
	}
	return nil
}

// maxHeirs bounds the rekeys of an IKE SA one after another that the peer has not deleted.
const maxHeirs = 8

// bequeath gives what an IKE SA has, and has ended, to the one that has inherited the rest.
func (e *Engine) bequeath(sa, n *ikeSA) {
	ended := func(c *childSA) bool { return sa.ended(c.SPIIn) || n.ended(c.SPIIn) }
	children := slices.DeleteFunc(slices.Clone(sa.children), ended)
	if len(children) == 0 && len(sa.owed) == 0 && !slices.ContainsFunc(n.children, ended) {
		return
	}
	merged := e.clone(n)
	merged.children = slices.DeleteFunc(merged.children, ended)
	for _, c := range children {
		k := *c
		merged.childrenSeq++
		k.seq, k.ike = merged.childrenSeq, merged
		merged.children = append(merged.children, &k)
	}
	merged.owed = append(merged.owed, sa.owed...)
	merged.deletedChildren = lastDeleted(slices.Concat(sa.deletedChildren, n.deletedChildren))
	e.take(merged, n)
}

// lastDeleted bounds the Child SAs that are remembered as ended.
func lastDeleted(in []ipsec.ESPSPI) []ipsec.ESPSPI {
	return in[max(len(in)-maxDeletedChildren, 0):]
}

// bury ends what the peer ended on the other side.
func (e *Engine) bury(x Entry) {
	if !x.PeerDeleted {
		return
	}
	for _, sa := range e.sorted() {
		if sa.spis == x.SPIs {
			e.remove(sa, true, "the peer ended it on the other side of the split")
		}
	}
}

// take makes an IKE SA of the other side ours, in place of what we had of it.
func (e *Engine) take(sa, old *ikeSA) {
	d := &childDiff{}
	e.replace(sa, d)
	if old != nil && old.spis != sa.spis {
		e.tx.gone = append(e.tx.gone, Entry{SPIs: old.spis})
	}
	e.touch(sa)
	if !e.active {
		d.emit(e)
		return
	}
	// As the owner, everything rests on the record.
	before := len(e.tx.free)
	d.emit(e)
	for _, x := range e.tx.free[before:] {
		e.hold(sa, x)
	}
	e.tx.free = e.tx.free[:before]
	sa.quiet, sa.rival = true, old == nil
	sa.lastIn, sa.dpdAt = e.now, time.Time{}
	e.dpdDue(sa) // sets when to ask for a peer that says nothing
	if sa.awaitsDelete && sa.state == stateRekeyed && sa.deleteBy.IsZero() {
		sa.deleteBy = e.now.Add(deleteWait)
	}
	if sa.req != nil {
		sa.req.ticket, sa.req.sent, sa.req.attempts = 0, false, 0
		sa.req.wait = e.firstWait(sa, sa.req)
		e.holdMessage(sa, sa.datagram(sa.req.data))
	}
	if sa.tunnel != nil {
		e.tunnelChanged(sa.tunnel, "united")
	}
	e.arm(sa)
	if sa.sync.wanted || sa.closing {
		e.proceed(sa) // nothing else would ever begin what the other side was about
	}
}

// merge unites two states of one IKE SA.
func (e *Engine) merge(ours, theirs *ikeSA) {
	newer := theirs.nextRecv > ours.nextRecv ||
		theirs.nextRecv == ours.nextRecv && (theirs.nextSend > ours.nextSend || finished(theirs, ours))
	keep, other := ours, theirs
	if newer {
		keep, other = theirs, ours
	}
	ended := func(spi ipsec.ESPSPI) bool { return ours.ended(spi) || theirs.ended(spi) }
	owed := slices.Clone(keep.owed)
	for _, spi := range other.owing() {
		if !keep.ended(spi) {
			owed = append(owed, spi)
		}
	}
	doubtful := contested(ours, theirs) || contested(theirs, ours)
	var extra []*childSA
	for _, c := range other.children {
		known := slices.ContainsFunc(keep.children, func(k *childSA) bool { return k.SPIIn == c.SPIIn })
		switch {
		case known || ended(c.SPIIn):
		case !doubtful && c.redundant(keep):
			owed = append(owed, c.SPIIn)
		default:
			extra = append(extra, c)
		}
	}
	same := len(extra) == 0 && len(owed) == len(keep.owed) && !slices.ContainsFunc(keep.children, func(c *childSA) bool { return ended(c.SPIIn) })
	// A request of one side whose answer came to the other, which only counted it: the peer
	// answers it again. One that both sides had sent the other has finished.
	open := other.nextSend > keep.nextSend || other.nextSend == keep.nextSend && keep.req == nil && other.req != nil && !finished(keep, other)
	done := finished(other, keep)
	rekeyed := other.state == stateRekeyed && keep.state != stateRekeyed
	unraised := append(leftLow(ours, theirs), leftLow(theirs, ours)...)
	if !newer && same && !open && !done && !doubtful && !rekeyed && len(unraised) == 0 {
		return
	}
	merged := theirs
	if !newer {
		merged = e.clone(ours)
	}
	for _, c := range extra {
		k := *c
		k.ike = merged
		merged.children = append(merged.children, &k)
	}
	merged.owed = owed
	merged.children = slices.DeleteFunc(merged.children, func(c *childSA) bool { return ended(c.SPIIn) })
	merged.deletedChildren = lastDeleted(slices.Concat(ours.deletedChildren, theirs.deletedChildren))
	// No message ID is used twice: the higher one counts in both directions.
	if open {
		merged.nextSend, merged.lastRequest, merged.req = other.nextSend, other.lastRequest, other.req
	}
	if done {
		merged.req = nil
	}
	if rekeyed { // what it passed on on one side it has passed on
		merged.state, merged.successor, merged.awaitsDelete, merged.closing = other.state, other.successor, other.awaitsDelete, other.closing
	}
	for _, x := range []*ikeSA{ours, theirs} { // what one side wants rekeyed early is
		merged.rekeyNow = merged.rekeyNow || x.rekeyNow
		for _, c := range x.children {
			if i := slices.IndexFunc(merged.children, func(k *childSA) bool { return k.SPIIn == c.SPIIn }); i >= 0 {
				k := merged.children[i]
				k.rekeyNow, k.doubtful = k.rekeyNow || c.rekeyNow, k.doubtful || c.doubtful
			}
		}
	}
	for _, c := range merged.children {
		c.rekeyNow = c.rekeyNow || slices.Contains(unraised, c.SPIIn)
	}
	if doubtful {
		for _, c := range merged.children {
			c.rekeyNow = c.rekeyNow || c.initiator
		}
		if x := merged.req; x != nil && x.kind.exchangeType() == message.CreateChildSA {
			x.contested = true
		}
	}
	e.take(merged, ours)
}

// redundant says that the side which the peer talked to more recently has another Child SA
// with it for the same traffic, made without knowledge of this one.
func (c *childSA) redundant(on *ikeSA) bool {
	return c.state == childInstalled && slices.ContainsFunc(on.children, func(k *childSA) bool {
		return k.state == childInstalled && k.Phase2 == c.Phase2 && k.replaces != c.SPIIn && c.replaces != k.SPIIn && k.SPIOut != c.SPIOut &&
			!k.installed.Before(c.installed) && slices.Equal(k.TSLocal, c.TSLocal) && slices.Equal(k.TSRemote, c.TSRemote)
	})
}

// finished says that one side of a split has the answer to the request that the other awaits.
func finished(a, b *ikeSA) bool {
	return a.req == nil && b.req != nil && a.nextSend == b.nextSend && bytes.Equal(a.lastRequest, b.req.data)
}

// contested says whether a request of one side of a split for new SAs has the message ID of
// another request of the other side. The peer has answered one of them, and nothing in the
// answer says which: if it came to the wrong side, that has made SAs which the peer has not.
func contested(a, b *ikeSA) bool {
	x := a.req
	return x != nil && x.kind.exchangeType() == message.CreateChildSA && x.id < b.nextSend && !bytes.Equal(x.data, b.lastRequest)
}

// leftLow are the Child SAs of one side of a split that the other side did not know when it
// raised its sequence numbers at the peer's request (RFC 6311): the peer, which does know
// them, may refuse what is sent on them, as that was to be among it.
func leftLow(of, raised *ikeSA) (spis []ipsec.ESPSPI) {
	find := func(in *ikeSA, spi ipsec.ESPSPI) *childSA {
		if i := slices.IndexFunc(in.children, func(c *childSA) bool { return c.SPIIn == spi }); i >= 0 {
			return in.children[i]
		}
		return nil
	}
	if !slices.ContainsFunc(raised.children, func(c *childSA) bool {
		k := find(of, c.SPIIn)
		return c.outSeq > 0 && (k == nil || c.outSeq > k.outSeq)
	}) {
		return nil
	}
	for _, c := range of.children {
		if c.state == childInstalled && find(raised, c.SPIIn) == nil {
			spis = append(spis, c.SPIIn)
		}
	}
	return spis
}

// owing are the Child SAs that this side has ended and whose DELETE the peer has not
// acknowledged.
func (sa *ikeSA) owing() []ipsec.ESPSPI {
	if sa.req == nil {
		return sa.owed
	}
	return slices.Concat(sa.owed, sa.req.deletes)
}

// ended says whether this side has ended a Child SA: by the peer's word, or with a
// DELETE that is under way.
func (sa *ikeSA) ended(spi ipsec.ESPSPI) bool {
	alive := slices.ContainsFunc(sa.children, func(c *childSA) bool { return c.SPIIn == spi })
	return slices.Contains(sa.deletedChildren, spi) || !alive && slices.Contains(sa.owing(), spi)
}

// clone copies an IKE SA through its record.
func (e *Engine) clone(sa *ikeSA) *ikeSA {
	c, err := e.decode(e.entry(sa).Value)
	if err != nil {
		panic("ike: own record does not decode: " + err.Error())
	}
	return c
}

// childRivals ends what is left beside a Child SA that the peer uses: both sides of a
// split have answered the same request of the peer, which has taken one of the answers.
func (e *Engine) childRivals(c *childSA) {
	for _, r := range slices.Clone(c.ike.children) {
		if r != c && r.SPIOut == c.SPIOut {
			e.infoChild(r, "the peer uses another Child SA", slog.String("rival", c.SPIIn.String()))
			e.removeChild(r)
			if r.outbound {
				e.useOutbound(c)
			}
		}
	}
}

// rivals lets the peer's authenticated message choose among IKE SAs that a split
// has left side by side: the one that it uses stays.
func (e *Engine) rivals(sa *ikeSA) {
	if sa.tunnel == nil || !sa.lives() || len(sa.children) == 0 {
		return
	}
	if len(sa.tunnel.sas) < 2 {
		return
	}
	for _, r := range slices.Clone(sa.tunnel.sas) {
		if r != sa && r.quiet && (r.rival || sa.rival) && r.lives() && r.peerID == sa.peerID {
			e.info(r, "the peer uses another IKE SA")
			e.remove(r, false, "rival of "+sa.spis.String())
		}
	}
	sa.rival = false
}
