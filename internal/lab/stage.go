package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// stage is what every run of a scenario has, whatever it is about.
type stage struct {
	o     Options
	s     *Scenario
	topo  *Topology
	began time.Time
	res   Result
}

func (r *stage) on() *stage { return r }

// say tells how far the run is.
func (r *stage) say(format string, args ...any) {
	fmt.Fprintf(r.o.Progress, "%7.1fs  %s\n", timeNow().Sub(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// announce says what is about to be played.
func (r *stage) announce() {
	r.say("lab %s: %s", r.topo.ID, r.s.Name)
	if r.s.About != "" {
		r.say("%s", r.s.About)
	}
}

func (r *stage) doRun(ctx context.Context, s Step) error {
	d, _ := positive(s.Args[0])
	return pass(ctx, d)
}

// checkSynchronised checks `wait synchronised [TIME]`.
func checkSynchronised(args []string) error {
	if len(args) == 0 || args[0] != "synchronised" {
		return errors.New("does not know what to wait for")
	}
	if len(args) == 1 {
		return nil
	}
	return wantDuration(args[1:])
}

// patienceOf is how long `wait synchronised` may take.
func patienceOf(s Step) time.Duration {
	if len(s.Args) > 1 {
		d, _ := positive(s.Args[1])
		return d
	}
	return 30 * time.Second
}

// scenarioRun is a run of a scenario whose lab stands.
type scenarioRun interface {
	on() *stage
	start(context.Context) error
	execute(context.Context) error
	settle(context.Context) error
	keep() error
	sockets() map[string]string // of the admin API, by node
}

// maker builds the lab of a scenario.
type maker[R scenarioRun] func(context.Context, Options, *Scenario) (R, error)

// play runs a scenario, reports, keeps what is asked for, and removes the lab.
func play[R scenarioRun](ctx context.Context, o Options, load func(example, name string) (*Scenario, error), build maker[R]) (res Result, err error) {
	s, err := load(o.Example, o.Scenario)
	if err != nil {
		return Result{}, err
	}
	r, err := build(ctx, o, s)
	if err != nil {
		return Result{}, err
	}
	p := r.on()
	defer func() { res, err = p.res, errors.Join(err, r.keep(), p.topo.Close()) }()
	if err := r.execute(ctx); err != nil {
		if ctx.Err() != nil {
			return p.res, errors.New("interrupted")
		}
		return p.res, err
	}
	if err := r.settle(ctx); err != nil {
		return p.res, err
	}
	p.res.Report(o.Progress)
	return p.res, nil
}

// leave starts a scenario's lab and leaves it standing.
func leave[R scenarioRun](ctx context.Context, o Options, s *Scenario, build maker[R]) (*State, error) {
	r, err := build(ctx, o, s)
	if err != nil {
		return nil, err
	}
	p := r.on()
	if err = r.start(ctx); err == nil {
		err = p.topo.Keep(r.sockets(), o.Binary, o.Example)
	}
	if err != nil {
		return nil, errors.Join(err, p.topo.Close())
	}
	state := p.topo.state
	return &state, nil
}

func socketsOf(gws map[string]*Gateway) map[string]string {
	out := map[string]string{}
	for _, g := range gws {
		out[g.Name] = g.Socket
	}
	return out
}
