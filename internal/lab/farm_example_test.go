package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/config"
)

const exampleFarm = "../../examples/farm"

func TestFarmExampleScenarios(t *testing.T) {
	names, err := ScenarioNames(exampleFarm)
	if err != nil || !isFarm(exampleFarm) || isFarm(examplePair) {
		t.Fatal(names, err)
	}
	text, err := os.ReadFile(filepath.Join(exampleFarm, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme := string(text)
	for _, want := range []string{"demo", "rehash", "partition", "quorum", "quorum-stop", "leader"} {
		if !strings.Contains(strings.Join(names, " "), want) {
			t.Errorf("no scenario %s", want)
		}
	}
	for _, n := range names {
		s, err := LoadFarmScenario(exampleFarm, n)
		if err != nil {
			t.Error(err)
			continue
		}
		if s.About == "" || s.Farm.Clients() != 200 || s.Farm.Charon != 4 || !strings.Contains(readme, "`"+n+"`") {
			t.Errorf("%s: %+v", n, s.Farm)
		}
		fields := map[string]bool{}
		for _, b := range s.Bounds {
			fields[b.Field] = true
		}
		for _, f := range []string{"iv_repeats", "seq_regressions", "seq_regressions_owner", "replays_accepted", "sa_init_after_up", "spi_changed",
			"double_owner_ms", "uninvolved_packets", "failed_expectations"} {
			if !fields[f] {
				t.Errorf("%s does not bound %s", n, f)
			}
		}
		if fields["kills"] && n != "quorum-stop" && n != "drain" && !(fields["outage_ms.median"] && fields["outage_ms.p99"] && fields["outage_from_kill_ms.p99"]) {
			t.Errorf("%s has faults and does not bound their outages", n)
		}
	}
	for v := range farmVerbsOf(Members) {
		if !strings.Contains(readme, "`"+v) {
			t.Errorf("README.md does not explain the step %s", v)
		}
	}
}

func TestFarmScenarioFaults(t *testing.T) {
	for text, want := range map[string]string{
		"steps\n kill gw1\nend":                                 "kill",
		"steps\n silent DC1_VM3\nend":                           "needs a member and a time",
		"steps\n carries\nend":                                  "needs a time",
		"steps\n expect unchanged\nend":                         "does not know what to expect",
		"steps\n rehash DC1_VM9\nend":                           "no member",
		"farm charon=x\nsteps\n run 1s\nend":                    "expected a number",
		"farm quorum-loss=maybe\nsteps\n run 1s\nend":           "continue or stop",
		"farm colour=red\nsteps\n run 1s\nend":                  "unknown setting",
		"farm sync=4\nsteps\n run 1s\nend":                      "members can take part",
		"client child-rekey=1s\nsteps\n run 1s\nend":            "unknown word",
		"steps\n run 1s\nend\nbound outage_from_kill_ms <= 500": "no figure",
	} {
		if _, err := ParseFarmScenario("x", "x.lab", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ParseScenario("x", "x.lab", "steps\n run 1s\nend\nbound clients >= 1"); err == nil {
		t.Error("a pair's scenario bounds a farm's figure")
	}
}

func TestFarmExampleConfigurations(t *testing.T) {
	topo := &Topology{Dir: "/run/tandem-lab/abcdef/work"}
	load := func(name, text string) *config.Config {
		t.Helper()
		cfg, faults := config.Load(name, []byte(text))
		for _, f := range faults {
			t.Errorf("%s: %v (warning: %v)", name, f, f.Warning)
		}
		if cfg == nil {
			t.Fatalf("%s does not load", name)
		}
		return cfg
	}
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(exampleFarm, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for i, m := range Members {
		cfg := load(m, topo.fill(read(m+".conf"), "@QUORUM_LOSS@", "stop"))
		p, s := cfg.Phase1[0], cfg.Standalone
		if cfg.Hostname != m || s.MemberID != i+1 || len(s.Peers) != 3 || p.LocalGW != FarmLoopback || p.FGSPSync != (i < 3) || cfg.Tandem.QuorumLoss != "stop" {
			t.Errorf("%s: %+v", m, cfg)
		}
		for _, x := range s.Peers {
			if x.HBInterval != 10*time.Millisecond || x.HBLostThreshold != 3 || x.PeerIP == netip.MustParseAddr(fmt.Sprintf("172.31.1.%d", i+1)) {
				t.Errorf("%s: peer %+v", m, x)
			}
		}
	}
	f := defaultFarm()
	all := f.tunnels()
	text := topo.clientText(read("client.conf"), &all[16])
	for i := 16; i < 19; i++ {
		text += topo.clientText(read("tunnel.conf"), &all[i])
	}
	cfg := load("client", text)
	if len(cfg.Phase1) != 3 || cfg.Phase1[2].LocalGW != all[18].Outer || cfg.Phase2[2].Src[0].String() == "" || strings.Contains(text, "@") {
		t.Errorf("%s", text)
	}
}
