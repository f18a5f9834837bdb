//go:build !nextproto

package daemon

import "tandem/cluster/fsm"

// next uses what versions of the log to come have: nothing.
func (f *farmEnds) next(*fsm.Machine) {}
