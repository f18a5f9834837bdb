package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Gateway is a node under test.
type Gateway struct {
	Name   string
	Config string // path of its configuration
	Socket string // admin socket
	proc   *Process
	lost   bool // its links are cut and its processes killed
	// devices whose addresses the daemon makes, so that a lost host forgets them
	devices []string
}

// daemonSet is how the lab runs and asks the programs of its nodes.
type daemonSet struct {
	bin    string
	status StatusFunc
	// argv starts a node; the default is BIN run --config FILE.
	argv    func(node, config string) []string
	cluster string // folder of its certificates within the lab's; empty: "cluster"
	witness string // a voter that gets a certificate, too; empty: there is none
	// single: the node has no guardian; its one process is the daemon.
	single bool
}

func (t *Topology) socketOf(node string) string { return filepath.Join(t.Dir, node, "admin.sock") }

// prepareGateways writes the configurations of nodes from the example's, with @DIR@
// and more filled in, and makes the cluster's certificates.
func (t *Topology) prepareGateways(ctx context.Context, d *daemonSet, example string, nodes []string, more ...string) (map[string]*Gateway, error) {
	all := map[string]*Gateway{}
	for _, n := range nodes {
		text, err := os.ReadFile(filepath.Join(example, n+".conf"))
		if err != nil {
			return nil, err
		}
		g := &Gateway{Name: n, Config: filepath.Join(t.Dir, n+".conf"), Socket: t.socketOf(n)}
		if err := os.MkdirAll(filepath.Join(t.Dir, n), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(g.Config, []byte(t.fill(string(text), more...)), 0o600); err != nil {
			return nil, err
		}
		all[n] = g
	}
	if d.bin != "" {
		args := []string{"cluster", "init", "--dir", filepath.Join(t.Dir, cmp.Or(d.cluster, "cluster"))}
		if d.witness != "" {
			args = append(args, "--witness", d.witness)
		}
		args = append(args, nodes...)
		if out, err := exec.CommandContext(ctx, d.bin, args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("tandem %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return all, nil
}

func (t *Topology) fill(text string, more ...string) string {
	return strings.NewReplacer(append([]string{"@DIR@", t.Dir}, more...)...).Replace(text)
}

// startGateway starts a node's guardian.
func (t *Topology) startGateway(d *daemonSet, g *Gateway) error {
	argv := []string{d.bin, "run", "--config", g.Config, "--log-format", "json"}
	if d.argv != nil {
		argv = d.argv(g.Name, g.Config)
	}
	p, err := t.Start(g.Name, g.Name, argv, nil)
	if err != nil {
		return err
	}
	g.proc = p
	return nil
}

// pids are the guardian's and the daemon's.
func (g *Gateway) pids(d *daemonSet) (guardian, daemon int, err error) {
	daemon, err = g.proc.Daemon(d.single)
	return g.proc.PID, daemon, err
}

// signalled is a process with its start time, so that a signal sent later never
// meets another process of the same number.
type signalled struct {
	pid   int
	start uint64
}

func identify(pid int) (signalled, error) {
	s, err := processStart(pid)
	return signalled{pid, s}, err
}

func identifyAll(pids []int) ([]signalled, error) {
	var all []signalled
	for _, pid := range pids {
		p, err := identify(pid)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// sendAll signals one after another; false if one of them is gone.
func sendAll(all []signalled, sig syscall.Signal) bool {
	lived := true
	for _, p := range all {
		lived = p.send(sig) && lived
	}
	return lived
}

// send sends a signal; false if the process is gone.
func (s signalled) send(sig syscall.Signal) bool {
	now, err := processStart(s.pid)
	return err == nil && now == s.start && syscall.Kill(s.pid, sig) == nil
}

// lose takes whole hosts away: their processes stand still at once, so that
// nobody says goodbye; then their links are cut and the processes end.
func (t *Topology) lose(d *daemonSet, gs ...*Gateway) (at time.Time, err error) {
	var pids, daemons []int
	for _, g := range gs {
		guardian, daemon, err := g.pids(d)
		if err != nil {
			return time.Time{}, err
		}
		pids, daemons = append(pids, daemon, guardian), append(daemons, daemon)
	}
	at = timeNow()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	var errs []error
	for i, g := range gs {
		errs = append(errs, t.CutNode(g.Name))
		_ = syscall.Kill(daemons[i], syscall.SIGKILL)
		errs = append(errs, g.proc.Kill())
		g.lost = true
	}
	return at, errors.Join(errs...)
}

// restore brings a lost host, or one whose guardian has ended, back.
func (t *Topology) restore(d *daemonSet, g *Gateway) error {
	if g.lost {
		// Whatever the daemon left on the host's interfaces dies with a real
		// host: addresses that it put there go before the links come up.
		if err := t.clearAddresses(g.Name, g.devices); err != nil {
			return err
		}
		if err := t.RestoreNode(g.Name); err != nil {
			return err
		}
		g.lost = false
	}
	if g.proc.Running() {
		return nil
	}
	return t.startGateway(d, g)
}

// clearAddresses removes global addresses from a gateway's own interfaces.
func (t *Topology) clearAddresses(node string, devices []string) error {
	for _, dev := range devices {
		link, err := t.link(node, dev)
		if err != nil {
			return err
		}
		addrs, err := t.nl[node].AddrList(link, syscall.AF_UNSPEC)
		if err != nil {
			return err
		}
		for i := range addrs {
			if addrs[i].IP.IsLinkLocalUnicast() {
				continue
			}
			if err := t.nl[node].AddrDel(link, &addrs[i]); err != nil {
				return fmt.Errorf("%s/%s: %w", node, dev, err)
			}
		}
	}
	return nil
}
