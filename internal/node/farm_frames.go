package node

import (
	"fmt"
	"time"

	"tandem/cluster"
)

// HandleFrame takes a frame of another member's journal for a scope.
func (f *Farm) HandleFrame(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, frame []byte) (err error) {
	if f.scopes[s] == nil {
		// The owner has heard sooner what was decided.
		if s.Home() == 0 || len(f.scopes) >= shares {
			return fmt.Errorf("%v: %w", s, errNoScope)
		}
		f.add(now, s)
	}
	n := f.scopes[s]
	err = n.HandleFrame(now, from, process, frame)
	for !n.out.Empty() { // acknowledgements, which what the frame asks for follows; see Poll
		e, _ := n.out.Poll()
		f.emit(e)
	}
	f.framed = append(f.framed, s)
	return err
}

// Poll returns the next effect; drain it before the next input.
func (f *Farm) Poll() (Effect, bool) {
	for f.out.Empty() && len(f.framed) > 0 {
		id := f.framed[0]
		f.framed = f.framed[1:]
		f.collect(id)
	}
	return f.out.Poll()
}
