package mmsg

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// FuzzAncillary feeds what the kernel may deliver beside a datagram.
func FuzzAncillary(f *testing.F) {
	ctl := make([]byte, controlLen)
	n := putControl(ctl, netip.MustParseAddr("10.0.0.1"), 2)
	f.Add(bytes.Clone(ctl[:n]))
	n = putControl(ctl, netip.MustParseAddr("fd00::1"), 2)
	f.Add(bytes.Clone(ctl[:n]))
	f.Add([]byte{2, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseControl(b)
		parseSockaddr(b)
	})
}

func TestControlRoundTrip(t *testing.T) {
	b := make([]byte, controlLen)
	for range 100 {
		a := netip.AddrFrom4([4]byte{10, byte(rand.IntN(256)), 0, 1})
		// Sent as ipi_spec_dst; what the kernel delivers lies in ipi_addr.
		n := putControl(b, a, 0)
		copy(b[24:28], b[20:24])
		if got, _, _ := parseControl(b[:n]); got != a {
			t.Fatalf("%v, want %v", got, a)
		}
	}
	six := netip.MustParseAddr("fd00::77")
	if got, tos, _ := parseControl(b[:putControl(b, six, 3)]); got != six || tos != 3 {
		t.Fatalf("%v, %d", got, tos)
	}
}
