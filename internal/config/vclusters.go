package config

import (
	"fmt"
	"net/netip"
	"slices"
)

// firstVCluster is the virtual cluster of what belongs to no other, as FortiOS' root.
const firstVCluster = 1

// Virtual says that what is owned are virtual clusters: where they are active, and in a
// group of three or four, which without them has the one that is always there.
func (c *Config) Virtual() bool { return c.HA.Mode == "a-p" && (c.HA.VClusterStatus || c.Group()) }

// listedVClusters are those that are configured and active.
func (c *Config) listedVClusters() []VCluster {
	if !c.HA.VClusterStatus {
		return nil
	}
	return c.HA.VClusters
}

// VirtualClusters are all of them by number; 1 is always there: where it is not
// configured, it ranks as `config system ha` says. Nil without virtual clusters.
func (c *Config) VirtualClusters() []VCluster {
	if !c.Virtual() {
		return nil
	}
	out := slices.Clone(c.listedVClusters())
	slices.SortFunc(out, func(a, b VCluster) int { return a.ID - b.ID })
	if len(out) == 0 || out[0].ID != firstVCluster {
		h := &c.HA
		out = slices.Insert(out, 0, VCluster{ID: firstVCluster, Priority: h.Priority, Override: h.Override, OverrideWaitTime: h.OverrideWaitTime, Monitor: h.Monitor, Pingserver: h.Pingserver})
	}
	return out
}

// HAOf is `config system ha` as it is for one virtual cluster.
func (c *Config) HAOf(v VCluster) HA {
	h := c.HA
	h.Priority, h.Override, h.OverrideWaitTime, h.Monitor, h.Pingserver = v.Priority, v.Override, v.OverrideWaitTime, v.Monitor, v.Pingserver
	return h
}

// VClusterOfInterface is the number of the virtual cluster that the shared addresses of
// an interface move with: the one of its virtual domain; where no virtual cluster names
// that, the one that lists a phase 1 on it; else 1.
func (c *Config) VClusterOfInterface(name string) int {
	for i := range c.Interfaces {
		if c.Interfaces[i].Name != name {
			continue
		}
		for _, v := range c.listedVClusters() {
			if slices.Contains(v.VDOM, c.Interfaces[i].VDOM) {
				return v.ID
			}
		}
	}
	for i := range c.Phase1 {
		if c.home(&c.Phase1[i]) == name {
			if id := c.listed(c.Phase1[i].Name); id != 0 {
				return id
			}
		}
	}
	return firstVCluster
}

// VClusterOf is the number of the virtual cluster that a phase 1 belongs to: the one that
// lists it, else the one of the interface with its local address.
func (c *Config) VClusterOf(p *Phase1) int {
	if id := c.listed(p.Name); id != 0 {
		return id
	}
	return c.VClusterOfInterface(c.home(p))
}

// listed is the virtual cluster that names a phase 1; 0: none.
func (c *Config) listed(phase1 string) int {
	for _, v := range c.listedVClusters() {
		if slices.Contains(v.Phase1, phase1) {
			return v.ID
		}
	}
	return 0
}

// home is the interface with a phase 1's local address.
func (c *Config) home(p *Phase1) string {
	if p.LocalGW.IsValid() {
		for i := range c.Interfaces {
			if slices.ContainsFunc(c.Interfaces[i].IP, func(x netip.Prefix) bool { return x.Addr() == p.LocalGW }) {
				return c.Interfaces[i].Name
			}
		}
	}
	return p.Interface
}

// checkVClusters: a tunnel and the shared address that it is reached at move together.
func (ld *loader) checkVClusters(c *Config) {
	if !c.Virtual() || len(c.listedVClusters()) == 0 {
		return
	}
	for i := range c.Phase1 {
		p := &c.Phase1[i]
		home := c.home(p)
		shared := slices.ContainsFunc(c.Interfaces, func(in Interface) bool { return in.Name == home && len(in.IP) > 0 })
		if at := c.VClusterOfInterface(home); shared && at != c.VClusterOf(p) {
			ld.fault(p.Line, p.Name, "interface", fmt.Sprintf("interface (%s) and its shared address belong to vcluster %d, but the tunnel to vcluster %d, which lists it: they move together", home, at, c.VClusterOf(p)))
		}
	}
}

// checkVClusterRoutes: a gateway announces its routes as a whole.
func (ld *loader) checkVClusterRoutes(c *Config) {
	if c.HA.VClusterStatus && c.BGP.AS != 0 {
		ld.warn(ld.ha.src.at("vcluster-status", "vcluster2"), "system ha", "vcluster-status",
			"router bgp announces its networks while any virtual cluster is active here: those of another one, too")
	}
}
