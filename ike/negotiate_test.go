package ike

import (
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func auto(a, b *config.Config) { a.Phase1[0].AutoNegotiate, b.Phase1[0].AutoNegotiate = true, true }

func TestBothBeginAtOnce(t *testing.T) {
	interleavings(t, func() (*world, *side, *side) {
		w, a, b := pair(t, auto)
		a.resume()
		b.resume()
		return w, a, b
	}, func(w *world, a, b *side) {
		w.run(2 * time.Minute)
		agree(t, a, b, 1, 1)
		if !a.esp(b) || !b.esp(a) {
			t.Error("traffic does not pass")
		}
	})
}

func TestBothCreateAtOnce(t *testing.T) {
	interleavings(t, func() (*world, *side, *side) {
		w, a, b := pair(t, func(a, b *config.Config) { twoPhase2(a, b) })
		a.e.cfg.Phase1[0].AutoNegotiate = false
		bringUp(a, b)
		a.up("net2")
		b.up("net2")
		return w, a, b
	}, func(w *world, a, b *side) {
		w.run(2 * time.Minute)
		agree(t, a, b, 1, 2)
	})
}

func TestSeveralPhase2(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) {
		twoPhase2(a, b)
		a.Phase2 = append(a.Phase2, phase2For("toB", "net3", "10.5.0.0/16", "10.6.0.0/16"))
		b.Phase2 = append(b.Phase2, phase2For("toA", "net3", "10.6.0.0/16", "10.5.0.0/16"))
	})
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 3)
	if n := w.seenOf(message.CreateChildSA); n != 2 {
		t.Errorf("%d CREATE_CHILD_SA, want 2", n)
	}
	seen := map[string]bool{}
	for _, c := range b.ike()[0].children {
		seen[c.Phase2] = true
	}
	if len(seen) != 3 {
		t.Errorf("responder matched the entries %v", seen)
	}
}

func TestAutoNegotiateTriesEveryFiveSeconds(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) {
		a.Phase1[0].NegotiateTimeout = 2 * time.Second
	})
	a.resume()
	w.drop = func(Datagram) bool { return true }
	w.run(30 * time.Second)
	spis := map[any]int{}
	var order []any
	for _, d := range w.seen {
		h, _ := message.ParseHeader(d.Data)
		if spis[h.SPIs.I] == 0 {
			order = append(order, h.SPIs.I)
		}
		spis[h.SPIs.I]++
	}
	if len(order) < 6 || len(order) > 7 {
		t.Errorf("%d attempts in 30 s", len(order))
	}
	w.drop = nil
	b.resume()
	w.run(8 * time.Second)
	agree(t, a, b, 1, 1)
}

func acquire(s *side, src, dst string) {
	s.e.HandleAcquire(s.w.now, s.e.cfg.Phase1[0].Name, Acquire{Protocol: 1,
		Src: netip.AddrPortFrom(netip.MustParseAddr(src), 0), Dst: netip.AddrPortFrom(netip.MustParseAddr(dst), 0)})
	s.drain()
}

func TestTrafficBeginsTheNegotiation(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) {
		a.Phase1[0].AutoNegotiate = false
		twoPhase2(a, b)
	})
	b.resume()
	a.resume()
	w.run(time.Minute)
	if len(w.seen) != 0 {
		t.Fatal("something was sent without traffic")
	}
	acquire(a, "10.9.0.1", "10.2.0.1") // matches nothing
	if len(w.wire) != 0 {
		t.Fatal("negotiation for traffic that no phase 2 wants")
	}
	acquire(a, "10.3.0.1", "10.4.0.1")
	w.settle()
	agree(t, a, b, 1, 1)
	if a.ike()[0].children[0].Phase2 != "net2" {
		t.Error("negotiated for another phase 2 than the traffic's")
	}
	acquire(a, "10.1.0.1", "10.2.0.1")
	w.settle()
	agree(t, a, b, 1, 2)
}

func TestTrafficIsForgottenWhenThePeerIsAbsent(t *testing.T) {
	w, a, _ := pair(t, func(a, b *config.Config) { a.Phase1[0].AutoNegotiate = false })
	a.resume()
	w.drop = func(Datagram) bool { return true }
	acquire(a, "10.1.0.1", "10.2.0.1")
	w.run(5 * time.Minute)
	if len(a.ike()) != 0 {
		t.Fatal("still negotiating")
	}
	n := len(w.seen)
	w.run(time.Hour)
	if len(w.seen) != n {
		t.Error("goes on without traffic")
	}
}

