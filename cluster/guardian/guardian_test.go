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
)

// The test binary starts itself as guardian and as daemon.
const roleEnv = "TANDEM_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "guardian":
		os.Exit(guardianMain())
	case "daemon":
		daemonMain()
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
		_ = c.Addresses([]Address{{w[1], netip.MustParsePrefix(w[2])}})
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
	why := ""
	if os.Getuid() != 0 {
		why = "needs root for network namespaces"
	} else if _, err := exec.LookPath("ip"); err != nil {
		why = "needs iproute2"
	}
	switch {
	case why != "" && os.Getenv("CI") == "true":
		t.Fatal(why)
	case why != "":
		t.Skip(why)
	}
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
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lines[mark:] {
		if strings.Contains(l, text) {
			g.t.Fatalf("gw%d: unexpected: %s", g.node, l)
		}
	}
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

// synchronise makes node 1 owner of epoch 5.1 and node 2 its entitled standby.
func (p *pair) synchronise() {
	p.t.Helper()
	a, b := p.gw[1], p.gw[2]
	a.tell("owner 5.1")
	b.tell("standby 5.1")
	b.want(0, "EVENT TellPeer", `"Role":2`, `"Counter":5`, `"Running":true`, `"Deaf":false`)
	b.tell("entitle 5.1")
	b.want(0, "EVENT TellEntitled", `"Counter":5`)
	a.want(0, "EVENT TellPeer", `"Entitled":true`)
}

func TestPeersHearEachOtherOnBothDevices(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	p.gw[1].want(0, "EVENT TellPeer", "hb0", "hb1", "fe80::", `"Name":"gw2"`)
	p.gw[1].want(0, "EVENT daemon", `"policy":0`) // normal scheduling, though the guardian's is FIFO
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.gw[1].cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fifo, normal := 0, 0
	for _, x := range tasks {
		tid, _ := strconv.Atoi(x.Name())
		if a, err := unix.SchedGetAttr(tid, 0); err == nil && a.Policy == unix.SCHED_FIFO {
			fifo++
		} else if err == nil {
			normal++
		}
	}
	if fifo < 3 || normal != 1 {
		t.Errorf("%d threads under SCHED_FIFO and %d not; only the forking one should not be", fifo, normal)
	}
}

func TestDeathIsAnnouncedAndAddressesAreGone(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	run(t, "ip -n "+p.ns[1]+" addr add 192.0.2.1/24 dev lan")
	a.tell("address lan 192.0.2.1/24")
	pid := a.daemonPID()
	m, n := b.mark(), a.mark()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.want(m, "EVENT TellLoss", `"Kind":1`, `"Entitled":true`)
	if out, _ := exec.Command("ip", "-n", p.ns[1], "addr", "show", "dev", "lan").CombinedOutput(); strings.Contains(string(out), "192.0.2.1") {
		t.Error("the death was announced while the shared address was still there")
	}
	a.want(n, "EVENT ready") // it is started again
	if a.daemonPID() == pid {
		t.Error("the same process")
	}
}

