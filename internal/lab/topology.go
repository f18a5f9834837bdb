package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The pair's network. Shared addresses are put on the active gateway's wan0 and
// lan0 by the daemons, never by the lab.
//
//	host ── client ──┐                ┌─ gw1 ─┐
//	                 ├─ wan (switch) ─┤  ║║   ├─ lan (switch) ── server
//	                 ┘                └─ gw2 ─┘
//
// ║║ are hb0 and hb1, each through a patch panel (panel) with a bridge of its
// own: a cut is made at the panel, so that neither gateway's own end of a
// heartbeat link goes down (which would flush its addresses), and a gateway that
// is lost does not betray itself by the carrier of the other one's link.
const (
	NodeHost   = "host"   // a host behind the client
	NodeClient = "client" // the VPN client
	NodeWAN    = "wan"    // switch
	NodeGW1    = "gw1"
	NodeGW2    = "gw2"
	NodePanel  = "panel" // heartbeat cabling
	NodeLAN    = "lan"   // switch
	NodeServer = "server"
)

// Addresses of the pair's network.
const (
	ClientWAN  = "192.0.2.10/24"
	ClientWAN6 = "2001:db8:1::10/64"
	SharedWAN  = "192.0.2.1/24" // set by the daemons
	SharedWAN6 = "2001:db8:1::1/64"
	ClientLAN  = "10.1.0.1/24"
	ClientLAN6 = "2001:db8:a::1/64"
	HostAddr   = "10.1.0.10/24"
	HostAddr6  = "2001:db8:a::10/64"
	SharedLAN  = "10.2.0.1/24" // set by the daemons
	SharedLAN6 = "2001:db8:b::1/64"
	ServerAddr = "10.2.0.10/24"
	ServerAdr6 = "2001:db8:b::10/64"
)

// sharedAddrs are the addresses that only the active gateway speaks in the name of.
var sharedAddrs = []netip.Addr{addrOf(SharedWAN), addrOf(SharedWAN6), addrOf(SharedLAN), addrOf(SharedLAN6)}

// Gateways are the nodes under test.
var Gateways = []string{NodeGW1, NodeGW2}

// HBLinks are the heartbeat links by the name that they have on both gateways.
var HBLinks = []string{"hb0", "hb1"}

var pairNodes = []string{NodeHost, NodeClient, NodeWAN, NodeGW1, NodeGW2, NodePanel, NodeLAN, NodeServer}

// cable is a veth pair; the a end is the node's own, the b end a switch port.
type cable struct {
	a, aIf, b, bIf string
	addrs          []string
	mtu            int  // 0: 1500
	batches        bool // frames of many packets cross it as they are
}

var pairCables = []cable{
	{a: NodeHost, aIf: "lan0", b: NodeClient, bIf: "lan0", addrs: []string{HostAddr, HostAddr6}},
	{a: NodeClient, aIf: "wan0", b: NodeWAN, bIf: "client", addrs: []string{ClientWAN, ClientWAN6}},
	{a: NodeGW1, aIf: "wan0", b: NodeWAN, bIf: NodeGW1},
	{a: NodeGW2, aIf: "wan0", b: NodeWAN, bIf: NodeGW2},
	{a: NodeGW1, aIf: "hb0", b: NodePanel, bIf: "gw1hb0"},
	{a: NodeGW2, aIf: "hb0", b: NodePanel, bIf: "gw2hb0"},
	{a: NodeGW1, aIf: "hb1", b: NodePanel, bIf: "gw1hb1"},
	{a: NodeGW2, aIf: "hb1", b: NodePanel, bIf: "gw2hb1"},
	{a: NodeGW1, aIf: "lan0", b: NodeLAN, bIf: NodeGW1},
	{a: NodeGW2, aIf: "lan0", b: NodeLAN, bIf: NodeGW2},
	{a: NodeServer, aIf: "lan0", b: NodeLAN, bIf: NodeServer, addrs: []string{ServerAddr, ServerAdr6}},
}

// bridge is a switch's bridge with its ports.
type bridge struct {
	node, name string
	ports      []string
}

// farEnd is an interface with its addresses.
type farEnd struct {
	node, dev string
	addrs     []string
}

// layout is a network around two gateways.
type layout struct {
	nodes, routers, switches []string
	cables                   []cable
	bridges                  []bridge
	addrs                    []farEnd    // of the far ends of cables
	routes                   []PlanRoute // by way of an address with its prefix length
}

var pairLayout = layout{
	nodes: pairNodes, routers: []string{NodeGW1, NodeGW2, NodeClient}, switches: []string{NodeWAN, NodeLAN, NodePanel}, cables: pairCables,
	bridges: []bridge{
		{NodeWAN, "br0", []string{"client", NodeGW1, NodeGW2}},
		{NodePanel, "brhb0", []string{"gw1hb0", "gw2hb0"}},
		{NodePanel, "brhb1", []string{"gw1hb1", "gw2hb1"}},
		{NodeLAN, "br0", []string{NodeGW1, NodeGW2, NodeServer}},
	},
	addrs: []farEnd{{NodeClient, "lan0", []string{ClientLAN, ClientLAN6}}},
	routes: []PlanRoute{
		{NodeHost, "0.0.0.0/0", ClientLAN},
		{NodeHost, "::/0", ClientLAN6},
		{NodeServer, "10.1.0.0/16", SharedLAN},
		{NodeServer, "2001:db8:a::/64", SharedLAN6},
	},
}

