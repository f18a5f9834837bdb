package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/internal/lab"
)

// TestBGP: a farm's members tell FRR by BGP, watched over by BFD, when it may send to
// them.
func TestBGP(t *testing.T) {
	r := newRouted(t)
	one, two, three := routedMembers[0], routedMembers[1], routedMembers[2]
	all := func() bool { return len(r.routes.now()) == len(routedMembers) }
	others := func(m string) {
		t.Helper()
		for _, x := range routedMembers {
			if x != m && !r.sends(x) {
				t.Errorf("the router does not send to %s either: %v", x, r.routes.now())
			}
		}
	}
	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, f) {
			t.FailNow() // each step begins where the one before it ended
		}
	}

	step("a farm begins", func(t *testing.T) {
		for _, m := range routedMembers {
			r.start(m)
		}
		for _, m := range routedMembers {
			r.joins(m, 60*time.Second)
		}
		for _, m := range routedMembers {
			eventually(t, 10*time.Second, m+" says so", func() bool {
				b, ok := r.bgp(m)
				return ok && b.Announced && slices.Equal(b.Prefixes, []string{lab.FarmLoopback.String() + "/32"}) &&
					b.Neighbors[0].Established && b.Neighbors[0].BFD == "Up"
			})
		}
	})

	step("a link that carries nothing", func(t *testing.T) {
		r.must(two, "nft", "add table inet hole; add chain inet hole in { type filter hook input priority -300; }; add chain inet hole out { type filter hook output priority -300; }")
		since := time.Now()
		r.must(two, "nft", "add rule inet hole in iifname port2 drop; add rule inet hole out oifname port2 drop")
		lost := r.leaves(two, since, bfdLoss)
		t.Logf("gone from the router's table %v after the link", lost.Sub(since).Round(time.Millisecond))
		others(two)
		eventually(t, 10*time.Second, "the member says who is lost and why", func() bool {
			_, bfd := r.logged(two, since, `"msg":"BFD neighbor down"`, "detection time expired")
			_, bgp := r.logged(two, since, `"msg":"BGP neighbor down"`)
			return bfd && bgp
		})
		since = time.Now()
		r.must(two, "nft", "delete table inet hole")
		r.joins(two, 30*time.Second)
		t.Logf("back after %v", time.Since(since).Round(time.Millisecond))
	})

	step("a daemon dies", func(t *testing.T) {
		pid, err := r.members[three].proc.Daemon(false)
		if err != nil {
			t.Fatal(err)
		}
		since := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		lost := r.leaves(three, since, bfdLoss)
		t.Logf("gone from the router's table %v after SIGKILL", lost.Sub(since).Round(time.Millisecond))
		others(three)
		r.joins(three, 60*time.Second)
		t.Logf("back, synchronised, after %v", time.Since(since).Round(time.Millisecond))
	})

	step("a member that hears nobody", func(t *testing.T) {
		if err := r.members[three].proc.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "it is gone", func() bool { return !r.sends(three) })
		r.must("sync", "ip", "link", "set", three, "down")
		r.start(three)
		eventually(t, 30*time.Second, "its session with the router stands", func() bool {
			b, ok := r.bgp(three)
			return ok && b.Neighbors[0].Established && b.Neighbors[0].BFD == "Up"
		})
		never(t, 2*time.Second, "the router sends to a member that has not joined", func() bool { return r.sends(three) })
		if h, ok := r.status(three); !ok || h.Synchronised {
			t.Fatalf("it says that it is synchronised: %+v", h)
		}
		r.must("sync", "ip", "link", "set", three, "up")
		r.joins(three, 60*time.Second)
	})

	step("drain", func(t *testing.T) {
		since := time.Now()
		r.members[one].must("execute ha drain")
		r.goesFirst(t, one, since)
		if b, ok := r.bgp(one); !ok || b.Announced || !b.Neighbors[0].Established {
			t.Errorf("a drained member announces, or has no session: %+v", b)
		}
		others(one)
		r.members[one].must("execute ha drain off")
		r.joins(one, 60*time.Second)
	})

	step("SIGTERM", func(t *testing.T) {
		eventually(t, 30*time.Second, "the router sends to all", all)
		since := time.Now()
		if err := stopProcess(r.members[one].proc, 15*time.Second); err != nil {
			t.Errorf("%s: %v", one, err)
		}
		r.goesFirst(t, one, since)
		others(one)
		r.start(one)
		r.joins(one, 60*time.Second)
	})

	step("a survivor without quorum", func(t *testing.T) {
		eventually(t, 30*time.Second, "the router sends to all", all)
		for _, m := range []string{one, two} {
			if err := r.members[m].proc.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 15*time.Second, "it has no quorum", func() bool { h, ok := r.status(three); return ok && !h.Quorum && h.alarm("quorum") != "" })
		eventually(t, bfdLoss, "the router sends to it alone", func() bool { return slices.Equal(r.routes.now(), []string{viaOf(three)}) })
		never(t, time.Second, "its route goes", func() bool { return !r.sends(three) })
	})
}

