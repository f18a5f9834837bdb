package node

import (
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// Forward sends an IKE message to the member that owns its IKE SA. Last: it was forwarded
// before, and goes no further from there.
type Forward struct {
	To       cluster.NodeID
	Last     bool
	Datagram ike.Datagram
}

// hops are the members that an IKE message has passed.
type hops uint8

const mostHops hops = 2 // as packets: to the owner, and on to who has just succeeded it

// HandleIKE takes an IKE message from the network: for an IKE SA that another member
// owns it goes there, one that begins something new falls to one of our own scopes.
func (f *Farm) HandleIKE(now time.Time, d ike.Datagram) { f.handleIKE(now, d, 0) }

// HandleForwarded takes one that another member received, or handed on (last).
func (f *Farm) HandleForwarded(now time.Time, d ike.Datagram, last bool) {
	f.counters.ForwardedHere++
	h := hops(1)
	if last {
		h = mostHops
	}
	f.handleIKE(now, d, h)
}

func (f *Farm) handleIKE(now time.Time, d ike.Datagram, h hops) {
	var mine []cluster.ScopeID
	for _, id := range f.order {
		n := f.scopes[id]
		if n.ike.Knows(d.Data) {
			if n.owner {
				f.with(id, func(n *Node) { n.HandleIKE(now, d) })
			} else {
				f.forward(f.ownerOf(id), d, h)
			}
			return
		}
		if n.owner && n.handing == nil {
			mine = append(mine, id)
		}
	}
	for _, id := range f.order {
		if to, adopted, ok := f.scopes[id].ike.MovedTo(d.Data); ok {
			if adopted {
				f.forward(f.ownerOf(cluster.ScopeID(to)), d, h)
			} else {
				f.counters.Strays++ // it is sent again when the tunnel has come to rest
			}
			return
		}
	}
	if id, ok := f.scopeOfIKE(d.Data); ok && h == 0 {
		// Of an IKE SA that is not copied to this member: its SPI tells the scope.
		if to := f.ownerOf(id); to != 0 {
			f.forward(to, d, h)
			return
		}
	}
	if len(d.Data) < 8 || len(f.order) == 0 {
		return
	}
	if len(mine) == 0 {
		f.forward(f.anyOwner(d.Data), d, h)
		return
	}
	// By the initiator's SPI, so that a message sent again meets what the first one made.
	k := fnv.New32a()
	_, _ = k.Write(d.Data[:8])
	f.with(mine[int(k.Sum32()%uint32(len(mine)))], func(n *Node) { n.HandleIKE(now, d) })
}

func (f *Farm) forward(to cluster.NodeID, d ike.Datagram, h hops) {
	if to == 0 || h == mostHops {
		f.counters.Strays++
		return
	}
	f.counters.Forwarded++
	f.emit(Forward{To: to, Last: h+1 == mostHops, Datagram: d})
}

// anyOwner is a member that can take what begins something new where this one cannot,
// being drained; the same for a message that is sent again.
func (f *Farm) anyOwner(b []byte) cluster.NodeID {
	var able []cluster.NodeID
	for _, k := range slices.Sorted(maps.Keys(f.peers)) {
		if p := f.peers[k]; p.Running && len(p.Owned) > 0 {
			able = append(able, k)
		}
	}
	if len(able) == 0 {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write(b[:8])
	return able[int(h.Sum32()%uint32(len(able)))]
}

// scopeOfIKE is the scope whose share holds our SPI in an IKE header (RFC 7296 §3.1): the
// responder's if the sender is the original initiator.
func (f *Farm) scopeOfIKE(b []byte) (cluster.ScopeID, bool) {
	spi, _ := ownSPI(b)
	return scopeOfShare(spi), spi != 0
}

// scopeOfShare is the slot of a number that an engine with its Share chose.
func scopeOfShare(n uint64) cluster.ScopeID {
	part := int(n % shares)
	return fsm.Slot(cluster.NodeID(part/fsm.SlotsPerMember+1), part%fsm.SlotsPerMember)
}

// ScopeOf is the scope of an ESP SPI that a farm's members choose. Any goroutine may ask.
func ScopeOf(spi ipsec.ESPSPI) xfrm.Scope { return xfrm.Scope(scopeOfShare(uint64(spi))) }

// ownerOf is the member that owns a scope, as heard, else as decided; 0: nobody else.
func (f *Farm) ownerOf(id cluster.ScopeID) cluster.NodeID {
	var best cluster.Tenure
	var owner cluster.NodeID
	for _, k := range slices.Sorted(maps.Keys(f.peers)) {
		for _, t := range f.peers[k].Owned {
			if t.Scope == id && best.Epoch.Less(t.Epoch) {
				best, owner = t, k
			}
		}
	}
	return owner
}

// Owners are the members that packets of scopes must go to which are not owned here.
func (f *Farm) Owners() map[xfrm.Scope]cluster.NodeID {
	m := map[xfrm.Scope]cluster.NodeID{}
	var best = map[xfrm.Scope]cluster.Epoch{}
	for k, p := range f.peers {
		for _, t := range p.Owned {
			if s := xfrm.Scope(t.Scope); best[s].Less(t.Epoch) {
				best[s], m[s] = t.Epoch, k
			}
		}
	}
	for id := range f.owned {
		delete(m, xfrm.Scope(id))
	}
	return m
}

// Followed are the scopes whose SAs this member has itself, as their owner or in their sync
// set. A packet for one that is missing waits: a tunnel is under way from one scope to
// another, and whoever it would be led to has it no earlier.
func (f *Farm) Followed() map[xfrm.Scope]bool {
	m := make(map[xfrm.Scope]bool, len(f.owned))
	for id := range f.owned {
		m[xfrm.Scope(id)] = true
	}
	for _, s := range f.decided.Scopes() {
		if slices.Contains(s.Sync, f.opt.Self) {
			m[xfrm.Scope(s.ID)] = true
		}
	}
	return m
}

// Owns says whether this member owns a scope, and its data plane carries it.
func (f *Farm) Owns(s xfrm.Scope) bool {
	n := f.scopes[cluster.ScopeID(s)]
	return n != nil && n.owner && n.handing == nil
}

// HandlePlane takes what the data plane reports.
func (f *Farm) HandlePlane(now time.Time, events []xfrm.Event) {
	f.planeEvents(now, events, f.eventScope)
	// Last: the packet that was reported may wait for a bound that was asked for with it.
	for _, e := range events {
		if e, ok := e.(xfrm.ForwardedTraffic); ok {
			f.drifting(now, e)
		}
	}
}

func (f *Farm) eventScope(e xfrm.Event) (id cluster.ScopeID, ok bool) {
	var spi ipsec.ESPSPI
	switch e := e.(type) {
	case xfrm.Acquire:
		id, ok = f.static[e.Tunnel]
		return id, ok
	case xfrm.BoundWanted:
		spi = e.SPIIn
	case xfrm.FirstInbound:
		spi = e.SPIIn
	case xfrm.PeerMoved:
		spi = e.SPIIn
	case xfrm.StreamLost:
		spi = e.SPIIn
	case xfrm.Expiring:
		spi = e.SPIIn
	}
	p, ok := f.spis[spi]
	return p.scope, ok
}
