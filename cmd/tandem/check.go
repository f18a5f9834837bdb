package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"tandem/internal/daemon"
)

// checkJSON is `tandem check --json`.
type checkJSON struct {
	File   string      `json:"file"`
	OK     bool        `json:"ok"`
	Faults []faultJSON `json:"faults"`
}

type faultJSON struct {
	Line    int    `json:"line"`
	Object  string `json:"object,omitempty"`
	Key     string `json:"key,omitempty"`
	Message string `json:"message"`
	Warning bool   `json:"warning"`
}

func checkCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "check FILE", Short: "Check a configuration without running it: all faults at once, exit 1 if there are any", Args: oneFile,
		RunE: func(c *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return exitError{exitUsage, err.Error()}
			}
			cfg, faults := daemon.CheckConfig(args[0], text)
			out := c.OutOrStdout()
			if asJSON {
				j := checkJSON{File: args[0], OK: cfg != nil, Faults: []faultJSON{}}
				for _, f := range faults {
					j.Faults = append(j.Faults, faultJSON{f.Line, f.Object, f.Key, f.Message, f.Warning})
				}
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				if err := e.Encode(j); err != nil {
					return err
				}
			} else {
				for _, f := range faults {
					fmt.Fprintln(out, f.Error())
				}
				if cfg != nil {
					fmt.Fprintf(out, "%s: ok, %d phase 1 and %d phase 2 entries\n", args[0], len(cfg.Phase1), len(cfg.Phase2))
				}
			}
			if cfg == nil {
				return exitError{exitFailed, ""}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// oneFile wants one configuration.
func oneFile(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s needs one configuration file, not %d", c.CommandPath(), len(args))
	}
	return nil
}
