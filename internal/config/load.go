package config

import (
	"fmt"
	"slices"
	"strings"
)

// Error prints the fault as `FILE:14: vpn1: keylife (100) must be between 120 and 172800`.
// It never holds a secret.
func (f Fault) Error() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File + ":")
	}
	if f.Line != 0 {
		fmt.Fprintf(&b, "%d:", f.Line)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if f.Warning {
		b.WriteString("warning: ")
	}
	if f.Object != "" {
		b.WriteString(f.Object + ": ")
	}
	b.WriteString(f.Message)
	return b.String()
}

// Load reads, completes and checks a configuration of at most MaxSize bytes;
// file only names it in faults. It reports every fault in the order of the
// lines; the Config is nil when any of them is not a warning.
func Load(file string, text []byte) (*Config, []Fault) {
	ld := newLoader(file)
	if len(text) > MaxSize {
		ld.fault(0, "", "", fmt.Sprintf("the configuration must not be larger than %d MiB (it has %d bytes)", MaxSize>>20, len(text)))
		return nil, ld.faults
	}
	ld.read(strings.TrimPrefix(string(text), "\ufeff"))
	c := ld.build()
	return ld.finish(c)
}

// loader holds what has been read so far.
type loader struct {
	file    string
	faults  []Fault
	broken  bool // a fault that is no warning was reported
	cut     bool // maxFaults reached
	entries int
	known   bool // only entries that exist may be edited
	notes   map[string]*note
	noteKey []string

	global     *object[global]
	ha         *object[haDraft]
	standalone *object[standaloneDraft]
	tandem     *object[Tandem]
	interfaces *table[interfaceDraft]
	phase1     *table[phase1Draft]
	phase2     *table[Phase2]
	address    *table[addressDraft]
	address6   *table[addressDraft]
	addrgrp    *table[AddrGroup]
	addrgrp6   *table[AddrGroup]
	policy     *table[Policy]
	route      *table[Route]
	route6     *table[Route]
	bgp        *object[bgpDraft]
	settings   *object[settings]

	linkMonitors *table[LinkMonitor]

	ca            *table[CACertificate]
	local         *table[LocalCertificate]
	crl           *table[CRL]
	remote        *table[RemoteCertificate]
	certSetting   *object[CertificateSetting]
	userPeer      *table[UserPeer]
	userPeerGroup *table[UserPeerGroup]
	users         *table[User]
	userGroups    *table[UserPeerGroup]
}

// note is one keyword that has no effect: the first place, and how many more.
type note struct {
	fault Fault
	more  int
}

func newLoader(file string) *loader {
	ld := &loader{file: file, notes: map[string]*note{}}
	for _, b := range blocks {
		b.init(ld)
	}
	return ld
}

func (ld *loader) add(f Fault) {
	f.File = ld.file
	if !f.Warning {
		ld.broken = true
	}
	if len(ld.faults) >= maxFaults {
		if !f.Warning && !ld.cut {
			ld.cut = true
			ld.faults = append(ld.faults, Fault{File: ld.file, Message: fmt.Sprintf("more than %d faults: the rest is not shown", maxFaults)})
		}
		return
	}
	ld.faults = append(ld.faults, f)
}

func (ld *loader) fault(line int, object, key, msg string) {
	ld.add(Fault{Line: line, Object: object, Key: key, Message: msg})
}

func (ld *loader) warn(line int, object, key, msg string) {
	ld.add(Fault{Line: line, Object: object, Key: key, Message: msg, Warning: true})
}

// hint is didYouMean while faults are still reported.
func (ld *loader) hint(got string, known []string) string {
	if len(ld.faults) >= maxFaults {
		return ""
	}
	return didYouMean(got, known)
}

