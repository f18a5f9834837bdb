// Package planted holds bugs to plant into the production code, one patch each, to
// see whether the simulation finds them (README.md, scripts/planted.sh).
package planted

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// quick are found by one of the first seeds.
var quick = []string{"one-acknowledgement-for-all", "reply-before-acknowledgement", "retransmission-encrypted-anew"}

func script(t *testing.T, args ...string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "..", "scripts", "planted.sh"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func TestPlantedBugs(t *testing.T) {
	script(t, append([]string{"--limit", "50"}, quick...)...)
}

// TestPatches: every patch applies to the present code, and README.md explains it.
func TestPatches(t *testing.T) {
	script(t, "--check")
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	patches, err := filepath.Glob("*.patch")
	if err != nil || len(patches) < 17 {
		t.Fatalf("%d patches, %v", len(patches), err)
	}
	for _, p := range patches {
		name := strings.TrimSuffix(p, ".patch")
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("README.md says nothing about %s", name)
		}
	}
	if n := strings.Count(string(readme), "\n| `"); n != len(patches) {
		t.Errorf("README.md has %d rows for %d patches", n, len(patches))
	}
}
