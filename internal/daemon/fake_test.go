package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

// fakeBackend answers commands from a hand-made view and remembers what was asked.
type fakeBackend struct {
	v     *view
	err   error
	hub   *logHub
	asked []string
	told  routesView
	sums  checksums
	later []*view // one after the other, once something was asked
}

func (f *fakeBackend) view(context.Context, bool) (*view, error) {
	if len(f.later) > 0 && len(f.asked) > 0 {
		f.v, f.later = f.later[0], f.later[1:]
	}
	return f.v, f.err
}
func (f *fakeBackend) ask(words ...string) error {
	f.asked = append(f.asked, strings.Join(words, " "))
	return f.err
}
func (f *fakeBackend) up(_ context.Context, p1, p2 string) error   { return f.ask("up", p1, p2) }
func (f *fakeBackend) down(_ context.Context, p1, p2 string) error { return f.ask("down", p1, p2) }
func (f *fakeBackend) clear(_ context.Context, name string) (int, error) {
	return len(f.v.gateways(name)), f.ask("clear", name)
}
func (f *fakeBackend) rekey(_ context.Context, name string, ike bool) (int, error) {
	return 1, f.ask("rekey", name, strconv.FormatBool(ike))
}
func (f *fakeBackend) failover(_ context.Context, s cluster.ScopeID, set bool) error {
	if f.v.Node.HA == nil {
		return errors.New("standalone")
	}
	if s != 0 {
		return f.ask("failover", fmt.Sprint(s), map[bool]string{true: "set", false: "unset"}[set])
	}
	return f.ask("failover", map[bool]string{true: "set", false: "unset"}[set])
}
func (f *fakeBackend) redirect(context.Context, bool) (int, bool, error) { return 0, false, nil }
func (f *fakeBackend) redirectable(context.Context) (int, error)         { return 0, nil }

func (f *fakeBackend) drain(_ context.Context, on bool) error {
	return f.ask("drain", map[bool]string{true: "on", false: "off"}[on])
}
func (f *fakeBackend) announced() (routesView, error) { return f.told, f.err }
func (f *fakeBackend) reload(context.Context) (reloaded, error) {
	return reloaded{Reloaded: true}, f.ask("reload")
}
func (f *fakeBackend) checksums(context.Context) (checksums, error) { return f.sums, f.err }
func (f *fakeBackend) logs() *logHub                                { return f.hub }

const viewConfig = `
config system global
    set hostname "gw1"
end
config system ha
    set mode a-p
    set group-id 7
    set group-name "pair"
    set password "cluster secret"
    set hbdev "hb0" 50 "hb1" 50
    set hb-interval 1
    set hb-interval-in-milliseconds 10ms
    set hb-lost-threshold 3
    set monitor "wan0" "lan0"
end
config system interface
    edit "VPNtest"
        set ip 192.168.199.2 255.255.255.255
        set remote-ip 192.168.199.1 255.255.255.255
    next
end
config vpn ipsec phase1-interface
    edit "VPNtest"
        set interface "wan0"
        set ike-version 2
        set local-gw 192.0.2.1
        set peertype any
        set proposal aes256-sha512
        set dpd disable
        set dhgrp 21
        set nattraversal disable
        set remote-gw 192.0.2.10
        set psksecret plain
    next
    edit "vpn1"
        set type dynamic
        set interface "wan0"
        set ike-version 2
        set local-gw 192.0.2.1
        set peertype one
        set peerid "Nokia_Peer"
        set proposal aes128-sha1
        set dpd on-idle
        set dpd-retryinterval 60
        set dhgrp 2
        set nattraversal disable
        set psksecret plain
    next
end
config vpn ipsec phase2-interface
    edit "VPNtest"
        set phase1name "VPNtest"
        set proposal aes256-sha512
        set dhgrp 21
        set replay disable
        set keepalive enable
        set keylifeseconds 600
    next
    edit "vpn1"
        set phase1name "vpn1"
        set proposal aes128-sha1
        set keylifeseconds 10800
    next
end
`

func mustConfig(t testing.TB, text string) *config.Config {
	t.Helper()
	c, faults := config.Load("test.conf", []byte(text))
	for _, f := range faults {
		if !f.Warning {
			t.Fatal(f.Error())
		}
	}
	return c
}

