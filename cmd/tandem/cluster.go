package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tandem/cluster"
)

func clusterCommand() *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Make a cluster's certificates and keys", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(clusterInit(), clusterAdd())
	return c
}

func clusterInit() *cobra.Command {
	var dir, group, witness string
	c := &cobra.Command{
		Use: "init [flags] NODE…", Short: "Make the cluster's CA and a folder for each node",
		Long: `Makes the cluster's CA in DIR/ca and a folder DIR/NODE for each node, with its
certificate, its key and the key that authenticates heartbeats. Copy DIR/NODE to
that node and name it there: config system tandem, set cluster-dir. Keep DIR/ca
where no gateway is. Nothing is ever overwritten.

With --witness NAME a folder for ` + "`tandem witness`" + ` is made, too. It gets the number
after the nodes', and no key but that of its certificate, which opens the members'
log and nothing else.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, nodes []string) error {
			now := time.Now()
			if witness != "" && (len(nodes) > 15 || slices.Contains(nodes, witness)) {
				return exitError{exitUsage, "--witness: a name of its own, beside at most 15 nodes"}
			}
			err := cluster.InitCluster(dir, group, nodes, now)
			if err == nil && witness != "" {
				err = cluster.AddWitness(dir, group, witness, cluster.NodeID(len(nodes)+1), now)
			}
			if err != nil {
				return exitError{exitFailed, err.Error()}
			}
			for i, n := range nodes {
				fmt.Fprintf(c.OutOrStdout(), "node %d: %s\n", i+1, filepath.Join(dir, n))
			}
			if witness != "" {
				fmt.Fprintf(c.OutOrStdout(), "node %d: %s (witness)\n", len(nodes)+1, filepath.Join(dir, witness))
			}
			return nil
		},
	}
	clusterFlags(c, &dir, &group)
	c.Flags().StringVar(&witness, "witness", "", "name of a witness, whose folder is made, too")
	return c
}

func clusterAdd() *cobra.Command {
	var dir, group string
	var id int
	var witness bool
	c := &cobra.Command{
		Use: "add [flags] NODE", Short: "Make the folder of one more node, or of one that is replaced", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, nodes []string) error {
			if id < 1 || id > 16 {
				return exitError{exitUsage, "--node-id must be between 1 and 16"}
			}
			add := cluster.AddNode
			if witness {
				add = cluster.AddWitness
			}
			if err := add(dir, group, nodes[0], cluster.NodeID(id), time.Now()); err != nil {
				return exitError{exitFailed, err.Error()}
			}
			fmt.Fprintf(c.OutOrStdout(), "node %d: %s\n", id, filepath.Join(dir, nodes[0]))
			return nil
		},
	}
	clusterFlags(c, &dir, &group)
	c.Flags().IntVar(&id, "node-id", 0, "the node's number, 1 to 16, unique in the cluster")
	c.Flags().BoolVar(&witness, "witness", false, "it is a witness: a voter without the cluster's key")
	return c
}

func clusterFlags(c *cobra.Command, dir, group *string) {
	c.Flags().StringVar(dir, "dir", "/etc/tandem/cluster", "where the folders are made")
	c.Flags().StringVar(group, "group", "tandem", "name of the cluster, the same for all of its nodes")
}
