package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// farmVerbsOf are the steps of a farm with these members.
func farmVerbsOf(members []string) map[string]verb[*farmRun] {
	anyMember := wantOneOf(append([]string{"random", "leader"}, members...)...)
	member := wantOneOf(members...)
	wantMembers := func(args []string) error {
		for _, a := range args {
			if !slices.Contains(members, a) {
				return fmt.Errorf("%q is no member", a)
			}
		}
		return nil
	}
	checkFarmExpect := func(args []string) error {
		switch {
		case len(args) == 1 && args[0] == "agreed":
			return nil
		case len(args) == 2 && (args[0] == "ignorant" || args[0] == "quorum" || args[0] == "no-quorum"):
			return wantMembers(args[1:])
		}
		return errors.New("does not know what to expect")
	}
	checkSilent := func(args []string) error {
		if len(args) != 2 {
			return errors.New("needs a member and a time")
		}
		return errors.Join(wantMembers(args[:1]), wantDuration(args[1:]))
	}
	return map[string]verb[*farmRun]{
		"repeat":      {"TIMES … end", wantCount, nil},
		"run":         {"TIME", wantDuration, (*farmRun).doRun},
		"wait":        {"synchronised, with TIME at most", checkSynchronised, (*farmRun).doWait},
		"kill":        {"random|leader|MEMBER", anyMember, (*farmRun).doKill},
		"lose":        {"random|leader|MEMBER", anyMember, (*farmRun).doLose},
		"restore":     {"", wantNone, (*farmRun).doRestore},
		"drain":       {"random|leader|MEMBER", anyMember, (*farmRun).doDrain},
		"undrain":     {"", wantNone, (*farmRun).doUndrain},
		"rehash":      {"[MEMBER…]", wantMembers, (*farmRun).doRehash},
		"cut-sync":    {"MEMBER", member, (*farmRun).doCutSync},
		"join-sync":   {"MEMBER", member, (*farmRun).doJoinSync},
		"regressions": {"tolerated|counted", wantOneOf("tolerated", "counted"), (*farmRun).doRegressions},
		"expect":      {"agreed | ignorant MEMBER | quorum MEMBER | no-quorum MEMBER", checkFarmExpect, (*farmRun).doExpect},
		"carries":     {"TIME [TUNNELS]", checkCarries, (*farmRun).doCarries},
		"silent":      {"MEMBER TIME", checkSilent, (*farmRun).doSilent},
		"replay":      {"TIME", wantDuration, (*farmRun).doReplay},
	}
}

func checkCarries(args []string) error {
	if len(args) == 2 {
		if err := wantCount(args[1:]); err != nil {
			return err
		}
		args = args[:1]
	}
	return wantDuration(args)
}

func (r *farmRun) doWait(ctx context.Context, s Step) error {
	return r.waitSynchronised(ctx, patienceOf(s))
}

func (r *farmRun) doKill(ctx context.Context, s Step) error {
	g, err := r.who(ctx, s.Args[0])
	if err != nil {
		return err
	}
	_, daemon, err := g.pids(r.d)
	if err != nil {
		return err
	}
	at := timeNow()
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		return err
	}
	r.say("SIGKILL of the daemon of %s", g.Name)
	return r.fault(ctx, faultKill, at, g.Name)
}

func (r *farmRun) doLose(ctx context.Context, s Step) error {
	g, err := r.who(ctx, s.Args[0])
	if err != nil {
		return err
	}
	at, err := r.topo.lose(r.d, g)
	if err != nil {
		return err
	}
	r.say("loss of the host of %s: links cut, guardian and daemon gone", g.Name)
	return r.fault(ctx, faultLoss, at, g.Name)
}

func (r *farmRun) doRestore(_ context.Context, _ Step) error {
	for _, n := range r.started() {
		if err := r.topo.restore(r.d, r.members[n]); err != nil {
			return err
		}
	}
	return r.startWitness()
}

// doDrain moves a member's tunnels off it, and its traffic when that is done.
func (r *farmRun) doDrain(ctx context.Context, s Step) error {
	g, err := r.who(ctx, s.Args[0])
	if err != nil {
		return err
	}
	at := timeNow()
	if err := r.command(ctx, g.Name, "execute", "ha", "drain"); err != nil {
		return err
	}
	r.drained = g.Name
	r.say("%s is drained: that took %.0f ms", g.Name, milliseconds(timeNow().Sub(at)))
	st, err := r.ask(ctx, g.Name)
	if err != nil {
		return err
	}
	if st.Owned > 0 {
		r.expected("%s is drained and owns %d tunnels", g.Name, st.Owned)
	}
	return r.fault(ctx, faultHandover, at, g.Name)
}

// doUndrain lets the drained member have tunnels again.
func (r *farmRun) doUndrain(ctx context.Context, _ Step) error {
	if r.drained == "" {
		return errors.New("nobody was drained")
	}
	return r.command(ctx, r.drained, "execute", "ha", "drain", "off")
}

