package node

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

const gatewayConf = `
config vpn ipsec phase1-interface
    edit "vpn1"
        set interface "wan"
        set ike-version 2
        set local-gw 192.0.2.1
        set remote-gw 198.51.100.7
        set peertype any
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set keylife %d
        %s
        set dpd on-idle
        set dpd-retryinterval 10
        set psksecret "example-only"
    next
end
config vpn ipsec phase2-interface
    edit "net1"
        set phase1name "vpn1"
        set proposal aes128gcm
        set dhgrp 31
        set keylifeseconds %d
        set keepalive enable
        set src-subnet 10.2.0.0/24
        set dst-subnet 10.1.0.0/24
    next
    edit "net2"
        set phase1name "vpn1"
        set proposal aes128gcm
        set dhgrp 31
        set keylifeseconds %d
        set keepalive enable
        set src-subnet 10.2.2.0/24
        set dst-subnet 10.1.2.0/24
    next
end
`

const clientConf = `
config vpn ipsec phase1-interface
    edit "gw"
        set interface "wan"
        set ike-version 2
        set local-gw 198.51.100.7
        set remote-gw 192.0.2.1
        set peertype any
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set keylife %d
        %s
        set dpd %s
        set dpd-retryinterval 10
        set psksecret "example-only"
    next
end
config vpn ipsec phase2-interface
    edit "net1"
        set phase1name "gw"
        set proposal aes128gcm
        set dhgrp 31
        set keylifeseconds %d
        set keepalive enable
        set src-subnet 10.1.0.0/24
        set dst-subnet 10.2.0.0/24
    next
    edit "net2"
        set phase1name "gw"
        set proposal aes128gcm
        set dhgrp 31
        set keylifeseconds %d
        set keepalive enable
        set src-subnet 10.1.2.0/24
        set dst-subnet 10.2.2.0/24
    next
end
`

const (
	day  = 86400
	none = "set auto-negotiate disable"
)

// scenario is one exchange in one role: what starts it and what must be true at its end.
type scenario struct {
	name            string
	gateway, client string
	before          func(*world) // brings the world to the point where the exchange may begin
	start           func(*world)
	done            func(*world) bool
	within          time.Duration
	inits           int // IKE_SA_INIT requests that may be seen in all, retransmissions aside
}

func plain(gwLife, clLife int) (string, string) {
	return fmt.Sprintf(gatewayConf, gwLife, none, day, day), fmt.Sprintf(clientConf, clLife, none, "disable", day, day)
}

// twoMore adds additional key exchanges (RFC 9370) to both phases.
func twoMore(conf string) string {
	return strings.ReplaceAll(conf, "set dhgrp 31", "set dhgrp 31\n        set addke1 36\n        set addke3 37")
}

// scenarios are the exchanges, and once more with additional key exchanges those that have any.
func scenarios() []scenario {
	out := exchanges()
	for _, s := range exchanges() {
		for _, kind := range []string{"IKE_AUTH as ", "Child rekey", "IKE rekey"} {
			if strings.HasPrefix(s.name, kind) {
				s.name, s.gateway, s.client = s.name+" with additional key exchanges", twoMore(s.gateway), twoMore(s.client)
				out = append(out, s)
			}
		}
	}
	return out
}

func exchanges() []scenario {
	gw, cl := plain(day, day)
	up := func(w *world) {
		w.up(w.client, "gw", "net1")
		w.run(20*time.Second, "first Child SA up", func() bool { return w.agree(1) })
	}
	expire := func(m func(*world) *member) func(*world) {
		return func(w *world) {
			x := m(w)
			for _, spi := range slices.Sorted(maps.Keys(x.sas)) {
				x.do(func(n *Node) { n.HandlePlane(w.now, []xfrm.Event{xfrm.Expiring{SPIIn: spi, Reason: "test"}}) })
			}
		}
	}
	client := func(w *world) *member { return w.client }
	gateway := func(w *world) *member { return w.owner() }
	changed := func(n int) func(*world) bool {
		return func(w *world) bool { return w.agree(n) && w.changed() }
	}
	gwR, clR := plain(120, day)
	gwS, clS := plain(day, 120)
	gwD := gw
	gwP, clP := leasing()
	clD := fmt.Sprintf(clientConf, day, none, "on-idle", day, day)
	return []scenario{
		{"IKE_AUTH as responder", gw, cl, func(*world) {}, func(w *world) { w.up(w.client, "gw", "net1") },
			func(w *world) bool { return w.agree(1) }, 90 * time.Second, 1},
		{"IKE_AUTH as initiator", gw, cl, func(*world) {}, func(w *world) { w.up(w.owner(), "vpn1", "net1") },
			func(w *world) bool { return w.agree(1) }, 90 * time.Second, 1},
		{"IKE_AUTH that leases an address", gwP, clP, func(*world) {}, func(w *world) { w.up(w.client, "gw", "net1") },
			func(w *world) bool { return w.agree(1) && w.leased() == netip.MustParseAddr("10.1.0.1") }, 90 * time.Second, 1},
		{"Child create as responder", gw, cl, up, func(w *world) { w.up(w.client, "gw", "net2") },
			func(w *world) bool { return w.agree(2) }, 90 * time.Second, 1},
		{"Child create as initiator", gw, cl, up, func(w *world) { w.up(w.owner(), "vpn1", "net2") },
			func(w *world) bool { return w.agree(2) }, 90 * time.Second, 1},
		{"Child rekey as responder", gw, cl, up, expire(client), changed(1), 90 * time.Second, 1},
		{"Child rekey as initiator", gw, cl, up, expire(gateway), changed(1), 90 * time.Second, 1},
		{"IKE rekey as responder", gwS, clS, up, func(*world) {},
			func(w *world) bool { return w.agree(1) && w.ikeChanged() }, 4 * time.Minute, 1},
		{"IKE rekey as initiator", gwR, clR, up, func(*world) {},
			func(w *world) bool { return w.agree(1) && w.ikeChanged() }, 4 * time.Minute, 1},
		{"DPD as responder", gwD, clD, up, func(*world) {},
			func(w *world) bool { return w.agree(1) && w.count("INFORMATIONAL response") >= 1 }, 2 * time.Minute, 1},
		{"DPD as initiator", gw, cl, up, func(*world) {},
			func(w *world) bool { return w.agree(1) && w.count("INFORMATIONAL response") >= 1 }, 2 * time.Minute, 1},
		{"DELETE of the IKE SA as responder", gw, cl, up, func(w *world) { w.client.do(func(n *Node) { n.Clear(w.now, "gw") }) },
			func(w *world) bool { return w.empty() }, 2 * time.Minute, 1},
		{"DELETE of the IKE SA as initiator", gw, cl, up, func(w *world) { w.owner().do(func(n *Node) { n.Clear(w.now, "vpn1") }) },
			func(w *world) bool { return w.empty() }, 2 * time.Minute, 1},
		{"DELETE of a Child SA as responder", gw, cl, up, func(w *world) { w.client.do(func(n *Node) { _ = n.Down(w.now, "gw", "net1") }) },
			func(w *world) bool { return w.agree(0) }, 2 * time.Minute, 1},
		{"DELETE of a Child SA as initiator", gw, cl, up, func(w *world) { w.owner().do(func(n *Node) { _ = n.Down(w.now, "vpn1", "net1") }) },
			func(w *world) bool { return w.agree(0) }, 2 * time.Minute, 1},
	}
}

