package main

import (
	"fmt"
	"path/filepath"
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
	var dir, group string
	c := &cobra.Command{
		Use: "init [flags] NODE…", Short: "Make the cluster's CA and a folder for each node",
		Long: `Makes the cluster's CA in DIR/ca and a folder DIR/NODE for each node, with its
certificate, its key and the key that authenticates heartbeats. Copy DIR/NODE to
that node and name it there: config system tandem, set cluster-dir. Keep DIR/ca
where no gateway is. Nothing is ever overwritten.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, nodes []string) error {
			if err := cluster.InitCluster(dir, group, nodes, time.Now()); err != nil {
				return exitError{exitFailed, err.Error()}
			}
			for i, n := range nodes {
				fmt.Fprintf(c.OutOrStdout(), "node %d: %s\n", i+1, filepath.Join(dir, n))
			}
			return nil
		},
	}
	clusterFlags(c, &dir, &group)
	return c
}

func clusterAdd() *cobra.Command {
	var dir, group string
	var id int
	c := &cobra.Command{
		Use: "add [flags] NODE", Short: "Make the folder of one more node, or of one that is replaced", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, nodes []string) error {
			if id < 1 || id > 16 {
				return exitError{exitUsage, "--node-id must be between 1 and 16"}
			}
			if err := cluster.AddNode(dir, group, nodes[0], cluster.NodeID(id), time.Now()); err != nil {
				return exitError{exitFailed, err.Error()}
			}
			fmt.Fprintf(c.OutOrStdout(), "node %d: %s\n", id, filepath.Join(dir, nodes[0]))
			return nil
		},
	}
	clusterFlags(c, &dir, &group)
	c.Flags().IntVar(&id, "node-id", 0, "the node's number, 1 to 16, unique in the cluster")
	return c
}

func clusterFlags(c *cobra.Command, dir, group *string) {
	c.Flags().StringVar(dir, "dir", "/etc/tandem/cluster", "where the folders are made")
	c.Flags().StringVar(group, "group", "tandem", "name of the cluster, the same for all of its nodes")
}
