package integration

import (
	"testing"
	"time"

	"tandem/internal/needs"
)

// TestPassiveModeFlipped: passive-mode is enabled and disabled on a live tunnel.
// Each time the SAs are deleted with DELETE, Child and IKE; while it is passive the
// peer initiates.
func TestPassiveModeFlipped(t *testing.T) {
	needs.Program(t, "tshark")
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	keys := s.topo.Dir + "/keys"
	conf := gwConf{tandem: []string{"key-log " + keys}, phase1: []entry{toPeer("auto-negotiate enable")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}}
	g := s.gateway("gw", conf)
	hub := s.gateway("peer", gwConf{
		phase1: []entry{toPeer("remote-gw "+gwWAN, "auto-negotiate enable")},
		phase2: []entry{netPhase2("src-subnet "+peerNet, "dst-subnet "+gwNet)}, routes: []entry{routeTo(gwNet, "vpn1")}})
	stands := func() string {
		t.Helper()
		dir := ""
		eventually(t, 20*time.Second, "one tunnel, agreed on by both", func() bool {
			a, b := g.status("vpn1"), hub.status("vpn1")
			if len(a.SAs) != 1 || len(b.SAs) != 1 || a.SAs[0].Status != "established" || b.SAs[0].Status != "established" ||
				a.SAs[0].SPIi != b.SAs[0].SPIi || len(g.children("vpn1")) != 1 || len(hub.children("vpn1")) != 1 {
				return false
			}
			dir = a.SAs[0].Direction
			return true
		})
		s.pingBoth()
		return dir
	}
	stands()
	flip := func(mode string) (spi string) {
		t.Helper()
		before := g.status("vpn1").SAs[0]
		child := g.children("vpn1")[0]
		conf.phase1 = []entry{toPeer("auto-negotiate enable", "passive-mode "+mode)}
		if mode == "enable" {
			conf.phase1 = []entry{toPeer("passive-mode enable")}
		}
		g.reload(conf)
		eventually(t, 10*time.Second, "the old SAs are gone from both", func() bool {
			for _, x := range []*gateway{g, hub} {
				for _, sa := range x.status("vpn1").SAs {
					if sa.SPIi == before.SPIi {
						return false
					}
				}
				for _, c := range x.children("vpn1") {
					if c.SPIIn == child.SPIIn || c.SPIOut == child.SPIIn {
						return false
					}
				}
			}
			return true
		})
		wantDeletes(t, wan, keys, before.SPIi, child.SPIIn)
		return before.SPIi
	}
	flip("enable")
	if dir := stands(); dir != "responder" {
		t.Errorf("passive, and yet %s", dir)
	}
	if _, err := g.cli("diagnose vpn tunnel up net vpn1"); err == nil {
		t.Error("a passive gateway was told to begin, and did not refuse")
	}
	flip("disable")
	stands()
	g.stop()
	hub.stop()
}

// wantDeletes wants DELETE payloads of ours for an IKE SA and one of its Child
// SAs, as tshark reads them.
func wantDeletes(t *testing.T, wan *tap, keyLog, spiI, espSPI string) {
	t.Helper()
	ike, esp := 0, 0
	eventually(t, 10*time.Second, "DELETE for Child and IKE SA on the wire", func() bool {
		ike, esp = 0, 0
		for _, d := range wan.deletes(keyLog, gwWAN) {
			switch {
			case d.ispi != spiI:
			case d.protocol == "1":
				ike++
			case d.protocol == "3" && d.spi == espSPI:
				esp++
			}
		}
		return ike > 0 && esp > 0
	})
}
