package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// inFlight is how long each packet of the guest's is under way: what the gateway sends
// meanwhile crosses it.
const inFlight = "150ms"

// TestCollisions: exchanges of charon's and the gateway's that cross on the wire. The guest
// holds back what it sends; the gateway's request is there at once. Whoever wins, both
// sides have the same SAs at the end, and traffic flows.
func TestCollisions(t *testing.T) {
	s := guestWire(t)
	all := s.guestCharon()
	s.must(guestNode, "/sbin/modprobe", "-d", s.guest.cache+"/modules", "sch_netem")
	start := func(s *site) (*gateway, *charon) {
		ch := all.load(s.t, conn{noEncap: true})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer("nattraversal disable")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
		ch.up()
		g.wantUp("vpn1", "responder")
		s.must(guestNode, "/sbin/tc", "qdisc", "add", "dev", "vec0", "root", "netem", "delay", inFlight)
		s.t.Cleanup(func() { s.must(guestNode, "/sbin/tc", "qdisc", "del", "dev", "vec0", "root") })
		return g, ch
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	for _, c := range []struct{ name, child, ike, words, said string }{
		{"Child SA rekeyed by both at once", "net", "", "diagnose vpn ike rekey child name vpn1", "CHILD_SA rekey collision "},
		{"IKE SA rekeyed by both at once", "", "gw", "diagnose vpn ike rekey ike name vpn1", "IKE_SA rekey collision "},
	} {
		s.sub(c.name, func(t *testing.T, s *site) {
			g, ch := start(s)
			// The nonces are chance: until each side has won.
			for i := 0; ch.said(c.said+"won") == 0 || ch.said(c.said+"lost") == 0; i++ {
				if i == 20 {
					t.Fatalf("after %d collisions charon has won %d and lost %d", i, ch.said(c.said+"won"), ch.said(c.said+"lost"))
				}
				met := ch.said(c.said)
				was := sasOf(g, "vpn1")
				must(t, ch.Rekey(ch.ctx, c.child, c.ike))
				g.must(c.words)
				wantSameSAs(g, ch, "vpn1", was)
				if ch.said(c.said) == met {
					t.Logf("exchange %d did not collide", i)
				}
			}
			t.Logf("charon has won %d collisions and lost %d", ch.said(c.said+"won"), ch.said(c.said+"lost"))
			s.pingBoth()
			ch.down(g)
		})
	}

	s.sub("IKE SA rekeyed by one, Child SA by the other", func(t *testing.T, s *site) {
		g, ch := start(s)
		was := sasOf(g, "vpn1")
		must(t, ch.Rekey(ch.ctx, "", "gw"))
		g.must("diagnose vpn ike rekey child name vpn1")
		wantSameSAs(g, ch, "vpn1", was)
		was = sasOf(g, "vpn1")
		must(t, ch.Rekey(ch.ctx, "net", ""))
		g.must("diagnose vpn ike rekey ike name vpn1")
		wantSameSAs(g, ch, "vpn1", was)
		ch.says(`N\(TEMP_FAIL\)`)
		s.pingBoth()
		ch.down(g)
	})

	s.sub("Child SA rekeyed by one, deleted by the other", func(t *testing.T, s *site) {
		g, ch := start(s)
		was := sasOf(g, "vpn1")
		must(t, ch.TerminateChild(ch.ctx, "net"))
		g.must("diagnose vpn ike rekey child name vpn1")
		wantSameSAs(g, ch, "vpn1", was)
		s.wantPing("gw", gwIn, peerIn)
		was = sasOf(g, "vpn1")
		must(t, ch.Rekey(ch.ctx, "net", ""))
		g.must("execute vpn ipsec tunnel down net vpn1")
		wantSameSAs(g, ch, "vpn1", was)
		s.wantPing("gw", gwIn, peerIn)
		ch.down(g)
	})

	s.sub("IKE SA rekeyed by one, deleted by the other", func(t *testing.T, s *site) {
		g, ch := start(s)
		must(t, ch.Rekey(ch.ctx, "", "gw"))
		g.must("diagnose vpn ike gateway clear name vpn1")
		g.wantNone("")
		ch.wantNone()
		s.wantPing("gw", gwIn, peerIn)
		go func() { _ = ch.Terminate(ch.ctx, "gw") }()
		g.must("diagnose vpn ike rekey ike name vpn1")
		ch.wantNone()
		g.wantNone("")
	})
}

// sasOf are the SPIs of a tunnel's IKE SAs and Child SAs, as both sides name them.
func sasOf(g *gateway, name string) map[string]bool {
	g.t.Helper()
	all := g.spis(name)
	for _, sa := range g.status(name).SAs {
		all[sa.SPIi+sa.SPIr] = true
	}
	return all
}

// wantSameSAs waits until both sides have the same SAs, other ones than before; charon
// tries again up to 25 seconds after a TEMPORARY_FAILURE.
func wantSameSAs(g *gateway, ch *charon, name string, was map[string]bool) {
	g.t.Helper()
	state := ""
	if !holds(40*time.Second, func() bool {
		ours, theirs := sasOf(g, name), map[string]bool{}
		settled := true
		for _, sa := range ch.sas() {
			theirs[sa.SPIi+sa.SPIr] = true
			settled = settled && sa.State == "ESTABLISHED"
			for _, c := range sa.Children {
				if c.State == "DELETED" { // the kernel's inbound SA is kept for packets that are late
					continue
				}
				theirs[c.SPIOut] = true
				settled = settled && c.State == "INSTALLED"
			}
		}
		state = fmt.Sprintf("before %s, here %s, charon %s", show(was), show(ours), show(theirs))
		return settled && maps.Equal(ours, theirs) && !maps.Equal(ours, was)
	}) {
		g.t.Fatalf("both sides do not have the same SAs: %s", state)
	}
}

func show(spis map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(spis)), " ")
}
