package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// faultKind says how a fault counts.
type faultKind struct {
	name     string
	kill     bool // counts among kills
	takeover bool // an owner must follow, and its outage counts
}

var (
	faultKill       = faultKind{"SIGKILL", true, true}
	faultLoss       = faultKind{"loss of the host", true, true}
	faultSite       = faultKind{"loss of a site", true, true}
	faultFreeze     = faultKind{"freeze", false, true}
	faultFreezeHost = faultKind{"freeze of the host", false, true}
	faultHandover   = faultKind{"planned handover", false, true}
	faultPause      = faultKind{"pause of both", false, false}
	faultSplit      = faultKind{"heartbeats cut", false, false}
)

// fault is one thing that the lab did to the pair.
type fault struct {
	kind             faultKind
	at               time.Time
	lasted           time.Duration // freeze, pause, cut: until it was undone
	victim, survivor string
	logFrom          int64 // where the survivor's log stood
	widened          int   // factor on the victim's fences, as it said a moment before
	told             HAStatus
	toldOK           bool
}

// run is one scenario under way. Its fields belong to the goroutine of execute,
// except for what the rekeyer uses under mu.
type run struct {
	stage
	d   *daemonSet
	gws map[string]*Gateway

	charon *Charon
	client *Process // ClientTandem
	caps   []*Capture
	probes *Probes
	tcp    *Transfer

	up     time.Time // the tunnel stood
	ended  time.Time // the steps were done
	faults []*fault
	tolerance
	waking     []Interval // of frozen hosts, see wakeGrace
	replays    []time.Time
	before     CharonEvents // when the tunnel stood
	initial    map[string]bool
	noted      map[string]HAStatus // at the last `wait synchronised`
	quiet      []Interval          // probes paused
	widened    map[string]int      // see fenceWidened; when a step last looked
	unexpected []string

	mu     sync.Mutex
	active string // last known, for the rekeyer

}

func newRun(ctx context.Context, o Options, s *Scenario) (*run, error) {
	topo, err := BuildPair(o.ID)
	if err != nil {
		return nil, err
	}
	r := &run{stage: stage{o: o, s: s, topo: topo, began: timeNow()}, initial: map[string]bool{}, widened: map[string]int{}}
	r.d = &daemonSet{bin: o.Binary, status: o.status, argv: o.argv, single: o.single}
	if r.d.status == nil {
		r.d.status = BinaryStatus(o.Binary, topo.socketOf)
	}
	r.res = Result{Scenario: s.Name, Client: o.Client, Takeovers: []Takeover{}, Violations: []string{}}
	r.gws, err = topo.prepareGateways(ctx, r.d, o.Example, Gateways)
	if err != nil {
		return nil, errors.Join(err, topo.Close())
	}
	for _, g := range r.gws {
		g.devices = []string{"wan0", "lan0"}
	}
	r.announce()
	return r, nil
}

func (r *run) sockets() map[string]string { return socketsOf(r.gws) }

// start brings the pair up and the client's tunnel through it.
func (r *run) start(ctx context.Context) error {
	for _, n := range Gateways {
		if err := r.topo.startGateway(r.d, r.gws[n]); err != nil {
			return err
		}
	}
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	r.say("pair is synchronised, %s is active", r.activeName())
	return r.startClient(ctx)
}

