package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandem/internal/needs"
)

const exampleFacing = "../../examples/site-to-site"

func TestFacingExample(t *testing.T) {
	if !isFacing(exampleFacing) || isFarm(exampleFacing) || isFacing(examplePair) || isFacing(exampleSites) {
		t.Fatal("the example is taken for another kind")
	}
	names, err := ScenarioNames(exampleFacing)
	if err != nil || len(names) == 0 {
		t.Fatalf("scenarios %v, %v", names, err)
	}
	for _, n := range names {
		if _, err := loadScenario(exampleFacing, n, parseFacingScenario); err != nil {
			t.Error(err)
		}
	}
	for _, p := range facingPairs {
		for _, n := range p.Nodes {
			if _, err := os.Stat(filepath.Join(exampleFacing, n+".conf")); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestFacingScenarioFaults(t *testing.T) {
	for text, want := range map[string]string{
		"steps\nkill-actives 20ms\nend":          "is no moment",
		"steps\nkill-actives soon\nend":          "no duration",
		"steps\nkill active\nend":                "unknown step",
		"steps\nwait takeover\nend":              "what to wait for",
		"steps\nwait synchronised soon\nend":     "no duration",
		"steps\nlose-actives now\nend":           "takes nothing",
		"client child-rekey=1s\nsteps\nrun 1s\n": "unknown word",
		"steps\nrun 1s\nend\nbound nothing = 0":  "no figure",
	} {
		if _, err := parseFacingScenario("x", "x.lab", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := parseFacingScenario("x", "x.lab", "about it\ntraffic probe=10ms tcp=0\nsteps\nrepeat 2\nkill-actives 19ms\nkill-actives\nlose-actives\nrestore\nend\nwait synchronised 5s\nend\nbound fault_spread_ms <= 20"); err != nil {
		t.Error(err)
	}
}

func TestBuildFacing(t *testing.T) {
	needs.Root(t)
	topo, err := BuildFacing("")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	}()
	// What the daemons do: the shared addresses. Then each host reaches the other by routing.
	for i, p := range facingPairs {
		n := p.Nodes[i] // one first, one second gateway
		for dev, a := range map[string]string{"wan0": p.SharedWAN, "lan0": p.SharedLAN} {
			if err := topo.address(n, dev, a); err != nil {
				t.Fatal(err)
			}
		}
		if err := topo.route(n, facingPairs[1-i].lan().String(), facingPairs[1-i].SharedWAN); err != nil {
			t.Fatal(err)
		}
		if got := len(topo.ports(n, nil)); got != 4 {
			t.Errorf("%s has %d cables", n, got)
		}
	}
	a, b := facingPairs[0], facingPairs[1]
	crosses := func() bool {
		t.Helper()
		p, err := topo.StartProbes(a.Host, addrOf(a.HostAddr), b.Host, addrOf(b.HostAddr), 5e6)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Stop(0)
		return poll(t.Context(), 2e9, 1e7, func() error {
			if x, y := p.Received(); x == 0 || y == 0 {
				return os.ErrDeadlineExceeded
			}
			return nil
		}) == nil
	}
	if !crosses() {
		t.Error("the two sites do not reach each other")
	}
	if err := topo.CutNode(a.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	if crosses() {
		t.Error("a lost host forwards")
	}
}
