package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/ipsec"
)

func suiteNames(l []ipsec.Suite) (out []string) {
	for _, s := range l {
		n := s.String()
		if s.ESN {
			n += "+esn"
		}
		out = append(out, n)
	}
	return out
}

// What is not written has FortiOS 7's defaults.
func TestDefaults(t *testing.T) {
	c, _ := load(t, "f", phase2(""))
	want := Phase1{
		Name: "vpn1", Line: 2, Type: "static", Interface: "wan", IPVersion: 4, RemoteGW: netip.MustParseAddr("203.0.113.1"),
		KeyLife: 24 * time.Hour, AuthMethod: "psk", PeerType: "any", LocalIDType: "auto", PSK: ipsec.NewKey([]byte("s3cretvalue")),
		DHGroups: []ipsec.TransformID{14, 5}, ESN: "disable", AutoNegotiate: true, NegotiateTimeout: 30 * time.Second,
		DPD: "on-demand", DPDRetryCount: 3, DPDRetryInterval: 20 * time.Second, NATTraversal: "enable", Transport: "udp", FallbackTCP: 15 * time.Second, Keepalive: 10 * time.Second,
		Fragmentation: true, FragmentationMTU: 1200, IPFragmentation: "post-encapsulation", HASyncESPSeqno: true, AddRoute: true,
		CertIDValidation: true, DigitalSignatureAuth: true, SignatureHash: []string{"sha2-512", "sha2-384", "sha2-256"}, RSASignatureFormat: "pkcs1",
		Rekey: true, LoopbackAsymroute: true, PPK: "disable",
		Pool: Pool{AssignIP: true, Netmask4: netip.MustParseAddr("255.255.255.255"), Prefix6: 128},
	}
	got := c.Phase1[0]
	if s := strings.Join(suiteNames(got.Proposals), " "); s != "aes128-sha256 aes256-sha256 aes128gcm-prfsha256 aes256gcm-prfsha384 chacha20poly1305-prfsha256" {
		t.Errorf("phase 1 proposals: %s", s)
	}
	got.Proposals = nil
	if d := cmp.Diff(want, got, equalConfig); d != "" {
		t.Errorf("phase 1 (-want +got):\n%s", d)
	}
	all := ipsec.SelectorFromPrefix(netip.MustParsePrefix("0.0.0.0/0"))
	spec := SelectorSpec{Type: "subnet", Subnet: netip.MustParsePrefix("0.0.0.0/0"), Subnet6: netip.MustParsePrefix("::/0")}
	want2 := Phase2{
		Name: "p2", Line: 9, Phase1: "vpn1", ESN: "phase1", PFS: true, DHGroups: []ipsec.TransformID{14, 5}, KeyLifeType: "seconds",
		KeyLife: 12 * time.Hour, KeyLifeKB: 5120, Replay: true, Src: []ipsec.TrafficSelector{all}, Dst: []ipsec.TrafficSelector{all},
		RouteOverlap: "use-new", AddRoute: "phase1", SrcSpec: spec, DstSpec: spec,
	}
	got2 := c.Phase2[0]
	if s := strings.Join(suiteNames(got2.Proposals), " "); s != "aes128-sha1 aes256-sha1 aes128-sha256 aes256-sha256 aes128gcm aes256gcm chacha20poly1305" {
		t.Errorf("phase 2 proposals: %s", s)
	}
	got2.Proposals = nil
	if d := cmp.Diff(want2, got2, equalConfig); d != "" {
		t.Errorf("phase 2 (-want +got):\n%s", d)
	}
	wantHA := HA{Mode: "standalone", HBInterval: 200 * time.Millisecond, HBLostThreshold: 20, Priority: 128,
		UptimeDiffMargin: 5 * time.Minute, ARPs: 5, ARPsInterval: 8 * time.Second,
		Pingserver: Pingserver{FlipTimeout: time.Hour, ForceReset: true}, FlapDamping: true, SyncConfig: true}
	if d := cmp.Diff(wantHA, c.HA, equalConfig); d != "" {
		t.Errorf("system ha (-want +got):\n%s", d)
	}
	wantTandem := Tandem{DataPlane: "auto", QuorumLoss: "continue", ClusterDir: "/etc/tandem/cluster", StateDir: "/var/lib/tandem",
		AdminSocket: "/run/tandem/admin.sock", LogLevel: "info"}
	if d := cmp.Diff(wantTandem, c.Tandem, equalConfig); d != "" {
		t.Errorf("system tandem (-want +got):\n%s", d)
	}
	if c.HasPolicy || c.Standalone.AsymmetricTrafficControl != "cps-preferred" {
		t.Errorf("HasPolicy %v, %q", c.HasPolicy, c.Standalone.AsymmetricTrafficControl)
	}
}

