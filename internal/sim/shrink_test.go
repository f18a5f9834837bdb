package sim

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestShrink: of everything that a seed makes, what the violation needs remains.
func TestShrink(t *testing.T) {
	full := Generate(4, true)
	full.Actions = append(full.Actions,
		Action{At: full.Length / 2, Verb: Handover, Node: "owner", For: 3 * time.Second},
		Action{At: full.Length/2 + time.Second, Verb: Kill, Node: "standby"})
	full.order()
	runs := 0
	needs := func(s *Schedule) *Result {
		runs++
		r := newResult()
		i := slices.IndexFunc(s.Actions, func(a Action) bool { return a.Verb == Handover })
		if i < 0 || s.Setup.Delay == 0 {
			return r
		}
		for _, a := range s.Actions[i:] {
			if a.Verb == Kill && a.At-s.Actions[i].At < 5*time.Second {
				r.Violations = []Violation{{Rule: RuleLost, At: a.At + time.Second}}
				return r
			}
		}
		r.Violations = []Violation{{Rule: RuleLiveness, At: s.Length + healLimit}} // another one
		return r
	}
	k := shrink(full, RuleLost, 1000, needs)
	s := k.Schedule
	if len(s.Actions) != 2 || s.Actions[0].Verb != Handover || s.Actions[1].Verb != Kill {
		t.Errorf("the actions that are left:\n%s", s)
	}
	if s.Real || len(s.Setup.Clients) != 1 || s.Setup.Loss != 0 || s.Setup.TightLoop || s.Length > time.Minute {
		t.Errorf("not plain:\n%s", s)
	}
	if k.Runs != runs || runs > 300 {
		t.Errorf("says %d runs, took %d", k.Runs, runs)
	}
	if !violates(k.Result, RuleLost) {
		t.Errorf("the result is %v", k.Result.Violations)
	}
	if again := Generate(4, true); len(again.Actions)+2 != len(full.Actions) {
		t.Error("the schedule that was given has changed")
	}

	runs = 0
	if k := shrink(full, RuleLost, 7, needs); k.Runs > 9 || runs > 9 {
		t.Errorf("%d runs with a limit of 7", runs)
	}
	if k := shrink(full, RuleNonce, 100, needs); k.Runs != 1 || !equal(k.Schedule, full) {
		t.Errorf("what violates another rule was shrunk in %d runs", k.Runs)
	}
}

func TestDropClient(t *testing.T) {
	s := &Schedule{Setup: Setup{Clients: []Client{{Group: 1}, {Group: 2}, {Group: 3}}, Drift: []int64{10, 20, 1, 2, 3}},
		Actions: []Action{{Node: "client1"}, {Node: "client2"}, {Node: "client3"}, {Node: "gw1"}}}
	s.dropClient(1)
	var nodes []string
	for _, a := range s.Actions {
		nodes = append(nodes, a.Node)
	}
	if s.Setup.Clients[1].Group != 3 || !slices.Equal(s.Setup.Drift, []int64{10, 20, 1, 3}) || !slices.Equal(nodes, []string{"client1", "client2", "client2", "gw1"}) {
		t.Errorf("%+v, %v", s.Setup, nodes)
	}
}

// TestStory: what is written can be read, and replays the same run.
func TestStory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	s := ForSeed(3, RealEvery)
	s.Crash = Crash{Cell{"node.Install", Auth, false, true}, 1}
	st, err := WriteStory(dir, s, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"schedule.txt": "seed 3", "trace.txt": "SIGKILL after node.Install, IKE_AUTH as responder",
		"diagram.txt": "gw1", "diagram.svg": "<svg",
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v; %q is not in its %d bytes", name, err, want, len(b))
		}
	}
	again, err := ReadSchedule(filepath.Join(dir, "schedule.json"))
	if err != nil {
		t.Fatal(err)
	}
	if r := Run(again); r.Digest != st.Result.Digest || r.Crashes[s.Crash.Cell] != 1 {
		t.Errorf("another run: digests %016x and %016x, %d crashes", r.Digest, st.Result.Digest, r.Crashes[s.Crash.Cell])
	}
}

func TestScheduleThatIsNone(t *testing.T) {
	for text, want := range map[string]string{
		`{"Seed":1}`: "clients", `{"Sed":1}`: "Sed", `{`: "not a schedule",
		`{"Setup":{"Clients":[{}]}}`: "length", `{"Length":1,"Setup":{"Clients":[{}]}}`: "out of range",
	} {
		file := filepath.Join(t.TempDir(), "s.json")
		if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSchedule(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
