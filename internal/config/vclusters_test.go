package config

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
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

// TestOlderSpellingOfVirtualClusters: vcluster2 and secondary-vcluster say the same as two
// entries of `config vcluster`, for tunnels, elections and the file that another member's
// change makes of it.
func TestOlderSpellingOfVirtualClusters(t *testing.T) {
	const ha = "config system ha\n    set mode a-p\n    set hbdev \"hb0\" 50\n"
	const rest = `config system interface
    edit "wan1"
        set vdom "FWINT"
        set ip 192.0.2.1/24
    next
    edit "wan2"
        set vdom "FWEXT"
        set ip 198.51.100.1/24
    next
end
config vpn ipsec phase1-interface
    edit "int"
        set interface "wan1"
        set ike-version 2
        set remote-gw 192.0.2.10
        set psksecret "example-only"
    next
    edit "ext"
        set interface "wan2"
        set ike-version 2
        set remote-gw 198.51.100.10
        set psksecret "example-only"
    next
end
`
	load := func(what, text string) *Config {
		t.Helper()
		c, faults := Load(what, []byte(text))
		if c == nil {
			t.Fatalf("%s: %v", what, faults)
		}
		return c
	}
	older := load("older", ha+`    set vcluster2 enable
    set vdom "FWINT"
    set priority 200
    set override enable
    set monitor "wan1"
    config secondary-vcluster
        set vdom "FWEXT"
        set priority 100
        set override enable
        set override-wait-time 7
        set monitor "wan2"
    end
end
`+rest)
	newer := load("newer", ha+`    set vcluster-status enable
    config vcluster
        edit 1
            set vdom "FWINT"
            set priority 200
            set override enable
            set monitor "wan1"
        next
        edit 2
            set vdom "FWEXT"
            set priority 100
            set override enable
            set override-wait-time 7
            set monitor "wan2"
        next
    end
end
`+rest)
	for what, c := range map[string]*Config{"older": older, "newer": newer, "older, written": load("written", string(older.Text()))} {
		if !c.Virtual() || !reflect.DeepEqual(c.VirtualClusters(), newer.VirtualClusters()) || len(c.VirtualClusters()) != 2 {
			t.Errorf("%s: %+v, want %+v", what, c.VirtualClusters(), newer.VirtualClusters())
		}
		for i, p := range c.Phase1 {
			if id := c.VClusterOf(&c.Phase1[i]); id != map[string]int{"int": 1, "ext": 2}[p.Name] {
				t.Errorf("%s: %s is in virtual cluster %d", what, p.Name, id)
			}
		}
	}
	if older.HA.VClusters[1].OverrideWaitTime != 7*time.Second || older.HA.VClusters[0].Priority != 200 {
		t.Errorf("%+v", older.HA.VClusters)
	}
}
