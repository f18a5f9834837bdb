package integration

import (
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// TestReauthentication: another IKE SA with full authentication beside the old one, its Child
// SA, then the old one ends: a hundred packets a second each way, none lost by us. Who of both
// began the old one, and who the new one, makes no difference.
func TestReauthentication(t *testing.T) {
	for _, by := range []string{"charon", "tandem"} {
		t.Run("by "+by, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{}, "make_before_break = yes")
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer("reauth enable")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
			ch.up()
			was := g.wantUp("vpn1", "responder")
			ch.says(`received AUTH_LIFETIME of 86400s`)
			s.pingBoth()
			inits, old := wan.exchangesOf(exchInit), was.SAs[0].SPIi
			l := s.startLoss(wan)
			for i := 1; i <= 2; i++ {
				direction := "responder"
				if by == "charon" {
					if err := ch.Reauthenticate(ch.ctx, "gw"); err != nil {
						t.Fatal(err)
					}
				} else {
					direction = "initiator"
					g.must("diagnose vpn ike rekey ike name vpn1")
				}
				eventually(t, 10*time.Second, "only a new IKE SA is left at the gateway", func() bool {
					st := g.status("vpn1")
					return len(st.SAs) == 1 && st.SAs[0].Direction == direction && st.SAs[0].Status == "established" && st.SAs[0].SPIi != old
				})
				old = g.status("vpn1").SAs[0].SPIi
				sa, _ := ch.one()
				if sa.SPIi != old {
					t.Errorf("charon has %s, we have %s", sa.SPIi, old)
				}
				g.wantOneChild("vpn1")
				a, b := l.probes.Received()
				eventually(t, 10*time.Second, "fifty more packets each way", func() bool { x, y := l.probes.Received(); return x > a+50 && y > b+50 })
			}
			l.wantNone()
			if n := wan.exchangesOf(exchInit); n != inits+2 {
				t.Errorf("%d IKE_SA_INIT, want %d", n, inits+2)
			}
			if contains(g.proc.LogPath, "duplicate") {
				t.Error("the overlap was taken for something else")
			}
			ch.down(g)
		})
	}
}

// TestPairReauthenticationTakeover: the active daemon dies by SIGKILL in the middle of a
// repeated authentication that charon began: the survivor has both IKE SAs, and finishes.
func TestPairReauthenticationTakeover(t *testing.T) {
	t.Parallel()
	needCharon(t)
	p := newPair(t, program(t), func(conf string) string {
		return strings.Replace(conf, "set nattraversal forced", "set nattraversal forced\n        set reauth enable", 1)
	})
	ch := p.charon(lab.NodeClient, pairConn(), "make_before_break = yes")
	ch.up()
	p.traffic()
	active, standby := p.synchronised()
	inits := p.begun(exchInit)
	p.nft(lab.NodeClient, `table inet deaf {
	chain in {
		type filter hook prerouting priority -300
		iifname "wan0" udp sport 4500 @th,64,32 0 @th,240,8 35 drop # IKE_AUTH
	}
}
`)
	if err := ch.Reauthenticate(ch.ctx, "gw"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "the new IKE SA stands at the active gateway", func() bool { return len(active.status("vpn1").SAs) == 2 })
	p.kill(active)
	p.takenOver(standby)
	p.must(lab.NodeClient, "nft", "delete", "table", "inet", "deaf")
	eventually(t, 20*time.Second, "one IKE SA is left", func() bool { return len(standby.status("vpn1").SAs) == 1 })
	ch.one()
	p.traffic()
	if n := p.begun(exchInit); n != inits+1 {
		t.Errorf("%d new IKE_SA_INIT, want 1", n-inits)
	}
}
