//go:build !breakpoints

package daemon

import (
	"errors"

	"tandem/internal/node"
	statesync "tandem/sync"
)

// breakpoint is for test builds only (-tags breakpoints); here it does nothing.
type breakpoint struct{}

func (breakpoint) arm(spec string) error {
	if spec != "" {
		return errors.New("TANDEM_BREAK is set, but this build has no breakpoints (go build -tags breakpoints)")
	}
	return nil
}
func (breakpoint) before(node.Effect) {}
func (breakpoint) after(node.Effect)  {}

func (breakpoint) withholds(*loop, statesync.SendFrame) bool { return false }
