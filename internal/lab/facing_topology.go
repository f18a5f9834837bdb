package lab

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
)

// Two pairs that face each other: each has the shape of the pair's network, and the other
// pair takes the client's place.
//
//	         ┌─ east1 ─┐                         ┌─ west1 ─┐
//	ehost ─ elan  ║║  ewan (switch) ── wwan (switch)  ║║  wlan ─ whost
//	         └─ east2 ─┘                         └─ west2 ─┘
//
// What crosses between the two WAN switches is what each pair's peer sees.

// facingPair is one of the two pairs.
type facingPair struct {
	Name           string
	Nodes          []string // gateways
	Host, LAN, WAN string   // a host behind it, and its switches
	Panel          string   // heartbeat cabling
	HostAddr       string
	SharedLAN      string // set by the daemons
	SharedWAN      string
}

// farPort is the port of a pair's WAN switch towards the other pair.
const farPort = "far"

var facingPairs = []facingPair{
	{"east", []string{"east1", "east2"}, "ehost", "elan", "ewan", "epanel", "10.1.0.10/24", "10.1.0.1/24", "192.0.2.1/24"},
	{"west", []string{"west1", "west2"}, "whost", "wlan", "wwan", "wpanel", "10.2.0.10/24", "10.2.0.1/24", "192.0.2.2/24"},
}

// isFacing says whether an example is one of two pairs that face each other.
func isFacing(example string) bool {
	_, err := os.Stat(filepath.Join(example, facingPairs[0].Nodes[0]+".conf"))
	return err == nil
}

func (p facingPair) shared() []netip.Addr {
	return []netip.Addr{addrOf(p.SharedLAN), addrOf(p.SharedWAN)}
}

// lan is the network behind the pair.
func (p facingPair) lan() netip.Prefix { return netip.MustParsePrefix(p.HostAddr).Masked() }

func (p facingPair) other(node string) string {
	if node == p.Nodes[0] {
		return p.Nodes[1]
	}
	return p.Nodes[0]
}

// cables are those of a pair; nodes are its namespaces, gateways and host first.
func (p facingPair) cables() (nodes []string, all []cable) {
	all = append(all, cable{a: p.Host, aIf: "lan0", b: p.LAN, bIf: p.Host, addrs: []string{p.HostAddr}})
	for _, n := range p.Nodes {
		all = append(all, cable{a: n, aIf: "wan0", b: p.WAN, bIf: n}, cable{a: n, aIf: "lan0", b: p.LAN, bIf: n})
		for _, hb := range HBLinks {
			all = append(all, cable{a: n, aIf: hb, b: p.Panel, bIf: n + hb})
		}
	}
	return append(append(nodes, p.Nodes...), p.Host, p.LAN, p.WAN, p.Panel), all
}

// BuildFacing makes the network of two pairs that face each other, as BuildPair does.
func BuildFacing(id string) (*Topology, error) {
	var nodes []string
	for _, p := range facingPairs {
		n, _ := p.cables()
		nodes = append(nodes, n...)
	}
	return newTopology(id, nodes, (*Topology).buildFacing)
}

func (t *Topology) buildFacing() error {
	for _, p := range facingPairs {
		nodes, cables := p.cables()
		for i, n := range nodes {
			if err := t.addNode(n, i < len(p.Nodes), i > len(p.Nodes)); err != nil {
				return err
			}
		}
		for _, c := range cables {
			if err := t.lay(c); err != nil {
				return err
			}
		}
		t.cables = append(t.cables, cables...)
	}
	if err := t.lay(cable{a: facingPairs[0].WAN, aIf: farPort, b: facingPairs[1].WAN, bIf: farPort}); err != nil {
		return err
	}
	for _, p := range facingPairs {
		hb := map[string][]string{}
		for _, n := range p.Nodes {
			for _, l := range HBLinks {
				hb[l] = append(hb[l], n+l)
			}
		}
		err := errors.Join(t.bridge(p.WAN, "br0", append([]string{farPort}, p.Nodes...)), t.bridge(p.LAN, "br0", append([]string{p.Host}, p.Nodes...)),
			t.bridge(p.Panel, "brhb0", hb["hb0"]), t.bridge(p.Panel, "brhb1", hb["hb1"]), t.route(p.Host, "0.0.0.0/0", p.SharedLAN))
		if err != nil {
			return err
		}
	}
	return nil
}