// Topology is the standing network of one lab. Its methods may be called from
// one goroutine at a time.
type Topology struct {
	ID     string
	Dir    string // for logs, sockets and generated files; removed by Close
	state  State
	cables []cable // whose far ends a cut takes down, see faults.go
	ns     map[string]netns.NsHandle
	nl     map[string]*netlink.Handle
}

// NewID returns a name for a lab that nobody else has.
func NewID() string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// BuildPair makes the network of the pair. On failure nothing is left. It needs
// root. An empty id asks for a new one.
func BuildPair(id string) (*Topology, error) {
	return newTopology(id, pairNodes, func(t *Topology) error { return t.buildLayout(pairLayout) })
}

// newTopology registers a lab and lets make build its network, or leaves nothing.
func newTopology(id string, nodes []string, make func(*Topology) error) (*Topology, error) {
	if id == "" {
		id = NewID()
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') || len(id) > 16 {
			return nil, fmt.Errorf("lab ID %q: up to 16 small letters and digits are allowed", id)
		}
	}
	if err := os.MkdirAll(stateRoot, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(stateDir(id), 0o700); err != nil {
		return nil, fmt.Errorf("lab %s exists already (tandem lab down %s removes it): %w", id, id, err)
	}
	start, err := processStart(os.Getpid())
	if err != nil {
		return nil, err
	}
	t := &Topology{
		ID: id, Dir: filepath.Join(stateDir(id), "work"),
		state: State{ID: id, Created: timeNow().UTC(), PID: os.Getpid(), PIDStart: start},
		ns:    map[string]netns.NsHandle{}, nl: map[string]*netlink.Handle{},
	}
	t.state.Dir = t.Dir
	for _, n := range nodes {
		t.state.Namespaces = append(t.state.Namespaces, t.Netns(n))
	}
	err = t.state.save()
	if err == nil {
		err = os.MkdirAll(t.Dir, 0o700)
	}
	if err == nil {
		err = make(t)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Netns is the name under which `ip netns exec` finds a node.
func (t *Topology) Netns(node string) string { return "tl-" + t.ID + "-" + node }

// Namespace is the handle of a node's namespace, owned by the topology.
func (t *Topology) Namespace(node string) netns.NsHandle { return t.ns[node] }

// In runs f on a thread inside a node's namespace; see inNetns.
func (t *Topology) In(node string, f func() error) error {
	ns, ok := t.ns[node]
	if !ok {
		return fmt.Errorf("lab has no node %q", node)
	}
	return inNetns(ns, f)
}

// Keep leaves the network standing when this process ends; Down removes it.
func (t *Topology) Keep(sockets map[string]string, binary, example string) error {
	t.state.PID, t.state.PIDStart = 0, 0
	t.state.Sockets, t.state.Binary, t.state.Example = sockets, binary, example
	return t.state.save()
}

// Close ends every process in the lab's namespaces and removes all it made.
func (t *Topology) Close() error {
	for _, h := range t.nl {
		h.Close()
	}
	err := t.state.remove()
	for _, h := range t.ns {
		_ = h.Close()
	}
	t.nl, t.ns = nil, nil
	return err
}

// addNode makes one namespace with its loopback up. A switch has no stack of its
// own that could speak on the wire.
func (t *Topology) addNode(n string, forward, isSwitch bool) error {
	h, err := newNetns(t.Netns(n))
	if err != nil {
		return err
	}
	t.ns[n] = h
	if err := t.In(n, func() error { return nodeSysctls(forward, isSwitch) }); err != nil {
		return fmt.Errorf("%s: %w", n, err)
	}
	nl, err := netlink.NewHandleAt(h)
	if err != nil {
		return fmt.Errorf("%s: netlink: %w", n, err)
	}
	t.nl[n] = nl
	return t.linkUp(n, "lo")
}

func (t *Topology) buildLayout(l layout) error {
	t.cables = l.cables
	for _, n := range l.nodes {
		if err := t.addNode(n, slices.Contains(l.routers, n), slices.Contains(l.switches, n)); err != nil {
			return err
		}
	}
	for _, c := range l.cables {
		if err := t.lay(c); err != nil {
			return err
		}
	}
	for _, b := range l.bridges {
		if err := t.bridge(b.node, b.name, b.ports); err != nil {
			return err
		}
	}
	for _, a := range l.addrs {
		if err := t.address(a.node, a.dev, a.addrs...); err != nil {
			return err
		}
	}
	for _, r := range l.routes {
		if err := t.route(r.Node, r.Dst, r.Via); err != nil {
			return err
		}
	}
	return nil
}

// nodeSysctls runs inside the node's namespace, before it has any link.
func nodeSysctls(forward, isSwitch bool) error {
	set := [][2]string{
		// Duplicate address detection would hold back heartbeats and shared
		// addresses for a second.
		{"ipv6/conf/all/accept_dad", "0"}, {"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/dad_transmits", "0"},
		{"ipv6/conf/all/accept_ra", "0"}, {"ipv6/conf/default/accept_ra", "0"},
		{"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/send_redirects", "0"}, {"ipv4/conf/default/send_redirects", "0"},
		{"ipv4/conf/all/accept_redirects", "0"}, {"ipv4/conf/default/accept_redirects", "0"},
	}
	if forward {
		set = append(set, [2]string{"ipv4/ip_forward", "1"},
			[2]string{"ipv6/conf/all/forwarding", "1"}, [2]string{"ipv6/conf/default/forwarding", "1"})
	}
	if isSwitch {
		set = append(set, [2]string{"ipv6/conf/all/disable_ipv6", "1"}, [2]string{"ipv6/conf/default/disable_ipv6", "1"})
	}
	for _, s := range set {
		if err := sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

func (t *Topology) lay(c cable) error {
	if c.mtu == 0 {
		c.mtu = 1500
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.aIf
	attrs.MTU = c.mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName = c.bIf
	veth.PeerNamespace = netlink.NsFd(t.ns[c.b])
	veth.PeerMTU = uint32(c.mtu)
	if err := t.nl[c.a].LinkAdd(veth); err != nil {
		return fmt.Errorf("cable %s/%s to %s/%s: %w", c.a, c.aIf, c.b, c.bIf, err)
	}
	for _, end := range [][2]string{{c.a, c.aIf}, {c.b, c.bIf}} {
		if c.batches {
			if err := t.linkUp(end[0], end[1]); err != nil {
				return err
			}
			continue
		}
		// What leaves a node must stand in a capture as on a wire: one frame for
		// one packet, however large the batches that the sender hands over.
		link, err := t.link(end[0], end[1])
		if err != nil {
			return err
		}
		if err := t.nl[end[0]].LinkSetGSOMaxSegs(link, 1); err != nil {
			return fmt.Errorf("%s/%s: segmentation: %w", end[0], end[1], err)
		}
		if err := t.cuts(end[0], end[1]); err != nil {
			return err
		}
		if err := t.linkUp(end[0], end[1]); err != nil {
			return err
		}
	}
	return t.address(c.a, c.aIf, c.addrs...)
}

// cuts has the kernel cut what a gateway's TUN hands over in one piece: for that it does
// not count segments.
func (t *Topology) cuts(node, dev string) error {
	return t.In(node, func() error {
		out, err := exec.Command("ethtool", "-K", dev, "tso", "off", "tx-udp-segmentation", "off").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s/%s: ethtool: %w: %s", node, dev, err, out)
		}
		return nil
	})
}

func (t *Topology) bridge(node, name string, ports []string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snoop := false // heartbeats and neighbour discovery must not wait for a querier
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
	if err := t.nl[node].LinkAdd(br); err != nil {
		return fmt.Errorf("switch %s/%s: %w", node, name, err)
	}
	for _, p := range ports {
		link, err := t.link(node, p)
		if err != nil {
			return err
		}
		if err := t.nl[node].LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("switch %s, port %s: %w", node, p, err)
		}
	}
	return t.linkUp(node, name)
}

func (t *Topology) address(node, dev string, addrs ...string) error {
	for _, a := range addrs {
		link, err := t.link(node, dev)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := t.nl[node].AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s/%s: address %s: %w", node, dev, a, err)
		}
	}
	return nil
}

// route takes via as an address with its prefix length, as the constants have it.
func (t *Topology) route(node, dst, via string) error {
	_, to, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	gw, _, err := net.ParseCIDR(via)
	if err != nil {
		return err
	}
	if err := t.nl[node].RouteAdd(&netlink.Route{Dst: to, Gw: gw}); err != nil {
		return fmt.Errorf("%s: route %s via %s: %w", node, dst, gw, err)
	}
	return nil
}

func (t *Topology) link(node, dev string) (netlink.Link, error) {
	l, err := t.nl[node].LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", node, dev, err)
	}
	return l, nil
}

func (t *Topology) linkUp(node, dev string) error {
	l, err := t.link(node, dev)
	if err != nil {
		return err
	}
	if err := t.nl[node].LinkSetUp(l); err != nil {
		return fmt.Errorf("%s/%s: %w", node, dev, err)
	}
	return nil
}

func (t *Topology) linkDown(node, dev string) error {
	l, err := t.link(node, dev)
	if err != nil {
		return err
	}
	if err := t.nl[node].LinkSetDown(l); err != nil {
		return fmt.Errorf("%s/%s: %w", node, dev, err)
	}
	return nil
}
