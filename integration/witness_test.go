package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

const (
	exampleWitness = "../examples/pair-witness"
	witnessNode    = "witness"
	sharedGW       = "192.0.2.31" // on the loopback of both members
)

// witnessed is examples/pair-witness: two members, each with a cable to the client's
// router and one to the switch of the sync network, where the witness is as well.
//
//	10.1.0.1 client ─ router ─┬─ gw1 ─┐
//	                          └─ gw2 ─┤ sync 172.31.1.0/24
//	                        witness ──┘
//
// Both members have 10.2.0.1, which stands for the network behind them.
type witnessed struct {
	*site
	bin     string
	members map[string]*gateway
	witness *lab.Process
	client  *gateway
}

func witnessPlan() lab.Plan {
	p := lab.Plan{
		Nodes: []lab.PlanNode{
			{Name: "sync"}, {Name: witnessNode},
			{Name: "client", Forward: true, Addrs: []string{"10.1.0.1/24"}},
			{Name: "router", Forward: true},
		},
		Cables: []lab.PlanCable{
			{A: "client", AIf: "wan0", B: "router", BIf: "client", AAddrs: []string{"192.0.2.130/30"}, BAddrs: []string{"192.0.2.129/30"}},
			{A: witnessNode, AIf: "sync0", B: "sync", BIf: witnessNode, AAddrs: []string{"172.31.1.9/24"}},
		},
		Routes: []lab.PlanRoute{{Node: "client", Dst: sharedGW + "/32", Via: "192.0.2.129/30"}, {Node: "router", Dst: sharedGW + "/32", Via: "192.0.2.134/30"}},
	}
	for i, m := range []string{lab.NodeGW1, lab.NodeGW2} {
		nets := [][2]string{{"192.0.2.133", "192.0.2.134"}, {"192.0.2.137", "192.0.2.138"}}[i]
		p.Nodes = append(p.Nodes, lab.PlanNode{Name: m, Forward: true, Addrs: []string{sharedGW + "/32", "10.2.0.1/24"}})
		p.Cables = append(p.Cables,
			lab.PlanCable{A: m, AIf: "sync0", B: "sync", BIf: m, AAddrs: []string{"172.31.1." + string('1'+rune(i)) + "/24"}},
			lab.PlanCable{A: "router", AIf: m, B: m, BIf: "wan0", AAddrs: []string{nets[0] + "/30"}, BAddrs: []string{nets[1] + "/30"}})
		p.Routes = append(p.Routes, lab.PlanRoute{Node: m, Dst: "192.0.2.128/30", Via: nets[0] + "/30"})
	}
	return p
}

// newWitnessed starts both members, the witness and, if asked, the client.
func newWitnessed(t *testing.T, quorumLoss string, client bool) *witnessed {
	t.Helper()
	return newWitnessedIn(t, witnessPlan(), quorumLoss, client)
}

// newWitnessedIn is the same in a network with more on the sync network's switch.
func newWitnessedIn(t *testing.T, plan lab.Plan, quorumLoss string, client bool) *witnessed {
	t.Helper()
	w := &witnessed{site: build(t, plan), bin: program(t), members: map[string]*gateway{}}
	w.must("sync", "ip", "link", "add", "br0", "type", "bridge")
	w.must("sync", "ip", "link", "set", "br0", "up")
	for _, c := range plan.Cables {
		if c.B == "sync" {
			w.must("sync", "ip", "link", "set", c.BIf, "master", "br0")
		}
	}
	out, err := exec.Command(w.bin, "cluster", "init", "--dir", filepath.Join(w.topo.Dir, "cluster"), "--witness", witnessNode, lab.NodeGW1, lab.NodeGW2).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "node 3: ") {
		t.Fatalf("cluster init: %v: %s", err, out)
	}
	for _, m := range []string{lab.NodeGW1, lab.NodeGW2} {
		w.members[m] = w.from(m, func(conf string) string {
			return strings.Replace(conf, "set quorum-loss continue", "set quorum-loss "+quorumLoss, 1)
		})
		w.startExample(w.members[m], w.bin)
	}
	w.from(witnessNode, nil)
	w.startWitness()
	w.together()
	if client {
		w.client = w.from("client", nil)
		w.startExample(w.client, w.bin)
	}
	return w
}

// from prepares a node with its file of the example.
func (w *witnessed) from(node string, change func(string) string) *gateway {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(exampleWitness, node+".conf"))
	if err != nil {
		w.t.Fatal(err)
	}
	conf := string(text)
	if change != nil {
		conf = change(conf)
	}
	return w.exampleGateway(node, conf)
}

