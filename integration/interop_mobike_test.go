package integration

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// peerWAN2 is the address to which whoever roams goes.
const peerWAN2, gwWAN2 = "192.0.2.20", "192.0.2.2"

// roam gives a node another address on its wire, and takes the one it had.
func (s *site) roam(node, from, to string) {
	s.t.Helper()
	s.must(node, "sysctl", "-qw", "net.ipv4.conf.wan0.promote_secondaries=1")
	s.must(node, "ip", "addr", "add", to+"/24", "dev", "wan0")
	s.must(node, "ip", "addr", "del", from+"/24", "dev", "wan0")
}

// exchangesOf counts the requests of a kind on a wire, each message once.
func (tp *tap) exchangesOf(kind byte) int {
	tp.t.Helper()
	seen := map[string]bool{}
	for _, p := range tp.packets() {
		if p.kind == kindIKE && p.exchange() == kind && !p.response() {
			seen[string(p.ike)] = true
		}
	}
	return len(seen)
}

// espBetween is ESP in UDP from one address to another.
func espBetween(src, dst string) func(packet) bool {
	a, b := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	return func(p packet) bool { return p.kind == kindUDPESP && p.src.Addr() == a && p.dst.Addr() == b }
}

// roamed checks that a tunnel went on at another address: traffic both ways, and nothing
// was negotiated for it but what charon has to: its user-space ESP cannot change the
// addresses of an SA, so charon itself rekeys its Child SA after each update.
func roamed(t *testing.T, s *site, wan *tap, inits, creates int, gw, peer string) {
	t.Helper()
	s.pingBoth()
	wan.wantAtLeast(4, "ESP to the gateway", espBetween(peer, gw))
	wan.wantAtLeast(4, "ESP to the peer", espBetween(gw, peer))
	if n, m := wan.exchangesOf(exchInit), wan.exchangesOf(exchCreateChild); n != inits || m != creates {
		t.Errorf("%d IKE_SA_INIT, %d before; %d CREATE_CHILD_SA, %d before", n, inits, m, creates)
	}
}

// TestMobikeClientRoams: charon's address changes, there and back; it says so by itself,
// and the gateway follows, having asked whether it receives there.
func TestMobikeClientRoams(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	g := s.gateway("gw", gwConf{phase1: []entry{dialup("one", "one.test", psk)}, phase2: []entry{dialupPhase2("one-net", "one")}})
	ch := s.charon("peer", conn{local: "%any", id: "one.test", remoteID: gwWAN, mobike: true})
	ch.up()
	g.wantUp("one_0", "responder")
	s.pingBoth()
	inits, creates := wan.exchangesOf(exchInit), wan.exchangesOf(exchCreateChild)
	for i, to := range []string{peerWAN2, peerWAN} {
		from := []string{peerWAN, peerWAN2}[i]
		s.roam("peer", from, to)
		eventually(t, 15*time.Second, "the gateway knows the client at "+to, func() bool {
			return strings.HasPrefix(g.status("one_0").Remote, to+":")
		})
		roamed(t, s, wan, inits, creates+i+1, gwWAN, to)
		if !contains(g.proc.LogPath, "asking whether the peer receives at its new address") {
			t.Error("no return routability check")
		}
	}
	if e := ch.Events(); e.ChildRekeys != 2 || e.IKERekeys != 0 {
		t.Errorf("rekeys at charon: %+v", e)
	}
	// The gateway may rekey the IKE SA: charon stays the one who says what addresses are used.
	g.must("diagnose vpn ike rekey ike name one_0")
	eventually(t, 15*time.Second, "the IKE SA is rekeyed", func() bool { return ch.Events().IKERekeys > 0 })
	creates = wan.exchangesOf(exchCreateChild)
	s.roam("peer", peerWAN, peerWAN2)
	eventually(t, 15*time.Second, "the gateway follows again", func() bool {
		return strings.HasPrefix(g.status("one_0").Remote, peerWAN2+":")
	})
	roamed(t, s, wan, inits, creates+1, gwWAN, peerWAN2)
	ch.down(g)
}

// TestMobikeGatewayRoams: our own address changes, there and back, and charon follows.
func TestMobikeGatewayRoams(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("peer", "wan0")
	ch := s.charon("peer", conn{remote: "%any", remoteID: "gw.test", mobike: true})
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("mobike enable", "localid gw.test", "localid-type fqdn")}, phase2: []entry{netPhase2()},
		routes: []entry{routeTo(peerNet, "vpn1")}})
	s.wantPing("gw", gwIn, peerIn)
	g.wantUp("vpn1", "initiator")
	s.pingBoth()
	inits, creates := wan.exchangesOf(exchInit), wan.exchangesOf(exchCreateChild)
	for i, to := range []string{gwWAN2, gwWAN} {
		s.roam("gw", []string{gwWAN, gwWAN2}[i], to)
		eventually(t, 15*time.Second, "charon knows the gateway at "+to, func() bool {
			sas := ch.sas()
			return len(sas) == 1 && strings.HasPrefix(sas[0].RemoteHost, to)
		})
		roamed(t, s, wan, inits, creates+i+1, to, peerWAN)
	}
	if e := ch.Events(); e.ChildRekeys != 2 || e.IKERekeys != 0 {
		t.Errorf("rekeys at charon: %+v", e)
	}
	ch.down(g)
}

