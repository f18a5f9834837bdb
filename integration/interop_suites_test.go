package integration

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestSuites negotiates each suite as the IKE SA's and as the Child SA's with
// PFS: what charon says it selected, traffic, no key exchange in the first Child
// SA, and one in the rekeyed.
func TestSuites(t *testing.T) {
	for _, c := range []struct {
		phase1, phase2, dhgrp string
		ike, esp, group       string // charon's spelling
		ikeText, espText      string // charon's "selected proposal"
	}{
		{"aes128-sha1", "aes128-sha1", "2", "aes128-sha1", "aes128-sha1", "modp1024",
			"AES_CBC_128/HMAC_SHA1_96/PRF_HMAC_SHA1", "AES_CBC_128/HMAC_SHA1_96"},
		{"aes128-sha256", "aes128-sha256", "5", "aes128-sha256", "aes128-sha256", "modp1536",
			"AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256", "AES_CBC_128/HMAC_SHA2_256_128"},
		{"aes256-sha512", "aes256-sha512", "21", "aes256-sha512", "aes256-sha512", "ecp521",
			"AES_CBC_256/HMAC_SHA2_512_256/PRF_HMAC_SHA2_512", "AES_CBC_256/HMAC_SHA2_512_256"},
		{"aes256gcm-prfsha512", "aes256gcm", "21", "aes256gcm16-prfsha512", "aes256gcm16", "ecp521",
			"AES_GCM_16_256/PRF_HMAC_SHA2_512", "AES_GCM_16_256"},
		{"chacha20poly1305-prfsha256", "chacha20poly1305", "31", "chacha20poly1305-prfsha256", "chacha20poly1305", "x25519",
			"CHACHA20_POLY1305/PRF_HMAC_SHA2_256", "CHACHA20_POLY1305"},
		{"aes128gcm-prfsha256", "aes128gcm", "14", "aes128gcm16-prfsha256", "aes128gcm16", "modp2048",
			"AES_GCM_16_128/PRF_HMAC_SHA2_256", "AES_GCM_16_128"},
		{"aes256gcm-prfsha384", "aes256gcm", "14", "aes256gcm16-prfsha384", "aes256gcm16", "modp2048",
			"AES_GCM_16_256/PRF_HMAC_SHA2_384", "AES_GCM_16_256"},
		{"aes256-sha256", "aes256-sha256", "14", "aes256-sha256", "aes256-sha256", "modp2048",
			"AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256", "AES_CBC_256/HMAC_SHA2_256_128"},
	} {
		t.Run(c.phase1+" group "+c.dhgrp, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{ike: c.ike + "-" + c.group, esp: c.esp + "-" + c.group})
			g := s.gateway("gw", gwConf{
				phase1: []entry{toPeer("proposal "+c.phase1, "dhgrp "+c.dhgrp)},
				phase2: []entry{netPhase2("proposal "+c.phase2, "dhgrp "+c.dhgrp)},
				routes: []entry{routeTo(peerNet, "vpn1")}})
			ch.up()
			st := g.wantUp("vpn1", "responder")
			if st.SAs[0].Proposal != c.phase1 {
				t.Errorf("diagnose names proposal %q", st.SAs[0].Proposal)
			}
			group := strings.ToUpper(c.group)
			if strings.HasPrefix(c.group, "modp") {
				group = "MODP_" + c.group[4:]
			} else if strings.HasPrefix(c.group, "ecp") {
				group = "ECP_" + c.group[3:]
			} else if c.group == "x25519" {
				group = "CURVE_25519"
			}
			selected := func(text string) string {
				return "selected proposal: " + regexp.QuoteMeta(text) + "\n"
			}
			ch.says(selected("IKE:" + c.ikeText + "/" + group))
			ch.says(selected("ESP:" + c.espText + "/NO_EXT_SEQ"))
			if _, child := ch.one(); child.DH != "" {
				t.Errorf("the first Child SA has a key exchange of its own: %s", child.DH)
			}
			s.pingBoth()

			// Rekeyed by charon, then by the gateway: both with a key exchange.
			for i, by := range []string{"charon", "tandem"} {
				_, old := ch.one()
				if by == "charon" {
					if err := ch.Rekey(ch.ctx, "net", ""); err != nil {
						t.Fatal(err)
					}
				} else {
					g.must("diagnose vpn ike rekey child vpn1")
				}
				eventually(t, 10*time.Second, "Child SA rekeyed by "+by, func() bool { return ch.Events().ChildRekeys == i+1 })
				g.wantOneChild("vpn1")
				_, now := ch.one()
				if now.SPIIn == old.SPIIn || now.SPIOut == old.SPIOut || now.DH != group {
					t.Errorf("rekeyed by %s: %+v after %+v, group %s expected", by, now, old, group)
				}
				s.pingBoth()
			}
			ch.says(selected("ESP:" + c.espText + "/" + group + "/NO_EXT_SEQ"))
			wan.onlyKinds(kindIKE, kindUDPESP, kindKeepalive)
			ch.down(g)
		})
	}
}
