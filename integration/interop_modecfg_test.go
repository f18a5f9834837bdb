package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// assignedOf is what a gateway says it assigned to, or was assigned by, a tunnel's peer.
func (g *gateway) assignedOf(name string) (addrs []string, to string) {
	g.t.Helper()
	var all []struct {
		Name     string   `json:"name"`
		Assigned []string `json:"assigned"`
		To       string   `json:"assigned_to"`
	}
	if err := json.Unmarshal([]byte(g.must("diagnose vpn ike gateway list", "--json")), &all); err != nil {
		g.t.Fatal(err)
	}
	for _, s := range all {
		if s.Name == name {
			return s.Assigned, s.To
		}
	}
	return nil, ""
}

// twoPools hand out addresses to two identities, the second IPv4 only and one at a time.
func twoPools() gwConf {
	return gwConf{
		phase1: []entry{
			dialup("one", "one.test", "secret of one", "mode-cfg enable", "ipv4-start-ip 10.9.1.10", "ipv4-end-ip 10.9.1.20", "ipv4-dns-server1 10.2.0.53",
				"ipv6-start-ip fd00:9::10", "ipv6-end-ip fd00:9::20", "ipv6-dns-server1 fd00::53"),
			dialup("two", "two.test", "secret of two", "mode-cfg enable", "ipv4-start-ip 10.9.2.10", "ipv4-end-ip 10.9.2.10")},
		phase2: []entry{dialupPhase2("one-4", "one"), dialupPhase2("two-4", "two"),
			{"one-6", []string{"phase1name one", "proposal aes128gcm", "dhgrp 31", "src-addr-type subnet6", "src-subnet6 2001:db8:b::/64", "dst-addr-type subnet6", "dst-subnet6 ::/0"}}},
	}
}

