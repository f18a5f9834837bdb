package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/sim/trace"
	"tandem/xfrm"
)

// world is one run.
type world struct {
	scene

	pairs   []*pair // one, or two that face each other
	clients []*host // of each tunnel; none where a pair is faced
	tunnels []*tunnel
	net     network
	flows   []*flow
	ivs     ivLedger
	wire    observer
	people  attacker

	quiet  time.Duration
	healed time.Duration
	echo   time.Duration // until when frames come back to who sent them
}

func newWorld(s *Schedule, log *trace.Log) *world {
	w := &world{scene: newScene(s, log, "chance"), ivs: ivLedger{}}
	w.net = network{w: w, r: stream(s.Seed, "network")}
	w.wire.init(w)
	w.people = attacker{w: w, r: stream(s.Seed, "attacker")}
	setup := s.Setup
	scopes := []xfrm.Scope{onlyScope}
	for i := range setup.VClusters {
		scopes = append(scopes[:i], xfrm.Scope(i+1))
	}
	setup.VClusters = slices.Clone(setup.VClusters)
	w.pairs = append(w.pairs, newPair(w, 0, "gw", &setup, scopes))
	if s.Setup.Faces != nil {
		far := s.Setup
		far.Priority, far.Override = s.Setup.Faces.Priority, s.Setup.Faces.Override
		w.pairs = append(w.pairs, newPair(w, 1, "far", &far, []xfrm.Scope{onlyScope}))
	}
	for i := range s.Setup.Clients {
		near := w.pairs[0].realms[i%len(scopes)]
		t := &tunnel{index: i, near: near, splitIKE: map[ipsec.IKESPIs]bool{}, excused: 20 * time.Second} // it has to come up first
		if len(w.pairs) > 1 {
			t.far = w.pairs[1].realms[0]
		} else {
			t.client = newHost(host{
				w: w, near: near, index: i,
				clock: clock{ppm: s.drift(2 + i)}, conf: load("client.conf", s.Setup.clientConfig(i, near.addr)),
			}, 0, fmt.Sprintf("client%d", i+1), 1)
			w.clients = append(w.clients, t.client)
		}
		w.tunnels = append(w.tunnels, t)
		w.net.outside = append(w.net.outside, natState{addr: natAddr(i), port: 4500})
		for n := range s.Setup.Clients[i].Networks {
			w.flows = append(w.flows, &flow{w: w, tunnel: t, network: n, r: stream(s.Seed, fmt.Sprintf("flow %d %d", i, n))})
		}
	}
	for _, r := range w.realms() {
		r.rule.init(r)
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
		for i, h := range w.gateways() {
			w.after(time.Duration(i%2)*between(w.chance, 0, 400*time.Millisecond), h.boot)
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

// gateways are those of all pairs.
func (w *world) gateways() (out []*host) {
	for _, p := range w.pairs {
		out = append(out, p.gw[:]...)
	}
	return out
}

// hosts are all of them, gateways first.
func (w *world) hosts() []*host { return append(w.gateways(), w.clients...) }

func (w *world) realms() (out []*realm) {
	for _, p := range w.pairs {
		out = append(out, p.realms...)
	}
	return out
}

// named is the realm that an action is about.
func (w *world) named(a Action) *realm {
	p := w.pairs[0]
	if strings.HasPrefix(a.Node, "far") {
		p = w.pairs[len(w.pairs)-1]
	}
	return p.realms[a.VCluster%len(p.realms)]
}

// node finds the host that an action names, or the role.
func (w *world) node(a Action) *host {
	r := w.named(a)
	switch strings.TrimPrefix(a.Node, "far-") {
	case "owner":
		if o := r.owner(); o != nil {
			return o
		}
		return r.pair.gw[0]
	case "standby":
		if o := r.owner(); o != nil {
			return o.other()
		}
		return r.pair.gw[1]
	}
	for _, h := range w.hosts() {
		if h.name == a.Node {
			return h
		}
	}
	return nil
}

// clientOf is which client has an outer address; -1: none.
func (w *world) clientOf(a netip.Addr) int {
	for i := range w.tunnels {
		if a == clientAddr(i) || a == w.net.outside[i].addr {
			return i
		}
	}
	return -1
}
