package config

import (
	"fmt"
	"net/netip"

	"tandem/internal/ipsec"
)

// poolKeys are what only who hands out addresses may say.
var poolKeys = []string{"assign-ip", "ipv4-start-ip", "ipv4-end-ip", "ipv4-netmask", "ipv4-dns-server1", "ipv4-dns-server2", "ipv4-dns-server3",
	"ipv4-split-include", "ipv6-start-ip", "ipv6-end-ip", "ipv6-prefix", "ipv6-dns-server1", "ipv6-dns-server2", "ipv6-dns-server3",
	"ipv6-split-include", "domain"}

// checkPool looks at what one phase 1 with mode-cfg says by itself.
func checkPool(p *phase1Draft, s *source, fault func(key, format string, args ...any)) {
	if p.Type != "dynamic" {
		for _, k := range poolKeys {
			if s.wrote(k) {
				fault(k, "%s needs `set type dynamic`: a phase 1 of type %s with mode-cfg asks its peer for an address, and hands out none", k, p.Type)
			}
		}
		return
	}
	for _, r := range []struct {
		start, end netip.Addr
		a, b       string
	}{{p.Pool.Start4, p.Pool.End4, "ipv4-start-ip", "ipv4-end-ip"}, {p.Pool.Start6, p.Pool.End6, "ipv6-start-ip", "ipv6-end-ip"}} {
		switch {
		case r.start.IsValid() != r.end.IsValid():
			fault(r.b, "%s and %s must be set together", r.a, r.b)
		case r.start.IsValid() && r.end.Less(r.start):
			fault(r.b, "%s (%s) must not lie before %s (%s)", r.b, r.end, r.a, r.start)
		}
	}
	if p.Pool.AssignIP && !p.Pool.Start4.IsValid() && !p.Pool.Start6.IsValid() {
		fault("mode-cfg", "mode-cfg (enable) needs a pool: `set ipv4-start-ip` and `set ipv4-end-ip`")
	}
}

// checkSplitIncludes resolves the networks that clients are told of.
func (ld *loader) checkSplitIncludes(c *Config) {
	for i, o := range ld.phase1.entries {
		p, s := &c.Phase1[i], o.src
		if !p.ModeCfg {
			continue
		}
		fault := func(key, format string, args ...any) {
			ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
		}
		for _, x := range []struct {
			key, name string
			to        *[]ipsec.TrafficSelector
			v6        bool
		}{{"ipv4-split-include", p.Pool.SplitInclude4, &p.Pool.SplitInclude4Subnets, false},
			{"ipv6-split-include", p.Pool.SplitInclude6, &p.Pool.SplitInclude6Subnets, true}} {
			if x.name == "" {
				continue
			}
			ts, ok := c.Resolve(x.name, x.v6)
			if !ok {
				fault(x.key, "%s (%s) names no address or group%s", x.key, echo(x.name), ld.hint(x.name, c.addressNames(x.v6)))
			}
			*x.to = ts
		}
	}
}

// checkPools refuses mode-cfg where an address could be given out twice, by two virtual
// clusters, where one that was assigned would not follow its tunnel, and where it was not
// shown to be right.
func (ld *loader) checkPools(c *Config) {
	for i, o := range ld.phase1.entries {
		p, s := &c.Phase1[i], o.src
		if !p.ModeCfg {
			continue
		}
		fault := func(key, format string, args ...any) {
			ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
		}
		switch {
		case c.Standalone.Farm() && !p.Dialup():
			fault("mode-cfg", "mode-cfg (enable) needs `set type dynamic` in a standalone-cluster: its members hand out addresses, and ask for none")
		case c.Group() && len(c.HA.UnicastPeers) > 1:
			fault("mode-cfg", "mode-cfg (enable) is not offered in a group of three or four yet; a pair and a standalone-cluster can")
		}
		for j := range c.Phase1[:i] {
			q := &c.Phase1[j]
			if q.ModeCfg && c.Virtual() && c.VClusterOf(p) != c.VClusterOf(q) && p.Pool.overlaps(&q.Pool) {
				fault("ipv4-start-ip", "the pool shares addresses with that of %s, which is in another virtual cluster: an address would be given out twice", q.Name)
			}
		}
	}
}

func (p *Pool) overlaps(q *Pool) bool {
	share := func(a, b, c, d netip.Addr) bool {
		return a.IsValid() && c.IsValid() && a.Compare(d) <= 0 && c.Compare(b) <= 0
	}
	return share(p.Start4, p.End4, q.Start4, q.End4) || share(p.Start6, p.End6, q.Start6, q.End6)
}
