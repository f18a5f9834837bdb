package node

import (
	"net/netip"
	"runtime"
	"testing"

	"tandem/cluster"
)

// BenchmarkFarmLANMemory says what a prefix that another member has told costs here, beside
// the data plane's table and the kernel's route, and how long taking it takes.
func BenchmarkFarmLANMemory(b *testing.B) {
	const n, part = 100_000, 500
	w := upFarm(b, 70, 5, 0)
	m := w.members[1]
	var before, after runtime.MemStats
	number := uint32(100)
	for b.Loop() {
		b.StopTimer()
		m.farm.lan.pages = map[cluster.ScopeID]*page{}
		m.farm.routes = map[AddRoute]int{}
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		for i := range n / part {
			number++
			x := lanMessage{from: m.farm.peers[3].Process, to: m.process, number: number}
			p := lanPartOf{scope: lanScope + cluster.ScopeID(i%4), epoch: cluster.Epoch{Counter: 1 << 40, Node: 3}, kind: lanMore}
			for k := range part {
				v := i*part + k
				p.entries = append(p.entries, lanEntry{reach: reach{AddRoute: AddRoute{"vpn1", netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(v >> 16), byte(v >> 8), byte(v)}), 32)}}})
			}
			x.parts = append(x.parts, p)
			m.farm.HandleLAN(w.now, 3, x.write(b))
			for {
				if _, ok := m.farm.Poll(); !ok {
					break
				}
			}
		}
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/prefix")
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/prefix")
}
