package sim

import (
	"encoding/binary"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

// farmPlane is the data plane of a process, a member's or a client's.
type farmPlane struct {
	lanes[*farmPacket]
	w         *farm
	ofCluster bool
	stray     func(stray)
	leads     func(netip.Addr) (xfrm.Scope, bool)
}

type farmSA = lane[*farmPacket]

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

func newFarmPlane(w *farm, who string, process cluster.ProcessID, awake func() bool, event func([]xfrm.Event)) *farmPlane {
	p := &farmPlane{w: w}
	p.lanes = lanes[*farmPacket]{scene: &w.scene, who: who, process: process, awake: awake, clock: w.at, event: event}
	p.lanes.init(p)
	return p
}

func (p *farmPlane) again(pkt *farmPacket) { p.send(pkt, nil) }

// send takes an inner packet from the interface, or from another member.
func (p *farmPlane) send(pkt *farmPacket, trail []cluster.NodeID) {
	s := p.lookup(pkt)
	if s == nil {
		if p.leads == nil || len(trail) >= forwardHops {
			return
		}
		_, dst := pkt.addrs()
		if scope, ok := p.leads(dst); ok {
			p.w.Result.States["inner packet led by its prefix"]++
			p.stray(stray{scope: scope, inner: pkt, trail: trail})
		}
		return
	}
	if !s.scope.takes() {
		if p.stray != nil && len(trail) < forwardHops {
			p.stray(stray{scope: s.scope.id, inner: pkt, trail: trail})
		}
		return
	}
	p.submit(s, pkt)
}

// seal makes an ESP packet and sends it.
func (p *farmPlane) seal(s *farmSA, seq uint64, pkt *farmPacket) {
	iv, ok := p.nextIV(s)
	if !ok {
		return
	}
	p.sent(s)
	x := &farmESP{spi: s.SPIOut, seq: seq, inner: pkt, key: s.keyOut, from: s.Local, to: s.Remote}
	p.w.ledger.sealed(p.w, p, s, x, binary.BigEndian.Uint64(iv[:]))
	p.w.sendESP(p, x)
}

// receive takes an ESP packet from the socket, or from another member.
func (p *farmPlane) receive(x *farmESP, trail []cluster.NodeID) {
	w := p.w
	s := p.inbound(x.spi)
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
	if !s.accepts(x.key, x.seq) {
		w.ledger.refused(w, p, s, x)
		return
	}
	p.opened(s, x.seq, x.inner, x.from)
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

// addrs are the packet's addresses.
func (pkt *farmPacket) addrs() (src, dst netip.Addr) {
	return innerAddrs(pkt.client.index, 0, pkt.toSite)
}
