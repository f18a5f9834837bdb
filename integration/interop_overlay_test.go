package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// tunnelAddr is the block that gives the tunnel interface of a gateway its address.
func tunnelAddr(name, ip, remote string) string {
	s := fmt.Sprintf("config system interface\n    edit %s\n        set ip %s 255.255.255.255\n", name, ip)
	if remote != "" {
		s += "        set remote-ip " + remote + " 255.255.255.252\n"
	}
	return s + "    next\nend\n"
}

// virtualAddr is what `diagnose vpn ike gateway list` says of a tunnel's two ends.
func (g *gateway) virtualAddr(name string) string {
	m := regexp.MustCompile(`(?m)^virtual-interface-addr: (.*)$`).FindStringSubmatch(g.must("diagnose vpn ike gateway list name " + name))
	if m == nil {
		return ""
	}
	return m[1]
}

// routed says whether the kernel has a host route to an address through a device.
func (s *site) routed(node, addr, dev string) bool {
	s.t.Helper()
	return strings.Contains(s.must(node, "ip", "route", "show", addr+"/32"), "dev "+dev)
}

var anySelectors = []string{"src-subnet 0.0.0.0/0", "dst-subnet 0.0.0.0/0"}

// TestExchangeInterfaceIP: what each of two gateways knows of the other's end of the
// tunnel, with the option off, on on one side and on on both; another address announced
// explicitly, whose route lives as long as phase 1.
func TestExchangeInterfaceIP(t *testing.T) {
	t.Parallel()
	s := wire(t)
	conf := func(remote, own, other string, more ...string) gwConf {
		return gwConf{phase1: []entry{toPeer(append([]string{"remote-gw " + remote}, more...)...)},
			phase2: []entry{netPhase2(anySelectors...)}, more: tunnelAddr("vpn1", own, other)}
	}
	confA := func(more ...string) gwConf { return conf(peerWAN, "1.1.1.1", "1.1.1.2", more...) }
	confB := func(more ...string) gwConf { return conf(gwWAN, "1.1.1.2", "", more...) }
	a, b := s.gateway("gw", confA()), s.gateway("peer", confB())
	const on = "exchange-interface-ip enable"
	for _, c := range []struct {
		name           string
		confA, confB   gwConf
		atA, atB       string
		routeA, routeB string // host routes that were learnt
	}{
		{"off", confA(), confB(), "1.1.1.1 -> 1.1.1.2", "1.1.1.2 -> 0.0.0.0", "", ""},
		{"on at one side", confA(on), confB(), "1.1.1.1 -> 1.1.1.2", "1.1.1.2 -> 0.0.0.0", "", ""},
		{"on at the other side", confA(), confB(on), "1.1.1.1 -> 1.1.1.2", "1.1.1.2 -> 0.0.0.0", "", ""},
		{"on", confA(on), confB(on), "1.1.1.1 -> 1.1.1.2", "1.1.1.2 -> 1.1.1.1", "1.1.1.2", "1.1.1.1"},
		{"an address announced", confA(on, "exchange-ip-addr4 172.16.0.1"), confB(on), "1.1.1.1 -> 1.1.1.2", "1.1.1.2 -> 172.16.0.1", "1.1.1.2", "172.16.0.1"},
	} {
		a.reload(c.confA)
		b.reload(c.confB)
		for _, x := range []struct {
			g         *gateway
			direction string
		}{{a, "initiator"}, {b, "responder"}} { // whoever begins
			for _, x := range []*gateway{a, b} {
				_, _ = x.cli("diagnose vpn ike gateway clear name vpn1") // an error when none stands
			}
			a.wantNone("vpn1")
			b.wantNone("vpn1")
			for _, node := range []string{"gw", "peer"} {
				for _, addr := range []string{c.routeA, c.routeB} {
					if addr != "" && s.routed(node, addr, "vpn1") {
						t.Errorf("%s: a route to %s on %s without a tunnel", c.name, addr, node)
					}
				}
			}
			x.g.must("diagnose vpn tunnel up net vpn1")
			a.wantUp("vpn1", x.direction)
			eventually(t, 10*time.Second, c.name+": one tunnel", func() bool { return len(b.children("vpn1")) == 1 })
			if gotA, gotB := a.virtualAddr("vpn1"), b.virtualAddr("vpn1"); gotA != c.atA || gotB != c.atB {
				t.Errorf("%s, %s: virtual-interface-addr %q and %q, want %q and %q", c.name, x.direction, gotA, gotB, c.atA, c.atB)
			}
		}
		if c.routeA == "" {
			continue
		}
		wantRoutes := func(when string) {
			t.Helper()
			eventually(t, 10*time.Second, c.name+": learnt routes "+when, func() bool {
				return s.routed("gw", c.routeA, "vpn1") && s.routed("peer", c.routeB, "vpn1")
			})
		}
		wantRoutes("while phase 1 stands")
		s.must("gw", "ip", "address", "replace", "172.16.0.1/32", "dev", "lo")
		s.wantPing("peer", "1.1.1.2", c.routeB)
		s.wantPing("gw", c.routeB, c.routeA)
		// Phase 2 is taken down; what asks for the address brings it back.
		a.must("diagnose vpn tunnel down net vpn1")
		eventually(t, 10*time.Second, "phase 2 is down", func() bool { return len(a.children("vpn1"))+len(b.children("vpn1")) == 0 })
		if n, m := len(a.status("vpn1").SAs), len(b.status("vpn1").SAs); n != 1 || m != 1 {
			t.Fatalf("%s: %d and %d IKE SAs without phase 2", c.name, n, m)
		}
		wantRoutes("while phase 1 stands without phase 2")
		if got := b.virtualAddr("vpn1"); got != c.atB {
			t.Errorf("%s, phase 2 down: virtual-interface-addr %q, want %q", c.name, got, c.atB)
		}
		s.wantPing("peer", "1.1.1.2", c.routeB)
	}
	a.must("diagnose vpn ike gateway clear name vpn1")
	a.wantNone("vpn1")
	b.wantNone("vpn1")
	eventually(t, 10*time.Second, "no learnt route outlives phase 1", func() bool {
		return !s.routed("gw", "1.1.1.2", "vpn1") && !s.routed("peer", "172.16.0.1", "vpn1")
	})
	a.stop()
	b.stop()
}

