package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

// What a pair's gateway has to reach beside charon.
const (
	rateRatio   = 2.0 // set-ups a second on one core, replicated, to charon's
	memoryRatio = 0.5 // bytes of an idle tunnel to charon's
	rateWindow  = 48  // set-ups under way at any time
)

// BenchmarkSetupRate sets tunnels up as fast as a gateway can on one core: a pair's active
// gateway, whose standby and clients have the other core, and charon, which logs nothing,
// in turn. IKE_SA_INIT and IKE_AUTH, pre-shared key, X25519, AES-128-GCM for both. Then it
// compares what the tunnels, idle, take of memory. TANDEM_BENCH_ROUNDS and
// TANDEM_BENCH_ROUND are the rounds, and the tunnels of one.
func BenchmarkSetupRate(b *testing.B) {
	needRoot(b)
	needs.Program(b, "ip")
	if _, _, err := lab.FindCharon(); err != nil {
		needs.Missing(b, err.Error())
	}
	b.Setenv("TANDEM_BINARY", breakpointProgram(b)) // it can collect its garbage when told
	rounds, size := number("TANDEM_BENCH_ROUNDS", 6), number("TANDEM_BENCH_ROUND", 500)
	for range b.N {
		compareRates(b, rounds, size)
	}
	b.ReportMetric(0, "ns/op")
}

func number(env string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return n
	}
	return def
}

// pin keeps a process with all its threads on one core.
func pin(b *testing.B, pid, core int) {
	b.Helper()
	var set unix.CPUSet
	set.Set(core)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is well formed
	for _, t := range tasks {
		tid, err := strconv.Atoi(filepath.Base(t))
		if err == nil {
			err = unix.SchedSetaffinity(tid, &set)
		}
		if err != nil && err != unix.ESRCH {
			b.Fatal(err)
		}
	}
}

