package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/needs"
)

func openState(t *testing.T, dir string, node NodeID) *StateDir {
	t.Helper()
	d, err := OpenStateDir(dir, node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestStateDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	d := openState(t, dir, 1)
	if d.Coverage() != CoverageLost || d.Epoch() != (Epoch{}) {
		t.Fatal("a new disk must count as lost")
	}
	if openState(t, dir, 1).Coverage() != CoverageLost {
		t.Fatal("a disk to which nothing was written counts as intact")
	}
	write := func(on bool, e Epoch) {
		t.Helper()
		if err := d.WriteNote(on, e); err != nil {
			t.Fatal(err)
		}
	}
	write(true, Epoch{Counter: 5, Node: 1})
	if x := openState(t, dir, 1); x.Coverage() != CoverageNote || x.Epoch() != (Epoch{Counter: 5, Node: 1}) {
		t.Error("note not found again")
	}
	write(false, Epoch{Counter: 7, Node: 2})
	write(false, Epoch{Counter: 6, Node: 1}) // the highest stays
	if x := openState(t, dir, 1); x.Coverage() != CoverageProven || x.Epoch() != (Epoch{Counter: 7, Node: 2}) {
		t.Errorf("%v %v", x.Coverage(), x.Epoch())
	}
	if openState(t, dir, 2).Coverage() != CoverageLost {
		t.Error("another node's disk proves nothing")
	}
}

func TestStateFileSurvivesATornWrite(t *testing.T) {
	dir := t.TempDir()
	d := openState(t, dir, 1)
	for i := range uint64(4) {
		if err := d.WriteNote(i%2 == 0, Epoch{Counter: i + 1, Node: 1}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "epoch.state")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(whole) != slots*slotSize {
			t.Fatalf("%d bytes: the file must never grow", len(whole))
		}
		torn := append([]byte(nil), whole...)
		next := (d.s.at + 1) % slots * slotSize
		copy(torn[next:], "a write that did not come to its end")
		other := t.TempDir()
		if err := os.WriteFile(filepath.Join(other, "epoch.state"), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		x := openState(t, other, 1)
		if x.Epoch() != (Epoch{Counter: i + 1, Node: 1}) || (x.Coverage() == CoverageNote) != (i%2 == 0) {
			t.Errorf("after write %d: %v %v", i, x.Epoch(), x.Coverage())
		}
	}
}

func TestLostAndBrokenDisks(t *testing.T) {
	dir := t.TempDir()
	if err := openState(t, dir, 1).WriteNote(false, Epoch{Counter: 5, Node: 1}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "epoch.state")
	for name, spoil := range map[string]func() error{
		"empty":   func() error { return os.Truncate(path, 0) },
		"short":   func() error { return os.Truncate(path, 100) },
		"garbage": func() error { return os.WriteFile(path, []byte(strings.Repeat("x", slots*slotSize)), 0o600) },
		"gone":    func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if d := openState(t, dir, 1); d.Coverage() != CoverageLost || d.Epoch() != (Epoch{}) {
			t.Errorf("%s: %v %v", name, d.Coverage(), d.Epoch())
		}
	}
	// A path that cannot be a directory stands for a disk that refuses writes.
	if _, err := OpenStateDir(path, 1); err == nil || !strings.Contains(err.Error(), "state-dir") {
		t.Errorf("no clear error: %v", err)
	}
	d := openState(t, dir, 1)
	d.s.f.Close()
	if err := d.WriteNote(true, Epoch{Counter: 9, Node: 1}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a failed write: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	needs.File(t, "/dev/full")
	f, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &StateDir{dir: "/somewhere", s: &stateFile{f: f}}
	if err := d.WriteNote(true, Epoch{Counter: 1, Node: 1}); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	if d.s.cur.counter != 0 {
		t.Error("a failed write counts as written")
	}
}

func TestIncarnationsRise(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(2e9, 0)
	last := uint64(0)
	for _, at := range []time.Time{now, now, now.Add(-time.Hour), now.Add(time.Second)} {
		n, err := NextIncarnation(dir, 1, at)
		if err != nil {
			t.Fatal(err)
		}
		if n <= last {
			t.Errorf("%d after %d", n, last)
		}
		last = n
	}
	// With the disk lost, the clock stands in.
	if n, err := NextIncarnation(t.TempDir(), 1, now.Add(time.Minute)); err != nil || n <= last {
		t.Errorf("%d, %v after %d", n, err, last)
	}
}
