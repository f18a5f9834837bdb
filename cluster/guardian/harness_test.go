package guardian

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/needs"
)

// The test binary starts itself as guardian and as daemon.
const roleEnv = "TANDEM_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "guardian":
		os.Exit(guardianMain())
	case "daemon":
		daemonMain()
	case "collector":
		os.Exit(collectorMain())
	}
	os.Exit(m.Run())
}

func guardianMain() int {
	node, _ := strconv.Atoi(os.Getenv("TEST_NODE"))
	settings := func() (Settings, error) {
		s := Settings{HBDevs: []string{"hb0", "hb1"}, Interval: 10 * time.Millisecond, Threshold: 3}
		list, err := os.ReadFile(filepath.Join(os.Getenv("TEST_STATE"), "peers"))
		if err == nil {
			s.HBDevs = nil
		}
		for _, a := range strings.Fields(string(list)) {
			s.Peers = append(s.Peers, netip.MustParseAddr(a))
		}
		return s, nil
	}
	now, _ := settings()
	return Run(context.Background(), Options{
		Node: cluster.NodeID(node), Name: fmt.Sprintf("gw%d", node), Key: ipsec.NewKey([]byte("a key of the test's own")),
		Settings: now, Reload: settings, Command: []string{"/proc/self/exe"}, Env: []string{roleEnv + "=daemon"},
		StateDir: os.Getenv("TEST_STATE"), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// daemonMain is a daemon that does what it is told on its socket and prints what
// the guardian tells it.
func daemonMain() {
	c, err := Attach(nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	say := func(kind string, v any) {
		b, _ := json.Marshal(v)
		fmt.Printf("EVENT %s %s\n", kind, b)
	}
	policy, _ := unix.SchedGetAttr(0, 0)
	say("daemon", map[string]any{"pid": os.Getpid(), "process": uint64(c.Process()), "policy": policy.Policy})
	go func() {
		for range time.Tick(5 * time.Millisecond) {
			c.Progress()
		}
	}()
	go func() {
		for e := range c.Events() {
			say(strings.TrimPrefix(fmt.Sprintf("%T", e), "cluster."), e)
		}
	}()
	signal.Ignore(syscall.SIGHUP)
	path := os.Getenv("TEST_SOCKET")
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	say("ready", nil)
	for {
		k, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		s := bufio.NewScanner(k)
		for s.Scan() {
			obey(c, strings.Fields(s.Text()))
			fmt.Fprintln(k, "ok")
		}
		k.Close()
	}
}

func obey(c *Client, w []string) {
	epoch := func(i int) (e cluster.Epoch) {
		fmt.Sscanf(w[i], "%d.%d", &e.Counter, &e.Node)
		return e
	}
	scope := func(i int) cluster.ScopeID {
		if i >= len(w) {
			return 0
		}
		n, _ := strconv.Atoi(w[i])
		return cluster.ScopeID(n)
	}
	switch w[0] {
	case "owns": // scope epoch scope epoch…
		var a cluster.Announce
		for i := 1; i < len(w); i += 2 {
			a.Owned = append(a.Owned, cluster.Tenure{Scope: scope(i), Epoch: epoch(i + 1)})
		}
		_ = c.Announce(a)
	case "owner":
		_ = c.Announce(cluster.Announce{Role: cluster.RoleOwner, Epoch: epoch(1)})
	case "standby":
		_ = c.Announce(cluster.Announce{Role: cluster.RoleStandby, Epoch: epoch(1)})
	case "entitle":
		_ = c.Entitle(cluster.Entitle{Scope: scope(2), Epoch: epoch(1), On: true})
	case "claim":
		_ = c.Claim(cluster.Claim{Scope: scope(2), Epoch: epoch(1)})
	case "ask":
		n, _ := strconv.Atoi(w[1])
		_ = c.AskRemoval(cluster.AskRemoval{Scope: scope(2), Node: cluster.NodeID(n)})
	case "address":
		mac, _ := net.ParseMAC(w[3])
		_ = c.Addresses([]Address{{w[1], netip.MustParsePrefix(w[2])}}, []MAC{{w[1], [6]byte(mac)}})
	case "mute": // as if the kernel had closed this end of the socket, and not yet the rest
		_ = unix.Shutdown(int(c.conn.Fd()), unix.SHUT_WR)
	case "exit":
		n, _ := strconv.Atoi(w[1])
		os.Exit(n)
	}
}

// pair is two namespaces with two heartbeat links and a LAN device each.
type pair struct {
	t  *testing.T
	ns []string // from 1 on
	gw []*gateway
}

// gateway is one guardian with its daemon.
type gateway struct {
	t      *testing.T
	p      *pair
	node   int
	cmd    *exec.Cmd
	dir    string
	mu     sync.Mutex
	cond   *sync.Cond
	lines  []string
	ended  bool
	status int
}

func needRoot(t *testing.T) {
	t.Helper()
	needs.Root(t)
	needs.Program(t, "ip")
}

func run(t *testing.T, command string) {
	t.Helper()
	w := strings.Fields(command)
	if out, err := exec.Command(w[0], w[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

func newNamespace(t *testing.T, i int) string {
	ns := fmt.Sprintf("tgd%d-%d", os.Getpid(), i)
	run(t, "ip netns add "+ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	for _, k := range []string{"all", "default"} {
		run(t, "ip netns exec "+ns+" sysctl -qw net.ipv6.conf."+k+".accept_dad=0")
	}
	run(t, "ip -n "+ns+" link set lo up")
	return ns
}

func newPair(t *testing.T) *pair {
	needRoot(t)
	p := &pair{t, make([]string, 3), make([]*gateway, 3)}
	for i := 1; i <= 2; i++ {
		ns := newNamespace(t, i)
		p.ns[i] = ns
		run(t, "ip -n "+ns+" link add lan type veth peer name lan-far")
		run(t, "ip -n "+ns+" link set lan up")
	}
	for _, d := range []string{"hb0", "hb1"} {
		run(t, fmt.Sprintf("ip -n %s link add %s type veth peer name %s netns %s", p.ns[1], d, d, p.ns[2]))
		for i := 1; i <= 2; i++ {
			run(t, "ip -n "+p.ns[i]+" link set "+d+" up")
		}
	}
	for i := 1; i <= 2; i++ {
		p.start(i)
	}
	return p
}

func (p *pair) start(i int, peers ...string) *gateway {
	g := &gateway{t: p.t, p: p, node: i, dir: p.t.TempDir()}
	if peers != nil {
		g.setPeers(peers...)
	}
	g.cond = sync.NewCond(&g.mu)
	g.cmd = exec.Command("ip", "netns", "exec", p.ns[i], "/proc/self/exe")
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	g.cmd.Args[4] = exe
	g.cmd.Env = append(os.Environ(), roleEnv+"=guardian", "TEST_NODE="+strconv.Itoa(i), "TEST_STATE="+g.dir,
		"TEST_SOCKET="+filepath.Join(g.dir, "sock"))
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	g.cmd.Stdout, g.cmd.Stderr = w, w
	if err := g.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	w.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := bufio.NewScanner(r)
		for s.Scan() {
			g.mu.Lock()
			g.lines = append(g.lines, s.Text())
			g.cond.Broadcast()
			g.mu.Unlock()
		}
		err := g.cmd.Wait()
		g.mu.Lock()
		g.ended, g.status = true, g.cmd.ProcessState.ExitCode()
		_ = err
		g.cond.Broadcast()
		g.mu.Unlock()
	}()
	p.t.Cleanup(func() {
		_ = g.cmd.Process.Kill()
		<-done
		if p.t.Failed() {
			p.t.Logf("gw%d:\n%s", i, strings.Join(g.lines, "\n"))
		}
	})
	p.gw[i] = g
	g.want(0, "EVENT ready")
	return g
}

// setPeers writes the list that a guardian reads when it starts or is told to reload.
func (g *gateway) setPeers(addrs ...string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, "peers"), []byte(strings.Join(addrs, "\n")), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// mark is the place in the output from which want looks.
func (g *gateway) mark() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.lines)
}

// until waits for a condition on the output.
func (g *gateway) until(what string, cond func() bool) {
	g.t.Helper()
	timer := time.AfterFunc(15*time.Second, func() { g.mu.Lock(); g.cond.Broadcast(); g.mu.Unlock() })
	defer timer.Stop()
	end := time.Now().Add(15 * time.Second)
	g.mu.Lock()
	defer g.mu.Unlock()
	for !cond() {
		if !time.Now().Before(end) {
			g.t.Fatalf("gw%d: not within 15 s: %s", g.node, what)
		}
		g.cond.Wait()
	}
}

// want waits for a line with all of the texts, from mark on, and returns it.
func (g *gateway) want(mark int, texts ...string) (line string) {
	g.t.Helper()
	g.until(fmt.Sprint(texts), func() bool {
	lines:
		for _, l := range g.lines[min(mark, len(g.lines)):] {
			for _, x := range texts {
				if !strings.Contains(l, x) {
					continue lines
				}
			}
			line = l
			return true
		}
		return false
	})
	return line
}

func (g *gateway) wantNone(mark int, text string) {
	g.t.Helper()
	if l := g.said(mark, text); l != "" {
		g.t.Fatalf("gw%d: unexpected: %s", g.node, l)
	}
}

// said is the first line since mark with the text; "": there is none.
func (g *gateway) said(mark int, text string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lines[mark:] {
		if strings.Contains(l, text) {
			return l
		}
	}
	return ""
}

// stolen is the time that the machine's own host took from its processors since it
// started (proc_stat(5), in ticks of 10 ms).
func stolen(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(strings.SplitN(string(b), "\n", 2)[0])
	ticks, err := strconv.Atoi(f[8])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// tell gives the daemon a command.
func (g *gateway) tell(command string) {
	g.t.Helper()
	c, err := net.Dial("unix", filepath.Join(g.dir, "sock"))
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, command)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 8)
	_, err = c.Read(b)
	if err != nil && !strings.HasPrefix(command, "exit") {
		g.t.Fatalf("gw%d: %s: %v", g.node, command, err)
	}
}

func (g *gateway) daemonPID() int {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := len(g.lines) - 1; i >= 0; i-- {
		if text, ok := strings.CutPrefix(g.lines[i], "EVENT daemon "); ok {
			var d struct{ PID int }
			if err := json.Unmarshal([]byte(text), &d); err != nil {
				g.t.Fatal(err)
			}
			return d.PID
		}
	}
	g.t.Fatal("no daemon")
	return 0
}
