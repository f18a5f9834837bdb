package integration

import (
	"testing"
	"time"

	"tandem/internal/lab"
)

// TestPairGossip: the halves of a pair, too, tell each other by gossip who they are,
// over link-local addresses; it notices the loss of a host seconds after the takeover,
// and the return.
func TestPairGossip(t *testing.T) {
	t.Parallel()
	p := newPair(t, program(t), nil)
	says := func(g *gateway, other, state string) bool {
		return contains(g.proc.LogPath, `"msg":"gossip"`, `"name":"`+other+`"`, `"state":"`+state+`"`)
	}
	gw1, gw2 := p.gws[lab.NodeGW1], p.gws[lab.NodeGW2]
	eventually(t, 20*time.Second, "each hears the other", func() bool {
		return says(gw1, lab.NodeGW2, "alive") && says(gw2, lab.NodeGW1, "alive")
	})
	if !contains(gw1.proc.LogPath, `"msg":"gossip started"`, "[fe80::", "]:711") {
		t.Error("gossip is not on the heartbeat link's own address")
	}
	active, standby := p.synchronised()
	if err := active.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	p.takenOver(standby)
	if says(standby, active.node, "dead") {
		t.Error("gossip knew before the takeover: nothing may follow from it")
	}
	eventually(t, 60*time.Second, "gossip notices the loss, too", func() bool { return says(standby, active.node, "dead") })
	if err := stopProcess(standby.proc, 20*time.Second); err != nil {
		t.Errorf("the survivor does not end cleanly: %v", err)
	}
}
