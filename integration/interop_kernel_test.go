package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// kernelConfs are a gateway and a charon on kernel ESP joined by two Child SAs, IPv4 and
// IPv6, over one outer family; the gateway makes no UDP of it.
func kernelConfs(outer int, esn string) (gwConf, conn) {
	remote, version, local, theirs := "remote-gw "+peerWAN, "4", peerWAN, gwWAN
	if outer == 6 {
		remote, version, local, theirs = "remote-gw6 "+peerWAN6, "6", peerWAN6, gwWAN6
	}
	proposal := "aes128gcm16-x25519-noesn"
	if esn == "require" {
		proposal = "aes128gcm16-x25519-esn"
	}
	gw := gwConf{
		phase1: []entry{{"vpn1", []string{"interface wan0", "ip-version " + version, remote, "psksecret \"" + psk + "\"",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "nattraversal disable", "auto-negotiate disable", "dpd disable", "esn " + esn}}},
		phase2: []entry{netPhase2(), {"net6", []string{"phase1name vpn1", "proposal aes128gcm", "dhgrp 31", "src-addr-type subnet6", "dst-addr-type subnet6",
			"src-subnet6 " + gwNet6, "dst-subnet6 " + peerNet6}}},
		routes: []entry{routeTo(peerNet, "vpn1")},
		more:   "config router static6\n    edit 1\n        set dst " + peerNet6 + "\n        set device vpn1\n    next\nend\n",
	}
	return gw, conn{local: local, remote: theirs, noEncap: true, esp: proposal,
		child: "} net6 {\n local_ts = " + peerNet6 + "\n remote_ts = " + gwNet6 + "\n esp_proposals = " + proposal}
}

const peerNet6, gwNet6 = "2001:db8:a::/64", "2001:db8:b::/64"

// TestKernelESPOfStrongSwan: strongSwan on a Linux kernel's ESP, protocol 50 without UDP,
// which its user-space ESP cannot.
func TestKernelESPOfStrongSwan(t *testing.T) {
	s := guestWire(t)
	all := s.guestCharon()
	for _, outer := range []int{4, 6} {
		for _, esn := range []string{"disable", "require"} {
			s.sub(fmt.Sprintf("over IPv%d, esn %s", outer, esn), func(t *testing.T, s *site) {
				gw, cfg := kernelConfs(outer, esn)
				wan := s.tap("gw", "wan0")
				ch := all.load(t, cfg)
				g := s.gateway("gw", gw)
				if outer == 4 {
					ch.up()
				} else {
					g.must("execute vpn ipsec tunnel up net")
					g.wantUp("vpn1", "initiator")
				}
				if err := ch.Initiate(ch.ctx, "net6", 10*time.Second); err != nil {
					t.Fatal(err)
				}
				s.kernelPings()
				if got := strings.Count(s.must(guestNode, "/sbin/ip", "xfrm", "state"), "flag af-unspec esn"); got != map[string]int{"disable": 0, "require": 4}[esn] {
					t.Errorf("%d SAs of the kernel have extended sequence numbers with esn %s", got, esn)
				}
				s.underTraffic(func() {
					was := g.spis("vpn1")
					for _, child := range []string{"net", "net6"} {
						if err := ch.Rekey(ch.ctx, child, ""); err != nil {
							t.Error(err)
						}
					}
					g.wantOtherSPIs("vpn1", was)
					was = g.spis("vpn1")
					g.must("diagnose vpn ike rekey child name vpn1")
					g.wantOtherSPIs("vpn1", was)
					ike := g.status("vpn1").SAs[0].SPIi
					if err := ch.Rekey(ch.ctx, "", "gw"); err != nil {
						t.Error(err)
					}
					g.wantOtherIKESA("vpn1", ike)
					ike = g.status("vpn1").SAs[0].SPIi
					g.must("diagnose vpn ike rekey ike name vpn1")
					g.wantOtherIKESA("vpn1", ike)
				})
				s.kernelPings()
				wan.onlyKinds(kindIKE, kindESP)
				wan.wantAtLeast(40, kindESP, func(p packet) bool { return p.kind == kindESP })
				ch.down(g)
			})
		}
	}
}

// kernelPings pings both ways through both Child SAs, all at once; the first packets may
// come before the peer has installed an SA.
func (s *site) kernelPings() {
	s.t.Helper()
	ways := [][3]string{{guestNode, peerIn, gwIn}, {"gw", gwIn, peerIn}, {guestNode, peerIn6, gwIn6}, {"gw", gwIn6, peerIn6}}
	lost := make(chan string, len(ways))
	for _, w := range ways {
		go func() {
			out := ""
			ok := holds(10*time.Second, func() (ok bool) {
				var err error
				out, err = s.run(w[0], "ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "2", "-I", w[1], w[2])
				return err == nil && strings.Contains(out, " 0% packet loss")
			})
			if ok {
				out = ""
			}
			lost <- out
		}()
	}
	for range ways {
		if out := <-lost; out != "" {
			s.t.Error(out)
		}
	}
}

// underTraffic does something under a hundred packets a second each way. None is lost.
func (s *site) underTraffic(do func()) {
	s.t.Helper()
	flood := make(chan string, 2)
	for _, way := range [][3]string{{guestNode, peerIn, gwIn}, {"gw", gwIn6, peerIn6}} {
		go func() {
			out, err := s.run(way[0], "ping", "-n", "-q", "-c", "150", "-i", "0.01", "-W", "2", "-I", way[1], way[2])
			flood <- fmt.Sprintf("%s %v", out, err)
		}()
	}
	do()
	for range 2 {
		if out := <-flood; !strings.Contains(out, " 0% packet loss") {
			s.t.Errorf("packets were lost: %s", out)
		}
	}
}

// spis are the inbound SPIs of a tunnel.
func (g *gateway) spis(name string) map[string]bool {
	g.t.Helper()
	spis := map[string]bool{}
	for _, c := range g.children(name) {
		spis[c.SPIIn] = true
	}
	return spis
}

// wantOtherSPIs waits until as many Child SAs stand as before, each of them another one,
// and all of them used.
func (g *gateway) wantOtherSPIs(name string, was map[string]bool) {
	g.t.Helper()
	eventually(g.t, 10*time.Second, fmt.Sprintf("%d other Child SAs of %s", len(was), name), func() bool {
		all := g.children(name)
		for _, c := range all {
			if was[c.SPIIn] || !c.Outbound {
				return false
			}
		}
		return len(all) == len(was)
	})
}

// wantOtherIKESA waits until an IKE SA that was rekeyed has gone.
func (g *gateway) wantOtherIKESA(name, was string) {
	g.t.Helper()
	eventually(g.t, 10*time.Second, "another IKE SA of "+name, func() bool {
		st := g.status(name)
		return len(st.SAs) == 1 && st.SAs[0].SPIi != was && st.SAs[0].Status == "established"
	})
}
