package integration

import (
	"fmt"
	"strings"
	"testing"
)

// libreswanConn is a conn of libreswan's with what every test has in common.
func libreswanConn(name, local, remote, localNet, remoteNet string, more ...string) string {
	return "conn " + name + "\n" + strings.Join(append([]string{"\tauthby=secret", "\tauto=ignore", "\tencapsulation=no", "\tmobike=no",
		"\tike=aes_gcm128-sha2_256-dh31", "\tphase2alg=aes_gcm128;dh31", "\tleftupdown=%disabled",
		"\tleft=" + local, "\tright=" + remote, "\tleftsubnet=" + localNet, "\trightsubnet=" + remoteNet}, more...), "\n") + "\n"
}

// TestKernelESPOfLibreswan: libreswan, with the kernel's ESP, which it always has.
func TestKernelESPOfLibreswan(t *testing.T) {
	s := guestWire(t)
	all := s.libreswan()
	for _, outer := range []int{4, 6} {
		local, remote := peerWAN, gwWAN
		if outer == 6 {
			local, remote = peerWAN6, gwWAN6
		}
		for esn, word := range map[string]string{"disable": "no", "require": "yes"} {
			s.sub(fmt.Sprintf("over IPv%d, esn %s", outer, esn), func(t *testing.T, s *site) {
				gw, _ := kernelConfs(outer, esn)
				wan := s.tap("gw", "wan0")
				g := s.gateway("gw", gw)
				p := all.with(s, libreswanConn("net", local, remote, peerNet, gwNet, "\tesn="+word)+
					libreswanConn("net6", local, remote, peerNet6, gwNet6, "\tesn="+word))
				if outer == 4 {
					p.whack("--name", "net", "--initiate")
					g.wantUp("vpn1", "responder")
				} else {
					g.must("execute vpn ipsec tunnel up net")
					g.wantUp("vpn1", "initiator")
				}
				p.whack("--name", "net6", "--initiate")
				s.kernelPings()
				if got := strings.Count(s.must(guestNode, "/sbin/ip", "xfrm", "state"), "flag af-unspec esn"); got != map[string]int{"disable": 0, "require": 4}[esn] {
					t.Errorf("%d SAs of the kernel have extended sequence numbers with esn %s", got, esn)
				}
				s.underTraffic(func() {
					was := g.spis("vpn1")
					p.whack("--name", "net", "--rekey-ipsec")
					p.whack("--name", "net6", "--rekey-ipsec")
					g.wantOtherSPIs("vpn1", was)
					was = g.spis("vpn1")
					g.must("diagnose vpn ike rekey child name vpn1")
					g.wantOtherSPIs("vpn1", was)
					ike := g.status("vpn1").SAs[0].SPIi
					p.rekeyIKE()
					g.wantOtherIKESA("vpn1", ike)
					ike = g.status("vpn1").SAs[0].SPIi
					g.must("diagnose vpn ike rekey ike name vpn1")
					g.wantOtherIKESA("vpn1", ike)
				})
				s.kernelPings()
				wan.onlyKinds(kindIKE, kindESP)
				p.remove()
				g.wantNone("")
			})
		}
	}
}
