// Command benchplane measures the data plane of Tandem against other programs that do
// the same work, in turn, on one machine.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tandem/internal/bench"
)

//go:embed conf
var files embed.FS

const usage = `benchplane [flags]

Compares Tandem's data plane (a pair whose standby replicates, and a single peer) with
wireguard-go, with strongSwan's kernel-libipsec, and with forwarding without crypto,
between network namespaces of this machine. The programs have their turn one after
another in each round (A B C D A B C D …), so that ratios within a round stand for
themselves. Needs root, iperf3, ethtool, nft, ping and charon-systemd
(scripts/deps.sh), bin/tandem and bin/bench/wireguard (make bench builds them).

  layouts   nic: segments are cut by the sender's kernel (ethtool -K VETH
            tx-udp-segmentation off gro on); uso: batches of up to 64 KB cross uncut;
            gro: as nic with tso off, without which a veth device merges nothing in spite
            of gro on (told beside the others, no floor is judged by it)
  measures  TCP with 1 and 4 streams, each direction for itself; UDP with 64 bytes of
            payload, offered at 50,000, 150,000 and 400,000 a second in the first
            round, at the best of them from then on; seconds of processor time of the gateways (the standby included) and
            of the machine for each GB; pings, 1000 a second, at half of the most load

It asserts that the standby replicates, and that ceilings, fences, selectors, policies
and counters are on; otherwise it fails. It ends within --limit plus the time of one
round, and removes namespaces and processes, also when interrupted.

Exit status: 0 every floor was reached; 1 one was not; 2 it could not be measured.

`

// Exit statuses.
const (
	exitMissed  = 1
	exitUnable  = 2
	leastRounds = 5 // the least rounds whose ratios are to be believed
)

func main() {
	if len(os.Args) > 1 {
		if helper := helpers[os.Args[1]]; helper != nil {
			if err := helper(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
				os.Exit(exitUnable)
			}
			return
		}
	}
	pass, err := benchmark(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "benchplane:", err)
		os.Exit(exitUnable)
	case !pass:
		os.Exit(exitMissed)
	}
}

