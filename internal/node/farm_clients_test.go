package node

import (
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
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
	lastIn   time.Time
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
        set localid "client%[1]d"
        set exchange-interface-ip enable
        set exchange-ip-addr4 172.16.1.%[2]d
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
        set src-subnet 10.10.%[1]d.0 255.255.255.0
        set auto-negotiate enable
    next
end
`, i, i+1)
}

func (w *farmWorld) addCallers(clients int) {
	for i := range clients {
		c := &caller{w: w, i: i, addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), sas: map[ipsec.ESPSPI]xfrm.SA{}, outbound: map[ipsec.ESPSPI]bool{}}
		w.clients = append(w.clients, c)
		w.route[i] = cluster.NodeID(1 + i%max(len(w.members)-1, 1))
	}
}

// farmSite is a tunnel that the farm initiates towards a client.
func farmSite(i int) string {
	return fmt.Sprintf(`
config vpn ipsec phase1-interface
    edit "site%[1]d"
        set interface "port2"
        set ike-version 2
        set local-gw 192.0.2.1
        set remote-gw 198.51.100.%[2]d
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set fgsp-sync enable
        set psksecret "a secret of gateway and client"
    next
end
config vpn ipsec phase2-interface
    edit "site%[1]d"
        set phase1name "site%[1]d"
        set proposal aes128gcm
        set dhgrp 31
        set auto-negotiate enable
        set dst-subnet 10.10.%[1]d.0 255.255.255.0
    next
end
`, i, i+1)
}

// dial starts the clients.
func (w *farmWorld) dial() {
	for _, c := range w.clients {
		c.start()
	}
}

// start starts a client that knows of nothing.
func (c *caller) start() {
	w, text := c.w, farmClient(c.i)
	if w.passive {
		text = strings.Replace(strings.Replace(text, "set auto-negotiate enable", "", 1), `set psksecret`, "set passive-mode enable\n        set psksecret", 1)
	}
	if w.roaming {
		text = strings.Replace(text, `set psksecret`, "set mobike enable\n        set psksecret", 1)
	}
	if w.pool != "" {
		text = strings.Replace(text, `set psksecret`, "set mode-cfg enable\n        set psksecret", 1)
		text = strings.Replace(text, "set src-subnet", "# set src-subnet", 1)
	}
	c.sas, c.outbound = map[ipsec.ESPSPI]xfrm.SA{}, map[ipsec.ESPSPI]bool{}
	c.node = New(Options{
		Config: load(w.t, text), Process: cluster.ProcessID(1000 + c.i), Rand: rand.New(rand.NewSource(w.rand.Int63())),
		Traffic:      func(spi ipsec.ESPSPI) (in, out time.Time) { return c.heard(spi), w.now },
		LocalAddr:    func(string, bool) (netip.Addr, bool) { return c.addr, true },
		CookieSecret: ipsec.NewKey(make([]byte, 32)),
	})
	c.do(func(n *Node) { n.Start(w.now) })
}

// heard is when the farm last answered on a Child SA: now, if a member that the router
// or another member leads to has it and is active.
func (c *caller) heard(spi ipsec.ESPSPI) time.Time {
	if c.w.carries(c.sas[spi]) == 1 {
		c.lastIn = c.w.now
	}
	return c.lastIn
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

func (w *farmWorld) dump() {
	for _, c := range w.clients {
		for spi, sa := range c.sas {
			for _, m := range w.members[1:] {
				if x, ok := m.sas[sa.SPIOut]; ok {
					w.t.Logf("client %d (to member %d) %s/%s: member %d alive=%v scope %v active=%v out=%v", c.i, w.route[c.i], sa.SPIOut, spi, m.id, m.alive, cluster.ScopeID(x.Scope), m.active[x.Scope], m.outbound[sa.SPIOut])
				}
			}
		}
		if len(c.sas) != 1 {
			w.t.Logf("client %d has %d Child SAs: %v", c.i, len(c.sas), slices.Sorted(maps.Keys(c.sas)))
		}
	}
	var lines []string
	for _, m := range w.members[1:] {
		s := m.farm.Status(w.now)
		w.t.Logf("vm%d alive=%v scopes=%d owned=%d sas=%d leads=%v quorum=%+v", m.id, m.alive, len(m.farm.order), len(m.farm.owned), len(m.sas), m.farm.leads, s.Farm.Quorum)
		lines = append(lines, m.logs...)
	}
	slices.Sort(lines)
	if len(lines) > 200 {
		lines = lines[len(lines)-200:]
	}
	for _, l := range lines {
		w.t.Log(l)
	}
	for _, s := range w.members[1].state.Scopes() {
		w.t.Logf("%v", s)
	}
}

// carried says whether every client's Child SA is held by exactly one active owner.
func (w *farmWorld) carried() bool {
	for _, c := range w.clients {
		if len(c.sas) != 1 {
			return false
		}
		for _, sa := range c.sas {
			if w.carries(sa) != 1 {
				return false
			}
		}
	}
	return true
}

// carries counts the active owners of a client's Child SA.
func (w *farmWorld) carries(sa xfrm.SA) (n int) {
	for _, m := range w.members[1:] {
		if x, ok := m.sas[sa.SPIOut]; ok && m.alive && m.active[x.Scope] && x.SPIOut == sa.SPIIn && m.outbound[sa.SPIOut] {
			n++
		}
	}
	return n
}
