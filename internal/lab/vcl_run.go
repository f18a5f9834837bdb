package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// isVCluster says whether an example is one of virtual clusters.
func isVCluster(example string) bool {
	_, err := os.Stat(filepath.Join(example, NodeBranch+".conf"))
	_, err2 := os.Stat(filepath.Join(example, NodeCharon+".swanctl"))
	return err == nil && err2 == nil
}

// LoadVClusterScenario reads dir/scenarios/NAME.lab of an example of virtual clusters.
func LoadVClusterScenario(dir, name string) (*Scenario, error) {
	return loadScenario(dir, name, ParseVClusterScenario)
}

// ParseVClusterScenario returns all faults of the text at once.
func ParseVClusterScenario(name, file, text string) (*Scenario, error) {
	return (&scenarioParser{
		file: file, s: &Scenario{Name: name, Probe: 50 * time.Millisecond, RekeyStep: 2 * time.Second},
		words: grammarOf(vverbs), heads: "about, traffic, rekeys, steps, bound", model: &Result{VClusterFigures: &VClusterFigures{}},
	}).parse(text)
}

// vstatus is what the lab reads of `get system ha status --json` of a node with virtual
// clusters.
type vstatus struct {
	VClusters []struct {
		ID           int    `json:"id"`
		Role         string `json:"role"`
		Synchronised bool   `json:"synchronised"`
		Epoch        uint64 `json:"epoch"`
		Owner        string `json:"owner"`
	} `json:"vclusters"`
}

// vfault is one SIGKILL.
type vfault struct {
	at     time.Time
	victim string
	owned  []int // virtual clusters
}

// vrun is one scenario of virtual clusters under way, owned by the goroutine of execute
// but for what the rekeyers count.
type vrun struct {
	stage
	d   *daemonSet
	gws map[string]*Gateway

	charon *Charon
	branch *Process
	caps   []*Capture
	probes []*Probes // by flow

	up, ended time.Time
	asked     int // moves
	moves     []time.Time
	faults    []*vfault
	before    CharonEvents
	initial   map[string]bool // charon's SPIs when the tunnels stood
	branchLog int64           // where the branch's log stood then
	// Of each flow, when the last packet of an SPI came to the peer's port.
	lastAt [4]map[uint32]time.Time

	rekeys struct{ gwChild, gwIKE, peerChild, peerIKE atomic.Int64 } // asked for, and begun
}

var vverbs map[string]verb[*vrun]

func init() {
	vverbs = map[string]verb[*vrun]{
		"repeat": {"TIMES … end", wantCount, nil},
		"run":    {"TIME", wantDuration, (*vrun).doRun},
		"wait":   {"synchronised [TIME at most]", checkSynchronised, (*vrun).doWait},
		"move":   {"1|2: by priority, to the other gateway", wantOneOf("1", "2"), (*vrun).doMove},
		"kill":   {"1|2: the gateway that owns the virtual cluster", wantOneOf("1", "2"), (*vrun).doKill},
	}
}

func newVRun(ctx context.Context, o Options, s *Scenario) (*vrun, error) {
	topo, err := BuildVClusters(o.ID)
	if err != nil {
		return nil, err
	}
	r := &vrun{stage: stage{o: o, s: s, topo: topo, began: timeNow()}, initial: map[string]bool{}, d: &daemonSet{bin: o.Binary}}
	r.res = Result{Scenario: s.Name, Client: o.Client, Takeovers: []Takeover{}, Violations: []string{}, VClusterFigures: &VClusterFigures{Tunnels: len(vflows)}}
	r.gws, err = topo.prepareGateways(ctx, r.d, o.Example, Gateways)
	if err != nil {
		return nil, errors.Join(err, topo.Close())
	}
	for _, g := range r.gws {
		g.devices = []string{"wan1", "wan2", "lan1", "lan2"}
	}
	r.announce()
	return r, nil
}

func (r *vrun) sockets() map[string]string {
	out := socketsOf(r.gws)
	out[NodeBranch] = r.topo.socketOf(NodeBranch)
	return out
}