// Every suite that can be written becomes the transforms that it names, and prints back.
func TestProposals(t *testing.T) {
	for _, tc := range []struct {
		phase int
		name  string
		want  ipsec.Suite
	}{
		{1, "aes128-sha1", ipsec.Suite{Encr: 12, KeyBits: 128, PRF: 2, Integ: 2}},
		{1, "aes256-sha512", ipsec.Suite{Encr: 12, KeyBits: 256, PRF: 7, Integ: 14}},
		{1, "aes256gcm-prfsha512", ipsec.Suite{Encr: 20, KeyBits: 256, PRF: 7}},
		{1, "chacha20poly1305-prfsha256", ipsec.Suite{Encr: 28, PRF: 5}},
		{1, "3des-sha384", ipsec.Suite{Encr: 3, PRF: 6, Integ: 13}},
		{2, "aes128-sha256", ipsec.Suite{Encr: 12, KeyBits: 128, Integ: 12}},
		{2, "aes128gcm", ipsec.Suite{Encr: 20, KeyBits: 128}},
		{2, "chacha20poly1305", ipsec.Suite{Encr: 28}},
		{2, "null-sha256", ipsec.Suite{Encr: 11, Integ: 12}},
	} {
		got, msg := proposals{tc.phase}.suite(tc.name)
		if msg != "" || got != tc.want {
			t.Errorf("phase %d %s: %+v %s, want %+v", tc.phase, tc.name, got, msg, tc.want)
		}
	}
	for _, phase := range []int{1, 2} {
		p := proposals{phase}
		for _, name := range p.all() {
			s, msg := p.suite(name)
			if back := p.format(&[]ipsec.Suite{s}); msg != "" || back != name {
				t.Errorf("phase %d: %s prints as %s %s", phase, name, back, msg)
			}
		}
	}
}

