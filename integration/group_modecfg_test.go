package integration

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// leasedBy is what a member has assigned to its only client.
func (g *group) leasedBy(n string) (out []string) {
	g.t.Helper()
	var all []struct {
		Assigned []string `json:"assigned"`
	}
	g.gws[n].decode("diagnose vpn ike gateway list", &all)
	for _, x := range all {
		out = append(out, x.Assigned...)
	}
	return out
}

// TestGroupAddresses: a group of three hands out addresses. The owner's daemon ends by SIGKILL:
// the client keeps address and tunnel; when it has hung up and dials again, it has the same
// address of the survivor. Without a quorum the last one leases what it has ready.
func TestGroupAddresses(t *testing.T) {
	needCharon(t)
	g := newGroup(t, 3, 1, func(g *group, _ int, conf string) string {
		g.clientless = true
		conf = strings.Replace(conf, "set remote-gw 192.0.2.10", "set type dynamic\n        set mode-cfg enable\n        set ipv4-start-ip 10.1.0.100\n        set ipv4-end-ip 10.1.0.163", 1)
		conf = strings.Replace(conf, "        set auto-negotiate disable\n", "", 1)
		conf = strings.Replace(conf, "        set keepalive enable\n", "", 1)
		return strings.Replace(conf, "        set dst-subnet 10.1.0.0 255.255.255.0\n", "", 1)
	}, func(g *group) { g.settled("gw1", "gw2") })
	for _, n := range g.names {
		waitStatus(g.gws[n], n, 10*time.Second, "everybody has addresses ready", func(h groupHA) bool {
			return len(h.Log.Pools) == 1 && h.Log.Pools[0].Delegated >= 12
		})
	}
	ch := g.charon(lab.NodeClient, conn{remote: "192.0.2.1", remoteID: "-", id: "192.0.2.10", secret: "a secret of gateway and client", localTS: "dynamic", conn: "vips = 0.0.0.0"})
	ch.up()
	before := g.leasedBy("gw1")
	if len(before) != 1 {
		t.Fatalf("assigned %v", before)
	}
	g.wantPing(lab.NodeClient, before[0], serverIn)
	owns := func(n string) {
		t.Helper()
		waitStatus(g.gws[n], n, 10*time.Second, "owns", func(h groupHA) bool { return h.Role == lab.RolePrimary && h.Covered })
	}
	g.kill("gw1")
	owns("gw2")
	g.wantPing(lab.NodeClient, before[0], serverIn)
	if after := g.leasedBy("gw2"); !slices.Equal(before, after) {
		t.Errorf("the survivor says %v, before it was %v", after, before)
	}
	g.settled("gw2", "gw3")
	eventually(t, 10*time.Second, "the dead process's ranges are the survivor's", func() bool {
		if err := ch.Terminate(ch.ctx, "gw"); err != nil {
			t.Error(err)
		}
		ch.up()
		again := g.leasedBy("gw2")
		return slices.Equal(before, again)
	})
	g.crash("gw2")
	g.crash("gw1")
	owns("gw3")
	waitStatus(g.gws["gw3"], "gw3", 10*time.Second, "says that it has no quorum", func(h groupHA) bool { return !h.Log.Quorum })
	g.wantPing(lab.NodeClient, before[0], serverIn)
	if err := ch.Terminate(ch.ctx, "gw"); err != nil {
		t.Error(err)
	}
	ch.up()
	if alone := g.leasedBy("gw3"); len(alone) != 1 {
		t.Errorf("alone it assigned %v", alone)
	}
}
