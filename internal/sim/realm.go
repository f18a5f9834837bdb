package sim

import (
	"fmt"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// pair is two gateways and what lies between them.
type pair struct {
	w       *world
	index   int // 0, or 1 for the one that the first one faces
	gw      [2]*host
	links   [2]hbLink // heartbeat links
	streams pipes[*host, *daemon]
	realms  []*realm
	setup   *Setup        // as it is now
	passive bool          // passive-mode
	unrest  time.Duration // until when any scope may change its owner
}

// realm is what of a pair moves as one: its only scope, or a virtual cluster. It knows
// whom the neighbours believe to have the shared addresses, and what is to be judged.
type realm struct {
	w      *world
	pair   *pair
	index  int // among the pair's
	scope  xfrm.Scope
	addr   netip.Addr // shared; of a pair that another one faces, each tunnel has its own
	target *host      // who has the addresses, as neighbours believe
	ledger ledger
	rule   rules
}

// tunnel leads from a realm to a client, or to the pair that it faces.
type tunnel struct {
	index     int
	near, far *realm // far: nil where a client is
	client    *host

	excused   time.Duration // until when it may have to begin anew
	noPath    time.Duration // since when its ends do not reach each other; 0: they do
	carriedAt time.Duration // when a packet came through last
	splitIKE  map[ipsec.IKESPIs]bool
	twice     bool               // both ends were split at a time
	answers   [2][]time.Duration // when each end said that it had raised its sequence numbers
}

// newPair makes two gateways with their realms.
func newPair(w *world, index int, names string, setup *Setup, scopes []xfrm.Scope) *pair {
	p := &pair{w: w, index: index, setup: setup}
	p.initStreams()
	for i, s := range scopes {
		r := &realm{w: w, pair: p, index: i, scope: s, addr: scopeAddr(s)}
		r.ledger.init()
		p.realms = append(p.realms, r)
	}
	for g := range p.gw {
		p.gw[g] = newHost(host{
			w: w, pair: p, index: index, clock: clock{ppm: w.s.drift(2*index + g)}, disk: disk{lost: true},
		}, cluster.NodeID(g+1), fmt.Sprintf("%s%d", names, g+1), len(scopes))
	}
	p.configure()
	return p
}

// configure gives both gateways their configuration as it is now.
func (p *pair) configure() {
	for g, h := range p.gw {
		h.conf = load("gw.conf", p.w.gatewayText(p, g))
	}
}

// reload has both gateways take their configuration as it is now.
func (p *pair) reload() {
	p.configure()
	for _, h := range p.gw {
		if d := h.d; d != nil {
			d.run(func(now time.Time) { d.n.Reload(now, h.conf) })
		}
	}
}

// realm is the one of a scope.
func (p *pair) realm(s xfrm.Scope) *realm {
	for _, r := range p.realms {
		if r.scope == s {
			return r
		}
	}
	panic(fmt.Sprintf("sim: there is no scope %d", s))
}

// pipe is the stream from a gateway to the other one.
func (p *pair) pipe(from *host) *pipe[*host, *daemon] { return p.streams.pipe(from, from.other()) }

func (p *pair) linksWhole() bool {
	for _, l := range p.links {
		if l.cut != [2]int{} || l.loss != [2]float64{} {
			return false
		}
	}
	return true
}

// connected: TCP works, which needs both directions of a link.
func (p *pair) connected() bool {
	for _, l := range p.links {
		if l.cut == [2]int{} {
			return p.gw[0].powered && p.gw[1].powered
		}
	}
	return false
}

// quietFaults is when the last fault that keeps nodes apart ended.
func (p *pair) quietFaults() time.Duration {
	t := time.Duration(0)
	p.streams.each(func(x *pipe[*host, *daemon]) { t = max(t, x.stalled) })
	for _, h := range p.gw {
		t = max(t, h.disk.until, h.disk.full)
	}
	return t
}

// owner is the gateway that owns, the later epoch if both believe they do; nil if none.
func (r *realm) owner() *host {
	var o *host
	for _, h := range r.pair.gw {
		if h.d != nil && h.d.p.active(r.scope) && (o == nil || o.of(r).said.Epoch.Less(h.of(r).said.Epoch)) {
			o = h
		}
	}
	return o
}

// announce: the neighbours learn where the shared addresses are.
func (r *realm) announce(h *host) {
	if !h.of(r).holds || !h.powered {
		return
	}
	if r.target != h {
		r.w.note(h.name, "arp", "announces the shared addresses%s", r.suffix())
	}
	r.target = h
}

// gateway is who gets what is sent to the shared addresses; nil: nobody.
func (r *realm) gateway() *host {
	if h := r.target; h != nil && h.of(r).holds && h.powered && h.wanCut[1] == 0 {
		return h
	}
	return nil
}

// suffix names the realm where there are several.
func (r *realm) suffix() string {
	if len(r.pair.realms) == 1 {
		return ""
	}
	return fmt.Sprintf(" of virtual cluster %d", r.scope)
}

// tunnels are those that end here.
func (r *realm) tunnels() (out []*tunnel) {
	for _, t := range r.w.tunnels {
		if t.near == r || t.far == r {
			out = append(out, t)
		}
	}
	return out
}

// realms are those in which the tunnel ends.
func (t *tunnel) realms() []*realm {
	if t.far == nil {
		return []*realm{t.near}
	}
	return []*realm{t.near, t.far}
}

// end is the host on the other side of r: a client, or who owns there; nil: nobody.
func (t *tunnel) end(r *realm) *host {
	switch {
	case t.client != nil:
		return t.client
	case r == t.near:
		return t.far.owner()
	}
	return t.near.owner()
}

// name is how a host's configuration calls the tunnel.
func (t *tunnel) name(h *host) string {
	switch {
	case h.pair == nil:
		return "gw"
	case h.pair == t.near.pair:
		return tunnelName(t.index)
	}
	return farName(t.index)
}

// network is how it calls one of its networks.
func (t *tunnel) network(h *host, n int) string {
	if h.pair == nil {
		return "net-" + digit(n)
	}
	return t.name(h) + "-" + digit(n)
}

func (t *tunnel) excuse(d time.Duration) { t.excused = max(t.excused, t.near.w.now+d) }

// apart: RFC 7296's rules rest, because of a split of either end.
func (t *tunnel) apart(k ipsec.IKESPIs) bool {
	if t.splitIKE[k] {
		return true
	}
	for _, r := range t.realms() {
		if r.rule.split || r.w.now < r.rule.tolerate {
			return true
		}
	}
	return false
}

// split says whether two own at either end.
func (t *tunnel) split() bool {
	return t.near.rule.split || t.far != nil && t.far.rule.split
}

// tunnelAt is the tunnel of an IKE message that a host sends or got; nil: of none.
func (w *world) tunnelAt(h *host, d ike.Datagram) *tunnel {
	if h.pair == nil {
		return w.tunnels[h.index]
	}
	at := d.Remote.Addr()
	if h.pair.index > 0 {
		at = d.Local.Addr()
	}
	if i := w.clientOf(at); i >= 0 {
		return w.tunnels[i]
	}
	return nil
}

// realmAt is the realm whose shared address it is; nil: none.
func (w *world) realmAt(a netip.Addr) *realm {
	for _, r := range w.pairs[0].realms {
		if r.addr == a {
			return r
		}
	}
	if len(w.pairs) > 1 && w.clientOf(a) >= 0 {
		return w.pairs[1].realms[0]
	}
	return nil
}

// realmOf is the realm of a host's Child SA.
func (h *host) realmOf(s xfrm.Scope) *realm {
	if h.pair == nil {
		return h.near
	}
	return h.pair.realm(s)
}

// scopeOf is the scope in which a host has a tunnel.
func (h *host) scopeOf(t *tunnel) xfrm.Scope {
	switch {
	case h.pair == nil:
		return onlyScope
	case h.pair == t.near.pair:
		return t.near.scope
	}
	return t.far.scope
}

// suffixAt is what a host's notes add.
func (r *realm) suffixAt(h *host) string {
	if h.pair == nil {
		return ""
	}
	return r.suffix()
}
