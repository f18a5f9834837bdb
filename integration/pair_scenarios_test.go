package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tandem/internal/lab"
)

const examplePair = "../examples/pair"

// shortForms makes each scenario of the example short for -short: fewer repeats,
// quicker rekeys, the same bounds. Each edit must find its line.
var shortForms = map[string][]string{
	"back-and-forth":        {"repeat 20", "repeat 4"},
	"demo":                  {"repeat 5", "repeat 2", "kills = 10", "kills = 4"},
	"freeze":                {"freeze active 5s", "freeze active 2s"},
	"freeze-host":           {"freeze-host active 5s", "freeze-host active 2s"},
	"handover":              {"repeat 10", "repeat 3"},
	"heartbeat-flap":        {"repeat 5", "repeat 2"},
	"heartbeat-split":       {"run 10s", "run 6s", "run 5s", "run 2s"},
	"idle-takeover":         {"repeat 5", "repeat 2", "kills = 5", "kills = 2"},
	"pause-both":            {},
	"rekey-client":          append([]string{"client child-rekey=4s ike-rekey=30s", "client child-rekey=2s ike-rekey=6s"}, shortRekeys...),
	"rekey-gateway":         append([]string{"gateway child-rekey=4s ike-rekey=30s", "gateway child-rekey=1s ike-rekey=4s"}, shortRekeys...),
	"replay-after-takeover": {"repeat 2", "repeat 1"},
}

var shortRekeys = []string{
	"repeat 5", "repeat 1", "kills = 10", "kills = 2", "run 10s", "run 2s",
	"child-rekeys 50 6m", "child-rekeys 5 1m", "child_rekeys >= 50", "child_rekeys >= 5",
	"ike-rekeys 10 8m", "ike-rekeys 2 1m", "ike_rekeys >= 10", "ike_rekeys >= 2",
}

// shortened is a copy of the example whose one scenario has its short form.
func shortened(t *testing.T, scenario string, edits []string) string {
	t.Helper()
	return shortenedOf(t, examplePair, scenario, edits)
}

func shortenedOf(t *testing.T, example, scenario string, edits []string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(example)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "scenarios", scenario+".lab")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := string(text)
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(s, edits[i]) {
			t.Fatalf("%s.lab has no %q to shorten", scenario, edits[i])
		}
		s = strings.Replace(s, edits[i], edits[i+1], 1)
	}
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// attempts is how often a scenario is run at most; see disturbed.
const attempts = 3

// runLab runs `tandem lab run` as a user does. Captures and logs of a failed run
// stay in a folder that the test names. A run that the machine disturbed is done
// again and says so.
func runLab(t *testing.T, example string, args ...string) lab.Result {
	t.Helper()
	for n := 1; ; n++ {
		res, out, keep := runLabOnce(t, example, args...)
		t.Logf("outage median %.1f, max %.1f ms; disturbance %.1f ms; detected in %.1f, max %.1f ms; lost %d of %d; rekeys %d+%d, %d unanswered; jump %.0f, max %.0f; rejected %d of at least %d, %d over the lead; quiet times %.1f ms",
			res.OutageMS.Median, res.OutageMS.Max, res.DisturbanceMS, res.DetectMS.Median, res.DetectMS.Max, res.LostPings, res.PingsSent,
			res.ChildRekeys, res.IKERekeys, res.RekeysUnanswered, res.SeqJump.Median, res.SeqJump.Max,
			res.SurvivorRejected, res.SurvivorReached, res.RejectedOverLead, res.OtherGapMS)
		if res.WakingPackets+res.StaleOwnerPackets > 0 {
			t.Logf("a frozen owner sent %d packets within 10 ms of waking, %d later; the machine let it wait for %.1f ms",
				res.WakingPackets, res.StaleOwnerPackets, res.WakeDelayMS)
		}
		if res.Verdict == lab.VerdictPass {
			_ = os.RemoveAll(keep)
			return res
		}
		why := disturbed(res, keep)
		if why == "" || n == attempts {
			t.Errorf("%v\n%s\ncaptures and logs: %s", res.Violations, out, keep)
			return res
		}
		t.Logf("run %d is done again, %s: %v", n, why, res.Violations)
		_ = os.RemoveAll(keep)
	}
}