// TestMobikeTandemRoams: two Tandems, plain ESP, the client's address changes while pings
// run: nothing is negotiated, neither IKE SA nor Child SA.
func TestMobikeTandemRoams(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	g := s.gateway("gw", gwConf{phase1: []entry{dialup("one", "one.test", psk, "nattraversal enable")}, phase2: []entry{dialupPhase2("one-net", "one")}})
	c := s.gateway("peer", gwConf{
		phase1: []entry{{"up", []string{"interface wan0", "remote-gw " + gwWAN, "psksecret \"" + psk + "\"", "localid one.test", "localid-type fqdn",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "mobike enable"}}},
		phase2: []entry{{"net", []string{"phase1name up", "proposal aes128gcm", "dhgrp 31", "src-subnet " + peerNet, "dst-subnet " + gwNet}}},
		routes: []entry{routeTo(gwNet, "up")},
	})
	c.wantUp("up", "initiator")
	s.pingBoth()
	out := make(chan string, 1)
	go func() {
		text, _ := s.run("peer", "ping", "-n", "-i", "0.02", "-c", "300", "-I", peerIn, gwIn)
		out <- text
	}()
	wan.wantAtLeast(40, "ESP", func(p packet) bool { return p.kind == kindESP })
	s.roam("peer", peerWAN, peerWAN2)
	text := <-out
	m := regexp.MustCompile(`(\d+) received`).FindStringSubmatch(text)
	if m == nil {
		t.Fatal(text)
	}
	if n, _ := strconv.Atoi(m[1]); n < 280 {
		t.Errorf("%d of 300 pings answered while the client roams", n)
	} else {
		t.Logf("%d of 300 pings answered while the client roams, one every 20 ms", n)
	}
	s.pingBoth()
	wan.wantAtLeast(50, "ESP to the new address", func(p packet) bool {
		return p.kind == kindESP && p.dst.Addr() == netip.MustParseAddr(peerWAN2)
	})
	if n, m := wan.exchangesOf(exchInit), wan.exchangesOf(exchCreateChild); n != 1 || m != 0 {
		t.Errorf("%d IKE_SA_INIT, %d CREATE_CHILD_SA", n, m)
	}
	if !strings.HasPrefix(g.status("one_0").Remote, peerWAN2+":4500") || len(g.children("one_0")) != 1 {
		t.Errorf("the gateway has %+v", g.status("one_0"))
	}
}

// TestPairMobikeTakeover: the client's update has reached the active daemon, its answer and
// the return routability check are lost, and the daemon dies by SIGKILL: the survivor goes
// on with both.
func TestPairMobikeTakeover(t *testing.T) {
	t.Parallel()
	needCharon(t)
	p := newPair(t, program(t), func(conf string) string {
		return strings.Replace(conf, "set nattraversal forced", "set nattraversal forced\n        set mobike enable", 1)
	})
	conf := pairConn()
	conf.local, conf.mobike = "%any", true
	ch := p.charon(lab.NodeClient, conf)
	ch.up()
	p.traffic()
	active, standby := p.synchronised()
	inits, creates := p.begun(exchInit), p.begun(exchCreateChild)
	p.nft(lab.NodeClient, `table inet deaf {
	chain in {
		type filter hook prerouting priority -300
		iifname "wan0" udp sport 4500 udp length > 75 drop # all but the answer to its path probe
	}
}
`)
	p.roam(lab.NodeClient, peerWAN, peerWAN2)
	eventually(t, 15*time.Second, "the update has arrived", func() bool { return contains(active.proc.LogPath, "peer updates its addresses") })
	if strings.Contains(active.must("diagnose vpn ike gateway list name vpn1"), peerWAN2) == false {
		t.Error("the active daemon does not show the new address")
	}
	p.kill(active)
	p.takenOver(standby)
	p.must(lab.NodeClient, "nft", "delete", "table", "inet", "deaf")
	p.traffic()
	p.wan.wantAtLeast(4, "ESP to the client's new address", espBetween(gwWAN, peerWAN2))
	if n, m := p.begun(exchInit), p.begun(exchCreateChild); n != inits || m > creates+1 { // charon's own, see roamed
		t.Errorf("%d new IKE_SA_INIT, %d new CREATE_CHILD_SA", n-inits, m-creates)
	}
	ch.one()
}
