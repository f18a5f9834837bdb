package config

import (
	"fmt"
	"strings"
	"testing"
)

// Blocks that the bad configurations below build on.
const (
	goodPhase1 = "config vpn ipsec phase1-interface\nedit vpn1\nset interface wan\nset remote-gw 203.0.113.1\nset psksecret s3cretvalue\nnext\nend\n"
	goodDialup = "config vpn ipsec phase1-interface\nedit dial\nset type dynamic\nset interface wan\nset psksecret s3cretvalue\nnext\nend\n"
)

// phase1 and phase2 wrap keywords into an entry that lacks nothing else.
func phase1(lines string) string {
	return "config vpn ipsec phase1-interface\nedit vpn1\nset interface wan\nset remote-gw 203.0.113.1\nset psksecret s3cretvalue\n" + lines + "\nnext\nend\n"
}

func phase2(lines string) string {
	return goodPhase1 + "config vpn ipsec phase2-interface\nedit p2\nset phase1name vpn1\n" + lines + "\nnext\nend\n"
}

// bgp is a speaker that lacks nothing, in 13 lines, and then some.
func bgp(lines string) string {
	return "config router bgp\nset as 65001\nset router-id 10.0.0.1\nconfig neighbor\nedit 10.0.0.254\nset remote-as 65000\nnext\nend\n" +
		"config network\nedit 1\nset prefix 192.0.2.31/32\nnext\nend\n" + lines + "\nend\n"
}

func monitor(lines string) string {
	if lines != "" {
		lines += "\n"
	}
	return "config system link-monitor\nedit m\n" + lines + "next\nend\n"
}

func ha(lines string) string { return "config system ha\n" + lines + "\nend\n" }

// site is a node of a pair that is one member of a farm.
func site(lines string) string {
	return "config system standalone-cluster\n" + lines + "config cluster-peer\nedit 1\nset peerip 10.0.0.1\nnext\nend\nend\n"
}

var fgspPhase1 = strings.Replace(goodPhase1, "next\n", "set fgsp-sync enable\nnext\n", 1)

