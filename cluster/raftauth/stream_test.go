package raftauth

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/testkit"
	"tandem/proto/clusterpb"
)

// TestOverTLSAndDisk: three members with certificates, one port each, and bolt on
// disk: a group forms, decides, restarts, and refuses strangers.
func TestOverTLSAndDisk(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	for _, c := range []string{"ours", "theirs"} {
		if err := cluster.InitCluster(filepath.Join(dir, c), c, []string{"a", "b", "c"}, now); err != nil {
			t.Fatal(err)
		}
	}
	log := &testkit.Log{}
	slogger := slog.New(slog.NewTextHandler(log, nil))
	voters := []fsm.NodeID{1, 2, 3}
	listen, at := map[fsm.NodeID]net.Listener{}, map[fsm.NodeID]string{}
	for _, n := range voters {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listen[n], at[n] = l, l.Addr().String()
	}
	resolve := func(n fsm.NodeID) (string, bool) { s, ok := at[n]; return s, ok }
	nodes := map[fsm.NodeID]*Node{}
	start := func(n fsm.NodeID, process uint64) {
		t.Helper()
		name := string(rune('a' + n - 1))
		id, err := cluster.LoadIdentity(filepath.Join(dir, "ours", name))
		if err != nil {
			t.Fatal(err)
		}
		if listen[n] == nil {
			if listen[n], err = net.Listen("tcp", at[n]); err != nil {
				t.Fatal(err)
			}
		}
		s := NewStreamLayer(id, listen[n], resolve, slogger)
		disk, err := OpenDisk(filepath.Join(dir, "state-"+name), Logger(slogger))
		if err != nil {
			t.Fatal(err)
		}
		node, err := New(Options{Self: n, Name: name, Process: process, Voters: voters, Members: voters, Standbys: 1,
			Disk: disk, Transport: s.Transport(slogger), Peers: s, Log: slogger})
		if err != nil {
			t.Fatal(err)
		}
		s.Serve(node.Answer)
		nodes[n], listen[n] = node, nil
	}
	stop := func(n fsm.NodeID) {
		t.Helper()
		if err := nodes[n].Close(); err != nil {
			t.Error(err)
		}
		delete(nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			n.Close()
		}
	})
	all := func(so func(*Node) bool) func() bool {
		return func() bool {
			for _, n := range nodes {
				if !so(n) {
					return false
				}
			}
			return true
		}
	}
	for _, n := range voters {
		start(n, uint64(n))
	}
	slots := func(want int) func(*Node) bool {
		return func(n *Node) bool { return n.Joined() && len(n.View().Scopes()) == want && n.View().Applied() > 0 }
	}
	testkit.Until(t, "all have joined and have slots", all(slots(24)))

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, n := range voters {
		if r, err := nodes[n].Propose(ctx, drain(2, n%2 == 0)); err != nil || !r.OK() {
			t.Fatalf("node %d: %+v, %v", n, r, err)
		}
	}

	stop(1)
	start(1, 11)
	testkit.Until(t, "it is back", all(slots(24)))

	// Strangers.
	honest, err := cluster.LoadIdentity(filepath.Join(dir, "ours", "c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.AddNode(filepath.Join(dir, "ours"), "ours", "late", 4, now.AddDate(-10, 0, 0)); err != nil {
		t.Fatal(err)
	}
	refusals := func() int { return strings.Count(log.String(), "HA raft connection refused") }
	refused := func(what string, c *tls.Config, local string, first byte, reason string) {
		t.Helper()
		before := refusals()
		for range 5 { // a flood is one line
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
			conn, err := d.DialContext(ctx, "tcp", at[2])
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			tc := tls.Client(conn, c)
			tc.Write([]byte{first, 0, 0, 0, 0})
			if n, err := tc.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%s: answered", what)
			}
			conn.Close()
		}
		testkit.Until(t, what+": a line", func() bool { return refusals() > before })
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		for i := len(lines) - 1; ; i-- {
			if strings.Contains(lines[i], "HA raft connection refused") {
				if !strings.Contains(lines[i], reason) || !strings.Contains(lines[i], "from="+local+":") {
					t.Errorf("%s: not as wanted, %q: %s", what, reason, lines[i])
				}
				break
			}
		}
		if n := refusals() - before; n != 1 {
			t.Errorf("%s: %d lines\n%s", what, n, log)
		}
	}
	refused("no certificate", &tls.Config{InsecureSkipVerify: true}, "127.0.0.1", forCalls, "didn't provide a certificate")
	refused("another cluster's certificate", testkit.ShowsNode(t, filepath.Join(dir, "theirs", "a")), "127.0.0.1", forCalls, "unknown authority")
	refused("an expired certificate", testkit.ShowsNode(t, filepath.Join(dir, "ours", "late")), "127.0.0.1", forCalls, "expired")
	refused("our own number", testkit.ShowsNode(t, filepath.Join(dir, "ours", "b")), "127.0.0.1", forCalls, "our own node ID 2")
	refused("an unknown purpose", honest.TLS(), "127.0.0.1", 'X', "unknown purpose")
	testkit.Until(t, "member 3 is connected", func() bool {
		_, err := nodes[3].Propose(ctx, drain(2, false))
		return err == nil && nodes[2].opt.Peers.(*StreamLayer).hears(3)
	})
	refused("the number of a member that is connected", testkit.ShowsNode(t, filepath.Join(dir, "ours", "c")), "127.0.0.2", forCalls, "another node has number 3")

	// Who speaks for another is refused, whatever it says.
	stranger := NewStreamLayer(honest, nopListener{}, resolve, slogger)
	entry := fsm.Encode(&clusterpb.Command{Id: &clusterpb.CommandID{Node: 1, Life: 1 << 50, Seq: 1}, Version: 1,
		What: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Node: 1}}})
	testkit.Until(t, "the leader has answered", func() bool {
		for _, n := range []fsm.NodeID{1, 2} {
			a, err := stranger.Call(ctx, n, &clusterpb.RaftCall{Entry: entry})
			if err == nil && !a.GetNotLeader() {
				if fsm.Code(a.GetCode()) != fsm.NotYours {
					t.Errorf("%v", a)
				}
				return true
			}
		}
		// Node 3 leads: it hands over.
		nodes[3].yield()
		return false
	})
	stranger.Close()
	for _, n := range voters {
		stop(n)
	}
	if strings.Contains(log.String(), "panic") {
		t.Error(log.String())
	}
}

// hears says whether a member is connected to us.
func (s *StreamLayer) hears(n fsm.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if c.node == n {
			return true
		}
	}
	return false
}

type nopListener struct{ net.Listener }

func (nopListener) Close() error { return nil }

// FuzzReadMessage: no frame makes the reader allocate beyond its bound or fail otherwise.
func FuzzReadMessage(f *testing.F) {
	var b bytes.Buffer
	writeMessage(&b, &clusterpb.RaftCall{Entry: []byte("entry")})
	f.Add(b.Bytes())
	f.Add([]byte{255, 255, 255, 255})
	f.Add([]byte{0, 0, 0, 2, 10})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := &clusterpb.RaftCall{}
		if readMessage(bytes.NewReader(b), q) == nil && len(q.GetEntry()) > maxCall {
			t.Fatal("too long")
		}
		readMessage(bytes.NewReader(b), &clusterpb.RaftAnswer{})
	})
}
