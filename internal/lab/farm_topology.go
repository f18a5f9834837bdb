package lab

import (
	"errors"
	"fmt"
	"net"
	"slices"
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
	nodes := append([]string{NodeRouter, NodeSwitches, NodeLANRouter}, f.members()...)
	if f.Sites {
		nodes = append(nodes, witnessNode)
	}
	return newTopology(id, append(nodes, f.clientNodes()...), func(t *Topology) error { return t.buildFarm(&f) })
}

func (t *Topology) buildFarm(f *FarmSetup) error {
	for _, n := range append([]string{NodeRouter, NodeLANRouter}, f.members()...) {
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
	for i, h := range f.allHops() {
		for _, m := range h.members {
			syncPorts = append(syncPorts, farmSyncPort+m)
		}
		if err := t.addHop(i, h, slices.Index(f.members(), h.members[0])); err != nil {
			return err
		}
	}
	if f.Sites {
		c := cable{a: witnessNode, aIf: "port4", b: NodeSwitches, bIf: farmSyncPort + witnessNode, addrs: []string{"172.31.1.9/24"}}
		if err := errors.Join(t.addNode(witnessNode, false, false), t.lay(c)); err != nil {
			return err
		}
		syncPorts = append(syncPorts, c.bIf)
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
	return t.setRoutes(f, f.hops())
}

// memberNet is the third octet of a member's port2 and port3 networks.
func memberNet(i int) int { return 125 + i }

// addHop makes the i-th next hop of the routers with its members, the first of which has
// the number first (from 0). A member that is alone has its addresses from its host; in
// a site Tandem puts them on the active node, with its routes.
func (t *Topology) addHop(i int, h hop, first int) error {
	n := memberNet(i)
	wan, lan := fmt.Sprintf("192.168.%d.", n), fmt.Sprintf("172.31.%d.", n)
	cables := []cable{
		{a: NodeRouter, aIf: h.name, b: NodeSwitches, bIf: "r-" + h.name, addrs: []string{wan + "1/24"}},
		{a: NodeLANRouter, aIf: h.name, b: NodeSwitches, bIf: "k-" + h.name, addrs: []string{lan + "1/24"}},
	}
	wans, lans := []string{"r-" + h.name}, []string{"k-" + h.name}
	for k, m := range h.members {
		own := []cable{
			{a: m, aIf: "port2", b: NodeSwitches, bIf: farmWANPort + m},
			{a: m, aIf: "port3", b: NodeSwitches, bIf: farmLANPort + m},
			{a: m, aIf: "port4", b: NodeSwitches, bIf: farmSyncPort + m, addrs: []string{fmt.Sprintf("172.31.1.%d/24", first+k+1)}},
		}
		if len(h.members) == 1 {
			own[0].addrs, own[1].addrs = []string{wan + "254/24"}, []string{lan + "254/24"}
		}
		t.cables = append(t.cables, own...) // what a cut takes down
		cables = append(cables, own...)
		wans, lans = append(wans, farmWANPort+m), append(lans, farmLANPort+m)
	}
	for _, c := range cables {
		if err := t.lay(c); err != nil {
			return err
		}
	}
	for name, ports := range map[string][]string{"wan": wans, "lan": lans} {
		if err := t.bridge(NodeSwitches, name+strconv.Itoa(i+1), ports); err != nil {
			return err
		}
	}
	for _, m := range h.members {
		// A bridge without ports stands for a loopback interface: not every kernel has
		// dummy ones.
		if err := t.bridge(m, "lb1", nil); err != nil {
			return err
		}
		if len(h.members) > 1 {
			continue
		}
		if err := t.address(m, "lb1", FarmLoopback.String()+"/32"); err != nil {
			return err
		}
		if err := errors.Join(t.route(m, "0.0.0.0/0", wan+"1/24"), t.route(m, farmServers, lan+"1/24")); err != nil {
			return err
		}
	}
	return nil
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

// setRoutes replaces the ECMP routes of both routers by such over the next hops
// given, in their order, at once for each route. Without any the routes go.
func (t *Topology) setRoutes(f *FarmSetup, hops []string) error {
	if err := t.ecmp(f, NodeRouter, FarmLoopback.String()+"/32", "192.168.%d.254", hops); err != nil {
		return err
	}
	return t.setLANRoutes(f, hops)
}

func (t *Topology) setLANRoutes(f *FarmSetup, hops []string) error {
	for i := 0; i <= f.Clients()>>8; i++ {
		if err := t.ecmp(f, NodeLANRouter, fmt.Sprintf(farmInner, 10+i), "172.31.%d.254", hops); err != nil {
			return err
		}
	}
	return nil
}

// ecmp replaces one multipath route; gateway has a place for memberNet.
func (t *Topology) ecmp(f *FarmSetup, node, prefix, gateway string, hops []string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: dst}
	for _, h := range hops {
		link, err := t.link(node, h)
		if err != nil {
			return err
		}
		i := f.hopIndex(h)
		if i < 0 {
			return fmt.Errorf("farm has no member %q", h)
		}
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(fmt.Sprintf(gateway, memberNet(i)))})
	}
	if len(hops) == 0 {
		err = t.nl[node].RouteDel(r)
	} else {
		err = t.nl[node].RouteReplace(r)
	}
	if err != nil {
		return fmt.Errorf("%s: route %s over %v: %w", node, prefix, hops, err)
	}
	return nil
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