// Each kind of bad configuration gets its own clear error, and only that one.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // whole faults; warnings are left out
	}{
		// The language.
		{"unknown verb", "config system ha\nlet mode a-p\nend\n", []string{"f:2: config system ha: a line must begin with config, edit, set, unset, append, next or end, not with let"}},
		{"command-line verb", "config vpn ipsec phase2-interface\ndelete x\nend\n", []string{"f:2: config vpn ipsec phase2-interface: delete belongs to the command line: a configuration says what there is; leave the entry out"}},
		{"unknown block", "config vpn ipsec phase1-interfce\nend\n", []string{"f:1: unknown block `config vpn ipsec phase1-interfce`; did you mean `config vpn ipsec phase1-interface`?"}},
		{"config without path", "config\nend\n", []string{"f:1: config needs the name of a block"}},
		{"block not closed", "config system ha\nset priority 3\n", []string{"f:1: `config system ha` is not closed: end is missing"}},
		{"entry not closed", strings.TrimSuffix(goodPhase1, "next\nend\n"), []string{"f:2: `edit vpn1` is not closed: next is missing"}},
		{"end without config", "end\n", []string{"f:1: end without a config"}},
		{"next without edit", "config system ha\nnext\nend\n", []string{"f:2: config system ha: next without an edit"}},
		{"edit without next", "config vpn ipsec phase2-interface\nedit a\nedit b\nnext\nend\n", []string{
			"f:2: a: phase1name is missing: a phase 2 belongs to a phase 1",
			"f:3: edit a: edit b begins before the next of line 2's edit",
			"f:3: b: phase1name is missing: a phase 2 belongs to a phase 1"}},
		{"edit without name", "config vpn ipsec phase2-interface\nedit\nnext\nend\n", []string{"f:2: config vpn ipsec phase2-interface: edit needs one name"}},
		{"edit in a block without entries", ha("edit 1\nnext"), []string{"f:2: system ha: `config system ha` has no entries: edit has no place here"}},
		{"set outside of an entry", "config vpn ipsec phase1-interface\nset keylife 100\nend\n", []string{"f:2: vpn ipsec phase1-interface: set stands outside of an entry: write edit NAME (up to 15 bytes) first"}},
		{"set outside of every block", "set keylife 100\n", []string{"f:1: set stands outside of every block: write config PATH first"}},
		{"unknown nested block", ha("config vclusters\nend"), []string{"f:2: system ha: `config system ha` holds no block vclusters; it knows vcluster, secondary-vcluster, ha-mgmt-interfaces, unicast-peers, frup-settings or backup-hbdev"}},
		{"group without members", ha("set mode a-p\nset hbdev a 1\nset unicast-status enable"), []string{"f:4: system ha: unicast-status (enable) needs `config unicast-peers` with the other members"}},
		{"group of two", ha("set mode a-p\nset hbdev a 1\nset unicast-status enable\nconfig unicast-peers\nedit 1\nset peer-ip 172.31.1.2\nnext\nend"), []string{"f:4: system ha: unicast-status (enable) with one peer would be a pair, whose nodes find each other on hbdev: leave it out, or name two or three peers"}},
		{"group of five", ha("set mode a-p\nset hbdev a 1\nset unicast-status enable\nconfig unicast-peers\nedit 1\nset peer-ip 172.31.1.2\nnext\nedit 2\nset peer-ip 172.31.1.3\nnext\nedit 3\nset peer-ip 172.31.1.4\nnext\nedit 4\nset peer-ip 172.31.1.5\nnext\nend"), []string{"f:4: system ha: an FGCP group has at most 4 members: 4 peers beside this one are too many (`config system standalone-cluster` has up to 16)"}},
		{"group of one alone", ha("set unicast-status enable\nconfig unicast-peers\nedit 1\nset peer-ip 172.31.1.2\nnext\nedit 2\nset peer-ip 172.31.1.3\nnext\nend"), []string{"f:2: system ha: unicast-status (enable) needs `set mode a-p`"}},
		{"member twice, member without address", ha("set mode a-p\nset hbdev a 1\nset unicast-status enable\nconfig unicast-peers\nedit 1\nset peer-ip 172.31.1.2\nnext\nedit 2\nset peer-ip 172.31.1.2\nnext\nedit 3\nnext\nend"), []string{
			"f:10: system ha: unicast-peers 2: peer-ip (172.31.1.2) belongs to unicast-peers 1 already",
			"f:12: system ha: unicast-peers 3: peer-ip is missing: a unicast peer needs its address on a network that all members share"}},
		{"member at a shared address, and ourselves", ha("set mode a-p\nset hbdev a 1\nset unicast-status enable\nconfig unicast-peers\nedit 1\nset peer-ip 192.0.2.1\nnext\nedit 2\nset peer-ip 192.0.2.2\nnext\nend") + "config system interface\nedit a\nset ip 192.0.2.1/24\nset management-ip 192.0.2.2/24\nnext\nend\n", []string{
			"f:7: system ha: unicast-peers 1: peer-ip (192.0.2.1) is the shared address of a, which moves: name the member's own",
			"f:10: system ha: unicast-peers 2: peer-ip (192.0.2.2) is this member's own address on a: name the others"}},
		{"words behind end", "config system ha\nend now\n", []string{"f:2: config system ha: end takes nothing behind it"}},
		{"quote not closed", ha("set group-name \"pair\nset priority 200"), []string{"f:2: the quote that opens here is not closed"}},
		{"quote closed by the next one", ha("set group-name \"pair\nset password \"x y\""), []string{"f:2: the quote that opens here is not closed"}},
		{"text behind a quote", ha(`set group-name "pair"x`), []string{"f:2: a quoted value must be followed by a space"}},
		{"unprintable character", ha("set group-name a\x01b"), []string{"f:2: an unprintable character in a value"}},
		{"not UTF-8", ha("set group-name a\xffb"), []string{"f:2: a value that is not UTF-8"}},
		{"set without keyword", ha("set"), []string{"f:2: system ha: set needs a keyword; `config system ha` knows " + strings.Join(haSpec.keys(), ", ")}},
		{"unset with a value", ha("unset priority 3"), []string{"f:2: system ha: priority takes no value with unset"}},
		{"append to one value", ha("append priority 3"), []string{"f:2: system ha: priority is not a list: append adds to lists only, use set"}},

		// Keywords and values.
		{"misspelt keyword", phase1("set proposals aes128-sha1"), []string{"f:6: vpn1: unknown keyword proposals in `config vpn ipsec phase1-interface`; did you mean proposal?"}},
		{"unknown keyword", "config system standalone-cluster\nset zebra 1\nend\n", []string{"f:2: system standalone-cluster: unknown keyword zebra in `config system standalone-cluster`; it knows standalone-group-id, group-member-id, encryption, psksecret, asymmetric-traffic-control, monitor-interface"}},
		{"out of range", phase1("set keylife 100"), []string{"f:6: vpn1: keylife (100) must be between 120 and 172800"}},
		{"no number", phase1("set keylife soon"), []string{"f:6: vpn1: keylife (soon) must be between 120 and 172800"}},
		{"no transport", phase1("set transport sctp"), []string{"f:6: vpn1: transport (sctp) must be udp, auto or tcp"}},
		{"TCP too late", phase1("set transport auto\nset fallback-tcp-threshold 30"), []string{"f:7: vpn1: fallback-tcp-threshold (30) must be less than negotiate-timeout (30)"}},
		{"no TCP port", "config system settings\nset ike-tcp-port 0\nend\n", []string{"f:2: system settings: ike-tcp-port (0) must be between 1 and 65535"}},
		{"no choice", phase1("set dpd always"), []string{"f:6: vpn1: dpd (always) must be on-demand, on-idle or disable"}},
		{"ambiguous beginning", phase1("set dpd on"), []string{"f:6: vpn1: dpd (on) must be on-demand, on-idle or disable"}},
		{"no switch", phase1("set rekey maybe"), []string{"f:6: vpn1: rekey (maybe) must be enable or disable"}},
		{"empty value", phase1("set keylife"), []string{"f:6: vpn1: keylife is empty: it takes 120–172800 seconds"}},
		{"two values", phase1("set localid two words"), []string{"f:6: vpn1: localid takes one value; put quotes around a value that holds spaces"}},
		{"too long", phase1("set localid " + strings.Repeat("x", 64)), []string{"f:6: vpn1: localid must not be longer than 63 bytes (it has 64)"}},
		{"no address", phase1("set local-gw 300.1.1.1"), []string{"f:6: vpn1: local-gw (300.1.1.1) must be an IPv4 address"}},
		{"mask with gaps", phase2("set src-subnet 10.0.0.0 255.0.255.0"), []string{"f:11: p2: src-subnet (\"10.0.0.0 255.0.255.0\") has a mask with gaps; it must be an IPv4 network (10.1.0.0 255.255.0.0 or 10.1.0.0/16)"}},
		{"no network", phase2("set src-subnet lan"), []string{"f:11: p2: src-subnet (lan) must be an IPv4 network (10.1.0.0 255.255.0.0 or 10.1.0.0/16)"}},
		{"no IPv6 network", phase2("set dst-subnet6 10.0.0.0/8"), []string{"f:11: p2: dst-subnet6 (10.0.0.0/8) must be an IPv6 network (2001:db8::/64)"}},
		{"all at once", phase1("set keylife 1\nset dhgrp 1\nset foobar 1"), []string{
			"f:6: vpn1: keylife (1) must be between 120 and 172800",
			"f:7: vpn1: dhgrp (1) is refused: a 768-bit group is broken (RFC 8247 §2.4); allowed: 2, 5, 14, 15, 16, 19, 20, 21 or 31",
			"f:8: vpn1: unknown keyword foobar in `config vpn ipsec phase1-interface`; it knows " + strings.Join(phase1Spec.keys(), ", ")}},

		// Secrets.
		{"vendor's encryption", phase1("set psksecret ENC O7xCYc7Zm1VL"), []string{"f:6: vpn1: psksecret is encrypted by the vendor (ENC …) and cannot be read: write it in plain form, `set psksecret \"…\"`"}},
		{"shown secret", ha("set password ENC redacted"), []string{"f:2: system ha: password was left out when this text was shown: write it in plain form, `set password \"…\"`"}},
		{"secret with spaces", phase1("set psksecret top s3cretword"), []string{"f:6: vpn1: psksecret takes one value; put quotes around a secret that holds spaces"}},
		{"empty secret", phase1("set psksecret ''"), []string{"f:6: vpn1: psksecret is empty: it takes up to 256 bytes, plain (\"…\") or hexadecimal (0x…)"}},
		{"half a byte", phase1("set psksecret 0xabc"), []string{"f:6: vpn1: psksecret must have an even number of hexadecimal digits behind 0x"}},
		{"secret too long", phase1("set psksecret " + strings.Repeat("k", 257)), []string{"f:6: vpn1: psksecret must not be longer than 256 bytes (it has 257)"}},
		{"users of a static gateway", phase1("set peertype dialup\nset usrgrp g"), []string{"f:6: vpn1: peertype (dialup) needs `set type dynamic`: users are dialup clients"}},
		{"no user group", strings.Replace(goodDialup, "next\n", "set peertype dialup\nnext\n", 1), []string{"f:2: dial: usrgrp is missing: peertype dialup needs a user group"}},
		{"unknown user group", strings.Replace(goodDialup, "next\n", "set peertype dialup\nset usrgrp g\nnext\n", 1), []string{"f:7: dial: usrgrp (g) names no user group"}},
		{"user without a key", "config user local\nedit u\nnext\nend\nconfig user group\nedit g\nset member u\nnext\nend\n" + strings.Replace(goodDialup, "next\n", "set peertype dialup\nset usrgrp g\nnext\n", 1), []string{"f:16: dial: usrgrp (g): the user u has no passwd, which would be its pre-shared key"}},
		{"unknown user", "config user group\nedit g\nset member u\nnext\nend\n", []string{"f:3: user group g: member (u) names no user"}},
		{"group without dialup", strings.Replace(goodDialup, "next\n", "set usrgrp g\nnext\n", 1), []string{"f:6: dial: usrgrp is only checked with `set peertype dialup` (peertype is any)"}},

		// Refused by name.
		{"policy-based phase 1", "config vpn ipsec phase1\nedit a\nset keylife 1\nnext\nend\n", []string{"f:1: `config vpn ipsec phase1` is refused: policy-based tunnels do not exist here; write `config vpn ipsec phase1-interface`"}},
		{"policy-based phase 2", "config vpn ipsec phase2\nedit a\nset auto-negotiate enable\nset keepalive enable\nnext\nend\n", []string{"f:1: `config vpn ipsec phase2` is refused: policy-based tunnels do not exist here; write `config vpn ipsec phase2-interface`"}},
		{"older cluster-sync", "config system cluster-sync\nend\n", []string{"f:1: `config system cluster-sync` is refused: it is the older spelling; write `config cluster-peer` within `config system standalone-cluster`"}},
		{"IKEv1", phase1("set ike-version 1"), []string{"f:6: vpn1: ike-version (1) is refused: IKEv1 is deprecated (RFC 9395); write `set ike-version 2`"}},
		{"DHCP over IPsec", phase2("set dhcp-ipsec enable"), []string{"f:11: p2: dhcp-ipsec (enable) is not supported here: DHCP over IPsec is not offered; hand out addresses with `set mode-cfg enable` in phase 1"}},
		{"transport mode", phase2("set encapsulation transport-mode"), []string{"f:11: p2: encapsulation (transport-mode) is not supported here; allowed: tunnel-mode"}},
		{"suite B", phase1("set suite-b suite-b-gcm-128"), []string{"f:6: vpn1: suite-b (suite-b-gcm-128) is not supported here: write the suites with `set proposal` and `set dhgrp`"}},
		{"EAP", phase1("set eap enable"), []string{"f:6: vpn1: eap (enable) is not supported here; allowed: disable"}},
		{"active-active", ha("set mode a-a"), []string{"f:2: system ha: mode (a-a) is refused: there is no active-active mode; use a-p with virtual clusters, or `config system standalone-cluster`"}},
		{"user peers without certificates", phase1("set peertype peer"), []string{"f:6: vpn1: peertype (peer) looks at certificates: it needs `set authmethod signature`"}},

		// Suites and groups.
		{"DES", phase1("set proposal des-sha1"), []string{"f:6: vpn1: proposal (des-sha1) is refused: 56-bit DES must not be used (RFC 8247 §2.1)"}},
		{"MD5", phase2("set proposal aes128-md5"), []string{"f:11: p2: proposal (aes128-md5) is refused: HMAC-MD5 must not be used (RFC 8247 §2.3)"}},
		{"GCM without PRF", phase1("set proposal aes128gcm"), []string{"f:6: vpn1: proposal (aes128gcm) lacks the PRF that phase 1 needs: write aes128gcm-prfsha256"}},
		{"GCM with a hash", phase1("set proposal aes128gcm-sha256"), []string{"f:6: vpn1: proposal (aes128gcm-sha256) authenticates by itself and needs a PRF only: write aes128gcm-prfsha256"}},
		{"PRF in phase 2", phase2("set proposal aes128gcm-prfsha256"), []string{"f:11: p2: proposal (aes128gcm-prfsha256) names a PRF, which phase 2 has not: write aes128gcm"}},
		{"hash with GCM in phase 2", phase2("set proposal aes128gcm-sha256"), []string{"f:11: p2: proposal (aes128gcm-sha256) authenticates by itself: write aes128gcm"}},
		{"no integrity", phase2("set proposal aes128-null"), []string{"f:11: p2: proposal (aes128-null) is refused: encryption without integrity gives no protection (RFC 8221 §4)"}},
		{"IKE in the clear", phase1("set proposal null-sha256"), []string{"f:6: vpn1: proposal (null-sha256) is refused: IKE messages are always encrypted (RFC 7296 §2.14)"}},
		{"misspelt suite", phase2("set proposal aes128-sha265"), []string{"f:11: p2: proposal (aes128-sha265) is no phase 2 suite; allowed: suites such as aes256-sha256 (aes128, aes192, aes256, 3des or null; sha1, sha256, sha384 or sha512), aes256gcm or chacha20poly1305; did you mean aes128-sha256?"}},
		{"weak group", phase2("set dhgrp 14 24"), []string{"f:11: p2: dhgrp (24) is refused: a group with small subgroups must not be used (RFC 8247 §2.4); allowed: 2, 5, 14, 15, 16, 19, 20, 21 or 31"}},
		{"unknown group", phase1("set dhgrp 99"), []string{"f:6: vpn1: dhgrp (99) must be 2, 5, 14, 15, 16, 19, 20, 21 or 31"}},

		// Phase 1.
		{"long name", "config vpn ipsec phase1-interface\nedit a-name-of-16-byte\nnext\nend\n", []string{"f:2: a-name-of-16-byte: the name of a phase 1 must not be longer than 15 bytes: it names a Linux network interface (it has 17)"}},
		{"name with a slash", "config vpn ipsec phase1-interface\nedit a/b\nnext\nend\n", []string{"f:2: a/b: the name of a phase 1 must not hold spaces, slashes, colons or percent signs: it names a Linux network interface"}},
		{"reserved name", "config vpn ipsec phase1-interface\nedit lo\nnext\nend\n", []string{"f:2: lo: the name is reserved by the system: a phase 1 names a Linux network interface"}},
		{"nothing in it", "config vpn ipsec phase1-interface\nedit vpn1\nnext\nend\n", []string{
			"f:2: vpn1: interface is missing: a phase 1 needs the interface that carries it",
			"f:2: vpn1: remote-gw is missing: a static gateway needs the address of its peer; dialup clients need `set type dynamic`",
			"f:2: vpn1: psksecret is missing: authmethod psk needs `set psksecret \"…\"`"}},
		{"remote-gw empty", phase1("set remote-gw"), []string{"f:6: vpn1: remote-gw is empty: a static gateway needs the address of its peer, `set remote-gw 203.0.113.1`; dialup clients need `set type dynamic`"}},
		{"remote-gw 0.0.0.0", phase1("set remote-gw 0.0.0.0"), []string{"f:6: vpn1: remote-gw is missing: a static gateway needs the address of its peer; dialup clients need `set type dynamic`"}},
		{"two families", phase1("set ip-version 6\nset remote-gw6 2001:db8::1"), []string{}},
		{"local and remote of two families", phase1("set ip-version 6\nset local-gw 192.0.2.1\nset remote-gw 192.0.2.9"), []string{
			"f:7: vpn1: local-gw (192.0.2.1) is not of the family of ip-version 6: local and remote gateway must be of one family",
			"f:8: vpn1: remote-gw (192.0.2.9) is not of the family of ip-version 6: local and remote gateway must be of one family"}},
		{"local is remote", phase1("set local-gw 203.0.113.1"), []string{"f:6: vpn1: local-gw (203.0.113.1) must not be the peer's own address"}},
		{"dynamic with a peer", phase1("set type dynamic"), []string{"f:4: vpn1: remote-gw (203.0.113.1) excludes type dynamic: dialup clients come from any address"}},
		{"ddns without name", phase1("unset remote-gw\nset type ddns"), []string{"f:2: vpn1: remotegw-ddns is missing: type ddns needs the peer's host name"}},
		{"carried by itself", phase1("set interface vpn1"), []string{"f:6: vpn1: interface (vpn1) must not be the tunnel itself"}},
		{"signature without certificate", phase1("set authmethod signature"), []string{"f:2: vpn1: certificate is missing: authmethod signature needs the name of an own certificate", "f:6: vpn1: authmethod (signature) needs a CA that vouches for the peer: write `config vpn certificate ca`"}},
		{"two methods", phase1("set authmethod-remote signature"), []string{"f:6: vpn1: authmethod-remote (signature) must be the same as authmethod (psk)"}},
		{"one of nobody", phase1("set peertype one"), []string{"f:2: vpn1: peerid is missing: peertype one needs the identity of the one peer"}},
		{"peerid for any", phase1("set peerid x"), []string{"f:6: vpn1: peerid is only checked with `set peertype one` (peertype is any)"}},
		{"localid no address", phase1("set localid gw\nset localid-type address"), []string{"f:6: vpn1: localid (gw) must be an IP address with localid-type address"}},
		{"localid no user", phase1("set localid gw\nset localid-type user-fqdn"), []string{"f:6: vpn1: localid (gw) must have the form user@domain with localid-type user-fqdn"}},
		{"localid missing", phase1("set localid-type keyid"), []string{"f:2: vpn1: localid is missing: localid-type keyid needs it"}},
		{"passive and auto-negotiate", phase1("set passive-mode enable\nset auto-negotiate enable"), []string{"f:7: vpn1: auto-negotiate (enable) excludes passive-mode enable of line 6: a passive gateway never begins (FortiOS: command parse error before 'set')"}},
		{"dialup and auto-negotiate", strings.Replace(goodDialup, "next", "set auto-negotiate enable\nnext", 1), []string{"f:6: dial: auto-negotiate (enable) excludes type dynamic: a dialup gateway never begins"}},
		{"address without exchange", phase1("set exchange-ip-addr4 10.0.0.1"), []string{"f:6: vpn1: exchange-ip-addr4 (10.0.0.1) needs `set exchange-interface-ip enable`"}},
		{"an additional key exchange of no method", phase1("set addke1 20"), []string{"f:6: vpn1: addke1 (20) must be 36 (ml-kem-768), 37 (ml-kem-1024) or 0 (none: may be left out)"}},
		{"an additional key exchange that is refused", phase1("set addke2 1081"), []string{"f:6: vpn1: addke2 (1081) is refused: a draft that ML-KEM has replaced; allowed: 36 (ml-kem-768), 37 (ml-kem-1024) or 0 (none: may be left out)"}},
		{"one method for two additional key exchanges", phase1("set addke1 ml-kem-768\nset addke4 36"), []string{"f:7: vpn1: addke4 (36) cannot be met: every additional key exchange of one negotiation needs a method of its own, or 0 beside it"}},
		{"three additional key exchanges of two methods", phase2("set addke1 36 37\nset addke2 36 37\nset addke7 37"), []string{"f:13: p2: addke7 (37) cannot be met: every additional key exchange of one negotiation needs a method of its own, or 0 beside it"}},
		{"an additional key exchange without pfs", phase2("set pfs disable\nset addke1 36"), []string{"f:12: p2: addke1 needs `set pfs enable`: it follows that key exchange"}},
		{"ppk without secret", phase1("set ppk require\nset ppk-identity k1"), []string{"f:2: vpn1: ppk-secret is missing: ppk require needs it"}},
		{"ppk without identity", phase1("set ppk allow\nset ppk-secret 0x00ff"), []string{"f:2: vpn1: ppk-identity is missing: ppk allow needs it"}},
		{"network-id without overlay", phase1("set network-id 3"), []string{"f:6: vpn1: network-id (3) needs `set network-overlay enable`"}},
		{"a pool for a static peer", phase1("set mode-cfg enable\nset domain example.org"), []string{"f:7: vpn1: domain needs `set type dynamic`: a phase 1 of type static with mode-cfg asks its peer for an address, and hands out none"}},
		{"mode-cfg without pool", strings.Replace(goodDialup, "next", "set mode-cfg enable\nnext", 1), []string{"f:6: dial: mode-cfg (enable) needs a pool: `set ipv4-start-ip` and `set ipv4-end-ip`"}},
		{"pool backwards", strings.Replace(goodDialup, "next", "set mode-cfg enable\nset ipv4-start-ip 10.0.0.9\nset ipv4-end-ip 10.0.0.3\nnext", 1), []string{"f:8: dial: ipv4-end-ip (10.0.0.3) must not lie before ipv4-start-ip (10.0.0.9)"}},
		{"half a pool", strings.Replace(goodDialup, "next", "set mode-cfg enable\nset ipv4-start-ip 10.0.0.9\nnext", 1), []string{"f:2: dial: ipv4-start-ip and ipv4-end-ip must be set together"}},
		{"unknown IPv6 networks for clients", strings.Replace(goodDialup, "next", "set mode-cfg enable\nset ipv4-start-ip 10.0.0.3\nset ipv4-end-ip 10.0.0.9\nset ipv6-split-include x\nnext", 1), []string{"f:9: dial: ipv6-split-include (x) names no address or group"}},
		{"unknown networks for clients", strings.Replace(goodDialup, "next", "set mode-cfg enable\nset ipv4-start-ip 10.0.0.3\nset ipv4-end-ip 10.0.0.9\nset ipv4-split-include x\nnext", 1), []string{"f:9: dial: ipv4-split-include (x) names no address or group"}},
		{"backup of nothing", phase1("set monitor vpn2"), []string{"f:6: vpn1: monitor (vpn2) names no phase 1; did you mean vpn1?"}},
		{"backup of itself", phase1("set monitor vpn1"), []string{"f:6: vpn1: monitor (vpn1) must be another phase 1"}},
		{"two dialups for any peer", goodDialup + strings.Replace(goodDialup, "edit dial", "edit dial2", 1), []string{"f:9: dial2: cannot be told from dial (line 2): both take dialup clients with any peer identity at the same local address; give each its own `set peertype one` and `set peerid`, or network-id"}},
		{"two dialups for one peer", strings.NewReplacer("next", "set peertype one\nset peerid Road\nnext").Replace(goodDialup + strings.Replace(strings.Replace(goodDialup, "edit dial", "edit dial2", 1), "Road", "road", 1)), []string{"f:11: dial2: cannot be told from dial (line 2): both take dialup clients with the peer identity Road at the same local address; give each its own `set peertype one` and `set peerid`, or network-id"}},
		{"two tunnels to one peer", goodPhase1 + strings.Replace(goodPhase1, "edit vpn1", "edit vpn2", 1), []string{"f:9: vpn2: cannot be told from vpn1 (line 2): both have the peer 203.0.113.1 with any peer identity at the same local address; give each its own peerid or network-id"}},

		// Phase 2.
		{"phase 2 alone", "config vpn ipsec phase2-interface\nedit p2\nset auto-negotiate enable\nset keepalive enable\nnext\nend\n", []string{"f:2: p2: phase1name is missing: a phase 2 belongs to a phase 1"}},
		{"unknown phase 1", phase2("set phase1name vpn2"), []string{"f:11: p2: phase1name (vpn2) names no phase 1; did you mean vpn1?"}},
		{"dialup phase 2 begins", goodDialup + "config vpn ipsec phase2-interface\nedit p2\nset phase1name dial\nset auto-negotiate enable\nnext\nend\n", []string{"f:11: p2: auto-negotiate (enable) excludes type dynamic of phase 1 dial: a dialup gateway never begins"}},
		{"passive phase 2 begins", strings.Replace(phase2("set auto-negotiate enable"), "next", "set passive-mode enable\nnext", 1), []string{"f:12: p2: auto-negotiate (enable) excludes passive-mode enable of phase 1 vpn1 (line 6): a passive gateway never begins (FortiOS: command parse error before 'set')"}},
		{"passive phase 2 keeps alive", strings.Replace(phase2("set keepalive enable"), "next", "set passive-mode enable\nnext", 1), []string{"f:12: p2: keepalive (enable) excludes passive-mode enable of phase 1 vpn1 (line 6): a passive gateway never begins (FortiOS: command parse error before 'set')"}},
		{"name of nothing", phase2("set src-addr-type name\nset src-name lan"), []string{"f:12: p2: src-name (lan) names no address or group"}},
		{"name missing", phase2("set dst-addr-type name"), []string{"f:9: p2: dst-name is missing: dst-addr-type name needs it"}},
		{"name of no address", phase2("set dst-addr-type name\nset dst-name none"), []string{"f:12: p2: dst-name (none) holds no addresses"}},
		{"range without end", phase2("set src-addr-type range\nset src-start-ip 10.0.0.1"), []string{"f:9: p2: src-end-ip is missing: src-addr-type range needs it"}},
		{"range backwards", phase2("set src-addr-type range\nset src-start-ip 10.0.0.9\nset src-end-ip 10.0.0.1"), []string{"f:13: p2: src-end-ip (10.0.0.1) must not lie before src-start-ip (10.0.0.9)"}},
		{"selectors of two families", phase2("set src-addr-type subnet6"), []string{"f:9: p2: src (subnet6) and dst (subnet) must share an address family"}},
		{"port without protocol", phase2("set dst-port 80"), []string{"f:11: p2: dst-port (80) needs a protocol that has ports: `set protocol 6` (TCP), 17 (UDP), 33 (DCCP), 132 (SCTP) or 136 (UDP-Lite)"}},

		// Clusters.
		{"link-monitor without anything", monitor(""), []string{
			"f:2: link-monitor m: srcintf is missing: a link-monitor needs the interface through which it probes",
			"f:2: link-monitor m: server is missing: a link-monitor needs the address of one at least"}},
		{"link-monitor by name", monitor("set srcintf wan\nset server www.example.com"), []string{"f:4: link-monitor m: server (www.example.com) must be an IP address: names are not resolved here"}},
		{"link-monitor of two families", monitor("set srcintf wan\nset server 192.0.2.1 2001:db8::1"), []string{"f:4: link-monitor m: server (2001:db8::1) must be of the same family as 192.0.2.1: write another link-monitor for it"}},
		{"link-monitor with another protocol", monitor("set srcintf wan\nset server 192.0.2.1\nset protocol http"), []string{"f:5: link-monitor m: protocol (http) must be ping: servers are probed with ICMP echo only"}},
		{"link-monitor source of the other family", monitor("set srcintf wan\nset server 192.0.2.1\nset source-ip6 2001:db8::1"), []string{"f:5: link-monitor m: source-ip (2001:db8::1) must be of the family of server 192.0.2.1"}},
		{"link-monitor interval", monitor("set srcintf wan\nset server 192.0.2.1\nset interval 19"), []string{"f:5: link-monitor m: interval (19) must be between 20 and 3600000"}},
		{"link-monitor timeout", monitor("set srcintf wan\nset server 192.0.2.1\nset probe-timeout 3600001"), []string{"f:5: link-monitor m: probe-timeout (3600001) must be between 20 and 3600000"}},
		{"link-monitor failtime", monitor("set srcintf wan\nset server 192.0.2.1\nset failtime 0"), []string{"f:5: link-monitor m: failtime (0) must be between 1 and 3600"}},
		{"link-monitor recoverytime", monitor("set srcintf wan\nset server 192.0.2.1\nset recoverytime 3601"), []string{"f:5: link-monitor m: recoverytime (3601) must be between 1 and 3600"}},
		{"link-monitor weight", monitor("set srcintf wan\nset server 192.0.2.1\nset ha-priority 51"), []string{"f:5: link-monitor m: ha-priority (51) must be between 1 and 50"}},
		{"link-monitor interface", monitor("set srcintf \"a b\"\nset server 192.0.2.1"), []string{"f:3: link-monitor m: srcintf (\"a b\") must not hold spaces, slashes, colons or percent signs: it names a Linux network interface"}},
		{"link-monitor with unequal servers", monitor("set srcintf wan\nset server 192.0.2.1\nset server-config individual"), []string{"f:5: link-monitor m: server-config (individual) is not supported here; allowed: default"}},
		{"pair without heartbeat", ha("set mode a-p"), []string{"f:2: system ha: hbdev is missing: mode a-p needs at least one heartbeat interface, `set hbdev \"port3\" 50`"}},
		{"hbdev without priority", ha("set hbdev port3"), []string{"f:2: system ha: hbdev must be pairs of an interface and its priority, e.g. \"port3\" 50 \"port4\" 50"}},
		{"hbdev priority", ha("set hbdev port3 900"), []string{"f:2: system ha: hbdev priority (900) of port3 must be between 0 and 512"}},
		{"hbdev twice", ha("set hbdev port3 1 port3 2"), []string{"f:2: system ha: hbdev names port3 twice"}},
		{"hbdev is a tunnel", goodPhase1 + ha("set mode a-p\nset hbdev vpn1 1"), []string{"f:10: system ha: hbdev (vpn1) must not be a tunnel: it is the name of a phase 1"}},
		{"threshold", ha("set hb-lost-threshold 61"), []string{"f:2: system ha: hb-lost-threshold (61) must be between 1 and 60"}},
		{"group-id", ha("set group-id 1024"), []string{"f:2: system ha: group-id (1024) must be between 0 and 1023"}},
		{"authentication without password", ha("set authentication enable"), []string{"f:2: system ha: password is missing: authentication enable needs it"}},
		{"vcluster number", ha("config vcluster\nedit 31\nnext\nend"), []string{"f:3: system ha: vcluster 31: vcluster (31) must be a number between 1 and 30"}},
		{"vclusters of a lone gateway", ha("set vcluster-status enable\nconfig vcluster\nedit 1\nnext\nend"), []string{"f:2: system ha: vcluster-status (enable) needs `set mode a-p`"}},
		{"pingserver threshold", ha("set pingserver-failover-threshold 51"), []string{"f:2: system ha: pingserver-failover-threshold (51) must be between 0 and 50"}},
		{"pingserver flip timeout", ha("set pingserver-flip-timeout -1"), []string{"f:2: system ha: pingserver-flip-timeout (-1) must be between 0 and 100000000"}},
		{"pingserver force reset", ha("set pingserver-secondary-force-reset no"), []string{"f:2: system ha: pingserver-secondary-force-reset (no) must be enable or disable"}},
		{"pingserver of a vcluster", ha("set mode a-p\nset hbdev p 1\nset vcluster-status enable\nconfig vcluster\nedit 1\nset pingserver-failover-threshold x\nnext\nend"), []string{"f:7: system ha: vcluster 1: pingserver-failover-threshold (x) must be between 0 and 50"}},
		{"hold time", ha("set failover-hold-time 301"), []string{"f:2: system ha: failover-hold-time (301) must be between 0 and 300"}},
		{"damping", ha("set link-flap-damping 3"), []string{"f:2: system ha: link-flap-damping (3) must be enable or disable"}},
		{"virtual MAC on a heartbeat interface", ha("set mode a-p\nset hbdev p 1\nset auto-virtual-mac-interface p"), []string{"f:4: system ha: auto-virtual-mac-interface (p) must not be a heartbeat interface: the members would have the same MAC address on it"}},
		{"virtual MAC of a tunnel", goodPhase1 + ha("set auto-virtual-mac-interface vpn1"), []string{"f:9: system ha: auto-virtual-mac-interface (vpn1) must not be a tunnel: it has no MAC address"}},
		{"virtual MAC without an address", "config system interface\nedit a\nset management-ip 10.0.0.1/24\nnext\nend\n" + ha("set auto-virtual-mac-interface a"), []string{"f:7: system ha: auto-virtual-mac-interface (a) must have a shared address: `set ip` in `config system interface`"}},
		{"no vclusters", ha("set mode a-p\nset hbdev p 1\nset vcluster-status enable"), []string{"f:4: system ha: vcluster-status (enable) needs `config vcluster`"}},
		{"domain in two vclusters", ha("set mode a-p\nset hbdev p 1\nset vcluster-status enable\nconfig vcluster\nedit 1\nset vdom a\nnext\nedit 2\nset vdom a\nnext\nend"), []string{"f:9: system ha: vdom (a) belongs to vcluster 1 already"}},
		{"tunnel of nobody in a vcluster", ha("set mode a-p\nset hbdev p 1\nset vcluster-status enable\nconfig vcluster\nedit 1\nset phase1 x\nnext\nend"), []string{"f:6: system ha: phase1 (x) of vcluster 1 names no phase 1"}},
		{"tunnel without its address", goodPhase1 + "config system interface\nedit wan\nset ip 192.0.2.9/24\nset vdom b\nnext\nend\n" + ha("set mode a-p\nset hbdev p 1\nset vcluster-status enable\nconfig vcluster\nedit 2\nset vdom b\nnext\nedit 3\nset phase1 vpn1\nnext\nend"),
			[]string{"f:2: vpn1: interface (wan) and its shared address belong to vcluster 2, but the tunnel to vcluster 3, which lists it: they move together"}},
		{"older spelling without second", ha("set mode a-p\nset hbdev p 1\nset vcluster2 enable"), []string{"f:4: system ha: vcluster2 (enable) needs `config secondary-vcluster`"}},
		{"peer without address", "config system standalone-cluster\nconfig cluster-peer\nedit 1\nnext\nend\nend\n", []string{"f:3: system standalone-cluster: cluster-peer 1: peerip is missing: a cluster peer needs its address on the synchronisation link"}},
		{"peer twice", "config system standalone-cluster\nconfig cluster-peer\nedit 1\nset peerip 10.0.0.1\nnext\nedit 2\nset peerip 10.0.0.1\nnext\nend\nend\n", []string{"f:7: system standalone-cluster: cluster-peer 2: peerip (10.0.0.1) belongs to cluster-peer 1 already"}},
		{"site without a number", fgspPhase1 + ha("set mode a-p") + site(""), []string{"f:12: system standalone-cluster: group-member-id is missing: in a site it is the number of the site, the same on its nodes (their own numbers are those of their certificates)"}},
		{"site without tunnels that synchronise", goodPhase1 + ha("set mode a-p") + site("set group-member-id 2\n"), []string{"f:9: system ha: mode (a-p) of a site needs a phase 1 with `set fgsp-sync enable`: who owns its tunnels is its active node"}},
		{"virtual clusters in a site", fgspPhase1 + ha("set mode a-p\nset vcluster-status enable\nconfig vcluster\nedit 1\nnext\nend") + site("set group-member-id 2\n"), []string{"f:11: system ha: vcluster-status (enable) is impossible in a site: mode a-p together with the cluster peers of `config system standalone-cluster` (line 17)"}},
		{"member number", "config system standalone-cluster\nset group-member-id 16\nend\n", []string{"f:2: system standalone-cluster: group-member-id (16) must be between 0 and 15"}},
		{"witness without number", "config system tandem\nset witness 10.0.0.9\nend\n", []string{"f:2: system tandem: witness takes two values: the witness's address and its node number (set witness 172.31.1.9 3)"}},
		{"witness number", "config system tandem\nset witness 10.0.0.9 17\nend\n", []string{"f:2: system tandem: witness (17): the second value must be the witness's node number, between 1 and 16"}},
		{"witness address", "config system tandem\nset witness here 3\nend\n", []string{"f:2: system tandem: witness (here) must be an IP address"}},
		{"witness of no farm", "config system tandem\nset witness 10.0.0.9 3\nend\n", []string{"f:2: system tandem: witness (10.0.0.9) needs cluster peers in `config system standalone-cluster`: the pair of `config system ha` decides without a witness"}},
		{"witness is a peer", "config system tandem\nset witness 10.0.0.1 3\nend\nconfig system standalone-cluster\nconfig cluster-peer\nedit 1\nset peerip 10.0.0.1\nnext\nend\nend\n", []string{"f:2: system tandem: witness (10.0.0.1) is the address of cluster-peer 1: a witness is no peer"}},
		{"farm encryption without key", "config system standalone-cluster\nset encryption enable\nend\n", []string{"f:2: system standalone-cluster: psksecret is missing: encryption enable needs it"}},

		// System.
		{"an example as it stands", "config system tandem\nset state-dir \"@DIR@/gw1\"\nend\n", []string{"f:2: system tandem: state-dir (@DIR@/gw1) must be an absolute path: put a folder of your own in place of @DIR@, as `tandem lab` does"}},
		{"relative path", "config system tandem\nset state-dir var/lib\nend\n", []string{"f:2: system tandem: state-dir (var/lib) must be an absolute path"}},
		{"no port", "config system tandem\nset metrics-address 127.0.0.1\nend\n", []string{"f:2: system tandem: metrics-address (127.0.0.1) must be an address and port (127.0.0.1:9090, [::1]:9090 or :9090)"}},
		{"data plane", "config system tandem\nset data-plane npu\nend\n", []string{"f:2: system tandem: data-plane (npu) must be auto, kernel or userspace"}},
		{"long interface name", "config system interface\nedit an-interface-of-20\nnext\nend\n", []string{"f:2: an-interface-of-20: the name of an interface must not be longer than 15 bytes: it names a Linux network interface (it has 18)"}},
		{"address twice", "config system interface\nedit a\nset ip 10.0.0.1/24\nnext\nedit b\nset management-ip 10.0.0.1/24\nnext\nend\n", []string{"f:6: b: management-ip (10.0.0.1) belongs to interface a already"}},
		{"mtu", "config system interface\nedit a\nset mtu 100\nnext\nend\n", []string{"f:3: a: mtu (100) must be between 576 and 65535"}},
		{"secondary without address", "config system interface\nedit a\nconfig secondaryip\nedit 1\nnext\nend\nnext\nend\n", []string{"f:4: a: secondaryip 1: ip is missing: a secondary address needs one"}},

		// Firewall and routes.
		{"address by name", "config firewall address\nedit a\nset type fqdn\nnext\nend\n", []string{"f:3: a: type (fqdn) is refused: names are not resolved here"}},
		{"range of nothing", "config firewall address\nedit a\nset type iprange\nnext\nend\n", []string{"f:2: a: start-ip and end-ip are missing: type iprange needs both"}},
		{"address range backwards", "config firewall address\nedit a\nset type iprange\nset start-ip 10.0.0.2\nset end-ip 10.0.0.1\nnext\nend\n", []string{"f:5: a: end-ip (10.0.0.1) must not lie before start-ip (10.0.0.2)"}},
		{"empty group", "config firewall addrgrp\nedit g\nnext\nend\n", []string{"f:2: g: member is missing: a group needs at least one"}},
		{"group of nobody", "config firewall addrgrp\nedit g\nset member x\nnext\nend\n", []string{"f:3: g: member (x) names no address or group"}},
		{"group of itself", "config firewall addrgrp\nedit g\nset member h\nnext\nedit h\nset member g\nnext\nend\n", []string{
			"f:3: g: member leads back to a group that is being resolved, or more than 16 groups deep",
			"f:6: h: member leads back to a group that is being resolved, or more than 16 groups deep"}},
		{"group and address of one name", "config firewall address\nedit a\nnext\nend\nconfig firewall addrgrp\nedit a\nset member all\nnext\nend\n", []string{"f:6: a: the name belongs to an address already: addresses and groups share their names"}},
		{"policy without anything", "config firewall policy\nedit 1\nnext\nend\n", []string{
			"f:2: policy 1: srcintf is missing: a policy needs the interface where packets come in, or any",
			"f:2: policy 1: dstintf is missing: a policy needs the interface where packets go out, or any",
			"f:2: policy 1: srcaddr is missing: a policy needs source addresses, or all",
			"f:2: policy 1: dstaddr is missing: a policy needs destination addresses, or all"}},
		{"policy number", "config firewall policy\nedit first\nnext\nend\n", []string{"f:2: policy first: policy (first) must be a number between 1 and 4294967294"}},
		{"policy by service", policy("set service HTTPS"), []string{"f:7: policy 1: service (HTTPS) must be ALL: policies filter by interface and address"}},
		{"policy by hour", policy("set schedule office"), []string{"f:7: policy 1: schedule (office) must be always: policies hold at all times"}},
		{"policy with NAT", policy("set nat enable"), []string{"f:7: policy 1: nat (enable) must be disable: addresses are not translated here"}},
		{"policy-based tunnel", policy("set action ipsec"), []string{"f:7: policy 1: action (ipsec) is refused: policy-based tunnels do not exist here; write accept and name the tunnel's interface"}},
		{"deny of nobody", policy("set srcaddr x"), []string{"f:7: policy 1: srcaddr (x) names no address or group: a deny policy must not miss what it should stop"}},
		{"policy by user", policy("set groups staff"), []string{"f:7: policy 1: groups (staff) is not supported here: users are not known here"}},
		{"route without device", "config router static\nedit 1\nset dst 10.0.0.0/8\nnext\nend\n", []string{"f:2: route 1: device is missing: a route needs its interface, or `set blackhole enable`"}},
		{"BGP without a number", bgp("unset as"), []string{"f:1: router bgp: as is missing: neighbors and networks need our autonomous system"}},
		{"BGP without router-id", bgp("unset router-id"), []string{"f:2: router bgp: router-id is missing: `set router-id` with an address that no other gateway has"}},
		{"BGP number out of range", bgp("set as 4294967296"), []string{"f:14: router bgp: as (4294967296) must be between 0 and 4294967295"}},
		{"BGP timers", bgp("set holdtime-timer 60"), []string{"f:14: router bgp: keepalive-timer (60) must be less than holdtime-timer (60)"}},
		{"BGP graceful restart", bgp("set graceful-restart enable"), []string{"f:14: router bgp: graceful-restart (enable) is not supported here: a dead gateway's routes must go at once"}},
		{"neighbor without number", bgp("config neighbor\nedit 10.0.0.2\nnext\nend"), []string{"f:15: router bgp: neighbor 10.0.0.2: remote-as is missing: a neighbor needs its autonomous system"}},
		{"neighbor by name", bgp("config neighbor\nedit router\nnext\nend"), []string{"f:15: router bgp: neighbor router: neighbor (router) must be the address of a router"}},
		{"neighbor with a password", bgp("config neighbor\nedit 10.0.0.254\nset password x\nnext\nend"), []string{"f:16: router bgp: neighbor 10.0.0.254: password (x) is not supported here: TCP MD5 is not spoken here"}},
		{"BFD beyond the link", bgp("config neighbor\nedit 10.0.0.254\nset ebgp-enforce-multihop enable\nset bfd enable\nnext\nend"), []string{"f:17: router bgp: neighbor 10.0.0.254: bfd (enable) excludes `set ebgp-enforce-multihop enable`: BFD is spoken with neighbors on the link only"}},
		{"multihop within", bgp("config neighbor\nedit 10.0.0.2\nset remote-as 65001\nset ebgp-enforce-multihop enable\nnext\nend"), []string{"f:17: router bgp: neighbor 10.0.0.2: ebgp-enforce-multihop (enable) is for neighbors of another autonomous system than ours (65001)"}},
		{"BFD interval", "config system settings\nset bfd-desired-min-tx 0\nend\n", []string{"f:2: system settings: bfd-desired-min-tx (0) must be between 1 and 100000"}},
		{"network without prefix", bgp("config network\nedit 2\nnext\nend"), []string{"f:15: router bgp: network 2: prefix is missing: a network needs the prefix that is announced"}},
		{"network twice", bgp("config network\nedit 2\nset prefix 192.0.2.31/32\nnext\nend"), []string{"f:16: router bgp: network 2: prefix (192.0.2.31/32) is announced by network 1 already"}},
		{"route by name", "config router static\nedit 1\nset device a\nset dstaddr x\nnext\nend\n", []string{"f:4: route 1: dstaddr (x) is not supported here: write the network with `set dst`"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, faults := Load("f", []byte(tc.text))
			var got []string
			for _, f := range faults {
				if strings.Contains(f.Error(), "s3cret") {
					t.Errorf("a secret in %q", f.Error())
				}
				if !f.Warning {
					got = append(got, f.Error())
				}
			}
			if g, w := strings.Join(got, "\n"), strings.Join(tc.want, "\n"); g != w {
				t.Errorf("got:\n%s\nwant:\n%s\nof:\n%s", g, w, withLineNumbers(tc.text))
			}
			if (c == nil) != (len(tc.want) > 0) {
				t.Errorf("configuration returned: %v", c != nil)
			}
		})
	}
}

