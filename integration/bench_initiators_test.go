package integration

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/lab"
	statesync "tandem/sync"
	"tandem/xfrm"
	"tandem/xfrm/userspace"
)

// initiators are clients by the thousand: each is an IKE engine of ours with an outer
// and an inner address of its own, which sets one tunnel up and is then forgotten.
// All of them share the sockets of one namespace; ESP is not answered.
type initiators struct {
	b     *testing.B
	cfg   *config.Config
	plane *userspace.Plane
	in    chan received
	began map[netip.Addr]*initiator
	last  time.Duration // how long the latest one that is up waited
}

type received struct {
	at time.Time
	d  ike.Datagram
}

// initiator is one client under way. asked is when its present request left, waited
// the sum of the times until its responses came.
type initiator struct {
	e      *ike.Engine
	addr   netip.Addr
	begin  time.Time
	asked  time.Time
	waited time.Duration
	up     bool
	failed string
}

// newInitiators makes them in a namespace where every address of theirs is local. change
// are pairs of what stands in their configuration and what shall stand there instead.
func newInitiators(b *testing.B, topo *lab.Topology, node, secret string, change ...string) *initiators {
	b.Helper()
	text := fmt.Sprintf(`config vpn ipsec phase1-interface
    edit "gw"
        set interface "wan0"
        set ike-version 2
        set remote-gw 192.0.2.1
        set psksecret %q
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set dpd disable
        set auto-negotiate disable
        set nattraversal disable
    next
end
config vpn ipsec phase2-interface
    edit "gw"
        set phase1name "gw"
        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.0.0.1 255.255.255.255
        set dst-subnet 10.200.0.0 255.255.0.0
    next
end
`, secret)
	text = strings.NewReplacer(change...).Replace(text)
	cfg, faults := config.Load("initiators", []byte(text))
	if cfg == nil {
		b.Fatal(faults)
	}
	g := &initiators{b: b, cfg: cfg, in: make(chan received, 1<<14), began: map[netip.Addr]*initiator{}}
	if err := topo.In(node, func() (err error) {
		g.plane, err = userspace.New(userspace.Options{
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Handler: xfrm.Handler{
				IKE: func(d xfrm.IKEDatagram) {
					g.in <- received{time.Now(), ike.Datagram{Local: d.Local, Remote: d.Remote, NonESP: d.NonESP, Data: d.Data}}
				},
				Events: func([]xfrm.Event) {},
			}})
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = g.plane.Close() })
	return g
}

// clientAddr is the n-th address from base on.
func clientAddr(base string, n int) netip.Addr {
	a := netip.MustParseAddr(base).As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(n))
	return netip.AddrFrom4(a)
}

// dial sets up tunnels to gw, number from to from+n-1, rate a second, and returns for
// each how long it waited for the gateway's two responses, and how many were set up in a second.
func (g *initiators) dial(gw netip.Addr, from, n int, rate float64) (waits []time.Duration, perSecond float64) {
	g.b.Helper()
	begin := time.Now()
	begun, up := 0, 0
	limit := time.NewTimer(30*time.Second + time.Duration(float64(n)/rate*float64(2*time.Second)))
	defer limit.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for up < n {
		var next <-chan time.Time
		var timer *time.Timer
		if begun < n {
			at := begin.Add(time.Duration(float64(begun) / rate * float64(time.Second)))
			timer = time.NewTimer(max(0, time.Until(at)))
			next = timer.C
		}
		select {
		case <-next:
			g.begin(gw, from+begun)
			begun++
		case r := <-g.in:
			if g.take(r) {
				up++
				waits = append(waits, g.last)
			}
		case <-look.C:
			g.timeouts()
		case <-limit.C:
			g.b.Fatalf("%d of %d tunnels are up", up, n)
		}
		if timer != nil {
			timer.Stop()
		}
	}
	return waits, float64(n) / time.Since(begin).Seconds()
}

// saturate sets up n tunnels with so many under way at any time, and returns how many
// were set up in a second.
func (g *initiators) saturate(gw netip.Addr, from, n, window int) float64 {
	g.b.Helper()
	begin := time.Now()
	begun, up := 0, 0
	limit := time.NewTimer(60 * time.Second)
	defer limit.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for up < n {
		for begun < n && begun-up < window {
			g.begin(gw, from+begun)
			begun++
		}
		select {
		case r := <-g.in:
			if g.take(r) {
				up++
			}
		case <-look.C:
			g.timeouts()
		case <-limit.C:
			g.b.Fatalf("%d of %d tunnels are up", up, n)
		}
	}
	return float64(n) / time.Since(begin).Seconds()
}

// take hands a message to its client, and says whether that one's tunnel is up with it.
func (g *initiators) take(r received) bool {
	g.b.Helper()
	c := g.began[r.d.Local.Addr()]
	if c == nil {
		return false // of one that is up
	}
	c.waited += r.at.Sub(c.asked)
	c.e.HandleDatagram(time.Now(), r.d)
	g.poll(c)
	if c.failed != "" {
		g.b.Fatalf("client %v: %s", c.addr, c.failed)
	}
	if c.up {
		delete(g.began, c.addr)
		g.last = c.waited
	}
	return c.up
}

func (g *initiators) timeouts() {
	now := time.Now()
	for _, c := range g.began {
		if t, ok := c.e.NextTimeout(); ok && !now.Before(t) {
			c.e.HandleTimeout(now)
			g.poll(c)
		}
	}
}

func (g *initiators) begin(gw netip.Addr, n int) {
	addr := clientAddr("198.18.0.1", n)
	cfg := *g.cfg
	p1, p2 := g.cfg.Phase1[0], g.cfg.Phase2[0]
	p1.RemoteGW = gw
	inner := clientAddr("10.16.0.1", n)
	p2.Src = []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(inner, 32))}
	cfg.Phase1, cfg.Phase2 = []config.Phase1{p1}, []config.Phase2{p2}
	c := &initiator{addr: addr, begin: time.Now()}
	c.e = ike.New(ike.Options{Config: &cfg, Rand: rand.Reader, Nonces: statesync.NewLedger(rand.Reader),
		LocalAddr: func(string, bool) (netip.Addr, bool) { return addr, true }})
	g.began[addr] = c
	c.e.Resume(c.begin)
	if err := c.e.Up(c.begin, p1.Name, p2.Name); err != nil {
		g.b.Fatal(err)
	}
	g.poll(c)
}

// poll carries out what an engine wants: nobody else has to be asked.
func (g *initiators) poll(c *initiator) {
	for x, ok := c.e.Poll(); ok; x, ok = c.e.Poll() {
		switch x := x.(type) {
		case ike.Persist:
			c.e.Committed(time.Now(), x.Ticket)
		case ike.Send:
			c.asked = time.Now()
			if err := g.plane.SendIKE(xfrm.IKEDatagram{Local: x.Local, Remote: x.Remote, NonESP: x.NonESP, Data: x.Data}); err != nil {
				g.b.Fatal(err)
			}
		case ike.Install:
			c.up = true
		case ike.Log:
			if x.Level >= slog.LevelWarn && !strings.Contains(x.Message, "retry") {
				c.failed = fmt.Sprint(x.Message, x.Attrs)
			}
		}
	}
}

// quantileOf durations, which it sorts.
func quantileOf(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}
