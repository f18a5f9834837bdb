package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/internal/lab"
	"tandem/internal/needs"
	"tandem/internal/testkit"
)

// wantNoLab wants nothing left of a lab: neither namespaces nor files nor processes.
func wantNoLab(t *testing.T, id string) {
	t.Helper()
	left, _ := filepath.Glob("/run/netns/tl-" + id + "-*")
	files, _ := filepath.Glob("/run/tandem-lab/" + id)
	if len(left)+len(files) > 0 {
		t.Errorf("left of the lab: %v %v", left, files)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte("/run/tandem-lab/"+id+"/")) {
			t.Errorf("%s still runs: %s", p, bytes.ReplaceAll(text, []byte{0}, []byte{' '}))
		}
	}
}

// TestLabInterrupted: Ctrl-C in the middle of a run leaves nothing behind.
func TestLabInterrupted(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, sig := range map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			id := lab.NewID()
			var out testkit.Log
			cmd := exec.Command(program(t), "lab", "run", examplePair, "--client", "tandem", "--id", id)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			eventually(t, 60*time.Second, "the run is under way", func() bool { return strings.Contains(out.String(), "tunnel is up") })
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				var e *exec.ExitError
				if !errors.As(err, &e) || e.ExitCode() != 1 || !strings.Contains(out.String(), "interrupted") {
					t.Errorf("it ended with %v:\n%s", err, out.String())
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("it does not end:\n%s", out.String())
			}
			wantNoLab(t, id)
		})
	}
}

// TestLabKilled: what a killed lab left is removed by the next one.
func TestLabKilled(t *testing.T) {
	t.Parallel()
	needRoot(t)
	id := lab.NewID()
	var out testkit.Log
	cmd := exec.Command(program(t), "lab", "run", examplePair, "--client", "tandem", "--id", id)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = lab.Down(id)
	})
	eventually(t, 60*time.Second, "the run is under way", func() bool { return strings.Contains(out.String(), "pair is synchronised") })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if left, _ := filepath.Glob("/run/netns/tl-" + id + "-*"); len(left) == 0 {
		t.Fatal("nothing was left: this test shows nothing")
	}
	if err := lab.Down(id); err != nil {
		t.Error(err)
	}
	wantNoLab(t, id)
}

// TestLabWithoutCharon: exit status 2 before anything is built, and what to do.
func TestLabWithoutCharon(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needs.Program(t, "unshare", "mount")
	var hide strings.Builder
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/bin", "/sbin") {
		for _, name := range []string{"charon-systemd", "swanctl"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				hide.WriteString("mount --bind /dev/null '" + filepath.Join(dir, name) + "'\n")
			}
		}
	}
	id := lab.NewID()
	// A mount namespace of its own, where a file that nobody can execute covers them.
	script := "set -e\n" + hide.String() + `exec "$0" lab run "$1" --id "$2"`
	out, err := exec.Command("unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, program(t), examplePair, id).CombinedOutput()
	var e *exec.ExitError
	if !errors.As(err, &e) || e.ExitCode() != 2 || !strings.Contains(string(out), "--client tandem") || !strings.Contains(string(out), "apt-get install") {
		t.Errorf("%v:\n%s", err, out)
	}
	wantNoLab(t, id)
}
