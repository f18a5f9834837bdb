package node

import (
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
)

// VClusterStatus is one virtual cluster.
type VClusterStatus struct {
	ID int
	HA cluster.HAStatus
}

// Status is what diagnose shows.
func (v *VClusters) Status(now time.Time) Status { return statusOf(now, v) }

// Summary is Status without the gateways. Its HA is of the node as a whole: primary if it
// owns any virtual cluster, synchronised if all are.
func (v *VClusters) Summary(now time.Time) Status {
	var s Status
	var all cluster.HAStatus
	for i, id := range v.order {
		n := v.scopes[id]
		h := n.authority.Status(now)
		h.Peers = v.withUnheard(h.Peers)
		if v.cfg.HA.VClusterStatus {
			s.VClusters = append(s.VClusters, VClusterStatus{int(id), h})
		}
		s.Owner = s.Owner || n.owner
		s.IKE.Add(n.ike.Counters())
		if i == 0 {
			all = h
			all.Alarms, all.Takeovers, all.Peers = nil, 0, slices.Clone(h.Peers)
		}
		for k := range all.Peers {
			if k < len(h.Peers) && h.Peers[k].Node == all.Peers[k].Node {
				all.Peers[k].Role = max(all.Peers[k].Role, h.Peers[k].Role)
				all.Peers[k].Entitled = all.Peers[k].Entitled && h.Peers[k].Entitled
			}
		}
		all.Role = max(all.Role, h.Role)
		all.Synchronised = all.Synchronised && h.Synchronised
		all.Alone = all.Alone || h.Alone
		all.Takeovers += h.Takeovers
		if all.Epoch.Less(h.Epoch) {
			all.Epoch = h.Epoch
		}
		if h.LastChange.After(all.LastChange) {
			all.LastChange, all.LastReason, all.LastCovered, all.LastDetected = h.LastChange, h.LastReason, h.LastCovered, h.LastDetected
		}
		for _, a := range h.Alarms {
			a.Name = v.alarmName(id, a.Name)
			all.Alarms = append(all.Alarms, a)
		}
	}
	if q := v.quorum.alarm(); v.group() && q.On {
		all.Alarms = append(all.Alarms, q)
	}
	s.HA, s.Quorum = &all, v.group() && !v.quorum.Lost
	if v.opt.ranged {
		s.Pools = poolStatus(poolRanges(v.cfg), &v.scopeSet, v.decided)
	}
	return s
}

// withUnheard adds the members that the log knows and that were never heard.
func (v *VClusters) withUnheard(peers []cluster.Peer) []cluster.Peer {
	for _, m := range v.decided.Members() {
		known := slices.ContainsFunc(peers, func(p cluster.Peer) bool { return p.Node == m.Node })
		if v.group() && !known && m.Node != v.self() && !m.Witness && m.State != fsm.Left {
			peers = append(peers, cluster.Peer{Node: m.Node, Name: m.Name})
		}
	}
	slices.SortFunc(peers, func(a, b cluster.Peer) int { return int(a.Node) - int(b.Node) })
	return peers
}

// More adds some of the gateways to a Summary, and says whether there are others.
func (v *VClusters) More(now time.Time, s *Status, at *Place) (more bool) {
	return v.more(now, s, at, func(*Node, *ike.GatewayStatus) bool { return true })
}
