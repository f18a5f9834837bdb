package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// plane is a process's data plane: the production sender and receiver of each SA
// over a model of sockets and interfaces.
type plane struct {
	d       *daemon
	active  bool
	retired bool // it takes no more packets
	gen     uint64
	order   uint64
	sas     map[ipsec.ESPSPI]*sa
	list    []*sa // in the order of installation
	tick    bool
	inbox   []func() // what sockets and interfaces hold while the process stands still
	asked   map[string]time.Duration
	ivs     *esp.IVSource

	noSA, silent, unknown int
}

// sa is a Child SA.
type sa struct {
	xfrm.SA
	p       *plane
	keyIn   uint64 // name of the inbound key, which is wiped when the SA ends
	keyOut  uint64
	order   uint64 // of SetOutbound; 0: not used
	out     esp.Sender
	in      esp.Receiver
	unsent  []*packet // wait for the ceiling
	undone  []heldPacket
	seal    *esp.Outbound
	open    *esp.Inbound
	seen    bool
	moved   time.Duration
	lastIn  time.Time
	lastOut time.Time
	bytes   uint64
}

type heldPacket struct {
	seq uint64
	pkt *packet
}

// packet is an inner packet.
type packet struct {
	serial uint64
	flow   *flow
	toSite bool // from the server to the client's site
	at     time.Duration
}

// sealed is an ESP packet on the outer network.
type sealed struct {
	spi    ipsec.ESPSPI
	seq    uint64
	data   []byte // real cryptography
	inner  *packet
	key    uint64 // names the key
	from   netip.AddrPort
	to     netip.AddrPort
	forged bool
}

const (
	waitingMax  = 256 // packets of one direction that wait for a bound
	socketMax   = 200 // packets that wait for a process that stands still
	planeTick   = 10 * time.Millisecond
	initialGen  = 1
	innerLength = 60 // bytes of an inner packet, for the network's MTU and lifetimes in bytes
)

func newPlane(d *daemon, seed uint64) *plane {
	return &plane{d: d, gen: initialGen, sas: map[ipsec.ESPSPI]*sa{}, asked: map[string]time.Duration{},
		ivs: esp.NewIVSource(rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), seed))))}
}

// run is what goroutines of the data plane do; it waits while the process stands still.
func (p *plane) run(f func()) {
	switch {
	case p.d.dead:
	case p.d.stopped || p.d.h.frozen:
		if len(p.inbox) < socketMax {
			p.inbox = append(p.inbox, f)
		}
	default:
		f()
	}
}

func (p *plane) goOn() {
	if p.d.stopped || p.d.h.frozen || p.d.dead {
		return
	}
	in := p.inbox
	p.inbox = nil
	for _, f := range in {
		p.run(f)
	}
	p.ticks()
}

func (p *plane) install(x xfrm.SA) {
	if p.sas[x.SPIIn] != nil {
		p.d.h.w.violate(RuleEffects, "%s installs SPI %s twice", p.d.h.name, x.SPIIn)
		return
	}
	last := esp.MaxSequence(x.Suite.ESN)
	gen := p.gen
	if x.Known {
		gen--
	}
	s := &sa{SA: x, p: p, keyIn: keyName(x.EncrIn), keyOut: keyName(x.EncrOut), out: esp.NewSender(gen, x.Ceiling, last), in: esp.NewReceiver(gen, x.Fence, x.ReplayWindow, last)}
	p.sas[x.SPIIn] = s
	p.list = append(p.list, s)
	p.d.h.w.rule.installed(p.d, s)
}

func (p *plane) setOutbound(spi ipsec.ESPSPI, use bool) {
	if s := p.sas[spi]; s != nil {
		s.order = 0
		if use {
			p.order++
			s.order = p.order
		}
	}
}

func (p *plane) setPeer(e node.SetPeer) {
	if s := p.sas[e.SPIIn]; s != nil {
		s.Local, s.Remote, s.UDPEncap = e.Local, e.Remote, e.UDPEncap
	}
}

func (p *plane) remove(spi ipsec.ESPSPI) {
	s := p.sas[spi]
	if s == nil {
		return
	}
	delete(p.sas, spi)
	p.list = slices.DeleteFunc(p.list, func(x *sa) bool { return x == s })
	if !p.active {
		return
	}
	// Nobody can accept a replay of what is delivered now; what was to be sent goes
	// through the next SA.
	if s.in.Generation() == p.gen {
		for _, q := range s.undone {
			p.deliver(s, q.seq, q.pkt)
		}
	}
	if s.out.Generation() == p.gen {
		for _, pkt := range s.unsent {
			p.send(pkt)
		}
	}
}

