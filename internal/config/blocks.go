package config

import "fmt"

// block is one block of the top level.
type block struct {
	path string
	init func(*loader)           // makes its place in the loader
	open func(*loader) scope     // config PATH
	view func(*Config) printable // for show
	ref  func() []refBlock       // for the reference in docs/configuration.md
}

// blocks lists the top level in the order in which show prints it: what is
// referred to stands before what refers to it.
var blocks []block

func init() {
	blocks = []block{
		{path: globalSpec.path,
			init: func(ld *loader) { ld.global = newSingle(globalSpec) },
			open: func(ld *loader) scope { return ld.global },
			view: func(c *Config) printable { return viewOf(globalSpec, global{c.Hostname}) },
			ref:  func() []refBlock { return refsOf(globalSpec) }},
		{path: tandemSpec.path,
			init: func(ld *loader) { ld.tandem = newSingle(tandemSpec) },
			open: func(ld *loader) scope { return ld.tandem },
			view: func(c *Config) printable { return viewOf(tandemSpec, c.Tandem) },
			ref:  func() []refBlock { return refsOf(tandemSpec) }},
		{path: settingsSpec.path,
			init: func(ld *loader) { ld.settings = newSingle(settingsSpec) },
			open: func(ld *loader) scope { return ld.settings },
			view: func(c *Config) printable {
				return viewOf(settingsSpec, settings{c.BFD, int(c.TCPPort), c.QuickCrashDetect})
			},
			ref: func() []refBlock { return refsOf(settingsSpec) }},
		{path: haSpec.path,
			init: func(ld *loader) { ld.ha = newSingle(haSpec) },
			open: func(ld *loader) scope { return ld.ha },
			view: func(c *Config) printable { return viewOf(haSpec, draftHA(c.HA)) },
			ref: func() []refBlock {
				return append(append(refsOf(haSpec), refsOf(vclusterSpec)...), refsOf(unicastSpec)...)
			}},
		{path: standaloneSpec.path,
			init: func(ld *loader) { ld.standalone = newSingle(standaloneSpec) },
			open: func(ld *loader) scope { return ld.standalone },
			view: func(c *Config) printable { return viewOf(standaloneSpec, draftStandalone(c.Standalone)) },
			ref:  func() []refBlock { return append(refsOf(standaloneSpec), refsOf(peerSpec)...) }},
		{path: interfaceSpec.path,
			init: func(ld *loader) { ld.interfaces = newTable(interfaceSpec, "") },
			open: func(ld *loader) scope { return ld.interfaces },
			view: func(c *Config) printable {
				return tableOf(interfaceSpec, c.Interfaces, draftInterface, func(i *interfaceDraft) string { return i.Name })
			},
			ref: func() []refBlock {
				return append(append(append(refsOf(interfaceSpec), refsOf(ipv6Spec)...), refsOf(extra6Spec)...), refsOf(secondaryIPSpec)...)
			}},
		{path: linkMonitorSpec.path,
			init: func(ld *loader) { ld.linkMonitors = newTable(linkMonitorSpec, "") },
			open: func(ld *loader) scope { return ld.linkMonitors },
			view: func(c *Config) printable {
				return tableOf(linkMonitorSpec, c.LinkMonitors, same[LinkMonitor], func(m *LinkMonitor) string { return m.Name })
			},
			ref: func() []refBlock { return refsOf(linkMonitorSpec) }},
		{path: addressSpec.path,
			init: func(ld *loader) { ld.address = newTable(addressSpec, "") },
			open: func(ld *loader) scope { return ld.address },
			view: func(c *Config) printable { return addressView(c, addressSpec, false) },
			ref:  func() []refBlock { return refsOf(addressSpec) }},
		{path: address6Spec.path,
			init: func(ld *loader) { ld.address6 = newTable(address6Spec, "") },
			open: func(ld *loader) scope { return ld.address6 },
			view: func(c *Config) printable { return addressView(c, address6Spec, true) },
			ref:  func() []refBlock { return refsOf(address6Spec) }},
		{path: addrgrpSpec.path,
			init: func(ld *loader) { ld.addrgrp = newTable(addrgrpSpec, "") },
			open: func(ld *loader) scope { return ld.addrgrp },
			view: func(c *Config) printable { return groupView(c, addrgrpSpec, false) },
			ref:  func() []refBlock { return refsOf(addrgrpSpec) }},
		{path: addrgrp6Spec.path,
			init: func(ld *loader) { ld.addrgrp6 = newTable(addrgrp6Spec, "") },
			open: func(ld *loader) scope { return ld.addrgrp6 },
			view: func(c *Config) printable { return groupView(c, addrgrp6Spec, true) },
			ref:  func() []refBlock { return refsOf(addrgrp6Spec) }},
	}
	blocks = append(blocks, certificateBlocks()...)
	blocks = append(blocks, []block{
		{path: phase1Spec.path,
			init: func(ld *loader) { ld.phase1 = newTable(phase1Spec, "") },
			open: func(ld *loader) scope { return ld.phase1 },
			view: func(c *Config) printable {
				return tableOf(phase1Spec, c.Phase1, draftPhase1, func(p *phase1Draft) string { return p.Name })
			},
			ref: func() []refBlock { return refsOf(phase1Spec) }},
		{path: phase2Spec.path,
			init: func(ld *loader) { ld.phase2 = newTable(phase2Spec, "") },
			open: func(ld *loader) scope { return ld.phase2 },
			view: func(c *Config) printable {
				return tableOf(phase2Spec, c.Phase2, same[Phase2], func(p *Phase2) string { return p.Name })
			},
			ref: func() []refBlock { return refsOf(phase2Spec) }},
		{path: policySpec.path,
			init: func(ld *loader) { ld.policy = newTable(policySpec, "") },
			open: func(ld *loader) scope { ld.policy.opened = true; return ld.policy },
			view: func(c *Config) printable {
				t := tableOf(policySpec, c.Policies, same[Policy], func(p *Policy) string { return fmt.Sprint(p.ID) })
				t.opened = c.HasPolicy
				return t
			},
			ref: func() []refBlock { return refsOf(policySpec) }},
		{path: staticRoute.path,
			init: func(ld *loader) { ld.route = newTable(staticRoute, "") },
			open: func(ld *loader) scope { return ld.route },
			view: func(c *Config) printable { return routeView(c, staticRoute, false) },
			ref:  func() []refBlock { return refsOf(staticRoute) }},
		{path: staticRoute6.path,
			init: func(ld *loader) { ld.route6 = newTable(staticRoute6, "") },
			open: func(ld *loader) scope { return ld.route6 },
			view: func(c *Config) printable { return routeView(c, staticRoute6, true) },
			ref:  func() []refBlock { return refsOf(staticRoute6) }},
		{path: bgpSpec.path,
			init: func(ld *loader) { ld.bgp = newSingle(bgpSpec) },
			open: func(ld *loader) scope { return ld.bgp },
			view: func(c *Config) printable { return viewOf(bgpSpec, draftBGP(c.BGP)) },
			ref: func() []refBlock {
				return append(append(append(refsOf(bgpSpec), refsOf(bgpNeighborSpec)...), refsOf(bgpNetworkSpec)...), refsOf(bgpNetwork6Spec)...)
			}},
	}...)
}

