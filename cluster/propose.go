package cluster

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// Urgent says that a command goes before others: who owns waits for it.
func Urgent(c *clusterpb.Command) bool {
	return c.GetReportLoss() != nil || c.GetTakeOver() != nil || c.GetDecline() != nil
}

// Together is the command to propose next of those that wait, and how many of them it is:
// what may go together does, so that who takes over many scopes does not wait for as many
// decisions.
func Together(wait []*clusterpb.Command) (c *clusterpb.Command, n int) {
	size := 0
	for n < len(wait) && n < fsm.MaxBatch && fsm.Batchable(wait[n]) {
		if size += proto.Size(wait[n]) + 8; size > fsm.MaxEntry/2 {
			break
		}
		n++
	}
	if n < 2 {
		return wait[0], 1
	}
	return &clusterpb.Command{What: &clusterpb.Command_Batch{Batch: &clusterpb.Batch{Commands: slices.Clone(wait[:n])}}}, n
}

// Parts are the commands that go together in one, or that one.
func Parts(c *clusterpb.Command) []*clusterpb.Command {
	if b := c.GetBatch(); b != nil {
		return b.GetCommands()
	}
	return []*clusterpb.Command{c}
}
