package integration

import (
	"crypto/rand"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/ike"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
)

// fakeGateway is a pure engine under a configuration as a user writes it. The
// shortest lifetime that can be configured is two minutes: too long for the wall
// clock of a test, so these cases run in fake time; the wire is TestAutoNegotiate…'s.
type fakeGateway struct {
	t        *testing.T
	e        *ike.Engine
	addr     netip.Addr
	sas      map[ipsec.ESPSPI]ipsec.ChildSA
	made     int // Child SAs ever installed
	used     map[ipsec.ESPSPI]time.Time
	attempts []time.Time // IKE_SA_INIT requests under a new SPI
	spis     map[ipsec.IKESPI]bool
}

type fakeNet struct {
	t     *testing.T
	now   time.Time
	ends  []*fakeGateway
	wire  []ike.Datagram
	alive bool // the second gateway is there
}

// newFakeNet puts the gateway under test and a peer that only answers on one wire.
func newFakeNet(t *testing.T, conf, peer gwConf) (n *fakeNet, gw, other *fakeGateway) {
	t.Helper()
	n = &fakeNet{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), alive: true}
	end := func(addr string, c gwConf) *fakeGateway {
		cfg, faults := config.Load("conf", []byte(c.render("/run/x/sock")))
		if cfg == nil {
			t.Fatalf("%+v", faults)
		}
		g := &fakeGateway{t: t, addr: netip.MustParseAddr(addr), sas: map[ipsec.ESPSPI]ipsec.ChildSA{},
			used: map[ipsec.ESPSPI]time.Time{}, spis: map[ipsec.IKESPI]bool{}}
		g.e = ike.New(ike.Options{Config: cfg, Rand: rand.Reader, Nonces: statesync.NewLedger(rand.Reader),
			Traffic:      func(spi ipsec.ESPSPI) (time.Time, time.Time) { return g.used[spi], g.used[spi] },
			LocalAddr:    func(string, bool) (netip.Addr, bool) { return g.addr, true },
			CookieSecret: ipsec.NewKey(random(32))})
		n.ends = append(n.ends, g)
		return g
	}
	gw, other = end(gwWAN, conf), end(peerWAN, peer)
	for _, g := range n.ends {
		g.e.Resume(n.now)
		n.drain(g)
	}
	n.settle()
	return n, gw, other
}

// drain carries out the effects of one input; every record is committed at once.
func (n *fakeNet) drain(g *fakeGateway) {
	for {
		x, ok := g.e.Poll()
		if !ok {
			return
		}
		switch x := x.(type) {
		case ike.Persist:
			g.e.Committed(n.now, x.Ticket)
		case ike.Send:
			if h, err := message.ParseHeader(x.Data); err == nil && h.Exchange == message.IKESAInit && !h.Response && !g.spis[h.SPIs.I] {
				g.spis[h.SPIs.I] = true
				g.attempts = append(g.attempts, n.now)
			}
			n.wire = append(n.wire, x.Datagram)
		case ike.Install:
			g.sas[x.SA.SPIIn] = x.SA
			g.made++
		case ike.Remove:
			delete(g.sas, x.SPIIn)
		}
	}
}

func (n *fakeNet) settle() {
	for len(n.wire) > 0 {
		d := n.wire[0]
		n.wire = n.wire[1:]
		for i, g := range n.ends {
			if g.addr == d.Remote.Addr() && (i == 0 || n.alive) {
				g.e.HandleDatagram(n.now, ike.Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data})
				n.drain(g)
			}
		}
	}
}

// pass lets time go by; each is called at least once a second.
func (n *fakeNet) pass(d time.Duration, each func()) {
	for end := n.now.Add(d); n.now.Before(end); {
		next := n.now.Add(time.Second)
		for _, g := range n.ends {
			if t, ok := g.e.NextTimeout(); ok && t.After(n.now) && t.Before(next) {
				next = t
			}
		}
		n.now = next
		for i, g := range n.ends {
			if i > 0 && !n.alive {
				continue
			}
			g.e.HandleTimeout(n.now)
			n.drain(g)
		}
		n.settle()
		if each != nil {
			each()
		}
	}
}

