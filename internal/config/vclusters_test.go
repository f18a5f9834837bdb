package config

import (
	"net/netip"
	"testing"
)

// TestVirtualClustersHaveTheirTunnels: by virtual domain, by list, and what nobody names
// falls to virtual cluster 1.
func TestVirtualClustersHaveTheirTunnels(t *testing.T) {
	c := &Config{
		HA: HA{Mode: "a-p", VClusterStatus: true, Priority: 77, Monitor: []string{"port1"}, VClusters: []VCluster{
			{ID: 2, Priority: 200, VDOM: []string{"red"}}, {ID: 9, Override: true, Phase1: []string{"listed", "v6"}}}},
		Interfaces: []Interface{
			{Name: "port1", VDOM: "root", IP: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
			{Name: "port2", VDOM: "red", IP: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("198.51.100.2/24")}},
			{Name: "port3", VDOM: "blue", IP: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24")}},
			{Name: "port4", VDOM: "root"},
		},
		Phase1: []Phase1{
			{Name: "plain", Interface: "port1"}, {Name: "red", Interface: "port2"}, {Name: "listed", Interface: "port3"},
			{Name: "gateway", Interface: "port1", LocalGW: netip.MustParseAddr("198.51.100.2")}, {Name: "v6", Interface: "port4"},
			{Name: "unknown", Interface: "wan9"},
		},
	}
	want := map[string]int{"plain": 1, "red": 2, "listed": 9, "gateway": 2, "v6": 9, "unknown": 1}
	for i := range c.Phase1 {
		if p := &c.Phase1[i]; c.VClusterOf(p) != want[p.Name] {
			t.Errorf("%s: %d, want %d", p.Name, c.VClusterOf(p), want[p.Name])
		}
	}
	for name, id := range map[string]int{"port1": 1, "port2": 2, "port3": 9, "port4": 9, "wan9": 1} {
		if got := c.VClusterOfInterface(name); got != id {
			t.Errorf("%s: %d, want %d", name, got, id)
		}
	}
	all := c.VirtualClusters()
	if len(all) != 3 || all[0].ID != 1 || all[0].Priority != 77 || all[0].Monitor[0] != "port1" || all[1].ID != 2 || all[2].ID != 9 {
		t.Errorf("%+v", all)
	}
	if h := c.HAOf(all[2]); !h.Override || h.Priority != 0 || h.Monitor != nil || h.Mode != "a-p" {
		t.Errorf("%+v", h)
	}
	c.HA.VClusterStatus = false
	if c.Virtual() || c.VirtualClusters() != nil {
		t.Error("virtual clusters that are switched off")
	}
}
