package config

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// haDraft is `config system ha` as it is written: the heartbeat interval in two
// keywords, and the older spelling of two virtual clusters.
type haDraft struct {
	HA
	count     int
	unit      string
	vcluster2 bool
	vdom      []string
	second    VCluster
	wroteOld  *source // where `config secondary-vcluster` stands, if anywhere
	vclusters *table[VCluster]
	unicast   *table[UnicastPeer]
}

// heartbeatWords writes an interval as hb-interval and its unit.
func heartbeatWords(d time.Duration) (count int, unit string) {
	if d%(100*time.Millisecond) != 0 {
		return int(d / (10 * time.Millisecond)), "10ms"
	}
	return int(d / (100 * time.Millisecond)), "100ms"
}

// heartbeatInterval is what heartbeatWords wrote.
func heartbeatInterval(count int, unit string) time.Duration {
	if unit == "10ms" {
		return time.Duration(count) * 10 * time.Millisecond
	}
	return time.Duration(count) * 100 * time.Millisecond
}

func draftHA(h HA) haDraft {
	d := haDraft{HA: h}
	d.count, d.unit = heartbeatWords(h.HBInterval)
	d.vclusters = newTable(vclusterSpec, "").fill(h.VClusters, func(v *VCluster) string { return strconv.Itoa(v.ID) })
	d.unicast = unicastTable(h.UnicastPeers)
	return d
}