// TestPairExchangeInterfaceIP: both members of a pair route to what the client told of
// its interface; the survivor of a SIGKILL shows it, and nothing begins anew.
func TestPairExchangeInterfaceIP(t *testing.T) {
	t.Parallel()
	p := newPair(t, program(t), func(conf string) string {
		conf = strings.Replace(conf, "        set nattraversal forced\n", "        set nattraversal forced\n        set exchange-interface-ip enable\n        set exchange-ip-addr4 172.16.0.1\n        set network-overlay enable\n        set network-id 7\n", 1)
		conf = strings.Replace(conf, "set dst-subnet 10.1.0.0 255.255.255.0", "set dst-subnet 0.0.0.0 0.0.0.0", 1)
		conf = strings.Replace(conf, "set src-subnet 10.2.0.0 255.255.255.0", "set src-subnet 0.0.0.0 0.0.0.0", 1)
		return conf + tunnelAddr("vpn1", "1.1.1.1", "")
	})
	client := p.gateway(lab.NodeClient, gwConf{
		phase1: []entry{{"gw", []string{"interface wan0", "local-gw " + peerWAN, "remote-gw " + gwWAN, "psksecret \"" + pairSecret + "\"", "proposal aes128gcm-prfsha256",
			"dhgrp 31", "nattraversal forced", "exchange-interface-ip enable", "network-overlay enable", "network-id 7"}}},
		phase2: []entry{{"gw", []string{"phase1name gw", "proposal aes128gcm", "dhgrp 31", "auto-negotiate enable", "src-subnet 0.0.0.0/0", "dst-subnet 0.0.0.0/0"}}},
		routes: []entry{routeTo(gwNet, "gw")}, more: tunnelAddr("gw", "1.1.1.2", "")})
	active, standby := p.synchronised()
	eventually(t, 20*time.Second, "the tunnel stands", func() bool { return len(client.children("gw")) == 1 })
	p.wantPing(lab.NodeHost, hostIn, serverIn)
	inits := p.begun(exchInit)
	check := func(members ...*gateway) {
		t.Helper()
		eventually(t, 10*time.Second, "the client's address is known and routed", func() bool {
			for _, g := range members {
				if g.virtualAddr("vpn1") != "1.1.1.1 -> 1.1.1.2" || !p.routed(g.node, "1.1.1.2", "vpn1") {
					return false
				}
			}
			return client.virtualAddr("gw") == "1.1.1.2 -> 172.16.0.1"
		})
	}
	check(active, standby)
	p.kill(active)
	p.takenOver(standby)
	check(standby)
	p.wantPing(lab.NodeHost, hostIn, serverIn)
	p.synchronised()
	check(active, standby)
	if n := p.begun(exchInit) - inits; n != 0 {
		t.Errorf("%d new IKE_SA_INIT", n)
	}
	client.stop()
	eventually(t, 10*time.Second, "no learnt route outlives phase 1", func() bool {
		return !p.routed(active.node, "1.1.1.2", "vpn1") && !p.routed(standby.node, "1.1.1.2", "vpn1")
	})
}

