package userspace

import (
	"testing"

	"tandem/xfrm"
	"tandem/xfrm/xfrmtest"
)

func BenchmarkWire(b *testing.B) {
	factory := func(h xfrm.Handler) (xfrm.DataPlane, error) { return New(Options{Handler: h}) }
	for _, w := range []xfrmtest.Wire{xfrmtest.NICLike, xfrmtest.Unmerged, xfrmtest.Uncut} {
		b.Run("TCP/"+string(w), func(b *testing.B) { xfrmtest.BenchmarkTCP(b, factory, w) })
		b.Run("UDP64/"+string(w), func(b *testing.B) { xfrmtest.BenchmarkUDP(b, factory, w) })
	}
}