var haSpec = &spec[haDraft]{
	path: "system ha",
	help: "A pair, or a group of three or four, that acts as one gateway (FGCP).",
	rows: append([]row[haDraft]{
		{key: "group-id", value: number{0, 1023, 0}, def: "0", at: func(h *haDraft) any { return &h.GroupID }, help: "tells clusters on one network apart; the same on all members"},
		{key: "group-name", value: text{max: 32}, at: func(h *haDraft) any { return &h.GroupName }, help: "the same on all members"},
		{key: "mode", value: enum{words: []string{"standalone", "a-p"}, refused: map[string]string{"a-a": "there is no active-active mode; use a-p with virtual clusters, or `config system standalone-cluster`"}}, def: "standalone", at: func(h *haDraft) any { return &h.Mode }, help: "alone, or active-passive"},
		{key: "password", value: secret{key: "password", max: 128}, at: func(h *haDraft) any { return &h.Password }, help: "authenticates members; the same on all of them"},
		{key: "hbdev", value: hbdevs{}, at: func(h *haDraft) any { return &h.HBDev }, help: "heartbeat interfaces; required with mode a-p"},
		{key: "hb-interval", value: number{1, 20, 0}, def: "2", at: func(h *haDraft) any { return &h.count }, help: "between heartbeats, in the unit of the next keyword"},
		{key: "hb-interval-in-milliseconds", value: oneOf("100ms", "10ms"), def: "100ms", at: func(h *haDraft) any { return &h.unit }, help: "the unit of hb-interval"},
		{key: "hb-lost-threshold", value: number{1, 60, 0}, def: "20", at: func(h *haDraft) any { return &h.HBLostThreshold }, help: "heartbeats missed in a row that make a member dead"},
		{key: "priority", value: number{0, 255, 0}, def: "128", at: func(h *haDraft) any { return &h.Priority }, local: true, help: "the higher one becomes active"},
		{key: "override", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.Override }, local: true, help: "priority goes before age, and a better member takes over again"},
		{key: "override-wait-time", value: number{0, 3600, time.Second}, def: "0", at: func(h *haDraft) any { return &h.OverrideWaitTime }, local: true, help: "how long a better member waits before it takes over"},
		{key: "ha-uptime-diff-margin", value: number{1, 65535, time.Second}, def: "300", at: func(h *haDraft) any { return &h.UptimeDiffMargin }, help: "smaller differences of age do not count"},
		{key: "monitor", value: names{max: 15, what: "interface names"}, at: func(h *haDraft) any { return &h.Monitor }, help: "interfaces whose failure moves the cluster"},
		{key: "arps", value: number{1, 60, 0}, def: "5", at: func(h *haDraft) any { return &h.ARPs }, help: "gratuitous ARPs and unsolicited NAs after a takeover"},
		{key: "arps-interval", value: number{1, 20, time.Second}, def: "8", at: func(h *haDraft) any { return &h.ARPsInterval }, help: "between them"},
		{key: "session-pickup", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.SessionPickup }, help: "read for FortiOS's sake; SAs are synchronised in either case"},
		{key: "encryption", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.EncryptionEnabled }, help: "encrypts heartbeats; state always travels under mTLS"},
		{key: "authentication", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.AuthenticationEnabled }, help: "authenticates heartbeats with the password"},
		{key: "sync-config", value: toggle{}, def: "enable", at: func(h *haDraft) any { return &h.SyncConfig }, local: true, help: "shares the configuration with the other members of the pair or group: a change on one of them is on all"},
		{key: "standalone-config-sync", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.StandaloneConfigSync }, local: true, help: "the same for the members of a farm (`config system standalone-cluster`) that have nothing but their own settings different; not in a site"},
		{key: "vcluster-status", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.VClusterStatus }, help: "virtual clusters: parts of the configuration that are active on different members"},
		{key: "vcluster2", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.vcluster2 }, omit: func(*haDraft) bool { return true }, help: "older spelling: two virtual clusters, the second in `config secondary-vcluster`"},
		{key: "vdom", value: names{max: 31}, at: func(h *haDraft) any { return &h.vdom }, omit: func(*haDraft) bool { return true }, help: "older spelling: the virtual domains of virtual cluster 1"},
		{key: "failover-hold-time", value: number{0, 300, time.Second}, def: "0", at: func(h *haDraft) any { return &h.FailoverHoldTime }, help: "how long a changed number of working monitored interfaces must last before it counts"},
		{key: "link-flap-damping", value: toggle{}, def: "enable", at: func(h *haDraft) any { return &h.FlapDamping }, help: "our own: a monitored interface that failed again and again counts only when it has worked for a while, see above"},
		{key: "auto-virtual-mac-interface", value: names{max: 15, what: "interface names"}, at: func(h *haDraft) any { return &h.VirtualMAC }, help: "interfaces whose MAC address moves with the shared addresses, see above"},
		{key: "unicast-status", value: toggle{}, def: "disable", at: func(h *haDraft) any { return &h.UnicastStatus }, help: "a group of three or four members, which `config unicast-peers` names, see above"},
	}, pingserverRows(func(h *haDraft) *Pingserver { return &h.Pingserver })...),
	ignored: append(plain(`key session-sync-dev route-ttl route-wait route-hold multicast-ttl evpn-ttl load-balance-all
		sync-packet-balance hello-holddown gratuitous-arps session-pickup-* link-failed-signal upgrade-mode uninterruptible-upgrade
		uninterruptible-primary-wait standalone-mgmt-vdom ha-mgmt-status ha-eth-type hc-eth-type l2ep-eth-type
		unicast-gateway logical-sn vcluster-id schedule weight cpu-threshold memory-threshold
		http-proxy-threshold ftp-proxy-threshold imap-proxy-threshold nntp-proxy-threshold pop3-proxy-threshold smtp-proxy-threshold
		ha-direct ssd-failover memory-compatible-mode memory-based-failover memory-failover-*
		check-secondary-dev-health ipsec-phase2-proposal inter-cluster-session-sync backup-hbdev`),
		ignored{key: "unicast-hb", only: []string{"disable"}},
		ignored{key: "unicast-hb-peerip"}, ignored{key: "unicast-hb-netmask"}),
	children: []child[haDraft]{
		{path: "vcluster",
			open: func(h *haDraft, _ *source) scope {
				if h.vclusters == nil {
					h.vclusters = newTable(vclusterSpec, "system ha")
				}
				return h.vclusters
			},
			show: func(h *haDraft, p *printer) { p.optional(h.vclusters) }},
		{path: "secondary-vcluster",
			open: func(h *haDraft, _ *source) scope {
				o := &object[VCluster]{def: secondarySpec, val: &h.second, src: newSource("system ha: secondary-vcluster", "", 0)}
				if h.wroteOld == nil {
					o = newObject(secondarySpec, VCluster{ID: 2}, o.src)
					h.second = *o.val
					o.val = &h.second
				}
				h.wroteOld = o.src
				return o
			}},
		{path: "ha-mgmt-interfaces"},
		{path: "unicast-peers",
			open: func(h *haDraft, _ *source) scope {
				if h.unicast == nil {
					h.unicast = newTable(unicastSpec, "system ha")
				}
				return h.unicast
			},
			show: func(h *haDraft, p *printer) { p.optional(h.unicast) }},
		{path: "frup-settings"}, {path: "backup-hbdev"},
	},
}

