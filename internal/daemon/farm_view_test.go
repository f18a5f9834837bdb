package daemon

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/forward"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

const farmConfig = `
config system global
    set hostname "@NAME@"
end
config system standalone-cluster
    set standalone-group-id 1
    set group-member-id @ID@
    config cluster-peer
        edit 1
            set peerip @PEER1@
        next
        edit 2
            set peerip @PEER2@
        next
        edit 3
            set peerip @PEER3@
        next
    end
end
config vpn ipsec phase1-interface
    edit "vpn1"
        set type dynamic
        set interface "port2"
        set ike-version 2
        set local-gw 192.168.202.31
        set keylife 90000
        set peertype one
        set net-device disable
        set proposal aes128-sha1
        set dpd on-idle
        set dhgrp 2
        set fgsp-sync @SYNC@
        set nattraversal disable
        set peerid "Nokia_Peer"
        set psksecret plain
        set dpd-retryinterval 60
    next
end
config vpn ipsec phase2-interface
    edit "vpn1"
        set phase1name "vpn1"
        set proposal aes128-sha1
        set keylifeseconds 10800
    next
end
`

var farmNames = []string{"", "DC1_VM1", "DC1_VM2", "DC1_VM3", "DC1_VM4"}

func farmAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 1, byte(n)}) }

// testFarmView is a farm of four, the last without fgsp-sync, as member id sees it: the
// first owns vpn1_1, the second vpn1_2, and both tunnels are copied to all three.
func testFarmView(t testing.TB, id int) *view {
	self := cluster.NodeID(id)
	config := strings.NewReplacer("@NAME@", farmNames[id], "@ID@", string(rune('0'+id)), "@SYNC@", enabled(id != 4))
	var peers []string
	for n := 1; n <= 4; n++ {
		if n != id {
			peers = append(peers, farmAddr(n).String())
		}
	}
	v := &view{
		Now: viewNow, Started: viewNow.Add(-26 * time.Hour), Hostname: farmNames[id], DaemonPID: 4712, GuardianPID: 4711,
		Config:    mustConfig(t, strings.NewReplacer("@PEER1@", peers[0], "@PEER2@", peers[1], "@PEER3@", peers[2]).Replace(config.Replace(farmConfig))),
		DataPlane: "userspace", IfIndex: map[string]int{"port2": 6, "vpn1": 12},
		Tunnels:  map[string]tunnelView{"vpn1": {Index: 12, MTU: 1500, OuterMTU: 1500}},
		Counters: map[ipsec.ESPSPI]xfrm.Counters{},
		Farm: farmView{Leader: 2, Nodes: map[netip.Addr]cluster.NodeID{}, Link: forward.Stats{Members: map[cluster.NodeID]forward.MemberStats{}},
			Interfaces: []physicalView{{"port2", "00:0c:29:22:00:6b", true}, {"port3", "00:0c:29:22:00:75", true}, {"port4", "00:0c:29:22:00:7f", false}}},
	}
	f := &node.FarmStatus{Self: self, Name: farmNames[id], Leads: id == 2, Joined: true, Version: 1, Owned: map[string]bool{},
		Counters: node.FarmCounters{Forwarded: 3, OwnerMoves: 2}}
	for n := 1; n <= 4; n++ {
		f.Members = append(f.Members, fsm.Member{Node: cluster.NodeID(n), Name: farmNames[n], Voter: n <= 3, Witness: n == 4, Process: 1, MinVersion: 1, MaxVersion: 1})
		if n == id {
			continue
		}
		f.Peers = append(f.Peers, cluster.Peer{Node: cluster.NodeID(n), Name: farmNames[n], Running: true})
		v.Farm.Nodes[farmAddr(n)] = cluster.NodeID(n)
		v.Farm.Link.Members[cluster.NodeID(n)] = forward.MemberStats{Up: true, Sent: uint64(10 * n), SentIKE: 1, Received: uint64(5 * n), ReceivedIKE: uint64(n)}
	}
	for n := 1; n <= 3; n++ {
		owner := cluster.NodeID(n)
		a, b := cluster.NodeID(n%3+1), cluster.NodeID((n+1)%3+1)
		e := cluster.Epoch{Counter: 65536, Node: owner}
		s := node.ScopeStatus{Heard: owner, Scope: fsm.Scope{ID: fsm.Slot(owner, 0), Owner: owner, Epoch: e, Successor: a,
			Standbys: []cluster.NodeID{a, b}, Sync: []cluster.NodeID{a, b}, Reason: fsm.ReasonHandover}}
		if id != 4 {
			h := cluster.HAStatus{Self: self, Owner: owner, Role: cluster.RoleStandby, Epoch: e, Synchronised: true}
			if owner == self {
				h.Role, h.LastReason, h.LastCovered, h.LastChange, h.Takeovers = cluster.RoleOwner, "DC1_VM3 handed over", true, viewNow.Add(-time.Hour), 1
				h.Epoch.Counter++
			}
			s.Here = &h
		}
		f.Scopes = append(f.Scopes, s)
	}
	v.Node = node.Status{Owner: id != 4, Farm: f}
	if id == 4 {
		return v
	}
	local := netip.MustParseAddrPort("192.168.202.31:500")
	v.Node.Gateways = []ike.GatewayStatus{{Name: "vpn1", Interface: "port2", Local: local, Created: viewNow.Add(-600 * time.Second)}}
	for k := 1; k <= 2; k++ {
		name, remote := "vpn1_"+string(rune('0'+k)), netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, byte(k), 2}), 500)
		spi := ipsec.ESPSPI(0xa575b630 + uint32(k))
		sa := ipsec.ChildSA{Tunnel: name, Phase1: "vpn1", Phase2: "vpn1", SPIIn: spi, SPIOut: ipsec.ESPSPI(0x10aa45af + uint32(k)), Suite: cbc128, ReplayWindow: 2048,
			EncrIn: key(16, 1), EncrOut: key(16, 2), IntegIn: key(20, 3), IntegOut: key(20, 4), Local: local, Remote: remote,
			TSLocal: []ipsec.TrafficSelector{any4}, TSRemote: []ipsec.TrafficSelector{branch4}}
		v.Node.Gateways = append(v.Node.Gateways, ike.GatewayStatus{Name: name, Parent: "vpn1", Index: k, Interface: "port2", Local: local, Remote: remote,
			Created: viewNow.Add(-320 * time.Second), PeerID: "Nokia_Peer", IKECreated: 1, IKEEstablished: 1, ChildCreated: 1, ChildEstablished: 1,
			IKE: []ike.IKEStatus{{ID: uint64(k), SPIs: ipsec.IKESPIs{I: 0x1111222233334444, R: 0x5555666677778888}, State: "established",
				Established: viewNow.Add(-320 * time.Second), Suite: cbc128, Lifetime: 90000 * time.Second, Rekey: 89000 * time.Second, DPDSent: 0x20}},
			Children: []ike.ChildStatus{{Phase2: "vpn1", SA: sa, Outbound: true, Lifetime: 10800 * time.Second, Left: 10480 * time.Second, Rekey: 10788 * time.Second}}})
		f.Owned[name] = k == id
		v.Counters[spi] = xfrm.Counters{Ceiling: 32}
		if k == id {
			v.Counters[spi] = xfrm.Counters{Ceiling: 32, OutSeq: 4, OutPackets: 4, OutBytes: 336, InSeq: 4, InPackets: 4, InBytes: 336,
				LastIn: viewNow.Add(-6 * time.Second), LastOut: viewNow.Add(-6 * time.Second)}
		}
	}
	return v
}

