package node

import (
	"errors"
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/proto/clusterpb"
)

// FarmStatus is what a farm's commands show beside the tunnels.
type FarmStatus struct {
	Self     cluster.NodeID
	Name     string
	Quorum   Quorum
	Leads    bool
	Joined   bool // the members count this process as one of them
	Members  []fsm.Member
	Version  uint32         // of the log, that all members have agreed on
	Peers    []cluster.Peer // as heard
	Scopes   []ScopeStatus  // all that were decided
	Sites    []SiteStatus
	Counters FarmCounters
	LAN      LANStatus
	Pools    []PoolStatus
	// Owned are the gateways (by name) whose scope this member owns.
	Owned map[string]bool
}

// ScopeStatus is one scope: as decided, and as it is here.
type ScopeStatus struct {
	fsm.Scope
	Heard cluster.NodeID    // who is heard to own it; this node if it owns it
	Here  *cluster.HAStatus // nil: this member has nothing to do with it
}

func reportLoss(n cluster.NodeID, p cluster.ProcessID) cluster.Propose {
	return cluster.Propose{Command: &clusterpb.Command{What: &clusterpb.Command_ReportLoss{
		ReportLoss: &clusterpb.ReportLoss{Node: uint32(n), Process: uint64(p)}}}}
}

// Status is what diagnose shows.
func (f *Farm) Status(now time.Time) Status { return statusOf(now, f) }

// Summary is Status without the gateways.
func (f *Farm) Summary(now time.Time) Status {
	s := Status{Farm: &FarmStatus{
		Self: f.opt.Self, Name: f.opt.Name, Quorum: f.quorum, Leads: f.leads, Members: f.decided.Members(), Version: f.decided.Version(),
		Counters: f.counters, LAN: f.lanStatus(), Pools: f.poolStatus(), Owned: map[string]bool{}, Sites: f.sites(),
	}}
	s.Farm.Joined = f.grants(f.opt.Self, f.opt.Process)
	for _, k := range slices.Sorted(maps.Keys(f.peers)) {
		s.Farm.Peers = append(s.Farm.Peers, f.peers[k])
	}
	for _, x := range f.decided.Scopes() {
		st := ScopeStatus{Scope: x, Heard: f.ownerOf(x.ID)}
		if n := f.scopes[x.ID]; n != nil {
			ha := n.slot.Status(now)
			st.Here = &ha
			if n.owner {
				st.Heard = f.opt.Self
			}
		}
		s.Farm.Scopes = append(s.Farm.Scopes, st)
	}
	for _, id := range f.order {
		n := f.scopes[id]
		s.Owner = s.Owner || n.owner
		s.IKE.Add(n.ike.Counters())
		s.Farm.Counters.OwnerMoves += n.moved
	}
	return s
}

// More adds some of the gateways to a Summary, scope by scope, and says whether there
// are others.
func (f *Farm) More(now time.Time, s *Status, at *Place) (more bool) {
	return f.more(now, s, at, func(n *Node, g *ike.GatewayStatus) bool {
		if g.Parent == "" && len(g.IKE) == 0 && s.Farm.shown(g.Name) {
			return false // the phase 1 itself, which every scope has
		}
		s.Farm.Owned[g.Name] = n.owner
		return true
	})
}

func (s *FarmStatus) shown(name string) bool {
	_, ok := s.Owned[name]
	return ok
}

// Failover is for pairs.
func (f *Farm) Failover(time.Time, cluster.ScopeID, bool) error {
	return errors.New("a member of a farm gives its tunnels away with `execute ha drain`")
}