var vclusterRows = append([]row[VCluster]{
	{key: "priority", value: number{0, 255, 0}, def: "128", at: func(v *VCluster) any { return &v.Priority }, local: true, help: "the higher one becomes active"},
	{key: "override", value: toggle{}, def: "disable", at: func(v *VCluster) any { return &v.Override }, local: true, help: "priority goes before age"},
	{key: "override-wait-time", value: number{0, 3600, time.Second}, def: "0", at: func(v *VCluster) any { return &v.OverrideWaitTime }, local: true, help: "how long a better member waits"},
	{key: "monitor", value: names{max: 15, what: "interface names"}, at: func(v *VCluster) any { return &v.Monitor }, help: "interfaces whose failure moves this virtual cluster"},
	{key: "vdom", value: names{max: 31}, at: func(v *VCluster) any { return &v.VDOM }, help: "virtual domains whose interfaces belong to it"},
	{key: "phase1", value: names{max: 15, what: "names of phase 1 entries"}, at: func(v *VCluster) any { return &v.Phase1 }, help: "our own: tunnels that belong to it, one by one"},
}, pingserverRows(func(v *VCluster) *Pingserver { return &v.Pingserver })...)

var vclusterSpec = &spec[VCluster]{
	path:  "vcluster",
	help:  "Within `config system ha`: one virtual cluster.",
	label: "vcluster",
	entry: "ID (1–30)",
	make:  numbered("vcluster", 1, 30, func(id int) VCluster { return VCluster{ID: id} }),
	rows:  vclusterRows,
}

var secondarySpec = &spec[VCluster]{path: "secondary-vcluster", rows: vclusterRows, ignored: plain("vcluster-id")}

func (ld *loader) buildHA(c *Config) HA {
	d, s := ld.ha.val, ld.ha.src
	h := d.HA
	fault := func(line int, key, format string, args ...any) {
		if !s.bad[key] {
			ld.fault(line, s.object, key, fmt.Sprintf(format, args...))
		}
	}
	h.HBInterval = heartbeatInterval(d.count, d.unit)
	farm := ld.standalone.val.peers != nil && len(ld.standalone.val.peers.entries) > 0
	if h.Mode == "a-p" && len(h.HBDev) == 0 && !farm {
		fault(s.at("mode"), "hbdev", "hbdev is missing: mode a-p needs at least one heartbeat interface, `set hbdev \"port3\" 50`")
	}
	for _, dev := range h.HBDev {
		if slices.ContainsFunc(c.Phase1, func(p Phase1) bool { return p.Name == dev.Name }) {
			fault(s.at("hbdev"), "hbdev", "hbdev (%s) must not be a tunnel: it is the name of a phase 1", dev.Name)
		}
	}
	ld.buildUnicast(&h, farm)
	if h.AuthenticationEnabled && h.Password.Len() == 0 {
		fault(s.at("authentication"), "password", "password is missing: authentication enable needs it")
	}
	if h.EncryptionEnabled && h.Password.Len() == 0 {
		fault(s.at("encryption"), "password", "password is missing: encryption enable needs it")
	}
	lines := map[int]int{}
	if d.vclusters != nil {
		h.VClusters = d.vclusters.values()
		for _, o := range d.vclusters.entries {
			lines[o.val.ID] = o.src.line
		}
	}
	if d.vcluster2 || d.wroteOld != nil || len(d.vdom) > 0 {
		if len(h.VClusters) > 0 {
			fault(s.at("vcluster2", "vdom"), "vcluster2", "the older spelling (vcluster2, vdom, secondary-vcluster) and `config vcluster` exclude each other")
		} else if d.vcluster2 {
			h.VClusterStatus = true
			h.VClusters = []VCluster{{ID: 1, Priority: h.Priority, Override: h.Override, OverrideWaitTime: h.OverrideWaitTime, Monitor: h.Monitor, VDOM: d.vdom, Pingserver: h.Pingserver}}
			lines[1], lines[2] = s.at("vdom", "vcluster2"), s.at("vcluster2")
			if d.wroteOld != nil {
				h.VClusters = append(h.VClusters, d.second)
				lines[2] = d.wroteOld.line
			} else {
				fault(s.at("vcluster2"), "vcluster2", "vcluster2 (enable) needs `config secondary-vcluster`")
			}
		}
	}
	slices.SortFunc(h.VClusters, func(a, b VCluster) int { return a.ID - b.ID })
	switch {
	case h.VClusterStatus && h.Mode != "a-p":
		fault(s.at("vcluster-status", "vcluster2"), "vcluster-status", "vcluster-status (enable) needs `set mode a-p`")
	case h.VClusterStatus && len(h.VClusters) == 0:
		fault(s.at("vcluster-status"), "vcluster-status", "vcluster-status (enable) needs `config vcluster`")
	case !h.VClusterStatus && len(h.VClusters) > 0:
		ld.warn(s.at("vcluster-status"), s.object, "vcluster-status", "config vcluster has no effect without `set vcluster-status enable`")
	}
	ownVDOM, ownTunnel := map[string]int{}, map[string]int{}
	for _, v := range h.VClusters {
		for _, n := range v.VDOM {
			if ownVDOM[n] != 0 {
				fault(lines[v.ID], "vdom", "vdom (%s) belongs to vcluster %d already", echo(n), ownVDOM[n])
			}
			ownVDOM[n] = v.ID
		}
		for _, n := range v.Phase1 {
			if ownTunnel[n] != 0 {
				fault(lines[v.ID], "phase1", "phase1 (%s) belongs to vcluster %d already", echo(n), ownTunnel[n])
			}
			ownTunnel[n] = v.ID
			if !slices.ContainsFunc(c.Phase1, func(p Phase1) bool { return p.Name == n }) {
				fault(lines[v.ID], "phase1", "phase1 (%s) of vcluster %d names no phase 1", echo(n), v.ID)
			}
		}
	}
	return h
}