func policy(lines string) string {
	return "config firewall policy\nedit 1\nset srcintf any\nset dstintf any\nset srcaddr all\nset dstaddr all\n" + lines + "\nnext\nend\n"
}

func withLineNumbers(text string) string {
	var b strings.Builder
	for i, l := range strings.Split(text, "\n") {
		fmt.Fprintf(&b, "%3d %s\n", i+1, l)
	}
	return b.String()
}

// What has no effect here says so, once for each keyword of a block.
func TestWarnings(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"ignored keyword", phase1("set npu-offload enable\nset comments 'x y'"), []string{
			"f:6: warning: vpn1: npu-offload is read and has no effect here",
			"f:7: warning: vpn1: comments is read and has no effect here"}},
		{"ignored keyword of many", goodPhase1 + "config vpn ipsec phase2-interface\nedit a\nset phase1name vpn1\nset comments x\nnext\nedit b\nset phase1name vpn1\nset comments x\nnext\nedit c\nset phase1name vpn1\nset comments x\nnext\nend\n", []string{"f:11: warning: a: comments is read and has no effect here (2 times more below)"}},
		{"ignored block", "config log syslogd setting\nset status enable\nconfig x\nedit y\nnext\nend\nend\n", []string{"f:1: warning: config log syslogd setting is read and has no effect here"}},
		{"ignored nested block", ha("config ha-mgmt-interfaces\nedit 1\nset interface m\nnext\nend"), []string{"f:2: warning: system ha: config ha-mgmt-interfaces is read and has no effect here"}},
		{"key log", "config system tandem\nset key-log /tmp/k\nend\n", []string{"f:2: warning: system tandem: KEY-LOG IS ON: every key of every tunnel is written to /tmp/k; whoever reads that file reads the traffic. Remove it when the debugging is over"}},
		{"mtu without override", "config system interface\nedit a\nset mtu 1400\nnext\nend\n", []string{"f:3: warning: a: mtu (1400) has no effect without `set mtu-override enable`"}},
		{"phase 1 on an unlisted interface", phase1("") + "config system interface\nedit wan1\nnext\nend\n", []string{"f:3: warning: vpn1: interface (wan) is not among those of `config system interface`; did you mean wan1?"}},
		{"remote-ip of no tunnel", "config system interface\nedit a\nset remote-ip 10.0.0.1\nnext\nend\n", []string{"f:3: warning: a: remote-ip has no effect: no phase 1 has the name of this interface"}},
		{"accept of nobody", policy("set action accept\nset srcaddr x"), []string{"f:8: warning: policy 1: srcaddr (x) names no address or group: it matches no packet"}},
		{"tunnel in other letters", phase1("") + policy("set srcintf VPN1"), []string{"f:15: warning: policy 1: srcintf (VPN1) is no interface; did you mean vpn1?"}},
		{"phase 2 outlives phase 1", phase2("set keylifeseconds 100000"), []string{"f:11: warning: p2: keylifeseconds (100000) is longer than keylife (86400) of phase 1 vpn1: the IKE SA is renewed first"}},
		{"routes of virtual clusters", ha("set mode a-p\nset hbdev p 1\nset vcluster-status enable\nconfig vcluster\nedit 1\nnext\nend") + bgp(""), []string{"f:4: warning: system ha: router bgp announces its networks while any virtual cluster is active here: those of another one, too"}},
		{"pingserver of nobody", ha("set pingserver-monitor-interface wan"), []string{"f:2: warning: system ha: pingserver-monitor-interface (wan) has no effect: no link-monitor has it as srcintf"}},
		{"pingserver that is disabled", ha("set pingserver-monitor-interface wan") + monitor("set srcintf wan\nset server 192.0.2.1\nset status disable"), []string{"f:2: warning: system ha: pingserver-monitor-interface (wan) has no effect: no link-monitor has it as srcintf"}},
		{"pingserver threshold out of reach", ha("set pingserver-monitor-interface wan\nset pingserver-failover-threshold 6") + monitor("set srcintf wan\nset server 192.0.2.1\nset ha-priority 5"), []string{"f:3: warning: system ha: pingserver-failover-threshold (6) is never reached: the ha-priority of all link monitors of pingserver-monitor-interface adds up to 5"}},
		{"virtual MAC of a lone gateway", "config system interface\nedit a\nset ip 10.0.0.1/24\nnext\nend\n" + ha("set auto-virtual-mac-interface a"), []string{"f:7: warning: system ha: auto-virtual-mac-interface has no effect without `set mode a-p`"}},
		{"vclusters switched off", ha("config vcluster\nedit 1\nnext\nend"), []string{"f:1: warning: system ha: config vcluster has no effect without `set vcluster-status enable`"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, faults := load(t, "f", tc.text)
			var got []string
			for _, f := range faults {
				got = append(got, f.Error())
			}
			if g, w := strings.Join(got, "\n"), strings.Join(tc.want, "\n"); g != w {
				t.Errorf("got:\n%s\nwant:\n%s\nof:\n%s", g, w, withLineNumbers(tc.text))
			}
		})
	}
}
