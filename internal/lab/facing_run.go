package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// facing is one scenario of two pairs that face each other. It belongs to the goroutine
// of execute.
type facing struct {
	stage
	pairs []*facingSide

	probes     *Probes
	tcp        *Transfer
	up, ended  time.Time
	faults     []*facingFault
	unexpected []string
}

// facingSide is one pair of a run.
type facingSide struct {
	facingPair
	d      *daemonSet
	gws    map[string]*Gateway
	outer  []*Capture // at the port towards the other pair, then at the gateways' WAN ports
	inner  []*Capture // at the gateways' LAN ports
	active string     // as it last said
}

// facingFault is what was done to both pairs at once: at the first of the two moments.
type facingFault struct {
	at     time.Time
	spread time.Duration // between the two moments
	of     []*fault      // in the order of the pairs
}

// withinMoment is how far apart the faults of both pairs may lie to count as one.
const withinMoment = 20 * time.Millisecond

var facingVerbs map[string]verb[*facing]

func init() {
	facingVerbs = map[string]verb[*facing]{
		"repeat":       {"TIMES … end", wantCount, nil},
		"run":          {"TIME", wantDuration, (*facing).doRun},
		"wait":         {"synchronised [TIME]", checkSynchronised, (*facing).doWait},
		"kill-actives": {"[TIME below 20ms between the two]", checkApart, (*facing).doKill},
		"lose-actives": {"", wantNone, (*facing).doLose},
		"restore":      {"", wantNone, (*facing).doRestore},
	}
}

func checkApart(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if err := wantDuration(args); err != nil {
		return err
	}
	if d, _ := positive(args[0]); d >= withinMoment {
		return fmt.Errorf("%s is no moment: less than %v is", args[0], withinMoment)
	}
	return nil
}

// parseFacingScenario reads a scenario of two pairs that face each other.
func parseFacingScenario(name, file, text string) (*Scenario, error) {
	return (&scenarioParser{
		file: file, s: &Scenario{Name: name, Probe: 5 * time.Millisecond, TCP: 250_000},
		words: grammarOf(facingVerbs), heads: "about, traffic, steps, bound", model: &Result{},
	}).parse(text)
}

// loadFacingScenario reads a scenario of two pairs.
func loadFacingScenario(example, name string) (*Scenario, error) {
	return loadScenario(example, name, parseFacingScenario)
}

func newFacing(ctx context.Context, o Options, s *Scenario) (*facing, error) {
	topo, err := BuildFacing(o.ID)
	if err != nil {
		return nil, err
	}
	r := &facing{stage: stage{o: o, s: s, topo: topo, began: timeNow()}}
	r.res = Result{Scenario: s.Name, Client: ClientTandem, Takeovers: []Takeover{}, Violations: []string{}}
	for _, p := range facingPairs {
		side := &facingSide{facingPair: p, d: &daemonSet{bin: o.Binary, status: BinaryStatus(o.Binary, topo.socketOf), cluster: "cluster-" + p.Name}}
		if side.gws, err = topo.prepareGateways(ctx, side.d, o.Example, p.Nodes); err != nil {
			return nil, errors.Join(err, topo.Close())
		}
		for _, g := range side.gws {
			g.devices = []string{"wan0", "lan0"}
		}
		r.pairs = append(r.pairs, side)
	}
	r.announce()
	return r, nil
}

func (r *facing) sockets() map[string]string {
	out := map[string]string{}
	for _, p := range r.pairs {
		maps.Copy(out, socketsOf(p.gws))
	}
	return out
}

// start brings both pairs up.
func (r *facing) start(ctx context.Context) error {
	for _, p := range r.pairs {
		for _, n := range p.Nodes {
			if err := r.topo.startGateway(p.d, p.gws[n]); err != nil {
				return err
			}
		}
	}
	return r.waitSynchronised(ctx, 60*time.Second)
}

// execute runs everything up to the end of the steps.
func (r *facing) execute(ctx context.Context) error {
	for _, p := range r.pairs {
		for _, port := range append([]string{farPort}, p.Nodes...) {
			c, err := r.topo.StartCapture(p.WAN, port)
			if err != nil {
				return err
			}
			p.outer = append(p.outer, c)
		}
		for _, port := range p.Nodes {
			c, err := r.topo.StartCapture(p.LAN, port)
			if err != nil {
				return err
			}
			p.inner = append(p.inner, c)
		}
	}
	err := r.start(ctx)
	if err == nil {
		err = r.traffic(ctx)
	}
	if err != nil {
		return err
	}
	err = runSteps(r, ctx, facingVerbs, r.s.Steps)
	r.ended = timeNow()
	return err
}

