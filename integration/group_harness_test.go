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

// group is an FGCP group of three or four gateways, of which one is active; with two
// sides, two virtual clusters, of which each has its own outer and inner network.
//
//	10.1.0.10 host ─ client 192.0.2.10 ─┬─ gw1 ─┬─ server 10.2.0.10
//	                                    ├─ gw2 ─┤
//	                                    ├─ gw3 ─┤   and each on hb0 and on sync
//	                                    └─ gw4 ─┘
type group struct {
	*site
	bin    string
	names  []string
	gws    map[string]*gateway
	sides  []*groupSide
	faults []time.Time
	dial   string // more of the clients' phase 1
}

// groupSide is one outer and one inner network with a client and hosts.
type groupSide struct {
	suffix                string // of the nodes' names
	outer, inside, behind string // first three bytes of the networks: outer, the client's, the group's
	caps                  []*lab.Capture
	stopped               bool
	up                    time.Time
	probes                *lab.Probes
}

var groupSides = []groupSide{
	{outer: "192.0.2", inside: "10.1.0", behind: "10.2.0"},
	{suffix: "2", outer: "198.51.100", inside: "10.3.0", behind: "10.4.0"},
}

func (s *groupSide) node(name string) string { return name + s.suffix }
func (s *groupSide) host() string            { return s.inside + ".10" }
func (s *groupSide) server() string          { return s.behind + ".10" }
func (s *groupSide) shared() netip.Addr      { return netip.MustParseAddr(s.outer + ".1") }

// devices are the switches with the gateways' devices at them.
func (g *group) devices() map[string]string {
	m := map[string]string{"hb": "hb0", "sync": "sync0"}
	for i, s := range g.sides {
		m[s.node(lab.NodeWAN)], m[s.node(lab.NodeLAN)] = fmt.Sprint("wan", i), fmt.Sprint("lan", i)
	}
	return m
}

func (g *group) plan() lab.Plan {
	p := lab.Plan{Nodes: []lab.PlanNode{{Name: "hb"}, {Name: "sync"}}}
	for _, s := range g.sides {
		for _, n := range []string{lab.NodeWAN, lab.NodeLAN, lab.NodeHost, lab.NodeServer, lab.NodeClient} {
			p.Nodes = append(p.Nodes, lab.PlanNode{Name: s.node(n), Forward: n == lab.NodeClient})
		}
		p.Cables = append(p.Cables,
			lab.PlanCable{A: s.node(lab.NodeHost), AIf: "lan0", B: s.node(lab.NodeClient), BIf: "lan0", AAddrs: []string{s.host() + "/24"}, BAddrs: []string{s.inside + ".1/24"}},
			lab.PlanCable{A: s.node(lab.NodeClient), AIf: "wan0", B: s.node(lab.NodeWAN), BIf: lab.NodeClient, AAddrs: []string{s.outer + ".10/24"}},
			lab.PlanCable{A: s.node(lab.NodeServer), AIf: "lan0", B: s.node(lab.NodeLAN), BIf: lab.NodeServer, AAddrs: []string{s.server() + "/24"}})
		p.Routes = append(p.Routes,
			lab.PlanRoute{Node: s.node(lab.NodeHost), Dst: s.behind + ".0/24", Via: s.inside + ".1/24"},
			lab.PlanRoute{Node: s.node(lab.NodeServer), Dst: "0.0.0.0/0", Via: s.behind + ".1/24"})
	}
	for i, n := range g.names {
		p.Nodes = append(p.Nodes, lab.PlanNode{Name: n, Forward: true})
		for sw, dev := range g.devices() {
			c := lab.PlanCable{A: n, AIf: dev, B: sw, BIf: n}
			if sw == "sync" {
				c.AAddrs = []string{fmt.Sprintf("172.31.1.%d/24", i+1)}
			}
			p.Cables = append(p.Cables, c)
		}
	}
	return p
}

// newGroup starts so many gateways with the example's configuration, changed by change, and
// waits until ready. Then the clients dial.
func newGroup(t *testing.T, count, sides int, change func(g *group, i int, conf string) string, ready func(*group)) *group {
	t.Helper()
	g := &group{bin: program(t), gws: map[string]*gateway{}}
	for i := range count {
		g.names = append(g.names, fmt.Sprintf("gw%d", i+1))
	}
	for i := range sides {
		s := groupSides[i]
		g.sides = append(g.sides, &s)
	}
	g.site = build(t, g.plan())
	for sw := range g.devices() {
		g.must(sw, "ip", "link", "add", "br0", "type", "bridge")
		g.must(sw, "ip", "link", "set", "br0", "up")
		ports := slices.Clone(g.names)
		switch sw[:2] {
		case "wa":
			ports = append(ports, lab.NodeClient)
		case "la":
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
			conf = change(g, i, conf)
		}
		g.gws[n] = g.exampleGateway(n, conf)
		g.startExample(g.gws[n], g.bin)
	}
	for _, s := range g.sides {
		for _, port := range append(slices.Clone(g.names), lab.NodeClient) {
			c, err := g.topo.StartCapture(s.node(lab.NodeWAN), port)
			if err != nil {
				t.Fatal(err)
			}
			s.caps = append(s.caps, c)
		}
		t.Cleanup(func() { g.endCaptures(s) })
	}
	ready(g)
	for _, s := range g.sides {
		text := strings.NewReplacer("192.0.2.", s.outer+".", "10.1.0.", s.inside+".", "10.2.0.", s.behind+".", "/client", "/"+s.node(lab.NodeClient), "        set nattraversal forced\n", "        set nattraversal forced\n"+g.dial).Replace(g.example("client"))
		g.startExample(g.exampleGateway(s.node(lab.NodeClient), text), g.bin)
	}
	for _, s := range g.sides {
		g.wantPing(s.node(lab.NodeHost), s.host(), s.server())
		s.up = time.Now()
	}
	return g
}

