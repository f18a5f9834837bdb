package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

// Programs.
const (
	tandemName    = "tandem"
	tandemChaCha  = "tandem-chacha20"
	tandemAES256  = "tandem-aes256"
	wireguardName = "wireguard-go"
	charonName    = "kernel-libipsec"
	forwardName   = "forwarding"
)

// Measures.
const (
	tcp1    = "TCP, 1 stream"
	tcp4    = "TCP, 4 streams"
	packets = "64-byte UDP"
)

// pollShort is for what takes a moment.
const pollShort = 10 * time.Second

// floors that the subject has to reach.
func floors() (all []bench.Floor) {
	for _, l := range []struct {
		layout      string
		floor, goal float64
		told        bool
	}{{layoutNIC, 3, 4.5, false}, {layoutUSO, 2, 4, false}, {layoutGRO, 3, 4.5, true}} {
		for _, m := range []string{tcp1, tcp4} {
			all = append(all,
				bench.Floor{Name: "TCP ÷ wireguard-go", Over: wireguardName, Layout: l.layout, Measure: m, Metric: bench.Rate, Floor: l.floor, Goal: l.goal, Told: l.told},
				bench.Floor{Name: "CPU-s per GB ÷ wireguard-go", Over: wireguardName, Layout: l.layout, Measure: m, Metric: bench.CPU, Floor: 0.35, Goal: 0.2, Told: l.told},
				bench.Floor{Name: "TCP ÷ kernel-libipsec", Over: charonName, Layout: l.layout, Measure: m, Metric: bench.Rate, Floor: 5, Goal: 10, Told: l.told},
				bench.Floor{Name: "TCP ÷ forwarding", Over: forwardName, Layout: l.layout, Measure: m, Metric: bench.Rate, Floor: 0.35, Goal: 0.6, Told: l.told})
		}
	}
	return append(all, bench.Floor{Name: "packets ÷ wireguard-go", Over: wireguardName, Layout: layoutNIC, Measure: packets, Metric: bench.Rate, Floor: 3, Goal: 8})
}

// options of a run.
type options struct {
	tandem, wireguard string // programs
	rounds, seconds   int
	latencySeconds    int
	programs, layouts []string
	limit             time.Duration
	profile           string    // folder
	progress          io.Writer // lines while it runs
}

// run is one benchmark.
type run struct {
	o        options
	t        *lab.Topology
	self     string
	began    time.Time
	programs []*program
	tandems  *tandems
	servers  servers
	stream   int            // number of the last stream of packets
	bestRate map[string]int // at which most packets of a program were delivered in a layout
	res      bench.Result
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.o.progress, "%7.1fs  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// measure runs everything. The network is removed whatever happens. A run that is cut
// short by its limit has the rounds that it completed.
func measure(ctx context.Context, o options) (res *bench.Result, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r := &run{o: o, self: self, began: time.Now(), bestRate: map[string]int{}}
	wants := func(name string) bool { return slices.Contains(o.programs, name) }
	wantsTandem := slices.ContainsFunc(o.programs, func(n string) bool { return strings.HasPrefix(n, tandemName) })
	r.say("building the network")
	if r.t, err = build(wantsTandem, wants(wireguardName), wants(charonName), wants(forwardName)); err != nil {
		return nil, err
	}
	defer func() {
		r.say("removing the network")
		err = errors.Join(err, r.t.Close(), removeSockets())
	}()
	r.servers = servers{t: r.t, all: map[string]*lab.Process{}}
	if err := r.start(ctx, wants, wantsTandem); err != nil {
		return nil, err
	}
	r.describe()
	deadline := r.began.Add(o.limit)
	for _, layout := range o.layouts {
		if err := r.layout(ctx, layout, deadline); err != nil {
			return nil, err
		}
	}
	for _, p := range r.programs {
		if p.check == nil {
			continue
		}
		said, err := p.check(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s after the measurements: %w", p.Name, err)
		}
		r.res.Checks = append(r.res.Checks, said...)
	}
	if o.profile != "" {
		if err := r.profiles(ctx); err != nil {
			return nil, fmt.Errorf("profiles: %w", err)
		}
	}
	return &r.res, nil
}

// start runs the programs, in the order in which they take turns.
func (r *run) start(ctx context.Context, wants func(string) bool, wantsTandem bool) error {
	if wants(wireguardName) {
		r.say("starting wireguard-go")
		p, err := startWireGuard(ctx, r.t, r.o.wireguard)
		if err != nil {
			return err
		}
		r.programs = append(r.programs, p)
	}
	if wantsTandem {
		r.say("starting a pair of Tandems, and their peer")
		all, d, err := startTandem(ctx, r.t, r.o.tandem)
		if err != nil {
			return fmt.Errorf("%w%s", err, r.keepLogs(ctx))
		}
		r.tandems = d
		for _, p := range all {
			if wants(p.Name) {
				r.programs = append(r.programs, p)
			}
		}
	}
	if wants(charonName) {
		r.say("starting strongSwan with kernel-libipsec")
		p, err := startCharon(ctx, r.t)
		if err != nil {
			return err
		}
		r.programs = append(r.programs, p)
	}
	if wants(forwardName) {
		r.say("starting forwarders without crypto")
		p, err := startForward(ctx, r.t)
		if err != nil {
			return err
		}
		r.programs = append(r.programs, p)
	}
	return nil
}

// describe writes down what is compared, and where.
func (r *run) describe() {
	for _, p := range r.programs {
		r.res.Programs = append(r.res.Programs, p.Program)
	}
	r.res.Subject, r.res.Seconds = tandemName, r.o.seconds
	r.res.Date = r.began.UTC().Format("2006-01-02")
	r.res.Commit = commit()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	r.res.Machine = fmt.Sprintf("%s, %d processors, Linux %s, %s", processor(), runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}

// commit is the tree's, with a mark where files differ from it.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t: "))
		}
	}
	return runtime.GOARCH
}