// phase2Lives runs a tunnel with short lifetimes and a phase 2 option.
func phase2Lives(t *testing.T, change func(*config.Phase2)) (*world, *side, *side) {
	return up(t, func(a, b *config.Config) {
		a.Phase1[0].DPD, b.Phase1[0].DPD = "disable", "disable"
		a.Phase2[0].KeyLife, b.Phase2[0].KeyLife = 120*time.Second, 300*time.Second
		if change != nil {
			change(&a.Phase2[0])
		}
	})
}

func TestIdleChildExpiresAndComesBackWithTraffic(t *testing.T) {
	w, a, b := phase2Lives(t, nil)
	w.run(10 * time.Minute)
	agree(t, a, b, 1, 0)
	if w.seenOf(message.CreateChildSA) != 0 {
		t.Error("rekeyed without traffic")
	}
	acquire(a, "10.1.0.1", "10.2.0.1")
	w.settle()
	agree(t, a, b, 1, 1)
	if a.ike()[0].children[0].Suite.KE == ipsec.KENone {
		t.Error("CREATE_CHILD_SA without PFS")
	}
}

func TestUsedChildIsRekeyed(t *testing.T) {
	w, a, b := phase2Lives(t, nil)
	for range 12 {
		w.run(30 * time.Second)
		if !a.esp(b) || !b.esp(a) {
			t.Fatal("a packet was lost")
		}
	}
	agree(t, a, b, 1, 1)
	if n := w.seenOf(message.CreateChildSA); n < 2 || n > 4 {
		t.Errorf("%d rekeys in 6 minutes of 120 s lifetimes", n)
	}
}

func TestTrafficBetweenSoftAndHardStillRekeys(t *testing.T) {
	w, a, b := phase2Lives(t, nil)
	w.run(112 * time.Second) // past the soft lifetime, idle
	if w.seenOf(message.CreateChildSA) != 0 {
		t.Fatal("rekeyed without traffic")
	}
	a.esp(b)
	w.run(7 * time.Second)
	agree(t, a, b, 1, 1)
	if w.seenOf(message.CreateChildSA) != 1 {
		t.Error("not rekeyed although traffic came in time")
	}
}

func TestKeepaliveRekeysWithoutTraffic(t *testing.T) {
	w, a, b := phase2Lives(t, func(p *config.Phase2) { p.Keepalive = true })
	w.run(10 * time.Minute)
	agree(t, a, b, 1, 1)
	if n := w.seenOf(message.CreateChildSA); n < 5 {
		t.Errorf("%d rekeys in 10 minutes of 120 s lifetimes", n)
	}
	if w.seenOf(message.IKESAInit) != 1 {
		t.Error("negotiated anew")
	}
}

func TestAutoNegotiateOfPhase2ReplacesADeletedChild(t *testing.T) {
	w, a, b := phase2Lives(t, func(p *config.Phase2) { p.AutoNegotiate = true })
	b.down("net")
	w.settle()
	agree(t, a, b, 1, 0)
	w.run(6 * time.Second)
	agree(t, a, b, 1, 1)
}

func TestSecondsOfLifetime(t *testing.T) {
	// Both sides rekey both kinds of SA every few seconds, with traffic.
	w, a, b := up(t, func(a, b *config.Config) {
		for _, c := range []*config.Config{a, b} {
			c.Phase1[0].KeyLife = 10 * time.Second
			c.Phase2[0].KeyLife = 4 * time.Second
		}
	})
	for range 1200 {
		w.run(50 * time.Millisecond)
		if !a.esp(b) || !b.esp(a) {
			t.Fatalf("a packet was lost at %s", w.now)
		}
	}
	w.run(time.Second)
	if n := w.seenOf(message.CreateChildSA); n < 18 {
		t.Errorf("%d rekeys in a minute", n)
	}
	if w.seenOf(message.IKESAInit) != 1 {
		t.Error("negotiated anew")
	}
}