func (r *run) startClient(ctx context.Context) error {
	if r.o.Client == ClientTandem {
		text, err := os.ReadFile(filepath.Join(r.o.Example, "client.conf"))
		if err != nil {
			return err
		}
		conf := filepath.Join(r.topo.Dir, "client.conf")
		if err := errors.Join(os.MkdirAll(filepath.Join(r.topo.Dir, NodeClient), 0o700),
			os.WriteFile(conf, []byte(r.topo.fill(string(text))), 0o600)); err != nil {
			return err
		}
		if r.client, err = r.topo.Start(NodeClient, "client", []string{r.o.Binary, "run", "--config", conf}, nil); err != nil {
			return err
		}
		// Traffic from the server before that would make the gateway dial, too.
		return poll(ctx, 20*time.Second, 50*time.Millisecond, func() error {
			all, err := r.statuses(ctx)
			if err == nil && all[r.activeName()].Tunnels == 0 {
				err = errors.New("the client's tunnel does not come up")
			}
			return err
		})
	}
	text, err := os.ReadFile(filepath.Join(r.o.Example, "client.swanctl"))
	if err != nil {
		return err
	}
	seconds := func(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }
	filled := r.topo.fill(string(text), "@CHILD_REKEY@", seconds(r.s.ClientChildRekey), "@IKE_REKEY@", seconds(r.s.ClientIKERekey))
	r.charon, err = r.topo.StartCharon(ctx, CharonConfig{Node: NodeClient, Swanctl: filled, KeyLog: r.o.KeyLog})
	if err != nil {
		return err
	}
	if err := r.charon.Initiate(ctx, "net", 15*time.Second); err != nil {
		return fmt.Errorf("the client's tunnel does not come up: %w", err)
	}
	return nil
}

