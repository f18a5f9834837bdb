package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tandem/internal/lab"
)

var trioMembers = []string{"gw1", "gw2", "gw3"}

const (
	trioServer  = "server"
	trioRouter  = "router"
	trioServing = "10.2.0.100"
	trioSlots   = 8 // of each member
)

func trioClient(k int) string { return "client" + strconv.Itoa(k+1) }
func trioInner(k int) string  { return fmt.Sprintf("10.1.%d.1", k) }

// trio is a farm of three without a router that speaks BGP: which member gets whose
// packets is the test's to say.
//
//	10.1.k.1 client ─ router ─┬─ gw1 ─┬─ lan 10.2.0.0/24 ─ server 10.2.0.100
//	                          ├─ gw2 ─┤
//	                          └─ gw3 ─┘   and each on sync 172.31.1.0/24
//
// A farm of more members is built the same way.
type trio struct {
	*site
	names   []string // of the members
	members map[string]*gateway
	clients []*gateway
	probes  int // that were begun
}

func farmPlan(names []string, clients int) lab.Plan {
	p := lab.Plan{Nodes: []lab.PlanNode{{Name: "sync"}, {Name: "lan"}, {Name: trioServer}, {Name: trioRouter, Forward: true}},
		Cables: []lab.PlanCable{{A: trioServer, AIf: "lan0", B: "lan", BIf: trioServer, AAddrs: []string{trioServing + "/24"}}}}
	for i, m := range names {
		net := func(host int) string { return fmt.Sprintf("198.51.100.%d/30", 4*i+host) }
		p.Nodes = append(p.Nodes, lab.PlanNode{Name: m, Forward: true, Addrs: []string{sharedGW + "/32"}})
		p.Cables = append(p.Cables,
			lab.PlanCable{A: m, AIf: "sync0", B: "sync", BIf: m, AAddrs: []string{fmt.Sprintf("172.31.1.%d/24", i+1)}},
			lab.PlanCable{A: m, AIf: "lan0", B: "lan", BIf: m, AAddrs: []string{fmt.Sprintf("10.2.0.%d/24", i+1)}},
			lab.PlanCable{A: trioRouter, AIf: m, B: m, BIf: "wan0", AAddrs: []string{net(1)}, BAddrs: []string{net(2)}})
		p.Routes = append(p.Routes, lab.PlanRoute{Node: m, Dst: "203.0.113.0/24", Via: net(1)})
	}
	for k := range clients {
		net := func(host int) string { return fmt.Sprintf("203.0.113.%d/30", 4*k+host) }
		p.Nodes = append(p.Nodes, lab.PlanNode{Name: trioClient(k), Forward: true, Addrs: []string{trioInner(k) + "/24"}})
		p.Cables = append(p.Cables, lab.PlanCable{A: trioRouter, AIf: trioClient(k), B: trioClient(k), BIf: "wan0", AAddrs: []string{net(1)}, BAddrs: []string{net(2)}})
		p.Routes = append(p.Routes, lab.PlanRoute{Node: trioClient(k), Dst: sharedGW + "/32", Via: net(1)})
	}
	return p
}

// newTrio starts three members of a build, and waits until they are one farm.
func newTrio(t *testing.T, bin string, clients int) *trio {
	t.Helper()
	return newTrioOf(t, bin, clients, "", func(*trio) {})
}

// newTrioOf is the same with more in the members' configuration, and with something to
// do before they start.
func newTrioOf(t *testing.T, bin string, clients int, more string, before func(*trio)) *trio {
	t.Helper()
	return newFarmOf(t, bin, trioMembers, clients, more, before)
}

func newFarmOf(t *testing.T, bin string, names []string, clients int, more string, before func(*trio)) *trio {
	t.Helper()
	f := &trio{site: build(t, farmPlan(names, clients)), names: names, members: map[string]*gateway{}}
	for _, sw := range []string{"sync", "lan"} {
		f.must(sw, "ip", "link", "add", "br0", "type", "bridge")
		f.must(sw, "ip", "link", "set", "br0", "up")
		for _, port := range append(slices.Clone(names), map[string][]string{"lan": {trioServer}}[sw]...) {
			f.must(sw, "ip", "link", "set", port, "master", "br0")
		}
	}
	if out, err := exec.Command(bin, append([]string{"cluster", "init", "--dir", filepath.Join(f.topo.Dir, "cluster")}, names...)...).CombinedOutput(); err != nil {
		t.Fatalf("cluster init: %v: %s", err, out)
	}
	before(f)
	for i, m := range names {
		f.members[m] = f.node(m, f.memberConf(i)+more)
		f.start(f.members[m], bin)
	}
	f.together()
	for k := range clients {
		text := f.example("client")
		text = strings.ReplaceAll(text, "192.0.2.130", fmt.Sprintf("203.0.113.%d", 4*k+2))
		text = strings.ReplaceAll(text, "src-subnet 10.1.0.0", fmt.Sprintf("src-subnet 10.1.%d.0", k))
		text = strings.ReplaceAll(text, "@DIR@/client", "@DIR@/"+trioClient(k))
		f.clients = append(f.clients, f.node(trioClient(k), text))
	}
	return f
}

