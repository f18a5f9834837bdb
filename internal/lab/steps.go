package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// verb is one word of a scenario's steps, carried out by R.
type verb[R any] struct {
	usage string
	check func(args []string) error
	do    func(r R, ctx context.Context, s Step) error
}

// grammarOf is what the parser needs of a table of verbs.
func grammarOf[R any](verbs map[string]verb[R]) map[string]grammar {
	g := map[string]grammar{}
	for k, v := range verbs {
		g[k] = grammar{v.usage, v.check}
	}
	return g
}

// settleTime is how long traffic runs on after a fault before anything else is
// done to the pair, so that the gap around it is whole.
const settleTime = time.Second

var verbs map[string]verb[*run]

// The table's functions run steps, which look into the table.
func init() {
	verbs = map[string]verb[*run]{
		"repeat":          {"TIMES … end", wantCount, nil},
		"run":             {"TIME", wantDuration, (*run).doRun},
		"wait":            {"synchronised|takeover|child-rekeys N|ike-rekeys N, each with TIME at most", checkWait, (*run).doWait},
		"kill":            {"active|standby|gw1|gw2", wantNode, (*run).doKill},
		"lose":            {"active|standby|gw1|gw2", wantNode, (*run).doLose},
		"restore":         {"", wantNone, (*run).doRestore},
		"freeze":          {"active|standby|gw1|gw2 TIME", checkFreeze, (*run).doFreeze},
		"freeze-host":     {"active|standby|gw1|gw2 TIME", checkFreeze, (*run).doFreezeHost},
		"pause-both":      {"TIME", wantDuration, (*run).doPause},
		"handover":        {"", wantNone, (*run).doHandover},
		"cut-heartbeats":  {"[hb0|hb1…]", wantLinks, (*run).doCut},
		"join-heartbeats": {"[hb0|hb1…]", wantLinks, (*run).doJoin},
		"regressions":     {"tolerated|counted", wantOneOf("tolerated", "counted"), (*run).doRegressions},
		"expect":          {"unchanged|one-owner", wantOneOf("unchanged", "one-owner"), (*run).doExpect},
		"replay":          {"TIME", wantDuration, (*run).doReplay},
		"probes":          {"pause|resume", wantOneOf("pause", "resume"), (*run).doProbes},
		"rekey":           {"client|gateway child|ike", checkRekey, (*run).doRekey},
	}
}

func wantNone(args []string) error {
	if len(args) > 0 {
		return errors.New("takes nothing")
	}
	return nil
}

func wantCount(args []string) error {
	if len(args) == 1 {
		if n, err := strconv.Atoi(args[0]); err == nil && n > 0 && n <= 1000 {
			return nil
		}
	}
	return errors.New("needs a number from 1 to 1000")
}

func wantDuration(args []string) error {
	if len(args) != 1 {
		return errors.New("needs a time")
	}
	_, err := positive(args[0])
	return err
}

func wantOneOf(words ...string) func([]string) error {
	return func(args []string) error {
		for _, w := range words {
			if len(args) == 1 && args[0] == w {
				return nil
			}
		}
		return errors.New("needs one of " + strings.Join(words, ", "))
	}
}

var wantNode = wantOneOf("active", "standby", NodeGW1, NodeGW2)

func wantLinks(args []string) error {
	for _, a := range args {
		if err := wantOneOf(HBLinks...)([]string{a}); err != nil {
			return err
		}
	}
	return nil
}

func checkFreeze(args []string) error {
	if len(args) != 2 {
		return errors.New("needs a node and a time")
	}
	return errors.Join(wantNode(args[:1]), wantDuration(args[1:]))
}

func checkWait(args []string) error {
	n := 1
	if len(args) > 0 && (args[0] == "child-rekeys" || args[0] == "ike-rekeys") {
		n = 2
		if len(args) < 2 || wantCount(args[1:2]) != nil {
			return errors.New("needs a number of rekeys")
		}
	} else if len(args) == 0 || args[0] != "synchronised" && args[0] != "takeover" {
		return errors.New("does not know what to wait for")
	}
	if len(args) == n {
		return nil
	}
	return wantDuration(args[n:])
}

func checkRekey(args []string) error {
	if len(args) != 2 {
		return errors.New("needs who and what")
	}
	return errors.Join(wantOneOf("client", "gateway")(args[:1]), wantOneOf("child", "ike")(args[1:]))
}

func (r *run) steps(ctx context.Context, steps []Step) error { return runSteps(r, ctx, verbs, steps) }

