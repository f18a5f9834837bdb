package cluster

import (
	"fmt"

	"tandem/proto/clusterpb"
)

// AskedFor is what a command is about: of two that ask for the same, one is enough at a
// time.
func AskedFor(c *clusterpb.Command) string {
	switch w := c.GetWhat().(type) {
	case *clusterpb.Command_SetSyncSet:
		return fmt.Sprint("sync ", w.SetSyncSet.GetScope())
	case *clusterpb.Command_SetSuccessor:
		return fmt.Sprint("next ", w.SetSuccessor.GetScope())
	case *clusterpb.Command_TakeOver:
		return fmt.Sprint("take ", w.TakeOver.GetScope())
	case *clusterpb.Command_Decline:
		return fmt.Sprint("decline ", w.Decline.GetScope())
	case *clusterpb.Command_RenewTerm:
		return fmt.Sprint("term ", w.RenewTerm.GetScope())
	case *clusterpb.Command_ReportLoss:
		return fmt.Sprint("loss ", w.ReportLoss.GetNode())
	case *clusterpb.Command_DelegateRange:
		return fmt.Sprint("range ", w.DelegateRange.GetSpace())
	case *clusterpb.Command_ReturnRange:
		return fmt.Sprint("return ", w.ReturnRange.GetRange())
	}
	return fmt.Sprintf("%T", c.GetWhat())
}

// Urgent says that a command goes before others: who owns waits for it.
func Urgent(c *clusterpb.Command) bool {
	return c.GetReportLoss() != nil || c.GetTakeOver() != nil || c.GetDecline() != nil
}
