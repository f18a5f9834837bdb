package integration

import (
	"context"
	"encoding/json"
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

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"tandem/internal/lab"
	"tandem/internal/needs"
	"tandem/proto/adminpb"
)

// A farm of three members, each a process of its own, with many idle tunnels.
const (
	setupRound = 1000 // tunnels before the other gateway has its turn
)

// manyTunnels are those of the farm; a tenth of them is set up by IKE, the others are
// injected. TANDEM_BENCH_TUNNELS makes them fewer, for a quick look.
var (
	manyTunnels = func() int {
		if n, err := strconv.Atoi(os.Getenv("TANDEM_BENCH_TUNNELS")); err == nil {
			return n
		}
		return 100_000
	}()
	realTunnels = manyTunnels / 10
	// setupRate is set-ups a second; TANDEM_BENCH_RATE makes them fewer.
	setupRate = func() float64 {
		if n, err := strconv.ParseFloat(os.Getenv("TANDEM_BENCH_RATE"), 64); err == nil {
			return n
		}
		return 500
	}()
)

// What they may cost.
const (
	copyMemory   = 6 << 10                // bytes of a standby's copy
	fillRate     = 20_000                 // tunnels a second, to a member that comes back
	activateTime = 100 * time.Millisecond // of a third of all tunnels, from the fault
	addedTime    = 2 * time.Millisecond   // to setting up a tunnel, p99
)

const secretOfMany = "a secret of farm and clients"

// BenchmarkFarm measures one: memory, set-up beside a gateway that replicates nothing,
// takeover, and the refilling of a member. A missed goal fails it.
func BenchmarkFarm(b *testing.B) {
	needRoot(b)
	needs.Program(b, "ip")
	for range b.N {
		f := newBigFarm(b)
		f.setUp()
		f.inject()
		f.takeOver()
		f.close()
	}
	b.ReportMetric(0, "ns/op")
}

// bigFarm is the farm under test. The fourth node of the network is a gateway alone,
// which shows what a set-up costs without replication.
type bigFarm struct {
	b       *testing.B
	bin     string
	topo    *lab.Topology
	procs   map[string]*lab.Process
	members []string
	alone   string
	empty   map[string]memory // without tunnels
	done    bool
}

const clientsNode = "t1"

func newBigFarm(b *testing.B) *bigFarm {
	b.Helper()
	topo, err := lab.BuildFarm("", lab.FarmSetup{Sync: 3, Tandem: 1, Processes: 1, QuorumLoss: "continue"})
	if err != nil {
		b.Fatal(err)
	}
	f := &bigFarm{b: b, bin: breakpointProgram(b), topo: topo, procs: map[string]*lab.Process{}, members: lab.Members[:3], alone: lab.Members[3], empty: map[string]memory{}}
	b.Cleanup(f.close)
	args := append([]string{"cluster", "init", "--dir", filepath.Join(topo.Dir, "cluster")}, f.members...)
	if out, err := exec.Command(f.bin, args...).CombinedOutput(); err != nil {
		b.Fatalf("cluster init: %v\n%s", err, out)
	}
	f.ip(clientsNode, "route add local 198.18.0.0/15 dev lo")
	f.ip(clientsNode, "route add 192.168.128.0/24 via 192.168.1.1")
	f.ip(lab.NodeRouter, "route add 198.18.0.0/15 via 192.168.1.2")
	for i, m := range lab.Members {
		f.start(m, memberConf(i))
	}
	f.whole(2 * time.Minute)
	for _, m := range f.members {
		f.empty[m] = f.memory(m)
	}
	return f
}

// memberConf is the configuration of a member, or of the gateway alone for i = 3.
func memberConf(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "config system global\n    set hostname %q\nend\n", lab.Members[i])
	cluster, sync, addr := "", "", "192.168.128.254"
	if i < 3 {
		fmt.Fprintf(&b, "config system standalone-cluster\n    set standalone-group-id 1\n    set group-member-id %d\n    config cluster-peer\n", i+1)
		for k := range 3 {
			if k != i {
				fmt.Fprintf(&b, "        edit %d\n            set peerip 172.31.1.%d\n            set hb-interval 1\n            set hb-interval-in-milliseconds 10ms\n            set hb-lost-threshold 3\n        next\n", k+1, k+1)
			}
		}
		b.WriteString("    end\nend\n")
		cluster = fmt.Sprintf("    set cluster-dir \"@DIR@/cluster/%s\"\n", lab.Members[i])
		sync, addr = "        set fgsp-sync enable\n", lab.FarmLoopback.String()
	}
	fmt.Fprintf(&b, `config system tandem
    set data-plane userspace
%s    set state-dir "@DIR@/%[2]s"
    set admin-socket "@DIR@/%[2]s/admin.sock"
end
config vpn ipsec phase1-interface
    edit "vpn1"
        set type dynamic
        set interface "port2"
        set ike-version 2
        set local-gw %[3]s
        set keylife 86400
        set peertype any
        set net-device disable
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set dpd on-idle
        set dpd-retryinterval 3600
        set nattraversal disable
%[4]s        set psksecret %[5]q
    next
end
config vpn ipsec phase2-interface
    edit "vpn1"
        set phase1name "vpn1"
        set proposal aes128gcm
        set dhgrp 31
        set keylifeseconds 43200
    next
end
`, cluster, lab.Members[i], addr, sync, secretOfMany)
	return b.String()
}