// TestNetworkID: two tunnels between the same two addresses, with the same identities and
// the same key, told apart by network-id alone. One whose number the other side does not
// have is refused, in words, and the other stays.
func TestNetworkID(t *testing.T) {
	t.Parallel()
	s := wire(t)
	ends := map[string][2]string{"red": {"10.2.3.1", "10.1.3.1"}, "blue": {"10.2.4.1", "10.1.4.1"}} // here, there
	conf := func(remote string, here int, ids map[string]string, order ...string) (c gwConf) {
		for i, name := range order {
			p1 := toPeer("remote-gw "+remote, "network-overlay enable", "network-id "+ids[name])
			p1.name = name
			c.phase1 = append(c.phase1, p1)
			own, other := ends[name][here], ends[name][1-here]
			c.phase2 = append(c.phase2, entry{name + "-net", []string{"phase1name " + name, "proposal aes128gcm", "dhgrp 31",
				"src-subnet " + own + "/32", "dst-subnet " + other + "/32"}})
			c.routes = append(c.routes, entry{fmt.Sprint(i + 1), []string{"dst " + other + "/32", "device " + name}})
		}
		return c
	}
	for name := range ends {
		s.must("gw", "ip", "address", "add", ends[name][0]+"/32", "dev", "lo")
		s.must("peer", "ip", "address", "add", ends[name][1]+"/32", "dev", "lo")
	}
	ids := map[string]string{"red": "3", "blue": "0"}
	a := s.gateway("gw", conf(peerWAN, 0, ids, "red", "blue"))
	b := s.gateway("peer", conf(gwWAN, 1, ids, "blue", "red"))
	up := func(name string) { a.must("diagnose vpn tunnel up " + name + "-net " + name) }
	for _, name := range []string{"red", "blue"} {
		up(name)
		mine := a.wantUp(name, "initiator")
		if theirs := b.wantUp(name, "responder"); theirs.SAs[0].SPIi != mine.SAs[0].SPIi {
			t.Errorf("%s is another tunnel on the other side", name)
		}
		if !strings.Contains(a.must("diagnose vpn ike gateway list name "+name), "\nnetwork-id: "+ids[name]+"\n") {
			t.Errorf("network-id of %s is not shown", name)
		}
	}
	for name := range ends {
		s.wantPing("gw", ends[name][0], ends[name][1])
	}
	red := a.status("red").SAs[0].SPIi
	b.reload(conf(gwWAN, 1, map[string]string{"red": "3", "blue": "9"}, "blue", "red"))
	a.wantNone("blue")
	up("blue")
	eventually(t, 10*time.Second, "the refusal is logged", func() bool {
		return strings.Contains(b.log(), "network-id 0 of the peer: ") && strings.Contains(a.status("blue").Failure, "AUTHENTICATION_FAILED")
	})
	b.wantNone("blue")
	if now := a.status("red"); len(now.SAs) != 1 || now.SAs[0].SPIi != red {
		t.Errorf("red did not stay: %+v", now)
	}
	s.wantPing("gw", ends["red"][0], ends["red"][1])
	b.reload(conf(gwWAN, 1, ids, "red", "blue"))
	up("blue")
	a.wantUp("blue", "initiator")
	s.wantPing("gw", ends["blue"][0], ends["blue"][1])
	a.stop()
	b.stop()
}