func key(n int, b byte) ipsec.Key {
	out := make([]byte, n)
	for i := range out {
		out[i] = b + byte(i)
	}
	return ipsec.NewKey(out)
}

var (
	viewNow  = time.Date(2026, 3, 12, 17, 42, 17, 0, time.UTC)
	any4     = ipsec.SelectorFromPrefix(netip.MustParsePrefix("0.0.0.0/0"))
	branch4  = ipsec.SelectorFromPrefix(netip.MustParsePrefix("10.10.1.0/24"))
	cbc256   = ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 256, PRF: ipsec.PRFHMACSHA512, Integ: ipsec.INTEGHMACSHA512_256, KE: ipsec.KEECP521}
	cbc128   = ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, PRF: ipsec.PRFHMACSHA1, Integ: ipsec.INTEGHMACSHA1_96, KE: ipsec.KEMODP1024}
	spiSite  = ipsec.ESPSPI(0x154ccf99)
	spiBranc = ipsec.ESPSPI(0xa575b631)
)

// testView is a pair's owner with one site-to-site tunnel and one dialup client;
// with standby set, the other member's view of the same.
func testView(t testing.TB, standby bool) *view {
	local, site, branch := netip.MustParseAddrPort("192.0.2.1:500"), netip.MustParseAddrPort("192.0.2.10:500"), netip.MustParseAddrPort("198.51.100.2:500")
	v := &view{
		Now: viewNow, Started: viewNow.Add(-26 * time.Hour), Hostname: "gw1", DaemonPID: 4712, GuardianPID: 4711,
		Config: mustConfig(t, viewConfig), DataPlane: "userspace", Progress: 12345,
		IfIndex: map[string]int{"wan0": 59, "VPNtest": 61, "vpn1": 62},
		Tunnels: map[string]tunnelView{
			"VPNtest": {Index: 61, MTU: 1500, OuterMTU: 1500, IP: netip.MustParsePrefix("192.168.199.2/32"), RemoteIP: netip.MustParseAddr("192.168.199.1")},
			"vpn1":    {Index: 62, MTU: 1500, OuterMTU: 1500},
		},
		Loop:  loopStats{IKEReceived: 40, IKEDropped: 1, Events: 9, Frames: 30, Effects: 200, Timeouts: 17},
		Plane: xfrm.PlaneCounters{UnknownSPI: 3, Malformed: 1},
	}
	role, self, name, serial := cluster.RoleOwner, cluster.NodeID(1), "gw1", "TANDEM0000000001"
	if standby {
		role, self, name, serial, v.Hostname = cluster.RoleStandby, 2, "gw2", "TANDEM0000000002", "gw2"
	}
	peer := cluster.Peer{Node: 2, Name: "gw2", Running: true, Role: cluster.RoleStandby, Epoch: cluster.Epoch{Counter: 3, Node: 1}, Entitled: true,
		Election: cluster.Election{MonitorsUp: 2, Age: time.Hour, Priority: 128, Serial: "TANDEM0000000002"},
		Links:    []cluster.Link{{Device: "hb0", Addr: "fe80::2"}, {Device: "hb1", Addr: "fe80::3"}}}
	if standby {
		peer.Node, peer.Name, peer.Role, peer.Entitled, peer.Election.Serial = 1, "gw1", cluster.RoleOwner, false, "TANDEM0000000001"
	}
	v.Node = node.Status{Owner: !standby, HA: &cluster.HAStatus{
		Self: self, Owner: 1, Name: name, Serial: serial, Role: role, Epoch: cluster.Epoch{Counter: 3, Node: 1}, Synchronised: true,
		LastChange: viewNow.Add(-time.Hour), LastReason: "gw2 fell silent on every heartbeat link", LastCovered: true,
		LastDetected: 31200 * time.Microsecond, Takeovers: 2, Peers: []cluster.Peer{peer},
		Election: cluster.Election{MonitorsUp: 2, Age: 26 * time.Hour, Priority: 128, Serial: serial},
	}}
	siteSA := ipsec.ChildSA{Tunnel: "VPNtest", Phase1: "VPNtest", Phase2: "VPNtest", SPIIn: spiSite, SPIOut: 0xbf67d15d, Suite: cbc256,
		EncrIn: key(32, 0x10), EncrOut: key(32, 0x40), IntegIn: key(64, 0x80), IntegOut: key(64, 0xc0),
		Local: local, Remote: site, TSLocal: []ipsec.TrafficSelector{any4}, TSRemote: []ipsec.TrafficSelector{any4}}
	branchSA := ipsec.ChildSA{Tunnel: "vpn1_1", Phase1: "vpn1", Phase2: "vpn1", SPIIn: spiBranc, SPIOut: 0x10aa45b0, Suite: cbc128, ReplayWindow: 2048,
		EncrIn: key(16, 1), EncrOut: key(16, 2), IntegIn: key(20, 3), IntegOut: key(20, 4),
		Local: local, Remote: branch, TSLocal: []ipsec.TrafficSelector{any4}, TSRemote: []ipsec.TrafficSelector{branch4}}
	v.Node.Gateways = []ike.GatewayStatus{
		{Name: "VPNtest", Interface: "wan0", Local: local, Remote: site, Created: viewNow.Add(-535 * time.Second), PeerID: "192.0.2.10",
			IKECreated: 1, IKEEstablished: 1, ChildCreated: 1, ChildEstablished: 1,
			IKETime:   [3]time.Duration{4 * time.Millisecond, 4 * time.Millisecond, 4 * time.Millisecond},
			ChildTime: [3]time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond},
			IKE: []ike.IKEStatus{{ID: 1169, SPIs: ipsec.IKESPIs{I: 0xe870277e2268318c, R: 0xacb0001b24748673}, State: "established",
				Established: viewNow.Add(-535 * time.Second), Took: 4 * time.Millisecond, Suite: cbc256, Lifetime: 86400 * time.Second, Rekey: 85594 * time.Second,
				RecvID: 2, Keys: ike.KeyLog{Ei: key(32, 1), Er: key(32, 2), Ai: key(64, 3), Ar: key(64, 4)}}},
			Children: []ike.ChildStatus{{Phase2: "VPNtest", SA: siteSA, Outbound: true, Installed: viewNow.Add(-574 * time.Second),
				Lifetime: 600 * time.Second, Left: 26 * time.Second, Rekey: 580 * time.Second}}},
		{Name: "vpn1", Interface: "wan0", Local: local, Created: viewNow.Add(-600 * time.Second)},
		{Name: "vpn1_1", Parent: "vpn1", Index: 1, Interface: "wan0", Local: local, Remote: branch, Created: viewNow.Add(-334 * time.Second), PeerID: "Nokia_Peer",
			IKECreated: 2, IKEEstablished: 1, ChildCreated: 1, ChildEstablished: 1, Failure: "no proposal chosen",
			IKE: []ike.IKEStatus{
				{ID: 1170, SPIs: ipsec.IKESPIs{I: 0x1111222233334444, R: 0x5555666677778888}, Initiator: true, State: "established",
					Established: viewNow.Add(-334 * time.Second), Suite: cbc128, Lifetime: 90000 * time.Second, Rekey: 89000 * time.Second, DPDSent: 0x20,
					SendID: 3, Keys: ike.KeyLog{Ei: key(16, 1), Er: key(16, 2), Ai: key(20, 3), Ar: key(20, 4)}},
				{ID: 1171, SPIs: ipsec.IKESPIs{I: 0x99}, Initiator: true, State: "connecting"}},
			Children: []ike.ChildStatus{{Phase2: "vpn1", SA: branchSA, Outbound: true,
				Lifetime: 10800 * time.Second, Left: 10480 * time.Second, Rekey: 10788 * time.Second}}},
	}
	v.Counters = map[ipsec.ESPSPI]xfrm.Counters{
		spiSite: {InPackets: 1, InBytes: 172, OutPackets: 10, OutBytes: 840, OutSeq: 10, InSeq: 1, Ceiling: 32, Fence: 1, FenceWidened: 4,
			LastIn: viewNow.Add(-191 * time.Second), LastOut: viewNow.Add(-6 * time.Second)},
		spiBranc: {Ceiling: 32},
	}
	if standby {
		v.Counters = map[ipsec.ESPSPI]xfrm.Counters{spiSite: {Ceiling: 32, Fence: 1, InSeq: 1}, spiBranc: {Ceiling: 32}}
	}
	return v
}
