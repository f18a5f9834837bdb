package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tandem/cluster"
	"tandem/cluster/gossip"
	"tandem/cluster/guardian"
	"tandem/cluster/raftauth"
	"tandem/internal/forward"
	"tandem/internal/lab"
	"tandem/internal/testkit"
)

const (
	strangerNode = "stranger"
	strangerAddr = "172.31.1.66"
)

// strangers is a farm with somebody on its sync network who does not belong there.
type strangers struct {
	*witnessed
	tap *tap // at the stranger's port
}

// caller is a TCP caller: what it shows, and how members call the reason.
type caller struct {
	name   string
	tls    *tls.Config // nil: garbage
	reason string
}

// callers are a stranger without a certificate and with three that do not count.
func (s *strangers) callers() []caller {
	s.t.Helper()
	other, ours := filepath.Join(s.topo.Dir, "other"), filepath.Join(s.topo.Dir, "cluster")
	if out, err := exec.Command(s.bin, "cluster", "init", "--dir", other, lab.NodeGW1, lab.NodeGW2).CombinedOutput(); err != nil {
		s.t.Fatalf("cluster init: %v: %s", err, out)
	}
	id, err := cluster.LoadIdentity(filepath.Join(ours, lab.NodeGW1))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cluster.AddNode(ours, id.Group, "late", 4, time.Now().AddDate(-10, 0, 0)); err != nil {
		s.t.Fatal(err)
	}
	shows := func(dir string) *tls.Config { return testkit.ShowsNode(s.t, dir, "h2") }
	return []caller{
		{"garbage", nil, "first record does not look like a TLS handshake"},
		{"no certificate", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}, "didn't provide a certificate"},
		{"another cluster's certificate", shows(filepath.Join(other, lab.NodeGW2)), "unknown authority"},
		{"an expired certificate", shows(filepath.Join(ours, "late")), "expired"},
	}
}

// ports are those on which a node listens, from the kernel's table.
func (s *strangers) ports(node, table, state string) (list []int) {
	s.t.Helper()
	for line := range strings.Lines(s.must(node, "cat", "/proc/net/"+table, "/proc/net/"+table+"6")) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != state {
			continue
		}
		_, port, _ := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		if err != nil {
			s.t.Fatal(line)
		}
		if !slices.Contains(list, int(n)) {
			list = append(list, int(n))
		}
	}
	slices.Sort(list)
	return list
}

// call connects to a port and wants to be turned away.
func (s *strangers) call(to string, c caller) {
	s.t.Helper()
	var conn net.Conn
	err := s.topo.In(strangerNode, func() (err error) {
		conn, err = net.DialTimeout("tcp", to, 5*time.Second)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if c.tls == nil {
		_, _ = conn.Write(bytes.Repeat([]byte{'x'}, 64))
		got, err := io.ReadAll(conn)
		if alert := len(got) == 7 && got[0] == 21; errors.Is(err, os.ErrDeadlineExceeded) || len(got) > 0 && !alert {
			s.t.Errorf("%s at %s: %x, %v", c.name, to, got, err)
		}
		return
	}
	tc := tls.Client(conn, c.tls)
	if err := tc.Handshake(); err != nil {
		return
	}
	// A client of TLS 1.3 has finished before it hears what becomes of its certificate.
	_, _ = tc.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	if n, err := tc.Read(make([]byte, 64)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("%s at %s: %d bytes, %v", c.name, to, n, err)
	}
}

// recorded are datagrams that members sent each other to a port.
func (s *strangers) recorded(t *tap, port int) (list [][]byte) {
	s.t.Helper()
	if err := t.c.Flush(); err != nil {
		s.t.Fatal(err)
	}
	_ = lab.ReadCapture(t.c.Path, func(f lab.Frame) error {
		g := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.Default)
		if u, ok := g.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && int(u.DstPort) == port && len(list) < 200 {
			list = append(list, bytes.Clone(u.Payload))
		}
		return nil
	})
	return list
}

var digits = regexp.MustCompile(`[0-9]+`)

// refusals are a log's warnings about the stranger, by text without numbers.
func refusals(path string) map[string]int {
	text, _ := os.ReadFile(path)
	lines := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, strangerAddr+":") {
			lines[digits.ReplaceAllString(strings.TrimSpace(line), "0")]++
		}
	}
	return lines
}

