package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tandem/cluster"
	"tandem/cluster/guardian"
	"tandem/internal/config"
	"tandem/internal/daemon"
	"tandem/internal/ipsec"
	"tandem/internal/logqueue"
)

func runFlags(c *cobra.Command) (configFile, logFormat *string) {
	configFile = c.Flags().String("config", "/etc/tandem/tandem.conf", "configuration in FortiOS's language")
	logFormat = c.Flags().String("log-format", "text", "text or json")
	return configFile, logFormat
}

// runCommand is the guardian: it starts the daemon, sends heartbeats for it and
// starts it again when it dies.
func runCommand() *cobra.Command {
	c := &cobra.Command{Use: "run", Short: "Run the gateway until SIGTERM; SIGHUP reads the configuration again", Args: cobra.NoArgs}
	configFile, logFormat := runFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, _, err := daemon.LoadConfig(*configFile)
		if err != nil {
			return exitError{exitFailed, err.Error()}
		}
		log, closeLog, err := newLogger(*logFormat)
		if err != nil {
			return exitError{exitUsage, err.Error()}
		}
		defer closeLog()
		if err := canRunHere(); err != nil {
			return exitError{exitUsage, err.Error()}
		}
		o, err := guardianOptions(cfg)
		if err != nil {
			return exitError{exitFailed, err.Error()}
		}
		self, err := os.Executable()
		if err != nil {
			return exitError{exitFailed, err.Error()}
		}
		o.Command = []string{self, "daemon", "--config", *configFile, "--log-format", *logFormat}
		o.Logger = log
		if code := guardian.Run(c.Context(), o); code != 0 {
			return exitError{exitFailed, ""}
		}
		return nil
	}
	return c
}

// newLogger makes the log of a process that must not wait for it; close writes what is left.
func newLogger(format string) (log *slog.Logger, close func(), err error) {
	handler := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }
	switch format {
	case "text":
	case "json":
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) }
	default:
		return nil, nil, fmt.Errorf("--log-format %q: text and json are allowed", format)
	}
	w := logqueue.New(os.Stderr, logqueue.Lines, logqueue.Say(slog.New(handler(os.Stderr))))
	return slog.New(handler(w)), w.Close, nil
}

// canRunHere says what the machine lacks.
func canRunHere() error {
	if os.Geteuid() != 0 {
		return errors.New("a gateway needs root: it makes interfaces and opens raw sockets")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("a gateway needs TUN interfaces: %w", err)
	}
	return nil
}

// guardianOptions are those of a member of a pair, or of a gateway that stands
// alone: its guardian only starts it again.
func guardianOptions(cfg *config.Config) (guardian.Options, error) {
	o := guardian.Options{
		Node: 1, Name: cfg.Hostname, StateDir: cfg.Tandem.StateDir,
		Settings: guardian.Settings{Interval: cfg.HA.HBInterval, Threshold: cfg.HA.HBLostThreshold},
		Key:      ipsec.NewKey(make([]byte, 32)), // of no use without heartbeat devices
	}
	farm := cfg.Standalone.Farm()
	if cfg.HA.Mode != "a-p" && !farm {
		o.Interval, o.Threshold = time.Second, 3
		return o, nil
	}
	id, err := cluster.LoadIdentity(cfg.Tandem.ClusterDir)
	if err != nil {
		return o, fmt.Errorf("system tandem: cluster-dir: %w (tandem cluster init makes it)", err)
	}
	o.Node, o.Key = id.Node, id.HeartbeatKey()
	if o.Name == "" {
		o.Name = id.Name
	}
	if farm {
		o.Interval, o.Threshold = cfg.Standalone.Heartbeats()
		for i := range cfg.Standalone.Peers {
			o.Peers = append(o.Peers, cfg.Standalone.Peers[i].PeerIP)
		}
		if cfg.Site() == 0 {
			return o, nil
		}
	}
	if cfg.Group() {
		o.Peers = cfg.LogPeers()
	}
	for _, d := range cfg.HA.HBDev {
		o.HBDevs = append(o.HBDevs, d.Name)
	}
	return o, nil
}

// daemonCommand is the child that the guardian starts. It is hidden, and works
// alone for whoever debugs it.
func daemonCommand() *cobra.Command {
	c := &cobra.Command{Use: "daemon", Short: "The daemon without its guardian", Hidden: true, Args: cobra.NoArgs}
	configFile, logFormat := runFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		err := daemon.Run(c.Context(), daemon.Options{ConfigFile: *configFile, LogFormat: *logFormat})
		var bad daemon.ConfigError
		var unfit daemon.UnfitError
		switch {
		case errors.As(err, &bad), errors.As(err, &unfit):
			return exitError{guardian.ExitConfig, err.Error()}
		case err != nil:
			return exitError{exitFailed, err.Error()}
		}
		return nil
	}
	return c
}
