package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandem/internal/sim"
)

func TestShare(t *testing.T) {
	for text, want := range map[string]uint64{"1/8": 8, "1/100": 100, "1": 1, "1/1": 1, "0": 0} {
		if n, err := parseShare(text); err != nil || n != want {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "8", "2/8", "1/0", "1/-1", "true"} {
		if n, err := parseShare(text); err == nil {
			t.Errorf("%q reads as %d", text, n)
		}
	}
}

func TestCommandsReplay(t *testing.T) {
	v := sim.Found{Seed: 7, Crash: "before node.Claim"}
	for every, want := range map[uint64]string{
		8: `make sim SEED=7 CRASH="before node.Claim"`, 0: `make sim SEED=7 CRASH="before node.Claim" REAL=0`,
		1: `make sim SEED=7 CRASH="before node.Claim" REAL=1`, 3: `make sim SEED=7 CRASH="before node.Claim" REAL=1/3`,
	} {
		if c := command(v, every); c != want {
			t.Errorf("%q, want %q", c, want)
		}
	}
}

func TestStatus(t *testing.T) {
	for args, want := range map[string]int{
		"--help": 0, "--seed x": 2, "--real 2": 2, "--nonsense": 2, "extra": 2, "--schedule /does/not/exist": 2, "--seed 1 --crash nowhere": 2,
	} {
		var out strings.Builder
		if got := run(strings.Fields(args), &out); got != want || out.Len() == 0 {
			t.Errorf("%s: status %d, want %d:\n%s", args, got, want, &out)
		}
	}
}

// TestSweep runs a few seeds as make sim does.
func TestSweep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "figures.json")
	var out strings.Builder
	if status := run([]string{"--seeds", "3", "--from", "8", "--coverage=false", "--workers", "2", "--json", file}, &out); status != 0 {
		t.Fatalf("status %d:\n%s", status, &out)
	}
	for _, want := range []string{"schedules         3, of these 1 with", "crash points:", "0 violations"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var f sim.Figures
	if err := json.Unmarshal(b, &f); err != nil || f.Schedules != 3 || f.Real != 1 || f.CrashPoints == 0 {
		t.Errorf("%v: %+v", err, f)
	}
}

// TestReplay replays a seed and then what it wrote.
func TestReplay(t *testing.T) {
	dir := t.TempDir()
	var seed, schedule strings.Builder
	if status := run([]string{"--seed", "5", "--out", dir}, &seed); status != 0 {
		t.Fatalf("status %d:\n%s", status, &seed)
	}
	if status := run([]string{"--schedule", filepath.Join(dir, "schedule.json"), "--out", filepath.Join(dir, "again")}, &schedule); status != 0 {
		t.Fatalf("status %d:\n%s", status, &schedule)
	}
	for _, name := range []string{"schedule.txt", "trace.txt", "diagram.txt", "diagram.svg", "schedule.json"} {
		a, err := os.ReadFile(filepath.Join(dir, name))
		b, err2 := os.ReadFile(filepath.Join(dir, "again", name))
		if err != nil || err2 != nil || string(a) != string(b) || len(a) == 0 {
			t.Errorf("%s: %v, %v; %d and %d bytes", name, err, err2, len(a), len(b))
		}
	}
}
