package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/internal/ipsec"
)

// phase1Draft is a phase 1 as it is written: the model keeps what two keywords come to.
type phase1Draft struct {
	Phase1
	ikeVersion       string
	ipVersion        string
	authMethodRemote string
	mobike           string
	idleTimeout      bool
	idleInterval     time.Duration
}

func draftPhase1(p Phase1) phase1Draft {
	d := phase1Draft{Phase1: p, ikeVersion: "2", ipVersion: "4", idleTimeout: p.IdleTimeout > 0, idleInterval: p.IdleTimeout}
	if p.IPVersion == 6 {
		d.ipVersion = "6"
	}
	if p.Mobike != p.Dialup() {
		d.mobike = map[bool]string{true: "enable", false: "disable"}[p.Mobike]
	}
	if !d.idleTimeout {
		d.idleInterval = 15 * time.Minute
	}
	return d
}

var phase1Spec = &spec[phase1Draft]{
	path:  "vpn ipsec phase1-interface",
	help:  "One IKE SA peer, or with type dynamic any number of dialup clients. Each entry is also a Linux network interface of its name.",
	entry: "NAME (up to 15 bytes)",
	make: func(name string, line int) (phase1Draft, string) {
		d := phase1Draft{Phase1: Phase1{Name: name, Line: line}}
		switch {
		case name == "lo" || name == "all" || name == "any" || name == "default":
			return d, "the name is reserved by the system: a phase 1 names a Linux network interface"
		default:
			if msg := interfaceName(name); msg != "" {
				return d, "the name of a phase 1 " + msg
			}
		}
		return d, ""
	},
	rows: append([]row[phase1Draft]{
		{key: "type", value: oneOf("static", "dynamic", "ddns"), def: "static", at: func(p *phase1Draft) any { return &p.Type }, help: "who the peer is: one address, any dialup client, one host name"},
		{key: "interface", value: text{max: 15, what: "an interface name", check: interfaceName}, at: func(p *phase1Draft) any { return &p.Interface }, help: "the interface that carries IKE and ESP; required"},
		{key: "ip-version", value: oneOf("4", "6"), def: "4", at: func(p *phase1Draft) any { return &p.ipVersion }, help: "family of the outer addresses"},
		{key: "ike-version", value: enum{words: []string{"2"}, refused: map[string]string{"1": "IKEv1 is deprecated (RFC 9395); write `set ike-version 2`"}}, def: "2", at: func(p *phase1Draft) any { return &p.ikeVersion }, help: "IKEv2 only; IKEv1 is deprecated by RFC 9395"},
		{key: "local-gw", value: address{4}, at: func(p *phase1Draft) any { return &p.LocalGW }, hide: (*phase1Draft).is6, help: "own outer address; unset: the interface's"},
		{key: "local-gw6", value: address{6}, at: func(p *phase1Draft) any { return &p.LocalGW }, hide: (*phase1Draft).is4, help: "own outer address with ip-version 6"},
		{key: "remote-gw", value: address{4}, at: func(p *phase1Draft) any { return &p.RemoteGW }, hide: func(p *phase1Draft) bool { return p.is6() || p.Type != "static" }, help: "the peer's outer address; required with type static",
			empty: "is empty: a static gateway needs the address of its peer, `set remote-gw 203.0.113.1`; dialup clients need `set type dynamic`"},
		{key: "remote-gw6", value: address{6}, at: func(p *phase1Draft) any { return &p.RemoteGW }, hide: func(p *phase1Draft) bool { return p.is4() || p.Type != "static" }, help: "the peer's outer address with ip-version 6",
			empty: "is empty: a static gateway needs the address of its peer, `set remote-gw6 2001:db8::1`; dialup clients need `set type dynamic`"},
		{key: "remotegw-ddns", value: text{max: 63, what: "a host name"}, at: func(p *phase1Draft) any { return &p.RemoteGWDDNS }, hide: func(p *phase1Draft) bool { return p.Type != "ddns" }, help: "the peer's host name with type ddns"},
		{key: "keylife", value: number{120, 172800, time.Second}, def: "86400", at: func(p *phase1Draft) any { return &p.KeyLife }, help: "hard lifetime of the IKE SA; it is rekeyed before"},
		{key: "authmethod", value: oneOf("psk", "signature"), def: "psk", at: func(p *phase1Draft) any { return &p.AuthMethod }, help: "pre-shared key or certificate, on both sides"},
		{key: "authmethod-remote", value: oneOf("psk", "signature"), at: func(p *phase1Draft) any { return &p.authMethodRemote }, hide: func(p *phase1Draft) bool { return p.authMethodRemote == "" }, help: "only the same as authmethod"},
		{key: "certificate", value: names{max: 35, most: 4}, at: func(p *phase1Draft) any { return &p.Certificate }, hide: func(p *phase1Draft) bool { return p.AuthMethod != "signature" }, help: "own certificates; required with authmethod signature"},
		{key: "peertype", value: oneOf("any", "one", "peer", "peergrp", "dialup"), def: "any", at: func(p *phase1Draft) any { return &p.PeerType }, help: "which peer identities are accepted: any, the one of peerid, with certificates those of a user peer or a group of them, or the names of the users of usrgrp"},
		{key: "peerid", value: text{max: 255}, at: func(p *phase1Draft) any { return &p.PeerID }, hide: func(p *phase1Draft) bool { return p.PeerType != "one" }, help: "the peer's identity; required with peertype one"},
		{key: "peer", value: text{max: 35, what: "the name of a user peer"}, at: func(p *phase1Draft) any { return &p.Peer }, hide: func(p *phase1Draft) bool { return p.PeerType != "peer" }, help: "what the peer's certificate must have; required with peertype peer"},
		{key: "peergrp", value: text{max: 35, what: "the name of a user peergrp"}, at: func(p *phase1Draft) any { return &p.PeerGroup }, hide: func(p *phase1Draft) bool { return p.PeerType != "peergrp" }, help: "several of them; required with peertype peergrp"},
		{key: "usrgrp", value: text{max: 35, what: "the name of a user group"}, at: func(p *phase1Draft) any { return &p.UserGroup }, hide: func(p *phase1Draft) bool { return p.PeerType != "dialup" }, help: "whose users are accepted; required with peertype dialup"},
		{key: "eap", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.EAP }, help: "dialup: clients prove themselves as users of authusrgrp (RFC 7296 §2.16), this gateway by authmethod; static: this gateway is such a client"},
		{key: "eap-identity", value: oneOf("use-id-payload", "send-request"), def: "use-id-payload", at: func(p *phase1Draft) any { return &p.EAPIdentity }, hide: noEAP, help: "whom a client says it is: its IKE identity, or what it answers to a request for its EAP identity"},
		{key: "eap-only", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.EAPOnly }, hide: noEAP, help: "with EAP-TLS both sides prove themselves by it alone, where both allow it (RFC 5998; FortiOS has no word for it)"},
		{key: "authusrgrp", value: text{max: 35, what: "the name of a user group"}, at: func(p *phase1Draft) any { return &p.AuthUserGroup }, hide: noEAP, help: "the users whom EAP lets in; required with eap enable and type dynamic"},
		{key: "authusr", value: text{max: 64}, at: func(p *phase1Draft) any { return &p.AuthUser }, hide: noEAP, help: "a client's user name; without localid also its IKE identity"},
		{key: "authpasswd", value: secret{key: "authpasswd", max: 128}, at: func(p *phase1Draft) any { return &p.AuthPassword }, hide: noEAP, help: "a client's password; without one it proves itself by its certificate (EAP-TLS)"},
		{key: "cert-id-validation", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.CertIDValidation }, hide: noSignature, help: "the peer's certificate must have its identity as subject or subjectAltName (RFC 4945)"},
		{key: "digital-signature-auth", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.DigitalSignatureAuth }, hide: noSignature, help: "signatures as RFC 7427 has them, where the peer can (FortiOS's default is disable); Ed25519 and RSASSA-PSS need it"},
		{key: "signature-hash-alg", value: manyOf{oneOf("sha1", "sha2-256", "sha2-384", "sha2-512")}, def: "sha2-512 sha2-384 sha2-256", at: func(p *phase1Draft) any { return &p.SignatureHash }, hide: noSignature, help: "hashes of signatures, best first, both directions (FortiOS's default has sha1, too)"},
		{key: "rsa-signature-format", value: oneOf("pkcs1", "pss"), def: "pkcs1", at: func(p *phase1Draft) any { return &p.RSASignatureFormat }, hide: noSignature, help: "how our RSA keys sign under RFC 7427; of peers both are accepted"},
		{key: "rsa-signature-hash-override", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.RSAHashOverride }, hide: noSignature, help: "towards a peer without RFC 7427 our RSA keys sign with the best of signature-hash-alg, even where that allows sha1, which such peers know best"},
		{key: "localid", value: text{max: 63}, at: func(p *phase1Draft) any { return &p.LocalID }, help: "own identity; empty: the local address, with authmethod signature the certificate's subject"},
		{key: "localid-type", value: oneOf("auto", "fqdn", "user-fqdn", "keyid", "address", "asn1dn"), def: "auto", at: func(p *phase1Draft) any { return &p.LocalIDType }, help: "how localid is sent"},
		{key: "psksecret", value: secret{key: "psksecret", max: 256}, at: func(p *phase1Draft) any { return &p.PSK }, hide: func(p *phase1Draft) bool { return p.AuthMethod != "psk" }, help: "the pre-shared key; required with authmethod psk, but for peertype dialup, whose users have their own"},
		{key: "proposal", value: proposals{1}, def: "aes128-sha256 aes256-sha256 aes128gcm-prfsha256 aes256gcm-prfsha384 chacha20poly1305-prfsha256", at: func(p *phase1Draft) any { return &p.Proposals }, help: "suites of the IKE SA, best first"},
		{key: "dhgrp", value: groups{}, def: "14 5", at: func(p *phase1Draft) any { return &p.DHGroups }, help: "key exchange groups, best first"},
		{key: "esn", value: oneOf("disable", "allow", "require"), def: "disable", at: func(p *phase1Draft) any { return &p.ESN }, help: "64-bit sequence numbers for phase 2 entries that do not say otherwise"},
		{key: "net-device", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.NetDevice }, help: "read for FortiOS's sake; here every phase 1 has one interface, shared by its dialup instances"},
		{key: "passive-mode", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.PassiveMode }, help: "only answers; enabling it on a live tunnel deletes its SAs"},
		{key: "auto-negotiate", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.AutoNegotiate }, omit: func(p *phase1Draft) bool { return p.PassiveMode || p.Type == "dynamic" }, help: "begins without traffic; yields to passive-mode and to type dynamic"},
		{key: "negotiate-timeout", value: number{1, 300, time.Second}, def: "30", at: func(p *phase1Draft) any { return &p.NegotiateTimeout }, help: "gives up an unfinished negotiation"},
		{key: "dpd", value: oneOf("on-demand", "on-idle", "disable"), def: "on-demand", at: func(p *phase1Draft) any { return &p.DPD }, help: "dead peer detection: when traffic is unanswered, when idle, never"},
		{key: "dpd-retrycount", value: number{1, 10, 0}, def: "3", at: func(p *phase1Draft) any { return &p.DPDRetryCount }, help: "unanswered probes that make a peer dead"},
		{key: "dpd-retryinterval", value: interval{3600}, def: "20", at: func(p *phase1Draft) any { return &p.DPDRetryInterval }, help: "between probes"},
		{key: "nattraversal", value: oneOf("enable", "disable", "forced"), def: "enable", at: func(p *phase1Draft) any { return &p.NATTraversal }, help: "ESP in UDP when a NAT is found, never, always"},
		{key: "transport", value: oneOf("udp", "auto", "tcp"), def: "udp", at: func(p *phase1Draft) any { return &p.Transport }, help: "what carries IKE and ESP: UDP (or plain ESP), TCP (RFC 9329), or UDP and, where nothing answers in it, TCP; auto answers in both"},
		{key: "fallback-tcp-threshold", value: number{1, 300, time.Second}, def: "15", at: func(p *phase1Draft) any { return &p.FallbackTCP }, hide: func(p *phase1Draft) bool { return p.Transport != "auto" }, help: "transport auto: how long without an answer in UDP; less than negotiate-timeout"},
		{key: "mobike", value: oneOf("enable", "disable"), at: func(p *phase1Draft) any { return &p.mobike }, hide: func(p *phase1Draft) bool { return p.mobike == "" }, help: "peers may change their address, and so may this gateway (RFC 4555); unset: enable with type dynamic, else disable; ours, FortiOS has no such key"},
		{key: "keepalive", value: number{5, 900, time.Second}, def: "10", at: func(p *phase1Draft) any { return &p.Keepalive }, help: "between NAT keepalives"},
		{key: "fragmentation", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.Fragmentation }, help: "IKE fragmentation (RFC 7383)"},
		{key: "fragmentation-mtu", value: number{500, 16000, 0}, def: "1200", at: func(p *phase1Draft) any { return &p.FragmentationMTU }, help: "largest IKE datagram, bytes with IP header"},
		{key: "ip-fragmentation", value: oneOf("post-encapsulation", "pre-encapsulation"), def: "post-encapsulation", at: func(p *phase1Draft) any { return &p.IPFragmentation }, help: "where packets that are too large are split"},
		{key: "ha-sync-esp-seqno", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.HASyncESPSeqno }, help: "standbys hold sequence numbers (leased ceilings)"},
		{key: "fgsp-sync", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.FGSPSync }, help: "takes part in a standalone cluster's SA synchronisation"},
		{key: "add-route", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.AddRoute }, help: "routes to the peer's negotiated selectors (dialup)"},
		{key: "rekey", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.Rekey }, help: "renews the IKE SA before keylife ends"},
		{key: "reauth", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.Reauth }, help: "authenticates anew before keylife ends instead of rekeying, the new IKE SA beside the old one; tells a peer who began until when it must (RFC 4478)"},
		{key: "redirect", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.Redirect }, hide: func(p *phase1Draft) bool { return p.Type == "dynamic" }, help: "follows a peer that sends this gateway to another one, which has to prove the same identity (RFC 5685); ours, FortiOS has no such key"},
		{key: "redirect-gateway", value: addresses{8}, at: func(p *phase1Draft) any { return &p.RedirectGateways }, help: "where peers that can follow are sent while this gateway is drained (RFC 5685); its own address among them is left out; ours, FortiOS has no such key"},
		{key: "idle-timeout", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.idleTimeout }, help: "ends a tunnel without traffic"},
		{key: "idle-timeoutinterval", value: number{5, 43200, time.Minute}, def: "15", at: func(p *phase1Draft) any { return &p.idleInterval }, help: "how long without traffic"},
		{key: "exchange-interface-ip", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.ExchangeInterfaceIP }, help: "tells the peer this tunnel interface's address"},
		{key: "exchange-ip-addr4", value: address{4}, at: func(p *phase1Draft) any { return &p.ExchangeIPAddr4 }, hide: func(p *phase1Draft) bool { return !p.ExchangeInterfaceIP }, help: "the address to tell instead; needs exchange-interface-ip enable"},
		{key: "network-overlay", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.NetworkOverlay }, help: "tells gateways between the same addresses apart by network-id"},
		{key: "network-id", value: number{0, 255, 0}, def: "0", at: func(p *phase1Draft) any { return &p.NetworkID }, hide: func(p *phase1Draft) bool { return !p.NetworkOverlay }, help: "needs network-overlay enable"},
		{key: "childless-ike", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.ChildlessIKE }, help: "IKE SA without a first Child SA (RFC 6023)"},
		{key: "ppk", value: oneOf("disable", "allow", "require"), def: "disable", at: func(p *phase1Draft) any { return &p.PPK }, help: "post-quantum pre-shared key (RFC 8784) beside the authentication; allow: only with peers that have it"},
		{key: "ppk-secret", value: secret{key: "ppk-secret", max: 256}, at: func(p *phase1Draft) any { return &p.PPKSecret }, hide: func(p *phase1Draft) bool { return p.PPK == "disable" }, help: "the post-quantum pre-shared key, 32 random bytes at least; required with ppk allow and require"},
		{key: "ppk-identity", value: text{max: 35}, at: func(p *phase1Draft) any { return &p.PPKIdentity }, hide: func(p *phase1Draft) bool { return p.PPK == "disable" }, help: "how both sides call that key; required with ppk allow and require"},
		{key: "monitor", value: names{max: 15, what: "names of other phase 1 entries"}, at: func(p *phase1Draft) any { return &p.Monitor }, help: "a backup: negotiates only while all of these are down"},
		{key: "loopback-asymroute", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.LoopbackAsymroute }, help: "IKE to a loopback address may arrive on any interface"},
		{key: "mode-cfg", value: toggle{}, def: "disable", at: func(p *phase1Draft) any { return &p.ModeCfg }, help: "dialup: hands addresses to clients; static: asks the peer for one (configuration payload)"},
		{key: "assign-ip", value: toggle{}, def: "enable", at: func(p *phase1Draft) any { return &p.Pool.AssignIP }, hide: noModeCfg, help: "mode-cfg: gives the client an address"},
		{key: "ipv4-start-ip", value: address{4}, at: func(p *phase1Draft) any { return &p.Pool.Start4 }, hide: noModeCfg, help: "mode-cfg: first address of the pool"},
		{key: "ipv4-end-ip", value: address{4}, at: func(p *phase1Draft) any { return &p.Pool.End4 }, hide: noModeCfg, help: "mode-cfg: last address of the pool"},
		{key: "ipv4-netmask", value: address{4}, def: "255.255.255.255", at: func(p *phase1Draft) any { return &p.Pool.Netmask4 }, hide: noModeCfg, help: "mode-cfg: netmask told to the client"},
		{key: "ipv4-dns-server1", value: address{4}, at: func(p *phase1Draft) any { return &p.Pool.DNS4[0] }, hide: noModeCfg, help: "mode-cfg: DNS server"},
		{key: "ipv4-dns-server2", value: address{4}, at: func(p *phase1Draft) any { return &p.Pool.DNS4[1] }, hide: noModeCfg, help: "mode-cfg: DNS server"},
		{key: "ipv4-dns-server3", value: address{4}, at: func(p *phase1Draft) any { return &p.Pool.DNS4[2] }, hide: noModeCfg, help: "mode-cfg: DNS server"},
		{key: "ipv4-split-include", value: text{max: 79, what: "the name of an address or group"}, at: func(p *phase1Draft) any { return &p.Pool.SplitInclude4 }, hide: noModeCfg, help: "mode-cfg: networks behind the gateway, told to the client"},
		{key: "ipv6-start-ip", value: address{6}, at: func(p *phase1Draft) any { return &p.Pool.Start6 }, hide: noModeCfg, help: "mode-cfg: first IPv6 address of the pool"},
		{key: "ipv6-end-ip", value: address{6}, at: func(p *phase1Draft) any { return &p.Pool.End6 }, hide: noModeCfg, help: "mode-cfg: last IPv6 address of the pool"},
		{key: "ipv6-prefix", value: number{1, 128, 0}, def: "128", at: func(p *phase1Draft) any { return &p.Pool.Prefix6 }, hide: noModeCfg, help: "mode-cfg: prefix length told to the client"},
		{key: "ipv6-dns-server1", value: address{6}, at: func(p *phase1Draft) any { return &p.Pool.DNS6[0] }, hide: noModeCfg, help: "mode-cfg: DNS server"},
		{key: "ipv6-dns-server2", value: address{6}, at: func(p *phase1Draft) any { return &p.Pool.DNS6[1] }, hide: noModeCfg, help: "mode-cfg: DNS server"},
		{key: "ipv6-dns-server3", value: address{6}, at: func(p *phase1Draft) any { return &p.Pool.DNS6[2] }, hide: noModeCfg, help: "mode-cfg: DNS server"},
		{key: "domain", value: text{max: 63}, at: func(p *phase1Draft) any { return &p.Pool.Domain }, hide: noModeCfg, help: "mode-cfg: DNS domain told to the client"},
		{key: "ipv6-split-include", value: text{max: 79, what: "the name of an IPv6 address or group"}, at: func(p *phase1Draft) any { return &p.Pool.SplitInclude6 }, hide: noModeCfg, help: "mode-cfg: IPv6 networks behind the gateway, told to the client"},
	}, addKERows(func(p *phase1Draft, i int) *[]ipsec.TransformID { return &p.AddKE[i] },
		"additional key exchange after that of dhgrp (RFC 9370), best first: ML-KEM-768 is 36, ML-KEM-1024 is 37; with 0 among them a peer may do without")...),
	ignored: append(plain(`comments npu-offload wizard-type forticlient-enforcement auto-discovery-* add-gw-route tunnel-search
		monitor-min monitor-hold-down-type monitor-hold-down-delay monitor-hold-down-weekday monitor-hold-down-time mode
		default-gw-priority packet-redistribution distance priority send-cert-chain eap-exclude-peergrp eap-cert-auth
		acct-verify save-password client-auto-negotiate client-keep-alive client-resume
		client-resume-interval unity-support banner include-local-lan mesh-selector-type shared-idle-timeout inbound-dscp-copy
		encapsulation-address encap-local-gw4 encap-local-gw6 encap-remote-gw4 encap-remote-gw6 vni azure-ad-autoconnect
		fec-send-timeout fec-base fec-codec fec-redundant fec-receive-timeout fec-health-check fec-mapping-profile
		dev-id-notification dev-id link-cost exchange-fgt-device-id ipv6-auto-linklocal ems-sn-check aggregate-weight
		cert-peer-username-validation cert-peer-username-strip cert-trust-store qkd-profile auto-transport-threshold
		dns-mode ip-delay-interval mode-cfg-allow-client-selector ipv4-wins-server1 ipv4-wins-server2
		internal-domain-list backup-gateway vrf group-authentication-secret ike-tcp-port dhcp-ra-giaddr dhcp6-ra-linkaddr
		ipv4-split-exclude ipv6-split-exclude split-include-service`),
		ignored{key: "suite-b", only: []string{"disable"}, why: "write the suites with `set proposal` and `set dhgrp`"},
		ignored{key: "aggregate-member", only: []string{"disable"}},
		ignored{key: "encapsulation", only: []string{"none"}},
		ignored{key: "xauthtype", only: []string{"disable"}, why: "XAuth belongs to IKEv1"},
		ignored{key: "group-authentication", only: []string{"disable"}},
		ignored{key: "assign-ip-from", only: []string{"range"}, why: "addresses come from `set ipv4-start-ip` and `set ipv4-end-ip`"},
		ignored{key: "exchange-ip-addr6", only: []string{"::"}, why: "only exchange-ip-addr4 is exchanged"},
		ignored{key: "default-gw", only: []string{"0.0.0.0"}, why: "write the route with `config router static`"},
		ignored{key: "fec-egress", only: []string{"disable"}},
		ignored{key: "fec-ingress", only: []string{"disable"}},
		ignored{key: "fortinet-esp", only: []string{"disable"}},
		ignored{key: "qkd", only: []string{"disable"}},
		ignored{key: "kms", only: []string{""}},
		ignored{key: "remote-gw-match", only: []string{"any"}},
		ignored{key: "remote-gw6-match", only: []string{"any"}},
		ignored{key: "enforce-unique-id", only: []string{"disable", "keep-new"}, why: "the newer IKE SA of an identity always wins (INITIAL_CONTACT)"},
	),
	children: []child[phase1Draft]{
		{path: "ipv4-exclude-range"}, {path: "ipv6-exclude-range"}, {path: "backup-gateway"}, {path: "internal-domain-list"},
	},
}