func (g *group) endCaptures(s *groupSide) {
	if s.stopped {
		return
	}
	s.stopped = true
	for _, c := range s.caps {
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

// groupHA is what these tests read of `get system ha status --json`.
type groupHA struct {
	groupScope
	Hostname  string       `json:"hostname"`
	VClusters []groupScope `json:"vclusters"`
	Alarms    []groupAlarm `json:"alarms"`
	Log       struct {
		Leader string `json:"leader"`
		Quorum bool   `json:"quorum"`
		Pools  []struct {
			Delegated int `json:"delegated"`
		} `json:"pools"`
	} `json:"log"`
}

type groupAlarm struct {
	Name string `json:"name"`
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
		Links    []struct {
			Device string `json:"device"`
		} `json:"links"`
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

// crash ends members as the loss of their hosts does: nothing of them is heard, and they forget.
func (g *group) crash(names ...string) {
	g.t.Helper()
	g.faults = append(g.faults, time.Now())
	for _, n := range names {
		if err := g.gws[n].proc.Kill(); err != nil { // the guardian, and with it the daemon
			g.t.Fatal(err)
		}
	}
	for _, n := range names {
		for sw, dev := range g.devices() {
			g.must(sw, "ip", "link", "set", n, "down")
			if dev != "sync0" { // what a host that is lost has of shared addresses ends with it
				g.must(n, "ip", "-4", "addr", "flush", "dev", dev)
			}
		}
	}
}

// restore starts a crashed member again.
func (g *group) restore(n string) {
	g.t.Helper()
	for sw := range g.devices() {
		g.must(sw, "ip", "link", "set", n, "up")
	}
	for sw := range g.devices() { // which the kernel may put off for a second
		eventually(g.t, 5*time.Second, n+"'s port of "+sw+" carries", func() bool {
			return strings.Contains(g.must(sw, "ip", "link", "show", n), "state UP")
		})
	}
	g.startExample(g.gws[n], g.bin)
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
	for _, s := range g.sides {
		var err error
		if s.probes, err = g.topo.StartProbes(s.node(lab.NodeHost), netip.MustParseAddr(s.host()), s.node(lab.NodeServer), netip.MustParseAddr(s.server()), groupProbes); err != nil {
			g.t.Fatal(err)
		}
	}
}

// replay sends everything that the first client sent so far to a member again.
func (g *group) replay(n string) {
	g.t.Helper()
	s := g.sides[0]
	c := s.caps[len(s.caps)-1]
	if err := c.Flush(); err != nil {
		g.t.Fatal(err)
	}
	frames, err := lab.ClientESP(c.Path, s.up, time.Now())
	if err != nil || len(frames) == 0 {
		g.t.Fatalf("nothing to send again: %v", err)
	}
	if _, err := g.topo.Inject(n, nil, frames); err != nil {
		g.t.Fatal(err)
	}
}

// verdict ends probes and captures, and wants the invariants kept. budget is the longest
// silence after each fault of each side; the last of a side stands for all that follow.
func (g *group) verdict(budget ...[]time.Duration) {
	g.t.Helper()
	end := time.Now()
	for i, s := range g.sides {
		for _, stream := range s.probes.Stop(500 * time.Millisecond) {
			g.judge(stream, end, budget[i])
		}
		g.endCaptures(s)
		check := lab.NewChecker(lab.CheckOptions{Client: lab.NodeClient, Up: s.up, End: end, Shared: []netip.Addr{s.shared()}})
		for _, c := range s.caps {
			if err := lab.ReadCapture(c.Path, func(f lab.Frame) error { f.Port = c.Port; check.Add(f); return nil }); err != nil {
				g.t.Fatal(err)
			}
		}
		r := check.Report()
		if r.ESP == 0 || r.IVRepeats != 0 || r.SeqRegressions != 0 || r.SAInitAfterUp != 0 || r.AuthAfterUp != 0 || r.CreateChildUnanswered != 0 || len(r.Violations) != 0 {
			g.t.Errorf("the wire of %s: %d ESP packets, %d IV repeats, %d regressions, %d IKE_SA_INIT and %d IKE_AUTH after up, %d unanswered: %q",
				s.node(lab.NodeClient), r.ESP, r.IVRepeats, r.SeqRegressions, r.SAInitAfterUp, r.AuthAfterUp, r.CreateChildUnanswered, r.Violations)
		}
	}
}

// judge looks at one direction of the probes.
func (g *group) judge(s lab.Stream, end time.Time, budget []time.Duration) {
	g.t.Helper()
	seen := map[uint64]bool{}
	for _, a := range s.Arrivals {
		if seen[a.Seq] {
			g.t.Errorf("%s → %s: probe %d was delivered twice", s.From, s.To, a.Seq)
		}
		seen[a.Seq] = true
	}
	if len(seen) == 0 {
		g.t.Errorf("%s → %s: nothing arrived", s.From, s.To)
	}
	for k, at := range g.faults {
		until := end
		if k+1 < len(g.faults) {
			until = g.faults[k+1].Add(-2 * groupProbes)
		}
		out, most := lab.Outage(s.Arrivals, at, until, groupProbes), budget[min(k, len(budget)-1)]
		g.t.Logf("%s → %s: %v of silence", s.From, s.To, out.Round(100*time.Microsecond))
		if out > most {
			g.t.Errorf("%s → %s: %v of silence after loss %d, more than %v", s.From, s.To, out, k+1, most)
		}
	}
}
