package integration

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

// What an idle pair with a thousand tunnels may cost on each node: processor time
// of daemon and guardian together, and memory beyond what the same daemon needs
// without any tunnel (the guardian knows no tunnels).
const (
	idleTunnels  = 1000
	idleCPU      = 5.0  // % of one core
	idleMemory   = 64.0 // MiB
	idleInterval = 20 * time.Second
	// idleSettle lets what the establishment left come to rest: bounds withdrawn,
	// memory given back (the runtime takes its time for that).
	idleSettle = 20 * time.Second
)

// BenchmarkIdlePair measures it with a thousand clients behind one dialup phase 1,
// with a thousand phase 1 of their own, and with DPD that probes idle peers. Every
// tunnel has carried a ping before. A missed bound fails the benchmark.
func BenchmarkIdlePair(b *testing.B) {
	for _, c := range []struct {
		name   string
		static bool
		phase1 string
	}{
		{"dialup", false, ""},
		{"static", true, ""},
		{"dialup, dpd on-idle", false, "set dpd on-idle"},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				idlePair(b, c.static, c.phase1)
			}
		})
	}
}

func idlePair(b *testing.B, static bool, phase1 string) {
	needRoot(b)
	needs.Program(b, "ip")
	empty := newCrowd(b, gatewayOf(false, "", 0))
	empty.synchronised(0)
	empty.close()

	w := newCrowd(b, gatewayOf(static, phase1, idleTunnels))
	defer w.close()
	w.synchronised(0)
	w.dial()
	perSecond := w.synchronised(idleTunnels)
	w.pingEach()
	<-time.After(idleSettle)
	before := w.usage()
	<-time.After(idleInterval)
	after := w.usage()
	if n := w.children(w.active); n != idleTunnels {
		b.Fatalf("%d Child SAs at the end", n)
	}
	for node, u := range after {
		role := "standby"
		if node == w.active {
			role = "active"
		}
		cpu := 100 * (u.cpu - before[node].cpu).Seconds() / u.at.Sub(before[node].at).Seconds()
		memory := u.process["daemon"].resident - empty.final[role].process["daemon"].resident
		b.ReportMetric(cpu, role+"-cpu-%")
		b.ReportMetric(memory, role+"-MiB")
		b.ReportMetric(u.process["guardian"].resident, role+"-guardian-MiB")
		b.ReportMetric(empty.final[role].process["daemon"].resident, "empty-"+role+"-MiB")
		for name, p := range u.process {
			b.Logf("%s %s: %.2f %% of a core, %.1f MiB", role, name, 100*(p.cpu-before[node].process[name].cpu).Seconds()/u.at.Sub(before[node].at).Seconds(), p.resident)
		}
		if cpu >= idleCPU {
			b.Errorf("the idle %s node uses %.1f %% of a core, allowed are %.0f", role, cpu, idleCPU)
		}
		if memory >= idleMemory {
			b.Errorf("%d tunnels take %.0f MiB on the %s node, allowed are %.0f", idleTunnels, memory, role, idleMemory)
		}
	}
	b.ReportMetric(perSecond, "tunnels/s")
	b.ReportMetric(0, "ns/op")
}

// The outer and inner address of a client; both lie on the one client node.
func outerOf(i int) string { return fmt.Sprintf("198.18.%d.%d", 16+i>>8, i&255) }
func innerOf(i int) string { return fmt.Sprintf("10.1.%d.%d", 16+i>>8, i&255) }

