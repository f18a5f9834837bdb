package integration

import (
	"strings"
	"testing"
	"time"
)

// TestKernelPeer: what strongSwan can do on a kernel's ESP and not with its own.
func TestKernelPeer(t *testing.T) {
	s := guestWire(t)
	all := s.guestCharon()
	plain := func(more ...string) entry { return toPeer(append([]string{"nattraversal disable"}, more...)...) }
	start := func(s *site, phase1, phase2 entry, c conn) (*gateway, *charon) {
		c.noEncap = true
		ch := all.load(s.t, c)
		return s.gateway("gw", gwConf{phase1: []entry{phase1}, phase2: []entry{phase2}, routes: []entry{routeTo(peerNet, "vpn1")}}), ch
	}

	for _, suite := range [][2]string{{"aes256gcm", "aes256gcm16"}, {"chacha20poly1305", "chacha20poly1305"},
		{"aes256-sha256", "aes256-sha256"}, {"aes256-sha512", "aes256-sha512"}, {"aes128-sha1", "aes128-sha1"}} {
		s.sub("suite "+suite[0], func(t *testing.T, s *site) {
			wan := s.tap("gw", "wan0")
			g, ch := start(s, plain(), netPhase2("proposal "+suite[0]), conn{esp: suite[1] + "-x25519"})
			ch.up()
			s.pingBoth()
			wan.onlyKinds(kindIKE, kindESP)
			ch.down(g)
		})
	}

	s.sub("padding against traffic analysis", func(t *testing.T, s *site) {
		// Each of charon's packets is padded to 1,200 bytes; what is delivered is not.
		wan := s.tap("gw", "wan0")
		g, ch := start(s, plain(), netPhase2(), conn{child: "tfc_padding = 1200"})
		ch.up()
		s.pingBoth()
		if n := wan.count(func(p packet) bool { return p.kind == kindESP && from(peerWAN)(p) && p.length > 1200 }); n < 6 {
			t.Errorf("%d padded packets came", n)
		}
		ch.down(g)
	})

	s.sub("lifetime in packets and in bytes", func(t *testing.T, s *site) {
		// The kernel counts, and charon rekeys at what it says.
		for _, limit := range []string{"life_packets = 400\n rekey_packets = 25\n rand_packets = 0", "life_bytes = 100000\n rekey_bytes = 2500\n rand_bytes = 0"} {
			g, ch := start(s, plain(), netPhase2(), conn{child: limit})
			was := ch.Events().ChildRekeys
			ch.up()
			_, first := ch.one()
			if got := s.must("gw", "ping", "-n", "-q", "-c", "60", "-i", "0.02", "-W", "3", "-I", gwIn, peerIn); !strings.Contains(got, " 0% packet loss") {
				t.Errorf("%s: %s", limit, got)
			}
			eventually(t, 10*time.Second, "rekeyed: "+limit, func() bool { return ch.Events().ChildRekeys > was })
			if _, now := ch.one(); now.SPIIn == first.SPIIn {
				t.Errorf("%s: the same Child SA", limit)
			}
			ch.down(g)
			g.stop()
		}
	})

	s.sub("lifetime in kilobytes of ours", func(t *testing.T, s *site) {
		// The least that can be configured is 5,120 KiB.
		g, ch := start(s, plain(), netPhase2("keylife-type kbs", "keylifekbs 5120"), conn{})
		ch.up()
		was := g.spis("vpn1")
		if out := s.must("gw", "ping", "-n", "-q", "-f", "-c", "4200", "-s", "1250", "-W", "3", "-I", gwIn, peerIn); !strings.Contains(out, " 0% packet loss") {
			t.Log(out)
		}
		g.wantOtherSPIs("vpn1", was)
		s.pingBoth()
		ch.down(g)
	})

	s.sub("a list of selectors", func(t *testing.T, s *site) {
		// Two of each side are asked for; ours are one network and one part of another.
		g, ch := start(s, plain(), netPhase2("dst-subnet 10.1.0.0/25"), conn{localTS: "10.9.0.0/24," + peerNet, remoteTS: gwNet + ",10.8.0.0/16"})
		ch.up()
		if _, c := ch.one(); len(c.LocalTS) != 1 || c.LocalTS[0] != "10.1.0.0/25" || len(c.RemoteTS) != 1 || c.RemoteTS[0] != gwNet {
			t.Errorf("charon's selectors: %+v", c)
		}
		s.pingBoth()
		ch.down(g)
	})

	s.sub("selectors with protocol and port", func(t *testing.T, s *site) {
		g, ch := start(s, plain(), netPhase2("protocol 17", "src-port 7777"), conn{localTS: peerNet + "[udp]", remoteTS: gwNet + "[udp/7777]"})
		ch.up()
		if _, child := ch.one(); len(child.LocalTS) != 1 || !strings.Contains(child.LocalTS[0], "udp") || !strings.Contains(child.RemoteTS[0], "7777") {
			t.Errorf("charon's selectors: %+v", child)
		}
		in := s.socket("gw", gwIn, 7777)
		out, err := s.guest.shell("bash -c 'echo hello >/dev/udp/" + gwIn + "/7777'")
		buf := make([]byte, 100)
		_ = in.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _ := in.Read(buf); string(buf[:n]) != "hello\n" {
			t.Errorf("delivered: %q (%s %v)", buf[:n], out, err)
		}
		before := g.unsent("vpn1")
		if s.pings("gw", gwIn, peerIn, 1) != 0 {
			t.Error("ICMP passes a tunnel for one port of UDP")
		}
		eventually(t, 5*time.Second, "counted", func() bool { return g.unsent("vpn1") > before })
		ch.down(g)
	})

	s.sub("a packet of the kernel's asks for the Child SA", func(t *testing.T, s *site) {
		// TSi and TSr begin with the packet's own addresses (RFC 7296 §2.9).
		g, ch := start(s, plain(), netPhase2(), conn{child: "start_action = trap"})
		s.wantPing(guestNode, peerIn, gwIn)
		ch.says("creating acquire job for policy " + peerIn)
		g.wantUp("vpn1", "responder")
		s.pingBoth()
		ch.down(g)
	})

	s.sub("the peer wants transport mode", func(t *testing.T, s *site) {
		// Declined: tunnel mode stands (RFC 7296 §1.3.1), and charon takes it.
		g, ch := start(s, plain(), netPhase2("src-subnet "+gwWAN+"/32", "dst-subnet "+peerWAN+"/32"),
			conn{child: "mode = transport", localTS: peerWAN + "/32", remoteTS: gwWAN + "/32"})
		ch.up()
		ch.says("USE_TRANSP")
		g.wantUp("vpn1", "responder")
		if out := s.must(guestNode, "/sbin/ip", "xfrm", "state"); strings.Count(out, "mode tunnel") != 2 || strings.Contains(out, "mode transport") {
			t.Errorf("the kernel's SAs: %s", out)
		}
		ch.down(g)
	})

	s.sub("the client's address changes", func(t *testing.T, s *site) {
		// The kernel moves its SAs: no rekey, by nobody.
		wan := s.tap("gw", "wan0")
		g, ch := start(s, dialup("one", "one.test", psk, "nattraversal enable"), dialupPhase2("one-net", "one"), conn{local: "%any", id: "one.test", remoteID: gwWAN, mobike: true})
		was := ch.Events()
		ch.up()
		g.wantUp("one_0", "responder")
		s.pingBoth()
		inits, creates := wan.exchangesOf(exchInit), wan.exchangesOf(exchCreateChild)
		for i, to := range []string{peerWAN2, peerWAN} {
			was := []string{peerWAN, peerWAN2}[i]
			s.batch(guestNode, "addr add "+to+"/24 dev vec0\naddr del "+was+"/24 dev vec0\naddr replace "+to+"/24 dev vec0\nroute replace default via "+gwWAN+"\n")
			eventually(t, 15*time.Second, "the gateway knows the client at "+to, func() bool {
				return strings.HasPrefix(g.status("one_0").Remote, to+":")
			})
			s.pingBoth()
			wan.wantAtLeast(4, "ESP from the client at "+to, func(p packet) bool { return p.kind == kindESP && from(to)(p) })
		}
		if n, m := wan.exchangesOf(exchInit), wan.exchangesOf(exchCreateChild); n != inits || m != creates || ch.Events().ChildRekeys != was.ChildRekeys {
			t.Errorf("%d IKE_SA_INIT, %d before; %d CREATE_CHILD_SA, %d before", n, inits, m, creates)
		}
		ch.down(g)
	})
}
