package daemon

import (
	"time"

	"tandem/cluster"
	"tandem/internal/node"
	"tandem/xfrm"
)

// single is a node that is all there is: a pair's, or one that stands alone. Its one
// scope needs no name.
type single struct{ *node.Node }

func (s single) HandleWindows(now time.Time, _ xfrm.Scope, ws []xfrm.Window) {
	s.Node.HandleWindows(now, ws)
}

func (s single) HandleFrame(now time.Time, n cluster.NodeID, p cluster.ProcessID, _ cluster.ScopeID, frame []byte) error {
	return s.Node.HandleFrame(now, n, p, frame)
}

func (s single) HandleAck(now time.Time, n cluster.NodeID, p cluster.ProcessID, _ cluster.ScopeID, seq uint64) {
	s.Node.HandleAck(now, n, p, seq)
}

func (s single) HandleLoss(now time.Time, l cluster.TellLoss) {
	s.Node.HandleLoss(now, l.Node, l.Kind, l.Entitled, l.Detected)
}

// Failover: the one scope has no number here.
func (s single) Failover(now time.Time, _ cluster.ScopeID, set bool) error {
	return s.Node.Failover(now, set)
}

func (s single) HandleRemoved(now time.Time, _ cluster.ScopeID, n cluster.NodeID) {
	s.Node.HandleRemoved(now, n)
}

func (s single) HandleEntitled(now time.Time, _ cluster.ScopeID, e cluster.Epoch) {
	s.Node.HandleEntitled(now, e)
}

func (s single) HandleClaimed(now time.Time, _ cluster.ScopeID, e cluster.Epoch, ok bool) {
	s.Node.HandleClaimed(now, e, ok)
}
