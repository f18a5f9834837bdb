package sim

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const (
	waitingMax = 256 // packets of one direction that wait for a bound
	socketMax  = 200 // packets that wait for a process that stands still
	planeTick  = 10 * time.Millisecond
	initialGen = 1
)

// inner is a packet that Child SAs carry.
type inner interface {
	addrs() (src, dst netip.Addr)
}

// planeEnds is what lanes need from the plane that they are part of.
type planeEnds[P inner] interface {
	again(pkt P) // takes a packet that waited at an SA which has ended
	seal(s *lane[P], seq uint64, pkt P)
	deliver(s *lane[P], seq uint64, pkt P)
}

// lanes are the Child SAs of a process's data plane: the production sender and receiver
// of each over a model of sockets and interfaces, each of a scope that is active or not.
type lanes[P inner] struct {
	scene   *scene
	ends    planeEnds[P]
	who     string
	process cluster.ProcessID
	awake   func() bool
	clock   func() time.Time
	event   func([]xfrm.Event)

	scopes map[xfrm.Scope]*planeScope
	order  uint64
	sas    map[ipsec.ESPSPI]*lane[P]
	list   []*lane[P]                // in the order of installation
	late   map[ipsec.ESPSPI]*lane[P] // have ended, and take what is under way
	gone   map[ipsec.ESPSPI]bool
	tick   bool
	inbox  []func() // what sockets and interfaces hold while the process stands still
}

// planeScope is what is activated as one.
type planeScope struct {
	id      xfrm.Scope
	active  bool
	retired bool // it takes no more packets
	gen     uint64
}

// lane is a Child SA.
type lane[P inner] struct {
	xfrm.SA
	scope           *planeScope
	keyIn, keyOut   uint64 // names of the keys, which are wiped when the SA ends
	order           uint64 // of SetOutbound; 0: not used
	out             esp.Sender
	in              esp.Receiver
	unsent          []P // wait for the ceiling
	undone          []held[P]
	sealer          *esp.Outbound // real cryptography, of runs that have it
	opener          *esp.Inbound
	skipped         uint64        // inbound
	skippedAt       time.Duration // when that was last raised
	seen            bool
	moved           time.Duration
	lastIn, lastOut time.Time
}

// held is a packet that waits for the fence.
type held[P inner] struct {
	seq uint64
	pkt P
}

func (p *lanes[P]) init(ends planeEnds[P]) {
	p.ends = ends
	p.scopes, p.sas, p.gone = map[xfrm.Scope]*planeScope{}, map[ipsec.ESPSPI]*lane[P]{}, map[ipsec.ESPSPI]bool{}
	p.late = map[ipsec.ESPSPI]*lane[P]{}
}

// run is what goroutines of the data plane do; it waits while the process stands still.
func (p *lanes[P]) run(f func()) {
	if p.awake() {
		f()
	} else if len(p.inbox) < socketMax {
		p.inbox = append(p.inbox, f)
	}
}