// standaloneDraft is `config system standalone-cluster`.
type standaloneDraft struct {
	StandaloneCluster
	peers *table[peerDraft]
}

// peerDraft holds the heartbeat interval as it is written.
type peerDraft struct {
	ClusterPeer
	count int
	unit  string
}

func draftStandalone(s StandaloneCluster) standaloneDraft {
	var peers []peerDraft
	for _, p := range s.Peers {
		count, unit := heartbeatWords(p.HBInterval)
		peers = append(peers, peerDraft{p, count, unit})
	}
	return standaloneDraft{StandaloneCluster: s, peers: newTable(peerSpec, "").fill(peers, func(p *peerDraft) string { return strconv.Itoa(p.ID) })}
}

var standaloneSpec = &spec[standaloneDraft]{
	path: "system standalone-cluster",
	help: "A farm of up to 16 members behind a router that balances (FGSP).",
	rows: []row[standaloneDraft]{
		{key: "standalone-group-id", value: number{0, 255, 0}, def: "0", at: func(s *standaloneDraft) any { return &s.GroupID }, help: "the same on all members"},
		{key: "group-member-id", value: number{0, 15, 0}, def: "0", at: func(s *standaloneDraft) any { return &s.MemberID }, local: true, help: "this member, different on each; with mode a-p in `config system ha` this site, the same on its nodes"},
		{key: "encryption", value: toggle{}, def: "disable", at: func(s *standaloneDraft) any { return &s.Encryption }, help: "encrypts heartbeats; state always travels under mTLS"},
		{key: "psksecret", value: secret{key: "psksecret", max: 128}, at: func(s *standaloneDraft) any { return &s.PSK }, help: "authenticates members; required with encryption"},
		{key: "asymmetric-traffic-control", value: oneOf("cps-preferred", "strict-anti-replay"), def: "cps-preferred", at: func(s *standaloneDraft) any { return &s.AsymmetricTrafficControl }, help: "cps-preferred: a dialup tunnel follows its authenticated packets to the member where they keep arriving; strict-anti-replay: it stays with its owner, to whom they are forwarded. What the LAN sends is forwarded to the owner with either, and moves nothing. Anti-replay is always strict here"},
		{key: "monitor-interface", value: names{max: 15, what: "interface names"}, at: func(s *standaloneDraft) any { return &s.MonitorInterface }, help: "interfaces whose failure moves this member's tunnels"},
	},
	ignored: plain("layer2-connection session-sync-dev pingsvr-monitor-interface data-intf-session-sync-dev helper-traffic-bounce utm-traffic-bounce"),
	children: []child[standaloneDraft]{
		{path: "cluster-peer",
			open: func(s *standaloneDraft, _ *source) scope {
				if s.peers == nil {
					s.peers = newTable(peerSpec, "system standalone-cluster")
				}
				return s.peers
			},
			show: func(s *standaloneDraft, p *printer) { p.optional(s.peers) }},
		{path: "monitor-prefix"},
	},
}

