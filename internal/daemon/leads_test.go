package daemon

import (
	"net/netip"
	"runtime"
	"testing"

	"tandem/internal/node"
	"tandem/xfrm"
)

// The longest prefix of the tunnel leads; what is led to a scope of this member's own is
// led nowhere; and what was removed is not found, nor looked for.
func TestLeads(t *testing.T) {
	var l leads
	set := func(tunnel, prefix string, to xfrm.Scope) {
		l.set(node.Lead{Tunnel: tunnel, Prefix: netip.MustParsePrefix(prefix), To: to})
	}
	want := func(tunnel, dst string, to xfrm.Scope) {
		t.Helper()
		got, ok := l.lookup(tunnel, netip.MustParseAddr(dst))
		if ok != (to != 0) || ok && got != to {
			t.Errorf("%s in %s: %d, %v; want %d", dst, tunnel, got, ok, to)
		}
	}
	want("vpn1", "10.1.0.1", 0)
	set("vpn1", "10.1.0.0/16", 300)
	set("vpn1", "10.1.7.0/24", 301)
	set("vpn1", "10.1.7.9/32", 302)
	set("vpn2", "10.1.7.0/24", 303)
	set("vpn1", "2001:db8::/56", 304)
	want("vpn1", "10.1.0.1", 300)
	want("vpn1", "10.1.7.1", 301)
	want("vpn1", "10.1.7.9", 302)
	want("vpn2", "10.1.7.9", 303)
	want("vpn2", "10.1.0.1", 0)
	want("vpn1", "2001:db8::1", 304)
	want("vpn1", "2001:db8:1::1", 0)
	set("vpn1", "10.1.7.0/24", 305)
	want("vpn1", "10.1.7.1", 305)
	l.publish(map[xfrm.Scope]bool{305: true})
	want("vpn1", "10.1.7.1", 0)
	want("vpn1", "10.1.7.9", 302)
	l.publish(nil)
	set("vpn1", "10.1.7.9/32", 0)
	set("vpn1", "10.1.7.9/32", 0)
	want("vpn1", "10.1.7.9", 305)
	set("vpn1", "10.1.7.0/24", 0)
	set("vpn2", "10.1.7.0/24", 0)
	want("vpn1", "10.1.7.1", 300)
	set("vpn1", "10.1.0.0/16", 0)
	set("vpn1", "2001:db8::/56", 0)
	want("vpn1", "10.1.7.1", 0)
	if len(l.to) != 0 || len(l.lengths[0])+len(l.lengths[1]) != 0 {
		t.Errorf("left over: %v, %v", l.to, l.lengths)
	}
}

func TestLeadsAllocateNothing(t *testing.T) {
	var l leads
	l.set(node.Lead{Tunnel: "vpn1", Prefix: netip.MustParsePrefix("10.1.0.0/24"), To: 300})
	a := netip.MustParseAddr("10.1.0.7")
	if n := testing.AllocsPerRun(100, func() { l.lookup("vpn1", a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkLeads says what a prefix costs in the data plane's table and among the routes
// that shall stand, and how long a packet's way is looked up.
func BenchmarkLeads(b *testing.B) {
	const n = 100_000
	prefix := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var l leads
	want := map[dynamicRoute]bool{}
	for i := range n {
		l.set(node.Lead{Tunnel: "vpn1", Prefix: prefix(i), To: 300})
		want[dynamicRoute{"vpn1", prefix(i)}] = true
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	dst := prefix(n / 2).Addr()
	for b.Loop() {
		l.lookup("vpn1", dst)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/prefix")
	runtime.KeepAlive(want)
}
