package sim

import (
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/node"
	"tandem/xfrm"
)

// gateway is the production node of a pair or a client: one, or a node.VClusters.
type gateway interface {
	core
	Start(now time.Time)
	HandleIKE(now time.Time, d ike.Datagram)
	HandleWindows(now time.Time, s xfrm.Scope, ws []xfrm.Window)
	HandleFrame(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, frame []byte) error
	HandleAck(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, seq uint64)
	HandlePeer(now time.Time, p cluster.Peer)
	HandleLoss(now time.Time, l cluster.TellLoss)
	HandleRemoved(now time.Time, s cluster.ScopeID, id cluster.NodeID)
	HandleEntitled(now time.Time, s cluster.ScopeID, e cluster.Epoch)
	HandleClaimed(now time.Time, s cluster.ScopeID, e cluster.Epoch, ok bool)
	HandleNote(now time.Time, err error)
	HandleMonitored(now time.Time, up func(monitor []string) int)
	Reload(now time.Time, c *config.Config)
	Up(now time.Time, phase1, phase2 string) error
	Down(now time.Time, phase1, phase2 string) error
	Clear(now time.Time, name string) int
	Rekey(now time.Time, name string, ike bool) int
	Failover(now time.Time, s cluster.ScopeID, set bool) error
	Shutdown(now time.Time)
	Status(now time.Time) node.Status
	Poll() (node.Effect, bool)
}

func newGateway(o node.Options) gateway {
	if o.Pair != nil && o.Config.Virtual() {
		return node.NewVClusters(o)
	}
	return single{node.Single{Node: node.New(o)}}
}

// single is a node without virtual clusters.
type single struct{ node.Single }

func (n single) HandleMonitored(now time.Time, up func([]string) int) {
	n.HandleMonitors(now, up([]string{wan(0)}))
}

// announcedOf is what a node says of a scope.
func announcedOf(a cluster.Announce, s xfrm.Scope) cluster.VCluster {
	if s == onlyScope {
		return cluster.VCluster{Role: a.Role, Epoch: a.Epoch}
	}
	for _, v := range a.VClusters {
		if v.Scope == cluster.ScopeID(s) {
			return v
		}
	}
	return cluster.VCluster{}
}

// monitored counts the monitored interfaces of a host that work.
func (h *host) monitored(names []string) (up int) {
	for i, x := range h.scopes {
		for _, name := range names {
			if name == wan(i) {
				up += x.monitors
			}
		}
	}
	return up
}

// localAddr is the address of an interface.
func (h *host) localAddr(iface string, _ bool) (netip.Addr, bool) {
	if h.pair == nil || h.pair.index > 0 {
		return clientAddr(h.index), true // of a pair that is faced, each tunnel names its own
	}
	for i, r := range h.pair.realms {
		if iface == wan(i) {
			return r.addr, true
		}
	}
	return h.pair.realms[0].addr, true
}
