package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// global is `config system global`.
type global struct{ Hostname string }

var globalSpec = &spec[global]{
	path: "system global",
	help: "The node itself.",
	rows: []row[global]{
		{key: "hostname", value: text{max: 35, check: hostName}, at: func(g *global) any { return &g.Hostname }, local: true, help: "the node's name in logs and status; empty: the machine's"},
	},
	ignored: plain(`admin* alias allow-traffic-redirect anti-replay arp-max-entry auth-* auto-auth-extension-device autorun-log-fsck
		av-* batch-cmdb block-session-timer bfd br-fdb-max-entry bridge-delay cert-chain-max cfg-* check-* cli-audit-log cloud-communication
		clt-cert-req cmdbsvr-affinity compliance-* cpu-use-threshold csr-ca-attribute daily-restart default-service-source-port
		device-* dh-params dhcp-lease-backup-interval dnsproxy-* dst edit-vdom-prompt extender-* early-tcp-npu-session fds-*
		fgd-* forti* gui-* hardware-* ha-affinity honor-df hw-switch-ether-filter ike-embryonic-limit interface-* internal-switch-* ip-* ipsec-*
		ipv6-* irq-time-accounting language ldapconntimeout lldp-* log-* long-vdom-name management-* max-* mc-ttl-notchange
		memory-use-threshold* miglog* multi-factor-authentication ndp-max-entry per-user-* pmtu-discovery policy-* post-login-banner
		pre-login-banner private-data-encryption proxy-* qu* radius-port reboot-upon-config-restore refresh remoteauthtimeout
		reset-sessionless-tcp restart-time revision-* scanunit-* security-rating-* send-pmtu-icmp sflowd-* snat-route-change
		special-file-23-support speedtest-* split-port split-port-mode ssd-trim-* ssh-* ssl-* sslvpn-* strict-dirty-session-check
		strong-crypto switch-* sys-* syslog-affinity tcp-* tftp timezone traffic-* two-factor-* udp-idle-timer url-filter-* user-*
		vdom-mode vdom-admin vip-arp-range virtual-switch-vlan virtual-server-* vpn-ems-sn-check wad-* wifi-* wimax-4g-usb wireless-*`),
}

func hostName(s string) string {
	if strings.ContainsAny(s, " \t") {
		return "must not hold spaces"
	}
	return ""
}

var tandemSpec = &spec[Tandem]{
	path: "system tandem",
	help: "What FortiOS has no word for.",
	rows: []row[Tandem]{
		{key: "data-plane", value: oneOf("auto", "kernel", "userspace"), def: "auto", at: func(t *Tandem) any { return &t.DataPlane }, local: true, help: "who seals and opens ESP; auto takes what the machine can do"},
		{key: "quorum-loss", value: oneOf("continue", "stop"), def: "continue", at: func(t *Tandem) any { return &t.QuorumLoss }, help: "what a member does that is cut off from the majority"},
		{key: "witness", value: witness{}, at: func(t *Tandem) any { return &t.Witness }, help: "a voter that holds no tunnel (`tandem witness`): its address and node number"},
		{key: "cluster-dir", value: text{max: 255, what: "an absolute path", check: absolute}, def: "/etc/tandem/cluster", at: func(t *Tandem) any { return &t.ClusterDir }, local: true, help: "certificates and keys made by `tandem cluster init`"},
		{key: "state-dir", value: text{max: 255, what: "an absolute path", check: absolute}, def: "/var/lib/tandem", at: func(t *Tandem) any { return &t.StateDir }, local: true, help: "the node's identity and notes; no keys"},
		{key: "admin-socket", value: text{max: 107, what: "an absolute path", check: absolute}, def: "/run/tandem/admin.sock", at: func(t *Tandem) any { return &t.AdminSocket }, local: true, help: "Unix socket of the commands"},
		{key: "metrics-address", value: text{max: 63, what: "an address and port", check: addrPort}, at: func(t *Tandem) any { return &t.MetricsAddr }, local: true, help: "Prometheus and health checks; empty: none"},
		{key: "log-level", value: oneOf("debug", "info", "warning", "error"), def: "info", at: func(t *Tandem) any { return &t.LogLevel }, local: true, help: "the least level that is logged"},
		{key: "key-log", value: text{max: 255, what: "an absolute path", check: absolute}, at: func(t *Tandem) any { return &t.KeyLog }, local: true, help: "debugging only: writes every key to this file; empty: never"},
	},
}