// start brings up gateways and peers, until every tunnel stands.
func (r *vrun) start(ctx context.Context) error {
	for _, n := range Gateways {
		if err := r.topo.startGateway(r.d, r.gws[n]); err != nil {
			return err
		}
	}
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(r.o.Example, NodeBranch+".conf"))
	if err != nil {
		return err
	}
	conf := filepath.Join(r.topo.Dir, NodeBranch+".conf")
	if err := errors.Join(os.MkdirAll(filepath.Join(r.topo.Dir, NodeBranch), 0o700), os.WriteFile(conf, []byte(r.topo.fill(string(text))), 0o600)); err != nil {
		return err
	}
	if r.branch, err = r.topo.Start(NodeBranch, NodeBranch, []string{r.o.Binary, "run", "--config", conf, "--log-format", "json"}, nil); err != nil {
		return err
	}
	if text, err = os.ReadFile(filepath.Join(r.o.Example, NodeCharon+".swanctl")); err != nil {
		return err
	}
	filled := r.topo.fill(string(text), "@CHILD_REKEY@", "0", "@IKE_REKEY@", "0")
	if r.charon, err = r.topo.StartCharon(ctx, CharonConfig{Node: NodeCharon, Swanctl: filled, KeyLog: r.o.KeyLog}); err != nil {
		return err
	}
	for _, f := range vflows {
		if f.peer == NodeCharon {
			if err := r.charon.Initiate(ctx, f.name, 15*time.Second); err != nil {
				return fmt.Errorf("charon's tunnel %s does not come up: %w", f.name, err)
			}
		}
	}
	return poll(ctx, 20*time.Second, 50*time.Millisecond, func() error {
		s, err := r.d.ask(ctx, r.topo.socketOf(NodeBranch))
		if err == nil && s.Tunnels < 2 {
			err = errors.New("the branch's tunnels do not come up")
		}
		return err
	})
}

// ask reads a node's status through its admin socket.
func (d *daemonSet) ask(ctx context.Context, socket string) (s HAStatus, err error) {
	out, err := memberCommand(ctx, socket, "get", "system", "ha", "status")
	if err != nil {
		return s, err
	}
	return parseStatus(out)
}

