package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Pingserver is what a cluster, or a virtual cluster, makes of the servers that
// `config system link-monitor` watches.
type Pingserver struct {
	Monitor []string // interfaces (srcintf) whose link monitors count
	// Threshold is the sum of ha-priority of the failed link monitors from which on the
	// member counts as failed, 0–50. 0: any failure does.
	Threshold int
	// FlipTimeout is how long after a failover that pingservers caused no further one
	// follows for their sake.
	FlipTimeout time.Duration
	// ForceReset: the penalty of a member that cannot probe is forgotten when the flip
	// timeout is over, so that the members are compared anew.
	ForceReset bool
}

// maxFlip is what FortiOS allows (2147483647 minutes) as far as it can be reckoned with.
const maxFlip = 100_000_000

// pingserverRows are the keywords of a Pingserver within a block.
func pingserverRows[T any](at func(*T) *Pingserver) []row[T] {
	never := func(*T) bool { return true }
	return []row[T]{
		{key: "pingserver-monitor-interface", value: names{max: 15, what: "interface names"}, at: func(t *T) any { return &at(t).Monitor }, help: "interfaces whose link monitors (`config system link-monitor`) count in the election"},
		{key: "pingserver-failover-threshold", value: number{0, 50, 0}, def: "0", at: func(t *T) any { return &at(t).Threshold }, help: "the sum of ha-priority of failed link monitors that makes a member a worse one; 0: any failure does"},
		{key: "pingserver-flip-timeout", value: number{0, maxFlip, time.Minute}, def: "60", at: func(t *T) any { return &at(t).FlipTimeout }, help: "after a failover that pingservers caused, how long none follows for their sake"},
		{key: "pingserver-secondary-force-reset", value: toggle{}, def: "enable", at: func(t *T) any { return &at(t).ForceReset }, help: "after the flip timeout, what a standby that cannot probe knows of its servers is forgotten, and the members are compared anew"},
		{key: "pingserver-slave-force-reset", value: toggle{}, def: "enable", at: func(t *T) any { return &at(t).ForceReset }, omit: never, help: "older spelling of the same"},
	}
}

// LinkMonitor is one `config system link-monitor` entry: it has failed when none of
// its servers answers.
type LinkMonitor struct {
	Name         string
	SrcIntf      string
	Servers      []netip.Addr // of one family
	SourceIP     netip.Addr   // invalid: the interface's own
	Interval     time.Duration
	ProbeTimeout time.Duration
	FailTime     int // unanswered probes in a row that make a server dead
	RecoveryTime int // answers in a row that make it live again
	HAPriority   int // 1–50: what its failure weighs
	Disabled     bool
}

const maxServers = 16

// servers is a list of addresses of one family.
type servers struct{}

func (servers) allowed() string {
	return fmt.Sprintf("up to %d IP addresses of one family", maxServers)
}
func (servers) parse(words []word, into any) string {
	var out []netip.Addr
	for _, w := range words {
		if w.text == "" {
			continue
		}
		x, err := parseAddr(w.text)
		if err != nil || x.IsUnspecified() || x.IsMulticast() {
			return fmt.Sprintf("(%s) must be an IP address: names are not resolved here", echo(w.text))
		}
		if len(out) > 0 && x.Is4() != out[0].Is4() {
			return fmt.Sprintf("(%s) must be of the same family as %s: write another link-monitor for it", echo(w.text), out[0])
		}
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	if len(out) > maxServers {
		return fmt.Sprintf("takes at most %d addresses (it has %d)", maxServers, len(out))
	}
	*into.(*[]netip.Addr) = out
	return ""
}
func (servers) format(from any) string {
	var out []string
	for _, x := range *from.(*[]netip.Addr) {
		out = append(out, quote(x.String()))
	}
	if out == nil {
		return "''"
	}
	return strings.Join(out, " ")
}
func (servers) list(from any) (words []word) {
	for _, x := range *from.(*[]netip.Addr) {
		words = append(words, word{text: x.String()})
	}
	return words
}

var linkMonitorSpec = &spec[LinkMonitor]{
	path:  "system link-monitor",
	help:  "Servers that are probed with ICMP echo. They count in the election of a pair where `pingserver-monitor-interface` names the interface, and change no routes. A node probes while the interface has an address of the servers' family: the active one always, a standby with a management-ip.",
	label: "link-monitor",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, _ int) (LinkMonitor, string) {
		return LinkMonitor{Name: name}, nameFault("a link-monitor", name, 35)
	},
	rows: []row[LinkMonitor]{
		{key: "status", value: enabledAs{}, def: "enable", at: func(m *LinkMonitor) any { return &m.Disabled }, help: "a disabled one probes nothing and never fails"},
		{key: "srcintf", value: text{max: 15, what: "an interface name", check: interfaceName}, at: func(m *LinkMonitor) any { return &m.SrcIntf }, help: "the interface through which probes go; required"},
		{key: "server", value: servers{}, at: func(m *LinkMonitor) any { return &m.Servers }, help: "the link monitor fails when none of them answers; required"},
		{key: "source-ip", value: address{4}, at: func(m *LinkMonitor) any { return &m.SourceIP }, help: "source of the probes; 0.0.0.0: the interface's own"},
		{key: "source-ip6", value: address{6}, at: func(m *LinkMonitor) any { return &m.SourceIP }, help: "the same for IPv6"},
		{key: "protocol", value: only("ping", "servers are probed with ICMP echo only"), def: "ping", at: nowhere[LinkMonitor], omit: func(*LinkMonitor) bool { return true }, help: "ICMP echo"},
		{key: "interval", value: number{20, 3600_000, time.Millisecond}, def: "500", at: func(m *LinkMonitor) any { return &m.Interval }, help: "between probes of a server"},
		{key: "probe-timeout", value: number{20, 3600_000, time.Millisecond}, def: "500", at: func(m *LinkMonitor) any { return &m.ProbeTimeout }, help: "an answer that comes later does not count"},
		{key: "failtime", value: number{1, 3600, 0}, def: "5", at: func(m *LinkMonitor) any { return &m.FailTime }, help: "unanswered probes in a row that make a server dead"},
		{key: "recoverytime", value: number{1, 3600, 0}, def: "5", at: func(m *LinkMonitor) any { return &m.RecoveryTime }, help: "answers in a row that make it live again"},
		{key: "ha-priority", value: number{1, 50, 0}, def: "1", at: func(m *LinkMonitor) any { return &m.HAPriority }, local: true, help: "what its failure weighs, see pingserver-failover-threshold"},
	},
	ignored: append(plain(`addr-mode gateway-ip gateway-ip6 route update-cascade-interface update-static-route update-policy-route probe-count
		packet-size diffservcode class-id service-detection fail-weight port http-get http-agent http-match security-mode password`),
		ignored{key: "server-config", only: []string{"default"}}, ignored{key: "server-type", only: []string{"static"}}),
	children: []child[LinkMonitor]{{path: "server-list"}},
}

