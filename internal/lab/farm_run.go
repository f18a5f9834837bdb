package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// isFarm says whether an example is one of a farm.
func isFarm(example string) bool {
	_, err := os.Stat(filepath.Join(example, Members[0]+".conf"))
	return err == nil || isSites(example)
}

// LoadFarmScenario reads dir/scenarios/NAME.lab of a farm's example.
func LoadFarmScenario(dir, name string) (*Scenario, error) {
	return loadScenario(dir, name, func(name, file, text string) (*Scenario, error) {
		return parseFarmScenario(name, file, text, farmOf(dir))
	})
}

// verbs are the steps of its scenarios.
func (f *FarmSetup) verbs() map[string]verb[*farmRun] {
	if f.Sites {
		return siteVerbs()
	}
	return farmVerbsOf(Members)
}

// ParseFarmScenario returns all faults of the text at once.
func ParseFarmScenario(name, file, text string) (*Scenario, error) {
	return parseFarmScenario(name, file, text, defaultFarm())
}

func parseFarmScenario(name, file, text string, f FarmSetup) (*Scenario, error) {
	s, err := (&scenarioParser{
		file: file, s: &Scenario{Name: name, Probe: 20 * time.Millisecond, TCP: 50_000, Farm: f},
		words: grammarOf(f.verbs()), heads: "about, farm, traffic, steps, bound", model: &Result{FarmFigures: &FarmFigures{}},
	}).parse(text)
	if err == nil {
		err = s.Farm.check()
	}
	return s, err
}

// farmFault is one thing that the lab did to a member.
type farmFault struct {
	kind    faultKind
	at      time.Time
	moved   time.Time // when the routers left the victim; zero: they did not send to it
	victim  string
	logFrom map[string]int64 // where the others' logs stood
}

// farmRun is one scenario of a farm under way, owned by the goroutine of execute.
type farmRun struct {
	stage
	f       FarmSetup
	d       *daemonSet
	status  FarmStatusFunc
	held    tunnelsFunc
	members map[string]*Gateway
	witness *Process           // of an example with sites
	macs    map[[6]byte]string // there: whose a hardware address is
	routes  routing
	rng     *rand.Rand

	tunnels []Tunnel
	clients *farmClients
	outer   []*Capture
	inner   []*Capture
	flows   *Flows
	tcp     *Transfer

	up, ended time.Time
	faults    []*farmFault
	waiting   map[string]bool // members that the routers left, until they are synchronised
	tolerance
	silences   []silence
	drained    string // by the last `drain`
	carries    []carry
	counters   map[string]map[int]FarmStatus // by member and daemon, the last that it said
	unexpected []string
}

// carry is a time in which so many tunnels must carry probes in both directions.
type carry struct {
	Interval
	least int
}

// alone: the only member is a gateway of its own, without a cluster.
func (r *farmRun) alone() bool { return r.f.Sync == 1 }

// started are the members that run a daemon.
func (r *farmRun) started() []string {
	if r.alone() {
		return Members[:1]
	}
	return r.f.members()
}

func newFarmRun(ctx context.Context, o Options, s *Scenario) (*farmRun, error) {
	r := &farmRun{stage: stage{o: o, s: s, began: timeNow()}, f: s.Farm, waiting: map[string]bool{}, counters: map[string]map[int]FarmStatus{}}
	if o.Client == ClientTandem {
		r.f.allTandem()
	}
	if err := r.f.check(); err != nil {
		return nil, err
	}
	topo, err := BuildFarm(o.ID, r.f)
	if err != nil {
		return nil, err
	}
	r.topo, r.tunnels = topo, r.f.tunnels()
	r.routes = newStaticRouting(topo, r.f)
	r.rng = rand.New(rand.NewPCG(r.f.Seed, 1))
	r.d = &daemonSet{bin: o.Binary, argv: o.argv, single: o.single}
	r.status, r.held = o.farmStatus, o.farmTunnels
	if r.status == nil {
		r.status = AdminFarmStatus(r.alone(), topo.socketOf)
	}
	if r.held == nil {
		r.held = adminTunnels(topo.socketOf)
	}
	client := ClientTandem
	if r.f.Charon > 0 {
		client = ClientCharon + "+" + ClientTandem
	}
	r.res = Result{Scenario: s.Name, Client: client, Takeovers: []Takeover{}, Violations: []string{},
		FarmFigures: &FarmFigures{Clients: len(r.tunnels), Members: r.f.Sync, Faults: []FarmFault{}, Changes: []FarmChange{}}}
	if r.f.Sites {
		r.d.witness = witnessNode
	}
	r.members, err = topo.prepareGateways(ctx, r.d, o.Example, r.started(), "@QUORUM_LOSS@", r.f.QuorumLoss)
	if err = errors.Join(err, r.prepareWitness(), r.learnMACs()); err != nil {
		return nil, errors.Join(err, topo.Close())
	}
	for _, g := range r.members {
		if r.f.Sites {
			g.devices = []string{"port2", "port3", "lb1"} // what the active node has there
		}
	}
	r.announce()
	return r, nil
}

