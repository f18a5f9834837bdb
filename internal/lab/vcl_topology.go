package lab

import "net/netip"

// The network of two virtual clusters on two gateways. Shared addresses are put on
// wan1 and lan1 of the gateway where the first is active, on wan2 and lan2 of the one
// where the second is, by the daemons, never by the lab.
//
//	client1 ── charon ─┬─ wan1 ─┬─ gw1 ─┬─ lan1 ── server1     (virtual cluster 1)
//	                   │        │  ║║   │
//	client2 ── branch ─┴─ wan2 ─┴─ gw2 ─┴─ lan2 ── server2     (virtual cluster 2)
//
// Every gateway and both peers are at wan1 and wan2, every gateway at lan1 and lan2. ║║
// are hb0 and hb1 through a patch panel, as in the pair's network.
const (
	NodeCharon  = "charon" // strongSwan, with a tunnel to each virtual cluster
	NodeBranch  = "branch" // a Tandem that stands alone, the same
	NodeClient1 = "client1"
	NodeClient2 = "client2"
	NodeWAN1    = "wan1"
	NodeWAN2    = "wan2"
	NodeLAN1    = "lan1"
	NodeLAN2    = "lan2"
	NodeServer1 = "server1"
	NodeServer2 = "server2"
)

// vflow is one tunnel with the two hosts that the lab probes between.
type vflow struct {
	tunnel           string // phase 1 of the gateways
	peer, name       string // the node at the other end, and what it calls the tunnel
	vcluster         int
	client, server   string // nodes
	clientAt, serves netip.Addr
}

var vflows = []vflow{
	{"int-charon", NodeCharon, "int", 1, NodeClient1, NodeServer1, netip.MustParseAddr("10.1.1.10"), netip.MustParseAddr("10.2.1.10")},
	{"ext-charon", NodeCharon, "ext", 2, NodeClient1, NodeServer2, netip.MustParseAddr("10.1.2.10"), netip.MustParseAddr("10.2.2.10")},
	{"int-branch", NodeBranch, "int", 1, NodeClient2, NodeServer1, netip.MustParseAddr("10.3.1.10"), netip.MustParseAddr("10.2.1.11")},
	{"ext-branch", NodeBranch, "ext", 2, NodeClient2, NodeServer2, netip.MustParseAddr("10.3.2.10"), netip.MustParseAddr("10.2.2.11")},
}

// vshared are the addresses that only the owner of a virtual cluster speaks in the name of.
var vshared = map[int][]netip.Addr{
	1: {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.2.1.1")},
	2: {netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("10.2.2.1")},
}

var vclusterLayout = layout{
	nodes:    []string{NodeClient1, NodeClient2, NodeCharon, NodeBranch, NodeWAN1, NodeWAN2, NodeGW1, NodeGW2, NodePanel, NodeLAN1, NodeLAN2, NodeServer1, NodeServer2},
	routers:  []string{NodeGW1, NodeGW2, NodeCharon, NodeBranch},
	switches: []string{NodeWAN1, NodeWAN2, NodeLAN1, NodeLAN2, NodePanel},
	cables: []cable{
		{a: NodeClient1, aIf: "lan0", b: NodeCharon, bIf: "lan0", addrs: []string{"10.1.1.10/24", "10.1.2.10/24"}},
		{a: NodeClient2, aIf: "lan0", b: NodeBranch, bIf: "lan0", addrs: []string{"10.3.1.10/24", "10.3.2.10/24"}},
		{a: NodeCharon, aIf: "wan1", b: NodeWAN1, bIf: NodeCharon, addrs: []string{"192.0.2.10/24"}},
		{a: NodeCharon, aIf: "wan2", b: NodeWAN2, bIf: NodeCharon, addrs: []string{"198.51.100.10/24"}},
		{a: NodeBranch, aIf: "wan1", b: NodeWAN1, bIf: NodeBranch, addrs: []string{"192.0.2.20/24"}},
		{a: NodeBranch, aIf: "wan2", b: NodeWAN2, bIf: NodeBranch, addrs: []string{"198.51.100.20/24"}},
		{a: NodeGW1, aIf: "wan1", b: NodeWAN1, bIf: NodeGW1},
		{a: NodeGW2, aIf: "wan1", b: NodeWAN1, bIf: NodeGW2},
		{a: NodeGW1, aIf: "wan2", b: NodeWAN2, bIf: NodeGW1},
		{a: NodeGW2, aIf: "wan2", b: NodeWAN2, bIf: NodeGW2},
		{a: NodeGW1, aIf: "hb0", b: NodePanel, bIf: "gw1hb0"},
		{a: NodeGW2, aIf: "hb0", b: NodePanel, bIf: "gw2hb0"},
		{a: NodeGW1, aIf: "hb1", b: NodePanel, bIf: "gw1hb1"},
		{a: NodeGW2, aIf: "hb1", b: NodePanel, bIf: "gw2hb1"},
		{a: NodeGW1, aIf: "lan1", b: NodeLAN1, bIf: NodeGW1},
		{a: NodeGW2, aIf: "lan1", b: NodeLAN1, bIf: NodeGW2},
		{a: NodeGW1, aIf: "lan2", b: NodeLAN2, bIf: NodeGW1},
		{a: NodeGW2, aIf: "lan2", b: NodeLAN2, bIf: NodeGW2},
		{a: NodeServer1, aIf: "lan0", b: NodeLAN1, bIf: NodeServer1, addrs: []string{"10.2.1.10/24", "10.2.1.11/24"}},
		{a: NodeServer2, aIf: "lan0", b: NodeLAN2, bIf: NodeServer2, addrs: []string{"10.2.2.10/24", "10.2.2.11/24"}},
	},
	bridges: []bridge{
		{NodeWAN1, "br0", []string{NodeCharon, NodeBranch, NodeGW1, NodeGW2}},
		{NodeWAN2, "br0", []string{NodeCharon, NodeBranch, NodeGW1, NodeGW2}},
		{NodePanel, "brhb0", []string{"gw1hb0", "gw2hb0"}},
		{NodePanel, "brhb1", []string{"gw1hb1", "gw2hb1"}},
		{NodeLAN1, "br0", []string{NodeGW1, NodeGW2, NodeServer1}},
		{NodeLAN2, "br0", []string{NodeGW1, NodeGW2, NodeServer2}},
	},
	addrs: []farEnd{{NodeCharon, "lan0", []string{"10.1.1.1/24", "10.1.2.1/24"}}, {NodeBranch, "lan0", []string{"10.3.1.1/24", "10.3.2.1/24"}}},
	routes: []PlanRoute{
		{NodeClient1, "10.2.1.0/24", "10.1.1.1/24"}, {NodeClient1, "10.2.2.0/24", "10.1.2.1/24"},
		{NodeClient2, "10.2.1.0/24", "10.3.1.1/24"}, {NodeClient2, "10.2.2.0/24", "10.3.2.1/24"},
		{NodeServer1, "0.0.0.0/0", "10.2.1.1/24"}, {NodeServer2, "0.0.0.0/0", "10.2.2.1/24"},
	},
}

// BuildVClusters makes the network of two virtual clusters. On failure nothing is left. It
// needs root. An empty id asks for a new one.
func BuildVClusters(id string) (*Topology, error) {
	return newTopology(id, vclusterLayout.nodes, func(t *Topology) error { return t.buildLayout(vclusterLayout) })
}
