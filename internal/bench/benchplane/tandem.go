package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

// tandems are the real daemons: a pair, of which the standby replicates, and the
// single peer that dials it.
type tandems struct {
	t       *lab.Topology
	bin     string
	seen    map[string]tandemSA // by phase 2, of the last check
	devices map[string]string   // inner interface by node
}

const (
	activeNode  = "gwa"
	standbyNode = "gws"
	peerNode    = "gwb"
)

// startTandem runs the pair and its peer, and waits until the standby has all tunnels.
func startTandem(ctx context.Context, t *lab.Topology, bin string) ([]*program, *tandems, error) {
	d := &tandems{t: t, bin: bin, seen: map[string]tandemSA{}, devices: map[string]string{activeNode: "vpn1", peerNode: "gw"}}
	if out, err := exec.CommandContext(ctx, bin, "cluster", "init", "--dir", filepath.Join(t.Dir, "cluster"), activeNode, standbyNode).CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("tandem cluster init: %w: %s", err, out)
	}
	var procs []*lab.Process
	for _, n := range []struct{ node, file, priority string }{{activeNode, "pair.conf", "200"}, {standbyNode, "pair.conf", "190"}, {peerNode, "peer.conf", ""}} {
		text, err := files.ReadFile("conf/" + n.file)
		if err != nil {
			return nil, nil, err
		}
		conf := strings.NewReplacer("@DIR@", t.Dir, "@NODE@", n.node, "@PRIORITY@", n.priority).Replace(string(text))
		path := filepath.Join(t.Dir, n.node+".conf")
		if err := errors.Join(os.MkdirAll(filepath.Join(t.Dir, n.node), 0o700), os.WriteFile(path, []byte(conf), 0o600)); err != nil {
			return nil, nil, err
		}
		p, err := t.Start(n.node, n.node, []string{bin, "run", "--config", path, "--log-format", "json"}, nil)
		if err != nil {
			return nil, nil, err
		}
		procs = append(procs, p)
		if n.node == activeNode { // before the other one, so that nobody needs to be elected
			if err := poll(ctx, 20*time.Second, func() error { _, err := d.ha(ctx, activeNode); return err }); err != nil {
				return nil, nil, err
			}
		}
	}
	var programs []*program
	for i, s := range suites {
		programs = append(programs, &program{Program: bench.Program{Name: s.program, About: "a pair whose standby replicates, and a single peer; " + s.name},
			a: activeNode, b: peerNode, number: i + 1, procs: procs, check: func(ctx context.Context) ([]string, error) { return d.check(ctx, s.name) }})
	}
	if err := poll(ctx, 30*time.Second, func() error { return d.covered(ctx) }); err != nil {
		return nil, nil, err
	}
	for node, dev := range d.devices {
		if err := setMTU(ctx, t, node, dev); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range programs {
		if err := reachable(ctx, t, p); err != nil {
			return nil, nil, err
		}
	}
	return programs, d, nil
}

func (d *tandems) ask(ctx context.Context, node string, into any, words ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	args := append(words, "--json", "--socket", filepath.Join(d.t.Dir, node, "admin.sock"))
	cmd := exec.CommandContext(ctx, d.bin, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %s: %w: %s", node, strings.Join(words, " "), err, strings.TrimSpace(errs.String()))
	}
	return json.Unmarshal(out, into)
}

func (d *tandems) ha(ctx context.Context, node string) (s lab.HAStatus, err error) {
	return s, d.ask(ctx, node, &s, "get", "system", "ha", "status")
}

// covered says what keeps the pair from being one whose standby holds everything.
func (d *tandems) covered(ctx context.Context) error {
	a, err := d.ha(ctx, activeNode)
	if err != nil {
		return err
	}
	s, err := d.ha(ctx, standbyNode)
	switch {
	case err != nil:
		return err
	case a.Role != lab.RolePrimary || s.Role != lab.RoleSecondary:
		return fmt.Errorf("the pair's roles are %s and %s", a.Role, s.Role)
	case !a.Synchronised || a.Alone:
		return errors.New("the standby is not in the sync set")
	case a.Tunnels == 0 || s.Tunnels != a.Tunnels:
		return fmt.Errorf("the active gateway holds %d tunnels, the standby %d", a.Tunnels, s.Tunnels)
	}
	return nil
}