// ignoredKey notes a keyword without effect: one warning for each keyword of a
// block, however many entries carry it.
func (ld *loader) ignoredKey(line int, object, block, key string) {
	id := block + "\x00" + key
	if n := ld.notes[id]; n != nil {
		n.more++
		return
	}
	ld.notes[id] = &note{fault: Fault{Line: line, Object: object, Key: key, Warning: true}}
	ld.noteKey = append(ld.noteKey, id)
}

func (ld *loader) finish(c *Config) (*Config, []Fault) {
	for _, id := range ld.noteKey {
		n := ld.notes[id]
		n.fault.Message = n.fault.Key + " is read and has no effect here"
		if n.more == 1 {
			n.fault.Message += " (once more below)"
		} else if n.more > 1 {
			n.fault.Message += fmt.Sprintf(" (%d times more below)", n.more)
		}
		ld.add(n.fault)
	}
	slices.SortStableFunc(ld.faults, func(a, b Fault) int {
		switch { // a fault without a line concerns the whole: last
		case a.Line == b.Line:
			return 0
		case a.Line == 0 || b.Line != 0 && a.Line > b.Line:
			return 1
		}
		return -1
	})
	if ld.broken {
		return nil, ld.faults
	}
	return c, ld.faults
}

// frame is an open config or edit.
type frame struct {
	scope scope
	line  int
	edit  bool
	what  string
}

var verbs = []string{"config", "edit", "set", "unset", "append", "next", "end"}

func (ld *loader) read(text string) {
	lx := &lexer{text: text, line: 1, fault: func(line int, msg string) { ld.fault(line, "", "", msg) }}
	stack := []frame{{scope: root{}}}
	for {
		st, ok := lx.next()
		if !ok {
			break
		}
		top := stack[len(stack)-1]
		object := ""
		if len(stack) > 1 {
			object = top.what
		}
		push := func(s scope, edit bool, what string) bool {
			if len(stack) > maxDepth {
				ld.fault(st.line, object, "", fmt.Sprintf("blocks are nested deeper than %d levels", maxDepth))
				return false
			}
			stack = append(stack, frame{scope: s, line: st.line, edit: edit, what: what})
			return true
		}
		switch st.verb {
		case "config":
			path := strings.Join(texts(st.words), " ")
			if path == "" {
				ld.fault(st.line, object, "", "config needs the name of a block")
				path = "?"
				if !push(skip{}, false, "config") {
					return
				}
				continue
			}
			opened := top.scope.config(ld, st, path)
			if o, ok := opened.(interface{ from(line int) }); ok {
				o.from(st.line)
			}
			if !push(opened, false, "config "+echoPath(path)) {
				return
			}
		case "edit":
			var s scope = skip{}
			what := "edit"
			if len(st.words) != 1 {
				ld.fault(st.line, object, "", "edit needs one name")
			} else {
				what = "edit " + echo(st.words[0].text)
				if top.edit {
					ld.fault(st.line, object, "", fmt.Sprintf("edit %s begins before the next of line %d's edit", echo(st.words[0].text), top.line))
					stack = stack[:len(stack)-1] // take it as if next had been written
					top = stack[len(stack)-1]
				}
				s = top.scope.edit(ld, st, st.words[0].text)
			}
			if !push(s, true, what) {
				return
			}
		case "set", "unset", "append":
			top.scope.statement(ld, st)
		case "next", "end":
			if len(st.words) > 0 {
				ld.fault(st.line, object, "", st.verb+" takes nothing behind it")
			}
			if st.verb == "next" && !top.edit {
				ld.fault(st.line, object, "", "next without an edit")
				continue
			}
			if st.verb == "next" {
				stack = stack[:len(stack)-1]
				continue
			}
			if top.edit { // end closes an open edit as well
				stack = stack[:len(stack)-1]
			}
			if len(stack) == 1 {
				ld.fault(st.line, "", "", "end without a config")
				continue
			}
			stack = stack[:len(stack)-1]
		default:
			msg := fmt.Sprintf("a line must begin with %s, not with %s", orList(verbs), echo(st.verb))
			if st.verb == "delete" || st.verb == "purge" || st.verb == "rename" || st.verb == "move" || st.verb == "clone" {
				msg = fmt.Sprintf("%s belongs to the command line: a configuration says what there is; leave the entry out", st.verb)
			}
			ld.fault(st.line, object, "", msg)
		}
	}
	if len(stack) > 1 {
		top := stack[len(stack)-1]
		closer := "end"
		if top.edit {
			closer = "next"
		}
		ld.fault(top.line, "", "", fmt.Sprintf("`%s` is not closed: %s is missing", top.what, closer))
	}
}