// layout measures all programs in turn, round by round.
func (r *run) layout(ctx context.Context, layout string, deadline time.Time) error {
	for _, p := range r.programs {
		if err := setLayout(ctx, r.t, p, layout); err != nil {
			return err
		}
		if p.check != nil {
			if _, err := p.check(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
		}
	}
	measures := []string{tcp1, tcp4}
	if layout == layoutNIC {
		measures = append(measures, packets)
	}
	longest := time.Duration(0)
	for round := 1; round <= r.o.rounds; round++ {
		began := time.Now()
		if round > 1 && began.Add(longest).After(deadline) {
			r.note("%s: stopped after %d rounds of %d, to end in time", layout, round-1, r.o.rounds)
			break
		}
		for _, m := range measures {
			line := ""
			for _, p := range r.programs {
				s, err := r.sample(ctx, p, layout, m)
				if err != nil {
					return fmt.Errorf("%s, %s, round %d: %w%s", layout, m, round, err, r.keepLogs(ctx))
				}
				s.Program, s.Layout, s.Measure, s.Round = p.Name, layout, m, round
				r.res.Samples = append(r.res.Samples, s)
				line += fmt.Sprintf("  %s %s", p.Name, bench.RateText(m == packets, s.Rate))
			}
			r.say("%s, round %d, %s:%s", layout, round, m, line)
		}
		longest = max(longest, time.Since(began))
		r.res.Rounds = max(r.res.Rounds, round)
	}
	return r.latencies(ctx, layout)
}

func (r *run) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.res.Notes = append(r.res.Notes, text)
	r.say("%s", text)
}

func (r *run) sample(ctx context.Context, p *program, layout, measure string) (bench.Sample, error) {
	switch measure {
	case tcp1:
		return r.tcpSample(ctx, p, 1)
	case tcp4:
		return r.tcpSample(ctx, p, 4)
	}
	return r.packetsSample(ctx, p, layout)
}

// latencies are taken in the first layout, for the tunnels that are compared most.
func (r *run) latencies(ctx context.Context, layout string) error {
	if layout != r.o.layouts[0] || r.o.latencySeconds == 0 {
		return nil
	}
	for _, p := range r.programs {
		if p.Name != tandemName && p.Name != wireguardName {
			continue
		}
		most := r.res.Figures(p.Name, layout, tcp1, func(s bench.Sample) float64 { return s.Out }).Median
		l, err := r.latency(ctx, p, layout, most/2)
		if err != nil {
			return err
		}
		r.res.Latency = append(r.res.Latency, l)
		r.say("%s, pings through %s at %s: p50 %.2f ms, p99 %.2f ms (bare cable with the same load %.2f and %.2f ms), %d of %d lost",
			layout, p.Name, bench.RateText(false, l.Load), l.P50, l.P99, l.BareP50, l.BareP99, l.Lost, l.Probes)
	}
	return nil
}

// keepLogs copies what the programs wrote to a folder that stays, and names it; nothing
// where somebody has interrupted the run.
func (r *run) keepLogs(ctx context.Context) string {
	if ctx.Err() != nil {
		return ""
	}
	dir, err := os.MkdirTemp("", "benchplane")
	if err != nil {
		return ", and no logs: " + err.Error()
	}
	logs, _ := filepath.Glob(filepath.Join(r.t.Dir, "*.log")) // the pattern is well formed
	for _, l := range append(logs, filepath.Join(r.t.Dir, "charon-cha", "log"), filepath.Join(r.t.Dir, "charon-chb", "log")) {
		if text, err := os.ReadFile(l); err == nil {
			rel, _ := filepath.Rel(r.t.Dir, l)
			_ = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(rel, "/", "-")), text, 0o600)
		}
	}
	return ", logs in " + dir
}

// removeSockets takes away what wireguard-go leaves outside of networks that are gone.
func removeSockets() error {
	left, _ := filepath.Glob(filepath.Join(wgSockets, wgPrefix+"*.sock")) // the pattern is well formed
	var errs []error
	for _, s := range left {
		id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(s), wgPrefix), ".sock")
		if id == "" || !lab.Standing(id[:len(id)-1]) { // without the side
			errs = append(errs, os.Remove(s))
		}
	}
	return errors.Join(errs...)
}