// The layouts of a farm: what one member shows of a tunnel that it owns, another of the
// same as its standby, and one without fgsp-sync.
func TestFarmLayouts(t *testing.T) {
	for _, c := range []struct {
		name, line string
		member     int
	}{
		{"farm_peers", "diagnose sys ha standalone-peers", 1},
		{"farm_tunnel_primary", "diagnose vpn tunnel list name vpn1_1 --show-keys", 1},
		{"farm_tunnel_standby", "diagnose vpn tunnel list name vpn1_1 --show-keys", 2},
		{"farm_tunnel_aside", "diagnose vpn tunnel list name vpn1_1", 4},
		{"farm_status", "get system ha status", 1},
		{"farm_status_json", "get system ha status --json", 1},
		{"farm_status_aside", "diagnose sys ha status", 4},
		{"farm_summary", "get vpn ipsec tunnel summary", 1},
		{"farm_gateways", "diagnose vpn ike gateway list", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := run(&fakeBackend{v: testFarmView(t, c.member)}, c.line)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, out)
		})
	}
}

// Of one tunnel exactly one member says sync-primary, and the standbys' seqno is the
// ceiling that it leased.
func TestFarmRoles(t *testing.T) {
	owners, standbys := map[string]int{}, map[string]int{}
	for id := 1; id <= 4; id++ {
		out, err := run(&fakeBackend{v: testFarmView(t, id)}, "diagnose vpn tunnel list --json")
		if err != nil {
			t.Fatal(err)
		}
		var list []tunnelJSON
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		for i := range list {
			g := &list[i]
			if g.Parent == "" {
				continue
			}
			sa := g.Selectors[0].SAs[0]
			switch g.Role {
			case "sync-primary":
				owners[g.Name]++
				if sa.Seqno != 5 {
					t.Errorf("member %d: seqno %d of %s, which sent 4", id, sa.Seqno, g.Name)
				}
			case "standby":
				standbys[g.Name]++
				if sa.Seqno != sa.Ceiling {
					t.Errorf("member %d: seqno %d of %s, whose ceiling is %d", id, sa.Seqno, g.Name, sa.Ceiling)
				}
			}
		}
	}
	for _, n := range []string{"vpn1_1", "vpn1_2"} {
		if owners[n] != 1 || standbys[n] != 2 {
			t.Errorf("%s: %d owners, %d standbys", n, owners[n], standbys[n])
		}
	}
}