// echoPath prints the name of a block as it was written, short and printable.
func echoPath(path string) string {
	if len(path) > 64 || !isPrintable(path) {
		return echo(path)
	}
	return path
}

// root is the level of the file itself.
type root struct{}

func (root) name() string { return "" }
func (root) statement(ld *loader, st stmt) {
	ld.fault(st.line, "", "", st.verb+" stands outside of every block: write config PATH first")
}
func (root) edit(ld *loader, st stmt, name string) scope {
	ld.fault(st.line, "", "", "edit stands outside of every block: write config PATH first")
	return skip{}
}
func (root) config(ld *loader, st stmt, path string) scope {
	var known []string
	for _, b := range blocks {
		if b.path == path {
			return b.open(ld)
		}
		known = append(known, b.path)
	}
	if why := refusedBlocks[path]; why != "" {
		ld.fault(st.line, "", "", fmt.Sprintf("`config %s` is refused: %s", path, why))
		return skip{}
	}
	if ignoredBlock(path) {
		ld.ignoredKey(st.line, "", "", "config "+path)
		return skip{}
	}
	msg := fmt.Sprintf("unknown block `config %s`", echoPath(path))
	if n := nearest(path, known); n != "" {
		msg += "; did you mean `config " + n + "`?"
	} else {
		msg += "; known are " + strings.Join(known, ", ")
	}
	ld.fault(st.line, "", "", msg)
	return skip{}
}

// refusedBlocks would change what passes the gateway if they were skipped.
var refusedBlocks = map[string]string{
	"vpn ipsec phase1":           "policy-based tunnels do not exist here; write `config vpn ipsec phase1-interface`",
	"vpn ipsec phase2":           "policy-based tunnels do not exist here; write `config vpn ipsec phase2-interface`",
	"vpn ipsec manualkey":        "manual keys cannot be replicated safely; write `config vpn ipsec phase1-interface`",
	"system cluster-sync":        "it is the older spelling; write `config cluster-peer` within `config system standalone-cluster`",
	"firewall policy6":           "IPv6 belongs to `config firewall policy` with srcaddr6 and dstaddr6",
	"firewall local-in-policy":   "traffic to the gateway itself is not filtered here; use nftables",
	"firewall local-in-policy6":  "traffic to the gateway itself is not filtered here; use nftables",
	"firewall interface-policy":  "only `config firewall policy` filters here",
	"firewall security-policy":   "only `config firewall policy` filters here",
	"firewall central-snat-map":  "addresses are not translated here",
	"firewall vip":               "addresses are not translated here",
	"firewall ippool":            "addresses are not translated here",
	"vdom":                       "virtual domains are not separated here; write their blocks at the top level",
	"global":                     "there are no virtual domains here; write its blocks at the top level",
	"vpn ipsec concentrator":     "policy-based tunnels do not exist here",
	"vpn ipsec forticlient":      "it belongs to IKEv1",
	"router policy":              "only `config router static` and `config router static6` route here",
	"firewall proxy-policy":      "only `config firewall policy` filters here",
	"firewall shaping-policy":    "traffic is not shaped here",
	"firewall multicast-policy":  "only `config firewall policy` filters here",
	"firewall multicast-policy6": "only `config firewall policy` filters here",
}