// Closing a dead daemon's interfaces may take the kernel a second; its death is
// announced before that, and it is started again after.
func TestDeathIsAnnouncedBeforeEverythingIsClosed(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	pid, m, n := a.daemonPID(), b.mark(), a.mark()
	a.tell("mute")
	b.want(m, "EVENT TellLoss", `"Kind":1`, `"Entitled":true`)
	if a.daemonPID() != pid {
		t.Error("a second daemon was started while the first was still being taken apart")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.want(n, "EVENT ready")
}

func TestStoppedDaemonIsKilledAndAnnounced(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	pid, m := a.daemonPID(), b.mark()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.want(m, "EVENT TellLoss", `"Kind":1`, `"Entitled":true`)
	a.want(0, "killing the daemon", "no progress")
}

func TestStoppedDaemonWithoutSuccessorIsLeftAlone(t *testing.T) {
	p := newPair(t)
	a, b := p.gw[1], p.gw[2]
	a.tell("owner 5.1")
	b.tell("standby 5.1")
	a.want(0, "EVENT TellPeer", `"Role":1`)
	pid, m := a.daemonPID(), a.mark()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The other daemon's restart takes longer than the watchdog would.
	for range 2 {
		k := b.mark()
		b.tell("exit 1")
		b.want(k, "EVENT ready")
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	a.tell("standby 5.1")
	a.wantNone(m, "killing")
}

func TestDaemonDiesWithItsGuardian(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m := b.mark()
	fd, err := unix.PidfdOpen(a.daemonPID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.want(m, "EVENT TellLoss", `"Kind":0`, `"Entitled":true`)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 5000); n != 1 {
		t.Errorf("the daemon outlives its guardian: %v", err)
	}
}

func TestBothStoppedLoseNothing(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	ma, mb := a.mark(), b.mark()
	pids := []int{a.cmd.Process.Pid, b.cmd.Process.Pid, a.daemonPID(), b.daemonPID()}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	<-time.After(600 * time.Millisecond)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	a.want(ma, "this process was stopped")
	b.want(mb, "this process was stopped")
	// Both still work together: a whole exchange passes.
	a.tell("ask 2")
	a.want(ma, "EVENT TellRemoved", `"Node":2`)
	a.wantNone(ma, "TellLoss")
	b.wantNone(mb, "TellLoss")
	a.wantNone(ma, "killing")
}

func TestRemovalAndClaim(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m, n := a.mark(), b.mark()
	a.tell("ask 2")
	a.want(m, "EVENT TellRemoved", `"Node":2`)
	b.want(n, "EVENT TellRemoved", `"Node":2`)
	n = b.mark()
	b.tell("entitle 5.1") // that epoch has gone on without it
	b.want(n, "EVENT TellRemoved", `"Node":2`)
	b.tell("claim 6.2")
	b.want(n, "EVENT TellClaimed", `"OK":false`)
	a.tell("owner 6.1")
	b.want(n, "EVENT TellPeer", `"Counter":6`)
	b.tell("entitle 6.1")
	b.want(n, "EVENT TellEntitled", `"Counter":6`)
	b.tell("claim 7.2")
	b.want(n, "EVENT TellClaimed", `"OK":true`)
}

func TestOneLinkLivesOn(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m, n := a.mark(), b.mark()
	run(t, "ip -n "+p.ns[1]+" link set hb0 down")
	b.want(n, "EVENT TellPeer", `"Links":[{"Device":"hb1"`)
	run(t, "ip -n "+p.ns[1]+" link set hb0 up")
	b.want(b.mark(), "EVENT TellPeer", `"Device":"hb0"`, `"Device":"hb1"`)
	// A device that is taken away and made anew is found again.
	run(t, "ip -n "+p.ns[1]+" link del hb1")
	a.want(m, "heartbeat device went away", "hb1")
	run(t, fmt.Sprintf("ip -n %s link add hb1 type veth peer name hb1 netns %s", p.ns[1], p.ns[2]))
	k := b.mark()
	for i := 1; i <= 2; i++ {
		run(t, "ip -n "+p.ns[i]+" link set hb1 up")
	}
	b.want(k, "EVENT TellPeer", `"Device":"hb0"`, `"Device":"hb1"`)
	a.wantNone(m, "TellLoss")
	b.wantNone(n, "TellLoss")
}

func TestNoFalseAlarmUnderLoad(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	m, n := p.gw[1].mark(), p.gw[2].mark()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
			_ = c.Run()
		})
	}
	wg.Wait()
	p.gw[1].wantNone(m, "TellLoss")
	p.gw[2].wantNone(n, "TellLoss")
}

func TestBadConfigurationIsNotRetried(t *testing.T) {
	p := newPair(t)
	a := p.gw[1]
	a.tell("exit " + strconv.Itoa(ExitConfig))
	a.until("guardian ends", func() bool { return a.ended })
	if a.status != ExitConfig {
		t.Errorf("status %d, want %d", a.status, ExitConfig)
	}
}

func TestTermEndsBoth(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m := b.mark()
	pid := a.daemonPID()
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	b.want(m, "EVENT TellLoss", `"Kind":1`)
	a.until("guardian ends", func() bool { return a.ended })
	if a.status != 0 {
		t.Errorf("status %d", a.status)
	}
	if syscall.Kill(pid, 0) == nil {
		t.Error("the daemon lives on")
	}
}