func (r *farmRun) sockets() map[string]string { return socketsOf(r.members) }

// start brings the members up, and the clients' tunnels through them.
func (r *farmRun) start(ctx context.Context) error {
	if err := r.startWitness(); err != nil {
		return err
	}
	for _, n := range r.started() {
		if err := r.topo.startGateway(r.d, r.members[n]); err != nil {
			return err
		}
	}
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	r.say("%d members are synchronised; %d clients dial", r.f.Sync, len(r.tunnels))
	var err error
	r.clients, err = r.topo.startClients(ctx, r.o.Binary, r.o.Example, r.tunnels, r.o.KeyLog)
	return err
}

func (r *farmRun) capture() error {
	ports := r.started()
	if r.f.Sites {
		ports = r.f.hops()
	}
	for _, m := range ports {
		for node, list := range map[string]*[]*Capture{NodeRouter: &r.outer, NodeLANRouter: &r.inner} {
			c, err := r.topo.StartCapture(node, m)
			if err != nil {
				return err
			}
			*list = append(*list, c)
		}
	}
	return nil
}

// traffic waits until every tunnel carries probes both ways, and begins what is
// measured.
func (r *farmRun) traffic(ctx context.Context) error {
	warm, err := r.topo.StartFlows(r.tunnels, NodeLANRouter, max(r.s.Probe, 50*time.Millisecond), 0)
	if err != nil {
		return err
	}
	err = poll(ctx, 60*time.Second, 50*time.Millisecond, func() error {
		if err := r.clients.running(); err != nil {
			return permanent(err)
		}
		if n := warm.Silent(10); n > 0 {
			return fmt.Errorf("%d of %d tunnels carry no traffic", n, len(r.tunnels))
		}
		return nil
	})
	warm.Stop(100 * time.Millisecond)
	if err != nil {
		return err
	}
	r.up = timeNow()
	// The standbys have what they need to succeed before anything is hurt.
	if err := r.waitSynchronised(ctx, 30*time.Second); err != nil {
		return err
	}
	r.up = timeNow()
	if r.s.TCP > 0 {
		x := r.tunnels[len(r.tunnels)-1]
		for _, y := range r.tunnels { // whose host is its node's first own address
			if y.Node == x.Node {
				x = y
				break
			}
		}
		r.tcp, err = r.topo.StartTransfer(ctx, x.Node, NodeLANRouter, x.Server, r.s.TCP)
		if err != nil {
			return err
		}
	}
	if r.flows, err = r.topo.StartFlows(r.tunnels, NodeLANRouter, r.s.Probe, r.s.Sparse); err != nil {
		return err
	}
	each := "each"
	if r.s.Sparse > 1 {
		each = fmt.Sprintf("one of %d, and every %v on the others", r.s.Sparse, r.s.Probe*time.Duration(r.s.Sparse))
	}
	r.say("%d tunnels are up; probes every %v both ways on %s, TCP at %d kB/s on one", len(r.tunnels), r.s.Probe, each, r.s.TCP/1000)
	return nil
}

// execute runs everything up to the end of the steps.
func (r *farmRun) execute(ctx context.Context) error {
	if err := r.capture(); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.traffic(ctx); err != nil {
		return err
	}
	err := runSteps(r, ctx, r.f.verbs(), r.s.Steps)
	r.ended = timeNow()
	return errors.Join(err, r.routes.close())
}

// living are the synchronising members that are not lost.
func (r *farmRun) living() []string {
	return slices.DeleteFunc(slices.Clone(r.f.synced()), func(m string) bool { return r.members[m].lost })
}

// ask asks a member and keeps its counters.
func (r *farmRun) ask(ctx context.Context, member string) (FarmStatus, error) {
	s, err := r.status(ctx, member)
	if err == nil {
		if r.counters[member] == nil {
			r.counters[member] = map[int]FarmStatus{}
		}
		r.counters[member][s.DaemonPID] = s
	}
	return s, err
}