// execute runs everything up to the end of the steps.
func (r *run) execute(ctx context.Context) error {
	for _, port := range []string{NodeClient, NodeGW1, NodeGW2} {
		if err := r.capture(NodeWAN, port); err != nil {
			return err
		}
	}
	for _, port := range Gateways {
		if err := r.capture(NodeLAN, port); err != nil {
			return err
		}
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.traffic(ctx); err != nil {
		return err
	}
	stopRekeyer := r.startRekeyer(ctx)
	err := r.steps(ctx, r.s.Steps)
	stopRekeyer()
	r.ended = timeNow()
	return err
}

func (r *run) capture(node, port string) error {
	c, err := r.topo.StartCapture(node, port)
	if err == nil {
		r.caps = append(r.caps, c)
	}
	return err
}

func (r *run) newProbes() (*Probes, error) {
	return r.topo.StartProbes(NodeHost, addrOf(HostAddr), NodeServer, addrOf(ServerAddr), r.s.Probe)
}

// traffic waits until the tunnel carries probes both ways, notes what stands,
// and begins what is measured.
func (r *run) traffic(ctx context.Context) error {
	warm, err := r.newProbes()
	if err != nil {
		return err
	}
	err = poll(ctx, 20*time.Second, 20*time.Millisecond, func() error {
		if a, b := warm.Received(); a < 10 || b < 10 {
			return fmt.Errorf("the tunnel carries no traffic (%d probes reached the client's host, %d the server)", a, b)
		}
		return nil
	})
	warm.Stop(100 * time.Millisecond)
	if err != nil {
		return err
	}
	// The standby has what it needs to succeed before anything is hurt.
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	if r.charon != nil {
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
	}
	r.up = timeNow()
	if r.s.TCP > 0 {
		r.tcp, err = r.topo.StartTransfer(ctx, NodeHost, NodeServer, addrOf(ServerAddr), r.s.TCP)
		if err != nil {
			return err
		}
	}
	if r.probes, err = r.newProbes(); err != nil {
		return err
	}
	r.say("tunnel is up; probes every %v both ways, TCP at %d kB/s", r.s.Probe, r.s.TCP/1000)
	return nil
}

// statuses asks both gateways.
func (r *run) statuses(ctx context.Context) (map[string]HAStatus, error) {
	all := map[string]HAStatus{}
	var errs []error
	for _, n := range Gateways {
		if r.gws[n].lost {
			errs = append(errs, fmt.Errorf("%s is lost", n))
			continue
		}
		s, err := r.d.status(ctx, n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all[n] = s
	}
	for _, n := range Gateways {
		if all[n].Role == RolePrimary {
			r.mu.Lock()
			r.active = n
			r.mu.Unlock()
		}
	}
	return all, errors.Join(errs...)
}

func (r *run) activeName() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active
}

func other(gw string) string {
	if gw == NodeGW1 {
		return NodeGW2
	}
	return NodeGW1
}

// owners lists the gateways that say they are primary.
func owners(all map[string]HAStatus) []string {
	var o []string
	for _, n := range Gateways {
		if all[n].Role == RolePrimary {
			o = append(o, n)
		}
	}
	return o
}

// waitSynchronised waits for one owner and one standby that agree, and notes
// what they say.
func (r *run) waitSynchronised(ctx context.Context, within time.Duration) error {
	return poll(ctx, within, 100*time.Millisecond, func() error {
		for _, n := range Gateways {
			if g := r.gws[n]; !g.lost && !g.proc.Running() {
				return permanent(fmt.Errorf("%s has ended by itself: %s", n, tail(g.proc.LogPath)))
			}
		}
		all, err := r.statuses(ctx)
		if err != nil {
			return err
		}
		o := owners(all)
		a, b := all[NodeGW1], all[NodeGW2]
		if len(o) != 1 || !a.Synchronised || !b.Synchronised || a.Epoch != b.Epoch {
			return fmt.Errorf("pair is not synchronised: gw1 %s, synchronised %v, epoch %d; gw2 %s, synchronised %v, epoch %d",
				a.Role, a.Synchronised, a.Epoch, b.Role, b.Synchronised, b.Epoch)
		}
		r.noted = all
		return nil
	})
}

// who resolves active, standby, gw1, gw2 for a step that is about to hurt it.
func (r *run) who(ctx context.Context, word string) (*Gateway, error) {
	g, err := r.resolve(ctx, word)
	if err == nil {
		r.widened[g.Name] = r.fenceWidened(ctx, g.Name)
	}
	return g, err
}

func (r *run) resolve(ctx context.Context, word string) (*Gateway, error) {
	if g, ok := r.gws[word]; ok {
		return g, nil
	}
	all, err := r.statuses(ctx)
	o := owners(all)
	if len(o) != 1 {
		return nil, errors.Join(fmt.Errorf("there are %d active gateways", len(o)), err)
	}
	if word == "standby" {
		return r.gws[other(o[0])], nil
	}
	return r.gws[o[0]], nil
}

// fault notes what was just done to a victim.
func (r *run) fault(k faultKind, at time.Time, victim string) *fault {
	f := &fault{kind: k, at: at, victim: victim, survivor: other(victim), widened: r.widened[victim]}
	if st, err := os.Stat(r.gws[f.survivor].proc.LogPath); err == nil {
		f.logFrom = st.Size()
	}
	r.faults = append(r.faults, f)
	return f
}

// startRekeyer makes the active gateway rekey as the scenario says.
func (r *run) startRekeyer(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, x := range []struct {
		what  string
		every time.Duration
	}{{"child", r.s.GatewayChildRekey}, {"ike", r.s.GatewayIKERekey}} {
		if x.every == 0 {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			tick := time.NewTicker(x.every)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					// Refused while the pair changes hands: the next one will do.
					_ = r.gatewayRekey(ctx, r.activeName(), x.what)
				}
			}
		}()
	}
	return func() { cancel(); wg.Wait() }
}

// gatewayRekey tells a gateway to rekey its Child SAs or IKE SAs of the tunnel.
func (r *run) gatewayRekey(ctx context.Context, gw, what string) error {
	return r.command(ctx, gw, "diagnose", "vpn", "ike", "rekey", what, "name", "vpn1")
}

// command runs one of the binary's commands at a gateway's socket.
func (r *run) command(ctx context.Context, gw string, words ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := commandOutput(ctx, r.o.Binary, append(words, "--socket", r.gws[gw].Socket))
	if err != nil {
		return fmt.Errorf("%s: tandem %s: %w: %s", gw, strings.Join(words, " "), err, strings.TrimSpace(out))
	}
	return nil
}

// tail returns a log's last lines for an error.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], " | ")
}

// keep ends the captures if a failure left them running, and copies captures,
// logs and configurations out of the lab if asked to.
func (r *run) keep() error { return keepRun(r.caps, r.o.Keep, r.topo) }

func keepRun(caps []*Capture, to string, t *Topology) error {
	var errs []error
	for _, c := range caps {
		_, err := c.Stop()
		errs = append(errs, err)
	}
	if to != "" {
		errs = append(errs, os.CopyFS(to, keptFiles(t.Dir)))
	}
	return errors.Join(errs...)
}