// What scripts read is there, under these names, in both commands.
func TestFarmStatusFields(t *testing.T) {
	for _, line := range []string{"get system ha status --json", "diagnose sys ha standalone-peers --json"} {
		out, err := run(&fakeBackend{v: testFarmView(t, 1)}, line)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Hostname, Leader          string
			Group, ID, Owned, Standby int
			Synchronised, Quorum      bool
			Forwarded                 uint64
			OwnerMoves                uint64 `json:"owner_moves"`
			DaemonPID                 int    `json:"daemon_pid"`
			GuardianPID               int    `json:"guardian_pid"`
			Alarms                    []alarmJSON
			Members                   []map[string]any
			Scopes                    []map[string]any
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if got.Hostname != "DC1_VM1" || got.Leader != "DC1_VM2" || got.Group != 1 || got.ID != 1 || got.Owned != 1 || got.Standby != 1 ||
			!got.Synchronised || !got.Quorum || got.Forwarded != 90 || got.OwnerMoves != 2 || got.DaemonPID != 4712 || got.GuardianPID != 4711 ||
			got.Alarms == nil || len(got.Members) != 4 || len(got.Scopes) != 3 {
			t.Errorf("%s: %+v", line, got)
		}
		for _, name := range []string{"scope", "owner", "epoch", "successor", "standbys", "sync", "role", "reason"} {
			if _, ok := got.Scopes[0][name]; !ok {
				t.Errorf("%s: a scope has no %q", line, name)
			}
		}
	}
}

// A member is synchronised when it has joined, owns something, and whatever it has to
// do with is held as it should be.
func TestFarmSynchronised(t *testing.T) {
	for name, spoil := range map[string]func(*node.FarmStatus){
		"not joined":                        func(f *node.FarmStatus) { f.Joined = false },
		"owns alone":                        func(f *node.FarmStatus) { f.Scopes[0].Here.Synchronised = false },
		"its copy is not complete":          func(f *node.FarmStatus) { f.Scopes[1].Here.Synchronised = false },
		"shall stand by and has not begun":  func(f *node.FarmStatus) { f.Scopes[1].Here = nil },
		"was given a scope, another has it": func(f *node.FarmStatus) { f.Scopes[1].Owner = 1 },
		"owns nothing": func(f *node.FarmStatus) {
			f.Scopes[0].Owner, f.Scopes[0].Heard, f.Scopes[0].Here.Role = 2, 2, cluster.RoleStandby
		},
	} {
		v := testFarmView(t, 1)
		if !v.synchronised() {
			t.Fatal("not synchronised at first")
		}
		if spoil(v.Node.Farm); v.synchronised() {
			t.Errorf("%s: synchronised", name)
		}
	}
	v := testFarmView(t, 1)
	s := &v.Node.Farm.Scopes[2]
	if s.Standbys, s.Here.Synchronised = []cluster.NodeID{2}, false; !v.synchronised() {
		t.Error("a scope that this member has nothing to do with counts")
	}
}

// Members that were not heard, or that the log does not know, are shown as such.
func TestFarmMemberStates(t *testing.T) {
	v := testFarmView(t, 1)
	f := v.Node.Farm
	f.Quorum = node.Quorum{Lost: true}
	v.Farm.Alarms = []alarmJSON{{"quorum", "no quorum: going on with what is owned or promised, nothing new is decided"}}
	v.Farm.Leader = 0
	f.Peers[0].Running = false
	f.Members[2].Lost = true
	f.Members[0].State = fsm.Draining
	f.Members = f.Members[:3]
	f.Scopes[1].Heard = 3
	delete(v.Farm.Nodes, farmAddr(4))
	for _, c := range []struct{ line, want string }{
		{"get system ha status", "HA Health Status: WARNING\n    WARNING: quorum: no quorum"},
		{"get system ha status", "Quorum: no (quorum-loss continue)\nLeader: none known\n"},
		{"get system ha status", "DC1_VM1: id 1, draining, voter, this member, owns 1 scopes\n"},
		{"get system ha status", "DC1_VM2: id 2, silent, voter, owns 0 scopes\n"},
		{"get system ha status", "DC1_VM3: id 3, lost, voter, owns 2 scopes\n"},
		{"get system ha status", "DC1_VM4: id 4, joining, owns 0 scopes\n"},
		{"get system ha status", "slot 2/0: owner DC1_VM3 (decided: DC1_VM2)"},
		{"diagnose sys ha standalone-peers", "Detected-peers=1\n"},
		{"diagnose sys ha standalone-peers", "peer2: vfid=0, peerip:port = 172.31.1.4:708, standalone_id=-\n"},
	} {
		if out, err := run(&fakeBackend{v: v}, c.line); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, no %q in\n%s", c.line, err, c.want, out)
		}
	}
}

