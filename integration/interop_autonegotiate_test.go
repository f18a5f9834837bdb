package integration

import (
	"testing"
	"time"

	"tandem/ike/message"
)

// TestAutoNegotiateFromDeadStart: the peer is not there. The negotiation is tried
// again every five seconds, each time under a new SPI, until the peer answers.
// What takes minutes (idle SAs that expire or are kept) is TestPhase2Lifetimes, in
// fake time.
func TestAutoNegotiateFromDeadStart(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	// One second for each attempt, so that attempts and their distance show.
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("auto-negotiate enable", "negotiate-timeout 1")},
		phase2: []entry{netPhase2("auto-negotiate enable")}, routes: []entry{routeTo(peerNet, "vpn1")}})
	attempts := func() (at []time.Time) {
		seen := map[string]bool{}
		for _, p := range wan.packets() {
			if from(gwWAN)(p) && p.exchange() == byte(message.IKESAInit) && !seen[spiOf(p, 0)] {
				seen[spiOf(p, 0)] = true
				at = append(at, p.at)
			}
		}
		return at
	}
	eventually(t, 20*time.Second, "three attempts", func() bool { return len(attempts()) >= 3 })
	at := attempts()
	for i := 1; i < 3; i++ {
		if d := at[i].Sub(at[i-1]); d < 4500*time.Millisecond || d > 6500*time.Millisecond {
			t.Errorf("attempt %d came after %v", i+1, d)
		}
	}
	if st := g.status("vpn1"); st.Failure == "" {
		t.Errorf("diagnose names no reason: %+v", st)
	}
	ch := s.charon("peer", conn{})
	g.wantUp("vpn1", "initiator")
	s.pingBoth()

	// Taken down by the peer, it comes back by itself.
	if err := ch.Terminate(ch.ctx, "gw"); err != nil {
		t.Fatal(err)
	}
	g.wantUp("vpn1", "initiator")
	s.pingBoth()
	g.stop()
	ch.wantNone()
}
