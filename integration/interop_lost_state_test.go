package integration

import (
	"fmt"
	"os"
	"testing"
	"time"

	"tandem/ike/message"
)

// die ends a gateway with SIGKILL, guardian and daemon: nothing is said, nothing is kept.
func (g *gateway) die() {
	g.t.Helper()
	g.stopped = true
	daemon, err := g.proc.Daemon(false)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.proc.Kill(); err != nil {
		g.t.Fatal(err)
	}
	eventually(g.t, 5*time.Second, "the daemon ends with its guardian", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", daemon)) // empty once it has ended
		return err != nil || len(line) == 0
	})
}

// TestPeerComesBackWithoutItsState: a branch with auto-negotiate, keepalive and dpd; its
// peer dies and is back at once, knowing nothing. The peer's hints (INVALID_IKE_SPI, which
// nobody authenticates) end nothing; DPD does, in its time, and the tunnel is negotiated
// anew. Twice, since a branch must go on doing so.
func TestPeerComesBackWithoutItsState(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	g := s.gateway("gw", gwConf{
		phase1: []entry{toPeer("auto-negotiate enable", "negotiate-timeout 2", "dpd on-idle", "dpd-retrycount 3", "dpd-retryinterval 0 400")},
		phase2: []entry{netPhase2("auto-negotiate enable", "keepalive enable")}, routes: []entry{routeTo(peerNet, "vpn1")}})
	hub := func() *gateway {
		return s.gateway("peer", gwConf{phase1: []entry{toPeer("remote-gw " + gwWAN)},
			phase2: []entry{netPhase2("src-subnet "+peerNet, "dst-subnet "+gwNet)}, routes: []entry{routeTo(gwNet, "vpn1")}})
	}
	peer := hub()
	for range 2 {
		old := g.wantUp("vpn1", "initiator").SAs[0].SPIi
		s.pingBoth()
		begun := len(dpdProbes(wan))
		eventually(t, 5*time.Second, "an answered probe", func() bool { return len(dpdProbes(wan)) > begun })
		peer.die()
		at := time.Now()
		peer = hub()
		eventually(t, 20*time.Second, "the tunnel stands anew", func() bool {
			st := g.status("vpn1")
			return len(st.SAs) == 1 && st.SAs[0].SPIi != old && st.SAs[0].Status == "established" && len(g.children("vpn1")) == 1
		})
		// Three probes after the last sign of life, each with its interval, however much
		// the peer says in between.
		took := g.loggedAt("failed due to retry timeout").Sub(at)
		if least := 3*dpdInterval - 50*time.Millisecond; took < least || took > 4*dpdInterval+time.Second {
			t.Errorf("given up %v after the peer's death", took)
		}
		hints := 0
		for _, p := range wan.packets() {
			if !from(peerWAN)(p) || !p.at.After(at) || !p.response() || p.exchange() != byte(message.Informational) {
				continue
			}
			if m, err := message.Parse(p.ike); err == nil && spiOf(p, 0) == old {
				if _, ok := m.Notify(message.InvalidIKESPI); ok {
					hints++
				}
			}
		}
		if hints == 0 {
			t.Error("the peer did not say that it knows nothing: the test shows less than it should")
		}
		s.pingBoth()
	}
	g.stop()
	peer.wantNone("vpn1")
	peer.stop()
}