// gatewayOf is a gateway of the pair: n tunnels each with a phase 1 of its own,
// or one dialup phase 1; none at all for n = 0.
func gatewayOf(static bool, phase1 string, n int) func(node string, priority int) string {
	return func(node string, priority int) string {
		var b strings.Builder
		fmt.Fprintf(&b, `config system global
    set hostname "%[1]s"
end
config system ha
    set mode a-p
    set group-id 1
    set group-name "pair"
    set password "pair heartbeat secret"
    set hbdev "hb0" 50 "hb1" 50
    set hb-interval 1
    set hb-interval-in-milliseconds 10ms
    set hb-lost-threshold 3
    set priority %[2]d
    set monitor "wan0" "lan0"
end
config system tandem
    set data-plane userspace
    set cluster-dir "@DIR@/cluster/%[1]s"
    set state-dir "@DIR@/%[1]s"
    set admin-socket "@DIR@/%[1]s/admin.sock"
end
config system interface
    edit "wan0"
        set ip 192.0.2.1 255.255.255.0
    next
    edit "lan0"
        set ip 10.2.0.1 255.255.255.0
    next
end
`, node, priority)
		if n == 0 {
			return b.String()
		}
		const common = `        set interface "wan0"
        set ike-version 2
        set psksecret "a secret of gateway and clients"
        set proposal aes128gcm-prfsha256
        set dhgrp 31
`
		const suite = `        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.2.0.0 255.255.255.0
`
		if !static {
			fmt.Fprintf(&b, "config vpn ipsec phase1-interface\n    edit \"vpn1\"\n        set type dynamic\n%s        %s\n    next\nend\n", common, phase1)
			fmt.Fprintf(&b, "config vpn ipsec phase2-interface\n    edit \"vpn1\"\n        set phase1name \"vpn1\"\n%s    next\nend\n", suite)
			return b.String()
		}
		var p1, p2, routes strings.Builder
		for i := range n {
			fmt.Fprintf(&p1, "    edit \"vpn%d\"\n        set remote-gw %s\n        set auto-negotiate disable\n%s        %s\n    next\n", i, outerOf(i), common, phase1)
			fmt.Fprintf(&p2, "    edit \"vpn%d\"\n        set phase1name \"vpn%d\"\n%s        set dst-subnet %s 255.255.255.255\n    next\n", i, i, suite, innerOf(i))
			fmt.Fprintf(&routes, "    edit %d\n        set dst %s 255.255.255.255\n        set device \"vpn%d\"\n    next\n", i+1, innerOf(i), i)
		}
		fmt.Fprintf(&b, "config vpn ipsec phase1-interface\n%send\nconfig vpn ipsec phase2-interface\n%send\nconfig router static\n%send\n", &p1, &p2, &routes)
		return b.String()
	}
}

// clients is one Tandem that plays them all.
func clients(n int) string {
	var p1, p2 strings.Builder
	for i := range n {
		fmt.Fprintf(&p1, `    edit "gw%d"
        set interface "wan0"
        set ike-version 2
        set local-gw %s
        set remote-gw 192.0.2.1
        set psksecret "a secret of gateway and clients"
        set proposal aes128gcm-prfsha256
        set dhgrp 31
    next
`, i, outerOf(i))
		fmt.Fprintf(&p2, `    edit "gw%d"
        set phase1name "gw%d"
        set proposal aes128gcm
        set dhgrp 31
        set auto-negotiate enable
        set src-subnet %s 255.255.255.255
        set dst-subnet 10.2.0.0 255.255.255.0
    next
`, i, i, innerOf(i))
	}
	return "config system tandem\n    set data-plane userspace\n    set state-dir \"@DIR@/client\"\n    set admin-socket \"@DIR@/client/admin.sock\"\nend\n" +
		"config vpn ipsec phase1-interface\n" + p1.String() + "end\nconfig vpn ipsec phase2-interface\n" + p2.String() + "end\n"
}

// crowd is a pair with its clients.
type crowd struct {
	b      *testing.B
	topo   *lab.Topology
	nodes  map[string]*lab.Process
	active string
	final  map[string]usage // by role, of a crowd that is closed
}

func newCrowd(b *testing.B, conf func(node string, priority int) string) *crowd {
	b.Helper()
	bin := program(b)
	topo, err := lab.BuildPair("")
	if err != nil {
		b.Fatal(err)
	}
	w := &crowd{b: b, topo: topo, nodes: map[string]*lab.Process{}}
	b.Cleanup(w.close)
	if out, err := exec.Command(bin, "cluster", "init", "--dir", filepath.Join(topo.Dir, "cluster"), lab.NodeGW1, lab.NodeGW2).CombinedOutput(); err != nil {
		b.Fatalf("cluster init: %v\n%s", err, out)
	}
	w.ip(lab.NodeClient, "route add local 198.18.16.0/20 dev lo")
	w.ip(lab.NodeClient, "route add local 10.1.16.0/20 dev lo")
	for i, node := range lab.Gateways {
		w.ip(node, "route add 198.18.0.0/16 via 192.0.2.10 dev wan0 onlink")
		w.start(node, conf(node, 200-10*i))
	}
	return w
}

