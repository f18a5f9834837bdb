package integration

import (
	"strings"
	"testing"
	"time"
)

// TestEAPCharonClient: charon proves itself by each method that the gateway knows, by itself and through
// FreeRADIUS, and gets an address; who it is is what EAP proved.
func TestEAPCharonClient(t *testing.T) {
	for _, c := range []struct {
		name, members, id, local string
		more                     []string
		radius                   bool
		user, says               string
	}{
		{name: "MSCHAPv2", members: "carol", id: "carol", local: "auth = eap-mschapv2", user: "carol", says: "EAP method EAP_MSCHAPV2 succeeded, MSK established"},
		{name: "MSCHAPv2 for another EAP identity", members: "carol", id: "laptop.test", local: "auth = eap-mschapv2\n eap_id = carol",
			more: []string{"eap-identity send-request"}, user: "carol", says: "EAP method EAP_MSCHAPV2 succeeded, MSK established"},
		{name: "TLS", members: "cert", id: "peer.test", local: "auth = eap-tls\n certs = own.pem", user: "CN=peer.test", says: "EAP method EAP_TLS succeeded, MSK established"},
		{name: "MSCHAPv2 by RADIUS", members: "aaa", id: "carol", local: "auth = eap-mschapv2", radius: true, user: "carol", says: "EAP method EAP_MSCHAPV2 succeeded, MSK established"},
		{name: "TLS by RADIUS", members: "aaa", id: "peer.test", local: "auth = eap-tls\n certs = own.pem\n aaa_id = aaa.test", radius: true, user: "peer.test", says: "EAP method EAP_TLS succeeded, MSK established"},
		{name: "the second server", members: "two", id: "carol", local: "auth = eap-mschapv2", radius: true, user: "carol", says: "EAP method EAP_MSCHAPV2 succeeded, MSK established"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			a := newEAPAuthority(t)
			if c.radius {
				s.freeRADIUS("peer", a)
			}
			g := s.gateway("gw", eapGateway(a, c.members, c.more...))
			ch := s.charon("peer", eapClient(a, c.id, c.local))
			ch.up()
			ch.says(c.says)
			st := g.status("users_0")
			if st.PeerID != c.user {
				t.Errorf("the user is %q", st.PeerID)
			}
			s.wantPing("peer", "10.9.1.10", gwIn)
			if log := g.log(); strings.Contains(log, "Wonderland") || strings.Contains(log, radiusSecret) {
				t.Error("a secret is in the log")
			}
			ch.down(g)
		})
	}
}

// TestEAPCharonRefused: a wrong password gets nothing, here and by RADIUS; nor does anybody where no server
// answers. The log says who it was.
func TestEAPCharonRefused(t *testing.T) {
	for _, c := range []struct {
		name, members, reason string
		radius                bool
	}{
		{"wrong password", "carol", "wrong user name or password", false},
		{"rejected by RADIUS", "aaa", "rejects the user", true},
		{"no RADIUS server", "two", "does not answer", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			a := newEAPAuthority(t)
			if c.radius {
				s.freeRADIUS("peer", a)
			}
			g := s.gateway("gw", eapGateway(a, c.members))
			cn := eapClient(a, "carol", "auth = eap-mschapv2")
			cn.secrets = strings.ReplaceAll(cn.secrets, "Wonderland", "Looking-Glass")
			ch := s.charon("peer", cn)
			if err := ch.Initiate(ch.ctx, "net", 8*time.Second); err == nil {
				t.Fatal("a wrong password is right")
			}
			ch.wantNone()
			g.wantNone("")
			if log := g.log(); !strings.Contains(log, c.reason) || !strings.Contains(log, "user=carol") || strings.Contains(log, "Looking-Glass") {
				t.Errorf("log: %s", log)
			}
			if g.stat("ike_authentication_refused") == 0 {
				t.Error("it is not counted")
			}
		})
	}
}

// TestEAPTandemClient: the gateway is a client of charon's, by password, by certificate, and by that alone.
func TestEAPTandemClient(t *testing.T) {
	for _, c := range []struct {
		name, remote string
		more         []string
		says         string
	}{
		{"MSCHAPv2", "auth = eap-mschapv2\n eap_id = %any", []string{"authusr carol", "authpasswd Wonderland"}, "authentication of 'carol' with EAP successful"},
		{"TLS", "auth = eap-tls\n eap_id = %any", []string{"certificate gw", "localid gw.test"}, "authentication of 'gw.test' with EAP successful"},
		{"EAP-only", "auth = eap-tls\n eap_id = %any", []string{"certificate gw", "localid gw.test", "eap-only enable"}, "authentication of 'gw.test' with EAP successful"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := build(t, sitesPlan())
			a := newEAPAuthority(t)
			cn := a.client(conn{}, "peer.test")
			cn.id, cn.remote2 = "peer.test", c.remote
			if c.name == "EAP-only" {
				cn.local2 = "auth = eap-tls\n certs = own.pem"
			}
			cn.secrets = "eap-carol { id = carol\n secret = \"Wonderland\" }"
			ch := s.charon("peer", cn)
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer(append([]string{"authmethod signature", "eap enable", "auto-negotiate enable"}, c.more...)...)},
				phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}, more: a.blocks("gw.test")})
			g.wantUp("vpn1", "initiator")
			ch.says(c.says)
			s.wantPing("host", "10.1.0.10", "10.2.0.10")
		})
	}
}
