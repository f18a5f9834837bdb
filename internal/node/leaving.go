package node

import (
	"time"

	"tandem/cluster"
	"tandem/internal/config"
)

// leaveLimit is how long a gateway that leaves for good waits for its peers to
// acknowledge its DELETEs.
const leaveLimit = time.Second

// leave deletes every SA with DELETE, as if nothing were configured any more, and
// ends with cluster.Stopped: nobody will take over, so peers should know at once.
func (n *Node) leave(now time.Time) {
	n.leaving = now.Add(leaveLimit)
	n.ike.Reconfigure(now, &config.Config{})
	n.pump(now)
	n.left(now)
}

// left looks whether the last SA has gone, or the time is over.
func (n *Node) left(now time.Time) {
	if n.leaving.IsZero() || n.stopped {
		return
	}
	if now.Before(n.leaving) {
		for _, g := range n.ike.Status(now) {
			for _, sa := range g.IKE {
				if sa.State != "connecting" {
					return
				}
			}
		}
	}
	n.stopped = true
	n.emit(cluster.Stopped{})
}