func (f *bigFarm) ip(node, words string) { ipIn(f.b, f.topo, node, words) }

func (f *bigFarm) start(node, conf string) { f.procs[node] = startIn(f.b, f.topo, f.bin, node, conf) }

// command runs one of a daemon's commands through its admin API.
func (f *bigFarm) command(node string, words string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+filepath.Join(f.topo.Dir, node, "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := adminpb.NewAdminClient(conn).Execute(ctx, &adminpb.ExecuteRequest{Words: strings.Fields(words), Json: true})
	if err != nil {
		return err
	}
	var out, errs strings.Builder
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		out.Write(m.GetStdout())
		errs.Write(m.GetStderr())
		if !m.GetDone() {
			continue
		}
		if m.GetExitCode() != 0 {
			return fmt.Errorf("%s: %s: %s", node, words, errs.String())
		}
		if into == nil {
			return nil
		}
		return json.Unmarshal([]byte(out.String()), into)
	}
}

// report is for figures that are to be seen even when a goal is missed.
func (f *bigFarm) report(n float64, unit string) {
	f.b.Helper()
	f.b.Logf("%.3f %s", n, unit)
	f.b.ReportMetric(n, unit)
}

func (f *bigFarm) must(node, words string, into any) {
	f.b.Helper()
	if err := f.command(node, words, into); err != nil {
		f.b.Fatalf("%v\n%s", err, f.tail(node))
	}
}

func (f *bigFarm) tail(node string) string {
	text, _ := os.ReadFile(f.procs[node].LogPath)
	return string(text[max(0, len(text)-4000):])
}

// held is what `diagnose debug held` tells.
type held struct {
	Owned, Standby int
	Whole          bool
	Started        int64
	Activated      []struct {
		Scope string
		At    int64
	}
}

// memory is what `diagnose debug memory` tells, and what the kernel counts.
type memory struct {
	Heap, Objects, System uint64
	resident              float64 // bytes
}

func (f *bigFarm) memory(node string) (m memory) {
	f.b.Helper()
	f.must(node, "diagnose debug memory", &m)
	pid, err := f.procs[node].Daemon(false)
	if err != nil {
		f.b.Fatal(err)
	}
	c, err := used(pid)
	if err != nil {
		f.b.Fatal(err)
	}
	m.resident = c.resident * (1 << 20)
	return m
}

// whole waits until every member holds all that it shall, and returns what each holds.
func (f *bigFarm) whole(within time.Duration) map[string]held {
	f.b.Helper()
	all := map[string]held{}
	last := ""
	if !holds(within, func() bool {
		owned := 0
		for _, m := range f.members {
			var h held
			if err := f.command(m, "diagnose debug held", &h); err != nil || !h.Whole {
				last = fmt.Sprint(m, ": ", h, err)
				return false
			}
			all[m] = h
			owned += h.Owned
		}
		for _, m := range f.members {
			if h := all[m]; h.Owned+h.Standby != owned {
				last = fmt.Sprintf("%s holds %d and %d of %d", m, h.Owned, h.Standby, owned)
				return false
			}
		}
		return true
	}) {
		f.b.Fatalf("not within %v: %s\n%s", within, last, f.tail(f.members[0]))
	}
	return all
}