func compareRates(b *testing.B, rounds, size int) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		b.Fatal(err)
	}

	w := newCrowd(b, gatewayOf(false, "set nattraversal forced", 1))
	defer w.close()
	w.ip(lab.NodeClient, "route add local 198.18.0.0/15 dev lo")
	for _, node := range lab.Gateways {
		w.ip(node, "route add 198.18.0.0/15 via 192.0.2.10 dev wan0 onlink")
	}
	w.synchronised(0)
	gw := netip.MustParseAddr("192.0.2.1")
	const secret = "a secret of gateway and clients"
	change := []string{"nattraversal disable", "nattraversal forced", "10.200.0.0 255.255.0.0", "10.2.0.0 255.255.255.0"}
	ours := newInitiators(b, w.topo, lab.NodeClient, secret, change...)

	topo, err := lab.Build("", lab.Plan{Nodes: []lab.PlanNode{{Name: "c"}, {Name: "ch", Addrs: []string{"10.2.0.1/24"}}},
		Cables: []lab.PlanCable{{A: "c", AIf: "wan0", B: "ch", BIf: "wan0", AAddrs: []string{"192.0.2.10/24"}, BAddrs: []string{"192.0.2.1/24"}}}})
	if err != nil {
		b.Fatal(err)
	}
	defer topo.Close()
	ipIn(b, topo, "c", "route add local 198.18.0.0/15 dev lo")
	ipIn(b, topo, "ch", "route add 198.18.0.0/15 via 192.0.2.10")
	ch, err := topo.StartCharon(ctx, lab.CharonConfig{Node: "ch", Silent: true, Settings: `
  dos_protection = no
  ikesa_table_size = 4096
  ikesa_table_segments = 16`, Swanctl: fmt.Sprintf(`
connections { gw {
    version = 2
    local_addrs = 192.0.2.1
    remote_addrs = %%any
    encap = yes
    proposals = aes128gcm16-prfsha256-x25519
    mobike = no
    unique = never
    local { auth = psk
        id = 192.0.2.1 }
    remote { auth = psk
        id = %%any }
    children { net {
        local_ts = 10.2.0.0/24
        remote_ts = 10.16.0.0/12
        esp_proposals = aes128gcm16-x25519
    } }
} }
secrets { ike { secret = "%s" } }
`, secret)})
	if err != nil {
		b.Fatal(err)
	}
	defer ch.Stop()
	theirs := newInitiators(b, topo, "c", secret, change...)

	daemons := map[string]int{}
	for node, p := range w.nodes {
		core := 1
		if node == w.active {
			core = 0
		}
		d, err := p.Daemon(false)
		if err != nil {
			b.Fatal(err)
		}
		daemons[node] = d
		pin(b, p.PID, core)
		pin(b, d, core)
	}
	pin(b, ch.PID(), 0)
	pin(b, os.Getpid(), 1)
	defer func() {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", os.Getpid()))
		for _, t := range tasks {
			if tid, err := strconv.Atoi(filepath.Base(t)); err == nil {
				_ = unix.SchedSetaffinity(tid, &before)
			}
		}
	}()

	resident := func(pid int) float64 {
		c, err := used(pid)
		if err != nil {
			b.Fatal(err)
		}
		return c.resident * (1 << 20)
	}
	collected := func(node string) memory {
		var m memory
		if !w.ask(node, "diagnose debug memory", &m) {
			b.Fatal(node + " does not answer")
		}
		m.resident = resident(daemons[node])
		return m
	}
	ours.saturate(gw, 0, 100, rateWindow) // the first ones meet cold code
	theirs.saturate(gw, 0, 100, rateWindow)
	empty, emptyStandby, emptyTheirs := collected(w.active), collected(w.standby()), resident(ch.PID())
	var a, c, ratios []float64
	cpu := func(pid int) time.Duration {
		u, err := used(pid)
		if err != nil {
			b.Fatal(err)
		}
		return u.cpu
	}
	var cpuOurs, cpuTheirs time.Duration
	if p := os.Getenv("TANDEM_PROFILES"); p != "" {
		go w.ask(w.active, "diagnose debug profile cpu "+filepath.Join(p, "rate.cpu"), new(struct{}))
	}
	for i := range rounds {
		from := 100 + i*size
		x := cpu(daemons[w.active])
		a = append(a, ours.saturate(gw, from, size, rateWindow))
		cpuOurs += cpu(daemons[w.active]) - x
		x = cpu(ch.PID())
		c = append(c, theirs.saturate(gw, from, size, rateWindow))
		cpuTheirs += cpu(ch.PID()) - x
		ratios = append(ratios, a[i]/c[i])
		fmt.Printf("round %d: %.0f/s, charon %.0f/s, ratio %.2f\n", i, a[i], c[i], ratios[i])
	}
	n := float64(rounds * size)
	w.synchronised(100 + rounds*size)
	full, fullStandby := collected(w.active), collected(w.standby())
	perTunnel := (full.resident - empty.resident) / n
	perCopy := (fullStandby.resident - emptyStandby.resident) / n
	perTheirs := (resident(ch.PID()) - emptyTheirs) / n
	median := func(x []float64) float64 { x = slices.Clone(x); slices.Sort(x); return x[len(x)/2] }
	ratio := median(ratios)
	b.ReportMetric(median(a), "setups/s")
	b.ReportMetric(median(c), "charon-setups/s")
	b.ReportMetric(ratio, "ratio")
	b.ReportMetric(cpuOurs.Seconds()*1000/n, "ms-cpu/setup")
	b.ReportMetric(cpuTheirs.Seconds()*1000/n, "charon-ms-cpu/setup")
	b.ReportMetric(perTunnel, "B/tunnel")
	b.ReportMetric(perCopy, "B/copy")
	b.ReportMetric(perTheirs, "charon-B/tunnel")
	b.ReportMetric(perTunnel/perTheirs, "memory-ratio")
	fmt.Printf("%d tunnels on one core: %.0f/s, charon %.0f/s, ratio %.2f in the median; %.2f and %.2f ms of the daemons' processor time each; an idle tunnel %.0f bytes (heap %.0f, a copy %.0f), charon's %.0f, ratio %.2f\n",
		rounds*size, median(a), median(c), ratio, cpuOurs.Seconds()*1000/n, cpuTheirs.Seconds()*1000/n,
		perTunnel, float64(full.Heap-empty.Heap)/n, perCopy, perTheirs, perTunnel/perTheirs)
	if p := os.Getenv("TANDEM_PROFILES"); p != "" {
		w.ask(w.active, "diagnose debug profile heap "+filepath.Join(p, "rate.heap"), new(struct{}))
	}
	if ratio < rateRatio {
		b.Errorf("%.2f times charon's rate, wanted are %.0f", ratio, rateRatio)
	}
	if perTunnel > memoryRatio*perTheirs {
		b.Errorf("an idle tunnel takes %.0f bytes, charon's %.0f", perTunnel, perTheirs)
	}
}
