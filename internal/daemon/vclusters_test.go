package daemon

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/internal/config"
	"tandem/internal/node"
)

const vclusterConfig = `
config system ha
    set mode a-p
    set hbdev "hb0" 50
    set vcluster-status enable
    config vcluster
        edit 1
            set vdom "FWINT"
            set priority 200
            set monitor "wan0"
        next
        edit 2
            set vdom "FWEXT"
            set override enable
            set priority 100
            set monitor "wan1" "lan1"
        next
    end
end
config system interface
    edit "wan0"
        set vdom "FWINT"
        set ip 192.0.2.1/24
    next
    edit "wan1"
        set vdom "FWEXT"
        set ip 198.51.100.1/24
    next
end
`

// vclusterView is testView's pair with two virtual clusters: the second is active on gw2.
func vclusterView(t testing.TB) *view {
	v := testView(t, false)
	text := strings.Replace(viewConfig, "    set monitor \"wan0\" \"lan0\"\n", "", 1)
	text = strings.Replace(text, "set interface \"wan0\"\n        set ike-version 2\n        set local-gw 192.0.2.1\n        set peertype one", "set interface \"wan1\"\n        set ike-version 2\n        set local-gw 198.51.100.1\n        set peertype one", 1)
	v.Config = mustConfig(t, text+vclusterConfig)
	first, second := *v.Node.HA, *v.Node.HA
	first.Election.Priority, first.Election.MonitorsUp = 200, 1
	second.Role, second.Owner, second.Epoch = cluster.RoleStandby, 2, cluster.Epoch{Counter: 9, Node: 2}
	second.LastReason, second.LastCovered, second.Takeovers = "gw2 owns", false, 0
	second.Election.Priority, second.Election.Override, second.Election.MonitorsUp = 100, true, 1
	second.Peers = slices.Clone(first.Peers)
	second.Peers[0].Role, second.Peers[0].Epoch, second.Peers[0].Entitled = cluster.RoleOwner, second.Epoch, false
	v.Node.VClusters = []node.VClusterStatus{{ID: 1, HA: first}, {ID: 2, HA: second}}
	return v
}

func TestVClusterLayouts(t *testing.T) {
	for _, c := range []struct{ name, line string }{
		{"vclusters_status", "get system ha status"},
		{"vclusters_status_json", "diagnose sys ha status --json"},
		{"vclusters_gateways", "diagnose vpn ike gateway list"},
		{"vclusters_summary_json", "get vpn ipsec tunnel summary --json"},
	} {
		out, err := run(&fakeBackend{v: vclusterView(t)}, c.line)
		if err != nil {
			t.Fatalf("%s: %v", c.line, err)
		}
		golden(t, c.name, out)
	}
}

// TestVClusterRoles: what a gateway is to a tunnel is what it is to the tunnel's virtual
// cluster.
func TestVClusterRoles(t *testing.T) {
	v := vclusterView(t)
	want := map[string]string{"VPNtest": "sync-primary", "vpn1": "standby", "vpn1_1": "standby"}
	for i := range v.Node.Gateways {
		if g := &v.Node.Gateways[i]; v.role(g) != want[g.Name] {
			t.Errorf("%s: %s", g.Name, v.role(g))
		}
	}
}