// TestSyncPlaneRefusesStrangers: a farm of two members and a witness runs while somebody
// on its sync network tries every port. No UDP port sends a byte back; no TCP port
// completes a handshake; each attempt is one line in the log, however often it is
// repeated; and the farm is none the worse for it.
func TestSyncPlaneRefusesStrangers(t *testing.T) {
	t.Parallel()
	needRoot(t)
	plan := witnessPlan()
	plan.Nodes = append(plan.Nodes, lab.PlanNode{Name: strangerNode})
	plan.Cables = append(plan.Cables, lab.PlanCable{A: strangerNode, AIf: "sync0", B: "sync", BIf: strangerNode, AAddrs: []string{strangerAddr + "/24"}})
	s := &strangers{witnessed: newWitnessedIn(t, plan, "continue", false)}
	members := map[string]string{lab.NodeGW1: "172.31.1.1", lab.NodeGW2: "172.31.1.2"}
	between := s.witnessed.tap("sync", lab.NodeGW1)
	for m := range members {
		eventually(t, 20*time.Second, m+" gossips", func() bool {
			return contains(s.members[m].proc.LogPath, `"msg":"gossip"`, `"state":"alive"`)
		})
	}
	s.tap = s.witnessed.tap(strangerNode, "sync0")
	callers := s.callers()
	pids := map[string]int{}

	// UDP: garbage, another cluster's heartbeats, and what members said to each other.
	udp := []int{guardian.DefaultPort, forward.DefaultPort, gossip.DefaultPort}
	foreign, err := cluster.LoadIdentity(filepath.Join(s.topo.Dir, "other", lab.NodeGW2))
	if err != nil {
		t.Fatal(err)
	}
	h := cluster.Heartbeat{Node: 2, Name: lab.NodeGW2, Incarnation: 1 << 60, Seq: 1, Process: 7, Running: true}
	beat, err := h.Marshal(foreign.HeartbeatKey())
	if err != nil {
		t.Fatal(err)
	}
	for m, addr := range members {
		pid, err := s.members[m].proc.Daemon(false)
		if err != nil {
			t.Fatal(err)
		}
		pids[m] = pid
		bound := s.ports(m, "udp", "07")
		for _, port := range udp {
			if !slices.Contains(bound, port) {
				t.Fatalf("%s has no UDP port %d, but %v", m, port, bound)
			}
			var said [][]byte
			if port != forward.DefaultPort { // whose greetings were before the capture
				eventually(t, 20*time.Second, fmt.Sprintf("members talk to port %d", port), func() bool {
					said = s.recorded(between, port)
					return len(said) >= 2
				})
			}
			said = append(said, beat, []byte{0}, bytes.Repeat([]byte{0x5a}, 200), bytes.Repeat([]byte{1}, 1400), append([]byte{1, 1, 2, 1}, make([]byte, 200)...))
			if err := s.topo.In(strangerNode, func() error {
				c, err := net.Dial("udp", net.JoinHostPort(addr, strconv.Itoa(port)))
				if err != nil {
					return err
				}
				defer c.Close()
				for _, b := range said {
					if _, err := c.Write(b); err != nil {
						return fmt.Errorf("port %d: %w", port, err)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}

	// TCP: every port on which anything listens, of members and witness alike.
	logs := map[string]string{witnessNode: s.witness.LogPath}
	wanted := map[string][]string{witnessNode: {"HA raft connection refused"}}
	for n, addr := range map[string]string{lab.NodeGW1: members[lab.NodeGW1], lab.NodeGW2: members[lab.NodeGW2], witnessNode: "172.31.1.9"} {
		ports := s.ports(n, "tcp", "0A")
		if n != witnessNode {
			logs[n] = s.members[n].proc.LogPath
			wanted[n] = []string{"HA raft connection refused", "replication stream refused", "gossip"}
			if !slices.Contains(ports, gossip.DefaultPort) {
				t.Errorf("%s: gossip is not among %v", n, ports)
			}
		}
		if len(ports) != len(wanted[n]) || !slices.Contains(ports, raftauth.DefaultPort) {
			t.Fatalf("%s listens on %v", n, ports)
		}
		for _, port := range ports {
			for range 3 {
				for _, c := range callers {
					s.call(net.JoinHostPort(addr, strconv.Itoa(port)), c)
				}
			}
		}
	}

	// One line for each, and no more.
	for n, path := range logs {
		for _, msg := range wanted[n] {
			for _, c := range callers {
				eventually(t, 10*time.Second, fmt.Sprintf("%s: a line about %s: %s", n, c.name, msg), func() bool {
					return contains(path, msg, c.reason, strangerAddr+":")
				})
			}
		}
		if n == witnessNode {
			continue
		}
		for _, reason := range []string{"forwarding: datagram of no member", "Decrypt packet failed"} {
			eventually(t, 10*time.Second, n+": a line: "+reason, func() bool { return contains(path, reason, strangerAddr+":") })
		}
	}
	for n, path := range logs {
		for line, count := range refusals(path) {
			if count != 1 {
				t.Errorf("%s says %d times: %s", n, count, line)
			}
		}
		// Twelve of TCP, one of forwarding; memberlist has a few words of its own.
		if k := len(refusals(path)); k > 4*len(wanted[n])+6 {
			t.Errorf("%s: %d kinds of lines", n, k)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := os.ReadFile(filepath.Join(s.topo.Dir, "cluster", "ca", "cluster.key"))
		if key := strings.TrimSpace(string(secret)); err != nil || len(key) != hex.EncodedLen(32) || bytes.Contains(text, []byte(key)) {
			t.Errorf("%s: the cluster's key in the log, or unread: %v", n, err)
		}
	}
	me := netip.MustParseAddr(strangerAddr)
	back := func(p packet) bool {
		return p.dst.Addr() == me && !strings.Contains(p.text, "TCP")
	}
	s.tap.wantAtLeast(len(members)*len(udp)*5, "datagrams of the stranger", func(p packet) bool { return p.src.Addr() == me && p.dst.Port() > 0 })
	never(t, 300*time.Millisecond, "a datagram for the stranger", func() bool { return s.tap.count(back) > 0 })

	// The farm is as it was.
	s.together()
	for m := range members {
		if pid, err := s.members[m].proc.Daemon(false); err != nil || pid != pids[m] {
			t.Errorf("%s is another process than before: %v", m, err)
		}
		if err := stopProcess(s.members[m].proc, 20*time.Second); err != nil {
			t.Errorf("%s does not end cleanly: %v", m, err)
		}
	}
}
