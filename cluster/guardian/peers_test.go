package guardian

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/cluster"
)

// newFarm starts n guardians that know each other by address only. A router stands
// between them: each has a network of its own, 10.99.<i>.0/24 and fd99:<i>::/64. Among
// the first of them heartbeats go over IPv4, to and from the last over IPv6.
func newFarm(t *testing.T, n int) *pair {
	needRoot(t)
	p := &pair{t, make([]string, n+1), make([]*gateway, n+1)}
	router := newNamespace(t, 0)
	run(t, "ip netns exec "+router+" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for i := 1; i <= n; i++ {
		ns := newNamespace(t, i)
		p.ns[i] = ns
		run(t, fmt.Sprintf("ip -n %s link add wan type veth peer name m%d netns %s", ns, i, router))
		for _, end := range []struct{ ns, dev, host string }{{ns, "wan", "2"}, {router, fmt.Sprintf("m%d", i), "1"}} {
			run(t, fmt.Sprintf("ip -n %s addr add 10.99.%d.%s/24 dev %s", end.ns, i, end.host, end.dev))
			run(t, fmt.Sprintf("ip -n %s addr add fd99:%x::%s/64 dev %s nodad", end.ns, i, end.host, end.dev))
			run(t, fmt.Sprintf("ip -n %s link set %s up", end.ns, end.dev))
		}
		run(t, fmt.Sprintf("ip -n %s route add default via 10.99.%d.1", ns, i))
		run(t, fmt.Sprintf("ip -n %s route add default via fd99:%x::1", ns, i))
	}
	for i := 1; i <= n; i++ {
		p.start(i, p.others(i)...)
	}
	return p
}

// address is the one by which node i knows node j.
func (p *pair) address(i, j int) string {
	if n := len(p.ns) - 1; i == n || j == n {
		return fmt.Sprintf("fd99:%x::2", j)
	}
	return fmt.Sprintf("10.99.%d.2", j)
}

func (p *pair) others(i int) (out []string) {
	for j := 1; j < len(p.ns); j++ {
		if j != i {
			out = append(out, p.address(i, j))
		}
	}
	return out
}

// heard waits until everybody hears everybody.
func (p *pair) heard() {
	p.t.Helper()
	for i, a := range p.gw {
		for j := range p.gw {
			if a != nil && j > 0 && i != j {
				a.want(0, "EVENT TellPeer", fmt.Sprintf(`"Node":%d,`, j), `"Running":true`, `"Deaf":false`, fmt.Sprintf(`{"Device":"","Addr":%q}`, p.address(i, j)))
			}
		}
	}
}

func claimed(n int, scopes ...int) string {
	var out []string
	for _, s := range scopes {
		out = append(out, fmt.Sprintf(`{"Scope":%d,"Epoch":{"Counter":65536,"Node":%d}}`, s, n))
	}
	return `"Claimed":[` + strings.Join(out, ",") + `]`
}

func TestAMembersDeathIsToldToItsSuccessors(t *testing.T) {
	p := newFarm(t, 3)
	a, b, c := p.gw[1], p.gw[2], p.gw[3]
	a.tell("owns 256 65536.1 257 65536.1 258 65536.1")
	b.tell("owns 264 65536.2")
	c.tell("owns 272 65536.3")
	p.heard()
	for _, g := range []*gateway{b, c} {
		g.want(0, "EVENT TellPeer", `"Node":1,`, strings.Replace(claimed(1, 256, 257, 258), "Claimed", "Owned", 1))
	}
	c.want(0, "EVENT TellPeer", `"Node":2,`, strings.Replace(claimed(2, 264), "Claimed", "Owned", 1))
	entitle := func(g *gateway, n, scope int) {
		t.Helper()
		m := g.mark()
		g.tell(fmt.Sprintf("entitle 65536.%d %d", n, scope))
		g.want(m, "EVENT TellEntitled", fmt.Sprintf(`"Scope":%d,`, scope))
	}
	entitle(b, 1, 256)
	entitle(b, 1, 257)
	entitle(c, 1, 257)
	entitle(c, 1, 258)
	entitle(c, 2, 264)
	entitle(b, 3, 272)
	a.want(0, "EVENT TellPeer", `"Node":2,`, `"EntitledTo":[{"Scope":256,`, `{"Scope":257,`)

	// One of them is removed from one scope: that alone is not claimed.
	m := a.mark()
	a.tell("ask 3 258")
	a.want(m, "EVENT TellRemoved", `"Scope":258,"Node":3`)
	c.want(0, "EVENT TellRemoved", `"Scope":258,"Node":3`)

	mb, mc := b.mark(), c.mark()
	if err := syscall.Kill(a.daemonPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.want(mb, "EVENT TellLoss", `"Node":1,"Kind":1,"Entitled":false,`+claimed(1, 256, 257)+`,`)
	c.want(mc, "EVENT TellLoss", `"Node":1,"Kind":1,"Entitled":false,`+claimed(1, 257)+`,`)
	b.tell("claim 131072.2 256")
	b.want(mb, "EVENT TellClaimed", `"Scope":256,`, `"OK":true`)
	b.tell("owns 256 131072.2 257 131072.2 264 65536.2")
	// The other one's claim has been overtaken.
	c.want(mc, "EVENT TellRemoved", `"Scope":257,"Node":3`)

	// A host is lost: silence.
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.want(mc, "EVENT TellLoss", `"Node":2,"Kind":0,"Entitled":false,`+claimed(2, 264)+`,`)
	a.wantNone(0, "killing")
}

func TestReloadChangesThePeers(t *testing.T) {
	p := newFarm(t, 3)
	for i := 1; i <= 3; i++ {
		p.gw[i].tell("standby 5.1")
	}
	p.heard()
	c := p.gw[3]
	m := c.mark()
	c.setPeers(p.address(3, 2))
	_ = c.cmd.Process.Signal(syscall.SIGHUP)
	c.want(m, "EVENT TellLoss", `"Node":1,"Kind":0`)
	p.gw[1].want(0, "EVENT TellLoss", `"Node":3,"Kind":0`)
	k := c.mark()
	c.setPeers(p.others(3)...)
	_ = c.cmd.Process.Signal(syscall.SIGHUP)
	c.want(k, "EVENT TellPeer", `"Node":1,`, `"Deaf":false`)
	c.wantNone(m, `TellLoss {"Node":2`)
}

func TestStoppedMemberIsKilledForItsSuccessor(t *testing.T) {
	p := newFarm(t, 3)
	a, b := p.gw[1], p.gw[2]
	a.tell("owns 256 65536.1")
	b.tell("owns")
	b.want(0, "EVENT TellPeer", `"Node":1,`, `"Owned":[{"Scope":256,`)
	b.tell("entitle 65536.1 256")
	a.want(0, "EVENT TellPeer", `"EntitledTo":[{"Scope":256,`)
	if err := syscall.Kill(a.daemonPID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.want(0, "EVENT TellLoss", `"Node":1,"Kind":1,`, claimed(1, 256))
	a.want(0, "killing the daemon", "no progress")
}

// wakeups are how often the thread of a process that waits most has waited.
func wakeups(t *testing.T, pid int) (most int) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(l, "voluntary_ctxt_switches:"); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(v))
				most = max(most, n)
			}
		}
	}
	return most
}

