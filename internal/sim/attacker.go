package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"tandem/ike"
)

// attacker sees everything that goes to the cluster and can send there what it
// likes, from any address.
type attacker struct {
	w *world
	r *rand.Rand
}

func (a *attacker) paced(count int, f func()) {
	for i := range count {
		a.w.after(time.Duration(i)*between(a.r, 20*time.Microsecond, 2*time.Millisecond), f)
	}
}

// replay sends captured packets again, to whoever is the gateway then.
func (a *attacker) replay(count int) {
	a.paced(count, func() {
		n := &a.w.net
		if len(n.seen) == 0 {
			return
		}
		c := n.seen[a.r.IntN(len(n.seen))]
		a.tell("a captured packet again")
		if c.ike != nil {
			n.toGateway(*c.ike)
		} else {
			n.espToGateway(c.esp, c.from, c.to)
		}
	})
}

// garbage sends broken copies of captured packets, and noise.
func (a *attacker) garbage(count int) {
	a.paced(count, func() {
		n := &a.w.net
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(200 + a.r.IntN(50))}), 4500)
		if len(n.seen) == 0 || a.r.IntN(4) == 0 {
			b := make([]byte, a.r.IntN(300))
			for i := range b {
				b[i] = byte(a.r.Uint32())
			}
			n.toGateway(ike.Datagram{Local: netip.AddrPortFrom(clusterAddr, 500), Remote: from, Data: b})
			return
		}
		c := n.seen[a.r.IntN(len(n.seen))]
		if a.r.IntN(2) == 0 {
			from = c.from
		}
		if c.ike != nil {
			x := *c.ike
			x.Remote = from
			x.Data = slices.Clone(x.Data)
			for range 1 + a.r.IntN(4) {
				x.Data[a.r.IntN(len(x.Data))] ^= 1 << a.r.IntN(8)
			}
			if a.r.IntN(4) == 0 {
				x.Data = x.Data[:a.r.IntN(len(x.Data))]
			}
			if slices.Equal(x.Data, c.ike.Data) {
				return
			}
			a.w.wire.forged(x.Data)
			a.tell("a forged IKE message")
			n.toGateway(x)
			return
		}
		x := *c.esp
		x.forged = true
		if x.data != nil {
			x.data = slices.Clone(x.data)
			x.data[8+a.r.IntN(len(x.data)-8)] ^= 1 << a.r.IntN(8)
		}
		x.seq += uint64(a.r.IntN(5000))
		if x.data != nil {
			binary.BigEndian.PutUint32(x.data[4:], uint32(x.seq))
			if slices.Equal(x.data, c.esp.data) {
				return
			}
		}
		a.tell("a forged ESP packet")
		n.espToGateway(&x, from, c.to)
	})
}

// flood begins IKE SAs from addresses that are not its own.
func (a *attacker) flood(count int) {
	n := &a.w.net
	i := slices.IndexFunc(n.seen, func(c captured) bool { return c.ike != nil && len(c.ike.Data) > 18 && c.ike.Data[18] == 34 })
	if i < 0 {
		return
	}
	first := *n.seen[i].ike
	a.paced(count, func() {
		x := first
		x.Data = slices.Clone(x.Data)
		binary.BigEndian.PutUint64(x.Data, a.r.Uint64()|1)
		x.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(a.r.IntN(256))}), uint16(1024+a.r.IntN(60000)))
		a.w.wire.forged(x.Data)
		a.tell("IKE_SA_INIT from nowhere")
		n.toGateway(x)
	})
}

func (a *attacker) tell(text string) {
	to := "cluster"
	if r := a.w.realms()[0]; r.target != nil {
		to = r.target.name
	}
	a.w.message("attacker", to, "hostile", a.w.now, func() string { return text })
}
