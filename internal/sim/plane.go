package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// plane is the data plane of a process, a gateway's or a client's.
type plane struct {
	lanes[*packet]
	d     *daemon
	asked map[string]time.Duration
	ivs   *esp.IVSource
}

type sa = lane[*packet]

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
	at     time.Duration // when it was sealed
	apart  bool          // in a split of those who sent it, or just after
}

const (
	onlyScope   = xfrm.Scope(0) // of a pair without virtual clusters, and of a client
	innerLength = 60            // bytes of an inner packet, for the network's MTU and lifetimes in bytes
)

func newPlane(d *daemon, seed uint64) *plane {
	p := &plane{d: d, asked: map[string]time.Duration{},
		ivs: esp.NewIVSource(rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), seed))))}
	h := d.h
	p.lanes = lanes[*packet]{scene: &h.w.scene, who: h.name, process: d.process, clock: h.local, event: d.events,
		awake: func() bool { return !d.dead && !d.stopped && !h.frozen }}
	p.lanes.init(p)
	return p
}

func (p *plane) install(x xfrm.SA) {
	if s := p.lanes.install(x); s != nil {
		p.d.h.realmOf(s.scope.id).rule.installed(p.d, s)
	}
}

func (p *plane) again(pkt *packet) { p.send(pkt) }

// send takes an inner packet from the interface.
func (p *plane) send(pkt *packet) {
	h, w, t := p.d.h, p.d.h.w, pkt.flow.tunnel
	if !p.scope(h.scopeOf(t)).takes() {
		return
	}
	s := p.lookup(pkt)
	if s == nil {
		tunnel := t.name(h)
		if at, ok := p.asked[tunnel]; !ok || w.now-at >= time.Second {
			p.asked[tunnel] = w.now
			src, dst := pkt.addrs()
			p.d.events([]xfrm.Event{xfrm.Acquire{Tunnel: tunnel, Protocol: 17, Src: netip.AddrPortFrom(src, 1000), Dst: netip.AddrPortFrom(dst, 1000)}})
		}
		return
	}
	p.submit(s, pkt)
}

// seal makes an ESP packet and sends it.
func (p *plane) seal(s *sa, seq uint64, pkt *packet) {
	h, w := p.d.h, p.d.h.w
	x := &sealed{spi: s.SPIOut, seq: seq, inner: pkt, key: s.keyOut, from: s.Local, to: s.Remote, at: w.now}
	var iv [8]byte
	if w.s.Real {
		if s.sealer == nil {
			var err error
			if s.sealer, err = esp.NewOutbound(&s.ChildSA, s.IV, p.ivs); err != nil {
				w.violate(RuleEffects, "%s cannot seal with SPI %s: %v", h.name, s.SPIOut, err)
				return
			}
		}
		const room = 64
		buf := make([]byte, room+innerLength+esp.TrailerRoom)
		pkt.write(buf[room:])
		data, err := s.sealer.Seal(buf, room, innerLength, seq, 4)
		if err != nil {
			w.violate(RuleEffects, "%s: sealing with SPI %s: %v", h.name, s.SPIOut, err)
			return
		}
		x.data = data
		copy(iv[:], data[8:])
	} else if s.Suite.Encr.AEAD() {
		var ok bool
		if iv, ok = p.nextIV(s); !ok {
			return
		}
	}
	p.sent(s)
	h.realmOf(s.scope.id).ledger.sealed(w, p.d, s, x, iv)
	w.net.sendESP(h, s, x)
}

// receive takes an ESP packet from the socket.
func (p *plane) receive(x *sealed, from netip.AddrPort) {
	h, w := p.d.h, p.d.h.w
	s := p.inbound(x.spi)
	if s == nil || !s.scope.takes() {
		return
	}
	s.activateIn()
	seq, ok := p.opens(s, x)
	if !ok {
		h.realmOf(s.scope.id).ledger.refused(w, p.d, s, x)
		return
	}
	if x.forged {
		w.violate(RuleForgery, "%s accepted a forged packet on SPI %s", h.name, x.spi)
	}
	h.of(h.realmOf(s.scope.id)).life.hearsFrom(x.inner.flow.tunnel)
	p.opened(s, seq, x.inner, from)
}

// opens checks and opens a packet and marks it in the window.
func (p *plane) opens(s *sa, x *sealed) (seq uint64, ok bool) {
	if x.data == nil {
		return x.seq, !x.forged && s.accepts(x.key, x.seq)
	}
	w := p.d.h.w
	if s.opener == nil {
		var err error
		if s.opener, err = esp.NewInbound(&s.ChildSA); err != nil {
			w.violate(RuleEffects, "cannot open SPI %s: %v", s.SPIIn, err)
			return 0, false
		}
	}
	b := slices.Clone(x.data)
	payload, _, seq, err := s.opener.Open(s.in.Window(), b)
	if err == nil && !x.inner.is(payload) {
		w.violate(RuleForgery, "SPI %s opened to another packet than was sealed", s.SPIIn)
	}
	return seq, err == nil
}

func (p *plane) deliver(s *sa, seq uint64, pkt *packet) {
	p.d.h.realmOf(s.scope.id).ledger.delivered(p.d.h.w, p.d, s, seq, pkt)
}

// addrs are the packet's addresses.
func (pkt *packet) addrs() (src, dst netip.Addr) {
	return innerAddrs(pkt.flow.tunnel.index, pkt.flow.network, pkt.toSite)
}

func innerAddrs(client, network int, toSite bool) (src, dst netip.Addr) {
	site, server := siteHost(client, network), serverHost(network)
	if toSite {
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
