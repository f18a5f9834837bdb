package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

// Every program has two nodes of its own, so that none pays for what another has set
// up in its namespace:
//
//	a ── wan0 ═══ veth ═══ wan0 ── b        10.2.N.1 on a's loopback, 10.1.N.1 on b's
//	║║ hb0, hb1
//	s ── wan0, which leads nowhere          (the standby, of Tandem's pair only)
//
// iperf3, senders and receivers run on the gateways themselves. N is 1, or the number
// of the suite.
const (
	wanA = "192.0.2.1"
	wanB = "192.0.2.2"
	// innerMTU is the same for all, in bytes.
	innerMTU = 1420
)

// Layouts of the cable.
const (
	// Segments are cut by the sender's kernel. gro is on, but a veth device merges only
	// what comes from one without tso (drivers/net/veth.c): here it merges nothing.
	layoutNIC = "NIC-like"
	layoutUSO = "USO veth" // batches of up to 64 KB cross uncut
	// As the first, and without tso: the receiver's kernel merges.
	layoutGRO = "NIC-like, merging"
)

// offloads are ethtool's words by layout; each sets all that any of them changes.
var offloads = map[string][]string{
	layoutNIC: {"tx-udp-segmentation", "off", "gro", "on", "tso", "on"},
	layoutUSO: {"tx-udp-segmentation", "on", "gro", "off", "tso", "on"},
	layoutGRO: {"tx-udp-segmentation", "off", "gro", "on", "tso", "off"},
}

func innerA(n int) string { return fmt.Sprintf("10.2.%d.1", n) }
func innerB(n int) string { return fmt.Sprintf("10.1.%d.1", n) }

// program is one of those compared, running.
type program struct {
	bench.Program
	a, b   string // nodes
	number int    // of its inner addresses
	procs  []*lab.Process
	// check says what is wrong with it, and what was seen to be in order.
	check func(context.Context) ([]string, error)
}

func (p *program) innerA() string { return innerA(p.number) }
func (p *program) innerB() string { return innerB(p.number) }

// computed is what its gateways have computed so far, the standby included.
func (p *program) computed() (sum time.Duration, err error) {
	for _, pr := range p.procs {
		d, err := bench.CPUTime(pr.PID)
		if err != nil {
			return 0, fmt.Errorf("%s on %s has ended, see %s: %w", pr.Name, pr.Node, pr.LogPath, err)
		}
		sum += d
	}
	return sum, nil
}

// command runs argv in a node's namespace and returns what it printed.
func command(ctx context.Context, t *lab.Topology, node string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	started := make(chan error, 1)
	// The thread that starts it must outlive it, for Pdeathsig is about threads.
	go func() {
		started <- t.In(node, func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			// As the lab's own processes: no session goes ahead of another.
			_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte("-10"), 0)
			return cmd.Wait()
		})
	}()
	if err := <-started; err != nil {
		if ctx.Err() != nil {
			return out.String(), ctx.Err()
		}
		return out.String(), fmt.Errorf("%s: %s: %w: %s", node, strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// setLayout sets both ends of a program's cable.
func setLayout(ctx context.Context, t *lab.Topology, p *program, layout string) error {
	for _, n := range []string{p.a, p.b} {
		if _, err := command(ctx, t, n, append([]string{"ethtool", "-K", "wan0"}, offloads[layout]...)...); err != nil {
			return err
		}
	}
	return nil
}

// setMTU gives an inner interface the MTU that all have.
func setMTU(ctx context.Context, t *lab.Topology, node, dev string) error {
	_, err := command(ctx, t, node, "ip", "link", "set", "dev", dev, "mtu", fmt.Sprint(innerMTU), "up")
	return err
}

// reachable waits until the inner addresses of a program answer each other.
func reachable(ctx context.Context, t *lab.Topology, p *program) error {
	return poll(ctx, 20*time.Second, func() error {
		_, err := command(ctx, t, p.a, "ping", "-c", "1", "-W", "1", "-I", p.innerA(), p.innerB())
		if err != nil {
			err = fmt.Errorf("%s: no answer through the tunnel: %w", p.Name, err)
		}
		return err
	})
}

// poll calls f until it returns nil.
func poll(ctx context.Context, within time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last error
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if last == nil {
				last = err
			}
			return fmt.Errorf("not within %v: %w", within, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// suite of Tandem's.
type suite struct{ name, program string }

// suites by the number of their inner addresses, from 1.
var suites = []suite{{"aes128gcm", tandemName}, {"chacha20poly1305", tandemChaCha}, {"aes256gcm", tandemAES256}}

// build makes the network of all programs that are wanted.
func build(tandem, wireguard, charon, copying bool) (*lab.Topology, error) {
	var nodes []string
	var cables []lab.BenchCable
	lo := map[string][]string{}
	two := func(prefix string, addrA []string, numbers int) {
		a, b := prefix+"a", prefix+"b"
		nodes = append(nodes, a, b)
		for n := 1; n <= numbers; n++ {
			lo[a] = append(lo[a], innerA(n)+"/32")
			lo[b] = append(lo[b], innerB(n)+"/32")
		}
		cables = append(cables, lab.BenchCable{A: a, AIf: "wan0", B: b, BIf: "wan0", AAddrs: addrA, BAddrs: []string{wanB + "/24"}})
	}
	if tandem {
		two("gw", nil, len(suites)) // the active gateway puts the shared address there itself
		nodes = append(nodes, "gws")
		cables = append(cables, lab.BenchCable{A: "gws", AIf: "wan0", B: "gws", BIf: "nowhere"},
			lab.BenchCable{A: "gwa", AIf: "hb0", B: "gws", BIf: "hb0"}, lab.BenchCable{A: "gwa", AIf: "hb1", B: "gws", BIf: "hb1"})
	}
	for _, p := range []struct {
		prefix string
		wanted bool
	}{{"wg", wireguard}, {"ch", charon}, {"fw", copying}} {
		if p.wanted {
			two(p.prefix, []string{wanA + "/24"}, 1)
		}
	}
	if len(nodes) == 0 {
		return nil, errors.New("no program is to run")
	}
	return lab.BuildBench(nodes, lo, cables)
}
