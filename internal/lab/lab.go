package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"tandem/internal/timerslack"
)

// Clients.
const (
	ClientCharon = "charon"
	ClientTandem = "tandem"
)

// Options of a run.
type Options struct {
	Binary   string    // tandem
	Example  string    // folder: gw1.conf, gw2.conf, client.swanctl, client.conf, scenarios/
	Scenario string    // name; empty: demo
	Client   string    // ClientCharon (the default) or ClientTandem
	ID       string    // of the lab; empty: a new one
	Keep     string    // folder that receives captures and logs; empty: they are removed
	KeyLog   bool      // charon prints its keys into its log, which Keep keeps: for tshark
	Progress io.Writer // lines while it runs, and the report; nil: silence

	// For tests of the lab itself: other programs as gateways.
	status      StatusFunc
	argv        func(node, config string) []string
	single      bool
	farmStatus  FarmStatusFunc
	farmTunnels tunnelsFunc
	// How long a takeover, and the end of the transfer, may take before the run
	// goes on without.
	patience time.Duration
}

// Run builds the lab, runs one scenario, reports, and removes everything, also
// when it is interrupted. A violated bound is a Result with VerdictFail, not an error.
// ErrNoCharon is returned before anything is built.
func Run(ctx context.Context, o Options) (Result, error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if o.Scenario == "" {
		o.Scenario = "demo"
	}
	if err := timerslack.Widen(timerslack.Daemon); err != nil { // the lab is root
		return Result{}, err
	}
	if err := o.defaults(); err != nil {
		return Result{}, err
	}
	switch {
	case isFarm(o.Example):
		return play(ctx, o, LoadFarmScenario, newFarmRun)
	case isVCluster(o.Example):
		return play(ctx, o, LoadVClusterScenario, newVRun)
	case isFacing(o.Example):
		return play(ctx, o, loadFacingScenario, newFacing)
	}
	return play(ctx, o, LoadScenario, newRun)
}

func (o *Options) defaults() error {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if isFacing(o.Example) { // nobody dials in
		o.Client = ClientTandem
	}
	if isVCluster(o.Example) && o.Client == ClientTandem {
		return fmt.Errorf("%w: in %s a strongSwan and a Tandem dial in: there is no --client tandem", ErrUsage, o.Example)
	}
	if o.Client == "" {
		o.Client = ClientCharon
	}
	if o.patience == 0 {
		o.patience = 15 * time.Second
	}
	switch o.Client {
	case ClientCharon:
		if _, _, err := FindCharon(); err != nil {
			if !isVCluster(o.Example) {
				err = fmt.Errorf("%w; --client tandem does without", err)
			}
			return err
		}
	case ClientTandem:
	default:
		return fmt.Errorf("%w: client %q: %s and %s are known", ErrUsage, o.Client, ClientCharon, ClientTandem)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: the lab needs root to make network namespaces", ErrUsage)
	}
	// The lab's programs start in a folder of the lab.
	for _, p := range []*string{&o.Binary, &o.Example, &o.Keep} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return removeAbandoned()
}

// Up builds an example's network, starts gateways and client, waits until the
// pair is synchronised and leaves all of it standing.
func Up(ctx context.Context, o Options) (*State, error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := o.defaults(); err != nil {
		return nil, err
	}
	quick := &Scenario{Name: "up", Probe: 5 * time.Millisecond}
	switch {
	case isFarm(o.Example):
		return upFarm(ctx, o)
	case isVCluster(o.Example):
		return leave(ctx, o, quick, newVRun)
	case isFacing(o.Example):
		return leave(ctx, o, quick, newFacing)
	}
	return leave(ctx, o, quick, newRun)
}

// find returns the lab with that ID; an empty one stands for the only lab.
func find(id string) (*State, error) {
	all, err := States()
	if err != nil {
		return nil, err
	}
	if id == "" && len(all) == 1 {
		return &all[0], nil
	}
	var ids []string
	for i := range all {
		if all[i].ID == id {
			return &all[i], nil
		}
		ids = append(ids, all[i].ID)
	}
	if len(all) == 0 {
		return nil, errors.New("no lab is standing (tandem lab up EXAMPLE)")
	}
	return nil, fmt.Errorf("no lab %q; standing: %s", id, strings.Join(ids, ", "))
}

// Down removes a lab, standing or left by a crash: its processes, namespaces
// and files. An empty ID stands for the only one. A lab that another process is
// running right now is refused.
func Down(id string) error {
	s, err := find(id)
	if err != nil {
		return err
	}
	if s.PID != 0 && !s.abandoned() {
		return fmt.Errorf("lab %s is in use by process %d: interrupt that", s.ID, s.PID)
	}
	return s.remove()
}

// Shell runs argv (a shell when empty) in a node's namespace of a standing lab,
// on this terminal, and returns its error. $TANDEM_SOCKET names the node's admin
// socket.
func Shell(ctx context.Context, id, node string, argv []string) error {
	s, err := find(id)
	if err != nil {
		return err
	}
	t := &Topology{ID: s.ID}
	var nodes []string
	for _, ns := range s.Namespaces {
		nodes = append(nodes, strings.TrimPrefix(ns, t.Netns("")))
	}
	if !slices.Contains(nodes, node) {
		return fmt.Errorf("no node %q; there are %s", node, strings.Join(nodes, ", "))
	}
	ns, err := openNetns(t.Netns(node))
	if err != nil {
		return err
	}
	defer ns.Close()
	if len(argv) == 0 {
		sh := os.Getenv("SHELL")
		if sh == "" {
			sh = "/bin/sh"
		}
		argv = []string{sh}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "TANDEM_SOCKET="+s.Sockets[node], "PS1="+node+"# ")
	if err := inNetns(ns, cmd.Start); err != nil {
		return err
	}
	return cmd.Wait()
}

// Status writes what labs stand, and for each gateway what it says of itself.
func Status(ctx context.Context, w io.Writer) error {
	all, err := States()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Fprintln(w, "no lab is standing")
	}
	for i := range all {
		s := &all[i]
		kind := "standing"
		if s.PID != 0 {
			kind = fmt.Sprintf("run by process %d", s.PID)
		}
		if s.abandoned() {
			kind = "abandoned: tandem lab down " + s.ID
		}
		fmt.Fprintf(w, "%s: %s since %s, logs in %s\n", s.ID, kind, s.Created.Local().Format("15:04:05"), s.Dir)
		names := make([]string, 0, len(s.Sockets))
		for n := range s.Sockets {
			names = append(names, n)
		}
		sort.Strings(names)
		socket := func(n string) string { return s.Sockets[n] }
		ask, askMember := BinaryStatus(s.Binary, socket), AdminFarmStatus(false, socket)
		for _, n := range names {
			if isFarm(s.Example) {
				m, err := askMember(ctx, n)
				if err != nil {
					fmt.Fprintf(w, "  %s: %v\n", n, err)
					continue
				}
				fmt.Fprintf(w, "  %s: synchronised %v, quorum %v, leader %s, owns %d tunnels, stands by for %d\n", n, m.Synchronised, m.Quorum, m.Leader, m.Owned, m.Standby)
				continue
			}
			h, err := ask(ctx, n)
			if err != nil {
				fmt.Fprintf(w, "  %s: %v\n", n, err)
				continue
			}
			fmt.Fprintf(w, "  %s: %s, synchronised %v, epoch %d, %d tunnels\n", n, h.Role, h.Synchronised, h.Epoch, h.Tunnels)
		}
	}
	return nil
}

// addrOf is the address of a constant with its prefix length.
func addrOf(cidr string) netip.Addr { return netip.MustParsePrefix(cidr).Addr() }
