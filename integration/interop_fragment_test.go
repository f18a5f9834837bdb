package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// manySelectors are n addresses behind each end, as firewall addresses and groups of the
// gateway's and as charon's lists. The first of each side is the end's own.
func manySelectors(n int) (conf, local, remote string) {
	var addrs, groups strings.Builder
	lists := [2][]string{}
	for i, side := range []struct{ name, own, net string }{{"here", gwIn, "10.2.1."}, {"there", peerIn, "10.1.1."}} {
		names := ""
		for k := range n {
			addr := side.own
			if k > 0 {
				addr = fmt.Sprint(side.net, 2*k) // no two of them adjacent
			}
			fmt.Fprintf(&addrs, "    edit %s%d\n        set subnet %s/32\n    next\n", side.name, k, addr)
			names += fmt.Sprintf(" %s%d", side.name, k)
			lists[i] = append(lists[i], addr+"/32")
		}
		fmt.Fprintf(&groups, "    edit %s\n        set member%s\n    next\n", side.name, names)
	}
	conf = "config firewall address\n" + addrs.String() + "end\nconfig firewall addrgrp\n" + groups.String() + "end\n"
	return conf, strings.Join(lists[0], ","), strings.Join(lists[1], ",")
}

// holdSelectors gives the peer the addresses of its selectors: without them charon
// installs no routes.
func (s *site) holdSelectors(there string) {
	s.t.Helper()
	for _, a := range strings.Split(there, ",")[1:] {
		if out, err := s.run("peer", "ip", "addr", "add", a, "dev", "lo"); err != nil {
			s.t.Fatal(err, out)
		}
	}
}

// inFragment says whether an IKE message is one of SKF payloads.
func (p packet) inFragment() bool { return len(p.ike) > 28 && p.ike[16] == 53 }

// fragments counts those on the client's wire.
func (p *pair) fragments() (n int) {
	p.t.Helper()
	return p.wan.count(packet.inFragment)
}

// wantInFragments checks that each exchange of a type went in SKF payloads in both
// directions, and that nothing that could be cut was larger than mtu, or cut by IP.
func (tp *tap) wantInFragments(mtu int, exchanges ...byte) {
	tp.t.Helper()
	for _, x := range exchanges {
		for _, addr := range []string{"peer", "gw"} {
			for _, response := range []bool{false, true} {
				src := map[string][]string{"peer": {peerWAN, peerWAN6}, "gw": {gwWAN, gwWAN6}}[addr]
				n := tp.count(func(p packet) bool {
					return p.exchange() == x && p.response() == response && p.inFragment() && (from(src[0])(p) || from(src[1])(p))
				})
				whole := tp.count(func(p packet) bool {
					return p.exchange() == x && p.response() == response && !p.inFragment() && (from(src[0])(p) || from(src[1])(p))
				})
				if n == 1 || n > 0 && whole > 0 {
					tp.t.Errorf("exchange %d of %s, response %v: %d fragments, %d whole messages", x, addr, response, n, whole)
				}
			}
		}
		for _, response := range []bool{false, true} {
			n := tp.count(func(p packet) bool { return p.exchange() == x && p.response() == response && p.inFragment() })
			if n < 2 {
				tp.t.Errorf("exchange %d, response %v: %d fragments on the wire", x, response, n)
			}
		}
	}
	for _, p := range tp.packets() {
		size := 20 + 8 + len(p.ike)
		if p.src.Addr().Is6() {
			size += 20
		}
		if p.src.Port() == 4500 {
			size += 4
		}
		// IKE_SA_INIT comes before any keys, so it cannot be cut (RFC 7383 §2.5).
		if p.kind == kindFragment || p.kind == kindIKE && size > mtu && p.exchange() != 34 {
			tp.t.Errorf("%s of %d bytes, at most %d expected: %v → %v", p.kind, size, mtu, p.src, p.dst)
		}
	}
}