func (w *crowd) ip(node, words string) { ipIn(w.b, w.topo, node, words) }

func (w *crowd) start(node, conf string) {
	w.nodes[node] = startIn(w.b, w.topo, program(w.b), node, conf)
}

// ipIn runs ip in a node.
func ipIn(b testing.TB, topo *lab.Topology, node, words string) {
	b.Helper()
	var out strings.Builder
	cmd := exec.Command("ip", strings.Fields(words)...)
	cmd.Stderr = &out
	if err := topo.In(node, cmd.Start); err != nil {
		b.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		b.Fatalf("%s: ip %s: %v %s", node, words, err, &out)
	}
}

// startIn starts a gateway in a node; @DIR@ is the folder of the lab.
func startIn(b testing.TB, topo *lab.Topology, bin, node, conf string) *lab.Process {
	b.Helper()
	path := filepath.Join(topo.Dir, node+".conf")
	if err := os.MkdirAll(filepath.Join(topo.Dir, node), 0o700); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(conf, "@DIR@", topo.Dir)), 0o600); err != nil {
		b.Fatal(err)
	}
	p, err := topo.Start(node, node, []string{bin, "run", "--config", path}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func (w *crowd) dial() { w.start(lab.NodeClient, clients(idleTunnels)) }

// ask decodes the JSON of one command; false while the node does not answer.
func (w *crowd) ask(node, words string, into any) bool {
	out, err := exec.Command(program(w.b), append(strings.Fields(words), "--json", "--socket", filepath.Join(w.topo.Dir, node, "admin.sock"))...).Output()
	return err == nil && json.Unmarshal(out, into) == nil
}

func (w *crowd) children(node string) int {
	var s struct {
		Children int `json:"ipsec_sas"`
	}
	if !w.ask(node, "diagnose vpn ike stats", &s) {
		return -1
	}
	return s.Children
}

// synchronised waits until both nodes hold n tunnels and a loss of either would
// be covered, and returns how many came up in a second.
func (w *crowd) synchronised(n int) (perSecond float64) {
	w.b.Helper()
	var first time.Time
	had, took := 0, time.Duration(0)
	within, what := 2*time.Minute, ""
	if !holds(within, func() bool {
		count, primaries := 0, 0
		for _, node := range lab.Gateways {
			if !w.nodes[node].Running() {
				w.b.Fatalf("%s ended:\n%s", node, w.tail(node))
			}
			var s lab.HAStatus
			if !w.ask(node, "get system ha status", &s) || !s.Synchronised {
				what = node + " is not synchronised"
				return false
			}
			if s.Role == lab.RolePrimary {
				w.active = node
				primaries++
			}
		}
		if primaries != 1 {
			what = fmt.Sprintf("%d nodes are primary", primaries)
			return false
		}
		if count = w.children(w.active); count > 0 && first.IsZero() {
			first, had = time.Now(), count
		}
		if count == n && took == 0 {
			took = time.Since(first)
		}
		if standby := w.children(w.standby()); count != n || standby != n {
			what = fmt.Sprintf("%d and %d of %d tunnels stand", count, standby, n)
			return false
		}
		return true
	}) {
		w.b.Fatalf("not within %v: %s\n%s", within, what, w.tail(lab.Gateways[0]))
	}
	if took == 0 {
		return 0
	}
	return float64(n-had) / took.Seconds()
}

func (w *crowd) standby() string {
	if w.active == lab.NodeGW1 {
		return lab.NodeGW2
	}
	return lab.NodeGW1
}

func (w *crowd) tail(node string) string {
	text, _ := os.ReadFile(w.nodes[node].LogPath)
	return string(text[max(0, len(text)-4000):])
}

// pingEach sends one ping through every tunnel and wants its answer.
func (w *crowd) pingEach() {
	w.b.Helper()
	for i := range idleTunnels {
		var c *net.IPConn
		if err := w.topo.In(lab.NodeClient, func() (err error) {
			c, err = pinger(innerOf(i), "gw"+strconv.Itoa(i))
			return err
		}); err != nil {
			w.b.Fatal(err)
		}
		err := echo(c, uint16(i))
		c.Close()
		if err != nil {
			w.b.Fatalf("tunnel %d: %v", i, err)
		}
	}
}

// pinger is a socket whose packets leave through one tunnel.
func pinger(from, device string) (*net.IPConn, error) {
	c, err := net.ListenIP("ip4:icmp", &net.IPAddr{IP: net.ParseIP(from)})
	if err != nil {
		return nil, err
	}
	rc, err := c.SyscallConn()
	if err == nil {
		var fault error
		if err = rc.Control(func(fd uintptr) { fault = syscall.BindToDevice(int(fd), device) }); err == nil {
			err = fault
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// echo sends an ICMP echo request up to three times, each a second after the other.
func echo(c *net.IPConn, id uint16) error {
	req := []byte{8, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	sum := uint32(0)
	for i := 0; i < len(req); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(req[i:]))
	}
	binary.BigEndian.PutUint16(req[2:], ^uint16(sum+sum>>16))
	server, _, _ := net.ParseCIDR(lab.ServerAddr)
	buf, err := make([]byte, 256), error(nil)
	for range 3 {
		if _, err = c.WriteTo(req, &net.IPAddr{IP: server}); err != nil {
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		for {
			if n, _, err = c.ReadFrom(buf); err != nil {
				break
			}
			if n >= 8 && buf[0] == 0 && binary.BigEndian.Uint16(buf[4:]) == id {
				return nil
			}
		}
	}
	return err
}

// usage is what a node's guardian and daemon have used.
type usage struct {
	at time.Time
	cost
	process map[string]cost
}

type cost struct {
	cpu      time.Duration
	resident float64 // MiB
}

func (w *crowd) usage() map[string]usage {
	w.b.Helper()
	all := map[string]usage{}
	for _, node := range lab.Gateways {
		daemon, err := w.nodes[node].Daemon(false)
		if err != nil {
			w.b.Fatal(err)
		}
		u := usage{at: time.Now(), process: map[string]cost{}}
		for name, pid := range map[string]int{"guardian": w.nodes[node].PID, "daemon": daemon} {
			c, err := used(pid)
			if err != nil {
				w.b.Fatal(err)
			}
			u.process[name] = c
			u.cpu += c.cpu
			u.resident += c.resident
		}
		all[node] = u
	}
	return all
}

// used reads a process's processor time and resident memory in MiB from /proc.
func used(pid int) (cost, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return cost{}, err
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks := 0
	for _, s := range f[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.Atoi(s)
		if err != nil {
			return cost{}, err
		}
		ticks += n
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return cost{}, err
	}
	for _, line := range strings.Split(string(rollup), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Rss:" {
			kib, err := strconv.Atoi(f[1])
			return cost{time.Duration(ticks) * 10 * time.Millisecond, float64(kib) / 1024}, err
		}
	}
	return cost{}, fmt.Errorf("smaps_rollup of %d has no Rss", pid)
}

// close ends a crowd; what its nodes used last is kept.
func (w *crowd) close() {
	if w.topo == nil {
		return
	}
	if w.active != "" && !w.b.Failed() {
		u := w.usage()
		w.final = map[string]usage{"active": u[w.active], "standby": u[w.standby()]}
	}
	for _, p := range w.nodes {
		_ = syscall.Kill(p.PID, syscall.SIGTERM)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, p := range w.nodes {
		_ = p.Wait(ctx)
	}
	if err := w.topo.Close(); err != nil {
		w.b.Error(err)
	}
	w.topo = nil
}
