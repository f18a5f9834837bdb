package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

// guestNode is the machine with a kernel of its own in the place of the wire's peer.
const guestNode = "peer"

// Addresses of the link over which a test speaks to daemons in the guest; it is apart
// from the wire that is recorded.
const (
	guestControl = "198.51.100.2"
	nodeControl  = "198.51.100.1"
)

// guestModules are what the guest loads at boot: ESP and what the kernel's own names
// for algorithms need (each costs a few milliseconds).
const guestModules = "ipv6,esp4,esp6,xfrm_user,gcm,ctr,ghash-generic,seqiv,echainiv,authenc,cbc,hmac,sha256_generic,sha512_generic,chacha20poly1305,af_key"

// guest is user-mode-linux: a Linux with ESP in the kernel, run as a process, which the
// machine of the tests may lack. It sees the machine's root, read-only.
type guest struct {
	dir   string // shared with it, writable on both sides
	cache string // what it was built from
	cmd   *exec.Cmd
	in    *os.File
	done  chan struct{} // closed when it has ended

	mu      sync.Mutex
	n       int
	waiting map[int]chan int // exit statuses
}

// guestFiles builds what a guest needs, once, in the user's cache folder.
var guestFiles = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "tandem", "guest")
	if out, err := exec.Command("../scripts/uml/build.sh", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// guestWire is the wire of the smallest network with a guest as its peer: the same
// addresses, the gateway's end of the cable a TAP device.
func guestWire(t *testing.T) *site {
	t.Helper()
	needRoot(t)
	needs.File(t, "/dev/net/tun")
	cache, err := guestFiles()
	if err != nil {
		needs.Missing(t, err.Error())
	}
	s := build(t, lab.Plan{Nodes: []lab.PlanNode{{Name: "gw", Forward: true, Addrs: []string{gwIn + "/32", gwIn6 + "/128"}}}})
	batch := ""
	for dev, addrs := range map[string][]string{"wan0": {gwWAN + "/24", gwWAN6 + "/64 nodad"}, "control": {nodeControl + "/30"}} {
		batch += "tuntap add dev " + dev + " mode tap\n"
		for _, a := range addrs {
			batch += "addr add " + a + " dev " + dev + "\n"
		}
		batch += "link set " + dev + " up\n"
	}
	s.batch("gw", batch)
	s.guest = startGuest(t, s.topo, cache)
	s.batch(guestNode, fmt.Sprintf(`link set vec0 up
link set vec1 up
addr add %s/24 dev vec0
addr add %s/64 dev vec0 nodad
addr add %s/30 dev vec1
addr add %s/32 dev lo
addr add %s/128 dev lo
route add default via %s
route add default via %s
`, peerWAN, peerWAN6, guestControl, peerIn, peerIn6, gwWAN, gwWAN6))
	return s
}

// batch runs ip's commands in one process: each costs time in a guest.
func (s *site) batch(node, commands string) {
	s.t.Helper()
	dir := s.topo.Dir
	if node == guestNode && s.guest != nil {
		dir = s.guest.dir
	}
	path := filepath.Join(dir, "ip-"+node)
	if err := os.WriteFile(path, []byte(commands), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must(node, "/sbin/ip", "-batch", path)
}

// startGuest boots it and waits until it takes commands; it ends with the test.
func startGuest(t *testing.T, topo *lab.Topology, cache string) *guest {
	t.Helper()
	begin := time.Now()
	init, err := filepath.Abs("../scripts/uml/init")
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{dir: filepath.Join(topo.Dir, "guest"), cache: cache, done: make(chan struct{}), waiting: map[int]chan int{}}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	console, err := os.Create(filepath.Join(g.dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirOut.Close()
	g.in = in
	g.cmd = exec.Command("linux.uml", "mem=256M", "rootfstype=hostfs", "rootflags=/", "ro", "init="+init, "quiet",
		"uml_dir="+g.dir+"/uml/", "con=null", "ssl=null", "con0=null,fd:3", "ssl0=fd:4,fd:5",
		"vec0:transport=tap,ifname=wan0,depth=128,gro=1", "vec1:transport=tap,ifname=control,depth=128",
		"guest.SCRATCH="+g.dir, "guest.CACHE="+cache, "guest.MODULES="+guestModules)
	g.cmd.ExtraFiles = []*os.File{console, theirIn, theirOut} // 3, 4, 5
	g.cmd.Stdout, g.cmd.Stderr = console, console
	// Its memory is a file there.
	g.cmd.Env = append(os.Environ(), "LD_PRELOAD="+filepath.Join(cache, "shim.so"), "TMPDIR=/dev/shm")
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := topo.In("gw", g.cmd.Start); err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", g.cmd.Process.Pid), []byte("-10"), 0)
	ready := make(chan struct{})
	go g.listen(out, ready)
	go func() {
		_ = g.cmd.Wait()
		close(g.done)
	}()
	t.Cleanup(g.stop)
	select {
	case <-ready:
		t.Logf("the guest kernel is up after %v", time.Since(begin).Round(10*time.Millisecond))
	case <-g.done:
		text, _ := os.ReadFile(console.Name())
		needs.Missing(t, fmt.Sprintf("the guest kernel does not boot here:\n%s", text))
	case <-time.After(60 * time.Second):
		t.Fatal("the guest kernel is not up within a minute")
	}
	return g
}

// listen takes its answers: "ready", then "N STATUS".
func (g *guest) listen(out *os.File, ready chan struct{}) {
	defer out.Close()
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if sc.Text() == "ready" {
			close(ready)
			continue
		}
		id, status, _ := strings.Cut(sc.Text(), " ")
		n, err1 := strconv.Atoi(id)
		code, err2 := strconv.Atoi(status)
		g.mu.Lock()
		if c := g.waiting[n]; c != nil && err1 == nil && err2 == nil {
			c <- code
			delete(g.waiting, n)
		}
		g.mu.Unlock()
	}
}

// stop ends it; what does not end goes with its namespace.
func (g *guest) stop() {
	_, _ = g.in.WriteString("end\n")
	g.in.Close()
	select {
	case <-g.done:
	case <-time.After(2 * time.Second):
		_ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL)
		<-g.done
	}
}

// run runs a program in the guest and returns what it printed.
func (g *guest) run(argv ...string) (string, error) {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return g.shell("exec " + strings.Join(words, " "))
}

// shell runs a script of busybox's shell in the guest.
func (g *guest) shell(script string) (string, error) {
	answer := make(chan int, 1)
	g.mu.Lock()
	g.n++
	n := g.n
	g.waiting[n] = answer
	path := filepath.Join(g.dir, strconv.Itoa(n))
	err := os.WriteFile(path, []byte(script+"\n"), 0o600)
	if err == nil {
		_, err = fmt.Fprintln(g.in, n)
	}
	g.mu.Unlock()
	if err != nil {
		return "", err
	}
	select {
	case code := <-answer:
		text, err := os.ReadFile(path + ".out")
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d", code)
		}
		return string(text), err
	case <-g.done:
		return "", g.ended()
	case <-time.After(60 * time.Second):
		return "", errors.New("no answer from the guest within a minute")
	}
}

// ended says how it ended by itself. It does not bear being stopped and continued: that
// comes from outside of the test.
func (g *guest) ended() error {
	text, _ := os.ReadFile(filepath.Join(g.dir, "console"))
	if strings.Contains(string(text), "stopped with signal 19") {
		return errors.New("the guest kernel has ended: its processes got SIGSTOP from elsewhere")
	}
	return errors.New("the guest kernel has ended")
}

// sub runs a part of a test on the same network, with the same guest.
func (s *site) sub(name string, f func(t *testing.T, s *site)) {
	s.t.Helper()
	s.t.Run(name, func(t *testing.T) {
		part := *s
		part.t = t
		t.Cleanup(func() {
			if t.Failed() {
				part.showLogs()
			}
		})
		f(t, &part)
	})
}

// guestCharon starts strongSwan on the guest's kernel, for all parts of a test.
func (s *site) guestCharon(settings ...string) *charon {
	s.t.Helper()
	needCharon(s.t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	bin, _, err := lab.FindCharon()
	if err != nil {
		s.t.Fatal(err)
	}
	ch, err := s.topo.StartGuestCharon(ctx, lab.GuestCharon{
		Dir: filepath.Join(s.guest.dir, "charon"), Vici: netip.AddrPortFrom(netip.MustParseAddr(guestControl), 4502),
		Start: func(conf string) error {
			_, err := s.guest.shell("STRONGSWAN_CONF=" + conf + " " + bin + " >/dev/null 2>&1 &")
			return err
		},
	}, lab.CharonConfig{Node: "gw", Settings: strings.Join(settings, "\n")})
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := ch.Stop(); err != nil {
			s.t.Error(err)
		}
		cancel()
	})
	c := &charon{ch, s.t, ctx}
	c.sayVersion("kernel ESP")
	return c
}

// load gives a charon that runs another configuration, for a part of a test.
func (c *charon) load(t *testing.T, cfg conn) *charon {
	t.Helper()
	if err := c.Load(c.ctx, cfg.render()); err != nil {
		t.Fatal(err)
	}
	return &charon{c.Charon, t, c.ctx}
}

// sayVersion names the peer for the record of interoperability.
func (c *charon) sayVersion(esp string) {
	c.t.Helper()
	version, kernel, err := c.Version(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	sayPeer(c.t, "strongSwan", strings.TrimSpace(version+", "+strings.Replace(esp, "kernel", "Linux "+kernel, 1)))
}

// sayPeer names a peer and its version for docs/interop.md.
func sayPeer(t *testing.T, name, version string) {
	t.Helper()
	t.Logf("peer: %s: %s", name, version)
}
