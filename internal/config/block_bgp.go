package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// BGP is `config router bgp`: to whom this gateway announces that it may have traffic.
type BGP struct {
	AS        uint64     // 1–4294967295; 0: no BGP
	RouterID  netip.Addr // IPv4
	Keepalive time.Duration
	HoldTime  time.Duration // 0, or 3 s and more
	Neighbors []BGPNeighbor
	Networks  []BGPNetwork // IPv4, then IPv6
}

// Announced are the prefixes that routers are told of: those of `config network`, and in
// a farm the addresses that its members share as local-gw of what they synchronise.
func (c *Config) Announced() (all []netip.Prefix) {
	for _, n := range c.BGP.Networks {
		all = append(all, n.Prefix.Masked())
	}
	for i := range c.Phase1 {
		p := &c.Phase1[i]
		if !c.Standalone.Farm() || !p.FGSPSync || !p.LocalGW.IsValid() {
			continue
		}
		if host := netip.PrefixFrom(p.LocalGW, p.LocalGW.BitLen()); !slices.Contains(all, host) {
			all = append(all, host)
		}
	}
	return all
}

// Enabled says whether there is a speaker at all.
func (b *BGP) Enabled() bool { return b.AS != 0 }

// BGPNeighbor is one router.
type BGPNeighbor struct {
	Addr            netip.Addr
	RemoteAS        uint64
	EBGPMultihop    bool
	EBGPMultihopTTL int // 1–255; meant with EBGPMultihop
	BFD             bool
}

// BFD is what `config system settings` says of all BFD sessions.
type BFD struct {
	MinTx      time.Duration // desired, 1 ms–100 s
	MinRx      time.Duration // required, likewise
	DetectMult int           // 1–50
}

// BGPNetwork is one prefix that is announced while the gateway is healthy.
type BGPNetwork struct {
	ID     int
	Prefix netip.Prefix
}

// bgpDraft is `config router bgp` as it is written.
type bgpDraft struct {
	BGP
	neighbors *table[BGPNeighbor]
	networks  *table[BGPNetwork]
	networks6 *table[BGPNetwork]
}

func draftBGP(b BGP) bgpDraft {
	d := bgpDraft{BGP: b}
	var v4, v6 []BGPNetwork
	for _, n := range b.Networks {
		if n.Prefix.Addr().Is4() {
			v4 = append(v4, n)
		} else {
			v6 = append(v6, n)
		}
	}
	id := func(n *BGPNetwork) string { return strconv.Itoa(n.ID) }
	d.neighbors = newTable(bgpNeighborSpec, "").fill(b.Neighbors, func(n *BGPNeighbor) string { return n.Addr.String() })
	d.networks = newTable(bgpNetworkSpec, "").fill(v4, id)
	d.networks6 = newTable(bgpNetwork6Spec, "").fill(v6, id)
	return d
}

// within opens a nested table of `config router bgp`, the same one each time.
func within[T any](at **table[T], def *spec[T]) scope {
	if *at == nil {
		*at = newTable(def, "router bgp")
	}
	return *at
}

var bgpSpec = &spec[bgpDraft]{
	path: "router bgp",
	help: "Announces prefixes to routers while this gateway is synchronised, and withdraws them before it ends: those of `config network` and, in a farm, the `local-gw` that its members share. A neighbor is told the prefixes of its own address family. Neighbors are connected to, never listened for; what they announce is not taken.",
	rows: []row[bgpDraft]{
		{key: "as", value: number{0, 4294967295, 0}, def: "0", at: func(b *bgpDraft) any { return &b.AS }, help: "our autonomous system; 0: no BGP"},
		{key: "router-id", value: address{4}, at: func(b *bgpDraft) any { return &b.RouterID }, local: true, help: "different on each gateway; required with as"},
		{key: "keepalive-timer", value: number{1, 65535, time.Second}, def: "60", at: func(b *bgpDraft) any { return &b.Keepalive }, help: "between keepalives"},
		{key: "holdtime-timer", value: number{3, 65535, time.Second}, def: "180", at: func(b *bgpDraft) any { return &b.HoldTime }, help: "silence that ends a session; with bfd it is not waited for"},
	},
	ignored: append(plain(`ibgp-multipath ebgp-multipath additional-path additional-path-select additional-path6 additional-path-select6
		always-compare-med bestpath-* client-to-client-reflection cluster-id confederation-identifier confederation-peers dampening* default-local-preference
		deterministic-med distance-* fast-external-failover graceful-end-on-timer ignore-optional-capability log-neighbour-changes
		multipath-recursive-distance network-import-check recursive-next-hop scan-time synchronization tag-resolve-mode enforce-first-as
		graceful-update-delay graceful-stalepath-time graceful-restart-time cross-family-conditional-adv recursive-inherit-priority`),
		ignored{key: "graceful-restart", only: []string{"disable"}, why: "a dead gateway's routes must go at once"}),
	children: []child[bgpDraft]{
		{path: "neighbor", open: func(b *bgpDraft, _ *source) scope { return within(&b.neighbors, bgpNeighborSpec) },
			show: func(b *bgpDraft, p *printer) { p.optional(b.neighbors) }},
		{path: "network", open: func(b *bgpDraft, _ *source) scope { return within(&b.networks, bgpNetworkSpec) },
			show: func(b *bgpDraft, p *printer) { p.optional(b.networks) }},
		{path: "network6", open: func(b *bgpDraft, _ *source) scope { return within(&b.networks6, bgpNetwork6Spec) },
			show: func(b *bgpDraft, p *printer) { p.optional(b.networks6) }},
		{path: "redistribute"}, {path: "redistribute6"}, {path: "admin-distance"},
	},
}

