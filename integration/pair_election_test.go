package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// electionStatus is what a member says of the election (`get system ha status --json`).
type electionStatus struct {
	Role        string  `json:"role"`
	Takeovers   int     `json:"takeovers"`
	MonitorsUp  int     `json:"monitors_up"`
	Seen        int     `json:"monitors_seen"`
	HoldS       float64 `json:"failover_hold_s"`
	Penalty     int     `json:"pingserver_penalty"`
	FlipS       float64 `json:"pingserver_flip_s"`
	Failover    bool    `json:"failover"`
	Pingservers []struct {
		Server string `json:"server"`
		State  string `json:"state"`
		Probed bool   `json:"probed"`
	} `json:"pingservers"`
	Monitors []struct {
		Interface string  `json:"interface"`
		Up        bool    `json:"up"`
		Counts    bool    `json:"counts"`
		HeldS     float64 `json:"held_s"`
		Failures  int     `json:"failures"`
	} `json:"monitors"`
	MACs []struct {
		Interface string `json:"interface"`
		MAC       string `json:"mac"`
		Own       string `json:"own_mac"`
		Active    bool   `json:"active"`
	} `json:"virtual_macs"`
	Change struct {
		Evidence  string `json:"evidence"`
		Reason    string `json:"reason"`
		DecidedBy string `json:"decided_by"`
	} `json:"change"`
}

func (s electionStatus) owns() bool { return s.Role == lab.RolePrimary }

// set adds keywords to `config system ha`.
func setHA(lines ...string) func(string) string {
	return func(conf string) string {
		return strings.Replace(conf, "    set mode a-p\n", "    set mode a-p\n    set "+strings.Join(lines, "\n    set ")+"\n", 1)
	}
}

// wait waits until a member's status is as wanted.
func (p *pair) waitElection(g *gateway, within time.Duration, what string, ok func(electionStatus) bool) {
	p.t.Helper()
	waitStatus(g, g.node, within, what, ok)
}

// stays watches that a member goes on owning.
func (p *pair) stays(g *gateway, during time.Duration, why string) {
	p.t.Helper()
	never(p.t, during, g.node+" gives up the ownership: "+why, func() bool {
		s, ok := status[electionStatus](g)
		return ok && !s.owns()
	})
}

// cable pulls or plugs a member's cable at a switch.
func (p *pair) cable(sw string, g *gateway, state string) {
	p.t.Helper()
	p.must(sw, "ip", "link", "set", g.node, state)
}

// TestPairPingserver: one of two servers may fail, both move the ownership, without a
// tunnel lost; where the successor's fail as well it keeps it for the flip timeout.
func TestPairPingserver(t *testing.T) {
	t.Parallel()
	needCharon(t)
	const one, two = "192.0.2.251", "192.0.2.252"
	ha := setHA(`pingserver-monitor-interface "wan0"`, "pingserver-failover-threshold 10")
	p := newPair(t, program(t), func(conf string) string {
		conf = ha(conf) + "config system link-monitor\n"
		for i, server := range []string{one, two} {
			conf += fmt.Sprintf("    edit m%d\n        set srcintf wan0\n        set server %s\n        set interval 50\n        set probe-timeout 50\n        set failtime 3\n        set recoverytime 3\n        set ha-priority 5\n    next\n", i, server)
		}
		return conf + "end\n"
	})
	servers := func(verb string) {
		for _, a := range []string{one, two} {
			p.must(lab.NodeClient, "ip", "address", verb, a+"/24", "dev", "wan0")
		}
	}
	servers("add")
	ch := p.charon(lab.NodeClient, pairConn())
	ch.up()
	p.traffic()
	active, standby := p.synchronised()
	inits := p.begun(exchInit)
	answering := func(s electionStatus) bool {
		return len(s.Pingservers) == 2 && s.Pingservers[0].Probed && s.Pingservers[0].State == "up" && s.Pingservers[1].State == "up" && s.Penalty == 0
	}
	p.waitElection(active, 5*time.Second, "its servers answer", answering)
	if s, _ := status[electionStatus](standby); len(s.Pingservers) != 2 || s.Pingservers[0].Probed {
		t.Errorf("the standby has no address to probe from: %+v", s)
	}

	// The active gateway alone cannot reach them.
	block := func(server string) {
		p.nft(active.node, fmt.Sprintf("table ip probes%s { chain out { type filter hook output priority 0; ip daddr %s icmp type echo-request drop; }; }",
			strings.ReplaceAll(server, ".", ""), server))
	}
	block(one)
	p.waitElection(active, 5*time.Second, "one server is dead", func(s electionStatus) bool { return s.Pingservers[0].State == "down" })
	p.stays(active, 500*time.Millisecond, "one of two servers is beneath the threshold")
	block(two)
	p.waitElection(standby, 5*time.Second, "it owns, and says why", func(s electionStatus) bool {
		return s.owns() && s.Change.Evidence == "pingservers: penalty 0 against 10" && s.Change.DecidedBy == active.node && answering(s)
	})
	p.waitElection(active, 5*time.Second, "it says why it handed over", func(s electionStatus) bool {
		return !s.owns() && s.Change.Evidence == "pingservers: penalty 0 against 10" && s.FlipS > 0 && !s.Pingservers[0].Probed
	})
	p.traffic()
	p.synchronised()

	// Now nobody reaches them: within the flip timeout that moves nothing.
	servers("delete")
	p.waitElection(standby, 5*time.Second, "its servers are dead, too", func(s electionStatus) bool { return s.Penalty == 10 && s.FlipS > 3000 })
	p.stays(standby, 3*time.Second, "the flip timeout runs")
	text := standby.must("get system ha status")
	for _, line := range []string{"PINGSVR stats:", "pingsvr: state=DOWN(since ", "server=192.0.2.251, ha_prio=5", "pingserver-flip-timeout: ", "evidence: pingservers: penalty 0 against 10"} {
		if !strings.Contains(text, line) {
			t.Errorf("get system ha status does not say %q:\n%s", line, text)
		}
	}
	servers("add")
	p.waitElection(standby, 5*time.Second, "they are back", answering)
	p.traffic()
	if n := p.begun(exchInit); n != inits {
		t.Errorf("%d new IKE_SA_INIT", n-inits)
	}
}