// TestAddressesFromTwoPools: strongSwan leases of both families, uses them, and gives them
// back; a pool that has nothing left keeps the IKE SA.
func TestAddressesFromTwoPools(t *testing.T) {
	t.Parallel()
	p := routedPlan()
	i := slices.IndexFunc(p.Nodes, func(n lab.PlanNode) bool { return n.Name == "gw" })
	p.Nodes[i].Addrs = append(p.Nodes[i].Addrs, gwIn6+"/128")
	s := build(t, p)
	g := s.gateway("gw", twoPools())
	resolv := filepath.Join(s.topo.Dir, "resolv.conf")
	resolve := "load = " + lab.CharonPlugins + " resolve\n plugins { resolve { file = " + resolv + " } }"
	c1 := s.charon("c1", conn{local: "198.51.100.10", id: "one.test", remoteID: "-", secret: "secret of one", localTS: "dynamic", conn: "vips = 0.0.0.0, ::",
		child: "} net6 {\n local_ts = dynamic\n remote_ts = 2001:db8:b::/64\n esp_proposals = aes128gcm16-x25519"}, resolve)
	c2 := s.charon("c2", conn{local: "203.0.113.10", id: "two.test", remoteID: "-", secret: "secret of two", localTS: "dynamic", conn: "vips = 0.0.0.0"})
	c1.up()
	if err := c1.Initiate(c1.ctx, "net6", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	c2.up()
	c1.says(`installing new virtual IP 10\.9\.1\.10`)
	c1.says(`installing new virtual IP fd00:9::10`)
	c1.says(`CPRP\([^)]*ADDR [^)]*DNS`)
	eventually(t, 10*time.Second, "strongSwan uses the DNS servers", func() bool {
		text, err := os.ReadFile(resolv)
		return err == nil && strings.Contains(string(text), "nameserver 10.2.0.53") && strings.Contains(string(text), "nameserver fd00::53")
	})
	c2.says(`installing new virtual IP 10\.9\.2\.10`)
	if a, to := g.assignedOf("one_0"); fmt.Sprintf("%v %s", a, to) != "[10.9.1.10 fd00:9::10] peer" {
		t.Errorf("the gateway says %v to %s", a, to)
	}
	s.wantPing("c1", "10.9.1.10", gwIn)
	s.wantPing("c1", "fd00:9::10", gwIn6)
	s.wantPing("c2", "10.9.2.10", gwIn)
	s.wantPing("gw", gwIn, "10.9.1.10")
	s.wantPing("gw", gwIn6, "fd00:9::10")

	// Freed by DELETE, and leased to the same client again.
	if err := c2.Terminate(c2.ctx, "gw"); err != nil {
		t.Error(err)
	}
	g.wantNone("two_0")
	c2.up()
	if a, _ := g.assignedOf("two_0"); fmt.Sprint(a) != "[10.9.2.10]" {
		t.Errorf("the second client has %v", a)
	}
}

// TestExhaustedPool: the IKE SA of who gets no address stands, without a Child SA.
func TestExhaustedPool(t *testing.T) {
	t.Parallel()
	s := build(t, routedPlan())
	conf := gwConf{phase1: []entry{{"pool", []string{"type dynamic", "interface wan0", "psksecret \"secret of all\"", "proposal aes128gcm-prfsha256", "dhgrp 31",
		"nattraversal forced", "dpd disable", "mode-cfg enable", "ipv4-start-ip 10.9.1.10", "ipv4-end-ip 10.9.1.10"}}},
		phase2: []entry{dialupPhase2("pool-4", "pool")}}
	g := s.gateway("gw", conf)
	c1 := s.charon("c1", conn{local: "198.51.100.10", id: "one.test", remoteID: "-", secret: "secret of all", localTS: "dynamic", conn: "vips = 0.0.0.0"})
	c2 := s.charon("c2", conn{local: "203.0.113.10", id: "two.test", remoteID: "-", secret: "secret of all", localTS: "dynamic", conn: "vips = 0.0.0.0"},
		"close_ike_on_child_failure = no")
	c1.up()
	if err := c2.Initiate(c2.ctx, "net", 10*time.Second); err == nil {
		t.Error("the second client has a Child SA")
	}
	c2.says("INT_ADDR_FAIL|INTERNAL_ADDRESS_FAILURE")
	if st := g.status("pool_1"); len(st.SAs) != 1 || st.SAs[0].Status != "established" || !strings.HasPrefix(st.Failure, "INTERNAL_ADDRESS_FAILURE") {
		t.Errorf("the second client's tunnel: %+v", st)
	}
	s.wantPing("c1", "10.9.1.10", gwIn)
	if err := c1.Terminate(c1.ctx, "gw"); err != nil {
		t.Error(err)
	}
	g.wantNone("pool_0")
	_ = c2.Terminate(c2.ctx, "gw")
	g.wantNone("")
	c2.up()
	s.wantPing("c2", "10.9.1.10", gwIn)
}

// TestAddressForTandem: a Tandem asks a Tandem, has the address on its tunnel's interface,
// uses it as its source, and loses it with the IKE SA.
func TestAddressForTandem(t *testing.T) {
	t.Parallel()
	s := build(t, routedPlan())
	g := s.gateway("gw", twoPools())
	c := s.gateway("c1", gwConf{
		phase1: []entry{{"up", []string{"interface wan0", "remote-gw " + gwWAN, "psksecret \"secret of one\"", "localid one.test", "localid-type fqdn",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "dpd disable", "mode-cfg enable"}}},
		phase2: []entry{{"net", []string{"phase1name up", "proposal aes128gcm", "dhgrp 31", "dst-subnet " + gwNet}}},
		routes: []entry{routeTo(gwNet, "up")},
	})
	c.wantUp("up", "initiator")
	eventually(t, 10*time.Second, "the address is on the interface", func() bool {
		out, _ := s.run("c1", "ip", "-4", "-o", "addr", "show", "dev", "up")
		return strings.Contains(out, "10.9.1.10/32")
	})
	if a, to := c.assignedOf("up"); fmt.Sprintf("%v %s", a, to) != "[10.9.1.10] self" {
		t.Errorf("the client says %v to %s", a, to)
	}
	if out := c.must("diagnose vpn ike gateway list"); !strings.Contains(out, "received IPv4 address: 10.9.1.10") || !strings.Contains(out, "received DNS: 10.2.0.53") {
		t.Errorf("the client's list:\n%s", out)
	}
	eventually(t, 10*time.Second, "ping without a source", func() bool {
		_, err := s.run("c1", "ping", "-n", "-q", "-c", "1", "-W", "1", gwIn)
		return err == nil
	})
	if ts := c.children("up")[0].Src; fmt.Sprint(ts) == "" || !strings.Contains(fmt.Sprint(ts), "10.9.1.10") {
		t.Errorf("the client's selectors are %v", ts)
	}
	c.must("execute vpn ipsec tunnel down net up")
	g.must("diagnose vpn ike gateway clear")
	eventually(t, 20*time.Second, "the client has it again", func() bool {
		out, _ := s.run("c1", "ip", "-4", "-o", "addr", "show", "dev", "up")
		return strings.Count(out, "10.9.1.10/32") == 1 && g.status("one_0").Name != ""
	})
}

// TestAddressesOfAPair: the survivor goes on with what the dead node leased; alone it leases
// from its own half, and nothing before both have met.
func TestAddressesOfAPair(t *testing.T) {
	t.Parallel()
	p := newPair(t, program(t), func(conf string) string {
		conf = strings.Replace(conf, "set remote-gw 192.0.2.10", "set type dynamic\n        set mode-cfg enable\n        set ipv4-start-ip 10.1.0.100\n        set ipv4-end-ip 10.1.0.140", 1)
		conf = strings.Replace(conf, "        set auto-negotiate disable\n", "", 1)
		conf = strings.Replace(conf, "        set dst-subnet 10.1.0.0 255.255.255.0\n    next\nend\nconfig router static", "        set dst-subnet 0.0.0.0 0.0.0.0\n    next\nend\nconfig router static", 1)
		return conf
	})
	active, standby := p.synchronised()
	c := conn{remote: gwWAN, remoteID: gwWAN, id: peerWAN, secret: pairSecret, localTS: "dynamic", conn: "vips = 0.0.0.0"}
	ch := p.charon(lab.NodeClient, c)
	ch.up()
	before, _ := active.assignedOf("vpn1_0")
	if len(before) != 1 {
		t.Fatalf("assigned %v", before)
	}
	p.wantPing(lab.NodeClient, before[0], serverIn)
	inits := p.begun(exchInit)
	p.kill(active)
	p.takenOver(standby)
	if after, _ := standby.assignedOf("vpn1_0"); !slices.Equal(before, after) {
		t.Errorf("the survivor says %v, before it was %v", after, before)
	}
	p.wantPing(lab.NodeClient, before[0], serverIn)
	p.synchronised()
	if n := p.begun(exchInit); n != inits {
		t.Errorf("%d IKE_SA_INIT, before the takeover %d", n, inits)
	}
	// Both have met again: the same client has the same address, whoever leases it.
	if err := ch.Terminate(ch.ctx, "gw"); err != nil {
		t.Error(err)
	}
	standby.wantNone("vpn1_0")
	ch.up()
	if again, _ := standby.assignedOf("vpn1_0"); !slices.Equal(before, again) {
		t.Errorf("assigned %v, before it was %v", again, before)
	}
}
