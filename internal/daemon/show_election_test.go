package daemon

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/internal/config"
)

// electedView is a pair in the middle of everything that an election may wait for.
func electedView(t testing.TB, standby bool) *view {
	v := testView(t, standby)
	c := *v.Config
	c.HA.Monitor = []string{"lan0", "wan0"}
	c.HA.Pingserver = config.Pingserver{Monitor: []string{"wan0"}, Threshold: 5, FlipTimeout: time.Hour, ForceReset: true}
	v.Config = &c
	h := v.Node.HA
	h.Seen, h.Held, h.Flip = 1, viewNow.Add(4100*time.Millisecond), viewNow.Add(50*time.Minute)
	h.Election.Penalty, h.Peers[0].Election.Penalty, h.Peers[0].Election.Failover = 5, 7, true
	h.Change = cluster.Change{At: h.LastChange, Epoch: h.Epoch, Reason: "gw2 handed over: pingservers failed", Evidence: "pingservers: penalty 0 against 7",
		By: 2, Why: cluster.HandedPingservers, Covered: true, Mine: h.Election, Peer: 2, Its: h.Peers[0].Election}
	h.Change.Mine.Penalty = 0
	if standby {
		h.Change.Peer = 1
	} else {
		h.Next, h.NextAt = "override: gw2 goes first by priority", viewNow.Add(12300*time.Millisecond)
	}
	at := netip.MustParseAddr
	v.Election = electionView{
		Monitors: []monitorView{{"lan0", true, 3200 * time.Millisecond, 4}, {"wan0", true, 0, 0}},
		Servers: []serverView{
			{"uplink", "wan0", at("192.0.2.254"), 5, !standby, true, viewNow.Add(-time.Minute)},
			{"uplink6", "wan0", at("2001:db8::fe"), 7, !standby, false, time.Time{}},
			{"inside", "lan0", at("10.2.0.9"), 1, true, false, viewNow.Add(-time.Hour)}},
		MACs: []macView{{"wan0", virtualMAC(7, 0, 0), [6]byte{0x52, 0x54, 0, 1, 2, 3}, !standby}},
	}
	return v
}

func TestElectionLayouts(t *testing.T) {
	for _, c := range []struct {
		name, line string
		standby    bool
	}{
		{"election_status", "get system ha status", false},
		{"election_status_standby", "get system ha status", true},
		{"election_status_json", "get system ha status --json", false},
	} {
		out, err := run(&fakeBackend{v: electedView(t, c.standby)}, c.line)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, c.name, out)
	}
	v := electedView(t, false)
	for _, set := range []bool{false, true} {
		v.Node.HA.Election.Failover = set
		want := map[bool]string{false: "failover status: unset\n", true: "failover status: set\n"}[set]
		if out, err := run(&fakeBackend{v: v}, "execute ha failover status"); err != nil || out != want {
			t.Errorf("%q, %v", out, err)
		}
		out, err := run(&fakeBackend{v: v}, "execute ha failover status --json")
		var j map[string]bool
		if err != nil || json.Unmarshal([]byte(out), &j) != nil || j["failover"] != set {
			t.Errorf("%q, %v", out, err)
		}
	}
}
