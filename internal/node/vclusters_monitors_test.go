package node

import (
	"slices"
	"testing"
	"time"
)

// TestPingserversMoveOneVirtualCluster: what the servers of one virtual cluster weigh
// moves that one, with the reason, and no other.
func TestPingserversMoveOneVirtualCluster(t *testing.T) {
	w := newVWorld(t, 6)
	if w.owner(1) != w.gw[0] || w.owner(2) != w.gw[1] {
		t.Fatal("not one on each node")
	}
	w.pass(5 * time.Second)
	weigh := func(penalty int) func([]string) (int, int) {
		return func(interfaces []string) (int, int) {
			if slices.Contains(interfaces, "pinged") {
				return penalty, 0
			}
			return 0, 0
		}
	}
	g := w.gw[0]
	g.do(func(n *VClusters) {
		c := *n.cfg
		c.HA.VClusters = slices.Clone(c.HA.VClusters)
		for i := range c.HA.VClusters {
			if x := &c.HA.VClusters[i]; x.ID == 1 {
				x.Pingserver.Monitor, x.Pingserver.Threshold, x.Pingserver.FlipTimeout = []string{"pinged"}, 5, time.Hour
			}
		}
		n.Reload(w.now, &c)
		n.HandlePinged(w.now, weigh(4))
	})
	w.pass(time.Second)
	if w.owner(1) != g {
		t.Fatal("moved beneath the threshold")
	}
	epoch := w.gw[1].node.scopes[2].pair.Epoch()
	g.do(func(n *VClusters) { n.HandlePinged(w.now, weigh(5)) })
	w.run(5*time.Second, "moved", func() bool { return w.owner(1) == w.gw[1] })
	w.pass(time.Second)
	if c := w.gw[1].node.scopes[1].pair.Status(w.now).Change; c.Evidence != "pingservers: penalty 0 against 5" || c.By != 1 {
		t.Errorf("%+v", c)
	}
	if w.owner(2) != w.gw[1] || w.gw[1].node.scopes[2].pair.Epoch() != epoch {
		t.Error("the other virtual cluster was disturbed")
	}
	if w.inits > 0 {
		t.Errorf("%d IKE_SA_INIT", w.inits)
	}
}