func (r *facing) newProbes() (*Probes, error) {
	a, b := r.pairs[0], r.pairs[1]
	return r.topo.StartProbes(a.Host, addrOf(a.HostAddr), b.Host, addrOf(b.HostAddr), r.s.Probe)
}

// traffic waits until the tunnel carries probes both ways, and begins what is measured.
func (r *facing) traffic(ctx context.Context) error {
	warm, err := r.newProbes()
	if err != nil {
		return err
	}
	err = poll(ctx, 30*time.Second, 20*time.Millisecond, func() error {
		if a, b := warm.Received(); a < 10 || b < 10 {
			return fmt.Errorf("the tunnel carries no traffic (%d probes reached the host of %s, %d that of %s)", a, r.pairs[0].Name, b, r.pairs[1].Name)
		}
		return nil
	})
	if err == nil {
		err = r.oneTunnel(ctx)
	}
	warm.Stop(100 * time.Millisecond)
	if err == nil {
		err = r.waitSynchronised(ctx, 30*time.Second)
	}
	if err != nil {
		return err
	}
	r.up = timeNow()
	if r.s.TCP > 0 {
		if r.tcp, err = r.topo.StartTransfer(ctx, r.pairs[0].Host, r.pairs[1].Host, addrOf(r.pairs[1].HostAddr), r.s.TCP); err != nil {
			return err
		}
	}
	if r.probes, err = r.newProbes(); err != nil {
		return err
	}
	r.say("tunnel is up; probes every %v both ways, TCP at %d kB/s", r.s.Probe, r.s.TCP/1000)
	return nil
}

// oneTunnel waits until one IKE SA with one Child SA is left: both pairs begin by
// themselves, and what they made at the same time is sorted out after it.
func (r *facing) oneTunnel(ctx context.Context) error {
	return poll(ctx, 60*time.Second, 100*time.Millisecond, func() error {
		for _, p := range r.pairs {
			for _, n := range p.Nodes {
				all, err := ikeSAs(ctx, r.o.Binary, p.gws[n].Socket)
				if err != nil {
					return err
				}
				if all != [2]int{1, 1} {
					return fmt.Errorf("%s has %d IKE SAs and %d Child SAs", n, all[0], all[1])
				}
			}
		}
		return nil
	})
}

// waitSynchronised waits until each pair has one owner and one standby that agree.
func (r *facing) waitSynchronised(ctx context.Context, within time.Duration) error {
	return poll(ctx, within, 100*time.Millisecond, func() error {
		for _, p := range r.pairs {
			var of [2]HAStatus
			for i, n := range p.Nodes {
				if g := p.gws[n]; !g.lost && !g.proc.Running() {
					return permanent(fmt.Errorf("%s has ended by itself: %s", n, tail(g.proc.LogPath)))
				}
				s, err := p.d.status(ctx, n)
				if err != nil {
					return err
				}
				of[i] = s
			}
			a, b := of[0], of[1]
			if (a.Role == RolePrimary) == (b.Role == RolePrimary) || !a.Synchronised || !b.Synchronised || a.Epoch != b.Epoch {
				return fmt.Errorf("%s is not synchronised: %s, synchronised %v, epoch %d; %s, synchronised %v, epoch %d",
					p.Name, a.Role, a.Synchronised, a.Epoch, b.Role, b.Synchronised, b.Epoch)
			}
			p.active = p.Nodes[0]
			if b.Role == RolePrimary {
				p.active = p.Nodes[1]
			}
		}
		return nil
	})
}

func (r *facing) doWait(ctx context.Context, s Step) error {
	return r.waitSynchronised(ctx, patienceOf(s))
}

