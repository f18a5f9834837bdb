package lab

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/needs"
	"tandem/internal/testkit"
)

func buildTest(t *testing.T) *Topology {
	t.Helper()
	needs.Root(t)
	topo, err := BuildPair("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if topo.ns != nil {
			if err := topo.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return topo
}

// reaches says whether a TCP connection to a closed port of addr is refused:
// the packet went there and its answer came back.
func reaches(topo *Topology, from, addr string) bool {
	ok := false
	_ = topo.In(from, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.Timeval{Usec: 300_000}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
		sa := &unix.SockaddrInet4{Port: 9}
		copy(sa.Addr[:], net.ParseIP(addr).To4())
		ok = unix.Connect(fd, sa) == unix.ECONNREFUSED
		return nil
	})
	return ok
}

func TestTopologyCarriesAndBreaks(t *testing.T) {
	topo := buildTest(t)
	for _, a := range []string{"192.0.2.1/24"} {
		if err := topo.address(NodeGW1, "wan0", a); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Within(t, 3*time.Second, "client reaches gw1", func() bool { return reaches(topo, NodeClient, "192.0.2.1") })
	if err := topo.CutNode(NodeGW1); err != nil {
		t.Fatal(err)
	}
	if reaches(topo, NodeClient, "192.0.2.1") {
		t.Error("client reaches gw1, whose links are cut")
	}
	if err := topo.RestoreNode(NodeGW1); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 3*time.Second, "client reaches gw1 again", func() bool { return reaches(topo, NodeClient, "192.0.2.1") })
	if err := topo.Mute(NodeGW1); err != nil {
		t.Fatal(err)
	}
	if reaches(topo, NodeClient, "192.0.2.1") {
		t.Error("gw1 answers, though it is mute")
	}
	if err := topo.Unmute(NodeGW1); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 3*time.Second, "client reaches gw1, which speaks again", func() bool { return reaches(topo, NodeClient, "192.0.2.1") })

	if err := topo.address(NodeGW1, "hb0", "169.254.0.1/30"); err != nil {
		t.Fatal(err)
	}
	if err := topo.address(NodeGW2, "hb0", "169.254.0.2/30"); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 3*time.Second, "gw1 reaches gw2 by hb0", func() bool { return reaches(topo, NodeGW1, "169.254.0.2") })
	if err := topo.CutHeartbeats("hb0"); err != nil {
		t.Fatal(err)
	}
	if reaches(topo, NodeGW1, "169.254.0.2") {
		t.Error("gw1 reaches gw2 by a cut link")
	}
	if err := topo.RestoreHeartbeats("hb0"); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 3*time.Second, "gw1 reaches gw2 again", func() bool { return reaches(topo, NodeGW1, "169.254.0.2") })
	if err := topo.CutHeartbeats("hb7"); err == nil {
		t.Error("a heartbeat link that does not exist was cut")
	}
}

func TestAbandonedLabIsRemoved(t *testing.T) {
	topo := buildTest(t)
	sleeper := exec.Command("ip", "netns", "exec", topo.Netns(NodeServer), "sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = sleeper.Wait(); close(ended) }()
	testkit.Within(t, 3*time.Second, "sleeper in the namespace", func() bool { return len(netnsProcesses(topo.Netns(NodeServer))) == 1 })

	if err := removeAbandoned(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, topo.Netns(NodeGW1))); err != nil {
		t.Fatalf("the lab of a living process was removed: %v", err)
	}
	// A pid that exists with another start time is another process.
	topo.state.PIDStart++
	if err := topo.state.save(); err != nil {
		t.Fatal(err)
	}
	if err := removeAbandoned(); err != nil {
		t.Fatal(err)
	}
	<-ended
	for _, ns := range topo.state.Namespaces {
		if _, err := os.Stat(filepath.Join(netnsDir, ns)); err == nil {
			t.Errorf("namespace %s is left", ns)
		}
	}
	if _, err := os.Stat(stateDir(topo.ID)); err == nil {
		t.Error("state folder is left")
	}
}
