package daemon

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Many routes go to the kernel in few messages, of both families; what it refuses among
// them is told, and the others stand.
func TestRoutesInBatches(t *testing.T) {
	inNewNetns(t)
	link := addVeth(t, "wan0", "far0")
	index := link.Attrs().Index
	b, err := newRouteBatch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	refused := map[netip.Prefix]error{}
	failed := func(c routeChange, err error) { refused[c.prefix] = err }
	const n = 3*batchLen + 5
	prefix := func(i int) netip.Prefix {
		if i%2 == 0 {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)
		}
		a := netip.MustParseAddr("2001:db8::").As16()
		a[14], a[15] = byte(i>>8), byte(i)
		return netip.PrefixFrom(netip.AddrFrom16(a), 128)
	}
	do := func(add bool, index func(i int) int) {
		t.Helper()
		for i := range n {
			if err := b.put(routeChange{add, index(i), prefix(i)}, failed); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.flush(failed); err != nil {
			t.Fatal(err)
		}
	}
	do(true, func(i int) int {
		if i == 7 || i == batchLen-1 || i == n-1 { // within a batch, at its end, at the end of all
			return 9999
		}
		return index
	})
	if len(refused) != 3 || refused[prefix(7)] != unix.ENODEV || refused[prefix(batchLen-1)] != unix.ENODEV || refused[prefix(n-1)] != unix.ENODEV {
		t.Errorf("refused: %v", refused)
	}
	if got := ourRoutes(t); len(got) != n-3 {
		t.Fatalf("%d routes stand, put were %d and 3 that cannot", len(got), n-3)
	}
	for _, r := range ourRoutes(t) {
		if c, ok := dynamicRouteOf(&r); !ok || c.index != index {
			t.Errorf("%v is not recognised as one of ours", r)
		}
	}
	clear(refused)
	do(false, func(int) int { return index })
	if got := ourRoutes(t); len(got) != 0 || len(refused) != 3 || refused[prefix(7)] != unix.ESRCH {
		t.Errorf("left over: %v; refused: %v", got, refused)
	}
	x := &netlink.Route{Dst: ipNet(prefix(0)), Gw: []byte{192, 0, 2, 1}, LinkIndex: index, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN}
	if _, ok := dynamicRouteOf(x); ok {
		t.Error("a route through a gateway is none that add-route promised")
	}
}
