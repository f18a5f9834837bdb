package node

import (
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/xfrm"
)

// Forward sends an IKE message to the member that owns its IKE SA.
type Forward struct {
	To       cluster.NodeID
	Datagram ike.Datagram
}

// HandleIKE takes an IKE message from the network: for an IKE SA that another member
// owns it goes there, one that begins something new falls to one of our own scopes.
func (f *Farm) HandleIKE(now time.Time, d ike.Datagram) { f.handleIKE(now, d, true) }

// HandleForwarded takes one that another member received; it goes no further.
func (f *Farm) HandleForwarded(now time.Time, d ike.Datagram) {
	f.counters.ForwardedHere++
	f.handleIKE(now, d, false)
}

func (f *Farm) handleIKE(now time.Time, d ike.Datagram, forward bool) {
	var mine []cluster.ScopeID
	for _, id := range f.order {
		n := f.scopes[id]
		if n.ike.Knows(d.Data) {
			if n.owner {
				f.with(id, func(n *Node) { n.HandleIKE(now, d) })
			} else if to := f.ownerOf(id); forward && to != 0 {
				f.counters.Forwarded++
				f.emit(Forward{To: to, Datagram: d})
			} else {
				f.counters.Strays++
			}
			return
		}
		if n.owner && n.handing == nil {
			mine = append(mine, id)
		}
	}
	if len(mine) == 0 || !forward || len(d.Data) < 8 {
		return
	}
	// By the initiator's SPI, so that a message sent again meets what the first one made.
	h := fnv.New32a()
	_, _ = h.Write(d.Data[:8])
	f.with(mine[int(h.Sum32()%uint32(len(mine)))], func(n *Node) { n.HandleIKE(now, d) })
}

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

// Owners are the members that packets of scopes copied here must go to.
func (f *Farm) Owners() map[xfrm.Scope]cluster.NodeID {
	m := map[xfrm.Scope]cluster.NodeID{}
	for _, id := range f.order {
		if o := f.ownerOf(id); o != 0 && !f.scopes[id].owner {
			m[xfrm.Scope(id)] = o
		}
	}
	return m
}

// HandlePlane takes what the data plane reports.
func (f *Farm) HandlePlane(now time.Time, events []xfrm.Event) {
	by := map[cluster.ScopeID][]xfrm.Event{}
	for _, e := range events {
		id, ok := f.eventScope(e)
		if ok {
			by[id] = append(by[id], e)
		}
	}
	for _, id := range f.order {
		if es := by[id]; len(es) > 0 {
			f.with(id, func(n *Node) { n.HandlePlane(now, es) })
		}
	}
}

func (f *Farm) eventScope(e xfrm.Event) (id cluster.ScopeID, ok bool) {
	switch e := e.(type) {
	case xfrm.BoundWanted:
		id, ok = f.spis[e.SPIIn]
	case xfrm.FirstInbound:
		id, ok = f.spis[e.SPIIn]
	case xfrm.PeerMoved:
		id, ok = f.spis[e.SPIIn]
	case xfrm.Expiring:
		id, ok = f.spis[e.SPIIn]
	case xfrm.Acquire:
		id, ok = f.scopeOf(e.Tunnel), true
	}
	return id, ok
}

// HandleWindows answers TakeWindows of a scope.
func (f *Farm) HandleWindows(now time.Time, s xfrm.Scope, ws []xfrm.Window) {
	f.with(cluster.ScopeID(s), func(n *Node) { n.HandleWindows(now, ws) })
}