// up asks for a phase 2.
func (w *world) up(m *member, phase1, phase2 string) {
	m.do(func(n *Node) {
		if err := n.Up(w.now, phase1, phase2); err != nil {
			w.t.Fatalf("%s: up %s: %v", m.name, phase2, err)
		}
	})
}

// mark remembers the SAs that stand, for changed and ikeChanged.
func (w *world) mark() {
	w.childBase, w.ikeBase = map[ipsec.ESPSPI]bool{}, w.ikeSPIs()
	for spi := range w.client.sas {
		w.childBase[spi] = true
	}
	w.wire = nil
}

func (w *world) changed() bool {
	for spi := range w.client.sas {
		if w.childBase[spi] {
			return false
		}
	}
	return true
}

func (w *world) ikeSPIs() map[ipsec.IKESPIs]bool {
	out := map[ipsec.IKESPIs]bool{}
	for _, g := range w.client.node.Status(w.now).Gateways {
		for _, k := range g.IKE {
			out[k.SPIs] = true
		}
	}
	return out
}

func (w *world) ikeChanged() bool {
	now := w.ikeSPIs()
	for s := range now {
		if w.ikeBase[s] {
			return false
		}
	}
	return len(now) == 1
}

// empty: nobody holds any SA.
func (w *world) empty() bool {
	o := w.owner()
	if o == nil || len(o.sas)+len(w.client.sas) > 0 {
		return false
	}
	for _, g := range o.node.Status(w.now).Gateways {
		if len(g.IKE) > 0 {
			return false
		}
	}
	return len(w.ikeSPIs()) == 0
}

// play runs a scenario; the owner is killed when it has carried out crash effects
// of it (-1: never). It returns the effects that the owner carried out.
func (s scenario) play(t *testing.T, seed int64, crash int) []string {
	w := newWorld(t, seed, s.gateway, s.client)
	w.run(30*time.Second, "synchronised", w.synchronised)
	s.before(w)
	w.run(5*time.Second, "standby has the SAs", func() bool { return len(w.standby().sas) == len(w.owner().sas) })
	w.mark()
	w.crash, w.counting = crash, true
	s.start(w)
	if crash >= 0 {
		w.run(s.within, "a survivor", func() bool { return w.crashed && w.owner() != nil })
		if !slices.Contains(w.effects, "statesync.SendFrame") {
			s.start(w) // nothing had begun: what asked for the exchange died with the owner, and asks again
		}
	}
	w.run(s.within, "the exchange complete", func() bool {
		return s.done(w) && (crash < 0 || w.crashed)
	})
	w.counting = false
	w.pass(3 * time.Second)
	if !s.done(w) {
		w.dump()
		t.Fatalf("the exchange completed, then came undone")
	}
	return w.effects
}

func TestExchangesWithoutFaults(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			if len(s.play(t, 1, -1)) == 0 {
				t.Fatal("the owner carried out no effect")
			}
		})
	}
}

// A kill before and after every single effect of the owner, in each exchange and
// role: the survivor finishes what the other began, without IKE_SA_INIT.
func TestKillAtEveryEffect(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			total := len(s.play(t, 1, -1))
			for k := range total {
				t.Run(fmt.Sprintf("after %d of %d", k, total), func(t *testing.T) { s.play(t, 1, k) })
			}
		})
	}
}
