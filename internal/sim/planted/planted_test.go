// Package planted holds bugs to plant into the production code, one patch each, to
// see whether the simulation finds them (README.md, scripts/planted.sh).
package planted

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "tandem/internal/sim" // so that no result is kept beyond a change of what the patches patch
)

// quick are found by one of the first seeds.
var quick = []string{"one-acknowledgement-for-all", "reply-before-acknowledgement", "retransmission-encrypted-anew",
	"farm-any-acknowledgement-counts", "farm-left-before-removed"}

func script(t *testing.T, args ...string) {
	t.Helper()
	out, err := run(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "..", "scripts", "planted.sh"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(patches(t), path) { // nor beyond a change of these
		if _, err := os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestPlantedBugs(t *testing.T) {
	script(t, append([]string{"--limit", "50"}, quick...)...)
}

// TestNoBug: a patch that breaks nothing is not found, and that is told as a failure.
func TestNoBug(t *testing.T) {
	dir := t.TempDir()
	const patch = "--- /dev/null\n+++ b/ike/harmless.go\n@@ -0,0 +1,3 @@\n+package ike\n+\n+// Nothing.\n"
	if err := os.WriteFile(filepath.Join(dir, "harmless.patch"), []byte(patch), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, "--patches", dir, "--limit", "2")
	if err == nil || !strings.Contains(out, "harmless: NOT FOUND in 2 schedules") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPatches: every patch applies to the present code, and README.md explains it.
func TestPatches(t *testing.T) {
	script(t, "--check")
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	all := patches(t)
	for _, p := range all {
		name := strings.TrimSuffix(p, ".patch")
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("README.md says nothing about %s", name)
		}
	}
	if n := strings.Count(string(readme), "\n| `"); n != len(all) {
		t.Errorf("README.md has %d rows for %d patches", n, len(all))
	}
}

func patches(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("*.patch")
	if err != nil || len(all) < 31 {
		t.Fatalf("%d patches, %v", len(all), err)
	}
	return all
}