func absolute(s string) string {
	if strings.HasPrefix(s, "@DIR@") {
		return "must be an absolute path: put a folder of your own in place of @DIR@, as `tandem lab` does"
	}
	if !strings.HasPrefix(s, "/") {
		return "must be an absolute path"
	}
	return ""
}

func addrPort(s string) string {
	host, port, ok := strings.Cut(s, ":")
	if ok && host == "" {
		if n, err := strconv.Atoi(port); err == nil && n > 0 && n < 65536 {
			return ""
		}
	}
	if ap, err := netip.ParseAddrPort(s); err != nil || ap.Port() == 0 {
		return "must be an address and port (127.0.0.1:9090, [::1]:9090 or :9090)"
	}
	return ""
}

func (ld *loader) buildTandem() Tandem {
	t := *ld.tandem.val
	if t.KeyLog != "" {
		ld.warn(ld.tandem.src.at("key-log"), "system tandem", "key-log", "KEY-LOG IS ON: every key of every tunnel is written to "+echo(t.KeyLog)+"; whoever reads that file reads the traffic. Remove it when the debugging is over")
	}
	return t
}

// interfaceDraft is an interface as it is written.
type interfaceDraft struct {
	Interface
	mtu         int
	mtuOverride bool
	extra       *table[extraAddr] // config secondaryip
	extra6      *table[extraAddr] // ip6-extra-addr, named by the prefix
}

// extraAddr is a further address of an interface.
type extraAddr struct {
	name string
	ip   []netip.Prefix
}

func draftInterface(i Interface) interfaceDraft {
	d := interfaceDraft{Interface: i, mtu: 1500}
	if i.MTU != 0 {
		d.mtu, d.mtuOverride = i.MTU, true
	}
	var four, six []extraAddr
	for _, p := range i.IP {
		if p.Addr().Is4() {
			four = append(four, extraAddr{name: strconv.Itoa(len(four)), ip: []netip.Prefix{p}})
		} else {
			six = append(six, extraAddr{name: p.String()})
		}
	}
	name := func(e *extraAddr) string { return e.name }
	d.extra = newTable(secondaryIPSpec, "").fill(four[min(1, len(four)):], name)
	d.extra6 = newTable(extra6Spec, "").fill(six[min(1, len(six)):], name)
	return d
}

var interfaceTypes = []string{"physical", "vlan", "aggregate", "redundant", "tunnel", "vdom-link", "loopback", "switch", "hard-switch", "vap-switch",
	"wl-mesh", "fext-wan", "vxlan", "geneve", "hdlc", "switch-vlan", "emac-vlan", "ssl", "lan-extension"}

