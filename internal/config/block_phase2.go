package config

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tandem/internal/ipsec"
)

var selectorTypes = []string{"subnet", "range", "ip", "name", "subnet6", "range6", "ip6", "name6"}

var phase2Spec = &spec[Phase2]{
	path:  "vpn ipsec phase2-interface",
	help:  "One Child SA of a phase 1: its suites, lifetimes and selectors.",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, line int) (Phase2, string) {
		return Phase2{Name: name, Line: line}, nameFault("a phase 2", name, 35)
	},
	rows: append(append([]row[Phase2]{
		{key: "phase1name", value: text{max: 15, what: "the name of a phase 1"}, at: func(p *Phase2) any { return &p.Phase1 }, help: "the phase 1 it belongs to; required"},
		{key: "proposal", value: proposals{2}, def: "aes128-sha1 aes256-sha1 aes128-sha256 aes256-sha256 aes128gcm aes256gcm chacha20poly1305", at: func(p *Phase2) any { return &p.Proposals }, help: "suites of the Child SA, best first"},
		{key: "pfs", value: toggle{}, def: "enable", at: func(p *Phase2) any { return &p.PFS }, help: "a key exchange of its own at every rekey (the first Child SA has none)"},
		{key: "dhgrp", value: groups{}, def: "14 5", at: func(p *Phase2) any { return &p.DHGroups }, hide: func(p *Phase2) bool { return !p.PFS }, help: "groups of pfs, best first"},
		{key: "esn", value: enum{words: []string{"phase1", "disable", "allow", "require"}, alias: map[string]string{"enable": "allow"}}, def: "phase1", at: func(p *Phase2) any { return &p.ESN }, help: "64-bit sequence numbers (RFC 4303): as phase 1 says, never, offered beside 32-bit ones, only; enable is allow"},
		{key: "replay", value: toggle{}, def: "enable", at: func(p *Phase2) any { return &p.Replay }, help: "anti-replay window"},
		{key: "auto-negotiate", value: toggle{}, def: "disable", at: func(p *Phase2) any { return &p.AutoNegotiate }, help: "begins without traffic, every five seconds until the SA stands; implies keepalive"},
		{key: "keepalive", value: toggle{}, def: "disable", at: func(p *Phase2) any { return &p.Keepalive }, help: "rekeys without traffic; otherwise an idle SA expires"},
		{key: "keylife-type", value: oneOf("seconds", "kbs", "both"), def: "seconds", at: func(p *Phase2) any { return &p.KeyLifeType }, help: "which lifetime counts"},
		{key: "keylifeseconds", value: number{120, 172800, time.Second}, def: "43200", at: func(p *Phase2) any { return &p.KeyLife }, help: "hard lifetime in time"},
		{key: "keylifekbs", value: number{5120, 4294967295, 0}, def: "5120", at: func(p *Phase2) any { return &p.KeyLifeKB }, help: "hard lifetime in traffic, KiB"},
		{key: "add-route", value: oneOf("phase1", "enable", "disable"), def: "phase1", at: func(p *Phase2) any { return &p.AddRoute }, help: "routes to the peer's selectors (dialup): as phase 1 says, or not"},
		{key: "route-overlap", value: oneOf("use-new", "use-old", "allow"), def: "use-new", at: func(p *Phase2) any { return &p.RouteOverlap }, help: "which client keeps a route that two of them ask for"},
		{key: "protocol", value: number{0, 255, 0}, def: "0", at: func(p *Phase2) any { return &p.Protocol }, help: "IP protocol of the selectors; 0 is any"},
		{key: "src-port", value: number{0, 65535, 0}, def: "0", at: func(p *Phase2) any { return &p.SrcPort }, help: "port on our side; 0 is any"},
		{key: "dst-port", value: number{0, 65535, 0}, def: "0", at: func(p *Phase2) any { return &p.DstPort }, help: "port on the peer's side; 0 is any"},
	}, append(addKERows(func(p *Phase2, i int) *[]ipsec.TransformID { return &p.AddKE[i] },
		"additional key exchange after that of pfs (RFC 9370), as in phase 1; the first Child SA is under the keys of the IKE SA and has none of its own"),
		selectorRows("src", "our", func(p *Phase2) *SelectorSpec { return &p.SrcSpec })...)...),
		selectorRows("dst", "the peer's", func(p *Phase2) *SelectorSpec { return &p.DstSpec })...),
	ignored: append(plain(`comments ipv4-df auto-discovery-* inbound-dscp-copy diffservcode`),
		ignored{key: "dhcp-ipsec", only: []string{"disable"}, why: "DHCP over IPsec is not offered; hand out addresses with `set mode-cfg enable` in phase 1"},
		ignored{key: "encapsulation", only: []string{"tunnel-mode"}},
		ignored{key: "l2tp", only: []string{"disable"}},
		ignored{key: "single-source", only: []string{"disable"}},
		ignored{key: "diffserv", only: []string{"disable"}},
		ignored{key: "initiator-ts-narrow", only: []string{"disable"}},
		ignored{key: "use-natip", only: []string{"enable", "disable"}},
	),
}

