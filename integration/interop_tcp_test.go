package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// tcpStatus is what gateway list says of a tunnel's transport.
type tcpStatus struct {
	Name      string `json:"name"`
	Remote    string `json:"remote"`
	Transport string `json:"transport"`
}

// inTCP waits until a tunnel is in TCP, and returns where its peer is.
func (g *gateway) inTCP(name string) (remote string) {
	g.t.Helper()
	eventually(g.t, 10*time.Second, name+" is in TCP", func() bool {
		all, ok := answer[[]tcpStatus](g, "diagnose vpn ike gateway list")
		for _, x := range all {
			if ok && x.Name == name && x.Transport == "tcp" {
				remote = x.Remote
				return true
			}
		}
		return false
	})
	return remote
}

// onlyTCP checks that a node has got neither UDP nor plain ESP since countUDP.
func (s *site) onlyTCP(node string) {
	s.t.Helper()
	if out := s.must(node, "nft", "list", "table", "inet", "seen"); strings.Count(out, "counter packets 0 ") != 3 {
		s.t.Errorf("IKE or ESP not in TCP:\n%s", out)
	}
}

// countUDP counts what arrives at a node in UDP, or drops it.
func (s *site) countUDP(node, verdict string) {
	s.t.Helper()
	s.nft(node, fmt.Sprintf(`table inet seen {
	chain in {
		type filter hook input priority 0
		udp dport 500 counter %[1]s
		udp dport 4500 counter %[1]s
		meta l4proto esp counter %[1]s
	}
}
`, verdict))
}

// TestTCP: IKE and ESP of two Tandems in TCP: pings, TCP within, rekeys by both sides, a
// reload that closes the port again; then a connection that is cut, in which the same SAs
// go on. (charon cannot; libreswan's needs a kernel with espintcp, which none here has.)
func TestTCP(t *testing.T) {
	t.Parallel()
	s := wire(t)
	s.countUDP("gw", "accept")
	server := gwConf{more: "config system settings\n    set ike-tcp-port 4433\nend\n",
		phase1: []entry{dialup("road", "client.test", psk, "transport tcp")}, phase2: []entry{dialupPhase2("net", "road")}}
	client := gwConf{more: "config system settings\n    set ike-tcp-port 4433\nend\n",
		phase1: []entry{{"gw", []string{"interface wan0", "remote-gw " + gwWAN, "psksecret \"" + psk + "\"", "localid client.test", "localid-type fqdn",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "transport tcp", "dpd disable"}}},
		phase2: []entry{{"net", []string{"phase1name gw", "proposal aes128gcm", "dhgrp 31", "src-subnet " + peerNet, "dst-subnet " + gwNet, "auto-negotiate enable"}}},
		routes: []entry{routeTo(gwNet, "gw")}}
	gw := s.gateway("gw", server)
	peer := s.gateway("peer", client)
	gw.wantUp("road_0", "responder")
	s.pingBoth()
	s.wantPing("peer", peerIn, gwIn, "-s", "1400")
	if to := peer.inTCP("gw"); to != gwWAN+":4433" {
		t.Errorf("the client is connected with %s", to)
	}
	first := gw.inTCP("road_0")
	for _, g := range []*gateway{peer, gw} {
		name := map[*gateway]string{peer: "gw", gw: "road_0"}[g]
		g.must("diagnose vpn ike rekey child")
		g.wantOneChild(name)
		s.pingBoth()
		g.must("diagnose vpn ike rekey ike")
		g.wantOneChild(name)
		s.pingBoth()
	}
	s.onlyTCP("gw")
	spis := gw.status("road_0").SAs

	// Somebody on the way resets the connection.
	s.nft("gw", "table inet resets {\n chain in {\n type filter hook input priority 0\n tcp dport 4433 reject with tcp reset\n }\n}\n")
	eventually(t, 10*time.Second, "the client notices", func() bool { _ = s.pings("peer", peerIn, gwIn, 1); return strings.Contains(peer.log(), "TCP connection is lost") })
	s.must("gw", "nft", "delete", "table", "inet", "resets")
	second := ""
	eventually(t, 10*time.Second, "there is another connection", func() bool { second = gw.inTCP("road_0"); return second != first })
	s.pingBoth()
	if now := gw.status("road_0").SAs; len(now) != 1 || len(spis) != 1 || now[0].SPIi != spis[0].SPIi {
		t.Errorf("other IKE SAs than before: %+v, %+v", spis, now)
	}
	peer.must("diagnose vpn ike gateway clear")
	gw.wantNone("")

	// The server goes back to UDP: the port is closed, and the client gets no answer.
	server.phase1[0].sets = append(server.phase1[0].sets, "transport udp")
	gw.reload(server)
	if out := s.must("gw", "ss", "-Hltn"); strings.Contains(out, ":4433") {
		t.Errorf("the port is still open:\n%s", out)
	}
}

// TestTCPFallback: UDP is dropped on the way, so transport auto takes to TCP.
func TestTCPFallback(t *testing.T) {
	t.Parallel()
	s := wire(t)
	s.countUDP("gw", "drop")
	gw := s.gateway("gw", gwConf{phase1: []entry{toPeer("transport auto")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
	peer := s.gateway("peer", gwConf{
		phase1: []entry{{"gw", []string{"interface wan0", "remote-gw " + gwWAN, "psksecret \"" + psk + "\"",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "transport auto", "fallback-tcp-threshold 1", "dpd disable"}}},
		phase2: []entry{{"net", []string{"phase1name gw", "proposal aes128gcm", "dhgrp 31", "src-subnet " + peerNet, "dst-subnet " + gwNet, "auto-negotiate enable"}}},
		routes: []entry{routeTo(gwNet, "gw")}})
	gw.wantUp("vpn1", "responder")
	s.pingBoth()
	peer.inTCP("gw")
	peer.must("diagnose vpn ike gateway clear")
	gw.wantNone("")
}

// TestPairTCPTakeover: the connection dies with the active gateway. The client opens one to
// its successor, and the same SAs go on in it.
func TestPairTCPTakeover(t *testing.T) {
	tcp := func(conf string) string {
		return strings.Replace(conf, "set nattraversal forced", "set transport tcp", 1)
	}
	p := newPair(t, program(t), tcp)
	p.tandemClient(tcp)
	active, _ := p.synchronised()
	eventually(t, 15*time.Second, "the tunnel carries pings", func() bool { return p.pings(lab.NodeHost, hostIn, serverIn, 1) == 1 })
	active, standby := p.synchronised()
	before := p.sas(active)
	p.wantSame()
	p.kill(active)
	p.takenOver(standby)
	at := time.Now()
	eventually(t, 10*time.Second, "the tunnel carries pings again", func() bool { return p.pings(lab.NodeHost, hostIn, serverIn, 1) == 1 })
	t.Logf("pings pass again %v after the takeover was seen", time.Since(at).Round(time.Millisecond))
	if after := p.sas(standby); after != before {
		t.Errorf("other SAs than before:\n%s\n%s", before, after)
	}
	standby.must("diagnose vpn ike rekey child")
	eventually(t, 10*time.Second, "a rekey over the new connection", func() bool {
		return p.sas(standby) != before && p.pings(lab.NodeHost, hostIn, serverIn, 1) == 1
	})
}