var bgpNeighborSpec = &spec[BGPNeighbor]{
	path:  "neighbor",
	help:  "Within `config router bgp`: one router.",
	label: "neighbor",
	entry: "ADDRESS (IPv4 or IPv6)",
	make: func(name string, _ int) (BGPNeighbor, string) {
		a, err := parseAddr(name)
		if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return BGPNeighbor{}, fmt.Sprintf("neighbor (%s) must be the address of a router", echo(name))
		}
		return BGPNeighbor{Addr: a}, ""
	},
	rows: []row[BGPNeighbor]{
		{key: "remote-as", value: number{1, 4294967295, 0}, at: func(n *BGPNeighbor) any { return &n.RemoteAS }, help: "its autonomous system; required"},
		{key: "ebgp-enforce-multihop", value: toggle{}, def: "disable", at: func(n *BGPNeighbor) any { return &n.EBGPMultihop }, help: "it need not be on the link"},
		{key: "ebgp-multihop-ttl", value: number{1, 255, 0}, def: "255", at: func(n *BGPNeighbor) any { return &n.EBGPMultihopTTL }, help: "of packets to it, with ebgp-enforce-multihop"},
		{key: "bfd", value: toggle{}, def: "disable", at: func(n *BGPNeighbor) any { return &n.BFD }, help: "single-hop BFD with it; its loss ends the session"},
	},
	ignored: append(plain(`description advertisement-interval activate activate6 soft-reconfiguration soft-reconfiguration6 next-hop-self next-hop-self6
		send-community send-community6 capability-* weight link-down-failover allowas-in allowas-in-enable allowas-in6 allowas-in-enable6
		attribute-unchanged attribute-unchanged6 maximum-prefix* stale-route connect-timer keep-alive-timer holdtime-timer additional-path additional-path6
		adv-additional-path adv-additional-path6 route-map-in route-map-in6 prefix-list-in prefix-list-in6 distribute-list-in distribute-list-in6
		filter-list-in filter-list-in6 strict-capability-match dont-capability-negotiate as-override as-override6 remove-private-as remove-private-as6`),
		ignored{key: "shutdown", only: []string{"disable"}}, ignored{key: "passive", only: []string{"disable"}},
		ignored{key: "password", only: []string{}, why: "TCP MD5 is not spoken here"},
		ignored{key: "local-as", only: []string{"0"}},
		ignored{key: "update-source", only: []string{}, why: "the address towards the neighbor is taken"},
		ignored{key: "interface", only: []string{}, why: "write the neighbor's address"}),
	children: []child[BGPNeighbor]{{path: "conditional-advertise"}, {path: "conditional-advertise6"}},
}

// settings is what we take of `config system settings`.
type settings struct {
	BFD
	tcpPort          int
	QuickCrashDetect bool
}

