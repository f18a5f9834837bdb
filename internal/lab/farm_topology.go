package lab

import (
	"fmt"
	"net"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The farm's network, with the addresses of the vendor's example:
//
//	c1 ─┐             ┌─ port2 DC1_VM1 port3 ─┐
//	c2 ─┤             ├─ port2 DC1_VM2 port3 ─┤
//	 …  ├─ DC_Router ─┤   …                   ├─ LAN_Router with the servers
//	t1 ─┘             └─ port2 DC1_VM4 port3 ─┘
//	                       port4: 172.31.1.1-4/24, one switch
//
// Both routers spread by ECMP over the members with fgsp-sync, by addresses and
// ports. Each cable of a member runs through a switch of its own: a cut there is
// seen by the member, not by the router, which is the worse case for us.
const (
	farmServers  = "10.200.0.0/16"
	farmInner    = "10.%d.0.0/16" // from 10.10
	farmSyncPort = "s-"           // ports of the switches towards a member: sync, port2, port3
	farmWANPort  = "w-"
	farmLANPort  = "l-"
)

// BuildFarm makes the network of a farm. On failure nothing is left. It needs root.
// An empty id asks for a new one.
func BuildFarm(id string, f FarmSetup) (*Topology, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	nodes := append([]string{NodeRouter, NodeSwitches, NodeLANRouter}, Members...)
	return newTopology(id, append(nodes, f.clientNodes()...), func(t *Topology) error { return t.buildFarm(&f) })
}

func (t *Topology) buildFarm(f *FarmSetup) error {
	for _, n := range append([]string{NodeRouter, NodeLANRouter}, Members...) {
		if err := t.addNode(n, true, false); err != nil {
			return err
		}
	}
	if err := t.addNode(NodeSwitches, false, true); err != nil {
		return err
	}
	for _, n := range []string{NodeRouter, NodeLANRouter} {
		if err := t.In(n, func() error { return sysctl("ipv4/fib_multipath_hash_policy", "1") }); err != nil {
			return err
		}
	}
	var syncPorts []string
	for i, m := range Members {
		syncPorts = append(syncPorts, farmSyncPort+m)
		if err := t.addMember(i, m); err != nil {
			return err
		}
	}
	if err := t.bridge(NodeSwitches, "sync", syncPorts); err != nil {
		return err
	}
	for k, n := range f.clientNodes() {
		if err := t.addClientNode(k+1, n, f.tunnels()); err != nil {
			return err
		}
	}
	// The servers: every address of their network is this node's own.
	if err := t.localNet(NodeLANRouter, farmServers); err != nil {
		return err
	}
	return t.setRoutes(f, f.synced())
}

// memberNet is the third octet of a member's port2 and port3 networks.
func memberNet(i int) int { return 125 + i }

func (t *Topology) addMember(i int, m string) error {
	n := memberNet(i)
	wan, lan := fmt.Sprintf("192.168.%d.", n), fmt.Sprintf("172.31.%d.", n)
	cables := []cable{
		{a: m, aIf: "port2", b: NodeSwitches, bIf: farmWANPort + m, addrs: []string{wan + "254/24"}},
		{a: m, aIf: "port3", b: NodeSwitches, bIf: farmLANPort + m, addrs: []string{lan + "254/24"}},
		{a: m, aIf: "port4", b: NodeSwitches, bIf: farmSyncPort + m, addrs: []string{fmt.Sprintf("172.31.1.%d/24", i+1)}},
	}
	t.cables = append(t.cables, cables...) // what a cut takes down
	cables = append(cables,
		cable{a: NodeRouter, aIf: m, b: NodeSwitches, bIf: "r-" + m, addrs: []string{wan + "1/24"}},
		cable{a: NodeLANRouter, aIf: m, b: NodeSwitches, bIf: "k-" + m, addrs: []string{lan + "1/24"}})
	for _, c := range cables {
		if err := t.lay(c); err != nil {
			return err
		}
	}
	for _, b := range [][3]string{{"wan" + strconv.Itoa(i+1), farmWANPort + m, "r-" + m}, {"lan" + strconv.Itoa(i+1), farmLANPort + m, "k-" + m}} {
		if err := t.bridge(NodeSwitches, b[0], b[1:]); err != nil {
			return err
		}
	}
	// A bridge without ports stands for a loopback interface: not every kernel has
	// dummy ones.
	if err := t.bridge(m, "lb1", nil); err != nil {
		return err
	}
	if err := t.address(m, "lb1", FarmLoopback.String()+"/32"); err != nil {
		return err
	}
	if err := t.route(m, "0.0.0.0/0", wan+"1/24"); err != nil {
		return err
	}
	return t.route(m, farmServers, lan+"1/24")
}

// addClientNode makes the k-th client network with one node that holds all its
// addresses, and the networks behind its tunnels.
func (t *Topology) addClientNode(k int, node string, tunnels []Tunnel) error {
	if err := t.addNode(node, true, false); err != nil {
		return err
	}
	router := fmt.Sprintf("192.168.%d.1/24", k)
	c := cable{a: node, aIf: "wan0", b: NodeRouter, bIf: node}
	for _, x := range tunnels {
		if x.Node == node {
			c.addrs = append(c.addrs, x.Outer.String()+"/24")
			if err := t.address(node, "lo", x.Host.String()+"/32"); err != nil {
				return err
			}
		}
	}
	if err := t.lay(c); err != nil {
		return err
	}
	if err := t.address(NodeRouter, node, router); err != nil {
		return err
	}
	return t.route(node, FarmLoopback.String()+"/32", router)
}

// localNet makes every address of a network the node's own.
func (t *Topology) localNet(node, prefix string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	lo, err := t.link(node, "lo")
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
	if err := t.nl[node].RouteAdd(r); err != nil {
		return fmt.Errorf("%s: local %s: %w", node, prefix, err)
	}
	return nil
}

// setRoutes replaces the ECMP routes of both routers by such over the members
// given, in their order, at once for each route. Without members the routes go.
func (t *Topology) setRoutes(f *FarmSetup, members []string) error {
	if err := t.ecmp(NodeRouter, FarmLoopback.String()+"/32", "192.168.%d.254", members); err != nil {
		return err
	}
	return t.setLANRoutes(f, members)
}

func (t *Topology) setLANRoutes(f *FarmSetup, members []string) error {
	for i := 0; i <= f.Clients()>>8; i++ {
		if err := t.ecmp(NodeLANRouter, fmt.Sprintf(farmInner, 10+i), "172.31.%d.254", members); err != nil {
			return err
		}
	}
	return nil
}

// ecmp replaces one multipath route; gateway has a place for memberNet.
func (t *Topology) ecmp(node, prefix, gateway string, members []string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: dst}
	for _, m := range members {
		link, err := t.link(node, m)
		if err != nil {
			return err
		}
		i := memberIndex(m)
		if i < 0 {
			return fmt.Errorf("farm has no member %q", m)
		}
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(fmt.Sprintf(gateway, memberNet(i)))})
	}
	if len(members) == 0 {
		err = t.nl[node].RouteDel(r)
	} else {
		err = t.nl[node].RouteReplace(r)
	}
	if err != nil {
		return fmt.Errorf("%s: route %s over %v: %w", node, prefix, members, err)
	}
	return nil
}

func memberIndex(m string) int {
	for i, x := range Members {
		if x == m {
			return i
		}
	}
	return -1
}

// CutSync takes a member's link to the sync network away; JoinSync gives it back
// and waits until it carries.
func (t *Topology) CutSync(member string) error {
	return t.linkDown(NodeSwitches, farmSyncPort+member)
}

// JoinSync undoes CutSync.
func (t *Topology) JoinSync(member string) error {
	if err := t.linkUp(NodeSwitches, farmSyncPort+member); err != nil {
		return err
	}
	return t.carries(NodeSwitches, farmSyncPort+member)
}
