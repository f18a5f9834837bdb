package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

// BenchmarkSetup measures what replication adds to setting up a tunnel, at each of
// several rates: three members and a gateway alone take turns of a second or so.
// TANDEM_BENCH_RATES=50,200 chooses the rates, TANDEM_BENCH_SECONDS how long each is held.
func BenchmarkSetup(b *testing.B) {
	needRoot(b)
	needs.Program(b, "ip")
	seconds := 10.0
	if n, err := strconv.ParseFloat(os.Getenv("TANDEM_BENCH_SECONDS"), 64); err == nil {
		seconds = n
	}
	rates := []float64{50, 100, 200, 300, 400, 500}
	if text := os.Getenv("TANDEM_BENCH_RATES"); text != "" {
		rates = nil
		for _, w := range strings.Split(text, ",") {
			n, err := strconv.ParseFloat(w, 64)
			if err != nil {
				b.Fatal(err)
			}
			rates = append(rates, n)
		}
	}
	for range b.N {
		f := newBigFarm(b)
		g := newInitiators(b, f.topo, clientsNode, secretOfMany)
		single := netip.MustParseAddr("192.168.128.254")
		at := 0
		dial := func(gw netip.Addr, n int, rate float64) ([]time.Duration, float64) {
			w, r := g.dial(gw, at, n, rate)
			at += n
			return w, r
		}
		dial(lab.FarmLoopback, 200, 200) // the first ones meet cold code
		dial(single, 200, 200)
		for _, rate := range rates {
			f.setUpAt(dial, single, rate, seconds)
		}
		if p := os.Getenv("TANDEM_PROFILES"); p != "" {
			for _, m := range f.members {
				f.must(m, "diagnose debug profile heap "+filepath.Join(p, m+".setup.heap"), nil)
			}
		}
		f.close()
	}
	b.ReportMetric(0, "ns/op")
}

// setUpAt reports one rate.
func (f *bigFarm) setUpAt(dial func(netip.Addr, int, float64) ([]time.Duration, float64), single netip.Addr, rate, seconds float64) {
	f.b.Helper()
	var farm, alone []time.Duration
	var reached, turns, idle, stolen float64
	for done := 0.0; done < seconds; done++ {
		before := processorTime(f.b)
		w, r := dial(lab.FarmLoopback, int(rate), rate)
		i, s := processorTime(f.b).since(before)
		idle, stolen = idle+i, stolen+s
		farm, reached, turns = append(farm, w...), reached+r, turns+1
		w, _ = dial(single, int(rate), rate)
		alone = append(alone, w...)
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	line := fmt.Sprintf("%4.0f/s (%.0f reached, %.0f%% idle, %.1f%% stolen):", rate, reached/turns, 100*idle/turns, 100*stolen/turns)
	for _, q := range []float64{0.5, 0.9, 0.99} {
		x, y := quantileOf(farm, q), quantileOf(alone, q)
		line += fmt.Sprintf("  p%g %.2f - %.2f = %.2f ms", 100*q, ms(x), ms(y), ms(x-y))
	}
	fmt.Println(line)
}

// processor is time of all cores since the machine began, in ticks.
type processor struct{ idle, stolen, all float64 }

func processorTime(b *testing.B) (p processor) {
	b.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	for i, w := range strings.Fields(first)[1:] {
		n, err := strconv.ParseFloat(w, 64)
		if err != nil {
			b.Fatal(err)
		}
		if i == 3 || i == 4 { // idle, iowait
			p.idle += n
		}
		if i == 7 {
			p.stolen = n // by the machine's host
		}
		if i < 8 { // guests are counted as users, too
			p.all += n
		}
	}
	return p
}

// since is which parts of the time since then were idle, and stolen.
func (p processor) since(q processor) (idle, stolen float64) {
	return (p.idle - q.idle) / (p.all - q.all), (p.stolen - q.stolen) / (p.all - q.all)
}