func TestVClusterFailover(t *testing.T) {
	d := &fakeBackend{v: vclusterView(t)}
	for _, line := range []string{"execute ha failover set 2", "exec ha failover unset 1"} {
		if _, err := run(d, line); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(d.asked, "|"); got != "failover vcluster 2 set|failover vcluster 1 unset" {
		t.Error(got)
	}
	d.v.Node.VClusters[1].HA.Election.Failover = true
	for line, want := range map[string]string{
		"execute ha failover status":          "failover status: vcluster-1 unset\nfailover status: vcluster-2 set\n",
		"execute ha failover status 2":        "failover status: set\n",
		"execute ha failover status 1 --json": "{\n  \"failover\": false\n}\n",
	} {
		if out, err := run(d, line); err != nil || out != want {
			t.Errorf("%s: %q, %v", line, out, err)
		}
	}
	out, err := run(d, "execute ha failover status --json")
	var j struct{ VClusters []failoverJSON }
	if err != nil || json.Unmarshal([]byte(out), &j) != nil || len(j.VClusters) != 2 || j.VClusters[0].Failover || j.VClusters[1] != (failoverJSON{2, true}) {
		t.Errorf("%q, %v", out, err)
	}
	for _, line := range []string{"execute ha failover set", "execute ha failover status 1 2", "execute ha failover set 3", "execute ha failover set 1 2"} {
		if _, err := run(d, line); err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), "1, 2") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// TestWhatVirtualClustersCannotChange while they run.
func TestWhatVirtualClustersCannotChange(t *testing.T) {
	old := mustConfig(t, vclusterConfig)
	for edit, want := range map[string]string{
		"set priority 200|set priority 5":                        "",
		"set monitor \"wan0\"|set monitor \"lan0\"":              "",
		"set vcluster-status enable|set vcluster-status disable": "system ha: virtual clusters",
		"edit 2|edit 3": "system ha: virtual clusters",
		"set vdom \"FWEXT\"\n            set override|set override":                        "system ha: the virtual cluster of wan1",
		"next\nend\n|next\n    edit \"lan9\"\n        set ip 10.9.0.1/24\n    next\nend\n": "",
	} {
		from, to, _ := strings.Cut(edit, "|")
		if !strings.Contains(vclusterConfig, from) {
			t.Fatalf("nothing to replace: %q", from)
		}
		if got := reassigned(old, mustConfig(t, strings.Replace(vclusterConfig, from, to, 1))); got != want {
			t.Errorf("%q: %q, want %q", edit, got, want)
		}
	}
	plain := mustConfig(t, strings.Replace(vclusterConfig, "set vcluster-status enable", "set vcluster-status disable", 1))
	if got := needsRestart(plain, plain); got != "" {
		t.Error(got)
	}
}

// TestAddressesOfVirtualClusters come and go by themselves, and the guardian knows at every
// moment which are here.
func TestAddressesOfVirtualClusters(t *testing.T) {
	inNewNetns(t)
	addVeth(t, "wan0", "far0")
	addVeth(t, "wan1", "far1")
	c := mustConfig(t, vclusterConfig)
	s, err := newScopedAddresses(slog.New(slog.DiscardHandler), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var told []sharedAddr
	s.tell = func(all []sharedAddr) { told = all }
	s.configure(c)
	one, two := sharedAddr{"wan0", netip.MustParsePrefix("192.0.2.1/24")}, sharedAddr{"wan1", netip.MustParsePrefix("198.51.100.1/24")}
	want := func(what string, first, second bool) {
		t.Helper()
		var all []sharedAddr
		if first {
			all = append(all, one)
		}
		if second {
			all = append(all, two)
		}
		if hasAddr(one) != first || hasAddr(two) != second || !slices.Equal(told, all) {
			t.Errorf("%s: %v %v, the guardian knows %v", what, hasAddr(one), hasAddr(two), told)
		}
	}
	s.claim(2, nil)
	want("the second claimed", false, true)
	s.claim(1, nil)
	want("both claimed", true, true)
	s.release(2)
	want("the second released", true, false)
	s.claim(7, nil) // there is none
	s.release(7)
	want("one that is not there", true, false)
	s.releaseAll()
	want("all released", false, false)
}

// TestMonitorsOfVirtualClusters are counted each by itself.
func TestMonitorsOfVirtualClusters(t *testing.T) {
	l := &links{up: map[string]bool{"wan0": true, "wan1": true}}
	var got []int
	for _, v := range mustConfig(t, vclusterConfig).VirtualClusters() {
		got = append(got, l.monitorsUp(time.Now(), v.Monitor))
	}
	if !slices.Equal(got, []int{1, 1}) {
		t.Error(got)
	}
	if scopeOf(&config.Config{}, &config.Phase1{}) != 0 {
		t.Error("a tunnel has a scope without virtual clusters")
	}
}