func TestEffects(t *testing.T) {
	c, _ := load(t, "testdata/everything.conf", readFile(t, "testdata/everything.conf"))
	selectors := func(l []ipsec.TrafficSelector) string { return fmt.Sprint(l) }
	p2 := map[string]*Phase2{}
	for i := range c.Phase2 {
		p2[c.Phase2[i].Name] = &c.Phase2[i]
	}
	for _, tc := range []struct{ what, got, want string }{
		{"a group makes several selectors, each once, nested ones too", selectors(p2["groups"].Src),
			"[17:10.3.0.0-10.3.255.255:53 17:10.4.0.1-10.4.0.1:53 17:10.0.0.5-10.0.0.9:53]"},
		{"a range", selectors(p2["groups"].Dst), "[17:10.8.0.1-10.8.0.30:0]"},
		{"an IPv6 group", selectors(p2["six"].Src), "[0:fd00:1::-fd00:1::ffff:ffff:ffff:ffff:0 0:fd00:2::1-fd00:2::5:0]"},
		{"one address", selectors(p2["hosts"].Src), "[0:10.0.0.1-10.0.0.1:0]"},
		{"ESN of phase 1 is offered beside 32 bits", fmt.Sprint(suiteNames(p2["groups"].Proposals[:2])), "[aes128-sha1+esn aes128-sha1]"},
		{"ESN required", fmt.Sprint(suiteNames(p2["six"].Proposals)), "[null-sha256+esn 3des-sha1+esn]"},
		{"esn enable is allow", p2["hosts"].ESN, "allow"},
		{"no ESN unless asked for", fmt.Sprint(suiteNames(p2["hosts6"].Proposals[:2])), "[aes128-sha1 aes256-sha1]"},
		{"dialup yields auto-negotiate", fmt.Sprint(c.Phase1ByName("pool").AutoNegotiate), "false"},
		{"shared and secondary addresses", fmt.Sprint(c.Interfaces[0].IP), "[192.0.2.1/24 192.0.2.10/24 2001:db8::1/64 2001:db8:1::1/64]"},
		{"addresses that stay", fmt.Sprint(c.Interfaces[0].ManagementIP), "[192.0.2.2/24 2001:db8::2/64]"},
		{"escapes", string(c.HA.Password.Bytes()), `with "quotes" and \ backslash`},
		{"hexadecimal secret", fmt.Sprintf("%x", c.Phase1ByName("v6").PSK.Bytes()), "0011ff"},
		{"single quotes", string(c.Phase1ByName("name").PSK.Bytes()), `single "quoted"`},
		{"heartbeats", c.HA.HBInterval.String(), "150ms"},
		{"idle timeout", c.Phase1ByName("v6").IdleTimeout.String(), "20m0s"},
		{"milliseconds", c.Phase1ByName("v6").DPDRetryInterval.String(), "250ms"},
		{"pingservers", fmt.Sprint(c.HA.Pingserver), "{[port1] 6 2h0m0s false}"},
		{"pingservers of a virtual cluster", fmt.Sprint(c.HA.VClusters[0].Pingserver, c.HA.VClusters[1].Pingserver), "{[port1] 5 0s true} {[] 0 1h0m0s false}"},
		{"hold time, damping, virtual MAC", fmt.Sprint(c.HA.FailoverHoldTime, c.HA.FlapDamping, c.HA.VirtualMAC), "5s false [port1]"},
		{"link monitors", fmt.Sprint(c.LinkMonitors), "[{uplink port1 [192.0.2.254 192.0.2.253] 192.0.2.1 100ms 50ms 3 10 5 false} {six port1 [2001:db8::fe] 2001:db8::1 500ms 500ms 5 5 1 true}]"},
		{"virtual clusters in order", fmt.Sprint(c.HA.VClusters[0].ID, c.HA.VClusters[1].ID), "1 2"},
		{"networks for clients", selectors(c.Phase1ByName("pool").Pool.SplitInclude4Subnets), "[0:10.3.0.0-10.3.255.255:0 0:10.4.0.1-10.4.0.1:0 0:10.0.0.5-10.0.0.9:0]"},
		{"phase 2 of", fmt.Sprint(len(c.Phase2Of("v6")), len(c.Phase2Of("cert")), len(c.Phase2Of("none"))), "2 2 0"},
		{"policies name", fmt.Sprint(c.PolicyNames("v6"), c.PolicyNames("cert")), "true false"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.what, tc.got, tc.want)
		}
	}
	passive, _ := load(t, "f", phase1("set passive-mode en"))
	if p := passive.Phase1[0]; !p.PassiveMode || p.AutoNegotiate {
		t.Errorf("passive-mode %v, auto-negotiate %v: the default must yield", p.PassiveMode, p.AutoNegotiate)
	}
	auto, _ := load(t, "f", phase2("set auto-negotiate enabled"))
	if !auto.Phase2[0].Keepalive {
		t.Error("auto-negotiate must imply keepalive")
	}
	old, _ := load(t, "f", readFile(t, "testdata/two-vclusters-older.conf"))
	byDefault := Pingserver{FlipTimeout: time.Hour, ForceReset: true}
	wantOld := []VCluster{{ID: 1, Priority: 200, Monitor: []string{"port1"}, VDOM: []string{"root"}, Pingserver: byDefault},
		{ID: 2, Priority: 64, Override: true, Monitor: []string{"port2"}, VDOM: []string{"FWEXT"}, Pingserver: byDefault}}
	if d := cmp.Diff(wantOld, old.HA.VClusters, equalConfig); d != "" || !old.HA.VClusterStatus || !old.HasPolicy {
		t.Errorf("older spelling (-want +got):\n%s", d)
	}
}