// selectorRows are the keywords of one side of the selector.
func selectorRows(side, whose string, at func(*Phase2) *SelectorSpec) []row[Phase2] {
	not := func(types ...string) func(*Phase2) bool {
		return func(p *Phase2) bool {
			for _, t := range types {
				if at(p).Type == t {
					return false
				}
			}
			return true
		}
	}
	return []row[Phase2]{
		{key: side + "-addr-type", value: oneOf(selectorTypes...), def: "subnet", at: func(p *Phase2) any { return &at(p).Type }, help: "how " + whose + " side is written: which of the keywords below counts"},
		{key: side + "-subnet", value: network{family: 4}, def: "0.0.0.0 0.0.0.0", at: func(p *Phase2) any { return &at(p).Subnet }, hide: not("subnet"), help: whose + " network"},
		{key: side + "-start-ip", value: address{4}, at: func(p *Phase2) any { return &at(p).Start }, hide: not("range", "ip"), help: "the address of type ip, the first of type range"},
		{key: side + "-end-ip", value: address{4}, at: func(p *Phase2) any { return &at(p).End }, hide: not("range"), help: "the last address of type range"},
		{key: side + "-name", value: text{max: 79, what: "the name of an address or group"}, at: func(p *Phase2) any { return &at(p).Name }, hide: not("name"), help: "a firewall address; a group makes one selector for each member"},
		{key: side + "-subnet6", value: network{family: 6}, def: "::/0", at: func(p *Phase2) any { return &at(p).Subnet6 }, hide: not("subnet6"), help: whose + " IPv6 network"},
		{key: side + "-start-ip6", value: address{6}, at: func(p *Phase2) any { return &at(p).Start6 }, hide: not("range6", "ip6"), help: "the address of type ip6, the first of type range6"},
		{key: side + "-end-ip6", value: address{6}, at: func(p *Phase2) any { return &at(p).End6 }, hide: not("range6"), help: "the last address of type range6"},
		{key: side + "-name6", value: text{max: 79, what: "the name of an IPv6 address or group"}, at: func(p *Phase2) any { return &at(p).Name6 }, hide: not("name6"), help: "a firewall address6; a group makes one selector for each member"},
	}
}

func (ld *loader) buildPhase2(c *Config) (out []Phase2) {
	ix := c.index()
	parents := map[string]*object[phase1Draft]{}
	var known []string
	for _, o := range ld.phase1.entries {
		parents[o.val.Name] = o
		known = append(known, o.val.Name)
	}
	for _, o := range ld.phase2.entries {
		p, s := *o.val, o.src
		fault := func(key, format string, args ...any) {
			if !s.bad[key] {
				ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
			}
		}
		parent := parents[p.Phase1]
		switch {
		case p.Phase1 == "":
			fault("phase1name", "phase1name is missing: a phase 2 belongs to a phase 1")
		case parent == nil:
			fault("phase1name", "phase1name (%s) names no phase 1%s", echo(p.Phase1), ld.hint(p.Phase1, known))
		default:
			ld.checkPhase2(&p, s, parent, fault)
			if p.ESN == "phase1" {
				p.Proposals = espSuites(p.Proposals, parent.val.ESN)
			}
		}
		if p.ESN != "phase1" {
			p.Proposals = espSuites(p.Proposals, p.ESN)
		}
		if p.AutoNegotiate {
			p.Keepalive = true
		}
		p.Src = ld.selectors(c, ix, &p.SrcSpec, "src", s, fault)
		p.Dst = ld.selectors(c, ix, &p.DstSpec, "dst", s, fault)
		if p.Src != nil && p.Dst != nil && !ipVersionsMeet(p.Src, p.Dst) {
			fault("dst-addr-type", "src (%s) and dst (%s) must share an address family", p.SrcSpec.Type, p.DstSpec.Type)
		}
		withPorts(p.Src, p.Protocol, p.SrcPort)
		withPorts(p.Dst, p.Protocol, p.DstPort)
		if port := max(p.SrcPort, p.DstPort); port != 0 && !hasPorts(p.Protocol) {
			key := "src-port"
			if p.SrcPort == 0 {
				key = "dst-port"
			}
			fault(key, "%s (%d) needs a protocol that has ports: `set protocol 6` (TCP), 17 (UDP), 33 (DCCP), 132 (SCTP) or 136 (UDP-Lite)", key, port)
		}
		out = append(out, p)
	}
	return out
}