func TestPolicyIsDemanded(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) { a.HasPolicy = true })
	b.resume()
	a.resume()
	w.run(time.Minute)
	a.wantLog("ignoring request to establish IPsec SA, no policy configured")
	if len(w.seen) != 0 {
		t.Error("negotiated without a policy")
	}
	cfg := *a.e.cfg
	cfg.Policies = []config.Policy{{ID: 1, SrcIntf: []string{"lan"}, DstIntf: []string{"toB"}, Accept: true, Status: true}}
	a.e.Reconfigure(w.now, &cfg)
	a.drain()
	w.run(6 * time.Second)
	agree(t, a, b, 1, 1)
	// The peer's request is ignored, too.
	w2, c, d := pair(t, func(a, b *config.Config) { b.HasPolicy = true })
	d.resume()
	c.resume()
	w2.run(time.Minute)
	d.wantLog("ignoring request to establish IPsec SA, no policy configured")
	if len(c.established()) != 0 {
		t.Error("answered without a policy")
	}
}

func TestPassiveModeFlippedLive(t *testing.T) {
	w, a, b := up(t, auto)
	if !a.ike()[0].initiator {
		t.Fatal("setup: a is not the initiator")
	}
	w.seen = nil
	cfg := *a.e.cfg
	cfg.Phase1 = []config.Phase1{cfg.Phase1[0]}
	cfg.Phase1[0].PassiveMode = true
	a.e.Reconfigure(w.now, &cfg)
	a.drain()
	if len(a.installed) != 0 {
		t.Error("Child SA still installed")
	}
	for range 4 { // DELETE of the Child SA and of the IKE SA, with their answers
		w.deliver(w.wire[0])
		w.wire = w.wire[1:]
	}
	if n := w.seenOf(message.Informational); n != 2 {
		t.Errorf("%d INFORMATIONAL requests, want a DELETE for the Child SA and one for the IKE SA", n)
	}
	agree(t, a, b, 0, 0)
	w.run(10 * time.Second)
	agree(t, a, b, 1, 1)
	if a.ike()[0].initiator {
		t.Error("a passive gateway began")
	}
	for _, l := range []string{"update", "deleting", "set oper down"} {
		a.wantLog(l)
	}
	if err := a.e.Up(w.now, "toB", ""); err == nil {
		t.Error("a passive gateway lets itself be told to begin")
	}
	a.drain()
	// And back.
	back := cfg
	back.Phase1 = []config.Phase1{cfg.Phase1[0]}
	back.Phase1[0].PassiveMode = false
	a.e.Reconfigure(w.now, &back)
	a.drain()
	w.run(20 * time.Second)
	agree(t, a, b, 1, 1)
}

func TestReconfigure(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		twoPhase2(a, b)
	})
	change := func(f func(c *config.Config)) {
		t.Helper()
		c := *a.e.cfg
		c.Phase1 = append([]config.Phase1{}, c.Phase1...)
		c.Phase2 = append([]config.Phase2{}, c.Phase2...)
		f(&c)
		a.e.Reconfigure(w.now, &c)
		a.drain()
		w.settle()
	}
	spis := a.ike()[0].spis
	change(func(c *config.Config) { c.Phase1[0].DPDRetryInterval = 7 * time.Second })
	if a.ike()[0].spis != spis || len(a.installed) != 2 {
		t.Error("a change of dpd touched the SAs")
	}
	change(func(c *config.Config) { c.Phase2 = c.Phase2[:1] })
	if a.ike()[0].spis != spis || len(a.installed) != 1 || len(b.installed) != 1 {
		t.Error("a removed phase 2 did not end its Child SA alone")
	}
	change(func(c *config.Config) { c.Phase1, c.Phase2 = nil, nil })
	agree(t, a, b, 0, 0)
	if len(a.e.Status(w.now)) != 0 {
		t.Error("a removed tunnel is still shown")
	}
}

func TestCommands(t *testing.T) {
	w, a, b := up(t, auto)
	if n := a.e.Clear(w.now, "toB"); n != 1 {
		t.Errorf("cleared %d", n)
	}
	a.drain()
	w.settle()
	agree(t, a, b, 0, 0)
	w.run(10 * time.Second)
	agree(t, a, b, 1, 1)
	if a.e.Up(w.now, "nothing", "") == nil || a.e.Down(w.now, "nothing", "") == nil || a.e.Up(w.now, "toB", "nothing") == nil {
		t.Error("commands for what is not configured succeed")
	}
	g := a.e.Status(w.now)
	if len(g) != 1 || g[0].Name != "toB" || len(g[0].IKE) != 1 || len(g[0].Children) != 1 || g[0].IKE[0].State != "established" ||
		g[0].PeerID != addrB || g[0].Children[0].Rekey <= 0 || g[0].IKE[0].Lifetime != 24*time.Hour {
		t.Errorf("status %+v", g)
	}
}
