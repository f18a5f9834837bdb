package integration

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

const exampleGroup = "../examples/group"

// group is an FGCP group of three or four gateways, of which one is active.
//
//	10.1.0.10 host ─ client 192.0.2.10 ─┬─ gw1 ─┬─ server 10.2.0.10
//	                                    ├─ gw2 ─┤
//	                                    ├─ gw3 ─┤   and each on hb0 and on sync
//	                                    └─ gw4 ─┘
type group struct {
	*site
	bin     string
	names   []string
	gws     map[string]*gateway
	client  *gateway
	caps    []*lab.Capture
	up      time.Time
	probes  *lab.Probes
	faults  []time.Time
	stopped bool
}

var groupSwitches = map[string]string{lab.NodeWAN: "wan0", lab.NodeLAN: "lan0", "hb": "hb0", "sync": "sync0"}

func groupPlan(names []string) lab.Plan {
	p := lab.Plan{
		Nodes: []lab.PlanNode{{Name: lab.NodeWAN}, {Name: lab.NodeLAN}, {Name: "hb"}, {Name: "sync"}, {Name: lab.NodeHost}, {Name: lab.NodeServer}, {Name: lab.NodeClient, Forward: true}},
		Cables: []lab.PlanCable{
			{A: lab.NodeHost, AIf: "lan0", B: lab.NodeClient, BIf: "lan0", AAddrs: []string{hostIn + "/24"}, BAddrs: []string{"10.1.0.1/24"}},
			{A: lab.NodeClient, AIf: "wan0", B: lab.NodeWAN, BIf: lab.NodeClient, AAddrs: []string{peerWAN + "/24"}},
			{A: lab.NodeServer, AIf: "lan0", B: lab.NodeLAN, BIf: lab.NodeServer, AAddrs: []string{serverIn + "/24"}},
		},
		Routes: []lab.PlanRoute{{Node: lab.NodeHost, Dst: "10.2.0.0/24", Via: "10.1.0.1/24"}, {Node: lab.NodeServer, Dst: "0.0.0.0/0", Via: "10.2.0.1/24"}},
	}
	for i, g := range names {
		p.Nodes = append(p.Nodes, lab.PlanNode{Name: g, Forward: true})
		for sw, dev := range groupSwitches {
			c := lab.PlanCable{A: g, AIf: dev, B: sw, BIf: g}
			if sw == "sync" {
				c.AAddrs = []string{fmt.Sprintf("172.31.1.%d/24", i+1)}
			}
			p.Cables = append(p.Cables, c)
		}
	}
	return p
}

// newGroup starts so many gateways with the example's configuration, changed by change, and
// waits until the first is active and all others stand by for it. Then the client dials.
func newGroup(t *testing.T, count int, change func(i int, conf string) string) *group {
	t.Helper()
	g := &group{bin: program(t), gws: map[string]*gateway{}}
	for i := range count {
		g.names = append(g.names, fmt.Sprintf("gw%d", i+1))
	}
	g.site = build(t, groupPlan(g.names))
	for sw := range groupSwitches {
		g.must(sw, "ip", "link", "add", "br0", "type", "bridge")
		g.must(sw, "ip", "link", "set", "br0", "up")
		ports := slices.Clone(g.names)
		switch sw {
		case lab.NodeWAN:
			ports = append(ports, lab.NodeClient)
		case lab.NodeLAN:
			ports = append(ports, lab.NodeServer)
		}
		for _, port := range ports {
			g.must(sw, "ip", "link", "set", port, "master", "br0")
		}
	}
	if out, err := exec.Command(g.bin, append([]string{"cluster", "init", "--dir", filepath.Join(g.topo.Dir, "cluster")}, g.names...)...).CombinedOutput(); err != nil {
		t.Fatalf("cluster init: %v: %s", err, out)
	}
	for i, n := range g.names {
		conf := g.conf(i)
		if change != nil {
			conf = change(i, conf)
		}
		g.gws[n] = g.node(n, conf)
		g.start(g.gws[n])
	}
	for _, port := range append(slices.Clone(g.names), lab.NodeClient) {
		c, err := g.topo.StartCapture(lab.NodeWAN, port)
		if err != nil {
			t.Fatal(err)
		}
		g.caps = append(g.caps, c)
	}
	t.Cleanup(g.endCaptures)
	g.settled("gw1", "gw2")
	g.client = g.node(lab.NodeClient, g.example("client"))
	g.start(g.client)
	g.wantPing(lab.NodeHost, hostIn, serverIn)
	g.up = time.Now()
	return g
}