// Blocks of FortiOS that neither carry nor protect tunnels. They load with a warning.
var (
	ignoredFamilies = []string{
		"alertemail ", "antivirus ", "application ", "authentication ", "automation ", "certificate ", "dlp ", "dnsfilter ",
		"emailfilter ", "endpoint-control ", "extender-controller ", "file-filter ", "icap ", "ips ", "log ", "monitoring ",
		"report ", "sctp-filter ", "ssh-filter ", "switch-controller ", "user ", "videofilter ", "virtual-patch ", "voip ",
		"waf ", "wanopt ", "web-proxy ", "webfilter ", "wireless-controller ", "ztna ", "system replacemsg ",
		"system snmp ", "system autoupdate ", "system dhcp", "firewall service ", "firewall schedule ", "firewall wildcard-fqdn ",
		"system sdwan", "vpn ssl ", "vpn certificate ", "firewall ssl", "firewall internet-service",
	}
	ignoredPaths = strings.Fields(`
		system/accprofile system/admin system/api-user system/automation-action system/automation-destination
		system/automation-stitch system/automation-trigger system/central-management system/console system/custom-language
		system/ddns system/dns system/dns-database system/dns-server system/email-server system/external-resource
		system/fortiguard system/fortisandbox system/federated-upgrade system/ftm-push system/ike system/ipam
		system/lldp system/mac-address-table system/management-tunnel system/mobile-tunnel
		system/nat64 system/netflow system/network-visibility system/np6 system/npu system/ntp system/object-tagging
		system/password-policy system/physical-switch system/probe-response system/proxy-arp system/ptp
		system/replacemsg-group system/replacemsg-image system/resource-limits system/saml system/sdn-connector
		system/session-helper system/session-ttl system/sflow system/sit-tunnel system/sms-server
		system/speed-test-schedule system/speed-test-server system/sso-admin system/standalone-session-sync system/storage
		system/stp system/switch-interface system/tos-based-priority system/vdom system/vdom-dns system/vdom-exception
		system/vdom-link system/vdom-property system/virtual-switch system/virtual-wire-pair system/vxlan
		system/wccp system/zone system/fabric-vpn system/csf system/auto-install system/auto-script system/fips-cc
		system/alarm system/arp-table system/dedicated-mgmt system/evpn system/geoip-override system/gre-tunnel
		system/ipv6-neighbor-cache system/ipv6-tunnel system/isf-queue-profile system/modem system/ndp-proxy
		system/ssh-config system/acme system/affinity-packet-redistribution system/affinity-interrupt
		system/vne-tunnel system/pppoe-interface system/geneve system/smc-ntp system/device-upgrade
		firewall/city firewall/country firewall/region firewall/ldb-monitor firewall/profile-group
		firewall/profile-protocol-options firewall/proxy-address firewall/proxy-addrgrp firewall/multicast-address
		firewall/multicast-address6 firewall/traffic-class firewall/vendor-mac firewall/vendor-mac-summary firewall/global
		firewall/auth-portal firewall/identity-based-route firewall/ipmacbinding firewall/on-demand-sniffer
		firewall/sniffer firewall/ttl-policy firewall/access-proxy firewall/decrypted-traffic-mirror
		router/access-list router/access-list6 router/aspath-list router/auth-path router/bfd router/bfd6
		router/community-list router/extcommunity-list router/isis router/key-chain router/multicast router/multicast6
		router/multicast-flow router/ospf router/ospf6 router/prefix-list router/prefix-list6 router/rip router/ripng
		router/route-map router/setting vpn/l2tp vpn/pptp vpn/ocvpn vpn/kmip-server vpn/qkd vpn/ipsec/fec`)
)

func ignoredBlock(path string) bool {
	return slices.ContainsFunc(ignoredFamilies, func(f string) bool { return strings.HasPrefix(path, f) }) ||
		slices.Contains(ignoredPaths, strings.ReplaceAll(path, " ", "/"))
}