func hasPorts(proto uint8) bool {
	return proto == 6 || proto == 17 || proto == 33 || proto == 132 || proto == 136
}

func (ld *loader) checkPhase2(p *Phase2, s *source, parent *object[phase1Draft], fault func(key, format string, args ...any)) {
	p1 := parent.val
	switch {
	case p.AutoNegotiate && p1.Type == "dynamic":
		fault("auto-negotiate", "auto-negotiate (enable) excludes type dynamic of phase 1 %s: a dialup gateway never begins", p1.Name)
	case p.AutoNegotiate && p1.PassiveMode:
		fault("auto-negotiate", "auto-negotiate (enable) excludes passive-mode enable of phase 1 %s (line %d): a passive gateway never begins (FortiOS: command parse error before 'set')", p1.Name, parent.src.at("passive-mode"))
	case p.Keepalive && p1.PassiveMode:
		fault("keepalive", "keepalive (enable) excludes passive-mode enable of phase 1 %s (line %d): a passive gateway never begins (FortiOS: command parse error before 'set')", p1.Name, parent.src.at("passive-mode"))
	}
	if key, msg := checkAddKE(p.AddKE); msg != "" {
		fault(key, "%s", msg)
	}
	for i, ids := range p.AddKE {
		if len(ids) > 0 && !p.PFS {
			fault(addKEKey(i), "%s needs `set pfs enable`: it follows that key exchange", addKEKey(i))
			break
		}
	}
	if p.KeyLifeType != "kbs" && p.KeyLife > p1.KeyLife && p1.KeyLife > 0 {
		ld.warn(s.at("keylifeseconds"), s.object, "keylifeseconds", fmt.Sprintf("keylifeseconds (%d) is longer than keylife (%d) of phase 1 %s: the IKE SA is renewed first", p.KeyLife/time.Second, p1.KeyLife/time.Second, p1.Name))
	}
}

// selectors resolves one side of a phase 2.
func (ld *loader) selectors(c *Config, ix *addressIndex, d *SelectorSpec, side string, s *source, fault func(key, format string, args ...any)) []ipsec.TrafficSelector {
	switch d.Type {
	case "subnet":
		return []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(d.Subnet)}
	case "subnet6":
		return []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(d.Subnet6)}
	case "name", "name6":
		key, name, v6 := side+"-name", d.Name, d.Type == "name6"
		if v6 {
			key, name = side+"-name6", d.Name6
		}
		if name == "" {
			fault(key, "%s is missing: %s-addr-type %s needs it", key, side, d.Type)
			return nil
		}
		out, ok := ix.resolve(name, v6, nil, 0)
		if !ok {
			fault(key, "%s (%s) names no address or group%s", key, echo(name), ld.hint(name, c.addressNames(v6)))
			return nil
		}
		if len(out) == 0 {
			fault(key, "%s (%s) holds no addresses", key, echo(name))
		}
		if len(out) > 255 { // a TS payload counts them in one byte (RFC 7296 §3.13)
			fault(key, "%s (%s) makes %d selectors: at most 255 can be negotiated", key, echo(name), len(out))
			return nil
		}
		return out
	}
	six, start, end := "", d.Start, d.End
	if strings.HasSuffix(d.Type, "6") {
		six, start, end = "6", d.Start6, d.End6
	}
	first, last := side+"-start-ip"+six, side+"-end-ip"+six
	if strings.HasPrefix(d.Type, "ip") {
		end = start
	}
	switch {
	case !start.IsValid():
		fault(first, "%s is missing: %s-addr-type %s needs it", first, side, d.Type)
	case !end.IsValid():
		fault(last, "%s is missing: %s-addr-type %s needs it", last, side, d.Type)
	case end.Less(start):
		fault(last, "%s (%s) must not lie before %s (%s)", last, end, first, start)
	default:
		return []ipsec.TrafficSelector{addressRange(start, end)}
	}
	return nil
}

func addressRange(start, end netip.Addr) ipsec.TrafficSelector {
	return ipsec.TrafficSelector{EndPort: 65535, Start: start, End: end}
}

func withPorts(l []ipsec.TrafficSelector, proto uint8, port uint16) {
	for i := range l {
		l[i].Protocol = proto
		if port != 0 {
			l[i].StartPort, l[i].EndPort = port, port
		}
	}
}

func ipVersionsMeet(a, b []ipsec.TrafficSelector) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Start.Is4() == y.Start.Is4() {
				return true
			}
		}
	}
	return false
}
