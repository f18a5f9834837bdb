package integration

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// nextProgram is the binary of the test build that speaks one version more of the
// members' log and of the streams (cluster/fsm/next_on.go).
func nextProgram(t *testing.T) string { return programWith(t, "nextproto") }

// TestRollingUpgrade: the members of a farm are replaced by the next build, one after
// the other, under the traffic of a tunnel that knows nothing of it. The old versions
// are spoken while one old member is there, the new ones afterwards. An old build that
// comes back then ends at once and says why, with its memory of the log and without.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	needRoot(t)
	old, next := program(t), nextProgram(t)
	f := newTrio(t, old, 1)
	way := func(m string) { f.toGateway(0, m); f.toClient(0, m) }
	way("gw1")
	wan := f.tap(trioClient(0), "wan0")
	f.up()
	first := f.ikeSA(0)
	probes := []*prober{f.probe(trioClient(0), trioInner(0), trioServing), f.probe(trioServer, trioServing, trioInner(0))}

	for i, m := range trioMembers {
		begun := time.Now()
		other := trioMembers[(i+1)%len(trioMembers)]
		way(other)
		f.stop(m)
		f.together(m)
		f.start(f.members[m], next)
		f.together()
		way(m)
		f.wantPing(trioClient(0), trioInner(0), trioServing)
		if now := f.ikeSA(0); now != first {
			t.Fatalf("the client's IKE SA was %s and is %s", first, now)
		}
		t.Logf("%s replaced in %v", m, time.Since(begun).Round(10*time.Millisecond))
		if i == len(trioMembers)-1 {
			break
		}
		f.versions(trioMembers[:i+1], 1)
		// What only the next version understands is refused, by new builds, too.
		if out, err := exec.Command(next, "diagnose", "debug", "announce", "--socket", f.members[m].socket).CombinedOutput(); err == nil || !strings.Contains(string(out), "needs log version 2, the members have agreed on 1") {
			t.Errorf("%s announces what old members do not understand: %v: %s", m, err, out)
		}
		f.versions(trioMembers[:i+1], 1)
	}
	f.versions(trioMembers, 2)

	for _, disk := range []string{"with", "without"} {
		way("gw1")
		f.stop("gw3")
		f.together("gw3")
		g := f.members["gw3"]
		if disk == "without" {
			if err := os.RemoveAll(filepath.Dir(g.socket)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(g.proc.LogPath, g.proc.LogPath+"."+disk+"-before"); err != nil {
			t.Fatal(err)
		}
		f.start(g, old)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		err := g.proc.Wait(ctx)
		cancel()
		var e *exec.ExitError
		if !errors.As(err, &e) || e.ExitCode() != 1 {
			t.Fatalf("the old build %s its memory of the log: %v, want exit status 1", disk, err)
		}
		text, err := os.ReadFile(g.proc.LogPath)
		if n := strings.Count(string(text), "this build cannot stay in the farm"); err != nil || n != 1 {
			t.Errorf("the old build says %d times that it cannot stay: %v\n%s", n, err, text)
		}
		f.together("gw3")
		f.wantPing(trioClient(0), trioInner(0), trioServing)
		f.start(g, next)
		f.together()
		f.versions(trioMembers, 2)
	}

	if now := f.ikeSA(0); now != first {
		t.Errorf("the client's IKE SA was %s and is %s", first, now)
	}
	for _, p := range probes {
		sent, lost, doubled := p.end()
		t.Logf("%s: %d probes sent, %d lost, %d answered twice", p.name, sent, lost, doubled)
		if sent < 100 || lost*100 > sent || doubled > 0 {
			t.Errorf("%s: of %d probes %d are lost and %d answered twice", p.name, sent, lost, doubled)
		}
	}
	if !contains(f.members["gw1"].proc.LogPath, "replication stream: greeted", `"version":2`) {
		t.Error("no stream of the new version began as only that version's do")
	}
	for _, m := range trioMembers {
		logs, _ := filepath.Glob(f.members[m].proc.LogPath + "*")
		for _, path := range logs {
			if contains(path, "without a frame") {
				t.Errorf("%s got what its version does not know", m)
			}
		}
	}
	if n := wan.count(func(p packet) bool { return p.exchange() == exchInit && !p.response() }); n != 1 {
		t.Errorf("%d IKE_SA_INIT requests on the client's wire, want the first alone", n)
	}
}

// versions waits until all members agree that some of them are of the next build, and
// on what is spoken: the log's version, and each stream's, which is the new one between
// two new builds. What only the new version knows is used by all or by none.
func (f *trio) versions(young []string, log uint32) {
	f.t.Helper()
	speaks := func(m string) uint32 {
		if slices.Contains(young, m) {
			return 2
		}
		return 1
	}
	for _, m := range trioMembers {
		f.member(m, 10*time.Second, "knows the versions", func(h trioHA) bool {
			if h.LogVersion != log || h.LogMin != 1 || h.LogMax != speaks(m) || len(h.Rows) != len(trioMembers) || len(h.Peers) != len(trioMembers)-1 {
				return false
			}
			for _, p := range h.Rows {
				if p.LogMax != speaks(p.Hostname) || p.Features>>48 != uint64(log-1) || p.State != "active" {
					return false
				}
			}
			for _, p := range h.Peers {
				if p.Stream != min(speaks(m), speaks(p.Hostname)) {
					return false
				}
			}
			return true
		})
	}
}