// runSteps carries out steps one after another.
func runSteps[R any](r R, ctx context.Context, verbs map[string]verb[R], steps []Step) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.Verb == "repeat" {
			n, _ := strconv.Atoi(s.Args[0]) // checked when parsed
			for range n {
				if err := runSteps(r, ctx, verbs, s.Body); err != nil {
					return err
				}
			}
			continue
		}
		if err := verbs[s.Verb].do(r, ctx, s); err != nil {
			return fmt.Errorf("step %s (line %d): %w", strings.Join(append([]string{s.Verb}, s.Args...), " "), s.Line, err)
		}
	}
	return nil
}

// pass lets time go by under traffic.
func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (r *run) doWait(ctx context.Context, s Step) error {
	within := 30 * time.Second
	if s.Args[0] != "synchronised" && s.Args[0] != "takeover" {
		within = 10 * time.Minute
	}
	if d, err := positive(s.Args[len(s.Args)-1]); err == nil {
		within = d
	}
	switch s.Args[0] {
	case "synchronised":
		return r.waitSynchronised(ctx, within)
	case "takeover":
		if len(r.faults) == 0 {
			return errors.New("nothing was done yet")
		}
		return r.waitTakeover(ctx, r.faults[len(r.faults)-1], within)
	}
	if r.charon == nil {
		return errors.New("only charon reports its rekeys as they happen")
	}
	want, _ := strconv.Atoi(s.Args[1])
	last, since := -1, time.Now()
	return poll(ctx, within, 100*time.Millisecond, func() error {
		e := r.charon.Events()
		n := e.ChildRekeys - r.before.ChildRekeys
		if n != last {
			last, since = n, time.Now()
		}
		if every := r.s.ClientChildRekey; every > 0 && time.Since(since) > 3*every {
			// A Child SA whose time comes within the millisecond in which it moves to
			// the next IKE SA is not found by charon's rekeying job, and never again.
			r.say("  charon let its rekey of the Child SA lapse, and is asked for one")
			since = time.Now()
			if err := r.charon.Rekey(ctx, "net", ""); err != nil {
				return err
			}
		}
		if s.Args[0] == "ike-rekeys" {
			n = e.IKERekeys - r.before.IKERekeys
		}
		if n < want {
			return fmt.Errorf("%d of %d rekeys", n, want)
		}
		return nil
	})
}

// waitTakeover waits until the survivor is primary and keeps what it says, then
// lets the traffic settle. A survivor that does not take over is for the bounds
// to judge, and the run goes on.
func (r *run) waitTakeover(ctx context.Context, f *fault, within time.Duration) error {
	err := poll(ctx, within, 50*time.Millisecond, func() error {
		h, err := r.d.status(ctx, f.survivor)
		if err != nil {
			return err
		}
		if h.Role != RolePrimary {
			return fmt.Errorf("%s is %s", f.survivor, h.Role)
		}
		f.told, f.toldOK = h, true
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.unexpected = append(r.unexpected, fmt.Sprintf("%s of %s: no takeover: %v", f.kind.name, f.victim, err))
		r.say("  no takeover: %v", err)
		return nil
	}
	r.mu.Lock()
	r.active = f.survivor
	r.mu.Unlock()
	r.say("  %s is active: %s", f.survivor, f.told.Reason)
	return pass(ctx, settleTime)
}

func (r *run) doKill(ctx context.Context, s Step) error {
	g, err := r.who(ctx, s.Args[0])
	if err != nil {
		return err
	}
	_, daemon, err := g.pids(r.d)
	if err != nil {
		return err
	}
	wasActive := g.Name == r.activeName()
	f := r.fault(faultKill, timeNow(), g.Name)
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		return err
	}
	r.say("SIGKILL of the daemon of %s", g.Name)
	return r.afterFault(ctx, f, wasActive)
}

// afterFault waits for the successor of an active victim.
func (r *run) afterFault(ctx context.Context, f *fault, wasActive bool) error {
	if !wasActive {
		f.kind.takeover = false
		return pass(ctx, settleTime)
	}
	return r.waitTakeover(ctx, f, r.o.patience)
}

func (r *run) doLose(ctx context.Context, s Step) error {
	g, err := r.who(ctx, s.Args[0])
	if err != nil {
		return err
	}
	wasActive := g.Name == r.activeName()
	f := r.fault(faultLoss, timeNow(), g.Name)
	at, err := r.topo.lose(r.d, g)
	if err != nil {
		return err
	}
	f.at = at
	r.say("loss of the host of %s: links cut, guardian and daemon gone", g.Name)
	return r.afterFault(ctx, f, wasActive)
}

