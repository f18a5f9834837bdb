package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// vclusters is the network of examples/vcluster with both gateways and the lone Tandem,
// made for tests that look into it instead of measuring it.
type vclusters struct {
	*site
	gws    map[string]*gateway
	branch *gateway
}

// vclusterHA is what these tests read of `get system ha status --json`.
type vclusterHA struct {
	VClusters []struct {
		ID           int    `json:"id"`
		Role         string `json:"role"`
		Synchronised bool   `json:"synchronised"`
		Epoch        uint64 `json:"epoch"`
		Owner        string `json:"owner"`
	} `json:"vclusters"`
}

// newVClusters starts the gateways, waits until each owns the virtual cluster that it goes
// first for, and starts the branch.
func newVClusters(t *testing.T) *vclusters {
	t.Helper()
	needRoot(t)
	topo, err := lab.BuildVClusters("")
	if err != nil {
		t.Fatal(err)
	}
	v := &vclusters{site: &site{t: t, topo: topo}, gws: map[string]*gateway{}}
	t.Cleanup(func() {
		if t.Failed() {
			v.showLogs()
		}
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	})
	out, err := exec.Command(program(t), append([]string{"cluster", "init", "--dir", filepath.Join(topo.Dir, "cluster")}, lab.Gateways...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("cluster init: %v: %s", err, out)
	}
	for _, n := range lab.Gateways {
		v.gws[n] = v.start(n)
	}
	v.owned(lab.NodeGW1, lab.NodeGW2)
	v.branch = v.start(lab.NodeBranch)
	v.traffic()
	return v
}

func (v *vclusters) start(node string) *gateway {
	v.t.Helper()
	text, err := os.ReadFile(filepath.Join(exampleVCluster, node+".conf"))
	if err != nil {
		v.t.Fatal(err)
	}
	dir := filepath.Join(v.topo.Dir, node)
	g := &gateway{t: v.t, s: v.site, node: node, conf: dir + ".conf", socket: filepath.Join(dir, "admin.sock")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(g.conf, []byte(strings.ReplaceAll(string(text), "@DIR@", v.topo.Dir)), 0o600); err != nil {
		v.t.Fatal(err)
	}
	if g.proc, err = v.topo.Start(node, node, []string{program(v.t), "run", "--config", g.conf, "--log-format", "json"}, nil); err != nil {
		v.t.Fatal(err)
	}
	return g
}

// owned waits until the virtual clusters 1 and 2 have these owners, each with the other
// gateway as an entitled standby, and returns their epochs.
func (v *vclusters) owned(owners ...string) (epochs [2]uint64) {
	v.t.Helper()
	eventually(v.t, 30*time.Second, fmt.Sprintf("the virtual clusters are active on %v", owners), func() bool {
		for _, n := range lab.Gateways {
			h, ok := status[vclusterHA](v.gws[n])
			if !ok || len(h.VClusters) != len(owners) {
				return false
			}
			for i, c := range h.VClusters {
				if c.ID != i+1 || c.Owner != owners[i] || !c.Synchronised || n == lab.NodeGW2 && c.Epoch != epochs[i] {
					return false
				}
				epochs[i] = c.Epoch
			}
		}
		return true
	})
	return epochs
}

// traffic pings through both of the branch's tunnels, both ways.
func (v *vclusters) traffic() {
	v.t.Helper()
	for _, f := range [][4]string{{lab.NodeClient2, "10.3.1.10", lab.NodeServer1, "10.2.1.11"}, {lab.NodeClient2, "10.3.2.10", lab.NodeServer2, "10.2.2.11"}} {
		v.wantPing(f[0], f[1], f[3])
		v.wantPing(f[2], f[3], f[1])
	}
}

// children are the Child SAs of a tunnel, which must stand on both gateways.
func (v *vclusters) children(owner, tunnel string, many int) map[string]childStatus {
	v.t.Helper()
	var out map[string]childStatus
	eventually(v.t, 15*time.Second, fmt.Sprintf("both gateways have %d Child SAs of %s", many, tunnel), func() bool {
		out = map[string]childStatus{}
		for _, c := range v.gws[owner].children(tunnel) {
			out[c.SPIIn+"/"+c.SPIOut] = c
		}
		for _, n := range lab.Gateways {
			all := v.gws[n].children(tunnel)
			if len(all) != many || len(out) != many {
				return false
			}
			for _, c := range all {
				if _, ok := out[c.SPIIn+"/"+c.SPIOut]; !ok {
					return false
				}
			}
		}
		return true
	})
	return out
}

// more is a phase 2 more of a tunnel with its route, as the gateways and as the branch have it.
func more(tunnel, id, local, remote string, extra string) string {
	return "config vpn ipsec phase2-interface\n    edit \"" + tunnel + "-b\"\n        set phase1name \"" + tunnel +
		"\"\n        set proposal aes128gcm\n        set dhgrp 31\n        set src-subnet " + local + " 255.255.255.0\n        set dst-subnet " + remote +
		" 255.255.255.0\n" + extra + "    next\nend\nconfig router static\n    edit " + id + "\n        set dst " + remote +
		" 255.255.255.0\n        set device \"" + tunnel + "\"\n    next\nend\n"
}

// TestVClustersShareTheirConfiguration: while each gateway owns one of two virtual clusters,
// a phase 2 is added to a tunnel of either, on the gateway where that one is active and
// on the other one: it is on both within a second, and the checksums say so. The tunnels of
// both virtual clusters keep their SAs and their counters, and the new phase 2 comes up. A
// priority that is changed moves its own virtual cluster, and nothing of the other one.
func TestVClustersShareTheirConfiguration(t *testing.T) {
	t.Parallel()
	v := newVClusters(t)
	gw1, gw2 := v.gws[lab.NodeGW1], v.gws[lab.NodeGW2]
	both := []*gateway{gw1, gw2}
	first := agreed(both, 1, 10*time.Second).Revision
	type sas = map[string]childStatus
	tunnels := []struct{ name, owner, theirs, local, remote string }{
		{"int-branch", lab.NodeGW1, "int", "10.2.1.0", "10.3.7.0"},
		{"ext-branch", lab.NodeGW2, "ext", "10.2.2.0", "10.3.8.0"},
	}
	count := func(many int, owners ...string) (out []sas) {
		t.Helper()
		for i, tn := range tunnels {
			out = append(out, v.children(owners[i], tn.name, many))
		}
		return out
	}
	// goesOn wants every SA of before with counters that have risen.
	goesOn := func(before []sas, many int, owners ...string) []sas {
		t.Helper()
		v.traffic()
		now := count(many, owners...)
		for i := range before {
			for id, was := range before[i] {
				c, ok := now[i][id]
				switch {
				case !ok:
					t.Errorf("%s lost its Child SA %s", tunnels[i].name, id)
				case was.InPackets > 0 && (c.InPackets <= was.InPackets || c.OutPackets <= was.OutPackets):
					t.Errorf("%s: the counters of %s did not go on: %+v, before %+v", tunnels[i].name, id, c, was)
				}
			}
		}
		return now
	}
	before := count(1, lab.NodeGW1, lab.NodeGW2)
	epochs := v.owned(lab.NodeGW1, lab.NodeGW2)

	revision := first
	for i, tn := range tunnels {
		g := both[i]
		if i == 1 {
			g = gw1 // where the virtual cluster is not active
		}
		g.edit(with(more(tn.name, fmt.Sprint(71+i), tn.local, tn.remote, "")))
		begun := time.Now()
		g.must("execute reload")
		revision++
		a := agreed(both, revision, 5*time.Second)
		if a.Revision != revision {
			t.Errorf("revision %d, want %d", a.Revision, revision)
		}
		if took := lastTaken(revision, both...).Sub(begun); took > time.Second {
			t.Errorf("a change on %s was on both after %v", g.node, took)
		} else {
			t.Logf("a change on %s was on both after %v", g.node, took.Round(time.Millisecond))
		}
		before = goesOn(before, 1, lab.NodeGW1, lab.NodeGW2)
	}
	// The branch has the other halves, and dials.
	for i, tn := range tunnels {
		v.branch.edit(with(more(tn.theirs, fmt.Sprint(71+i), tn.remote, tn.local, "        set auto-negotiate enable\n")))
	}
	v.branch.must("execute reload")
	before = goesOn(before, 2, lab.NodeGW1, lab.NodeGW2)
	if now := v.owned(lab.NodeGW1, lab.NodeGW2); now != epochs {
		t.Errorf("epochs %v became %v by a new phase 2", epochs, now)
	}

	// Virtual cluster 1 to gw2 by its priority there, which is the first in the file, and back.
	priority := func(from, to string) {
		t.Helper()
		gw2.edit(func(s string) string {
			return strings.Replace(s, "set priority "+from+"\n", "set priority "+to+"\n", 1)
		})
		gw2.must("execute reload")
	}
	keeps := func(second int) {
		t.Helper()
		now := v.owned(lab.Gateways[second], lab.NodeGW2)
		if now[0] == epochs[0] || now[1] != epochs[1] {
			t.Errorf("epochs were %v and are %v after the first virtual cluster moved", epochs, now)
		}
		epochs = now
	}
	other := []sas{before[1]}
	priority("100", "250")
	keeps(1)
	moved := count(2, lab.NodeGW2, lab.NodeGW2)
	priority("250", "100")
	keeps(0)
	now := goesOn([]sas{{}, other[0]}, 2, lab.NodeGW1, lab.NodeGW2)
	for i := range tunnels {
		for id := range before[i] {
			_, there := moved[i][id]
			if _, back := now[i][id]; !there || !back {
				t.Errorf("%s: Child SA %s did not outlive the moves", tunnels[i].name, id)
			}
		}
	}
	if a := agreed(both, 1, 2*time.Second); a.Revision != revision {
		t.Errorf("revision %d became %d by what is a node's own", revision, a.Revision)
	}
	for _, s := range v.branch.gateways() {
		if s.Created != 1 {
			t.Errorf("%s: %d IKE SAs were made, want the first alone", s.Name, s.Created)
		}
	}
}
