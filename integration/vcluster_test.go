package integration

import (
	"testing"
)

const exampleVCluster = "../examples/vcluster"

// TestVClusters runs a scenario of the example of virtual clusters, with a standalone
// strongSwan and a standalone Tandem as peers: the short one, or the demo at full length.
func TestVClusters(t *testing.T) {
	needCharon(t)
	name := "demo"
	if testing.Short() {
		name = "short"
	}
	res := runLab(t, exampleVCluster, "--scenario", name)
	if f := res.VClusterFigures; f == nil {
		t.Error("the result has none of the figures of virtual clusters")
	} else {
		t.Logf("%d moves, at most %d pings lost at one; %d kills, outage %.1f ms; Child SA rekeys %d by gateways, %d by peers, IKE SA rekeys %d and %d",
			f.PlannedMoves, f.LostPerMove, res.Kills, f.KillOutageMS, f.ChildByGateway, f.ChildByPeer, f.IKEByGateway, f.IKEByPeer)
	}
}