func TestFarmHealth(t *testing.T) {
	get := func(v *view, path string) (int, string) {
		r := httptest.NewRecorder()
		metricsHandler(&fakeBackend{v: v}).ServeHTTP(r, httptest.NewRequest("GET", path, nil))
		return r.Code, r.Body.String()
	}
	code, body := get(testFarmView(t, 1), "/metrics")
	for _, want := range []string{"tandem_owner 1", "tandem_synchronised 1", "tandem_epoch 65537", "tandem_takeovers_total 1", "tandem_scopes_owned 1",
		"tandem_tunnels_owned 1", "tandem_tunnels_standby 1", "tandem_quorum 1", "tandem_draining 0", "tandem_forwarded_packets_total 90", "tandem_owner_moves_total 2"} {
		if code != 200 || !strings.Contains(body, want+"\n") {
			t.Errorf("metrics lack %q (%d)", want, code)
		}
	}
	if code, body := get(testFarmView(t, 1), "/readyz"); code != 200 || !strings.Contains(body, `"farm":`) || strings.Contains(body, `"ha":`) {
		t.Errorf("a member that owns is ready: %d %s", code, body)
	}
	if code, _ := get(testFarmView(t, 4), "/readyz"); code != 503 {
		t.Errorf("a member without fgsp-sync is not ready for tunnels: %d", code)
	}
}

// drainingViews are what a member that is drained looks like from then on.
func drainingViews(t *testing.T, owned ...int) (vs []*view) {
	for _, n := range owned {
		v := testFarmView(t, 1)
		f := v.Node.Farm
		f.Members[0].State = fsm.Draining
		f.Scopes[0].Owner, f.Scopes[0].Heard = 2, 2
		for i := range n {
			f.Scopes[i].Owner, f.Scopes[i].Heard = 1, 1
		}
		vs = append(vs, v)
	}
	return vs
}

func TestDrainCommand(t *testing.T) {
	look, limit := drainLook, drainLimit
	t.Cleanup(func() { drainLook, drainLimit = look, limit })
	drainLook = time.Millisecond

	start := func() *fakeBackend { return &fakeBackend{v: drainingViews(t, 3)[0]} }
	d := start()
	d.later = drainingViews(t, 3, 3, 2, 1, 0)
	out, err := run(d, "execute ha drain")
	want := "3 scopes with 1 tunnels are owned here\n2 scopes with 1 tunnels are owned here\n1 scopes with 1 tunnels are owned here\ndrained: 3 scopes moved in"
	if err != nil || !strings.HasPrefix(out, want) || strings.Join(d.asked, "|") != "drain on" {
		t.Errorf("%v, asked %q\n%s", err, d.asked, out)
	}

	d = start()
	d.later = drainingViews(t, 2, 0)
	out, err = run(d, "execute ha drain on --json")
	var j drainJSON
	if jerr := json.Unmarshal([]byte(out), &j); err != nil || jerr != nil || !j.Draining || j.ScopesOwned != 0 || j.Moved != 3 {
		t.Errorf("%v, %v: %s", err, jerr, out)
	}

	d, drainLimit = start(), 20*time.Millisecond
	if out, err = run(d, "execute ha drain on --json"); exitCode(err) != exitFailed || !strings.Contains(err.Error(), "3 scopes are owned here still") {
		t.Errorf("nothing moves: %v", err)
	}
	if err := json.Unmarshal([]byte(out), &j); err != nil || j.ScopesOwned != 3 || j.Moved != 0 {
		t.Errorf("%v: %s", err, out)
	}

	d = start()
	if out, err = run(d, "exec ha drain off"); err != nil || !strings.Contains(out, "drain ended") || strings.Join(d.asked, "|") != "drain off" {
		t.Errorf("%v, asked %q\n%s", err, d.asked, out)
	}
	d = start()
	d.err = node.ErrNobodyElse
	if _, err = run(d, "execute ha drain"); !errors.Is(err, node.ErrNobodyElse) || exitCode(err) != exitFailed {
		t.Errorf("the last member: %v", err)
	}
	if _, err = run(start(), "execute ha drain now"); exitCode(err) != exitUsage {
		t.Errorf("another word: %v", err)
	}
	if _, err = run(&fakeBackend{v: testView(t, false)}, "execute ha drain"); !errors.Is(err, errNoFarm) {
		t.Errorf("a pair: %v", err)
	}
}
