package ike

import (
	"errors"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

var errNotActive = errors.New("this node does not own the tunnels: ask the primary")

// Apply takes over a record on a standby: all of its entries or, should one not
// decode, none. What changes in the data plane is emitted at once.
func (e *Engine) Apply(now time.Time, r Record) {
	defer e.begin(now)()
	if e.active {
		e.log(slog.LevelError, "record ignored: this node is the owner")
		return
	}
	fresh := make([]*ikeSA, len(r.Entries))
	for i, x := range r.Entries {
		if x.Value == nil {
			continue
		}
		sa, err := e.decode(x.Value)
		if err != nil || sa.spis != x.SPIs {
			e.log(slog.LevelError, "record does not decode", slog.String("spi", x.SPIs.String()), slog.Any("error", err))
			return
		}
		fresh[i] = sa
	}
	d := &childDiff{}
	for i, x := range r.Entries {
		if x.Value == nil {
			e.forget(x.SPIs, d)
		}
		switch sa := fresh[i]; {
		case sa == nil:
		case sa.movedTo != 0:
			e.applyMoved(sa, d)
		default:
			e.replace(sa, d)
		}
	}
	d.emit(e)
}

// childDiff gathers what one record changes in the data plane: a Child SA that
// moves from one IKE SA to another changes nothing.
type childDiff struct {
	before, after []*childSA
	done          []ipsec.ESPSPI // that were on their way to another engine
}

func (d *childDiff) emit(e *Engine) {
	find := func(in []*childSA, spi ipsec.ESPSPI) *childSA {
		for _, c := range slices.Backward(in) {
			if c.SPIIn == spi {
				return c
			}
		}
		return nil
	}
	for i, c := range d.after {
		if find(d.after, c.SPIIn) != d.after[i] {
			continue // named twice: the last one counts
		}
		old := find(d.before, c.SPIIn)
		if old == nil {
			e.free(Install{SA: c.ChildSA, SoftBytes: c.softBytes, HardBytes: c.hardBytes, Known: true,
				OutSeq: c.outSeq, InSeq: c.inSeq, Window: c.window, Moves: c.ike.moves})
			c.window, c.brought = nil, e.active
		} else if c.brought = old.brought; old.Local != c.Local || old.Remote != c.Remote || old.UDPEncap != c.UDPEncap || old.TCP != c.TCP {
			e.free(SetPeer{SPIIn: c.SPIIn, Local: c.Local, Remote: c.Remote, UDPEncap: c.UDPEncap, TCP: c.TCP})
		}
		if old != nil && (c.outSeq > old.outSeq || c.inSeq > old.inSeq || !old.floorAt.IsZero()) {
			e.free(Skip{SPIIn: c.SPIIn, Out: c.outSeq, In: c.inSeq})
		}
		if was := old != nil && old.outbound; was != c.outbound {
			e.free(SetOutbound{SPIIn: c.SPIIn, Use: c.outbound})
		}
	}
	for _, old := range d.before {
		if find(d.after, old.SPIIn) == nil {
			e.free(Remove{SPIIn: old.SPIIn})
		}
	}
	for _, spi := range d.done {
		e.free(Detach{SPIIn: spi, Done: true})
	}
}

// forget takes an IKE SA out of a standby's state.
func (e *Engine) forget(spis ipsec.IKESPIs, d *childDiff) {
	for _, own := range []ipsec.IKESPI{spis.I, spis.R} {
		if sa := e.sas[own]; sa != nil && sa.spis == spis {
			e.unload(sa, d)
		}
		if sa := e.shelf[own]; sa != nil && sa.spis == spis {
			e.unshelve(sa, d)
		}
	}
}

// unload removes an IKE SA without any of the consequences of its end.
func (e *Engine) unload(sa *ikeSA, d *childDiff) {
	for _, c := range slices.Clone(sa.children) {
		e.release(c, d)
	}
	e.closeHalfOpen(sa)
	e.unroute(sa)
	e.dropAddresses(sa, true)
	e.unlinkPeer(sa)
	delete(e.sas, sa.ownSPI())
	delete(e.copying, sa.ownSPI())
	e.unrefKey(sa.keyID)
	e.unrefPending(sa)
	sa.state = stateGone
	sa.eap.close()
	e.arm(sa)
	if t := sa.tunnel; t != nil {
		t.sas = slices.DeleteFunc(t.sas, func(x *ikeSA) bool { return x == sa })
		e.standbyTunnel(t)
	}
}

// release takes a Child SA off its IKE SA.
func (e *Engine) release(c *childSA, d *childDiff) {
	d.before = append(d.before, c)
	if e.children[c.SPIIn] == c {
		delete(e.children, c.SPIIn)
	}
	e.unrefKey(c.KeyID)
	c.ike.children = slices.DeleteFunc(c.ike.children, func(x *childSA) bool { return x == c })
}

// replace puts an IKE SA from a record in the place of what was known of it.
func (e *Engine) replace(sa *ikeSA, d *childDiff) {
	// Count the new references first, so that no key is forgotten in between.
	for _, c := range sa.children {
		e.refKey(c.KeyID)
	}
	e.refKey(sa.keyID)
	if sa.req != nil {
		e.refKey(sa.req.keyID)
	}
	for _, h := range sa.half {
		e.refKey(h.keyID)
	}
	old := e.sas[sa.ownSPI()]
	if old != nil {
		sa.sealer, sa.opener = reuse(old, sa)
		sa.inheritRoute(old)
		e.unload(old, d)
	}
	if was := e.shelf[sa.ownSPI()]; was != nil { // and has come back
		sa.inheritRoute(was)
		e.unshelve(was, d)
	}
	if sa.tunnel != nil { // unload may have let go of the last instance's name
		sa.tunnel = e.tunnelOf(sa.tunnel.name, sa.tunnel.phase1, sa.tunnel.dialup, sa.tunnel.index)
	}
	e.insert(sa)
	e.route(sa)
	e.unrefKey(sa.keyID) // counted above already
	if old != nil {
		sa.seq = old.seq
	}
	if sa.state == stateHalfOpen {
		sa.initKey = keyOfInit(Datagram{Remote: sa.remote, Data: sa.initRequest})
		e.inits[sa.initKey] = sa
	}
	for _, c := range sa.children {
		if was := e.children[c.SPIIn]; was != nil {
			e.release(was, d) // inherited from an IKE SA whose end is yet to be named
		}
		e.children[c.SPIIn] = c
		d.after = append(d.after, c)
	}
	if e.copying != nil {
		e.copying[sa.ownSPI()] = true
	} else if sa.initialContact && (old == nil || !old.initialContact) {
		e.tellInitialContact(sa)
	}
	if sa.tunnel != nil {
		e.standbyTunnel(sa.tunnel)
	}
}

// reuse keeps the ciphers of an IKE SA whose keys are the same.
func reuse(old, sa *ikeSA) (message.Sealer, message.Opener) {
	if string(old.keys.Ei.Bytes()) == string(sa.keys.Ei.Bytes()) && string(old.keys.Er.Bytes()) == string(sa.keys.Er.Bytes()) &&
		string(old.keys.Ai.Bytes()) == string(sa.keys.Ai.Bytes()) && string(old.keys.Ar.Bytes()) == string(sa.keys.Ar.Bytes()) {
		return old.sealer, old.opener
	}
	return nil, nil
}

// standbyTunnel keeps the oper state of a tunnel on a standby.
func (e *Engine) standbyTunnel(t *tunnel) {
	t.up = slices.ContainsFunc(t.sas, func(sa *ikeSA) bool { return sa.state == stateEstablished && !sa.closing })
	if len(t.sas) == 0 && t.dialup {
		e.forgetTunnel(t)
	}
}

// BeginCopy starts a full copy: what Apply does not name until EndCopy is removed.
func (e *Engine) BeginCopy() { e.copying = map[ipsec.IKESPI]bool{} }

// EndCopy removes what the copy did not name.
func (e *Engine) EndCopy() {
	if e.copying == nil {
		return
	}
	defer e.begin(e.now)()
	named := e.copying
	e.copying = nil
	d := &childDiff{}
	for _, sa := range e.sorted() {
		if !named[sa.ownSPI()] {
			e.unload(sa, d)
		}
	}
	for _, sa := range e.sortedMoved() {
		if !named[sa.ownSPI()] {
			e.unshelve(sa, d)
		}
	}
	d.emit(e)
	if !e.leases.keep && (!e.leases.homes.Given || e.leases.homes.All) {
		e.leases.settle() // the copy says all that is taken
	}
	e.leases.keep = false
}

// Snapshot is a full copy for a member that enters the sync set.
func (e *Engine) Snapshot(now time.Time) []Entry {
	return e.SnapshotOf(now, e.SPIs())
}

// SPIs names the IKE SAs of a full copy, in its order, for SnapshotOf.
func (e *Engine) SPIs() []ipsec.IKESPIs {
	all := append(e.sorted(), e.sortedMoved()...)
	out := make([]ipsec.IKESPIs, len(all))
	for i, sa := range all {
		out[i] = sa.spis
	}
	return out
}

// SnapshotOf is a part of a full copy: those that still are.
func (e *Engine) SnapshotOf(now time.Time, of []ipsec.IKESPIs) []Entry {
	e.now = now
	var out []Entry
	for _, spis := range of {
		sa := e.bySPIs(spis)
		if sa == nil {
			sa = e.shelved(spis)
		}
		if sa != nil {
			out = append(out, e.entry(sa))
		}
	}
	return out
}

// Resume begins ownership: timers run again from the ages in the records, and
// outstanding requests are sent once more, to the bit. Nothing new is begun on
// an IKE SA until its peer is heard; tunnels without any SA negotiate as configured.
func (e *Engine) Resume(now time.Time) {
	defer e.begin(now)()
	if e.active {
		return
	}
	e.active, e.copying = true, nil
	early, counters := 0, 0
	for _, sa := range e.sorted() {
		early = sa.paceRekeys(now, early)
		counters = e.paceCounters(sa, counters)
		sa.lastIn, sa.dpdAt, sa.keepaliveAt = now, time.Time{}, time.Time{}
		sa.quiet, sa.probe = true, nil
		sa.reach = sa.dials()
		if sa.awaitsDelete && sa.state == stateRekeyed && sa.deleteBy.IsZero() {
			sa.deleteBy = now.Add(deleteWait)
		}
		e.leaveOlder(sa)
		e.paceTakeOver(sa)
		if e.behind {
			e.wantSync(sa)
		}
		if x := sa.req; x != nil && !sa.sync.wanted {
			x.ticket, x.attempts, x.wait = 0, 0, e.firstWait(sa, x)
			x.started(now)
			e.counters.Retransmitted++
			e.logSent(sa, "RETRANSMIT_"+x.String(), x.id, len(x.data))
			e.freeMessage(sa.datagram(x.data))
		}
		e.closeUnconfigured(sa)
		e.keepalive(sa)
		e.proceed(sa)
		e.arm(sa)
	}
	e.behind, e.died = false, false
	for i := range e.cfg.Phase1 {
		if p1 := &e.cfg.Phase1[i]; !p1.Dialup() {
			e.staticTunnel(p1)
		}
	}
	for _, t := range e.sortedTunnels() {
		e.startTunnel(t)
	}
}

// startTunnel negotiates at once what must stand by itself.
func (e *Engine) startTunnel(t *tunnel) {
	t.tryAt = time.Time{}
	if e.idleStart(t) || len(e.missing(t)) > 0 {
		e.negotiate(t)
	}
	e.scheduleNegotiation(t)
}

// Suspend ends ownership: held messages are dropped, and nothing leaves any more.
// What was held for the data plane happens, as it would on a standby: the SAs
// installed and the SAs of the engine stay the same set.
func (e *Engine) Suspend(now time.Time) {
	defer e.begin(now)()
	e.active = false
	for _, b := range e.held {
		for _, h := range b.effects {
			if h.sa == nil || h.sa.goneAt <= b.ticket {
				e.push(h.Effect)
			}
		}
	}
	e.held = nil
	e.done = e.last
	e.out, e.outAt = slices.DeleteFunc(slices.Clone(e.out[e.outAt:]), leaves), 0
	for _, sa := range e.sorted() {
		if sa.req != nil {
			sa.req.sent = false
		}
		sa.quiet, sa.probe = false, nil
		sa.sync.attempts, sa.sync.next = 0, time.Time{}
		e.dropFragments(sa)
		e.arm(sa)
	}
	for _, t := range e.sortedTunnels() {
		t.tryAt = time.Time{}
		t.wants = nil
		e.arm(t)
	}
}

// leaves says whether an effect would be seen outside.
func leaves(x Effect) bool {
	switch x.(type) {
	case Send, SendKeepalive, Persist, Moved, Adopted:
		return true
	}
	return false
}