// setUp makes tunnels by IKE, in turn with the farm and with the gateway alone.
func (f *bigFarm) setUp() {
	f.b.Helper()
	g := newInitiators(f.b, f.topo, clientsNode, secretOfMany)
	var farm, alone []time.Duration
	var rates []float64
	g.dial(lab.FarmLoopback, 0, 100, 100) // the first ones meet cold code
	single := netip.MustParseAddr("192.168.128.254")
	g.dial(single, 0, 100, 100)
	for n := 100; n < realTunnels; {
		k := min(setupRound, realTunnels-n)
		w, r := g.dial(lab.FarmLoopback, n, k, setupRate)
		farm, rates = append(farm, w...), append(rates, r)
		w, _ = g.dial(single, n, k/2, setupRate)
		alone = append(alone, w...)
		n += k
	}
	if p := os.Getenv("TANDEM_PROFILES"); p != "" {
		var both sync.WaitGroup
		for _, m := range f.members[:2] {
			both.Go(func() { _ = f.command(m, "diagnose debug profile cpu "+filepath.Join(p, m+".setup.cpu")+" 4", nil) })
		}
		g.dial(lab.FarmLoopback, realTunnels, 2000, setupRate)
		both.Wait()
	}
	f.whole(time.Minute)
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		a, s := quantileOf(farm, q.q), quantileOf(alone, q.q)
		f.report(us(a), "setup-"+q.name+"-ms")
		f.report(us(s), "setup-alone-"+q.name+"-ms")
		f.report(us(a-s), "added-"+q.name+"-ms")
		if q.q == 0.99 && a-s > addedTime {
			f.b.Errorf("replication adds %v to the p99 of setting up a tunnel, allowed are %v", a-s, addedTime)
		}
	}
	f.b.Logf("slowest: %v with the farm, %v alone", farm[len(farm)-5:], alone[len(alone)-5:])
	slowest := rates[0]
	for _, r := range rates {
		slowest = min(slowest, r)
	}
	f.report(slowest, "setups/s")
	f.b.Logf("set-ups a second, round by round: %.0f", rates)
}

// inject makes the rest: first the first member's part, so that what an owner and what
// a standby need can be told apart, then the others'.
func (f *bigFarm) inject() {
	f.b.Helper()
	before, was := map[string]memory{}, f.whole(time.Minute)
	for _, m := range f.members {
		before[m] = f.memory(m)
	}
	for i, m := range f.members {
		want := (manyTunnels*(i+1))/3 - (manyTunnels*i)/3 - was[m].Owned
		begin := time.Now()
		if p := os.Getenv("TANDEM_PROFILES"); p != "" && i == 0 {
			for _, x := range f.members {
				go func() { _ = f.command(x, "diagnose debug profile cpu "+filepath.Join(p, x+".inject.cpu")+" 3", nil) }()
			}
		}
		f.must(m, "diagnose debug clone "+strconv.Itoa(want), nil)
		f.whole(2 * time.Minute)
		f.b.Logf("%s: %d tunnels injected in %.1f s", m, want, time.Since(begin).Seconds())
		if i > 0 {
			continue
		}
		for k, x := range f.members {
			after := f.memory(x)
			heap := float64(after.Heap-before[x].Heap) / float64(want)
			resident := (after.resident - before[x].resident) / float64(want)
			f.b.Logf("%s: %d tunnels take %.0f B of heap in %.1f objects, %.0f B resident each", x, want, heap,
				float64(after.Objects-before[x].Objects)/float64(want), resident)
			switch k {
			case 0:
				f.report(heap, "owned-heap-B")
				f.report(resident, "owned-resident-B")
			case 1:
				f.report(heap, "standby-heap-B")
				f.report(resident, "standby-resident-B")
				if heap > copyMemory {
					f.b.Errorf("a standby's copy takes %.0f bytes, allowed are %d", heap, copyMemory)
				}
			}
		}
	}
	all := f.whole(time.Minute)
	// Where two clones have the same SPI there is but one.
	for missing := manyTunnels; missing > 0; {
		missing = manyTunnels
		for _, m := range f.members {
			missing -= all[m].Owned
		}
		if missing > 0 {
			f.must(f.members[0], "diagnose debug clone "+strconv.Itoa(missing), nil)
			all = f.whole(time.Minute)
		}
	}
	begin := time.Now()
	f.must(f.members[0], "get system ha status", nil)
	f.report(time.Since(begin).Seconds()*1000, "status-ms")
	for _, m := range f.members {
		x := f.memory(m)
		f.b.Logf("%s: owns %d, stands by for %d: %.0f MiB heap, %.0f MiB resident; empty %.0f MiB resident", m, all[m].Owned, all[m].Standby,
			float64(x.Heap)/(1<<20), x.resident/(1<<20), f.empty[m].resident/(1<<20))
		if p := os.Getenv("TANDEM_PROFILES"); p != "" {
			f.must(m, "diagnose debug profile heap "+filepath.Join(p, m+".heap"), nil)
		}
	}
}

