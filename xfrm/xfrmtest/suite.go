package xfrmtest

import (
	"fmt"
	"net/netip"
	"testing"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

const (
	scope = xfrm.Scope(3)
	spiA  = ipsec.ESPSPI(0xa0000001) // inbound at A
	spiB  = ipsec.ESPSPI(0xb0000001) // inbound at B
)

var suites = map[string]ipsec.Suite{
	"GCM":    {Encr: ipsec.ENCRAESGCM16, KeyBits: 128, ESN: true},
	"ChaCha": {Encr: ipsec.ENCRChaCha20Poly1305},
	"CBC":    {Encr: ipsec.ENCRAESCBC, KeyBits: 256, Integ: ipsec.INTEGHMACSHA256_128, ESN: true},
}

// Run tests a data plane against its contract.
func Run(t *testing.T, make Factory) {
	RequireRoot(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, Factory)
	}{
		{"Matrix", testMatrix},
		{"SilentStandby", testSilentStandby},
		{"Ceiling", testCeiling},
		{"CeilingPaces", testCeilingPaces},
		{"Fence", testFence},
		{"RemoveReleases", testRemoveReleases},
		{"FenceWithdrawn", testFenceWithdrawn},
		{"Takeover", testTakeover},
		{"Handover", testHandover},
		{"StaleHandover", testStaleHandover},
		{"Skip", testSkip},
		{"Replay", testReplay},
		{"Selectors", testSelectors},
		{"SwitchOutbound", testSwitchOutbound},
		{"Remove", testRemove},
		{"Linger", testLinger},
		{"LingerEnds", testLingerEnds},
		{"Acquire", testAcquire},
		{"PeerMoved", testPeerMoved},
		{"IKE", testIKE},
		{"Limits", testLimits},
		{"InboundLimits", testInboundLimits},
		{"DontFragment", testDontFragment},
		{"MSS", testMSS},
		{"ECN", testECN},
		{"SharedTunnel", testSharedTunnel},
		{"StrayESP", testStrayESP},
		{"StrayInner", testStrayInner},
		{"StrayWaits", testStrayWaits},
		{"Retire", testRetire},
		{"Detach", testDetach},
		{"DetachWaits", testDetachWaits},
		{"NoStray", testNoStray},
		{"ForwardedTraffic", testForwardedTraffic},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, make) })
	}
}

// option changes an SA before it is installed at a site.
type option func(s *site, x *xfrm.SA)

func overUDP(_ *site, x *xfrm.SA) { x.UDPEncap = true }
func overIPv6(s *site, x *xfrm.SA) {
	x.Local, x.Remote = netip.AddrPortFrom(s.wan6, x.Local.Port()), netip.AddrPortFrom(farOf(s.wan6), x.Remote.Port())
}
func withSuite(su ipsec.Suite) option { return func(_ *site, x *xfrm.SA) { x.Suite = su } }
func bounds(ceiling, fence uint64) option {
	return func(_ *site, x *xfrm.SA) { x.Ceiling, x.Fence = ceiling, fence }
}
func only(name string, o option) option {
	return func(s *site, x *xfrm.SA) {
		if s.name == name {
			o(s, x)
		}
	}
}

// generation makes another pair of SPIs and keys.
func generation(n uint32) option {
	return func(s *site, x *xfrm.SA) {
		x.SPIIn += ipsec.ESPSPI(n)
		x.SPIOut += ipsec.ESPSPI(n)
	}
}

func farOf(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] ^= 3 // 1 and 2 face each other
	far, _ := netip.AddrFromSlice(b)
	return far
}

// key derives bytes that both sites agree on.
func key(label byte, spi ipsec.ESPSPI, n int) ipsec.Key {
	b := make([]byte, n)
	for i := range b {
		b[i] = label ^ byte(spi>>(8*(i%4))) ^ byte(31*i)
	}
	return ipsec.NewKey(b)
}

// sa describes the pair as one site sees it.
func (p *pair) sa(s *site, opts ...option) xfrm.SA {
	far := p.other(s)
	x := xfrm.SA{Scope: scope, Ceiling: xfrm.Unbounded, Fence: xfrm.Unbounded}
	x.Tunnel, x.Phase1, x.Phase2 = "vpn1", "vpn1", "vpn1"
	x.SPIIn, x.SPIOut = spiA, spiB
	if s == p.b {
		x.SPIIn, x.SPIOut = spiB, spiA
	}
	x.Suite = suites["GCM"]
	x.Local, x.Remote = netip.AddrPortFrom(s.wan4, 4500), netip.AddrPortFrom(far.wan4, 4500)
	x.ReplayWindow = 2048
	for _, e := range []struct {
		a  *site
		ts *[]ipsec.TrafficSelector
	}{{s, &x.TSLocal}, {far, &x.TSRemote}} {
		*e.ts = []ipsec.TrafficSelector{
			ipsec.SelectorFromPrefix(netip.PrefixFrom(e.a.lan4, 24)), ipsec.SelectorFromPrefix(netip.PrefixFrom(e.a.lan6, 64)),
		}
	}
	for _, o := range opts {
		o(s, &x)
	}
	su := x.Suite
	x.EncrIn, x.SaltIn, x.IntegIn = key(1, x.SPIIn, su.EncrKeyLen()), key(2, x.SPIIn, su.SaltLen()), key(3, x.SPIIn, su.IntegKeyLen())
	x.EncrOut, x.SaltOut, x.IntegOut = key(1, x.SPIOut, su.EncrKeyLen()), key(2, x.SPIOut, su.SaltLen()), key(3, x.SPIOut, su.IntegKeyLen())
	if su.Encr.AEAD() {
		s.senders++
		x.IV = ipsec.NewIVCounter(s.senders)
	}
	return x
}

