package main

import (
	"github.com/spf13/cobra"

	"tandem/internal/daemon"
)

func runFlags(c *cobra.Command) (configFile, logFormat *string) {
	configFile = c.Flags().String("config", "/etc/tandem/tandem.conf", "configuration in FortiOS's language")
	logFormat = c.Flags().String("log-format", "text", "text or json")
	return configFile, logFormat
}

func runCommand() *cobra.Command {
	c := daemonCommand()
	c.Use, c.Short, c.Hidden = "run", "Run the gateway until SIGTERM; SIGHUP reads the configuration again", false
	return c
}

// daemonCommand is the child that the guardian starts. It is hidden, and works
// alone for whoever debugs it.
func daemonCommand() *cobra.Command {
	c := &cobra.Command{Use: "daemon", Short: "The daemon without its guardian", Hidden: true, Args: cobra.NoArgs}
	configFile, logFormat := runFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := daemon.Run(c.Context(), daemon.Options{ConfigFile: *configFile, LogFormat: *logFormat}); err != nil {
			return exitError{exitFailed, err.Error()}
		}
		return nil
	}
	return c
}
