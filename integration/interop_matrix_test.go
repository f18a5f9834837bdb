package integration

import (
	"fmt"
	"testing"
)

// TestOuterInnerMatrix: between two Tandems, every family outside and inside,
// every kind of cipher, ESP plain and in UDP, with inner packets of 1,500 bytes
// that must not be fragmented.
func TestOuterInnerMatrix(t *testing.T) {
	for _, outer := range []int{4, 6} {
		for _, inner := range []int{4, 6} {
			for _, suite := range []struct{ name, phase1, phase2 string }{
				{"GCM", "aes128gcm-prfsha256", "aes128gcm"},
				{"ChaCha20", "chacha20poly1305-prfsha256", "chacha20poly1305"},
				{"CBC", "aes256-sha256", "aes256-sha256"},
			} {
				for _, transport := range []string{"ESP", "UDP"} {
					t.Run(fmt.Sprintf("IPv%d in IPv%d, %s, %s", inner, outer, suite.name, transport), func(t *testing.T) {
						t.Parallel()
						s := wire(t)
						wan := s.tap("gw", "wan0")
						a, b := "gw", "peer"
						nets := map[string][2]string{a: {gwNet, gwIn}, b: {peerNet, peerIn}}
						sub, pingSize := "subnet", "1472"
						if inner == 6 {
							nets = map[string][2]string{a: {"2001:db8:b::/64", gwIn6}, b: {"2001:db8:a::/64", peerIn6}}
							sub, pingSize = "subnet6", "1452"
						}
						outerAddr := map[string]string{a: gwWAN, b: peerWAN}
						remote, version := "remote-gw ", "4"
						if outer == 6 {
							outerAddr = map[string]string{a: gwWAN6, b: peerWAN6}
							remote, version = "remote-gw6 ", "6"
						}
						natt := map[string]string{"ESP": "disable", "UDP": "forced"}[transport]
						conf := func(me, you, auto string) gwConf {
							c := gwConf{
								phase1: []entry{{"vpn1", []string{"interface wan0", "ip-version " + version, remote + outerAddr[you], "psksecret \"" + psk + "\"",
									"proposal " + suite.phase1, "dhgrp 31", "nattraversal " + natt, "auto-negotiate " + auto, "dpd disable"}}},
								phase2: []entry{{"net", []string{"phase1name vpn1", "proposal " + suite.phase2, "dhgrp 31",
									"src-addr-type " + sub, "dst-addr-type " + sub, "src-" + sub + " " + nets[me][0], "dst-" + sub + " " + nets[you][0]}}},
							}
							static := "static"
							if inner == 6 {
								static = "static6"
							}
							c.more = fmt.Sprintf("config router %s\n    edit 1\n        set dst %s\n        set device vpn1\n    next\nend\n", static, nets[you][0])
							return c
						}
						ga := s.gateway(a, conf(a, b, "disable"))
						gb := s.gateway(b, conf(b, a, "enable"))
						gb.wantUp("vpn1", "initiator")
						ga.wantUp("vpn1", "responder")
						size := []string{"-M", "do", "-s", pingSize}
						s.wantPing(a, nets[a][1], nets[b][1], size...)
						s.wantPing(b, nets[b][1], nets[a][1], size...)
						kind := map[string]string{"ESP": kindESP, "UDP": kindUDPESP}[transport]
						wan.onlyKinds(kindIKE, kind, kindFragment, kindKeepalive)
						// One more packet than fits in 1,500 bytes outside: seen as fragments.
						wan.wantAtLeast(16, kindFragment, func(p packet) bool { return p.kind == kindFragment })
						s.wantPing(a, nets[a][1], nets[b][1])
						wan.wantAtLeast(8, kind, func(p packet) bool { return p.kind == kind })
						gb.stop()
						ga.wantNone("")
					})
				}
			}
		}
	}
}
