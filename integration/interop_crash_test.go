package integration

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestCrashToken: a gateway dies by SIGKILL with its guardian and comes back without state: the
// answer to the first message of its peer shows the token, and the peer begins anew at
// once (RFC 6290).
func TestCrashToken(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	const detect = "config system settings\n    set ike-quick-crash-detect enable\nend\n"
	conf := gwConf{phase1: []entry{toPeer("nattraversal enable")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}, more: detect}
	g := s.gateway("gw", conf)
	c := s.gateway("peer", gwConf{
		phase1: []entry{{"up", []string{"interface wan0", "remote-gw " + gwWAN, "psksecret \"" + psk + "\"", "proposal aes128gcm-prfsha256", "dhgrp 31",
			"dpd on-idle", "dpd-retrycount 10", "dpd-retryinterval 1"}}},
		phase2: []entry{{"net", []string{"phase1name up", "proposal aes128gcm", "dhgrp 31", "src-subnet " + peerNet, "dst-subnet " + gwNet}}},
		routes: []entry{routeTo(gwNet, "up")},
		more:   detect,
	})
	old := c.wantUp("up", "initiator").SAs[0].SPIi
	s.wantPing("peer", peerIn, gwIn)
	if err := g.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	g.stopped = true
	s.gateway("gw", conf)
	begun := time.Now()
	eventually(t, 10*time.Second, "negotiated anew", func() bool {
		st := c.status("up")
		return len(st.SAs) == 1 && st.SAs[0].Status == "established" && st.SAs[0].SPIi != old
	})
	t.Logf("%.1f s after the gateway is back", time.Since(begun).Seconds())
	text, err := os.ReadFile(c.proc.LogPath)
	if err != nil || strings.Count(string(text), "peer has lost its state: its QCD token is right") != 1 {
		t.Errorf("no token was taken: %v", err)
	}
	s.wantPing("peer", peerIn, gwIn)
	if n := wan.exchangesOf(exchInit); n != 2 {
		t.Errorf("%d IKE_SA_INIT, want 2", n)
	}
}
