package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/config"
)

const examplePair = "../../examples/pair"

func TestExampleScenarios(t *testing.T) {
	names, err := ScenarioNames(examplePair)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"demo", "rekey-client", "rekey-gateway", "handover", "freeze", "freeze-host", "pause-both",
		"heartbeat-split", "heartbeat-flap", "back-and-forth", "replay-after-takeover"} {
		s, err := LoadScenario(examplePair, n)
		if err != nil {
			t.Error(err)
			continue
		}
		fields := map[string]bool{}
		for _, b := range s.Bounds {
			fields[b.Field] = true
		}
		for _, f := range []string{"iv_repeats", "seq_regressions", "replays_accepted", "sa_init_after_up", "tcp_ok", "spi_changed"} {
			if !fields[f] {
				t.Errorf("%s does not bound %s", n, f)
			}
		}
		if n != "pause-both" && !strings.HasPrefix(n, "heartbeat") && !fields["rejected_over_lead"] {
			t.Errorf("%s has takeovers and does not bound what they reject", n)
		}
		if s.About == "" {
			t.Errorf("%s does not say what it is about", n)
		}
	}
	if len(names) < 10 {
		t.Errorf("scenarios: %v", names)
	}
	readme, err := os.ReadFile(filepath.Join(examplePair, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.Contains(string(readme), "`"+n+"`") {
			t.Errorf("README.md does not name the scenario %s", n)
		}
	}
	for v := range verbs {
		if !strings.Contains(string(readme), "`"+v) {
			t.Errorf("README.md does not explain the step %s", v)
		}
	}
}

func TestExampleConfigurations(t *testing.T) {
	for _, n := range []string{"gw1.conf", "gw2.conf", "client.conf"} {
		text, err := os.ReadFile(filepath.Join(examplePair, n))
		if err != nil {
			t.Fatal(err)
		}
		filled := (&Topology{Dir: "/run/tandem-lab/abcdef/work"}).fill(string(text))
		cfg, faults := config.Load(n, []byte(filled))
		for _, f := range faults {
			t.Errorf("%v (warning: %v)", f, f.Warning)
		}
		if cfg != nil && n != "client.conf" && (cfg.HA.Mode != "a-p" || cfg.HA.HBInterval != 10*time.Millisecond) {
			t.Errorf("%s: %+v", n, cfg.HA)
		}
	}
}

func TestParseScenario(t *testing.T) {
	s, err := ParseScenario("x", "x.lab", `
# a comment
about Twice
client child-rekey=4s ike-rekey=never
gateway ike-rekey=30s
traffic probe=10ms tcp=1000
steps
  repeat 2   # inner
    kill active
    run 1s
  end
  wait ike-rekeys 3 1m
end
bound outage_ms.max <= 300
bound tcp_ok = true
`)
	if err != nil {
		t.Fatal(err)
	}
	want := &Scenario{
		Name: "x", About: "Twice", ClientChildRekey: 4 * time.Second, GatewayIKERekey: 30 * time.Second,
		Probe: 10 * time.Millisecond, TCP: 1000,
		Steps: []Step{
			{8, "repeat", []string{"2"}, []Step{{9, "kill", []string{"active"}, nil}, {10, "run", []string{"1s"}, nil}}},
			{12, "wait", []string{"ike-rekeys", "3", "1m"}, nil},
		},
		Bounds: []Bound{{"outage_ms.max", "<=", "300"}, {"tcp_ok", "=", "true"}},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
}

func TestScenarioFaults(t *testing.T) {
	_, err := ParseScenario("x", "x.lab", `color blue
client child-rekey=soon
bound outage_ms.mean <= 3
bound tcp_ok <= true
bound verdict = true
steps
  explode active
  kill nobody
  freeze active
  wait forever
  repeat many
    run
  end
  end
end
steps
`)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"x.lab:1: unknown word", "x.lab:2: ", "x.lab:3: a result has no figure", "x.lab:4: ", "x.lab:5: ",
		"x.lab:7: unknown step \"explode\"", "x.lab:8: kill", "x.lab:9: freeze", "x.lab:10: wait", "x.lab:11: repeat", "x.lab:12: run",
		"x.lab:15: end", "x.lab:16: this block has no end"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault %q in:\n%v", want, err)
		}
	}
}

func FuzzParseScenario(f *testing.F) {
	f.Add("about x\nsteps\nrepeat 2\nkill active\nend\nend\nbound kills = 2\n")
	f.Add("steps\nrepeat 2\nrepeat 2\nrepeat 2\nrepeat 2\nrepeat 2\nend\nend\nend")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseScenario("f", "f.lab", text)
		if err == nil && len(s.Steps) == 0 {
			t.Error("a scenario without steps was accepted")
		}
	})
}