func (g *group) endCaptures() {
	if g.stopped {
		return
	}
	g.stopped = true
	for _, c := range g.caps {
		if _, err := c.Stop(); err != nil {
			g.t.Error(err)
		}
	}
}

func (g *group) example(name string) string {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(exampleGroup, name+".conf"))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(text)
}

// conf is a member's configuration: the example's third one for the fourth, with its own
// name, priority and peers.
func (g *group) conf(i int) string {
	g.t.Helper()
	text := g.example(fmt.Sprintf("gw%d", min(i, 2)+1))
	head, rest, ok := strings.Cut(text, "    config unicast-peers\n")
	_, rest, ok2 := strings.Cut(rest, "        next\n    end\n")
	if !ok || !ok2 {
		g.t.Fatal("the example is not as expected")
	}
	if i == 3 {
		r := strings.NewReplacer("gw3", "gw4", "set priority 100\n", "set priority 50\n")
		head, rest = r.Replace(head), r.Replace(rest)
	}
	b := head + "    config unicast-peers\n"
	for k := range g.names {
		if k != i {
			b += fmt.Sprintf("        edit %d\n            set peer-ip 172.31.1.%d\n        next\n", k+1, k+1)
		}
	}
	return b + "    end\n" + rest
}

func (g *group) node(name, conf string) *gateway {
	g.t.Helper()
	dir := filepath.Join(g.topo.Dir, name)
	n := &gateway{t: g.t, s: g.site, node: name, conf: dir + ".conf", socket: filepath.Join(dir, "admin.sock")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(n.conf, []byte(strings.ReplaceAll(conf, "@DIR@", g.topo.Dir)), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return n
}

func (g *group) start(n *gateway) {
	g.t.Helper()
	var err error
	if n.proc, err = g.topo.Start(n.node, n.node, []string{g.bin, "run", "--config", n.conf, "--log-format", "json"}, nil); err != nil {
		g.t.Fatal(err)
	}
}

// groupHA is what these tests read of `get system ha status --json`.
type groupHA struct {
	groupScope
	Hostname  string       `json:"hostname"`
	VClusters []groupScope `json:"vclusters"`
	Alarms    []struct {
		Name string `json:"name"`
	} `json:"alarms"`
	Log struct {
		Leader string `json:"leader"`
		Quorum bool   `json:"quorum"`
	} `json:"log"`
}

// groupScope is one virtual cluster, or all that there is.
type groupScope struct {
	ID           int    `json:"id"`
	Role         string `json:"role"`
	Owner        string `json:"owner"`
	Synchronised bool   `json:"synchronised"`
	Alone        bool   `json:"alone"`
	Epoch        uint64 `json:"epoch"`
	Reason       string `json:"reason"`
	Covered      bool   `json:"covered"`
	Successor    string `json:"successor"`
	Change       struct {
		DecidedBy string `json:"decided_by"`
		Evidence  string `json:"evidence"`
	} `json:"change"`
	Peers []struct {
		Hostname string `json:"hostname"`
		Role     string `json:"role"`
		Running  bool   `json:"running"`
		Priority int    `json:"priority"`
	} `json:"peers"`
}

// settled waits until one member owns with all others of those that are there
// synchronised, and the one named was promised the next epoch ("": nobody can be).
func (g *group) settled(owner, successor string, away ...string) {
	g.t.Helper()
	for _, n := range g.names {
		if slices.Contains(away, n) {
			continue
		}
		role := lab.RoleSecondary
		if n == owner {
			role = lab.RolePrimary
		}
		waitStatus(g.gws[n], n, 30*time.Second, fmt.Sprintf("is %s, owner %s, successor %q", role, owner, successor), func(h groupHA) bool {
			return h.settled(role, owner, successor) && h.Log.Quorum && len(h.Peers) == len(g.names)-1
		})
	}
}

func (s *groupScope) settled(role, owner, successor string) bool {
	return s.Role == role && s.Owner == owner && s.Synchronised && !s.Alone && s.Successor == successor
}

// crash ends a member as the loss of its host does: nothing of it is heard, and it forgets.
func (g *group) crash(n string) {
	g.t.Helper()
	g.faults = append(g.faults, time.Now())
	if err := g.gws[n].proc.Kill(); err != nil { // the guardian, and with it the daemon
		g.t.Fatal(err)
	}
	for sw := range groupSwitches {
		g.must(sw, "ip", "link", "set", n, "down")
	}
	// What a host that is lost has of shared addresses ends with it.
	g.must(n, "ip", "addr", "flush", "dev", "wan0")
	g.must(n, "ip", "addr", "flush", "dev", "lan0")
}

// restore starts a crashed member again.
func (g *group) restore(n string) {
	g.t.Helper()
	for sw := range groupSwitches {
		g.must(sw, "ip", "link", "set", n, "up")
	}
	for sw := range groupSwitches { // which the kernel may put off for a second
		eventually(g.t, 5*time.Second, n+"'s port of "+sw+" carries", func() bool {
			return strings.Contains(g.must(sw, "ip", "link", "show", n), "state UP")
		})
	}
	g.start(g.gws[n])
}

// kill ends a member's daemon with SIGKILL; its guardian says so and starts another.
func (g *group) kill(n string) {
	g.t.Helper()
	pid, err := g.gws[n].proc.Daemon(false)
	if err != nil {
		g.t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		g.t.Fatal(err)
	}
	g.faults = append(g.faults, time.Now())
	if err := p.Kill(); err != nil {
		g.t.Fatal(err)
	}
}

// owns waits until a member is active, by a covered takeover.
func (g *group) owns(n string) {
	g.t.Helper()
	waitStatus(g.gws[n], n, 10*time.Second, "is primary", func(h groupHA) bool { return h.Role == lab.RolePrimary && h.Covered })
	g.wantPing(lab.NodeHost, hostIn, serverIn)
}

const groupProbes = 10 * time.Millisecond

func (g *group) probe() {
	g.t.Helper()
	var err error
	if g.probes, err = g.topo.StartProbes(lab.NodeHost, netip.MustParseAddr(hostIn), lab.NodeServer, netip.MustParseAddr(serverIn), groupProbes); err != nil {
		g.t.Fatal(err)
	}
}

// replay sends everything the client sent so far to a member again.
func (g *group) replay(n string) {
	g.t.Helper()
	c := g.caps[len(g.caps)-1]
	if err := c.Flush(); err != nil {
		g.t.Fatal(err)
	}
	frames, err := lab.ClientESP(c.Path, g.up, time.Now())
	if err != nil || len(frames) == 0 {
		g.t.Fatalf("nothing to send again: %v", err)
	}
	if _, err := g.topo.Inject(n, nil, frames); err != nil {
		g.t.Fatal(err)
	}
}

// verdict ends probes and captures, and wants the invariants kept and no silence longer
// than the budget, but around the faults that are named.
func (g *group) verdict(budget time.Duration) {
	g.t.Helper()
	end := time.Now()
	for i, s := range g.probes.Stop(500 * time.Millisecond) {
		seen := map[uint64]int{}
		for _, a := range s.Arrivals {
			if seen[a.Seq]++; seen[a.Seq] == 2 {
				g.t.Errorf("direction %d: probe %d was delivered twice", i, a.Seq)
			}
		}
		for k, at := range g.faults {
			until := end
			if k+1 < len(g.faults) {
				until = g.faults[k+1]
			}
			out := lab.Outage(s.Arrivals, at, until, groupProbes)
			g.t.Logf("direction %d: %v of silence", i, out.Round(100*time.Microsecond))
			if out > budget {
				g.t.Errorf("direction %d: %v of silence after a loss, more than %v", i, out, budget)
			}
		}
		if len(s.Arrivals) == 0 {
			g.t.Errorf("direction %d: nothing arrived", i)
		}
	}
	g.endCaptures()
	check := lab.NewChecker(lab.CheckOptions{Client: lab.NodeClient, Up: g.up, End: end, Shared: []netip.Addr{netip.MustParseAddr(gwWAN)}})
	for _, c := range g.caps {
		if err := lab.ReadCapture(c.Path, func(f lab.Frame) error { f.Port = c.Port; check.Add(f); return nil }); err != nil {
			g.t.Fatal(err)
		}
	}
	r := check.Report()
	if r.ESP == 0 || r.IVRepeats != 0 || r.SeqRegressions != 0 || r.SAInitAfterUp != 0 || r.AuthAfterUp != 0 || r.CreateChildUnanswered != 0 || len(r.Violations) != 0 {
		g.t.Errorf("the wire: %d ESP packets, %d IV repeats, %d regressions, %d IKE_SA_INIT and %d IKE_AUTH after up, %d unanswered: %q",
			r.ESP, r.IVRepeats, r.SeqRegressions, r.SAInitAfterUp, r.AuthAfterUp, r.CreateChildUnanswered, r.Violations)
	}
}

// groupBudget is the longest silence at a takeover, on machines that do other things, too.
const groupBudget = 300 * time.Millisecond

// TestGroupOfThree: three daemons elect by priority; the active one's host is lost, then
// the next one's, and the third goes on without a majority. Both come back: nothing moves
// without override; with it the best one takes the ownership back, after which SIGKILL of
// its daemon has the one that was promised it take over.
func TestGroupOfThree(t *testing.T) {
	g := newGroup(t, 3, nil)
	waitStatus(g.gws["gw1"], "gw1", time.Second, "the log chose it by priority", func(h groupHA) bool {
		return h.Change.DecidedBy == "the members' log" && h.Change.Evidence == "priority: 200 against 150"
	})
	g.probe()
	g.crash("gw1")
	g.owns("gw2")
	g.settled("gw2", "gw3", "gw1")
	g.replay("gw2")
	g.crash("gw2")
	g.owns("gw3")
	waitStatus(g.gws["gw3"], "gw3", 10*time.Second, "says that it has no quorum", func(h groupHA) bool {
		return !h.Log.Quorum && h.Alone && slices.ContainsFunc(h.Alarms, func(a struct {
			Name string `json:"name"`
		}) bool {
			return a.Name == "quorum"
		})
	})
	g.replay("gw3")
	g.restore("gw1")
	g.settled("gw3", "gw1", "gw2")
	g.restore("gw2")
	g.settled("gw3", "gw1") // without override who is active stays so
	text, err := os.ReadFile(g.gws["gw1"].conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.gws["gw1"].conf, []byte(strings.Replace(string(text), "set override disable", "set override enable", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	g.gws["gw1"].must("execute reload")
	g.owns("gw1")
	g.settled("gw1", "gw2")
	waitStatus(g.gws["gw1"], "gw1", 5*time.Second, "says why", func(h groupHA) bool {
		return strings.Contains(h.Reason, "gw3 handed over") && strings.Contains(h.Change.Evidence, "priority: 200 against 100") && h.Change.DecidedBy == "gw3"
	})
	g.kill("gw1")
	g.owns("gw2")
	g.replay("gw2")
	g.verdict(groupBudget)
}