// TestFragmentation: IKE_AUTH, rekeys of the Child SA and of the IKE SA in SKF payloads
// (RFC 7383), with strongSwan as the peer, both directions, both families, AEAD and CBC.
func TestFragmentation(t *testing.T) {
	for _, c := range []struct {
		name       string
		initiator  bool
		v6         bool
		phase1     string // proposal
		ike        string // charon's
		mtu, hosts int
	}{
		{"charon initiates, IPv4, AES-GCM", false, false, "aes128gcm-prfsha256", "aes128gcm16-prfsha256", 500, 24},
		{"tandem initiates, IPv4, AES-CBC", true, false, "aes128-sha256", "aes128-sha256", 500, 24},
		{"charon initiates, IPv6, AES-CBC", false, true, "aes128-sha256", "aes128-sha256", 1280, 64},
		{"tandem initiates, IPv6, AES-GCM", true, true, "aes128gcm-prfsha256", "aes128gcm16-prfsha256", 1280, 64},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			conf, here, there := manySelectors(c.hosts)
			s.holdSelectors(there)
			peer := conn{ike: c.ike + "-modp4096", esp: "aes128gcm16-modp4096", localTS: there, remoteTS: here, conn: "fragmentation = yes"}
			phase1 := []string{"proposal " + c.phase1, "dhgrp 16", fmt.Sprint("fragmentation-mtu ", c.mtu)}
			if c.v6 {
				// The path of least capacity that IPv6 allows.
				for _, node := range []string{"gw", "peer"} {
					if out, err := s.run(node, "ip", "link", "set", "wan0", "mtu", "1280"); err != nil {
						t.Fatal(err, out)
					}
				}
				peer.local, peer.remote = peerWAN6, gwWAN6
				phase1 = append(phase1, "ip-version 6", "remote-gw6 "+peerWAN6)
			}
			if c.initiator {
				phase1 = append(phase1, "auto-negotiate enable")
			}
			ch := s.charon("peer", peer, fmt.Sprint("fragment_size = ", c.mtu))
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer(phase1...)}, more: conf,
				phase2: []entry{{"net", []string{"phase1name vpn1", "proposal aes128gcm", "dhgrp 16",
					"src-addr-type name", "dst-addr-type name", "src-name here", "dst-name there"}}},
				routes: []entry{routeTo(peerNet, "vpn1")}})
			direction := "initiator"
			if !c.initiator {
				direction = "responder"
				ch.up()
			}
			g.wantUp("vpn1", direction)
			if child := g.children("vpn1")[0]; len(child.Src) != c.hosts || len(child.Dst) != c.hosts {
				t.Errorf("%d and %d selectors of %d", len(child.Src), len(child.Dst), c.hosts)
			}
			s.wantPing("peer", peerIn, gwIn)
			before := ch.Events()
			g.must("diagnose vpn ike rekey child name vpn1")
			rekeyed := func(what string, n func() int) {
				eventually(t, 20*time.Second, what, func() bool { return n() > 0 })
				s.wantPing("peer", peerIn, gwIn)
			}
			rekeyed("the Child SA is rekeyed", func() int { return ch.Events().ChildRekeys - before.ChildRekeys })
			if err := ch.Rekey(ch.ctx, "", "gw"); err != nil {
				t.Fatal(err)
			}
			rekeyed("the IKE SA is rekeyed", func() int { return ch.Events().IKERekeys - before.IKERekeys })
			ch.one()
			wan.wantInFragments(c.mtu, 35, 36) // IKE_AUTH, CREATE_CHILD_SA
			if n := ch.said(`IKE_AUTH re[a-z]+ 1 \[ EF\(1/`); n == 0 {
				t.Error("charon saw no fragment of IKE_AUTH")
			}
			ch.down(g)
		})
	}
}

// TestFragmentationRefused: neither side sends fragments unless both have said that they can.
func TestFragmentationRefused(t *testing.T) {
	for _, c := range []struct{ name, gw, charon string }{
		{"disabled here", "fragmentation disable", "fragmentation = yes"},
		{"disabled there", "fragmentation enable", "fragmentation = no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			conf, here, there := manySelectors(24)
			s.holdSelectors(there)
			ch := s.charon("peer", conn{localTS: there, remoteTS: here, conn: c.charon}, "fragment_size = 500")
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer(c.gw, "fragmentation-mtu 500")}, more: conf,
				phase2: []entry{{"net", []string{"phase1name vpn1", "proposal aes128gcm", "dhgrp 31",
					"src-addr-type name", "dst-addr-type name", "src-name here", "dst-name there"}}}})
			ch.up()
			g.wantUp("vpn1", "responder")
			if n := wan.count(func(p packet) bool { return p.inFragment() }); n != 0 {
				t.Errorf("%d fragments", n)
			}
			wan.wantAtLeast(2, "IKE_AUTH in one datagram", func(p packet) bool { return p.exchange() == 35 && len(p.ike) > 800 })
			ch.down(g)
		})
	}
}
