package node

import (
	"log/slog"
	"net/netip"

	"tandem/cluster"
	"tandem/ike"
)

// Which addresses of the pools this node may lease (ike.Homes), where no more than two nodes
// share them (see pool_ranges.go for the others). Alone, or as a cluster that has met: two nodes, of which the one with the lower number has the even addresses as its
// homes, the other one the odd ones. Whoever owns may lease from the other's homes while that
// one is in its sync set, because then it knows of the lease before the client does.
//
// A process that has just begun does not know what an earlier life of it, or the other node,
// has leased: it leases nothing before both have met, that is, before either has had a full
// copy of the other's state.

// poolShare is what a node knows of that.
type poolShare struct {
	other    cluster.NodeID // 0: not met in this life
	from     cluster.NodeID // of the latest frame
	followed bool           // it is in our sync set
}

// sharePools tells the engine what it may lease.
func (n *Node) sharePools() {
	switch {
	case n.authority == nil:
		n.ike.SetHomes(ike.Homes{All: true})
	case n.opt.ranged:
		n.ike.SetHomes(ike.Homes{Given: true, All: n.ranges.settled})
	case n.pool.other == 0:
		n.ike.SetHomes(ike.Homes{})
	default:
		h := ike.Homes{All: n.pool.followed, Own: true}
		if n.number() > n.pool.other {
			h.Part = 1
		}
		n.ike.SetHomes(h)
	}
}

// number is this node's number.
func (n *Node) number() cluster.NodeID {
	if n.slot != nil {
		return n.opt.Slot.Self
	}
	return n.opt.Pair.Self
}

// poolFollowed: a member holds all that this owner has, and acknowledges what it does.
func (n *Node) poolFollowed(id cluster.NodeID) {
	n.met(id)
	n.pool.followed = true
	n.sharePools()
}

// poolUnfollowed comes before what waits for the member's acknowledgement goes without it.
func (n *Node) poolUnfollowed() {
	n.pool.followed = false
	n.sharePools()
}

// poolCopied: this standby holds all that the owner has.
func (n *Node) poolCopied() {
	n.met(n.pool.from)
	n.pool.followed = false
	n.sharePools()
}

func (n *Node) met(id cluster.NodeID) {
	if n.opt.ranged {
		return
	}
	if n.pool.other != id && n.hasPool() {
		n.log(slog.LevelInfo, "mode-cfg: the other node is met, addresses are leased", slog.Any("node", id))
	}
	n.pool.other = id
}

// warnPool says why clients get no addresses.
func (n *Node) warnPool() {
	if n.authority != nil && !n.opt.ranged && n.pool.other == 0 && n.hasPool() {
		n.log(slog.LevelWarn, "mode-cfg: no address is leased before the other node is met: it may have leased them")
	}
}

func (n *Node) hasPool() bool {
	for i := range n.cfg.Phase1 {
		if p := &n.cfg.Phase1[i]; p.ModeCfg && p.Dialup() && p.Pool.AssignIP {
			return true
		}
	}
	return false
}

// ownAddress is an address that a peer assigned to us for a tunnel.
type ownAddress struct {
	tunnel string
	addr   netip.Addr
}

// ownAddress counts the IKE SAs for which an address is on a tunnel's interface.
func (n *Node) ownAddress(e ike.OwnAddress) {
	k := ownAddress{e.Phase1, e.Addr}
	if !e.Gone {
		if n.assigned[k]++; n.assigned[k] == 1 {
			n.emit(AddAddress{e.Phase1, e.Addr})
		}
		return
	}
	if n.assigned[k]--; n.assigned[k] <= 0 {
		delete(n.assigned, k)
		n.emit(RemoveAddress{e.Phase1, e.Addr})
	}
}