// disturbed says why a failed run tells more about the machine than about us;
// empty when it does not. Three things excuse it: only times were missed; a guardian
// noticed that its processor stood still for several heartbeats, which for the other
// node is the silence of a lost host; or the kernel says that it left a woken process
// without a processor for most of the 10 ms after which it must be silent. A repeated
// IV or an accepted replay is never excused.
func disturbed(res lab.Result, keep string) string {
	if res.IVRepeats > 0 || res.ReplaysAccepted > 0 {
		return ""
	}
	times := len(res.Violations) > 0
	for _, v := range res.Violations {
		field, _, _ := strings.Cut(v, " ")
		switch field {
		case "outage_ms.median", "outage_ms.max", "disturbance_ms", "lost_per_takeover", "lost_per_move", "kill_outage_ms", "fault_spread_ms":
		default:
			times = false
		}
	}
	if times {
		return "only times were missed"
	}
	if res.WakeDelayMS > 5 {
		return fmt.Sprintf("a woken process waited %.1f ms for a processor", res.WakeDelayMS)
	}
	if res.Scenario == "pause-both" || res.Scenario == "freeze-host" {
		return "" // there the guardians are stopped on purpose
	}
	var logs []string
	for _, names := range []string{"gw*.log", "east*.log", "west*.log"} {
		some, _ := filepath.Glob(filepath.Join(keep, names))
		logs = append(logs, some...)
	}
	for _, path := range logs {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "this process was stopped for") {
			return "the machine stood still under " + filepath.Base(path)
		}
	}
	return ""
}

func runLabOnce(t *testing.T, example string, args ...string) (res lab.Result, out []byte, keep string) {
	t.Helper()
	keep, err := os.MkdirTemp("", "tandem-"+strings.ReplaceAll(t.Name(), "/", "-")+"-")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(keep, "result.json")
	args = append([]string{"lab", "run", example, "--json", file, "--keep", keep}, args...)
	out, err = exec.Command(program(t), args...).CombinedOutput()
	text, jerr := os.ReadFile(file)
	if jerr == nil {
		jerr = json.Unmarshal(text, &res)
	}
	if jerr != nil {
		t.Fatalf("no result: %v (%v)\n%s", jerr, err, out)
	}
	var ended *exec.ExitError
	status := 0
	if errors.As(err, &ended) {
		status = ended.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if want := lab.ExitStatus(res, nil); status != want {
		t.Errorf("exit status %d, the verdict %q wants %d", status, res.Verdict, want)
	}
	return res, out, keep
}

// TestPairScenarios runs every scenario of the example, one at a time: they
// measure milliseconds. Their own bounds judge.
func TestPairScenarios(t *testing.T) {
	needCharon(t)
	names, err := lab.ScenarioNames(examplePair)
	if err != nil || len(names) != len(shortForms) {
		t.Fatalf("%d scenarios in the example, %d short forms here: %v", len(names), len(shortForms), err)
	}
	for _, name := range names {
		edits, ok := shortForms[name]
		if !ok {
			t.Errorf("scenario %s has no short form", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			example := examplePair
			if testing.Short() {
				example = shortened(t, name, edits)
			}
			if res := runLab(t, example, "--scenario", name); res.Scenario != name || res.Client != lab.ClientCharon {
				t.Errorf("the result is of %s with %s", res.Scenario, res.Client)
			}
		})
	}
}

// TestPairWithTandemAsClient: the demo without strongSwan.
func TestPairWithTandemAsClient(t *testing.T) {
	needRoot(t)
	edits := []string{"repeat 5", "repeat 1", "kills = 10", "kills = 2"}
	if !testing.Short() {
		edits = shortForms["demo"]
	}
	if res := runLab(t, shortened(t, "demo", edits), "--client", lab.ClientTandem); res.Client != lab.ClientTandem {
		t.Errorf("the client was %s", res.Client)
	}
}
