package userspace

import (
	"testing"

	"tandem/xfrm"
	"tandem/xfrm/xfrmtest"
)

func TestConformance(t *testing.T) {
	xfrmtest.Run(t, func(h xfrm.Handler) (xfrm.DataPlane, error) { return New(Options{Handler: h}) })
}