var settingsSpec = &spec[settings]{
	path: "system settings",
	help: "The TCP port of IKE, quick crash detection, and the times of BFD, which `config router bgp` turns on for a neighbor. Nothing else in this block has an effect.",
	rows: []row[settings]{
		{key: "ike-tcp-port", value: number{1, 65535, 0}, def: "4500", at: func(s *settings) any { return &s.tcpPort }, help: "where IKE and ESP in TCP are taken (RFC 9329), and where peers are asked; open only while a phase 1 has transport auto or tcp"},
		{key: "bfd-desired-min-tx", value: number{1, 100000, time.Millisecond}, def: "250", at: func(s *settings) any { return &s.MinTx }, help: "between our BFD packets"},
		{key: "bfd-required-min-rx", value: number{1, 100000, time.Millisecond}, def: "250", at: func(s *settings) any { return &s.MinRx }, help: "between a neighbor's BFD packets, at least"},
		{key: "bfd-detect-mult", value: number{1, 50, 0}, def: "3", at: func(s *settings) any { return &s.DetectMult }, help: "BFD packets missed in a row that make a loss"},
		{key: "ike-quick-crash-detect", value: toggle{}, def: "disable", at: func(s *settings) any { return &s.QuickCrashDetect }, help: "peers and this gateway tell each other at once that they have lost an IKE SA, by tokens (RFC 6290)"},
	},
	ignored: plain("*"),
}

func networkSpec(path, key string, family int) *spec[BGPNetwork] {
	return &spec[BGPNetwork]{
		path:  path,
		help:  fmt.Sprintf("Within `config router bgp`: one IPv%d prefix that is announced; it need not be in the routing table.", family),
		label: path,
		entry: "ID (0–4294967295)",
		make:  numbered(path, 0, 4294967295, func(id int) BGPNetwork { return BGPNetwork{ID: id} }),
		rows: []row[BGPNetwork]{
			{key: key, value: network{family: family, none: true}, at: func(n *BGPNetwork) any { return &n.Prefix }, help: "the prefix; required"},
		},
		ignored: append(plain("backdoor route-map"), ignored{key: "network-import-check", only: []string{"global", "disable"}}),
	}
}

var (
	bgpNetworkSpec  = networkSpec("network", "prefix", 4)
	bgpNetwork6Spec = networkSpec("network6", "prefix6", 6)
)

func (ld *loader) buildBGP() BGP {
	d, s := ld.bgp.val, ld.bgp.src
	b := d.BGP
	count := 0
	if d.neighbors != nil {
		for _, o := range d.neighbors.entries {
			n, src := *o.val, o.src
			count++
			if n.RemoteAS == 0 && !src.bad["remote-as"] {
				ld.fault(src.line, src.object, "remote-as", "remote-as is missing: a neighbor needs its autonomous system")
			}
			if n.EBGPMultihop && n.BFD {
				ld.fault(src.at("bfd"), src.object, "bfd", "bfd (enable) excludes `set ebgp-enforce-multihop enable`: BFD is spoken with neighbors on the link only")
			}
			if n.EBGPMultihop && n.RemoteAS == b.AS && b.AS != 0 {
				ld.fault(src.at("ebgp-enforce-multihop"), src.object, "ebgp-enforce-multihop", fmt.Sprintf("ebgp-enforce-multihop (enable) is for neighbors of another autonomous system than ours (%d)", b.AS))
			}
			b.Neighbors = append(b.Neighbors, n)
		}
	}
	seen := map[netip.Prefix]string{}
	for _, t := range []struct {
		table *table[BGPNetwork]
		key   string
	}{{d.networks, "prefix"}, {d.networks6, "prefix6"}} {
		if t.table == nil {
			continue
		}
		for _, o := range t.table.entries {
			n, src := *o.val, o.src
			count++
			switch was := seen[n.Prefix]; {
			case !n.Prefix.IsValid():
				if !src.bad[t.key] {
					ld.fault(src.line, src.object, t.key, t.key+" is missing: a network needs the prefix that is announced")
				}
				continue
			case was != "":
				ld.fault(src.at(t.key), src.object, t.key, fmt.Sprintf("%s (%s) is announced by %s already", t.key, n.Prefix, was))
			}
			seen[n.Prefix] = t.table.def.label + " " + src.name
			b.Networks = append(b.Networks, n)
		}
	}
	fault := func(key, msg string) {
		if !s.bad[key] {
			ld.fault(s.at("as"), s.object, key, msg)
		}
	}
	switch {
	case b.AS == 0 && count > 0:
		fault("as", "as is missing: neighbors and networks need our autonomous system")
	case b.AS != 0 && !b.RouterID.IsValid():
		fault("router-id", "router-id is missing: `set router-id` with an address that no other gateway has")
	}
	if b.Keepalive >= b.HoldTime && b.HoldTime != 0 && !s.bad["keepalive-timer"] && !s.bad["holdtime-timer"] {
		ld.fault(s.at("keepalive-timer", "holdtime-timer"), s.object, "keepalive-timer",
			fmt.Sprintf("keepalive-timer (%d) must be less than holdtime-timer (%d)", b.Keepalive/time.Second, b.HoldTime/time.Second))
	}
	return b
}
