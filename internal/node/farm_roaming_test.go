package node

import (
	"net/netip"
	"testing"
	"time"

	"tandem/internal/ipsec"
)

func (m *farmer) setPeer(e SetPeer) {
	x := m.sas[e.SPIIn]
	x.Local, x.Remote, x.UDPEncap = e.Local, e.Remote, e.UDPEncap
	m.sas[e.SPIIn] = x
}

// TestFarmClientRoams: a client's address changes, and with it the router's choice: its
// update reaches a member that holds no copy. The owner, to whom that one forwards it with
// the outer addresses as they are, follows and so do its standbys; also when the owner dies
// right after the update.
func TestFarmClientRoams(t *testing.T) {
	for _, dies := range []bool{false, true} {
		w := newFarmWorld(t, 3, 5, 8)
		w.roaming = true
		w.run(20*time.Second, "settled", w.settled)
		w.dial()
		w.run(20*time.Second, "all tunnels up", w.carried)
		w.pass(time.Second)
		inits, c := w.inits, w.clients[0]
		var in, out ipsec.ESPSPI
		var owner *farmer
		for spi, m := range w.holder(c) {
			out, owner = spi, m
		}
		for spi := range c.sas {
			in = spi
		}
		for _, m := range w.members[1:] {
			if _, ok := m.sas[out]; !ok {
				w.route[c.i] = m.id
			}
		}
		if w.route[c.i] == owner.id {
			t.Fatal("every member has a copy of the client's SA")
		}
		c.addr = netip.MustParseAddr("203.0.113.200")
		c.do(func(n *Node) { n.HandleAddresses(w.now, nil) })
		if dies {
			at := func() bool { return w.at(c, owner.id) && owner.sas[out].Remote.Addr() == c.addr }
			w.run(time.Second, "the owner follows", at)
			w.kill(owner)
		}
		w.run(10*time.Second, "everybody who has the SA knows the client at its new address", func() bool {
			copies := 0
			for _, m := range w.members[1:] {
				if x, ok := m.sas[out]; ok && m.alive {
					copies++
					if x.Remote.Addr() != c.addr {
						return false
					}
				}
			}
			return copies >= 2 && len(w.holder(c)) == 1
		})
		w.pass(5 * time.Second)
		// A successor that was elected beside its predecessor rekeys early by itself.
		if _, ok := c.sas[in]; !ok && !dies || len(c.sas) != 1 || w.inits != inits || !w.carried() {
			t.Errorf("owner dies %v: %d IKE_SA_INITs, Child SAs %v", dies, w.inits-inits, c.sas)
		}
	}
}
