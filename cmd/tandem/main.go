// Command tandem is the one binary of the gateway: the guardian and its daemon,
// the client of their admin socket, the offline checker and the lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes: see the long help of the root command.
const (
	exitFailed = 1
	exitUsage  = 2
)

// exitError carries an exit code; an empty text has been printed already.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := newRoot()
	args, err := spellOut(root, os.Args[1:])
	if err == nil {
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	stop()
	if err == nil {
		return
	}
	code := exitUsage // what cobra itself finds fault with
	var e exitError
	if errors.As(err, &e) {
		code = e.code
	}
	if err.Error() != "" {
		fmt.Fprintln(os.Stderr, "tandem: "+err.Error())
	}
	os.Exit(code)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "tandem",
		Short: "A clustered IPsec gateway that keeps its tunnels when a gateway dies",
		Long: `A clustered IPsec gateway that keeps its tunnels when a gateway dies.

FortiOS's commands are sub-commands: tandem get system ha status, tandem diagnose
vpn tunnel list name vpn1. Any unambiguous prefix of a word works (tandem di vpn
ike gateway list), ? lists what may follow, --json prints stable JSON.

Exit codes: 0 ok; 1 failed, faulty or a bound violated; 2 wrong usage, or it
cannot run here.`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return exitError{exitUsage, fmt.Sprintf("%v; usage: %s", err, c.UseLine())}
	})
	root.AddCommand(runCommand(), daemonCommand(), checkCommand(), clusterCommand(), pkiCommand(), witnessCommand(), labCommand(), versionCommand())
	for _, verb := range verbs {
		root.AddCommand(clientCommand(verb.name, verb.short))
	}
	return root
}

// spellOut replaces an abbreviated first word by the command it stands for.
func spellOut(root *cobra.Command, args []string) ([]string, error) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") || args[0] == "help" {
		return args, nil
	}
	var fits []string
	for _, c := range root.Commands() {
		if c.Name() == args[0] {
			return args, nil
		}
		if !c.Hidden && strings.HasPrefix(c.Name(), args[0]) {
			fits = append(fits, c.Name())
		}
	}
	switch {
	case len(fits) == 1:
		return append(fits, args[1:]...), nil
	case len(fits) > 1:
		return nil, exitError{exitUsage, fmt.Sprintf("ambiguous word %q: it could be %s", args[0], strings.Join(fits, ", "))}
	}
	return args, nil // cobra names what is near
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		version, revision := "(devel)", ""
		if b, ok := debug.ReadBuildInfo(); ok {
			version = b.Main.Version
			for _, s := range b.Settings {
				if s.Key == "vcs.revision" {
					revision = " " + s.Value
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "tandem %s%s %s\n", version, revision, b.GoVersion)
			return nil
		}
		fmt.Fprintf(c.OutOrStdout(), "tandem %s\n", version)
		return nil
	}}
}