func (p *phase1Draft) is6() bool    { return p.ipVersion == "6" }
func (p *phase1Draft) is4() bool    { return p.ipVersion != "6" }
func noModeCfg(p *phase1Draft) bool { return !p.ModeCfg }

func noEAP(p *phase1Draft) bool { return !p.EAP }

func noSignature(p *phase1Draft) bool { return p.AuthMethod != "signature" }

// buildPhase1 settles what depends on several keywords of one phase 1.
func (ld *loader) buildPhase1() (out []Phase1) {
	for _, o := range ld.phase1.entries {
		ld.checkPhase1(o.val, o.src)
		p := o.val.Phase1
		p.IPVersion = 4
		if o.val.is6() {
			p.IPVersion = 6
		}
		if o.val.idleTimeout {
			p.IdleTimeout = o.val.idleInterval
		}
		p.Mobike = o.val.mobike == "enable" || o.val.mobike == "" && p.Dialup()
		if p.PassiveMode || p.Dialup() {
			p.AutoNegotiate = false // FortiOS's default yields silently
		}
		out = append(out, p)
	}
	return out
}

func (ld *loader) checkPhase1(p *phase1Draft, s *source) {
	fault := func(key, format string, args ...any) {
		if !s.bad[key] {
			ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
		}
	}
	if p.Interface == "" {
		fault("interface", "interface is missing: a phase 1 needs the interface that carries it")
	} else if p.Interface == p.Name {
		fault("interface", "interface (%s) must not be the tunnel itself", p.Name)
	}
	gw, own := "remote-gw", "local-gw"
	other := []string{"local-gw6", "remote-gw6"}
	if p.is6() {
		gw, own = "remote-gw6", "local-gw6"
		other = []string{"local-gw", "remote-gw"}
	}
	mixed := false
	for _, k := range other {
		x := p.LocalGW
		if strings.HasPrefix(k, "remote") {
			x = p.RemoteGW
		}
		if s.wrote(k) && x.IsValid() && x.Is4() == p.is6() {
			mixed = true
			fault(k, "%s (%s) is not of the family of ip-version %s: local and remote gateway must be of one family", k, x, p.ipVersion)
		}
	}
	switch p.Type {
	case "static":
		if !p.RemoteGW.IsValid() && !mixed {
			fault(gw, "%s is missing: a static gateway needs the address of its peer; dialup clients need `set type dynamic`", gw)
		}
	case "dynamic":
		if p.RemoteGW.IsValid() {
			fault(gw, "%s (%s) excludes type dynamic: dialup clients come from any address", gw, p.RemoteGW)
		}
	case "ddns":
		if p.RemoteGWDDNS == "" {
			fault("remotegw-ddns", "remotegw-ddns is missing: type ddns needs the peer's host name")
		}
		if p.RemoteGW.IsValid() {
			fault(gw, "%s (%s) excludes type ddns: the address comes from remotegw-ddns", gw, p.RemoteGW)
		}
	}
	if p.LocalGW.IsValid() && p.LocalGW == p.RemoteGW {
		fault(own, "%s (%s) must not be the peer's own address", own, p.LocalGW)
	}
	if p.AuthMethod == "psk" && p.PSK.Len() == 0 && p.PeerType != "dialup" {
		fault("psksecret", "psksecret is missing: authmethod psk needs `set psksecret \"…\"`")
	}
	if p.AuthMethod == "signature" && len(p.Certificate) == 0 && !(p.EAP && p.Type != "dynamic" && p.AuthPassword.Len() > 0) {
		fault("certificate", "certificate is missing: authmethod signature needs the name of an own certificate")
	}
	if p.authMethodRemote != "" && p.authMethodRemote != p.AuthMethod {
		fault("authmethod-remote", "authmethod-remote (%s) must be the same as authmethod (%s)", p.authMethodRemote, p.AuthMethod)
	}
	if key, msg := checkAddKE(p.AddKE); msg != "" {
		fault(key, "%s", msg)
	}
	if p.Transport == "auto" && p.FallbackTCP >= p.NegotiateTimeout {
		fault("fallback-tcp-threshold", "fallback-tcp-threshold (%d) must be less than negotiate-timeout (%d)", int(p.FallbackTCP.Seconds()), int(p.NegotiateTimeout.Seconds()))
	}
	if p.PPK != "disable" && p.PPKSecret.Len() == 0 {
		fault("ppk-secret", "ppk-secret is missing: ppk %s needs it", p.PPK)
	}
	if p.PPK != "disable" && p.PPKIdentity == "" {
		fault("ppk-identity", "ppk-identity is missing: ppk %s needs it", p.PPK)
	}
	if p.PeerType == "one" && p.PeerID == "" {
		fault("peerid", "peerid is missing: peertype one needs the identity of the one peer")
	}
	if p.PeerType != "one" && p.PeerID != "" {
		fault("peerid", "peerid is only checked with `set peertype one` (peertype is %s)", p.PeerType)
	}
	switch p.LocalIDType {
	case "address":
		if _, err := parseAddr(p.LocalID); err != nil && p.LocalID != "" {
			fault("localid", "localid (%s) must be an IP address with localid-type address", echo(p.LocalID))
		}
	case "user-fqdn":
		if p.LocalID != "" && !strings.Contains(p.LocalID, "@") {
			fault("localid", "localid (%s) must have the form user@domain with localid-type user-fqdn", echo(p.LocalID))
		}
	}
	if p.LocalIDType != "auto" && p.LocalIDType != "address" && p.LocalID == "" && (p.AuthMethod == "psk" || p.LocalIDType != "asn1dn") {
		fault("localid", "localid is missing: localid-type %s needs it", p.LocalIDType)
	}
	if p.LocalIDType == "asn1dn" && p.LocalID != "" && p.AuthMethod == "signature" {
		fault("localid", "localid excludes localid-type asn1dn: with it the certificate's own subject is sent")
	}
	explicit := p.AutoNegotiate && s.wrote("auto-negotiate")
	if explicit && p.PassiveMode {
		fault("auto-negotiate", "auto-negotiate (enable) excludes passive-mode enable of line %d: a passive gateway never begins (FortiOS: command parse error before 'set')", s.at("passive-mode"))
	} else if explicit && p.Type == "dynamic" {
		fault("auto-negotiate", "auto-negotiate (enable) excludes type dynamic: a dialup gateway never begins")
	}
	if p.ExchangeIPAddr4.IsValid() && !p.ExchangeInterfaceIP {
		fault("exchange-ip-addr4", "exchange-ip-addr4 (%s) needs `set exchange-interface-ip enable`", p.ExchangeIPAddr4)
	}
	if p.NetworkID != 0 && !p.NetworkOverlay {
		fault("network-id", "network-id (%d) needs `set network-overlay enable`", p.NetworkID)
	}
	if p.ModeCfg {
		checkPool(p, s, fault)
	}
}