func (r *run) doRestore(ctx context.Context, _ Step) error {
	for _, n := range Gateways {
		if err := r.topo.restore(r.d, r.gws[n]); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) doFreeze(ctx context.Context, s Step) error {
	return r.freeze(ctx, s, faultFreeze, "the daemon")
}

// doFreezeHost stops all of a host: nothing is left on it that could fence the daemon
// before it wakes.
func (r *run) doFreezeHost(ctx context.Context, s Step) error {
	return r.freeze(ctx, s, faultFreezeHost, "guardian and daemon")
}

func (r *run) freeze(ctx context.Context, s Step, kind faultKind, what string) error {
	g, err := r.who(ctx, s.Args[0])
	if err != nil {
		return err
	}
	d, _ := positive(s.Args[1])
	wasActive := g.Name == r.activeName()
	guardian, daemon, err := g.pids(r.d)
	if err != nil {
		return err
	}
	pids := []int{daemon}
	if kind == faultFreezeHost && guardian != daemon {
		pids = append(pids, guardian) // after the daemon, whose silence it would notice
	}
	stopped, err := identifyAll(pids)
	if err != nil {
		return err
	}
	f := r.fault(kind, timeNow(), g.Name)
	sendAll(stopped, syscall.SIGSTOP)
	if kind == faultFreezeHost {
		err = r.topo.Mute(g.Name)
	}
	r.say("SIGSTOP of %s of %s for %v", what, g.Name, d)
	err = errors.Join(err, pass(ctx, d))
	if kind == faultFreezeHost {
		err = errors.Join(err, r.topo.Unmute(g.Name)) // before it has something to say
	}
	delays := runDelays(pids)
	f.lasted = timeNow().Sub(f.at)
	woke := sendAll(stopped, syscall.SIGCONT)
	err = errors.Join(err, pass(ctx, 2*wakeGrace))
	r.res.WakeDelayMS = max(r.res.WakeDelayMS, milliseconds(waited(delays, runDelays(pids))))
	if err != nil {
		return err
	}
	if kind == faultFreezeHost {
		// Its first packets are late ones, with numbers that its successor has left
		// behind; later than that it must be silent.
		at := f.at.Add(f.lasted)
		r.waking = append(r.waking, Interval{at, at.Add(wakeGrace)})
	}
	r.say("  SIGCONT (%s)", map[bool]string{true: "it still lived", false: "it was gone"}[woke])
	return r.afterFault(ctx, f, wasActive)
}

func (r *run) doPause(ctx context.Context, s Step) error {
	d, _ := positive(s.Args[0])
	var pids []int
	for _, n := range Gateways {
		guardian, daemon, err := r.gws[n].pids(r.d)
		if err != nil {
			return err
		}
		pids = append(pids, guardian, daemon)
	}
	all, err := identifyAll(pids)
	if err != nil {
		return err
	}
	f := r.fault(faultPause, timeNow(), r.activeName())
	sendAll(all, syscall.SIGSTOP)
	r.say("both nodes paused for %v", d)
	err = pass(ctx, d)
	sendAll(all, syscall.SIGCONT)
	f.lasted = timeNow().Sub(f.at)
	return errors.Join(err, pass(ctx, settleTime))
}

func (r *run) doHandover(ctx context.Context, _ Step) error {
	g, err := r.who(ctx, "active")
	if err != nil {
		return err
	}
	f := r.fault(faultHandover, timeNow(), g.Name)
	if err := r.command(ctx, g.Name, "execute", "ha", "failover", "set", "1"); err != nil {
		return err
	}
	r.say("planned handover from %s", g.Name)
	if err := r.waitTakeover(ctx, f, r.o.patience); err != nil {
		return err
	}
	// The wish is done with: it must not stand in the way of the way back.
	return r.command(ctx, g.Name, "execute", "ha", "failover", "unset", "1")
}

func (r *run) doCut(_ context.Context, s Step) error {
	r.fault(faultSplit, timeNow(), r.activeName())
	r.say("heartbeat links cut: %s", strings.Join(orAll(s.Args), " "))
	return r.topo.CutHeartbeats(s.Args...)
}

func (r *run) doJoin(_ context.Context, s Step) error {
	if err := r.topo.RestoreHeartbeats(s.Args...); err != nil {
		return err
	}
	for i := len(r.faults) - 1; i >= 0; i-- {
		if f := r.faults[i]; f.kind == faultSplit && f.lasted == 0 {
			f.lasted = timeNow().Sub(f.at)
			break
		}
	}
	r.say("heartbeat links joined: %s", strings.Join(orAll(s.Args), " "))
	return nil
}

func orAll(links []string) []string {
	if len(links) == 0 {
		return HBLinks
	}
	return links
}

// tolerance is when regressions of sequence numbers do not count.
type tolerance struct{ tolerated []Interval }

func (r *tolerance) doRegressions(_ context.Context, s Step) error {
	now := timeNow()
	if s.Args[0] == "tolerated" {
		r.tolerated = append(r.tolerated, Interval{From: now, To: now.Add(time.Hour)})
	} else if n := len(r.tolerated); n > 0 {
		r.tolerated[n-1].To = now
	}
	return nil
}

func (r *run) doExpect(ctx context.Context, s Step) error {
	all, err := r.statuses(ctx)
	bad := ""
	switch {
	case s.Args[0] == "one-owner":
		if o := owners(all); len(o) != 1 {
			bad = fmt.Sprintf("%d owners", len(o))
		}
	case err != nil:
		bad = err.Error()
	default:
		for _, n := range Gateways {
			a, b := r.noted[n], all[n]
			if a.Role != b.Role || a.Epoch != b.Epoch || a.DaemonPID != b.DaemonPID || a.GuardianPID != b.GuardianPID || !b.Synchronised {
				bad += fmt.Sprintf("%s was %s in epoch %d with daemon %d, is %s in epoch %d with daemon %d, synchronised %v; ",
					n, a.Role, a.Epoch, a.DaemonPID, b.Role, b.Epoch, b.DaemonPID, b.Synchronised)
			}
		}
	}
	if bad != "" {
		bad = "expect " + s.Args[0] + ": " + strings.TrimSuffix(bad, "; ")
		r.unexpected = append(r.unexpected, bad)
		r.say("  %s", bad)
	}
	return nil
}

func (r *run) doReplay(ctx context.Context, s Step) error {
	d, _ := positive(s.Args[0])
	if len(r.faults) == 0 {
		return errors.New("there was no takeover yet")
	}
	f := r.faults[len(r.faults)-1]
	client, gateway := r.caps[0], r.captureOf(f.survivor)
	// What went to the dead gateway, and what the survivor has delivered itself
	// up to a moment ago: a packet still under way would be delivered for the first
	// time.
	from, to := f.at.Add(-d), timeNow().Add(-200*time.Millisecond)
	if err := errors.Join(client.Flush(), gateway.Flush()); err != nil {
		return err
	}
	frames, err := replayable(client.Path, from, to)
	if err != nil {
		return err
	}
	mac, err := lastHardwareAddress(gateway.Path)
	if err != nil {
		return err
	}
	r.replays = append(r.replays, timeNow())
	n, err := r.topo.arrive(f.survivor, func() (int, error) { return r.topo.Inject(f.survivor, mac, frames) })
	r.res.Replayed += n
	r.say("%d captured packets of the client sent again to %s", n, f.survivor)
	return errors.Join(err, pass(ctx, settleTime))
}

// captureOf is the capture on the WAN port of a gateway.
func (r *run) captureOf(gw string) *Capture {
	for _, c := range r.caps[:3] {
		if c.Port == gw {
			return c
		}
	}
	return nil
}

func (r *run) doProbes(_ context.Context, s Step) error {
	now := timeNow()
	if s.Args[0] == "pause" {
		r.probes.Pause()
		r.quiet = append(r.quiet, Interval{From: now, To: now.Add(time.Hour)})
		return nil
	}
	r.probes.Resume()
	if n := len(r.quiet); n > 0 {
		r.quiet[n-1].To = now
	}
	return nil
}

func (r *run) doRekey(ctx context.Context, s Step) error {
	if s.Args[0] == "gateway" {
		return r.gatewayRekey(ctx, r.activeName(), s.Args[1])
	}
	if r.charon == nil {
		return errors.New("only charon can be told to rekey")
	}
	if s.Args[1] == "child" {
		return r.charon.Rekey(ctx, "net", "")
	}
	return r.charon.Rekey(ctx, "", "gw")
}

func commandOutput(ctx context.Context, bin string, args []string) (string, error) {
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	return string(out), err
}

// keptFiles is a lab's folder without its sockets and the cluster's keys.
func keptFiles(dir string) fs.FS { return regularOnly{os.DirFS(dir)} }

// regularOnly hides what is neither a folder nor a regular file.
type regularOnly struct{ fs.FS }

func (f regularOnly) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := fs.ReadDir(f.FS, name)
	var kept []fs.DirEntry
	for _, e := range all {
		if e.IsDir() && !strings.HasPrefix(e.Name(), "cluster") || e.Type().IsRegular() {
			kept = append(kept, e)
		}
	}
	return kept, err
}
