package sim

import (
	"fmt"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/internal/sim/trace"
)

// world is one run.
type world struct {
	scene

	gw      [2]*host
	clients []*host
	links   [2]hbLink // heartbeat links
	net     network
	streams pipes[*host, *daemon]
	flows   []*flow
	ledger  ledger
	wire    observer
	rule    rules
	people  attacker

	quiet time.Duration
	echo  time.Duration // until when frames come back to who sent them
}

func newWorld(s *Schedule, log *trace.Log) *world {
	w := &world{scene: newScene(s, log, "chance")}
	w.net = network{w: w, r: stream(s.Seed, "network")}
	w.initStreams()
	w.ledger.init()
	w.wire.init(w)
	w.rule.init(w)
	w.people = attacker{w: w, r: stream(s.Seed, "attacker")}
	for g := range w.gw {
		w.gw[g] = newHost(host{
			w: w, addr: clusterAddr,
			clock: clock{ppm: s.drift(g)}, conf: load("gw.conf", s.Setup.gatewayConfig(g, false)), monitors: 1,
			disk: disk{lost: true},
		}, cluster.NodeID(g+1), fmt.Sprintf("gw%d", g+1))
	}
	for i := range s.Setup.Clients {
		w.clients = append(w.clients, newHost(host{
			w: w, index: i, addr: clientAddr(i),
			clock: clock{ppm: s.drift(2 + i)}, conf: load("client.conf", s.Setup.clientConfig(i)),
		}, 0, fmt.Sprintf("client%d", i+1)))
		w.net.outside = append(w.net.outside, natState{addr: natAddr(i), port: 4500})
		for n := range s.Setup.Clients[i].Networks {
			w.flows = append(w.flows, &flow{w: w, client: i, network: n, r: stream(s.Seed, fmt.Sprintf("flow %d %d", i, n))})
		}
	}
	return w
}

func (s *Schedule) drift(i int) int64 {
	if i < len(s.Setup.Drift) {
		return s.Setup.Drift[i]
	}
	return 0
}

// run is the whole of it.
func (w *world) run() *Result {
	return w.play(func() {
		for g, h := range w.gw {
			w.after(time.Duration(g)*between(w.chance, 0, 400*time.Millisecond), h.boot)
		}
		for _, c := range w.clients {
			w.after(between(w.chance, 0, 3*time.Second), c.boot)
		}
		w.planActions(w.act)
		for _, f := range w.flows {
			w.after(between(w.chance, 2*time.Second, 4*time.Second), f.background)
		}
		w.queue.push(w.s.Length, w.heal)
	})
}

// hosts are all of them, gateways first.
func (w *world) hosts() []*host { return append([]*host{w.gw[0], w.gw[1]}, w.clients...) }

// owner is the gateway that owns, the later epoch if both believe they do; nil if none.
func (w *world) owner() *host {
	var o *host
	for _, h := range w.gw {
		if h.d != nil && h.d.p.active(onlyScope) && (o == nil || o.said.Epoch.Less(h.said.Epoch)) {
			o = h
		}
	}
	return o
}

// node finds a host by its name or role.
func (w *world) node(name string) *host {
	switch name {
	case "owner":
		if o := w.owner(); o != nil {
			return o
		}
		return w.gw[0]
	case "standby":
		if o := w.owner(); o != nil {
			return o.other()
		}
		return w.gw[1]
	}
	for _, h := range w.hosts() {
		if h.name == name {
			return h
		}
	}
	return nil
}

// clientOf is which client has an outer address; -1: none.
func (w *world) clientOf(a netip.Addr) int {
	for i := range w.clients {
		if a == clientAddr(i) || a == w.net.outside[i].addr {
			return i
		}
	}
	return -1
}