// goesFirst wants the router to stop sending to a member before the member logs that it
// gives up a slot.
func (r *routed) goesFirst(t *testing.T, m string, since time.Time) {
	t.Helper()
	lost := r.leaves(m, since, bfdLoss)
	gave, ok := r.logged(m, since, "HA state change detected", "secondary")
	if !ok {
		t.Fatalf("%s does not say that it gave up a slot", m)
	}
	t.Logf("gone from the router's table after %v, the first slot moved after %v", lost.Sub(since).Round(time.Millisecond), gave.Sub(since).Round(time.Millisecond))
	if !lost.Before(gave) {
		t.Errorf("%s gave up a slot while the router still sent to it", m)
	}
}

const bgpNet6 = "2001:db8:ff::1/128"

// TestBGPReload: what a reload changes of BGP reaches the router, and no tunnel notices.
func TestBGPReload(t *testing.T) {
	t.Parallel()
	needFRR(t)
	s := wire(t)
	s.startFRR("peer", []string{gwWAN, gwWAN6})
	bgp := func(prefix string) string {
		return fmt.Sprintf("config router bgp\nset as %d\nset router-id %s\nconfig neighbor\nedit %s\nset remote-as %d\nset bfd enable\nnext\n"+
			"edit %s\nset remote-as %d\nset bfd enable\nnext\nend\n"+
			"config network\nedit 1\nset prefix %s\nnext\nend\nconfig network6\nedit 1\nset prefix6 %s\nnext\nend\nend\n",
			routedAS+1, gwWAN, peerWAN, routedAS, peerWAN6, routedAS, prefix, bgpNet6)
	}
	conf := gwConf{phase1: []entry{toPeer()}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}, more: bgp("198.51.100.1/32")}
	gw := s.gateway("gw", conf)
	peer := gwConf{
		phase1: []entry{toPeer("remote-gw "+gwWAN, "auto-negotiate enable")},
		phase2: []entry{netPhase2("src-subnet "+peerNet, "dst-subnet "+gwNet, "auto-negotiate enable")},
		routes: []entry{routeTo(gwNet, "vpn1")},
	}
	s.gateway("peer", peer)
	first, second := s.watchRoute("peer", "198.51.100.1/32"), s.watchRoute("peer", "198.51.100.2/32")
	sixth := s.watchRoute("peer", bgpNet6)
	eventually(t, 20*time.Second, "the router has both routes", func() bool { return slices.Equal(first.now(), []string{gwWAN}) && len(sixth.now()) == 1 })
	eventually(t, 20*time.Second, "BFD is up in IPv4 and IPv6", func() bool {
		out, err := gw.cli("get router info bfd neighbor", "--json")
		return err == nil && strings.Count(out, `"state": "Up"`) == 2
	})
	s.wantPing("peer", peerIn, gwIn)
	sas := func() string {
		t.Helper()
		all := gw.gateways()
		if len(all) != 1 || len(all[0].SAs) != 1 || all[0].Created != 1 {
			t.Fatalf("not the one IKE SA: %+v", all)
		}
		return all[0].SAs[0].SPIi + all[0].SAs[0].SPIr
	}
	before := sas()

	conf.more = bgp("198.51.100.2/32")
	gw.write(conf)
	gw.must("execute reload")
	eventually(t, 20*time.Second, "the router has the other route alone", func() bool { return len(first.now()) == 0 && slices.Equal(second.now(), []string{gwWAN}) })
	s.wantPing("peer", peerIn, gwIn)

	// Nothing of BGP has changed: the session stands.
	since := gw.bgpUp()
	conf.routes = append(conf.routes, entry{"2", []string{"dst 10.99.0.0/24", "blackhole enable"}})
	gw.write(conf)
	gw.must("execute reload")
	if now := gw.bgpUp(); now < since {
		t.Errorf("the session with the router was renewed for nothing: up for %d s, before for %d s", now, since)
	}

	conf.more = ""
	gw.write(conf)
	gw.must("execute reload")
	eventually(t, 20*time.Second, "the router has no route", func() bool { return len(second.now()) == 0 && len(sixth.now()) == 0 })
	s.wantPing("peer", peerIn, gwIn)
	if now := sas(); now != before {
		t.Errorf("the IKE SA was %s and is %s", before, now)
	}
}

