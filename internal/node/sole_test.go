package node

import (
	"testing"
	"time"
)

// TestSole: a node may say that an IKE SA is nobody's (RFC 6290) only when all others, if there
// are any, are in its sync set. In a farm tunnels move between scopes, so nobody may.
func TestSole(t *testing.T) {
	gateway, client := plain(day, day)
	w := newWorld(t, 5, gateway, client)
	if !w.client.node.sole() {
		t.Error("a standalone gateway is not alone")
	}
	for _, m := range w.gw {
		if m.node.sole() {
			t.Errorf("node %d, which has met nobody, is sure", m.id)
		}
	}
	w.run(20*time.Second, "synchronised", w.synchronised)
	w.pass(time.Second) // the owner has heard so
	owner, standby := w.owner(), w.standby()
	if !owner.node.sole() || standby.node.sole() {
		t.Errorf("synchronised: owner %v, standby %v", owner.node.sole(), standby.node.sole())
	}
	w.kill(owner)
	w.run(20*time.Second, "taken over", func() bool { return w.owner() == standby })
	if standby.node.sole() {
		t.Error("the survivor is sure, though the other one may come back with state")
	}
	f := newFarmWorld(t, 3, 3, 1)
	f.pass(20 * time.Second)
	for _, m := range f.members[1:] {
		for _, n := range m.farm.scopes {
			if n.sole() {
				t.Fatalf("scope %v of a farm is sure", n.scope)
			}
		}
	}
}