// begin notes what is about to be done to the active gateways, which pair first in turn.
func (r *facing) begin(ctx context.Context, kind faultKind) (f *facingFault, order []int) {
	f = &facingFault{}
	for _, p := range r.pairs {
		x := &fault{kind: kind, victim: p.active, survivor: p.other(p.active), widened: fenceWidenedAt(ctx, r.o.Binary, p.gws[p.active].Socket)}
		if st, err := os.Stat(p.gws[x.survivor].proc.LogPath); err == nil {
			x.logFrom = st.Size()
		}
		f.of = append(f.of, x)
	}
	if order = []int{0, 1}; len(r.faults)%2 == 1 {
		order = []int{1, 0}
	}
	r.faults = append(r.faults, f)
	return f, order
}

func (r *facing) doKill(ctx context.Context, s Step) error {
	var apart time.Duration
	if len(s.Args) > 0 {
		apart, _ = positive(s.Args[0])
	}
	f, order := r.begin(ctx, faultKill)
	pids := make([]int, len(r.pairs))
	for i, p := range r.pairs {
		var err error
		if _, pids[i], err = p.gws[p.active].pids(p.d); err != nil {
			return err
		}
	}
	err := promptly(func() error {
		f.of[order[0]].at = timeNow()
		err := syscall.Kill(pids[order[0]], syscall.SIGKILL)
		if apart > 0 {
			next := unix.NsecToTimespec(apart.Nanoseconds())
			for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &next, &next) == unix.EINTR {
			}
		}
		f.of[order[1]].at = timeNow()
		return errors.Join(err, syscall.Kill(pids[order[1]], syscall.SIGKILL))
	})
	if err != nil {
		return err
	}
	return r.afterFault(ctx, f, order)
}

// promptly runs f on a thread ahead of ordinary load, if the machine allows.
func promptly(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread's priority ends with it
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		done <- f()
	}()
	return <-done
}

func (r *facing) doLose(ctx context.Context, _ Step) error {
	f, order := r.begin(ctx, faultLoss)
	// Both hosts fall silent at once; what is done about them afterwards takes longer.
	both := []*Gateway{r.pairs[order[0]].gws[f.of[order[0]].victim], r.pairs[order[1]].gws[f.of[order[1]].victim]}
	at, err := r.topo.lose(r.pairs[0].d, both...)
	if err != nil {
		return err
	}
	f.of[0].at, f.of[1].at = at, at
	return r.afterFault(ctx, f, order)
}

// afterFault waits for both successors, and lets the traffic settle. Survivors that do not
// take over are for the bounds to judge.
func (r *facing) afterFault(ctx context.Context, f *facingFault, order []int) error {
	f.at = f.of[order[0]].at
	f.spread = f.of[order[1]].at.Sub(f.at)
	r.say("%s of %s and %s, %.1f ms apart", f.of[0].kind.name, f.of[order[0]].victim, f.of[order[1]].victim, milliseconds(f.spread))
	r.res.FaultSpreadMS = max(r.res.FaultSpreadMS, milliseconds(f.spread))
	for i, p := range r.pairs {
		x := f.of[i]
		err := poll(ctx, r.o.patience, 50*time.Millisecond, func() error {
			h, err := p.d.status(ctx, x.survivor)
			if err == nil && h.Role != RolePrimary {
				err = fmt.Errorf("%s is %s", x.survivor, h.Role)
			}
			if err == nil {
				x.told, x.toldOK = h, true
			}
			return err
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.unexpected = append(r.unexpected, fmt.Sprintf("%s of %s: no takeover: %v", x.kind.name, x.victim, err))
			r.say("  no takeover: %v", err)
			continue
		}
		p.active = x.survivor
		r.say("  %s is active: %s", x.survivor, x.told.Reason)
	}
	return pass(ctx, settleTime)
}

func (r *facing) doRestore(_ context.Context, _ Step) error {
	for _, p := range r.pairs {
		for _, n := range p.Nodes {
			if err := r.topo.restore(p.d, p.gws[n]); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep ends the captures if a failure left them running, and copies what was asked for.
func (r *facing) keep() error {
	var errs []error
	for _, p := range r.pairs {
		for _, c := range append(append([]*Capture(nil), p.outer...), p.inner...) {
			_, err := c.Stop()
			errs = append(errs, err)
		}
	}
	if r.o.Keep != "" {
		errs = append(errs, os.CopyFS(r.o.Keep, keptFiles(r.topo.Dir)))
	}
	return errors.Join(errs...)
}
