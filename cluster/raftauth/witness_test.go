package raftauth

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/testkit"
)

// TestRunWitness: two members and a witness with certificates, each on a port. The
// witness learns who is who, decides with whoever is left, and after a restart
// without asking anybody; who belongs to another cluster is refused with one line.
func TestRunWitness(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []string{"ours", "theirs"} {
		if err := cluster.InitCluster(filepath.Join(dir, c), c, []string{"a", "b"}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := cluster.AddWitness(filepath.Join(dir, c), c, "w", 3, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	lines := &testkit.Log{}
	log := slog.New(slog.NewTextHandler(lines, nil))
	listen, at := map[fsm.NodeID]net.Listener{}, map[fsm.NodeID]string{}
	for n := fsm.NodeID(1); n <= 3; n++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listen[n], at[n] = l, l.Addr().String()
	}
	_ = listen[3].Close() // the witness opens it itself
	all := []fsm.NodeID{1, 2, 3}
	nodes := map[fsm.NodeID]*Node{}
	start := func(n fsm.NodeID, process uint64) {
		t.Helper()
		name := string(rune('a' + n - 1))
		id, err := cluster.LoadIdentity(filepath.Join(dir, "ours", name))
		if err != nil {
			t.Fatal(err)
		}
		l := listen[n]
		if l == nil {
			if l, err = net.Listen("tcp", at[n]); err != nil {
				t.Fatal(err)
			}
		}
		listen[n] = nil
		s := NewStreamLayer(id, l, func(n fsm.NodeID) (string, bool) { a, ok := at[n]; return a, ok }, log)
		disk, err := OpenDisk(filepath.Join(dir, "state-"+name), Logger(log))
		if err != nil {
			t.Fatal(err)
		}
		if nodes[n], err = New(Options{Self: n, Name: name, Process: process, Voters: Voters(all, 3), Members: all, Standbys: DefaultStandbys,
			Disk: disk, Transport: s.Transport(log), Peers: s, Log: log}); err != nil {
			t.Fatal(err)
		}
		s.Serve(nodes[n].Answer)
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			_ = n.Close()
		}
	})
	members := []netip.AddrPort{netip.MustParseAddrPort(at[1]), netip.MustParseAddrPort(at[2])}
	witness := func(c string) (stop func()) {
		t.Helper()
		id, err := cluster.LoadWitness(filepath.Join(dir, c, "w"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() {
			end <- RunWitness(ctx, WitnessOptions{Identity: id, StateDir: filepath.Join(dir, "state-w-"+c), Listen: netip.MustParseAddrPort(at[3]), Members: members, Log: log})
		}()
		once := false
		stop = func() {
			if once {
				return
			}
			once = true
			cancel()
			select {
			case err := <-end:
				if err != nil {
					t.Errorf("the witness ended with: %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the witness does not end")
			}
		}
		t.Cleanup(stop)
		return stop
	}
	start(1, 1)
	start(2, 2)

	stop := witness("theirs")
	testkit.Until(t, "a witness of another cluster is told apart", func() bool { return strings.Contains(lines.String(), "who answers is no member") })
	stop()
	if nodes[1].Leader() != 0 || nodes[2].Leader() != 0 {
		t.Fatal("members form a group with a witness of another cluster")
	}

	stop = witness("ours")
	joined := func(want int) func() bool {
		return func() bool {
			for _, n := range nodes {
				if !n.Joined() || len(n.View().Members()) != want || len(n.View().Scopes()) != 16 {
					return false
				}
			}
			return true
		}
	}
	testkit.Until(t, "all three are members, and vote", func() bool {
		return joined(3)() && !slices.ContainsFunc(nodes[1].View().Members(), func(p fsm.Member) bool { return !p.Voter })
	})
	for _, p := range nodes[1].View().Members() {
		if p.Witness != (p.Node == 3) {
			t.Errorf("%+v", p)
		}
	}
	for _, n := range nodes {
		for _, s := range n.View().Scopes() {
			if s.Owner == 3 || s.Successor == 3 {
				t.Errorf("the witness has %+v", s)
			}
		}
	}
	decides := func(n fsm.NodeID) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if r, err := nodes[n].Propose(ctx, drain(n, false)); err != nil || !r.OK() {
			t.Fatalf("node %d: %+v, %v", n, r, err)
		}
	}
	if err := nodes[1].Close(); err != nil {
		t.Error(err)
	}
	delete(nodes, 1)
	decides(2)

	stop()
	testkit.Until(t, "no leader without a majority", func() bool { return nodes[2].Leader() == 0 })
	met := strings.Count(lines.String(), "member met")
	stop = witness("ours") // the first member is still away
	decides(2)
	if now := strings.Count(lines.String(), "member met"); now != met {
		t.Errorf("the witness asked again who is who (%d, then %d lines)", met, now)
	}
	start(1, 11)
	testkit.Until(t, "the first member is back", joined(3))
	stop()
}

func TestWitnessNeedsMembers(t *testing.T) {
	err := RunWitness(t.Context(), WitnessOptions{StateDir: t.TempDir(), Members: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	if err == nil || !strings.Contains(err.Error(), "2 to 15 members") {
		t.Fatal(err)
	}
}