// bgpUp is for how many seconds the session with the router has stood.
func (g *gateway) bgpUp() (seconds int64) {
	g.t.Helper()
	var b struct {
		Neighbors []struct {
			Established bool  `json:"established"`
			Since       int64 `json:"since_s"`
		} `json:"neighbors"`
	}
	if err := json.Unmarshal([]byte(g.must("get router info bgp summary", "--json")), &b); err != nil || len(b.Neighbors) != 2 || !b.Neighbors[0].Established {
		g.t.Fatalf("no session with the router: %v, %+v", err, b)
	}
	return b.Neighbors[0].Since
}

// TestBGPPair: a pair's routes are announced by its active gateway, from the address that
// moves with it.
func TestBGPPair(t *testing.T) {
	t.Parallel()
	needFRR(t)
	ids := 0
	p := newPair(t, program(t), func(conf string) string {
		ids++
		return conf + fmt.Sprintf("config router bgp\nset as %d\nset router-id 10.0.0.%d\nconfig neighbor\nedit %s\nset remote-as %d\nset bfd enable\nnext\nend\n"+
			"config network\nedit 1\nset prefix 198.51.100.0/24\nnext\nend\nend\n", routedAS+1, ids+1, peerWAN, routedAS)
	})
	p.startFRR(lab.NodeClient, []string{gwWAN})
	route := p.watchRoute(lab.NodeClient, "198.51.100.0/24")
	announced := func(g *gateway) (b bgpStatus) {
		t.Helper()
		if err := json.Unmarshal([]byte(g.must("get router info bgp summary", "--json")), &b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, fault := range []string{"failover", "SIGKILL"} {
		active, standby := p.synchronised()
		eventually(t, 30*time.Second, "the router has the route from "+active.node, func() bool {
			b := announced(active)
			return len(route.now()) == 1 && b.Announced && b.Neighbors[0].Established && b.Neighbors[0].BFD == "Up"
		})
		if b := announced(standby); b.Announced || b.Reason != "standby" || b.Neighbors[0].Established {
			t.Errorf("%s stands by and says %+v", standby.node, b)
		}
		since := time.Now()
		if fault == "SIGKILL" {
			p.kill(active)
		} else {
			active.must("execute ha failover set", "1")
		}
		p.takenOver(standby)
		eventually(t, 30*time.Second, "the router has the route from "+standby.node, func() bool {
			b := announced(standby)
			return len(route.now()) == 1 && b.Announced && b.Neighbors[0].Established
		})
		t.Logf("%s: the other gateway's route after %v", fault, time.Since(since).Round(time.Millisecond))
		if fault == "failover" {
			standby.must("execute ha failover unset", "1")
		}
	}
}