// TestPhase2Lifetimes: what becomes of a phase 2 that carries no traffic.
func TestPhase2Lifetimes(t *testing.T) {
	peer := gwConf{phase1: []entry{toPeer("remote-gw " + gwWAN)},
		phase2: []entry{netPhase2("src-subnet "+peerNet, "dst-subnet "+gwNet, "keylifeseconds 43200")}}
	conf := func(phase2 ...string) gwConf {
		return gwConf{phase1: []entry{toPeer("auto-negotiate enable")}, phase2: []entry{netPhase2(append(phase2, "keylifeseconds 120")...)}}
	}
	acquire := ike.Acquire{Protocol: 1, Src: netip.AddrPortFrom(netip.MustParseAddr(gwIn), 0), Dst: netip.AddrPortFrom(netip.MustParseAddr(peerIn), 0)}
	t.Run("neither option: expires, and comes back with traffic", func(t *testing.T) {
		n, gw, other := newFakeNet(t, conf(), peer)
		n.pass(100*time.Second, nil)
		if len(gw.sas) != 1 || len(other.sas) != 1 || gw.made != 1 {
			t.Fatalf("before the end of its life: %d and %d SAs, %d made", len(gw.sas), len(other.sas), gw.made)
		}
		n.pass(25*time.Second, nil)
		if len(gw.sas) != 0 || len(other.sas) != 0 {
			t.Fatalf("after 125 s without traffic: %d and %d SAs", len(gw.sas), len(other.sas))
		}
		n.pass(10*time.Minute, nil)
		if gw.made != 1 {
			t.Fatalf("%d SAs were made without traffic", gw.made)
		}
		gw.e.HandleAcquire(n.now, "vpn1", acquire)
		n.drain(gw)
		n.settle()
		if len(gw.sas) != 1 || len(other.sas) != 1 {
			t.Fatalf("after traffic: %d and %d SAs", len(gw.sas), len(other.sas))
		}
	})
	t.Run("neither option, but traffic: rekeyed", func(t *testing.T) {
		n, gw, _ := newFakeNet(t, conf(), peer)
		gaps := 0
		n.pass(10*time.Minute, func() {
			for spi := range gw.sas {
				gw.used[spi] = n.now
			}
			if len(gw.sas) == 0 {
				gaps++
			}
		})
		if gw.made < 5 || gaps > 0 {
			t.Fatalf("%d SAs in ten minutes of two-minute lives, %d moments without one", gw.made, gaps)
		}
	})
	t.Run("keepalive: rekeyed without traffic", func(t *testing.T) {
		n, gw, other := newFakeNet(t, conf("keepalive enable"), peer)
		gaps := 0
		n.pass(10*time.Minute, func() {
			if len(gw.sas) == 0 || len(other.sas) == 0 {
				gaps++
			}
		})
		if gw.made < 5 || gaps > 0 || len(gw.sas) != 1 {
			t.Fatalf("%d SAs in ten minutes, %d moments without one, %d now", gw.made, gaps, len(gw.sas))
		}
	})
	t.Run("auto-negotiate: tried every five seconds, then kept", func(t *testing.T) {
		c := conf("auto-negotiate enable")
		c.phase1 = []entry{toPeer("auto-negotiate enable", "negotiate-timeout 1")}
		n, gw, other := newFakeNet(t, c, peer)
		n.pass(time.Second, nil)
		n.alive = false
		gw.e.Clear(n.now, "") // the peer will not hear the DELETE
		n.drain(gw)
		n.wire = nil
		n.pass(3*time.Minute, nil)
		var tries []time.Time
		for _, at := range gw.attempts {
			if n.now.Sub(at) < 90*time.Second {
				tries = append(tries, at)
			}
		}
		if len(tries) < 17 || len(tries) > 19 {
			t.Fatalf("%d attempts in 90 s", len(tries))
		}
		for i := 1; i < len(tries); i++ {
			if d := tries[i].Sub(tries[i-1]); d < 4900*time.Millisecond || d > 5100*time.Millisecond {
				t.Errorf("attempt %d came after %v", i, d)
			}
		}
		n.alive = true
		n.pass(6*time.Second, nil)
		if len(gw.sas) != 1 || len(other.sas) < 1 {
			t.Fatalf("the peer is back: %d and %d SAs", len(gw.sas), len(other.sas))
		}
		gaps := 0
		n.pass(10*time.Minute, func() {
			if len(gw.sas) == 0 {
				gaps++
			}
		})
		if gaps > 0 {
			t.Errorf("%d moments without an SA: auto-negotiate implies keepalive", gaps)
		}
	})
	t.Run("dialup refuses auto-negotiate", func(t *testing.T) {
		c := gwConf{phase1: []entry{dialup("road", "one.test", psk)}, phase2: []entry{dialupPhase2("road-net", "road", "auto-negotiate enable")}}
		cfg, faults := config.Load("conf", []byte(c.render("/run/x/sock")))
		said := ""
		for _, f := range faults {
			if !f.Warning {
				said += f.Error()
			}
		}
		if cfg != nil || !strings.Contains(said, "auto-negotiate") || !strings.Contains(said, "dialup") {
			t.Errorf("loaded: %v, said %q", cfg != nil, said)
		}
	})
}
