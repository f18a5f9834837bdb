package node

import (
	"fmt"
	"time"

	"tandem/cluster"
)

// HandleFrame takes a frame of another member's journal for a scope.
func (f *Farm) HandleFrame(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, frame []byte) error {
	if f.scopes[s] == nil {
		// The owner has heard sooner what was decided.
		if s.Home() == 0 || len(f.scopes) >= shares {
			return fmt.Errorf("%v: %w", s, errNoScope)
		}
		f.add(now, s)
	}
	return f.frame(now, from, process, s, frame)
}