// TestPairHoldTime: a monitored interface that is gone for less than failover-hold-time
// moves nothing; one that stays away moves the ownership when the time is over.
func TestPairHoldTime(t *testing.T) {
	t.Parallel()
	p := newPair(t, program(t), setHA("failover-hold-time 2"))
	active, standby := p.synchronised()
	p.waitElection(active, 5*time.Second, "both interfaces work", func(s electionStatus) bool { return s.MonitorsUp == 2 })
	p.cable(lab.NodeLAN, active, "down")
	p.waitElection(active, 2*time.Second, "it sees the failure and waits", func(s electionStatus) bool {
		return s.Seen == 1 && s.MonitorsUp == 2 && s.HoldS > 0 && s.owns()
	})
	p.cable(lab.NodeLAN, active, "up")
	p.waitElection(active, 2*time.Second, "nothing is waited for", func(s electionStatus) bool { return s.Seen == 2 && s.HoldS == 0 })
	p.stays(active, 2500*time.Millisecond, "the interface came back within the hold time")
	at := time.Now()
	p.cable(lab.NodeLAN, active, "down")
	p.waitElection(standby, 10*time.Second, "it owns, and says why", func(s electionStatus) bool {
		return s.owns() && s.Change.Evidence == "monitored interfaces: 2 work against 1"
	})
	if d := time.Since(at); d < 2*time.Second {
		t.Errorf("handed over after %v", d)
	}

	// The flag of `execute ha failover` stands above interfaces; without it they decide.
	said := func(g *gateway, want string) {
		t.Helper()
		if got := g.must("execute ha failover status"); got != "failover status: "+want+"\n" {
			t.Errorf("%s: %q", g.node, got)
		}
	}
	p.synchronised()
	said(standby, "unset")
	standby.must("execute ha failover set 1")
	p.waitElection(active, 5*time.Second, "it owns, though an interface is down", func(s electionStatus) bool {
		return s.owns() && s.MonitorsUp == 1 && s.Change.Evidence == "failover set" && s.Change.DecidedBy == standby.node
	})
	said(standby, "set")
	p.synchronised()
	standby.must("execute ha failover unset 1")
	said(standby, "unset")
	p.waitElection(standby, 10*time.Second, "it owns again", electionStatus.owns)
}

// TestPairFlapping: with override the better gateway has the ownership back as soon as its
// interface works; where that flaps it has to work for a while first, unless damping is
// switched off.
func TestPairFlapping(t *testing.T) {
	for _, damping := range []string{"enable", "disable"} {
		t.Run(damping, func(t *testing.T) {
			t.Parallel()
			flapping(t, damping)
		})
	}
}

func flapping(t *testing.T, damping string) {
	p := newPair(t, program(t), func(conf string) string {
		return strings.Replace(conf, "set override disable", "set override enable\n    set link-flap-damping "+damping, 1)
	})
	better, other := p.gws[lab.NodeGW1], p.gws[lab.NodeGW2]
	p.waitElection(better, 15*time.Second, "it has the higher priority", electionStatus.owns)
	p.synchronised()
	for n := 1; n <= 4; n++ {
		p.cable(lab.NodeLAN, better, "down")
		p.waitElection(better, 5*time.Second, "it sees the failure", func(s electionStatus) bool { return s.Monitors[1].Failures == n && !s.Monitors[1].Up })
		p.cable(lab.NodeLAN, better, "up")
		p.waitElection(better, 5*time.Second, "it sees that it works", func(s electionStatus) bool { return s.Monitors[1].Up })
	}
	at := time.Now()
	s, _ := status[electionStatus](better)
	if damping == "disable" {
		if !s.Monitors[1].Counts || s.MonitorsUp != 2 {
			t.Errorf("it works and does not count: %+v", s)
		}
		return
	}
	if s.Monitors[1].Counts || s.Monitors[1].HeldS < 2 || s.MonitorsUp != 1 {
		t.Errorf("after four failures it counts as if nothing had been: %+v", s)
	}
	p.waitElection(other, 5*time.Second, "it owns", electionStatus.owns)
	took, _ := status[electionStatus](other)
	if text := better.must("get system ha status"); !strings.Contains(text, "lan0: up, damped: it failed 4 times and counts in ") {
		t.Errorf("get system ha status does not say that it is damped:\n%s", text)
	}
	p.waitElection(better, 20*time.Second, "it owns again", electionStatus.owns)
	if d := time.Since(at); d < 3500*time.Millisecond {
		t.Errorf("it owns again after %v, before it had worked for four seconds", d)
	}
	if again, _ := status[electionStatus](other); again.Takeovers != took.Takeovers {
		t.Errorf("the ownership went to and fro: %d takeovers, then %d", took.Takeovers, again.Takeovers)
	}
}