// helpers run in the namespaces.
var helpers = map[string]func([]string) error{
	"forward": func(args []string) error {
		if len(args) != 2 {
			return errors.New("expected: LOCAL REMOTE")
		}
		local, err1 := netip.ParseAddr(args[0])
		remote, err2 := netip.ParseAddr(args[1])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return forward(local, remote)
	},
	"offer": func(args []string) error {
		if len(args) != 5 {
			return errors.New("expected: LOCAL TO ID RATE DURATION")
		}
		local, err1 := netip.ParseAddr(args[0])
		to, err2 := netip.ParseAddrPort(args[1])
		id, err3 := strconv.ParseUint(args[2], 10, 64)
		rate, err4 := strconv.Atoi(args[3])
		last, err5 := time.ParseDuration(args[4])
		if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
			return err
		}
		return offer(local, to, id, rate, last)
	},
	"count": func(args []string) error {
		if len(args) != 3 {
			return errors.New("expected: AT ID READY")
		}
		at, err1 := netip.ParseAddrPort(args[0])
		id, err2 := strconv.ParseUint(args[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		n, err := count(at, id, args[2])
		fmt.Println(n)
		return err
	},
}

// lists by their names on the command line.
var (
	allPrograms   = []string{wireguardName, tandemName, tandemChaCha, tandemAES256, charonName, forwardName}
	quickPrograms = []string{wireguardName, tandemName, charonName, forwardName}
	layoutNames   = map[string][]string{"all": {layoutNIC, layoutUSO, layoutGRO}, "both": {layoutNIC, layoutUSO}, "nic": {layoutNIC}, "uso": {layoutUSO}, "gro": {layoutGRO}}
)

func benchmark(args []string) (pass bool, err error) {
	fs := flag.NewFlagSet("benchplane", flag.ContinueOnError)
	o := options{}
	quick := fs.Bool("quick", false, "under five minutes: one second for each transfer, Tandem with AES-128-GCM alone")
	fs.IntVar(&o.rounds, "rounds", leastRounds, "how often each program has its turn")
	fs.IntVar(&o.seconds, "seconds", 0, "of each TCP transfer; 0: 2, or 1 with --quick")
	fs.DurationVar(&o.limit, "limit", 0, "begin no round that would end later; 0: 30m, or 4m20s with --quick")
	fs.IntVar(&o.latencySeconds, "pings", 3, "seconds of pings, 1000 a second, for each figure of latency; 0: none")
	add := fs.String("add", "", "result of an earlier run on the same commit, of other layouts, which this one goes on with")
	layout := fs.String("layout", "", "nic, uso, both of them, gro or all; empty: all, both with --quick")
	programs := fs.String("programs", "", "which, with commas; empty: all, with --quick those of the floors: "+strings.Join(allPrograms, ","))
	jsonFile := fs.String("json", "", "write the result to this file; - for standard output, and the progress to standard error")
	docs := fs.String("docs", "", "folder of benchmarks.md, whose section is replaced, and of its chart")
	fs.StringVar(&o.profile, "profile", "", "afterwards, record CPU profiles of both sides in this folder (needs go, and the source in the current folder)")
	fs.StringVar(&o.tandem, "tandem", "bin/tandem", "the program that is measured")
	fs.StringVar(&o.wireguard, "wireguard", "bin/bench/wireguard", "wireguard-go")
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return false, err
	}
	if fs.NArg() > 0 {
		return false, fmt.Errorf("what is %q? --help tells what there is", fs.Arg(0))
	}
	if o.seconds == 0 {
		o.seconds = 2
		if *quick {
			o.seconds = 1
		}
	}
	if o.limit == 0 {
		o.limit = 30 * time.Minute
		if *quick {
			o.limit = 4*time.Minute + 20*time.Second
		}
	}
	o.programs = allPrograms
	if *quick {
		o.programs = quickPrograms
	}
	if *programs != "" {
		o.programs = strings.Split(*programs, ",")
	}
	for _, p := range o.programs {
		if !slices.Contains(allPrograms, p) {
			return false, fmt.Errorf("--programs: %q is none of %s", p, strings.Join(allPrograms, ", "))
		}
	}
	if *layout == "" {
		*layout = "all"
		if *quick {
			*layout = "both"
		}
	}
	if o.layouts = layoutNames[*layout]; o.layouts == nil {
		return false, fmt.Errorf("--layout %q: nic, uso, both, gro and all are known", *layout)
	}
	if o.rounds < 1 || o.seconds < 1 {
		return false, errors.New("--rounds and --seconds: 1 or more")
	}
	o.progress = os.Stdout
	if *jsonFile == "-" {
		o.progress = os.Stderr
	}
	if err := able(&o); err != nil {
		return false, err
	}
	// The last resort: a step that hangs in spite of its own limit.
	ctx, cancel := context.WithTimeout(context.Background(), o.limit+10*time.Minute)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	profile := o.profile
	o.profile = ""
	res, err := measure(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return false, fmt.Errorf("interrupted (%w)", err)
		}
		return false, err
	}
	if *add != "" {
		text, err := os.ReadFile(*add)
		if err == nil {
			err = res.Add(text)
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", *add, err)
		}
	}
	res.Judge(floors())
	if o.rounds < leastRounds {
		res.Notes = append(res.Notes, fmt.Sprintf("%d rounds only: ratios are to be believed from %d on", o.rounds, leastRounds))
	}
	if err := res.Report(o.progress); err != nil {
		return false, err
	}
	if *jsonFile != "" {
		text, err := res.JSON()
		if err != nil {
			return false, err
		}
		if *jsonFile == "-" {
			_, err = os.Stdout.Write(text)
		} else {
			err = os.WriteFile(*jsonFile, text, 0o644)
		}
		if err != nil {
			return false, err
		}
	}
	if *docs != "" {
		if err := res.WriteDocs(*docs); err != nil {
			return false, err
		}
		fmt.Fprintf(o.progress, "written: %s\n", filepath.Join(*docs, bench.DocsFile))
	}
	if profile != "" {
		o.profile = profile
		if err := profiled(ctx, o); err != nil {
			return false, err
		}
	}
	return res.Pass, nil
}

// able says what this machine lacks, and makes paths absolute: programs start elsewhere.
func able(o *options) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	needed := []string{"iperf3", "ethtool", "nft", "ping", "ip"}
	if slices.Contains(o.programs, charonName) {
		needed = append(needed, "charon-systemd", "swanctl")
	}
	for _, n := range needed {
		if _, err := exec.LookPath(n); err != nil {
			return fmt.Errorf("%w (scripts/deps.sh installs what is needed)", err)
		}
	}
	for _, p := range []*string{&o.tandem, &o.wireguard} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
		if _, err := os.Stat(abs); err != nil && (p == &o.tandem || slices.Contains(o.programs, wireguardName)) {
			return fmt.Errorf("%w (make bench builds it)", err)
		}
	}
	return nil
}