func (w *witnessed) startWitness() {
	w.t.Helper()
	var err error
	if w.witness, err = w.topo.Start(witnessNode, witnessNode, []string{w.bin, "witness", "--config", filepath.Join(w.topo.Dir, witnessNode+".conf")}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// memberHA is what this test reads of `get system ha status --json`.
type memberHA struct {
	Synchronised bool   `json:"synchronised"`
	Quorum       bool   `json:"quorum"`
	Leader       string `json:"leader"`
	Owned        int    `json:"owned"`
	Standby      int    `json:"standby"`
	ScopesOwned  int    `json:"scopes_owned"`
	Alarms       []struct {
		Name string `json:"name"`
		Text string `json:"text"`
	} `json:"alarms"`
	Members []struct {
		Hostname string `json:"hostname"`
		Node     int    `json:"node"`
		Voter    bool   `json:"voter"`
		Aside    bool   `json:"aside"`
	} `json:"members"`
	Scopes []memberScope `json:"scopes"`
}

type memberScope struct {
	Owner     string   `json:"owner"`
	Decided   string   `json:"decided"`
	Successor string   `json:"successor"`
	Standbys  []string `json:"standbys"`
	Role      string   `json:"role"`
}

// alarm is the text of an alarm that stands, or "".
func (h *memberHA) alarm(name string) string {
	for _, a := range h.Alarms {
		if a.Name == name {
			return a.Text
		}
	}
	return ""
}

// member waits until a member's status is as wanted.
func (w *witnessed) member(name string, within time.Duration, what string, ok func(memberHA) bool) {
	w.t.Helper()
	waitStatus(w.members[name], name, within, what, ok)
}

// together waits until both members have their slots, stand by for each other's and
// have the witness among the voters.
func (w *witnessed) together() {
	w.t.Helper()
	for _, m := range []string{lab.NodeGW1, lab.NodeGW2} {
		w.member(m, 30*time.Second, "is synchronised with eight slots, beside a witness that has none", func(h memberHA) bool {
			if !h.Synchronised || !h.Quorum || h.ScopesOwned != 8 || len(h.Scopes) != 16 || len(h.Members) != 3 || len(h.Alarms) > 0 {
				return false
			}
			for _, p := range h.Members {
				if !p.Voter || p.Aside != (p.Hostname == witnessNode) || (p.Node == 3) != (p.Hostname == witnessNode) {
					return false
				}
			}
			for _, s := range h.Scopes {
				if s.Owner == witnessNode || s.Successor == witnessNode || slices.Contains(s.Standbys, witnessNode) {
					w.t.Fatalf("the witness has to do with a tunnel: %+v", s)
				}
			}
			return true
		})
	}
}

// lose ends a member, guardian and daemon: SIGKILL of its daemon alone would be
// followed by another one at once.
func (w *witnessed) lose(name string) {
	w.t.Helper()
	if err := w.members[name].proc.Kill(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *witnessed) loseWitness() {
	w.t.Helper()
	if err := w.witness.Kill(); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, 10*time.Second, "the witness is gone", func() bool { return !w.witness.Running() })
}

// all16: the second member owns all slots, by decision, and has quorum.
func all16(h memberHA) bool {
	return h.ScopesOwned == 16 && h.Quorum && h.alarm("quorum") == "" && len(h.Scopes) == 16 &&
		!slices.ContainsFunc(h.Scopes, func(s memberScope) bool { return s.Role != "sync-primary" || s.Decided != lab.NodeGW2 })
}

// TestWitnessPair: with a witness the survivor of two has a majority: it owns
// everything, as decided, and the client's tunnel lives on. When the witness is lost as
// well it keeps what it owns and says that it has no quorum; a witness that comes back
// is enough.
func TestWitnessPair(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := newWitnessed(t, "continue", true)
	ping := func() {
		t.Helper()
		w.wantPing("client", "10.1.0.1", "10.2.0.1")
	}
	ping()
	for _, m := range []string{lab.NodeGW1, lab.NodeGW2} {
		eventually(t, 10*time.Second, m+" hears the other member's gossip", func() bool {
			return contains(w.members[m].proc.LogPath, `"msg":"gossip"`, `"state":"alive"`, map[string]string{lab.NodeGW1: `"name":"gw2"`, lab.NodeGW2: `"name":"gw1"`}[m])
		})
	}
	var first string
	w.member(lab.NodeGW1, 10*time.Second, "has the tunnel, which the other stands by for", func(h memberHA) bool { return h.Owned == 1 })
	w.member(lab.NodeGW2, 10*time.Second, "stands by for it", func(h memberHA) bool { return h.Standby == 1 })
	tunnel := func() string {
		t.Helper()
		for _, g := range w.client.gateways() {
			if g.Name == "gw" && g.Created == 1 && len(g.SAs) == 1 && g.SAs[0].Status == "established" {
				return g.SAs[0].SPIi + "/" + g.SAs[0].SPIr
			}
		}
		t.Fatalf("the client's tunnel is not the first one: %+v", w.client.gateways())
		return ""
	}
	first = tunnel()

	// The daemon alone: its guardian starts another, which joins again.
	pid, err := w.members[lab.NodeGW1].proc.Daemon(false)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(pid); err != nil || p.Kill() != nil {
		t.Fatal("the daemon could not be killed", err)
	}
	w.member(lab.NodeGW2, 10*time.Second, "has the tunnel", func(h memberHA) bool { return h.Owned == 1 && h.Quorum })
	w.must("router", "ip", "route", "replace", sharedGW+"/32", "via", "192.0.2.138")
	ping()
	w.together()

	// The host.
	w.lose(lab.NodeGW1)
	w.member(lab.NodeGW2, 10*time.Second, "owns everything by decision and has quorum", all16)
	ping()

	// The witness, too.
	w.loseWitness()
	w.member(lab.NodeGW2, 10*time.Second, "says that it has no quorum and keeps what it owns", func(h memberHA) bool {
		return !h.Quorum && strings.Contains(h.alarm("quorum"), "no quorum: going on") && h.Owned == 1 &&
			!slices.ContainsFunc(h.Scopes, func(s memberScope) bool { return s.Role != "sync-primary" })
	})
	ping()

	// Healing needs no hand: the witness asks nobody who is who.
	w.startWitness()
	w.member(lab.NodeGW2, 20*time.Second, "has quorum again", all16)
	ping()
	w.startExample(w.members[lab.NodeGW1], w.bin)
	w.together()
	ping()
	if now := tunnel(); now != first {
		t.Errorf("the client's IKE SA was %s and is %s", first, now)
	}

	// The witness ends cleanly when told to, and nobody misses it.
	if err := stopProcess(w.witness, 10*time.Second); err != nil {
		t.Errorf("the witness: %v", err)
	}
	if !contains(w.witness.LogPath, "witness stops") {
		t.Error("the witness does not say that it stops")
	}
	w.member(lab.NodeGW1, 10*time.Second, "has quorum without the witness", func(h memberHA) bool { return h.Quorum && h.Leader != witnessNode && h.Leader != "" })
	ping()
}

// TestWitnessQuorumLossStop: with quorum-loss stop the survivor stops when the witness
// is lost as well, and goes on when it is back.
func TestWitnessQuorumLossStop(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := newWitnessed(t, "stop", true)
	w.wantPing("client", "10.1.0.1", "10.2.0.1")
	w.member(lab.NodeGW2, 10*time.Second, "stands by for the tunnel", func(h memberHA) bool { return h.Standby == 1 })
	w.lose(lab.NodeGW1)
	w.must("router", "ip", "route", "replace", sharedGW+"/32", "via", "192.0.2.138")
	w.member(lab.NodeGW2, 10*time.Second, "owns everything by decision and has quorum", all16)
	w.wantPing("client", "10.1.0.1", "10.2.0.1")
	w.loseWitness()
	w.member(lab.NodeGW2, 10*time.Second, "has stopped, and says why", func(h memberHA) bool {
		return !h.Quorum && strings.Contains(h.alarm("quorum"), "quorum-loss stop") && h.Owned == 0 &&
			!slices.ContainsFunc(h.Scopes, func(s memberScope) bool { return s.Role == "sync-primary" })
	})
	if n := w.pings("client", "10.1.0.1", "10.2.0.1", 3); n != 0 {
		t.Errorf("%d of 3 echo requests are answered by a member that has stopped", n)
	}
	w.startWitness()
	w.member(lab.NodeGW2, 30*time.Second, "owns everything again", all16)
	w.wantPing("client", "10.1.0.1", "10.2.0.1")
}

// TestWitnessHasNoSecret: what lies on the witness's machine is its certificate, the
// cluster's CA certificate and the log; with that it can neither be a gateway nor
// authenticate as a member.
func TestWitnessHasNoSecret(t *testing.T) {
	bin := program(t)
	dir := filepath.Join(t.TempDir(), "cluster")
	if out, err := exec.Command(bin, "cluster", "init", "--dir", dir, "--witness", "w", "a", "b").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files, err := os.ReadDir(filepath.Join(dir, "w"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	if want := []string{"ca.crt", "node.crt", "node.key"}; !slices.Equal(names, want) {
		t.Errorf("the witness has %q, want %q", names, want)
	}
	state := t.TempDir()
	for what, c := range map[string]struct {
		args []string
		says string
	}{
		"a member's folder": {[]string{"--cluster-dir", filepath.Join(dir, "a"), "--state-dir", state, "--listen", "127.0.0.1", "--member", "127.0.0.2", "--member", "127.0.0.3"}, "member's folder"},
		"one member":        {[]string{"--cluster-dir", filepath.Join(dir, "w"), "--state-dir", state, "--listen", "127.0.0.1", "--member", "127.0.0.2"}, "two at least"},
		"nothing":           {nil, "needed: --config"},
		"no address":        {[]string{"--cluster-dir", dir, "--state-dir", state, "--listen", "here"}, "--listen"},
		"no file":           {[]string{"--config", filepath.Join(dir, "none")}, "none"},
	} {
		out, err := exec.Command(bin, append([]string{"witness"}, c.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
}