// takeOver kills the first member's daemon. The others take its tunnels over; its
// guardian starts it again, and it is filled.
func (f *bigFarm) takeOver() {
	f.b.Helper()
	victim := f.members[0]
	whole := f.whole(time.Minute)[victim]
	had := whole.Owned
	for _, m := range f.members[1:] {
		f.must(m, "diagnose debug held", &held{}) // forgets older activations
	}
	pid, err := f.procs[victim].Daemon(false)
	if err != nil {
		f.b.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		f.b.Fatal(err)
	}
	defer unix.Close(fd)
	var profiles sync.WaitGroup
	if p := os.Getenv("TANDEM_PROFILES"); p != "" {
		for _, m := range f.members[1:] {
			file := filepath.Join(p, m+".takeover.cpu")
			_ = os.Remove(file)
			profiles.Go(func() { _ = f.command(m, "diagnose debug profile cpu "+file+" 3", nil) })
			eventually(f.b, 5*time.Second, m+" is profiled", func() bool { _, err := os.Stat(file); return err == nil })
		}
	}
	at := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		f.b.Fatal(err)
	}
	// Its memory is taken apart before anybody can know that it has ended.
	ended := endOf(f.b, fd)
	scopes, last := 0, time.Duration(0)
	if !holds(10*time.Second, func() bool {
		for _, m := range f.members[1:] {
			var h held
			if f.command(m, "diagnose debug held", &h) != nil {
				continue
			}
			for _, a := range h.Activated {
				scopes++
				last = max(last, time.Unix(0, a.At).Sub(at))
				f.b.Logf("%s: %s after %.1f ms", m, a.Scope, time.Unix(0, a.At).Sub(at).Seconds()*1000)
			}
		}
		return scopes >= 8
	}) {
		f.b.Fatalf("%d of 8 slots were taken over", scopes)
	}
	f.report(float64(had), "taken-over")
	activation := last - ended.Sub(at)
	f.report(float64(last.Microseconds())/1000, "kill-to-active-ms")
	f.report(float64(activation.Microseconds())/1000, "activation-ms")
	if activation > activateTime {
		f.b.Errorf("%d tunnels were active %v after their owner's end, allowed are %v", had, activation, activateTime)
	}
	profiles.Wait()
	f.refilled(victim, whole.Owned+whole.Standby)
}

// endOf waits for the end of a process.
func endOf(b *testing.B, pidfd int) time.Time {
	b.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000)
		if n == 1 {
			return time.Now()
		}
		if err != unix.EINTR {
			b.Fatalf("a killed process does not end: %v", err)
		}
	}
}

// refilled waits until the victim holds all again, as a fresh process, and then until it
// has its own slots again and everything is stood by for, which takes copies more.
func (f *bigFarm) refilled(victim string, all int) {
	f.b.Helper()
	var first, filled, final, started time.Time
	began, ended := 0, 0
	var last held
	profiled := false
	var profiles sync.WaitGroup
	defer profiles.Wait()
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond) // each look costs the member a millisecond
	defer tick.Stop()
	for final.IsZero() {
		if time.Now().After(deadline) {
			f.b.Fatalf("%s is not whole again: %+v\n%s", victim, last, f.tail(victim))
		}
		<-tick.C
		var h held
		if err := f.command(victim, "diagnose debug held", &h); err != nil {
			continue
		}
		last = h
		if p := os.Getenv("TANDEM_PROFILES"); p != "" && !profiled {
			profiled = true
			profiles.Go(func() { _ = f.command(victim, "diagnose debug profile cpu "+filepath.Join(p, "refill.cpu")+" 5", nil) })
			profiles.Go(func() {
				_ = f.command(f.members[1], "diagnose debug profile cpu "+filepath.Join(p, "refill-owner.cpu")+" 5", nil)
			})
		}
		started = time.Unix(0, h.Started)
		n := h.Owned + h.Standby
		if n == 0 || first.IsZero() {
			first, began = time.Now(), n
		}
		if n >= all && filled.IsZero() {
			filled, ended = time.Now(), n
		}
		if h.Whole && n >= all {
			final = time.Now()
		}
	}
	rate := float64(ended-began) / filled.Sub(first).Seconds()
	f.b.Logf("%s: %d tunnels %.2f s after it began, %d of them in %.2f s", victim, ended, filled.Sub(started).Seconds(), ended-began, filled.Sub(first).Seconds())
	f.report(rate, "refilled/s")
	f.report(filled.Sub(started).Seconds(), "refill-s")
	f.report(final.Sub(started).Seconds(), "whole-s")
	if rate < fillRate {
		f.b.Errorf("%.0f tunnels a second were copied to a fresh member, %d are wanted", rate, fillRate)
	}
}

func (f *bigFarm) close() {
	if f.done {
		return
	}
	f.done = true
	if p := os.Getenv("TANDEM_PROFILES"); p != "" {
		for n, x := range f.procs {
			if text, err := os.ReadFile(x.LogPath); err == nil {
				_ = os.WriteFile(filepath.Join(p, n+".log"), text, 0o600)
			}
		}
	}
	for _, p := range f.procs {
		_ = p.Kill()
	}
	if err := f.topo.Close(); err != nil {
		f.b.Error(err)
	}
}