// waitSynchronised waits until every living member is synchronised and they agree on
// the leader, and until all tunnels have an owner. A member that is synchronised again
// has traffic again at once. Tunnels that nobody owns are for the bounds to judge, and
// the run goes on.
func (r *farmRun) waitSynchronised(ctx context.Context, within time.Duration) error {
	owned := 0
	var since time.Time // everything but that stood
	err := poll(ctx, within, 100*time.Millisecond, func() error {
		for n, g := range r.members {
			if !g.lost && !g.proc.Running() {
				return permanent(fmt.Errorf("%s has ended by itself: %s", n, tail(g.proc.LogPath)))
			}
		}
		var errs []error
		leaders := map[string]bool{}
		owned = 0
		for _, m := range r.living() {
			s, err := r.ask(ctx, m)
			switch {
			case err != nil:
				errs = append(errs, err)
				continue
			case !s.Synchronised || !s.Quorum || s.Leader == "":
				errs = append(errs, fmt.Errorf("%s is not synchronised: synchronised %v, quorum %v, leader %q", m, s.Synchronised, s.Quorum, s.Leader))
				continue
			}
			if err := r.backInRoute(m, &s); err != nil {
				return permanent(err)
			}
			leaders[s.Leader] = true
			owned += s.Owned
		}
		for h := range r.waiting {
			if r.f.Sites {
				errs = append(errs, fmt.Errorf("site %s has no active node", h))
			}
		}
		if len(errs) == 0 && len(leaders) != 1 {
			errs = append(errs, fmt.Errorf("members know %d leaders", len(leaders)))
		}
		if len(errs) == 0 && !r.up.IsZero() && owned != len(r.tunnels) {
			if since.IsZero() {
				since = timeNow()
			}
			if timeNow().Sub(since) > ownedPatience {
				return permanent(errOwned)
			}
			return errOwned
		}
		since = time.Time{}
		return errors.Join(errs...)
	})
	if errors.Is(err, errOwned) {
		r.expected("members own %d tunnels, %d stood", owned, len(r.tunnels))
		return nil
	}
	return err
}

var errOwned = errors.New("not every tunnel has one owner")

// ownedPatience is how long tunnels may be without an owner among members that are
// synchronised.
const ownedPatience = 3 * time.Second

func (r *farmRun) backInRoute(member string, s *FarmStatus) error {
	h := r.f.hopOf(member).name
	if !r.waiting[h] || r.f.Sites && !s.here() {
		return nil
	}
	delete(r.waiting, h)
	r.say("  %s is synchronised and has traffic again", member)
	return r.routes.back(h)
}

// who resolves random, leader, or a member's name for a step that is about to hurt
// it, and keeps what it counted.
func (r *farmRun) who(ctx context.Context, word string) (*Gateway, error) {
	g, err := r.resolve(ctx, word)
	if err == nil {
		_, _ = r.ask(ctx, g.Name) // its counters end with it
	}
	return g, err
}

func (r *farmRun) resolve(ctx context.Context, word string) (*Gateway, error) {
	if g, ok := r.members[word]; ok {
		return g, nil
	}
	active := slices.DeleteFunc(r.routes.active(), func(h string) bool { return r.gone(r.f.allHops()[r.f.hopIndex(h)], "") })
	if len(active) == 0 {
		return nil, errors.New("no member is left")
	}
	if word == "random" {
		return r.entry(ctx, active[r.rng.IntN(len(active))])
	}
	var errs []error
	for _, m := range r.living() {
		s, err := r.ask(ctx, m)
		if g := r.members[s.Leader]; err == nil && g != nil {
			return g, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(append(errs, errors.New("no member knows the leader"))...)
}

// fault notes what was just done to a member, and waits until the routers have left it.
func (r *farmRun) fault(ctx context.Context, kind faultKind, at time.Time, victim string) error {
	f := &farmFault{kind: kind, at: at, victim: victim, logFrom: map[string]int64{}}
	for _, m := range r.living() {
		if st, err := os.Stat(r.members[m].proc.LogPath); err == nil && m != victim {
			f.logFrom[m] = st.Size()
		}
	}
	r.faults = append(r.faults, f)
	h := r.f.hopOf(victim)
	if !r.gone(h, victim) {
		f.moved = at // the routers do nothing: another node has to take the addresses
		return pass(ctx, settleTime)
	}
	moved := r.routes.lost(h.name, at)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case when, ok := <-moved:
		if ok {
			f.moved = when
			r.waiting[h.name] = true
		}
	}
	return pass(ctx, settleTime)
}

// expected notes an expectation that did not hold.
func (r *farmRun) expected(format string, args ...any) {
	bad := fmt.Sprintf(format, args...)
	r.unexpected = append(r.unexpected, bad)
	r.say("  %s", bad)
}

// keep ends the captures if a failure left them running, and copies captures, logs
// and configurations out of the lab if asked to.
func (r *farmRun) keep() error {
	return keepRun(append(slices.Clone(r.outer), r.inner...), r.o.Keep, r.topo)
}

// upFarm is Up for a farm.
func upFarm(ctx context.Context, o Options) (*State, error) {
	f := farmOf(o.Example)
	f.PerCharon, f.Tandem = 1, 16
	return leave(ctx, o, &Scenario{Name: "up", Farm: f}, newFarmRun)
}
