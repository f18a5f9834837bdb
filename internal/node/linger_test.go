package node

import (
	"testing"
	"time"
)

// A Child SA that was rekeyed, by whichever side, still takes what is under way, at the
// owner and at the client; a standby has none of it. It does not where nobody follows the
// owner, because the other side of a split may have the SA, nor after any other end.
func TestReplacedChildSALingers(t *testing.T) {
	w := newWorld(t, 1, scenarios()[0].gateway, scenarios()[0].client)
	w.run(30*time.Second, "synchronised", w.synchronised)
	w.up(w.client, "gw", "net1")
	w.run(20*time.Second, "first Child SA up", func() bool { return w.agree(1) })
	gw := w.owner()
	rekey := func(m *member, name string) {
		t.Helper()
		w.mark()
		for _, x := range []*member{w.gw[0], w.gw[1], w.client} {
			x.removed = nil
		}
		m.do(func(n *Node) {
			if n.Rekey(w.now, name, false) != 1 {
				t.Fatal("nothing to rekey")
			}
		})
		w.run(20*time.Second, "rekeyed", func() bool { return w.agree(1) && w.changed() && len(gw.removed) > 0 })
	}
	lingers := func(m *member, want bool) {
		t.Helper()
		if len(m.removed) != 1 || (m.removed[0].Linger > 0) != want {
			t.Errorf("%s: %+v, lingering: %v", m.name, m.removed, want)
		}
	}
	for i := range 4 {
		if i%2 == 0 {
			rekey(w.client, "gw")
		} else {
			rekey(gw, "vpn1")
		}
		lingers(gw, true)
		lingers(w.client, true)
		w.run(time.Second, "standby has followed", func() bool { return len(w.standby().removed) > 0 })
		lingers(w.standby(), false)
	}
	w.kill(w.standby())
	w.run(5*time.Second, "alone", func() bool { return gw.node.alone() })
	rekey(w.client, "gw")
	lingers(gw, false)
	lingers(w.client, true)
	gw.removed, w.client.removed = nil, nil
	gw.do(func(n *Node) {
		if err := n.Down(w.now, "vpn1", "net1"); err != nil {
			t.Fatal(err)
		}
	})
	w.run(5*time.Second, "down", func() bool { return w.agree(0) && len(w.client.removed) > 0 })
	lingers(gw, false)
	lingers(w.client, false)
}