func (p *lanes[P]) goOn() {
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

func (p *lanes[P]) scope(id xfrm.Scope) *planeScope {
	s := p.scopes[id]
	if s == nil {
		s = &planeScope{id: id, gen: initialGen}
		p.scopes[id] = s
	}
	return s
}

func (p *lanes[P]) active(id xfrm.Scope) bool { return p.scope(id).active }

func (p *lanes[P]) activate(id xfrm.Scope) {
	s := p.scope(id)
	s.retired = false
	if !s.active {
		s.active = true
		s.gen++
	}
}

func (p *lanes[P]) retire(id xfrm.Scope) {
	s := p.scope(id)
	s.retired = s.active
}

func (p *lanes[P]) deactivate(id xfrm.Scope) {
	s := p.scope(id)
	s.active, s.retired = false, false
	maps.DeleteFunc(p.late, func(_ ipsec.ESPSPI, x *lane[P]) bool { return x.scope == s })
}

// takes says whether new packets of the scope are taken.
func (s *planeScope) takes() bool { return s.active && !s.retired }

// carry does what the node wants done to its SAs; false: e is something else.
func (p *lanes[P]) carry(e node.Effect) bool {
	switch e := e.(type) {
	case node.SetOutbound:
		p.setOutbound(e.SPIIn, e.Use)
	case node.SetPeer:
		p.setPeer(e)
	case node.SetBounds:
		p.setBounds(e.Bounds)
	case node.Skip:
		p.skip(e.Bounds)
	case node.Remove:
		p.remove(e.SPIIn, e.Linger)
	case node.Activate:
		p.activate(e.Scope)
	case node.Retire:
		p.retire(e.Scope)
	case node.Deactivate:
		p.deactivate(e.Scope)
	case node.SetWindows:
		p.setWindows(e.Windows)
	default:
		return false
	}
	return true
}

// install adds an SA, unless it is there: then it returns nil.
func (p *lanes[P]) install(x xfrm.SA) *lane[P] {
	if p.sas[x.SPIIn] != nil {
		p.scene.violate(RuleEffects, "%s installs SPI %s twice", p.who, x.SPIIn)
		return nil
	}
	last := esp.MaxSequence(x.Suite.ESN)
	scope := p.scope(x.Scope)
	gen := scope.gen
	if x.Known {
		gen--
	}
	s := &lane[P]{SA: x, scope: scope, keyIn: keyName(x.EncrIn), keyOut: keyName(x.EncrOut), out: esp.NewSender(gen, x.Ceiling, last), in: esp.NewReceiver(gen, x.Fence, x.ReplayWindow, last)}
	delete(p.late, x.SPIIn)
	p.sas[x.SPIIn] = s
	p.list = append(p.list, s)
	return s
}

func (p *lanes[P]) setOutbound(spi ipsec.ESPSPI, use bool) {
	if s := p.sas[spi]; s != nil {
		s.order = 0
		if use {
			p.order++
			s.order = p.order
		}
	}
}

func (p *lanes[P]) setPeer(e node.SetPeer) {
	if s := p.sas[e.SPIIn]; s != nil {
		s.Local, s.Remote, s.UDPEncap, s.TCP = e.Local, e.Remote, e.UDPEncap, e.TCP
	}
}

// takeOut forgets an SA; nil: there is none.
func (p *lanes[P]) takeOut(spi ipsec.ESPSPI) *lane[P] {
	s := p.sas[spi]
	if s != nil {
		delete(p.sas, spi)
		p.gone[spi] = true
		p.list = slices.DeleteFunc(p.list, func(x *lane[P]) bool { return x == s })
	}
	return s
}

// inbound finds the SA of a packet, also one that lingers.
func (p *lanes[P]) inbound(spi ipsec.ESPSPI) *lane[P] {
	if s := p.sas[spi]; s != nil {
		return s
	}
	return p.late[spi]
}

func (p *lanes[P]) remove(spi ipsec.ESPSPI, linger time.Duration) {
	s := p.takeOut(spi)
	if s == nil || !s.scope.active {
		return
	}
	// Nobody can accept a replay of what is delivered now, or while it lingers; what was to
	// be sent goes through the next SA.
	if linger > 0 && s.scope.takes() {
		p.late[spi] = s
		p.scene.after(linger, func() {
			if p.late[spi] == s {
				delete(p.late, spi)
			}
		})
	}
	if s.in.Generation() == s.scope.gen {
		for _, q := range s.undone {
			p.ends.deliver(s, q.seq, q.pkt)
		}
	}
	s.activateIn()
	s.undone = nil
	s.in.Unbind()
	if s.out.Generation() == s.scope.gen {
		for _, pkt := range s.unsent {
			p.ends.again(pkt)
		}
	}
}

// detach takes SAs out, and returns their exact state.
func (p *lanes[P]) detach(spis []ipsec.ESPSPI) (ws []xfrm.Window, ok bool) {
	for _, spi := range spis {
		s := p.sas[spi]
		if s != nil && s.scope.active && (s.in.Generation() == s.scope.gen && len(s.undone) > 0 || s.out.Generation() == s.scope.gen && len(s.unsent) > 0) {
			return nil, false
		}
	}
	for _, spi := range spis {
		if s := p.takeOut(spi); s != nil {
			ws = append(ws, s.window())
		}
	}
	return ws, true
}

func (p *lanes[P]) setBounds(bs []xfrm.Bound) {
	now := p.clock()
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
				p.ends.seal(s, seq, pkt)
			}
		default:
			s.activateIn()
			s.in.Grant(b.N)
			kept := s.undone[:0]
			for _, h := range s.undone {
				pass, q, ask := s.in.Retry(now, h.seq)
				es = s.asks(es, xfrm.Inbound, q, ask)
				if pass {
					p.ends.deliver(s, h.seq, h.pkt)
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

func (s *lane[P]) asks(es []xfrm.Event, dir xfrm.Direction, n uint64, ask bool) []xfrm.Event {
	if ask {
		es = append(es, xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: s.SPIIn, Dir: dir, N: n}})
	}
	return es
}

func (s *lane[P]) activateOut() {
	if s.out.Activate(s.scope.gen) {
		s.unsent = nil
	}
}

func (s *lane[P]) activateIn() {
	if s.in.Activate(s.scope.gen) {
		s.undone, s.seen = nil, false
	}
}

func (p *lanes[P]) windows(scope xfrm.Scope) (ws []xfrm.Window) {
	for _, s := range p.list {
		if s.scope.id == scope {
			ws = append(ws, s.window())
		}
	}
	return ws
}

// window is the exact state of an SA. What waited for a bound is dropped.
func (s *lane[P]) window() xfrm.Window {
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

func (p *lanes[P]) setWindows(ws []xfrm.Window) {
	for _, x := range ws {
		if s := p.sas[x.SPIIn]; s != nil {
			gen := s.scope.gen
			if !s.scope.active {
				gen++
			}
			s.out.Import(x.OutSeq, gen)
			s.in.Import(x.InSeq, x.InAccepted, gen)
		}
	}
}

func (p *lanes[P]) traffic(spi ipsec.ESPSPI) (in, out time.Time) {
	if s := p.sas[spi]; s != nil {
		return s.lastIn, s.lastOut
	}
	return
}

// lookup finds the newest SA in use whose selectors hold the packet, of an active scope
// if there is one.
func (p *lanes[P]) lookup(pkt P) (found *lane[P]) {
	src, dst := pkt.addrs()
	for _, s := range p.list {
		if s.order > 0 && (found == nil || s.scope.active && !found.scope.active || s.scope.active == found.scope.active && s.order > found.order) &&
			covers(s.TSLocal, src) && covers(s.TSRemote, dst) {
			found = s
		}
	}
	return found
}

func covers(ts []ipsec.TrafficSelector, a netip.Addr) bool {
	for _, t := range ts {
		if t.Contains(a, 17, 1000) {
			return true
		}
	}
	return false
}

// submit seals a packet, now or when the ceiling has been raised.
func (p *lanes[P]) submit(s *lane[P], pkt P) {
	s.activateOut()
	now := p.clock()
	if len(s.unsent) > 0 {
		s.out.Count(now)
	} else {
		seq, pass, q, ask := s.out.Offer(now)
		p.event(s.asks(nil, xfrm.Outbound, q, ask))
		if pass {
			p.ends.seal(s, seq, pkt)
			p.ticks()
			return
		}
	}
	if len(s.unsent) < waitingMax {
		s.unsent = append(s.unsent, pkt)
	}
	p.ticks()
}

// nextIV is the explicit IV of the next packet; of AEAD, where the run does without
// real cryptography.
func (p *lanes[P]) nextIV(s *lane[P]) (iv [8]byte, ok bool) {
	if s.IV == nil {
		p.scene.violate(RuleEffects, "%s: SA %s has no IV counter", p.who, s.SPIIn)
		return iv, false
	}
	if err := s.IV.Next(iv[:]); err != nil {
		p.scene.violate(RuleEffects, "%s: SA %s: %v", p.who, s.SPIIn, err)
		return iv, false
	}
	return iv, true
}

// sent notes that a sealed packet leaves.
func (p *lanes[P]) sent(s *lane[P]) {
	s.out.Sent()
	s.lastOut = p.clock()
}

// accepts checks a packet that is not really encrypted and marks it in the window.
func (s *lane[P]) accepts(key, seq uint64) bool {
	if key != s.keyIn || !s.in.Window().Check(seq) {
		return false
	}
	s.in.Window().Accept(seq)
	return true
}

// opened takes an authentic packet: it is delivered, now or when the fence has been
// raised, if the selectors hold it.
func (p *lanes[P]) opened(s *lane[P], seq uint64, pkt P, from netip.AddrPort) {
	now, w := p.clock(), p.scene
	s.lastIn = now
	var es []xfrm.Event
	if !s.seen {
		s.seen = true
		es = append(es, xfrm.FirstInbound{SPIIn: s.SPIIn})
	}
	if (from.Addr() != s.Remote.Addr() || s.UDPEncap && from.Port() != s.Remote.Port()) && (s.moved == 0 || w.now-s.moved >= time.Second) {
		s.moved = w.now
		es = append(es, xfrm.PeerMoved{SPIIn: s.SPIIn, From: from})
	}
	src, dst := pkt.addrs()
	if covers(s.TSRemote, src) && covers(s.TSLocal, dst) {
		pass, q, ask := s.in.Offer(now, seq)
		es = s.asks(es, xfrm.Inbound, q, ask)
		switch {
		case pass:
			p.ends.deliver(s, seq, pkt)
		case len(s.undone) < waitingMax:
			at := len(s.undone)
			for at > 0 && s.undone[at-1].seq > seq {
				at--
			}
			s.undone = slices.Insert(s.undone, at, held[P]{seq, pkt})
		}
	}
	p.event(es)
	p.ticks()
}

// waits: a packet of this number was opened and waits for the fence.
func (s *lane[P]) waits(seq uint64) bool {
	return slices.ContainsFunc(s.undone, func(h held[P]) bool { return h.seq == seq })
}

// ticks looks after leases that time may end, like the production ticker.
func (p *lanes[P]) ticks() {
	if p.tick || !slices.ContainsFunc(p.list, func(s *lane[P]) bool { return !s.settled() }) {
		return
	}
	p.tick = true
	p.scene.after(planeTick, func() {
		p.tick = false
		p.run(func() {
			now := p.clock()
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

func (s *lane[P]) settled() bool {
	return !s.scope.active || (s.out.Generation() != s.scope.gen || s.out.Settled()) && (s.in.Generation() != s.scope.gen || s.in.Settled())
}

// keyName tells keys apart without giving them away.
func keyName(k ipsec.Key) uint64 { return hash(string(k.Bytes())) }
