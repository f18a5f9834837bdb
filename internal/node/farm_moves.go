package node

import (
	"log/slog"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

const (
	// A tunnel follows its authenticated inbound packets when for this long, and so many,
	// all came through one other member.
	driftTime    = 250 * time.Millisecond
	driftPackets = 2
	// settleTime is how long a tunnel stays where it has come to, alone or with its slot.
	settleTime = time.Second
	// movesAtOnce bounds the tunnels that are on their way from this member.
	movesAtOnce = 64
	offerAgain  = 300 * time.Millisecond
	offerWait   = 20 * time.Millisecond // for an owner that is not known at the moment
	askEvery    = 10 * time.Second      // whether tunnels that were moved away still exist

	strictAntiReplay = "strict-anti-replay" // asymmetric-traffic-control: tunnels stay
)

// place is where the Child SA of an SPI belongs.
type place struct {
	scope cluster.ScopeID
	moves uint32
}

// drift is inbound traffic that arrives at another member than the owner.
type drift struct {
	from    cluster.NodeID
	since   time.Time
	packets uint64
}

// offer is a tunnel that was given away by record, and not taken yet.
type offer struct {
	scope, to cluster.ScopeID
	spis      ipsec.IKESPIs
	next      time.Time
}

// pointer is where packets of an SPI go that is not in the data plane here.
type pointer struct {
	by    cluster.ScopeID // that moved it
	moves uint32
	to    xfrm.Scope
}

// drifting takes a report of forwarded traffic, and gives the tunnel to the member that
// it comes through when that lasts.
func (f *Farm) drifting(now time.Time, e xfrm.ForwardedTraffic) {
	p, ok := f.spis[e.SPIIn]
	if !ok || !f.Owns(xfrm.Scope(p.scope)) || f.cfg.Standalone.AsymmetricTrafficControl == strictAntiReplay {
		return
	}
	from := cluster.NodeID(e.From)
	d := f.drifts[e.SPIIn]
	owned := f.scopes[p.scope].ownedAt
	if d == nil || d.from != from || e.Direct > 0 || d.since.Before(owned) {
		f.drifts[e.SPIIn] = &drift{from: from, since: now}
		return
	}
	d.packets += e.Packets
	if now.Sub(d.since) < driftTime || d.packets < driftPackets || now.Sub(f.arrived[e.SPIIn]) < settleTime || now.Sub(owned) < settleTime || len(f.offers) >= movesAtOnce {
		return
	}
	if to, ok := f.slotOf(from, p.scope, e.SPIIn, now.Sub(d.since) >= driftTime+settleTime); ok {
		f.with(p.scope, func(n *Node) { n.move(now, e.SPIIn, to) })
	}
}

// slotOf chooses one of the slots that a member owns, for a tunnel of ours: one whose records
// everybody has who has the tunnel's now (the LAN's packets may arrive with any of them, and
// without a copy they find no way), or at least this member, unless the tunnel has waited
// for such a one; and not one that goes home to another member soon, if there is a choice.
func (f *Farm) slotOf(id cluster.NodeID, from cluster.ScopeID, spi ipsec.ESPSPI, waited bool) (cluster.ScopeID, bool) {
	m, known := f.decided.Member(id)
	p := f.peers[id]
	if !known || !m.Able() || !p.Running || len(p.Owned) == 0 {
		return 0, false
	}
	old, _ := f.decided.Scope(from)
	holds := func(s cluster.ScopeID, nodes ...cluster.NodeID) bool {
		x, _ := f.decided.Scope(s)
		return !slices.ContainsFunc(nodes, func(n cluster.NodeID) bool { return n != id && !slices.Contains(x.Sync, n) })
	}
	wishes := []func(cluster.ScopeID) bool{
		func(s cluster.ScopeID) bool { return holds(s, append(old.Sync, f.opt.Self)...) },
		func(s cluster.ScopeID) bool { return holds(s, f.opt.Self) },
	}
	if waited {
		wishes = append(wishes, func(cluster.ScopeID) bool { return true })
	}
	for _, wish := range wishes {
		good := slices.DeleteFunc(slices.Clone(p.Owned), func(t cluster.Tenure) bool { return !wish(t.Scope) })
		keeps := slices.DeleteFunc(slices.Clone(good), func(t cluster.Tenure) bool { return f.decided.Home(t.Scope) != id })
		if len(keeps) == 0 {
			keeps = good
		}
		if len(keeps) > 0 {
			return keeps[int(uint32(spi)/uint32(shares))%len(keeps)].Scope, true
		}
	}
	return 0, false
}

// HandleDetached answers the oldest open Detach of a scope; ok is false when packets
// waited for a bound, and nothing was taken out.
func (f *Farm) HandleDetached(now time.Time, s xfrm.Scope, ws []xfrm.Window, ok bool) {
	f.with(cluster.ScopeID(s), func(n *Node) { n.HandleDetached(now, ws, ok) })
}

// movedAway: the record stands, so the tunnel may be taken.
func (f *Farm) movedAway(id cluster.ScopeID, e movedAway) {
	o := &offer{scope: id, to: e.to, spis: e.spis}
	f.offers = append(f.offers, o)
	f.offer(e.now, o)
}

// offer tells the owner of the other scope, again until it has answered.
func (f *Farm) offer(now time.Time, o *offer) {
	n := f.scopes[o.scope]
	entry, open := n.ike.Offer(now, o.spis)
	if !open || !f.Owns(xfrm.Scope(o.scope)) {
		f.offers = slices.DeleteFunc(f.offers, func(x *offer) bool { return x == o })
		return
	}
	o.next = now.Add(offerAgain)
	l := statesync.Letter{Kind: statesync.LetterOffer, Other: o.scope, Entries: []statesync.Entry{statesync.Entry(entry)}}
	if !f.write(now, o.to, f.opt.Self, l) {
		o.next = now.Add(offerWait)
	}
}

// write sends a letter to the owner of a scope, who may be this member.
func (f *Farm) write(now time.Time, to cluster.ScopeID, from cluster.NodeID, l statesync.Letter) bool {
	if f.Owns(xfrm.Scope(to)) {
		f.letter(now, to, from, l)
		return true
	}
	owner := f.ownerOf(to)
	process, up := f.streams[owner]
	if owner == 0 || !up {
		return false
	}
	if f.scopes[to] == nil {
		f.add(now, to)
	}
	f.with(to, func(n *Node) { n.journal.Write(now, owner, process, l); n.pump(now) })
	return true
}

// letter takes what the owner of another scope writes about tunnels that move between
// that scope and this one.
func (f *Farm) letter(now time.Time, id cluster.ScopeID, from cluster.NodeID, l statesync.Letter) {
	if !f.Owns(xfrm.Scope(id)) {
		return // it is written again, to whoever does
	}
	f.with(id, func(n *Node) { n.resume(now); n.pump(now) })
	var answer []statesync.Entry
	kind := statesync.LetterRefused
	for _, x := range toIKE(l.Entries) {
		switch l.Kind {
		case statesync.LetterOffer:
			f.with(id, func(n *Node) {
				if err := n.ike.Adopt(now, x, uint32(l.Other)); err != nil {
					n.log(slog.LevelWarn, "a tunnel that another member gives away is not taken", slog.String("spi", x.SPIs.String()),
						slog.Any("from", from), slog.Any("error", err))
					answer = append(answer, statesync.Entry{SPIs: x.SPIs})
				}
				n.pump(now)
			})
		case statesync.LetterAdopted:
			f.with(id, func(n *Node) { n.ike.WasAdopted(now, x.SPIs); n.pump(now) })
			f.offers = slices.DeleteFunc(f.offers, func(o *offer) bool { return o.scope == id && o.spis == x.SPIs })
		case statesync.LetterRefused:
			f.with(id, func(n *Node) {
				if e, ok := n.ike.Offer(now, x.SPIs); ok {
					if err := n.ike.Adopt(now, e, uint32(id)); err != nil {
						n.log(slog.LevelError, "a tunnel is lost between two members", slog.String("spi", x.SPIs.String()), slog.Any("error", err))
					}
				}
				n.pump(now)
			})
			f.offers = slices.DeleteFunc(f.offers, func(o *offer) bool { return o.scope == id && o.spis == x.SPIs })
		case statesync.LetterAsked:
			kind = statesync.LetterEnded
			if !f.scopes[id].ike.HasTunnel(string(x.Value)) {
				answer = append(answer, statesync.Entry{SPIs: x.SPIs})
			}
		case statesync.LetterEnded:
			f.with(id, func(n *Node) { n.ike.Forgotten(now, x.SPIs); n.pump(now) })
		}
	}
	if len(answer) > 0 {
		f.write(now, l.Other, f.opt.Self, statesync.Letter{Kind: kind, Other: id, Entries: answer})
	}
}

// movedHere: the record stands, so this member carries the tunnel; who gave it away is told.
func (f *Farm) movedHere(id cluster.ScopeID, e movedHere) {
	for _, spi := range e.children {
		f.arrived[spi] = e.now
	}
	if len(e.children) > 0 {
		f.counters.OwnerMoves++
	}
	if e.from != id {
		f.write(e.now, e.from, f.opt.Self, statesync.Letter{Kind: statesync.LetterAdopted, Other: id, Entries: []statesync.Entry{{SPIs: e.spis}}})
	}
}

// moves does what is due about tunnels that were moved.
func (f *Farm) moves(now time.Time) {
	for _, o := range slices.Clone(f.offers) {
		if !now.Before(o.next) {
			f.offer(now, o)
		}
	}
	for _, x := range f.superseded {
		f.with(x.scope, func(n *Node) { n.resume(now); n.ike.Supersede(now, x.spi); n.pump(now) })
	}
	f.superseded = nil
	if at, ok := f.askAt(); ok && !now.Before(at) {
		f.asked = now
		f.ask(now)
	}
}

func (f *Farm) nextMove() (t time.Time, ok bool) {
	t, ok = f.askAt()
	for _, o := range f.offers {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return o.next, true })
	}
	if len(f.superseded) > 0 {
		return time.Time{}, true
	}
	return t, ok
}

