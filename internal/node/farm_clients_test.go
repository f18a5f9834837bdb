package node

import (
	"fmt"
	"math/rand"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// caller is a VPN client.
type caller struct {
	w        *farmWorld
	i        int
	addr     netip.Addr
	node     *Node
	sas      map[ipsec.ESPSPI]xfrm.SA
	outbound map[ipsec.ESPSPI]bool
}

func farmClient(i int) string {
	return fmt.Sprintf(`
config vpn ipsec phase1-interface
    edit "hub"
        set interface "wan"
        set ike-version 2
        set remote-gw 192.0.2.1
        set localid "client%d"
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set psksecret "a secret of gateway and client"
    next
end
config vpn ipsec phase2-interface
    edit "hub"
        set phase1name "hub"
        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.10.%d.0 255.255.255.0
        set auto-negotiate enable
    next
end
`, i, i)
}

// dial starts the clients.
func (w *farmWorld) dial() {
	for _, c := range w.clients {
		c.node = New(Options{
			Config: load(w.t, farmClient(c.i)), Process: cluster.ProcessID(1000 + c.i), Rand: rand.New(rand.NewSource(w.rand.Int63())),
			Traffic:      func(ipsec.ESPSPI) (in, out time.Time) { return w.now, w.now },
			LocalAddr:    func(string, bool) (netip.Addr, bool) { return c.addr, true },
			CookieSecret: ipsec.NewKey(make([]byte, 32)),
		})
		c.do(func(n *Node) { n.Start(w.now) })
	}
}

func (c *caller) do(f func(*Node)) {
	f(c.node)
	for {
		e, ok := c.node.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case ike.Send:
			c.w.toFarm(c, e.Datagram)
		case Install:
			c.sas[e.SA.SPIIn] = e.SA
		case SetOutbound:
			c.outbound[e.SPIIn] = e.Use
		case Remove:
			delete(c.sas, e.SPIIn)
			delete(c.outbound, e.SPIIn)
		}
	}
}

func (w *farmWorld) toFarm(c *caller, d ike.Datagram) {
	if len(d.Data) > 18 && d.Data[18] == 34 {
		w.inits++
	}
	w.after(wireDelay, func() {
		m := w.members[w.route[c.i]]
		if m.alive {
			m.do(func(f *Farm) {
				f.HandleIKE(w.now, ike.Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data})
			})
		}
	})
}

func (w *farmWorld) toClient(d ike.Datagram) {
	w.after(wireDelay, func() {
		for _, c := range w.clients {
			if c.addr == d.Remote.Addr() && c.node != nil {
				c.do(func(n *Node) {
					n.HandleIKE(w.now, ike.Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data})
				})
			}
		}
	})
}
