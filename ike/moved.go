package ike

import (
	"errors"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// A tunnel moves from one engine to another of the same cluster in two steps, each a
// record of its own side: Move shelves it here, with everything that is needed to go on;
// Adopt takes it over there. In between nobody acts on it. When it was adopted only
// names are left here: its SPIs and its instance's index are not given out anew.

var (
	errNotOffered    = errors.New("this is not an IKE SA on its way to another member")
	errNotConfigured = errors.New("its phase 1 is not configured here")
	errTaken         = errors.New("its SPIs are in use here")
)

// Detach takes a Child SA out of the data plane whose tunnel is on its way to another
// engine; the routes to it stay. Done: it is elsewhere now, and its own routes with it.
type Detach struct {
	SPIIn ipsec.ESPSPI
	Done  bool
}

// Pointer tells where packets of a Child SA go that is not in the data plane here: to
// the scope To; on its way as long as it is not Adopted. To is 0 when nothing is known
// of it any more.
type Pointer struct {
	SPIIn   ipsec.ESPSPI
	To      uint32
	Moves   uint32
	Adopted bool
}

// Moved says that the tunnel of an IKE SA may be adopted by the scope To: nobody here acts on it.
type Moved struct {
	SPIs ipsec.IKESPIs
	To   uint32
}

// Adopted says that this engine has taken over an IKE SA that the scope From moved here.
type Adopted struct {
	SPIs     ipsec.IKESPIs
	From     uint32
	Children []ipsec.ESPSPI
}

func (Detach) effect()  {}
func (Pointer) effect() {}
func (Moved) effect()   {}
func (Adopted) effect() {}

// Movable says whether the tunnel of a Child SA can move now: a dialup instance with one
// IKE SA, of which nothing is under way. It returns its IKE SA and all its Child SAs.
func (e *Engine) Movable(spi ipsec.ESPSPI) (spis ipsec.IKESPIs, children []ipsec.ESPSPI, ok bool) {
	c := e.children[spi]
	if c == nil || !e.movable(c.ike) {
		return spis, nil, false
	}
	for _, c := range c.ike.children {
		children = append(children, c.SPIIn)
	}
	return c.ike.spis, children, true
}

func (e *Engine) movable(sa *ikeSA) bool {
	t := sa.tunnel
	return e.active && t != nil && t.dialup && len(t.sas) == 1 && sa.lives() && sa.req == nil && len(sa.owed) == 0 && len(sa.half) == 0 &&
		!sa.awaitsDelete && !sa.quiet && !sa.movesAddress() && sa.countersAt.IsZero() && sa.ticket <= e.done && len(sa.wants) == 0 &&
		!slices.ContainsFunc(sa.children, func(c *childSA) bool { return c.state != childInstalled })
}

// Move shelves the tunnel of an IKE SA, whose Child SAs have left the data plane with
// these exact windows. Moved follows when the record is committed.
func (e *Engine) Move(now time.Time, spis ipsec.IKESPIs, to uint32, windows []ipsec.Window) bool {
	defer e.begin(now)()
	sa := e.bySPIs(spis)
	if sa == nil || !e.movable(sa) {
		return false
	}
	for _, c := range sa.children {
		i := slices.IndexFunc(windows, func(w ipsec.Window) bool { return w.SPIIn == c.SPIIn })
		if i < 0 {
			return false
		}
		c.outSeq, c.inSeq, c.inAccepted = windows[i].OutSeq, windows[i].InSeq, windows[i].InAccepted
	}
	e.info(sa, "tunnel moves to another member, where its packets arrive")
	sa.movedTo, sa.adopted = to, false
	e.touch(sa)
	t := sa.tunnel
	t.sas, t.tryAt = nil, time.Time{}
	e.arm(t)
	delete(e.tunnels, t.name)
	e.unlinkPeer(sa)
	delete(e.sas, sa.ownSPI())
	for _, c := range sa.children {
		delete(e.children, c.SPIIn)
	}
	e.arm(sa)
	e.shelve(sa)
	for _, c := range sa.children {
		e.free(Detach{SPIIn: c.SPIIn})
	}
	e.hold(sa, Moved{SPIs: spis, To: to})
	return true
}

func (e *Engine) bySPIs(spis ipsec.IKESPIs) *ikeSA {
	for _, own := range []ipsec.IKESPI{spis.I, spis.R} {
		if sa := e.sas[own]; sa != nil && sa.spis == spis && sa.ownSPI() == own {
			return sa
		}
	}
	return nil
}

// shelve makes an IKE SA known as moved; its keys have been counted.
func (e *Engine) shelve(sa *ikeSA) {
	e.seq++
	sa.seq = e.seq
	e.shelf[sa.ownSPI()] = sa
	for _, c := range sa.children {
		e.shelfChildren[c.SPIIn] = sa
		e.free(Pointer{SPIIn: c.SPIIn, To: sa.movedTo, Moves: sa.moves, Adopted: sa.adopted})
	}
}

// unshelve forgets an IKE SA that was moved. The routes of what was on its way are let
// go of after those of what takes its place.
func (e *Engine) unshelve(sa *ikeSA, d *childDiff) {
	delete(e.shelf, sa.ownSPI())
	if sa.tunnel != nil {
		e.freeIndex(sa.tunnel)
	}
	for _, c := range sa.children {
		delete(e.shelfChildren, c.SPIIn)
		e.free(Pointer{SPIIn: c.SPIIn})
	}
	e.unroute(sa)
	e.unrefMoved(sa)
	if !sa.adopted {
		for _, c := range sa.children {
			d.done = append(d.done, c.SPIIn)
		}
	}
	sa.state = stateGone
}

func (e *Engine) unrefMoved(sa *ikeSA) {
	for _, c := range sa.children {
		e.unrefKey(c.KeyID)
	}
	e.unrefKey(sa.keyID)
}

// sortedMoved lists the moved IKE SAs in the order in which they became known.
func (e *Engine) sortedMoved() []*ikeSA { return inOrder(e.shelf) }

// ShelfLen is how many IKE SAs were moved.
func (e *Engine) ShelfLen() int { return len(e.shelf) }

// Shelved is an IKE SA that was moved.
type Shelved struct {
	SPIs    ipsec.IKESPIs
	Tunnel  string
	To      uint32
	Adopted bool
}

// Shelf lists the IKE SAs that were moved.
func (e *Engine) Shelf() []Shelved {
	var out []Shelved
	for _, sa := range e.sortedMoved() {
		out = append(out, Shelved{sa.spis, sa.name(), sa.movedTo, sa.adopted})
	}
	return out
}

// MovedTo says to which scope the IKE SA of a message was moved.
func (e *Engine) MovedTo(d []byte) (to uint32, adopted, ok bool) {
	h, err := message.ParseHeader(d)
	if err != nil {
		return 0, false, false
	}
	own := h.SPIs.I
	if h.Initiator {
		own = h.SPIs.R
	}
	sa := e.shelf[own]
	if sa == nil || sa.initiator == h.Initiator {
		return 0, false, false
	}
	return sa.movedTo, sa.adopted, true
}

// HasTunnel says whether a tunnel exists here, or was moved on from here.
func (e *Engine) HasTunnel(name string) bool {
	if e.tunnels[name] != nil {
		return true
	}
	for _, sa := range e.shelf {
		if sa.name() == name {
			return true
		}
	}
	return false
}

// Holds says whether something here uses the key.
func (e *Engine) Holds(id ipsec.KeyID) bool { return e.keyRefs[id] > 0 }

// Offer is what another engine needs to adopt a moved IKE SA.
func (e *Engine) Offer(now time.Time, spis ipsec.IKESPIs) (Entry, bool) {
	sa := e.shelved(spis)
	if sa == nil || sa.adopted {
		return Entry{}, false
	}
	e.now = now
	return e.entry(sa), true
}

func (e *Engine) shelved(spis ipsec.IKESPIs) *ikeSA {
	for _, own := range []ipsec.IKESPI{spis.I, spis.R} {
		if sa := e.shelf[own]; sa != nil && sa.spis == spis {
			return sa
		}
	}
	return nil
}

// Adopt takes over an IKE SA that the scope from offers. Adopted follows when the record
// is committed; at once for one that was adopted before. An error means that it never will be.
func (e *Engine) Adopt(now time.Time, x Entry, from uint32) error {
	defer e.begin(now)()
	if !e.active {
		return errNotActive
	}
	sa, err := e.decode(x.Value)
	switch {
	case err != nil:
		return err
	case sa.spis != x.SPIs || sa.movedTo == 0 || sa.adopted || sa.tunnel == nil:
		return errNotOffered
	case sa.p1 == nil:
		return errNotConfigured
	}
	own := sa.ownSPI()
	for _, ours := range []*ikeSA{e.sas[own], e.shelf[own]} {
		switch {
		case ours == nil:
		case ours.spis != sa.spis:
			return errTaken
		case ours.moves > sa.moves:
			if ours.ticket <= e.done {
				e.free(Adopted{SPIs: sa.spis, From: from})
			}
			return nil
		case ours.movedTo == 0:
			return errTaken
		}
	}
	for _, c := range sa.children {
		other := e.shelfChildren[c.SPIIn]
		if e.children[c.SPIIn] != nil || other != nil && other.spis != sa.spis {
			return errTaken
		}
	}
	sa.movedTo = 0
	sa.moves++
	d := &childDiff{}
	e.replace(sa, d)
	e.touch(sa)
	for _, c := range sa.children {
		c.window = &ipsec.Window{SPIIn: c.SPIIn, OutSeq: c.outSeq, InSeq: c.inSeq, InAccepted: c.inAccepted}
		c.inAccepted = nil
	}
	// Everything rests on the record.
	before := len(e.tx.free)
	d.emit(e)
	for _, x := range e.tx.free[before:] {
		e.hold(sa, x)
	}
	e.tx.free = e.tx.free[:before]
	a := Adopted{SPIs: sa.spis, From: from}
	for _, c := range sa.children {
		a.Children = append(a.Children, c.SPIIn)
	}
	e.hold(sa, a)
	sa.lastIn, sa.dpdAt = now, time.Time{}
	e.info(sa, "tunnel moved here, where its packets arrive", slog.Uint64("moves", uint64(sa.moves)))
	e.tunnelChanged(sa.tunnel, "moved")
	e.keepalive(sa)
	e.arm(sa)
	return nil
}

// WasAdopted says that the engine to which an IKE SA was moved has taken it over: what
// is secret of it is forgotten here.
func (e *Engine) WasAdopted(now time.Time, spis ipsec.IKESPIs) {
	defer e.begin(now)()
	sa := e.shelved(spis)
	if sa == nil || sa.adopted || !e.active {
		return
	}
	e.touch(sa)
	e.unroute(sa)
	e.unrefMoved(sa)
	sa.adopted, sa.keyID = true, 0
	sa.wipe()
	sa.lastRequest, sa.lastResponse, sa.initRequest, sa.initResponse, sa.nonceI, sa.nonceR = nil, nil, nil, nil, nil, nil
	for _, c := range sa.children {
		e.free(Detach{SPIIn: c.SPIIn, Done: true})
		e.free(Pointer{SPIIn: c.SPIIn, To: sa.movedTo, Moves: sa.moves, Adopted: true})
		*c = childSA{ChildSA: ipsec.ChildSA{SPIIn: c.SPIIn, Phase2: c.Phase2}, state: c.state, ike: sa}
	}
}

// Forgotten says that a tunnel that was moved does not exist any more.
func (e *Engine) Forgotten(now time.Time, spis ipsec.IKESPIs) {
	defer e.begin(now)()
	sa := e.shelved(spis)
	if sa == nil || !sa.adopted || !e.active {
		return
	}
	e.unshelve(sa, &childDiff{})
	e.tx.gone = append(e.tx.gone, Entry{SPIs: spis})
}

// applyMoved takes over the record of a moved IKE SA on a standby.
func (e *Engine) applyMoved(sa *ikeSA, d *childDiff) {
	if !sa.adopted {
		for _, c := range sa.children {
			e.refKey(c.KeyID)
		}
		e.refKey(sa.keyID)
	}
	own := sa.ownSPI()
	for _, old := range []*ikeSA{e.sas[own], e.shelf[own]} {
		if old != nil && !sa.adopted {
			sa.inheritRoute(old)
		}
	}
	if old := e.sas[own]; old != nil {
		was := &childDiff{}
		e.unload(old, was)
		for _, c := range was.before {
			if sa.adopted || !slices.ContainsFunc(sa.children, func(x *childSA) bool { return x.SPIIn == c.SPIIn }) {
				d.before = append(d.before, c)
				continue
			}
			e.free(Detach{SPIIn: c.SPIIn})
		}
	}
	if old := e.shelf[own]; old != nil {
		was := &childDiff{}
		e.unshelve(old, was)
		if sa.adopted {
			d.done = append(d.done, was.done...)
		}
	}
	e.shelve(sa)
	if e.copying != nil {
		e.copying[own] = true
	}
}

// movedIndexes adds the instances of a dialup phase 1 that live on elsewhere.
func (e *Engine) movedIndexes(phase1 string, used map[int]*tunnel) {
	for _, sa := range e.shelf {
		if t := sa.tunnel; t != nil && t.phase1 == phase1 {
			used[t.index] = t
		}
	}
}

// movedSince says whether the other side's state of an IKE SA is older than its latest move.
func (e *Engine) movedSince(theirs *ikeSA) bool {
	own := theirs.ownSPI()
	if m := e.shelf[own]; m != nil && m.spis == theirs.spis && m.moves >= theirs.moves {
		return true
	}
	ours := e.sas[own]
	return ours != nil && ours.spis == theirs.spis && ours.moves > theirs.moves
}

// takeMoved shelves what the other side has moved away.
func (e *Engine) takeMoved(theirs *ikeSA) {
	d := &childDiff{}
	e.applyMoved(theirs, d)
	e.touch(theirs)
	d.emit(e)
	if !theirs.adopted {
		e.hold(theirs, Moved{SPIs: theirs.spis, To: theirs.movedTo})
	}
}

// Supersede ends an IKE SA of which a record that was moved more often has come to
// another engine here: both sides of a split had it.
func (e *Engine) Supersede(now time.Time, spi ipsec.ESPSPI) {
	defer e.begin(now)()
	if c := e.children[spi]; c != nil && e.active {
		e.remove(c.ike, false, "the tunnel was moved to another member meanwhile")
	}
}
