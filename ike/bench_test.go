package ike

import (
	"net/netip"
	"testing"
	"time"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// thousand is a hub with 1,000 idle dialup tunnels.
func thousand(b *testing.B) (*world, *side) {
	t := &testing.T{}
	w := newWorld(t)
	hub := w.side("hub", addrB, 2, &config.Config{Phase1: []config.Phase1{phase1To("vpn", "", func(p *config.Phase1) { p.DPD = "on-idle" })},
		Phase2: []config.Phase2{phase2For("vpn", "vpn", "0.0.0.0/0", "0.0.0.0/0")}}, nil)
	hub.resume()
	for i := range 1000 {
		c := w.side("c", netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}).String(), uint64(i+10), &config.Config{
			Phase1: []config.Phase1{phase1To("hub", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
			Phase2: []config.Phase2{phase2For("hub", "net", netA, netB)}}, nil)
		c.resume()
		w.settle()
		w.sides = w.sides[:1]
		w.seen = nil
	}
	hub.records, hub.logs = nil, nil
	if len(hub.established()) != 1000 {
		b.Fatalf("%d IKE SAs", len(hub.established()))
	}
	return w, hub
}

// BenchmarkIdle is one second of a gateway with 1,000 tunnels whose traffic is seen.
func BenchmarkIdle(b *testing.B) {
	w, hub := thousand(b)
	hub.e.o.Traffic = func(ipsec.ESPSPI) (time.Time, time.Time) { return w.now, w.now }
	b.ReportAllocs()
	for b.Loop() {
		w.now = w.now.Add(time.Second)
		for {
			at, ok := hub.e.NextTimeout()
			if !ok || at.After(w.now) {
				break
			}
			hub.e.HandleTimeout(w.now)
			for {
				if _, ok := hub.e.Poll(); !ok {
					break
				}
			}
		}
	}
}

// BenchmarkNextTimeout is what every input of the node costs on top.
func BenchmarkNextTimeout(b *testing.B) {
	_, hub := thousand(b)
	for b.Loop() {
		hub.e.NextTimeout()
	}
}

// BenchmarkRecord is the cost of a record of an IKE SA with one Child SA.
func BenchmarkRecord(b *testing.B) {
	w, a, _ := up(&testing.T{}, nil)
	sa := a.ike()[0]
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		a.e.now = w.now
		n = len(a.e.entry(sa).Value)
	}
	b.ReportMetric(float64(n), "bytes")
}