var interfaceSpec = &spec[interfaceDraft]{
	path:  "system interface",
	help:  "Addresses of interfaces that exist; a tunnel interface has the name of its phase 1. In a cluster of mode a-p, ip and ip6-address of the other interfaces are the shared addresses that move with the active member.",
	entry: "NAME (up to 15 bytes)",
	make: func(name string, _ int) (interfaceDraft, string) {
		d := interfaceDraft{Interface: Interface{Name: name}}
		if msg := interfaceName(name); msg != "" {
			return d, "the name of an interface " + msg
		}
		return d, ""
	},
	rows: []row[interfaceDraft]{
		{key: "vdom", value: text{max: 31}, def: "root", at: func(i *interfaceDraft) any { return &i.VDOM }, help: "virtual domain; only virtual clusters look at it"},
		{key: "ip", value: firstOf{4}, at: func(i *interfaceDraft) any { return &i.IP }, help: "the shared address, or the tunnel interface's own"},
		{key: "ip6", value: firstOf{6}, at: func(i *interfaceDraft) any { return &i.IP }, omit: func(*interfaceDraft) bool { return true }, help: "shorter spelling of ip6-address in `config ipv6`"},
		{key: "management-ip", value: firstOf{4}, at: func(i *interfaceDraft) any { return &i.ManagementIP }, local: true, help: "an address that stays on this node"},
		{key: "management-ip6", value: firstOf{6}, at: func(i *interfaceDraft) any { return &i.ManagementIP }, local: true, help: "our own: an IPv6 address that stays on this node"},
		{key: "remote-ip", value: network{family: 4, host: true, none: true}, at: func(i *interfaceDraft) any { return &i.RemoteIP }, help: "the other end of a tunnel interface"},
		{key: "type", value: oneOf(interfaceTypes...), def: "physical", at: func(i *interfaceDraft) any { return &i.Type }, help: "read for FortiOS's sake; interfaces are made by the system, loopback and tunnel ones by Tandem"},
		{key: "mtu-override", value: toggle{}, def: "disable", at: func(i *interfaceDraft) any { return &i.mtuOverride }, help: "sets the MTU"},
		{key: "mtu", value: number{576, 65535, 0}, def: "1500", at: func(i *interfaceDraft) any { return &i.mtu }, help: "bytes; needs mtu-override enable"},
	},
	ignored: plain(`allowaccess alias description role snmp-index interface status speed device-identification* device-user-identification
		lldp-* estimated-* monitor-bandwidth src-check stp* vrf mode distance priority defaultgw dns-server-override dns-server-protocol
		dhcp-* cli-conn-status fortilink switch-controller-* gwdetect ping-serv-status detect* ha-priority fail-* ipunnumbered
		username password pppoe-* idle-timeout disc-retry-timeout padt-retry-timeout service-name ac-name lcp-* auth-* pptp-*
		arpforward ndiscforward broadcast-forward bfd* l2forward icmp-* reachable-time vlanforward stpforward* ips-sniffer-mode
		ident-accept ipmac subst macaddr virtual-mac substitute-dst-mac netbios-forward wins-ip dedicated-to trust-ip* ring-* wccp
		netflow-* sflow-sampler drop-overlapped-fragment drop-fragment scan-botnet-connections sample-* polling-interval explicit-*
		proxy-captive-portal tcp-mss mediatype inbandwidth outbandwidth *shaping* disconnect-threshold spillover-threshold
		ingress-* egress-* weight external vlan-protocol vlanid trunk forward-domain member lacp-* system-id* min-links* algorithm
		link-up-delay aggregate* redundant-interface managed-device devindex vindex switch security-* captive-portal replacemsg-*
		ike-saml-server color secondary-IP forward-error-correction preserve-session-route swc-* eap-* measured-* bandwidth-measure-time
		swc-first-create exclude-signatures telemetry-discover default-purdue-level select-profile-30a-35b np-qos-profile
		broadcast-forticlient-discovery endpoint-compliance fortiheartbeat ap-discover fec mirroring-*`),
	children: []child[interfaceDraft]{
		{path: "ipv6",
			open: func(i *interfaceDraft, s *source) scope {
				return &object[interfaceDraft]{def: ipv6Spec, val: i, src: s}
			},
			show: func(i *interfaceDraft, p *printer) {
				p.optional(&object[interfaceDraft]{def: ipv6Spec, val: i})
			}},
		{path: "secondaryip",
			open: func(i *interfaceDraft, _ *source) scope {
				if i.extra == nil {
					i.extra = newTable(secondaryIPSpec, i.Name)
				}
				return i.extra
			},
			show: func(i *interfaceDraft, p *printer) { p.optional(i.extra) }},
		{path: "vrrp"}, {path: "client-options"}, {path: "tagging"}, {path: "dhcp-snooping-server-list"}, {path: "l2tp-client-settings"}, {path: "egress-queues"},
	},
}

var ipv6Spec = &spec[interfaceDraft]{
	path: "ipv6",
	help: "Within an entry of `config system interface`.",
	rows: []row[interfaceDraft]{
		{key: "ip6-address", value: firstOf{6}, at: func(i *interfaceDraft) any { return &i.IP }, help: "the shared IPv6 address, or the tunnel interface's own"},
	},
	ignored: plain(`ip6-allowaccess ip6-mode ip6-send-adv ip6-manage-flag ip6-other-flag ip6-max-interval ip6-min-interval ip6-link-mtu ra-send-mtu
		ip6-reachable-time ip6-retrans-time ip6-default-life ip6-hop-limit ip6-dns-server-override ip6-prefix-mode ip6-subnet
		ip6-upstream-interface ip6-delegated-prefix-iaid autoconf nd-* unique-autoconf-addr interface-identifier vrip6_link_local vrrp-virtual-mac6
		dhcp6-* icmp6-send-redirect cli-conn6-status ip6-adv-rio ip6-rdnss-*`),
	children: []child[interfaceDraft]{
		{path: "ip6-extra-addr",
			open: func(i *interfaceDraft, _ *source) scope {
				if i.extra6 == nil {
					i.extra6 = newTable(extra6Spec, i.Name)
				}
				return i.extra6
			},
			show: func(i *interfaceDraft, p *printer) { p.optional(i.extra6) }},
		{path: "ip6-prefix-list"}, {path: "ip6-delegated-prefix-list"}, {path: "vrrp6"}, {path: "dhcp6-iapd-list"}, {path: "ip6-route-list"}, {path: "ip6-rdnss-list"}, {path: "ip6-dnssl-list"}, {path: "client-options"},
	},
}