// TestPairVirtualMAC: neighbours keep the MAC address that they know through a failover;
// each gateway's device has its own one while it does not own, whatever happened to the
// daemon, and to the guardian with it.
func TestPairVirtualMAC(t *testing.T) {
	t.Parallel()
	needCharon(t)
	p := newPair(t, program(t), setHA(`auto-virtual-mac-interface "wan0" "lan0"`))
	const lan, wan = "02:54:44:01:00:00", "02:54:44:01:00:01" // group-id 1; by name
	mac := func(g *gateway, dev string) string {
		f := strings.Fields(p.must(g.node, "ip", "-br", "link", "show", "dev", dev))
		if len(f) < 3 {
			t.Fatalf("%s/%s: %q", g.node, dev, f)
		}
		return f[2]
	}
	has := func(g *gateway, owner bool) bool {
		return (mac(g, "wan0") == wan) == owner && (mac(g, "lan0") == lan) == owner
	}
	ch := p.charon(lab.NodeClient, pairConn())
	ch.up()
	p.traffic()
	active, standby := p.synchronised()
	if !has(active, true) || !has(standby, false) {
		t.Fatalf("active %s %s, standby %s %s", mac(active, "wan0"), mac(active, "lan0"), mac(standby, "wan0"), mac(standby, "lan0"))
	}
	own := mac(standby, "wan0")
	var first string
	for _, g := range []*gateway{active, standby} {
		s, ok := status[electionStatus](g)
		if !ok || len(s.MACs) != 2 || s.MACs[1].Interface != "wan0" || s.MACs[1].MAC != wan || s.MACs[1].Active != (g == active) {
			t.Errorf("%s: %+v", g.node, s.MACs)
		}
		if g == active {
			first = s.MACs[1].Own
		}
	}
	neighbour := func(node, addr string) string {
		f := strings.Fields(p.must(node, "ip", "neigh", "show", addr))
		for i := range f {
			if f[i] == "lladdr" && i+1 < len(f) {
				return f[i+1]
			}
		}
		return ""
	}
	port := func(mac string) string { // where the switch believes an address
		for line := range strings.Lines(p.must(lab.NodeWAN, "bridge", "fdb", "show")) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == mac {
				return f[2]
			}
		}
		return ""
	}
	if neighbour(lab.NodeClient, gwWAN) != wan || neighbour(lab.NodeServer, "10.2.0.1") != lan || port(wan) != active.node {
		t.Errorf("the client believes %s, the server %s, the switch %s", neighbour(lab.NodeClient, gwWAN), neighbour(lab.NodeServer, "10.2.0.1"), port(wan))
	}
	inits := p.begun(exchInit)
	p.kill(active)
	p.takenOver(standby)
	p.traffic()
	if !has(standby, true) || neighbour(lab.NodeClient, gwWAN) != wan || port(wan) != standby.node {
		t.Errorf("after the failover: %s, the client believes %s, the switch %s", mac(standby, "wan0"), neighbour(lab.NodeClient, gwWAN), port(wan))
	}
	if got := mac(active, "wan0"); got != first {
		t.Errorf("%s, whose daemon was killed, still has %s", active.node, got)
	}
	p.synchronised()
	if !has(active, false) || p.begun(exchInit) != inits {
		t.Error("after the return of the first gateway")
	}

	// The second host is lost: its kernel keeps the address until Tandem starts again.
	if err := p.topo.CutNode(standby.node); err != nil {
		t.Fatal(err)
	}
	if err := standby.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	p.takenOver(active)
	p.traffic()
	if !has(standby, true) || !has(active, true) || neighbour(lab.NodeClient, gwWAN) != wan || port(wan) != active.node {
		t.Errorf("after the loss of the host: the client believes %s, the switch %s", neighbour(lab.NodeClient, gwWAN), port(wan))
	}
	var err error
	if standby.proc, err = p.topo.Start(standby.node, standby.node, []string{p.bin, "run", "--config", standby.conf, "--log-format", "json"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the device's own MAC address is back", func() bool { return mac(standby, "wan0") == own })
}