func (p *plane) setBounds(bs []xfrm.Bound) {
	now := p.d.h.local()
	var es []xfrm.Event
	for _, b := range bs {
		s := p.sas[b.SPIIn]
		if s == nil {
			continue
		}
		switch {
		case !p.active && b.Dir == xfrm.Outbound:
			s.out.Record(b.N)
		case !p.active:
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
	p.d.events(es)
	p.ticks()
}

func (s *sa) asks(es []xfrm.Event, dir xfrm.Direction, n uint64, ask bool) []xfrm.Event {
	if ask {
		es = append(es, xfrm.BoundWanted{Bound: xfrm.Bound{SPIIn: s.SPIIn, Dir: dir, N: n}})
	}
	return es
}

func (s *sa) activateOut() {
	if s.out.Activate(s.p.gen) {
		s.unsent = nil
	}
}

func (s *sa) activateIn() {
	if s.in.Activate(s.p.gen) {
		s.undone, s.seen = nil, false
	}
}

func (p *plane) activate() {
	p.retired = false
	if !p.active {
		p.active = true
		p.gen++
	}
}

func (p *plane) retire() { p.retired = p.active }

func (p *plane) deactivate() { p.active, p.retired = false, false }

func (p *plane) windows() (ws []xfrm.Window) {
	for _, s := range p.list {
		x := xfrm.Window{SPIIn: s.SPIIn}
		s.activateOut()
		x.OutSeq = s.out.Seq()
		s.activateIn()
		for _, h := range s.undone {
			s.in.Forget(h.seq)
		}
		s.undone = nil
		x.InSeq, x.InAccepted = s.in.Export()
		ws = append(ws, x)
	}
	return ws
}

func (p *plane) setWindows(ws []xfrm.Window) {
	for _, x := range ws {
		if s := p.sas[x.SPIIn]; s != nil {
			s.out.Import(x.OutSeq)
			s.in.Import(x.InSeq, x.InAccepted)
		}
	}
}

func (p *plane) traffic(spi ipsec.ESPSPI) (in, out time.Time) {
	if s := p.sas[spi]; s != nil {
		return s.lastIn, s.lastOut
	}
	return
}

// lookup finds the newest SA in use whose selectors hold the packet.
func (p *plane) lookup(pkt *packet) (found *sa) {
	src, dst := pkt.addrs()
	for _, s := range p.list {
		if s.order > 0 && (found == nil || s.order > found.order) && covers(s.TSLocal, src) && covers(s.TSRemote, dst) {
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

// send takes an inner packet from the interface.
func (p *plane) send(pkt *packet) {
	w := p.d.h.w
	if !p.active || p.retired {
		p.silent++
		return
	}
	s := p.lookup(pkt)
	if s == nil {
		p.noSA++
		tunnel := "gw"
		if p.d.h.id != 0 {
			tunnel = tunnelName(pkt.flow.client)
		}
		if at, ok := p.asked[tunnel]; !ok || w.now-at >= time.Second {
			p.asked[tunnel] = w.now
			src, dst := pkt.addrs()
			p.d.events([]xfrm.Event{xfrm.Acquire{Tunnel: tunnel, Protocol: 17, Src: netip.AddrPortFrom(src, 1000), Dst: netip.AddrPortFrom(dst, 1000)}})
		}
		return
	}
	s.activateOut()
	now := p.d.h.local()
	if len(s.unsent) > 0 {
		s.out.Count(now)
	} else {
		seq, pass, q, ask := s.out.Offer(now)
		p.d.events(s.asks(nil, xfrm.Outbound, q, ask))
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
func (p *plane) seal(s *sa, seq uint64, pkt *packet) {
	h, w := p.d.h, p.d.h.w
	now := h.local()
	x := &sealed{spi: s.SPIOut, seq: seq, inner: pkt, key: s.keyOut, from: s.Local, to: s.Remote}
	var iv [8]byte
	if w.s.Real {
		if s.seal == nil {
			var err error
			if s.seal, err = esp.NewOutbound(&s.ChildSA, s.IV, p.ivs); err != nil {
				w.violate(RuleEffects, "%s cannot seal with SPI %s: %v", h.name, s.SPIOut, err)
				return
			}
		}
		const room = 64
		buf := make([]byte, room+innerLength+esp.TrailerRoom)
		pkt.write(buf[room:])
		data, err := s.seal.Seal(buf, room, innerLength, seq, 4)
		if err != nil {
			w.violate(RuleEffects, "%s: sealing with SPI %s: %v", h.name, s.SPIOut, err)
			return
		}
		x.data = data
		copy(iv[:], data[8:])
	} else {
		if s.Suite.Encr.AEAD() {
			if s.IV == nil {
				w.violate(RuleEffects, "%s: SA %s has no IV counter", h.name, s.SPIIn)
				return
			}
			if err := s.IV.Next(iv[:]); err != nil {
				w.violate(RuleEffects, "%s: SA %s: %v", h.name, s.SPIIn, err)
				return
			}
		}
	}
	s.out.Sent()
	s.lastOut = now
	s.bytes += innerLength
	w.ledger.sealed(w, p.d, s, x, iv)
	w.net.sendESP(h, s, x)
}

// receive takes an ESP packet from the socket.
func (p *plane) receive(x *sealed, from netip.AddrPort) {
	h, w := p.d.h, p.d.h.w
	s := p.sas[x.spi]
	if s == nil {
		p.unknown++
		return
	}
	if !p.active || p.retired {
		p.silent++
		return
	}
	s.activateIn()
	now := h.local()
	seq, ok := s.opens(w, x)
	if !ok {
		w.ledger.refused(w, p.d, s, x)
		return
	}
	if x.forged {
		w.violate(RuleForgery, "%s accepted a forged packet on SPI %s", h.name, x.spi)
	}
	s.lastIn = now
	h.life.hearsFrom(x.inner.flow.client)
	var es []xfrm.Event
	if !s.seen {
		s.seen = true
		es = append(es, xfrm.FirstInbound{SPIIn: s.SPIIn})
	}
	if (from.Addr() != s.Remote.Addr() || s.UDPEncap && from.Port() != s.Remote.Port()) && (s.moved == 0 || w.now-s.moved >= time.Second) {
		s.moved = w.now
		es = append(es, xfrm.PeerMoved{SPIIn: s.SPIIn, From: from})
	}
	src, dst := x.inner.addrs()
	if covers(s.TSRemote, src) && covers(s.TSLocal, dst) {
		pass, q, ask := s.in.Offer(now, seq)
		es = s.asks(es, xfrm.Inbound, q, ask)
		switch {
		case pass:
			p.deliver(s, seq, x.inner)
		case len(s.undone) < waitingMax:
			at := len(s.undone)
			for at > 0 && s.undone[at-1].seq > seq {
				at--
			}
			s.undone = slices.Insert(s.undone, at, heldPacket{seq, x.inner})
		}
	}
	p.d.events(es)
	p.ticks()
}

// opens checks and opens a packet and marks it in the window.
func (s *sa) opens(w *world, x *sealed) (seq uint64, ok bool) {
	if x.data != nil {
		if s.open == nil {
			var err error
			if s.open, err = esp.NewInbound(&s.ChildSA); err != nil {
				w.violate(RuleEffects, "cannot open SPI %s: %v", s.SPIIn, err)
				return 0, false
			}
		}
		b := slices.Clone(x.data)
		payload, _, seq, err := s.open.Open(s.in.Window(), b)
		if err == nil && !x.inner.is(payload) {
			w.violate(RuleForgery, "SPI %s opened to another packet than was sealed", s.SPIIn)
		}
		return seq, err == nil
	}
	if x.forged || x.key != s.keyIn || !s.in.Window().Check(x.seq) {
		return 0, false
	}
	s.in.Window().Accept(x.seq)
	return x.seq, true
}

func (p *plane) deliver(s *sa, seq uint64, pkt *packet) {
	p.d.h.w.ledger.delivered(p.d.h.w, p.d, s, seq, pkt)
}

// ticks looks after leases that time may end, like the production ticker.
func (p *plane) ticks() {
	if p.tick || !p.active {
		return
	}
	settled := true
	for _, s := range p.list {
		settled = settled && s.settled()
	}
	if settled {
		return
	}
	p.tick = true
	p.d.h.w.after(planeTick, func() {
		p.tick = false
		p.run(func() {
			if !p.active {
				return
			}
			now := p.d.h.local()
			var es []xfrm.Event
			for _, s := range p.list {
				if s.out.Generation() == p.gen {
					q, ask := s.out.Tick(now)
					es = s.asks(es, xfrm.Outbound, q, ask)
				}
				if s.in.Generation() == p.gen {
					q, ask := s.in.Tick(now)
					es = s.asks(es, xfrm.Inbound, q, ask)
				}
			}
			p.d.events(es)
			p.ticks()
		})
	})
}

func (s *sa) settled() bool {
	return (s.out.Generation() != s.p.gen || s.out.Settled()) && (s.in.Generation() != s.p.gen || s.in.Settled())
}

// keyName tells keys apart without giving them away.
func keyName(k ipsec.Key) uint64 { return hash(string(k.Bytes())) }

// addrs are the packet's addresses.
func (pkt *packet) addrs() (src, dst netip.Addr) {
	site, server := siteHost(pkt.flow.client, pkt.flow.network), serverHost(pkt.flow.network)
	if pkt.toSite {
		return server, site
	}
	return site, server
}

// marker is in every inner packet: what must never be seen outside.
var marker = []byte("inner packet of the simulation, never to be seen outside")

func (pkt *packet) write(b []byte) {
	copy(b[8:], marker)
	binary.BigEndian.PutUint64(b, pkt.serial)
}

func (pkt *packet) is(payload []byte) bool {
	return len(payload) == innerLength && binary.BigEndian.Uint64(payload) == pkt.serial
}
