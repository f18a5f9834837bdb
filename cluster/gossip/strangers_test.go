package gossip

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"tandem/cluster"
	"tandem/internal/testkit"
)

// TestStreamsOfStrangers: no certificate, another cluster's, an expired one and our own
// number end in a refusal, each with one line however often it is tried.
func TestStreamsOfStrangers(t *testing.T) {
	dir, log := t.TempDir(), &testkit.Log{}
	for _, c := range []string{"north", "south"} {
		if err := cluster.InitCluster(filepath.Join(dir, c), c, []string{"gw1", "gw2"}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.AddNode(filepath.Join(dir, "north"), "north", "late", 3, time.Now().AddDate(-10, 0, 0)); err != nil {
		t.Fatal(err)
	}
	id, err := cluster.LoadIdentity(filepath.Join(dir, "north", "gw1"))
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, id, loopback, log)
	for _, c := range []struct {
		what, reason string
		tls          *tls.Config
	}{
		{"no certificate", "didn't provide a certificate", &tls.Config{InsecureSkipVerify: true}},
		{"another cluster's certificate", "unknown authority", testkit.ShowsNode(t, filepath.Join(dir, "south", "gw2"))},
		{"an expired certificate", "expired", testkit.ShowsNode(t, filepath.Join(dir, "north", "late"))},
		{"our own number", "our own node ID 1", testkit.ShowsNode(t, filepath.Join(dir, "north", "gw1"))},
	} {
		for range 4 {
			c2, err := net.Dial("tcp", a.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_ = c2.SetDeadline(time.Now().Add(20 * time.Second))
			tc := tls.Client(c2, c.tls)
			_, _ = tc.Write([]byte{1, 2, 3})
			if n, err := tc.Read(make([]byte, 8)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %d bytes, %v", c.what, n, err)
			}
			_ = c2.Close()
		}
		testkit.Until(t, c.what+": a line", func() bool { return len(log.With("refused:", c.reason, "from=127.0.0.1:")) > 0 })
		if n := len(log.With("refused:", c.reason)); n != 1 {
			t.Errorf("%s: %d lines", c.what, n)
		}
	}
	if n := len(log.With("refused:")); n != 4 || len(a.Members()) != 1 {
		t.Errorf("%d lines, members %+v", n, a.Members())
	}
}

// TestReplayedDatagrams: what a member sent, played back by a stranger, brings the
// stranger no answer and the members nothing that they did not know.
func TestReplayedDatagrams(t *testing.T) {
	ids, log := identities(t, "north", 2), &testkit.Log{}
	a := start(t, ids[0], loopback, log)
	b := start(t, ids[1], loopback, log, a.Addr())
	testkit.Until(t, "they have met", func() bool { return a.find(2).Version > 0 && b.find(1).Version > 0 })

	stranger, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	heard := func(within time.Duration) []byte {
		buf := make([]byte, maxPacket)
		_ = stranger.SetReadDeadline(time.Now().Add(within))
		n, _, err := stranger.ReadFromUDP(buf)
		if err != nil {
			return nil
		}
		return buf[:n]
	}
	// A probe of the first member, and a record that the second has replaced since.
	if _, err := b.list.Ping("1", stranger.LocalAddr()); err == nil {
		t.Fatal("a stranger answers a probe")
	}
	probe := heard(20 * time.Second)
	b.mu.Lock()
	old := b.records[2]
	b.mu.Unlock()
	if err := b.list.SendToAddress(memberlist.Address{Addr: stranger.LocalAddr().String(), Name: "1"}, old); err != nil {
		t.Fatal(err)
	}
	record := heard(20 * time.Second)
	if len(probe) == 0 || len(record) == 0 {
		t.Fatal("nothing was recorded")
	}
	if err := b.SetMeta(Meta{Name: "gw2", Tunnels: 77}); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "the new record has arrived", func() bool { return a.find(2).Meta.Tunnels == 77 })
	version := a.find(2).Version

	for range 50 {
		for _, d := range [][]byte{probe, record} {
			if _, err := stranger.WriteToUDPAddrPort(d, a.Addr()); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Another round of the members' own talk is behind the replays in the first's socket.
	if err := b.SetMeta(Meta{Name: "gw2", Tunnels: 78}); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "the members go on", func() bool { return a.find(2).Meta.Tunnels == 78 })
	if m := a.find(2); m.Version <= version || m.State != Alive || m.Addr != b.Addr() || len(a.Members()) != 2 {
		t.Errorf("after the replay: %+v", a.Members())
	}
	if got := heard(200 * time.Millisecond); got != nil {
		t.Errorf("the stranger is answered with %d bytes", len(got))
	}
}
