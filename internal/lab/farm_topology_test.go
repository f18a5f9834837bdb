package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/internal/needs"
	"tandem/internal/testkit"
)

func buildFarmTest(t *testing.T, f FarmSetup) *Topology {
	t.Helper()
	needs.Root(t)
	topo, err := BuildFarm("", f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	})
	return topo
}

func smallFarm() FarmSetup {
	f := defaultFarm()
	f.Charon, f.PerCharon, f.Tandem, f.Processes = 1, 2, 30, 2
	return f
}

func TestFarmSetup(t *testing.T) {
	f := defaultFarm()
	if err := f.check(); err != nil || f.Clients() != 200 {
		t.Fatalf("%d clients: %v", f.Clients(), err)
	}
	all := f.tunnels()
	if len(all) != 200 || all[0].Outer.String() != "192.168.1.2" || all[0].Net.String() != "10.10.1.0/24" || !all[15].Charon || all[16].Charon {
		t.Errorf("%+v", all[:17])
	}
	f.Tandem, f.Processes = 700, 4
	seen := map[netip.Addr]bool{}
	for _, x := range f.tunnels() {
		for _, a := range []netip.Addr{x.Outer, x.Host, x.Server, x.Net.Addr()} {
			if seen[a] {
				t.Fatalf("%v twice", a)
			}
			seen[a] = true
		}
		if !x.Net.Contains(x.Host) || !netip.MustParsePrefix(farmServers).Contains(x.Server) {
			t.Errorf("%+v", x)
		}
	}
	f.allTandem()
	if f.Charon != 0 || f.Clients() != 716 || f.Processes != 8 {
		t.Errorf("%+v", f)
	}
	for name, bad := range map[string]func(*FarmSetup){
		"nobody":   func(f *FarmSetup) { f.Charon, f.Tandem = 0, 0 },
		"too many": func(f *FarmSetup) { f.Tandem = 1600 },
		"full":     func(f *FarmSetup) { f.Tandem, f.Processes = 600, 2 },
		"all sync": func(f *FarmSetup) { f.Sync = 4 },
		"times":    func(f *FarmSetup) { f.MoveMin = time.Second },
	} {
		f := defaultFarm()
		bad(&f)
		if f.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// spread sends one datagram from each client's address and says which member got it.
func spread(t *testing.T, topo *Topology, f FarmSetup) map[netip.Addr]string {
	t.Helper()
	got := map[netip.Addr]string{}
	conns := map[string]*net.UDPConn{}
	for _, m := range Members {
		err := topo.In(m, func() (err error) {
			conns[m], err = net.ListenUDP("udp4", &net.UDPAddr{IP: FarmLoopback.AsSlice(), Port: portNATT})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conns[m].Close()
	}
	tunnels := f.tunnels()
	for _, x := range tunnels {
		err := topo.In(x.Node, func() error {
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: x.Outer.AsSlice(), Port: portNATT}, &net.UDPAddr{IP: FarmLoopback.AsSlice(), Port: portNATT})
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(2 * time.Second)
	for _, m := range Members {
		for len(got) < len(tunnels) {
			_ = conns[m].SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, from, err := conns[m].ReadFromUDPAddrPort(make([]byte, 16))
			if err != nil {
				break
			}
			got[from.Addr()] = m
		}
		if time.Now().After(deadline) {
			break
		}
	}
	return got
}

func perMember(got map[netip.Addr]string) map[string]int {
	n := map[string]int{}
	for _, m := range got {
		n[m]++
	}
	return n
}

// TestFarmSpreads: the router spreads the clients over the members with fgsp-sync
// and nobody else, and moves those that a change concerns.
func TestFarmSpreads(t *testing.T) {
	f := smallFarm()
	topo := buildFarmTest(t, f)
	before := spread(t, topo, f)
	n := perMember(before)
	if len(before) != f.Clients() || n["DC1_VM1"] < 3 || n["DC1_VM2"] < 3 || n["DC1_VM3"] < 3 || n["DC1_VM4"] != 0 {
		t.Fatalf("%d of %d clients: %v", len(before), f.Clients(), n)
	}
	r := newStaticRouting(topo, f)
	if err := r.rehash(nil); err != nil {
		t.Fatal(err)
	}
	after := spread(t, topo, f)
	moved := 0
	for a, m := range after {
		if before[a] != m {
			moved++
		}
	}
	if len(after) != f.Clients() || moved < f.Clients()/2 {
		t.Errorf("another order moved %d of %d clients", moved, len(after))
	}
	at := time.Now()
	when, ok := <-r.lost("DC1_VM2", at)
	if d := when.Sub(at); !ok || d < f.MoveMin || d > f.MoveMax+50*time.Millisecond {
		t.Errorf("the router moved after %v (%v)", d, ok)
	}
	if n := perMember(spread(t, topo, f)); n["DC1_VM2"] != 0 || n["DC1_VM1"]+n["DC1_VM3"] != f.Clients() {
		t.Errorf("without the second member: %v", n)
	}
	if _, ok := <-r.lost("DC1_VM2", time.Now()); ok {
		t.Error("it moved twice")
	}
	if err := r.back("DC1_VM2"); err != nil {
		t.Fatal(err)
	}
	if n := perMember(spread(t, topo, f)); n["DC1_VM2"] < 3 {
		t.Errorf("the member that is back: %v", n)
	}
	var why []string
	for _, c := range r.changes() {
		why = append(why, c.why)
	}
	if !slices.Equal(why, []string{"rehash", "fault", "rejoin"}) || r.close() != nil {
		t.Errorf("%v", why)
	}
}

// TestFarmCuts: a cut member is seen by nobody, and its neighbours' links stay up.
func TestFarmCuts(t *testing.T) {
	f := smallFarm()
	topo := buildFarmTest(t, f)
	testkit.Within(t, 3*time.Second, "the router reaches the first member", func() bool { return reaches(topo, NodeRouter, "192.168.125.254") })
	testkit.Within(t, 3*time.Second, "members reach each other", func() bool { return reaches(topo, "DC1_VM2", "172.31.1.1") })
	if err := topo.CutSync("DC1_VM1"); err != nil {
		t.Fatal(err)
	}
	if reaches(topo, "DC1_VM2", "172.31.1.1") || !reaches(topo, NodeRouter, "192.168.125.254") {
		t.Error("only the sync network is to be cut")
	}
	if err := topo.JoinSync("DC1_VM1"); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 3*time.Second, "members reach each other again", func() bool { return reaches(topo, "DC1_VM2", "172.31.1.1") })
	if err := topo.CutNode("DC1_VM1"); err != nil {
		t.Fatal(err)
	}
	if reaches(topo, NodeRouter, "192.168.125.254") || reaches(topo, NodeLANRouter, "172.31.125.254") {
		t.Error("a cut member is reached")
	}
	for _, n := range []string{NodeRouter, NodeLANRouter} {
		if l, err := topo.link(n, "DC1_VM1"); err != nil || l.Attrs().OperState.String() != "up" {
			t.Errorf("%s notices the cut by itself: %v", n, err)
		}
	}
	if err := topo.RestoreNode("DC1_VM1"); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 3*time.Second, "the router reaches it again", func() bool { return reaches(topo, NodeRouter, "192.168.125.254") })
}

// TestFlows: probes of many flows, each way by itself, over a network without any
// tunnel: routes take their place.
func TestFlows(t *testing.T) {
	f := smallFarm()
	topo := buildFarmTest(t, f)
	tunnels := f.tunnels()
	// Clients → first member → servers, and back the same way.
	for k, n := range f.clientNodes() {
		router := fmt.Sprintf("192.168.%d.1/24", k+1)
		if err := topo.route(n, farmServers, router); err != nil {
			t.Fatal(err)
		}
		for _, x := range tunnels {
			if x.Node == n {
				for node, via := range map[string]string{NodeRouter: x.Outer.String() + "/24", "DC1_VM1": "192.168.125.1/24"} {
					if err := topo.route(node, x.Net.String(), via); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if err := topo.route(NodeRouter, farmServers, "192.168.125.254/24"); err != nil {
		t.Fatal(err)
	}
	if err := topo.setLANRoutes(&f, []string{"DC1_VM1"}); err != nil {
		t.Fatal(err)
	}
	p, err := topo.StartFlows(tunnels, NodeLANRouter, 20*time.Millisecond, 0)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, 5*time.Second, "every flow carries", func() bool { return p.Silent(20) == 0 })
	flows := p.Stop(100 * time.Millisecond)
	for i, x := range flows {
		if x.Client != tunnels[i].Host || x.Up.From != tunnels[i].Node || x.Down.From != NodeLANRouter || x.Up.To != NodeLANRouter || x.Down.To != tunnels[i].Node {
			t.Fatalf("flow %d: %s→%s, %s→%s", i, x.Up.From, x.Up.To, x.Down.From, x.Down.To)
		}
		for _, s := range []Stream{x.Up, x.Down} {
			lost, doubled := lostAndDoubled(s.Sent, s.Arrivals)
			if s.Sent < 20 || doubled != 0 || lost > 5 { // neighbours were unknown at first
				t.Errorf("flow %d, %s→%s: %d sent, %d lost, %d doubled", i, s.From, s.To, s.Sent, lost, doubled)
			}
		}
	}
}
