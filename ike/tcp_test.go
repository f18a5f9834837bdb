package ike

import (
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
)

// stream puts the ports of the connection that stands into a datagram; false: it belongs
// to one that is gone.
func (w *world) stream(d *Datagram) bool {
	if d.Local.Port() == 0 {
		d.Local = netip.AddrPortFrom(d.Local.Addr(), w.streamPort)
		return true
	}
	if d.Remote.Port() != w.streamPort {
		return false
	}
	d.Remote = netip.AddrPortFrom(d.Remote.Addr(), 0)
	return true
}

func inTCP(transport string) func(a, b *config.Config) {
	return func(a, b *config.Config) {
		for _, c := range []*config.Config{a, b} {
			c.Phase1[0].Transport, c.Phase1[0].FallbackTCP, c.TCPPort = transport, 15*time.Second, 4500
			c.Phase1[0].Mobike, c.Phase1[0].Fragmentation = true, true
		}
	}
}

// tcpPair is up in TCP.
func tcpPair(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side) {
	t.Helper()
	w, a, b := pair(t, change)
	w.streamPort = 40001
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 1)
	return w, a, b
}

// wantPath checks where an only Child SA of a side is.
func (s *side) wantPath(local, remote string) {
	s.t.Helper()
	for _, x := range s.installed {
		if x.SA.Local.String() != local || x.SA.Remote.String() != remote || !x.SA.TCP || !x.SA.UDPEncap {
			s.t.Errorf("%s: %s to %s, TCP %v; want %s to %s", s.name, x.SA.Local, x.SA.Remote, x.SA.TCP, local, remote)
		}
	}
	if sa := s.established()[0]; !sa.tcp || sa.local.String() != local || sa.remote.String() != remote || sa.mobike() {
		s.t.Errorf("%s: IKE SA %s to %s", s.name, sa.local, sa.remote)
	}
}

func TestTCP(t *testing.T) {
	w, a, b := tcpPair(t, inTCP("tcp"))
	for _, d := range w.seen {
		if !d.TCP || !d.NonESP {
			t.Errorf("a message in UDP: %+v", d)
		}
	}
	a.wantPath(addrA+":0", addrB+":4500")
	b.wantPath(addrB+":4500", addrA+":40001")
	// Rekeys by either side stay in the connection, and whoever opened it still does.
	for _, s := range []*side{a, b} {
		s.rekeyChild()
		w.settle()
		s.rekeyIKE()
		w.settle()
		w.run(time.Second)
		agree(t, a, b, 1, 1)
		a.wantPath(addrA+":0", addrB+":4500")
		b.wantPath(addrB+":4500", addrA+":40001")
	}
	w.run(time.Minute)
	if a.keepalive+b.keepalive > 0 {
		t.Error("NAT keepalives in TCP")
	}
}

// TestTCPOnlyWhereConfigured: each transport is answered by a phase 1 that has it.
func TestTCPOnlyWhereConfigured(t *testing.T) {
	for _, c := range []struct {
		ours, theirs string
		tcp, up      bool
	}{{"tcp", "udp", true, false}, {"udp", "tcp", false, false}, {"tcp", "auto", true, true}, {"udp", "auto", false, true}, {"auto", "udp", false, true}} {
		w, a, b := pair(t, func(x, y *config.Config) {
			inTCP(c.ours)(x, x)
			inTCP(c.theirs)(y, y)
		})
		w.streamPort = 40001
		b.resume()
		a.resume()
		w.settle()
		if got := len(a.established()) == 1; got != c.up || c.up && a.established()[0].tcp != c.tcp {
			t.Errorf("%s to %s: up %v", c.ours, c.theirs, got)
		}
	}
}

// TestFallbackToTCP: nothing answers in UDP for fallback-tcp-threshold.
func TestFallbackToTCP(t *testing.T) {
	w, a, b := pair(t, inTCP("auto"))
	w.streamPort = 40001
	w.drop = func(d Datagram) bool { return !d.TCP }
	b.resume()
	a.resume()
	begin := w.now
	w.run(14 * time.Second)
	for _, d := range w.seen {
		if d.TCP {
			t.Fatalf("in TCP after %v", w.now.Sub(begin))
		}
	}
	w.run(2 * time.Second)
	agree(t, a, b, 1, 1)
	a.wantPath(addrA+":0", addrB+":4500")
}

