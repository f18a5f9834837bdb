package daemon

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/cluster/revision"
	"tandem/internal/needs"
	"tandem/proto/syncpb"
)

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", filepath.Base(path), b, err, want)
	}
}

// A file is replaced whole, with the mode it had, where a link leads; what was there is
// kept.
func TestStagedFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "gw.conf"), filepath.Join(t.TempDir(), "link.conf")
	if err := os.WriteFile(path, []byte("one"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for i, next := range []string{"two", "three"} {
		s, err := stage(link, []byte(next))
		if err != nil {
			t.Fatal(err)
		}
		wantFile(t, path, []string{"one", "two"}[i])
		if err := s.commit(true); err != nil {
			t.Fatal(err)
		}
		s.discard()
		wantFile(t, path, next)
		wantFile(t, path+".previous", []string{"one", "two"}[i])
		if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o640 {
			t.Errorf("mode %v: %v", i.Mode(), err)
		}
	}
	s, err := stage(path, []byte("four"))
	if err != nil {
		t.Fatal(err)
	}
	s.discard()
	wantFile(t, path, "three")
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was discarded is there: %v", err)
	}
	// A new file is for its owner only.
	if s, err = stage(filepath.Join(dir, "mark"), []byte("m")); err == nil {
		err = s.commit(true)
	}
	if i, serr := os.Stat(filepath.Join(dir, "mark")); err != nil || serr != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", err, serr)
	}
}

// On a full disk nothing changes, and nothing is left behind.
func TestStagedOnAFullDisk(t *testing.T) {
	needs.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "gw.conf")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := stage(path, bytes.Repeat([]byte("x"), 128<<10)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	wantFile(t, path, "one")
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("left behind: %v %v", list, err)
	}
}

// FuzzRevisionFile: whatever the state-dir's file says, what is taken of it is a
// revision that says the same again.
func FuzzRevisionFile(f *testing.F) {
	f.Add(markText(revision.Revision{Epoch: cluster.Epoch{Counter: 5, Node: 2}, Number: 7, Digest: revision.Digest{1}, By: 1}))
	f.Add(markText(revision.Revision{Number: 3, Digest: revision.Digest{1}}))
	f.Add([]byte(`{"number":0,"digest":""}`))
	f.Add([]byte(`{"number":1,"epoch_node":200,"digest":"00"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseMark(b)
		if err != nil {
			return
		}
		if back, err := parseMark(markText(r)); err != nil || back != r {
			t.Errorf("%v became %v: %v", r, back, err)
		}
	})
}

// FuzzChecksums: whatever a member says of its checksums, what is shown of it is
// bounded and printable.
func FuzzChecksums(f *testing.F) {
	for _, m := range []*syncpb.ConfigState{
		{Sums: []*syncpb.ConfigSum{{Path: "system ha", Sum: make([]byte, sumLen)}, {Path: "router static", Sum: make([]byte, sumLen)}}},
		{Sums: []*syncpb.ConfigSum{{Path: "a\nb", Sum: make([]byte, sumLen)}}}, {Sums: []*syncpb.ConfigSum{{Path: "system ha", Sum: []byte{1}}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m syncpb.ConfigState
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		g, err := groupsOf(m.GetSums())
		if err != nil || len(m.GetSums()) == 0 {
			return
		}
		if len(g.Groups) > maxSums || len(g.All) != 3*sumLen-1 || len(g.Global) != len(g.All) || len(g.Root) != len(g.All) {
			t.Errorf("%+v", g)
		}
		for _, s := range g.Groups {
			if !printable(s.Path) || len(s.Path) > maxSumPath || len(s.Sum) != len(g.All) {
				t.Errorf("%+v", s)
			}
		}
	})
}

// testSums is a pair whose second member runs something else.
func testSums(t *testing.T) checksums {
	groups := func(second byte) groupSums {
		g, err := groupsOf([]*syncpb.ConfigSum{{Path: "system ha", Sum: bytes.Repeat([]byte{0xa1}, sumLen)}, {Path: "router static", Sum: bytes.Repeat([]byte{second}, sumLen)}})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	one := memberSums{Node: 1, Hostname: "gw1", Serial: "TANDEM0000000001", Primary: true, State: "in-sync", Revision: 7, Epoch: 3, EpochNode: 1, MadeOn: "gw2", Running: groups(1), File: groups(1)}
	two := one
	two.Node, two.Hostname, two.Serial, two.Primary, two.State, two.Revision = 2, "gw2", "TANDEM0000000002", false, "out-of-sync", 6
	two.Running, two.File, two.Fault = groups(2), groups(3), "write /etc/tandem/tandem.conf.new: no space left on device"
	two.Differences = []string{"- router static: edit 7", "+ router static 3: set device \"vpn1\""}
	return checksums{Revision: 7, Members: []memberSums{one, two, {Node: 3, Hostname: "gw3", State: "no-answer", Fault: "no answer in time"}, {Node: 4, Hostname: "gw4", State: "old-build"}}}
}

func TestChecksumLayout(t *testing.T) {
	for name, words := range map[string]string{"checksum_cluster": "diagnose sys ha checksum cluster", "checksum_cluster_json": "di sys ha checksum cluster --json"} {
		out, err := run(&fakeBackend{v: testView(t, false), sums: testSums(t)}, words)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, out)
	}
	if _, err := run(&fakeBackend{err: errors.New("standalone")}, "diagnose sys ha checksum cluster"); err == nil || !strings.Contains(err.Error(), "standalone") {
		t.Errorf("standalone: %v", err)
	}
}

// In a pair the owner of the one scope decides on what both share; with virtual clusters
// that of the first.
func TestWhoDecides(t *testing.T) {
	five := cluster.Epoch{Counter: 5, Node: 1}
	for _, c := range []struct {
		what  string
		say   cluster.Announce
		owns  bool
		epoch cluster.Epoch
	}{
		{"an owner", cluster.Announce{Role: cluster.RoleOwner, Epoch: five}, true, five},
		{"a standby", cluster.Announce{Role: cluster.RoleStandby, Epoch: five}, false, five},
		{"the first virtual cluster", cluster.Announce{VClusters: []cluster.VCluster{{Scope: 2}, {Scope: 1, Role: cluster.RoleOwner, Epoch: five}}}, true, five},
		{"another one", cluster.Announce{VClusters: []cluster.VCluster{{Scope: 1, Role: cluster.RoleStandby, Epoch: five}, {Scope: 2, Role: cluster.RoleOwner}}}, false, five},
	} {
		if owns, epoch := decides(c.say); owns != c.owns || epoch != c.epoch {
			t.Errorf("%s: %v under %v", c.what, owns, epoch)
		}
	}
}
