package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
)

// TestRedirect (RFC 5685): a gateway that is drained sends charon to another address, where it
// proves the same identity: in the middle of its tunnel, and when it begins anew.
func TestRedirect(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	s.must("gw", "ip", "addr", "add", gwWAN2+"/24", "dev", "wan0")
	ch := s.charon("peer", conn{remoteID: "gw.test"})
	id := []string{"localid gw.test", "localid-type fqdn"}
	second := toPeer(append(id, "local-gw "+gwWAN2)...)
	second.name = "vpn2"
	g := s.gateway("gw", gwConf{
		phase1: []entry{toPeer(append(id, "local-gw "+gwWAN, "redirect-gateway "+gwWAN+" "+gwWAN2)...), second},
		phase2: []entry{netPhase2(), {"net2", []string{"phase1name vpn2", "proposal aes128gcm", "dhgrp 31", "src-subnet " + gwNet, "dst-subnet " + peerNet}}},
		routes: []entry{routeTo(peerNet, "vpn1")},
	})
	ch.up()
	g.wantUp("vpn1", "responder")
	s.pingBoth()
	if out := g.must("execute ha drain"); !strings.Contains(out, "1 peers were redirected, 0 of them are still here") {
		t.Errorf("drain: %s", out)
	}
	there := func() bool {
		sas := ch.sas()
		return len(sas) == 1 && sas[0].State == "ESTABLISHED" && strings.HasPrefix(sas[0].RemoteHost, gwWAN2)
	}
	eventually(t, 10*time.Second, "charon has followed", there)
	g.wantUp("vpn2", "responder")
	if n := len(g.status("vpn1").SAs); n != 0 {
		t.Errorf("%d IKE SAs are left behind", n)
	}
	if err := ch.Terminate(ch.ctx, "gw"); err != nil {
		t.Fatal(err)
	}
	g.wantNone("vpn2")
	ch.up() // at the first address
	eventually(t, 10*time.Second, "charon is sent away at once", there)
	ch.says(`parsed IKE_SA_INIT response 0 \[ N\(REDIR\) \]`)
	wan.wantAtLeast(1, "IKE_SA_INIT to the second address", func(p packet) bool {
		return p.kind == kindIKE && p.exchange() == byte(message.IKESAInit) && p.dst.Addr() == netip.MustParseAddr(gwWAN2)
	})
	g.must("execute ha drain off")
	ch.down(g)
}

// TestRedirectFollowed: charon sends the gateway, which began, to another address, where charon
// answers, too: the tunnel is made there, and the first one ends.
func TestRedirectFollowed(t *testing.T) {
	t.Parallel()
	s := wire(t)
	s.must("peer", "ip", "addr", "add", peerWAN2+"/24", "dev", "wan0")
	ch := s.charon("peer", conn{local: "%any", id: "peer.test"})
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("redirect enable", "peertype one", "peerid peer.test")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
	s.wantPing("gw", gwIn, peerIn)
	g.wantUp("vpn1", "initiator")
	if err := ch.Redirect(ch.ctx, "gw", peerWAN2); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the gateway has followed", func() bool {
		st := g.status("vpn1")
		return len(st.SAs) == 1 && st.SAs[0].Status == "established" && strings.HasPrefix(st.Remote, peerWAN2+":")
	})
	g.wantOneChild("vpn1")
	s.pingBoth()
	ch.down(g)
}