var secondaryIPSpec = &spec[extraAddr]{
	path:  "secondaryip",
	help:  "Within an entry of `config system interface`: a further IPv4 address.",
	label: "secondaryip",
	entry: "ID",
	make:  numbered("secondaryip", 0, 65535, func(id int) extraAddr { return extraAddr{name: strconv.Itoa(id)} }),
	rows: []row[extraAddr]{
		{key: "ip", value: firstOf{4}, at: func(e *extraAddr) any { return &e.ip }, help: "address and mask; required"},
	},
	ignored: plain("allowaccess gwdetect ping-serv-status detectserver detectprotocol ha-priority secip-relay-ip"),
}

var extra6Spec = &spec[extraAddr]{
	path:  "ip6-extra-addr",
	help:  "Within `config ipv6` of an interface: a further IPv6 address, which is the name of the entry.",
	label: "ip6-extra-addr",
	entry: "ADDRESS/LENGTH",
	make: func(name string, _ int) (extraAddr, string) {
		e := extraAddr{name: name}
		msg := firstOf{6}.parse([]word{{text: name}}, &e.ip)
		if msg != "" {
			msg = "ip6-extra-addr " + msg
		}
		return e, msg
	},
}

func (ld *loader) buildInterfaces() (out []Interface) {
	tunnels := map[string]bool{}
	for _, o := range ld.phase1.entries {
		tunnels[o.val.Name] = true
	}
	owner := map[string]string{}
	for _, o := range ld.interfaces.entries {
		d, s := o.val, o.src
		i := d.Interface
		if d.extra != nil {
			for _, e := range d.extra.entries {
				if len(e.val.ip) == 0 && !e.src.bad["ip"] {
					ld.fault(e.src.line, e.src.object, "ip", "ip is missing: a secondary address needs one")
				}
				i.IP = append(i.IP, e.val.ip...)
			}
		}
		if d.extra6 != nil {
			for _, e := range d.extra6.entries {
				i.IP = append(i.IP, e.val.ip...)
			}
		}
		byFamily := func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() }
		slices.SortStableFunc(i.IP, byFamily)
		slices.SortStableFunc(i.ManagementIP, byFamily)
		switch {
		case d.mtuOverride:
			i.MTU = d.mtu
		case s.wrote("mtu"):
			ld.warn(s.at("mtu"), s.object, "mtu", fmt.Sprintf("mtu (%d) has no effect without `set mtu-override enable`", d.mtu))
		}
		if i.RemoteIP.IsValid() && i.Type != "tunnel" && !tunnels[i.Name] {
			ld.warn(s.at("remote-ip"), s.object, "remote-ip", "remote-ip has no effect: no phase 1 has the name of this interface")
		}
		for _, p := range slices.Concat(i.IP, i.ManagementIP) {
			key := p.Addr().String()
			if other := owner[key]; other != "" {
				k := "ip"
				if slices.Contains(i.ManagementIP, p) {
					k = "management-ip"
				}
				ld.fault(s.at(k), s.object, k, fmt.Sprintf("%s (%s) belongs to interface %s already", k, p.Addr(), other))
			}
			owner[key] = i.Name
		}
		out = append(out, i)
	}
	if len(out) > 0 {
		ld.checkInterfaceNames(tunnels)
	}
	return out
}

// checkInterfaceNames warns of names that no interface block carries. It is no
// fault: a node may leave out interfaces whose addresses others manage.
func (ld *loader) checkInterfaceNames(tunnels map[string]bool) {
	known := []string{}
	for _, o := range ld.interfaces.entries {
		known = append(known, o.val.Name)
	}
	for _, o := range ld.phase1.entries {
		if n := o.val.Interface; n != "" && !slices.Contains(known, n) && !tunnels[n] {
			ld.warn(o.src.at("interface"), o.src.object, "interface", fmt.Sprintf("interface (%s) is not among those of `config system interface`%s", echo(n), ld.hint(n, known)))
		}
	}
}
