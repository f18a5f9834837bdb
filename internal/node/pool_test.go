package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// leasing are a gateway with a pool and a client that asks.
func leasing() (gateway, client string) {
	gateway, client = plain(day, day)
	gateway = strings.Replace(gateway, "set remote-gw 198.51.100.7", "set type dynamic\n        set mode-cfg enable\n        set ipv4-start-ip 10.1.0.1\n        set ipv4-end-ip 10.1.0.8", 1)
	gateway = strings.ReplaceAll(gateway, "set dst-subnet", "# set dst-subnet")
	client = strings.Replace(client, "set remote-gw", "set mode-cfg enable\n        set remote-gw", 1)
	return gateway, strings.ReplaceAll(client, "set src-subnet", "# set src-subnet")
}

// leased is what the client has from its gateway.
func (w *world) leased() (a netip.Addr) {
	for _, g := range w.client.node.Status(w.now).Gateways {
		for _, x := range g.Assigned.Addrs {
			a = x
		}
	}
	return a
}

// anew ends the client's IKE SA and has it begin again.
func (w *world) anew() netip.Addr {
	w.client.do(func(n *Node) { n.Clear(w.now, "gw") })
	w.run(time.Minute, "the client's SAs are gone", func() bool { return !w.leased().IsValid() })
	w.up(w.client, "gw", "net1")
	w.run(time.Minute, "the client has an address", func() bool { return w.leased().IsValid() })
	return w.leased()
}

// TestPoolOfAPair: synchronised the owner leases all addresses; alone only its own half; and
// a node that has met nobody none. A takeover keeps what is leased.
func TestPoolOfAPair(t *testing.T) {
	gateway, client := leasing()
	w := newWorld(t, 5, gateway, client)
	w.run(20*time.Second, "synchronised", w.synchronised)
	w.up(w.client, "gw", "net1")
	w.run(time.Minute, "the client has an address", func() bool { return w.leased().IsValid() })
	first := w.leased()
	if got := w.anew(); got != first || first != netip.MustParseAddr("10.1.0.1") {
		t.Errorf("the client had %v, now %v", first, got)
	}
	dead := w.owner()
	w.kill(dead)
	w.run(20*time.Second, "taken over", func() bool { return w.owner() != nil && w.owner() != dead })
	if got := w.leased(); got != first {
		t.Fatalf("the client has %v after the takeover, before it had %v", got, first)
	}
	alone := w.owner()
	homes := alone.id - 1 // the lower number has the even ones
	for range 3 {
		if got := w.anew(); got.As4()[3]&1 != byte(homes) {
			t.Errorf("node %d alone leased %v", alone.id, got)
		}
	}
	if n := alone.node.pool; n.followed || n.other != dead.id {
		t.Errorf("the survivor believes %+v", n)
	}

	// The survivor dies, and comes back alone: nothing is leased before the other one is there.
	conf := fmt.Sprintf(haOf, 200-int(alone.id-1)) + gateway
	w.kill(alone)
	alone.boot(load(t, conf))
	w.run(20*time.Second, "it owns alone", func() bool { return w.owner() == alone })
	w.client.do(func(n *Node) { n.Clear(w.now, "gw") })
	w.pass(2 * time.Minute)
	if a := w.leased(); a.IsValid() {
		t.Errorf("%v was leased by a node that has met nobody", a)
	}
	dead.boot(load(t, fmt.Sprintf(haOf, 200-int(dead.id-1))+gateway))
	w.run(time.Minute, "synchronised again", w.synchronised)
	w.up(w.client, "gw", "net1")
	w.run(time.Minute, "the client has an address again", func() bool { return w.leased().IsValid() })
}