// buildMonitors checks what is monitored against what there is.
func (ld *loader) buildMonitors(c *Config) (out []LinkMonitor) {
	weight := map[string]int{}
	for _, o := range ld.linkMonitors.entries {
		m, s := *o.val, o.src
		if m.SrcIntf == "" && !s.bad["srcintf"] {
			ld.fault(s.line, s.object, "srcintf", "srcintf is missing: a link-monitor needs the interface through which it probes")
		}
		if len(m.Servers) == 0 && !s.bad["server"] {
			ld.fault(s.line, s.object, "server", "server is missing: a link-monitor needs the address of one at least")
		}
		if m.SourceIP.IsValid() && len(m.Servers) > 0 && m.SourceIP.Is4() != m.Servers[0].Is4() {
			ld.fault(s.at("source-ip", "source-ip6"), s.object, "source-ip", fmt.Sprintf("source-ip (%s) must be of the family of server %s", m.SourceIP, m.Servers[0]))
		}
		if !m.Disabled {
			weight[m.SrcIntf] += m.HAPriority
		}
		out = append(out, m)
	}
	s := ld.ha.src
	relate := func(s *source, p Pingserver) {
		const key, threshold = "pingserver-monitor-interface", "pingserver-failover-threshold"
		sum := 0
		for _, name := range p.Monitor {
			sum += weight[name]
			if weight[name] == 0 {
				ld.warn(s.at(key), s.object, key, fmt.Sprintf(key+" (%s) has no effect: no link-monitor has it as srcintf", echo(name)))
			}
		}
		if sum > 0 && p.Threshold > sum {
			ld.warn(s.at(threshold), s.object, threshold, fmt.Sprintf(threshold+" (%d) is never reached: the ha-priority of all link monitors of pingserver-monitor-interface adds up to %d", p.Threshold, sum))
		}
	}
	relate(s, c.HA.Pingserver)
	if d := ld.ha.val; d.vclusters != nil {
		for _, o := range d.vclusters.entries {
			relate(o.src, o.val.Pingserver)
		}
	}
	return out
}

// checkVirtualMACs: a virtual MAC address belongs to an interface whose addresses move.
func (ld *loader) checkVirtualMACs(c *Config) {
	const key = "auto-virtual-mac-interface"
	s := ld.ha.src
	for _, name := range c.HA.VirtualMAC {
		fault := func(format string) {
			if !s.bad[key] {
				ld.fault(s.at(key), s.object, key, fmt.Sprintf(key+" (%s) "+format, echo(name)))
			}
		}
		i := slices.IndexFunc(c.Interfaces, func(in Interface) bool { return in.Name == name })
		switch {
		case slices.ContainsFunc(c.HA.HBDev, func(d HBDev) bool { return d.Name == name }):
			fault("must not be a heartbeat interface: the members would have the same MAC address on it")
		case c.Phase1ByName(name) != nil:
			fault("must not be a tunnel: it has no MAC address")
		case i < 0 || len(c.Interfaces[i].IP) == 0:
			fault("must have a shared address: `set ip` in `config system interface`")
		}
	}
	if len(c.HA.VirtualMAC) > 0 && c.HA.Mode != "a-p" {
		ld.warn(s.at(key), s.object, key, key+" has no effect without `set mode a-p`")
	}
}