func (f *trio) example(name string) string {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(exampleWitness, name+".conf"))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(text)
}

// memberConf is the example's member with other peers and no witness.
func (f *trio) memberConf(i int) string {
	f.t.Helper()
	head, rest, ok := strings.Cut(f.example("gw1"), "    config cluster-peer\n")
	peer, rest, ok2 := strings.Cut(rest, "    end\nend\n")
	if !ok || !ok2 || strings.Count(peer, "edit 1\n") != 1 {
		f.t.Fatal("the example's member is not as expected")
	}
	b := head + "    config cluster-peer\n"
	for j := range f.names {
		if j != i {
			b += strings.NewReplacer("edit 1\n", fmt.Sprintf("edit %d\n", j+1), "172.31.1.2", fmt.Sprintf("172.31.1.%d", j+1)).Replace(peer)
		}
	}
	b = strings.ReplaceAll(b+"    end\nend\n"+rest, "    set witness 172.31.1.9 3\n", "")
	return strings.NewReplacer(`"gw1"`, `"`+f.names[i]+`"`, "/gw1", "/"+f.names[i], "group-member-id 1\n", fmt.Sprintf("group-member-id %d\n", i+1)).Replace(b)
}

func (f *trio) node(name, conf string) *gateway {
	f.t.Helper()
	dir := filepath.Join(f.topo.Dir, name)
	g := &gateway{t: f.t, s: f.site, node: name, conf: dir + ".conf", socket: filepath.Join(dir, "admin.sock")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(g.conf, []byte(strings.ReplaceAll(conf, "@DIR@", f.topo.Dir)), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return g
}

func (f *trio) start(g *gateway, bin string) {
	f.t.Helper()
	var err error
	if g.proc, err = f.topo.Start(g.node, g.node, []string{bin, "run", "--config", g.conf, "--log-format", "json"}, nil); err != nil {
		f.t.Fatal(err)
	}
}

// stop ends a member as an administrator does, and wants that to be clean.
func (f *trio) stop(m string) {
	f.t.Helper()
	if err := stopProcess(f.members[m].proc, 20*time.Second); err != nil {
		f.t.Fatalf("%s: %v", m, err)
	}
}

// toGateway has a client's packets reach a member; toClient the packets for it.
func (f *trio) toGateway(k int, m string) {
	f.t.Helper()
	via := fmt.Sprintf("198.51.100.%d", 4*slices.Index(f.names, m)+2)
	table := strconv.Itoa(100 + k)
	f.must(trioRouter, "ip", "route", "replace", sharedGW+"/32", "via", via, "table", table)
	if out := f.must(trioRouter, "ip", "rule", "show", "iif", trioClient(k)); out == "" {
		f.must(trioRouter, "ip", "rule", "add", "iif", trioClient(k), "lookup", table)
	}
}

func (f *trio) toClient(k int, m string) {
	f.t.Helper()
	f.must(trioServer, "ip", "route", "replace", fmt.Sprintf("10.1.%d.0/24", k), "via", fmt.Sprintf("10.2.0.%d", slices.Index(f.names, m)+1))
}

// trioHA is what these tests read of `get system ha status --json`.
type trioHA struct {
	memberHA
	LogVersion uint32 `json:"log_version"`
	LogMin     uint32 `json:"log_min"`
	LogMax     uint32 `json:"log_max"`
	Rows       []struct {
		Hostname string `json:"hostname"`
		LogMax   uint32 `json:"log_max"`
		Features uint64 `json:"features"`
		State    string `json:"state"`
	} `json:"members"`
	Peers []struct {
		Hostname string `json:"hostname"`
		Stream   uint32 `json:"stream_version"`
		Sent     uint64 `json:"packets_sent"`
	} `json:"peers"`
}

// member waits until a member's status is as wanted.
func (f *trio) member(m string, within time.Duration, what string, ok func(trioHA) bool) {
	f.t.Helper()
	waitStatus(f.members[m], m, within, what, ok)
}

// together waits until the members, or those that are there, are synchronised and own
// all slots between them; all three: each its own.
func (f *trio) together(without ...string) {
	f.t.Helper()
	all := trioSlots * len(f.names)
	for _, m := range f.names {
		if slices.Contains(without, m) {
			continue
		}
		f.member(m, 30*time.Second, "is synchronised", func(h trioHA) bool {
			orphan := slices.ContainsFunc(h.Scopes, func(s memberScope) bool {
				return s.Owner == "" || s.Owner != s.Decided || slices.Contains(without, s.Owner) || len(without) < 2 && len(s.Standbys) == 0
			})
			return h.Synchronised && h.Quorum && len(h.Scopes) == all && len(h.Alarms) == 0 && !orphan && (len(without) > 0 || h.ScopesOwned == trioSlots)
		})
	}
}

// tunnelOwner is a tunnel as a member lists it.
type tunnelOwner struct {
	Name   string `json:"name"`
	Remote string `json:"remote"`
	Role   string `json:"role"`
	SAs    []struct {
		SPIi   string `json:"spi_i"`
		SPIr   string `json:"spi_r"`
		Status string `json:"status"`
	} `json:"ike_sas"`
}

// owners are, for each IKE SA (by its SPIs), the members that call themselves its
// sync-primary, and how many list it at all.
func (f *trio) owners() (owner map[string][]string, listed map[string]int) {
	f.t.Helper()
	owner, listed = map[string][]string{}, map[string]int{}
	for _, m := range f.names {
		var all []tunnelOwner
		f.members[m].decode("diagnose vpn ike gateway list", &all)
		for _, g := range all {
			for _, sa := range g.SAs {
				id := sa.SPIi + "/" + sa.SPIr
				listed[id]++
				if g.Role == "sync-primary" {
					owner[id] = append(owner[id], m)
				}
			}
		}
	}
	return owner, listed
}

// up starts the clients and waits for their tunnels and for traffic.
func (f *trio) up() {
	f.t.Helper()
	for k, c := range f.clients {
		f.start(c, program(f.t))
		f.wantPing(trioClient(k), trioInner(k), trioServing)
	}
}

// ikeSA names a client's only IKE SA, which must be the first it ever made.
func (f *trio) ikeSA(k int) string {
	f.t.Helper()
	for _, g := range f.clients[k].gateways() {
		if g.Name == "gw" && g.Created == 1 && len(g.SAs) == 1 && g.SAs[0].Status == "established" {
			return g.SAs[0].SPIi + "/" + g.SAs[0].SPIr
		}
	}
	f.t.Fatalf("%s does not have its first tunnel: %+v", trioClient(k), f.clients[k].gateways())
	return ""
}

// prober is a ping that goes on.
type prober struct {
	t    *testing.T
	p    *lab.Process
	name string
	lost []uint16 // echo sequence numbers, once it has ended
}

const probeEvery = 20 * time.Millisecond

func (f *trio) probe(node, from, to string) *prober {
	f.t.Helper()
	f.probes++
	name := fmt.Sprintf("probe%d-%s-%s", f.probes, node, to)
	p, err := f.topo.Start(node, name, []string{"ping", "-n", "-i", fmt.Sprint(probeEvery.Seconds()), "-I", from, to}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return &prober{t: f.t, p: p, name: name}
}

var (
	pingSummary = regexp.MustCompile(`(\d+) packets transmitted, \d+ received(?:, \+(\d+) duplicates)?`)
	pingAnswer  = regexp.MustCompile(`icmp_seq=(\d+) ttl=`)
)

// end stops it and says what became of the probes, but for the last: it may be under way
// still. Echo sequence numbers must not have wrapped.
func (p *prober) end() (sent, lost, doubled int) {
	p.t.Helper()
	if err := syscall.Kill(p.p.PID, syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = p.p.Wait(ctx) // a ping that misses an answer does not end with 0
	text, err := os.ReadFile(p.p.LogPath)
	m := pingSummary.FindStringSubmatch(string(text))
	if err != nil || m == nil {
		p.t.Fatalf("%s says nothing: %v: %s", p.name, err, text)
	}
	sent, _ = strconv.Atoi(m[1])
	doubled, _ = strconv.Atoi(m[2])
	answered := map[string]bool{}
	for _, a := range pingAnswer.FindAllStringSubmatch(string(text), -1) {
		answered[a[1]] = true
	}
	delete(answered, m[1])
	for n := 1; n < sent; n++ {
		if !answered[strconv.Itoa(n)] {
			p.t.Logf("%s: probe %d has no answer", p.name, n)
			p.lost = append(p.lost, uint16(n))
		}
	}
	return sent - 1, sent - 1 - len(answered), doubled
}

// echoMessage is one echo message on a wire.
type echoMessage struct {
	from    string
	request bool
	id, seq uint16
}

// echoes counts the echo messages on a wire that carries them in the clear.
func (tp *tap) echoes() map[echoMessage]int {
	tp.t.Helper()
	if err := tp.c.Flush(); err != nil {
		tp.t.Fatal(err)
	}
	all := map[echoMessage]int{}
	_ = lab.ReadCapture(tp.c.Path, func(f lab.Frame) error { // the last may not be whole
		g := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.Default)
		ip, ok := g.NetworkLayer().(*layers.IPv4)
		icmp, ok2 := g.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if ok && ok2 {
			switch icmp.TypeCode.Type() {
			case layers.ICMPv4TypeEchoRequest, layers.ICMPv4TypeEchoReply:
				all[echoMessage{ip.SrcIP.String(), icmp.TypeCode.Type() == layers.ICMPv4TypeEchoRequest, icmp.Id, icmp.Seq}]++
			}
		}
		return nil
	})
	return all
}
