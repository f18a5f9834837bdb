package sim

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// farmPlane is the data plane of a process, a member's or a client's: the production
// sender and receiver of each SA, each SA of a scope that is active or not.
type farmPlane struct {
	w         *farm
	who       string
	process   cluster.ProcessID
	ofCluster bool
	awake     func() bool
	event     func([]xfrm.Event)
	stray     func(stray)
	scopes    map[xfrm.Scope]*planeScope
	order     uint64
	sas       map[ipsec.ESPSPI]*farmSA
	list      []*farmSA // in the order of installation
	gone      map[ipsec.ESPSPI]bool
	tick      bool
	inbox     []func()
}

type planeScope struct {
	id      xfrm.Scope
	active  bool
	retired bool // it takes no more packets
	gen     uint64
}

type farmSA struct {
	xfrm.SA
	p               *farmPlane
	scope           *planeScope
	keyIn, keyOut   uint64
	order           uint64 // of SetOutbound; 0: not used
	out             esp.Sender
	in              esp.Receiver
	unsent          []*farmPacket
	undone          []heldFarmPacket
	seen            bool
	moved           time.Duration
	lastIn, lastOut time.Time
}

type heldFarmPacket struct {
	seq uint64
	pkt *farmPacket
}

// farmPacket is an inner packet.
type farmPacket struct {
	serial uint64
	client *caller
	toSite bool
	at     time.Duration
}

// farmESP is an ESP packet on the outer network.
type farmESP struct {
	spi      ipsec.ESPSPI
	seq      uint64
	key      uint64
	inner    *farmPacket
	from, to netip.AddrPort
}

// stray is a packet, inner or ESP, of an SA whose scope is not active here.
type stray struct {
	scope xfrm.Scope
	inner *farmPacket
	outer *farmESP
	trail []cluster.NodeID
}

type seenESP struct{ x *farmESP }

func newFarmPlane(w *farm, who string, process cluster.ProcessID, awake func() bool) *farmPlane {
	return &farmPlane{w: w, who: who, process: process, awake: awake, scopes: map[xfrm.Scope]*planeScope{}, sas: map[ipsec.ESPSPI]*farmSA{}, gone: map[ipsec.ESPSPI]bool{}}
}

// run is what goroutines of the data plane do; it waits while the process stands still.
func (p *farmPlane) run(f func()) {
	if p.awake() {
		f()
	} else if len(p.inbox) < socketMax {
		p.inbox = append(p.inbox, f)
	}
}

func (p *farmPlane) goOn() {
	if !p.awake() {
		return
	}
	in := p.inbox
	p.inbox = nil
	for _, f := range in {
		p.run(f)
	}
	p.ticks()
}

func (p *farmPlane) scope(id xfrm.Scope) *planeScope {
	s := p.scopes[id]
	if s == nil {
		s = &planeScope{id: id, gen: initialGen}
		p.scopes[id] = s
	}
	return s
}

func (p *farmPlane) active(id xfrm.Scope) bool { return p.scope(id).active }

func (p *farmPlane) activate(id xfrm.Scope) {
	s := p.scope(id)
	s.retired = false
	if !s.active {
		s.active = true
		s.gen++
	}
}

func (p *farmPlane) retire(id xfrm.Scope) {
	s := p.scope(id)
	s.retired = s.active
}

func (p *farmPlane) deactivate(id xfrm.Scope) {
	s := p.scope(id)
	s.active, s.retired = false, false
}

// takes says whether new packets of the scope are taken.
func (s *planeScope) takes() bool { return s.active && !s.retired }

// detach takes SAs out, and returns their exact state.
func (p *farmPlane) detach(spis []ipsec.ESPSPI) (ws []xfrm.Window) {
	for _, spi := range spis {
		s := p.sas[spi]
		if s == nil {
			continue
		}
		ws = append(ws, s.window())
		delete(p.sas, spi)
		p.gone[spi] = true
		p.list = slices.DeleteFunc(p.list, func(x *farmSA) bool { return x == s })
	}
	return ws
}

func (p *farmPlane) install(x xfrm.SA) {
	if p.sas[x.SPIIn] != nil {
		p.w.violate(RuleEffects, "%s installs SPI %s twice", p.who, x.SPIIn)
		return
	}
	last := esp.MaxSequence(x.Suite.ESN)
	scope := p.scope(x.Scope)
	gen := scope.gen
	if x.Known {
		gen--
	}
	s := &farmSA{SA: x, p: p, scope: scope, keyIn: keyName(x.EncrIn), keyOut: keyName(x.EncrOut), out: esp.NewSender(gen, x.Ceiling, last), in: esp.NewReceiver(gen, x.Fence, x.ReplayWindow, last)}
	p.sas[x.SPIIn] = s
	p.list = append(p.list, s)
}