func (f *Farm) askAt() (time.Time, bool) {
	any := slices.ContainsFunc(f.order, func(id cluster.ScopeID) bool { n := f.scopes[id]; return n.owner && n.ike.ShelfLen() > 0 })
	return f.asked.Add(askEvery), any
}

// ask finds out which tunnels that were moved away have ended since: what was kept of
// them, so that no name and no SPI is given out twice, can go.
func (f *Farm) ask(now time.Time) {
	for _, id := range f.order {
		if !f.Owns(xfrm.Scope(id)) {
			continue
		}
		by := map[cluster.ScopeID][]statesync.Entry{}
		var order []cluster.ScopeID
		for _, s := range f.scopes[id].ike.Shelf() {
			to := cluster.ScopeID(s.To)
			if !s.Adopted {
				continue
			}
			if by[to] == nil {
				order = append(order, to)
			}
			by[to] = append(by[to], statesync.Entry{SPIs: s.SPIs, Value: []byte(s.Tunnel)})
		}
		for _, to := range order {
			f.write(now, to, f.opt.Self, statesync.Letter{Kind: statesync.LetterAsked, Other: id, Entries: by[to]})
		}
	}
}

// pointed publishes where packets of an SPI go; of several, the latest move counts.
func (f *Farm) pointed(id cluster.ScopeID, e pointed) {
	was, known := f.pointers[e.SPIIn]
	switch {
	case e.To == 0:
		if known && was.by == id {
			delete(f.pointers, e.SPIIn)
			f.emit(Pointer{SPIIn: e.SPIIn})
		}
	case !known || was.by == id || was.moves <= e.Moves:
		to := xfrm.Scope(e.To)
		if !e.Adopted {
			to = OnItsWay
		}
		f.pointers[e.SPIIn] = pointer{id, e.Moves, to}
		f.emit(Pointer{SPIIn: e.SPIIn, To: to})
	}
}

