package node

import (
	"maps"
	"slices"

	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

func (c *childSA) bound(d xfrm.Direction) *uint64 {
	if d == xfrm.Outbound {
		return &c.ceiling
	}
	return &c.fence
}

func (b *burial) bound(d xfrm.Direction) *uint64 {
	if d == xfrm.Outbound {
		return &b.ceiling
	}
	return &b.fence
}

// install puts a Child SA into the data plane, on an owner as on a standby.
func (n *Node) install(e ike.Install) {
	if n.sas[e.SA.SPIIn] != nil {
		return
	}
	c := &childSA{sa: e.SA, ceiling: max(initialCeiling, e.OutSeq), fence: e.InSeq, skipped: [2]uint64{e.OutSeq, e.InSeq}}
	n.sas[e.SA.SPIIn] = c
	if b, ok := n.buried[e.SA.SPIIn]; ok {
		// It was used on one side of a split or on both: it goes on above that.
		delete(n.buried, e.SA.SPIIn)
		c.ceiling, c.fence = max(c.ceiling, b.ceiling), max(c.fence, b.fence)
		if n.owner {
			n.wanted = append(n.wanted, xfrm.Bound{SPIIn: e.SA.SPIIn, Dir: xfrm.Outbound, N: c.ceiling},
				xfrm.Bound{SPIIn: e.SA.SPIIn, Dir: xfrm.Inbound, N: c.fence})
		}
	}
	sa := xfrm.SA{ChildSA: e.SA, Scope: n.scope, Ceiling: c.ceiling, Fence: c.fence, Known: e.Known,
		SoftBytes: e.SoftBytes, HardBytes: e.HardBytes}
	if e.SA.Suite.Encr.AEAD() {
		sa.IV = n.ledger.IV(e.SA.KeyID)
	}
	n.emit(Install{SA: sa, moves: e.Moves})
	if e.Window != nil {
		n.emit(SetWindows{[]xfrm.Window{*e.Window}})
	}
	c.dialup, c.bare = n.dialup(e.SA.Phase1)
	for _, r := range c.reaches() {
		n.addReach(r)
	}
}

func (n *Node) remove(e ike.Remove) {
	c := n.sas[e.SPIIn]
	if c == nil {
		return
	}
	delete(n.sas, e.SPIIn)
	n.asked -= c.asked
	n.bury(e.SPIIn, c)
	if n.alone() || !n.owner {
		// The other side of a split may bring it back: nothing is delivered above its bounds.
		e.Linger = 0
	}
	n.emit(Remove{SPIIn: e.SPIIn, Linger: e.Linger})
	n.removeReaches(c)
}

// maxBuried bounds the SAs whose bounds are remembered.
const maxBuried = 4096

// bury remembers up to where an SA was used that ended while nobody followed: the
// other side of a split may still have it, and brings it back at healing.
func (n *Node) bury(spi ipsec.ESPSPI, c *childSA) {
	if !n.owner || !n.alone() || len(n.buried) >= maxBuried {
		return
	}
	n.buried[spi] = burial{ceiling: c.ceiling, fence: c.fence}
}

// alone: a member of a cluster that nobody follows.
func (n *Node) alone() bool { return n.authority != nil && len(n.authority.SyncSet()) == 0 }

// keepBounds remembers up to where SAs were used, or may have been, whose records are about
// to be forgotten without anybody's word: a member that was away may bring them back, with
// less than this very process has used.
func (n *Node) keepBounds() {
	for _, spi := range sortedSPIs(n.sas) {
		if len(n.buried) >= maxBuried {
			return
		}
		c := n.sas[spi]
		n.buried[spi] = burial{ceiling: c.ceiling, fence: c.fence, awaited: true}
	}
}

// buriedBounds are those of SAs that have gone, for a side that may still have them.
func (n *Node) buriedBounds() []xfrm.Bound {
	var out []xfrm.Bound
	for _, spi := range slices.Sorted(maps.Keys(n.buried)) {
		b := n.buried[spi]
		out = append(out, xfrm.Bound{SPIIn: spi, Dir: xfrm.Outbound, N: b.ceiling}, xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: b.fence})
	}
	return out
}

// want notes a bound that the data plane asked for; pump hands all to the journal at once.
func (n *Node) want(b xfrm.Bound) {
	if c := n.sas[b.SPIIn]; c != nil {
		b.N = max(b.N, c.skipped[b.Dir]) // it was asked for before the data plane skipped
		*c.bound(b.Dir) = b.N
		c.asked++
		n.asked++
		n.wanted = append(n.wanted, b)
	}
}

// skip leaves out sequence numbers. A successor knows it from the IKE SA's record; no bound
// that follows lies below.
func (n *Node) skip(e ike.Skip) {
	c := n.sas[e.SPIIn]
	if c == nil {
		return
	}
	var bs []xfrm.Bound
	for _, b := range []xfrm.Bound{{SPIIn: e.SPIIn, Dir: xfrm.Outbound, N: e.Out}, {SPIIn: e.SPIIn, Dir: xfrm.Inbound, N: e.In}} {
		if b.N <= c.skipped[b.Dir] {
			continue
		}
		c.skipped[b.Dir] = b.N
		p := c.bound(b.Dir)
		*p = max(*p, b.N)
		bs = append(bs, b)
	}
	if len(bs) > 0 {
		n.emit(Skip{bs})
	}
}

// numbers are up to where an SA was used, for the engine.
func (n *Node) numbers(spi ipsec.ESPSPI) (out, in uint64) {
	if c := n.sas[spi]; c != nil {
		return c.ceiling, c.fence
	}
	return 0, 0
}

// applyBounds takes over an owner's bounds on a standby.
func (n *Node) applyBounds(bs []xfrm.Bound) {
	var known []xfrm.Bound
	for _, b := range bs {
		if c := n.sas[b.SPIIn]; c != nil {
			*c.bound(b.Dir) = b.N
			known = append(known, b)
		}
	}
	if len(known) > 0 {
		n.emit(SetBounds{known})
	}
}

// bounds are all bounds as last asked for, in the order of their SPIs.
func (n *Node) bounds() []xfrm.Bound {
	out := make([]xfrm.Bound, 0, 2*len(n.sas))
	for _, spi := range sortedSPIs(n.sas) {
		c := n.sas[spi]
		out = append(out, xfrm.Bound{SPIIn: spi, Dir: xfrm.Outbound, N: c.ceiling},
			xfrm.Bound{SPIIn: spi, Dir: xfrm.Inbound, N: c.fence})
	}
	return out
}

func sortedSPIs(m map[ipsec.ESPSPI]*childSA) []ipsec.ESPSPI {
	return slices.Sorted(maps.Keys(m))
}