// The vendor's examples load, and what has no effect in them warns once each.
func TestVendorExamples(t *testing.T) {
	_, faults := load(t, "f", readFile(t, "testdata/vendor-full.conf"))
	var got []string
	for _, f := range faults {
		got = append(got, f.Object+" "+f.Key)
	}
	want := strings.Split("aggregate-member forticlient-enforcement comments npu-offload suite-b eap wizard-type auto-discovery-sender auto-discovery-receiver "+
		"auto-discovery-forwarder encapsulation tunnel-search add-gw-route ipv4-df auto-discovery-sender auto-discovery-forwarder encapsulation comments", " ")
	for i := range want {
		want[i] = "VPNtoTest " + want[i]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("warnings (-want +got):\n%s", d)
	}
	c, _ := load(t, "f", readFile(t, "testdata/passive-spoke-flipped.conf"))
	if p := c.Phase1[0]; p.PassiveMode || !p.AutoNegotiate || len(c.Phase1) != 1 || !c.Phase2[0].AutoNegotiate {
		t.Errorf("flipped spoke: %+v", p)
	}
	c, _ = load(t, "f", readFile(t, "testdata/exchange-interface-ip.conf"))
	if p := c.Phase1[0]; !p.ExchangeInterfaceIP || p.ExchangeIPAddr4.String() != "172.16.0.1" || c.Interfaces[0].RemoteIP.String() != "1.1.1.2/30" {
		t.Errorf("exchange: %+v %+v", p, c.Interfaces[0])
	}
	c, _ = load(t, "f", readFile(t, "testdata/farm-member.conf"))
	if s, p := c.Standalone, c.Phase1[0]; s.GroupID != 1 || s.MemberID != 1 || len(s.Peers) != 3 || s.Peers[2].PeerIP.String() != "172.31.1.4" ||
		c.Tandem.Witness != (Witness{netip.MustParseAddr("172.31.1.9"), 5}) ||
		s.Peers[0].HBInterval != 200*time.Millisecond || s.Peers[0].HBLostThreshold != 10 || !s.Peers[0].IPsecTunnelSync ||
		!p.FGSPSync || p.PeerID != "Nokia_Peer" || p.DPDRetryInterval != time.Minute || p.NATTraversal != "disable" || !slices.Equal(p.DHGroups, []ipsec.TransformID{2}) {
		t.Errorf("farm: %+v %+v", s, p)
	}
	for lines, want := range map[string]bool{"set type dynamic": true, "set type dynamic\nset mobike disable": false,
		"set remote-gw 203.0.113.1": false, "set remote-gw 203.0.113.1\nset mobike enable": true} {
		c, _ := load(t, "f", "config vpn ipsec phase1-interface\nedit vpn1\nset interface wan\nset psksecret s3cretvalue\n"+lines+"\nnext\nend\n")
		if got := c.Phase1[0].Mobike; got != want {
			t.Errorf("%s: mobike %v", lines, got)
		}
	}
	c, _ = load(t, "f", readFile(t, "testdata/vendor-tunnel.conf"))
	if p := c.Phase1[0]; p.AutoNegotiate || len(c.Policies) != 2 || c.Policies[1].Name != "From Test VPN" || c.Routes[0].Dst.String() != "192.168.0.0/24" || c.Phase2[0].Replay {
		t.Errorf("tunnel: %+v %+v %+v", p, c.Policies, c.Routes)
	}
}

// The same text with Windows line ends, a byte order mark and tabs is the same configuration.
func TestLineEnds(t *testing.T) {
	text := readFile(t, "testdata/pair.conf")
	want, _ := load(t, "f", text)
	got, _ := load(t, "f", "\ufeff"+strings.ReplaceAll(strings.ReplaceAll(text, "\n", "\r\n"), "    ", "\t"))
	if d := cmp.Diff(want, got, equalConfig); d != "" {
		t.Error(d)
	}
	c, _ := load(t, "f", "config system ha\n# comment\nset group-name two\\ words\nset password 'a\\b'\nend")
	if c.HA.GroupName != "two words" || string(c.HA.Password.Bytes()) != `a\b` {
		t.Errorf("%q %q", c.HA.GroupName, c.HA.Password.Bytes())
	}
}

func TestBounds(t *testing.T) {
	deep := strings.Repeat("config system ha\n", maxDepth+1)
	for _, tc := range []struct{ name, text, want string }{
		{"size", strings.Repeat("#", MaxSize+1), "the configuration must not be larger than 4 MiB"},
		{"depth", deep, "blocks are nested deeper than 8 levels"},
		{"words", "config system ha\nset monitor" + strings.Repeat(" a", maxWords+1) + "\nend\n", "more values on one line than can be read"},
		{"faults", strings.Repeat("x\n", 3*maxFaults), "more than 1000 faults: the rest is not shown"},
		{"suites", phase1("set proposal " + strings.Join(proposals{1}.all(), " ")), "proposal takes at most 16 suites"},
	} {
		c, faults := Load("f", []byte(tc.text))
		if c != nil || !slices.ContainsFunc(faults, func(f Fault) bool { return strings.Contains(f.Message, tc.want) }) {
			t.Errorf("%s: want %q, got %v", tc.name, tc.want, faults[:min(3, len(faults))])
		}
		if len(faults) > maxFaults+1 {
			t.Errorf("%s: %d faults", tc.name, len(faults))
		}
	}
}

func TestAdditionalKeyExchanges(t *testing.T) {
	c, _ := load(t, "f", phase1("set addke1 37 ml-kem-768 none\nset addke2 0\nset addke7 36")+strings.Replace(phase2("set addke3 36"), goodPhase1, "", 1))
	want := [ipsec.MaxAddKE][]ipsec.TransformID{{ipsec.KEMLKEM1024, ipsec.KEMLKEM768, ipsec.KENone}, 6: {ipsec.KEMLKEM768}}
	if d := cmp.Diff(want, c.Phase1[0].AddKE); d != "" {
		t.Errorf("phase 1: %s", d)
	}
	if d := cmp.Diff([ipsec.MaxAddKE][]ipsec.TransformID{2: {ipsec.KEMLKEM768}}, c.Phase2[0].AddKE); d != "" {
		t.Errorf("phase 2: %s", d)
	}
}