// checkPeers looks for phase 1 entries that a responder cannot tell apart.
func (ld *loader) checkPeers() {
	type key struct {
		dialup    bool
		local     string
		remote    netip.Addr
		ddns      string
		network   int
		peer      string
		auth      string
		ipVersion string
	}
	seen := map[key]*object[phase1Draft]{}
	for _, o := range ld.phase1.entries {
		p := o.val
		if p.Interface == "" || p.Type == "static" && !p.RemoteGW.IsValid() || p.Type == "ddns" && p.RemoteGWDDNS == "" {
			continue
		}
		k := key{dialup: p.Type == "dynamic", local: p.Interface + " " + p.LocalGW.String(), remote: p.RemoteGW, ddns: p.RemoteGWDDNS, ipVersion: p.ipVersion, peer: "any"}
		if p.NetworkOverlay {
			k.network = p.NetworkID + 1
		}
		switch p.PeerType {
		case "one":
			k.peer = "one " + strings.ToLower(p.PeerID)
		case "peer":
			k.peer = "peer " + p.Peer
		case "peergrp":
			k.peer = "peergrp " + p.PeerGroup
		case "dialup":
			k.peer = "dialup " + p.UserGroup
		}
		k.auth = p.AuthMethod
		if p.EAP {
			k.auth = "eap"
		}
		first := seen[k]
		if first == nil {
			seen[k] = o
			continue
		}
		what := "any peer identity"
		if p.PeerType == "one" {
			what = "the peer identity " + echo(p.PeerID)
		}
		if k.dialup {
			ld.fault(o.src.line, o.src.object, "peerid", fmt.Sprintf("cannot be told from %s (line %d): both take dialup clients with %s at the same local address; give each its own `set peertype one` and `set peerid`, or network-id", first.src.object, first.src.line, what))
			continue
		}
		peer := p.RemoteGWDDNS
		if p.RemoteGW.IsValid() {
			peer = p.RemoteGW.String()
		}
		ld.fault(o.src.line, o.src.object, "remote-gw", fmt.Sprintf("cannot be told from %s (line %d): both have the peer %s with %s at the same local address; give each its own peerid or network-id", first.src.object, first.src.line, peer, what))
	}
}

// espSuites multiplies the suites of a phase 2 by its ESN setting, extended numbers first.
func espSuites(in []ipsec.Suite, esn string) (out []ipsec.Suite) {
	for _, s := range in {
		if esn != "disable" {
			s.ESN = true
			out = append(out, s)
		}
		if esn != "require" {
			s.ESN = false
			out = append(out, s)
		}
	}
	return out
}

// checkReferences settles what one phase 1 says of others and of addresses.
func (ld *loader) checkReferences(c *Config) {
	var known []string
	for _, p := range c.Phase1 {
		known = append(known, p.Name)
	}
	for i, o := range ld.phase1.entries {
		p, s := &c.Phase1[i], o.src
		for _, m := range p.Monitor {
			switch {
			case m == p.Name:
				ld.fault(s.at("monitor"), s.object, "monitor", fmt.Sprintf("monitor (%s) must be another phase 1", m))
			case !slices.Contains(known, m):
				ld.fault(s.at("monitor"), s.object, "monitor", fmt.Sprintf("monitor (%s) names no phase 1%s", echo(m), ld.hint(m, known)))
			}
		}
	}
	ld.checkSplitIncludes(c)
}