func (p *farmPlane) setOutbound(spi ipsec.ESPSPI, use bool) {
	if s := p.sas[spi]; s != nil {
		s.order = 0
		if use {
			p.order++
			s.order = p.order
		}
	}
}

func (p *farmPlane) setPeer(e node.SetPeer) {
	if s := p.sas[e.SPIIn]; s != nil {
		s.Local, s.Remote, s.UDPEncap = e.Local, e.Remote, e.UDPEncap
	}
}

func (p *farmPlane) remove(spi ipsec.ESPSPI) {
	s := p.sas[spi]
	if s == nil {
		return
	}
	delete(p.sas, spi)
	p.gone[spi] = true
	p.list = slices.DeleteFunc(p.list, func(x *farmSA) bool { return x == s })
	if !s.scope.active {
		return
	}
	if s.in.Generation() == s.scope.gen {
		for _, q := range s.undone {
			p.deliver(s, q.seq, q.pkt)
		}
	}
	if s.out.Generation() == s.scope.gen {
		for _, pkt := range s.unsent {
			p.send(pkt, nil)
		}
	}
}

func (p *farmPlane) setBounds(bs []xfrm.Bound) {
	now := p.w.at()
	var es []xfrm.Event
	for _, b := range bs {
		s := p.sas[b.SPIIn]
		if s == nil {
			continue
		}
		switch {
		case !s.scope.active && b.Dir == xfrm.Outbound:
			s.out.Record(b.N)
		case !s.scope.active:
			s.in.Record(b.N)
		case b.Dir == xfrm.Outbound:
			s.activateOut()
			s.out.Grant(b.N)
			for len(s.unsent) > 0 {
				seq, pass, q, ask := s.out.Retry(now)
				es = s.asks(es, xfrm.Outbound, q, ask)
				if !pass {
					break
				}
				pkt := s.unsent[0]
				s.unsent = s.unsent[1:]
				p.seal(s, seq, pkt)
			}
		default:
			s.activateIn()
			s.in.Grant(b.N)
			kept := s.undone[:0]
			for _, h := range s.undone {
				pass, q, ask := s.in.Retry(now, h.seq)
				es = s.asks(es, xfrm.Inbound, q, ask)
				if pass {
					p.deliver(s, h.seq, h.pkt)
				} else {
					kept = append(kept, h)
				}
			}
			s.undone = kept
		}
	}
	p.event(es)
	p.ticks()
}

func (s *farmSA) asks(es []xfrm.Event, dir xfrm.Direction, n uint64, ask bool) []xfrm.Event {
	if ask {
		es = append(es, xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: s.SPIIn, Dir: dir, N: n}})
	}
	return es
}

func (s *farmSA) activateOut() {
	if s.out.Activate(s.scope.gen) {
		s.unsent = nil
	}
}

func (s *farmSA) activateIn() {
	if s.in.Activate(s.scope.gen) {
		s.undone, s.seen = nil, false
	}
}

func (p *farmPlane) windows(scope xfrm.Scope) (ws []xfrm.Window) {
	for _, s := range p.list {
		if s.scope.id == scope {
			ws = append(ws, s.window())
		}
	}
	return ws
}

// window is the exact state of an SA. What waited for a bound is dropped.
func (s *farmSA) window() xfrm.Window {
	x := xfrm.Window{SPIIn: s.SPIIn}
	s.activateOut()
	x.OutSeq = s.out.Seq()
	s.activateIn()
	for _, h := range s.undone {
		s.in.Forget(h.seq)
	}
	s.undone = nil
	x.InSeq, x.InAccepted = s.in.Export()
	return x
}

func (p *farmPlane) setWindows(ws []xfrm.Window) {
	for _, x := range ws {
		if s := p.sas[x.SPIIn]; s != nil {
			s.out.Import(x.OutSeq)
			s.in.Import(x.InSeq, x.InAccepted)
		}
	}
}

func (p *farmPlane) traffic(spi ipsec.ESPSPI) (in, out time.Time) {
	if s := p.sas[spi]; s != nil {
		return s.lastIn, s.lastOut
	}
	return
}

// lookup finds the newest SA in use whose selectors hold the packet.
func (p *farmPlane) lookup(pkt *farmPacket) (found *farmSA) {
	src, dst := pkt.addrs()
	for _, s := range p.list {
		if s.order > 0 && (found == nil || s.scope.active && !found.scope.active || s.scope.active == found.scope.active && s.order > found.order) &&
			covers(s.TSLocal, src) && covers(s.TSRemote, dst) {
			found = s
		}
	}
	return found
}