var peerSpec = &spec[peerDraft]{
	path:  "cluster-peer",
	help:  "Within `config system standalone-cluster`: one other member.",
	label: "cluster-peer",
	entry: "ID (1–255)",
	make:  numbered("cluster-peer", 1, 255, func(id int) peerDraft { return peerDraft{ClusterPeer: ClusterPeer{ID: id}} }),
	own:   true,
	rows: []row[peerDraft]{
		{key: "peerip", value: address{0}, at: func(p *peerDraft) any { return &p.PeerIP }, local: true, help: "the member's address on the synchronisation link; required"},
		{key: "hb-interval", value: number{1, 20, 0}, def: "2", at: func(p *peerDraft) any { return &p.count }, local: true, help: "between heartbeats, in the unit of the next keyword"},
		{key: "hb-interval-in-milliseconds", value: oneOf("100ms", "10ms"), def: "100ms", at: func(p *peerDraft) any { return &p.unit }, local: true, help: "our own: the unit of hb-interval"},
		{key: "hb-lost-threshold", value: number{1, 60, 0}, def: "10", at: func(p *peerDraft) any { return &p.HBLostThreshold }, local: true, help: "heartbeats missed in a row that make it dead"},
		{key: "ipsec-tunnel-sync", value: toggle{}, def: "enable", at: func(p *peerDraft) any { return &p.IPsecTunnelSync }, local: true, help: "SAs are synchronised with it"},
		{key: "down-intfs-before-sess-sync", value: names{max: 15, what: "interface names"}, at: func(p *peerDraft) any { return &p.DownIntfs }, local: true, help: "interfaces kept down until synchronised"},
	},
	ignored:  plain("peervd syncvd secondary-add-ipsec-routes slave-add-ike-routes ike-monitor ike-monitor-interval ike-heartbeat-interval ike-use-rfc6311 ike-seqjump-speed"),
	children: []child[peerDraft]{{path: "session-sync-filter"}, {path: "syncvd"}},
}

func (ld *loader) buildStandalone() StandaloneCluster {
	d, s := ld.standalone.val, ld.standalone.src
	c := d.StandaloneCluster
	if c.Encryption && c.PSK.Len() == 0 && !s.bad["psksecret"] {
		ld.fault(s.at("encryption"), s.object, "psksecret", "psksecret is missing: encryption enable needs it")
	}
	if d.peers == nil {
		return c
	}
	seen := map[string]int{}
	for _, o := range d.peers.entries {
		p := o.val.ClusterPeer
		p.HBInterval = heartbeatInterval(o.val.count, o.val.unit)
		c.Peers = append(c.Peers, p)
		if !p.PeerIP.IsValid() {
			if !o.src.bad["peerip"] {
				ld.fault(o.src.line, o.src.object, "peerip", "peerip is missing: a cluster peer needs its address on the synchronisation link")
			}
			continue
		}
		if id := seen[p.PeerIP.String()]; id != 0 {
			ld.fault(o.src.at("peerip"), o.src.object, "peerip", fmt.Sprintf("peerip (%s) belongs to cluster-peer %d already", p.PeerIP, id))
		}
		seen[p.PeerIP.String()] = p.ID
	}
	if len(c.Peers) > 15 {
		ld.fault(s.line, s.object, "", fmt.Sprintf("a standalone cluster has at most 15 cluster peers beside this member (it has %d)", len(c.Peers)))
	}
	return c
}

// checkSite: a pair that is one member of a farm (FGCP over FGSP). Its nodes have the
// same group-member-id, so that has to be chosen; what an FGCP pair decides by itself
// is decided by the farm.
func (ld *loader) checkSite(c *Config) {
	if c.Site() == 0 {
		return
	}
	ha, s := ld.ha.src, ld.standalone.src
	why := fmt.Sprintf("in a site: mode a-p together with the cluster peers of `config system standalone-cluster` (line %d)", s.line)
	if !s.wrote("group-member-id") && !s.bad["group-member-id"] {
		ld.fault(s.line, s.object, "group-member-id", "group-member-id is missing: in a site it is the number of the site, the same on its nodes (their own numbers are those of their certificates)")
	}
	if ld.ha.val.VClusterStatus || ld.ha.val.vcluster2 {
		ld.fault(ha.at("vcluster-status", "vcluster2"), "system ha", "vcluster-status", "vcluster-status (enable) is impossible "+why)
	}
	if ld.ha.val.StandaloneConfigSync {
		ld.fault(ha.at("standalone-config-sync"), "system ha", "standalone-config-sync", "standalone-config-sync (enable) is impossible "+why+": each site has addresses of its own")
	}
	if !slices.ContainsFunc(c.Phase1, func(p Phase1) bool { return p.FGSPSync }) {
		ld.fault(ha.at("mode"), "system ha", "mode", "mode (a-p) of a site needs a phase 1 with `set fgsp-sync enable`: who owns its tunnels is its active node")
	}
	for _, key := range []string{"hb-interval", "hb-lost-threshold", "override-wait-time", "monitor"} {
		if ha.wrote(key) {
			ld.warn(ha.at(key), "system ha", key, key+" has no effect "+why)
		}
	}
}
