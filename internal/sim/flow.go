package sim

import (
	"math/rand/v2"
	"time"
)

// flow is the traffic of a network beyond a tunnel with the server behind the gateways.
type flow struct {
	w       *world
	tunnel  *tunnel
	network int
	r       *rand.Rand

	// When something last arrived, to the server and to the site.
	arrived [2]time.Duration
	count   [2]int
}

// background is a packet each way about every two seconds.
func (f *flow) background() {
	if f.w.done {
		return
	}
	f.send(false)
	f.send(true)
	gap := between(f.r, time.Second, 4*time.Second)
	if f.w.healing {
		gap = between(f.r, 100*time.Millisecond, 400*time.Millisecond)
	}
	f.w.after(gap, f.background)
}

// send puts one packet on its way.
func (f *flow) send(toSite bool) {
	w := f.w
	w.serial++
	pkt := &packet{serial: w.serial, flow: f, toSite: toSite, at: w.now}
	w.Result.Packets++
	h, from := f.tunnel.client, f.tunnel.far
	if toSite {
		from = f.tunnel.near
	}
	if from != nil {
		if h = from.target; h == nil || !h.of(from).holds || !h.powered {
			return
		}
	}
	if d := h.d; d != nil {
		d.p.run(func() { d.p.send(pkt) })
	}
}

// burst sends count packets at a rate, each way or one.
func (f *flow) burst(count int, rate float64, direction int) {
	f.w.burst(f.r, count, rate, direction, f.send)
}
