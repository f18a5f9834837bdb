package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/xfrm"
)

// VCluster is how a virtual cluster of a pair ranks its gateways.
type VCluster struct {
	Priority [2]int
	Override bool
}

// FarPair is what the second of two pairs that face each other has for itself.
type FarPair struct {
	Priority [2]int
	Override bool
}

// What happens to virtual clusters, or between pairs that face each other, only.
const (
	Prefer     Verb = "prefer"      // a virtual cluster's priorities change, to gateway Links; override with Count
	KillBoth   Verb = "kill-both"   // SIGKILL of the owners of both pairs within For
	LoseSync   Verb = "lose-sync"   // half of all messages that synchronise message IDs are lost, for For
	ReplaySync Verb = "replay-sync" // each of those that were seen again, to both ends
)

// The addresses of virtual clusters: 192.0.2.1, 192.0.2.2, …
func scopeAddr(s xfrm.Scope) netip.Addr {
	if s == onlyScope {
		return clusterAddr
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(s)})
}

// wan is the outer interface of a pair's i-th realm.
func wan(i int) string { return fmt.Sprintf("wan%d", i) }

// farName is how the pair that is faced calls a tunnel.
func farName(i int) string { return fmt.Sprintf("gw%d", i+1) }

// realmOf is the index of the realm that a tunnel is in.
func (s *Setup) realmOf(i int) int { return i % max(1, len(s.VClusters)) }

func (s *Setup) addrOf(i int) netip.Addr {
	if len(s.VClusters) == 0 {
		return clusterAddr
	}
	return scopeAddr(xfrm.Scope(1 + s.realmOf(i)))
}

// vclusters writes how gateway g ranks in each virtual cluster.
func (s *Setup) vclusters(b *strings.Builder, g int) {
	s.beginHA(b)
	b.WriteString("set vcluster-status enable\nconfig vcluster\n")
	for i, v := range s.VClusters {
		fmt.Fprintf(b, "edit %d\nset priority %d\nset override %s\nset monitor \"%s\"\nset vdom \"v%d\"\nnext\n", i+1, v.Priority[g], onOff(v.Override), wan(i), i+1)
	}
	b.WriteString("end\nend\nconfig system interface\n")
	for i := range s.VClusters {
		fmt.Fprintf(b, "edit \"%s\"\nset vdom \"v%d\"\nset ip %s/32\nnext\n", wan(i), i+1, scopeAddr(xfrm.Scope(i+1)))
	}
	b.WriteString("end\n")
}

// gatewayText is the configuration of gateway g of a pair.
func (w *world) gatewayText(p *pair, g int) string {
	if p.index > 0 {
		return p.setup.facingConfig(g, p.passive)
	}
	return p.setup.gatewayConfig(g, p.passive)
}

// facingConfig is the configuration of gateway g of the pair that is faced. It has the
// addresses that clients would have, all of them shared.
func (s *Setup) facingConfig(g int, passive bool) string {
	var b strings.Builder
	s.onePair(&b, g)
	for i, c := range s.Clients {
		fmt.Fprintf(&b, "config vpn ipsec phase1-interface\nedit \"%s\"\nset interface \"%s\"\nset ike-version 2\nset local-gw %s\nset remote-gw %s\nset localid \"client%d\"\nset localid-type fqdn\nset peertype any\nset auto-negotiate %s\nset passive-mode %s\n",
			farName(i), wan(0), clientAddr(i), clusterAddr, i+1, onOff(c.Begins != "gateway" && !passive), onOff(passive))
		c.phase1(&b, c.IKELife, c.DPD)
		for n := range c.Networks {
			fmt.Fprintf(&b, "config vpn ipsec phase2-interface\nedit \"%s-%d\"\nset phase1name \"%s\"\nset src-subnet 10.%d.%d.0/24\nset dst-subnet 10.200.%d.0/24\n", farName(i), n, farName(i), 1+i, n, n)
			c.phase2(&b, c.ChildLife, c.Begins != "gateway", passive)
		}
	}
	return b.String()
}

// ForVClusterSeed is the schedule of a seed of a pair with virtual clusters.
func ForVClusterSeed(seed, realEvery uint64) *Schedule {
	r := stream(seed, "virtual clusters")
	s := &Schedule{Seed: seed, Real: realEvery > 0 && seed%realEvery == 0, Setup: setup(r)}
	n := pick(r, 2, 2, 2, 3, 4)
	for range n {
		v := VCluster{Priority: pick(r, [2]int{200, 100}, [2]int{100, 200}, [2]int{100, 100}), Override: chance(r, 0.6)}
		s.Setup.VClusters = append(s.Setup.VClusters, v)
	}
	for len(s.Setup.Clients) < n {
		s.Setup.Clients = append(s.Setup.Clients, client(r))
	}
	s.scopeTimes(r)
	at := 25 * time.Second
	for range 2 + r.IntN(7) { // moves, most of them in quiet
		s.Actions = append(s.Actions, s.move(r, at))
		at += pick(r, between(r, time.Second, 10*time.Second), between(r, 15*time.Second, 40*time.Second))
	}
	s.fill(r, at, aims, func(a *Action) { a.VCluster = r.IntN(n) })
	return s
}

