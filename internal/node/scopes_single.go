package node

import (
	"time"

	"tandem/cluster"
	"tandem/xfrm"
)

// Single is a node that is all there is: a pair's without virtual clusters, or one that
// stands alone. It has the methods of VClusters and of a Farm that name a scope; its one
// scope needs no name.
type Single struct{ *Node }

func (s Single) HandleWindows(now time.Time, _ xfrm.Scope, ws []xfrm.Window) {
	s.Node.HandleWindows(now, ws)
}

func (s Single) HandleFrame(now time.Time, n cluster.NodeID, p cluster.ProcessID, _ cluster.ScopeID, frame []byte) error {
	return s.Node.HandleFrame(now, n, p, frame)
}

func (s Single) HandleAck(now time.Time, n cluster.NodeID, p cluster.ProcessID, _ cluster.ScopeID, seq uint64) {
	s.Node.HandleAck(now, n, p, seq)
}

func (s Single) HandleLoss(now time.Time, l cluster.TellLoss) {
	s.Node.HandleLoss(now, l.Node, l.Kind, l.Entitled, l.Detected)
}

// Failover is a Node's.
func (s Single) Failover(now time.Time, _ cluster.ScopeID, set bool) error {
	return s.Node.Failover(now, set)
}

func (s Single) HandleRemoved(now time.Time, _ cluster.ScopeID, n cluster.NodeID) {
	s.Node.HandleRemoved(now, n)
}

func (s Single) HandleEntitled(now time.Time, _ cluster.ScopeID, e cluster.Epoch) {
	s.Node.HandleEntitled(now, e)
}

func (s Single) HandleClaimed(now time.Time, _ cluster.ScopeID, e cluster.Epoch, ok bool) {
	s.Node.HandleClaimed(now, e, ok)
}
