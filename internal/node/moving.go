package node

import (
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// Detach takes the pairs of one tunnel out of the data plane; HandleDetached answers,
// before the next input.
type Detach struct {
	Scope xfrm.Scope
	SPIs  []ipsec.ESPSPI
}

// Pointer says to which scope packets of an SPI go that is not in the data plane here:
// OnItsWay to nobody yet, 0 that nothing is known of it any more.
type Pointer struct {
	SPIIn ipsec.ESPSPI
	To    xfrm.Scope
}

// OnItsWay is where a tunnel is that was given away and not taken yet: no scope has this number.
const OnItsWay xfrm.Scope = 1<<16 - 1

// What a scope of a farm tells the Farm; it never leaves that.
type (
	movedAway struct { // by record: it can be offered
		spis ipsec.IKESPIs
		to   cluster.ScopeID
		now  time.Time
	}
	movedHere struct {
		spis     ipsec.IKESPIs
		from     cluster.ScopeID
		children []ipsec.ESPSPI
		now      time.Time
	}
	letterHere struct {
		statesync.LetterReceived
		now time.Time
	}
	initialContact struct {
		ike.InitialContact
		now time.Time
	}
	pointed struct {
		ike.Pointer
	}
)

// moving is a tunnel whose windows were asked for.
type moving struct {
	spis     ipsec.IKESPIs
	children []ipsec.ESPSPI
	to       cluster.ScopeID
}

// move gives the tunnel of a Child SA to another scope, if no exchange of it is under
// way. Packets that wait for a bound go first.
func (n *Node) move(now time.Time, spi ipsec.ESPSPI, to cluster.ScopeID) {
	if !n.owner || n.handing != nil || n.slot == nil || n.slot.Contested() {
		return
	}
	spis, children, ok := n.ike.Movable(spi)
	if !ok {
		return
	}
	for _, c := range children {
		if x := n.sas[c]; x != nil && (x.asked > 0 || now.Before(x.quietFrom)) {
			n.departing[spi] = to
			return
		}
	}
	delete(n.departing, spi)
	n.moving = append(n.moving, moving{spis, children, to})
	n.emit(Detach{n.scope, children})
}

// considerLeaving gives away the tunnels whose packets no longer wait.
func (n *Node) considerLeaving(now time.Time) {
	for _, spi := range slices.Sorted(maps.Keys(n.departing)) {
		if at, ok := n.leaveAt(spi); ok && !now.Before(at) {
			to := n.departing[spi]
			delete(n.departing, spi)
			n.move(now, spi, to)
		}
	}
}

func (n *Node) leaveAt(spi ipsec.ESPSPI) (time.Time, bool) {
	c := n.sas[spi]
	if c == nil {
		return time.Time{}, true
	}
	return c.quietFrom, c.asked == 0
}

// nextLeave is when considerLeaving is due.
func (n *Node) nextLeave() (t time.Time, ok bool) {
	for spi := range n.departing {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return n.leaveAt(spi) })
	}
	return t, ok
}

// answered counts the questions that have their answer.
func (n *Node) answered(now time.Time, bs []xfrm.Bound) {
	for _, b := range bs {
		c := n.sas[b.SPIIn]
		if c == nil {
			continue
		}
		if c.asked == 0 {
			continue // of an ownership before this one
		}
		c.asked--
		n.asked--
		// What waits behind may put the next question only now.
		c.quietFrom = now.Add(finishLeast)
		n.quietFrom = c.quietFrom
	}
}

// HandleDetached answers the oldest open Detach; see Farm.HandleDetached.
func (n *Node) HandleDetached(now time.Time, ws []xfrm.Window, ok bool) {
	if len(n.moving) == 0 {
		return
	}
	m := n.moving[0]
	n.moving = n.moving[1:]
	if !ok { // the question of what waits is on its way here
		for _, spi := range m.children {
			if c := n.sas[spi]; c != nil {
				c.quietFrom = now.Add(finishLeast)
				n.departing[spi] = m.to
				break
			}
		}
		return
	}
	got := map[ipsec.ESPSPI]bool{}
	for _, w := range ws {
		got[w.SPIIn] = true
	}
	for _, spi := range m.children {
		if c := n.sas[spi]; c != nil && !got[spi] { // never installed: above all that it may have used
			ws = append(ws, xfrm.Window{SPIIn: spi, OutSeq: c.ceiling, InSeq: c.fence})
		}
	}
	n.ike.Move(now, m.spis, uint32(m.to), ws)
	n.pump(now)
}

// detach takes a Child SA out of the data plane, and leaves the routes to it.
func (n *Node) detach(spi ipsec.ESPSPI) {
	if c := n.sas[spi]; c != nil {
		delete(n.sas, spi)
		n.asked -= c.asked
		n.detached[spi] = c
		n.emit(Remove{SPIIn: spi})
	}
}

// unroute lets go of the routes of a Child SA that was detached: they are somebody else's matter now.
func (n *Node) unroute(spi ipsec.ESPSPI) {
	if c := n.detached[spi]; c != nil {
		delete(n.detached, spi)
		n.removeReaches(c)
	}
}
