package integration

import (
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
)

const dpdInterval = 400 * time.Millisecond

// probes are the gateway's DPD requests on the wire: those sent, with repetitions.
func dpdProbes(wan *tap) (at []time.Time) {
	for _, p := range wan.packets() {
		if from(gwWAN)(p) && p.exchange() == byte(message.Informational) && !p.response() {
			at = append(at, p.at)
		}
	}
	return at
}

// TestDeadPeer: the peer falls silent. The time until it is given up is
// dpd-retrycount × dpd-retryinterval after the interval without a sign of life.
func TestDeadPeer(t *testing.T) {
	for _, c := range []struct {
		name   string
		phase1 []string
		again  bool
	}{
		{"on-idle, cleared", []string{"dpd on-idle"}, false},
		{"on-idle, negotiated again", []string{"dpd on-idle", "auto-negotiate enable", "negotiate-timeout 2"}, true},
		{"on-demand, cleared", []string{"dpd on-demand"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{})
			conf := gwConf{phase1: []entry{toPeer(append(c.phase1, "dpd-retrycount 3", "dpd-retryinterval 0 400")...)},
				phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}}
			g := s.gateway("gw", conf)
			if c.again {
				g.wantUp("vpn1", "initiator")
			} else {
				ch.up()
				g.wantUp("vpn1", "responder")
			}
			onDemand := c.phase1[0] == "dpd on-demand"
			if onDemand {
				never(t, 4*dpdInterval, "a probe on demand without traffic", func() bool { return len(dpdProbes(wan)) > 0 })
			} else {
				eventually(t, 5*time.Second, "probes while idle, answered", func() bool { return len(dpdProbes(wan)) >= 3 })
				if st := g.status("vpn1"); len(st.SAs) != 1 || st.SAs[0].Status != "established" || st.SAs[0].DPDSent < 2 {
					t.Errorf("after answered probes: %+v", st)
				}
			}
			s.cut("peer")
			at := time.Now()
			if onDemand {
				s.pings("gw", gwIn, peerIn, 1)
			}
			eventually(t, 10*time.Second, "the dead peer's SAs are cleared", func() bool {
				for _, sa := range g.status("vpn1").SAs {
					if sa.Status == "established" {
						return false
					}
				}
				return len(g.children("vpn1")) == 0
			})
			// The last sign of life was at most one interval before the cut; then
			// the idle interval, and an interval after each of three probes.
			took := g.loggedAt("failed due to retry timeout").Sub(at)
			if least := 3*dpdInterval - 50*time.Millisecond; took < least || took > 4*dpdInterval+time.Second {
				t.Errorf("given up %v after the cut", took)
			}
			var unanswered []time.Time
			for _, p := range dpdProbes(wan) {
				if p.After(at) {
					unanswered = append(unanswered, p)
				}
			}
			// A probe that was under way at the cut may count among the three.
			if n := len(unanswered); n < 2 || n > 3 {
				t.Errorf("%d probes after the cut, 3 are configured", n)
			}
			for i := 1; i < len(unanswered); i++ {
				if d := unanswered[i].Sub(unanswered[i-1]); d < dpdInterval-50*time.Millisecond || d > dpdInterval+250*time.Millisecond {
					t.Errorf("probe %d came after %v", i, d)
				}
			}
			s.join("peer")
			if c.again {
				g.wantUp("vpn1", "initiator")
				s.pingBoth()
				g.stop()
				return
			}
			never(t, time.Second, "a negotiation that nothing asked for", func() bool { return len(g.status("vpn1").SAs) > 0 })
		})
	}
}

// TestTrafficSuppressesProbes: while the peer's packets come, no probe is sent.
func TestTrafficSuppressesProbes(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	ch := s.charon("peer", conn{})
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("dpd on-idle", "dpd-retrycount 3", "dpd-retryinterval 1")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
	ch.up()
	g.wantUp("vpn1", "responder")
	probes, err := s.topo.StartProbes("peer", netip.MustParseAddr(peerIn), "gw", netip.MustParseAddr(gwIn), 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "traffic both ways", func() bool { a, b := probes.Received(); return a > 10 && b > 10 })
	begun := len(dpdProbes(wan))
	never(t, 3500*time.Millisecond, "a probe under traffic", func() bool { return len(dpdProbes(wan)) > begun })
	probes.Stop(0)
	eventually(t, 5*time.Second, "a probe after the traffic", func() bool { return len(dpdProbes(wan)) > begun })
	ch.down(g)
}
