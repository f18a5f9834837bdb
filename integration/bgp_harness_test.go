package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

// routed is three members of examples/farm and a router that learns from them by BGP
// where their shared address is:
//
//	           ┌─ port2 DC1_VM1 port4 ─┐
//	DC_Router ─┼─ port2 DC1_VM2 port4 ─┤ sync 172.31.1.0/24
//	(FRR)      └─ port2 DC1_VM3 port4 ─┘
type routed struct {
	*site
	bin     string
	members map[string]*gateway
	routes  *watchedRoute
}

var routedMembers = lab.Members[:3]

const (
	routedAS = 65000 // the router's; the members' is the next one
	// bfdLoss is the most that a lost link may take to leave the router's table: BFD
	// is done in 300 ms, the rest is a busy machine. BGP alone would take its hold time,
	// 180 s.
	bfdLoss = 3 * time.Second
)

func needFRR(t *testing.T) {
	t.Helper()
	needRoot(t)
	needs.File(t, "/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "/usr/lib/frr/bfdd")
}

// routedWAN is the network between the router (.1) and a member (.254).
func routedWAN(i int) string { return fmt.Sprintf("192.168.%d.", 125+i) }

func memberWAN(i int) string { return routedWAN(i) + "254" }

func bgpPlan() lab.Plan {
	p := lab.Plan{Nodes: []lab.PlanNode{{Name: "sync"}, {Name: lab.NodeRouter, Forward: true}}}
	for i, m := range routedMembers {
		p.Nodes = append(p.Nodes, lab.PlanNode{Name: m, Forward: true, Addrs: []string{lab.FarmLoopback.String() + "/32"}})
		p.Cables = append(p.Cables,
			lab.PlanCable{A: m, AIf: "port4", B: "sync", BIf: m, AAddrs: []string{fmt.Sprintf("172.31.1.%d/24", i+1)}},
			lab.PlanCable{A: m, AIf: "port2", B: lab.NodeRouter, BIf: m, AAddrs: []string{routedWAN(i) + "254/24"}, BAddrs: []string{routedWAN(i) + "1/24"}})
	}
	return p
}

// fourthPeer is what a member of three does not have.
var fourthPeer = regexp.MustCompile(`(?s) +edit \d+\n +set peerip 172\.31\.1\.4\n.*?next\n`)

// newRouted starts the router and prepares the members.
func newRouted(t *testing.T) *routed {
	t.Helper()
	needFRR(t)
	r := &routed{site: build(t, bgpPlan()), bin: program(t), members: map[string]*gateway{}}
	r.must("sync", "ip", "link", "add", "br0", "type", "bridge")
	r.must("sync", "ip", "link", "set", "br0", "up")
	for _, m := range routedMembers {
		r.must("sync", "ip", "link", "set", m, "master", "br0")
	}
	args := append([]string{"cluster", "init", "--dir", filepath.Join(r.topo.Dir, "cluster")}, routedMembers...)
	if out, err := exec.Command(r.bin, args...).CombinedOutput(); err != nil {
		t.Fatalf("cluster init: %v: %s", err, out)
	}
	for i, m := range routedMembers {
		text, err := os.ReadFile(filepath.Join(exampleFarm, m+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		conf := fourthPeer.ReplaceAllString(string(text), "")
		if strings.Count(conf, "set peerip") != len(routedMembers)-1 {
			t.Fatalf("%s has other peers than expected:\n%s", m, conf)
		}
		conf = strings.NewReplacer("@DIR@", r.topo.Dir, "@QUORUM_LOSS@", "continue").Replace(conf) + fmt.Sprintf(`
config system settings
    set bfd-desired-min-tx 100
    set bfd-required-min-rx 100
end
config router bgp
    set as %d
    set router-id %s254
    config neighbor
        edit %s1
            set remote-as %d
            set bfd enable
        next
    end
end
`, routedAS+1, routedWAN(i), routedWAN(i), routedAS)
		dir := filepath.Join(r.topo.Dir, m)
		g := &gateway{t: t, s: r.site, node: m, conf: dir + ".conf", socket: filepath.Join(dir, "admin.sock")}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(g.conf, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		r.members[m] = g
	}
	var neighbors []string
	for i := range routedMembers {
		neighbors = append(neighbors, memberWAN(i))
	}
	r.startFRR(lab.NodeRouter, neighbors)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := r.run(lab.NodeRouter, "ip", "route")
			t.Logf("the router's routes:\n%s\nas seen: %v", out, r.routes.changes)
		}
	})
	r.routes = r.watchRoute(lab.NodeRouter, lab.FarmLoopback.String()+"/32")
	return r
}

// startFRR runs a router that takes every route of its neighbors. FRR's programs give up
// root for a user of their own, so they have a folder of their own.
func (r *site) startFRR(node string, neighbors []string) {
	r.t.Helper()
	dir, err := os.MkdirTemp("", "tandem-frr-")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	frr, err := user.Lookup("frr")
	if err != nil {
		r.t.Fatal(err)
	}
	uid, _ := strconv.Atoi(frr.Uid)
	gid, _ := strconv.Atoi(frr.Gid)
	var conf strings.Builder
	fmt.Fprintf(&conf, "router bgp %d\n bgp router-id 10.0.0.1\n no bgp ebgp-requires-policy\n bgp bestpath as-path multipath-relax\n", routedAS)
	for _, n := range neighbors {
		fmt.Fprintf(&conf, " neighbor %s remote-as %d\n neighbor %s bfd 3 100 100\n", n, routedAS+1, n)
	}
	conf.WriteString(" address-family ipv4 unicast\n  maximum-paths 8\n exit-address-family\n address-family ipv6 unicast\n")
	for _, n := range neighbors {
		if strings.Contains(n, ":") {
			fmt.Fprintf(&conf, "  neighbor %s activate\n", n)
		}
	}
	conf.WriteString(" exit-address-family\n")
	for name, text := range map[string]string{"zebra": "hostname router\n", "bfdd": "\n", "bgpd": conf.String()} {
		path := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		argv := []string{"/usr/lib/frr/" + name, "-f", filepath.Join(dir, name+".conf"), "-i", filepath.Join(dir, name+".pid"),
			"-z", filepath.Join(dir, "zserv.api"), "--vty_socket", dir, "--log", "stdout"}
		if name == "bfdd" {
			argv = append(argv, "--bfdctl", filepath.Join(dir, "bfdd.sock"))
		}
		p, err := r.topo.Start(node, name, argv, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		eventually(r.t, 10*time.Second, name+" runs", func() bool {
			if !p.Running() {
				text, _ := os.ReadFile(p.LogPath)
				r.t.Fatalf("%s ended:\n%s", name, text)
			}
			_, err := os.Stat(filepath.Join(dir, name+".vty"))
			return err == nil
		})
	}
}

func (r *routed) start(m string) {
	r.t.Helper()
	g := r.members[m]
	var err error
	if g.proc, err = r.topo.Start(m, m, []string{r.bin, "run", "--config", g.conf, "--log-format", "json"}, nil); err != nil {
		r.t.Fatal(err)
	}
}

func (r *routed) status(m string) (memberHA, bool) { return status[memberHA](r.members[m]) }

// bgpStatus is what this test reads of `get router info bgp summary --json`.
type bgpStatus struct {
	Announced bool     `json:"announced"`
	Reason    string   `json:"reason"`
	Prefixes  []string `json:"prefixes"`
	Neighbors []struct {
		Established bool   `json:"established"`
		BFD         string `json:"bfd"`
	} `json:"neighbors"`
}

// bgp is what a member says of its neighbor; false while it says nothing.
func (r *routed) bgp(m string) (bgpStatus, bool) {
	b, ok := answer[bgpStatus](r.members[m], "get router info bgp summary")
	return b, ok && len(b.Neighbors) == 1
}

// viaOf is a member's address as the router's next hop.
func viaOf(m string) string { return memberWAN(slices.Index(routedMembers, m)) }

// sends says whether the router sends to a member.
func (r *routed) sends(m string) bool { return slices.Contains(r.routes.now(), viaOf(m)) }

// joins waits until a member is synchronised and the router sends to it; never in
// between may the router do so while the member says that it is not synchronised.
func (r *routed) joins(m string, within time.Duration) {
	r.t.Helper()
	synchronised := false
	eventually(r.t, within, "the router sends to "+m+", which is synchronised", func() bool {
		has := r.sends(m) // before it is asked: what is synchronised now may not have been
		h, said := r.status(m)
		if has && said && !h.Synchronised && !synchronised {
			r.t.Fatalf("the router sends to %s, which is not synchronised", m)
		}
		synchronised = synchronised || said && h.Synchronised
		return synchronised && has
	})
}

// leaves waits until the router no longer sends to a member, and returns when that began.
func (r *routed) leaves(m string, since time.Time, within time.Duration) time.Time {
	r.t.Helper()
	var at time.Time
	eventually(r.t, within, "the router no longer sends to "+m, func() (ok bool) { at, ok = r.routes.lost(viaOf(m), since); return ok })
	return at
}

// logged is when a member first logged a line with these words from a moment on.
func (r *routed) logged(m string, since time.Time, words ...string) (time.Time, bool) {
	text, err := os.ReadFile(r.members[m].proc.LogPath)
	if err != nil {
		r.t.Fatal(err)
	}
next:
	for line := range bytes.Lines(text) {
		var l struct {
			Time time.Time `json:"time"`
		}
		if json.Unmarshal(line, &l) != nil || l.Time.Before(since) {
			continue
		}
		for _, w := range words {
			if !bytes.Contains(line, []byte(w)) {
				continue next
			}
		}
		return l.Time, true
	}
	return time.Time{}, false
}

// watchedRoute is one route of the router's kernel, looked at every few milliseconds.
type watchedRoute struct {
	mu      sync.Mutex
	changes []routeState
}

type routeState struct {
	at  time.Time // seen
	via []string  // next hops
}

// watchRoute looks at a route until the test ends.
func (r *site) watchRoute(node, dst string) *watchedRoute {
	r.t.Helper()
	w := &watchedRoute{}
	var h *netlink.Handle
	if err := r.topo.In(node, func() (err error) { h, err = netlink.NewHandle(); return err }); err != nil {
		r.t.Fatal(err)
	}
	want, err := netlink.ParseIPNet(dst)
	if err != nil {
		r.t.Fatal(err)
	}
	family := netlink.FAMILY_V4
	if want.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			list, err := h.RouteListFiltered(family, &netlink.Route{Dst: want}, netlink.RT_FILTER_DST)
			if err == nil {
				w.saw(time.Now(), list)
			}
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	r.t.Cleanup(func() { close(done); <-ended; h.Close() })
	return w
}

func (w *watchedRoute) saw(now time.Time, list []netlink.Route) {
	var via []string
	for _, x := range list {
		if x.Gw != nil {
			via = append(via, x.Gw.String())
		}
		for _, n := range x.MultiPath {
			via = append(via, n.Gw.String())
		}
	}
	slices.Sort(via)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.changes); n == 0 || !slices.Equal(w.changes[n-1].via, via) {
		w.changes = append(w.changes, routeState{now, via})
	}
}

// now are the present next hops.
func (w *watchedRoute) now() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.changes) == 0 {
		return nil
	}
	return w.changes[len(w.changes)-1].via
}

// lost is when a next hop was first seen missing from a moment on.
func (w *watchedRoute) lost(via string, since time.Time) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.changes {
		if c.at.After(since) && !slices.Contains(c.via, via) {
			return c.at, true
		}
	}
	return time.Time{}, false
}
