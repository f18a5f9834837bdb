package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tandem/internal/ipsec"
)

// addressDraft is an address as it is written.
type addressDraft struct {
	name       string
	v6         bool
	kind       string
	subnet     netip.Prefix
	start, end netip.Addr
}

func draftAddress(a Address) addressDraft {
	t := a.Ranges[0]
	d := addressDraft{name: a.Name, v6: !t.Start.Is4(), kind: "iprange", start: t.Start, end: t.End}
	d.subnet = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if d.v6 {
		d.subnet = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if p, ok := prefixOf(t); ok {
		d.kind, d.subnet, d.start, d.end = "ipmask", p, netip.Addr{}, netip.Addr{}
		if d.v6 {
			d.kind = "ipprefix"
		}
	}
	return d
}

const addressIgnored = `uuid color comment associated-interface allow-routing visibility fabric-object cache-ttl country obj-id sdn-addr-type
	node-ip-only passive-fqdn-learning clearpass-spt sub-type macaddr obj-tag route-tag global-object`

var addressTypes = map[string]string{
	"fqdn": "names are not resolved here", "geography": "countries are not known here", "wildcard": "masks with gaps make no selector",
	"dynamic": "it has no addresses of its own", "interface-subnet": "write the subnet itself", "mac": "it is no IP address",
	"wildcard-fqdn": "names are not resolved here", "route-tag": "routes carry no tags here",
}

var addressSpec = &spec[addressDraft]{
	path:  "firewall address",
	help:  "A named IPv4 network or range. \"all\" and \"none\" exist without being written.",
	entry: "NAME (up to 79 bytes)",
	make: func(name string, _ int) (addressDraft, string) {
		return addressDraft{name: name}, nameFault("an address", name, 79)
	},
	rows: []row[addressDraft]{
		{key: "type", value: enum{words: []string{"ipmask", "iprange"}, refused: addressTypes}, def: "ipmask", at: func(a *addressDraft) any { return &a.kind }, help: "network or range"},
		{key: "subnet", value: network{family: 4}, def: "0.0.0.0 0.0.0.0", at: func(a *addressDraft) any { return &a.subnet }, hide: func(a *addressDraft) bool { return a.kind != "ipmask" }, help: "the network"},
		{key: "start-ip", value: address{4}, at: func(a *addressDraft) any { return &a.start }, hide: func(a *addressDraft) bool { return a.kind != "iprange" }, help: "first address of type iprange"},
		{key: "end-ip", value: address{4}, at: func(a *addressDraft) any { return &a.end }, hide: func(a *addressDraft) bool { return a.kind != "iprange" }, help: "last address of type iprange"},
	},
	ignored:  plain(addressIgnored),
	children: []child[addressDraft]{{path: "tagging"}, {path: "list"}},
}

var address6Spec = &spec[addressDraft]{
	path:  "firewall address6",
	help:  "A named IPv6 network or range.",
	entry: "NAME (up to 79 bytes)",
	make: func(name string, _ int) (addressDraft, string) {
		return addressDraft{name: name, v6: true}, nameFault("an address", name, 79)
	},
	rows: []row[addressDraft]{
		{key: "type", value: enum{words: []string{"ipprefix", "iprange"}, refused: addressTypes}, def: "ipprefix", at: func(a *addressDraft) any { return &a.kind }, help: "network or range"},
		{key: "ip6", value: network{family: 6}, def: "::/0", at: func(a *addressDraft) any { return &a.subnet }, hide: func(a *addressDraft) bool { return a.kind != "ipprefix" }, help: "the network"},
		{key: "start-ip", value: address{6}, at: func(a *addressDraft) any { return &a.start }, hide: func(a *addressDraft) bool { return a.kind != "iprange" }, help: "first address of type iprange"},
		{key: "end-ip", value: address{6}, at: func(a *addressDraft) any { return &a.end }, hide: func(a *addressDraft) bool { return a.kind != "iprange" }, help: "last address of type iprange"},
	},
	ignored:  plain(addressIgnored + " template host-type host sdn tenant epg-name"),
	children: []child[addressDraft]{{path: "tagging"}, {path: "list"}, {path: "subnet-segment"}},
}

func groupSpec(path, help string, v6 bool) *spec[AddrGroup] {
	return &spec[AddrGroup]{
		path:  path,
		help:  help,
		entry: "NAME (up to 79 bytes)",
		make: func(name string, _ int) (AddrGroup, string) {
			return AddrGroup{Name: name, V6: v6}, nameFault("an address group", name, 79)
		},
		rows: []row[AddrGroup]{
			{key: "member", value: names{max: 79, what: "names of addresses and groups"}, at: func(g *AddrGroup) any { return &g.Members }, help: "what it consists of; required"},
		},
		ignored: append(plain("uuid color comment allow-routing visibility fabric-object type category global-object"),
			ignored{key: "exclude", only: []string{"disable"}, why: "a group holds what it names"},
			ignored{key: "exclude-member"}),
		children: []child[AddrGroup]{{path: "tagging"}},
	}
}

var (
	addrgrpSpec  = groupSpec("firewall addrgrp", "Several IPv4 addresses under one name.", false)
	addrgrp6Spec = groupSpec("firewall addrgrp6", "Several IPv6 addresses under one name.", true)
)

var policySpec = &spec[Policy]{
	path:  "firewall policy",
	help:  "What may pass between interfaces, in the order of the entries; everything else is dropped once this block exists, and a tunnel that no policy names is not negotiated.",
	label: "policy",
	entry: "ID (1–4294967294)",
	make:  numbered("policy", 1, 4294967294, func(id int) Policy { return Policy{ID: id} }),
	rows: []row[Policy]{
		{key: "status", value: toggle{}, def: "enable", at: func(p *Policy) any { return &p.Status }, help: "a disabled policy does not exist"},
		{key: "name", value: text{max: 35}, at: func(p *Policy) any { return &p.Name }, help: "for people; unique"},
		{key: "srcintf", value: names{max: 35, what: "interface names, or any"}, at: func(p *Policy) any { return &p.SrcIntf }, help: "where packets come in; required"},
		{key: "dstintf", value: names{max: 35, what: "interface names, or any"}, at: func(p *Policy) any { return &p.DstIntf }, help: "where they go out; required"},
		{key: "action", value: policyAction{}, def: "deny", at: func(p *Policy) any { return &p.Accept }, help: "what happens to them"},
		{key: "service", value: only("ALL", "policies filter by interface and address"), at: nowhere[Policy], help: "ports and protocols are not told apart"},
		{key: "schedule", value: only("always", "policies hold at all times"), at: nowhere[Policy], help: "policies hold at all times"},
		{key: "nat", value: only("disable", "addresses are not translated here"), at: nowhere[Policy], help: "addresses are not translated"},
		{key: "srcaddr", value: names{max: 79, what: "names of addresses and groups"}, at: func(p *Policy) any { return &p.SrcAddr }, help: "IPv4 sources"},
		{key: "dstaddr", value: names{max: 79, what: "names of addresses and groups"}, at: func(p *Policy) any { return &p.DstAddr }, help: "IPv4 destinations"},
		{key: "srcaddr6", value: names{max: 79, what: "names of IPv6 addresses and groups"}, at: func(p *Policy) any { return &p.SrcAddr6 }, help: "IPv6 sources"},
		{key: "dstaddr6", value: names{max: 79, what: "names of IPv6 addresses and groups"}, at: func(p *Policy) any { return &p.DstAddr6 }, help: "IPv6 destinations"},
	},
	ignored: append(plain(`uuid comments label global-label logtraffic logtraffic-start capture-packet auto-asic-offload np-acceleration anti-replay
		tcp-session-without-syn geoip-* session-ttl vlan-* vpntunnel *-profile profile-* *-sensor application-list traffic-shaper* per-ip-shaper
		inspection-mode http-policy-redirect ssh-policy-redirect wanopt* webcache* wccp fixedport port-preserve poolname* permit-* schedule-timeout
		send-deny-packet block-notification replacemsg-override-group custom-log-fields email-collect match-vip match-vip-only
		diffserv* dsri radius-mac-auth-bypass delay-tcp-npu-session firewall-session-dirty policy-offload passive-wan-health-measurement
		dynamic-shaping rtp-* learning-mode scan-botnet-connections ips-voip-filter cgn-* log-* reputation-direction* sgt pcp-* policy-expiry-date*
		ssl-ssh-profile av-profile webfilter-profile dnsfilter-profile emailfilter-profile dlp-profile dlp-sensor file-filter-profile ips-sensor
		voip-profile waf-profile icap-profile cifs-profile videofilter-profile sctp-filter-profile ssh-filter-profile casb-profile
		diameter-filter-profile virtual-patch-profile spamfilter-profile webproxy-profile natip natinbound natoutbound inbound outbound
		tcp-mss-sender tcp-mss-receiver disclaimer redirect-url auth-* ntlm* fsso* identity-based-route decrypted-traffic-mirror tos-mask
		ztna-tags-match-logic timeout-send-rst vlan-filter logtraffic-app fec`),
		ignored{key: "nat64", only: []string{"disable"}}, ignored{key: "nat46", only: []string{"disable"}},
		ignored{key: "ippool", only: []string{"disable"}},
		ignored{key: "utm-status", only: []string{"disable"}, why: "contents are not inspected here"},
		ignored{key: "internet-service", only: []string{"disable"}}, ignored{key: "internet-service-src", only: []string{"disable"}},
		ignored{key: "internet-service6", only: []string{"disable"}}, ignored{key: "internet-service6-src", only: []string{"disable"}},
		ignored{key: "srcaddr-negate", only: []string{"disable"}}, ignored{key: "dstaddr-negate", only: []string{"disable"}},
		ignored{key: "srcaddr6-negate", only: []string{"disable"}}, ignored{key: "dstaddr6-negate", only: []string{"disable"}},
		ignored{key: "service-negate", only: []string{"disable"}}, ignored{key: "tos-negate", only: []string{"disable"}},
		ignored{key: "tos", only: []string{"0x00"}},
		ignored{key: "groups", only: []string{}, why: "users are not known here"}, ignored{key: "users", only: []string{}, why: "users are not known here"},
		ignored{key: "ztna-status", only: []string{"disable"}}, ignored{key: "policy-expiry", only: []string{"disable"}},
		ignored{key: "reputation-minimum", only: []string{"0"}}, ignored{key: "reputation-minimum6", only: []string{"0"}},
	),
}

// policyAction is accept or deny, in a bool.
type policyAction struct{}

func (policyAction) allowed() string { return "accept or deny" }
func (policyAction) parse(words []word, into any) string {
	e := enum{words: []string{"accept", "deny"}, refused: map[string]string{"ipsec": "policy-based tunnels do not exist here; write accept and name the tunnel's interface"}}
	var s string
	if msg := e.parse(words, &s); msg != "" {
		return msg
	}
	*into.(*bool) = s == "accept"
	return ""
}
func (policyAction) format(from any) string {
	if *from.(*bool) {
		return "accept"
	}
	return "deny"
}

// buildAddresses settles addresses and groups; they resolve from then on.
func (ld *loader) buildAddresses(c *Config) {
	for _, t := range []*table[addressDraft]{ld.address, ld.address6} {
		for _, o := range t.entries {
			a := o.val
			r := ipsec.SelectorFromPrefix(a.subnet)
			if a.kind == "iprange" {
				switch {
				case !a.start.IsValid() || !a.end.IsValid():
					if !o.src.bad["start-ip"] && !o.src.bad["end-ip"] {
						ld.fault(o.src.line, o.src.object, "start-ip", "start-ip and end-ip are missing: type iprange needs both")
					}
				case a.end.Less(a.start):
					ld.fault(o.src.at("end-ip"), o.src.object, "end-ip", fmt.Sprintf("end-ip (%s) must not lie before start-ip (%s)", a.end, a.start))
				}
				r = addressRange(a.start, a.end)
			}
			if (a.name == "all" || a.name == "none") && (o.src.wrote("subnet") || o.src.wrote("ip6") || o.src.wrote("type")) && a.subnet.Bits() != 0 {
				if a.name == "all" || a.subnet.Bits() != a.subnet.Addr().BitLen() {
					ld.fault(o.src.line, o.src.object, "", "the name is reserved: it stands for "+map[string]string{"all": "every address", "none": "no address"}[a.name])
				}
			}
			c.Addresses = append(c.Addresses, Address{Name: a.name, Ranges: []ipsec.TrafficSelector{r}})
		}
	}
	for _, t := range []*table[AddrGroup]{ld.addrgrp, ld.addrgrp6} {
		for _, o := range t.entries {
			c.AddrGroups = append(c.AddrGroups, *o.val)
		}
	}
	ix := c.index()
	for _, t := range []*table[AddrGroup]{ld.addrgrp, ld.addrgrp6} {
		for _, o := range t.entries {
			g, s := o.val, o.src
			if ix.addr[nameKey{g.Name, g.V6}] != nil || g.Name == "all" || g.Name == "none" {
				ld.fault(s.line, s.object, "", "the name belongs to an address already: addresses and groups share their names")
			}
			if len(g.Members) == 0 && !s.bad["member"] {
				ld.fault(s.line, s.object, "member", "member is missing: a group needs at least one")
			}
			for _, m := range g.Members {
				k := nameKey{m, g.V6}
				if !builtin(m) && ix.addr[k] == nil && ix.group[k] == nil {
					ld.fault(s.at("member"), s.object, "member", fmt.Sprintf("member (%s) names no address or group%s", echo(m), ld.hint(m, c.addressNames(g.V6))))
				}
			}
		}
	}
	ld.checkGroupCycles(ix)
}

// checkGroupCycles reports every group from which a walk over members comes back to itself.
func (ld *loader) checkGroupCycles(ix *addressIndex) {
	const fresh, open, done = 0, 1, 2
	state := map[nameKey]int{}
	bad := map[nameKey]bool{}
	var walk func(k nameKey, depth int) bool
	walk = func(k nameKey, depth int) bool {
		g := ix.group[k]
		if g == nil || state[k] == done {
			return bad[k]
		}
		if state[k] == open || depth > maxGroupDepth {
			return true
		}
		state[k] = open
		for _, m := range g.Members {
			if walk(nameKey{m, k.v6}, depth+1) {
				bad[k] = true
			}
		}
		state[k] = done
		return bad[k]
	}
	for _, t := range []*table[AddrGroup]{ld.addrgrp, ld.addrgrp6} {
		for _, o := range t.entries {
			if walk(nameKey{o.val.Name, o.val.V6}, 0) {
				ld.fault(o.src.at("member"), o.src.object, "member", fmt.Sprintf("member leads back to a group that is being resolved, or more than %d groups deep", maxGroupDepth))
			}
		}
	}
}

func (ld *loader) buildPolicies(c *Config) (out []Policy) {
	var tunnels, known []string
	for _, o := range ld.phase1.entries {
		tunnels = append(tunnels, o.val.Name)
	}
	for _, o := range ld.interfaces.entries {
		known = append(known, o.val.Name)
	}
	named := map[string]int{}
	ix := c.index()
	for _, o := range ld.policy.entries {
		p, s := o.val, o.src
		out = append(out, *p)
		missing := func(key, what string) {
			if !s.bad[key] {
				ld.fault(s.at(key), s.object, key, key+" is missing: "+what)
			}
		}
		if len(p.SrcIntf) == 0 {
			missing("srcintf", "a policy needs the interface where packets come in, or any")
		}
		if len(p.DstIntf) == 0 {
			missing("dstintf", "a policy needs the interface where packets go out, or any")
		}
		if len(p.SrcAddr)+len(p.SrcAddr6) == 0 {
			missing("srcaddr", "a policy needs source addresses, or all")
		}
		if len(p.DstAddr)+len(p.DstAddr6) == 0 {
			missing("dstaddr", "a policy needs destination addresses, or all")
		}
		if len(p.SrcAddr) == 0 && len(p.DstAddr) > 0 && len(p.SrcAddr6) > 0 || len(p.SrcAddr6) == 0 && len(p.DstAddr6) > 0 && len(p.SrcAddr) > 0 {
			missing("srcaddr", "sources and destinations must be of the same families")
		}
		if p.Name != "" {
			if id := named[p.Name]; id != 0 {
				ld.fault(s.at("name"), s.object, "name", fmt.Sprintf("name (%s) belongs to policy %d already", echo(p.Name), id))
			}
			named[p.Name] = p.ID
		}
		for _, a := range []struct {
			key   string
			names []string
			v6    bool
		}{{"srcaddr", p.SrcAddr, false}, {"dstaddr", p.DstAddr, false}, {"srcaddr6", p.SrcAddr6, true}, {"dstaddr6", p.DstAddr6, true}} {
			for _, n := range a.names {
				k := nameKey{n, a.v6}
				if builtin(n) || ix.addr[k] != nil || ix.group[k] != nil {
					continue
				}
				hint := ld.hint(n, c.addressNames(a.v6))
				if p.Accept {
					ld.warn(s.at(a.key), s.object, a.key, fmt.Sprintf("%s (%s) names no address or group: it matches no packet%s", a.key, echo(n), hint))
				} else {
					ld.fault(s.at(a.key), s.object, a.key, fmt.Sprintf("%s (%s) names no address or group: a deny policy must not miss what it should stop%s", a.key, echo(n), hint))
				}
			}
		}
		for _, a := range []struct {
			key   string
			names []string
		}{{"srcintf", p.SrcIntf}, {"dstintf", p.DstIntf}} {
			for _, n := range a.names {
				if n == "any" || slices.Contains(tunnels, n) || slices.Contains(known, n) {
					continue
				}
				i := slices.IndexFunc(tunnels, func(t string) bool { return strings.EqualFold(t, n) })
				switch {
				case i >= 0:
					ld.warn(s.at(a.key), s.object, a.key, fmt.Sprintf("%s (%s) is no interface; did you mean %s?", a.key, echo(n), tunnels[i]))
				case len(known) > 0:
					ld.warn(s.at(a.key), s.object, a.key, fmt.Sprintf("%s (%s) is neither a phase 1 nor among those of `config system interface`%s", a.key, echo(n), ld.hint(n, slices.Concat(tunnels, known))))
				}
			}
		}
	}
	return out
}