// ForFacingSeed is the schedule of a seed of two pairs that face each other.
func ForFacingSeed(seed, realEvery uint64) *Schedule {
	r := stream(seed, "facing")
	s := &Schedule{Seed: seed, Real: realEvery > 0 && seed%realEvery == 0, Setup: setup(r)}
	s.Setup.Faces = &FarPair{Priority: [2]int{200, pick(r, 100, 200)}, Override: chance(r, 0.2)}
	s.Setup.Clients = s.Setup.Clients[:min(2, len(s.Setup.Clients))]
	for i := range s.Setup.Clients {
		c := &s.Setup.Clients[i]
		if c.Dialup {
			c.Dialup, c.NAT, c.Begins = false, false, pick(r, "client", "gateway", "both")
		}
	}
	s.scopeTimes(r)
	at := 25 * time.Second
	for range 1 + r.IntN(3) {
		s.duel(r, at)
		at += between(r, 10*time.Second, 60*time.Second)
	}
	s.fill(r, at, aims, func(a *Action) {
		if a.Verb == CutClient {
			a.Verb, a.Node = CutWAN, "owner"
		}
		if a.Node == "client1" {
			a.Node = "far-owner"
		}
		if chance(r, 0.5) {
			switch a.Node {
			case "owner", "standby":
				a.Node = "far-" + a.Node
			case "gw1", "gw2":
				a.Node = "far" + a.Node[2:]
			}
		}
	})
	return s
}

// scopeTimes makes rekeys frequent: these runs are shorter than those of one pair.
func (s *Schedule) scopeTimes(r *rand.Rand) {
	if chance(r, 0.7) {
		s.Setup.IKELife = between(r, 120*time.Second, 240*time.Second).Round(time.Second)
	}
	for len(s.Setup.Drift) < 4+len(s.Setup.Clients) {
		s.Setup.Drift = append(s.Setup.Drift, r.Int64N(401)-200)
	}
	for i := range s.Setup.Clients {
		c := &s.Setup.Clients[i]
		for _, life := range []*time.Duration{&c.ChildLife, &c.GatewayToo, &c.IKELife} {
			if chance(r, 0.6) {
				*life = between(r, 120*time.Second, 240*time.Second).Round(time.Second)
			}
		}
	}
}

// move is one of a virtual cluster.
func (s *Schedule) move(r *rand.Rand, at time.Duration) Action {
	a := Action{At: at, VCluster: r.IntN(len(s.Setup.VClusters)), Node: "owner", For: between(r, time.Second, 12*time.Second)}
	switch a.Verb = pick(r, Prefer, Prefer, Prefer, Handover, Monitor); a.Verb {
	case Prefer:
		a.Links, a.Count = 1+r.IntN(2), pick(r, 1, 1, 1, 0)
	}
	return a
}

// duel has both pairs fail over at about the same time.
func (s *Schedule) duel(r *rand.Rand, at time.Duration) {
	if chance(r, 0.5) { // an exchange is under way
		s.Actions = append(s.Actions, Action{At: at - between(r, 0, 60*time.Millisecond), Verb: pick(r, RekeyChild, RekeyIKE), Node: pick(r, "owner", "far-owner"), Flow: r.IntN(8)})
	}
	if chance(r, 0.3) {
		s.Actions = append(s.Actions, Action{At: max(0, at-time.Second), Verb: LoseSync, For: between(r, 2*time.Second, 20*time.Second)})
	}
	if chance(r, 0.5) { // the last that the owner does stays with it
		d := between(r, 300*time.Millisecond, 4*time.Second)
		for _, who := range pick(r, []string{"owner"}, []string{"far-owner"}, []string{"owner", "far-owner"}) {
			s.Actions = append(s.Actions, Action{At: max(0, at-d), Verb: CutHB, Node: who, Links: 3, For: d + between(r, time.Second, 3*time.Second)},
				Action{At: at - d/2, Verb: pick(r, RekeyChild, RekeyIKE), Node: who, Flow: r.IntN(8)})
		}
	}
	s.Actions = append(s.Actions, Action{At: at, Verb: KillBoth, For: 20 * time.Millisecond})
	if chance(r, 0.7) {
		s.Actions = append(s.Actions, Action{At: at + between(r, time.Second, 8*time.Second), Verb: ReplaySync})
	}
}

// fill adds some of what happens to pairs, with names changed by rename, and sets the length.
func (s *Schedule) fill(r *rand.Rand, at time.Duration, aims []Cell, rename func(*Action)) {
	n := pick(r, 0, 1, 1, 2, 3)
	begin := len(s.Actions)
	for i := range n {
		a := fault(r, s.Seed, i, aims)
		a.At = between(r, 20*time.Second, at+40*time.Second)
		a.For = min(a.For, 20*time.Second)
		rename(&a)
		s.Actions = append(s.Actions, a)
	}
	for range 4 + r.IntN(8) {
		a := everyday(r, len(s.Setup.Clients))
		a.At = between(r, 20*time.Second, at+30*time.Second)
		if chance(r, 0.6) {
			a.At = max(20*time.Second, s.Actions[r.IntN(begin)].At+between(r, -500*time.Millisecond, 2*time.Second))
		}
		if s.Setup.Faces != nil && strings.HasPrefix(a.Node, "client") {
			a.Node = "far-owner"
		}
		if a.Node == "owner" {
			rename(&a)
		}
		s.Actions = append(s.Actions, a)
	}
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return int(a.At - b.At) })
	s.Length = max(at, s.Actions[len(s.Actions)-1].At) + between(r, 10*time.Second, 90*time.Second)
}
