// Package integration runs the real binary against real peers: strongSwan in
// user space, another Tandem, or a scripted peer that sends exactly what a case
// says. Every test has a network of namespaces of its own.
package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(poolMemberEnv); text != "" {
		runPoolMember(text)
	}
	flag.Parse()
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel {
		// Most of a test's time is waiting for a timer or a peer.
		_ = flag.Set("test.parallel", "6")
	}
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// built has the programs that were built from this tree, by their build tags.
var built struct {
	mu    sync.Mutex
	dir   string
	paths map[string]string
}

// program is the binary under test: TANDEM_BINARY, or built once from this tree.
func program(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("TANDEM_BINARY"); p != "" {
		return p
	}
	return programWith(t, "")
}

// programWith is a binary with build tags, built once from this tree.
func programWith(t testing.TB, tags string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if p := built.paths[tags]; p != "" {
		return p
	}
	if built.dir == "" {
		var err error
		if built.dir, err = os.MkdirTemp("", "tandem-integration-"); err != nil {
			t.Fatal(err)
		}
		built.paths = map[string]string{}
	}
	p := filepath.Join(built.dir, "tandem"+tags)
	if out, err := exec.Command("go", "build", "-tags", tags, "-o", p, "tandem/cmd/tandem").CombinedOutput(); err != nil {
		t.Fatalf("go build -tags %q: %v: %s", tags, err, out)
	}
	built.paths[tags] = p
	return p
}

func needRoot(t testing.TB) {
	t.Helper()
	needs.Root(t)
	needs.Program(t, "ping", "nft")
}

func needCharon(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, _, err := lab.FindCharon(); err != nil {
		needs.Missing(t, err.Error())
	}
}

// eventually waits until ok holds, looking often.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	if !holds(within, ok) {
		t.Fatalf("not within %v: %s", within, what)
	}
}

// holds says whether ok becomes true within a time.
func holds(within time.Duration, ok func() bool) bool {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
}

// never watches for a while that bad does not become true. It is for claims of
// silence only, which no condition can end early.
func never(t *testing.T, during time.Duration, what string, bad func() bool) {
	t.Helper()
	if holds(during, bad) {
		t.Fatal("must not happen: " + what)
	}
}

// site is the network of one test.
type site struct {
	t     *testing.T
	topo  *lab.Topology
	guest *guest // the machine "peer", where it has a kernel of its own
}

// build makes a network that ends with the test.
func build(t *testing.T, p lab.Plan) *site {
	t.Helper()
	needRoot(t)
	topo, err := lab.Build("", p)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, topo: topo}
	t.Cleanup(func() {
		if t.Failed() {
			s.showLogs()
		}
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Addresses of the smallest network: one peer and the gateway on one wire, each
// with a network behind it.
//
//	10.1.0.1 ─ peer 192.0.2.10 ── 192.0.2.1 gw ─ 10.2.0.1
const (
	peerWAN, peerWAN6 = "192.0.2.10", "2001:db8:1::10"
	gwWAN, gwWAN6     = "192.0.2.1", "2001:db8:1::1"
	peerIn, peerIn6   = "10.1.0.1", "2001:db8:a::1"
	gwIn, gwIn6       = "10.2.0.1", "2001:db8:b::1"
	peerNet, gwNet    = "10.1.0.0/24", "10.2.0.0/24"
)

func wirePlan() lab.Plan {
	return lab.Plan{
		Nodes: []lab.PlanNode{
			{Name: "peer", Forward: true, Addrs: []string{peerIn + "/32", peerIn6 + "/128"}},
			{Name: "gw", Forward: true, Addrs: []string{gwIn + "/32", gwIn6 + "/128"}},
		},
		Cables: []lab.PlanCable{{A: "peer", AIf: "wan0", B: "gw", BIf: "wan0",
			AAddrs: []string{peerWAN + "/24", peerWAN6 + "/64"}, BAddrs: []string{gwWAN + "/24", gwWAN6 + "/64"}}},
	}
}

func wire(t *testing.T) *site { t.Helper(); return build(t, wirePlan()) }

// showLogs prints the end of every log of a failed test.
func (s *site) showLogs() {
	const lines = 120
	logs, _ := filepath.Glob(filepath.Join(s.topo.Dir, "*.log"))
	for _, more := range []string{"charon-*/log", "guest/*/log", "guest/console"} {
		found, _ := filepath.Glob(filepath.Join(s.topo.Dir, more))
		logs = append(logs, found...)
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			continue
		}
		all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		if len(all) > lines {
			all = all[len(all)-lines:]
		}
		s.t.Logf("%s:\n%s", path, strings.Join(all, "\n"))
	}
}

// run runs a program in a node's namespace and returns what it printed.
func (s *site) run(node string, argv ...string) (string, error) {
	if s.guest != nil && node == guestNode {
		return s.guest.run(argv...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.topo.In(node, cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func (s *site) must(node string, argv ...string) string {
	s.t.Helper()
	out, err := s.run(node, argv...)
	if err != nil {
		s.t.Fatalf("%s: %s: %v\n%s", node, strings.Join(argv, " "), err, out)
	}
	return out
}

// nft loads a ruleset into a node.
func (s *site) nft(node, rules string) {
	s.t.Helper()
	path := filepath.Join(s.topo.Dir, "nft-"+node)
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must(node, "nft", "-f", path)
}

// cut drops everything that comes in from the wire at a node; join undoes it.
func (s *site) cut(node string) {
	s.t.Helper()
	s.nft(node, `table inet cut {
	chain in {
		type filter hook prerouting priority -300
		iifname "wan0" drop
	}
	chain out {
		type filter hook output priority -300
		oifname "wan0" drop
	}
}
`)
}

func (s *site) join(node string) {
	s.t.Helper()
	s.must(node, "nft", "delete", "table", "inet", "cut")
}

// pings sends echo requests one by one and returns how many were answered within
// a second. (One ping with a count of three waits for its last answer only twice
// the round trip: on a busy machine that is too short.)
func (s *site) pings(node, from, to string, count int, more ...string) int {
	s.t.Helper()
	got := 0
	for range count {
		_, err := s.run(node, append([]string{"ping", "-n", "-q", "-c", "1", "-W", "1", "-I", from, to}, more...)...)
		if err == nil {
			got++
		}
	}
	return got
}

// wantPing pings until an answer comes (the first packet may ask for the SA), and
// then wants every one of three answered.
func (s *site) wantPing(node, from, to string, more ...string) {
	s.t.Helper()
	eventually(s.t, 10*time.Second, fmt.Sprintf("ping %s: %s → %s", node, from, to), func() bool {
		return s.pings(node, from, to, 1, more...) == 1
	})
	if got := s.pings(node, from, to, 3, more...); got != 3 {
		s.t.Errorf("ping %s: %s → %s: %d of 3 answered", node, from, to, got)
	}
}

// pingBoth pings between the networks behind peer and gateway, both ways.
func (s *site) pingBoth() {
	s.t.Helper()
	s.wantPing("peer", peerIn, gwIn)
	s.wantPing("gw", gwIn, peerIn)
}

// stopProcess sends SIGTERM and wants a clean end.
func stopProcess(p *lab.Process, within time.Duration) error {
	if err := syscall.Kill(p.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return p.Wait(ctx)
}