// send takes an inner packet from the interface, or from another member.
func (p *farmPlane) send(pkt *farmPacket, trail []cluster.NodeID) {
	s := p.lookup(pkt)
	if s == nil {
		return
	}
	if !s.scope.takes() {
		if p.stray != nil && len(trail) < forwardHops {
			p.stray(stray{scope: s.scope.id, inner: pkt, trail: trail})
		}
		return
	}
	s.activateOut()
	now := p.w.at()
	if len(s.unsent) > 0 {
		s.out.Count(now)
	} else {
		seq, pass, q, ask := s.out.Offer(now)
		p.event(s.asks(nil, xfrm.Outbound, q, ask))
		if pass {
			p.seal(s, seq, pkt)
			p.ticks()
			return
		}
	}
	if len(s.unsent) < waitingMax {
		s.unsent = append(s.unsent, pkt)
	}
	p.ticks()
}

// seal makes an ESP packet and sends it.
func (p *farmPlane) seal(s *farmSA, seq uint64, pkt *farmPacket) {
	w := p.w
	var iv [8]byte
	if s.IV == nil {
		w.violate(RuleEffects, "%s: SA %s has no IV counter", p.who, s.SPIIn)
		return
	}
	if err := s.IV.Next(iv[:]); err != nil {
		w.violate(RuleEffects, "%s: SA %s: %v", p.who, s.SPIIn, err)
		return
	}
	s.out.Sent()
	s.lastOut = w.at()
	x := &farmESP{spi: s.SPIOut, seq: seq, inner: pkt, key: s.keyOut, from: s.Local, to: s.Remote}
	w.ledger.sealed(w, p, s, x, binary.BigEndian.Uint64(iv[:]))
	w.sendESP(p, x)
}

// receive takes an ESP packet from the socket, or from another member.
func (p *farmPlane) receive(x *farmESP, trail []cluster.NodeID) {
	w := p.w
	s := p.sas[x.spi]
	if s == nil || !s.scope.takes() {
		scope := node.ScopeOf(x.spi)
		if s != nil {
			scope = s.scope.id
		}
		if p.stray != nil && len(trail) < forwardHops && (s != nil || !p.active(scope)) {
			p.stray(stray{scope: scope, outer: x, trail: trail})
		} else if p.ofCluster {
			w.rule.dropped(p, cluster.ScopeID(scope), x, len(trail) > 0)
		}
		return
	}
	s.activateIn()
	now := w.at()
	if x.key != s.keyIn || !s.in.Window().Check(x.seq) {
		w.ledger.refused(w, p, s, x)
		return
	}
	s.in.Window().Accept(x.seq)
	s.lastIn = now
	var es []xfrm.Event
	if !s.seen {
		s.seen = true
		es = append(es, xfrm.FirstInbound{SPIIn: s.SPIIn})
	}
	if x.from.Addr() != s.Remote.Addr() && (s.moved == 0 || w.now-s.moved >= time.Second) {
		s.moved = w.now
		es = append(es, xfrm.PeerMoved{SPIIn: s.SPIIn, From: x.from})
	}
	pass, q, ask := s.in.Offer(now, x.seq)
	es = s.asks(es, xfrm.Inbound, q, ask)
	switch {
	case pass:
		p.deliver(s, x.seq, x.inner)
	case len(s.undone) < waitingMax:
		at := len(s.undone)
		for at > 0 && s.undone[at-1].seq > x.seq {
			at--
		}
		s.undone = slices.Insert(s.undone, at, heldFarmPacket{x.seq, x.inner})
	}
	p.event(es)
	p.ticks()
}

// inject takes what another member received.
func (p *farmPlane) inject(x stray) {
	if x.outer != nil {
		p.receive(x.outer, x.trail)
	} else {
		p.send(x.inner, x.trail)
	}
}

func (p *farmPlane) deliver(s *farmSA, seq uint64, pkt *farmPacket) {
	p.w.ledger.delivered(p.w, p, s, seq, pkt)
}

// ticks looks after leases that time may end, like the production ticker.
func (p *farmPlane) ticks() {
	if p.tick || !slices.ContainsFunc(p.list, func(s *farmSA) bool { return !s.settled() }) {
		return
	}
	p.tick = true
	p.w.after(planeTick, func() {
		p.tick = false
		p.run(func() {
			now := p.w.at()
			var es []xfrm.Event
			for _, s := range p.list {
				if !s.scope.active {
					continue
				}
				if s.out.Generation() == s.scope.gen {
					q, ask := s.out.Tick(now)
					es = s.asks(es, xfrm.Outbound, q, ask)
				}
				if s.in.Generation() == s.scope.gen {
					q, ask := s.in.Tick(now)
					es = s.asks(es, xfrm.Inbound, q, ask)
				}
			}
			p.event(es)
			p.ticks()
		})
	})
}

func (s *farmSA) settled() bool {
	return !s.scope.active || (s.out.Generation() != s.scope.gen || s.out.Settled()) && (s.in.Generation() != s.scope.gen || s.in.Settled())
}

// addrs are the packet's addresses.
func (pkt *farmPacket) addrs() (src, dst netip.Addr) {
	site, server := siteHost(pkt.client.index, 0), serverHost(0)
	if pkt.toSite {
		return server, site
	}
	return site, server
}