// tandemSA is what is looked at of a Child SA in `diagnose vpn tunnel list --json`.
type tandemSA struct {
	Outbound     bool     `json:"outbound"`
	Suite        string   `json:"suite"`
	ReplayWindow uint32   `json:"replaywin"`
	Seqno        uint64   `json:"seqno"`
	Ceiling      uint64   `json:"ceiling"`
	Fence        uint64   `json:"fence"`
	LastSeq      uint64   `json:"replaywin_lastseq"`
	InBytes      uint64   `json:"in_bytes"`
	OutBytes     uint64   `json:"out_bytes"`
	InPackets    uint64   `json:"in_packets"`
	OutPackets   uint64   `json:"out_packets"`
	FenceWidened uint64   `json:"fence_widened"`
	Src          []string `json:"src"`
	Dst          []string `json:"dst"`
}

type tandemTunnel struct {
	Selectors []struct {
		Name string     `json:"name"`
		SAs  []tandemSA `json:"sas"`
	} `json:"proxyids"`
}

func (d *tandems) sa(ctx context.Context, phase2 string) (tandemSA, error) {
	var tunnels []tandemTunnel
	if err := d.ask(ctx, activeNode, &tunnels, "diagnose", "vpn", "tunnel", "list"); err != nil {
		return tandemSA{}, err
	}
	for _, t := range tunnels {
		for _, s := range t.Selectors {
			for _, sa := range s.SAs {
				if s.Name == phase2 && sa.Outbound {
					return sa, nil
				}
			}
		}
	}
	return tandemSA{}, fmt.Errorf("no Child SA of %s sends", phase2)
}

// endless is beyond what a ceiling or a fence of any SA reaches here in an hour. One
// that is higher bounds nothing.
const endless = 1 << 36

// faults lists what is switched off on an SA, or does not bound what was sent or
// delivered. Seqno is the next to send.
func (sa *tandemSA) faults() (list []string) {
	add := func(bad bool, format string, args ...any) {
		if bad {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	add(sa.ReplayWindow < 64, "the replay window is %d", sa.ReplayWindow)
	add(sa.Ceiling == 0 || sa.Ceiling >= endless, "no ceiling bounds what is sent: %d", sa.Ceiling)
	add(sa.Seqno > 0 && sa.Seqno-1 > sa.Ceiling, "sequence number %d was sent above the ceiling %d", sa.Seqno-1, sa.Ceiling)
	add(sa.Fence == 0 || sa.Fence >= endless, "no fence bounds what is delivered: %d", sa.Fence)
	add(sa.LastSeq > sa.Fence, "sequence number %d was delivered above the fence %d", sa.LastSeq, sa.Fence)
	add(len(sa.Src) != 1 || len(sa.Dst) != 1 || !strings.Contains(sa.Src[0], ":10.2.") || !strings.Contains(sa.Dst[0], ":10.1."),
		"the selectors are %v to %v", sa.Src, sa.Dst)
	return list
}

// check fails unless the standby replicates and ceilings, fences, selectors, firewall
// policies and counters are at work for a suite, now and since the last check.
func (d *tandems) check(ctx context.Context, phase2 string) ([]string, error) {
	if err := d.covered(ctx); err != nil {
		return nil, err
	}
	sa, err := d.sa(ctx, phase2)
	if err != nil {
		return nil, err
	}
	if faults := sa.faults(); len(faults) > 0 {
		return nil, errors.New(strings.Join(faults, "; "))
	}
	said := []string{fmt.Sprintf("%s: the standby holds all; replay window %d, sequence number %d below ceiling %d, delivered %d below fence %d (lead × %d), selectors %s to %s, %d packets in, %d out",
		phase2, sa.ReplayWindow, sa.Seqno, sa.Ceiling, sa.LastSeq, sa.Fence, sa.FenceWidened, sa.Src[0], sa.Dst[0], sa.InPackets, sa.OutPackets)}
	for node, dev := range d.devices {
		rules, err := command(ctx, d.t, node, "nft", "list", "table", "inet", "tandem")
		if err != nil {
			return nil, fmt.Errorf("firewall policies: %w", err)
		}
		if !strings.Contains(rules, "hook forward") || !strings.Contains(rules, `iifname "`+dev+`" counter`) {
			return nil, fmt.Errorf("%s: the firewall policies are not installed: %s", node, rules)
		}
	}
	said = append(said, phase2+": firewall policies installed on both gateways")
	if was, ok := d.seen[phase2]; ok {
		if sa.InBytes <= was.InBytes || sa.OutBytes <= was.OutBytes || sa.InPackets <= was.InPackets || sa.OutPackets <= was.OutPackets {
			return nil, fmt.Errorf("%s: the counters did not count", phase2)
		}
		if sa.Ceiling <= was.Ceiling || sa.Fence <= was.Fence {
			return nil, fmt.Errorf("%s: ceiling or fence did not move: %d to %d, %d to %d", phase2, was.Ceiling, sa.Ceiling, was.Fence, sa.Fence)
		}
	}
	d.seen[phase2] = sa
	return said, nil
}
