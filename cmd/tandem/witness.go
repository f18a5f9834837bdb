package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"tandem/cluster"
	"tandem/cluster/raftauth"
	"tandem/internal/daemon"
)

// witnessCommand is a voter of a farm's log that is no gateway.
func witnessCommand() *cobra.Command {
	var configFile, clusterDir, stateDir, listen, logFormat string
	var members []string
	c := &cobra.Command{
		Use: "witness", Short: "Vote in a farm's log without being a gateway", Args: cobra.NoArgs,
		Long: `Votes in the log of a farm's members until SIGTERM. Two members cannot tell the
death of the other from a broken cable between them; with a witness two of three
still decide when any one is lost. It belongs on a third machine, with a path of its
own to each member.

A witness holds no tunnel, no key of a tunnel, and no secret but that of its own
certificate, which opens the members' log and nothing else. It needs no root, no
device and no other port.

 1. Make its folder, with the cluster's or later:
        tandem cluster init --group north --witness w1 gw1 gw2
        tandem cluster add  --group north --witness --node-id 3 w1
 2. On each member, its address and number:
        config system tandem
            set witness 172.31.1.9 3
        end
 3. On the witness, either the same line in a file, with every member as a peer,
        config system standalone-cluster
            config cluster-peer
                edit 1
                    set peerip 172.31.1.1
                next
                edit 2
                    set peerip 172.31.1.2
                next
            end
        end
        config system tandem
            set witness 172.31.1.9 3
            set cluster-dir /etc/tandem/cluster/w1
            set state-dir /var/lib/tandem
        end
    or the flags:
        tandem witness --cluster-dir /etc/tandem/cluster/w1 --state-dir /var/lib/tandem \
            --listen 172.31.1.9 --member 172.31.1.1 --member 172.31.1.2

The state-dir holds the log. Do not lose it together with a member's: a witness with a
blank log votes only when the others have taken it in again. It meets every member
once before it votes for the first time; after that it starts with nobody to ask.`,
	}
	c.Flags().StringVar(&configFile, "config", "", "configuration in FortiOS's language; flags override it")
	c.Flags().StringVar(&clusterDir, "cluster-dir", "", "folder with the witness's certificate, made by tandem cluster init --witness")
	c.Flags().StringVar(&stateDir, "state-dir", "", "where the log is kept")
	c.Flags().StringVar(&listen, "listen", "", fmt.Sprintf("address, or address and port, that members know it by (port %d)", raftauth.DefaultPort))
	c.Flags().StringArrayVar(&members, "member", nil, "address of a member, or address and port; once for each")
	c.Flags().StringVar(&logFormat, "log-format", "text", "text or json")
	c.RunE = func(c *cobra.Command, _ []string) error {
		log, closeLog, err := newLogger(logFormat)
		if err != nil {
			return exitError{exitUsage, err.Error()}
		}
		defer closeLog()
		o := raftauth.WitnessOptions{StateDir: stateDir, Log: log}
		node := 0
		if configFile != "" {
			cfg, _, err := daemon.LoadConfig(configFile)
			if err != nil {
				return exitError{exitFailed, err.Error()}
			}
			if !cfg.Tandem.Witness.Addr.IsValid() {
				return exitError{exitFailed, configFile + ": system tandem: witness is missing: its own address and node number"}
			}
			o.Listen, node = netip.AddrPortFrom(cfg.Tandem.Witness.Addr, raftauth.DefaultPort), cfg.Tandem.Witness.Node
			for i := range cfg.Standalone.Peers {
				o.Members = append(o.Members, netip.AddrPortFrom(cfg.Standalone.Peers[i].PeerIP, raftauth.DefaultPort))
			}
			if clusterDir == "" {
				clusterDir = cfg.Tandem.ClusterDir
			}
			if o.StateDir == "" {
				o.StateDir = cfg.Tandem.StateDir
			}
		}
		if listen != "" {
			if o.Listen, err = witnessAddr(listen); err != nil {
				return exitError{exitUsage, "--listen: " + err.Error()}
			}
		}
		if len(members) > 0 {
			o.Members = nil
		}
		for _, m := range members {
			a, err := witnessAddr(m)
			if err != nil {
				return exitError{exitUsage, "--member: " + err.Error()}
			}
			o.Members = append(o.Members, a)
		}
		switch {
		case clusterDir == "" || o.StateDir == "" || !o.Listen.IsValid():
			return exitError{exitUsage, "needed: --config, or --cluster-dir, --state-dir, --listen and --member (tandem witness --help shows both)"}
		case len(o.Members) < 2:
			return exitError{exitUsage, fmt.Sprintf("a witness needs every member of the farm, two at least; %d named", len(o.Members))}
		}
		if o.Identity, err = cluster.LoadWitness(clusterDir); err != nil {
			return exitError{exitFailed, err.Error()}
		}
		if node != 0 && cluster.NodeID(node) != o.Identity.Node {
			return exitError{exitFailed, fmt.Sprintf("system tandem: witness is node %d, but the certificate in %s is that of node %d", node, clusterDir, o.Identity.Node)}
		}
		if err := raftauth.RunWitness(c.Context(), o); err != nil {
			return exitError{exitFailed, err.Error()}
		}
		return nil
	}
	return c
}

// witnessAddr reads an address with or without the port of the log.
func witnessAddr(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), raftauth.DefaultPort), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("%q must be an address, or address:port", s)
	}
	return a, nil
}
