package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"tandem/internal/lab"
)

// labError gives a lab's failure its exit code: 2 where the lab cannot run here.
func labError(err error) error {
	if err == nil {
		return nil
	}
	return exitError{lab.ExitStatus(lab.Result{}, err), err.Error()}
}

func labCommand() *cobra.Command {
	c := &cobra.Command{Use: "lab", Short: "Build networks of namespaces, run a cluster in them, break it and measure", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(labRun(), labUp(),
		&cobra.Command{Use: "down [ID]", Short: "Remove a standing lab", Args: cobra.MaximumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			return labError(lab.Down(first(args)))
		}},
		&cobra.Command{Use: "status", Short: "List the labs that stand, and what their gateways say", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return labError(lab.Status(c.Context(), c.OutOrStdout()))
		}},
		labShell())
	return c
}

func first(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return ""
}

// labOptions are the flags that run and up share.
func labOptions(c *cobra.Command) *lab.Options {
	o := &lab.Options{}
	c.Flags().StringVar(&o.Client, "client", lab.ClientCharon, "who dials in: charon (strongSwan) or tandem; examples/vcluster has both, in examples/site-to-site nobody does")
	c.Flags().StringVar(&o.ID, "id", "", "name of the lab; empty: a new one")
	return o
}

// fillIn completes options with this binary and the example's folder.
func fillIn(o *lab.Options, example string) error {
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	if st, err := os.Stat(example); err != nil || !st.IsDir() {
		return exitError{exitUsage, fmt.Sprintf("%s is no folder of an example, such as examples/pair or examples/vcluster", example)}
	}
	o.Binary, o.Example, o.Progress = bin, filepath.Clean(example), os.Stdout
	return nil
}

func labRun() *cobra.Command {
	c := &cobra.Command{Use: "run EXAMPLE", Short: "Run a scenario and judge it: exit 1 when a bound is violated", Args: oneExample}
	o := labOptions(c)
	var jsonFile string
	c.Flags().StringVar(&o.Scenario, "scenario", "", "scenario of the example; empty: demo")
	c.Flags().StringVar(&o.Keep, "keep", "", "folder that receives captures and logs")
	c.Flags().BoolVar(&o.KeyLog, "key-log", false, "the client writes its keys into its log, for tshark")
	c.Flags().StringVar(&jsonFile, "json", "", "write the result to this file (- for standard output, and the progress to standard error)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := fillIn(o, args[0]); err != nil {
			return err
		}
		if jsonFile == "-" {
			o.Progress = os.Stderr
		}
		r, err := lab.Run(c.Context(), *o)
		if err != nil {
			return labError(err)
		}
		if jsonFile != "" {
			text, err := r.JSON()
			if err != nil {
				return labError(err)
			}
			if jsonFile == "-" {
				_, err = os.Stdout.Write(text)
			} else {
				err = os.WriteFile(jsonFile, text, 0o644)
			}
			if err != nil {
				return labError(err)
			}
		}
		if r.Verdict != lab.VerdictPass {
			return exitError{exitFailed, ""}
		}
		return nil
	}
	return c
}

func labUp() *cobra.Command {
	c := &cobra.Command{Use: "up EXAMPLE", Short: "Build an example and leave it standing", Args: oneExample}
	o := labOptions(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := fillIn(o, args[0]); err != nil {
			return err
		}
		s, err := lab.Up(c.Context(), *o)
		if err != nil {
			return labError(err)
		}
		first := slices.Min(slices.Collect(maps.Keys(s.Sockets)))
		fmt.Printf("lab %s stands: tandem lab shell %s, tandem lab status, tandem lab down %s\n", s.ID, first, s.ID)
		return nil
	}
	return c
}

func labShell() *cobra.Command {
	var id string
	c := &cobra.Command{Use: "shell NODE [-- COMMAND…]", Short: "A shell, or a command, on a node of a standing lab", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			err := lab.Shell(c.Context(), id, args[0], args[1:])
			var ended *exec.ExitError
			if errors.As(err, &ended) {
				return exitError{max(ended.ExitCode(), exitFailed), ""} // the command's own
			}
			return labError(err)
		}}
	c.Flags().StringVar(&id, "id", "", "which lab; empty: the only one")
	return c
}

// oneExample wants the folder of one example.
func oneExample(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s needs the folder of one example, such as examples/pair or examples/farm", c.CommandPath())
	}
	return nil
}