// command runs one of the daemon's commands.
func (r *farmRun) command(ctx context.Context, member string, words ...string) error {
	_, err := memberCommand(ctx, r.members[member].Socket, words...)
	if err != nil {
		return fmt.Errorf("%s: %w", member, err)
	}
	return nil
}

func (r *farmRun) doRehash(ctx context.Context, s Step) error {
	if err := r.routes.rehash(s.Args); err != nil {
		return err
	}
	r.say("the router spreads anew: %s", strings.Join(r.routes.active(), " "))
	return pass(ctx, 2*settleTime)
}

func (r *farmRun) doCutSync(ctx context.Context, s Step) error {
	if _, err := r.who(ctx, s.Args[0]); err != nil {
		return err
	}
	r.say("%s is cut off from the sync network; clients still reach it", s.Args[0])
	return r.topo.CutSync(s.Args[0])
}

func (r *farmRun) doJoinSync(_ context.Context, s Step) error {
	r.say("%s is on the sync network again", s.Args[0])
	return r.topo.JoinSync(s.Args[0])
}

func (r *farmRun) doExpect(ctx context.Context, s Step) error {
	var err error
	switch s.Args[0] {
	case "agreed":
		err = r.agreed(ctx, time.Second)
	case "ignorant":
		var held map[string]heldTunnel
		if held, err = r.held(ctx, s.Args[1]); err == nil && len(held) > 0 {
			err = fmt.Errorf("%s knows %d tunnels", s.Args[1], len(held))
		}
	default:
		want := s.Args[0] == "quorum"
		err = poll(ctx, 2*time.Second, 100*time.Millisecond, func() error {
			st, err := r.ask(ctx, s.Args[1])
			if err == nil && st.Quorum != want {
				err = fmt.Errorf("%s says that its quorum is %v", s.Args[1], st.Quorum)
			}
			if err == nil && !want && len(st.Alarms) == 0 {
				err = fmt.Errorf("%s has lost its quorum and raises no alarm", s.Args[1])
			}
			return err
		})
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.expected("expect %s: %v", strings.Join(s.Args, " "), err)
	}
	return nil
}

// agreed waits until the living members list the same tunnels.
func (r *farmRun) agreed(ctx context.Context, within time.Duration) error {
	list := func() (map[string]map[string]heldTunnel, error) {
		all := map[string]map[string]heldTunnel{}
		for _, m := range r.living() {
			held, err := r.held(ctx, m)
			if err != nil {
				return nil, err
			}
			all[m] = held
		}
		return all, nil
	}
	return poll(ctx, within, 50*time.Millisecond, func() error {
		first, err := list()
		if err != nil {
			return err
		}
		second, err := list()
		if err != nil {
			return err
		}
		if bad := disagreement(first, second, len(r.tunnels)); bad != "" {
			return errors.New(bad)
		}
		return nil
	})
}

func (r *farmRun) doCarries(ctx context.Context, s Step) error {
	d, _ := positive(s.Args[0])
	least := len(r.tunnels)
	if len(s.Args) > 1 {
		_, _ = fmt.Sscan(s.Args[1], &least) // checked when parsed
	}
	from := timeNow()
	err := pass(ctx, d)
	r.carries = append(r.carries, carry{Interval{from, timeNow()}, least})
	return err
}

func (r *farmRun) doSilent(ctx context.Context, s Step) error {
	d, _ := positive(s.Args[1])
	from := timeNow()
	err := pass(ctx, d)
	r.silences = append(r.silences, silence{Interval: Interval{from, timeNow()}, member: s.Args[0]})
	return err
}

// doReplay sends what the clients sent to the last victim before its death again, to
// every member that has traffic.
func (r *farmRun) doReplay(ctx context.Context, s Step) error {
	d, _ := positive(s.Args[0])
	if len(r.faults) == 0 {
		return errors.New("there was no fault yet")
	}
	f := r.faults[len(r.faults)-1]
	from, to := f.at.Add(-d), timeNow().Add(-200*time.Millisecond)
	var frames [][]byte
	for _, c := range r.outer {
		if err := c.Flush(); err != nil {
			return err
		}
		got, err := clientESP(c.Path, from, to)
		if err != nil {
			return err
		}
		frames = append(frames, got...)
	}
	sent := 0
	for _, hop := range r.routes.active() {
		g, err := r.entry(ctx, hop)
		if err != nil {
			return err
		}
		mac, err := r.topo.hardwareAddress(g.Name, "port2")
		if err != nil {
			return err
		}
		n, err := r.topo.arrive(g.Name, func() (int, error) { return r.topo.InjectAt(NodeRouter, hop, mac, frames) })
		sent += n
		if err != nil {
			return err
		}
	}
	r.res.Replayed += sent
	r.say("%d captured packets of clients sent again", sent)
	return pass(ctx, settleTime)
}