// lose ends the connection: the next one has another port.
func (w *world) lose(s *side) {
	w.wire = nil
	w.streamPort++
	for _, spi := range s.order {
		s.e.HandleStreamLost(w.now, spi)
		s.drain()
	}
}

// TestTCPConnectionLost: the initiator opens another, and the same SAs go on in it.
func TestTCPConnectionLost(t *testing.T) {
	w, a, b := tcpPair(t, inTCP("tcp"))
	spis := b.established()[0].spis
	for range 3 {
		w.lose(a)
		w.settle()
		a.wantPath(addrA+":0", addrB+":4500")
		b.wantPath(addrB+":4500", netip.AddrPortFrom(netip.MustParseAddr(addrA), w.streamPort).String())
	}
	if n := w.seenOf(message.IKESAInit); n != 1 || b.established()[0].spis != spis {
		t.Errorf("%d IKE_SA_INIT requests", n)
	}
	// It is lost with a request under way, which the peer has answered already: that comes
	// again, changes nothing at the peer but is answered, and the next request does.
	a.rekeyChild()
	w.deliver(w.wire[0])
	w.lose(a)
	w.settle()
	w.run(time.Second)
	agree(t, a, b, 1, 1)
	b.wantPath(addrB+":4500", netip.AddrPortFrom(netip.MustParseAddr(addrA), w.streamPort).String())
	// The other side's request waits meanwhile, and arrives when the connection is there.
	w.streamPort++
	b.rekeyChild()
	w.settle()
	w.lose(a)
	w.run(5 * time.Second)
	agree(t, a, b, 1, 1)
	// An ESP packet in another connection says the same.
	w.streamPort = 50000
	from := netip.AddrPortFrom(netip.MustParseAddr(addrA), 50000)
	b.e.HandleStreamMoved(w.now, b.order[len(b.order)-1], from)
	b.drain()
	b.wantPath(addrB+":4500", from.String())
}

// TestTCPReplay: what was captured and comes again in somebody else's connection takes
// nothing there but its own answer; neither does what nobody authenticated.
func TestTCPReplay(t *testing.T) {
	w, a, b := tcpPair(t, inTCP("tcp"))
	a.rekeyChild()
	var captured []Datagram
	for len(w.wire) > 0 {
		if d := w.wire[0]; d.Local.Port() == 0 {
			captured = append(captured, d)
		}
		d := w.wire[0]
		w.wire = w.wire[1:]
		w.deliver(d)
	}
	b.quietSend = true
	for _, d := range append(captured, w.seen...) {
		forged := d
		forged.Data = append([]byte(nil), d.Data...)
		forged.Data[len(forged.Data)-1] ^= 1
		for _, x := range []Datagram{d, forged} {
			if x.Local.Port() != 0 {
				continue
			}
			x = flip(x)
			x.Remote = netip.MustParseAddrPort("203.0.113.66:6666")
			b.receive(x)
		}
	}
	b.wantPath(addrB+":4500", addrA+":40001")
	// In UDP they are not of this IKE SA's transport.
	d := flip(captured[len(captured)-1])
	d.TCP, d.Remote = false, netip.MustParseAddrPort(addrA+":4500")
	b.receive(d)
	b.wantPath(addrB+":4500", addrA+":40001")
}

// TestTCPTakeover: the connection dies with the owner, whichever side has opened it.
func TestTCPTakeover(t *testing.T) {
	for _, opener := range []bool{false, true} {
		w, a, b := pair(t, inTCP("tcp"))
		w.streamPort = 40001
		died, other := b, a
		if opener {
			died, other = a, b
		}
		s := w.standby(died, 77)
		b.resume()
		a.resume()
		w.settle()
		agree(t, a, b, 1, 1)
		died.dead = true
		w.wire = nil
		w.streamPort++
		s.e.OwnerDied()
		s.resume()
		if !opener {
			w.lose(other)
		}
		w.settle()
		w.run(2 * time.Second)
		agree(t, other, s, 1, 1)
		if !opener {
			s.wantPath(addrB+":4500", netip.AddrPortFrom(netip.MustParseAddr(addrA), w.streamPort).String())
		} else {
			b.wantPath(addrB+":4500", netip.AddrPortFrom(netip.MustParseAddr(addrA), w.streamPort).String())
		}
		if w.seenOf(message.IKESAInit) != 1 {
			t.Error("negotiated anew")
		}
		other.rekeyChild()
		w.settle()
		s.rekeyIKE()
		w.run(time.Second)
		agree(t, other, s, 1, 1)
	}
}
