package daemon

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/bfd"
	"tandem/internal/bfd/bfdnet"
	"tandem/internal/config"
	"tandem/internal/node"
	"tandem/internal/routehealth"
)

// Routers may begin to send to a member that is synchronised, and go on while it owns
// anything, unless it is told to stop.
func TestUnworthy(t *testing.T) {
	alone := func(s *node.Status) { s.Farm.Scopes[0].Here.Synchronised = false }
	for _, c := range []struct {
		name        string
		spoil       func(*node.Status)
		begin, goOn string
	}{
		{"synchronised", func(*node.Status) {}, "", ""},
		{"not joined", func(s *node.Status) { s.Farm.Joined = false }, "not joined", ""},
		{"owns nothing", func(s *node.Status) { s.Owner = false }, "owns nothing", "owns nothing"},
		{"nobody stands by", alone, "not synchronised", ""},
		{"nobody could stand by", func(s *node.Status) {
			alone(s)
			for i := range s.Farm.Members {
				s.Farm.Members[i].Lost = true
			}
		}, "", ""},
		{"its copy is not complete", func(s *node.Status) { s.Farm.Scopes[1].Here.Synchronised = false }, "not synchronised", ""},
		{"no quorum, continue", func(s *node.Status) { s.Farm.Quorum.Lost = true; alone(s) }, "not synchronised", ""},
		{"no quorum, stop", func(s *node.Status) { s.Farm.Quorum = node.Quorum{Lost: true, Stop: true} }, "no quorum", "no quorum"},
		{"quorum, stop", func(s *node.Status) { s.Farm.Quorum.Stop = true }, "", ""},
		{"drained", func(s *node.Status) { s.Farm.Members[0].State = fsm.Draining }, "drained", "drained"},
		{"a pair's active", func(s *node.Status) { *s = node.Status{Owner: true, HA: &cluster.HAStatus{}} }, "", ""},
		{"a pair's standby", func(s *node.Status) { *s = node.Status{HA: &cluster.HAStatus{Synchronised: true}} }, "standby", "standby"},
		{"a single gateway", func(s *node.Status) { *s = node.Status{} }, "", ""},
	} {
		for announced, want := range map[bool]string{false: c.begin, true: c.goOn} {
			s := testFarmView(t, 1).Node
			s.Owner = true
			c.spoil(&s)
			if got := unworthy(announced, s); got != want {
				t.Errorf("%s, announced %v: %q, want %q", c.name, announced, got, want)
			}
		}
	}
}

// What the configuration says reaches the speaker, and the farm's shared addresses with it.
func TestSpeakerOptions(t *testing.T) {
	const bgp = `
config system settings
    set bfd-desired-min-tx 100
    set bfd-required-min-rx 200
    set bfd-detect-mult 5
end
config router bgp
    set as 65001
    set router-id 10.0.0.1
    config neighbor
        edit 10.0.0.254
            set remote-as 65000
            set bfd enable
        next
        edit 10.0.9.254
            set remote-as 65000
            set ebgp-enforce-multihop enable
            set ebgp-multihop-ttl 3
        next
    end
    config network
        edit 1
            set prefix 10.9.0.1 255.255.0.0
        next
    end
end
`
	farm := testFarmView(t, 1).Config
	c, faults := config.Load("f", []byte(bgp))
	if c == nil {
		t.Fatal(faults)
	}
	o := speakerOptions(c)
	if len(o.Prefixes) != 1 || o.Prefixes[0] != netip.MustParsePrefix("10.9.0.0/16") {
		t.Errorf("a single gateway announces %v", o.Prefixes)
	}
	if o.BFD != (bfdnet.Session{DesiredMinTx: 100 * time.Millisecond, RequiredMinRx: 200 * time.Millisecond, DetectMult: 5}) {
		t.Errorf("BFD with %+v", o.BFD)
	}
	if len(o.Neighbors) != 2 || !o.Neighbors[0].BFD || o.Neighbors[0].MultihopTTL != 0 || o.Neighbors[1].BFD || o.Neighbors[1].MultihopTTL != 3 {
		t.Errorf("neighbors %+v", o.Neighbors)
	}
	c.Standalone, c.Phase1 = farm.Standalone, farm.Phase1
	if o = speakerOptions(c); len(o.Prefixes) != 2 || o.Prefixes[1] != netip.MustParsePrefix("192.168.202.31/32") {
		t.Errorf("a farm's member announces %v", o.Prefixes)
	}
	for i := range c.Phase1 {
		c.Phase1[i].FGSPSync = false
	}
	if o = speakerOptions(c); len(o.Prefixes) != 1 {
		t.Errorf("a member that does not synchronise announces %v", o.Prefixes)
	}
}

// What people read of BGP and BFD, and what scripts do.
func TestShowRouters(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	router := netip.MustParseAddr("127.0.0.254")
	told := routesView{
		Now: now, RouterID: netip.MustParseAddr("192.168.125.254"), AS: 65001, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.202.31/32")},
		BGP: routehealth.Status{Announced: true, Neighbors: []routehealth.NeighborStatus{
			{Addr: router, RemoteAS: 65000, Established: true, State: "Established", Since: now.Add(-90 * time.Minute), Received: 20, Sent: 21,
				BFD: &bfdnet.Status{Peer: router, Detection: 300 * time.Millisecond, Says: bfd.Packet{State: bfd.Up, DetectMult: 3, MyDiscr: 7, YourDiscr: 9,
					DesiredMinTx: 100 * time.Millisecond, RequiredMinRx: 100 * time.Millisecond}}},
			{Addr: netip.MustParseAddr("192.168.129.1"), RemoteAS: 4200000000, State: "Active"},
		}},
	}
	down := told
	down.BGP.Announced, down.Why = false, "not synchronised"
	for _, c := range []struct {
		told       routesView
		line, want string
	}{
		{told, "get router info bgp summary", `BGP router identifier 192.168.125.254, local AS number 65001
Announced: 192.168.202.31/32

Neighbor        V         AS MsgRcvd MsgSent  Up/Down State/PfxRcd
127.0.0.254     4      65000      20      21 01:30:00 0
192.168.129.1   4 4200000000       0       0    never Active

Total number of neighbors 2
`},
		{told, "get router info bfd neighbor", `OurAddress      NeighAddress    State      Interface       LDesc/RDesc
127.0.0.1       127.0.0.254     UP         lo              7/9
`},
		{routesView{}, "get router info bgp summary", noBGP},
		{routesView{}, "get router info bfd neighbor", noBGP},
	} {
		out, err := run(&fakeBackend{v: testView(t, false), told: c.told}, c.line)
		if err != nil || out != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.line, err, out, c.want)
		}
	}
	out, err := run(&fakeBackend{v: testView(t, false), told: down}, "get router info bgp summary")
	if err != nil || !strings.Contains(out, "\nAnnounced: nothing (not synchronised)\n") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, line := range []string{"get router info bgp summary --json", "get router info bfd neighbor --json"} {
		out, err := run(&fakeBackend{v: testView(t, false), told: told}, line)
		var got struct {
			Neighbors []map[string]any `json:"neighbors"`
		}
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got.Neighbors) == 0 || got.Neighbors[0]["address"] != "127.0.0.254" {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
}