// install takes a Child SA into the data plane, for one scope only: after a split two
// may have it, and the one to which it was moved later is right.
func (f *Farm) install(id cluster.ScopeID, e Install) {
	spi := e.SA.SPIIn
	if was, ok := f.spis[spi]; ok && was.scope != id {
		if e.moves < was.moves {
			return
		}
		f.emit(Remove{SPIIn: spi})
		if n := f.scopes[was.scope]; n.owner {
			f.superseded = append(f.superseded, superseded{was.scope, spi})
		}
	}
	f.spis[spi] = place{id, e.moves}
	f.emit(e)
}

func (f *Farm) remove(id cluster.ScopeID, e Remove) {
	if f.spis[e.SPIIn].scope != id {
		return
	}
	delete(f.spis, e.SPIIn)
	delete(f.drifts, e.SPIIn)
	delete(f.arrived, e.SPIIn)
	f.emit(e)
}

// superseded is an SA that another scope has by a later move.
type superseded struct {
	scope cluster.ScopeID
	spi   ipsec.ESPSPI
}

// sharedKeys are the nonces of one scope's engine in the ledger that all share: a key
// that passes from scope to scope is forgotten by the last one.
type sharedKeys struct {
	*statesync.Ledger
	f  *Farm
	id cluster.ScopeID
}

// Forget implements ike.Nonces.
func (s sharedKeys) Forget(k ipsec.KeyID) {
	for id, n := range s.f.scopes {
		if id != s.id && n.ike.Holds(k) {
			return
		}
	}
	s.Ledger.Forget(k)
}