// Woken by each beat of three peers, a guardian would wake 400 times a second; by
// its own ticks alone 100 times while all is calm, and never more than 200 times.
func TestPeersDoNotWakeTheGuardian(t *testing.T) {
	p := newFarm(t, 4)
	for _, g := range p.gw[1:] {
		g.tell("standby 5.1")
	}
	p.heard()
	pid := p.gw[1].cmd.Process.Pid
	before, began := wakeups(t, pid), time.Now()
	<-time.After(3 * time.Second)
	n := float64(wakeups(t, pid)-before) / time.Since(began).Seconds()
	t.Logf("%.0f a second", n)
	if n > 260 || n < 50 {
		t.Errorf("it wakes %.0f times a second", n)
	}
}

// TestBeatsDoNotWake: what says nothing new waits on the first socket, what does comes
// on the second, and what strangers send on neither.
func TestBeatsDoNotWake(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct{ at, peer, other, stranger string }{
		{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}, {"::1", "::1", "fd99::1", ""},
	} {
		p := peers{beats: -1, news: -1}
		defer p.close()
		free, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		port := free.LocalAddr().(*net.UDPAddr).Port
		free.Close()
		p.set([]netip.Addr{netip.MustParseAddr(c.other), netip.MustParseAddr("fd99::2"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr(c.peer)}, port, log)
		if p.beats < 0 || p.news < 0 {
			t.Fatal("not open")
		}
		send := func(from string, b ...byte) {
			t.Helper()
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			k, err := d.DialContext(context.Background(), "udp", netip.AddrPortFrom(netip.MustParseAddr(c.at), uint16(port)).String())
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			if _, err := k.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		var in inbox
		want := func(fd int, texts ...string) {
			t.Helper()
			n, _ := in.receive(fd) // loopback delivers before the sender's call returns
			if n != len(texts) {
				t.Fatalf("%s: %d datagrams, want %d", c.at, n, len(texts))
			}
			for i, x := range texts {
				b, from, _ := in.datagram(i)
				if string(b[1:]) != x || !p.has(from) {
					t.Errorf("%q from %v", b, from)
				}
			}
		}
		send(c.peer, 1, 'a')
		send(c.peer, 1|cluster.HeartbeatNews, 'b')
		if c.stranger != "" {
			send(c.stranger, 1, 'x')
			send(c.stranger, 1|cluster.HeartbeatNews, 'x')
		}
		send(c.peer, 1, 'c')
		want(p.beats, "a", "c")
		want(p.news, "b")
		// Another list.
		p.set([]netip.Addr{netip.MustParseAddr(c.other)}, port, log)
		send(c.peer, 1, 'd')
		want(p.beats)
		p.set(nil, port, log)
		if p.beats >= 0 {
			t.Error("open without peers")
		}
	}
}

func TestHeartbeatsGoToEveryPeer(t *testing.T) {
	a, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.0.0.2")})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	port := a.LocalAddr().(*net.UDPAddr).Port
	b, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.0.0.3"), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var o outbox
	// Where one cannot be reached, the others still are.
	o.aim([]netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("127.0.0.3")}, port)
	fd, err := openUnicast(0, fromOnly(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for range 2 {
		o.send(fd, []byte("beat"), slog.New(slog.DiscardHandler))
	}
	for _, k := range []*net.UDPConn{a, b} {
		_ = k.SetReadDeadline(time.Now().Add(10 * time.Second))
		for range 2 {
			x := make([]byte, 10)
			n, err := k.Read(x)
			if err != nil || string(x[:n]) != "beat" {
				t.Errorf("%q, %v", x[:n], err)
			}
		}
	}
	if o.errs[0] != nil || o.errs[1] == nil || o.errs[2] != nil {
		t.Errorf("%v", o.errs)
	}
}
