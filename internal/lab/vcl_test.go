package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/config"
)

const exampleVCluster = "../../examples/vcluster"

func TestVClusterExampleScenarios(t *testing.T) {
	names, err := ScenarioNames(exampleVCluster)
	if err != nil || !isVCluster(exampleVCluster) || isVCluster(examplePair) || isFarm(exampleVCluster) {
		t.Fatal(names, err)
	}
	text, err := os.ReadFile(filepath.Join(exampleVCluster, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme := string(text)
	for _, n := range names {
		s, err := LoadVClusterScenario(exampleVCluster, n)
		if err != nil {
			t.Error(err)
			continue
		}
		if s.About == "" || !strings.Contains(readme, "`"+n+"`") {
			t.Errorf("%s is not explained", n)
		}
		fields := map[string]bool{}
		for _, b := range s.Bounds {
			fields[b.Field] = true
		}
		for _, f := range []string{"lost_per_move", "kill_outage_ms", "lost_elsewhere", "moves_uncovered", "child_by_gateway", "child_by_peer", "ike_by_gateway", "ike_by_peer",
			"rekeys_unanswered", "sa_init_after_up", "ike_sas_explained", "syncs_per_change", "iv_repeats", "seq_regressions", "replays_accepted", "spi_changed"} {
			if !fields[f] {
				t.Errorf("%s does not bound %s", n, f)
			}
		}
	}
	for v := range vverbs {
		if !strings.Contains(readme, "`"+v) {
			t.Errorf("README.md does not explain the step %s", v)
		}
	}
	if _, err := ParseVClusterScenario("x", "x.lab", "steps\nmove 3\nkill gw1\nwait takeover\nend\nbound lost_per_mov <= 1\n"); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("faults: %v", err)
	}
}

// TestVClusterExampleConfigurations: the lab's flows and addresses are the example's.
func TestVClusterExampleConfigurations(t *testing.T) {
	for i, node := range Gateways {
		text, err := os.ReadFile(filepath.Join(exampleVCluster, node+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		c, faults := config.Load(node, []byte(strings.ReplaceAll(string(text), "@DIR@", "/tmp/x")))
		if c == nil || len(faults) > 0 {
			t.Fatal(faults)
		}
		for _, f := range vflows {
			if p := c.Phase1ByName(f.tunnel); p == nil || c.VClusterOf(p) != f.vcluster || p.RemoteGW != f.outer() {
				t.Errorf("%s: %s is not as the lab has it", node, f.tunnel)
			}
		}
		changed, ok := setPriority(string(text), 2, 77)
		if !ok {
			t.Fatal("no priority")
		}
		c, _ = config.Load(node, []byte(strings.ReplaceAll(changed, "@DIR@", "/tmp/x")))
		if v := c.VirtualClusters(); v[0].Priority != 200-100*i || v[1].Priority != 77 {
			t.Errorf("%s: %+v", node, v)
		}
		if _, ok := setPriority(string(text), 3, 1); ok {
			t.Error("a virtual cluster that is not there")
		}
	}
}

// TestVClusterLosses: what a ping's loss counts as.
func TestVClusterLosses(t *testing.T) {
	at := time.Unix(1000, 0)
	r := &vrun{stage: stage{s: &Scenario{Probe: 20 * time.Millisecond}, res: Result{VClusterFigures: &VClusterFigures{}}},
		ended: at.Add(30 * time.Second), faults: []*vfault{{at: at.Add(20 * time.Second), victim: NodeGW1, owned: []int{1}}}}
	// stream sends for thirty seconds; lost are the moments, in milliseconds.
	stream := func(lost ...int) Stream {
		s := Stream{Sent: 1500}
		for n := range s.Sent {
			gone := false
			for _, ms := range lost {
				gone = gone || int(n)*20 == ms
			}
			if !gone {
				s.Arrivals = append(s.Arrivals, Arrival{n, at.Add(time.Duration(n) * 20 * time.Millisecond)})
			}
		}
		return s
	}
	changes := []VChange{
		{VCluster: 1, Planned: true, Covered: true, at: at.Add(10 * time.Second)},
		{VCluster: 1, Covered: true, DetectMS: 3, at: at.Add(20*time.Second + 5*time.Millisecond)},
		{VCluster: 2, Planned: true, at: at.Add(25 * time.Second)},
	}
	streams := [][2]Stream{
		{stream(10_020), stream(20_020, 20_040, 20_060)}, // of virtual cluster 1
		{stream(10_040), stream(7_000, 25_000, 25_020)},  // of 2: once while 1 moved, and the last packet of an SA
		{stream(5_000), stream()},
		{stream(), stream(7_000)}, // the same, at a Tandem
	}
	for _, k := range []int{1, 3} {
		r.lastAt[k] = map[uint32]time.Time{1: at.Add(7*time.Second + 3*time.Millisecond), 2: at.Add(30 * time.Second)}
	}
	r.judgeStreams(streams, changes)
	f := r.res.VClusterFigures
	if f.PlannedMoves != 2 || f.LostPerMove != 2 || f.LostElsewhere != 3 || f.Disturbed != 1 || f.LostByPeers != 1 || f.MovesUncovered != 1 || f.KillOutageMS < 40 || f.KillOutageMS > 90 {
		t.Errorf("%+v", f)
	}
	if len(r.res.Violations) != 3 {
		t.Error(r.res.Violations)
	}
}
