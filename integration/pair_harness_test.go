package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

const (
	hostIn, serverIn = "10.1.0.10", "10.2.0.10" // behind the client and behind the pair
	pairSecret       = "a secret of gateway and client"
)

// pair is the network of examples/pair with two gateways, made for tests that
// look into it instead of measuring it.
type pair struct {
	*site
	bin string
	gws map[string]*gateway
	wan *tap // at the switch's port towards the client
}

// newPair starts both gateways with the example's configuration, changed by change,
// and waits until they are synchronised.
func newPair(t *testing.T, bin string, change func(conf string) string) *pair {
	t.Helper()
	needRoot(t)
	topo, err := lab.BuildPair("")
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{site: &site{t: t, topo: topo}, bin: bin, gws: map[string]*gateway{}}
	t.Cleanup(func() {
		if t.Failed() {
			p.showLogs()
		}
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	})
	out, err := exec.Command(bin, append([]string{"cluster", "init", "--dir", filepath.Join(topo.Dir, "cluster")}, lab.Gateways...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("cluster init: %v: %s", err, out)
	}
	for _, n := range lab.Gateways {
		text, err := os.ReadFile(filepath.Join(examplePair, n+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		conf := strings.ReplaceAll(string(text), "@DIR@", topo.Dir)
		if change != nil {
			conf = change(conf)
		}
		dir := filepath.Join(topo.Dir, n)
		g := &gateway{t: t, s: p.site, node: n, conf: dir + ".conf", socket: filepath.Join(dir, "admin.sock")}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(g.conf, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		if g.proc, err = topo.Start(n, n, []string{bin, "run", "--config", g.conf, "--log-format", "json"}, nil); err != nil {
			t.Fatal(err)
		}
		p.gws[n] = g
	}
	p.wan = p.tap(lab.NodeWAN, lab.NodeClient)
	p.synchronised()
	return p
}

// ha is what a gateway says of the cluster; false while it says nothing.
func (p *pair) ha(name string) (lab.HAStatus, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h, err := lab.BinaryStatus(p.bin, func(n string) string { return p.gws[n].socket })(ctx, name)
	return h, err == nil
}

// synchronised waits for one owner and an entitled standby and returns both.
func (p *pair) synchronised() (active, standby *gateway) {
	p.t.Helper()
	eventually(p.t, 30*time.Second, "the pair is synchronised", func() bool {
		a, ok1 := p.ha(lab.NodeGW1)
		b, ok2 := p.ha(lab.NodeGW2)
		if !ok1 || !ok2 || !a.Synchronised || !b.Synchronised || a.Epoch != b.Epoch {
			return false
		}
		active, standby = p.gws[lab.NodeGW1], p.gws[lab.NodeGW2]
		if b.Role == lab.RolePrimary {
			active, standby = standby, active
		}
		return (a.Role == lab.RolePrimary) != (b.Role == lab.RolePrimary)
	})
	return active, standby
}

// takenOver waits until the survivor of a dead daemon owns.
func (p *pair) takenOver(survivor *gateway) {
	p.t.Helper()
	eventually(p.t, 10*time.Second, survivor.node+" is primary", func() bool {
		h, ok := p.ha(survivor.node)
		return ok && h.Role == lab.RolePrimary
	})
}

// kill ends the daemon of a gateway with SIGKILL.
func (p *pair) kill(g *gateway) {
	p.t.Helper()
	pid, err := g.proc.Daemon(false)
	if err != nil {
		p.t.Fatal(err)
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := proc.Kill(); err != nil {
		p.t.Fatal(err)
	}
}

// pairConn is the client of the example as charon has it.
func pairConn() conn {
	return conn{remote: gwWAN, remoteID: gwWAN, id: peerWAN, secret: pairSecret}
}

// traffic pings between the hosts behind client and pair, both ways.
func (p *pair) traffic() {
	p.t.Helper()
	p.wantPing(lab.NodeHost, hostIn, serverIn)
	p.wantPing(lab.NodeServer, serverIn, hostIn)
}

// exchange names a request and its response on the wire.
type exchange struct {
	spis [16]byte
	id   uint32
	kind byte
	from bool // by the original initiator of the IKE SA
}

// exchanges are the requests on the client's wire, and whether each was answered.
func (p *pair) exchanges() map[exchange]bool {
	p.t.Helper()
	all := map[exchange]bool{}
	for _, pk := range p.wan.packets() {
		if pk.kind != kindIKE || len(pk.ike) < 28 {
			continue
		}
		byInitiator := pk.ike[19]&0x08 != 0
		if pk.response() {
			byInitiator = !byInitiator
		}
		x := exchange{[16]byte(pk.ike[:16]), be32(pk.ike[20:]), pk.exchange(), byInitiator}
		if x.kind == exchInit {
			clear(x.spis[8:]) // the responder's SPI comes with the response
		}
		all[x] = all[x] || pk.response()
	}
	return all
}

const (
	exchInit        = 34
	exchAuth        = 35
	exchCreateChild = 36
	exchInfo        = 37
)

// begun counts the exchanges of a kind: IKE_SA_INITs tell how often it began anew.
func (p *pair) begun(kind byte) int {
	n := 0
	for x := range p.exchanges() {
		if x.kind == kind {
			n++
		}
	}
	return n
}

// wantAnswered wants every request answered in the end, whoever sent it.
func (p *pair) wantAnswered() {
	p.t.Helper()
	open := ""
	if !holds(15*time.Second, func() bool {
		open = ""
		for x, answered := range p.exchanges() {
			if !answered {
				open += fmt.Sprintf(" exchange %d, message ID %d, SPIs %x;", x.kind, x.id, x.spis)
			}
		}
		return open == ""
	}) {
		p.t.Errorf("requests without an answer:%s", open)
	}
}

// haTunnel is what `diagnose vpn tunnel list --json` says on a member.
type haTunnel struct {
	Name      string `json:"name"`
	Role      string `json:"role"`
	Selectors []struct {
		SAs []struct {
			SPIIn   string `json:"spi_in"`
			SPIOut  string `json:"spi_out"`
			Seqno   uint64 `json:"seqno"`
			Ceiling uint64 `json:"ceiling"`
			Dec     struct {
				Key string `json:"key"`
			} `json:"dec"`
			Enc struct {
				Key string `json:"key"`
			} `json:"enc"`
		} `json:"sas"`
	} `json:"proxyids"`
}

func (p *pair) tunnels(g *gateway) []haTunnel {
	p.t.Helper()
	var all []haTunnel
	if err := json.Unmarshal([]byte(g.must("diagnose vpn tunnel list", "--json", "--show-keys")), &all); err != nil {
		p.t.Fatal(err)
	}
	return all
}

// sas lists a member's SAs by tunnel: IKE SPIs, Child SPIs and keys, as text that
// is equal where they are.
func (p *pair) sas(g *gateway) string {
	p.t.Helper()
	var b strings.Builder
	for _, s := range g.gateways() {
		for _, sa := range s.SAs {
			fmt.Fprintf(&b, "%s: IKE %s/%s %s\n", s.Name, sa.SPIi, sa.SPIr, sa.Status)
		}
	}
	for _, tn := range p.tunnels(g) {
		for _, sel := range tn.Selectors {
			for _, c := range sel.SAs {
				fmt.Fprintf(&b, "%s: ESP %s %s keys %s %s\n", tn.Name, c.SPIIn, c.SPIOut, c.Dec.Key, c.Enc.Key)
			}
		}
	}
	return b.String()
}

// wantSame waits until both members list the same SAs, and returns them.
func (p *pair) wantSame() string {
	p.t.Helper()
	var a, b string
	if !holds(10*time.Second, func() bool {
		a, b = p.sas(p.gws[lab.NodeGW1]), p.sas(p.gws[lab.NodeGW2])
		return a == b
	}) {
		p.t.Errorf("the members list different SAs\ngw1:\n%sgw2:\n%s", a, b)
	}
	return a
}

// breakpointProgram is the binary of the test build that can be told to die at an
// effect (internal/daemon/breakpoint_on.go).
//
// TANDEM_BREAKPOINT_BINARY names one that was built before, as when two are compared.
func breakpointProgram(t testing.TB) string {
	if p := os.Getenv("TANDEM_BREAKPOINT_BINARY"); p != "" {
		return p
	}
	return programWith(t, "breakpoints")
}

// contains says whether a line of a file holds all the words.
func contains(path string, words ...string) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
next:
	for line := range strings.Lines(string(text)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		return true
	}
	return false
}
