package config

import (
	"net/netip"
	"slices"

	"tandem/internal/ipsec"
)

const maxGroupDepth = 16

type nameKey struct {
	name string
	v6   bool
}

// addressIndex finds addresses and groups by name and family.
type addressIndex struct {
	addr  map[nameKey]*Address
	group map[nameKey]*AddrGroup
}

func (c *Config) index() *addressIndex {
	ix := &addressIndex{addr: map[nameKey]*Address{}, group: map[nameKey]*AddrGroup{}}
	for i := range c.Addresses {
		a := &c.Addresses[i]
		ix.addr[nameKey{a.Name, !a.Ranges[0].Start.Is4()}] = a
	}
	for i := range c.AddrGroups {
		g := &c.AddrGroups[i]
		ix.group[nameKey{g.Name, g.V6}] = g
	}
	return ix
}

func builtin(name string) bool { return name == "all" || name == "none" }

// Resolve returns the ranges behind an address or group of one family, each
// once, in the order of the file; ok is false when there is no such name. "all"
// is every address of the family, "none" is no range at all.
func (c *Config) Resolve(name string, v6 bool) (out []ipsec.TrafficSelector, ok bool) {
	return c.index().resolve(name, v6, nil, 0)
}

func (ix *addressIndex) resolve(name string, v6 bool, out []ipsec.TrafficSelector, depth int) ([]ipsec.TrafficSelector, bool) {
	k := nameKey{name, v6}
	switch {
	case name == "none":
		return out, true
	case name == "all":
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if v6 {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return appendOnce(out, ipsec.SelectorFromPrefix(all)), true
	case ix.addr[k] != nil:
		for _, r := range ix.addr[k].Ranges {
			out = appendOnce(out, r)
		}
		return out, true
	case ix.group[k] == nil || depth > maxGroupDepth:
		return out, false
	}
	ok := true
	for _, m := range ix.group[k].Members {
		var found bool
		if out, found = ix.resolve(m, v6, out, depth+1); !found {
			ok = false
		}
	}
	return out, ok
}

func appendOnce(l []ipsec.TrafficSelector, t ipsec.TrafficSelector) []ipsec.TrafficSelector {
	if slices.Contains(l, t) {
		return l
	}
	return append(l, t)
}

func (c *Config) addressNames(v6 bool) (names []string) {
	for i := range c.Addresses {
		if c.Addresses[i].Ranges[0].Start.Is4() != v6 {
			names = append(names, c.Addresses[i].Name)
		}
	}
	for _, g := range c.AddrGroups {
		if g.V6 == v6 {
			names = append(names, g.Name)
		}
	}
	return names
}

// Phase2Of returns the phase 2 entries of a phase 1 in the order of the file.
func (c *Config) Phase2Of(phase1 string) (out []*Phase2) {
	for i := range c.Phase2 {
		if c.Phase2[i].Phase1 == phase1 {
			out = append(out, &c.Phase2[i])
		}
	}
	return out
}

// Phase1ByName returns a phase 1, or nil.
func (c *Config) Phase1ByName(name string) *Phase1 {
	for i := range c.Phase1 {
		if c.Phase1[i].Name == name {
			return &c.Phase1[i]
		}
	}
	return nil
}

// PolicyNames says whether any enabled accept policy names the interface, so
// that its tunnel may be negotiated. Without a policy block every tunnel may be.
func (c *Config) PolicyNames(intf string) bool {
	if !c.HasPolicy {
		return true
	}
	return slices.ContainsFunc(c.Policies, func(p Policy) bool {
		return p.Status && p.Accept && (slices.Contains(p.SrcIntf, intf) || slices.Contains(p.DstIntf, intf) ||
			slices.Contains(p.SrcIntf, "any") || slices.Contains(p.DstIntf, "any"))
	})
}
