package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/config"
	"tandem/internal/needs"
	"tandem/internal/testkit"
)

const exampleSites = "../../examples/two-sites"

func TestSitesExampleScenarios(t *testing.T) {
	names, err := ScenarioNames(exampleSites)
	if err != nil || !isFarm(exampleSites) || !isSites(exampleSites) || isSites(exampleFarm) {
		t.Fatal(names, err)
	}
	text, err := os.ReadFile(filepath.Join(exampleSites, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme := string(text)
	for _, want := range []string{"demo", "site", "quorum"} {
		if !slices.Contains(names, want) {
			t.Errorf("no scenario %s", want)
		}
	}
	for _, n := range names {
		s, err := LoadFarmScenario(exampleSites, n)
		if err != nil {
			t.Error(err)
			continue
		}
		if s.About == "" || s.Farm.Clients() != 32 || !s.Farm.Sites || !strings.Contains(readme, "`"+n+"`") {
			t.Errorf("%s: %+v", n, s.Farm)
		}
		fields := map[string]bool{}
		for _, b := range s.Bounds {
			fields[b.Field] = true
		}
		for _, f := range []string{"iv_repeats", "seq_regressions", "seq_regressions_owner", "replays_accepted", "sa_init_after_up", "spi_changed",
			"double_owner_ms", "failed_expectations", "outage_ms.median", "outage_ms.p99", "outage_from_kill_ms.p99"} {
			if !fields[f] {
				t.Errorf("%s does not bound %s", n, f)
			}
		}
	}
	farm := farmVerbsOf(Members)
	for v := range siteVerbs() {
		if _, ok := farm[v]; !ok && !strings.Contains(readme, "`"+v) {
			t.Errorf("README.md does not explain the step %s", v)
		}
	}
	for text, want := range map[string]string{
		"steps\n lose-site C\nend":               "needs one of random, A, B",
		"steps\n lose DC1_VM1\nend":              "needs one of",
		"farm sync=3\nsteps\n run 1s\nend":       "all nodes of sites take part",
		"steps\n expect ignorant DC1_VM4\nend":   "no member",
		"steps\n lose-witness now\n run 1s\nend": "takes nothing",
	} {
		if _, err := parseFarmScenario("x", "x.lab", text, defaultSites()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ParseFarmScenario("x", "x.lab", "steps\n lose-site A\nend"); err == nil {
		t.Error("a farm without sites loses one")
	}
}

// The files of the example: nodes of a site differ in what is theirs alone.
func TestSitesExampleConfigurations(t *testing.T) {
	topo := &Topology{Dir: "/run/tandem-lab/abcdef/work"}
	for i, m := range append(slices.Clone(SiteMembers), witnessNode) {
		text, err := os.ReadFile(filepath.Join(exampleSites, m+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		cfg, faults := config.Load(m, []byte(topo.fill(string(text), "@QUORUM_LOSS@", "stop")))
		for _, f := range faults {
			t.Errorf("%s: %v (warning: %v)", m, f, f.Warning)
		}
		if cfg == nil {
			t.Fatalf("%s does not load", m)
		}
		if cfg.Tandem.Witness != (config.Witness{Addr: netip.MustParseAddr("172.31.1.9"), Node: 5}) {
			t.Errorf("%s: witness %+v", m, cfg.Tandem.Witness)
		}
		if m == witnessNode {
			if cfg.Site() != 0 || len(cfg.Standalone.Peers) != 4 {
				t.Errorf("%s: %+v", m, cfg.Standalone)
			}
			continue
		}
		site := 1 + i/2
		if cfg.Site() != site || cfg.Hostname != m || m[:1] != string("AB"[site-1]) || len(cfg.Standalone.Peers) != 3 || !cfg.Phase1[0].FGSPSync ||
			cfg.Phase1[0].LocalGW != FarmLoopback || cfg.Tandem.QuorumLoss != "stop" {
			t.Errorf("%s: site %d, %+v", m, cfg.Site(), cfg.Standalone)
		}
		for _, x := range cfg.Standalone.Peers {
			if x.HBInterval != 10*time.Millisecond || x.HBLostThreshold != 3 || x.PeerIP == netip.MustParseAddr(fmt.Sprintf("172.31.1.%d", i+1)) {
				t.Errorf("%s: peer %+v", m, x)
			}
		}
		var shared []string
		for _, in := range cfg.Interfaces {
			for _, p := range in.IP {
				shared = append(shared, in.Name+" "+p.String())
			}
		}
		want := []string{fmt.Sprintf("port2 192.168.%d.254/24", memberNet(site-1)), fmt.Sprintf("port3 172.31.%d.254/24", memberNet(site-1)), "lb1 192.168.202.31/32"}
		if !slices.Equal(shared, want) {
			t.Errorf("%s shares %v, want %v", m, shared, want)
		}
	}
}

// A node that has a site's addresses is reached through the site's ports, and no other.
func TestSitesTopology(t *testing.T) {
	f := defaultSites()
	f.Charon, f.Tandem, f.Processes = 0, 2, 1
	topo := buildFarmTest(t, f)
	needs.Root(t)
	for _, m := range SiteMembers {
		testkit.Within(t, 3*time.Second, m+" reaches the witness", func() bool { return reaches(topo, m, "172.31.1.9") })
	}
	for _, m := range []string{"A2", "B1"} {
		shared := fmt.Sprintf("192.168.%d.254", memberNet(f.hopIndex(m[:1])))
		if err := topo.address(m, "port2", shared+"/24"); err != nil {
			t.Fatal(err)
		}
		testkit.Within(t, 3*time.Second, "the router reaches "+m, func() bool { return reaches(topo, NodeRouter, shared) })
		if err := topo.clearAddresses(m, []string{"port2"}); err != nil || reaches(topo, NodeRouter, shared) {
			t.Fatalf("%s keeps the address: %v", m, err)
		}
	}
	r := &farmRun{stage: stage{topo: topo}, f: f}
	if err := r.learnMACs(); err != nil {
		t.Fatal(err)
	}
	mac, err := topo.hardwareAddress("B2", "port2")
	if err != nil {
		t.Fatal(err)
	}
	frame := Frame{Port: "B", FromNode: true, Data: append(append([]byte{1, 2, 3, 4, 5, 6}, mac...), 8, 0)}
	if got := r.named(frame); got.Port != "B2" {
		t.Errorf("a frame of B2 is named %q", got.Port)
	}
	frame.FromNode = false
	if got := r.named(frame); got.Port != "B" {
		t.Errorf("a frame to somebody else is named %q", got.Port)
	}
}
