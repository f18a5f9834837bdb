package sim

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tandem/internal/config"
)

// The addresses of the model. The cluster's is shared; client i (from 0) has
// 198.51.100.(10+i), behind a NAT 203.0.113.(10+i), and the networks 10.(1+i).n.0/24
// reached through it, towards 10.200.n.0/24.
var clusterAddr = netip.MustParseAddr("192.0.2.1")

func clientAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}) }
func natAddr(i int) netip.Addr    { return netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)}) }
func siteHost(i, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(1 + i), byte(n), 7})
}
func serverHost(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 200, byte(n), 7}) }

func onOff(b bool) string {
	if b {
		return "enable"
	}
	return "disable"
}

func seconds(d time.Duration) int { return int(max(120*time.Second, d) / time.Second) }

// psk is an example's secret, the same for all.
const psk = "example-only"

// gatewayConfig is the configuration of gateway g (0 or 1).
func (s *Setup) gatewayConfig(g int, passive bool) string {
	var b strings.Builder
	if len(s.VClusters) > 0 {
		s.vclusters(&b, g)
	} else {
		s.onePair(&b, g)
	}
	for i, c := range s.Clients {
		fmt.Fprintf(&b, "config vpn ipsec phase1-interface\nedit \"%s\"\nset interface \"%s\"\nset ike-version 2\nset local-gw %s\n", tunnelName(i), wan(s.realmOf(i)), s.addrOf(i))
		if c.Dialup {
			fmt.Fprintf(&b, "set type dynamic\nset peertype one\nset peerid \"client%d\"\n", i+1)
		} else {
			fmt.Fprintf(&b, "set remote-gw %s\nset peertype any\nset auto-negotiate %s\nset passive-mode %s\n", clientAddr(i), onOff(c.Begins != "client" && !passive), onOff(passive))
		}
		c.phase1(&b, s.IKELife, "on-idle")
		for n := range c.Networks {
			fmt.Fprintf(&b, "config vpn ipsec phase2-interface\nedit \"%s-%d\"\nset phase1name \"%s\"\nset src-subnet 10.200.%d.0/24\nset dst-subnet 10.%d.%d.0/24\n", tunnelName(i), n, tunnelName(i), n, 1+i, n)
			c.phase2(&b, c.GatewayToo, !c.Dialup && c.Begins != "client", passive && !c.Dialup)
		}
	}
	return b.String()
}

// onePair writes how the gateways of a pair without virtual clusters rank.
func (s *Setup) onePair(b *strings.Builder, g int) {
	s.beginHA(b)
	fmt.Fprintf(b, "set priority %d\nset override %s\nset monitor \"wan0\"\nend\n", s.Priority[g], onOff(s.Override))
}

// beginHA writes what every pair's `config system ha` begins with.
func (s *Setup) beginHA(b *strings.Builder) {
	fmt.Fprintf(b, `config system ha
set mode a-p
set group-id 1
set group-name "sim"
set password "example-only"
set hbdev "hb0" 50 "hb1" 50
set hb-interval %d
set hb-interval-in-milliseconds 10ms
set hb-lost-threshold %d
`, s.HBInterval/(10*time.Millisecond), s.Threshold)
}

func tunnelName(i int) string { return fmt.Sprintf("vpn%d", i+1) }

// clientConfig is the configuration of client i (from 0).
func (s *Setup) clientConfig(i int, gateway netip.Addr) string {
	c := s.Clients[i]
	var b strings.Builder
	fmt.Fprintf(&b, "config vpn ipsec phase1-interface\nedit \"gw\"\nset interface \"wan0\"\nset ike-version 2\nset local-gw %s\nset remote-gw %s\nset localid \"client%d\"\nset localid-type fqdn\nset peertype any\nset auto-negotiate %s\n",
		clientAddr(i), gateway, i+1, onOff(c.Begins != "gateway"))
	c.phase1(&b, c.IKELife, c.DPD)
	for n := range c.Networks {
		fmt.Fprintf(&b, "config vpn ipsec phase2-interface\nedit \"net-%d\"\nset phase1name \"gw\"\nset src-subnet 10.%d.%d.0/24\nset dst-subnet 10.200.%d.0/24\n", n, 1+i, n, n)
		c.phase2(&b, c.ChildLife, c.Begins != "gateway", false)
	}
	return b.String()
}

func (c *Client) phase1(b *strings.Builder, life time.Duration, dpd string) {
	fmt.Fprintf(b, "set proposal %s\nset dhgrp %d\nset keylife %d\nset dpd %s\nset dpd-retryinterval 5\nset psksecret %q\n", c.IKESuite, c.Group, seconds(life), dpd, psk)
	if c.Encap {
		b.WriteString("set nattraversal forced\n")
	}
	c.Features.phase1(b)
	b.WriteString("next\nend\n")
}

func (c *Client) phase2(b *strings.Builder, life time.Duration, auto, passive bool) {
	esn := "disable"
	if c.ESN {
		esn = "require"
	}
	fmt.Fprintf(b, "set proposal %s\nset pfs %s\nset esn %s\nset keylifeseconds %d\nset keepalive %s\nset auto-negotiate %s\n", c.Suite, onOff(c.PFS), esn, seconds(life), onOff(!passive), onOff(auto && !passive))
	if c.PFS {
		fmt.Fprintf(b, "set dhgrp %d\n", c.Group)
	}
	b.WriteString("next\nend\n")
}

// load parses a configuration that must be right.
func load(name, text string) *config.Config {
	c, faults := config.Load(name, []byte(text))
	for _, f := range faults {
		if !f.Warning {
			panic("sim: " + f.Error() + "\n" + text)
		}
	}
	cutSmall(c)
	return c
}