// statuses asks both gateways what they say of each virtual cluster.
func (r *vrun) statuses(ctx context.Context) (map[string]vstatus, error) {
	all := map[string]vstatus{}
	for _, n := range Gateways {
		var s vstatus
		out, err := memberCommand(ctx, r.gws[n].Socket, "get", "system", "ha", "status")
		if err == nil {
			err = json.Unmarshal(out, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		all[n] = s
	}
	return all, nil
}

// owners are the gateways that own each virtual cluster; an error says what is missing
// until each has one owner and a synchronised standby.
func (r *vrun) owners(ctx context.Context) (map[int]string, error) {
	all, err := r.statuses(ctx)
	if err != nil {
		return nil, err
	}
	owner := map[int]string{}
	for i := range all[NodeGW1].VClusters {
		if len(all[NodeGW2].VClusters) <= i {
			return nil, errors.New("gw2 has fewer virtual clusters")
		}
		a, b := all[NodeGW1].VClusters[i], all[NodeGW2].VClusters[i]
		if !a.Synchronised || !b.Synchronised || a.Epoch != b.Epoch || (a.Role == RolePrimary) == (b.Role == RolePrimary) {
			return nil, fmt.Errorf("virtual cluster %d: gw1 %s, synchronised %v, epoch %d; gw2 %s, synchronised %v, epoch %d",
				a.ID, a.Role, a.Synchronised, a.Epoch, b.Role, b.Synchronised, b.Epoch)
		}
		owner[a.ID] = NodeGW2
		if a.Role == RolePrimary {
			owner[a.ID] = NodeGW1
		}
	}
	if len(owner) != len(vshared) {
		return nil, fmt.Errorf("%d virtual clusters", len(owner))
	}
	return owner, nil
}

func (r *vrun) waitSynchronised(ctx context.Context, within time.Duration) error {
	return poll(ctx, within, 100*time.Millisecond, func() error {
		for _, n := range Gateways {
			if !r.gws[n].proc.Running() {
				return permanent(fmt.Errorf("%s has ended by itself: %s", n, tail(r.gws[n].proc.LogPath)))
			}
		}
		_, err := r.owners(ctx)
		return err
	})
}

// execute runs everything up to the end of the steps.
func (r *vrun) execute(ctx context.Context) error {
	for _, wan := range []string{NodeWAN1, NodeWAN2} {
		for _, port := range []string{NodeCharon, NodeBranch, NodeGW1, NodeGW2} {
			c, err := r.topo.StartCapture(wan, port)
			if err != nil {
				return err
			}
			r.caps = append(r.caps, c)
		}
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.traffic(ctx); err != nil {
		return err
	}
	stop := r.startRekeyers(ctx)
	err := runSteps(r, ctx, vverbs, r.s.Steps)
	stop()
	r.ended = timeNow()
	if err != nil {
		return err
	}
	// What rekeys have made speaks once more: an IKE SA that was never used is in no capture.
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	for _, f := range vflows {
		r.gatewayRekey(ctx, f, "child")
	}
	return nil
}

// traffic begins the probes of every tunnel, and waits until they arrive.
func (r *vrun) traffic(ctx context.Context) error {
	warm, err := r.startProbes()
	if err == nil {
		err = poll(ctx, 20*time.Second, 20*time.Millisecond, func() error {
			for i, p := range warm {
				if a, b := p.Received(); a < 10 || b < 10 {
					return fmt.Errorf("%s carries no traffic", vflows[i].tunnel)
				}
			}
			return nil
		})
	}
	for _, p := range warm {
		p.Stop(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	sas, err := r.charon.SAs(ctx)
	if err != nil {
		return err
	}
	for _, sa := range sas {
		for _, ch := range sa.Children {
			r.initial[ch.SPIIn], r.initial[ch.SPIOut] = true, true
		}
	}
	r.before = r.charon.Events()
	if st, err := os.Stat(r.branch.LogPath); err == nil {
		r.branchLog = st.Size()
	}
	r.up = timeNow()
	if r.probes, err = r.startProbes(); err != nil {
		return err
	}
	r.say("%d tunnels are up; probes every %v both ways through each, a rekey every %v", len(vflows), r.s.Probe, r.s.RekeyStep)
	return nil
}

// startProbes probes through every tunnel; each has a pair of addresses of its own.
func (r *vrun) startProbes() (all []*Probes, err error) {
	for _, f := range vflows {
		p, err := r.topo.StartProbes(f.client, f.clientAt, f.server, f.serves, r.s.Probe)
		if err != nil {
			for _, p := range all {
				p.Stop(0)
			}
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// startRekeyers has each tunnel rekeyed, one thing after another: Child SA and IKE SA, in
// turn by the gateways and by the peer.
func (r *vrun) startRekeyers(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, f := range vflows {
		wg.Go(func() {
			tick := time.NewTicker(r.s.RekeyStep)
			defer tick.Stop()
			for n := i; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				switch what := []string{"child", "ike"}[n/2%2]; {
				case n%2 == 0:
					r.gatewayRekey(ctx, f, what)
				case f.peer == NodeBranch:
					if rekeyed(ctx, r.topo.socketOf(NodeBranch), what, f.name) > 0 {
						r.counter(what, false).Add(1)
					}
				default:
					child, ike := f.name, ""
					if what == "ike" {
						child, ike = "", f.name
					}
					if r.charon.Rekey(ctx, child, ike) == nil {
						r.counter(what, false).Add(1)
					}
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func (r *vrun) counter(what string, gateway bool) *atomic.Int64 {
	switch {
	case what == "child" && gateway:
		return &r.rekeys.gwChild
	case what == "child":
		return &r.rekeys.peerChild
	case gateway:
		return &r.rekeys.gwIKE
	}
	return &r.rekeys.peerIKE
}

// gatewayRekey has the gateway that owns the tunnel rekey: the other one says that it
// does not. While the tunnel changes hands nobody does; the next one will do.
func (r *vrun) gatewayRekey(ctx context.Context, f vflow, what string) {
	for _, n := range Gateways {
		if rekeyed(ctx, r.gws[n].Socket, what, f.tunnel) > 0 {
			r.counter(what, true).Add(1)
			return
		}
	}
}

// rekeyed asks a node to rekey, and returns how many SAs it does.
func rekeyed(ctx context.Context, socket, what, tunnel string) int {
	var n struct{ Rekeying int }
	out, err := memberCommand(ctx, socket, "diagnose", "vpn", "ike", "rekey", what, "name", tunnel)
	if err != nil || json.Unmarshal(out, &n) != nil {
		return 0
	}
	return n.Rekeying
}

func (r *vrun) doWait(ctx context.Context, s Step) error {
	return r.waitSynchronised(ctx, patienceOf(s))
}

// Priorities that gw2 is given, beneath and above what the examples give gw1.
const (
	lowPriority  = 50
	highPriority = 250
)

// doMove changes one line of gw2's configuration: the priority of one virtual cluster.
func (r *vrun) doMove(ctx context.Context, s Step) error {
	id, _ := strconv.Atoi(s.Args[0])
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	owners, err := r.owners(ctx)
	if err != nil {
		return err
	}
	g, want, priority := r.gws[NodeGW2], NodeGW2, highPriority
	if owners[id] == NodeGW2 {
		want, priority = NodeGW1, lowPriority
	}
	text, err := os.ReadFile(g.Config)
	if err != nil {
		return err
	}
	changed, ok := setPriority(string(text), id, priority)
	if !ok {
		return fmt.Errorf("%s has no priority of virtual cluster %d", g.Config, id)
	}
	if err := os.WriteFile(g.Config, []byte(changed), 0o600); err != nil {
		return err
	}
	at := timeNow()
	if _, err := memberCommand(ctx, g.Socket, "execute", "reload"); err != nil {
		return err
	}
	r.asked++
	r.moves = append(r.moves, at)
	return poll(ctx, 10*time.Second, 20*time.Millisecond, func() error {
		owners, err := r.owners(ctx)
		if err == nil && owners[id] != want {
			err = fmt.Errorf("virtual cluster %d stays on %s", id, owners[id])
		}
		return err
	})
}

// setPriority changes the priority of a virtual cluster in the text of a configuration.
func setPriority(text string, id, priority int) (string, bool) {
	lines := strings.Split(text, "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.TrimSpace(l) == "config vcluster" })
	edit, set := fmt.Sprintf("edit %d", id), "set priority "
	inside := false
	for ; i >= 0 && i < len(lines) && strings.TrimSpace(lines[i]) != "end"; i++ {
		l := strings.TrimSpace(lines[i])
		switch {
		case strings.HasPrefix(l, "edit "):
			inside = l == edit
		case inside && strings.HasPrefix(l, set):
			at := strings.Index(lines[i], set)
			lines[i] = lines[i][:at] + set + strconv.Itoa(priority)
			return strings.Join(lines, "\n"), true
		}
	}
	return text, false
}

func (r *vrun) doKill(ctx context.Context, s Step) error {
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	owners, err := r.owners(ctx)
	if err != nil {
		return err
	}
	id, _ := strconv.Atoi(s.Args[0])
	g := r.gws[owners[id]]
	_, daemon, err := g.pids(r.d)
	if err != nil {
		return err
	}
	f := &vfault{at: timeNow(), victim: g.Name}
	for id, n := range owners {
		if n == g.Name {
			f.owned = append(f.owned, id)
		}
	}
	slices.Sort(f.owned)
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		return err
	}
	r.faults = append(r.faults, f)
	r.say("SIGKILL of %s, which owned %v", g.Name, f.owned)
	return pass(ctx, settleTime)
}

// keep ends the captures if a failure left them running, and copies captures, logs and
// configurations out of the lab if asked to.
func (r *vrun) keep() error {
	return keepRun(r.caps, r.o.Keep, r.topo)
}