// install adds the pair at a site and puts it to use.
func (p *pair) install(s *site, opts ...option) xfrm.SA {
	p.t.Helper()
	x := p.sa(s, opts...)
	s.must("Install", func() error { return s.plane.Install(x) })
	s.do(func() { s.plane.SetOutbound(x.SPIIn, true) })
	return x
}

func (s *site) activate()   { s.do(func() { s.plane.Activate(scope) }) }
func (s *site) deactivate() { s.do(func() { s.plane.Deactivate(scope) }) }
func (s *site) grant(bs ...xfrm.Bound) {
	s.do(func() { s.plane.SetBounds(bs) })
}

func (s *site) counters(spi ipsec.ESPSPI) (c xfrm.Counters) {
	s.t.Helper()
	ok := false
	s.do(func() { c, ok = s.plane.Counters(spi) })
	if !ok {
		s.t.Fatalf("site %s: no counters of %v", s.name, spi)
	}
	return c
}

func (s *site) tunnelCounters() (c xfrm.TunnelCounters) {
	s.do(func() { c = s.plane.TunnelCounters("vpn1") })
	return c
}

// standard is a pair with active scopes at both ends, wide bounds and hosts.
func standard(t *testing.T, make Factory, tn xfrm.Tunnel, opts ...option) (p *pair, ha, hb *host) {
	p = newPair(t, make)
	tn.Scope = scope
	p.tunnel(tn)
	p.a.activate()
	p.b.activate()
	p.install(p.a, opts...)
	p.install(p.b, opts...)
	return p, p.a.host(false, 7000), p.b.host(false, 7000)
}

func testMatrix(t *testing.T, make Factory) {
	for name, su := range suites {
		for _, outer6 := range []bool{false, true} {
			for _, udp := range []bool{false, true} {
				opts := []option{withSuite(su)}
				outer, encap := "IPv4", "ESP"
				if outer6 {
					opts, outer = append(opts, overIPv6), "IPv6"
				}
				if udp {
					opts, encap = append(opts, overUDP), "UDP"
				}
				t.Run(fmt.Sprintf("%s over %s %s", name, outer, encap), func(t *testing.T) {
					p, a4, b4 := standard(t, make, xfrm.Tunnel{}, opts...)
					tp := p.b.tap()
					a6, b6 := p.a.host(true, 7001), p.b.host(true, 7001)
					for i, c := range []struct {
						from, to *host
						size     int
					}{
						{a4, b4, 100}, {b4, a4, 100}, {a6, b6, 100}, {b6, a6, 100},
						{a4, b4, 1472}, {b4, a4, 1472}, {a6, b6, 1452}, {b6, a6, 1452}, // 1500 bytes with DF
					} {
						c.from.send(c.to, uint32(i), c.size)
						c.to.want(uint32(i))
					}
					n := 0
					for _, f := range tp.frames() {
						if n++; f.udp != udp {
							t.Errorf("SPI %x in UDP: %v", f.spi, f.udp)
						}
					}
					if n < 4 {
						t.Errorf("%d ESP packets on the wire", n)
					}
					for _, s := range []*site{p.a, p.b} {
						spi := spiA
						if s == p.b {
							spi = spiB
						}
						if c := s.counters(spi); c.InPackets != 4 || c.OutPackets != 4 || c.OutSeq != 4 || c.InSeq != 4 ||
							c.InBytes != 128+148+2*1500 || c.OutBytes != 128+148+2*1500 || c.LastIn.IsZero() || c.LastOut.IsZero() {
							t.Errorf("site %s: %+v", s.name, c)
						}
					}
				})
			}
		}
	}
}

func testSilentStandby(t *testing.T, make Factory) {
	p := newPair(t, make)
	p.tunnel(xfrm.Tunnel{Scope: scope})
	p.a.activate()
	p.install(p.a)
	p.install(p.b)
	ha, hb := p.a.host(false, 7000), p.b.host(false, 7000)
	tp := p.b.tap()

	ha.send(hb, 1, 100)
	eventually(t, "inbound packet ignored", func() bool { return p.b.tunnelCounters().Inactive == 1 })
	hb.wantNothing()
	hb.send(ha, 2, 100)
	eventually(t, "outbound packet ignored", func() bool { return p.b.tunnelCounters().Inactive == 2 })
	for _, f := range tp.frames() {
		if f.spi == uint32(spiA) {
			t.Fatalf("the standby sent %d", f.seq)
		}
	}
	if c := p.b.counters(spiB); c.InPackets+c.OutPackets != 0 {
		t.Fatalf("counters %+v", c)
	}
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if len(p.b.events) != 0 {
		t.Fatalf("events %+v", p.b.events)
	}
}