// build settles everything that depends on more than one keyword and reports
// broken relations. It runs over what could be read, so that all faults show at once.
func (ld *loader) build() *Config {
	c := &Config{Hostname: ld.global.val.Hostname, Tandem: ld.buildTandem()}
	ld.buildAddresses(c)
	c.Phase1 = ld.buildPhase1()
	ld.checkPeers()
	ld.checkReferences(c)
	ld.buildCertificates(c)
	c.Phase2 = ld.buildPhase2(c)
	c.HA = ld.buildHA(c)
	c.Standalone = ld.buildStandalone()
	ld.checkSite(c)
	ld.checkWitness(c)
	c.Interfaces = ld.buildInterfaces()
	ld.checkVClusters(c)
	ld.checkUnicast(c)
	ld.checkVirtualMACs(c)
	ld.checkPools(c)
	c.LinkMonitors = ld.buildMonitors(c)
	c.HasPolicy = ld.policy.opened
	c.Policies = ld.buildPolicies(c)
	c.Routes = ld.buildRoutes()
	c.BGP = ld.buildBGP()
	ld.checkVClusterRoutes(c)
	c.BFD, c.TCPPort, c.QuickCrashDetect = ld.settings.val.BFD, uint16(ld.settings.val.tcpPort), ld.settings.val.QuickCrashDetect
	return c
}
